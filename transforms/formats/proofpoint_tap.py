"""Proofpoint Targeted Attack Protection (TAP), SIEM API: messages with a known threat, and clicks on one.

JSON: the API's answer with its arrays `messagesDelivered`, `messagesBlocked`, `clicksPermitted`, `clicksBlocked`, the
events alone (one a line or in an array), or rows of the Log Analytics tables; and the API's syslog form (RFC 5424,
`MSGDLV`, `MSGBLK`, `CLKPER`, `CLKBLK`). All times are UTC. Specification:
https://help.proofpoint.com/Threat_Insight_Dashboard/API_Documentation/SIEM_API

An event does not say by itself whether it was blocked: in the answer the array says it, elsewhere only what the
collector adds. The outcome tells what became of the message or the click: success when let through, failure when
stopped, unknown when nothing says it.
"""

import re

import polars as pl

from transforms import gateway_fields as g
from transforms import jsonrows
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_ARRAYS = ("messagesDelivered", "messagesBlocked", "clicksPermitted", "clicksBlocked")
_ARRAY_KEY = rf'^"({"|".join(_ARRAYS)})"\s*:?\s*\[?$'
_SYSLOG = re.compile(r"\bProofpointTAP\b.{0,80}?\b(?:MSGDLV|MSGBLK|CLKPER|CLKBLK)\b.{0,20}?\[tap", re.ASCII)
_MARKS = (
    re.compile(r'"threatsInfoMap(?:_s)?"\s*:'),
    re.compile(r'"(?:clickIP|threatURL)(?:_s)?"\s*:'),
)
_TIMES = re.compile(r'"(?:messageTime|clickTime)(?:_[std])?"\s*:')
_ANSWER = re.compile(rf'"queryEndTime"\s*:|"(?:{"|".join(_ARRAYS)})"\s*:')
_EVENT_KEY = re.compile(r'"(?:messageTime|clickTime|threatsInfoMap|clickIP|spamScore|GUID)(?:_[std])?"\s*:')

# What a collector adds, without anything but letters -> name of the API's array.
_TAGS = {
    "messagesdelivered": "messagesDelivered",
    "messagedelivered": "messagesDelivered",
    "msgdlv": "messagesDelivered",
    "messagesblocked": "messagesBlocked",
    "messageblocked": "messagesBlocked",
    "msgblk": "messagesBlocked",
    "clickspermitted": "clicksPermitted",
    "clickpermitted": "clicksPermitted",
    "clkper": "clicksPermitted",
    "clicksblocked": "clicksBlocked",
    "clickblocked": "clicksBlocked",
    "clkblk": "clicksBlocked",
}
_TAG = r"((?:messages?|clicks?)(?:delivered|blocked|permitted)|msgdlv|msgblk|clkper|clkblk)"
_OUTCOMES = {
    "messagesDelivered": "success",
    "messagesBlocked": "failure",
    "clicksPermitted": "success",
    "clicksBlocked": "failure",
}
# In two readings: names that differ in case only cannot be read in one.
_TAGGED, _TAGGED_TOO = ("type", "event_type", "eventType", "TableName", "record_type"), ("Type", "tableName")
_FIELDS = (
    *("id", "GUID", "QID", "sender", "recipient", "senderIP", "messageID", "messageTime", "messageSize", "subject"),
    *("headerFrom", "cluster", "clusterId", "quarantineFolder", "quarantineRule", "policyRoutes", "threatsInfoMap"),
    *("phishScore", "spamScore", "malwareScore", "impostorScore", "clickTime", "clickIP", "url", "userAgent"),
    *("classification", "threatID", "threatStatus", "queryEndTime"),
)
_THREAT = ("classification", "threatType", "threat", "threatStatus", "threatID")


def sniff(head: Head) -> Match | None:
    """Recognise events by the names of their threats, an answer by its arrays, syslog lines by their event names."""
    if (start := g.begin(head)) is None:
        lines = [line for line in head.lines[:200] if line.strip()]
        hits = sum(_SYSLOG.search(line[:1000]) is not None for line in lines)
        if not hits or hits < len(lines) // 2:
            return None
        return Match(0.95, f"{hits} of the first {len(lines)} lines are Proofpoint TAP's", "lines", "syslog")
    answer = re.match(r"\{\s*\"", start) and _ANSWER.match(start[1:].lstrip()[:2000])
    events = _TIMES.search(start) and any(mark.search(start) for mark in _MARKS)
    if not (answer or events):
        return None
    if answer:
        return Match(0.95, "answer of the Proofpoint TAP SIEM API", "json", "answer")
    if g.one_a_line(start, _EVENT_KEY):
        return Match(0.95, "Proofpoint TAP events, one a line", "lines", "jsonl")
    return Match(0.95, "Proofpoint TAP events in one JSON document", "json", "json")


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: mail_events (verdict, click), ignored or quarantined.

    Of an answer, the key of each array is a record of its own (`"clicksBlocked":`), which tells what follows.
    """
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect().sort("record_no")
    raw = frame.get_column("raw").fill_null("").str.strip_chars()
    array = raw.str.extract(_ARRAY_KEY)
    frame = frame.with_columns(array.alias("key"), _in_force(array, ctx).alias("array"), (raw == "").alias("blank"))
    syslog = ctx.variant == "syslog"
    read = _from_syslog(frame) if syslog else _from_json(frame)
    read = read.with_columns(_kind().alias("kind"))
    moment = pl.coalesce(g.text(pl.col("clickTime")), g.text(pl.col("messageTime")), g.text(pl.col("sent")))
    read = read.with_columns(moment.alias("written"))
    read = read.hstack(g.times(read.get_column("written")))
    found = g.recipients(g.addresses(read.get_column("recipient")))
    read = read.with_columns(column.alias(f"to_{name}") for name, column in found.items())
    return _rows(read.hstack([_threats(read)])).lazy()


def _in_force(array: pl.Series, ctx: Context) -> pl.Series:
    """The array that each record stands in, by the last key before it; kept from block to block."""
    known = array.forward_fill()
    if (before := ctx.carry.get("tap_array")) is not None:
        known = known.fill_null(before)
    if len(known) and known[-1] is not None:
        ctx.carry["tap_array"] = known[-1]
    return known


def _from_json(frame: pl.DataFrame) -> pl.DataFrame:
    read = g.decode(frame, (*_FIELDS, *_ARRAYS, *_TAGGED))
    more = g.decode(frame.select("record_no", "raw"), _TAGGED_TOO).drop("bad_json")
    read = read.join(more, on="record_no", how="left", maintain_order="left")
    tags = [pl.col(name).str.to_lowercase().str.replace_all("[^a-z]", "") for name in (*_TAGGED, *_TAGGED_TOO)]
    tag = pl.coalesce(name.str.extract(_TAG) for name in tags)
    return read.with_columns(tag.alias("tag"), pl.lit(None, pl.String).alias("sent"))


def _from_syslog(frame: pl.DataFrame) -> pl.DataFrame:
    """`<38>1 2016-06-24T21:00:08Z - ProofpointTAP - MSGBLK [tapmsg@21139 sender="..." ...]`.

    A quote inside a value is escaped, so that no value can begin a parameter.
    """
    raw = pl.col("raw")
    values = [
        raw.str.extract(rf'[ \]]{name}="((?:[^"\\]|\\.)*)"').str.replace_all(r"\\([\"\\\]])", "${1}").alias(name)
        for name in _FIELDS
    ]
    event = raw.str.extract(r"ProofpointTAP \S+ (MSGDLV|MSGBLK|CLKPER|CLKBLK) \[tap")
    sent = raw.str.extract(r"^(?:<\d{1,3}>1 )?(\d{4}-\d\d-\d\dT\S+) ")
    read = frame.with_columns(*values, event.str.to_lowercase().alias("tag"), sent.alias("sent"))
    closed = raw.str.strip_chars_end().str.ends_with("]") & event.is_not_null()
    return read.with_columns(
        (~closed).alias("bad_json"), *(pl.lit(None, pl.String).alias(name) for name in _ARRAYS)
    ).drop("raw")


def _kind() -> pl.Expr:
    tagged = pl.col("tag").replace_strict(_TAGS, default=None, return_dtype=pl.String)
    return pl.coalesce(
        tagged,
        "array",
        pl.when(pl.col("clickTime").is_not_null()).then(pl.lit("click")),
        pl.when(pl.col("messageTime").is_not_null()).then(pl.lit("message")),
    )


def _threats(read: pl.DataFrame) -> pl.Series:
    """What was found, in the source's words, of each message: `phish url https://... active`, joined by commas."""
    found = read.select("record_no", g.text(pl.col("threatsInfoMap")).alias("t"))
    held = found.drop_nulls("t")
    wanted = pl.Struct({"v": pl.List(pl.Struct(dict.fromkeys(_THREAT, pl.String())))})
    texts = held.select("record_no", ('{"v":' + pl.col("t") + "}").alias("t"))
    decoded = jsonrows.decode(texts.lazy(), wanted, "t").select("record_no", pl.col("j").struct.field("v")).collect()
    each = decoded.explode("v").with_columns(pl.col("v").struct.unnest())
    words = pl.concat_str([g.text(pl.col(name)) for name in _THREAT[:4]], separator=" ", ignore_nulls=True)
    said = each.select("record_no", words.alias("w")).filter(pl.col("w") != "")
    joined = said.group_by("record_no").agg(pl.col("w").unique(maintain_order=True).head(10).str.join(", "))
    return found.join(joined, on="record_no", how="left", maintain_order="left").get_column("w").alias("threats")


def _rows(read: pl.DataFrame) -> pl.DataFrame:
    whole_answer = pl.any_horizontal(pl.col(name).is_not_null() for name in _ARRAYS) & pl.col("written").is_null()
    events = pl.any_horizontal(pl.col(name).str.contains("{", literal=True).fill_null(value=False) for name in _ARRAYS)
    empty = (whole_answer & ~events) | (
        pl.col("queryEndTime").is_not_null() & ~whole_answer & pl.col("written").is_null()
    )
    ignored = (
        pl.when("blank")
        .then(pl.lit("blank line"))
        .when(pl.col("key").is_not_null())
        .then(pl.lit("key of an array"))
        .when(empty)
        .then(pl.lit("answer without events"))
    )
    refused = (
        pl.when("bad_json")
        .then(pl.lit("not a TAP event"))
        .when(whole_answer)
        .then(pl.lit("answer with several events in one record"))
        .when(pl.col("kind").is_null())
        .then(pl.lit("neither the time of a message nor of a click"))
        .when(pl.col("ts").is_null())
        .then(pl.lit("time not readable"))
    )
    read = read.with_columns(ignored.alias("ignored"), refused.alias("refused"))
    disposition = (
        pl.when(pl.col("ignored").is_not_null())
        .then(pl.lit(IGNORED))
        .when(pl.col("refused").is_not_null())
        .then(pl.lit(QUARANTINED))
        .otherwise(pl.lit("mail_events"))
    )
    read = read.with_columns(disposition.alias("disposition"))
    event = pl.col("disposition") == "mail_events"
    columns = [pl.when(event).then(value).alias(name) for name, value in _columns().items()]
    reason = pl.coalesce("ignored", "refused").alias("reason")
    return read.select("record_no", "byte_offset", "byte_length", "disposition", reason, *columns)


def _columns() -> dict[str, pl.Expr]:
    kind = pl.col("kind")
    click = kind.str.starts_with("click")
    told = kind.replace_strict(_OUTCOMES, default=None, return_dtype=pl.String)
    stopped = pl.when(~click & _text("quarantineFolder").is_not_null()).then(pl.lit("failure"))
    # An event whose message was not at hand any more has an empty sender, which is not the null sender.
    known = pl.col("messageID").str.len_chars() > 0
    sender = g.envelope(pl.col("sender"))
    routes = pl.col("policyRoutes").str.to_lowercase()
    inbound, outbound = (
        routes.str.contains(f"default_{way}").fill_null(value=False) for way in ("inbound", "outbound")
    )
    way = pl.when(inbound & ~outbound).then(pl.lit("inbound")).when(outbound & ~inbound).then(pl.lit("outbound"))
    return {
        "source": pl.lit("proofpoint_tap"),
        "source_id": pl.concat_str(
            pl.when(click).then(pl.lit("click")).otherwise(pl.lit("message")), pl.lit("|"), _text("id")
        ),
        "ts": pl.col("ts"),
        "ts_raw": pl.col("written"),
        "ts_basis": pl.col("ts_basis"),
        "tenant_id": pl.coalesce(_text("cluster"), _text("clusterId")),
        "tenant_domain": pl.when(way.is_null() | (way == "inbound")).then(
            pl.col("to_rcpt").str.extract(r"@([^@\s]+)$").str.to_lowercase()
        ),
        "event": pl.when(click).then(pl.lit("click")).otherwise(pl.lit("verdict")),
        "op_raw": kind,
        "outcome": pl.coalesce(told, stopped, pl.lit("unknown")),
        "queue_id": _text("QID"),
        "internal_id": _text("GUID"),
        "message_id": g.message_id(pl.col("messageID")),
        "direction": pl.coalesce(way, pl.lit("unknown")),
        "src_ip_raw": pl.when(click).then(_text("clickIP")).otherwise(_text("senderIP")),
        "mail_from": pl.when((sender != "") | known).then(sender),
        "header_from": _text("headerFrom"),
        "rcpt": pl.col("to_rcpt"),
        "recipients": pl.col("to_recipients"),
        "n_rcpt": pl.col("to_n_rcpt"),
        "subject": _text("subject"),
        "status_text": pl.when(click).then(_click()).otherwise(_message()),
        "size_bytes": g.whole(pl.col("messageSize")).replace(0, None),
    }


def _click() -> pl.Expr:
    return g.told(
        classification=pl.col("classification"),
        threatStatus=pl.col("threatStatus"),
        url=pl.col("url"),
        userAgent=pl.col("userAgent"),
        senderIP=pl.col("senderIP"),
        threatID=pl.col("threatID"),
    )


def _message() -> pl.Expr:
    return g.told(
        threats=pl.col("threats"),
        quarantineFolder=pl.col("quarantineFolder"),
        quarantineRule=pl.col("quarantineRule"),
        phishScore=pl.col("phishScore"),
        spamScore=pl.col("spamScore"),
        malwareScore=pl.col("malwareScore"),
        impostorScore=pl.col("impostorScore"),
    )


def _text(name: str) -> pl.Expr:
    return g.text(pl.col(name))


FORMAT = Format(
    name="proofpoint_tap",
    title="Proofpoint Targeted Attack Protection (SIEM API)",
    spec="https://help.proofpoint.com/Threat_Insight_Dashboard/API_Documentation/SIEM_API",
    tables=("mail_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "only messages and clicks with a known threat are told: the rest of the mail is in Proofpoint on Demand's log",
        "an event outside of the API's answer may not say whether it was blocked",
        "the user's part of a sender may be hashed",
        "the API answers for the last 7 days only",
    ),
)
