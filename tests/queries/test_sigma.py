"""Sigma rules over small events: what matches, what does not, and what is refused."""

from datetime import UTC, datetime
from typing import Any

import pytest

from queries.sigma.reading import documents
from queries.sigma.rules import convert

AUDIT = {"product": "azure", "service": "auditlogs"}
SIGNIN = {"product": "azure", "service": "signinlogs"}
M365 = {"product": "m365", "service": "audit"}
MAIL = {"category": "email"}


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"OperationName": "add USER"}, [3]),
        ({"properties.message": "Add user."}, [3]),
        ({"ActivityDisplayName": ["Add user", "Delete user"]}, [3, 4]),
        ({"OperationName": "Update application - certificates and secrets management"}, [2]),
        ({"OperationName|contains": "user."}, [3, 4]),
        ({"OperationName|startswith": "add "}, [1, 3]),
        ({"OperationName|endswith": "user"}, [3, 4]),
        ({"OperationName": "*d*e*t* user"}, [4]),
        ({"OperationName": "A?d us?r"}, [3]),
        ({"OperationName": "Add us"}, []),
        ({"OperationName|contains|all": ["add", "principal"]}, [1]),
        ({"OperationName|cased": "add user"}, []),
        ({"OperationName|cased": "Add user"}, [3]),
        ({"OperationName|neq": "add user"}, [1, 2, 4]),
        ({"UserAgent|base64": "x"}, []),
        ({"OperationName|re": "^Add [a-z]+$"}, [3]),
        ({"OperationName|re": "^add"}, []),
        ({"OperationName|re|i": "^add"}, [1, 3]),
        ({"IPAddress|cidr": "10.0.0.0/8"}, [2]),
        ({"IPAddress|cidr": ["198.51.100.0/24", "2001:db8::/32"]}, [1, 4]),
        ({"IPAddress": "198.51.100.7"}, [1]),
        ({"IPAddress": None}, [3]),
        ({"IPAddress|exists": True}, [1, 2, 4]),
        ({"IPAddress|exists": False}, [3]),
        ({"InitiatedBy": ""}, [4]),
        ({"InitiatedBy": "EVE@*"}, [3]),
        ({"Result": "Failure"}, [3]),
        ({"Result|contains": "succ"}, [1, 2, 4]),
        ({"ResultReason": "denied"}, [3]),
        ({"TargetResources.ModifiedProperties{}.NewValue|contains": "a=X"}, [3]),
        ({"UserAgent": "100%_\\sure's"}, [4]),
        ({"UserAgent|contains": "%"}, [4]),
        ({"UserAgent|contains": "_x"}, []),
        ({"UserAgent|endswith": "\\sure's"}, [4]),
        ({"TimeGenerated|hour": 6, "OperationName": "Add user"}, [3]),
        ({"TimeGenerated|hour": 7}, []),
        ([{"OperationName": "Add user"}, {"OperationName": "Delete user"}], [3, 4]),
    ],
)
def test_comparisons(sigma: Any, selection: Any, wanted: list[int]) -> None:
    assert sigma.hits(sigma.rule(AUDIT, selection), "change_events", sigma.changes) == [f"e{n:04}" for n in wanted]


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ("1 of selection*", [1, 2, 3]),
        ("all of selection*", []),
        ("selection_a or selection_b and not filter", [1, 2, 3]),
        ("(selection_a or selection_b) and not filter", [1, 2]),
        ("not filter", [1, 2, 4]),
        ("not 1 of selection*", [4]),
        ("1 of them", [1, 2, 3]),
        ("not (filter or selection_b)", [1, 4]),
    ],
)
def test_conditions(sigma: Any, condition: str, wanted: list[int]) -> None:
    held = {
        "selection_a": {"OperationName|startswith": "add"},
        "selection_b": {"IPAddress|cidr": "10.0.0.0/8"},
        "filter": {"InitiatedBy|startswith": "eve"},
    }
    text = sigma.rule(AUDIT, condition=condition, detection=held)
    assert sigma.hits(text, "change_events", sigma.changes) == [f"e{n:04}" for n in wanted]


def test_other_logs_and_times_are_not_read(sigma: Any) -> None:
    rows = [
        sigma.row(sigma.change, 1),
        sigma.row(sigma.change, 2, source="m365_ual"),
        sigma.row(sigma.change, 3, ts=datetime(2021, 2, 1, tzinfo=UTC), date=datetime(2021, 2, 1).date()),
        sigma.row(sigma.change, 4, ts=datetime(2020, 12, 31, 23, 59, tzinfo=UTC), date=datetime(2020, 12, 31).date()),
    ]
    assert sigma.hits(sigma.rule(AUDIT, {"OperationName": "Add user"}), "change_events", rows) == ["e0001"]


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"ResultType": 50053}, [2]),
        ({"ResultType": ["50053", 50126]}, [2, 3]),
        ({"properties.status.errorCode": 0}, [1, 4]),
        ({"ResultDescription|contains": "locked"}, [2]),
        ({"Status": "Success"}, [1, 4]),
        ({"Status": "Failure", "AppId": "1B73"}, [2]),
        ({"UserPrincipalName|endswith": "@CONTOSO.example"}, [1, 2, 3]),
        ({"ServicePrincipalId": "B029"}, [4]),
    ],
)
def test_sign_ins(sigma: Any, selection: dict[str, Any], wanted: list[int]) -> None:
    assert sigma.hits(sigma.rule(SIGNIN, selection), "access_events", sigma.signins) == [f"e{n:04}" for n in wanted]


def test_m365_over_both_tables_and_by_workload(sigma: Any) -> None:
    changes = [
        sigma.row(
            sigma.change,
            1,
            source="m365_ual",
            op_raw="New-InboxRule",
            new_value="Name=.; ForwardTo=a@evil.example",
            attr="Name; ForwardTo",
        ),
        sigma.row(sigma.change, 2, source="m365_ual", op_raw="Add user."),
    ]
    reads = [
        sigma.row(
            sigma.access,
            3,
            source="m365_ual",
            op_raw="MailItemsAccessed",
            action="get_item",
            access_kind="bind",
            op_count=900,
        )
    ]
    tables = {"change_events": changes, "access_events": reads}

    def matched(text: str) -> list[str]:
        return sorted(uid for f in sigma.findings(text, tables) for uid in f.evidence.event_uids)

    assert matched(sigma.rule(M365, {"UserId": "joey@contoso.example"})) == ["e0001", "e0002", "e0003"]
    assert matched(sigma.rule(M365, {"Workload": "Exchange"})) == ["e0001", "e0003"]
    assert matched(sigma.rule(M365, {"eventSource": "AzureActiveDirectory"})) == ["e0002"]
    assert matched(sigma.rule({"product": "m365", "service": "exchange"}, {"eventName|contains": "e"})) == [
        "e0001",
        "e0003",
    ]
    assert matched(sigma.rule(M365, {"Operation": "New-InboxRule", "Parameters|contains": "forwardto"})) == ["e0001"]
    assert matched(sigma.rule(M365, {"OperationCount|gte": 900})) == ["e0003"]
    assert matched(sigma.rule(M365, {"OperationCount|gt": 900})) == []
    assert matched(sigma.rule(M365, {"MailAccessType": "Bind", "OperationCount": "900"})) == ["e0003"]


def test_a_table_that_lacks_a_field_is_left_out_and_told(sigma: Any) -> None:
    converted = convert(documents(sigma.rule(M365, {"MailAccessType": "Bind"}).encode()), "S-TEST")
    assert converted.detection.tables == ("access_events",)
    assert converted.notes == ("change_events is left out: field MailAccessType is not kept in change_events",)
    # Where the operation tells the table, nothing is missing.
    text = sigma.rule(M365, {"MailAccessType": "Bind", "Operation": "MailItemsAccessed"})
    assert convert(documents(text.encode()), "S-TEST").notes == ()
    assert sigma.reasons(sigma.rule(M365, {"MailAccessType": "Bind", "Operation": "New-InboxRule"})) == (
        "field MailAccessType is not kept in change_events"
    )


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        ({"sender|endswith": "@EVIL.example"}, [1]),
        ({"recipient": "z@evil.example"}, [2]),
        ({"email.to.address|contains": "@"}, [1, 2]),
        ({"email.to.address": None}, [3]),
        ({"sender": ""}, [3]),
        ({"size|gt": 1000000}, [2]),
        ({"size|lte": 10}, [1]),
        ({"sender|fieldref": "helo"}, []),
        ({"sender|fieldref|endswith": "src_host"}, [1]),
        ({"subject|re": "^Inv(oice)?$"}, [1]),
    ],
)
def test_mail(sigma: Any, selection: dict[str, Any], wanted: list[int]) -> None:
    assert sigma.hits(sigma.rule(MAIL, selection), "mail_events", sigma.mails) == [f"e{n:04}" for n in wanted]


def test_own_columns(sigma: Any) -> None:
    source = {"product": "gatehound", "service": "mail_events"}
    assert sigma.hits(sigma.rule(source, {"event": "bounce"}), "mail_events", sigma.mails) == ["e0003"]
    assert "no value like" in sigma.reasons(sigma.rule(source, {"event": "explode"}))


@pytest.mark.parametrize(
    ("source", "selection", "reason"),
    [
        (AUDIT, {"Category": "RoleManagement"}, "field Category is not kept in change_events"),
        (AUDIT, {"Result": "timeout"}, "field result has no value like the rule's"),
        (AUDIT, {"IPAddress|gt": 5}, "is no number"),
        (AUDIT, {"OperationName|cidr": "10.0.0.0/8"}, "is no address"),
        (AUDIT, {"OperationName|re": "(?=x)y"}, "invalid perl operator"),
        (AUDIT, {"OperationName|expand": "%names%"}, "placeholders"),
        (AUDIT, ["word", "other"], "keywords search the raw record"),
        (AUDIT, {"TargetResources.modifiedProperties.newValue": "x"}, "only a contains"),
        (M365, {"Parameters|contains": '"Name":"ForwardTo"'}, "without quotes"),
        ({"product": "m365", "service": "threat_management"}, {"eventName": "x"}, "alerts of Defender"),
        ({"product": "azure", "service": "riskdetection"}, {"riskEventType": "x"}, "risk detections"),
        ({"product": "windows", "category": "process_creation"}, {"Image": "x"}, "no log of that source is read"),
        ({"product": "azure", "service": "activitylogs"}, {"operationName": "x"}, "activity logs"),
        (MAIL, {"size": float("inf")}, "Invalid number"),
    ],
)
def test_what_cannot_be_mapped_is_refused(sigma: Any, source: dict[str, str], selection: Any, reason: str) -> None:
    assert reason in sigma.reasons(sigma.rule(source, selection))


def test_deprecated_rules_filters_and_collections_are_refused(sigma: Any) -> None:
    assert sigma.reasons(sigma.rule(AUDIT, {"OperationName": "x"}, status="deprecated")) == "its status is deprecated"
    assert "action" in sigma.reasons(sigma.rule(AUDIT, {"OperationName": "x"}, action="global"))
    assert "filters" in sigma.reasons("title: t\nlogsource: {product: azure}\nfilter: {rules: [a], condition: a}\n")


def test_case_that_the_archive_lost_is_told(sigma: Any) -> None:
    converted = convert(documents(sigma.rule(AUDIT, {"InitiatedBy|cased": "Eve@contoso.example"}).encode()), "S-TEST")
    assert "lower case" in converted.notes[0]


def test_metadata(sigma: Any) -> None:
    text = sigma.rule(
        AUDIT,
        {"OperationName": "Add user"},
        level="informational",
        tags=["attack.persistence", "attack.t1098.001", "attack.T1562.008", "cve.2021-1"],
        falsepositives=["Administrators\x1b[31m at work"],
        description="Long\nstory",
    )
    found = convert(documents(text.encode()), "S-TEST").detection
    assert found.severity == "info"
    assert found.techniques == ("T1098.001", "T1685.002")
    assert found.hypothesis == "Long story"
    assert "\x1b" not in found.false_positives[0]
    assert found.source == text


def busy(sigma: Any, n_actors: int, level: str) -> list[Any]:
    rows = [
        sigma.row(sigma.change, n, actor_id=f"u{n % n_actors:03}@contoso.example", src_net="198.51.100.0/24")
        for n in range(300)
    ]
    return sigma.findings(sigma.rule(AUDIT, {"OperationName": "Add user"}, level=level), {"change_events": rows})


def test_a_busy_day_is_one_finding_for_each_actor(sigma: Any) -> None:
    found = busy(sigma, 3, "high")
    assert [f.evidence.count for f in found] == [100, 100, 100]
    assert {f.entities["principal_ids"] for f in found} == {(f"u{n:03}@contoso.example",) for n in range(3)}
    assert found[0].severity == "high"
    assert 'Sigma rule "t" matched 100 events' in found[0].explanation
    assert len({f.finding_id for f in found}) == 3


@pytest.mark.parametrize(("n_actors", "level"), [(100, "high"), (5, "low"), (5, "informational")])
def test_many_actors_or_a_low_level_make_one_finding(sigma: Any, n_actors: int, level: str) -> None:
    (found,) = busy(sigma, n_actors, level)
    assert found.evidence.count == 300
    assert found.entities["principal_ids"] == ()
    assert f"{n_actors} different actors" in found.explanation


def test_tenants_are_kept_apart(sigma: Any) -> None:
    rows = [
        sigma.row(sigma.change, 1),
        sigma.row(sigma.change, 2, tenant_id="fabrikam"),
        sigma.row(sigma.change, 3, tenant_id=None),
    ]
    found = sigma.findings(sigma.rule(AUDIT, {"OperationName": "Add user"}), {"change_events": rows})
    assert sorted((f.entities["tenant_ids"], f.evidence.event_uids) for f in found) == [
        ((), ("e0003",)),
        (("contoso",), ("e0001",)),
        (("fabrikam",), ("e0002",)),
    ]
