"""Entra ID sign-ins: of service principals, managed identities and users.

JSON as diagnostic settings write it (an envelope with time, category, tenantId, resultType, callerIpAddress around
``properties``), as Microsoft Graph answers, and as Log Analytics gives it; CSV of Log Analytics (tables SigninLogs,
AADNonInteractiveUserSignInLogs, AADServicePrincipalSignInLogs, AADManagedIdentitySignInLogs) and of the portal.
Specification: learn.microsoft.com/azure/azure-monitor/reference/tables/aadserviceprincipalsigninlogs
"""

import re

from transforms import entra_records, entra_tables
from transforms.model import Format, Head, Match

_CATEGORY = re.compile(rf'"[cC]ategory"\s*:\s*"(?:{"|".join(entra_records.SIGN_IN_LOGS)})"')
_TABLE = re.compile(r'"(?:SigninLogs|(?:AAD\w{1,40}|ADFS)SignInLogs)"')
_AUDIT = re.compile(r'"(?:[cC]ategory|Type)"\s*:\s*"AuditLogs"')
# Graph's resource; a name that only its resource has.
_GRAPH = re.compile(r'"(?:signInEventTypes|signInCount|uniqueTokenIdentifier|conditionalAccessStatus)"\s*:')
_GRAPH_TIME = re.compile(r'"(?:createdDateTime|aggregationDateTime)"\s*:')
# Fields that a header has at least, of any of the exports.
_HEADERS = (
    {"createdDateTime", "ipAddress", "resultType", "appId"},
    {"createdDateTime", "ipAddress", "status", "appId"},
    {"createdDateTime", "ipAddress", "resourceDisplayName", "appId"},
    {"time", "ipAddress", "resourceDisplayName", "resultType"},
)


def sniff(head: Head) -> Match | None:
    """Recognise the log's name or the resource's own fields; of CSV the header."""
    for mark, certain in ((_CATEGORY, 0.95), (_TABLE, 0.9)):
        # Among the records of a mixed file, the more frequent kind names it.
        less = len(mark.findall(head.text)) < len(_AUDIT.findall(head.text))
        score = 0.8 if less else certain
        if (match := entra_tables.sniff_json(head, mark, "Entra sign-in records", score)) is not None:
            return match
    if _GRAPH_TIME.search(head.text):
        return entra_tables.sniff_json(head, _GRAPH, "Entra sign-ins of Microsoft Graph", 0.85)
    fields = set(entra_tables.fields_of(entra_tables.header(head.lines[0] if head.lines else "")))
    if any(fields >= wanted for wanted in _HEADERS):
        return Match(0.9, "CSV of Entra sign-ins", "csv", "csv")
    return None


FORMAT = Format(
    name="entra_signin",
    title="Entra ID sign-ins",
    spec="https://learn.microsoft.com/azure/azure-monitor/reference/tables/aadserviceprincipalsigninlogs",
    tables=("access_events", "change_events"),
    parse=entra_records.parse,
    sniff=sniff,
    gaps=(
        "exports of 2021 and before name neither key nor thumbprint: which credential signed in cannot be told",
        "one token serves many calls: sign-ins do not count accesses",
        "a sign-in stays in the log only as long as the tenant keeps it",
        "an export of grouped sign-ins names a group's first address, time and token only",
        "times of a CSV in the form of a browser: whether day or month comes first is told by other times of the file",
        "answers of Graph and exports of the portal need not name the tenant",
    ),
)
