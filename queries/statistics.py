"""Count statistics for hunts.

Counts of machines and people are over-dispersed: a Poisson tail raises hundreds of false alerts a day on ten thousand
entities. Used here is the negative binomial with variance mu + a*mu^2 (NB2; Lawless 1987, Canadian Journal of
Statistics 15(3), "Negative binomial and mixed Poisson regression"), its dispersion shrunk towards that of entities with
similar volume and inflated for the uncertainty of a short baseline, and the step-up procedure of Benjamini and Hochberg
(1995, Journal of the Royal Statistical Society B 57(1), "Controlling the false discovery rate").
"""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LEAST_DISPERSION = 1e-3
LEAST_MEAN = 0.05
CLASSES = 10  # volume classes among which dispersion is shared


def pooled_dispersion(mean: "ArrayLike", variance: "ArrayLike") -> "NDArray[np.float64]":
    """Median moment dispersion of the volume class that each entity is in.

    Args:
        mean: daily mean of each entity, shape (n,).
        variance: daily variance of each entity, shape (n,).

    Returns:
        dispersion a of NB2, shape (n,); at least 0.001.
    """
    mu, var = np.asarray(mean, float), np.asarray(variance, float)
    own = _moment_dispersion(mu, var)
    if own.size == 0:
        return own
    edges = np.quantile(mu, np.linspace(0, 1, CLASSES + 1)[1:-1])
    place = np.digitize(mu, edges)
    medians = np.array([np.median(own[place == k]) if np.any(place == k) else 0.0 for k in range(CLASSES)])
    return np.asarray(medians[place], float)


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
    from scipy.stats import nbinom

    x, mu, var = np.asarray(count, float), np.asarray(mean, float), np.asarray(variance, float)
    days, prior = np.maximum(np.asarray(n_days, float), 1.0), np.asarray(pooled, float)
    shrunk = np.maximum(0.5 * _moment_dispersion(mu, var) + 0.5 * prior, prior)
    inflated = shrunk * (1 + 2 / days) + 1 / (days * np.maximum(mu, 1.0))
    expected = np.maximum(mu, LEAST_MEAN)
    size = 1 / np.maximum(inflated, LEAST_DISPERSION)
    return np.asarray(nbinom.sf(x - 1, size, size / (size + expected)), float)


def benjamini_hochberg(p: "ArrayLike", n_tests: int | None = None) -> "NDArray[np.float64]":
    """Adjusted p-values (q) of one family of tests.

    Args:
        p: p-values, shape (n,).
        n_tests: size of the family, where larger p-values were left out of `p`; at least n.

    Returns:
        q-values in the order of `p`; q <= level selects the discoveries at that false discovery rate.
    """
    values = np.asarray(p, float)
    if values.size == 0:
        return values
    m = max(values.size, n_tests or 0)
    order = np.argsort(values, kind="stable")
    ranked = values[order] * m / np.arange(1, values.size + 1)
    smallest = np.minimum.accumulate(ranked[::-1])[::-1]
    q = np.empty_like(values)
    q[order] = np.minimum(smallest, 1.0)
    return q


def _moment_dispersion(mu: "NDArray[np.float64]", var: "NDArray[np.float64]") -> "NDArray[np.float64]":
    return np.maximum((var - mu) / np.maximum(mu**2, 1e-9), LEAST_DISPERSION)
