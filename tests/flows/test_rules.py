"""rules test, backtest and attack: cases that pass and fail, windows over an archive, values that are swept."""

import csv
import io
import itertools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from archive.store import Archive
from data_contracts import contract
from data_contracts.errors import UsageError
from flows.main import app
from flows.pipeline import backtesting, case_files
from flows.pipeline.backtesting import backtest, settings, windows
from flows.pipeline.case_files import run_cases
from queries.catalogue import find
from queries.testing import read_cases

T01 = find("T01")
DAY = timedelta(days=1)


def call(*words: str) -> Any:
    return CliRunner().invoke(app, ["rules", *words], env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive with a certificate that is used from a new network on 12 and 14 January 2021, after four weeks."""
    place = tmp_path_factory.mktemp("rules") / "archive"
    given = read_cases(Path(__file__).parents[1] / "cases" / f"{T01.stem}.toml")[0].given["context_days"]
    rows = [row for row in given if row["date"].isoformat() >= "2020-12-15"]
    frame = pl.DataFrame(rows, schema=contract("context_days").polars_schema)
    Archive.create(place).replace_days("context_days", frame, sorted(set(frame["date"])))
    return str(place)


def stored(uri: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path(uri).rglob("*")) if p.is_file()}


def test_windows_end_with_the_time_and_leave_nothing_out() -> None:
    begin, end = datetime(2021, 1, 1, tzinfo=UTC), datetime(2021, 4, 11, tzinfo=UTC)
    looked = windows(begin, end, length=30 * DAY, step=30 * DAY)
    assert looked[0] == (begin, begin + 10 * DAY)
    assert looked[-1] == (end - 30 * DAY, end)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(looked))
    overlapping = windows(begin, end, length=30 * DAY, step=7 * DAY)
    assert overlapping[0][0] == begin
    assert {b[1] - a[1] for a, b in itertools.pairwise(overlapping)} == {7 * DAY}
    assert backtesting._days(overlapping) == 100
    assert windows(begin, begin + DAY, length=30 * DAY, step=DAY) == ((begin, begin + DAY),)
    apart = windows(begin, end, length=10 * DAY, step=50 * DAY)
    assert backtesting._days(apart) == 10 * len(apart) == 20


def test_a_backtest_tells_what_would_have_been_found(uri: str) -> None:
    before = stored(uri)
    answer = backtest(Archive.open(uri), T01, length=21, step=14, sweep="min_active_days=21, 60")
    assert stored(uri) == before
    assert (answer["from"], answer["to"]) == ("2020-12-15T00:00:00Z", "2021-01-30T00:00:00Z")
    few, many = answer["values"]
    assert (few["set"], many["set"]) == (21, 60)
    assert (few["findings"], few["cases"], few["suppressed"]) == (1, 1, 0)
    assert few["ran"] == len(few["steps"]) == 3
    assert few["severities"] == {"high": 1}
    assert few["findings_a_day"] == round(1 / 46, 4)
    assert few["entities"]["tenant_ids"] == {
        "different": 2,
        "most": [{"value": "t1", "findings": 1}, {"value": "t2", "findings": 1}],
    }
    assert few["entities"]["source_networks"]["most"] == [{"value": "203.0.113.0/24", "findings": 1}]
    assert sum(step["new"] for step in few["steps"]) == few["findings"]
    assert sum(step["findings"] for step in few["steps"]) > few["findings"]
    assert many["findings"] == 0
    assert [example["set"] for example in answer["examples"]] == [[21]]
    assert "203.0.113.0/24" in answer["examples"][0]["explanation"]
    assert answer["behind"] == []


def test_times_are_kept_within_the_rows(uri: str) -> None:
    opened = Archive.open(uri)
    early, late = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    answer = backtest(opened, T01, begin=early, end=late, length=3660, step=3660)
    assert (answer["from"], answer["to"]) == ("2020-12-15T00:00:00Z", "2021-01-30T00:00:00Z")
    assert len(answer["values"][0]["steps"]) == 1
    with pytest.raises(UsageError, match="nothing to read in that time"):
        backtest(opened, T01, begin=late)


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        ({"given": ["nothing=1"]}, "no parameter nothing"),
        ({"given": ["min_active_days"]}, "no value"),
        ({"given": ["min_active_days=many"]}, "not int"),
        ({"given": ["min_surprise=nan"]}, "not float"),
        ({"sweep": "min_active_days="}, "0 values"),
        ({"sweep": "min_active_days=" + ",".join(map(str, range(30)))}, "30 values"),
        ({"step": 0}, "1 to 3660 days"),
        ({"step": 1, "sweep": "min_active_days=21,60"}, "more than 50 runs"),
    ],
)
def test_wrong_calls_are_refused(
    uri: str, arguments: dict[str, Any], fact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backtesting, "MOST_RUNS", 50)
    with pytest.raises(UsageError, match=fact):
        backtest(Archive.open(uri), T01, **({"length": 1} | arguments))


def test_parameters_are_read_as_the_kind_of_their_default() -> None:
    name, (one, other) = settings(T01, ["min_active_days=5"], "min_surprise = 1, 2.5,1")
    assert name == "min_surprise"
    assert (one["min_active_days"], one["min_surprise"], other["min_surprise"]) == (5, 1.0, 2.5)
    name, trials = settings(T01, [], None)
    assert (name, trials) == (None, [T01.values({})])
    assert backtesting._read(bool, "True") is True
    with pytest.raises(ValueError, match="perhaps"):
        backtesting._read(bool, "perhaps")


def test_an_archive_without_rows_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no rows for T01"):
        backtest(Archive.create(tmp_path / "a"), T01)


def test_windows_without_rows_are_told_and_not_counted(tmp_path: Path) -> None:
    place = tmp_path / "archive"
    row = {"tenant_id": "t1", "protocol": "ews", "outcome": "success", "n_rows": 1, "n_ops": 1}
    times = [datetime(2021, 1, day, 9, tzinfo=UTC) for day in (1, 31)]
    rows = [row | {"date": ts.date(), "first_ts": ts, "last_ts": ts} for ts in times]
    frame = contract("context_days").conform(pl.LazyFrame(rows)).collect()
    Archive.create(place).replace_days("context_days", frame, [ts.date() for ts in times])
    (told,) = backtest(Archive.open(place), T01, length=10, step=10)["values"]
    assert [bool(step["skipped"]) for step in told["steps"]] == [False, True, True, False]
    assert (told["ran"], told["findings"], told["findings_a_day"]) == (2, 0, 0)


def test_the_verb_answers_in_every_format(uri: str) -> None:
    words = ["backtest", "T01", "-a", uri, "--window", "60"]
    swept = [*words, "--sweep", "min_active_days=21,60"]
    table = call(*swept)
    assert table.exit_code == 0
    assert "min_active_days" in table.output
    assert "2: t1" in table.output
    assert json.loads(call(*swept, "-t", "json").stdout)["values"][1]["findings"] == 0
    rows = list(csv.DictReader(io.StringIO(call(*swept, "-t", "csv").stdout)))
    assert {row["set"] for row in rows} == {"21", "60"}
    assert "set" not in json.loads(call(*words, "-t", "jsonl").stdout)
    page = call(*words, "-t", "md", "--from", "2021-01-01", "--to", "2021-01-29").stdout
    assert "## T01 over 2021-01-01 to 2021-01-30" in page
    assert "## Findings" in page


def test_the_cases_of_a_detection_pass() -> None:
    answer = call("test", "l06", "-t", "json")
    assert answer.exit_code == 0
    rows = json.loads(answer.stdout)
    assert {row["result"] for row in rows} == {"passed"}
    assert {row["kind"] for row in rows} == {"fires", "near miss", "skipped", "judged nobody"}
    assert all(row["why"] for row in rows if row["kind"] in ("skipped", "judged nobody"))
    assert {row["detection"] for row in rows} == {"L06"}


CASE = """
detection = "T01"
window_from = 2021-01-01
window_to = 2021-01-02
[[case]]
name = "nothing is there"
expect = [{entity_id = "aa11"}]
[[case]]
name = "near miss: nothing is there"
expect = []
[[case]]
name = "a parameter that is none"
params = {nothing = 1}
expect = []
"""


def test_a_case_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{T01.stem}.toml").write_text(CASE)
    wrong, right, odd = run_cases([T01], tmp_path)
    assert (wrong["kind"], wrong["result"], wrong["why"]) == ("fires", "failed", "0 findings, not 1")
    assert (right["kind"], right["result"]) == ("near miss", "passed")
    assert odd["result"] == "failed"
    assert "no parameter nothing" in odd["why"]
    monkeypatch.setattr(case_files, "folder", lambda: tmp_path)
    answer = call("test", "T01")
    assert answer.exit_code == 1
    assert "3 cases of 1 detections, 2 failed." in answer.stderr


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "there is no case file"),
        ("= nothing", "can't be read: TOMLDecodeError"),
        ("detection = 'T01'", "can't be read: KeyError"),
        (CASE.replace('"T01"', '"T03"'), "is about T03"),
    ],
)
def test_an_unsound_case_file_has_failed(tmp_path: Path, text: str | None, why: str) -> None:
    if text is not None:
        (tmp_path / f"{T01.stem}.toml").write_text(text)
    row = run_cases([T01], tmp_path)[0]
    assert row["result"] == "failed"
    assert why in row["why"]


def test_other_values_than_expected_are_shown() -> None:
    facts = [{"first_seen": datetime(2021, 1, 1, tzinfo=UTC), "who": "\x1b[2Janna"}]
    why = case_files._unlike([{"who": "bob"}], facts)
    assert "bob" in why
    assert why.isprintable()
    assert case_files._unlike([{"who": "\x1b[2Janna"}], facts) == ""
    assert case_files._unlike([], facts).startswith("1 findings, not 0: ")


def test_coverage_and_its_layer(tmp_path: Path) -> None:
    place = tmp_path / "layer.json"
    answer = call("attack", "-t", "json", "--layer", str(place))
    assert answer.exit_code == 0
    told = json.loads(answer.stdout)
    assert {"T1078.004", "T1114.002"} <= {row["technique"] for row in told["techniques"]}
    assert json.loads(place.read_text())["versions"]["attack"] == told["attack"]
    again = call("attack", "--layer", str(place))
    assert isinstance(again.exception, UsageError)
    assert call("attack", "--layer", str(place), "--clobber").exit_code == 0
    page = call("attack", "-t", "md").stdout
    assert "| T1114.002 | Remote Email Collection | collection |" in page
    rows = list(csv.DictReader(io.StringIO(call("attack", "-t", "csv").stdout)))
    assert len(rows) == len(told["techniques"]) + len(told["gaps"])
    assert all(bool(row["detections"]) != bool(row["planned"]) for row in rows)
