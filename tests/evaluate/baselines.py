"""Four simple ways that one would use instead, over the same archive: each gives alerts, one case by tenant, entity and day.

All of them read the accesses (access_events), as their published forms do. An entity is the acting principal, else its
credential, else its application; in the rule about failed logins it is the source address.
"""

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl

from tests.evaluate.judge import Claim

if TYPE_CHECKING:
    from archive.store import Archive

NAMES = {
    "thresholds": "fixed thresholds as published",
    "sigma": "daily count above mean + 2.5 standard deviations of 30 days",
    "new terms": "first use of an application or a network in 14 days",
    "isolation forest": "isolation forest on daily vectors",
}
MAILBOXES, FAILURES, OPERATIONS = 5, 10, 100
SIGMAS, SIGMA_DAYS, LEAST_DAYS = 2.5, 30, 7
NEW_DAYS = 14
_KEY = ("tenant_id", "entity", "date")
_COLUMNS = (
    "event_uid", "date", "ts", "tenant_id", "protocol", "principal_id", "credential_id", "app_id", "mailbox_id", "src_net",
    "src_ip", "client_fp", "outcome", "op_count", "item_count", "bytes_out", "throttled",
)  # fmt: skip


def accesses(archive: "Archive", labels: pl.DataFrame) -> pl.DataFrame:
    """access_events as far as the baselines read them, with `entity` and `label`."""
    known = labels.select("event_uid", "label").lazy()
    rows = archive.scan("access_events").select(_COLUMNS).join(known, on="event_uid", how="left")
    who = pl.coalesce("principal_id", "credential_id", "app_id")
    return rows.with_columns(
        who.alias("entity"), pl.col("op_count").fill_null(1), pl.col("item_count", "bytes_out").fill_null(0)
    ).collect()


def thresholds(rows: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
    """Splunk: more than 5 mailboxes of others by one actor within 10 minutes; more than 10 users failing from one address within
    5 minutes. Elastic: an access of 100 operations or more, or a throttled one. The score is the observed over the limit."""
    now = rows.filter(pl.col("date").is_between(first, last))
    others = now.filter(pl.col("mailbox_id").is_not_null() & pl.col("mailbox_id").ne_missing(pl.col("principal_id")))
    fan = _crowded(others, "entity", "mailbox_id", "10m", MAILBOXES)
    failed = now.filter((pl.col("outcome") == "failure") & pl.col("src_ip").is_not_null()).with_columns(
        pl.col("src_ip").alias("entity")
    )
    spray = _crowded(failed, "entity", "principal_id", "5m", FAILURES).with_columns(pl.col("src_ip").alias("named"))
    heavy = now.filter((pl.col("op_count") >= OPERATIONS) | pl.col("throttled").fill_null(value=False)).with_columns(
        (pl.col("op_count") / OPERATIONS).clip(1.0).alias("score")
    )
    return pl.concat([fan, spray, heavy], how="diagonal_relaxed")


def _crowded(rows: pl.DataFrame, by: str, what: str, span: str, most: int) -> pl.DataFrame:
    """Rows of the spans in which an entity touches more than `most` different values."""
    keys = ["tenant_id", by, "span"]
    spans = rows.with_columns(pl.col("ts").dt.truncate(span).alias("span"))
    full = spans.group_by(keys).agg((pl.col(what).n_unique() / most).alias("score")).filter(pl.col("score") > 1)
    return spans.join(full, on=keys, nulls_equal=True).drop("span")


def sigma(rows: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
    """Days on which an entity's operations exceed the mean of its 30 days before (days without any count as 0, at least 7 days
    of archive) by more than 2.5 standard deviations (at least one operation). The score is the number of deviations."""
    daily = rows.group_by(_KEY).agg(pl.col("op_count").sum().cast(pl.Float64).alias("n"))
    days = pl.DataFrame({"date": pl.date_range(daily.select(pl.col("date").min()).item(), last, eager=True)})
    filled = (
        daily.select("tenant_id", "entity")
        .unique()
        .join(days, how="cross")
        .join(daily, on=_KEY, how="left", nulls_equal=True)
    )
    filled = filled.with_columns(pl.col("n").fill_null(0)).sort(_KEY)
    before = pl.col("n").shift(1)
    over = ["tenant_id", "entity"]
    scored = filled.with_columns(
        before.rolling_mean(SIGMA_DAYS, min_samples=LEAST_DAYS).over(over).alias("mean"),
        before.rolling_std(SIGMA_DAYS, min_samples=LEAST_DAYS).over(over).clip(1.0).alias("spread"),
    ).with_columns(((pl.col("n") - pl.col("mean")) / pl.col("spread")).alias("score"))
    flagged = scored.filter((pl.col("score") > SIGMAS) & pl.col("date").is_between(first, last)).select(*_KEY, "score")
    return rows.join(flagged, on=_KEY, nulls_equal=True)


def new_terms(rows: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
    """Elastic: an application not seen at a tenant, or a network not seen with an entity, in the 14 days before. The score is the
    number of such terms of the entity on the day, and then the number of its operations with them."""
    known = rows.filter(pl.col("outcome") != "failure")
    parts = []
    for by, term in ((["tenant_id"], "app_id"), (["tenant_id", "entity"], "src_net")):
        days = known.filter(pl.col(term).is_not_null()).select(*by, term, "date").unique().sort("date")
        gap = (pl.col("date") - pl.col("date").shift(1).over([*by, term])).dt.total_days()
        fresh = days.with_columns(gap.alias("gap")).filter(
            (pl.col("gap").is_null() | (pl.col("gap") > NEW_DAYS)) & pl.col("date").is_between(first, last)
        )
        found = known.join(fresh.drop("gap"), on=[*by, term, "date"], nulls_equal=True)
        own = pl.col(term) if term == "src_net" else pl.lit(None, pl.String)
        parts.append(
            found.with_columns(own.alias("named"), pl.concat_str(pl.lit(term), pl.lit("="), term).alias("term"))
        )
    flagged = pl.concat(parts)
    counts = flagged.group_by(_KEY).agg(
        (pl.col("term").n_unique() + 1 - 1 / (1 + pl.col("op_count").sum())).alias("score")
    )
    return flagged.join(counts, on=_KEY, nulls_equal=True)


def isolation_forest(rows: pl.DataFrame, first: date, last: date) -> pl.DataFrame:
    """An isolation forest (200 trees, seed 0) over the daily vectors of all entities and all days of the archive; alerts are the
    days that it calls outliers at its own threshold. The score is its anomaly score."""
    from sklearn.ensemble import IsolationForest  # type: ignore[import-untyped]

    vectors = rows.group_by(_KEY).agg(
        pl.len().log1p().alias("rows"), pl.col("op_count").sum().log1p().alias("operations"),
        pl.col("item_count").sum().log1p().alias("items"), pl.col("bytes_out").sum().log1p().alias("bytes"),
        *(pl.col(c).n_unique().log1p().alias(f"n_{c}") for c in ("src_net", "mailbox_id", "client_fp", "app_id", "protocol")),
        (pl.col("outcome") == "failure").sum().log1p().alias("failures"), pl.col("ts").dt.hour().n_unique().alias("hours"),
        pl.col("ts").dt.hour().is_between(0, 5).mean().alias("night"),
    ).sort(_KEY)  # fmt: skip
    values = vectors.drop(_KEY).fill_null(0).to_numpy().astype("float64")
    forest = IsolationForest(n_estimators=200, random_state=0).fit(values)
    scored = vectors.select(_KEY).with_columns(pl.Series("score", -forest.decision_function(values)))
    flagged = scored.filter((pl.col("score") > 0) & pl.col("date").is_between(first, last))
    return rows.join(flagged, on=_KEY, nulls_equal=True)


METHODS: Mapping[str, Callable[[pl.DataFrame, date, date], pl.DataFrame]] = {
    "thresholds": thresholds, "sigma": sigma, "new terms": new_terms, "isolation forest": isolation_forest,
}  # fmt: skip


def alerts(flagged: pl.DataFrame) -> list[dict[str, Any]]:
    """One alert by tenant, entity and day, with what it names and the labels of its rows, as JSON."""
    if "named" not in flagged.columns:
        flagged = flagged.with_columns(pl.lit(None, pl.String).alias("named"))
    once = flagged.unique(["event_uid", "entity"])
    grouped = once.group_by(_KEY).agg(
        pl.col("score").max(), pl.len().alias("rows"), pl.col("label").drop_nulls().value_counts().alias("labels"),
        pl.concat([pl.col("principal_id"), pl.col("credential_id")]).drop_nulls().unique().sort().alias("identities"),
    )  # fmt: skip
    named = flagged.group_by(_KEY).agg(pl.col("named").drop_nulls().unique().sort().alias("sources"))
    grouped = grouped.join(named, on=_KEY, nulls_equal=True).sort(["date", "score"], descending=[False, True])
    return [
        {"id": f"{row['date']} {row['tenant_id']} {row['entity']}", "day": str(row["date"]), "score": round(row["score"], 4),
         "rows": row["rows"], "labels": {item["label"]: item["count"] for item in row["labels"]},
         "sources": row["sources"], "identities": row["identities"][:20]}
        for row in grouped.iter_rows(named=True)
    ]  # fmt: skip


def all_baselines(archive: "Archive", labels: pl.DataFrame, first: date, last: date) -> dict[str, list[dict[str, Any]]]:
    """The alerts of each baseline within the window."""
    rows = accesses(archive, labels)
    return {name: alerts(method(rows, first, last)) for name, method in METHODS.items()}


def claim(name: str, entry: Mapping[str, Any]) -> Claim:
    """An alert as it is judged."""
    return Claim(
        id=entry["id"], detection=name, day=date.fromisoformat(entry["day"]), score=entry["score"], severity="medium",
        sources=frozenset(entry["sources"]), identities=frozenset(entry["identities"]), mailboxes=frozenset(),
        rows=entry["rows"], labels=entry["labels"],
    )  # fmt: skip
