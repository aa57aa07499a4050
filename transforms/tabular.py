"""Text fields of tables of any make: times in the usual spellings, numbers, and JSON keys of any name."""

import re
from collections.abc import Iterable
from dataclasses import replace

import polars as pl

from transforms.model import Context
from transforms.syslog_time import clock

TIMES: dict[str, pl.DataType] = {"ts": pl.Datetime("us", "UTC"), "ts_basis": pl.String()}

# 2024-01-31T09:50:02.123456789+01:00, also with a blank, a comma, UTC, and without seconds
_ISO = (
    r"^\s*(\d{4}-\d\d-\d\d|\d{4}/\d\d/\d\d)[T ]+(\d\d:\d\d)(:\d\d)?(?:[.,](\d{1,9}))?"
    r"\s*(?:([zZ]|UTC|GMT)|([+-]\d\d)(?::?(\d\d))?)?\s*$"
)
_EPOCH = r"^\s*(\d{9,10})(?:\.(\d{1,9}))?\s*$|^\s*(\d{12,13})\s*$|^\s*(\d{15,16})\s*$"
_LATEST = 7_258_118_400_000_000  # the year 2200, microseconds since 1970
_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$-]*")


def placed(naive: pl.Series, offset: pl.Series, ctx: Context, zone: str | None = None) -> pl.DataFrame:
    """UTC from local microseconds since 1970 and microseconds east of UTC (null: unknown).

    Args:
        naive: null where there is no time.
        offset: of each time.
        ctx: its zone is taken for times without an offset.
        zone: taken instead, where the log is known to be written in it; "UTC" is no assumption then.

    Returns:
        TIMES; both null where there is no time.
    """
    empty = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(naive))
    parts = pl.DataFrame({"month": empty.cast(pl.Int8), "intra": empty, "naive": naive, "offset": offset})
    ts, basis = clock(parts, replace(ctx, tz=zone) if zone else ctx)
    frame = pl.DataFrame({"ts": ts, "ts_basis": basis})
    if zone == "UTC":
        frame = frame.with_columns(pl.col("ts_basis").replace("assumed_zone", "utc"))
    return frame.select(pl.col(name).cast(kind) for name, kind in TIMES.items())


def iso_times(text: pl.Series, ctx: Context, zone: str | None = None) -> pl.DataFrame:
    """ISO 8601 times, as TIMES; null where a text is none. Digits beyond microseconds are cut."""
    names = ["day", "minute", "second", "fraction", "utc", "hours", "minutes"]
    groups = text.str.extract_groups(_ISO).struct.rename_fields(names).struct.unnest()
    stamp = pl.concat_str(
        pl.col("day").str.replace_all("/", "-"), "minute", pl.col("second").fill_null(":00"), separator=" "
    )
    stamp = stamp.str.replace(r" (:\d\d)$", "$1").str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us")
    micros = pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64, strict=False).fill_null(0)
    hours = pl.col("hours").cast(pl.Int64, strict=False)
    minutes = pl.col("minutes").cast(pl.Int64, strict=False).fill_null(0)
    span = (hours.abs() * 60 + minutes) * 60_000_000
    east = pl.when(pl.col("hours").str.starts_with("-")).then(-span).otherwise(span)
    read = groups.select(
        (stamp.cast(pl.Int64) + micros).alias("naive"),
        pl.when(pl.col("utc").is_not_null()).then(0).otherwise(east).cast(pl.Int64).alias("offset"),
    )
    found = placed(read["naive"], read["offset"], ctx, zone)
    utc = groups["utc"].is_not_null() & found["ts"].is_not_null()
    return found.with_columns(ts_basis=pl.when(utc).then(pl.lit("offset")).otherwise("ts_basis"))


def epoch_times(text: pl.Series, per_second: int) -> pl.DataFrame:
    """Times since 1970 in seconds (1), milliseconds (1000) or microseconds (1000000), as TIMES; fractions count."""
    whole, fraction = (text.str.extract(r"^\s*(\d{1,16})(?:\.(\d{1,9}))?\s*$", at) for at in (1, 2))
    step = 1_000_000 // per_second
    micros = fraction.str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64, strict=False).fill_null(0) // (
        1_000_000 // step
    )
    number = whole.cast(pl.Int64, strict=False)
    number = number.set(number > (1 << 62) // step, None)
    return _since_1970(number * step + micros)


def any_times(text: pl.Series, ctx: Context, zone: str | None = None) -> pl.DataFrame:
    """ISO 8601, or seconds (9 to 10 digits), milliseconds (12, 13) or microseconds (15, 16) since 1970; as TIMES."""
    found = iso_times(text, ctx, zone)
    rest = found["ts"].is_null() & text.is_not_null()
    if not rest.any():
        return found
    names = ["seconds", "fraction", "milli", "micro"]
    groups = text.str.extract_groups(_EPOCH).struct.rename_fields(names).struct.unnest()
    number = groups.select(pl.exclude("fraction").cast(pl.Int64, strict=False), "fraction")
    micros = pl.col("fraction").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64, strict=False).fill_null(0)
    since = number.select(
        pl.coalesce(pl.col("seconds") * 1_000_000 + micros, pl.col("milli") * 1000, pl.col("micro"))
    ).to_series()
    late = _since_1970(since)
    return pl.DataFrame([found[name].zip_with(~rest, late[name]) for name in TIMES])


def _since_1970(micros: pl.Series) -> pl.DataFrame:
    micros = micros.set((micros < 0) | (micros > _LATEST), None)
    ts = micros.cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias("ts")
    return ts.to_frame().with_columns(ts_basis=pl.when(pl.col("ts").is_not_null()).then(pl.lit("utc")))


def whole_number(text: pl.Expr) -> pl.Expr:
    """A number of at most 18 digits, also with thousands set apart by blanks, commas or apostrophes, or with .0."""
    bare = text.str.strip_chars().str.replace(r"\.0+$", "")
    grouped = bare.str.contains(r"^-?\d{1,3}(?:[ ,'\u00a0]\d{3})+$")
    bare = pl.when(grouped).then(bare.str.replace_all(r"[ ,'\u00a0]", "")).otherwise(bare)
    return pl.when(bare.str.contains(r"^-?\d{1,18}$")).then(bare).cast(pl.Int64, strict=False)


def truth(text: pl.Expr) -> pl.Expr:
    """true/false, yes/no, y/n, t/f, 1/0 in any case; null for anything else."""
    said = text.str.strip_chars().str.to_lowercase()
    yes, no = said.is_in(["true", "yes", "y", "t", "1"]), said.is_in(["false", "no", "n", "f", "0"])
    return pl.when(yes).then(pl.lit(value=True)).when(no).then(pl.lit(value=False))


def plain_keys(text: pl.Expr, keys: Iterable[str]) -> tuple[pl.Expr, dict[str, str]]:
    """JSON text in which keys that jsonrows cannot name (``@timestamp``) have a plain name, and those names by key.

    A quote inside a JSON string has a backslash before it, so that what looks like a key is one.
    """
    names: dict[str, str] = {}
    taken: set[str] = set()  # DuckDB takes names that differ by case only for the same
    for key in keys:
        if _PLAIN_KEY.fullmatch(key) and key.lower() not in taken:
            names[key] = key
            taken.add(key.lower())
            continue
        names[key] = "k_" + key.encode().hex()
        text = text.str.replace_all(rf'(^|[^\\])"{re.escape(key)}"\s*:', f'${{1}}"{names[key]}":')
    return text, names
