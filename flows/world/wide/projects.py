"""What harmless events at customers share."""

import json
import random

from flows.world.model import DAY, Tenant, User, jitter, utc_offset
from flows.world.wide import cast
from flows.world.wide.pen import Pen
from flows.world.wide.places import Place, Where
from flows.world.wide.stage import Stage

GRAPH = "00000003-0000-0000-c000-000000000000"


def office_of(tenant: Tenant) -> Where:
    """The administrator's desk."""
    return tenant.office.host(4), tenant.office


def hour_of(
    stage: Stage, rng: random.Random, tenant: Tenant, low: float = 0.5, high: float = 0.93, *, busy: bool = True
) -> float:
    """A moment in the tenant's working hours (or in any hour) of a day between these shares of the world."""
    day = stage.day(rng, low, high)
    return day - utc_offset(tenant.tz, day) + jitter(rng, 8.5, 16.5) * 3600 if busy else day + rng.random() * DAY


def allow(
    stage: Stage, tenant: Tenant, place: Place, who: str, actions: str, begin: float, end: float, reason: str
) -> None:
    """A rule of the reference table contexts, as an analyst would have written for something planned."""
    stage.contexts.append({
        "principal_pattern": who, "networks": ";".join(place.networks), "operation_classes": actions,
        "tenants": tenant.tenant_id,
        "valid_from": str(begin), "valid_to": str(end), "owner": "change board", "reason": reason,
    })  # fmt: skip


def consent(stage: Stage, tenant: Tenant, rng: random.Random, app: cast.App, ts: float, *, scope: str, label: str,
who: User | None = None,
            where: Where | None = None) -> None:  # fmt: skip
    """An application is added, gets a secret, and somebody consents: three records of the directory's audit."""
    pen, actor, place = Pen(stage, tenant, rng, label), who or tenant.admin(), where or office_of(tenant)
    target = ("ServicePrincipal", app.sp_id, app.name)
    key = json.dumps([f"[KeyIdentifier={app.key_id},KeyType=Password,KeyUsage=Verify,DisplayName=secret]"])
    pen.change(
        ts, actor, place, "Add service principal", target, {"AppId": ("[]", json.dumps([app.app_id]))}, app.app_id
    )
    pen.change(
        ts + 40, actor, place, "Add service principal credentials", target, {"KeyDescription": ("[]", key)}, app.app_id
    )
    pen.change(
        ts + 95,
        actor,
        place,
        "Consent to application",
        target,
        {"ConsentContext.IsAdminConsent": ("", "True"), "ConsentAction.Permissions": ("", f"[] => [[Scope: {scope}]]")},
        app.app_id,
    )
