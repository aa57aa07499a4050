"""Where strangers come from and what they call themselves.

Attackers and harmless novelties draw from the same functions here, so that neither can be told by its network or name.
"""

import ipaddress
import random
from dataclasses import dataclass

from flows.world.model import Net, Pool

Where = tuple[str, Net]  # an address and the network that announces it
KINDS = ("hosting", "cloud", "isp", "business", "mobile")
SHAPES = ("one", "few", "many", "site")

_EWS_NAMES = (
    "ExchangeServicesClient/15.{}.{}.0", "ExchangeServicesClient/0.0.0.0",
    "PaperTrail/{}.{} (ExchangeServicesClient/15.00.0913.022)",
    "MailBridge/{}.{} (ExchangeServicesClient/15.01.2507.006)", "python-requests/2.{}.{}", "exchangelib/4.{}.{}",
    "Java/11.0.{}_{}",
    "DeskLink/{}.{}", "MailboxMover/{}.{} (ExchangeServicesClient/15.00.0847.030)",
)  # fmt: skip
_REST_NAMES = ("Client=REST;Client=RESTSystem;;", "Client=REST;;", "Client=REST;Client=RESTSystem;PaperTrail/{}.{};")
APP_NAMES = (
    "Paper Trail", "Desk Link", "Mail Bridge", "Quick Forms", "Ticket Tower", "Invoice Lens", "Room Planner",
    "Contact Loom", "Case Binder",
    "Legacy Sync Test", "Graph Sampler", "Report Builder", "Calendar Kit", "Archive Viewer",
)  # fmt: skip


def network(net: Net) -> str:
    """The network as sources are told apart: /24 of IPv4, /48 of IPv6."""
    found = ipaddress.ip_network(net.cidr)
    return str(found.supernet(new_prefix=48) if found.version == 6 and found.prefixlen > 48 else found)


@dataclass(frozen=True, slots=True)
class Place:
    """Where somebody works from: one or more networks; without hosts any address of them."""

    nets: tuple[Net, ...]
    hosts: tuple[int, ...] = ()

    def at(self, rng: random.Random) -> Where:
        """An address for one connection."""
        net = self.nets[rng.randrange(len(self.nets))]
        if net.cidr.endswith("/48"):
            return (
                f"{net.prefix[:-2]}:{rng.randrange(1, 0xFFFF):x}:{rng.randrange(1, 0xFFFF):x}::{self.hosts[0]:x}",
                net,
            )
        return net.host(self.hosts[rng.randrange(len(self.hosts))] if self.hosts else rng.randrange(2, 250)), net

    @property
    def networks(self) -> list[str]:
        """All of its networks."""
        return sorted({network(net) for net in self.nets})


def site(pool: Pool, kind: str) -> Net:
    """A whole IPv6 /48, within which a customer of a host or provider changes addresses at will."""
    net = pool.take(kind, v6=True)
    return Net(network(net), net.kind, net.asn, net.organisation, net.country)


def stranger(
    rng: random.Random, pool: Pool, kinds: tuple[str, ...] = KINDS[:3], shapes: tuple[str, ...] = SHAPES
) -> Place:
    """A place that nobody here has worked from: one host, a few of one network, many networks, or an IPv6 site."""
    kind, shape = rng.choice(kinds), rng.choice(shapes)
    if shape == "site":
        return Place((site(pool, kind),), (rng.randrange(1, 0xFFFF),))
    count = rng.randrange(6, 16) if shape == "many" else 1
    hosts = () if shape == "many" else tuple(rng.sample(range(3, 250), 1 if shape == "one" else rng.randrange(2, 5)))
    return Place(tuple(pool.take(kind) for _ in range(count)), hosts)


def agent(rng: random.Random) -> str:
    """A user agent that is new to whoever sees it."""
    name = rng.choice(_EWS_NAMES)
    return name.format(rng.randrange(1, 30), rng.randrange(0, 3000)) if "{" in name else name


def client(rng: random.Random, *, rest: bool = False) -> str:
    """A ClientInfoString of web services, or of REST."""
    if rest:
        return rng.choice(_REST_NAMES).format(rng.randrange(1, 9), rng.randrange(20))
    return f"Client=WebServices;{agent(rng)};"
