"""The custody log: an append-only file of JSON lines, each holding the hash of the line before it.

A line has seq (from 1), at (UTC), who, action, details, prev (sha256 of the previous line's bytes, zeros in the
first) and hash (sha256 of this line without the hash). A changed, removed or inserted line breaks the chain. Lines
cut off at the end leave a shorter chain that is whole: where that matters, keep the last hash elsewhere.

Locally a line is appended under a file lock and reaches the disk before the call returns. An object store cannot
append: the file is read, extended and written back, so that two writers at the same moment may lose one line there.
Commits do not depend on this file; ingest into an object store from one process where the custody log must be
complete.
"""

import getpass
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from archive.storage import Place

NAME = "custody.jsonl"
FIRST = "0" * 64
_TAIL = 1 << 16


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """The first line of the custody log that does not fit. `line` counts from 1."""

    line: int
    fact: str

    @property
    def place(self) -> str:
        """File and line."""
        return f"{NAME}:{self.line}"


def who() -> str:
    """Operating-system user and host."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Custody:
    """The custody log of one archive."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def record(self, action: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Appends one line and returns it. `details` is anything JSON can hold; other values are written as text."""
        if not self._place.is_local:
            return self._record_remote(action, details or {})
        import fcntl

        handle = os.open(self._place.path(NAME), os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            last, torn = _last_line(handle)
            entry, line = _entry(last, action, details or {}, lambda: _count(self._place.path(NAME)))
            _write_all(handle, (b"\n" if torn else b"") + line + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)
        return entry

    def _record_remote(self, action: str, details: Mapping[str, Any]) -> dict[str, Any]:
        content = self._place.read(NAME) if self._place.exists(NAME) else b""
        lines = content.splitlines()
        entry, line = _entry(lines[-1] if lines else None, action, details, lambda: len(lines))
        torn = b"\n" if content and not content.endswith(b"\n") else b""
        self._place.write(content + torn + line + b"\n", NAME)
        return entry

    def entries(self) -> Iterator[dict[str, Any]]:
        """Lines from first to last that are JSON objects; broken ones are left out (`verify_chain` names them)."""
        for raw in self._lines():
            entry = _parsed(raw)
            if entry is not None:
                yield entry

    def verify_chain(self) -> BrokenLine | None:
        """The first line that does not fit the one before it or its own hash; None when the chain is whole."""
        number, previous = 0, FIRST
        for number, raw in enumerate(self._lines(), 1):
            fault = _fault(raw, number, previous)
            if fault:
                return BrokenLine(number, fault)
            previous = hashlib.sha256(raw).hexdigest()
        return BrokenLine(1, "the custody log is missing or empty") if number == 0 else None

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._place.filesystem.open(self._place.path(NAME), "rb") as file:
                for line in file:
                    yield line.rstrip(b"\n")
        except FileNotFoundError:
            return


def _fault(raw: bytes, number: int, previous: str) -> str | None:
    entry = _parsed(raw)
    if entry is None:
        return "is not a JSON object"
    if entry.get("seq") != number:
        return f"has number {entry.get('seq')!r} where {number} is due: a line was removed or added"
    if entry.get("prev") != previous:
        return "does not hold the hash of the line before it: that line was changed, or lines were removed or added"
    if entry.pop("hash", None) != _digest(entry):
        return "does not have its own hash: it was changed"
    return None


def _entry(last: bytes | None, action: str, details: Mapping[str, Any], lines: Any) -> tuple[dict[str, Any], bytes]:
    before = None if last is None else _parsed(last)
    number = before.get("seq") if before else None
    entry: dict[str, Any] = {
        "seq": number + 1 if isinstance(number, int) else (0 if last is None else lines()) + 1,
        "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "who": who(),
        "action": action,
        "details": json.loads(json.dumps(details, default=str)),
        "prev": FIRST if last is None else hashlib.sha256(last).hexdigest(),
    }
    entry["hash"] = _digest(entry)
    return entry, _canonical(entry)


def _digest(entry: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(entry)).hexdigest()


def _canonical(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def _parsed(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _last_line(handle: int) -> tuple[bytes | None, bool]:
    """The last line without its end, or None when there is none; and whether that end is lacking (a cut-off write)."""
    end = os.fstat(handle).st_size
    if end == 0:
        return None, False
    tail, start = b"", end
    while start > 0 and b"\n" not in tail[:-1]:
        step = min(_TAIL, start)
        start -= step
        tail = os.pread(handle, step, start) + tail
    torn = not tail.endswith(b"\n")
    return (tail if torn else tail[:-1]).rsplit(b"\n", 1)[-1], torn


def _count(path: str) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)


def _write_all(handle: int, content: bytes) -> None:
    while content:
        content = content[os.write(handle, content) :]
