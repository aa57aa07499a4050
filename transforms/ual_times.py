"""Times as exports of audit logs write them: ISO 8601, the form of a browser or PowerShell, JSON's ``/Date(0)/``."""

from typing import Literal

import polars as pl

from transforms.model import Context
from transforms.syslog_time import clock

_ISO = r"^\s*(\d{4}-\d\d-\d\d)[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?\s*([zZ]|[+-]\d\d:?\d\d)?\s*$"
# 4/28/2021, 2:54:37.000 PM; 28.04.2021 14:54:37
_LOCAL = (
    r"^\s*(\d{1,2})([/.-])(\d{1,2})[/.-](\d{4}),?\s+(\d{1,2}):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?"
    r"[\s\u{202f}]*([aApP])?\.?[mM]?\.?\s*$"
)
_EPOCH = r"^\s*/Date\((-?\d{1,15})(?:[+-]\d{4})?\)/\s*$"
_DAY = 86_400_000_000
# 1990 and 2100: what lies outside is no time of a log.
_FIRST, _LAST = 631_152_000_000_000, 4_102_444_800_000_000
_ORDER = "export_day_first"  # Context.carry: whether the day stands before the month


def read(written: pl.Series, ctx: Context, zone: Literal["utc", "local"]) -> pl.DataFrame:
    """Times to UTC.

    Args:
        written: times as text.
        ctx: `tz` is the zone of local times; whether day or month comes first, where neither a dot between them nor a
            number above 12 tells, is taken from the evidence's other times, else as in America.
        zone: what a time without a zone is in.

    Returns:
        ts (null where it cannot be read or lies outside 1990 to 2100) and ts_basis.
    """
    parts = _iso(written)
    rest = parts["naive"].is_null() & written.is_not_null()
    if rest.any():
        odd = pl.concat([_local(written.filter(rest), ctx), _epoch(written.filter(rest))], how="horizontal")
        found = odd.select(
            naive=pl.coalesce("naive", "epoch"), offset=pl.when(pl.col("epoch").is_not_null()).then(pl.lit(0, pl.Int64))
        )
        parts = pl.DataFrame([parts[name].scatter(rest.arg_true(), found[name]) for name in ("naive", "offset")])
    if zone == "utc":
        told = parts["offset"].is_not_null()
        parts = parts.with_columns(pl.col("offset").fill_null(0))
    nothing = pl.Series("month", [None] * len(written), dtype=pl.Int8)
    ts, basis = clock(parts.with_columns(nothing, nothing.cast(pl.Int64).alias("intra")), ctx)
    if zone == "utc":
        basis = pl.select(pl.when(told).then(basis).otherwise(pl.lit("utc"))).to_series()
    return pl.DataFrame({"ts": _within(ts), "ts_basis": basis})


def _within(ts: pl.Series) -> pl.Series:
    number = ts.cast(pl.Int64)
    return ts.set(~number.is_between(_FIRST, _LAST, closed="left").fill_null(value=False), None)


def _micros(fraction: pl.Expr) -> pl.Expr:
    return fraction.fill_null("").str.slice(0, 6).str.pad_end(6, "0").cast(pl.Int64, strict=False)


def _whole(text: pl.Expr) -> pl.Expr:
    return text.cast(pl.Int64, strict=False)


def _iso(written: pl.Series) -> pl.DataFrame:
    """naive and offset, microseconds."""
    part = [pl.col("p").struct[n] for n in range(6)]
    hour, minute, second = (_whole(p) for p in part[1:4])
    day = part[0].str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    clocked = pl.when((hour < 24) & (minute < 60) & (second.fill_null(0) < 61)).then(
        ((hour * 60 + minute) * 60 + second.fill_null(0)) * 1_000_000 + _micros(part[4])
    )
    zone = part[5].str.replace(":", "", literal=True)
    east = (_whole(zone.str.slice(1, 2)) * 60 + _whole(zone.str.slice(3, 2))) * 60_000_000
    offset = pl.when(zone.str.to_lowercase() == "z").then(0).when(zone.str.starts_with("-")).then(-east).otherwise(east)
    groups = written.alias("t").to_frame().select(pl.col("t").str.extract_groups(_ISO).alias("p"))
    return groups.select(naive=day * _DAY + clocked, offset=offset.cast(pl.Int64))


def _local(written: pl.Series, ctx: Context) -> pl.DataFrame:
    """naive, microseconds."""
    groups = written.alias("t").to_frame().select(pl.col("t").str.extract_groups(_LOCAL).alias("p"))
    part = [pl.col("p").struct[n] for n in range(9)]
    read_ = groups.select(
        a=_whole(part[0]), dot=part[1] == ".", b=_whole(part[2]), year=part[3], hour=_whole(part[4]),
        minute=_whole(part[5]), second=_whole(part[6]).fill_null(0), micros=_micros(part[7]),
        half=part[8].str.to_lowercase(),
    )  # fmt: skip
    plain = read_.filter(~pl.col("dot"))
    if (plain["a"] > 12).any() and not (plain["b"] > 12).any():
        ctx.carry[_ORDER] = True
    elif (plain["b"] > 12).any():
        ctx.carry[_ORDER] = False
    day_first = pl.col("dot") | pl.lit(bool(ctx.carry.get(_ORDER, False)))
    day, month = (pl.when(day_first).then(one).otherwise(pl.col(other)) for one, other in (("a", "b"), ("b", "a")))
    date = pl.format("{}-{}-{}", "year", month, day).str.to_date("%Y-%m-%d", strict=False).cast(pl.Int64)
    hour = pl.col("hour")
    hour = (
        pl.when(pl.col("half").is_null() & (hour < 24)).then(hour)
        .when(hour.is_between(1, 12)).then(hour % 12 + pl.when(pl.col("half") == "p").then(12).otherwise(0))
    )  # fmt: skip
    valid = (pl.col("minute") < 60) & (pl.col("second") < 61)
    clocked = pl.when(valid).then(((hour * 60 + pl.col("minute")) * 60 + pl.col("second")) * 1_000_000)
    return read_.select(naive=date * _DAY + clocked + pl.col("micros"))


def _epoch(written: pl.Series) -> pl.DataFrame:
    """epoch, microseconds of UTC."""
    number = pl.col("t").str.extract(_EPOCH).cast(pl.Int64, strict=False)
    return written.alias("t").to_frame().select(epoch=number * 1000)
