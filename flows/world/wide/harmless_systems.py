"""Harmless events in a customer's systems: moves, tests, new applications, each a near miss of a detection."""

from flows.world.model import DAY, jitter
from flows.world.wide import cast
from flows.world.wide.habits import FREEMAIL, base_dn, sync_dn
from flows.world.wide.pen import Pen
from flows.world.wide.places import APP_NAMES, Place, client, stranger
from flows.world.wide.projects import GRAPH, allow, consent, hour_of
from flows.world.wide.routine import working_day
from flows.world.wide.stage import Stage


def play(stage: Stage) -> None:
    """All of them, at places and times that follow from the seed."""
    for event in (_migration, _pentest, _newsletter, _new_app, _support, _sync_change):
        event(stage)
    what = "a backup reads every mailbox every night"
    stage.harmless("N6-backup", what, list(stage.backups), ["M01", "X03"], stage.backup_place)


def _migration(stage: Stage) -> None:
    """A mover reads all mailboxes of a tenant, in order, with a change record."""
    rng = stage.rng("N8")
    tenant, place = rng.choice(stage.of("m365")), stranger(rng, stage.pool, ("cloud", "hosting"), ("few", "many"))
    app = cast.registered(rng, "Mailbox Mover", client=client(rng))
    begin = hour_of(stage, rng, tenant, 0.5, 0.85)
    consent(
        stage, tenant, rng, app, begin - jitter(rng, 0.5, 2.5) * DAY, scope="full_access_as_app", label="N8-migration"
    )
    pen, ts = Pen(stage, tenant, rng, "N8-migration"), begin + 3600
    boxes = [user.address for user in tenant.users] + tenant.shared
    for number, box in enumerate(boxes):
        if number % 8 == 0:
            pen.app_signin(ts - 15, app, place.at(rng))
        where = place.at(rng)
        total = stage.newest(tenant, box, ts)
        chunk = 60
        for start in range(0, min(total, 420), chunk):
            pen.read(
                ts,
                box,
                where,
                range(start, min(total, start + chunk)),
                app=app,
                folder=rng.choice(("Inbox", "Sent Items")),
            )
            ts += jitter(rng, 125, 400)
        ts += jitter(rng, 100, 7000)
    allow(
        stage, tenant, place, app.sp_id, "signin;get_item", begin - DAY, ts + 3 * DAY, "mailbox migration, change 4711"
    )
    stage.harmless(
        "N8-migration",
        "all mailboxes of a tenant are moved",
        [tenant.tenant_id],
        ["M01", "M02", "M03", "M08", "T05", "L05", "X03"],
        place,
        principal_id=app.sp_id,
        mailboxes=boxes,
    )


def _pentest(stage: Stage) -> None:
    """A test with a declared window: guesses at every door, a few of which open."""
    rng = stage.rng("N10")
    able = [t for t in stage.of() if len(t.services) > 1]
    tenant, place = rng.choice(able), stranger(rng, stage.pool, ("hosting", "cloud"), ("one", "few"))
    begin = hour_of(stage, rng, tenant)
    pen, ts = Pen(stage, tenant, rng, "N10-pentest"), begin
    for user in tenant.users:
        ts += jitter(rng, 5, 60)
        if "m365" in tenant.services:
            pen.user_signin(ts, user, place.at(rng), code=50126)
        if pen.logs.mail:
            pen.refused(ts + 3, place.at(rng), user=user.address, service=rng.choice(("smtp", "pop3")))
        if pen.logs.ldap and rng.random() < 0.4:
            pen.ldap(
                ts + 6, place.at(rng), dn=f"uid={user.address.split('@')[0]},ou=people,{base_dn(tenant)}", error=49
            )
    tester = rng.choice(tenant.users)
    if "m365" in tenant.services:
        working_day(stage, tenant, rng, tester, ts + 900, place.at(rng), "N10-pentest")
    if pen.logs.ldap:
        pen.ldap(ts + 1500, place.at(rng), dn=f"uid={tester.address.split('@')[0]},ou=people,{base_dn(tenant)}",
                 searches=[(base_dn(tenant), "(objectClass=*)", len(tenant.users) + 30)])  # fmt: skip
    # A rule names whom it is about: accounts by address, and by their place in the directory.
    for who in (f"*@{tenant.domain}", f"uid=*,ou=people,{base_dn(tenant)}"):
        allow(
            stage,
            tenant,
            place,
            who,
            "signin;auth;bind;search;get_item",
            begin - 3600,
            begin + 2 * DAY,
            "penetration test, statement of work 12",
        )
    stage.harmless(
        "N10-pentest",
        "a penetration test in its declared window",
        [tenant.tenant_id],
        ["L01", "L03", "L04", "T03"],
        place,
    )


def _newsletter(stage: Stage) -> None:
    """A campaign goes out through the route account, from the vendor's own network, with jobs."""
    rng = stage.rng("N19")
    tenant = rng.choice(stage.of("smtp"))
    ts, route = hour_of(stage, rng, tenant), f"gateway-route@{tenant.domain}"
    ip, net, _ = stage.egress(rng, tenant, ts)
    pen, size = Pen(stage, tenant, rng, "N19-newsletter"), rng.randrange(30_000, 90_000)
    for _ in range(rng.randrange(50, 110)):
        rcpt = f"reader{rng.randrange(9000)}@{rng.choice(FREEMAIL)}"
        pen.mail(
            ts,
            (ip, net),
            name=f"out-{ip.rsplit('.', 1)[-1]}.{tenant.region}.northgate.example",
            sender=f"news@{tenant.domain}",
            rcpt=rcpt,
            size=size + rng.randrange(400),
            sasl=route,
            relay=f"mx.{rcpt.split('@')[1]}[198.51.100.25]:25",
        )
        pen.job(ts - 1, ts + 2, "smtp", f"pw:{route}", "password", route, ip, items=1, name="deliver")
        ts += jitter(rng, 5, 40)
    stage.harmless(
        "N19-newsletter",
        "a newsletter goes out through the gateway",
        [tenant.tenant_id],
        ["X05"],
        Place((net,)),
        principal_id=route,
        credential_id=f"pw:{route}",
    )


def _new_app(stage: Stage) -> None:
    """A new application: an administrator consents at his desk, and it reads shared mailboxes from then on."""
    rng = stage.rng("N16")
    tenant, place = rng.choice(stage.of("m365")), stranger(rng, stage.pool, ("cloud", "hosting"))
    rest = rng.random() < 0.5
    app = cast.registered(rng, rng.choice(APP_NAMES), client=client(rng, rest=rest), api_id=GRAPH if rest else "")
    begin = hour_of(stage, rng, tenant, 0.5, 0.8)
    consent(stage, tenant, rng, app, begin, scope="Mail.Read", label="N16-newapp")
    pen, day, boxes = (
        Pen(stage, tenant, rng, "N16-newapp"),
        begin + jitter(rng, 3, 30) * 3600,
        tenant.shared[: rng.randrange(1, 4)],
    )
    while day < stage.cal.end:
        where = place.at(rng)
        pen.app_signin(day, app, where)
        for box in boxes:
            pen.read(day + jitter(rng, 5, 90), box, where, pen.newest(box, day, rng.randrange(1, 8)), app=app)
        day += DAY / 2 + jitter(rng, -1200, 1200)
    stage.harmless(
        "N16-newapp",
        "a new application with an administrator's consent",
        [tenant.tenant_id],
        ["T05", "L05", "X04", "X07"],
        place,
        principal_id=app.sp_id,
        mailboxes=boxes,
    )


def _support(stage: Stage) -> None:
    """An engineer of the vendor looks into a complaint, from the vendor's network; the job names a ticket."""
    rng = stage.rng("N21")
    tenant = rng.choice(stage.of("m365"))
    ts = hour_of(stage, rng, tenant)
    ip, net, _ = stage.egress(rng, tenant, ts)
    app, pen, box = stage.app(tenant, ts), Pen(stage, tenant, rng, "N21-support"), tenant.scope[-1]
    pen.app_signin(ts, app, (ip, net))
    for number in range(3):
        pen.read(ts + 60 + 200 * number, box, (ip, net), pen.some(box, ts, 5), app=app, client=client(rng))
    pen.job(
        ts - 30,
        ts + 1500,
        "ews",
        app.thumbprint.lower(),
        "cert",
        tenant.sp_id,
        ip,
        items=15,
        name="support ticket 88213",
    )
    stage.harmless(
        "N21-support",
        "a support engineer's session with a ticket",
        [tenant.tenant_id],
        ["T04", "T08", "T09"],
        Place((net,)),
        credential_id=app.thumbprint.lower(),
        principal_id=tenant.sp_id,
        mailboxes=[box],
    )


def _sync_change(stage: Stage) -> None:
    """The vendor's directory synchronisation gets another filter, from the same servers, with jobs."""
    rng = stage.rng("N23")
    able = stage.of("ldap")
    tenant = rng.choice(able)
    ts, dn, base = hour_of(stage, rng, tenant, 0.5, 0.8), sync_dn(tenant), base_dn(tenant)
    while ts < stage.cal.end:
        ip, net, _ = stage.egress(rng, tenant, ts)
        pen = Pen(stage, tenant, rng, "N23-filter")
        pen.ldap(
            ts, (ip, net), dn=dn, searches=[(base, "(&(objectClass=person)(proxyAddresses=*))", len(tenant.users) + 3)]
        )
        pen.job(ts - 1, ts + 4, "ldap", f"pw:{dn}", "password", dn, ip, items=len(tenant.users), name="directory")
        ts += DAY
    stage.harmless(
        "N23-filter",
        "the directory synchronisation gets another filter",
        [tenant.tenant_id],
        ["L03"],
        principal_id=dn,
        credential_id=f"pw:{dn}",
    )
