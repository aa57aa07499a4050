"""Mimecast SIEM logs: what the gateway received, processed, delivered and journaled, and what its protections found.

Pipe lines and JSON of API 1.0 (https://integrations.mimecast.com/documentation/tutorials/understanding-siem-logs) and
JSON of API 2.0 (https://developer.services.mimecast.com/siem-tutorial-cg). Times carry an offset, or are epoch
milliseconds. A message has one line when it is received, one when it is processed and one for each attempt to deliver
it; `aCode`, in API 2.0 `aggregateId`, joins them. The address `IP` is where a message came from, but in a delivery line
where it went.

The outcome of a verdict or a click tells what became of the message or the click: success when let through, failure
when stopped, unknown when the record does not say.
"""

import re

import polars as pl

from transforms import gateway_fields as g
from transforms import mimecast_rows as m
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_PIPE = re.compile(r"\bdatetime=\d{4}-\d\d-\d\dT[^|\n]{1,40}\|.{0,400}?(?:\||^)(?:acc|aCode)=")
_OLD = re.compile(r'"acc(?:_s)?"\s*:')
_OLD_MARKS = re.compile(
    r'"(?:aCode|RcptActType|MsgId|headerFrom|SenderDomainInternal|urlCategory|senderDomain|ReceiptAck)(?:_s)?"\s*:'
)
_OLD_TIME = re.compile(r'"datetime(?:_[std])?"\s*:')
_NEW = tuple(re.compile(rf'"{name}(?:_[sgd])?"\s*:') for name in ("accountId", "aggregateId", "processingId"))
_ACCOUNT = re.compile(r'"acc(?:_s|ountId(?:_s)?)?"\s*:')

# Act of a process line -> event, outcome.
_PROCESSED = {
    "acc": ("queue", "success"),
    "hld": ("hold", "unknown"),
    "hold": ("hold", "unknown"),
    "sdbx": ("hold", "unknown"),
    "rty": ("defer", "failure"),
    "bnc": ("bounce", "failure"),
    "rej": ("reject", "failure"),
    "ign": ("other", "unknown"),
}
_RECEIVED = {"acc": ("receive", "success"), "rej": ("reject", "failure"), "ign": ("other", "failure")}
_STOPPED = ("block", "blocked", "hold", "hld", "bounce", "bnc", "reject", "rej", "delete", "quarantine", "deny")
_PASSED = ("allow", "allowed", "permit", "none", "tag", "acc", "warn")
_DSN = r"^(?:\d{3}[ -])?([245]\.\d{1,3}\.\d{1,3})(?:\s|$)"


def sniff(head: Head) -> Match | None:
    """Recognise pipe lines by their first fields, JSON by the fields that name account and message."""
    if (start := g.begin(head)) is not None:
        return _sniff_json(start)
    lines = [line for line in head.lines[:200] if line.strip()]
    hits = sum(_PIPE.search(line[:2000]) is not None for line in lines)
    if not hits or hits < len(lines) // 2:
        return None
    return Match(0.95, f"{hits} of the first {len(lines)} lines are Mimecast's", "lines", "pipe")


def _sniff_json(start: str) -> Match | None:
    new = all(mark.search(start) for mark in _NEW)
    old = _OLD.search(start) and _OLD_TIME.search(start) and _OLD_MARKS.search(start)
    if not (new or old):
        return None
    reason = f"Mimecast records of API {'2.0' if new else '1.0'}"
    if g.one_a_line(start, _ACCOUNT):
        return Match(0.95, f"{reason}, one a line", "lines", "json")
    return Match(0.95, f"{reason} in one JSON document", "json", "json")


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: mail_events, ignored or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    blank = frame.get_column("raw").str.strip_chars().fill_null("") == ""
    read = m.from_pipes(frame) if ctx.variant == "pipe" else m.from_json(frame)
    # A collector may have written JSON and pipe lines into one file.
    other = read.get_column("bad_json") & ~blank
    if other.any():
        again = (m.from_json if ctx.variant == "pipe" else m.from_pipes)(frame.filter(other))
        if not again.get_column("bad_json").all():
            read = pl.concat([read.filter(~other), again], how="diagonal").sort("record_no")
    read = read.with_columns(m.kind().alias("kind"), blank.alias("blank"))
    read = read.hstack(g.times(read.get_column("time")))
    read = read.hstack(_recipients(read))
    return _rows(read).lazy()


def _recipients(read: pl.DataFrame) -> list[pl.Series]:
    found = g.recipients(g.addresses(read.get_column("rcpt")))
    return [column.alias(f"to_{name}") for name, column in found.items()]


def _rows(read: pl.DataFrame) -> pl.DataFrame:
    why_not = _why_not()
    disposition = (
        pl.when(pl.col("blank") | (pl.col("type").is_not_null() & pl.col("kind").is_null() & ~pl.col("bad_json")))
        .then(pl.lit(IGNORED))
        .when(why_not.is_not_null())
        .then(pl.lit(QUARANTINED))
        .otherwise(pl.lit("mail_events"))
    )
    read = read.with_columns(disposition.alias("disposition"), why_not.alias("why_not"))
    read = read.with_columns(_what().alias("what")).unnest("what")
    event = pl.col("disposition") == "mail_events"
    columns = [pl.when(event).then(value).alias(name) for name, value in _columns().items()]
    return read.select(
        "record_no", "byte_offset", "byte_length", "disposition", pl.col("why_not").alias("reason"), *columns
    )


def _why_not() -> pl.Expr:
    return (
        pl.when("blank")
        .then(pl.lit("blank line"))
        .when("bad_json")
        .then(pl.lit("neither a JSON object nor a Mimecast line"))
        .when(pl.col("kind").is_null() & pl.col("type").is_not_null())
        .then(pl.lit("record type is not about a message"))
        .when(pl.col("kind").is_null())
        .then(pl.lit("type of the record cannot be told"))
        .when(pl.col("ts").is_null())
        .then(pl.lit("time not readable"))
    )


def _what() -> pl.Expr:
    """Struct of event and outcome."""
    kind, act = pl.col("kind"), pl.col("act").str.to_lowercase()
    rejected = pl.col("rej_type").is_not_null() | pl.col("rej_code").is_not_null()
    received = _told(act, _RECEIVED, "event"), _told(act, _RECEIVED, "outcome")
    fate = (
        pl.when(act.is_in(_STOPPED)).then(pl.lit("failure")).when(act.is_in(_PASSED)).then(pl.lit("success"))
    ).otherwise(pl.lit("unknown"))
    done = pl.col("delivered").str.to_lowercase()
    done = pl.when(done.is_in(["true", "false"])).then(done == "true").when(rejected).then(pl.lit(value=False))
    onward = (
        pl.when(g.direction(pl.col("dir"), pl.col("route")) == "outbound")
        .then(pl.lit("send"))
        .otherwise(pl.lit("deliver"))
    )
    final = pl.col("rej_code").str.starts_with("5").fill_null(value=False)
    event = (
        pl.when(kind == "receipt")
        .then(pl.coalesce(received[0], pl.when(rejected).then(pl.lit("reject")), pl.lit("receive")))
        .when(kind == "process")
        .then(
            pl.coalesce(
                _told(act, _PROCESSED, "event"),
                pl.when(pl.col("hold").is_not_null()).then(pl.lit("hold")),
                pl.lit("other"),
            )
        )
        .when((kind == "delivery") & done.fill_null(value=True))
        .then(onward)
        .when(kind == "delivery")
        .then(pl.when(final).then(pl.lit("bounce")).otherwise(pl.lit("defer")))
        .when(kind == "journal")
        .then(pl.lit("journal"))
        .when(kind == "url protect")
        .then(pl.lit("click"))
        .otherwise(pl.lit("verdict"))
    )
    outcome = (
        pl.when(kind == "receipt")
        .then(pl.coalesce(received[1], pl.when(rejected).then(pl.lit("failure")), pl.lit("unknown")))
        .when(kind == "process")
        .then(pl.coalesce(_told(act, _PROCESSED, "outcome"), pl.lit("unknown")))
        .when(kind == "delivery")
        .then(pl.when(done).then(pl.lit("success")).when(~done).then(pl.lit("failure")).otherwise(pl.lit("unknown")))
        .when(kind == "journal")
        .then(pl.lit("success"))
        .otherwise(fate)
    )
    return pl.struct(event.alias("event"), outcome.alias("outcome"))


def _told(act: pl.Expr, known: dict[str, tuple[str, str]], part: str) -> pl.Expr:
    values = {name: both[part == "outcome"] for name, both in known.items()}
    return act.replace_strict(values, default=None, return_dtype=pl.String)


def _columns() -> dict[str, pl.Expr]:
    kind = pl.col("kind")
    delivery = kind == "delivery"
    reply = _reply()
    protects = ~kind.is_in(["receipt", "process", "delivery", "journal"])
    status = (
        pl.when(protects)
        .then(_finding())
        .when(kind == "process")
        .then(pl.col("hold"))
        .otherwise(pl.coalesce(reply, "error", pl.col("virus"), "ack"))
    )
    own = ("kind", "account", "queue", "step", "time", "subtype", "msgid", "rcpt", "file", "sha256", "url")
    identity = pl.concat_str([pl.col(name).fill_null("") for name in own], separator="|")
    return {
        "source": pl.lit("mimecast_siem"),
        # API 2.0 gives each step of each message an id; repeated downloads give the same record again.
        "source_id": pl.when(pl.col("step").is_not_null()).then(identity),
        "ts": pl.col("ts"),
        "ts_raw": pl.col("time"),
        "ts_basis": pl.col("ts_basis"),
        "tenant_id": pl.col("account"),
        "event": pl.col("event"),
        "op_raw": pl.concat_str(kind, pl.col("act"), separator=" ", ignore_nulls=True).str.slice(0, 60),
        "outcome": pl.col("outcome"),
        "queue_id": pl.col("queue"),
        "internal_id": pl.col("step"),
        "message_id": g.message_id(pl.col("msgid")),
        "direction": g.direction(pl.col("dir"), pl.col("route")),
        "src_ip_raw": pl.when(~delivery).then(pl.coalesce("source_ip", "ip")),
        "dst_ip_raw": pl.when(delivery).then(pl.coalesce("destination_ip", "ip")),
        "tls_version": g.text(pl.col("tls_version")),
        "tls_cipher": g.text(pl.col("tls_cipher")),
        "relay_host": pl.when(delivery).then(pl.coalesce("next_hop", "route")),
        "mail_from": g.envelope(pl.col("sender")),
        "header_from": pl.col("header_from"),
        "rcpt": pl.col("to_rcpt"),
        "recipients": pl.col("to_recipients"),
        "n_rcpt": pl.col("to_n_rcpt"),
        "subject": pl.col("subject"),
        "dsn": pl.coalesce(pl.col(name).str.extract(_DSN) for name in ("rej_info", "ack")),
        "status_text": g.without_password(status).str.slice(0, g.MAX_TEXT),
        "size_bytes": g.whole(pl.col("size")),
        "delay_s": pl.when(delivery).then(g.whole(pl.col("latency")) / 1000),
    }


def _reply() -> pl.Expr:
    """`550 Recipient email address is possibly incorrect: 5.4.1 Recipient address rejected`; null when not rejected."""
    words = pl.concat_str("rej_type", "rej_info", separator=": ", ignore_nulls=True)
    whole = pl.concat_str("rej_code", pl.when(words != "").then(words), separator=" ", ignore_nulls=True)
    return pl.when(whole != "").then(whole)


def _finding() -> pl.Expr:
    return g.told(
        scan=pl.col("scan"),
        category=pl.col("category"),
        reason=pl.col("why"),
        action=pl.col("act"),
        virus=pl.col("virus"),
        definition=pl.col("definition"),
        hits=pl.col("hits"),
        taggedMalicious=pl.col("malicious"),
        similarDomain=pl.col("similar_domain"),
        file=pl.col("file"),
        sha256=pl.col("sha256"),
        url=pl.col("url"),
    )


FORMAT = Format(
    name="mimecast_siem",
    title="Mimecast SIEM logs",
    spec="https://integrations.mimecast.com/documentation/tutorials/understanding-siem-logs",
    tables=("mail_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "journal records name neither address nor size, subject or Message-ID",
        "pipe lines do not escape: a field that a line names twice with different values is left empty",
        "records of API 1.0 have no id of their own: overlapping downloads count twice",
        "a click names the address that the message came from, not the user's",
    ),
)
