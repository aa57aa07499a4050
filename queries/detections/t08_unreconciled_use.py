"""Reconciles the customers' logs with the gateway's own job records.

---
id = "T08"
title = "Use of a gateway credential that no gateway job explains"
hypothesis = "Whatever the gateway does at a customer's, one of its jobs did: use of its credentials without a job is somebody else's."
family = "tenant_connection"
severity = "high"
tables = ["gateway_jobs", "context_days", "sessions", "service_uses", "credentials", "bindings", "networks"]
needs = ["gateway_jobs"]
identity = ["tenant_id", "service", "entity_id", "source_net"]
explanation = "{entity_id:Name} was used[ at tenant {tenant_id}] {n_unmatched:count time} from {source_networks:nets} without a job of the gateway ({service}): {first_seen:span}[, on {n_items:some item}]. {normal}[ {remark}]"
step = "{first_seen:Days}, {entity_id:name} was used {n_unmatched:count time} without a job of the gateway ({service})."
why = "{normal}"
false_positives = [
  "a segment of the gateway's job log that is missing and too small to show as a hole",
  "a manual support session of the vendor, which should have a ticket",
  "a customer's own test with the gateway's account, from its own network",
]
blind_spots = [
  "a thief who uses the credential in the same minutes as a job that did not run at the customer's, or in the gateway's own name",
  "hours without job records: they are left out, and the finding counts them",
  "services of a tenant of which more than max_rate of the use has no job: their jobs are not recorded completely",
  "reads over Exchange Online and EWS while a job runs",
]
runbook = [
  "`ts`, `session_id`: compare each use with the nearest jobs in gateway_jobs of the same tenant, in the 2 hours around it",
  "`src_ip`: ask the vendor which machine had the address on the day of `ts`, and who was logged in to it",
  "`item_count`, `bytes_out`: list what the unexplained sessions took within 24 hours, and compare with what the jobs take",
  "`client_fp`: compare the client of the unexplained sessions with that of the explained ones over the 30 days before",
]

attack = [
  { technique = "T1199", name = "Trusted Relationship", tactics = ["initial-access"] },
  { technique = "T1078.004", name = "Cloud Accounts", tactics = ["initial-access", "persistence", "privilege-escalation", "stealth"] },
]

parameters = [
  { name = "baseline_days", default = 14, help = "days before the window from which the usual share of use without a job is taken besides" },
  { name = "tolerance_s", default = 120, help = "seconds between a use and its job, besides the spread of the clocks" },
  { name = "largest_offset_s", default = 900, help = "largest difference of two clocks that is looked for, seconds" },
  { name = "min_jobs", default = 12, help = "jobs of a tenant's service in the window, for it to be reconciled" },
  { name = "max_rate", default = 0.2, help = "usual share of use without a job, above which a service is not reconciled" },
  { name = "alpha", default = 1e-6, help = "probability of that many unexplained uses by chance, below which they are told" },
  { name = "alpha_data", default = 3e-3, help = "the same, where items were taken" },
]

[[requires]]
sql = "select exists (select 1 from gateway_jobs)"
reason = "no job records of the gateway were ingested (gateway_jobs is empty)"

[[branches]]
name = "sessions"
needs = ["sessions"]

[[branches]]
name = "sign-ins and reads of web services"
needs = ["access_events"]

[[subjects]]
sql = "select exists (select 1 from gateway_jobs where date >= cast($window_from as date) and date <= cast($window_to as date) and service <> 'other' group by tenant_id, service having count(*) >= $min_jobs)"
reason = "no service of a tenant has $min_jobs jobs in the window"

[evidence]
table = "access_events"
where = "outcome = 'success'"
time = ["evidence_from", "evidence_until"]
follow_sessions = true
match = { tenant_id = "tenant_id", src_net = "source_networks", "coalesce(token_id, session_id, event_uid)" = "evidence_units", "coalesce(credential_id, principal_id, app_id)" = "evidence_entity" }
---

A session or sign-in belongs to at most one job of its tenant and service, the nearest in time once the gateway host's
clock is set right; reads between sign-ins must fall into the
time of a job, or, where its end is not recorded, into the 90 minutes that a token lives. The usual share of use without a job is the
median over days. The window is read a few days at a time, so that a year of sessions never lies in memory.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.detections._t08_queries import JOBS, USES
from queries.statistics import binomial_tail
from queries.text import count

if TYPE_CHECKING:
    import duckdb
    from numpy.typing import NDArray

GROUP = ("tenant_key", "service")
ENTITY = ("tenant_key", "service", "entity_id", "src_net")
SHAPE: dict[str, pl.DataType | type[pl.DataType]] = {
    "kind": pl.String, "tenant_key": pl.String, "service": pl.String, "entity_id": pl.String, "credential_id": pl.String,
    "principal_id": pl.String, "app_id": pl.String, "src_net": pl.String, "unit": pl.String, "units": pl.List(pl.String),
    "ts": pl.Datetime("us", "UTC"), "items": pl.Int64, "day": pl.Date, "is_explained": pl.Boolean,
    "is_left_out": pl.Boolean,
}  # fmt: skip
FEW_DAYS = 5  # days of job records, below which an hour is compared with all others and not with the same of other days
LARGE_HOUR = 3  # jobs of a host in an hour, from which on an hour without one is a hole
BIN_S = 30
CHUNK = 4  # days read at a time: long enough to see a clock's offset, short enough for memory
EVIDENCE_REACH = timedelta(hours=1)  # rows of an unexplained session lie around its beginning
MOST_UNITS = 500
HOST_SHARE = 0.05  # of a service's jobs, below which a host's silence leaves nothing unserved
LEAST_PAIRS = 8  # pairs of use and job that make an offset of two clocks believable


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Uses of service credentials without a job of the gateway.

    Args:
        con: connection with access_events, sessions, service_uses, gateway_jobs and the reference tables.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per tenant, service, credential and network; no rows when there is nothing.

    Raises:
        ValueError: no job lies in the window.
    """
    begin, end = params["window_from"], params["window_to"]
    early = begin - timedelta(days=params["baseline_days"])
    jobs = con.sql(JOBS, params={"from": early, "to": end}).pl()
    if jobs.filter(pl.col("job_ts").is_between(begin, end, closed="left")).is_empty():
        raise ValueError("gateway_jobs has no rows in the window")
    holes = _holes(jobs, early, end).join(_serving(jobs), on="host", how="semi")
    named = {f"{kind}s": jobs[f"{kind}_id"].drop_nulls().unique().to_list() for kind in ("credential", "principal")}
    judged, day = [], early.date()
    while datetime.combine(day, time(), UTC) < end:
        span = {
            "day": day,
            "last": day + timedelta(days=CHUNK - 1),
            "from": early,
            "to": end,
            "raw": begin.date(),
        } | named
        uses = con.sql(USES, params=span).pl()
        judged.append(_day(uses, jobs, holes, day, params))
        day += timedelta(days=CHUNK)
    uses = pl.concat(
        [frame for frame in judged if not frame.is_empty()] or [_day(pl.DataFrame(), jobs, holes, day, params)]
    )
    return _told(con, uses, holes, params)


def _holes(jobs: pl.DataFrame, begin: datetime, end: datetime) -> pl.DataFrame:
    """Hours [host, hour] from `begin` to `end` without job records of a host that usually has some.

    So are those up to its first record and from its last. A host with few jobs an hour is looked at by day.
    """
    hours = jobs.group_by("host", pl.col("job_ts").dt.truncate("1h").alias("hour")).len()
    spans = jobs.group_by("host").agg(
        pl.col("job_ts").min().dt.truncate("1h").alias("first"), pl.col("job_ts").max().dt.truncate("1h").alias("last")
    )
    every = spans.with_columns(
        pl.datetime_ranges(pl.lit(begin).dt.truncate("1h"), pl.lit(end).dt.truncate("1h"), "1h").alias("hour")
    ).explode("hour")
    every = every.join(hours, on=["host", "hour"], how="left").with_columns(pl.col("len").fill_null(0))
    of_day = [pl.col("host"), pl.col("hour").dt.date().alias("day")]
    days = every.group_by(of_day).agg(pl.col("len").sum().alias("n_day"))
    days = days.with_columns(pl.col("n_day").filter(pl.col("n_day") > 0).median().over("host").alias("usual_day"))
    every = every.with_columns(pl.col("hour").dt.date().alias("day")).join(days, on=["host", "day"])
    active = pl.col("n_day") > 0
    at_hour = pl.col("len").filter(active).quantile(0.5, "higher").over("host", pl.col("hour").dt.hour()).fill_null(0)
    at_all = pl.col("len").filter(active).median().over("host").fill_null(0)
    n_days = pl.col("day").filter(active).n_unique().over("host")
    usual = pl.when(n_days < FEW_DAYS).then(pl.max_horizontal(at_hour, at_all)).otherwise(at_hour)
    every = every.with_columns(usual.alias("usual"))
    none = (pl.col("usual") >= LARGE_HOUR) & (pl.col("len") < 0.25 * pl.col("usual"))
    no_day = (pl.col("n_day") == 0) & (pl.col("usual_day") >= LARGE_HOUR)
    hour, edge = pl.col("hour"), timedelta(hours=1)
    before = (hour < pl.col("first")) | ((hour == pl.col("first")) & (hour > begin + edge))
    after = (hour > pl.col("last")) | ((hour == pl.col("last")) & (hour + 2 * edge < end))
    return every.filter(none | no_day | before | after).select("host", "hour").sort("host", "hour")


def _serving(jobs: pl.DataFrame) -> pl.DataFrame:
    """Hosts [*GROUP, host] that leave a hole: not one with hardly a job, such as one whose name is garbled in a record."""
    shares = jobs.group_by(*GROUP, "host").len()
    return shares.filter(pl.col("len") >= HOST_SHARE * pl.col("len").sum().over(GROUP)).select(*GROUP, "host")


def _unserved(jobs: pl.DataFrame, holes: pl.DataFrame) -> pl.DataFrame:
    """Hours [*GROUP, hour] in which a host of the service has a hole, and the others did not make up for it."""
    counts = jobs.group_by(*GROUP, pl.col("job_ts").dt.truncate("1h").alias("hour")).len()
    full = counts.filter(pl.col("len") >= 0.75 * pl.col("len").median().over(GROUP))
    served = _serving(jobs).join(holes, on="host").select(*GROUP, "hour").unique()
    return served.join(full, on=[*GROUP, "hour"], how="anti")


def _day(
    uses: pl.DataFrame, jobs: pl.DataFrame, holes: pl.DataFrame, day: date, params: Mapping[str, Any]
) -> pl.DataFrame:
    """The uses of the days from `day` on of services that have jobs, with `is_explained` and `is_left_out` (an hour without records)."""
    known = jobs.group_by(GROUP).len().filter(pl.col("len") >= params["min_jobs"])
    if uses.is_empty() or known.is_empty():
        return pl.DataFrame(schema=SHAPE)
    uses = uses.join(known.select(GROUP), on=GROUP, how="semi").sort(*GROUP, "ts", "unit").with_row_index("use")
    if uses.is_empty():
        return pl.DataFrame(schema=SHAPE)
    midnight = datetime.combine(day, time(), UTC)
    near = jobs.filter(
        pl.col("job_end") >= midnight - timedelta(hours=2), pl.col("job_ts") < midnight + timedelta(days=CHUNK, hours=2)
    )
    near = near.sort(*GROUP, "job_ts").with_row_index("job")
    explained = np.zeros(uses.height, bool)
    explained[_matched(uses.filter(pl.col("kind") == "session"), near, params)] = True
    explained[_during(uses.filter(pl.col("kind") == "data"), near, params)] = True
    served = _unserved(jobs, holes)
    dark = np.zeros(uses.height, bool)
    for shift in (-params["tolerance_s"], 0, params["tolerance_s"]):
        hour = (pl.col("ts") + pl.duration(seconds=shift)).dt.truncate("1h").alias("hour")
        dark[uses.with_columns(hour).join(served, on=[*GROUP, "hour"], how="semi")["use"].to_numpy()] = True
    entity = pl.coalesce("credential_id", "principal_id", "app_id", pl.lit("unknown")).alias("entity_id")
    flags = [pl.Series("is_explained", explained), pl.Series("is_left_out", dark)]
    return uses.with_columns(entity, pl.col("ts").dt.date().alias("day"), *flags).select(
        pl.col(name).cast(kind) for name, kind in SHAPE.items()
    )


def _pairs(uses: pl.DataFrame, jobs: pl.DataFrame, reach_s: float) -> pl.DataFrame:
    """Uses and jobs of one tenant and service that may belong together, within `reach_s`: [use, job, host, delta_s, strange]."""
    bucket = int(max(60, reach_s))
    at = (pl.col("ts").dt.epoch("s") // bucket).alias("bucket")
    near = jobs.with_columns((pl.col("job_ts").dt.epoch("s") // bucket).alias("at"))
    near = near.with_columns(pl.concat_list(pl.col("at") - 1, "at", pl.col("at") + 1).alias("bucket")).explode("bucket")
    met = uses.with_columns(at).join(near, on=[*GROUP, "bucket"], suffix="_job")
    delta = (pl.col("ts") - pl.col("job_ts")).dt.total_milliseconds() / 1000
    other = [
        pl.col(name).ne(pl.col(f"{name}_job")).fill_null(value=False) for name in ("credential_id", "principal_id")
    ]
    met = met.with_columns(delta.alias("delta_s")).filter(pl.col("delta_s").abs() <= reach_s)
    named = pl.col("credential_id").is_not_null() & pl.col("credential_id_job").is_not_null()
    met = met.filter(~pl.when(named).then(other[0]).otherwise(other[1]))
    strange = pl.col("src_net").ne(pl.col("src_net_job")).fill_null(value=False).alias("strange")
    return met.select("use", "job", *GROUP, "host", "delta_s", strange)


def _offsets(pairs: pl.DataFrame, by: tuple[str, ...]) -> pl.DataFrame:
    """Usual difference of use and job [*by, offset_s, spread_s]: where the most pairs lie, the smallest of equals."""
    bins = pairs.with_columns((pl.col("delta_s") / BIN_S).round().cast(pl.Int64).alias("bin"))
    counts = bins.group_by(*by, "bin").agg(pl.col("use").n_unique().alias("n"))
    wide = counts.with_columns(pl.concat_list(pl.col("bin") - 1, "bin", pl.col("bin") + 1).alias("bin")).explode("bin")
    peaks = wide.group_by(*by, "bin").agg(pl.col("n").sum()).with_columns(pl.col("bin").abs().alias("far"))
    best = peaks.sort(*by, "n", "far", "bin", descending=[*[False] * len(by), True, False, False]).group_by(*by).first()
    best = best.filter(pl.col("n") >= LEAST_PAIRS).select(*by, (pl.col("bin") * BIN_S).alias("peak_s"))
    close = pairs.join(best, on=by).filter((pl.col("delta_s") - pl.col("peak_s")).abs() <= 1.5 * BIN_S)
    median = pl.col("delta_s").median()
    return close.group_by(*by).agg(
        median.alias("offset_s"), (pl.col("delta_s") - median).abs().median().alias("spread_s")
    )


def _matched(uses: pl.DataFrame, jobs: pl.DataFrame, params: Mapping[str, Any]) -> "NDArray[np.int64]":
    """Numbers of the sessions that have a job of their own: nearest first, one to one, a job's own network before others."""
    if uses.is_empty() or jobs.is_empty():
        return np.array([], np.int64)
    pairs = _pairs(uses, jobs, params["largest_offset_s"])
    own = _offsets(pairs, (*GROUP, "host"))
    host = _offsets(pairs, ("host",)).rename({"offset_s": "host_offset_s", "spread_s": "host_spread_s"})
    pairs = pairs.join(own, on=[*GROUP, "host"], how="left").join(host, on="host", how="left")
    offset = pl.coalesce("offset_s", "host_offset_s", pl.lit(0.0))
    limit = params["tolerance_s"] + 3 * pl.coalesce("spread_s", "host_spread_s", pl.lit(0.0))
    pairs = pairs.with_columns((pl.col("delta_s") - offset).abs().alias("far_s")).filter(pl.col("far_s") <= limit)
    pairs = pairs.sort("strange", "far_s", "use", "job")
    taken_uses, taken_jobs, found = set[int](), set[int](), []
    for use, job in zip(pairs["use"].to_list(), pairs["job"].to_list(), strict=True):
        if use not in taken_uses and job not in taken_jobs:
            taken_uses.add(use)
            taken_jobs.add(job)
            found.append(use)
    return np.array(found, np.int64)


def _during(uses: pl.DataFrame, jobs: pl.DataFrame, params: Mapping[str, Any]) -> "NDArray[np.int64]":
    """Numbers of the hours whose first read lies in the time of a job of the tenant and service."""
    if uses.is_empty() or jobs.is_empty():
        return np.array([], np.int64)
    slack = timedelta(seconds=params["tolerance_s"])
    spans = jobs.sort("job_ts").with_columns(
        (pl.col("job_ts") - slack).alias("from_ts"), pl.col("job_end").cum_max().over(GROUP).alias("until")
    )
    met = uses.sort("ts").join_asof(
        spans.sort("from_ts").select(*GROUP, "from_ts", "until"), left_on="ts", right_on="from_ts", by=list(GROUP),
        check_sortedness=False,
    )  # fmt: skip
    return met.filter(pl.col("ts") <= pl.col("until") + slack)["use"].to_numpy().astype(np.int64)


def _told(
    con: "duckdb.DuckDBPyConnection", uses: pl.DataFrame, holes: pl.DataFrame, params: Mapping[str, Any]
) -> pl.DataFrame:
    """Findings from the judged uses."""
    now = uses.filter(pl.col("ts") >= params["window_from"])
    left_out = now.filter("is_left_out").group_by("tenant_key").len("n_left_out")
    nets = _improbable(uses.filter(~pl.col("is_left_out")), params)
    open_uses = now.filter(~pl.col("is_left_out"), ~pl.col("is_explained"))
    facts = open_uses.group_by("kind", *ENTITY).agg(
        pl.col("ts").min().alias("first_seen"), pl.col("ts").max().alias("last_seen"),
        pl.col("items").sum().alias("n_items"),
        pl.col("units").explode().drop_nulls().unique().sort().head(MOST_UNITS).alias("evidence_units"),
        *(pl.col(f"{name}_id").drop_nulls().unique().sort().alias(f"{name}_ids") for name in ("credential", "principal", "app")),
    )  # fmt: skip
    found = nets.join(facts, on=["kind", *ENTITY], nulls_equal=True)
    has_data = (pl.col("n_items") > 0) & (pl.col("p") < params["alpha_data"])
    found = found.filter((pl.col("p") < params["alpha"]) | has_data)
    # Reading after an unexplained sign-in is the sign-in's: the sessions tell it.
    found = found.sort("kind", descending=True).unique(subset=ENTITY, keep="first", maintain_order=True)
    dark = holes.filter(pl.col("hour") >= params["window_from"])["hour"].n_unique()
    return _worded(con, found.join(left_out, on="tenant_key", how="left"), dark) if found.height else pl.DataFrame()


def _improbable(seen: pl.DataFrame, params: Mapping[str, Any]) -> pl.DataFrame:
    """Networks [kind, *ENTITY, n_unmatched, n_all, n_all_unmatched, usual_rate, p] with uses in the window without a job.

    The usual share of uses without a job is the lower median over the days of the window and of the baseline.
    """
    missing = (~pl.col("is_explained")).sum()
    daily = seen.group_by("kind", *GROUP, "day").agg((missing / pl.len()).alias("rate"), pl.len().alias("n"))
    rates = daily.group_by("kind", *GROUP).agg(pl.col("rate").quantile(0.5, "lower"), pl.col("n").sum())
    rates = rates.filter(pl.col("rate") <= params["max_rate"])
    now = seen.filter(pl.col("ts") >= params["window_from"])
    totals = now.group_by("kind", *GROUP).agg(pl.len().alias("n_all"), missing.alias("n_all_unmatched"))
    nets = now.group_by("kind", *ENTITY).agg(pl.len().alias("n_uses"), missing.alias("n_unmatched"))
    nets = nets.join(rates, on=["kind", *GROUP]).join(totals, on=["kind", *GROUP]).filter(pl.col("n_unmatched") > 0)
    nets = nets.with_columns(((pl.col("rate") * pl.col("n") + 0.5) / (pl.col("n") + 1)).alias("usual_rate"))
    return nets.with_columns(pl.Series("p", binomial_tail(nets["n_unmatched"], nets["n_uses"], nets["usual_rate"])))


def _worded(con: "duckdb.DuckDBPyConnection", found: pl.DataFrame, n_dark: int) -> pl.DataFrame:
    """The columns that the front matter names."""
    rows = []
    for row in found.iter_rows(named=True):
        nets = [row["src_net"]] if row["src_net"] else []
        declared = is_declared(con, nets)
        n_matched = row["n_all"] - row["n_all_unmatched"]
        normal = (
            f"Of {count(row['n_all'], 'use')} of the service in the window, jobs explain {n_matched:,}; "
            f"usually {100 * row['usual_rate']:.2g} % lack one."
        )
        dark = row["n_left_out"] or 0
        remark = (
            f"Left out: {count(dark, 'use')} of the tenant in hours without job records "
            f"({count(n_dark, 'such hour')} in the window)."
            if dark
            else None
        )
        rows.append({
            **{name: row[name] for name in ("entity_id", "service", "kind", "first_seen", "last_seen", "n_unmatched", "n_items", "p")},
            **{name: row[name] for name in ("credential_ids", "principal_ids", "app_ids", "usual_rate")},
            "evidence_from": row["first_seen"] - EVIDENCE_REACH, "evidence_until": row["last_seen"] + EVIDENCE_REACH,
            "entity_kind": "credential" if row["entity_id"] in row["credential_ids"] else "principal",
            "tenant_id": row["tenant_key"] or None, "source_net": row["src_net"] or "", "source_networks": nets or None,
            "evidence_units": row["evidence_units"] or None,
            "evidence_entity": None if row["evidence_units"] else row["entity_id"], "is_declared_net": declared,
            "is_declared": bool(declared), "normal": normal, "remark": remark, "n_left_out": dark,
            "severity": "critical" if declared is False else "high", "confidence": 1.0 if not dark else 0.8,
            "impact": 1.0,
        })  # fmt: skip
    return pl.DataFrame(rows, infer_schema_length=None).sort("first_seen", "tenant_id", "service", "entity_id")
