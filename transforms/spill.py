"""Rows that are too many to hold: laid down once by what they have in common, taken up again piece by piece."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import polars as pl

_PIECE = "_piece"
_WAITING = 500_000  # rows that wait to be written, over all pieces: all are written at the same time
_LEAST = 4_000  # rows of a group in a file: smaller ones are slow


class Spill:
    """A temporary folder of Parquet files, removed at the end (TMPDIR says where it lies); one piece needs none.

    Args:
        number: of pieces, at least 1.
        key: expression of an unsigned integer: rows of the same value come to lie in the same piece.
    """

    def __init__(self, number: int, key: pl.Expr) -> None:
        self._number = number
        self._key = key
        self._alone: list[pl.LazyFrame] = []
        self._folder = TemporaryDirectory(prefix="gatehound-", ignore_cleanup_errors=True)
        self._added = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def add(self, rows: pl.LazyFrame) -> None:
        """Lays rows down; all frames have the same columns."""
        if self._number == 1:
            self._alone.append(rows)
            return
        place = Path(self._folder.name, str(self._added))
        self._added += 1
        rows.with_columns((self._key % self._number).alias(_PIECE)).sink_parquet(
            pl.PartitionBy(place, key=_PIECE, include_key=False),
            compression="lz4",
            mkdir=True,
            row_group_size=max(_LEAST, _WAITING // self._number),
        )

    def pieces(self) -> Iterator[pl.LazyFrame]:
        """The rows again; of each frame that was added, those of a key are in one piece."""
        if self._number == 1:
            if self._alone:
                yield pl.concat(self._alone)
            return
        for at in range(self._number):
            files = sorted(Path(self._folder.name).glob(f"*/{_PIECE}={at}/*.parquet"))
            if files:
                yield pl.scan_parquet(files)


def pieces(rows: pl.LazyFrame, number: int, key: pl.Expr) -> Iterator[pl.LazyFrame]:
    """The rows in so many pieces, all rows with the same key in one of them."""
    with Spill(max(number, 1), key) as spill:
        spill.add(rows)
        yield from spill.pieces()
