"""Findings as CSV and JSON lines, and the manifest of a report: same input, same bytes."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from reports.escape import csv, jsonable

_LISTS = ("tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes")
_COLUMNS = (
    "case_id", "rank", "case_severity", "case_score", "finding_id", "detection", "family", "score", "first_seen", "last_seen",
    "explanation", *_LISTS, "evidence_table", "event_uids", "sql",
)  # fmt: skip


def findings_rows(hunt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per finding, with its case."""
    return [
        {
            "case_id": case["case_id"], "rank": case["rank"], "case_severity": case["severity"], "case_score": case["score"],
            **{k: finding[k] for k in ("finding_id", "detection", "family", "score", "first_seen", "last_seen", "explanation")},
            **{k: list((finding.get("entities") or case["entities"]).get(k, ())) for k in _LISTS},
            "evidence_table": finding["evidence"]["table"], "event_uids": list(finding["evidence"]["event_uids"]), "sql": finding["sql"],
        }
        for case in hunt["cases"]
        for finding in case["findings"]
    ]  # fmt: skip


def findings_csv(hunt: Mapping[str, Any]) -> str:
    """CSV for spreadsheets: text that would start a formula is defused, lists are joined by ;."""
    schema: dict[str, Any] = {c: pl.String for c in _COLUMNS}
    schema |= {"rank": pl.Int64, "case_score": pl.Float64, "score": pl.Float64, "event_uids": pl.List(pl.String)}
    schema |= {c: pl.List(pl.String) for c in _LISTS}
    return csv(pl.DataFrame(findings_rows(hunt), schema=schema))


def findings_jsonl(hunt: Mapping[str, Any]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(jsonable(row), ensure_ascii=False) + "\n" for row in findings_rows(hunt))


def manifest(
    files: Mapping[str, bytes], hunt: Mapping[str, Any], inputs: Mapping[str, str], detections: Mapping[str, str], tool_version: str
) -> str:
    """What a report was made from and what it consists of.

    Args:
        files: name to content of each file of the report.
        hunt: the hunt as in ``hunt -t json``.
        inputs: evidence: label to sha256.
        detections: id to sha256 of the detection's source.
        tool_version: version of gatehound.
    """
    return json.dumps(
        {
            "tool": "gatehound",
            "tool_version": tool_version,
            "run_id": hunt["run_id"],
            "window": hunt["window"],
            "archive_version": hunt["archive_version"],
            "detections": dict(sorted(detections.items())),
            "evidence": dict(sorted(inputs.items())),
            "files": {n: {"bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for n, b in sorted(files.items())},
        },
        indent=2,
        ensure_ascii=False,
    )
