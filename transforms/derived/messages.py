"""messages: one row per message and recipient, from all that any log tells of it.

A row is one hop (see `_hops`) of a message to one recipient. Where a message passes several hops, by a content filter
or from server to server, the last one's row of each recipient counts (`counts`), and bears the client, authenticated
user, HELO and TLS of the first in REACH, so that sums over rows that count are true for both ends (see `_chains`). A
hop stands on the UTC day of its first record, whenever it was delivered. The notification of a bounce is a message of
its own.

Postfix tells the TLS version in a line without a queue id: that of the client's latest session before the reception.

What a day costs: at a billion mail records a year (2.7 million a day, about 0.6 million messages), the full columns of
one day, the five key columns of the 16 days around it (44 million rows), and of those days the other columns only
where a hop of the day goes on. Measured: 60,000 messages in 300,000 records a day take 4 processor seconds and less
than 1 GB, so that such a day takes about 35 seconds' work and a year of a billion records three to four hours'. A new
day of records is felt by the 17 days in reach of it, of which those without records cost nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from transforms.derived import _chains, _hops
from transforms.derived._hops import CLIENT, DECIDING, PRIORITY
from transforms.derived._parts import declared_journals, finish, height, in_order, table, within
from transforms.spill import Spill

TABLE = "messages"
PERIOD = "day"
SOURCES = ("mail_events", "access_events", "mailboxes", "bindings")
REACH = _hops.REACH

KEY = ("tenant_id", "first_ts", "host", "queue_id", "message_id", "rcpt")
_ORDER = (*KEY, "orig_rcpt", "status", "mail_from", "src_ip", "status_text", "helo")
_RECORDS_AT_ONCE = 400_000  # 50,000 messages of Postfix, 200,000 of Mimecast
_INHERITED = (*CLIENT, "helo", "sasl_username", "tls_version")
_PLACE = ("host", "queue_id", "began")
_LATEST_SESSION = "1h"
_WITHOUT_QUEUE = ("reject", "bounce", "defer", "deliver", "send", "hold", "quarantine")
_REFUSED = ("dsn", "status_text", "relay_host", "dst_ip", *CLIENT, "helo", "sasl_username", "tls_version")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The messages whose hops began on `days`; see `parts`."""
    return in_order(pl.concat([part.collect().lazy() for part in parts(days, tables)]), TABLE, _ORDER)


def parts(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> Iterator[pl.LazyFrame]:
    """The messages whose hops began on `days`, in parts of bounded size.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; mail_events and access_events of the days in REACH.

    Returns:
        messages of `days`; sizes in octets, times UTC.
    """
    records = _hops.records(tables)
    size, before = height(tables, "mail_events"), 0
    sessions = _tls_sessions(tables, days)
    began = pl.col("began").dt.date().is_between(days[0], days[-1])
    wanted = began & ~(pl.col("_empty") & pl.col("rcpt").is_null())
    # A chain is made of hops of one message.
    of_message = pl.coalesce(pl.col("message_id").hash(0), pl.col("hop").cast(pl.UInt64))
    with Spill(max(1, -(-size // _RECORDS_AT_ONCE)), of_message) as received:
        for piece in _hops.gathered(records, days, size):
            numbered = _hops.numbered(piece.collect(engine="streaming"))
            numbered = numbered.with_columns(pl.col("hop") + before)
            before += numbered.height
            received.add(_received(_hops.facts(numbered), numbered).lazy())
        for some in received.pieces():
            held = some.collect(engine="streaming")
            yield _finished(_chained(_with_tls(held, sessions)).lazy().filter(wanted), tables)
    yield _finished(_without_queue(records, days), tables)


def _finished(rows: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    journals = declared_journals(tables).rename({"mailbox_id": "rcpt", "is_journal": "_declared"})
    whole = rows.join(journals, on="rcpt", how="left")
    whole = whole.with_columns(
        pl.col("began").dt.date().alias("date"),
        pl.col("began").alias("first_ts"),
        pl.col("rcpt").str.extract(r"@([^@]+)$").alias("rcpt_domain"),
        pl.any_horizontal(pl.col("_journal", "_declared").fill_null(value=False)).alias("is_journal"),
    )
    return finish(whole, TABLE, _ORDER)


def _received(hops: pl.DataFrame, numbered: pl.DataFrame) -> pl.DataFrame:
    """One row for each hop and recipient, with the record that decides what became of it."""
    of_each = ("hop", "score", "ts", "rcpt", "orig_rcpt", "recipients", "tenant_id", "event")
    named = _hops.addressed(numbered.lazy().select(of_each)).collect(engine="streaming")
    event = pl.col("event")
    tries = [event.is_in(names).sum().cast(pl.Int64) for names in (["send"], ["deliver"], ["defer", "bounce"])]
    each = (
        named.filter(pl.col("rcpt").is_not_null())
        .group_by("hop", "rcpt")
        .agg(
            pl.col("score").max(),
            pl.col("ts").min().alias("tried_first"),
            pl.col("ts").max().alias("last_ts"),
            pl.col("orig_rcpt").str.to_lowercase().str.strip_chars(" <>").min(),
            pl.col("tenant_id").min(),
            # Exchange tells a delivery twice, as sent to the mailbox server and as delivered by it.
            (pl.max_horizontal(tries[0], tries[1]) + tries[2]).alias("attempts"),
            (event == "journal").any().alias("_journal"),
        )
    )
    whole = named.filter(pl.col("rcpt").is_null()).group_by("hop").agg(pl.col("score").max().alias("_whole"))
    rows = hops.join(each, on="hop", how="left").join(whole, on="hop", how="left")
    score = rows.select(pl.max_horizontal("score", "_whole"))["score"]
    decides = numbered["at"].arg_sort().gather((score % PRIORITY).set(score < PRIORITY, None))
    rows = rows.with_columns(
        *(numbered[name].gather(decides) for name in ("status", *DECIDING, "delay_s")),
        numbered["ts"].gather(decides).alias("given"),
    )
    came = pl.coalesce("came", "began")
    return rows.with_columns(
        pl.coalesce("tenant_id", "_tenant").alias("tenant_id"),
        pl.col("status").fill_null("queued"),
        pl.max_horizontal(pl.coalesce("last_ts", "ended"), "given").alias("last_ts"),
        pl.col("attempts").fill_null(0),
        pl.coalesce("delay_s", (pl.col("given") - came).dt.total_microseconds() / 1e6).alias("delay_s"),
        came.alias("received_ts"),
    )


def _chained(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds what the chain of hops tells: which row counts, what came before, and who brought the message."""
    order = rows.select("hop", "rcpt", at=pl.int_range(pl.len(), dtype=pl.UInt32)).sort("hop", "rcpt")
    done = pl.col("status").is_in(["sent", "delivered"]).alias("done")
    held = rows.with_columns(order.with_row_index("row").sort("at")["row"], done)
    linked = _chains.rooted(_chains.links(held), held, timedelta(days=REACH[0]))
    inherited = (*_INHERITED, "received_ts", "size_bytes", "mail_from", "subject", *_PLACE)
    first = held.select(pl.col("row").alias("root"), *(pl.col(name).alias(f"_{name}") for name in inherited))
    again = held.join(linked, on="row").join(first, on="root", how="left")
    again = again.with_columns(
        *(pl.col(f"_{name}").alias(name) for name in (*_INHERITED, "received_ts")),
        *(pl.coalesce(name, f"_{name}").alias(name) for name in ("size_bytes", "mail_from", "subject")),
        pl.lit(value=True).alias("is_reinjection"),
    )
    alone = held.join(linked, on="row", how="anti").with_columns(
        *(pl.col(name).alias(f"_{name}") for name in _PLACE), pl.lit(value=False).alias("is_reinjection")
    )
    # Of a group whose members are named, the members count.
    members = held.filter(pl.col("orig_rcpt") != pl.col("rcpt")).select(
        "hop", pl.col("orig_rcpt").alias("rcpt"), pl.lit(value=True).alias("_group")
    )
    found = pl.concat([alone, again], how="diagonal").join(members.unique(), on=["hop", "rcpt"], how="left")
    known = pl.any_horizontal(pl.col(name).is_not_null() for name in ("rcpt", "message_id", "size_bytes"))
    expanded = pl.col("_group").fill_null(value=False) & (pl.col("status") == "queued")
    place = pl.format(
        "{}/{}/{}", pl.col("_host").fill_null("-"), pl.coalesce("_queue_id", "message_id").fill_null("-"),
        pl.col("_began").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
    )  # fmt: skip
    passed = pl.col("row").is_in(linked["previous"].unique().implode())
    return found.with_columns((~passed & ~expanded & known).alias("counts"), place.alias("chain_id"))


def _tls_sessions(tables: Mapping[str, pl.LazyFrame], days: Sequence[date]) -> pl.LazyFrame:
    """Beginnings of sessions and of their encryption, of clients that ever encrypt, in order of time."""
    sessions = table(tables, "mail_events").filter(
        within(days, 1) & pl.col("event").is_in(["connect", "tls"]) & pl.col("src_ip").is_not_null()
    )
    started = pl.col("event") == "connect"
    # TLS begins after the connection: within a second it comes second.
    found = sessions.select(
        pl.col("host").fill_null(""), "src_ip", "ts", started.not_().alias("_tls"), pl.col("tls_version").alias("_seen")
    )
    held = found.sort("ts", "_tls", "_seen").collect(engine="streaming")
    return held.join(held.filter("_tls"), on=["host", "src_ip"], how="semi", maintain_order="left").lazy()


def _with_tls(hops: pl.DataFrame, sessions: pl.LazyFrame) -> pl.DataFrame:
    """Fills TLS versions from the latest session of the same client before the reception."""
    lacking = pl.col("tls_version").is_null() & pl.col("src_ip").is_not_null()
    keys = hops.select(
        pl.col("host").fill_null(""), "src_ip", lacking.alias("lacking"), ts=pl.coalesce("came", "began"),
        at=pl.int_range(pl.len(), dtype=pl.UInt32),
    )  # fmt: skip
    met = keys.lazy().filter("lacking").sort("ts").join_asof(
        sessions, on="ts", by=["host", "src_ip"], strategy="backward", tolerance=_LATEST_SESSION,
        check_sortedness=False,
    ).select("at", "_seen").collect(engine="streaming")  # fmt: skip
    seen = keys.select("at").join(met, on="at", how="left", maintain_order="left")["_seen"]
    return hops.with_columns(pl.coalesce("tls_version", seen).alias("tls_version"))


def _without_queue(records: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Rejections and the like that have no queue id: alike records of one instant are one row."""
    alone = pl.col("hop_id").is_null() & within(days) & pl.col("event").is_in(_WITHOUT_QUEUE)
    status = _hops.status()
    rows = _hops.addressed(records.filter(alone)).with_columns(
        pl.col("orig_rcpt").str.to_lowercase().str.strip_chars(" <>"),
        pl.col("direction").fill_null("unknown"),
        pl.col("size_bytes").clip(0),
        (pl.col("event") == "journal").alias("_journal"),
        status.alias("status"),
    )
    alike = ("tenant_id", "host", "source", "message_id", "mail_from", "rcpt", "orig_rcpt", "subject", "direction")
    key = ["ts", *alike, "status", "size_bytes", "delay_s", "_journal", *_REFUSED]
    counted = rows.group_by(key).agg(pl.len().cast(pl.Int64).alias("attempts"))
    times = {name: pl.col("ts") for name in ("began", "received_ts", "last_ts")}
    chain = pl.format("{}/-/{}", pl.col("host").fill_null("-"), pl.col("ts").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ"))
    return counted.with_columns(
        **times,
        sources=pl.concat_list("source"),
        n_events="attempts",
        is_reinjection=pl.lit(value=False),
        counts=pl.lit(value=True),
        chain_id=chain,
    )
