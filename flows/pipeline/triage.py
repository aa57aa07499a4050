"""Findings as people work on them: the newest run of each, what was judged about it, and new judgements."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl

from archive.custody import who
from archive.store import Archive
from data_contracts import contract
from data_contracts.errors import UsageError

NEW = "new"
STATES = (NEW, "investigating", "confirmed", "benign", "duplicate", "closed")
_LONGEST = 4_000
_LISTED = (
    "finding_id", "state", "severity", "score", "detection", "title", "case_id", "first_seen", "last_seen",
    "tenant_ids", "credential_ids", "principal_ids", "source_networks", "explanation", "run_id", "run_at", "who", "at",
    "reason", "duplicate_of",
)  # fmt: skip


def newest(archive: Archive) -> pl.LazyFrame:
    """One row for each finding ever recorded: as its newest run has it."""
    rows = archive.scan("findings").sort("run_at", "run_id", descending=True, maintain_order=True)
    return rows.unique("finding_id", keep="first", maintain_order=True)


def states(archive: Archive) -> pl.DataFrame:
    """The judgement that holds for each finding that was judged: finding_id, state, at, who, reason, duplicate_of."""
    rows = archive.scan("triage").sort("at", "triage_id", descending=True).unique("finding_id", keep="first")
    return rows.select("finding_id", "state", "at", "who", "reason", "duplicate_of").sort("finding_id").collect()


def judged(archive: Archive) -> dict[str, dict[str, Any]]:
    """The same by finding, as `hunt -t json` shows it."""
    kept = ("state", "at", "who", "reason", "duplicate_of")
    return {row["finding_id"]: {k: row[k] for k in kept} for row in states(archive).iter_rows(named=True)}


def listed(
    archive: Archive,
    *,
    wanted: Sequence[str] = (),
    detection: str | None = None,
    tenant: str | None = None,
    run: str | None = None,
) -> pl.DataFrame:
    """Findings with their state, the highest score first.

    Args:
        archive: the archive.
        wanted: only these states.
        detection, tenant: only findings of this detection, that name this tenant.
        run: only findings of this run; by default the newest row of each finding.

    Raises:
        UsageError: no such state.
    """
    for state in wanted:
        _known(state)
    rows = newest(archive) if run is None else archive.scan("findings").filter(pl.col("run_id") == run)
    if detection is not None:
        rows = rows.filter(pl.col("detection") == detection.upper())
    if tenant is not None:
        rows = rows.filter(pl.col("tenant_ids").list.contains(tenant))
    found = rows.collect().join(states(archive), on="finding_id", how="left")
    found = found.with_columns(pl.col("state").fill_null(NEW))
    if wanted:
        found = found.filter(pl.col("state").is_in(list(wanted)))
    return found.select(_LISTED).sort(["score", "finding_id"], descending=[True, False])


def finding_of(archive: Archive, finding_id: str) -> dict[str, Any]:
    """The newest row of a finding. Raises UsageError where there is none."""
    found = archive.scan("findings").filter(pl.col("finding_id") == finding_id).sort("run_at").collect()
    if not found.height:
        raise UsageError(f"{finding_id}: no such finding", "gatehound findings list shows them")
    return found.row(-1, named=True)


def shown(archive: Archive, finding_id: str) -> dict[str, Any]:
    """One finding: its newest row, its state, the judgements in order of time, and the runs that found it.

    Raises:
        UsageError: no such finding.
    """
    row = finding_of(archive, finding_id)
    runs = archive.scan("findings").filter(pl.col("finding_id") == finding_id).sort("run_at", "run_id")
    history = archive.scan("triage").filter(pl.col("finding_id") == finding_id).sort("at", "triage_id").collect()
    kept = ("at", "state", "who", "reason", "duplicate_of", "case_id")
    judgements = [{k: entry[k] for k in kept} for entry in history.iter_rows(named=True)]
    return {
        **{k: v for k, v in row.items() if k not in ("date", "shown", "facts")},
        "state": judgements[-1]["state"] if judgements else NEW,
        "triage": judgements,
        "runs": runs.select("run_id", "run_at", "case_id", "rank", "score", "severity").collect().to_dicts(),
    }


def judge(
    archive: Archive,
    ids: Sequence[str],
    state: str,
    reason: str,
    *,
    duplicate_of: str | None = None,
    now: datetime | None = None,
) -> pl.DataFrame:
    """Records a judgement about findings, or about all findings of cases; returns these as `listed` does.

    Args:
        archive: the archive.
        ids: findings (F-...) and cases (C-..., with the findings of the newest run that has the case).
        state: one of STATES.
        reason: why.
        duplicate_of: with the state duplicate, the finding that is repeated.
        now: time of the judgement; default the present.

    Raises:
        UsageError: no such finding, case or state; no reason; a duplicate of nothing or of itself.
    """
    _known(state)
    why, at = reason.strip(), now or datetime.now(UTC)
    if not why or len(why) > _LONGEST:
        raise UsageError(f"a reason is needed, of at most {_LONGEST:,} characters", "--reason says why")
    if (state == "duplicate") != (duplicate_of is not None):
        raise UsageError("a duplicate names the finding that it repeats", "--state duplicate --of F-...")
    known = archive.scan("findings").select("finding_id", "case_id", "run_at", "run_id").collect()
    chosen = _chosen(known, ids)
    if duplicate_of is not None:
        _found(known, "finding_id", duplicate_of)
        if duplicate_of in chosen:
            raise UsageError(f"{duplicate_of}: would be a duplicate of itself", "--of names another finding")
    triage_id = f"J-{uuid.uuid4().hex[:16]}"
    common = {"triage_id": triage_id, "date": at.date(), "at": at, "state": state, "who": who(), "reason": why}
    rows = [common | {"finding_id": f, "case_id": c, "duplicate_of": duplicate_of} for f, c in chosen.items()]
    frame = pl.DataFrame(rows, schema=contract("triage").polars_schema)
    archive.append("triage", frame, app_id=triage_id)
    archive.custody(
        "triage",
        {"triage_id": triage_id, "state": state, "reason": why, "findings": list(chosen), "duplicate_of": duplicate_of},
    )
    return listed(archive).filter(pl.col("finding_id").is_in(list(chosen)))


def _chosen(known: pl.DataFrame, ids: Sequence[str]) -> dict[str, str | None]:
    """Finding to the case through which it was named."""
    chosen: dict[str, str | None] = {}
    if not ids:
        raise UsageError("no finding is named", "give ids of findings (F-...) or cases (C-...)")
    for one in ids:
        if one.startswith("C-"):
            of_case = _found(known, "case_id", one)
            last = of_case.sort("run_at", "run_id")["run_id"][-1]
            for finding_id in of_case.filter(pl.col("run_id") == last)["finding_id"].sort():
                chosen.setdefault(finding_id, one)
        else:
            _found(known, "finding_id", one)
            chosen[one] = None
    return chosen


def _found(known: pl.DataFrame, column: str, value: str) -> pl.DataFrame:
    found = known.filter(pl.col(column) == value)
    if not found.height:
        kind = "case" if column == "case_id" else "finding"
        raise UsageError(f"{value}: no such {kind}", "gatehound findings list shows them")
    return found


def _known(state: str) -> None:
    if state not in STATES:
        raise UsageError(f"{state}: no such state", f"one of {', '.join(STATES)}")
