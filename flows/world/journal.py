"""Tenants whose journal is pulled by POP3: deliveries, the vendor's poller, and who else reads."""

import random
from collections import deque
from collections.abc import Iterator

from flows.world.emit_mail import LMTP_HEADERS, MailHost
from flows.world.incident import spy_times
from flows.world.model import DAY, Tenant, jitter
from flows.world.setting import Setting

SENDERS = ("orders", "noreply", "anna", "desk", "billing", "k.reed", "news")
OUTSIDE = ("harbour-parts.example", "brightline.example", "civic-press.example", "ovalbank.example", "mosswood.example")


def mail_host(setting: Setting, tenant: Tenant) -> MailHost:
    """The tenant's mail host with everything that its log holds, not yet in order."""
    rng = setting.rng("mail", tenant.tenant_id)
    mapped = tenant.mail_style == "iso" and tenant.poll_minutes == 15
    host = MailHost(rng, f"mx1.{tenant.domain}", tz=tenant.tz, style=tenant.mail_style, mapped=mapped)
    delivered = _deliveries(setting, tenant, host)
    _polls(setting, tenant, host, delivered)
    _others(setting, tenant, host)
    if "smtp" in tenant.services:
        _submissions(setting, tenant, host)
    return host


def _size(rng: random.Random) -> int:
    return int(min(24_000_000, 900 + rng.lognormvariate(9.6, 1.3)))


def _deliveries(setting: Setting, tenant: Tenant, host: MailHost) -> list[tuple[float, int]]:
    """Journal copies: (delivered at, bytes in the mailbox), by time. A short lmtp failure delays some of them."""
    rng, out = host.rng, list[tuple[float, int]]()
    drift = rng.uniform(-0.2, 0.25)
    down = setting.cal.t0 + (rng.randrange(5, 28) + 0.4) * DAY
    for number, begin, weight in setting.cal.each():
        mean = tenant.mail_per_day * weight * (1 + drift * number / setting.cal.days)
        for ts in setting.cal.day_times(rng, tenant.tz, begin, mean):
            size = _size(rng)
            until = down + 1500 if down <= ts < down + 1500 else 0.0
            done = host.message(
                ts,
                client=f"exch1.{tenant.domain}[10.20.0.11]",
                sender=f"journaling@{tenant.domain}",
                rcpt=tenant.journal,
                message_id=f"{rng.getrandbits(96):024x}@{tenant.domain}",
                size=size,
                defer_until=until,
            )
            out.append((done, size + LMTP_HEADERS))
    return sorted(out)


def _schedule(setting: Setting, tenant: Tenant, rng: random.Random) -> Iterator[float]:
    """When the poller comes; it is away in the outage and stuck before its restart."""
    away = [(a, b) for who, a, b in (setting.harmless.outage, setting.harmless.restart) if who is tenant]
    ts = setting.cal.t0 + rng.random() * tenant.poll_minutes * 60
    while ts < setting.cal.end:
        if not any(a <= ts < b for a, b in away):
            yield ts
        ts += tenant.poll_minutes * 60 + jitter(rng, -12, 12)


def _polls(setting: Setting, tenant: Tenant, host: MailHost, delivered: list[tuple[float, int]]) -> None:
    """The vendor's sessions and the second reader's, in order: what is delivered is read and deleted once."""
    rng, waiting, box = host.rng, deque(delivered), list[int]()
    restart = setting.harmless.restart[2] if setting.harmless.restart[0] is tenant else setting.cal.end
    visits = [(ts, False) for ts in _schedule(setting, tenant, rng)] + [(ts, True) for ts in spy_times(setting, tenant)]
    for ts, foreign in sorted(visits):
        while waiting and waiting[0][0] <= ts:
            box.append(waiting.popleft()[1])
        if foreign:
            _spy(setting, host, tenant, ts, (len(box), sum(box)))
            continue
        ip, _, label = setting.egress_ip(rng, tenant, ts)
        again = ts
        if ts >= restart:
            restart, label = setting.cal.end, "N5-restart"
            again = _broken_off(host, tenant, ts, box, read=len(box), ip=ip, label=label)
            setting.note(label, messages=len(box))
        elif box and rng.random() < 0.0025:
            again = _broken_off(host, tenant, ts, box, read=rng.randrange(len(box)), ip=ip, label=label)
        outage, _, back = setting.harmless.outage
        if outage is tenant and back <= ts < back + tenant.poll_minutes * 61:
            label = "N7-outage"
            setting.note(label, messages=len(box))
        held = len(box), sum(box)
        host.pop3(again, user=tenant.journal, ip=ip, retr=held, deleted=held[0], maildrop=held, label=label)
        box.clear()


def _broken_off(
    host: MailHost, tenant: Tenant, ts: float, box: list[int], *, read: int, ip: str, label: str | None
) -> float:
    """A session that ends without QUIT: read, but nothing deleted. Returns when the poller tries again."""
    held = len(box), sum(box)
    got = read, sum(box[:read])
    host.pop3(ts, user=tenant.journal, ip=ip, retr=got, deleted=0, maildrop=held, closed=True, label=label)
    return ts + 60 + 0.1 * read


def _spy(setting: Setting, host: MailHost, tenant: Tenant, ts: float, held: tuple[int, int]) -> None:
    attack = setting.attack
    if attack is None:
        return
    label = f"D1-journal-{tenant.tenant_id}"
    ip = attack.journal_net.host(attack.journal_host)
    with host.aside(setting.rng("spy", tenant.tenant_id, ts)):
        host.pop3(ts, user=tenant.journal, ip=ip, retr=held, deleted=0, maildrop=held, label=label)
    setting.note(label, sessions=1, messages=held[0], bytes=held[1])


def _inbound(host: MailHost, tenant: Tenant, ts: float, *, client: str, outside: str, sasl: str = "") -> None:
    rng = host.rng
    host.message(
        ts,
        client=client,
        sender=f"{rng.choice(SENDERS)}@{outside}",
        rcpt=rng.choice(tenant.users).address,
        message_id=f"{rng.getrandbits(96):024x}@{outside}",
        size=_size(rng),
        sasl=sasl,
    )


def _others(setting: Setting, tenant: Tenant, host: MailHost) -> None:
    """Ordinary mail and people, strangers at the door, and other programs."""
    rng = host.rng
    strangers = [net.host(rng.randrange(2, 250)) for net in rng.sample(setting.decoys, 6)]
    for _, begin, weight in setting.cal.each():
        for ts in setting.cal.day_times(rng, tenant.tz, begin, 12 * weight):
            outside = rng.choice(OUTSIDE)
            client = f"mail.{outside}[{rng.choice(setting.decoys).host(25)}]"
            _inbound(host, tenant, ts, client=client, outside=outside)
        for ts in setting.cal.day_times(rng, tenant.tz, begin, 10 * weight):
            user = rng.choice(tenant.users)
            host.imap(ts, user=user.address, ip=user.home.host(user.home_host) if rng.random() < 0.3 else "10.20.1.77")
        for _ in range(rng.randrange(2, 9)):
            host.stranger(begin + rng.random() * DAY, rng.choice(strangers))
        for _ in range(14):
            host.housekeeping(begin + rng.random() * DAY)


def _submissions(setting: Setting, tenant: Tenant, host: MailHost) -> None:
    """Mail that the gateway delivers with the tenant's route account."""
    rng, route = host.rng, f"gateway-route@{tenant.domain}"
    for _, begin, weight in setting.cal.each():
        for ts in setting.cal.day_times(rng, tenant.tz, begin, 16 * weight):
            ip, _, _ = setting.egress_ip(rng, tenant, ts)
            outside = rng.choice(OUTSIDE)
            client = f"out-{ip.rsplit('.', 1)[-1]}.{tenant.region}.northgate.example[{ip}]"
            _inbound(host, tenant, ts, client=client, outside=outside, sasl=route)
