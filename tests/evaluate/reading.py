"""What a hunt reads of which files: bytes by kind of table, and whether they are of the days hunted or of earlier ones.

`python -m tests.evaluate.reading '{"archive": ..., "what": "daily"}'` prints one JSON object. The bytes are those of DuckDB's own log
of its reads. A file that several detections read counts as often as they read it.
"""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING, Any

from tests.evaluate.measure import window

if TYPE_CHECKING:
    import duckdb

    from archive.store import Archive

KINDS = ("events", "small", "derived", "others")
SMALL = ("change_events", "gateway_jobs")  # event tables that are small by nature, and kept whole as states are
TIMES = ("window", "before")
_FILE = re.compile(r"/tables/(\w+)/(?:date=(\d{4}-\d{2}-\d{2})/)?[^/]+\.parquet$")


def kind(table: str) -> str:
    """events, small (see SMALL), derived or others (reference tables, the register, findings)."""
    from data_contracts import contract

    if table in SMALL:
        return "small"
    found = contract(table).kind
    return {"event": "events", "derived": "derived"}.get(found, "others")


@contextmanager
def logged(archive: "Archive") -> Iterator["duckdb.DuckDBPyConnection"]:
    """A connection of the archive that keeps a log of what it reads. It must be told before the settings are locked."""
    from archive import sqlview

    own = sqlview._harden

    def telling(con: "duckdb.DuckDBPyConnection", *rest: Any) -> None:
        con.execute("call enable_logging('FileSystem', level = 'trace')")
        own(con, *rest)

    sqlview._harden = telling
    try:
        with archive.connect() as con:
            yield con
    finally:
        sqlview._harden = own


def reads(con: "duckdb.DuckDBPyConnection", first: date, last: date) -> dict[str, dict[str, int]]:
    """Bytes read so far: kind to window and before. A month's file counts as before."""
    found = {name: dict.fromkeys(TIMES, 0) for name in KINDS}
    rows = con.execute("select path, sum(bytes) from duckdb_logs_parsed('FileSystem') where op = 'READ' group by path")
    for path, size in rows.fetchall():
        named = _FILE.search(path)
        if named:
            inside = named[2] is not None and first <= date.fromisoformat(named[2]) <= last
            found[kind(named[1])]["window" if inside else "before"] += int(size)
    return found


def answers(archive: "Archive", what: str) -> dict[str, dict[str, int]]:
    """Hunts with all detections over the last day (daily) or over 30 days (catalogue)."""
    from queries.engine import hunt

    first, last = window(archive)
    if what == "daily":
        first = last
    with logged(archive) as con:
        hunt(con, window_from=first, window_to=last)
        return reads(con, first, last)


def main() -> None:
    """Reads the arguments as JSON, prints the answer as one JSON line."""
    from archive.store import Archive

    given = json.loads(sys.argv[1])
    print(json.dumps(answers(Archive.open(given["archive"]), given["what"])))


if __name__ == "__main__":
    main()
