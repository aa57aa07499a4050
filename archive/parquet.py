"""Writing and reading the Parquet files of a table: sorted as the contract says, one partition a file."""

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from archive.storage import Place, safe_name
from data_contracts import Contract
from data_contracts.errors import RefusedError

ROW_GROUP = 131_072
_SORT_KEY_BITS = 62


@dataclass(frozen=True, slots=True)
class Staged:
    """A file that lies in a table's folder and that no version names yet.

    `path` is relative to the table's folder; `tag` is what `stage` was given; `stats` are the Delta statistics as JSON.
    """

    table: str
    path: str
    date: date | None
    rows: int
    bytes: int
    tag: str
    stats: str


def write_staged(place: Place, table: Contract, df: pl.DataFrame, tag: str) -> list[Staged]:
    """Writes a frame that conforms to the contract, one zstd Parquet file for each partition.

    Raises RefusedError when a row has no partition, or when columns or types are not the contract's.
    """
    if dict(df.schema) != dict(table.polars_schema):
        wrong = sorted(dict(set(df.schema.items()) ^ set(table.polars_schema.items())))
        raise RefusedError(
            f"{table.name}: the frame to stage does not conform to the contract in {', '.join(wrong[:10])}"
        )
    df = df.select(list(table.polars_schema))
    if df.is_empty():
        return []
    low = [c.name for c in table.columns if c.low_cardinality]
    # Dictionaries halve the time of gathering and writing; a single chunk makes the gather three times as fast.
    ready = df.rechunk().with_columns(pl.col(low).cast(pl.Categorical)) if low else df.rechunk()
    keys = ([table.partitioned_by] if table.partitioned_by else []) + list(table.sorted_by)
    if keys:
        ready = ready[sort_order(df, keys)]
    if table.partitioned_by is None:
        return [_write(place, table, ready, None, tag)]
    if ready[table.partitioned_by].null_count():
        raise RefusedError(f"{table.name}: a row without {table.partitioned_by} cannot be stored")
    staged, start = [], 0
    for length, day in ready[table.partitioned_by].rle().struct.unnest().iter_rows():
        part = ready.slice(start, length).drop(table.partitioned_by)
        staged.append(_write(place, table, part, day, tag))
        start += length
    return staged


def sort_order(df: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """Row numbers in ascending order of the keys, nulls first, ties in their present order.

    Each key becomes its rank, and the ranks one integer: about seven times as fast as sorting by several text columns.
    """
    total, bits = pl.repeat(0, df.height, dtype=pl.Int64, eager=True), 0
    for key in keys:
        ranks, highest = _ranks(df[key])
        width = highest.bit_length()
        bits += width
        if bits > _SORT_KEY_BITS:
            return df.select(pl.arg_sort_by(list(keys), maintain_order=True)).to_series()
        total = total * (1 << width) + ranks
    return total.to_frame("rank").select(pl.arg_sort_by("rank", maintain_order=True)).to_series()


def _ranks(values: pl.Series) -> tuple[pl.Series, int]:
    """Order-preserving small integers for the values, 0 for null, and the highest of them."""
    if values.dtype.is_integer() or values.dtype.is_temporal():
        numbers = values.to_physical().cast(pl.Int64)
        low, high = numbers.min(), numbers.max()
        if low is None or high is None:
            return pl.repeat(0, values.len(), dtype=pl.Int64, eager=True), 0
        span = int(str(high)) - int(str(low)) + 1
        if span.bit_length() > _SORT_KEY_BITS:
            return numbers, 1 << _SORT_KEY_BITS
        return (numbers - int(str(low)) + 1).fill_null(0), span
    if values.dtype != pl.String:
        return values.rank("dense").cast(pl.Int64).fill_null(0), values.len()
    known = values.drop_nulls().unique().sort()
    codes = values.cast(pl.Enum(known)).to_physical().cast(pl.Int64)
    return (codes + 1).fill_null(0), known.len()


def _write(place: Place, table: Contract, part: pl.DataFrame, day: date | None, tag: str) -> Staged:
    name = f"{safe_name(tag)}-{uuid.uuid4().hex}.parquet"
    relative = name if day is None else f"{table.partitioned_by}={day.isoformat()}/{name}"
    target = place.path("tables", table.name, relative)
    if place.is_local:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    part.write_parquet(
        target,
        compression="zstd",
        compression_level=1,
        row_group_size=ROW_GROUP,
        statistics=True,
        storage_options=place.storage_options,
    )
    size = _synced_size(target) if place.is_local else int(place.filesystem.info(target, refresh=True)["size"])
    return Staged(table.name, relative, day, part.height, size, tag, _statistics(part))


def _synced_size(path: str) -> int:
    """Size of a file whose content has reached the disk: a commit must not outlive what it names."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        return os.fstat(handle).st_size
    finally:
        os.close(handle)


def _statistics(part: pl.DataFrame) -> str:
    stats: dict[str, Any] = {"numRecords": part.height}
    if "ts" in part.columns and part["ts"].null_count() < part.height:
        first, last = part["ts"].min(), part["ts"].max()
        stats["minValues"], stats["maxValues"] = {"ts": _instant(first)}, {"ts": _instant(last)}
        stats["nullCount"] = {"ts": part["ts"].null_count()}
    return json.dumps(stats)


def _instant(value: Any) -> str:
    moment: datetime = value
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def scan_files(place: Place, paths: Sequence[str], schema: pl.Schema, partition: str | None) -> pl.LazyFrame:
    """Reads files of one table; columns that an older file lacks are null.

    Args:
        paths: full paths or URIs. Never a pattern: a pattern would also find files that no version names.
        schema: columns to return, in order, the partition included.
    """
    if not paths:
        return pl.LazyFrame(schema=schema)
    inside = {name: kind for name, kind in schema.items() if name != partition}
    return pl.scan_parquet(
        list(paths),
        glob=False,
        hive_partitioning=partition is not None,
        hive_schema={partition: pl.Date()} if partition else None,
        schema=inside,
        missing_columns="insert",
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(categorical_to_string="allow"),
        storage_options=place.storage_options,
    ).select(list(schema))
