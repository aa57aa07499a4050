"""Answers of the verbs that fill and look after an archive: as tables that fit a terminal, or as data."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.commands.told import show_demo, show_hunt, show_rule
from flows.output import OutputFormat, emit, emit_frame, plain, say, width, write

if TYPE_CHECKING:
    from archive.raw import RawRecord
    from archive.verify import Problem

__all__ = [
    "show_demo",
    "show_fact",
    "show_files",
    "show_hunt",
    "show_ingest",
    "show_problems",
    "show_quarantine",
    "show_raw",
    "show_references",
    "show_rule",
    "show_status",
]

_MOST_FILES = 30  # listed one by one on a terminal
_MOST_REASONS = 10
_COUNTS = ("records", "events", "continuations", "ignored", "duplicates", "quarantined")
_SHORT = {
    "continuations": "cont.",
    "duplicates": "dupl.",
    "quarantined": "quar.",
    "content_bytes": "MB",
    "first_ts": "first",
    "last_ts": "last",
    "days_without_rows": "gaps",
    "first_day": "first",
    "last_day": "last",
    "first_offset": "at byte",
    "byte_offset": "at byte",
    "record_no": "record",
}
_EVIDENCE = {
    "path": pl.String,
    "sha256": pl.String,
    "bytes": pl.Int64,
    "format": pl.String,
    "status": pl.String,
    "reason": pl.String,
} | dict.fromkeys(_COUNTS, pl.Int64)


def show_fact(answer: dict[str, Any], to: OutputFormat, *, quiet: bool = False) -> None:
    """One row; with `quiet` nothing on a terminal."""
    if to is OutputFormat.json:
        emit(answer)
    elif not (quiet and to is OutputFormat.table):
        emit_frame(pl.DataFrame({k: [v if isinstance(v, (str, int)) else str(v)] for k, v in answer.items()}), to)


def show_files(files: list[Path], to: OutputFormat) -> None:
    """Files that were written."""
    if to is OutputFormat.json:
        emit({"files": [str(f) for f in files]})
        return
    rows = [{"file": str(f), "bytes": f.stat().st_size} for f in files]
    emit_frame(pl.DataFrame(rows, schema={"file": pl.String, "bytes": pl.Int64}), to)


def show_references(answer: dict[str, Any], to: OutputFormat) -> None:
    """Reference tables that were loaded."""
    if to is OutputFormat.json:
        emit(answer)
    else:
        rows = list(answer["loaded"].items())
        emit_frame(pl.DataFrame(rows, schema={"table": pl.String, "rows": pl.Int64}, orient="row"), to)
    for path in answer["not_a_reference_table"]:
        say(f"passed over {path}: not the name of a reference table")


def show_ingest(answer: dict[str, Any], to: OutputFormat) -> None:
    """What became of each piece of evidence, and of the records."""
    if to is OutputFormat.json:
        emit(answer)
        return
    rows = [
        {
            **{
                k: e[k]
                for k in (
                    "path",
                    "sha256",
                    "bytes",
                    "format",
                    "status",
                    "reason",
                    "records",
                    "continuations",
                    "duplicates",
                )
            },
            **{k: sum(e[k].values()) for k in ("events", "ignored", "quarantined")},
        }
        for e in answer["evidence"]
    ]
    frame = pl.DataFrame(rows, schema=_EVIDENCE)
    if to is OutputFormat.table:
        _table_of_evidence(frame)
    else:
        emit_frame(frame, to)
    refused = [e for e in answer["evidence"] if e["status"] == "refused"]
    for entry in refused[:_MOST_FILES]:
        say(f"refused {plain(entry['path'])}: {plain(entry['reason'])[:600]}", "red")
    if len(refused) > _MOST_FILES:
        say(f"and {len(refused) - _MOST_FILES} more; -t json has all.", "red")
    t = answer["totals"]
    counts = ", ".join(f"{t[s]} {s}" for s in ("committed", "grown", "known", "refused") if t[s])
    say(f"{t['files']} pieces of evidence: {counts or 'nothing'}.")
    parts = f"{sum(t['events'].values()):,} events, {t['continuations']:,} continuations, "
    parts += f"{sum(t['ignored'].values()):,} ignored, "
    parts += f"{t['duplicates']:,} duplicates, {sum(t['quarantined'].values()):,} quarantined"
    say(f"{t['records']:,} records = {parts}.")
    if t["quarantined"]:
        say("Hint: gatehound quarantine list shows what was refused and why.", "dim")


def _table_of_evidence(frame: pl.DataFrame) -> None:
    """Each file; many files by format and status."""
    if frame.height <= _MOST_FILES:
        shown = frame.select(pl.col("path").alias("file"), "format", "status", *_COUNTS)
    else:
        groups = frame.group_by("format", "status").agg(pl.len().alias("files"), *(pl.col(c).sum() for c in _COUNTS))
        shown = groups.sort("format", "status", nulls_last=True)
    emit_frame(_short_paths(shown, "file"), OutputFormat.table, labels=_SHORT)


def _short_paths(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """Paths from behind: their ends tell them apart."""
    if column not in frame.columns:
        return frame
    size = max(20, width() // 3)
    tail = pl.lit("…") + pl.col(column).str.slice(-(size - 1))
    return frame.with_columns(
        pl.when(pl.col(column).str.len_chars() > size).then(tail).otherwise(pl.col(column)).alias(column)
    )


def show_status(answer: dict[str, Any], section: str | None, to: OutputFormat) -> None:
    """Tables, evidence, coverage and quarantine; one of them in full where `section` says so."""
    if to is OutputFormat.json:
        emit(answer if section is None else answer[section])
        return
    if section is None and to not in (OutputFormat.table, OutputFormat.md):
        section = "tables"
    if section is not None:
        _section(section, pl.DataFrame(answer[section], infer_schema_length=None), to)
        return
    frames = {
        n: pl.DataFrame(answer[n], infer_schema_length=None)
        for n in ("tables", "evidence", "coverage", "quarantine")
        if answer[n]
    }
    if "coverage" in frames:
        frames["coverage"] = _by_source(frames["coverage"])
    if "quarantine" in frames:
        reasons = (
            frames["quarantine"]
            .group_by("format", "reason")
            .agg(pl.col("records").sum(), pl.col("path").n_unique().alias("files"))
        )
        frames["quarantine"] = reasons.sort(["records", "format", "reason"], descending=[True, False, False]).head(
            _MOST_REASONS
        )
    for name, frame in frames.items():
        _section(name, frame, to, title=name)
    if not frames:
        say("The archive is empty. Hint: gatehound ingest PATH reads logs into it.")
    elif to is OutputFormat.table:
        say(
            "Hint: --show coverage gives it by tenant; gatehound quarantine list gives the refused records by file.",
            "dim",
        )


def _section(name: str, frame: pl.DataFrame, to: OutputFormat, title: str | None = None) -> None:
    if to is OutputFormat.table and name == "evidence" and frame.height:
        frame = frame.with_columns((pl.col("content_bytes") / 1e6).round(1)).drop("first_ts", "last_ts")
    if to is OutputFormat.table and name == "quarantine" and "path" in frame.columns:
        show_quarantine(frame, to)
    else:
        emit_frame(frame, to, title=title, prose=["reason"], labels=_SHORT)


def _by_source(coverage: pl.DataFrame) -> pl.DataFrame:
    return (
        coverage.group_by("source")
        .agg(
            pl.col("tenant_id").n_unique().alias("tenants"),
            pl.col("rows").sum(),
            pl.col("first_day").min(),
            pl.col("last_day").max(),
            (pl.col("days_without_rows") > 0).sum().alias("tenants with gaps"),
        )
        .sort("source")
    )


def show_quarantine(frame: pl.DataFrame, to: OutputFormat) -> None:
    """Refused records; on a terminal without the columns that say nothing there."""
    if to is OutputFormat.table:
        telling = [
            "records",
            "record_no",
            "reason",
            "format",
            "path",
            "member",
            "first_offset",
            "byte_offset",
            "excerpt",
            "quarantine_uid",
        ]
        held = [c for c in telling if c in frame.columns and frame[c].null_count() < frame.height]
        frame = _short_paths(frame.select(held).rename({"path": "file"} if held else {}), "file")
        if not frame.height:
            say("Nothing is in quarantine.")
            return
    emit_frame(frame, to, prose=["reason"], labels=_SHORT)


def show_raw(found: "RawRecord", to: OutputFormat | None) -> None:
    """The record: as it is to a file, made harmless to a terminal, or in a row with its place."""
    if to is not None:
        row = {
            "path": found.path,
            "member": found.evidence["member"],
            "sha256": found.evidence["evidence_id"],
            "byte_offset": found.byte_offset,
            "byte_length": found.byte_length,
            "record": found.data.decode("utf-8", "backslashreplace"),
        }
        if to is OutputFormat.json:
            emit(row)
        else:
            emit_frame(pl.DataFrame([row], schema_overrides={"member": pl.String}), to, prose=["record"])
    elif sys.stdout.isatty():
        say(f"{found.path}: bytes {found.byte_offset} to {found.byte_offset + found.byte_length}")
        write(plain(found.data.decode("utf-8", "backslashreplace")) + "\n")
    else:
        sys.stdout.buffer.write(found.data + b"\n")


def show_problems(problems: "list[Problem]", to: OutputFormat) -> bool:
    """What verify found; whether anything of it is an integrity failure."""
    rows = [asdict(p) for p in problems]
    bad = any(p.severity == "integrity" for p in problems)
    if to is OutputFormat.json:
        emit({"ok": not bad, "problems": rows})
    elif rows or to is not OutputFormat.table:
        schema = dict.fromkeys(("severity", "kind", "place", "fact"), pl.String)
        emit_frame(pl.DataFrame([{k: r[k] for k in schema} for r in rows], schema=schema), to, prose=["place", "fact"])
    say("Integrity failure: something is not what was stored." if bad else _intact(problems), "red" if bad else None)
    return bad


def _intact(problems: "list[Problem]") -> str:
    unchecked = sum(p.severity == "warning" for p in problems)
    if unchecked:
        return f"What could be checked is as it was stored; {unchecked} thing(s) could not be checked, see above."
    return "Evidence, custody chain, tables and imported rules are as they were stored."
