"""JSON records to a struct column of a declared shape, whatever the records hold.

DuckDB's JSON reader does the work: it neither recurses nor fails on a value of another type than declared (an object
where a text is declared stays as its JSON text), and it is faster than Polars' reader, which refuses the whole block
for one bad row.
"""

import json
import logging
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    import duckdb

MAX_NESTING = 64
_LOG = logging.getLogger(__name__)
_LOCAL = threading.local()
_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$-]*")
_SCALARS: dict[Any, str] = {pl.String: "VARCHAR", pl.Int64: "BIGINT", pl.Float64: "DOUBLE", pl.Boolean: "BOOLEAN"}
_OPENING = r"[\[{]"
_BLANKS = "\ufeff \t\r\n"
_NO_STRUCTURE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^\[\]{}"]+', re.DOTALL)


def decode(records: pl.LazyFrame, schema: pl.Struct, column: str = "raw") -> pl.LazyFrame:
    """Read JSON objects into a struct.

    Args:
        records: one JSON object per row in `column`.
        schema: names and types wanted, of String, Int64, Float64, Boolean, List and Struct. A String takes any value:
            numbers and booleans as text, objects and arrays as JSON text.
        column: where the JSON stands.

    Returns:
        `records` with `j` (the struct; a field that is missing or does not fit its type is null) and the Boolean
        `bad_json` (no JSON object, nested deeper than 64, or null; `j` is null). Rows and their order stay. Of a key
        that occurs twice, the first counts. Where the first level of `schema` has a List or a Struct, the record may
        also hold it as JSON text in a string; one object counts as a list of one; any other value becomes a list of
        one whose field `Value` is that text. Half a surrogate pair and control characters in strings are tolerated:
        the former becomes U+FFFD.
    """
    out = dict(records.collect_schema()) | {"j": schema, "bad_json": pl.Boolean()}
    return records.map_batches(
        lambda frame: frame.hstack(_decode(frame.get_column(column), schema)),
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
        schema=out,
    )


def _decode(text: pl.Series, schema: pl.Struct) -> pl.DataFrame:
    text = text.rename("t")
    if not text.str.starts_with("{").all(ignore_nulls=False):
        text = text.str.strip_chars_start(_BLANKS)
        text = pl.select(pl.when(text.str.starts_with("{")).then(text).alias("t")).to_series()
    deep = _too_deep(text)
    if deep.any():
        text = pl.select(pl.when(~deep).then(text).alias("t")).to_series()
    odd = text.str.contains(_odd_pattern(schema)).fill_null(value=False)
    if not odd.any():
        return _run(text, schema, lenient=False)
    position = pl.int_range(0, len(text), eager=True)
    parts = [
        _run(text.filter(mask), schema, lenient=lenient).with_columns(position.filter(mask).alias("i"))
        for mask, lenient in ((~odd, False), (odd, True))
    ]
    return pl.concat(parts).sort("i").drop("i")


def _too_deep(text: pl.Series) -> pl.Series:
    """Which texts nest deeper than allowed; never deeper than that for all others.

    No value is nested deeper than its opening brackets less those that follow a sibling (``},{``): cheap to count, and
    it clears all but the odd record, which is then looked at bracket by bracket.
    """
    suspect = (text.str.count_matches(_OPENING) > MAX_NESTING).fill_null(value=False)
    if suspect.any():
        siblings = text.filter(suspect).str.count_matches(r"\}, ?\{")
        opening = text.filter(suspect).str.count_matches(_OPENING)
        suspect = suspect.scatter(suspect.arg_true(), opening - siblings > MAX_NESTING)
    if not suspect.any():
        return suspect
    return suspect.scatter(suspect.arg_true(), [nesting(value) > MAX_NESTING for value in text.filter(suspect)])


def nesting(text: str) -> int:
    """Depth of the deepest array or object in a JSON text; brackets in strings do not count."""
    depth = deepest = 0
    for character in _NO_STRUCTURE.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _odd_pattern(schema: pl.Struct) -> str:
    """What a record looks like that holds something else where a list or a struct is declared (some others match, too).

    Without the quote before the names: with it, the search is seven times slower.
    """
    lists = "|".join(re.escape(f.name) for f in schema.fields if isinstance(f.dtype, pl.List))
    structs = "|".join(re.escape(f.name) for f in schema.fields if isinstance(f.dtype, pl.Struct))
    parts = [f'(?:{names})"\\s*:\\s*[^\\s{opening}n]' for names, opening in ((lists, "\\["), (structs, "{")) if names]
    return "|".join(parts) or r"[^\s\S]"


def _run(text: pl.Series, schema: pl.Struct, *, lenient: bool) -> pl.DataFrame:
    """Decode in DuckDB; one text that is no JSON fails the first query, and the second then leaves such texts out."""
    import duckdb

    if not len(text):
        return pl.DataFrame(schema={"j": schema, "bad_json": pl.Boolean})
    query = _lenient_query(schema) if lenient else f"select json_transform(t, '{_shape(schema)}') as j from texts"
    try:
        found, bad = _query(query, text), text.is_null()
    except (duckdb.Error, UnicodeDecodeError):  # its message may cut a character of the record in two
        bad = ~_query("select coalesce(json_valid(t), false) as v from texts", text)
        repaired = [repair(value) if value is not None else None for value in text.filter(bad)]
        text = text.scatter(bad.arg_true(), pl.Series(repaired, dtype=pl.String))
        found, bad = _query(query, text), text.is_null()
    return pl.DataFrame({"j": found if found.dtype == schema else found.cast(schema), "bad_json": bad})


def _query(query: str, text: pl.Series) -> pl.Series:
    """The one column that a query of ours gives over the table `texts` (column `t`)."""
    connection = _connection()
    connection.register("texts", text.to_frame("t").to_arrow())
    try:
        frame = pl.from_arrow(connection.sql(query).to_arrow_table())
    finally:
        connection.unregister("texts")
    assert isinstance(frame, pl.DataFrame)
    return frame.to_series()


def _connection() -> "duckdb.DuckDBPyConnection":
    """A connection of this thread and process (opening one takes 30 ms); it can neither read nor write a file."""
    import duckdb

    if getattr(_LOCAL, "process", None) != os.getpid():
        _LOCAL.connection = duckdb.connect(":memory:", config={"enable_external_access": "false", "temp_directory": ""})
        _LOCAL.process = os.getpid()
    connection: duckdb.DuckDBPyConnection = _LOCAL.connection
    return connection


def repair(text: str) -> str | None:
    """The JSON text of an object that only a stricter reader refuses, or None if it is none."""
    try:
        value = json.loads(
            text, strict=False, parse_int=str, parse_float=str, parse_constant=str, object_pairs_hook=_first
        )
        if not isinstance(value, dict):
            return None
        encoded = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        _LOG.debug("record is not JSON: %s", type(error).__name__)
        return None
    return encoded.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _first(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _shape(dtype: Any) -> str:
    """A type as json_transform takes it."""
    if isinstance(dtype, pl.Struct):
        for field in dtype.fields:
            assert _NAME.fullmatch(field.name), field.name
        return "{" + ",".join(f'"{field.name}":{_shape(field.dtype)}' for field in dtype.fields) + "}"
    if isinstance(dtype, pl.List):
        return f"[{_shape(dtype.inner)}]"
    return f'"{_SCALARS[dtype.base_type()]}"'


def _lenient_query(schema: pl.Struct) -> str:
    """The same, with each list and struct of the first level read as text first, and from that text by what it is."""
    flat = pl.Struct([pl.Field(f.name, pl.String() if f.dtype.is_nested() else f.dtype) for f in schema.fields])
    columns = ", ".join(f'"{f.name}" := {_lenient_field(f.name, f.dtype)}' for f in schema.fields)
    return (
        f"with flat as (select json_transform(t, '{_shape(flat)}') as j from texts) "
        f"select case when j is not null then struct_pack({columns}) end as j from flat"
    )


def _lenient_field(name: str, dtype: Any) -> str:
    value, shape = f'j."{name}"', _shape(dtype)
    if isinstance(dtype, pl.Struct):
        return f"case when json_valid({value}) then json_transform({value}, '{shape}') end"
    if not isinstance(dtype, pl.List):
        return value
    inner = dtype.inner
    holds_value = isinstance(inner, pl.Struct) and any(field.name == "Value" for field in inner.fields)
    text = f"json_transform(json_array(json_object('Value', {value})), '{shape}')" if holds_value else "null"
    return (
        f"case when {value} is null then null when not json_valid({value}) then {text} "
        f"when json_type({value}) = 'ARRAY' then json_transform({value}, '{shape}') "
        f"when json_type({value}) = 'OBJECT' then json_transform('[' || {value} || ']', '{shape}') else {text} end"
    )
