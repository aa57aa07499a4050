"""Postfix through syslog: `postfix/qmgr[18719]: C6E0DDB74006: from=<a@example.com>, size=3098, nrcpt=1 (queue active)`.

Specification: Postfix's own source (log_adhoc.c, smtpd.c, smtpd_check.c, cleanup_message.c, qmgr_active.c, postscreen),
https://www.postfix.org/. A line says one thing about a queue id or about a client's session; what it does not repeat
(who sent the message that is delivered) is found by joining (host, queue id) up to `removed`. Sessions (connect, TLS,
disconnect) carry no queue id; their session_id is the process id.

Addresses, host names and replies are written by others. Fields are read where Postfix writes them, by position; where a
rejection could be read in two ways (a HELO that imitates the rest of the line), its from, to and helo are left null.
Lines that every message brings are cut at fixed separators, and by a regular expression only where that does not fit.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import or_

import polars as pl

from transforms import postfix_rows as rare
from transforms.model import QUARANTINED, Context, Format
from transforms.postfix_rows import PEERED, peer
from transforms.smtp_rows import ROW, access, cut, domain, groups, mail
from transforms.syslog import refusal, unrepeat

Reader = Callable[[pl.DataFrame], list[pl.LazyFrame]]
Task = tuple[Reader, pl.DataFrame]

_MANY = 50_000  # lines that are worth threads
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
    refused = frame.select(refusal(ctx)).to_series().alias("reason")
    bad = frame.with_columns(refused, disposition=pl.lit(QUARANTINED)).filter(refused.is_not_null())
    good = unrepeat(frame.filter(refused.is_null()) if bad.height else frame)
    return pl.concat([bad.select(*ROW, "disposition", "reason"), *_run(_tasks(good))], how="diagonal").lazy()


def _run(tasks: list[Task]) -> list[pl.DataFrame]:
    """Let each reader read its lines; readers of many lines side by side."""

    def work(task: Task) -> list[pl.DataFrame]:
        read, frame = task
        return [rows.collect() for rows in read(frame)] if frame.height else []

    threads = min(pl.thread_pool_size(), len(tasks)) if sum(frame.height for _, frame in tasks) > _MANY else 1
    if threads == 1:
        return [part for task in tasks for part in work(task)]
    with ThreadPoolExecutor(threads) as pool:
        return [part for parts in pool.map(work, tasks) for part in parts]


def _tasks(frame: pl.DataFrame) -> list[Task]:
    message = frame["message"].str
    session = message.starts_with(_SESSION[0]) | message.starts_with(_SESSION[1])
    queued = message.contains(_QUEUED)
    named = cut(frame.lazy().filter(queued), "message", ": ", "queue_id", "body").drop("message").collect()
    return [*_bodies(named), (_sessions, frame.filter(session)), *_without_queue_id(frame.filter(~(queued | session)))]


def _bodies(frame: pl.DataFrame) -> list[Task]:
    """Share out what follows the queue id."""
    body = pl.col("body").str
    kind = (
        pl.when(body.starts_with("to=<")).then(0)
        .when(body.starts_with("from=<")).then(1)
        .when(body.starts_with("client=")).then(2)
        .when(body.starts_with("message-id=") | body.starts_with("resent-message-id=")).then(3)
        .when(pl.col("body") == "removed").then(4)
        .otherwise(5)
    )  # fmt: skip
    kinds = frame.select(kind.cast(pl.UInt8)).to_series()
    readers = (_deliveries, _queueings, _clients, _message_ids, _removals, rare.seldom)
    return [(read, frame.filter(kinds == at)) for at, read in enumerate(readers)]


def _deliveries(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `to=<...>, ..., status=sent (...)`: by cutting, and what does not fit by a regular expression."""
    names = ("rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "delay", "dsn", "status", "status_text")
    fields = _cut_delivery(frame.lazy()).collect()
    fits = fields["fits"]
    if fits.all():
        return [_delivered(fields.lazy(), whole=True)]
    odd = groups(frame.lazy().filter(~fits), pl.col("body"), _TO, *names)
    return [_delivered(fields.lazy().filter(fits), whole=True), _delivered(odd, whole=False)]


def _delivered(rows: pl.LazyFrame, *, whole: bool) -> pl.LazyFrame:
    local, status = pl.col("op_raw").is_in(_LOCAL), pl.col("status")
    sent = pl.when(local).then(pl.lit("deliver")).when(pl.col("op_raw") != "discard").then(pl.lit("send"))
    state = status.replace_strict(_STATES, default=None, return_dtype=pl.String)
    rows = rows.with_columns(
        pl.when(~pl.col("dst_ip_raw").str.contains("/", literal=True)).then("dst_ip_raw"),  # the path of a socket
        event=pl.when(status == "sent").then(sent).otherwise(state).fill_null("other"),
        outcome=status.replace_strict(_OUTCOMES, default="unknown", return_dtype=pl.String),
        delay_s=pl.col("delay").cast(pl.Float64, strict=False),
        tenant_domain=pl.when(local).then(domain("rcpt")),
    )
    kept = ("rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "delay_s", "dsn", "status_text", "tenant_domain")
    good = None if whole else status.is_not_null()
    return mail(rows, ("queue_id", "event", "outcome", *kept), good, "delivery line cut or damaged")


def _cut_delivery(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Cut a delivery into its fields; `fits` tells where they are the usual ones and no address is quoted."""
    rows = cut(rows, "body", " (", "fields", "text").drop("body")
    rows = cut(rows, "fields", ", relay=", "who", "how")
    rows = cut(rows, "who", ">, orig_to=<", "rcpt", "orig_rcpt")
    rows = cut(rows, "how", ", ", "relay", "delay", "delays", "dsn", "status", "more")
    rows = cut(rows, "relay", "[", "relay_host", "at")
    fits = pl.all_horizontal(pl.col(name).str.starts_with(f"{name}=") for name in ("delay", "delays", "dsn", "status"))
    fits = fits & pl.col("who").str.ends_with(">") & ~pl.col("who").str.contains('"', literal=True)
    fits = fits & pl.col("more").is_null() & pl.col("text").is_not_null()
    return rows.with_columns(
        pl.col("rcpt").str.slice(4).str.strip_suffix(">"),
        pl.col("orig_rcpt").str.strip_suffix(">"),
        pl.col("delay").str.slice(6),
        pl.col("dsn").str.slice(4),
        pl.col("status").str.slice(7),
        dst_ip_raw="[" + pl.col("at"),
        status_text=pl.col("text").str.strip_suffix(")"),
        fits=fits.fill_null(value=False),
    )


def _queueings(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `from=<...>, size=..., nrcpt=... (queue active)`, or its `status=expired, returned to sender`."""
    rows = cut(frame.lazy(), "body", ", ", "p0", "p1", "p2")
    rows = cut(rows.with_columns(pl.col("p2").str.slice(6)), "p2", " ", "n", "why")
    rows = rows.with_columns(
        size_bytes=pl.col("p1").str.slice(5).cast(pl.Int64, strict=False),
        n_rcpt=pl.col("n").cast(pl.Int64, strict=False),
        mail_from=pl.col("p0").str.slice(6).str.strip_suffix(">"),
        status_text=pl.lit("queue active"),
        event=pl.lit("queue"),
        outcome=pl.lit("success"),
    )
    plain = pl.col("p0").str.ends_with(">") & ~pl.col("p0").str.contains('"', literal=True)
    plain = plain & pl.col("p1").str.starts_with("size=") & (pl.col("why") == "(queue active)")
    plain = plain & (pl.col("size_bytes") >= 0) & (pl.col("n_rcpt") >= 0)
    fields = rows.with_columns(fits=plain.fill_null(value=False)).collect()
    fits = fields["fits"]
    kept = ("queue_id", "event", "outcome", "mail_from", "size_bytes", "n_rcpt", "status_text")
    if fits.all():
        return [mail(fields.lazy(), kept)]
    odd = groups(frame.lazy().filter(~fits), pl.col("body"), _FROM, *kept[3:6], "state", "expired", "why")
    late = pl.col("expired").is_not_null()
    odd = odd.with_columns(
        pl.col("size_bytes", "n_rcpt").cast(pl.Int64, strict=False),
        event=pl.when(late).then(pl.lit("expire")).otherwise(pl.lit("queue")),
        outcome=pl.when(late).then(pl.lit("failure")).otherwise(pl.lit("success")),
        status_text=pl.coalesce("why", "state"),
    )
    read = pl.col("mail_from").is_not_null()
    return [mail(fields.lazy().filter(fits), kept), mail(odd, kept, read, "queue line cut or damaged")]


def _message_ids(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    rows = cut(frame.lazy(), "body", "=", "key", "id")
    ident = pl.when(pl.col("id") != "").then("id")
    rows = rows.with_columns(message_id=ident, event=pl.lit("cleanup"), outcome=pl.lit("success"))
    return [mail(rows, ("queue_id", "event", "outcome", "message_id"))]


def _removals(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    rows = frame.lazy().with_columns(event=pl.lit("remove"), outcome=pl.lit("success"))
    return [mail(rows, ("queue_id", "event", "outcome"))]


def _clients(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `client=`: the reception of a message, or with a SASL user an authentication for it.

    client=h.dinos.test[192.168.4.150]:4711, sasl_method=PLAIN, sasl_username=rex, sasl_sender=x@dinos.test
    """
    frame = frame.with_columns(pl.col("body").str.slice(len("client=")))
    sasl = frame["body"].str.contains(", sasl_", literal=True)
    rows, more = peer(frame.filter(~sasl), "body"), pl.col("more")
    whole = pl.col("whole") & ((more == "") | more.str.starts_with(", orig_"))
    rows = rows.with_columns(event=pl.lit("receive"), outcome=pl.lit("success"))
    kept = ("queue_id", "event", "outcome", "src_host", "src_ip_raw")
    received = mail(rows, kept, whole.fill_null(value=False), "client line cut or damaged")
    signed = cut(peer(frame.filter(sasl), "body"), "more", ", sasl_method=", "before", "method")
    signed = cut(signed, "method", ", sasl_username=", "auth_method", "named")
    signed = cut(signed, "named", ", sasl_sender=", "user", "sender").rename({"queue_id": "session_id"})
    signed = signed.with_columns(reason=pl.lit(None, pl.String), outcome=pl.lit("success"))
    good = ((pl.col("user") != "") & pl.col("whole")).fill_null(value=False)
    return [received, access(signed, good, "client line cut or damaged")]


def _sessions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `connect from name[address]` and `disconnect from name[address] ehlo=1 auth=0/1 quit=1 commands=2/3`."""
    begun = frame["message"].str.starts_with("c")
    return [
        _session(frame.filter(begun), "connect", len(_SESSION[0])),
        _session(frame.filter(~begun), "disconnect", len(_SESSION[1])),
    ]


def _session(frame: pl.DataFrame, event: str, begin: int) -> pl.LazyFrame:
    rows = peer(frame.with_columns(pl.col("message").str.slice(begin)), "message")
    more = pl.col("more")
    rows = rows.with_columns(
        status_text=pl.when(more != "").then(more.str.slice(1)),
        event=pl.lit(event),
        outcome=pl.lit("success"),
        session_id="pid",
    )
    whole = pl.col("whole") & ((more == "") | more.str.starts_with(" "))
    return mail(rows, PEERED, whole.fill_null(value=False), "session line cut or damaged")


def _without_queue_id(frame: pl.DataFrame) -> list[Task]:
    """Share out lines without a queue id, among them those of messages that were not queued (NOQUEUE)."""
    message = frame["message"].str
    nameless, warned = message.starts_with("NOQUEUE: "), message.starts_with("warning: ")
    tls = ~warned & (message.starts_with("TLS connection ") | message.contains(" TLS connection ", literal=True))
    ended = reduce(or_, (message.starts_with(text) for text in rare.ENDINGS))
    screen = ~warned & (frame["op_raw"] == "postscreen")
    shapes = (
        (rare.sasl_failures, warned, rare.SASL),
        (rare.tls, tls, rare.TLS),
        (rare.troubles, ended, rare.TROUBLE),
        (rare.screened, screen, rare.SCREEN),
    )
    left, tasks = ~nameless, []
    for read, begins, pattern in shapes:
        if (begins & left).any():
            text = frame.select(pl.when(begins & left).then("message")).to_series()
            taken = text.str.contains(pattern).fill_null(value=False)
            tasks.append((read, frame.filter(taken)))
            left = left & ~taken
    bodies = frame.filter(nameless).with_columns(
        queue_id=pl.lit(None, pl.String), body=pl.col("message").str.slice(len("NOQUEUE: "))
    )
    return [*tasks, (rare.unknown, frame.filter(left)), *_bodies(bodies.drop("message"))]


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
