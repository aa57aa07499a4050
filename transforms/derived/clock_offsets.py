"""clock_offsets: how far the clocks of two servers are apart, by events that both wrote down.

- A message that one server handed to another: the sender's `sent (... queued as ID)` and the receiver's record of that
  ID with the same Message-ID. The sender writes when the receiver has answered, so that the hand-over itself (mostly
  less than a second) counts towards the sender.
- A web request that the front end passed to the back end of Exchange (one request id in both logs).

The median of a day's differences stands against replies that lie and single slow hand-overs; clocks that are more than
12 hours apart are not found. A token's sign-in and its use are two events, not one, and tell nothing of clocks.

Rows stand in both directions, so that `where host = 'x'` finds all. A day costs three days of the columns that name
messages and requests; the pairs are joined by queue id and Message-ID, at most one for each hand-over.
"""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from transforms.derived._chains import token
from transforms.derived._parts import finish, table, within

TABLE = "clock_offsets"
PERIOD = "day"
SOURCES = ("access_events", "mail_events")
REACH = (1, 1)

KEY = ("date", "host", "reference_host", "basis")
MIN_PAIRS = 5
_MOST = timedelta(hours=12)
_BACK, _FRONT = "exchange_ews", "exchange_httpproxy"
_PAIR = ("host", "reference_host", "ts", "reference_ts", "basis")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The offsets of `days` from at least MIN_PAIRS pairs; see `offsets`."""
    return offsets(days, tables, MIN_PAIRS)


def offsets(days: Sequence[date], tables: Mapping[str, pl.LazyFrame], min_pairs: int) -> pl.LazyFrame:
    """Offsets between servers by the host's records of `day`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; events of the days in REACH.
        min_pairs: pairs that a row needs at least.

    Returns:
        clock_offsets of `days`, in seconds.
    """
    pairs = pl.concat([_handed_over(table(tables, "mail_events")), _passed_on(table(tables, "access_events"))])
    swapped = {"host": "reference_host", "reference_host": "host", "ts": "reference_ts", "reference_ts": "ts"}
    pairs = pairs.collect(engine="streaming").lazy()
    both = pl.concat([pairs, pairs.rename(swapped).select(_PAIR)])
    apart = (pl.col("ts") - pl.col("reference_ts")).dt.total_microseconds() / 1e6
    key = ["date", "host", "reference_host", "basis"]
    mine = within(days) & (apart.abs() <= _MOST.total_seconds())
    differences = both.with_columns(pl.col("ts").dt.date().alias("date")).filter(mine)
    differences = differences.with_columns(apart.alias("apart"))
    middle = differences.group_by(key).agg(
        pl.col("apart").median().alias("offset_s"),
        pl.len().cast(pl.Int64).alias("n_pairs"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )
    spread = differences.join(middle.select(*key, "offset_s"), on=key)
    spread = spread.group_by(key).agg((pl.col("apart") - pl.col("offset_s")).abs().median().alias("mad_s"))
    rows = middle.filter(pl.col("n_pairs") >= min_pairs).join(spread, on=key)
    return finish(rows, TABLE, KEY)


def _handed_over(mail: pl.LazyFrame) -> pl.LazyFrame:
    """Hand-overs of messages: the sender is the host, the receiver the reference."""
    ident = pl.coalesce("queue_id", "internal_id")
    rows = mail.select("ts", "host", "event", "outcome", "message_id", "status_text", ident.alias("ident"))
    rows = rows.filter(pl.col("host").is_not_null() & pl.col("ident").is_not_null())
    known = rows.filter(pl.col("message_id").is_not_null())
    # By day, so that how many days are read at once plays no part.
    day = pl.col("ts").dt.date().alias("day")
    named = known.group_by("host", "ident", "message_id", day).agg(pl.col("ts").min().alias("named"))
    sent = rows.filter((pl.col("event") == "send") & (pl.col("outcome") != "failure"))
    sent = sent.with_columns(token(pl.col("status_text")).alias("taken_as")).drop_nulls("taken_as")
    sent = sent.group_by("host", "ident", "taken_as", day).agg(pl.col("ts").min())
    # Of an id that was used again, the message before the hand-over.
    told = named.with_columns(pl.concat_list("day", pl.col("day").dt.offset_by("1d")).alias("day")).explode("day")
    messages = sent.join(told, on=["host", "ident", "day"]).filter(pl.col("ts") >= pl.col("named"))
    latest = pl.col("named") == pl.col("named").max().over("host", "ident", "taken_as", "day")
    received = named.select(
        pl.col("host").alias("reference_host"),
        pl.col("ident").alias("taken_as"),
        "message_id",
        pl.col("named").alias("reference_ts"),
    )
    met = messages.filter(latest).join(received, on=["taken_as", "message_id"])
    apart = (pl.col("ts") - pl.col("reference_ts")).abs()
    met = met.filter(apart <= _MOST)
    first = pl.col("reference_ts") == pl.col("reference_ts").min().over(
        "host", "ident", "taken_as", "reference_host", "day"
    )
    met = met.filter(first)
    met = met.filter(pl.col("host") != pl.col("reference_host")).with_columns(pl.lit("message_id").alias("basis"))
    return met.select(_PAIR)


def _passed_on(access: pl.LazyFrame) -> pl.LazyFrame:
    """Web requests in the logs of front end (host) and back end (reference), by requests that each logged once."""
    rows = access.filter(
        pl.col("source").is_in([_BACK, _FRONT]) & pl.col("session_id").is_not_null() & pl.col("host").is_not_null()
    ).select("source", "session_id", "host", "ts")
    front, back = (_once(rows.filter(pl.col("source") == name)) for name in (_FRONT, _BACK))
    back = back.rename({"host": "reference_host", "ts": "reference_ts"})
    met = front.join(back, on="session_id").filter(pl.col("host") != pl.col("reference_host"))
    return met.with_columns(pl.lit("request_id").alias("basis")).select(_PAIR)


def _once(rows: pl.LazyFrame) -> pl.LazyFrame:
    counted = rows.group_by("session_id").agg(pl.col("host").min(), pl.col("ts").min(), pl.len().alias("_n"))
    return counted.filter(pl.col("_n") == 1).drop("_n")
