"""Findings as CSV and JSON lines, and the manifest of a report: same input, same bytes."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from reports.escape import csv, to_json

_LISTS = ("tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes")
_COLUMNS = (
    "case_id",
    "rank",
    "case_severity",
    "case_score",
    "finding_id",
    "detection",
    "title",
    "family",
    "severity",
    "score",
    "first_seen",
    "last_seen",
    "explanation",
    *_LISTS,
    "evidence_table",
    "evidence_count",
    "event_uids",
    "sql",
    "triage_state",
    "triage_by",
    "triage_at",
    "triage_reason",
    "duplicate_of",
    "suppressed_alike",
)
_SCHEMA: dict[str, Any] = (
    dict.fromkeys(_COLUMNS, pl.String)
    | {"rank": pl.Int64, "case_score": pl.Float64, "score": pl.Float64, "evidence_count": pl.Int64}
    | {"suppressed_alike": pl.Int64}
    | dict.fromkeys((*_LISTS, "event_uids"), pl.List(pl.String))
)


def findings_rows(hunt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per finding, with its case. The findings also carry title, severity, entities and evidence.count.

    Columns triage_...: what was judged last, by whom, when and why ("new" where nothing was). `suppressed_alike` is the
    number of findings of the same detection that rules about what is expected silenced in this run.
    """
    silenced = Counter(item["detection"] for item in (hunt.get("suppressed") or {"findings": ()})["findings"])
    return [
        {
            "case_id": case["case_id"],
            "rank": case["rank"],
            "case_severity": case["severity"],
            "case_score": case["score"],
            **{k: finding[k] for k in _COLUMNS[4:13]},
            **{k: list(finding["entities"].get(k, ())) for k in _LISTS},
            "evidence_table": finding["evidence"]["table"],
            "evidence_count": finding["evidence"]["count"],
            "event_uids": list(finding["evidence"]["event_uids"]),
            "sql": finding["sql"],
            **_judged(finding.get("triage")),
            "suppressed_alike": silenced[finding["detection"]],
        }
        for case in hunt["cases"]
        for finding in case["findings"]
    ]


def _judged(held: Mapping[str, Any] | None) -> dict[str, Any]:
    if held is None:
        return {"triage_state": "new", **dict.fromkeys(("triage_by", "triage_at", "triage_reason", "duplicate_of"))}
    names = {"triage_state": "state", "triage_by": "who", "triage_at": "at", "triage_reason": "reason"}
    return {column: held[name] for column, name in names.items()} | {"duplicate_of": held.get("duplicate_of")}


def findings_frame(hunt: Mapping[str, Any]) -> pl.DataFrame:
    """The same as a frame, typed even when it is empty."""
    return pl.DataFrame(findings_rows(hunt), schema=_SCHEMA)


def findings_csv(hunt: Mapping[str, Any]) -> str:
    """CSV for spreadsheets: text that would start a formula is defused, lists are joined by ;."""
    return csv(findings_frame(hunt))


def findings_jsonl(hunt: Mapping[str, Any]) -> str:
    """One JSON object a line."""
    return "".join(to_json(row, indent=None) + "\n" for row in findings_rows(hunt))


def manifest(
    files: Mapping[str, bytes],
    hunt: Mapping[str, Any],
    inputs: Mapping[str, str],
    detections: Mapping[str, str],
    tool_version: str,
) -> str:
    """What a report was made from and what it consists of.

    Args:
        files: name to content of each file of the report.
        hunt: the hunt as in ``hunt -t json``.
        inputs: evidence: label to sha256.
        detections: id to sha256 of the detection's source.
        tool_version: version of gatehound.
    """
    return (
        to_json(
            {
                "tool": "gatehound",
                "tool_version": tool_version,
                "run_id": hunt["run_id"],
                "window": hunt["window"],
                "archive_version": dict(sorted(hunt["archive_version"].items())),
                "detections": dict(sorted(detections.items())),
                "evidence": dict(sorted(inputs.items())),
                "files": {
                    n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in sorted(files.items())
                },
            }
        )
        + "\n"
    )
