"""Mailbox fan-out burst: one actor opens many mailboxes that are not its own on a day.

---
id = "M01"
title = "Many mailboxes of others opened"
hypothesis = "Whoever holds a credential that opens many mailboxes opens many of them."
family = "mailbox_access"
severity = "high"
tables = ["edge_days", "mailboxes", "tenants", "networks"]
needs = ["edge_days"]
identity = ["tenant_id", "actor_id", "kind", "source", "first_day"]
explanation = "{actor_id:Name} opened {n_mailboxes:count mailbox/mailboxes} of others[ in tenant {tenant_id}] {first_seen:span}[ from {source_networks:nets}]: {n_ops:ops}[ on {n_items:some item}][, {n_bytes:size}][, {n_sync_folders:some folder} synchronised][; {most_later} on the busiest of {n_days} days]. {normal}"
false_positives = [
  "a backup, archiving, migration or eDiscovery product that begins its work",
  "an administrator who sets permissions on many mailboxes",
  "room-booking and calendar tools",
]
blind_spots = [
  "one mailbox a day: counts by day do not see it",
  "bursts shorter than a day within an actor that opens many mailboxes every day from the same network",
  "mailboxes without audit, throttled audit, and protocols whose log names no mailbox",
  "tenants whose history is shorter than min_history_days",
]
runbook = [
  "`mailbox_id`, `first_ts`: list the mailboxes in order of time for the day of the burst; look for an alphabet",
  "`actor_id`: compare the mailboxes a day with those of the 90 days before",
  "`src_net`, `client_fp`: check whether the source and client of the burst were seen in the 90 days before",
  "`change_events.op`: look for consent, role or permission changes for the actor in the 30 days before the burst",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1119", name = "Automated Collection", tactics = ["collection"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before a day that count as the actor's history, at most" },
  { name = "rate_days", default = 28, help = "days before a day from which mean and variance are taken" },
  { name = "min_history_days", default = 7, help = "days since the actor (and the tenant) first appeared from which there is a history" },
  { name = "min_mailboxes", default = 6, help = "mailboxes a day below which nothing is reported" },
  { name = "lift", default = 3.0, help = "how many times the actor's own 99th percentile a day must reach" },
  { name = "floor_without_history", default = 10, help = "mailboxes a day that an actor without history must reach" },
  { name = "false_discovery_rate", default = 0.05, help = "level of Benjamini and Hochberg's procedure over the actors of a day" },
  { name = "many", default = 100, help = "mailboxes from which a burst is critical" },
]

[[subjects]]
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner' group by tenant_id having date_diff('day', min(date), cast($window_to as date)) > $min_history_days)"
reason = "no tenant's log names mailboxes opened by others for more than $min_history_days days"

[evidence]
table = "access_events"
where = "mailbox_id is not null and outcome <> 'failure' and coalesce(logon_type, '') <> 'owner'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_id", src_net = "evidence_networks" }
---

The count of distinct mailboxes of an actor and day is judged by the negative binomial with shrunk, inflated dispersion
and Benjamini and Hochberg's procedure (`queries.statistics`, with sources), and must be a multiple of the actor's own
highest percentile. A network that an actor of long standing uses for the first time has a series of its own, which
begins at zero: a thief hides behind a backup product's thousands otherwise.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.statistics import benjamini_hochberg, nb_tail, pooled_dispersion
from queries.text import count

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

ACTOR_DAYS = """
select coalesce(tenant_id, '') as tenant_key, actor_id, date, count(distinct mailbox_id)::bigint as n
from edge_days
where date between $first and $last and coalesce(logon_type, '') <> 'owner'
group by 1, 2, 3
"""

# New networks of actors that rarely show one (past their first 14 days, in which all are new), while their old networks
# go on: where those stop, the actor has moved. Declared networks, and those of the 14 days before, say nothing of how
# rarely: a vendor's egress changes, and a thief who moves about would make that normal.
NETWORK_DAYS = """
with uses as (
    select coalesce(tenant_id, '') as tenant_key, actor_id, src_net, date, count(distinct mailbox_id)::bigint as n
    from edge_days
    where date between $first and $last and coalesce(logon_type, '') <> 'owner' and src_net is not null
    group by all
),
nets as (
    select tenant_key, actor_id, src_net, min(date) as first_day, max(date) as last_day, max(n) as most
    from uses group by all
),
new_nets as (select * from nets where first_day >= $from and most >= $floor),
actors as (select tenant_key, actor_id, min(first_day) as begins from nets group by all),
networks_before as (
    select n.tenant_key, n.actor_id, n.src_net, n.first_day, count(*) as n_nets,
        count(*) filter (
            where h.first_day >= a.begins + 14 and h.first_day < n.first_day - 14 and not exists (
                select 1 from declared_networks() as d
                where d.is_whole and net_number(h.src_net) between d.first_net and d.last_net
            )
        ) as n_later
    from new_nets as n
    join actors as a on a.tenant_key = n.tenant_key and a.actor_id = n.actor_id
    join nets as h on h.tenant_key = n.tenant_key and h.actor_id = n.actor_id and h.first_day < n.first_day
    group by all
    having max(h.last_day) >= least(n.first_day + 1, $last)
),
histories as (
    select n.*, count(distinct u.date) as n_history
    from networks_before as n
    join uses as u on u.tenant_key = n.tenant_key and u.actor_id = n.actor_id and u.date < n.first_day
    group by all
    having count(distinct u.date) >= 21 and (n.n_later + 0.5) / (count(distinct u.date) - 13) <= 0.05
)
select h.tenant_key, h.actor_id, h.src_net, u.date, u.n, h.n_history, h.n_nets
from histories as h join uses as u using (tenant_key, actor_id, src_net)
where u.n >= $floor
order by all
"""

DETAILS = """
with bursts as (select * from m01_bursts),
net_days as (
    select b.burst, b.least, e.src_net, e.date, count(distinct e.mailbox_id) as n
    from bursts as b
    join edge_days as e
        on coalesce(e.tenant_id, '') = b.tenant_key and e.actor_id = b.actor_id and e.date between b.first_day and b.last_day
    where e.date between $first and $last and b.source = '' and e.src_net is not null and coalesce(e.logon_type, '') <> 'owner'
    group by all
),
-- Networks that carry a burst by themselves: what else the actor did on the day is its daily work.
carriers as (
    select burst, list(src_net order by src_net) as nets
    from (select burst, src_net from net_days group by burst, src_net having max(n) >= any_value(least)) as n
    group by burst
)
select b.burst, any_value(c.nets) as carriers, min(e.first_ts) as first_seen, max(e.last_ts) as last_seen, list(distinct e.tenant_id) as tenant_ids,
    list(distinct e.mailbox_id order by e.mailbox_id) as mailboxes, count(distinct e.mailbox_id)::bigint as n_mailboxes,
    list(distinct e.src_net order by e.src_net) filter (where e.src_net is not null) as source_networks,
    list(distinct e.credential_id order by e.credential_id)
        filter (where e.credential_id is not null) as credential_ids,
    list(distinct e.app_id order by e.app_id) filter (where e.app_id is not null) as app_ids,
    list(distinct e.protocol order by e.protocol) as protocols, sum(e.n_ops)::bigint as n_ops,
    sum(e.items)::bigint as n_items,
    sum(e.bytes_out)::bigint as n_bytes, sum(e.sync_folders)::bigint as n_sync_folders,
    bool_or(e.actor_type in ('service_principal', 'service_account', 'computer')) as is_service,
    bool_or(coalesce(m.vip, false)) as has_vip, bool_or(m.kind = 'journal') as has_journal,
    bool_or(t.onboarded_at > b.first_day - interval 30 day) as is_new_tenant
from bursts as b
join edge_days as e
    on coalesce(e.tenant_id, '') = b.tenant_key and e.actor_id = b.actor_id
    and e.date between b.first_day and b.last_day
    and coalesce(e.logon_type, '') <> 'owner' and (b.source = '' or e.src_net = b.source)
left join carriers as c on c.burst = b.burst
left join mailboxes as m on lower(m.mailbox_id) = e.mailbox_id
left join tenants as t on t.tenant_id = e.tenant_id
where e.date between $first and $last and (c.nets is null or list_contains(c.nets, e.src_net))
group by b.burst
"""

RUN_GAP = 3  # days without a burst that still belong to one run of bursts


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Runs of days on which an actor opened unusually many mailboxes of others.

    Args:
        con: connection with edge_days, mailboxes and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per run, with the columns that the front matter names; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    first = begin - timedelta(days=params["baseline_days"])
    span = {"first": first, "last": end}
    counts = con.sql(ACTOR_DAYS, params=span).pl()
    runs = _bursts(counts, first, begin, end, params)
    floor = {"from": begin, "floor": params["floor_without_history"]}
    runs += _network_runs(con.sql(NETWORK_DAYS, params=span | floor).pl(), runs)
    if not runs:
        return pl.DataFrame()
    return _described(con, runs, span, params)


def _bursts(
    counts: pl.DataFrame, first: date, begin: date, end: date, params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Runs of burst days from the daily counts (tenant_key, actor_id, date, n)."""
    if counts.is_empty():
        return []
    n_days = (end - first).days + 1
    counts = counts.with_columns(
        day=(pl.col("date") - first).dt.total_days(), tenant_first=pl.col("date").min().over("tenant_key")
    )
    totals = (
        counts.group_by("tenant_key", "actor_id", "tenant_first")
        .agg(
            pl.col("n").sum().alias("total"),
            pl.col("n").cast(pl.Float64).pow(2).sum().alias("squares"),
            pl.col("day").min().alias("first_day"),
            pl.col("n").filter(pl.col("date") >= begin).max().fill_null(0).alias("most"),
        )
        .sort("tenant_key", "actor_id")
    )
    # An actor's days begin with its first: days before its log began are no quiet days, and would look like scatter.
    length = n_days - totals["first_day"].cast(pl.Int64).to_numpy()
    mean = totals["total"].to_numpy() / length
    variance = np.maximum(totals["squares"].to_numpy() / length - mean**2, 0)
    totals = totals.with_columns(pl.Series("pooled", pooled_dispersion(mean, variance)))
    watched = totals.filter(pl.col("most") >= params["min_mailboxes"]).with_row_index("row")
    if watched.is_empty():
        return []
    panel = np.zeros((watched.height, n_days))
    cells = counts.join(watched.select("tenant_key", "actor_id", "row"), on=["tenant_key", "actor_id"])
    panel[cells["row"].to_numpy(), cells["day"].to_numpy()] = cells["n"].to_numpy()
    n_tests = np.zeros(n_days, int)
    per_day = counts.group_by("day").len()
    n_tests[per_day["day"].to_numpy()] = per_day["len"].to_numpy()
    judged = _judge(panel, watched, (n_tests, _weekday_factors(counts, first, n_days)), (first, begin), params)
    return _runs(judged, panel, watched, first, params)


def _weekday_factors(counts: pl.DataFrame, first: date, n_days: int) -> "NDArray[np.float64]":
    """Share of the mean day that each weekday brings over all actors, by day of the panel; at least 0.2."""
    sums = np.zeros(n_days)
    by_day = counts.group_by("day").agg(pl.col("n").sum())
    sums[by_day["day"].to_numpy()] = by_day["n"].to_numpy()
    weekday = (first.weekday() + np.arange(n_days)) % 7
    start = int(counts["day"].cast(pl.Int64).min() or 0)  # type: ignore[arg-type]
    means = np.array(
        [np.mean(sums[start:][weekday[start:] == k]) if np.any(weekday[start:] == k) else 0.0 for k in range(7)]
    )
    overall = float(np.mean(means)) or 1.0
    return np.asarray(np.clip(means / overall, 0.2, 5.0)[weekday])


def _judge(
    panel: "NDArray[np.float64]",
    watched: pl.DataFrame,
    by_day: tuple["NDArray[np.int_]", "NDArray[np.float64]"],
    days: tuple[date, date],
    params: Mapping[str, Any],
) -> "NDArray[np.bool_]":
    """Which days are bursts.

    Args:
        panel: distinct mailboxes, shape (actors, days).
        watched: one row per actor of the panel: first_day (offset), tenant_first, pooled dispersion.
        by_day: number of actors tested and weekday factor, each of shape (days,).
        days: first day of the panel, and first day to judge.
        params: of the detection.

    Returns:
        shape of the panel; true on days from the second of `days` on that are bursts.
    """
    (n_tests, factors), (first, begin) = by_day, days
    n_actors, n_days = panel.shape
    judged = np.zeros(panel.shape, bool)
    flat = panel / factors
    sums = np.concatenate([np.zeros((n_actors, 1)), np.cumsum(flat, axis=1)], axis=1)
    squares = np.concatenate([np.zeros((n_actors, 1)), np.cumsum(flat**2, axis=1)], axis=1)
    starts = watched["first_day"].cast(pl.Int64).to_numpy()
    tenant_starts = np.array([(day - first).days for day in watched["tenant_first"]])
    pooled = watched["pooled"].to_numpy()
    for day in range((begin - first).days, n_days):
        x = panel[:, day]
        low = np.maximum(starts, day - params["rate_days"])
        length = np.maximum(day - low, 1)
        rows = np.arange(n_actors)
        mean = (sums[rows, day] - sums[rows, np.minimum(low, day)]) / length
        spread = (squares[rows, day] - squares[rows, np.minimum(low, day)]) / length - mean**2
        variance = np.maximum(spread, 0) * length / np.maximum(length - 1, 1)
        p = nb_tail(x, mean * factors[day], variance * factors[day] ** 2, length, pooled)
        tested = x > 0
        q = np.ones(n_actors)
        q[tested] = benjamini_hochberg(p[tested], int(n_tests[day]))
        known = day - starts >= params["min_history_days"]
        high = _high(panel, day, params["baseline_days"])
        usual = (q <= params["false_discovery_rate"]) & (
            x >= np.maximum(params["min_mailboxes"], params["lift"] * high)
        )
        judgeable = day - tenant_starts >= params["min_history_days"]
        judged[:, day] = np.where(known, usual, (x >= params["floor_without_history"]) & judgeable)
    return judged


def _high(panel: "NDArray[np.float64]", day: int, reach: int) -> "NDArray[np.float64]":
    """Highest count near the 99th percentile of each actor's days before `day`: the maximum of up to 100 days."""
    before = panel[:, max(0, day - reach) : day]
    if before.shape[1] == 0:
        return np.zeros(panel.shape[0])
    return np.asarray(np.quantile(before, 0.99, axis=1, method="higher"))


def _runs(
    judged: "NDArray[np.bool_]",
    panel: "NDArray[np.float64]",
    watched: pl.DataFrame,
    first: date,
    params: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Burst days merged to runs; later days count by what was usual before the run, which it does not change."""
    runs = []
    for row in np.flatnonzero(judged.any(axis=1)):
        who = watched.row(int(row), named=True)
        day, n_days = 0, panel.shape[1]
        while day < n_days:
            if not judged[row, day]:
                day += 1
                continue
            before = panel[row, max(0, day - params["baseline_days"]) : day]
            usual = float(np.quantile(before, 0.99, method="higher")) if before.size else 0.0
            known = day - who["first_day"] >= params["min_history_days"]
            least = max(params["min_mailboxes"], params["lift"] * usual) if known else params["floor_without_history"]
            last = day
            for later in range(day + 1, n_days):
                if later - last > RUN_GAP:
                    break
                if panel[row, later] >= least:
                    last = later
            days = [d for d in range(day, last + 1) if panel[row, d] >= least]
            normal = (
                f"In {count(before.size, 'day')} before it opened at most {usual:.0f} a day."
                if known
                else f"It was first seen less than {params['min_history_days']} days before."
            )
            runs.append({
                "tenant_key": who["tenant_key"], "actor_id": who["actor_id"], "kind": "burst" if known else "new_actor",
                "source": "", "first_day": first + timedelta(days=day), "last_day": first + timedelta(days=last),
                "n_days": len(days), "most_a_day": int(panel[row, days].max()), "normal": normal, "least": float(least),
                "confidence": 1.0 if known else 0.6,
            })  # fmt: skip
            day = last + 1
    return runs


def _network_runs(days: pl.DataFrame, known: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Bursts from a network that is new to an actor of long standing, where the actor's whole count showed none."""
    told = {(run["tenant_key"], run["actor_id"]) for run in known}
    runs = []
    for (tenant, actor, net), group in days.group_by("tenant_key", "actor_id", "src_net", maintain_order=True):
        if (tenant, actor) in told:
            continue
        runs.append({
            "tenant_key": tenant, "actor_id": actor, "kind": "new_network", "source": net,
            "first_day": group["date"].min(), "last_day": group["date"].max(), "n_days": group.height,
            "most_a_day": int(group["n"].max()), "least": 0.0,  # type: ignore[arg-type]
            "normal": f"In {group['n_history'][0]} active days before it used "
            f"{count(group['n_nets'][0], 'other network')}, never this one.",
            "confidence": 0.9,
        })  # fmt: skip
    return runs


def _described(
    con: "duckdb.DuckDBPyConnection", runs: list[dict[str, Any]], span: Mapping[str, date], params: Mapping[str, Any]
) -> pl.DataFrame:
    bursts = pl.DataFrame(runs).with_row_index("burst")
    con.register("m01_bursts", bursts.to_arrow())
    try:
        details = con.sql(DETAILS, params=dict(span)).pl()
    finally:
        con.unregister("m01_bursts")
    many, vip = pl.col("n_mailboxes") >= params["many"], pl.col("has_vip").fill_null(value=False)
    severity = (
        pl.when(pl.col("is_new_tenant").fill_null(value=False)).then(pl.lit("low"))
        .when(many | vip).then(pl.lit("critical"))
        .otherwise(pl.lit("high"))
    )  # fmt: skip
    impact = (
        pl.when(pl.col("has_journal").fill_null(value=False))
        .then(2.0)
        .when((pl.col("n_mailboxes") >= 5) | vip)
        .then(1.5)
        .otherwise(1.0)
    )
    found = bursts.join(details, on="burst").with_columns(
        severity.alias("severity"),
        impact.alias("impact"),
        pl.when(pl.col("tenant_key") == "").then(None).otherwise("tenant_key").alias("tenant_id"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.when(pl.col("n_days") > 1).then(pl.min_horizontal("most_a_day", "n_mailboxes")).alias("most_later"),
        pl.when(pl.col("source") == "").then("carriers").otherwise(pl.concat_list("source")).alias("evidence_networks"),
    )
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    found = found.with_columns(pl.Series("is_declared_net", declared, pl.Boolean))
    return found.drop("burst", "tenant_key", "least", "carriers").sort("first_seen", "tenant_id", "actor_id", "source")
