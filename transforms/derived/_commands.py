"""Sessions of which the log tells command by command: Exchange POP3 and IMAP, LDAP connections, SMTP conversations.

The records of one session have a server's number for it, which is used again after a restart: a session begins where
one is opened, or after six hours without a record. It belongs to the UTC day on which it ends, unless it lasts over
more than one midnight, as connections of directory clients do: then each day has its own part of it.

Exchange writes the session of a POP3 or IMAP client in the log of the front end, which has the client's address, and in
that of the back end, which has the front end's. What the front end's tells of commands counts; where it tells of none
after the login, what the back end's does.
"""

from collections.abc import Sequence
from datetime import date, timedelta

import polars as pl

EXCHANGE = "exchange_pop_imap"

REACH = (2, 2)  # whether a session lasts over two midnights shows within two days
_IDLE = timedelta(hours=6)
_SAME_LOGIN = timedelta(minutes=1)
_LONGEST = timedelta(hours=48)
_CAP = 2**38  # a log can claim any number
_MOST_NAMES = 12

KEY = ("protocol", "source", "host", "session_id")
CLIENT = ("src_ip", "src_port", "src_net", "src_asn", "src_org", "src_cc", "src_class", "client_fp")
WHO = ("principal_id", "principal_type", "credential_id", "mailbox_id")
_LOGINS = ("auth", "bind", "signin")
_NOT_DATA = (*_LOGINS, "connect", "session", "other")
_BACK = "be:"


def numbered(rows: pl.LazyFrame, key: Sequence[str] = KEY) -> pl.LazyFrame:
    """Adds `run`, the number of the session, and `at`, the place in the order, to rows with `opens` and `closes`."""
    kept = [name for name in rows.collect_schema().names() if name in _TOLD]
    ordered = _placed(rows.with_columns(pl.struct(kept).hash(0).alias("_tie")), key)
    ordered = ordered.sort(*key, "ts", "_place", "_tie", nulls_last=False)
    same = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(1)) for name in key)
    idle = (pl.col("ts") - pl.col("ts").shift(1)) > _IDLE
    begins = pl.any_horizontal(idle, "opens", pl.col("closes").shift(1)).fill_null(value=True)
    # The first row of all has nothing before it.
    first = ~same | begins | (pl.int_range(pl.len()) == 0)
    found = ordered.with_columns(first.cum_sum().alias("run")).drop("_place", "_tie").with_row_index("at")
    days = pl.col("date").n_unique().over("run") > 2
    piece = pl.struct("run", pl.when(days).then("date").alias("date")).rank("dense")
    return found.with_columns(piece.alias("run"))


def _placed(rows: pl.LazyFrame, key: Sequence[str]) -> pl.LazyFrame:
    """Adds `_place`, the order of a session's rows that bear the same time.

    A session opens first and closes last, unless one of the same number was open before: then that one closes first.
    """
    opens, closes = pl.col("opens").cast(pl.Int64), pl.col("closes").cast(pl.Int64)
    instant = [*key, "ts"]
    rows = rows.sort(*instant, nulls_last=False).with_columns(
        (opens.sum() - closes.sum()).over(instant).alias("_net"), pl.col("opens").any().over(instant).alias("_begins")
    )
    left_open = pl.when(pl.col("_net") != 0).then(pl.col("_net") > 0).forward_fill().over(key)
    rows = rows.with_columns(left_open.alias("_open")).with_columns(pl.col("_open").shift(1).over(key).alias("_open"))
    rows = rows.with_columns(pl.col("_open").first().over(instant).fill_null(value=False).alias("_open"))
    last = pl.col("_open") & pl.col("_begins")
    place = (
        pl.when("opens").then(pl.when(last).then(1).otherwise(0))
        .when("closes").then(pl.when(last).then(0).otherwise(2))
        .otherwise(pl.when(last).then(2).otherwise(1))
    )  # fmt: skip
    return rows.with_columns(place.alias("_place")).drop("_net", "_begins", "_open")


def commands_once(access: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of Exchange's POP3 and IMAP logs (all of one source) without what both ends tell, and `run`.

    Rows of the back end that stay have the client's address, and the `run`, of the front end's session.
    """
    operation = pl.col("op_raw").str.to_lowercase()
    rows = access.with_columns(
        operation.str.starts_with(_BACK).fill_null(value=False).alias("back"),
        operation.str.ends_with("opensession").fill_null(value=False).alias("opens"),
        operation.str.ends_with("closesession").fill_null(value=False).alias("closes"),
    )
    # Held: the sessions are made of the rows, and the rows then chosen by the sessions.
    rows = numbered(rows).collect(engine="streaming").lazy()
    pairs = _pairs(rows).collect(engine="streaming").lazy()
    has_front, front_tells = pl.col("front").is_not_null(), pl.col("front_data") > 0
    repeated = has_front & (front_tells | pl.col("action").is_in([*_LOGINS, "connect"]) | pl.col("closes"))
    rows = rows.join(pairs, on="run", how="left").filter(~repeated.fill_null(value=False))
    told = rows.filter(pl.col("src_ip").is_not_null() & ~pl.col("back"))
    clients = told.group_by(pl.col("run").alias("front")).agg(
        pl.col(name).sort_by("at").first().alias(f"_{name}") for name in CLIENT
    )
    rows = rows.join(clients, on="front", how="left")
    return rows.with_columns(
        *(pl.when(has_front).then(f"_{name}").otherwise(name).alias(name) for name in CLIENT),
        pl.coalesce("front", "run").alias("run"),
    ).drop("front", "front_data", *(f"_{name}" for name in CLIENT))


def _pairs(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Sessions of the back end and the front end's that they belong to: [run, front, front_data]."""
    user = pl.col("principal_id").str.replace(r"^.*[\\/]", "").str.extract(r"^([^@]{1,20})").alias("user")
    named = pl.col("principal_id").is_not_null()
    runs = rows.group_by("run").agg(
        pl.col("protocol").first(),
        pl.col("back").first(),
        user.drop_nulls().min(),
        pl.col("ts").filter(named).min().alias("login"),
        pl.col("ts").min().alias("start"),
        pl.col("ts").max().alias("end"),
        (~pl.col("action").is_in(_NOT_DATA)).sum().alias("front_data"),
    )
    known = runs.filter(pl.col("user").is_not_null())
    back = (
        known.filter("back")
        .select("run", "protocol", "user", "login", pl.col("login").alias("seen"))
        .sort("login", "run")
    )
    front = known.filter(~pl.col("back")).rename({"run": "front"}).drop("back").sort("login", "front")
    near = back.join_asof(
        front, on="login", by=["protocol", "user"], strategy="nearest", tolerance=_SAME_LOGIN, check_sortedness=False
    )
    # A client that stayed silent between: the session of the same user that was open then.
    lacking = (
        near.filter(pl.col("front").is_null()).select("run", "protocol", "user", "login", "seen").sort("login", "run")
    )
    during = lacking.join_asof(
        front, on="login", by=["protocol", "user"], strategy="backward", tolerance=_LONGEST, check_sortedness=False
    )
    during = during.filter(pl.col("seen") <= pl.col("end") + _SAME_LOGIN)
    found = pl.concat([near.filter(pl.col("front").is_not_null()), during], how="diagonal")
    return found.select("run", "front", "front_data")


_TOLD = (
    "ts", "ts_end", "tenant_id", *KEY, "action", "op_raw", "outcome", *WHO, *CLIENT, "auth_method", "tls_version",
    "tls_cipher", "op_count", "item_count", "bytes_out", "bytes_in", "retr_count", "dele_count", "top_count",
    "maildrop_n",
)  # fmt: skip


def summed(rows: pl.LazyFrame) -> pl.LazyFrame:
    """One row for each `run`: the columns of the table sessions, and `date`, the day of its end.

    Args:
        rows: access events with `run`, `at` and `closes`; `back` tells rows of a back end.
    """
    times = pl.col("op_count").fill_null(1).clip(0, _CAP)
    good, login = pl.col("outcome") != "failure", pl.col("action").is_in(_LOGINS)
    # Other logs name the program that wrote the line.
    named = pl.col("source").is_in([EXCHANGE, "exchange_smtp"]) | (pl.col("protocol") == "ldap")
    spoken = pl.when(named).then("op_raw").otherwise("action")
    name = spoken.str.to_lowercase().str.strip_prefix(_BACK).str.extract(r"^([a-z][a-z0-9_-]{0,15})")
    command = ~pl.col("action").is_in(["connect", "session"]) & ~pl.col("closes")
    names = name.filter(command & (times > 0)).drop_nulls()
    front = ~pl.col("back")
    taken = (pl.col("protocol") != "pop3") | pl.col("action").is_in(["retr", "top"])
    failures = pl.when(login & ~good).then(times).otherwise(0).sum()
    signed = (login & (pl.col("outcome") == "success")).any()
    closed = ((pl.col("action") == "session") & (pl.col("outcome") == "success")).any()
    used = closed | (command & ~login & (pl.col("outcome") == "success") & pl.col("principal_id").is_not_null()).any()
    return rows.sort("ts", "at").group_by("run").agg(
        pl.col("protocol").first(),
        pl.col("tenant_id").min(),
        pl.col("source").first(),
        *(pl.coalesce(pl.col(n).filter(front).first(), pl.col(n).first()).alias(n) for n in ("host", "session_id")),
        pl.col("ts").min().alias("start_ts"),
        pl.max_horizontal(pl.col("ts").max(), pl.col("ts_end").max()).alias("end_ts"),
        pl.col("date").max(),
        *(_last(n, good & pl.col("principal_id").is_not_null(), pl.col("principal_id").is_not_null()) for n in WHO),
        *(pl.col(n).filter(pl.col("src_ip").is_not_null()).first() for n in CLIENT),
        *(pl.col(n).drop_nulls().last() for n in ("auth_method", "tls_version", "tls_cipher")),
        pl.when(command).then(times).otherwise(0).sum().alias("commands"),
        names.unique().sort().head(_MOST_NAMES).str.join(",").alias("command_signature"),
        _sum(pl.col("item_count"), good),
        _sum(pl.col("bytes_out"), good & taken),
        _sum(pl.col("bytes_in"), pl.lit(value=True)),
        *(_done(n).alias(f"{n}_count") for n in ("retr", "dele", "top")),
        pl.col("maildrop_n").max().clip(0),
        failures.alias("n_auth_failures"),
        pl.when(signed | used).then(pl.lit("success")).when(failures > 0).then(pl.lit("failure"))
        .otherwise(pl.lit("unknown")).alias("outcome"),
    )  # fmt: skip


def _last(name: str, wanted: pl.Expr, otherwise: pl.Expr) -> pl.Expr:
    # Not the last that is not null: the columns must be of one record.
    last = pl.when(wanted.any()).then(pl.col(name).filter(wanted).last())
    return last.otherwise(pl.col(name).filter(otherwise).last()).alias(name)


def _sum(value: pl.Expr, wanted: pl.Expr) -> pl.Expr:
    kept = value.clip(0, _CAP).filter(wanted.fill_null(value=False))
    return pl.when(kept.count() > 0).then(kept.sum())


def _done(name: str) -> pl.Expr:
    """How often a POP3 command was carried out: as counted in the record, else once for each record of it."""
    mine = (pl.col("action") == name) & (pl.col("outcome") != "failure")
    number = pl.coalesce(pl.col(f"{name}_count"), pl.when(mine).then(pl.col("op_count").fill_null(1)))
    return pl.when((pl.col("protocol") == "pop3").any()).then(number.clip(0, _CAP).sum())


def exchange_sessions(access: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Exchange's POP3 and IMAP sessions that belong to `days`, as `summed` gives them.

    Args:
        access: access events of the days in REACH.
    """
    rows = access.filter((pl.col("source") == EXCHANGE) & pl.col("session_id").is_not_null())
    return summed(commands_once(rows)).filter(pl.col("date").is_between(days[0], days[-1]))
