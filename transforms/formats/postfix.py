"""Postfix through syslog: `postfix/qmgr[18719]: C6E0DDB74006: from=<a@example.com>, size=3098, nrcpt=1 (queue active)`.

Specification: Postfix's own source (log_adhoc.c, smtpd.c, smtpd_check.c, cleanup_message.c, qmgr_active.c, postscreen),
https://www.postfix.org/. A line says one thing about a queue id or about a client's session; what it does not repeat
(who sent the message that is delivered) is found by joining (host, queue id) up to `removed`. Sessions (connect, TLS,
disconnect) carry no queue id; their session_id is the process id.

Addresses, host names and replies are written by others. Fields are read where Postfix writes them, by position; where a
rejection could be read in two ways (a HELO that imitates the rest of the line), its from, to and helo are left null.
Lines that every message brings are cut at fixed separators, and by a regular expression only where that does not fit.
"""

from functools import reduce
from operator import or_

import polars as pl

from transforms import postfix_rows as rare
from transforms.model import QUARANTINED, Context, Format
from transforms.postfix_rows import PEERED, ROW, access, address, cut, domain, groups, mail, peer
from transforms.syslog import in_parallel, refusal, unrepeat

_LOCAL = ("local", "virtual", "pipe", "lmtp")
_STATES = {"deferred": "defer", "bounced": "bounce", "undeliverable": "bounce", "expired": "expire"}
_OUTCOMES = {"sent": "success", "deliverable": "success"} | dict.fromkeys(_STATES, "failure")

# Short queue ids are hexadecimal, long ones (enable_long_queue_ids) have no vowels.
_QUEUED = r"^(?:[0-9A-F]{5,20}|[0-9BCDFGHJ-NP-TV-Zbcdfghj-np-tv-z]{10,24}): "
# to=<trex@dinos.test>, orig_to=<rex@dinos.test>, relay=mx.dinos.test[192.0.2.1]:25, conn_use=2, delay=0.13,
#     delays=0.04/0/0/0.09, dsn=2.0.0, status=sent (250 Ok)
_ADDRESS = r'"(?:[^"\\]|\\.)*"@[^>]*|[^">]*'
_TO = (
    rf"^to=<({_ADDRESS})>, (?:orig_to=<({_ADDRESS})>, )?relay=([^,\[]*)(\[[^\]]*\](?::\d+)?)?, (?:conn_use=\d+, )?"
    r"delay=([0-9.]+), (?:delays=[0-9./]+, dsn=([0-9.]+), )?status=([A-Za-z]+) \((.*?)\)?$"
)
# from=<test@example.com>, size=309891, nrcpt=1 (queue active)
_FROM = r"^from=<(.*)>, (?:size=(\d{1,15}), nrcpt=(\d{1,9}) \((.*)\)|status=(expired), (.*))$"
_SESSION = ("connect from ", "disconnect from ")


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn syslog lines of Postfix into rows of mail_events and access_events (SASL), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read.
    """
    frame = records.drop("raw", strict=False).collect()
    programs = frame["program"].unique().drop_nulls()
    daemons = pl.Series([name.rsplit("/", 1)[-1] for name in programs], dtype=pl.String)
    op_raw = daemons.gather(frame["program"].cast(pl.Enum(programs)).to_physical())
    frame = frame.drop("program").with_columns(op_raw.alias("op_raw"), source=pl.lit("postfix"))
    parts: list[pl.LazyFrame] = []
    refused = frame.select(refusal(ctx)).to_series().alias("reason")
    if refused.null_count() < len(refused):
        bad = frame.with_columns(refused, disposition=pl.lit(QUARANTINED)).lazy().filter(pl.col("reason").is_not_null())
        parts.append(bad.select(*ROW, "disposition", "reason"))
        frame = frame.filter(refused.is_null())
    for some in in_parallel(_read, frame):
        parts += some
    return pl.concat(parts, how="diagonal")


def _read(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    frame = unrepeat(frame)
    message = frame["message"].str
    session = message.starts_with(_SESSION[0]) | message.starts_with(_SESSION[1])
    queued = message.contains(_QUEUED)
    named = cut(frame.lazy().filter(queued), "message", ": ", "queue_id", "body").drop("message").collect()
    others = _without_queue_id(frame.filter(~(queued | session)))
    return [*_bodies(named), _sessions(frame.lazy().filter(session)), *others]


def _bodies(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read what follows the queue id."""
    body = pl.col("body").str
    kind = (
        pl.when(body.starts_with("to=<")).then(1)
        .when(body.starts_with("from=<")).then(2)
        .when(body.starts_with("client=")).then(3)
        .when(body.starts_with("message-id=") | body.starts_with("resent-message-id=")).then(4)
        .when(pl.col("body") == "removed").then(5)
        .otherwise(0)
    )  # fmt: skip
    kinds = frame.select(kind.cast(pl.UInt8)).to_series()
    seldom, *often = (frame.lazy().filter(kinds == number) for number in range(6))
    one = [read(rows) for read, rows in zip((_deliveries, _queueings), often[:2], strict=True)]
    return [*one, *_clients(often[2]), _message_ids(often[3]), _removals(often[4]), *rare.seldom(seldom)]


def _deliveries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `to=<...>, ..., status=sent (...)`."""
    names = ("rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "delay", "dsn", "status", "status_text")
    rows = _cut_delivery(rows)
    rows = groups(rows, pl.when(~pl.col("fits")).then("body"), _TO, *(f"c_{name}" for name in names))
    rows = rows.with_columns(pl.when("fits").then(name).otherwise(f"c_{name}").alias(name) for name in names)
    local, status = pl.col("op_raw").is_in(_LOCAL), pl.col("status")
    sent = pl.when(local).then(pl.lit("deliver")).when(pl.col("op_raw") != "discard").then(pl.lit("send"))
    state = status.replace_strict(_STATES, default=None, return_dtype=pl.String)
    rows = rows.with_columns(
        address("dst_ip_raw"),
        event=pl.when(status == "sent").then(sent).otherwise(state).fill_null("other"),
        outcome=status.replace_strict(_OUTCOMES, default="unknown", return_dtype=pl.String),
        delay_s=pl.col("delay").cast(pl.Float64, strict=False),
        tenant_domain=pl.when(local).then(domain("rcpt")),
    )
    kept = ("queue_id", "event", "outcome", *names[:4], "delay_s", "dsn", "status_text", "tenant_domain")
    return mail(rows, kept, status.is_not_null(), "delivery line cut or damaged")


def _cut_delivery(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Cut a delivery into its fields; `fits` tells where they are the usual ones and no address is quoted."""
    rows = cut(rows, "body", " (", "fields", "text")
    rows = cut(rows, "fields", ", relay=", "who", "how")
    rows = cut(rows, "who", ">, orig_to=<", "rcpt", "orig_rcpt")
    rows = cut(rows, "how", ", ", "relay", "delay", "delays", "dsn", "status", "more")
    rows = cut(rows, "relay", "[", "relay_host", "at")
    fits = pl.all_horizontal(pl.col(name).str.starts_with(f"{name}=") for name in ("delay", "delays", "dsn", "status"))
    fits = fits & pl.col("who").str.ends_with(">") & ~pl.col("who").str.contains('"', literal=True)
    fits = fits & pl.col("more").is_null() & pl.col("text").is_not_null()
    at = pl.col("at")
    return rows.with_columns(
        pl.col("rcpt").str.slice(4).str.strip_suffix(">"),
        pl.col("orig_rcpt").str.strip_suffix(">"),
        pl.when(at.str.ends_with("]")).then(at.str.strip_suffix("]")).otherwise("[" + at).alias("dst_ip_raw"),
        pl.col("delay").str.slice(6),
        pl.col("dsn").str.slice(4),
        pl.col("status").str.slice(7),
        pl.col("text").str.strip_suffix(")").alias("status_text"),
        fits=fits.fill_null(value=False),
    )


def _queueings(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `from=<...>, size=..., nrcpt=... (queue active)`, or its `status=expired, returned to sender`."""
    rows = cut(rows, "body", ", ", "p0", "p1", "p2")
    rows = cut(rows.with_columns(pl.col("p2").str.slice(6)), "p2", " ", "n", "why")
    size, count = (pl.col(name).cast(pl.Int64, strict=False) for name in ("size", "n"))
    rows = rows.with_columns(size=pl.col("p1").str.slice(5)).with_columns(size_bytes=size, n_rcpt=count)
    quoted = pl.col("p0").str.contains('"', literal=True)
    fits = pl.col("p0").str.ends_with(">") & ~quoted & pl.col("p1").str.starts_with("size=")
    fits = fits & (pl.col("why") == "(queue active)") & (pl.col("size_bytes") >= 0) & (pl.col("n_rcpt") >= 0)
    rows = rows.with_columns(fits=fits.fill_null(value=False))
    odd = ("c_from", "c_size", "c_n", "c_state", "expired", "c_why")
    rows = groups(rows, pl.when(~pl.col("fits")).then("body"), _FROM, *odd)
    late = pl.col("expired").is_not_null()
    rows = rows.with_columns(
        mail_from=pl.when("fits").then(pl.col("p0").str.slice(6).str.strip_suffix(">")).otherwise("c_from"),
        size_bytes=pl.when("fits").then("size_bytes").otherwise(pl.col("c_size").cast(pl.Int64, strict=False)),
        n_rcpt=pl.when("fits").then("n_rcpt").otherwise(pl.col("c_n").cast(pl.Int64, strict=False)),
        status_text=pl.when("fits").then(pl.lit("queue active")).otherwise(pl.coalesce("c_why", "c_state")),
        event=pl.when(late).then(pl.lit("expire")).otherwise(pl.lit("queue")),
        outcome=pl.when(late).then(pl.lit("failure")).otherwise(pl.lit("success")),
    )
    kept = ("queue_id", "event", "outcome", "mail_from", "size_bytes", "n_rcpt", "status_text")
    return mail(rows, kept, pl.col("mail_from").is_not_null(), "queue line cut or damaged")


def _message_ids(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = cut(rows, "body", "=", "key", "id")
    ident = pl.when(pl.col("id") != "").then("id")
    rows = rows.with_columns(message_id=ident, event=pl.lit("cleanup"), outcome=pl.lit("success"))
    return mail(rows, ("queue_id", "event", "outcome", "message_id"))


def _removals(rows: pl.LazyFrame) -> pl.LazyFrame:
    return mail(
        rows.with_columns(event=pl.lit("remove"), outcome=pl.lit("success")), ("queue_id", "event", "outcome")
    )  # fmt: skip


def _clients(rows: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Read `client=`: the reception of a message, or with a SASL user an authentication for it.

    client=h.dinos.test[192.168.4.150]:4711, sasl_method=PLAIN, sasl_username=rex, sasl_sender=x@dinos.test
    """
    rows = rows.with_columns(event=pl.lit("receive"), outcome=pl.lit("success"))
    sasl, text = pl.col("body").str.contains(", sasl_", literal=True), pl.col("body").str.slice(7)
    received, more = peer(rows.filter(~sasl), text), pl.col("more")
    whole = pl.col("src_ip_raw").is_not_null() & ((more == "") | more.str.starts_with(", orig_"))
    kept = ("queue_id", "event", "outcome", "src_host", "src_ip_raw")
    received = mail(received, kept, whole.fill_null(value=False), "client line cut or damaged")
    signed = cut(peer(rows.filter(sasl), text), "more", ", sasl_method=", "before", "method")
    signed = cut(signed, "method", ", sasl_username=", "auth_method", "named")
    signed = cut(signed, "named", ", sasl_sender=", "user", "sender")
    signed = signed.with_columns(reason=pl.lit(None, pl.String)).rename({"queue_id": "session_id"})
    good = ((pl.col("user") != "") & pl.col("src_ip_raw").is_not_null()).fill_null(value=False)
    return [received, access(signed, good, "client line cut or damaged")]


def _sessions(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `connect from name[address]` and `disconnect from name[address] ehlo=1 auth=0/1 quit=1 commands=2/3`."""
    begun = pl.col("message").str.starts_with("c")
    text = pl.when(begun).then(pl.col("message").str.slice(len(_SESSION[0])))
    rows = peer(rows, text.otherwise(pl.col("message").str.slice(len(_SESSION[1]))))
    more = pl.col("more")
    rows = rows.with_columns(
        status_text=pl.when(more != "").then(more.str.strip_prefix(" ")),
        event=pl.when(begun).then(pl.lit("connect")).otherwise(pl.lit("disconnect")),
        outcome=pl.lit("success"),
        session_id="pid",
    )
    whole = pl.col("src_ip_raw").is_not_null() & ((more == "") | more.str.starts_with(" "))
    return mail(rows, PEERED, whole.fill_null(value=False), "session line cut or damaged")


def _matching(frame: pl.DataFrame, where: pl.Series, pattern: str) -> pl.Series:
    text = frame.select(pl.when(where).then("message")).to_series()
    return text.str.contains(pattern).fill_null(value=False)


def _without_queue_id(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read lines without a queue id, among them those of messages that were not queued (NOQUEUE)."""
    message = frame["message"].str
    nameless = message.starts_with("NOQUEUE: ")
    warned = message.starts_with("warning: ")
    tls = message.starts_with("TLS connection ") | message.contains(" TLS connection ", literal=True)
    ended = reduce(or_, (message.starts_with(text) for text in rare.ENDINGS))
    screen = frame["op_raw"] == "postscreen"
    masks = {
        rare.sasl_failures: warned & _matching(frame, warned, rare.SASL),
        rare.tls: ~warned & tls & _matching(frame, tls, rare.TLS),
        rare.troubles: ended & _matching(frame, ended, rare.TROUBLE),
        rare.screened: screen & ~warned & _matching(frame, screen, rare.SCREEN),
    }
    left = ~nameless
    parts = []
    for read, mask in masks.items():
        taken = mask & left
        left = left & ~taken
        if taken.any():
            parts.append(read(frame.lazy().filter(taken)))
    parts.append(rare.ignored(frame.lazy().filter(left)))
    if nameless.any():
        bodies = frame.filter(nameless).with_columns(
            queue_id=pl.lit(None, pl.String), body=pl.col("message").str.strip_prefix("NOQUEUE: ")
        )
        parts += _bodies(bodies.drop("message"))
    return parts


FORMAT = Format(
    name="postfix",
    title="Postfix",
    spec="https://www.postfix.org/ (the daemons' log lines)",
    tables=("mail_events", "access_events"),
    parse=parse,
    programs=r"postfix(?:-[\w.-]+)?(?:/.*)?",
    gaps=(
        "no tenant: the recipient's domain, at local delivery, and the SASL user's domain stand for it",
        "connect, TLS and disconnect are joined to a message by host and process id only",
        "queue ids are reused: join by host and queue id up to `removed`",
        "a message that passes a content filter is queued twice, with one message-id",
        "with info_log_address_format = internal (before 3.5: always) an address may imitate the fields after it",
    ),
)
