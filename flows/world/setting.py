"""The plot of a world: the vendor, who holds what, what is attacked, and which harmless things look alike."""

import random
from dataclasses import dataclass, field

from flows.world.model import DAY, Calendar, Net, Pool, Tenant, User, guid
from flows.world.population import REGIONS, new_person, populate

VENDOR = "Northgate Mail"
APP_NAME = "Northgate Connect for Microsoft 365"
CLIENT = "Client=WebServices;NorthgateConnect/{} (ExchangeServicesClient/15.00.0913.015);"
BACKUP_APP = "Keepsafe Cloud Backup"
BACKUP_CLIENT = "Client=WebServices;KeepsafeBackup/11.2 (ExchangeServicesClient/15.00.0913.022);"
STOLEN_CLIENT = "Client=WebServices;ExchangeServicesClient/15.01.1847.000;"


@dataclass(frozen=True, slots=True)
class Attack:
    """What is planted: the stolen certificate's readings, and the second reader of one journal mailbox."""

    net: Net
    hosts: tuple[int, ...]
    fast: Tenant  # mailboxes opened in one burst
    slow: tuple[Tenant, ...]
    boxes: dict[str, list[str]]  # tenant_id -> mailboxes
    journal: Tenant
    journal_net: Net
    journal_host: int

    @property
    def victims(self) -> tuple[Tenant, ...]:
        """Tenants against which the certificate is used."""
        return (self.fast, *self.slow)


@dataclass(frozen=True, slots=True)
class Harmless:
    """Near misses: harmless, unusual, and in the time of the attack."""

    egress: Net
    egress_region: str
    egress_from: float
    upgrade: dict[str, float]  # tenant_id -> moment of the new client version
    traveller: tuple[Tenant, User, Net, float, float]
    msp_net: Net
    msp: dict[str, User]  # tenant_id -> the account of the service firm there
    msp_from: float
    restart: tuple[Tenant, float, float]  # poller stuck from, until
    outage: tuple[Tenant, float, float]


@dataclass(slots=True)
class Setting:
    """Everything that the emitters need to know."""

    seed: int
    cal: Calendar
    tenants: list[Tenant]
    egress: dict[str, list[Net]]  # region -> two IPv4 and one IPv6 network of the vendor
    app_id: str
    thumbprint: str
    backup_app_id: str
    backup_net: Net
    backup_ids: dict[str, tuple[str, str]]  # tenant_id -> service principal, key id
    roaming: list[Net]
    decoys: list[Net]  # announced, used by nobody here
    harmless: Harmless
    attack: Attack | None
    facts: dict[str, dict[str, int]] = field(default_factory=dict)  # label -> counts known only where it is planted

    def rng(self, *stream: object) -> random.Random:
        """The random stream of this name."""
        return random.Random("/".join(str(part) for part in (self.seed, *stream)))

    def of(self, service: str) -> list[Tenant]:
        """Tenants with a service."""
        return [tenant for tenant in self.tenants if service in tenant.services]

    def egress_ip(
        self, rng: random.Random, tenant: Tenant, ts: float, *, v6: bool = False
    ) -> tuple[str, Net, str | None]:
        """The vendor's address for a connection to this tenant, its network, and the label of the new network."""
        new = self.harmless
        if tenant.region == new.egress_region and ts >= new.egress_from and rng.random() < 0.5:
            return new.egress.host(rng.randrange(10, 16)), new.egress, "N1-egress"
        nets = self.egress[tenant.region]
        net = nets[2] if v6 and rng.random() < 0.1 else nets[rng.random() < 0.4]
        return net.host(rng.randrange(10, 16)), net, None

    def client(self, tenant: Tenant, ts: float) -> str:
        """The vendor's EWS client string at this moment."""
        return CLIENT.format("6.5.0" if ts >= self.harmless.upgrade[tenant.tenant_id] else "6.4.2")

    def note(self, label: str, **counts: int) -> None:
        """Adds to the facts of a planted step."""
        facts = self.facts.setdefault(label, {})
        for key, value in counts.items():
            facts[key] = facts.get(key, 0) + value


def _harmless(rng: random.Random, pool: Pool, cal: Calendar, tenants: list[Tenant], journal: Tenant | None) -> Harmless:
    cloud = [tenant for tenant in tenants if "m365" in tenant.services]
    posts = [tenant for tenant in tenants if tenant.journal and tenant is not journal] or [
        t for t in tenants if t.journal
    ]
    office = pool.take("business")
    msp = {tenant.tenant_id: new_person(rng, tenant, "helpdesk", "Fernhill Helpdesk", office) for tenant in cloud[-3:]}
    first = cal.at(33) + DAY * 0.3
    away = cloud[len(cloud) // 2]
    return Harmless(
        egress=pool.take("vendor"),
        egress_region=REGIONS[1],
        egress_from=cal.at(35) + 0.27 * DAY,
        upgrade={tenant.tenant_id: first + rng.random() * 3 * DAY for tenant in tenants},
        traveller=(
            away,
            max(away.users[1:], key=lambda user: user.activity),
            pool.take("mobile"),
            cal.at(32),
            cal.at(37),
        ),
        msp_net=office,
        msp=msp,
        msp_from=cal.at(34) + 0.35 * DAY,
        restart=(posts[0], cal.at(36) + 0.40 * DAY, cal.at(36) + 0.78 * DAY),
        outage=(posts[-1], cal.at(39) + 0.30 * DAY, cal.at(39) + 0.62 * DAY),
    )


def _attack(rng: random.Random, pool: Pool, tenants: list[Tenant], journal: Tenant) -> Attack:
    cloud = [tenant for tenant in tenants if "m365" in tenant.services]
    fast, *slow = cloud[1], cloud[0], cloud[2]
    boxes: dict[str, list[str]] = {}
    for tenant, count in zip((fast, *slow), (22, 12, 8), strict=True):
        everyone = [user.address for user in tenant.users[1:]] + tenant.shared
        boxes[tenant.tenant_id] = rng.sample(everyone, min(count, len(everyone)))
    hosts = tuple(rng.sample(range(3, 250), 3))
    net, other = pool.take("hosting"), pool.take("hosting")
    return Attack(net, hosts, fast, tuple(slow), boxes, journal, other, rng.randrange(3, 250))


def build(seed: int, cal: Calendar, count: int, *, incident: bool) -> Setting:
    """The setting of a world; the same seed gives the same setting, with the incident or without."""
    rng = random.Random(f"{seed}/setting")
    pool = Pool(random.Random(f"{seed}/pool"))
    egress = {region: [pool.take("vendor"), pool.take("vendor"), pool.take("vendor", v6=True)] for region in REGIONS}
    tenants = populate(seed, pool, count, cal.start)
    journal = next(tenant for tenant in tenants if tenant.journal)
    backup_net, roaming = pool.take("hosting"), [pool.take("mobile") for _ in range(12)]
    attack = _attack(rng, pool, tenants, journal)
    harmless = _harmless(rng, pool, cal, tenants, journal)
    backups = {t.tenant_id: (guid(rng), guid(rng)) for t in tenants if "backup" in t.services}
    return Setting(
        seed=seed,
        cal=cal,
        tenants=tenants,
        egress=egress,
        app_id=guid(rng),
        thumbprint=f"{rng.getrandbits(160):040X}",
        backup_app_id=guid(rng),
        backup_net=backup_net,
        backup_ids=backups,
        roaming=roaming,
        decoys=[pool.take(rng.choice(("hosting", "isp", "mobile", "business"))) for _ in range(60)],
        harmless=harmless,
        attack=attack if incident else None,
    )
