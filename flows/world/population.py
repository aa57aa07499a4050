"""Tenants and their people."""

import random
from datetime import date, timedelta

from flows.world.model import Net, Pool, Tenant, User, guid

# Services of the first 14 tenants; a larger world repeats them.
ROLES = (
    "m365 backup", "m365", "pop3 smtp", "m365 backup", "onprem", "m365 pop3", "m365", "pop3 smtp",
    "m365", "onprem", "m365 pop3 smtp", "m365", "pop3", "onprem",
)  # fmt: skip
REGIONS = ("emea", "amer")
ZONES = {
    "emea": ("Europe/London", "Europe/Berlin", "Europe/Amsterdam"),
    "amer": ("America/Chicago", "America/New_York"),
}
NAMES = (
    "alder", "birch", "cedar", "damson", "elder", "fig", "gorse", "hazel", "ivy", "juniper", "kapok", "larch", "maple",
    "nutmeg", "olive", "poplar", "quince", "rowan", "spruce", "tamarind", "ulmus", "viburnum", "willow", "yew",
)  # fmt: skip
TRADES = ("Instruments", "Legal", "Foods", "Logistics", "Optics", "Textiles", "Energy", "Clinics")
GIVEN = (
    "ada", "ben", "carla", "dmitri", "elif", "farid", "greta", "hugo", "ines", "jonas", "kavya", "liam", "mira", "noor",
    "oskar", "petra", "quentin", "rosa", "samir", "tilda", "uma", "viktor", "wanda", "xenia", "yusuf", "zoe",
)  # fmt: skip
FAMILY = (
    "abel", "brandt", "castell", "dorn", "egede", "falk", "grieve", "hallow", "imrie", "jessop", "kolb", "lund",
    "marsh", "nolte", "orme", "pell", "quist", "rask", "sorley", "thorne", "ulrich", "varga", "weld", "yates", "zander",
)  # fmt: skip
DEPARTMENTS = ("Sales", "Finance", "Engineering", "Operations", "People", "Board")
SHARED = ("accounts", "orders", "careers")
AGENTS = (
    "Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/87.0.4280.141 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 11_1_0) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/14.0 Safari/605.1",
    "Mozilla/5.0 (Windows NT 10.0; Microsoft Outlook 16.0.13530; Pro)",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:84.0) Gecko/20100101 Firefox/84.0",
)


def _person(rng: random.Random, domain: str, address: str, name: str, home: Net, *, vip: bool, department: str) -> User:
    return User(
        address=f"{address}@{domain}",
        name=name,
        department=department,
        sid=f"S-1-5-21-{rng.randrange(10**8, 10**9)}-{rng.randrange(10**8, 10**9)}-{rng.randrange(1000, 9999)}",
        object_id=guid(rng),
        mailbox_guid=guid(rng),
        user_key=f"1003{rng.getrandbits(48):012X}",
        home=home,
        home_host=rng.randrange(2, 250),
        activity=rng.paretovariate(1.6) / 2,
        agent=rng.choice(AGENTS),
        vip=vip,
    )


def people(rng: random.Random, domain: str, count: int, homes: list[Net]) -> list[User]:
    """An administrator and `count` - 1 people, of whom the first two are of the board."""
    users = [_person(rng, domain, "admin", "Administrator", rng.choice(homes), vip=False, department="IT")]
    pairs = rng.sample([(given, family) for given in GIVEN for family in FAMILY], count - 1)
    for index, (given, family) in enumerate(pairs):
        vip = index < 2
        department = "Board" if vip else rng.choice(DEPARTMENTS[:-1])
        name = f"{given.title()} {family.title()}"
        users.append(_person(rng, domain, f"{given}.{family}", name, rng.choice(homes), vip=vip, department=department))
    return users


def new_person(rng: random.Random, tenant: Tenant, address: str, name: str, home: Net) -> User:
    """A person who joins a tenant later; the mailbox gets its GUID."""
    user = _person(rng, tenant.domain, address, name, home, vip=False, department="IT")
    tenant.mailbox_guids[user.address] = user.mailbox_guid
    return user


def _tenant(rng: random.Random, pool: Pool, index: int, start: date, m365_seen: int) -> Tenant:
    services = frozenset(ROLES[index % len(ROLES)].split())
    slug = NAMES[index % len(NAMES)] + ("" if index < len(NAMES) else str(index // len(NAMES)))
    domain, region = f"{slug}.example", REGIONS[index % 2]
    homes = [pool.take("isp", v6=rng.random() < 0.25) for _ in range(8)]
    count = rng.randrange(26, 36) if "m365" in services else rng.randrange(12, 20)
    users = people(rng, domain, count, homes)
    shared = [f"{name}@{domain}" for name in SHARED]
    boxes = [user.address for user in users] + shared
    tenant = Tenant(
        tenant_id=slug,
        name=f"{slug.title()} {rng.choice(TRADES)}",
        acc=f"C{rng.randrange(10, 99)}{'AB'[index % 2]}{rng.randrange(100, 999)}",
        domain=domain,
        region=region,
        tz=ZONES[region][index // 2 % len(ZONES[region])],
        services=services,
        entra_id=guid(rng) if "m365" in services else "",
        onboarded=start - timedelta(days=rng.randrange(200, 1500)),
        office=pool.take("business"),
        users=users,
        shared=shared,
        scope=[shared[0], *(user.address for user in rng.sample(users[1:], 4))],
        sp_id=guid(rng) if "m365" in services else "",
        key_id=guid(rng) if "m365" in services else "",
        container=("jsonl", "array", "csv")[m365_seen % 3],
        journal=f"journal@{domain}" if "pop3" in services else "",
        mailbox_guids={box: guid(rng) for box in boxes},
    )
    tenant.mailbox_guids.update({user.address: user.mailbox_guid for user in users})
    return tenant


def populate(seed: int, pool: Pool, count: int, start: date) -> list[Tenant]:
    """The tenants, each from its own stream, so that one more tenant leaves the others as they are."""
    tenants: list[Tenant] = []
    for index in range(count):
        seen = sum("m365" in tenant.services for tenant in tenants)
        tenants.append(_tenant(random.Random(f"{seed}/tenant/{index}"), pool, index, start, seen))
    for index, tenant in enumerate(t for t in tenants if t.journal):
        tenant.poll_minutes = (20, 15, 10, 20, 15)[index % 5]
        tenant.mail_style = ("bsd", "iso", "bsd", "iso", "bsd")[index % 5]
        tenant.mail_per_day = (190.0, 50.0, 40.0, 45.0, 55.0)[index % 5]
    return tenants
