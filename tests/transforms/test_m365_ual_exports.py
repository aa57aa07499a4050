"""Microsoft 365 audit records as they are exported: CSV, JSON, Sentinel tables, damage; and what holds for all records."""

import csv
import io
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms.formats.m365_ual import FORMAT, parse, sniff
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples" / "m365_ual"
ORG = "5c1f3c0e-1f2a-4a6b-9c3d-0a1b2c3d4e5f"
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
BASE = {
    "CreationTime": "2021-01-12T11:59:32",
    "Id": "1",
    "OrganizationId": ORG,
    "Workload": "Exchange",
    "UserId": "u@c.example",
}


def records(texts: list[str]) -> pl.LazyFrame:
    rows, offset = [], 0
    for number, text in enumerate(texts):
        size = len(text.encode())
        rows.append((number, offset, size, text))
        offset += size + 1
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def csv_records(text: str) -> list[str]:
    found, current = [], ""
    for line in text.splitlines(keepends=True):
        current += line
        if current.count('"') % 2 == 0:
            found.append(current.rstrip("\r\n"))
            current = ""
    return found + ([current] if current else [])


def rows_of(texts: list[str], variant: str = "jsonl") -> list[dict[str, Any]]:
    rows = parse(records(texts), Context("e" * 64, variant=variant)).collect().sort("record_no")
    assert rows.get_column("record_no").to_list() == list(range(len(texts)))
    assert rows.get_column("byte_length").to_list() == [len(text.encode()) for text in texts]
    assert rows.get_column("disposition").null_count() == 0
    return rows.to_dicts()


def head(text: str, name: str = "x") -> Head:
    return Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), name)


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def test_csv_sample() -> None:
    text = (SAMPLES / "m365_ual.csv").read_bytes().decode()
    match = sniff(head(text))
    assert match is not None
    assert (match.framing, match.variant) == ("csv", "csv")
    rows = rows_of(csv_records(text), "csv")
    assert [(row["disposition"], row["reason"]) for row in rows] == [
        ("ignored", "header"),
        *[("access_events", None)] * 3,
        *[("change_events", None)] * 3,
        ("quarantined", "AuditData is empty"),
        ("quarantined", "AuditData is not a JSON object"),
        ("access_events", "PartiallySucceeded"),
        ("quarantined", "CSV record does not fit its header"),
    ]
    lines = rows_of((SAMPLES / "m365_ual.jsonl").read_text(encoding="utf-8").splitlines())
    places = {"record_no", "byte_offset", "byte_length"}
    for row, other in ((1, 0), (2, 1), (3, 2), (4, 8), (5, 13), (6, 14), (9, 5)):
        assert {k: v for k, v in rows[row].items() if k not in places and v is not None} == {
            k: v for k, v in lines[other].items() if k not in places and v is not None
        }


def test_csv_header_is_remembered_and_repeated() -> None:
    first, *rest = csv_records((SAMPLES / "m365_ual.csv").read_bytes().decode())
    context = Context("e" * 64, variant="csv")
    begin = parse(records(["#TYPE Selected.System.Object", "\ufeff" + first, rest[0]]), context).collect()
    assert begin.sort("record_no").get_column("disposition").to_list() == ["ignored", "ignored", "access_events"]
    later = parse(records([rest[1], "\ufeff" + first, rest[2]]), context).collect()
    assert later.sort("record_no").get_column("disposition").to_list() == ["access_events", "ignored", "access_events"]


def test_audit_queue_of_an_exchange_server() -> None:
    text = (SAMPLES / "m365_ual_queue.log").read_text(encoding="utf-8")
    match = sniff(head(text))
    assert match is not None
    assert (match.framing, match.variant) == ("lines", "queue")
    lines = text.splitlines()
    rows = rows_of(lines, "queue")
    assert [(row["disposition"], row["reason"]) for row in rows] == [
        *[("ignored", "header")] * 5,
        *[("change_events", None)] * 2,
        ("access_events", None),
        ("quarantined", "Data is not a JSON object"),
    ]
    # The row's time, as CreationTime is local; the mailbox that is forwarded from is inside.
    moved = {"ts": datetime(2026, 3, 2, 9, 0, 1, 189000, UTC), "ts_raw": "2026-03-02T09:00:01.189Z", "tenant_id": None}
    check(rows[5], moved | {"op": "forwarding", "is_external_target": True, "tenant_domain": None})
    check(rows[6], {"new_value": "Password=(not kept); Name=svc"})
    later = sniff(head("\n".join(lines[5:])))
    assert later is not None
    assert later.variant == "queue"
    assert [row["disposition"] for row in rows_of(lines[5:], "queue")] == [row["disposition"] for row in rows[5:]]


def test_times_out_of_range_are_refused() -> None:
    records = [
        json.dumps(BASE | {"Operation": "Send", "CreationTime": f"{year}-01-12T11:59:32"}) for year in ("0001", 2999)
    ]
    assert [row["reason"] for row in rows_of(records)] == ["time not readable"] * 2


def test_office_activity_table() -> None:
    out = io.StringIO(newline="")
    properties = json.dumps([{"Name": "MailAccessType", "Value": "Sync"}])
    parameters = json.dumps([{"Name": "Identity", "Value": "a@c.example"}, {"Name": "AuditEnabled", "Value": "False"}])
    header = [
        "TimeGenerated [UTC]",
        "Operation",
        "UserId",
        "Client_IPAddress",
        "Parameters",
        "OperationProperties",
        "Logon_Type",
    ]
    csv.writer(out).writerows(
        [
            header,
            ["4/28/2021, 2:54:37.000 PM", "MailItemsAccessed", "A@c.example", "198.51.100.3", "", properties, "Owner"],
            ["4/28/2021, 2:55:37.000 PM", "Set-Mailbox", "A@c.example", "", parameters, "", ""],
        ]
    )
    match = sniff(head(out.getvalue()))
    assert match is not None
    assert match.variant == "officeactivity"
    rows = rows_of(csv_records(out.getvalue()), match.variant)
    assert rows[0]["reason"] == "header"
    check(rows[1], {"disposition": "access_events", "access_kind": "sync", "logon_type": "owner", "source_id": None})
    check(rows[1], {"ts": datetime(2021, 4, 28, 14, 54, 37, tzinfo=UTC), "src_ip_raw": "198.51.100.3"})
    check(rows[2], {"disposition": "change_events", "op": "audit_setting", "target_id": "a@c.example"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Jan  1 00:00:00 mail postfix/smtpd[1]: connect from x[1.2.3.4]\n",
        '{"time":"2021-01-12T06:22:28Z","category":"SignInLogs","properties":{}}\n',
        "DateTime,RequestId,Operation\n",
        '{"Operation":"x"}\n',
        "[1,2]",
    ],
)
def test_sniff_leaves_others_alone(text: str) -> None:
    assert sniff(head(text)) is None


def test_sniff_json_documents() -> None:
    record = json.loads((SAMPLES / "m365_ual.jsonl").read_text(encoding="utf-8").splitlines()[0])
    for text in (
        json.dumps([record]),
        json.dumps({"value": [record]}),
        json.dumps({"value": [record]}, indent=2),
        json.dumps(record, indent=2),
    ):
        match = sniff(head(text))
        assert match is not None
        assert (match.framing, match.variant) == ("json", "json")


def test_damaged_records_give_one_row_each() -> None:
    lines = (SAMPLES / "m365_ual.jsonl").read_text(encoding="utf-8").splitlines()[:20]
    rng = random.Random(7)
    damaged = ["", "\x00", "{", "{}", "x" * 1_000_000, '{"Operation":"MailItemsAccessed","CreationTime":' + "[" * 5000]
    damaged.append(json.dumps(BASE | {"Operation": "MailItemsAccessed", "ClientInfoString": "y" * 1_000_000}))
    for line in lines:
        cut = rng.randrange(len(line))
        other = rng.choice(lines)
        damaged += [line[:cut], line[:cut] + other[cut:], line[:cut] + "\x00" + line[cut:], line + other]
    rows = rows_of(damaged)
    assert {row["disposition"] for row in rows} <= {"access_events", "change_events", "ignored", "quarantined"}
    assert rows[6]["disposition"] == "access_events"
    assert sum(row["disposition"] == "quarantined" for row in rows) > len(lines)
    assert len({row["reason"] for row in rows if row["disposition"] == "quarantined"}) <= 3


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=12)
NAME = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)


@QUICK
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "id": st.uuids().map(str),
                "ts": st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)).map(lambda t: t.replace(microsecond=0)),
                "user": NAME,
                "ids": st.lists(TEXT, max_size=4, unique=True),
                "folder": TEXT,
                "kind": st.sampled_from(["bind", "sync"]),
                "throttled": st.booleans(),
                "ip": st.ip_addresses().map(str),
            }
        ),
        max_size=5,
    )
)
def test_round_trip(events: list[dict[str, Any]]) -> None:
    texts = []
    for event in events:
        record = BASE | {
            "Operation": "MailItemsAccessed",
            "Id": event["id"],
            "CreationTime": event["ts"].isoformat(),
            "UserId": f"{event['user'].upper()}@C.example",
            "ClientIPAddress": event["ip"],
            "OperationProperties": [
                {"Name": "IsThrottled", "Value": str(event["throttled"])},
                {"Name": "MailAccessType", "Value": event["kind"].title()},
            ],
            "Folders": [{"Path": event["folder"], "FolderItems": [{"InternetMessageId": i} for i in event["ids"]]}],
        }
        texts.append(json.dumps(record))
    for event, row in zip(events, rows_of(texts), strict=True):
        expected = {
            "source_id": event["id"],
            "ts": event["ts"].replace(tzinfo=UTC),
            "principal_id": f"{event['user']}@c.example",
            "src_ip_raw": event["ip"],
            "throttled": event["throttled"],
            "access_kind": event["kind"],
            "message_ids": event["ids"] or None,
            "folders": [event["folder"]],
            "op_count": max(1, len(event["ids"])),
        }
        check(row, expected)


def test_columns_are_those_of_the_contracts() -> None:
    import data_contracts as contracts

    known = {column.name for table in FORMAT.tables for column in contracts.contract(table).columns}
    lines = (SAMPLES / "m365_ual.jsonl").read_text(encoding="utf-8").splitlines()
    rows = parse(records(lines), Context("e" * 64, variant="jsonl")).collect()
    assert set(rows.columns) - known == {"disposition", "source_id", "tenant_domain"}
    for table in FORMAT.tables:
        part = rows.filter(pl.col("disposition") == table)
        for column in contracts.contract(table).columns:
            if column.enum and column.name in rows.columns:
                assert set(part.get_column(column.name).drop_nulls()) <= set(column.enum), column.name


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
@pytest.mark.parametrize("path", sorted(REAL.glob("*")) if REAL.is_dir() else [], ids=lambda path: path.name)
def test_real_samples(path: Path) -> None:
    text = path.read_bytes().decode()
    match = sniff(head(text, path.name))
    assert match is not None
    texts = csv_records(text) if match.framing == "csv" else text.splitlines()
    rows = rows_of(texts, match.variant)
    kinds = [row["disposition"] for row in rows]
    assert "quarantined" not in kinds
    assert kinds.count("ignored") == (1 if match.framing == "csv" else 0)
    for row in rows[1:]:
        assert row["ts"] is not None
        assert row["op_raw"]
