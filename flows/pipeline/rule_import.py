"""Import of Sigma rules into an archive: what is taken, and of what is not, why."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from archive.store import Archive
from data_contracts.errors import RefusedError, UsageError
from flows.pipeline.rule_files import FOLDER, empty_tables, entry, self_test, stored, text_of
from queries.text import iso, plain

if TYPE_CHECKING:
    import duckdb

    from queries.sigma.reading import Document
    from queries.sigma.rules import Converted

MOST_FILES = 20_000
_SUFFIXES = (".yml", ".yaml")
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(slots=True)
class Outcome:
    """What became of one rule. `result` is imported, known, replaced, part (of a correlation) or refused."""

    file: str
    rule_id: str = ""
    title: str = ""
    id: str | None = None
    level: str | None = None
    result: str = "refused"
    tables: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    sha256: str | None = None


@dataclass(slots=True)
class _Rule:
    file: str
    document: "Document"
    needed: "list[_Rule]" = field(default_factory=list)  # rules that it refers to
    is_part: bool = False


def import_rules(
    archive: Archive, paths: Sequence[Path], *, clobber: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Imports the Sigma rules of files and folders.

    Args:
        archive: the archive.
        paths: files, and folders with files that end in .yml or .yaml.
        clobber: replace a rule that is there with another text.
        dry_run: only say what would become of each.

    Returns:
        rules (for each file, rule_id, title, id, level, result, tables, reasons, notes, sha256), totals (by result) and
        reasons (how many rules were refused for each).

    Raises:
        UsageError: a path is not there, or there are too many files.
    """
    from queries.sigma.reading import documents

    outcomes: list[Outcome] = []
    found: list[_Rule] = []
    for path in _files(paths):
        try:
            found += [_Rule(str(path), document) for document in documents(_content(path))]
        except RefusedError as error:
            outcomes.append(Outcome(str(path), reasons=(error.fact,)))
        except OSError as error:
            outcomes.append(Outcome(str(path), reasons=(f"cannot be read: {error.strerror}",)))
    _refer(found)
    taken = {name: entry_or_none(archive, name) for name in stored(archive)}
    with empty_tables() as con:
        outcomes += [_outcome(con, rule, taken, clobber=clobber) for rule in found]
    changed = [outcome for outcome in outcomes if outcome.result in ("imported", "replaced")]
    if changed and not dry_run:
        _write(archive, changed, taken)
    return _answer(outcomes)


def entry_or_none(archive: Archive, name: str) -> dict[str, Any] | None:
    """What is stored of an imported rule; None when it is damaged."""
    try:
        return entry(archive, name)
    except UsageError:
        return None


def _files(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
            found |= dict.fromkeys(inside)
        elif path.is_file():
            found[path] = None
        else:
            raise UsageError(f"{path} is not there", "a file with Sigma rules, or a folder with such files")
    if len(found) > MOST_FILES:
        raise UsageError(f"{len(found):,} files are more than {MOST_FILES:,}", "import a part of them")
    if not found:
        raise UsageError("there is no .yml or .yaml file", "name a file, or a folder with Sigma rules")
    return list(found)


def _content(path: Path) -> bytes:
    from queries.sigma.reading import MOST_BYTES

    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def _refer(rules: Sequence[_Rule]) -> None:
    """Joins correlations with the rules that they name; those are a part of them, unless they ask to stay."""
    by_name: dict[str, list[_Rule]] = {}
    for rule in rules:
        for name in rule.document.names:
            by_name.setdefault(name, []).append(rule)
    for rule in rules:
        body = rule.document.values.get("correlation")
        if not isinstance(body, dict):
            continue
        named = body.get("rules")
        for name in dict.fromkeys(str(n) for n in (named if isinstance(named, list) else [named])):
            meant = by_name.get(name) or by_name.get(name.lower()) or []
            meant = [other for other in meant if other.file == rule.file] or meant
            if meant and "correlation" not in meant[0].document.values:
                rule.needed.append(meant[0])
                meant[0].is_part = meant[0].is_part or body.get("generate") is not True


def _outcome(
    con: "duckdb.DuckDBPyConnection", rule: _Rule, taken: dict[str, dict[str, Any] | None], *, clobber: bool
) -> Outcome:
    from queries.sigma.reading import documents
    from queries.sigma.rules import NotImportedError, convert

    document = rule.document
    title = plain(str(document.values.get("title", "")))
    told = Outcome(rule.file, document.rule_id if _UUID.fullmatch(document.rule_id) else "", title)
    text = text_of([*(other.document for other in rule.needed), document])
    told.sha256 = hashlib.sha256(text.encode()).hexdigest()
    name = _name(told, taken)
    try:
        converted = convert(documents(text.encode()), name)  # what will be read when it is used
        problems = tuple(self_test(con, converted.detection))
    except NotImportedError as error:
        problems = error.reasons
    except RefusedError as error:
        problems = (error.fact,)
    if problems:
        told.result, told.reasons = ("part", ()) if rule.is_part else ("refused", problems)
        return told
    told.level, told.tables, told.notes = converted.detection.severity, converted.detection.tables, converted.notes
    if rule.is_part:
        told.result = "part"
        return told
    told.id = name
    before = taken.get(name)
    if before is not None and before["sha256"] == told.sha256:
        told.result = "known"
    elif name in taken and not clobber:
        told.result, told.reasons = "refused", ("it is there already with another text: --clobber replaces it",)
    else:
        told.result = "replaced" if name in taken else "imported"
        taken[name] = _stored(told, converted, text)
    return told


def _write(archive: Archive, changed: Sequence[Outcome], taken: dict[str, dict[str, Any] | None]) -> None:
    files = {}
    for name in sorted({str(outcome.id) for outcome in changed}):
        content = json.dumps(taken[name], ensure_ascii=False, indent=1).encode()
        archive.place.write(content, FOLDER, f"{name}.json")
        files[name] = hashlib.sha256(content).hexdigest()
    texts = {str(outcome.id): outcome.sha256 for outcome in changed}
    archive.custody("rules_import", {"rules": texts, "files": files})


def _name(told: Outcome, taken: dict[str, dict[str, Any] | None]) -> str:
    """S- and the first 8 digits of the rule's own id (of the text's sha256 where it has none); more where taken."""
    digits = (told.rule_id.replace("-", "") or str(told.sha256)[:32]).upper()
    for length in (8, 12, 16, 32):
        name = f"S-{digits[:length]}"
        before = taken.get(name)
        if before is None or (before["rule_id"] or before["sha256"]) == (told.rule_id or told.sha256):
            return name
    return f"S-{digits}"


def _stored(told: Outcome, converted: "Converted", text: str) -> dict[str, Any]:
    return {
        "id": told.id,
        "rule_id": told.rule_id,
        "title": converted.detection.title,
        "level": converted.detection.severity,
        "file": told.file,
        "imported_at": iso(datetime.now(UTC)),
        "sha256": told.sha256,
        "text": text,
    }


def _answer(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    reasons = Counter(reason for outcome in outcomes for reason in outcome.reasons)
    results = Counter(outcome.result for outcome in outcomes)
    order = ("imported", "replaced", "known", "part", "refused")
    return {
        "rules": [dict(_fields(outcome)) for outcome in outcomes],
        "totals": {name: results[name] for name in order},
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }


def _fields(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    for name in Outcome.__slots__:
        value = getattr(outcome, name)
        yield name, list(value) if isinstance(value, tuple) else value
