"""findings list, show and triage; and what a hunt says has changed since the run before."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.commands.told import since_lines
from flows.main import app
from flows.pipeline.hunting import _record, as_dict, told
from flows.pipeline.since import compare, run_before
from flows.pipeline.triage import STATES, finding_of, judge, judged, listed, shown
from queries.cases import Surroundings, build
from queries.engine import HuntResult
from queries.evidence import Evidence
from queries.expected import Expected, Suppressed
from queries.findings import ENTITIES, Finding

NOW = datetime(2021, 2, 1, 6, tzinfo=UTC)
FROM, TO = datetime(2021, 1, 1, tzinfo=UTC), datetime(2021, 1, 31, tzinfo=UTC)
HOSTILE = "=cmd|'x' [red]<img src=x onerror=alert(1)> \x1b[2J"


def found(number: int, who: str = "anna", **changes: Any) -> Finding:
    when = datetime(2021, 1, 10, tzinfo=UTC)
    entities = dict.fromkeys(ENTITIES, ()) | {"principal_ids": (who,), "tenant_ids": ("t1",)}
    held: dict[str, Any] = {
        "finding_id": f"F-{number:016x}", "detection": "T01", "title": "New network", "family": "tenant_connection",
        "severity": "high", "score": 70.0, "first_seen": when, "last_seen": when, "entities": entities,
        "explanation": f"{who} came from a new network", "tactics": (), "techniques": (),
        "evidence": Evidence("access_events", ("0" * 40,), 1), "sql": "select * from access_events", "facts": {},
    }  # fmt: skip
    return Finding(**held | changes)


def hunted(
    findings: Sequence[Finding],
    number: int,
    *,
    window: tuple[datetime, datetime] = (FROM, TO),
    ran: Sequence[str] = ("T01", "M01"),
    suppressed: Sequence[Finding] = (),
) -> HuntResult:
    at = NOW + timedelta(days=number)
    return HuntResult(
        run_id=f"R-{number}", run_at=at, window_from=window[0], window_to=window[1], archive_version={},
        detections_run=tuple(ran), detections_skipped=(), cases=build(findings, Surroundings(), 100), limits=(),
        expected=Expected(1, (), tuple(Suppressed(finding, ()) for finding in suppressed)),
    )  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """An archive with two runs of three findings in two cases."""
    opened = Archive.create(tmp_path / "archive")
    for number in (1, 2):
        _record(opened, hunted([found(1), found(2), found(3, "bob", severity="low", score=5.0)], number), None)
    return opened


def call(*words: str, columns: int = 140) -> Any:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": str(columns)})


def test_findings_are_listed_once_with_their_state(archive: Archive) -> None:
    frame = listed(archive)
    assert frame["finding_id"].to_list() == [f"F-{n:016x}" for n in (1, 2, 3)]
    assert set(frame["state"]) == {"new"}
    assert set(frame["run_id"]) == {"R-2"}
    assert listed(archive, run="R-1").height == 3
    assert listed(archive, detection="m01").height == 0
    assert listed(archive, tenant="t2").height == 0
    with pytest.raises(UsageError, match="no such state"):
        listed(archive, wanted=["odd"])


def test_a_judgement_is_added_and_the_newest_holds(archive: Archive) -> None:
    one = f"F-{1:016x}"
    judge(archive, [one], "investigating", "looks odd", now=NOW)
    rows = judge(archive, [one], "benign", " CHG-4711 ", now=NOW + timedelta(hours=1))
    assert rows.select("finding_id", "state", "reason").rows() == [(one, "benign", "CHG-4711")]
    assert listed(archive, wanted=["new"])["finding_id"].to_list() == [f"F-{n:016x}" for n in (2, 3)]
    answer = shown(archive, one)
    assert [(j["state"], j["reason"]) for j in answer["triage"]] == [
        ("investigating", "looks odd"),
        ("benign", "CHG-4711"),
    ]
    assert all(j["who"] for j in answer["triage"])
    assert [run["run_id"] for run in answer["runs"]] == ["R-1", "R-2"]
    assert answer["state"] == "benign"
    assert archive.scan("triage").collect().height == 2
    last = list(archive.custody_log.entries())[-1]
    assert (last["action"], last["details"]["findings"]) == ("triage", [one])


def test_a_case_is_judged_through_its_findings(archive: Archive) -> None:
    case = finding_of(archive, f"F-{1:016x}")["case_id"]
    rows = judge(archive, [case], "confirmed", "the actor")
    assert rows["finding_id"].to_list() == [f"F-{n:016x}" for n in (1, 2)]
    assert set(archive.scan("triage").collect()["case_id"]) == {case}
    assert archive.scan("triage").collect()["triage_id"].n_unique() == 1


@pytest.mark.parametrize(
    ("ids", "state", "reason", "of", "fact"),
    [
        ([], "benign", "x", None, "no finding is named"),
        (["F-00000000000000ff"], "benign", "x", None, "no such finding"),
        (["C-00000000000000ff"], "benign", "x", None, "no such case"),
        ([f"F-{1:016x}"], "fine", "x", None, "no such state"),
        ([f"F-{1:016x}"], "benign", "  ", None, "a reason is needed"),
        ([f"F-{1:016x}"], "benign", "x" * 5000, None, "a reason is needed"),
        ([f"F-{1:016x}"], "duplicate", "x", None, "names the finding"),
        ([f"F-{1:016x}"], "benign", "x", f"F-{2:016x}", "names the finding"),
        ([f"F-{1:016x}"], "duplicate", "x", f"F-{1:016x}", "of itself"),
        ([f"F-{1:016x}"], "duplicate", "x", "F-00000000000000ff", "no such finding"),
    ],
)
def test_what_is_no_judgement_is_refused(
    archive: Archive, ids: list[str], state: str, reason: str, of: str | None, fact: str
) -> None:
    with pytest.raises(UsageError, match=fact):
        judge(archive, ids, state, reason, duplicate_of=of)
    assert archive.version("triage") is None


def test_hunts_show_what_was_judged(archive: Archive) -> None:
    result = hunted([found(1), found(2)], 3)
    assert all("triage" not in f for case in as_dict(result)["cases"] for f in case["findings"])
    judge(archive, [f"F-{1:016x}"], "duplicate", "same", duplicate_of=f"F-{2:016x}", now=NOW)
    answer = told(result, judged=judged(archive))
    states = {f["finding_id"]: f.get("triage") for case in answer["cases"] for f in case["findings"]}
    assert states[f"F-{2:016x}"] is None
    mine = states[f"F-{1:016x}"]
    assert mine is not None
    assert (mine["state"], mine["at"]) == ("duplicate", "2021-02-01T06:00:00Z")
    assert mine["duplicate_of"] == f"F-{2:016x}"
    json.dumps(as_dict(result, judged=judged(archive)))


@pytest.mark.parametrize("fmt", ["table", "csv", "json", "jsonl", "parquet", "md"])
def test_every_verb_answers_in_every_format(archive: Archive, fmt: str) -> None:
    one = f"F-{1:016x}"
    done = call("findings", "triage", one, "-a", archive.uri, "--state", "closed", "--reason", HOSTILE, "-t", fmt)
    rows = call("findings", "list", "-a", archive.uri, "-t", fmt)
    single = call("findings", "show", one, "-a", archive.uri, "-t", fmt)
    for answer in (done, rows, single):
        assert answer.exit_code == 0, answer.exception
        assert fmt == "parquet" or one in answer.stdout
        assert fmt == "parquet" or "\x1b" not in answer.stdout
        assert fmt not in ("md", "table") or "<img" not in answer.stdout.replace(HOSTILE[:-4], "")
    if fmt == "json":
        assert json.loads(single.stdout)["triage"][0]["reason"] == HOSTILE
        assert json.loads(rows.stdout)[0]["state"] in STATES


@pytest.mark.parametrize("columns", [80, 100])
def test_tables_fit_the_terminal(archive: Archive, columns: int) -> None:
    judge(archive, [f"F-{1:016x}"], "closed", "a long story " * 30)
    for words in (["list"], ["show", f"F-{1:016x}"]):
        answer = call("findings", *words, "-a", archive.uri, columns=columns)
        assert "row 1" in answer.stdout or max(len(line.rstrip()) for line in answer.stdout.splitlines()) <= columns


def test_nothing_before_makes_everything_new(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive")
    result = hunted([found(1)], 1)
    since = compare(archive, result)
    assert (since["run_id"], since["window"]) == (None, None)
    assert [item["why"] for item in since["findings"]["new"]] == ["no run before"]
    assert since_lines({"since": since}) == ["No run before to compare with: everything is new."]


def test_new_ongoing_changed_and_gone(archive: Archive) -> None:
    worse = found(2, severity="critical", score=100.0, evidence=Evidence("access_events", ("0" * 40,), 9))
    result = hunted([found(1), worse, found(4, "eve")], 3)
    _record(archive, result, None)
    since = compare(archive, result)
    assert since["run_id"] == "R-2"
    findings = since["findings"]
    assert [item["finding_id"] for item in findings["ongoing"]] == [f"F-{1:016x}"]
    (changed,) = findings["changed"]
    assert changed["changes"] == {"severity": ["high", "critical"], "score": [70.0, 100.0], "evidence_count": [1, 9]}
    (new,) = findings["new"]
    assert (new["finding_id"], new["why"], new["known_since"]) == (f"F-{4:016x}", "found for the first time", None)
    (gone,) = findings["gone"]
    assert (gone["finding_id"], gone["why"]) == (f"F-{3:016x}", "not found any more")
    cases = since["cases"]
    assert [len(cases[state]) for state in ("new", "changed", "ongoing", "gone")] == [1, 1, 0, 1]
    assert cases["changed"][0]["severity_then"] == "high"
    assert cases["gone"][0]["why"] == ["not found any more"]
    text = "\n".join(since_lines({"since": since}))
    assert "cases: 1 new, 1 changed, 0 ongoing, 1 gone" in text
    assert "gone findings: 1 not found any more" in text
    assert f"changed: case 1, C-{1:016x} (critical): " in text
    json.dumps(since)


def test_a_case_is_the_same_while_it_shares_a_finding(archive: Archive) -> None:
    """Its id is that of its lowest finding, which a late log may bring."""
    result = hunted([found(0), found(1), found(2), found(3, "bob", severity="low", score=5.0)], 3)
    cases = compare(archive, result)["cases"]
    assert [case["case_id"] for case in cases["changed"]] == [f"C-{0:016x}"]
    assert cases["changed"][0]["was"] == [f"C-{1:016x}"]
    assert cases["changed"][0]["findings_added"] == 1
    assert [case["case_id"] for case in cases["ongoing"]] == [f"C-{3:016x}"]


def test_what_was_not_looked_for_is_not_gone(archive: Archive) -> None:
    late = (datetime(2021, 1, 12, tzinfo=UTC), datetime(2021, 2, 11, tzinfo=UTC))
    since = compare(archive, hunted([], 3, window=late))
    assert {item["why"] for item in since["findings"]["gone"]} == {"outside the window"}
    since = compare(archive, hunted([], 3, ran=["M01"]))
    assert {item["why"] for item in since["findings"]["gone"]} == {"its detection did not run"}
    since = compare(archive, hunted([found(1), found(2)], 3, suppressed=[found(3, "bob")]))
    assert [item["why"] for item in since["findings"]["gone"]] == ["suppressed as expected"]


def test_a_run_of_nothing_and_a_run_over_other_days_are_known(archive: Archive) -> None:
    old = (datetime(2019, 1, 1, tzinfo=UTC), datetime(2019, 4, 1, tzinfo=UTC))
    _record(archive, hunted([], 3), None)
    _record(archive, hunted([found(9)], 4, window=old), None)
    _record(archive, hunted([], 5, ran=["M01"]), None)
    result = hunted([found(1)], 6)
    before = run_before(archive, result)
    assert before is not None
    assert before.run_id == "R-3"
    (new,) = compare(archive, result)["findings"]["new"]
    assert new["why"] == "found in an earlier run, not in that one"
    assert new["known_since"] == "2021-02-02T06:00:00Z"
    far = run_before(
        archive, hunted([], 7, window=(datetime(2015, 1, 1, tzinfo=UTC), datetime(2015, 2, 1, tzinfo=UTC)))
    )
    assert far is None


def test_a_daily_run_is_held_against_a_daily_one(archive: Archive) -> None:
    year = (datetime(2020, 3, 1, tzinfo=UTC), datetime(2021, 2, 1, tzinfo=UTC))
    _record(archive, hunted([found(1)], 3, window=year), None)
    tomorrow = (FROM + timedelta(days=1), TO + timedelta(days=1))
    daily, yearly = run_before(archive, hunted([], 4, window=tomorrow)), run_before(archive, hunted([], 5, window=year))
    assert daily is not None
    assert yearly is not None
    assert (daily.run_id, yearly.run_id) == ("R-2", "R-3")


def test_since_last_on_the_command_line(tmp_path: Path) -> None:
    uri = str(tmp_path / "archive")
    Archive.create(uri)
    first = call("hunt", "-a", uri, "--detections", "T01", "--from", "2021-01-01", "--to", "2021-01-30", "-t", "json")
    assert "since" not in json.loads(first.stdout)
    words = ["hunt", "-a", uri, "--detections", "T01", "--from", "2021-01-01", "--to", "2021-01-30", "--since-last"]
    again = json.loads(call(*words, "-t", "json").stdout)
    assert again["since"]["run_id"] == json.loads(first.stdout)["run_id"]
    assert "Since run R-" in call(*words).stdout
    assert "## Since the run before" in call(*words, "-t", "md").stdout
