"""What has changed since the run before: new, ongoing, changed and gone findings and cases, by their stable ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from archive.store import Archive
from queries.text import iso

if TYPE_CHECKING:
    from queries.cases import Case
    from queries.engine import HuntResult
    from queries.findings import Finding

ENOUGH = 0.5  # of the window that an earlier run must have looked at to be the one to compare with
_COMPARED = ("severity", "score", "first_seen", "last_seen", "evidence_count")


@dataclass(frozen=True, slots=True)
class Run:
    """An earlier run, as the custody log has it, with its rows of the table findings."""

    run_id: str
    at: str
    begin: datetime
    end: datetime
    detections: frozenset[str]

    def share(self, begin: datetime, end: datetime) -> float:
        """Part of a window that the run looked at."""
        both = min(self.end, end) - max(self.begin, begin)
        return max(0.0, both / (end - begin))

    def is_alike(self, begin: datetime, end: datetime) -> bool:
        """Whether most of the days that either of the two looked at are the same."""
        whole = max(self.end, end) - min(self.begin, begin)
        return self.share(begin, end) * (end - begin) >= ENOUGH * whole


def earlier_runs(archive: Archive, but: str) -> list[Run]:
    """Recorded runs in order of time, without one."""
    found = []
    for entry in archive.custody_log.entries():
        details = entry.get("details")
        if entry.get("action") != "hunt" or not isinstance(details, dict) or details.get("run_id") in (None, but):
            continue
        try:
            begin, end = (datetime.fromisoformat(details["window"][name]).astimezone(UTC) for name in ("from", "to"))
        except (KeyError, TypeError, ValueError):
            continue
        detections = frozenset(map(str, details.get("detections") or ()))
        found.append(Run(str(details["run_id"]), str(entry.get("at")), begin, end, detections))
    return found


def run_before(archive: Archive, result: "HuntResult") -> Run | None:
    """The run to compare with.

    It is the last one that ran all of the detections over much the same days: what a detection finds depends a little
    on the window, so that a daily hunt is held against a daily one. Without one it is the last that ran all of the
    detections over at least half of the window; else the last over at least half of it; else the last that looked at
    any part of it.
    """
    window, ran = (result.window_from, result.window_to), set(result.detections_run)
    touched = [run for run in earlier_runs(archive, but=result.run_id) if run.share(*window) > 0]
    most = [run for run in touched if run.share(*window) >= ENOUGH]
    whole = [run for run in most if ran <= run.detections]
    alike = [run for run in whole if run.is_alike(*window)]
    return next((runs[-1] for runs in (alike, whole, most, touched) if runs), None)


def compare(archive: Archive, result: "HuntResult") -> dict[str, Any]:
    """The hunt held against the run before it, as `hunt -t json` shows it under `since`.

    Without a run before, `run_id` is null and everything is new.
    """
    run = run_before(archive, result)
    rows = archive.scan("findings")
    before = rows.filter(pl.col("run_id") == (run.run_id if run else "")).collect()
    then = {row["finding_id"]: row for row in before.iter_rows(named=True)}
    known = rows.filter(pl.col("run_id") != result.run_id).group_by("finding_id").agg(pl.col("run_at").min()).collect()
    first_runs = dict(known.iter_rows())
    findings = _findings(result, run, then, first_runs)
    return {
        "run_id": run.run_id if run else None,
        "run_at": run.at if run else None,
        "window": {"from": iso(run.begin), "to": iso(run.end)} if run else None,
        "cases": _cases(result.cases, then, findings),
        "findings": findings,
    }


def _findings(
    result: "HuntResult", run: Run | None, then: Mapping[str, Mapping[str, Any]], first_runs: Mapping[str, datetime]
) -> dict[str, list[dict[str, Any]]]:
    answer: dict[str, list[dict[str, Any]]] = {"new": [], "changed": [], "ongoing": [], "gone": []}
    now = {finding.finding_id: finding for finding in result.findings}
    for finding_id, finding in sorted(now.items()):
        told = {"finding_id": finding_id, "detection": finding.detection, "severity": finding.severity}
        if finding_id not in then:
            known = first_runs.get(finding_id)
            answer["new"].append(
                told | {"known_since": iso(known) if known else None, "why": _why_new(finding, run, known)}
            )
            continue
        changes = _changes(then[finding_id], finding)
        if changes:
            answer["changed"].append(told | {"changes": changes})
        else:
            answer["ongoing"].append(told)
    for finding_id, row in sorted(then.items()):
        if finding_id not in now:
            told = {"finding_id": finding_id, "detection": row["detection"], "severity": row["severity"]}
            answer["gone"].append(told | {"case_id": row["case_id"], "why": _why_gone(row, result)})
    return answer


def _why_new(finding: "Finding", run: Run | None, known: datetime | None) -> str:
    if run is None:
        return "no run before"
    if finding.detection not in run.detections:
        return "its detection did not run then"
    if finding.last_seen < run.begin or finding.first_seen >= run.end:
        return "outside the window of that run"
    return "found in an earlier run, not in that one" if known else "found for the first time"


def _why_gone(row: Mapping[str, Any], result: "HuntResult") -> str:
    if row["finding_id"] in {item.finding.finding_id for item in result.expected.suppressed}:
        return "suppressed as expected"
    if row["detection"] not in result.detections_run:
        return "its detection did not run"
    if row["last_seen"] < result.window_from or row["first_seen"] >= result.window_to:
        return "outside the window"
    return "not found any more"


def _changes(row: Mapping[str, Any], finding: "Finding") -> dict[str, list[Any]]:
    now = {name: getattr(finding, name) for name in _COMPARED[:-1]} | {"evidence_count": finding.evidence.count}
    return {name: [_told(row[name]), _told(now[name])] for name in _COMPARED if _told(row[name]) != _told(now[name])}


def _told(value: Any) -> Any:
    return iso(value) if isinstance(value, datetime) else round(value, 2) if isinstance(value, float) else value


def _cases(
    cases: Sequence["Case"],
    then: Mapping[str, Mapping[str, Any]],
    findings: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, list[dict[str, Any]]]:
    """Cases are the same where they share a finding: an id may change when a case grows or two become one."""
    answer: dict[str, list[dict[str, Any]]] = {"new": [], "changed": [], "ongoing": [], "gone": []}
    changed = {item["finding_id"] for item in findings["changed"]}
    before: dict[str, dict[str, Any]] = {}
    for finding_id, row in then.items():
        held = before.setdefault(row["case_id"], {"severity": row["severity"], "findings": set()})
        held["severity"] = max(held["severity"], row["severity"], key=_level)
        held["findings"].add(finding_id)
    met: set[str] = set()
    for case in cases:
        own = {finding.finding_id for finding in case.findings}
        was = sorted({then[finding_id]["case_id"] for finding_id in own if finding_id in then})
        met |= set(was)
        told: dict[str, Any] = {"case_id": case.case_id, "rank": case.rank, "severity": case.severity}
        if not was:
            answer["new"].append(told)
            continue
        held_before = set().union(*(before[case_id]["findings"] for case_id in was))
        severity = max((before[case_id]["severity"] for case_id in was), key=_level)
        moved = {
            "was": was, "severity_then": severity, "findings_added": len(own - held_before),
            "findings_gone": len(held_before - own), "findings_changed": len(own & changed),
        }  # fmt: skip
        same = was == [case.case_id] and severity == case.severity and own == held_before and not own & changed
        answer["ongoing" if same else "changed"].append(told if same else told | moved)
    why = {item["finding_id"]: item["why"] for item in findings["gone"]}
    for case_id in sorted(before.keys() - met):
        reasons = sorted({why[finding_id] for finding_id in before[case_id]["findings"] if finding_id in why})
        answer["gone"].append({"case_id": case_id, "severity": before[case_id]["severity"], "why": reasons})
    return answer


def _level(severity: str) -> int:
    from queries.catalogue import SEVERITIES

    return SEVERITIES.index(severity)
