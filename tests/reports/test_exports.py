"""Exports: same findings, same bytes; defused; and a manifest whose hashes hold."""

import csv
import hashlib
import io
import json
from typing import Any

from reports.exports import findings_csv, findings_frame, findings_jsonl, findings_rows, manifest

KEYS = ("tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes")


def finding(number: int, **own: Any) -> dict[str, Any]:
    return {
        "finding_id": f"F-{number:016x}",
        "detection": "T01",
        "title": "New source",
        "family": "tenant_connection",
        "severity": "high",
        "score": 70.0,
        "first_seen": "2021-02-03T04:05:06Z",
        "last_seen": "2021-02-04T04:05:06Z",
        "explanation": "=1+1\x1b",
        "tactics": [],
        "techniques": [],
        "entities": {k: [f"{k}-{number}"] for k in KEYS},
        "sql": "select 'o''brien'",
        "evidence": {"table": "access_events", "event_uids": ["a" * 40], "count": 1234},
        **own,
    }


def hunt(*findings: dict[str, Any]) -> dict[str, Any]:
    case = {
        "case_id": "C-1",
        "rank": 1,
        "score": 90.5,
        "severity": "critical",
        "entities": {k: ["of-the-case"] for k in KEYS},
        "findings": findings,
    }
    return {
        "run_id": "R-1",
        "window": {"from": "a", "to": "b"},
        "archive_version": {"b": 2, "a": 1},
        "cases": [case] if findings else [],
    }


def test_a_row_has_what_belongs_to_its_finding() -> None:
    first, second = findings_rows(hunt(finding(1), finding(2)))
    assert first["tenant_ids"] == ["tenant_ids-1"]
    assert second["tenant_ids"] == ["tenant_ids-2"]
    assert (first["case_severity"], first["severity"], first["evidence_count"]) == ("critical", "high", 1234)


def test_csv_and_json_lines_say_the_same() -> None:
    found = hunt(finding(1), finding(2))
    rows = list(csv.DictReader(io.StringIO(findings_csv(found))))
    objects = [json.loads(line) for line in findings_jsonl(found).splitlines()]
    assert [r["finding_id"] for r in rows] == [o["finding_id"] for o in objects]
    assert rows[0]["explanation"] == "'=1+1\\x1b"
    assert objects[0]["explanation"] == "=1+1\x1b"
    assert objects[0]["event_uids"] == ["a" * 40]


def test_nothing_found_is_a_table_with_its_columns() -> None:
    assert findings_csv(hunt()).count("\n") == 1
    assert findings_jsonl(hunt()) == ""
    assert findings_frame(hunt()).columns == list(findings_rows(hunt(finding(1)))[0])


def test_same_input_same_bytes_in_whatever_order_it_comes() -> None:
    found = hunt(finding(1))
    files = {"b.md": b"two", "a.html": b"one"}
    one = manifest(files, found, {"y": "2", "x": "1"}, {"T03": "b", "T01": "a"}, "1")
    other = manifest(dict(reversed(files.items())), found, {"x": "1", "y": "2"}, {"T01": "a", "T03": "b"}, "1")
    assert one == other
    assert findings_csv(found) == findings_csv(hunt(finding(1)))


def test_the_hashes_of_the_manifest_hold() -> None:
    held = json.loads(manifest({"a.html": b"one"}, hunt(), {"log": "1"}, {"T01": "a"}, "1.2"))
    assert held["files"] == {"a.html": {"bytes": 3, "sha256": hashlib.sha256(b"one").hexdigest()}}
    assert (held["tool_version"], held["run_id"], held["evidence"], held["detections"]) == (
        "1.2",
        "R-1",
        {"log": "1"},
        {"T01": "a"},
    )


def test_a_row_says_what_was_judged_and_what_was_suppressed_alike() -> None:
    judged = {
        "state": "benign",
        "who": "=ana",
        "at": "2021-02-05T09:00:00Z",
        "reason": "CHG-4711",
        "duplicate_of": None,
    }
    found = hunt(finding(1, triage=judged), finding(2))
    found["suppressed"] = {"findings": [{"detection": "T01"}, {"detection": "T01"}, {"detection": "X01"}]}
    first, second = csv.DictReader(io.StringIO(findings_csv(found)))
    assert [first[f"triage_{name}"] for name in ("state", "by", "at", "reason")] == [
        "benign",
        "'=ana",
        "2021-02-05T09:00:00Z",
        "CHG-4711",
    ]
    assert (second["triage_state"], second["triage_by"]) == ("new", "")
    assert first["suppressed_alike"] == second["suppressed_alike"] == "2"
    assert findings_rows(hunt(finding(1)))[0]["suppressed_alike"] == 0
