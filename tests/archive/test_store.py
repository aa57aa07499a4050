"""Tables: staged files are unseen, commits happen once, days are replaced whole, types come back as they were."""

import multiprocessing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import duckdb
import polars as pl
import pytest

from archive.parquet import sort_order
from archive.storage import Place, keepable, safe_name
from archive.store import Archive
from data_contracts import contract, names
from data_contracts.errors import IntegrityError, RefusedError, UsageError

DAY = date(2021, 1, 10)
A, B, C = "a" * 64, "b" * 64, "c" * 64


def events(
    number: int, *, evidence: str = A, day: date = DAY, days: int = 1, source: str = "exchange_ews"
) -> pl.DataFrame:
    """Rows of access_events with hostile text in every free column."""
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    rows = [
        {
            "event_uid": f"{evidence[:1]}{day.toordinal():09d}{i:030d}",
            "ts": (ts := begin + timedelta(days=i % days, microseconds=(i * 7919) % 86_400_000_000)),
            "date": ts.date(),
            "ts_raw": ts.isoformat(),
            "ts_basis": "utc",
            "source": source,
            "tenant_id": [None, "t1", "t2"][i % 3],
            "tenant_basis": "none",
            "protocol": "ews",
            "action": "get_item",
            "outcome": "success",
            "credential_id": None if i % 4 == 0 else f"pw:user{i % 5}'\"; drop table x --",
            "user_agent": "<script>\x00\u202e",
            "src_ip_key": None if i % 2 else bytes(range(16)),
            "external_access": None if i % 2 else True,
            "evidence_id": evidence,
            "record_no": i,
            "byte_offset": i * 100,
            "byte_length": 100,
        }
        for i in range(number)
    ]
    schema = contract("access_events").polars_schema
    return (
        contract("access_events")
        .conform(pl.DataFrame(rows, schema_overrides={k: schema[k] for k in rows[0]}).lazy())
        .collect()
    )


def filled(table: str, rows: int = 5) -> pl.DataFrame:
    """A frame of a contract with a value of every type in every second row, null in the others."""
    values = {
        pl.String(): "ü\n'\"%",
        pl.Int64(): -(2**62),
        pl.Int32(): 2**31 - 1,
        pl.Float64(): 0.1,
        pl.Boolean(): False,
        pl.Date(): DAY,
        pl.Datetime("us", "UTC"): datetime(2021, 1, 10, 1, 2, 3, 456789, tzinfo=UTC),
        pl.List(pl.String()): ["a", "", "b,c"],
        pl.List(pl.Int64()): [0, 2**40, 3],
        pl.Binary(): b"\x00\xff'",
    }
    schema = contract(table).polars_schema
    keep = contract(table).partitioned_by
    return pl.DataFrame(
        {n: [values[t] if n == keep or i % 2 == 0 else None for i in range(rows)] for n, t in schema.items()},
        schema=schema,
    )


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "archive")


def test_create_and_open(tmp_path: Path) -> None:
    created = Archive.create(tmp_path / "new" / "archive")
    assert Archive.open(tmp_path / "new" / "archive").configuration == created.configuration
    assert next(iter(created.custody_log.entries()))["action"] == "init"
    with pytest.raises(UsageError, match="is an archive already"):
        Archive.create(tmp_path / "new" / "archive")
    with pytest.raises(UsageError, match="not an empty folder"):
        Archive.create(tmp_path / "new")
    with pytest.raises(UsageError, match="Hint: gatehound init -a"):
        Archive.open(tmp_path / "missing")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "archive.toml").write_text("layout = [")
    with pytest.raises(UsageError, match=r"archive.toml: cannot be read"):
        Archive.open(tmp_path / "damaged")


@pytest.mark.parametrize("folder", ["case=42", "date=2020-01-01", "a\nb", "a%20b"])
def test_paths_that_readers_misread_are_refused(tmp_path: Path, folder: str) -> None:
    with pytest.raises(UsageError):
        Archive.create(tmp_path / folder / "archive")


@pytest.mark.parametrize("folder", ["a'b", "a b", "[x]*?{y}", "a#b", 'q"', "ünï", "-- ;"])
def test_hostile_folder_names_work(tmp_path: Path, folder: str) -> None:
    archive = Archive.create(tmp_path / folder)
    archive.append("access_events", events(6, days=2))
    assert archive.scan("access_events").collect().height == 6
    con = archive.connect()
    assert con.execute("select count(*) from access_events where date = '2021-01-11'").fetchone() == (3,)
    assert archive.verify() == []


def test_absent_tables_are_empty_and_typed(archive: Archive) -> None:
    for name in names():
        assert archive.scan(name).collect_schema() == contract(name).polars_schema
    assert archive.versions() == {}
    assert archive.files("access_events") == []
    assert archive.changed_dates("access_events", None) == []
    assert archive.event_uids("access_events", [DAY], "x").to_list() == []
    with pytest.raises(UsageError, match="there is no table"):
        archive.scan("../etc")


def test_staged_files_are_unseen_until_committed(archive: Archive) -> None:
    staged = archive.stage("access_events", events(10, days=3), "../../x y/\x00'")
    assert [s.date for s in staged] == [DAY, DAY + timedelta(1), DAY + timedelta(2)]
    assert sum(s.rows for s in staged) == 10
    for file in staged:
        path = Path(archive.uris([file])[0])
        assert path.stat().st_size == file.bytes
        assert path.parent.parent == Path(archive.uri) / "tables" / "access_events"
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
        assert "date" not in pl.read_parquet_schema(path)
    assert archive.scan("access_events").collect().is_empty()
    assert archive.connect().execute("select count(*) from access_events").fetchone() == (0,)
    assert archive.staged_uids(staged, [DAY]).len() == staged[0].rows
    archive.commit("access_events", staged, [A])
    assert archive.scan("access_events").collect().height == 10
    assert archive.committed("access_events", A)
    assert not archive.committed("access_events", B)


def test_every_type_comes_back(archive: Archive) -> None:
    for name in names():
        df = filled(name)
        archive.overwrite(name, df) if contract(name).kind == "reference" else archive.append(name, df)
        back = archive.scan(name).collect()
        assert back.schema == contract(name).polars_schema, name
        assert sorted(map(repr, back.rows())) == sorted(map(repr, df.rows())), name
    con = archive.connect()
    for name in names():
        described = con.execute(f'describe "{name}"').fetchall()
        assert [(row[0], row[1]) for row in described] == [(c.name, c.type) for c in contract(name).columns]
        assert sorted(map(repr, con.sql(f'from "{name}"').pl().rows())) == sorted(map(repr, filled(name).rows())), name


def test_files_are_sorted_as_the_contract_says(archive: Archive) -> None:
    (staged,) = archive.stage("access_events", events(300), "t")
    back = pl.read_parquet(archive.uris([staged])[0]).with_columns(pl.col("tenant_id").cast(pl.String))
    keys = list(contract("access_events").sorted_by)
    assert back.select(keys).equals(back.select(keys).sort(keys, nulls_last=False))


def test_sort_order_equals_polars() -> None:
    df = events(200, days=3).with_columns(pl.lit(1.5).alias("x"))
    for keys in (
        ["date", "tenant_id", "credential_id", "ts"],
        ["ts"],
        ["record_no", "tenant_id"],
        ["x", "ts"],
        ["user_agent", "ts_end"],
    ):
        assert (
            sort_order(df, keys).to_list() == df.select(pl.arg_sort_by(keys, maintain_order=True)).to_series().to_list()
        )
    wide = pl.DataFrame({"n": [2**63 - 1, None, -(2**63), 5]})
    assert sort_order(wide, ["n"]).to_list() == [1, 2, 3, 0]


def test_only_conforming_frames_are_staged(archive: Archive) -> None:
    with pytest.raises(RefusedError, match="does not conform to the contract in record_no"):
        archive.stage("access_events", events(3).drop("record_no"), "t")
    with pytest.raises(RefusedError, match="without date"):
        archive.stage("access_events", events(3).with_columns(pl.lit(None, pl.Date).alias("date")), "t")
    assert archive.stage("access_events", events(3).clear(), "t") == []


def test_commit_is_exactly_once(archive: Archive) -> None:
    first = archive.stage("access_events", events(5), A)
    version = archive.commit("access_events", first, [A])
    assert archive.commit("access_events", first, [A]) == version  # told again after a crash: its files must survive
    second = archive.stage("access_events", events(5), A)
    assert archive.commit("access_events", second, [A]) == version
    assert archive.scan("access_events").collect().height == 5
    assert not Path(archive.uris(second)[0]).exists()
    assert archive.verify() == []


def test_committed_sees_other_writers(archive: Archive) -> None:
    assert not archive.committed("access_events", A)
    other = Archive.open(archive.uri)
    for evidence in (A, B, C):
        other.append("access_events", events(1, evidence=evidence), evidence)
        assert archive.committed("access_events", evidence)
    assert not archive.committed("access_events", "d" * 64)


def test_many_commits_cross_checkpoints(archive: Archive) -> None:
    for number in range(25):
        archive.append("access_events", events(1, day=DAY + timedelta(number)), f"{number:064}")
    assert all(archive.committed("access_events", f"{number:064}") for number in range(25))
    assert Archive.open(archive.uri).committed("access_events", f"{0:064}")
    assert archive.scan("access_events", version=5).collect().height == 5
    assert archive.changed_dates("access_events", 20) == [DAY + timedelta(n) for n in range(20, 25)]
    assert archive.verify() == []


def test_a_crash_between_two_tables_is_made_good(archive: Archive) -> None:
    both = {A: events(4), B: events(6, evidence=B)}
    archive.commit("access_events", archive.stage("access_events", both[A], "run1"), [A])
    # The next run takes A and B together in one file, since it knows nothing of the first.
    archive.commit("access_events", archive.stage("access_events", pl.concat(both.values()), "run2"), [A, B])
    archive.commit("mail_events", [], [A, B])
    held = archive.scan("access_events").collect()
    assert held.group_by("evidence_id").len().sort("evidence_id").rows() == [(A, 4), (B, 6)]
    assert held["event_uid"].is_unique().all()
    assert archive.committed("mail_events", B)
    assert archive.verify() == []


def test_commit_with_some_ids_keeps_files_without_their_rows(archive: Archive) -> None:
    archive.commit("access_events", archive.stage("access_events", events(4), "run1"), [A])
    archive.commit("access_events", archive.stage("access_events", events(3, evidence=C), "run2"), [A, C])
    assert archive.scan("access_events").collect().height == 7


def _race(uri: str, number: int, barrier: object, answers: object) -> None:
    archive = Archive.open(uri)
    mine = events(20, evidence="de"[number] * 64)
    staged = archive.stage("access_events", pl.concat([events(10), mine]), f"run{number}")
    barrier.wait()  # type: ignore[attr-defined]
    archive.commit("access_events", staged, [A, "de"[number] * 64])
    archive.custody("race", {"number": number})
    answers.put(number)  # type: ignore[attr-defined]


def test_racing_processes_commit_shared_evidence_once(archive: Archive) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, answers = spawn.Barrier(2), spawn.Queue()
    workers = [spawn.Process(target=_race, args=(archive.uri, n, barrier, answers)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    held = archive.scan("access_events").collect()
    assert sorted(held.group_by("evidence_id").len().rows()) == [(A, 10), ("d" * 64, 20), ("e" * 64, 20)]
    assert archive.verify() == []
    assert sum(e["action"] == "race" for e in archive.custody_log.entries()) == 2


def test_scan_and_files_of_some_days(archive: Archive) -> None:
    archive.append("access_events", events(9, days=3))
    chosen = [DAY + timedelta(1)]
    assert archive.scan("access_events", chosen).collect()["date"].unique().to_list() == chosen
    assert [Path(f).parent.name for f in archive.files("access_events", chosen)] == ["date=2021-01-11"]
    assert archive.scan("access_events", []).collect().is_empty()
    assert archive.dates("access_events") == [DAY, DAY + timedelta(1), DAY + timedelta(2)]


def test_changed_dates(archive: Archive) -> None:
    archive.append("access_events", events(3), A)
    before = archive.versions()["access_events"]
    assert archive.changed_dates("access_events", before) == []
    archive.append("access_events", events(4, day=DAY + timedelta(5), days=2, evidence=B), B)
    assert archive.changed_dates("access_events", before) == [DAY + timedelta(5), DAY + timedelta(6)]
    assert archive.changed_dates("access_events", None) == [DAY, DAY + timedelta(5), DAY + timedelta(6)]
    assert archive.scan("access_events", version=before).collect().height == 3
    with pytest.raises(RefusedError, match="version 999"):
        archive.changed_dates("access_events", 999)


def test_event_uids(archive: Archive) -> None:
    archive.append("access_events", events(3))
    archive.append("access_events", events(2, evidence=B, source="m365_ual"))
    archive.append("access_events", events(2, evidence=B, day=DAY + timedelta(1), source="m365_ual"))
    assert archive.event_uids("access_events", [DAY], "m365_ual").len() == 2
    assert archive.event_uids("access_events", [DAY]).len() == 5


def _days(values: dict[date, int]) -> pl.DataFrame:
    base = filled("edge_days", 1)
    return pl.concat(
        [base.with_columns(pl.lit(day).alias("date"), pl.lit(f"t{n}").alias("tenant_id")) for day, n in values.items()]
    )


def test_replace_days(archive: Archive) -> None:
    next_day = DAY + timedelta(1)
    archive.replace_days("edge_days", _days({DAY: 1, next_day: 2}), [DAY, next_day], {"access_events": 3})
    for _ in range(2):
        archive.replace_days("edge_days", _days({DAY: 7}), [DAY], {"access_events": 5, "mail_events": 0})
        held = archive.scan("edge_days").select("date", "tenant_id").collect()
        assert sorted(held.rows()) == [(DAY, "t7"), (next_day, "t2")]
        assert archive.built_from("edge_days") == {"access_events": 5, "mail_events": 0}
    archive.replace_days("edge_days", _days({DAY: 1}).clear(), [DAY], {})
    assert archive.dates("edge_days") == [next_day]
    archive.replace_days("edge_days", _days({DAY: 1}).clear(), [], {"access_events": 6})
    assert archive.built_from("edge_days")["access_events"] == 6
    assert archive.scan("edge_days", version=1).collect().height == 2
    assert archive.verify() == []


def test_replace_days_refuses_older_sources_and_stray_days(archive: Archive) -> None:
    archive.replace_days("edge_days", _days({DAY: 1}), [DAY], {"access_events": 5})
    with pytest.raises(RefusedError, match="built from version 5 of access_events"):
        archive.replace_days("edge_days", _days({DAY: 2}), [DAY], {"access_events": 4})
    with pytest.raises(RefusedError, match="rows of 1 days"):
        archive.replace_days("edge_days", _days({DAY: 2}), [DAY + timedelta(1)])
    with pytest.raises(UsageError, match="not a derived table"):
        archive.replace_days("access_events", events(1), [DAY])
    assert archive.scan("edge_days").collect()["tenant_id"].to_list() == ["t1"]
    assert archive.verify() == []


def test_overwrite_keeps_columns_past_the_contract(archive: Archive) -> None:
    df = filled("tenants", 2).with_columns(pl.Series('ticket "no"', ["1", None]))
    archive.overwrite("tenants", df)
    assert archive.scan("tenants").collect().columns[-1] == 'ticket "no"'
    assert archive.connect().sql("from tenants").columns[-1] == 'ticket "no"'
    archive.overwrite("tenants", filled("tenants", 1))
    assert archive.scan("tenants").collect().equals(filled("tenants", 1))
    assert archive.verify() == []
    for bad in ("", "Name", "a\nb"):
        with pytest.raises(UsageError, match="rename it"):
            archive.overwrite("tenants", filled("tenants", 1).with_columns(pl.lit("x").alias(bad)))
    with pytest.raises(UsageError, match="not a reference table"):
        archive.overwrite("access_events", events(1))


def test_readings_see_other_writers(archive: Archive) -> None:
    other = Archive.open(archive.uri)
    for number, day in enumerate((DAY, DAY + timedelta(days=1))):
        assert (archive.version("access_events"), len(archive.dates("access_events"))) == (number or None, number)
        other.append("access_events", events(number + 1, day=day))
        other.replace_days("context_days", filled("context_days", 0), [day], {"access_events": number + 1})
        assert archive.version("access_events") == number + 1
        assert archive.scan("access_events").collect().height == [1, 3][number]
        assert archive.built_from("context_days") == {"access_events": number + 1}
        assert archive.changed_dates("access_events", number) == [day]


def test_damage_of_a_log_is_seen_by_who_read_it_before(archive: Archive) -> None:
    archive.append("access_events", events(1))
    assert archive.version("access_events") == 1
    log = Path(archive.uri) / "tables/access_events/_delta_log"
    (log / "00000000000000000002.json").write_text("{nonsense")
    with pytest.raises(IntegrityError, match="_delta_log: cannot be read"):
        archive.version("access_events")
    (log / "00000000000000000002.json").unlink()
    assert archive.version("access_events") == 1
    (log / "00000000000000000000.json").write_text("{nonsense")
    assert [p.severity for p in archive.verify()] == ["integrity"]


def test_damaged_table_log(archive: Archive) -> None:
    archive.append("access_events", events(1))
    (Path(archive.uri) / "tables/access_events/_delta_log/00000000000000000000.json").write_text("{nonsense")
    with pytest.raises(IntegrityError, match="_delta_log: cannot be read"):
        archive.scan("access_events")
    assert [p.severity for p in archive.verify()] == ["integrity"]


def test_names_and_options() -> None:
    assert safe_name("../..//etc/passwd\x00") == "etc-passwd"
    assert safe_name("...") == "part"
    assert keepable({"aws_region": "r", "aws_secret_access_key": "s", "aws_session_token": "t"}) == {"aws_region": "r"}
    place = Place("s3://bucket/archive/", {"aws_endpoint_url": "http://127.0.0.1:1"})
    assert place.path("tables", "x") == "s3://bucket/archive/tables/x"
    assert place.options["aws_allow_http"] == "true"


def test_other_engines_read_the_table_by_its_log(archive: Archive) -> None:
    from deltalake import DeltaTable

    archive.append("access_events", events(6, days=2))
    delta = DeltaTable(archive.place.path("tables", "access_events"))
    assert delta.to_pyarrow_table().num_rows == 6
    assert pl.scan_delta(delta).select("ts").collect().height == 6
    files = archive.files("access_events")
    assert duckdb.sql("select count(*) from read_parquet($files)", params={"files": files}).fetchall() == [(6,)]
