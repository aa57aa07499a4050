"""What all tests share: no example is refused for being slow, since nothing here measures time."""

from hypothesis import HealthCheck, settings

settings.register_profile("gatehound", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("gatehound")
