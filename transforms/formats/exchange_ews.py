"""Exchange EWS server log (Logging\\Ews\\Ews_*.LOG): one row per request that the back end answered.

Specification: the files' own `#Fields:` header, 72 columns in Exchange 2013, 92 from Exchange 2016 on (`Ring` in
seventh place and 19 more at the end). Times are UTC.

The same request is in the front end's HttpProxy log (source exchange_httpproxy) with the same RequestId, which is the
session_id of both rows. Both become events; whatever counts requests takes one source: this one for operation and
mailbox, HttpProxy for bytes to the client.
"""

import polars as pl

from transforms import exchange
from transforms.model import Context, Format, Head, Match

_HEAD = (
    "DateTime RequestId MajorVersion MinorVersion BuildVersion RevisionVersion ClientRequestId AuthenticationType "
    "IsAuthenticated AuthenticatedUser Organization UserAgent VersionInfo ClientIpAddress ServerHostName "
    "FrontEndServer SoapAction HttpStatus RequestSize ResponseSize ErrorCode ImpersonatedUser ProxyAsUser "
    "ActAsUser Cookie CorrelationGuid PrimaryOrProxyServer TaskType RemoteBackendCount LocalMailboxCount "
    "RemoteMailboxCount LocalIdCount RemoteIdCount BeginBudgetConnections EndBudgetConnections "
    "BeginBudgetHangingConnections EndBudgetHangingConnections BeginBudgetAD EndBudgetAD BeginBudgetCAS "
    "EndBudgetCAS BeginBudgetRPC EndBudgetRPC BeginBudgetFindCount EndBudgetFindCount BeginBudgetSubscriptions "
    "EndBudgetSubscriptions MDBResource MDBHealth MDBHistoricalLoad ThrottlingPolicy ThrottlingDelay "
    "ThrottlingRequestType TotalDCRequestCount TotalDCRequestLatency TotalMBXRequestCount TotalMBXRequestLatency "
    "RecipientLookupLatency ExchangePrincipalLatency HttpPipelineLatency CheckAccessCoreLatency AuthModuleLatency "
    "CallContextInitLatency PreExecutionLatency CoreExecutionLatency TotalRequestTime "
    "DetailedExchangePrincipalLatency ClientStatistics GenericInfo AuthenticationErrors GenericErrors Puid"
)
_TAIL = (
    "StartTime ProcessId TimeInGC StartTotalMemory EndTotalMemory StartGCCounts EndGCCounts "
    "TokenBasedThrottlingPolicy BudgetKey CoinsCharged CoinsChargedMethod SidBudgetInfo AppBudgetInfo "
    "TenantBudgetInfo ResourceAccessed ResourceHealthBasedThreshold ThrottledBy BackoffHint WorkClassification"
)
EXCHANGE_2013 = tuple(_HEAD.split())
EXCHANGE_2016 = (*EXCHANGE_2013[:6], "Ring", *EXCHANGE_2013[6:], *_TAIL.split())

LOG = exchange.Log(
    kind="EWS Logs",
    versions=(EXCHANGE_2013, EXCHANGE_2016),
    core=("DateTime", "AuthenticatedUser", "ClientIpAddress", "SoapAction", "HttpStatus", "ImpersonatedUser"),
    want=(
        "DateTime",
        "RequestId",
        "AuthenticationType",
        "AuthenticatedUser",
        "Organization",
        "UserAgent",
        "VersionInfo",
        "ClientIpAddress",
        "ServerHostName",
        "SoapAction",
        "HttpStatus",
        "RequestSize",
        "ResponseSize",
        "ErrorCode",
        "ImpersonatedUser",
        "ProxyAsUser",
        "ActAsUser",
        "LocalIdCount",
        "RemoteIdCount",
    ),
    rare={"GenericInfo": exchange.has_token()},
)


def sniff(head: Head) -> Match | None:
    """Claim on the evidence."""
    return exchange.sniff(head, LOG)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: access_events, or ignored (header, blank line, health probe, subscription heartbeat).

    ImpersonatedUser is the mailbox acted on, filled also where nobody is impersonated; only a name that differs from
    AuthenticatedUser is an effective user.
    """
    user = exchange.lower("AuthenticatedUser")
    acted_on = pl.coalesce(exchange.lower("ImpersonatedUser"), exchange.lower("ActAsUser"))
    ignored = {
        exchange.HEARTBEAT: pl.col("c.SoapAction").str.starts_with("Sbsc_") & user.is_null(),
        exchange.PROBE: exchange.is_probe(user, acted_on, pl.col("c.UserAgent"), pl.col("c.ClientIpAddress")),
    }
    rest, rows = exchange.read(records, ctx, LOG, ignored)
    named = rows.with_columns(
        user=user, app=exchange.app_id(user), acted_on=acted_on, proxied=exchange.lower("ProxyAsUser")
    )
    return exchange.events(rest, named, **_access(), **_relation())


def _access() -> dict[str, pl.Expr]:
    user, acted_on = pl.col("user"), pl.col("acted_on")
    outcome, status = exchange.status(exchange.number("HttpStatus"), pl.col("c.ErrorCode"))
    items = exchange.number("LocalIdCount").fill_null(0) + exchange.number("RemoteIdCount").fill_null(0)
    return {
        "source": pl.lit("exchange_ews"),
        "protocol": pl.lit("ews"),
        "host": pl.col("c.ServerHostName"),
        "action": exchange.action("SoapAction"),
        "op_raw": pl.col("c.SoapAction"),
        "outcome": outcome,
        "reason": status,
        **exchange.credentials(user, pl.col("app")),
        "auth_method": pl.col("c.AuthenticationType"),
        "session_id": pl.col("c.RequestId"),
        "src_ip_raw": pl.col("c.ClientIpAddress"),
        "user_agent": pl.col("c.UserAgent"),
        "ews_version": pl.col("c.VersionInfo").str.extract(r"Req=([^;/]{1,40})"),
        "item_count": pl.when(items > 0).then(items),
        "bytes_in": exchange.number("RequestSize"),
        "bytes_out": exchange.number("ResponseSize"),
        "bytes_known": exchange.number("ResponseSize").is_not_null(),
        "tenant_domain": exchange.domain(exchange.lower("Organization"), acted_on, user),
    }


def _relation() -> dict[str, pl.Expr]:
    """Whose mailbox it is, seen from the principal."""
    user, acted_on = pl.col("user"), pl.col("acted_on")
    other = pl.coalesce(acted_on, pl.col("proxied"))
    differs = other.is_not_null() & ~exchange.same_account(user, other).fill_null(value=False)
    own_box = pl.when(exchange.principal_type(user).is_in(["user", "system"])).then(user)
    mailbox = pl.coalesce(acted_on, own_box)
    return {
        "effective_user": pl.when(differs).then(other),
        "mailbox_id": mailbox,
        "logon_type": pl.when(mailbox.is_not_null()).then(
            pl.when(differs).then(pl.lit("delegate")).otherwise(pl.lit("owner"))
        ),
    }


FORMAT = Format(
    name="exchange_ews",
    title="Exchange EWS server log",
    spec="https://learn.microsoft.com/exchange/client-developer/exchange-web-services/"
    "explore-the-ews-managed-api-ews-and-web-services-in-exchange",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "ResponseSize is usually empty: bytes to the client come from HttpProxy or IIS by the request id",
        "there is no count of items; item_count is the number of ids that the request names",
        "the application of a token is read from the user or GenericInfo; no real row with one has been seen",
        "DOMAIN\\name and name@domain count as one account when the names are equal",
        "the request is also in the HttpProxy log: count one source",
    ),
)
