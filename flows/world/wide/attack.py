"""How attackers behave, whatever they do: pace, hours, and how they walk through mailboxes."""

import random
from collections import defaultdict
from dataclasses import dataclass

from flows.world.model import DAY, Tenant, jitter
from flows.world.wide.places import Place
from flows.world.wide.stage import Stage

PACES = ("burst", "steady", "slow")
FOLDERS = ("Inbox", "Inbox", "Inbox", "Sent Items", "Archive", "Deleted Items")
Visit = tuple[float, str, int, str]  # when (UTC seconds), mailbox, items, folder


@dataclass(frozen=True, slots=True)
class Manner:
    """The habits of one attacker."""

    pace: str
    hour: float  # of the day, UTC, at which sessions begin
    spread: float  # hours over which they vary
    thorough: float  # items read of a mailbox, roughly


def manner(rng: random.Random) -> Manner:
    """Habits: fast or slow, at night, by day or at any hour, greedy or modest."""
    pace = rng.choice(PACES)
    hour, spread = rng.choice(((rng.uniform(0, 5), 1.5), (rng.uniform(8, 14), 3.0), (0.0, 23.5)))
    return Manner(pace, hour, spread, rng.choice((5.0, 15.0, 45.0)))


def begins(stage: Stage, rng: random.Random, how: Manner, first: float, days: int, every: float = 1.0) -> list[float]:
    """Session begins on these days from `first` (a day's begin) on, as far as the world goes."""
    out, day = list[float](), 0.0
    while day < days:
        ts = first + int(day) * DAY + (how.hour + rng.random() * how.spread) * 3600
        if ts < stage.cal.end - 6 * 3600:
            out.append(ts)
        day += every * rng.uniform(0.7, 1.3)
    return out


def walk(
    stage: Stage, rng: random.Random, how: Manner, boxes: list[str], first: float, days: int
) -> list[tuple[float, list[Visit]]]:
    """Sessions in which these mailboxes are read: all at once and some again, a few a day, or one a day."""
    found = list[tuple[float, list[Visit]]]()
    order = sorted(boxes) if rng.random() < 0.4 else rng.sample(boxes, len(boxes))
    if how.pace == "burst":
        starts = begins(stage, rng, how, first, max(4, days // 3), 2.0) or [first]
        parts = [order, *(rng.sample(order, min(3, len(order))) for _ in starts[1:])]
    else:
        each = 1 if how.pace == "slow" else rng.randrange(2, 4)
        starts = begins(
            stage, rng, how, first, days, 1.0 if len(order) >= days else max(1.0, days / (len(order) / each + 1))
        )
        starts = starts or [first]
        parts = [order[i * each : i * each + each] or rng.sample(order, 1) for i in range(len(starts))]
    for start, part in zip(starts, parts, strict=True):
        ts, gap, visits = start, rng.uniform(20, 50) if how.pace == "burst" else rng.uniform(200, 1500), list[Visit]()
        for box in part:
            visits.append((ts, box, max(2, int(rng.gammavariate(3, how.thorough / 3))), rng.choice(FOLDERS)))
            ts += gap * jitter(rng, 0.7, 1.4)
        found.append((start, visits))
    return found


def span(stage: Stage, rng: random.Random) -> tuple[float, int]:
    """First day of a campaign (its begin, UTC seconds) and how many days it lasts: a week to a month."""
    length = rng.randrange(7, max(8, min(31, int(stage.cal.days * 0.48))))
    latest = 1 - length / stage.cal.days
    return stage.day(rng, 0.5, max(0.5, latest)), length


def served(tenant: Tenant, rng: random.Random, count: int, *, chiefs: bool) -> list[str]:
    """Mailboxes that an attacker wants: any, or the board's first."""
    others = [user.address for user in tenant.users[3:]] + tenant.shared
    wanted = [user.address for user in tenant.users[1:3]] if chiefs else []
    return wanted + rng.sample(others, min(max(0, count - len(wanted)), len(others)))


def spree(sessions: list[tuple[float, list[Visit]]], tenant: Tenant, *, from_inside: bool = False) -> list[str]:
    """What the walk should set off by definition: M01, many at once, or else M02, one new mailbox after the other.

    The application opens three mailboxes a day: three times as many are a burst. Of new ones ten on five days are slow
    enumeration, from a network that the application never used four within two days. Fewer are neither.
    """
    by_day, first = defaultdict[int, set[str]](set), dict[str, int]()
    for _, visits in sessions:
        for ts, box, *_ in visits:
            by_day[int(ts // DAY)].add(box)
            first.setdefault(box, int(ts // DAY))
    if max(map(len, by_day.values())) > 8:
        return ["M01"]
    new = [day for box, day in first.items() if box not in tenant.scope]
    slow = len(new) >= 10 and len(set(new)) >= 5 if from_inside else len(new) >= 4 and len(by_day) >= 2
    return ["M02"] if slow else []


def inside(stage: Stage, rng: random.Random, tenant: Tenant) -> Place:
    """Another machine in the vendor's own network."""
    return Place((rng.choice(stage.vendor.egress[tenant.region][:2]),), tuple(rng.sample(range(3, 250), 2)))
