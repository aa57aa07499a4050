"""The case files of detections, run: whether each fires where it must, and stays silent where it must."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_contracts.errors import UsageError
from queries.catalogue import FOLDER, Detection
from queries.text import plain

if TYPE_CHECKING:
    from queries.testing import CaseFile


def folder() -> Path | None:
    """Where the case files are: beside the package in a checkout, inside of it once it is installed."""
    places = (FOLDER.parents[1] / "tests" / "cases", FOLDER / "cases")
    return next((p for p in places if p.is_dir()), None)


def run_cases(detections: Sequence[Detection], where: Path | None = None) -> list[dict[str, str]]:
    """Runs the case files of detections.

    Args:
        detections: whose.
        where: folder of the case files; by default the project's own.

    Returns:
        For each case: detection, case, kind (fires, near miss, skipped: a hunt must leave it out, judged nobody: a hunt
        must say so), result (passed, failed) and why it failed or was not judged. A detection without a case file has
        failed.

    Raises:
        UsageError: there are no case files.
    """
    where = where or folder()
    if where is None:
        raise UsageError("the case files are not installed", "run it from a checkout")
    own = [detection for detection in detections if detection.text is None]
    rows = [row for detection in own for row in _of_detection(detection, where / f"{detection.stem}.toml")]
    return rows + _of_imported([detection for detection in detections if detection.text is not None])


def _of_imported(detections: Sequence[Detection]) -> list[dict[str, str]]:
    """Imported rules have no cases: their statements must run."""
    from flows.pipeline.rule_files import empty_tables, self_test

    if not detections:
        return []
    with empty_tables() as con:
        wrong = {detection.id: "; ".join(self_test(con, detection)) for detection in detections}
    case = "runs on empty tables"
    return [_row(d, case, "imported", wrong[d.id], passed=not wrong[d.id]) for d in detections]


def _of_detection(detection: Detection, path: Path) -> Iterator[dict[str, str]]:
    from queries.testing import read_cases

    if not path.is_file():
        yield _row(detection, "", "", f"there is no case file {path.name}")
        return
    try:
        cases = read_cases(path)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        yield _row(detection, "", "", f"{path.name} can't be read: {_said(error)}")
        return
    for case in cases:
        if case.detection != detection.id:
            yield _row(detection, case.name, "", f"{path.name} is about {case.detection}")
        else:
            yield _of_case(detection, case)


def _row(detection: Detection, case: str, kind: str, why: str, *, passed: bool = False) -> dict[str, str]:
    result = "passed" if passed else "failed"
    return {"detection": detection.id, "case": case, "kind": kind, "result": result, "why": why}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {plain(next(iter(str(error).splitlines()), ''))}"


def _of_case(detection: Detection, case: "CaseFile") -> dict[str, str]:
    import duckdb
    import polars as pl

    from queries.engine import run_detection
    from queries.testing import RAN, database, judge_outcome

    kind = case.outcome if case.outcome != RAN else "fires" if case.expect else "near miss"
    begin = datetime.combine(case.window_from, time(), UTC)
    end = datetime.combine(case.window_to, time(), UTC) + timedelta(days=1)
    try:
        values = detection.values(case.params) | {"window_from": begin, "window_to": end}
        with database(case.given) as con:
            differs, reason = judge_outcome(con, case, detection, values)
            found = run_detection(con, detection, values)
    except (duckdb.Error, pl.exceptions.PolarsError, UsageError, KeyError, TypeError, ValueError) as error:
        return _row(detection, case.name, kind, _said(error))
    if isinstance(found, str) and kind != "skipped":
        return _row(detection, case.name, kind, found)
    found = [] if isinstance(found, str) else found
    wrong = _unlike(case.expect, [finding.facts for finding in found]) or differs
    return _row(detection, case.name, kind, wrong or (reason if case.outcome != RAN else ""), passed=not wrong)


def _unlike(expect: Sequence[Mapping[str, Any]], facts: Sequence[Mapping[str, Any]]) -> str:
    """How what was found differs from what was expected, each in order of time; empty where it doesn't."""
    got = sorted(facts, key=lambda fact: (fact["first_seen"], str(fact)))
    if len(got) != len(expect):
        more = f": {_shown(got[0])}" if got and not expect else ""
        return f"{len(got)} findings, not {len(expect)}{more}"
    for want, fact in zip(expect, got, strict=True):
        odd = {name: fact.get(name) for name, value in want.items() if fact.get(name) != value}
        if odd:
            wanted = {name: want[name] for name in odd}
            return f"found {_shown(odd)}, expected {_shown(wanted)}"
    return ""


def _shown(facts: Mapping[str, Any]) -> str:
    return plain(", ".join(f"{name} = {value}" for name, value in facts.items()))
