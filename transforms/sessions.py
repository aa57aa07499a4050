"""Rows that belong together: a session and its login, one web request in several logs.

Two habits of mail servers would otherwise lead every count astray:

- Dovecot, Courier and others write a *login* with the client's address and, at the end, a *summary* with the counters,
  which often lacks the address.
- Exchange writes one EWS request into the back end's log (who acted on which mailbox), the front end's log (client
  address, bytes) and that of IIS.
"""

import polars as pl

_SOURCE_FIELDS = (
    "src_ip", "src_ip_raw", "src_ip_key", "src_port", "src_net", "src_asn", "src_org", "src_cc", "src_class",
    "client_fp",
)  # fmt: skip
_SESSION_PROTOCOLS = ("pop3", "imap")
_LOGIN_FIELDS = ("ts", "tls_version", "tls_cipher", "auth_method")
_LOGIN_REACH = "24h"
_LONGEST = "48h"  # from the login to the summary that names its session

_BACK_END = "exchange_ews"
_FRONT_END = "exchange_httpproxy"
_WEB_SERVER = "iis"
_REQUEST = ("_day", "session_id")
_LAST_HOUR = 23
WEB_SOURCES = (_BACK_END, _FRONT_END, _WEB_SERVER)  # those that requests_once looks at


def with_login(access: pl.LazyFrame) -> pl.LazyFrame:
    """Gives POP3 and IMAP sessions without a client address that of their login.

    A session belongs to the login of the same user with the same protocol, host and session id; where there is none,
    to the latest successful login of its user on that host in the 24 hours before it. A session that has an address,
    or no login, stays as it is.

    Args:
        access: rows of access_events; sessions whose login lies before midnight need the day before as well.

    Returns:
        The same rows and columns, in no particular order.
    """
    columns = access.collect_schema().names()
    lacking = (_is_summary() & pl.col("src_ip").is_null()).fill_null(value=False)
    filled = _signed_in(access.filter(lacking), access, _SOURCE_FIELDS)
    filled = filled.with_columns(pl.coalesce(f"_{name}", name).alias(name) for name in _SOURCE_FIELDS).select(columns)
    return pl.concat([access.filter(~lacking), filled])


def summaries(access: pl.LazyFrame) -> pl.LazyFrame:
    """Session summaries of POP3 and IMAP with what their logins tell, found as `with_login` does.

    Args:
        access: rows of access_events of two days before and after those that are asked for.

    Returns:
        The rows with action `session`; address, TLS and mechanism those of the login where they have none of their
        own, `login_ts` the login's time (null: no login found).
    """
    summary = _is_summary().fill_null(value=False)
    fields = (*_SOURCE_FIELDS, *_LOGIN_FIELDS)
    found = _signed_in(access.filter(summary), access, fields, _LONGEST)
    own = pl.col("src_ip").is_not_null()
    return found.with_columns(
        *(pl.when(own).then(name).otherwise(f"_{name}").alias(name) for name in _SOURCE_FIELDS),
        *(pl.coalesce(name, f"_{name}").alias(name) for name in _LOGIN_FIELDS if name != "ts"),
        pl.col("_ts").alias("login_ts"),
    ).select(*access.collect_schema().names(), "login_ts", pl.col("_user").alias("login_user"))


def without_summary(access: pl.LazyFrame, paired: pl.LazyFrame) -> pl.LazyFrame:
    """Attempts to log in to POP3 and IMAP, in the same columns, less those that `paired` (see `summaries`) took up."""
    login = ((pl.col("action") == "auth") & pl.col("protocol").is_in(_SESSION_PROTOCOLS)).fill_null(value=False)
    good = pl.col("outcome") == "success"
    taken = paired.filter(pl.col("login_ts").is_not_null()).select(
        "protocol", "host", pl.col("login_user").alias("principal_id"), pl.col("login_ts").alias("ts")
    )
    key = ["protocol", "host", "principal_id", "ts"]
    left = access.filter(login & good).join(taken.unique(), on=key, how="anti", nulls_equal=True)
    return pl.concat([left, access.filter(login & ~good.fill_null(value=False))])


def _is_summary() -> pl.Expr:
    return (pl.col("action") == "session") & pl.col("protocol").is_in(_SESSION_PROTOCOLS)


def _signed_in(
    summaries: pl.LazyFrame, access: pl.LazyFrame, fields: tuple[str, ...], longest: str | None = None
) -> pl.LazyFrame:
    """Adds the fields of each session's login as `_name`, and its user as `_user`; null where there is no login."""
    protocol = pl.col("protocol").is_in(_SESSION_PROTOCOLS)
    login = (pl.col("action") == "auth") & (pl.col("outcome") == "success") & protocol & pl.col("src_ip").is_not_null()
    # Two logins in the same instant: the later by identity, so that the order of the files plays no part.
    logins = access.filter(login).with_columns(pl.col("host").fill_null("")).sort("ts", "event_uid")
    sessions = summaries.with_columns(pl.col("host").fill_null("").alias("_host")).sort("ts")
    sessions = _latest_login(sessions, logins, ("session_id", "_session_"), fields, longest)
    sessions = _latest_login(sessions, logins, ("principal_id", "_principal_"), fields, _LOGIN_REACH)
    # A process id may stand for the session: the next day another user's session has it again.
    same_user = (pl.col("_session_user") == pl.col("principal_id")).fill_null(value=True)
    by_session = pl.col("_session_src_ip").is_not_null() & same_user
    return sessions.with_columns(
        pl.when(by_session).then(f"_session_{name}").otherwise(f"_principal_{name}").alias(f"_{name}")
        for name in (*fields, "user")
    )


def _latest_login(
    sessions: pl.LazyFrame, logins: pl.LazyFrame, by: tuple[str, str], fields: tuple[str, ...], longest: str | None
) -> pl.LazyFrame:
    """Adds the fields of the latest login before each session that has the same protocol, host and key.

    Without `longest` the login must be of the session's day or the day before it.
    """
    key, prefix = by
    names = [prefix + name for name in (*fields, "user")]
    taken = [pl.col(name).alias(prefix + name) for name in fields]
    taken += [pl.col("principal_id").alias(f"{prefix}user"), pl.col("date").alias("_login_date")]
    found = sessions.join_asof(
        logins.filter(pl.col(key).is_not_null()).select("ts", "protocol", "host", key, *taken),
        on="ts",
        by_left=["protocol", "_host", key],
        by_right=["protocol", "host", key],
        strategy="backward",
        tolerance=longest,
        check_sortedness=False,
    )
    if longest is None:
        near = pl.col("_login_date") >= pl.col("date").dt.offset_by("-1d")
        found = found.with_columns(pl.when(near).then(name).alias(name) for name in names)
    return found.drop("_login_date")


def requests_once(access: pl.LazyFrame) -> pl.LazyFrame:
    """Leaves one row of each web request that several Exchange logs tell of.

    The back end's row (exchange_ews) stays, else the front end's (exchange_httpproxy), else that of IIS; rows belong
    together by their session_id, the request id. The back end's row takes the client's address and fingerprint from
    the front end's (unless there are several that disagree), and bytes that it lacks from either.

    Rows of one request belong together if they are of one day, or the earlier of the last hour of the day before.

    Returns:
        The rows that stay, in the same columns, in no particular order.
    """
    columns = access.collect_schema().names()
    web = (pl.col("source").is_in(WEB_SOURCES) & pl.col("session_id").is_not_null()).fill_null(value=False)
    late = pl.col("ts").dt.hour() == _LAST_HOUR
    requests = pl.concat(
        [
            access.filter(web).with_columns(pl.col("date").alias("_day")),
            access.filter(web & late).with_columns(pl.col("date").dt.offset_by("1d").alias("_day")),
        ]
    )
    back, front, server = (requests.filter(pl.col("source") == name) for name in WEB_SOURCES)
    front_left = front.join(back, on=_REQUEST, how="anti")
    server_left = server.join(back, on=_REQUEST, how="anti").join(front, on=_REQUEST, how="anti")
    kept = [_filled(back, pl.concat([front, server])), _filled(front_left, server), server_left]
    of_its_day = pl.col("_day") == pl.col("date")
    return pl.concat([access.filter(~web), *(rows.filter(of_its_day).select(columns) for rows in kept)])


def _filled(rows: pl.LazyFrame, others: pl.LazyFrame) -> pl.LazyFrame:
    """Fills each row from other logs' rows of the same request: bytes from any, the client only from the front end."""
    client = pl.col("source") == _FRONT_END
    ends = others.group_by(_REQUEST).agg(
        *(pl.when(client).then(name).min().alias(f"_{name}") for name in _SOURCE_FIELDS),
        pl.when(client).then("src_ip").max().alias("_other_ip"),
        pl.col("bytes_out").max().alias("_bytes_out"),
        pl.col("bytes_in").max().alias("_bytes_in"),
    )
    agreed = pl.col("_src_ip") == pl.col("_other_ip")
    known = pl.col("bytes_known") | (pl.col("bytes_out").is_null() & pl.col("_bytes_out").is_not_null())
    return rows.join(ends, on=_REQUEST, how="left").with_columns(
        *(
            pl.when(agreed).then(f"_{name}").otherwise(name).alias(name)
            for name in _SOURCE_FIELDS
            if name != "client_fp"
        ),
        pl.when(agreed).then(pl.coalesce("_client_fp", "client_fp")).otherwise("client_fp").alias("client_fp"),
        pl.coalesce("bytes_out", "_bytes_out").alias("bytes_out"),
        pl.coalesce("bytes_in", "_bytes_in").alias("bytes_in"),
        known.alias("bytes_known"),
    )
