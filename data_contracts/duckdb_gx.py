"""DuckDB as a source of Great Expectations, which has none of its own.

Three parts: a small SQLAlchemy dialect over DuckDB's own DB-API, an execution engine that keeps its connection open
(the generic one closes it before it fetches, and DuckDB's rows are then gone), and a data source of type `duckdb`.
Importing this module makes `context.data_sources.add_duckdb(name, connection_string="duckdb:///:memory:name")` exist.
It costs the import of Great Expectations, so import it only where a batch is validated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Literal

import duckdb
import sqlalchemy as sa
from great_expectations.datasource.fluent import SQLDatasource
from great_expectations.execution_engine import SqlAlchemyExecutionEngine
from great_expectations.expectations.metrics import ColumnMapMetricProvider
from great_expectations.expectations.metrics.map_metric_provider import column_condition_partial
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.pool import StaticPool

# Nothing may be fetched from the network.
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}


class DuckDBDialect(DefaultDialect):  # type: ignore[misc]  # its types are not checked
    """SQLAlchemy's standard SQL over DuckDB: enough to select and to list the columns of a relation."""

    name = "duckdb"
    driver = "duckdb"
    default_paramstyle = "qmark"
    supports_statement_cache = True
    supports_native_boolean = True
    supports_sane_rowcount = False

    @classmethod
    def import_dbapi(cls) -> Any:
        """DuckDB's module is its own DB-API."""
        return duckdb

    def create_connect_args(self, url: sa.URL) -> tuple[list[Any], dict[str, Any]]:
        """Opens the file that the URL names, or a database in memory."""
        return [], {"database": url.database or ":memory:", "config": SETTINGS}

    def connect(self, *cargs: Any, **cparams: Any) -> Any:
        """Opens the database. UTC for all of it, since each cursor is a session of its own."""
        connection = duckdb.connect(*cargs, **cparams)
        connection.execute("set global TimeZone = 'UTC'")
        return connection

    def initialize(self, connection: sa.Connection) -> None:
        """Asks nothing: versions and schemas make no difference to the statements made here."""

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Nothing: statements commit themselves, and DuckDB refuses a rollback outside a transaction."""

    def do_commit(self, dbapi_connection: Any) -> None:
        """Nothing, for the same reason."""

    def get_columns(self, connection: Any, table_name: str, _schema: str | None = None, **_kw: Any) -> list[Any]:
        """Names and types of a relation's columns, as DuckDB describes them."""
        quoted = self.identifier_preparer.quote_identifier(str(table_name))
        rows = connection.exec_driver_sql(f"describe {quoted}").fetchall()
        return [{"name": row[0], "type": _Type(row[1]), "nullable": True, "default": None} for row in rows]

    def get_pk_constraint(self, _connection: Any, _table_name: str, _schema: str | None = None, **_kw: Any) -> Any:
        """Views have no keys."""
        return {"constrained_columns": [], "name": None}

    def has_table(self, connection: Any, table_name: str, _schema: str | None = None, **_kw: Any) -> bool:
        """Whether a table or view of that name exists."""
        sql = "select 1 from information_schema.tables where table_name = ?"
        return connection.exec_driver_sql(sql, (str(table_name),)).first() is not None

    def get_schema_names(self, _connection: Any, **_kw: Any) -> list[str]:
        """The schema that views are made in."""
        return ["main"]


class _Type(sa.types.UserDefinedType[Any]):  # type: ignore[misc]  # its types are not checked
    """A type by DuckDB's name."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_kw: Any) -> str:
        return self.name


class DuckDBExecutionEngine(SqlAlchemyExecutionEngine):  # type: ignore[misc]  # its types are not checked
    """Keeps one connection open, as Great Expectations itself does for SQLite, and counts in the cheaper of two ways.

    Great Expectations counts unexpected rows by one pass of `sum(case when ... then 1 else 0 end)`, which reads every
    column of every row. As `count(*) ... where`, one scan a condition, Parquet's statistics answer most of them unread:
    a tenth of the time on 3 million access events, patterns apart. But each scan opens each file, which loses where
    files are many and small.
    """

    scan_each = False  # set for a batch: one scan a condition
    few_values: frozenset[str] = frozenset()  # set for a batch: columns whose patterns are tried on distinct values

    def resolve_metric_bundle(self, metric_fn_bundle: Any) -> dict[Any, Any]:
        """Values of the metrics by their ids."""
        if not self.scan_each:
            return dict(super().resolve_metric_bundle(metric_fn_bundle))
        bundle = list(metric_fn_bundle)
        counted = [(item, condition) for item in bundle if (condition := _condition(item.metric_fn)) is not None]
        others = [item for item in bundle if _condition(item.metric_fn) is None]
        resolved: dict[Any, Any] = super().resolve_metric_bundle(others) if others else {}
        for item, condition in counted:
            relation = self.get_domain_records(domain_kwargs=item.compute_domain_kwargs)
            relation = relation.subquery() if isinstance(relation, sa.Select) else relation
            query = sa.select(sa.func.count()).select_from(relation).where(condition)
            name = item.compute_domain_kwargs.get("column") or item.metric_configuration.metric_domain_kwargs.get(
                "column"
            )
            if name in self.few_values and "regex" in item.metric_configuration.metric_value_kwargs:
                value, rows = sa.column(name), sa.func.count().label("n")
                distinct = sa.select(value, rows).select_from(relation).group_by(value).subquery()
                query = sa.select(sa.func.coalesce(sa.func.sum(distinct.c.n), 0)).select_from(distinct).where(condition)
            # Not joined by UNION ALL: DuckDB would then read the whole relation once, into memory.
            resolved[item.metric_configuration.id] = int(self.execute_query(query).scalar_one())
        return resolved

    _connection: sa.Connection | None

    @contextmanager
    def get_connection(self) -> Iterator[sa.Connection]:
        """The connection; it stays open for rows that are fetched later."""
        if self._connection is None:
            self._connection = self.engine.connect()
        yield self._connection

    def close(self) -> None:
        """Closes the connection that is kept open, and the engine's others."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        super().close()


def _condition(expression: Any) -> Any:
    """The condition of `sum(case when condition then 1 else 0 end)`, or None for any other expression."""
    if not isinstance(expression, sa.sql.functions.sum):
        return None
    (case,) = expression.clauses
    if not isinstance(case, sa.Case) or len(case.whens) != 1:
        return None
    ((condition, one),) = case.whens
    values = getattr(one, "value", None), getattr(case.else_, "value", None)
    return condition if values == (1, 0) else None


class DuckDBRegex(ColumnMapMetricProvider):  # type: ignore[misc]  # its types are not checked
    """Regular expressions in DuckDB's SQL, so that they are counted in the same pass as all other column metrics."""

    condition_metric_name = "column_values.match_regex"
    condition_value_keys = ("regex",)

    @column_condition_partial(engine=DuckDBExecutionEngine)  # type: ignore[untyped-decorator]  # the same
    def _duckdb(cls, column: Any, regex: str, _dialect: ModuleType | None = None, **_kw: Any) -> Any:  # noqa: N805
        return sa.func.regexp_matches(column, sa.literal(regex))


_EngineType = type[SqlAlchemyExecutionEngine]  # inside the class below, `type` is a field


class DuckDBDatasource(SQLDatasource):  # type: ignore[misc]  # its types are not checked
    """Data source over a DuckDB database."""

    type: Literal["duckdb"] = "duckdb"

    @property
    def execution_engine_type(self) -> _EngineType:
        """The engine that keeps its connection."""
        return DuckDBExecutionEngine

    def _create_engine(self) -> sa.Engine:
        return sa.create_engine(str(self.connection_string), poolclass=StaticPool)


registry.register("duckdb", __name__, DuckDBDialect.__name__)
