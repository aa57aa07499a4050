"""Case files of detections: rows of derived tables that a detection must, or must not, report.

A case file is TOML: `detection`, `window_from`, `window_to`, optional `params`; `defaults` by table; `given` rows for
all cases; and a list of `case`, each with a `name`, `given` (rows by table) and `expect` (rows that must be found, by
the columns that they name; an empty list for a near miss). `built` names derived tables that are built from the given
events. In place of `expect`, ``outcome = "skipped"`` says that a hunt must leave the detection out, and ``outcome =
"judged nobody"`` that it must say of the detection, or of the `part` that the case names, that there was nobody to
judge; `because`, where it is given, is a piece of the reason.

In a given row, ``days = ["2020-11-01", "2020-12-31"]`` stands for one row on each of these days (of `weekdays`, 1 for
Monday, at each of `hours`), with `date`, `hour`, `first_ts` and `last_ts` filled in where the table has them;
``at = "2021-01-05T02:10:00Z"`` for one row at that time; ``each = {column = [...]}`` for one row per value;
``null = [...]`` names columns whose default does not hold.
"""

import atexit
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts import contract, macros, names

if TYPE_CHECKING:
    import duckdb

    from queries.catalogue import Detection


RAN, SKIPPED, JUDGED_NOBODY = "ran", "skipped", "judged nobody"


@dataclass(frozen=True, slots=True)
class CaseFile:
    """One case of one detection."""

    path: Path
    detection: str
    name: str
    window_from: date
    window_to: date
    params: Mapping[str, Any]
    written: Mapping[str, list[dict[str, Any]]]
    built: tuple[str, ...]
    expect: list[dict[str, Any]]
    outcome: str = RAN
    part: str | None = None
    because: str = ""

    @property
    def given(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by table, days spread out and built tables built. Raises KeyError, TypeError and ValueError."""
        rows = {table: [row for item in items for row in _spread(table, item)] for table, items in self.written.items()}
        return rows | {table: _built(table, rows) for table in self.built}


def read_cases(path: Path) -> list[CaseFile]:
    """The cases of one file, defaults filled in. Raises KeyError, TypeError and ValueError."""
    document = tomllib.loads(path.read_text("utf-8"))
    defaults, common = document.get("defaults", {}), document.get("given", {})
    cases = []
    for case in document["case"]:
        own = case.get("given", {})
        written = {
            table: [defaults.get(table, {}) | item for item in common.get(table, []) + own.get(table, [])]
            for table in sorted(common.keys() | own.keys())
        }
        cases.append(
            CaseFile(
                path=path,
                detection=document["detection"],
                name=case["name"],
                window_from=document["window_from"],
                window_to=document["window_to"],
                params=document.get("params", {}) | case.get("params", {}),
                written=written,
                built=tuple(document.get("built", ())),
                expect=case["expect"] if "outcome" not in case else [],
                outcome=_outcome(case.get("outcome", RAN)),
                part=case.get("part"),
                because=case.get("because", ""),
            )
        )
    return cases


def _built(name: str, given: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of a daily derived table from the given rows of its sources."""
    import polars as pl

    from transforms.derived import derived

    (table,) = (one for one in derived() if one.table == name)
    days = sorted({row["date"] for source in table.sources for row in given.get(source, []) if "date" in row})
    if not days:
        return []
    span = [days[0] + timedelta(days=n) for n in range((days[-1] - days[0]).days + 1)]
    sources = {s: pl.LazyFrame(given.get(s, []), schema=contract(s).polars_schema) for s in table.sources}
    return table.build(span, sources).collect().to_dicts()


def _outcome(text: str) -> str:
    if text not in (RAN, SKIPPED, JUDGED_NOBODY):
        raise ValueError(f"{text}: no outcome; one of {SKIPPED}, {JUDGED_NOBODY}")
    return text


def judge_outcome(
    con: "duckdb.DuckDBPyConnection", case: CaseFile, detection: "Detection", params: Mapping[str, Any]
) -> tuple[str, str]:
    """How a hunt's word about what it could do differs from the case's, empty where it doesn't; and its reason."""
    from queries.subjects import lacking, unjudged

    reason = lacking(con, detection, params)
    if case.outcome == SKIPPED:
        return ("it is not skipped" if reason is None else _unlike(case, reason)), reason or ""
    if reason is not None:
        wrong = f"a hunt would leave it out: {reason}" if case.expect or case.outcome == JUDGED_NOBODY else ""
        return wrong, reason
    nobody = {item.part: item.reason for item in unjudged(con, detection, params)}
    if case.outcome != JUDGED_NOBODY:
        wrong = f"a hunt would say that it judged nobody: {nobody[None]}" if case.expect and None in nobody else ""
        return wrong, ""
    if case.part not in nobody:
        return "it judges somebody", ""
    return _unlike(case, nobody[case.part]), nobody[case.part]


def _unlike(case: CaseFile, reason: str) -> str:
    return "" if case.because in reason else f"the reason is: {reason}"


def database(given: Mapping[str, list[dict[str, Any]]]) -> "duckdb.DuckDBPyConnection":
    """An in-memory DuckDB with a typed table for every contract, filled with the given rows.

    Tables that are not given are empty views, the same for all that a process opens, so that nobody can write to them;
    the given ones are temporary tables of the connection, in front of those, and gone when it is closed.
    """
    import polars as pl

    con = _empty().cursor()
    con.execute("set timezone = 'UTC'")
    for name, rows in given.items():
        con.register("given_rows", pl.DataFrame(rows, schema=contract(name).polars_schema).to_arrow())
        columns = ", ".join(f'"{column.name}" {column.type}' for column in contract(name).columns)
        con.execute(f'create temp table "{name}" ({columns}); insert into "{name}" select * from given_rows')
        con.unregister("given_rows")
    return con


@cache
def _empty() -> "duckdb.DuckDBPyConnection":
    import duckdb

    con = duckdb.connect(config={"threads": 1})  # a few rows: more threads would only wait for one another
    for name in names():
        columns = ", ".join(f'cast(null as {column.type}) as "{column.name}"' for column in contract(name).columns)
        con.execute(f'create view "{name}" as select {columns} where false')
    macros.create(con, names())
    atexit.register(_empty.cache_clear)  # what lives on to the very end is told as leaked
    return con


def _spread(table: str, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    each = item.get("each")
    item = {name: value for name, value in item.items() if name != "each"}
    if each:
        ((column, values),) = each.items()
        for value in values:
            yield from _spread(table, item | {column: value})
        return
    schema = contract(table).polars_schema
    item = {name: value for name, value in item.items() if name not in item.get("null", ())}
    unknown = item.keys() - set(schema) - {"days", "at", "hours", "weekdays", "null"}
    if unknown:
        raise ValueError(f"{table} has no column {', '.join(sorted(unknown))}")
    for start in _times(item):
        row = {name: _value(value) for name, value in item.items() if name in schema}
        if "date" in schema and "date" not in row:
            row["date"] = start.date()
        for column, value in (("hour", start.replace(minute=0, second=0)), ("first_ts", start), ("last_ts", start)):
            if column in schema and start.year > 1:
                row.setdefault(column, value)
        for column in contract(table).columns:
            if column.required and column.type == "BIGINT":
                row.setdefault(column.name, 0)
        yield row


def _times(item: Mapping[str, Any]) -> Iterator[datetime]:
    if "at" in item:
        yield datetime.fromisoformat(str(item["at"])).astimezone(UTC)
    elif "days" in item:
        first, last = (date.fromisoformat(str(day)) for day in item["days"])
        for place in range((last - first).days + 1):
            day = first + timedelta(days=place)
            if day.isoweekday() in item.get("weekdays", range(1, 8)):
                for hour in item.get("hours", [12]):
                    yield datetime.combine(day, time(hour), UTC)
    else:
        yield datetime.min.replace(tzinfo=UTC)


def _value(value: Any) -> Any:
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value
