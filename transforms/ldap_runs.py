"""Which lines of a directory server's log are of the same connection, although its number comes again.

While the server runs, a number is given to one connection only; when it starts anew it counts from the beginning. Some
logs do not tell the two apart (slapd's own file, and a container where the process id is always 1), so what belongs
together is told by what cannot happen within one run:

- a line of the server's start is a border that no line crosses: the process before has ended;
- a connection is accepted once. The lines up to a few seconds before that line are of the same connection where nothing
  was known of the number and they began with operation 0, or the server's start is in the log;
- operation 0 is asked for once, and no operation long after one with a higher number;
- nothing comes long after a connection's end, except the result of what was asked for before.

Lines that do not fit are put to a connection of which nothing is known.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

import polars as pl

# kinds of lines: of the server's start, about the connection, and others
START = "start"
OPEN, CLIENT, TLS, CLOSED = "open", "client", "tls", "closed"
RESULT, ABANDON, DETAIL, OTHER = "result", "abandon", "detail", "other"
BIND, EXTENDED = "bind", "extended"
REQUESTS = (BIND, "search", "update", "create", "delete", "move", "compare", EXTENDED)
ASKING = frozenset(REQUESTS)

SEPARATOR = "\0"  # between a server and the number in a key
_START_TLS = "1.3.6.1.4.1.1466.20037"
_NEAR_LINES = 10_000
_NEAR = 5_000_000  # microseconds
_MOST_CONNECTIONS = 100_000
_MOST_STARTED = 10_000  # servers in one log
_MOST_EXPECTED = 200_000  # results after the ends of connections
_FIRST, _LAST = -4, 1 << 62
_HIGHEST = 1 << 40  # operation number that still has its place in the order

Place = tuple[int, int]  # number of a line in the log, its time in microseconds


class Expecting(Protocol):
    """A connection as its lines change it."""

    def expects(self, op: int) -> bool:
        """Whether a result of this operation may still come."""
        ...

    def expected(self) -> int:
        """How many results may still come."""
        ...


_MARKS = (CLOSED, TLS)
_DISORDERED = attrgetter("disordered")
_COLUMNS = ("kind", "op", "time", "asks_tls")

C = TypeVar("C", bound=Expecting)


def columns(lines: pl.DataFrame) -> pl.DataFrame:
    """What `Runs.of` looks at.

    Args:
        lines: kind, key, op, ts, verb; one row a line.

    Returns:
        kind (null also where there is no key), op, time (microseconds), whether the line asks for TLS, and `order`, the
        place of a line among those of its connection: what it is about, then its operation and the part of it.
    """
    kind, op = pl.col("kind"), pl.col("op").clip(-1, _HIGHEST)
    part = pl.when(kind.is_in(REQUESTS)).then(0).when(kind == DETAIL).then(1).otherwise(2)
    order = (
        pl.when(kind == OPEN).then(_FIRST)
        .when(kind == CLIENT).then(_FIRST + 1)
        .when(kind == TLS).then(_FIRST + 2)
        .when(kind == CLOSED).then(_LAST)
        .otherwise(op * 4 + part)
    )  # fmt: skip
    return lines.select(
        pl.when(pl.col("key").is_not_null()).then("kind"),
        "op",
        pl.col("ts").dt.timestamp("us").fill_null(0).alias("time"),
        ((kind == EXTENDED) & pl.col("verb").str.contains(_START_TLS, literal=True)).alias("asks_tls"),
        order.alias("order"),
    )


def _near(one: Place, other: Place) -> bool:
    return other[0] - one[0] <= _NEAR_LINES and abs(other[1] - one[1]) <= _NEAR


@dataclass(slots=True)
class _Seen:
    """What tells a connection from another of the same number. Lines are counted from the beginning of the log."""

    start: int  # of the server
    first: Place
    accepted: Place | None = None
    ended: Place | None = None
    lowest: int = _HIGHEST  # operation before it was accepted
    highest: int = -1  # operation that was asked for
    highest_line: int = 0
    highest_time: int = 0
    zero: bool = False  # operation 0 was asked for
    start_tls: int = -1  # operation that began TLS


@dataclass(slots=True)
class Run(Generic[C]):
    """The lines of a block that are of one connection."""

    connection: C
    seen: _Seen
    lines: list[int] = field(default_factory=list)  # positions in the block
    asked: set[int] | None = None  # operations of its lines, once that matters
    before: int = 0  # lines that stand before the one that accepted it
    order: int = _FIRST  # of the last line
    disordered: bool = False


class Runs(Generic[C]):
    """The connections of one log.

    Args:
        made: a connection of which nothing is known.
    """

    def __init__(self, made: Callable[[], C]) -> None:
        self._made = made
        self._kept: dict[str, tuple[C, _Seen]] = {}
        self._starts: dict[str, int] = {}  # of a server: the number of its last start
        self._started = 0
        self._last: Place = (0, 0)  # place of the last line
        self._now: dict[str, Run[C]] = {}  # the last connection of each number in this block
        self._all: list[Run[C]] = []
        self._ops: list[int] = []  # of the lines of this block

    def __len__(self) -> int:
        """How many connections are remembered."""
        return len(self._kept)

    def connections(self) -> list[C]:
        """Those that are remembered."""
        return [connection for connection, _ in self._kept.values()]

    def of(self, lines: pl.DataFrame) -> list[Run[C]]:
        """Puts the lines of a block to their connections, each connection's in their order.

        Args:
            lines: kind, key, op, ts, verb; one row a line.
        """
        self._now, self._all = {}, []
        read = columns(lines)
        order, self._ops = read["order"].to_list(), read["op"].to_list()
        begun, last, now = self._last[0] + 1, self._last[1], self._now
        whole = zip(lines["key"].to_list(), *(read[name].to_list() for name in _COLUMNS), order, strict=True)
        for at, (key, kind, op, time, asks_tls, place) in enumerate(whole):
            if kind is None or kind == START:
                self._start(kind, key)
                continue
            run = now.get(key)
            if run is None or (self._starts and run.seen.start != self._start_of(key)):
                run = self._first(key, (begun + at, time))
            if kind == OPEN or run.seen.ended or (op <= run.seen.highest and kind in ASKING):
                run = self._checked(key, run, kind, op, (begun + at, time))
            seen = run.seen
            if kind in ASKING:
                if op > seen.highest:
                    seen.highest, seen.highest_line, seen.highest_time = op, begun + at, time
                if op == 0 or asks_tls:
                    seen.zero = seen.zero or op == 0
                    seen.start_tls = min(op, _HIGHEST) if asks_tls else seen.start_tls
            elif kind in _MARKS:
                order[at] = _mark(run, kind, place, (begun + at, time))
            if seen.accepted is None and 0 <= op < seen.lowest:
                seen.lowest = op
            run.lines.append(at)
            if place < run.order:
                run.disordered = True
            run.order = place
            last = time
        self._last = (begun + len(order), last)
        for run in filter(_DISORDERED, self._all):
            run.lines.sort(key=order.__getitem__)
        return self._all

    def forget(self) -> None:
        """Keeps for the next block only the connections that lines may still come of, and no more than so many."""
        for key, run in self._now.items():  # the last ones that had a line stay longest
            self._kept.pop(key, None)
            self._kept[key] = (run.connection, run.seen)
        kept, expected = {}, 0
        for key, (connection, seen) in self._kept.items():
            if seen.ended and not _near(seen.ended, self._last):
                waits = connection.expected()
                expected += waits
                if not waits or expected > _MOST_EXPECTED:
                    continue
            if seen.start == self._start_of(key):
                kept[key] = (connection, seen)
        for key in list(islice(kept, max(0, len(kept) - _MOST_CONNECTIONS))):
            del kept[key]
        self._kept, self._now, self._all, self._ops = kept, {}, [], []

    def _start(self, kind: str | None, server: str) -> None:
        if kind is None:
            return
        if len(self._starts) >= _MOST_STARTED:
            self._starts.clear()
            self._kept.clear()
            self._now.clear()
        self._started += 1
        self._starts[server] = self._started

    def _start_of(self, key: str) -> int:
        """Number of the start that the connection is of; 0: of an earlier one than any in the log."""
        return self._starts.get(key.rpartition(SEPARATOR)[0], 0) if self._starts else 0

    def _first(self, key: str, here: Place) -> Run[C]:
        """The connection that the first line of this number, or of this start of the server, is of."""
        start = self._start_of(key)
        kept = None if key in self._now else self._kept.get(key)
        if kept is not None and kept[1].start == start:
            return self._add(key, Run(*kept))
        return self._add(key, Run(self._made(), _Seen(start, here)))

    def _add(self, key: str, run: Run[C]) -> Run[C]:
        self._now[key] = run
        self._all.append(run)
        return run

    def _checked(self, key: str, run: Run[C], kind: str, op: int, here: Place) -> Run[C]:
        """The connection of a line that is the first of one, comes after its end, or out of order."""
        if kind == OPEN:
            return self._accept(key, run, here)
        asks = kind in ASKING
        if self._fits(run, op, here, asks=asks):
            return run
        return self._anew(key, run, here, again=asks and op == 0)

    def _accept(self, key: str, run: Run[C], here: Place) -> Run[C]:
        seen = run.seen
        begun = seen.start > 0 or seen.lowest == 0 or (seen.lowest == _HIGHEST and seen.ended is None)
        if seen.accepted or not begun or not _near(seen.first, here):
            run = self._add(key, Run(self._made(), _Seen(seen.start, here)))
        run.seen.accepted = here
        run.before = len(run.lines)
        return run

    def _fits(self, run: Run[C], op: int, here: Place, *, asks: bool) -> bool:
        """Whether a line can be of this connection, although it comes after its end or out of order."""
        seen = run.seen
        if asks and op == 0 and seen.zero:
            return False
        if asks and op <= seen.highest and not _near((seen.highest_line, seen.highest_time), here):
            return False
        if seen.ended is None or _near(seen.ended, here):
            return True
        if asks or op < 0:
            return False
        if run.asked is None:
            run.asked = {self._ops[at] for at in run.lines}
        return op in run.asked or run.connection.expects(op)

    def _anew(self, key: str, run: Run[C], here: Place, *, again: bool) -> Run[C]:
        """A connection of the same number for a line that does not fit to the one before.

        Args:
            again: operation 0 is asked for once more.
        """
        seen = run.seen
        if again and run.before and seen.accepted and _near(seen.accepted, here):
            # What stood before the line that accepted it may be of a run before: neither gets what the other tells.
            late = self._add(key, Run(self._made(), seen, run.lines[run.before :], disordered=True))
            run.lines, run.seen = run.lines[: run.before], _Seen(seen.start, seen.first)
            late.order = run.order
        return self._add(key, Run(self._made(), _Seen(seen.start, here)))


def _mark(run: Run[C], kind: str, place: int, here: Place) -> int:
    """Notes the end of a connection or that it is encrypted from now on; the place of the line."""
    seen = run.seen
    if kind == CLOSED:
        seen.ended = seen.ended or here
    elif seen.start_tls >= 0:  # that was asked for by an operation: it does not hold for what was asked before
        run.disordered = True
        return seen.start_tls * 4 + 3
    return place
