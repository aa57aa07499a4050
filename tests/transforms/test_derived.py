"""Derived tables: the same events give the same rows, counted once, whatever files and order they come in."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from hashlib import sha1
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from archive.store import Archive
from data_contracts import contract
from flows.pipeline import deriving
from transforms.derived import context_days, derived, edge_days, first_seen, journal_hours

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
    rows = BY_NAME[name].build([day], tables)
    streamed = rows.collect(engine="streaming")
    assert_frame_equal(rows.collect(engine="in-memory"), streamed)
    return streamed


# One event of every kind that the tables look at, in a small world so that keys collide and joins find partners.
EVENTS = st.fixed_dictionaries(
    {
        "source": st.sampled_from(
            ["dovecot", "exchange_ews", "exchange_httpproxy", "exchange_pop_imap", "iis", "m365_ual"]
        ),
        "op_raw": st.sampled_from(["be:retr", "be:opensession", "opensession", "pass", "closesession"]),
        "action": st.sampled_from(["auth", "session", "get_item", "find_item", "probe"]),
        "protocol": st.sampled_from(["pop3", "imap", "ews", "graph"]),
        "ts": st.integers(-6 * 3600, 24 * 3600 - 1).map(
            lambda s: datetime(2021, 1, 12, tzinfo=UTC) + timedelta(seconds=s)
        ),
        "host": st.sampled_from(["pop", "cas", None]),
        "session_id": st.sampled_from(["s1", "s2", None]),
        "tenant_id": st.sampled_from(["t1", "t2", None]),
        "principal_id": st.sampled_from(["ann@a.example", "svc@a.example", "journal", None]),
        "principal_type": st.sampled_from(["user", "service_account", None]),
        "credential_id": st.sampled_from(["ab12", "pw:ann@a.example", None]),
        "app_id": st.sampled_from(["app", None]),
        "mailbox_id": st.sampled_from(["ann@a.example", "bob@a.example", "journal", None]),
        "effective_user": st.sampled_from(["bob@a.example", None]),
        "logon_type": st.sampled_from(["owner", "delegate", "admin", None]),
        "access_kind": st.sampled_from(["bind", "sync", None]),
        "folders": st.sampled_from([["Inbox", "Sent"], [], None]),
        "throttled": st.sampled_from([True, False, None]),
        "outcome": st.sampled_from(["success", "failure", "unknown"]),
        "src_net": st.sampled_from(["192.0.2.0/24", "198.51.100.0/24", None]),
        "client_fp": st.sampled_from(["00000000000000aa", "00000000000000bb", None]),
        "op_count": st.sampled_from([None, 0, 7, 2**62]),
        "item_count": st.sampled_from([None, 3]),
        "bytes_out": st.sampled_from([None, 100, 2**62]),
        "retr_count": st.sampled_from([None, 5]),
    }
)
MAIL = st.fixed_dictionaries(
    {
        "source": st.sampled_from(["postfix", "dovecot", "exchange_msgtrk"]),
        "event": st.sampled_from(["deliver", "queue"]),
        "ts": EVENTS.map(lambda event: event["ts"]),
        "host": st.sampled_from(["pop", "mx", None]),
        "queue_id": st.sampled_from(["Q1", "Q2", None]),
        "size_bytes": st.sampled_from([None, 1000]),
        "rcpt": st.sampled_from(["ann@a.example", "Journal@A.example;bob@a.example", "journal@a.example", None]),
    }
)
REFERENCE = {
    "credentials": frame("credentials", [{"credential_id": "AB12"}]),
    "mailboxes": frame("mailboxes", [{"mailbox_id": "journal@a.example", "tenant_id": "t1", "kind": "journal"}]),
}
STATES = {
    "context_days": ("n_rows", "n_ops", "items", "bytes_out"),
    "edge_days": ("n_ops", "items", "bytes_out", "sync_folders", "n_throttled"),
}


def as_addressed(event: dict[str, Any]) -> dict[str, Any]:
    """An event whose address follows from its network, as enrichment leaves it."""
    return event | {"src_ip": event["src_net"] and event["src_net"].removesuffix("0/24") + "7"}


@settings(max_examples=10, deadline=None)
@given(st.lists(EVENTS, max_size=25), st.lists(MAIL, max_size=12), st.randoms(use_true_random=False))
def test_neither_order_nor_files_matter(events: list[dict[str, Any]], mails: list[dict[str, Any]], random: Any) -> None:
    whole = {"access_events": access(*map(as_addressed, events)), "mail_events": mail(*mails)}
    split = {}
    for name, rows in whole.items():
        order = list(range(rows.collect().height))
        random.shuffle(order)
        cut = random.randint(0, len(order))
        shuffled = rows.collect()[order]
        split[name] = pl.concat([shuffled[:cut].lazy(), shuffled[cut:].lazy()])
    for table in ("context_days", "edge_days", "journal_hours"):
        given_once = BY_NAME[table].build([DAY], whole | REFERENCE).collect()
        assert_frame_equal(given_once, BY_NAME[table].build([DAY], split | REFERENCE).collect())
        accepted, refused = contract(table).split(given_once)
        assert refused.is_empty(), refused
        assert accepted["date"].unique().to_list() in ([], [DAY])
        key = BY_NAME[table].build.__globals__["KEY"]
        assert given_once.select(key).is_unique().all()


@settings(max_examples=4, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.lists(MAIL, max_size=20), st.randoms(use_true_random=False))
def test_days_at_once_are_the_days_one_by_one(events: list[Any], mails: list[Any], random: Any) -> None:
    moved = [[e | {"ts": e["ts"] + timedelta(days=random.randint(0, 3))} for e in rows] for rows in (events, mails)]
    whole = {"access_events": access(*map(as_addressed, moved[0])), "mail_events": mail(*moved[1])}
    days = [DAY + timedelta(days=n) for n in range(-1, 4)]
    whole["sessions"] = BY_NAME["sessions"].build([DAY + timedelta(days=n) for n in range(-3, 6)], whole)
    for table in (t for t in derived() if t.period == "day"):
        at_once = table.build(days, whole | REFERENCE).collect()
        read = {
            day: {n: rows.filter(pl.col("date").is_in(table.read([day]))) for n, rows in whole.items()} for day in days
        }
        singly = pl.concat([table.build([day], read[day] | REFERENCE).collect() for day in days])
        assert_frame_equal(at_once, singly, check_row_order=False)


@settings(max_examples=10, deadline=None)
@given(st.lists(EVENTS, max_size=30), st.randoms(use_true_random=False))
def test_parts_merge_to_the_whole(events: list[dict[str, Any]], random: Any) -> None:
    # Without the sources that are joined, a row's place is its own affair.
    rows = access(*(as_addressed(event) | {"source": "m365_ual", "protocol": "graph"} for event in events)).collect()
    part = pl.Series([random.randint(0, 2) for _ in range(rows.height)], dtype=pl.Int64)
    for table, sums in STATES.items():
        whole = build(table, {"access_events": rows.lazy()} | REFERENCE)
        parts = [build(table, {"access_events": rows.filter(part == at).lazy()} | REFERENCE) for at in (0, 1, 2)]
        assert_frame_equal(merged(pl.concat(parts), table, sums), whole)


def merged(parts: pl.DataFrame, table: str, sums: Iterable[str]) -> pl.DataFrame:
    key = list(BY_NAME[table].build.__globals__["KEY"])
    bits = [pl.col("hour_bits").bitwise_or()] if "hour_bits" in parts.columns else []
    ours = contract(table)
    order = [*ours.sorted_by, *(column for column in key if column not in ours.sorted_by)]
    states = parts.group_by(key).agg(pl.col(*sums).sum(), pl.col("first_ts").min(), pl.col("last_ts").max(), *bits)
    return ours.conform(states.lazy()).collect().sort(order)


@settings(max_examples=10, deadline=None)
@given(st.lists(EVENTS, min_size=1, max_size=40))
def test_context_days_say_what_duckdb_says(events: list[dict[str, Any]]) -> None:
    rows = access(*(as_addressed(event) | {"source": "m365_ual", "protocol": "graph"} for event in events)).collect()
    ours = build("context_days", {"access_events": rows.lazy()} | REFERENCE)
    con = duckdb.connect()
    con.execute("set TimeZone = 'UTC'")
    con.register("access_events", rows.to_arrow())
    theirs = con.sql("""
        with marked as (
            select *, coalesce(principal_type in ('service_principal', 'service_account', 'computer'), false)
                or coalesce(logon_type in ('admin', 'delegated_admin'), false)
                or (app_id is not null and principal_id is null)
                or coalesce(credential_id = 'ab12', false) as detail
            from access_events where date = date '2021-01-12')
        select date, tenant_id, protocol, principal_id, principal_type, credential_id, app_id, src_net, src_asn,
            src_class, case when detail then client_fp end as client_fp,
            case when detail then action else 'any' end as action, outcome,
            count(*)::bigint as n_rows,
            sum(least(coalesce(op_count, 1), 274877906944))::bigint as n_ops,
            sum(coalesce(item_count, 0))::bigint as items,
            sum(least(coalesce(bytes_out, 0), 274877906944))::bigint as bytes_out,
            min(ts) as first_ts, max(ts) as last_ts,
            bit_or((1::bigint << hour(ts)::int)) as hour_bits
        from marked group by all order by all nulls first
    """).pl()
    columns = theirs.columns
    casts = [pl.col(name).cast(dtype) for name, dtype in ours.select(columns).schema.items()]
    assert_frame_equal(ours.select(columns), theirs.select(casts), check_row_order=False)


def test_every_table_is_found_and_comes_after_what_it_reads() -> None:
    names = [table.table for table in derived()]
    assert sorted(names) == [
        "client_days", "clock_offsets", "context_days", "coverage_hours", "edge_days", "failure_days", "first_seen",
        "flow_days", "folder_days", "gaps", "journal_hours", "ldap_days", "messages", "service_uses", "sessions",
        "throttled_days",
    ]  # fmt: skip
    assert names.index("flow_days") > names.index("messages")
    assert names.index("first_seen") > max(names.index("context_days"), names.index("edge_days"))
    assert {table.table: table.period for table in derived()}["first_seen"] == "month"
    assert all(contract(table.table).kind == "derived" for table in derived())
    assert {contract(m.TABLE).partitioned_by for m in (context_days, edge_days, first_seen, journal_hours)} == {"date"}


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_what_is_read_is_what_feels_a_change(name: str) -> None:
    table = BY_NAME[name]
    if table.period == "month":
        assert table.felt(DAY) == [date(2021, 1, 1)]
        assert DAY in table.read([date(2021, 1, 1)])
        return
    days = [DAY + timedelta(days=n) for n in range(-20, 21)]
    assert {d for d in days if d in table.felt(DAY)} == {d for d in days if DAY in table.read([d])}
    assert len(table.felt(DAY)) == sum(table.reach) + 1


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_nothing_in_gives_an_empty_typed_frame(name: str) -> None:
    empty = {source: frame(source, []) for source in BY_NAME[name].sources}
    for tables in ({}, empty):
        rows = build(name, tables)
        assert rows.is_empty()
        assert rows.schema == contract(name).polars_schema


def test_machines_in_detail_users_coarse() -> None:
    who = {"principal_type": "user", "client_fp": "00000000000000aa", "src_net": "192.0.2.0/24"}
    rows = access(
        who | {"principal_id": "ann@a.example", "action": "get_item"},
        who | {"principal_id": "ann@a.example", "action": "find_item", "client_fp": "00000000000000bb"},
        who | {"principal_id": "sp", "principal_type": "service_principal"},
        who | {"principal_id": "named@a.example", "credential_id": "pw:named@a.example"},
        who | {"principal_id": "bound@a.example"},
        who | {"principal_id": "svc-mail@a.example"},
        who | {"principal_id": "admin@a.example", "logon_type": "admin"},
        who | {"principal_id": None, "app_id": "app", "principal_type": None},
    )
    expected_rule = {"valid_to": NOON, "owner": "soc", "reason": "r", "operation_classes": "get_item"}
    reference = {
        "credentials": frame("credentials", [{"credential_id": "PW:Named@a.example"}]),
        "bindings": frame("bindings", [{"principal_id": "Bound@a.example", "tenant_id": "t", "service": "ews"}]),
        "contexts": frame(
            "contexts",
            [expected_rule | {"principal_pattern": "svc-*@a.example"}, expected_rule | {"principal_pattern": "*"}],
        ),
    }
    states = build("context_days", {"access_events": rows} | reference)
    assert dict(states.select("principal_id", "action").iter_rows()) == {
        "ann@a.example": "any", "sp": "get_item", "named@a.example": "get_item", "bound@a.example": "get_item",
        "svc-mail@a.example": "get_item", "admin@a.example": "get_item", None: "get_item",
    }  # fmt: skip
    ann = states.row(by_predicate=pl.col("principal_id") == "ann@a.example", named=True)
    assert (ann["n_rows"], ann["client_fp"]) == (2, None)


def test_hour_bits_name_the_hours() -> None:
    hours = (0, 0, 5, 23)
    rows = access(*({"principal_id": "a", "ts": NOON.replace(hour=hour, minute=59)} for hour in hours))
    assert build("context_days", {"access_events": rows})["hour_bits"].to_list() == [1 + 2**5 + 2**23]


def test_own_mailboxes_stay_out() -> None:
    own = {"principal_id": "ann@a.example", "mailbox_id": "ann@a.example", "principal_type": "user"}
    sid = "s-1-5-21-1-2-3-1104"
    rows = access(
        own,
        own | {"logon_type": "owner", "app_id": "outlook"},
        own | {"principal_id": "ann"},
        own | {"principal_id": r"corp\ann"},
        own | {"principal_id": sid, "logon_type": "owner"},
        own | {"mailbox_id": "11111111-2222-3333-4444-555555555555"},  # her own by the reference table
        own | {"mailbox_id": "m01@a.example", "outcome": "failure"},
        own | {"mailbox_id": "m02@a.example", "action": "probe"},
        own | {"mailbox_id": "m03@a.example", "principal_id": None},
        own | {"mailbox_id": "m11@a.example"},
        own | {"mailbox_id": "m12@a.example", "logon_type": "owner"},
        own | {"logon_type": "delegate", "principal_id": "m13@a.example", "mailbox_id": "m13@a.example"},
        own | {"effective_user": "m14@a.example", "mailbox_id": "m14@a.example", "logon_type": "owner"},
        own | {"principal_id": "m15@a.example", "mailbox_id": "m15@a.example", "principal_type": "service_account"},
        own | {"principal_id": None, "app_id": "app", "mailbox_id": "m16@a.example", "logon_type": "owner"},
        own | {"principal_id": sid, "mailbox_id": "m17@a.example"},
        own | {"principal_id": r"corp\host$", "principal_type": "computer", "mailbox_id": "m18@a.example"},
        own | {"principal_id": "ann@b.example", "mailbox_id": "m19@a.example"},
    )
    mailbox = {"mailbox_id": "Ann@a.example", "tenant_id": "t", "mailbox_guid": "11111111-2222-3333-4444-555555555555"}
    edges = build("edge_days", {"access_events": rows, "mailboxes": frame("mailboxes", [mailbox])})
    assert sorted(edges["mailbox_id"]) == [f"m{number}@a.example" for number in range(11, 20)]
    assert "app" in edges["actor_id"]


def test_edges_count_folders_and_throttling() -> None:
    row = {"principal_id": "x@a.example", "mailbox_id": "ceo@a.example", "access_kind": "sync", "op_count": 4}
    rows = access(
        row | {"folders": ["Inbox", "Sent"]}, row, row | {"access_kind": "bind", "folders": ["A"], "throttled": True}
    )
    edges = build("edge_days", {"access_events": rows})
    counted = edges.select("access_kind", "n_ops", "sync_folders", "n_throttled").sort("access_kind").rows()
    assert counted == [("bind", 4, 0, 1), ("sync", 8, 3, 0)]


def test_first_seen_is_the_month_of_successes() -> None:
    context = {"protocol": "ews", "outcome": "success", "action": "get_item", "n_ops": 2, "tenant_id": "t1",
               "principal_id": "sp", "credential_id": "ab12", "src_net": "192.0.2.0/24", "src_asn": 64500,
               "first_ts": NOON, "last_ts": NOON}  # fmt: skip
    later = {"date": date(2021, 1, 31), "first_ts": NOON + timedelta(days=19), "last_ts": NOON + timedelta(days=19)}
    contexts = frame(
        "context_days",
        [
            context | {"date": DAY, "client_fp": "00000000000000aa"},
            context | {"date": DAY, "action": "find_item"},
            context | later,
            context | {"date": date(2021, 2, 1)},
            context | {"date": DAY, "outcome": "failure", "src_net": "203.0.113.0/24"},
            context | {"date": DAY, "action": "any", "principal_id": "ann", "credential_id": "pw:ann"},
            context | {"date": DAY, "action": "probe", "principal_id": "health"},
        ],
    )
    edge = {"date": DAY, "protocol": "ews", "actor_id": "sp", "mailbox_id": "ceo", "n_ops": 1}
    edges = frame("edge_days", [edge | {"credential_id": "ab12", "first_ts": NOON, "last_ts": NOON}])
    rows = build("first_seen", {"context_days": contexts, "edge_days": edges}, date(2021, 1, 20))
    assert rows["date"].unique().to_list() == [date(2021, 1, 1)]
    seen = {(row[0], row[1], row[2]): row[3:] for row in rows.drop("date", "tenant_id").iter_rows()}
    assert seen["credential", "ab12", "src_net"] == ("192.0.2.0/24", NOON, later["last_ts"], 2, 6)
    assert seen["credential", "ab12", "client_fp"][4] == 2
    assert seen["principal", "sp", "src_asn"][0] == "64500"
    assert seen["credential", "ab12", "mailbox"][0] == seen["principal", "sp", "mailbox"][0] == "ceo"
    assert seen["network", "192.0.2.0/24", "any"][3:] == (2, 8)
    assert {attribute for entity, name, attribute in seen if name == "ann"} == {"src_net", "protocol"}
    assert {entity for entity, name, _ in seen if entity == "tenant"} == {"tenant"}
    names = {name for _, name, _ in seen}
    assert not names & {"pw:ann", "health", "203.0.113.0/24"}
    assert contract("first_seen").split(rows)[1].is_empty()


def lines(host: str, day: int) -> dict[str, pl.LazyFrame]:
    """A day of a server's log: a message through a content filter, and the end of one that waited since the 12th."""
    begin = datetime(2021, 1, day, 8, tzinfo=UTC)
    first, second, mid = f"{day}AAAAA", f"{day}FFFFF", f"<{host}-{day}@a.example>"
    outside, inside = {"src_ip": "198.51.100.7"}, {"src_ip": "127.0.0.1"}
    passed = {"rcpt": "ann@b.example", "dst_ip": "127.0.0.1", "status_text": f"250 Ok: queued as {second}"}
    final = {"event": "defer", "outcome": "failure"} if day == 12 else {"event": "send"}
    told: list[dict[str, Any]] = [
        {"event": "connect", "session_id": "7", **outside},
        {"event": "cleanup", "queue_id": first, "message_id": mid},
        {"event": "send", "queue_id": first, **passed},
        {"event": "receive", "queue_id": second, **inside},
        {"event": "cleanup", "queue_id": second, "message_id": mid},
        {"queue_id": second, "rcpt": "ann@b.example", **final},
        {"event": "disconnect", "session_id": "7", "status_text": "auth=1 commands=9", **outside},
    ]
    if day == 15:
        told.append({"event": "send", "queue_id": "12FFFFF", "rcpt": "ann@b.example"})
    signed = {"protocol": "smtp", "source": "postfix", "action": "auth", "host": host, "principal_id": "svc", **outside}
    return {
        "mail_events": mail(*(row | {"host": host, "ts": begin + timedelta(seconds=n)} for n, row in enumerate(told))),
        "access_events": access(signed | {"session_id": first, "ts": begin + timedelta(seconds=1)}),
    }


def test_evidence_in_any_order_gives_the_same_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ("messages", "sessions", "clock_offsets")
    monkeypatch.setattr(deriving, "derived", lambda: tuple(BY_NAME[name] for name in ours))
    files = [lines(host, day) for host in ("mx1", "mx2") for day in (12, 13, 15)]
    found: list[dict[str, pl.DataFrame]] = []
    for steps in ([files], [files[3:], files[:3]], [[file] for file in files[::-1]]):
        archive = Archive.create(str(tmp_path / f"archive{len(found)}"))
        for step in steps:
            for file in step:
                for name, rows in file.items():
                    archive.append(name, rows.collect())
            deriving.refresh(archive)
        assert deriving.refresh(archive) == {}
        found.append({name: archive.scan(name).collect() for name in ours})
    for name in ours:
        assert_frame_equal(found[1][name], found[0][name])
        assert_frame_equal(found[2][name], found[0][name])
    counted = found[0]["messages"].filter("counts")
    columns = ("date", "host", "status", "attempts", "src_ip", "sasl_username")
    assert counted.select(columns).sort("date", "host").rows() == [
        (date(2021, 1, day), host, "sent", 1 + (day == 12), "198.51.100.7", "svc")
        for day in (12, 13, 15) for host in ("mx1", "mx2")
    ]  # fmt: skip
    assert found[0]["sessions"].select("principal_id", "commands").unique().rows() == [("svc", 9)]
