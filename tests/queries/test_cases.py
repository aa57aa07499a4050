"""Every detection has cases that fire and near misses; all of them hold."""

from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest

from queries import catalogue, engine
from queries.testing import SKIPPED, CaseFile, database, judge_outcome, read_cases

FOLDER = Path(__file__).parents[1] / "cases"
DETECTIONS = {detection.id: detection for detection in catalogue.load()}
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


@pytest.mark.parametrize("detection", DETECTIONS.values(), ids=DETECTIONS)
def test_each_detection_has_a_case_that_fires_and_a_near_miss(detection: catalogue.Detection) -> None:
    own = [case for case in CASES if case.path.stem == detection.stem]
    assert {case.detection for case in own} == {detection.id}
    assert any(case.expect for case in own)
    assert any(not case.expect for case in own)


def test_each_case_file_belongs_to_a_detection() -> None:
    assert {path.stem for path in FOLDER.glob("*.toml")} == {detection.stem for detection in DETECTIONS.values()}
