"""A Sigma rule as a detection: metadata, tables and statement; or the reasons why it cannot be one."""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sigma.conditions import ConditionAND, ConditionFieldEqualsValueExpression, ConditionOR
from sigma.conversion.state import ConversionState
from sigma.correlations import SigmaCorrelationRule
from sigma.exceptions import SigmaError
from sigma.policy import SigmaPolicy
from sigma.policy.regex_engine import RE2RegexEngine, RegexPattern
from sigma.processing.pipeline import ProcessingItem, ProcessingPipeline
from sigma.processing.transformations import FieldFunctionTransformation
from sigma.rule import SigmaDetection, SigmaRule
from sigma.types import SigmaString

from data_contracts.errors import RefusedError
from queries import attack
from queries.catalogue import SEVERITIES, Attack, Detection, EvidenceRule, Requirement
from queries.sigma import statements
from queries.sigma.backend import DuckDB, NotMappedError, joined
from queries.sigma.columns import Column, folded
from queries.sigma.operations import tables_of
from queries.sigma.reading import Document, check_detection
from queries.sigma.sources import ACCESS, CHANGE, M365, M365_EXCHANGE, View, views
from queries.text import literal, plain

_LEVELS = {"informational": "info"} | {level: level for level in SEVERITIES}
_WITHOUT_LEVEL = "low"
_DEAD = ("deprecated", "unsupported")
_TECHNIQUE = re.compile(r"t\d{4}(?:\.\d{3})?")
_TACTICS = {
    "exfiltration": "exfiltration",
    "collection": "mailbox_access",
    "lateral-movement": "lateral_movement",
    "initial-access": "tenant_connection",
    "credential-access": "tenant_connection",
}
_BY_TABLE = {ACCESS: "tenant_connection", CHANGE: "exposure"}
_TEXT = 1000  # characters of a description


class _Quiet(RE2RegexEngine):
    """RE2 without its own words on stderr about a pattern that it refuses: the reason is told with the rule."""

    def compile(self, pattern: str, flags: int = 0) -> RegexPattern:
        """A pattern; `flags` are those of `re`."""
        options = self._re2.Options()
        options.log_errors = False
        options.case_sensitive = not flags & re.IGNORECASE
        options.dot_nl = bool(flags & re.DOTALL)
        found: RegexPattern = self._re2.compile(pattern, options)
        return found


_POLICY = SigmaPolicy(regex_engine=_Quiet())


class NotImportedError(Exception):
    """A rule that cannot be a detection, with each reason on its own."""

    def __init__(self, *reasons: str) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass(frozen=True, slots=True)
class Converted:
    """A rule as a detection, and where it means something else than in Sigma."""

    detection: Detection
    notes: tuple[str, ...]


def convert(documents: Sequence[Document], name: str) -> Converted:
    """The detection of the last document; those before it are the rules that it refers to.

    Args:
        documents: of one rule, or of a correlation and its rules.
        name: id of the detection.

    Raises:
        NotImportedError: with the reasons.
    """
    try:
        return _convert(documents, name)
    except NotMappedError as error:
        raise NotImportedError(error.reason) from error
    except RefusedError as error:
        raise NotImportedError(error.fact) from error
    except SigmaError as error:
        raise NotImportedError(f"not a sound Sigma rule: {_first_line(error)}") from error
    except RecursionError as error:
        raise NotImportedError("the condition nests too deeply") from error
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise NotImportedError(f"not a sound Sigma rule: {type(error).__name__}") from error


def _first_line(error: Exception) -> str:
    return plain(next(iter(str(error).splitlines()), type(error).__name__))


def _convert(documents: Sequence[Document], name: str) -> Converted:
    main = documents[-1]
    if "action" in main.values:
        raise RefusedError("collections with action (global, reset, repeat) are not taken: one rule a document")
    if "filter" in main.values:
        raise RefusedError("Sigma filters are not taken")
    if str(main.values.get("status", "")).lower() in _DEAD:
        raise RefusedError(f"its status is {str(main.values['status']).lower()}")
    for document in documents:
        check_detection(document.values)
    return _correlation(documents, name) if "correlation" in main.values else _plain(main, name)


def _correlation(documents: Sequence[Document], name: str) -> Converted:
    from queries.sigma.correlations import correlated

    main = documents[-1]
    rule = SigmaCorrelationRule.from_dict(copy.deepcopy(main.values))
    sql, evidence, branches, notes = correlated(rule, documents[:-1], _title(rule), is_loud=_is_loud(_severity(rule)))
    used = [branch.matched.view for branch in branches]
    groups = [f"group_{n}" for n in range(len(branches[0].groups))]
    detection = _detection(name, main, rule, used, (*statements.IDENTITY, *groups))
    text = "---\n".join(document.text for document in documents)
    return Converted(replace(detection, sql=sql, evidence=evidence, text=text), tuple(sorted(notes)))


def _plain(document: Document, name: str) -> Converted:
    found, notes = conditions(document)
    rule = parsed(document)
    is_loud = _is_loud(_severity(rule))
    parts = []
    for matched in found:
        sql, evidence = statements.plain_rule(matched, _title(rule), is_loud=is_loud)
        part = _detection(name, document, rule, [matched.view], statements.IDENTITY)
        parts.append(replace(part, sql=sql, evidence=evidence))
    told = tuple(sorted(notes))
    if len(parts) == 1:
        return Converted(parts[0], told)
    whole = _detection(name, document, rule, [matched.view for matched in found], statements.IDENTITY)
    return Converted(replace(whole, evidence=parts[0].evidence, parts=tuple(parts)), told)


def parsed(document: Document) -> SigmaRule:
    """The rule of a document as pySigma reads it. Raises SigmaError."""
    return SigmaRule.from_dict(copy.deepcopy(document.values), policy=_POLICY)


def conditions(document: Document) -> tuple[list[statements.Matched], set[str]]:
    """Where a rule matches: its condition over each view that it can be about, and notes.

    Raises:
        NotImportedError: over none of them, with the reasons of all.
    """
    source = parsed(document).logsource
    possible = views(source.product, source.category, source.service)
    found: list[statements.Matched] = []
    notes: set[str] = set()
    refused: dict[str, list[str]] = {}
    routed = _routed(document, possible, notes)
    for view in routed:
        try:
            found.append(statements.Matched(view, _condition(document, view, notes)))
        except NotImportedError as error:
            refused[view.table] = list(error.reasons)
    if not found:
        raise NotImportedError(*dict.fromkeys(reason for reasons in refused.values() for reason in reasons))
    for table, reasons in refused.items():
        notes.add(f"{table} is left out: {'; '.join(reasons)}")
    return found, notes


def _routed(document: Document, possible: Sequence[View], notes: set[str]) -> list[View]:
    """The views that can hold the operations that the rule names; all where it names none."""
    if possible not in (M365, M365_EXCHANGE):
        return list(possible)
    rule, columns = parsed(document), possible[0].columns
    _renamed(rule)
    bounds = [_bound(item.parsed, columns) for item in rule.detection.parsed_condition]
    named: set[str] = set()
    for bound in bounds:
        if bound is None:
            return list(possible)
        named |= bound
    tables, unknown = tables_of(named)
    if unknown:
        notes.add(
            f"operation {plain(min(unknown))} is not one that is known here: its records are kept only where they"
            " are of the directory or touch a mailbox"
        )
    return [view for view in possible if view.table in tables]


def _bound(cond: Any, columns: Any) -> set[str] | None:
    """The operations that an event must have for the condition to hold; None when it may have any."""
    if isinstance(cond, ConditionFieldEqualsValueExpression):
        column: Column | None = columns.get(cond.field)
        value = cond.value
        if column is None or column.kind != "operation" or not isinstance(value, SigmaString):
            return None
        return None if value.contains_special() else {str(value)}
    if isinstance(cond, (ConditionAND, ConditionOR)):
        bounds = [_bound(arg, columns) for arg in cond.args]
        known = [bound for bound in bounds if bound is not None]
        if isinstance(cond, ConditionAND):
            return min(known, key=len) if known else None
        return set().union(*known) if known and len(known) == len(bounds) else None
    return None


def _renamed(rule: SigmaRule) -> None:
    """Fields by the names that `columns` has."""
    items = [ProcessingItem(FieldFunctionTransformation({}, lambda name: folded(name or "")))]
    ProcessingPipeline(items=items).apply(rule)


def _condition(document: Document, view: View, notes: set[str]) -> str:
    """The rule's condition over one view. Raises NotImportedError."""
    rule = parsed(document)
    missing = sorted({name for name in _fields(rule) if folded(name) not in view.columns})
    if missing:
        raise NotImportedError(*(f"field {plain(name)} is not kept in {view.table}" for name in missing))
    _renamed(rule)
    backend = DuckDB(view.columns)
    try:
        trees = [item.parsed for item in rule.detection.parsed_condition]
        told = [str(backend.convert_condition(tree, ConversionState())) for tree in trees]
    except NotMappedError as error:
        raise NotImportedError(error.reason) from error
    if not told or None in trees:
        raise NotImportedError("the condition asks for nothing")
    notes |= backend.notes
    return joined("or", told, "false")


def _fields(rule: SigmaRule) -> Iterator[str]:
    waiting: list[Any] = list(rule.detection.detections.values())
    while waiting:
        item = waiting.pop()
        if isinstance(item, SigmaDetection):
            waiting += item.detection_items
        elif item.field is not None:
            yield item.field


# Metadata


def _title(rule: SigmaRule | SigmaCorrelationRule) -> str:
    return _clean(rule.title) or "Sigma rule without a title"


def _severity(rule: SigmaRule | SigmaCorrelationRule) -> str:
    return _WITHOUT_LEVEL if rule.level is None else _LEVELS[rule.level.name.lower()]


def _is_loud(severity: str) -> bool:
    return SEVERITIES.index(severity) >= SEVERITIES.index("medium")


def _clean(text: Any, most: int = 200) -> str:
    """A text of the rule on one line, without characters that a terminal would act on, of bounded length."""
    flat = " ".join(str(text or "").split())[:most]
    return "".join(plain(flat[n : n + 200]) for n in range(0, len(flat), 200))


def _attack(rule: SigmaRule | SigmaCorrelationRule) -> tuple[Attack, ...]:
    """Techniques of the rule's tags, with their tactics of ATT&CK where the technique is known here."""
    tags = [tag.name.lower().replace("_", "-") for tag in rule.tags if tag.namespace.lower() == "attack"]
    tactics = tuple(sorted({tag for tag in tags if re.fullmatch(r"[a-z]+(?:-[a-z]+){0,3}", tag)}))
    found = {}
    for tag in tags:
        if _TECHNIQUE.fullmatch(tag):
            technique = attack.REPLACED.get(tag.upper(), tag.upper())
            name, known = attack.TECHNIQUES.get(technique, (technique, tactics))
            found[technique] = Attack(technique, name, known)
    return tuple(found.values())


def _family(techniques: Sequence[Attack], table: str) -> str:
    tactics = {tactic for held in techniques for tactic in held.tactics}
    return next(
        (family for tactic, family in _TACTICS.items() if tactic in tactics), _BY_TABLE.get(table, "exfiltration")
    )


def _detection(
    name: str,
    document: Document,
    rule: SigmaRule | SigmaCorrelationRule,
    used: Sequence[View],
    identity: tuple[str, ...],
) -> Detection:
    techniques = _attack(rule)
    tables = tuple(dict.fromkeys(view.table for view in used))
    formats = sorted({name for view in used for name in view.formats})
    described = _clean(rule.description, _TEXT) or _title(rule)
    author = _clean(rule.author)
    return Detection(
        id=name,
        stem=name.lower(),
        path=Path("rules", f"{name}.yml"),
        title=_title(rule),
        hypothesis=described,
        family=_family(techniques, tables[0]),
        severity=_severity(rule),
        attack=techniques,
        tables=tables,
        needs=(),
        requires=_requires(formats),
        parameters=(),
        false_positives=tuple(_clean(text) for text in rule.falsepositives) or ("the rule names none",),
        blind_spots=(
            "a Sigma rule knows the event and not its surroundings: it matches ordinary work that looks the same",
            "what the log does not hold, or this archive does not keep of it",
        ),
        runbook=(
            "`gatehound rules show` has the rule's own text; `gatehound raw` the record behind an event",
            f"author of the rule: {author}" if author else "the rule names no author",
        ),
        explanation=statements.EXPLANATION,
        identity=identity,
        evidence=EvidenceRule(tables[0], {}, "", ("first_seen", "last_seen")),
        text=document.text,
    )


def _requires(formats: Sequence[str]) -> tuple[Requirement, ...]:
    if not formats:
        return ()
    listed = ", ".join(map(literal, formats))
    sql = f"select exists (select 1 from evidence where format in ({listed}))"
    return (Requirement(sql, f"no log of the format {' or '.join(formats)} is in the archive"),)
