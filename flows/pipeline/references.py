"""Reference tables: from the analyst's CSV files into the archive, and from the archive to the enrichment."""

from pathlib import Path
from typing import Any

import polars as pl

from archive.store import Archive
from data_contracts import contract, names
from data_contracts.errors import RefusedError, UsageError
from transforms.enrich import References

_LOWER = {"credential_id", "principal_id", "mailbox_id", "entra_tenant_id", "domain", "replaced_by", "old_credential_id", "new_credential_id", "key_id"}  # fmt: skip
_SHOWN = 5


def load_references(archive: Archive) -> References:
    """The reference tables that enrichment uses, as they stand now."""
    return References(*(archive.scan(name).collect() for name in ("tenants", "networks", "asn")))


def read_table(name: str, path: str) -> pl.DataFrame:
    """One reference table from CSV, as its contract wants it; columns past the contract are kept as text.

    Raises:
        RefusedError: the file is no CSV, lacks a required column or has rows that break the contract; names file and line.
    """
    rules = contract(name)
    try:
        text = pl.read_csv(path, infer_schema=False, missing_utf8_is_empty_string=False, encoding="utf8-lossy")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise RefusedError(f"{path}: can't be read as CSV ({str(error).splitlines()[0]})") from error
    text = text.rename({c: c.strip().lstrip("\ufeff").lower() for c in text.columns})
    missing = [c.name for c in rules.columns if c.required and c.name not in text.columns]
    if missing:
        raise RefusedError(f"{path}:1: {name} has no column {', '.join(missing)}", f"columns are {', '.join(c.name for c in rules.columns)}")
    lowered = [pl.col(c).str.strip_chars().str.to_lowercase() for c in text.columns if c in _LOWER]
    known = [_typed(c.name, c.type) for c in rules.columns if c.name in text.columns]
    extra = [pl.col(c) for c in text.columns if c not in rules.polars_schema]
    text = text.with_columns(lowered).with_columns(pl.int_range(pl.len()).alias("line") + 2)
    typed = text.select([*known, "line"])
    _refuse_lost(path, text, typed)
    typed = typed.with_columns(pl.lit(None, dtype=t).alias(n) for n, t in rules.polars_schema.items() if n not in typed.columns)
    accepted, refused = rules.split(typed.select([*rules.polars_schema, "line"]))
    if refused.height:
        shown = "\n".join(f"{path}:{r['line']}: {r['reason']}" for r in refused.head(_SHOWN).iter_rows(named=True))
        raise RefusedError(f"{path}: {refused.height} rows break the contract {name}\n{shown}")
    return pl.concat([accepted.drop("line"), text.select(extra)], how="horizontal") if extra else accepted.drop("line")


def _typed(name: str, kind: str) -> pl.Expr:
    column = pl.col(name).str.strip_chars().replace("", None)
    if kind == "TIMESTAMP WITH TIME ZONE":
        return pl.coalesce(
            column.str.to_datetime("%+", time_zone="UTC", time_unit="us", strict=False),
            column.str.to_datetime("%Y-%m-%dT%H:%M:%S", time_unit="us", strict=False).dt.replace_time_zone("UTC"),
            column.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", strict=False).dt.replace_time_zone("UTC"),
            column.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.replace_time_zone("UTC"),
        ).alias(name)
    if kind == "BOOLEAN":
        low = column.str.to_lowercase()
        return pl.when(low.is_in(["true", "1", "yes"])).then(True).when(low.is_in(["false", "0", "no"])).then(False).alias(name)  # noqa: FBT003
    if kind in ("BIGINT", "INTEGER"):
        return column.cast(pl.Int64 if kind == "BIGINT" else pl.Int32, strict=False)
    return column.cast(pl.Float64, strict=False) if kind == "DOUBLE" else column


def _refuse_lost(path: str, text: pl.DataFrame, typed: pl.DataFrame) -> None:
    """A value that its type can't hold is refused, not turned into nothing."""
    for name in typed.columns:
        if name == "line" or typed[name].dtype == pl.String:
            continue
        written = text[name].str.strip_chars().replace("", None)
        lost = text.filter(written.is_not_null() & typed[name].is_null())
        if lost.height:
            line = lost["line"][0]
            raise RefusedError(f"{path}:{line}: {name} can't be read as {typed[name].dtype}", "times are ISO 8601, truth values true or false")


def load(archive: Archive, paths: list[str]) -> dict[str, Any]:
    """Loads reference tables by file name; each replaces the table that stands.

    Raises:
        UsageError: nothing to load. RefusedError: a file breaks its contract; then nothing is loaded.
    """
    known = names("reference")
    files: list[Path] = []
    for given in paths:
        path = Path(given)
        files += sorted(path.glob("*.csv")) if path.is_dir() else [path]
    tables = {f: f.stem for f in files if f.stem in known}
    unknown = [str(f) for f in files if f.stem not in known]
    if not tables:
        raise UsageError(f"{', '.join(paths)}: no reference table", f"files are named {', '.join(n + '.csv' for n in known)}")
    frames = {name: read_table(name, str(file)) for file, name in tables.items()}
    for file, name in tables.items():
        archive.overwrite(name, frames[name])
        archive.custody("reference", {"table": name, "path": str(file), "rows": frames[name].height})
    return {"loaded": {n: f.height for n, f in sorted(frames.items())}, "not_a_reference_table": unknown, "archive_version": archive.versions()}
