"""What routine and events share: where people are, how volumes drift, how directories are named."""

import random

from flows.world.model import Tenant, User
from flows.world.wide.places import Where
from flows.world.wide.stage import Stage

OUTSIDE = ("harbour-parts.example", "brightline.example", "civic-press.example", "ovalbank.example", "mosswood.example")
FREEMAIL = ("postbox-free.example", "quickmail.example", "mailnest.example")
CLIENTS = ("localhost", "desktop", "unknown", "laptop-7f", "mail")  # names that machines outside give themselves


def base_dn(tenant: Tenant) -> str:
    """The root of the tenant's directory."""
    return ",".join(f"dc={part}" for part in tenant.domain.split("."))


def sync_dn(tenant: Tenant) -> str:
    """The account of the vendor's directory synchronisation."""
    return f"cn=svc-dirsync,ou=services,{base_dn(tenant)}"


def place_of(stage: Stage, rng: random.Random, tenant: Tenant, user: User) -> Where:
    """Where a person is at the moment: office, home, or on the way."""
    pick = rng.random()
    if pick < 0.62:
        return tenant.office.host(rng.randrange(4, 6)), tenant.office
    if pick < 0.98:
        return user.home.host(user.home_host), user.home
    net = rng.choice(stage.roaming)
    return net.host(rng.randrange(2, 250)), net


def drift(stage: Stage, rng: random.Random) -> list[float]:
    """A factor per day: volumes drift, by at most 1.5 % a day, and come back."""
    value, out = 1.0, list[float]()
    for _ in range(stage.cal.days):
        value *= 1 + rng.uniform(-0.015, 0.015) - 0.02 * (value - 1)
        out.append(value)
    return out
