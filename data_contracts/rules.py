"""Row rules of a contract: one source for the Polars expressions of ingest and the SQL of the gate.

A null never violates a rule, except the rule that a value is required. Reasons are fixed texts: they hold no value.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from data_contracts.compiler import Column

REASON = "reason"
_FEW = 4  # up to this many values, comparisons are faster than a hash lookup


@dataclass(frozen=True, slots=True)
class Rule:
    """What a row may not be.

    `violated` is true for a row that breaks the rule (null counts as false). `suspect` is one cheap boolean for a whole
    frame: false means that no row breaks the rule, true that rows have to be looked at. `sql` is `violated` in DuckDB's
    SQL. A rule on the whole batch (`unique`) marks the second and later rows.
    """

    name: str
    reason: str
    violated: pl.Expr
    suspect: pl.Expr
    sql: str
    kind: str  # required, enum, minimum, maximum, finite, max_length, pattern, unique, sql
    column: str | None = None


def column_rules(column: "Column") -> list[Rule]:
    """Rules of one column, the cheapest and most telling first."""
    found: list[Rule] = []
    name, value, quoted = column.name, pl.col(column.name), quote(column.name)

    def add(kind: str, text: str, violated: pl.Expr, suspect: pl.Expr, sql: str) -> None:
        reason = f"contract: {name} {text}"
        found.append(Rule(f"{name}_{kind}", reason, violated, suspect, sql, kind, name))

    if column.required:
        add("required", "is required", value.is_null(), value.null_count() > 0, f"{quoted} is null")
    if column.enum:
        values = list(column.enum)
        outside = f"{quoted} not in ({', '.join(literal(v) for v in values)})"
        add("enum", "is not one of its values", ~value.is_in(values), _outside(value, values), outside)
    if column.type == "DOUBLE" and (column.minimum is not None or column.maximum is not None):
        add("finite", "is not finite", ~value.is_finite(), (~value.is_finite()).any(), f"not isfinite({quoted})")
    if column.minimum is not None:
        low = value < pl.lit(column.minimum, dtype=column.dtype)
        text = f"is {'before' if column.is_time else 'below'} {_shown(column.minimum)}"
        add("minimum", text, low, low.any(), f"{quoted} < {literal(column.minimum)}")
    if column.maximum is not None:
        high = value > pl.lit(column.maximum, dtype=column.dtype)
        text = f"is {'after' if column.is_time else 'above'} {_shown(column.maximum)}"
        add("maximum", text, high, high.any(), f"{quoted} > {literal(column.maximum)}")
    if column.max_length is not None and column.type == "VARCHAR":
        text = f"is longer than {column.max_length} characters"
        # Characters are never more than bytes, and the number of bytes is stored.
        suspect = value.str.len_bytes().max() > column.max_length
        longer = value.str.len_chars() > column.max_length
        add("max_length", text, longer, suspect, f"length({quoted}) > {column.max_length}")
    if column.pattern:
        sought = value.unique() if column.low_cardinality else value
        suspect = (~sought.str.contains(column.pattern)).any()
        sql = f"not regexp_matches({quoted}, {literal(column.pattern)})"
        add("pattern", "does not match its pattern", ~value.str.contains(column.pattern), suspect, sql)
    if column.unique:
        again = value.is_not_null() & ~value.is_first_distinct()
        counted = f"{quoted} is not null and count(*) over (partition by {quoted}) > 1"
        add("unique", "is not unique", again, value.drop_nulls().is_duplicated().any(), counted)
    return found


def sql_rule(name: str, condition: str) -> Rule:
    """Rule from a condition in SQL that both DuckDB and Polars read; a row that satisfies it is refused."""
    violated = pl.sql_expr(condition)
    return Rule(name, f"contract: {name}", violated, violated.any(), condition, "sql")


def divide(df: pl.DataFrame, rules: Sequence[Rule]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows that keep all rules, and rows that break one, with the first broken rule's text in `reason`.

    Args:
        df: has every column that the rules name. A column `reason` of its own is replaced in the refused rows.

    Returns:
        Both frames in the order of `df`; together all its rows.
    """
    broken = _suspected(df, rules)
    if not broken:
        return df, df.clear().with_columns(pl.lit(None, pl.String).alias(REASON))
    reason = pl.coalesce(pl.when(rule.violated).then(pl.lit(rule.reason)) for rule in broken)
    reasons = df.select(reason.alias(REASON)).to_series()
    refused = reasons.is_not_null()
    return df.filter(~refused), df.with_columns(reasons).filter(refused)


def _suspected(df: pl.DataFrame, rules: Sequence[Rule]) -> list[Rule]:
    """Rules that some row may break: one pass of cheap reductions, none for columns that hold nothing."""
    if df.is_empty():
        return []
    empty = {name for name, nulls in zip(df.columns, df.null_count().row(0), strict=True) if nulls == df.height}
    tried = [rule for rule in rules if rule.kind == "required" or rule.column not in empty]
    answers = df.lazy().select(rule.suspect.alias(str(n)) for n, rule in enumerate(tried)).collect().row(0)
    return [rule for rule, answer in zip(tried, answers, strict=True) if answer]


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(value: Any) -> str:
    """A value of a contract as an SQL literal."""
    if isinstance(value, datetime):
        return f"timestamptz '{value.isoformat()}'"
    if isinstance(value, (bool, int, float)):
        return str(value).lower()
    return "'" + str(value).replace("'", "''") + "'"


def _outside(value: pl.Expr, values: list[Any]) -> pl.Expr:
    if len(values) <= _FEW:
        return pl.all_horizontal(value != v for v in values).any()
    return (~value.unique().is_in(values)).any()


def _shown(value: Any) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else str(value)
