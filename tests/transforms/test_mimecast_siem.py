"""Mimecast's SIEM logs: what each record type becomes, in each spelling, and that no record is lost."""

import json
import random
import string
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry
from transforms.formats.mimecast_siem import FORMAT, parse, sniff
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
REAL = sorted(SHARED.glob("mimecast/*"))
OTHERS = [
    p for folder in (SAMPLES, SHARED) for p in sorted(folder.rglob("*")) if p.is_file() and "mimecast" not in str(p)
]
UNREAD = "neither a JSON object nor a Mimecast line"
PLACES = {"record_no", "byte_offset", "byte_length", "disposition"}


def records(texts: list[str]) -> pl.LazyFrame:
    rows = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def rows_of(texts: list[str], variant: str = "json") -> list[dict[str, Any]]:
    rows = parse(records(texts), Context("e" * 64, variant=variant)).collect().sort("record_no")
    assert rows["record_no"].to_list() == list(range(len(texts)))
    assert set(rows["disposition"]) <= {"mail_events", IGNORED, QUARANTINED}
    aside = rows.filter(pl.col("disposition") != "mail_events")
    assert aside["reason"].null_count() == 0
    assert aside["source"].null_count() == aside.height
    events = rows.filter(pl.col("disposition") == "mail_events")
    assert (
        events.select("source", "ts", "ts_raw", "ts_basis", "event", "outcome").null_count().sum_horizontal().sum() == 0
    )
    return rows.to_dicts()


def filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name not in PLACES}


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def sample(name: str) -> list[dict[str, Any]]:
    data = (SAMPLES / name).read_bytes()
    match = sniff(head_of(data, name))
    assert match is not None
    assert match.framing == "lines"
    return rows_of(data.decode().splitlines(), match.variant)


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (row["op_raw"], row["event"], row["outcome"]) if row["event"] else (row["disposition"], row["reason"])
        for row in rows
    ]


def test_pipe_sample() -> None:
    rows = sample("mimecast_siem.log")
    assert brief(rows) == [
        ("receipt Acc", "receive", "success"), ("process Acc", "queue", "success"),
        ("delivery", "deliver", "success"), ("process Hld", "hold", "unknown"),
        ("receipt Rej", "reject", "failure"), ("delivery", "defer", "failure"),
        ("delivery", "bounce", "failure"), ("delivery", "send", "success"), ("journal", "journal", "success"),
        ("av", "verdict", "unknown"), ("spam", "verdict", "unknown"),
        ("internal email protect", "verdict", "unknown"), ("impersonation protect Hold", "verdict", "failure"),
        ("url protect Block", "click", "failure"), ("attachment protect", "verdict", "unknown"),
        ("receipt Acc", "receive", "success"), ("receipt Acc", "receive", "success"), (IGNORED, "blank line"),
        (QUARANTINED, UNREAD), (QUARANTINED, "time not readable"),
        (QUARANTINED, "type of the record cannot be told"),
    ]  # fmt: skip
    assert {row["queue_id"] for row in rows[:3]} == {"qRt5vB1aM2-Xc9LpZ0aaaa"}
    assert filled(rows[0]) == {
        "source": "mimecast_siem",
        "ts": datetime(2024, 5, 13, 8, 15, 41, tzinfo=UTC),
        "ts_raw": "2024-05-13T09:15:41+0100",
        "ts_basis": "offset",
        "tenant_id": "C12A34",
        "event": "receive",
        "op_raw": "receipt Acc",
        "outcome": "success",
        "queue_id": "qRt5vB1aM2-Xc9LpZ0aaaa",
        "message_id": "<m1@sender.example>",
        "direction": "inbound",
        "src_ip_raw": "192.0.2.25",
        "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384",
        "mail_from": "bounce@sender.example",
        "header_from": "ann@sender.example",
        "rcpt": "bob@tenant-a.example",
        "n_rcpt": 1,
        "subject": "Quarterly figures",
    }
    # The address of a delivery is where it went.
    check(
        rows[2], {"src_ip_raw": None, "dst_ip_raw": "203.0.113.10", "relay_host": "Tenant A Exchange", "delay_s": 5.618}
    )
    check(rows[3], {"subject": "50% off | today only", "status_text": "Spm", "src_ip_raw": None, "size_bytes": 56442})
    check(rows[5], {"dsn": "4.7.500", "status_text": "451 Recipient server unavailable or busy: 4.7.500 Server busy"})
    check(rows[6], {"mail_from": "", "dst_ip_raw": "2001:db8::25", "direction": "outbound", "dsn": "5.4.1"})
    check(rows[7], {"message_id": "<m5@tenant-a.example>", "status_text": "250 OK"})
    check(
        rows[8], {"rcpt": "journal@tenant-a.example", "direction": "internal", "src_ip_raw": None, "size_bytes": None}
    )
    check(rows[13], {"subject": "Contract", "src_ip_raw": "198.51.100.12", "message_id": "<m10@phish.example>"})


def test_words_of_a_verdict_and_no_password() -> None:
    rows = sample("mimecast_siem.log")
    url = "https://user:***@phish.example/login/"
    assert rows[11]["status_text"] == f"scan=Blocked URL Category; category=Phishing & Fraud; url={url}"
    assert rows[12]["status_text"] == (
        "action=Hold; definition=Default Impersonation Definition; hits=2; taggedMalicious=true"
    )
    assert rows[13]["status_text"] == (
        "category=Phishing & Fraud; reason=malicious; action=Block; url=http://phish.example/a?b=c"
    )
    assert not any("hunter2" in str(value) for row in rows for value in row.values())


def test_a_subject_or_message_id_cannot_stand_in_for_other_fields() -> None:
    rows = sample("mimecast_siem.log")
    inside = "x|Act=Rej|Rcpt=other@tenant-b.example\\|Act=Rej"
    check(rows[15], {"subject": inside, "rcpt": "bob@tenant-a.example", "event": "receive", "tenant_id": "C12A34"})
    # Named twice, one of them by the sender: which one cannot be told.
    check(rows[16], {"mail_from": None, "message_id": None, "tenant_id": "C12A34", "rcpt": "bob@tenant-a.example"})


def test_json_sample() -> None:
    rows = sample("mimecast_siem.jsonl")
    assert brief(rows) == [
        ("receipt Acc", "receive", "success"), ("process Hld", "hold", "unknown"),
        ("delivery", "bounce", "failure"), ("delivery", "deliver", "success"),
        ("journal", "journal", "success"), ("url protect Block", "click", "failure"),
        ("receipt Rej", "reject", "failure"), (QUARANTINED, UNREAD),
        (IGNORED, "record type is not about a message"),
    ]  # fmt: skip
    check(
        rows[0], {"ts": datetime(2024, 5, 26, 15, 47, 41, tzinfo=UTC), "src_ip_raw": "192.0.2.25", "subject": "lunch"}
    )
    check(rows[1], {"message_id": "<j2@news.example>", "mail_from": "bounce@news.example", "size_bytes": 157436})
    check(rows[2], {"mail_from": "", "dst_ip_raw": "203.0.113.15", "size_bytes": 125, "delay_s": 0.505, "dsn": "5.4.1"})
    check(rows[5], {"mail_from": "sign@phish.example", "direction": "inbound", "subject": "Paper #1"})
    # A row of a Log Analytics table.
    check(
        rows[6],
        {"tenant_id": "C12A34", "ts": datetime(2024, 11, 29, 15, 14, 58, tzinfo=UTC), "src_ip_raw": "198.51.100.16"},
    )
    assert all(row["source_id"] is None for row in rows)


def test_api_2_sample() -> None:
    rows = sample("mimecast_siem_v2.jsonl")
    assert brief(rows) == [
        ("receipt Acc", "receive", "success"), ("receipt Rej", "reject", "failure"),
        ("process Acc", "queue", "success"), ("process Hld", "hold", "unknown"),
        ("delivery", "deliver", "success"), ("delivery", "defer", "failure"),
        ("journal", "journal", "success"), ("spam", "verdict", "unknown"),
        ("attachment protect", "verdict", "unknown"), ("av", "verdict", "unknown"),
        ("internal email protect", "verdict", "unknown"), ("impersonation protect Hold", "verdict", "failure"),
        ("url protect Allow", "click", "success"), ("journal", "journal", "success"),
        (QUARANTINED, "time not readable"), (IGNORED, "record type is not about a message"),
        (QUARANTINED, "type of the record cannot be told"), (QUARANTINED, UNREAD),
    ]  # fmt: skip
    delivery = filled(rows[4])
    assert delivery.pop("source_id").startswith("delivery|CUSA1|aggA_1731000000|procE_1731000000|1731700011059|")
    assert delivery == {
        "source": "mimecast_siem",
        "ts": datetime(2024, 11, 15, 19, 46, 51, 59000, tzinfo=UTC),
        "ts_raw": "1731700011059",
        "ts_basis": "utc",
        "tenant_id": "CUSA1",
        "event": "deliver",
        "op_raw": "delivery",
        "outcome": "success",
        "queue_id": "aggA_1731000000",
        "internal_id": "procE_1731000000",
        "message_id": "<v1@sender.example>",
        "direction": "inbound",
        "dst_ip_raw": "203.0.113.30",
        "relay_host": "mx.tenant-a.example",
        "mail_from": "bounce@sender.example",
        "rcpt": "bob@tenant-a.example",
        "n_rcpt": 1,
        "subject": "minutes of the meeting",
        "size_bytes": 6015,
        "delay_s": 11.0,
    }
    assert {rows[at]["queue_id"] for at in (0, 2, 4)} == {"aggA_1731000000"}
    both = ["carol@other.example", "dan@other.example"]
    check(rows[5], {"rcpt": both[0], "recipients": both, "n_rcpt": 2, "status_text": "Connection timed out"})
    check(rows[9], {"size_bytes": 1648832, "src_ip_raw": "198.51.100.24"})
    # The same record downloaded twice is one event.
    assert rows[13]["source_id"] == rows[6]["source_id"]
    assert len({row["source_id"] for row in rows[:13]}) == 13


@pytest.mark.parametrize(
    ("fields", "event", "outcome"),
    [
        ({"Delivered": True, "Dir": "Outbound"}, "send", "success"),
        ({"Delivered": "false", "RejCode": "421"}, "defer", "failure"),
        ({"Attempt": 2, "RejCode": "554"}, "bounce", "failure"),
        ({"Latency": 7}, "deliver", "unknown"),
        ({"Act": "Bnc", "MsgSize": 1}, "bounce", "failure"),
        ({"Act": "Rty", "MsgSize": 1}, "defer", "failure"),
        ({"Act": "new", "MsgSize": 1}, "other", "unknown"),
        ({"Act": "Ign", "IP": "192.0.2.1"}, "other", "failure"),
        ({"Act": "new", "IP": "192.0.2.1"}, "receive", "unknown"),
        ({"RejType": "Virus Signature Detection", "Virus": "x", "IP": "192.0.2.1"}, "reject", "failure"),
        ({"Action": "none", "Definition": "d"}, "verdict", "success"),
        ({"Logtype": "email_ttp_url", "reason": "clean"}, "click", "unknown"),
        ({"mimecastEventId": "mail_jrnl"}, "journal", "success"),
    ],
)
def test_what_becomes_of_it(fields: dict[str, Any], event: str, outcome: str) -> None:
    common = {"acc": "C1", "aCode": "a", "datetime": "2024-01-01T00:00:00+0000"}
    (row,) = rows_of([json.dumps(common | fields)])
    check(row, {"event": event, "outcome": outcome, "tenant_id": "C1", "queue_id": "a"})


def test_both_spellings_in_one_file() -> None:
    pipe = (SAMPLES / "mimecast_siem.log").read_text(encoding="utf-8").splitlines()[0]
    as_json = (SAMPLES / "mimecast_siem.jsonl").read_text(encoding="utf-8").splitlines()[0]
    for variant in ("pipe", "json"):
        rows = rows_of([pipe, as_json, "", pipe, "<14>May 13 09:15:41 collector mimecast: " + pipe], variant)
        assert [row["event"] for row in rows] == ["receive", "receive", None, "receive", "receive"]
        assert rows[4]["queue_id"] == rows[0]["queue_id"]


def test_sniff() -> None:
    v1, v2 = (
        (SAMPLES / name).read_text(encoding="utf-8").splitlines()[0]
        for name in ("mimecast_siem.jsonl", "mimecast_siem_v2.jsonl")
    )
    for record in (json.loads(v1), json.loads(v2)):
        for document in ([record], {"type": "MTA", "data": [record]}, {"value": [record], "isCaughtUp": True}):
            for indent in (None, 1):
                match = sniff(head_of(json.dumps(document, indent=indent).encode(), "x"))
                assert match is not None
                assert (match.framing, match.variant) == ("json", "json")
        match = sniff(head_of((json.dumps(record) + "\n").encode(), "x"))
        assert match is not None
        assert (match.framing, match.variant) == ("lines", "json")
    pipe = (SAMPLES / "mimecast_siem.log").read_bytes()
    assert sniff(head_of(pipe[100:], "x")) is not None
    for name in ("mimecast_siem.jsonl", "mimecast_siem_v2.jsonl"):
        match = sniff(head_of((SAMPLES / name).read_bytes()[100:], "x"))
        assert match is not None
        assert match.framing == "lines"
    for text in ("", "{}", "a,b\n1,2\n", "datetime=2024-01-01T00:00:00+0000\n", '{"acc":"x","datetime":"y"}'):
        assert sniff(head_of(text.encode(), "x")) is None


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name[-40:])
def test_no_other_format_is_taken(path: Path) -> None:
    choice = registry.choose(head_of(path.read_bytes(), path.name))
    assert isinstance(choice, str) or choice.name != FORMAT.name


def test_damaged_records_give_one_row_each() -> None:
    rng = random.Random(5)
    pipes = (SAMPLES / "mimecast_siem.log").read_text(encoding="utf-8").splitlines()[:17]
    objects = [
        line
        for name in ("mimecast_siem.jsonl", "mimecast_siem_v2.jsonl")
        for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()
    ]
    for lines, variant in ((pipes, "pipe"), (objects, "json")):
        damaged = ["", "\x00", "[]", "{}", "datetime=", "datetime=|acc=|aCode=", "|" * 5000, '{"acc":' + "[" * 9999]
        damaged += [lines[0].replace("bounce", "\x1f\x00é" + "x" * 100_000)]
        for line in lines:
            other = rng.choice(lines)
            cuts = range(rng.randrange(17), len(line), max(9, len(line) // 12))
            damaged += [part for cut in cuts for part in (line[:cut], line[cut:], line[:cut] + other[cut:])]
            damaged += [line + other, line[: len(line) // 2] + "\x00\x1f" + line[len(line) // 2 :]]
        rows = rows_of(damaged, variant)
        reasons = {row["reason"] for row in rows if row["disposition"] == QUARANTINED}
        assert reasons <= {UNREAD, "time not readable", "type of the record cannot be told"}


@pytest.mark.parametrize("name", ["mimecast_siem.log", "mimecast_siem.jsonl", "mimecast_siem_v2.jsonl"])
def test_blocks(name: str) -> None:
    lines = records((SAMPLES / name).read_text(encoding="utf-8").splitlines()).collect()
    variant = "pipe" if name.endswith(".log") else "json"
    whole = parse(lines.lazy(), Context("e", variant=variant)).collect()
    ctx = Context("e", variant=variant)
    halves = [parse(part.lazy(), ctx).collect() for part in (lines[:7], lines[7:8], lines[8:])]
    assert pl.concat(halves).equals(whole)


WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="|\\=\x1f"), max_size=20)
LOCAL = st.text(string.ascii_letters + string.digits + "._+-", min_size=1, max_size=12)


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "ts": st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
                "offset": st.sampled_from([0, 60, -330]),
                "code": LOCAL,
                "subject": WORDS,
                "bar": st.sampled_from(["", "|", "|Act=Rej", "\\|Act=Rej\\", "\\"]),
                "sender": st.just("") | LOCAL.map(lambda x: x + "@s.example"),
                "rcpt": LOCAL.map(lambda x: x + "@t.example"),
                "ip": st.ip_addresses().map(str),
                "delivered": st.booleans(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(events: list[dict[str, Any]]) -> None:
    texts: dict[str, list[str]] = {"pipe": [], "old": [], "new": []}
    for event in events:
        for name, text in render(event).items():
            texts[name].append(text)
    for name, lines in texts.items():
        for event, row in zip(events, rows_of(lines, "pipe" if name == "pipe" else "json"), strict=True):
            subject = (event["subject"] + event["bar"]).strip()
            expected = {
                "ts": event["ts"].replace(microsecond=0, tzinfo=UTC),
                "tenant_id": "C1",
                "queue_id": event["code"] if event["code"].lower() not in ("none", "null") else None,
                "subject": subject if subject not in ("", "null", "None", "none", "NONE") else None,
                "mail_from": event["sender"],
                "rcpt": event["rcpt"],
                "dst_ip_raw": event["ip"],
                "src_ip_raw": None,
                "event": "deliver" if event["delivered"] else "bounce",
                "outcome": "success" if event["delivered"] else "failure",
            }
            check(row, expected)


def render(event: dict[str, Any]) -> dict[str, str]:
    moment = event["ts"].replace(microsecond=0)
    minutes = event["offset"]
    local = (moment + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S")
    sign = "-" if minutes < 0 else "+"
    stamp = f"{local}{sign}{abs(minutes) // 60:02}{abs(minutes) % 60:02}"
    subject, sender = event["subject"] + event["bar"], event["sender"] or "<>"
    old = {"datetime": stamp, "aCode": event["code"], "acc": "C1", "Delivered": event["delivered"], "IP": event["ip"]}
    old |= {
        "RejCode": None if event["delivered"] else "550",
        "Subject": subject,
        "Sender": sender,
        "Rcpt": event["rcpt"],
    }
    new = {"accountId": "C1", "aggregateId": event["code"], "processingId": "p", "destinationIp": event["ip"]}
    new |= {"timestamp": int(moment.replace(tzinfo=UTC).timestamp() * 1000), "type": "delivery", "subject": subject}
    new |= {"delivered": str(event["delivered"]).lower(), "rejectionCode": old["RejCode"]}
    new |= {"senderEnvelope": event["sender"], "recipients": event["rcpt"]}
    values = old | {"Subject": f"\\{subject}\\", "Delivered": new["delivered"], "RejCode": old["RejCode"] or ""}
    return {"pipe": "|".join(f"{k}={v}" for k, v in values.items()), "old": json.dumps(old), "new": json.dumps(new)}


def test_columns_are_those_of_the_contract() -> None:
    known = {column.name for column in contract("mail_events").columns}
    assert FORMAT.tables == ("mail_events",)
    assert set(sample("mimecast_siem.log")[0]) - known == {"disposition", "source_id", "reason"}


@pytest.mark.skipif(not REAL, reason="real samples are not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_samples(path: Path) -> None:
    data = path.read_bytes()
    choice = registry.choose(head_of(data, path.name))
    assert not isinstance(choice, str)
    assert choice.name == FORMAT.name
    rows = rows_of(data.decode().splitlines(), choice.match.variant)
    assert {row["disposition"] for row in rows} == {"mail_events"}
    if choice.match.variant == "pipe":
        check(rows[0], {"src_ip_raw": "123.123.123.123", "ts": datetime(2021, 5, 26, 15, 47, 41, tzinfo=UTC)})
        return
    events = [row["event"] for row in rows]
    assert {name: events.count(name) for name in set(events)} == {
        "verdict": 3, "deliver": 1, "journal": 5, "hold": 1, "queue": 1, "reject": 1, "receive": 1,
    }  # fmt: skip
    check(rows[1], {"dst_ip_raw": "81.2.69.144", "src_ip_raw": None, "size_bytes": 4031, "delay_s": 10362.852})
