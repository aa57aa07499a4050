"""Findings: what a detection returned, with a stable identity, a score and the way to its evidence rows."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from queries.catalogue import SEVERITIES, Detection, EvidenceRule
from queries.text import fill, literal

if TYPE_CHECKING:
    from collections.abc import Callable

    import duckdb

POINTS = {"info": 5.0, "low": 15.0, "medium": 40.0, "high": 70.0, "critical": 100.0}
ENTITIES = {
    "tenant_ids": "tenant_id",
    "credential_ids": "credential_id",
    "principal_ids": "principal_id",
    "app_ids": "app_id",
    "source_ips": "src_ip",
    "source_networks": "src_net",
    "mailboxes": "mailbox_id",
}  # key of a finding, and the column that a detection may return instead of a list
MOST_UIDS = 100
MOST_ADDRESSES = 50
_SOURCE_COLUMNS = ("src_net", "client_fp")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Event rows behind a finding: the first ones by time, and how many there are."""

    table: str
    event_uids: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Finding:
    """One hit of one detection. `facts` are the values that the detection returned.

    `step` and `why` are its sentences for a case's paragraph; empty where the detection has none.
    """

    finding_id: str
    detection: str
    title: str
    family: str
    severity: str
    score: float
    first_seen: datetime
    last_seen: datetime
    explanation: str
    entities: Mapping[str, tuple[str, ...]]
    tactics: tuple[str, ...]
    techniques: tuple[str, ...]
    evidence: Evidence
    sql: str
    facts: Mapping[str, Any]
    step: str = ""
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As `hunt -t json` shows it."""
        from queries.text import iso

        return {
            "finding_id": self.finding_id,
            "detection": self.detection,
            "family": self.family,
            "score": self.score,
            "first_seen": iso(self.first_seen),
            "last_seen": iso(self.last_seen),
            "explanation": self.explanation,
            "evidence": {"table": self.evidence.table, "event_uids": list(self.evidence.event_uids)},
            "sql": self.sql,
        }


def finding(con: "duckdb.DuckDBPyConnection", detection: Detection, row: Mapping[str, Any]) -> Finding:
    """A finding from a result row; its evidence rows are looked up.

    Args:
        con: connection with the event tables.
        detection: where the row comes from.
        row: result columns: first_seen, last_seen, confidence, impact, and those that identity and evidence name.
    """
    facts = {name: _native(value) for name, value in row.items()}
    severity = facts.get("severity") or detection.severity
    if severity not in SEVERITIES:
        severity = detection.severity
    confidence = min(1.0, max(0.2, float(facts["confidence"])))
    impact = min(2.0, max(1.0, float(facts["impact"])))
    evidence, addresses = _evidence(con, detection.evidence, facts)
    entities = {key: _texts(facts.get(key), facts.get(column)) for key, column in ENTITIES.items()}
    return Finding(
        finding_id=identity(detection.id, [facts.get(name) for name in detection.identity]),
        detection=detection.id,
        title=detection.title,
        family=detection.family,
        severity=severity,
        score=round(POINTS[severity] * confidence * impact, 2),
        first_seen=facts["first_seen"],
        last_seen=facts["last_seen"],
        explanation=fill(detection.explanation, facts),
        entities=entities | {"source_ips": addresses},
        tactics=detection.tactics,
        techniques=detection.techniques,
        evidence=evidence,
        sql=evidence_sql(detection.evidence, facts),
        facts=facts,
        step=fill(detection.step, facts).strip(),
        why=fill(detection.why, facts).strip(),
    )


def identity(detection_id: str, values: list[Any]) -> str:
    """'F-' and 16 hex digits of the SHA-256 of the detection's id and the identifying values, written as JSON."""
    text = json.dumps([detection_id, *values], ensure_ascii=True, default=str)
    return "F-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def evidence_sql(rule: EvidenceRule, facts: Mapping[str, Any]) -> str:
    """The statement that shows the evidence rows, with every value as an escaped literal."""
    return f"select * from {rule.table} where {_where(rule, facts, literal)} order by ts, event_uid"


def _evidence(
    con: "duckdb.DuckDBPyConnection", rule: EvidenceRule, facts: Mapping[str, Any]
) -> tuple[Evidence, tuple[str, ...]]:
    """Evidence rows of a finding, and their addresses: one pass over the days and tenants of the finding."""
    values: list[Any] = []

    def place(value: Any) -> str:
        values.append(value)
        return "?"

    statement = f"""
with rows as materialized (
    select event_uid, ts, {_address_column(rule.table)} as src_ip from {rule.table} where {_where(rule, facts, place)}
)
select
    (select count(*) from rows),
    (select list(event_uid) from (select event_uid from rows order by ts, event_uid limit {MOST_UIDS})),
    (select list(src_ip) from (
        select distinct src_ip from rows where src_ip is not null order by src_ip limit {MOST_ADDRESSES}
    ))
"""
    ((count, uids, addresses),) = con.execute(statement, values).fetchall()
    return Evidence(rule.table, tuple(uids or ()), int(count)), tuple(addresses or ())


def _address_column(table: str) -> str:
    from data_contracts import contract

    return "src_ip" if "src_ip" in contract(table).polars_schema else "cast(null as varchar)"


def _where(rule: EvidenceRule, facts: Mapping[str, Any], place: "Callable[[Any], str]") -> str:
    """Condition over the event table. `place` turns a value into what stands for it: a parameter or a literal."""
    first, last = facts[rule.time[0]], facts[rule.time[1]]
    days = _between("date", first.astimezone(UTC).date(), last.astimezone(UTC).date(), place)
    parts = [days, _between("ts", first, last, place)]
    sources: list[tuple[str, list[Any]]] = []
    for expression, column in rule.match.items():
        value = facts.get(column)
        if value is None:
            continue  # the detection leaves this column open
        values = value if isinstance(value, list) else [value]
        if rule.follow_sessions and expression in _SOURCE_COLUMNS:
            sources.append((expression, values))
        else:
            parts.append(_in(expression, values, place))
    if sources:
        parts.append(_from_sources(rule, sources, facts, place))
    if rule.where:
        parts.append(f"({rule.where})")
    return " and ".join(parts)


def _from_sources(
    rule: EvidenceRule, sources: list[tuple[str, list[Any]]], facts: Mapping[str, Any], place: "Callable[[Any], str]"
) -> str:
    """Rows from the sources, and rows without an address whose session has a row from there."""

    def direct() -> str:
        return " and ".join(_in(name, values, place) for name, values in sources)

    first, last = facts[rule.time[0]], facts[rule.time[1]]
    own = direct()
    days = _between("date", first.astimezone(UTC).date(), last.astimezone(UTC).date(), place)
    sessions = f"select protocol, session_id from {rule.table} where {days} and session_id is not null and {direct()}"
    return f"(({own}) or (src_net is null and (protocol, session_id) in ({sessions})))"


def _between(column: str, first: Any, last: Any, place: "Callable[[Any], str]") -> str:
    return f"{column} between {place(first)} and {place(last)}"


def _in(expression: str, values: list[Any], place: "Callable[[Any], str]") -> str:
    known = [value for value in values if value is not None]
    parts = [f"{expression} in ({', '.join(place(value) for value in known)})"] if known else []
    if len(known) < len(values) or not values:
        parts.append(f"{expression} is null")
    return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"


def _native(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    if isinstance(value, list):
        return [_native(item) for item in value]
    return value


def _texts(many: Any, one: Any) -> tuple[str, ...]:
    values = many if isinstance(many, list) else [many if many is not None else one]
    return tuple(sorted({str(value) for value in values if value is not None}))


def as_json(facts: Mapping[str, Any]) -> str:
    """Facts as a JSON object; times as ISO 8601."""

    def other(value: Any) -> str:
        return value.isoformat() if isinstance(value, (date, datetime)) else str(value)

    return json.dumps(facts, ensure_ascii=False, default=other, sort_keys=True)
