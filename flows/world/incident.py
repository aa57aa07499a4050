"""What the attacker does: planted records of sign-in, reading and journal theft.

The certificate and the journal password are valid, and the application is the vendor's own: only the context is not.
"""

import random

from flows.world import emit_signin, emit_ual
from flows.world.emit_ual import Audit
from flows.world.model import DAY, Record, Tenant, jitter
from flows.world.setting import APP_NAME, STOLEN_CLIENT, Attack, Setting


def _ip(rng: random.Random, attack: Attack) -> str:
    return attack.net.host(rng.choice(attack.hosts))


def _sessions(setting: Setting, attack: Attack, tenant: Tenant) -> list[tuple[float, list[str], float]]:
    """Reading sessions: begin (UTC seconds), mailboxes in order, seconds between mailboxes."""
    rng, at = setting.rng("sessions", tenant.tenant_id), setting.cal.at
    boxes = attack.boxes[tenant.tenant_id]
    if tenant is attack.fast:
        burst = [(at(34) + 0.104 * DAY, boxes, 46.0)]
        again = [(at(day) + jitter(rng, 0.05, 0.2) * DAY, rng.sample(boxes, 3), 300.0) for day in (35, 36, 38)]
        return burst + again
    first = 34 if tenant is attack.slow[0] else 36
    days = range(first, 41 if first == 34 else 42)
    sessions, left = [], list(boxes)
    for number, day in enumerate(days):
        share = -(-len(left) // (len(days) - number))
        todays, left = left[:share], left[share:]
        sessions.append((at(day) + jitter(rng, 0.03, 0.3) * DAY, todays, 1500.0))
    return [session for session in sessions if session[1]]


def signins(setting: Setting, tenant: Tenant) -> list[Record]:
    """Service-principal sign-ins with the stolen certificate: a trial two days before, then one a session."""
    attack = setting.attack
    if attack is None or tenant not in attack.victims:
        return []
    rng, label = setting.rng("theft", tenant.tenant_id), f"A1-signin-{tenant.tenant_id}"
    order = attack.victims.index(tenant)
    trial = setting.cal.at(33) + (0.09 + 0.004 * order) * DAY
    begins = [
        trial,
        trial + jitter(rng, 60, 600),
        *(begin - jitter(rng, 20, 90) for begin, _, _ in _sessions(setting, attack, tenant)),
    ]
    out: list[Record] = []
    for ts in begins:
        line = emit_signin.by_application(
            rng, tenant, ts, app=(setting.app_id, APP_NAME), sp_id=tenant.sp_id, key_id=tenant.key_id,
            thumbprint=setting.thumbprint, ip=_ip(rng, attack), net=attack.net,
        )  # fmt: skip
        out.append((ts, line, label))
    return out


def readings(setting: Setting, tenant: Tenant) -> list[Audit]:
    """Mail read over EWS by the vendor's application from the attacker's network."""
    attack = setting.attack
    if attack is None or tenant not in attack.victims:
        return []
    rng, label = setting.rng("reading", tenant.tenant_id), f"A2-read-{tenant.tenant_id}"
    out: list[Audit] = []
    for begin, boxes, gap in _sessions(setting, attack, tenant):
        ip, ts = _ip(rng, attack), begin
        for box in boxes:
            for folder in ("Inbox", "Sent Items")[: 2 if rng.random() < 0.6 else 1]:
                items = rng.randrange(4, 26)
                at = ts + jitter(rng, 0, 12)
                body = emit_ual.mail_read(
                    rng, tenant, at, mailbox=box, ip=ip, client=STOLEN_CLIENT, items=items,
                    app_id=setting.app_id, sp_id=tenant.sp_id, folder=folder,
                )  # fmt: skip
                out.append((at, body, label))
                setting.note(label, items=items)
            ts += gap * jitter(rng, 0.8, 1.2)
    return out


def spy_times(setting: Setting, tenant: Tenant) -> list[float]:
    """When the second reader opens the journal mailbox: seven to ten times a day on four days."""
    attack = setting.attack
    if attack is None or tenant is not attack.journal:
        return []
    rng, out = setting.rng("spy", tenant.tenant_id), list[float]()
    for day in (36, 37, 38, 39):
        count = rng.randrange(7, 11)
        out += [setting.cal.at(day) + jitter(rng, 0.30, 0.72) * DAY for _ in range(count)]
    return sorted(ts for ts in out if ts < setting.cal.end)
