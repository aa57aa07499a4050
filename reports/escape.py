"""What logs say, made harmless for where it is shown: a terminal line, Markdown, HTML, JSON, a spreadsheet."""

import json
import math
import re
from collections.abc import Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

import polars as pl

_FORMULA = "=+-@\uff1d\uff0b\uff0d\uff20"  # full-width forms too: some spreadsheets fold them
_UNPRINTABLE = r"[\p{C}\p{Zl}\p{Zp}]"
_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\`*[]|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
_LINE_START = re.compile(r"^(?:[-+=#]|\d+(?=[.)](?:\s|$)))")
_UNDERSCORE = re.compile(r"(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")  # inside a word it is no emphasis
_LINK = re.compile(r":(?=//)|(?<=www)\.", re.IGNORECASE)  # what Markdown viewers turn into links by themselves


def iso(value: datetime | date) -> str:
    """ISO 8601, UTC with Z for times."""
    return value.isoformat().replace("+00:00", "Z")


def plain(value: object) -> str:
    """Text of a value in one line; control and other unprintable characters are shown as escapes."""
    text = value if isinstance(value, str) else _text(value)
    return text if text.isprintable() else "".join(map(_visible, text))


def code(text: str) -> str:
    """Text in several lines, for a block of code; unprintable characters but line ends are shown as escapes."""
    return "\n".join(plain(line.expandtabs(4)) for line in text.replace("\r\n", "\n").split("\n"))


def _visible(char: str) -> str:
    return char if char.isprintable() else char.encode("unicode_escape").decode()


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (datetime, date)):
        return iso(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(v) for v in value)
    return to_json(value, indent=None) if isinstance(value, dict) else str(value)


def md(value: object) -> str:
    """Text of a value in Markdown: it can start no markup and no link, end no table cell and hold no HTML."""
    text = plain(value).strip().translate(_MARKDOWN)
    text = _LINK.sub(r"\\\g<0>", _UNDERSCORE.sub(r"\\_", text))
    start = _LINE_START.match(text)
    if start is None:
        return text
    sign = start.group()
    return sign + "\\" + text[len(sign) :] if sign.isdigit() else "\\" + text


def fence(text: str, language: str = "sql") -> str:
    """A fenced code block that the text can't leave."""
    shown, ticks = code(text), "```"
    while ticks in shown:
        ticks += "`"
    return f"{ticks}{language}\n{shown}\n{ticks}"


def defused(frame: pl.DataFrame) -> pl.DataFrame:
    """For spreadsheets: every row in one line, and no text or column name that would start a formula.

    Lists become ;-joined text, other nested values JSON, bytes hexadecimal digits. Unprintable characters are shown as
    escapes. Text that would start a formula gets an apostrophe before it.
    """
    frame = frame.select(_flat(frame[name]) for name in frame.columns)
    text = [name for name, kind in frame.schema.items() if kind == pl.String]
    first = {name: pl.col(name).str.strip_chars_start().str.slice(0, 1) for name in text}
    frame = frame.with_columns(
        pl.when(first[name].is_in(list(_FORMULA))).then(pl.lit("'") + pl.col(name)).otherwise(pl.col(name)).alias(name)
        for name in text
    )
    return frame.rename({name: _header(name, frame.columns) for name in frame.columns})


def _flat(column: pl.Series) -> pl.Series:
    kind = column.dtype
    if isinstance(kind, pl.List) and kind.inner == pl.String:
        column = column.list.join(";", ignore_nulls=True)
    elif kind == pl.Binary:
        column = column.bin.encode("hex")
    elif kind.is_nested() or kind == pl.Object:
        texts = [None if value is None else to_json(value, indent=None) for value in column.to_list()]
        column = pl.Series(column.name, texts, pl.String)
    elif isinstance(kind, (pl.Categorical, pl.Enum)):
        column = column.cast(pl.String)
    if column.dtype != pl.String:
        return column
    odd = column.str.contains(_UNPRINTABLE).fill_null(value=False)
    if not odd.any():
        return column
    shown = [plain(text) if strange else text for text, strange in zip(column, odd, strict=True)]
    return pl.Series(column.name, shown, pl.String)


def _header(name: str, names: Sequence[str]) -> str:
    shown = plain(name)
    if shown.lstrip()[:1] in tuple(_FORMULA):
        shown = "'" + shown
    return shown if shown == name or shown not in names else f"{shown} ({names.index(name)})"


def csv(frame: pl.DataFrame) -> str:
    """CSV for spreadsheets, times as ISO 8601 with Z."""
    times = [
        pl.col(name).dt.convert_time_zone("UTC").dt.strftime("%Y-%m-%dT%H:%M:%S%.6fZ")
        for name, kind in frame.schema.items()
        if isinstance(kind, pl.Datetime) and kind.time_zone
    ]
    return defused(frame.with_columns(times)).write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.6f")


def jsonable(value: Any) -> Any:  # noqa: PLR0911 - one line per kind of value
    """A value as JSON has it: times as ISO 8601 with Z, bytes as hexadecimal digits, what JSON lacks as null."""
    if isinstance(value, (datetime, date)):
        return iso(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, time):
        return value.isoformat()
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """One JSON document; what a terminal would act on is written as an escape, which JSON reads back as it was."""
    text = json.dumps(jsonable(value), ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "\n".join(line if line.isprintable() else "".join(map(_in_json, line)) for line in text.split("\n"))


def _in_json(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1] if ord(char) != 0x7F else "\\u007f"
