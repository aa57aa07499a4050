"""The incident report of an archive: hunt, evidence rows, pictures, files."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.pipeline.hunting import as_dict, hunt_archive
from flows.pipeline.ingesting import tool_version
from reports import exports, incident, pictures

if TYPE_CHECKING:
    import duckdb

    from queries.engine import HuntResult

KINDS = ("html", "md", "csv", "jsonl")
_NAMES = {"html": "incident.html", "md": "incident.md", "csv": "findings.csv", "jsonl": "findings.jsonl"}
_ROWS_A_FINDING = 12
_EVIDENCE_SHOWN = 60
_SHOWN = {
    "access_events": [
        "ts", "tenant_id", "principal_id", "credential_id", "protocol", "action", "op_raw", "outcome", "src_ip", "mailbox_id",
        "op_count", "item_count", "retr_count", "dele_count", "maildrop_n", "bytes_out", "user_agent", "reason",
    ],
    "mail_events": ["ts", "tenant_id", "event", "op_raw", "src_ip", "mail_from", "rcpt", "size_bytes", "status_text"],
    "change_events": ["ts", "tenant_id", "op", "op_raw", "actor_id", "src_ip", "target_id", "attr", "new_value"],
}  # fmt: skip


def write_report(
    archive: Archive,
    out: Path,
    kinds: list[str],
    *,
    begin: str | None = None,
    end: str | None = None,
    title: str = "Incident report",
    clobber: bool = False,
    result: "HuntResult | None" = None,
) -> list[Path]:
    """Hunts (unless a result is given) and writes the report's files and their manifest.

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
        result = hunt_archive(archive, begin=begin, end=end)
    material = gather(archive, result, title)
    makers = {
        "html": lambda: incident.html(material),
        "md": lambda: incident.markdown(material),
        "csv": lambda: exports.findings_csv(material.hunt),
        "jsonl": lambda: exports.findings_jsonl(material.hunt),
    }
    files = {_NAMES[k]: makers[k]().encode() for k in kinds}
    files["manifest.json"] = exports.manifest(
        files, material.hunt, _inputs(archive), _sources(material.hunt["detections_run"]), material.tool_version
    ).encode()
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (out / name).write_bytes(content)
    archive.custody("report", {"run_id": material.hunt["run_id"], "files": {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}})
    return [out / name for name in files]


def gather(archive: Archive, result: "HuntResult", title: str) -> incident.Material:
    """Everything that the report shows."""
    from queries.catalogue import catalogue

    hunt = as_dict(result)
    con = archive.connect()
    detections = {
        d.id: {
            "title": d.title, "hypothesis": d.hypothesis, "techniques": [f"{a.technique} {a.name}" for a in d.attack],
            "blind_spots": list(d.blind_spots), "runbook": list(d.runbook), "false_positives": list(d.false_positives),
        }
        for d in catalogue()
    }  # fmt: skip
    findings = [f for c in hunt["cases"] for f in c["findings"]]
    rows = {f["finding_id"]: _rows(con, f) for f in findings}
    register = archive.scan("evidence").filter(pl.col("status") != "refused").sort("path", "member").collect()
    return incident.Material(
        hunt=hunt, detections=detections, rows=rows, evidence=_register(register), evidence_note=_note(archive, register),
        pictures=_pictures(con, hunt), tool_version=tool_version(), title=title, made_at=datetime.now(UTC).replace(microsecond=0),
    )  # fmt: skip


def _rows(con: "duckdb.DuckDBPyConnection", finding: dict[str, Any]) -> tuple[pl.DataFrame, int]:
    """The first evidence rows of a finding, with where each lies, and how many there are in all."""
    table, uids = finding["evidence"]["table"], finding["evidence"]["event_uids"]
    columns = _SHOWN[table]
    held = con.sql(
        f"""
        with files as (
            select evidence_id, any_value(regexp_extract(path, '[^/]*$') || coalesce('!' || member, '')) as file
            from evidence group by evidence_id
        )
        select {", ".join("e." + c for c in columns)}, e.event_uid, f.file, e.byte_offset
        from {table} e left join files f using (evidence_id)
        where e.event_uid in (select unnest($uids)) and e.date between $first::date and $last::date
        order by e.ts, e.event_uid
        """,
        params={"uids": uids[:_ROWS_A_FINDING], "first": finding["first_seen"][:10], "last": finding["last_seen"][:10]},
    ).pl()
    filled = [c for c in held.columns if held[c].null_count() < held.height]
    return held.select(filled), max(finding["evidence"].get("count", len(uids)), held.height)


def _register(register: pl.DataFrame) -> pl.DataFrame:
    label = pl.col("path").str.extract(r"([^/]*)$") + pl.when(pl.col("member").is_not_null()).then("!" + pl.col("member")).otherwise(pl.lit(""))
    return register.head(_EVIDENCE_SHOWN).select(
        label.alias("file"), pl.col("evidence_id").str.slice(0, 16).alias("sha256 (first 16)"), "format", "records", "events", "continuations",
        "ignored", "duplicates", "quarantined", pl.col("first_ts").alias("first event"), pl.col("last_ts").alias("last event"),
        pl.when(pl.col("tz_basis") == "assumed").then(pl.col("tz") + " (assumed)").otherwise(pl.col("tz")).alias("zone"),
    )  # fmt: skip


def _note(archive: Archive, register: pl.DataFrame) -> str:
    refused = archive.scan("evidence").filter(pl.col("status") == "refused").select(pl.len()).collect().item()
    text = f"{register.height} pieces of evidence with {register['records'].sum():,} records: {register['events'].sum():,} events, "
    text += f"{register['continuations'].sum():,} continuations, {register['ignored'].sum():,} ignored for a stated reason, "
    text += f"{register['duplicates'].sum():,} duplicates, {register['quarantined'].sum():,} quarantined. {refused} files were refused."
    more = register.height - _EVIDENCE_SHOWN
    return text + (f" The first {_EVIDENCE_SHOWN} are listed; all hashes stand in manifest.json." if more > 0 else "")


def _inputs(archive: Archive) -> dict[str, str]:
    rows = archive.scan("evidence").filter(pl.col("status") != "refused").select("path", "member", "evidence_id").collect()
    return {p + (f"!{m}" if m else ""): e for p, m, e in rows.iter_rows()}


def _sources(ids: list[str]) -> dict[str, str]:
    from queries.catalogue import find

    return {i: hashlib.sha256(find(i).path.read_bytes()).hexdigest() for i in ids}


def _pictures(con: "duckdb.DuckDBPyConnection", hunt: dict[str, Any]) -> list[incident.Picture]:
    return pictures_of(con, hunt) if hunt["cases"] else []


def pictures_of(con: "duckdb.DuckDBPyConnection", hunt: dict[str, Any]) -> list[incident.Picture]:
    """Timeline of the findings, tenants by day, and the balance of the journal mailboxes that were found."""
    shown = [incident.Picture("Findings over time", "One lane per case; the bar spans its findings, times are UTC.", pictures.timeline(hunt["cases"]))]
    days = con.sql(
        """
        select date, tenant_id, sum(n_ops)::bigint as n from context_days
        where date between $first::date and $last::date and tenant_id is not null group by all order by all
        """,
        params={"first": hunt["window"]["from"][:10], "last": hunt["window"]["to"][:10]},
    ).pl()  # fmt: skip
    marks = _marks(hunt)
    if days.height:
        marked = days.join(marks, on=["date", "tenant_id"], how="left").with_columns(pl.col("n_suspicious").fill_null(0))
        caption = "Operations of each tenant by UTC day; marked days carry findings of the cases."
        shown.append(incident.Picture("Tenants over time", caption, pictures.tenant_time(marked)))
    boxes = sorted({m for c in hunt["cases"] for f in c["findings"] if f["detection"].startswith("X01") for m in c["entities"]["mailboxes"]})
    if boxes:
        ledger = con.sql(
            """
            select date, mailbox_id, sum(delivered)::bigint as delivered, sum(retrieved)::bigint as retrieved from journal_hours
            where mailbox_id in (select unnest($boxes)) and date between $first::date and $last::date group by all order by all
            """,
            params={"boxes": boxes, "first": hunt["window"]["from"][:10], "last": hunt["window"]["to"][:10]},
        ).pl()  # fmt: skip
        if ledger.height:
            caption = "Messages delivered into the journal mailbox and retrieved from it by UTC day: every message should leave once."
            shown.append(incident.Picture("Balance of the journal", caption, pictures.ledger(ledger)))
    return shown


def _marks(hunt: dict[str, Any]) -> pl.DataFrame:
    """Days of the findings by tenant."""
    rows = [
        {"tenant_id": tenant, "first": f["first_seen"][:10], "last": f["last_seen"][:10]}
        for c in hunt["cases"]
        for f in c["findings"]
        for tenant in (f.get("entities") or c["entities"])["tenant_ids"]
    ]
    empty = pl.DataFrame(schema={"date": pl.Date, "tenant_id": pl.String, "n_suspicious": pl.Int64})
    if not rows:
        return empty
    spans = pl.DataFrame(rows).with_columns(pl.col("first", "last").str.to_date())
    days = spans.with_columns(pl.date_ranges("first", "last").alias("date")).explode("date", empty_as_null=True)
    return days.group_by("date", "tenant_id").agg(pl.len().cast(pl.Int64).alias("n_suspicious"))
