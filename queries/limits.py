"""What the logs cannot say for a window: an empty result is not an all-clear."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from queries.text import plain

if TYPE_CHECKING:
    import duckdb

MOST_TENANTS = 10  # named in one sentence
MOST_LINES = 20  # of one kind

# What a hunt needs, and in which protocols it shows.
SOURCES = {
    "sign-ins (Entra, oauth)": ("oauth",),
    "mailbox access (EWS, Graph, unified audit)": ("ews", "graph", "exchange", "mapi", "owa", "eas"),
    "POP3 sessions": ("pop3",),
    "SMTP submissions": ("smtp",),
    "directory access (LDAP)": ("ldap",),
}
REFERENCES = {
    "networks": "no network counts as declared, so that changes of the vendor's egress look like strangers",
    "credentials": "passwords of service accounts count as those of ordinary users unless bindings name them",
    "bindings": "which credential may open which tenant is not known",
    "mailboxes": "journal mailboxes and mailboxes of special interest are not known",
    "tenants": "tenants are known only as the logs name them, and new ones are not recognised",
}


def limits(con: "duckdb.DuckDBPyConnection", begin: datetime, end: datetime) -> list[str]:
    """Sentences about gaps of the archive in [begin, end), in a fixed order."""
    first, last = begin.date(), (end - timedelta(microseconds=1)).date()
    parts: Sequence[Callable[[Any, date, date], list[str]]] = (
        _absent_sources, _missing_days, _blind_mailboxes, _deliveries, _unknown_tenants, _short_histories, _no_asn,
        _times, _refused, _references,
    )  # fmt: skip
    return [sentence for part in parts for sentence in part(con, first, last)]


def _absent_sources(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    rows = con.execute(
        "select distinct protocol from context_days where date between ? and ?", [first, last]
    ).fetchall()
    seen = {protocol for (protocol,) in rows}
    found = [
        f"No {name} in the window: nothing can be said about them."
        for name, known in SOURCES.items()
        if not seen & set(known)
    ]
    changes = con.execute("select 1 from change_events where date between ? and ? limit 1", [first, last]).fetchall()
    return (
        found
        if changes
        else [*found, "No change events in the window: consent, role, rule and key changes cannot be seen."]
    )


def _missing_days(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    """Days without a row, by protocol and tenant, where the tenant has ten rows of that protocol on most days; where
    they are rare anyway, a day without says nothing."""
    statement = """
with present as (
    select protocol, tenant_id, date, sum(n_rows) as n from context_days where date between $first - 30 and $last
    group by protocol, tenant_id, date
),
spans as (
    select protocol, tenant_id from present group by protocol, tenant_id
    having count(*) >= 3 and count(*) >= 0.8 * (date_diff('day', min(date), $last) + 1) and sum(n) >= 10 * count(*)
),
days as (select cast(unnest(generate_series($first, $last, interval 1 day)) as date) as date)
select s.protocol, s.tenant_id, list(d.date order by d.date) as days
from spans as s cross join days as d
anti join present as p on p.protocol = s.protocol and p.tenant_id is not distinct from s.tenant_id and p.date = d.date
group by s.protocol, s.tenant_id
order by s.protocol, len(days) desc, s.tenant_id
"""
    n_days = (last - first).days + 1
    gaps: dict[str, list[tuple[str | None, list[date]]]] = defaultdict(list)
    for protocol, tenant, days in con.execute(statement, {"first": first, "last": last}).fetchall():
        gaps[protocol].append((tenant, days))
    sentences = []
    for protocol, tenants in list(gaps.items())[:MOST_LINES]:
        named = "; ".join(f"{plain(tenant)}: {_ranges(days)}" for tenant, days in tenants[:MOST_TENANTS])
        more = f"; and {len(tenants) - MOST_TENANTS} more tenants" if len(tenants) > MOST_TENANTS else ""
        sentences.append(f"Days without {protocol} rows, of {n_days} in the window: {named}{more}.")
    return sentences


def _ranges(days: list[date]) -> str:
    """Days as ranges: 2021-01-05, 2021-01-07 to 2021-01-09 (4 days)."""
    runs: list[list[date]] = []
    for day in days:
        if runs and day - runs[-1][-1] == timedelta(days=1):
            runs[-1].append(day)
        else:
            runs.append([day])
    shown = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:4]]
    more = f" and {len(runs) - 4} more gaps" if len(runs) > 4 else ""
    return f"{', '.join(shown)}{more} ({len(days)} day{'s' if len(days) > 1 else ''})"


def _blind_mailboxes(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    """Throttled audit: the mailbox is blind for 24 hours."""
    statement = """
select tenant_id, mailbox_id, min(ts), max(ts) + interval 24 hour, count(*) over ()
from access_events where date between ? and ? and throttled
group by tenant_id, mailbox_id order by min(ts), tenant_id, mailbox_id limit ?
"""
    rows = con.execute(statement, [first, last, MOST_LINES]).fetchall()
    sentences = [
        f"Audit of mailbox {plain(mailbox)} ({plain(tenant)}) was throttled: "
        f"reading between {plain(start)} and {plain(end)} "
        "is not fully logged; assume that any of its mail was read."
        for tenant, mailbox, start, end, _ in rows
    ]
    if rows and rows[0][4] > len(rows):
        sentences.append(f"{rows[0][4] - len(rows)} more mailboxes were throttled.")
    return sentences


def _deliveries(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    statement = """
select mailbox_id from journal_hours where date between ? and ?
group by mailbox_id having sum(retrieved) > 0 and sum(delivered) = 0 order by mailbox_id
"""
    boxes = [mailbox for (mailbox,) in con.execute(statement, [first, last]).fetchall()]
    if not boxes:
        return []
    return [
        f"No deliveries are logged for mailboxes read over POP3 ({plain(boxes)}): copies cannot be told by the balance."
    ]


def _unknown_tenants(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    statement = """
select protocol, sum(n_rows)::bigint from context_days where date between ? and ? and tenant_id is null
group by protocol order by protocol
"""
    rows = con.execute(statement, [first, last]).fetchall()
    return [f"{n:,} {protocol} rows name no tenant that is known: they count for none." for protocol, n in rows if n]


def _short_histories(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    statement = """
with days as (
    select credential_id, count(distinct date) as n, max(date) as last_day
    from context_days
    where date between $first - 90 and $last and outcome = 'success' and credential_id is not null
        and principal_type in ('service_principal', 'service_account', 'computer')
    group by credential_id
)
select count(*) filter (where n < 21), count(*) from days where last_day >= $first
"""
    ((short, n),) = con.execute(statement, {"first": first, "last": last}).fetchall()
    if not short:
        return []
    return [f"{short} of {n} service credentials were active on fewer than 21 days: a new source says nothing."]


def _no_asn(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    statement = "select count(src_net), count(src_asn), count(*) from context_days where date between ? and ?"
    ((nets, asns, rows),) = con.execute(statement, [first, last]).fetchall()
    found = []
    if nets and not asns:
        found.append(
            "No autonomous systems are known (asn.csv, or ingest --geoip): sources are compared by network only."
        )
    if rows and rows - nets >= 0.0005 * rows:
        found.append(f"{100 * (rows - nets) / rows:.1f} % of the access contexts have no client address.")
    return found


def _times(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> list[str]:
    statement = """
select format, case when tz_basis = 'assumed' then coalesce(tz, 'UTC') end, tz_basis = 'assumed',
    year_basis = 'file_time', count(*)
from evidence
where status <> 'refused' and cast(first_ts as date) <= ? and cast(last_ts as date) >= ?
    and (tz_basis = 'assumed' or year_basis = 'file_time')
group by all order by all
"""
    sentences = []
    for name, zone, assumed_zone, assumed_year, n in con.execute(statement, [last, first]).fetchall()[:MOST_LINES]:
        what = [f"zone ({plain(zone)})"] if assumed_zone else []
        what += ["year (from the file's time)"] if assumed_year else []
        sentences.append(
            f"{n} piece(s) of {plain(name)} evidence write times without a zone or year; assumed: {' and '.join(what)}."
        )
    return sentences


def _refused(con: "duckdb.DuckDBPyConnection", _first: date, _last: date) -> list[str]:
    """Refused records have no trusted time, so the whole archive is told."""
    rows = con.execute(
        "select coalesce(format, 'unknown'), reason, count(*) from quarantine "
        "group by all order by 3 desc, 1, 2 limit ?",
        [MOST_LINES],
    ).fetchall()
    reasons = "; ".join(f"{plain(reason)} ({plain(name)}, {n:,})" for name, reason, n in rows)
    total = sum(n for _, _, n in rows)
    found = (
        [f"In quarantine, without part in this: {total:,} record{'s' if total != 1 else ''}: {reasons}."]
        if rows
        else []
    )
    ((refused,),) = con.execute("select count(*) from evidence where status = 'refused'").fetchall()
    if refused:
        found.append(f"{refused} piece(s) of evidence were refused as a whole.")
    return found


def _references(con: "duckdb.DuckDBPyConnection", _first: date, _last: date) -> list[str]:
    return [
        f"Reference table {table} is empty: {effect}."
        for table, effect in REFERENCES.items()
        if not con.execute(f"select 1 from {table} limit 1").fetchall()
    ]
