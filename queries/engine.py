"""The hunt: runs the detections over a window, turns their rows into findings, and links these into ranked cases."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts import contract
from data_contracts.errors import UsageError
from queries.cases import Case, build, surroundings
from queries.catalogue import FOLDER, RESULT_COLUMNS, Detection, catalogue, load
from queries.expected import Expected, apply
from queries.findings import ENTITIES, Finding, as_json, from_rows
from queries.limits import limits
from queries.subjects import Unjudged, lacking, parameters, unjudged
from queries.text import iso, plain

if TYPE_CHECKING:
    import duckdb
    import polars as pl

DEFAULT_WINDOW = timedelta(days=30)
DEFAULT_BUDGET = 10
LONGEST_BASELINE = 90  # days; how far before the window a detection may find the rows that it needs
_DATED = ("context_days", "edge_days", "journal_hours", "flow_days", "change_events")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A detection that did not run, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class HuntResult:
    """What a hunt found, what ran, and what the logs cannot say.

    `cases` holds all cases by rank; those beyond the budget, and those only watched, have shown = False and
    stand only in `to_frame`.
    `expected` holds the findings that rules of the table contexts silence: these are in no case. `without_subjects`
    tells of detections that ran, but could judge nobody.
    """

    run_id: str
    run_at: datetime
    window_from: datetime
    window_to: datetime
    archive_version: Mapping[str, int]
    detections_run: tuple[str, ...]
    detections_skipped: tuple[Skipped, ...]
    cases: tuple[Case, ...]
    limits: tuple[str, ...]
    expected: Expected = field(default_factory=Expected)
    without_subjects: tuple[Unjudged, ...] = ()

    @property
    def shown(self) -> tuple[Case, ...]:
        """Cases within the budget."""
        return tuple(case for case in self.cases if case.shown)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, by rank of their case."""
        return tuple(finding for case in self.cases for finding in case.findings)

    def to_dict(self) -> dict[str, Any]:
        """The document of `hunt -t json`; `suppressed` is there where there are rules about what is expected."""
        document = {
            "run_id": self.run_id,
            "window": {"from": iso(self.window_from), "to": iso(self.window_to)},
            "archive_version": dict(self.archive_version),
            "detections_run": list(self.detections_run),
            "detections_skipped": [{"id": item.id, "reason": item.reason} for item in self.detections_skipped],
            "detections_without_subjects": [item.to_dict() for item in self.without_subjects],
            "cases": [case.to_dict() for case in self.shown],
            "limits": list(self.limits),
        }
        return document | ({"suppressed": self.expected.to_dict()} if self.expected.is_used else {})

    def to_json(self) -> str:
        """The same as one JSON text."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=2)

    def to_frame(self) -> "pl.DataFrame":
        """All findings as rows of the table `findings`."""
        import polars as pl

        rows = [self._row(case, found) for case in self.cases for found in case.findings]
        return pl.DataFrame(rows, schema=contract("findings").polars_schema)

    def _row(self, case: Case, found: Finding) -> dict[str, Any]:
        return {
            "run_id": self.run_id, "date": self.run_at.date(), "run_at": self.run_at, "finding_id": found.finding_id,
            "case_id": case.case_id, "rank": case.rank, "shown": case.shown, "detection": found.detection,
            "title": found.title, "family": found.family, "severity": found.severity, "score": found.score,
            "explanation": found.explanation, "first_seen": found.first_seen, "last_seen": found.last_seen,
            **{key: list(found.entities[key]) for key in ENTITIES},
            "tactics": list(found.tactics), "techniques": list(found.techniques),
            "evidence_table": found.evidence.table,
            "event_uids": list(found.evidence.event_uids), "evidence_count": found.evidence.count, "sql": found.sql,
            "facts": as_json(found.facts),
        }  # fmt: skip


def hunt(
    con: "duckdb.DuckDBPyConnection",
    *,
    window_from: datetime | date | None = None,
    window_to: datetime | date | None = None,
    detections: Sequence[str] | None = None,
    params: Mapping[str, Any] | None = None,
    budget: int = DEFAULT_BUDGET,
    archive_version: Mapping[str, int] | None = None,
    now: datetime | None = None,
    folder: Path = FOLDER,
    imported: Sequence[Detection] = (),
) -> HuntResult:
    """Runs detections over a window of the archive.

    Args:
        con: connection with a view for every table of the contracts; TimeZone is set to UTC.
        window_from: inclusive; default 30 days before the end. A date means its first moment, UTC.
        window_to: exclusive; default the end of the last day with rows. A date means the end of that day.
        detections: ids; default all.
        params: parameter values, by name for every detection that has it, or as "T01.name" for one.
        budget: cases to show per day of the window.
        archive_version: table versions, passed on into the result.
        now: time of the run; default the present.
        folder: where the detections lie.
        imported: detections beside those of the folder.

    Raises:
        UsageError: an unknown detection or parameter, or a window that ends before it begins.
        RefusedError: a detection's file is not sound.
    """
    import duckdb

    with contextlib.suppress(duckdb.Error):  # a locked-down connection has it set already
        con.execute("set timezone = 'UTC'")
    begin, end = _window(con, window_from, window_to)
    known = [*(catalogue() if folder == FOLDER else load(folder)), *imported]
    chosen = _chosen(known, detections)
    values = _values(chosen, params or {})
    run, skipped, findings = [], [], []
    nobody: list[Unjudged] = []
    for detection in chosen:
        given = values[detection.id] | {"window_from": begin, "window_to": end}
        found: list[Finding] | str = lacking(con, detection, given) or run_detection(con, detection, given)
        if isinstance(found, str):
            skipped.append(Skipped(detection.id, found))
        else:
            run.append(detection.id)
            findings += found
            nobody += unjudged(con, detection, given)
    at = (now or datetime.now(UTC)).astimezone(UTC)
    findings, expected = apply(con, findings, at)
    n_days = max(1, -(-(end - begin) // timedelta(days=1)))
    around = surroundings(con, findings, begin.date() - timedelta(days=LONGEST_BASELINE), end.date())
    cases = build(findings, around, max(0, budget) * n_days)
    return HuntResult(
        run_id=_run_id((begin, end), values, archive_version or {}, at),
        run_at=at,
        window_from=begin,
        window_to=end,
        archive_version=dict(archive_version or {}),
        detections_run=tuple(run),
        detections_skipped=tuple(skipped),
        without_subjects=tuple(nobody),
        cases=cases,
        limits=tuple(_unasked(chosen, known) + limits(con, begin, end) + _cut(cases, budget)),
        expected=expected,
    )


def _window(
    con: "duckdb.DuckDBPyConnection", first: datetime | date | None, last: datetime | date | None
) -> tuple[datetime, datetime]:
    if last is None:
        days = [con.execute(f"select max(date) from {table}").fetchall()[0][0] for table in _DATED]
        known = [day for day in days if day is not None]
        last = max(known) if known else datetime.now(UTC).date()
    end = last if isinstance(last, datetime) else datetime.combine(last, time(), UTC) + timedelta(days=1)
    begin = end - DEFAULT_WINDOW if first is None else first
    if not isinstance(begin, datetime):
        begin = datetime.combine(begin, time(), UTC)
    begin, end = (
        value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC) for value in (begin, end)
    )
    if begin >= end:
        raise UsageError(f"the window ends ({iso(end)}) before it begins ({iso(begin)})", "give --from before --to")
    return begin, end


def _chosen(known: Sequence[Detection], ids: Sequence[str] | None) -> list[Detection]:
    if ids is None:
        return list(known)
    by_id = {detection.id: detection for detection in known}
    unknown = sorted({name for name in ids if name.upper() not in by_id})
    if unknown:
        raise UsageError(f"there is no detection {', '.join(unknown)}", f"there are: {', '.join(by_id)}")
    return [by_id[name] for name in sorted({name.upper() for name in ids})]


def _values(chosen: Sequence[Detection], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    by_id: dict[str, dict[str, Any]] = {detection.id: {} for detection in chosen}
    for name, value in given.items():
        of, dot, parameter = name.rpartition(".")
        takers = [d for d in chosen if (d.id == of.upper() if dot else name in {p.name for p in d.parameters})]
        if not takers:
            raise UsageError(
                f"no chosen detection has a parameter {name}", "rules show ID lists the parameters of a detection"
            )
        for detection in takers:
            by_id[detection.id][parameter] = value
    return {detection.id: detection.values(by_id[detection.id]) for detection in chosen}


def run_detection(
    con: "duckdb.DuckDBPyConnection", detection: Detection, params: Mapping[str, Any]
) -> list[Finding] | str:
    """Findings of one detection, or why it failed: one broken detection must not hide what the others find.

    Args:
        con: connection with the tables that the detection reads and its event table; TimeZone UTC.
        detection: what to run.
        params: window_from and window_to (aware datetimes), and a value for each parameter (`Detection.values`).
    """
    import duckdb
    import polars as pl

    if detection.parts:
        return _of_parts(con, detection.parts, params)
    try:
        if detection.sql is not None:
            # Executed: a relation would be bound twice, and binding is most of what a small day takes.
            answer = con.execute(detection.sql, {name: params[name] for name in parameters(detection.sql)})
            columns = [name for name, *_ in answer.description]
            rows = [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]
        elif detection.detect is not None:
            rows = detection.detect(con, params).rows(named=True)
        else:
            return "failed: it has neither SQL nor a function"
        if not rows:
            return []
        wanted = {*RESULT_COLUMNS, *detection.identity, *detection.evidence.match.values(), *detection.evidence.time}
        missing = sorted(wanted - rows[0].keys())
        if missing:
            return f"failed: its result lacks {', '.join(missing)}"
        return from_rows(con, detection, rows)
    except (duckdb.Error, pl.exceptions.PolarsError, ArithmeticError, KeyError, TypeError, ValueError) as error:
        return f"failed: {type(error).__name__}: {plain(next(iter(str(error).splitlines()), ''))}"


def _of_parts(
    con: "duckdb.DuckDBPyConnection", parts: Sequence[Detection], params: Mapping[str, Any]
) -> list[Finding] | str:
    """Findings of all statements of a detection, or why one of them failed."""
    found: list[Finding] = []
    for part in parts:
        answer = run_detection(con, part, params)
        if isinstance(answer, str):
            return answer
        found += answer
    return found


def _run_id(
    window: tuple[datetime, datetime], values: Mapping[str, Any], version: Mapping[str, int], at: datetime
) -> str:
    text = json.dumps([iso(window[0]), iso(window[1]), values, dict(version), iso(at)], sort_keys=True, default=str)
    return f"R-{at:%Y%m%dT%H%M%SZ}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _unasked(chosen: Sequence[Detection], known: Sequence[Detection]) -> list[str]:
    left = len(known) - len(chosen)
    return (
        [f"Only {len(chosen)} of {len(known)} detections were asked for: what the other {left} would find is not told."]
        if left
        else []
    )


def _cut(cases: Sequence[Case], budget: int) -> list[str]:
    hidden = [case for case in cases if not case.shown and not case.watched]
    watched = [case for case in cases if case.watched]
    said = []
    if hidden:
        shown = [case.score for case in cases if case.shown]
        last = f"; the last case shown scores {shown[-1]:g}" if shown else ""
        what = f"{len(hidden)} case(s) lie beyond the budget of {budget} a day and are not shown"
        said.append(f"{what}, the highest with score {hidden[0].score:g}{last}.")
    if watched:
        what = f"{len(watched)} case(s) are watched and not shown: low findings without a second signal"
        said.append(f"{what}, the highest with score {watched[0].score:g}.")
    return said
