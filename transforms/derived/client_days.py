"""client_days: which clients the account of a person opened mailboxes with, on a day.

The clients of machine identities stand in context_days.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import finish, table, within

TABLE = "client_days"
PERIOD = "day"
SOURCES = ("access_events",)
REACH = (0, 0)

KEY = ("date", "tenant_id", "principal_id", "client_fp")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The clients of `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days.

    Returns:
        client_days of `days`; times UTC.
    """
    person = pl.col("principal_type").fill_null("user") == "user"
    named = [pl.col(name).is_not_null() for name in ("principal_id", "client_fp", "mailbox_id")]
    rows = table(tables, "access_events").filter(within(days) & person & (pl.col("outcome") != "failure"), *named)
    states = rows.group_by(KEY).agg(
        pl.len().alias("n_rows"), pl.col("ts").min().alias("first_ts"), pl.col("ts").max().alias("last_ts")
    )
    return finish(states, TABLE, KEY)
