"""Rules about what is expected: added to, listed from and withdrawn in the reference table `contexts`."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, time
from typing import Any

import polars as pl

from archive.custody import who
from archive.store import Archive
from data_contracts import contract
from data_contracts.errors import RefusedError, UsageError
from flows.pipeline.triage import finding_of
from queries.expected import MOST_CONTEXTS, NOTHING, Context, Rule, contexts_of, identity, rule, withdrawn

MOST_RULES = 50  # made from one finding
_LONGEST = 4_000
_ATTEMPTS = 5
_SHOWN = (
    "rule_id", "status", "credential_id", "principal_pattern", "tenants", "networks", "client_fps",
    "operation_classes", "schedule", "detections", "valid_from", "valid_to", "owner", "reason", "finding_id",
    "added_at", "added_by", "expired_at", "expired_by", "expired_reason",
)  # fmt: skip


def today() -> datetime:
    """The first moment of this day, UTC."""
    return datetime.combine(datetime.now(UTC).date(), time(), UTC)


def from_finding(archive: Archive, finding_id: str) -> list[dict[str, Any]]:
    """Rules that cover exactly the contexts of a finding: what a client did, from the networks where it did that.

    They are for the finding's detection alone.

    Raises:
        UsageError: no such finding, or it has no contexts that a rule could name.
        RefusedError: a context names no credential and no principal, or a value that a rule cannot hold.
    """
    row = finding_of(archive, finding_id)
    with _reading(archive, row["sql"]) as con:
        found = contexts_of(con, row["evidence_table"], row["sql"])
    if not found:
        raise UsageError(
            f"{finding_id}: has no evidence rows with a credential, network, client and operation",
            "gatehound findings triage says what it is",
        )
    if len(found) > MOST_CONTEXTS:
        raise RefusedError(f"{finding_id}: more than {MOST_CONTEXTS} contexts", "write the rule by its parts")
    rules = _product(finding_id, found)
    if len(rules) > MOST_RULES:
        raise RefusedError(f"{finding_id}: would need {len(rules)} rules", "write the rule by its parts")
    own = {"valid_from": row["first_seen"], "finding_id": finding_id, "detections": row["detection"]}
    return [own | entry for entry in rules]


def _reading(archive: Archive, sql: str) -> Any:
    from archive.sqlview import check_read_only

    check_read_only(sql)
    return archive.connect()


def _product(finding_id: str, found: Sequence[Context]) -> list[dict[str, Any]]:
    """One rule for each identity, client and set of operations, with the networks and tenants where these were seen."""
    operations: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for context in found:
        if context.credential is None and context.principal is None:
            raise RefusedError(
                f"{finding_id}: some of its rows name no credential and no principal", "an address alone is no rule"
            )
        key = (context.credential, context.principal, context.client or context.family, context.tenant)
        operations[*key, context.network or context.address].add(context.operation or "")
    networks: dict[tuple[Any, ...], set[str]] = defaultdict(set)
    for (credential, principal, client, tenant, network), used in operations.items():
        who_it_is = (credential, None if credential else principal)
        networks[*who_it_is, client, tenant, tuple(sorted(used))].add(network or NOTHING)
    rules = []
    for (credential, principal, client, tenant, used), places in sorted(networks.items(), key=str):
        values = [credential, principal, tenant, client, *used, *places]
        if any(";" in value for value in values if value) or "*" in (principal or "") or "" in used:
            raise RefusedError(f"{finding_id}: one of its names holds ; or *", "a rule cannot say that exactly")
        rules.append(
            {
                "credential_id": credential, "principal_pattern": principal, "tenants": tenant,
                "networks": "; ".join(sorted(places)), "client_fps": client or NOTHING,
                "operation_classes": "; ".join(used),
            }
        )  # fmt: skip
    return rules


def add(archive: Archive, entries: Sequence[Mapping[str, Any]], *, now: datetime | None = None) -> pl.DataFrame:
    """Adds rules; returns them as `listed` does.

    Args:
        archive: the archive.
        entries: columns of `contexts`; owner, reason and valid_to in each.
        now: time of the change; default the present.

    Raises:
        UsageError: a rule does not say enough, or is there already.
    """
    at = now or datetime.now(UTC)
    new = []
    for entry in entries:
        row = {k: v.strip() or None if isinstance(v, str) else v for k, v in entry.items()}
        row |= {"added_at": at, "added_by": who()}
        for name in ("owner", "reason", "valid_to"):
            if not row.get(name):
                raise UsageError(f"a rule needs {name}", "--reason, --owner and --until say why, who and how long")
        if any(len(v) > _LONGEST for v in row.values() if isinstance(v, str)):
            raise UsageError(f"a part of the rule is longer than {_LONGEST} characters", "make several rules")
        fault = rule(row).fault
        if fault is not None:
            raise UsageError(f"the rule is refused: {fault}", "name who, from which networks, and what they do there")
        new.append(row | {"rule_id": identity(row)})
    added = pl.DataFrame(new, schema_overrides=_schema(), infer_schema_length=None)

    def change(standing: pl.DataFrame) -> pl.DataFrame:
        fresh = added.filter(~pl.col("rule_id").is_in(standing["rule_id"].to_list()))
        _no_repetition(standing, fresh, at)
        return pl.concat([standing, fresh], how="diagonal_relaxed")

    _edit(archive, change)
    ids = added["rule_id"].to_list()
    archive.custody("suppress add", {"rules": [_kept(row) for row in new]})
    return listed(archive, now=at).filter(pl.col("rule_id").is_in(ids))


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items() if v is not None}


def _no_repetition(standing: pl.DataFrame, fresh: pl.DataFrame, now: datetime) -> None:
    """A rule that says what one in force says already is a slip."""
    said = (
        "credential",
        "principal",
        "tenants",
        "detections",
        "networks",
        "no_network",
        "clients",
        "operations",
        "schedule",
    )

    def content(entry: Rule) -> tuple[Any, ...]:
        return tuple(getattr(entry, name) for name in said)

    held = {content(r): r for r in map(rule, standing.iter_rows(named=True)) if not withdrawn(r, now)}
    for entry in map(rule, fresh.iter_rows(named=True)):
        other = held.get(content(entry))
        if other is not None and other.valid_to >= entry.valid_to and _begins(other) <= _begins(entry):
            raise UsageError(f"{other.rule_id} says that already", "gatehound suppress list shows it")


def _begins(entry: Rule) -> datetime:
    return entry.valid_from or datetime.min.replace(tzinfo=UTC)


def expire(archive: Archive, rule_ids: Sequence[str], reason: str, *, now: datetime | None = None) -> pl.DataFrame:
    """Withdraws rules: from now on they silence nothing, whenever the events were. Returns them as `listed` does.

    Raises:
        UsageError: no reason, no such rule, or it was withdrawn before.
    """
    at, ids = now or datetime.now(UTC), list(dict.fromkeys(rule_ids))
    if not reason.strip():
        raise UsageError("a reason is needed", "--reason says why the rule holds no longer")
    frame = listed(archive, now=at)
    for one in ids:
        found = frame.filter(pl.col("rule_id") == one)
        if not found.height:
            raise UsageError(f"{one}: no such rule", "gatehound suppress list shows the rules")
        if found["expired_at"][0] is not None:
            raise UsageError(f"{one}: was withdrawn before", "gatehound suppress list shows when and by whom")

    def change(standing: pl.DataFrame) -> pl.DataFrame:
        hit = pl.col("rule_id").is_in(ids) & pl.col("expired_at").is_null()
        values = {"expired_at": at, "expired_by": who(), "expired_reason": reason.strip()[:_LONGEST]}
        return standing.with_columns(
            pl.when(hit).then(pl.lit(v, dtype=_schema()[k])).otherwise(pl.col(k)).alias(k) for k, v in values.items()
        )

    _edit(archive, change)
    archive.custody("suppress expire", {"rules": ids, "reason": reason.strip()[:_LONGEST]})
    return listed(archive, now=at).filter(pl.col("rule_id").is_in(ids))


def listed(archive: Archive, *, now: datetime | None = None) -> pl.DataFrame:
    """All rules by id with their status: in force, ended, not begun, withdrawn, or why they have no effect."""
    at = now or datetime.now(UTC)
    frame = _identified(archive.scan("contexts").collect())
    return frame.with_columns(
        pl.Series("status", [_status(rule(row), at) for row in frame.iter_rows(named=True)], pl.String)
    ).select(_SHOWN).sort("rule_id")  # fmt: skip


def _status(entry: Rule, now: datetime) -> str:
    if withdrawn(entry, now):
        return "withdrawn"
    if entry.fault is not None:
        return f"without effect: {entry.fault}"
    if entry.valid_from is not None and entry.valid_from > now:
        return "in force, for later events"
    return "in force" if entry.valid_to > now else "in force, for earlier events"


def _schema() -> dict[str, pl.DataType]:
    return dict(contract("contexts").polars_schema)


def _identified(frame: pl.DataFrame) -> pl.DataFrame:
    """Rules from a CSV get their id from what they say."""
    ids = [row["rule_id"] or identity(row) for row in frame.iter_rows(named=True)]
    return frame.with_columns(pl.Series("rule_id", ids, pl.String))


def _edit(archive: Archive, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Changes the table on its newest version; what someone else wrote in between is kept.

    Raises:
        RefusedError: others kept changing it.
    """
    before = archive.version("contexts")
    names_before = _named(archive, before)
    base, last = before, -1 if before is None else before
    for _ in range(_ATTEMPTS):
        frame = _identified(archive.scan("contexts", version=base).collect())
        after = archive.overwrite("contexts", change(frame))
        if after == last + 1:
            break
        base, last = after - 1, after  # another's version came between: change that one
    else:
        raise RefusedError("the table contexts was changed by others meanwhile", "try again")
    built_from = archive.built_from("context_days")
    if built_from and built_from.get("contexts") == before and names_before == _named(archive, None):
        # The derived rows depend on whom the table names, not on what is expected of them: nothing is to be rebuilt.
        empty = pl.DataFrame(schema=contract("context_days").polars_schema)
        archive.replace_days("context_days", empty, [], {"contexts": after})


def _named(archive: Archive, version: int | None) -> frozenset[tuple[str, str]]:
    """Credentials and principals that the reference tables name and that context_days therefore keeps in detail."""
    tables = {"contexts": ("credential_id", "principal_pattern"), "credentials": ("credential_id",)}
    tables["bindings"] = ("credential_id", "principal_id")
    found = set()
    for table, columns in tables.items():
        frame = archive.scan(table, version=version if table == "contexts" else None).select(columns).collect()
        for column in columns:
            kind = "credential" if column == "credential_id" else "principal"
            found |= {(kind, value.lower()) for value in frame[column].drop_nulls()}
    return frozenset(found)
