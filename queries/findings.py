"""Findings: what a detection returned, with a stable identity, a score and the way to its evidence rows."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from queries.catalogue import SEVERITIES, Detection
from queries.evidence import Evidence, evidence_sql, lookup
from queries.text import fill

if TYPE_CHECKING:
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


def from_rows(
    con: "duckdb.DuckDBPyConnection", detection: Detection, rows: Sequence[Mapping[str, Any]]
) -> list[Finding]:
    """A finding from each result row; their evidence rows are looked up together.

    Args:
        con: connection with the event tables.
        detection: where the rows come from.
        rows: result columns: first_seen, last_seen, confidence, impact, and those that identity and evidence name.
    """
    told = [{name: _native(value) for name, value in row.items()} for row in rows]
    found = lookup(con, detection.evidence, told)
    return [_finding(detection, facts, evidence) for facts, evidence in zip(told, found, strict=True)]


def _finding(detection: Detection, facts: Mapping[str, Any], evidence: Evidence) -> Finding:
    severity = facts.get("severity") or detection.severity
    if severity not in SEVERITIES:
        severity = detection.severity
    confidence = min(1.0, max(0.2, float(facts["confidence"])))
    impact = min(2.0, max(1.0, float(facts["impact"])))
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
        entities=entities | {"source_ips": evidence.addresses},
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
