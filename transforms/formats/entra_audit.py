"""Entra ID directory audit: applications, credentials, consents, roles, federation, users, groups, policies.

JSON as diagnostic settings write it (category AuditLogs), as Microsoft Graph answers (directoryAudit) and as Log
Analytics gives it; CSV of Log Analytics (table AuditLogs, also of queries that keep or add columns) and of the portal.
The unified audit (m365_ual) has most of the same changes, with ids of its own. Specification:
learn.microsoft.com/azure/azure-monitor/reference/tables/auditlogs
"""

import re

from transforms import entra_records, entra_tables
from transforms.model import Format, Head, Match

_CATEGORY = re.compile(r'"[cC]ategory"\s*:\s*"AuditLogs"')
_GRAPH = re.compile(r'"(?:activityDisplayName|ActivityDisplayName)"\s*:')
_PARTS = re.compile(
    r'"(?:initiatedBy|InitiatedBy|targetResources|TargetResources|loggedByService|LoggedByService)"\s*:'
)
_HEADERS = (
    {"operationName", "targetResources"},
    {"activityDisplayName", "targetResources"},
    {"activityDisplayName", "loggedByService", "targetId"},
)


def sniff(head: Head) -> Match | None:
    """Recognise the log's name, or the activity and who or what it is about; of CSV the header."""
    what = "Entra directory audit records"
    if _PARTS.search(head.text):
        if _GRAPH.search(head.text) and (match := entra_tables.sniff_json(head, _GRAPH, what, 0.9)) is not None:
            return match
        return entra_tables.sniff_json(head, _CATEGORY, what, 0.9)
    if _CATEGORY.search(head.text) and "microsoft.aadiam" in head.text.lower():
        return entra_tables.sniff_json(head, _CATEGORY, what, 0.6)
    return None


def _sniff_csv(head: Head) -> Match | None:
    fields = set(entra_tables.fields_of(entra_tables.header(head.lines[0] if head.lines else "")))
    if any(fields >= wanted for wanted in _HEADERS):
        return Match(0.9, "CSV of Entra's directory audit", "csv", "csv")
    return None


FORMAT = Format(
    name="entra_audit",
    title="Entra ID directory audit",
    spec="https://learn.microsoft.com/azure/azure-monitor/reference/tables/auditlogs",
    tables=("change_events", "access_events"),
    parse=entra_records.parse,
    sniff=lambda head: sniff(head) or _sniff_csv(head),
    gaps=(
        "a new certificate's thumbprint is not in the record, only its key id and the name that it was given",
        "of several keys added at once the first is the credential; all of them stand in new_value",
        "a query's CSV without a column of times cannot be placed in time",
        "answers of Graph do not name the tenant",
        "the unified audit has most of the changes as well: count one source",
    ),
)
