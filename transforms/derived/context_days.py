"""context_days: who used which credential, from which network, with which client, for what, on a day.

Machine identities are few and are kept in full detail. Ordinary users are many: their rows carry no client
fingerprint, and `any` as action, which is what keeps a year of a large tenant readable (see `in_detail`).
"""

import re
from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import accesses, count, finish, hour_bits, table

TABLE = "context_days"
PERIOD = "day"
SOURCES = ("access_events", "mail_events", "sessions", "credentials", "bindings", "contexts", "mailboxes")

ANY_ACTION = "any"
MACHINES = ("service_principal", "service_account", "computer")
ADMIN_LOGONS = ("admin", "delegated_admin")
KEY = (
    "date", "tenant_id", "protocol", "principal_id", "principal_type", "credential_id", "app_id", "src_net", "src_asn",
    "src_class", "client_fp", "action", "outcome",
)  # fmt: skip


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The contexts of `days`.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days and the day before.

    Returns:
        context_days of `days`; bytes in octets, times UTC.
    """
    rows = in_detail(accesses(tables, days), tables)
    coarse = ~pl.col("detail")
    rows = rows.with_columns(
        pl.when(coarse).then(None).otherwise("client_fp").alias("client_fp"),
        pl.when(coarse).then(pl.lit(ANY_ACTION)).otherwise("action").alias("action"),
    )
    states = rows.group_by(KEY).agg(
        pl.len().alias("n_rows"),
        count("op_count", 1).sum().alias("n_ops"),
        count("item_count").sum().alias("items"),
        count("bytes_out").sum().alias("bytes_out"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
        hour_bits().alias("hour_bits"),
    )
    return finish(states, TABLE, KEY)


def in_detail(access: pl.LazyFrame, tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """Adds the boolean column `detail`: whether the row belongs to an identity that is kept in full.

    These are service principals, service accounts and computers, applications without a user, administrators, and every
    credential and principal that the reference tables name (credentials, bindings, contexts, journal and service
    mailboxes). A pattern that would name everybody (``*``) does not count.
    """
    credentials, principals = _named(tables)
    known = [
        pl.col("principal_type").is_in(MACHINES),
        pl.col("logon_type").is_in(ADMIN_LOGONS),
        pl.col("app_id").is_not_null() & pl.col("principal_id").is_null(),
        pl.col("credential_id").is_in(credentials.implode()),
        pl.col("principal_id").is_in(principals.implode()),
        pl.col("principal_id").str.contains(_patterns(tables)),
    ]
    detail = pl.any_horizontal(flag.fill_null(value=False) for flag in known)
    return access.with_columns(detail.alias("detail"))


def _named(tables: Mapping[str, pl.LazyFrame]) -> tuple[pl.Series, pl.Series]:
    """Credentials and principals that the reference tables name.

    They are collected: as the other side of a join they would make it hold all accesses in memory.
    """
    credentials, bindings = table(tables, "credentials"), table(tables, "bindings")
    contexts, mailboxes = table(tables, "contexts"), table(tables, "mailboxes")
    exact = contexts.filter(~pl.col("principal_pattern").str.contains("*", literal=True))
    machine_mailboxes = mailboxes.filter(pl.col("kind").is_in(["journal", "service"]))
    named_credentials = pl.concat([frame.select("credential_id") for frame in (credentials, bindings, contexts)])
    named_principals = pl.concat(
        [
            bindings.select("principal_id"),
            exact.select(pl.col("principal_pattern").alias("principal_id")),
            machine_mailboxes.select(pl.col("mailbox_id").alias("principal_id")),
        ]
    )
    return _lower(named_credentials), _lower(named_principals)


def _patterns(tables: Mapping[str, pl.LazyFrame]) -> str:
    """One regular expression for the principal patterns with wildcards; it matches nothing where there are none."""
    wild = table(tables, "contexts").select(pl.col("principal_pattern").str.to_lowercase()).drop_nulls().unique()
    # The analyst's own table, a few rows: needed now, since it becomes part of the plan.
    found = [
        pattern for pattern in wild.collect()["principal_pattern"].sort() if "*" in pattern and pattern.strip("*? ")
    ]
    branches = [".*".join(re.escape(part) for part in pattern.split("*")) for pattern in found]
    return "^(?:" + "|".join(branches) + ")$" if branches else "^\\b\\B"


def _lower(names: pl.LazyFrame) -> pl.Series:
    return names.select(pl.all().str.to_lowercase()).drop_nulls().unique().collect().to_series()
