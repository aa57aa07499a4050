"""From the kept answers of many worlds to figures: recall, precision, load, days to detection, ablation, each with an interval.

A ratio is a list [value, low, high, numerator, denominator]: the value over all seeds, and the 2.5 and 97.5 % points of a
bootstrap over seeds (2,000 draws, seeded). A value is null where the denominator is 0.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np

from tests.evaluate import baselines, worlds
from tests.evaluate.judge import (
    Claim,
    Groups,
    Judged,
    Outcome,
    Step,
    average_precision,
    budgeted,
    by_day,
    hits,
    named,
    ranked,
    rests,
    singly,
)
from tests.evaluate.judge import expected as expected_of

BUDGETS = worlds.BUDGETS
OURS = "gatehound"
SEEN = 7  # worlds with seeds up to this were looked at while the detections were worked on
FAMILIES = {"T": "tenant connections", "M": "mailbox access", "X": "exfiltration", "L": "lateral movement"}
DRAWS, SEED = 2000, 20260101
WEIGHTY = ("medium", "high", "critical")
Ratio = list[float | int | None]


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Sum of numerators over sum of denominators, with its interval; `pairs` has one entry by seed."""
    top, bottom = sum(n for n, _ in pairs), sum(d for _, d in pairs)
    if not bottom:
        return [None, None, None, top, bottom]
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(0, len(pairs), (DRAWS, len(pairs)))
    values = np.asarray(pairs, dtype=float)
    tops, bottoms = values[drawn, 0].sum(axis=1), values[drawn, 1].sum(axis=1)
    spread = tops[bottoms > 0] / bottoms[bottoms > 0]
    low, high = np.percentile(spread, [2.5, 97.5])
    return [round(top / bottom, 4), round(float(low), 4), round(float(high), 4), top, bottom]


def quantile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that `share` of all reach; None when it is one that was never reached (infinity)."""
    order = sorted(values)
    if not order:
        return None
    value = order[max(0, math.ceil(share * len(order)) - 1)]
    return None if math.isinf(value) else value


@dataclass(frozen=True)
class World:
    """The kept answers of one world, as they are judged."""

    entry: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Of the world."""
        return int(self.entry["seed"])

    @property
    def is_null(self) -> bool:
        """Whether nothing is planted."""
        return bool(self.entry["kind"] == "null")

    @cached_property
    def truth(self) -> list[Step]:
        """Planted steps and harmless events that left records: an outage leaves none, and no case can rest on it."""
        return [
            Step.of(e)
            for e in [*self.entry["steps"], *self.entry["benign"]]
            if e.get("first_seen") and e.get("events", 1)
        ]

    @cached_property
    def campaigns(self) -> dict[str, date]:
        """Planted campaigns and the day of their first record."""
        firsts: dict[str, date] = {}
        for step in self.truth:
            if step.campaign and step.first:
                day = date.fromisoformat(step.first[:10])
                firsts[step.campaign] = min(day, firsts.get(step.campaign, day))
        return firsts

    @property
    def n_days(self) -> int:
        """Of the window."""
        first, last = map(date.fromisoformat, self.entry["window"])
        return (last - first).days + 1

    def findings(self, *, without: str = "") -> list[Claim]:
        """Findings of the hunt, without a family."""
        return [worlds.claim(f) for f in self.entry["findings"] if f["detection"][:1] != without]

    def groups(self) -> Groups:
        """The linking and scoring of the product; cases that it only watches are not shown."""
        from queries.cases import is_watched, link, score

        around = worlds.around_of(self.entry["around"])
        findings = {f["id"]: worlds.finding_of(f) for f in self.entry["findings"]}

        def linked(claims: Sequence[Claim]) -> list[tuple[float, list[Claim]]]:
            by_id = {claim.id: claim for claim in claims}
            return [
                (score(group), [by_id[f.finding_id] for f in group])
                for group in link([findings[claim.id] for claim in claims], around)
                if not is_watched(group, around)
            ]

        return linked


@dataclass(frozen=True)
class Answered:
    """What one method shows of one world: all of its cases by rank, and what a reader with a budget saw."""

    world: World
    cases: Sequence[Judged]
    outcomes: Mapping[int, Outcome]


def answered(world: World, claims: Sequence[Claim], groups: Groups, *, grows: bool) -> Answered:
    """Cases and budgets of one method in one world."""
    days = by_day(claims, groups, grows=grows)
    outcomes = {budget: budgeted(days, budget, world.truth) for budget in BUDGETS}
    return Answered(world, ranked(claims, groups), outcomes)


def methods(found: Sequence[World]) -> dict[str, list[Answered]]:
    """Every method over every world: the product, the product without a family, the baselines."""
    answers: dict[str, list[Answered]] = defaultdict(list)
    for world in found:
        groups = world.groups()
        for without in ("", *FAMILIES):
            name = f"without {without}" if without else OURS
            answers[name].append(answered(world, world.findings(without=without), groups, grows=True))
        for name, entries in world.entry["baselines"].items():
            claims = [baselines.claim(name, entry) for entry in entries]
            answers[name].append(answered(world, claims, singly, grows=False))
    return dict(answers)


def by_seed(answers: Sequence[Answered], count: Callable[[Answered], tuple[float, float]]) -> Ratio:
    """A ratio of what is counted in each world, by seed."""
    totals: dict[int, list[float]] = defaultdict(lambda: [0, 0])
    for answer in answers:
        top, bottom = count(answer)
        totals[answer.world.seed][0] += top
        totals[answer.world.seed][1] += bottom
    return ratio([(top, bottom) for top, bottom in totals.values()])


def at_budget(answers: Sequence[Answered], budget: int) -> dict[str, Any]:
    """Recall by campaign, precision, harmless events named, load and days to detection."""
    planted = [a for a in answers if not a.world.is_null]
    empty = [a for a in answers if a.world.is_null]
    letters = sorted({letter for a in planted for letter in a.world.campaigns})

    def recall(letter: str) -> Ratio:
        return by_seed(planted, lambda a: (letter in a.outcomes[budget].found, letter in a.world.campaigns))

    def overall(a: Answered) -> tuple[float, float]:
        return len(a.outcomes[budget].found), len(a.world.campaigns)

    def true(a: Answered) -> tuple[float, float]:
        shown = a.outcomes[budget].shown
        return sum(bool(hits(case.claims, a.world.truth)) for case in shown), len(shown)

    def harmless(a: Answered, severities: Sequence[str]) -> tuple[float, float]:
        claims = [c for case in a.outcomes[budget].shown for c in case.claims if c.severity in severities]
        return len(named(claims, a.world.truth)), sum(not step.campaign for step in a.world.truth)

    def mixed(a: Answered) -> tuple[float, float]:
        counts = [len(hits(case.claims, a.world.truth)) for case in a.outcomes[budget].shown]
        return sum(count > 1 for count in counts), sum(count > 0 for count in counts)

    def pure(a: Answered) -> tuple[float, float]:
        shown = [case for case in a.outcomes[budget].shown if hits(case.claims, a.world.truth)]
        claims = [claim for case in shown for claim in case.claims]
        return sum(bool(hits([claim], a.world.truth)) for claim in claims), len(claims)

    def load(a: Answered) -> tuple[float, float]:
        return len(a.outcomes[budget].shown), a.world.n_days

    return {
        "recall": {"all": by_seed(planted, overall)} | {letter: recall(letter) for letter in letters},
        "precision": by_seed(planted, true),
        "true cases of several campaigns": by_seed(planted, mixed),
        "findings of true cases that rest on a campaign": by_seed(planted, pure),
        "harmless named": by_seed(answers, lambda a: harmless(a, ("info", "low", *WEIGHTY))),
        "harmless named, medium or higher": by_seed(answers, lambda a: harmless(a, WEIGHTY)),
        "cases a day": by_seed(planted, load),
        "cases a day, nothing planted": by_seed(empty, load),
        "days to detection": {letter: _waits(planted, budget, letter) for letter in letters},
    }


def _waits(planted: Sequence[Answered], budget: int, letter: str) -> dict[str, Any]:
    found = [
        (a.world.campaigns[letter], a.outcomes[budget].found.get(letter))
        for a in planted
        if letter in a.world.campaigns
    ]
    return waits(found)


def waits(found: Sequence[tuple[date, date | None]]) -> dict[str, Any]:
    """Median and 90 % point of the days from the first planted record; a campaign that is never found counts as endless."""
    days = [(day - first).days if day else math.inf for first, day in found]
    missed = sum(map(math.isinf, days))
    return {"median": quantile(days, 0.5), "p90": quantile(days, 0.9), "planted": len(days), "not found": missed}


def ranking(answers: Sequence[Answered]) -> dict[str, Any]:
    """Precision among the first 10 and 50 cases of each world with something planted, and the area under its curve."""
    planted = [a for a in answers if not a.world.is_null]

    def first(a: Answered, k: int) -> tuple[float, float]:
        top = a.cases[:k]
        return sum(bool(hits(case.claims, a.world.truth)) for case in top), len(top)

    def area(a: Answered) -> tuple[float, float]:
        value = average_precision(a.cases, a.world.truth)
        return (0.0, 0.0) if value is None else (value, 1.0)

    return {
        "precision@10": by_seed(planted, lambda a: first(a, 10)),
        "precision@50": by_seed(planted, lambda a: first(a, 50)),
        "pr_auc": by_seed(planted, area),
        "cases": sum(len(a.cases) for a in planted),
    }


def replayed(found: Sequence[World]) -> dict[str, Any]:
    """Days to detection by real daily hunts, by budget and campaign; of the worlds that were hunted so."""
    answer: dict[str, Any] = {}
    for budget in map(str, BUDGETS):
        by_letter: dict[str, list[tuple[date, date | None]]] = defaultdict(list)
        for world in found:
            if not world.entry.get("replay"):
                continue
            held: Mapping[str, str] = world.entry["replay"][budget]
            for letter, first in world.campaigns.items():
                by_letter[letter].append((first, date.fromisoformat(held[letter]) if letter in held else None))
        answer[budget] = {letter: waits(pairs) for letter, pairs in sorted(by_letter.items())}
    return answer


def families(found: Sequence[World]) -> dict[str, dict[str, Ratio]]:
    """Share of planted campaigns on which at least one finding of the family rests, by family and campaign; no budget."""
    planted = [world for world in found if not world.is_null]
    letters = sorted({letter for world in planted for letter in world.campaigns})
    alone = {f: {w.seed: hits([c for c in w.findings() if c.family == f], w.truth) for w in planted} for f in FAMILIES}
    return {
        family: {
            letter: ratio([(letter in alone[family][w.seed], letter in w.campaigns) for w in planted])
            for letter in letters
        }
        for family in FAMILIES
    }


def detections(found: Sequence[World]) -> dict[str, dict[str, int]]:
    """By detection: steps for which it is expected and on which it rests; its findings, and what they rest on."""
    answer: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys(("expected", "met", "findings", "true", "harmless", "other", "nothing planted"), 0)
    )
    for world in found:
        claims = world.findings()
        for name, (wanted, met) in expected_of(claims, world.truth).items():
            answer[name]["expected"] += wanted
            answer[name]["met"] += met
        for claim in claims:
            own = answer[claim.detection]
            own["findings"] += 1
            kinds = {bool(step.campaign) for step in world.truth if rests(claim, step)}
            own["true" if True in kinds else "harmless" if kinds else "other"] += 1
            own["nothing planted"] += world.is_null
    return dict(sorted(answer.items()))


def figures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """All figures, from the kept answers."""
    found = [World(line) for line in lines]
    planted = [world for world in found if not world.is_null]
    seconds: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, value in line["seconds"].items():
            seconds[name] += value
    return {
        "worlds": {
            "seeds": sorted({world.seed for world in planted}), "planted": len(planted), "null": len(found) - len(planted),
            "tenants": sorted({world.entry["tenants"] for world in planted}),
            "null tenants": sorted({world.entry["tenants"] for world in found if world.is_null}),
            "null seeds": sorted({world.seed for world in found if world.is_null}), "days": sorted({line["days"] for line in lines}),
            "events": sum(sum(line["events"].values()) for line in lines),
            "harmless events": sum(not step.campaign for world in found for step in world.truth),
            "labelled records": sum(line["labelled"]["records"] for line in lines),
            "labelled events": sum(line["labelled"]["events"] for line in lines),
            "before window": sum(day < date.fromisoformat(w.entry["window"][0]) for w in planted for day in w.campaigns.values()),
            "hunted daily": sum(bool(line["replay"]) for line in lines),
            "campaigns": sum(len(world.campaigns) for world in planted),
            "seconds": {name: round(value) for name, value in seconds.items()},
            "skipped": sorted({f"{name}: {why}" for line in lines for name, why in line["skipped"].items()}),
        },
        "methods": {
            name: {"budgets": {str(b): at_budget(answers, b) for b in BUDGETS}, "ranking": ranking(answers)}
            for name, answers in methods(found).items()
        },
        "daily hunts": replayed(found),
        "families": families(found),
        "detections": detections(found),
        "missed": missed(found),
        "unseen": unseen(planted),
    }  # fmt: skip


def unseen(planted: Sequence[World]) -> dict[str, Any]:
    """Campaigns found in the worlds that nobody looked at while the detections were worked on."""
    fresh = [world for world in planted if world.seed > SEEN]
    shown = [answered(world, world.findings(), world.groups(), grows=True).outcomes for world in fresh]
    return {
        "worlds": len(fresh), "campaigns": sum(len(world.campaigns) for world in fresh),
        "found": {str(budget): sum(len(outcomes[budget].found) for outcomes in shown) for budget in BUDGETS},
    }  # fmt: skip


def missed(found: Sequence[World]) -> list[dict[str, Any]]:
    """Campaigns that no shown case hits at the larger budget, with what the hunt had on them."""
    answer = []
    for world in found:
        outcome = answered(world, world.findings(), world.groups(), grows=True).outcomes[max(BUDGETS)]
        for letter in sorted(world.campaigns.keys() - outcome.found.keys()):
            labels = {step.label for step in world.truth if step.campaign == letter}
            touched = sorted({c.detection for c in world.findings() if labels & c.labels.keys()})
            answer.append({"seed": world.seed, "campaign": letter, "findings with some of its records": touched})
    return answer
