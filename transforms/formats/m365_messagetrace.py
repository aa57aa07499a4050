"""Exchange Online message trace: Get-MessageTrace and its reporting web service, and the historical search's CSV.

Specifications: learn.microsoft.com/powershell/module/exchange/get-messagetrace (JSON, or CSV of Export-Csv; also
Get-MessageTraceDetail), learn.microsoft.com/exchange/monitoring/trace-an-email-message/message-trace-modern-eac (CSV:
summary, one row per message with all its recipients, and detail, which has message tracking's columns). Times are UTC,
with or without Z, or milliseconds since 1970 in ``/Date(...)/``.
"""

import csv
import re
from collections.abc import Sequence

import polars as pl

from transforms import csvrows, jsonrows, msgtrk_rows
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

NAME = "m365_messagetrace"
SUMMARY = (
    "origin_timestamp_utc", "sender_address", "recipient_status", "message_subject", "total_bytes", "message_id",
    "network_message_id", "original_client_ip", "directionality", "connector_id", "delivery_priority",
)  # fmt: skip
DETAIL = ("date_time_utc", *(name.replace("-", "_") for name in msgtrk_rows.EXCHANGE_2013[1:]))
_KEYS = (
    "Organization MessageId Received SenderAddress RecipientAddress Subject Status ToIP FromIP Size MessageTraceId "
    "Date Event Action Detail"
)
SCHEMA = pl.Struct(dict.fromkeys(_KEYS.split(), pl.String()))
_TRACE_COLUMNS = {"MessageTraceId", "RecipientAddress"}
# kind of CSV: columns by which its header is known
_MARKS = {
    "summary": {"origin_timestamp_utc", "recipient_status"},
    "detail": {"date_time_utc", "event_id"},
    "cmdlet": _TRACE_COLUMNS,
}
_BARE = {"summary": SUMMARY, "detail": DETAIL}
_HEADER_WORDS = "origin_timestamp_utc|date_time_utc|MessageTraceId"
_WORDS = r'^[\ufeff\w", ]+$'  # a header holds nothing else, a record a time
_MOST_HEADERS = 32
_MISFIT = "CSV record does not fit its header"
_NO_HEADER = "CSV record without a header"
_BAD_TIME = "time is not readable"
_NO_TRACE = "neither recipient nor status: no record of a message trace"
_JSON = re.compile(r'"MessageTraceId"\s*:')
_RECIPIENT = re.compile(r'"(?:RecipientAddress|SenderAddress|Event)"\s*:')
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[\d.]{0,8}Z?")

# status of the trace, event of the detail, last word of the summary's recipient_status: event and outcome
_EVENTS = {
    "delivered": ("deliver", "success"),
    "deliver": ("deliver", "success"),
    "send": ("send", "success"),
    "send external": ("send", "success"),
    "sendexternal": ("send", "success"),
    "expanded": ("expand", "success"),
    "expand": ("expand", "success"),
    "resolve": ("expand", "success"),
    "redirect": ("expand", "success"),
    "quarantined": ("quarantine", "success"),
    "quarantine": ("quarantine", "success"),
    "filteredasspam": ("verdict", "success"),
    "spam": ("verdict", "success"),
    "malware": ("verdict", "success"),
    "pending": ("defer", "unknown"),
    "defer": ("defer", "failure"),
    "failed": ("bounce", "failure"),
    "fail": ("bounce", "failure"),
    "receive": ("receive", "success"),
    "submit": ("submit", "success"),
    "transfer": ("transfer", "success"),
    "drop": ("remove", "unknown"),
}
_SEVERAL = ("deliver", "send", "expand", "quarantine", "verdict", "defer", "bounce", "receive")


def sniff(head: Head) -> Match | None:
    """Claims JSON by its keys and CSV by its header, or by rows of a known shape where the header is cut off."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        if not (_JSON.search(start) and _RECIPIENT.search(start)):
            return None
        first = (head.lines[0] if head.lines else start).strip("\ufeff \t\r")
        lined = first.startswith("{") and first.endswith("}") and _JSON.search(first) and '"value"' not in first
        return Match(0.9, "message trace records", "lines" if lined else "json", "json")
    for line in head.lines[:5]:
        if (kind := _kind(_names(line))) is not None:
            return Match(0.95, f"columns of a message trace ({kind})", "csv", kind)
    return _sniff_rows(head)


def _sniff_rows(head: Head) -> Match | None:
    rows = [csvrows.fields(line) or [] for line in head.lines[:50] if line.strip()]
    dated = [row for row in rows if row and _TIME.fullmatch(row[0])]
    summary = sum(len(row) == len(SUMMARY) and "##" in row[2] for row in dated)
    place, server = DETAIL.index("event_id"), DETAIL.index("server_hostname")
    detail = sum(
        len(row) == len(DETAIL) and row[place].upper() in msgtrk_rows.EVENT_IDS and "outlook.com" in row[server].lower()
        for row in dated
    )
    for kind, count in (("summary", summary), ("detail", detail)):
        if count * 2 > len(rows):
            return Match(0.65, f"rows of a message trace ({kind}), without a header", "csv", kind)
    return None


def _names(line: str) -> tuple[str, ...]:
    try:
        return tuple(name.strip() for name in next(csv.reader([line.lstrip("\ufeff")]), []))
    except csv.Error:
        return ()


def _kind(names: Sequence[str]) -> str | None:
    return next((kind for kind, marks in _MARKS.items() if marks <= set(names)), None)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: mail_events, ignored (header, shadow copy, notice) or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    parts = [_json(frame)] if ctx.variant in ("", "json") else _csv(frame, ctx)
    rows = pl.concat([part for part in parts if part.height] or parts[:1], how="diagonal_relaxed")
    return frame.drop("raw").join(rows, on="record_no", how="left").lazy()


def _json(frame: pl.DataFrame) -> pl.DataFrame:
    decoded = jsonrows.decode(frame.lazy(), SCHEMA).select("record_no", "bad_json", "j").collect()
    bad = _aside(decoded.filter("bad_json"), QUARANTINED, "not a JSON object")
    flat = decoded.filter(~pl.col("bad_json")).select("record_no", pl.col("j").struct.unnest())
    return pl.concat([bad, _traces(flat)], how="diagonal_relaxed")


def _csv(frame: pl.DataFrame, ctx: Context) -> list[pl.DataFrame]:
    """Records read by the header above them, or by the known one of their kind where it is cut off."""
    raw = pl.col("raw")
    maybe = frame.filter(raw.str.contains(_HEADER_WORDS) & raw.str.contains(_WORDS))["raw"]
    maybe = maybe.unique(maintain_order=True).head(4 * _MOST_HEADERS)
    headers = {line: names for line in maybe.to_list() if _kind(names := _names(line)) is not None}
    known = list(dict.fromkeys([*ctx.carry.get("headers", []), *headers.values()]))[:_MOST_HEADERS]
    place = {line: known.index(names) for line, names in headers.items() if names in known}
    is_header, blank = raw.is_in(list(headers)), raw.str.strip_chars() == ""
    typed = raw.str.contains("^\\ufeff?#TYPE ")
    # a header that is one too many has no place: its rows have none either
    mine = pl.when(is_header).then(raw.replace_strict(place, default=-2, return_dtype=pl.Int64))
    marked = frame.with_columns(mine.forward_fill().fill_null(ctx.carry.get("header", -1)).alias("layout"))
    ctx.carry["headers"] = known
    ctx.carry["header"] = marked["layout"][-1] if marked.height else ctx.carry.get("header", -1)
    parts = [
        _aside(frame.filter(is_header | typed), IGNORED, "header"),
        _aside(frame.filter(blank), IGNORED, "blank line"),
    ]
    rows = marked.filter(~(is_header | typed | blank))
    for (layout,), part in rows.group_by("layout", maintain_order=True):
        number = int(str(layout))
        bare = _BARE.get(ctx.variant) if number == -1 else None
        layout_names = known[number] if number >= 0 else bare
        if layout_names is None:
            parts.append(_aside(part, QUARANTINED, _NO_HEADER))
        else:
            parts += _split(part, layout_names)
    return parts


def _split(part: pl.DataFrame, names: tuple[str, ...]) -> list[pl.DataFrame]:
    kind = _kind(names)
    split = csvrows.columns(part.lazy(), names).collect()
    misfit = _aside(split.filter("bad_csv"), QUARANTINED, _MISFIT)
    whole = split.filter(~pl.col("bad_csv")).with_columns(source_id=pl.col("raw").str.strip_chars("\ufeff \t\r\n"))
    if kind == "cmdlet":
        texts = {name: f"c.{name}" if name in names else None for name in _KEYS.split()}
        return [misfit, _traces(whole.select("record_no", **{n: _column(c) for n, c in texts.items()}))]
    return [misfit, _summaries(whole) if kind == "summary" else _details(whole)]


def _column(name: str | None) -> pl.Expr:
    return pl.lit(None, dtype=pl.String) if name is None else pl.col(name)


def _aside(frame: pl.DataFrame, disposition: str, reason: str) -> pl.DataFrame:
    return frame.select("record_no", pl.lit(disposition).alias("disposition"), pl.lit(reason).alias("reason"))


def _finish(rows: pl.DataFrame, columns: dict[str, pl.Expr]) -> pl.DataFrame:
    """Rows with `ts_raw` and `ts` to events; those without a time are set aside."""
    basis = pl.when(pl.col("ts_raw").str.contains(r"(?:[zZ]|[+-]\d\d:?\d\d)$")).then(pl.lit("offset"))
    good = rows.filter(pl.col("ts").is_not_null()).select(
        "record_no", "ts", "ts_raw", ts_basis=basis.otherwise(pl.lit("utc")), disposition=pl.lit("mail_events"),
        source=pl.lit(NAME), **columns,
    )  # fmt: skip
    bad = _aside(rows.filter(pl.col("ts").is_null()), QUARANTINED, _BAD_TIME)
    return pl.concat([good, bad], how="diagonal_relaxed")


def _traces(flat: pl.DataFrame) -> pl.DataFrame:
    """Records of Get-MessageTrace (one per message and recipient) and Get-MessageTraceDetail (one per event)."""
    flat = flat.with_columns(pl.col(n).str.strip_chars().replace("", None) for n in _KEYS.split())
    status = pl.coalesce("Status", "Event")
    flat = flat.with_columns(ts_raw=pl.coalesce("Received", "Date"), status=status)
    flat = flat.with_columns(ts=_time(flat["ts_raw"]))
    none = pl.col("status").is_null() & pl.col("RecipientAddress").is_null()
    parts = [_aside(flat.filter(none), QUARANTINED, _NO_TRACE), _finish(flat.filter(~none), _trace())]
    return pl.concat(parts, how="diagonal_relaxed")


def _trace() -> dict[str, pl.Expr]:
    came, went = pl.col("FromIP"), pl.col("ToIP")
    inbound, outbound = came.is_not_null() & went.is_null(), went.is_not_null() & came.is_null()
    event, outcome = _event(pl.col("status"))
    told_by = pl.concat_str(
        pl.col("RecipientAddress").fill_null(""), "status", pl.col("ts").dt.epoch("us").cast(pl.String),
        pl.col("Action").fill_null(""), separator="|",
    )  # fmt: skip
    size = pl.col("Size").cast(pl.Int64, strict=False)
    return {
        "source_id": (pl.col("MessageTraceId") + "|" + told_by).str.to_lowercase(),
        # Delivered also stands where the next hop is another organisation's.
        "event": pl.when((event == "deliver") & outbound).then(pl.lit("send")).otherwise(event),
        "outcome": outcome,
        "op_raw": pl.col("status"),
        "message_id": _message_id(pl.col("MessageId")),
        "network_message_id": pl.col("MessageTraceId").str.to_lowercase(),
        "direction": msgtrk_rows.directed(inbound, outbound, pl.lit(value=False)),
        "src_ip_raw": came,
        "dst_ip_raw": went,
        "mail_from": msgtrk_rows.sender(pl.col("SenderAddress")),
        "rcpt": pl.col("RecipientAddress"),
        "n_rcpt": pl.when(pl.col("RecipientAddress").is_not_null()).then(pl.lit(1, dtype=pl.Int64)),
        "subject": pl.col("Subject"),
        "status_text": pl.col("Detail").str.slice(0, 2000),
        "size_bytes": pl.when(size >= 0).then(size),
        "tenant_domain": pl.coalesce(
            pl.col("Organization").str.to_lowercase(),
            pl.when(inbound).then(msgtrk_rows.domain(pl.col("RecipientAddress"))),
        ),
    }


def _summaries(whole: pl.DataFrame) -> pl.DataFrame:
    """Records of the summary: one per message; what became of it by the last word on each recipient."""
    whole = whole.rename({f"c.{n}": n for n in SUMMARY if f"c.{n}" in whole.columns})
    whole = whole.with_columns(_column(None).alias(n) for n in SUMMARY if n not in whole.columns)
    whole = whole.with_columns(ts_raw=pl.col("origin_timestamp_utc"))
    whole = whole.with_columns(ts=_time(whole["ts_raw"]))
    each = whole.select("record_no", one=pl.col("recipient_status").str.split(";")).explode("one", empty_as_null=True)
    each = each.with_columns(pl.col("one").str.splitn("##", 2).struct.rename_fields(["rcpt", "words"])).unnest("one")
    each = each.with_columns(pl.col("rcpt").str.strip_chars(), word=pl.col("words").str.extract(r"([^,]*)$"))
    event, outcome = _event(pl.col("word").str.strip_chars())
    each = each.filter(pl.col("rcpt") != "").with_columns(event=event, outcome=outcome)
    grouped = each.group_by("record_no").agg(
        rcpt=pl.col("rcpt").first(), recipients="rcpt", events="event", kinds=pl.col("event").n_unique(),
        outcome=pl.col("outcome").first(),
    )  # fmt: skip
    return _finish(whole.join(grouped, on="record_no", how="left"), _summary())


def _summary() -> dict[str, pl.Expr]:
    told = pl.col("directionality").str.to_lowercase()
    incoming, originating = told == "incoming", told == "originating"
    count = pl.col("recipients").list.len()
    author = msgtrk_rows.sender(pl.col("sender_address"))
    size = pl.col("total_bytes").cast(pl.Int64, strict=False)
    best = pl.coalesce(pl.when(pl.col("events").list.contains(event)).then(pl.lit(event)) for event in _SEVERAL)
    return {
        "source_id": pl.col("source_id"),
        "event": pl.coalesce(pl.when(pl.col("kinds") > 1).then(best), pl.col("events").list.first(), pl.lit("other")),
        "outcome": pl.when(pl.col("kinds") == 1).then("outcome").otherwise(pl.lit("unknown")),
        "op_raw": pl.lit("summary"),
        "message_id": _message_id(pl.col("message_id")),
        "network_message_id": pl.col("network_message_id").str.to_lowercase(),
        "direction": msgtrk_rows.directed(incoming, originating, pl.lit(value=False)),
        "src_ip_raw": pl.col("original_client_ip"),
        "mail_from": author,
        "rcpt": pl.col("rcpt"),
        "recipients": pl.when(count > 1).then("recipients"),
        "n_rcpt": pl.when(count > 0).then(count.cast(pl.Int64)),
        "subject": pl.col("message_subject"),
        "status_text": pl.col("recipient_status").str.slice(0, 2000),
        "size_bytes": pl.when(size >= 0).then(size),
        "tenant_domain": pl.when(incoming)
        .then(msgtrk_rows.domain(pl.col("rcpt")))
        .when(originating)
        .then(msgtrk_rows.domain(author)),
    }


def _details(whole: pl.DataFrame) -> pl.DataFrame:
    """Records of the detail report: rows of message tracking."""
    renamed = {f"c.{name}": "c." + name.replace("_", "-") for name in DETAIL if f"c.{name}" in whole.columns}
    whole = whole.rename(renamed)
    missing = [n for n in msgtrk_rows.WANT if f"c.{n}" not in whole.columns]
    whole = whole.with_columns(_column(None).alias(f"c.{n}") for n in missing)
    whole = whole.with_columns(ts_raw=pl.col("c.date-time-utc")).with_columns(ts=_time(whole["c.date-time-utc"]))
    left_out = pl.coalesce(pl.when(holds).then(pl.lit(why)) for why, holds in msgtrk_rows.ignored().items())
    whole = whole.with_columns(reason=pl.when(pl.col("ts").is_not_null()).then(left_out))
    aside = whole.filter(pl.col("reason").is_not_null())
    aside = aside.select("record_no", pl.lit(IGNORED).alias("disposition"), "reason")
    columns = msgtrk_rows.mail(NAME) | {"source_id": pl.col("source_id")}
    del columns["source"]
    told = _finish(whole.filter(pl.col("reason").is_null()), columns)
    return pl.concat([aside, told], how="diagonal_relaxed")


def _event(word: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    lower, names = word.str.to_lowercase(), list(_EVENTS)
    events, outcomes = [e for e, _ in _EVENTS.values()], [o for _, o in _EVENTS.values()]
    return (
        lower.replace_strict(names, events, default="other", return_dtype=pl.String),
        lower.replace_strict(names, outcomes, default="unknown", return_dtype=pl.String),
    )


def _message_id(written: pl.Expr) -> pl.Expr:
    r"""Message-ID in angle brackets, which some exports write as \u003c and \u003e, escaped once more."""
    text = written.str.replace_all(r"\\+u003[cC]", "<").str.replace_all(r"\\+u003[eE]", ">").str.strip_chars()
    bare = text.str.contains(r"^[^<>\s]+$")
    return pl.when(bare).then(pl.format("<{}>", text)).otherwise(text)


def _time(written: pl.Series) -> pl.Series:
    """UTC of ISO 8601 with or without Z or offset, of /Date(ms)/, and of the en-US text that Export-Csv writes."""
    text = pl.col("t").str.strip_chars()
    ticks = text.str.extract(r"^\\?/Date\((-?\d{1,15})(?:[+-]\d{4})?\)\\?/$").cast(pl.Int64)
    iso = text.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(r"[zZ]$", "+00:00")
    zoned = pl.when(iso.str.contains(r"[+-]\d\d:?\d\d$")).then(iso).otherwise(iso + "+00:00")
    american = text.str.to_datetime("%m/%d/%Y %I:%M:%S %p", time_unit="us", strict=False).dt.replace_time_zone("UTC")
    parsed = zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False).dt.convert_time_zone("UTC")
    sane = pl.when(ticks.abs() < 10**14).then(ticks * 1000).cast(pl.Datetime("us", "UTC"))
    return written.alias("t").to_frame().select(pl.coalesce(parsed, sane, american)).to_series()


FORMAT = Format(
    name=NAME,
    title="Exchange Online message trace",
    spec="https://learn.microsoft.com/powershell/module/exchange/get-messagetrace",
    tables=("mail_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "the trace gives one time for a message, that of its arrival: when it was delivered stands in the detail",
        "the direction is inferred from the addresses: only FromIP is inbound, only ToIP outbound",
        "a summary names all recipients in one row; where they fared differently, see status_text (outcome is unknown)",
        "a detail report without its header is read as message tracking unless it names Exchange Online servers",
        "times of Export-Csv are read in ISO 8601 and en-US only; those of other cultures are quarantined",
        'the verbose answer of the reporting web service ({"d":{"results":[...]}}) is not taken apart',
    ),
)
