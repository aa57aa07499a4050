"""What is expected: rules of the reference table `contexts`, and the findings that they silence.

A context is a credential (or a principal), a network, a client and an operation. A rule is conjunctive: it says who,
from which networks, and with which clients or which operations, for a time. A finding is silenced only when every
context in its evidence rows is covered by one rule that was valid then; what a finding has no rows for stays. A rule
may be for some detections alone: that a reader is known does not make it expected that messages are missing.

Nothing is expected of an address alone: whoever sits behind it may hold a stolen key.
"""

import hashlib
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from queries.findings import Finding
from queries.schedules import minutes_of
from queries.text import iso

if TYPE_CHECKING:
    import duckdb

NOTHING = "-"  # stands for: the row names none
MOST_CONTEXTS = 5_000  # of one finding; one with more is not silenced
WIDEST = {4: 8, 6: 16}  # shortest prefix of a rule's network, by version of the protocol

# How an event table names the parts of a context. A text of the client's own becomes a fingerprint.
_PARTS: Mapping[str, Mapping[str, str]] = {
    "access_events": {
        "credential": "credential_id", "principal": "coalesce(principal_id, app_id)", "client": "client_fp",
        "family": "ua_family", "operation": "action",
        "session": "tenant_id, host, protocol, session_id",
    },
    "mail_events": {
        "credential": "'pw:' || sasl_username", "principal": "sasl_username",
        "client": "'helo:' || left(sha256(helo), 16)", "family": "null", "operation": "event",
    },
    "change_events": {
        "credential": "null", "principal": "coalesce(actor_id, app_id)",
        "client": "'ua:' || left(sha256(user_agent), 16)", "family": "null", "operation": "op",
    },
    "gateway_jobs": {
        "credential": "credential_id", "principal": "principal_id", "client": "null", "family": "null",
        "operation": "service",
    },
}  # fmt: skip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Context:
    """One context of a finding's evidence rows; all texts in lower case but the tenant. `minutes` are of the week."""

    tenant: str | None
    credential: str | None
    principal: str | None
    address: str | None
    network: str | None
    client: str | None
    family: str | None
    operation: str | None
    first: datetime
    last: datetime
    minutes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """A row of `contexts`, read. A part that is empty holds for any value; `fault` says why it silences nothing."""

    rule_id: str
    credential: str | None
    principal: str | None
    tenants: frozenset[str]
    detections: frozenset[str]
    networks: tuple[Network, ...]
    no_network: bool
    clients: frozenset[str]
    operations: frozenset[str]
    schedule: frozenset[int] | None
    valid_from: datetime | None
    valid_to: datetime
    owner: str
    reason: str
    expired_at: datetime | None = None
    fault: str | None = None

    def may_silence(self, finding: Finding) -> bool:
        """Whether the rule is about the finding's detection, and could be about whom it names, if it names anyone."""
        if self.detections and finding.detection not in self.detections:
            return False
        named = finding.entities
        held = [value.lower() for value in named["credential_ids"]]
        known = [value.lower() for value in (*named["principal_ids"], *named["app_ids"])]
        return not (held or known) or any(
            self._who(c, p) for c in [*held, None] for p in [*known, None] if c is not None or p is not None
        )

    def covers(self, context: Context) -> bool:
        """Whether everything that the rule says holds for the context."""
        return (
            self.fault is None
            and self._who(context.credential, context.principal, strict=True)
            and (not self.tenants or context.tenant in self.tenants)
            and self._where(context)
            and (not self.clients or not self.clients.isdisjoint(_clients(context)))
            and (not self.operations or context.operation in self.operations)
            and (self.valid_from is None or context.first >= self.valid_from)
            and context.last < self.valid_to
            and (self.schedule is None or context.minutes <= self.schedule)
        )

    def _who(self, credential: str | None, principal: str | None, *, strict: bool = False) -> bool:
        """Whether the rule is about this one; what is not known counts as fitting unless `strict`."""
        if self.credential is not None and credential != self.credential and (strict or credential is not None):
            return False
        if self.principal is None or (principal is None and not strict):
            return True
        return principal is not None and fits(self.principal, principal)

    def _where(self, context: Context) -> bool:
        place = _network(context.address or context.network)
        if place is None:
            return self.no_network and context.address is None and context.network is None
        return any(place.version == n.version and place.subnet_of(n) for n in self.networks)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """What is told of a rule that silenced something."""
        return {"rule_id": self.rule_id, "owner": self.owner, "reason": self.reason, "valid_to": iso(self.valid_to)}


@dataclass(frozen=True, slots=True)
class Suppressed:
    """A finding that is expected, and the rules that say so."""

    finding: Finding
    rules: tuple[Rule, ...]

    def to_dict(self) -> dict[str, Any]:
        """As `hunt -t json` shows it."""
        told = self.finding.to_dict()
        kept = ("finding_id", "detection", "family", "score", "first_seen", "last_seen", "explanation")
        return {key: told[key] for key in kept} | {
            "severity": self.finding.severity, "rules": [rule.to_dict() for rule in self.rules]
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Expected:
    """What the rules made of a hunt. `rules` counts those in force, `faulty` those that can silence nothing."""

    rules: int = 0
    faulty: tuple[Rule, ...] = ()
    suppressed: tuple[Suppressed, ...] = ()

    @property
    def is_used(self) -> bool:
        """Whether there are rules at all."""
        return bool(self.rules or self.faulty)

    def to_dict(self) -> dict[str, Any]:
        """As `hunt -t json` shows it under `suppressed`."""
        return {
            "count": len(self.suppressed),
            "rules_in_force": self.rules,
            "rules_without_effect": [{"rule_id": rule.rule_id, "reason": rule.fault} for rule in self.faulty],
            "findings": [item.to_dict() for item in self.suppressed],
        }


def apply(
    con: "duckdb.DuckDBPyConnection", findings: Sequence[Finding], now: datetime
) -> tuple[list[Finding], Expected]:
    """Splits findings into those that stay and those that are expected.

    Args:
        con: connection with the event tables and `contexts`; TimeZone UTC.
        findings: of a hunt.
        now: time of the run: rules withdrawn by then silence nothing.
    """
    known = rules(con)
    in_force = [rule for rule in known if rule.fault is None and not withdrawn(rule, now)]
    faulty = tuple(rule for rule in known if rule.fault is not None and not withdrawn(rule, now))
    kept, silenced = [], []
    for finding in findings:
        used = _silencing(con, finding, in_force)
        if used:
            silenced.append(Suppressed(finding, used))
        else:
            kept.append(finding)
    silenced.sort(key=lambda item: (item.finding.first_seen, item.finding.finding_id))
    return kept, Expected(len(in_force), faulty, tuple(silenced))


def _silencing(con: "duckdb.DuckDBPyConnection", finding: Finding, in_force: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules that cover every context of the finding, one alone if one can; none where a context is not covered."""
    import duckdb

    able = [rule for rule in in_force if rule.may_silence(finding)]
    if not able or not finding.evidence.count:
        return ()
    timed = any(rule.schedule is not None for rule in able)
    try:
        found = contexts_of(con, finding.evidence.table, finding.sql, timed=timed)
    except duckdb.Error:  # what cannot be looked at is not expected
        return ()
    if not found or len(found) > MOST_CONTEXTS:
        return ()
    alone = next((rule for rule in able if all(map(rule.covers, found))), None)
    if alone is not None:
        return (alone,)
    used: dict[str, Rule] = {}
    for context in found:
        rule = next((rule for rule in (*used.values(), *able) if rule.covers(context)), None)
        if rule is None:
            return ()
        used[rule.rule_id] = rule
    return tuple(used[rule_id] for rule_id in sorted(used))


def contexts_of(con: "duckdb.DuckDBPyConnection", table: str, sql: str, *, timed: bool = False) -> list[Context]:
    """The contexts of a finding's evidence rows; one more than MOST_CONTEXTS at most.

    Args:
        con: connection with the event tables; TimeZone UTC.
        table: evidence table of the finding. One without credentials or principals has no contexts.
        sql: the statement that shows the evidence rows.
        timed: fill `minutes`.
    """
    parts = _PARTS.get(table)
    if parts is None:
        return []
    # A command of a session has no address of its own: it comes from where its session came from.
    session = f"over (partition by date, {parts['session']})" if "session" in parts else ""
    own, net = ("src_ip", "src_net")
    if session:
        own, net = (
            f"coalesce({name}, case when session_id is not null and min({name}) {session} = max({name}) {session} "
            f"then min({name}) {session} end)"
            for name in (own, net)
        )
    minutes = "list_sort(list(distinct cast((isodow(ts) - 1) * 1440 + hour(ts) * 60 + minute(ts) as integer)))"
    statement = f"""
with evidence_rows as ({sql}),
named as (
    select tenant_id, lower({parts["credential"]}) as credential, lower({parts["principal"]}) as principal,
        {own} as address, {net} as network, lower({parts["client"]}) as client, lower({parts["family"]}) as family,
        {parts["operation"]} as operation, ts
    from evidence_rows
)
select tenant_id, credential, principal, address, network, client, family, operation, min(ts), max(ts),
    {minutes if timed else "cast([] as integer[])"}
from named group by tenant_id, credential, principal, address, network, client, family, operation
order by all limit {MOST_CONTEXTS + 1}
"""
    names = [name for name in Context.__slots__ if name != "minutes"]
    rows = con.execute(statement).fetchall()
    return [Context(**dict(zip(names, row[:-1], strict=True)), minutes=frozenset(row[-1])) for row in rows]


def rules(con: "duckdb.DuckDBPyConnection") -> list[Rule]:
    """All rules of the table `contexts`, by id, withdrawn and faulty ones included."""
    cursor = con.execute("select * from contexts")
    columns = [column[0] for column in cursor.description]
    return sorted((rule(dict(zip(columns, row, strict=True))) for row in cursor.fetchall()), key=lambda r: r.rule_id)


def rule(row: Mapping[str, Any]) -> Rule:
    """A row of `contexts` as a rule; what is wrong with it stands in `fault`."""
    faults: list[str] = []
    networks, no_network = _networks(row.get("networks"), faults)
    schedule = _schedule(row.get("schedule"), faults)
    found = Rule(
        rule_id=row.get("rule_id") or identity(row),
        credential=_lower(row.get("credential_id")),
        principal=_lower(row.get("principal_pattern")),
        tenants=_list(row.get("tenants")),
        detections=frozenset(name.upper() for name in _list(row.get("detections"))),
        networks=networks,
        no_network=no_network,
        clients=frozenset(text.lower() for text in _list(row.get("client_fps"))),
        operations=frozenset(text.lower() for text in _list(row.get("operation_classes"))),
        schedule=schedule,
        valid_from=_utc(row.get("valid_from")),
        valid_to=_utc(row.get("valid_to")) or datetime.min.replace(tzinfo=UTC),
        owner=row.get("owner") or "",
        reason=row.get("reason") or "",
        expired_at=_utc(row.get("expired_at")),
    )
    faults += _lacking(found)
    return found if not faults else Rule(**{n: getattr(found, n) for n in found.__slots__} | {"fault": faults[0]})


def _lacking(rule: Rule) -> list[str]:
    """What a rule must say and does not."""
    faults = []
    if not (rule.clients - {NOTHING}) and not rule.operations:
        faults.append("it names an address alone: no client and no operation")
    if rule.credential is None and not (rule.principal or "").strip("*? "):
        faults.append("it names no credential and no principal")
    if not rule.networks and not rule.no_network:
        faults.append("it names no network")
    if rule.valid_from is not None and rule.valid_from >= rule.valid_to:
        faults.append("it ends before it begins")
    return faults


def identity(row: Mapping[str, Any]) -> str:
    """'S-' and 16 hex digits of the SHA-256 of what the rule says."""
    said = (
        "credential_id", "principal_pattern", "tenants", "networks", "client_fps", "operation_classes", "schedule",
        "detections", "valid_from", "valid_to", "owner", "reason", "added_at",
    )  # fmt: skip
    values = [iso(_utc(v)) if isinstance(v := row.get(name), datetime) else v for name in said]  # type: ignore[arg-type]
    return "S-" + hashlib.sha256(json.dumps(values, ensure_ascii=True).encode()).hexdigest()[:16]


def withdrawn(rule: Rule, now: datetime) -> bool:
    """Whether the rule was withdrawn by then."""
    return rule.expired_at is not None and rule.expired_at <= now


def fits(pattern: str, text: str) -> bool:
    """Whether a text is what a pattern with * says; in time linear in both for each part."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == first
    if not text.startswith(first) or len(text) < len(first) + len(rest[-1]) or not text.endswith(rest[-1]):
        return False
    place, end = len(first), len(text) - len(rest[-1])
    for part in rest[:-1]:
        found = text.find(part, place, end)
        if found < 0:
            return False
        place = found + len(part)
    return True


def _schedule(text: str | None, faults: list[str]) -> frozenset[int] | None:
    if not text:
        return None
    try:
        return minutes_of(text)
    except ValueError:
        faults.append("its schedule cannot be read")
        return None


def _networks(text: str | None, faults: list[str]) -> tuple[tuple[Network, ...], bool]:
    given = _list(text)
    found = {item: _network(item) for item in given if item != NOTHING}
    if None in found.values():
        faults.append("one of its networks cannot be read")
    known = [network for network in found.values() if network is not None]
    if any(network.prefixlen < WIDEST[network.version] for network in known):
        faults.append("one of its networks is too wide (at most /8, IPv6 /16)")
    return tuple(sorted(known, key=str)), NOTHING in given


def _network(text: str | None) -> Network | None:
    try:
        return ipaddress.ip_network(text or "", strict=False)
    except ValueError:
        return None


def _clients(context: Context) -> set[str]:
    return {value for value in (context.client, context.family) if value is not None} or {NOTHING}


def _list(text: str | None) -> frozenset[str]:
    return frozenset(item for part in (text or "").split(";") if (item := part.strip()))


def _lower(text: str | None) -> str | None:
    return (text or "").strip().lower() or None


def _utc(value: datetime | None) -> datetime | None:
    if value is None:
        return None
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
