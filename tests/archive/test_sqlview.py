"""SQL: views on the current version, nothing else readable, nothing writable."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest
from deltalake import write_deltalake

from archive.sqlview import check_read_only, identifier, literal
from archive.store import Archive
from data_contracts import contract, names
from data_contracts.errors import UsageError
from queries.engine import hunt

BEGIN = datetime(2021, 1, 10, 23, 30, tzinfo=UTC)


def rows(days: int) -> pl.DataFrame:
    ts = [BEGIN + timedelta(days=i) for i in range(days)]
    df = pl.DataFrame({"event_uid": [f"{i:040d}" for i in range(days)], "ts": ts})
    df = df.with_columns(
        pl.col("ts").dt.replace_time_zone(None).dt.date().alias("date"), pl.lit("ews").alias("protocol")
    )
    return contract("access_events").conform(df.lazy()).collect()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    made = Archive.create(tmp_path_factory.mktemp("sql") / "it's")
    made.append("access_events", rows(4))
    return made


@pytest.fixture
def con(archive: Archive) -> Iterator[duckdb.DuckDBPyConnection]:
    with archive.connect(memory_limit="500MB", threads=1) as connection:
        yield connection


def test_every_contract_is_a_view(con: duckdb.DuckDBPyConnection) -> None:
    assert tuple(name for (name,) in con.execute("show tables").fetchall()) == names()
    assert con.execute("select count(*) from mail_events").fetchone() == (0,)


def older(rows: pl.DataFrame, folder: Path, *, without: tuple[str, ...]) -> None:
    """Rows as they were stored under a contract that had no such columns yet."""
    write_deltalake(str(folder), rows.drop(without), partition_by=["date"])


def test_columns_that_a_table_got_later_are_null_in_its_older_files(tmp_path: Path) -> None:
    own = Archive.create(tmp_path / "a")
    folder, without = tmp_path / "a" / "tables" / "access_events", ("token_id", "folders", "retr_count")
    older(rows(2), folder, without=without)
    with own.connect() as con:
        assert con.execute("select count(*), count(token_id), count(folders) from access_events").fetchall() == [
            (2, 0, 0)
        ]
        typed = dict(con.execute("select column_name, column_type from (describe access_events)").fetchall())
        assert (typed["token_id"], typed["folders"], typed["retr_count"]) == ("VARCHAR", "VARCHAR[]", "BIGINT")
    later = rows(3).with_columns(pl.lit("t1").alias("token_id"), pl.lit(7, pl.Int64).alias("retr_count"))
    own.append("access_events", later)
    with own.connect() as con:
        held = con.execute(
            "select date, count(token_id), sum(retr_count), count(folders) from access_events group by 1 order by 1"
        )
        assert [row[1:] for row in held.fetchall()] == [(1, 7, 0), (1, 7, 0), (1, 7, 0)]
        (plan,) = con.execute("explain select count(token_id) from access_events where date = '2021-01-11'").fetchall()
        assert "Scanning Files: 2/5" in plan[1]
    assert own.scan("access_events").select(pl.col("token_id").is_not_null().sum()).collect().item() == 3


@pytest.mark.parametrize("table", ["context_days", "mail_events", "change_events", "edge_days", "sessions"])
def test_a_hunt_runs_over_tables_of_an_older_contract(tmp_path: Path, table: str) -> None:
    own = Archive.create(tmp_path / "a")
    needed = {"date"} | {column.name for column in contract(table).columns if column.required}
    row = {"date": BEGIN.date()}
    full = pl.DataFrame([row], schema=contract(table).polars_schema)
    lacking = tuple(name for name in full.columns if name not in needed)[-3:]
    older(full, tmp_path / "a" / "tables" / table, without=lacking)
    with own.connect() as con:
        result = hunt(con)
    assert not [item for item in result.detections_skipped if item.reason.startswith("failed")]


def test_macros_are_there_for_the_tables_that_they_read(archive: Archive, con: duckdb.DuckDBPyConnection) -> None:
    assert con.execute("select count(*) from service_days(date '2021-01-01', date '2021-01-31')").fetchone() == (0,)
    with archive.connect(tables=["access_events"]) as few, pytest.raises(duckdb.Error):
        few.execute("from declared_networks()")


def test_days_prune_files(con: duckdb.DuckDBPyConnection) -> None:
    for condition in (
        "date = '2021-01-11'",
        "date between '2021-01-11' and date '2021-01-11'",
        "date = date '2021-01-11'",
    ):
        (plan,) = con.execute(f"explain select count(*) from access_events where {condition}").fetchall()
        assert "Scanning Files: 1/4" in plan[1]


def test_times_are_utc(con: duckdb.DuckDBPyConnection) -> None:
    query = (
        "select cast(min(ts) as varchar), min(cast(ts as date) = date), current_setting('TimeZone') from access_events"
    )
    assert con.execute(query).fetchall() == [("2021-01-10 23:30:00+00", True, "UTC")]


def test_former_versions_and_few_views(archive: Archive, tmp_path: Path) -> None:
    own = Archive.create(tmp_path / "a")
    first = own.append("access_events", rows(1))
    own.append("access_events", rows(3))
    with own.connect(versions={"access_events": first}, tables=["access_events"]) as past:
        assert past.execute("select count(*) from access_events").fetchone() == (1,)
        assert past.execute("show tables").fetchall() == [("access_events",)]


@pytest.mark.parametrize(
    "sql",
    [
        "copy (select 1) to '{folder}/out.csv'",
        "copy access_events to '{folder}/out.parquet'",
        "export database '{folder}/out'",
        "attach '{folder}/x.db'",
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from read_blob('{folder}/archive.toml')",
        "select * from '/etc/passwd'",
        "select * from glob('/etc/*')",
        "select * from read_parquet('{folder}/tables/*/*/*.parquet')",
        "select * from read_csv('http://127.0.0.1:1/x')",
        "install httpfs",
        "load httpfs",
        "set threads = 4",
        "set enable_external_access = true",
        "reset lock_configuration",
        "select * from enable_logging(storage = 'file', storage_path = '{folder}/log')",
        "select getenv('HOME')",
        "from somewhere_in_python",
    ],
)
def test_the_connection_itself_refuses(archive: Archive, con: duckdb.DuckDBPyConnection, sql: str) -> None:
    somewhere_in_python = pl.DataFrame({"a": [1]})  # noqa: F841 - must not be found
    before = archive.place.sizes()
    with pytest.raises(duckdb.Error):
        con.execute(sql.format(folder=archive.uri.replace("'", "''"))).fetchall()
    assert archive.place.sizes() == before


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing",
        "select 1; select 2",
        "select 1; drop view access_events",
        "copy (select 1) to 'x' (use_tmp_file false)",
        "insert into access_events values (1)",
        "with x as (delete from access_events returning *) select * from x",
        "create table t as select 1",
        "attach 'x.db'",
        "install httpfs",
        "set threads = 1",
        "pragma version",
        "call pragma_version()",
        "explain analyze select 1",
        "select * from arrow_scan(1, 2, 3)",
        "select * from (select * from PANDAS_SCAN(1))",
        "select * from query('select 1')",
        "select (select count(*) from query('copy x to y'))",
        'with a as (select * from "arrow_scan"(1,2,3)) select * from a',
        "select 'unfinished",
        "selec 1",
    ],
)
def test_only_one_select_passes_the_check(sql: str) -> None:
    with pytest.raises(UsageError, match=r"^SQL: "):
        check_read_only(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "select * from access_events;",
        "from access_events",
        "with a as (select 1 as x) select x from a -- ; drop",
        "select ';' as a",
        "describe access_events",
        "show tables",
        "summarize access_events",
        "select * from access_events where ts > $since",
        "values (1)",
        "select list_transform([1], lambda x: x + 1)",
        "select unnest(range(3))",
    ],
)
def test_plain_reading_passes_the_check(sql: str) -> None:
    check_read_only(sql)


def test_an_overwriting_copy_passes_duckdb_but_not_the_check(archive: Archive) -> None:
    """The reason why text from outside goes through check_read_only."""
    sql = f"copy (select 1) to {literal(archive.files('access_events')[0])} (use_tmp_file false)"
    with pytest.raises(UsageError, match="COPY is not a SELECT"):
        check_read_only(sql)


def test_quoting() -> None:
    text = "a'b\"; --\\"
    with duckdb.connect() as con:
        assert con.execute(f"select {literal(text)} as {identifier(text)}").fetchall() == [(text,)]
        assert con.description is not None
        assert con.description[0][0] == text
    with pytest.raises(UsageError):
        literal("a\0")
