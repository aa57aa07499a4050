"""What the acts of the wide world write on: the logs of every tenant, the vendor's jobs, and what is true."""

import random
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from flows.world.emit_exchange import Request
from flows.world.emit_ual import Audit
from flows.world.model import DAY, Calendar, Net, Pool, Record, Tenant, jitter
from flows.world.wide import cast
from flows.world.wide.emit_hosts import Host, LdapHost
from flows.world.wide.places import Place, network
from flows.world.wide.reads import Read

Label = str | None


@dataclass(slots=True)
class Logs:
    """What a tenant's systems will have written."""

    signins: list[Record] = field(default_factory=list)
    directory: list[Record] = field(default_factory=list)  # Entra's audit
    audit: list[Audit] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    mail: Host | None = None
    ldap: LdapHost | None = None
    requests: list[tuple[Request, Label]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Job:
    """A run of one of the vendor's jobs."""

    start: float  # UTC seconds
    end: float
    tenant: Tenant
    service: str
    credential: str
    kind: str
    principal: str
    ip: str
    items: int
    ok: bool
    name: str
    label: Label


@dataclass(frozen=True, slots=True)
class Gap:
    """Records of a source that never arrived: of one tenant, from and until (UTC seconds)."""

    tenant_id: str
    source: str  # entra, directory, ual, mx1, ldap1, ex01
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Spy:
    """A second reader of a journal mailbox."""

    times: tuple[float, ...]
    place: Place
    label: str
    deletes: bool


@dataclass(slots=True)
class Stage:
    """The wide world while it is made."""

    seed: int
    cal: Calendar
    pool: Pool
    tenants: list[Tenant]
    vendor: cast.Vendor
    isps: list[Net]  # residential networks, in which people of many tenants live
    roaming: list[Net]
    decoys: list[Net]  # from which the world's noise comes
    backups: dict[str, cast.App]
    backup_place: Place
    crm: dict[str, cast.App]
    crm_place: Place
    logs: dict[str, Logs] = field(default_factory=lambda: defaultdict(Logs))
    jobs: list[Job] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    networks: list[list[object]] = field(default_factory=list)  # further rows of the reference table
    contexts: list[dict[str, str]] = field(default_factory=list)
    rotations: list[list[object]] = field(default_factory=list)
    revoked: dict[str, tuple[str, float]] = field(default_factory=dict)  # credential -> its successor, when
    compromised: dict[str, tuple[float, float]] = field(default_factory=dict)
    born: dict[str, float] = field(default_factory=dict)  # mailbox -> when it was made
    hires: dict[str, list[tuple[str, str]]] = field(default_factory=dict)  # tenant_id -> mailbox, name, made later
    since: dict[str, float] = field(default_factory=dict)  # tenant_id -> when it became a customer, if within the world
    steps: list[dict[str, Any]] = field(default_factory=list)
    benign: list[dict[str, Any]] = field(default_factory=list)
    seen: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))  # label -> network, address
    facts: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    clocks: dict[str, float] = field(default_factory=dict)  # host -> seconds by which its clock is ahead
    dr: tuple[str, str, float, float] = ("", "", 0.0, 0.0)  # region, region that stands in, from, until
    upgrade: dict[str, float] = field(default_factory=dict)  # tenant_id -> moment of the vendor's new client
    new_egress: tuple[str, Net, float] | None = None  # region, network, from
    away: dict[str, list[tuple[float, float]]] = field(default_factory=dict)  # tenant_id -> poller not running
    stuck: dict[str, float] = field(default_factory=dict)  # tenant_id -> moment at which its poller breaks off
    spies: dict[str, list[Spy]] = field(default_factory=dict)  # tenant_id -> who else reads the journal

    def rng(self, *stream: object) -> random.Random:
        """The random stream of this name."""
        return random.Random("/".join(str(part) for part in (self.seed, "wide", *stream)))

    def of(self, *services: str, new: bool = False) -> list[Tenant]:
        """Tenants that have all of these services, from the beginning; with `new` also those that join later."""
        known = () if new else self.since
        return [t for t in self.tenants if set(services) <= t.services and t.tenant_id not in known]

    def day(self, rng: random.Random, low: float, high: float) -> float:
        """Begin (UTC) of a day between these shares of the world's days."""
        return self.cal.t0 + int(self.cal.days * jitter(rng, low, high)) * DAY

    def begin(self, tenant: Tenant) -> float:
        """The first moment of a tenant's logs."""
        return self.since.get(tenant.tenant_id, self.cal.t0)

    def newest(self, tenant: Tenant, mailbox: str, ts: float) -> int:
        """How many messages the mailbox has had."""
        rate = 4 + int(tenant.mailbox_guids[mailbox][:2], 16) / 16
        return 500 + int(rate * (ts - self.cal.t0 + 1) / DAY)

    def cert(self, tenant: Tenant, ts: float) -> cast.Cert:
        """The vendor's certificate in use at a tenant."""
        group = self.vendor.group[tenant.tenant_id]
        moved = group == 1 and ts >= self.vendor.moves.get(tenant.tenant_id, self.cal.end)
        return self.vendor.certs[2 if moved else group]

    def app(self, tenant: Tenant, ts: float, *, cert: cast.Cert | None = None) -> cast.App:
        """The vendor's application in a tenant as it signs in at a moment."""
        one = cert or self.cert(tenant, ts)
        key = self.vendor.new_keys[tenant.tenant_id] if one is self.vendor.certs[2] else tenant.key_id
        version = "6.5.0" if ts >= self.upgrade.get(tenant.tenant_id, self.cal.end) else "6.4.2"
        client = f"Client=WebServices;NorthgateConnect/{version} (ExchangeServicesClient/15.00.0913.015);"
        return cast.App(
            self.vendor.app_id,
            "Northgate Connect for Microsoft 365",
            tenant.sp_id,
            key,
            one.thumbprint.upper(),
            client,
        )

    def egress(self, rng: random.Random, tenant: Tenant, ts: float, *, v6: bool = False) -> tuple[str, Net, Label]:
        """The vendor's address for a connection, its network, and the label of the event that made it so."""
        region, stand_in, begin, end = self.dr
        if tenant.region == region and begin <= ts < end:
            net = self.vendor.egress[stand_in][0]
            return net.host(rng.randrange(10, 14)), net, "N15-failover"
        if self.new_egress and tenant.region == self.new_egress[0] and ts >= self.new_egress[2] and rng.random() < 0.5:
            return self.new_egress[1].host(rng.randrange(10, 14)), self.new_egress[1], "N1-egress"
        nets = self.vendor.egress[tenant.region]
        net = nets[2] if v6 and rng.random() < 0.1 else nets[rng.random() < 0.4]
        return net.host(rng.randrange(10, 14)), net, None

    def note(self, label: Label, ip: str, net: Net, **counts: int) -> None:
        """Remembers where a labelled record came from, and counts."""
        if label:
            self.seen[label].add((network(net), ip))
            for key, value in counts.items():
                self.facts[label][key] += value

    def harmless(
        self, name: str, what: str, tenants: list[str], near: list[str], place: Place | None = None, **more: object
    ) -> None:
        """Registers a benign event; `more`: credential_id, principal_id, mailboxes, first_seen, last_seen."""
        found = place.networks if place else []
        plain = {"id": name, "what": what, "tenant_ids": sorted(tenants), "near_miss_of": near}
        self.benign.append(plain | {"network": found[0] if found else None, "networks": found} | more)

    def step(
        self, name: str, tenant: Tenant, credential: str | None, principal: str, detections: list[str], *,
        app_id: str | None = None, mailboxes: list[str] | None = None, paths: str,
    ) -> str:  # fmt: skip
        """Registers a planted step (named by letter, number and what it is) and returns its label."""
        label = f"{name}-{tenant.tenant_id}"
        self.steps.append({
            "step": label, "campaign": name[0], "tenant_id": tenant.tenant_id, "credential_id": credential,
            "principal_id": principal,
            "app_id": app_id, "mailboxes": sorted(mailboxes or []), "detections": detections,
            "grep": {"paths": f"logs/{tenant.tenant_id}/{paths}/*"},
        })  # fmt: skip
        return label


def build(seed: int, cal: Calendar, count: int) -> Stage:
    """The stage before anything happens; the same seed gives the same."""
    pool, rng = Pool(random.Random(f"{seed}/wide/pool")), random.Random(f"{seed}/wide/stage")
    isps = [pool.take("isp", v6=rng.random() < 0.2) for _ in range(40)]
    members = cast.tenants(seed, pool, cal, count, isps)
    made = cast.vendor(rng, pool, members)
    backup_client = "Client=WebServices;KeepsafeBackup/11.2 (ExchangeServicesClient/15.00.0913.022);"
    graph = "00000003-0000-0000-c000-000000000000"
    backup_id, crm_id = f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(128):032x}"
    ids = [f"{t[:8]}-{t[8:12]}-{t[12:16]}-{t[16:20]}-{t[20:]}" for t in (backup_id, crm_id)]
    stage = Stage(
        seed=seed, cal=cal, pool=pool, tenants=members, vendor=made, isps=isps,
        roaming=[pool.take("mobile") for _ in range(12)],
        decoys=[pool.take(rng.choice(("hosting", "isp", "cloud", "business"))) for _ in range(60)],
        backups={
            t.tenant_id: cast.registered(rng, "Keepsafe Cloud Backup", app_id=ids[0], client=backup_client)
            for t in members if "backup" in t.services
        },
        backup_place=cast.servers(rng, pool, "hosting"),
        crm={
            t.tenant_id: cast.registered(rng, "Ledger CRM", app_id=ids[1], client="Client=REST;;", api_id=graph)
            for t in members if "crm" in t.services
        },
        crm_place=cast.servers(rng, pool, "cloud"),
    )  # fmt: skip
    for tenant in members:
        _hosts(stage, tenant)
    return stage


def clock(stage: Stage, rng: random.Random, host: str) -> float:
    """How far ahead a host's clock is: by seconds, at three in a hundred by minutes."""
    found = jitter(rng, 180, 540) * rng.choice((-1, 1)) if rng.random() < 0.03 else round(rng.gauss(0, 2), 3)
    stage.clocks[host] = found
    return found


def _hosts(stage: Stage, tenant: Tenant) -> None:
    """A tenant's mail and directory hosts."""
    rng, logs, domain = stage.rng("hosts", tenant.tenant_id), stage.logs[tenant.tenant_id], tenant.domain
    style = {"tz": tenant.tz, "style": tenant.mail_style}
    if tenant.services & {"pop3", "smtp"}:
        mapped = rng.random() < 0.3
        logs.mail = Host(rng, f"mx1.{domain}", mapped=mapped, skew=clock(stage, rng, f"mx1.{domain}"), **style)
    if "ldap" in tenant.services:
        logs.ldap = LdapHost(rng, f"ldap1.{domain}", skew=clock(stage, rng, f"ldap1.{domain}"), **style)


def known_since(cal: Calendar) -> str:
    """When the vendor's networks and certificates came into use, long before the world begins."""
    return f"{cal.start - timedelta(days=380)}T00:00:00Z"
