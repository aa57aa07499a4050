"""Rules about what is expected: a finding is silenced only when every context in it is covered by a valid rule."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_contracts import contract
from queries.engine import HuntResult, hunt
from queries.evidence import Evidence
from queries.expected import Context, Expected, apply, contexts_of, fits, identity, rule
from queries.findings import ENTITIES, Finding
from queries.schedules import WEEK, minutes_of
from queries.testing import database

NOW = datetime(2021, 2, 1, tzinfo=UTC)
ALL = "select * from access_events"
STRANGE = datetime(2021, 1, 12, 2, tzinfo=UTC)  # a Tuesday
GOOD = {
    "credential_id": "AA11", "networks": "203.0.113.0/24", "client_fps": "f1; f2", "operation_classes": "get_item",
    "valid_from": datetime(2021, 1, 1, tzinfo=UTC), "valid_to": datetime(2021, 3, 1, tzinfo=UTC), "owner": "it-ops",
    "reason": "DR test",
}  # fmt: skip


def world(
    rules: list[dict[str, Any]], events: list[dict[str, Any]] | None = None, tenant: str = "t1"
) -> duckdb.DuckDBPyConnection:
    """A service principal with a history, and events from a network where it has never been."""
    common = {
        "tenant_id": tenant, "protocol": "ews", "principal_id": "sp-mail", "principal_type": "service_principal",
        "credential_id": "aa11", "action": "get_item", "outcome": "success", "n_rows": 1, "n_ops": 1, "items": 1,
        "bytes_out": 0, "hour_bits": 1,
    }  # fmt: skip
    begin = datetime(2020, 10, 15, 9, tzinfo=UTC)
    times = [begin + timedelta(days=place) for place in range(100)]
    days = [common | {"date": t.date(), "src_net": "192.0.2.0/24", "first_ts": t, "last_ts": t} for t in times]
    held = [{}] if events is None else events
    rows = [event(place, tenant) | changes for place, changes in enumerate(held)]
    strange = {"date": STRANGE.date(), "src_net": "203.0.113.0/24", "first_ts": STRANGE}
    days.append(common | strange | {"last_ts": max(row["ts"] for row in rows)})
    return database({"context_days": days, "access_events": rows, "contexts": rules})


def event(place: int, tenant: str) -> dict[str, Any]:
    return {
        "event_uid": f"{place:040x}", "date": STRANGE.date(), "ts": STRANGE, "ts_raw": "", "ts_basis": "utc",
        "source": "exchange_ews", "tenant_id": tenant, "tenant_basis": "record", "protocol": "ews",
        "action": "get_item", "outcome": "success", "principal_id": "sp-mail", "credential_id": "aa11",
        "src_ip": "203.0.113.7", "src_net": "203.0.113.0/24", "client_fp": "f1", "agg_level": "event",
        "evidence_id": "0" * 64, "record_no": place, "byte_offset": 0, "byte_length": 1,
    }  # fmt: skip


def hunted(con: duckdb.DuckDBPyConnection) -> HuntResult:
    return hunt(con, window_from=date(2021, 1, 1), window_to=date(2021, 1, 30), detections=["T01"], now=NOW)


def found_in(events: list[dict[str, Any]]) -> Finding:
    """A finding whose evidence are all events of the table."""
    entities = dict.fromkeys(ENTITIES, ()) | {"credential_ids": ("aa11",), "principal_ids": ("sp-mail",)}
    return Finding(
        finding_id="F-" + "0" * 16, detection="T01", title="", family="tenant_connection", severity="high", score=70.0,
        first_seen=STRANGE, last_seen=STRANGE, explanation="", entities=entities, tactics=(), techniques=(),
        evidence=Evidence("access_events", (), len(events)), sql=ALL + " order by ts, event_uid", facts={},
    )  # fmt: skip


def judged(rules: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> Expected:
    """What rules make of one finding."""
    rows = [event(place, "t1") | changes for place, changes in enumerate(events or [{}])]
    tables = {name: contract(name).polars_schema for name in ("access_events", "contexts")}
    with duckdb.connect() as con:
        con.execute("set timezone = 'UTC'")
        for name, given_rows in (("access_events", rows), ("contexts", rules)):
            con.register(name, pl.DataFrame(given_rows, schema=tables[name]).to_arrow())
        kept, expected = apply(con, [found_in(rows)], NOW)
    assert len(kept) + len(expected.suppressed) == 1
    return expected


def silenced(rules: list[dict[str, Any]], events: list[dict[str, Any]] | None = None) -> bool:
    return bool(judged(rules, events).suppressed)


def test_a_covered_finding_is_in_no_case_but_counted_with_its_rule() -> None:
    document = json.loads(hunted(world([GOOD])).to_json())
    assert document["cases"] == []
    held = document["suppressed"]
    assert (held["count"], held["rules_in_force"], held["rules_without_effect"]) == (1, 1, [])
    (found,) = held["findings"]
    assert (found["detection"], found["severity"]) == ("T01", "high")
    assert found["rules"] == [
        {"rule_id": identity(GOOD), "owner": "it-ops", "reason": "DR test", "valid_to": "2021-03-01T00:00:00Z"}
    ]


def test_without_rules_the_document_is_as_it_was() -> None:
    assert "suppressed" not in hunted(world([])).to_dict()
    assert hunted(world([GOOD | {"credential_id": "bb22"}])).to_dict()["suppressed"]["count"] == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"credential_id": "bb22"},
        {"principal_pattern": "another*"},
        {"tenants": "t2; t3"},
        {"detections": "M01; X01"},
        {"networks": "203.0.113.0/29; 192.0.2.0/24"},
        {"networks": "-"},
        {"client_fps": "f2"},
        {"client_fps": "-"},
        {"operation_classes": "find_item; send"},
        {"schedule": "Mon-Fri 22:00-02:00"},
        {"valid_from": STRANGE + timedelta(seconds=1)},
        {"valid_to": STRANGE},
        {"expired_at": NOW},
    ],
)
def test_a_rule_that_differs_in_one_part_silences_nothing(changed: dict[str, Any]) -> None:
    events: list[dict[str, Any]] = [{"src_ip": "203.0.113.77"}]
    assert silenced([GOOD], events)
    assert not silenced([GOOD | changed], events)


@pytest.mark.parametrize(
    "changed",
    [
        {"credential_id": None, "principal_pattern": "SP-*l"},
        {"tenants": "t2; t1"},
        {"detections": "m01; t01"},
        {"networks": "2001:db8::/32; 203.0.113.0/25"},
        {"client_fps": None},
        {"operation_classes": None},
        {"schedule": "Tue 02:00-03:00"},
        {"valid_from": None},
        {"expired_at": NOW + timedelta(seconds=1)},
    ],
)
def test_a_rule_that_says_the_same_otherwise_silences(changed: dict[str, Any]) -> None:
    assert silenced([GOOD | changed])


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"client_fps": None, "operation_classes": None}, "an address alone"),
        ({"client_fps": "-", "operation_classes": None}, "an address alone"),
        ({"networks": None}, "names no network"),
        ({"networks": "0.0.0.0/0"}, "too wide"),
        ({"networks": "203.0.113.0/24; elsewhere"}, "cannot be read"),
        ({"credential_id": None, "principal_pattern": "*"}, "names no credential"),
        ({"schedule": "at night"}, "schedule"),
        ({"valid_to": datetime(2020, 1, 1, tzinfo=UTC)}, "ends before"),
    ],
)
def test_a_rule_that_says_too_little_has_no_effect_and_that_is_told(changed: dict[str, Any], fault: str) -> None:
    expected = judged([GOOD | changed])
    assert not expected.suppressed
    (without,) = expected.to_dict()["rules_without_effect"]
    assert fault in without["reason"]


@pytest.mark.parametrize(
    "other",
    [
        {"client_fp": "f9"},
        {"client_fp": None},
        {"action": "export"},
        {"src_ip": "203.0.113.8", "ts": STRANGE + timedelta(days=60), "date": date(2021, 3, 13)},
        {"credential_id": None},
    ],
)
def test_one_context_that_is_not_covered_keeps_the_whole_finding(other: dict[str, Any]) -> None:
    """The rule may not hide what a thief does beside the expected."""
    assert silenced([GOOD], [{}] * 6)
    assert not silenced([GOOD], [{}] * 5 + [other])


def test_two_rules_may_share_a_finding_and_half_of_each_is_nothing() -> None:
    events = [{"client_fp": "f1"}, {"client_fp": "f2", "action": "send"}]
    one, other = GOOD | {"client_fps": "f1"}, GOOD | {"client_fps": "f2", "operation_classes": "send"}
    (item,) = judged([one, other], events).suppressed
    assert {r.rule_id for r in item.rules} == {identity(one), identity(other)}
    assert not silenced([GOOD | {"client_fps": "f1"}, GOOD | {"operation_classes": "send", "client_fps": "f3"}], events)


def test_commands_of_a_session_come_from_where_their_session_came_from() -> None:
    session: dict[str, Any] = {"protocol": "pop3", "session_id": "s1", "host": "mx1"}
    bare: dict[str, Any] = session | {"src_ip": None, "src_net": None, "action": "retr", "client_fp": None}
    con = world([], [session, bare, bare | {"session_id": "s2"}])
    places = {(c.operation, c.address) for c in contexts_of(con, "access_events", ALL)}
    assert places == {("get_item", "203.0.113.7"), ("retr", "203.0.113.7"), ("retr", None)}
    two = [session, session | {"src_ip": "203.0.113.8"}, bare]
    ambiguous = contexts_of(world([], two), "access_events", ALL)
    assert {c.address for c in ambiguous if c.operation == "retr"} == {None}


def test_contexts_of_every_event_table_and_of_none() -> None:
    con = database({})
    for table in ("access_events", "mail_events", "change_events", "gateway_jobs", "messages"):
        assert contexts_of(con, table, f"select * from {table}", timed=True) == []


def test_hostile_names_stay_names() -> None:
    hostile = "t'); drop table contexts; --\x1b[2J{x}"
    result = hunted(world([GOOD | {"tenants": "t'); drop table contexts", "owner": hostile}], tenant=hostile))
    assert len(result.findings) == 1
    assert not hunted(world([GOOD], tenant=hostile)).findings


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("02:00-04:00", 7 * 120),
        ("Mon-Fri 22-6", 5 * 480),
        ("sat,sun 00:00-24:00", 2 * 1440),
        ("Fri-Mon 1:30-2", 4 * 30),
        ("Sun 23:00-01:00; Mon 00:00-01:00", 120),
    ],
)
def test_schedules(text: str, minutes: int) -> None:
    found = minutes_of(text)
    assert len(found) == minutes
    assert found <= frozenset(range(WEEK))


@pytest.mark.parametrize(
    "text", ["", ";", "25-26", "1:70-2", "02-02", "Mon-Tue-Wed 1-2", "Day 1-2", "1-2 Mon", "a" * 5000]
)
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        minutes_of(text)


def test_a_week_wraps_and_days_are_those_of_the_calendar() -> None:
    assert minutes_of("Sun 23:59-00:01") == {WEEK - 1, 0}
    con = world([], [{"ts": datetime(2021, 1, 10, 23, 59, 30, tzinfo=UTC), "date": date(2021, 1, 10)}])
    (context,) = contexts_of(con, "access_events", ALL, timed=True)
    assert context.minutes == {WEEK - 1}


@given(st.lists(st.text("ab.", max_size=4), min_size=1, max_size=5), st.lists(st.text("ab.", max_size=3), max_size=4))
def test_a_pattern_fits_what_it_was_made_from(parts: list[str], between: list[str]) -> None:
    fill = [*between, *[""] * len(parts)]
    text = "".join(part + middle for part, middle in zip(parts, [*fill[: len(parts) - 1], ""], strict=True))
    assert fits("*".join(parts), text)


@pytest.mark.parametrize(
    ("pattern", "text", "is_fit"),
    [
        ("svc", "svc", True), ("svc", "svc2", False), ("a*a", "a", False), ("a*b*c", "acb", False), ("*@x", "u@x", True),
        ("a.c", "abc", False), ("[ab]*", "a", False), ("*" * 50 + "b", "a" * 20_000, False), ("a*" * 40 + "b", "a" * 9_000, False),
    ],
)  # fmt: skip
def test_patterns_are_stars_only_and_take_no_time(pattern: str, text: str, is_fit: bool) -> None:
    assert fits(pattern, text) is is_fit


def test_a_context_with_an_unknown_part_is_covered_by_no_rule_that_names_it() -> None:
    times: dict[str, Any] = {"first": STRANGE, "last": STRANGE}
    bare = Context(None, None, None, None, None, None, None, None, **times)
    assert not rule(GOOD).covers(bare)
    held = Context("t1", "aa11", None, None, None, None, None, "get_item", **times)
    assert not rule(GOOD).covers(held)
    assert rule(GOOD | {"networks": "-", "client_fps": "-"}).covers(held)
    assert not rule(GOOD | {"networks": "-", "client_fps": "-", "principal_pattern": "sp*"}).covers(held)
