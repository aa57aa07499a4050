"""Mappings: TOML that says how a log of unknown make becomes rows of an event table. See docs/mapping.md.

A mapping is data; nothing in it is run. It is checked whole before a record is read: a wrong one stops with the file,
the place in it, and what may stand there.
"""

import hashlib
import re
import tomllib
from collections.abc import Mapping as Table
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import polars as pl

from data_contracts import contract
from data_contracts.errors import UsageError
from transforms import mapped_rows
from transforms.mapped_rows import EPOCHS, HELPERS, Column, Mapping, Time
from transforms.model import Context, Format, Framing
from transforms.syslog_time import clock

TABLES = ("access_events", "mail_events", "change_events", "gateway_jobs")
MOST_BYTES = 1 << 20
# What enrichment and ingest fill, whatever the source.
_FILLED = (
    "event_uid", "date", "ts", "ts_raw", "ts_basis", "source", "tenant_basis", "evidence_id", "record_no",
    "byte_offset", "byte_length", "src_ip", "src_ip_key", "src_port", "src_net", "src_asn", "src_org", "src_cc",
    "src_class", "dst_ip", "dst_ip_key", "dst_port", "dst_net", "ua_family", "client_fp", "rcpt_domain",
)  # fmt: skip
_TOP = ("name", "title", "table", "records", "time", "constants", "columns", "only")
_RECORDS = ("framing", "delimiter", "header", "names", "skip", "comment", "pattern", "pairs")
_COLUMN = ("from", "extract", "values", "default", "split")
_DATED = ("%Y", "%y", "%F", "%D", "%s", "%x", "%+")
_LONGEST_PATTERN = 2000
_DEFAULTS = {"agg_level": "event"}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the file something stands, for messages."""

    file: str
    part: str = ""

    def at(self, part: str) -> "_Place":
        return _Place(self.file, f"{self.part}.{part}" if self.part else part)

    def wrong(self, fact: str, hint: str | None = None) -> UsageError:
        where = f"[{self.part}] " if self.part else ""
        return UsageError(f"{self.file}: {where}{fact}", hint)


def load(text: str, file: str = "mapping") -> Mapping:
    """Reads and checks a mapping.

    Args:
        text: TOML.
        file: its name, for messages.

    Raises:
        UsageError: it is no TOML, or says something that cannot be; with file and place.
    """
    place = _Place(file)
    if len(text.encode()) > MOST_BYTES:
        raise place.wrong("a mapping of more than 1 MiB is not read")
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise place.wrong(f"no TOML: {error}") from error
    except RecursionError as error:
        raise place.wrong("nested too deep") from error
    _known(given, _TOP, place)
    name = _text(given, "name", place)
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", name):
        raise place.wrong(f"name = {name!r} is no name", "lower-case letters, digits, - and _, at most 40")
    table = _text(given, "table", place)
    if table not in TABLES:
        raise place.wrong(f"table = {table!r}: there is no such event table", "one of " + ", ".join(TABLES))
    shape = _records(_part(given, "records", place), place.at("records"))
    mapping = Mapping(
        name=name, table=table, **shape,
        time=_time(_part(given, "time", place), place.at("time")),
        constants=_constants(_part(given, "constants", place), table, place.at("constants")),
        columns=_columns(_part(given, "columns", place), table, place.at("columns")),
        only=_only(_part(given, "only", place), place.at("only")),
    )  # fmt: skip
    return _complete(mapping, place)


@dataclass(frozen=True, slots=True)
class MappingFile:
    """A mapping as it is handed on, also to another machine: its text, and the name of its file for messages."""

    text: str
    file: str

    @property
    def sha256(self) -> str:
        """Of the text as UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def framing(self) -> Framing:
        """What a record is to the mapping. Raises as `load` does."""
        return _loaded(self.text, self.file).framing

    @property
    def format(self) -> Format:
        """The format that it describes; its name is ``mapping:`` and the mapping's own. Raises as `load` does."""
        return _format(self.text, self.file)


@cache
def _loaded(text: str, file: str) -> Mapping:
    return load(text, file)


@cache
def _format(text: str, file: str) -> Format:
    mapping = _loaded(text, file)
    name = f"mapping:{mapping.name}"
    title = tomllib.loads(text).get("title", mapping.name)

    def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
        return mapped_rows.parse(records, ctx, mapping, name)

    return Format(name=name, title=str(title), spec=file, tables=(mapping.table,), parse=parse)


def _known(given: Table[str, Any], names: tuple[str, ...], place: _Place) -> None:
    for key in given:
        if key not in names:
            raise place.wrong(f"{key!r} is not known here", "one of " + ", ".join(names))


def _part(given: Table[str, Any], name: str, place: _Place) -> dict[str, Any]:
    found = given.get(name, {})
    if not isinstance(found, dict):
        raise place.at(name).wrong("must be a table")
    return found


def _text(given: Table[str, Any], name: str, place: _Place) -> str:
    found = given.get(name)
    if not isinstance(found, str) or not found:
        raise place.wrong(f"{name} is missing" if found is None else f"{name} must be a text that is not empty")
    return found


def _texts(given: Any, name: str, place: _Place) -> tuple[str, ...]:
    found = [given] if isinstance(given, str) else given
    if not isinstance(found, list) or not found or not all(isinstance(v, str) and v for v in found):
        raise place.wrong(f"{name} must be a text or a list of texts, none of them empty")
    return tuple(found)


def _records(given: dict[str, Any], place: _Place) -> dict[str, Any]:
    """The part of a Mapping that says what a record and its fields are."""
    _known(given, _RECORDS, place)
    framing = given.get("framing", "lines")
    if framing not in ("lines", "csv", "json"):
        raise place.wrong(f"framing = {framing!r}", "lines, csv or json")
    delimiter = given.get("delimiter", "," if framing == "csv" else None)
    pairs, header, skip = given.get("pairs", False), given.get("header", False), given.get("skip", 0)
    if delimiter is not None and (not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n\\'):
        raise place.wrong("delimiter must be one character, and neither quote, backslash nor line end")
    for key, value, kind in (("pairs", pairs, bool), ("header", header, bool), ("skip", skip, int)):
        if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
            raise place.wrong(f"{key} must be " + ("true or false" if kind is bool else "a number from 0"))
    comment = given.get("comment")
    if comment is not None and (not isinstance(comment, str) or not comment):
        raise place.wrong("comment must be a text that is not empty")
    names = _texts(given["names"], "names", place) if "names" in given else ()
    pattern = _pattern(given["pattern"], place, named=True) if "pattern" in given else None
    ways = [framing == "json", pairs, pattern is not None, delimiter is not None and not pairs]
    if sum(ways) != 1:
        raise place.wrong(
            "it is not clear what the fields of a record are", "exactly one of: json, a delimiter, pairs, a pattern"
        )
    if delimiter is not None and not pairs and header == bool(names):
        raise place.wrong("the fields need names, from one place", "header = true, or names = [...]")
    if (header or names) and (delimiter is None or pairs):
        raise place.wrong("header and names are for records with a delimiter")
    if framing == "csv" and delimiter not in (",", None):
        framing = "lines"  # records that span lines are found by commas only
    return {
        "framing": cast("Framing", framing), "delimiter": delimiter, "header": header, "names": names,
        "pattern": pattern, "pairs": pairs, "skip": skip, "comment": comment,
    }  # fmt: skip


def _pattern(given: Any, place: _Place, *, named: bool) -> str:
    """A regular expression that Polars takes, with named groups or with one group at least."""
    if not isinstance(given, str) or not given or len(given) > _LONGEST_PATTERN:
        raise place.wrong(f"a pattern must be a text of at most {_LONGEST_PATTERN} characters")
    try:
        groups = pl.Series([""]).str.extract_groups(given).struct.fields
        pl.Series([""]).str.contains(given)
    except (pl.exceptions.PolarsError, BaseException) as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        fact = str(error).splitlines()[-1] if str(error) else "not understood"
        raise place.wrong(f"the pattern {given!r} is no regular expression: {fact}") from error
    if named and not any(not g.isdigit() for g in groups):
        raise place.wrong("the pattern has no named group", "(?<name>...) for each field")
    if not groups:
        raise place.wrong(f"the pattern {given!r} has no group", "put what is wanted in (...)")
    return given


def _time(given: dict[str, Any], place: _Place) -> Time:
    _known(given, ("from", "format", "zone"), place)
    fields = _texts(given.get("from"), "from", place)
    if len(fields) > 2:
        raise place.wrong("from must be one field, or two: the day and the time of day")
    written = given.get("format", "iso")
    zone = given.get("zone")
    if not isinstance(written, str):
        raise place.wrong("format must be a text")
    if written not in (*EPOCHS, "iso", "any"):
        if not any(code in written for code in _DATED):
            raise place.wrong(
                f"format = {written!r} has no year", f"iso, {', '.join(EPOCHS)}, or strptime with day and year"
            )
        _try_format(written, place)
    if zone is not None:
        _try_zone(zone, place)
    return Time(fields, written, zone)


def _try_format(written: str, place: _Place) -> None:
    try:
        found = pl.Series(["x"]).str.to_datetime(written, strict=False, time_unit="us")
        dated = found.dtype
    except pl.exceptions.PolarsError as error:
        raise place.wrong(f"format = {written!r} is no time format: {str(error).splitlines()[0]}") from error
    assert isinstance(dated, pl.Datetime)


def _try_zone(zone: Any, place: _Place) -> None:
    nothing = pl.DataFrame({"month": [None], "intra": [None], "naive": [0], "offset": [None]})
    kinds = {"month": pl.Int8, "intra": pl.Int64, "naive": pl.Int64, "offset": pl.Int64}
    try:
        clock(nothing.cast(kinds), Context("", tz=zone if isinstance(zone, str) else ""))  # type: ignore[arg-type]
    except UsageError as error:
        raise place.wrong(f"zone = {zone!r} is not known", "an IANA name, or an offset such as +02:00") from error


def _kinds(table: str) -> dict[str, str]:
    """Columns that a mapping may fill, and their types."""
    return {c.name: c.type for c in contract(table).columns if c.name not in _FILLED} | HELPERS


def _checked_name(name: str, table: str, place: _Place) -> None:
    if name in _kinds(table):
        return
    if name in _FILLED:
        hint = f"map {name[:3]}_ip_raw" if name.startswith(("src_ip", "dst_ip", "src_port")) else "leave it out"
        hint = "see [time]" if name in ("ts", "ts_raw", "ts_basis") else hint
        raise place.wrong(f"{name} is filled by gatehound", hint)
    raise place.wrong(f"{table} has no column {name}", "one of " + ", ".join(sorted(_kinds(table))))


def _check_value(name: str, value: str, table: str, place: _Place) -> None:
    """Raises where a column takes certain values only, and this is none."""
    enum = next((c.enum for c in contract(table).columns if c.name == name), None)
    if enum and value not in enum:
        raise place.wrong(f"{name} cannot be {value!r}", "one of " + ", ".join(enum))


def _constants(given: dict[str, Any], table: str, place: _Place) -> tuple[tuple[str, str], ...]:
    found = []
    for name, value in given.items():
        _checked_name(name, table, place)
        if not isinstance(value, (str, int)):
            raise place.wrong(f"{name} must be a text, a whole number, true or false")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        _check_value(name, text, table, place)
        found.append((name, text))
    return tuple(found)


def _columns(given: dict[str, Any], table: str, place: _Place) -> tuple[tuple[str, Column], ...]:
    return tuple((name, _column(name, value, table, place)) for name, value in given.items())


def _column(name: str, given: Any, table: str, place: _Place) -> Column:
    _checked_name(name, table, place)
    here = place.at(name)
    if not isinstance(given, dict):
        return Column(_texts(given, name, place))
    _known(given, _COLUMN, here)
    fields = _texts(given.get("from"), "from", here)
    extract = _pattern(given["extract"], here, named=False) if "extract" in given else None
    values = given.get("values", {})
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise here.wrong("values must be a table of texts", 'values = { "OK" = "success" }')
    texts = {key: given[key] for key in ("default", "split") if key in given}
    for key, text in texts.items():
        if not isinstance(text, str) or not text:
            raise here.wrong(f"{key} must be a text that is not empty")
    for value in (*values.values(), *([texts["default"]] if "default" in texts else [])):
        _check_value(name, value, table, here)
    if "split" in texts and _kinds(table)[name] != "VARCHAR[]":
        raise here.wrong(f"{name} is no list", "leave split out")
    return Column(fields, extract, tuple((k.lower(), v) for k, v in values.items()), **texts)


def _only(given: dict[str, Any], place: _Place) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((name, tuple(v.lower() for v in _texts(value, name, place))) for name, value in given.items())


def _complete(mapping: Mapping, place: _Place) -> Mapping:
    """Checks that all fields exist and the table's required columns are filled; adds what goes without saying."""
    known = mapping.names
    if mapping.pattern is not None:
        known = tuple(pl.Series([""]).str.extract_groups(mapping.pattern).struct.fields)
    for field in mapping.wanted() if known else ():
        if field not in known:
            raise place.wrong(f"there is no field {field!r}", "the fields are " + ", ".join(known))
    filled = {name for name, _ in (*mapping.columns, *mapping.constants)}
    twice = {n for n, _ in mapping.columns} & {n for n, _ in mapping.constants}
    if twice:
        raise place.wrong(f"{min(twice)} stands in both [columns] and [constants]")
    required = [c.name for c in contract(mapping.table).columns if c.required and c.name not in _FILLED]
    added = tuple((n, v) for n, v in _DEFAULTS.items() if n in required and n not in filled)
    lacking = [n for n in required if n not in filled and n not in _DEFAULTS]
    if lacking:
        raise place.wrong(
            f"{mapping.table} needs {', '.join(lacking)}", "map it in [columns] or give it in [constants]"
        )
    return replace(mapping, constants=mapping.constants + added)
