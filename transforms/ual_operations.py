"""Which control-plane operations there are, and what each changes.

One vocabulary for all that name them: the unified audit, Entra ID's directory audit (activity names; the unified audit
ends them with a full stop) and Exchange's cmdlets (unified audit, admin audit log, cmdlet log).
"""

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
    "update oauth2permissiongrant": ("consent", "service_principal"),
    "remove oauth2permissiongrant": ("revoke_consent", "service_principal"),
    "revoke consent": ("revoke_consent", "app"),
    "set license properties": ("licence", "licence"),
    "set domain authentication": ("federation", "domain"),
    "set federation settings on domain": ("federation", "domain"),
    "set partnership": ("federation", "organization"),
    "set dirsyncenabled flag": ("federation", "organization"),
    "set company information": ("policy", "organization"),
    "set company allowed data location": ("policy", "organization"),
    "set password policy": ("policy", "policy"),
    "disable account": ("user", "user"),
    "enable account": ("user", "user"),
}
# The first that matches, for the families of Entra ID operations.
_DIRECTORY_FAMILIES: tuple[tuple[str, str, str], ...] = (
    (r"certificates and secrets management", "update_credential", "app"),
    (r"^(?:add|create)\b.*\bfederated (?:identity )?credential", "add_credential", "app"),
    (r"^(?:remove|delete)\b.*\bfederated (?:identity )?credential", "remove_credential", "app"),
    (r"\bfederated (?:identity )?credential", "update_credential", "app"),
    (r"^(?:add|create)\b.*\b(?:key|password) credential", "add_credential", "app"),
    (r"^(?:remove|delete)\b.*\b(?:key|password) credential", "remove_credential", "app"),
    (r"^add owner to service principal", "add_owner", "service_principal"),
    (r"^remove owner from service principal", "remove_owner", "service_principal"),
    (r"^add owner to group", "add_owner", "group"),
    (r"^remove owner from group", "remove_owner", "group"),
    (r"^add owner to ", "add_owner", "app"),
    (r"^remove owner from ", "remove_owner", "app"),
    (r"^add app role assignment\b.*\buser\b", "add_app_role", "user"),
    (r"^remove app role assignment\b.*\buser\b", "remove_app_role", "user"),
    (r"^add app role assignment\b.*\bgroup\b", "add_app_role", "group"),
    (r"^remove app role assignment\b.*\bgroup\b", "remove_app_role", "group"),
    (r"^add app role assignment", "add_app_role", "service_principal"),
    (r"^remove app role assignment", "remove_app_role", "service_principal"),
    (r"\brole (?:management )?(?:policy|setting)", "policy", "policy"),
    (r"^(?:remove|delete)\b.*\brole\b", "remove_role", "role"),
    (r"\b(?:to|from|in) (?:pim )?role\b|\brole (?:definition|assignment)|^(?:add|update) role\b", "add_role", "role"),
    (r"\blicen[cs]e", "licence", "user"),
    (r"\bstrong ?auth|\bsecurity info|\bapp(?:lication)? password|\bauthentication method(?!s policy)", "mfa", "user"),
    (r"\bmfa\b|\bmulti-?factor|\bpasskey|\bfido2?\b|\btemporary access pass", "mfa", "user"),
    (r"\bpolicy\b|conditional access|named location|security defaults|\bsettings?\b", "policy", "policy"),
    (r"\bpartner\b|\bdelegated admin|\bfederat|cross-tenant|identity provider", "federation", "organization"),
    (r"\bdomain\b", "domain", "domain"),
    (r"\bdevice\b", "other", "other"),
    (r"\bgroup\b", "group_member", "group"),
    (r"\buser\b|\bpassword\b|stsrefreshtoken", "user", "user"),
    (r"\bservice principal\b", "update_app", "service_principal"),
    (r"\bapplication\b", "update_app", "app"),
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
    "foreignconnector": ("connector", "remove_connector", "connector"),
    "edgesubscription": ("connector", "remove_connector", "connector"),
    "intraorganizationconnector": ("connector", "remove_connector", "connector"),
    "deliveryagentconnector": ("connector", "remove_connector", "connector"),
    "mailboxpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "recipientpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "adpermission": ("mailbox_permission", "remove_mailbox_permission", "mailbox"),
    "mailboxfolderpermission": ("folder_permission", "folder_permission", "mailbox"),
    "publicfolderclientpermission": ("folder_permission", "folder_permission", "mailbox"),
    "mailboxexportrequest": ("mailbox_export", "mailbox_export", "mailbox"),
    "compliancesearch": ("compliance_search", "compliance_search", "other"),
    "compliancesearchaction": ("compliance_search", "compliance_search", "other"),
    "mailboxsearch": ("compliance_search", "compliance_search", "other"),
    "exchangecertificate": ("add_credential", "remove_credential", "other"),
    "authconfig": ("update_credential", "update_credential", "organization"),
    "authserver": ("federation", "federation", "organization"),
    "hybridconfiguration": ("federation", "federation", "organization"),
    "onpremisesorganization": ("federation", "federation", "organization"),
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
    "mailboximportrequest": ("other", "other", "mailbox"),
    "mailboxrestorerequest": ("other", "other", "mailbox"),
    "moverequest": ("other", "other", "mailbox"),
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
    "mailboxregionalconfiguration": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "remotemailbox": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxplan": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "mailboxlocation": ("mailbox_setting", "mailbox_setting", "mailbox"),
    "serviceprincipal": ("add_app", "remove_app", "service_principal"),
    "app": ("add_app", "remove_app", "app"),
    "user": ("user", "user", "user"),
    "mailuser": ("user", "user", "user"),
    "mailcontact": ("user", "user", "user"),
    "tenantallowblocklistitems": ("policy", "policy", "policy"),
    "tenantallowblocklistspoofitems": ("policy", "policy", "policy"),
    "organizationconfig": ("policy", "policy", "organization"),
    "transportconfig": ("policy", "policy", "organization"),
}
# Mailbox operations that change who or what gets at the mail, and content searches: (op, target_type).
_MAILBOX: dict[str, tuple[str, str]] = {
    "searchcreated": ("compliance_search", "other"),
    "searchstarted": ("compliance_search", "other"),
    "searchupdated": ("compliance_search", "other"),
    "searchstopped": ("compliance_search", "other"),
    "searchremoved": ("compliance_search", "other"),
    "updateinboxrules": ("inbox_rule", "rule"),
    "addfolderpermissions": ("folder_permission", "mailbox"),
    "modifyfolderpermissions": ("folder_permission", "mailbox"),
    "removefolderpermissions": ("folder_permission", "mailbox"),
    "updatefolderpermissions": ("folder_permission", "mailbox"),
    "updatecalendardelegation": ("folder_permission", "mailbox"),
    "add-mailboxfolderpermissions": ("folder_permission", "mailbox"),
}
# Cmdlets whose verb reads, but that take mail or keys along: (op, target_type).
_TAKING: dict[str, tuple[str, str]] = {
    "search-mailbox": ("compliance_search", "mailbox"),
    "export-exchangecertificate": ("other", "other"),
}
_CMDLET = re.compile(r"([a-z]+)-([a-z0-9]+)")
_LONGEST = 300  # characters of an operation's name that are looked at
_READING = {"get", "test", "search", "export", "find", "validate", "measure"}
_TAKING_AWAY = {"remove", "disable", "uninstall"}


def normal(operation: str) -> str:
    """An operation's name in lower case, with a plain hyphen and without blanks or a full stop at its end."""
    return operation[:_LONGEST].replace("\N{EN DASH}", "-").strip().rstrip(".").rstrip().lower()


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
    if operation in _TAKING:
        return _TAKING[operation]
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
    if noun.endswith(("policy", "rule", "config", "settings", "virtualdirectory")):
        return "policy", "policy"
    return "other", "other"


def reads(operation: str) -> bool:
    """Whether an operation (normal form) is a cmdlet that reads."""
    cmdlet = _CMDLET.fullmatch(operation)
    return cmdlet is not None and cmdlet[1] in _READING
