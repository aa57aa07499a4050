"""Work that is done once per distinct value: log columns repeat themselves, text expressions cost by the row."""

from collections.abc import Callable, Sequence

import polars as pl


def once_each(
    frame: pl.DataFrame, keys: Sequence[str], compute: Callable[[pl.LazyFrame], pl.LazyFrame]
) -> pl.DataFrame:
    """The frame with the columns that `compute` adds to its distinct keys.

    Args:
        frame: any rows.
        keys: the columns that `compute` looks at.
        compute: adds columns to a frame of the keys alone, row by row: a row's values depend on that row only.

    Returns:
        The rows in their order, with the added columns.
    """
    few = compute(frame.lazy().select(keys).unique()).collect()
    return frame.join(few, on=list(keys), how="left", nulls_equal=True, maintain_order="left")
