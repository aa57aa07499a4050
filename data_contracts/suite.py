"""A contract as a Great Expectations suite. Imports Great Expectations: import it only where a batch is validated."""

from typing import Any

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe

from data_contracts.compiler import Contract
from data_contracts.rules import Rule, literal

Expectation = Any  # of Great Expectations, whose types are not checked


class ExpectNoUnexpectedRows(gxe.UnexpectedRowsExpectation):  # type: ignore[misc]  # its types are not checked
    """No row of the batch satisfies a condition. It only counts: the generic one also fetches the rows."""

    metric_dependencies = ("unexpected_rows_query.row_count",)

    def _validate(
        self,
        metrics: dict[str, Any],
        runtime_configuration: Any = None,  # noqa: ARG002 - passed by name
        execution_engine: Any = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        count = metrics["unexpected_rows_query.row_count"]
        return {"success": count == 0, "result": {"observed_value": count}}


def compiled(contract: Contract) -> ExpectationSuite:
    """Everything that the contract says of a whole batch.

    The row rules have been tried on every row before; the suite stands on its own all the same, since it reads what was
    written, and tells of rows, columns and types that no row rule sees.
    """
    expectations = [_rows(), _columns(contract), _types(contract)]
    rules = contract.refusals()
    for column in contract.columns:
        own = {rule.kind: rule for rule in rules if rule.column == column.name}
        for kind, rule in own.items():
            if kind in _BY_KIND:
                expectations.append(_BY_KIND[kind](column, rule))
        bounds = [own[kind] for kind in ("minimum", "maximum") if kind in own]
        if bounds:
            expectations.append(_between(column, bounds))
    expectations += [_sql(rule) for rule in rules if rule.kind in ("sql", "finite")]
    return ExpectationSuite(name=contract.name, expectations=expectations)


def _meta(*rules: Rule) -> dict[str, Any]:
    return {"rules": [rule.name for rule in rules], "reason": "; ".join(rule.reason for rule in rules)}


def _rows() -> Expectation:
    return gxe.ExpectTableRowCountToBeBetween(min_value=1, meta={"reason": "contract: the batch has no rows"})


def _columns(contract: Contract) -> Expectation:
    # Reference tables may carry columns of the analyst's own.
    exact = contract.kind != "reference"
    names = [column.name for column in contract.columns]
    reason = "contract: the batch does not have the columns of the table"
    return gxe.ExpectTableColumnsToMatchSet(column_set=names, exact_match=exact, meta={"reason": reason})


def _types(contract: Contract) -> Expectation:
    wanted = ", ".join(f"({literal(c.name)}, {literal(c.type)})" for c in contract.columns)
    query = (
        "select column_name, column_type, wanted from (describe select * from {batch}) "
        f"join (values {wanted}) as contract(column_name, wanted) using (column_name) where column_type <> wanted"
    )
    reason = "contract: a column has another type"
    return ExpectNoUnexpectedRows(unexpected_rows_query=query, description=reason, meta={"reason": reason})


def _sql(rule: Rule) -> Expectation:
    condition = rule.sql.replace("{", "{{").replace("}", "}}")
    query = f"select * from {{batch}} where {condition}"
    return ExpectNoUnexpectedRows(unexpected_rows_query=query, description=rule.reason, meta=_meta(rule))


def _between(column: Any, bounds: list[Rule]) -> Expectation:
    return gxe.ExpectColumnValuesToBeBetween(
        column=column.name, min_value=column.minimum, max_value=column.maximum, meta=_meta(*bounds)
    )


_BY_KIND: dict[str, Any] = {
    "required": lambda column, rule: gxe.ExpectColumnValuesToNotBeNull(column=column.name, meta=_meta(rule)),
    "enum": lambda column, rule: gxe.ExpectColumnValuesToBeInSet(
        column=column.name, value_set=list(column.enum), meta=_meta(rule)
    ),
    "pattern": lambda column, rule: gxe.ExpectColumnValuesToMatchRegex(
        column=column.name, regex=column.pattern, meta=_meta(rule)
    ),
    "max_length": lambda column, rule: gxe.ExpectColumnValueLengthsToBeBetween(
        column=column.name, max_value=column.max_length, meta=_meta(rule)
    ),
    "unique": lambda column, rule: gxe.ExpectColumnValuesToBeUnique(column=column.name, meta=_meta(rule)),
}
