"""Exchange HttpProxy log (Logging\\HttpProxy\\{Ews,Mapi,Owa,Eas,Ecp,...}): one row per request at the front end.

Specification: the files' own `#Fields:` header, 74 columns in all versions seen. Times are UTC; commas in user agents
are written as double spaces.

The same request is in the back end's log (EWS: source exchange_ews) with the same RequestId, which is the session_id of
both rows. Both become events; whatever counts requests takes one source: this one for the bytes and for requests that
never reached a back end, the back end's for operation and mailbox.
"""

import polars as pl

from transforms import exchange
from transforms.model import Context, Format, Head, Match

_NAMES = (
    "DateTime RequestId MajorVersion MinorVersion BuildVersion RevisionVersion ClientRequestId Protocol UrlHost "
    "UrlStem ProtocolAction AuthenticationType IsAuthenticated AuthenticatedUser Organization AnchorMailbox "
    "UserAgent ClientIpAddress ServerHostName HttpStatus BackEndStatus ErrorCode Method ProxyAction TargetServer "
    "TargetServerVersion RoutingType RoutingHint BackEndCookie ServerLocatorHost ServerLocatorLatency "
    "RequestBytes ResponseBytes TargetOutstandingRequests AuthModulePerfContext HttpPipelineLatency "
    "CalculateTargetBackEndLatency GlsLatencyBreakup TotalGlsLatency AccountForestLatencyBreakup "
    "TotalAccountForestLatency ResourceForestLatencyBreakup TotalResourceForestLatency ADLatency "
    "SharedCacheLatencyBreakup TotalSharedCacheLatency ActivityContextLifeTime ModuleToHandlerSwitchingLatency "
    "ClientReqStreamLatency BackendReqInitLatency BackendReqStreamLatency BackendProcessingLatency "
    "BackendRespInitLatency BackendRespStreamLatency ClientRespStreamLatency KerberosAuthHeaderLatency "
    "HandlerCompletionLatency RequestHandlerLatency HandlerToModuleSwitchingLatency ProxyTime CoreLatency "
    "RoutingLatency HttpProxyOverhead TotalRequestTime RouteRefresherLatency UrlQuery BackEndGenericInfo "
    "GenericInfo GenericErrors EdgeTraceId DatabaseGuid UserADObjectGuid PartitionEndpointLookupLatency "
    "RoutingStatus"
)
VERSION = tuple(_NAMES.split())

LOG = exchange.Log(
    kind="HttpProxy Logs",
    versions=(VERSION,),
    core=("DateTime", "Protocol", "AuthenticatedUser", "AnchorMailbox", "ClientIpAddress", "HttpStatus"),
    want=(
        "DateTime",
        "RequestId",
        "Protocol",
        "ProtocolAction",
        "AuthenticationType",
        "AuthenticatedUser",
        "Organization",
        "AnchorMailbox",
        "UserAgent",
        "ClientIpAddress",
        "ServerHostName",
        "HttpStatus",
        "ErrorCode",
        "Method",
        "BackEndCookie",
        "RequestBytes",
        "ResponseBytes",
    ),
    rare={"UrlQuery": exchange.lower("Protocol") == "eas", "GenericInfo": exchange.has_token()},
)

_PROTOCOLS = {
    "ews": "ews",
    "owa": "owa",
    "owacalendar": "owa",
    "mapi": "mapi",
    "eas": "eas",
    "ecp": "ecp",
    "rpchttp": "rpc",
    "autodiscover": "autodiscover",
    "powershell": "powershell",
    "powershell-liveid": "powershell",
    "oab": "oab",
}

# A client that names a server instead of a mailbox steers the proxy (CVE-2021-26855):
# AnchorMailbox ServerInfo~a]@server.domain.test:444/autodiscover/autodiscover.xml?#
# BackEndCookie Server~server.domain.test/EWS/Exchange.asmx?#~1941997017
_LONGEST_REASON = 300
_ADDRESSES = ("smtp", "smtpwithdomain", "upn", "liveidmembername", "oauthidentity")
_MAILBOXES = ("mailboxguid", "mailboxguidwithdomain")
_EAS_COMMAND = r"[?&]Cmd=(\w{1,32})(?:&|$)"


def sniff(head: Head) -> Match | None:
    """Claim on the evidence."""
    return exchange.sniff(head, LOG)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: access_events, or ignored (header, blank line, health probe).

    AnchorMailbox routes the request and the client may write it: it tells the mailbox, but no delegation. An anchor or
    cookie that names a server and a path is kept in `reason`.
    """
    user = exchange.lower("AuthenticatedUser")
    steered, mailbox = _steered(), _mailbox(user)
    probe = exchange.is_probe(user, mailbox, pl.col("c.UserAgent"), pl.col("c.ClientIpAddress")) & steered.is_null()
    rest, rows = exchange.read(records, ctx, LOG, {exchange.PROBE: probe})
    named = rows.with_columns(user=user, app=exchange.app_id(user), mailbox=mailbox, steered=steered)
    return exchange.events(rest, named, **_access())


def _access() -> dict[str, pl.Expr]:
    user, mailbox = pl.col("user"), pl.col("mailbox")
    outcome, status = exchange.status(exchange.number("HttpStatus"), pl.col("c.ErrorCode"))
    protocol = exchange.lower("Protocol").replace_strict(_PROTOCOLS, default="exchange", return_dtype=pl.String)
    operation = pl.col("c.ProtocolAction")
    command = pl.when(protocol == "eas").then(pl.col("c.UrlQuery").str.extract(_EAS_COMMAND))
    return {
        "source": pl.lit("exchange_httpproxy"),
        "protocol": protocol,
        "host": pl.col("c.ServerHostName"),
        "action": pl.when((protocol == "ews") & operation.is_not_null())
        .then(exchange.action("ProtocolAction"))
        .otherwise(pl.lit("proxy")),
        "op_raw": pl.coalesce(operation, command, pl.col("c.Method")),
        "outcome": outcome,
        "reason": pl.coalesce(pl.col("steered"), status),
        **exchange.credentials(user, pl.col("app")),
        "auth_method": pl.col("c.AuthenticationType"),
        "session_id": pl.col("c.RequestId"),
        "mailbox_id": mailbox,
        "logon_type": pl.when((mailbox == user) & (exchange.principal_type(user) == "user")).then(pl.lit("owner")),
        "src_ip_raw": pl.col("c.ClientIpAddress"),
        "user_agent": pl.col("c.UserAgent"),
        "bytes_in": exchange.number("RequestBytes"),
        "bytes_out": exchange.number("ResponseBytes"),
        "bytes_known": pl.lit(value=True),
        "tenant_domain": exchange.domain(exchange.lower("Organization"), mailbox, user),
    }


def _mailbox(user: pl.Expr) -> pl.Expr:
    """Mailbox by AnchorMailbox (kind~value); a SID is the caller's own, whose name stands for it where there is one."""
    parts = exchange.lower("AnchorMailbox").str.splitn("~", 2)
    kind, value = parts.struct[0], parts.struct[1]
    return (
        pl.when(kind.is_in(_ADDRESSES) & value.str.contains("@", literal=True))
        .then(value.str.strip_prefix("smtp:"))
        .when(kind.is_in(_MAILBOXES))
        .then(value.str.splitn("@", 2).struct[0])
        .when(kind == "sid")
        .then(pl.coalesce(user, value))
    )


def _steered() -> pl.Expr:
    """The anchor or cookie that steers the proxy to a server, null for all others."""
    anchor, cookie = pl.col("c.AnchorMailbox"), pl.col("c.BackEndCookie")
    by_anchor = exchange.lower("AnchorMailbox").str.starts_with("serverinfo~")
    by_cookie = exchange.lower("BackEndCookie").str.starts_with("server~") & cookie.str.contains("/", literal=True)
    found = (
        pl.when(by_anchor)
        .then(pl.lit("AnchorMailbox ") + anchor)
        .when(by_cookie)
        .then(pl.lit("BackEndCookie ") + cookie)
    )
    return found.str.slice(0, _LONGEST_REASON)


FORMAT = Format(
    name="exchange_httpproxy",
    title="Exchange HttpProxy log",
    spec="https://learn.microsoft.com/exchange/architecture/client-access/client-access",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "AnchorMailbox is a routing hint that the client may write: impersonation is in the EWS log, not here",
        "outside of EWS the operation is rarely logged; the action is then proxy",
        "a first request without a name and HTTP 401 is how NTLM and Negotiate begin, not a failed password",
        "an EWS request is also in the EWS log: count one source",
    ),
)
