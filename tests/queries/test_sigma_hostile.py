"""What hostile Sigma files and rules can do: nothing."""

import re
from datetime import datetime
from typing import Any

import pytest
import yaml

from data_contracts.errors import RefusedError
from queries.sigma.reading import documents

AUDIT = {"product": "azure", "service": "auditlogs"}


# Hostile rules

HOSTILE = [
    "x' or 1=1 --",
    "'; drop table change_events; --",
    "\\'; select 1; --",
    "x') union select * from evidence --",
    "$window_from ? {tenant} [a]",
    "\x00\x01\u202e",
    "'||(select 1)||'",
    "%%%___\\\\",
    "\N{EN DASH} . . .",
]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("modifier", ["", "|contains", "|startswith", "|cased", "|re"])
def test_a_value_stays_a_value(sigma: Any, value: str, modifier: str) -> None:
    written = (
        re.escape(value) if modifier == "|re" else value.replace("\\", "\\\\").replace("*", "\\*").replace("?", "\\?")
    )
    text = sigma.rule(AUDIT, {f"UserAgent{modifier}": written}, title=value, description=value)
    if "\x00" in value and modifier == "|re":
        return
    rows = [sigma.row(sigma.change, 1, user_agent=value), sigma.row(sigma.change, 2, user_agent="ordinary")]
    (found,) = sigma.findings(text, {"change_events": rows})
    assert found.evidence.event_uids == ("e0001",)
    # What is shown can be pasted.
    assert [r[0] for r in sigma.filled({"change_events": rows}).execute(found.sql).fetchall()] == ["e0001"]


@pytest.mark.parametrize("name", ["op_raw = '' or 1=1", 'a"b', "x; drop table t", "UserAgent) or (true", "*"])
def test_a_field_name_never_reaches_the_statement(sigma: Any, name: str) -> None:
    assert "is not kept" in sigma.reasons(sigma.rule(AUDIT, {name: "x"}))


@pytest.mark.parametrize(
    ("pattern", "matches"), [("(a+)+$", True), ("(a|a)*b", False), ("(.*)*c", False), ("a{1,900}b", False)]
)
def test_patterns_that_would_backtrack_for_ever_have_an_answer(sigma: Any, pattern: str, matches: bool) -> None:
    rows = [sigma.row(sigma.change, 1, user_agent="a" * 30_000)]
    found = ["e0001"] if matches else []
    assert sigma.hits(sigma.rule(AUDIT, {"UserAgent|re": pattern}), "change_events", rows) == found
    assert sigma.hits(sigma.rule(AUDIT, {"UserAgent": "*a" * 200 + "b"}), "change_events", rows) == []


def test_thousands_of_values(sigma: Any) -> None:
    values = [f"value {n}" for n in range(3000)]
    rows = [
        sigma.row(sigma.change, 1, user_agent="has value 2999 in it"),
        sigma.row(sigma.change, 2, user_agent="none"),
    ]
    assert sigma.hits(sigma.rule(AUDIT, {"UserAgent|contains": values}), "change_events", rows) == ["e0001"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases"),
        ("a: " + "[" * 5000, "deeper"),
        ("a: " + "[" * 30 + "]" * 30, "deeper"),
        ("a: !!python/object/apply:os.system ['true']\n", "not YAML"),
        ("a: 1\na: 2\n", "twice"),
        ("a:\n  b: 1\n  b: 2\n", "twice"),
        ("- a\n- b\n", "not a mapping"),
        ("1: 2\n", "not a mapping"),
        ("a: [" + "x, " * 30_000 + "x]\n", "nodes"),
        ("a: b: c\n", "not YAML"),
        ("---\na: 1\n" * 300, "documents"),
        ("a: '" + "x" * 600_000 + "'", "larger"),
        ("a: 2021-99-99\n", "cannot be read"),
        ("a: \x07\n", "not YAML"),
    ],
)
def test_hostile_files_are_refused(sigma: Any, content: str, reason: str) -> None:
    with pytest.raises(RefusedError) as caught:
        documents(content.encode())
    assert reason in caught.value.fact


def test_a_file_that_is_no_text_is_refused(sigma: Any) -> None:
    with pytest.raises(RefusedError, match="UTF-8"):
        documents(b"\xff\xfe\x00a")


@pytest.mark.parametrize(
    "condition",
    [
        "not " * 240 + "selection",
        "1 of s*e*l*e*c*",
        "(" * 400 + "selection" + ")" * 400,
        "x" * 2000,
        "selection | count() > 5",
        "",
        "1 of nothing*",
    ],
)
def test_hostile_conditions_are_refused(sigma: Any, condition: str) -> None:
    assert sigma.reasons(sigma.rule(AUDIT, {"OperationName": "x"}, condition=condition))


@pytest.mark.parametrize(
    "values",
    [
        {"title": ["x"]},
        {"title": None},
        {"logsource": "azure"},
        {"detection": ["x"]},
        {"detection": {"selection": {"OperationName": {"a": "b"}}, "condition": "selection"}},
        {"detection": {"selection": {}, "condition": "selection"}},
        {"detection": {"selection": {"OperationName": datetime(2021, 1, 1)}, "condition": "selection"}},
        {"detection": {"selection": {"OperationName|nosuch": "x"}, "condition": "selection"}},
        {"detection": {"selection": {"OperationName": "x"}, "condition": 5}},
        {"level": "extreme"},
        {"id": "not-a-uuid"},
        {"tags": "attack"},
        {"correlation": 5},
    ],
)
def test_damaged_rules_are_refused_with_a_reason(sigma: Any, values: dict[str, Any]) -> None:
    body = yaml.safe_load(sigma.rule(AUDIT, {"OperationName": "x"})) | values
    assert sigma.reasons(yaml.safe_dump(body))


def test_a_condition_that_spreads_too_far_is_refused(sigma: Any) -> None:
    values = [f"v{n}" for n in range(700)]
    condition = " or ".join(["1 of them"] * 8)
    assert "comparisons" in sigma.reasons(sigma.rule(AUDIT, {"UserAgent|contains": values}, condition=condition))
