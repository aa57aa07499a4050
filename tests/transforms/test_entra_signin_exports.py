"""Entra sign-ins as Log Analytics, Microsoft Graph and the portal export them; whose files are claimed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from transforms import entra_tables, registry
from transforms.formats.entra_signin import FORMAT
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context, Head, Match

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
TENANT = "4bbb79f7-5724-4c9e-95f3-de075f6ec090"
PRINCIPAL = "b029d485-a308-4311-8720-fb3192e5284e"
APP = "6131d760-7fda-4db5-8bb1-b771898e9f15"
THUMBPRINT = "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334"


def rows_of(texts: list[str], ctx: Context) -> list[dict[str, Any]]:
    frame = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    rows = FORMAT.parse(pl.LazyFrame(frame, schema=RECORD_SCHEMA, orient="row"), ctx).collect()
    assert rows.get_column("record_no").to_list() == list(range(len(texts)))
    assert rows.get_column("disposition").null_count() == 0
    return rows.to_dicts()


def sniffed(text: str) -> Match | None:
    assert FORMAT.sniff is not None
    return FORMAT.sniff(Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), "x"))


def read(name: str) -> list[dict[str, Any]]:
    text = (SAMPLES / name).read_bytes().decode()
    match = sniffed(text)
    assert match is not None
    assert match.framing == ("lines" if name.endswith(".jsonl") else "csv")
    return rows_of(text.splitlines(), Context("e" * 64, variant=match.variant))


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def test_log_analytics() -> None:
    rows = read("entra_signin.csv")
    assert [row["disposition"] for row in rows] == ["ignored", *["access_events"] * 4, "quarantined"]
    expected = {
        "source": "entra_user_signin",
        "source_id": "00000000-0000-4000-8000-000000000101",
        "ts": datetime(2026, 3, 2, 14, 4, 1, 250000, UTC),
        "ts_raw": "3/2/2026, 2:04:01.250 PM",
        "ts_basis": "utc",
        "tenant_id": TENANT,  # not that of the workspace
        "tenant_domain": "contoso.example",
        "home_tenant_id": TENANT,
        "action": "signin",
        "op_raw": "SignInLogs",
        "outcome": "success",
        "reason": None,
        "principal_id": "joey@contoso.example",
        "app_id": APP,
        "api_id": "00000002-0000-0ff1-ce00-000000000000",
        "credential_id": "pw:joey@contoso.example",
        "credential_type": "password",
        "token_id": "dG9rZW4",
        "session_id": "s-1",
        "src_ip_raw": "203.0.113.7",
        "user_agent": "Mozilla/5.0, like Gecko",
        "auth_method": "IMAP4; Password; Mobile app notification",
        "agg_level": "event",
    }
    check(rows[1], expected)
    check(rows[2], {"outcome": "failure", "reason": "50126: Error validating credentials.", "session_id": "c-2"})
    check(rows[3], {"source": "entra_sp_signin", "principal_id": PRINCIPAL, "credential_id": None})
    check(rows[4], {"tenant_domain": None, "tenant_id": TENANT, "principal_id": "guest@other.example"})
    assert rows[5]["reason"] == "time not readable"


def test_answers_of_graph_are_documents() -> None:
    records = [
        json.loads(line) for line in (SAMPLES / "entra_signin_msgraph.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for document in ({"value": records}, {"@odata.context": "x", "value": records}, records):
        for indent in (None, 1):
            match = sniffed(json.dumps(document, indent=indent))
            assert match is not None
            assert (match.framing, match.variant) == ("json", "json")


def test_graph() -> None:
    rows = read("entra_signin_msgraph.jsonl")
    sources = [row["source"] for row in rows]
    assert sources == ["entra_sp_signin", "entra_user_signin", "entra_mi_signin", "entra_sp_signin", None]
    sp = {"credential_id": THUMBPRINT, "credential_type": "cert", "op_raw": "servicePrincipal", "tenant_id": TENANT}
    check(rows[0], sp | {"token_id": "ZDU5", "session_id": "59fe2cc8", "outcome": "success", "reason": None})
    check(rows[1], {"outcome": "failure", "reason": "50074: Strong Authentication is required."})
    check(rows[2], {"src_ip_raw": None, "tenant_id": None, "principal_id": PRINCIPAL})
    grouped = {"agg_level": "portal_group", "op_count": 37, "source_id": None, "outcome": "failure"}
    check(rows[3], grouped | {"ts": datetime(2021, 1, 12, 5, tzinfo=UTC), "tenant_id": TENANT})
    assert (rows[4]["disposition"], rows[4]["reason"]) == ("quarantined", "no category")
    # The same sign-in in the diagnostic stream has the same id: only one of them counts.
    assert rows[0]["source_id"] == "00000000-0000-4000-8000-000000000019"


def test_portal() -> None:
    rows = read("entra_signin_portal.csv")
    told = {"source": "entra_sp_signin", "principal_id": PRINCIPAL, "app_id": APP, "tenant_id": TENANT}
    check(rows[1], told | {"credential_id": THUMBPRINT, "op_count": 12, "agg_level": "portal_group", "source_id": None})
    check(rows[2], told | {"credential_type": "key", "agg_level": "event", "outcome": "failure", "op_count": 1})
    assert rows[2]["reason"] == "7000222: expired, so refused"


def test_log_analytics_json() -> None:
    row = {"TimeGenerated": "2026-03-02T14:05:00Z", "CreatedDateTime": "2026-03-02T14:04:00Z", "Type": "SigninLogs"}
    row |= {"Category": "SignInLogs", "UserPrincipalName": "J@c.example", "IPAddress": "203.0.113.7", "ResultType": "0"}
    row |= {"AADTenantId": TENANT, "Status": '{"errorCode":0}', "ResourceIdentity": "r", "ResourceId": "/tenants/x"}
    match = sniffed(json.dumps(row))
    assert match is not None
    assert (match.framing, match.variant) == ("lines", "table-jsonl")
    (found,) = rows_of([json.dumps(row)], Context("e" * 64, variant=match.variant))
    check(found, {"principal_id": "j@c.example", "tenant_id": TENANT, "api_id": "r", "src_ip_raw": "203.0.113.7"})
    check(found, {"ts": datetime(2026, 3, 2, 14, 4, tzinfo=UTC), "outcome": "success"})


@pytest.mark.parametrize(
    ("names", "tz", "expected", "basis"),
    [
        ("CreatedDateTime [UTC]", "Europe/Oslo", 14, "utc"),
        ("CreatedDateTime", "Europe/Oslo", 14, "utc"),
        ("CreatedDateTime [Local Time]", "Europe/Oslo", 13, "assumed_zone"),
    ],
)
def test_zone_of_the_export(names: str, tz: str, expected: int, basis: str) -> None:
    texts = [
        f"{names},IPAddress,AppId,ResourceDisplayName,UserPrincipalName",
        '"3/2/2026, 2:04:00.000 PM",,,,a@b.example',
    ]
    row = rows_of(texts, Context("e" * 64, variant="csv", tz=tz))[1]
    assert (row["ts"].hour, row["ts_basis"]) == (expected, basis)


def test_twin_columns_and_suffixes() -> None:
    names = ["Status_dynamic", "Status_string", "CreatedDateTime [UTC]", "TenantId", "UserId_g", "AppId", "AppId"]
    assert entra_tables.fields_of(names) == {
        "status": ["Status_dynamic", "Status_string"],
        "createdDateTime": ["CreatedDateTime [UTC]"],
        "userId": ["UserId_g"],
        "appId": ["AppId"],
    }


@pytest.mark.parametrize("name", ["entra_signin.csv", "entra_signin_portal.csv"])
def test_damaged_csv_gives_one_row_each(name: str) -> None:
    header, *lines = (SAMPLES / name).read_bytes().decode().splitlines()
    damaged = [header, "", '"', "\x00", "a,b", "x" * 500_000]
    for line in lines:
        for cut in range(0, len(line), 37):
            damaged += [line[:cut], line[:cut] + lines[0], line[:cut] + "\x00\x1e" + line[cut:]]
    rows = rows_of(damaged, Context("e" * 64, variant="csv"))
    assert rows[0]["reason"] == "header"
    reasons = {row["reason"] for row in rows[1:] if row["disposition"] == "quarantined"}
    assert reasons <= {
        "CSV record does not fit its header", "no category", "no time", "time not readable", "not a JSON object"
    }  # fmt: skip


OTHERS = [path for path in sorted([*SAMPLES.glob("*"), *SHARED.glob("*/*")]) if path.is_file()]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}/{path.name}"[:60])
def test_only_its_own_files_are_claimed(path: Path) -> None:
    mine = path.name.startswith("entra_signin") or path.parent.name == "azuread_signin"
    choice = registry.choose(head_of(path.read_bytes(), path.name))
    assert (not isinstance(choice, str) and choice.name == "entra_signin") == mine
