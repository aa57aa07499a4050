"""journal_hours: messages into and out of the mailboxes that are read over POP3, by hour.

Every journaled message is delivered once and leaves once, so that what went in and what came out must balance. Rows
that count deliveries have no reader (src_net, client_fp and credential_id null); rows that count sessions have no
deliveries. A session stands in the hour of its end.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from transforms.derived._commands import EXCHANGE
from transforms.derived._parts import count, declared_journals, finish, table, within
from transforms.sessions import with_login

TABLE = "journal_hours"
PERIOD = "day"
SOURCES = ("access_events", "mail_events", "sessions", "mailboxes", "bindings")

KEY = ("date", "tenant_id", "hour", "mailbox_id", "is_journal", "src_net", "client_fp", "credential_id")
_READER = ("src_net", "client_fp", "credential_id")
# The two log lines of one delivery (by the mail server, by the store it hands over to) may fall on both sides of the
# hour.
_SAME_DELIVERY = timedelta(minutes=2)


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The ledger of `days` for declared journal mailboxes and for those with a POP3 session on those days.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; events of the days and the day before, sessions.

    Returns:
        journal_hours of `days`; bytes in octets, times UTC.
    """
    pop3 = table(tables, "access_events").filter(pl.col("protocol") == "pop3")
    near = within(days, 1)
    exchange = table(tables, "sessions").filter((pl.col("protocol") == "pop3") & (pl.col("source") == EXCHANGE))
    exchange = _with_address(exchange.filter(within(days)), table(tables, "mailboxes"))
    # Held from here on: what follows looks at it several times.
    sessions = _sessions(pop3.filter(near), exchange, days).collect(engine="streaming").lazy()
    readers = sessions.select("mailbox_id", "host", pl.col("ts").dt.date().alias("date")).unique()
    declared = declared_journals(tables)
    mail = table(tables, "mail_events").filter(near)
    delivered = _with_sizes(_counted_once(_deliveries(mail, readers, declared), days), mail)
    rows = pl.concat([_incoming(delivered), _outgoing(sessions)], how="diagonal")
    rows = _with_tenant(rows.join(declared, on="mailbox_id", how="left"), table(tables, "mailboxes"))
    rows = rows.with_columns(pl.col("hour").dt.date().alias("date"), pl.col("is_journal").fill_null(value=False))
    states = rows.group_by(KEY).agg(
        *(
            count(column).sum().alias(column)
            for column in ("delivered", "delivered_bytes", "sessions", "retrieved", "retrieved_bytes", "deleted")
        ),
        pl.col("maildrop_max").max(),
        pl.col("first_ts").min(),
        pl.col("last_ts").max(),
    )
    return finish(states, TABLE, KEY)


def _sessions(access: pl.LazyFrame, exchange: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Sessions of the days, with the mailbox that was read; Exchange's as they are put together of their commands."""
    session = within(days) & (pl.col("action") == "session") & (pl.col("outcome") != "failure")
    summed = with_login(access.filter(pl.col("source") != EXCHANGE)).filter(session)
    # An opened connection is no session of a reader.
    commands = exchange.filter(pl.col("outcome") == "success").with_columns(pl.col("end_ts").alias("ts"))
    mailbox = pl.coalesce("mailbox_id", "principal_id").str.to_lowercase().alias("mailbox_id")
    kept = ("tenant_id", "ts", mailbox, "host", *_READER, "retr_count", "bytes_out", "dele_count", "maildrop_n")
    rows = pl.concat([summed.select(kept), commands.select(kept)])
    return rows.filter(pl.col("mailbox_id").is_not_null())


def _with_address(sessions: pl.LazyFrame, mailboxes: pl.LazyFrame) -> pl.LazyFrame:
    """Exchange names users without a domain, cut at 20 characters: the one mailbox of that name in the reference."""
    known = mailboxes.select(pl.col("mailbox_id").str.to_lowercase().alias("_address")).unique()
    known = known.with_columns(pl.col("_address").str.extract("^([^@]{1,20})").alias("_short")).drop_nulls()
    single = known.group_by("_short").agg(pl.col("_address").min(), pl.len().alias("_n")).filter(pl.col("_n") == 1)
    user = pl.coalesce("mailbox_id", "principal_id").str.to_lowercase().str.replace(r"^.*[\\/]", "")
    bare = pl.when(~user.str.contains("@", literal=True)).then(user.str.slice(0, 20))
    found = sessions.with_columns(bare.alias("_short")).join(single.drop("_n"), on="_short", how="left")
    return found.with_columns(pl.coalesce("_address", "mailbox_id").alias("mailbox_id")).drop("_short", "_address")


def _deliveries(mail: pl.LazyFrame, readers: pl.LazyFrame, declared: pl.LazyFrame) -> pl.LazyFrame:
    """Deliveries into mailboxes that are watched on their day, one row per log line and recipient.

    `due` is the day for which a delivery is looked at: its own, and the next, whose first deliveries it may explain.
    """
    lines = (
        mail.filter((pl.col("event") == "deliver") & (pl.col("outcome") != "failure") & pl.col("rcpt").is_not_null())
        .with_columns(pl.when(pl.col("recipients").list.len() > 0).then("recipients").otherwise(pl.concat_list("rcpt")))
        .select("tenant_id", "ts", "date", "source", "host", "queue_id", "size_bytes", "recipients")
        .explode("recipients", empty_as_null=False)
        .with_columns(pl.col("recipients").str.to_lowercase().str.strip_chars(" <>").alias("mailbox_id"))
        .drop("recipients")
    )
    readers = readers.rename({"date": "due"})
    local = pl.col("mailbox_id").str.extract("^([^@]*)@")
    boxes = (
        pl.concat([declared.select("mailbox_id"), readers.select("mailbox_id")]).unique().collect(engine="streaming")
    )
    if boxes.is_empty():
        lines = lines.limit(0)
    names = boxes["mailbox_id"].implode()
    lines = lines.filter(pl.col("mailbox_id").is_in(names) | local.is_in(names))
    days = (pl.col("date").alias("due"), pl.col("date").dt.offset_by("1d").alias("due"))
    lines = pl.concat([lines.with_columns(day) for day in days])
    journals = lines.select("due").unique().join(declared.select("mailbox_id"), how="cross")
    watched = pl.concat([readers.select("due", "mailbox_id"), journals]).unique().collect(engine="streaming").lazy()
    addressed = lines.join(watched, on=["due", "mailbox_id"], how="semi")
    # System accounts log in without a domain: their mail is what the same host delivered to that local part.
    bare = readers.filter(~pl.col("mailbox_id").str.contains("@", literal=True)).select(
        "due", "host", pl.col("mailbox_id").alias("_local")
    )
    alone = (
        lines.join(watched, on=["due", "mailbox_id"], how="anti")
        .with_columns(local.alias("_local"))
        .join(bare, on=["due", "host", "_local"], how="semi")
        .with_columns(pl.col("_local").alias("mailbox_id"))
        .drop("_local")
    )
    return pl.concat([addressed, alone])


def _counted_once(lines: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Deliveries of the days without those that Postfix has logged as well.

    Postfix hands a message to Dovecot, and both log the delivery: another source counts for a mailbox only in an hour,
    and at a time, for which Postfix tells of no delivery to it.
    """
    lines = lines.with_columns(pl.col("ts").dt.truncate("1h").alias("hour"))
    postfix = lines.filter(pl.col("source") == "postfix")
    hours = postfix.select("due", "mailbox_id", "hour").unique()
    times = postfix.select("due", "mailbox_id", "ts", pl.lit(value=True).alias("_near")).unique().sort("ts")
    rest = (
        lines.filter(pl.col("source") != "postfix")
        .join(hours, on=["due", "mailbox_id", "hour"], how="anti")
        .sort("ts")
        .join_asof(
            times,
            on="ts",
            by=["due", "mailbox_id"],
            strategy="nearest",
            tolerance=_SAME_DELIVERY,
            check_sortedness=False,
        )
        .filter(pl.col("_near").is_null())
        .drop("_near")
    )
    return pl.concat([postfix, rest]).filter(within(days) & (pl.col("due") == pl.col("date"))).drop("due")


def _with_sizes(lines: pl.LazyFrame, mail: pl.LazyFrame) -> pl.LazyFrame:
    """Adds sizes that Postfix logs only when the message enters the queue: the last size of that queue id before, of
    the day or the day before."""
    queue = ["host", "queue_id"]
    keyed = lines.filter(pl.col("size_bytes").is_null() & pl.col("queue_id").is_not_null())
    plain = lines.filter(pl.col("size_bytes").is_not_null() | pl.col("queue_id").is_null())
    sizes = (
        mail.filter((pl.col("event") != "deliver") & pl.col("size_bytes").is_not_null())
        .join(keyed.select(queue).unique(), on=queue, how="semi", nulls_equal=True)
        .group_by(*queue, "ts")
        .agg(pl.col("size_bytes").max().alias("_size"), pl.col("date").max().alias("_told"))
        .with_columns(pl.col("host").fill_null(""))
        .sort("ts")
    )
    sized = (
        keyed.with_columns(pl.col("host").fill_null(""))
        .sort("ts")
        .join_asof(sizes, on="ts", by=queue, strategy="backward", check_sortedness=False)
        .with_columns(pl.when(pl.col("_told") >= pl.col("date").dt.offset_by("-1d")).then("_size").alias("size_bytes"))
        .drop("_size", "_told")
    )
    return pl.concat([plain, sized])


def _incoming(lines: pl.LazyFrame) -> pl.LazyFrame:
    return lines.group_by("tenant_id", "hour", "mailbox_id").agg(
        pl.len().cast(pl.Int64).alias("delivered"),
        count("size_bytes").sum().alias("delivered_bytes"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )


def _outgoing(sessions: pl.LazyFrame) -> pl.LazyFrame:
    return sessions.group_by("tenant_id", pl.col("ts").dt.truncate("1h").alias("hour"), "mailbox_id", *_READER).agg(
        pl.len().cast(pl.Int64).alias("sessions"),
        count("retr_count").sum().alias("retrieved"),
        count("bytes_out").sum().alias("retrieved_bytes"),
        count("dele_count").sum().alias("deleted"),
        pl.col("maildrop_n").max().alias("maildrop_max"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )


def _with_tenant(rows: pl.LazyFrame, mailboxes: pl.LazyFrame) -> pl.LazyFrame:
    """Names the tenant alike on both sides of the ledger: as declared, else as this row says, else as another does."""
    declared = mailboxes.group_by(pl.col("mailbox_id").str.to_lowercase()).agg(
        pl.col("tenant_id").min().alias("_declared")
    )
    told = pl.coalesce("_declared", "tenant_id")
    return (
        rows.join(declared, on="mailbox_id", how="left")
        .with_columns(told.alias("tenant_id"))
        .with_columns(
            pl.coalesce("tenant_id", pl.col("tenant_id").min().over("mailbox_id", pl.col("hour").dt.date())).alias(
                "tenant_id"
            )
        )
        .drop("_declared")
    )
