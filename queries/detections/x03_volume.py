"""Volume: far more taken in a day or a week than ever before, by one identity.

---
id = "X03"
title = "Far more taken in a day or a week than ever"
hypothesis = "Who has got in takes what there is before the door is shut: the volume of the identity jumps."
family = "exfiltration"
severity = "medium"
tables = ["context_days", "networks", "tenants"]
needs = ["context_days"]
identity = ["tenant_id", "actor_id", "span_kind", "first_day"]
explanation = "{actor_id:Name} took {taken}[ at tenant {tenant_id}] {first_seen:span}[ from {source_networks:nets}]. {normal}[ {remark}]"
step = "{first_seen:Days}, {actor_id:name} took {taken}[ from {source_networks:nets}]."
why = "{normal}"
false_positives = [
  "a backup, an archive or a migration that begins anew, or a legal export",
  "a mail client that builds its store anew",
  "a backlog after an outage",
]
blind_spots = [
  "an identity without min_history_days days of history: see X04 and T05",
  "less than lift times the usual, or than above_highest times the highest day so far",
  "logs that tell neither items nor bytes",
  "a person's own volume from a network that the person had used before: see X02 and M03",
  "a volume that grows slowly: it becomes its own baseline, see X04",
]
runbook = [
  "`action`, `item_count`, `bytes_out`: list the operations of the identity by hour for the days of the finding and the 7 before",
  "`mailbox_id`: see in edge_days which mailboxes the volume comes from",
  "`src_net`, `client_fp`: compare source and client with those of the 28 days before",
  "`change_events.op`: look for a migration, an export or a hold that was ordered in the 14 days before",
]

attack = [
  { technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] },
  { technique = "T1020", name = "Automated Exfiltration", tactics = ["exfiltration"] },
  { technique = "T1030", name = "Data Transfer Size Limits", tactics = ["exfiltration"] },
]

parameters = [
  { name = "baseline_days", default = 84, help = "days before a day that count as history, at most" },
  { name = "settle_days", default = 3, help = "days just before a day that belong to the same event, not to the history" },
  { name = "min_history_days", default = 14, help = "days for which an identity must be known" },
  { name = "lift", default = 3.0, help = "how many times the expected volume there must be" },
  { name = "above_highest", default = 1.5, help = "how many times the highest day (week) so far there must be" },
  { name = "min_excess", default = 50, help = "items above the expected number that a day must have; a week twice as many" },
  { name = "min_excess_bytes", default = 100000000, help = "bytes above the expected number that a day must have; a week twice as many" },
  { name = "min_z", default = 6.0, help = "robust z of the logarithm of the bytes of a day" },
  { name = "false_discovery_rate", default = 0.05, help = "level of Benjamini and Hochberg's procedure over the identities of a day" },
  { name = "export_weight", default = 3, help = "items that an exported item or an attachment counts for" },
  { name = "new_share", default = 0.5, help = "share of the volume that comes from networks new to the identity, from which the finding weighs more" },
]

[evidence]
table = "access_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "evidence_tenants", "coalesce(principal_id, app_id)" = "actor_id", src_net = "evidence_networks", client_fp = "evidence_clients" }
---

Working days are set against working days and weekends against weekends. Items are counts: negative binomial tail with
Benjamini and Hochberg's procedure; bytes are not: robust z of their logarithm. A week is set against twelve weeks.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.statistics import nb_screen, robust_z
from queries.text import count, size

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

    Matrix: TypeAlias = NDArray[np.float64]

WEEK = 7
WEEKS = 12  # weeks that a week is set against
DATA = """(
    'any', 'get_item', 'sync_folder', 'export', 'attachment', 'retr', 'top', 'session', 'list', 'find_item', 'search'
)"""

DAYS = f"""
create or replace temp table x03_days as
select coalesce(tenant_id, '') as tenant_key, coalesce(principal_id, app_id) as actor_id, date,
    sum(items * if(action in ('export', 'attachment'), $weight, 1))::double as items, sum(bytes_out)::double as bytes
from context_days
where date between $first and $last and outcome = 'success' and action in {DATA}
    and coalesce(principal_id, app_id) is not null and (items > 0 or bytes_out > 0)
group by all
"""

CANDIDATES = """
select * from x03_days
semi join (
    select tenant_key, actor_id from x03_days where date >= $from
    group by all having sum(items) >= $items or sum(bytes) >= $bytes
) as c using (tenant_key, actor_id)
order by all
"""

TESTS = "select date, count(*) as n from x03_days where date >= $from group by date"

DETAILS = f"""
with used as (
    select r.run, c.date, r.first_day, c.date >= r.first_day as is_inside, c.src_net, c.client_fp, c.app_id,
        c.credential_id, c.protocol, c.action, c.items, c.bytes_out, c.n_ops, c.first_ts, c.last_ts, c.tenant_id,
        if(r.measure = 'bytes', c.bytes_out, c.items * if(c.action in ('export', 'attachment'), $weight, 1)) as taken,
        (c.date - r.first_day) // if(r.span_kind = 'week', 7, 1) as span, r.highest
    from x03_runs as r
    join context_days as c
        on coalesce(c.tenant_id, '') = r.tenant_key and coalesce(c.principal_id, c.app_id) = r.actor_id
        and c.date <= r.last_day
    where c.date between $first and $last and c.outcome = 'success' and c.action in {DATA}
),
declared as (
    select distinct n.src_net from (select distinct src_net from used) as n
    join declared_networks() as d on d.is_whole and net_number(n.src_net) between d.first_net and d.last_net
),
known as (
    select run, src_net, bool_or(date < first_day - $settle or coalesce(src_net in (from declared), false)) as is_known
    from used group by all
),
-- Networks and clients that the volume came by: what the others took together had been taken on a day (in a week) before.
contexts as (
    select *, sum(taken) over (
        partition by run, span order by taken, src_net, client_fp rows unbounded preceding
    ) > highest as is_carrying
    from (
        select run, span, src_net, client_fp, any_value(highest) as highest, coalesce(sum(taken), 0) as taken
        from used where is_inside group by all
    ) as c
),
carrying as (
    select run, list(distinct src_net order by src_net) as nets, list(distinct client_fp order by client_fp) as clients
    from contexts where is_carrying
    group by run
)
select u.run, min(u.first_ts) as first_seen, max(u.last_ts) as last_seen,
    any_value(b.nets) as carrying_networks, any_value(b.clients) as carrying_clients,
    list(distinct u.tenant_id) as evidence_tenants, sum(u.items)::bigint as n_items, sum(u.bytes_out)::bigint as n_bytes,
    sum(u.n_ops)::bigint as n_ops, bool_and(u.action <> 'any') as is_machine,
    list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null) as source_networks,
    list(distinct u.src_net order by u.src_net) filter (where u.src_net is not null and not k.is_known) as new_networks,
    list(distinct u.client_fp order by u.client_fp) filter (where u.client_fp is not null) as client_fps,
    list(distinct u.app_id order by u.app_id) filter (where u.app_id is not null) as app_ids,
    list(distinct u.credential_id order by u.credential_id) filter (where u.credential_id is not null) as credential_ids,
    list(distinct u.protocol order by u.protocol) as protocols,
    coalesce(sum(u.items + u.bytes_out / 1e6) filter (where u.src_net is not null and not k.is_known), 0)
        / greatest(sum(u.items + u.bytes_out / 1e6), 1) as new_share
from used as u
join known as k on k.run = u.run and k.src_net is not distinct from u.src_net
left join carrying as b on b.run = u.run
where u.is_inside
group by u.run
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Days and weeks in which an identity took far more than ever.

    Args:
        con: connection with context_days, networks and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per identity and run of days; no rows when there is nothing.
    """
    begin, last = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    first = begin - timedelta(days=max(params["baseline_days"], WEEK * (WEEKS + 1)) + params["settle_days"])
    con.execute(DAYS, {"first": first, "last": last, "weight": params["export_weight"]})
    try:
        least = {"items": params["min_excess"], "bytes": params["min_excess_bytes"]}
        taken = con.sql(CANDIDATES, params={"from": begin} | least).pl()
        tests = dict(con.sql(TESTS, params={"from": begin}).fetchall())
    finally:
        con.execute("drop table if exists x03_days")
    if taken.is_empty():
        return pl.DataFrame()
    volumes = _volumes(taken, (first, begin, last))
    settings = dict(params) | {"n_identities": max(tests.values(), default=1)}
    hits = _days(volumes, tests, settings)
    hits += _weeks(volumes, {(hit["place"], hit["day"]) for hit in hits}, settings)
    runs = _runs(hits, volumes)
    return _described(con, runs, {"first": first, "last": last}, params) if runs else pl.DataFrame()


class Volumes(NamedTuple):
    """Volumes by identity and day since `first`; NaN before the identity's first day. The window begins at `offset`."""

    actors: list[tuple[str, str]]
    items: "Matrix"
    n_bytes: "Matrix"
    first: date
    offset: int

    @property
    def measures(self) -> "tuple[tuple[str, Matrix, str], ...]":
        """Name, volumes, and the parameter that says how much of an excess counts."""
        return ("items", self.items, "min_excess"), ("bytes", self.n_bytes, "min_excess_bytes")


def _volumes(taken: pl.DataFrame, days: tuple[date, date, date]) -> Volumes:
    first, begin, last = days
    key = ["tenant_key", "actor_id"]
    actors = taken.group_by(key).agg(pl.col("date").min().alias("begins")).sort(key).with_row_index("place")
    placed = taken.join(actors, on=key)
    at = ((placed["date"] - first).dt.total_days().to_numpy(), placed["place"].to_numpy())
    found = []
    for column in ("items", "bytes"):
        matrix = np.zeros((actors.height, (last - first).days + 1))
        matrix[at[1], at[0]] = placed[column].to_numpy()
        for place, begins in enumerate(actors["begins"]):
            matrix[place, : (begins - first).days] = np.nan
        found.append(matrix)
    return Volumes(list(actors.select(key).iter_rows()), found[0], found[1], first, (begin - first).days)


def _days(volumes: Volumes, tests: Mapping[date, int], params: dict[str, Any]) -> list[dict[str, Any]]:
    """Single days that stand out: place of the identity, number of the day, measure, what was usual."""
    items, first = volumes.items, volumes.first
    weekend = np.array([(first + timedelta(days=n)).isoweekday() >= 6 for n in range(items.shape[1])])
    hits = list[dict[str, Any]]()
    for day in range(volumes.offset, items.shape[1]):
        low, high = max(0, day - params["settle_days"] - params["baseline_days"]), day - params["settle_days"]
        alike = weekend[low:high] == weekend[day]
        settled = np.isfinite(items[:, low:high]).sum(axis=1) >= params["min_history_days"]
        for measure, values, least in volumes.measures:
            past, today = values[:, low:high], values[:, day]
            base = past[:, alike]
            highest = np.nanmax(np.where(np.isfinite(past), past, 0), axis=1, initial=0)
            some = settled & (np.isfinite(base).sum(axis=1) >= 4) & (today >= params["above_highest"] * highest)
            place = np.flatnonzero(some & (today >= params[least]))
            if not place.size:
                continue
            n_tests = tests.get(first + timedelta(days=day), 0)
            excess = {"least": params[least], "n_tests": n_tests}
            alert, usual = _stands_out(measure, today[place], base[place], params | excess)
            for at, mean in zip(place[alert], usual[alert], strict=True):
                hits.append({"place": int(at), "day": day, "kind": "day", "measure": measure, "usual": float(mean),
                             "highest": float(highest[at])})  # fmt: skip
    return hits


def _stands_out(
    measure: str, today: "Matrix", base: "Matrix", params: Mapping[str, Any]
) -> "tuple[NDArray[np.bool_], Matrix]":
    """Which volumes are far above their base, and what its mean is."""
    usual, least = np.nanmean(base, axis=1), params["least"]
    if measure == "items":
        level, lift = params["false_discovery_rate"], params["lift"]
        screen = nb_screen(today, base, level=level, least_lift=lift, least_excess=least, n_tests=params["n_tests"])
        return screen.is_alert, usual
    far = robust_z(today, base) >= params["min_z"]
    return far & (today >= params["lift"] * usual) & (today - usual >= least), usual


def _weeks(volumes: Volumes, told: set[tuple[int, int]], params: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs of seven days that stand out from twelve before, where no single day of them does."""
    found = list[dict[str, Any]]()
    for day in range(volumes.offset + WEEK - 1, volumes.items.shape[1]):
        for measure, values, least in volumes.measures:
            today = values[:, day - WEEK + 1 : day + 1].sum(axis=1)
            low = day - WEEK + 1 - WEEK * WEEKS
            if low < 0:
                continue
            base = values[:, low : day - WEEK + 1].reshape(values.shape[0], WEEKS, WEEK).sum(axis=2)
            highest = np.nanmax(np.where(np.isfinite(base), base, 0), axis=1)
            some = (np.isfinite(base).sum(axis=1) >= 4) & (today >= params["above_highest"] * highest)
            place = np.flatnonzero(some & (today >= 2 * params[least]))
            if not place.size:
                continue
            excess = {"least": 2 * params[least], "n_tests": params["n_identities"]}
            alert, usual = _stands_out(measure, today[place], base[place], params | excess)
            found += [
                {"place": int(at), "day": day, "kind": "week", "measure": measure, "usual": float(mean),
                 "highest": float(highest[at]), "factor": today[at] / max(mean, 1)}
                for at, mean in zip(place[alert], usual[alert], strict=True)
            ]  # fmt: skip
    hits, taken = list[dict[str, Any]](), set(told)
    for hit in sorted(found, key=lambda hit: -hit["factor"]):
        span = {(hit["place"], n) for n in range(hit["day"] - WEEK + 1, hit["day"] + 1)}
        if not span & taken:
            taken |= span
            hits.append(hit)
    return hits


def _runs(hits: list[dict[str, Any]], volumes: Volumes) -> list[dict[str, Any]]:
    """Hits of an identity that follow each other within three days are one."""
    runs = list[dict[str, Any]]()
    for hit in sorted(hits, key=lambda hit: (hit["place"], hit["kind"], hit["day"], hit["measure"] != "items")):
        tenant, actor = volumes.actors[hit["place"]]
        last_day = volumes.first + timedelta(days=hit["day"])
        first_day = last_day - timedelta(days=WEEK - 1) if hit["kind"] == "week" else last_day
        before = runs[-1] if runs else None
        same = before is not None and (before["tenant_key"], before["actor_id"]) == (tenant, actor)
        if (
            before is not None
            and same
            and (first_day - before["last_day"]).days <= 3
            and before["span_kind"] == hit["kind"]
        ):
            before["last_day"] = max(before["last_day"], last_day)
            continue
        runs.append({
            "tenant_key": tenant, "actor_id": actor, "span_kind": hit["kind"], "first_day": first_day,
            "last_day": last_day, "measure": hit["measure"], "usual": hit["usual"], "highest": hit["highest"],
        })  # fmt: skip
    return runs


def _described(
    con: "duckdb.DuckDBPyConnection", runs: list[dict[str, Any]], span: Mapping[str, date], params: Mapping[str, Any]
) -> pl.DataFrame:
    table = pl.DataFrame(runs).with_row_index("run")
    settings = dict(span) | {"settle": params["settle_days"], "weight": params["export_weight"]}
    con.register("x03_runs", table.to_arrow())
    try:
        details = con.sql(DETAILS, params=settings).pl()
    finally:
        con.unregister("x03_runs")
    found = table.join(details, on="run").sort("run")
    is_new = (pl.col("new_share") >= params["new_share"]) & (pl.col("new_networks").list.len() > 0)
    machine, strange = pl.col("is_machine").fill_null(value=False), pl.col("is_from_new_net")
    # People clear up, move and set up new programs: their volume alone says nothing.
    found = found.with_columns(is_new.fill_null(value=False).alias("is_from_new_net")).filter(machine | strange)
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    return found.with_columns(
        pl.Series("is_declared_net", declared, pl.Boolean),
        pl.when(strange).then("new_networks").otherwise("carrying_networks").alias("evidence_networks"),
        pl.when(~strange).then("carrying_clients").alias("evidence_clients"),
        pl.Series("taken", [_taken(row) for row in found.iter_rows(named=True)]),
        pl.Series("normal", [_normal(row) for row in found.iter_rows(named=True)]),
        pl.when(strange).then(
            pl.format("Most of it went to {}, new to the identity.", pl.col("new_networks").list.head(3).list.join(", "))
        ).alias("remark"),
        pl.when(machine & strange).then(pl.lit("high")).otherwise(pl.lit("medium")).alias("severity"),
        pl.when(strange).then(0.9).otherwise(0.6).alias("confidence"),
        pl.lit(1.0).alias("impact"),
        pl.when(pl.col("tenant_key") == "").then(None).otherwise("tenant_key").alias("tenant_id"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.col("is_machine").alias("is_service"),
    ).drop(
        "run", "tenant_key", "carrying_networks", "carrying_clients"
    ).sort("first_seen", "tenant_id", "actor_id", "span_kind")  # fmt: skip


def _taken(row: Mapping[str, Any]) -> str:
    parts = [count(row["n_items"], "item")] if row["n_items"] else []
    return " and ".join(parts + ([size(row["n_bytes"])] if row["n_bytes"] else []))


def _normal(row: Mapping[str, Any]) -> str:
    what = "day like it" if row["span_kind"] == "day" else "week"
    usual, highest = (
        (size(row["usual"]), size(row["highest"]))
        if row["measure"] == "bytes"
        else (f"{row['usual']:,.0f} items", f"{row['highest']:,.0f}")
    )
    return f"On a {what} before it took {usual} on average, and at most {highest} in a {row['span_kind']}."
