"""Harmless events of the vendor's and of operations: unusual, and each a near miss of a detection."""

import json
import random

from flows.world.model import DAY, HOUR_WEIGHTS, Tenant, jitter
from flows.world.wide import cast
from flows.world.wide.pen import Pen
from flows.world.wide.places import Place
from flows.world.wide.stage import Gap, Stage

_BUSY = tuple(hour for hour, weight in enumerate(HOUR_WEIGHTS) if weight > 15)


def plan(stage: Stage) -> None:
    """Decides what befalls the vendor and operations; routine follows it."""
    _egress(stage)
    _onboarding(stage)
    _upgrade(stage)
    _poller(stage)
    _failover(stage)
    _rotation(stage)
    _collector(stage)


def names(tenants: list[Tenant]) -> list[str]:
    """Their ids."""
    return [tenant.tenant_id for tenant in tenants]


def _egress(stage: Stage) -> None:
    rng = stage.rng("N1")
    region, net = rng.choice(cast.REGIONS[:2]), stage.pool.take("vendor")
    stage.new_egress = region, net, stage.day(rng, 0.5, 0.9) + 0.27 * DAY
    stage.networks.append([net.cidr, "vendor_egress", region, stage.new_egress[2], None])
    members = [tenant for tenant in stage.tenants if tenant.region == region]
    what = "the vendor adds a published egress network in one region"
    stage.harmless("N1-egress", what, names(members), ["T01", "T02", "T03", "L01"], Place((net,)))


def _onboarding(stage: Stage) -> None:
    """A customer joins: its logs begin, services are set up within a day, and old mail is read once."""
    rng = stage.rng("N17")
    able = [t for t in stage.tenants if "m365" in t.services and len(t.services) > 1]
    tenant, ts = rng.choice(able), stage.day(rng, 0.55, 0.85)
    stage.since[tenant.tenant_id] = ts
    pen, at = Pen(stage, tenant, rng, "N17-onboarding"), ts + 0.45 * DAY
    office, admin, app = (tenant.office.host(4), tenant.office), tenant.admin(), stage.app(tenant, at)
    key = json.dumps(
        [f"[KeyIdentifier={tenant.key_id},KeyType=AsymmetricX509Cert,KeyUsage=Verify,DisplayName=CN=northgate]"]
    )
    target = ("ServicePrincipal", tenant.sp_id, app.name)
    pen.change(
        at, admin, office, "Add service principal", target, {"AppId": ("[]", json.dumps([app.app_id]))}, app.app_id
    )
    pen.change(
        at + 30, admin, office, "Add service principal credentials", target, {"KeyDescription": ("[]", key)}, app.app_id
    )
    pen.change(
        at + 60,
        admin,
        office,
        "Consent to application",
        target,
        {"ConsentAction.Permissions": ("", "full_access_as_app")},
        app.app_id,
    )
    ip, net, _ = stage.egress(rng, tenant, at)
    pen.app_signin(at + 3600, app, (ip, net))
    begin = at = at + 3605
    for box in tenant.scope:
        for _ in range(4):
            pen.read(at, box, (ip, net), pen.some(box, at, 40), app=app)
            at += jitter(rng, 130, 300)
    pen.job(begin - 6, at, "ews", app.thumbprint.lower(), "cert", tenant.sp_id, ip, items=480, name="initial")
    stage.harmless(
        "N17-onboarding",
        "a new customer is set up in a day",
        [tenant.tenant_id],
        ["L01", "L05", "M08", "T03"],
        principal_id=tenant.sp_id,
    )


def _upgrade(stage: Stage) -> None:
    rng = stage.rng("N4")
    first = stage.day(rng, 0.5, 0.85) + 0.3 * DAY
    members = [t for t in stage.tenants if t.services & {"m365", "onprem"}]
    stage.upgrade = {t.tenant_id: first + rng.random() * 3 * DAY for t in members}
    stage.harmless("N4-upgrade", "the vendor's client is upgraded in all tenants", names(members), ["T04"])


def _poller(stage: Stage) -> None:
    """One poller is away for hours, another breaks off and fetches its backlog twice."""
    rng = stage.rng("N5")
    posts = stage.of("pop3")
    away = rng.choice(posts)
    begin = stage.day(rng, 0.5, 0.93) + 0.3 * DAY
    stage.away[away.tenant_id] = [(begin, begin + jitter(rng, 5, 9) * 3600)]
    stage.harmless(
        "N7-outage",
        "a poller is away for hours, then fetches its backlog",
        [away.tenant_id],
        ["X01"],
        mailboxes=[away.journal],
    )
    stuck = rng.choice([t for t in posts if t is not away] or posts)
    moment = stage.day(rng, 0.5, 0.93) + 0.75 * DAY
    stage.stuck[stuck.tenant_id] = moment
    stage.away.setdefault(stuck.tenant_id, []).append((moment - 7 * 3600, moment))
    what = "a poller is restarted and fetches its backlog twice"
    stage.harmless("N5-restart", what, [stuck.tenant_id], ["X01", "X02"], mailboxes=[stuck.journal])


def _failover(stage: Stage) -> None:
    rng = stage.rng("N15")
    region, other = rng.sample(cast.REGIONS[:2], 2)
    begin = stage.day(rng, 0.5, 0.93) + jitter(rng, 0.1, 0.8) * DAY
    stage.dr = region, other, begin, begin + jitter(rng, 5, 30) * 3600
    members = [t for t in stage.tenants if t.region == region]
    place = Place((stage.vendor.egress[other][0],))
    what = "disaster recovery test: another region of the vendor stands in"
    stage.harmless("N15-failover", what, names(members), ["T01", "T03", "T07", "L01"], place)


def _rotation(stage: Stage) -> None:
    """The second certificate is replaced tenant by tenant; a few are late; then the old one is revoked."""
    rng, vendor = stage.rng("N14"), stage.vendor
    members = [t for t in stage.tenants if vendor.group.get(t.tenant_id) == 1 and t.tenant_id not in stage.since]
    for tenant_id in stage.since:
        vendor.group[tenant_id] = 0
    begin = stage.day(rng, 0.5, 0.62)
    span = max(3, round(0.15 * stage.cal.days))
    revoked = begin + span * DAY
    late = set(names(rng.sample(members, min(2, max(0, len(members) - 2)))))
    for tenant in members:
        moved = begin + (jitter(rng, 0.6, 0.95) if tenant.tenant_id in late else jitter(rng, 0.03, 0.33)) * span * DAY
        vendor.moves[tenant.tenant_id] = moved
        _rolled(stage, tenant, rng, moved, min(revoked, moved + DAY))
        if tenant.tenant_id in late:  # a job with the old certificate, from the vendor's own network
            ip, net, _ = stage.egress(rng, tenant, revoked)
            for _ in range(rng.randrange(1, 5)):
                old = stage.app(tenant, begin, cert=vendor.certs[1])
                at = revoked + jitter(rng, 0.1, 1.2) * DAY
                pen = Pen(stage, tenant, rng, "N14-rotation")
                pen.app_signin(at, old, (ip, net), code=700027)
                pen.job(
                    at - 1, at + 2, "ews", old.thumbprint.lower(), "cert", tenant.sp_id, ip, ok=False, name="protect"
                )
        done = "" if tenant.tenant_id in late and rng.random() < 0.5 else moved
        stage.rotations.append(
            [tenant.tenant_id, "ews", vendor.certs[1].thumbprint, vendor.certs[2].thumbprint, begin, done, revoked]
        )
    stage.revoked[vendor.certs[1].thumbprint] = vendor.certs[2].thumbprint, revoked
    what = "a certificate of the vendor is replaced as planned; some tenants are late"
    stage.harmless(
        "N14-rotation",
        what,
        names(members),
        ["E03", "E04", "T05", "L05", "T06"],
        credential_id=vendor.certs[2].thumbprint,
    )


def _rolled(stage: Stage, tenant: Tenant, rng: random.Random, added: float, removed: float) -> None:
    """The tenant's administrator adds the new key and removes the old one."""
    pen, admin, office = Pen(stage, tenant, rng, "N14-rotation"), tenant.admin(), (tenant.office.host(4), tenant.office)
    entry = "[KeyIdentifier={},KeyType=AsymmetricX509Cert,KeyUsage=Verify,DisplayName=CN=northgate]"
    old, new = entry.format(tenant.key_id), entry.format(stage.vendor.new_keys[tenant.tenant_id])
    target = ("ServicePrincipal", tenant.sp_id, "Northgate Connect for Microsoft 365")
    both = json.dumps([old, new])
    name = "{} service principal credentials"
    pen.change(
        added - 1800,
        admin,
        office,
        name.format("Add"),
        target,
        {"KeyDescription": (json.dumps([old]), both)},
        stage.vendor.app_id,
    )
    pen.change(
        removed,
        admin,
        office,
        name.format("Remove"),
        target,
        {"KeyDescription": (both, json.dumps([new]))},
        stage.vendor.app_id,
    )


def _collector(stage: Stage) -> None:
    """Hours that never reached the collection: one source of one tenant, and one source of a whole region."""
    rng = stage.rng("N12")
    held = {"m365": ("entra", "ual"), "onprem": ("ex01",), "ldap": ("ldap1",), "pop3": ("mx1",)}
    tenant = rng.choice(stage.of())
    sources = [source for service, found in held.items() if service in tenant.services for source in found] or ["mx1"]
    begin = stage.day(rng, 0.45, 0.9) + rng.choice(_BUSY) / 24 * DAY
    stage.gaps.append(Gap(tenant.tenant_id, rng.choice(sources), begin, begin + jitter(rng, 6, 40) * 3600))
    region, at = rng.choice(cast.REGIONS), stage.day(rng, 0.45, 0.9) + rng.choice(_BUSY) / 24 * DAY
    wide = [t.tenant_id for t in stage.tenants if t.region == region and "m365" in t.services]
    until = at + jitter(rng, 3, 7) * 3600
    stage.gaps += [Gap(tenant_id, "entra", at, until) for tenant_id in wide]
    first, last = min(begin, at), max(stage.gaps[0].end, until)
    what = "collector outages: hours of one source are missing"
    stage.harmless(
        "N12-collector",
        what,
        sorted({tenant.tenant_id, *wide}),
        ["X09", "L06", "T08", "X01"],
        first_seen=first,
        last_seen=last,
    )
