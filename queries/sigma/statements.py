"""SQL of imported rules: matching rows of the window, grouped into findings.

A rule that matches all day is one finding for each tenant and actor, with counts; where it matches more actors of a
tenant than `MOST_ACTORS` (for rules of low severity: always) it is one for the tenant, which names none of them as an
entity unless they are few, so that it does not draw the cases of all of them into one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from queries.catalogue import EvidenceRule
from queries.sigma.sources import ACCESS, CHANGE, MAIL, View
from queries.text import literal

MOST_ACTORS = 20
FEW = 3  # actors that a finding about a whole tenant still names
MOST_SHOWN = 20  # values of a kind in one finding
IDENTITY = ("table", "tenant", "actor_key")
EXPLANATION = (
    'Sigma rule "{rule_title}" matched {n_events:count event} {first_seen:span}[ by {actor}][ by {n_others:count '
    "different actor}][, from {source_networks:list}][: {operations:list}][ at {tenant_ids:tenants}].[ {remark}]"
)

# Who did it, and the values that a finding names, by event table.
ACTOR = {
    ACCESS: "coalesce(principal_id, app_id, src_net)",
    CHANGE: "coalesce(actor_id, app_id, src_net)",
    MAIL: "coalesce(sasl_username, src_net, mail_from)",
}
_PRINCIPAL = {ACCESS: "principal_id", CHANGE: "actor_id", MAIL: "lower(sasl_username)"}
_OPERATION = {ACCESS: "coalesce(op_raw, action)", CHANGE: "op_raw", MAIL: "event"}
_NULL = "cast(null as varchar)"
_APP = {MAIL: _NULL}
_CREDENTIAL = {MAIL: _NULL}
_MAILBOX = {
    ACCESS: "mailbox_id",
    CHANGE: "case when target_type in ('mailbox', 'user') then target_id end",
    MAIL: _NULL,
}


@dataclass(frozen=True, slots=True)
class Matched:
    """A rule's condition over one view."""

    view: View
    condition: str

    @property
    def where(self) -> str:
        """The condition with what narrows the table to the view."""
        parts = [f"source in ({', '.join(map(literal, self.view.sources))})"] if self.view.sources else []
        parts += [f"({self.view.where})"] if self.view.where else []
        return " and ".join([*parts, f"({self.condition})"])


def in_window() -> str:
    """The hunt's window: whole days first, by which files are left out."""
    return (
        "date between cast($window_from as date) and cast($window_to as date)"
        " and ts >= $window_from and ts < $window_to"
    )


def facts(table: str) -> str:
    """The values of an event that a finding may name."""
    return (
        f"{_PRINCIPAL[table]} as principal_id, {_APP.get(table, 'app_id')} as app_id,"
        f" {_CREDENTIAL.get(table, 'credential_id')} as credential_id, src_net, {_MAILBOX[table]} as mailbox_id,"
        f" {_OPERATION[table]} as operation"
    )


def plain_rule(matched: Matched, title: str, *, is_loud: bool) -> tuple[str, EvidenceRule]:
    """Statement and evidence of a rule over one view.

    Args:
        matched: where it matches.
        title: of the rule; a value, not a part of the statement.
        is_loud: of medium severity or more: a finding for each actor.
    """
    table, actor = matched.view.table, ACTOR[matched.view.table]
    most = MOST_ACTORS if is_loud else 0
    sql = f"""
with matched as materialized (
    select tenant_id, coalesce({actor}, '') as actor, {facts(table)},
        min(ts) as first_ts, max(ts) as last_ts, count(*) as n
    from {table}
    where {in_window()} and {matched.where}
    group by all
),
spread as (select tenant_id, count(distinct actor) as n_actors from matched group by tenant_id),
keyed as (
    select m.*, s.n_actors, s.n_actors <= {most} as is_named,
        case when s.n_actors <= {most} then m.actor end as actor_key
    from matched as m inner join spread as s on m.tenant_id is not distinct from s.tenant_id
)
select {literal(table)} as "table", {literal(title)} as rule_title, tenant_id as tenant, actor_key,
    nullif(actor_key, '') as actor, case when any_value(is_named) then [actor_key] end as actor_keys,
    case when not any_value(is_named) then max(n_actors) end as n_others,
    [tenant_id] as tenant_ids, {aggregates("any_value(is_named)")}
from keyed
group by tenant_id, actor_key
order by tenant_id, actor_key
"""
    evidence = EvidenceRule(
        table,
        {"tenant_id": "tenant_ids", f"coalesce({actor}, '')": "actor_keys"},
        matched.where,
        ("first_seen", "last_seen"),
    )
    return sql, evidence


def aggregates(is_named: str) -> str:
    """What a finding tells of its events, from rows of them with first_ts, last_ts and n.

    Entities of a finding about many actors are named only where they are few.
    """

    def values(column: str) -> str:
        return f"list_sort(list(distinct {column}) filter ({column} is not null))[:{MOST_SHOWN}]"

    def entities(column: str) -> str:
        return f"case when {is_named} or count(distinct {column}) <= {FEW} then {values(column)} end"

    return (
        "min(first_ts) as first_seen, max(last_ts) as last_seen, cast(sum(n) as bigint) as n_events,"
        " 1.0 as confidence, 1.0 as impact,"
        f" {values('operation')} as operations, {entities('principal_id')} as principal_ids,"
        f" {entities('app_id')} as app_ids, {entities('credential_id')} as credential_ids,"
        f" {entities('src_net')} as source_networks, {entities('mailbox_id')} as mailboxes"
    )


@dataclass(frozen=True, slots=True)
class Branch:
    """One rule that a correlation refers to, over one view, with its fields as expressions.

    Attributes:
        step: place of the rule among those of the correlation, from 0.
        groups: expressions of the fields to group by, in order.
        value: expression of the field whose values are counted; null for none.
    """

    step: int
    matched: Matched
    groups: tuple[str, ...]
    value: str = _NULL


@dataclass(frozen=True, slots=True)
class Correlation:
    """When a group of events is a hit: `condition` over the columns that `windows` adds."""

    branches: Sequence[Branch]
    seconds: int
    kind: str
    condition: str = "true"


def correlation(rule: Correlation, title: str, *, is_loud: bool) -> tuple[str, EvidenceRule]:
    """Statement and evidence of a correlation: one finding for each group that was hit, or one for all of many."""
    first = rule.branches[0]
    n_groups = len(first.groups)
    keys = ", ".join(f"g{n}" for n in range(n_groups))
    base = "\n    union all\n".join(_branch(branch) for branch in rule.branches)
    most = MOST_ACTORS if is_loud else 0
    named = [f"case when f.is_named then [b.g{n}] end as group_{n}" for n in range(n_groups)]
    shown = " || ', ' || ".join(f"b.g{n}" for n in range(n_groups)) or _NULL
    sql = f"""
with base as materialized (
{base}
),
{_windows(rule, keys)},
hits as (select *, ts - interval {rule.seconds} seconds as begins from stepped where {rule.condition}),
found as (
    select {keys + ", " if keys else ""}min(begins) as begins, max(ts) as ends, count(*) as n_hits from hits
    group by {keys or "()"} having count(*) > 0
),
ranked as (select *, count(*) over () as n_groups, count(*) over () <= {max(most, 1)} as is_named from found),
keyed as (
    select b.*, b.ts as first_ts, b.ts as last_ts, 1 as n, f.n_groups, f.is_named,
        case when f.is_named then {shown} end as actor_key,
        {", ".join(named) + ", " if named else ""}f.n_hits
    from base as b inner join ranked as f
        on b.ts between f.begins and f.ends{"".join(f" and b.g{n} = f.g{n}" for n in range(n_groups))}
)
select 'correlation' as "table", {literal(title)} as rule_title, cast(null as varchar) as tenant, actor_key,
    actor_key as actor, case when not any_value(is_named) then max(n_groups) end as n_others,
    {"".join(f"any_value(group_{n}) as group_{n}, " for n in range(n_groups))}
    list_sort(list(distinct tenant_id))[:{MOST_SHOWN}] as tenant_ids, {aggregates("any_value(is_named)")}
from keyed
group by actor_key
order by actor_key
"""
    table = first.matched.view.table
    of_table = [branch for branch in rule.branches if branch.matched.view.table == table]
    where = " or ".join(f"({condition})" for condition in dict.fromkeys(b.matched.where for b in of_table))
    same = all(branch.groups == first.groups for branch in of_table)
    match = {expression: f"group_{n}" for n, expression in enumerate(first.groups)} if same else {}
    return sql, EvidenceRule(table, match, where, ("first_seen", "last_seen"))


def _branch(branch: Branch) -> str:
    table = branch.matched.view.table
    groups = "".join(f"{expression} as g{n}, " for n, expression in enumerate(branch.groups))
    known = "".join(f" and {expression} is not null" for expression in branch.groups)
    return (
        f"    select event_uid, ts, tenant_id, {branch.step} as step, {groups}{branch.value} as counted,\n"
        f"        {facts(table)}\n"
        f"    from {table} where {in_window()} and {branch.matched.where}{known}"
    )


def _windows(rule: Correlation, keys: str) -> str:
    """CTEs that end in `stepped`: the events of the base with what the condition asks about."""
    by = f"partition by {keys} " if keys else ""
    frame = f"({by}order by ts range between interval {rule.seconds} seconds preceding and current row)"
    steps = sorted({branch.step for branch in rule.branches})
    if rule.kind == "event_count":
        return f"stepped as (select *, count(*) over {frame} as n from base)"
    if rule.kind == "value_count":
        return f"stepped as (select *, count(distinct counted) over {frame} as n from base)"
    if rule.kind == "temporal":
        seen = ", ".join(f"count(*) filter (step = {step}) over {frame} > 0 as seen_{step}" for step in steps)
        return f"stepped as (select *, {seen} from base)"
    # In order: the latest beginning of a chain of rules 0 to n that has come this far.
    rows = f"({by}order by ts, step, event_uid rows between unbounded preceding and 1 preceding)"
    parts = [f"chain_{steps[0]} as (select *, case when step = {steps[0]} then ts end as began_{steps[0]} from base)"]
    for before, step in itertools.pairwise(steps):
        parts.append(
            f"chain_{step} as (select *, case when step = {step} then max(began_{before}) over {rows} end as"
            f" began_{step} from chain_{before})"
        )
    last = steps[-1]
    parts.append(
        f"stepped as (select *, step = {last} and ts - began_{last} <= interval {rule.seconds} seconds as in_order"
        f" from chain_{last})"
    )
    return ",\n".join(parts)
