"""Values from logs in text and SQL: whoever wrote the log must not be able to write the sentence or the statement."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime
from typing import Any

LONGEST = 200  # characters of one value in a sentence
MOST = 5  # values of a list in a sentence

_PLACE = re.compile(r"\{(\w+)\}")
_PLAIN = re.compile(r"[ -~]*")
_UNSAFE_CATEGORIES = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def plain(value: Any) -> str:  # noqa: PLR0911 - one line per kind of value
    """A value as it may stand in a sentence: one line, no control or direction characters, of bounded length."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        clean = "".join("\ufffd" if _is_unsafe(character) else character for character in value[: LONGEST + 1])
        return clean if len(clean) <= LONGEST else f"{clean[:LONGEST]}…"
    if isinstance(value, Iterable):
        values = [item for item in value if item is not None]
        shown = ", ".join(plain(item) for item in values[:MOST])
        return f"{shown} and {len(values) - MOST} more" if len(values) > MOST else shown or "none"
    return plain(str(value))


def fill(template: str, values: Mapping[str, Any]) -> str:
    """The template with each {name} replaced once; names that `values` lacks read "unknown"."""
    return _PLACE.sub(lambda place: plain(values.get(place[1])), template)


def iso(value: datetime) -> str:
    """UTC, ISO 8601 with Z; microseconds only where there are any."""
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def literal(value: Any) -> str:  # noqa: PLR0911 - one line per kind of value
    """A value as a DuckDB literal on one line.

    Quotes are doubled; characters that a terminal or an editor would act on (line ends, escapes, direction marks)
    become chr(n), so that what is pasted is what is seen.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime):
        return f"timestamptz '{value.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'"
    if isinstance(value, date):
        return f"date '{value.isoformat()}'"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    if _PLAIN.fullmatch(text):
        return _quoted(text)
    parts, run = [], ""
    for character in text:
        if _is_unsafe(character):
            parts += [_quoted(run)] if run else []
            parts.append(f"chr({ord(character)})")
            run = ""
        else:
            run += character
    parts += [_quoted(run)] if run else []
    return parts[0] if len(parts) == 1 else f"({' || '.join(parts)})"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _is_unsafe(character: str) -> bool:
    return unicodedata.category(character) in _UNSAFE_CATEGORIES
