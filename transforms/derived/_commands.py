"""Sessions of which the log tells command by command: Exchange POP3 and IMAP, LDAP connections, SMTP conversations.

The records of one session have a server's number for it, which is used again after a restart: a session begins where
one is opened, or after six hours without a record. It belongs to the UTC day on which it ends, unless it lasts over
more than one midnight, as connections of directory clients do: then each day has its own part of it.

Records are put in order and numbered by integers alone, and summed in parts that merge, so that a large day is taken
in several pieces (by a hash of the session's key) and its memory does not grow with it.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import polars as pl

from transforms import spill

REACH = (2, 2)  # whether a session lasts over two midnights shows within two days
CAP = 2**38  # a log can claim any number
_ROWS_AT_ONCE = 350_000
_IDLE = timedelta(hours=6)
_DENSE = 2**40
_FAR = 2**40  # more than there are rows
_MOST_NAMES = 12

KEY = ("protocol", "source", "host", "session_id")
CLIENT = ("src_ip", "src_port", "src_net", "src_asn", "src_org", "src_cc", "src_class", "client_fp")
WHO = ("principal_id", "principal_type", "credential_id", "mailbox_id")
LOGINS = ("auth", "bind", "signin")
BACK = "be:"
EXCHANGE = "exchange_pop_imap"
_LAST_TOLD = ("auth_method", "tls_version", "tls_cipher")
_SUMS = ("item_count", "bytes_out", "bytes_in", "retr_count", "dele_count", "top_count")
_TOLD = (
    "ts", "ts_end", "tenant_id", *KEY, "action", "op_raw", "outcome", *WHO, *CLIENT, *_LAST_TOLD, "op_count", *_SUMS,
    "maildrop_n",
)  # fmt: skip


def pieces(rows: pl.LazyFrame, at_most: int, key: Sequence[str] = KEY) -> Iterator[pl.DataFrame]:
    """The rows, of which there are `at_most` so many, in pieces of bounded size, all rows of a key in one of them."""
    same = pl.concat_str([pl.col(name).fill_null("") for name in key], separator="\0").hash(0)
    for piece in spill.pieces(rows, -(-at_most // _ROWS_AT_ONCE), same):
        yield piece.collect(engine="streaming")


def numbered(rows: pl.DataFrame, key: Sequence[str] = KEY) -> pl.DataFrame:
    """Rows with `opens` and `closes`, each with `run`, the number of its session, and `at`, its place in their order.

    The rows stay as they lie: to put so many columns in order costs more than all else.
    """
    narrow = rows.select("ts", "opens", "closes", code=_codes(rows, key)).with_row_index("row").sort("code", "ts")
    key_begins = (pl.col("code") != pl.col("code").shift(1)).fill_null(value=True)
    instant_begins = key_begins | (pl.col("ts") != pl.col("ts").shift(1))
    narrow = narrow.with_columns(instant_begins.cum_sum().alias("instant"))
    if narrow.height and narrow["instant"][-1] < narrow.height:
        narrow = _placed(narrow, rows)
    idle = (pl.col("ts") - pl.col("ts").shift(1)) > _IDLE
    first = key_begins | pl.any_horizontal(idle, "opens", pl.col("closes").shift(1)).fill_null(value=True)
    day = pl.col("ts").dt.date().alias("day")
    narrow = narrow.select("row", day, first.alias("first")).with_columns(pl.col("first").cum_sum().alias("run"))
    ends = narrow.group_by("run").agg(pl.col("day").n_unique().alias("days")).filter(pl.col("days") > 2)
    if ends.height:
        apart = pl.col("run").is_in(ends["run"].implode()) & (pl.col("day") != pl.col("day").shift(1))
        narrow = narrow.with_columns((pl.col("first") | apart.fill_null(value=False)).cum_sum().alias("run"))
    place = narrow.select("row", pl.col("run").cast(pl.Int64), at=pl.int_range(pl.len(), dtype=pl.Int64)).sort("row")
    return rows.with_columns(place["run"], place["at"])


def _codes(rows: pl.DataFrame, key: Sequence[str]) -> pl.Series:
    """One integer for each key, in the order of the keys; null equals null and comes first."""
    total, number = pl.repeat(0, rows.height, dtype=pl.Int64, eager=True), 1
    for name in key:
        known = rows[name].drop_nulls().unique().sort()
        codes = (rows[name].cast(pl.Enum(known)).to_physical().cast(pl.Int64) + 1).fill_null(0)
        total, number = total * (known.len() + 1) + codes, number * (known.len() + 1)
        if number > _DENSE:
            total, number = total.rank("dense").cast(pl.Int64), rows.height + 1
    return total


def _placed(narrow: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows in an order that the order of the files has no part in, where several of a session bear the same time.

    A session opens first and closes last, unless one of the same number was open before: then that one closes first.
    """
    opens, closes = pl.col("opens").cast(pl.Int64), pl.col("closes").cast(pl.Int64)
    instants = narrow.group_by("instant", maintain_order=True).agg(
        pl.col("code").first(),
        (opens.sum() - closes.sum()).alias("net"),
        pl.col("opens").any().alias("begins"),
        pl.len(),
    )
    left_open = pl.when(pl.col("net") != 0).then(pl.col("net") > 0)
    key_begins = (pl.col("code") != pl.col("code").shift(1)).fill_null(value=True)
    was_open = pl.when(key_begins).then(statement=False).otherwise(left_open.shift(1)).forward_fill()
    instants = instants.select("instant", "len", (was_open & pl.col("begins")).alias("last"))
    shared = narrow.join(instants.filter(pl.col("len") > 1), on="instant", maintain_order="left")
    last = pl.col("last")
    place = (
        pl.when("opens").then(pl.when(last).then(1).otherwise(0))
        .when("closes").then(pl.when(last).then(0).otherwise(2))
        .otherwise(pl.when(last).then(2).otherwise(1))
    )  # fmt: skip
    told = [name for name in rows.columns if name in _TOLD]
    shared = shared.select("row", place.alias("place"), (pl.col("instant") * 3 + place).alias("slot"))
    still = shared.filter(pl.col("slot").is_duplicated())["row"]
    tie = rows[still].select(pl.struct(told).hash(0).alias("tie"), row=still)
    shared = shared.select("row", "place").join(tie, on="row", how="left")
    return narrow.join(shared, on="row", how="left").sort("code", "ts", "place", "tie").drop("place", "tie")


def parts(rows: pl.DataFrame, key: Sequence[str] = ("run",), more: Sequence[pl.Expr] = ()) -> pl.DataFrame:
    """What rows of `numbered` sum up to, one row for each key, with what `more` sums up: it merges by `whole`."""
    times = pl.col("op_count").fill_null(1).clip(0, CAP)
    good, login = pl.col("outcome") != "failure", pl.col("action").is_in(LOGINS)
    named = pl.col("principal_id").is_not_null()
    command = ~pl.col("action").is_in(["connect", "session"]) & ~pl.col("closes")
    taken = (pl.col("protocol") != "pop3") | pl.col("action").is_in(["retr", "top"])
    closed = (pl.col("action") == "session") & (pl.col("outcome") == "success")
    used = command & ~login & (pl.col("outcome") == "success") & named
    who = pl.when(named & good).then(2).when(named).then(1).otherwise(0)
    flagged = rows.lazy().select(
        *key, "at", "ts", "ts_end", "date", "tenant_id", "maildrop_n",
        *(name for wanted in more for name in wanted.meta.root_names()),
        who=who.cast(pl.Int64),
        named=pl.when(named).then("ts"),
        times=pl.when(command).then(times).otherwise(0),
        failed=pl.when(login & ~good).then(times).otherwise(0),
        used=(login & (pl.col("outcome") == "success") | closed | used).fill_null(value=False),
        **{name: pl.when(pl.col(name).is_not_null()).then("at") for name in ("src_ip", *_LAST_TOLD)},
        **{
            name: _counted(name, wanted)
            for name, wanted in (
                ("item_count", good), ("bytes_out", good & taken), ("bytes_in", pl.lit(value=True))
            )
        },
        **{f"{name}_count": _done(name) for name in ("retr", "dele", "top")},
    )  # fmt: skip
    # Which row tells is found by its place; what it tells is fetched once, at the end.
    at = pl.col("at")
    summed = flagged.group_by(*key).agg(
        at.min().alias("first"),
        (pl.col("who") * _FAR + at).max().alias("best"),
        pl.col("src_ip").min().alias("client"),
        *(pl.col(name).max() for name in _LAST_TOLD),
        pl.col("tenant_id").min(),
        pl.col("ts").min().alias("start_ts"),
        pl.max_horizontal(pl.col("ts").max(), pl.col("ts_end").max()).alias("end_ts"),
        pl.col("date").max(),
        pl.col("who").max(),
        pl.col("named").min().alias("login"),
        pl.col("times").sum().alias("commands"),
        *(_sum(name) for name in _SUMS),
        pl.col("maildrop_n").max().clip(0),
        pl.col("failed").sum().alias("n_auth_failures"),
        pl.col("used").any(),
        *more,
    )
    found = summed.collect(engine="streaming")
    lines = rows["at"].arg_sort()

    def told(places: pl.Series, names: Sequence[str]) -> list[pl.Series]:
        return [rows[name].gather(lines.gather(places)) for name in names]

    return (
        found.with_columns(
            *told(found["first"], ("protocol", "source", "host", "session_id")),
            *told(found["best"] % _FAR, (*WHO, "ts")),
            *told(found["client"], CLIENT),
            *(column for name in _LAST_TOLD for column in told(found[name], (name,))),
        )
        .join(_spoken(rows, key, command & (times > 0)), on=key, how="left", nulls_equal=True)
        .drop("first", "best", "client")
    )


def _spoken(rows: pl.DataFrame, key: Sequence[str], counted: pl.Expr) -> pl.DataFrame:
    """The `names` of the commands of each key; where the log does not name them, those of the actions."""
    by_name = pl.col("source").is_in([EXCHANGE, "exchange_smtp"]) | (pl.col("protocol") == "ldap")
    said = rows.select(pl.when(by_name).then("op_raw").otherwise("action").alias("said"))["said"]
    known = said.drop_nulls().unique()
    name = pl.col("said").str.to_lowercase().str.strip_prefix(BACK).str.extract(r"^([a-z][a-z0-9_-]{0,15})")
    names = known.to_frame("said").select(name.alias("names"))["names"]
    number = names.rank("dense").gather(said.cast(pl.Enum(known)).to_physical())
    pairs = (
        rows.lazy()
        .with_columns(number.alias("number"))
        .filter(counted)
        .select(*key, "number")
        .drop_nulls("number")
        .unique()
    )
    numbers = pl.LazyFrame({"names": names, "number": names.rank("dense")}).drop_nulls().unique()
    return pairs.join(numbers, on="number").group_by(*key).agg("names").collect(engine="streaming")


def whole(found: pl.DataFrame) -> pl.DataFrame:
    """Merges `parts` to one row for each `run`: the columns of the table sessions, and `date`, the day of its end.

    Of what a session has once, the first row's counts.
    """
    if found["run"].is_unique().all():
        merged = found
    else:
        last = found.sort("who", "ts").group_by("run", maintain_order=True).agg(pl.col(name).last() for name in WHO)
        merged = found.group_by("run", maintain_order=True).agg(
            *(pl.col(name).first() for name in ("protocol", "source", "host", "session_id")),
            pl.col("tenant_id").min(),
            pl.col("start_ts").min(),
            pl.col("end_ts").max(),
            pl.col("date").max(),
            *(pl.col(name).filter(pl.col("src_ip").is_not_null()).first() for name in CLIENT),
            *(pl.col(name).drop_nulls().first() for name in _LAST_TOLD),
            pl.col("commands").sum(),
            pl.col("names").list.explode().unique(),
            *(_sum(name) for name in _SUMS),
            pl.col("maildrop_n").max(),
            pl.col("n_auth_failures").sum(),
            pl.col("used").any(),
        )
        merged = merged.join(last, on="run")
    outcome = pl.when("used").then(pl.lit("success")).when(pl.col("n_auth_failures") > 0).then(pl.lit("failure"))
    names = pl.col("names").list.drop_nulls().list.sort().list.head(_MOST_NAMES)
    return merged.with_columns(
        names.list.join(",").alias("command_signature"), outcome.otherwise(pl.lit("unknown")).alias("outcome")
    ).drop("names")


def _counted(name: str, wanted: pl.Expr) -> pl.Expr:
    return pl.when(wanted.fill_null(value=False)).then(pl.col(name).clip(0, CAP)).alias(name)


def _done(name: str) -> pl.Expr:
    """How often a POP3 command was carried out: as counted in the record, else once for each record of it."""
    mine = (pl.col("action") == name) & (pl.col("outcome") != "failure")
    number = pl.coalesce(pl.col(f"{name}_count"), pl.when(mine).then(pl.col("op_count").fill_null(1)), pl.lit(0))
    return pl.when(pl.col("protocol") == "pop3").then(number.clip(0, CAP)).alias(f"{name}_count")


def _sum(name: str) -> pl.Expr:
    return pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name)
