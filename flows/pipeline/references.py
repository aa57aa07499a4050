"""Reference tables: from the analyst's CSV files into the archive, and from the archive to the enrichment."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from archive.store import Archive
from data_contracts import contract, names
from data_contracts.errors import RefusedError, UsageError
from transforms.enrich import References

_LOWER = {
    "credential_id",
    "principal_id",
    "mailbox_id",
    "entra_tenant_id",
    "domain",
    "replaced_by",
    "old_credential_id",
    "new_credential_id",
    "key_id",
}
_LINE = "_line"
_SHOWN = 5
_LONGEST_NAME = 128
_ENCODING = "save it as UTF-8 (in Excel: CSV UTF-8)"


def load_references(archive: Archive, geoip: str | None = None) -> References:
    """The reference tables that enrichment uses, as they stand now, and the databases of addresses in a folder."""
    databases = tuple(database.get for _, database in open_geoip(geoip)) if geoip else ()
    tenants, networks, asn = (archive.scan(name).collect() for name in ("tenants", "networks", "asn"))
    return References(tenants, networks, asn, databases)


def open_geoip(folder: str) -> list[tuple[Path, Any]]:
    """The databases in MaxMind's format of a folder, in the order of their names.

    Raises:
        UsageError: there is none, or one cannot be read; names the file.
    """
    import maxminddb

    files = sorted(Path(folder).glob("*.mmdb"))
    if not files:
        raise UsageError(
            f"{folder}: there is no *.mmdb file", "give the folder that holds GeoLite2-ASN.mmdb or the like"
        )
    opened = []
    for file in files:
        try:
            opened.append((file, maxminddb.open_database(file)))
        except (OSError, ValueError, maxminddb.InvalidDatabaseError) as error:
            raise UsageError(f"{file}: is no database in MaxMind's format: {error}") from error
    return opened


def describe_geoip(folder: str) -> list[dict[str, Any]]:
    """What the custody log keeps of the databases: file, sha256, type, time it was built."""
    from archive.evidence import hash_file

    return [
        {
            "path": str(file),
            "sha256": hash_file(str(file)),
            "type": database.metadata().database_type,
            "built": datetime.fromtimestamp(database.metadata().build_epoch, UTC).isoformat(),
        }
        for file, database in open_geoip(folder)
    ]


def read_table(name: str, path: str) -> pl.DataFrame:
    """One reference table from CSV, as its contract wants it; columns past the contract are kept as text.

    Raises:
        RefusedError: the file is no CSV, lacks a column or has rows that break the contract; names file and line.
    """
    rules = contract(name)
    text = _read_csv(path)
    missing = [c.name for c in rules.columns if c.required and c.name not in text.columns]
    if missing:
        raise RefusedError(
            f"{path}:1: {name} has no column {', '.join(missing)}",
            f"columns are {', '.join(c.name for c in rules.columns)}",
        )
    text = text.with_columns(pl.col(c).str.to_lowercase() for c in text.columns if c in _LOWER)
    typed = text.select([_typed(c.name, c.type) for c in rules.columns if c.name in text.columns] + [_LINE])
    _refuse_lost(path, text, typed)
    typed = typed.with_columns(
        pl.lit(None, dtype=t).alias(n) for n, t in rules.polars_schema.items() if n not in typed.columns
    )
    accepted, refused = rules.split(typed.select([*rules.polars_schema, _LINE]))
    if refused.height:
        raise _refused(path, name, refused)
    extra = text.select([_LINE, *(c for c in text.columns if c not in rules.polars_schema and c != _LINE)])
    return accepted.join(extra, on=_LINE, how="left", maintain_order="left").drop(_LINE)


def _read_csv(path: str) -> pl.DataFrame:
    """All columns as text, stripped, nothing for the empty; `_line` is the line where a row begins."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or 'cannot be read'}") from error
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RefusedError(f"{path}:{line}: is not UTF-8", _ENCODING) from error
    rows = _rows(path, decoded)
    _, header = next(rows, (1, []))
    columns = [c.strip().lower() for c in header]
    if not any(columns):
        raise RefusedError(f"{path}:1: is empty", "the first line names the columns")
    if len(columns) == 1 and ";" in columns[0]:
        raise RefusedError(f"{path}:1: has one column {columns[0]}", "columns are separated by commas")
    for place, name in enumerate(columns):
        if not name.isprintable() or not 0 < len(name) <= _LONGEST_NAME or name == _LINE or name in columns[:place]:
            raise RefusedError(
                f"{path}:1: column {place + 1} has no name, an unprintable one or that of another",
                "name each column once",
            )
    held: list[tuple[int, list[str]]] = []
    for line, row in rows:
        if len(row) != len(columns):
            raise RefusedError(
                f"{path}:{line}: {len(row)} values where the header names {len(columns)} columns",
                'text with a comma stands in "..."',
            )
        held.append((line, row))
    frame = pl.DataFrame([row for _, row in held], schema=dict.fromkeys(columns, pl.String), orient="row")
    return frame.with_columns(
        pl.all().str.strip_chars().replace("", None), pl.Series(_LINE, [n for n, _ in held], pl.Int64)
    )


def _rows(path: str, decoded: str) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line where each begins; lines with nothing on them are passed over."""
    reader, begins = csv.reader(io.StringIO(decoded, newline=""), strict=True), 1
    try:
        for row in reader:
            if row and any(cell.strip() for cell in row):
                yield begins, row
            begins = reader.line_num + 1
    except csv.Error as error:
        raise RefusedError(
            f"{path}:{begins}: can't be read as CSV ({error})", "a quoted text ends with a quote"
        ) from error


def _typed(name: str, kind: str) -> pl.Expr:
    column = pl.col(name)
    if kind == "TIMESTAMP WITH TIME ZONE":
        forms = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
        return pl.coalesce(
            column.str.to_datetime("%+", time_zone="UTC", time_unit="us", strict=False),
            *(column.str.to_datetime(f, time_unit="us", strict=False).dt.replace_time_zone("UTC") for f in forms),
            column.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        ).alias(name)
    if kind == "BOOLEAN":
        low = column.str.to_lowercase()
        return (
            pl.when(low.is_in(["true", "1", "yes"]))
            .then(pl.lit(value=True))
            .when(low.is_in(["false", "0", "no"]))
            .then(pl.lit(value=False))
            .alias(name)
        )
    if kind in ("BIGINT", "INTEGER"):
        return column.cast(pl.Int64 if kind == "BIGINT" else pl.Int32, strict=False)
    return column.cast(pl.Float64, strict=False) if kind == "DOUBLE" else column


def _refuse_lost(path: str, text: pl.DataFrame, typed: pl.DataFrame) -> None:
    """A value that its type can't hold is refused, not turned into nothing."""
    for name in typed.columns:
        lost = text.filter(text[name].is_not_null() & typed[name].is_null())
        if lost.height:
            words = {"Datetime": "a time", "Boolean": "a truth value", "Float64": "a number"}
            kind = words.get(str(typed[name].dtype.base_type()), "a whole number")
            value = repr(lost[name][0][:40])
            raise RefusedError(
                f"{path}:{lost[_LINE][0]}: {name} {value} can't be read as {kind}",
                "times are ISO 8601, truth values true or false",
            )


def _refused(path: str, name: str, refused: pl.DataFrame) -> RefusedError:
    shown = "".join(f"\n{path}:{r[_LINE]}: {r['reason']}" for r in refused.head(_SHOWN).iter_rows(named=True))
    more = f"\nand {refused.height - _SHOWN} more" if refused.height > _SHOWN else ""
    rows = "1 row breaks" if refused.height == 1 else f"{refused.height} rows break"
    return RefusedError(f"{path}: {rows} the contract {name}{shown}{more}", "nothing was loaded; correct these lines")


def load(archive: Archive, paths: list[str]) -> dict[str, Any]:
    """Loads reference tables by file name; each replaces the table that stands.

    Raises:
        UsageError: nothing to load, or two files for one table.
        RefusedError: a file breaks its contract; then nothing is loaded.
    """
    known = names("reference")
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        if not path.exists():
            raise UsageError(f"{given}: no such file or folder")
        files += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    unknown = [str(f) for f in files if f.stem not in known]
    tables: dict[str, Path] = {}
    for file in (f for f in files if f.stem in known):
        if tables.setdefault(file.stem, file) != file:
            raise UsageError(f"{file}: {tables[file.stem]} is given for the same table", "give one file for each table")
    if not tables:
        raise UsageError(
            f"{', '.join(paths)}: no reference table", f"files are named {', '.join(n + '.csv' for n in known)}"
        )
    frames = {name: read_table(name, str(file)) for name, file in tables.items()}
    for name, file in tables.items():
        archive.overwrite(name, frames[name])
        archive.custody("reference", {"table": name, "path": str(file), "rows": frames[name].height})
    return {
        "loaded": {n: f.height for n, f in sorted(frames.items())},
        "not_a_reference_table": unknown,
        "archive_version": archive.versions(),
    }
