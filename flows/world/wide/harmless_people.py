"""Harmless events among a customer's people: travel, helpers, mishaps, each a near miss of a detection."""

import json

from flows.world.model import DAY, jitter
from flows.world.population import new_person
from flows.world.wide import cast
from flows.world.wide.habits import OUTSIDE
from flows.world.wide.harmless import names
from flows.world.wide.pen import Pen
from flows.world.wide.places import Place, stranger
from flows.world.wide.projects import allow, hour_of, office_of
from flows.world.wide.routine import working_day
from flows.world.wide.stage import Stage


def play(stage: Stage) -> None:
    """All of them, at places and times that follow from the seed."""
    for event in (
        _traveller, _service_firm, _consultant, _expiry, _licences, _delegation, _new_device, _branch,
        _mail_program, _forwarding,
    ):  # fmt: skip
        event(stage)


def _traveller(stage: Stage) -> None:
    rng = stage.rng("N2")
    tenant = rng.choice(stage.of("m365"))
    user, place, begin = (
        rng.choice(tenant.users[1:]),
        stranger(rng, stage.pool, ("mobile", "isp"), ("few", "site")),
        stage.day(rng, 0.5, 0.88),
    )
    for day in range(rng.randrange(3, 7)):
        working_day(
            stage, tenant, rng, user, begin + day * DAY + jitter(rng, 0.1, 0.8) * DAY, place.at(rng), "N2-traveller"
        )
    stage.harmless(
        "N2-traveller",
        f"{user.address} travels",
        [tenant.tenant_id],
        ["T01", "T07"],
        place,
        principal_id=user.address,
        mailboxes=[user.address],
    )


def _service_firm(stage: Stage) -> None:
    rng = stage.rng("N3")
    place = cast.servers(rng, stage.pool, "business")
    members = rng.sample(stage.of("m365"), min(4, len(stage.of("m365"))))
    begin = stage.day(rng, 0.5, 0.85) + 0.35 * DAY
    for tenant in members:
        pen = Pen(stage, tenant, rng, "N3-msp")
        firm = new_person(rng, tenant, "helpdesk", "Fernhill Helpdesk", place.nets[0])
        stage.born[firm.address] = begin - 3600
        stage.hires.setdefault(tenant.tenant_id, []).append((firm.address, firm.name))
        pen.change(
            begin - jitter(rng, 600, 3000),
            tenant.admin(),
            office_of(tenant),
            "Add user",
            ("User", firm.object_id, firm.address),
            {"AccountEnabled": ("[]", "[true]")},
        )
        for day in range(6):
            working_day(
                stage, tenant, rng, firm, begin + day * DAY + jitter(rng, 0, 0.3) * DAY, place.at(rng), "N3-msp"
            )
    stage.harmless(
        "N3-msp", "a service firm's accounts, new in several tenants", names(members), ["T03", "L01", "L07"], place
    )


def _consultant(stage: Stage) -> None:
    """A merger: a consultant is given mailboxes, among them the board's, for a project with a window."""
    rng = stage.rng("N9")
    tenant, place = rng.choice(stage.of("m365")), stranger(rng, stage.pool, ("business", "isp"), ("one", "few"))
    consultant = new_person(rng, tenant, "project.review", "Project Review", place.nets[0])
    begin = hour_of(stage, rng, tenant, 0.5, 0.85)
    stage.born[consultant.address] = begin - 7200
    stage.hires.setdefault(tenant.tenant_id, []).append((consultant.address, consultant.name))
    boxes = [user.address for user in tenant.users[1:3]] + [u.address for u in rng.sample(tenant.users[3:], 4)]
    pen = Pen(stage, tenant, rng, "N9-review")
    pen.change(
        begin - 7200,
        tenant.admin(),
        office_of(tenant),
        "Add user",
        ("User", consultant.object_id, consultant.address),
        {"AccountEnabled": ("[]", "[true]")},
    )
    for box in boxes:
        pen.cmdlet(
            begin - 3600 + jitter(rng, 0, 900),
            tenant.admin(),
            office_of(tenant),
            "Add-MailboxPermission",
            box,
            Identity=box,
            User=consultant.address,
            AccessRights="FullAccess",
        )
    for day in range(rng.randrange(3, 9)):
        where, ts = place.at(rng), begin + day * DAY
        pen.user_signin(ts, consultant, where)
        for box in rng.sample(boxes, 3):
            ts += jitter(rng, 300, 3000)
            pen.read(
                ts,
                box,
                where,
                pen.some(box, ts, rng.randrange(8, 30)),
                user=consultant,
                client="Client=OWA;Action=ViaProxy",
                app_id="00000002-0000-0ff1-ce00-000000000000",
                logon=2,
            )
    allow(
        stage,
        tenant,
        place,
        consultant.address,
        "signin;get_item",
        begin - DAY,
        begin + 10 * DAY,
        "project review (legal)",
    )
    stage.harmless(
        "N9-review",
        "a consultant reads mailboxes for a merger",
        [tenant.tenant_id],
        ["M01", "M02", "M05", "M06", "L05"],
        place,
        principal_id=consultant.address,
        mailboxes=boxes,
    )


def _expiry(stage: Stage) -> None:
    """Passwords expire on a Monday: many people fail once or twice, then get in; a scanner's account fails all day."""
    rng = stage.rng("N11")
    tenant = rng.choice(stage.of("m365"))
    begin = hour_of(stage, rng, tenant)
    pen = Pen(stage, tenant, rng, "N11-expiry")
    for user in rng.sample(tenant.users, len(tenant.users) * 2 // 3):
        ts = begin + jitter(rng, 0, 7200)
        where = office_of(tenant) if rng.random() < 0.7 else (user.home.host(user.home_host), user.home)
        for number in range(rng.randrange(1, 4)):
            pen.user_signin(ts + 15 * number, user, where, code=rng.choice((50126, 50055)))
        pen.user_signin(ts + 90, user, where)
    for number in range(40):
        pen.user_signin(begin + number * 600, tenant.users[3], office_of(tenant), interactive=False, code=50055)
    stage.harmless("N11-expiry", "passwords expire, many fail", [tenant.tenant_id], ["L04"])


def _licences(stage: Stage) -> None:
    rng = stage.rng("N13")
    tenant = rng.choice(stage.of("m365"))
    ts, pen = hour_of(stage, rng, tenant), Pen(stage, tenant, rng, "N13-licences")
    for user in tenant.users[1:]:
        ts += jitter(rng, 2, 20)
        changes = {"AssignedLicense": (json.dumps(["ENTERPRISEPREMIUM"]), json.dumps(["ENTERPRISEPACK"]))}
        pen.change(
            ts,
            tenant.admin(),
            office_of(tenant),
            "Change user license",
            ("User", user.object_id, user.address),
            changes,
        )
    stage.harmless(
        "N13-licences", "licence true-up: all people change their plan in an hour", [tenant.tenant_id], ["X09"]
    )


def _delegation(stage: Stage) -> None:
    rng = stage.rng("N18")
    tenant = rng.choice(stage.of("m365"))
    chief, assistant = tenant.users[1], rng.choice(tenant.users[3:])
    begin = hour_of(stage, rng, tenant, 0.5, 0.85)
    pen = Pen(stage, tenant, rng, "N18-assistant")
    pen.cmdlet(
        begin,
        tenant.admin(),
        office_of(tenant),
        "Add-MailboxPermission",
        chief.address,
        Identity=chief.address,
        User=assistant.address,
        AccessRights="FullAccess",
    )
    for day in range(8):
        ts = begin + 3600 + day * DAY + jitter(rng, 0, 7200)
        working_day(stage, tenant, rng, assistant, ts, office_of(tenant), "N18-assistant")
        pen.read(
            ts + 300,
            chief.address,
            office_of(tenant),
            pen.newest(chief.address, ts, rng.randrange(2, 9)),
            user=assistant,
            client="Client=MSExchangeRPC",
            app_id="d3590ed6-52b3-4102-aeff-aad2292ab01c",
            logon=2,
        )
    stage.harmless(
        "N18-assistant",
        "an assistant is given a chief's mailbox",
        [tenant.tenant_id],
        ["M05", "M06", "L05"],
        Place((tenant.office,)),
        principal_id=assistant.address,
        mailboxes=[chief.address],
    )


def _new_device(stage: Stage) -> None:
    """New laptops at two tenants: the owner's whole mailbox is synchronised, from home."""
    rng = stage.rng("N20")
    members = rng.sample(stage.of("m365"), 2)
    for tenant in members:
        user = rng.choice(tenant.users[3:])
        ts, pen = hour_of(stage, rng, tenant), Pen(stage, tenant, rng, "N20-device")
        where = (user.home.host(user.home_host), user.home)
        pen.user_signin(ts, user, where)
        for folder in ("Inbox", "Sent Items", "Deleted Items", "Drafts", "Archive", "Projects"):
            pen.read(
                ts + jitter(rng, 20, 400),
                user.address,
                where,
                (),
                user=user,
                client="Client=MSExchangeRPC",
                app_id="d3590ed6-52b3-4102-aeff-aad2292ab01c",
                folder=folder,
                sync=True,
            )
    stage.harmless("N20-device", "new laptops synchronise whole mailboxes", names(members), ["M04", "M08"])


def _branch(stage: Stage) -> None:
    """A branch office opens: people of one tenant work from a new network, by cloud and by mail host."""
    rng = stage.rng("N22")
    tenant, place = rng.choice(stage.of("m365")), cast.servers(rng, stage.pool, "business")
    begin, movers = stage.day(rng, 0.5, 0.85) + 0.35 * DAY, rng.sample(tenant.users[1:], 6)
    stage.networks.append([place.nets[0].cidr, "corporate", tenant.region, begin - DAY, tenant.name])
    for day in range(8):
        for user in rng.sample(movers, 3):
            working_day(stage, tenant, rng, user, begin + day * DAY + jitter(rng, 0, 9000), place.at(rng), "N22-branch")
    stage.harmless("N22-branch", "a branch office opens", [tenant.tenant_id], ["L01", "T01", "T03"], place)


def _mail_program(stage: Stage) -> None:
    """A person sets up a POP3 program at home, which fetches the whole mailbox and leaves it on the server."""
    rng = stage.rng("N24")
    tenant = rng.choice(stage.of("pop3"))
    user = rng.choice(tenant.users[1:])
    pen, ts = Pen(stage, tenant, rng, "N24-pop3"), hour_of(stage, rng, tenant)
    count = rng.randrange(60, 400)
    held = count, count * rng.randrange(20_000, 90_000)
    for number in range(rng.randrange(1, 4)):
        got = held if number == 0 else (0, 0)
        where = (user.home.host(user.home_host), user.home)
        pen.pop3(ts + number * 1200, where, user=user.address, retr=got, deleted=0, held=held)
    what = "a person's new mail program copies the mailbox by POP3"
    stage.harmless(
        "N24-pop3", what, [tenant.tenant_id], ["X02", "T01"], principal_id=user.address, mailboxes=[user.address]
    )


def _forwarding(stage: Stage) -> None:
    """Mail of a shared mailbox is forwarded to a partner, set up by the administrator at his desk."""
    rng = stage.rng("N25")
    tenant = rng.choice(stage.of("m365"))
    box, pen, ts = rng.choice(tenant.shared), Pen(stage, tenant, rng, "N25-forward"), hour_of(stage, rng, tenant)
    target = f"smtp:intake@{rng.choice(OUTSIDE)}"
    pen.cmdlet(
        ts,
        tenant.admin(),
        office_of(tenant),
        "Set-Mailbox",
        box,
        Identity=box,
        ForwardingSmtpAddress=target,
        DeliverToMailboxAndForward="True",
    )
    stage.harmless(
        "N25-forward", "a shared mailbox is forwarded to a partner", [tenant.tenant_id], ["X06"], mailboxes=[box]
    )
