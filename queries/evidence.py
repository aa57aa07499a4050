"""Evidence: the event rows behind a finding; the statement that shows them, and the lookup for many findings at once.

All findings of a detection are looked up in one pass over the days of any of them. Each finding has a number. For each
expression of the rule, a small relation holds the values that findings name, each with a bit string: the findings that
accept it. An event is joined to these relations by its values, never to the findings themselves, and belongs to those
whose bit is set in all of its bit strings. Only the rows that belong to one are kept, and matched with its times.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import TYPE_CHECKING, Any

from queries.text import literal

if TYPE_CHECKING:
    import duckdb

    from queries.catalogue import EvidenceRule

    Facts = Mapping[str, Any]

MOST_UIDS = 100
MOST_ADDRESSES = 50
MOST_AT_ONCE = 512  # findings in one pass: the length of a bit string
_SOURCE_COLUMNS = ("src_net", "client_fp")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Event rows behind a finding: the first ones by time, how many there are, and the first of their addresses."""

    table: str
    event_uids: tuple[str, ...]
    count: int
    addresses: tuple[str, ...] = ()


def evidence_sql(rule: "EvidenceRule", facts: "Facts") -> str:
    """The statement that shows the evidence rows, with every value as an escaped literal."""
    first, last = facts[rule.time[0]], facts[rule.time[1]]
    days = _between("date", *_days(rule, facts))
    parts = [days, _between("ts", first, last)]
    sources: list[str] = []
    for expression, column in rule.match.items():
        values = _values(facts, column)
        if values is not None:
            (sources if _is_source(rule, expression) else parts).append(_in(expression, values))
    if sources:
        own = " and ".join(sources)
        sessions = f"select protocol, session_id from {rule.table} where {days} and session_id is not null and {own}"
        parts.append(f"(({own}) or (src_net is null and (protocol, session_id) in ({sessions})))")
    if rule.where:
        parts.append(f"({rule.where})")
    return f"select * from {rule.table} where {' and '.join(parts)} order by ts, event_uid"


def lookup(con: "duckdb.DuckDBPyConnection", rule: "EvidenceRule", findings: "Sequence[Facts]") -> list[Evidence]:
    """Evidence of each finding of a rule, as its `evidence_sql` selects it.

    Args:
        con: connection with the event tables; TimeZone UTC.
        rule: of the detection.
        findings: values that the detection returned, for each finding.
    """
    found = [Evidence(rule.table, (), 0)] * len(findings)
    order = sorted(range(len(findings)), key=lambda place: findings[place][rule.time[0]])
    for start in range(0, len(order), MOST_AT_ONCE):
        places = order[start : start + MOST_AT_ONCE]
        statement, values = _joint(rule, [findings[place] for place in places])
        for no, count, uids, addresses in con.execute(statement, values).fetchall():
            found[places[no]] = Evidence(rule.table, tuple(uids), int(count), tuple(addresses or ()))
    return found


def _joint(rule: "EvidenceRule", findings: "Sequence[Facts]") -> tuple[str, dict[str, Any]]:
    """The statement for all findings of a batch, and its parameters: no value of a log is in the text."""
    keys = [_Key(n, expression, column, findings) for n, (expression, column) in enumerate(rule.match.items())]
    keys = [key for key in keys if not all(key.open)]
    sources = [key for key in keys if _is_source(rule, key.expression)]
    others = [key for key in keys if key not in sources]
    days = [_days(rule, facts) for facts in findings]
    values: dict[str, Any] = {
        "no": list(range(len(findings))),
        "first_day": [first for first, _ in days],
        "last_day": [last for _, last in days],
        "first_ts": [facts[rule.time[0]] for facts in findings],
        "last_ts": [facts[rule.time[1]] for facts in findings],
    }
    for key in keys:
        values |= key.values
    within = f"({' or '.join(_between('date', first, last) for first, last in _spans(days)) or 'false'})"
    length = f"0, {len(findings) - 1}"
    bits = ["d.bits", *(key.bits() for key in others)]
    joins = ["join days as d on d.date = r.date", *(key.join() for key in others)]
    columns = ["event_uid", "ts", "date", f"{_address_column(rule.table)} as src_ip", *(key.named for key in keys)]
    followed = ""
    if sources:
        followed = _sessions(rule, sources, findings, within)
        columns += ["protocol", "case when src_net is null then session_id end as quiet_session"]
        own = " & ".join(key.bits(outer=True) for key in sources)
        bits.append(f"({own} | coalesce(s.bits, {_mask([False] * len(findings))}))")
        joins += [key.join(outer=True) for key in sources]
        joins.append("left join followed_sessions as s on s.protocol = r.protocol and s.session_id = r.quiet_session")
    condition = f"{within} and ({rule.where})" if rule.where else within
    statement = f"""
with found as materialized (
    select unnest($no) as no, unnest($first_day) as first_day, unnest($last_day) as last_day,
        unnest($first_ts) as first_ts, unnest($last_ts) as last_ts
),
days as materialized (
    select date, bitstring_agg(no, {length}) as bits
    from (select no, cast(unnest(generate_series(first_day, last_day, interval 1 day)) as date) as date from found)
    group by date
),
{"".join(key.relation(length) for key in keys)}{followed}hits as materialized (
    select * from (
        select r.event_uid, r.ts, r.src_ip, {" & ".join(bits)} as bits
        from (select {", ".join(columns)} from {rule.table} where {condition}) as r {" ".join(joins)}
    ) where bit_count(bits) > 0
),
members as materialized (
    select b.bits, f.no, f.first_ts, f.last_ts
    from (select distinct bits from hits) as b join found as f on get_bit(b.bits, f.no) = 1
),
evidence_rows as not materialized (
    select m.no, h.event_uid, h.ts, h.src_ip
    from hits as h join members as m on m.bits = h.bits and h.ts between m.first_ts and m.last_ts
),
firsts as (
    select no, count(*) as n, min(struct_pack(ts := ts, event_uid := event_uid), {MOST_UIDS}) as first_rows
    from evidence_rows group by no
),
addresses as (
    select no, min(src_ip, {MOST_ADDRESSES}) as addresses
    from (select distinct no, src_ip from evidence_rows where src_ip is not null) group by no
)
select no, n, list_transform(first_rows, lambda item: item.event_uid), addresses
from firsts left join addresses using (no)
"""
    return statement, values


def _sessions(rule: "EvidenceRule", sources: "Sequence[_Key]", findings: "Sequence[Facts]", within: str) -> str:
    """Relation of the sessions that have a row from the sources of a finding, on its days."""
    named = ", ".join(key.named for key in sources)
    held = [any(not key.open[no] for key in sources) for no in range(len(findings))]
    bits = " & ".join(["d.bits", _mask(held), *(key.bits() for key in sources)])
    return f"""followed_sessions as (
    select protocol, session_id, bit_or(bits) as bits from (
        select r.protocol, r.session_id, {bits} as bits
        from (
            select date, protocol, session_id, {named} from {rule.table} where {within} and session_id is not null
        ) as r
        join days as d on d.date = r.date {" ".join(key.join() for key in sources)}
    ) where bit_count(bits) > 0 group by protocol, session_id
),
"""


class _Key:
    """An expression of the rule, and which findings accept which of its values.

    Attributes:
        expression: over the event table.
        named: the same, with the name that it has in the joint statement.
        open: for each finding, whether it accepts any value.
        values: parameters of `relation`.
    """

    def __init__(self, place: int, expression: str, column: str, findings: "Sequence[Facts]") -> None:
        given = [_values(facts, column) for facts in findings]
        pairs = [(no, value) for no, held in enumerate(given) for value in held or () if value is not None]
        self.name = f"key_{place}"
        self.expression, self.named = expression, f"{expression} as {self.name}"
        self.open = [held is None for held in given]
        self.null = [held is None or not held or None in held for held in given]
        numbers, values = ([pair[n] for pair in pairs] for n in range(2))
        self.values = {f"{self.name}_no": numbers, f"{self.name}_value": values} if pairs else {}

    def relation(self, length: str) -> str:
        """Values with the bits of the findings that name them."""
        if not self.values:
            return ""
        return f"""{self.name} as materialized (
    select value, bitstring_agg(no, {length}) as bits
    from (select unnest(${self.name}_no) as no, unnest(${self.name}_value) as value) group by value
),
"""

    def join(self, *, outer: bool = False) -> str:
        """Join of the rows r to the relation; `outer` keeps rows whose value no finding accepts."""
        kind = "left join" if outer or any(self.null) else "join"
        return f"{kind} {self.name} on {self.name}.value = r.{self.name}" if self.values else ""

    def bits(self, *, outer: bool = False) -> str:
        """Bits of the findings that accept the value of a row."""
        if not outer and not any(self.null):
            return f"{self.name}.bits"
        known = (
            f"coalesce({self.name}.bits | {_mask(self.open)}, {_mask(self.open)})" if self.values else _mask(self.open)
        )
        return f"case when r.{self.name} is null then {_mask(self.null)} else {known} end"


def _mask(flags: Iterable[bool]) -> str:
    return f"cast('{''.join('01'[flag] for flag in flags)}' as bit)"


def _days(rule: "EvidenceRule", facts: "Facts") -> tuple[date, date]:
    first, last = (facts[name].astimezone(UTC).date() for name in rule.time)
    return first, last


def _spans(days: Iterable[tuple[date, date]]) -> list[tuple[date, date]]:
    """First and last days of the runs of days that these cover: only their files are read."""
    runs: list[tuple[date, date]] = []
    for first, last in sorted(pair for pair in days if pair[0] <= pair[1]):
        if runs and first <= runs[-1][1] + timedelta(days=1):
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return runs


def _is_source(rule: "EvidenceRule", expression: str) -> bool:
    return rule.follow_sessions and expression in _SOURCE_COLUMNS


def _values(facts: "Facts", column: str) -> list[Any] | None:
    """Values that a finding accepts; None where the detection leaves the column open."""
    value = facts.get(column)
    return value if value is None or isinstance(value, list) else [value]


def _address_column(table: str) -> str:
    from data_contracts import contract

    return "src_ip" if "src_ip" in contract(table).polars_schema else "cast(null as varchar)"


def _between(column: str, first: Any, last: Any) -> str:
    return f"{column} between {literal(first)} and {literal(last)}"


def _in(expression: str, values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    parts = [f"{expression} in ({', '.join(literal(value) for value in known)})"] if known else []
    if len(known) < len(values) or not values:
        parts.append(f"{expression} is null")
    return parts[0] if len(parts) == 1 else f"({' or '.join(parts)})"
