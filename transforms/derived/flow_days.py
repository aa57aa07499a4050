"""flow_days: how much mail went from where to where, on a day.

It is counted in the table messages, where the records of a queue id, of a content filter and of an authenticated
submission are joined already: a day costs one pass over a dozen columns of the day's messages.

Mail that was submitted with authentication, or that left, is kept by user, network, sender's and recipient's domain.
Mail that came in is most of all mail and comes from everywhere: it is summed by recipient's domain and fate.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import count, finish, table, within

TABLE = "flow_days"
PERIOD = "day"
SOURCES = ("messages", "tenants")
REACH = (0, 0)

KEY = (
    "date", "tenant_id", "sasl_username", "src_net", "rcpt_domain", "mail_from_domain", "direction", "event",
)  # fmt: skip
_OUTWARD = ("outbound", "internal")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The flows of messages whose last hop began on `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; messages of the days.

    Returns:
        flow_days of `days`; sizes in octets, times UTC.
    """
    rows = table(tables, "messages").filter(within(days) & pl.col("counts"))
    rows = rows.join(_own_domains(tables), on="rcpt_domain", how="left").with_columns(
        pl.col("sasl_username").str.to_lowercase(),
        pl.col("status").alias("event"),
        _domain(pl.col("mail_from")).alias("mail_from_domain"),
    )
    came_in = _came_in().fill_null(value=False)
    rows = rows.with_columns(pl.when(~came_in).then(name).alias(name) for name in ("src_net", "mail_from_domain"))
    # One message to many recipients of a domain is one message of one size.
    messages = rows.group_by(*KEY, "chain_id", "queue_id", "message_id").agg(
        pl.len().cast(pl.Int64).alias("rcpts"),
        count("size_bytes").max().alias("bytes"),
        pl.when(pl.col("event") == "rejected").then(count("attempts", 1)).otherwise(0).sum().alias("rejects"),
        pl.col("received_ts").min().alias("first_ts"),
        pl.col("received_ts").max().alias("last_ts"),
    )
    states = messages.group_by(KEY).agg(
        pl.len().cast(pl.Int64).alias("msgs"),
        pl.col("rcpts", "bytes", "rejects").sum(),
        pl.col("first_ts").min(),
        pl.col("last_ts").max(),
    )
    return finish(states, TABLE, KEY)


def _came_in() -> pl.Expr:
    """Whether a message came in: nobody signed in for it, and it went to a mailbox here or was meant to."""
    known = pl.col("direction") == "inbound"
    unknown = ~pl.col("direction").is_in(_OUTWARD) & (
        pl.col("_own").fill_null(value=False) | pl.col("status").is_in(["delivered", "rejected", "held"])
    )
    return pl.col("sasl_username").is_null() & (known | unknown)


def _domain(address: pl.Expr) -> pl.Expr:
    """The domain of an address; empty for the null sender and for a name without a domain."""
    return (
        address.str.to_lowercase().str.extract(r"@([^@]+)$").fill_null(pl.when(address.is_not_null()).then(pl.lit("")))
    )


def _own_domains(tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    named = table(tables, "tenants").select(pl.col("domain").str.to_lowercase().str.split(";").alias("rcpt_domain"))
    domains = named.explode("rcpt_domain").with_columns(pl.col("rcpt_domain").str.strip_chars())
    return domains.drop_nulls().unique().with_columns(pl.lit(value=True).alias("_own"))
