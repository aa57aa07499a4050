"""What a detection cannot do without, and whom it could judge: an empty result is not an all-clear.

A detection is skipped when data are missing that all of it needs, or that each of its branches needs. One that runs may
still have nobody to judge, as a whole or in one of its parts: a history that is too short, a log that does not say
enough. Front matter asks the archive about both (`requires`, `branches`, `subjects`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from string import Template
from typing import TYPE_CHECKING, Any

from queries.text import plain

if TYPE_CHECKING:
    import duckdb

    from queries.catalogue import Detection


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A detection that ran, but as a whole (`part` is none) or in a part of it could judge nobody, and why."""

    id: str
    part: str | None
    reason: str

    def to_dict(self) -> dict[str, str | None]:
        """As `hunt -t json` has it."""
        return {"id": self.id, "part": self.part, "reason": self.reason}


def lacking(con: "duckdb.DuckDBPyConnection", detection: "Detection", params: Mapping[str, Any]) -> str | None:
    """Why the detection cannot run, or None.

    Args:
        con: connection with a table or view for each contract.
        detection: which.
        params: window_from and window_to (aware datetimes), and a value for each parameter (`Detection.values`).
    """
    for requirement in detection.requires:
        if not _holds(con, requirement.sql, params):
            return _told(requirement.reason, params)
    empty = _empty(con, detection.needs, params)
    if empty:
        return f"{empty[0]} has no rows in the window"
    missing = [(branch.name, _empty(con, branch.needs, params)) for branch in detection.branches]
    if missing and all(tables for _, tables in missing):
        return "; ".join(f"{name}: {tables[0]} has no rows in the window" for name, tables in missing)
    return None


def unjudged(
    con: "duckdb.DuckDBPyConnection", detection: "Detection", params: Mapping[str, Any]
) -> tuple[Unjudged, ...]:
    """The parts of a detection that could judge nobody, each with its first reason; of the whole, only that.

    Args as for `lacking`.
    """
    found: dict[str | None, Unjudged] = {}
    for branch in detection.branches:
        for table in _empty(con, branch.needs, params)[:1]:
            found[branch.name] = Unjudged(detection.id, branch.name, f"{table} has no rows in the window")
    for subject in detection.subjects:
        if subject.part not in found and not _holds(con, detection.ctes + subject.sql, params):
            found[subject.part] = Unjudged(detection.id, subject.part, _told(subject.reason, params))
    return (found[None],) if None in found else tuple(found.values())


def _empty(con: "duckdb.DuckDBPyConnection", tables: tuple[str, ...], params: Mapping[str, Any]) -> list[str]:
    """Those of the tables that have no row in the window."""
    last = params["window_to"] - timedelta(microseconds=1)
    span = [params["window_from"].date(), last.date()]
    return [
        t for t in tables if not con.execute(f"select 1 from {t} where date between ? and ? limit 1", span).fetchall()
    ]


def _holds(con: "duckdb.DuckDBPyConnection", sql: str, params: Mapping[str, Any]) -> bool:
    return bool(con.execute(sql, {name: params[name] for name in parameters(sql)}).fetchall()[0][0])


@cache
def parameters(sql: str) -> tuple[str, ...]:
    """Names of the parameters of one statement. Raises ValueError if it is not one, and duckdb.ParserException."""
    import duckdb

    (statement,) = duckdb.extract_statements(sql)
    return tuple(statement.named_parameters)


def _told(reason: str, params: Mapping[str, Any]) -> str:
    """The reason with the values of the parameters that it names."""
    return plain(Template(reason).safe_substitute(params))
