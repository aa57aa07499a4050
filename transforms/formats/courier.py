"""Courier through syslog: its POP3 and IMAP servers (logins, session summaries, deletions) and its mail server.

Specification: Courier's own source (imap/pop3login, imap/mainloop, courier/esmtpd, courier/comctlfile),
https://www.courier-mta.org/. The lines are

    imapd-ssl: LOGIN, user=a@example.net, ip=[::ffff:192.0.2.1], port=[4711], protocol=IMAP
    imapd-ssl: LOGOUT, user=a@example.net, ip=[::ffff:192.0.2.1], headers=0, body=778, rcvd=635, sent=1872, time=47
    pop3d: LOGOUT, user=a@example.net, ip=[::ffff:192.0.2.1], port=[4711], top=0, retr=1590, rcvd=12, sent=1720, time=1
    courieresmtpd: error,relay=::ffff:192.0.2.1,from=<b@example.org>,to=<a@example.net>: 550 User unknown.

top, retr, headers and body are bytes, not messages: how many messages were read is not told. A summary is written when
the session ends (DISCONNECTED and TIMEOUT where the client did not say goodbye): ts and ts_end are both that time.
There is no session id; where the client's port is told, address and port stand for it.

User names and SMTP commands are the client's words. What a client sends with AUTH may be its password and is not kept.
"""

import polars as pl

from transforms.model import IGNORED, QUARANTINED, Context, Format
from transforms.syslog import refusal, unrepeat

_ROW = ("record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "disposition")
_LEVEL = r"^(?:INFO|DEBUG|NOTICE|WARN|ERR|CRIT|ALERT): "
_ADDRESS = r", ip=\[([^\[\]]*)\](?:, port=\[([^\[\]]*)\])?"
_FIELD = r"(?:, ?[a-z]+=[^,=\[\]]*)*"
_LOGIN = rf"^LOGIN, user=(.*){_ADDRESS}({_FIELD})(?:, mailstore=\[[^\[\]]*\])?$"
_FAILED = rf"^LOGIN FAILED(?:, (user|method)=(.*))?{_ADDRESS}$"
_ENDS = "LOGOUT|DISCONNECTED|TIMEOUT|I/O error disconnect|Disconnected during shutdown by signal"
_SUMMARY = rf"^({_ENDS}), user=(.*){_ADDRESS}({_FIELD})$"
_DELETION = rf"^(DELETED|EXPUNGED), user=(.*?){_ADDRESS}, (?:filename|old_name)="
_ACCESS_BEGUN = rf"^(?:LOGIN, |LOGIN FAILED|(?:{_ENDS}), user=|DELETED, |EXPUNGED, )"
# error,relay=::ffff:192.0.2.1,port=43632,ident=x,msg="535 Authentication failed.",cmd: AUTH LOGIN a@example.net
_PEER = r'^error,relay=([0-9A-Fa-f:.]+)(?:,port=(\d{1,5}))?(?:,ident=(?:"[^"]*"|[^,"]*))?'
_REFUSED = rf"{_PEER},from=<([^<>]*)>,to=<([^<>]*)>: (.*)$"
_COMMAND = rf'{_PEER},msg="([^"]*)",cmd: ?(.*)$'
_AUTH = r"(?i)^AUTH ([A-Z0-9-]{2,20})(?: +([^ ]+))?(?: +([^ ]+))?$"
_STARTED = r"^started,ip=\[([^\[\]]*)\](?:,port=\[(\d{1,5})\])?$"
# newmsg,id=0038C081.4D026173.000051A4, auth=a@example.net: dns; client (client.example [192.0.2.1])
_ID = r"id=([0-9A-Fa-f.]{3,60})"
_NEW = rf"^newmsg,{_ID}(?:, auth=([^\s:]*))?(?:: (?:dns; (.*?) \((?:([^\s()]*) )?\[([^\[\]]*)\]\)|.*))?$"
_QUEUED = rf"^started,{_ID},from=<([^<>]*)>,module=([a-z]*),host=(.*),addr=<([^<>]*)>$"
_COMPLETED = rf"^completed,{_ID}$"
_DELIVERY = rf"^{_ID},from=<([^<>]*)>,addr=<([^<>]*)>(?:,size=(\d{{1,15}}))?(,success|,status|): (.*)$"
_PASSWORDS = ("PLAIN", "LOGIN", "CRAM-MD5", "CRAM-SHA1", "CRAM-SHA256")
_METHODS = (*_PASSWORDS, "EXTERNAL", "ANONYMOUS", "XOAUTH2", "OAUTHBEARER", "SCRAM-SHA-1", "SCRAM-SHA-256")
_MAIL = (
    "op_raw event outcome direction queue_id src_ip_raw src_host helo sasl_username relay_host dst_ip_raw mail_from "
    "rcpt dsn status_text size_bytes reason tenant_domain"
)
_DAMAGED = "courier: line cut or damaged"


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn lines of Courier into rows of access_events and mail_events (SMTP and deliveries), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read.
    """
    frame = records.drop("raw", strict=False).collect()
    refused = frame.select(refusal(ctx)).to_series().alias("reason")
    good = unrepeat(frame.filter(refused.is_null())).with_columns(
        pl.col("message").str.replace(_LEVEL, "").str.strip_chars_end(),
        source=pl.lit("courier"),
        disposition=pl.lit("access_events"),
        daemon=pl.col("program").str.strip_prefix("courier").str.replace(r"^(?:login|tcpd)$", ""),
    )
    kinds = good.select(_kind()).to_series()
    readers = (_ignored, _logins, _failures, _summaries, _deletions, _commands, _refusals, _mails, _damaged)
    parts = [read(good.lazy().filter(kinds == at)) for at, read in enumerate(readers) if (kinds == at).any()]
    bad = frame.lazy().with_columns(refused, source=pl.lit("courier"), disposition=pl.lit(QUARANTINED))
    return pl.concat([*parts, bad.filter(pl.col("reason").is_not_null()).select(*_ROW, "reason")], how="diagonal")


def _kind() -> pl.Expr:
    """Number the lines by what they tell: the position in the readers of `parse`."""
    message, daemon = pl.col("message").str, pl.col("daemon").str
    server, smtp = daemon.contains("^(?:imap|pop3)"), daemon.starts_with("esmtpd")
    other = ~server & ~smtp
    mail = message.contains(_STARTED) & smtp
    mail = mail | (other & (message.contains(_NEW) | message.contains(_QUEUED) | message.contains(_COMPLETED)))
    begun = (server & message.contains(_ACCESS_BEGUN)) | (smtp & message.starts_with("error,relay="))
    begun = begun | (other & message.contains(r"^(?:newmsg,|started,|completed,)?id=[0-9A-F]+\."))
    return (
        pl.when(server & message.contains(_LOGIN)).then(1)
        .when(server & message.contains(_FAILED)).then(2)
        .when(server & message.contains(_SUMMARY)).then(3)
        .when(server & message.contains(_DELETION)).then(4)
        .when(smtp & message.contains(_COMMAND)).then(5)
        .when(smtp & message.contains(_REFUSED)).then(6)
        .when(mail | (other & message.contains(_DELIVERY))).then(7)
        .when(begun).then(8)
        .otherwise(0)
        .cast(pl.UInt8)
    )  # fmt: skip


def _groups(rows: pl.LazyFrame, pattern: str, *names: str) -> pl.LazyFrame:
    groups = pl.col("message").str.extract_groups(pattern)
    return rows.with_columns(groups.struct.rename_fields(list(names)).alias("_")).unnest("_")


def _peer(address: str, port: str) -> pl.Expr:
    """`[address]:port` where the port is told; null without an address."""
    whole = pl.format("[{}]:{}", address, port)
    given = pl.col(port).str.contains(r"^\d{1,5}$").fill_null(value=False)
    return pl.when(pl.col(address) != "").then(pl.when(given).then(whole).otherwise(address))


def _access(rows: pl.LazyFrame, *names: str) -> pl.LazyFrame:
    """Fill what all access_events share, from user, ip, port, auth_method and secured."""
    user = pl.col("user").str.strip_chars().str.to_lowercase()
    rows = rows.with_columns(principal_id=pl.when(user != "").then(user), src_ip_raw=_peer("ip", "port"))
    who, method = pl.col("principal_id"), pl.col("auth_method")
    password = who.is_not_null() & (method.is_null() | method.is_in(_PASSWORDS))
    secured = pl.col("program").str.ends_with("-ssl") | pl.col("secured")
    rows = rows.with_columns(
        principal_type=pl.when(who.is_not_null()).then(pl.lit("user")),
        mailbox_id=who,
        credential_id=pl.when(password).then(pl.lit("pw:") + who),
        credential_type=pl.when(password).then(pl.lit("password")),
        tenant_domain=who.str.extract(r"@([^@\s]+)$"),
        protocol=pl.when(pl.col("daemon").str.starts_with("pop3")).then(pl.lit("pop3"))
        .when(pl.col("daemon").str.starts_with("imap")).then(pl.lit("imap")).otherwise(pl.lit("smtp")),
        tls_version=pl.when(secured).then(pl.lit("TLS")),
        session_id=pl.when(pl.col("src_ip_raw").str.starts_with("[")).then("src_ip_raw"),
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
    return rows.select(*_ROW, *who_names, *what, "session_id", "bytes_known", *names)


def _told(action: str, outcome: str, op_raw: str | pl.Expr) -> dict[str, pl.Expr]:
    return {
        "action": pl.lit(action),
        "outcome": pl.lit(outcome),
        "op_raw": pl.lit(op_raw) if isinstance(op_raw, str) else op_raw,
        "reason": pl.lit(None, pl.String),
        "auth_method": pl.lit(None, pl.String),
        "secured": pl.lit(value=False),
        "agg_level": pl.lit("event"),
        "bytes_known": pl.lit(value=False),
        "op_count": pl.col("repeated"),
    }


def _logins(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = _groups(rows, _LOGIN, "user", "ip", "port", "fields").with_columns(**_told("auth", "success", "LOGIN"))
    return _access(rows.with_columns(secured=_secured()), "op_count")


def _failures(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = _groups(rows, _FAILED, "named", "name", "ip", "port").with_columns(
        **_told("auth", "failure", "LOGIN FAILED")
    )
    by_method = pl.col("named") == "method"
    method = pl.col("name").str.to_uppercase()
    rows = rows.with_columns(
        user=pl.when(~by_method).then("name"),
        auth_method=pl.when(by_method & method.is_in(_METHODS)).then(method),
        reason=pl.lit("login failed"),
    )
    return _access(rows, "op_count")


def _summaries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters of a session; without `sent`, which old versions lack, its bytes are those of the messages."""
    rows = _groups(rows, _SUMMARY, "end", "user", "ip", "port", "fields")

    def number(name: str) -> pl.Expr:
        return pl.col("fields").str.extract(rf", ?{name}=(\d{{1,15}})(?:,|$)").cast(pl.Int64, strict=False)

    parts = [number(name) for name in ("top", "retr", "headers", "body")]
    some = pl.any_horizontal(part.is_not_null() for part in parts)
    rows = rows.with_columns(
        **_told("session", "success", pl.col("end")),
        bytes_in=number("rcvd"),
        bytes_out=pl.coalesce(number("sent"), pl.when(some).then(pl.sum_horizontal(parts))),
        ts_end="ts",
    )
    rows = rows.with_columns(
        secured=_secured(),
        reason=pl.col("end").str.to_lowercase(),
        agg_level=pl.lit("session"),
        bytes_known=pl.col("bytes_out").is_not_null(),
    )
    return _access(rows, "ts_end", "bytes_in", "bytes_out")


def _secured() -> pl.Expr:
    return pl.col("fields").str.contains(r", (?:starttls|stls)=1(?:,|$)")


def _deletions(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read deletions of one message each, which are logged where POP3_LOG_DELETIONS or IMAP_LOG_DELETIONS is set."""
    rows = _groups(rows, _DELETION, "word", "user", "ip", "port").with_columns(
        **_told("dele", "success", pl.col("word")), item_count="repeated"
    )
    expunged = pl.col("word") == "EXPUNGED"
    return _access(
        rows.with_columns(action=pl.when(expunged).then(pl.lit("delete")).otherwise(pl.lit("dele"))), "item_count"
    )


def _commands(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read SMTP commands that were refused: logins as access_events, senders and recipients as mail_events."""
    rows = _groups(rows, _COMMAND, "ip", "port", "text", "command")
    login = pl.col("text").str.contains(r"^535\b") | pl.col("command").str.contains(r"(?i)^AUTH\b")
    address = pl.col("command").str.contains(r"(?i)^(?:MAIL FROM|RCPT TO):")
    asked = pl.col("command").str.extract_groups(_AUTH).struct
    method, first, second = asked[0].str.to_uppercase(), asked[1], asked[2]
    logins = rows.filter(login).with_columns(
        **_told("auth", "failure", "AUTH"),
        # One word behind the mechanism may be the client's answer, which is base64 and has no @.
        user=pl.coalesce(second, pl.when(first.str.contains("@", literal=True)).then(first)),
    )
    logins = logins.with_columns(
        auth_method=pl.when(method.is_in(_METHODS)).then(method), reason=pl.lit("login failed")
    )
    named = pl.col("command").str.extract(r"(?i)^(?:MAIL FROM|RCPT TO): ?<([^<>]*)>")
    sender = pl.col("command").str.contains(r"(?i)^MAIL")
    refused = rows.filter(~login & address).with_columns(
        event=pl.lit("reject"), outcome=pl.lit("failure"), src_ip_raw=_peer("ip", "port"), status_text="text",
        mail_from=pl.when(sender).then(named), rcpt=pl.when(~sender).then(named),
        dsn=pl.col("text").str.extract(r"^\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b"),
    )  # fmt: skip
    left = rows.filter(~login & ~address).with_columns(disposition=pl.lit(IGNORED))
    left = left.select(*_ROW, reason=pl.lit("courier: SMTP command error"))
    return pl.concat([_access(logins, "op_count"), _mail(refused), left], how="diagonal")


def _refusals(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read recipients that were refused."""
    rows = _groups(rows, _REFUSED, "ip", "port", "mail_from", "rcpt", "status_text")
    return _mail(
        rows.with_columns(
            event=pl.lit("reject"),
            outcome=pl.lit("failure"),
            src_ip_raw=_peer("ip", "port"),
            dsn=pl.col("status_text").str.extract(r"^\d{3}[ -]([245]\.\d{1,3}\.\d{1,3})\b"),
        )
    )


def _mails(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read connections, the queue (courierd) and deliveries (courierlocal, courieresmtp and their like)."""
    message = pl.col("message").str
    connected = rows.filter(message.contains(_STARTED))
    connected = _groups(connected, _STARTED, "ip", "port").with_columns(
        event=pl.lit("connect"), outcome=pl.lit("success"), src_ip_raw=_peer("ip", "port")
    )
    received = _groups(
        rows.filter(message.contains(_NEW)), _NEW, "queue_id", "sasl_username", "helo", "src_host", "src_ip_raw"
    ).with_columns(event=pl.lit("receive"), outcome=pl.lit("success"))
    queued = _groups(
        rows.filter(message.contains(_QUEUED)), _QUEUED, "queue_id", "mail_from", "module", "relay_host", "rcpt"
    ).with_columns(event=pl.lit("queue"), outcome=pl.lit("success"))
    queued = queued.with_columns(relay_host=pl.when(pl.col("module") == "esmtp").then("relay_host"))
    removed = _groups(rows.filter(message.contains(_COMPLETED)), _COMPLETED, "queue_id")
    removed = removed.with_columns(event=pl.lit("remove"), outcome=pl.lit("success"))
    delivered = _delivered(rows.filter(message.contains(_DELIVERY)))
    return pl.concat([_mail(part) for part in (connected, received, queued, removed, delivered)], how="diagonal")


def _delivered(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `...,success: text` (the delivery), `...,status: deferred` and what the other side said before it."""
    rows = _groups(rows, _DELIVERY, "queue_id", "mail_from", "rcpt", "size", "word", "status_text")
    text, local = pl.col("status_text").str, pl.col("daemon") != "esmtp"
    done = pl.col("word") == ",success"
    state = pl.when(pl.col("word") == ",status").then("status_text")
    event = (
        pl.when(done & local).then(pl.lit("deliver"))
        .when(done).then(pl.lit("send"))
        .when(state == "failure").then(pl.lit("bounce"))
        .when(state == "deferred").then(pl.lit("defer"))
        .otherwise(pl.lit("other"))
    )  # fmt: skip
    hop = text.extract_groups(r"^delivered: ([^\s\[\]]+) \[([^\[\]]*)\]").struct
    return rows.with_columns(
        event=event,
        outcome=pl.when(done | (state == "success")).then(pl.lit("success"))
        .when(state.is_in(["failure", "deferred"])).then(pl.lit("failure")).otherwise(pl.lit("unknown")),
        size_bytes=pl.col("size").cast(pl.Int64, strict=False),
        relay_host=pl.when(done).then(hop[0]),
        dst_ip_raw=pl.when(done).then(hop[1]),
        tenant_domain=pl.when(local).then(pl.col("rcpt").str.extract(r"@([^@\s]+)$").str.to_lowercase()),
    )  # fmt: skip


def _mail(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Rows of mail_events; the columns that a reader does not fill are left out."""
    rows = rows.with_columns(
        disposition=pl.lit("mail_events"), op_raw="program", direction=pl.lit("unknown"), reason=pl.lit(None, pl.String)
    )
    names = rows.collect_schema().names()
    if "rcpt" in names:
        rows = rows.with_columns(rcpt=pl.when(pl.col("rcpt") != "").then("rcpt"))
    return rows.select(*_ROW, *(name for name in _MAIL.split() if name in names))


def _damaged(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.with_columns(disposition=pl.lit(QUARANTINED)).select(*_ROW, reason=pl.lit(_DAMAGED))


def _ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    message, daemon = pl.col("message").str, pl.col("program").str
    reason = (
        pl.when(daemon.starts_with("authdaemond")).then(pl.lit("courier: authdaemond"))
        .when(message.contains(r"^(?:Connection|Disconnected|LOGOUT|TIMEOUT), ip="))
        .then(pl.lit("courier: connection without a login"))
        .when(message.contains("DEBUG: ", literal=True)).then(pl.lit("courier: debug line"))
        .otherwise(pl.lit("courier: no access in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED)).select(*_ROW, reason=reason)


FORMAT = Format(
    name="courier",
    title="Courier",
    spec="https://www.courier-mta.org/ (log lines of the POP3, IMAP and mail servers)",
    tables=("access_events", "mail_events"),
    parse=parse,
    programs=r"(?:imapd|pop3d|esmtpd)(?:-ssl|-msa)?|imaplogin|pop3login|authdaemond(?:\.[a-z]+)?"
    r"|courier[a-z0-9]+(?:-ssl|-msa)?",
    gaps=(
        "top, retr, headers and body are bytes: how many messages were read is not known",
        "there is no session id: address and port stand for it where both are told, which IMAP summaries do not",
        "who logs in for SMTP is told with the queued message (auth=) only",
        "addresses that hold < or > are not read: such lines are quarantined",
        "UW-IMAP and old versions of Cyrus have the same program tag imapd; their lines are ignored",
    ),
)
