"""Readers of Dovecot's lines: each takes the lines of one kind, cut by formats.dovecot, and gives their rows.

The lines have the columns of SYSLOG_SCHEMA, op_raw (service, lower case), inner (what stands in brackets, mostly the
user), worker, session and body.
"""

import polars as pl

from transforms.model import IGNORED, QUARANTINED
from transforms.syslog_time import by_values

ROW = (
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
# ... in 30 secs): user=<hess@example.net>, method=PLAIN, rip=192.0.2.1, lip=..., TLS: Connection closed, session=<oEOp>
_LOGIN = r"^(.*?): (?:user=<(.*)>, )?((?:[A-Za-z_]+=[^<>, ]*, )*rip=[^<>]*)$"
_SESSION = r"^(.*), session=<([^<>]*)>$"
_ATTEMPTS = r"auth failed, (\d{1,9}) attempts?"
# conn unix:auth-worker (pid=14830,uid=109): auth-worker<6>: pam(user@example.net,192.0.2.1,<PeYc>): unknown user
ATTEMPT = (
    r"^(?:conn unix:[^:]* \(pid=\d+,uid=\d+\): )?(?:auth-worker<\d+>: )?[a-z][a-z0-9-]*\("
    r"(.*?)(?:,([0-9A-Fa-f.:]*))?(?:,<([^<>]*)>)?\): (.*)$"
)
# ... top=0/0, retr=2/4096, del=0/9, size=81920, in=12, out=43
_N = "([0-9]{1,15})"
_POP3 = rf"^{_N}/{_N}, retr={_N}/{_N}, del={_N}/{_N}, size={_N}(.*)$"
# Logged out in=1719 out=139719 deleted=1 ...; bytes=748/17264; rcvd=214, sent=3328
_IMAP = rf"^(.*?) (?:in={_N} out={_N}|bytes={_N}/{_N}|rcvd={_N}, sent={_N})(.*)$"
_IN, _OUT = rf"(?:^|[ ,])(?:in|rcvd)={_N}", rf"(?:^|[ ,])(?:out|sent)={_N}"
# proxy(kim): disconnecting 192.0.2.1 (Disconnected by client: read failed (22s idle, in=12, out=4312))
_PROXIED = rf"s idle, in={_N}, out={_N}"
# sieve: msgid=<1411372801@raptor.example>: stored mail into mailbox 'INBOX'; ... fileinto action: Stored mail ...
DELIVERED = (
    r"\bmsgid=(.*): (?i:(saved mail to|stored mail into mailbox|forwarded to|save failed to"
    r"|failed to store into mailbox|failed to redirect message to|discarded message|rejected message from"
    r"|marked message to be discarded))(?:[ :]+(.*))?$"
)
# expunge: box=Trash, uid=7, msgid=<1@a.example>, size=4711; copy from INBOX: box=Trash, uid=...
_BOX = r": box=(.*?)(?:, (?:uid|msgid|size|vsize|from|subject|flags)=|$)"
_CHANGES = {"expunge": "delete", "delete": "update", "undelete": "update", "flag_change": "update", "copy": "move"}
_CHANGES |= {"save": "create", "mailbox_create": "create", "mailbox_delete": "delete", "mailbox_rename": "move"}
CHANGE = rf"^(?:{'|'.join(_CHANGES)})(?: from [^:]*)?: box="
_PASSWORDS = ["PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "APOP", "NTLM", "RPA", "SKEY", "SCRAM-SHA-1", "SCRAM-SHA-256"]
_PROTOCOLS = {"pop3": "pop3", "imap": "imap", "submission": "smtp", "pop3-login": "pop3", "imap-login": "imap"}
_PROTOCOLS |= {"submission-login": "smtp", "auth": "directory", "auth-worker": "directory", "imap-hibernate": "imap"}
_ENDS = ("Logged out", "Connection closed", "Disconnected for inactivity", "Inactivity", "Disconnected in IDLE")
_FAULT = "Internal error"
DELIVERERS = ("lda", "lmtp", "deliver", "dovecot-lda")
SESSIONS = ("pop3", "imap", "imap-hibernate", "submission")
_LOST = "failed to redirect message to"
_WHO = ("principal_id", "principal_type", "mailbox_id", "credential_id", "credential_type", "tenant_domain")
_WHAT = ("protocol", "action", "outcome", "session_id", "agg_level", "bytes_known", "reason")


def groups(rows: pl.LazyFrame, text: pl.Expr, pattern: str, *names: str) -> pl.LazyFrame:
    return rows.with_columns(text.str.extract_groups(pattern).struct.rename_fields(list(names)).alias("_")).unnest("_")


def cut(rows: pl.LazyFrame, column: str, by: str, *names: str) -> pl.LazyFrame:
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
    return rows.select(*ROW, *_WHO, *_WHAT, "auth_method", *names)


def logins(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `Login: user=<...>, ...` and `Disconnected (auth failed, 2 attempts): user=<...>, ...` of login services."""
    plain = cut(cut(rows, "body", ": user=<", "said", "r"), "r", ">, ", "user", "r2")
    split = cut(plain, "r2", ", session=<", "fields", "session_named").collect()
    sessions = split["session_named"].str.strip_suffix(">")
    marks = split.select(pl.concat_str("user", "fields", sessions.fill_null("")).str.contains("[<>]")).to_series()
    fits = (~marks & split["fields"].str.contains("rip=", literal=True)).fill_null(value=False)
    odd = groups(rows.filter(~fits), pl.col("body"), _SESSION, "front", "session_named")
    odd = groups(odd, pl.coalesce("front", "body"), _LOGIN, "said", "user", "fields").drop("front")
    whole = split.with_columns(sessions).filter(fits).lazy()
    parts = [_login_fields(part.select(odd.collect_schema().names()).collect()) for part in (whole, odd)]
    return _access(pl.concat(parts), "src_ip_raw", "tls_version", "op_count", "ts_end", "bytes_in", "bytes_out")


def _login_fields(frame: pl.DataFrame) -> pl.LazyFrame:
    """Read `method=PLAIN, rip=192.0.2.1, lip=192.0.2.2, mpid=18, TLS`, and once for each text what is said before."""
    frame = frame.hstack(by_values(frame["said"], _what_was_said))
    rows = cut(cut(frame.lazy(), "fields", "rip=", "before", "after"), "after", ",", "src_ip_raw", "last")
    rows = cut(cut(rows, "before", "method=", "_b", "method"), "method", ",", "auth_method", "_m")
    alone = pl.when(pl.col("session_named").is_null()).then("fields")
    pid = alone.str.extract(r"(?:^|, )(?:mpid|PID)=(\d+)")
    safe = pl.col("last").str.contains(", TLS", literal=True) | pl.col("last").str.contains(" secured", literal=True)
    lost = (pl.col("src_ip_raw").fill_null("") == "") | pl.col("src_ip_raw").str.contains(r"\s")
    over = pl.col("over").fill_null(value=False)
    counted = over & pl.col("out").is_not_null()
    return rows.with_columns(
        action=pl.when(counted).then(pl.lit("session")).otherwise("action"),
        outcome=pl.when(counted).then(pl.lit("success")).otherwise("outcome"),
        ts_end=pl.when(counted).then("ts"),
        bytes_in="into",
        bytes_out="out",
        tls_version=pl.when(safe).then(pl.lit("TLS")),
        session_id=pl.coalesce("session_named", pl.lit("pid:") + pid),
        op_count=pl.when(~over).then(pl.coalesce("attempts", "repeated")),
        bytes_known=counted,
        agg_level=pl.when(counted).then(pl.lit("session")).otherwise(pl.lit("event")),
        disposition=pl.when(lost).then(pl.lit(QUARANTINED))
        .when(over & ~counted).then(pl.lit(IGNORED)).otherwise("disposition"),
        reason=pl.when(lost).then(pl.lit("dovecot: login line cut or damaged"))
        .when(counted).then(pl.lit("end of a proxied session"))
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
        (proxied & ~started & (said.contains("disconnecting", literal=True) | ~said.contains("(?i)fail"))).alias(
            "over"
        ),
        said.extract(_PROXIED, 1).cast(pl.Int64, strict=False).alias("into"),
        said.extract(_PROXIED, 2).cast(pl.Int64, strict=False).alias("out"),
    )


def attempts(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read what auth says of an attempt; lines that tell no failure are ignored."""
    rows = groups(rows, pl.col("body"), ATTEMPT, "user", "src_ip_raw", "session_named", "said")
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
        src_ip_raw="peer",
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
    how = pl.coalesce(pl.when(said.contains(end, literal=True)).then(pl.lit(end)) for end in (*_ENDS, _FAULT))
    return texts.to_frame("said").select(how.alias("how"))


def summaries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters of a POP3 session."""
    numbers = ("top_count", "top_bytes", "retr_count", "retr_bytes", "dele_count", "maildrop_n", "maildrop_bytes")
    rows = groups(cut(rows, "body", "top=", "end", "counters"), pl.col("counters"), _POP3, *numbers, "more")
    rows = _ended(rows.with_columns(said=pl.when(pl.col("more").is_not_null()).then("end")))
    both = pl.col("more").str.extract_groups(rf"(?:bytes|total)={_N}/{_N}").struct
    body = pl.col("body").str
    rows = rows.with_columns(
        pl.col(numbers).cast(pl.Int64, strict=False),
        bytes_in=pl.coalesce(body.extract(_IN), both[0]).cast(pl.Int64, strict=False),
        out=pl.coalesce(body.extract(_OUT), both[1]).cast(pl.Int64, strict=False),
    ).with_columns(
        bytes_out=pl.coalesce("out", pl.col("top_bytes") + pl.col("retr_bytes")),
        item_count="retr_count",
        op_count=pl.sum_horizontal("retr_count", "top_count", "dele_count"),
    )
    kept = ("ts_end", "top_count", "retr_count", "dele_count", "maildrop_n", "maildrop_bytes")
    return _access(rows, *kept, "src_ip_raw", "bytes_in", "bytes_out", "item_count", "op_count")


def imap_summaries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read the counters of an IMAP session; items are message bodies that were fetched."""
    rows = _ended(groups(rows, pl.col("body"), _IMAP, "said", "in1", "out1", "in2", "out2", "in3", "out3", "more"))
    rows = rows.with_columns(
        bytes_in=pl.coalesce("in1", "in2", "in3").cast(pl.Int64, strict=False),
        bytes_out=pl.coalesce("out1", "out2", "out3").cast(pl.Int64, strict=False),
        item_count=pl.col("more").str.extract(r"\bbody_count=(\d{1,15})").cast(pl.Int64, strict=False),
    )
    return _access(rows, "ts_end", "src_ip_raw", "bytes_in", "bytes_out", "item_count")


def deliveries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read local deliveries, and what Sieve forwards, rejects or discards; lmtp(18, user) names the process too."""
    rows = groups(rows, pl.col("body"), DELIVERED, "id", "verb", "place")
    user = pl.col("inner").str.replace(r"^\d+, ", "")
    verb, message = (
        pl.col("verb").str.to_lowercase(),
        pl.col("id").str.replace(": [a-z]+ action$", "").str.strip_chars(),
    )
    failed, redirected = verb.str.contains("fail", literal=True), verb.is_in(["forwarded to", _LOST])
    refused = verb == "rejected message from"
    event = (
        pl.when(redirected).then(pl.lit("send"))
        .when(failed).then(pl.lit("defer"))
        .when(refused).then(pl.lit("reject"))
        .when(verb.str.contains("discarded", literal=True)).then(pl.lit("remove"))
        .otherwise(pl.lit("deliver"))
    )  # fmt: skip
    rows = rows.with_columns(
        disposition=pl.lit("mail_events"),
        reason=pl.lit(None, pl.String),
        op_raw=pl.col("op_raw").replace({"deliver": "lda", "dovecot-lda": "lda"}),
        event=event,
        outcome=pl.when(failed | refused).then(pl.lit("failure")).otherwise(pl.lit("success")),
        message_id=pl.when(message != "").then(message),
        rcpt=pl.when(redirected).then(pl.col("place").str.extract(r"^<?([^<>]*)")).otherwise(user),
        orig_rcpt=pl.when(redirected).then(user),
        status_text=pl.when(~redirected | failed).then(
            pl.concat_str("verb", "place", separator=" ", ignore_nulls=True)
        ),
        session_id=pl.when(pl.col("session") != "").then("session"),
        tenant_domain=user.str.extract(r"@([^@\s]+)$").str.to_lowercase(),
        direction=pl.lit("unknown"),
    )
    mail = ("event", "outcome", "direction", "message_id", "rcpt", "orig_rcpt", "status_text", "session_id")
    return rows.select(*ROW, *mail, "reason", "tenant_domain")


def changes(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read what the mail_log plugin says of a message or mailbox: `expunge: box=Trash, uid=7, msgid=<1@a>`."""
    op, box = pl.col("body").str.extract(r"^([a-z_]+)"), pl.col("body").str.extract(_BOX)
    message = pl.col("body").str.extract(r", msgid=(<[^<>]*>)")
    rows = rows.with_columns(
        user="inner",
        src_ip_raw="peer",
        auth_method=pl.lit(None, pl.String),
        session_id=pl.coalesce(pl.when(pl.col("session") != "").then("session"), pl.lit("pid:") + pl.col("worker")),
        action=op.replace_strict(_CHANGES, default="other", return_dtype=pl.String),
        outcome=pl.lit("success"),
        reason=pl.lit(None, pl.String),
        agg_level=pl.lit("event"),
        bytes_known=pl.lit(value=False),
        op=op,
        item_count=pl.when(message.is_not_null()).then(pl.col("repeated")),
        message_ids=pl.when(message.is_not_null()).then(pl.concat_list(message)),
        folders=pl.when(box != "").then(pl.concat_list(box)),
    )
    told = _access(rows, "src_ip_raw", "item_count", "message_ids", "folders", "op")
    return told.with_columns(op_raw="op").drop("op")


def damaged(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.with_columns(disposition=pl.lit(QUARANTINED))
    return rows.select(*ROW, reason=pl.lit("dovecot: login line cut or damaged"))


def ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    body, service = pl.col("body").str, pl.col("op_raw")
    reason = (
        pl.when(body.contains(r"^proxy\(.*\): disconnecting ")).then(pl.lit("dovecot: end of a proxied session"))
        .when(body.contains(r"no auth attempts|disconnected before auth|didn't finish SASL"))
        .then(pl.lit("dovecot: no auth attempts"))
        .when(service.str.starts_with("managesieve")).then(pl.lit("dovecot: ManageSieve"))
        .when(service.str.ends_with("-login")).then(pl.lit("dovecot: connection without a login"))
        .when(service.is_in(SESSIONS)).then(pl.lit("dovecot: session without counters"))
        .when(service.is_in(DELIVERERS)).then(pl.lit("dovecot: no delivery in the line"))
        .otherwise(pl.lit("dovecot: no access in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED)).select(*ROW, reason=reason)
