"""Times of syslog lines: stamps to UTC, also those of RFC 3164, which have neither year nor zone.

Zone: `Context.tz`; a local time that occurs twice is read as the earlier, one that the clocks skipped as moved forward.
Year: that of the first record is given, or planned by `plan_year` from the file's own time; from there the year rises
where the month falls by six or more, and falls where the month rises by six or more, so that a late line of
31 December after 1 January, or a clock that was wrong for a moment, is undone by the next line. Limits: a silence of
six months or more between neighbouring records is misread by a year; and `plan_year`, which sees the two ends of a file
only, takes it for shorter than a year, where `count_years` counts over the whole file.
"""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from data_contracts.errors import UsageError
from transforms.model import Context

CLOCK = "syslog_clock"  # Context.carry: (year, month) of the last record whose stamp has no year
MONTHS = {name: number for number, name in enumerate(["Jan", "Feb", "Mar", "Apr", "May", "Jun"], 1)}
MONTHS |= {name: number for number, name in enumerate(["Jul", "Aug", "Sep", "Oct", "Nov", "Dec"], 7)}
DAY = 86_400_000_000
_FIRST, _LAST = 1970, 2199

# Jan 31 09:50:02 raptor ...
_BSD = r"^[A-Z][a-z]{2} [ 0-3]\d [0-2]\d:[0-5]\d:[0-6]\d $"
# 2020-01-30T06:26:05.404714+09:00 (what follows the seconds)
_ISO_TAIL = r"^(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?$"
# <22>Sep 8 07:46:30.123 canyon ...; 2021-02-06 10:57:57 +0100 ...; dovecot: Oct 11 2009 13:44:28 ...
STAMP = (
    r"^[\x00\s]*(?:<\d{1,3}>)?(?:dovecot: )?(?P<ts_raw>"
    r"(?:(?P<month>[A-Z][a-z]{2}) {1,2}(?P<day>\d{1,2})(?: (?P<year>\d{4}))? |(?P<date>\d{4}-\d\d-\d\d)[T ])"
    r"(?P<h>[01]\d|2[0-3]):(?P<m>[0-5]\d):(?P<s>[0-6]\d)(?:[.,](?P<frac>\d{1,9}))?"
    r"(?: ?(?P<offset>Z\b|[+-]\d\d:?\d\d\b))?)"
    r":? +(?:<[a-z0-9]+\.[a-z]+> )?(?P<rest>.*)$"
)
_STAMP = re.compile(STAMP)


def _bsd() -> tuple[pl.Expr, pl.Expr]:
    text = pl.when(pl.col("t").str.contains(_BSD)).then("t")
    number = [text.str.slice(at, 2).str.strip_chars_start(" ").cast(pl.Int64, strict=False) for at in (4, 7, 10, 13)]
    month = text.str.slice(0, 3).replace_strict(MONTHS, default=None, return_dtype=pl.Int8)
    intra = (((number[0] - 1) * 24 + number[1]) * 60 + number[2]) * 60 + number[3]
    good = month.is_not_null() & (number[0] >= 1) & (number[1] < 24)
    return pl.when(good).then(month).alias("month"), pl.when(good).then(intra * 1_000_000).alias("intra")


_BSD_MONTH, _BSD_INTRA = _bsd()


def plan_year(head_text: str, tail_text: str, ctx: Context) -> int:
    """Return the year of the first record, from the first and the last dated line of a file.

    A year that was given is taken. Else the last record is put into the latest year in which it is not after
    `ctx.not_after`, and the first into the same year, or into the year before where it is later in the year by more
    than a day. Raises UsageError where neither a year nor a file time is known.
    """
    if ctx.year is not None and ctx.year_basis == "given":
        return ctx.year
    if ctx.not_after is None:
        raise UsageError(
            "the times of this log have no year, and no file time is known", "give the year of its first line"
        )
    first, last = _first_moment(head_text.splitlines()), _first_moment(reversed(tail_text.splitlines()))
    if last is None:
        return int(ctx.not_after.astimezone(UTC).year)
    year = _latest_year(*last, ctx)
    if first is not None and (first[0] - last[0]) * 31 * DAY + first[1] - last[1] > DAY:
        return year - 1
    return year


def count_years(records: pl.LazyFrame) -> int:
    """Return by how many years the stamps without a year advance over these records (signed)."""
    raw = records.select("raw").collect().to_series()
    month = bsd_times(raw.str.slice(0, 16))["month"].drop_nulls().cast(pl.Int32)
    return int(_steps(month, month.shift(1)).sum())


def clock(parts: pl.DataFrame, ctx: Context) -> tuple[pl.Series, pl.Series]:
    """Return ts and ts_basis of rows in their order; move the clock in `ctx.carry`.

    Args:
        parts: month and intra (microseconds since the month began) of stamps without a year; naive (microseconds of
            local time since 1970) of others; offset (microseconds east of UTC) where the stamp has one.
        ctx: zone and year.
    """
    naive, offset, yearless = parts["naive"], parts["offset"], parts["intra"].is_not_null()
    if yearless.any():
        placed = _place(parts["month"], parts["intra"], ctx)
        naive = placed if yearless.all() else naive.zip_with(~yearless, placed)
    absolute = offset.is_not_null()
    if absolute.all():
        ts = naive - offset
    else:
        ts = _utc(naive, ctx.tz)
        ts = (naive - offset).zip_with(absolute, ts) if absolute.any() else ts
    if yearless.all() and not naive.has_nulls():
        plain = "assumed_zone" if ctx.year_basis == "given" else "assumed_year"
        return _aware(ts), pl.repeat(plain, len(ts), dtype=pl.String, eager=True)
    assumed = pl.lit("assumed_zone" if ctx.year_basis == "given" else "assumed_year")
    basis = pl.when("yearless").then(assumed).when("absolute").then(pl.lit("offset")).otherwise(pl.lit("assumed_zone"))
    table = pl.DataFrame({"absolute": absolute, "yearless": yearless, "known": naive.is_not_null()})
    basis = pl.when("known").then(basis)
    return _aware(ts), table.select(basis).to_series()


def _aware(ts: pl.Series) -> pl.Series:
    return ts.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def time_trouble(ctx: Context) -> pl.Expr:
    """Say why the time of a syslog line could not be read; for rows whose `ts` is null."""
    known = ctx.year is not None or ctx.not_after is not None or CLOCK in ctx.carry
    unread = pl.lit("time: no such day or time" if known else "time: the year is not known")
    leap = pl.col("ts_raw").str.contains(r"^Feb +29") & pl.lit(known)
    return pl.when(leap).then(pl.lit("time: 29 February in a year that has none")).otherwise(unread)


def odd_times(fields: pl.DataFrame) -> pl.DataFrame:
    """Read the groups of STAMP as month, intra, naive, offset (see `clock`) and ts_raw."""
    day = pl.col("day").cast(pl.Int64, strict=False)
    hms = (pl.col("h").cast(pl.Int64) * 60 + pl.col("m").cast(pl.Int64)) * 60 + pl.col("s").cast(pl.Int64)
    month = pl.col("month").replace_strict(MONTHS, default=None, return_dtype=pl.Int8)
    dated = pl.format("{}-{}-{}", "year", month, day).str.to_date("%Y-%m-%d", strict=False)
    date = pl.coalesce(pl.col("date").str.to_date("%Y-%m-%d", strict=False), dated).cast(pl.Int64)
    intra = hms * 1_000_000 + _micros("frac")
    yearless = pl.col("year").is_null() & month.is_not_null() & (day >= 1)
    return fields.select(
        "ts_raw",
        pl.when(yearless).then(month).alias("month"),
        pl.when(yearless).then((day - 1) * DAY + intra).alias("intra"),
        (date * DAY + intra).alias("naive"),
        _offset("offset"),
    )


def by_runs(values: pl.Series, convert: Callable[[pl.Series], pl.DataFrame]) -> pl.DataFrame:
    """Convert each run of equal neighbours once: a busy log writes the same second many times."""
    if len(values) < 2:
        return convert(values)
    starts = values.ne_missing(values.shift(1))
    starts[0] = True
    heads = values.filter(starts)
    table = convert(heads)
    if len(heads) == len(values):
        return table
    index = starts.cast(pl.UInt32).cum_sum() - 1
    return table.select(pl.all().gather(index))


def by_values(values: pl.Series, convert: Callable[[pl.Series], pl.DataFrame]) -> pl.DataFrame:
    """Convert each distinct value once; rows of nulls for null."""
    kind = pl.Categorical(pl.Categories.random())
    coded = values.cast(kind)  # its life is that of the categories
    numbers = coded.to_physical()
    distinct = numbers.drop_nulls().unique()
    table = convert(distinct.cat.to(coded.dtype).cast(pl.String).alias("value"))
    if not len(distinct):
        return table.clear(len(values))
    places = np.zeros(int(distinct.max()) + 1, dtype=np.uint32)  # type: ignore[arg-type]
    places[distinct.to_numpy()] = np.arange(len(distinct), dtype=np.uint32)
    return table.select(pl.all().gather(pl.Series(places).gather(numbers)))


def bsd_times(stamps: pl.Series) -> pl.DataFrame:
    """Read 16 characters `Jan 31 09:50:02 ` as month and microseconds since the month began."""
    return by_runs(stamps, bsd_stamps)


def bsd_stamps(heads: pl.Series) -> pl.DataFrame:
    """Do what `bsd_times` does, for values that seldom repeat."""
    return heads.to_frame("t").select(_BSD_MONTH, _BSD_INTRA)


def iso_seconds(heads: pl.Series) -> pl.DataFrame:
    stamp = pl.col("t").str.to_datetime("%Y-%m-%dT%H:%M:%S", strict=False, time_unit="us")
    return heads.to_frame("t").select(stamp.cast(pl.Int64).alias("naive"))


def iso_tail(tails: pl.Series) -> pl.DataFrame:
    """Read `.404714+09:00` as microseconds (null where it cannot be read) and offset."""
    if (tails.str.len_bytes() == 13).all() and tails.str.contains(r"^\.\d{6}[+-]\d\d:\d\d$").all():
        offset = by_runs(tails.str.slice(7), lambda heads: heads.to_frame("o").select(_offset("o")))
        return pl.DataFrame([tails.str.slice(1, 6).cast(pl.Int64).alias("micros"), offset.to_series().alias("offset")])

    def convert(heads: pl.Series) -> pl.DataFrame:
        groups = heads.str.extract_groups(_ISO_TAIL).struct.unnest()
        read = heads.str.contains(_ISO_TAIL)
        return groups.select(pl.when(read).then(_micros("1")).alias("micros"), _offset("2").alias("offset"))

    return by_runs(tails, convert)


def _micros(name: str) -> pl.Expr:
    digits = pl.col(name).str.slice(0, 6).str.pad_end(6, "0")
    return digits.cast(pl.Int64, strict=False).fill_null(0)


def _offset(name: str) -> pl.Expr:
    """Read `+09:00`, `+0900` or `Z` as microseconds east of UTC."""
    text = pl.col(name).str.replace(":", "", literal=True)
    number = [text.str.slice(at, 2).cast(pl.Int64, strict=False) for at in (1, 3)]
    span = (number[0] * 60 + number[1]) * 60_000_000
    return pl.when(text == "Z").then(0).when(text.str.starts_with("-")).then(-span).otherwise(span).alias(name)


def _steps(month: pl.Series, before: pl.Series) -> pl.Series:
    fall = (before - month).fill_null(0)
    return (fall >= 6).cast(pl.Int32) - (fall <= -6).cast(pl.Int32)


def _place(month: pl.Series, intra: pl.Series, ctx: Context) -> pl.Series:
    """Give stamps without a year theirs: microseconds of local time since 1970, null where there is no such day."""
    start = ctx.carry.get(CLOCK)
    if start and not month.has_nulls() and month.min() == month.max() == start[1]:  # the usual block: one month
        begin, end = _month_bounds(pl.Series([start[0] * 12 + start[1] - 1])).row(0)
        return pl.repeat(None, len(month), dtype=pl.Int64, eager=True) if begin is None else _within(intra + begin, end)
    month = month.cast(pl.Int32).forward_fill()
    first = int(month.drop_nulls()[0])
    month = month.fill_null(start[1] if start else first)
    before = month.shift(1, fill_value=start[1] if start else first)
    years = _steps(month, before).cum_sum()
    if start:
        year = start[0]
    elif ctx.year is not None:
        year = ctx.year
    elif ctx.not_after is not None:
        year = _latest_year(int(month[-1]), int(intra.drop_nulls()[-1]), ctx) - int(years[-1])
    else:
        return pl.repeat(None, len(month), dtype=pl.Int64, eager=True)
    years = years + year
    ctx.carry[CLOCK] = (int(years[-1]), int(month[-1]))
    table = by_runs(years * 12 + month - 1, _month_bounds)
    naive = table["start"] + intra
    return _within(naive, table["end"])


def _within(naive: pl.Series, end: pl.Series | int) -> pl.Series:
    beyond = (naive >= end).fill_null(value=True)
    return naive.set(beyond, None) if beyond.any() else naive


def _month_bounds(months: pl.Series) -> pl.DataFrame:
    def begin(number: pl.Expr) -> pl.Expr:
        held = pl.when(number.is_between(_FIRST * 12, _LAST * 12)).then(number)
        return pl.date(held // 12, held % 12 + 1, 1).cast(pl.Int64) * DAY

    return months.to_frame("n").select(begin(pl.col("n")).alias("start"), begin(pl.col("n") + 1).alias("end"))


def _zone(name: str) -> timezone | ZoneInfo:
    fixed = re.fullmatch(r"([+-])(\d\d):?(\d\d)", name)
    if fixed:
        span = timedelta(hours=int(fixed[2]), minutes=int(fixed[3]))
        return timezone(-span if fixed[1] == "-" else span)
    try:
        pl.Series([0]).cast(pl.Datetime("us")).dt.replace_time_zone(name)
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"time zone {name!r} is not known", "give an IANA name or an offset such as +02:00") from error


def _utc(naive: pl.Series, tz: str) -> pl.Series:
    """Turn microseconds of local time into microseconds of UTC."""
    zone = _zone(tz)
    if tz == "UTC":
        return naive
    if isinstance(zone, timezone):
        return naive - int(zone.utcoffset(None) / timedelta(microseconds=1))

    def convert(heads: pl.Series) -> pl.DataFrame:
        local = heads.cast(pl.Datetime("us"))
        found = local.dt.replace_time_zone(tz, ambiguous="earliest", non_existent="null")
        # Skipped by the clocks: read with the offset that was in force before, which moves it forward by the gap.
        earlier = (local - timedelta(hours=6)).dt.replace_time_zone(tz, ambiguous="earliest", non_existent="null")
        return found.cast(pl.Int64).fill_null(earlier.cast(pl.Int64) + 6 * 3_600_000_000).to_frame("utc")

    return by_runs(naive, convert).to_series()


def _latest_year(month: int, intra: int, ctx: Context) -> int:
    """Return the latest year in which this moment is not after the file's time."""
    limit = ctx.not_after.astimezone(UTC)
    zone = _zone(ctx.tz)
    for year in range(limit.year + 1, limit.year - 9, -1):
        moment = datetime(year, month, 1, tzinfo=zone).replace(tzinfo=None) + timedelta(microseconds=intra)
        exists = moment.month == month
        if exists and moment.replace(tzinfo=zone) <= limit:
            return year
    return int(limit.year)


def _first_moment(lines: Iterable[str]) -> tuple[int, int] | None:
    for line in lines:
        found = _STAMP.match(line[:400])
        if found and found["month"] in MONTHS and not found["year"] and 1 <= int(found["day"]) <= 31:
            clock = (int(found["h"]) * 60 + int(found["m"])) * 60 + int(found["s"])
            return MONTHS[found["month"]], (int(found["day"]) - 1) * DAY + clock * 1_000_000
    return None
