"""Sigma conditions as DuckDB expressions: a backend of pySigma.

Every expression is complete in itself (it stands in parentheses and is never null), so that NOT, AND and OR can be put
around it as Sigma means them: a comparison with a value that an event lacks is false, and its negation true. Text is
compared without regard to case unless the rule says otherwise. Values of the rule become literals (`queries.text`);
patterns become regular expressions of RE2, which take linear time whatever the pattern and the text; field names only
choose among our own columns and never reach the statement.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from sigma.conversion.base import TextQueryBackend
from sigma.exceptions import SigmaError
from sigma.types import (
    CompareOperators,
    SigmaRegularExpressionFlag,
    SigmaString,
    SpecialChars,
    TimestampPart,
)

from queries.sigma.columns import Column
from queries.sigma.reading import LONGEST_REGEX
from queries.text import literal, plain

FALSE, TRUE = "false", "true"
_FLAT = 50  # operands side by side; more are nested, as DuckDB bounds the depth of an expression
_COMPARE = {
    CompareOperators.LT: "<",
    CompareOperators.LTE: "<=",
    CompareOperators.GT: ">",
    CompareOperators.GTE: ">=",
    CompareOperators.NEQ: "<>",
}
_SPECIAL = frozenset("\\.+*?()|[]{}^$")
_DASH = "\N{EN DASH}"
_LOST_CASE = "the archive keeps {} in lower case: case does not count"

Part = str | SpecialChars
Test = Callable[[str], str]


class NotMappedError(SigmaError):
    """Something in the rule has no equal here; the text is the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DuckDB(TextQueryBackend):
    """Conditions over one event table. `notes` tells where a condition means less here than in the rule."""

    name = "DuckDB over the event tables"
    convert_or_as_in = True

    def __init__(self, columns: Mapping[str, Column]) -> None:
        super().__init__()
        self.columns = columns
        self.notes: set[str] = set()

    def column(self, field: str) -> Column:
        """The column of a field. Raises NotMappedError."""
        found = self.columns.get(field)
        if found is None:
            raise NotMappedError(f"field {plain(field)} is not kept")
        return found

    # Boolean structure

    def convert_condition_or(self, cond: Any, state: Any) -> str:
        """Any of the operands."""
        return joined("or", self._operands(cond, state), FALSE)

    def convert_condition_and(self, cond: Any, state: Any) -> str:
        """All operands."""
        return joined("and", self._operands(cond, state), TRUE)

    def convert_condition_not(self, cond: Any, state: Any) -> str:
        """The operand is false."""
        (operand,) = self._operands(cond, state)
        return f"(not {operand})"

    def _operands(self, cond: Any, state: Any) -> list[str]:
        return [str(self.convert_condition(arg, state)) for arg in cond.args if arg is not None]

    def convert_condition_as_in_expression(self, cond: Any, state: Any) -> str:
        """One of several whole texts: one comparison with a list in place of many."""
        column = self.column(cond.args[0].field)
        values = [arg.value for arg in cond.args]
        simple = all(type(value) is SigmaString and len(value.s) == 1 for value in values)
        if not simple or column.kind not in ("text", "operation", "address"):
            return self.convert_condition_or(cond, state)
        texts = [parts[0] for value in values if (parts := _operation(value.s) if _is_op(column) else value.s)]
        listed = ", ".join(f"lower({literal(text)})" for text in dict.fromkeys(texts))
        return _over(column, lambda sql: f"lower({sql}) in ({listed})")

    # Comparisons

    def convert_condition_field_eq_val_str(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """A text, with or without wildcards."""
        return self._string(cond, cased=False)

    def convert_condition_field_eq_val_str_case_sensitive(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """The same, case counting."""
        return self._string(cond, cased=True)

    def _string(self, cond: Any, *, cased: bool) -> str:
        column, parts = self.column(cond.field), self._parts(cond)
        if not parts:
            return _empty(column)
        if set(parts) == {SpecialChars.WILDCARD_MULTI}:
            return f"(not {_empty(column)})"
        if column.kind == "word":
            return _word(column, cond.field, parts)
        if column.kind in ("number", "flag"):
            return _scalar(column, cond.field, parts)
        if column.kind == "time":
            raise NotMappedError(f"field {plain(cond.field)} is a time: text cannot be compared with it")
        if _is_op(column):
            parts = _operation(parts)
        if column.kind == "joined":
            _check_joined(cond.field, parts)
        if cased and column.lower:
            self.notes.add(_LOST_CASE.format(plain(cond.field)))
        return _over(column, _pattern(parts, cased=cased and not column.lower))

    def _parts(self, cond: Any) -> list[Part]:
        found: list[Part] = []
        for part in cond.value.s:
            if not isinstance(part, (str, SpecialChars)):
                raise NotMappedError("placeholders have no values here")
            found.append(part)
        return found

    def convert_condition_field_eq_val_num(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """A number; in a text column its digits."""
        column = self.column(cond.field)
        if column.kind == "number":
            return _sure(f"{column.sql} = {_number(cond.value.number)}")
        text = str(cond.value.number)
        if column.kind in ("text", "address"):
            return _over(column, _pattern([text], cased=False))
        if column.kind == "word":
            return _word(column, cond.field, [text])
        raise NotMappedError(f"field {plain(cond.field)} is no number")

    def convert_condition_field_eq_val_bool(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """True or false."""
        column, value = self.column(cond.field), str(bool(cond.value)).lower()
        if column.kind == "flag":
            return _sure(f"{column.sql} = {value}")
        if column.kind == "word":
            return _word(column, cond.field, [value])
        if column.kind == "text":
            return _over(column, _pattern([value], cased=False))
        raise NotMappedError(f"field {plain(cond.field)} is neither true nor false")

    def convert_condition_field_eq_val_re(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """A regular expression, found anywhere in the text; of RE2, so without look-around and back-references."""
        column, text = self.column(cond.field), str(cond.value.regexp)
        if column.kind not in ("text", "operation", "address", "list"):
            raise NotMappedError(f"field {plain(cond.field)} cannot be tested with a regular expression")
        if len(text) > LONGEST_REGEX:
            raise NotMappedError(f"a regular expression is longer than {LONGEST_REGEX} characters")
        flags = {SigmaRegularExpressionFlag.IGNORECASE: "i", SigmaRegularExpressionFlag.DOTALL: "s"}
        flags |= {SigmaRegularExpressionFlag.MULTILINE: "m"}
        options = "".join(sorted(flags[flag] for flag in cond.value.flags))
        if column.lower and "i" not in options:
            options += "i"
            self.notes.add(_LOST_CASE.format(plain(cond.field)))
        pattern = literal(f"(?{options}){text}" if options else text)
        # Of an operation the name is tested as the log writes it.
        return _over(replace(column, kind="text") if column.kind == "operation" else column, _matches(pattern))

    def convert_condition_field_eq_val_cidr(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """An address within a network, IPv4 or IPv6."""
        column = self.column(cond.field)
        if column.kind != "address":
            raise NotMappedError(f"field {plain(cond.field)} is no address")
        first, last = (_key(address) for address in (cond.value.network[0], cond.value.network[-1]))
        return _sure(f"{column.key} between unhex('{first}') and unhex('{last}')")

    def convert_condition_field_compare_op_val(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """Less or more than a number."""
        column = self.column(cond.field)
        if column.kind != "number":
            raise NotMappedError(f"field {plain(cond.field)} is no number: it has no less and more")
        return _sure(f"{column.sql} {_COMPARE[cond.value.op]} {_number(cond.value.number.number)}")

    def convert_condition_field_eq_val_timestamp_part(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """Minute, hour, day, week, month or year of the time (UTC)."""
        column = self.column(cond.field)
        if column.kind != "time":
            raise NotMappedError(f"field {plain(cond.field)} is no time")
        parts = {part: part.name.lower() for part in TimestampPart}
        return _sure(f"date_part('{parts[cond.value.timestamp_part]}', {column.sql}) = {int(cond.value.number)}")

    def convert_condition_field_eq_field(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """Two fields of one event, compared as text."""
        one, other, value = self.column(cond.field), self.column(cond.value.field), cond.value
        if any(column.kind not in ("text", "operation", "address") for column in (one, other)):
            raise NotMappedError(f"fields {plain(cond.field)} and {plain(value.field)} cannot be compared")
        left, right = f"lower({one.sql})", f"lower({other.sql})"
        if value.starts_with and value.ends_with:
            return _sure(f"contains({left}, {right})")
        if value.starts_with or value.ends_with:
            return _sure(f"{'starts_with' if value.starts_with else 'ends_with'}({left}, {right})")
        return _sure(f"{left} = {right}")

    def convert_condition_field_eq_val_null(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """The event has no value there."""
        return _empty(self.column(cond.field))

    def convert_condition_field_exists(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """The event has a value there."""
        return f"(not {_empty(self.column(cond.field))})"

    def convert_condition_field_not_exists(self, cond: Any, state: Any) -> str:  # noqa: ARG002
        """The event has no value there."""
        return _empty(self.column(cond.field))

    # What has no equal

    def convert_condition_field_eq_query_expr(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        raise NotMappedError("query expressions are not taken")

    def _keyword(self) -> NoReturn:
        raise NotMappedError("keywords search the raw record, which is not in the tables")

    def convert_condition_val(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused, of whatever type."""
        self._keyword()

    def convert_condition_val_str(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._keyword()

    def convert_condition_val_num(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._keyword()

    def convert_condition_val_re(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        self._keyword()

    def convert_condition_query_expr(self, cond: Any, state: Any) -> NoReturn:  # noqa: ARG002
        """Refused."""
        raise NotMappedError("query expressions are not taken")


def joined(word: str, parts: Sequence[str], empty: str) -> str:
    """Expressions joined by AND or OR, in nested groups where there are many."""
    if not parts:
        return empty
    if len(parts) == 1:
        return parts[0]
    groups = [parts[n : n + _FLAT] for n in range(0, len(parts), _FLAT)]
    if len(groups) > 1:
        return joined(word, [joined(word, group, empty) for group in groups], empty)
    return f"({f' {word} '.join(parts)})"


def _sure(sql: str) -> str:
    return f"coalesce({sql}, false)"


def _over(column: Column, test: Test) -> str:
    """The test on the column's text, or on any of its texts."""
    if column.kind == "list":
        return _sure(f"len(list_filter({column.sql}, lambda x: {_sure(test('x'))})) > 0")
    if column.kind == "operation":
        return _sure(test(f"(rtrim(replace({column.sql}, '{_DASH}', '-'), ' .') || '.')"))
    return _sure(test(column.sql))


def _empty(column: Column) -> str:
    if column.kind == "list":
        return f"(coalesce(len({column.sql}), 0) = 0)"
    if column.kind in ("number", "flag", "time"):
        return f"({column.sql} is null)"
    return f"(coalesce({column.sql}, '') = '')"


def _pattern(parts: Sequence[Part], *, cased: bool) -> Test:
    """A test for a text with wildcards; the common forms without a regular expression."""
    many = SpecialChars.WILDCARD_MULTI
    texts = [part for part in parts if isinstance(part, str)]

    def low(sql: str) -> str:
        return sql if cased else f"lower({sql})"

    if len(texts) == 1 and SpecialChars.WILDCARD_SINGLE not in parts and len(parts) <= 3:
        value = low(literal(texts[0]))
        before, behind = parts[0] is many, parts[-1] is many
        if before and behind:
            return lambda sql: f"contains({low(sql)}, {value})"
        if before or behind:
            return lambda sql: f"{'ends_with' if before else 'starts_with'}({low(sql)}, {value})"
        return lambda sql: f"{low(sql)} = {value}"
    regex = "".join(_escaped(p) if isinstance(p, str) else ".*" if p is many else "." for p in parts)
    return lambda sql: f"regexp_full_match({sql}, {literal(regex)}, '{'s' if cased else 'is'}')"


def _escaped(text: str) -> str:
    return "".join("\\" + character if character in _SPECIAL else character for character in text)


def _is_op(column: Column) -> bool:
    return column.kind == "operation"


def _operation(parts: Sequence[Part]) -> list[Part]:
    """An operation's name as it is compared: with plain hyphens and one full stop at its end."""
    found: list[Part] = [p.replace(_DASH, "-") if isinstance(p, str) else p for p in parts]
    if isinstance(found[-1], str):
        found[-1] = found[-1].rstrip(" .") + "."
    return found


def _matches(pattern: str) -> Test:
    return lambda sql: f"regexp_matches({sql}, {pattern})"


def _number(value: float) -> str:
    if not math.isfinite(value):
        raise NotMappedError("a number is not finite")
    return repr(value)


def _check_joined(field: str, parts: Sequence[Part]) -> None:
    many = SpecialChars.WILDCARD_MULTI
    if len(parts) != 3 or parts[0] is not many or parts[2] is not many or '"' in str(parts[1]):
        raise NotMappedError(
            f"field {plain(field)} is kept as one text (NAME=VALUE; NAME=VALUE): only a contains without quotes can be "
            "asked of it"
        )


def _word(column: Column, field: str, parts: Sequence[Part]) -> str:
    """The words of a closed list that the pattern means."""
    wanted = [part.lower() if isinstance(part, str) else part for part in parts]
    found = sorted({held for word, held in column.words.items() if _fits(wanted, word)})
    if not found:
        raise NotMappedError(f"field {plain(field)} has no value like the rule's among {', '.join(column.words)}")
    return _sure(f"{column.sql} in ({', '.join(map(literal, found))})")


def _fits(parts: Sequence[Part], word: str) -> bool:
    """Whether a pattern matches a whole word, in time proportional to the product of both lengths."""
    many = SpecialChars.WILDCARD_MULTI
    reached = [True] + [False] * len(word)  # how much of the word the signs so far can have taken
    for sign in (sign for part in parts for sign in (part if isinstance(part, str) else [part])):
        if sign is many:
            start = reached.index(True) if True in reached else len(reached)
            reached = [place >= start for place in range(len(reached))]
        else:
            fits = [isinstance(sign, SpecialChars) or sign == character for character in word]
            reached = [False] + [before and fit for before, fit in zip(reached, fits, strict=False)]
    return reached[-1]


def _scalar(column: Column, field: str, parts: Sequence[Part]) -> str:
    """A number or flag that the rule writes as text."""
    text = parts[0].strip().lower() if len(parts) == 1 and isinstance(parts[0], str) else ""
    if column.kind == "flag" and text in ("true", "false"):
        return _sure(f"{column.sql} = {text}")
    if column.kind == "number" and text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 19:
        return _sure(f"{column.sql} = {int(text)}")
    raise NotMappedError(f"field {plain(field)} is a {column.kind}: the rule's text is none")


def _key(address: Any) -> str:
    """An address as 32 hex digits of IPv6; IPv4 mapped into it."""
    packed: bytes = address.packed
    return (packed if len(packed) == 16 else b"\0" * 10 + b"\xff\xff" + packed).hex()
