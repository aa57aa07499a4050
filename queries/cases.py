"""Cases: findings that belong together, ranked.

Findings are linked by what an intruder carries from one place to the next and an innocent bystander does not share:

- a source network or autonomous system that is not declared (vendor, corporate, Microsoft), not private, and that few
  tenants knew before: a provider whose customers are everywhere links nobody;
- a client fingerprint that few tenants knew before;
- a credential or a principal of one tenant, and a mailbox where the finding names only a few;
- a declared network, and nothing else, where all sources of a finding are declared and it weighs little: a change
  of the vendor's egress is one case of its own, and is not drawn into an intruder's by the credentials that both used;
- a credential that opens several tenants links two findings only where both come from such a source: all customers of
  the vendor share it, and everything would become one case otherwise, while two strangers with one key are most likely
  one.

A case of low findings of one family, or from declared networks alone, is a novelty without a second signal: it is kept
in the watched tail, behind all others, and not shown; it comes forth when it grows by a finding that weighs more, or by
one of another family from elsewhere.

Two findings further apart than REACH are not linked directly. A tenant alone links nothing.
"""

import ipaddress
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from queries.catalogue import SEVERITIES
from queries.findings import ENTITIES, Finding
from queries.text import iso
from queries.wording import summary

if TYPE_CHECKING:
    import duckdb

REACH = timedelta(days=14)
CAP = 1000.0
PER_TACTIC = 0.25
FEW_TENANTS = 20  # below, a share of tenants says nothing
COMMON_SHARE = 0.05
FEW_MAILBOXES = 3
WATCHED = ("info", "low")
DECLARED = ("vendor_egress", "vendor", "corporate", "microsoft")

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """Linked findings, in order of time. `rank` is 1 for the highest score; cases that are `watched` come last."""

    case_id: str
    rank: int
    score: float
    severity: str
    families: tuple[str, ...]
    tactics: tuple[str, ...]
    summary: str
    first_seen: datetime
    last_seen: datetime
    entities: Mapping[str, tuple[str, ...]]
    findings: tuple[Finding, ...]
    shown: bool = True
    watched: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As `hunt -t json` shows it."""
        return {
            "case_id": self.case_id,
            "rank": self.rank,
            "score": self.score,
            "severity": self.severity,
            "families": list(self.families),
            "tactics": list(self.tactics),
            "summary": self.summary,
            "first_seen": iso(self.first_seen),
            "last_seen": iso(self.last_seen),
            "entities": {key: list(self.entities[key]) for key in ENTITIES},
            "findings": [finding.to_dict() for finding in self.findings],
        }


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is common in the archive, as far as the findings name it.

    Attributes:
        n_tenants: tenants with activity.
        declared: networks that are declared.
        arrivals: (kind, value) with kind net, asn or client to the day of first use by tenant.
        shared: credentials and principals, as (kind, value), that are used in several tenants.
    """

    n_tenants: int = 0
    declared: frozenset[str] = frozenset()
    arrivals: Mapping[tuple[str, str], Sequence[date]] = field(default_factory=dict)
    shared: frozenset[tuple[str, str]] = frozenset()

    def is_common(self, kind: str, value: str, day: date) -> bool:
        """Whether many tenants knew the value before `day`."""
        before = sum(1 for first in self.arrivals.get((kind, value), ()) if first < day)
        if self.n_tenants < FEW_TENANTS:
            return before >= (1 if kind == "client" else 2)
        return before > COMMON_SHARE * self.n_tenants


def surroundings(
    con: "duckdb.DuckDBPyConnection", findings: Sequence[Finding], first: date, last: date
) -> Surroundings:
    """Reads from context_days, between two days, how common the values are that the findings name."""
    nets = sorted({net for finding in findings for net in finding.entities["source_networks"]})
    clients = sorted({client for finding in findings for client in finding.facts.get("client_fps") or ()})
    statement = "select count(distinct tenant_id) from context_days where date between ? and ?"
    ((n_tenants,),) = con.execute(statement, [first, last]).fetchall()
    arrivals: dict[tuple[str, str], list[date]] = defaultdict(list)
    classes: set[str] = set()
    systems = sorted({source for finding in findings if (source := _system(finding))})
    looked_at = (("net", "src_net", nets), ("asn", "'AS' || src_asn", systems), ("client", "client_fp", clients))
    for kind, column, values in looked_at:
        for value, day, is_declared in _by_tenant(con, column, values, first, last):
            arrivals[kind, value].append(day)
            classes |= {value} if is_declared and kind == "net" else set()
    shared = {
        (kind, value)
        for kind, column in (("credential", "credential_id"), ("principal", "principal_id"))
        for value, n in _tenant_counts(con, column, _named(findings, f"{kind}_ids"), first, last)
        if n > 1
    }
    declared = frozenset(classes | _declared(con, nets))
    return Surroundings(int(n_tenants), declared, dict(arrivals), frozenset(shared))


def _named(findings: Sequence[Finding], key: str) -> list[str]:
    return sorted({value for finding in findings for value in finding.entities[key]})


def _by_tenant(
    con: "duckdb.DuckDBPyConnection", column: str, values: list[str], first: date, last: date
) -> list[tuple[str, date, bool]]:
    if not values:
        return []
    statement = f"""
select {column}, min(date), bool_or(src_class in (select unnest(?)))
from context_days
where date between ? and ? and {column} in (select unnest(?)) and outcome = 'success'
group by {column}, tenant_id
order by all
"""
    return [(v, day, bool(d)) for v, day, d in con.execute(statement, [list(DECLARED), first, last, values]).fetchall()]


def _tenant_counts(
    con: "duckdb.DuckDBPyConnection", column: str, values: list[str], first: date, last: date
) -> list[tuple[str, int]]:
    if not values:
        return []
    statement = f"""
select {column}, count(distinct tenant_id) from context_days
where date between ? and ? and {column} in (select unnest(?))
group by {column} order by all
"""
    return [(value, int(n)) for value, n in con.execute(statement, [first, last, values]).fetchall()]


def _declared(con: "duckdb.DuckDBPyConnection", nets: Iterable[str]) -> set[str]:
    """Which of the networks lie within a declared one, whatever its dates: it is no stranger's."""
    rows = con.execute("select network from networks where kind in (select unnest(?))", [list(DECLARED)]).fetchall()
    ranges = [network for (text,) in rows if (network := _network(text)) is not None]
    found = set()
    for text in nets:
        net = _network(text)
        if net is not None and any(net.version == r.version and net.subnet_of(r) for r in ranges):  # type: ignore[arg-type]
            found.add(text)
    return found


def is_declared(con: "duckdb.DuckDBPyConnection", nets: Sequence[str]) -> bool | None:
    """Whether networks are declared: all of them, none of them, or neither (also where only a part of one is)."""
    rows = con.execute("select network from networks where kind in (select unnest(?))", [list(DECLARED)]).fetchall()
    ranges = [network for (text,) in rows if (network := _network(text)) is not None]
    within = _declared(con, nets)
    if nets and within.issuperset(nets):
        return True
    found = [network for text in nets if (network := _network(text)) is not None]
    touched = any(net.version == r.version and net.overlaps(r) for net in found for r in ranges)
    return None if touched or not found else False


def _network(text: str | None) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text or "", strict=False)
    except ValueError:
        return None


def link(findings: Sequence[Finding], around: Surroundings) -> list[list[Finding]]:
    """Groups of findings that belong together, each in order of time."""
    order = sorted(findings, key=lambda finding: (finding.first_seen, finding.finding_id))
    parent = list(range(len(order)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    holders: dict[Key, list[int]] = defaultdict(list)
    for place, finding in enumerate(order):
        for key in _keys(finding, around):
            holders[key].append(place)
    for places in holders.values():
        reach_of, last = places[0], order[places[0]].last_seen
        for place in places[1:]:
            if order[place].first_seen - last <= REACH:
                parent[root(place)] = root(reach_of)
            reach_of, last = place, max(last, order[place].last_seen)
    groups: dict[int, list[Finding]] = defaultdict(list)
    for place, finding in enumerate(order):
        groups[root(place)].append(finding)
    return list(groups.values())


def _keys(finding: Finding, around: Surroundings) -> set[Key]:
    """What links the finding; a credential of many tenants only counts beside a strange source."""
    day, tenants = finding.first_seen.date(), finding.entities["tenant_ids"]
    nets = finding.entities["source_networks"]
    if finding.severity in WATCHED and _is_from_declared(finding, around):
        return {("egress", net) for net in nets}
    keys = _source_keys(finding, around)
    has_strange_source = bool(keys)
    clients = [client for client in finding.facts.get("client_fps") or () if client is not None]
    keys |= {("client", client) for client in clients if not around.is_common("client", client, day)}
    for kind in ("credential", "principal"):
        for value in finding.entities[f"{kind}_ids"]:
            if (kind, value) not in around.shared:
                keys |= {(kind, value, tenant) for tenant in tenants} or {(kind, value)}
            elif has_strange_source:
                keys.add((kind, value))
    if len(finding.entities["mailboxes"]) <= FEW_MAILBOXES:
        keys |= {("mailbox", mailbox) for mailbox in finding.entities["mailboxes"]}
    return keys


def _source_keys(finding: Finding, around: Surroundings) -> set[Key]:
    """Networks and autonomous systems of the finding that are a stranger's."""
    day, keys = finding.first_seen.date(), set[Key]()
    is_declared = bool(finding.facts.get("is_declared"))
    if is_declared and not finding.facts.get("is_new_client"):
        return keys
    for net in finding.entities["source_networks"]:
        if _is_site_local(net):
            keys |= {("net", net, tenant) for tenant in finding.entities["tenant_ids"]}
        elif net not in around.declared and not around.is_common("net", net, day):
            keys.add(("net", net))
    system = _system(finding)
    if system and not is_declared and not around.is_common("asn", system, day):
        keys.add(("asn", system))
    return keys


def _system(finding: Finding) -> str | None:
    """The autonomous system that is the finding's source, where it is one."""
    source = str(finding.facts.get("source") or "")
    return source if source.startswith("AS") else None


_SITE_LOCAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "fc00::/7", "fe80::/10",
        "::1/128",
    )
)  # fmt: skip


def _is_site_local(text: str) -> bool:
    network = _network(text)
    return network is not None and any(
        network.version == site.version and network.overlaps(site) for site in _SITE_LOCAL
    )


def build(findings: Sequence[Finding], around: Surroundings, most_shown: int) -> tuple[Case, ...]:
    """Cases from findings, ranked; those after `most_shown`, and those only watched, are kept but not shown."""
    groups = [(is_watched(group, around), score(group), group) for group in link(findings, around)]
    groups.sort(key=lambda item: (item[0], -item[1], item[2][0].first_seen, _case_id(item[2])))
    return tuple(
        _case(group, points, rank, shown=rank <= most_shown, watched=watched)
        for rank, (watched, points, group) in enumerate(groups, 1)
    )


def is_watched(findings: Iterable[Finding], around: Surroundings) -> bool:
    """Whether a case is kept in the watched tail.

    No finding of it weighs more than low, and those that are signals are of one family: neither what is only told
    (info) nor what came from declared networks alone is one, since a change of egress shows in several families.
    """
    signals = set[str]()
    for finding in findings:
        if finding.severity not in WATCHED:
            return False
        if finding.severity == "low" and not _is_from_declared(finding, around):
            signals.add(finding.family)
    return len(signals) <= 1


def _is_from_declared(finding: Finding, around: Surroundings) -> bool:
    nets = finding.entities["source_networks"]
    return bool(nets) and all(net in around.declared for net in nets)


def score(findings: Sequence[Finding]) -> float:
    """Points of a case.

    Per detection, the highest finding of each day counts; days are taken from the highest down, the n-th by 1/sqrt(n).
    The sum grows by a quarter for each further ATT&CK tactic and is capped at 1,000.
    """
    days: dict[str, dict[date, float]] = defaultdict(dict)
    for finding in findings:
        of_detection, day = days[finding.detection], finding.first_seen.date()
        of_detection[day] = max(of_detection.get(day, 0.0), finding.score)
    total = sum(
        points / math.sqrt(place)
        for of_detection in days.values()
        for place, points in enumerate(sorted(of_detection.values(), reverse=True), 1)
    )
    tactics = {tactic for finding in findings for tactic in finding.tactics}
    return round(min(CAP, total * (1 + PER_TACTIC * max(0, len(tactics) - 1))), 2)


def _case_id(findings: Sequence[Finding]) -> str:
    return "C-" + min(finding.finding_id for finding in findings).removeprefix("F-")


def _case(findings: Sequence[Finding], points: float, rank: int, *, shown: bool, watched: bool) -> Case:
    entities = {key: tuple(sorted({v for finding in findings for v in finding.entities[key]})) for key in ENTITIES}
    return Case(
        case_id=_case_id(findings),
        rank=rank,
        score=points,
        severity=max((finding.severity for finding in findings), key=SEVERITIES.index),
        families=tuple(sorted({finding.family for finding in findings})),
        tactics=tuple(sorted({tactic for finding in findings for tactic in finding.tactics})),
        summary=summary(findings, entities),
        first_seen=findings[0].first_seen,
        last_seen=max(finding.last_seen for finding in findings),
        entities=entities,
        findings=tuple(findings),
        shown=shown and not watched,
        watched=watched,
    )
