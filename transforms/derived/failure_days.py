"""failure_days: who was refused, from where and with which client, on a day.

A context (account, network, client, protocol) stands here when it was refused at least once on the day; then its
granted sign-ins are counted too. That keeps the table small, and shows where a guess was right. A refused session is a
sign-in that failed; a granted one is not counted, since the sign-in before it is.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import count, finish, table, within

TABLE = "failure_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "principal_id", "src_net", "src_asn", "client_fp", "protocol")
SIGN_INS = ("signin", "auth", "bind")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The contexts that were refused on `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        failure_days of `days`; times UTC.
    """
    events = table(tables, "access_events").filter(within(days))
    refused = events.filter((pl.col("outcome") == "failure") & pl.col("action").is_in([*SIGN_INS, "session"]))
    granted = events.filter((pl.col("outcome") == "success") & pl.col("action").is_in(SIGN_INS))
    # Of the many that were granted only those are grouped by all columns that a refusal may stand beside.
    tried = refused.select("date", "principal_id", "src_net").unique()
    granted = granted.join(tried, on=["date", "principal_id", "src_net"], how="semi", nulls_equal=True)
    rows = pl.concat([_counted(refused, "failures"), _counted(granted, "successes")], how="diagonal")
    states = rows.group_by(KEY).agg(
        pl.col("failures", "successes").sum(), pl.col("first_ts").min(), pl.col("last_ts").max()
    )
    return finish(states.filter(pl.col("failures") > 0), TABLE, KEY)


def _counted(rows: pl.LazyFrame, name: str) -> pl.LazyFrame:
    return rows.group_by(KEY).agg(
        count("op_count", 1).sum().alias(name),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )
