"""SQL over the archive: one query, or a line-based shell."""

import sys
from typing import TYPE_CHECKING

from data_contracts.errors import UsageError
from flows.output import OutputFormat, emit_frame, plain, stderr

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from archive.store import Archive


def ask(archive: "Archive", query: str, to: OutputFormat) -> None:
    """Runs one SELECT and writes its rows.

    Raises:
        UsageError: it is not one SELECT, or DuckDB refuses it.
    """
    emit_frame(_rows(archive.connect(), query), to)


def _rows(con: "duckdb.DuckDBPyConnection", query: str) -> "pl.DataFrame":
    import duckdb

    from archive.sqlview import check_read_only

    check_read_only(query)
    try:
        return con.sql(query).pl()
    except duckdb.Error as error:
        raise UsageError(f"DuckDB: {plain(str(error).strip())}", "gatehound sql \"show tables\" lists the tables") from error


def shell(archive: "Archive", to: OutputFormat) -> None:
    """Reads statements that end with a semicolon until the end of the input; .tables and .quit as in other shells."""
    con = archive.connect()
    try:
        import readline  # noqa: F401 - line editing and history, where there is one
    except ImportError:
        pass
    stderr().print("Read-only DuckDB over the archive. Statements end with ; — .tables lists tables, .quit leaves.", markup=False)
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
                stderr().print(str(error), markup=False)
            held = ""
