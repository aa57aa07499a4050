"""Level and power of the hunts' statistics, measured on a simulated archive; `tests.queries.calibrate` prints all figures.

Draws are seeded; the ranges leave room for another generator: three standard errors at least. Figures come from 40,000 to
160,000 entities, the tests draw fewer.
"""

import numpy as np
import pytest

from tests.queries import calibrate


def generator() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture(scope="module")
def quiet() -> calibrate.Figures:
    """False alerts a day per 10,000 entities where all have r = 3."""
    return calibrate.false_alerts(calibrate.archive(generator(), 10_000, calibrate.BASELINE + 7))


@pytest.fixture(scope="module")
def scattered() -> calibrate.Figures:
    """The same where each entity has an r of its own."""
    world = calibrate.archive(generator(), 10_000, calibrate.BASELINE + 7, scatter=calibrate.SCATTER)
    return calibrate.false_alerts(world)


def test_poisson_raises_hundreds_of_false_alerts(quiet: calibrate.Figures, scattered: calibrate.Figures) -> None:
    for figures in (quiet, scattered):
        assert 800 <= figures["Poisson, p < 1e-4"] <= 1000  # 895
        assert 1250 <= figures["Poisson, BH 0.05"] <= 1600  # 1,430


def test_robust_z_raises_tens(quiet: calibrate.Figures) -> None:
    assert 180 <= quiet["robust z of counts > 3.5"] <= 280  # 226
    assert 15 <= quiet["robust z of counts > 6"] <= 40  # 27
    assert 35 <= quiet["robust z of log1p > 3.5"] <= 65  # 49
    assert 1 <= quiet["robust z of log1p > 6"] <= 9  # 4


def test_screen_keeps_its_level_where_dispersion_is_shared(quiet: calibrate.Figures) -> None:
    assert quiet["NB screen, p < 1e-4"] <= 3  # 1.1, as it should
    assert quiet["NB screen, BH 0.05"] <= 1  # 0.14
    assert quiet["NB screen, BH 0.05, lift 3, excess 50"] <= 1  # 0.12
    assert quiet["NB, own dispersion, p < 1e-4"] > quiet["NB screen, p < 1e-4"]


def test_screen_stays_near_one_false_alert_a_day_where_dispersion_scatters(scattered: calibrate.Figures) -> None:
    # the few entities far above their class alert more than once: the figures of a week vary more than counts do
    assert 1.5 <= scattered["NB screen, p < 1e-4"] <= 8  # 4.2
    assert scattered["NB screen, BH 0.05"] <= 4  # 1.3
    assert scattered["NB screen, BH 0.05, lift 3, excess 50"] <= 4  # 1.1
    assert scattered["NB screen, BH 0.05, lift 10, excess 100"] <= 1  # 0.2


def test_power_of_a_day() -> None:
    rng = generator()
    power = calibrate.power_of_a_day(rng, calibrate.archive(rng, 3000, calibrate.BASELINE + 7))
    assert 0.003 <= power["NB p < 1.5e-5, x2"] <= 0.013  # 0.8 %
    assert 0.04 <= power["NB p < 1.5e-5, x3"] <= 0.075  # 5.7 %
    assert 0.21 <= power["NB p < 1.5e-5, x5"] <= 0.29  # 25 %
    assert 0.60 <= power["NB p < 1.5e-5, x10"] <= 0.69  # 65 %
    assert 0.04 <= power["robust z of log1p > 6, x10"] <= 0.12  # 7.5 %


def test_a_week_without_weekday_factors_costs_power() -> None:
    power = calibrate.season_ignored(generator(), 3000, 0.0)
    assert 0.14 <= power["NB p < 1.5e-5, x5"] <= 0.23  # 18.7 %, with factors 25 %
    assert power["NB p < 1.5e-5, x5, Sunday"] <= 0.01  # 0.2 %


def test_sums_against_earlier_sums() -> None:
    rng = generator()
    weeks = calibrate.drifting_sums(rng, 4000, 7, 12)
    months = calibrate.drifting_sums(rng, 4000, 28, 3)
    assert weeks["false hits, BH 0.05, lift 3"] <= 5  # 0
    assert months["false hits, BH 0.05, lift 3"] <= 5  # 0
    assert 0.10 <= weeks["power x2"] <= 0.19  # 14 %
    assert 0.57 <= weeks["power x3"] <= 0.68  # 62 %
    assert weeks["power x5"] >= 0.91  # 94 %


def test_cusum_raises_false_alarms_and_sees_what_lasts() -> None:
    shares = calibrate.cusum_shares(generator(), 4000)
    assert 0.065 <= shares["k=0.5, h=5, x1"] <= 0.105  # 8.5 %
    assert 0.025 <= shares["k=0.5, h=8, x1"] <= 0.050  # 3.7 %
    assert 0.017 <= shares["k=0.5, h=10, x1"] <= 0.038  # 2.7 %
    assert 0.017 <= shares["k=1, h=5, x1"] <= 0.037  # 2.6 %
    assert 0.31 <= shares["k=0.5, h=8, x1.5"] <= 0.39  # 35 %
    assert 0.73 <= shares["k=0.5, h=8, x2"] <= 0.82  # 78 %
    assert 10 <= shares["k=0.5, h=8, x2, median day"] <= 15  # 13
    assert shares["k=0.5, h=8, x3"] >= 0.96  # 98 %
    assert 0.64 <= shares["k=0.5, h=10, x2"] <= 0.74  # 69 %
    assert 0.87 <= shares["k=0.5, h=5, x2"] <= 0.92  # 89 %


def test_textbook_run_lengths_do_not_hold_for_counts() -> None:
    days = calibrate.run_lengths(generator(), 300, 1000)
    assert 700 <= days["normal scores"] <= 1150  # 916; textbooks say 930
    assert 230 <= days["NB Pearson residuals, mean 20"] <= 350  # 286


@pytest.mark.parametrize(
    ("n", "chance", "timer", "passing"), [(8, 0.89, 0.86, 0.65), (24, 0.81, 0.86, 0.74), (96, 0.735, 0.90, 0.997)]
)
def test_periodicity_of_chance_and_of_a_timer(n: int, chance: float, timer: float, passing: float) -> None:
    figures = calibrate.timers(generator(), 20_000, n)
    assert figures["Poisson 99.9 %"] == pytest.approx(chance, abs=0.03)
    assert figures["timer median"] == pytest.approx(timer, abs=0.02)
    assert figures["timer over the threshold"] == pytest.approx(passing, abs=0.02)
    if n >= 24:
        assert figures["Poisson over the threshold"] <= 0.004


def test_fast_traffic_in_whole_seconds_is_not_a_timer() -> None:
    from queries.statistics import periodicity

    rng = generator()
    for mean in (5, 10, 20, 60):
        scores = periodicity(np.floor(rng.exponential(mean, (5000, 48))))
        assert np.mean(scores >= 0.8) <= 0.004


def test_polls_off_phase() -> None:
    rng = generator()
    assert calibrate.second_reader(rng, 200, 0.0).max() == 0
    assert np.mean(calibrate.second_reader(rng, 400, 0.05) >= 5) >= 0.95  # 98 %
    assert 0.63 <= np.mean(calibrate.second_reader(rng, 400, 0.05, steady=True) >= 5) <= 0.81  # 72 %


def test_small_mixes_diverge_by_chance() -> None:
    rng = generator()
    assert calibrate.mixes(rng, 4000, 20)["share over 0.30"] == 0.0
    assert 0.06 <= calibrate.mixes(rng, 4000, 5)["share over 0.30"] <= 0.10  # 8.1 %


def test_only_quotas_are_regular_and_large_poisson_totals() -> None:
    shares = calibrate.steady_counts(generator(), 4000)
    assert shares["people (NB, r = 3), mean 100"] <= 0.002
    assert 0.06 <= shares["Poisson, mean 20"] <= 0.11  # 8.6 %
    assert shares["Poisson, mean 100"] >= 0.95
    assert shares["quota of 40 (+-2)"] == 1.0


def test_a_table_of_figures() -> None:
    figures = {"power": 0.1234, "power, median day": 12.0}
    assert calibrate.beside("Title", {"one": figures, "two": figures}, "%")[3:] == [
        "| | one | two |",
        "|---|---:|---:|",
        "| power | 12.3 % | 12.3 % |",
        "| power, median day | 12 | 12 |",
    ]
    assert calibrate.beside("Title", {"one": {"alerts": 1440.2, "few": 0.142}})[5:] == [
        "| alerts | 1,440 |",
        "| few | 0.14 |",
    ]


def test_worlds_are_averaged() -> None:
    measured = calibrate.averaged(lambda rng: {"seeded": float(rng.random())}, 3)
    assert measured["seeded"] == pytest.approx(np.mean([np.random.default_rng(seed).random() for seed in (1, 2, 3)]))
