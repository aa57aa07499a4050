"""Exchange cmdlet log (Logging\\CmdletInfra\\...\\Rps_Cmdlet*.LOG): each cmdlet that ran over remote PowerShell.

Specification: the files' own `#Fields:` header, 67 columns in Exchange 2013 to 2019. Times are UTC. Parameters are a
cmdlet line (``-Identity "joey" -Confirm "False"``), in NonPiiParameters with the values taken out; the first is read.

Cmdlets that change something, and those that take mail along, become change_events with the ops of the unified audit.
Those that only read are ignored unless they failed. PSSenderInfo in GenericInfo is who opened the connection: where it
is not AuthenticatedUser, somebody acts as another.
"""

import polars as pl

from transforms import exchange, ual_cmdlets, ual_values
from transforms.model import Context, Format, Head, Match

_NAMES = (
    "DateTime StartTime RequestId ClientRequestId MajorVersion MinorVersion BuildVersion RevisionVersion "
    "ServerHostName ProcessId ProcessName ThreadId CultureInfo Organization AuthenticatedUser "
    "ExecutingUserSid EffectiveOrganization "
    "UserServicePlan IsAdmin ClientApplication Cmdlet Parameters CmdletUniqueId UserBudgetOnStart ContributeToFailFast "
    "RunspaceSettingsCreationHint ADViewEntireForest ADRecipientViewRoot ADConfigurationDomainControllers "
    "ADPreferredGlobalCatalogs ADPreferredDomainControllers ADUserConfigurationDomainController "
    "ADUserPreferredGlobalCatalog ADuserPreferredDomainControllers ThrottlingInfo DelayInfo ThrottlingDelay "
    "IsOutputObjectRedacted CmdletProxyStage CmdletProxyRemoteServer CmdletProxyRemoteServerVersion CmdletProxyMethod "
    "ProxiedObjectCount CmdletProxyLatency OutputObjectCount ParameterBinding BeginProcessing ProcessRecord "
    "EndProcessing StopProcessing BizLogic PowerShellLatency UserInteractionLatency ProvisioningLayerLatency "
    "ActivityContextLifeTime TotalTime ErrorType ExecutionResult CacheHitCount CacheMissCount GenericLatency "
    "GenericInfo GenericErrors ObjectGuid ExternalDirectoryOrganizationId ExternalDirectoryObjectId "
    "NonPiiParameters"
)
COLUMNS = tuple(_NAMES.split())
_ALWAYS = pl.lit(value=True)
LOG = exchange.Log(
    kind="Rps Cmdlet Logs",
    versions=(COLUMNS,),
    core=("DateTime", "AuthenticatedUser", "Cmdlet", "ExecutionResult"),
    want=(
        "DateTime",
        "RequestId",
        "ServerHostName",
        "Organization",
        "AuthenticatedUser",
        "EffectiveOrganization",
        "ClientApplication",
        "Cmdlet",
        "Parameters",
        "CmdletUniqueId",
    ),
    rare=dict.fromkeys(
        ("ErrorType", "ExecutionResult", "GenericInfo", "GenericErrors", "ExternalDirectoryOrganizationId"), _ALWAYS
    ),
)
_SENDER = r"(?i)(?:^|;)PSSenderInfo=([^;]{1,320})"


def sniff(head: Head) -> Match | None:
    """Claim on the evidence."""
    for line in head.lines[:200]:
        if line.startswith("#Fields:") and "CmdletUniqueId" in line and "ExecutionResult" in line:
            return Match(0.95, f"columns of {LOG.kind}")
    return exchange.sniff(head, LOG)


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """Records -> one row each: change_events, or ignored (header, blank line, health probe, cmdlet that only reads)."""
    user = exchange.lower("AuthenticatedUser")
    monitor = pl.col("c.ClientApplication").str.to_lowercase() == "activemonitor"
    ignored = {
        "no cmdlet": pl.col("c.Cmdlet").is_null(),
        exchange.PROBE: exchange.health_mailbox(user) & monitor & pl.col("c.Cmdlet").str.contains(r"^(?:Get|Test)-"),
    }
    rest, read = exchange.read(records, ctx, LOG, ignored)
    frame = ual_cmdlets.decide(read.with_columns(**_given()).collect())
    idle = frame.filter("only_reads").select(
        *exchange.PLACE, disposition=pl.lit("ignored"), reason=pl.lit(ual_cmdlets.READS)
    )
    frame = frame.filter(~pl.col("only_reads"))
    settings = ual_values.cmdlet_settings(frame.select("record_no", line="c.Parameters"))
    told = ual_cmdlets.rows(frame.drop([name for name in frame.columns if name.startswith("c.")]), settings)
    told = told.with_columns(disposition=pl.lit("change_events"), source=pl.lit("exchange_cmdlet"))
    return pl.concat([told, idle, rest], how="diagonal_relaxed").sort("record_no").lazy()


def _given() -> dict[str, pl.Expr]:
    result = exchange.lower("ExecutionResult")
    outcome = pl.when(result == "success").then(pl.lit("success")).when(result == "error").then(pl.lit("failure"))
    errors = pl.col("c.GenericErrors").str.slice(0, 300)
    told = pl.concat_str("c.ExecutionResult", "c.ErrorType", errors, separator=": ", ignore_nulls=True)
    sender = pl.col("c.GenericInfo").str.extract(_SENDER)
    other = ~exchange.same_account(exchange.lower("AuthenticatedUser"), sender.str.to_lowercase()).fill_null(
        value=False
    )
    acting = pl.when(sender.is_not_null() & other).then(pl.format("(PSSenderInfo={})", sender))
    return {
        "cmdlet": pl.col("c.Cmdlet"),
        "actor": pl.col("c.AuthenticatedUser"),
        "object": pl.lit(None, pl.String),
        "org": pl.coalesce("c.EffectiveOrganization", "c.Organization"),
        "outcome": pl.coalesce(outcome, pl.lit("unknown")),
        "reason": pl.when(result != "success").then(told.str.slice(0, 500)),
        "ts_raw": pl.col("c.DateTime"),
        "ts_basis": pl.lit("utc"),
        "host": pl.col("c.ServerHostName"),
        "tenant_id": exchange.lower("ExternalDirectoryOrganizationId"),
        "session_id": pl.col("c.RequestId"),
        "source_id": pl.concat_str("c.CmdletUniqueId", "c.ServerHostName", "c.DateTime", separator=" "),
        "user_agent": pl.concat_str("c.ClientApplication", acting, separator=" ", ignore_nulls=True).replace("", None),
    }


FORMAT = Format(
    name="exchange_cmdlet",
    title="Exchange cmdlet log",
    spec="https://learn.microsoft.com/powershell/exchange/",
    tables=("change_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "no client address: the front end's PowerShell log (HttpProxy) has it, joined by user and time",
        "cmdlets that only read are left out unless they failed",
        "values are not escaped in a cmdlet line: what follows a double quote inside a value may be read amiss",
        "cmdlets of the local management shell without remoting are not in this log",
        "the admin audit log and the audit queue have the same changes: count one source",
    ),
)
