"""Exchange SMTP protocol logs (SmtpReceive\\RECV*.LOG, SmtpSend\\SEND*.LOG): one row per line of a conversation.

Specification: learn.microsoft.com/exchange/mail-flow/connectors/protocol-logging. Nine columns, times in UTC. In
receive logs `<` is the client and `>` this server; in send logs `>` is this server and `<` the next hop.

Events are connects and disconnects, TLS and certificates, authentications, MAIL FROM and RCPT TO, refusals, and the
message that was taken; the rest of the conversation is left out. Each event carries what its session knows by then
(transforms/smtp_sessions.py). None of them is event receive, send or deliver: these are message tracking's, which has
the session_id of a message received.
"""

import re

import polars as pl

from transforms import csvrows, exchange
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match
from transforms.smtp_sessions import AUTH_VERBS, LONGEST_NAME, follow

NAME = "exchange_smtp"
RECEIVE, SEND = "SMTP Receive Protocol Log", "SMTP Send Protocol Log"
FIELDS = (
    "date-time", "connector-id", "session-id", "sequence-number", "local-endpoint", "remote-endpoint", "event", "data",
    "context",
)  # fmt: skip
LOG = exchange.Log(
    kind=RECEIVE,
    versions=(FIELDS,),
    core=("date-time", "session-id", "remote-endpoint", "event", "data", "context"),
    want=tuple(name for name in FIELDS if name != "sequence-number"),
    rare={},
    time="date-time",
    second="connector-id",
    single_quotes=False,
)
NOT_KNOWN = "event is none of + - < > *"
_CARRIED = "smtp_side"
_TYPE = r"^\ufeff?#Log-type:\s*(SMTP (?:Receive|Send) Protocol Log)\s*$"
_ROW = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]{8,16}Z")
_REPLY = re.compile(r"[2-5]\d\d[ -]")
_LONGEST_TEXT = 2000
_ACCESS, _MAIL = "access_events", "mail_events"


def sniff(head: Head) -> Match | None:
    """Claims a file by its `#` lines, else by rows of nine columns whose event is a sign."""
    sides = [line for line in head.lines[:200] if line.startswith("#Log-type:")]
    if sides:
        kind = sides[0].partition(":")[2].strip()
        if kind not in (RECEIVE, SEND):
            return None
        return Match(1.0, sides[0][:60], "lines", "receive" if kind == RECEIVE else "send")
    rows = [line.lstrip("\ufeff") for line in head.lines[:200] if line.strip() and not line.startswith("#")]
    split = [csvrows.fields(row) or [] for row in rows]
    fitting = [f for f in split if len(f) == len(FIELDS) and f[6] in tuple("+-<>*") and _ROW.fullmatch(f[0])]
    named = [f for f in split if tuple(name.removeprefix("#Fields: ") for name in f) == FIELDS]
    if rows and (len(fitting) + len(named)) * 2 > len(rows):
        theirs = sum(f[6] == "<" and bool(_REPLY.match(f[7])) for f in fitting)
        ours = sum(f[6] == ">" and bool(_REPLY.match(f[7])) for f in fitting)
        return Match(0.7, "rows of an SMTP protocol log, without a header", "lines", "send" if theirs > ours else "")
    return None


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: mail_events, access_events, ignored or quarantined."""
    block = records.collect()
    rest, lazy = exchange.read(block.lazy(), ctx, LOG, {})
    rows = _sided(lazy.collect().sort("record_no"), block, ctx)
    if not rows.height:
        return rest.lazy()
    rows = rows.rename({f"c.{name}": name for name in ("data", "context")})
    rows = rows.with_columns(
        kind=pl.col("c.event").fill_null(""), session=pl.col("c.session-id").str.to_uppercase().str.slice(0, 64)
    )
    told = _told(follow(rows, ctx.carry))
    return pl.concat([told, rest], how="diagonal").lazy()


def _sided(rows: pl.DataFrame, block: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """is_receive: whether rows are of a receive log, by the last `#Log-type:` above, else by what sniff saw."""
    before = ctx.carry.get(_CARRIED, SEND if ctx.variant == "send" else RECEIVE)
    types = block.select("record_no", side=pl.col("raw").str.extract(_TYPE)).drop_nulls("side")
    if types.height:
        ctx.carry[_CARRIED] = types["side"][-1]
    sided = rows.join_asof(types, on="record_no", strategy="backward", check_sortedness=False)
    return sided.with_columns(is_receive=pl.col("side").fill_null(before) == RECEIVE)


def _told(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `follow` to rows of the event tables and to those that are none."""
    kinds = {name: rule.fill_null(value=False) for name, rule in _rules().items()}
    what = pl.coalesce(*(pl.when(rule).then(pl.lit(name)) for name, rule in kinds.items()))
    rows = rows.with_columns(what=what).with_columns(
        disposition=pl.col("what").replace_strict(_TABLES, default=None, return_dtype=pl.String)
    )
    mail = rows.filter(pl.col("disposition") == _MAIL).select(*exchange.PLACE, "disposition", **_common(), **_mail())
    access = rows.filter(pl.col("disposition") == _ACCESS)
    access = access.select(*exchange.PLACE, "disposition", **_common(), **_access())
    rest = rows.filter(pl.col("disposition").is_null())
    odd = ~pl.col("kind").is_in(["+", "-", "<", ">", "*"])
    rest = rest.select(
        *exchange.PLACE,
        disposition=pl.when(odd).then(pl.lit(QUARANTINED)).otherwise(pl.lit(IGNORED)),
        reason=pl.when(odd).then(pl.lit(NOT_KNOWN)).otherwise(_why_not()),
    )
    return pl.concat([mail, access, rest], how="diagonal")


# what a row tells: table
_TABLES = {
    "connect": _MAIL,
    "connect failed": _MAIL,
    "disconnect": _MAIL,
    "tls": _MAIL,
    "tls failed": _MAIL,
    "certificate": _MAIL,
    "client certificate": _ACCESS,
    "validation": _ACCESS,
    "user in": _ACCESS,
    "user refused": _ACCESS,
    "let in": _ACCESS,
    "refused": _ACCESS,
    "auth reply": _MAIL,
    "mail": _MAIL,
    "rcpt": _MAIL,
    "taken": _MAIL,
    "reject": _MAIL,
}
_TOLD = "outcome told by the row of the user"


def _rules() -> dict[str, pl.Expr]:
    """What rows tell; the first that holds counts."""
    kind, text, receive = pl.col("kind"), pl.col("text"), pl.col("is_receive")
    code, final, verb = pl.col("code"), pl.col("final"), pl.col("verb")
    of_auth = final & (pl.col("asked").is_in(AUTH_VERBS) | code.is_in([235, 535])).fill_null(value=False)
    has_cert = pl.col("cert").struct.field("thumbprint").is_not_null()
    theirs = receive & (pl.col("owner") == "received")
    # Of a message in chunks each has its reply.
    taken = pl.coalesce(pl.col("asked") == "DATA", pl.lit(value=False)) | pl.col("data").str.contains(_TAKEN)
    taken = taken & ~pl.col("data").str.contains("(?i)chunk")
    return {
        "connect": kind == "+",
        "disconnect": kind == "-",
        "client certificate": (kind == "*") & has_cert & theirs,
        "certificate": (kind == "*") & has_cert,
        "tls": text.str.starts_with("TLS protocol ") & text.str.contains(" succeeded using ", literal=True),
        "tls failed": text.str.contains("TLS negotiation failed", literal=True),
        "validation": receive & text.str.contains(_VALIDATION) & ~text.str.contains("'EmptyCertificate'", literal=True),
        "user in": receive & (kind == "*") & (pl.col("context") == "authenticated"),
        "user refused": receive & text.str.starts_with("User Name:") & pl.col("failed_before") & ~pl.col("told_before"),
        "connect failed": text.str.starts_with("Failed to connect"),
        "told": of_auth & receive & pl.col("told_before"),
        "let in": of_auth & receive & (code < 400),
        "refused": of_auth & receive,
        "auth reply": of_auth,
        "mail": (verb == "MAIL") & pl.col("path").is_not_null(),
        "rcpt": (verb == "RCPT") & pl.col("path").is_not_null(),
        "reject": final & (code >= 400),
        "taken": final & (code == 250) & taken,
    }


# 250 2.6.0 <1@a.example> [InternalId=12, Hostname=h] 1234 bytes in 0.1, 9 KB/sec Queued mail for delivery
_TAKEN = r"(?i)^250 2\.[06]\.0 .*(?:InternalId|queued)"
_VALIDATION = r"^Client certificate chain validation status: "


def _why_not() -> pl.Expr:
    spoken = pl.col("kind").is_in(["<", ">"])
    return (
        pl.when(pl.col("what") == "told")
        .then(pl.lit(_TOLD))
        .when(spoken & (pl.col("verb").is_not_null() | pl.col("code").is_null()))
        .then(pl.lit("command that carries no fact by itself"))
        .when(spoken)
        .then(pl.lit("reply that carries no fact"))
        .otherwise(pl.lit("information that carries no fact by itself"))
    )


def _common() -> dict[str, pl.Expr]:
    """Columns of both tables."""
    receive, what = pl.col("is_receive"), pl.col("what")
    good = ["connect", "disconnect", "tls", "certificate", "user in", "let in", "taken"]
    bad = ["connect failed", "tls failed", "user refused", "refused", "reject"]
    validated = pl.col("text").str.contains("'Valid'", literal=True)
    accepted: pl.Expr = (
        pl.when(what == "validation").then(validated).when(what == "auth reply").then(pl.col("code") < 400)
    )
    outcome = (
        pl.when(what.is_in(good) | accepted)
        .then(pl.lit("success"))
        .when(what.is_in(bad) | ~accepted)
        .then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )
    return {
        "source": pl.lit(NAME),
        "ts": pl.col("ts"),
        "ts_raw": pl.col("c.date-time"),
        "ts_basis": pl.lit("utc"),
        # SERVER\Default Frontend SERVER; a send connector does not name its server
        "host": pl.when(receive).then(pl.col("c.connector-id").str.extract(r"^([^\\]+)\\")),
        "session_id": pl.col("session"),
        "src_ip_raw": pl.when(receive).then(pl.coalesce("client", "c.remote-endpoint")),
        "helo": _said("helo"),
        "tls_version": pl.col("tls_version"),
        "tls_cipher": pl.col("tls_cipher"),
        "outcome": outcome,
    }


def _said(name: str) -> pl.Expr:
    return pl.when(pl.col(name) != "").then(name)


def _text(value: pl.Expr) -> pl.Expr:
    return value.str.strip_chars().str.slice(0, _LONGEST_TEXT)


def _mail() -> dict[str, pl.Expr]:
    what, data, receive = pl.col("what"), pl.col("data"), pl.col("is_receive")
    names = {"connect failed": "connect", "tls failed": "tls", "certificate": "tls"}
    same = ["connect", "disconnect", "tls", "reject"]
    verb = pl.coalesce("verb", "asked")
    of_message = what.is_in(["mail", "rcpt", "reject", "taken"])
    own_id = pl.when(what == "taken").then(data.str.extract(r"^250 2\.6\.0 (<[^>]*>)"))
    number = pl.when((what == "taken") & receive).then(data.str.extract(r"InternalId=(\d+)"))
    path = pl.col("path")
    return {
        "event": what.replace(names).replace_strict(
            same, same, default="other", return_dtype=pl.String
        ),
        "op_raw": pl.when(verb.is_in(["MAIL"])).then(pl.lit("MAIL FROM"))
        .when(verb.is_in(["RCPT"])).then(pl.lit("RCPT TO"))
        .when(what == "certificate").then(pl.lit("certificate ") + pl.col("owner"))
        .when(what.is_in(["tls", "tls failed"])).then(pl.lit("TLS"))
        .otherwise(pl.coalesce(verb, "kind")),
        "direction": pl.lit("unknown"),
        "dst_ip_raw": pl.when(~receive).then("c.remote-endpoint"),
        "relay_host": pl.when(~receive).then("c.connector-id"),
        "sasl_username": pl.when(receive).then(_said("user")),
        "mail_from": pl.when(of_message).then(pl.coalesce("asked_from", "mail_from")),
        "rcpt": pl.coalesce(pl.when(what == "rcpt").then(path), pl.when(what == "reject").then("asked_rcpt")),
        "size_bytes": pl.when(what == "mail").then(data.str.extract(r"(?i) SIZE=(\d{1,15})(?: |$)").cast(pl.Int64)),
        "message_id": pl.coalesce(own_id, pl.when(of_message).then("message_id")),
        "internal_id": pl.coalesce(number, pl.when(of_message).then("internal_id")),
        "dsn": pl.when(pl.col("final")).then(data.str.extract(r"^\d{3} (\d\.\d{1,3}\.\d{1,3})(?: |$)")),
        "status_text": _status(),
    }  # fmt: skip


def _status() -> pl.Expr:
    """What a reply or an information says; of a certificate its fields."""
    what, cert = pl.col("what"), pl.col("cert").struct
    fields = [("thumbprint", cert.field("thumbprint")), ("subject", pl.col("cert_subject"))]
    fields += [(name, cert.field(name)) for name in ("issuer", "serial", "not_before", "not_after", "names")]
    told = pl.concat_str(
        pl.format("certificate {}", "owner"),
        *(pl.lit(f"{name}=") + value for name, value in fields),
        separator="; ",
        ignore_nulls=True,
    )
    reply = pl.when(what.is_in(["reject", "taken", "auth reply"])).then("data")
    said = pl.coalesce(reply, pl.when(what.is_in(["tls", "tls failed", "connect failed"])).then("text"))
    ended = pl.when(what == "disconnect").then(pl.coalesce("context", "data"))
    return _text(pl.when(what == "certificate").then(told).otherwise(pl.coalesce(said, ended)))


def _access() -> dict[str, pl.Expr]:
    what, mechanism = pl.col("what"), _said("mechanism")
    shown = what.is_in(["client certificate", "validation"])
    in_by_cert = (what == "user in") & mechanism.is_null() & pl.col("thumbprint").is_not_null()
    by_cert = shown | in_by_cert | (mechanism == "EXTERNAL").fill_null(value=False)
    by_token = mechanism.is_in(["XOAUTH2", "OAUTHBEARER"]).fill_null(value=False) & ~by_cert
    name = pl.when(what == "user in").then(_said("user")).when(~shown).then(_said("name"))
    user = name.str.to_lowercase()
    subject = pl.when(shown).then(_said("subject").str.to_lowercase().str.slice(0, LONGEST_NAME))
    reply = pl.when(what.is_in(["refused"])).then("data")
    kind = pl.when(by_cert).then(pl.lit("cert")).when(by_token).then(pl.lit("token")).otherwise(pl.lit("password"))
    method = pl.when(shown | in_by_cert).then(pl.lit("TLS client certificate")).otherwise(mechanism)
    return {
        "protocol": pl.lit("smtp"),
        # A certificate that is shown is no sign-in yet; whether it holds is told by its own row.
        "action": pl.when(what == "client certificate").then(pl.lit("connect")).otherwise(pl.lit("auth")),
        "op_raw": pl.when(shown).then(what).otherwise(
            pl.concat_str(pl.lit("AUTH"), mechanism, separator=" ", ignore_nulls=True)
        ),
        "reason": _text(pl.when(what == "validation").then(pl.col("text").str.extract(r"'([^']{0,200})'"))
        .when(what.is_in(["user refused", "refused"])).then(pl.coalesce(_said("why"), reply))),
        "principal_id": pl.coalesce(user, subject),
        "principal_type": pl.when(user.is_not_null()).then(exchange.principal_type(user)),
        "credential_id": pl.when(by_cert).then("thumbprint").when(~by_token).then(pl.lit("pw:") + user),
        "credential_type": pl.when(by_cert | mechanism.is_not_null() | user.is_not_null()).then(kind),
        "auth_method": method,
        "tenant_domain": user.str.extract(r"@([^@\s]+)$"),
        "bytes_known": pl.lit(value=False),
        "agg_level": pl.lit("event"),
    }  # fmt: skip


FORMAT = Format(
    name=NAME,
    title="Exchange SMTP protocol logs",
    spec="https://learn.microsoft.com/exchange/mail-flow/connectors/protocol-logging",
    tables=(_ACCESS, _MAIL),
    parse=parse,
    sniff=sniff,
    gaps=(
        "protocol logging is off by default on most connectors: no row is no proof of no session",
        "of a session whose beginning is in another file, replies are not matched with commands",
        "a failed authentication names its user only where the log has a row `User Name:`",
        "a valid chain is taken as the success of a client certificate; what it may do is told by no row",
        "the client behind a front end is believed where the server accepted XPROXY or XPROXYFROM",
        "a front end and the transport behind it log the same conversation twice, under two session ids",
        "no real log of a session with a client certificate or by a send connector with TLS has been seen",
    ),
)
