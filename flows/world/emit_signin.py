"""Entra sign-in records as diagnostic settings export them: one JSON object a line."""

import base64
import json
import random
from typing import Any

from flows.world.model import Net, Tenant, User, guid, iso

_FIXED = {
    "conditionalAccessStatus": "notApplied",
    "isInteractive": False,
    "tokenIssuerType": "AzureAD",
    "resourceDisplayName": "Office 365 Exchange Online",
    "resourceId": "00000002-0000-0ff1-ce00-000000000000",
}


def _times(rng: random.Random, ts: float) -> str:
    return iso(ts) + f".{int(ts % 1 * 1e4):04d}{rng.randrange(1000):03d}"


def _record(
    rng: random.Random,
    tenant: Tenant,
    ts: float,
    *,
    category: str,
    ip: str,
    net: Net,
    code: int,
    properties: dict[str, Any],
) -> dict[str, Any]:
    at, request, correlation = _times(rng, ts), guid(rng), guid(rng)
    token = base64.b64encode(request.encode()).decode().rstrip("=")
    common = {
        "id": request,
        "createdDateTime": f"{at}+00:00",
        **properties,
        "ipAddress": ip,
        "status": {"errorCode": code},
        "location": {"countryOrRegion": net.country},
        "correlationId": correlation,
        **_FIXED,
        "uniqueTokenIdentifier": token,
        "autonomousSystemNumber": net.asn,
    }
    return {
        "time": f"{at}Z",
        "resourceId": f"/tenants/{tenant.entra_id}/providers/Microsoft.aadiam",
        "operationName": "Sign-in activity",
        "operationVersion": "1.0",
        "category": category,
        "tenantId": tenant.entra_id,
        "resultType": str(code),
        "resultSignature": "None",
        "durationMs": 0,
        "callerIpAddress": ip,
        "correlationId": correlation,
        "Level": 4,
        "location": net.country,
        "properties": common,
    }


def by_application(
    rng: random.Random, tenant: Tenant, ts: float, *, app: tuple[str, str], sp_id: str, key_id: str, thumbprint: str,
    ip: str, net: Net, code: int = 0,
) -> str:  # fmt: skip
    """A service principal's sign-in; `app` is (id, display name), an empty thumbprint means a client secret."""
    properties = {
        "userId": None,
        "appId": app[0],
        "servicePrincipalName": app[1],
        "servicePrincipalId": sp_id,
        "servicePrincipalCredentialKeyId": key_id,
        "servicePrincipalCredentialThumbprint": thumbprint,
        "clientCredentialType": "certificate" if thumbprint else "clientSecret",
        "crossTenantAccessType": "none",
    }
    record = _record(
        rng, tenant, ts, category="ServicePrincipalSignInLogs", ip=ip, net=net, code=code, properties=properties
    )
    return json.dumps(record, separators=(",", ":"))


def by_user(
    rng: random.Random, tenant: Tenant, ts: float, *, user: User, ip: str, net: Net, interactive: bool, code: int = 0
) -> str:
    """A person's sign-in, interactive or by a refresh token."""
    properties = {
        "userDisplayName": user.name,
        "userPrincipalName": user.address,
        "userId": user.object_id,
        "appId": "d3590ed6-52b3-4102-aeff-aad2292ab01c",
        "appDisplayName": "Microsoft Office",
        "clientAppUsed": "Mobile Apps and Desktop clients",
        "userAgent": user.agent,
        "deviceDetail": {"deviceId": "", "operatingSystem": "Windows 10"},
        "homeTenantId": tenant.entra_id,
        "resourceTenantId": tenant.entra_id,
        "userType": "Member",
    }
    category = "SignInLogs" if interactive else "NonInteractiveUserSignInLogs"
    record = _record(rng, tenant, ts, category=category, ip=ip, net=net, code=code, properties=properties)
    record["identity"] = user.name
    record["properties"]["isInteractive"] = interactive
    return json.dumps(record, separators=(",", ":"))
