"""Negative binomial tails and the false discovery rate."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from queries.statistics import benjamini_hochberg, nb_tail, pooled_dispersion


def test_benjamini_hochberg_on_a_worked_example() -> None:
    q = benjamini_hochberg([0.01, 0.04, 0.03, 0.005])
    assert np.allclose(q, [0.02, 0.04, 0.04, 0.02])
    assert np.allclose(benjamini_hochberg([0.01], n_tests=10), [0.1])
    assert benjamini_hochberg([]).size == 0


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


def test_false_alerts_stay_few_on_null_data() -> None:
    rng = np.random.default_rng(7)
    mean = rng.lognormal(3, 1.5, 4000)
    days = rng.negative_binomial(3, 3 / (3 + mean[:, None]), (4000, 29)).astype(float)
    base, today = days[:, :28], days[:, 28]
    mu, var = base.mean(1), base.var(1, ddof=1)
    q = benjamini_hochberg(nb_tail(today, mu, var, 28, pooled_dispersion(mu, var)))
    assert np.sum(q <= 0.05) <= 3
