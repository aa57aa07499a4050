"""Verbs that fill and look after an archive: init, reference, ingest, status, quarantine, raw, verify."""
# ruff: noqa: A002, FBT002, PLR0917 - the signature of a verb is its command line

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import DEFAULT_ARCHIVE, ArchiveOption, FormatOption, open_archive, progress
from flows.output import OutputFormat

reference_app = typer.Typer(
    help="Reference tables: tenants, credentials, bindings, networks, ...", no_args_is_help=True, rich_markup_mode=None
)
quarantine_app = typer.Typer(help="Records that were refused, and why.", no_args_is_help=True, rich_markup_mode=None)


class Section(StrEnum):
    """Parts of the status."""

    tables = "tables"
    evidence = "evidence"
    coverage = "coverage"
    quarantine = "quarantine"


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(epilog="Example: gatehound init -a case17")(init)
    app.add_typer(reference_app, name="reference")
    app.command(epilog="Example: gatehound ingest -a case17 logs/ --tz Europe/London --year 2021")(ingest)
    app.command(epilog="Example: gatehound status -a case17")(status)
    app.add_typer(quarantine_app, name="quarantine")
    app.command(epilog="Example: gatehound raw -a case17 0f3c...")(raw)
    app.command(epilog="Example: gatehound verify -a case17 --docs validation-report")(verify)


def init(archive: ArchiveOption = DEFAULT_ARCHIVE, to: FormatOption = OutputFormat.table) -> None:
    """Create an archive."""
    from archive.store import Archive
    from flows.commands.render import show_fact
    from flows.output import say

    created = Archive.create(archive)
    show_fact({"archive": created.uri, "tables": created.versions()}, to, quiet=True)
    say(f"Created the archive {archive}")


@reference_app.command("load", epilog="Example: gatehound reference load -a case17 reference/")
def reference_load(
    paths: Annotated[list[str], typer.Argument(help="CSV files or folders; each table by its file name.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Load reference tables from CSV; each replaces the table that stands."""
    from flows.commands.render import show_references
    from flows.output import working
    from flows.pipeline.deriving import refresh
    from flows.pipeline.references import load

    opened = open_archive(archive)
    answer = load(opened, paths)
    with working("deriving again what the tables change"):
        refresh(opened)
    show_references(answer, to)


def ingest(
    paths: Annotated[list[str], typer.Argument(help="Files, folders, patterns, archives or URIs.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    collection: Annotated[
        str | None, typer.Option(help="CSV that says how each file was collected: path, tenant_id, host, tz, year.")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Read everything as this format instead of recognising it.")
    ] = None,
    mapping: Annotated[
        str | None,
        typer.Option(help="TOML file that says how to read everything, for logs that are not recognised."),
    ] = None,
    tz: Annotated[
        str | None,
        typer.Option(help="Zone of times without one (IANA name or +02:00). Without it UTC is assumed, and said so."),
    ] = None,
    year: Annotated[
        int | None,
        typer.Option(help="Year of the first record, for times without one. Without it the file time decides."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Host that the logs come from, where they do not say.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Tenant of records that name none.")] = None,
    geoip: Annotated[
        str | None, typer.Option(help="Folder with *.mmdb databases: network owner, country and kind of each address.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse a file if any record is quarantined.")] = False,
    jobs: Annotated[int, typer.Option(help="Threads for parsing; 0 takes all cores.", min=0)] = 0,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler: one task per file.")] = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Read logs into the archive. They are recognised by content, and each record is accounted for."""
    from flows.commands.render import show_ingest
    from flows.pipeline.running import ingest_paths

    if jobs:
        _threads(jobs)
    with progress() as tell:
        answer = ingest_paths(
            archive,
            paths,
            collection=collection,
            format=format,
            tz=tz,
            year=year,
            host=host,
            tenant=tenant,
            strict=strict,
            dask=dask,
            mapping=mapping,
            geoip=geoip,
            tell=tell,
        )
    show_ingest(answer, to)
    if answer["totals"]["refused"]:
        raise typer.Exit(3)


def _threads(jobs: int) -> None:
    """Polars reads its thread count once, at import."""
    import os

    if "polars" not in sys.modules:
        os.environ["POLARS_MAX_THREADS"] = str(jobs)


def status(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    show: Annotated[
        Section | None,
        typer.Option(
            help="Only this part, in full. csv, jsonl and parquet hold one part: tables, unless this says another."
        ),
    ] = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Tables, rows, days, evidence, coverage, quarantine."""
    from flows.commands.render import show_status
    from flows.pipeline.status import status_of

    show_status(status_of(open_archive(archive)), show, to)


@quarantine_app.command("list", epilog="Example: gatehound quarantine list -a case17")
def quarantine_list(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    limit: Annotated[int, typer.Option(help="Most rows.")] = 1000,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Refused records by file and reason."""
    from flows.commands.render import show_quarantine
    from flows.pipeline.status import quarantine_groups

    show_quarantine(quarantine_groups(open_archive(archive)).head(limit), to)


@quarantine_app.command(
    "show", epilog="Example: gatehound quarantine show -a case17 --reason 'framing: record is longer than 8 MiB'"
)
def quarantine_show(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    path: Annotated[str | None, typer.Option(help="Only records of this file.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only records with this reason.")] = None,
    limit: Annotated[int, typer.Option(help="Most rows.")] = 20,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Refused records with their place and how they begin."""
    from flows.commands.render import show_quarantine
    from flows.pipeline.status import quarantine_rows

    show_quarantine(quarantine_rows(open_archive(archive), path, reason, limit), to)


def raw(
    event_uid: Annotated[str, typer.Argument(help="event_uid of an event, or quarantine_uid of a refused record.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: Annotated[
        OutputFormat | None, typer.Option("-t", "--as", help="Output on stdout; without it the bytes as they are.")
    ] = None,
) -> None:
    """Print the untouched source record. The hash of its file is checked before."""
    from flows.commands.render import show_raw

    show_raw(open_archive(archive).raw(event_uid), to)


def verify(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    docs: Annotated[
        Path | None,
        typer.Option(help="Render all validation results as Great Expectations Data Docs into this folder."),
    ] = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Check evidence, custody chain, tables and imported rules."""
    from flows.commands.render import show_problems

    opened = open_archive(archive)
    problems = opened.verify()
    if docs is not None:
        from data_contracts.docs import build_docs
        from flows.output import say

        index = build_docs(opened.validation_dir, str(docs))
        say(f"Data Docs: {index}")
    if show_problems(problems, to):
        raise typer.Exit(4)
