"""Dovecot through syslog or in its own log file: logins, failed logins, session summaries, deliveries.

Specification: https://doc.dovecot.org/ (login_log_format_elements, pop3_logout_format, imap_logout_format,
deliver_log_format). The lines are

    pop3-login: Login: user=<a@example.net>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2, mpid=18, TLS, session=<PeYc>
    pop3(a@example.net)<18><PeYc>: Disconnected: Logged out top=0/0, retr=2/4096, del=0/9, size=81920

where older versions write `POP3(user)`, `PID=`, `Info:` before or after the service, and no session in the summary.

The summary is written when a session ends: ts and ts_end are both that time, the beginning is the login's ts. It does
not name the credential; it is put down to the account's password, as mail clients mostly have nothing else.

Failed attempts are told twice: by auth (each attempt, whatever the protocol; protocol `directory`) and by the login
service (each connection, with its number of attempts). Passwords that Dovecot was told to log are never kept.
"""

from collections.abc import Sequence

import polars as pl

from transforms import dovecot_rows as rows
from transforms.dovecot_rows import ROW, cut, groups
from transforms.model import QUARANTINED, Context, Format
from transforms.syslog import refusal, unrepeat

_LEVELS = "Info|Warning|Error|Fatal|Panic"
_LEVEL = rf"(?:(?:{_LEVELS}): )?"
# Info: imap(user@example.net)<18><PeYc>: Info: Disconnected ...
_HEAD = rf"^(?:dovecot: )?{_LEVEL}([A-Za-z0-9_-]+)(?:\((.*?)\))?(?:<([^<>]*)>)?(?:<([^<>]*)>)?: {_LEVEL}(.*)$"
# service=imap, user=a@example.net, ip=[192.0.2.1]. Logged out rcvd=214, sent=3328
_SERVICE = r"^service=([A-Za-z0-9-]+), user=(.*), ip=\[([^\[\]]*)\]\. (.*)$"
_LOGIN_BEGUN = (
    r"^(?:Login|Logged in): |auth failed, |Maximum number of connections|tried to use |[Pp]roxy|Login failed"
    r"|^Internal login failure"
)
_POP3_BEGUN = r"\b(?:top=\d|retr=\d|del=\d|size=\d)"
_IMAP_BEGUN = r" (?:in=\d|bytes=\d|rcvd=\d)"
_LOGINS = ("pop3-login", "imap-login", "submission-login")
_READERS = (
    rows.ignored,
    rows.logins,
    rows.attempts,
    rows.summaries,
    rows.imap_summaries,
    rows.deliveries,
    rows.damaged,
    rows.changes,
)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn lines of Dovecot into rows of access_events and mail_events (deliveries), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read.
    """
    frame = records.drop("raw", strict=False).collect()
    refused = frame.select(refusal(ctx)).to_series()
    whole = _heads(unrepeat(frame.filter(refused.is_null())))
    kinds = whole.select(_kind()).to_series()
    parts = [read(whole.lazy().filter(kinds == at)) for at, read in enumerate(_READERS) if (kinds == at).any()]
    bad = frame.lazy().with_columns(op_raw=pl.lit(None, pl.String), source=pl.lit("dovecot"), reason=refused)
    bad = bad.with_columns(disposition=pl.lit(QUARANTINED)).filter(pl.col("reason").is_not_null())
    return pl.concat([*parts, bad.select(*ROW, "reason")], how="diagonal")


def _heads(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut `service(inner)<worker><session>: body`; op_raw is the service, inner mostly the user."""
    named = pl.col("program").str.starts_with("dovecot")
    text = pl.when(named).then("message").otherwise(pl.concat_str("program", pl.lit(": "), "message"))
    lines = frame.lazy().with_columns(text.alias("text"), source=pl.lit("dovecot"), disposition=pl.lit("access_events"))
    other = (
        pl.when(pl.col("text").str.starts_with("service=")).then("text").str.contains(_SERVICE).fill_null(value=False)
    )
    parted = groups(lines.filter(other), pl.col("text"), _SERVICE, "service", "inner", "peer", "body")
    lines = lines.filter(~other).with_columns(peer=pl.lit(None, pl.String))
    plain = cut(cut(lines, "text", ": ", "head", "body"), "head", "(", "service", "rest")
    split = cut(cut(plain, "rest", ")", "inner", "tags"), "tags", ">", "tag1", "tag2", "more").collect()
    levelled = pl.col("body").str.contains(rf"^(?:{_LEVELS}): ")
    simple = ~pl.col("head").str.contains(rf"[\s<]|^(?:dovecot|{_LEVELS})$")
    tagged = (
        ~pl.col("head").str.contains(" ", literal=True) & (pl.col("more") == "") & pl.col("tag1").str.starts_with("<")
    )
    fits = split.select(((simple & (pl.col("tags").fill_null("") == "")) | tagged) & ~levelled).to_series()
    fits = fits.fill_null(value=False)
    names = ("service", "inner", "tag1", "tag2", "body")
    odd = groups(lines.filter(~fits), pl.col("text"), _HEAD, *names).collect()
    whole = split.filter(fits).with_columns(pl.col("tag1", "tag2").str.strip_prefix("<")).select(odd.columns)
    whole = whole.with_columns(pl.when(pl.col(name) != "").then(name).alias(name) for name in ("tag1", "tag2"))
    lines = pl.concat([whole.lazy(), odd.lazy(), parted], how="diagonal")
    numbered = pl.col("tag1").str.contains(r"^\d*$") & (pl.col("tag2").is_not_null() | (pl.col("tag1") != ""))
    lines = lines.with_columns(
        pl.col("body").fill_null(""),
        op_raw=pl.col("service").str.to_lowercase(),
        worker=pl.when(numbered).then("tag1"),
        session=pl.when(numbered).then("tag2").otherwise(pl.coalesce("tag2", "tag1")),
    )
    # pop3(user@example.net 9238): the process behind the user, as mail_log_prefix may be set
    process = pl.when(pl.col("op_raw").is_in(rows.SESSIONS)).then("inner").str.extract_groups(r"^(\S+@\S+) (\d{1,10})$")
    lines = lines.with_columns(
        inner=pl.coalesce(process.struct[0], "inner"), worker=pl.coalesce("worker", process.struct[1])
    )
    return lines.drop("program", "message", "text", "service", "tag1", "tag2").collect()


def _kind() -> pl.Expr:
    """Number the lines by what they tell: the position in the readers of `parse`."""
    service = pl.col("op_raw")

    def told(services: Sequence[str], pattern: str) -> pl.Expr:
        body = pl.when(service.is_in(services)).then("body")
        return body.str.contains(pattern).fill_null(value=False)

    login = told(_LOGINS, _LOGIN_BEGUN)
    ended = pl.when(login).then("body").str.contains(r"^proxy\(.*\): disconnecting ")  # old versions say no more
    kind = (
        pl.when(login & pl.col("body").str.contains("rip=", literal=True)).then(1)
        .when(login & ended).then(0)
        .when(login).then(6)
        .when(told(["auth", "auth-worker"], rows.ATTEMPT)).then(2)
        .when(told(["pop3"], _POP3_BEGUN)).then(3)
        .when(told(["imap", "pop3"], rows.CHANGE)).then(7)
        .when(told(["imap", "imap-hibernate", "submission"], _IMAP_BEGUN)).then(4)
        .when(told(rows.DELIVERERS, rows.DELIVERED)).then(5)
        .otherwise(0)
    )  # fmt: skip
    return kind.cast(pl.UInt8)


FORMAT = Format(
    name="dovecot",
    title="Dovecot",
    spec="https://doc.dovecot.org/ (log lines of logins, sessions and deliveries)",
    tables=("access_events", "mail_events"),
    parse=parse,
    # A bare imap, pop3 or lmtp is Cyrus's.
    programs=r"dovecot(?:[-/].*)?|(?:deliver|dovecot-lda|(?:pop3|imap|submission)-login)(?:\(.*)?"
    r"|(?:lda|lmtp|pop3|imap|POP3|IMAP|submission|imap-hibernate)[(<].*",
    gaps=(
        "which messages were retrieved is not logged, only how many; retr = maildrop_n means all of them",
        "old versions name no session in the summary: join login and summary by user and time",
        "a failed login is told by auth (protocol directory, a row each attempt) and by the login service: count one",
        "the login service tells each connection, attempts in op_count; session_id joins it to auth's rows, if known",
        "attempts of SMTP submission are told by auth alone; Postfix tells them too",
        "a proxy and the server behind it both sum up a session: reason tells the proxy's",
        "a message marked as deleted is an update, an expunged one a delete (mail_log plugin)",
        "ManageSieve logins are not read",
    ),
)
