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

import polars as pl

from transforms.model import IGNORED, QUARANTINED, Context, Format
from transforms.syslog import refusal, unrepeat
from transforms.syslog_time import by_values

_ROW = (
    "record_no",
    "byte_offset",
    "byte_length",
    "ts",
    "ts_raw",
    "ts_basis",
    "host",
    "source",
    "op_raw",
    "disposition",
)
_LEVELS = "Info|Warning|Error|Fatal|Panic"
_LEVEL = rf"(?:(?:{_LEVELS}): )?"
# Info: imap(user@example.net)<18><PeYc>: Info: Disconnected ...
_HEAD = rf"^(?:dovecot: )?{_LEVEL}([A-Za-z0-9_-]+)(?:\((.*?)\))?(?:<([^<>]*)>)?(?:<([^<>]*)>)?: {_LEVEL}(.*)$"
# ... in 30 secs): user=<hess@example.net>, method=PLAIN, rip=192.0.2.1, lip=..., TLS: Connection closed, session=<oEOp>
_LOGIN = r"^(.*?): (?:user=<(.*)>, )?((?:[A-Za-z_]+=[^<>, ]*, )*rip=[^<>]*)$"
_SESSION = r"^(.*), session=<([^<>]*)>$"
_ATTEMPTS = r"auth failed, (\d{1,9}) attempts?"
# conn unix:auth-worker (pid=14830,uid=109): auth-worker<6>: pam(user@example.net,192.0.2.1,<PeYc>): unknown user
_AUTH = (
    r"^(?:conn unix:[^:]* \(pid=\d+,uid=\d+\): )?(?:auth-worker<\d+>: )?[a-z][a-z0-9-]*\("
    r"(.*?)(?:,([0-9A-Fa-f.:]*))?(?:,<([^<>]*)>)?\): (.*)$"
)
# ... top=0/0, retr=2/4096, del=0/9, size=81920, in=12, out=43
_N = "([0-9]{1,15})"
_POP3 = rf"^{_N}/{_N}, retr={_N}/{_N}, del={_N}/{_N}, size={_N}(.*)$"
_LOGIN_BEGUN = r"^(?:Login|Logged in): |auth failed, |Maximum number of connections|tried to use |[Pp]roxy|Login failed"
_POP3_BEGUN = r"\b(?:top=\d|retr=\d|del=\d|size=\d)"
_IMAP = r"^(.*?) (?:in=(\d{1,15}) out=(\d{1,15})|bytes=(\d{1,15})/(\d{1,15}))(.*)$"
_IMAP_BEGUN = r" (?:in=\d|bytes=\d)"
# sieve: msgid=<1411372801@raptor.example>: stored mail into mailbox 'INBOX'
_MAIL = (
    r"\bmsgid=(.*): (saved mail to|stored mail into mailbox|forwarded to|save failed to|failed to store into mailbox)"
    r" (.*)$"
)
_PASSWORDS = ["PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "APOP", "NTLM", "RPA", "SKEY", "SCRAM-SHA-1", "SCRAM-SHA-256"]
_PROTOCOLS = {"pop3": "pop3", "imap": "imap", "submission": "smtp", "pop3-login": "pop3", "imap-login": "imap"}
_PROTOCOLS |= {"submission-login": "smtp", "auth": "directory", "auth-worker": "directory"}
_ENDS = ("Logged out", "Connection closed", "Disconnected for inactivity", "Disconnected in IDLE", "Internal error")
_WHO = ("principal_id", "principal_type", "mailbox_id", "credential_id", "credential_type", "tenant_domain")
_WHAT = ("protocol", "action", "outcome", "session_id", "agg_level", "bytes_known", "reason")


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
    readers = (_ignored, _logins, _attempts, _summaries, _imap_summaries, _deliveries, _damaged)
    parts = [read(whole.lazy().filter(kinds == at)) for at, read in enumerate(readers) if (kinds == at).any()]
    bad = frame.lazy().with_columns(op_raw=pl.lit(None, pl.String), source=pl.lit("dovecot"), reason=refused)
    bad = bad.with_columns(disposition=pl.lit(QUARANTINED)).filter(pl.col("reason").is_not_null())
    return pl.concat([*parts, bad.select(*_ROW, "reason")], how="diagonal")


def _heads(frame: pl.DataFrame) -> pl.DataFrame:
    """Cut `service(inner)<worker><session>: body`; op_raw is the service, inner mostly the user."""
    named = pl.col("program").str.starts_with("dovecot")
    text = pl.when(named).then("message").otherwise(pl.concat_str("program", pl.lit(": "), "message"))
    lines = frame.lazy().with_columns(text.alias("text"), source=pl.lit("dovecot"), disposition=pl.lit("access_events"))
    plain = _cut(_cut(lines, "text", ": ", "head", "body"), "head", "(", "service", "rest")
    cut = _cut(_cut(plain, "rest", ")", "inner", "tags"), "tags", ">", "tag1", "tag2", "more").collect()
    levelled = pl.col("body").str.contains(rf"^(?:{_LEVELS}): ")
    simple = ~pl.col("head").str.contains(rf"[\s<]|^(?:dovecot|{_LEVELS})$")
    tagged = (
        ~pl.col("head").str.contains(" ", literal=True) & (pl.col("more") == "") & pl.col("tag1").str.starts_with("<")
    )
    fits = cut.select(((simple & (pl.col("tags").fill_null("") == "")) | tagged) & ~levelled).to_series()
    fits = fits.fill_null(value=False)
    names = ("service", "inner", "tag1", "tag2", "body")
    odd = _groups(lines.filter(~fits), pl.col("text"), _HEAD, *names).collect()
    whole = cut.filter(fits).with_columns(pl.col("tag1", "tag2").str.strip_prefix("<")).select(odd.columns)
    whole = whole.with_columns(pl.when(pl.col(name) != "").then(name).alias(name) for name in ("tag1", "tag2"))
    lines = pl.concat([whole, odd]).lazy()
    numbered = pl.col("tag1").str.contains(r"^\d*$") & (pl.col("tag2").is_not_null() | (pl.col("tag1") != ""))
    lines = lines.with_columns(
        pl.col("body").fill_null(""),
        op_raw=pl.col("service").str.to_lowercase(),
        worker=pl.when(numbered).then("tag1"),
        session=pl.when(numbered).then("tag2").otherwise(pl.coalesce("tag2", "tag1")),
    )
    return lines.drop("program", "message", "text", "service", "tag1", "tag2").collect()


def _kind() -> pl.Expr:
    """Number the lines by what they tell: the position in the readers of `parse`."""
    service = pl.col("op_raw")

    def told(services: list[str], pattern: str) -> pl.Expr:
        body = pl.when(service.is_in(services)).then("body")
        return body.str.contains(pattern).fill_null(value=False)

    login = told(["pop3-login", "imap-login", "submission-login"], _LOGIN_BEGUN)
    kind = (
        pl.when(login & pl.col("body").str.contains("rip=", literal=True)).then(1)
        .when(login).then(6)
        .when(told(["auth", "auth-worker"], _AUTH)).then(2)
        .when(told(["pop3"], _POP3_BEGUN)).then(3)
        .when(told(["imap"], _IMAP_BEGUN)).then(4)
        .when(told(["lda", "lmtp", "deliver", "dovecot-lda"], _MAIL)).then(5)
        .otherwise(0)
    )  # fmt: skip
    return kind.cast(pl.UInt8)


def _groups(rows: pl.LazyFrame, text: pl.Expr, pattern: str, *names: str) -> pl.LazyFrame:
    return rows.with_columns(text.str.extract_groups(pattern).struct.rename_fields(list(names)).alias("_")).unnest("_")


def _cut(rows: pl.LazyFrame, column: str, by: str, *names: str) -> pl.LazyFrame:
    parts = pl.col(column).str.splitn(by, len(names)).struct.rename_fields(list(names))
    return rows.with_columns(parts.alias("_")).unnest("_")


def _access(rows: pl.LazyFrame, *names: str) -> pl.LazyFrame:
    """Fill what all access_events share, from user, auth_method (null: unknown) and the columns of `_WHAT`."""
    user = pl.col("user").str.strip_chars().str.to_lowercase()
    rows = rows.with_columns(
        principal_id=pl.when(user != "").then(user), auth_method=pl.col("auth_method").str.to_uppercase()
    )
    who, method = pl.col("principal_id"), pl.col("auth_method")
    password = method.is_null() | method.is_in(_PASSWORDS)
    rows = rows.with_columns(
        principal_type=pl.when(who.is_not_null()).then(pl.lit("user")),
        mailbox_id=who,
        credential_id=pl.when(password).then(pl.lit("pw:") + who),
        credential_type=pl.when(password & who.is_not_null()).then(pl.lit("password")),
        tenant_domain=who.str.splitn("@", 2).struct[1].str.extract(r"([^@\s]+)$"),
        protocol=pl.col("op_raw").replace_strict(_PROTOCOLS, default=None, return_dtype=pl.String),
    )
    return rows.select(*_ROW, *_WHO, *_WHAT, "auth_method", *names)


def _logins(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `Login: user=<...>, ...` and `Disconnected (auth failed, 2 attempts): user=<...>, ...` of login services."""
    plain = _cut(_cut(rows, "body", ": user=<", "said", "r"), "r", ">, ", "user", "r2")
    cut = _cut(plain, "r2", ", session=<", "fields", "session_named").collect()
    sessions = cut["session_named"].str.strip_suffix(">")
    marks = cut.select(pl.concat_str("user", "fields", sessions.fill_null("")).str.contains("[<>]")).to_series()
    fits = (~marks & cut["fields"].str.contains("rip=", literal=True)).fill_null(value=False)
    odd = _groups(rows.filter(~fits), pl.col("body"), _SESSION, "front", "session_named")
    odd = _groups(odd, pl.coalesce("front", "body"), _LOGIN, "said", "user", "fields").drop("front")
    whole = cut.with_columns(sessions).filter(fits).lazy()
    parts = [_login_fields(part.select(odd.collect_schema().names()).collect()) for part in (whole, odd)]
    return _access(pl.concat(parts), "src_ip_raw", "tls_version", "op_count")


def _login_fields(frame: pl.DataFrame) -> pl.LazyFrame:
    """Read `method=PLAIN, rip=192.0.2.1, lip=192.0.2.2, mpid=18, TLS`, and once for each text what is said before."""
    frame = frame.hstack(by_values(frame["said"], _what_was_said))
    rows = _cut(_cut(frame.lazy(), "fields", "rip=", "before", "after"), "after", ",", "src_ip_raw", "last")
    rows = _cut(_cut(rows, "before", "method=", "_b", "method"), "method", ",", "auth_method", "_m")
    alone = pl.when(pl.col("session_named").is_null()).then("fields")
    pid = alone.str.extract(r"(?:^|, )(?:mpid|PID)=(\d+)")
    safe = pl.col("last").str.contains(", TLS", literal=True) | pl.col("last").str.contains(" secured", literal=True)
    lost = (pl.col("src_ip_raw").fill_null("") == "") | pl.col("src_ip_raw").str.contains(r"\s")
    over = pl.col("over").fill_null(value=False)
    return rows.with_columns(
        tls_version=pl.when(safe).then(pl.lit("TLS")),
        session_id=pl.coalesce("session_named", pl.lit("pid:") + pid),
        op_count=pl.coalesce("attempts", "repeated"),
        bytes_known=pl.lit(value=False),
        agg_level=pl.lit("event"),
        disposition=pl.when(lost).then(pl.lit(QUARANTINED)).when(over).then(pl.lit(IGNORED)).otherwise("disposition"),
        reason=pl.when(lost).then(pl.lit("dovecot: login line cut or damaged"))
        .when(over).then(pl.lit("dovecot: end of a proxied session")).otherwise("why"),
    )  # fmt: skip


def _what_was_said(texts: pl.Series) -> pl.DataFrame:
    """Tell action, outcome, why (of a failure), attempts, and whether it is the end of a proxied session."""
    said = pl.col("said").str
    proxied = said.contains(r"(?i)\bproxy")
    started = proxied & said.contains(r"(?i)(?:started proxying|^proxying)")
    good = started | (said.contains(r"^(?:Login|Logged in)\b") & ~said.contains("failed", literal=True))
    why = (
        pl.when(good).then(None)
        .when(said.contains("Maximum number of connections", literal=True)).then(pl.lit("too many connections"))
        .when(said.contains("plaintext auth", literal=True)).then(pl.lit("plaintext authentication refused"))
        .when(said.contains("unsupported auth", literal=True)).then(pl.lit("mechanism not supported"))
        .when(said.contains("auth failed", literal=True)).then(pl.lit("auth failed"))
        .otherwise(pl.lit("login failed"))
    )  # fmt: skip
    return texts.to_frame("said").select(
        pl.when(proxied).then(pl.lit("proxy")).otherwise(pl.lit("auth")).alias("action"),
        pl.when(good).then(pl.lit("success")).otherwise(pl.lit("failure")).alias("outcome"),
        why.alias("why"),
        said.extract(_ATTEMPTS).cast(pl.Int64, strict=False).alias("attempts"),
        (proxied & ~started & ~said.contains("(?i)fail")).alias("over"),
    )


def _attempts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read what auth says of an attempt; lines that tell no failure are ignored."""
    rows = _groups(rows, pl.col("body"), _AUTH, "user", "src_ip_raw", "session_named", "said")
    said = pl.col("said").str
    why = (
        pl.when(said.contains(r"(?i)^unknown user|user not known")).then(pl.lit("unknown user"))
        .when(said.contains(r"(?i)^password mismatch|pam_authenticate\(\) failed|^invalid credentials"))
        .then(pl.lit("password mismatch"))
        .when(said.contains(r"(?i)^(?:user|account) .*(?:disabled|expired)")).then(pl.lit("account disabled"))
    )  # fmt: skip
    rows = rows.with_columns(
        pl.when(pl.col("src_ip_raw") != "").then("src_ip_raw"),
        why=why,
        auth_method=pl.lit(None, pl.String),
        session_id="session_named",
        action=pl.lit("auth"),
        outcome=pl.lit("failure"),
        op_count="repeated",
        bytes_known=pl.lit(value=False),
        agg_level=pl.lit("event"),
    )
    told = pl.col("why").is_not_null()
    rows = rows.with_columns(
        disposition=pl.when(told).then("disposition").otherwise(pl.lit(IGNORED)),
        reason=pl.when(told).then("why").otherwise(pl.lit("dovecot: no access in the line")),
    )
    return _access(rows, "src_ip_raw", "op_count")


def _ended(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Fill what the summaries of POP3 and IMAP share; `said` is the reason of the end."""
    frame = rows.collect()
    frame = frame.hstack(by_values(frame["said"], _how_it_ended))
    lost = pl.col("said").is_null()
    return frame.lazy().with_columns(
        user=pl.col("inner"),
        auth_method=pl.lit(None, pl.String),
        session_id=pl.coalesce(pl.when(pl.col("session") != "").then("session"), pl.lit("pid:") + pl.col("worker")),
        ts_end="ts",
        action=pl.lit("session"),
        outcome=pl.lit("success"),
        reason=pl.when(lost).then(pl.lit("dovecot: session line cut or damaged")).otherwise("how"),
        disposition=pl.when(lost).then(pl.lit(QUARANTINED)).otherwise("disposition"),
        agg_level=pl.lit("session"),
        bytes_known=pl.lit(value=True),
    )


def _how_it_ended(texts: pl.Series) -> pl.DataFrame:
    said = pl.col("said").str
    how = pl.coalesce(pl.when(said.contains(end, literal=True)).then(pl.lit(end)) for end in _ENDS)
    return texts.to_frame("said").select(how.alias("how"))


def _summaries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters of a POP3 session."""
    numbers = ("top_count", "top_bytes", "retr_count", "retr_bytes", "dele_count", "maildrop_n", "maildrop_bytes")
    rows = _groups(_cut(rows, "body", "top=", "end", "counters"), pl.col("counters"), _POP3, *numbers, "more")
    rows = _ended(rows.with_columns(said=pl.when(pl.col("more").is_not_null()).then("end")))
    more = pl.col("more").str
    both = more.extract_groups(r"bytes=(\d{1,15})/(\d{1,15})").struct
    rows = rows.with_columns(
        pl.col(numbers).cast(pl.Int64, strict=False),
        bytes_in=pl.coalesce(more.extract(r"\bin=(\d{1,15})"), both[0]).cast(pl.Int64, strict=False),
        out=pl.coalesce(more.extract(r"\bout=(\d{1,15})"), both[1]).cast(pl.Int64, strict=False),
    ).with_columns(
        bytes_out=pl.coalesce("out", pl.col("top_bytes") + pl.col("retr_bytes")),
        item_count="retr_count",
        op_count=pl.sum_horizontal("retr_count", "top_count", "dele_count"),
    )
    kept = ("ts_end", "top_count", "retr_count", "dele_count", "maildrop_n", "maildrop_bytes")
    return _access(rows, *kept, "bytes_in", "bytes_out", "item_count", "op_count")


def _imap_summaries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters of an IMAP session; items are message bodies that were fetched."""
    rows = _ended(_groups(rows, pl.col("body"), _IMAP, "said", "in1", "out1", "in2", "out2", "more"))
    rows = rows.with_columns(
        bytes_in=pl.coalesce("in1", "in2").cast(pl.Int64, strict=False),
        bytes_out=pl.coalesce("out1", "out2").cast(pl.Int64, strict=False),
        item_count=pl.col("more").str.extract(r"\bbody_count=(\d{1,15})").cast(pl.Int64, strict=False),
    )
    return _access(rows, "ts_end", "bytes_in", "bytes_out", "item_count")


def _deliveries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read local deliveries and what Sieve forwards, as mail_events; lmtp(18, user) names the process too."""
    rows = _groups(rows, pl.col("body"), _MAIL, "id", "verb", "place")
    user = pl.col("inner").str.replace(r"^\d+, ", "")
    sent, failed = pl.col("verb") == "forwarded to", pl.col("verb").str.contains("fail", literal=True)
    rows = rows.with_columns(
        disposition=pl.lit("mail_events"),
        reason=pl.lit(None, pl.String),
        op_raw=pl.col("op_raw").replace({"deliver": "lda", "dovecot-lda": "lda"}),
        event=pl.when(sent).then(pl.lit("send")).when(failed).then(pl.lit("defer")).otherwise(pl.lit("deliver")),
        outcome=pl.when(failed).then(pl.lit("failure")).otherwise(pl.lit("success")),
        message_id=pl.when(pl.col("id").str.strip_chars() != "").then(pl.col("id").str.strip_chars()),
        rcpt=pl.when(sent).then(pl.col("place").str.strip_chars("<>")).otherwise(user),
        orig_rcpt=pl.when(sent).then(user),
        status_text=pl.when(~sent).then(pl.concat_str("verb", pl.lit(" "), "place")),
        session_id=pl.when(pl.col("session") != "").then("session"),
        tenant_domain=user.str.extract(r"@([^@\s]+)$").str.to_lowercase(),
        direction=pl.lit("unknown"),
    )
    mail = ("event", "outcome", "direction", "message_id", "rcpt", "orig_rcpt", "status_text", "session_id")
    return rows.select(*_ROW, *mail, "reason", "tenant_domain")


def _damaged(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.with_columns(disposition=pl.lit(QUARANTINED))
    return rows.select(*_ROW, reason=pl.lit("dovecot: login line cut or damaged"))


def _ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    body, service = pl.col("body").str, pl.col("op_raw")
    reason = (
        pl.when(body.contains(r"no auth attempts|disconnected before auth|didn't finish SASL"))
        .then(pl.lit("dovecot: no auth attempts"))
        .when(service.str.starts_with("managesieve")).then(pl.lit("dovecot: ManageSieve"))
        .when(service.str.ends_with("-login")).then(pl.lit("dovecot: connection without a login"))
        .when(service.is_in(["pop3", "imap"])).then(pl.lit("dovecot: session without counters"))
        .when(service.is_in(["lda", "lmtp", "deliver", "dovecot-lda"])).then(pl.lit("dovecot: no delivery in the line"))
        .otherwise(pl.lit("dovecot: no access in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED)).select(*_ROW, reason=reason)


FORMAT = Format(
    name="dovecot",
    title="Dovecot",
    spec="https://doc.dovecot.org/ (log lines of logins, sessions and deliveries)",
    tables=("access_events", "mail_events"),
    parse=parse,
    programs=r"dovecot(?:[-/].*)?|(?:deliver|lda|lmtp|pop3|imap|POP3|IMAP|pop3-login|imap-login)(?:\(.*)?",
    gaps=(
        "which messages were retrieved is not logged, only how many; retr = maildrop_n means all of them",
        "old versions name no session in the summary: join login and summary by user and time",
        "attempts are told by auth (protocol directory) and by the login service: count one of them",
        "ManageSieve logins are not read",
    ),
)
