"""Exchange's POP3 and IMAP sessions, each told by the front end, the back end or both.

Exchange writes the session of a client in the log of the front end, which has the client's address, and in that of the
back end, which has the front end's. What the front end's tells of commands counts; where it tells of none after the
login, what the back end's does.
"""

from collections.abc import Iterator
from datetime import timedelta

import polars as pl

from transforms.derived import _commands
from transforms.derived._commands import BACK, EXCHANGE, LOGINS
from transforms.spill import Spill

_SAME_LOGIN = timedelta(minutes=1)
_LONGEST = timedelta(hours=48)
_ROWS_AT_ONCE = 500_000  # about 50,000 sessions
_NOT_DATA = (*LOGINS, "connect", "session", "other")
_AROUND = (*LOGINS, "connect")  # what both ends tell of


def sessions(access: pl.LazyFrame, at_most: int) -> Iterator[pl.DataFrame]:
    """One row for each session, as `_commands.whole` gives them, in frames of bounded size.

    Args:
        access: access events with the columns of `_commands`, of the days in REACH.
        at_most: how many there may be.
    """
    rows = access.filter((pl.col("source") == EXCHANGE) & pl.col("session_id").is_not_null())
    number, run = max(1, -(-at_most // _ROWS_AT_ONCE)), pl.col("run").cast(pl.UInt64)
    ends: list[pl.DataFrame] = []
    before = 0
    with Spill(number, run) as told, Spill(number, run) as once:
        for held in _commands.pieces(rows, at_most):
            numbered = _commands.numbered(_marked(held)).with_columns(pl.col("run") + before)
            before += numbered.height
            parts = _parts(numbered)
            ends.append(_ends(parts))
            told.add(parts.lazy())
        whole = told
        if any(frame["back"].any() for frame in ends):
            pairs = _pairs(pl.concat(ends))
            for piece in told.pieces():
                once.add(_once(piece.collect(), pairs).lazy())
            whole = once
        for piece in whole.pieces():
            yield _commands.whole(piece.sort("run", "back", "around").collect())


def _marked(rows: pl.DataFrame) -> pl.DataFrame:
    operation = pl.col("op_raw").str.to_lowercase()
    return rows.with_columns(
        operation.str.starts_with(BACK).fill_null(value=False).alias("back"),
        operation.str.ends_with("opensession").fill_null(value=False).alias("opens"),
        operation.str.ends_with("closesession").fill_null(value=False).alias("closes"),
    )


def _parts(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums for each session; those of the back end apart for what both ends tell of (`around`) and the rest."""
    if rows["back"].any():
        first = rows.group_by("run").agg(pl.col("back").sort_by("at").first())
        rows = rows.drop("back").join(first, on="run", maintain_order="left")
    around = pl.col("back") & (pl.col("action").is_in(_AROUND) | pl.col("closes"))
    rows = rows.with_columns(around.fill_null(value=False).alias("around"))
    data = rows.group_by("run", "around").agg((~pl.col("action").is_in(_NOT_DATA)).sum().alias("data"))
    summed = _commands.parts(rows, ("run", "back", "around"))
    return summed.join(data, on=["run", "around"])


def _ends(found: pl.DataFrame) -> pl.DataFrame:
    """What pairs sessions, one row for each."""
    user = pl.col("principal_id").str.replace(r"^.*[\\/]", "").str.extract(r"^([^@]{1,20})").alias("user")
    return found.group_by("run").agg(
        pl.col("protocol").first(),
        pl.col("back").first(),
        user.min(),
        pl.col("login").min(),
        pl.col("end_ts").max().alias("end"),
        pl.col("data").sum().cast(pl.Int64).alias("front_data"),
    )


def _once(found: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """The parts without those of back ends that a front end's tell too; the others become part of the front end's."""
    found = found.join(pairs, on="run", how="left")
    paired = pl.col("front").is_not_null()
    repeated = paired & ((pl.col("front_data") > 0) | pl.col("around"))
    # The address of the back end's client is the front end's own.
    clients = (pl.when(~paired).then(name).alias(name) for name in _commands.CLIENT)
    return found.filter(~repeated.fill_null(value=False)).with_columns(
        pl.coalesce("front", "run").alias("run"), *clients
    )


def _pairs(runs: pl.DataFrame) -> pl.DataFrame:
    """Sessions of the back end and the front end's that they belong to: [run, front, front_data]."""
    known = runs.filter(pl.col("user").is_not_null())
    back = known.filter("back").select("run", "protocol", "user", "login", seen="login").sort("login", "run")
    front = known.filter(~pl.col("back")).rename({"run": "front"}).drop("back").sort("login", "front")
    by = ["protocol", "user"]
    near = back.join_asof(front, on="login", by=by, strategy="nearest", tolerance=_SAME_LOGIN, check_sortedness=False)
    # A client that stayed silent between: the session of the same user that was open then.
    lacking = near.filter(pl.col("front").is_null()).select("run", "protocol", "user", "login", "seen")
    during = lacking.sort("login", "run").join_asof(
        front, on="login", by=by, strategy="backward", tolerance=_LONGEST, check_sortedness=False
    )
    during = during.filter(pl.col("seen") <= pl.col("end") + _SAME_LOGIN)
    matched = pl.concat([near.filter(pl.col("front").is_not_null()), during], how="diagonal")
    return matched.select("run", "front", "front_data")
