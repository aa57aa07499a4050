"""Low and slow: a little every day, from a context that is new, or three times the usual over weeks.

---
id = "X04"
title = "A little every day, for weeks"
hypothesis = "Who takes forty mails a day is on no day conspicuous, and after a month has taken a thousand."
family = "exfiltration"
severity = "high"
tables = ["context_days", "change_events", "first_seen", "networks", "tenants"]
needs = ["context_days"]
identity = ["tenant_id", "actor_id", "kind", "context", "first_day"]
explanation = "{actor_id:Name} took {taken}[ at tenant {tenant_id}][ from {strange_networks:nets}][ with the client {strange_client}] {first_seen:span}, on {n_days:count day}. {normal}[ {remark}]"
step = "{first_seen:Days}, {actor_id:name} took {taken} on {n_days:count day}[ from {strange_networks:nets}]."
why = "{normal}"
false_positives = [
  "a new integration that nobody declared and no administrator's change explains",
  "a supplier's client or network that changes at one tenant first",
  "a product that is rolled out over months: its volume grows from month to month",
]
blind_spots = [
  "a network that the tenant, or many tenants, used before, as that of a VPN provider",
  "ordinary users: a new network and daily work are their life",
  "what is taken from the usual network with the usual client, at less than lift times the usual volume",
  "fewer than min_items items over min_days days",
  "contexts that change every few days: see X08",
  "a new application that was prepared from an administrator's own network: see L05 and T05",
]
runbook = [
  "`src_net`, `client_fp`: list what the identity did from the context, day by day, and compare with the 30 days before it came",
  "`item_count`, `bytes_out`: sum what was taken by mailbox over the days of the finding; a quota shows as the same number again and again",
  "`mailbox_id`, `message_ids`: list the messages read on the days of the finding, as far as the log names them",
  "`principal_id`, `ts`: ask the vendor for the jobs of the identity on the days of the finding, and look in gateway_jobs",
]

attack = [
  { technique = "T1030", name = "Data Transfer Size Limits", tactics = ["exfiltration"] },
  { technique = "T1029", name = "Scheduled Transfer", tactics = ["exfiltration"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a context that the identity or its tenant used is known" },
  { name = "novel_days", default = 30, help = "days before the window since which a context still counts as new" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol must go back" },
  { name = "min_items", default = 100, help = "items that the new context must have taken in all" },
  { name = "min_bytes", default = 100000000, help = "bytes that do as well" },
  { name = "min_days", default = 7, help = "days on which the new context must have taken something" },
  { name = "cusum_slack", default = 0.5, help = "units of spread a day that the sum forgives" },
  { name = "cusum_limit", default = 8.0, help = "sum above which the volume of new contexts is not what the identity's new contexts usually bring" },
  { name = "habit_lift", default = 2.0, help = "how many times the daily volume of the identity's new contexts before the context must bring" },
  { name = "regular_days", default = 10, help = "days from which daily totals are judged to be a quota" },
  { name = "regular_items", default = 50, help = "items in all, at least, of a quota" },
  { name = "max_variation", default = 0.15, help = "standard deviation of the daily totals by their mean, up to which they are a quota" },
  { name = "window_lift", default = 3.0, help = "how many times the mean of the windows before the last 28 days must bring" },
  { name = "min_windows", default = 6, help = "windows of 28 days that must lie before" },
  { name = "wide_share", default = 0.3, help = "share of all tenants from which it looks like a change of infrastructure" },
]

[evidence]
table = "access_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "evidence_tenants", "coalesce(principal_id, app_id)" = "actor_id", src_net = "strange_networks", client_fp = "strange_client" }
---

Two rules for identities of machines. What comes from contexts that are new (to identity and tenant, and declared by
nobody) has a series of its own, which starts at zero: its cumulative sum is set against what the identity's new contexts
usually bring, so that one whose networks change all the time is not reported. And the last 28 days are set against at
least six such windows before.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.newcomers import explained, fresh, is_weak, remark
from queries.statistics import cusum, first_alarm, nb_screen, regularity, robust_z
from queries.text import count, size

if TYPE_CHECKING:
    import duckdb

MONTH = 28  # days of a window
DATA = "('get_item', 'sync_folder', 'export', 'attachment', 'retr', 'top', 'session', 'list', 'find_item', 'search')"

# What machines took, by day and context; `age` is how long the context has been in use by the identity.
TAKEN = f"""
create or replace temp table x04_days as
with taken as (
    select coalesce(tenant_id, '') as tenant_key, coalesce(principal_id, app_id) as actor_id, date, src_net, client_fp,
        sum(items)::double as items, sum(bytes_out)::double as bytes, min(first_ts) as first_ts, max(last_ts) as last_ts
    from context_days
    where date between $first and $last and outcome = 'success' and action in {DATA}
        and coalesce(principal_id, app_id) is not null and (items > 0 or bytes_out > 0)
    group by all
),
actors as (select tenant_key, actor_id, min(date) as begins from taken group by all),
ages as (select tenant_key, actor_id, src_net, min(date) as since from taken group by all)
select t.*, t.date - g.since as age, g.since - a.begins as settled
from taken as t
join actors as a using (tenant_key, actor_id)
join ages as g on g.tenant_key = t.tenant_key and g.actor_id = t.actor_id and g.src_net is not distinct from t.src_net
"""

SERIES = """
select f.place, d.date, sum(d.items) as items, sum(d.bytes) as bytes, min(d.first_ts) as first_ts, max(d.last_ts) as last_ts
from x04_fresh as f
join x04_days as d
    on d.tenant_key = f.tenant_key and d.actor_id = f.actor_id
    and if(f.kind = 'src_net', d.src_net, d.client_fp) = f.value
group by all
order by all
"""

# What contexts that were new at the time brought, before the one that is judged.
HABIT = """
select f.place, d.date, sum(d.items) as items, sum(d.bytes) as bytes
from x04_fresh as f
join x04_days as d on d.tenant_key = f.tenant_key and d.actor_id = f.actor_id
where d.date < f.first_day and d.date >= f.first_day - 60 and d.settled >= $history and d.age <= 30
group by all
order by all
"""

ABOUT = """
select f.place, list(distinct c.app_id order by c.app_id) filter (where c.app_id is not null) as app_ids,
    list(distinct c.credential_id order by c.credential_id) filter (where c.credential_id is not null) as credential_ids,
    list(distinct c.src_net order by c.src_net) filter (where c.src_net is not null) as source_networks,
    list(distinct c.client_fp order by c.client_fp) filter (where c.client_fp is not null) as client_fps,
    list(distinct c.protocol order by c.protocol) as protocols,
    bool_or(t.onboarded_at > f.first_day - interval 30 day) as is_new_tenant
from x04_hits as f
join context_days as c
    on coalesce(c.tenant_id, '') = f.tenant_key and coalesce(c.principal_id, c.app_id) = f.actor_id
    and c.date between f.first_day and f.last_day
    and (f.kind <> 'src_net' or c.src_net = f.value) and (f.kind <> 'client_fp' or c.client_fp = f.value)
left join tenants as t on t.tenant_id = f.tenant_key
where c.date between $first and $last and c.outcome = 'success'
group by all
"""

WINDOWS = f"""
with taken as (
    select coalesce(tenant_id, '') as tenant_key, coalesce(principal_id, app_id) as actor_id,
        ($last - date) // {MONTH} as n, sum(items)::double as items, min(first_ts) as first_ts, max(last_ts) as last_ts,
        count(distinct date) as n_days
    from context_days
    where date > $last - {MONTH} * 13 and date <= $last and outcome = 'success' and action in {DATA}
        and coalesce(principal_id, app_id) is not null
    group by all
)
select * from taken
semi join (select tenant_key, actor_id from taken where n = 0 and items >= $least) as c using (tenant_key, actor_id)
order by all
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Machines' identities that take a little every day from a new context, or far more in the last weeks than before.

    Args:
        con: connection with context_days, change_events, networks and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per identity and context (or month); no rows when there is nothing.
    """
    begin, last = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    since = begin - timedelta(days=params["novel_days"])
    days = {"first": begin - timedelta(days=params["baseline_days"]), "last": last, "from": begin, "since": since}
    hits = _from_new_contexts(con, days, params)
    told = {(hit["tenant_key"], hit["actor_id"]) for hit in hits}
    grown = _grown(con.sql(WINDOWS, params={"last": last, "least": params["min_items"]}).pl(), last, params)
    hits += [hit for hit in grown if (hit["tenant_key"], hit["actor_id"]) not in told]
    return _described(con, hits, days) if hits else pl.DataFrame()


def _from_new_contexts(
    con: "duckdb.DuckDBPyConnection", days: Mapping[str, date], params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    history, share = params["min_history_days"], params["wide_share"]
    found = [
        fresh(con, column, days, history=history, wide_share=share).with_columns(pl.lit(column).alias("kind"))
        for column in ("src_net", "client_fp")
    ]
    new = pl.concat(found)
    if new.is_empty():
        return []
    # A client that is new to many tenants is an upgrade; a new client on a new network is told by the network.
    new = new.filter((pl.col("kind") == "src_net") | ~pl.col("is_wide"), ~explained(new)).with_row_index("place")
    con.execute(TAKEN, {"first": days["first"], "last": days["last"]})
    con.register("x04_fresh", new.to_arrow())
    try:
        series = con.sql(SERIES).pl().partition_by("place", as_dict=True)
        habits = con.sql(HABIT, params={"history": history}).pl().partition_by("place", as_dict=True)
    finally:
        con.unregister("x04_fresh")
        con.execute("drop table if exists x04_days")
    hits, told = [], set[tuple[str, str]]()
    for context in new.iter_rows(named=True):
        place, who = (context["place"],), (context["tenant_key"], context["actor_id"])
        if place not in series or (context["kind"] == "client_fp" and who in told):
            continue
        verdict = _judged(series[place], habits.get(place), context["first_day"], days["last"], params)
        if verdict:
            told.add(who)
            hits.append(context | verdict)
    return hits


def _judged(
    taken: pl.DataFrame, habit: pl.DataFrame | None, first_day: date, last: date, params: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What a context took: enough, on enough days, and more than new contexts of the identity usually do."""
    items, n_bytes = float(taken["items"].sum()), float(taken["bytes"].sum())
    column = "items" if items >= params["regular_items"] else "bytes"
    n_days = taken.height
    variation = float(regularity(taken[column].to_numpy(), least=params["regular_days"]))
    is_quota = variation <= params["max_variation"] and items >= params["regular_items"]
    enough = items >= params["min_items"] or n_bytes >= params["min_bytes"]
    if not (is_quota or (enough and n_days >= params["min_days"])):
        return None
    values = _by_day(taken, column, first_day, (last - first_day).days + 1)
    before = np.zeros(60) if habit is None else _by_day(habit, column, first_day - timedelta(days=60), 60)
    sums = cusum(robust_z(values[None, :], before[None, :]), k=params["cusum_slack"])
    alarm = int(first_alarm(sums, params["cusum_limit"])[0])
    length = (max(taken["date"].to_list()) - first_day).days + 1
    more = values[:length].mean() >= params["habit_lift"] * before.mean()
    if alarm < 0 or not more:
        return None
    return {
        "n_days": n_days, "n_items": int(items), "n_bytes": int(n_bytes), "first_seen": taken["first_ts"].min(),
        "last_seen": taken["last_ts"].max(), "last_day": taken["date"].max(), "is_quota": is_quota,
        "alarm_day": first_day + timedelta(days=alarm), "lift": None, "usual": None,
    }  # fmt: skip


def _by_day(rows: pl.DataFrame, column: str, begin: date, n: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    values = np.zeros(n)
    values[[(day - begin).days for day in rows["date"]]] = rows[column].to_numpy()
    return values


def _grown(windows: pl.DataFrame, last: date, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Identities whose last 28 days stand out from at least `min_windows` windows before, by the negative binomial."""
    if windows.is_empty():
        return []
    key = ["tenant_key", "actor_id"]
    actors = windows.group_by(key).agg(pl.col("n").max().alias("oldest")).sort(key).with_row_index("place")
    # The oldest window of an identity may be cut.
    base = np.full((actors.height, 12), np.nan)
    for row in actors.iter_rows(named=True):
        base[row["place"], : max(0, row["oldest"] - 1)] = 0
    today = np.zeros(actors.height)
    placed = windows.join(actors, on=key).select("place", "n", "oldest", "items")
    for place, n, oldest, items in placed.iter_rows():
        if n == 0:
            today[place] = items
        elif n < oldest:
            base[place, n - 1] = items
    known = np.isfinite(base).sum(axis=1) >= params["min_windows"]
    screen = nb_screen(today, base, least_lift=params["window_lift"], least_excess=params["min_items"])
    highest = np.nanmax(np.where(np.isfinite(base), base, 0), axis=1)
    found = actors.filter(pl.Series(screen.is_alert & known & (today > 1.5 * highest)))
    now = windows.filter(pl.col("n") == 0).join(found, on=key).sort(key)
    begin = last - timedelta(days=MONTH - 1)
    return [
        {
            "tenant_key": row["tenant_key"], "actor_id": row["actor_id"], "kind": "month", "value": None,
            "first_day": begin, "last_day": last, "n_days": row["n_days"], "n_items": int(row["items"]), "n_bytes": 0,
            "first_seen": row["first_ts"], "last_seen": row["last_ts"], "lift": float(screen.lift[row["place"]]),
            "usual": float(np.nanmean(base[row["place"]])), "is_quota": False, "n_new": 1, "is_wide": False,
            "is_new_actor": False, "has_change": False, "is_from_home": None, "begins": None, "alarm_day": None,
        }
        for row in now.iter_rows(named=True)
    ]  # fmt: skip


def _described(con: "duckdb.DuckDBPyConnection", hits: list[dict[str, Any]], days: Mapping[str, date]) -> pl.DataFrame:
    table = pl.DataFrame(hits, infer_schema_length=None).drop("place", strict=False).with_row_index("place")
    con.register(
        "x04_hits", table.select("place", "tenant_key", "actor_id", "kind", "value", "first_day", "last_day").to_arrow()
    )
    try:
        about = con.sql(ABOUT, params={"first": days["first"], "last": days["last"]}).pl()
    finally:
        con.unregister("x04_hits")
    found = table.join(about, on="place", how="left", maintain_order="left")
    net, client = pl.col("kind") == "src_net", pl.col("kind") == "client_fp"
    weak = pl.Series([is_weak(hit) for hit in hits]) | found["is_new_tenant"].fill_null(value=False)
    return found.with_columns(
        pl.Series("taken", [_taken(hit) for hit in hits]),
        pl.Series("normal", [_normal(hit) for hit in hits]),
        pl.Series("remark", [_remark(hit) for hit in hits], pl.String),
        pl.when(pl.col("tenant_key") == "").then(None).otherwise("tenant_key").alias("tenant_id"),
        pl.when(weak).then(pl.lit("low")).when(net & ~pl.col("is_new_actor")).then(pl.lit("high"))
        .otherwise(pl.lit("medium")).alias("severity"),
        pl.when("is_quota").then(1.0).when(net).then(0.9).otherwise(0.7).alias("confidence"),
        pl.when(pl.col("n_new") >= 2).then(2.0).otherwise(1.0).alias("impact"),
        pl.when(net).then(pl.concat_list("value")).alias("strange_networks"),
        pl.when(client).then("value").alias("strange_client"),
        pl.col("value").fill_null("").alias("context"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.when(net).then(pl.lit(value=False)).alias("is_declared_net"),
    ).with_columns(pl.concat_list("tenant_id").alias("evidence_tenants")).select(
        "tenant_id", "actor_id", "kind", "context", "first_day", "first_seen", "last_seen", "taken", "n_days",
        "n_items", "n_bytes", "alarm_day", "normal", "remark", "severity", "confidence", "impact", "is_quota", "lift",
        "strange_networks", "strange_client", "source_networks", "client_fps", "principal_ids", "app_ids",
        "credential_ids", "protocols", "evidence_tenants", "is_declared_net", "is_new_actor", "has_change", "is_wide",
    ).sort("first_seen", "tenant_id", "actor_id", "context")  # fmt: skip


def _taken(hit: Mapping[str, Any]) -> str:
    parts = [count(hit["n_items"], "item")] if hit["n_items"] else []
    return " and ".join(parts + ([size(hit["n_bytes"])] if hit["n_bytes"] else []))


def _normal(hit: Mapping[str, Any]) -> str:
    if hit["kind"] == "month":
        return f"In windows of {MONTH} days before it took {hit['usual']:,.0f} items on average."
    if hit["is_new_actor"]:
        return "The identity is new."
    what = "from there" if hit["kind"] == "src_net" else "with it"
    return f"In {count((hit['first_day'] - hit['begins']).days, 'day')} before it was never used {what}."


def _remark(hit: Mapping[str, Any]) -> str | None:
    parts = ["Every day it took nearly the same, as a quota does."] if hit["is_quota"] else []
    return " ".join([*parts, remark(hit, "context") or ""]).strip() or None
