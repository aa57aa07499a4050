"""edge_days: which actor touched which mailbox that is not its own, on a day.

An owner's access to the own mailbox is left out: it is most of all access, and it is what makes this table small.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import accesses, count, finish, table

TABLE = "edge_days"
PERIOD = "day"
SOURCES = ("access_events", "sessions", "mailboxes")

KEY = (
    "date", "tenant_id", "protocol", "actor_id", "actor_type", "app_id", "credential_id", "mailbox_id", "src_net",
    "logon_type", "access_kind",
)  # fmt: skip
APPLICATIONS = ("service_principal", "service_account")

# S-1-5-21-..., {GUID}, /o=Org/ou=..., cn=...: says who, but not in a form that compares with an address.
_OPAQUE = r"(?i)^(?:s-1-|\{?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-|/o=|cn=)"


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The edges of `days`: refused attempts and health probes are left out.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; access_events of the days and the day before.

    Returns:
        edge_days of `days`; bytes in octets, times UTC.
    """
    touched = pl.col("mailbox_id").is_not_null() & (pl.col("outcome") != "failure") & (pl.col("action") != "probe")
    actor = pl.coalesce("principal_id", "app_id")
    candidates = accesses(tables, days).filter(touched & actor.is_not_null() & ~_plainly_own())
    rows = (
        _with_addresses(candidates, table(tables, "mailboxes"))
        .filter(is_foreign())
        .with_columns(actor.alias("actor_id"), pl.col("principal_type").alias("actor_type"))
    )
    synced = pl.col("folders").list.len().cast(pl.Int64).fill_null(0).clip(1)
    states = rows.group_by(KEY).agg(
        count("op_count", 1).sum().alias("n_ops"),
        count("item_count").sum().alias("items"),
        count("bytes_out").sum().alias("bytes_out"),
        pl.when(pl.col("access_kind") == "sync").then(synced).otherwise(0).sum().alias("sync_folders"),
        pl.col("throttled").sum().cast(pl.Int64).alias("n_throttled"),
        pl.col("ts").min().alias("first_ts"),
        pl.col("ts").max().alias("last_ts"),
    )
    return finish(states, TABLE, KEY)


def is_foreign() -> pl.Expr:
    """Whether a row is access to a mailbox that is not the caller's own.

    It is, if the log relates the caller to it otherwise than as owner, if the caller acts as somebody else, if an
    application acts without a user, or if mailbox and caller are different names. Where the log says owner, only two
    full addresses that differ speak against it (a short login name is no contradiction). A mailbox named only by an
    identifier, with no word on the relation, cannot be shown to be the caller's and counts as foreign.
    """
    principal, mailbox, acted_as = pl.col("principal_id"), pl.col("mailbox_id"), pl.col("effective_user")
    application = pl.col("principal_type").is_in(APPLICATIONS) | (pl.col("app_id").is_not_null() & principal.is_null())
    owner = pl.col("logon_type") == "owner"
    both_full = principal.str.contains("@", literal=True) & mailbox.str.contains("@", literal=True)
    other_mailbox = _differ(principal, mailbox)
    unknown = pl.col("logon_type").is_null() & other_mailbox.is_null() & principal.is_not_null()
    reasons = [
        application,
        ~owner,
        _differ(principal, acted_as),
        other_mailbox & (both_full | ~owner.fill_null(value=False)),
        unknown,
    ]
    return pl.any_horizontal(reason.fill_null(value=False) for reason in reasons)


def _plainly_own() -> pl.Expr:
    """The usual case of `not is_foreign()`, told without taking names apart."""
    same = (pl.col("principal_id") == pl.col("mailbox_id")) & (pl.col("logon_type").fill_null("owner") == "owner")
    as_self = pl.col("effective_user").is_null() | (pl.col("effective_user") == pl.col("principal_id"))
    return (same & as_self & ~pl.col("principal_type").is_in(APPLICATIONS).fill_null(value=False)).fill_null(
        value=False
    )


def _differ(one: pl.Expr, other: pl.Expr) -> pl.Expr:
    """Whether two names of users differ; null where they cannot be compared."""
    one, other = one.str.to_lowercase(), other.str.to_lowercase()
    names = [name.str.replace(r"^.*\\", "") for name in (one, other)]  # DOMAIN\user
    full = [name.str.contains("@", literal=True) for name in names]
    local = [name.str.extract("^([^@]*)") for name in names]
    return (
        pl.when(one == other)
        .then(statement=False)
        .when(one.str.contains(_OPAQUE) | other.str.contains(_OPAQUE))
        .then(None)
        .when(full[0] & full[1])
        .then(names[0] != names[1])
        .otherwise(local[0] != local[1])
    )


def _with_addresses(rows: pl.LazyFrame, mailboxes: pl.LazyFrame) -> pl.LazyFrame:
    """Replaces mailbox GUIDs by the mailbox that the reference table gives for them."""
    guids = (
        mailboxes.filter(pl.col("mailbox_guid").is_not_null())
        .group_by(pl.col("mailbox_guid").str.to_lowercase().alias("mailbox_id"))
        .agg(pl.col("mailbox_id").str.to_lowercase().min().alias("_address"))
    )
    named = rows.join(guids, on="mailbox_id", how="left")
    return named.with_columns(pl.coalesce("_address", "mailbox_id").alias("mailbox_id")).drop("_address")
