"""One question put to an archive in a process of its own: how long, how much memory, how many bytes read.

`python -m tests.evaluate.measure '{"archive": ..., "what": ...}'` prints one JSON object. Bytes read are those that the process asked
the file system for with read calls (rchar of /proc/self/io) and those that came from the disk (read_bytes; 0 where the system holds
the files in memory). Files that Polars maps into memory do not count in rchar.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import duckdb

    from archive.store import Archive

# The questions of four detections, asked of the events: $begin to $last is the window, $before the day 90 days before it.
QUESTIONS = {
    "T01": """
with known as (
    select tenant_id, coalesce(credential_id, principal_id) as who, src_net, min(ts) as first_ts, count(*) as n
    from access_events
    where date between $before and $last and outcome = 'success' and src_net is not null
    group by all
)
select * from known where first_ts >= $begin
""",
    "M01": """
select tenant_id, coalesce(principal_id, credential_id, app_id) as who, date_trunc('hour', ts) as hour, count(distinct mailbox_id) as n
from access_events
where date between $begin and $last and mailbox_id is not null and mailbox_id is distinct from principal_id
group by all having n > 5 and $before is not null
""",
    "X01": """
with delivered as (
    select tenant_id, rcpt as mailbox_id, date, count(*) as n from mail_events
    where date between $begin and $last and event = 'deliver' and outcome = 'success' and direction is not null group by all
), retrieved as (
    select tenant_id, mailbox_id, date, sum(retr_count) as n from access_events
    where date between $begin and $last and retr_count is not null group by all
)
select * from retrieved left join delivered as d using (tenant_id, mailbox_id, date)
where retrieved.n > coalesce(d.n, 0) and $before is not null
""",
    "L01": """
with walks as (
    select tenant_id, src_net, count(distinct protocol) as n, min(ts) as first_ts, max(ts) as last_ts from access_events
    where date between $begin and $last and outcome = 'success' and src_net is not null group by all having n > 1
)
select * from walks anti join (
    select distinct tenant_id, src_net from access_events where date >= $before and date < $begin
) using (tenant_id, src_net)
""",
}
_TABLES = ("access_events", "mail_events")


def io() -> dict[str, int]:
    """rchar and read_bytes of this process so far; empty where the system does not tell."""
    try:
        pairs = (row.split(": ") for row in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return {}
    return {key: int(value) for key, value in pairs if key in ("rchar", "read_bytes")}


def peak() -> int:
    """Peak resident memory of this program, MiB. ru_maxrss would keep that of the process which started it."""
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return next(int(row.split()[1]) // 1024 for row in rows if row.startswith("VmHWM:"))


def window(archive: "Archive") -> tuple[date, date]:
    """First and last day of the hunt's default window."""
    last = max(archive.dates("context_days"))
    return last - timedelta(days=29), last


def libraries(archive: "Archive") -> int:
    """Nothing but what every question needs: the libraries, and the archive opened."""
    return len(archive.dates("context_days"))


def catalogue(archive: "Archive") -> int:
    """The hunt over 30 days with all detections."""
    from queries.engine import hunt

    with archive.connect() as con:
        return len(hunt(con).findings)


def daily(archive: "Archive") -> int:
    """The hunt over the last day with all detections."""
    from queries.engine import hunt

    _, last = window(archive)
    with archive.connect() as con:
        return len(hunt(con, window_from=last, window_to=last).findings)


def detection(archive: "Archive", name: str) -> int:
    """One detection over 30 days, without linking its findings."""
    from queries.engine import hunt

    with archive.connect() as con:
        return len(hunt(con, detections=[name]).findings)


def question(archive: "Archive", name: str) -> int:
    """The same question in plain SQL over the Parquet files of the events."""
    first, last = window(archive)
    values = {"begin": first, "last": last, "before": first - timedelta(days=90)}
    with _plain(archive) as con:
        return len(con.execute(QUESTIONS[name], values).fetchall())


def _plain(archive: "Archive") -> "duckdb.DuckDBPyConnection":
    import duckdb

    con = duckdb.connect()
    con.execute("set TimeZone = 'UTC'")
    for table in _TABLES:
        con.read_parquet(archive.files(table), hive_partitioning=True).create_view(table)
    return con


def rollup(archive: "Archive", side: str) -> int:
    """context_days over all days: by the product, or as a plain group by on the same key in DuckDB or Polars; rows of the result."""
    import polars as pl

    from transforms.derived import context_days, derived

    key = context_days.KEY
    if side == "gatehound":
        from flows.pipeline.deriving import frames

        table = next(t for t in derived() if t.table == "context_days")
        return sum(frame.height for frame in frames(archive, table, archive.dates("access_events")))
    if side == "DuckDB":
        names = ", ".join(key)
        statement = f"""
create table rollup as select {names}, count(*) as n_rows, sum(coalesce(op_count, 1)) as n_ops, sum(item_count) as items,
    sum(bytes_out) as bytes_out, min(ts) as first_ts, max(ts) as last_ts, bit_or(1 << hour(ts)) as hour_bits
from access_events group by {names}"""
        with _plain(archive) as con:
            con.execute(statement)
            ((rows,),) = con.execute("select count(*) from rollup").fetchall()
        return int(rows)
    frame = archive.scan("access_events").group_by(key).agg(
        pl.len().alias("n_rows"), pl.col("op_count").fill_null(1).sum().alias("n_ops"), pl.col("item_count", "bytes_out").sum(),
        pl.col("ts").min().alias("first_ts"), pl.col("ts").max().alias("last_ts"),
        pl.col("ts").dt.hour().unique().len().alias("hours"),
    )  # fmt: skip
    return frame.collect(engine="streaming").height


def run(what: str) -> "Callable[[Archive], int]":
    """The function that answers: libraries, catalogue, daily, or a kind and a name such as detection:T01."""
    kind, _, name = what.partition(":")
    if not name:
        return {"libraries": libraries, "catalogue": catalogue, "daily": daily}[kind]
    named = {"detection": detection, "question": question, "rollup": rollup}[kind]
    return lambda archive: named(archive, name)


def measured(where: str, what: str) -> dict[str, Any]:
    """Runs one question; seconds, CPU seconds, MiB, bytes, and the number of rows or findings."""
    import duckdb  # loading the libraries is not the question's time
    import polars as pl  # noqa: F401

    from archive.store import Archive
    from queries import engine  # noqa: F401

    duckdb.connect().close()
    archive, answer = Archive.open(where), run(what)
    before, wall, cpu = io(), time.monotonic(), time.process_time()
    count = answer(archive)
    seconds, busy, after = time.monotonic() - wall, time.process_time() - cpu, io()
    return {
        "what": what, "seconds": round(seconds, 2), "cpu": round(busy, 2), "count": count,
        "peak": peak(),
        "read": after.get("rchar", 0) - before.get("rchar", 0), "disk": after.get("read_bytes", 0) - before.get("read_bytes", 0),
    }  # fmt: skip


def main() -> None:
    """Reads the arguments as JSON, prints the answer as one JSON line."""
    given = json.loads(sys.argv[1])
    print(json.dumps(measured(given["archive"], given["what"])))


if __name__ == "__main__":
    main()
