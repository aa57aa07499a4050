"""Records of the Microsoft 365 unified audit log, and the three containers in which it is collected.

Shapes: the Management Activity API's record types 1, 8, 15 and 50; Search-UnifiedAuditLog as CSV.
"""

import json
import random
from typing import Any

from flows.world.model import Record, Tenant, User, civil, guid, iso

Audit = tuple[float, dict[str, Any], str | None]

EXCHANGE_ONLINE = "00000002-0000-0ff1-ce00-000000000000"
OUTLOOK = "d3590ed6-52b3-4102-aeff-aad2292ab01c"
OUTLOOK_MOBILE = "27922004-5251-4030-b22d-91ecd9a37ea4"
TYPE_NAMES = {
    1: "ExchangeAdmin",
    8: "AzureActiveDirectory",
    15: "AzureActiveDirectoryStsLogon",
    50: "ExchangeItemAggregated",
}
CSV_HEADER = (
    '"RecordType","CreationDate","UserIds","Operations","AuditData",'
    '"ResultIndex","ResultCount","Identity","IsValid","ObjectState"'
)
_SERVERS = ("AM6PR04MB5512 (15.20.3763.011)", "BN8PR12MB3074 (15.20.3742.012)", "DB9PR06MB7312 (15.20.3784.013)")


def stamp(ts: float) -> str:
    """UTC without Z, to the second, as CreationTime is written."""
    return iso(ts)


def address_form(rng: random.Random, ip: str) -> str:
    """One of the ways in which the audit log writes a client address."""
    pick = rng.random()
    if ":" in ip:
        return f"[{ip}]:{rng.randrange(1024, 65535)}" if pick < 0.5 else ip
    if pick < 0.25:
        return f"{ip}:{rng.randrange(1024, 65535)}"
    return f"::ffff:{ip}" if pick > 0.98 else ip


def _head(
    rng: random.Random, tenant: Tenant, ts: float, operation: str, record_type: int, workload: str
) -> dict[str, Any]:
    return {
        "CreationTime": stamp(ts),
        "Id": guid(rng),
        "Operation": operation,
        "OrganizationId": tenant.entra_id,
        "RecordType": record_type,
        "ResultStatus": {50: "Succeeded", 1: "True"}.get(record_type, "Success"),
        "Version": 1,
        "Workload": workload,
    }


def _folders(rng: random.Random, domain: str, items: int, folder: str) -> list[dict[str, Any]]:
    listed = [{"InternetMessageId": f"<{rng.getrandbits(72):018x}@{domain}>"} for _ in range(items)]
    return [{"FolderItems": listed, "Id": f"LgAAAAD{rng.getrandbits(96):024X}AAAB", "Path": f"\\{folder}"}]


def mail_read(
    rng: random.Random, tenant: Tenant, ts: float, *, mailbox: str, ip: str, client: str, items: int,
    user: User | None = None, app_id: str = "", sp_id: str = "", folder: str = "Inbox",
) -> dict[str, Any]:  # fmt: skip
    """A MailItemsAccessed record of kind Bind: by an application, or by the owner if `user` is given."""
    body = _head(rng, tenant, ts, "MailItemsAccessed", 50, "Exchange")
    sid = user.sid if user else "S-1-5-18"
    principal = f"ServicePrincipal_{sp_id}"
    name = user.address if user else principal
    if user and rng.random() < 0.1:
        name = name.title()
    body |= {
        "UserKey": user.user_key if user else principal,
        "UserType": 0 if user else 5,
        "UserId": name,
        "AppId": app_id,
        "ClientAppId": app_id,
        "ClientIPAddress": address_form(rng, ip),
        "ClientInfoString": client,
        "ExternalAccess": False,
        "InternalLogonType": 0,
        "LogonType": 0 if user else 1,
        "LogonUserSid": sid,
        "MailboxGuid": tenant.mailbox_guids[mailbox],
        "MailboxOwnerUPN": mailbox,
        "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}, {"Name": "IsThrottled", "Value": "False"}],
        "OrganizationName": tenant.domain,
        "OriginatingServer": rng.choice(_SERVERS) + "\r\n",
        "Folders": _folders(rng, tenant.domain, items, folder),
        "OperationCount": items,
    }
    return body


def logged_in(
    rng: random.Random, tenant: Tenant, ts: float, *, user: User, ip: str, agent: str, ok: bool = True
) -> dict[str, Any]:
    """A UserLoggedIn or UserLoginFailed record."""
    body = _head(rng, tenant, ts, "UserLoggedIn" if ok else "UserLoginFailed", 15, "AzureActiveDirectory")
    detail = "Success" if ok else "UserError"
    body |= {
        "ResultStatus": "Success" if ok else "Failed",
        "UserKey": user.object_id,
        "UserType": 0,
        "ClientIP": ip,
        "ObjectId": EXCHANGE_ONLINE,
        "UserId": user.address,
        "AzureActiveDirectoryEventType": 1,
        "ExtendedProperties": [
            {"Name": "ResultStatusDetail", "Value": detail},
            {"Name": "UserAgent", "Value": agent},
            {"Name": "RequestType", "Value": "OAuth2:Token"},
        ],
        "ModifiedProperties": [],
        "Actor": [{"ID": user.object_id, "Type": 0}, {"ID": user.address, "Type": 5}],
        "ActorContextId": tenant.entra_id,
        "ActorIpAddress": ip,
        "InterSystemsId": guid(rng),
        "IntraSystemId": body["Id"],
        "Target": [{"ID": EXCHANGE_ONLINE, "Type": 0}],
        "TargetContextId": tenant.entra_id,
        "ApplicationId": OUTLOOK,
    }
    return body if ok else body | {"ErrorNumber": "50126", "LogonError": "InvalidUserNameOrPassword"}


def cmdlet(
    rng: random.Random,
    tenant: Tenant,
    ts: float,
    *,
    user: User,
    ip: str,
    operation: str,
    target: str,
    parameters: dict[str, str],
) -> dict[str, Any]:
    """An Exchange cmdlet record (Set-Mailbox, New-InboxRule and the like)."""
    body = _head(rng, tenant, ts, operation, 1, "Exchange")
    return body | {
        "UserKey": user.user_key,
        "UserType": 2,
        "ClientIP": address_form(rng, ip),
        "ObjectId": target,
        "UserId": user.address,
        "AppId": "fb78d390-0c51-40cd-8e17-fdbfab77341b",
        "ClientAppId": "",
        "ExternalAccess": False,
        "OrganizationName": tenant.domain,
        "OriginatingServer": rng.choice(_SERVERS),
        "Parameters": [{"Name": key, "Value": value} for key, value in parameters.items()],
        "SessionId": guid(rng),
    }


def directory(
    rng: random.Random,
    tenant: Tenant,
    ts: float,
    *,
    user: User,
    operation: str,
    target: str,
    changes: dict[str, tuple[str, str]],
) -> dict[str, Any]:
    """A directory change; `changes` maps a property to its old and new value."""
    body = _head(rng, tenant, ts, operation, 8, "AzureActiveDirectory")
    modified = [{"Name": key, "NewValue": new, "OldValue": old} for key, (old, new) in changes.items()]
    return body | {
        "UserKey": f"{user.user_key}@{tenant.domain}",
        "UserType": 0,
        "ObjectId": target,
        "UserId": user.address,
        "AzureActiveDirectoryEventType": 1,
        "ExtendedProperties": [{"Name": "additionalDetails", "Value": "{}"}],
        "ModifiedProperties": modified,
        "Actor": [{"ID": user.address, "Type": 5}, {"ID": user.user_key, "Type": 3}, {"ID": "User", "Type": 2}],
        "ActorContextId": tenant.entra_id,
        "InterSystemsId": guid(rng),
        "IntraSystemId": guid(rng),
        "SupportTicketId": "",
        "Target": [{"ID": target, "Type": 5 if "@" in target else 2}],
        "TargetContextId": tenant.entra_id,
    }


def _us_time(ts: float) -> str:
    day, second = divmod(int(ts), 86_400)
    year, month, number = civil(day)
    hour = second // 3600
    half = "AM" if hour < 12 else "PM"
    return f"{month}/{number}/{year} {hour % 12 or 12}:{second // 60 % 60:02d}:{second % 60:02d} {half}"


def to_lines(audits: list[Audit], container: str) -> list[Record]:
    """The records as lines: compact JSON, or CSV rows with the JSON in AuditData."""
    out: list[Record] = []
    for index, (ts, body, label) in enumerate(audits, 1):
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        if container == "csv":
            kind = TYPE_NAMES[body["RecordType"]]
            quoted = text.replace('"', '""')
            head = f'"{kind}","{_us_time(ts)}","{body["UserId"]}","{body["Operation"]}","{quoted}"'
            text = f'{head},"{index}","{len(audits)}","{body["Id"]}","True","Unchanged"'
        out.append((ts, text, label))
    return out


def wrap(lines: list[str], container: str) -> str:
    """The file: JSON lines, one JSON array, or CSV with its header."""
    if container == "array":
        return "[\n" + ",\n".join(lines) + "\n]\n"
    if container == "csv":
        return "\r\n".join([CSV_HEADER, *lines]) + "\r\n"
    return "\n".join(lines) + "\n"
