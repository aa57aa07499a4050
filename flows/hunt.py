"""Prefect flow: a hunt over the last days, or over any window, with its cases as artifacts."""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.prefect_parts import key, located, worth_repeating


@task(name="run detections", retries=1, retry_delay_seconds=30, retry_condition_fn=worth_repeating)
def run_detections(
    archive: str, begin: str | None, end: str | None, detections: list[str] | None, budget: int
) -> dict[str, Any]:
    """Runs the detections and records the findings; safe to repeat."""
    from archive.store import Archive
    from flows.pipeline.hunting import as_dict, hunt_archive

    return as_dict(hunt_archive(Archive.open(archive), begin=begin, end=end, detections=detections, budget=budget))


@flow(name="hunt", log_prints=True)
def hunt(
    archive: str | None = None,
    days: int | None = None,
    begin: str | None = None,
    end: str | None = None,
    detections: list[str] | None = None,
    budget: int = 10,
) -> dict[str, Any]:
    """Hunts and leaves a table of cases and a Markdown page as artifacts.

    Args:
        archive: URI of the archive; GATEHOUND_ARCHIVE if it is not given.
        days: hunt over the last so many days up to now; for schedules. Comes before begin.
        begin, end: window, ISO 8601; by default the last 30 days of data.
        detections: ids; all by default.
        budget: most cases for each day of the window.

    Returns:
        The cases of ``hunt -t json`` without their findings, and the run's id.
    """
    where = located(archive)
    if days is not None:
        now = datetime.now(UTC)
        begin, end = (now - timedelta(days=days)).date().isoformat(), now.date().isoformat()
    answer = run_detections(where, begin, end, detections, budget)
    rows = [
        {
            "rank": c["rank"], "case": c["case_id"], "severity": c["severity"], "score": c["score"],
            "first_seen": c["first_seen"], "last_seen": c["last_seen"],
            "tenants": ", ".join(c["entities"]["tenant_ids"]), "summary": c["summary"],
        }
        for c in answer["cases"]
    ]  # fmt: skip
    create_table_artifact(key=key("cases", where), table=rows, description=f"Cases of run {answer['run_id']}")
    create_markdown_artifact(key=key("hunt", where), markdown=page(answer), description=f"Hunt {answer['run_id']}")
    print(f"run {answer['run_id']}: {len(rows)} cases")
    cases = [{k: r[k] for k in ("rank", "case", "severity")} for r in rows]
    return {"run_id": answer["run_id"], "window": answer["window"], "cases": cases}


def page(answer: dict[str, Any]) -> str:
    """A hunt as Markdown; what came from logs is escaped."""
    from reports.escape import md

    window = answer["window"]
    lines = [f"# Hunt {answer['run_id']}", f"{window['from']} to {window['to']}", ""]
    for case in answer["cases"]:
        lines += [f"## {case['rank']}. {case['severity']}, score {case['score']:.0f}", "", md(case["summary"]), ""]
    if not answer["cases"]:
        lines += ["No findings. This is no all-clear.", ""]
    lines += ["## What these logs cannot say", "", *(f"- {md(limit)}" for limit in answer["limits"])]
    lines += [f"- {s['id']} did not run: {md(s['reason'])}" for s in answer["detections_skipped"]]
    return "\n".join(lines) + "\n"
