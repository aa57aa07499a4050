"""throttled_days: mailboxes of which the log stopped telling all reads, by who read, on a day.

Exchange Online stops recording reads of a mailbox for a day after the thousandth within a day, and says so in the
record. There are few such records, and each is a hole in what the logs can say: all are kept.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import finish, table, within

TABLE = "throttled_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "actor_id", "mailbox_id", "src_net", "is_own")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The throttled mailboxes of `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        throttled_days of `days`; times UTC.
    """
    same = (pl.col("principal_id") == pl.col("mailbox_id")).fill_null(value=False)
    logon = pl.col("logon_type")
    rows = (
        table(tables, "access_events")
        .filter(within(days) & pl.col("throttled").fill_null(value=False) & pl.col("mailbox_id").is_not_null())
        .with_columns(
            pl.coalesce("principal_id", "app_id").alias("actor_id"),
            pl.when(logon.is_null()).then(same).otherwise(logon == "owner").alias("is_own"),
        )
        .filter(pl.col("actor_id").is_not_null())
    )
    states = rows.group_by(KEY).agg(
        pl.len().alias("n_rows"), pl.col("ts").min().alias("first_ts"), pl.col("ts").max().alias("last_ts")
    )
    return finish(states, TABLE, KEY)
