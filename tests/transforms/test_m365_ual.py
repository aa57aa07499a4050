"""Microsoft 365 audit records: what each kind becomes, and that no record is lost."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from transforms.formats.m365_ual import parse, sniff
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLES = Path(__file__).parents[1] / "samples"
ORG = "5c1f3c0e-1f2a-4a6b-9c3d-0a1b2c3d4e5f"
GRAPH = "00000003-0000-0000-c000-000000000000"
EXCHANGE = "00000002-0000-0ff1-ce00-000000000000"
KEY_1 = "7dffcdc5-f2d5-43ae-86f1-682561befd4b"
KEY_2 = "d747da7e-e11b-4af2-aede-0487c44067af"


def records(texts: list[str]) -> pl.LazyFrame:
    rows, offset = [], 0
    for number, text in enumerate(texts):
        size = len(text.encode())
        rows.append((number, offset, size, text))
        offset += size + 1
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def rows_of(texts: list[str], variant: str = "jsonl") -> list[dict[str, Any]]:
    rows = parse(records(texts), Context("e" * 64, variant=variant)).collect().sort("record_no")
    assert rows.get_column("record_no").to_list() == list(range(len(texts)))
    assert rows.get_column("byte_length").to_list() == [len(text.encode()) for text in texts]
    assert rows.get_column("disposition").null_count() == 0
    return rows.to_dicts()


def read(record: dict[str, Any], **fields: Any) -> dict[str, Any]:
    (row,) = rows_of([json.dumps(record | fields)])
    return row


def head(text: str, name: str = "x") -> Head:
    return Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), name)


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    text = (SAMPLES / "m365_ual.jsonl").read_text(encoding="utf-8")
    match = sniff(head(text))
    assert match is not None
    assert (match.framing, match.variant) == ("lines", "jsonl")
    return rows_of(text.splitlines())


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    kinds = [(row["disposition"], row["reason"] if "events" not in row["disposition"] else None) for row in sample]
    access, change = ("access_events", None), ("change_events", None)
    assert kinds == [
        *[access] * 8,
        *[change] * 12,
        ("ignored", "workload SharePoint: not mail or identity"),
        ("ignored", "operation not about mail or identity"),
        ("quarantined", "no Operation"),
        ("quarantined", "time not readable"),
        access,
        ("quarantined", "not a JSON object"),
    ]
    assert sample[24]["source_id"] == sample[0]["source_id"]  # paging repeats records: the id tells


def test_bind(sample: list[dict[str, Any]]) -> None:
    expected = {
        "source": "m365_ual",
        "source_id": "00000000-0000-4000-8000-000000000001",
        "ts": datetime(2021, 1, 12, 11, 59, 32, tzinfo=UTC),
        "ts_raw": "2021-01-12T11:59:32",
        "ts_basis": "utc",
        "tenant_id": ORG,
        "tenant_domain": "contoso.example",
        "host": "VI1PR04MB5056",
        "protocol": "graph",
        "action": "get_item",
        "access_kind": "bind",
        "op_raw": "MailItemsAccessed",
        "outcome": "success",
        "principal_id": "joey@contoso.example",
        "principal_type": "user",
        "app_id": "842cef72-745d-463c-8b49-ce16ccc5ebd2",
        "api_id": GRAPH,
        "mailbox_id": "joey@contoso.example",
        "logon_type": "owner",
        "external_access": False,
        "effective_user": None,
        "src_ip_raw": "198.51.100.7",
        "user_agent": "Client=REST;;",
        "throttled": False,
        "op_count": 3,
        "item_count": 3,
        "bytes_out": None,
        "bytes_known": False,
        "message_ids": ["<a1@mail.example>", "<a2@mail.example>", "<a3@mail.example>"],
        "folders": ["\\Inbox"],
        "agg_level": "2min",
        "ts_end": None,
        "reason": None,
    }
    check(sample[0], expected)


def test_sync_by_name_whatever_the_order(sample: list[dict[str, Any]]) -> None:
    expected = {
        "action": "sync_folder",
        "access_kind": "sync",
        "throttled": True,
        "op_count": 1,
        "item_count": None,
        "message_ids": None,
        "folders": ["\\Sent Items"],
        "protocol": "mapi",
        "app_id": "d3590ed6-52b3-4102-aeff-aad2292ab01c",
        "api_id": EXCHANGE,
        "logon_type": "delegate",
        "effective_user": "joey@contoso.example",
        "principal_id": "helper@contoso.example",
        "src_ip_raw": "[2001:db8::5]:51902",
    }
    check(sample[1], expected)


def test_application_with_sizes_and_no_count(sample: list[dict[str, Any]]) -> None:
    expected = {
        "protocol": "ews",
        "principal_type": "service_principal",
        "principal_id": "0f2d1b74-0fcd-4bb1-a6e4-63478e07c2bb",
        "app_id": "7c1aec86-7bc7-44d0-a01c-72c2f196f29b",
        "token_id": "MAvPl7EnRECtYhC4q6h_AA",
        "op_count": 3,
        "item_count": 2,
        "bytes_out": 4345,
        "bytes_known": True,
        "message_ids": ["<b1@mail.example>", "<b2@mail.example>"],
        "folders": ["\\Inbox", "\\Archive"],
        "logon_type": "admin",
    }
    check(sample[2], expected)


def test_sentinel_shape(sample: list[dict[str, Any]]) -> None:
    expected = {
        "source_id": "00000000-0000-4000-8000-000000000004",
        "ts": datetime(2021, 1, 12, 13, 32, 7, tzinfo=UTC),
        "ts_basis": "offset",
        "tenant_id": ORG,
        "logon_type": "owner",
        "external_access": False,
        "principal_type": "user",
        "access_kind": "bind",
        "op_count": 2,
        "message_ids": ["<c1@mail.example>", "<c2@mail.example>"],
        "protocol": "owa",
        "src_ip_raw": "203.0.113.9",
    }
    check(sample[3], expected)


def test_other_mailbox_operations(sample: list[dict[str, Any]]) -> None:
    sent = {"action": "send", "protocol": "pop3", "effective_user": "boss@contoso.example", "bytes_out": 4096}
    check(sample[4], sent | {"mailbox_id": "shared@contoso.example", "logon_type": "delegated_admin", "op_count": 1})
    check(sample[5], {"action": "delete", "protocol": "eas", "item_count": 2, "folders": ["\\Inbox", "\\Junk"]})
    check(sample[5], {"outcome": "success", "reason": "PartiallySucceeded", "agg_level": "event"})
    check(sample[19], {"op": "mailbox_export", "op_raw": "New-ComplianceSearchAction", "disposition": "change_events"})


def test_sign_ins(sample: list[dict[str, Any]]) -> None:
    failed = {
        "protocol": "oauth",
        "action": "signin",
        "outcome": "failure",
        "reason": "InvalidUserNameOrPassword",
        "principal_id": "miriam@contoso.example",
        "app_id": "1b730954-1685-4b74-9bfd-dac224a7b894",
        "api_id": "00000002-0000-0000-c000-000000000000",
        "home_tenant_id": ORG,
        "src_ip_raw": "2001:db8::1a:9c",
        "user_agent": "Mozilla/5.0 (Windows NT 10.0)",
        "auth_method": "OAuth2:Token",
        "session_id": "31bbdbf0",
    }
    check(sample[6], failed)
    check(sample[7], {"outcome": "success", "reason": None, "api_id": GRAPH, "src_ip_raw": "198.51.100.20"})


def test_credentials_by_set_difference(sample: list[dict[str, Any]]) -> None:
    added = {
        "op": "add_credential",
        "op_raw": "Update application \N{EN DASH} Certificates and secrets management ",
        "credential_id": KEY_2,
        "target_type": "app",
        "target_id": "a70a7931-c387-4dce-9f35-fbf95bdcc91e",  # the client id, which the details tell
        "actor_id": "admin@contoso.example",
        "app_id": None,
        "user_agent": "Microsoft Azure Graph Client Library 2.1.17",
        "src_ip_raw": "198.51.100.77",
    }
    check(sample[8], added)
    assert sample[8]["attr"] == "KeyDescription; Included Updated Properties"
    assert sample[8]["new_value"].startswith(f"KeyIdentifier={KEY_2},KeyType=Password")
    assert KEY_1 not in sample[8]["new_value"]
    assert sample[8]["old_value"] is None
    check(sample[9], {"op": "remove_credential", "credential_id": KEY_2, "new_value": None})
    assert [part.split(",")[0] for part in sample[9]["old_value"].split("; ")] == [
        f"KeyIdentifier={KEY_2}",
        f"KeyIdentifier={KEY_1}",
    ]


def test_changes(sample: list[dict[str, Any]]) -> None:
    rows = [(row["op"], row["target_type"], row["target_id"], row["is_external_target"]) for row in sample[10:19]]
    assert rows == [
        ("consent", "app", "6131d760-7fda-4db5-8bb1-b771898e9f15", None),
        ("add_role", "user", "alex@contoso.example", None),
        ("licence", "user", "matt@contoso.example", None),
        ("inbox_rule", "rule", "contoso.onmicrosoft.com/joey\\.", True),
        ("forwarding", "mailbox", "joey@contoso.example", False),
        ("audit_setting", "mailbox", "obj", None),
        ("audit_bypass", "mailbox", "alex@contoso.example", None),
        ("journal_rule", "journal_rule", "obj", True),
        ("policy", "policy", "obj", None),
    ]
    check(sample[13], {"attr": "Name; ForwardTo; DeleteMessage", "session_id": "9dd7a60b", "outcome": "success"})
    assert sample[13]["new_value"] == "Name=.; ForwardTo=drop@evil.example; DeleteMessage=True"
    check(sample[18], {"attr": "Identity", "new_value": "Yzk2"})
    assert sample[12]["attr"] == "additionalDetails"
    # A partner's administrator: his own domain is neither the tenant's nor inside.
    assert sample[17]["tenant_domain"] == "contoso.onmicrosoft.com"


BASE = {
    "CreationTime": "2021-01-12T11:59:32",
    "Id": "1",
    "OrganizationId": ORG,
    "Workload": "Exchange",
    "UserId": "u@c.example",
}
ITEM = {"InternetMessageId": "<1@x>"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"OperationCount": 9, "Folders": [{"Path": "\\A", "FolderItems": [ITEM]}]}, {"op_count": 9, "item_count": 1}),
        ({"OperationCount": "7"}, {"op_count": 7, "item_count": None}),
        ({"OperationCount": -1}, {"op_count": 1}),
        ({"Folders": [{"Path": "\\A", "FolderItems": []}]}, {"op_count": 1, "item_count": None, "folders": ["\\A"]}),
        ({"Folders": [{"FolderItems": [{"SizeInBytes": 5}, {"SizeInBytes": 6}]}]}, {"item_count": 2, "bytes_out": 11}),
        ({"Folders": [{"FolderItems": [ITEM, {"SizeInBytes": 6}]}]}, {"bytes_out": 6, "bytes_known": False}),
        (
            {"OperationProperties": [{"Name": "MailAccessType", "Value": "bind"}]},
            {"access_kind": "bind", "throttled": None},
        ),
        ({"OperationProperties": [{"Name": "X", "Value": "Sync"}]}, {"access_kind": None, "action": "other"}),
        ({"OperationProperties": "nonsense"}, {"access_kind": None}),
        ({"AppId": GRAPH, "ClientAppId": "APP"}, {"app_id": "app", "api_id": GRAPH, "protocol": "graph"}),
        ({"AppId": GRAPH}, {"app_id": GRAPH, "api_id": GRAPH}),
        ({"AppId": "APP", "ClientAppId": "other"}, {"app_id": "app", "api_id": EXCHANGE}),
        ({"AppId": "", "ClientAppId": "APP"}, {"app_id": "app", "api_id": None}),
        ({"ClientInfoString": "Client=POP3/IMAP4;Protocol=IMAP4"}, {"protocol": "imap"}),
        ({"ClientInfoString": "Client=OutlookService;Outlook-iOS/2.0;"}, {"protocol": "exchange"}),
        ({"ClientInfoString": "Client=OWA;Client=WebServices"}, {"protocol": "owa"}),
        ({"LogonType": "BestAccess"}, {"logon_type": "best_access"}),
        ({"LogonType": 99}, {"logon_type": None}),
        ({"ExternalAccess": "True"}, {"external_access": True}),
        ({"UserId": "NT AUTHORITY\\SYSTEM (x)", "UserType": 3}, {"principal_type": "system"}),
        ({"UserId": "S@c.example", "UserType": "Application"}, {"principal_type": "service_principal"}),
        ({"UserId": "ServicePrincipal_1"}, {"principal_type": "service_principal"}),
        ({"UserId": "App", "AppId": "app"}, {"principal_type": "service_principal"}),
        ({"UserType": 2}, {"principal_type": "user"}),
        ({"OrganizationId": "$RestApiTenantId$"}, {"tenant_id": None, "tenant_domain": "c.example"}),
        ({"MailboxOwnerUPN": "", "MailboxGuid": "AB-1"}, {"mailbox_id": "ab-1", "effective_user": None}),
        ({"CreationTime": "2021-01-12T11:59:32.5+01:00"}, {"ts": datetime(2021, 1, 12, 10, 59, 32, 500000, UTC)}),
        ({"CreationTime": "4/28/2021, 2:54:37.000 PM"}, {"ts": datetime(2021, 4, 28, 14, 54, 37, tzinfo=UTC)}),
        (
            {"CreationTime": "2021-01-12 11:59:32Z"},
            {"ts": datetime(2021, 1, 12, 11, 59, 32, tzinfo=UTC), "ts_basis": "offset"},
        ),
    ],
)
def test_mail_items_accessed(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    row = read(BASE | {"Operation": "MailItemsAccessed"}, **fields)
    assert row["disposition"] == "access_events"
    check(row, expected | {"agg_level": "2min"})


def test_message_ids_are_capped() -> None:
    items = [{"InternetMessageId": f"<{n}@x>"} for n in range(1500)]
    row = read(BASE, Operation="MailItemsAccessed", Folders=[{"Path": "\\A", "FolderItems": items}])
    assert (row["op_count"], row["item_count"], len(row["message_ids"])) == (1500, 1500, 1000)
    assert row["message_ids"][0] == "<0@x>"
