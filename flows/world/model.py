"""What the world is made of: networks, people, tenants, and the random draws behind them."""

import ipaddress
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

DAY = 86_400.0
HOUR_WEIGHTS = (1, 1, 1, 1, 1, 2, 4, 9, 18, 24, 25, 22, 17, 21, 24, 23, 20, 14, 8, 6, 5, 4, 3, 2)
HOURS = tuple(range(24))
WEEKDAY_WEIGHTS = (1.05, 1.1, 1.05, 1.0, 0.9, 0.2, 0.15)

Record = tuple[float, str, str | None]  # UTC seconds, the line as written, label of a planted step


def guid(rng: random.Random) -> str:
    """A random GUID, lower case."""
    text = f"{rng.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def poisson(rng: random.Random, mean: float) -> int:
    """A Poisson count; the normal approximation from a mean of 40."""
    if mean > 40:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, count, product = math.exp(-mean), 0, rng.random()
    while product > limit:
        count += 1
        product *= rng.random()
    return count


def dispersed(rng: random.Random, mean: float, shape: float = 3.0) -> int:
    """A negative binomial count: Poisson with a gamma rate of this shape."""
    return poisson(rng, mean * rng.gammavariate(shape, 1 / shape))


@dataclass(frozen=True, slots=True)
class Net:
    """A network and the autonomous system that announces it. IPv4 is a /24, IPv6 a /64."""

    cidr: str
    kind: str
    asn: int
    organisation: str
    country: str

    @property
    def prefix(self) -> str:
        """The text with which every address of the network begins."""
        return self.cidr.rsplit(".", 1)[0] + "." if "." in self.cidr else self.cidr.split("/")[0]

    def host(self, number: int) -> str:
        """The address with this last part (1 to 254)."""
        return f"{self.prefix}{number}" if "." in self.cidr else f"{self.prefix}{number:x}"


# Autonomous system numbers reserved for documentation (RFC 5398): kind -> number, organisation, country.
SYSTEMS: dict[str, tuple[tuple[int, str, str], ...]] = {
    "hosting": (
        (64496, "Basalt Hosting", "NL"),
        (64497, "Cirrus Rack", "US"),
        (64498, "Lowland VPS", "DE"),
        (64499, "Harbour Cloud", "SG"),
    ),
    "isp": ((64500, "Meadow Broadband", "GB"), (64501, "Prairie Cable", "US"), (64502, "Rhein Telekabel", "DE")),
    "mobile": ((64503, "Kestrel Mobile", "GB"), (64504, "Redwood Wireless", "US")),
    "business": ((65536, "Fjord Business Net", "SE"), (65537, "Midland Fibre", "GB"), (65538, "Lakeside Metro", "US")),
    "cloud": ((64505, "Stratus Compute", "US"), (64506, "Altocumulus", "IE"), (64507, "Nimbus East", "SG")),
    "vendor": ((64511, "Northgate Mail", "GB"),),
}


class Pool:
    """Hands out networks of documentation, benchmark and shared ranges; every purpose draws from this one pool."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        ranges = ("198.18.0.0/15", "100.64.0.0/16", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
        self._free = [str(net) for text in ranges for net in ipaddress.ip_network(text).subnets(new_prefix=24)]
        rng.shuffle(self._free)
        self._v6 = set[int]()
        self.taken: list[Net] = []

    def take(self, kind: str, *, v6: bool = False) -> Net:
        """A network that nobody has yet, announced by a system of this kind."""
        asn, organisation, country = self._rng.choice(SYSTEMS[kind])
        if v6:
            site = self._rng.randrange(1, 0xFFFF)
            while site in self._v6:
                site = self._rng.randrange(1, 0xFFFF)
            self._v6.add(site)
            cidr = f"2001:db8:{site:x}:{self._rng.randrange(1, 0xFF):x}::/64"
        else:
            cidr = self._free.pop()
        net = Net(cidr, kind, asn, organisation, country)
        self.taken.append(net)
        return net


@dataclass(frozen=True, slots=True)
class User:
    """A person with a mailbox, and where the person usually is."""

    address: str
    name: str
    department: str
    sid: str
    object_id: str
    mailbox_guid: str
    user_key: str
    home: Net
    home_host: int
    activity: float
    agent: str
    vip: bool = False


@dataclass(slots=True)
class Tenant:
    """A customer of the gateway."""

    tenant_id: str
    name: str
    acc: str
    domain: str
    region: str
    tz: str
    services: frozenset[str]  # m365, onprem, pop3, smtp, backup
    entra_id: str
    onboarded: date
    office: Net
    users: list[User]
    shared: list[str]
    scope: list[str]  # mailboxes that the vendor's application reads
    sp_id: str
    key_id: str
    container: str  # jsonl, array, csv
    journal: str = ""
    poll_minutes: int = 15
    mail_style: str = "bsd"
    mail_per_day: float = 55.0
    mailbox_guids: dict[str, str] = field(default_factory=dict)

    def admin(self) -> User:
        """The tenant's administrator."""
        return self.users[0]


@lru_cache(maxsize=4096)
def _offset(tz: str, day: int) -> float:
    moment = datetime.fromtimestamp(day * DAY + DAY / 2, tz=ZoneInfo(tz))
    delta = moment.utcoffset()
    return delta.total_seconds() if delta else 0.0


def utc_offset(tz: str, ts: float) -> float:
    """Seconds by which local time is ahead of UTC (one value a day, taken at noon)."""
    return _offset(tz, int(ts // DAY))


@lru_cache(maxsize=100_000)
def clock(second: int) -> str:
    """HH:MM:SS of a second of the day."""
    return f"{second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d}"


@lru_cache(maxsize=4096)
def civil(day: int) -> tuple[int, int, int]:
    """Year, month and day of the month of a day since 1970."""
    at = date(1970, 1, 1) + timedelta(days=day)
    return at.year, at.month, at.day


@lru_cache(maxsize=4096)
def _iso_day(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()


def iso(ts: float) -> str:
    """YYYY-MM-DDTHH:MM:SS of UTC seconds; the fraction is cut."""
    day, second = divmod(int(ts), 86_400)
    return f"{_iso_day(day)}T{clock(second)}"


@dataclass(frozen=True, slots=True)
class Calendar:
    """The days of the world, and the clock of its plot."""

    start: date
    days: int
    t0: float = field(init=False)  # the first moment, in UTC seconds
    end: float = field(init=False)  # the moment after the last day

    def __post_init__(self) -> None:
        """Sets the two ends."""
        t0 = datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC).timestamp()
        object.__setattr__(self, "t0", t0)
        object.__setattr__(self, "end", t0 + self.days * DAY)

    def at(self, day: float) -> float:
        """The moment of the plot that lies at this day of a world of 45 days; the hour of the day is kept."""
        whole = math.floor(day)
        return self.t0 + round(whole * self.days / 45) * DAY + (day - whole) * DAY

    def each(self) -> Iterator[tuple[int, float, float]]:
        """Day number, its UTC begin, and its weight by weekday."""
        for number in range(self.days):
            weekday = (self.start + timedelta(days=number)).weekday()
            yield number, self.t0 + number * DAY, WEEKDAY_WEIGHTS[weekday]

    def day_times(self, rng: random.Random, tz: str, begin: float, mean: float) -> list[float]:
        """Moments of one local day: over-dispersed in number, following office hours, inside the world."""
        offset = utc_offset(tz, begin)
        hours = rng.choices(HOURS, HOUR_WEIGHTS, k=dispersed(rng, mean))
        times = (begin - offset + hour * 3600 + rng.random() * 3600 for hour in hours)
        return sorted(ts for ts in times if self.t0 <= ts < self.end)


def jitter(rng: random.Random, low: float, high: float) -> float:
    """A uniform draw with milliseconds."""
    return round(rng.uniform(low, high), 3)
