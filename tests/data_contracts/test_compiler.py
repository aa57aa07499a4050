"""Contracts: valid, consistent with each other, and compiled to rules that say what is wrong."""

import subprocess
import sys
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts import Column, Contract, check_all, contract, names
from data_contracts.errors import UsageError

TS = datetime(2024, 1, 31, 12, 0, tzinfo=UTC)
UNITS = {"_bytes": "BIGINT", "_ms": "BIGINT", "_s": "DOUBLE", "_count": "BIGINT", "_port": "BIGINT", "_key": "BLOB"}
SIMPLE = {"VARCHAR": "x", "BIGINT": 1, "BOOLEAN": True, "DOUBLE": 1.0, "DATE": TS.date()}
UNITS |= {"_at": "TIMESTAMP WITH TIME ZONE", "_ts": "TIMESTAMP WITH TIME ZONE"}


def frame(table: str, count: int = 1, **values: Any) -> pl.DataFrame:
    """Rows that keep the contract, but for the values given."""
    agreed, row = contract(table), {}
    known = {"event_uid": "0" * 40, "quarantine_uid": "0" * 40, "evidence_id": "ab" * 32, "ts": TS, "date": TS.date()}
    for column in agreed.columns:
        if column.required:
            simple = SIMPLE.get(column.type, TS)
            row[column.name] = known.get(column.name, column.enum[0] if column.enum else simple)
    return agreed.conform(pl.DataFrame([row | values] * count).lazy()).collect()


def test_every_contract_is_valid_by_the_published_schema() -> None:
    problems = check_all()
    assert set(problems) == set(names())
    assert {table: found for table, found in problems.items() if found} == {}


def test_every_contract_compiles() -> None:
    assert len(names()) >= 19
    for table in names():
        agreed = contract(table)
        assert agreed.name == table
        assert agreed.kind in ("event", "register", "reference", "derived")
        assert table in names(agreed.kind)
        assert agreed.arrow_schema.names == list(agreed.polars_schema)
        assert set(agreed.sorted_by) <= set(agreed.polars_schema)
        reasons = [rule.reason for rule in agreed.refusals()]
        assert len(reasons) == len(set(reasons))
        accepted, refused = agreed.split(pl.DataFrame(schema=agreed.polars_schema))
        assert accepted.schema == agreed.polars_schema
        assert refused.schema == agreed.polars_schema | {"reason": pl.String}


def test_a_name_means_the_same_everywhere() -> None:
    types: dict[str, set[str]] = {}
    for table in names():
        for column in contract(table).columns:
            types.setdefault(column.name, set()).add(column.type)
    differing = {name for name, kinds in types.items() if len(kinds) > 1}
    assert differing == set()


def test_the_suffix_tells_the_unit() -> None:
    wrong = {
        f"{table}.{column.name}"
        for table in names()
        for column in contract(table).columns
        for suffix, kind in UNITS.items()
        if column.name.endswith(suffix) and column.type != kind
    }
    assert wrong == set()


def test_what_a_contract_tells() -> None:
    agreed = contract("access_events")
    assert contract("access_events") is agreed
    assert agreed.partitioned_by == "date"
    assert agreed.sorted_by == ("tenant_id", "credential_id", "ts")
    assert agreed.grain == "one row per access"
    assert agreed.column("outcome").enum == ("success", "failure", "unknown")
    assert agreed.column("ts").minimum == datetime(1990, 1, 1, tzinfo=UTC)
    assert agreed.column("event_uid").ecs == "event.id"
    assert agreed.column("source").low_cardinality
    assert agreed.polars_schema["folders"] == pl.List(pl.String)
    assert agreed.arrow_schema.field("ts") == pa.field("ts", pa.timestamp("us", "UTC"), nullable=False)
    with pytest.raises(UsageError, match="Hint: tables are: access_events"):
        contract("../access_events")
    with pytest.raises(UsageError):
        agreed.column("nothing")


@pytest.mark.parametrize(
    ("table", "values", "reason"),
    [
        ("access_events", {"outcome": None}, "contract: outcome is required"),
        ("access_events", {"protocol": "gopher"}, "contract: protocol is not one of its values"),
        ("access_events", {"outcome": "Success"}, "contract: outcome is not one of its values"),
        ("access_events", {"ts": datetime(1989, 12, 31, tzinfo=UTC)}, "contract: ts is before 1990-01-01T00:00:00Z"),
        ("access_events", {"ts": datetime(2101, 1, 1, tzinfo=UTC)}, "contract: ts is after 2100-01-01T00:00:00Z"),
        ("access_events", {"src_port": -1}, "contract: src_port is below 0"),
        ("access_events", {"src_port": 65_536}, "contract: src_port is above 65535"),
        ("access_events", {"event_uid": "0" * 39}, "contract: event_uid does not match its pattern"),
        ("access_events", {"event_uid": "0" * 40 + "\n"}, "contract: event_uid does not match its pattern"),
        ("access_events", {"evidence_id": "G" * 64}, "contract: evidence_id does not match its pattern"),
        ("access_events", {"ts_end": datetime(2024, 1, 1, tzinfo=UTC)}, "contract: ends_after_it_begins"),
        ("access_events", {"date": date(2024, 2, 1)}, "contract: date_is_day_of_ts"),
        ("access_events", {"credential_type": "cert"}, "contract: cert_is_hex"),
        ("mail_events", {"delay_s": float("nan")}, "contract: delay_s is not finite"),
        ("mail_events", {"delay_s": -0.1}, "contract: delay_s is below 0"),
        ("quarantine", {"excerpt": "é" * 2001}, "contract: excerpt is longer than 2000 characters"),
        ("bindings", {"credential_id": None, "principal_id": None}, "contract: names_who"),
    ],
)
def test_reasons(table: str, values: dict[str, Any], reason: str) -> None:
    agreed = contract(table)
    good = frame(table, 2) if table != "bindings" else frame(table, 2, credential_id="c")
    mixed = pl.concat([good[:1], frame(table, **values), good[1:]])
    accepted, refused = agreed.split(mixed)
    assert accepted.equals(good)
    assert refused.drop("reason").equals(mixed[1:2].drop("reason", strict=False))
    assert refused["reason"].to_list() == [reason]


def test_the_first_broken_rule_is_the_reason() -> None:
    _, refused = contract("access_events").split(frame("access_events", event_uid="x", outcome="x", src_port=-1))
    assert refused["reason"].to_list() == ["contract: event_uid does not match its pattern"]


def test_a_longer_text_in_fewer_characters_is_kept() -> None:
    accepted, _ = contract("quarantine").split(frame("quarantine", excerpt="é" * 2000))
    assert accepted.height == 1


def test_later_duplicates_are_refused() -> None:
    df = contract("tenants").conform(pl.LazyFrame({"tenant_id": ["a", "b", "a"], "name": ["1", "2", "3"]})).collect()
    accepted, refused = contract("tenants").split(df)
    assert accepted["name"].to_list() == ["1", "2"]
    assert refused["reason"].to_list() == ["contract: tenant_id is not unique"]


def test_split_keeps_other_columns_and_takes_missing_ones_as_null() -> None:
    df = frame("access_events", 2).with_columns(source_id=pl.lit("s")).drop("host", "outcome")
    accepted, refused = contract("access_events").split(df)
    assert accepted.height == 0
    assert refused["reason"].unique().to_list() == ["contract: outcome is required"]
    assert refused["source_id"].to_list() == ["s", "s"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["success", "SUCCESS", None, ""]), st.integers(-9, 9)), max_size=30))
def test_nothing_is_lost_in_a_split(pairs: list[tuple[str | None, int]]) -> None:
    count, outcomes, ports = len(pairs), [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    df = frame("access_events", max(count, 1)).head(count)
    numbers = pl.Series("record_no", range(count), pl.Int64)
    df = df.with_columns(pl.Series("outcome", outcomes, pl.String), pl.Series("src_port", ports, pl.Int64), numbers)
    accepted, refused = contract("access_events").split(df)
    assert sorted([*accepted["record_no"], *refused["record_no"]]) == list(range(count))
    assert accepted["outcome"].is_in(["success"]).all()
    assert not (accepted["src_port"] < 0).any()
    assert refused["reason"].null_count() == 0


def test_conform_casts_text_and_reports_what_it_cannot_read() -> None:
    agreed = contract("rotations")
    texts = ["2024-01-31", "2024-01-31T12:00:00+02:00", "2024-01-31 10:00", "31.01.2024", None]
    lf = pl.LazyFrame({"planned_at": texts, "tenant_id": ["t"] * 5, "extra": [1] * 5})
    df = agreed.conform(lf).collect()
    assert df.schema == agreed.polars_schema
    ten = datetime(2024, 1, 31, 10, tzinfo=UTC)
    assert df["planned_at"].to_list() == [datetime(2024, 1, 31, tzinfo=UTC), ten, ten, None, None]
    (planned,) = [rule for rule in agreed.unreadable(lf.collect_schema()) if rule.column == "planned_at"]
    assert planned.reason == "contract: planned_at cannot be read as TIMESTAMP WITH TIME ZONE"
    assert lf.select(planned.violated).collect().to_series().to_list() == [False, False, False, True, False]


def test_conform_casts_every_type_from_text() -> None:
    texts = {"BIGINT": " 5", "INTEGER": "x", "DOUBLE": "1e3", "BOOLEAN": "Yes", "DATE": "2024-01-31"}
    texts |= {"VARCHAR[]": "a; b;", "BLOB": "z"}
    agreed = Contract("t", "", "", "reference", tuple(Column(kind, kind, "") for kind in texts))
    read = agreed.conform(pl.LazyFrame(texts)).collect().row(0)
    assert read == (5, None, 1000.0, True, date(2024, 1, 31), ["a", "b"], b"z")
    naive = pl.LazyFrame({"ts": [datetime(2024, 1, 31)], "folders": [1], "src_port": [2.0]})
    df = contract("access_events").conform(naive).collect()
    assert df.select("ts", "folders", "src_port").row(0) == (datetime(2024, 1, 31, tzinfo=UTC), None, 2)


def test_contracts_are_cheap_to_ask_for() -> None:
    code = (
        "import sys; from data_contracts import contract, gate; contract('tenants'); "
        "print([m for m in ('great_expectations', 'pyarrow', 'jsonschema', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
