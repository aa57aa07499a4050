"""Proofpoint on Demand: what the filter decided and what sendmail wrote, plain and as Log Analytics rows."""

import json
import random
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry
from transforms.formats.proofpoint_pod import FORMAT, parse, sniff
from transforms.framing import head_of
from transforms.framing_json import split_json
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = SAMPLES / "proofpoint_pod.jsonl"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
REAL = sorted(SHARED.glob("proofpoint/*POD*"))
OTHERS = [p for folder in (SAMPLES, SHARED) for p in sorted(folder.rglob("*")) if p.is_file() and "POD" not in p.name]
OTHERS = [p for p in OTHERS if p.stem != FORMAT.name]
NEITHER = "record is neither of the filter nor of the mail log"
PLACES = {"record_no", "byte_offset", "byte_length", "disposition"}


def records(texts: list[str]) -> pl.LazyFrame:
    rows = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    rows = parse(records(texts), Context("e" * 64)).collect().sort("record_no")
    assert rows["record_no"].to_list() == list(range(len(texts)))
    assert set(rows["disposition"]) <= {"mail_events", IGNORED, QUARANTINED}
    aside = rows.filter(pl.col("disposition") != "mail_events")
    assert aside["reason"].null_count() == 0
    assert aside["source"].null_count() == aside.height
    events = rows.filter(pl.col("disposition") == "mail_events")
    required = events.select("source", "ts", "ts_raw", "ts_basis", "event", "outcome")
    assert required.null_count().sum_horizontal().sum() == 0
    return rows.to_dicts()


def lines() -> list[str]:
    return SAMPLE.read_text(encoding="utf-8").splitlines()


def filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name not in PLACES}


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def test_sample() -> None:
    rows = rows_of(lines())
    brief = [
        (row["op_raw"], row["event"], row["outcome"]) if row["event"] else (row["disposition"], row["reason"])
        for row in rows
    ]
    assert brief == [
        ("message continue", "receive", "success"),
        ("message discard", "quarantine", "unknown"),
        ("message reject", "reject", "failure"),
        ("message discard", "other", "failure"),
        ("maillog ESMTP", "queue", "success"),
        ("maillog esmtp", "send", "success"),
        ("maillog esmtp", "defer", "failure"),
        ("maillog esmtp", "bounce", "failure"),
        ("maillog *file*", "deliver", "success"),
        ("maillog ESMTP", "queue", "success"),
        ("message continue", "receive", "success"),
        ("message retry", "defer", "failure"),
        ("maillog", "reject", "failure"),
        (IGNORED, NEITHER),
        (QUARANTINED, NEITHER),
        (QUARANTINED, "time not readable"),
        (QUARANTINED, "not a JSON object"),
    ]
    assert {row["tenant_id"] for row in rows[:13]} == {"tenant_a_hosted"}
    assert len({row["source_id"] for row in rows[:13]}) == 13


def test_message() -> None:
    rows = rows_of(lines())
    assert filled(rows[0]) == {
        "source": "proofpoint_pod",
        "source_id": "message|pGuid0001|2024-11-05T12:59:24.900001+0100",
        "ts": datetime(2024, 11, 5, 11, 59, 24, 900001, UTC),
        "ts_raw": "2024-11-05T12:59:24.900001+0100",
        "ts_basis": "offset",
        "host": "m0000001.ppops.example",
        "tenant_id": "tenant_a_hosted",
        "event": "receive",
        "op_raw": "message continue",
        "outcome": "success",
        "queue_id": "4A1FFFFF000198",
        "internal_id": "pGuid0001",
        "message_id": "<p1@sender.example>",
        "direction": "inbound",
        "session_id": "sess00000t",
        "src_ip_raw": "198.51.100.51",
        "src_host": "out1.sender.example",
        "helo": "mail.sender.example",
        "tls_version": "TLSv1.2",
        "tls_cipher": "ECDHE-RSA-AES256-GCM-SHA384",
        "mail_from": "bounce@sender.example",
        "header_from": '"Ann" <ann@sender.example>',
        "rcpt": "Bob@tenant-a.example",
        "recipients": ["Bob@tenant-a.example", "eve@tenant-a.example"],
        "n_rcpt": 2,
        "subject": 'Hi, "Bob"',
        "status_text": "disposition=continue; final_action=continue; final_module=pdr; final_rule=pass",
        "size_bytes": 75002,
    }
    said = "disposition=discard; folder=Phish; rule=phish; final_action=quarantine; final_module=spam; final_rule=phish"
    check(rows[1], {"status_text": said, "size_bytes": 900, "host": "m0000001.ppops.example"})
    check(rows[2], {"mail_from": "", "direction": "inbound"})


def test_maillog() -> None:
    rows = rows_of(lines())
    # The address is cut at its equals sign in `sm`, and whole in the line.
    sender = "bounce+77aa01.bb02-bob=tenant-a.example@sender.example"
    check(
        rows[4], {"mail_from": sender, "n_rcpt": 2, "size_bytes": 8300, "src_ip_raw": "127.0.0.1", "dst_ip_raw": None}
    )
    assert filled(rows[5]) == {
        "source": "proofpoint_pod",
        "source_id": "maillog|mailLogId0002",
        "ts": datetime(2024, 11, 5, 11, 59, 46, 430, UTC),
        "ts_raw": "2024-11-05T12:59:46.000430+0100",
        "ts_basis": "offset",
        "host": "m0000002.ppops.example",
        "tenant_id": "tenant_a_hosted",
        "event": "send",
        "op_raw": "maillog esmtp",
        "outcome": "success",
        "queue_id": "4A1AAAAA000102",
        "direction": "unknown",
        "dst_ip_raw": "203.0.113.51",
        "relay_host": "tenant-a.mail.example",
        "tls_version": "TLSv1.2",
        "tls_cipher": "ECDHE-RSA-AES256-GCM",
        "rcpt": "bob@tenant-a.example",
        "recipients": ["bob@tenant-a.example", "eve@tenant-a.example"],
        "n_rcpt": 2,
        "dsn": "2.0.0",
        "status_text": "Sent (<p1@sender.example> [InternalId=1000000000017, Hostname=mbx.example] 40000 bytes in 0.080, "
        "488.281 KB/sec Queued mail for delivery)",
        "delay_s": 1.0,
    }
    check(rows[6], {"dst_ip_raw": "2001:db8::52", "delay_s": 93784.0, "dsn": "4.4.1"})
    check(rows[12], {"src_ip_raw": "198.51.100.56", "status_text": "reject=550 5.7.1 <a@b.example>... Relaying denied"})


def test_log_analytics_rows_and_json_in_text() -> None:
    rows = rows_of(lines())
    check(rows[9], {"queue_id": "0A5Q4", "mail_from": "ann@tenant-a.example", "size_bytes": 1557, "n_rcpt": 1})
    check(rows[9], {"ts": datetime(2024, 11, 5, 12, 13, tzinfo=UTC), "src_ip_raw": "203.0.113.54"})
    check(rows[10], {"rcpt": "carol@other.example", "subject": "plan", "size_bytes": 1557, "tls_version": "TLSv1.3"})
    check(
        rows[10],
        {"message_id": "<p4@tenant-a.example>", "status_text": "disposition=continue; folder=Audit; rule=audit"},
    )
    check(rows[11], {"src_ip_raw": "198.51.100.55", "rcpt": "bob@tenant-a.example", "queue_id": "0A5Q6"})
    check(rows[11], {"ts": datetime(2024, 11, 5, 12, 14, tzinfo=UTC), "ts_basis": "utc"})


def test_a_quote_in_a_value_is_no_name() -> None:
    record = json.loads(lines()[0])
    record["msg"]["normalizedHeader"]["subject"] = ['"guid_s": "other", "filter_qid_s":"x"']
    (row,) = rows_of([json.dumps(record)])
    check(row, {"internal_id": "pGuid0001", "queue_id": "4A1FFFFF000198"})


def test_sniff() -> None:
    for at in (0, 4, 9, 10):
        record = json.loads(lines()[at])
        for indent in (None, 1):
            match = sniff(head_of(json.dumps([record, record], indent=indent).encode(), "x"))
            assert match is not None
            assert match.framing == "json"
        match = sniff(head_of((json.dumps(record) + "\n").encode(), "x"))
        assert match is not None
        assert match.framing == "lines"
        # Cut in the middle of its first record.
        assert sniff(head_of(lines()[at].encode()[:-40], "x")) is not None
    match = sniff(head_of(SAMPLE.read_bytes()[300:], "x"))
    assert match is not None
    assert match.framing == "lines"
    for text in ("", "{}", '{"filter":1,"connection":2}', '{"sm":1}', '{"envelope":{},"metadata":{}}'):
        assert sniff(head_of(text.encode(), "x")) is None


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name[-40:])
def test_no_other_format_is_taken(path: Path) -> None:
    choice = registry.choose(head_of(path.read_bytes()[:65536], path.name))
    assert isinstance(choice, str) or choice.name != FORMAT.name


def test_damaged_records_give_one_row_each() -> None:
    rng = random.Random(7)
    damaged = [
        "",
        "\x00",
        "[]",
        "{}",
        '{"sm":[1],"filter":7,"ts":{}}',
        '{"sm":' + "[" * 9999,
        '{"envelope":{"rcpts":"["}}',
    ]
    for line in lines()[:13]:
        other = rng.choice(lines())
        cuts = range(rng.randrange(40), len(line), max(40, len(line) // 8))
        damaged += [part for cut in cuts for part in (line[:cut], line[:cut] + other[cut:])]
        damaged += [line + other, line.replace(":", ":\x00", 1), line.replace("sender", "é\x01" + "x" * 20_000)]
    rows = rows_of(damaged)
    reasons = {row["reason"] for row in rows if row["disposition"] == QUARANTINED}
    assert reasons <= {"not a JSON object", "time not readable", NEITHER}


def test_blocks() -> None:
    frame = records(lines()).collect()
    whole = parse(frame.lazy(), Context("e")).collect()
    ctx = Context("e")
    parts = [parse(part.lazy(), ctx).collect() for part in (frame[:6], frame[6:13], frame[13:])]
    assert pl.concat(parts, how="diagonal_relaxed").select(whole.columns).equals(whole)


ADDRESS = st.text(string.ascii_letters + string.digits + "=._+-", min_size=1, max_size=12).map(
    lambda x: x + "@t.example"
)
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=20).map(lambda x: "w" + x.strip())


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "ts": st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
                "sender": st.just("") | ADDRESS,
                "rcpts": st.lists(ADDRESS, min_size=1, max_size=3),
                "subject": WORDS,
                "ip": st.ip_addresses().map(str),
                "disposition": st.sampled_from(["continue", "reject", "retry"]),
                "flat": st.booleans(),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(events: list[dict[str, Any]]) -> None:
    outcomes = {"continue": ("receive", "success"), "reject": ("reject", "failure"), "retry": ("defer", "failure")}
    for event, row in zip(events, rows_of([render(event) for event in events]), strict=True):
        expected = {
            "ts": event["ts"].replace(tzinfo=UTC),
            "mail_from": event["sender"],
            "rcpt": event["rcpts"][0],
            "recipients": event["rcpts"] if len(event["rcpts"]) > 1 else None,
            "n_rcpt": len(event["rcpts"]),
            "subject": event["subject"],
            "src_ip_raw": event["ip"],
            "event": outcomes[event["disposition"]][0],
            "outcome": outcomes[event["disposition"]][1],
        }
        check(row, expected)


def render(event: dict[str, Any]) -> str:
    stamp = event["ts"].strftime("%Y-%m-%dT%H:%M:%S.") + f"{event['ts'].microsecond:06d}"
    rcpts, subject = event["rcpts"], [event["subject"]]
    if event["flat"]:
        flat = {
            "ts_t": stamp + "Z",
            "envelope_from_s": event["sender"],
            "envelope_rcpts_s": json.dumps(rcpts, indent=2),
        }
        flat |= {"connection_ip_s": event["ip"], "filter_disposition_s": event["disposition"]}
        return json.dumps(flat | {"msg_normalizedHeader_subject_s": json.dumps(subject)})
    plain = {"ts": stamp + "+0000", "envelope": {"from": event["sender"], "rcpts": rcpts}}
    plain |= {"connection": {"ip": event["ip"]}, "filter": {"disposition": event["disposition"]}}
    return json.dumps(plain | {"msg": {"normalizedHeader": {"subject": subject}}})


def test_columns_are_those_of_the_contract() -> None:
    known = {column.name for column in contract("mail_events").columns}
    assert FORMAT.tables == ("mail_events",)
    assert set(rows_of(lines())[0]) - known == {"disposition", "source_id", "reason"}


@pytest.mark.skipif(not REAL, reason="real samples are not here")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_samples(path: Path) -> None:
    data = path.read_bytes()
    choice = registry.choose(head_of(data, path.name))
    assert not isinstance(choice, str)
    assert (choice.name, choice.framing) == (FORMAT.name, "json")
    starts, ends, damage, _ = split_json(data, {}, 8 << 20, last=True)
    assert not damage
    rows = rows_of([data[start:end].decode() for start, end in zip(starts, ends, strict=True)])
    assert {row["disposition"] for row in rows} == {"mail_events"}
    events = [row["event"] for row in rows]
    if "maillog" in path.name:
        assert (events.count("send"), events.count("queue"), len(rows)) == (9, 11, 20)
        check(rows[7], {"rcpt": "sanitized@sanitized.com", "delay_s": 2.0, "dst_ip_raw": "10.10.10.10"})
        assert rows[7]["status_text"].endswith("Queued mail for delivery)")
    else:
        assert (events.count("receive"), len(rows)) == (10, 10)
        check(rows[0], {"src_ip_raw": "40.107.237.57", "size_bytes": 74346, "direction": "inbound"})
