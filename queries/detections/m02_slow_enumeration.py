"""Slow enumeration: one actor opens, day after day, a few mailboxes that it never opened before.

---
id = "M02"
title = "Mailboxes of others opened one after the other"
hypothesis = "A patient intruder opens a mailbox or two a day, so that no day stands out."
family = "mailbox_access"
severity = "high"
tables = ["edge_days", "context_days", "mailboxes", "tenants", "networks", "bindings"]
needs = ["edge_days"]
identity = ["tenant_id", "actor_id", "kind", "source", "first_day"]
explanation = "{actor_id:Name} opened {n_mailboxes:count mailbox/mailboxes} of others[ in tenant {tenant_id}], {n_new} of them for the first time, on {n_days:count day} {first_seen:span}[ from {source_networks:nets}]: {n_ops:ops}[ on {n_items:some item}][, {n_bytes:size}]. {normal}"
step = "{first_seen:Days}, {actor_id:name} opened {n_mailboxes:count mailbox/mailboxes} of others, {n_new} for the first time, on {n_days:count day}."
why = "{normal}"
false_positives = [
  "a new member of a help desk, or an assistant whose duties grow",
  "a product that is rolled out mailbox by mailbox",
  "a search across mailboxes for a legal case",
]
blind_spots = [
  "a few mailboxes only: fewer than min_new_edges from a known network",
  "a mailbox that the actor opened before from the same network",
  "an actor that opens new mailboxes every day anyhow, as long as it keeps its pace",
  "pairs older than baseline_days, and protocols whose log began less than min_history_days before",
]
runbook = [
  "`mailbox_id`, `first_ts`: list the first access to each mailbox over the days of the finding, in order of time; look for an alphabet",
  "`actor_id`: count its new mailboxes by day over the 90 days before",
  "`src_net`, `client_fp`: check whether the first accesses share a source that the actor lacked in the 90 days before",
  "`change_events.op`: look for role, permission and consent changes that name the actor in the 30 days before",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1030", name = "Data Transfer Size Limits", tactics = ["exfiltration"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a mailbox that the actor opened is known" },
  { name = "span_days", default = 30, help = "days over which new mailboxes are counted" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol, and the actor, must go back; in an actor's first days all is new" },
  { name = "min_new_edges", default = 10, help = "new mailboxes within span_days from which a steady actor is reported" },
  { name = "min_days", default = 5, help = "days with new mailboxes below which it is no slow enumeration (but M01's burst)" },
  { name = "max_rate", default = 0.1, help = "new mailboxes a day before, up to which the actor counts as steady" },
  { name = "min_from_new_network", default = 4, help = "new mailboxes from a network that the actor never used, from which it is reported" },
  { name = "floor_from_stranger", default = 10, help = "mailboxes, known or not, from an undeclared network that the actor never used, while it goes on from its own" },
  { name = "max_surprise", default = 0.032, help = "share of days with a new network up to which a new one is a surprise; 0.032 is a surprise of 1.5" },
  { name = "cusum_slack", default = 1.0, help = "standard deviations a day that the sum of residuals forgives" },
  { name = "cusum_limit", default = 5.0, help = "sum of residuals above which an application's pace has changed" },
  { name = "lift", default = 3.0, help = "how many times its former pace an application must then have" },
  { name = "new_mailbox_days", default = 14, help = "age of a mailbox below which its first access by another is part of its set-up" },
]

[[subjects]]
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner' group by tenant_id, actor_id having date_diff('day', min(date), cast($window_to as date)) > $min_history_days)"
reason = "nobody who opens mailboxes of others has been in the logs for more than $min_history_days days"

[evidence]
table = "access_events"
where = "mailbox_id is not null and outcome <> 'failure' and coalesce(logon_type, '') <> 'owner'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", src_net = "evidence_networks" }
---

Three rules on first-ever pairs of actor and mailbox: many by an actor that has hardly any; a few from a network (of a
machine: from networks) that the actor never used, where it rarely shows a new one; and, for applications that open new mailboxes all the time, a
cumulative sum (Page 1954, Biometrika 41, "Continuous inspection schemes") of the residuals against a gamma-Poisson
baseline. People's counts shift too often for the third.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.text import count

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

# Of a row of edge_days: the actor is a machine, by its kind or because the gateway holds the account.
MACHINE = """(
    actor_type in ('service_principal', 'service_account', 'computer') or actor_id = app_id
    or actor_id in (select h.principal_id from held_principals() as h)
)"""

# First-ever pairs. `judged` is false for those that are new only because a log has just begun or the mailbox has.
PAIRS = f"""
create or replace temp table m02_pairs as
with uses as (
    select coalesce(tenant_id, '') as tenant_key, actor_id, mailbox_id, min(date) as first_day,
        arg_min(src_net, first_ts) as src_net, arg_min(protocol, first_ts) as protocol,
        bool_or({MACHINE}) as is_machine
    from edge_days
    where date between $first and $last and coalesce(logon_type, '') <> 'owner'
        and coalesce(actor_type, '') not in ('system', 'anonymous')
    group by 1, 2, 3
),
logs as (
    select coalesce(tenant_id, '') as tenant_key, protocol, min(date) as began from context_days
    where date between $first and $last group by all
),
boxes as (select lower(mailbox_id) as mailbox_id, min(created_at)::date as created from mailboxes group by 1)
select u.*, min(u.first_day) over (partition by u.tenant_key, u.actor_id) as actor_began,
    u.first_day >= coalesce(l.began, $first) + $history::integer
        and coalesce(b.created < u.first_day - $new_box::integer, true) as judged
from uses as u
left join logs as l using (tenant_key, protocol)
left join boxes as b using (mailbox_id)
"""

# Days with new pairs of the actors that could be reported at all.
ACTOR_DAYS = """
with candidates as (
    select tenant_key, actor_id from m02_pairs where judged and first_day >= $from - $span::integer
    group by all having count(*) >= $least
)
select tenant_key, actor_id, first_day as date, any_value(actor_began) as began, bool_or(is_machine) as is_machine,
    count(*) filter (where judged)::bigint as n
from m02_pairs semi join candidates using (tenant_key, actor_id)
group by all
order by all
"""

# Networks that an actor with a history shows for the first time, how rarely it does, and what was opened from there.
NETWORKS = """
with nets as (
    select coalesce(tenant_id, '') as tenant_key, actor_id, src_net, min(date) as first_day, max(date) as last_day
    from edge_days
    where date between $first and $last and coalesce(logon_type, '') <> 'owner' and src_net is not null
    group by 1, 2, 3
),
actors as (select tenant_key, actor_id, min(first_day) as begins from nets group by all),
late_nets as (
    select n.*, a.begins from nets as n join actors as a using (tenant_key, actor_id)
    where n.last_day >= $from
        and n.first_day >= $from - $span::integer and n.first_day >= a.begins + $history::integer
),
new_nets as (
    select n.*, list(distinct e.mailbox_id) as boxes, list(distinct e.date) as days,
        (n.tenant_key, n.actor_id) in (select (p.tenant_key, p.actor_id) from m02_pairs as p where p.is_machine) as is_machine
    from late_nets as n
    join edge_days as e
        on coalesce(e.tenant_id, '') = n.tenant_key and e.actor_id = n.actor_id and e.src_net = n.src_net
        and e.date >= n.first_day and coalesce(e.logon_type, '') <> 'owner'
    where e.date between $from - $span::integer and $last
    group by all
),
before as (
    select n.tenant_key, n.actor_id, n.src_net, list({'net': h.src_net, 'day': h.first_day - n.begins}) as nets,
        max(h.last_day) as others_until
    from new_nets as n
    join nets as h on h.tenant_key = n.tenant_key and h.actor_id = n.actor_id and h.first_day < n.first_day
    group by all
),
opened as (
    select tenant_key, actor_id, src_net, count(*) as n_new from m02_pairs where judged and first_day >= $from - $span::integer
    group by all
)
select n.tenant_key, n.actor_id, n.src_net, n.first_day, n.last_day, n.boxes, n.days, n.is_machine, b.nets,
    coalesce(o.n_new, 0) as n_new,
    b.others_until >= least(n.first_day + 1, $last) as goes_on, n.first_day - n.begins as n_history
from new_nets as n
join before as b using (tenant_key, actor_id, src_net)
left join opened as o using (tenant_key, actor_id, src_net)
order by all
"""

DETAILS = """
select r.run, min(e.first_ts) as first_seen, max(e.last_ts) as last_seen, list(distinct e.tenant_id) as tenant_ids,
    list(distinct e.mailbox_id order by e.mailbox_id) as mailboxes, count(distinct e.mailbox_id)::bigint as n_mailboxes,
    count(distinct e.mailbox_id) filter (where p.judged and p.first_day between r.first_day and r.last_day)::bigint
        as n_new,
    list(distinct e.src_net order by e.src_net) filter (where e.src_net is not null) as source_networks,
    list(distinct e.credential_id order by e.credential_id)
        filter (where e.credential_id is not null) as credential_ids,
    list(distinct e.app_id order by e.app_id) filter (where e.app_id is not null) as app_ids,
    list(distinct e.protocol order by e.protocol) as protocols, sum(e.n_ops)::bigint as n_ops,
    sum(e.items)::bigint as n_items, sum(e.bytes_out)::bigint as n_bytes,
    bool_or(e.actor_type in ('service_principal', 'service_account', 'computer')) as is_service,
    bool_or(coalesce(m.vip, false)) as has_vip, bool_or(m.kind = 'journal') as has_journal,
    bool_or(t.onboarded_at > r.first_day - interval 30 day) as is_new_tenant
from m02_runs as r
join edge_days as e
    on coalesce(e.tenant_id, '') = r.tenant_key and e.actor_id = r.actor_id
    and e.date between r.first_day and r.last_day and coalesce(e.logon_type, '') <> 'owner'
    and (r.source = '' or list_contains(r.sources, e.src_net))
join m02_pairs as p
    on p.tenant_key = r.tenant_key and p.actor_id = r.actor_id and p.mailbox_id = e.mailbox_id
    and (r.source <> '' or (p.judged and p.first_day between r.first_day and r.last_day))
left join mailboxes as m on lower(m.mailbox_id) = e.mailbox_id
left join tenants as t on t.tenant_id = e.tenant_id
where e.date between $first and $last
group by r.run
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Actors that open new mailboxes slowly.

    Args:
        con: connection with edge_days, context_days, mailboxes and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per run, with the columns that the front matter names; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    first = begin - timedelta(days=params["baseline_days"] + params["span_days"])
    span = {"first": first, "last": end}
    history = {"history": params["min_history_days"]}
    con.execute(PAIRS, span | history | {"new_box": params["new_mailbox_days"]})
    try:
        reach = {"from": begin, "span": params["span_days"]}
        days = con.sql(ACTOR_DAYS, params=reach | {"least": params["min_new_edges"]}).pl()
        runs = _from_new_networks(con, con.sql(NETWORKS, params=span | history | reach).pl(), params)
        told = {(run["tenant_key"], run["actor_id"]) for run in runs}
        for (tenant, actor), group in days.group_by("tenant_key", "actor_id", maintain_order=True):
            if (tenant, actor) not in told:
                who = {"tenant_key": tenant, "actor_id": actor, "source": "", "sources": []}
                runs += [who | run for run in _of_actor(group, (begin, end), params)]
        return _described(con, runs, span) if runs else pl.DataFrame()
    finally:
        con.execute("drop table if exists m02_pairs")


def _from_new_networks(
    con: "duckdb.DuckDBPyConnection", nets: pl.DataFrame, params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Runs from networks that are new to their actor: mailboxes that are new as well, or many from a stranger's."""
    runs, known, places = [], dict[str, bool | None](), dict[tuple[str, ...], list[dict[str, Any]]]()

    def standing(net: str) -> bool | None:
        if net not in known:
            known[net] = is_declared(con, [net])
        return known[net]

    for net in nets.iter_rows(named=True):
        # A machine that keeps to its networks has no business at any other: strange ones count together, however many
        # a thief goes through. People move about, and each of their networks is judged alone.
        together = net["is_machine"] and standing(net["src_net"]) is False
        who = (net["tenant_key"], net["actor_id"])
        places.setdefault(who if together else (*who, net["src_net"]), []).append(net)
    for found in places.values():
        place = min(found, key=lambda net: (net["first_day"], net["src_net"]))
        n_new = sum(net["n_new"] for net in found)
        n_boxes, n_days = (len(set().union(*(net[name] for net in found))) for name in ("boxes", "days"))
        is_new = n_new >= params["min_from_new_network"]
        many = n_boxes >= params["floor_from_stranger"] and place["goes_on"]
        if n_days < 2 or not (is_new or (many and standing(place["src_net"]) is False)):
            continue
        # In its first days all networks are new; of a short history, they are half.
        burn_in = min(params["min_history_days"], place["n_history"] // 2)
        # A declared network is a change of egress, and says nothing about how often strange ones show.
        n_later = sum(one["day"] >= burn_in and standing(one["net"]) is False for one in place["nets"] if one["net"])
        length = place["n_history"] - burn_in + 1
        if (n_later + 0.5) / length > max(params["max_surprise"], 0.5 / length):
            continue
        runs.append({
            "tenant_key": place["tenant_key"], "actor_id": place["actor_id"], "kind": "new_network",
            "source": place["src_net"], "sources": sorted(net["src_net"] for net in found),
            "first_day": place["first_day"], "last_day": max(net["last_day"] for net in found),
            "n_days": n_days, "confidence": 0.9,
            "normal": f"In {count(place['n_history'], 'day')} before it used "
            f"{count(len(place['nets']), 'other network')}, never {'this one' if len(found) == 1 else 'one of these'}.",
        })  # fmt: skip
    return runs


def _of_actor(days: pl.DataFrame, window: tuple[date, date], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs of one actor, from its days with new pairs: date, began, is_machine, n."""
    began, (begin, end) = days["began"][0], window
    n_days = (end - began).days + 1
    counts = np.zeros(n_days)
    counts[[(day - began).days for day in days["date"]]] = days["n"].to_numpy()
    offset = (begin - began).days
    found = _slow(counts, offset, params)
    if not found and days["is_machine"].any():
        found = _faster(counts, offset, params)
    return [
        {
            "kind": kind, "first_day": began + timedelta(days=low), "last_day": began + timedelta(days=high),
            "n_days": int((counts[low : high + 1] > 0).sum()), "confidence": confidence, "normal": normal,
        }
        for kind, low, high, confidence, normal in found
    ]  # fmt: skip


Run = tuple[str, int, int, float, str]  # kind, first and last day, confidence, what was usual before


def _slow(counts: "NDArray[np.float64]", begin: int, params: Mapping[str, Any]) -> list[Run]:
    """Stretches with many new pairs by an actor that hardly has any, from the counts by day since it was first seen."""
    span, runs, day, start = params["span_days"], list[Run](), max(0, begin - params["span_days"]), 0
    while day < counts.size:
        low = max(start, day - span + 1)
        part = counts[low : day + 1]
        if part.sum() < params["min_new_edges"] or (part > 0).sum() < params["min_days"]:
            day += 1
            continue
        low += int(np.flatnonzero(part)[0])
        high = day
        while (later := np.flatnonzero(counts[high + 1 : high + 1 + params["min_history_days"]])).size:
            high += 1 + int(later[-1])
        usual, length = _before(counts, low, params)
        if high >= begin and (length == 0 or usual / length < params["max_rate"]):
            normal = (
                f"In {count(length, 'day')} before it opened {usual:.0f} new ones."
                if length
                else f"It was first seen less than {params['min_history_days']} days before."
            )
            runs.append(("slow", low, high, 1.0 if length else 0.5, normal))
        day = start = high + 1
    return runs


def _faster(counts: "NDArray[np.float64]", begin: int, params: Mapping[str, Any]) -> list[Run]:
    """The first stretch in which an application's pace has clearly grown, by a cumulative sum of its residuals."""
    start = max(params["min_history_days"], begin - params["span_days"])
    usual, length = _before(counts, start, params)
    if length < 2 * params["min_history_days"]:
        return []
    mean = (usual + 0.5) / (length + 1)
    before = counts[start - length : start]
    spread = float(np.sqrt(max(mean + mean**2 / (usual + 0.5), before.var(ddof=1))))
    total, low = 0.0, start
    for day in range(start, counts.size):
        total = max(0.0, total + float(np.clip((counts[day] - mean) / spread, -4, 4)) - params["cusum_slack"])
        if total == 0:
            low = day + 1
            continue
        part = counts[low : day + 1]
        grown = part.sum() >= max(params["min_new_edges"], params["lift"] * mean * part.size)
        if total > params["cusum_limit"] and grown and (part > 0).sum() >= params["min_days"] and day >= begin:
            return [("faster", low, day, 0.7, f"Before, it opened {mean:.1f} new ones a day.")]
    return []


def _before(counts: "NDArray[np.float64]", day: int, params: Mapping[str, Any]) -> tuple[float, int]:
    """New pairs in the days before `day`, and how many days these are; an actor's first days do not count."""
    low = max(params["min_history_days"], day - params["baseline_days"])
    return (float(counts[low:day].sum()), day - low) if day > low else (0.0, 0)


def _described(con: "duckdb.DuckDBPyConnection", runs: list[dict[str, Any]], span: Mapping[str, date]) -> pl.DataFrame:
    table = pl.DataFrame(runs).with_row_index("run")
    con.register("m02_runs", table.to_arrow())
    try:
        details = con.sql(DETAILS, params=dict(span)).pl()
    finally:
        con.unregister("m02_runs")
    vip = pl.col("has_vip").fill_null(value=False)
    many = (pl.col("n_mailboxes") >= 5) | vip
    journal = pl.col("has_journal").fill_null(value=False)
    found = table.join(details, on="run").with_columns(
        pl.when(pl.col("is_new_tenant").fill_null(value=False))
        .then(pl.lit("low"))
        .when(pl.col("confidence") < 0.6)
        .then(pl.lit("medium"))
        .otherwise(pl.lit("high"))
        .alias("severity"),
        pl.when(journal).then(2.0).when(many).then(1.5).otherwise(1.0).alias("impact"),
        pl.when(pl.col("tenant_key") == "").then(None).otherwise("tenant_key").alias("tenant_id"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.when(pl.col("source") != "").then("sources").alias("evidence_networks"),
    )
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    found = found.with_columns(pl.Series("is_declared_net", declared, pl.Boolean))
    return found.drop("run", "tenant_key", "sources").sort("first_seen", "tenant_id", "actor_id", "source")
