"""service_uses: sign-ins of gateways, applications and services to mail over the web, and the hours of their reads.

What sessions are for POP3, IMAP, SMTP and LDAP, these are for Exchange Web Services, Graph and the sign-ins before
them: a use that a job of the gateway must explain. Kept are identities kept in detail (see context_days), and those
that jobs of the same day name.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import COUNT_CAP, finish, table, within
from transforms.derived.context_days import in_detail

TABLE = "service_uses"
PERIOD = "day"
SOURCES = ("access_events", "gateway_jobs", "credentials", "bindings", "contexts", "mailboxes")
REACH = (0, 0)

KEY = ("date", "kind", "tenant_id", "credential_id", "principal_id", "app_id", "src_net", "unit", "hour")
READS = ("get_item", "find_item", "sync_folder", "export", "attachment")
_SIGN_INS = ("signin", "auth")
_SIGNED_AT = ("oauth", "ews", "graph", "exchange")
_READ_AT = ("ews", "graph", "exchange")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The uses of `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events and gateway_jobs of the days.

    Returns:
        service_uses of `days`; times UTC.
    """
    action, protocol = pl.col("action"), pl.col("protocol")
    signs = action.is_in(_SIGN_INS) & protocol.is_in(_SIGNED_AT)
    reads = action.is_in(READS) & protocol.is_in(_READ_AT)
    rows = table(tables, "access_events").filter(within(days) & (pl.col("outcome") == "success") & (signs | reads))
    rows = in_detail(rows, tables).filter(
        pl.any_horizontal("detail", *(named.fill_null(value=False) for named in _of_jobs(days, tables)))
    )
    unit = pl.coalesce("token_id", "session_id", "event_uid")
    items = pl.coalesce("item_count", "op_count", pl.lit(1)).clip(0, COUNT_CAP)
    states = (
        rows.with_columns(
            pl.when(reads).then(pl.lit("data")).otherwise(pl.lit("session")).alias("kind"),
            pl.when(signs).then(unit).alias("unit"),
            pl.when(reads).then(pl.col("ts").dt.truncate("1h")).alias("hour"),
            pl.when(reads).then(items).otherwise(0).alias("items"),
        )
        .group_by(KEY)
        .agg(pl.col("items").sum(), pl.col("ts").min().alias("first_ts"), pl.col("ts").max().alias("last_ts"))
    )
    return finish(states, TABLE, KEY)


def _of_jobs(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> list[pl.Expr]:
    """Whether a row's credential or principal is one that jobs of its day name."""
    jobs = table(tables, "gateway_jobs").filter(within(days))
    return [_on_its_day(name).is_in(_known(jobs, name).implode()) for name in ("credential_id", "principal_id")]


def _known(jobs: pl.LazyFrame, name: str) -> pl.Series:
    # The operator's own few names. They are collected: a join would hold all accesses in memory.
    return jobs.select(_on_its_day(name).alias(name)).drop_nulls().unique().collect().to_series()


def _on_its_day(name: str) -> pl.Expr:
    return pl.concat_str(pl.col("date").cast(pl.String), name, separator=" ")
