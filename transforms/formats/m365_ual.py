"""Microsoft 365 unified audit log.

JSON as the Office 365 Management Activity API gives it (one object a line, an array, or pretty-printed), the CSV of
Search-UnifiedAuditLog and of the Purview portal (the same JSON in the column AuditData), exports of Sentinel's
OfficeActivity table, and the queue that an Exchange server on its own premises keeps (Logging\\CosmosQueue\\audit*.LOG,
the same JSON in the column Data; its times are local, so that the row's own time, which is UTC, is taken).
Specification:
learn.microsoft.com/office/office-365-management-api/office-365-management-activity-api-schema
"""

import csv
import re

import polars as pl

from transforms import csvrows, jsonrows, ual_access, ual_changes, ual_operations
from transforms import ual_fields as u
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_RECORD = re.compile(r'"(?:CreationTime|TimeGenerated)"\s*:')
_MARKS = ('"Workload"', '"RecordType"', '"OfficeWorkload"', '"UserType"', '"OrganizationId"')
_WRAPPER = re.compile(r'\{\s*"(?:value|records|data|items|results)"\s*:\s*\[', re.IGNORECASE)
_OPERATION = re.compile(r'"Operation"\s*:')
_OFFICE = {"TimeGenerated", "Operation", "UserId", "Parameters"}
_QUEUE = "Timestamp,Server,TenantId,RecordType,Data,UserKey,RecordId,Operation,Workload,ResultStatus,Version,Scope"
_QUEUE_ROW = re.compile(r'\d{4}-\d\d-\d\dT[^,]{0,40},[^,]{0,300},[^,]{0,300},[^,]{0,100},"\{""')
# Columns of an OfficeActivity export -> names of the audit record.
_RENAMED = {"TimeGenerated [UTC]": "TimeGenerated", "ResultStatus_": "ResultStatus"}
_OTHER_WORKLOADS = [
    "Aip",
    "AirInvestigation",
    "Compliance",
    "Copilot",
    "CRM",
    "DLP",
    "Dynamics365",
    "Endpoint",
    "Kaizala",
    "MIPLabel",
    "MicrosoftFlow",
    "MicrosoftForms",
    "MicrosoftStream",
    "MicrosoftTeams",
    "MicrosoftTeamsShifts",
    "MicrosoftTodo",
    "MyAnalytics",
    "OneDrive",
    "Planner",
    "PowerApps",
    "PowerBI",
    "PowerPlatform",
    "Project",
    "PublicEndpoint",
    "Quarantine",
    "SecurityComplianceCenter",
    "SharePoint",
    "SkypeForBusiness",
    "Sway",
    "ThreatIntelligence",
    "Viva",
    "WorkplaceAnalytics",
    "Yammer",
]
_MISFIT = "CSV record does not fit its header"
_TO_TABLE = {"mailbox": "access_events", "sign_in": "access_events", "change": "change_events"}


def sniff(head: Head) -> Match | None:
    """Recognise audit records by their keys, exports by their header."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        return _sniff_json(head, start)
    if (queue := _sniff_queue(head)) is not None:
        return queue
    lines = [line for line in head.lines[:2] if not line.lstrip("\ufeff").startswith("#TYPE ")]
    header = set(_header(lines[0] if lines else ""))
    if "AuditData" in header and header & {"Operations", "Operation", "RecordType", "CreationDate"}:
        return Match(0.95, "CSV with a column AuditData", "csv", "csv")
    if {_RENAMED.get(name, name) for name in header} >= _OFFICE:
        return Match(0.8, "CSV export of OfficeActivity", "csv", "officeactivity")
    return None


def _sniff_json(head: Head, start: str) -> Match | None:
    marks = sum(mark in start for mark in _MARKS)
    if not (_RECORD.search(start) and _OPERATION.search(start) and marks >= 2):
        return None
    first = head.lines[0].lstrip("\ufeff \t") if head.lines else ""
    if _WRAPPER.match(start):
        return Match(0.9, "audit records in one JSON document", "json", "json")
    lined = (
        first.startswith("{") and (first.rstrip().endswith("}") or len(head.lines) == 1) and _OPERATION.search(first)
    )
    if lined or (start[0] == "{" and not head.lines):
        return Match(0.9, "audit records, one a line", "lines", "jsonl")
    return Match(0.9, "audit records in one JSON document", "json", "json")


def _sniff_queue(head: Head) -> Match | None:
    lines = [line.lstrip("\ufeff") for line in head.lines[:20]]
    kinds = [line.partition(":")[2].strip() for line in lines if line.startswith("#Log-type:")]
    fields = [_header(line.partition(":")[2]) for line in lines if line.startswith("#Fields:")]
    if kinds[:1] == ["audit"] or any({"Timestamp", "Data", "Operation", "Workload"} <= set(names) for names in fields):
        return Match(0.95, "#Log-type: audit", "lines", "queue")
    if not kinds and not fields and any(_QUEUE_ROW.match(line) for line in lines):
        return Match(0.7, "rows of an audit queue, without a header", "lines", "queue")
    return None


def _header(line: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line.lstrip("\ufeff")]), [])]
    except csv.Error:
        return []


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: access_events, change_events, ignored or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    places = frame.drop("raw")
    if ctx.variant in ("csv", "officeactivity"):
        is_header = _is_header(frame.get_column("raw"), ctx)
        decoded = _from_csv(frame.filter(~is_header), ctx)
        rows = pl.concat(
            [_rows(decoded), _set_aside(frame.filter(is_header), IGNORED, "header")], how="diagonal_relaxed"
        )
    elif ctx.variant == "queue":
        blank = pl.col("raw").str.strip_chars() == ""
        comment = pl.col("raw").str.strip_chars_start("\ufeff").str.starts_with("#")
        note = pl.when(comment).then(pl.lit("header")).when(blank).then(pl.lit("blank line"))
        frame = frame.with_columns(note.alias("note"))
        left = frame.filter(pl.col("note").is_not_null())
        rows = _rows(_from_queue(frame.filter(pl.col("note").is_null()), left.get_column("raw"), ctx))
        rows = pl.concat([rows, _set_aside(left, IGNORED, pl.col("note"))], how="diagonal_relaxed")
    else:
        rows = _rows(jsonrows.decode(frame.lazy(), u.SCHEMA).collect())
    return places.join(rows, on="record_no", how="left").lazy()


def _is_header(raw: pl.Series, ctx: Context) -> pl.Series:
    """Which records are the header; the first block tells it, and exports put together repeat it."""
    typed = raw.str.starts_with("#TYPE ").fill_null(value=False)
    if "header" not in ctx.carry and not (lines := raw.filter(~typed)).is_empty():
        ctx.carry["header_raw"] = lines[0] or ""
        ctx.carry["header"] = _header(ctx.carry["header_raw"])
    again: pl.Series = raw.eq_missing(ctx.carry.get("header_raw", ""))
    return typed | again


def _from_csv(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """The frame with `j`, `bad_json` and, where the CSV itself is at fault, `fault`."""
    header = ctx.carry.get("header", [])
    if ctx.variant == "csv":
        split = csvrows.columns(frame.lazy(), header, ["AuditData"]).drop("raw")
        decoded = jsonrows.decode(split, u.SCHEMA, "c.AuditData").collect()
        empty = pl.col("c.AuditData").is_null()
        fault = pl.coalesce(
            pl.when("bad_csv").then(pl.lit(_MISFIT)),
            pl.when(empty).then(pl.lit("AuditData is empty")),
            pl.when("bad_json").then(pl.lit("AuditData is not a JSON object")),
        )
        return decoded.select("record_no", "j", "bad_json", fault.alias("fault"))
    names = {_RENAMED.get(name, name): name for name in header}
    known = {field.name: names[field.name] for field in u.SCHEMA.fields if field.name in names}
    split_rows = csvrows.columns(frame.lazy(), header, list(known.values())).collect()
    # The columns hold text or JSON in text: the JSON reader sorts out which.
    text = pl.struct(pl.col(f"c.{name}").alias(field) for field, name in known.items()).struct.json_encode()
    split_rows = split_rows.select("record_no", "bad_csv", text.alias("raw"))
    decoded = jsonrows.decode(split_rows.lazy(), u.SCHEMA).collect()
    misfit = pl.when("bad_csv").then(pl.lit(_MISFIT))
    return decoded.select("record_no", "j", "bad_json", misfit.alias("fault"))


def _from_queue(frame: pl.DataFrame, comments: pl.Series, ctx: Context) -> pl.DataFrame:
    """The same of an on-premises audit queue; the row's time takes the place of CreationTime."""
    for line in comments.to_list():
        if (names := _header(line.lstrip("\ufeff").removeprefix("#Fields:"))) and "Data" in names:
            ctx.carry["header"] = names
    split = csvrows.columns(frame.lazy(), ctx.carry.get("header") or _header(_QUEUE), ["Timestamp", "Data"]).drop("raw")
    decoded = jsonrows.decode(split, u.SCHEMA, "c.Data").collect()
    moment = pl.coalesce("c.Timestamp", pl.lit("no time"))
    row = pl.when(pl.col("j").is_not_null()).then(pl.col("j").struct.with_fields(moment.alias("CreationTime")))
    fault = pl.coalesce(
        pl.when("bad_csv").then(pl.lit(_MISFIT)), pl.when("bad_json").then(pl.lit("Data is not a JSON object"))
    )
    return decoded.select("record_no", row.alias("j"), "bad_json", fault.alias("fault"))


def _rows(decoded: pl.DataFrame) -> pl.DataFrame:
    """record_no, disposition, reason and the columns of the event tables."""
    if "fault" not in decoded.columns:
        decoded = decoded.with_columns(pl.lit(None, pl.String).alias("fault"))
    fault = pl.coalesce("fault", pl.when("bad_json").then(pl.lit("not a JSON object")))
    decoded = decoded.select("record_no", fault.alias("fault"), "j")
    flat = decoded.filter(pl.col("fault").is_null()).select("record_no", pl.col("j").struct.unnest())
    kinds = _kinds(u.prepare(flat))
    parts = [_set_aside(decoded.filter(pl.col("fault").is_not_null()), QUARANTINED, pl.col("fault"))]
    for kind, build in (
        ("mailbox", ual_access.mailbox_rows),
        ("sign_in", ual_access.sign_in_rows),
        ("change", ual_changes.change_rows),
    ):
        rows = build(kinds.filter(pl.col("kind") == kind))
        if rows.height:
            untimed = rows.filter(pl.col("ts").is_null())
            parts.append(_set_aside(untimed, QUARANTINED, "time not readable"))
            parts.append(
                rows.filter(pl.col("ts").is_not_null()).with_columns(pl.lit(_TO_TABLE[kind]).alias("disposition"))
            )
    parts.append(_set_aside(kinds.filter(pl.col("kind") == "none"), QUARANTINED, "no Operation"))
    parts.append(_set_aside(kinds.filter(pl.col("kind") == "ignored"), IGNORED, _why_ignored()))
    return pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")


def _set_aside(frame: pl.DataFrame, disposition: str, reason: str | pl.Expr) -> pl.DataFrame:
    why = pl.lit(reason) if isinstance(reason, str) else reason
    return frame.select("record_no", pl.lit(disposition).alias("disposition"), why.alias("reason"))


def _kinds(flat: pl.DataFrame) -> pl.DataFrame:
    """The frame with `kind`, `op` and `target_type`: decided once per (operation, workload), of which there are few."""
    flat = flat.with_columns(pl.coalesce(u.text("Workload"), u.text("OfficeWorkload")).alias("workload"))
    pairs = flat.select("Operation", "workload", pl.col("ResultStatus").is_null().alias("_")).unique(
        ["Operation", "workload"]
    )
    known = [_kind(operation or "", workload) for operation, workload, _ in pairs.rows()]
    decided = pl.DataFrame(known, schema={"kind": pl.String, "op": pl.String, "target_type": pl.String}, orient="row")
    pairs = pairs.select("Operation", "workload").hstack(decided)
    flat = flat.join(pairs, on=["Operation", "workload"], how="left", nulls_equal=True)
    touches = u.text("MailboxGuid").is_not_null() | u.text("MailboxOwnerUPN").is_not_null()
    unknown = (pl.col("kind") == "ignored") & touches & (pl.col("workload") == "Exchange").fill_null(value=True)
    return flat.with_columns(pl.when(unknown).then(pl.lit("mailbox")).otherwise("kind").alias("kind"))


def _kind(operation: str, workload: str | None) -> tuple[str, str, str]:
    """(kind, op, target_type) of an operation."""
    name = ual_operations.normal(operation)
    if not name:
        return "none", "", ""
    if name in ual_access.SIGN_INS:
        return "sign_in", name, ""
    if name in ual_access.MAILBOX_ACTIONS | ual_access.CONTENT_ACTIONS:
        return "mailbox", name, ""
    if workload in (None, "Exchange", "SecurityComplianceCenter", "AzureActiveDirectory"):
        if (found := ual_operations.change(name, directory=workload == "AzureActiveDirectory")) is not None:
            return "change", *found
        if ual_operations.reads(name):
            return "mailbox", name, ""
    return "ignored", name, ""


def _why_ignored() -> pl.Expr:
    named = pl.format("workload {}: not mail or identity", "workload")
    other = pl.lit("operation not about mail or identity")
    return pl.when(pl.col("workload").is_in(_OTHER_WORKLOADS)).then(named).otherwise(other)


FORMAT = Format(
    name="m365_ual",
    title="Microsoft 365 unified audit log",
    spec="https://learn.microsoft.com/office/office-365-management-api/office-365-management-activity-api-schema",
    tables=("access_events", "change_events"),
    parse=parse,
    sniff=sniff,
    gaps=(
        "MailItemsAccessed counts are lower bounds: repeats within an hour are dropped, 24 h after throttling blind",
        "a sync record stands for a whole folder; its items are not named",
        "a mailbox without the licence or with an audit bypass leaves no records",
        "an OfficeActivity export may lack the record id: overlapping exports then count twice",
        "an Exchange server's queue (CosmosQueue) has local times: that of the row, a little later, is taken",
    ),
)
