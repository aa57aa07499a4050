"""Which login a line of Cyrus belongs to: only the login names the user, and a process serves one client at a time."""

import polars as pl

from transforms.model import Context

LOGGED_IN, OVER = 1, 2
FIELDS = ("login_user", "login_ip", "login_method", "login_tls", "login_session")

_CARRIED = "cyrus_logins"
_MOST = 100_000  # processes that are remembered; a server has some thousand
_MARKED = {"host": pl.String, "pid": pl.String, "mark": pl.Int8} | dict.fromkeys(FIELDS, pl.String)


def with_logins(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Give each line the latest login of its process.

    Args:
        frame: lines in their order: host, pid, mark (LOGGED_IN, OVER or null) and, where mark is LOGGED_IN, FIELDS.
        ctx: the latest logins are carried in it from block to block.

    Returns:
        The same rows with FIELDS (null without a login or a pid) and `current`: the process has not been marked OVER
        between its login and this line.
    """
    carried: pl.DataFrame = ctx.carry.get(_CARRIED, pl.DataFrame(schema=_MARKED))
    table = pl.concat([carried, frame.select(pl.col(name).cast(kind) for name, kind in _MARKED.items())])
    process, known = ("host", "pid"), pl.col("pid").is_not_null()
    logged_in, over = pl.col("mark") == LOGGED_IN, pl.col("mark") == OVER
    table = table.with_row_index("at").with_columns(
        login=pl.coalesce(
            pl.when(logged_in).then("at"),
            pl.when(known).then(pl.when(logged_in).then("at").forward_fill().over(process)),
        ),
        over=pl.when(over & known).then("at").forward_fill().shift(1).over(process),
    )
    latest = (pl.col("at") == pl.when(logged_in).then("at").max().over(process)) | (
        pl.col("at") == pl.when(over).then("at").max().over(process)
    )
    kept = table.filter(pl.col("mark").is_not_null() & known).filter(latest)
    ctx.carry[_CARRIED] = kept.select(list(_MARKED)).tail(_MOST)
    mine = table[carried.height :]
    current = (mine["login"].is_not_null() & ~(mine["over"] > mine["login"]).fill_null(value=False)).alias("current")
    logins = table.select(pl.col(name).gather(mine["login"]) for name in FIELDS)
    return frame.drop(*FIELDS).hstack([*logins.get_columns(), current])
