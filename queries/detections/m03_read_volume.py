"""Read volume: more of a mailbox read than ever, up to where its audit stops.

---
id = "M03"
title = "Mailbox read until its audit stopped, or far more than ever"
hypothesis = "Whoever takes a mailbox reads it in bulk; after a thousand records a day the audit log falls silent for a day."
family = "mailbox_access"
severity = "medium"
tables = ["edge_days", "throttled_days", "context_days", "first_seen", "mailboxes", "tenants", "networks"]
needs = []
identity = ["tenant_id", "actor_id", "kind", "first_day"]
explanation = "{actor_id:Name} read {n_mailboxes:count mailbox/mailboxes}[ in tenant {tenant_id}] {what}, {first_seen:span}[ from {source_networks:nets}]: {n_ops:ops}[ on {n_items:some item}]. {normal}[ The audit of the mailbox may be blind from {blind_from} to {blind_to}.]"
step = "{first_seen:Days}, {actor_id:name} read {n_mailboxes:count mailbox/mailboxes} {what}."
why = "{normal}"
false_positives = [
  "a search index, an archive or a migration that reads a mailbox for the first time",
  "a mail client that builds its store anew",
  "a legal search",
]
blind_spots = [
  "synchronised folders: they never throttle, see M04",
  "an actor without a history of its own: see M01, M02 and M05",
  "less than min_excess operations a day above what is usual",
  "what was read while the audit was blind",
]
runbook = [
  "`throttled`, `ts`: assume that everything in the mailbox was read in the 24 hours after the first throttled row",
  "`op_count`, `folders`: list the rows of the actor and mailbox of the day by folder",
  "`src_net`, `client_fp`: compare source and client with those of the 28 days before",
  "`mailbox_id`: list who else opened it in the 7 days around",
]

attack = [{ technique = "T1114.002", name = "Remote Email Collection", tactics = ["collection"] }]

parameters = [
  { name = "baseline_days", default = 90, help = "days before a day that count as history, at most" },
  { name = "rate_days", default = 28, help = "days before a day from which mean and variance are taken" },
  { name = "settle_days", default = 7, help = "days before a throttled row that belong to the same event, not to the history" },
  { name = "min_history_days", default = 7, help = "days with operations from which an actor, or an actor and a mailbox, have a history" },
  { name = "many_in_a_record", default = 100, help = "operations in one record that are reported from a new source" },
  { name = "min_active_days", default = 21, help = "days of an actor before a source counts as new to it" },
  { name = "lift", default = 3.0, help = "how many times the highest day so far a day must reach" },
  { name = "min_excess", default = 50, help = "operations above the mean that a day must have" },
  { name = "false_discovery_rate", default = 0.05, help = "level of Benjamini and Hochberg's procedure over the pairs of a day" },
  { name = "near_limit", default = 800, help = "bind records of a mailbox in a day that come near the limit of 1,000" },
]

[[branches]]
name = "audit that stops"
needs = ["access_events"]

[[branches]]
name = "bulk reading in one record"
needs = ["edge_days"]

[[branches]]
name = "volume"
needs = ["edge_days"]

[[subjects]]
part = "audit that stops"
sql = "select exists (select 1 from access_events where date >= cast($window_from as date) and date <= cast($window_to as date) and (throttled is not null or access_kind is not null))"
reason = "no log of the window tells throttled audit (MailItemsAccessed does)"

[[subjects]]
part = "bulk reading in one record"
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) group by tenant_id, actor_id having count(distinct date) > $min_active_days)"
reason = "no actor has more than $min_active_days days with mailboxes of others"

[[subjects]]
part = "volume"
sql = "select exists (select 1 from edge_days where date >= cast($window_from as date) - cast($baseline_days as integer) and date <= cast($window_to as date) and coalesce(logon_type, '') <> 'owner' group by tenant_id, actor_id having count(distinct date) > $min_history_days)"
reason = "no actor has more than $min_history_days days with mailboxes of others"

[evidence]
table = "access_events"
where = "outcome <> 'failure'"
time = ["first_seen", "last_seen"]
match = { tenant_id = "tenant_ids", "coalesce(principal_id, app_id)" = "actor_id", mailbox_id = "mailboxes", src_net = "evidence_networks" }
---

Beside edge_days and throttled_days this reads raw access_events of the window: rows that fold many operations, the bind
records of single days and mailboxes that edge_days points to, and the rows behind a throttled mailbox.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from queries.cases import is_declared
from queries.detections._m03_queries import DETAILS, FOLDED, NEAR, PAIR_DAYS, RECORDS, THROTTLED, VOLUMES
from queries.statistics import benjamini_hochberg, nb_tail, pooled_dispersion
from queries.text import count

if TYPE_CHECKING:
    import duckdb

LONGEST = 200  # candidates whose raw rows are counted

WHAT = {
    "throttled": "until the audit was throttled",
    "own_throttled": "as its owner, from a new network, until the audit was throttled",
    "many_in_a_record": "in bulk, from a network that it never used",
    "volume": "far more than ever",
    "near_limit": "to just below the limit of the audit",
}
RANK = list(WHAT)


def detect(con: "duckdb.DuckDBPyConnection", params: Mapping[str, Any]) -> pl.DataFrame:
    """Days on which an actor read unusually much of mailboxes, or exhausted their audit.

    Args:
        con: connection with edge_days, throttled_days, first_seen, mailboxes, tenants and access_events.
        params: window_from, window_to and the parameters above.

    Returns:
        one row per actor, kind and run of days; no rows when there is nothing.
    """
    begin, end = params["window_from"].date(), (params["window_to"] - timedelta(microseconds=1)).date()
    first = begin - timedelta(days=params["baseline_days"])
    span = {"first": first, "last": end}
    con.execute(PAIR_DAYS, span)
    try:
        found = [
            *_throttled(con, span | {"from": begin, "settle": params["settle_days"]}),
            *_folded(con, span | {"from": begin}, params),
            *_volumes(con, begin, params),
            *_near(con, {"from": begin, "last": end}, params),
        ]
    finally:
        con.execute("drop table if exists m03_days")
    hits = _runs(found)
    return _described(con, hits, {"from": begin, "last": end}) if hits else pl.DataFrame()


def _hit(row: Mapping[str, Any], kind: str, normal: str, confidence: float) -> dict[str, Any]:
    place = {name: row[name] for name in ("tenant_key", "actor_id", "mailbox_id", "date")}
    return place | {"kind": kind, "normal": normal, "confidence": confidence, "blind_ts": row.get("first_ts")}


def _throttled(con: "duckdb.DuckDBPyConnection", span: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = con.sql(THROTTLED, params=dict(span)).pl().iter_rows(named=True)
    normal = "It did not exhaust the audit of a mailbox before."
    return [
        _hit(row, "own_throttled" if row["is_own"] else "throttled", normal, 0.6 if row["is_own"] else 1.0)
        for row in rows
    ]


def _folded(
    con: "duckdb.DuckDBPyConnection", span: Mapping[str, Any], params: Mapping[str, Any]
) -> list[dict[str, Any]]:
    more = {
        "many": params["many_in_a_record"],
        "baseline": params["baseline_days"],
        "active": params["min_active_days"],
    }
    rows = con.sql(FOLDED, params=dict(span) | more).pl().iter_rows(named=True)
    return [_hit(row, "many_in_a_record", f"One record tells of {row['most']:,} operations.", 0.8) for row in rows]


def _volumes(con: "duckdb.DuckDBPyConnection", begin: date, params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Days of a pair far above its history (or, for a young pair, the actor's) by the negative binomial."""
    names = {"excess": "min_excess", "rate": "rate_days", "baseline": "baseline_days", "history": "min_history_days"}
    days = con.sql(VOLUMES, params={"from": begin} | {name: params[key] for name, key in names.items()}).pl()
    if days.is_empty():
        return []
    n, length = days["n"].to_numpy(), np.maximum(days["n_days"].to_numpy(), 1)
    mean = days["total"].to_numpy() / length
    variance = np.maximum(days["squares"].to_numpy() / length - mean**2, 0)
    p = nb_tail(n, mean, variance, length, pooled_dispersion(mean, variance))
    q = np.ones(days.height)
    for day in days["date"].unique():
        place = (days["date"] == day).to_numpy()
        q[place] = benjamini_hochberg(p[place], int(days["n_tests"].to_numpy()[place][0]))
    highest = np.where(days["has_history"], days["highest"], days["actor_highest"])
    usual = np.where(days["has_history"], mean, days["actor_highest"])
    high = (n >= params["lift"] * highest) & (n - usual >= params["min_excess"])
    high &= (q <= params["false_discovery_rate"]) | ~days["has_history"].to_numpy()
    return [
        _hit(
            row,
            "volume",
            f"Before, it was at most {most:,.0f} a day{' of any mailbox' if not row['has_history'] else ''}.",
            0.7,
        )
        for row, most, is_high in zip(days.iter_rows(named=True), highest, high, strict=True)
        if is_high
    ]


def _near(con: "duckdb.DuckDBPyConnection", span: Mapping[str, Any], params: Mapping[str, Any]) -> list[dict[str, Any]]:
    near = {"near": params["near_limit"]}
    rows = con.sql(NEAR, params={"from": span["from"], "settle": params["settle_days"]} | near).pl().head(LONGEST)
    if rows.is_empty():
        return []
    con.register("m03_near", rows.to_arrow())
    try:
        records = con.sql(RECORDS, params=dict(span) | near).pl()
    finally:
        con.unregister("m03_near")
    return [
        _hit(
            row,
            "near_limit",
            f"The audit stops after 1,000 records a day; these were {count(row['n'], 'record')}.",
            0.7,
        )
        for row in records.iter_rows(named=True)
    ]


def _runs(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Numbers the hits by actor, kind and run of days; a pair's day counts once, with the strongest kind."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for hit in found:
        key = (hit["tenant_key"], hit["actor_id"], hit["mailbox_id"], hit["date"])
        if key not in best or RANK.index(hit["kind"]) < RANK.index(best[key]["kind"]):
            best[key] = hit
    order = sorted(best.values(), key=lambda hit: (hit["tenant_key"], hit["actor_id"], hit["kind"], hit["date"]))
    run, last = -1, None
    for hit in order:
        who = (hit["tenant_key"], hit["actor_id"], hit["kind"])
        if last is None or who != last[0] or (hit["date"] - last[1]).days > 3:
            run += 1
        last = (who, hit["date"])
        hit["run"] = run
    return order


def _described(con: "duckdb.DuckDBPyConnection", hits: list[dict[str, Any]], span: Mapping[str, date]) -> pl.DataFrame:
    table = pl.DataFrame(hits, schema_overrides={"blind_ts": pl.Datetime("us", "UTC")})
    con.register("m03_hits", table.to_arrow())
    try:
        details = con.sql(DETAILS, params=dict(span)).pl()
    finally:
        con.unregister("m03_hits")
    runs = table.group_by("run", maintain_order=True).agg(
        pl.col("tenant_key", "actor_id", "kind", "normal", "confidence").first(),
        pl.col("date").min().alias("first_day"),
        pl.col("blind_ts").min().alias("blind_from"),
        (pl.col("blind_ts").max() + timedelta(hours=24)).alias("blind_to"),
    )
    found = runs.join(details, on="run")
    service, vip = (pl.col(name).fill_null(value=False) for name in ("is_service", "has_vip"))
    throttled = pl.col("kind") == "throttled"
    found = found.with_columns(
        pl.when(pl.col("is_new_tenant").fill_null(value=False)).then(pl.lit("low"))
        .when(throttled & service).then(pl.lit("high"))
        .otherwise(pl.lit("medium")).alias("severity"),
        pl.when(pl.col("has_journal").fill_null(value=False)).then(2.0)
        .when((pl.col("n_mailboxes") >= 5) | vip).then(1.5)
        .otherwise(1.0).alias("impact"),
        pl.col("kind").replace_strict(WHAT).alias("what"),
        pl.when(pl.col("tenant_key") == "").then(None).otherwise("tenant_key").alias("tenant_id"),
        pl.concat_list("actor_id").alias("principal_ids"),
        pl.col("source_networks").alias("evidence_networks"),
    )  # fmt: skip
    declared = [is_declared(con, nets or []) for nets in found["source_networks"].to_list()]
    found = found.with_columns(pl.Series("is_declared_net", declared, pl.Boolean))
    return found.drop("run", "tenant_key").sort("first_seen", "tenant_id", "actor_id", "kind")
