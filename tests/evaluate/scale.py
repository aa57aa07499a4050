"""What a hunt costs, at the size of a world and at a multiple of it: time, memory and bytes read, beside the same questions asked of
the events; and how fast a derived table is built.

Run as a process of its own: `python -m tests.evaluate.scale '{"times": 20, ...}'`. The larger archive holds the world's events many
times, each time with other tenants, people, mailboxes, messages and sessions, and derived tables built from them.
"""

import csv
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tests.evaluate.measure import QUESTIONS
from tests.evaluate.reading import KINDS, kind
from tests.evaluate.worlds import build, planted

if TYPE_CHECKING:
    from archive.store import Archive

TABLES = ("access_events", "mail_events", "change_events", "gateway_jobs")
NAMES = (
    "event_uid", "tenant_id", "home_tenant_id", "principal_id", "credential_id", "mailbox_id", "effective_user", "actor_id", "target_id",
    "session_id", "token_id", "queue_id", "message_id", "network_message_id", "sasl_username", "rcpt", "orig_rcpt", "mail_from", "host",
    "evidence_id", "job_id",
)  # fmt: skip
REFERENCES = ("tenant_id", "principal_id", "credential_id", "mailbox_id", "replaced_by")
_LEFT_OUT = ("networks", "asn")  # the same for every copy
_HUNTS = {"catalogue": "all detections, 30 days", "daily": "all detections, the last day"}
_SIDES = ("gatehound", "DuckDB", "Polars")


def enlarged(small: "Archive", out: Path, folder: Path, times: int) -> tuple["Archive", float]:
    """An archive with the events of `small` many times, and the seconds that building its derived tables took."""
    from archive.store import Archive
    from flows.pipeline.deriving import refresh
    from flows.pipeline.references import load

    large = Archive.create(str(folder))
    references = folder.parent / "reference"
    references.mkdir()
    for path in sorted((out / "reference").glob("*.csv")):
        _references(path, references / path.name, 1 if path.stem in _LEFT_OUT else times)
    load(large, [str(references)])
    for table in TABLES:
        rows = small.scan(table).collect()
        if rows.is_empty():
            continue
        own = [name for name in NAMES if name in rows.columns]
        for number in range(times):
            large.append(table, rows if number == 0 else rows.with_columns(pl.col(own) + f".x{number}"))
    began = time.monotonic()
    refresh(large)
    return Archive.open(str(folder)), time.monotonic() - began


def _references(source: Path, target: Path, times: int) -> None:
    """The rows of a reference table for each copy of the world."""
    with source.open(newline="") as held, target.open("w", newline="") as made:
        reader = csv.DictReader(held)
        writer = csv.DictWriter(made, reader.fieldnames or [], lineterminator="\n")
        writer.writeheader()
        for row in reader:
            for number in range(times):
                end = f".x{number}" if number else ""
                writer.writerow(
                    {key: value + end if value and key in REFERENCES else value for key, value in row.items()}
                )


def stored(archive: "Archive") -> dict[str, int]:
    """Bytes of the files of each kind of table, also of the last day, and the number of events."""
    sizes = {f"{of}{when}": 0 for of in KINDS for when in ("", " of the last day")}
    last = f"date={max(archive.dates('context_days'))}"
    for path in Path(archive.place.root).glob("tables/*/**/*.parquet"):
        table, *folders = path.relative_to(Path(archive.place.root) / "tables").parts
        of = kind(table)
        sizes[of] += path.stat().st_size
        if last in folders:
            sizes[f"{of} of the last day"] += path.stat().st_size
    rows = {table: archive.scan(table).select(pl.len()).collect().item() for table in TABLES}
    return sizes | {"rows": sum(rows.values()), "accesses": rows["access_events"]}


def answers(
    folder: Path, times: int, *, tenants: int, days: int, campaigns: str | None, seed: int = 7
) -> dict[str, Any]:
    """All measurements."""
    from tests.evaluate.run import child

    small, _ = build(folder / "world", seed=seed, tenants=tenants, days=days, **planted(campaigns))
    large, seconds = enlarged(small, folder / "world", folder / "large" / "archive", times)
    found: dict[str, Any] = {
        "times": times,
        "tenants": tenants,
        "days": days,
        "derived seconds": round(seconds, 1),
        "sizes": [],
    }
    whats = [
        "libraries",
        "catalogue",
        "daily",
        *(f"{sort}:{name}" for name in QUESTIONS for sort in ("detection", "question")),
    ]
    for archive in (small, large):
        runs = [child("tests.evaluate.measure", {"archive": archive.uri, "what": what}) for what in whats]
        reads = {what: child("tests.evaluate.reading", {"archive": archive.uri, "what": what}) for what in _HUNTS}
        found["sizes"].append(stored(archive) | {"runs": {run["what"]: run for run in runs}, "reads": reads})
    runs = [child("tests.evaluate.measure", {"archive": large.uri, "what": f"rollup:{side}"}) for side in _SIDES]
    return found | {"rollup": dict(zip(_SIDES, runs, strict=True))}


def section(found: Mapping[str, Any]) -> str:
    """The part of the document."""
    from tests.evaluate.document import table

    def row(name: str, size: int, what: str) -> list[str]:
        run = found["sizes"][size]["runs"][what]
        return [name, f"{found['sizes'][size]['rows']:,}", f"{run['seconds']:.1f}", f"{run['cpu']:.1f}", f"{run['peak']:,}",
                f"{run['read'] / 1e6:,.1f}", str(run["count"])]  # fmt: skip

    rows = [
        row(name, size, what)
        for name, what in (
            ("libraries", "libraries"), *((label, what) for what, label in _HUNTS.items()),
            *((f"{n}, {label}", f"{sort}:{n}") for n in QUESTIONS for sort, label in (("detection", "detection"), ("question", "SQL over events"))),
        )
        for size in (0, 1)
    ]  # fmt: skip
    small, large = found["sizes"]
    accesses = large["accesses"]
    built = [
        [
            side,
            f"{run['seconds']:.1f}",
            f"{accesses / run['seconds']:,.0f}",
            f"{accesses / max(run['cpu'], 0.01):,.0f}",
            f"{run['peak']:,}",
            f"{run['count']:,}",
        ]
        for side, run in found["rollup"].items()
    ]
    header = ["", "events", "seconds", "CPU seconds", "peak MiB", "MB read", "findings or rows"]
    return f"""\
## What a hunt costs

A world of {found["tenants"]} tenants and {found["days"]} days ({small["rows"]:,} events), and the same events {found["times"]} times, each
time with other tenants, people, mailboxes, messages and sessions ({large["rows"]:,} events, {large["events"] / 1e6:,.0f} MB of Parquet,
derived tables {large["derived"] / 1e6:,.0f} MB, built in {found["derived seconds"]:,} s). Each line is a process of its own; loading the
libraries is not counted in the seconds, but in the peak ({small["runs"]["libraries"]["peak"]} MiB with nothing asked). MB read are what
the process asked the file system for. A detection also looks up the evidence of each finding in the events; the SQL asks the same
question in its plainest form, without baselines, reference tables or evidence.

{table(header, rows)}

{_reads(found)}

The derived table context_days over the larger archive ({accesses:,} accesses), beside a plain group by on the same key:

{table(["", "seconds", "events a second", "events a second of CPU", "peak MiB", "rows"], built)}"""


def _reads(found: Mapping[str, Any]) -> str:
    """What the hunts read of which files."""
    from tests.evaluate.document import table

    rows = [
        [label, f"{size['rows']:,}", *(f"{size['reads'][what][of][when] / 1e6:,.1f}" for of, when in _COLUMNS)]
        for what, label in _HUNTS.items()
        for size in found["sizes"]
    ]
    rows += [
        ["stored", f"{size['rows']:,}", *(f"{part / 1e6:,.1f}" for part in _held(size))] for size in found["sizes"]
    ]
    header = [
        "",
        "events",
        "events, days hunted",
        "events, before",
        "changes and jobs, days hunted",
        "before",
        "derived, days hunted",
        "derived, before",
        "other tables",
    ]
    return f"""\
What the hunts read of which files, MB, by DuckDB's own log: a file counts as often as it is read, and each detection reads for
itself. Derived tables of months count as before the days hunted. Of events before them only footers should be read, which
tell that a file is not needed. Changes of settings (change_events) and the gateway's own jobs (gateway_jobs) are few, and stand
for themselves: they have no derived table. The last lines are what is stored, with the last day as the days hunted.

{table(header, rows)}"""


_COLUMNS = (
    ("events", "window"),
    ("events", "before"),
    ("small", "window"),
    ("small", "before"),
    ("derived", "window"),
    ("derived", "before"),
    ("others", "before"),
)


def _held(size: Mapping[str, Any]) -> list[int]:
    """Bytes of the files in the order of `_COLUMNS`."""
    parts = []
    for of in ("events", "small", "derived"):
        last = size[f"{of} of the last day"]
        parts += [last, size[of] - last]
    return [*parts, size["others"]]


def main() -> None:
    """Reads the arguments as JSON, prints the answers as one JSON line."""
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        (Path(folder) / "large").mkdir()
        print(json.dumps(answers(Path(folder).resolve(), **json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
