"""Special interest: of the mailboxes that an actor newly opens, far more belong to important people than chance gives.

---
id = "M06"
title = "Mailboxes of special interest picked out"
hypothesis = "An intruder does not open mailboxes at random, but those of directors, finance and counsel."
family = "mailbox_access"
severity = "medium"
tables = ["edge_days", "context_days", "mailboxes", "tenants", "networks"]
needs = ["edge_days"]
identity = ["tenant_id", "actor_id", "kind", "source", "first_day"]
explanation = "{n_vip} of the {n_known:count mailbox/mailboxes} that {actor_id:name} {what}[ in tenant {tenant_id}] {first_seen:span}[ from {source_networks:nets}] are of special interest, as are {n_all_vip} of all {n_all}: by chance that happens once in {once:count choice}. {normal}"
step = "{first_seen:Days}, {n_vip} of the {n_known:count mailbox/mailboxes} that {actor_id:name} {what} were of special interest."
why = "By chance that happens once in {once:count choice}."
false_positives = [
  "a new assistant of several directors, where the log of the grant is missing",
  "a help desk for directors, or a product that is bought for them alone",
  "a legal hold on the mailboxes of a department",
]
blind_spots = [
  "mailboxes that nobody marked as of special interest, and those missing in the table of mailboxes",
  "an actor whose mailboxes were of special interest before as well",
  "an intruder who opens ordinary mailboxes too, enough to hide the choice",
  "tenants with so few mailboxes that no choice is improbable",
]
runbook = [
  "`mailbox_id`, `first_ts`: list the mailboxes of the finding in order of time, with department and name, over the days of the finding",
  "`change_events.op`: look for permissions and roles that name the actor in the 30 days before",
  "`actor_id`, `src_net`: compare the mailboxes that it opened in the 90 days before, and from where",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a mailbox that the actor opened is known" },
  { name = "span_days", default = 30, help = "days before the window whose new mailboxes still count" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol, or the actor at a new network, must go back" },
  { name = "max_p", default = 0.001, help = "probability of the choice by chance up to which it is reported" },
  { name = "min_vip", default = 2, help = "mailboxes of special interest below which nothing is reported" },
  { name = "new_mailbox_days", default = 14, help = "age of a mailbox below which its first access by another is part of its set-up" },
  { name = "grant_days", default = 30, help = "days after a permission was given in which its first use is expected" },
]

[[requires]]
sql = "select exists(select 1 from mailboxes where vip)"
reason = "no mailbox is marked as of special interest (column vip of the table mailboxes)"

[[subjects]]
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner' group by tenant_id, actor_id having date_diff('day', min(date), cast($window_to as date)) > $min_history_days)"
reason = "nobody who opens mailboxes of others has been in the logs for more than $min_history_days days"

[evidence]
table = "access_events"
where = "mailbox_id is not null and outcome <> 'failure' and coalesce(logon_type, '') <> 'owner'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", src_net = "evidence_networks" }
---

The probability is the upper tail of the hypergeometric distribution (drawing without replacement from the tenant's
mailboxes). A choice is only the actor's where the share of such mailboxes was less than half as high before.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from queries.cases import is_declared
from queries.statistics import hypergeometric_tail

if TYPE_CHECKING:
    import duckdb

# Mailboxes that an actor opened for the first time, or at all from a network that it used for the first time: how many
# there are, how many are of special interest, and the same for the tenant and for the actor before.
CHOICES = """
with uses as (
    select tenant_id, actor_id, mailbox_id, src_net, min(first_ts) as first_ts, max(last_ts) as last_ts,
        arg_min(protocol, first_ts) as protocol, sum(n_ops) as n_ops,
        bool_or(actor_type in ('service_principal', 'service_account', 'computer') or actor_id = app_id) as is_service,
        list(distinct credential_id) as credential_ids, list(distinct app_id) as app_ids
    from edge_days
    where date between $first and $last and coalesce(logon_type, '') <> 'owner' and tenant_id is not null
        and coalesce(actor_type, '') not in ('system', 'anonymous')
    group by all
),
logs as (
    select tenant_id, protocol, min(date) as began from context_days
    where date between $first and $last and tenant_id is not null group by all
),
boxes as (
    select tenant_id, lower(mailbox_id) as mailbox_id, coalesce(vip, false) as vip, created_at
    from mailboxes where coalesce(kind, 'user') in ('user', 'shared')
),
all_boxes as (select tenant_id, count(*) as n_all, count(*) filter (where vip) as n_all_vip from boxes group by 1),
grants as (
    select tenant_id, ts, lower(coalesce(actor_id, '')) as granted_by,
        lower(coalesce(target_id, '') || ' ' || coalesce(new_value, '')) as what
    from change_events
    where op in ('mailbox_permission', 'folder_permission') and outcome <> 'failure'
        and date between $from - ($span + $grant)::integer and $last
),
pairs as (
    select u.tenant_id, u.actor_id, u.mailbox_id, min(u.first_ts) as first_ts, arg_min(u.protocol, u.first_ts) as protocol,
        any_value(b.vip) as vip, any_value(b.created_at) as created_at, bool_or(u.is_service) as is_service
    from uses as u join boxes as b using (tenant_id, mailbox_id)
    group by 1, 2, 3
),
nets as (
    select n.*, min(n.first_ts) over (partition by n.tenant_id, n.actor_id) as began
    from (
        select tenant_id, actor_id, src_net, min(first_ts) as first_ts from uses where src_net is not null group by all
    ) as n
),
chosen as (
    select p.tenant_id, p.actor_id, 'new_pairs' as kind, '' as source, p.mailbox_id, p.vip
    from pairs as p join logs as l using (tenant_id, protocol)
    where p.first_ts::date >= greatest($from - $span::integer, l.began + $history::integer)
        and coalesce(p.created_at < p.first_ts - to_days($new_box::integer), true)
        and (p.is_service or not exists (
            select 1 from grants as g
            where g.tenant_id = p.tenant_id and p.first_ts between g.ts and g.ts + to_days($grant::integer)
                and g.granted_by <> p.actor_id and contains(g.what, split_part(p.mailbox_id, '@', 1))
                and contains(g.what, split_part(p.actor_id, '@', 1))
        ))
    union all
    select u.tenant_id, u.actor_id, 'new_network', u.src_net, u.mailbox_id, b.vip
    from nets as n join uses as u using (tenant_id, actor_id, src_net) join boxes as b using (tenant_id, mailbox_id)
    where n.first_ts::date >= $from - $span::integer and n.first_ts >= n.began + to_days($history::integer)
),
counted as (
    select tenant_id, actor_id, kind, source, count(*) as n_known, count(*) filter (where vip) as n_vip,
        list(mailbox_id order by mailbox_id) as mailboxes
    from chosen group by all having count(*) filter (where vip) >= $least
),
details as (
    select c.tenant_id, c.actor_id, c.kind, c.source, min(u.first_ts) as first_seen, max(u.first_ts) as last_new,
        max(u.last_ts) as last_seen, sum(u.n_ops)::bigint as n_ops, bool_or(u.is_service) as is_service,
        list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
        list_sort(list_distinct(flatten(list(u.credential_ids)))) as credential_ids,
        list_sort(list_distinct(flatten(list(u.app_ids)))) as app_ids
    from chosen as c
    join counted using (tenant_id, actor_id, kind, source)
    join uses as u
        on u.tenant_id = c.tenant_id and u.actor_id = c.actor_id and u.mailbox_id = c.mailbox_id
        and (c.source = '' or u.src_net = c.source)
    group by all
),
before as (
    select d.tenant_id, d.actor_id, d.kind, d.source, count(p.mailbox_id) as n_before,
        count(p.mailbox_id) filter (where p.vip) as n_vip_before
    from details as d
    left join pairs as p on p.tenant_id = d.tenant_id and p.actor_id = d.actor_id and p.first_ts < d.first_seen
    group by all
)
select c.*, d.* exclude (tenant_id, actor_id, kind, source), a.n_all, a.n_all_vip, b.n_before, b.n_vip_before,
    coalesce(t.onboarded_at > d.first_seen - interval 30 day, false) as is_new_tenant
from counted as c
join details as d using (tenant_id, actor_id, kind, source)
join before as b using (tenant_id, actor_id, kind, source)
join all_boxes as a using (tenant_id)
left join tenants as t using (tenant_id)
where d.last_new >= $from and b.n_vip_before * 2 * c.n_known < c.n_vip * greatest(b.n_before, 1)
order by c.tenant_id, c.actor_id, c.kind, c.source
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Actors whose new mailboxes are of special interest more often than chance explains.

    Args:
        con: connection with edge_days, context_days, mailboxes and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per tenant and actor, the least probable of its choices; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    given = {
        "first": begin - timedelta(days=params["baseline_days"] + params["span_days"]), "last": end, "from": begin,
        "span": params["span_days"], "history": params["min_history_days"], "least": params["min_vip"],
        "new_box": params["new_mailbox_days"], "grant": params["grant_days"],
    }  # fmt: skip
    choices = con.sql(CHOICES, params=given).pl()
    if choices.is_empty():
        return pl.DataFrame()
    tails = hypergeometric_tail(*(choices[name] for name in ("n_vip", "n_known", "n_all_vip", "n_all")))
    found = choices.with_columns(pl.Series("p", tails)).filter(pl.col("p") <= params["max_p"])
    found = found.sort("p", "kind", "source").unique(["tenant_id", "actor_id"], keep="first", maintain_order=True)
    return _worded(con, found) if found.height else pl.DataFrame()


def _worded(con: "duckdb.DuckDBPyConnection", found: pl.DataFrame) -> pl.DataFrame:
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    from_network = pl.col("kind") == "new_network"
    return found.with_columns(
        pl.Series("is_declared_net", declared, pl.Boolean),
        pl.col("first_seen").dt.date().alias("first_day"),
        pl.col("n_known").alias("n_mailboxes"),
        pl.when(from_network).then(pl.lit("opened from a network that it had not used before"))
        .otherwise(pl.lit("opened for the first time")).alias("what"),
        (1 / pl.col("p").clip(1e-15)).round().cast(pl.Int64).alias("once"),
        pl.when(pl.col("n_before") == 0).then(pl.lit("It had opened no mailbox of others before."))
        .otherwise(pl.format("Before, {} of {} were.", "n_vip_before", "n_before")).alias("normal"),
        pl.when("is_new_tenant").then(pl.lit("low")).otherwise(pl.lit("medium")).alias("severity"),
        pl.lit(1.5).alias("impact"),
        (0.6 + 0.1 * (-pl.col("p").clip(1e-15).log10() - 3)).clip(0.6, 1.0).alias("confidence"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.when(from_network).then(pl.concat_list("source")).alias("evidence_networks"),
    ).sort("first_seen", "tenant_id", "actor_id")  # fmt: skip
