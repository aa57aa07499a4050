"""One request in several logs, sessions and their logins, and the ledger of a journal mailbox."""

import random
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from hashlib import sha1
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts import contract
from transforms.derived import derived
from transforms.sessions import requests_once, with_login

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)
BY_NAME = {table.table: table for table in derived()}


def frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pl.LazyFrame:
    rows = list(rows)
    if not rows:
        return pl.LazyFrame(schema=contract(name).polars_schema)
    columns = sorted({column for row in rows for column in row})
    data = {column: [row.get(column) for row in rows] for column in columns}
    schema = {column: contract(name).polars_schema[column] for column in columns}
    return contract(name).conform(pl.LazyFrame(data, schema=schema))


def uid(*parts: object) -> str:
    return sha1(repr(parts).encode(), usedforsecurity=False).hexdigest()


def access(*rows: dict[str, Any]) -> pl.LazyFrame:
    defaults = {"protocol": "graph", "action": "get_item", "outcome": "success", "source": "m365_ual", "ts": NOON}
    full = [defaults | {"event_uid": uid(at, sorted(map(str, row.items())))} | row for at, row in enumerate(rows)]
    return frame("access_events", [row | {"date": row["ts"].date()} for row in full])


def mail(*rows: dict[str, Any]) -> pl.LazyFrame:
    defaults = {"event": "deliver", "outcome": "success", "source": "postfix", "host": "mx", "ts": NOON}
    full = [defaults | {"event_uid": uid(at)} | row for at, row in enumerate(rows)]
    return frame("mail_events", [row | {"date": row["ts"].date()} for row in full])


def build(name: str, tables: Mapping[str, pl.LazyFrame], day: date = DAY) -> pl.DataFrame:
    if "sessions" in BY_NAME[name].sources:
        tables = {"sessions": BY_NAME["sessions"].build([day], tables), **tables}
    rows = BY_NAME[name].build([day], tables)
    streamed = rows.collect(engine="streaming")
    assert_frame_equal(rows.collect(engine="in-memory"), streamed)
    return streamed


def login(**row: Any) -> dict[str, Any]:
    return {
        "protocol": "pop3", "source": "dovecot", "action": "auth", "host": "pop", "principal_id": "journal@a.example",
        "mailbox_id": "journal@a.example", "credential_id": "pw:journal@a.example", "src_ip": "192.0.2.7",
        "src_net": "192.0.2.0/24", "src_asn": 64500, "src_class": "vendor_egress", "client_fp": "00000000000000aa",
    } | row  # fmt: skip


def session(**row: Any) -> dict[str, Any]:
    unknown = {"src_ip": None, "src_net": None, "src_asn": None, "src_class": None, "client_fp": None}
    counted = {"action": "session", "agg_level": "session", "retr_count": 10, "dele_count": 10, "bytes_out": 1000}
    return login() | unknown | counted | row


def test_one_ews_request_in_three_logs_counts_once() -> None:
    back = {"source": "exchange_ews", "protocol": "ews", "session_id": "r1", "principal_id": "svc@a.example",
            "principal_type": "service_account", "mailbox_id": "ceo@a.example", "src_ip": "10.0.0.5",
            "src_net": "10.0.0.0/24"}  # fmt: skip
    front = back | {"source": "exchange_httpproxy", "action": "proxy", "mailbox_id": None, "src_ip": "192.0.2.7",
                    "src_net": "192.0.2.0/24", "bytes_out": 5000, "client_fp": "00000000000000aa"}  # fmt: skip
    server = front | {"source": "iis", "bytes_out": 5100, "src_ip": "10.0.0.1", "src_net": "10.0.0.0/24"}
    rows = access(
        back,
        front,
        front | {"session_id": "only-front"},
        server | {"session_id": "only-front"},
        server | {"session_id": "only-server"},
        back | {"session_id": None},
        back | {"session_id": "own-bytes", "bytes_out": 7},
        front | {"session_id": "own-bytes"},
    )
    once = requests_once(rows).collect()
    assert once.columns == rows.collect_schema().names()
    told = once.select("session_id", "source", "src_ip", "bytes_out").sort("session_id", "source").rows()
    assert told == [
        (None, "exchange_ews", "10.0.0.5", None),
        ("only-front", "exchange_httpproxy", "192.0.2.7", 5000),
        ("only-server", "iis", "10.0.0.1", 5100),
        ("own-bytes", "exchange_ews", "192.0.2.7", 7),
        ("r1", "exchange_ews", "192.0.2.7", 5000),
    ]
    states = build("context_days", {"access_events": rows})
    assert states["n_rows"].sum() == 5
    edges = build("edge_days", {"access_events": rows}).filter(src_net="192.0.2.0/24")
    assert edges.select("mailbox_id", "n_ops", "bytes_out").rows() == [("ceo@a.example", 2, 5007)]


def test_front_ends_that_disagree_do_not_overrule_the_back_end() -> None:
    back = {"source": "exchange_ews", "session_id": "r1", "src_ip": "10.0.0.5", "src_net": "10.0.0.0/24"}
    one = {"source": "exchange_httpproxy", "session_id": "r1", "src_ip": "192.0.2.7", "src_net": "192.0.2.0/24"}
    other = one | {"src_ip": "198.51.100.9", "src_net": "198.51.100.0/24"}
    kept = requests_once(access(back, one, other)).collect()
    assert kept.select("src_ip", "src_net").rows() == [("10.0.0.5", "10.0.0.0/24")]


def at(hour: int, minute: int = 0, days: int = 0) -> datetime:
    return NOON.replace(hour=hour, minute=minute) + timedelta(days=days)


def test_a_session_takes_the_address_of_its_login() -> None:
    attacker = {"src_ip": "203.0.113.9", "src_net": "203.0.113.0/24", "client_fp": "00000000000000bb"}
    rows = access(
        login(ts=at(9), session_id="s1"),
        login(ts=at(9, 5), session_id="s2", **attacker),
        session(ts=at(9, 10), session_id="s1", retr_count=1),  # the later login is not its own
        session(ts=at(9, 20), retr_count=2),  # no session id: the latest login before it
        session(ts=at(9, 30), retr_count=3, host="other"),  # another server: no login
        session(ts=at(9, 40), retr_count=4, src_ip="192.0.2.8", src_net="192.0.2.0/24"),  # has its own
        session(ts=at(8), retr_count=5),  # before any login
        login(ts=at(9, 50), outcome="failure", src_ip="198.51.100.1", src_net="198.51.100.0/24"),
        session(ts=at(9, 55), retr_count=6, session_id="unknown"),
        session(ts=at(9, 56), retr_count=7, protocol="imap"),
        login(ts=at(9, 57), principal_id="other@a.example", session_id="pid:18", src_ip="198.51.100.2"),
        session(ts=at(9, 58), retr_count=8, session_id="pid:18"),  # the process id of another user's session
    )
    filled = with_login(rows).collect()
    assert filled.columns == rows.collect_schema().names()
    assert filled.height == 12
    sources = dict(filled.filter(action="session").select("retr_count", "src_ip").iter_rows())
    assert sources == {
        1: "192.0.2.7", 2: "203.0.113.9", 3: None, 4: "192.0.2.8", 5: None, 6: "203.0.113.9", 7: None, 8: "203.0.113.9"
    }  # fmt: skip
    second = filled.row(by_predicate=pl.col("retr_count") == 2, named=True)
    assert (second["src_net"], second["client_fp"]) == (attacker["src_net"], attacker["client_fp"])


def test_two_logins_in_one_second_have_one_winner() -> None:
    rows = [
        login(ts=at(9), event_uid="a" * 40),
        login(ts=at(9), event_uid="b" * 40, src_ip="203.0.113.9", src_net="203.0.113.0/24"),
        session(ts=at(9, 1), event_uid="c" * 40),
    ]
    for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0)):
        filled = with_login(access(*(rows[place] for place in order))).filter(pl.col("action") == "session").collect()
        assert filled.select("src_ip", "src_net").rows() == [("203.0.113.9", "203.0.113.0/24")]


def test_a_login_before_midnight_counts_for_a_day_at_most() -> None:
    rows = access(
        login(ts=at(23, 59, days=-1), session_id="s1"),
        session(ts=at(0, 4), session_id="s1"),
        login(ts=at(1, 0, days=-1), principal_id="b@a.example"),
        session(ts=at(0, 30), principal_id="b@a.example", mailbox_id="b@a.example"),
        login(ts=at(1, 0, days=-1), principal_id="c@a.example"),
        session(ts=at(2, 0), principal_id="c@a.example", mailbox_id="c@a.example"),
    )
    ledger = build("journal_hours", {"access_events": rows})
    assert dict(ledger.select("mailbox_id", "src_net").iter_rows()) == {
        "journal@a.example": "192.0.2.0/24", "b@a.example": "192.0.2.0/24", "c@a.example": None
    }  # fmt: skip
    assert build("context_days", {"access_events": rows})["n_rows"].sum() == 3


def test_a_delivery_in_two_logs_counts_once() -> None:
    box = "journal@a.example"
    deliveries = mail(
        {"event": "queue", "queue_id": "Q1", "size_bytes": 900, "ts": at(8, 59)},
        {"queue_id": "Q1", "rcpt": "Journal@A.example", "ts": at(9)},
        {"source": "dovecot", "rcpt": box, "ts": at(9)},
        {"source": "dovecot", "rcpt": box, "ts": at(8, 59)},  # the same delivery, on the other side of the hour
        {"source": "dovecot", "rcpt": box, "ts": at(14), "size_bytes": 50},  # Postfix has nothing about this hour
        {
            "source": "exchange_msgtrk",
            "rcpt": "x@a.example",
            "recipients": ["x@a.example", box],
            "ts": at(16),
            "size_bytes": 70,
        },
        {"rcpt": box, "ts": at(9, 30), "outcome": "failure"},
        {"rcpt": box, "ts": at(9, 31), "event": "send"},
        {"rcpt": "elsewhere@a.example", "ts": at(9)},
        {"rcpt": box, "ts": at(9, days=-1)},
    )
    sessions = access(login(ts=at(9, 58)), session(ts=at(10), tenant_id="t1", maildrop_n=12), session(ts=at(10, 5)))
    ledger = build("journal_hours", {"access_events": sessions, "mail_events": deliveries})
    assert ledger.filter(pl.col("sessions") == 0).select("hour", "delivered", "delivered_bytes").rows() == [
        (at(9), 1, 900), (at(14), 1, 50), (at(16), 1, 70)
    ]  # fmt: skip
    read = ledger.filter(pl.col("sessions") > 0).row(0, named=True)
    expected = {"sessions": 2, "retrieved": 20, "retrieved_bytes": 2000, "deleted": 20, "maildrop_max": 12,
                "src_net": "192.0.2.0/24", "credential_id": f"pw:{box}", "delivered": 0}  # fmt: skip
    assert {name: read[name] for name in expected} == expected
    assert ledger["tenant_id"].unique().to_list() == ["t1"]
    assert ledger["is_journal"].to_list() == [False] * 4


@pytest.mark.parametrize(
    ("reference", "row"),
    [
        ("mailboxes", {"mailbox_id": "Journal@a.example", "tenant_id": "t9", "kind": "journal"}),
        ("bindings", {"principal_id": "journal@a.example", "tenant_id": "t9", "service": "pop3", "scope": "journal"}),
        (
            "bindings",
            {"credential_id": "pw:Journal@a.example", "tenant_id": "t9", "service": "pop3", "scope": "journal"},
        ),
    ],
)
def test_a_declared_journal_is_kept_even_if_nobody_reads_it(reference: str, row: dict[str, Any]) -> None:
    tables = {"mail_events": mail({"rcpt": "journal@a.example"}), reference: frame(reference, [row])}
    ledger = build("journal_hours", tables)
    assert ledger.select("mailbox_id", "is_journal", "delivered").rows() == [("journal@a.example", True, 1)]


def test_a_system_account_gets_what_its_own_host_delivered() -> None:
    rows = access(session(principal_id="journal", mailbox_id="journal", host="mx"))
    deliveries = mail({"rcpt": "journal@mx.a.example"}, {"rcpt": "journal@a.example", "host": "elsewhere"})
    ledger = build("journal_hours", {"access_events": rows, "mail_events": deliveries})
    assert ledger["mailbox_id"].unique().to_list() == ["journal"]
    assert (ledger["delivered"].sum(), ledger["retrieved"].sum()) == (1, 10)


def told(op: str, when: datetime, **row: Any) -> dict[str, Any]:
    """A row of Exchange's POP3 log."""
    actions = {"user": "auth", "pass": "auth", "opensession": "connect", "uidl": "list"}
    command = op.removeprefix("be:")
    known = command not in ("opensession", "closesession")
    who = {"principal_id": "journal@a.example", "mailbox_id": "journal@a.example",
           "credential_id": "pw:journal@a.example"} if known else {}  # fmt: skip
    action = actions.get(command, command if command in ("retr", "dele", "top", "list") else "other")
    end = {"session_id": "cas|pop3|01"} | ADDRESS if not op.startswith("be:") else {"session_id": "mbx|pop3be|0A"}
    common = {"source": "exchange_pop_imap", "protocol": "pop3", "op_raw": op, "action": action, "ts": when}
    outcome = "unknown" if command == "user" else "success"
    return common | {"outcome": outcome, "bytes_out": 5, "bytes_in": 7} | who | end | row


ADDRESS = {"src_ip": "192.0.2.7", "src_net": "192.0.2.0/24", "client_fp": "00000000000000aa"}
FRONT = [told("opensession", at(10)), told("user", at(10)), told("pass", at(10))]
READ = ("be:opensession", "be:user", "be:pass", "be:uidl", "be:retr", "be:retr", "be:dele", "be:quit")


def back(first: datetime, **row: Any) -> list[dict[str, Any]]:
    steps = [told(op, first + timedelta(seconds=n), **row) for n, op in enumerate(READ)]
    return [step | {"bytes_out": 1000} if step["action"] == "retr" else step for step in steps]


def table(*rows: dict[str, Any], mail_rows: Iterable[dict[str, Any]] = (), day: date = DAY) -> pl.DataFrame:
    found = build("sessions", {"access_events": access(*rows), "mail_events": mail(*mail_rows)}, day)
    assert contract("sessions").split(found)[1].is_empty()
    return found


def test_front_end_and_back_end_are_one_session() -> None:
    close = told("closesession", at(10, 5))
    rows = [*FRONT, close, *back(at(10))]
    expected = {
        "start_ts": at(10), "end_ts": at(10, 5), "session_id": "cas|pop3|01", "src_ip": "192.0.2.7", "retr_count": 2,
        "dele_count": 1, "top_count": 0, "bytes_out": 2000, "outcome": "success", "n_auth_failures": 0,
        "command_signature": "dele,pass,quit,retr,uidl,user", "principal_id": "journal@a.example",
        "credential_id": "pw:journal@a.example", "commands": 7,
    }  # fmt: skip
    for order in (rows, rows[::-1]):
        row = table(*order).row(0, named=True)
        assert table(*order).height == 1
        assert {name: row[name] for name in expected} == expected
    # Where the front end tells of commands, it counts, and the back end does not.
    both = [
        *FRONT,
        *(step | {"session_id": "cas|pop3|01", "op_raw": step["op_raw"][3:]} | ADDRESS for step in back(at(10))[3:]),
    ]
    assert table(*both, *back(at(10))).select("retr_count", "bytes_out").rows() == [(2, 2000)]
    alone = table(*back(at(10)))
    assert alone.select("retr_count", "src_ip", "session_id").rows() == [(2, None, "mbx|pop3be|0A")]
    other = table(*FRONT, close, *back(at(10), principal_id="eve@a.example"))
    assert sorted(other["retr_count"]) == [0, 2]


def test_exchange_counts_in_the_ledger_and_in_contexts_as_dovecot_does() -> None:
    rows = access(*FRONT, told("closesession", at(10, 5)), *back(at(10)))
    ledger = build("journal_hours", {"access_events": rows})
    assert ledger.select("hour", "sessions", "retrieved", "retrieved_bytes", "deleted", "src_net").rows() == [
        (at(10), 1, 2, 2000, 1, "192.0.2.0/24")
    ]  # fmt: skip
    short = rows.with_columns(pl.col("mailbox_id", "principal_id").str.replace("@a.example", ""))
    boxes = frame("mailboxes", [{"mailbox_id": "Journal@a.example", "tenant_id": "t1"}])
    named = build(
        "journal_hours",
        {"access_events": short, "mailboxes": boxes, "mail_events": mail({"rcpt": "journal@a.example"})},
    )
    assert named.group_by("mailbox_id").agg(pl.col("delivered", "retrieved").sum()).rows() == [
        ("journal@a.example", 1, 2)
    ]
    contexts = build("context_days", {"access_events": rows})
    named = contexts.filter(principal_id="journal@a.example")
    assert named["src_net"].unique().to_list() == ["192.0.2.0/24"]
    assert named.select("n_rows", "n_ops", "items", "bytes_out").rows() == [(2, 8, 0, 2000)]


def test_a_session_over_midnight_is_one_row_on_the_day_it_ends() -> None:
    night = [told("opensession", at(23, 59)), told("pass", at(23, 59)), told("retr", at(23, 59), bytes_out=9)]
    later = [told("retr", at(0, 1, days=1), bytes_out=10), told("closesession", at(0, 2, days=1))]
    assert table(*night, *later).is_empty()
    row = table(*night, *later, day=DAY + timedelta(days=1)).row(0, named=True)
    assert (row["start_ts"], row["end_ts"], row["retr_count"], row["bytes_out"]) == (at(23, 59), at(0, 2, 1), 2, 19)
    reads = [{"protocol": "ldap", "source": "openldap", "host": "ds", "session_id": "7", "action": "search",
              "op_raw": "SRCH", "principal_id": "cn=svc", "ts": at(3 * n % 24, days=3 * n // 24)} for n in range(-8, 24)]  # fmt: skip
    days = [table(*reads, day=DAY + timedelta(days=n)) for n in (-1, 0, 1, 2)]
    assert [day["commands"].to_list() for day in days] == [[8], [8], [8], [8]]


def test_an_id_that_is_used_again_is_another_session() -> None:
    again = [told("opensession", at(12)), told("pass", at(12)), told("retr", at(12)), told("retr", at(20))]
    rows = table(*FRONT, told("retr", at(10, 1)), *again)
    assert rows.select("start_ts", "retr_count", "outcome").sort("start_ts").rows() == [
        (at(10), 1, "success"), (at(12), 1, "success"), (at(20), 1, "success")
    ]  # fmt: skip


def test_logins_and_summaries_are_one_row() -> None:
    rows = [
        login(ts=at(9), session_id="s1", tls_version="TLSv1.3", auth_method="PLAIN"),
        session(ts=at(9, 10), session_id="s1", top_count=0, maildrop_n=12),
        login(ts=at(23, days=-1), session_id="s0", principal_id="b@a.example"),
        session(ts=at(1), session_id="s0", principal_id="b@a.example"),
        login(ts=at(11), session_id="s9", principal_id="c@a.example"),  # its summary is lost
        login(ts=at(12), session_id="s2", outcome="failure", op_count=3),
        login(ts=at(12), outcome="failure"),
        login(ts=at(13), outcome="failure"),
    ]
    found = table(*rows)
    assert_frame_equal(found, table(*rows[::-1]))
    first = found.row(by_predicate=pl.col("session_id") == "s1", named=True)
    expected = {"start_ts": at(9), "end_ts": at(9, 10), "src_ip": "192.0.2.7", "tls_version": "TLSv1.3",
                "auth_method": "PLAIN", "retr_count": 10, "maildrop_n": 12, "command_signature": "dele,retr"}  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    told_of = found.select("principal_id", "start_ts", "end_ts", "outcome", "n_auth_failures").sort(
        "end_ts", "n_auth_failures"
    )
    assert told_of.rows()[0] == ("b@a.example", at(23, days=-1), at(1), "success", 0)
    assert [row[3:] for row in told_of.rows()[2:]] == [("success", 0), ("failure", 1), ("failure", 3), ("failure", 1)]
    assert found.height == 6


def test_smtp_sessions_of_one_process() -> None:
    def step(event: str, when: datetime, **row: Any) -> dict[str, Any]:
        return {"event": event, "ts": when, "session_id": "77", "src_ip": "198.51.100.7", "queue_id": None} | row

    said = "ehlo=2 starttls=1 auth=1/3 mail=1 rcpt=1 data=1 quit=1 commands=8/10"
    lines = [
        step("connect", at(9)), step("tls", at(9), tls_version="TLSv1.3"), step("disconnect", at(9, 1), status_text=said),
        step("connect", at(9, 1), src_ip="203.0.113.9"), step("disconnect", at(9, 2), status_text="ehlo=1 auth=0/1 commands=1/2", src_ip="203.0.113.9"),
        step("connect", at(9, 3), src_ip=None, session_id="5", op_raw="postscreen"),
    ]  # fmt: skip
    smtp = {"protocol": "smtp", "source": "postfix", "action": "auth", "host": "mx", "principal_id": "svc@a.example"}
    signed = smtp | {"ts": at(9), "session_id": "4F9D1", "src_ip": "198.51.100.7"}
    found = table(signed, mail_rows=lines).sort("start_ts")
    columns = ("start_ts", "end_ts", "principal_id", "src_ip", "tls_version", "commands", "n_auth_failures", "outcome")
    assert found.select(columns).rows() == [
        (at(9), at(9, 1), "svc@a.example", "198.51.100.7", "TLSv1.3", 10, 2, "success"),
        (at(9, 1), at(9, 2), None, "203.0.113.9", None, 2, 1, "failure"),
    ]  # fmt: skip
    assert found["command_signature"].to_list() == ["auth,data,ehlo,mail,quit,rcpt,starttls", "auth,ehlo"]


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_any_rows_gives_the_same_sessions(seed: int) -> None:
    chance = random.Random(seed)
    operations = ["opensession", "closesession", "pass", "retr", "be:pass", "be:retr", "be:opensession"]
    rows: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for _ in range(60):
        when = at(chance.randrange(24), chance.choice([0, 0, 1]), days=chance.choice([-1, 0, 1]))
        who = {"principal_id": chance.choice(["a@a.example", "b@a.example", None]), "event_uid": uid(chance.random())}
        rows.append(told(chance.choice(operations), when, session_id=chance.choice(["1", "2"]), **who))
        rows.append(chance.choice([login, session])(ts=when, session_id=chance.choice(["s1", None]), **who))
        rows.append({"protocol": "ldap", "source": "openldap", "host": "ds", "session_id": "7", "ts": when, **who})
        event = chance.choice(["connect", "disconnect", "tls"])
        lines.append(
            {"event": event, "ts": when, "session_id": "77", "src_ip": chance.choice(["192.0.2.1", "192.0.2.2"])}
        )
    once = table(*rows, mail_rows=lines)
    assert set(once["protocol"]) == {"pop3", "ldap", "smtp"}
    for _ in range(2):
        chance.shuffle(rows)
        chance.shuffle(lines)
        assert_frame_equal(table(*rows, mail_rows=lines), once)
