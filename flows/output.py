"""stdout is data, stderr is talk: tables, CSV, JSON, JSON lines, Parquet, Markdown; no log text acts there."""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from data_contracts.errors import UsageError

if TYPE_CHECKING:
    import polars as pl
    from rich.console import Console
    from rich.table import Table

_NARROWEST_CELL = 14  # a text column is not squeezed below
_GAP = 3  # between two columns
_LABEL = re.compile(
    r"(?:^|_)(?:port|asn|year|no|offset|byte|version)$|^at byte$|^record$"
)  # numbers that nobody adds up
_MOST_ROWS = 1000  # of a table on a terminal; the other formats have all
_WIDE = 160  # of a table that goes to a file


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


def stdout() -> "Console":
    """Where tables for people go: as wide as the terminal or COLUMNS say."""
    from rich.console import Console

    return Console(width=width(), highlight=False)


def width() -> int:
    """Columns of the terminal; of a file COLUMNS, or 160."""
    return max(40, shutil.get_terminal_size((_WIDE, 24)).columns)


def say(text: str, style: str | None = None) -> None:
    """A line of talk; what is in it can't act on the terminal."""
    stderr().print("\n".join(plain(line) for line in text.split("\n")), markup=False, style=style)


@contextmanager
def working(text: str) -> Iterator[None]:
    """Shows on a terminal that something is being done."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(plain(text)):
        yield


def plain(value: object) -> str:
    """Text of a value for a terminal: one line, control characters shown as escapes."""
    from reports import escape

    return escape.plain(value)


def write(text: str) -> None:
    """Text to stdout."""
    sys.stdout.write(text)


def emit(value: Any) -> None:
    """One JSON document to stdout."""
    from reports.escape import to_json

    write(to_json(value) + "\n")


def emit_frame(
    frame: "pl.DataFrame",
    fmt: OutputFormat,
    *,
    title: str | None = None,
    prose: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> None:
    """Writes a frame to stdout.

    Args:
        frame: rows.
        fmt: how.
        title: above a table or a Markdown table.
        prose: columns whose text is wrapped in a table, not cut.
        labels: headings of columns in a table and in Markdown.

    Raises:
        UsageError: Parquet to a terminal.
    """
    from reports.escape import csv, to_json

    if fmt is OutputFormat.json:
        emit(frame.to_dicts())
    elif fmt is OutputFormat.jsonl:
        for row in frame.iter_rows(named=True):
            write(to_json(row, indent=None) + "\n")
    elif fmt is OutputFormat.csv:
        write(csv(frame))
    elif fmt is OutputFormat.parquet:
        if sys.stdout.isatty():
            raise UsageError("Parquet is not for a terminal", "send it to a file: ... -t parquet > rows.parquet")
        frame.write_parquet(sys.stdout.buffer)
    elif fmt is OutputFormat.md:
        write(
            (f"## {title}\n\n" if title else "")
            + markdown(frame.rename(dict(labels or {}), strict=False))
            + ("\n" if title else "")
        )
    else:
        _show(frame.rename(dict(labels or {}), strict=False), title, {(labels or {}).get(c, c) for c in prose})


def markdown(frame: "pl.DataFrame") -> str:
    """A Markdown table; cells can't end it or hold HTML."""
    from reports.escape import md

    lines = ["| " + " | ".join(md(c) for c in frame.columns) + " |", "|" + " --- |" * len(frame.columns)]
    lines += ["| " + " | ".join(md(v) for v in row) + " |" for row in frame.iter_rows()]
    return "\n".join(lines) + "\n"


def _show(frame: "pl.DataFrame", title: str | None, prose: set[str]) -> None:
    """As a table where it fits, else one block of lines for each row."""
    from rich.cells import cell_len

    labels = [_LABEL.search(name) is not None for name in frame.columns]
    rows = [
        [plain(v) if is_label else _cell(v) for v, is_label in zip(row, labels, strict=True)]
        for row in frame.head(_MOST_ROWS).iter_rows()
    ]
    headings = [plain(c) for c in frame.columns]
    needed = [max([cell_len(h), *(cell_len(r[i]) for r in rows)]) for i, h in enumerate(headings)]
    fixed = [t.is_numeric() or t.is_temporal() for t in frame.dtypes]
    least = [n if f else min(n, _NARROWEST_CELL) for n, f in zip(needed, fixed, strict=True)]
    room = width() - _GAP * len(headings) - 1
    if sum(least) <= room:
        table = _table(headings, title, frame.dtypes, [h in prose for h in frame.columns], _widths(needed, least, room))
        from rich.text import Text

        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        stdout().print(table)
    else:
        _records(headings, rows, title)
    if frame.height > _MOST_ROWS:
        say(f"The first {_MOST_ROWS:,} of {frame.height:,} rows; -t csv, jsonl or parquet give all.", "dim")


def _widths(needed: list[int], least: list[int], room: int) -> list[int]:
    """What each column gets: what it needs, or its share of the room that is left."""
    given, left = list(least), room - sum(least)
    while left > 0:
        short = [i for i, n in enumerate(needed) if given[i] < n]
        if not short:
            break
        share = max(1, left // len(short))
        for i in short[:left]:
            more = min(share, needed[i] - given[i])
            given[i] += more
            left -= more
    return given


def _table(
    headings: list[str], title: str | None, kinds: "Sequence[pl.DataType]", prose: list[bool], widths: list[int]
) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    heading = Text(title, style="bold") if title else None
    table = Table(box=SIMPLE_HEAD, title=heading, title_justify="left", header_style="bold", padding=(0, 1))
    for name, kind, wraps, size in zip(headings, kinds, prose, widths, strict=True):
        justify: Any = "right" if kind.is_numeric() else "left"
        table.add_column(
            Text(name), justify=justify, overflow="fold" if wraps else "ellipsis", no_wrap=not wraps, width=size
        )
    return table


def _records(headings: list[str], rows: list[list[str]], title: str | None) -> None:
    """Each row as lines of name and value; values that are not there are left out."""
    from rich.text import Text

    console = stdout()
    if title:
        console.print(Text(title, style="bold"))
    wide = max(len(h) for h in headings)
    for number, row in enumerate(rows, 1):
        console.print(Text(f"row {number}", style="dim"))
        for name, cell in zip(headings, row, strict=True):
            if cell:
                console.print(Text.assemble((f"  {name:<{wide}}  ", "bold"), cell), soft_wrap=True)
    if not rows:
        console.print(Text("no rows", style="dim"))


def _cell(value: object) -> str:
    from decimal import Decimal

    if isinstance(value, float):
        return f"{value:,.3f}".rstrip("0").rstrip(".") if abs(value) >= 1 else f"{value:.4g}"
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return f"{value:,}"
    return plain(value)
