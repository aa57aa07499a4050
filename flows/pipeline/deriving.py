"""Derived tables kept in step with the events: only the days that changed are built again.

Each derived table remembers, in its own transaction log, up to which version of each source it has been built. Whatever
stopped an earlier run, the next one catches up from there. A change is felt by every day that has the changed one in
its reach (see transforms.derived), in whatever order the files come.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date

import polars as pl

from archive.store import Archive
from data_contracts import contract
from transforms.derived import Derived, derived

_ROWS_AT_ONCE = 400_000  # rows of the sources that are read to build several days at once

Tell = Callable[[str, int], None]
Reader = Callable[[Sequence[date] | None], pl.LazyFrame]


def refresh(archive: Archive, tell: Tell | None = None, *, everything: bool = False) -> dict[str, int]:
    """Builds what is behind its sources.

    Args:
        archive: the archive.
        tell: told (table, days) as days are done.
        everything: build all days, whatever has changed.

    Returns:
        Days (months for monthly tables) built, by table.
    """
    built: dict[str, int] = {}
    for table in derived():
        versions, before = archive.versions(table.sources), archive.built_from(table.table, table.sources)
        behind = any(before.get(source) != version for source, version in versions.items())
        if not (behind or everything):
            continue
        days = _stale(archive, table, versions, before, everything=everything)
        readers = {s: archive.reader(s) for s in table.sources} if days else {}
        for span, last in _spans(archive, table, days):
            rows = _build(readers, table, span)
            archive.replace_days(table.table, rows, span, versions if last else {})
            if tell:
                tell(table.table, len(span))
        if days:
            built[table.table] = len(days)
        elif behind:
            archive.replace_days(table.table, pl.DataFrame(schema=contract(table.table).polars_schema), [], versions)
    return built


def frames(archive: Archive, table: Derived, days: Sequence[date]) -> Iterator[pl.DataFrame]:
    """The rows of some days (months by their first day), built as `refresh` does, and not stored."""
    readers = {source: archive.reader(source) for source in table.sources}
    for span, _ in _spans(archive, table, days):
        yield from _build(readers, table, span)


def _stale(
    archive: Archive, table: Derived, versions: dict[str, int], before: dict[str, int], *, everything: bool
) -> list[date]:
    """Days whose rows must be built, in order; months by their first day."""
    dated = {s for s in table.sources if contract(s).kind != "reference"}
    moved = any(versions.get(s) != before.get(s) for s in table.sources if s not in dated)
    days: set[date] = set()
    for source in dated & set(versions):
        since = None if everything or moved else before.get(source)
        days.update(day for changed in archive.changed_dates(source, since) for day in table.felt(changed))
    if table.period == "day" and days:
        # A day without events has no rows; where it had some, they must go.
        days &= {d for source in (*dated & set(versions), table.table) for d in archive.dates(source)}
    return sorted(days)


def _spans(archive: Archive, table: Derived, days: Sequence[date]) -> Iterator[tuple[list[date], bool]]:
    """The days in runs that are built at once, each with whether it is the last.

    A run has consecutive days and, if it is more than one, no more rows to read than _ROWS_AT_ONCE: few and large steps
    where days are small, a day at a time where they are large.
    """
    if table.period == "month":
        yield from (([day], at == len(days)) for at, day in enumerate(days, 1))
        return
    rows = Counter[date]()
    for source in table.sources:
        if contract(source).kind != "reference":
            rows.update(archive.rows_by_date(source))
    span: list[date] = []
    for day in days:
        apart = span and (day - span[-1]).days > 1
        if span and (apart or sum(rows[d] for d in table.read([*span, day])) > _ROWS_AT_ONCE):
            yield span, False
            span = []
        span.append(day)
    if span:
        yield span, True


def _build(readers: dict[str, Reader], table: Derived, days: Sequence[date]) -> Iterator[pl.DataFrame]:
    wanted = table.read(days)
    inputs = {s: read(None if contract(s).kind == "reference" else wanted) for s, read in readers.items()}
    frames = table.parts(days, inputs) if table.parts else iter([table.build(days, inputs)])
    return (frame.collect(engine="streaming") for frame in frames)
