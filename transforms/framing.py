"""Evidence bytes to records: blocks of whole lines, CSV records or JSON objects, each record with its byte offset.

A block is the unit of memory: a 100 GB log needs no more than a 1 GB one. Every byte of the evidence belongs to exactly
one record or to the separators between records. What is no whole record (too long, text outside of an object) is a
record too, with `damage` saying what is wrong, so that the caller can quarantine it.
"""

import io
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import polars as pl

from transforms.encodings import Encoding, Utf16, encoding_of, places_in_utf16, size_in_utf16, text_of
from transforms.framing_csv import split_csv
from transforms.framing_json import split_json
from transforms.model import RECORD_SCHEMA, Framing, Head

BLOCK_BYTES = 32 << 20
MAX_RECORD_BYTES = 8 << 20
HEAD_BYTES = 64 << 10
KEPT_OF_A_LONG_RECORD = 2000

BLOCK_SCHEMA = RECORD_SCHEMA | {"damage": pl.String}
TOO_LONG = f"record is longer than {MAX_RECORD_BYTES >> 20} MiB"

# (starts, ends, damage by position, bytes consumed): offsets inside the block
Split = tuple[np.ndarray, np.ndarray, dict[int, str], int]


def decode(data: bytes) -> str:
    """Text of record bytes: UTF-8, else Latin-1, in which every byte means something."""
    return text_of(data, "utf-8")


def head_of(data: bytes, name: str) -> Head:
    """The beginning of evidence as formats see it for recognising themselves.

    Args:
        data: first bytes of the content, at most HEAD_BYTES are looked at.
        name: file name, for messages.
    """
    data = data[:HEAD_BYTES]
    if (encoding := encoding_of(data)) != "utf-8":
        whole = data[: len(data) & ~1].decode(encoding, errors="replace").removeprefix("\ufeff")
        text = whole[: whole.rfind("\n") + 1] or whole if len(data) == HEAD_BYTES else whole
    else:
        cut = data[: data.rfind(b"\n") + 1] or data if len(data) == HEAD_BYTES else data
        text = decode(cut.removeprefix(b"\xef\xbb\xbf"))
    return Head(data=data, text=text, lines=tuple(text.splitlines()), name=name)


def _line_frame(data: bytes) -> pl.DataFrame:
    """Lines of a block: byte_offset, byte_length, raw (without line end)."""
    if not data:
        return pl.DataFrame(schema={k: BLOCK_SCHEMA[k] for k in ("byte_offset", "byte_length", "raw")})
    returns = data.count(b"\r\n") if b"\r" in data else 0
    newlines = data.count(b"\n")
    whole = newlines + (not data.endswith(b"\n"))
    if returns in (0, newlines) and not (returns and whole > newlines and data.endswith(b"\r")):
        try:
            # The first bytes decide whether Polars takes what it is given for compressed: no line of a log may do so.
            frame = pl.scan_lines(io.BytesIO(b"\n" + data), name="raw").slice(1).collect()
        except pl.exceptions.ComputeError:  # not UTF-8
            frame = None
        if frame is not None and frame.height == whole:
            length = pl.col("raw").str.len_bytes().cast(pl.Int64)
            step = 2 if returns else 1
            return frame.select(
                (length.cum_sum() - length + step * pl.int_range(pl.len(), dtype=pl.Int64)).alias("byte_offset"),
                length.alias("byte_length"),
                "raw",
            )
    pieces = data.split(b"\n")
    if data.endswith(b"\n"):
        pieces.pop()
    sizes = np.fromiter((len(p) + 1 for p in pieces), dtype=np.int64, count=len(pieces))
    stripped = [p.removesuffix(b"\r") for p in pieces]
    return pl.DataFrame(
        {
            "byte_offset": np.cumsum(sizes) - sizes,
            "byte_length": np.fromiter((len(p) for p in stripped), dtype=np.int64, count=len(pieces)),
            "raw": [decode(p) for p in stripped],
        },
        schema={"byte_offset": pl.Int64, "byte_length": pl.Int64, "raw": pl.String},
    )


def _lines(data: bytes) -> pl.DataFrame:
    frame = _line_frame(data)
    if frame.height and (frame["byte_length"].max() or 0) > MAX_RECORD_BYTES:  # type: ignore[operator]
        long = pl.col("byte_length") > MAX_RECORD_BYTES
        return frame.with_columns(
            pl.when(long).then(pl.col("raw").str.slice(0, KEPT_OF_A_LONG_RECORD)).otherwise("raw").alias("raw"),
            pl.when(long).then(pl.lit(TOO_LONG)).alias("damage"),
        )
    return frame.with_columns(pl.lit(None, dtype=pl.String).alias("damage"))


def _sliced(data: bytes, split: Split) -> pl.DataFrame:
    starts, ends, damage, _ = split
    view = memoryview(data)
    raws = []
    for at, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        kept = end
        if end - start > MAX_RECORD_BYTES:
            damage.setdefault(at, TOO_LONG)
            kept = start + KEPT_OF_A_LONG_RECORD
        raws.append(decode(bytes(view[start:kept])))
    return pl.DataFrame(
        {
            "byte_offset": starts.astype(np.int64),
            "byte_length": (ends - starts).astype(np.int64),
            "raw": raws,
            "damage": [damage.get(i) for i in range(len(raws))],
        },
        schema={k: BLOCK_SCHEMA[k] for k in ("byte_offset", "byte_length", "raw", "damage")},
    )


class Framer:
    """Reads a stream block by block.

    Args:
        stream: binary stream at the first byte of the evidence (decompressed).
        framing: what a record is.
        encoding: how the text is written; offsets and lengths count in the evidence's own bytes.
        block_bytes: how much is held at a time.
    """

    def __init__(
        self,
        stream: BinaryIO,
        framing: Framing,
        *,
        encoding: Encoding = "utf-8",
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self._utf16 = encoding != "utf-8"
        self._stream: BinaryIO | Utf16 = Utf16(stream, encoding) if self._utf16 else stream
        self._size: Callable[[bytes], int] = size_in_utf16 if self._utf16 else len
        self._framing = framing
        self._block_bytes = block_bytes if framing == "lines" and not self._utf16 else min(block_bytes, 16 << 20)
        self._carry: dict[str, object] = {}
        self.offset = 0  # of the next block
        self.records = 0  # so far

    def blocks(self, progress: Callable[[int], None] | None = None) -> Iterator[pl.DataFrame]:
        """Frames of BLOCK_SCHEMA, in order. `progress` is told the bytes read."""
        rest = b""
        while True:
            chunk = self._stream.read(self._block_bytes)
            if progress and chunk:
                progress(self._size(chunk))
            data = rest + chunk if rest else chunk
            if not data:
                return
            frame, used = self._frame(data, last=not chunk)
            if frame.height:
                yield self._numbered(self._in_evidence(frame, data[:used]) if self._utf16 else frame)
            self.offset += self._size(data[:used]) if self._utf16 else used
            rest = data[used:]
            if not chunk:
                return
            if used == 0 and self._framing == "lines" and len(rest) > MAX_RECORD_BYTES:
                yield from self._long_line(rest, progress)
                rest = self._left

    def _frame(self, data: bytes, *, last: bool) -> tuple[pl.DataFrame, int]:
        if self._framing == "lines":
            used = len(data) if last else data.rfind(b"\n") + 1
            return _lines(data[:used] if used < len(data) else data), used
        if self._framing == "csv":
            split = split_csv(data, self._carry, MAX_RECORD_BYTES, last=last)
        else:
            split = split_json(data, self._carry, MAX_RECORD_BYTES, last=last)
        return _sliced(data, split), split[3]

    @staticmethod
    def _in_evidence(frame: pl.DataFrame, data: bytes) -> pl.DataFrame:
        """Places in the transcoded text as places in the evidence."""
        begin = frame["byte_offset"].to_numpy()
        first = places_in_utf16(data, begin)
        length = places_in_utf16(data, begin + frame["byte_length"].to_numpy()) - first
        return frame.with_columns(pl.Series("byte_offset", first), pl.Series("byte_length", length))

    def _numbered(self, frame: pl.DataFrame) -> pl.DataFrame:
        first = self.records
        self.records += frame.height
        numbered = frame.select(
            (pl.int_range(pl.len(), dtype=pl.Int64) + first).alias("record_no"),
            (pl.col("byte_offset") + self.offset).alias("byte_offset"),
            "byte_length",
            "raw",
            "damage",
        )
        if first == 0 and self.offset == 0:  # a byte order mark is no part of the first record's text
            return numbered.with_columns(pl.col("raw").str.strip_prefix("\ufeff"))
        return numbered

    def _long_line(self, begun: bytes, progress: Callable[[int], None] | None) -> Iterator[pl.DataFrame]:
        """One record for a line that fills more than a block; its text is not kept beyond the beginning."""
        kept, length = begun[:KEPT_OF_A_LONG_RECORD], self._size(begun)
        self._left = b""
        while chunk := self._stream.read(1 << 20):
            if progress:
                progress(self._size(chunk))
            cut = chunk.find(b"\n")
            if cut >= 0:
                length += self._size(chunk[:cut])
                self._left = chunk[cut + 1 :]
                break
            length += self._size(chunk)
        else:
            cut = -1
        frame = pl.DataFrame(
            {"byte_offset": [0], "byte_length": [length], "raw": [decode(kept)], "damage": [TOO_LONG]},
            schema={k: BLOCK_SCHEMA[k] for k in ("byte_offset", "byte_length", "raw", "damage")},
        )
        yield self._numbered(frame)
        self.offset += length + (self._size(b"\n") if cut >= 0 else 0)
