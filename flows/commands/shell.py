"""SQL over the archive: one query, or a line-based shell."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from data_contracts.errors import UsageError
from flows.output import OutputFormat, emit_frame, say

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from archive.store import Archive


def ask(archive: "Archive", query: str, to: OutputFormat) -> None:
    """Runs one SELECT and writes its rows.

    Raises:
        UsageError: it is not one SELECT, or DuckDB refuses it.
    """
    with archive.connect() as con:
        rows = _rows(con, query)
    emit_frame(rows, to)


def _rows(con: "duckdb.DuckDBPyConnection", query: str) -> "pl.DataFrame":
    import duckdb
    import polars as pl

    from archive.sqlview import check_read_only

    check_read_only(query)
    try:
        rows: pl.DataFrame = con.sql(query).pl()
    except duckdb.Error as error:
        raise UsageError(f"DuckDB: {str(error).strip()}", 'gatehound sql "show tables" lists the tables') from error
    except pl.exceptions.PolarsError as error:
        raise UsageError(
            "the result has a column of a type that is not taken out", "cast it to text: (x)::varchar"
        ) from error
    return rows


def shell(archive: "Archive", to: OutputFormat) -> None:
    """Reads statements that end with a semicolon until the end of the input; .tables and .quit as in other shells."""
    with archive.connect() as con:
        _statements(con, to)


def _statements(con: "duckdb.DuckDBPyConnection", to: OutputFormat) -> None:
    with suppress(ImportError):
        import readline  # noqa: F401 - line editing and history, where there is one
    if sys.stdin.isatty():
        say("Read-only DuckDB over the archive. Statements end with ; — .tables lists tables, .quit leaves.")
    held = ""
    while True:
        try:
            line = input("gatehound> " if not held else "      ...> ") if sys.stdin.isatty() else input()
        except EOFError:
            return
        if not held and line.strip() in (".quit", ".exit"):
            return
        held += ("show tables;" if not held and line.strip() == ".tables" else line) + "\n"
        if held.strip().endswith(";"):
            try:
                emit_frame(_rows(con, held), to)
            except UsageError as error:
                say(str(error))
            held = ""
