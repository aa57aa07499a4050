"""Published records of simulated techniques, each file by itself: is the technique found, by what, and if not, why not?

`python -m tests.evaluate.labelled SAMPLES [--document docs/labelled_samples.md]`, where SAMPLES is a folder with files of the
Microsoft 365 unified audit log whose names hold the ATT&CK technique (`t1564.008_New_inbox_rule.csv`). Each file becomes an archive
of its own, without reference tables, and is hunted over its own days with the shipped detections and parameters.
"""

import argparse
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from queries.engine import HuntResult

NAME = re.compile(r"(?:^|__)t(\d{4}(?:\.\d{3})?)[_-](.+?)(?:\.[a-z]+)?$", re.IGNORECASE)
# What the catalogue asks for where an event alone is no finding.
NOTES = {
    "T1098.001": "A role alone is everyday administration: L05 is about a role that is then used to read mail.",
    "T1098.002": "A permission alone is everyday administration: L05 and M05 are about mailboxes that are then opened with it. The "
    "full access is given by the service itself, to its discovery group. X06 is about permissions for everybody.",
    "T1098.003": "As T1098.001.",
    "T1114.002": "The switch opens a protocol; the detections are about what is then read over it, from where and with what client.",
    "T1531": "Access that is taken away reads no mail.",
    "T1550.001": "The policy lets users consent; L05 and T05 are about a consent that is given, and the application that then reads.",
    "T1556.006": "Weaker sign-in shows in what follows: a new network (T01), a new client (T04).",
    "T1592.004": "One account that signs in to many services, with success: T01, T04 and T07 know it by what the account did before, "
    "and need 14 to 21 days of that.",
}
TABLES = ("access_events", "change_events", "mail_events")


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one file.

    `found` are detection, severity and title of each finding. `silent` are the detections for the technique that found nothing, each
    with the reason that the hunt gives (empty where it gives none: it looked and saw nothing).
    """

    technique: str
    simulated: str
    kind: str
    events: int
    found: tuple[tuple[str, str, str], ...]
    silent: tuple[tuple[str, str], ...]


def samples(folder: Path) -> list[Path]:
    """The files of a folder whose names hold a technique, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and NAME.search(path.name))


def answer(path: Path) -> Answer:
    """Ingests a file into an archive of its own and hunts over all of its days."""
    from archive.store import Archive
    from flows.pipeline.hunting import hunt_archive
    from flows.pipeline.running import ingest_paths

    named = NAME.search(path.name)
    assert named is not None, path.name
    technique = f"T{named[1]}"
    with tempfile.TemporaryDirectory(prefix="labelled-") as folder:
        place = str(Path(folder, "archive"))
        Archive.create(place)
        ingest_paths(place, [str(path)])
        archive = Archive.open(place)
        days = sorted({day for table in TABLES for day in archive.dates(table)})
        events = sum(sum(archive.rows_by_date(table).values()) for table in TABLES)
        if not days:
            return Answer(technique, _words(named[2]), path.suffix[1:], 0, (), ())
        result = hunt_archive(archive, begin=str(days[0]), end=str(days[-1]), record=False)
    found = tuple((finding.detection, finding.severity, finding.title) for finding in result.findings)
    silent = () if found else _silent(result, technique)
    return Answer(technique, _words(named[2]), path.suffix[1:], events, found, silent)


def _words(text: str) -> str:
    return " ".join(re.split(r"[_\s]+", text)).strip()


def _silent(result: "HuntResult", technique: str) -> tuple[tuple[str, str], ...]:
    """The detections that name the technique, each with why it could not find it."""
    from queries.catalogue import catalogue

    why = {item.id: [item.reason] for item in result.detections_skipped}
    for part in result.without_subjects:
        why.setdefault(part.id, []).append(part.reason if part.part is None else f"{part.part}: {part.reason}")
    meant = [detection.id for detection in catalogue() if technique in {named.technique for named in detection.attack}]
    return tuple((name, "; ".join(why.get(name, ()))) for name in meant)


def document(answers: Sequence[Answer]) -> str:
    """Markdown."""
    from tests.evaluate.document import table

    rows = [[a.technique, a.simulated, a.kind, a.events, _outcome(a)] for a in answers]
    hit = sum(bool(a.found) for a in answers)
    uncovered = sorted({a.technique for a in answers if not a.found and not a.silent})
    none = f" No detection of the catalogue names {', '.join(uncovered)}." if uncovered else ""
    return f"""\
# Labelled samples

Published records of the Microsoft 365 unified audit log, each file the trace of one technique that somebody simulated, with the technique
in its name (github.com/blueteam0ps/det-eng-samples, Apache-2.0). The files are not part of this project. Each became an archive of its
own, with no other log, no reference table and no day before, and was hunted over its own days with the shipped detections and their own
parameters. Most detections hold a log against its own past, or a change against what is done with it: of a file with one event they say
that they could judge nobody, and do not guess.

{hit} of {len(answers)} files are found.{none}

Command: `python -m tests.evaluate.labelled SAMPLES --document docs/labelled_samples.md`

{table(["technique", "what was simulated", "file", "events", "found by, or why not"], rows, left=5)}

{_reasons(answers)}"""


def _outcome(found: Answer) -> str:
    if found.found:
        return "; ".join(f"**{name}** {title} ({severity})" for name, severity, title in dict.fromkeys(found.found))
    if not found.silent:
        return "not found, see below: no detection names the technique"
    return "not found, see below"


def _reasons(answers: Sequence[Answer]) -> str:
    """Of the techniques that are not found: what the catalogue asks for, and what the hunt says of each detection."""
    lines = []
    for technique in sorted({given.technique for given in answers if not given.found}):
        by: dict[str, list[str]] = defaultdict(list)
        for given in answers:
            for name, why in given.silent if given.technique == technique else ():
                told = by[why or "looked and found nothing"]
                told += [name] * (name not in told)
        said = " ".join(f"{', '.join(names)}: {why}." for why, names in by.items())
        lines.append(f"- {technique}. {NOTES.get(technique, '')}" + (f" The hunt says: {said}" if said else ""))
    return "What is not found, and why:\n\n" + "\n".join(lines) + "\n" if lines else ""


def main() -> None:
    """Asks each file and prints the document, or writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--document", type=Path)
    given = parser.parse_args()
    text = document([answer(path) for path in samples(given.samples)])
    if given.document:
        given.document.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
