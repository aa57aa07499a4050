"""Extended log file format (W3C) as IIS writes it: fields parted by spaces, named by `#Fields:` lines.

Specification: https://www.w3.org/TR/WD-logfile. `#Fields:` may come again in mid-file with other names, and may be
missing when a file was cut. IIS writes + for a space, but not in user names: what a row has too many of is theirs.
"""

from typing import Any

import polars as pl

from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

MISFIT = "field count does not fit the header"
NO_HEADER = "no #Fields line is in force"
BAD_TIME = "time is not readable"
PLACE = tuple(name for name in RECORD_SCHEMA if name != "raw")

_FIELDS, _DATE = "#Fields:", "#Date:"
_USER = "cs-username"
_MOST_LAYOUTS = 32  # per block; real files have one or two, hostile ones may name more
_MOST_FIELDS = 64
_COMMON = (
    "date time s-ip cs-method cs-uri-stem cs-uri-query s-port cs-username c-ip cs(User-Agent) cs(Referer) sc-status "
    "sc-substatus sc-win32-status time-taken"
)
DEFAULT = tuple(_COMMON.split())  # IIS 8 and later
OLDER = tuple(name for name in DEFAULT if name != "cs(Referer)")  # IIS 7
FORWARDED = (*DEFAULT, "X-Forwarded-For")
# A name takes what a row has too many of, so that a row under a wrong header must be told by what its fields hold.
_SHAPES = {"sc-status": r"^\d{3}$", "c-ip": r"^[0-9A-Fa-f.:%\[\]]+$", "s-port": r"^\d{1,5}$"}
KNOWN = {len(layout): layout for layout in (OLDER, DEFAULT, FORWARDED)}


def header(line: str) -> tuple[str, ...] | None:
    """Names of a `#Fields:` line; None where they cannot be right."""
    names = tuple(line.removeprefix("\ufeff").removeprefix(_FIELDS).split())
    if len(names) > _MOST_FIELDS or len(set(names)) < len(names) or "time" not in names:
        return None
    return names


def read(records: pl.LazyFrame, ctx: Context, want: tuple[str, ...]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Records -> those that are no rows, and the fields of those that are.

    Args:
        records: RECORD_SCHEMA.
        ctx: the header and date in force are carried in it from block to block.
        want: names of the fields to read.

    Returns:
        (rest, rows): together one row per record. `rest` has the place, `disposition` and `reason`; `rows` has the
        place, `ts`, `ts_raw` and ``c.<name>`` (String; null for -, empty and fields that the row's header lacks).
    """
    raw = pl.col("raw").str.strip_prefix("\ufeff")
    block = records.select(list(RECORD_SCHEMA)).with_columns(raw).collect()
    comment = raw.str.starts_with("#")
    block = block.with_columns(
        note=pl.when(comment).then(pl.lit("header")).when(raw.str.contains(r"^\s*$")).then(pl.lit("blank line")),
        segment=(raw.str.starts_with(_FIELDS) | raw.str.starts_with(_DATE)).cum_sum(),
    )
    layouts, dates = _in_force(block, ctx)
    lines = block.filter(pl.col("note").is_null()).with_columns(tokens=pl.col("raw").str.split(" "))
    layout = pl.col("segment").replace_strict(list(layouts), list(layouts.values()), return_dtype=pl.Int64)
    lines = lines.with_columns(layout=layout) if lines.height else lines.with_columns(layout=pl.lit(0, pl.Int64))
    names: list[tuple[str, ...] | None] = ctx.carry["w3c_layouts"]
    parts = [
        _fields(part, names[number], want, dates, ctx)
        for (number,), part in lines.group_by("layout", maintain_order=True)
        if isinstance(number, int)
    ]
    fields = pl.concat([_empty(want), *parts], how="diagonal")
    ends = ctx.carry.pop("w3c_ends", {})
    if (segment := max(layouts)) > 0 or ends:
        ctx.carry["w3c_clock"] = ends.get(segment, (None, 0))
    bad = fields.filter(pl.col("broken").is_not_null())
    rest = pl.concat(
        [
            _left(block.filter(pl.col("note").is_not_null()), IGNORED, "note"),
            _left(bad, QUARANTINED, "broken"),
        ]
    )
    return rest, fields.filter(pl.col("broken").is_null()).drop("broken")


def _in_force(block: pl.DataFrame, ctx: Context) -> tuple[dict[int, int], pl.DataFrame]:
    """Layout number of each segment, and the date (of `#Date:`) of each segment."""
    names: list[tuple[str, ...] | None] = ctx.carry.setdefault("w3c_layouts", [None])
    now: int = ctx.carry.get("w3c_layout", 0)
    date: str | None = ctx.carry.get("w3c_date")
    layouts, dates = {0: now}, {0: date}
    opening = block.filter(pl.col("note") == "header").select("segment", "raw")
    for segment, line in opening.iter_rows():
        if line.startswith(_FIELDS):
            found = header(line)
            if found not in names and len(names) < _MOST_LAYOUTS:
                names.append(found)
            now = names.index(found) if found in names else 0
        elif line.startswith(_DATE):
            date = line.removeprefix(_DATE).strip()[:10]
        layouts[segment], dates[segment] = now, date
    ctx.carry["w3c_layout"], ctx.carry["w3c_date"] = now, date
    schema: dict[str, Any] = {"segment": block.schema["segment"], "day": pl.String}
    return layouts, pl.DataFrame(list(dates.items()), schema=schema, orient="row")


def _fields(
    part: pl.DataFrame, layout: tuple[str, ...] | None, want: tuple[str, ...], dates: pl.DataFrame, ctx: Context
) -> pl.DataFrame:
    """Fields of rows under one header; a row that does not fit it, or has none, is read as a known layout it fits."""
    read = _split(part, layout, want, dates, ctx) if layout is not None else None
    again = part if read is None else part.filter(read["broken"] == MISFIT)
    pieces = [_empty(want)]
    width = pl.col("tokens").list.eval(pl.element().filter(pl.element() != "")).list.len()
    for (size,), rows in again.with_columns(width=width).group_by("width", maintain_order=True):
        known = KNOWN.get(size) if isinstance(size, int) else None
        if known is not None and known != layout:
            pieces.append(_split(rows, known, want, dates, ctx).filter(pl.col("broken").is_null()))
    fitted = pl.concat(pieces, how="diagonal")
    if read is None:
        read = part.select(*PLACE, broken=pl.lit(NO_HEADER))
    rest = read.join(fitted.select("record_no"), on="record_no", how="anti")
    return pl.concat([rest, fitted], how="diagonal")


def _split(
    part: pl.DataFrame, layout: tuple[str, ...], want: tuple[str, ...], dates: pl.DataFrame, ctx: Context
) -> pl.DataFrame:
    """Fields of rows by one layout, in the rows' order; `broken` where it does not fit."""
    tokens, size = pl.col("tokens"), len(layout)
    if _USER not in layout:
        tokens = tokens.list.eval(pl.element().filter(pl.element() != ""))
    extra = tokens.list.len().cast(pl.Int64) - size
    user = layout.index(_USER) if _USER in layout else size

    def field(name: str) -> pl.Expr:
        at = layout.index(name)
        if at == user:
            text = tokens.list.slice(at, extra + 1).list.join(" ").str.strip_chars(" ")
        else:
            text = tokens.list.get(at if at < user else at - size, null_on_oob=True)
        return pl.when(~text.is_in(["-", ""])).then(text)

    fits = (extra >= 0) if user < size else (extra == 0)
    for name, shape in _SHAPES.items():
        if name in layout:
            fits &= field(name).str.contains(shape).fill_null(value=True)
    read = [name for name in dict.fromkeys((*want, "date", "time")) if name in layout]
    rows = part.select(*PLACE, "segment", fits.alias("fits"), *(field(n).alias(f"c.{n}") for n in read))
    timed = _timed(rows) if "date" in layout else _timed(_dated(rows, dates, ctx))
    return timed.select(*PLACE, pl.exclude(*PLACE, "fits", "segment"))


def _dated(rows: pl.DataFrame, dates: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Adds c.date where rows have none: that of `#Date:`; a clock that runs back over noon has passed midnight."""
    clock = pl.col("c.time").str.to_time("%H:%M:%S%.f", strict=False)
    hour = pl.when("fits").then(clock.dt.hour().cast(pl.Int64)).forward_fill().over("segment")
    before, passed = ctx.carry.get("w3c_clock", (None, 0))
    first = pl.when(pl.col("segment") == 0).then(pl.lit(before, pl.Int64))
    rows = rows.with_columns(hour=hour)
    earlier = pl.col("hour").shift(1).over("segment").fill_null(first)
    rows = rows.with_columns(back=(pl.col("hour") - earlier < -12).fill_null(value=False).cast(pl.Int64))
    begun = pl.when(pl.col("segment") == 0).then(pl.lit(passed)).otherwise(0)
    rows = rows.with_columns(days=pl.col("back").cum_sum().over("segment") + begun)
    ends: dict[int, tuple[int, int]] = ctx.carry.setdefault("w3c_ends", {})
    last = rows.filter(pl.col("hour").is_not_null()).group_by("segment").last()
    ends.update({segment: (h, d) for segment, h, d in last.select("segment", "hour", "days").iter_rows()})
    named = rows.join(dates, on="segment", how="left", maintain_order="left")
    day = pl.col("day").str.to_date("%Y-%m-%d", strict=False) + pl.duration(days="days")
    return named.with_columns(day.dt.to_string("%Y-%m-%d").alias("c.date")).drop("hour", "back", "days", "day")


def _timed(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds ts, ts_raw and broken; drops date and time."""
    text = pl.concat_str("c.date", "c.time", separator=" ")
    time = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.replace_time_zone("UTC")
    broken = pl.when(~pl.col("fits")).then(pl.lit(MISFIT)).when(pl.col("ts").is_null()).then(pl.lit(BAD_TIME))
    return rows.with_columns(ts=time, ts_raw=text).with_columns(broken=broken).drop("c.time", "c.date")


def _empty(want: tuple[str, ...]) -> pl.DataFrame:
    schema: dict[str, Any] = {name: RECORD_SCHEMA[name] for name in PLACE}
    schema |= {f"c.{name}": pl.String for name in want}
    return pl.DataFrame(schema=schema | {"ts": pl.Datetime("us", "UTC"), "ts_raw": pl.String, "broken": pl.String})


def _left(part: pl.DataFrame, disposition: str, why: str) -> pl.DataFrame:
    return part.select(*PLACE, pl.lit(disposition).alias("disposition"), reason=why)
