"""Rows out of Postfix lines that are seldom.

Seldom are rejections and other actions of access lists, header checks and milters, replies of other servers, failed
authentications, TLS, and postscreen. They are read by regular expressions; what every message brings is read by
`transforms.formats.postfix` without.
"""

import polars as pl

from transforms.model import IGNORED
from transforms.smtp_rows import ROW, access, cut, groups, mail

PEERED = ("session_id", "event", "outcome", "src_host", "src_ip_raw", "status_text")
_SERVICES = ("master", "postfix-script", "anvil", "scache", "postfix", "verify", "tlsmgr", "tlsproxy", "dnsblog")
_PEER = r"([^\[\s]*)(\[[^\]\s]*\](?::\d+)?)"

# uid=300 from=<triceratops@dinos.test>
_PICKUP = r"^(uid=\d+) from=<(.*)>(?: orig_id=\S+)?$"
# sender non-delivery notification: 1F99E4BC9A
_NOTICE = r"^((?:sender|postmaster) [a-z -]*notification): ([0-9A-Za-z]+)$"
# host mx.example.com[192.0.2.1] said: 450 4.2.1 try again (in reply to RCPT TO command)
_SAID = rf"^(?:host |lost connection with |conversation with ){_PEER} (?:said: |refused to talk to me: )?(.*)$"
# reject: RCPT from unknown[192.0.2.1]: 504 5.5.2 <X>: Helo command rejected; from=<a@b> to=<c@d> proto=ESMTP helo=<X>
_ACTION = (
    r"^(?:milter-)?(?:reject|hold|discard|quarantine|redirect|filter|replace|prepend|strip|info|warning|bcc"
    r"|reject_warning): "
)
# warning: header Subject: hello from unknown[192.0.2.1]; from=<a@b> to=<c@d> proto=ESMTP helo=<X>: reply
_CONTENT = rf"^([a-z_-]+): ((?:\w+ )?(?:header|body) .*) from (?:local|{_PEER})(; .*)$"
_TRAILER = (
    r"^(.*?); (?:from=<(.*?)>(?:,? |$))?(?:to=<(.*?)>(?:,? |$))?(?:proto=[A-Z]+)?"
    r"(?:,? helo=<(.*?)>)?(?:,? sasl_username=<(.*?)>)?(?:: (.*))?$"
)
_SUBJECT = r"^(?:\w+ )?header (?i:Subject): (.*)$"
_DSN = r"^(?:\d{3}[ -])?(\d\.\d{1,3}\.\d{1,3}) "
# warning: unknown[192.0.2.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=postmaster@example.org
SASL = r"^warning: [^:\s\[]*\[[^\]]*\](?::\d+)?: SASL "
TLS = r"^(?:[A-Z][a-z]+ )?TLS connection (?:established|reused) "
# lost connection after AUTH from unknown[192.0.2.1]
ENDINGS = ("lost connection after ", "timeout after ", "too many errors after ", "improper command ", "SSL_accept ")
TROUBLE = (
    r"^((?:(?:lost connection|timeout|too many errors|improper command pipelining) after .*?|SSL_accept error))"
    rf" from {_PEER}(?::.*)?$"
)
# CONNECT from [192.0.2.1]:41323 to [192.0.2.2]:25; PREGREET 16 after 2.6 from [192.0.2.1]:41323: EHLO x\r\n
SCREEN = r"^([A-Z][A-Z-]+(?: [A-Z]+)*[a-z0-9. ]*?) (?:from )?(\[[^\]]*\](?::\d+)?)"


def address(name: str) -> pl.Expr:
    """Read `[192.0.2.1]` as the address alone, keep `[192.0.2.1]:25` for its port; null for the path of a socket."""
    text = pl.col(name)
    bare = pl.when(text.str.ends_with("]")).then(text.str.strip_chars("[]")).otherwise(text)
    return pl.when(~text.str.contains("/", literal=True)).then(bare).alias(name)


def peer(frame: pl.DataFrame, column: str) -> pl.LazyFrame:
    """Cut `name[address]more` and `name[address]:port more` into src_host, src_ip_raw, more, whole."""
    rows = cut(cut(frame.lazy(), column, "[", "src_host", "_at"), "_at", "]", "src_ip_raw", "more")
    more = pl.col("more")
    if frame[column].str.contains(r"\]:\d", literal=False).any():  # smtpd_client_port_logging
        rows = groups(rows, pl.when(more.str.starts_with(":")).then("more"), r"^:(\d+)(.*)$", "port", "after")
        ported = pl.col("port").is_not_null()
        rows = rows.with_columns(
            src_ip_raw=pl.when(ported).then(pl.format("[{}]:{}", "src_ip_raw", "port")).otherwise("src_ip_raw"),
            more=pl.when(ported).then("after").otherwise("more"),
        )
    whole = more.is_not_null() & ~pl.col("src_host").str.contains(" ", literal=True)
    return rows.with_columns(whole=whole.fill_null(value=False))


def seldom(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read what is seldom said of a message: local submission, actions of a policy, notifications, replies."""
    body = frame["body"].str
    pickup, notice, said = body.starts_with("uid="), body.contains(_NOTICE), body.contains(_SAID)
    action = body.contains(_ACTION)
    parts = [ignored(frame.filter(~(pickup | notice | said | action)).lazy())]
    for mask, read in ((pickup, _pickups), (notice, _notices), (said, _replies)):
        if mask.any():
            parts.append(read(frame.filter(mask).lazy()))
    return parts + _actions(frame.filter(action)) if action.any() else parts


def _pickups(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = groups(rows, pl.col("body"), _PICKUP, "status_text", "mail_from")
    rows = rows.with_columns(event=pl.lit("receive"), outcome=pl.lit("success"))
    names = ("queue_id", "event", "outcome", "mail_from", "status_text")
    return mail(rows, names, pl.col("mail_from").is_not_null(), "pickup line cut or damaged")


def _notices(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = groups(rows, pl.col("body"), _NOTICE, "status_text", "internal_id")
    rows = rows.with_columns(event=pl.lit("other"), outcome=pl.lit("success"))
    return mail(rows, ("queue_id", "event", "outcome", "status_text", "internal_id"))


def _replies(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = groups(rows, pl.col("body"), _SAID, "relay_host", "dst_ip_raw", "status_text")
    rows = rows.with_columns(address("dst_ip_raw"), event=pl.lit("other"), outcome=pl.lit("failure"))
    return mail(rows, ("queue_id", "event", "outcome", "relay_host", "dst_ip_raw", "status_text"))


def _actions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read rejections and other actions of access lists, header checks and milters."""
    names = ("action", "stage", "src_host", "src_ip_raw", "tail")
    rows = _staged(frame)
    rows = groups(rows, pl.when(pl.col("action").is_null()).then("body"), _CONTENT, *(f"c_{name}" for name in names))
    rows = _trailed(rows.with_columns(pl.coalesce(name, f"c_{name}").alias(name) for name in names))
    # Where the client's words hold a second trailer, it cannot be told which one is true.
    clear = pl.col("body").str.count_matches(r"; (?:from=<|to=<|proto=)") == 1
    content = pl.col("c_action").is_not_null()
    event = pl.col("action").str.strip_prefix("milter-")
    whole = pl.when(content).then("stage").otherwise("tail")
    said = pl.when(clear & content).then("reply").when(clear).then("text")
    rows = rows.with_columns(
        *(pl.when(clear).then(name).alias(name) for name in ("mail_from", "rcpt", "helo", "sasl_username")),
        src_host=pl.when((clear | ~content) & (pl.col("src_host") != "")).then("src_host"),
        src_ip_raw=pl.when(clear | ~content).then("src_ip_raw"),
        status_text=pl.coalesce(said, whole),
        subject=pl.when(clear & content).then(pl.col("stage").str.extract(_SUBJECT)),
        event=event.replace_strict({"reject": "reject", "hold": "hold"}, default="other", return_dtype=pl.String),
        session_id="pid",
    )
    rows = rows.with_columns(
        address("src_ip_raw"),
        outcome=pl.when(pl.col("event") == "reject").then(pl.lit("failure")).otherwise(pl.lit("unknown")),
        dsn=pl.col("status_text").str.extract(_DSN),
    )
    rows = rows.collect().lazy()
    read = pl.col("action").is_not_null()
    lost = ~read & pl.col("body").str.contains(r"^(?:milter-)?(?:reject|hold): ")
    kept = ("queue_id", *PEERED, "mail_from", "rcpt", "helo", "sasl_username", "subject", "dsn")
    return [
        mail(rows.filter(read | lost), kept, read, "rejection cut or damaged"),
        ignored(rows.filter(~(read | lost))),
    ]


def _staged(frame: pl.DataFrame) -> pl.LazyFrame:
    """Cut `reject: RCPT from name[address]: tail`; action is null where the line is none of these."""
    rows = cut(frame.lazy(), "body", ": ", "action", "where")
    rows = peer(cut(rows, "where", " from ", "stage", "who").collect(), "who")
    stage, more = pl.col("stage").str.contains(r"^[A-Z][A-Z-]*$"), pl.col("more").str
    rows = rows.with_columns(tail=more.slice(2), fits=stage & more.starts_with(": ") & pl.col("whole"))
    names = ("action", "stage", "src_host", "src_ip_raw", "tail")
    return rows.with_columns(pl.when("fits").then(name).alias(name) for name in names)


def _trailed(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Cut `text; from=<a@b> to=<c@d> proto=ESMTP helo=<X>`, any other trailer by a regular expression."""
    names = ("text", "mail_from", "rcpt", "helo", "sasl_username", "reply")
    rows = cut(rows, "tail", "; from=<", "f_text", "t1")
    rows = cut(rows, "t1", "> to=<", "f_mail_from", "t2")
    rows = cut(rows, "t2", "> proto=", "f_rcpt", "t3")
    rows = cut(rows, "t3", " helo=<", "t4", "f_helo")
    rows = rows.with_columns(pl.col("f_helo").str.strip_suffix(">"), pl.lit(None, pl.String).alias("f_sasl_username"))
    told = pl.concat_str("f_mail_from", "f_rcpt", "t4", "f_helo", separator=" ")
    fits = (
        ~told.str.contains("[<>;]")
        & pl.col("t3").str.ends_with(">")
        & ~pl.col("f_text").str.contains("; ", literal=True)
    )
    fits = fits.fill_null(value=False) | ~pl.col("tail").str.contains("; ", literal=True)
    rows = rows.with_columns(fits=fits.fill_null(value=False), f_reply=pl.lit(None, pl.String))
    rows = groups(rows, pl.when(~pl.col("fits")).then("tail"), _TRAILER, *names)
    return rows.with_columns(pl.when("fits").then(f"f_{name}").otherwise(name).alias(name) for name in names)


def sasl_failures(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read failed authentications as access_events."""
    rows = peer(frame.with_columns(pl.col("message").str.slice(len("warning: "))), "message")
    rows = cut(rows, "more", ", sasl_username=", "told", "user")
    rows = cut(rows, "told", " authentication ", "how", "why")
    method, why = pl.col("how").str.slice(len(": SASL ")), pl.col("why").str.to_lowercase().str
    known = why.starts_with("failed") | why.starts_with("aborted")
    good = known & ~method.str.contains(" ", literal=True) & pl.col("whole")
    # The text may be a challenge in Base64 (UGFzc3dvcmQ6 is "Password:"); only known reasons are kept.
    reason = (
        pl.when(why.contains("authentication failure", literal=True)).then(pl.lit("authentication failure"))
        .when(why.contains("connection lost", literal=True))
        .then(pl.lit("connection lost to the authentication server"))
        .when(why.contains("invalid authentication mechanism", literal=True)).then(pl.lit("invalid mechanism"))
        .otherwise(pl.lit("authentication failed"))
    )  # fmt: skip
    rows = rows.with_columns(auth_method=method, reason=reason, outcome=pl.lit("failure"), session_id="pid")
    return [access(rows, good.fill_null(value=False), "SASL failure cut or damaged")]


def tls(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read TLS handshakes, of clients (src) and with next hops (dst).

    Anonymous TLS connection established from h.example.com[192.0.2.1]: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 ...
    """
    rows = cut(frame.lazy(), "message", ": ", "front", "back")
    rows = cut(rows, "front", "[", "before", "at")
    rows = cut(rows, "before", "ed from ", "begin", "src_host")
    rows = cut(rows, "before", "ed to ", "begin_to", "relay_host")
    rows = cut(rows, "back", " ", "tls_version", "with", "cipher", "tls_cipher", "bits")
    rows = rows.with_columns(address=pl.lit("[") + pl.col("at"))
    inward = pl.col("src_host").is_not_null()
    good = (inward | pl.col("relay_host").is_not_null()) & pl.col("at").str.contains("]", literal=True)
    good = good & (pl.col("with") == "with") & (pl.col("tls_cipher") != "")
    rows = rows.with_columns(
        src_host=pl.when(pl.col("src_host") != "").then("src_host"),
        src_ip_raw=pl.when(inward).then(address("address")),
        dst_ip_raw=pl.when(~inward).then(address("address")),
        session_id="pid",
        event=pl.lit("tls"),
        outcome=pl.lit("success"),
    )
    kept = (*PEERED[:5], "relay_host", "dst_ip_raw", "tls_version", "tls_cipher")
    return [mail(rows, kept, good.fill_null(value=False), "TLS line cut or damaged")]


def troubles(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read sessions that ended badly."""
    rows = groups(frame.lazy(), pl.col("message"), TROUBLE, "status_text", "src_host", "src_ip_raw")
    rows = rows.with_columns(
        address("src_ip_raw"), event=pl.lit("other"), outcome=pl.lit("failure"), session_id="pid"
    )  # fmt: skip
    return [mail(rows, PEERED)]


def screened(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read what postscreen says of a client."""
    rows = groups(frame.lazy(), pl.col("message"), SCREEN, "status_text", "src_ip_raw")
    said = pl.col("status_text")
    events = {"CONNECT": "connect", "DISCONNECT": "disconnect"}
    passed = said.str.contains(r"^(?:CONNECT|DISCONNECT|PASS|ALLOWLISTED|WHITELISTED)")
    rows = rows.with_columns(
        address("src_ip_raw"),
        src_host=pl.lit(None, pl.String),
        event=said.replace_strict(events, default="other", return_dtype=pl.String),
        outcome=pl.when(passed).then(pl.lit("success")).otherwise(pl.lit("failure")),
        session_id="pid",
    )
    return [mail(rows, PEERED)]


def unknown(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Ignore lines, with the reason."""
    return [ignored(frame.lazy())]


def ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Say why lines (column message or body) carry nothing."""
    text = pl.col("message" if "message" in rows.collect_schema() else "body").str
    warned, served = text.contains(r"^(?:warning|error|fatal|panic): "), pl.col("op_raw").is_in(_SERVICES)
    reason = (
        pl.when(text.starts_with("statistics: ")).then(pl.lit("postfix: statistics"))
        .when(warned).then(pl.lit("postfix: warning or error of the server"))
        .when(served).then(pl.lit("postfix: service without messages"))
        .when(text.starts_with("connect to ")).then(pl.lit("postfix: no connection to the next hop"))
        .when(text.starts_with("setting up TLS ")).then(pl.lit("postfix: TLS handshake begun"))
        .otherwise(pl.lit("postfix: no message or session in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED), reason=reason).select(*ROW, "disposition", "reason")
