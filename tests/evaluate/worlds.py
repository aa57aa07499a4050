"""One world from text to judged answers: written, ingested and hunted as a user would, and what is needed later kept as one JSON
object. Run as a process of its own: `python -m tests.evaluate.worlds '{"seed": 1, ...}'`.
"""

import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tests.evaluate.judge import Claim, Step, hits

if TYPE_CHECKING:
    import duckdb

    from archive.store import Archive
    from queries.cases import Surroundings
    from queries.findings import Finding

HUNT_DAYS = 30  # the hunt's own default
HISTORY = 14  # days at least that lie before the window
BUDGETS = (10, 1)
Places = dict[tuple[str, str | None], list[tuple[int, str]]]


@contextlib.contextmanager
def labels_kept() -> Iterator[Places]:
    """While the context lasts, remembers where the writer of a world puts labelled records: (file, member) to (byte offset,
    label). The truth that the world itself writes only counts them."""
    from flows.world.files import Writer

    own_lines, own_write, own_zip = Writer.lines, Writer.write, Writer.write_zip
    labels: dict[str, str] = {}
    places: Places = defaultdict(list)

    def lines(self: Writer, records: Any) -> list[str]:
        found = list(records)
        labels.update({line: label for _, line, label in found if label})
        return own_lines(self, found)

    def keep(name: str, member: str | None, text: str) -> None:
        offset = 0
        for line in text.split("\n"):
            bare = line.removesuffix("\r")
            label = labels.get(bare) or labels.get(bare.removesuffix(","))  # a comma: between the objects of an array
            if label:
                places[name, member].append((offset, label))
            offset += len(line.encode()) + 1

    def write(self: Writer, name: str, text: str, *rest: Any, **named: Any) -> None:
        keep(name, None, text)
        own_write(self, name, text, *rest, **named)

    def write_zip(self: Writer, name: str, members: Sequence[tuple[str, str]], *rest: Any, **named: Any) -> None:
        for member, text in members:
            keep(name, member, text)
        own_zip(self, name, members, *rest, **named)

    Writer.lines, Writer.write, Writer.write_zip = lines, write, write_zip  # type: ignore[method-assign]
    try:
        yield places
    finally:
        Writer.lines, Writer.write, Writer.write_zip = own_lines, own_write, own_zip  # type: ignore[method-assign]


def planted(campaigns: str | None) -> dict[str, Any]:
    """The argument of `write_world` that says which campaigns are planted; None means the demo's plot."""
    return {"campaigns": tuple(campaigns)} if campaigns else {}


def build(out: Path, **arguments: Any) -> tuple["Archive", Places]:
    """Writes a world, makes an archive of it in out/archive, and tells where the labelled records stand."""
    from flows.world.world import write_world

    with labels_kept() as places:
        write_world(out, **arguments)
    return ingested(out), places


def ingested(out: Path, folder: str = "archive") -> "Archive":
    """An archive of the logs below `out`, by the product's own way: init, reference load, ingest."""
    from archive.store import Archive
    from flows.pipeline.references import load
    from flows.pipeline.running import ingest_paths

    archive = Archive.create(str(out / folder))
    load(archive, [str(out / "reference")])
    ingest_paths(str(out / folder), [str(out / "logs")], collection=str(out / "collection.csv"))
    return Archive.open(str(out / folder))


def labelled_events(archive: "Archive", out: Path, places: Places) -> pl.DataFrame:
    """event_uid, label and day of the events that are planted records or records of a harmless event."""
    sheet = archive.scan("evidence").select("evidence_id", "path", "member").unique().collect()
    rows = [
        (evidence_id, offset, label)
        for evidence_id, path, member in sheet.iter_rows()
        for offset, label in places.get((Path(path).relative_to(out.resolve()).as_posix(), member), ())
    ]
    planted = pl.LazyFrame(
        rows, schema={"evidence_id": pl.String, "byte_offset": pl.Int64, "label": pl.String}, orient="row"
    )
    found = [
        archive.scan(table)
        .select("event_uid", "date", "evidence_id", "byte_offset")
        .join(planted, on=["evidence_id", "byte_offset"])
        .select("event_uid", "label", "date")
        for table in ("access_events", "mail_events", "change_events", "gateway_jobs")
    ]
    return pl.concat(found).collect().sort("event_uid", "label").unique("event_uid", keep="first", maintain_order=True)


def evidence_labels(con: "duckdb.DuckDBPyConnection", finding: "Finding", labels: Mapping[str, str]) -> dict[str, Any]:
    """Rows behind a finding, and how many of them carry which label."""
    uids = [uid for (uid,) in con.execute(f"select event_uid from ({finding.sql})").fetchall()]
    return {"rows": len(uids), "labels": dict(Counter(labels[uid] for uid in uids if uid in labels))}


def kept(finding: "Finding", behind: Mapping[str, Any]) -> dict[str, Any]:
    """A finding as JSON: all that linking, scoring and judging need."""
    from queries.findings import as_json

    return {
        "id": finding.finding_id, "detection": finding.detection, "family": finding.family, "severity": finding.severity,
        "score": finding.score, "first": finding.first_seen.isoformat(), "last": finding.last_seen.isoformat(),
        "entities": {key: list(values) for key, values in finding.entities.items()}, "tactics": list(finding.tactics),
        "facts": json.loads(as_json(finding.facts)), **behind,
    }  # fmt: skip


def claim(entry: Mapping[str, Any]) -> Claim:
    """A kept finding as it is judged."""
    own = entry["entities"]
    return Claim(
        id=entry["id"], detection=entry["detection"], day=datetime.fromisoformat(entry["last"]).astimezone(UTC).date(),
        score=entry["score"], severity=entry["severity"], sources=frozenset(own["source_networks"]) | _own_addresses(own),
        identities=frozenset(own["credential_ids"]) | frozenset(own["principal_ids"]),
        mailboxes=frozenset(own["mailboxes"]), rows=entry["rows"], labels=entry["labels"],
    )  # fmt: skip


def _own_addresses(entities: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Addresses that a finding names: `source_ips` lists all of its evidence, which names nobody when they are many."""
    addresses = entities["source_ips"]
    return frozenset(addresses) if len(addresses) == 1 else frozenset()


def finding_of(entry: Mapping[str, Any]) -> "Finding":
    """A kept finding as the linking takes it."""
    from queries.evidence import Evidence
    from queries.findings import Finding

    return Finding(
        finding_id=entry["id"], detection=entry["detection"], title="", family=entry["family"], severity=entry["severity"],
        score=entry["score"], first_seen=datetime.fromisoformat(entry["first"]),
        last_seen=datetime.fromisoformat(entry["last"]), explanation="",
        entities={key: tuple(values) for key, values in entry["entities"].items()}, tactics=tuple(entry["tactics"]),
        techniques=(), evidence=Evidence("access_events", (), entry["rows"]), sql="", facts=entry["facts"],
    )  # fmt: skip


def around_json(around: "Surroundings") -> dict[str, Any]:
    """Surroundings as JSON."""
    return {
        "n_tenants": around.n_tenants, "declared": sorted(around.declared), "shared": sorted(map(list, around.shared)),
        "arrivals": [[kind, value, sorted(map(str, days))] for (kind, value), days in sorted(around.arrivals.items())],
    }  # fmt: skip


def around_of(entry: Mapping[str, Any]) -> "Surroundings":
    """The other way."""
    from queries.cases import Surroundings

    arrivals = {(kind, value): [date.fromisoformat(day) for day in days] for kind, value, days in entry["arrivals"]}
    shared = frozenset((kind, value) for kind, value in entry["shared"])
    return Surroundings(entry["n_tenants"], frozenset(entry["declared"]), arrivals, shared)


def replay(
    archive: "Archive", truth: Sequence[Step], labels: pl.DataFrame, window: tuple[date, date]
) -> dict[str, dict[str, str]]:
    """Hunts as a daily job does, each over the 30 days that end with its day: on which day does a case that is shown first hit
    each campaign? The best `budget` of the cases that hold a finding not shown before are shown. Only days with planted activity
    of a campaign that is not found yet are hunted."""
    of_label = {step.label: step.campaign for step in truth if step.campaign}
    days: dict[date, set[str]] = defaultdict(set)
    for label, day in labels.select("label", "date").unique().iter_rows():
        if label in of_label and window[0] <= day <= window[1]:
            days[day].add(of_label[label])
    found: dict[str, dict[str, str]] = {str(budget): {} for budget in BUDGETS}
    seen: dict[str, set[str]] = {budget: set() for budget in found}
    known = dict(labels.select("event_uid", "label").iter_rows())
    for day, campaigns in sorted(days.items()):
        if not any(campaigns - by.keys() for by in found.values()):
            continue
        cases = _cases_on(archive, day, known)
        for budget, by in found.items():
            new = [case for case in cases if any(c.id not in seen[budget] for c in case)][: int(budget)]
            seen[budget].update(c.id for case in new for c in case)
            by.update({campaign: str(day) for case in new for campaign in hits(case, truth) if campaign not in by})
    return found


def _cases_on(archive: "Archive", day: date, labels: Mapping[str, str]) -> list[list[Claim]]:
    from queries.engine import hunt

    con = archive.connect()
    result = hunt(con, window_from=day - timedelta(days=HUNT_DAYS - 1), window_to=day, budget=max(BUDGETS))
    return [[claim(kept(f, evidence_labels(con, f, labels))) for f in case.findings] for case in result.cases]


def answers(
    out: Path, seed: int, kind: str, *, tenants: int, days: int, campaigns: str | None, with_replay: bool
) -> dict[str, Any]:
    """Everything about one world that the evaluation keeps. `kind` is incident or null."""
    from flows.pipeline.hunting import hunt_archive
    from queries.cases import surroundings
    from queries.engine import LONGEST_BASELINE
    from tests.evaluate.baselines import all_baselines

    seconds, began = {}, time.monotonic()

    def lap(name: str) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[name], began = round(now - began, 1), now

    archive, places = build(
        out, seed=seed, tenants=tenants, days=days, incident=kind == "incident", **planted(campaigns)
    )
    lap("write and ingest")
    told = json.loads((out / "truth.json").read_text())
    labels = labelled_events(archive, out, places)
    by_uid = dict(labels.select("event_uid", "label").iter_rows())
    last = date.fromisoformat(told["to"][:10]) - timedelta(days=1)
    first = max(last - timedelta(days=HUNT_DAYS - 1), date.fromisoformat(told["from"][:10]) + timedelta(days=HISTORY))
    result = hunt_archive(archive, begin=str(first), end=str(last))
    lap("hunt")
    con = archive.connect()
    around = surroundings(con, result.findings, first - timedelta(days=LONGEST_BASELINE), last)
    findings = [kept(finding, evidence_labels(con, finding, by_uid)) for finding in result.findings]
    lap("label evidence")
    baselines = all_baselines(archive, labels, first, last)
    lap("baselines")
    truth = [Step.of(entry) for entry in told["steps"]]
    again = replay(archive, truth, labels, (first, last)) if with_replay and truth else None
    lap("daily hunts")
    return {
        "seed": seed, "kind": kind, "tenants": tenants, "days": days, "window": [str(first), str(last)],
        "steps": told["steps"], "benign": told["benign"], "findings": findings, "around": around_json(around),
        "cases": len(result.cases), "baselines": baselines, "replay": again, "seconds": seconds,
        "skipped": {item.id: item.reason for item in result.detections_skipped},
        "events": {t: archive.scan(t).select(pl.len()).collect().item() for t in ("access_events", "mail_events", "change_events")},
        "labelled": {"records": sum(map(len, places.values())), "events": labels.height},
    }  # fmt: skip


def main() -> None:
    """Reads the arguments as JSON, prints the answers as one JSON line."""
    given = json.loads(sys.argv[1])
    folder = Path(tempfile.mkdtemp(prefix="evaluate-")).resolve()
    try:
        print(json.dumps(answers(folder / "world", **given), ensure_ascii=True))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
