"""The hunt: shape of its result, stable ids, evidence statements that hold against hostile values, cases, limits."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from data_contracts import contract
from data_contracts.errors import RefusedError, UsageError
from queries import catalogue, engine
from queries.cases import Surroundings, build, link, score
from queries.engine import hunt
from queries.evidence import Evidence
from queries.findings import Finding, identity
from queries.testing import database
from queries.text import fill, literal, plain

HOSTILE = "t'); drop table access_events; --\n\x1b[31m\u202e{who}" + "x" * 3000
FIRST, LAST = date(2021, 1, 1), date(2021, 1, 30)
NOW = datetime(2021, 2, 1, tzinfo=UTC)


def world(tenant: str = HOSTILE, principal: str = "sp'--") -> duckdb.DuckDBPyConnection:
    """A service principal of one tenant with a history, and three successes and a failure from a new network."""
    common = {
        "tenant_id": tenant, "protocol": "ews", "principal_id": principal, "principal_type": "service_principal",
        "credential_id": "aa11", "action": "get_item", "outcome": "success", "n_rows": 1, "n_ops": 1, "items": 1,
        "bytes_out": 0, "hour_bits": 1,
    }  # fmt: skip
    days = []
    for place in range(100):
        ts = datetime(2020, 10, 15, 9, tzinfo=UTC) + timedelta(days=place)
        days.append(common | {"date": ts.date(), "src_net": "192.0.2.0/24", "first_ts": ts, "last_ts": ts})
    strange = [datetime(2021, 1, 12, 2, minute, tzinfo=UTC) for minute in range(3)]
    days.append(
        common
        | {"date": date(2021, 1, 12), "src_net": "203.0.113.0/24", "first_ts": strange[0], "last_ts": strange[-1]}
    )
    events = [event(place, ts, tenant, principal) for place, ts in enumerate(strange)]
    events.append(event(3, strange[1], tenant, principal) | {"outcome": "failure"})
    events.append(event(4, strange[1], "another", principal))
    events.append(event(5, strange[1], tenant, principal) | {"src_ip": "192.0.2.9", "src_net": "192.0.2.0/24"})
    return database({"context_days": days, "access_events": events})


def event(place: int, ts: datetime, tenant: str, principal: str) -> dict[str, Any]:
    return {
        "event_uid": f"{place:040x}", "date": ts.date(), "ts": ts, "ts_raw": "", "ts_basis": "utc",
        "source": "exchange_ews",
        "tenant_id": tenant, "tenant_basis": "record", "protocol": "ews", "action": "get_item", "outcome": "success",
        "principal_id": principal, "credential_id": "aa11", "src_ip": "203.0.113.7", "src_net": "203.0.113.0/24",
        "agg_level": "event", "evidence_id": "0" * 64, "record_no": place, "byte_offset": 0, "byte_length": 1,
    }  # fmt: skip


def test_json_has_exactly_the_documented_shape() -> None:
    result = hunt(world("t1"), window_from=FIRST, window_to=LAST, archive_version={"access_events": 3}, now=NOW)
    document = json.loads(result.to_json())
    assert list(document) == [
        "run_id",
        "window",
        "archive_version",
        "detections_run",
        "detections_skipped",
        "detections_without_subjects",
        "cases",
        "limits",
    ]
    assert document["window"] == {"from": "2021-01-01T00:00:00Z", "to": "2021-01-31T00:00:00Z"}
    (case,) = document["cases"]
    assert set(case) == {
        "case_id", "rank", "score", "severity", "families", "tactics", "summary", "first_seen", "last_seen", "entities",
        "findings",
    }  # fmt: skip
    assert case["entities"]["source_ips"] == ["203.0.113.7"]
    assert set(case["entities"]) == {
        "tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes",
    }  # fmt: skip
    (found,) = case["findings"]
    assert set(found) == {
        "finding_id", "detection", "family", "score", "first_seen", "last_seen", "explanation", "evidence", "sql",
    }  # fmt: skip
    assert found["evidence"] == {"table": "access_events", "event_uids": [f"{place:040x}" for place in range(3)]}
    skipped = {one["id"] for one in document["detections_skipped"]}
    assert {"M01", "T03", "X01"} <= skipped
    assert sorted({*skipped, *document["detections_run"]}) == [d.id for d in catalogue.catalogue()]
    assert all(skipped["reason"] for skipped in document["detections_skipped"])
    nobody = document["detections_without_subjects"]
    assert {one["id"] for one in nobody} <= set(document["detections_run"])
    assert all(set(one) == {"id", "part", "reason"} and one["reason"] for one in nobody)


def test_hostile_values_stay_values() -> None:
    con = world()
    result = hunt(con, window_from=FIRST, window_to=LAST, now=NOW)
    (found,) = [finding for finding in result.findings if finding.detection == "T01"]
    assert "\n" not in found.sql
    assert "\x1b" not in found.sql
    statements = duckdb.extract_statements(found.sql)
    assert [statement.type for statement in statements] == [duckdb.StatementType.SELECT]
    rows = con.sql(found.sql).pl()
    assert tuple(rows["event_uid"]) == found.evidence.event_uids == tuple(f"{place:040x}" for place in range(3))
    assert found.evidence.count == 3
    assert con.execute("select count(*) from access_events").fetchall() == [(6,)]
    assert HOSTILE in found.entities["tenant_ids"]
    for text in (found.explanation, result.cases[0].summary):
        assert text.isprintable()
        assert len(text) < 3000


def test_findings_keep_their_contract() -> None:
    frame = hunt(world(), window_from=FIRST, window_to=LAST, now=NOW).to_frame()
    accepted, refused = contract("findings").split(frame)
    assert refused.is_empty()
    assert accepted.height == 1


def test_ids_do_not_depend_on_the_window() -> None:
    windows = [
        (FIRST, LAST),
        (date(2020, 12, 1), date(2021, 1, 20)),
        (date(2021, 1, 12), date(2021, 1, 13)),
    ]
    results = [hunt(world(), window_from=first, window_to=last, now=NOW) for first, last in windows]
    assert len({tuple(finding.finding_id for finding in result.findings) for result in results}) == 1
    assert len({tuple(case.case_id for case in result.cases) for result in results}) == 1
    assert len({result.run_id for result in results}) == len(windows)


def test_same_input_same_bytes() -> None:
    one, other = (hunt(world(), window_from=FIRST, window_to=LAST, now=NOW).to_json() for _ in range(2))
    assert one == other


def test_an_archive_of_changes_alone_has_a_last_day_too() -> None:
    day = date(2021, 1, 12)
    change = {"event_uid": "0" * 40, "date": day, "ts": datetime(2021, 1, 12, 2, tzinfo=UTC), "op": "audit_bypass"}
    with database({"change_events": [change]}) as con:
        assert hunt(con, detections=["X09"], now=NOW).window_to == datetime(2021, 1, 13, tzinfo=UTC)


def test_window_defaults_to_the_last_thirty_days_of_data() -> None:
    result = hunt(world(), now=NOW)
    assert result.window_to == datetime(2021, 1, 23, tzinfo=UTC)
    assert result.window_to - result.window_from == timedelta(days=30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"window_from": LAST, "window_to": FIRST}, "before it begins"),
        ({"detections": ["T99"]}, "no detection T99"),
        ({"params": {"nothing": 1}}, "parameter nothing"),
        ({"params": {"T01.min_active_days": "many"}}, "not int"),
    ],
)
def test_wrong_calls_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        hunt(world(), **({"window_from": FIRST, "window_to": LAST} | arguments))


def test_a_parameter_reaches_the_detection() -> None:
    result = hunt(world(), window_from=FIRST, window_to=LAST, params={"T01.min_active_days": 95})
    assert not result.findings


def test_budget_hides_cases_and_says_so() -> None:
    result = hunt(world(), window_from=FIRST, window_to=LAST, budget=0)
    assert not result.shown
    assert not result.to_dict()["cases"]
    assert result.to_frame()["shown"].to_list() == [False]
    assert "beyond the budget" in result.limits[-1]


def test_limits_tell_gaps() -> None:
    con = world("t1")
    con.execute("update context_days set n_rows = 20")  # a source with few rows has days without by nature
    con.execute("delete from context_days where date between '2021-01-20' and '2021-01-21'")
    con.execute("update access_events set throttled = true, mailbox_id = 'ceo@t1' where record_no = 0")
    text = "\n".join(hunt(con, window_from=FIRST, window_to=date(2021, 1, 22), detections=["T01"]).limits)
    assert "Days without ews rows, of 22 in the window: t1: 2021-01-20 to 2021-01-21 (2 days)" in text
    assert "Audit of mailbox ceo@t1 (t1) was throttled" in text
    assert "No POP3 sessions in the window" in text
    assert "No autonomous systems are known" in text
    assert "Reference table networks is empty" in text


def test_a_broken_detection_does_not_hide_the_others(tmp_path: Path) -> None:
    text = (catalogue.FOLDER / "t01_new_source_network.sql").read_text("utf-8")
    (tmp_path / "t01_new_source_network.sql").write_text(text)
    broken = text.replace('id = "T01"', 'id = "T98"').replace(
        "select entity_kind, entity_tenant, entity_id, level, source, cast", "select no_such, cast"
    )
    (tmp_path / "t98_broken.sql").write_text(broken)
    result = hunt(world(), window_from=FIRST, window_to=LAST, folder=tmp_path)
    assert result.detections_run == ("T01",)
    (skipped,) = result.detections_skipped
    assert skipped.id == "T98"
    assert skipped.reason.startswith("failed: BinderException")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('id = "T01"', 'id = "T02"', "t01_x.sql:id:"),
        ('family = "tenant_connection"', 'family = "other"', "t01_x.sql:family: is other"),
        (
            "from first_seen",
            "from first_seen where date > $unknown union all select * from first_seen",
            "unknown is used but not declared",
        ),
        ('name = "settle_days"', 'name = "settle"', "settle_days is used but not declared"),
        ("order by first_seen, entity_kind", "; drop table x; select 1 order by first_seen, entity_kind", "sql:"),
        ('title = "Service', "title = Service", "t01_x.sql:3:"),
        ("blind_spots = [", "blind_spot = [", "blind_spots: is missing"),
        ('"first_seen", "credentials"', '"first_seen", "access_events"', "access_events holds events"),
    ],
)
def test_unsound_front_matter_is_refused_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (catalogue.FOLDER / "t01_new_source_network.sql").read_text("utf-8")
    assert old in text
    (tmp_path / "t01_x.sql").write_text(text.replace(old, new, 1))
    with pytest.raises(RefusedError) as refused:
        catalogue.load(tmp_path)
    assert words in refused.value.fact


def test_a_detection_is_found_by_its_id() -> None:
    assert catalogue.find("t01").path.name == "t01_new_source_network.sql"
    assert catalogue.find("T01").techniques == ("T1078.004", "T1199")
    with pytest.raises(UsageError, match="no detection T77"):
        catalogue.find("T77")


def test_runbook_steps_name_a_column_and_a_time() -> None:
    columns = {
        column.name
        for name in ("access_events", "mail_events", "change_events", "edge_days")
        for column in contract(name).columns
    }
    for detection in catalogue.load():
        for step in detection.runbook:
            named = {part.rpartition(".")[2] for part in step.split("`")[1::2]}
            assert named & columns, step
            assert any(word in step for word in ("days", "hours", "the day")), step


def test_literals_read_back_as_themselves() -> None:
    con = duckdb.connect()
    con.execute("set timezone = 'UTC'")
    values = [
        HOSTILE,
        "",
        "'",
        "\x00a\x00",
        "é\u200b",
        5,
        1.5,
        True,
        None,
        date(2021, 1, 2),
        datetime(2021, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    ]
    for value in values:
        text = literal(value)
        assert text.isprintable()
        assert con.execute(f"select {text}").fetchall() == [(value,)]


def test_text_is_filled_once_and_bounded() -> None:
    assert fill("{a} and {b}", {"a": "{b}", "b": [1, 2, 3, 4, 5, 6, 7]}) == "{b} and 1, 2, 3, 4, 5 and 2 more"
    assert len(plain("x" * 10_000)) == 201


def make(name: str, day: int, **entities: Any) -> Finding:
    facts = {key: entities.pop(key) for key in ("client_fps", "is_declared", "source") if key in entities}
    keys = ("tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes")
    ts = datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=day)
    return Finding(
        finding_id=identity(name, [day]), detection=name, title=name, family="tenant_connection", severity="high",
        score=70.0,
        first_seen=ts, last_seen=ts, explanation="", entities={key: tuple(entities.get(key, ())) for key in keys},
        tactics=("initial-access",), techniques=(), evidence=Evidence("access_events", (), 0), sql="", facts=facts,
    )  # fmt: skip


def test_low_findings_of_one_family_are_watched_until_a_second_signal() -> None:
    low = replace(make("T01", 1, credential_ids=["k"]), severity="low", score=19.0)
    more = replace(make("T03", 2, credential_ids=["k"]), severity="info", score=5.0)
    lone = replace(make("T05", 3, credential_ids=["other"]), severity="medium", score=10.0)
    first, last = build([low, more, lone], Surroundings(), 10)
    assert [(c.rank, c.shown, c.watched, len(c.findings)) for c in (first, last)] == [
        (1, True, False, 1),
        (2, False, True, 2),
    ]
    other_family = replace(make("X03", 2, credential_ids=["k"]), family="exfiltration", severity="low", score=5.0)
    heavier = replace(make("T08", 2, credential_ids=["k"]), severity="medium", score=12.0)
    for second in (other_family, heavier):
        (case,) = build([low, second], Surroundings(), 10)
        assert case.shown
        assert not case.watched
    (case,) = build([low, replace(other_family, severity="info")], Surroundings(), 10)
    assert case.watched


@pytest.mark.parametrize(("severity", "watched"), [("low", True), ("medium", False)])
def test_a_change_of_egress_is_watched_in_whichever_families_it_shows(severity: str, watched: bool) -> None:
    around = Surroundings(declared=frozenset(STRANGE["source_networks"]))
    one = replace(make("T01", 1, **STRANGE), severity="low", score=19.0)
    walk = replace(make("L01", 1, **STRANGE), family="lateral_movement", severity=severity, score=9.0)
    cases = build([one, walk], around, 10)
    assert [case.watched for case in cases if walk in case.findings] == [watched]
    assert [case.shown for case in cases if walk in case.findings] == [not watched]


STRANGE = {"source_networks": ["203.0.113.0/24"]}
SITE = {"source_networks": ["10.0.0.0/24"]}
SHARED = Surroundings(shared=frozenset({("credential", "k")}))
LONG_AGO = [date(2020, 6, 1)] * 3


@pytest.mark.parametrize(
    ("one", "other", "around", "together"),
    [
        ({**STRANGE, "tenant_ids": ["a"]}, {**STRANGE, "tenant_ids": ["b"]}, Surroundings(), True),
        (STRANGE, STRANGE, Surroundings(declared=frozenset(STRANGE["source_networks"])), False),
        ({**SITE, "tenant_ids": ["a"]}, {**SITE, "tenant_ids": ["b"]}, Surroundings(), False),
        ({"tenant_ids": ["a"]}, {"tenant_ids": ["a"]}, Surroundings(), False),
        ({"credential_ids": ["k"]}, {"credential_ids": ["k"]}, Surroundings(), True),
        ({"credential_ids": ["k"]}, {"credential_ids": ["k"]}, SHARED, False),
        (
            {"credential_ids": ["k"], **STRANGE}, {"credential_ids": ["k"], "source_networks": ["198.51.100.0/24"]},
            SHARED, True,
        ),
        (STRANGE, STRANGE, Surroundings(n_tenants=40, arrivals={("net", "203.0.113.0/24"): LONG_AGO}), False),
        ({"source": "AS64500"}, {"source": "AS64500"}, Surroundings(), True),
        ({"source": "AS64500"}, {"source": "AS64500"}, Surroundings(arrivals={("asn", "AS64500"): LONG_AGO}), False),
        ({"client_fps": ["f"]}, {"client_fps": ["f"]}, Surroundings(), True),
        ({"client_fps": ["f"]}, {"client_fps": ["f"]}, Surroundings(arrivals={("client", "f"): LONG_AGO}), False),
    ],
)  # fmt: skip
def test_linking(one: dict[str, Any], other: dict[str, Any], around: Surroundings, *, together: bool) -> None:
    assert len(link([make("T01", 1, **one), make("L01", 3, **other)], around)) == (1 if together else 2)


def test_findings_far_apart_are_not_linked() -> None:
    assert len(link([make("T01", 1, **STRANGE), make("T01", 16, **STRANGE)], Surroundings())) == 2
    assert (
        len(link([make("T01", 1, **STRANGE), make("T01", 10, **STRANGE), make("T01", 20, **STRANGE)], Surroundings()))
        == 1
    )


def test_score_counts_each_detection_once_a_day_and_decays() -> None:
    assert score([make("T01", 1), make("T01", 1)]) == 70.0
    assert score([make("T01", 1), make("T01", 2)]) == round(70 + 70 / 2**0.5, 2)
    assert score([make("T01", 1), make("L01", 1)]) == 140.0
    assert score([make(f"T{place:02}", 1) for place in range(50)]) == 1000.0


def test_case_id_is_that_of_the_smallest_finding() -> None:
    findings = [make("T01", 1, **STRANGE), make("L01", 2, **STRANGE)]
    (case,) = build(findings, Surroundings(), 10)
    assert case.case_id == "C-" + min(finding.finding_id for finding in findings)[2:]
    assert engine.DEFAULT_BUDGET == 10
