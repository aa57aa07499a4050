"""Campaigns in Exchange Online: A stolen certificate, B forged tokens, C spray to new key to mail."""

import json

from flows.world.model import DAY, Tenant, User, guid, jitter
from flows.world.wide import attack, cast
from flows.world.wide.pen import Pen
from flows.world.wide.places import APP_NAMES, Place, client, stranger
from flows.world.wide.projects import GRAPH, consent
from flows.world.wide.stage import Stage

TOKEN = 3000.0  # seconds after which a new token is fetched


def stolen_certificate(stage: Stage) -> None:
    """A: the shared certificate is used against three tenants; now and then from inside the vendor's own network."""
    rng = stage.rng("campaign", "A")
    able = [t for t in stage.of("m365") if stage.vendor.group[t.tenant_id] == 0]
    victims, first, days = rng.sample(able, min(3, len(able))), *attack.span(stage, rng)
    from_inside, outside = stage.rng("A", "inside").random() < 0.25, stranger(rng, stage.pool)
    name = client(rng)
    for order, tenant in enumerate(victims):
        how = attack.manner(rng)
        place = attack.inside(stage, rng, tenant) if from_inside else outside
        boxes = attack.served(tenant, rng, rng.randrange(5, 24), chiefs=rng.random() < 0.3)
        app = stage.app(tenant, first)
        common = ["T04", "T08"] if from_inside else ["T01", "T02", "T03", "T08"]
        label = stage.step(
            "A1-signin",
            tenant,
            app.thumbprint.lower(),
            tenant.sp_id,
            [d for d in common if d != "T04"],  # sign-ins of applications tell no client
            app_id=app.app_id,
            paths="entra",
        )
        read = stage.step(
            "A2-read",
            tenant,
            app.thumbprint.lower(),
            tenant.sp_id,
            common,
            app_id=app.app_id,
            mailboxes=boxes,
            paths="ual",
        )
        pen, reader = (
            Pen(stage, tenant, stage.rng("A", order), label),
            Pen(stage, tenant, stage.rng("A-read", order), read),
        )
        begin = first + order * rng.randrange(0, 3) * DAY
        pen.app_signin(begin - jitter(rng, 0.2, 2) * DAY, app, place.at(pen.rng))
        touched, exhaust = set[str](), how.pace == "burst" and rng.random() < 0.3
        sessions = attack.walk(stage, rng, how, boxes, begin, days)
        stage.steps[-1]["detections"] = [*common, *attack.spree(sessions, tenant, from_inside=from_inside)]
        for start, visits in sessions:
            where = place.at(pen.rng)
            pen.app_signin(start - jitter(rng, 10, 60), app, where)
            for ts, box, count, folder in visits:
                total = 1300 if exhaust and not touched else count  # more than the audit tells of in a day
                items = reader.some(box, ts, total)
                for part in range(0, len(items), 60):
                    reader.read(
                        ts + 2.2 * part, box, where, items[part : part + 60], app=app, client=name, folder=folder
                    )
                touched.add(box)
        stage.steps[-1]["mailboxes"] = sorted(touched)


def forged_tokens(stage: Stage) -> None:
    """B: people's mailboxes are read as themselves, by an application that nobody there uses, without a sign-in."""
    rng = stage.rng("campaign", "B")
    victims, first, days = rng.sample(stage.of("m365"), rng.randrange(1, 4)), *attack.span(stage, rng)
    place, app_id = stranger(rng, stage.pool), guid(rng)
    api, name = (
        rng.choice(("", GRAPH)),
        "Client=REST;Client=RESTSystem;;" if rng.random() < 0.8 else client(rng, rest=True),
    )
    for order, tenant in enumerate(victims):
        how, people = attack.manner(rng), {user.address: user for user in tenant.users}
        boxes = [
            box for box in attack.served(tenant, rng, rng.randrange(3, 9), chiefs=rng.random() < 0.6) if box in people
        ]
        found = ["T05", "L06", *(["T03"] if len(victims) > 1 else [])]
        label = stage.step("B1-read", tenant, None, boxes[0], found, app_id=app_id, mailboxes=boxes, paths="ual")
        pen, touched = Pen(stage, tenant, stage.rng("B", order), label), set[str]()
        for _, visits in attack.walk(stage, rng, how, boxes, first + order * DAY, days):
            where = place.at(pen.rng)
            for ts, box, count, folder in visits:
                pen.read(
                    ts,
                    box,
                    where,
                    pen.some(box, ts, count),
                    user=people[box],
                    client=name,
                    app_id=app_id,
                    api_id=api,
                    folder=folder,
                )
                touched.add(box)
        stage.steps[-1] |= {"mailboxes": sorted(touched), "principals": sorted(touched)}


def sprayed_password(stage: Stage) -> None:
    """C: few guesses a day from many homes; one fits; a key or consent; the board's mail."""
    rng = stage.rng("campaign", "C")
    tenant, (first, days) = rng.choice(stage.of("m365")), attack.span(stage, rng)
    homes = Place(
        tuple(stage.pool.take("isp") for _ in range(rng.randrange(8, 24))) + tuple(rng.sample(stage.isps[:30], 6))
    )
    base = homes if rng.random() < 0.4 else stranger(rng, stage.pool)
    user, how = rng.choice(tenant.users[3:]), attack.manner(rng)
    spray = Pen(
        stage, tenant, stage.rng("C", 1), stage.step("C1-spray", tenant, None, user.address, ["L04"], paths="entra")
    )
    spraying, tries = rng.randrange(2, max(3, min(7, days - 3))), rng.choice((1, 1, 2))
    guessed = set[str]()
    for day in range(spraying):
        for one in tenant.users:
            for _ in range(tries):
                spray.user_signin(first + day * DAY + rng.random() * DAY, one, homes.at(rng), code=50126)
                guessed.add(one.address)
    stage.steps[-1]["principals"] = sorted(guessed)
    entered = first + spraying * DAY + jitter(rng, 0, 0.4) * DAY
    entry = Pen(
        stage,
        tenant,
        stage.rng("C", 2),
        # One or two rows among dozens: of an ordinary user, and of a spray whose evidence is its failures.
        stage.step("C2-entry", tenant, None, user.address, [], paths="entra"),
    )
    entry.user_signin(entered, user, homes.at(rng))
    entry.user_signin(entered + jitter(rng, 100, 4000), user, base.at(rng), interactive=False)
    _takeover(stage, tenant, user, base, entered + jitter(rng, 0.2, 30) * 3600, how, max(3, days - spraying))


def _takeover(stage: Stage, tenant: Tenant, user: User, base: Place, ts: float, how: attack.Manner, days: int) -> None:
    """The account gives an application what it needs, or takes a role itself; then mailboxes are read through it."""
    rng = stage.rng("C", "takeover")
    rest = rng.random() < 0.5
    app = cast.registered(rng, rng.choice(APP_NAMES), client=client(rng, rest=rest), api_id=GRAPH if rest else "")
    label = stage.step("C3-grant", tenant, app.key_id, app.sp_id, [], app_id=app.app_id, paths="audit")
    stage.steps[-1]["principals"] = [user.address, app.sp_id]
    old = stage.crm.get(tenant.tenant_id) or stage.backups.get(tenant.tenant_id)
    if old and rng.random() < 0.7:  # an application that is already trusted gets one more secret
        app = cast.App(old.app_id, old.name, old.sp_id, app.key_id, "", app.client, app.api_id)
        stage.steps[-1] |= {"principal_id": app.sp_id, "app_id": app.app_id, "principals": [user.address, app.sp_id]}
        keys = [
            f"[KeyIdentifier={key},KeyType=Password,KeyUsage=Verify,DisplayName=secret]"
            for key in (old.key_id, app.key_id)
        ]
        target = ("ServicePrincipal", app.sp_id, app.name)
        Pen(stage, tenant, rng, label).change(
            ts, user, base.at(rng), "Add service principal credentials", target,
            {"KeyDescription": (json.dumps(keys[:1]), json.dumps(keys))}, app.app_id,
        )  # fmt: skip
    else:
        scope = "Mail.Read" if rest else "full_access_as_app"
        consent(stage, tenant, rng, app, ts, scope=scope, label=label, who=user, where=base.at(rng))
    boxes = attack.served(tenant, rng, rng.randrange(3, 10), chiefs=True)
    if rng.random() < 0.3:  # what is read of this mailbox is not told any more
        blind, boxes = boxes[0], boxes[1:]
        label = stage.step("C5-blind", tenant, None, user.address, ["X09"], mailboxes=[blind], paths="ual")
        quiet = Pen(stage, tenant, stage.rng("C", 5), label)
        quiet.cmdlet(ts + 900, user, base.at(quiet.rng), "Set-Mailbox", blind, Identity=blind, AuditEnabled="False")
    # M06 is not expected: two of a score of mailboxes are the board's, and no choice of them is improbable enough.
    read = stage.step(
        "C4-read", tenant, app.key_id, app.sp_id, ["L05", "T05"], app_id=app.app_id, mailboxes=boxes, paths="*"
    )
    pen, touched = Pen(stage, tenant, stage.rng("C", 4), read), set[str]()
    first = ts + jitter(rng, 1, 40) * 3600
    for start, visits in attack.walk(stage, stage.rng("C", "walk"), how, boxes, first - first % DAY + DAY, days):
        where = base.at(pen.rng)
        pen.app_signin(start - jitter(rng, 10, 60), app, where)
        for at, box, count, folder in visits:
            pen.read(at, box, where, pen.some(box, at, count), app=app, folder=folder)
            touched.add(box)
    stage.steps[-1]["mailboxes"] = sorted(touched)
