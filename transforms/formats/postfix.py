"""Postfix through syslog: `postfix/qmgr[18719]: C6E0DDB74006: from=<a@example.com>, size=309891, nrcpt=1 (queue active)`.

Specification: Postfix's own source (log_adhoc.c, smtpd.c, smtpd_check.c, cleanup_message.c, qmgr_active.c, postscreen),
https://www.postfix.org/. A line says one thing about a queue id or about a client's session; what it does not repeat (who
sent the message that is delivered) is found by joining (host, queue id) up to `removed`. Sessions (connect, TLS,
disconnect) carry no queue id; their session_id is the process id.

Addresses, host names and replies are written by others. Fields are read where Postfix writes them, by position; where a
rejection could be read in two ways (a HELO that imitates the rest of the line), its from, to and helo are left null.
"""

import polars as pl

from transforms.model import IGNORED, QUARANTINED, Context, Format
from transforms.syslog import time_trouble, unrepeat

_ROW = ("record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "op_raw")
_LOCAL = ("local", "virtual", "pipe", "lmtp")
_PEERED = ("session_id", "event", "outcome", "src_host", "src_ip_raw", "status_text")
_PEER = r"([^\[\s]*)(\[[^\]\s]*\](?::\d+)?)"

# Short queue ids are hexadecimal, long ones (enable_long_queue_ids) have no vowels.
_QUEUED = r"^(?:[0-9A-F]{5,20}|[0-9BCDFGHJ-NP-TV-Zbcdfghj-np-tv-z]{10,24}): "
# to=<trex@dinos.test>, orig_to=<rex@dinos.test>, relay=mx.dinos.test[192.0.2.1]:25, delay=0.13, delays=0.04/0/0/0.09, dsn=2.0.0, status=sent
_TO = (
    r"^to=<({a})>, (?:orig_to=<({a})>, )?relay=([^,\[]*)(\[[^\]]*\](?::\d+)?)?, (?:conn_use=\d+, )?"
    r"delay=([0-9.]+), (?:delays=[0-9./]+, dsn=([0-9.]+), )?status=([A-Za-z]+)"
)
_TO_PLAIN = _TO.format(a=r'[^"<>\s]*') + "$"
_TO_ANY = _TO.format(a=r'"(?:[^"\\]|\\.)*"@[^>]*|[^">]*') + r"(?: \((.*?)\)?)?$"
# from=<test@example.com>, size=309891, nrcpt=1 (queue active)
_FROM = r"^from=<(.*)>, (?:size=(\d{1,15}), nrcpt=(\d{1,9}) \((.*)\)|status=(expired), (.*))$"
# client=h.dinos.test[192.168.4.150]:4711, sasl_method=PLAIN, sasl_username=triceratops, sasl_sender=x@dinos.test
_CLIENT = rf"^client={_PEER}((?:, .*)?)$"
_SASL = r", sasl_method=([^,]*), sasl_username=(.*?)(?:, sasl_sender=.*)?$"
# uid=300 from=<triceratops@dinos.test>
_PICKUP = r"^(uid=\d+) from=<(.*)>(?: orig_id=\S+)?$"
# unknown[192.0.2.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=postmaster@example.org
_SASL_FAILED = (
    rf"^warning: {_PEER}: SASL (\S+) authentication (?:failed|aborted)(?:: ?(.*?))?(?:, sasl_username=(.*))?$"
)
# disconnect from unknown[192.0.2.1] ehlo=1 auth=0/1 quit=1 commands=2/3
_SESSION = rf"^(?:dis)?connect from {_PEER}(?: (.*))?$"
# Anonymous TLS connection established from h.example.com[192.0.2.1]: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)
_TLS = rf"^(?:[A-Z][a-z]+ )?TLS connection (?:established|reused) (from|to) {_PEER}: (\S+) with cipher (\S+)"
_TROUBLE = rf"^((?:(?:lost connection|timeout|too many errors|improper command pipelining) after .*?|SSL_accept error)) from {_PEER}(?::.*)?$"
# CONNECT from [192.0.2.1]:41323 to [192.0.2.2]:25; PREGREET 16 after 2.6 from [192.0.2.1]:41323: EHLO x\r\n
_SCREEN = r"^((?:[A-Z][A-Z-]+ ?)+[a-z0-9. ]*?)(?:from )?(\[[^\]]*\](?::\d+)?)"
# reject: RCPT from unknown[192.0.2.1]: 504 5.5.2 <X>: Helo command rejected; from=<a@b> to=<c@d> proto=ESMTP helo=<X>
_ACTION = r"^(?:milter-)?(?:reject|hold|discard|quarantine|redirect|filter|replace|prepend|strip|info|warning|bcc|reject_warning): "
_STAGE = rf"^([a-z_-]+): ([A-Z][A-Z-]*) from {_PEER}: (.*)$"
_CONTENT = rf"^([a-z_-]+): ((?:\w+ )?(?:header|body) .*) from {_PEER}(; .*)$"
_TRAILER = r"^(.*?); (?:from=<(.*?)>,? )?(?:to=<(.*?)>,? )?proto=[A-Z]+(?:,? helo=<(.*?)>)?(?:,? sasl_username=<(.*?)>)?(?:: (.*))?$"
_NOTICE = r"^((?:sender|postmaster) [a-z -]*notification): ([0-9A-Za-z]+)$"
# host mx.example.com[192.0.2.1] said: 450 4.2.1 try again (in reply to RCPT TO command)
_SAID = rf"^(?:host |lost connection with |conversation with ){_PEER} (?:said: |refused to talk to me: )?(.*)$"


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Turn syslog lines of Postfix into rows of mail_events and access_events (SASL), one row per line.

    Args:
        records: SYSLOG_SCHEMA.
        ctx: for the reason why a time was not read.
    """
    frame = records.drop("raw", strict=False).collect()
    daemons = frame["program"].unique().drop_nulls()
    known = {name: name.rsplit("/", 1)[-1] for name in daemons}
    frame = frame.drop("program").with_columns(
        frame["program"].replace_strict(known, default=None, return_dtype=pl.String).alias("op_raw"),
        source=pl.lit("postfix"),
    )
    parts = []
    if frame["ts"].has_nulls():
        undated = frame.filter(pl.col("ts").is_null())
        parts.append(undated.lazy().select(*_ROW, disposition=pl.lit(QUARANTINED), reason=time_trouble(ctx)))
        frame = frame.filter(pl.col("ts").is_not_null())
    frame = unrepeat(frame)
    message = pl.col("message").str
    kind = (
        pl.when(message.contains(_QUEUED)).then(0)
        .when(message.starts_with("connect from ") | message.starts_with("disconnect from ")).then(1)
        .otherwise(2)
    )  # fmt: skip
    kinds = frame.select(kind.cast(pl.UInt8)).to_series()
    queued = _of_queue(frame.filter(kinds == 0))
    other, nameless = _of_session(frame.filter(kinds == 2))
    sessions = _sessions(frame.filter(kinds == 1).lazy())
    return pl.concat([*parts, *queued, *nameless, sessions, *other], how="diagonal")


def _of_queue(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Split `<queue id>: <body>` and read the bodies."""
    text = pl.col("message").str.splitn(": ", 2).struct
    return _bodies(frame.with_columns(queue_id=text[0], body=text[1]).drop("message"))


def _bodies(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    body = pl.col("body").str
    kind = (
        pl.when(body.starts_with("to=<")).then(1)
        .when(body.starts_with("from=<")).then(2)
        .when(body.starts_with("client=")).then(3)
        .when(body.starts_with("message-id=") | body.starts_with("resent-message-id=")).then(4)
        .when(pl.col("body") == "removed").then(5)
        .otherwise(0)
    )  # fmt: skip
    kinds = frame.select(kind.cast(pl.UInt8)).to_series()
    parts = [frame.filter(kinds == number) for number in range(6)]
    readers = (_rest, _deliveries, _queueings, _clients, _message_ids, _removals)
    return [
        rows for read, part in zip(readers, parts, strict=True) if part.height for rows in _listed(read(part.lazy()))
    ]


def _listed(rows: pl.LazyFrame | list[pl.LazyFrame]) -> list[pl.LazyFrame]:
    return rows if isinstance(rows, list) else [rows]


def _mail(rows: pl.LazyFrame, good: pl.Expr, damage: str, *names: str) -> pl.LazyFrame:
    """Keep `names` of rows of mail_events; rows that are not good are quarantined."""
    return rows.with_columns(
        disposition=pl.when(good).then(pl.lit("mail_events")).otherwise(pl.lit(QUARANTINED)),
        reason=pl.when(good).then(None).otherwise(pl.lit(f"postfix: {damage}")),
        direction=pl.lit("unknown"),
    ).select(*_ROW, "disposition", "reason", "direction", *names)


def _address(name: str) -> pl.Expr:
    """Read `[192.0.2.1]` as the address alone, and keep `[192.0.2.1]:25` for its port."""
    text = pl.col(name)
    bare = pl.when(text.str.ends_with("]")).then(text.str.strip_chars("[]")).otherwise(text)
    return pl.when(~text.str.contains("/", literal=True)).then(bare)


def _domain(name: str) -> pl.Expr:
    return pl.col(name).str.extract(r"@([^@\s]+)$").str.to_lowercase()


def _deliveries(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Read `to=<...>, ..., status=sent (...)`: first what precedes the free text, with care only where that fails."""
    body = pl.col("body").str.splitn(" (", 2).struct
    plain = body[0].str.extract_groups(_TO_PLAIN).struct
    careful = pl.when(plain[0].is_null()).then("body").str.extract_groups(_TO_ANY).struct
    names = ("rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "delay", "dsn", "status")
    rows = rows.with_columns(
        **{name: pl.coalesce(plain[at], careful[at]) for at, name in enumerate(names)},
        status_text=pl.when(plain[0].is_not_null()).then(body[1].str.strip_suffix(")")).otherwise(careful[7]),
    )
    local = pl.col("op_raw").is_in(_LOCAL)
    sent = pl.when(local).then(pl.lit("deliver")).when(pl.col("op_raw") != "discard").then(pl.lit("send"))
    states = {"deferred": "defer", "bounced": "bounce", "undeliverable": "bounce", "expired": "expire"}
    event = (
        pl.when(pl.col("status") == "sent").then(sent).otherwise(pl.col("status").replace_strict(states, default=None))
    )
    outcome = {"sent": "success", "deliverable": "success"} | dict.fromkeys(states, "failure")
    rows = rows.with_columns(
        event=event.fill_null("other"),
        outcome=pl.col("status").replace_strict(outcome, default="unknown"),
        dst_ip_raw=_address("dst_ip_raw"),
        delay_s=pl.col("delay").cast(pl.Float64, strict=False),
        tenant_domain=pl.when(local).then(_domain("rcpt")),
    )
    good = pl.col("status").is_not_null()
    kept = ("queue_id", "event", "outcome", *names[:4], "delay_s", "dsn", "status_text", "tenant_domain")
    return _mail(rows, good, "delivery line cut or damaged", *kept)


def _queueings(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("body").str.extract_groups(_FROM).struct
    expired = pl.col("expired").is_not_null()
    rows = rows.with_columns(
        mail_from=text[0], size_bytes=text[1], n_rcpt=text[2], state=text[3], expired=text[4], why=text[5]
    )
    rows = rows.with_columns(
        pl.col("size_bytes", "n_rcpt").cast(pl.Int64, strict=False),
        event=pl.when(expired).then(pl.lit("expire")).otherwise(pl.lit("queue")),
        outcome=pl.when(expired).then(pl.lit("failure")).otherwise(pl.lit("success")),
        status_text=pl.coalesce("why", "state"),
    )
    kept = ("queue_id", "event", "outcome", "mail_from", "size_bytes", "n_rcpt", "status_text")
    return _mail(rows, pl.col("mail_from").is_not_null(), "queue line cut or damaged", *kept)


def _message_ids(rows: pl.LazyFrame) -> pl.LazyFrame:
    ident = pl.col("body").str.splitn("=", 2).struct[1]
    rows = rows.with_columns(
        message_id=pl.when(ident != "").then(ident), event=pl.lit("cleanup"), outcome=pl.lit("success")
    )
    return _mail(rows, pl.lit(value=True), "", "queue_id", "event", "outcome", "message_id")


def _removals(rows: pl.LazyFrame) -> pl.LazyFrame:
    rows = rows.with_columns(event=pl.lit("remove"), outcome=pl.lit("success"))
    return _mail(rows, pl.lit(value=True), "", "queue_id", "event", "outcome")


def _clients(rows: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Read `client=`: the reception of a message, or with a SASL user an authentication for it."""
    text = pl.col("body").str.extract_groups(_CLIENT).struct
    rows = rows.with_columns(src_host=text[0], src_ip_raw=text[1], more=text[2], outcome=pl.lit("success"))
    rows = rows.with_columns(src_ip_raw=_address("src_ip_raw"), event=pl.lit("receive"))
    sasl = pl.col("more").str.contains(", sasl_", literal=True).fill_null(value=False)
    read = pl.col("src_ip_raw").is_not_null()
    received = _mail(
        rows.filter(~sasl), read, "client line cut or damaged", "queue_id", "event", "outcome", "src_host", "src_ip_raw"
    )
    user = pl.col("more").str.extract_groups(_SASL).struct
    signed = rows.filter(sasl).with_columns(auth_method=user[0], user=user[1], reason=pl.lit(None, pl.String))
    good = pl.col("user").is_not_null() & (pl.col("user") != "")
    return [received, _access(signed.rename({"queue_id": "session_id"}), good, "client line cut or damaged")]


def _access(rows: pl.LazyFrame, good: pl.Expr, damage: str) -> pl.LazyFrame:
    """Turn rows with src_ip_raw, auth_method, user, outcome, reason, session_id, repeated into access_events."""
    named = pl.when(pl.col("user").str.strip_chars() != "").then(pl.col("user").str.strip_chars().str.to_lowercase())
    rows = rows.with_columns(principal_id=named, auth_method=pl.col("auth_method").str.to_uppercase()).with_columns(
        disposition=pl.when(good).then(pl.lit("access_events")).otherwise(pl.lit(QUARANTINED)),
        reason=pl.when(good).then("reason").otherwise(pl.lit(f"postfix: {damage}")),
        protocol=pl.lit("smtp"),
        action=pl.lit("auth"),
        principal_type=pl.when(pl.col("principal_id").is_not_null()).then(pl.lit("user")),
        credential_id=pl.lit("pw:") + pl.col("principal_id"),
        credential_type=pl.lit("password"),
        tenant_domain=_domain("principal_id"),
        op_count=pl.col("repeated"),
        bytes_known=pl.lit(value=False),
        agg_level=pl.lit("event"),
    )
    kept = (
        "protocol",
        "action",
        "outcome",
        "principal_id",
        "principal_type",
        "credential_id",
        "credential_type",
        "session_id",
    )
    more = ("auth_method", "src_ip_raw", "tenant_domain", "op_count", "bytes_known", "agg_level")
    return rows.select(*_ROW, "disposition", "reason", *kept, *more)


def _sessions(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("message").str.extract_groups(_SESSION).struct
    begun = pl.col("message").str.starts_with("c")
    rows = rows.with_columns(src_host=text[0], src_ip_raw=text[1], status_text=text[2], session_id="pid")
    rows = rows.with_columns(
        src_ip_raw=_address("src_ip_raw"),
        event=pl.when(begun).then(pl.lit("connect")).otherwise(pl.lit("disconnect")),
        outcome=pl.lit("success"),
    )
    return _mail(rows, pl.col("src_ip_raw").is_not_null(), "session line cut or damaged", *_PEERED)


def _rest(rows: pl.LazyFrame) -> list[pl.LazyFrame]:
    """Read what is seldom said of a message: local submission, actions of a policy, notifications, replies."""
    frame = rows.collect()
    body = frame["body"].str
    pickup, notice, said = body.starts_with("uid="), body.contains(_NOTICE), body.contains(_SAID)
    action = body.contains(_ACTION) & ~notice
    parts = [_ignored(frame.filter(~(pickup | notice | said | action)).lazy())]
    if pickup.any():
        text = pl.col("body").str.extract_groups(_PICKUP).struct
        taken = (
            frame.lazy()
            .filter(pickup)
            .with_columns(status_text=text[0], mail_from=text[1], event=pl.lit("receive"), outcome=pl.lit("success"))
        )
        good = pl.col("mail_from").is_not_null()
        parts.append(
            _mail(taken, good, "pickup line cut or damaged", "queue_id", "event", "outcome", "mail_from", "status_text")
        )
    if notice.any():
        text = pl.col("body").str.extract_groups(_NOTICE).struct
        told = (
            frame.lazy()
            .filter(notice)
            .with_columns(status_text=text[0], internal_id=text[1], event=pl.lit("other"), outcome=pl.lit("success"))
        )
        parts.append(_mail(told, pl.lit(value=True), "", "queue_id", "event", "outcome", "status_text", "internal_id"))
    if said.any():
        text = pl.col("body").str.extract_groups(_SAID).struct
        reply = frame.lazy().filter(said).with_columns(
            relay_host=text[0], dst_ip_raw=text[1], status_text=text[2], event=pl.lit("other"), outcome=pl.lit("failure")
        ).with_columns(dst_ip_raw=_address("dst_ip_raw"))  # fmt: skip
        kept = ("queue_id", "event", "outcome", "relay_host", "dst_ip_raw", "status_text")
        parts.append(_mail(reply, pl.lit(value=True), "", *kept))
    if action.any():
        parts += _actions(frame.filter(action))
    return parts


def _actions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read rejections and other actions of access lists, header checks and milters."""
    stage, content = (
        pl.col("body").str.extract_groups(_STAGE).struct,
        pl.col("body").str.extract_groups(_CONTENT).struct,
    )
    names = ("action", "stage", "src_host", "src_ip_raw", "tail")
    frame = frame.with_columns(**{name: pl.coalesce(stage[at], content[at]) for at, name in enumerate(names)})
    tail = pl.col("tail").str.extract_groups(_TRAILER).struct
    # A second trailer was written by the client: which one is true cannot be told.
    clear = pl.col("body").str.count_matches(r"; (?:from=<|to=<|proto=)") == 1
    about = pl.col("stage").str.contains(r"^(?:\w+ )?(?:header|body) ")
    told = pl.col("action").is_in(["reject", "milter-reject", "hold", "milter-hold"])
    read = pl.col("action").is_not_null()
    given = {"mail_from": 1, "rcpt": 2, "helo": 3, "sasl_username": 4}
    reply = pl.coalesce(pl.when(pl.col("tail").str.starts_with("; ")).then(tail[5]), tail[0], "tail")
    rows = frame.with_columns(
        **{name: pl.when(clear).then(tail[at]) for name, at in given.items()},
        status_text=pl.when(about).then(pl.coalesce(tail[5], "stage")).otherwise(reply),
        subject=pl.when(clear | (pl.col("tail") == "")).then(pl.col("stage").str.extract(r"^(?:\w+ )?header (?i:Subject): (.*)$")),
        src_host=pl.when(clear | ~about).then("src_host"),
        src_ip_raw=pl.when(clear | ~about).then(_address("src_ip_raw")),
        event=pl.col("action").str.strip_prefix("milter-").replace_strict(
            {"reject": "reject", "hold": "hold"}, default="other", return_dtype=pl.String
        ),
        session_id="pid",
    ).with_columns(
        outcome=pl.when(pl.col("event") == "reject").then(pl.lit("failure")).otherwise(pl.lit("unknown")),
        dsn=pl.col("status_text").str.extract(r"^(?:\d{3}[ -])?(\d\.\d{1,3}\.\d{1,3}) "),
    )  # fmt: skip
    begun = pl.col("body").str.contains(r"^(?:milter-)?(?:reject|hold): ")
    kept = ("queue_id", *_PEERED, "mail_from", "rcpt", "helo", "sasl_username", "subject", "dsn")
    lost = begun & ~read & ~told.fill_null(value=False)
    events = _mail(rows.lazy().filter(read | lost), read, "rejection cut or damaged", *kept)
    return [events, _ignored(rows.lazy().filter(~(read | lost)))]


def _of_session(frame: pl.DataFrame) -> tuple[list[pl.LazyFrame], list[pl.LazyFrame]]:
    """Read lines without a queue id; the second list is of messages that were not queued (NOQUEUE)."""
    message = frame["message"].str
    nameless = message.starts_with("NOQUEUE: ")
    bodies = frame.filter(nameless).with_columns(
        queue_id=pl.lit(None, pl.String), body=pl.col("message").str.strip_prefix("NOQUEUE: ")
    )
    sasl = message.contains(r"^warning: [^:\s]*\[[^\]]*\](?::\d+)?: SASL ")
    tls = message.contains(r"^(?:[A-Z][a-z]+ )?TLS connection (?:established|reused) ")
    trouble = message.contains(_TROUBLE)
    screen = (frame["op_raw"] == "postscreen") & message.contains(_SCREEN)
    parts = [_ignored(frame.filter(~(nameless | sasl | tls | trouble | screen)).lazy())]
    if sasl.any():
        parts.append(_sasl_failures(frame.lazy().filter(sasl)))
    if tls.any():
        parts.append(_tls(frame.lazy().filter(tls)))
    if trouble.any():
        parts.append(_troubles(frame.lazy().filter(trouble & ~screen), _TROUBLE, (1, 2, 0)))
    if screen.any():
        parts.append(_screened(frame.lazy().filter(screen & ~nameless)))
    return parts, _bodies(bodies.drop("message"))


def _sasl_failures(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("message").str.extract_groups(_SASL_FAILED).struct
    rows = rows.with_columns(src_host=text[0], src_ip_raw=text[1], auth_method=text[2], why=text[3], user=text[4])
    why = pl.col("why").str
    # The text may be a challenge in Base64 (UGFzc3dvcmQ6 is "Password:"); only known reasons are kept.
    reason = (
        pl.when(why.contains("(?i)authentication failure")).then(pl.lit("authentication failure"))
        .when(why.contains("Connection lost", literal=True)).then(pl.lit("connection lost to the authentication server"))
        .when(why.contains("(?i)invalid authentication mechanism")).then(pl.lit("invalid mechanism"))
        .otherwise(pl.lit("authentication failed"))
    )  # fmt: skip
    rows = rows.with_columns(
        src_ip_raw=_address("src_ip_raw"), reason=reason, outcome=pl.lit("failure"), session_id="pid"
    )
    return _access(rows, pl.col("auth_method").is_not_null(), "SASL failure cut or damaged")


def _tls(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("message").str.extract_groups(_TLS).struct
    rows = rows.with_columns(way=text[0], name=text[1], address=text[2], tls_version=text[3], tls_cipher=text[4])
    inward = pl.col("way") == "from"
    rows = rows.with_columns(
        src_host=pl.when(inward).then("name"),
        src_ip_raw=pl.when(inward).then(_address("address")),
        relay_host=pl.when(~inward).then("name"),
        dst_ip_raw=pl.when(~inward).then(_address("address")),
        session_id="pid",
        event=pl.lit("tls"),
        outcome=pl.lit("success"),
    )
    kept = (
        "session_id",
        "event",
        "outcome",
        "src_host",
        "src_ip_raw",
        "relay_host",
        "dst_ip_raw",
        "tls_version",
        "tls_cipher",
    )
    return _mail(rows, pl.col("way").is_not_null(), "TLS line cut or damaged", *kept)


def _troubles(rows: pl.LazyFrame, pattern: str, at: tuple[int, int, int]) -> pl.LazyFrame:
    text = pl.col("message").str.extract_groups(pattern).struct
    rows = rows.with_columns(src_host=text[at[0]], src_ip_raw=text[at[1]], status_text=text[at[2]]).with_columns(
        src_ip_raw=_address("src_ip_raw"), event=pl.lit("other"), outcome=pl.lit("failure"), session_id="pid"
    )
    return _mail(rows, pl.lit(value=True), "", *_PEERED)


def _screened(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("message").str.extract_groups(_SCREEN).struct
    said = text[0].str.strip_chars()
    event = {"CONNECT": "connect", "DISCONNECT": "disconnect"}
    passed = said.str.contains(r"^(?:CONNECT|DISCONNECT|PASS|ALLOWLISTED|WHITELISTED)")
    rows = rows.with_columns(
        src_host=pl.lit(None, pl.String),
        src_ip_raw=text[1],
        status_text=said,
        event=said.replace_strict(event, default="other", return_dtype=pl.String),
        outcome=pl.when(passed).then(pl.lit("success")).otherwise(pl.lit("failure")),
        session_id="pid",
    ).with_columns(src_ip_raw=_address("src_ip_raw"))
    return _mail(rows, pl.lit(value=True), "", *_PEERED)


def _ignored(rows: pl.LazyFrame) -> pl.LazyFrame:
    text = pl.col("message" if "message" in rows.collect_schema() else "body").str
    reason = (
        pl.when(text.starts_with("statistics: ")).then(pl.lit("postfix: statistics"))
        .when(text.contains(r"^(?:warning|error|fatal|panic): ")).then(pl.lit("postfix: warning or error of the server"))
        .when(pl.col("op_raw").is_in(["master", "postfix-script", "anvil", "scache", "postfix"])).then(pl.lit("postfix: service"))
        .when(text.starts_with("connect to ")).then(pl.lit("postfix: no connection to the next hop"))
        .when(text.starts_with("setting up TLS ")).then(pl.lit("postfix: TLS handshake begun"))
        .otherwise(pl.lit("postfix: no message or session in the line"))
    )  # fmt: skip
    return rows.with_columns(disposition=pl.lit(IGNORED), reason=reason).select(*_ROW, "disposition", "reason")


FORMAT = Format(
    name="postfix",
    title="Postfix",
    spec="https://www.postfix.org/ (the daemons' log lines)",
    tables=("mail_events", "access_events"),
    parse=parse,
    programs=r"postfix(?:-[\w.-]+)?(?:/.*)?",
    gaps=(
        "no tenant: the recipient's domain, at local delivery, and the SASL user's domain stand for it",
        "connect, TLS and disconnect are joined to a message by host and process id only",
        "queue ids are reused: join by host and queue id up to `removed`",
        "a message that passes a content filter is queued twice, with one message-id",
        "with info_log_address_format = internal (before 3.5: always) an address may imitate the fields after it",
    ),
)
