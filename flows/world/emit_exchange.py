"""Exchange 2016 on premises: the EWS log (92 columns) and the front end's HttpProxy log (74 columns).

One request is a row in each, joined by RequestId. Values carry no commas: Exchange replaces them.
"""

import random
from dataclasses import dataclass

from flows.world.model import guid, iso

_EWS = """DateTime RequestId MajorVersion MinorVersion BuildVersion RevisionVersion Ring ClientRequestId
AuthenticationType IsAuthenticated AuthenticatedUser Organization UserAgent VersionInfo ClientIpAddress ServerHostName
FrontEndServer SoapAction HttpStatus RequestSize ResponseSize ErrorCode ImpersonatedUser ProxyAsUser ActAsUser Cookie
CorrelationGuid PrimaryOrProxyServer TaskType RemoteBackendCount LocalMailboxCount RemoteMailboxCount LocalIdCount
RemoteIdCount BeginBudgetConnections EndBudgetConnections BeginBudgetHangingConnections EndBudgetHangingConnections
BeginBudgetAD EndBudgetAD BeginBudgetCAS EndBudgetCAS BeginBudgetRPC EndBudgetRPC BeginBudgetFindCount
EndBudgetFindCount BeginBudgetSubscriptions EndBudgetSubscriptions MDBResource MDBHealth MDBHistoricalLoad
ThrottlingPolicy ThrottlingDelay ThrottlingRequestType TotalDCRequestCount TotalDCRequestLatency TotalMBXRequestCount
TotalMBXRequestLatency RecipientLookupLatency ExchangePrincipalLatency HttpPipelineLatency CheckAccessCoreLatency
AuthModuleLatency CallContextInitLatency PreExecutionLatency CoreExecutionLatency TotalRequestTime
DetailedExchangePrincipalLatency ClientStatistics GenericInfo AuthenticationErrors GenericErrors Puid StartTime
ProcessId TimeInGC StartTotalMemory EndTotalMemory StartGCCounts EndGCCounts TokenBasedThrottlingPolicy BudgetKey
CoinsCharged CoinsChargedMethod SidBudgetInfo AppBudgetInfo TenantBudgetInfo ResourceAccessed
ResourceHealthBasedThreshold ThrottledBy BackoffHint WorkClassification"""
_PROXY = """DateTime RequestId MajorVersion MinorVersion BuildVersion RevisionVersion ClientRequestId Protocol
UrlHost UrlStem ProtocolAction AuthenticationType IsAuthenticated AuthenticatedUser Organization AnchorMailbox
UserAgent ClientIpAddress ServerHostName HttpStatus BackEndStatus ErrorCode Method ProxyAction TargetServer
TargetServerVersion RoutingType RoutingHint BackEndCookie ServerLocatorHost ServerLocatorLatency RequestBytes
ResponseBytes TargetOutstandingRequests AuthModulePerfContext HttpPipelineLatency CalculateTargetBackEndLatency
GlsLatencyBreakup TotalGlsLatency AccountForestLatencyBreakup TotalAccountForestLatency ResourceForestLatencyBreakup
TotalResourceForestLatency ADLatency SharedCacheLatencyBreakup TotalSharedCacheLatency ActivityContextLifeTime
ModuleToHandlerSwitchingLatency ClientReqStreamLatency BackendReqInitLatency BackendReqStreamLatency
BackendProcessingLatency BackendRespInitLatency BackendRespStreamLatency ClientRespStreamLatency
KerberosAuthHeaderLatency HandlerCompletionLatency RequestHandlerLatency HandlerToModuleSwitchingLatency ProxyTime
CoreLatency RoutingLatency HttpProxyOverhead TotalRequestTime RouteRefresherLatency UrlQuery BackEndGenericInfo
GenericInfo GenericErrors EdgeTraceId DatabaseGuid UserADObjectGuid PartitionEndpointLookupLatency
RoutingStatus"""
EWS_FIELDS, PROXY_FIELDS = _EWS.split(), _PROXY.split()
_EWS_AT = {name: index for index, name in enumerate(EWS_FIELDS)}
_PROXY_AT = {name: index for index, name in enumerate(PROXY_FIELDS)}


@dataclass(frozen=True, slots=True)
class Request:
    """One EWS request as the client sent it."""

    ts: float  # UTC seconds at which it ended
    user: str  # UPN
    account: str  # DOMAIN\\user
    auth: str  # Basic, NTLM, Negotiate, Logon
    ip: str
    agent: str
    action: str
    mailbox: str
    ids: int
    bytes_in: int
    bytes_out: int
    organisation: str
    host: str
    status: int = 200


def stamp(ts: float) -> str:
    """UTC with milliseconds and Z."""
    return iso(ts) + f".{int(ts % 1 * 1000):03d}Z"


def _row(width: int, at: dict[str, int], values: dict[str, str | int]) -> str:
    row = [""] * width
    for name, value in values.items():
        row[at[name]] = str(value)
    return ",".join(row)


def rows(rng: random.Random, request: Request) -> tuple[str, str]:
    """The EWS row and the HttpProxy row of one request."""
    request_id, took = guid(rng), rng.randrange(12, 900)
    version: dict[str, str | int] = {
        "DateTime": stamp(request.ts),
        "RequestId": request_id,
        "MajorVersion": 15,
        "MinorVersion": 1,
        "BuildVersion": 2375,
        "RevisionVersion": 7,
        "AuthenticationType": request.auth,
        "IsAuthenticated": "true",
        "Organization": request.organisation,
        "UserAgent": request.agent,
        "ClientIpAddress": request.ip,
        "HttpStatus": request.status,
        "TotalRequestTime": took,
    }
    return _ews(rng, request, version, took), _proxy(rng, request, version, took)


def _ews(rng: random.Random, request: Request, version: dict[str, str | int], took: int) -> str:
    info = (
        "SKU=Unknown;App_BeginReq_Start=0;App_BeginReq_End=0;RequestHandler=Wcf;"
        "BackEndAuthenticator=WindowsAuthenticator;TotalBERehydrationModuleLatency=0;"
        f"MailboxTypeCacheSize={rng.randrange(20, 900)};S:WLM.Bal=299{rng.randrange(999)};"
        f"S:ActivityStandardMetadata.Component=Ews;S:WLM.BT=Ews;Dbl:WLM.TS={took}"
    )
    values = version | {
        "Ring": "Unknown",
        "AuthenticatedUser": request.user,
        "VersionInfo": "Target=None;Req=Exchange2013_SP1/Exchange2013_SP1;",
        "ServerHostName": request.host.split(".", 1)[0].upper(),
        "FrontEndServer": request.host.upper(),
        "SoapAction": request.action,
        "RequestSize": request.bytes_in,
        "ImpersonatedUser": request.mailbox,
        "Cookie": f"{rng.getrandbits(128):032x}",
        "CorrelationGuid": guid(rng),
        "PrimaryOrProxyServer": "PrimaryServer",
        "TaskType": "LocalTask",
        "RemoteBackendCount": 0,
        "LocalMailboxCount": 1,
        "RemoteMailboxCount": 0,
        "LocalIdCount": request.ids,
        "RemoteIdCount": 0,
        "ThrottlingRequestType": "[C]",
        "TotalMBXRequestCount": 1,
        "GenericInfo": info,
        "StartTime": stamp(request.ts - took / 1000),
        "ProcessId": 9716,
    }
    return _row(len(EWS_FIELDS), _EWS_AT, values)


def _proxy(rng: random.Random, request: Request, version: dict[str, str | int], took: int) -> str:
    begin, end = stamp(request.ts - took / 1000), stamp(request.ts)
    probe = request.auth == "Logon"
    values = version | {
        "Protocol": "Ews",
        "UrlHost": f"mail.{request.organisation.lower()}",
        "UrlStem": "/ews/exchange.asmx",
        "AuthenticationType": "Negotiate" if probe else request.auth,
        "AuthenticatedUser": request.account,
        "AnchorMailbox": f"Smtp~{request.mailbox}",
        "ServerHostName": request.host.split(".", 1)[0].upper(),
        "BackEndStatus": request.status,
        "Method": "POST",
        "ProxyAction": "Proxy",
        "TargetServer": request.host,
        "TargetServerVersion": "15.01.2375.000",
        "RoutingType": "IntraForest",
        "RoutingHint": "SmtpWithDomain",
        "RequestBytes": request.bytes_in,
        "ResponseBytes": request.bytes_out,
        "GenericInfo": f"BeginRequest={begin};CorrelationID=<empty>;ProxyState-Run=None;EndRequest={end};",
        "DatabaseGuid": f"|RoutingDB:{guid(rng)}",
        "RoutingStatus": "CafeV1",
    }
    return _row(len(PROXY_FIELDS), _PROXY_AT, values)


def unauthenticated(rng: random.Random, ts: float, *, ip: str, agent: str, host: str, organisation: str) -> str:
    """The HttpProxy row of a request without credentials (the first leg of NTLM, or a scanner)."""
    values: dict[str, str | int] = {
        "DateTime": stamp(ts),
        "RequestId": guid(rng),
        "MajorVersion": 15,
        "MinorVersion": 1,
        "BuildVersion": 2375,
        "RevisionVersion": 7,
        "Protocol": "Ews",
        "UrlHost": f"mail.{organisation.lower()}",
        "UrlStem": "/ews/exchange.asmx",
        "IsAuthenticated": "false",
        "UserAgent": agent,
        "ClientIpAddress": ip,
        "ServerHostName": host.split(".", 1)[0].upper(),
        "HttpStatus": 401,
        "Method": "POST",
        "RequestBytes": 0,
        "TotalRequestTime": 1,
        "GenericInfo": f"BeginRequest={stamp(ts)};CorrelationID=<empty>;SharedCacheGuard=0;EndRequest={stamp(ts)};",
    }
    return _row(len(PROXY_FIELDS), _PROXY_AT, values)


def heartbeat(rng: random.Random, ts: float, host: str) -> str:
    """An EWS row of a streaming subscription: no user, no address."""
    values: dict[str, str | int] = {
        "DateTime": stamp(ts),
        "ServerHostName": host.split(".", 1)[0].upper(),
        "SoapAction": "Sbsc_ConnStatus",
        "CorrelationGuid": guid(rng),
        "GenericInfo": f"tid={rng.randrange(900)};",
    }
    return _row(len(EWS_FIELDS), _EWS_AT, values)


def wrap(lines: list[str], kind: str, begin: float) -> str:
    """A log file of this kind (``EWS Logs`` or ``HttpProxy Logs``) with its header; lines end in CR LF."""
    fields = EWS_FIELDS if kind == "EWS Logs" else PROXY_FIELDS
    head = [
        "#Software: Microsoft Exchange Server",
        "#Version: 15.01.2375.007",
        f"#Log-type: {kind}",
        f"#Date: {stamp(begin)}",
    ]
    return "\r\n".join([*head, "#Fields: " + ",".join(fields), *lines]) + "\r\n"
