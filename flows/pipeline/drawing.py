"""The pictures of a report: findings over time, tenants over time, the balance of journal mailboxes."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from reports import pictures
from reports.incident import Picture

if TYPE_CHECKING:
    import duckdb


def pictures_of(
    con: "duckdb.DuckDBPyConnection", hunt: Mapping[str, Any], times: Mapping[str, Sequence[Any]]
) -> list[Picture]:
    """Pictures of a hunt; none where it found nothing.

    Args:
        con: the archive.
        hunt: as `flows.pipeline.hunting.told` gives it.
        times: by finding id, times of its evidence rows.
    """
    if not hunt["cases"]:
        return []
    caption = "One lane for each case and, below it, its findings, coloured by severity; a dot is an evidence row."
    shown = [Picture("Findings over time", caption, pictures.timeline(_lanes(hunt), event_times=times), "timeline.svg")]
    span = {"first": hunt["window"]["from"][:10], "last": hunt["window"]["to"][:10]}
    return [*shown, *_tenants(con, hunt, span), *_journal(con, hunt, span)]


def _lanes(hunt: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cases and findings with names that fit beside a lane: the detection, and where."""

    def named(ids: Sequence[str]) -> str:
        return ", ".join(ids[:2]) + (f" +{len(ids) - 2}" if len(ids) > 2 else "")

    return [
        {
            **case,
            "summary": named(case["entities"]["tenant_ids"]) or "no tenant",
            "findings": [
                {**f, "title": f"{f['detection']} {named(f['entities']['tenant_ids'])}"} for f in case["findings"]
            ],
        }
        for case in hunt["cases"]
    ]


def _tenants(con: "duckdb.DuckDBPyConnection", hunt: Mapping[str, Any], span: dict[str, str]) -> list[Picture]:
    days = con.sql(
        """
        select date, tenant_id, sum(n_ops)::bigint as n from context_days
        where date between $first::date and $last::date and tenant_id is not null group by all order by all
        """,
        params=span,
    ).pl()
    if days.is_empty():
        return []
    marked = days.join(_marks(hunt), on=["date", "tenant_id"], how="left").with_columns(
        pl.col("n_suspicious").fill_null(0)
    )
    caption = "Operations of each tenant by UTC day. A mark: a finding that names the tenant spans the day."
    return [Picture("Tenants over time", caption, pictures.tenant_time(marked), "tenants.svg")]


def _journal(con: "duckdb.DuckDBPyConnection", hunt: Mapping[str, Any], span: dict[str, str]) -> list[Picture]:
    boxes = sorted(
        {
            m
            for c in hunt["cases"]
            for f in c["findings"]
            if f["family"] == "exfiltration"
            for m in f["entities"]["mailboxes"]
        }
    )
    ledger = con.sql(
        """
        select date, mailbox_id, sum(delivered)::bigint as delivered, sum(retrieved)::bigint as retrieved
        from journal_hours
        where mailbox_id in (select unnest($boxes::varchar[])) and date between $first::date and $last::date
        group by all order by all
        """,
        params={"boxes": boxes, **span},
    ).pl()
    if ledger.is_empty():
        return []
    caption = (
        "Messages delivered into these journal mailboxes and retrieved from them by UTC day: each should leave once."
    )
    return [Picture("Balance of the journal", caption, pictures.ledger(ledger), "journal.svg")]


def _marks(hunt: Mapping[str, Any]) -> pl.DataFrame:
    """Days of the findings by tenant."""
    rows = [
        {"tenant_id": tenant, "first": f["first_seen"][:10], "last": f["last_seen"][:10]}
        for c in hunt["cases"]
        for f in c["findings"]
        for tenant in f["entities"]["tenant_ids"]
    ]
    if not rows:
        return pl.DataFrame(schema={"date": pl.Date, "tenant_id": pl.String, "n_suspicious": pl.Int64})
    spans = pl.DataFrame(rows).with_columns(pl.col("first", "last").str.to_date())
    days = spans.with_columns(pl.date_ranges("first", "last").alias("date")).explode("date", empty_as_null=True)
    return days.group_by("date", "tenant_id").agg(pl.len().cast(pl.Int64).alias("n_suspicious"))
