"""The incident report of an archive: hunt, evidence rows, pictures, files."""

import hashlib
import os.path
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.pipeline.drawing import pictures_of
from flows.pipeline.hunting import hunt_archive, told
from flows.pipeline.registering import tool_version
from flows.pipeline.rule_files import known
from flows.pipeline.triage import judged
from reports import exports, incident

if TYPE_CHECKING:
    import duckdb

    from queries.engine import HuntResult

KINDS = ("html", "md", "csv", "jsonl")
_NAMES = {"html": "incident.html", "md": "incident.md", "csv": "findings.csv", "jsonl": "findings.jsonl"}
_ROWS_A_FINDING = 12
_EVIDENCE_SHOWN = 60
_SHOWN = {
    "access_events": [
        "ts",
        "tenant_id",
        "principal_id",
        "credential_id",
        "protocol",
        "action",
        "op_raw",
        "outcome",
        "src_ip",
        "mailbox_id",
        "op_count",
        "item_count",
        "retr_count",
        "dele_count",
        "maildrop_n",
        "bytes_out",
        "user_agent",
        "reason",
    ],
    "mail_events": ["ts", "tenant_id", "event", "op_raw", "src_ip", "mail_from", "rcpt", "size_bytes", "status_text"],
    "change_events": ["ts", "tenant_id", "op", "op_raw", "actor_id", "src_ip", "target_id", "attr", "new_value"],
}


def write_report(
    archive: Archive,
    out: Path,
    kinds: list[str],
    *,
    begin: str | None = None,
    end: str | None = None,
    detections: list[str] | None = None,
    title: str = "Incident report",
    clobber: bool = False,
    result: "HuntResult | None" = None,
) -> list[Path]:
    """Hunts (unless a result is given) and writes the report's files, pictures for Markdown, and the manifest of all.

    Raises:
        UsageError: no such kind, or a file is there already and `clobber` is not set.
    """
    unknown = [k for k in kinds if k not in KINDS]
    if unknown or not kinds:
        raise UsageError(f"--to {','.join(unknown)}: no such kind of report", f"one or more of {', '.join(KINDS)}")
    targets = [out / _NAMES[k] for k in kinds] + [out / "manifest.json"]
    standing = [t for t in targets if t.exists()]
    if standing and not clobber:
        raise UsageError(f"{standing[0]} exists", "give --clobber to overwrite it")
    if result is None:
        result = hunt_archive(archive, begin=begin, end=end, detections=detections)
    material = gather(archive, result, title)
    makers: dict[str, Callable[[], str]] = {
        "html": lambda: incident.html(material),
        "md": lambda: incident.markdown(material),
        "csv": lambda: exports.findings_csv(material.hunt),
        "jsonl": lambda: exports.findings_jsonl(material.hunt),
    }
    files = {_NAMES[k]: makers[k]().encode() for k in dict.fromkeys(kinds)}
    if "md" in kinds:
        files |= {p.file: p.svg.encode() for p in material.pictures}
    files["manifest.json"] = exports.manifest(
        files,
        material.hunt,
        _inputs(archive),
        _sources(archive, material.hunt["detections_run"]),
        material.tool_version,
    ).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    archive.custody(
        "report",
        {"run_id": material.hunt["run_id"], "files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}},
    )
    return [out / name for name in files]


def gather(archive: Archive, result: "HuntResult", title: str) -> incident.Material:
    """Everything that the report shows."""
    hunt = told(result, judged=judged(archive))
    detections = {
        d.id: {
            "title": d.title,
            "hypothesis": d.hypothesis,
            "techniques": [f"{a.technique} {a.name}" for a in d.attack],
            "blind_spots": list(d.blind_spots),
            "runbook": list(d.runbook),
            "false_positives": list(d.false_positives),
        }
        for d in known(archive)
    }
    register = archive.scan("evidence").sort("path", "member", "content_bytes").collect()
    taken = register.filter(pl.col("status") != "refused")
    folder, labels = _labels(taken)
    findings = [f for c in hunt["cases"] for f in c["findings"]]
    with archive.connect() as con:
        rows, named, times = _evidence_rows(con, findings, labels)
        pictures = pictures_of(con, hunt, times)
    return incident.Material(
        hunt=hunt,
        detections=detections,
        rows=rows,
        evidence=_register(taken, labels, named),
        evidence_note=_note(taken, register.height - taken.height, folder),
        pictures=pictures,
        tool_version=tool_version(),
        title=title,
        made_at=hunt["run_at"].replace(microsecond=0),
    )


def _labels(taken: pl.DataFrame) -> tuple[str, pl.DataFrame]:
    """The folder that all evidence has in common, and what each piece is called below it."""
    paths = taken["path"].to_list()
    folder = (
        os.path.commonpath([os.path.dirname(p) for p in paths])
        if paths and all(os.path.isabs(p) for p in paths)
        else ""
    )
    cut = len(folder.rstrip("/")) + 1 if folder else 0
    label = pl.col("path").str.slice(cut) + pl.lit("!") + pl.col("member")
    named = taken.select("evidence_id", pl.coalesce(label, pl.col("path").str.slice(cut)).alias("file"))
    return folder, named.unique("evidence_id", keep="first", maintain_order=True)


def _evidence_rows(
    con: "duckdb.DuckDBPyConnection", findings: list[dict[str, Any]], labels: pl.DataFrame
) -> tuple[dict[str, tuple[pl.DataFrame, int]], set[str], dict[str, list[Any]]]:
    """By finding the first evidence rows and how many there are; the files that these lie in; by finding all times.

    One query for each table: an archive of years is not read once for every finding.
    """
    rows: dict[str, tuple[pl.DataFrame, int]] = {}
    times: dict[str, list[Any]] = {}
    files: set[str] = set()
    for table, columns in _SHOWN.items():
        of_table = [f for f in findings if f["evidence"]["table"] == table and f["evidence"]["event_uids"]]
        if not of_table:
            continue
        held = (
            con.sql(
                f"""
            select {", ".join(columns)}, event_uid, evidence_id, byte_offset::varchar as byte_offset from {table}
            where event_uid in (select unnest($uids)) and date between $first::date and $last::date
            order by ts, event_uid
            """,
                params={
                    "uids": sorted({u for f in of_table for u in f["evidence"]["event_uids"]}),
                    "first": min(f["first_seen"] for f in of_table)[:10],
                    "last": max(f["last_seen"] for f in of_table)[:10],
                },
            )
            .pl()
            .join(labels, on="evidence_id", how="left", maintain_order="left")
        )
        for finding in of_table:
            own = held.filter(pl.col("event_uid").is_in(finding["evidence"]["event_uids"]))
            times[finding["finding_id"]] = own["ts"].to_list()
            shown = own.head(_ROWS_A_FINDING)
            files |= set(shown["evidence_id"])
            filled = [c for c in (*columns, "event_uid", "file", "byte_offset") if shown[c].null_count() < shown.height]
            rows[finding["finding_id"]] = (shown.select(filled), max(finding["evidence"]["count"], shown.height))
    return rows, files, times


def _register(taken: pl.DataFrame, labels: pl.DataFrame, named: set[str]) -> pl.DataFrame:
    """The register of evidence, files that hold evidence rows of the report first."""
    sheet = taken.join(labels, on="evidence_id", how="left", maintain_order="left")
    first = sheet.with_columns((~pl.col("evidence_id").is_in(list(named))).alias("other")).sort(
        "other", maintain_order=True
    )
    return first.head(_EVIDENCE_SHOWN).select(
        "file",
        pl.col("evidence_id").alias("sha256"),
        "format",
        "records",
        "events",
        "continuations",
        "ignored",
        "duplicates",
        "quarantined",
        pl.col("first_ts").alias("first event"),
        pl.col("last_ts").alias("last event"),
        pl.when(pl.col("tz_basis") == "assumed")
        .then(pl.col("tz") + " (assumed)")
        .otherwise(pl.col("tz"))
        .alias("zone"),
    )


def _note(taken: pl.DataFrame, refused: int, folder: str) -> str:
    text = (
        f"{taken.height} pieces of evidence with {taken['records'].sum():,} records: {taken['events'].sum():,} events, "
    )
    text += f"{taken['continuations'].sum():,} continuations, {taken['ignored'].sum():,} ignored for a stated reason, "
    text += f"{taken['duplicates'].sum():,} duplicates, {taken['quarantined'].sum():,} quarantined. "
    text += f"{refused} files were refused. " if refused else "No file was refused. "
    text += f"File names are below {folder}. " if folder else ""
    if taken.height > _EVIDENCE_SHOWN:
        text += (
            f"{_EVIDENCE_SHOWN} files are listed, first those that hold rows shown above; manifest.json has all hashes."
        )
    return text.strip()


def _inputs(archive: Archive) -> dict[str, str]:
    """The newest hash of each piece of evidence, by its path."""
    rows = archive.scan("evidence").filter(pl.col("status") != "refused").sort("ingested_at", "content_bytes")
    return {
        p + (f"!{m}" if m else ""): e for p, m, e in rows.select("path", "member", "evidence_id").collect().iter_rows()
    }


def _sources(archive: Archive, ids: list[str]) -> dict[str, str]:
    held = {d.id: d.source for d in known(archive)}
    return {i: hashlib.sha256(held[i].encode()).hexdigest() for i in ids if i in held}
