"""Verbs that ask: sql, hunt, report, demo."""
# ruff: noqa: FBT002, PLR0917 - the signature of a verb is its command line

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import DEFAULT_ARCHIVE, ArchiveOption, FormatOption, open_archive, progress
from flows.output import OutputFormat

DetectionsOption = Annotated[str | None, typer.Option("--detections", help="Ids, separated by commas; default: all.")]
SEVERITIES = ("info", "low", "medium", "high", "critical")


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(
        epilog="""Example: gatehound sql -a case17 "select protocol, count(*) n from access_events group by all" """
    )(sql)
    app.command(epilog="Example: gatehound hunt -a case17 --from 2021-01-10 --to 2021-02-10 --fail-level high")(hunt)
    app.command(
        epilog="Example: gatehound report -a case17 --out report/ --to html,md,csv --from 2021-01-10 --until 2021-02-10"
    )(report)
    app.command(epilog="Example: gatehound demo --out demo")(demo)


def sql(
    query: Annotated[str | None, typer.Argument(help="One SELECT; without it a shell.")] = None,
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Read-only DuckDB over the archive."""
    from flows.commands.shell import ask, shell

    opened = open_archive(archive)
    if query is None:
        shell(opened, to)
    else:
        ask(opened, query, to)


def hunt(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    begin: Annotated[
        str | None, typer.Option("--from", help="Begin of the window, UTC; default: 30 days before its end.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", "--until", help="End of the window, UTC; default: the last day with events.")
    ] = None,
    detections: DetectionsOption = None,
    budget: Annotated[int, typer.Option(help="Most cases shown for each day of the window.", min=1)] = 10,
    fail_level: Annotated[str | None, typer.Option(help="Exit with 1 if a case is at or above this severity.")] = None,
    since_last: Annotated[
        bool, typer.Option("--since-last", help="Say what is new, changed and gone since the run before.")
    ] = False,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Run the detections; ranked cases."""
    from data_contracts.errors import UsageError
    from flows.commands.render import show_hunt
    from flows.output import working
    from flows.pipeline.hunting import hunt_archive
    from flows.pipeline.since import compare
    from flows.pipeline.triage import judged

    if fail_level is not None and fail_level not in SEVERITIES:
        raise UsageError(f"--fail-level {fail_level}: no such severity", f"one of {', '.join(SEVERITIES)}")
    with working("hunting"):
        opened = open_archive(archive)
        result = hunt_archive(opened, begin=begin, end=end, detections=_ids(detections), budget=budget)
        since = compare(opened, result) if since_last else None
    show_hunt(result, to, judged=judged(opened), since=since)
    if fail_level and any(SEVERITIES.index(c.severity) >= SEVERITIES.index(fail_level) for c in result.cases):
        raise typer.Exit(1)


def report(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the report.")] = Path("report"),
    formats: Annotated[
        str, typer.Option("--to", help="Kinds, separated by commas: html, md, csv, jsonl.")
    ] = "html,md,csv,jsonl",
    begin: Annotated[str | None, typer.Option("--from", help="Begin of the window, UTC.")] = None,
    end: Annotated[str | None, typer.Option("--until", help="End of the window, UTC.")] = None,
    detections: DetectionsOption = None,
    title: Annotated[str, typer.Option(help="Title of the report.")] = "Incident report",
    clobber: Annotated[bool, typer.Option("--clobber", help="Overwrite files that are there.")] = False,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Hunt, and write the incident report."""
    from flows.commands.render import show_files
    from flows.output import working
    from flows.pipeline.reporting import write_report

    kinds = [k.strip() for k in formats.split(",") if k.strip()]
    with working("hunting, and writing the report"):
        files = write_report(
            open_archive(archive), out, kinds,
            begin=begin, end=end, detections=_ids(detections), title=title, clobber=clobber,
        )  # fmt: skip
    show_files(files, to)


def _ids(detections: str | None) -> list[str] | None:
    return None if detections is None else [d.strip() for d in detections.split(",") if d.strip()]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for logs, archive and report.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of the world.")] = 7,
    tenants: Annotated[int, typer.Option(help="Tenants in the world.", min=12)] = 12,
    days: Annotated[int, typer.Option(help="Days of logs.", min=40)] = 45,
    clobber: Annotated[bool, typer.Option("--clobber", help="Replace an earlier demo in that folder.")] = False,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Make a small incident and run everything on it. What is found is held against what was planted."""
    from flows.commands.demo import run_demo
    from flows.commands.render import show_demo
    from flows.output import say

    with progress() as tell:
        answer = run_demo(out, seed=seed, tenants=tenants, days=days, clobber=clobber, tell=tell)
    show_demo(answer, to)
    if not answer["found_all"]:
        say("Not every planted step is among the first cases.", "red")
        raise typer.Exit(1)
