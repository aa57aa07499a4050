"""Who there is in the wide world: tenants with their services, the vendor, other applications."""

import random
from dataclasses import dataclass, field
from datetime import date, timedelta

from flows.world.model import Calendar, Net, Pool, Tenant, guid
from flows.world.population import NAMES, SHARED, TRADES, ZONES, people
from flows.world.wide.places import Place

REGIONS = ("emea", "amer", "apac")
_ZONES = ZONES | {"apac": ("Australia/Sydney", "Asia/Singapore")}
# Services of tenants; each ten are shuffled.
ROLES = (
    "m365 ldap", "m365", "m365 smtp", "pop3 smtp", "m365 pop3", "onprem ldap", "m365 backup", "m365 crm",
    "onprem", "pop3",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class App:
    """An application registered in one tenant, and the key with which it signs in."""

    app_id: str
    name: str
    sp_id: str
    key_id: str
    thumbprint: str = ""  # "" for a client secret
    client: str = ""  # ClientInfoString with which it reads mail
    api_id: str = ""  # Graph's id if it reads through Graph


@dataclass(frozen=True, slots=True)
class Cert:
    """One of the vendor's certificates."""

    thumbprint: str
    name: str


@dataclass(slots=True)
class Vendor:
    """The gateway operator: networks by region, an application, certificates, and what is known of each tenant."""

    egress: dict[str, list[Net]]
    app_id: str
    certs: tuple[Cert, Cert, Cert]  # for most tenants, for the others, and what replaces the second
    group: dict[str, int] = field(default_factory=dict)  # tenant_id -> 0 or 1, the certificate it has at first
    moves: dict[str, float] = field(default_factory=dict)  # tenant_id -> when it gets the third
    new_keys: dict[str, str] = field(default_factory=dict)  # tenant_id -> key id of the third


def tenants(seed: int, pool: Pool, cal: Calendar, count: int, isps: list[Net]) -> list[Tenant]:
    """The tenants, each from its own stream; which has which services follows from the seed."""
    roles = list[str]()
    while len(roles) < count:
        block = list(ROLES[: max(1, min(len(ROLES), count - len(roles)))])
        random.Random(f"{seed}/roles/{len(roles)}").shuffle(block)
        roles += block
    found = list[Tenant]()
    for index, role in enumerate(roles):
        rng = random.Random(f"{seed}/wide/{index}")
        found.append(_tenant(rng, pool, index, frozenset(role.split()), cal.start, isps))
    return found


def _tenant(
    rng: random.Random, pool: Pool, index: int, services: frozenset[str], start: date, isps: list[Net]
) -> Tenant:
    slug = NAMES[index % len(NAMES)] + ("" if index < len(NAMES) else str(index // len(NAMES)))
    domain, region = f"{slug}.example", rng.choices(REGIONS, (4, 4, 2))[0]
    cloud = "m365" in services
    users = people(rng, domain, rng.randrange(16, 27) if cloud else rng.randrange(9, 15), rng.sample(isps, 6))
    shared = [f"{name}@{domain}" for name in SHARED]
    boxes = {box: guid(rng) for box in shared} | {user.address: user.mailbox_guid for user in users}
    return Tenant(
        tenant_id=slug,
        name=f"{slug.title()} {rng.choice(TRADES)}",
        acc=f"C{rng.randrange(10, 99)}{region[0].upper()}{rng.randrange(100, 999)}",
        domain=domain,
        region=region,
        tz=rng.choice(_ZONES[region]),
        services=services,
        entra_id=guid(rng) if cloud else "",
        onboarded=start - timedelta(days=rng.randrange(200, 1500)),
        office=pool.take("business"),
        users=users,
        shared=shared,
        scope=[shared[0], *(user.address for user in rng.sample(users[3:], 2))],
        sp_id=guid(rng) if cloud else "",
        key_id=guid(rng) if cloud else "",
        container=rng.choice(("jsonl", "array", "csv")),
        journal=f"journal@{domain}" if "pop3" in services else "",
        poll_minutes=rng.choice((60, 90, 90)),
        mail_style=rng.choice(("bsd", "iso")),
        mail_per_day=rng.choice((8.0, 12.0, 18.0)),
        mailbox_guids=boxes,
    )


def vendor(rng: random.Random, pool: Pool, members: list[Tenant]) -> Vendor:
    """The vendor: two IPv4 networks and an IPv6 one a region; a third of the tenants has another certificate."""
    egress = {region: [pool.take("vendor"), pool.take("vendor"), pool.take("vendor", v6=True)] for region in REGIONS}
    names = ("connect", "connect-b", "connect-c")
    first, second, third = (Cert(f"{rng.getrandbits(160):040x}", f"CN={name}.northgate.example") for name in names)
    found = Vendor(egress, guid(rng), (first, second, third))
    cloud = [tenant for tenant in members if "m365" in tenant.services]
    other = {tenant.tenant_id for tenant in rng.sample(cloud, max(1, len(cloud) // 3))}
    for tenant in cloud:
        found.group[tenant.tenant_id] = int(tenant.tenant_id in other)
        found.new_keys[tenant.tenant_id] = guid(rng)
    return found


def registered(rng: random.Random, name: str, *, app_id: str = "", client: str, api_id: str = "") -> App:
    """An application as it stands in one tenant, with a client secret."""
    return App(app_id or guid(rng), name, guid(rng), guid(rng), "", client, api_id)


def servers(rng: random.Random, pool: Pool, kind: str) -> Place:
    """The fixed servers of a service provider."""
    return Place((pool.take(kind),), tuple(rng.sample(range(3, 250), rng.randrange(1, 4))))
