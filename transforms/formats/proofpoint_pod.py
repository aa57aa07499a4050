"""Proofpoint on Demand: records of the filter (message) and of sendmail (maillog), as its log service streams them.

JSON, one object a line or in an array, plain or as rows of the Log Analytics tables ProofpointPOD_message_CL and
ProofpointPOD_maillog_CL. Times carry an offset (`2020-11-05T12:59:43.881767+0100`). Specification: Proofpoint on Demand
Log API, revision C. A message is received once (record of the filter), queued and sent by sendmail; `filter.qid` is not
sendmail's `sm.qid` where the filter hands a message on under a new one: the Message-ID joins them.
"""

import re

import polars as pl

from transforms import gateway_fields as g
from transforms import proofpoint_rows as p
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_MAILLOG = re.compile(r'"sm"\s*:|"sm_(?:qid|stat|relay|mailer)(?:_s)?"\s*:')
_ORIGIN = re.compile(r'"pps"\s*:|"pps_(?:cid|agent)(?:_s)?"\s*:|"metadata"\s*:|"metadata_origin_data_cid(?:_s)?"\s*:')
_MESSAGE = tuple(
    re.compile(pattern)
    for pattern in (
        r'"filter"\s*:|"filter_(?:qid|disposition|routeDirection)(?:_s)?"\s*:',
        r'"connection"\s*:|"connection_(?:ip|sid|helo)(?:_s)?"\s*:|"envelope"\s*:|"envelope_from(?:_s)?"\s*:',
        r'"isMsgEncrypted"|"isMsgReinjected"|"routeDirection"|"msgSizeBytes"|"suborgs"|"msgParts"|"filter_[A-Za-z_]+"',
    )
)
_KEY = re.compile(f"{_MAILLOG.pattern}|{_ORIGIN.pattern}|{_MESSAGE[1].pattern}")


def sniff(head: Head) -> Match | None:
    """Recognise the filter's and sendmail's parts by their names."""
    if (start := g.begin(head)) is None:
        return None
    if _MAILLOG.search(start) and _ORIGIN.search(start):
        reason = "Proofpoint on Demand mail log records"
    elif all(pattern.search(start) for pattern in _MESSAGE):
        reason = "Proofpoint on Demand message records"
    else:
        return None
    if g.one_a_line(start, _KEY):
        return Match(0.9, f"{reason}, one a line", "lines", "jsonl")
    return Match(0.9, f"{reason} in one JSON document", "json", "json")


def parse(records: pl.LazyFrame, _ctx: Context) -> pl.LazyFrame:
    """One row per record: mail_events, ignored or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    blank = frame.get_column("raw").str.strip_chars().fill_null("") == ""
    read = g.decode(frame, p.PATHS).with_columns(blank.alias("blank"), _kind().alias("kind"))
    read = read.with_columns(pl.coalesce(g.text(pl.col("ts")), g.text(pl.col("filter.startTime"))).alias("ts"))
    moments = g.times(read.get_column("ts"))
    read = read.with_columns(moments.get_column("ts").alias("at"), moments.get_column("ts_basis"))
    why_not = (
        pl.when("blank")
        .then(pl.lit("blank line"))
        .when("bad_json")
        .then(pl.lit("not a JSON object"))
        .when(pl.col("kind").is_null())
        .then(pl.lit("record is neither of the filter nor of the mail log"))
        .when(pl.col("at").is_null())
        .then(pl.lit("time not readable"))
    )
    told = pl.col("event_type").is_not_null() | pl.col("id").is_not_null()
    ignored = pl.col("blank") | (pl.col("kind").is_null() & told & ~pl.col("bad_json"))
    read = read.with_columns(why_not.alias("reason"))
    read = read.with_columns(
        pl.when(ignored)
        .then(pl.lit(IGNORED))
        .when(pl.col("reason").is_not_null())
        .then(pl.lit(QUARANTINED))
        .otherwise(pl.lit("mail_events"))
        .alias("disposition")
    )
    events = read.filter(pl.col("disposition") == "mail_events")
    parts = [
        p.message(events.filter(pl.col("kind") == "message")),
        p.maillog(events.filter(pl.col("kind") == "maillog")),
    ]
    found = pl.concat(parts, how="diagonal_relaxed")
    event = pl.col("disposition") == "mail_events"
    rows = read.select(
        "record_no",
        "byte_offset",
        "byte_length",
        "disposition",
        "reason",
        pl.when(event).then(pl.lit("proofpoint_pod")).alias("source"),
        pl.when(event).then("at").alias("ts"),
        pl.when(event).then("ts").alias("ts_raw"),
        pl.when(event).then("ts_basis").alias("ts_basis"),
    )
    return rows.join(found, on="record_no", how="left", maintain_order="left").lazy()


def _kind() -> pl.Expr:
    sendmail = pl.any_horizontal(
        pl.col(name).is_not_null() for name in ("sm.qid", "sm.stat", "sm.from", "sm.to", "sm.relay", "sm.msgid")
    )
    filtered = pl.any_horizontal(
        pl.col(name).is_not_null()
        for name in ("filter.qid", "filter.disposition", "envelope.from", "envelope.rcpts", "connection.sid")
    )
    line = (pl.col("event_type") == "maillog") & pl.col("data").is_not_null()
    return pl.when(sendmail | line).then(pl.lit("maillog")).when(filtered).then(pl.lit("message"))


FORMAT = Format(
    name="proofpoint_pod",
    title="Proofpoint on Demand message and mail log",
    spec="https://www.elastic.co/docs/current/integrations/proofpoint_on_demand",
    tables=("mail_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "values of the mail log are cut at an equals sign; where the line itself is missing they stay cut",
        "a message record tells what the filter decided, not whether the message arrived: see the mail log",
        "the stream keeps 30 days",
    ),
)
