"""Contexts that are new: networks and clients from which a machine's identity was never used before.

A poller is periodic and a backup reads much: what a machine does means little. What it does from a place that is new to
it, new to the tenant and declared by nobody means much. Machines are the identities that context_days keeps in detail.
"""

from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

import polars as pl

from queries.cases import is_declared

if TYPE_CHECKING:
    import duckdb

WIDE_FROM = 5  # tenants from which on a share of them means something
SETTLED = 14  # days since which an administrator's network must be known for a change from there to be the own one
RARE_SHARE = 0.02  # of the tenants, to whom a value may be known without being common; one of them always may

# Of the days before `since`, values that the tenant shows are known, whoever used them. `judged` values came when the
# tenant's log of the protocol was old enough to tell.
_FRESH = """
with seen as (
    select coalesce(tenant_id, '') as tenant_key, coalesce(principal_id, app_id) as actor_id, protocol,
        {column} as value, action <> 'any' as is_machine, max(app_id) as app_id, min(date) as first_day,
        max(date) as last_day, min(first_ts) as first_ts
    from context_days
    where date between $first and $last and outcome = 'success' and action <> 'probe'
        and coalesce(principal_id, app_id) is not null
    group by all
),
logs as (select tenant_key, protocol, min(first_day) as began from seen group by all),
tenant_values as (
    select tenant_key, value, min(first_day) as since, arg_min(protocol, first_ts) as protocol
    from seen where value is not null group by all
),
new_values as (
    select v.tenant_key, v.value from tenant_values as v join logs as l using (tenant_key, protocol)
    where v.since >= $since and v.since >= l.began + $history::integer
),
spread as (
    select n.value, count(*) as n_new,
        (select count(*) from tenant_values as t where t.value = n.value) - count(*) as n_before
    from new_values as n group by n.value
),
actors as (
    select tenant_key, actor_id, min(first_day) as begins, max(app_id) as app_id from seen where is_machine group by all
)
select s.tenant_key, s.actor_id, any_value(a.app_id) as app_id, s.value, min(s.first_day) as first_day,
    max(s.last_day) as last_day, any_value(a.begins) as begins, any_value(p.n_new) as n_new,
    any_value(p.n_before) as n_before, (select count(distinct tenant_key) from seen) as n_tenants
from seen as s
join new_values as n using (tenant_key, value)
join spread as p using (value)
join actors as a using (tenant_key, actor_id)
where s.is_machine
group by s.tenant_key, s.actor_id, s.value
having max(s.last_day) >= $from
order by all
"""

# A change that an administrator made for the identity, of the kinds that come before a new integration, from a network
# from which that administrator had worked before, or from a declared office: a thief's change is no explanation.
_CHANGES = """
with made as (
    select coalesce(c.tenant_id, '') as tenant_key, n.actor_id, lower(c.actor_id) as changed_by, c.src_net, c.date,
        exists (
            select 1 from declared_networks() as d
            where d.kind = 'corporate' and d.is_whole and net_number(c.src_net) between d.first_net and d.last_net
                and c.ts between d.valid_from and d.valid_to
        ) as is_office
    from change_events as c
    join newcomers as n
        on coalesce(c.tenant_id, '') = n.tenant_key and c.date between n.begins - 30 and n.begins + 1
        and (
            lower(c.target_id) in (n.actor_id, n.app_id)
            or contains(lower(c.new_value), n.actor_id) or contains(lower(c.new_value), n.app_id)
        )
    where c.date between $first and $last and c.outcome <> 'failure' and c.op in (
        'add_app', 'add_credential', 'consent', 'add_app_role', 'add_role', 'update_app', 'mailbox_permission', 'user'
    )
)
select m.tenant_key, m.actor_id, bool_and(
        if(
            m.changed_by is null or m.src_net is null, null,
            m.is_office or coalesce(f.since <= m.date - $settled::integer, false)
        )
    ) as is_from_home
from made as m
left join (
    select entity_id, attr_value, min(first_ts)::date as since from first_seen
    where entity_type = 'principal' and attr_type = 'src_net' and date <= $last group by all
) as f on f.entity_id = m.changed_by and f.attr_value = m.src_net
group by all
"""


def fresh(
    con: "duckdb.DuckDBPyConnection",
    column: Literal["src_net", "client_fp"],
    days: Mapping[str, date],
    *,
    history: int,
    wide_share: float,
) -> pl.DataFrame:
    """Networks or clients that are new to a machine's identity and to its tenant.

    Declared networks are left out, and values that more than a few other tenants knew before. What a large share of the
    tenants shows at once is a change of infrastructure: `is_wide`.

    Args:
        con: connection with context_days, change_events, first_seen and networks.
        column: which of them.
        days: `first` and `last` day that are read; `since`, from which a value counts as new; `from`, begin of the
            window, on or after which it must have been used.
        history: days for which the tenant's log of the protocol must go back.
        wide_share: share of all tenants that makes a change of infrastructure.

    Returns:
        tenant_key (empty: none), actor_id, app_id, value, first_day, last_day, begins (first day of the actor), n_new
        (tenants that show the value as new), is_wide, is_new_actor, has_change (somebody prepared it), is_from_home
        (from where this somebody had always worked; null where the log does not tell).
    """
    found = con.sql(_FRESH.format(column=column), params=dict(days) | {"history": history}).pl()
    rare = pl.max_horizontal(pl.lit(1.0), RARE_SHARE * pl.col("n_tenants"))
    found = found.filter(pl.col("n_before") <= rare)
    if column == "src_net":
        declared = [net for net in found["value"].unique() if is_declared(con, [net])]
        found = found.filter(~pl.col("value").is_in(declared))
    wide = (pl.col("n_tenants") >= WIDE_FROM) & (pl.col("n_new") > wide_share * pl.col("n_tenants"))
    found = found.with_columns(wide.alias("is_wide"), (pl.col("begins") >= pl.col("first_day")).alias("is_new_actor"))
    return _with_changes(con, found, days)


def _with_changes(con: "duckdb.DuckDBPyConnection", found: pl.DataFrame, days: Mapping[str, date]) -> pl.DataFrame:
    newcomers = found.filter("is_new_actor").select("tenant_key", "actor_id", "app_id", "begins").unique()
    con.register("newcomers", newcomers.to_arrow())
    try:
        span = {"first": days["first"], "last": days["last"], "settled": SETTLED}
        changes = con.sql(_CHANGES, params=span).pl()
    finally:
        con.unregister("newcomers")
    changes = changes.with_columns(pl.lit(value=True).alias("has_change"))
    told = found.join(changes, on=["tenant_key", "actor_id"], how="left", maintain_order="left")
    return told.with_columns(pl.col("has_change").fill_null(value=False) & pl.col("is_new_actor"))


def explained(found: pl.DataFrame) -> pl.Series:
    """Which of the `fresh` an administrator prepared from the own network: new integrations that need no finding."""
    return found["has_change"] & found["is_from_home"].fill_null(value=False)


def remark(context: Mapping[str, Any], what: str) -> str | None:
    """What speaks for or against a `fresh` context (a network or a client: `what`), in a sentence or two."""
    parts = []
    if context["is_wide"]:
        parts.append(f"Many tenants show the {what} at once: ask the vendor about a change of infrastructure.")
    if context["has_change"]:
        strange = ", from a network that was new to whoever did" if context["is_from_home"] is False else ""
        parts.append(f"It was prepared within 30 days before{strange}.")
    return " ".join(parts) or None


def is_weak(context: Mapping[str, Any]) -> bool:
    """Whether a change of infrastructure, or one that somebody prepared at an unknown place, may explain it."""
    return bool(context["is_wide"] or (context["has_change"] and context["is_from_home"] is None))
