"""Hops: the records that one server wrote about one message, put together over files and midnights.

What names a hop is, in this order: Exchange's network message id, which all servers of an organisation share (so that
front end, hub and mailbox server are one hop); the server and its queue id or internal id; for deliveries without
either (Dovecot) the server and the Message-ID.

Queue ids are used again. A hop ends with `removed` (Exim: Completed), after 7.5 days without a record, or when a
reception follows an attempt at delivery, as it does where the log lacks the end. Times are those of the logs, to the
second: within a second the order is that of a message's life, never that of the files.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from transforms import spill
from transforms.derived._parts import table, within

REACH = (8, 8)
LIFE = timedelta(days=7, hours=12)  # Postfix, Sendmail and Exim give up after 4 to 5 days, some sites after 7
_SAME_DELIVERY = timedelta(hours=1)  # of a Message-ID that stands for a missing queue id

_ELSEWHERE = ("connect", "disconnect", "tls", "click", "verdict")
_HANDLED = ("deliver", "send", "defer", "bounce", "reject", "expire", "hold", "quarantine", "journal", "receive")
_TRIED = ("deliver", "send", "defer", "bounce", "expire")
_OPENED_ONCE = ("postfix", "exim", "sendmail")
_COPY = r"(?i)(?:^|[^A-Za-z])HA(?:RECEIVE|DISCARD|REDIRECT|REDIRECTFAIL)(?:[^A-Za-z]|$)"
_RANKS = {"submit": 0, "receive": 0, "journal": 0, "cleanup": 1, "queue": 2, "remove": 9}

HOP = ("hop_host", "hop_id")
CLIENT = ("src_ip", "src_net", "src_asn", "src_class", "src_host")
DECIDING = ("dsn", "status_text", "relay_host", "dst_ip")
_FACTS = ("helo", "sasl_username", "tls_version", "mail_from", "subject", "size_bytes", "direction")
_FIRST = ("host", "message_id", "network_message_id", "helo", "sasl_username", "mail_from", "subject")
_TEXTS = (
    "ts", "source", "host", "tenant_id", "event", "op_raw", "outcome", "queue_id", "internal_id", "network_message_id",
    "message_id", *CLIENT, *_FACTS, *DECIDING, "delay_s", "rcpt", "orig_rcpt",
)  # fmt: skip
# Done weighs more than given up, that more than not yet.
_WEIGHTS = {"delivered": 5, "sent": 4, "bounced": 3, "rejected": 3, "expired": 3, "deferred": 2, "held": 2}
_ROWS_AT_ONCE = 350_000
PRIORITY = 2**40  # more than a day has records: priority and place in one number


def records(tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """Records about messages, with the hop that they belong to (hop_id null: none).

    Shadow copies are left out, and of Exchange's protocol logs all but refusals of a client: message tracking has the
    rest. Postfix and Sendmail tell of an authenticated submission in a line that is kept as an authentication.
    """
    copy = pl.col("op_raw").str.contains(_COPY).fill_null(value=False)
    refused = (pl.col("event") == "reject") & pl.col("internal_id").is_null() & pl.col("src_ip").is_not_null()
    told_again = (pl.col("source") == "exchange_smtp") & ~refused
    mail = table(tables, "mail_events").filter(~pl.col("event").is_in(_ELSEWHERE) & ~copy & ~told_again)
    mail = mail.select("date", *_TEXTS, "recipients")
    # Of Sendmail it is a queue id or, where there was none, the number of a process.
    sendmail = (pl.col("source") == "sendmail") & pl.col("session_id").str.contains("[A-Za-z]")
    signed = table(tables, "access_events").filter(
        ((pl.col("source") == "postfix") | sendmail) & (pl.col("action") == "auth") & (pl.col("outcome") == "success")
    )
    names = ("date", "ts", "source", "host", "tenant_id", "src_ip", "src_net", "src_asn", "src_class", "outcome")
    signed = signed.filter(pl.col("session_id").is_not_null()).select(
        *names,
        event=pl.when(pl.col("source") == "postfix").then(pl.lit("receive")).otherwise(pl.lit("submit")),
        queue_id="session_id",
        sasl_username="principal_id",
    )
    return pl.concat([mail, signed], how="diagonal").with_columns(**_keys())


def _keys() -> dict[str, pl.Expr]:
    network, message = pl.col("network_message_id"), pl.col("message_id")
    by_message = message.is_not_null() & pl.col("event").is_in(_HANDLED)
    return {
        "hop_host": pl.when(network.is_null()).then(pl.col("host").fill_null("")).otherwise(pl.lit("")),
        "hop_id": pl.when(network.is_not_null()).then(pl.lit("net:") + network.str.to_lowercase())
        .when(pl.col("queue_id").is_not_null()).then("queue_id")
        .when(pl.col("internal_id").is_not_null()).then("internal_id")
        .when(by_message).then(pl.lit("mid:") + message),
    }  # fmt: skip


def gathered(rows: pl.LazyFrame, days: Sequence[date], at_most: int) -> Iterator[pl.LazyFrame]:
    """Records of hops that have one on `days`, and of hops of the same messages: all that these days' rows depend on.

    Of the other days in reach only the keys are read throughout, and the other columns where a key was found: there
    are few, since most messages are done within the day. The records come in pieces of bounded size, all of a hop in
    one of them; `at_most` is how many there may be.
    """
    rows = rows.filter(pl.col("hop_id").is_not_null())
    today = within(days)
    here, others = rows.filter(today), rows.filter(~today)
    keys = here.select(HOP).unique()
    spanning = others.select(HOP).join(keys, on=HOP, how="semi").unique().collect(engine="streaming")
    own = pl.concat([here, _of(others, spanning)])
    names = own.select("message_id").drop_nulls().unique()
    related = others.filter(pl.col("message_id").is_not_null()).select(*HOP, "message_id")
    related = related.join(names, on="message_id", how="semi").select(HOP).unique()
    more = related.join(spanning.lazy(), on=HOP, how="anti").collect(engine="streaming")
    whole = pl.concat([here, _of(others, pl.concat([spanning, more]))])
    yield from spill.pieces(whole, -(-at_most // _ROWS_AT_ONCE), pl.col("hop_id").hash(0))


def _of(rows: pl.LazyFrame, keys: pl.DataFrame) -> pl.LazyFrame:
    if keys.is_empty():
        return rows.limit(0)
    found = rows.filter(pl.col("hop_id").is_in(keys["hop_id"].unique().implode()))
    return found.join(keys.lazy(), on=HOP, how="semi")


def numbered(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Records with `at` (place in the order), `hop` (number of the hop), `began` (its first time), status, score.

    `score` is the priority of the record for the status, times PRIORITY, plus its place.
    """
    ordered = rows.with_columns(
        pl.col("event").replace_strict(_RANKS, default=3, return_dtype=pl.UInt8).alias("_rank"),
        # No two records that differ have a tie that the files' order would have to break.
        pl.struct(*_TEXTS, pl.col("recipients").list.join(";")).hash(0).alias("_tie"),
    ).sort(*HOP, "ts", "_rank", "_tie")
    before = {name: pl.col(name).shift(1) for name in (*HOP, "ts", "event")}
    same = (pl.col("hop_id") == before["hop_id"]) & (pl.col("hop_host") == before["hop_host"])
    named = pl.col("hop_id").str.starts_with("mid:")
    longest = pl.when(named).then(pl.lit(_SAME_DELIVERY)).otherwise(pl.lit(LIFE))
    queued = ~pl.col("hop_id").str.starts_with("net:")
    again = pl.col("source").is_in(_OPENED_ONCE) & (pl.col("event") == "receive") & before["event"].is_in(_TRIED)
    over = pl.any_horizontal(
        pl.col("ts") - before["ts"] > longest, queued & (before["event"] == "remove"), queued & again
    )
    first = ~same.fill_null(value=False) | over.fill_null(value=False)
    weight = status().replace_strict(_WEIGHTS, default=0, return_dtype=pl.Int64)
    found = ordered.with_columns(first.alias("_first")).with_row_index("at")
    return (
        found.with_columns(
            pl.col("_first").cum_sum().alias("hop"),
            pl.when("_first").then("ts").forward_fill().alias("began"),
            status().alias("status"),
            (weight * PRIORITY + pl.col("at").cast(pl.Int64)).alias("score"),
        )
        .filter(pl.col("ts") - pl.col("began") <= LIFE)
        .drop("_first", "_tie")
    )


def status() -> pl.Expr:
    """What a record makes of the message."""
    event, failed = pl.col("event"), pl.col("outcome") == "failure"
    return (
        pl.when(event.is_in(["deliver", "send"]) & failed).then(pl.lit("deferred"))
        # In message tracking the report that begins its way, elsewhere the copy that has arrived.
        .when((event == "journal") & (pl.col("source") == "exchange_msgtrk")).then(pl.lit("queued"))
        .when(event.is_in(["deliver", "journal"])).then(pl.lit("delivered"))
        .when(event == "send").then(pl.lit("sent"))
        .when(event == "bounce").then(pl.lit("bounced"))
        .when(event == "reject").then(pl.lit("rejected"))
        .when(event == "expire").then(pl.lit("expired"))
        .when(event == "defer").then(pl.lit("deferred"))
        .when(event.is_in(["hold", "quarantine"])).then(pl.lit("held"))
        .otherwise(pl.lit("queued"))
    )  # fmt: skip


def facts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """One row for each hop of `numbered` records: what its records tell about the message as a whole.

    The records come in their order, which a group keeps: the first is the first in time.
    """
    coming = pl.col("event").is_in(["receive", "submit", "cleanup", "journal"])
    tried = pl.col("event").is_in([*_TRIED, "transfer"])
    brought = pl.col("src_ip").is_not_null() & ~tried
    told = pl.col("direction").filter(pl.col("direction") != "unknown")
    return rows.group_by("hop").agg(
        pl.col("began").min(),
        pl.col("ts").filter(coming).min().alias("came"),
        pl.col("ts").max().alias("ended"),
        pl.col("ts").filter(pl.col("message_id").is_not_null()).min().alias("named"),
        pl.col("source").unique().sort().alias("sources"),
        pl.len().cast(pl.Int64).alias("n_events"),
        pl.col("tenant_id").min().alias("_tenant"),
        pl.coalesce("queue_id", "internal_id").drop_nulls().first().alias("queue_id"),
        *(pl.col(name).drop_nulls().first() for name in _FIRST),
        *(pl.col(name).filter(brought).first() for name in CLIENT),
        pl.col("tls_version").filter(~tried).drop_nulls().first(),
        pl.col("size_bytes").max().clip(0),
        told.drop_nulls().first().fill_null("unknown").alias("direction"),
        pl.col("event").is_in(["remove", "other"]).all().alias("_empty"),
    )


def addressed(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The records once for each recipient that they name; `rcpt` is lower case, null where they name none."""
    several = pl.col("recipients").list.len() > 0
    named = pl.when(several).then("recipients").otherwise(pl.concat_list("rcpt"))
    clean = pl.col("rcpt").str.to_lowercase().str.strip_chars(" <>")
    return (
        rows.with_columns(named.alias("rcpt"))
        .drop("recipients")
        .explode("rcpt", empty_as_null=True)
        .with_columns(pl.when(clean != "").then(clean).alias("rcpt"))
    )
