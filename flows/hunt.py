"""Prefect flows: a hunt over the last days or over any window, and one over the whole archive in slices."""

from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.pipeline.notifying import has_way
from flows.prefect_parts import key, located, tell, ways, worth_repeating

if TYPE_CHECKING:
    from archive.store import Archive
    from queries.engine import HuntResult


@task(name="run detections", retries=1, retry_delay_seconds=30, retry_condition_fn=worth_repeating)
def run_detections(
    archive: str,
    begin: str | None,
    end: str | None,
    detections: list[str] | None,
    budget: int,
    notify_level: str,
    has_way: bool,  # noqa: FBT001 - a task takes plain values
) -> dict[str, Any]:
    """Runs the detections and records the findings; safe to repeat.

    Returns:
        hunt: the document of ``hunt -t json --since-last``; due: how many cases came up that people are to know.
    """
    from archive.store import Archive
    from flows.pipeline.hunting import as_dict, hunt_archive
    from flows.pipeline.since import compare
    from flows.pipeline.triage import judged

    opened = Archive.open(archive)
    result = hunt_archive(opened, begin=begin, end=end, detections=detections, budget=budget)
    known = judged(opened)
    answer = as_dict(result, judged=known, since=compare(opened, result))
    return {"hunt": answer, "due": _due(opened, result, notify_level, known, has_way=has_way)}


def _due(archive: "Archive", result: "HuntResult", level: str, judged: dict[str, Any], *, has_way: bool) -> int:
    """How many cases came up that people are to know; these wait in the archive where there is a way to tell."""
    from flows.pipeline.notifying import due, post_out

    cases = due(archive, result, level, judged)
    if has_way:
        post_out(archive, result.run_id, level, cases)
    return len(cases)


@task(name="notify", retries=3, retry_delay_seconds=20, retry_condition_fn=worth_repeating)
def notify(archive: str, run_id: str, level: str, block: str | None) -> int:
    """Tells people of the cases that wait; of how many they were told. Safe to repeat: what got through is kept."""
    return tell(archive, run_id, level, block)


@flow(name="hunt", log_prints=True)
def hunt(
    archive: str | None = None,
    days: int | None = None,
    begin: str | None = None,
    end: str | None = None,
    detections: list[str] | None = None,
    budget: int = 10,
    notify_level: str = "high",
    notify_block: str | None = None,
) -> dict[str, Any]:
    """Hunts, leaves a table of cases and a Markdown page as artifacts, and tells people of new cases.

    Args:
        archive: URI of the archive; GATEHOUND_ARCHIVE if it is not given.
        days: hunt over the last so many days up to now; for schedules. Comes before begin.
        begin, end: window, ISO 8601; by default the last 30 days of data.
        detections: ids; all by default.
        budget: most cases for each day of the window.
        notify_level: severity from which people are told of a new case.
        notify_block: Prefect notification block, type/name; GATEHOUND_NOTIFICATION_BLOCK if it is not given. Without
            one, the webhook that GATEHOUND_WEBHOOK_URL names; without either no one is told.

    Returns:
        The cases of ``hunt -t json`` without their findings, the run's id, and of how many cases people were told.
    """
    where = located(archive)
    block = ways(notify_level, notify_block)
    if days is not None:
        now = datetime.now(UTC)
        begin, end = (now - timedelta(days=days)).date().isoformat(), now.date().isoformat()
    done = run_detections(where, begin, end, detections, budget, notify_level, has_way(block))
    answer = done["hunt"]
    rows = case_rows(answer)
    create_table_artifact(key=key("cases", where), table=rows, description=f"Cases of run {answer['run_id']}")
    create_markdown_artifact(key=key("hunt", where), markdown=page(answer), description=f"Hunt {answer['run_id']}")
    print(f"run {answer['run_id']}: {len(rows)} cases")
    told = notify(where, answer["run_id"], notify_level, block)
    print(f"{done['due']} new cases at or above {notify_level}; people were told of {told}")
    cases = [{k: r[k] for k in ("rank", "case", "severity")} for r in rows]
    return {"run_id": answer["run_id"], "window": answer["window"], "cases": cases, "told_of": told}


@task(name="plan slices")
def plan(archive: str, months: int, detections: list[str] | None) -> list[tuple[str, str, str, bool]]:
    """Begin, end and mark of the slices of the archive, and whether each is done."""
    from archive.store import Archive
    from flows.pipeline.retrospective import is_done, slices

    opened = Archive.open(archive)
    found = slices(opened, months=months, detections=detections)
    return [(s.begin.isoformat(), s.end.isoformat(), s.mark, is_done(opened, s)) for s in found]


@task(name="hunt over a slice", retries=1, retry_delay_seconds=30, retry_condition_fn=worth_repeating)
def run_slice(
    archive: str,
    piece: tuple[str, str, str],
    detections: list[str] | None,
    budget: int,
    notify_level: str,
    has_way: bool,  # noqa: FBT001 - a task takes plain values
    again: str | None,
) -> dict[str, Any]:
    """Hunts over a slice and marks it as done; safe to repeat."""
    from archive.store import Archive
    from flows.pipeline.retrospective import Slice, hunt_slice
    from flows.pipeline.triage import judged

    opened = Archive.open(archive)
    begin, end, mark = piece
    which = Slice(date.fromisoformat(begin), date.fromisoformat(end), mark)
    result = hunt_slice(opened, which, detections=detections, budget=budget, again=again)
    return {
        "run_id": result.run_id,
        "cases": len(result.cases),
        "findings": len(result.findings),
        "skipped": [s.id for s in result.detections_skipped],
        "due": _due(opened, result, notify_level, judged(opened), has_way=has_way),
    }


@flow(name="retrospective", log_prints=True)
def retrospective(
    archive: str | None = None,
    months: int = 3,
    detections: list[str] | None = None,
    budget: int = 10,
    again: bool = False,  # noqa: FBT001, FBT002 - a parameter of a deployment
    notify_level: str = "high",
    notify_block: str | None = None,
) -> dict[str, Any]:
    """Hunts over the whole archive, slice by slice; slices that are done are left out, also after a restart.

    A slice is hunted again where its logs, the reference tables or the detections have changed since.

    Args:
        archive: URI of the archive; GATEHOUND_ARCHIVE if it is not given.
        months: length of a slice.
        detections: ids; all by default.
        budget: most cases for each day.
        again: hunt over every slice, done or not.
        notify_level, notify_block: as for a hunt.

    Returns:
        Slices in all, how many were hunted in this run, and of how many cases people were told.
    """
    where = located(archive)
    block = ways(notify_level, notify_block)
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}" if again else None
    rows, hunted = [], 0
    told = notify(where, "before this one", notify_level, block)  # what an earlier run could not send
    for begin, end, mark, is_done in plan(where, months, detections):
        row: dict[str, Any] = {"begin": begin, "end": end, "state": "done before"}
        if not is_done or again:
            done = run_slice(where, (begin, end, mark), detections, budget, notify_level, has_way(block), name)
            row |= {"state": "hunted", **{k: done[k] for k in ("run_id", "cases", "findings")}}
            row["skipped"] = ", ".join(done["skipped"])
            hunted += 1
            print(f"{begin} to {end}: {done['cases']} cases, {done['due']} new at or above {notify_level}")
            told += notify(where, done["run_id"], notify_level, block)
        rows.append(row)
    create_table_artifact(key=key("slices", where), table=rows, description=f"{hunted} of {len(rows)} slices hunted")
    print(f"{hunted} of {len(rows)} slices hunted; people were told of {told} cases")
    return {"slices": len(rows), "hunted": hunted, "told_of": told}


def case_rows(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """Cases as the table artifact has them."""
    return [
        {
            "rank": c["rank"], "case": c["case_id"], "severity": c["severity"], "score": c["score"],
            "first_seen": c["first_seen"], "last_seen": c["last_seen"],
            "tenants": ", ".join(c["entities"]["tenant_ids"]), "summary": c["summary"],
        }
        for c in answer["cases"]
    ]  # fmt: skip


def page(answer: dict[str, Any]) -> str:
    """A hunt as Markdown; what came from logs is escaped."""
    from flows.commands.told import nobody_said, since_lines, suppressed_lines
    from reports.escape import md

    window = answer["window"]
    lines = [f"# Hunt {answer['run_id']}", f"{window['from']} to {window['to']}", ""]
    for case in answer["cases"]:
        lines += [f"## {case['rank']}. {case['severity']}, score {case['score']:.0f}", "", md(case["summary"]), ""]
    if not answer["cases"]:
        lines += ["No findings. This is no all-clear.", ""]
    for title, said in (("Since the run before", since_lines), ("Suppressed as expected", suppressed_lines)):
        found = said(answer)
        lines += [f"## {title}", "", *(f"- {md(line)}" for line in found), ""] if found else []
    lines += ["## What these logs cannot say", "", *(f"- {md(limit)}" for limit in answer["limits"])]
    lines += [f"- {s['id']} did not run: {md(s['reason'])}" for s in answer["detections_skipped"]]
    lines += [f"- {md(line)}" for line in nobody_said(answer)]
    return "\n".join(lines) + "\n"
