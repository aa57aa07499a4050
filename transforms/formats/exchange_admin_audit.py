"""Exchange admin audit log, as Search-AdminAuditLog's objects are exported: JSON (ConvertTo-Json) or CSV (Export-Csv).

One object per cmdlet that ran: CmdletName, ObjectModified, CmdletParameters and ModifiedProperties (lists of names and
values; a CSV keeps them only where the export spelt them out), Caller, Succeeded, Error, RunDate, OriginatingServer.
RunDate is UTC in JSON's form ``/Date(...)/``, has an offset, or is in the zone of the machine that exported.
Specification: learn.microsoft.com/exchange/policy-and-compliance/admin-audit-logging/log-structure
"""

import re

import polars as pl

from transforms import csvrows, entra_tables, jsonrows, ual_cmdlets, ual_times, ual_values
from transforms import ual_fields as u
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_CORE = {"CmdletName", "RunDate", "Caller"}
_MARK = re.compile(r'"CmdletName"\s*:')
_NAMES = (
    "CmdletName ObjectModified ModifiedObjectResolvedName CmdletParameters ModifiedProperties Caller ExternalAccess "
    "Succeeded Error RunDate OriginatingServer Identity ClientIP SessionId AppId ClientAppId"
)
_TEXTS = _NAMES.split()
_PAIR = pl.List(pl.Struct(dict.fromkeys(("Name", "Value", "OldValue", "NewValue"), pl.String())))
_LISTS = ("CmdletParameters", "ModifiedProperties")


def sniff(head: Head) -> Match | None:
    """Recognise the objects by their names."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        if not _MARK.search(start) or not all(f'"{name}"' in start for name in _CORE):
            return None
        first = head.lines[0].strip("\ufeff \t") if head.lines else ""
        lined = _MARK.search(first) is not None and first.startswith("{") and first.endswith("}")
        return Match(0.9, "objects of the Exchange admin audit log", "lines" if lined else "json", "json")
    lines = [line for line in head.lines[:2] if not line.lstrip("\ufeff").startswith("#TYPE ")]
    if set(entra_tables.header(lines[0] if lines else "")) >= _CORE:
        return Match(0.9, "CSV of the Exchange admin audit log", "csv", "csv")
    return None


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: change_events, ignored (header, cmdlet that only reads) or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    read = _from_csv(frame, ctx) if ctx.variant == "csv" else _from_json(frame)
    read = read.hstack(ual_times.read(read.get_column("RunDate"), ctx, "local"))
    read = ual_cmdlets.decide(read.with_columns(**_given()))
    read = read.with_columns(_note())
    events = read.filter(pl.col("reason_why").is_null())
    told = ual_cmdlets.rows(events.drop([name for name in events.columns if name[:1].isupper()]), _settings(events))
    told = told.with_columns(disposition=pl.lit("change_events"), source=pl.lit("exchange_admin_audit"))
    set_aside = read.filter(pl.col("reason_why").is_not_null()).select(
        "record_no",
        pl.when(pl.col("reason_why").is_in(["header", ual_cmdlets.READS]))
        .then(pl.lit(IGNORED))
        .otherwise(pl.lit(QUARANTINED))
        .alias("disposition"),
        pl.col("reason_why").alias("reason"),
    )
    joined = pl.concat([told.drop("reason_why", "note"), set_aside], how="diagonal_relaxed")
    return frame.drop("raw").join(joined, on="record_no", how="left", maintain_order="left").lazy()


def _from_json(frame: pl.DataFrame) -> pl.DataFrame:
    schema = pl.Struct(dict.fromkeys(_TEXTS, pl.String()))
    decoded = jsonrows.decode(frame.select("record_no", "raw").lazy(), schema).collect()
    note = pl.when("bad_json").then(pl.lit("not a JSON object"))
    return decoded.select("record_no", note.alias("note"), pl.col("j").struct.unnest())


def _from_csv(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    raw = frame.get_column("raw")
    typed = raw.str.strip_chars_start("\ufeff").str.starts_with("#TYPE ").fill_null(value=False)
    if "header" not in ctx.carry and not (lines := raw.filter(~typed)).is_empty():
        ctx.carry["header_raw"] = lines[0] or ""
        ctx.carry["header"] = entra_tables.header(lines[0] or "")
    heads = typed | raw.eq_missing(ctx.carry.get("header_raw", ""))
    names = ctx.carry.get("header") or ["?"]
    split = csvrows.columns(frame.select("record_no", "raw").lazy(), names, _TEXTS).collect()
    split = split.with_columns(heads.alias("head")).rename({f"c.{name}": name for name in _TEXTS})
    note = pl.when("head").then(pl.lit("header")).when("bad_csv").then(pl.lit("CSV record does not fit its header"))
    return split.select("record_no", note.alias("note"), *_TEXTS)


def _given() -> dict[str, pl.Expr]:
    worked = u.lower("Succeeded")
    outcome = pl.when(worked == "true").then(pl.lit("success")).when(worked == "false").then(pl.lit("failure"))
    error = u.text("Error")
    app = pl.when(u.lower("AppId") != u.GRAPH).then(u.lower("AppId"))
    return {
        "cmdlet": u.text("CmdletName"),
        "actor": u.text("Caller"),
        "object": pl.coalesce(u.text("ObjectModified"), u.text("ModifiedObjectResolvedName")),
        "org": u.text("ObjectModified").str.extract(r"^([^\s/\\]+\.[^\s/\\]+)[/\\]"),
        "outcome": pl.coalesce(outcome, pl.lit("unknown")),
        "reason": pl.when(error.str.to_lowercase() != "none").then(error.str.slice(0, 500)),
        "ts_raw": u.text("RunDate"),
        "host": pl.col("OriginatingServer").str.extract(r"^\s*([^\s(]+)"),
        "session_id": u.text("SessionId"),
        "src_ip_raw": u.text("ClientIP"),
        "app_id": pl.coalesce(app, u.lower("ClientAppId")),
    }


def _note() -> pl.Expr:
    why = (
        pl.when(pl.col("note").is_not_null())
        .then("note")
        .when(pl.col("cmdlet").is_null())
        .then(pl.lit("no CmdletName"))
        .when(pl.col("ts").is_null())
        .then(pl.lit("time not readable"))
        .when("only_reads")
        .then(pl.lit(ual_cmdlets.READS))
    )
    return why.alias("reason_why")


def _settings(events: pl.DataFrame) -> pl.DataFrame:
    """Parameters and modified properties: JSON lists, cmdlet lines, or texts that the export made of them."""
    # Export-Csv writes a list's type where it does not write the list.
    typed = r"^\s*(?:System|Microsoft\.Exchange)\.[\w.]+"
    events = events.with_columns(pl.when(~pl.col(name).str.contains(typed)).then(name).alias(name) for name in _LISTS)
    text = pl.struct(*_LISTS).struct.json_encode().alias("raw")
    schema = pl.Struct(dict.fromkeys(_LISTS, _PAIR))
    lists = jsonrows.decode(events.select("record_no", text).lazy(), schema).collect()
    lists = lists.select("record_no", pl.col("j").struct.unnest())
    parts = []
    for name in _LISTS:
        long = lists.select("record_no", name).explode(name).drop_nulls(name)
        long = long.select("record_no", pl.col(name).struct.unnest()).filter(
            pl.any_horizontal(pl.col(c).is_not_null() for c in ("Name", "Value", "NewValue"))
        )
        line = long.filter(pl.col("Name").is_null() & pl.col("Value").str.starts_with("-"))
        parts.append(ual_values.cmdlet_settings(line.select("record_no", line="Value")))
        rest = long.join(line.select("record_no").unique(), on="record_no", how="anti")
        parts.append(
            rest.select(
                "record_no",
                name=pl.col("Name").fill_null(""),
                old=pl.col("OldValue"),
                new=pl.coalesce("NewValue", "Value"),
            )
        )
        # A list of plain texts.
        lost = events.select("record_no", u.text(name).alias("new")).drop_nulls()
        lost = lost.join(long.select("record_no").unique(), on="record_no", how="anti")
        lost = lost.filter(~pl.col("new").is_in(["[]", "{}"]))
        parts.append(lost.select("record_no", name=pl.lit(""), old=pl.lit(None, pl.String), new=pl.col("new")))
    return pl.concat(parts)


FORMAT = Format(
    name="exchange_admin_audit",
    title="Exchange admin audit log",
    spec="https://learn.microsoft.com/exchange/policy-and-compliance/admin-audit-logging/log-structure",
    tables=("change_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "the XML that Search-AdminAuditLog mails is not read",
        "a time without an offset is taken to be in the zone that ingest was given",
        "records have no id: two exports of the same log count twice",
        "a CSV keeps parameters only where the export spelt them out",
        "the unified audit, the audit queue and the cmdlet log have the same changes: count one source",
    ),
)
