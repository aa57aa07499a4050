"""Read-only SQL over an archive: DuckDB views on the files that the tables' versions name.

The connection is for text that others wrote: a hunt's SQL, an analyst's query. External access is off but for the
tables' files, no extension can be loaded, and no setting can be changed. DuckDB 2.0 still lets `COPY ... TO` write
over an allowed file, and has table functions that read memory addresses, so such text goes through
`check_read_only` first.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from archive import delta
from data_contracts import Contract, contract, macros, names
from data_contracts.errors import UsageError

if TYPE_CHECKING:
    import duckdb

    from archive.store import Archive

# Table functions that take addresses in memory, run text that was not checked, or register things.
_FORBIDDEN = frozenset(
    {
        "arrow_scan",
        "arrow_scan_dumb",
        "pandas_scan",
        "python_arrow_scan",
        "python_map_function",
        "seq_scan",
        "query",
        "json_execute_serialized_sql",
        "copy_database",
        "import_database",
        "create_external_resource",
        "destroy_external_resource",
        "register_external_resource",
        "deregister_external_resource",
        "register_external_resource_type",
        "add_parquet_key",
        "checkpoint",
        "force_checkpoint",
    }
)
_WRITES = frozenset({"INSERT_QUERY_NODE", "DELETE_QUERY_NODE", "UPDATE_QUERY_NODE", "MERGE_QUERY_NODE"})
_TYPES = {
    pl.String(): "VARCHAR",
    pl.Int64(): "BIGINT",
    pl.Int32(): "INTEGER",
    pl.Float64(): "DOUBLE",
    pl.Boolean(): "BOOLEAN",
    pl.Date(): "DATE",
    pl.Datetime("us", "UTC"): "TIMESTAMP WITH TIME ZONE",
    pl.List(pl.String()): "VARCHAR[]",
    pl.List(pl.Int64()): "BIGINT[]",
    pl.Binary(): "BLOB",
}


def connect(
    archive: "Archive",
    *,
    memory_limit: str | None = None,
    threads: int | None = None,
    versions: Mapping[str, int] | None = None,
    tables: Sequence[str] | None = None,
) -> "duckdb.DuckDBPyConnection":
    """An in-memory DuckDB with one view for each table, in UTC, that can read nothing else.

    Args:
        memory_limit: as DuckDB writes it, e.g. "4GB"; by default 80 % of the machine's memory.
        threads: by default one for each core.
        versions: table versions to look at in place of the current ones. A table that it does not name is current.
        tables: only these views; by default one for every contract. Tables never stored are empty and typed.
    """
    import duckdb

    con = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        }
    )
    con.execute("set TimeZone = 'UTC'")
    if not archive.place.is_local:
        con.register_filesystem(archive.place.filesystem)
    allowed: set[str] = set()
    for name in names() if tables is None else tables:
        found = archive.snapshot(name, (versions or {}).get(name))
        sql, files = _view(con, archive, contract(name), found)
        con.execute(sql)
        allowed.update(files)
    macros.create(con, names() if tables is None else tables)
    _harden(con, sorted(allowed), memory_limit, threads)
    return con


def _harden(
    con: "duckdb.DuckDBPyConnection", allowed: list[str], memory_limit: str | None, threads: int | None
) -> None:
    spill = tempfile.mkdtemp(prefix="gatehound-spill-")
    weakref.finalize(con, shutil.rmtree, spill, ignore_errors=True)
    con.execute(f"set temp_directory = {literal(spill)}")
    if memory_limit is not None:
        con.execute(f"set memory_limit = {literal(memory_limit)}")
    if threads is not None:
        con.execute(f"set threads = {int(threads)}")
    con.execute(f"set allowed_paths = [{', '.join(literal(path) for path in allowed)}]")
    con.execute("set enable_external_access = false")
    con.execute("set lock_configuration = true")


def check_read_only(sql: str) -> None:
    """Raises UsageError unless the text is exactly one SELECT that calls no function that could do more than read."""
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise UsageError(f"SQL: {error}") from error
    if len(statements) != 1:
        raise UsageError(f"SQL: {len(statements)} statements where one is due", "give exactly one SELECT")
    kind = statements[0].type
    if kind != duckdb.StatementType.SELECT:
        raise UsageError(f"SQL: {kind.name} is not a SELECT", "the archive can only be read")
    with duckdb.connect() as con:
        ((text,),) = con.execute("select json_serialize_sql(?, skip_null := true)", [sql]).fetchall()
    tree = json.loads(text)
    if tree.get("error"):
        raise UsageError(f"SQL: cannot be checked: {tree.get('error_message')}", "write it as a plain SELECT")
    for node in _nodes(tree):
        function = str(node.get("function_name", "")).lower()
        if function in _FORBIDDEN:
            raise UsageError(f"SQL: the function {function} is not allowed", "read the tables by name")
        if node.get("type") in _WRITES:
            raise UsageError("SQL: a part of it changes a table", "the archive can only be read")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield node
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _view(
    con: "duckdb.DuckDBPyConnection", archive: "Archive", table: Contract, found: delta.Snapshot | None
) -> tuple[str, list[str]]:
    """The statement that creates a table's view, and the paths it must be allowed to read.

    Columns that a file lacks, since it was stored under an older contract, are null. Only where a table was begun under
    one are all of its files opened to see what they hold.
    """
    schema = table.polars_schema if found is None else found.schema
    types = {name: _TYPES.get(kind, "VARCHAR") for name, kind in schema.items()}
    head = f"create view {identifier(table.name)} as select"
    if found is None or found.files.is_empty():
        columns = ", ".join(f"cast(null as {kind}) as {identifier(name)}" for name, kind in types.items())
        return f"{head} {columns} where false", []
    paths = [archive.place.path("tables", table.name, path) for path in found.paths()]
    patterns = [_no_pattern(path) for path in paths]
    options = "hive_partitioning = false"
    if table.partitioned_by:
        day = identifier(table.partitioned_by)
        options = f"hive_partitioning = true, hive_types = {{{day}: DATE}}, hive_types_autocast = false"
    listed = ", ".join(literal(pattern) for pattern in patterns)
    rows, held = f"read_parquet([{listed}], {options})", set(types)
    if found.added:
        rows = f"read_parquet([{listed}], {options}, union_by_name = true)"
        held = {name for name, *_ in con.execute(f"select * from {rows} limit 0").description or ()}
    columns = ", ".join(
        f"cast({identifier(name) if name in held else 'null'} as {kind}) as {identifier(name)}"
        for name, kind in types.items()
    )
    return f"{head} {columns} from {rows}", paths + patterns


def literal(text: str) -> str:
    """A text as an SQL literal."""
    if "\0" in text:
        raise UsageError("SQL: a text with a zero byte cannot be written")
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _no_pattern(path: str) -> str:
    """The path with glob signs taken literally: read_parquet takes every path for a pattern."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)
