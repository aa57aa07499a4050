"""stdout is data, stderr is talk: tables, CSV, JSON, JSON lines, Parquet and Markdown; nothing a log says can act on them."""

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts.errors import UsageError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console

_WIDEST_CELL = 60


class OutputFormat(StrEnum):
    """What `-t` takes."""

    table = "table"
    csv = "csv"
    json = "json"
    jsonl = "jsonl"
    parquet = "parquet"
    md = "md"


def stderr() -> "Console":
    """Where talk goes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def plain(value: object) -> str:
    """Text of a value for a terminal: one line, control characters shown as escapes."""
    from reports import escape

    return escape.plain(value)


def to_json(value: Any) -> str:
    """One JSON document."""
    from reports.escape import jsonable

    return json.dumps(jsonable(value), ensure_ascii=False, indent=2)


def emit_frame(frame: "pl.DataFrame", fmt: OutputFormat, *, title: str | None = None) -> None:
    """Writes a frame to stdout.

    Raises:
        UsageError: Parquet to a terminal.
    """
    from reports.escape import csv, jsonable

    if fmt is OutputFormat.json:
        write(to_json(frame.to_dicts()) + "\n")
    elif fmt is OutputFormat.jsonl:
        for row in frame.iter_rows(named=True):
            write(json.dumps(jsonable(row), ensure_ascii=False) + "\n")
    elif fmt is OutputFormat.csv:
        write(csv(frame))
    elif fmt is OutputFormat.parquet:
        if sys.stdout.isatty():
            raise UsageError("Parquet is not for a terminal", "send it to a file: ... -t parquet > rows.parquet")
        frame.write_parquet(sys.stdout.buffer)
    elif fmt is OutputFormat.md:
        write(markdown(frame))
    else:
        _table(frame, title)


def write(text: str) -> None:
    """Text to stdout."""
    sys.stdout.write(text)


def markdown(frame: "pl.DataFrame") -> str:
    """A Markdown table; cells can't end it or hold HTML."""
    from reports.escape import md

    lines = ["| " + " | ".join(md(c) for c in frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    lines += ["| " + " | ".join(md(v) for v in row) + " |" for row in frame.iter_rows()]
    return "\n".join(lines) + "\n"


def _table(frame: "pl.DataFrame", title: str | None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160"))
    console = Console(width=width, highlight=False)
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", header_style="bold")
    numeric = [t.is_numeric() for t in frame.dtypes]
    for name, right in zip(frame.columns, numeric, strict=True):
        table.add_column(plain(name), justify="right" if right else "left", overflow="ellipsis", max_width=_WIDEST_CELL)
    for row in frame.iter_rows():
        table.add_row(*(Text(f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else plain(v)) for v in row))
    console.print(table)


def write_file(path: Path, data: bytes, *, clobber: bool) -> None:
    """Writes a file that must not be there yet.

    Raises:
        UsageError: it is, and `clobber` is not set.
    """
    if path.exists() and not clobber:
        raise UsageError(f"{path} exists", "give --clobber to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
