"""first_seen: when an entity first and last showed a value of an attribute, by tenant and month; successes only.

What is kept, so that a month stays small:

==========  ================================================  ==============================================
entity      of whom                                           attributes
==========  ================================================  ==============================================
credential  identities kept in detail (see context_days)      src_net, src_asn, client_fp, protocol, app_id, any
principal   everybody                                         src_net, protocol
principal   identities kept in detail                         src_asn, client_fp, app_id, any
tenant      everybody                                         src_net, src_asn, client_fp, protocol, app_id, any
network     everybody                                         src_asn, client_fp, protocol, app_id, any
credential  whoever touched a mailbox not its own             mailbox
principal   the same, or the application if there is no user  mailbox
==========  ================================================  ==============================================

`client_fp` exists only for identities kept in detail. The value of `any` is ``any``. Health probes are left out.
"""

from collections.abc import Mapping, Sequence
from datetime import date

import polars as pl

from transforms.derived._parts import finish, table
from transforms.derived.context_days import ANY_ACTION

TABLE = "first_seen"
PERIOD = "month"
SOURCES = ("context_days", "edge_days")

KEY = ("entity_type", "entity_id", "attr_type", "attr_value", "tenant_id")
_ATTRIBUTES = ("src_net", "src_asn", "client_fp", "protocol", "app_id", "any")
_USER_ATTRIBUTES = ("src_net", "protocol")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The state of the month that the first of `days` lies in.

    Args:
        days: its first is any day of the month.
        tables: context_days and edge_days of the month's days.

    Returns:
        first_seen of that month, dated by its first day; n_days counts UTC days of the month.
    """
    first = days[0].replace(day=1)
    in_month = pl.col("date").is_between(first, pl.lit(first).dt.offset_by("1mo"), closed="left")
    contexts = table(tables, "context_days").filter(in_month & (pl.col("outcome") == "success"))
    contexts = contexts.filter(pl.col("action") != "probe")
    edges = table(tables, "edge_days").filter(in_month)
    detail = contexts.filter(pl.col("action") != ANY_ACTION)
    principals = {attribute: contexts if attribute in _USER_ATTRIBUTES else detail for attribute in _ATTRIBUTES}
    states = [
        *(_state(detail, "credential", "credential_id", attribute) for attribute in _ATTRIBUTES),
        *(_state(rows, "principal", "principal_id", attribute) for attribute, rows in principals.items()),
        *(_state(contexts, "tenant", "tenant_id", attribute) for attribute in _ATTRIBUTES),
        *(_state(contexts, "network", "src_net", attribute) for attribute in _ATTRIBUTES if attribute != "src_net"),
        _state(edges, "credential", "credential_id", "mailbox"),
        _state(edges, "principal", "actor_id", "mailbox"),
    ]
    return finish(pl.concat(states).with_columns(pl.lit(first).alias("date")), TABLE, KEY)


def _state(rows: pl.LazyFrame, entity: str, column: str, attribute: str) -> pl.LazyFrame:
    """One row per entity, value of the attribute, and tenant."""
    value = pl.lit("any") if attribute == "any" else pl.col("mailbox_id" if attribute == "mailbox" else attribute)
    days = pl.lit(2, pl.Int64).pow(pl.col("date").dt.day().cast(pl.Int64)).bitwise_or().bitwise_count_ones()
    return (
        rows.filter(pl.col(column).is_not_null() & value.is_not_null())
        .group_by(pl.col(column).alias("entity_id"), value.cast(pl.String).alias("attr_value"), "tenant_id")
        .agg(
            pl.col("first_ts").min(),
            pl.col("last_ts").max(),
            days.cast(pl.Int64).alias("n_days"),
            pl.col("n_ops").sum(),
        )
        .with_columns(pl.lit(entity).alias("entity_type"), pl.lit(attribute).alias("attr_type"))
    )
