"""The hunts' statistics against worked examples and at their edges; tests/queries/test_calibration.py measures their level."""

import subprocess
import sys
from math import comb, log, log2, log10

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from queries.statistics import (
    benjamini_hochberg,
    binomial_tail,
    cusum,
    first_alarm,
    hypergeometric_tail,
    idf,
    jensen_shannon,
    kendall_tau,
    nb_lower_tail,
    nb_screen,
    nb_tail,
    off_phase_polls,
    periodicity,
    pooled_dispersion,
    regularity,
    robust_z,
    surprise,
)

NAN = float("nan")


def test_benjamini_hochberg_on_a_worked_example() -> None:
    q = benjamini_hochberg([0.01, 0.04, 0.03, 0.005])
    assert np.allclose(q, [0.02, 0.04, 0.04, 0.02])
    assert np.allclose(benjamini_hochberg([0.01], n_tests=10), [0.1])
    assert benjamini_hochberg([]).size == 0


def test_benjamini_hochberg_leaves_untested_ones_out_of_the_family() -> None:
    q = benjamini_hochberg([0.01, NAN, 0.04, 0.03, 0.005])
    assert np.allclose(q, [0.02, NAN, 0.04, 0.04, 0.02], equal_nan=True)
    assert np.isnan(benjamini_hochberg([NAN, NAN])).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_q_keeps_order_and_is_never_below_p(p: list[float]) -> None:
    q = benjamini_hochberg(p)
    assert np.all(q >= np.asarray(p) - 1e-12)
    order = np.argsort(p)
    assert np.all(np.diff(q[order]) >= -1e-12)


def test_tail_falls_with_the_count_and_is_wider_than_poisson() -> None:
    counts = np.arange(0, 200, 10)
    p = nb_tail(counts, np.full(20, 20.0), np.full(20, 150.0), 28, 0.3)
    assert p[0] == 1.0
    assert np.all(np.diff(p) < 0)
    assert p[4] > 1e-3  # 40 against a mean of 20: Poisson says 5e-5


def test_negative_binomial_tails_of_a_geometric_distribution() -> None:
    # Dispersion 1 is the geometric distribution: P(X >= x) = (mu/(1 + mu))^x. A baseline without end is not inflated.
    assert np.allclose(nb_tail([3, 0], 4.0, 20.0, 1e12, 1.0), [0.8**3, 1.0])
    assert np.allclose(nb_lower_tail([2, 0], 4.0, 20.0, 1e12, 1.0), [1 - 0.8**3, 0.2])
    # own dispersion 0.2 (mean 10, variance 30) shrinks to 0.3 towards 0.4, but never below that; 10 days inflate it by 1.2
    a = 0.4 * 1.2 + 1 / (10 * 10)
    assert np.allclose(nb_lower_tail(0, 10.0, 30.0, 10, 0.4), (1 / (1 + 10 * a)) ** (1 / a))


def test_pooled_dispersion_ignores_the_unknown() -> None:
    mean, variance = np.array([10.0] * 5 + [NAN]), np.array([10.0, 60.0, 110.0, 160.0, 210.0, 50.0])
    assert np.allclose(pooled_dispersion(mean, variance), [1.0] * 5 + [NAN], equal_nan=True)
    assert pooled_dispersion([], []).size == 0
    assert pooled_dispersion([0.0], [0.0]) == pytest.approx(1e-3)


def test_screen_agrees_with_its_parts() -> None:
    base = np.array([[8.0, 12.0, 10.0, 10.0], [100.0, 80.0, 120.0, 100.0]])
    screen = nb_screen([5, 900], base, 0.5, pooled=[0.1, 0.2])
    mean, variance = np.array([10.0, 100.0]), base.var(axis=1, ddof=1)
    size = 1 / (np.maximum((variance - mean) / mean**2 / 2 + np.array([0.05, 0.1]), [0.1, 0.2]) * 1.5 + 1 / (4 * mean))
    from scipy.stats import nbinom

    assert np.allclose(screen.p, nbinom.sf(np.array([4, 899]), size, size / (size + mean / 2)))
    assert np.allclose(screen.q, benjamini_hochberg(screen.p))
    assert np.allclose(screen.lift, [1.0, 18.0])
    assert np.allclose(screen.excess, [0.0, 850.0])
    assert screen.is_alert.tolist() == [False, True]


def test_screen_needs_lift_and_excess_and_a_baseline() -> None:
    base = np.array([[1000.0, 1010.0] * 14, [0.0, 1.0] * 14, [0.0, 1.0] * 14, [NAN] * 27 + [5.0], [0.0] * 28])
    screen = nb_screen([1500, 30, 80, 9999, 60], base, pooled=1e-3)
    assert (screen.q[[0, 1, 2, 4]] < 0.05).all()
    assert screen.is_alert.tolist() == [False, False, True, False, True]  # lift 1.5; excess 29.5; alert; no past; alert
    assert np.isnan(screen.p[3])
    assert screen.lift[2] == 80.0  # an expected count below one is one
    with_gaps = nb_screen([80], np.array([[0.0, NAN, 1.0, NAN, 0.0, 1.0]]), pooled=0.1)
    assert with_gaps.p == pytest.approx(nb_screen([80], np.array([[0.0, 1.0, 0.0, 1.0]]), pooled=0.1).p)
    assert nb_screen([], np.empty((0, 28))).is_alert.size == 0
    assert not nb_screen([NAN], [[1.0, 2.0]], pooled=0.1).is_alert[0]
    assert (
        nb_screen([80, 80], base[1:3], pooled=1e-3, n_tests=10**9).q[0]
        > nb_screen([80, 80], base[1:3], pooled=1e-3).q[0]
    )


def test_binomial_tail() -> None:
    assert binomial_tail(8, 10, 0.5) == pytest.approx((45 + 10 + 1) / 1024)
    assert np.allclose(binomial_tail([0, 1, 11], 10, 0.1), [1.0, 1 - 0.9**10, 0.0])
    assert np.isnan(binomial_tail([NAN, 1], 10, [0.1, NAN])).all()
    assert binomial_tail(0, 0, 0.5) == 1.0


def test_hypergeometric_tail() -> None:
    # 4 of 5 new mailboxes are among the 10 VIP mailboxes of 1,000
    expected = sum(comb(10, x) * comb(990, 5 - x) for x in (4, 5)) / comb(1000, 5)
    assert hypergeometric_tail(4, 5, 10, 1000) == pytest.approx(expected)
    assert np.allclose(hypergeometric_tail([0, 2, 3], 2, 2, 4), [1.0, 1 / 6, 0.0])
    assert np.isnan(hypergeometric_tail([NAN, 1], [5, 9], 10, [1000, 5])).all()  # more marked or drawn than there are


def test_surprise_has_a_ceiling() -> None:
    assert np.allclose(surprise([0, 0, 1], [28, 76, 28]), [log10(58), log10(154), log10(29 / 1.5)])
    assert surprise(0, 0) == pytest.approx(log10(2))
    assert surprise(28, 28) == pytest.approx(-log10(28.5 / 29))
    assert np.isnan(surprise(NAN, 28))
    assert surprise([], []).size == 0


def test_idf_of_tenants() -> None:
    assert np.allclose(idf([0, 9, 99], 99), [log(100), log(10), 0.0])
    assert idf(0, 0) == 0.0


def test_jensen_shannon_divergence() -> None:
    assert jensen_shannon([1, 0], [0, 7]) == pytest.approx(1.0)
    assert jensen_shannon([2, 6, 2], [20, 60, 20]) == pytest.approx(0.0, abs=1e-12)
    half = (1.0 * log2(1 / 0.75) + 0.5 * log2(0.5 / 0.75) + 0.5 * log2(0.5 / 0.25)) / 2
    assert jensen_shannon([1, 0], [1, 1]) == pytest.approx(half)
    rows = jensen_shannon([[4.0, 0.0], [0.0, 0.0], [NAN, 3.0]], [[4, 0], [1, 1], [0, 1]])
    assert np.allclose(rows, [0.0, NAN, 0.0], equal_nan=True)
    assert np.allclose(jensen_shannon([[30, 0], [19, 0]], [0, 50], least=20), [1.0, NAN], equal_nan=True)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=8))
def test_jensen_shannon_agrees_with_scipy_and_is_symmetric(pairs: list[tuple[int, int]]) -> None:
    from scipy.spatial.distance import jensenshannon

    p, q = np.array(pairs, float).T
    ours = float(jensen_shannon(p, q))
    if p.sum() == 0 or q.sum() == 0:
        assert np.isnan(ours)
        return
    assert ours == pytest.approx(float(jensen_shannon(q, p)))
    if not np.array_equal(p / p.sum(), q / q.sum()):  # rounding makes scipy take the root of less than zero
        assert ours == pytest.approx(float(np.nan_to_num(jensenshannon(p, q, base=2))) ** 2, abs=1e-9)


def test_kendall_tau_of_a_walk_through_a_list() -> None:
    tau, p = kendall_tau([1, 2, 3, 4, 5, 6, 7, 8], [10, 20, 30, 40, 50, 60, 70, 80])
    assert tau == pytest.approx(1.0)
    assert p == pytest.approx(2 / 40320)
    swapped = kendall_tau([1, 2, 3, 4], [1, 2, 4, 3])
    assert swapped.tau == pytest.approx(4 / 6)
    assert swapped.p == pytest.approx(2 * 4 / 24)  # 1 + 3 of 24 orders have at most one inversion
    assert kendall_tau([1, NAN, 2, 3], [3, 9, 2, NAN]).tau == pytest.approx(-1.0)
    for nothing in (([], []), ([1], [2]), ([1, 2, 3], [5, 5, 5]), ([NAN, 1], [1, 2])):
        assert np.isnan(kendall_tau(*nothing)).all()


def test_robust_z() -> None:
    base = np.array([[1.0, 2.0, 3.0, 4.0, 5.0], [7.0, 7.0, 7.0, 7.0, 7.0]])
    assert np.allclose(robust_z([6.0, 9.0], base, log=False, floor=0.5), [3 / 1.4826, 2 / 0.5])
    e = np.e - 1
    assert np.allclose(robust_z([e, 0.0, -3.0], np.zeros((3, 9))), [4.0, 0.0, 0.0])
    days = robust_z([[3.0, 6.0, NAN], [7.0, 7.5, 6.5]], base, log=False, floor=1.0)
    assert np.allclose(days, [[0, 3 / 1.4826, NAN], [0, 0.5, -0.5]], equal_nan=True)
    gaps = np.array([[NAN, 1.0, 2.0, NAN, 3.0, 4.0, 5.0], [NAN] * 7])
    assert np.allclose(robust_z([6.0, 6.0], gaps, log=False), [3 / 1.4826, NAN], equal_nan=True)
    assert np.isnan(robust_z([1.0], np.empty((1, 0)))).all()
    assert robust_z([], np.empty((0, 5))).size == 0


def test_cusum_sums_what_exceeds_the_slack() -> None:
    assert np.allclose(cusum([1.0, 1.0, -3.0, 9.0, 9.0]), [0.5, 1.0, 0.0, 3.5, 7.0])
    assert np.allclose(cusum([1.0, NAN, 1.0]), [0.5, 0.5, 1.0])
    assert np.allclose(cusum([np.inf, -np.inf]), [3.5, 0.0])
    assert np.allclose(cusum([[2.0], [0.0]], k=1.0, start=[5.0, 0.5]), [[6.0], [0.0]])
    assert cusum(np.empty((3, 0))).shape == (3, 0)


@given(st.lists(st.floats(-6, 6), min_size=2, max_size=30), st.integers(1, 29))
def test_cusum_can_be_carried_on(z: list[float], cut: int) -> None:
    whole, cut = cusum(z), min(cut, len(z) - 1)
    assert np.allclose(cusum(z[cut:], start=whole[cut - 1]), whole[cut:])


def test_first_alarm() -> None:
    assert first_alarm([[0.0, 8.0, 8.5, 0.0], [0.0, 1.0, 2.0, 3.0]]).tolist() == [2, -1]
    assert first_alarm(np.empty((2, 0))).tolist() == [-1, -1]
    assert first_alarm([9.0], 5.0) == 0


def test_periodicity() -> None:
    assert periodicity(np.full(24, 300.0)) == 1.0
    assert np.isnan(periodicity(np.full(23, 300.0)))
    assert periodicity(np.full(3, 300.0), least=3) == 1.0
    assert np.isnan(periodicity(np.full(24, 9.0)))  # rounded to whole seconds, anything fast looks steady
    assert periodicity(np.full(24, 9.0), resolution_s=0.001) == 1.0
    # quartiles 200, 300, 600: skewness 0.5; distances from 300 are 200, 100, 0, 300, 600: MAD 200
    assert periodicity([100, 200, 300, 600, 900], least=5) == pytest.approx((0.5 + 1 / 3) / 2)
    assert np.isnan(periodicity([])).all()
    assert np.isnan(periodicity([NAN] * 30))
    rows = np.array([[0.0] * 6 + [60.0] * 24, [0.0] * 7 + [60.0] * 23])
    assert np.allclose(periodicity(rows), [1.0, NAN], equal_nan=True)  # intervals of 0 s are no intervals


@given(st.lists(st.integers(1, 4), min_size=3, max_size=12), st.integers(0, 2**32 - 1))
def test_periodicity_of_a_histogram_is_that_of_its_values(counts: list[int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(10, 5000, len(counts)).astype(float)
    spread_out = np.repeat(values, counts)
    low, mid, high = np.quantile(spread_out, [0.25, 0.5, 0.75])
    told = high - low >= 0.1 * mid and mid not in (low, high)
    skew = (low + high - 2 * mid) / (high - low) if told else 0.0
    steady = max(1 - np.median(np.abs(spread_out - mid)) / mid, 0.0)
    expected = (1 - abs(skew) + steady) / 2
    assert periodicity(values, counts, least=3) == pytest.approx(expected)
    assert periodicity(spread_out, least=3) == pytest.approx(expected)


def test_regularity() -> None:
    assert regularity([38, 40, 42] * 4) == pytest.approx(np.std([38, 40, 42] * 4, ddof=1) / 40)
    rows = np.array([[40.0] * 10, [40.0] * 9 + [NAN], [0.0] * 10])
    assert np.allclose(regularity(rows), [0.0, NAN, NAN], equal_nan=True)
    assert np.isnan(regularity([])).all()
    assert np.isnan(regularity([5.0], least=1))


def test_off_phase_polls() -> None:
    polls = np.arange(20) * 300.0 + 290
    polls[::2] += 15  # some of the poller's phases lie beyond the end of the period
    found = off_phase_polls([*polls, 300 * 4 + 100, NAN, 300 * 7 + 200], 300)
    assert found.n == 2
    assert np.flatnonzero(found.is_off).tolist() == [20, 22]
    assert found.phase_s == pytest.approx(290)
    assert off_phase_polls([], 300).n == 0
    assert np.isnan(off_phase_polls([NAN], 300).phase_s)
    assert off_phase_polls([77.0], 300).n == 0
    assert off_phase_polls(np.arange(50.0), 60, tolerance_s=1e9).n == 0
    with pytest.raises(ValueError, match="period"):
        off_phase_polls([1.0], 0)


@given(st.lists(st.floats(0, 1e9), max_size=40), st.floats(1, 1e6))
def test_off_phase_count_is_that_of_the_marks(times: list[float], period: float) -> None:
    found = off_phase_polls(times, period)
    assert found.n == int(found.is_off.sum()) < max(len(times), 1)


def test_statistics_are_imported_without_scipy() -> None:
    script = "import sys, queries.statistics; sys.exit('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
