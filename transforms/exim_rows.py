"""Rows out of Exim's log entries, one reader for each kind of entry.

Addresses, HELO names, certificate names and replies are written by others. Fields are read at the place where Exim
writes them, in its order; Exim itself lets no line end into an entry and quotes what it takes from a header. Where
an entry has not that order (a HELO with blanks, which only `helo_accept_junk_hosts` lets in), a field is taken if it
occurs once, and the client's address is left null if there are two that it could be.
"""

import polars as pl

from transforms.smtp_rows import access, cut, domain, groups, mail

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_MAILBOX = rf'(?:{_QUOTED}@[^\s>]+|[^\s"<>]+)'
_WITHIN = rf'(?:{_QUOTED}@[^>]*|[^">]*)'  # an address in angle brackets
_NAMED = rf" DN={_QUOTED}"
# name (helo) [192.0.2.1]:4711
PEER = r"(?:([^\s()\[\]=]+) )?(?:\(([^()\s]*)\) )?\[([^\]\s]+?)(?:\](:\d{1,5})?|$)"
_PEERED = ("src_host", "helo", "at", "port")
_AROUND = r"(?: I=\[[^\]\s]*\](?::\d+)?)?(?: (?:Ci|PRX)=\S+| TFO\*?)*(?: U=(\S+))?"
_TLS = (
    rf'(?: X=([^\s:]+)(?::([^\s:]+))?(?::\S+)?)?(?: CV=(\S+))?(?: DN="((?:[^"\\]|\\.)*)")?(?: SNI=(?:{_QUOTED}|\S+))?'
)
_LOGIN = r"(?: A=([^\s:]+)(?::(\S+))?)?"
# a@b.example R=1jmFYj-00039V-QX H=h.example (helo) [192.0.2.1] P=esmtpsa X=TLS1.3:... CV=no A=plain:rex S=4315 id=...
_ARRIVAL = (
    rf"^(<>|{_MAILBOX})(?: R=(\S+))?(?: H={PEER})?{_AROUND}(?: P=(\S+))?(?: L[-*]?)?{_TLS}{_LOGIN}"
    r"(?: PRDR| K| PRX=\S+| L[-*]?)*(?: S=(\d{1,15}))?( .*)?$"
)
_ARRIVED = (
    "sender", "internal_id", *_PEERED, "ident", "proto", "version", "tls_cipher", "cv", "dn", "auth", "user", "size",
    "more",
)  # fmt: skip
#  M8S=0 RT=0.1s id=x@y.example T="subject" from <a@b.example> for c@d.example e@f.example
_HEADERS = (
    rf"^((?: [A-Z][A-Z0-9]*=\S+)*?)(?: id=({_QUOTED}@\S+|\S+))?(?: T=\"(.*)\")?(?: from <{_WITHIN}>)?"
    rf"(?: for ({_MAILBOX}(?: {_MAILBOX})*))?$"
)
_TARGET = rf"({_QUOTED}\S*?|[|/:].*?|\S+?)(?: \((.*?)\))?(?: <({_WITHIN})>)?(?: F=<({_WITHIN})>)?(?: P=<{_WITHIN}>)?"
_DELIVERY = rf"^{_TARGET}(?: SRS=\S*)? R=(\S+)(?: T=(\S+))?(?: S=(\d{{1,15}}))?(?: H={PEER})?( .*)?$"
_DELIVERED = ("target", "parents", "orig", "mail_from", "router", "transport", "size", *_PEERED, "more")
# a@b.example R=dnslookup T=remote_smtp defer (-44) H=mx.example [192.0.2.1]: SMTP error from ...
_FAILURE = rf"^{_TARGET}(:? .*|:?)$"
_FAILED = ("target", "parents", "orig", "mail_from", "rest")
_ATTEMPT = r"^(?: R=([^\s:]+))?(?: T=([^\s:]+))?((?: [a-z ]*defer \(-?\d+\))?)((?: .*)?)$"
_SPAN = r"^(?:(\d{1,4})w)?(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s)?$"
_DSN = r"(?:^|: |\")[2-5]\d\d[ -]([245]\.\d{1,3}\.\d{1,3})\b"
_REFUSAL = (
    rf"^H={PEER}{_AROUND}{_TLS}(?: F=<({_WITHIN})>)?{_LOGIN} +"
    r"(temporarily rejected|rejected|discarded|sender verify fail|sender verify defer|Warning:) ?(.*)$"
)
# rejected from <a@b.example> H=(helo) [192.0.2.1]: message too big: read=56725188 max=52428800
_TOO_BIG = rf"^rejected from <({_WITHIN})>(?: H={PEER})?{_AROUND}: (.*)$"
_REFUSED = (*_PEERED, "ident", "version", "tls_cipher", "cv", "dn", "mail_from", "auth", "user", "verb", "what")
_STAGE = (
    r"^(RCPT|MAIL|EHLO or HELO|EHLO|HELO|AUTH|VRFY|EXPN|ETRN|STARTTLS|QUIT|DATA|after DATA|connection|during MIME"
    r"|by local_scan|by non-SMTP|for)\b"
)
_ABOUT = rf"^(?:RCPT|MAIL|VRFY|EXPN|for) (?:<({_WITHIN})>|([^\s:]+))"
AUTH = r"^(\S+) authenticator failed for "
_AUTH = rf"{AUTH}(?:H=)?{PEER}{_AROUND}: (.*)$"
SESSION = (
    r"^(SMTP connection from|no MAIL in SMTP connection from|unexpected disconnection while reading SMTP command from"
    r"|SMTP command timeout on connection from|SMTP data timeout \(message abandoned\) on connection from"
    r"|TLS error on connection from|SMTP call from|rejected (?:EHLO|HELO) from|[Cc]onnection from"
    r"|SMTP protocol synchronization error|SMTP protocol error in|SMTP syntax error in)\b"
)
_EVENTS = {
    "SMTP connection from": "connect", "TLS error on connection from": "tls", "rejected EHLO from": "reject",
    "rejected HELO from": "reject", "Connection from": "reject", "connection from": "reject",
    "SMTP protocol synchronization error": "reject", "SMTP protocol error in": "reject",
    "SMTP syntax error in": "reject",
}  # fmt: skip
CERTIFICATE = rf"^(?:H=)?{PEER} SSL verify error: (.*)$"
_SAID = rf"(?:^|host |\bH=){PEER}:? ?(.*)$"


def _peer(prefix: str = "src") -> pl.Expr:
    """Address as written, with its port where there is one."""
    port = pl.col("port")
    ported = pl.when(port != "").then(pl.format("[{}]{}", "at", "port")).otherwise("at")
    return ported.alias(f"{prefix}_ip_raw")


def _tls() -> pl.Expr:
    """Name of the TLS version as other servers write it: TLS1.2 is TLSv1.2."""
    return pl.col("version").str.replace(r"^TLS(\d)", "TLSv${1}").alias("tls_version")


def _plain(name: str) -> pl.Expr:
    """Text without the backslashes before quotes and backslashes."""
    return pl.col(name).str.replace_all(r'\\(["\\])', "${1}")


def _seconds(text: pl.Expr) -> pl.Expr:
    """Read 1h2m3.5s as seconds; null where it is no such time."""
    parts = text.str.extract_groups(_SPAN).struct
    weights = (604800.0, 86400.0, 3600.0, 60.0, 1.0)
    spans = [parts[at].cast(pl.Float64, strict=False) * weight for at, weight in enumerate(weights)]
    told = pl.any_horizontal(part.is_not_null() for part in spans)
    return pl.when(told).then(pl.sum_horizontal(spans))


def _mail(rows: pl.LazyFrame, names: tuple[str, ...], good: pl.Expr | None = None, damage: str = "") -> pl.LazyFrame:
    whole = None if good is None else good.fill_null(value=False)
    return mail(rows, ("queue_id", "session_id", "event", "outcome", *names), whole, damage)


def arrivals(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `<= sender ...` and `(= sender ...` (accepted, though the client was told otherwise)."""
    read = groups(frame.lazy(), pl.col("body"), _ARRIVAL, *_ARRIVED).collect()
    fits = read["sender"].is_not_null() & (read["size"].is_not_null() | read["proto"].is_not_null())
    fits = fits & read["more"].fill_null("").str.contains(_HEADERS)  # nothing is left that a HELO could have begun
    if not fits.all():
        read = pl.concat([read.filter(fits), _odd_arrivals(frame.filter(~fits))], how="diagonal_relaxed", rechunk=True)
    rows = groups(read.lazy(), pl.col("more").fill_null(""), _HEADERS, "_m", "id", "title", "listed").collect().lazy()
    proto = pl.col("proto")
    signed = proto.is_null() | proto.str.ends_with("a") | proto.str.starts_with("asmtp")
    listed = pl.col("listed").str.extract_all(_MAILBOX)
    certificate = pl.when(pl.col("dn").is_not_null()).then(
        pl.format('CV={} DN="{}"', pl.col("cv").fill_null("no"), "dn")
    )
    user = pl.when(signed).then(pl.col("user").str.splitn(",", 2).struct[0])
    rows = rows.with_columns(
        _peer(),
        _tls(),
        event=pl.lit("receive"),
        outcome=pl.lit("success"),
        mail_from=pl.col("sender").replace("<>", ""),
        sasl_username=user,
        tenant_domain=domain("user"),
        size_bytes=pl.col("size").cast(pl.Int64, strict=False),
        message_id=pl.format("<{}>", "id"),
        subject=_plain("title"),
        rcpt=listed.list.first(),
        recipients=pl.when(listed.list.len() > 1).then(listed),
        n_rcpt=listed.list.len().cast(pl.Int64),
        status_text=pl.coalesce(certificate, pl.when(pl.col("at").is_null()).then(pl.format("U={}", "ident"))),
    )
    rows = rows.with_columns(tenant_domain=pl.when(pl.col("sasl_username").is_not_null()).then("tenant_domain"))
    kept = ("mail_from", "internal_id", "src_host", "helo", "src_ip_raw", "tls_version", "tls_cipher", "sasl_username")
    more = ("size_bytes", "message_id", "subject", "rcpt", "recipients", "n_rcpt", "status_text", "tenant_domain")
    whole = pl.col("body").str.contains(r" S=\d") | pl.col("title").is_not_null() | pl.col("listed").is_not_null()
    return [_mail(rows, (*kept, *more), pl.col("sender").is_not_null() & whole, "arrival line cut or damaged")]


def _odd_arrivals(frame: pl.DataFrame) -> pl.DataFrame:
    """Read arrivals that have not Exim's order: a field is taken where its name occurs once."""
    body = pl.col("body").str

    def once(name: str, value: str = r"(\S+)") -> pl.Expr:
        return pl.when(body.count_matches(rf" {name}=") == 1).then(body.extract(rf" {name}={value}"))

    inward = pl.when(body.count_matches(r"[^=]\[[0-9A-Fa-f:.]+\](?::\d+)? ") == 1)
    return frame.with_columns(
        sender=body.extract(rf"^(<>|{_MAILBOX})"),
        internal_id=pl.lit(None, pl.String),
        src_host=pl.lit(None, pl.String),
        helo=pl.lit(None, pl.String),
        at=inward.then(body.extract(r"[^=]\[([0-9A-Fa-f:.]+)\](?::\d+)? ")),
        port=inward.then(body.extract(r"[^=]\[[0-9A-Fa-f:.]+\](:\d+)? ")),
        ident=pl.lit(None, pl.String),
        proto=once("P"),
        version=once("X", r"([^\s:]+):"),
        tls_cipher=once("X", r"[^\s:]+:([^\s:]+)"),
        cv=pl.lit(None, pl.String),
        dn=pl.lit(None, pl.String),
        auth=pl.lit(None, pl.String),
        user=once("A", r"[^\s:]+:(\S+)"),
        size=once("S", r"(\d{1,15})"),
        more=body.extract(r" S=\d{1,15}( .*)$"),
    )


def _addressed() -> list[pl.Expr]:
    """rcpt, orig_rcpt and the local target (file, pipe, mailbox) of `target <orig>`."""
    target, orig = pl.col("target"), pl.col("orig")
    local = orig.is_not_null() & (target.str.contains(r"^[|/:]") | ~target.str.contains("@", literal=True))
    same = target.str.to_lowercase() == orig.str.to_lowercase()
    return [
        pl.when(local).then(orig).otherwise(target).alias("rcpt"),
        pl.when(~local & ~same.fill_null(value=False)).then(orig).alias("orig_rcpt"),
        pl.when(local).then(target).alias("local"),
    ]


def deliveries(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `=> address ... R=router T=transport H=host [address] X=... C="reply" QT=1s`."""
    rows = frame.lazy().with_columns(body=pl.col("body").str.replace(_NAMED, ""))
    rows = cut(rows, "body", ' C="', "front", "said")
    rows = groups(rows, pl.col("front"), _DELIVERY, *_DELIVERED)
    rows = groups(rows, pl.col("said"), r'^(.*)"((?: [A-Za-z0-9*]+(?:=\S+)?)*)$', "reply", "times").collect().lazy()
    after = pl.concat_str("more", "times", ignore_nulls=True).str
    rows = rows.with_columns(
        *_addressed(),
        _peer("dst"),
        version=after.extract(r" X=([^\s:]+):"),
        tls_cipher=after.extract(r" X=[^\s:]+:([^\s:]+)"),
        sent=pl.col("at").is_not_null() & ~pl.col("transport").str.contains("lmtp", literal=True),
        delay_s=_seconds(after.extract(r" QT=(\S+)")),
        size_bytes=pl.col("size").cast(pl.Int64, strict=False),
    )
    nothing = (pl.col("op_raw") == "*>") | (pl.col("target") == ":blackhole:")
    deliver = ~nothing & ~pl.col("sent")
    rows = rows.with_columns(
        _tls(),
        event=pl.when(nothing).then(pl.lit("other")).when("sent").then(pl.lit("send")).otherwise(pl.lit("deliver")),
        outcome=pl.when(pl.col("op_raw") == "*>").then(pl.lit("unknown")).otherwise(pl.lit("success")),
        relay_host=pl.coalesce("src_host", "helo", "transport"),
        status_text=pl.coalesce(_plain("reply"), "local"),
        dsn=pl.col("reply").str.extract(_DSN),
        tenant_domain=pl.when(deliver).then(domain("rcpt")),
    )
    good = pl.col("target").is_not_null() & (pl.col("said").is_null() | pl.col("reply").is_not_null())
    kept = ("rcpt", "orig_rcpt", "mail_from", "relay_host", "dst_ip_raw", "tls_version", "tls_cipher", "delay_s")
    more = ("size_bytes", "status_text", "dsn", "tenant_domain")
    return [_mail(rows, (*kept, *more), good, "delivery line cut or damaged")]


def failures(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `** address ...: error` (failed for good) and `== address ... defer (-44): error`."""
    rows = frame.lazy().with_columns(body=pl.col("body").str.replace(_NAMED, ""))
    rows = cut(groups(rows, pl.col("body"), _FAILURE, *_FAILED), "rest", ": ", "front", "status_text")
    rows = groups(rows, pl.col("front"), _ATTEMPT, "router", "transport", "state", "fields")
    rows = groups(rows, pl.col("fields"), rf" H={PEER}", *_PEERED).collect().lazy()
    # Before 4.83 the host stands in the text: `...: host mx.example [192.0.2.1]: 550 5.1.1 no such user`
    rows = groups(rows, pl.col("status_text"), r": host ([^\s\[\]]+) \[([^\]\s]+)\](:\d+)?: ", "host2", "at2", "port2")
    rows = rows.with_columns(
        *_addressed(),
        at=pl.coalesce("at", "at2"),
        port=pl.coalesce("port", "port2"),
        version=pl.col("fields").str.extract(r" X=([^\s:]+):"),
        tls_cipher=pl.col("fields").str.extract(r" X=[^\s:]+:([^\s:]+)"),
        delay_s=_seconds(pl.col("fields").str.extract(r" QT=(\S+)")),
    )
    expired = pl.col("status_text").str.starts_with("retry timeout exceeded")
    rows = rows.with_columns(
        _peer("dst"),
        _tls(),
        event=pl.when(pl.col("op_raw") == "==").then(pl.lit("defer")).when(expired).then(pl.lit("expire"))
        .otherwise(pl.lit("bounce")),
        outcome=pl.lit("failure"),
        relay_host=pl.coalesce("src_host", "helo", "host2", "transport"),
        dsn=pl.col("status_text").str.extract(_DSN),
    )  # fmt: skip
    good = pl.col("fields").is_not_null() & pl.col("status_text").is_not_null()
    kept = ("rcpt", "orig_rcpt", "mail_from", "relay_host", "dst_ip_raw", "tls_version", "tls_cipher", "delay_s")
    return [_mail(rows, (*kept, "status_text", "dsn"), good, "delivery failure cut or damaged")]


def completions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `Completed QT=2s`, and what an operator removed from the queue."""
    rows = frame.lazy().with_columns(
        delay_s=_seconds(pl.col("body").str.extract(r" QT=(\S+)")),
        event=pl.lit("remove"),
        outcome=pl.lit("success"),
        op_raw=pl.col("body").str.extract(r"^(\w+)"),
        status_text=pl.when(~pl.col("body").str.starts_with("Completed")).then("body"),
    )
    return [_mail(rows, ("delay_s", "status_text"))]


def refusals(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `H=... F=<a@b> rejected RCPT <c@d>: text`, verification failures and warnings of the access lists."""
    rows = groups(frame.lazy(), pl.col("body"), _REFUSAL, *_REFUSED)
    rows = groups(rows, pl.col("what"), _ABOUT, "about1", "about2").collect().lazy()
    verb, stage = pl.col("verb"), pl.col("what").str.extract(_STAGE)
    about = pl.coalesce("about1", "about2")
    cleared = pl.col("what").str.replace(rf" <{_WITHIN}>", "")
    said = pl.when(stage.is_not_null()).then(cleared.str.splitn(": ", 2).struct[1])
    verify = verb.str.starts_with("sender")
    lost = verb.is_null()
    body = pl.col("body").str
    once = pl.when(lost & (body.count_matches(r"\) \[[0-9A-Fa-f:.]+\]") == 1))
    rows = rows.with_columns(
        at=once.then(body.extract(r"\) \[([0-9A-Fa-f:.]+)\]")).otherwise("at"),
        port=once.then(body.extract(r"\) \[[0-9A-Fa-f:.]+\](:\d{1,5}) ")).otherwise("port"),
    ).with_columns(
        _peer(),
        _tls(),
        event=pl.when(lost | verb.str.ends_with("rejected")).then(pl.lit("reject")).otherwise(pl.lit("other")),
        outcome=pl.when(verb == "Warning:").then(pl.lit("unknown")).otherwise(pl.lit("failure")),
        op_raw=pl.when(lost).then(pl.lit("rejected"))
        .otherwise(pl.concat_str("verb", pl.when(~verify).then(" " + stage), ignore_nulls=True)),
        mail_from=pl.when(verify | (stage == "MAIL")).then(pl.coalesce("mail_from", about)).otherwise("mail_from"),
        rcpt=pl.when(~verify & stage.is_in(["RCPT", "VRFY", "EXPN"])).then(about),
        sasl_username="user",
        tenant_domain=domain("user"),
        status_text=pl.coalesce(said, "what", "body"),
    ).with_columns(dsn=pl.col("status_text").str.extract(_DSN))  # fmt: skip
    kept = ("src_host", "helo", "src_ip_raw", "tls_version", "tls_cipher", "mail_from", "rcpt", "sasl_username")
    return [_mail(rows, (*kept, "status_text", "dsn", "tenant_domain"))]


def oversized(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `rejected from <a@b> H=...: message too big`."""
    rows = groups(frame.lazy(), pl.col("body"), _TOO_BIG, "mail_from", *_PEERED, "ident", "said").collect().lazy()
    rows = rows.with_columns(
        _peer(),
        event=pl.lit("reject"),
        outcome=pl.lit("failure"),
        op_raw=pl.lit("rejected"),
        status_text=pl.coalesce("said", "body"),
    )
    return [_mail(rows, ("src_host", "helo", "src_ip_raw", "mail_from", "status_text"))]


def auth_failures(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `dovecot_login authenticator failed for (helo) [address]:port: 535 ... (set_id=user)` as access_events."""
    rows = groups(frame.lazy(), pl.col("body"), _AUTH, "named", *_PEERED, "ident", "said")
    name = pl.col("body").str.extract(AUTH)
    low, said = name.str.to_lowercase().str, pl.col("body").str
    single = said.count_matches(r" \[[0-9A-Fa-f:.]+\](?::\d+)?: ") == 1
    method = (
        pl.when(low.contains("cram", literal=True)).then(pl.lit("CRAM-MD5"))
        .when(low.contains("login", literal=True) & ~low.contains("plain", literal=True)).then(pl.lit("LOGIN"))
        .when(low.contains("plain", literal=True) & ~low.contains("login", literal=True)).then(pl.lit("PLAIN"))
        .otherwise(name)
    )  # fmt: skip
    reason = (
        pl.when(said.contains(": 535 Incorrect", literal=True)).then(pl.lit("incorrect authentication data"))
        .when(said.contains(r": 4\d\d ")).then(pl.lit("authentication temporarily not possible"))
        .otherwise(pl.lit("authentication failed"))
    )  # fmt: skip
    told = rows.with_columns(
        at=pl.when(pl.col("at").is_null() & single).then(said.extract(r" \[([0-9A-Fa-f:.]+)\](?::\d+)?: "))
        .otherwise("at"),
        op_raw=name,
        auth_method=method,
        user=said.extract(r"\(set_id=(.*?)\)(?:: |$)"),
        reason=reason,
        outcome=pl.lit("failure"),
    ).with_columns(_peer()).collect()  # fmt: skip
    return [access(told.lazy(), pl.lit(value=True), "").collect().hstack([told["helo"]]).rechunk().lazy()]


def sessions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read how connections begin and end, and protocol errors."""
    begin, body = pl.col("body").str.extract(SESSION), pl.col("body").str
    rows = frame.lazy().with_columns(begin.alias("begin"))
    quoted = pl.col("begin").str.contains(r"error(?: in)?$") & ~pl.col("begin").str.starts_with("TLS")
    unique = pl.when(body.count_matches(" H=") == 1).then(body.extract(r"( H=.*)$"))
    place = pl.when(quoted).then(unique).otherwise(body.replace(SESSION, ""))
    rows = groups(rows.with_columns(place.alias("place")), pl.col("place"), rf"^ (?:H=)?{PEER}(.*)$", *_PEERED, "more")
    rows = rows.collect().lazy()
    more = pl.col("more").str
    begun = pl.col("begin") == "SMTP connection from"
    over = begun & more.contains(r"^(?: [IU]=\S+)* (?:lost|closed)")
    event = pl.col("begin").replace_strict(_EVENTS, default="disconnect", return_dtype=pl.String)
    good = (begun & ~over) | more.contains(" closed by QUIT", literal=True)
    idle = pl.col("begin").str.starts_with("no MAIL")
    rows = rows.with_columns(
        _peer(),
        event=pl.when(over).then(pl.lit("disconnect")).otherwise(event),
        outcome=pl.when(good).then(pl.lit("success")).when(idle).then(pl.lit("unknown")).otherwise(pl.lit("failure")),
        op_raw=pl.col("begin"),
        status_text=pl.when(quoted | pl.col("more").is_null()).then("body")
        .when(pl.col("more") != "").then(more.strip_chars(": ")),
    )  # fmt: skip
    return [_mail(rows, ("src_host", "helo", "src_ip_raw", "status_text"))]


def certificates(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `[address] SSL verify error: depth=0 error=certificate revoked cert=/CN=x`: of a client's certificate."""
    rows = groups(frame.lazy(), pl.col("body"), CERTIFICATE, *_PEERED, "status_text").collect().lazy()
    rows = rows.with_columns(
        _peer(), event=pl.lit("tls"), outcome=pl.lit("failure"), op_raw=pl.lit("SSL verify error")
    )  # fmt: skip
    return [_mail(rows, ("src_host", "helo", "src_ip_raw", "status_text"))]


def remarks(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read what is said of a message beside its flags: hosts that did not answer, DKIM, freezing."""
    rows = groups(frame.lazy(), pl.col("body"), _SAID, *_PEERED, "more").collect().lazy()
    body = pl.col("body").str
    dkim, frozen = body.starts_with("DKIM: "), body.contains(r"^(?:\*\*\* )?[Ff]rozen\b")
    passed = dkim & body.contains("verification succeeded", literal=True)
    remote = ~dkim & ~frozen
    rows = rows.with_columns(
        pl.when(remote).then(_peer("dst")).alias("dst_ip_raw"),
        event=pl.when(dkim).then(pl.lit("verdict")).when(frozen).then(pl.lit("hold")).otherwise(pl.lit("other")),
        outcome=pl.when(passed)
        .then(pl.lit("success"))
        .when(frozen)
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("failure")),
        relay_host=pl.when(remote).then(pl.coalesce("src_host", "helo")),
        status_text=pl.when(remote & (pl.col("more") != "") & body.starts_with("H=")).then("more").otherwise("body"),
    )
    return [_mail(rows.with_columns(dsn=pl.col("status_text").str.extract(_DSN)), (
        "relay_host", "dst_ip_raw", "status_text", "dsn",
    ))]  # fmt: skip
