"""Periodic pull: a timer that runs from a place that is new.

---
id = "X07"
title = "A machine's identity used on a timer from a new network"
hypothesis = "A thief who wants all that comes lets a script fetch it, every few hours, from a machine of his own."
family = "exfiltration"
severity = "medium"
tables = ["gaps", "context_days", "change_events", "first_seen", "networks", "tenants"]
needs = ["gaps", "context_days"]
identity = ["tenant_id", "actor_id", "protocol", "source_network", "first_day"]
explanation = "{actor_id:Name} was used[ at tenant {tenant_id}] from {source_networks:nets} {rhythm}, {first_seen:span}: {n_uses:count use} on {n_days:count day}[, {n_items:some item}][, {n_bytes:size}]. {normal}[ {remark}]"
step = "{first_seen:Days}, {actor_id:name} was used from {source_networks:nets} {rhythm}."
why = "{normal}"
false_positives = [
  "a new monitoring probe or integration that nobody declared",
  "the vendor moves the integration to another network: many tenants show it",
]
blind_spots = [
  "a new application that was prepared from an administrator's own network: see L05 and T05",
  "a network that the tenant, or many tenants, used before, as that of a VPN provider",
  "every legitimate poller keeps time: only networks that are new to identity and tenant are judged",
  "a timer that runs from the network of the real poller: see X01 and T09",
  "fewer than min_gaps calls, or a thief who changes networks between them: see X08",
  "calls that follow each other within burst_s seconds count as one",
]
runbook = [
  "`ts`, `src_net`: list the calls of the identity from the network over 3 days in order of time, and compare the minutes past the hour",
  "`action`, `item_count`: see what was fetched at each call of the day that had most, and whether it is what was new since the call before",
  "`src_net`, `src_asn`: look up who owns the network, and who else used it in the last 90 days",
  "`principal_id`, `ts`: ask the vendor for the jobs of the identity on the days of the finding, and look in gateway_jobs",
]

attack = [
  { technique = "T1029", name = "Scheduled Transfer", tactics = ["exfiltration"] },
  { technique = "T1071", name = "Application Layer Protocol", tactics = ["command-and-control"] },
]

parameters = [
  { name = "baseline_days", default = 90, help = "days before the window in which a network that the identity or its tenant used is known" },
  { name = "novel_days", default = 30, help = "days before the window since which a network still counts as new" },
  { name = "min_history_days", default = 14, help = "days for which the tenant's log of the protocol must go back" },
  { name = "burst_s", default = 60, help = "seconds up to which calls belong to one fetch" },
  { name = "min_gaps", default = 24, help = "gaps between fetches from which a rhythm is judged; fewer look periodic by chance" },
  { name = "min_score", default = 0.8, help = "score from which few gaps look like a timer" },
  { name = "many_gaps", default = 96, help = "gaps from which many_score is enough" },
  { name = "many_score", default = 0.75, help = "score from which many gaps look like a timer" },
  { name = "wide_share", default = 0.3, help = "share of all tenants from which it looks like a change of infrastructure" },
]

[evidence]
table = "access_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
follow_sessions = true
match = { tenant_id = "evidence_tenants", "coalesce(principal_id, app_id)" = "actor_id", protocol = "protocol", src_net = "source_network" }
---

The score is that of RITA (see `queries.statistics.periodicity`), taken from the histograms of the table gaps.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.newcomers import explained, fresh, is_weak, remark
from queries.statistics import periodicity
from queries.text import count
from transforms.derived.gaps import CENTRES_S, merged

if TYPE_CHECKING:
    import duckdb

STATES = """
select g.* from gaps as g
join x07_fresh as f
    on coalesce(g.tenant_id, '') = f.tenant_key and coalesce(g.principal_id, g.app_id) = f.actor_id and g.src_net = f.value
where g.date between $since and $last
order by all
"""

DETAILS = """
select f.tenant_key, f.actor_id, f.value, c.protocol, count(distinct c.date)::bigint as n_days,
    sum(c.items)::bigint as n_items, sum(c.bytes_out)::bigint as n_bytes,
    list(distinct c.app_id order by c.app_id) filter (where c.app_id is not null) as app_ids,
    list(distinct c.credential_id order by c.credential_id) filter (where c.credential_id is not null) as credential_ids,
    bool_or(t.onboarded_at > f.first_day - interval 30 day) as is_new_tenant
from x07_fresh as f
join context_days as c
    on coalesce(c.tenant_id, '') = f.tenant_key and coalesce(c.principal_id, c.app_id) = f.actor_id and c.src_net = f.value
left join tenants as t on t.tenant_id = f.tenant_key
where c.date between $since and $last and c.outcome = 'success'
group by all
order by all
"""


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Identities of machines that keep time from a network that is new.

    Args:
        con: connection with gaps, context_days, change_events, networks and tenants.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per identity, protocol and network; no rows when there is nothing.
    """
    begin, last = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    since = begin - timedelta(days=params["novel_days"])
    days = {"first": begin - timedelta(days=params["baseline_days"]), "last": last, "from": begin, "since": since}
    history, share = params["min_history_days"], params["wide_share"]
    new = fresh(con, "src_net", days, history=history, wide_share=share)
    new = new.filter(~explained(new))
    if new.is_empty():
        return pl.DataFrame()
    con.register("x07_fresh", new.to_arrow())
    try:
        span = {"since": since, "last": last}
        series = _series(con.sql(STATES, params=span).pl())
        details = con.sql(DETAILS, params=span).pl()
    finally:
        con.unregister("x07_fresh")
    timers = _timers(series, params)
    key = ["tenant_key", "actor_id", "value"]
    return _described(timers.join(new, on=key).join(details, on=[*key, "protocol"]))


def _series(states: pl.DataFrame) -> pl.DataFrame:
    """One histogram for each identity, protocol and network, over all days."""
    one = merged(states.lazy()).collect()
    return one.with_columns(
        pl.col("tenant_id").fill_null("").alias("tenant_key"),
        pl.coalesce("principal_id", "app_id").alias("actor_id"),
        pl.col("src_net").alias("value"),
    )


def _timers(series: pl.DataFrame, params: Mapping[str, Any]) -> pl.DataFrame:
    """The series that look like a timer, with `score`, `period_s` and `n_gaps`."""
    if series.is_empty():
        return series.with_columns(score=pl.lit(0.0), period_s=pl.lit(0.0), n_gaps=pl.lit(0), n_uses=pl.lit(0))
    centres = np.array(CENTRES_S)
    long = centres > params["burst_s"]
    gaps = np.array(series["hist"].to_list(), float)[:, long]
    score = periodicity(np.broadcast_to(centres[long], gaps.shape), gaps, least=params["min_gaps"])
    n_gaps = gaps.sum(axis=1)
    middle = (gaps.cumsum(axis=1) < n_gaps[:, None] / 2).sum(axis=1)
    needed = np.where(n_gaps >= params["many_gaps"], params["many_score"], params["min_score"])
    period = centres[long][np.minimum(middle, long.sum() - 1)]
    told = series.with_columns(score=pl.Series(score), period_s=pl.Series(period), n_gaps=pl.Series(n_gaps.astype(int)))
    return told.with_columns(n_uses=pl.col("n_gaps") + 1).filter(pl.Series(np.nan_to_num(score) >= needed))


def _described(found: pl.DataFrame) -> pl.DataFrame:
    if found.is_empty():
        return pl.DataFrame()
    # One fetch may sign in and then read: the data tell more than the sign-in.
    found = found.sort("n_items", "n_uses", descending=True)
    rhythm = [f"about every {_duration(period)}" for period in found["period_s"]]
    normal = [
        "The identity is new."
        if row["is_new_actor"]
        else f"In {count((row['first_day'] - row['begins']).days, 'day')} before it was never used from there."
        for row in found.iter_rows(named=True)
    ]
    weak = pl.Series([is_weak(row) for row in found.iter_rows(named=True)]) | found["is_new_tenant"].fill_null(
        value=False
    )
    remarks = [remark(row, "network") for row in found.iter_rows(named=True)]
    return found.with_columns(
        pl.Series("rhythm", rhythm),
        pl.Series("normal", normal),
        pl.Series("remark", remarks, pl.String),
        pl.when(weak).then(pl.lit("low")).otherwise(pl.lit("medium")).alias("severity"),
        pl.col("score").alias("confidence"),
        pl.when(pl.col("n_new") >= 2).then(2.0).otherwise(1.0).alias("impact"),
        pl.col("first_ts").alias("first_seen"),
        pl.col("last_ts").alias("last_seen"),
        pl.col("value").alias("source_network"),
        pl.concat_list("value").alias("source_networks"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.concat_list("protocol").alias("protocols"),
        pl.concat_list("tenant_id").alias("evidence_tenants"),
        pl.lit(value=False).alias("is_declared_net"),
    ).select(
        "tenant_id", "actor_id", "protocol", "source_network", "first_day", "first_seen", "last_seen", "rhythm",
        "normal", "remark", "severity", "confidence", "impact", "score", "period_s", "n_gaps", "n_uses", "n_days",
        "n_items", "n_bytes", "source_networks", "principal_ids", "app_ids", "credential_ids", "protocols",
        "evidence_tenants", "is_declared_net", "is_new_actor", "has_change", "is_wide",
    ).sort("first_seen", "tenant_id", "actor_id", "protocol", "source_network")  # fmt: skip


def _duration(seconds: float) -> str:
    """A length of time as people say it: a bin of the histogram is a quarter wide, so no more than its size."""
    for unit, length in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0)):
        if seconds >= 0.9 * length:
            n = max(1, round(seconds / length))
            return unit if n == 1 else count(n, unit)
    return count(round(seconds), "second")
