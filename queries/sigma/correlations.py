"""Sigma's correlation rules over the event tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from sigma.correlations import (
    SigmaCorrelationCondition,
    SigmaCorrelationConditionOperator,
    SigmaCorrelationRule,
    SigmaCorrelationType,
)

from queries.catalogue import EvidenceRule
from queries.sigma import rules, statements
from queries.sigma.backend import NotMappedError
from queries.sigma.columns import folded
from queries.sigma.reading import Document
from queries.sigma.statements import Branch, Correlation
from queries.text import plain

MOST_RULES = 20
MOST_SECONDS = 31 * 86_400
_KINDS = {
    SigmaCorrelationType.EVENT_COUNT: "event_count",
    SigmaCorrelationType.VALUE_COUNT: "value_count",
    SigmaCorrelationType.TEMPORAL: "temporal",
    SigmaCorrelationType.TEMPORAL_ORDERED: "temporal_ordered",
}
_OPERATORS = {
    SigmaCorrelationConditionOperator.GT: ">",
    SigmaCorrelationConditionOperator.GTE: ">=",
    SigmaCorrelationConditionOperator.EQ: "=",
}


def correlated(
    rule: SigmaCorrelationRule, documents: Sequence[Document], title: str, *, is_loud: bool
) -> tuple[str, EvidenceRule, list[Branch], set[str]]:
    """Statement, evidence, branches and notes of a correlation.

    Args:
        rule: the correlation.
        documents: the rules that it refers to.
        title: of the correlation.
        is_loud: of medium severity or more.

    Raises:
        NotMappedError, rules.NotImportedError: it cannot be told here, and why.
    """
    kind = _KINDS.get(rule.type)
    if kind is None:
        raise NotMappedError(f"correlations of the type {rule.type.name.lower()} are not taken")
    if not isinstance(rule.condition, SigmaCorrelationCondition):
        raise NotMappedError("correlations with a condition in words are not taken")
    if rule.timespan.seconds > MOST_SECONDS:
        raise NotMappedError("correlations over more than 31 days are not taken")
    references = [reference.reference for reference in rule.rules or []]
    if not 0 < len(references) <= MOST_RULES:
        raise NotMappedError(f"a correlation must name 1 to {MOST_RULES} rules")
    by_name = {name: document for document in documents for name in document.names}
    branches: list[Branch] = []
    notes: set[str] = set()
    for step, reference in enumerate(references):
        document = by_name.get(reference, by_name.get(reference.lower()))
        if document is None:
            raise NotMappedError(f"the rule {plain(reference)} that it refers to is not among the files")
        if "correlation" in document.values:
            raise NotMappedError("correlations of correlations are not taken")
        found, told = rules.conditions(document)
        notes |= told
        branches += [_branch(rule, matched, step, reference) for matched in found]
    tables = sorted({branch.matched.view.table for branch in branches})
    if len(tables) > 1:
        notes.add(f"it counts events of {' and '.join(tables)}; its evidence lists those of one table")
    correlation = Correlation(branches, rule.timespan.seconds, kind, _condition(rule.condition, kind, len(references)))
    sql, evidence = statements.correlation(correlation, title, is_loud=is_loud)
    return sql, evidence, branches, notes


def _condition(condition: SigmaCorrelationCondition, kind: str, n_rules: int) -> str:
    operator = _OPERATORS.get(condition.op)
    if kind.startswith("temporal"):
        if operator == "=" or operator is None or condition.count + (operator == ">") != n_rules:
            raise NotMappedError("a temporal correlation must ask for all of its rules")
        return "in_order" if kind == "temporal_ordered" else " and ".join(f"seen_{n}" for n in range(n_rules))
    if operator is None:
        raise NotMappedError("a count below a bound is not taken: silence leaves no event to find")
    if condition.count + (operator == ">") < 1:
        raise NotMappedError("a count of less than one event is not taken")
    return f"n {operator} {int(condition.count)}"


def _branch(rule: SigmaCorrelationRule, matched: statements.Matched, step: int, reference: str) -> Branch:
    groups = tuple(_expression(rule, name, matched, reference) for name in rule.group_by or ())
    condition: Any = rule.condition
    value = condition.fieldref
    if isinstance(value, list):
        if len(value) != 1:
            raise NotMappedError("a count over several fields together is not taken")
        value = value[0]
    counted = {} if value is None else {"value": f"lower(cast({_sql(value, matched)} as varchar))"}
    return Branch(step, matched, groups, **counted)


def _expression(rule: SigmaCorrelationRule, name: str, matched: statements.Matched, reference: str) -> str:
    """The field to group by, under the name that the referenced rule's log has for it."""
    aliases: Mapping[str, Any] = rule.aliases.aliases
    if name in aliases:
        named = {ref.reference: field for ref, field in aliases[name].mapping.items()}
        if reference not in named:
            raise NotMappedError(f"the alias {plain(name)} has no field of the rule {plain(reference)}")
        name = named[reference]
    return f"lower(cast({_sql(name, matched)} as varchar))"


def _sql(name: str, matched: statements.Matched) -> str:
    column = matched.view.columns.get(folded(name))
    if column is None:
        raise NotMappedError(f"field {plain(name)} is not kept in {matched.view.table}")
    if column.kind in ("list", "joined", "time"):
        raise NotMappedError(f"field {plain(name)} cannot be grouped by or counted")
    return column.sql
