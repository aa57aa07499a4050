"""Tenants with Exchange on their own premises: the vendor's service account, people, and health probes."""

import random

from flows.world import emit_exchange
from flows.world.emit_exchange import Request
from flows.world.model import DAY, Record, Tenant, User, jitter
from flows.world.setting import Setting

VENDOR_AGENT = "NorthgateConnect/{} (ExchangeServicesClient/15.00.0913.015)"
AGENTS = (
    "MacOutlook/16.44.20121301 (Intelx64 Mac OS X Version 11.1.0 (Build 20C69))",
    "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.13530; Pro)",
    "OC/16.0.5095.1000 (Skype for Business)",
)
ACTIONS = (
    "GetFolder",
    "GetItem",
    "FindItem",
    "SyncFolderItems",
    "GetUserAvailability",
    "GetUserOofSettings",
    "GetEvents",
)

Rows = tuple[list[Record], list[Record]]  # EWS log, HttpProxy log


def exchange_rows(setting: Setting, tenant: Tenant) -> Rows:
    """Both logs of the tenant's server, by time."""
    rng = setting.rng("exchange", tenant.tenant_id)
    host = f"ex01.{tenant.domain}"
    requests = [
        *_vendor(setting, tenant, rng, host),
        *_people(setting, tenant, rng, host),
        *_probes(setting, tenant, rng, host),
    ]
    ews, proxy = list[Record](), list[Record]()
    for request, label in requests:
        back, front = emit_exchange.rows(rng, request)
        ews.append((request.ts, back, label))
        proxy.append((request.ts, front, label))
        if request.auth == "NTLM" and rng.random() < 0.1:
            ts = request.ts - 0.05
            row = emit_exchange.unauthenticated(
                rng, ts, ip=request.ip, agent=request.agent, host=host, organisation=request.organisation
            )
            proxy.append((ts, row, None))
    for _, begin, _ in setting.cal.each():
        for _ in range(6):
            ts = begin + rng.random() * DAY
            ews.append((ts, emit_exchange.heartbeat(rng, ts, host), None))
    return sorted(ews, key=lambda r: r[0]), sorted(proxy, key=lambda r: r[0])


def _vendor(setting: Setting, tenant: Tenant, rng: random.Random, host: str) -> list[tuple[Request, str | None]]:
    """The connector: every two hours over three mailboxes, as the service account with impersonation."""
    out = list[tuple[Request, str | None]]()
    account = f"{tenant.tenant_id.upper()}\\svc-northgate"
    auth = "Basic" if tenant.region == "emea" else "NTLM"
    ts = setting.cal.t0 + rng.random() * 4000
    while ts < setting.cal.end - 120:
        ip, _, label = setting.egress_ip(rng, tenant, ts)
        version = "6.5.0" if ts >= setting.harmless.upgrade[tenant.tenant_id] else "6.4.2"
        at = ts
        for box in tenant.scope[:3]:
            for action in ("SyncFolderItems", "GetItem")[: 2 if rng.random() < 0.6 else 1]:
                ids = rng.randrange(1, 9) if action == "GetItem" else 1
                out.append((Request(
                    ts=at, user=f"svc-northgate@{tenant.domain}", account=account, auth=auth, ip=ip,
                    agent=VENDOR_AGENT.format(version), action=action, mailbox=box, ids=ids, bytes_in=1400 + 120 * ids,
                    bytes_out=2_000 + int(rng.lognormvariate(9, 1)) * ids, organisation=tenant.domain, host=host,
                ), label))  # fmt: skip
                at += jitter(rng, 0.3, 4)
        ts += 7200 + jitter(rng, -240, 240)
    return out


def _people(setting: Setting, tenant: Tenant, rng: random.Random, host: str) -> list[tuple[Request, str | None]]:
    out = list[tuple[Request, str | None]]()
    people = tenant.users
    weights = [min(user.activity, 6) for user in people]
    for _, begin, weight in setting.cal.each():
        for ts in setting.cal.day_times(rng, tenant.tz, begin, 22 * weight):
            user = rng.choices(people, weights)[0]
            out.append((_request(rng, tenant, user, ts, host), None))
    return out


def _request(rng: random.Random, tenant: Tenant, user: User, ts: float, host: str) -> Request:
    at_home = rng.random() < 0.2
    name = user.address.split("@", 1)[0]
    ids = rng.randrange(1, 5)
    return Request(
        ts=ts,
        user=user.address,
        account=f"{tenant.tenant_id.upper()}\\{name}",
        auth="Negotiate" if rng.random() < 0.7 else "NTLM",
        ip=user.home.host(user.home_host) if at_home else f"10.30.{user.home_host % 4}.{user.home_host}",
        agent=AGENTS[user.home_host % len(AGENTS)],
        action=rng.choice(ACTIONS),
        mailbox=user.address,
        ids=ids,
        bytes_in=900 + 100 * ids,
        bytes_out=800 + int(rng.lognormvariate(8.5, 1.2)),
        organisation=tenant.domain,
        host=host,
        status=200 if rng.random() < 0.99 else 500,
    )


def _probes(setting: Setting, tenant: Tenant, rng: random.Random, host: str) -> list[tuple[Request, str | None]]:
    """The server's own health mailbox, every three hours."""
    name = f"HealthMailbox{rng.getrandbits(112):028x}"
    box = f"{name}@{tenant.domain}"
    out = list[tuple[Request, str | None]]()
    ts = setting.cal.t0 + 6.4
    while ts < setting.cal.end:
        out.append((Request(
            ts=ts, user=box, account=f"{tenant.tenant_id.upper()}\\{name}", auth="Logon", ip="::1",
            agent="Ews_AM_Probe/Local (ExchangeServicesClient/15.01.2375.007)", action="GetFolder", mailbox=box, ids=1,
            bytes_in=666, bytes_out=1400, organisation=tenant.domain, host=host,
        ), None))  # fmt: skip
        ts += 10_800 + jitter(rng, -2, 2)
    return out
