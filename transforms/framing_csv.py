"""RFC 4180 records in a block of bytes, found by quote parity, with recovery after a stray quote.

A newline ends a record where the number of quotes before it, counted from the record's start, is even. A cut or spliced
line leaves a quote open and would swallow the rest of the file; so a record that spans lines and has not the header's
number of fields is given up: its first line stands alone, and counting starts anew at the next line.
"""

from typing import Any

import numpy as np

_MOST_DAMAGE = 2000  # restarts in one block; past it each line stands alone


def _columns(data: bytes) -> int:
    """Fields of the first record of data that is no comment (#TYPE System.Object, as Export-Csv writes)."""
    at = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    while data.startswith(b"#", at) and (cut := data.find(b"\n", at)) >= 0:
        at = cut + 1
    buf = np.frombuffer(data, dtype=np.uint8)[at:]
    inside = np.cumsum(buf == 34) & 1
    ends = np.flatnonzero((buf == 10) & (inside == 0))
    end = int(ends[0]) if len(ends) else len(buf)
    return int(np.count_nonzero((buf[:end] == 44) & (inside[:end] == 0))) + 1


class _Marks:
    """Positions of newlines and commas in a block, split by the parity of the quotes before them."""

    def __init__(self, data: bytes) -> None:
        buf = np.frombuffer(data, dtype=np.uint8)
        self.parity = (np.cumsum(buf == 34, dtype=np.int32) & 1).astype(np.uint8)
        self.newlines = np.flatnonzero(buf == 10)
        commas = np.flatnonzero(buf == 44)
        self.ends = tuple(self.newlines[self.parity[self.newlines] == p] for p in (0, 1))
        self.commas = tuple(commas[self.parity[commas] == p] for p in (0, 1))

    def base(self, at: int) -> int:
        return int(self.parity[at - 1]) if at else 0


def _first_bad(marks: _Marks, starts: np.ndarray, ends: np.ndarray, base: int, *, columns: int, longest: int) -> int:
    """Index of the first record that spans lines and has the wrong number of fields, or is too long; -1 if none."""
    commas = marks.commas[base]
    fields = np.searchsorted(commas, ends) - np.searchsorted(commas, starts) + 1
    spans = np.searchsorted(marks.newlines, ends) > np.searchsorted(marks.newlines, starts)
    bad = np.flatnonzero(spans & ((fields != columns) | (ends - starts > longest)))
    return int(bad[0]) if len(bad) else -1


def split_csv(
    data: bytes, carry: dict[str, Any], longest: int, *, last: bool
) -> tuple[np.ndarray, np.ndarray, dict[int, str], int]:
    """Records of a block that begins at a record.

    Args:
        data: the block.
        carry: kept between blocks; holds the number of fields.
        longest: bytes that a record may have before it is given up.
        last: whether the evidence ends with the block.

    Returns:
        starts and ends (without line ends), damage by position (always empty: the parser sees the field count), bytes
        used.
    """
    columns: int = carry.setdefault("columns", _columns(data))
    marks = _Marks(data)
    out_starts: list[np.ndarray] = []
    out_ends: list[np.ndarray] = []
    at, restarts = 0, 0
    while at < len(data):
        base = marks.base(at) if restarts <= _MOST_DAMAGE else -1
        all_ends = marks.newlines if base < 0 else marks.ends[base]
        ends = all_ends[np.searchsorted(all_ends, at) :]
        if last and (not len(ends) or ends[-1] != len(data) - 1):
            ends = np.append(ends, len(data))
        starts = np.concatenate([[at], ends[:-1] + 1]) if len(ends) else np.empty(0, dtype=np.int64)
        bad = (
            -1 if base < 0 or not len(ends) else _first_bad(marks, starts, ends, base, columns=columns, longest=longest)
        )
        good = len(ends) if bad < 0 else bad
        out_starts.append(starts[:good])
        out_ends.append(ends[:good])
        tail = int(ends[good - 1]) + 1 if good else at
        if bad < 0 and (tail >= len(data) or (not last and len(data) - tail <= longest)):
            at = tail
            break
        # give up: the first line of what is left stands alone
        line_end_index = int(np.searchsorted(marks.newlines, tail))
        if line_end_index >= len(marks.newlines):
            at = tail
            break
        line_end = int(marks.newlines[line_end_index])
        out_starts.append(np.array([tail]))
        out_ends.append(np.array([line_end]))
        at, restarts = line_end + 1, restarts + 1
    starts_all = np.concatenate(out_starts) if out_starts else np.empty(0, dtype=np.int64)
    ends_all = np.concatenate(out_ends) if out_ends else np.empty(0, dtype=np.int64)
    ends_all = np.minimum(ends_all, len(data))
    buf = np.frombuffer(data, dtype=np.uint8)
    before = np.maximum(ends_all - 1, 0)
    ends_all = np.where((ends_all > starts_all) & (buf[before] == 13), ends_all - 1, ends_all)
    return starts_all, ends_all, {}, min(at, len(data))
