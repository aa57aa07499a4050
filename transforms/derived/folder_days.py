"""folder_days: which folders of whose mailboxes an application, a service or an administrator read, on a day.

Only of rows that name folders and are not an owner's or a deputy's: a person reads all of the own mailbox, a product
what it is made for.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import count, finish, table, within
from transforms.derived.context_days import ADMIN_LOGONS, MACHINES

TABLE = "folder_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "actor_id", "app_id", "credential_id", "mailbox_id", "src_net", "folder")
MOST_FOLDERS = 50  # of a record


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The folders read on `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        folder_days of `days`; times UTC.
    """
    read = within(days) & (pl.col("folders").list.len() > 0) & (pl.col("outcome") != "failure")
    who = [
        pl.col("principal_type").is_in(MACHINES),
        pl.col("principal_id").is_null(),
        pl.col("logon_type").is_in(ADMIN_LOGONS),
    ]
    kept = pl.any_horizontal(flag.fill_null(value=False) for flag in who) & pl.col("mailbox_id").is_not_null()
    not_own = pl.col("logon_type").fill_null("") != "owner"
    rows = table(tables, "access_events").filter(read & kept & not_own)
    states = (
        rows.with_columns(
            pl.coalesce("principal_id", "app_id").alias("actor_id"),
            pl.col("folders").list.head(MOST_FOLDERS).alias("folder"),
        )
        .explode("folder", empty_as_null=True)
        .filter(pl.col("actor_id").is_not_null() & pl.col("folder").is_not_null())
        .group_by(KEY)
        .agg(
            pl.len().alias("n_rows"),
            count("item_count").sum().alias("items"),
            pl.col("ts").min().alias("first_ts"),
            pl.col("ts").max().alias("last_ts"),
        )
    )
    return finish(states, TABLE, KEY)
