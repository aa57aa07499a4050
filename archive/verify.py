"""Whether an archive still is what was stored: evidence files, custody chain, table files, imported rules."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from archive import delta
from archive.evidence import CHUNK, hash_file, open_binary
from archive.register import TABLE as EVIDENCE
from data_contracts import names
from data_contracts.errors import GatehoundError

if TYPE_CHECKING:
    from archive.store import Archive

INTEGRITY = "integrity"  # something is not what was stored
WARNING = "warning"  # something cannot be checked
REMARK = "remark"  # something to know, nothing wrong
RULES = "rules"  # folder of imported rules
_LARGEST_RULE = 64 * 1024 * 1024  # bytes of a rule's file; the largest that is ever stored is far smaller


@dataclass(frozen=True, slots=True)
class Problem:
    """A fact about one place.

    `kind` is evidence, custody, table, orphan or rule; `severity` is integrity, warning or remark.
    """

    kind: str
    place: str
    fact: str
    severity: str


def verify(archive: "Archive") -> list[Problem]:
    """Checks everything; an empty list means that nothing differs from what was stored.

    A missing evidence file is a warning, since evidence is kept elsewhere and may have been moved; a table file that is
    missing or of another size, a changed evidence file, a broken custody chain and an imported rule that is not as the
    custody log has it are integrity problems.
    """
    return [*_custody(archive), *_rules(archive), *_tables(archive), *_evidence(archive)]


def _custody(archive: "Archive") -> Iterator[Problem]:
    broken = archive.custody_log.verify_chain()
    if broken is not None:
        yield Problem("custody", broken.place, broken.fact, INTEGRITY)


@dataclass(frozen=True, slots=True)
class _Rule:
    """What the custody log has of a rule: hashes of its text and of its file; of neither when it was removed."""

    text: str | None
    file: str | None


def _rules(archive: "Archive") -> Iterator[Problem]:
    """Every imported rule's file against the custody log."""
    told, sizes = _told_rules(archive), archive.place.sizes(RULES)
    for name in sorted(sizes):
        rule = told.get(name.removesuffix(".json")) if name.endswith(".json") else None
        if rule is None:
            fact = "no import of it is in the custody log"
        elif rule.text is None:
            fact = "the custody log has that it was removed"
        else:
            fact = _rule_fault(archive, name, sizes[name], rule)
        if fact:
            yield Problem("rule", f"{RULES}/{name}", fact, INTEGRITY)
    for name, rule in sorted(told.items()):
        if rule.text is not None and f"{name}.json" not in sizes:
            yield Problem("rule", f"{RULES}/{name}.json", "not found", INTEGRITY)


def _told_rules(archive: "Archive") -> dict[str, _Rule]:
    """By id, what the last word about each rule in the custody log is."""
    told: dict[str, _Rule] = {}
    for entry in archive.custody_log.entries():
        details = entry.get("details")
        named = details.get("rules") if isinstance(details, dict) else None
        if entry.get("action") == "rules_import" and isinstance(named, dict):
            files = entry["details"].get("files")
            held = files if isinstance(files, dict) else {}  # logs written before had no hash of the file
            told |= {str(name): _Rule(str(text), held.get(name)) for name, text in named.items()}
        elif entry.get("action") == "rules_remove" and isinstance(named, list):
            told |= {str(name): _Rule(None, None) for name in named}
    return told


def _rule_fault(archive: "Archive", name: str, size: int, rule: _Rule) -> str:
    """What is wrong with a rule's file; empty when nothing is."""
    if size > _LARGEST_RULE:
        return f"is {size} bytes long: no rule is"
    try:
        content = archive.place.read(RULES, name)
    except OSError as error:
        return f"cannot be read: {error.strerror or type(error).__name__}"
    if rule.file is not None:
        now, stored = hashlib.sha256(content).hexdigest(), rule.file
        return "" if now == stored else f"sha256 is {now}, the custody log has {stored}"
    try:
        held = json.loads(content)
        text = held["text"].encode()
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "holds no rule"
    now = hashlib.sha256(text).hexdigest()
    return "" if now == rule.text else f"sha256 of the rule's text is {now}, the custody log has {rule.text}"


def _tables(archive: "Archive") -> Iterator[Problem]:
    for name in names():
        try:
            yield from _table(archive, name)
        except GatehoundError as error:
            yield Problem("table", f"tables/{name}", error.fact, INTEGRITY)
        except ValueError as error:
            yield Problem("table", f"tables/{name}/_delta_log", f"cannot be read: {error}", INTEGRITY)


def _table(archive: "Archive", name: str) -> Iterator[Problem]:
    folder = f"tables/{name}"
    present = archive.place.sizes("tables", name)
    files = {path: size for path, size in present.items() if path.endswith(".parquet") and not path.startswith("_")}
    found = archive.snapshot(name)
    if found is None:
        if files:
            fact = f"{len(files)} Parquet files without a table log: never committed, or the log was lost"
            yield Problem("table", folder, fact, WARNING)
        return
    expected = dict(found.files.select("path", "bytes").iter_rows())
    for path, size in sorted(expected.items()):
        if path not in files:
            yield Problem("table", f"{folder}/{path}", "not found", INTEGRITY)
        elif files[path] != size:
            yield Problem("table", f"{folder}/{path}", f"is {files[path]} bytes long, committed were {size}", INTEGRITY)
    loose = sorted(files.keys() - expected.keys())
    former = delta.removed_paths(archive.place, name) if loose else set()
    for path in loose:
        if path not in former:
            yield Problem("orphan", f"{folder}/{path}", "was staged and never committed", REMARK)


def _evidence(archive: "Archive") -> Iterator[Problem]:
    try:
        rows = archive.scan(EVIDENCE).collect()
    except (GatehoundError, pl.exceptions.PolarsError, OSError) as error:
        yield Problem("evidence", "tables/evidence", f"the register cannot be read: {type(error).__name__}", INTEGRITY)
        return
    taken = rows.filter(pl.col("status") != "refused").sort("path")
    for (path,), ingests in taken.group_by("path", maintain_order=True):
        states = _plain_states if (ingests["container"] == "none").all() else _packed_states
        try:
            yield from states(str(path), ingests)
        except FileNotFoundError:
            yield Problem("evidence", str(path), "not found", WARNING)
        except OSError as error:
            yield Problem("evidence", str(path), f"cannot be read: {error.strerror or type(error).__name__}", WARNING)


def _plain_states(path: str, ingests: pl.DataFrame) -> Iterator[Problem]:
    """A plain file may have grown since: each ingest's bytes must still be its beginning."""
    prefixes, length = prefix_hashes(path, ingests["content_bytes"].unique().to_list())
    newest = ingests["content_bytes"].max()
    for size, digest in ingests.select("content_bytes", "file_sha256").unique(maintain_order=True).iter_rows():
        if prefixes.get(size) != digest:
            yield _changed(path, digest, prefixes.get(size), f"of its first {size} bytes " if length > size else "")
    if isinstance(newest, int) and length > newest:
        yield Problem("evidence", path, f"has grown by {length - newest} bytes since it was ingested", REMARK)


def _packed_states(path: str, ingests: pl.DataFrame) -> Iterator[Problem]:
    now = hash_file(path)
    # A file replaced and ingested again has several hashes; only the newest can be on disk.
    latest = ingests.sort("ingested_at").row(-1, named=True)
    if latest["file_sha256"] != now:
        yield _changed(path, latest["file_sha256"], now, "")


def _changed(path: str, stored: str, now: str | None, part: str) -> Problem:
    changed = f"sha256 {part}is {now}, the register has {stored}"
    return Problem("evidence", path, changed if now else f"is shorter than at sha256 {stored}", INTEGRITY)


def prefix_hashes(path: str, sizes: list[int]) -> tuple[dict[int, str], int]:
    """sha256 of the first n bytes of a file for each n that it reaches, in one reading, and the file's length."""
    digest, length = hashlib.sha256(), 0
    found: dict[int, str] = {0: digest.hexdigest()} if 0 in sizes else {}
    waiting = sorted({size for size in sizes if size > 0}, reverse=True)
    with open_binary(path) as raw:
        while chunk := raw.read(CHUNK):
            view: Any = memoryview(chunk)
            while waiting and waiting[-1] <= length + len(view):
                part = digest.copy()
                part.update(view[: waiting[-1] - length])
                found[waiting.pop()] = part.hexdigest()
            digest.update(view)
            length += len(view)
    return found, length
