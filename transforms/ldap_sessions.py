"""Which connection, identity and request each line of a directory server's log belongs to.

The lines of one connection are spread over the log, mixed with those of a thousand others, and each changes what the
next means; so they are walked through one by one here, over numbers and short texts only. All else is done on columns
in `ldap_rows`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

OPEN, CLIENT, TLS, CLOSED = "open", "client", "tls", "closed"  # kinds of lines about the connection
RESULT, ABANDON, DETAIL, OTHER = "result", "abandon", "detail", "other"
BIND = "bind"
REQUESTS = (BIND, "search", "update", "create", "delete", "move", "compare", "extended")

EVENT, CONTINUED, DROPPED = 1, 2, 3  # what a line is: an event, part of one, or neither
IN_PROGRESS = 14  # a step of a SASL bind (RFC 4511 4.1.9)
_BIND_RESULT = 97
_MOST_CONNECTIONS = 100_000
_MOST_REQUESTS = 1000  # of one connection that have no result
_MOST_CARRIED = 200_000  # requests that are kept from block to block

# address, TLS version, TLS cipher, identity, mechanism, whether it is known who is bound
State = tuple[str | None, str | None, str | None, str | None, str | None, bool]
STATE = {"address": pl.String, "tls_version": pl.String, "tls_cipher": pl.String, "who": pl.String, "how": pl.String}
STATE_SCHEMA = STATE | {"bound": pl.Boolean}


@dataclass(slots=True)
class _Request:
    at: int  # position of its line
    state: State  # of the connection when it was asked for
    detail: int = -1  # position of a line that adds to it


@dataclass(slots=True)
class _Connection:
    state: State = (None, None, None, None, None, False)
    requests: dict[int | None, _Request] = field(default_factory=dict)
    given_up: set[int | None] = field(default_factory=set)  # operations whose event came before their result
    closed: bool = False


@dataclass(slots=True)
class Walk:
    """What was found out about some lines, one entry a line."""

    fate: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    request: list[int] = field(default_factory=list)  # position of the line with the request; -1: none
    detail: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)  # requests without a result when their connection ended

    def add(self, fate: int, state: State, request: _Request | None = None, left: int = 0) -> None:
        """Notes one line."""
        self.fate.append(fate)
        self.states.append(state)
        self.request.append(request.at if request else -1)
        self.detail.append(request.detail if request else -1)
        self.left.append(left)


@dataclass(slots=True)
class _Lines:
    """The columns that the walk looks at."""

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
        self._connections: dict[str, _Connection] = {}
        self._waiting = pl.DataFrame()

    def walk(self, lines: pl.DataFrame) -> tuple[pl.DataFrame, Walk]:
        """Walks a block.

        Args:
            lines: kind, key, op, code, tag, and the columns of `_Lines`; one row a line.

        Returns:
            the lines with the requests of earlier blocks before them, which the positions count from; what was found
            out about each of the block's own lines.
        """
        carried = self._waiting.height
        whole = pl.concat([self._waiting.select(lines.columns), lines]) if carried else lines
        columns = _Lines(*(whole[name].to_list() for name in _Lines.__slots__))
        walk = Walk()
        walked = zip(*(lines[name].to_list() for name in ("kind", "key", "op", "code", "tag")), strict=True)
        for at, (kind, key, op, code, tag) in enumerate(walked, carried):
            if kind is None or key is None:
                walk.add(DROPPED, _NOBODY)
                continue
            connection = self._connection(key, opens=kind == OPEN)
            if kind in _ASKING:
                _ask(connection, kind, op, at)
                walk.add(CONTINUED, connection.state)
            elif kind == RESULT:
                _answer(connection, columns, walk, (at, op, code, tag))
            elif kind == CLOSED:
                self._close(connection, key, walk)
            elif kind == ABANDON:
                _give_up(connection, op, walk)
            else:
                _note(connection, columns, kind, op, at)
                walk.add(EVENT if kind == OPEN else CONTINUED, connection.state)
            if connection.closed and not connection.requests and not connection.given_up:
                self._connections.pop(key, None)
        self._carry(whole)
        return whole, walk

    def _connection(self, key: str, *, opens: bool) -> _Connection:
        found = self._connections.get(key)
        if found is None or opens:
            self._connections.pop(key, None)
            if len(self._connections) >= _MOST_CONNECTIONS:
                self._connections.pop(next(iter(self._connections)))
            found = self._connections[key] = _Connection()
        return found

    def _close(self, connection: _Connection, key: str, walk: Walk) -> None:
        connection.closed = True
        waiting = connection.requests
        if not waiting or not self._ends_requests:
            walk.add(DROPPED, connection.state)
            return
        last = max(waiting.values(), key=lambda request: request.at)
        walk.add(EVENT, last.state, last, len(waiting))
        connection.given_up |= set(waiting)
        waiting.clear()
        self._connections[key] = connection

    def _carry(self, whole: pl.DataFrame) -> None:
        """Keeps the lines of requests that wait for their result, and counts their positions anew."""
        waiting = [r for c in self._connections.values() for r in c.requests.values()]
        needed = sorted({at for r in waiting for at in (r.at, r.detail) if at >= 0})[-_MOST_CARRIED:]
        place = {at: number for number, at in enumerate(needed)}
        for connection in self._connections.values():
            if connection.requests:
                kept = {op: r for op, r in connection.requests.items() if r.at in place}
                connection.requests = kept
        for request in waiting:
            request.at = place.get(request.at, -1)
            request.detail = place.get(request.detail, -1)
        self._waiting = whole[needed] if needed else whole.clear()


_NOBODY: State = (None, None, None, None, None, False)
_ASKING = frozenset(REQUESTS)


def _ask(connection: _Connection, kind: str, op: int | None, at: int) -> None:
    if kind == BIND:  # makes the connection anonymous until it succeeds
        connection.state = (*connection.state[:3], None, None, True)
    if len(connection.requests) >= _MOST_REQUESTS:
        connection.requests.pop(next(iter(connection.requests)))
    connection.given_up.discard(op)
    connection.requests[op] = _Request(at, connection.state)


def _note(connection: _Connection, lines: _Lines, kind: str, op: int | None, at: int) -> None:
    state = connection.state
    if kind == OPEN:  # nobody is bound yet
        connection.state = (lines.address[at], lines.tls_version[at], None, None, None, True)
    elif kind == CLIENT:
        connection.state = (lines.address[at] or state[0], *state[1:])
    elif kind == TLS:
        connection.state = (
            state[0], lines.tls_version[at] or state[1], lines.tls_cipher[at] or state[2], *state[3:]
        )  # fmt: skip
    elif kind == DETAIL and (request := connection.requests.get(op)) is not None:
        request.detail = at


def _answer(
    connection: _Connection, lines: _Lines, walk: Walk, line: tuple[int, int | None, int | None, int | None]
) -> None:
    at, op, code, tag = line
    request = connection.requests.pop(op, None)
    if request is None and op in connection.given_up:
        connection.given_up.discard(op)
        walk.add(CONTINUED, connection.state)
        return
    if tag != _BIND_RESULT:
        walk.add(EVENT, request.state if request else connection.state, request)
        return
    if code == IN_PROGRESS:
        walk.add(CONTINUED, connection.state)
        return
    places = [p for p in (at, request.detail, request.at) if p >= 0] if request else [at]
    who = next((lines.dn[p] for p in places if lines.dn[p]), None)
    how = next((lines.mech[p] for p in places if lines.mech[p]), None)
    tried: State = (*connection.state[:3], who, how, True)
    if code == 0:
        connection.state = tried
    walk.add(EVENT, tried, request)


def _give_up(connection: _Connection, op: int | None, walk: Walk) -> None:
    request = connection.requests.pop(op, None)
    if request is None:
        walk.add(CONTINUED, connection.state)
        return
    if len(connection.given_up) < _MOST_REQUESTS:
        connection.given_up.add(op)
    walk.add(EVENT, request.state, request)
