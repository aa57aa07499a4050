"""Which control-plane operations there are, and what each changes: Microsoft 365's names in lower case."""

import re

# Entra ID operations, without the full stop at the end and with a plain hyphen: (op, target_type).
_DIRECTORY: dict[str, tuple[str, str]] = {
    "add service principal credentials": ("add_credential", "service_principal"),
    "remove service principal credentials": ("remove_credential", "service_principal"),
    "update service principal credentials": ("update_credential", "service_principal"),
    "add application": ("add_app", "app"),
    "restore application": ("add_app", "app"),
    "delete application": ("remove_app", "app"),
    "hard delete application": ("remove_app", "app"),
    "update application": ("update_app", "app"),
    "add service principal": ("add_app", "service_principal"),
    "restore service principal": ("add_app", "service_principal"),
    "remove service principal": ("remove_app", "service_principal"),
    "hard delete service principal": ("remove_app", "service_principal"),
    "update service principal": ("update_app", "service_principal"),
    "consent to application": ("consent", "app"),
    "add delegation entry": ("consent", "service_principal"),
    "set delegation entry": ("consent", "service_principal"),
    "remove delegation entry": ("revoke_consent", "service_principal"),
    "add delegated permission grant": ("consent", "service_principal"),
    "update delegated permission grant": ("consent", "service_principal"),
    "remove delegated permission grant": ("revoke_consent", "service_principal"),
    "add oauth2permissiongrant": ("consent", "service_principal"),
    "remove oauth2permissiongrant": ("revoke_consent", "service_principal"),
    "revoke consent": ("revoke_consent", "app"),
    "change user license": ("licence", "user"),
    "set license properties": ("licence", "licence"),
    "disable strong authentication": ("mfa", "user"),
    "enable strong authentication": ("mfa", "user"),
    "set domain authentication": ("federation", "domain"),
    "set federation settings on domain": ("federation", "domain"),
    "add partner to company": ("federation", "organization"),
    "remove partner from company": ("federation", "organization"),
    "set partnership": ("federation", "organization"),
    "set dirsyncenabled flag": ("federation", "organization"),
    "set company information": ("policy", "organization"),
    "set company allowed data location": ("policy", "organization"),
    "set password policy": ("policy", "policy"),
    "reset user password": ("user", "user"),
    "change user password": ("user", "user"),
    "set force change user password": ("user", "user"),
    "disable account": ("user", "user"),
    "enable account": ("user", "user"),
    "invite external user": ("user", "user"),
    "redeem external user invite": ("user", "user"),
    "add app role assignment grant to user": ("add_app_role", "user"),
}
# The first that matches, for the families of Entra ID operations.
_DIRECTORY_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"certificates and secrets management", "update_credential", "app"),
    (r"^add app role assignment ", "add_app_role", "service_principal"),
    (r"^remove app role assignment ", "remove_app_role", "service_principal"),
    (r"^(?:add|complete)\b.* to role\b", "add_role", "role"),
    (r"^remove\b.* from role\b", "remove_role", "role"),
    (r"\brole (?:definition|assignment)\b", "add_role", "role"),
    (r"^add owner to ", "add_owner", "app"),
    (r"\b(?:strong ?auth|security info|application password|authentication method|mfa)", "mfa", "user"),
    (r"\bpolicy\b|conditional access|named location|settings\b", "policy", "policy"),
    (r"\b(?:federat|cross-tenant|identity provider)", "federation", "organization"),
    (r"\bdomain\b", "domain", "domain"),
    (r"\bgroup\b", "group_member", "group"),
    (r"\buser\b|stsrefreshtoken", "user", "user"),
)
# Cmdlets by noun: (op, op of Remove-/Disable-, target_type).
_NOUNS: dict[str, tuple[str, str, str]] = {
    "inboxrule": ("inbox_rule", "remove_inbox_rule", "rule"),
    "sweeprule": ("inbox_rule", "remove_inbox_rule", "rule"),
    "transportrule": ("transport_rule", "remove_transport_rule", "rule"),
    "journalrule": ("journal_rule", "remove_journal_rule", "journal_rule"),
    "inboundconnector": ("connector", "remove_connector", "connector"),
    "outboundconnector": ("connector", "remove_connector", "connector"),
    "sendconnector": ("connector", "remove_connector", "connector"),
    "receiveconnector": ("connector", "remove_connector", "connector"),
    "intraorganizationconnector": ("connector", "remove_connector", "connector"),
    "deliveryagentconnector": ("connector", "remove_connector", "connector"),
    "mailboxpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "recipientpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "adpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "mailboxfolderpermission": ("folder_permission", "folder_permission", "mailbox"),
    "publicfolderclientpermission": ("folder_permission", "folder_permission", "mailbox"),
    "mailboxauditbypassassociation": ("audit_bypass", "audit_bypass", "mailbox"),
    "adminauditlogconfig": ("audit_setting", "audit_setting", "audit"),
    "unifiedauditlogretentionpolicy": ("audit_setting", "audit_setting", "audit"),
    "auditconfig": ("audit_setting", "audit_setting", "audit"),
    "auditconfigurationpolicy": ("audit_setting", "audit_setting", "audit"),
    "auditconfigurationrule": ("audit_setting", "audit_setting", "audit"),
    "retentionpolicy": ("retention", "retention", "policy"),
    "retentionpolicytag": ("retention", "retention", "policy"),
    "retentioncompliancepolicy": ("retention", "retention", "policy"),
    "retentioncompliancerule": ("retention", "retention", "policy"),
    "holdcompliancepolicy": ("retention", "retention", "policy"),
    "holdcompliancerule": ("retention", "retention", "policy"),
    "caseholdpolicy": ("retention", "retention", "policy"),
    "caseholdrule": ("retention", "retention", "policy"),
    "accepteddomain": ("domain", "domain", "domain"),
    "remotedomain": ("domain", "domain", "domain"),
    "federationtrust": ("federation", "federation", "organization"),
    "federateddomain": ("federation", "federation", "domain"),
    "federatedorganizationidentifier": ("federation", "federation", "organization"),
    "organizationrelationship": ("federation", "federation", "organization"),
    "partnerapplication": ("federation", "federation", "app"),
    "managementroleassignment": ("add_role", "remove_role", "role"),
    "managementrole": ("add_role", "remove_role", "role"),
    "managementroleentry": ("add_role", "remove_role", "role"),
    "managementscope": ("add_role", "remove_role", "role"),
    "rolegroup": ("add_role", "remove_role", "role"),
    "rolegroupmember": ("add_role", "remove_role", "role"),
    "distributiongroup": ("group_member", "group_member", "group"),
    "distributiongroupmember": ("group_member", "group_member", "group"),
    "dynamicdistributiongroup": ("group_member", "group_member", "group"),
    "unifiedgroup": ("group_member", "group_member", "group"),
    "unifiedgrouplinks": ("group_member", "group_member", "group"),
    "mailbox": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "casmailbox": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxautoreplyconfiguration": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxmessageconfiguration": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxjunkemailconfiguration": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "calendarprocessing": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxcalendarfolder": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxlocation": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "serviceprincipal": ("add_app", "remove_app", "service_principal"),
    "app": ("add_app", "remove_app", "app"),
    "user": ("user", "user", "user"),
    "mailuser": ("user", "user", "user"),
    "mailcontact": ("user", "user", "user"),
    "organizationconfig": ("policy", "policy", "organization"),
    "transportconfig": ("policy", "policy", "organization"),
}
# Mailbox operations that change who or what gets at the mail: (op, target_type).
_MAILBOX: dict[str, tuple[str, str]] = {
    "updateinboxrules": ("inbox_rule", "rule"),
    "addfolderpermissions": ("folder_permission", "mailbox"),
    "modifyfolderpermissions": ("folder_permission", "mailbox"),
    "removefolderpermissions": ("folder_permission", "mailbox"),
    "updatefolderpermissions": ("folder_permission", "mailbox"),
    "updatecalendardelegation": ("folder_permission", "mailbox"),
    "add-mailboxfolderpermissions": ("folder_permission", "mailbox"),
}
_CMDLET = re.compile(r"([a-z]+)-([a-z0-9]+)")
_READING = {"get", "test", "search", "export", "find", "validate", "measure"}
_TAKING_AWAY = {"remove", "disable", "uninstall"}


def normal(operation: str) -> str:
    """An operation's name in lower case, with a plain hyphen and without blanks or a full stop at its end."""
    return operation.replace("\N{EN DASH}", "-").strip().rstrip(".").rstrip().lower()


def change(operation: str, *, directory: bool) -> tuple[str, str] | None:
    """What an operation (normal form) changes.

    Args:
        operation: as `normal` gives it.
        directory: the record is of the directory (Entra ID), where any operation is a change.

    Returns:
        (op, target_type) of change_events, or None if it changes nothing that we know of.
    """
    if operation in _DIRECTORY:
        return _DIRECTORY[operation]
    if operation in _MAILBOX:
        return _MAILBOX[operation]
    if cmdlet := _CMDLET.fullmatch(operation):
        return _cmdlet(cmdlet[1], cmdlet[2])
    for pattern, op, target in _DIRECTORY_FAMILIES if directory or "certificates and secrets" in operation else ():
        if re.search(pattern, operation):
            return op, target
    return ("other", "other") if directory else None


def _cmdlet(verb: str, noun: str) -> tuple[str, str] | None:
    if verb in _READING:
        return None
    if noun in _NOUNS:
        op, undone, target = _NOUNS[noun]
        return (undone if verb in _TAKING_AWAY else op), target
    if noun.endswith(("policy", "rule", "config", "policyconfig", "settings")):
        return "policy", "policy"
    return "other", "other"


def reads(operation: str) -> bool:
    """Whether an operation (normal form) is a cmdlet that reads."""
    cmdlet = _CMDLET.fullmatch(operation)
    return cmdlet is not None and cmdlet[1] in _READING
