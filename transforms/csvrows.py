"""CSV records (RFC 4180) to columns.

Each record is read on its own terms: whatever one record holds (a stray quote, a line break, too few fields), no other
record moves. The fast path gives Polars' CSV reader all records at once, each closed by a marker field; a record whose
marker does not come out in its place is read again alone.
"""

import csv
import io
import logging
from collections.abc import Sequence

import polars as pl

_MARK = "\x1e"  # record separator: closes each record on the fast path
_LONGEST_FIELD = 16 << 20
_LOG = logging.getLogger(__name__)


def columns(
    records: pl.LazyFrame, header: Sequence[str], want: Sequence[str] | None = None, *, column: str = "raw"
) -> pl.LazyFrame:
    """Split CSV records into text columns.

    Args:
        records: one whole record per row in `column`, without its line end; quoted fields may hold line breaks.
        header: names of the fields, in order. Of a name that occurs twice, the first field counts.
        want: names to return; None is all of them. A name that the header lacks becomes a column of nulls.
        column: where the record's text stands.

    Returns:
        `records` with a String column ``c.<name>`` for each wanted name (an empty field is null) and a Boolean
        `bad_csv`: the record does not have exactly `len(header)` fields; its columns are null. Rows and order stay.
    """
    names = list(dict.fromkeys(header if want is None else want))
    schema = dict(records.collect_schema())
    schema |= {f"c.{name}": pl.String() for name in names} | {"bad_csv": pl.Boolean()}
    return records.map_batches(
        lambda frame: _split(frame, list(header), names, column),
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
        schema=schema,
    )


def fields(record: str) -> list[str] | None:
    """The fields of one CSV record, or None if it is not exactly one record."""
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        rows = list(csv.reader(io.StringIO(record, newline="")))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _split(frame: pl.DataFrame, header: list[str], names: list[str], column: str) -> pl.DataFrame:
    if not frame.height:
        empty = [pl.Series(f"c.{name}", [], dtype=pl.String) for name in names]
        return frame.with_columns(*empty, pl.Series("bad_csv", [], dtype=pl.Boolean))
    known = [name for name in names if name in header]
    text = frame.get_column(column)
    # Quotes in pairs: after such a record, Polars' line splitter is outside of quotes, whatever stands in it.
    even = (text.str.count_matches('"', literal=True) % 2 == 0).fill_null(value=False)
    parsed = _fast(text.filter(even), header, known)
    if parsed is None:  # a record with a line break outside of quotes gave two rows
        even &= ~text.str.contains("\n", literal=True).fill_null(value=False)
        parsed = _fast(text.filter(even), header, known)
    if parsed is None:
        even = pl.repeat(value=False, n=frame.height, dtype=pl.Boolean, eager=True)
        parsed = _slow([], header, known)
    rows = _arrange(text, even, parsed, header, known)
    missing = [pl.lit(None, dtype=pl.String).alias(f"c.{name}") for name in names if name not in header]
    rows = rows.with_columns(missing).select([f"c.{name}" for name in names] + ["bad_csv"])
    return frame.hstack(rows)


def _arrange(
    text: pl.Series, even: pl.Series, parsed: pl.DataFrame, header: list[str], known: list[str]
) -> pl.DataFrame:
    """One row per record, in the records' order; those that the fast path could not place are read one by one."""
    if even.all() and not parsed.get_column("bad_csv").any():
        return parsed
    position = pl.int_range(0, len(text), eager=True)
    parsed = parsed.with_columns(position.filter(even).alias("i"))
    good = parsed.filter(~pl.col("bad_csv"))
    rest = pl.DataFrame({"i": position, "t": text}).join(good.select("i"), on="i", how="anti")
    alone = _slow(rest.get_column("t").to_list(), header, known).with_columns(rest.get_column("i"))
    return pl.concat([good, alone.select(good.columns)]).sort("i").drop("i")


def _fast(text: pl.Series, header: list[str], known: list[str]) -> pl.DataFrame | None:
    """Columns of the records by Polars' reader; None if it saw another number of rows than there are records."""
    first = {name: index for index, name in reversed(list(enumerate(header)))}
    places = [*sorted({first[name] for name in known}), len(header)]
    body = text.to_frame("t").select((pl.col("t") + f",{_MARK}").str.join("\n").cast(pl.Binary)).item()
    if not body:
        return _slow([], header, known)
    try:
        # The first bytes decide whether Polars takes it for compressed: they are not left to what was logged.
        rows = pl.read_csv(
            ("," * len(header) + _MARK + "\n").encode() + body,
            has_header=False,
            schema={str(place): pl.String() for place in range(len(header) + 1)},
            columns=places,
            extra_columns="ignore",
            missing_columns="insert",
        )
    except pl.exceptions.PolarsError as error:
        _LOG.debug("fast CSV reader gave up: %s", type(error).__name__)
        return None
    rows = rows.slice(1)
    if rows.height != len(text):
        return None
    mark = pl.col(str(len(header)))
    wanted = [pl.col(str(first[name])).alias(f"c.{name}") for name in known]
    if text.str.contains('""', literal=True).any():  # a quoted empty field comes out as "", an unquoted one as null
        wanted = [pl.when(value != "").then(value) for value in wanted]
    return rows.select(*wanted, mark.ne_missing(_MARK).alias("bad_csv"))


def _slow(texts: list[str | None], header: list[str], known: list[str]) -> pl.DataFrame:
    """The same, one record at a time."""
    found = [fields(text) if text is not None else None for text in texts]
    whole = [row if row is not None and len(row) == len(header) else None for row in found]
    data = {
        f"c.{name}": pl.Series([row[header.index(name)] or None if row else None for row in whole], dtype=pl.String)
        for name in known
    }
    return pl.DataFrame(data | {"bad_csv": pl.Series([row is None for row in whole], dtype=pl.Boolean)})
