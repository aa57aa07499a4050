"""Imported rules of an archive: its folder `rules`, one JSON file for each, with the rule's own text.

A file has id (of the detection), rule_id (the rule's own), title, level, file (what it was read from), imported_at,
text (the YAML documents: of a correlation those of the rules that it refers to before its own) and sha256 of the text.
The text is data: it is turned into a statement anew whenever it is used, and never stored as one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archive.store import Archive
from data_contracts.errors import RefusedError, UsageError
from queries.catalogue import Detection, EvidenceRule, Requirement, catalogue
from queries.text import plain

if TYPE_CHECKING:
    import duckdb

    from queries.sigma.reading import Document

FOLDER = "rules"
_ID = re.compile(r"S-[0-9A-F]{8,32}")
_MOST_BYTES = 8 * 1024 * 1024  # of one stored rule


def is_imported(name: str) -> bool:
    """Whether a detection's id is that of an imported rule."""
    return _ID.fullmatch(name.upper()) is not None


def stored(archive: Archive) -> list[str]:
    """Ids of the imported rules, sorted."""
    names = (path.removesuffix(".json") for path in archive.place.sizes(FOLDER) if path.endswith(".json"))
    return sorted(name for name in names if _ID.fullmatch(name))


def entry(archive: Archive, name: str) -> dict[str, Any]:
    """What is stored of an imported rule.

    Raises:
        UsageError: it is not what was stored, or there is none.
    """
    try:
        content = archive.place.read(FOLDER, f"{name}.json")
    except FileNotFoundError:
        raise UsageError(f"there is no imported rule {plain(name)}", "gatehound rules list -a ARCHIVE") from None
    place = f"{FOLDER}/{name}.json"
    try:
        held = json.loads(content) if len(content) <= _MOST_BYTES else None
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict) or held.get("id") != name or not isinstance(held.get("text"), str):
        raise UsageError(f"{place} is not what was stored", "import the rule again with --clobber")
    if hashlib.sha256(held["text"].encode()).hexdigest() != held.get("sha256"):
        raise UsageError(f"{place} was changed since the rule was imported", "import the rule again with --clobber")
    return held


def imported(archive: Archive, names: Sequence[str] | None = None) -> tuple[Detection, ...]:
    """The imported rules as detections, sorted by id.

    One that cannot be used any more is there too, and says why instead of running.

    Args:
        archive: the archive.
        names: only these, in upper case; by default all.
    """
    held = [name for name in stored(archive) if names is None or name in names]
    return tuple(_detection(archive, name) for name in held)


def known(archive: Archive | None) -> tuple[Detection, ...]:
    """The detections of this installation, then those imported into the archive."""
    return (*catalogue(), *(() if archive is None else imported(archive)))


def find_in(archive: Archive | None, name: str) -> Detection:
    """One detection of this installation or of an archive by its id, in either case. Raises UsageError."""
    from queries.catalogue import find

    if not is_imported(name):
        return find(name)
    if archive is None:
        raise UsageError(f"{name.upper()} is an imported rule: it lies in an archive", "name it with -a")
    found = imported(archive, [name.upper()])
    if not found:
        raise UsageError(f"there is no imported rule {name.upper()}", f"gatehound rules list -a {archive.uri}")
    return found[0]


def remove(archive: Archive, names: Sequence[str]) -> list[str]:
    """Takes imported rules out of an archive; the custody log keeps that they were there. Raises UsageError."""
    wanted = [name.upper() for name in dict.fromkeys(names)]
    missing = sorted(set(wanted) - set(stored(archive)))
    if missing:
        raise UsageError(f"there is no imported rule {', '.join(missing)}", f"gatehound rules list -a {archive.uri}")
    for name in wanted:
        archive.place.remove(archive.place.path(FOLDER, f"{name}.json"))
    archive.custody("rules_remove", {"rules": wanted})
    return wanted


def _detection(archive: Archive, name: str) -> Detection:
    from queries.sigma.reading import documents
    from queries.sigma.rules import NotImportedError, convert

    try:
        held = entry(archive, name)
    except UsageError as error:
        return _broken(name, error.fact)
    try:
        return convert(documents(held["text"].encode()), name).detection
    except (NotImportedError, RefusedError) as error:
        return _broken(name, str(error), str(held.get("title", "")), held["text"])


def _broken(name: str, why: str, title: str = "", text: str = "") -> Detection:
    """A detection that never runs and tells why."""
    return Detection(
        id=name,
        stem=name.lower(),
        path=Path(FOLDER, f"{name}.json"),
        title=plain(title) if title else "An imported rule that cannot be used",
        hypothesis=plain(why),
        family="exposure",
        severity="info",
        attack=(),
        tables=(),
        needs=(),
        requires=(Requirement("select false", plain(why)),),
        parameters=(),
        false_positives=("none: it does not run",),
        blind_spots=("it does not run",),
        runbook=("import the rule again",),
        explanation="",
        identity=(),
        evidence=EvidenceRule("change_events", {}, "", ("first_seen", "last_seen")),
        text=text,
    )


def empty_tables() -> "duckdb.DuckDBPyConnection":
    """All tables, without rows, for `self_test`."""
    from queries.testing import database

    return database({})


def self_test(con: "duckdb.DuckDBPyConnection", detection: Detection) -> Iterator[str]:
    """What is wrong with an imported rule's statements: they must be single SELECTs, and run on empty tables."""
    import duckdb

    from archive.sqlview import check_read_only
    from queries.engine import run_detection

    for requirement in detection.requires:
        if requirement.sql == "select false":
            yield requirement.reason
            return
    for part in detection.parts or (detection,):
        try:
            check_read_only(part.sql or "")
            con.execute(f"select 1 from {part.evidence.table} where {part.evidence.where} limit 0")
        except (UsageError, duckdb.Error) as error:
            yield plain(next(iter(str(error).splitlines()), "refused"))
            return
    answer = run_detection(con, detection, _ANY_WINDOW)
    if isinstance(answer, str):
        yield answer


_ANY_WINDOW = {"window_from": datetime(2021, 1, 1, tzinfo=UTC), "window_to": datetime(2021, 1, 2, tzinfo=UTC)}


def text_of(documents: "Sequence[Document]") -> str:
    """Documents as one text."""
    return "---\n".join(document.text for document in documents)
