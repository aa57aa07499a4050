"""Parts of the evaluation that read worlds and archives: labels by byte offset, alerts of the baselines, doubled records."""

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from archive.store import Archive
from data_contracts import contract
from tests.evaluate import baselines, reading, robustness, scale, worlds

FIRST, LAST = date(2021, 2, 1), date(2021, 2, 10)


def test_labels_are_kept_by_byte_offset(tmp_path: Path) -> None:
    from flows.world.files import Writer

    records: list[tuple[float, str, str | None]] = [
        (1.0, '{"é":1}', None),
        (2.0, '{"b":2}', "A1-x"),
        (3.0, '{"c":3}', "N1-y"),
    ]
    with worlds.labels_kept() as places:
        writer = Writer(tmp_path)
        lines = writer.lines(records)
        writer.write("logs/a.json", "[\n" + ",\n".join(lines) + "\n]\n", 3.0)
        writer.write_zip("logs/b.zip", [("m.log", "head\r\n" + lines[1] + "\r\n")], 3.0)
    text = (tmp_path / "logs" / "a.json").read_bytes()
    assert {label: text[offset : offset + 7] for offset, label in places["logs/a.json", None]} == {
        "A1-x": b'{"b":2}',
        "N1-y": b'{"c":3}',
    }
    assert places["logs/b.zip", "m.log"] == [(6, "A1-x")]
    assert writer.seen["A1-x"].records == 1
    Writer(tmp_path).write("logs/c.json", lines[1], 1.0)
    assert ("logs/c.json", None) not in places  # nothing is kept any more


def accesses(*rows: dict[str, Any]) -> pl.DataFrame:
    """Accesses as the baselines read them."""
    empty = dict.fromkeys(
        ("principal_id", "credential_id", "app_id", "mailbox_id", "src_net", "src_ip", "client_fp", "label")
    )
    plain = {
        "tenant_id": "oak",
        "protocol": "ews",
        "outcome": "success",
        "op_count": 1,
        "item_count": 0,
        "bytes_out": 0,
        "throttled": False,
    }
    made = []
    for number, row in enumerate(rows):
        full = empty | plain | {"event_uid": f"u{number}"} | row
        made.append(full | {"date": full["ts"].date(), "entity": full["principal_id"]})
    texts = dict.fromkeys(
        ("principal_id", "credential_id", "app_id", "mailbox_id", "src_net", "src_ip", "client_fp", "label"), pl.String
    )
    return pl.DataFrame(made, schema_overrides=texts)


def at(day: int, minute: float = 0) -> datetime:
    """A moment in February 2021 (day 0 is 31 January)."""
    return datetime(2021, 1, 31, 12, tzinfo=UTC) + timedelta(days=day, minutes=minute)


def test_published_thresholds_need_more_than_their_limit() -> None:
    six = [{"ts": at(2, n), "principal_id": "app", "mailbox_id": f"m{n}@oak.example", "label": "A2"} for n in range(6)]
    own = [{"ts": at(3, n), "principal_id": "a@oak.example", "mailbox_id": "a@oak.example"} for n in range(9)]
    five = [{"ts": at(4, n), "principal_id": "app", "mailbox_id": f"m{n}@oak.example"} for n in range(5)]
    failed = [
        {"ts": at(5, n / 4), "principal_id": f"u{n}", "src_ip": "192.0.2.9", "outcome": "failure"} for n in range(11)
    ]
    heavy = [
        {"ts": at(6), "principal_id": "bulk", "op_count": 150},
        {"ts": at(7), "principal_id": "bulk", "throttled": True},
    ]
    found = baselines.alerts(baselines.thresholds(accesses(*six, *own, *five, *failed, *heavy), FIRST, LAST))
    assert [(alert["id"], alert["score"], alert["rows"]) for alert in found] == [
        ("2021-02-02 oak app", 1.2, 6), ("2021-02-05 oak 192.0.2.9", 1.1, 11), ("2021-02-06 oak bulk", 1.5, 1), ("2021-02-07 oak bulk", 1.0, 1),
    ]  # fmt: skip
    assert found[0]["labels"] == {"A2": 6}
    assert found[1]["sources"] == ["192.0.2.9"]


def test_a_day_far_above_the_days_before() -> None:
    quiet = [{"ts": at(day), "principal_id": "app", "op_count": 10 + day % 2} for day in range(-20, 5)]
    found = baselines.alerts(
        baselines.sigma(accesses(*quiet, {"ts": at(5), "principal_id": "app", "op_count": 40}), FIRST, LAST)
    )
    assert [alert["id"] for alert in found] == ["2021-02-05 oak app"]
    assert found[0]["score"] == pytest.approx(29.5, abs=0.5)


def test_terms_not_seen_for_two_weeks_are_new() -> None:
    rows = [
        {"ts": at(-10), "principal_id": "p", "src_net": "192.0.2.0/24"}, {"ts": at(2), "principal_id": "p", "src_net": "192.0.2.0/24"},
        {"ts": at(3), "principal_id": "p", "src_net": "198.51.100.0/24"}, {"ts": at(3), "principal_id": "p", "app_id": "tool"},
        {"ts": at(-20), "principal_id": "q", "src_net": "192.0.2.0/24"}, {"ts": at(4), "principal_id": "q", "src_net": "192.0.2.0/24"},
        {"ts": at(6), "principal_id": "p", "src_net": "203.0.113.0/24", "outcome": "failure"},
    ]  # fmt: skip
    found = baselines.alerts(baselines.new_terms(accesses(*rows), FIRST, LAST))
    assert [(alert["id"], alert["sources"]) for alert in found] == [
        ("2021-02-03 oak p", ["198.51.100.0/24"]), ("2021-02-04 oak q", ["192.0.2.0/24"]),
    ]  # fmt: skip
    assert found[0]["score"] > 2 > found[1]["score"] > 1


def test_the_forest_singles_out_the_odd_day_and_is_the_same_each_time() -> None:
    rows = [
        {"ts": at(day, n), "principal_id": f"p{who}", "src_net": "n"}
        for day in range(1, 9)
        for who in range(5)
        for n in range(4)
    ]
    odd = [
        {"ts": at(5, 9 * n), "principal_id": "p0", "src_net": f"n{n}", "mailbox_id": f"m{n}", "item_count": 500}
        for n in range(60)
    ]
    one, two = (baselines.alerts(baselines.isolation_forest(accesses(*rows, *odd), FIRST, LAST)) for _ in range(2))
    assert max(one, key=lambda alert: alert["score"])["id"] == "2021-02-05 oak p0"
    assert one == two


def test_records_are_doubled_but_not_heads() -> None:
    data = b"#Fields: a\n" + b"".join(b"line %d\n" % n for n in range(2000))
    text, count = robustness._twice(random.Random(1), data)
    assert 5 < count < 50
    assert text.count(b"\n") == 2001 + count
    assert text.count(b"#Fields") == 1
    array, more = robustness._twice(random.Random(1), b"[\n" + b",\n".join(b"{}" for _ in range(1000)) + b"\n]\n")
    assert array.count(b"{}") == 1000 + more
    assert array.endswith(b"{}\n]\n")


def test_reference_tables_for_each_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "bindings.csv", tmp_path / "many.csv"
    source.write_text("credential_id,tenant_id,scope\npw:a@oak.example,oak,route\n")
    scale._references(source, target, 3)
    assert target.read_text().splitlines()[1:] == [
        "pw:a@oak.example,oak,route", "pw:a@oak.example.x1,oak.x1,route", "pw:a@oak.example.x2,oak.x2,route",
    ]  # fmt: skip


def hunt_of(*findings: tuple[str, float, tuple[str, ...]]) -> Any:
    """A hunt of one case with these findings: id, score, evidence."""
    made = [
        SimpleNamespace(
            finding_id=name, detection="T01", severity="high", score=score, evidence=SimpleNamespace(count=len(evidence), event_uids=evidence),
            entities=defaultdict(tuple, tenant_ids=("oak",), source_networks=("192.0.2.0/24",)),
        )
        for name, score, evidence in findings
    ]  # fmt: skip
    case = SimpleNamespace(
        findings=made, entities=defaultdict(tuple, tenant_ids=("oak",), source_networks=("192.0.2.0/24",))
    )
    return SimpleNamespace(findings=made, cases=[case])


def test_two_hunts_are_compared_finding_by_finding() -> None:
    before = hunt_of(("F-1", 50.0, ("u1",)), ("F-2", 40.0, ("u2",)), ("F-3", 30.0, ()))
    same = robustness.compared(before, before)
    assert (same["gone"], same["new"], same["other score"], same["other evidence"]) == ([], [], [], [])
    assert same["same findings in the same cases"]
    other = robustness.compared(before, hunt_of(("F-1", 55.0, ("u1",)), ("F-2", 40.0, ("u2", "u9")), ("F-4", 30.0, ())))
    assert [len(other[key]) for key in ("gone", "new", "other score", "other evidence")] == [1, 1, 1, 1]
    assert not other["same findings in the same cases"]
    assert other["cases about the same"]
    told = robustness.section(
        {
            "seed": 1,
            "events": {"access_events": 10},
            "host": "mx1.oak.example",
            "records doubled": 3,
            "findings": 3,
            "cases": 1,
        }
        | {name: other | {"events": {"access_events": 11}} for name in robustness.VARIANTS}
    )
    assert "- other score: T01 high oak 192.0.2.0/24 50 to 55." in told
    assert "- events: access_events +1." in told
    assert len({row.count("|") for row in told.splitlines() if row.startswith("|")}) == 1


def test_what_a_question_costs_is_told_by_size() -> None:
    run = {"seconds": 2.0, "cpu": 1.0, "peak": 100, "read": 5_000_000, "count": 7}
    whats = [
        "libraries",
        "catalogue",
        "daily",
        *(f"{kind}:{name}" for name in scale.QUESTIONS for kind in ("detection", "question")),
    ]
    bytes_read = {"events": {"window": 400_000, "before": 0}, "derived": {"window": 100_000, "before": 700_000},
                  "small": {"window": 30_000, "before": 900_000}, "others": {"window": 0, "before": 50_000}}  # fmt: skip
    size = {"rows": 1000, "events": 3_000_000, "derived": 1_000_000, "others": 200_000, "events of the last day": 100_000,
            "derived of the last day": 300_000, "small": 500_000, "small of the last day": 100_000,
            "accesses": 600, "runs": dict.fromkeys(whats, run),
            "reads": dict.fromkeys(("catalogue", "daily"), bytes_read)}  # fmt: skip
    text = scale.section(
        {"times": 20, "tenants": 14, "days": 45, "derived seconds": 9.5, "sizes": [size, size | {"rows": 20_000}],
         "rollup": {"gatehound": run, "DuckDB": run}}
    )  # fmt: skip
    assert "| all detections, 30 days | 20,000 | 2.0 | 1.0 | 100 | 5.0 | 7 |" in text
    assert "| DuckDB | 2.0 | 300 | 600 | 100 | 7 |" in text
    assert "| all detections, the last day | 1,000 | 0.4 | 0.0 | 0.0 | 0.9 | 0.1 | 0.7 | 0.1 |" in text
    assert "| stored | 20,000 | 0.1 | 2.9 | 0.1 | 0.4 | 0.3 | 0.7 | 0.2 |" in text


def test_what_is_read_is_told_by_day_and_kind(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "archive")
    days = [date(2021, 1, 11), date(2021, 1, 12)]
    row = {"tenant_id": "t", "protocol": "ews", "action": "any", "outcome": "success", "n_rows": 1, "n_ops": 1, "items": 0,
           "bytes_out": 0, "hour_bits": 1}  # fmt: skip
    made = [
        row | {"date": day, "first_ts": at, "last_ts": at}
        for day in days
        for at in [datetime(*day.timetuple()[:3], tzinfo=UTC)]
    ]
    archive.replace_days("context_days", contract("context_days").conform(pl.LazyFrame(made)).collect(), days)
    with reading.logged(archive) as con:
        con.execute("select count(distinct tenant_id) from context_days where date = '2021-01-12'").fetchall()
        found = reading.reads(con, days[1], days[1])
    assert found["derived"]["window"] > 0
    assert sum(size for of in found.values() for size in of.values()) >= found["derived"]["window"]
    assert found["events"] == {"window": 0, "before": 0}
