"""Chains: hops of one message that one server, or one program on it, handed to the next.

A content filter takes a message out of the queue and puts it back under a new queue id, and the next server logs it
again. The Message-ID stays the same, but it is the sender's word: who sends a thousand messages under one Message-ID
must not see them counted as one. So a hop follows another only if it carries the same recipient and

- the first one's next hop answered with the second one's queue id (`queued as ...`), or
- it is the hop before it on the same server, handed to a program or the loopback address (or to where the second one
  comes from), and the second one comes from there, or
- the first one's next hop bears the name of the second one's server, or the second one's client that of the first's, or
- one of them is in the log of a gateway service, which hands over at once,

and the hand-over and the second reception are close in time.

A hop waits in a queue for up to a week, so that the one before it lies within the days that are read for a row's own
day; those before that one may not. So that the days built at once make no difference, a chain begins with the first hop
that began in these days: from there on the next server's log is what is known of where the message came from.
"""

from datetime import timedelta

import polars as pl

_NEAR = timedelta(hours=1)
_AT_ONCE = timedelta(minutes=10)
_GATEWAYS = ("mimecast", "proofpoint", "m365_messagetrace")
_LOOPBACK = r"^(?:127\.|::1$)"
_LONGEST = 9  # hops of a chain
_ALWAYS_NAMED = "exchange_msgtrk"  # every record bears the Message-ID, also where the hop's first one is out of reach
# 250 2.0.0 Ok: queued as 4F9D195432C; 250 OK id=1qX-0001; u31FFPtp032300 Message accepted; [InternalId=70912345566403
_QUEUED_AS = (
    r"(?i:queued as |[^a-z]id=|\[InternalId=)([A-Za-z0-9-]{5,40})",
    r"([A-Za-z0-9]{10,20}) Message accepted for delivery",
)
_SEEN = ("row", "host", "queue_id", "done", "given", "relay_host", "dst_ip", "sources")


def token(text: pl.Expr) -> pl.Expr:
    """Queue id that the next hop's reply names."""
    return pl.coalesce(text.str.extract(pattern) for pattern in _QUEUED_AS)


def links(rows: pl.DataFrame) -> pl.DataFrame:
    """Which row follows which: [row, previous, previous_queue_id], one for each row that follows another.

    Args:
        rows: one for each hop and recipient, with `row` (its number), host, queue_id, message_id, named (its first
            time), rcpt, orig_rcpt, done (delivered or sent), given (when), status_text, relay_host, dst_ip, src_ip,
            src_host, tried_first (first record of the recipient), sources.
    """
    named = rows.filter(pl.col("message_id").is_not_null() & pl.col("rcpt").is_not_null())
    # Most messages have one hop: they are no part of what follows.
    hops = named.group_by("message_id").agg((pl.col("hop").min() != pl.col("hop").max()).alias("several"))
    known = named.join(hops.filter("several"), on="message_id", how="semi").lazy()
    prompt = (pl.col("tried_first") - pl.col("named")) <= _NEAR
    second = known.filter(prompt.fill_null(value=False))
    incoming = pl.concat_list("rcpt", "orig_rcpt").list.drop_nulls().list.unique(maintain_order=True)
    arrivals = second.with_columns(incoming.alias("address")).explode("address", empty_as_null=True)
    by_reply, next_to = _by_reply(known, arrivals), _by_place(known, arrivals)
    found = pl.concat([by_reply, next_to.join(by_reply, on="row", how="anti")])
    # One that follows several (as one recipient and as another) follows the last.
    return (
        found.group_by("row")
        .agg(pl.col("previous").max())
        .join(
            known.select(pl.col("row").alias("previous"), pl.col("queue_id").alias("previous_queue_id")), on="previous"
        )
        .collect(engine="streaming")
    )


def _by_reply(known: pl.LazyFrame, arrivals: pl.LazyFrame) -> pl.LazyFrame:
    """Rows whose queue id the reply of another hop's next hop names."""
    senders = known.filter("done").select(
        "message_id",
        pl.col("rcpt").alias("address"),
        token(pl.col("status_text")).alias("queue_id"),
        pl.col("row").alias("previous"),
        *(pl.col(name).alias(f"_{name}") for name in ("hop", "host", "given", "named", "dst_ip")),
    )
    met = arrivals.join(senders.drop_nulls("queue_id"), on=["message_id", "address", "queue_id"])
    near = (pl.col("_given") - pl.col("named")).abs() <= _NEAR
    # The reply is the next hop's word: on one server it must fit where the message came from.
    elsewhere = (pl.col("host") != pl.col("_host")).fill_null(value=True)
    elsewhere = elsewhere & (pl.col("named") - pl.col("_named") >= -_AT_ONCE)
    later = (pl.col("_hop") != pl.col("hop")) & (elsewhere | (_from_itself() & (pl.col("named") >= pl.col("_named"))))
    return met.filter(near & later).group_by("row").agg(pl.col("previous").max())


def _by_place(known: pl.LazyFrame, arrivals: pl.LazyFrame) -> pl.LazyFrame:
    """Rows that follow the hop before them, in time, of the same message and recipient."""
    left = known.with_columns(pl.col("rcpt").alias("address"), pl.lit(value=True).alias("_sends"))
    came = arrivals.join(left.select("row", "address"), on=["row", "address"], how="anti")
    came = came.with_columns(pl.lit(value=False).alias("_sends"))
    inside = pl.col("src_ip").str.contains(_LOOPBACK).fill_null(value=False)
    entries = pl.concat([left, came], how="diagonal").with_columns(inside.alias("_inside"))
    entries = entries.sort("message_id", "address", "named", "_inside", "row")
    group = [pl.col(name) == pl.col(name).shift(1) for name in ("message_id", "address")]
    before = [pl.col(name).shift(1).alias(f"_{name}") for name in (*_SEEN, "hop")]
    entries = entries.with_columns(*before, (pl.all_horizontal(group) & pl.col("_sends").shift(1)).alias("_after"))
    timely = (pl.col("_given") - pl.col("named")).abs()
    follows = (
        (_from_itself() & (timely <= _NEAR)) | (_by_name() & (timely <= _NEAR)) | (_by_gateway() & (timely <= _AT_ONCE))
    )
    prompt = (pl.col("tried_first") - pl.col("named")) <= _NEAR
    wanted = pl.col("_after") & pl.col("_done") & (pl.col("_hop") != pl.col("hop")) & prompt
    met = entries.filter((wanted & follows).fill_null(value=False))
    return met.group_by("row").agg(pl.col("_row").max().alias("previous"))


def _from_itself() -> pl.Expr:
    here = pl.col("host").fill_null("") == pl.col("_host").fill_null("")
    back = pl.col("src_ip") == pl.col("_dst_ip")
    handed = pl.col("_dst_ip").is_null() | pl.col("_dst_ip").str.contains(_LOOPBACK) | back
    taken = pl.col("src_ip").is_null() | pl.col("src_ip").str.contains(_LOOPBACK) | back
    return here & handed.fill_null(value=False) & taken.fill_null(value=False)


def _by_name() -> pl.Expr:
    there = _same_name("_relay_host", "host") | _same_name("_host", "src_host")
    return there.fill_null(value=False) & (pl.col("host") != pl.col("_host")).fill_null(value=True)


def _same_name(one: str, other: str) -> pl.Expr:
    """Whether two names are one server's: alike, or alike in the first part where one of them has no more."""
    names = [pl.col(name).str.to_lowercase().str.strip_chars_end(".") for name in (one, other)]
    bare = ~(names[0].str.contains(".", literal=True) & names[1].str.contains(".", literal=True))
    first = [name.str.extract(r"^([^.]+)") for name in names]
    same = (names[0] == names[1]) | (bare & (first[0] == first[1]))
    return same.fill_null(value=False)


def _by_gateway() -> pl.Expr:
    gateways = pl.lit(pl.Series([list(_GATEWAYS)]))
    ours, theirs = (pl.col(name).list.set_intersection(gateways).list.len() for name in ("sources", "_sources"))
    return (ours > 0) != (theirs > 0)


def rooted(found: pl.DataFrame, rows: pl.DataFrame, reach: timedelta) -> pl.DataFrame:
    """Adds `root`, the first row of the chain that is in reach, to `links`.

    Args:
        found: the links.
        rows: those given to `links`; also began (first record of the hop), came (its reception) and sources.
        reach: how long before the row's own day the hops of its chain may begin.
    """
    rows = rows.select("row", "began", "came", "sources")  # a filter copies what it keeps: not all columns
    whole = ~pl.col("sources").list.contains(_ALWAYS_NAMED) | (pl.col("came") == pl.col("began"))
    further = found.select(pl.col("row").alias("root"), pl.col("previous").alias("_root")).join(
        rows.filter(whole.fill_null(value=False)).select(pl.col("row").alias("_root"), "began"), on="_root"
    )
    earliest = (pl.col("began").dt.truncate("1d") - reach).alias("earliest")
    steps = found.join(rows.select("row", earliest), on="row").select(
        "row", pl.col("previous").alias("root"), "earliest"
    )
    for _ in range(_LONGEST - 2):
        met = steps.join(further, on="root", how="left")
        near = (pl.col("began") >= pl.col("earliest")).fill_null(value=False)
        after = met.select("row", pl.when(near).then("_root").otherwise("root").alias("root"), "earliest")
        if not met.select(near.any()).item():
            break
        steps = after
    return found.join(steps.select("row", "root"), on="row")
