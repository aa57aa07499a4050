"""Tenants on Microsoft 365: sign-ins and unified audit of the vendor, a backup, people, administrators."""

import json
import random

from flows.world import emit_signin, emit_ual, incident
from flows.world.emit_ual import Audit
from flows.world.model import DAY, Net, Record, Tenant, User, guid, jitter, poisson
from flows.world.setting import APP_NAME, BACKUP_APP, BACKUP_CLIENT, Setting

OWNER_CLIENTS = (
    ("Client=MSExchangeRPC", emit_ual.OUTLOOK),
    ("Client=OWA;Action=ViaProxy", emit_ual.EXCHANGE_ONLINE),
    ("Client=OutlookService;Outlook-iOS/2.0;", emit_ual.OUTLOOK_MOBILE),
)


def signins(setting: Setting, tenant: Tenant) -> list[Record]:
    """The tenant's Entra sign-ins, by time."""
    rng = setting.rng("signin", tenant.tenant_id)
    out = [*incident.signins(setting, tenant), *_vendor_signins(setting, tenant, rng)]
    if tenant.tenant_id in setting.backup_ids:
        out += _backup_signins(setting, tenant, rng)
    for user, ts, ip, net, label in _presence(setting, tenant, "entra", 0.18):
        failed = 50126 if label is None and rng.random() < 0.02 else 0
        line = emit_signin.by_user(
            rng, tenant, ts, user=user, ip=ip, net=net, interactive=rng.random() < 0.3, code=failed
        )
        out.append((ts, line, label))
    return sorted(out, key=lambda record: record[0])


def audits(setting: Setting, tenant: Tenant) -> list[Audit]:
    """The tenant's unified audit records, by time."""
    rng = setting.rng("audit", tenant.tenant_id)
    out = [*incident.readings(setting, tenant), *_vendor_reads(setting, tenant, rng), *_admin(setting, tenant, rng)]
    if tenant.tenant_id in setting.backup_ids:
        out += _backup_reads(setting, tenant, rng)
    for user, ts, ip, _, label in _presence(setting, tenant, "audit", 0.65):
        ok = label is not None or rng.random() < 0.98
        if rng.random() < 0.35:
            out.append((ts, emit_ual.logged_in(rng, tenant, ts, user=user, ip=ip, agent=user.agent, ok=ok), label))
            continue
        client, app = OWNER_CLIENTS[(user.home_host + (rng.random() < 0.2)) % 3]
        body = emit_ual.mail_read(
            rng,
            tenant,
            ts,
            mailbox=user.address,
            ip=ip,
            client=client,
            items=rng.randrange(1, 4),
            app_id=app,
            user=user,
        )
        out.append((ts, body, label))
    return sorted(out, key=lambda audit: audit[0])


def _presence(
    setting: Setting, tenant: Tenant, stream: str, mean: float
) -> list[tuple[User, float, str, Net, str | None]]:
    """Moments at which people are seen, with address and network; the traveller and the service firm among them."""
    rng = setting.rng("people", stream, tenant.tenant_id)
    out = list[tuple[User, float, str, Net, str | None]]()
    away_tenant, away, away_net, away_from, away_to = setting.harmless.traveller
    total = mean * len(tenant.users)
    weights = [min(user.activity, 6) for user in tenant.users]
    for _, begin, weight in setting.cal.each():
        for ts in setting.cal.day_times(rng, tenant.tz, begin, total * weight):
            user = rng.choices(tenant.users, weights)[0]
            if tenant is away_tenant and user is away and away_from <= ts < away_to:
                continue
            out.append((user, ts, *_place(setting, rng, tenant, user), None))
    if tenant is away_tenant:
        ts = away_from + jitter(rng, 0, 3600)
        while ts < away_to:
            out.append((away, ts, away_net.host(away.home_host), away_net, "N2-traveller"))
            ts += jitter(rng, 0.05, 0.5) * DAY
    firm = setting.harmless.msp.get(tenant.tenant_id)
    if firm:
        ts = setting.harmless.msp_from + jitter(rng, 0, 7200)
        while ts < min(setting.cal.end, setting.harmless.msp_from + 6 * DAY):
            out.append((firm, ts, setting.harmless.msp_net.host(20), setting.harmless.msp_net, "N3-msp"))
            ts += jitter(rng, 0.15, 0.7) * DAY
    return out


def _place(setting: Setting, rng: random.Random, tenant: Tenant, user: User) -> tuple[str, Net]:
    pick = rng.random()
    if pick < 0.62:
        return tenant.office.host(rng.randrange(4, 6)), tenant.office
    if pick < 0.98:
        return user.home.host(user.home_host), user.home
    net = rng.choice(setting.roaming)
    return net.host(rng.randrange(2, 250)), net


def _vendor_signins(setting: Setting, tenant: Tenant, rng: random.Random) -> list[Record]:
    """The vendor's application with the shared certificate, a token every 30 to 70 minutes."""
    out, ts = list[Record](), setting.cal.t0 + rng.random() * 1800
    while ts < setting.cal.end:
        ip, net, label = setting.egress_ip(rng, tenant, ts, v6=True)
        line = emit_signin.by_application(
            rng, tenant, ts, app=(setting.app_id, APP_NAME), sp_id=tenant.sp_id, key_id=tenant.key_id,
            thumbprint=setting.thumbprint, ip=ip, net=net,
        )  # fmt: skip
        out.append((ts, line, label))
        ts += jitter(rng, 1800, 4200)
    return out


def _backup_signins(setting: Setting, tenant: Tenant, rng: random.Random) -> list[Record]:
    sp_id, key_id = setting.backup_ids[tenant.tenant_id]
    out = list[Record]()
    for _, begin, _ in setting.cal.each():
        ts = begin + 3000 + jitter(rng, 0, 300)
        line = emit_signin.by_application(
            rng, tenant, ts, app=(setting.backup_app_id, BACKUP_APP), sp_id=sp_id, key_id=key_id, thumbprint="",
            ip=setting.backup_net.host(40), net=setting.backup_net,
        )  # fmt: skip
        out.append((ts, line, "N6-backup"))
    return out


def _vendor_reads(setting: Setting, tenant: Tenant, rng: random.Random) -> list[Audit]:
    """Two jobs a day over the same five mailboxes."""
    out = list[Audit]()
    for _, begin, weight in setting.cal.each():
        for hour in (6.5, 18.5):
            ts = begin + hour * 3600 + jitter(rng, 0, 600)
            ip, _, label = setting.egress_ip(rng, tenant, ts, v6=True)
            for box in tenant.scope:
                ts += jitter(rng, 15, 70)
                items = 1 + poisson(rng, 3 * weight)
                client = setting.client(tenant, ts)
                body = emit_ual.mail_read(
                    rng,
                    tenant,
                    ts,
                    mailbox=box,
                    ip=ip,
                    client=client,
                    items=items,
                    app_id=setting.app_id,
                    sp_id=tenant.sp_id,
                )
                upgraded = "N4-upgrade" if "/6.5.0" in client else None
                out.append((ts, body, label or upgraded))
    return out


def _backup_reads(setting: Setting, tenant: Tenant, rng: random.Random) -> list[Audit]:
    """Every mailbox, every night, by the backup's own application."""
    sp_id = setting.backup_ids[tenant.tenant_id][0]
    boxes = [user.address for user in tenant.users] + tenant.shared
    out = list[Audit]()
    for _, begin, _ in setting.cal.each():
        ts = begin + 3600 + jitter(rng, 0, 300)
        for box in boxes:
            ts += jitter(rng, 8, 25)
            body = emit_ual.mail_read(
                rng,
                tenant,
                ts,
                mailbox=box,
                ip=setting.backup_net.host(40),
                client=BACKUP_CLIENT,
                items=1 + poisson(rng, 2.5),
                app_id=setting.backup_app_id,
                sp_id=sp_id,
            )
            out.append((ts, body, "N6-backup"))
    return out


def _admin(setting: Setting, tenant: Tenant, rng: random.Random) -> list[Audit]:
    """Control-plane changes of every day, and the service firm's account being made."""
    out, admin = list[Audit](), tenant.admin()
    for _, begin, weight in setting.cal.each():
        for ts in setting.cal.day_times(rng, tenant.tz, begin, 1.2 * weight):
            out.append((ts, _change(rng, tenant, ts, admin), None))
    firm = setting.harmless.msp.get(tenant.tenant_id)
    if firm:
        ts = setting.harmless.msp_from - jitter(rng, 3600, 7200)
        changes = {"AccountEnabled": ("[]", "[\r\n  true\r\n]"), "DisplayName": ("[]", json.dumps([firm.name]))}
        body = emit_ual.directory(
            rng, tenant, ts, user=admin, operation="Add user.", target=firm.address, changes=changes
        )
        out.append((ts, body, "N3-msp"))
    return out


def _change(rng: random.Random, tenant: Tenant, ts: float, admin: User) -> dict[str, object]:
    """One change: a mailbox setting, a rule, a licence, a group, or an application's key."""
    user, pick = rng.choice(tenant.users), rng.random()
    office = tenant.office.host(4)
    if pick < 0.3:
        parameters = {"Identity": user.address, "RetentionPolicy": "Default MRM Policy"}
        return emit_ual.cmdlet(
            rng, tenant, ts, user=admin, ip=office, operation="Set-Mailbox", target=user.address, parameters=parameters
        )
    if pick < 0.55:
        parameters = {"Name": "Move newsletters", "SubjectContainsWords": "newsletter", "MoveToFolder": "Reading"}
        target = f"{user.address}\\Move newsletters"
        return emit_ual.cmdlet(
            rng, tenant, ts, user=user, ip=office, operation="New-InboxRule", target=target, parameters=parameters
        )
    if pick < 0.95:
        operation, name = rng.choice(
            (
                ("Update user.", "Department"),
                ("Change user license.", "AssignedLicense"),
                ("Add member to group.", "Group.DisplayName"),
            )
        )
        changes = {name: ("[]", json.dumps([rng.choice(("Sales", "Projects", "ENTERPRISEPACK"))]))}
        return emit_ual.directory(
            rng, tenant, ts, user=admin, operation=operation, target=user.address, changes=changes
        )
    old, new = guid(rng), guid(rng)
    entry = "[KeyIdentifier={},KeyType=Password,KeyUsage=Verify,DisplayName=intranet]"
    changes = {"KeyDescription": (json.dumps([entry.format(old)]), json.dumps([entry.format(old), entry.format(new)]))}
    operation = "Update application \u2013 Certificates and secrets management "
    return emit_ual.directory(
        rng, tenant, ts, user=admin, operation=operation, target=f"Application_{guid(rng)}", changes=changes
    )
