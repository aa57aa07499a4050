"""The whole of ingest: collection sheet, evidence, derived tables; on this machine or one task per file on Dask."""

from collections.abc import Callable
from typing import Any

import polars as pl

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.pipeline.deriving import refresh
from flows.pipeline.ingesting import Ingest, Options
from flows.pipeline.reading import How
from flows.pipeline.references import describe_geoip, read_table
from flows.pipeline.registering import totals
from transforms.mapping import MappingFile

Tell = Callable[[str, int], None]


def ingest_paths(
    archive: str,
    paths: list[str],
    *,
    collection: str | None = None,
    format: str | None = None,  # noqa: A002 - the option's name
    tz: str | None = None,
    year: int | None = None,
    host: str | None = None,
    tenant: str | None = None,
    strict: bool = False,
    dask: str | None = None,
    geoip: str | None = None,
    mapping: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Ingests evidence and brings the derived tables up to date.

    Args:
        archive: URI of an archive.
        paths: files, folders, patterns, archives or URIs.
        collection: CSV of how each file was collected.
        format, tz, year, host, tenant: what the caller says of all files; a row of the collection sheet comes first.
        strict: refuse a file if any of its records is quarantined.
        dask: address of a Dask scheduler.
        geoip: folder with databases in MaxMind's format.
        mapping: TOML file that says how to read everything (docs/mapping.md).
        tell: told of progress.

    Returns:
        The answer of ``ingest -t json``.

    Raises:
        UsageError: an option or path is wrong. RefusedError: the collection sheet breaks its contract.
    """
    opened = Archive.open(archive)
    _check_zone(tz)
    sheet: pl.DataFrame | None = read_table("collection", collection) if collection else None
    if sheet is not None:
        for zone in sheet["tz"].drop_nulls().unique():
            _check_zone(zone)
    if geoip:
        opened.custody("geoip", {"databases": describe_geoip(geoip)})
    given = _mapping(mapping, format) if mapping else None
    options = Options(sheet, How(format, tz, year, host, tenant, given), strict, geoip)
    answer = _on_dask(archive, paths, options, dask) if dask else Ingest(opened, options, tell).run(paths)
    opened = Archive.open(archive)
    refresh(opened, lambda table, _days: tell(f"derive {table}", 0) if tell else None)
    answer["archive_version"] = opened.versions()
    return answer


def _mapping(file: str, format: str | None) -> MappingFile:  # noqa: A002 - the option's name
    """Reads a mapping and checks it before any evidence is touched."""
    from pathlib import Path

    if format is not None:
        raise UsageError("--mapping and --format exclude each other", "give one of them")
    try:
        found = MappingFile(Path(file).read_text(encoding="utf-8-sig"), file)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: the mapping cannot be read: {error}", "a TOML file in UTF-8") from error
    assert found.format
    return found


def _check_zone(tz: str | None) -> None:
    """Raises UsageError when a zone is neither an IANA name nor an offset."""
    import re
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    if tz is None or re.fullmatch(r"[+-]\d\d:?\d\d", tz):
        return
    try:
        ZoneInfo(tz)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(
            f"{tz}: no such time zone", "an IANA name such as Europe/London, or an offset such as +02:00"
        ) from error


def ingest_one(archive: str, path: str, options: Options) -> dict[str, Any]:
    """One file, for a worker elsewhere."""
    return Ingest(Archive.open(archive), options).run([path])


def _on_dask(archive: str, paths: list[str], options: Options, address: str) -> dict[str, Any]:
    from distributed import Client

    from archive.evidence import find

    files = list(find(paths))
    with Client(address) as client:
        answers = client.gather(client.map(lambda f: ingest_one(archive, f, options), files, pure=False))
    entries = [e for a in answers for e in a["evidence"]]
    return {"evidence": entries, "totals": totals(entries), "archive_version": {}}
