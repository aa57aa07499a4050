"""failure_days and coverage_hours: refusals by context, and rows by hour of every log."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from data_contracts import contract
from transforms.derived import coverage_hours, failure_days

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)


def events(name: str, *rows: dict[str, Any]) -> pl.LazyFrame:
    schema = contract(name).polars_schema
    full = [{"date": DAY, "ts": NOON} | row for row in rows]
    return pl.LazyFrame([{column: row.get(column) for column in schema} for row in full], schema=schema)


def failures(*rows: dict[str, Any]) -> pl.DataFrame:
    one = {
        "protocol": "imap", "action": "auth", "outcome": "failure", "principal_id": "ann", "src_net": "192.0.2.0/24",
        "client_fp": "00000000000000aa",
    }  # fmt: skip
    given = {"access_events": events("access_events", *(one | row for row in rows))}
    states = failure_days.build([DAY], given).collect()
    accepted, refused = contract("failure_days").split(states)
    assert refused.is_empty(), refused
    return accepted


def test_refusals_and_what_the_same_context_was_granted() -> None:
    rows = failures(
        {},
        {"op_count": 5},
        {"outcome": "success", "ts": NOON + timedelta(hours=1)},
        {"outcome": "success", "action": "session"},  # of the same sign-in
        {"outcome": "success", "client_fp": "00000000000000bb"},  # another client
        {"outcome": "success", "principal_id": "bob"},
        {"outcome": "unknown"},
        {"action": "get_item"},  # a request for an item that was refused is no sign-in
        {"date": DAY - timedelta(days=1)},
    )
    assert rows.select("principal_id", "client_fp", "failures", "successes", "first_ts", "last_ts").rows() == [
        ("ann", "00000000000000aa", 6, 1, NOON, NOON + timedelta(hours=1))
    ]


def test_a_refusal_without_a_name_is_kept_by_its_network() -> None:
    rows = failures({"principal_id": None}, {"principal_id": None, "action": "session"}, {"src_net": None})
    assert sorted(rows.select("principal_id", "src_net", "failures").rows(), key=str) == [
        ("ann", None, 1), (None, "192.0.2.0/24", 2)
    ]  # fmt: skip


def test_every_event_table_counts_towards_the_hour_of_its_log() -> None:
    given = {
        "access_events": events("access_events", {"source": "dovecot", "host": "mx", "tenant_id": "t1"}),
        "mail_events": events(
            "mail_events",
            {"source": "dovecot", "host": "mx", "tenant_id": "t1", "ts": NOON + timedelta(minutes=59)},
            {"source": "postfix", "host": "mx", "ts": NOON + timedelta(hours=1)},
            {"source": "postfix", "host": "mx", "date": DAY + timedelta(days=1)},
        ),
        "change_events": events("change_events", {"source": "m365_ual", "tenant_id": "t1"}),
        "gateway_jobs": events("gateway_jobs", {"source": "gateway_jobs"}),
    }
    states = coverage_hours.build([DAY], given).collect()
    accepted, refused = contract("coverage_hours").split(states)
    assert refused.is_empty(), refused
    assert accepted.select("source", "tenant_id", "host", "hour", "n_rows").rows() == [
        ("dovecot", "t1", "mx", NOON, 2),
        ("gateway_jobs", None, None, NOON, 1),
        ("m365_ual", "t1", None, NOON, 1),
        ("postfix", None, "mx", NOON + timedelta(hours=1), 1),
    ]
    assert accepted["last_ts"][0] == NOON + timedelta(minutes=59)
