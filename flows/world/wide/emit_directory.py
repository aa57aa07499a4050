"""Entra ID's directory audit, as diagnostic settings export it: one JSON object a line."""

import json
import random
from typing import Any

from flows.world.model import Tenant, guid, iso

Change = dict[str, tuple[str, str]]  # property -> old and new value


def audited(
    rng: random.Random, tenant: Tenant, ts: float, *, operation: str, actor: tuple[str, str, str], ip: str,
    target: tuple[str, str, str], changes: Change, agent: str = "", app_id: str = "", ok: bool = True,
) -> str:  # fmt: skip
    """A record of a change.

    Args:
        rng, tenant, ts: stream, where, and when (UTC seconds).
        operation: activity name.
        actor: kind (user or app), id, and name (of a user the UPN).
        ip: address of the actor.
        target: type as Entra names it, id, and name.
        changes: modified properties.
        agent, app_id: additional details.
        ok: whether it worked.
    """
    at, correlation = f"{iso(ts)}.{int(ts % 1 * 1e4):04d}{rng.randrange(1000):03d}", guid(rng)
    kind, actor_id, name = actor
    user: dict[str, Any] = {
        "id": actor_id,
        "displayName": None,
        "userPrincipalName": name,
        "ipAddress": ip,
        "roles": [],
    }
    app: dict[str, Any] = {
        "appId": None,
        "displayName": name,
        "servicePrincipalId": actor_id,
        "servicePrincipalName": None,
    }
    details = [{"key": key, "value": value} for key, value in (("User-Agent", agent), ("AppId", app_id)) if value]
    properties: dict[str, Any] = {
        "id": f"Directory_{correlation}_{rng.getrandbits(20):05X}_{rng.randrange(10**7)}",
        "category": "ApplicationManagement" if target[0] in ("ServicePrincipal", "Application") else "UserManagement",
        "correlationId": correlation,
        "result": "success" if ok else "failure",
        "resultReason": "",
        "activityDisplayName": operation,
        "activityDateTime": f"{at}+00:00",
        "loggedByService": "Core Directory",
        "operationType": "Add" if operation.startswith(("Add", "Consent")) else "Update",
        "initiatedBy": {kind: user if kind == "user" else app},
        "targetResources": [
            {
                "id": target[1],
                "displayName": target[2],
                "type": target[0],
                "userPrincipalName": target[2] if "@" in target[2] else None,
                "modifiedProperties": [
                    {"displayName": key, "oldValue": old, "newValue": new} for key, (old, new) in changes.items()
                ],
                "administrativeUnits": [],
            }
        ],
        "additionalDetails": details,
    }
    record = {
        "time": f"{at}Z",
        "resourceId": f"/tenants/{tenant.entra_id}/providers/Microsoft.aadiam",
        "operationName": operation,
        "operationVersion": "1.0",
        "category": "AuditLogs",
        "tenantId": tenant.entra_id,
        "resultSignature": "None",
        "durationMs": 0,
        "callerIpAddress": ip,
        "correlationId": correlation,
        "identity": name,
        "Level": 4,
        "properties": properties,
    }
    return json.dumps(record, separators=(",", ":"))
