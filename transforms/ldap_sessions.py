"""Which connection, identity and request each line of a directory server's log belongs to.

The lines of one connection are spread over the log, mixed with those of a thousand others, and each changes what the
next means; so they are walked through one by one here, over numbers and short texts only. All else is done on columns
in `ldap_rows`.

The server's threads write for themselves, so a line may stand before the connection's first or after its last, and the
result of a bind after the next request. A block is therefore walked twice: first `ldap_runs` puts each line to its
connection, then the lines of one connection are taken in the order that their operation numbers tell. Those count up in
a connection, and a server works on nothing else while it binds (RFC 4511 4.2.1): so an operation's identity is that of
the last bind with a lower number.

Rows leave with their block. Of lines out of order across the border of two blocks, the events of the first block do
without what the second has: the address, if the connection's first line comes later; the identity, if the result of the
bind does (it is null then, not anonymous); and a request whose connection ended in the first block has that end as its
event, not the result. Nothing is guessed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from transforms.ldap_runs import (
    ABANDON,
    ASKING,
    BIND,
    CLIENT,
    CLOSED,
    DETAIL,
    OPEN,
    OTHER,
    REQUESTS,
    RESULT,
    SEPARATOR,
    START,
    TLS,
    Runs,
)

__all__ = (
    "ABANDON", "CLIENT", "CLOSED", "CONTINUED", "DETAIL", "DROPPED", "EVENT", "OPEN", "OTHER", "REQUESTS", "RESULT",
    "SEPARATOR", "START", "STATE_SCHEMA", "TLS", "Sessions", "Walk",
)  # fmt: skip

EVENT, CONTINUED, DROPPED = 1, 2, 3  # what a line is: an event, part of one, or neither
IN_PROGRESS = 14  # a step of a SASL bind (RFC 4511 4.1.9)
_BIND_RESULT = 97
_MOST_REQUESTS = 1000  # of one connection that have no result
_MOST_CARRIED = 200_000  # requests that are kept from block to block

Identity = tuple[str | None, str | None, bool]  # name, mechanism, whether it is known who is bound
Secured = tuple[str | None, str | None]  # TLS version and cipher
# address, TLS version, TLS cipher, identity, mechanism, whether it is known who is bound
State = tuple[str | None, str | None, str | None, str | None, str | None, bool]
STATE = {"address": pl.String, "tls_version": pl.String, "tls_cipher": pl.String, "who": pl.String, "how": pl.String}
STATE_SCHEMA = STATE | {"bound": pl.Boolean}
_UNKNOWN: Identity = (None, None, False)
_ANONYMOUS: Identity = (None, None, True)
_NOBODY: State = (None, None, None, None, None, False)


@dataclass(slots=True)
class _Request:
    at: int  # position of its line
    tls: Secured  # of the connection when it was asked for
    identity: Identity
    waits: int = -1  # number of the bind that decides its identity and has no result yet
    detail: int = -1  # position of a line that adds to it


@dataclass(slots=True)
class _Connection:
    address: str | None = None
    tls: Secured = (None, None)
    identity: Identity = _UNKNOWN  # after the bind with the highest number
    bind: int = -1  # that number
    binding: bool = False  # it has no result yet
    zero: bool = False  # operation 0 was asked for: before the first bind nobody is bound, not somebody unknown
    requests: dict[int, _Request] = field(default_factory=dict)
    given_up: set[int] = field(default_factory=set)  # operations whose event came before their result

    def identity_of(self, op: int) -> Identity:
        """Who asked for the operation, as far as the lines up to now tell."""
        unseen = self.bind < 0 and op > 0 and not self.zero
        return _UNKNOWN if unseen or self.binding or 0 <= op < self.bind else self.identity

    def expects(self, op: int) -> bool:
        """Whether a result of this operation may still come."""
        return op in self.requests or op in self.given_up

    def expected(self) -> int:
        """How many results may still come."""
        return len(self.requests) + len(self.given_up)

    def state(self, tls: Secured, identity: Identity) -> State:
        """What is known where the connection had this TLS and this identity."""
        return (self.address, *tls, *identity)


class Walk:
    """What was found out about some lines, one entry a line."""

    def __init__(self, lines: int, carried: int) -> None:
        self.fate = [DROPPED] * lines
        self.states = [_NOBODY] * lines
        self.request = [-1] * lines  # position of the line with the request; -1: none
        self.detail = [-1] * lines
        self.left = [0] * lines  # requests without a result when their connection ended
        self._carried = carried

    def event(self, at: int, state: State, request: _Request | None = None, left: int = 0) -> None:
        """Notes that the line at this position is an event."""
        at -= self._carried
        self.fate[at] = EVENT
        self.states[at] = state
        if request:
            self.request[at] = request.at
            self.detail[at] = request.detail
        self.left[at] = left

    def part(self, at: int) -> None:
        """Notes that the line at this position is part of an event."""
        self.fate[at - self._carried] = CONTINUED


@dataclass(slots=True)
class _Lines:
    """The columns that the walk looks at."""

    kind: Sequence[str | None]
    op: Sequence[int]
    code: Sequence[int | None]
    tag: Sequence[int | None]
    address: Sequence[str | None]
    dn: Sequence[str | None]
    mech: Sequence[str | None]
    tls_version: Sequence[str | None]
    tls_cipher: Sequence[str | None]


class Sessions:
    """The connections of one log; walks its blocks in order.

    Args:
        ends_requests: the end of a connection is the event of a request that has no result then.
    """

    def __init__(self, *, ends_requests: bool) -> None:
        self._ends_requests = ends_requests
        self._runs: Runs[_Connection] = Runs(_Connection)
        self._waiting = pl.DataFrame()

    def __len__(self) -> int:
        """How many connections are remembered."""
        return len(self._runs)

    def walk(self, lines: pl.DataFrame) -> tuple[pl.DataFrame, Walk]:
        """Walks a block.

        Args:
            lines: kind, key, op, code, tag, ts, verb, and the columns of `_Lines`; one row a line.

        Returns:
            the lines with the requests of earlier blocks before them, which the positions count from; what was found
            out about each of the block's own lines.
        """
        carried = self._waiting.height
        lines = lines.with_columns(pl.col("op").fill_null(-1))
        whole = pl.concat([self._waiting.select(lines.columns), lines]) if carried else lines
        columns = _Lines(*(whole[name].to_list() for name in _Lines.__slots__))
        walk = Walk(lines.height, carried)
        for run in self._runs.of(lines):
            for at in run.lines:
                self._line(run.connection, columns, walk, carried + at)
        self._runs.forget()
        self._carry(whole)
        return whole, walk

    def _line(self, connection: _Connection, lines: _Lines, walk: Walk, at: int) -> None:
        kind, op = lines.kind[at], lines.op[at]
        if kind in ASKING:
            _ask(connection, kind, op, at)
            walk.part(at)
        elif kind == RESULT:
            _answer(connection, lines, walk, at)
        elif kind == CLOSED:
            if self._ends_requests and connection.requests:
                _close(connection, walk, at)
        elif kind == ABANDON:
            _give_up(connection, op, walk, at)
        elif kind == OPEN:
            _open(connection, lines, at)
            walk.event(at, connection.state(connection.tls, _ANONYMOUS))
        else:
            _note(connection, lines, kind, at)
            walk.part(at)

    def _carry(self, whole: pl.DataFrame) -> None:
        """Keeps the lines of requests that wait for their result, and counts their positions anew."""
        connections = self._runs.connections()
        waiting = [r for c in connections for r in c.requests.values()]
        needed = sorted({at for r in waiting for at in (r.at, r.detail) if at >= 0})[-_MOST_CARRIED:]
        place = {at: number for number, at in enumerate(needed)}
        for connection in connections:
            if connection.requests:
                connection.requests = {op: r for op, r in connection.requests.items() if r.at in place}
        for request in waiting:
            request.at = place.get(request.at, -1)
            request.detail = place.get(request.detail, -1)
        self._waiting = whole[needed] if needed else whole.clear()


def _open(connection: _Connection, lines: _Lines, at: int) -> None:
    connection.address = lines.address[at]
    connection.tls = (lines.tls_version[at] or connection.tls[0], connection.tls[1])
    if connection.bind < 0 and connection.identity == _UNKNOWN:  # nobody is bound yet
        connection.identity = _ANONYMOUS


def _note(connection: _Connection, lines: _Lines, kind: str | None, at: int) -> None:
    if kind == CLIENT:
        connection.address = lines.address[at] or connection.address
    elif kind == TLS:
        version, cipher = connection.tls
        connection.tls = (lines.tls_version[at] or version, lines.tls_cipher[at] or cipher)
    elif kind == DETAIL and (request := connection.requests.get(lines.op[at])) is not None:
        request.detail = at


def _ask(connection: _Connection, kind: str | None, op: int, at: int) -> None:
    asked = _Request(at, connection.tls, _ANONYMOUS)
    connection.zero = connection.zero or op == 0
    if kind == BIND:  # makes the connection anonymous until it succeeds
        if op >= connection.bind:
            connection.bind, connection.binding, connection.identity = op, True, _ANONYMOUS
        for number, request in connection.requests.items():
            if number > op > request.waits:  # written before this line, which is of a block before
                request.waits, request.identity = op, _UNKNOWN
    else:
        asked.identity = connection.identity_of(op)
        asked.waits = connection.bind if connection.binding and op > connection.bind else -1
    if len(connection.requests) >= _MOST_REQUESTS:
        connection.requests.pop(next(iter(connection.requests)))
    connection.given_up.discard(op)
    connection.requests[op] = asked


def _answer(connection: _Connection, lines: _Lines, walk: Walk, at: int) -> None:
    op = lines.op[at]
    request = connection.requests.pop(op, None)
    if request is None and op in connection.given_up:
        connection.given_up.discard(op)
        walk.part(at)
        return
    if lines.tag[at] != _BIND_RESULT:
        tls, identity = (request.tls, request.identity) if request else (connection.tls, connection.identity_of(op))
        walk.event(at, connection.state(tls, identity), request)
        return
    places = [p for p in (at, request.detail, request.at) if p >= 0] if request else [at]
    who = next((lines.dn[p] for p in places if lines.dn[p]), None)
    how = next((lines.mech[p] for p in places if lines.mech[p]), None)
    tried: Identity = (who, how, True) if request or who else _UNKNOWN
    _bound(connection, op, tried if lines.code[at] == 0 else _ANONYMOUS)
    if lines.code[at] == IN_PROGRESS:
        walk.part(at)
    else:
        walk.event(at, connection.state(request.tls if request else connection.tls, tried), request)


def _bound(connection: _Connection, op: int, identity: Identity) -> None:
    """Notes who the connection belongs to after the bind of this number."""
    if op >= connection.bind:
        connection.bind, connection.binding, connection.identity = op, False, identity
    for request in connection.requests.values():
        if request.waits == op >= 0:
            request.waits, request.identity = -1, identity


def _close(connection: _Connection, walk: Walk, at: int) -> None:
    waiting = connection.requests
    last = max(waiting.values(), key=lambda request: request.at)
    walk.event(at, connection.state(last.tls, last.identity), last, len(waiting))
    connection.given_up |= set(waiting)
    waiting.clear()


def _give_up(connection: _Connection, op: int, walk: Walk, at: int) -> None:
    request = connection.requests.pop(op, None)
    if request is None:
        walk.part(at)
        return
    if len(connection.given_up) < _MOST_REQUESTS:
        connection.given_up.add(op)
    walk.event(at, connection.state(request.tls, request.identity), request)
