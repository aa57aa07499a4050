"""A session that is told twice is one; sessions of hosts that share a name, and of connections that have ended, stay apart."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
from polars.testing import assert_frame_equal

from data_contracts import contract
from transforms.derived import derived

DAY = date(2021, 1, 12)
SESSIONS = next(table for table in derived() if table.table == "sessions")


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2021, 1, 12, hour, minute, tzinfo=UTC)


def uid(number: int) -> str:
    return f"{number:040x}"


def frame(name: str, rows: Sequence[dict[str, Any]]) -> pl.LazyFrame:
    full = [{"event_uid": uid(100 + place), "date": DAY} | row for place, row in enumerate(rows)]
    schema = contract(name).polars_schema
    if not full:
        return pl.LazyFrame(schema=schema)
    columns = sorted({column for row in full for column in row})
    data = {column: [row.get(column) for row in full] for column in columns}
    return contract(name).conform(pl.LazyFrame(data, schema={column: schema[column] for column in columns}))


def table(*rows: dict[str, Any], mail_rows: Sequence[dict[str, Any]] = ()) -> pl.DataFrame:
    tables = {"access_events": frame("access_events", rows), "mail_events": frame("mail_events", mail_rows)}
    return SESSIONS.build([DAY], tables).collect()


def pop3(action: str, when: datetime, **row: Any) -> dict[str, Any]:
    told = {
        "protocol": "pop3", "source": "dovecot", "action": action, "host": "pop", "principal_id": "journal@a.example",
        "outcome": "success", "session_id": "s1", "ts": when,
    }  # fmt: skip
    return told | ({"src_ip": "192.0.2.7"} if action == "auth" else {"retr_count": 10, "bytes_out": 1000}) | row


def test_a_summary_in_two_exports_is_one_session() -> None:
    opened = pop3("auth", at(9), event_uid=uid(1))
    once = pop3("session", at(9, 10), event_uid=uid(2))
    again = once | {"event_uid": uid(3)}
    assert_frame_equal(table(opened, opened | {"event_uid": uid(4)}, once, again), table(opened, once))
    other = once | {"event_uid": uid(5), "retr_count": 3}
    assert table(opened, once, other)["retr_count"].sort().to_list() == [3, 10]
    unnumbered = once | {"session_id": None}  # two polls in one second, for all that the log tells
    assert table(opened, unnumbered, unnumbered | {"event_uid": uid(3)}).height == 2


def _postfix(event: str, when: datetime, **row: Any) -> dict[str, Any]:
    named = {
        "source": "postfix",
        "outcome": "success",
        "tenant_id": "a",
        "host": "mx1",
        "session_id": "77",
        "src_ip": "198.51.100.7",
        "queue_id": None,
    }
    return named | {"event": event, "ts": when} | row


def _signed(when: datetime, queue: str, **row: Any) -> dict[str, Any]:
    who = {
        "outcome": "success",
        "protocol": "smtp",
        "source": "postfix",
        "action": "auth",
        "host": "mx1",
        "tenant_id": "a",
    }
    return who | {"ts": when, "session_id": queue, "src_ip": "198.51.100.7", "principal_id": "svc@a.example"} | row


def test_an_authentication_belongs_to_no_session_of_another_tenants_host_of_the_same_name() -> None:
    lines = [
        _postfix("connect", at(9), session_id="5"), _postfix("disconnect", at(9, 5), session_id="5"),
        _postfix("connect", at(9, 1), tenant_id="b"), _postfix("disconnect", at(9, 4), tenant_id="b"),
    ]  # fmt: skip
    found = table(_signed(at(9, 2), "4F9D1"), mail_rows=lines).sort("session_id")
    assert found.select("tenant_id", "session_id", "principal_id", "outcome").rows() == [
        ("a", "5", "svc@a.example", "success"),
        ("b", "77", None, "unknown"),
    ]
    untold = [line | {"tenant_id": None} for line in lines[2:]]
    found = table(_signed(at(9, 2), "4F9D1"), mail_rows=untold)
    assert found.select("session_id", "principal_id").rows() == [("77", "svc@a.example")]


def test_an_authentication_belongs_to_no_session_that_has_ended() -> None:
    lines = [_postfix("connect", at(9)), _postfix("disconnect", at(9, 1))]
    found = table(_signed(at(9, 1), "4F9D1"), _signed(at(12), "5A001"), mail_rows=lines).sort("start_ts")
    assert found.select("session_id", "start_ts", "end_ts", "principal_id").rows() == [
        ("77", at(9), at(9, 1), "svc@a.example"),
        ("5A001", at(12), at(12), "svc@a.example"),
    ]
