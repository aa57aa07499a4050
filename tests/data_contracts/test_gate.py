"""The gate: what it lets through, what it stops, and what it says of it."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from data_contracts import contract, docs, gate
from data_contracts.errors import RefusedError, UsageError

TS = datetime(2024, 1, 31, 12, 0, tzinfo=UTC)
HOSTILE = "<script>alert(1)</script>"
pytestmark = pytest.mark.filterwarnings("ignore:module .sre_:DeprecationWarning")  # Great Expectations imports them

Change = Callable[[pl.DataFrame], pl.DataFrame]


def rows(table: str, count: int = 3, **values: Any) -> pl.DataFrame:
    """Rows that keep the contract."""
    agreed = contract(table)
    known = {"event_uid": [f"{n:040x}" for n in range(count)], "evidence_id": "ab" * 32, "ts": TS, "date": TS.date()}
    frame: dict[str, Any] = {}
    for column in agreed.columns:
        if not column.required:
            continue
        fallback = column.enum[0] if column.enum else {"VARCHAR": "x", "BOOLEAN": True}.get(column.type, column.minimum)
        frame[column.name] = known.get(column.name, 0 if fallback is None else fallback)
    frame |= {"event_uid": known["event_uid"]} if "event_uid" in frame else {"_": range(count)}
    return agreed.conform(pl.LazyFrame(frame | values)).collect()


def staged(folder: Path, df: pl.DataFrame) -> list[str]:
    """The rows as the archive stages them: the partition column stands in the path."""
    path = folder / "it's [1]*" / "date=2024-01-31"
    path.mkdir(parents=True, exist_ok=True)
    df.drop("date", strict=False).write_parquet(path / "part?.parquet")
    return [str(path / "part?.parquet")]


def put(**values: Any) -> Change:
    return lambda df: df.with_columns(pl.lit(v, df.schema[k]).alias(k) for k, v in values.items())


@pytest.mark.parametrize("table", ["access_events", "mail_events", "change_events"])
def test_a_good_batch_passes_and_is_stored(tmp_path: Path, table: str) -> None:
    out = str(tmp_path / "validation")
    result = gate.validate(table, staged(tmp_path, rows(table)), out_dir=out, label="../e/1")
    assert result.success, result.failures
    assert result.failures == []
    assert result.path == str(tmp_path / "validation" / f"___e_1-{table}.json")
    stored = json.loads(Path(result.path).read_text("utf-8"))
    assert stored["success"] is True
    assert len(stored["results"]) > len([c for c in contract(table).columns if c.required])
    assert str(tmp_path) not in Path(result.path).read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "expectation", "column"),
    [
        (put(outcome=None), "expect_column_values_to_not_be_null", "outcome"),
        (put(outcome=HOSTILE), "expect_column_values_to_be_in_set", "outcome"),
        (put(event_uid="zz"), "expect_column_values_to_match_regex", "event_uid"),
        (put(src_port=70_000), "expect_column_values_to_be_between", "src_port"),
        (put(ts=datetime(1980, 1, 1, tzinfo=UTC)), "expect_column_values_to_be_between", "ts"),
        (put(ts_end=datetime(2024, 1, 1, tzinfo=UTC)), "expect_no_unexpected_rows", None),
        (lambda df: df.drop("host"), "expect_table_columns_to_match_set", None),
        (lambda df: df.with_columns(odd=1), "expect_table_columns_to_match_set", None),
        (lambda df: df.with_columns(pl.col("host").cast(pl.Binary)), "expect_no_unexpected_rows", None),
        (lambda df: df.clear(), "expect_table_row_count_to_be_between", None),
    ],
)
def test_a_bad_batch_fails_with_its_failure(tmp_path: Path, change: Change, expectation: str, column: str) -> None:
    bad = change(rows("access_events"))
    result = gate.validate("access_events", staged(tmp_path, bad))
    assert not result.success
    found = {(failure["expectation"], failure["column"]) for failure in result.failures}
    assert (expectation, column) in found
    for failure in result.failures:
        assert failure["reason"].startswith("contract: ")
        if failure["rules"] and not failure["error"]:
            assert failure["unexpected_count"] == 3
            assert len(failure["sample_rows"]) == 3
            assert set(failure["sample_rows"][0]) >= {"event_uid", "evidence_id", "record_no", "byte_offset"}


def test_both_ways_of_counting_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"outcome": None, "protocol": HOSTILE, "event_uid": "zz", "evidence_id": "zz", "src_port": -1}
    files = staged(tmp_path, put(**values)(rows("access_events")))
    found = []
    for limit in (0, 10**9):
        monkeypatch.setattr(gate, "_ROWS_PER_SCAN", limit)
        found.append(gate.validate("access_events", files).failures)
    counts = [{rule: failure["unexpected_count"] for failure in one for rule in failure["rules"]} for one in found]
    assert counts[0] == counts[1]
    assert set(counts[0]) >= {
        "outcome_required",
        "protocol_enum",
        "event_uid_pattern",
        "src_port_minimum",
        "evidence_id_pattern",
    }
    assert set(counts[0].values()) == {3}


def test_samples_are_capped(tmp_path: Path) -> None:
    bad = rows("access_events", 50, outcome="x" * 10_000)
    result = gate.validate("access_events", staged(tmp_path, bad))
    (failure,) = result.failures
    assert failure["unexpected_count"] == 50
    assert len(failure["sample_rows"]) == len(failure["sample_values"]) == gate.SAMPLES
    assert max(len(row["outcome"]) for row in failure["sample_rows"]) == gate.SHOWN
    assert "x" * (gate.SHOWN + 1) not in json.dumps(result.result)


def test_values_are_unique_in_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "tenants.parquet"
    conformed = contract("tenants").conform(pl.LazyFrame({"tenant_id": ["a", "a", "b"]})).collect()
    conformed.with_columns(note=pl.lit("reference tables may carry more")).write_parquet(path)
    (failure,) = gate.validate("tenants", [str(path)]).failures
    assert failure["expectation"] == "expect_column_values_to_be_unique"
    assert [row["tenant_id"] for row in failure["sample_rows"]] == ["a", "a"]


def test_an_excerpt_too_long_is_found(tmp_path: Path) -> None:
    df = rows("quarantine", quarantine_uid="0" * 40, ingested_at=TS, excerpt="é" * 2001)
    (failure,) = gate.validate("quarantine", staged(tmp_path, df)).failures
    assert failure["rules"] == ["excerpt_max_length"]


def test_day_of_path_must_be_day_of_ts(tmp_path: Path) -> None:
    df = rows("mail_events", ts=datetime(2024, 2, 1, tzinfo=UTC), date=date(2024, 2, 1))
    (failure,) = gate.validate("mail_events", staged(tmp_path, df)).failures
    assert failure["rules"] == ["date_is_day_of_ts"]


def test_files_that_are_no_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + b"\x00" * 40 + b"PAR1")
    with pytest.raises(RefusedError, match="cannot be read as Parquet"):
        gate.validate("tenants", [str(tmp_path / "x.parquet")])
    with pytest.raises(UsageError):
        gate.validate("tenants", [])


def test_files_of_another_filesystem(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    df = rows("mail_events").drop("date")
    with memory.open("/gate/date=2024-01-31/a.parquet", "wb") as file:
        df.write_parquet(file)
    files = ["memory:///gate/date=2024-01-31/a.parquet"]
    for _ in range(2):
        result = gate.validate("mail_events", files, filesystem=memory, out_dir="memory://gate/validation", label="m")
        assert result.success, result.failures
    assert memory.exists("/gate/validation/m-mail_events.json")


def test_docs_show_the_failure_and_run_nothing(tmp_path: Path) -> None:
    bad = rows("access_events", outcome=HOSTILE, source=f"{HOSTILE}<img src=x onerror=alert(1)>$x${{y}}", host=None)
    out = tmp_path / "validation"
    gate.validate("access_events", staged(tmp_path, bad), out_dir=str(out), label="bad")
    gate.validate("access_events", staged(tmp_path / "good", rows("access_events")), out_dir=str(out), label="good")
    index = Path(docs.build_docs(str(out), str(tmp_path / "site")))
    assert index.name == "index.html"
    text = index.read_text("utf-8")
    assert 'href="bad-access_events.html"' in text
    assert "contract: outcome is not one of its values" in text
    page = (tmp_path / "site" / "bad-access_events.html").read_text("utf-8")
    assert "outcome" in page
    assert "alert(1)" in page
    assert "must belong to this set" in page
    for text in (page, (tmp_path / "site" / "good-access_events.html").read_text("utf-8"), index.read_text("utf-8")):
        assert "<script" not in text.lower()
        assert "<img" not in text.lower()
        assert "src=" not in text.lower().replace("src=x", "")
        assert "http://" not in text
        assert "https://" not in text


def test_docs_without_results(tmp_path: Path) -> None:
    assert "no results" in Path(docs.build_docs(str(tmp_path), str(tmp_path / "site"))).read_text("utf-8")
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RefusedError):
        docs.build_docs(str(tmp_path), str(tmp_path / "site"))
