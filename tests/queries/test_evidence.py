"""The joint lookup of evidence answers for each finding what its own statement answers, whatever the findings."""

import atexit
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queries import evidence
from queries.catalogue import EvidenceRule, catalogue
from queries.evidence import Evidence, evidence_sql, lookup
from queries.testing import database
from tests.queries.conftest import ACCESS, CHANGE

if TYPE_CHECKING:
    import duckdb  # loaded here, Hypothesis would keep it to the very end, and it would tell all it has as leaked

START = datetime(2021, 1, 1, tzinfo=UTC)
TENANTS = ["contoso", "fabrikam", "x') or true --"]
ACTORS = ["joey", "chandler", "it's; drop table tenants"]
NETS = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/48"]
CLIENTS = ["fp1", "fp2"]
SESSIONS = ["s1", "s2", "s3", "s4"]
TIMES = ("begins", "ends")
ACTOR = "coalesce(principal_id, app_id)"
SOURCES = {"tenant_id": "tenants", ACTOR: "actors", "src_net": "nets", "client_fp": "clients"}
RULES = {
    "plain": EvidenceRule("access_events", SOURCES, "", TIMES),
    "sessions": EvidenceRule("access_events", SOURCES, "outcome = 'success'", TIMES, follow_sessions=True),
    "net only": EvidenceRule("access_events", {"src_net": "nets"}, "outcome <> 'failure' or true", TIMES, True),
    "hours": EvidenceRule("access_events", {"date_trunc('hour', ts)": "hours", "len(folders)": "folders"}, "", TIMES),
    "nothing": EvidenceRule("access_events", {}, "protocol = 'ews'", TIMES),
    "none": EvidenceRule("access_events", SOURCES, "false", TIMES, follow_sessions=True),
    "without address": EvidenceRule("mail_events", {"tenant_id": "tenants"}, "", TIMES),
    "changes": EvidenceRule("change_events", {"tenant_id": "tenants", "actor_id": "actors"}, "", TIMES),
}


def events() -> Iterator[dict[str, Any]]:
    """Ten days of rows; of many, one of the values is unknown, and some are at the very same time."""
    draw = random.Random(7)

    def one(values: list[Any]) -> Any:
        return draw.choice([*values, None])

    for n in range(600):
        at = START + timedelta(hours=draw.randrange(240), microseconds=draw.choice([0, 1]))
        net = one(NETS)
        address = net and f"{net.split('/')[0]}{draw.randrange(70)}"
        yield ACCESS | {
            "event_uid": f"{draw.randrange(10**6):06}-{n}", "ts": at, "date": at.date(), "tenant_id": one(TENANTS),
            "principal_id": one(ACTORS), "app_id": one(ACTORS), "src_net": net, "src_ip": address,
            "client_fp": one(CLIENTS), "session_id": one(SESSIONS), "protocol": draw.choice(["ews", "pop3"]),
            "outcome": draw.choice(["success", "failure"]), "folders": draw.choice([None, [], ["a"], ["a", "b"]]),
        }  # fmt: skip


@cache
def filled() -> "duckdb.DuckDBPyConnection":
    rows = list(events())
    columns = ("event_uid", "ts", "date", "tenant_id")
    changes = [CHANGE | {k: r[k] for k in columns} | {"actor_id": r["principal_id"]} for r in rows[:99]]
    atexit.register(filled.cache_clear)
    return database({"access_events": rows, "change_events": changes})


@pytest.fixture
def con() -> "duckdb.DuckDBPyConnection":
    return filled()


class Listening:
    """A connection that keeps the statements it was given."""

    def __init__(self, con: "duckdb.DuckDBPyConnection") -> None:
        self.con, self.statements = con, list[str]()

    def execute(self, statement: str, values: Any) -> "duckdb.DuckDBPyConnection":
        self.statements.append(statement)
        return self.con.execute(statement, values)


def one_by_one(con: "duckdb.DuckDBPyConnection", rule: EvidenceRule, facts: dict[str, Any]) -> Evidence:
    """As the statement shown to the analyst answers."""
    relation = con.sql(evidence_sql(rule, facts))
    place = relation.columns.index("src_ip") if "src_ip" in relation.columns else None
    uid = relation.columns.index("event_uid")
    rows = relation.fetchall()
    addresses = sorted({row[place] for row in rows if row[place] is not None} if place is not None else ())
    return Evidence(rule.table, tuple(row[uid] for row in rows[:100]), len(rows), tuple(addresses[:50]))


def accepted(values: list[Any]) -> st.SearchStrategy[Any]:
    """One value, several with or without the unknown one, none at all, or any."""
    return st.none() | st.sampled_from(values) | st.lists(st.sampled_from([*values, "other", None]), max_size=4)


def among(values: list[Any]) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(values) | st.lists(st.sampled_from([*values, None]), max_size=4)


MOMENTS = st.integers(-30, 270).map(lambda hours: START + timedelta(hours=hours))
FINDINGS = st.fixed_dictionaries(
    {
        "tenants": accepted(TENANTS), "actors": accepted(ACTORS), "nets": accepted(NETS), "clients": accepted(CLIENTS),
        "hours": among([START + timedelta(hours=n) for n in range(240)]), "folders": among([0, 1, 2]),
        "begins": MOMENTS, "ends": MOMENTS,
    }
)  # fmt: skip


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=25, deadline=None)
@given(findings=st.lists(FINDINGS, min_size=1, max_size=12))
def test_findings_together_have_the_evidence_of_each(name: str, findings: list[dict[str, Any]]) -> None:
    con, rule = filled(), RULES[name]  # Hypothesis would keep a fixture for ever
    assert lookup(con, rule, findings) == [one_by_one(con, rule, facts) for facts in findings]


def test_more_findings_than_one_pass_takes(con: "duckdb.DuckDBPyConnection", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MOST_AT_ONCE", 7)
    rule = RULES["sessions"]
    findings: list[dict[str, Any]] = [
        {"begins": START + timedelta(days=n % 9), "ends": START + timedelta(days=n % 9 + n % 4), "nets": NETS[n % 3]}
        for n in range(30)
    ]
    assert lookup(con, rule, findings) == [one_by_one(con, rule, facts) for facts in findings]


def test_there_is_one_statement_for_all_findings(con: "duckdb.DuckDBPyConnection") -> None:
    told: Any = Listening(con)
    times = {"begins": START, "ends": START + timedelta(days=9)}
    findings: list[dict[str, Any]] = [times | {"nets": [NETS[n % 3]], "tenants": TENANTS[n % 2]} for n in range(300)]
    assert all(found.count for found in lookup(told, RULES["sessions"], findings))
    assert len(told.statements) == 1
    assert lookup(told, RULES["sessions"], []) == []
    assert len(told.statements) == 1


def test_only_the_days_of_findings_are_read(con: "duckdb.DuckDBPyConnection") -> None:
    times = [(START + timedelta(days=n), START + timedelta(days=n + 1)) for n in (0, 1, 6, 3)]
    told: Any = Listening(con)
    lookup(told, RULES["plain"], [{"begins": first, "ends": last} for first, last in times])
    spans = [("2021-01-01", "2021-01-05"), ("2021-01-07", "2021-01-08")]
    within = " or ".join(f"date between date '{first}' and date '{last}'" for first, last in spans)
    assert f"from access_events where ({within})" in told.statements[0]


def test_the_first_rows_and_addresses_of_a_large_finding(con: "duckdb.DuckDBPyConnection") -> None:
    rule = RULES["plain"]
    whole = {"begins": START, "ends": START + timedelta(days=20)}
    other = whole | {"tenants": ["contoso"]}
    everything, of_tenant = lookup(con, rule, [whole, other])
    assert everything == one_by_one(con, rule, whole) and of_tenant == one_by_one(con, rule, other)
    assert (everything.count, len(everything.event_uids), len(everything.addresses)) == (600, 100, 50)
    assert 100 < of_tenant.count < 600


@pytest.mark.parametrize("detection", [d.id for d in catalogue()])
def test_every_rule_of_the_catalogue(con: "duckdb.DuckDBPyConnection", detection: str) -> None:
    (rule,) = (d.evidence for d in catalogue() if d.id == detection)
    times = {rule.time[0]: START, rule.time[1]: START + timedelta(days=9)}
    texts = {c: ["x", None] for e, c in rule.match.items() if "ts" not in e}
    hours = {c: [START] for e, c in rule.match.items() if "ts" in e}
    known = {"src_net": NETS, "tenant_id": TENANTS, ACTOR: ACTORS, "client_fp": CLIENTS}
    given = {c: [*known[e], None] for e, c in rule.match.items() if e in known}
    findings = [times | texts | hours | given, times | given, times | texts, times]
    assert lookup(con, rule, findings) == [one_by_one(con, rule, facts) for facts in findings]
