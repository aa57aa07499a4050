"""Every day in Exchange Online: the vendor's jobs, people, administrators, other applications."""

import json
import random

from flows.world.m365 import OWNER_CLIENTS
from flows.world.model import DAY, Tenant, User, guid, jitter, poisson, utc_offset
from flows.world.wide.habits import drift, place_of
from flows.world.wide.pen import Pen
from flows.world.wide.places import Where
from flows.world.wide.stage import Label, Stage


def play(stage: Stage) -> None:
    """All routine of all tenants on Microsoft 365."""
    for tenant in stage.of("m365", new=True):
        cloud_vendor(stage, tenant, stage.rng("routine", tenant.tenant_id))
        _cloud_people(stage, tenant, stage.rng("people", tenant.tenant_id))
        _admin(stage, tenant, stage.rng("admin", tenant.tenant_id))
        _third_parties(stage, tenant, stage.rng("apps", tenant.tenant_id))


def cloud_vendor(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """Two runs a day over the same mailboxes, each with a sign-in, and sign-ins of the monitoring in between."""
    for number, begin, weight in stage.cal.each():
        for hour in (6.4, 18.4):
            ts = begin + hour * 3600 + jitter(rng, 0, 1200)
            ip, net, label = stage.egress(rng, tenant, ts, v6=True)
            app = stage.app(tenant, ts)
            moved = stage.vendor.moves.get(tenant.tenant_id, stage.cal.end)
            if label is None and moved <= ts < moved + 3 * DAY:
                label = "N14-rotation"
            if label is None and "/6.5.0" in app.client:
                label = "N4-upgrade"
            pen = Pen(stage, tenant, rng, label)
            pen.app_signin(ts, app, (ip, net))
            at, items = ts + jitter(rng, 2, 9), 0
            for box in tenant.scope[: 3 if hour < 12 else 2]:
                count = 1 + poisson(rng, 3 * weight)
                pen.read(at, box, (ip, net), pen.newest(box, at, count), app=app)
                at, items = at + jitter(rng, 15, 70), items + count
            start = ts - jitter(rng, 1, 4)
            pen.job(
                start,
                at,
                "ews",
                app.thumbprint.lower(),
                "cert",
                tenant.sp_id,
                ip,
                items=items,
                name="protect",
            )
        for hour in (12.2,):
            ts = begin + (hour + (number % 3) * 0.05) * 3600 + jitter(rng, 0, 300)
            ip, net, label = stage.egress(rng, tenant, ts, v6=True)
            app = stage.app(tenant, ts)
            Pen(stage, tenant, rng, label).app_signin(ts, app, (ip, net))
            Pen(stage, tenant, rng).job(
                ts - 1, ts + 5, "ews", app.thumbprint.lower(), "cert", tenant.sp_id, ip, name="monitor"
            )


def _cloud_people(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """On a day that a person works: a sign-in, now and then a second one, and reading of the own mailbox."""
    factors = drift(stage, rng)
    for number, begin, weight in stage.cal.each():
        for user in tenant.users:
            if rng.random() > min(0.85, 0.18 * min(user.activity, 3) * weight * factors[number]):
                continue
            first = begin - utc_offset(tenant.tz, begin) + (7 + 3 * rng.random()) * 3600
            working_day(stage, tenant, rng, user, first)
        for _ in range(poisson(rng, 0.4)):  # strangers guess passwords everywhere
            net, user = rng.choice(stage.decoys), rng.choice(tenant.users)
            Pen(stage, tenant, rng).user_signin(
                begin + rng.random() * DAY, user, (net.host(rng.randrange(2, 250)), net), code=50126
            )


def working_day(
    stage: Stage, tenant: Tenant, rng: random.Random, user: User, first: float, where: Where | None = None,
    label: Label = None
) -> None:  # fmt: skip
    """A day of a person, from the first sign-in (UTC seconds) on."""
    pen, here = Pen(stage, tenant, rng, label), where or place_of(stage, rng, tenant, user)
    if rng.random() < 0.03:
        pen.user_signin(first - 20, user, here, code=50126)
    pen.user_signin(first, user, here, interactive=rng.random() < 0.3)
    client, app = OWNER_CLIENTS[user.home_host % 3]
    for _ in range(1 + poisson(rng, 0.3)):
        ts = first + 60 + rng.random() * 28_000
        pen.read(
            ts,
            user.address,
            here,
            pen.newest(user.address, ts, rng.randrange(1, 4)),
            user=user,
            client=client,
            app_id=app,
        )


def _admin(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """Licences, groups, rules and settings; now and then a key of an internal application."""
    admin, office = tenant.admin(), (tenant.office.host(4), tenant.office)
    pen = Pen(stage, tenant, rng)
    for _, begin, weight in stage.cal.each():
        for ts in stage.cal.day_times(rng, tenant.tz, begin, 0.5 * weight):
            user, pick = rng.choice(tenant.users), rng.random()
            if pick < 0.25:
                pen.cmdlet(
                    ts,
                    admin,
                    office,
                    "Set-Mailbox",
                    user.address,
                    Identity=user.address,
                    RetentionPolicy="Default MRM Policy",
                )
            elif pick < 0.45:
                target = f"{user.address}\\Move newsletters"
                pen.cmdlet(
                    ts,
                    user,
                    office,
                    "New-InboxRule",
                    target,
                    Name="Move newsletters",
                    SubjectContainsWords="newsletter",
                    MoveToFolder="Reading",
                )
            elif pick < 0.97:
                operation, name = rng.choice(
                    (
                        ("Update user", "Department"),
                        ("Change user license", "AssignedLicense"),
                        ("Add member to group", "Group.DisplayName"),
                    )
                )
                changes = {name: ("[]", json.dumps([rng.choice(("Sales", "Projects", "ENTERPRISEPACK"))]))}
                pen.change(ts, admin, office, operation, ("User", user.object_id, user.address), changes)
            else:
                entry = f"[KeyIdentifier={guid(rng)},KeyType=Password,KeyUsage=Verify,DisplayName=intranet]"
                changes = {"KeyDescription": ("[]", json.dumps([entry]))}
                name = "Update application \u2013 Certificates and secrets management "
                pen.change(ts, admin, office, name, ("Application", guid(rng), "Intranet"), changes)  # fmt: skip


def _third_parties(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """A backup that reads every mailbox every night, or a CRM that reads two shared mailboxes through Graph by day."""
    backup, crm = stage.backups.get(tenant.tenant_id), stage.crm.get(tenant.tenant_id)
    for _, begin, weight in stage.cal.each():
        if backup:
            where, ts = stage.backup_place.at(rng), begin + 3600 + jitter(rng, 0, 300)
            pen = Pen(stage, tenant, rng, "N6-backup")
            pen.app_signin(ts, backup, where)
            for box in [*(user.address for user in tenant.users), *tenant.shared]:
                ts += jitter(rng, 8, 25)
                pen.read(ts, box, where, pen.newest(box, ts, 1 + poisson(rng, 2.0)), app=backup)
        if crm:
            for hour in (9, 15):
                where, ts = stage.crm_place.at(rng), begin + hour * 3600 + jitter(rng, 0, 900)
                pen = Pen(stage, tenant, rng)
                pen.app_signin(ts, crm, where)
                for box in tenant.shared[1:]:
                    pen.read(
                        ts + jitter(rng, 5, 60), box, where, pen.newest(box, ts, 1 + poisson(rng, weight)), app=crm
                    )
