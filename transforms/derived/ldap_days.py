"""ldap_days: who searched a directory, where in it and with what kind of filter, on a day."""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import count, finish, table, within

TABLE = "ldap_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "principal_id", "src_net", "ldap_base", "filter_class")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The searches of `days` that the directory answered.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        ldap_days of `days`; times UTC.
    """
    searched = (pl.col("protocol") == "ldap") & (pl.col("action") == "search") & (pl.col("outcome") != "failure")
    rows = table(tables, "access_events").filter(within(days) & searched)
    states = (
        rows.with_columns(pl.col("ldap_filter_class").alias("filter_class"))
        .group_by(KEY)
        .agg(
            count("op_count", 1).sum().alias("searches"),
            count("entries_returned").sum().alias("entries"),
            pl.col("ts").min().alias("first_ts"),
            pl.col("ts").max().alias("last_ts"),
        )
    )
    return finish(states, TABLE, KEY)
