"""IIS access log (W3C extended) in front of Exchange: EWS, OWA, MAPI, ActiveSync, Autodiscover, PowerShell, others.

Specification: https://learn.microsoft.com/windows/win32/http/w3c-logging. Times are UTC. The same request stands in the
HttpProxy log (its RequestId is `cafeReqId=` in the query, and is the session_id of both rows) and, for EWS, in the EWS
log; IIS alone has requests that were turned away before Exchange saw them. Port 443 is the front end, 444 the back end.

`X-Forwarded-For` counts only where the connection itself comes from inside (a load balancer); then its last public
address is the client. Anyone can send such a header, but not what the load balancer appends.
"""

import re

import polars as pl

from transforms import exchange, w3c
from transforms.model import IGNORED, Context, Format, Head, Match

_WANT = (
    "s-computername",
    "s-ip",
    "cs-method",
    "cs-uri-stem",
    "cs-uri-query",
    "cs-username",
    "c-ip",
    "cs(User-Agent)",
    "sc-status",
    "sc-substatus",
    "sc-bytes",
    "cs-bytes",
    "X-Forwarded-For",
)
_PATHS = {
    "ews": "ews",
    "exchange": "owa",
    "owa": "owa",
    "mapi": "mapi",
    "microsoft-server-activesync": "eas",
    "ecp": "ecp",
    "autodiscover": "autodiscover",
    "powershell": "powershell",
    "powershell-liveid": "powershell",
    "rpc": "rpc",
    "rpcwithcert": "rpc",
    "oab": "oab",
}
_FTP = r"^\[\d+\]"
_PRIVATE = r"^(?:127\.|10\.|192\.168\.|169\.254\.|172\.(?:1[6-9]|2\d|3[01])\.|::1(?:%|$)|fe80:|f[cd][0-9a-f]{2}:)"
_LONGEST = 200
_ROW = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ [A-Z_]{2,16} /"


def sniff(head: Head) -> Match | None:
    """Claims a file by its `#Software` and `#Fields` lines, or by rows as wide as IIS writes them."""
    for line in head.lines[:100]:
        if line.startswith("#Software: Microsoft Internet Information Serv"):
            return Match(1.0, "#Software: Microsoft Internet Information Services")
        if line.startswith("#Fields:") and {"cs-method", "c-ip"} <= set(w3c.header(line) or ()):
            return Match(0.9, "#Fields of a W3C access log")
    rows = [line for line in head.lines[:50] if line and not line.startswith("#")]
    fitting = [line for line in rows if re.match(_ROW, line) and len(line.split()) in w3c.KNOWN]
    if rows and len(fitting) * 2 > len(rows):
        return Match(0.6, "rows of a W3C access log, without a header")
    return None


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: access_events, or ignored (header, blank line, health probe, FTP), or quarantined."""
    rest, rows = w3c.read(records, ctx, _WANT)
    user, mailbox = exchange.lower("cs-username"), _mailbox()
    agent = pl.col("c.cs(User-Agent)").str.replace_all("+", " ", literal=True)
    rows = rows.with_columns(agent.alias("agent"), user.alias("user"), mailbox.alias("mailbox"))
    probe = exchange.is_probe(pl.col("user"), pl.col("mailbox"), pl.col("agent"), pl.col("c.c-ip"))
    why = (
        pl.when(pl.col("c.cs-method").str.contains(_FTP)).then(pl.lit("FTP, not a web request"))
        .when(probe).then(pl.lit(exchange.PROBE))
    )  # fmt: skip
    rows = rows.with_columns(why.alias("why"))
    ignored = rows.filter(pl.col("why").is_not_null())
    left = ignored.select(*w3c.PLACE, pl.lit(IGNORED).alias("disposition"), reason="why")
    sound = rows.filter(pl.col("why").is_null()).lazy()
    told = sound.select(
        *w3c.PLACE, "ts", "ts_raw", pl.lit("utc").alias("ts_basis"), pl.lit("event").alias("agg_level"),
        pl.lit("access_events").alias("disposition"), **_access(),
    )  # fmt: skip
    return pl.concat([told, rest.lazy(), left.lazy()], how="diagonal")


def _access() -> dict[str, pl.Expr]:
    stem, query, method = pl.col("c.cs-uri-stem"), pl.col("c.cs-uri-query"), pl.col("c.cs-method")
    folder = stem.str.to_lowercase().str.extract(r"^/([^/?]*)")
    protocol = folder.replace_strict(_PATHS, default="web", return_dtype=pl.String).fill_null("web")
    soap = query.str.extract(r"(?i)SoapAction=\W?(\w{1,64})").str.strip_suffix("Response")
    command = query.str.extract(r"(?i)(?:^|&)Cmd=(\w{1,32})(?:&|$)")
    operation = pl.coalesce(
        pl.when(protocol == "ews").then(soap),
        pl.when(protocol == "eas").then(command),
        pl.when(protocol == "web").then(pl.concat_str(method, stem.str.slice(0, _LONGEST), separator=" ")),
        method,
    )
    action = soap.replace_strict(
        list(exchange.ACTIONS), list(exchange.ACTIONS.values()), default="other", return_dtype=pl.String
    )
    code = exchange.number("sc-status")
    outcome, _ = exchange.status(code, pl.lit(None, pl.String))
    sub = (
        pl.when(exchange.number("sc-substatus") > 0).then(pl.lit(".") + pl.col("c.sc-substatus")).otherwise(pl.lit(""))
    )
    user, mailbox = pl.col("user"), pl.col("mailbox")
    kind = exchange.principal_type(user)
    return {
        "source": pl.lit("iis"),
        "protocol": protocol,
        "host": pl.coalesce("c.s-computername", "c.s-ip"),
        "action": pl.when((protocol == "ews") & soap.is_not_null()).then(action)
        .when(protocol == "web").then(pl.lit("other")).otherwise(pl.lit("proxy")),
        "op_raw": operation,
        "outcome": outcome,
        "reason": pl.when(code >= 300).then(pl.concat_str(pl.lit("HTTP "), code.cast(pl.String), sub)),
        "principal_id": user,
        "principal_type": kind,
        "credential_type": pl.when(user.is_null()).then(pl.lit("none")),
        "session_id": query.str.extract(r"(?i)cafeReqId=([0-9a-f-]{8,64})").str.to_lowercase(),
        "mailbox_id": mailbox,
        "logon_type": pl.when(exchange.same_account(user, mailbox) & (kind == "user")).then(pl.lit("owner")),
        "src_ip_raw": _client(),
        "user_agent": pl.col("agent"),
        "bytes_in": exchange.number("cs-bytes"),
        "bytes_out": exchange.number("sc-bytes"),
        "bytes_known": pl.col("c.sc-bytes").is_not_null(),
        "tenant_domain": exchange.domain(pl.lit(None, pl.String), mailbox, user),
    }  # fmt: skip


def _mailbox() -> pl.Expr:
    """Mailbox that the query names: ActiveSync User=, MAPI MailboxId=guid@domain, Autodiscover Email=; else none."""
    query = pl.col("c.cs-uri-query")
    named = query.str.extract(r"(?i)(?:^|[?&])(?:User|MailboxId|Email|SmtpAddress)=([^&;?]{1,320})")
    text = named.str.replace_all("%40", "@", literal=True).str.replace_all("(?i)%5c", "\\").str.to_lowercase()
    return pl.when(text.str.contains("@", literal=True)).then(text)


def _client() -> pl.Expr:
    """The connection's address; behind a load balancer (an inside address) the last public one it forwards."""
    direct = pl.col("c.c-ip")
    behind = direct.str.to_lowercase().str.contains(_PRIVATE)
    listed = pl.col("c.X-Forwarded-For").str.replace_all("+", "", literal=True).str.split(",")
    public = listed.list.eval(
        pl.element().filter((pl.element() != "") & ~pl.element().str.to_lowercase().str.contains(_PRIVATE))
    )
    return pl.coalesce(pl.when(behind).then(public.list.last()), direct)


FORMAT = Format(
    name="iis",
    title="IIS access log (W3C)",
    spec="https://learn.microsoft.com/windows/win32/http/w3c-logging",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "no way of authentication and no application id",
        "bytes only where sc-bytes and cs-bytes are switched on",
        "a request is also in the HttpProxy log (session_id) and, for EWS, in the EWS log: count one source",
        "X-Forwarded-For is believed only behind an inside address",
        "user names may hold spaces; a row with too many fields gives them to the name",
    ),
)
