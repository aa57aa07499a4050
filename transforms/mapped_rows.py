"""Records of any delimited, patterned or JSON log to rows of one event table, as a `Mapping` says.

Nothing in a mapping is run: it names fields, regular expressions (Rust's, which are linear in the text), fixed values
and time formats. `transforms/mapping.py` reads one from TOML; a format whose columns go by many names may hold its own.
"""

import csv
import io
from dataclasses import dataclass

import polars as pl

from data_contracts import contract
from transforms import csvrows, jsonrows, tabular
from transforms.model import IGNORED, QUARANTINED, Context, Framing

HELPERS = {"source_id": "VARCHAR", "tenant_domain": "VARCHAR"}  # columns that enrichment reads besides the contract's
LOWER = frozenset({"principal_id", "mailbox_id", "credential_id", "actor_id", "tenant_domain", "target_id"})
_HEADER = "mapping_header"
_LONGEST = 32 << 10  # characters of a field that are kept


@dataclass(frozen=True, slots=True)
class Column:
    """How one column of the table is filled: the first of some fields that is not empty, then what follows."""

    fields: tuple[str, ...]
    extract: str | None = None  # regular expression; its first group is the value
    values: tuple[tuple[str, str], ...] = ()  # what the log says, in lower case, and what the table says
    default: str | None = None  # where nothing is found, or nothing in `values` fits
    split: str | None = None  # between the entries of a list


@dataclass(frozen=True, slots=True)
class Time:
    """How a time is written: in one field, or a day and a time of day in two."""

    fields: tuple[str, ...]
    format: str = "any"  # any, iso, epoch_s, epoch_ms, epoch_us, or as strptime has it
    zone: str | None = None  # of times without an offset; None: as the caller says
    either: bool = False  # the fields are other names of one


@dataclass(frozen=True, slots=True)
class Mapping:
    """A log of some make, onto one event table."""

    name: str
    table: str
    framing: Framing
    columns: tuple[tuple[str, Column], ...]
    time: Time
    constants: tuple[tuple[str, str], ...] = ()
    delimiter: str | None = None  # of fields; None: pattern, pairs or JSON
    header: bool = False  # whether the first record names the fields
    names: tuple[str, ...] = ()  # their names where no record does
    pattern: str | None = None  # a line's regular expression; its named groups are the fields
    pairs: bool = False  # key=value
    skip: int = 0  # lines at the beginning
    comment: str | None = None  # how lines begin that are no records
    only: tuple[tuple[str, tuple[str, ...]], ...] = ()  # fields and what they must be for a record to be an event
    fold: bool = False  # field names are compared without case, blanks, - and _

    def wanted(self) -> tuple[str, ...]:
        """All fields that the mapping names, each once."""
        named = [f for _, c in self.columns for f in c.fields] + list(self.time.fields) + [f for f, _ in self.only]
        return tuple(dict.fromkeys(named))


def parse(records: pl.LazyFrame, ctx: Context, mapping: Mapping, source: str) -> pl.LazyFrame:
    """One row per record: an event of the mapping's table, ignored or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    frame = frame.with_columns(reason=_passed_over(mapping), refusal=pl.lit(None, pl.String))
    frame = _with_fields(frame, ctx, mapping)
    times = _times(frame, mapping.time, ctx)
    frame = frame.with_columns(times.to_series(0), times.to_series(1), _text(mapping.time).alias("ts_raw"))
    values, wrong = _values(frame, ctx, mapping)
    frame = frame.hstack(values)
    unselected = [~pl.col("f." + f).str.to_lowercase().is_in(list(v)).fill_null(value=False) for f, v in mapping.only]
    reason = pl.coalesce("reason", pl.when(pl.any_horizontal(unselected or [pl.lit(value=False)])).then(
        pl.lit(f"{source}: not selected")
    ))  # fmt: skip
    refusal = pl.coalesce(
        "refusal", *wrong,
        pl.when(pl.col("ts_raw").is_null()).then(pl.lit(f"{source}: no time"))
        .when(pl.col("ts").is_null()).then(pl.lit(f"{source}: time not readable")),
        *_contradictions(values.columns),
    )  # fmt: skip
    frame = frame.with_columns(why=reason).with_columns(no=pl.when(pl.col("why").is_null()).then(refusal))
    event = pl.col("why").is_null() & pl.col("no").is_null()
    names = [name for name in values.columns if name != "reason_" and not name.startswith("wrong.")]
    told = pl.col("reason_") if "reason_" in values.columns else pl.lit(None, pl.String)
    kept = {"source": pl.lit(source), "ts": pl.col("ts"), "ts_raw": pl.col("ts_raw"), "ts_basis": pl.col("ts_basis")}
    return frame.lazy().select(
        "record_no", "byte_offset", "byte_length",
        pl.when(event).then(pl.lit(mapping.table)).when(pl.col("no").is_not_null()).then(pl.lit(QUARANTINED))
        .otherwise(pl.lit(IGNORED)).alias("disposition"),
        pl.when(event).then(told).otherwise(pl.coalesce("why", "no")).alias("reason"),
        *(pl.when(event).then(value).alias(name) for name, value in kept.items()),
        *(pl.when(event).then(pl.col(name)).alias(name) for name in names),
    )  # fmt: skip


def _contradictions(names: list[str]) -> list[pl.Expr]:
    """What a table's contract forbids between columns: there it would refuse the whole file."""
    found: list[pl.Expr] = []
    if "ts_end" in names:
        found.append(pl.when(pl.col("ts_end") < pl.col("ts")).then(pl.lit("it ends before it begins")))
    if "credential_type" in names:
        unnamed = pl.col("credential_id").is_null() if "credential_id" in names else pl.lit(value=True)
        certificate = pl.col("credential_type") == "cert"
        found.append(pl.when(certificate & unnamed).then(pl.lit("a certificate without its thumbprint or key id")))
    return found


def _passed_over(mapping: Mapping) -> pl.Expr:
    """Why a record is no record of the log; null for the others."""
    blank = pl.col("raw").str.strip_chars() == ""
    skipped = pl.col("record_no") < mapping.skip
    comment = pl.col("raw").str.starts_with(mapping.comment) if mapping.comment else pl.lit(value=False)
    return (
        pl.when(skipped).then(pl.lit("line before the records"))
        .when(blank).then(pl.lit("blank line"))
        .when(comment).then(pl.lit("comment"))
    )  # fmt: skip


def _with_fields(frame: pl.DataFrame, ctx: Context, mapping: Mapping) -> pl.DataFrame:
    """Adds ``f.<name>`` (text, null where empty) for each wanted field, and says what could not be split."""
    if mapping.framing == "json" or (mapping.delimiter is None and not mapping.pairs and mapping.pattern is None):
        found = _json(frame, mapping)
    elif mapping.pairs:
        found = _pairs(frame, mapping)
    elif mapping.pattern is not None:
        found = _patterned(frame, mapping)
    else:
        found = _delimited(frame, ctx, mapping)
    absent = [pl.lit(None, pl.String).alias("f." + n) for n in mapping.wanted() if "f." + n not in found.columns]
    found = found.with_columns(absent)
    text = [pl.col("f." + name).str.strip_chars() for name in mapping.wanted()]
    return found.with_columns(pl.when(t != "").then(t) for t in text)


def folded(name: str) -> str:
    """A field's name without case, blanks, - and _."""
    return "".join(c for c in name.casefold() if c not in " -_.\ufeff")


def _json(frame: pl.DataFrame, mapping: Mapping) -> pl.DataFrame:
    """Fields of JSON objects; ``a/b`` is the field b of the object a."""
    paths = mapping.wanted()
    text = pl.col("raw")
    for name in paths if mapping.fold else ():
        text = text.str.replace_all(rf'(^|[^\\])"(?i:{name.replace("_", "[ _.-]?")})"\s*:', f'${{1}}"{name}":')
    text, names = tabular.plain_keys(text, dict.fromkeys(key for path in paths for key in path.split("/")))
    tree: dict[str, object] = {}
    for path in paths:
        _plant(tree, [names[key] for key in path.split("/")])
    lazy = jsonrows.decode(frame.lazy().with_columns(text.alias("j_raw")), _shape(tree), "j_raw")

    def value(path: str) -> pl.Expr:
        found = pl.col("j")
        for key in path.split("/"):
            found = found.struct.field(names[key])
        return found

    fields = [value(path).alias("f." + path) for path in paths]
    bad = pl.when(pl.col("bad_json")).then(pl.lit("no JSON object"))
    return lazy.with_columns(*fields, refusal=pl.coalesce("refusal", bad)).drop("j_raw", "j", "bad_json").collect()


def _plant(tree: dict[str, object], path: list[str]) -> None:
    for key in path[:-1]:
        branch = tree.setdefault(key, {})
        if not isinstance(branch, dict):
            branch = tree[key] = {}
        tree = branch
    tree.setdefault(path[-1], None)


def _shape(tree: dict[str, object]) -> pl.Struct:
    return pl.Struct({key: _shape(branch) if isinstance(branch, dict) else pl.String() for key, branch in tree.items()})


def _pairs(frame: pl.DataFrame, mapping: Mapping) -> pl.DataFrame:
    """Fields of key=value lines; a value in quotes is one, whatever stands in it."""
    end = mapping.delimiter or " "
    plain = r"\s" if end == " " else "".join(f"\\x{{{ord(c):x}}}" for c in end)
    tokens = pl.col("raw").str.extract_all(rf'[A-Za-z0-9_.@/-]{{1,64}}=(?:"(?:[^"\\]|\\.)*"|[^{plain}]*)')
    fields = []
    for name in mapping.wanted():
        own = pl.element().filter(pl.element().str.starts_with(name + "="))
        value = pl.col("tokens").list.eval(own).list.first().str.slice(len(name) + 1)
        quoted = value.str.starts_with('"') & value.str.ends_with('"') & (value.str.len_bytes() > 1)
        inner = value.str.slice(1, value.str.len_chars().cast(pl.Int64) - 2).str.replace_all(r"\\(.)", "$1")
        fields.append(pl.when(quoted).then(inner).otherwise(value).alias("f." + name))
    nothing = pl.when(pl.col("tokens").list.len() == 0).then(pl.lit("no key=value in the line"))
    lines = frame.lazy().with_columns(tokens.alias("tokens"))
    return lines.with_columns(*fields, refusal=pl.coalesce("refusal", nothing)).drop("tokens").collect()


def _patterned(frame: pl.DataFrame, mapping: Mapping) -> pl.DataFrame:
    assert mapping.pattern is not None
    groups = frame["raw"].str.extract_groups(mapping.pattern).struct.unnest()
    fits = frame["raw"].str.contains(mapping.pattern)
    bad = pl.when(~fits).then(pl.lit("line does not fit the pattern"))
    fields = [groups[name].alias("f." + name) for name in groups.columns if name in mapping.wanted()]
    return frame.with_columns(*fields, refusal=pl.coalesce("refusal", bad))


def _delimited(frame: pl.DataFrame, ctx: Context, mapping: Mapping) -> pl.DataFrame:
    header = _header(frame, ctx, mapping)
    if header is None:
        return frame
    text, names = header
    if text is not None:
        again = pl.when(pl.col("raw").str.strip_prefix("\ufeff") == text).then(pl.lit("header"))
        frame = frame.with_columns(reason=pl.coalesce("reason", again))
    if not mapping.fold and _lacks(names, mapping):
        missing = pl.when(pl.col("reason").is_null()).then(pl.lit("the header lacks a field that the mapping names"))
        return frame.with_columns(refusal=missing)
    wanted = [n for n in mapping.wanted() if n in names]
    if mapping.delimiter == ",":
        split = csvrows.columns(frame.lazy(), names, wanted).collect()
        split = split.rename({"c." + n: "f." + n for n in wanted}).rename({"bad_csv": "bad"})
    else:
        split = _split(frame, names, wanted, mapping.delimiter or "\t")
    width = pl.when(pl.col("reason").is_null() & pl.col("bad")).then(
        pl.lit("the record does not have as many fields as the header")
    )
    return split.with_columns(refusal=pl.coalesce("refusal", width)).drop("bad")


def _lacks(names: list[str], mapping: Mapping) -> bool:
    """Whether some column, time or choice finds none of its fields."""
    choices = [column.fields for _, column in mapping.columns] + [(field,) for field, _ in mapping.only]
    choices += [mapping.time.fields] if mapping.time.either else [(field,) for field in mapping.time.fields]
    return any(not set(fields) & set(names) for fields in choices)


def _header(frame: pl.DataFrame, ctx: Context, mapping: Mapping) -> tuple[str | None, list[str]] | None:
    """The header's text and the names of the fields; kept from block to block."""
    if not mapping.header:
        return None, list(mapping.names)
    known: tuple[str, list[str]] | None = ctx.carry.get(_HEADER)
    if known is None:
        first = frame.filter(pl.col("reason").is_null())["raw"].head(1)
        if not len(first):
            return None
        text = str(first.item()).removeprefix("\ufeff")
        names = _cut(text, mapping.delimiter or "\t") or [text]
        known = ctx.carry[_HEADER] = (text, _named(names, mapping))
    return known


def _named(names: list[str], mapping: Mapping) -> list[str]:
    if not mapping.fold:
        return [n.strip() for n in names]
    wanted = {folded(n): n for n in mapping.wanted()}
    return [wanted.get(folded(n), n.strip()) for n in names]


def _cut(text: str, delimiter: str) -> list[str] | None:
    """The fields of one line, None if it is not exactly one record."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _split(frame: pl.DataFrame, names: list[str], wanted: list[str], delimiter: str) -> pl.DataFrame:
    """Fields of lines with another delimiter than a comma; those with quotes are read one by one."""
    text = frame["raw"].str.strip_prefix("\ufeff")
    quoted = text.str.contains('"', literal=True).fill_null(value=False)
    parts = text.str.split(delimiter)
    if quoted.any():
        marked = zip(text.to_list(), quoted.to_list(), strict=True)
        cut = pl.Series([_cut(t, delimiter) if q else None for t, q in marked], dtype=pl.List(pl.String))
        parts = parts.zip_with(~quoted, cut)
    good = (parts.list.len() == len(names)).fill_null(value=False)
    fields = [parts.list.get(names.index(n), null_on_oob=True).alias("f." + n) for n in wanted]
    return frame.with_columns(*fields, (~good).alias("bad"))


def _text(time: Time) -> pl.Expr:
    """A time as the record has it."""
    fields = ["f." + f for f in time.fields]
    joined = pl.coalesce(fields) if time.either else pl.concat_str(fields, separator=" ")
    return joined.str.slice(0, 100)


def _times(frame: pl.DataFrame, time: Time, ctx: Context) -> pl.DataFrame:
    text = frame.select(_text(time)).to_series()
    if time.format == "any":
        return tabular.any_times(text, ctx, time.zone)
    if time.format == "iso":
        return tabular.iso_times(text, ctx, time.zone)
    if time.format in EPOCHS:
        return tabular.epoch_times(text, EPOCHS[time.format])
    if "%z" in time.format or "%:z" in time.format or "%#z" in time.format:
        read = text.str.to_datetime(time.format, strict=False, time_unit="us").dt.convert_time_zone("UTC")
        basis = pl.when(pl.col("ts").is_not_null()).then(pl.lit("offset")).alias("ts_basis")
        return read.alias("ts").to_frame().with_columns(basis)
    naive = text.str.to_datetime(time.format, strict=False, time_unit="us").cast(pl.Int64)
    return tabular.placed(naive, pl.Series([None], dtype=pl.Int64).new_from_index(0, len(naive)), ctx, time.zone)


EPOCHS = {"epoch_s": 1, "epoch_ms": 1000, "epoch_us": 1_000_000}


def _values(frame: pl.DataFrame, ctx: Context, mapping: Mapping) -> tuple[pl.DataFrame, list[pl.Expr]]:
    """The table's columns (`reason` as ``reason_``), and for each that may be wrong why a row is refused."""
    kinds = {c.name: c.type for c in contract(mapping.table).columns} | HELPERS
    columns: dict[str, pl.Series] = {}
    wrong: list[pl.Expr] = []
    for name, column in mapping.columns:
        text = frame.select(_value(column).alias(name)).to_series()
        if name in LOWER:
            text = text.str.to_lowercase()
        held = _typed(text, kinds[name], column, mapping.time, ctx)
        if kinds[name] not in ("VARCHAR", "VARCHAR[]"):
            lost = text.is_not_null() & held.is_null()
            columns[f"wrong.{name}"] = lost
            wrong.append(pl.when(pl.col(f"wrong.{name}")).then(pl.lit(f"{name} is not readable")))
        columns["reason_" if name == "reason" else name] = held
    for name, value in mapping.constants:
        text = pl.Series([value], dtype=pl.String).new_from_index(0, frame.height)
        columns["reason_" if name == "reason" else name] = _typed(text, kinds[name], Column(()), mapping.time, ctx)
    if "credential_id" not in columns and "principal_id" in columns and "credential_type" in columns:
        password = columns["credential_type"] == "password"
        mark = pl.Series(["pw:"]).new_from_index(0, frame.height) + columns["principal_id"]
        columns["credential_id"] = mark.set(~password.fill_null(value=False), None)
    return pl.DataFrame([series.alias(name) for name, series in columns.items()]), wrong


def _value(column: Column) -> pl.Expr:
    text = pl.coalesce(pl.col("f." + f) for f in column.fields).str.slice(0, _LONGEST)
    if column.extract is not None:
        text = text.str.extract(column.extract, 1).str.strip_chars()
    if column.values:
        known = dict(column.values)
        text = text.str.to_lowercase().replace_strict(
            list(known), list(known.values()), default=None if column.default is not None else text
        )
    return text if column.default is None else text.fill_null(column.default)


def _typed(text: pl.Series, kind: str, column: Column, time: Time, ctx: Context) -> pl.Series:
    frame = text.alias("t").to_frame()
    if kind == "BIGINT":
        return frame.select(tabular.whole_number(pl.col("t"))).to_series()
    if kind == "BOOLEAN":
        return frame.select(tabular.truth(pl.col("t"))).to_series()
    if kind == "VARCHAR[]":
        return frame.select(
            pl.col("t").str.split(column.split or ";").list.eval(pl.element().str.strip_chars())
        ).to_series()
    if kind.startswith("TIMESTAMP"):
        one = Time(("t",), time.format if len(time.fields) == 1 or time.either else "any", time.zone)
        return _times(text.alias("f.t").to_frame(), one, ctx).to_series(0)
    return text
