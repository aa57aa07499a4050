"""sessions: one row per POP3, IMAP, SMTP or LDAP session, whichever logs tell of it and in how many lines.

- Dovecot, Courier, Cyrus: the summary at the end, with address, TLS and time of its login; a login without a summary
  and failed attempts are sessions too.
- Exchange POP3 and IMAP: the commands of front end and back end, each counted once.
- Postfix: connect to disconnect of one process, with the authentication of that client in between, which the log names
  by the message's queue id.
- Exchange SMTP protocol logs, LDAP: by their session or connection id.

A session stands on the UTC day of its end; one over more than one midnight that is told command by command has a row
for each of its days, and a login whose summary comes more than 48 hours later stands alone. What is built at once
costs four days more of these protocols' rows (not of web and audit logs).
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from itertools import chain

import polars as pl

from transforms import sessions as logins
from transforms.derived import _commands, _exchange
from transforms.derived._commands import CLIENT, EXCHANGE, WHO
from transforms.derived._parts import finish, height, in_order, table, within

TABLE = "sessions"
PERIOD = "day"
SOURCES = ("access_events", "mail_events")
REACH = _commands.REACH

KEY = ("tenant_id", "principal_id", "end_ts", "protocol", "source", "host", "session_id", "start_ts")
_ORDER = (*KEY, "src_ip", "commands", "outcome")
_PROTOCOLS = ("pop3", "imap", "smtp", "ldap")
_NUMBERS = ("item_count", "bytes_out", "bytes_in", "retr_count", "dele_count", "top_count", "maildrop_n")
_COLUMNS = (
    "date", "event_uid", "ts", "ts_end", "tenant_id", "protocol", "source", "host", "session_id", "action", "op_raw",
    "outcome", *WHO, "src_ip_raw", "src_ip_key", *CLIENT, "auth_method", "tls_version", "tls_cipher", "op_count",
    *_NUMBERS,
)  # fmt: skip
_MAIL = (
    "date", "event_uid", "ts", "tenant_id", "source", "host", "session_id", "src_ip", "src_port", "src_net", "src_asn",
    "src_org", "src_cc", "src_class", "tls_version", "tls_cipher",
)  # fmt: skip
_WITHIN = ("connect", "disconnect", "tls", "receive", "reject", "submit", "other")
_SMTP_SERVERS = ("postfix", "exim", "sendmail", "courier", "exchange_smtp")
_LONGEST = "24h"
_KEY = (*_commands.KEY, "alone")


def build(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """The sessions that belong to `days`; see `parts`."""
    return in_order(pl.concat([part.collect().lazy() for part in parts(days, tables)]), TABLE, _ORDER)


def parts(days: Sequence[date], tables: Mapping[str, pl.LazyFrame]) -> Iterator[pl.LazyFrame]:
    """The sessions that belong to `days`, in parts of bounded size.

    Args:
        days: UTC days, one after the other.
        tables: SOURCES; events of the days in REACH.

    Returns:
        sessions of `days`; bytes in octets, times UTC.
    """
    access = table(tables, "access_events").filter(pl.col("protocol").is_in(_PROTOCOLS)).select(_COLUMNS)
    exchange = pl.col("source") == EXCHANGE
    boxes = access.filter(pl.col("protocol").is_in(["pop3", "imap"]) & ~exchange)
    # Held: the summaries take their logins out of the attempts that are left.
    paired = _once(logins.summaries(boxes).collect(engine="streaming")).lazy()
    conversations = access.filter(pl.col("protocol").is_in(["smtp", "ldap"]))
    told = pl.concat([logins.without_summary(boxes, paired), conversations])
    rows = _by_client(pl.concat([_marked(told), _smtp(table(tables, "mail_events"))], how="diagonal"))
    size, mails = height(tables, "access_events"), height(tables, "mail_events")
    by_key = _commands.pieces(rows.with_columns(_alone()), size + mails, _KEY)
    signature = pl.col("command_signature").replace("", None)
    for found in chain(_exchange.sessions(access, size), map(_summed, by_key)):
        yield finish(found.lazy().filter(within(days)).with_columns(signature), TABLE, _ORDER)
    yield finish(_summarised(paired, days).with_columns(signature), TABLE, _ORDER)


def _once(summaries: pl.DataFrame) -> pl.DataFrame:
    """Summaries without those that say the same twice: a record that came in two exports is one session.

    Only where the server numbers its sessions: without a number, equal records may be two polls in one second.
    """
    numbered = pl.col("session_id").is_not_null()
    said = [name for name in summaries.columns if name not in ("date", "event_uid")]
    once = summaries.filter(numbered).sort("event_uid").unique(subset=said, keep="first")
    return pl.concat([summaries.filter(~numbered), once])


def _marked(rows: pl.LazyFrame) -> pl.LazyFrame:
    opens = (pl.col("protocol") == "ldap") & (pl.col("action") == "connect")
    return rows.with_columns(opens.alias("opens"), pl.lit(value=False).alias("closes"))


def _summed(rows: pl.DataFrame) -> pl.DataFrame:
    said = pl.col("said").max()
    return _with_disconnect(_commands.whole(_commands.parts(_commands.numbered(rows, _KEY), more=[said])))


def _alone() -> pl.Expr:
    """What tells attempts apart that have no session id: who, whence and when."""
    named = [pl.col(name).fill_null("") for name in ("principal_id", "src_ip")]
    return (
        pl.when(pl.col("session_id").is_null())
        .then(pl.concat_str(*named, pl.col("ts").cast(pl.String), separator=" "))
        .alias("alone")
    )


def _smtp(mail: pl.LazyFrame) -> pl.LazyFrame:
    """SMTP sessions in mail logs as access rows; of Postfix those of smtpd, whose process serves one at a time."""
    inward = pl.col("src_ip").is_not_null() | pl.col("src_host").is_not_null()
    screen = (pl.col("op_raw") == "postscreen").fill_null(value=False)
    event, postfix = pl.col("event"), pl.col("source") == "postfix"
    ours = inward & ~screen & (~postfix | event.is_in(["connect", "disconnect", "tls"]))
    ours = ours & pl.col("source").is_in(_SMTP_SERVERS)
    kept = event.is_in(_WITHIN) & pl.col("session_id").is_not_null() & ours
    told = pl.when(postfix & (event == "disconnect")).then("status_text")
    return mail.filter(kept.fill_null(value=False)).select(
        *_MAIL,
        protocol=pl.lit("smtp"),
        action=pl.when(event == "connect").then(pl.lit("connect")).otherwise(pl.lit("other")),
        op_raw=pl.when(~postfix).then("op_raw"),
        op_count=pl.when(event.is_in(["disconnect", "tls"]) | postfix).then(0).otherwise(1).cast(pl.Int64),
        outcome=pl.lit("unknown"),
        opens=event == "connect",
        closes=event == "disconnect",
        said=told,
    )


def _by_client(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Puts Postfix's successful authentications, which have a queue id, into their client's latest open session.

    Hosts of two tenants may bear one name (mx1): where both lines tell the tenant, it must be the same.
    """
    postfix = pl.col("source") == "postfix"
    signed = (postfix & (pl.col("action") == "auth") & (pl.col("outcome") == "success")).fill_null(value=False)
    marked = [pl.col(name).fill_null("").alias(f"_{name}") for name in ("host", "tenant_id")]
    turns = rows.filter(postfix & (pl.col("opens") | pl.col("closes"))).with_columns(marked)
    begun = turns.filter("opens", pl.col("src_ip").is_not_null()).sort("ts", "session_id")
    begun = begun.select(
        "_host", "_tenant_id", "src_ip", "ts", pl.col("session_id").alias("_session"), pl.col("ts").alias("_begun")
    )
    found = _latest(rows.filter(signed).with_columns(marked), begun, ("_host", "_tenant_id", "src_ip"))
    own = pl.col("_session").is_not_null()
    other = _latest(
        found.filter(~own).drop("_session", "_begun"), begun.rename({"_tenant_id": "_of"}), ("_host", "src_ip")
    )
    either = (pl.col("_tenant_id") == "") | (pl.col("_of") == "")
    other = other.with_columns(pl.when(either).then("_session").alias("_session")).drop("_of")
    ended = turns.filter("closes").select(
        "_host", pl.col("session_id").alias("_session"), "ts", pl.col("ts").alias("_ended")
    )
    placed = pl.concat([found.filter(own), other], how="diagonal").with_columns(pl.col("_session").fill_null(""))
    placed = _latest(placed, ended.sort("ts"), ("_host", "_session"))
    over = (pl.col("_ended") > pl.col("_begun")) & (pl.col("_ended") < pl.col("ts"))
    session = pl.when(~over.fill_null(value=False) & (pl.col("_session") != "")).then("_session")
    placed = placed.with_columns(pl.coalesce(session, "session_id").alias("session_id"))
    return pl.concat([rows.filter(~signed), placed.select(rows.collect_schema().names())])


def _latest(rows: pl.LazyFrame, before: pl.LazyFrame, by: Sequence[str]) -> pl.LazyFrame:
    """Rows with the columns of the latest row of `before` (in order of time) up to theirs, with the same `by`."""
    return rows.sort("ts").join_asof(
        before, on="ts", by=list(by), strategy="backward", tolerance=_LONGEST, check_sortedness=False
    )


def _with_disconnect(sessions: pl.DataFrame) -> pl.DataFrame:
    """Takes commands and failed authentications from `ehlo=1 auth=0/1 quit=1 commands=2/3` where Postfix says so."""
    told = sessions.select("said").drop_nulls().unique()
    text, auth = pl.col("said"), r"(?:^| )auth=\d{1,9}/(\d{1,9})"
    names = text.str.extract_all(r"[a-z_]{1,16}=").list.eval(pl.element().str.strip_suffix("="))
    told = told.with_columns(
        text.str.extract(r"(?:^| )commands=(?:\d{1,9}/)?(\d{1,9})").cast(pl.Int64, strict=False).alias("_total"),
        names.list.filter(pl.element() != "commands").list.unique().list.sort().list.join(",").alias("_names"),
        text.str.extract(r"(?:^| )auth=(\d{1,9})").cast(pl.Int64, strict=False).alias("_good"),
        text.str.extract(auth).cast(pl.Int64, strict=False).alias("_tried"),
    )
    total, failed = pl.col("_total"), pl.col("_tried") - pl.col("_good")
    known = total.is_not_null()
    return (
        sessions.join(told, on="said", how="left")
        .with_columns(
            pl.when(known).then(total).otherwise("commands").alias("commands"),
            pl.when(known).then("_names").otherwise("command_signature").alias("command_signature"),
            pl.max_horizontal("n_auth_failures", failed.clip(0)).alias("n_auth_failures"),
        )
        .with_columns(
            pl.when(pl.col("_good") > 0)
            .then(pl.lit("success"))
            .when((pl.col("outcome") == "unknown") & (pl.col("n_auth_failures") > 0))
            .then(pl.lit("failure"))
            .otherwise("outcome")
            .alias("outcome")
        )
        .drop("_good", "_tried", "_total", "_names", "said")
    )


def _summarised(paired: pl.LazyFrame, days: Sequence[date]) -> pl.LazyFrame:
    """Sessions that the log sums up in one line."""
    done = [pl.when(pl.col(f"{name}_count") > 0).then(pl.lit(name)) for name in ("dele", "retr", "top")]
    signature = pl.concat_list(done).list.drop_nulls().list.join(",")
    return paired.filter(within(days)).with_columns(
        pl.col("login_ts").alias("start_ts"),
        pl.max_horizontal("ts", "ts_end").alias("end_ts"),
        pl.when(pl.col("protocol") == "pop3").then(signature).alias("command_signature"),
        pl.col("op_count").clip(0).alias("commands"),
        *(pl.col(name).clip(0) for name in _NUMBERS),
        pl.lit(0, pl.Int64).alias("n_auth_failures"),
    )
