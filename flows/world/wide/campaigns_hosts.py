"""Campaigns at mail and directory hosts, and after a rotation: D journal, E route account, F directory, G return."""

from flows.world.model import DAY, Tenant, jitter
from flows.world.wide import attack
from flows.world.wide.habits import CLIENTS, FREEMAIL, base_dn, sync_dn
from flows.world.wide.pen import Pen
from flows.world.wide.places import Place, agent, client, stranger
from flows.world.wide.stage import Spy, Stage

FILTERS = (
    "(objectClass=*)", "(&(objectClass=person)(title=*))", "(mail=*)", "(proxyAddresses=*)",
    "(&(objectClass=person)(departmentNumber=1*))",
    "(memberOf=cn=board,ou=groups,{})", "(|(cn=a*)(cn=e*)(cn=i*)(cn=o*))",
)  # fmt: skip


def second_reader(stage: Stage) -> None:
    """D: somebody else fetches the journal: leaves or deletes, regularly or not, from outside or inside."""
    rng = stage.rng("campaign", "D")
    tenant, (first, days) = rng.choice(stage.of("pop3")), attack.span(stage, rng)
    from_inside, deletes = rng.random() < 0.25, rng.random() < 0.3
    place = stranger(rng, stage.pool)
    if from_inside:
        place = attack.inside(stage, rng, tenant)
    found = ["X01", "T08"] if from_inside else ["T01", "T02", "X01", "T08"]
    label = stage.step(
        "D1-journal", tenant, f"pw:{tenant.journal}", tenant.journal, found, mailboxes=[tenant.journal], paths="mx1"
    )
    length, times = min(days, rng.choice((3, 5, 9, 15))), list[float]()
    hours = rng.choice((0.0, 4.0, 6.0))
    for day in range(length):
        if hours:
            times += [first + day * DAY + hours * 3600 * n + jitter(rng, 0, 900) for n in range(int(24 / hours))]
        else:
            times += [first + day * DAY + jitter(rng, 0.3, 0.75) * DAY for _ in range(rng.randrange(2, 10))]
    stage.spies[tenant.tenant_id] = [Spy(tuple(sorted(times)), place, label, deletes)]


def carried_out(stage: Stage) -> None:
    """E: the route account carries mail out to free mail providers, in growing messages, in days or over weeks."""
    rng = stage.rng("campaign", "E")
    tenant, (first, days) = rng.choice(stage.of("smtp")), attack.span(stage, rng)
    place, how, route = stranger(rng, stage.pool), attack.manner(rng), f"gateway-route@{tenant.domain}"
    if rng.random() < 0.5:
        guess = Pen(
            stage,
            tenant,
            stage.rng("E", 0),
            # X05 judges what is sent, the guesses before are one of its signs; one account is no spray for L04.
            stage.step("E1-guess", tenant, f"pw:{route}", route, [], paths="mx1"),
        )
        at = first - jitter(rng, 1, 20) * 3600
        for number in range(rng.randrange(5, 9)):
            guess.refused(at + 40 * number, place.at(rng), user=route, service="smtp")
    label = stage.step("E2-mail", tenant, f"pw:{route}", route, ["X05", "T01", "T02", "T08"], paths="mx1")
    pen, total = Pen(stage, tenant, stage.rng("E", 1), label), rng.randrange(40, 90)
    starts = attack.begins(stage, rng, how, first, 3 if how.pace == "burst" else days) or [first]
    rcpts = [
        f"{rng.choice(('backup', 'm', 'office', 'store'))}{rng.randrange(10, 99)}@{rng.choice(FREEMAIL)}"
        for _ in range(rng.randrange(1, 5))
    ]
    sender, name = rng.choice(tenant.users).address, rng.choice(CLIENTS)
    each, size = -(-total // len(starts)), 40_000.0
    for start in starts:
        ts = start
        for _ in range(each):
            rcpt, where = rng.choice(rcpts), place.at(pen.rng)
            growing = int(min(size, 24e6) * rng.uniform(0.8, 1.2))
            pen.mail(
                ts,
                where,
                name=name,
                sender=sender,
                rcpt=rcpt,
                size=growing,
                sasl=route,
                relay=f"mx.{rcpt.split('@')[1]}[198.51.100.25]:25",
            )
            ts, size = ts + jitter(rng, 20, 400), size * (1 + 4.5 / total)


def directory_recon(stage: Stage) -> None:
    """F: the directory is read with the synchronisation's account; then mailboxes of those who were found."""
    rng = stage.rng("campaign", "F")
    tenant, (first, days) = rng.choice(stage.of("ldap")), attack.span(stage, rng)
    place, how, dn, base = stranger(rng, stage.pool), attack.manner(rng), sync_dn(tenant), base_dn(tenant)
    label = stage.step("F1-directory", tenant, f"pw:{dn}", dn, ["T01", "T02", "L03", "T08"], paths="ldap1")
    pen = Pen(stage, tenant, stage.rng("F", 1), label)
    ts = first + (how.hour + rng.random() * how.spread) * 3600
    for wanted in rng.sample(FILTERS, rng.randrange(2, 5)):
        large = len(tenant.users) + rng.randrange(10, 260)
        pen.ldap(ts, place.at(pen.rng), dn=dn, searches=[(base, wanted.format(base), large)])
        ts += jitter(rng, 30, 4000)
    later = place if rng.random() < 0.6 else stranger(rng, stage.pool)
    begin = ts - ts % DAY + rng.randrange(1, 4) * DAY
    boxes = attack.served(tenant, rng, rng.randrange(4, 14), chiefs=rng.random() < 0.5)
    found = ["T01", "T02", "T08", *(["L01"] if later is place else [])]
    if "m365" in tenant.services:
        _as_application(stage, tenant, "F2-read", later, how, boxes, begin, max(4, days - 4), found)
        return
    account, name = f"svc-northgate@{tenant.domain}", agent(rng)
    found.append("M05")
    label = stage.step("F2-read", tenant, f"pw:{account}", account, found, mailboxes=boxes, paths="ex01/**")
    reader, touched = Pen(stage, tenant, stage.rng("F", 2), label), set[str]()
    for _, visits in attack.walk(stage, rng, how, boxes, begin, max(4, days - 4)):
        where = later.at(reader.rng)
        for at, box, count, _ in visits:
            reader.ews(at, where, user=account, agent=name, action="FindItem", mailbox=box, ids=1)
            for part in range(0, count, 10):
                reader.ews(
                    at + 1 + part / 10,
                    where,
                    user=account,
                    agent=name,
                    action="GetItem",
                    mailbox=box,
                    ids=min(10, count - part),
                )
            touched.add(box)
    stage.steps[-1]["mailboxes"] = sorted(touched)


def _as_application(
    stage: Stage, tenant: Tenant, step: str, place: Place, how: attack.Manner, boxes: list[str], begin: float,
    days: int,
    detections: list[str], *, name: str = "", again: bool = False,
) -> None:  # fmt: skip
    """Mailboxes are read with the vendor's application and the certificate of the time."""
    rng = stage.rng("as", step, tenant.tenant_id)
    current = stage.app(tenant, begin)
    label = stage.step(
        step,
        tenant,
        current.thumbprint.lower(),
        tenant.sp_id,
        detections,
        app_id=current.app_id,
        mailboxes=boxes,
        paths="*",
    )
    pen, touched, name = (
        Pen(stage, tenant, stage.rng("read", step, tenant.tenant_id), label),
        set[str](),
        name or client(rng),
    )
    sessions = attack.walk(stage, rng, how, boxes, begin, days)
    if not again:
        stage.steps[-1]["detections"] = [*detections, *attack.spree(sessions, tenant)]
    for start, visits in sessions:
        where = place.at(pen.rng)
        pen.app_signin(start - jitter(rng, 10, 60), current, where)
        for at, box, count, folder in visits:
            pen.read(at, box, where, pen.some(box, at, count), app=current, client=name, folder=folder)
            touched.add(box)
    stage.steps[-1]["mailboxes"] = sorted(touched)


def come_back(stage: Stage) -> None:
    """G: before the rotation with the old certificate, after it in vain (or not), then with the new one."""
    rng, old, new = stage.rng("campaign", "G"), stage.vendor.certs[1], stage.vendor.certs[2]
    revoked = stage.revoked[old.thumbprint][1]
    able = [t for t in stage.of("m365") if t.tenant_id in stage.vendor.moves]
    tenant = rng.choice(able)
    moved = stage.vendor.moves[tenant.tenant_id]
    how, place, name = attack.manner(rng), stranger(rng, stage.pool), client(rng)
    started = stage.day(rng, 0.36, 0.46)
    boxes = attack.served(tenant, rng, rng.randrange(3, 12), chiefs=rng.random() < 0.4)
    before = min(6, max(1, int((moved - started) // DAY) - 1))
    quiet = attack.Manner("slow" if how.pace == "slow" else "steady", how.hour, how.spread, how.thorough)
    _as_application(stage, tenant, "G1-before", place, quiet, boxes, started, before, ["T01", "T02", "T08"], name=name)
    stage.compromised[old.thumbprint] = started - DAY, revoked
    works = rng.random() < 0.3  # the revocation did not take effect in this tenant
    label = stage.step(
        "G2-old", tenant, old.thumbprint, tenant.sp_id, ["E03"], app_id=stage.vendor.app_id, paths="entra"
    )
    pen, app = Pen(stage, tenant, stage.rng("G", 2), label), stage.app(tenant, started, cert=old)
    for _ in range(rng.randrange(1, 5)):
        pen.app_signin(revoked + jitter(rng, 0.1, 3.5) * DAY, app, place.at(pen.rng), code=0 if works else 700027)
    if rng.random() < 0.75:
        begin = max(revoked, moved) + rng.randrange(1, 7) * DAY
        begin = min(begin - begin % DAY, stage.cal.end - 3 * DAY)
        left = max(2, min(8, int((stage.cal.end - begin) // DAY) - 1))
        again = place if rng.random() < 0.7 else Place(place.nets, tuple(rng.sample(range(3, 250), 2)))
        assert stage.cert(tenant, begin) is new
        _as_application(
            stage, tenant, "G3-new", again, how, boxes, begin, left, ["E05", "T01", "T02", "T08"], name=name, again=True
        )
