"""Folder breadth: an application or administrator reads folders that it never reads.

---
id = "M08"
title = "Folders read that the actor never reads"
hypothesis = "A product reads the folders that it is made for; whoever holds its credential reads what interests him."
family = "mailbox_access"
severity = "medium"
tables = ["folder_days", "mailboxes", "tenants", "networks"]
needs = ["folder_days"]
identity = ["tenant_id", "actor_id", "first_day"]
explanation = "{actor_id:Name} read {folders:list} {first_seen:span}[ from {source_networks:nets}][ in tenant {tenant_id}]: {n_reads} of {n_all_reads:count reading} since[, {n_items:some item}][ of {n_mailboxes:some mailbox/mailboxes}]. In {n_active:count active day} before it read only {usual:list}.[ {remark}]"
step = "{first_seen:Days}, {actor_id:name} read {folders:list}."
why = "In {n_active:count active day} before it read only {usual:list}."
false_positives = [
  "a product whose new release reads more folders",
  "a restore, a migration or a legal search with the same account",
  "folders that users renamed or that were created for a new kind of mail",
]
blind_spots = [
  "old items in folders that the actor reads anyhow: the logs give no date of the item",
  "logs that name no folders (Exchange Server's EWS, POP3)",
  "delegates: people open other folders every day",
  "an actor with less than min_active_days days of history in the archive",
]
runbook = [
  "`folders`, `message_ids`: list the items read from the unusual folders over the days of the finding",
  "`src_net`, `client_fp`: compare source and client of these rows with those of the 60 days before",
  "`mailbox_id`: list the mailboxes concerned, and who else opened them within 7 days",
  "`app_id`: look whether the application reads the same folders in other tenants in the 7 days around",
]

attack = [{ technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] }]

parameters = [
  { name = "baseline_days", default = 60, help = "days before the first reading that count as history, at most" },
  { name = "span_days", default = 30, help = "days before the window in which the reading may have begun" },
  { name = "min_active_days", default = 14, help = "days with readings that the actor must have before" },
  { name = "min_reads", default = 5, help = "readings from unusual folders below which nothing is reported" },
  { name = "max_p", default = 0.000001, help = "probability of so many, were the folder only missed so far, up to which it is reported" },
  { name = "new_mailbox_days", default = 14, help = "age of a mailbox below which its first ingest reads everything" },
  { name = "wide_share", default = 0.3, help = "share of the application's tenants that show the folder, above which its product has changed" },
  { name = "wide_tenants", default = 10, help = "tenants of the application below which that share says nothing" },
]

[[requires]]
sql = "select exists(select 1 from folder_days where date >= cast($window_from as date) - 90 and date <= cast($window_to as date))"
reason = "no log names the folders that applications, services and administrators read"

[[subjects]]
sql = "select exists (select 1 from folder_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) group by tenant_id, actor_id having count(distinct date) > $min_active_days)"
reason = "no application or administrator has more than $min_active_days days whose log names folders"

[evidence]
table = "access_events"
where = "mailbox_id is not null and outcome <> 'failure' and coalesce(logon_type, '') <> 'owner'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_id", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", "folders[1]" = "first_folders" }
---

folder_days is read whole for the window and, for the actors that show a folder on some of their days only, for the days
before.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import polars as pl

from queries.cases import is_declared
from queries.statistics import binomial_tail

if TYPE_CHECKING:
    import duckdb

# Folders by their first segment: \\Inbox\\Projects counts as Inbox. Deleted items that were purged are a root of their own.
READS = """
select coalesce(d.tenant_id, '') as tenant_id, d.actor_id, d.app_id, d.mailbox_id, d.date, d.src_net, d.credential_id, d.folder as path,
    lower(split_part(ltrim(replace(d.folder, '/', chr(92)), chr(92)), chr(92), 1)) as root,
    d.first_ts, d.last_ts, d.n_rows as n, d.items
from folder_days as d {join}
where d.date between {days}
"""

# Actors with a folder that they do not read on nearly all of their days: the others read what they always read.
SUSPECTS = """
with days as (select tenant_id, actor_id, count(distinct date) as n_days from m08_reads group by all),
roots as (select tenant_id, actor_id, root, count(distinct date) as n_days from m08_reads group by all)
select distinct r.tenant_id, r.actor_id from roots as r join days as d using (tenant_id, actor_id)
where r.n_days * 10 < d.n_days * 9 or d.n_days <= 10
"""

FOUND = """
with reads as (
    select * from m08_reads semi join m08_suspects using (tenant_id, actor_id) union all select * from m08_before
),
fresh as (
    select lower(mailbox_id) as mailbox_id, min(created_at) + to_days($new_box::integer) as until
    from mailboxes where created_at is not null group by 1
),
roots as (
    select tenant_id, actor_id, root, min(date) as first_day from reads group by all
),
new_roots as (
    select r.tenant_id, r.actor_id, r.root, r.first_day,
        count(distinct h.date) as n_active, sum(h.n) as n_before
    from roots as r
    join reads as h
        on h.tenant_id = r.tenant_id and h.actor_id = r.actor_id and h.date < r.first_day
        and h.date >= r.first_day - $baseline::integer
    where r.first_day >= $from - $span::integer
    group by all
    having count(distinct h.date) >= $active
),
spread as (
    select x.app_id, x.root, count(distinct x.tenant_id) as n_showing, any_value(t.n_tenants) as n_tenants
    from m08_reads as x
    join (select app_id, count(distinct tenant_id) as n_tenants from m08_reads where app_id is not null group by 1) as t
        using (app_id)
    group by 1, 2
),
hits as (
    select n.tenant_id, n.actor_id, n.first_day, n.n_active, n.n_before, r.*
        exclude (tenant_id, actor_id),
        coalesce(s.n_tenants >= $wide_tenants and s.n_showing > $wide_share * s.n_tenants, false) as is_wide
    from new_roots as n
    join reads as r using (tenant_id, actor_id, root)
    left join fresh as f on f.mailbox_id = r.mailbox_id
    left join spread as s on s.app_id = r.app_id and s.root = r.root
    where coalesce(r.first_ts >= f.until, true)
),
grouped as (
    select tenant_id, actor_id, min(first_day) as first_day, max(n_active) as n_active, max(n_before)::bigint as n_before,
        min(first_ts) as first_seen, max(last_ts) as last_seen, sum(n)::bigint as n_reads, sum(items)::bigint as n_items,
        list(distinct root order by root) as roots, list(distinct path order by path) as first_folders,
        list(distinct mailbox_id order by mailbox_id) as mailboxes, count(distinct mailbox_id) as n_mailboxes,
        list(distinct src_net order by src_net) filter (where src_net is not null) as source_networks,
        list(distinct credential_id order by credential_id) filter (where credential_id is not null) as credential_ids,
        list(distinct app_id order by app_id) filter (where app_id is not null) as app_ids, bool_and(is_wide) as is_wide
    from hits group by 1, 2
    having sum(n) >= $least and max(date) >= $from
)
select g.*, u.n_all_reads, u.usual, u.usual_nets, coalesce(v.has_vip, false) as has_vip,
    coalesce(t.onboarded_at > g.first_seen - interval 30 day, false) as is_new_tenant
from grouped as g
join (
    select g.tenant_id, g.actor_id, (sum(r.n) filter (where r.date >= g.first_day))::bigint as n_all_reads,
        list(distinct r.root order by r.root) filter (where r.date < g.first_day) as usual,
        list(distinct r.src_net) filter (where r.date < g.first_day and r.src_net is not null) as usual_nets
    from grouped as g join reads as r using (tenant_id, actor_id) group by 1, 2
) as u using (tenant_id, actor_id)
left join (
    select g.tenant_id, g.actor_id, bool_or(m.vip) as has_vip
    from grouped as g join mailboxes as m on list_contains(g.mailboxes, lower(m.mailbox_id)) group by 1, 2
) as v using (tenant_id, actor_id)
left join tenants as t on t.tenant_id = g.tenant_id
order by all
"""

DEEP = "recoverable|deletions|purges|versions|discovery ?holds?|substrate ?holds?|archive|audits"


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Actors that read folders which they never read in the days before.

    Args:
        con: connection with folder_days, mailboxes and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per tenant and actor; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    window = READS.format(join="", days="$from and $last")
    suspect = "semi join m08_suspects as s on coalesce(d.tenant_id, '') = s.tenant_id and d.actor_id = s.actor_id"
    before = READS.format(join=suspect, days="$first and $last")
    given = {
        "from": begin, "least": params["min_reads"], "baseline": params["baseline_days"], "active": params["min_active_days"],
        "new_box": params["new_mailbox_days"], "span": params["span_days"], "wide_tenants": params["wide_tenants"], "wide_share": params["wide_share"],
    }  # fmt: skip
    first = {
        "first": begin - timedelta(days=params["baseline_days"] + params["span_days"]),
        "last": begin - timedelta(days=1),
    }
    try:
        con.execute(f"create or replace temp table m08_reads as {window}", {"from": begin, "last": end})
        con.execute(f"create or replace temp table m08_suspects as {SUSPECTS}")
        con.execute(f"create or replace temp table m08_before as {before}", first)
        found = con.sql(FOUND, params=given).pl()
    finally:
        for name in ("m08_reads", "m08_suspects", "m08_before"):
            con.execute(f"drop table if exists {name}")
    if found.is_empty():
        return pl.DataFrame()
    rate = 0.5 / (found["n_before"].to_numpy() + 1)
    found = found.with_columns(pl.Series("p", binomial_tail(found["n_reads"], found["n_all_reads"], rate)))
    found = found.filter(pl.col("p") <= params["max_p"])
    return _worded(con, found) if found.height else pl.DataFrame()


def _worded(con: "duckdb.DuckDBPyConnection", found: pl.DataFrame) -> pl.DataFrame:
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    nets, usual = (pl.col(name).fill_null([]) for name in ("source_networks", "usual_nets"))
    found = found.with_columns(
        pl.Series("is_declared_net", declared, pl.Boolean),
        (nets.list.set_difference(usual).list.len() > 0).alias("is_new_net"),
        pl.col("roots").list.eval(pl.element().str.contains(DEEP)).list.any().alias("is_deep"),
    )
    remarks = [
        pl.when("is_new_net").then(pl.lit("It had not read from all of these networks before.")),
        pl.when("is_deep").then(pl.lit("Deleted or archived mail is among it.")),
        pl.when("is_wide").then(pl.lit("The application reads them in many tenants: its product may have changed.")),
    ]
    return found.with_columns(
        pl.concat_str(remarks, separator=" ", ignore_nulls=True).alias("remark"),
        pl.col("roots").alias("folders"),
        pl.when(pl.col("tenant_id") != "").then("tenant_id").alias("tenant_id"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.when(pl.col("is_new_tenant") | pl.col("is_wide")).then(pl.lit("low")).otherwise(pl.lit("medium"))
        .alias("severity"),
        pl.when(pl.col("is_new_net") | pl.col("is_deep")).then(1.0).otherwise(0.6).alias("confidence"),
        pl.when((pl.col("n_mailboxes") >= 5) | pl.col("has_vip")).then(1.5).otherwise(1.0).alias("impact"),
    ).drop("usual_nets").sort("first_seen", "tenant_id", "actor_id")  # fmt: skip
