"""Lines of a directory server's connections out of order: no event gets the address or identity of another."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import ldap_runs
from transforms.formats import ds389, openldap
from transforms.model import RECORD_SCHEMA, Context

CARRIED = "ldap_sessions"
START = "slapd starting"
QUICK = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Line:
    """A line of slapd's own log and what is true of it."""

    time: int
    text: str
    thread: tuple[int, int, int] = (0, 0, 0)  # run, connection, operation: the lines of one stay in their order
    address: str | None = None
    who: str | None = None
    event: bool = False

    @property
    def in_turn(self) -> bool:
        return "RESULT" not in self.text and "ACCEPT" not in self.text

    def __str__(self) -> str:
        return f"{0x681A12ED + self.time:08x} {self.text}"


def context() -> Context:
    return Context("e" * 64)


def rows_of(lines: list[Any], ctx: Context | None = None, form: Any = openldap) -> list[dict[str, Any]]:
    records = [(at, at * 10, len(str(line)), str(line)) for at, line in enumerate(lines)]
    found = form.parse(pl.LazyFrame(records, schema=RECORD_SCHEMA, orient="row"), ctx or context()).collect()
    assert found["record_no"].to_list() == list(range(len(lines)))
    rows: list[dict[str, Any]] = found.to_dicts()
    return rows


def connection(run: int, number: int, time: int, binds: list[bool], searches: int, *, ends: bool) -> list[Line]:
    """A connection whose binds succeed or not, with searches after each."""
    port = run * 10_000 + number
    address, who, op, lines = f"198.51.100.{number % 250}:{port}", None, 0, []

    def say(what: str, event: bool = False, known: str | None = None) -> None:
        about = f"op={op}" if op >= 0 else "fd=9"
        lines.append(Line(time, f"conn={number} {about} {what}", (run, number, op), address, known, event))

    op = -1
    say(f"ACCEPT from IP={address} (IP=0.0.0.0:389)", event=True)
    op = 0
    for good in binds:
        name = f"uid=u{port}-{op},dc=a"
        say(f'BIND dn="{name}" method=128')
        if good:
            say(f'BIND dn="{name}" mech=SIMPLE ssf=0')
        say(f"RESULT tag=97 err={0 if good else 49} text=", event=True, known=name)
        who, op = (name if good else None), op + 1
        for _ in range(searches):
            say(f'SRCH base="ou=c{port}" scope=2 deref=0 filter="(a=b)"')
            say(f"SEARCH RESULT tag=101 err=0 nentries={op} text=", event=True, known=who)
            op += 1
    if ends:
        say("UNBIND")
        op = -2
        say("closed")
    return lines


@st.composite
def logs(draw: st.DrawFn, *, in_turn: bool = False) -> list[list[Line]]:
    """Runs of a server, each with its lines as its threads may write them.

    Args:
        in_turn: operations of a connection begin in their order, and it ends after them.
    """
    runs, time = [], 0
    for run in range(draw(st.integers(1, 3))):
        lines: list[Line] = []
        for number in range(1000, 1000 + draw(st.integers(1, 4))):
            binds = draw(st.lists(st.booleans(), max_size=2)) or [True]
            lines += connection(run, number, time, binds, draw(st.integers(0, 2)), ends=draw(st.booleans()))
        window = draw(st.integers(0, 6))
        places = [at + draw(st.integers(0, window)) for at in range(len(lines))]
        last: dict[Any, int] = {}
        for at, line in enumerate(lines):  # a thread does not overtake itself
            behind = [line.thread, line.thread[:2]] if in_turn and line.in_turn else [line.thread]
            places[at] = max(places[at], *(last.get(name, 0) for name in behind))
            last |= dict.fromkeys(behind, places[at])
        runs.append([lines[at] for at in sorted(range(len(lines)), key=lambda at: (places[at], at))])
        time += 60 * draw(st.integers(0, 1))
    return runs


def never_anothers(lines: list[Line], rows: list[dict[str, Any]]) -> None:
    for line, row in zip(lines, rows, strict=True):
        if row["disposition"] == "access_events":
            assert row["src_ip_raw"] in (line.address, None), line
            run, number, op = line.thread
            if op == -2:  # the end is the event of what was asked for, by one of the connection's own identities
                own_name = f"uid=u{run * 10_000 + number}-"
                assert (row["principal_id"] or own_name).startswith(own_name), line
            elif row["action"] != "connect":
                assert row["principal_id"] in (line.who, None), line
                assert row["principal_type"] != "anonymous" or line.who is None, line


def in_blocks(lines: list[Line], cuts: list[int]) -> list[dict[str, Any]]:
    ctx, places = context(), sorted({0, *(cut for cut in cuts if cut < len(lines)), len(lines)})
    return [row for at, to in pairwise(places) for row in rows_of(lines[at:to], ctx)]


CUTS = st.lists(st.integers(1, 60), min_size=1, max_size=3)


@QUICK
@given(logs(), CUTS)
def test_events_have_their_own_address_and_identity_or_none(runs: list[list[Line]], cuts: list[int]) -> None:
    lines = [line for run in runs for line in [Line(run[0].time, START), *run]]
    rows = rows_of(lines)
    never_anothers(lines, rows)
    # In one block all are found: the runs are told apart by the server's start.
    for line, row in zip(lines, rows, strict=True):
        if line.event:
            assert (row["disposition"], row["src_ip_raw"]) == ("access_events", line.address), line
            assert row["action"] == "connect" or row["principal_id"] == line.who, line
    never_anothers(lines, in_blocks(lines, cuts))


@QUICK
@given(logs(in_turn=True), CUTS)
def test_runs_are_told_apart_without_the_line_of_the_start(runs: list[list[Line]], cuts: list[int]) -> None:
    lines = [line for run in runs for line in run]
    never_anothers(lines, rows_of(lines))
    never_anothers(lines, in_blocks(lines, cuts))


def own(*texts: str, time: int = 0) -> list[str]:
    return [str(Line(time, text)) for text in texts]


ACCEPT = "conn=1000 fd=9 ACCEPT from IP=192.0.2.{}:1 (IP=0.0.0.0:389)"
BIND = 'conn=1000 op=0 BIND dn="cn=a" method=128'
BOUND = "conn=1000 op=0 RESULT tag=97 err=0 text="
SEARCH = 'conn=1000 op=1 SRCH base="dc=x" scope=2 deref=0 filter="(a=b)"'
FOUND = "conn=1000 op=1 SEARCH RESULT tag=101 err=0 nentries=3 text="
CLOSED = "conn=1000 fd=9 closed"
OWN = ("192.0.2.1:1", "cn=a")


def told(lines: list[str], *, cut: int = 0, action: str = "search") -> list[tuple[Any, ...]]:
    """Address and identity of the events of this action."""
    ctx = context()
    rows = rows_of(lines[:cut], ctx) + rows_of(lines[cut:], ctx)
    found = [row for row in rows if row["disposition"] == "access_events" and row["action"] == action]
    return [(row["src_ip_raw"], row["principal_id"]) for row in found]


@pytest.mark.parametrize(
    "texts",
    [
        (BIND, BOUND, ACCEPT, SEARCH, FOUND),
        (BIND, BOUND, SEARCH, FOUND, ACCEPT),
        (ACCEPT, BIND, SEARCH, BOUND, FOUND),
        (ACCEPT, BIND, SEARCH, FOUND, BOUND),
        (ACCEPT, BIND, BOUND, SEARCH, CLOSED, FOUND),
        (BIND, BOUND, SEARCH, CLOSED, FOUND, ACCEPT),
    ],
)
def test_lines_that_threads_wrote_late(texts: tuple[str, ...]) -> None:
    lines = own(*(text.format(1) for text in texts))
    assert told(lines) == [OWN]
    assert told(lines, action="bind") == [OWN]
    for cut in range(1, len(lines)):  # what a later block tells is not known to the events before
        assert set(told(lines, cut=cut)) <= {OWN, ("192.0.2.1:1", None), (None, "cn=a"), (None, None)}


def test_who_is_bound_is_not_known_where_the_first_operation_is_missing() -> None:
    rows = rows_of(own(ACCEPT.format(1), SEARCH, FOUND))
    assert [(row["principal_id"], row["principal_type"]) for row in rows if row["action"] == "search"] == [(None, None)]


def test_address_that_comes_with_the_next_block() -> None:
    lines = own(BIND, BOUND, SEARCH, ACCEPT.format(1), FOUND)
    assert told(lines, cut=3) == [OWN]
    assert told(lines, cut=3, action="bind") == [(None, "cn=a")]


def test_identity_that_comes_with_the_next_block() -> None:
    lines = own(ACCEPT.format(1), BIND, SEARCH, BOUND, FOUND)
    assert told(lines, cut=3) == [OWN]
    late = own(ACCEPT.format(1), BIND, SEARCH, FOUND, BOUND)
    rows = rows_of(late[:4])
    assert (rows[3]["principal_id"], rows[3]["principal_type"]) == (None, None)  # unknown, not anonymous


@pytest.mark.parametrize("start", [[START], ["@(#) $OpenLDAP: slapd 2.6.9 $"]])
@pytest.mark.parametrize("cut", [0, 4, 5, 7])
def test_number_after_the_servers_start(start: list[str], cut: int) -> None:
    found, second = FOUND.replace("op=1", "op=0"), SEARCH.replace("op=1", "op=0")
    lines = own(ACCEPT.format(1), BIND, BOUND, SEARCH, *start, second, found, ACCEPT.format(2))
    assert told(lines, cut=cut) == [("192.0.2.2:1" if cut < 6 else None, None)]


def test_number_comes_again_without_a_line_of_the_start() -> None:
    first = own(ACCEPT.format(1), BIND, BOUND, SEARCH, FOUND)
    assert told(first + own(BIND, BOUND, SEARCH, FOUND, time=60)) == [OWN, (None, "cn=a")]
    assert told(first + own(SEARCH, FOUND, time=60)) == [OWN, (None, None)]  # its beginning is missing
    closed = first + own(CLOSED)
    assert told(closed + own(FOUND.replace("op=1", "op=7"), time=60)) == [OWN, (None, None)]
    # Not of the connection that begins a minute later.
    assert told(own(BIND, BOUND, SEARCH, FOUND) + own(ACCEPT.format(2), time=60)) == [(None, "cn=a")]
    assert told(own(SEARCH, FOUND, ACCEPT.format(2))) == [
        (None, None)
    ]  # begins with operation 0, or was not begun here


def test_tls_holds_for_what_came_after_it_was_asked_for() -> None:
    lines = own(
        ACCEPT.format(1), "conn=1000 op=0 EXT oid=1.3.6.1.4.1.1466.20037", "conn=1000 op=0 RESULT oid= err=0 text=",
        BIND.replace("op=0", "op=1"), "conn=1000 fd=9 TLS established tls_ssf=256 tls_proto=TLSv1.3 tls_cipher=X",
        BOUND.replace("op=0", "op=1"),
    )  # fmt: skip
    rows = rows_of(lines)
    assert [row["tls_version"] for row in rows if row["disposition"] == "access_events"] == [None, None, "TLSv1.3"]


def test_connections_of_389_out_of_order() -> None:
    texts = [
        'op=0 BIND dn="cn=a" method=128 version=3', "fd=64 slot=64 connection from 192.0.2.1 to 192.0.2.9",
        'op=1 SRCH base="dc=x" scope=2 filter="(a=b)" attrs=ALL', 'op=0 RESULT err=0 tag=97 nentries=0 etime=0 dn="cn=a"',
        "op=2 UNBIND", "op=2 fd=64 closed - U1", "op=1 RESULT err=0 tag=101 nentries=3 etime=0",
    ]  # fmt: skip
    lines = [f"[21/Jul/2022:15:38:04 -0400] conn=7 {text}" for text in texts]
    events = [row for row in rows_of(lines, form=ds389) if row["disposition"] == "access_events"]
    assert [(row["action"], row["src_ip_raw"], row["principal_id"]) for row in events] == [
        ("connect", "192.0.2.1", None), ("bind", "192.0.2.1", "cn=a"), ("search", "192.0.2.1", "cn=a"),
    ]  # fmt: skip


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ldap_runs, "_MOST_CONNECTIONS", 500)
    monkeypatch.setattr(ldap_runs, "_MOST_STARTED", 5)
    ctx = context()
    for block in range(4):  # no connection ends, none has its first line
        rows_of([Line(block, f"conn={block * 3000 + n} op=3 {FOUND[15:]}") for n in range(3000)], ctx)
        assert len(ctx.carry[CARRIED]) == 500
    kept = rows_of([Line(4, f"conn={n} fd=9 ACCEPT from IP=192.0.2.1:{n} (IP=0.0.0.0:389)") for n in range(3000)], ctx)
    assert {row["disposition"] for row in kept} == {"access_events"}
    rows_of([Line(4, f"conn={n} fd=9 closed") for n in range(3000)], ctx)
    assert len(ctx.carry[CARRIED]) == 500
    rows_of([Line(60, ACCEPT.format(1))], ctx)  # what ended is forgotten after some seconds
    assert len(ctx.carry[CARRIED]) == 1
    assert [row["disposition"] for row in rows_of([Line(60, START)] * 20, ctx)] == ["ignored"] * 20
    assert len(ctx.carry[CARRIED]) == 0
