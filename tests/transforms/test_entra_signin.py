"""Entra sign-ins: which credential of which principal signed in, and that no record is lost."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms.formats.entra_signin import FORMAT, sniff
from transforms.model import RECORD_SCHEMA, Context, Head

parse = FORMAT.parse

SAMPLE = Path(__file__).parents[1] / "samples" / "entra_signin.jsonl"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
REAL = sorted(SHARED.glob("azuread_signin/*"))
TENANT = "4bbb79f7-5724-4c9e-95f3-de075f6ec090"
OTHER = "f1d2d2f9-24e9-4ac8-86fd-ba75036246eb"
KEY = "dbcd79c0-c3ea-46b9-9604-ff40d43b8618"
PRINCIPAL = "b029d485-a308-4311-8720-fb3192e5284e"


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    frame = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    lazy = pl.LazyFrame(frame, schema=RECORD_SCHEMA, orient="row")
    rows = parse(lazy, Context("e" * 64, variant="jsonl")).collect().sort("record_no")
    assert rows.get_column("record_no").to_list() == list(range(len(texts)))
    assert rows.get_column("disposition").null_count() == 0
    return rows.to_dicts()


def head(text: str) -> Head:
    return Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), "x")


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    text = SAMPLE.read_text(encoding="utf-8")
    match = sniff(head(text))
    assert match is not None
    assert (match.framing, match.variant) == ("lines", "jsonl")
    return rows_of(text.splitlines())


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    event = ("access_events", None)
    kinds = [(row["disposition"], None if "events" in row["disposition"] else row["reason"]) for row in sample]
    assert kinds == [
        *[event] * 8,
        ("change_events", None),
        ("ignored", "category ProvisioningLogs: neither sign-in nor directory audit"),
        ("quarantined", "no category"),
        ("quarantined", "time not readable"),
        event,
        ("quarantined", "not a JSON object"),
    ]
    assert sample[12]["source_id"] == sample[0]["source_id"]
    assert all(row["source"] is None for row in sample[9:12])


def test_service_principal(sample: list[dict[str, Any]]) -> None:
    expected = {
        "source": "entra_sp_signin",
        "source_id": "00000000-0000-4000-8000-000000000019",
        "ts": datetime(2021, 1, 12, 6, 22, 28, 351840, UTC),
        "ts_raw": "2021-01-12T06:22:28.3518405+00:00",
        "ts_basis": "offset",
        "tenant_id": TENANT,
        "tenant_domain": None,
        "home_tenant_id": TENANT,
        "protocol": "oauth",
        "action": "signin",
        "op_raw": "ServicePrincipalSignInLogs",
        "outcome": "success",
        "reason": None,
        "principal_id": PRINCIPAL,
        "principal_type": "service_principal",
        "app_id": "6131d760-7fda-4db5-8bb1-b771898e9f15",
        "api_id": "00000002-0000-0ff1-ce00-000000000000",
        "credential_id": KEY,
        "credential_type": "key",
        "token_id": "ZDU5",
        "external_access": False,
        "src_ip_raw": "198.51.100.4",
        "agg_level": "event",
    }
    check(sample[0], expected)


def test_credentials(sample: list[dict[str, Any]]) -> None:
    found = [(row["credential_id"], row["credential_type"]) for row in sample[:6]]
    assert found == [
        (KEY, "key"),
        ("a1b2c3d4e5f60718293a4b5c6d7e8f9001122334", "cert"),
        (KEY, "secret"),
        (None, None),  # a certificate that the record does not name
        (KEY, "cert"),
        (None, None),
    ]


def test_outcomes_times_and_tenants(sample: list[dict[str, Any]]) -> None:
    check(sample[1], {"ts": datetime(2021, 1, 12, 6, 23, 28, 500000, UTC), "ts_basis": "offset"})
    check(sample[2], {"outcome": "failure", "reason": "7000222: The provided client secret keys are expired."})
    check(sample[4], {"home_tenant_id": OTHER, "tenant_id": TENANT, "external_access": True})
    check(sample[5], {"source": "entra_mi_signin", "src_ip_raw": None, "principal_id": PRINCIPAL})


def test_users(sample: list[dict[str, Any]]) -> None:
    user = {"source": "entra_user_signin", "principal_id": "joey@contoso.example", "principal_type": "user"}
    check(sample[6], user | {"tenant_domain": "contoso.example", "user_agent": "Mozilla/5.0", "auth_method": "Browser"})
    # A guest's domain is not the tenant's; `status` came as JSON in a string.
    check(sample[7], {"tenant_domain": None, "outcome": "failure", "reason": "50126", "external_access": True})


def test_properties_as_text_and_without_envelope() -> None:
    record = json.loads(SAMPLE.read_text(encoding="utf-8").splitlines()[0])
    (row,) = rows_of([json.dumps(record | {"properties": json.dumps(record["properties"])})])
    check(row, {"credential_id": KEY, "principal_id": PRINCIPAL, "disposition": "access_events"})
    (bare,) = rows_of([json.dumps({"category": "SignInLogs", "time": "2021-01-12T06:22:28"})])
    check(bare, {"disposition": "access_events", "outcome": "unknown", "ts_basis": "utc", "principal_id": None})


def test_sniff() -> None:
    record = json.loads(SAMPLE.read_text(encoding="utf-8").splitlines()[0])
    documents = [[record], {"records": [record]}]
    for text in [json.dumps(item) for item in documents] + [
        json.dumps(item, indent=1) for item in [*documents, record]
    ]:
        match = sniff(head(text))
        assert match is not None
        assert (match.framing, match.variant) == ("json", "json")
    for text in ("", "{}", '{"CreationTime":"x","Operation":"y"}', "a,b,c\n", "[1]"):
        assert sniff(head(text)) is None


def test_damaged_records_give_one_row_each() -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()[:8]
    rng = random.Random(3)
    damaged = ["", "\x00", "[]", "{}", '{"category":' + "[" * 9999, '{"category":"SignInLogs","properties":[1]}']
    damaged.append(json.dumps(json.loads(lines[0]) | {"identity": "x" * 1_000_000}))
    for line in lines:
        cut = rng.randrange(len(line))
        other = rng.choice(lines)
        damaged += [line[:cut], line[:cut] + other[cut:], line[:cut] + "\x00" + line[cut:], line + other]
    rows = rows_of(damaged)
    assert rows[6]["disposition"] == "access_events"
    reasons = {row["reason"] for row in rows if row["disposition"] == "quarantined"}
    assert reasons <= {"not a JSON object", "no category", "no time", "time not readable"}


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.uuids().map(str),
                "ts": st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
                "offset": st.integers(-12, 14),
                "key": st.none() | st.uuids().map(str),
                "code": st.integers(0, 10**7),
                "ip": st.ip_addresses().map(str),
            }
        ),
        max_size=5,
    )
)
def test_round_trip(events: list[dict[str, Any]]) -> None:
    texts = []
    for event in events:
        moment = event["ts"].replace(tzinfo=UTC)
        local = (moment.timestamp() + event["offset"] * 3600) // 1
        written = datetime.fromtimestamp(local, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        stamp = f"{written}.{event['ts'].microsecond:06d}7{event['offset']:+03d}:00"
        properties = {
            "id": event["id"].upper(),
            "createdDateTime": stamp,
            "servicePrincipalId": PRINCIPAL,
            "servicePrincipalCredentialKeyId": event["key"],
        }
        envelope = {"category": "ServicePrincipalSignInLogs", "tenantId": TENANT, "callerIpAddress": event["ip"]}
        texts.append(json.dumps(envelope | {"resultType": str(event["code"]), "properties": properties}))
    for event, row in zip(events, rows_of(texts), strict=True):
        expected = {
            "source_id": event["id"],
            "ts": event["ts"].replace(tzinfo=UTC),
            "credential_id": event["key"],
            "credential_type": "key" if event["key"] else None,
            "outcome": "failure" if event["code"] else "success",
            "reason": str(event["code"]) if event["code"] else None,
            "src_ip_raw": event["ip"],
        }
        check(row, expected)


def test_columns_are_those_of_the_contract() -> None:
    import data_contracts as contracts

    known = {column.name for table in FORMAT.tables for column in contracts.contract(table).columns}
    (row, *_) = rows_of(SAMPLE.read_text(encoding="utf-8").splitlines())
    assert FORMAT.tables == ("access_events", "change_events")
    assert set(row) - known == {"disposition", "source_id", "tenant_domain"}


@pytest.mark.skipif(not REAL, reason="real samples are not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_samples(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    match = sniff(head(text))
    assert match is not None
    rows = rows_of(text.splitlines())
    assert {row["disposition"] for row in rows} == {"access_events"}
    if "service-principal" in path.name:
        assert {row["credential_id"] for row in rows} == {KEY}
