"""Statistics of the hunts: counts of a day, rarity, mixes and order; those of a series are in `statistics_series`.

Counts of machines and people are over-dispersed: a Poisson tail raises hundreds of false alerts a day on ten thousand
entities. Used here is the negative binomial with variance mu + a*mu^2 (NB2; Lawless 1987, Canadian Journal of
Statistics 15(3), "Negative binomial and mixed Poisson regression"), its dispersion shrunk towards that of entities with
similar volume and inflated for the uncertainty of a short baseline, and the step-up procedure of Benjamini and Hochberg
(1995, Journal of the Royal Statistical Society B 57(1), "Controlling the false discovery rate").

Everywhere NaN means "not known": it is left out of what is estimated, and what cannot be told from the rest is NaN.
`python -m tests.queries.calibrate` measures false alerts and power of these statistics on a simulated archive.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from queries.statistics_series import (
    cusum,
    first_alarm,
    off_phase_polls,
    periodicity,
    regularity,
    robust_z,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Association",
    "Screen",
    "benjamini_hochberg",
    "binomial_tail",
    "cusum",
    "first_alarm",
    "hypergeometric_tail",
    "idf",
    "jensen_shannon",
    "kendall_tau",
    "nb_lower_tail",
    "nb_screen",
    "nb_tail",
    "off_phase_polls",
    "periodicity",
    "pooled_dispersion",
    "regularity",
    "robust_z",
    "surprise",
]

LEAST_DISPERSION = 1e-3
LEAST_MEAN = 0.05
CLASSES = 10  # volume classes among which dispersion is shared


class Screen(NamedTuple):
    """Verdict of `nb_screen` on each entity, all of shape (n,)."""

    p: "NDArray[np.float64]"
    q: "NDArray[np.float64]"
    lift: "NDArray[np.float64]"
    excess: "NDArray[np.float64]"
    is_alert: "NDArray[np.bool_]"


class Association(NamedTuple):
    """Rank correlation and its two-sided p-value; NaN where there is none."""

    tau: float
    p: float


def pooled_dispersion(mean: "ArrayLike", variance: "ArrayLike") -> "NDArray[np.float64]":
    """Median moment dispersion of the volume class that each entity is in.

    Args:
        mean: daily mean of each entity, shape (n,).
        variance: daily variance of each entity, shape (n,).

    Returns:
        dispersion a of NB2, shape (n,); at least 0.001; NaN where mean or variance is.
    """
    mu, var = np.asarray(mean, float), np.asarray(variance, float)
    own = _moment_dispersion(mu, var)
    known = np.isfinite(own)
    if not known.any():
        return own
    edges = np.quantile(mu[known], np.linspace(0, 1, CLASSES + 1)[1:-1])
    place = np.digitize(mu[known], edges)
    medians = np.array([np.median(own[known][place == k]) if np.any(place == k) else 0.0 for k in range(CLASSES)])
    pooled = np.full(own.shape, np.nan)
    pooled[known] = medians[place]
    return pooled


def nb_tail(
    count: "ArrayLike", mean: "ArrayLike", variance: "ArrayLike", n_days: "ArrayLike", pooled: "ArrayLike"
) -> "NDArray[np.float64]":
    """P(X >= count) for a day that follows a baseline, by the shrunk and inflated negative binomial.

    Args:
        count: observed value, shape (n,).
        mean: baseline mean expected for that day (weekday factor included), shape (n,).
        variance: baseline variance, shape (n,).
        n_days: days of the baseline, shape (n,) or scalar, at least 1.
        pooled: dispersion of the volume class, shape (n,) or scalar.

    Returns:
        upper tail probabilities, shape (n,).
    """
    mu = np.asarray(mean, float)
    return _nb_upper(np.asarray(count, float), mu, _dispersion(mu, np.asarray(variance, float), n_days, pooled))


def nb_lower_tail(
    count: "ArrayLike", mean: "ArrayLike", variance: "ArrayLike", n_days: "ArrayLike", pooled: "ArrayLike"
) -> "NDArray[np.float64]":
    """P(X <= count), the other tail of `nb_tail`: for logs that fall silent.

    Args:
        count: observed value, shape (n,).
        mean: as in `nb_tail`.
        variance: as in `nb_tail`.
        n_days: as in `nb_tail`.
        pooled: as in `nb_tail`.

    Returns:
        lower tail probabilities, shape (n,).
    """
    from scipy.stats import nbinom

    mu = np.asarray(mean, float)
    size = 1 / _dispersion(mu, np.asarray(variance, float), n_days, pooled)
    expected = np.maximum(mu, LEAST_MEAN)
    return np.asarray(nbinom.cdf(np.asarray(count, float), size, size / (size + expected)), float)


def nb_screen(
    count: "ArrayLike",
    base: "ArrayLike",
    factor: "ArrayLike" = 1.0,
    *,
    level: float = 0.05,
    least_lift: float = 3.0,
    least_excess: float = 50.0,
    pooled: "ArrayLike | None" = None,
    n_tests: int | None = None,
) -> Screen:
    """Which entities have far more than their baseline on one day (or in one week, against earlier weeks).

    An alert needs the false discovery rate (`nb_tail` and `benjamini_hochberg`) and both guards: an excess that is
    significant but small, or a multiple of next to nothing, is of no use to an analyst. In a simulated archive of
    10,000 entities (log-normal means, median 20, sigma 1.5; NB around them; weekdays; 28 days of baseline) the rate
    alone leaves 0.1 false alerts a day where all share a dispersion of 1/3, and 1.3 where it scatters between entities
    (sigma of the logarithm 0.7); with the guards 0.1 and 1.1. Poisson's p < 1e-4 leaves 900. The price is power: a
    doubled day is found in 1 of 100 cases, x3 in 5, x5 in 24 and a tenfold one in 63.

    Sums serve as well: 7 days against 12 sums before (2 false hits in 10,000 with a lift of 3, where means drift by
    1.5 % a day). A sum of 28 days against 3 before is not calibrated without the lift (29 false hits); take 6.

    Args:
        count: value of the day as logged, shape (n,).
        base: baseline values divided by the factors of their days (without season), shape (n, days); NaN: no data.
        factor: factor of the day (weekday, holiday), shape (n,) or scalar.
        level: false discovery rate.
        least_lift: least multiple of the expected count, which is taken as 1 where it is less.
        least_excess: least count above the expected one.
        pooled: dispersion of the volume class, shape (n,) or scalar; by default that of the entities given.
        n_tests: size of the family where entities were left out; at least n.

    Returns:
        p, q, lift, excess and the verdict; NaN and no alert where less than two days of baseline are known.
    """
    x, days = np.asarray(count, float), np.atleast_2d(np.asarray(base, float))
    n_days = np.isfinite(days).sum(axis=1)
    enough, known = n_days >= 2, np.isfinite(days)
    sums = np.where(known, days, 0.0).sum(axis=1)
    mu = np.where(enough, sums / np.maximum(n_days, 1), np.nan)
    squares = np.where(known, (days - mu[:, None]) ** 2, 0.0).sum(axis=1)
    var = np.where(enough, squares / np.maximum(n_days - 1, 1), np.nan)
    shared = pooled_dispersion(mu, var) if pooled is None else np.asarray(pooled, float)
    expected = mu * np.asarray(factor, float)
    p = _nb_upper(x, expected, _dispersion(mu, var, n_days, shared))
    q = benjamini_hochberg(p, n_tests)
    expected = np.maximum(expected, LEAST_MEAN)
    lift, excess = x / np.maximum(expected, 1.0), x - expected
    return Screen(p, q, lift, excess, (q <= level) & (lift >= least_lift) & (excess >= least_excess))


def benjamini_hochberg(p: "ArrayLike", n_tests: int | None = None) -> "NDArray[np.float64]":
    """Adjusted p-values (q) of one family of tests.

    Args:
        p: p-values, shape (n,); NaN is no test.
        n_tests: size of the family, where larger p-values were left out of `p`; at least the number of tests in `p`.

    Returns:
        q-values in the order of `p`; q <= level selects the discoveries at that false discovery rate.
    """
    given = np.asarray(p, float)
    known = np.isfinite(given)
    values = given[known]
    m = max(values.size, n_tests or 0)
    order = np.argsort(values, kind="stable")
    ranked = values[order] * m / np.arange(1, values.size + 1)
    smallest = np.minimum.accumulate(ranked[::-1])[::-1]
    found = np.empty_like(values)
    found[order] = np.minimum(smallest, 1.0)
    q = np.full(given.shape, np.nan)
    q[known] = found
    return q


def binomial_tail(k: "ArrayLike", n: "ArrayLike", rate: "ArrayLike") -> "NDArray[np.float64]":
    """P(X >= k) of the binomial distribution: k or more of n where each happens at a known rate.

    Source: Clopper and Pearson 1934, Biometrika 26(4), "The use of confidence or fiducial limits".

    Args:
        k: how many happened, shape (n,) or scalar.
        n: of how many, same shape.
        rate: how often it happens otherwise, 0 to 1.

    Returns:
        upper tail probabilities, shape (n,); 1 for k = 0; NaN where an argument is NaN or impossible.
    """
    from scipy.stats import binom

    return np.asarray(binom.sf(np.asarray(k, float) - 1, np.asarray(n, float), np.asarray(rate, float)), float)


def hypergeometric_tail(
    hits: "ArrayLike", drawn: "ArrayLike", marked: "ArrayLike", population: "ArrayLike"
) -> "NDArray[np.float64]":
    """P(X >= hits): as many marked ones or more among those drawn without replacement (enrichment).

    Source: the upper tail of Fisher's exact test (Fisher 1935, Journal of the Royal Statistical Society 98(1), "The
    logic of inductive inference").

    Args:
        hits: marked ones (for example VIP mailboxes) among those drawn, shape (n,) or scalar.
        drawn: how many were drawn (mailboxes that an actor opened).
        marked: marked ones in the population.
        population: size of the population.

    Returns:
        upper tail probabilities, shape (n,); 1 for no hits; NaN where an argument is NaN or impossible.
    """
    from scipy.stats import hypergeom

    x, n, k, total = (np.asarray(each, float) for each in (hits, drawn, marked, population))
    return np.asarray(hypergeom.sf(x - 1, total, k, n), float)


def surprise(k: "ArrayLike", n: "ArrayLike") -> "NDArray[np.float64]":
    """-log10 of the chance (k + 0.5)/(n + 1) that a new value turns up on a day.

    The estimate is Krichevsky's and Trofimov's (1981, IEEE Transactions on Information Theory 27(2), "The performance
    of universal encoding"). No surprise exceeds log10(2(n + 1)): 1.76 after 28 days, 2.19 after 76. A threshold above
    that silently disables a rule.

    Args:
        k: days of the baseline with any new value, shape (n,) or scalar.
        n: days of the baseline after the burn-in, at least k.

    Returns:
        surprise, shape of the arguments; 0.30 without any day.
    """
    seen, days = np.asarray(k, float), np.asarray(n, float)
    return np.asarray(-np.log10((np.clip(seen, 0, days) + 0.5) / (days + 1)), float)


def idf(df: "ArrayLike", total: "ArrayLike") -> "NDArray[np.float64]":
    """Rarity of a value across tenants: ln((1 + total)/(1 + df)).

    Source: inverse document frequency (Sparck Jones 1972, Journal of Documentation 28(1), "A statistical interpretation
    of term specificity"), smoothed by one on both sides.

    Args:
        df: tenants that have the value in their baseline, shape (n,) or scalar.
        total: tenants.

    Returns:
        rarity in nats: 0 for a value that all have, ln(1 + total) for one that nobody has.
    """
    return np.asarray(np.log((1 + np.asarray(total, float)) / (1 + np.asarray(df, float))), float)


def jensen_shannon(left: "ArrayLike", right: "ArrayLike", *, least: float = 0.0) -> "NDArray[np.float64]":
    """Jensen-Shannon divergence of two mixes, base 2.

    Source: Lin 1991, IEEE Transactions on Information Theory 37(1), "Divergence measures based on the Shannon entropy".
    Small samples diverge by chance: 20 operations of five kinds stay within 0.2 of the mix that they come from in 999
    of 1,000 draws, 10 operations within 0.35; of 5 operations 8 in 100 draws exceed 0.3.

    Args:
        left: counts or shares of the actions of one side, shape (..., actions); NaN and negative values are 0.
        right: those of the other side in the same order.
        least: least sum of each side; below it there is no answer.

    Returns:
        divergence in bits, 0 (same mix) to 1 (nothing in common), shape (...); NaN where a side is empty.
    """
    sides = [np.fmax(np.nan_to_num(np.asarray(each, float), nan=0.0), 0.0) for each in (left, right)]
    sums = [side.sum(axis=-1) for side in sides]
    p, q = (side / np.where(total > 0, total, 1.0)[..., None] for side, total in zip(sides, sums, strict=True))
    middle = (p + q) / 2
    divergence = _entropy(middle) - (_entropy(p) + _entropy(q)) / 2
    answered = (np.minimum(*sums) > 0) & (np.minimum(*sums) >= least)
    return np.asarray(np.where(answered, np.clip(divergence, 0.0, 1.0), np.nan), float)


def kendall_tau(first: "ArrayLike", second: "ArrayLike") -> Association:
    """Kendall's tau-b of two orders, with its p-value (exact for short series without ties).

    Source: Kendall 1938, Biometrika 30(1/2), "A new measure of rank correlation"; ties: Kendall 1945, Biometrika 33(3).
    Eight things in perfect order have p = 5e-5, but with tau = 0.86 p = 0.002: |tau| >= 0.8 means p < 1e-3 from ten on.

    Args:
        first: values of one order (for example the time of first access to each mailbox), shape (n,).
        second: values of the other (place in the address book), shape (n,); pairs with a NaN are left out.

    Returns:
        tau from -1 to 1 and p; NaN with fewer than two pairs or where one side is constant.
    """
    from scipy.stats import kendalltau

    a, b = np.asarray(first, float), np.asarray(second, float)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 2:
        return Association(np.nan, np.nan)
    found = kendalltau(a[both], b[both])
    return Association(float(found.statistic), float(found.pvalue))


def _nb_upper(
    x: "NDArray[np.float64]", mu: "NDArray[np.float64]", dispersion: "NDArray[np.float64]"
) -> "NDArray[np.float64]":
    from scipy.stats import nbinom

    expected, size = np.maximum(mu, LEAST_MEAN), 1 / dispersion
    return np.asarray(nbinom.sf(x - 1, size, size / (size + expected)), float)


def _dispersion(
    mu: "NDArray[np.float64]", var: "NDArray[np.float64]", n_days: "ArrayLike", pooled: "ArrayLike"
) -> "NDArray[np.float64]":
    """Own dispersion shrunk half-way to the pooled one, never below it, inflated for a baseline of n_days."""
    days, prior = np.maximum(np.asarray(n_days, float), 1.0), np.asarray(pooled, float)
    shrunk = np.maximum(0.5 * _moment_dispersion(mu, var) + 0.5 * prior, prior)
    inflated = shrunk * (1 + 2 / days) + 1 / (days * np.maximum(mu, 1.0))
    return np.asarray(np.maximum(inflated, LEAST_DISPERSION), float)


def _moment_dispersion(mu: "NDArray[np.float64]", var: "NDArray[np.float64]") -> "NDArray[np.float64]":
    return np.asarray(np.maximum((var - mu) / np.maximum(mu**2, 1e-9), LEAST_DISPERSION), float)


def _entropy(shares: "NDArray[np.float64]") -> "NDArray[np.float64]":
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    return np.asarray(-np.sum(shares * logs, axis=-1), float)
