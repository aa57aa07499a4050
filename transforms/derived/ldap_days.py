"""ldap_days: who searched a directory, where in it and with what kind of filter, on a day."""

from collections.abc import Mapping
from datetime import date

import polars as pl

from transforms.derived._parts import count, finish, table

TABLE = "ldap_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "principal_id", "src_net", "ldap_base", "filter_class")


def build(day: date, tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The searches of `day` that the directory answered.

    Args:
        day: UTC day.
        tables: SOURCES; access_events of the day.

    Returns:
        ldap_days of `day`; times UTC.
    """
    searched = (pl.col("protocol") == "ldap") & (pl.col("action") == "search") & (pl.col("outcome") != "failure")
    rows = table(tables, "access_events").filter((pl.col("date") == day) & searched)
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
