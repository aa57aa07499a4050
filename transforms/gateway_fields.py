"""Fields of the JSON and key=value logs of cloud gateways: what Mimecast's and Proofpoint's have in common.

The same record comes plain from the vendor's API or as a row of a Log Analytics custom table, whose columns are the
record's names joined by an underscore, with a letter for the type behind (`filter.qid` is `filter_qid_s`), and whose
lists are JSON text.
"""

import re
from collections.abc import Iterable, Mapping

import polars as pl

from transforms import jsonrows
from transforms.model import Head

MAX_TEXT = 1000  # characters of status_text
_TYPED_KEY = r'"([A-Za-z][A-Za-z0-9_]{0,120})_[sdtbg]"(\s*:)'
_ZONE = r"(?:[zZ]|[+-]\d\d:?\d\d)$"
_AMERICAN = ("%m/%d/%Y %I:%M:%S%.f %p", "%m/%d/%Y %H:%M:%S%.f")
_DIRECTIONS = ("inbound", "outbound", "internal")
_LIST = pl.Struct({"v": pl.List(pl.String())})
# An API's answer: some plain members, then the array of records.
_WRAPPED = re.compile(
    r'\{(?:\s*"[^"]{0,100}"\s*:\s*(?:"[^"]{0,1000}"|[-+.\w]{1,40})\s*,){0,20}'
    r'\s*"(?:value|[Rr]ecords|items|data|results|events|logs)"\s*:\s*\[\s*\{'
)


def begin(head: Head) -> str | None:
    """The text from its first JSON on, also where the head begins in the middle of a line; None when there is none."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        return start
    rest = start.partition("\n")[2]
    return rest if rest.startswith('{"') else None


def one_a_line(start: str, key: re.Pattern[str]) -> bool:
    """Whether records stand one a line: the first line is an object with such a key, and none that holds an array."""
    first = start.partition("\n")[0]
    return first.startswith("{") and key.search(first) is not None and not _WRAPPED.match(start[:8000])


def decode(frame: pl.DataFrame, paths: Iterable[str], column: str = "raw") -> pl.DataFrame:
    """Read the values at dotted paths as text.

    Args:
        frame: one JSON object per row in `column`.
        paths: such as `filter.qid`; no two may differ in case only.
        column: where the JSON stands.

    Returns:
        `frame` without `column`, with a String column per path (null when missing, JSON text for a list or an object)
        and the Boolean `bad_json`. A value is also found under the path's name in a Log Analytics table.
    """
    paths = list(paths)
    tree: dict[str, object] = {}
    for path in paths:
        at = tree
        *above, last = path.split(".")
        for name in above:
            at = at.setdefault(name, {})  # type: ignore[assignment]  # no path is the beginning of another
        at[last] = None
        tree.setdefault(_flat(path), None)
    text = frame.with_columns(_plain_keys(frame.get_column(column)).alias(column))
    decoded = jsonrows.decode(text.lazy(), _struct(tree), column).drop(column).collect()
    return decoded.select(*(name for name in decoded.columns if name != "j"), *(_at(path) for path in paths))


def _flat(path: str) -> str:
    return path.replace(".", "_").replace("-", "_")


def _struct(tree: Mapping[str, object]) -> pl.Struct:
    return pl.Struct({name: _struct(sub) if isinstance(sub, dict) else pl.String() for name, sub in tree.items()})


def _at(path: str) -> pl.Expr:
    value = pl.col("j")
    for name in path.split("."):
        value = value.struct.field(name)
    flat = _flat(path)
    return value.alias(path) if flat == path else pl.coalesce(value, pl.col("j").struct.field(flat)).alias(path)


def _plain_keys(raw: pl.Series) -> pl.Series:
    """Names without the letter of their type; a quote inside a value is escaped and cannot be taken for a name's."""
    typed = raw.str.contains(_TYPED_KEY).fill_null(value=False)
    if not typed.any():
        return raw
    return raw.zip_with(~typed, raw.str.replace_all(_TYPED_KEY, '"${1}"${2}'))


def times(written: pl.Series) -> pl.DataFrame:
    """Columns ts (UTC, microseconds; null when not readable) and ts_basis.

    Read are ISO 8601 with an offset (`+0100`, `+01:00`, `Z`) or without (then it is UTC), epoch milliseconds or
    seconds, and the American form of exports.
    """
    value = written.str.strip_chars()
    offset = value.str.contains(_ZONE)
    iso = value.str.replace(r"[zZ]$", "+00:00").str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T")
    iso = iso.zip_with(offset.fill_null(value=True), iso + "+00:00")
    found = iso.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False).dt.convert_time_zone("UTC")
    if found.null_count() > written.null_count():
        epoch = value.str.extract(r"^(\d{12,13})(?:\.0*)?$").cast(pl.Int64) * 1000
        seconds = value.str.extract(r"^(\d{10})(?:\.0*)?$").cast(pl.Int64) * 1_000_000
        number = epoch.zip_with(epoch.is_not_null(), seconds).cast(pl.Datetime("us", "UTC"))
        found = found.zip_with(found.is_not_null(), number)
    if found.null_count() > written.null_count():
        bare = value.str.replace(",", "", literal=True)
        for form in _AMERICAN:
            read = bare.str.to_datetime(form, time_unit="us", strict=False).dt.replace_time_zone("UTC")
            found = found.zip_with(found.is_not_null(), read)
    basis = pl.select(pl.when(offset).then(pl.lit("offset")).otherwise(pl.lit("utc"))).to_series()
    return pl.DataFrame({"ts": found, "ts_basis": basis})


def listed(value: pl.Series) -> pl.Series:
    """The texts of a JSON array of texts; any other text as the only one; null for null and for what is empty."""
    value = value.rename("a")
    array = value.str.strip_chars_start().str.starts_with("[").fill_null(value=False)
    filled = pl.col("a").str.strip_chars() != ""
    lists = value.to_frame().select(pl.when(filled).then(pl.concat_list("a")).alias("a")).to_series()
    if array.any():
        texts = pl.DataFrame({"t": '{"v":' + value.filter(array) + "}"})
        read = jsonrows.decode(texts.lazy(), _LIST, "t").collect()
        place = (array.cum_sum().cast(pl.Int64) - 1).clip(0)  # of each row in `read`, where it is an array
        found = read.select(pl.col("j").struct.field("v")).to_series().gather(place)
        lists = found.zip_with(array & ~read.get_column("bad_json").gather(place), lists)
    kept = lists.list.drop_nulls()
    return kept.to_frame("a").select(pl.when(pl.col("a").list.len() > 0).then("a")).to_series()


def addresses(value: pl.Series) -> pl.Series:
    """Mail addresses without <>, from a JSON array or a text that lists them with commas or semicolons.

    A text is only cut where every part is an address: a local part may be quoted and hold a comma.
    """
    texts = pl.DataFrame({"n": pl.int_range(len(value), eager=True), "a": listed(value)}).explode("a")
    parts = texts.get_column("a").str.replace_all(r"\s*[,;]\s*", "\x1f").str.strip_chars("\x1f ").str.split("\x1f")
    whole = parts.list.eval(pl.element().str.contains(r"^[^\"\s]*[^\s@]@[^\s@]+$")).list.all()
    cut = pl.when(whole).then(parts).otherwise(pl.concat_list(texts.get_column("a")))
    single = texts.with_columns(cut.alias("a")).explode("a").with_columns(envelope(pl.col("a")))
    lists = single.filter(pl.col("a").str.len_bytes() > 0).group_by("n", maintain_order=True).agg("a")
    return texts.select(pl.col("n").unique(maintain_order=True)).join(lists, on="n", how="left").get_column("a")


def recipients(lists: pl.Series) -> dict[str, pl.Series]:
    """The columns rcpt, recipients and n_rcpt from a list of addresses a row."""
    count = lists.list.len()
    several = pl.select(pl.when(count > 1).then(lists)).to_series()
    return {
        "rcpt": lists.list.first(),
        "recipients": several,
        "n_rcpt": count.cast(pl.Int64),
    }


def envelope(address: pl.Expr) -> pl.Expr:
    """An address without blanks and <>; empty for the null sender."""
    return address.str.strip_chars().str.replace(r"^<(.*)>$", "${1}")


def text(value: pl.Expr) -> pl.Expr:
    """A text without blanks around it; null when empty or one of the words for nothing."""
    value = value.str.strip_chars()
    return pl.when(~value.is_in(["", "null", "None", "NONE", "none"])).then(value)


def message_id(value: pl.Expr) -> pl.Expr:
    """A Message-ID with its angle brackets, which some sources leave away; null when only one is left of them."""
    value = text(value)
    begun, ended = value.str.starts_with("<"), value.str.ends_with(">")
    return pl.when(begun & ended).then(value).when(~begun & ~ended).then("<" + value + ">")


def direction(*values: pl.Expr) -> pl.Expr:
    """The first of the values that is a direction, else unknown."""
    known = [pl.when(v.str.to_lowercase().is_in(_DIRECTIONS)).then(v.str.to_lowercase()) for v in values]
    return pl.coalesce(*known, pl.lit("unknown"))


def whole(value: pl.Expr) -> pl.Expr:
    """A count or size, also where it is written as `2116.0`; null when it is no number of at most 15 digits."""
    return value.str.extract(r"^\s*(\d{1,15})(?:\.0*)?\s*$").cast(pl.Int64)


def told(**parts: pl.Expr) -> pl.Expr:
    """`name=value; name=value` of the values that are there; null when none is. Passwords in addresses are masked."""
    pieces = [pl.lit(f"{name}=") + text(value) for name, value in parts.items()]
    whole_text = without_password(pl.concat_str(pieces, separator="; ", ignore_nulls=True)).str.slice(0, MAX_TEXT)
    return pl.when(whole_text != "").then(whole_text)


def without_password(value: pl.Expr) -> pl.Expr:
    """Text in which no URL holds a password (`https://user:password@host/`)."""
    return value.str.replace_all(r"(://[^/?#\s@:]*):[^/?#\s@]*@", "${1}:***@")
