"""What counts as found: claims (findings of a hunt, alerts of a baseline) held against what was planted, under a daily budget.

RULE is the text of the rule as the document quotes it; `rests` is the rule.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Any

LEAST_SHARE = 0.05
MOST_SHARE = 0.5

RULE = f"""\
The maker of a world knows which log records belong to which planted step. Each record is followed through ingest by file and
byte offset to its event. The evidence of a finding is all event rows that its own statement selects, not only those it lists.
A finding rests on a step when at least half of these rows are records of the step; or when at least {LEAST_SHARE * 100:.0f} % are, and it

1. names a source network or address of the step (of a harmless event: its network), or
2. names the credential or the principal of the step, or
3. names mailboxes, and only such as are mailboxes of the step.

A case hits a campaign when one of its findings rests on one of the campaign's steps. A case about somebody else in the same
tenant at the same time holds no planted record and is a false one. Alerts of the baselines are judged by the same rule; their
evidence is the rows that made the alert. A harmless event is named by a case when one of its findings rests on it."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One finding or alert, as far as it is judged.

    `labels` counts the evidence rows by planted step or harmless event; `rows` counts all of them.
    """

    id: str
    detection: str
    day: date  # of its last event: a daily hunt can say all of it on this day
    score: float
    severity: str
    sources: frozenset[str]  # networks and addresses that it names
    identities: frozenset[str]  # credentials and principals that it names
    mailboxes: frozenset[str]
    rows: int
    labels: Mapping[str, int]

    @property
    def family(self) -> str:
        """First letter of the detection."""
        return self.detection[:1]


@dataclass(frozen=True, slots=True)
class Step:
    """A planted step of a campaign, or a harmless event (campaign is "")."""

    label: str
    campaign: str
    sources: frozenset[str]
    identities: frozenset[str]
    mailboxes: frozenset[str]
    detections: tuple[str, ...]
    first: str | None
    tenant: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Step":
        """From an entry of truth.json: one of `steps` or of `benign`."""
        sources = {entry.get("network"), *(entry.get("networks") or ()), *(entry.get("source_ips") or ())} - {None, ""}
        people = entry.get("principals") or ()
        identities = {entry.get("credential_id"), entry.get("principal_id"), *people} - {None, ""}
        return cls(
            label=str(entry.get("step") or entry["id"]),
            campaign=str(entry.get("campaign") or ""),
            sources=frozenset(map(str, sources)),
            identities=frozenset(map(str, identities)),
            mailboxes=frozenset(entry.get("mailboxes") or ()),
            detections=tuple(entry.get("detections") or ()),
            first=entry.get("first_seen"),
            tenant=str(entry.get("tenant_id") or ""),
        )


Truth = Sequence[Step]


@lru_cache(maxsize=100_000)
def _range(text: str) -> tuple[int, int, int] | None:
    """Version, first and last address of a network or an address; None when it is neither."""
    try:
        net = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    return net.version, int(net.network_address), int(net.broadcast_address)


def _meet(one: Iterable[str], other: Iterable[str]) -> bool:
    """Whether networks or addresses of both overlap."""
    mine = [span for text in one if (span := _range(text))]
    theirs = [span for text in other if (span := _range(text))]
    return any(a[0] == b[0] and a[1] <= b[2] and b[1] <= a[2] for a in mine for b in theirs)


def rests(claim: Claim, step: Step) -> bool:
    """Whether the claim rests on the step; see RULE."""
    planted = claim.labels.get(step.label, 0)
    if planted == 0:
        return False
    share = planted / max(1, claim.rows)
    if share >= MOST_SHARE:
        return True
    if share < LEAST_SHARE:
        return False
    in_scope = bool(claim.mailboxes) and claim.mailboxes <= step.mailboxes
    return in_scope or bool(claim.identities & step.identities) or _meet(claim.sources, step.sources)


def hits(claims: Iterable[Claim], truth: Truth) -> frozenset[str]:
    """Campaigns on which at least one of the claims rests."""
    return frozenset(s.campaign for s in truth if s.campaign and any(rests(c, s) for c in claims))


def named(claims: Iterable[Claim], truth: Truth) -> frozenset[str]:
    """Harmless events that at least one of the claims names."""
    return frozenset(s.label for s in truth if not s.campaign and any(rests(c, s) for c in claims))


@dataclass(frozen=True, slots=True)
class Judged:
    """A case and what it holds. `day` is the day on which it was shown."""

    day: date
    score: float
    claims: tuple[Claim, ...]

    @property
    def ids(self) -> frozenset[str]:
        """Ids of its claims."""
        return frozenset(claim.id for claim in self.claims)


Groups = Callable[[Sequence[Claim]], list[tuple[float, list[Claim]]]]


def singly(claims: Sequence[Claim]) -> list[tuple[float, list[Claim]]]:
    """Each claim is a case of its own: how the alerts of a baseline, one by entity and day, are grouped."""
    return [(claim.score, [claim]) for claim in claims]


def ranked(claims: Sequence[Claim], groups: Groups) -> list[Judged]:
    """All cases, the highest score first; equal scores by the day and then by id."""
    cases = [Judged(max(c.day for c in group), score, tuple(group)) for score, group in groups(claims)]
    return sorted(cases, key=lambda case: (-case.score, case.day, min(case.ids)))


def by_day(claims: Sequence[Claim], groups: Groups, *, grows: bool) -> dict[date, list[Judged]]:
    """For each day the cases that are new or have grown on it, best first.

    A claim is known from its day on. With `grows`, a day's cases are made of all claims known by then, as the linking has
    it, and scored as they stand; otherwise each day stands for itself.
    """
    days: dict[date, list[Judged]] = {}
    for day in sorted({claim.day for claim in claims}):
        known = [claim for claim in claims if (claim.day <= day if grows else claim.day == day)]
        cases = ranked(known, groups)
        days[day] = [Judged(day, c.score, c.claims) for c in cases if any(claim.day == day for claim in c.claims)]
    return days


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a reader of `budget` cases a day was shown.

    `shown` holds each case once, as it last stood; `found` the day on which a shown case first hit each campaign.
    """

    shown: tuple[Judged, ...]
    found: Mapping[str, date]


def budgeted(days: Mapping[date, Sequence[Judged]], budget: int, truth: Truth) -> Outcome:
    """The best `budget` of each day's new or grown cases are shown; what is left over does not come again unless it grows.

    A case that has grown takes a place again, and is counted once.
    """
    shown: list[Judged] = []
    found: dict[str, date] = {}
    for day, cases in sorted(days.items()):
        for case in cases[:budget]:
            shown = [old for old in shown if not old.ids & case.ids]
            shown.append(case)
            for campaign in hits(case.claims, truth):
                found.setdefault(campaign, day)
    return Outcome(tuple(shown), found)


def average_precision(cases: Sequence[Judged], truth: Truth) -> float | None:
    """Area under precision (true cases among those so far) over recall (campaigns found so far); None without campaigns."""
    wanted = {step.campaign for step in truth if step.campaign}
    if not wanted:
        return None
    found: set[str] = set()
    right, area = 0, 0.0
    for place, case in enumerate(cases, 1):
        new = hits(case.claims, truth)
        right += bool(new)
        area += len(new - found) / len(wanted) * right / place
        found |= new
    return area


def expected(claims: Sequence[Claim], truth: Truth) -> dict[str, tuple[int, int]]:
    """By detection: the steps for which the world's maker expects it, and on how many of them one of its findings rests."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for step in truth:
        for detection in step.detections:
            counts[detection][0] += 1
            counts[detection][1] += any(c.detection == detection and rests(c, step) for c in claims)
    return {detection: (n, hit) for detection, (n, hit) in sorted(counts.items())}
