"""What logs say, made harmless for where it is shown: a terminal line, Markdown, a spreadsheet. HTML is escaped by Jinja."""

from datetime import date, datetime
from typing import Any

import polars as pl

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\`*_{}[]()|#!~"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})


def iso(value: datetime | date) -> str:
    """ISO 8601, UTC with Z for times."""
    return value.isoformat().replace("+00:00", "Z")


def plain(value: object) -> str:
    """Text of a value in one line; control and other unprintable characters are shown as escapes."""
    if value is None:
        return ""
    text = iso(value) if isinstance(value, (datetime, date)) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def md(value: object) -> str:
    """Text of a value in Markdown: it can start no markup, end no table cell and hold no HTML."""
    return plain(value).translate(_MARKDOWN)


def fence(text: str) -> str:
    """A fenced code block that the text can't leave."""
    ticks = "```"
    while ticks in text:
        ticks += "`"
    return f"{ticks}sql\n{text}\n{ticks}"


def defused(frame: pl.DataFrame) -> pl.DataFrame:
    """For spreadsheets: text that would start a formula gets an apostrophe before it; lists become ;-joined text."""
    lists = [pl.col(c).list.join(";") for c, t in frame.schema.items() if t == pl.List(pl.String)]
    binary = [pl.col(c).bin.encode("hex") for c, t in frame.schema.items() if t == pl.Binary]
    frame = frame.with_columns(lists + binary)
    text = [c for c, t in frame.schema.items() if t == pl.String]
    return frame.with_columns(
        pl.when(pl.col(c).str.strip_chars_start(" ").str.slice(0, 1).is_in(list(_FORMULA)))
        .then(pl.lit("'") + pl.col(c)).otherwise(pl.col(c)).alias(c)
        for c in text
    )  # fmt: skip


def csv(frame: pl.DataFrame) -> str:
    """CSV for spreadsheets, times as ISO 8601 with Z."""
    return defused(frame).write_csv(datetime_format="%Y-%m-%dT%H:%M:%S%.6fZ")


def jsonable(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601 with Z, bytes as hexadecimal digits, numbers that JSON lacks as null."""
    if isinstance(value, (datetime, date)):
        return iso(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
