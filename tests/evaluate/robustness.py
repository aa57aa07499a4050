"""Do the answers stay the same when the same logs come in another order, partly twice, or from a host whose clock is wrong?

Run as a process of its own: `python -m tests.evaluate.robustness '{"seed": 1, ...}'`.
"""

import contextlib
import gzip
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from tests.evaluate.worlds import ingested, planted

if TYPE_CHECKING:
    from archive.store import Archive
    from queries.engine import HuntResult

DOUBLED = 0.01
SKEW = 420.0  # seconds
TABLES = ("access_events", "mail_events", "change_events")


def in_disorder(out: Path, folder: str, seed: int) -> "Archive":
    """An archive of the same logs, file by file in random order, with the derived tables caught up half way and at the end."""
    from archive.store import Archive
    from flows.pipeline.deriving import refresh
    from flows.pipeline.ingesting import Ingest, Options
    from flows.pipeline.reading import How
    from flows.pipeline.references import load, read_table

    archive = Archive.create(str(out / folder))
    load(archive, [str(out / "reference")])
    options = Options(
        read_table("collection", str(out / "collection.csv")),
        How(None, None, None, None, None, None),
        strict=False,
        geoip=None,
    )
    files = sorted(path for path in (out / "logs").rglob("*") if path.is_file())
    random.Random(seed).shuffle(files)
    for number, path in enumerate(files, 1):
        Ingest(Archive.open(str(out / folder)), options).run([str(path)])
        if number == len(files) // 2:
            refresh(Archive.open(str(out / folder)))
    archive = Archive.open(str(out / folder))
    refresh(archive)
    return archive


def doubled(out: Path, other: Path, seed: int) -> int:
    """Copies a world with one record in a hundred written twice; returns how many. Zip files are copied as they are."""
    rng, count = random.Random(seed), 0
    shutil.copytree(out / "reference", other / "reference")
    shutil.copy(out / "collection.csv", other / "collection.csv")
    for path in sorted(path for path in (out / "logs").rglob("*") if path.is_file()):
        target = other / path.relative_to(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        if path.suffix != ".zip":
            text, more = _twice(rng, gzip.decompress(data) if path.suffix == ".gz" else data)
            count += more
            data = gzip.compress(text, compresslevel=1, mtime=0) if path.suffix == ".gz" else text
        target.write_bytes(data)
        os.utime(target, (path.stat().st_mtime, path.stat().st_mtime))
    return count


def _twice(rng: random.Random, data: bytes) -> tuple[bytes, int]:
    """The text with some lines written twice: no heads, and of an array only lines that end with a comma."""
    is_array, kept, count = data.startswith(b"["), list[bytes](), 0
    for number, text in enumerate(data.split(b"\n")):
        kept.append(text)
        is_record = text.endswith(b",") if is_array else text and not text.startswith(b"#") and number > 0
        if is_record and rng.random() < DOUBLED:
            kept.append(text)
            count += 1
    return b"\n".join(kept), count


@contextlib.contextmanager
def wrong_clock(name: str) -> Iterator[None]:
    """While the context lasts, the mail host of this name writes times 7 minutes ahead."""
    from flows.world.emit_mail import MailHost

    own = MailHost._stamp

    def stamp(self: MailHost, ts: float) -> str:
        return own(self, ts + (SKEW if self.name == name else 0.0))

    MailHost._stamp = stamp  # type: ignore[method-assign]
    try:
        yield
    finally:
        MailHost._stamp = own  # type: ignore[method-assign]


def hunted(archive: "Archive") -> "HuntResult":
    """The product's own hunt, not recorded."""
    from flows.pipeline.hunting import hunt_archive

    return hunt_archive(archive, record=False)


def compared(before: "HuntResult", after: "HuntResult") -> dict[str, Any]:
    """What differs between two hunts: findings by id, their scores, their evidence; cases by their findings and by whom they name."""
    then, now = ({f.finding_id: f for f in result.findings} for result in (before, after))
    both = sorted(then.keys() & now.keys())
    cases = [{frozenset(f.finding_id for f in case.findings) for case in result.cases} for result in (before, after)]
    about = [sorted(_about(case.entities) for case in result.cases) for result in (before, after)]
    return {
        "findings": len(now),
        "gone": [_told(then[i]) for i in sorted(then.keys() - now.keys())],
        "new": [_told(now[i]) for i in sorted(now.keys() - then.keys())],
        "other score": [[_told(then[i]), then[i].score, now[i].score] for i in both if then[i].score != now[i].score],
        "other evidence": [_told(then[i]) for i in both if then[i].evidence.count != now[i].evidence.count],
        "other event ids": sum(then[i].evidence.event_uids != now[i].evidence.event_uids for i in both),
        "cases": len(after.cases),
        "same findings in the same cases": cases[0] == cases[1],
        "cases about the same": about[0] == about[1],
        "cases only before": [a for a in about[0] if a not in about[1]],
        "cases only after": [a for a in about[1] if a not in about[0]],
    }


def _told(finding: Any) -> str:
    who = [
        finding.entities[key][0]
        for key in ("credential_ids", "principal_ids", "source_networks", "mailboxes")
        if finding.entities[key]
    ]
    return " ".join([finding.detection, finding.severity, *finding.entities["tenant_ids"][:3], *who[:2]])


def _about(entities: Mapping[str, Sequence[str]]) -> str:
    """Tenants, credentials and principals, and networks that a case names: the same case even where an id depends on a time."""
    keys = ("tenant_ids", "credential_ids", "principal_ids", "source_networks")
    return " | ".join(",".join(entities[key]) for key in keys)


def counts(archive: "Archive") -> dict[str, int]:
    """Events by table."""
    return {table: archive.scan(table).select(pl.len()).collect().item() for table in TABLES}


def answers(folder: Path, seed: int, *, tenants: int, days: int, campaigns: str | None) -> dict[str, Any]:
    """The base, and the three variants held against it."""
    from flows.world.world import write_world

    world = {"seed": seed, "tenants": tenants, "days": days, **planted(campaigns)}
    out = folder / "world"
    written = write_world(out, **world)
    base_archive = ingested(out)
    base = hunted(base_archive)
    hosts = sorted(f"mx1.{t.domain}" for t in written.tenants if t.journal)
    journals = [s["tenant_id"] for s in written.truth["steps"] if s["campaign"] == "D"]
    host = next((f"mx1.{t.domain}" for t in written.tenants if t.tenant_id in journals), hosts[0] if hosts else "")
    found: dict[str, Any] = {
        **world, "findings": len(base.findings), "cases": len(base.cases), "events": counts(base_archive), "host": host,
    }  # fmt: skip
    again = in_disorder(out, "disorder", seed)
    found["file by file, in random order"] = compared(base, hunted(again)) | {"events": counts(again)}
    other = folder / "doubled"
    found["records doubled"] = doubled(out, other, seed)
    twice = ingested(other)
    found["one record in a hundred twice"] = compared(base, hunted(twice)) | {"events": counts(twice)}
    with wrong_clock(host):
        write_world(folder / "skewed", **world)
    late = ingested(folder / "skewed")
    found["one host's clock 7 minutes ahead"] = compared(base, hunted(late)) | {"events": counts(late)}
    return found


VARIANTS = ("file by file, in random order", "one record in a hundred twice", "one host's clock 7 minutes ahead")


def section(found: Mapping[str, Any]) -> str:
    """The part of the document."""
    from tests.evaluate.document import table

    rows = [["as it is", found["findings"], *[""] * 5, found["cases"], "", ""]]
    for name in VARIANTS:
        own = found[name]
        same = "yes" if own["same findings in the same cases"] else "no"
        about = "yes" if own["cases about the same"] else "no"
        rows.append(
            [
                name,
                own["findings"],
                *(len(own[key]) for key in ("gone", "new", "other score", "other evidence")),
                own["other event ids"],
                own["cases"],
                same,
                about,
            ]
        )
    header = [
        "",
        "findings",
        "gone",
        "new",
        "other score",
        "other number of events",
        "other event ids",
        "cases",
        "same findings in them",
        "about the same",
    ]
    events = sum(found["events"].values())
    intro = f"""Seed {found["seed"]}, {events:,} events. The same logs, ingested in another way, are hunted and held against the first hunt,
finding by finding. {found["records doubled"]:,} records were doubled; the clock of {found["host"]} was put ahead. The id of an
event that has none of its own comes from its file, so that it is another where the file is."""
    text = [
        "## Robustness",
        intro,
        table(header, rows),
    ]
    for name in VARIANTS:
        own, said = found[name], []
        changes = {t: own["events"][t] - n for t, n in found["events"].items() if own["events"][t] != n}
        if changes:
            said.append("events: " + ", ".join(f"{table_name} {change:+,}" for table_name, change in changes.items()))
        said += [f"{key}: " + "; ".join(own[key]) for key in ("gone", "new", "other evidence") if own[key]]
        said += (
            ["other score: " + "; ".join(f"{who} {a:g} to {b:g}" for who, a, b in own["other score"])]
            if own["other score"]
            else []
        )
        if said:
            text.append(f"{name[0].upper()}{name[1:]}:\n\n" + "\n".join(f"- {item}." for item in said))
    return "\n\n".join(text)


def main() -> None:
    """Reads the arguments as JSON, prints the answers as one JSON line."""
    with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
        print(json.dumps(answers(Path(folder).resolve(), **json.loads(sys.argv[1]))))


if __name__ == "__main__":
    main()
