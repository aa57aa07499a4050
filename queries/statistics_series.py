"""Statistics of one entity's series in time: a day against its past, sums of small excesses, and clockwork.

`queries.statistics` is the place to import from. NaN means "not known".
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

NORMAL_MAD = 1.4826  # a normal distribution's standard deviation in units of its MAD
LEAST_INTERVALS = 24  # fewer look periodic by chance
LEAST_SPREAD = 0.1  # of the median: quartiles nearer than this show the log's resolution, not skewness
LEAST_STEPS = 10  # of the log's resolution: a shorter median interval looks steady because it is rounded


class OffPhase(NamedTuple):
    """Polls beside the phase that most polls of a series keep."""

    n: int
    phase_s: float
    is_off: "NDArray[np.bool_]"


def robust_z(value: "ArrayLike", base: "ArrayLike", *, log: bool = True, floor: float = 0.25) -> "NDArray[np.float64]":
    """Modified z-score: distance from the median of the baseline in units of its scaled MAD.

    Source: Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers" (ASQC Basic References 16), who call 3.5 an
    outlier. Daily counts have long tails: of 10,000 quiet entities some 250 a day pass 3.5 and 30 to 50 pass 6; on
    log1p with the floor 50 to 60 and 4 to 8. A tenfold day passes 6 in one of ten cases: `nb_tail` sees more.

    Args:
        value: what to judge, shape (n,) or (n, days).
        base: baseline (or peer group) of each, shape (n, days); NaN: no data.
        log: judge log1p of both; values are then at least 0 (counts, bytes).
        floor: least unit, on the scale of the (logarithmic) values: a series that never moves has a MAD of 0.

    Returns:
        z, shape of `value`; NaN without baseline.
    """
    past, x = np.atleast_2d(np.asarray(base, float)), np.asarray(value, float)
    if log:
        past, x = np.log1p(np.maximum(past, 0)), np.log1p(np.maximum(x, 0))
    middle = _median(past)
    unit = np.maximum(NORMAL_MAD * _median(np.abs(past - middle[:, None])), floor)
    if x.ndim > 1:
        middle, unit = middle[:, None], unit[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # a floor of 0 is the caller's choice
        return np.asarray((x - middle) / unit, float)


def cusum(z: "ArrayLike", *, k: float = 0.5, clip: float = 4.0, start: "ArrayLike" = 0.0) -> "NDArray[np.float64]":
    """One-sided cumulative sum S = max(0, S + z - k) of scores clipped at +-clip.

    Source: Page 1954, Biometrika 41(1/2), "Continuous inspection schemes"; clipping after Lucas and Crosier 1982,
    Communications in Statistics 11(23), "Robust CUSUM". Textbook limits h hold for normal scores of a known mean: with
    `robust_z` over a baseline of 28 days, 8 in 100 entities pass h = 5 within 30 quiet days, 4 pass h = 8 and 3 pass
    h = 10, because median and MAD were estimated from little. A doubling that lasts passes h = 8 in three of four
    cases, after some 12 days. An alert is for few, closely watched principals; elsewhere it is a point of risk.

    Args:
        z: scores in order of time, shape (n, days) or (days,); NaN: no data, the sum stays.
        k: slack in units of z: half the shift that is looked for.
        clip: greatest weight of a day, in units of z.
        start: sums before the first day, shape (n,) or scalar.

    Returns:
        sums after each day, shape of `z`.
    """
    scores = np.asarray(z, float)
    steps = np.where(np.isnan(scores), 0.0, np.clip(scores, -clip, clip) - k)
    sums = np.empty(scores.shape)
    now = np.broadcast_to(np.asarray(start, float), scores.shape[:-1])
    for day in range(scores.shape[-1]):
        now = np.maximum(now + steps[..., day], 0.0)
        sums[..., day] = now
    return sums


def first_alarm(sums: "ArrayLike", h: float = 8.0) -> "NDArray[np.int64]":
    """Day on which a cumulative sum first exceeds h.

    Args:
        sums: of `cusum`, shape (n, days) or (days,).
        h: decision limit in units of z.

    Returns:
        index of the day, shape (n,) or (); -1 where there is none.
    """
    above = np.asarray(sums, float) > h
    if above.shape[-1] == 0:
        return np.full(above.shape[:-1], -1, np.int64)
    return np.asarray(np.where(above.any(axis=-1), above.argmax(axis=-1), -1), np.int64)


def periodicity(
    intervals: "ArrayLike",
    counts: "ArrayLike | None" = None,
    *,
    least: int = LEAST_INTERVALS,
    resolution_s: float = 1.0,
) -> "NDArray[np.float64]":
    """How much like a timer intervals look: mean of 1 - |Bowley skewness| and 1 - MAD/median, both at least 0.

    Source: the timestamp score of RITA 5 (Active Countermeasures, analysis/beacons.go) with Bowley's quartile skewness
    (Bowley 1920, "Elements of Statistics"). As there, intervals of 0 s are left out, and skewness is 0 where the median
    is one of the quartiles. Three things differ. Skewness is 0 where the quartiles are less than a tenth of the median
    apart, not 10 s: of fast Poisson traffic (every 5 to 10 s) RITA's rule lets 5 to 40 in 100 series pass. Intervals
    with a median below ten steps of the log's clock have no score. And RITA scores from 3 intervals on, here 24 are
    needed: of Poisson traffic 25 in 1,000 series pass 0.80 with 8 intervals, 2 with 24, and 1 in 4,000 passes 0.75 with
    96. Of timers with 20 % jitter 65, 74 and 99.7 in 100 do, of timers with 5 % all.
    A histogram's bins may be up to a factor of 1.4 wide; bins of powers of two let 1 to 3 in 100 Poisson series pass.

    Args:
        intervals: seconds between successive events, shape (n, m) or (m,), in any order; NaN: none.
        counts: how often each interval occurred (centres of a histogram's bins), same shape; by default once.
        least: least number of intervals above 0.
        resolution_s: step of the log's clock in seconds.

    Returns:
        score from 0 to 1 (exact timer), shape (n,) or (); NaN with fewer intervals or too short ones.
    """
    gaps = np.atleast_1d(np.asarray(intervals, float))
    weights = np.ones(gaps.shape) if counts is None else np.broadcast_to(np.asarray(counts, float), gaps.shape)
    weights = np.where((gaps > 0) & np.isfinite(gaps) & (weights > 0), weights, 0.0)
    if gaps.shape[-1] == 0:
        return np.full(gaps.shape[:-1], np.nan)
    low, mid, high = _weighted_quantiles(gaps, weights, (0.25, 0.5, 0.75))
    (mad,) = _weighted_quantiles(np.abs(gaps - mid[..., None]), weights, (0.5,))
    spread = high - low
    told = (spread >= LEAST_SPREAD * mid) & (spread > 0) & (mid != low) & (mid != high)
    skew = np.where(told, (low + high - 2 * mid) / np.where(told, spread, 1.0), 0.0)
    steady = np.maximum(1 - mad / np.where(mid > 0, mid, 1.0), 0.0)
    enough = (weights.sum(axis=-1) >= max(least, 1)) & (mid >= LEAST_STEPS * resolution_s)
    return np.asarray(np.where(enough, (1 - np.abs(skew) + steady) / 2, np.nan), float)


def regularity(totals: "ArrayLike", *, least: int = 10) -> "NDArray[np.float64]":
    """Coefficient of variation: standard deviation by mean.

    Source: Sokal and Rohlf 1995, "Biometry", chapter 4. People vary by half their mean and more; a quota of 40 a day
    does not. Independent events (Poisson) of mean m have 1/sqrt(m): of series of 10 days 9 in 100 are below 0.15 with
    20 events a day, half with 40 and nearly all with 100. A limit for large totals has to be lower.

    Args:
        totals: daily totals, shape (n, days) or (days,); NaN: no data.
        least: least number of days.

    Returns:
        variation, shape (n,) or (); NaN with fewer days (always with fewer than two) or a mean of 0.
    """
    values = np.atleast_1d(np.asarray(totals, float))
    known = np.isfinite(values)
    n = known.sum(axis=-1)
    mean = np.where(known, values, 0.0).sum(axis=-1) / np.maximum(n, 1)
    squares = np.where(known, (values - mean[..., None]) ** 2, 0.0).sum(axis=-1)
    deviation = np.sqrt(squares / np.maximum(n - 1, 1))
    told = (n >= max(least, 2)) & (mean > 0)
    return np.asarray(np.where(told, deviation / np.where(told, mean, 1.0), np.nan), float)


def off_phase_polls(times_s: "ArrayLike", period_s: float, *, tolerance_s: float = 40.0) -> OffPhase:
    """Polls that a poller of fixed period did not make at its usual phase: somebody else reads with its credential.

    Times are folded by the period (epoch folding; Leahy and others 1983, Astrophysical Journal 266, "On searches for
    pulsed emission"). The usual phase is the median of the span of 2 * tolerance_s that holds most polls. Give a
    day at a time: a clock that drifts by a second an hour stays within the tolerance, one that drifts by more, or a
    poller that waits a period after each poll, keeps no phase. A poller of 300 s with a jitter of 8 s has none off
    phase. A second reader that uses 5 % of its slots at any time has 5 or more on 98 of 100 days; one that keeps a
    phase of its own is not seen where that is within the tolerance of the first one's (a quarter of the cases).

    Args:
        times_s: times of the polls in seconds, shape (n,), in any order; NaN is never off phase.
        period_s: the poller's period, above 0.
        tolerance_s: distance from the usual phase up to which a poll is the poller's; five times its jitter.

    Returns:
        number of polls off phase, the usual phase in seconds (NaN without polls), and which polls, shape (n,).
    """
    times = np.asarray(times_s, float)
    known = np.isfinite(times)
    is_off = np.zeros(times.shape, bool)
    if period_s <= 0:
        raise ValueError("the period of a poller is above 0 s")
    if not known.any():
        return OffPhase(0, float("nan"), is_off)
    phases = np.mod(times[known], period_s)
    ordered = np.sort(phases)
    around = np.concatenate([ordered, ordered + period_s])
    starts = np.arange(ordered.size)
    held = np.minimum(np.searchsorted(around, ordered + 2 * tolerance_s, side="right") - starts, ordered.size)
    best = int(np.argmax(held))
    phase = float(around[best + (held[best] - 1) // 2] % period_s)
    distance = np.abs(np.mod(phases - phase + period_s / 2, period_s) - period_s / 2)
    is_off[known] = distance > tolerance_s
    return OffPhase(int(is_off.sum()), phase, is_off)


def _median(values: "NDArray[np.float64]") -> "NDArray[np.float64]":
    """Median of the known values of each row; NaN where there are none."""
    known = np.isfinite(values)
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan)
    if known.all():
        return np.asarray(np.median(values, axis=-1), float)
    (middle,) = _weighted_quantiles(values, known.astype(float), (0.5,))
    return np.where(known.any(axis=-1), middle, np.nan)


def _weighted_quantiles(
    values: "NDArray[np.float64]", weights: "NDArray[np.float64]", levels: tuple[float, ...]
) -> list["NDArray[np.float64]"]:
    """Quantiles of each row, each value taken `weights` times, linear between order statistics.

    Source: type 7 of Hyndman and Fan 1996, American Statistician 50(4), "Sample quantiles in statistical packages".
    Rows without weight give a value without meaning; the callers replace it.
    """
    order = np.argsort(np.where(weights > 0, values, np.inf), axis=-1, kind="stable")
    ordered = np.take_along_axis(np.where(weights > 0, values, 0.0), order, axis=-1)
    up_to = np.cumsum(np.take_along_axis(weights, order, axis=-1), axis=-1)
    last = np.maximum(up_to[..., -1:] - 1, 0)
    found = []
    for level in levels:
        place = level * last
        below, above = np.floor(place), np.ceil(place)
        low, high = (
            np.take_along_axis(ordered, np.minimum((up_to <= at).sum(axis=-1, keepdims=True), values.shape[-1] - 1), -1)
            for at in (below, above)
        )
        found.append((low + (high - low) * (place - below))[..., 0])
    return found
