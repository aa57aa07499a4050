"""The gate before a commit: staged Parquet files against the contract, by Great Expectations through DuckDB.

    result = gate.validate("access_events", files, out_dir="…/validation", label=evidence_id)
    if not result.success: ...

Importing Great Expectations takes seconds: `warm_up()` begins it in the background while evidence is still being read.
"""

import atexit
import json
import logging
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from data_contracts.compiler import Contract, contract
from data_contracts.errors import RefusedError, UsageError
from data_contracts.rules import Rule, literal, quote

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.datasource.fluent import SQLDatasource

SAMPLES = 10  # values and rows shown of a failure
SHOWN = 200  # characters shown of a value
_ROWS_PER_SCAN = 16_000  # rows a file from which a scan a condition is cheaper than one scan for all
_IDENTITY = ("event_uid", "evidence_id", "record_no", "byte_offset")
_LOCK = threading.RLock()  # one database and one view per table: a batch at a time
_DATABASE = "duckdb:///:memory:gatehound"  # named, so that every engine of Great Expectations sees the same views


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate says of a batch.

    Each failure has: expectation, column, rules, reason, unexpected_count, sample_values and sample_rows (at most 10,
    each value at most 200 characters) and error (null unless the expectation could not be evaluated). `result` is the
    whole Great Expectations result, of which `path` is the copy on disk.
    """

    table: str
    success: bool
    failures: list[dict[str, Any]]
    result: dict[str, Any]
    path: str | None = None


@dataclass(slots=True)
class _Source:
    """One Great Expectations context over one DuckDB database, kept for the life of the process."""

    datasource: "SQLDatasource"
    connection: duckdb.DuckDBPyConnection
    batches: dict[str, Any] = field(default_factory=dict)


def warm_up() -> threading.Thread:
    """Begins to import Great Expectations in a daemon thread, and returns the thread."""
    thread = threading.Thread(target=_source, name="gate-warm-up", daemon=True)
    thread.start()
    return thread


def validate(
    table: str,
    parquet_files: Sequence[str],
    *,
    out_dir: str | None = None,
    filesystem: Any = None,
    label: str = "",
) -> GateResult:
    """Validates files as one batch of a table.

    Args:
        table: name of a contract.
        parquet_files: paths or URIs; a partition column may stand in the path (date=2026-01-31).
        out_dir: folder that gets `<label>-<table>.json`; a URI if `filesystem` is given.
        filesystem: fsspec filesystem that reads the files when they are not local.
        label: names the batch in the result, e.g. the evidence's sha256.

    Raises:
        RefusedError: a file cannot be read as Parquet.
        UsageError: no files, or no such table.
    """
    agreed = contract(table)
    if not parquet_files:
        raise UsageError(f"no files to validate for table {table}")
    with _LOCK:
        source = _source()
        view = _view(source, table, parquet_files, filesystem)
        _choose_scans(source, agreed, view, len(parquet_files))
        outcome = _evaluated(source, agreed, view)
        rules = {rule.name: rule for rule in agreed.refusals()}
        failures = [
            _failure(source.connection, agreed, view, item, rules) for item in outcome["results"] if not item["success"]
        ]
        source.connection.execute(f"drop view if exists {quote(view)}")
    outcome["meta"] |= {"table": table, "label": label, "files": len(parquet_files), "failures": failures}
    path = _written(outcome, out_dir, f"{_safe(label)}-{table}.json", filesystem) if out_dir else None
    return GateResult(table, bool(outcome["success"]), failures, outcome, path)


@cache
def _opened() -> _Source:
    # Before the import: nothing about an investigation may leave the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)
    import great_expectations as gx
    from great_expectations.data_context.types.base import DataContextConfig, InMemoryStoreBackendDefaults

    import data_contracts.duckdb_gx  # noqa: F401 - makes add_duckdb exist

    # The default configuration would leave a temporary folder for its pages behind.
    stores = InMemoryStoreBackendDefaults(init_temp_docs_sites=False)
    quiet = {"globally": False}
    config = DataContextConfig(store_backend_defaults=stores, analytics_enabled=False, progress_bars=quiet)
    context = gx.get_context(mode="ephemeral", project_config=config)
    source = context.data_sources.add_duckdb("gate", connection_string=_DATABASE)
    # The engine keeps this connection, and with it the database in memory.
    connection = source.get_execution_engine().engine.raw_connection().driver_connection
    # Left open at the end, it would be taken down after DuckDB's own module, which then complains on stderr.
    atexit.register(lambda: source.get_execution_engine().close())
    return _Source(source, connection)


def _source() -> _Source:
    with _LOCK:
        return _opened()


@cache
def _suite(table: str) -> "ExpectationSuite":
    from data_contracts.suite import compiled

    return compiled(contract(table))


def _view(source: _Source, table: str, files: Sequence[str], filesystem: Any) -> str:
    """Creates the view that stands for the batch, and returns its name."""
    if filesystem is not None:
        _registered(source.connection, filesystem)
    view = f"gate_{table}"
    paths = ", ".join(literal(_exactly(path) if filesystem is None else path) for path in files)
    try:
        source.connection.execute(
            f"create or replace view {quote(view)} as select * from read_parquet([{paths}], hive_partitioning = true)"
        )
    except duckdb.Error as error:
        raise RefusedError(f"{files[0]}: cannot be read as Parquet: {_short(error)}") from error
    return view


def _registered(connection: duckdb.DuckDBPyConnection, filesystem: Any) -> None:
    protocols = [filesystem.protocol] if isinstance(filesystem.protocol, str) else list(filesystem.protocol)
    for name in set(protocols) & set(connection.list_filesystems()):
        connection.unregister_filesystem(name)
    connection.register_filesystem(filesystem)


def _exactly(path: str) -> str:
    """A path in which no character is a wildcard to DuckDB."""
    return re.sub(r"([*?\[])", r"[\1]", path)


def _choose_scans(source: _Source, agreed: Contract, view: str, files: int) -> None:
    """One scan a condition for files of some size, one scan for all conditions where files are many and small."""
    try:
        row = source.connection.execute(f"select count(*) from {quote(view)}").fetchone()
    except duckdb.Error as error:
        raise RefusedError(f"table {agreed.name}: cannot be read as Parquet: {_short(error)}") from error
    engine = source.datasource.get_execution_engine()
    engine.scan_each = row is not None and row[0] >= _ROWS_PER_SCAN * files
    engine.few_values = frozenset(column.name for column in agreed.columns if column.low_cardinality)


def _evaluated(source: _Source, agreed: Contract, view: str) -> dict[str, Any]:
    """Result of the suite: booleans from one pass over the data, and counts and samples for what failed."""
    batch = _batch(source, agreed.name, view)
    suite = _suite(agreed.name)
    first = batch.validate(suite, result_format="BOOLEAN_ONLY")
    outcome: dict[str, Any] = _plain(first.to_json_dict())
    if not first.success:
        failed = {_key(item.expectation_config) for item in first.results if not item.success}
        wrong = type(suite)(name=suite.name)
        wrong.expectations = [item for item in suite.expectations if _key(item.configuration) in failed]
        summary = {"result_format": "SUMMARY", "partial_unexpected_count": SAMPLES}
        again = _plain(batch.validate(wrong, result_format=summary).to_json_dict())["results"]
        outcome["results"] = again + [item for item in outcome["results"] if item["success"]]
    return outcome


def _batch(source: _Source, table: str, view: str) -> Any:
    if table not in source.batches:
        asset = source.datasource.add_table_asset(table, table_name=view)
        source.batches[table] = asset.add_batch_definition_whole_table("whole")
    return source.batches[table].get_batch()


def _key(configuration: Any) -> str:
    return json.dumps([configuration.type, configuration.kwargs.get("column"), configuration.meta], sort_keys=True)


def _plain(value: Any) -> Any:
    """The value with long texts cut and without tracebacks, which name places on this machine."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k != "exception_traceback"}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _failure(
    connection: duckdb.DuckDBPyConnection, agreed: Contract, view: str, item: dict[str, Any], rules: dict[str, Rule]
) -> dict[str, Any]:
    configuration = item["expectation_config"]
    meta, found = configuration.get("meta") or {}, item.get("result") or {}
    broken = [rules[name] for name in meta.get("rules", ()) if name in rules]
    values = [None if v is None else str(v)[:SHOWN] for v in found.get("partial_unexpected_list", ())][:SAMPLES]
    if found:
        # Great Expectations shows the rejected values whole; one of them may be a megabyte of an attacker's choosing.
        found.update({key: _cut(found[key]) for key in found if key.startswith("partial_unexpected")})
    return {
        "expectation": configuration["type"],
        "column": configuration["kwargs"].get("column"),
        "rules": [rule.name for rule in broken],
        "reason": meta.get("reason", ""),
        "unexpected_count": found.get("unexpected_count", found.get("observed_value")),
        "sample_values": values,
        "sample_rows": _rows(connection, agreed, view, broken) if broken else [],
        "error": _error(item.get("exception_info") or {}),
    }


def _cut(value: Any) -> Any:
    if isinstance(value, list):
        return [_cut(item) for item in value[:SAMPLES]]
    if isinstance(value, dict):
        return {key: _cut(item) for key, item in value.items()}
    return value[:SHOWN] if isinstance(value, str) else value


def _error(info: dict[str, Any]) -> str | None:
    """The first message of an expectation that could not be evaluated."""
    for entry in [info, *[value for value in info.values() if isinstance(value, dict)]]:
        if entry.get("exception_message"):
            return str(entry["exception_message"]).splitlines()[0][:SHOWN]
    return None


def _rows(
    connection: duckdb.DuckDBPyConnection, agreed: Contract, view: str, broken: list[Rule]
) -> list[dict[str, str | None]]:
    """Some of the rows that break a rule: what identifies them, and the columns that the rule looks at."""
    looked_at = {c.name for c in agreed.columns if any(_names(rule, c.name) for rule in broken)}
    known = [c.name for c in agreed.columns if c.name in _IDENTITY] or [c.name for c in agreed.columns[:3]]
    shown = known + [c.name for c in agreed.columns if c.name in looked_at and c.name not in known]
    clause = "qualify" if any(rule.kind == "unique" for rule in broken) else "where"
    condition = " or ".join(f"({rule.sql})" for rule in broken)
    columns = ", ".join(f"left({quote(name)}::varchar, {SHOWN})" for name in shown)
    try:
        rows = connection.execute(
            f"select {columns} from {quote(view)} {clause} {condition} limit {SAMPLES}"
        ).fetchall()
    except duckdb.Error:
        return []  # a column is missing or has another type: that is a failure of its own, with its own text
    return [dict(zip(shown, row, strict=True)) for row in rows]


def _names(rule: Rule, column: str) -> bool:
    return rule.column == column or (rule.column is None and re.search(rf"\b{column}\b", rule.sql) is not None)


def _safe(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", label)[:100] or "batch"


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:SHOWN]


def _written(outcome: dict[str, Any], out_dir: str, name: str, filesystem: Any) -> str:
    text = json.dumps(outcome, indent=1, sort_keys=True, default=str) + "\n"
    if filesystem is not None and "://" in out_dir:
        path = f"{out_dir.rstrip('/')}/{name}"
        filesystem.pipe_file(path, text.encode())
        return path
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{name}.{os.getpid()}.part"
    part.write_text(text, encoding="utf-8")
    part.replace(folder / name)
    return str(folder / name)
