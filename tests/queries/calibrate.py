"""python -m tests.queries.calibrate: false alerts and power of the hunts' statistics on a simulated archive, as Markdown.

The archive: entities whose daily mean is log-normal (median 20, sigma 1.5), counts negative binomial around it with r = 3, or
with an r of each entity's own (log-normal around 3, sigma 0.7), times a factor of the weekday that the screen has to estimate;
28 days of baseline before each scored day. Nothing is planted unless a row says so. All draws are seeded.

The thresholds were first chosen from a simulation of which only the figures are left. With an r that scatters this archive
repeats them within about a third: the screen's false alerts (4.0 and 1.4 a day at p < 1e-4 and BH 0.05), sums over 7 and 28 days,
power of a day, CUSUM (8.4, 3.8 and 2.8 % of quiet entities), periodicity. What differs:

- With r = 3 for all the screen has a tenth of these false alerts: it keeps its level where entities share a dispersion, and
  pays for those far above their class.
- Own dispersion, not shrunk: 6.5 and 2.8 false alerts a day; first figures 8.9 and 5.1.
- Weekdays ignored: a day of x5 is still found in 18 of 100 cases over a week; first figure 0.4, which fits Sundays only.
- A doubled sum of 7 days is found in 12 to 14 of 100 cases; first figure 20.
- A second reader that keeps a phase of its own gives 5 off-phase polls on 72 of 100 days only; first figure: always.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from queries.statistics import (
    _moment_dispersion,
    _nb_upper,
    benjamini_hochberg,
    cusum,
    first_alarm,
    jensen_shannon,
    nb_screen,
    off_phase_polls,
    periodicity,
    pooled_dispersion,
    regularity,
    robust_z,
)

Floats = NDArray[np.float64]
Figures = dict[str, float]

MEDIAN, SIGMA, R, SCATTER = 20.0, 1.5, 3.0, 0.7
WEEKDAYS = np.array([1.0, 0.98, 0.96, 0.95, 0.85, 0.4, 0.3])
BASELINE = 28
ALERT_P = 1.5e-5  # where Benjamini and Hochberg's procedure ends up on quiet days


class Archive(NamedTuple):
    """Simulated counts: mean and r of shape (entities,), `logged` and `flat` (without season) of (entities, days)."""

    mean: Floats
    r: Floats
    logged: Floats
    flat: Floats
    factors: Floats
    true_factors: Floats

    def more(self, rng: np.random.Generator, times: float, days: slice) -> Floats:
        """Counts of days that have a multiple of their mean, shape (entities, days)."""
        return draw(rng, times * self.mean[:, None] * self.true_factors[days], self.r)


def draw(rng: np.random.Generator, mean: Floats, r: Floats) -> Floats:
    """Negative binomial counts around means of shape (entities, days)."""
    size = np.broadcast_to(r[:, None], mean.shape)
    return rng.negative_binomial(size, size / (size + mean)).astype(float)


def archive(
    rng: np.random.Generator, n: int, n_days: int, *, scatter: float = 0.0, drift: float = 0.0, seasonal: bool = True
) -> Archive:
    """Entities over days.

    `scatter` is the standard deviation of log r between entities, `drift` that of the daily steps of the log of an entity's
    mean (a random walk); without `seasonal` nobody divides by the weekday.
    """
    mean = rng.lognormal(np.log(MEDIAN), SIGMA, n)
    r = R * np.exp(rng.normal(0, scatter, n))
    true_factors = WEEKDAYS[np.arange(n_days) % 7]
    walk = np.exp(np.cumsum(rng.normal(0, drift, (n, n_days)), axis=1)) if drift else np.ones((n, 1))
    logged = draw(rng, mean[:, None] * walk * true_factors, r)
    if not seasonal:
        return Archive(mean, r, logged, logged, np.ones(n_days), true_factors)
    # Each entity weighs the same in the factors, or a few large ones decide.
    shares = logged[:, :BASELINE] / np.maximum(logged[:, :BASELINE].mean(axis=1, keepdims=True), 1e-9)
    weekday = np.array([shares[:, day::7].mean() for day in range(7)])
    factors = weekday[np.arange(n_days) % 7]
    return Archive(mean, r, logged, logged / factors, factors, true_factors)


def days_of(world: Archive) -> Iterator[tuple[int, Floats]]:
    """Scored days with the baseline before each."""
    for day in range(BASELINE, world.logged.shape[1]):
        yield day, world.flat[:, day - BASELINE : day]


def false_alerts(world: Archive) -> Figures:
    """False alerts a day and 10,000 entities of each rule."""
    from scipy.stats import poisson

    found: dict[str, list[int]] = {}

    def tell(rule: str, alerts: NDArray[np.bool_]) -> None:
        found.setdefault(rule, []).append(int(alerts.sum()))

    for day, base in days_of(world):
        x, factor = world.logged[:, day], world.factors[day]
        p = poisson.sf(x - 1, np.maximum(base.mean(axis=1) * factor, 0.05))
        tell("Poisson, p < 1e-4", p < 1e-4)
        tell("Poisson, BH 0.05", benjamini_hochberg(p) <= 0.05)
        raw = robust_z(x / factor, base, log=False, floor=1.0)
        log = robust_z(x / factor, base)
        tell("robust z of counts > 3.5", raw > 3.5)
        tell("robust z of counts > 6", raw > 6)
        tell("robust z of log1p > 3.5", log > 3.5)
        tell("robust z of log1p > 6", log > 6)
        mu, var = base.mean(axis=1), base.var(axis=1, ddof=1)
        own, pooled = _moment_dispersion(mu, var), pooled_dispersion(mu, var)
        p = _nb_upper(x, mu * factor, own)
        tell("NB, own dispersion, p < 1e-4", p < 1e-4)
        tell("NB, own dispersion, BH 0.05", benjamini_hochberg(p) <= 0.05)
        p = _nb_upper(x, mu * factor, np.maximum((own + pooled) / 2, pooled))
        tell("NB, shrunk dispersion, p < 1e-4", p < 1e-4)
        tell("NB, shrunk dispersion, BH 0.05", benjamini_hochberg(p) <= 0.05)
        screen = nb_screen(x, base, factor)
        tell("NB screen, p < 1e-4", screen.p < 1e-4)
        tell("NB screen, BH 0.05", screen.q <= 0.05)
        tell("NB screen, BH 0.05, lift 3, excess 50", screen.is_alert)
        tell(
            "NB screen, BH 0.05, lift 10, excess 100",
            nb_screen(x, base, factor, least_lift=10, least_excess=100).is_alert,
        )
    return {rule: float(np.mean(counts)) * 1e4 / world.mean.size for rule, counts in found.items()}


def power_of_a_day(rng: np.random.Generator, world: Archive) -> Figures:
    """Share of entities found on a day that has a multiple of its mean."""
    found: dict[str, list[float]] = {}
    for day, base in days_of(world):
        for times in (2, 3, 5, 10):
            x = world.more(rng, times, slice(day, day + 1))[:, 0]
            screen = nb_screen(x, base, world.factors[day])
            found.setdefault(f"NB p < 1.5e-5, x{times}", []).append(float(np.mean(screen.p < ALERT_P)))
            if times == 10:
                log = robust_z(x / world.factors[day], base)
                found.setdefault("robust z of log1p > 6, x10", []).append(float(np.mean(log > 6)))
    return {rule: float(np.mean(shares)) for rule, shares in found.items()}


def drifting_sums(rng: np.random.Generator, n: int, width: int, n_windows: int, *, scatter: float = 0.0) -> Figures:
    """A sum over days against earlier windows where means drift by 1.5 % a day: false hits per 10,000, and power."""
    world = archive(rng, n, width * (n_windows + 1), scatter=scatter, drift=0.015)
    windows = world.logged.reshape(n, n_windows + 1, width).sum(axis=2)
    base, last = windows[:, :-1], windows[:, -1]
    screen = nb_screen(last, base)
    found = {
        "false hits, BH 0.05": float(np.sum(screen.q <= 0.05)) * 1e4 / n,
        "false hits, BH 0.05, lift 3": float(np.sum((screen.q <= 0.05) & (screen.lift >= 3))) * 1e4 / n,
    }
    for times in (2, 3, 5):
        found[f"power x{times}"] = float(np.mean(nb_screen(times * last, base).p < ALERT_P))
    return found


def season_ignored(rng: np.random.Generator, n: int, scatter: float) -> Figures:
    """Power of the one-day test where nobody adjusts for the weekday and means drift: over a week, and on its last day."""
    world = archive(rng, n, BASELINE + 7, scatter=scatter, drift=0.015, seasonal=False)
    found = {rule: share for rule, share in power_of_a_day(rng, world).items() if rule.startswith("NB")}
    sunday = nb_screen(world.more(rng, 5, slice(-1, None))[:, 0], world.logged[:, -1 - BASELINE : -1])
    return found | {"NB p < 1.5e-5, x5, Sunday": float(np.mean(sunday.p < ALERT_P))}


def cusum_shares(rng: np.random.Generator, n: int, *, scatter: float = 0.0) -> Figures:
    """Share of entities over h within 30 days, quiet and with a sustained multiple, and the median day of the alarm."""
    found = {}
    world = archive(rng, n, BASELINE + 30, scatter=scatter)
    base, factors = world.flat[:, :BASELINE], world.factors[BASELINE:]
    for times in (1.0, 1.5, 2.0, 3.0):
        z = robust_z(world.more(rng, times, slice(BASELINE, None)) / factors, base)
        for k, limits in ((0.5, (5, 8, 10)), (1.0, (5,))):
            sums = cusum(z, k=k)
            for h in limits:
                days = first_alarm(sums, h)
                found[f"k={k:g}, h={h}, x{times:g}"] = float(np.mean(days >= 0))
                if times > 1:
                    found[f"k={k:g}, h={h}, x{times:g}, median day"] = float(np.median(days[days >= 0])) + 1
    return found


def run_lengths(rng: np.random.Generator, n: int, n_days: int) -> Figures:
    """Mean days between false alarms of an unclipped CUSUM (k = 0.5, h = 5) on scores with known mean and deviation."""

    def length(z: Floats) -> float:
        days = first_alarm(cusum(z, clip=np.inf), 5.0)
        return float(np.where(days >= 0, days + 1, n_days).sum() / np.maximum((days >= 0).sum(), 1))

    found = {"normal scores": length(rng.normal(size=(n, n_days)))}
    for mean in (5.0, 20.0, 100.0):
        counts = draw(rng, np.full((n, n_days), mean), np.full(n, R))
        found[f"NB Pearson residuals, mean {mean:g}"] = length((counts - mean) / np.sqrt(mean + mean**2 / R))
    return found


def timers(rng: np.random.Generator, runs: int, n: int) -> Figures:
    """Periodicity of Poisson traffic (its high percentiles) and of a timer of 10 minutes with jitter of 20 %."""
    chance = periodicity(rng.exponential(600, (runs, n)), least=1)
    timer = periodicity(600 * rng.uniform(0.8, 1.2, (runs, n)), least=1)
    threshold = 0.80 if n < 96 else 0.75
    return {
        "Poisson 99 %": float(np.quantile(chance, 0.99)),
        "Poisson 99.9 %": float(np.quantile(chance, 0.999)),
        "timer median": float(np.median(timer)),
        "timer 5 %": float(np.quantile(timer, 0.05)),
        "Poisson over the threshold": float(np.mean(chance >= threshold)),
        "timer over the threshold": float(np.mean(timer >= threshold)),
    }


def second_reader(rng: np.random.Generator, runs: int, share: float, *, steady: bool = False) -> NDArray[np.int64]:
    """Off-phase polls of a day, one number a run: a 300-s poller (jitter 8 s) and a second reader in a share of the slots.

    The second reader polls at any time of the slot, or (`steady`) at a phase of its own drawn once a run.
    """
    found = []
    for _ in range(runs):
        slots = np.arange(288) * 300.0
        times = slots + rng.uniform(0, 300) + rng.normal(0, 8, 288)
        taken = slots[rng.random(288) < share]
        phase = rng.uniform(0, 300) if steady else rng.uniform(0, 300, taken.size)
        found.append(off_phase_polls(np.concatenate([times, taken + phase]), 300.0).n)
    return np.array(found, np.int64)


def mixes(rng: np.random.Generator, runs: int, n: int) -> Figures:
    """Divergence of n operations from the mix that they were drawn from, five kinds of action."""
    mix = rng.dirichlet(np.ones(5), runs)
    drawn = np.stack([rng.multinomial(n, each) for each in mix]).astype(float)
    divergence = jensen_shannon(drawn, mix)
    return {"99.9 %": float(np.quantile(divergence, 0.999)), "share over 0.30": float(np.mean(divergence > 0.3))}


def steady_counts(rng: np.random.Generator, runs: int) -> Figures:
    """Share of series of 10 days whose coefficient of variation is below 0.15."""
    series = {
        "people (NB, r = 3), mean 100": rng.negative_binomial(R, R / (R + 100), (runs, 10)),
        "Poisson, mean 20": rng.poisson(20, (runs, 10)),
        "Poisson, mean 40": rng.poisson(40, (runs, 10)),
        "Poisson, mean 100": rng.poisson(100, (runs, 10)),
        "quota of 40 (+-2)": 40 + rng.integers(-2, 3, (runs, 10)),
    }
    return {name: float(np.mean(regularity(values) < 0.15)) for name, values in series.items()}


def averaged(measure: Callable[[np.random.Generator], Figures], worlds: int) -> Figures:
    """Mean of a measurement over worlds with seeds 1, 2, ...; a figure that a world lacks is left out of its mean."""
    found: dict[str, list[float]] = {}
    for seed in range(1, worlds + 1):
        for name, value in measure(np.random.default_rng(seed)).items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def beside(title: str, columns: dict[str, Figures], unit: str = "") -> list[str]:
    """A Markdown table of the same figures under several conditions; shares become per cent where `unit` says so."""
    scale = 100 if unit == "%" else 1
    lines = ["", f"**{title}**", "", "| | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in next(iter(columns.values())):
        cells = []
        for figures in columns.values():
            value = figures[name] * (1 if name.endswith("median day") else scale)
            text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2g}"
            cells.append(text if name.endswith("median day") or not unit else f"{text} {unit}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def polls(rng: np.random.Generator, runs: int) -> dict[str, Figures]:
    """Off-phase polls a day: none, at any time of the slot, and at a phase of its own."""
    found = {}
    for name, share, steady in (
        ("no second reader", 0.0, False),
        ("5 % of slots, any time", 0.05, False),
        ("5 % of slots, own phase", 0.05, True),
    ):
        n = second_reader(rng, runs, share, steady=steady)
        found[name] = {
            "median": float(np.median(n)),
            "least": float(n.min()),
            "most": float(n.max()),
            "share of days with 5 or more": float(np.mean(n >= 5)),
        }
    return found


def report(n: int, worlds: int) -> list[str]:
    """All tables, in the order of the figures above."""
    rng = np.random.default_rng(0)

    def both(measure: Callable[[np.random.Generator, float], Figures]) -> dict[str, Figures]:
        def at(scatter: float) -> Figures:
            return averaged(lambda rng: measure(rng, scatter), worlds)

        return {"r = 3": at(0.0), f"r scatters (sigma {SCATTER:g})": at(SCATTER)}

    days = both(lambda rng, s: false_alerts(archive(rng, n, BASELINE + 30, scatter=s)))
    power = both(lambda rng, s: power_of_a_day(rng, archive(rng, n, BASELINE + 7, scatter=s)))
    lines = [f"{worlds} worlds of {n:,} entities; 28 days of baseline."]
    lines += beside("False alerts a day per 10,000 entities, 30 days scored", days)
    lines += beside("Power of one day", power, "%")
    lines += beside(
        "Power of one day, weekdays ignored, 1.5 % drift", both(lambda rng, s: season_ignored(rng, n, s)), "%"
    )
    for width, windows in ((7, 12), (28, 3), (28, 6)):
        sums = both(lambda rng, s, w=width, k=windows: drifting_sums(rng, n, w, k, scatter=s))  # type: ignore[misc]
        lines += beside(f"Sum of {width} days against {windows} before, 1.5 % drift (hits per 10,000; shares)", sums)
    lines += beside("CUSUM: entities over h in 30 days", both(lambda rng, s: cusum_shares(rng, n, scatter=s)), "%")
    lines += beside("CUSUM k = 0.5, h = 5: mean days to a false alarm", {"days": run_lengths(rng, 2000, 2000)})
    lines += beside("Periodicity", {f"{m} intervals": timers(rng, 10 * n, m) for m in (8, 24, 48, 96)})
    lines += beside("Polls a day off phase", polls(rng, 2000))
    lines += beside(
        "Divergence of operations from their own mix", {f"{m} operations": mixes(rng, n, m) for m in (5, 10, 20, 50)}
    )
    return [*lines, *beside("Ten daily totals with a variation below 0.15", {"share": steady_counts(rng, n)}, "%")]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="false alerts and power of the hunts' statistics, as Markdown")
    parser.add_argument("--entities", type=int, default=10_000)
    parser.add_argument("--worlds", type=int, default=4)
    given = parser.parse_args()
    print("\n".join(report(given.entities, given.worlds)))


if __name__ == "__main__":
    main()
