"""Sigma's correlation rules over small events."""

from typing import Any

import pytest
import yaml

from queries.sigma.reading import documents
from queries.sigma.rules import convert

AUDIT = {"product": "azure", "service": "auditlogs"}
SIGNIN = {"product": "azure", "service": "signinlogs"}


# Correlations


def base(sigma: Any) -> list[str]:
    return [sigma.rule(SIGNIN, {"Status": w}, name=n) for n, w in (("failed", "Failure"), ("worked", "Success"))]


def correlation(sigma: Any, kind: str, rules: list[str], **body: Any) -> str:
    told = {"title": "c", "level": "high", "correlation": {"type": kind, "rules": rules, "timespan": "1m"} | body}
    return "---\n".join([*base(sigma), yaml.safe_dump(told)])


def spray(sigma: Any, n: int, step: int, **more: Any) -> list[dict[str, Any]]:
    return [
        sigma.row(
            sigma.access,
            100 + k * step,
            outcome="failure",
            principal_id=f"u{k}@contoso.example",
            **({"src_ip": "203.0.113.9"} | more),
        )
        for k in range(n)
    ]


def test_event_count(sigma: Any) -> None:
    text = correlation(sigma, "event_count", ["failed"], **{"group-by": ["IPAddress"], "condition": {"gte": 5}})
    (found,) = sigma.findings(
        text, {"access_events": [*spray(sigma, 5, 10), *spray(sigma, 4, 1, src_ip="203.0.113.8")]}
    )
    assert found.evidence.count == 5
    assert found.entities["source_ips"] == ("203.0.113.9",)
    assert found.facts["actor"] == "203.0.113.9"
    assert sigma.findings(text, {"access_events": spray(sigma, 5, 16)}) == []


def test_value_count(sigma: Any) -> None:
    body = {"group-by": ["IPAddress"], "condition": {"gt": 2, "field": "UserPrincipalName"}}
    assert (
        len(
            sigma.findings(correlation(sigma, "value_count", ["failed"], **body), {"access_events": spray(sigma, 3, 1)})
        )
        == 1
    )
    same = [r | {"principal_id": "one@contoso.example"} for r in spray(sigma, 9, 1)]
    assert sigma.findings(correlation(sigma, "value_count", ["failed"], **body), {"access_events": same}) == []


@pytest.mark.parametrize(
    ("kind", "success_at", "n"),
    [
        ("temporal", 99, 1),
        ("temporal", 130, 1),
        ("temporal", 900, 0),
        ("temporal_ordered", 99, 0),
        ("temporal_ordered", 130, 1),
        ("temporal_ordered", 900, 0),
    ],
)
def test_temporal(sigma: Any, kind: str, success_at: int, n: int) -> None:
    rows = [
        *spray(sigma, 3, 1),
        sigma.row(sigma.access, success_at, src_ip="203.0.113.9"),
        sigma.row(sigma.access, 140, src_ip="203.0.113.1"),
    ]
    found = sigma.findings(
        correlation(sigma, kind, ["failed", "worked"], **{"group-by": ["IPAddress"]}), {"access_events": rows}
    )
    assert len(found) == n
    for one in found:
        assert "e0140" not in one.evidence.event_uids


def test_correlation_over_two_tables_with_aliases(sigma: Any) -> None:
    change = sigma.rule(AUDIT, {"OperationName": "Add user"}, name="change")
    told = {
        "title": "c",
        "correlation": {
            "type": "temporal",
            "rules": ["failed", "change"],
            "timespan": "5m",
            "group-by": ["who"],
            "aliases": {"who": {"failed": "UserPrincipalName", "change": "InitiatedBy"}},
        },
    }
    text = "---\n".join([base(sigma)[0], change, yaml.safe_dump(told)])
    rows = {
        "access_events": [sigma.row(sigma.access, 1, outcome="failure")],
        "change_events": [sigma.row(sigma.change, 9)],
    }
    (found,) = sigma.findings(text, rows)
    assert found.evidence.event_uids == ("e0001",)
    assert found.facts["n_events"] == 2
    assert "one table" in convert(documents(text.encode()), "S-TEST").notes[0]


@pytest.mark.parametrize(
    ("kind", "rules", "body", "reason"),
    [
        ("event_count", ["failed"], {"condition": {"lt": 5}}, "silence"),
        ("event_count", ["nobody"], {"condition": {"gte": 5}}, "not among the files"),
        ("event_count", ["failed"], {"condition": {"gte": 5}, "group-by": ["Location"]}, "Location is not kept"),
        ("event_count", ["failed"], {"condition": {"gte": 5}, "timespan": "90d"}, "31 days"),
        ("value_sum", ["failed"], {"condition": {"gte": 5, "field": "IPAddress"}}, "value_sum"),
        ("temporal", ["failed", "worked"], {"condition": "failed and not worked"}, "in words"),
        ("temporal", ["failed", "worked"], {"condition": {"gte": 1}}, "all of its rules"),
    ],
)
def test_correlations_that_are_refused(
    sigma: Any, kind: str, rules: list[str], body: dict[str, Any], reason: str
) -> None:
    assert reason in sigma.reasons(correlation(sigma, kind, rules, **body))


def test_many_groups_are_one_finding(sigma: Any) -> None:
    rows = [
        r | {"event_uid": f"{ip}-{r['event_uid']}"}
        for ip in range(30)
        for r in spray(sigma, 5, 1, src_ip=f"203.0.113.{ip}")
    ]
    text = correlation(sigma, "event_count", ["failed"], **{"group-by": ["IPAddress"], "condition": {"gte": 5}})
    (found,) = sigma.findings(text, {"access_events": rows})
    assert "30 different actors" in found.explanation
