"""coverage_hours: which log tells of which tenant and server, in which hour.

What no row tells of may have happened all the same: before a hunt says that there was nothing, it looks here whether
the log was there. Records that are not events (ignored, refused) do not count. A day costs one pass over five columns.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import finish, table, within

TABLE = "coverage_hours"
PERIOD = "day"
SOURCES = ("access_events", "mail_events", "change_events", "gateway_jobs")
REACH = (0, 0)

KEY = ("date", "hour", "source", "tenant_id", "host")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The hours of `days` in which a log has events.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; events of the days.

    Returns:
        coverage_hours of `days`; times UTC.
    """
    states = (
        pl.concat([_counted(table(tables, name).filter(within(days))) for name in SOURCES])
        .group_by(KEY)
        .agg(pl.col("n_rows").sum(), pl.col("first_ts").min(), pl.col("last_ts").max())
    )
    return finish(states, TABLE, KEY)


def _counted(events: pl.LazyFrame) -> pl.LazyFrame:
    return events.group_by("date", pl.col("ts").dt.truncate("1h").alias("hour"), "source", "tenant_id", "host").agg(
        pl.len().cast(pl.Int64).alias("n_rows"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )
