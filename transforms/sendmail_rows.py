"""Rows out of Sendmail's log lines, one reader for each kind of line.

Values stand unquoted between commas, and addresses, message ids and replies are written by others: each is read from
the side on which Sendmail itself wrote what surrounds it. Where an argument imitates the fields after it, the client's
address and the argument are left null.
"""

import polars as pl

from transforms.model import IGNORED
from transforms.smtp_rows import ROW, access, cut, domain, groups, mail

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_WITHIN = rf'(?:{_QUOTED}@[^>]*|[^">]*)'
_LOCAL = ("local", "lmtp", "procmail", "cyrus", "cyrusv2", "cyrusbb", "prog", "*file*", "*include*", "dovecot")
# mail.example [192.0.2.1] (may be forged); user@mail.example [192.0.2.1]; [192.0.2.1]; root@localhost
_RELAY = r"^(?:(\S*?)\.? ?)?(?:\[([^\]\s]+)\])?(?: \(may be forged\))?$"
# <a@b.example>, size=5938, class=0, nrcpts=7, msgid=<x@y.example>, proto=ESMTP, daemon=MTA, relay=h.example [192.0.2.1]
_FROM = (
    rf"^(<{_WITHIN}>|{_QUOTED}@?[^,]*|[^,<]*?(?: ?<{_WITHIN}>)?), size=(\d{{1,15}}), class=-?\d+, "
    r"(?:pri=-?\d+, )?nrcpts=(\d{1,9})(.*)$"
)
# The message id is the client's: what follows it is looked for from the end.
_ARRIVED = r"^(.*?)(?:, (?:bodytype|proto|daemon|tls_verify|auth)=[^,=]*)*, relay=([^,=]*)$"
_LIST = rf'^((?:{_QUOTED}|[^",]|,{_QUOTED}|,[^ ",])*)(, .*)$'
_ITEM = rf'(?:{_QUOTED}|[^",])+'
_SENT = ("to", "rest")
_PEER = r"(?:(\S+) ?)?\[([^\]\s]+)\](?: \(may be forged\))?"
_DELAY = r", delay=(?:(\d{1,5})\+)?(\d{1,3}):(\d\d):(\d\d)"
_DSN = r"^(?:[2-5]\d\d[ -])?([245]\.\d{1,3}\.\d{1,3})\b"
# check_rcpt, arg1=<a@b.example>, relay=h.example [192.0.2.1], reject=550 5.7.1 <a@b.example>... Relaying denied
_RULE = (
    rf"^([\w-]+), arg1=(<{_WITHIN}>|[^,]*)(?:, arg2=([^,]*))?, relay=([^,=]*), (reject|discard|quarantine|stat|error)"
    r"(?:=(.*))?$"
)
_ATTACK = rf"^{_PEER}: (?:possible SMTP attack): command=([A-Z]+)(?:/\w+)?, count=(\d{{1,9}})"
# AUTH failure (LOGIN): authentication failure (-13) SASL(-13): ...: checkpass failed, user=bob, relay=h [192.0.2.1]
_AUTH_FAILURE = r"^AUTH failure \(([^)\s]*)\): ?(.*?)(?:, user=(.*?))?(?:, relay=([^,=]*))?$"
_AUTH = r"^AUTH=server, relay=([^,=]*), authid=(.*), mech=([\w-]+), bits=(\d+)"
_MILTER = (
    rf"^(?:Milter(?: \([^)]*\))?: |milter=([\w.-]+), )(?:(from|to)=(<{_WITHIN}>|[^,]*), )?(?:[\w=-]+, )*?"
    r"(reject|discard|quarantine)(?:=(.*))?$"
)
_NOTICE = (
    r"^([0-9A-Za-z]{8,22}): ((?:DSN|return to sender|sender notify|postmaster notify|return receipt|warning)\b.*)$"
)
# What is said of a client: event, outcome, and the shape of the line.
SESSIONS = (
    ("reject", "failure", "rejecting commands", rf"^rejecting commands from {{0,2}}{_PEER} (due to .*)$"),
    ("reject", "failure", "", rf"^{_PEER}: (?i:((?:EXPN|VRFY|ETRN) .*\[rejected\]))$"),
    ("other", "unknown", "", rf"^{_PEER}: (?i:((?:EXPN|VRFY|ETRN) .*))$"),
    ("disconnect", "unknown", "", rf"^{_PEER} (did not issue .*)$"),
    ("disconnect", "unknown", "Null connection", rf"^Null connection from {_PEER}(.*)$"),
    ("disconnect", "failure", "lost input channel", rf"^lost input channel from {_PEER} (to .*)$"),
    ("disconnect", "failure", "timeout waiting for input", rf"^timeout waiting for input from {_PEER} ?(.*)$"),
    ("disconnect", "failure", "message cut off", rf"^collect: (?:premature EOM|unexpected close).*? from {_PEER}(.*)$"),
    ("reject", "failure", "message refused", rf"^collect: relay={_PEER}, (.*)$"),
    ("connect", "success", "", rf"^connect from {_PEER}(.*)$"),
)


def _of_relay(column: str, prefix: str) -> list[pl.Expr]:
    parts = pl.col(column).str.extract_groups(_RELAY).struct
    name = parts[0].str.extract(r"([^@\s]+)$")
    host = "src_host" if prefix == "src" else "relay_host"
    return [
        pl.when((name != "") & ~name.str.starts_with("[")).then(name.str.strip_chars_end(".")).alias(host),
        parts[1].alias(f"{prefix}_ip_raw"),
    ]


def _bare(text: pl.Expr) -> pl.Expr:
    """Address without angle brackets, also out of `Name <a@b.example>`."""
    named = text.str.extract(rf"<({_WITHIN})>$")
    return pl.coalesce(named, text)


def _mail(rows: pl.LazyFrame, names: tuple[str, ...], good: pl.Expr | None = None, damage: str = "") -> pl.LazyFrame:
    whole = None if good is None else good.fill_null(value=False)
    return mail(rows, ("queue_id", "session_id", "event", "outcome", *names), whole, damage)


def _access(rows: pl.LazyFrame, good: pl.Expr, damage: str) -> pl.LazyFrame:
    told = access(rows.with_columns(session_id=pl.coalesce("queue_id", "session_id")), good, damage)
    certified = pl.col("auth_method") == "EXTERNAL"
    return told.with_columns(
        credential_id=pl.when(~certified.fill_null(value=False)).then("credential_id"),
        credential_type=pl.when(certified).then(pl.lit("cert")).otherwise("credential_type"),
    )


def arrivals(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `from=<...>, size=, class=, nrcpts=, msgid=, proto=, daemon=, relay=`: a message (or none) was received."""
    rows = groups(frame.lazy(), pl.col("body").str.slice(len("from=")), _FROM, "sender", "size", "n", "more")
    rows = groups(rows, pl.col("more"), _ARRIVED, "front", "relay").collect().lazy()
    front = pl.coalesce("front", "more")
    sender = _bare(pl.col("sender"))
    rows = rows.with_columns(
        *_of_relay("relay", "src"),
        event=pl.lit("receive"),
        mail_from=pl.when(sender == "<>").then(pl.lit("")).otherwise(sender),
        size_bytes=pl.col("size").cast(pl.Int64, strict=False),
        n_rcpt=pl.col("n").cast(pl.Int64, strict=False),
        message_id=front.str.extract(r"^, msgid=(.+)$"),
        status_text=pl.when(pl.col("relay").str.contains("@", literal=True)).then(pl.format("relay={}", "relay")),
    )
    none = pl.when(pl.col("n_rcpt") == 0).then(pl.lit("failure")).otherwise(pl.lit("success"))
    kept = ("mail_from", "size_bytes", "n_rcpt", "message_id", "src_host", "src_ip_raw", "status_text")
    return [_mail(rows.with_columns(outcome=none), kept, pl.col("size").is_not_null(), "from line cut or damaged")]


def deliveries(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `to=<a>,<b>, ctladdr=, delay=, xdelay=, mailer=, pri=, relay=, dsn=, stat=`."""
    rows = groups(frame.lazy(), pl.col("body").str.slice(len("to=")), _LIST, *_SENT)
    rows = cut(rows, "rest", ", stat=", "fields", "stat")
    rows = cut(rows, "fields", ", reply=", "fields_only", "reply").collect().lazy()
    fields = pl.col("fields_only").str
    # A reply before the status is the next hop's: if it imitates the status, the last one is Sendmail's.
    stat = pl.when(pl.col("reply").is_not_null()).then(pl.col("stat").str.extract(r"^(?:.*, stat=)?(.*)$"))
    names = pl.col("to").str.extract_all(_ITEM).list.eval(_bare(pl.element().str.strip_chars(" "))).alias("all")
    rows = rows.with_columns(
        names,
        stat=pl.coalesce(stat, "stat"),
        answer=pl.when(pl.col("reply").is_not_null()).then(pl.col("body").str.extract(r", reply=(.*), stat=")),
        relay=fields.extract(r", relay=(.*?)(?:, (?:dsn|ntries|tls_verify|quarantine)=|$)"),
        mailer=fields.extract(r", mailer=([^,]*)"),
        dsn=fields.extract(r", dsn=([245]\.\d{1,3}\.\d{1,3})"),
        delay_s=_seconds(fields.extract(r"(, delay=[^,]*)")),
        control=_bare(fields.extract(r"^, ctladdr=(.*?)(?: \(\d+/\d+\))?(?:, [a-z]|$)")),
    ).collect().lazy()  # fmt: skip
    return [_delivered(rows)]


def _delivered(rows: pl.LazyFrame) -> pl.LazyFrame:
    said, dsn, first = pl.col("stat").str, pl.col("dsn").str, pl.col("all").list.first()
    local = pl.col("mailer").is_in(_LOCAL)
    sent = pl.when(local).then(pl.lit("deliver")).otherwise(pl.lit("send"))
    event = (
        pl.when(said.contains(r"^(?i:queued)")).then(pl.lit("queue"))
        .when(said.contains(r"^(?i:deferred)")).then(pl.lit("defer"))
        .when(said.contains(r"^Sent")).then(sent)
        .when(said.contains(r"^(?i:discarded|return receipt)")).then(pl.lit("other"))
        .when(dsn.starts_with("4.")).then(pl.lit("defer"))
        .when(dsn.starts_with("2.")).then(sent)
        .otherwise(pl.lit("bounce"))
    )  # fmt: skip
    rows = rows.with_columns(event=event).with_columns(
        *_of_relay("relay", "dst"),
        outcome=pl.when(pl.col("event").is_in(["defer", "bounce"]))
        .then(pl.lit("failure"))
        .otherwise(pl.lit("success")),
        rcpt=first,
        recipients=pl.when(pl.col("all").list.len() > 1).then("all"),
        n_rcpt=pl.col("all").list.len().cast(pl.Int64),
        orig_rcpt=pl.when(first.str.contains(r'^"?[|/:]')).then("control"),
        status_text=pl.coalesce(pl.format("{}; reply={}", "stat", "answer"), "stat"),
    )
    rows = rows.with_columns(
        relay_host=pl.coalesce("relay_host", pl.when(pl.col("dst_ip_raw").is_null()).then("mailer")),
        tenant_domain=pl.when(pl.col("event") == "deliver").then(pl.coalesce(domain("rcpt"), domain("orig_rcpt"))),
    )
    kept = ("rcpt", "recipients", "n_rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "delay_s", "dsn", "status_text")
    good = pl.col("stat").is_not_null() & (pl.col("rcpt") != "")
    return _mail(rows, (*kept, "tenant_domain"), good, "to line cut or damaged")


def _seconds(text: pl.Expr) -> pl.Expr:
    """Read `delay=1+00:00:15` as seconds."""
    parts = text.str.extract_groups(_DELAY).struct
    days, hours, minutes, seconds = (parts[at].cast(pl.Float64, strict=False) for at in range(4))
    return days.fill_null(0.0) * 86400 + hours * 3600 + minutes * 60 + seconds


def rules(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `ruleset=check_rcpt, arg1=<...>, relay=..., reject=...`."""
    names = ("ruleset", "arg1", "arg2", "relay", "verb", "said")
    rows = groups(frame.lazy(), pl.col("body").str.slice(len("ruleset=")), _RULE, *names).collect().lazy()
    body = pl.col("body").str
    clear = (body.count_matches(", relay=", literal=True) == 1) & (
        body.count_matches(", (?:reject|discard|quarantine)") == 1
    )
    verb = pl.coalesce("verb", body.extract(r", (reject|discard|quarantine)(?:=|$)"))
    address, rule = _bare(pl.col("arg1")), pl.col("ruleset")
    sender = pl.when(clear & (rule == "check_mail")).then(pl.when(address == "<>").then(pl.lit("")).otherwise(address))
    rows = rows.with_columns(
        pl.when(clear).then("relay").alias("relay"),
        event=verb.replace_strict({"reject": "reject", "quarantine": "quarantine"}, default="other"),
        op_raw=pl.coalesce("ruleset", body.extract(r"^ruleset=([\w-]+)")),
        mail_from=sender,
        rcpt=pl.when(clear & rule.is_in(["check_rcpt", "check_vrfy", "check_expn"])).then(address),
        status_text=pl.when(clear).then(pl.coalesce("said", "verb")).otherwise("body"),
    )
    rows = rows.with_columns(
        *_of_relay("relay", "src"),
        outcome=pl.when(pl.col("event") == "reject").then(pl.lit("failure")).otherwise(pl.lit("unknown")),
        dsn=pl.when(clear).then(pl.col("said").str.extract(_DSN)),
    )
    kept = ("src_host", "src_ip_raw", "mail_from", "rcpt", "dsn", "status_text")
    return [_mail(rows, kept, verb.is_not_null(), "ruleset line cut or damaged")]


def recipients_refused(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `<a@b.example>... User unknown`."""
    rows = groups(frame.lazy(), pl.col("body"), rf"^<({_WITHIN})>\.\.\. (.*)$", "rcpt", "status_text")
    rows = rows.with_columns(event=pl.lit("reject"), outcome=pl.lit("failure"))
    return [_mail(rows, ("rcpt", "status_text"), pl.col("rcpt").is_not_null(), "rejection cut or damaged")]


def authentications(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `AUTH=server, ...` (success) and `AUTH failure (LOGIN): ...` as access_events."""
    rows = groups(frame.lazy(), pl.col("body"), _AUTH, "relay", "user", "auth_method", "bits")
    rows = groups(rows, pl.col("body"), _AUTH_FAILURE, "method2", "why", "user2", "relay2").collect().lazy()
    failed, body = pl.col("body").str.starts_with("AUTH failure"), pl.col("body").str
    # Of the text only known reasons are kept: it may hold what the client sent.
    reason = (
        pl.when(body.contains("checkpass failed", literal=True)).then(pl.lit("checkpass failed"))
        .when(body.contains("user not found", literal=True)).then(pl.lit("user not found"))
        .when(body.contains("no mechanism available", literal=True)).then(pl.lit("no mechanism available"))
        .when(body.contains("authentication failure", literal=True)).then(pl.lit("authentication failure"))
        .otherwise(pl.lit("authentication failed"))
    )  # fmt: skip
    rows = rows.with_columns(
        relay=pl.coalesce("relay", "relay2"),
        user=pl.coalesce("user", "user2"),
        auth_method=pl.coalesce("auth_method", "method2"),
        reason=pl.when(failed).then(reason),
        outcome=pl.when(failed).then(pl.lit("failure")).otherwise(pl.lit("success")),
    )
    rows = rows.with_columns(_of_relay("relay", "src"))
    return [_access(rows, pl.col("auth_method").is_not_null(), "AUTH line cut or damaged")]


def attacks(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `...: possible SMTP attack: command=AUTH, count=6`: attempts to log in, or too many of another command."""
    rows = groups(frame.lazy(), pl.col("body"), _ATTACK, "src_host", "src_ip_raw", "command", "count")
    rows = rows.with_columns(
        event=pl.lit("other"),
        outcome=pl.lit("failure"),
        status_text=pl.col("body").str.extract(r"(possible SMTP attack: .*)$"),
        user=pl.lit(None, pl.String),
        auth_method=pl.lit(None, pl.String),
        reason=pl.lit("possible SMTP attack"),
        repeated=pl.col("count").cast(pl.Int64, strict=False),
    ).collect().lazy()  # fmt: skip
    tried = (pl.col("command") == "AUTH").fill_null(value=False)
    good = pl.col("src_ip_raw").is_not_null()
    other = _mail(rows.filter(~tried), ("src_host", "src_ip_raw", "status_text"), good, "client line cut or damaged")
    return [_access(rows.filter(tried), good, "client line cut or damaged"), other]


def tls(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `STARTTLS=server, relay=..., version=..., verify=..., cipher=..., bits=...`, certificates and failures."""
    side = r"^STARTTLS=(server|client), "
    met = rf"{side}relay=([^,=]*), version=([\w./]+), verify=(\w+), cipher=([^,]+)(?:, bits=(.*))?$"
    rows = groups(frame.lazy(), pl.col("body"), met, "side", "relay", "tls_version", "verify", "tls_cipher", "bits")
    body = pl.col("body").str
    failed = body.contains(rf"{side}error: ")
    rows = rows.with_columns(
        side=pl.coalesce("side", body.extract(side)), relay=pl.coalesce("relay", body.extract(r", relay=([^,=]*)$"))
    ).collect().lazy()  # fmt: skip
    inward = pl.col("side") == "server"
    src, dst = _of_relay("relay", "src"), _of_relay("relay", "dst")
    rows = rows.with_columns(
        *(pl.when(inward).then(part).alias(part.meta.output_name()) for part in src),
        *(pl.when(~inward).then(part).alias(part.meta.output_name()) for part in dst),
        event=pl.lit("tls"),
        outcome=pl.when(failed).then(pl.lit("failure")).otherwise(pl.lit("success")),
        status_text=pl.when(pl.col("verify").is_not_null()).then(pl.format("verify={}", "verify"))
        .otherwise(body.replace(side, "")),
    )  # fmt: skip
    kept = ("src_host", "src_ip_raw", "relay_host", "dst_ip_raw", "tls_version", "tls_cipher", "status_text")
    good = pl.col("verify").is_not_null() | failed | body.contains(rf"{side}cert-subject=")
    return [_mail(rows, kept, good, "STARTTLS line cut or damaged")]


def sessions(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read what is said of a client's connection."""
    body, parts = pl.col("body"), []
    left = frame
    for event, outcome, phrase, shape in SESSIONS:
        mine = left["body"].str.contains(shape)
        rows = groups(left.filter(mine).lazy(), body, shape, "src_host", "src_ip_raw", "more")
        rows = rows.with_columns(
            event=pl.lit(event),
            outcome=pl.lit(outcome),
            status_text=pl.concat_str(pl.lit(phrase), pl.lit(" "), pl.col("more"))
            .str.strip_chars(" ")
            .replace("", None),
        )
        parts.append(_mail(rows, ("src_host", "src_ip_raw", "status_text")))
        left = left.filter(~mine)
    return parts


def milters(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `Milter: to=<...>, reject=550 5.7.1 ...` and `milter=name, quarantine=...`."""
    rows = groups(frame.lazy(), pl.col("body"), _MILTER, "milter", "role", "who", "verb", "said").collect().lazy()
    address, role, verb = _bare(pl.col("who")), pl.col("role"), pl.col("verb")
    rows = rows.with_columns(
        event=verb.replace_strict({"reject": "reject", "quarantine": "quarantine"}, default="other"),
        outcome=pl.when(verb == "reject").then(pl.lit("failure")).otherwise(pl.lit("unknown")),
        op_raw=pl.coalesce("milter", "op_raw"),
        mail_from=pl.when(role == "from").then(pl.when(address == "<>").then(pl.lit("")).otherwise(address)),
        rcpt=pl.when(role == "to").then(address),
        dsn=pl.col("said").str.extract(_DSN),
        status_text=pl.coalesce("said", "verb"),
    )
    return [_mail(rows, ("mail_from", "rcpt", "dsn", "status_text"))]


def notices(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `u31...: DSN: User unknown`: a notification was sent, which is the message internal_id."""
    rows = groups(frame.lazy(), pl.col("body"), _NOTICE, "internal_id", "status_text")
    rows = rows.with_columns(event=pl.lit("dsn"), outcome=pl.lit("success"))
    return [_mail(rows, ("internal_id", "status_text"))]


def endings(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `done; delay=00:00:00, ntries=2`."""
    told = _seconds(pl.format(", {}", pl.col("body").str.extract(r"(delay=[^,]*)")))
    rows = frame.lazy().with_columns(event=pl.lit("remove"), outcome=pl.lit("success"), delay_s=told)
    return [_mail(rows, ("delay_s",))]


def warnings(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Read `Authentication-Warning: host: user set sender to a@b.example using -f`."""
    named = pl.col("body").str.extract(r" set sender to (\S+) using -f$")
    rows = frame.lazy().with_columns(
        event=pl.lit("other"), outcome=pl.lit("unknown"), mail_from=named.str.strip_chars("<>"), status_text="body"
    )
    return [_mail(rows, ("mail_from", "status_text"))]


def ignored(frame: pl.DataFrame) -> list[pl.LazyFrame]:
    """Say why a line carries nothing."""
    body = pl.col("body").str
    reason = (
        pl.when(body.contains(r"^(?:Milter|milter=)")).then(pl.lit("sendmail: milter"))
        .when(body.contains(r"^(?:STARTTLS|AUTH)")).then(pl.lit("sendmail: state of TLS or AUTH"))
        .when(body.contains(r"^SYSERR|^NOQUEUE: SYSERR")).then(pl.lit("sendmail: error of the server"))
        .when(body.contains(r"^(?:---|<--|-->) ")).then(pl.lit("sendmail: SMTP dialogue"))
        .when(body.contains(r"^SMTP outgoing connect")).then(pl.lit("sendmail: outgoing connection begun"))
        .when(body.contains(r"daemon|^restarting |^stopping |^rejecting connections"))
        .then(pl.lit("sendmail: daemon"))
        .otherwise(pl.lit("sendmail: no message or session in the line"))
    )  # fmt: skip
    rows = frame.lazy().with_columns(disposition=pl.lit(IGNORED), reason=reason)
    return [rows.select(*ROW, "disposition", "reason")]
