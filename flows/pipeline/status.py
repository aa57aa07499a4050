"""What an archive holds: tables, days, evidence, quarantine."""

from typing import Any

import polars as pl

from archive.store import Archive
from data_contracts import contract, names


def status_of(archive: Archive) -> dict[str, Any]:
    """Tables with rows, days and version; evidence by status and format; quarantine by reason."""
    versions = archive.versions()
    tables = [_table(archive, name, versions[name]) for name in names() if name in versions]
    evidence = (
        archive.scan("evidence")
        .group_by("status", "format")
        .agg(
            pl.len().alias("files"),
            *(
                pl.col(c).sum()
                for c in ("content_bytes", "records", "events", "continuations", "ignored", "duplicates", "quarantined")
            ),
            pl.col("first_ts").min(),
            pl.col("last_ts").max(),
        )
        .sort("status", "format")
        .collect()
    )
    coverage = _coverage(archive)
    return {
        "archive": archive.uri,
        "tables": tables,
        "evidence": evidence.to_dicts(),
        "coverage": coverage.to_dicts(),
        "quarantine": quarantine_groups(archive).to_dicts(),
    }


def _table(archive: Archive, name: str, version: int) -> dict[str, Any]:
    rules = contract(name)
    frame = archive.scan(name)
    counted = [pl.len().alias("rows")]
    if rules.partitioned_by:
        day = pl.col(rules.partitioned_by)
        counted += [day.n_unique().alias("days"), day.min().alias("first_day"), day.max().alias("last_day")]
    row = frame.select(counted).collect().row(0, named=True)
    return {"table": name, "kind": rules.kind, "version": version, "files": len(archive.files(name)), **row}


def _coverage(archive: Archive) -> pl.DataFrame:
    """Rows and days by source and tenant, with the days in between that have none."""
    parts = [
        archive.scan(t)
        .group_by("source", "tenant_id")
        .agg(
            pl.len().alias("rows"),
            pl.col("date").n_unique().alias("days"),
            pl.col("date").min().alias("first_day"),
            pl.col("date").max().alias("last_day"),
        )
        .collect()
        for t in names("event")
    ]
    merged = pl.concat(parts).sort("source", "tenant_id", nulls_last=True)
    span = (pl.col("last_day") - pl.col("first_day")).dt.total_days() + 1
    return merged.with_columns((span - pl.col("days")).alias("days_without_rows"))


def quarantine_groups(archive: Archive) -> pl.DataFrame:
    """Refused records by file and reason."""
    return (
        archive.scan("quarantine")
        .group_by("path", "member", "format", "stage", "reason")
        .agg(pl.len().alias("records"), pl.col("byte_offset").min().alias("first_offset"), pl.col("excerpt").first())
        .sort(["records", "path", "reason"], descending=[True, False, False])
        .collect()
    )


def quarantine_rows(archive: Archive, path: str | None, reason: str | None, limit: int) -> pl.DataFrame:
    """Refused records with their place."""
    rows = archive.scan("quarantine")
    if path is not None:
        rows = rows.filter(pl.col("path").str.ends_with(path))
    if reason is not None:
        rows = rows.filter(pl.col("reason") == reason)
    columns = [
        "quarantine_uid",
        "path",
        "member",
        "record_no",
        "byte_offset",
        "byte_length",
        "stage",
        "reason",
        "excerpt",
    ]
    return rows.select(columns).sort("path", "record_no").head(limit).collect()
