"""Every day at customers' own hosts: Exchange, journal and route at the mail host, the directory."""

import random
from collections import deque

from flows.world.emit_mail import LMTP_HEADERS
from flows.world.model import DAY, Tenant, jitter
from flows.world.wide.habits import CLIENTS, FREEMAIL, OUTSIDE, base_dn, drift, place_of, sync_dn
from flows.world.wide.pen import Pen
from flows.world.wide.stage import Stage

PEOPLE_FILTER = "(&(objectClass=person)(mail=*))"
GROUP_FILTER = "(objectClass=groupOfNames)"
_SERVICE_AGENT = "NorthgateConnect/{} (ExchangeServicesClient/15.00.0913.015)"
_DESK = ("MacOutlook/16.44.20121301", "Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.13530; Pro)")
_ACTIONS = ("GetFolder", "GetItem", "FindItem", "SyncFolderItems", "GetUserAvailability")


def play(stage: Stage) -> None:
    """All routine of all tenants' hosts."""
    for tenant in stage.tenants:
        if "onprem" in tenant.services:
            _exchange(stage, tenant, stage.rng("exchange", tenant.tenant_id))
        if tenant.journal:
            _journal(stage, tenant, stage.rng("journal", tenant.tenant_id))
        if "smtp" in tenant.services:
            _route(stage, tenant, stage.rng("route", tenant.tenant_id))
            _senders(stage, tenant, stage.rng("senders", tenant.tenant_id))
        if "ldap" in tenant.services:
            _sync(stage, tenant, stage.rng("ldap", tenant.tenant_id))
        if stage.logs[tenant.tenant_id].mail:
            _mail_host(stage, tenant, stage.rng("mx", tenant.tenant_id))


def _exchange(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """The vendor's connector every six hours over three mailboxes, people, and the server's own probe."""
    account, credential = f"svc-northgate@{tenant.domain}", f"pw:svc-northgate@{tenant.domain}"
    probe = f"healthmailbox{rng.getrandbits(112):028x}@{tenant.domain}"
    for _, begin, weight in stage.cal.each():
        for hour in range(0, 24, 6):
            ts = begin + hour * 3600 + 900 + jitter(rng, 0, 240)
            ip, net, label = stage.egress(rng, tenant, ts)
            upgraded = ts >= stage.upgrade.get(tenant.tenant_id, stage.cal.end)
            pen = Pen(stage, tenant, rng, label or ("N4-upgrade" if upgraded else None))
            agent, at = _SERVICE_AGENT.format("6.5.0" if upgraded else "6.4.2"), ts
            for box in tenant.scope:
                for action in ("SyncFolderItems", "GetItem")[: 2 if rng.random() < 0.6 else 1]:
                    ids = rng.randrange(1, 7) if action == "GetItem" else 1
                    pen.ews(at, (ip, net), user=account, agent=agent, action=action, mailbox=box, ids=ids)
                    at += jitter(rng, 0.3, 4)
            pen.job(ts - 2, at + 1, "ews", credential, "password", account, ip, items=9, name="protect")
        pen = Pen(stage, tenant, rng)
        pen.ews(
            begin + 7.4,
            ("::1", tenant.office),
            user=probe,
            agent="Ews_AM_Probe/Local (ExchangeServicesClient/15.01.2375.007)",
            action="GetFolder",
            mailbox=probe,
            ids=1,
            auth="Logon",
        )
        for ts in stage.cal.day_times(rng, tenant.tz, begin, 4 * weight):
            user = rng.choices(tenant.users, [min(u.activity, 6) for u in tenant.users])[0]
            where = (
                place_of(stage, rng, tenant, user)
                if rng.random() < 0.3
                else (f"10.30.1.{user.home_host}", tenant.office)
            )
            pen.ews(
                ts,
                where,
                user=user.address,
                agent=_DESK[user.home_host % 2],
                action=rng.choice(_ACTIONS),
                mailbox=user.address,
                ids=rng.randrange(1, 4),
                auth="Negotiate",
                status=200 if rng.random() < 0.99 else 500,
            )


def _journal(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """Journal copies arrive; the vendor's poller reads and deletes them; who else reads comes from `stage.spies`."""
    pen, factors, delivered = Pen(stage, tenant, rng), drift(stage, rng), list[tuple[float, int]]()
    exchange = ("10.20.0.11", tenant.office)
    down = stage.day(rng, 0.1, 0.4) + 0.4 * DAY
    for number, begin, weight in stage.cal.each():
        for ts in stage.cal.day_times(rng, tenant.tz, begin, tenant.mail_per_day * weight * factors[number]):
            size = int(min(24e6, 900 + rng.lognormvariate(9.6, 1.3)))
            until = down + 1500 if down <= ts < down + 1500 else 0.0
            if stage.begin(tenant) <= ts < stage.cal.end - 1200:
                done = pen.mail(
                    ts,
                    exchange,
                    name=f"exch1.{tenant.domain}",
                    sender=f"journaling@{tenant.domain}",
                    rcpt=tenant.journal,
                    size=size,
                    defer_until=until,
                )
                delivered.append((done, size + LMTP_HEADERS))
    polls, ts = list[float](), stage.begin(tenant) + rng.random() * tenant.poll_minutes * 60
    while ts < stage.cal.end:
        if not any(a <= ts < b for a, b in stage.away.get(tenant.tenant_id, [])):
            polls.append(ts)
        ts += tenant.poll_minutes * 60 + jitter(rng, -12, 12)
    _pull(stage, tenant, rng, deque(sorted(delivered)), polls)


def _pull(
    stage: Stage, tenant: Tenant, rng: random.Random, waiting: deque[tuple[float, int]], polls: list[float]
) -> None:
    box, credential = list[int](), f"pw:{tenant.journal}"
    stuck = stage.stuck.get(tenant.tenant_id, stage.cal.end)
    back = [until for _, until in stage.away.get(tenant.tenant_id, [])]
    spies = [(ts, number) for number, spy in enumerate(stage.spies.get(tenant.tenant_id, [])) for ts in spy.times]
    for ts, number in sorted([*((ts, -1) for ts in polls), *spies]):
        while waiting and waiting[0][0] <= ts:
            box.append(waiting.popleft()[1])
        held = len(box), sum(box)
        if number >= 0:
            spy = stage.spies[tenant.tenant_id][number]
            spy_pen = Pen(stage, tenant, stage.rng("spy", tenant.tenant_id, ts), spy.label)
            spy_pen.pop3(
                ts,
                spy.place.at(spy_pen.rng),
                user=tenant.journal,
                retr=held,
                deleted=held[0] if spy.deletes else 0,
                held=held,
            )
            if spy.deletes:
                box.clear()
            continue
        ip, net, label = stage.egress(rng, tenant, ts)
        late = next((b for b in back if 0 <= ts - b < tenant.poll_minutes * 60), None)
        pen, at = Pen(stage, tenant, rng, "N7-outage" if late is not None else label), ts
        if ts >= stuck or (box and rng.random() < 0.0025):
            if ts >= stuck:
                stuck, pen.label = stage.cal.end, "N5-restart"
            pen.pop3(ts, (ip, net), user=tenant.journal, retr=held, deleted=0, held=held, closed=True)
            pen.job(
                ts - 2,
                ts + 20,
                "pop3",
                credential,
                "password",
                tenant.journal,
                ip,
                items=held[0],
                ok=False,
                name="journal",
            )
            at = ts + 60 + 0.1 * len(box)
        pen.pop3(at, (ip, net), user=tenant.journal, retr=held, deleted=held[0], held=held)
        pen.job(
            at - 2,
            at + 3 + 0.08 * held[0],
            "pop3",
            credential,
            "password",
            tenant.journal,
            ip,
            items=held[0],
            name="journal",
        )
        box.clear()


def _route(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """Mail that the gateway delivers with the tenant's route account."""
    route, factors = f"gateway-route@{tenant.domain}", drift(stage, rng)
    for number, begin, weight in stage.cal.each():
        for ts in stage.cal.day_times(rng, tenant.tz, begin, 7 * weight * factors[number]):
            ip, net, label = stage.egress(rng, tenant, ts)
            outside, pen = rng.choice(OUTSIDE), Pen(stage, tenant, rng, label)
            name = f"out-{ip.rsplit('.', 1)[-1]}.{tenant.region}.northgate.example"
            rcpt, size = rng.choice(tenant.users).address, int(min(9e6, 900 + rng.lognormvariate(9.6, 1.3)))
            pen.mail(
                ts,
                (ip, net),
                name=name,
                sender=f"{rng.choice(('orders', 'desk', 'anna'))}@{outside}",
                rcpt=rcpt,
                size=size,
                sasl=route,
            )
            pen.job(ts - 1, ts + 2, "smtp", f"pw:{route}", "password", route, ip, items=1, name="deliver")


def _senders(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """People send mail from wherever they are, with their own accounts, now and then to free mail providers."""
    for _, begin, weight in stage.cal.each():
        for ts in stage.cal.day_times(rng, tenant.tz, begin, 1.2 * weight):
            user, outside = rng.choice(tenant.users), rng.choice(OUTSIDE + FREEMAIL)
            rcpt, size = (
                f"{rng.choice(('anna', 'm.k', 'office'))}@{outside}",
                int(min(2e7, 2_000 + rng.lognormvariate(10.5, 1.5))),
            )
            Pen(stage, tenant, rng).mail(
                ts, place_of(stage, rng, tenant, user), name=rng.choice(CLIENTS), sender=user.address, rcpt=rcpt,
                size=size,
                sasl=user.address, relay=f"mx.{outside}[198.51.100.25]:25",
            )  # fmt: skip


def _sync(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """The vendor reads the directory every hour; the company's own phone book asks now and then."""
    base, dn, people = base_dn(tenant), sync_dn(tenant), len(tenant.users) + len(tenant.shared)
    phase = jitter(rng, 0, 3000)
    for number, begin, weight in stage.cal.each():
        for hour in range(24):
            ts = begin + hour * 3600 + phase + jitter(rng, 0, 20)
            ip, net, label = stage.egress(rng, tenant, ts)
            pen, groups = Pen(stage, tenant, rng, label), [(base, GROUP_FILTER, 7)] if hour == 2 else []
            pen.ldap(ts, (ip, net), dn=dn, searches=[(base, PEOPLE_FILTER, people + number // 20), *groups])
            pen.job(ts - 1, ts + 4, "ldap", f"pw:{dn}", "password", dn, ip, items=people, name="directory")
        for ts in stage.cal.day_times(rng, tenant.tz, begin, 2 * weight):
            name = rng.choice(tenant.users).name.split()[0].lower()
            search = (f"ou=people,{base}", f"(&(objectClass=person)(cn={name}*))", rng.randrange(0, 4))
            Pen(stage, tenant, rng).ldap(
                ts, ("10.20.0.31", tenant.office), dn=f"cn=phonebook,ou=services,{base}", searches=[search]
            )
    if rng.random() < 0.5:
        Pen(stage, tenant, rng).directory().restarts.append(stage.day(rng, 0.1, 0.9) + 0.13 * DAY)


def _mail_host(stage: Stage, tenant: Tenant, rng: random.Random) -> None:
    """People's IMAP, strangers at the door, and other programs."""
    pen, strangers = Pen(stage, tenant, rng), [net.host(rng.randrange(2, 250)) for net in rng.sample(stage.roaming, 4)]
    host = pen.host()
    for _, begin, weight in stage.cal.each():
        if begin < stage.begin(tenant):
            continue
        with host.voice(rng, None):
            for ts in stage.cal.day_times(rng, tenant.tz, begin, 2 * weight):
                user = rng.choice(tenant.users)
                ip = user.home.host(user.home_host) if rng.random() < 0.3 else "10.20.1.77"
                host.imap(ts, user=user.address, ip=ip)
            for _ in range(rng.randrange(0, 4)):
                host.stranger(begin + rng.random() * DAY, rng.choice(strangers))
            for _ in range(3):
                host.housekeeping(begin + rng.random() * DAY)
