"""A hunt over the whole archive, a slice of time after the other; a slice that is done is not done again.

What is done stands in the archive: the findings of a slice and the mark that it is done are one transaction of the
table findings. The mark names the slice's days, the detections by their text, and the data that they read; where one
of these changes (an old log is ingested, a detection is added), the slice is hunted again.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING

from archive.store import Archive
from data_contracts import names
from data_contracts.errors import UsageError
from flows.pipeline.deriving import refresh
from flows.pipeline.registering import tool_version

if TYPE_CHECKING:
    from queries.engine import HuntResult

MONTHS = 3
OVERLAP = timedelta(days=30)  # that a slice looks back, for what lies across its beginning
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Slice:
    """Days from `begin` to before `end`, and the mark of the work on them."""

    begin: date
    end: date
    mark: str

    @property
    def window(self) -> tuple[str, str]:
        """First and last day of the hunt, as `hunt_archive` takes them."""
        return (self.begin - OVERLAP).isoformat(), (self.end - timedelta(days=1)).isoformat()


def slices(archive: Archive, *, months: int = MONTHS, detections: Sequence[str] | None = None) -> list[Slice]:
    """The slices of an archive in order of time: whole calendar months, the first from the month of the first event.

    Args:
        archive: the archive; its derived tables are brought up to date.
        months: of a slice; slices begin at the same months of each year where 12 can be divided by it.
        detections: ids; all by default.

    Raises:
        UsageError: no such detection, or no such number of months.
    """
    if not 1 <= months <= _LONGEST:
        raise UsageError(f"{months} months: no length of a slice", f"1 to {_LONGEST}")
    refresh(archive)
    days = sorted({day for table in names("event") for day in archive.dates(table)})
    if not days:
        return []
    rules, references = _rules(archive, detections), _references(archive)
    found, place = [], _month(days[0]) // months * months
    while place <= _month(days[-1]):
        begin, end = _first(place), _first(place + months)
        if any(begin <= day < end for day in days):
            data = _data(archive, begin - OVERLAP, end)
            digest = hashlib.sha256("\n".join((rules, references, data)).encode()).hexdigest()[:16]
            found.append(Slice(begin, end, f"retrospective-{begin}-{end}-{digest}"))
        place += months
    return found


def is_done(archive: Archive, piece: Slice) -> bool:
    """Whether the slice was hunted, and its findings were kept."""
    return archive.committed("findings", piece.mark)


def hunt_slice(
    archive: Archive, piece: Slice, *, detections: list[str] | None = None, budget: int = 10, again: str | None = None
) -> "HuntResult":
    """Hunts over a slice and marks it as done.

    Args:
        archive: the archive.
        piece: the slice.
        detections: ids; all by default.
        budget: most cases for each day.
        again: a name for doing it although it is done.
    """
    from flows.pipeline.hunting import hunt_archive

    begin, end = piece.window
    mark = piece.mark if again is None else f"{piece.mark}-{again}"
    return hunt_archive(archive, begin=begin, end=end, detections=detections, budget=budget, app_id=mark)


def _month(day: date) -> int:
    return day.year * 12 + day.month - 1


def _first(month: int) -> date:
    return date(month // 12, month % 12 + 1, 1)


def _rules(archive: Archive, detections: Sequence[str] | None) -> str:
    """The text of the detections, in short, and the version of what runs them."""
    from flows.pipeline.rule_files import find_in, known

    chosen = known(archive) if detections is None else [find_in(archive, name) for name in sorted(set(detections))]
    return f"{tool_version()} " + " ".join(f"{d.id}:{hashlib.sha256(d.source.encode()).hexdigest()}" for d in chosen)


def _references(archive: Archive) -> str:
    """Versions of the reference tables but for the rules about what is expected: these change as people work."""
    return " ".join(f"{name}:{archive.version(name)}" for name in names("reference") if name != "contexts")


def _data(archive: Archive, begin: date, end: date) -> str:
    """The files of the event tables that hold these days."""
    wanted = [begin + timedelta(days=place) for place in range((end - begin).days)]
    found = []
    for table in names("event"):
        snapshot = archive.snapshot(table)
        if snapshot is not None:
            found += [f"{table}/{path}" for path in snapshot.paths(wanted)]
    return "\n".join(found)
