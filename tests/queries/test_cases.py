"""Every detection has cases that fire and near misses; all of them hold, and what is found is told in plain words."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import duckdb
import pytest

from queries import catalogue, engine
from queries.cases import Surroundings, build
from queries.findings import ENTITIES, Finding
from queries.testing import SKIPPED, CaseFile, database, judge_outcome, read_cases
from queries.wording import heading

FOLDER = Path(__file__).parents[1] / "cases"
DETECTIONS = {detection.id: detection for detection in catalogue.catalogue()}
INTERNAL = (
    "(s)",
    "unknown",
    "surprise",
    "Class:",
    "_network",
    "fan_out",
    "infrastructure_change",
    "None",
    "{",
    "[",
    "  ",
)
CASES = [case for path in sorted(FOLDER.glob("*.toml")) for case in read_cases(path)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.detection}: {case.name}" for case in CASES])
def test_case(case: CaseFile) -> None:
    detection = DETECTIONS[case.detection]
    window = {
        "window_from": datetime.combine(case.window_from, time(), UTC),
        "window_to": datetime.combine(case.window_to, time(), UTC) + timedelta(days=1),
    }
    con, params = database(case.given), detection.values(case.params) | window
    assert judge_outcome(con, case, detection, params)[0] == ""
    found = engine.run_detection(con, detection, params)
    if case.outcome == SKIPPED and isinstance(found, str):
        return
    assert not isinstance(found, str), found
    got = sorted((finding.facts for finding in found), key=lambda facts: (facts["first_seen"], str(facts)))
    shown = [{name: facts.get(name) for name in want} for want, facts in zip(case.expect, got, strict=False)]
    assert shown == case.expect
    assert len(got) == len(case.expect), got
    told_in_plain_words(found)


def told_in_plain_words(found: list[Finding]) -> None:
    for told in build(found, Surroundings(), 10):
        answer = told.to_dict()
        for entry, finding in zip(answer["findings"], told.findings, strict=True):
            entities = {key: list(finding.entities[key]) for key in ENTITIES}
            entry |= {"title": finding.title, "severity": finding.severity, "entities": entities}
        line = heading(answer)
        assert len(line) <= 120
        assert len(told.summary.split()) <= 125
        sentences = [text for finding in told.findings for text in (finding.explanation, finding.step, finding.why)]
        for text in (line, told.summary, *filter(None, sentences)):
            assert text[0].isupper() or text[0].isdigit()
            assert "Also found" not in text
            assert not [word for word in INTERNAL if word in text], text


@pytest.mark.parametrize("detection", DETECTIONS.values(), ids=DETECTIONS)
def test_each_detection_has_a_case_that_fires_and_a_near_miss(detection: catalogue.Detection) -> None:
    own = [case for case in CASES if case.path.stem == detection.stem]
    assert {case.detection for case in own} == {detection.id}
    assert any(case.expect for case in own)
    assert any(not case.expect for case in own)


def test_each_case_file_belongs_to_a_detection() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {detection.stem for detection in DETECTIONS.values()}


def test_databases_of_one_process_are_apart_and_outlive_a_statement_that_fails() -> None:
    count = "select count(*) from networks", "select count(*) from declared_networks()"
    with database({"networks": [{"network": "192.0.2.0/24", "kind": "corporate"}]}) as one, database({}) as other:
        with pytest.raises(duckdb.Error):
            one.execute("select nothing_of_that_name from networks")
        with pytest.raises(duckdb.Error):
            other.execute("select error('no')").fetchall()
        with pytest.raises(duckdb.Error, match="networks"):  # a row there would be given to all that come later
            other.execute("insert into networks (network, kind) values ('192.0.2.0/24', 'corporate')")
        assert [one.execute(sql).fetchall() for sql in count] == [[(1,)], [(1,)]]
        assert [other.execute(sql).fetchall() for sql in count] == [[(0,)], [(0,)]]
    with database({}) as later:
        assert later.execute(count[0]).fetchall() == [(0,)]
