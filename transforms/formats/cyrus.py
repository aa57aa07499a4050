"""Cyrus IMAP through syslog: logins, POP3 counters, traffic and audit lines, LMTP deliveries.

Specification: Cyrus's own source (imapd.c, pop3d.c, lmtpd.c, mailbox.c) and https://www.cyrusimap.org/ (imapd.conf:
auditlog, syslog_prefix). The lines are

    cyrus/imaps[635]: login: client.example [192.0.2.1] kim plaintext+TLS User logged in SESSIONID=<mail-635-16-1>
    cyrus/imap[635]: badlogin: [192.0.2.1] plaintext kim SASL(-13): authentication failure: checkpass failed
    cyrus/pop3[636]: counts: retr=<12> top=<0> dele=<3>
    cyrus/imap[635]: auditlog: traffic sessionid=<mail-635-16-1> bytes_in=<53> bytes_out=<8731>
    cyrus/lmtpunix[637]: Delivered: <1@a.example> to mailbox: user.kim

Only the login names the user. Counters belong to the login of the same process before them, traffic and audit lines to
the login with their session id; the logins of processes are remembered from block to block. A process that was logged
in before the file begins leaves its counters without a user.
"""

import polars as pl

from transforms.cyrus_sessions import LOGGED_IN, OVER, with_logins
from transforms.model import IGNORED, QUARANTINED, Context, Format
from transforms.syslog import refusal, unrepeat

_ROW = ("record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "disposition")
_CLIENT = r"(?:[^\s\[\]]+ ?)?\[([^\[\]]*)\]"
_LOGIN = rf"^login: {_CLIENT} (.+?) ([A-Za-z0-9_-]+)(\+TLS)?(?: (?:User logged in|[A-Z][a-z]+ access granted)(.*))?$"
_FAILED = rf"^badlogin: {_CLIENT} ([A-Za-z0-9_-]+)(?: (.*))?$"
_FAILED_USER = r"^(.*) (?:SASL\(-?\d{1,4}\): .*|invalid user)$"
_N = r"=<(\d{1,15})>"
_COUNTS = rf"^counts: retr{_N} top{_N} dele{_N}$"
_TRAFFIC = rf"^auditlog: traffic sessionid=<([^<>]*)> bytes_in{_N} bytes_out{_N}$"
_AUDIT = r"^auditlog: (expunge|append) sessionid=<([^<>]*)> mailbox=<([^<>]*)> "
_OPENED = r"^open: user (.*) opened (.+)$"
_DELIVERED = r"^(Delivered): (.*) to mailbox: (\S+)$"
_DUPLICATE = r"^(dupelim: eliminated duplicate message) to (\S+)(?: id (.*?))?(?: date .*)? \(.*\)$"
_SIEVED = r"^(sieve (?:redirected|rejected|discarded)): (.*?)(?: to: (\S+))?$"
_BEGUN = r"^(?:login|badlogin|counts|Delivered): |^auditlog: (?:traffic|expunge|append) "
_FREED = r"^(?:accepted connection|executed)"
_PASSWORDS = (
    "PLAINTEXT",
    "PLAIN",
    "BASIC",
    "LOGIN",
    "CRAM-MD5",
    "DIGEST-MD5",
    "APOP",
    "NTLM",
    "SCRAM-SHA-1",
    "SCRAM-SHA-256",
)
_OTHERS = ("sieve", "timsieved", "nntp", "nntps", "mupdate", "backupd", "csync", "sync_server")


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn lines of Cyrus into rows of access_events and mail_events (deliveries), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read; logins are carried in it from block to block.
    """
    frame = records.drop("raw", strict=False).collect()
    refused = frame.select(refusal(ctx)).to_series().alias("reason")
    good = unrepeat(frame.filter(refused.is_null())).with_columns(
        pl.col("message").str.strip_chars_end(),
        source=pl.lit("cyrus"),
        disposition=pl.lit("access_events"),
        daemon=pl.col("program").str.extract(r"([^/]*)$").str.to_lowercase(),
    )
    good = _remember(good.with_columns(_kind().alias("kind")), ctx)
    readers = (_ignored, _logins, _failures, _counts, _traffic, _audit, _opened, _deliveries, _damaged)
    parts = [
        read(good.lazy().filter(pl.col("kind") == at)) for at, read in enumerate(readers) if (good["kind"] == at).any()
    ]
    bad = frame.lazy().with_columns(refused, source=pl.lit("cyrus"), disposition=pl.lit(QUARANTINED))
    return pl.concat([*parts, bad.filter(pl.col("reason").is_not_null()).select(*_ROW, "reason")], how="diagonal")


def _kind() -> pl.Expr:
    """Number the lines by what they tell: the position in the readers of `parse`."""
    message = pl.col("message").str
    delivered = message.contains(_DELIVERED) | message.contains(_DUPLICATE) | message.contains(_SIEVED)
    return (
        pl.when(pl.col("daemon").is_in(_OTHERS)).then(0)
        .when(message.contains(_LOGIN)).then(1)
        .when(message.contains(_FAILED)).then(2)
        .when(message.contains(_COUNTS)).then(3)
        .when(message.contains(_TRAFFIC)).then(4)
        .when(message.contains(_AUDIT) & pl.col("daemon").str.contains("^(?:imap|pop3|http)")).then(5)
        .when(message.contains(_OPENED)).then(6)
        .when(delivered).then(7)
        .when(message.contains(_BEGUN) & ~message.contains(_AUDIT)).then(8)
        .otherwise(0)
        .cast(pl.UInt8)
    )  # fmt: skip


def _remember(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Add the login that each line belongs to."""
    login = pl.col("kind") == 1
    parts = pl.when(login).then("message").str.extract_groups(_LOGIN).struct
    tls = login & (parts[3].is_not_null() | pl.col("daemon").is_in(["imaps", "pop3s", "https"]))
    session = pl.coalesce(parts[4].str.extract(r"SESSIONID=<([^<>]*)>"), pl.lit("pid:") + pl.col("pid"))
    over = (pl.col("kind") == 3) | pl.col("message").str.contains(_FREED)
    marked = frame.with_columns(
        mark=pl.when(login).then(LOGGED_IN).when(over).then(OVER),
        login_user=parts[1],
        login_ip=parts[0],
        login_method=parts[2].str.to_uppercase(),
        login_tls=pl.when(tls).then(pl.lit("TLS")),
        login_session=pl.when(login).then(session),
    )
    return with_logins(marked, ctx)


def _groups(rows: pl.LazyFrame, pattern: str, *names: str) -> pl.LazyFrame:
    groups = pl.col("message").str.extract_groups(pattern)
    return rows.with_columns(groups.struct.rename_fields(list(names)).alias("_")).unnest("_")


def _access(rows: pl.LazyFrame, *names: str) -> pl.LazyFrame:
    """Fill what all access_events share, from user, ip, method, tls_version and session_id."""
    # user+folder: the folder that the client starts in
    user = pl.col("user").str.strip_chars().str.to_lowercase().str.replace(r"^([^+@]+)\+[^@]*(@.*)?$", "${1}${2}")
    rows = rows.with_columns(principal_id=pl.when(user != "").then(user))
    who, method = pl.col("principal_id"), pl.col("auth_method")
    password = who.is_not_null() & (method.is_null() | method.is_in(_PASSWORDS))
    daemon = pl.col("daemon").str
    rows = rows.with_columns(
        principal_type=pl.when(who == "anonymous").then(pl.lit("anonymous"))
        .when(who.is_not_null()).then(pl.lit("user")),
        credential_id=pl.when(password).then(pl.lit("pw:") + who),
        credential_type=pl.when(password).then(pl.lit("password")),
        tenant_domain=who.str.extract(r"@([^@\s]+)$"),
        protocol=pl.when(daemon.contains("pop3?")).then(pl.lit("pop3"))
        .when(daemon.starts_with("http")).then(pl.lit("web")).otherwise(pl.lit("imap")),
        src_ip_raw=pl.when(pl.col("ip").str.contains(r"[.:]")).then("ip"),
    )  # fmt: skip
    who_names = ("principal_id", "principal_type", "mailbox_id", "credential_id", "credential_type", "tenant_domain")
    what = (
        "protocol",
        "action",
        "op_raw",
        "outcome",
        "reason",
        "auth_method",
        "tls_version",
        "src_ip_raw",
        "agg_level",
    )
    if "mailbox_id" not in rows.collect_schema().names():
        rows = rows.with_columns(mailbox_id="principal_id")
    return rows.select(*_ROW, *who_names, *what, "session_id", "bytes_known", *names)


def _told(action: str, outcome: str, op_raw: str) -> dict[str, pl.Expr]:
    return {
        "action": pl.lit(action),
        "outcome": pl.lit(outcome),
        "op_raw": pl.lit(op_raw),
        "reason": pl.lit(None, pl.String),
        "agg_level": pl.lit("event"),
        "bytes_known": pl.lit(value=False),
        "op_count": pl.col("repeated"),
    }


def _from_login(belongs: pl.Expr) -> dict[str, pl.Expr]:
    """user, ip, auth_method, tls_version of the login that a line belongs to."""
    names = {"user": "user", "ip": "ip", "auth_method": "method", "tls_version": "tls"}
    return {name: pl.when(belongs).then(f"login_{field}") for name, field in names.items()}


def _logins(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.with_columns(**_told("auth", "success", "login"), **_from_login(pl.lit(value=True)))
    return _access(rows.with_columns(session_id="login_session"), "op_count")


def _failures(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read refused logins; of SASL mechanisms the user is mostly not told."""
    rows = _groups(rows, _FAILED, "ip", "auth_method", "text")
    text = pl.col("text").str
    why = (
        pl.when(text.contains("user not found|invalid user$")).then(pl.lit("unknown user"))
        .when(text.contains("authorization failure", literal=True)).then(pl.lit("not authorised"))
        .when(text.contains("refused", literal=True)).then(pl.lit("login refused"))
        .when(text.contains("mech|encryption")).then(pl.lit("mechanism refused"))
        .when(text.contains("authentication failure|checkpass failed")).then(pl.lit("authentication failure"))
        .otherwise(pl.lit("login failed"))
    )  # fmt: skip
    secured = pl.col("daemon").is_in(["imaps", "pop3s", "https"])
    anonymous = pl.when(pl.col("auth_method") == "anonymous").then(pl.lit("anonymous"))
    rows = rows.with_columns(
        **_told("auth", "failure", "badlogin"),
        user=pl.coalesce(text.extract(_FAILED_USER), anonymous),
        tls_version=pl.when(secured).then(pl.lit("TLS")),
        session_id=pl.lit("pid:") + pl.col("pid"),
    )
    return _access(rows.with_columns(auth_method=pl.col("auth_method").str.to_uppercase(), reason=why), "op_count")


def _counts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters at the end of a POP3 connection; one that nobody has logged in on and that read nothing."""
    numbers = ("retr_count", "top_count", "dele_count")
    rows = _groups(rows, _COUNTS, *numbers).with_columns(pl.col(numbers).cast(pl.Int64, strict=False))
    idle = ~pl.col("current") & (pl.sum_horizontal(numbers) == 0)
    session = pl.coalesce(pl.when("current").then("login_session"), pl.lit("pid:") + pl.col("pid"))
    rows = rows.with_columns(**_told("session", "success", "counts"), **_from_login(pl.col("current")))
    rows = rows.with_columns(
        agg_level=pl.lit("session"),
        ts_end="ts",
        item_count="retr_count",
        op_count=pl.sum_horizontal(numbers),
        session_id=session,
        disposition=pl.when(idle).then(pl.lit(IGNORED)).otherwise("disposition"),
        reason=pl.when(idle).then(pl.lit("cyrus: connection without a login")),
    )
    return _access(rows, *numbers, "item_count", "op_count", "ts_end")


def _traffic(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the bytes of a connection: the session itself for IMAP; POP3 has its counters besides."""
    rows = _groups(rows, _TRAFFIC, "session_id", "bytes_in", "bytes_out")
    known = pl.col("login_session") == pl.col("session_id")
    rows = rows.with_columns(**_told("session", "success", "traffic"), **_from_login(known))
    pop3 = pl.col("daemon").str.contains("pop3?")
    rows = rows.with_columns(
        pl.col("bytes_in", "bytes_out").cast(pl.Int64, strict=False),
        action=pl.when(pop3).then(pl.lit("other")).otherwise(pl.lit("session")),
        outcome=pl.when(known).then(pl.lit("success")).otherwise(pl.lit("unknown")),
        agg_level=pl.lit("session"),
        ts_end="ts",
        bytes_known=pl.lit(value=True),
    )
    return _access(rows, "bytes_in", "bytes_out", "ts_end")


def _audit(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read messages that were added or removed."""
    rows = _groups(rows, _AUDIT, "word", "session_id", "box")
    known = pl.col("login_session") == pl.col("session_id")
    rows = rows.with_columns(**_told("delete", "success", "expunge"), **_from_login(known), mailbox_id=_owner("box"))
    added = pl.col("word") == "append"
    message = pl.col("message").str.extract(r" messageid=(<[^<>]*>)")
    rows = rows.with_columns(
        action=pl.when(added).then(pl.lit("create")).otherwise("action"),
        op_raw="word",
        item_count="repeated",
        folders=pl.concat_list("box"),
        message_ids=pl.when(message.is_not_null()).then(pl.concat_list(message)),
    )
    return _access(rows, "item_count", "folders", "message_ids")


def _opened(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = _groups(rows, _OPENED, "named", "box")
    known = pl.col("current") & (pl.col("login_user") == pl.col("named"))
    rows = rows.with_columns(**_told("list", "success", "open"), **_from_login(known))
    rows = rows.with_columns(
        user="named", session_id=pl.when(known).then("login_session"), folders=pl.concat_list("box")
    )
    return _access(rows, "folders", "op_count")


def _owner(name: str) -> pl.Expr:
    """user.kim^smit.Sent, tenant.example!user.kim -> kim.smit, kim@tenant.example; null for shared mailboxes."""
    parts = pl.col(name).str.extract_groups(r"^(?:([^!]+)!)?user[./]([^./]+)").struct
    owner = parts[1].str.replace_all("^", ".", literal=True).str.to_lowercase()
    return pl.coalesce(owner + pl.lit("@") + parts[0].str.to_lowercase(), owner)


def _deliveries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read what lmtpd put into mailboxes, and what Sieve redirected, rejected or discarded."""
    delivered = _groups(rows, _DELIVERED, "word", "id", "place")
    twice = _groups(rows, _DUPLICATE, "word", "place", "id").select(delivered.collect_schema().names())
    sieved = _groups(rows, _SIEVED, "word", "id", "place")
    parts = [part.filter(pl.col("word").is_not_null()) for part in (delivered, twice, sieved)]
    rows = pl.concat(parts).with_columns(word=pl.col("word").str.extract(r"([A-Za-z]+)(?: duplicate message)?$"))
    word = pl.col("word")
    events = {"Delivered": "deliver", "eliminated": "remove", "redirected": "send", "rejected": "reject"}
    owner = _owner("place")
    sent = word == "redirected"
    rows = rows.with_columns(
        disposition=pl.lit("mail_events"),
        event=word.replace_strict(events, default="remove", return_dtype=pl.String),
        op_raw="daemon",
        outcome=pl.when(word == "rejected").then(pl.lit("failure")).otherwise(pl.lit("success")),
        direction=pl.lit("unknown"),
        message_id=pl.col("id").str.extract(r"^(<.*>)$"),
        rcpt=pl.when(sent).then("place").otherwise(owner),
        session_id=pl.lit("pid:") + pl.col("pid"),
        status_text=pl.concat_str(word.str.to_lowercase(), "place", separator=": ", ignore_nulls=True),
        tenant_domain=pl.when(~sent).then(owner.str.extract(r"@([^@]+)$")),
        reason=pl.lit(None, pl.String),
    )
    mail = ("event", "op_raw", "outcome", "direction", "message_id", "rcpt", "session_id", "status_text")
    return rows.select(*_ROW, *mail, "tenant_domain", "reason")


def _damaged(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.with_columns(disposition=pl.lit(QUARANTINED))
    return rows.select(*_ROW, reason=pl.lit("cyrus: line cut or damaged"))


def _ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    message = pl.col("message").str
    reason = (
        pl.when(pl.col("daemon").is_in(_OTHERS)).then(pl.lit("cyrus: neither POP3 nor IMAP nor LMTP"))
        .when(message.starts_with("USAGE ")).then(pl.lit("cyrus: processor time"))
        .when(message.starts_with("auditlog: ")).then(pl.lit("cyrus: audit line that is not read"))
        .otherwise(pl.lit("cyrus: no access in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED)).select(*_ROW, reason=reason)


FORMAT = Format(
    name="cyrus",
    title="Cyrus IMAP",
    spec="https://www.cyrusimap.org/ (log lines of imapd, pop3d and lmtpd; auditlog)",
    tables=("access_events", "mail_events"),
    parse=parse,
    programs=r"cyrus[\w.-]*(?:/.*)?|(?:imap|pop3|http|nntp)s?|imaplocal|kpop|lmtp(?:unix|d|proxyd)?|sieve|timsieved"
    r"|(?:pop3)?proxyd|mupdate|cyr_expire|ctl_(?:cyrusdb|deliver|mboxlist)|tls_prune|squatter|idled|notifyd"
    r"|sync_(?:server|client)|ptloader",
    gaps=(
        "without auditlog nothing tells how much an IMAP session read, and nothing ever tells how many messages",
        "bytes of a POP3 session stand in a row of its own (auditlog), apart from its counters",
        "refused logins with SASL mechanisms do not name the user",
        "programs that run under another syslog_prefix than cyrus are not recognised",
    ),
)
