"""Changes of the control plane in Microsoft 365 audit records: the ops, what was set, keys, targets outside."""

import json
from typing import Any

import polars as pl
import pytest

from transforms import ual_operations
from transforms.formats.m365_ual import parse
from transforms.model import RECORD_SCHEMA, Context

KEY_1 = "7dffcdc5-f2d5-43ae-86f1-682561befd4b"
KEY_2 = "d747da7e-e11b-4af2-aede-0487c44067af"
BASE = {
    "CreationTime": "2021-01-12T11:59:32",
    "Id": "1",
    "OrganizationId": "5c1f3c0e-1f2a-4a6b-9c3d-0a1b2c3d4e5f",
    "Workload": "Exchange",
    "UserId": "u@c.example",
}


def read(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    text = json.dumps(record | fields)
    lazy = pl.LazyFrame([(0, 0, len(text), text)], schema=RECORD_SCHEMA, orient="row")
    (row,) = parse(lazy, Context("e" * 64, variant="jsonl")).collect().to_dicts()
    return dict(row)


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("Add service principal credentials.", ("add_credential", "service_principal")),
        ("Create application \N{EN DASH} Certificates and secrets management ", ("update_credential", "app")),
        ("Add app role assignment to service principal.", ("add_app_role", "service_principal")),
        ("Add eligible member to role.", ("add_role", "role")),
        ("Remove member from role.", ("remove_role", "role")),
        ("Change user license.", ("licence", "user")),
        ("Set federation settings on domain.", ("federation", "domain")),
        ("Add verified domain.", ("domain", "domain")),
        ("Disable Strong Authentication.", ("mfa", "user")),
        ("Update authorization policy.", ("policy", "policy")),
        ("Add member to group.", ("group_member", "group")),
        ("Something unheard of.", ("other", "other")),
        ("New-TransportRule", ("transport_rule", "rule")),
        ("Disable-InboxRule", ("remove_inbox_rule", "rule")),
        ("New-OutboundConnector", ("connector", "connector")),
        ("Remove-JournalRule", ("remove_journal_rule", "journal_rule")),
        ("Add-RecipientPermission", ("mailbox_permission", "mailbox")),
        ("Remove-MailboxPermission", ("remove_mailbox_permission", "mailbox")),
        ("Set-AdminAuditLogConfig", ("audit_setting", "audit")),
        ("New-ManagementRoleAssignment", ("add_role", "role")),
        ("Set-OwaMailboxPolicy", ("policy", "policy")),
        ("UpdateInboxRules", ("inbox_rule", "rule")),
        ("Get-Mailbox", None),
        ("Remove owner from service principal.", ("remove_owner", "service_principal")),
        ("Add owner to application.", ("add_owner", "app")),
        ("Add app role assignment grant to user.", ("add_app_role", "user")),
        ("Remove app role assignment from service principal.", ("remove_app_role", "service_principal")),
        ("Add federated identity credential to application", ("add_credential", "app")),
        ("Add member to role in PIM completed (permanent).", ("add_role", "role")),
        ("Update role setting in PIM", ("policy", "policy")),
        ("User registered security info", ("mfa", "user")),
        ("Reset password (by admin)", ("user", "user")),
        ("Set group license", ("licence", "user")),
        ("Update device.", ("other", "other")),
        ("Search-Mailbox", ("compliance_search", "mailbox")),
        ("New-ComplianceSearch", ("compliance_search", "other")),
        ("New-MailboxExportRequest", ("mailbox_export", "mailbox")),
        ("Set-OabVirtualDirectory", ("policy", "policy")),
        ("Import-ExchangeCertificate", ("add_credential", "other")),
        ("Remove-ExchangeCertificate", ("remove_credential", "other")),
        ("SearchStarted", ("compliance_search", "other")),
        ("x" * 100_000, ("other", "other")),
    ],
)
def test_operations(operation: str, expected: tuple[str, str] | None) -> None:
    assert ual_operations.change(ual_operations.normal(operation), directory="-" not in operation) == expected


@pytest.mark.parametrize(
    ("operation", "parameters", "expected"),
    [
        ("Set-Mailbox", {"ForwardingAddress": "Somebody"}, ("forwarding", None)),
        ("Set-Mailbox", {"ForwardingSmtpAddress": "smtp:a@C.example"}, ("forwarding", False)),
        ("Set-Mailbox", {"ForwardingSmtpAddress": "smtp:a@notc.example"}, ("forwarding", True)),
        ("Set-Mailbox", {"LitigationHoldEnabled": "False"}, ("retention", None)),
        ("Set-Mailbox", {"Office": "12"}, ("mailbox_setting", None)),
        ("Set-OrganizationConfig", {"AuditDisabled": "True"}, ("audit_setting", None)),
        ("New-TransportRule", {"BlindCopyTo": "a@c.example;b@evil.example"}, ("transport_rule", True)),
        ("Set-InboxRule", {"RedirectTo": '["a@c.example"]'}, ("inbox_rule", False)),
        ("Set-Mailbox", {"Identity": "b@d.example", "ForwardingSmtpAddress": "a@d.example"}, ("forwarding", False)),
        ("New-InboxRule", {"Mailbox": "b@d.example", "ForwardTo": '"A" [SMTP:a@d.example]'}, ("inbox_rule", False)),
        (
            "New-JournalRule",
            {"JournalEmailAddress": "j@\N{LATIN SMALL LETTER U WITH DIAERESIS}.example"},
            ("journal_rule", True),
        ),
        ("Set-MailUser", {"ExternalEmailAddress": "SMTP:a@evil.example"}, ("user", True)),
        ("New-ComplianceSearchAction", {"SearchName": "x", "Export": "True"}, ("mailbox_export", None)),
        ("Search-Mailbox", {"Identity": "a", "TargetMailbox": "b"}, ("mailbox_export", None)),
        ("Set-MailboxAuditBypassAssociation", {"AuditBypassEnabled": "True"}, ("audit_bypass", None)),
        ("Set-TransportConfig", {"JournalingReportNdrTo": "x@evil.example"}, ("policy", True)),
    ],
)
def test_cmdlets(operation: str, parameters: dict[str, str], expected: tuple[str, bool | None]) -> None:
    pairs = [{"Name": name, "Value": value} for name, value in parameters.items()]
    row = read(BASE, Operation=operation, Parameters=pairs)
    assert row["disposition"] == "change_events"
    assert (row["op"], row["is_external_target"]) == expected


def test_mailbox_rule_operation() -> None:
    actions = json.dumps([{"ActionType": "Forward", "Recipients": ["x@evil.example"]}])
    properties = [{"Name": "RuleOperation", "Value": "AddMailboxRule"}, {"Name": "RuleActions", "Value": actions}]
    row = read(BASE, Operation="UpdateInboxRules", OperationProperties=properties, MailboxOwnerUPN="J@c.example")
    check(row, {"op": "inbox_rule", "is_external_target": True, "target_id": "j@c.example"})
    properties[0]["Value"] = "RemoveMailboxRule"
    assert read(BASE, Operation="UpdateInboxRules", OperationProperties=properties)["op"] == "remove_inbox_rule"


def test_passwords_are_not_kept() -> None:
    pairs = [{"Name": name, "Value": "hunter2"} for name in ("Password", "RoomMailboxPassword", "Name")]
    pairs += [{"Name": "ResetPasswordOnNextLogon", "Value": "True"}]
    row = read(BASE, Operation="New-Mailbox", Parameters=pairs)
    assert row["new_value"] == (
        "Password=(not kept); RoomMailboxPassword=(not kept); Name=hunter2; ResetPasswordOnNextLogon=True"
    )
    line = '-Name "x" -Password "hunter2 -x" -Force'
    row = read(BASE, Operation="New-Mailbox", Parameters=[{"Value": line}])
    check(row, {"attr": "Name; Password; Force", "new_value": "Name=x; Password=(not kept)"})
    row = read(BASE, Operation="New-Mailbox", Parameters=[{"Value": "x " + line}])
    assert row["new_value"] == 'x -Name "x" -Password (not kept) -Force'


def test_a_key_in_a_display_name_is_no_key() -> None:
    told = f'[KeyIdentifier={KEY_1},KeyType=Password,DisplayName=x]","[KeyIdentifier={KEY_2}'
    changed = [{"Name": "KeyDescription", "OldValue": "[]", "NewValue": json.dumps([told, 3, None, "KeyIdentifier=z"])}]
    row = read(BASE, Operation="Update application.", Workload="AzureActiveDirectory", ModifiedProperties=changed)
    check(row, {"op": "add_credential", "credential_id": KEY_1})
    cut = [{"Name": "KeyDescription", "OldValue": "[", "NewValue": f'["[KeyIdentifier={KEY_2},KeyType=Pass'}]
    row = read(BASE, Operation="Update application.", Workload="AzureActiveDirectory", ModifiedProperties=cut)
    check(row, {"op": "add_credential", "credential_id": KEY_2})


def test_long_values_are_cut() -> None:
    row = read(
        BASE, Operation="Set-Mailbox", Parameters=[{"Name": "A", "Value": "x" * 50_000}, {"Name": "B", "Value": "y"}]
    )
    assert len(row["new_value"]) == 32_768
