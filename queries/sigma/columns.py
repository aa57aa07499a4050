"""What the fields of a log are called here: for each log and event table, which column holds which field, and how.

A field that is not listed is not kept in the table, or not in a form that a rule could be tested against: a rule that
needs it is refused, never silently narrowed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "operation", "joined", "list", "word", "number", "flag", "address", "time"]


@dataclass(frozen=True, slots=True)
class Column:
    """Where a field's value stands.

    Attributes:
        sql: expression over the event table.
        kind: text; operation (a text, compared without regard to dashes and a full stop at its end); joined (several
            values in one text: only "contains" can be asked); list of texts; word of a closed list; number; flag;
            address; time.
        lower: the archive keeps it in lower case.
        words: of kind word: what the log writes (lower case) to what the column holds.
        key: of kind address: the column with its 16 bytes.
    """

    sql: str
    kind: Kind = "text"
    lower: bool = False
    words: Mapping[str, str] = field(default_factory=dict)
    key: str = ""


OUTCOMES = {
    "success": "success",
    "succeeded": "success",
    "true": "success",
    "failure": "failure",
    "failed": "failure",
    "false": "failure",
}
_LOGON_TYPES = {
    "0": "owner",
    "1": "admin",
    "2": "delegate",
    "3": "transport",
    "4": "system",
    "5": "best_access",
    "6": "delegated_admin",
    "owner": "owner",
    "admin": "admin",
    "delegate": "delegate",
    "delegated": "delegate",
    "delegatedadmin": "delegated_admin",
}
_WORKLOADS = {name.lower(): name for name in ("Exchange", "AzureActiveDirectory", "SecurityComplianceCenter")}
# The workload of a record is not kept; its operation tells it.
_COMPLIANCE = (
    "compliance|dlp|hold(?:policy|rule)$|^viewedsearch"
    "|^search(?:created|started|updated|stopped|removed|exported|exportdownloaded|previewed)$"
)
WORKLOAD = (
    "case when lower(op_raw) in ('userloggedin', 'userloginfailed', 'teamssessionstarted') then 'AzureActiveDirectory'"
    f" when regexp_matches(op_raw, '{_COMPLIANCE}', 'i') and source = 'm365_ual' and not contains(op_raw, ' ')"
    " then 'SecurityComplianceCenter'"
    " when contains(op_raw, ' ') or ends_with(op_raw, '.') then 'AzureActiveDirectory' else 'Exchange' end"
)

IP = Column("src_ip", "address", key="src_ip_key")
TIME = Column("ts", "time")
AGENT = Column("user_agent")
OPERATION = Column("op_raw", "operation")
OUTCOME = Column("outcome", "word", words=OUTCOMES)
APP = Column("app_id", lower=True)


def _under(column: Column, *names: str) -> dict[str, Column]:
    return dict.fromkeys((name.lower() for name in names), column)


_UAL = {
    **_under(OPERATION, "Operation", "Operations", "eventName"),
    **_under(IP, "ClientIP", "ClientIPAddress", "ActorIpAddress", "src_ip", "Client_IPAddress"),
    **_under(OUTCOME, "ResultStatus", "status"),
    **_under(Column(WORKLOAD, "word", words=_WORKLOADS), "Workload", "OfficeWorkload", "eventSource"),
    **_under(AGENT, "UserAgent", "ClientInfoString"),
    **_under(APP, "AppId", "ClientAppId", "ApplicationId"),
    **_under(TIME, "CreationTime", "TimeGenerated"),
}
UAL_ACCESS = {
    **_UAL,
    **_under(Column("principal_id", lower=True), "UserId", "user", "UserKey"),
    **_under(Column("mailbox_id", lower=True), "MailboxOwnerUPN"),
    **_under(Column("logon_type", "word", words=_LOGON_TYPES), "LogonType", "Logon_Type"),
    **_under(Column("external_access", "flag"), "ExternalAccess"),
    **_under(Column("access_kind", "word", words={"bind": "bind", "sync": "sync"}), "MailAccessType"),
    **_under(Column("throttled", "flag"), "IsThrottled"),
    **_under(Column("op_count", "number"), "OperationCount"),
    **_under(Column("folders", "list"), "Folders.Path", "Folder.Path"),
    **_under(Column("message_ids", "list"), "InternetMessageId"),
}
UAL_CHANGE = {
    **_UAL,
    **_under(Column("actor_id", lower=True), "UserId", "user"),
    **_under(Column("attr", "joined"), "ModifiedProperties.Name", "Parameters.Name"),
    **_under(Column("old_value", "joined"), "ModifiedProperties.OldValue"),
    **_under(Column("new_value", "joined"), "ModifiedProperties.NewValue", "Parameters.Value"),
    **_under(
        Column("concat_ws('; ', attr, new_value)", "joined"),
        "Parameters",
        "ModifiedProperties",
        "OperationProperties",
    ),
}
ENTRA_AUDIT = {
    **_under(OPERATION, "OperationName", "ActivityDisplayName", "message", "activity"),
    **_under(Column("actor_id", lower=True), "InitiatedBy", "InitiatedBy.user.userPrincipalName", "Identity"),
    **_under(Column("actor_id", lower=True), "InitiatedBy.app.servicePrincipalId", "ActorUserPrincipalName"),
    **_under(APP, "InitiatedBy.app.appId"),
    **_under(IP, "callerIpAddress", "IPAddress", "InitiatedBy.user.ipAddress"),
    **_under(OUTCOME, "Result", "Status"),
    **_under(Column("reason"), "ResultReason", "StatusReason", "ResultDescription"),
    **_under(AGENT, "UserAgent"),
    **_under(Column("attr", "joined"), "TargetResources.modifiedProperties.displayName"),
    **_under(Column("old_value", "joined"), "TargetResources.modifiedProperties.oldValue"),
    **_under(Column("new_value", "joined"), "TargetResources.modifiedProperties.newValue"),
    **_under(TIME, "TimeGenerated", "activityDateTime", "time"),
}
_CODE = "coalesce(case when outcome = 'success' then '0' end, nullif(regexp_extract(reason, '^([0-9]+)', 1), ''))"
_REASON = "nullif(regexp_replace(reason, '^[0-9]+(?:: )?', ''), '')"
_PRINCIPAL = "case when principal_type {sign} 'service_principal' then principal_id end"
ENTRA_SIGNIN = {
    **_under(Column(_CODE), "ResultType", "errorCode", "status.errorCode", "SigninErrorCode"),
    **_under(Column(_REASON), "ResultDescription", "failureReason", "status.failureReason"),
    **_under(OUTCOME, "Status", "Result"),
    **_under(Column(_PRINCIPAL.format(sign="<>"), lower=True), "UserPrincipalName", "Username", "user"),
    **_under(Column(_PRINCIPAL.format(sign="="), lower=True), "ServicePrincipalId"),
    **_under(Column("credential_id", lower=True), "ServicePrincipalCredentialKeyId"),
    **_under(APP, "AppId", "ApplicationId"),
    **_under(IP, "IPAddress", "callerIpAddress"),
    **_under(AGENT, "UserAgent"),
    **_under(Column("home_tenant_id", lower=True), "HomeTenantId"),
    **_under(Column("token_id"), "UniqueTokenIdentifier"),
    **_under(TIME, "TimeGenerated", "createdDateTime", "time"),
}
_SENDER, _RCPT = Column("mail_from"), Column("coalesce(recipients, case when rcpt is not null then [rcpt] end)", "list")
MAIL = {
    **_under(_SENDER, "sender", "mail_from", "from", "email.from.address", "email.sender.address", "sender_address"),
    **_under(_SENDER, "SenderAddress", "envelope_from", "mailfrom", "senderfromaddress", "senderenvelope"),
    **_under(_RCPT, "recipient", "rcpt", "to", "email.to.address", "RecipientAddress", "recipient_address", "rcptto"),
    **_under(_RCPT, "recipients", "envelope_to", "recipientemailaddress"),
    **_under(Column("header_from"), "header_from", "email.header_from"),
    **_under(Column("subject"), "subject", "email.subject"),
    **_under(Column("message_id"), "message_id", "email.message_id", "messageid", "internetmessageid"),
    **_under(Column("direction", "word", words={d: d for d in ("inbound", "outbound", "internal")}), "direction"),
    **_under(Column("direction", "word", words={d: d for d in ("inbound", "outbound")}), "email.direction"),
    **_under(IP, "src_ip", "source.ip", "client_ip", "clientip", "senderip", "FromIP", "sourceip"),
    **_under(Column("dst_ip", "address", key="dst_ip_key"), "dst_ip", "destination.ip", "ToIP"),
    **_under(Column("src_host"), "src_host", "source.domain", "client_hostname"),
    **_under(Column("helo"), "helo", "ehlo"),
    **_under(Column("sasl_username"), "sasl_username", "user", "user.name"),
    **_under(Column("relay_host"), "relay", "relay_host", "destination.domain"),
    **_under(Column("size_bytes", "number"), "size", "size_bytes", "email.size", "bytes", "messagesize"),
    **_under(Column("n_rcpt", "number"), "n_rcpt", "nrcpt", "recipient_count"),
    **_under(Column("dsn"), "dsn"),
    **_under(Column("status_text"), "status_text", "reason", "response"),
    **_under(OUTCOME, "outcome", "event.outcome"),
    **_under(Column("host"), "host", "hostname", "observer.hostname"),
    **_under(TIME, "timestamp", "@timestamp", "time"),
}
ACCESS = {
    **_under(Column("principal_id", lower=True), "user", "username", "user.name", "login"),
    **_under(IP, "src_ip", "source.ip", "rip", "client_ip", "clientip"),
    **_under(Column("protocol"), "protocol", "network.protocol"),
    **_under(Column("auth_method"), "method", "mech", "auth_method"),
    **_under(AGENT, "user_agent", "user_agent.original"),
    **_under(Column("reason"), "reason", "event.reason"),
    **_under(OUTCOME, "outcome", "event.outcome", "status"),
    **_under(Column("mailbox_id", lower=True), "mailbox"),
    **_under(Column("host"), "host", "hostname", "observer.hostname"),
    **_under(TIME, "timestamp", "@timestamp", "time"),
}


def folded(name: str) -> str:
    """A field's name without what varies: case, blanks, a leading ``properties.``, the ``{}`` and ``[]`` of lists."""
    plain = name.strip().lower().replace(" ", "").replace("{}", "").replace("[]", "").replace("[*]", "")
    return plain.removeprefix("properties.")


def own(table: str) -> dict[str, Column]:
    """The columns of an event table under their own names."""
    from data_contracts import contract

    lower = {"principal_id", "mailbox_id", "credential_id", "actor_id", "rcpt_domain"}
    found: dict[str, Column] = {}
    for column in contract(table).columns:
        name, sql_type = column.name, column.type
        if name in ("src_ip", "dst_ip"):
            found[name] = Column(name, "address", key=f"{name}_key")
        elif sql_type == "VARCHAR" and column.enum:
            found[name] = Column(name, "word", words={word: word for word in column.enum})
        elif sql_type == "VARCHAR":
            found[name] = Column(name, lower=name in lower)
        elif sql_type == "VARCHAR[]":
            found[name] = Column(name, "list")
        elif sql_type in ("BIGINT", "DOUBLE"):
            found[name] = Column(name, "number")
        elif sql_type == "BOOLEAN":
            found[name] = Column(name, "flag")
        elif sql_type.startswith("TIMESTAMP"):
            found[name] = Column(name, "time")
    return found
