"""Casts of columns to the type of a contract. A value that the type cannot hold becomes null, never an error."""

import polars as pl

_OFFSET_TIMES = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z")
_UTC_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M")
_BOOLEANS = {"true": True, "t": True, "yes": True, "1": True, "false": False, "f": False, "no": False, "0": False}


def converted(name: str, given: pl.DataType, wanted: pl.DataType) -> pl.Expr:
    """The column `name` of type `given` as `wanted`; nulls where it cannot be.

    Text becomes a time by ISO 8601 (without an offset: UTC), a list by splitting at semicolons.
    """
    value = pl.col(name)
    if given == wanted:
        return value
    if given == pl.Null:
        return pl.lit(None, wanted).alias(name)
    if given == pl.String:
        return _from_text(value, wanted).alias(name)
    if (wanted == pl.String and given.is_nested()) or (wanted == pl.List(pl.String) and not given.is_nested()):
        return pl.lit(None, wanted).alias(name)
    if isinstance(wanted, pl.Datetime) and isinstance(given, pl.Datetime) and given.time_zone is None:
        # A time without a zone is UTC here: transforms make times aware, reference tables state UTC.
        return value.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return value.cast(wanted, strict=False)


def _from_text(value: pl.Expr, wanted: pl.DataType) -> pl.Expr:
    text = value.str.strip_chars()
    if isinstance(wanted, pl.Datetime):
        aware = [text.str.to_datetime(f, time_unit="us", time_zone="UTC", strict=False) for f in _OFFSET_TIMES]
        naive = [text.str.to_datetime(f, time_unit="us", strict=False) for f in _UTC_TIMES]
        naive.append(text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")))
        return pl.coalesce(*aware, *[time.dt.replace_time_zone("UTC") for time in naive])
    if wanted == pl.Date:
        return text.str.to_date("%Y-%m-%d", strict=False)
    if wanted == pl.Boolean:
        return text.str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Boolean)
    if wanted == pl.List(pl.String):
        parts = text.str.split(";").list.eval(pl.element().str.strip_chars())
        return parts.list.eval(pl.element().filter(pl.element() != ""))
    if wanted == pl.Binary:
        return value.cast(pl.Binary)
    return text.cast(wanted, strict=False)
