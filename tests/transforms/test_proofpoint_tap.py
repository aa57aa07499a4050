"""Proofpoint TAP: which messages and clicks were stopped and why, in JSON and in syslog lines."""

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
from transforms.formats.proofpoint_tap import FORMAT, parse, sniff
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
OTHERS = [p for folder in (SAMPLES, SHARED) for p in sorted(folder.rglob("*")) if p.is_file() and p.stem != FORMAT.name]
PLACES = {"record_no", "byte_offset", "byte_length", "disposition"}
SEVERAL = "answer with several events in one record"


def records(texts: list[str]) -> pl.LazyFrame:
    rows = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def rows_of(texts: list[str], variant: str = "jsonl") -> list[dict[str, Any]]:
    rows = parse(records(texts), Context("e" * 64, variant=variant)).collect().sort("record_no")
    assert rows["record_no"].to_list() == list(range(len(texts)))
    assert set(rows["disposition"]) <= {"mail_events", IGNORED, QUARANTINED}
    aside = rows.filter(pl.col("disposition") != "mail_events")
    assert aside["reason"].null_count() == 0
    assert aside["source"].null_count() == aside.height
    events = rows.filter(pl.col("disposition") == "mail_events")
    required = events.select("source", "ts", "ts_raw", "ts_basis", "event", "outcome")
    assert required.null_count().sum_horizontal().sum() == 0
    return rows.to_dicts()


def lines(name: str = "proofpoint_tap.jsonl") -> list[str]:
    return (SAMPLES / name).read_text(encoding="utf-8").splitlines()


def brief(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [
        (row["op_raw"], row["event"], row["outcome"]) if row["event"] else (row["disposition"], row["reason"])
        for row in rows
    ]


def filled(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None and name not in PLACES}


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def test_json_sample() -> None:
    rows = rows_of(lines())
    assert brief(rows) == [
        ("messagesDelivered", "verdict", "success"),
        ("messagesBlocked", "verdict", "failure"),
        ("clicksPermitted", "click", "success"),
        ("clicksBlocked", "click", "failure"),
        ("message", "verdict", "unknown"),
        ("messagesBlocked", "verdict", "failure"),
        ("click", "click", "unknown"),
        (IGNORED, "answer without events"),
        (QUARANTINED, SEVERAL),
        (QUARANTINED, "time not readable"),
        (QUARANTINED, "neither the time of a message nor of a click"),
        (QUARANTINED, "not a TAP event"),
    ]
    assert filled(rows[0]) == {
        "source": "proofpoint_tap",
        "source_id": "message|5a6b0000-0000-4000-8000-000000000001",
        "ts": datetime(2024, 3, 15, 15, 0, 20, tzinfo=UTC),
        "ts_raw": "2024-03-15T15:00:20.000Z",
        "ts_basis": "offset",
        "tenant_id": "tenant_a_hosted",
        "tenant_domain": "tenant-a.example",
        "event": "verdict",
        "op_raw": "messagesDelivered",
        "outcome": "success",
        "queue_id": "4A2AAAAA000001",
        "internal_id": "guid-1",
        "message_id": "<t1@sender.example>",
        "direction": "inbound",
        "src_ip_raw": "198.51.100.31",
        "mail_from": "bounce@sender.example",
        "header_from": "Ann <ann@sender.example>",
        "rcpt": "bob@tenant-a.example",
        "recipients": ["bob@tenant-a.example", "eve@tenant-a.example"],
        "n_rcpt": 2,
        "subject": "Autumn fair | programme",
        "status_text": "threats=phish url https://phish.example/view/1 active, malware attachment a1b2c3d4 cleared; "
        "phishScore=12; spamScore=0; malwareScore=100; impostorScore=0",
        "size_bytes": 68402,
    }
    assert filled(rows[2]) == {
        "source": "proofpoint_tap",
        "source_id": "click|5a6b0000-0000-4000-8000-000000000003",
        "ts": datetime(2024, 3, 15, 16, tzinfo=UTC),
        "ts_raw": "2024-03-15T16:00:00.000Z",
        "ts_basis": "offset",
        "tenant_domain": "tenant-a.example",
        "event": "click",
        "op_raw": "clicksPermitted",
        "outcome": "success",
        "internal_id": "guid-1",
        "message_id": "<t1@sender.example>",
        "direction": "unknown",
        "src_ip_raw": "203.0.113.41",
        "mail_from": "f00d@sender.example",
        "rcpt": "bob@tenant-a.example",
        "n_rcpt": 1,
        "status_text": "classification=phish; threatStatus=active; url=https://phish.example/view/1; "
        "userAgent=Mozilla/5.0 (X11; Linux x86_64); senderIP=198.51.100.31; threatID=aaaa",
    }
    assert "url=https://user:***@phish.example/2" in rows[3]["status_text"]
    # The message was not at hand any more: nothing is known of its sender.
    check(rows[4], {"mail_from": None, "size_bytes": None, "message_id": None, "rcpt": "0123abcd@tenant-a.example"})
    outward = {"direction": "outbound", "tenant_domain": None, "status_text": "threats=malware attachment a1b2c3d4"}
    check(rows[5], outward | {"size_bytes": 4096, "rcpt": "carol@other.example"})


def test_syslog_sample() -> None:
    rows = rows_of(lines("proofpoint_tap.log"), "syslog")
    assert brief(rows) == [
        ("messagesBlocked", "verdict", "failure"),
        ("clicksPermitted", "click", "success"),
        ("messagesDelivered", "verdict", "success"),
        (QUARANTINED, "not a TAP event"),
        (IGNORED, "blank line"),
        (QUARANTINED, "not a TAP event"),
    ]
    expected = {
        "ts": datetime(2024, 6, 24, 21, 18, 38, tzinfo=UTC),
        "tenant_id": "tenant_a_hosted",
        "queue_id": "r2AAAAAA000001",
        "internal_id": "00000000-0000-4000-8000-0000000000b1",
        "message_id": "<20240624210000.00001.mail@sender.example>",
        "direction": "inbound",
        "src_ip_raw": "192.0.2.255",
        "mail_from": "0123abcd@sender.example",
        "header_from": '"A. B" <ab@sender.example>',
        "recipients": ["bob@tenant-a.example", "eve@tenant-a.example"],
        # A parameter inside of a value is part of the value.
        "subject": 'A "safe" invoice sender="x@y.example" [draft] C:\\',
        "status_text": "threats=MALWARE ATTACHMENT 11aa22bb active; quarantineFolder=Attachment Defense; "
        "quarantineRule=module.sandbox.threat; phishScore=46; spamScore=4",
    }
    check(rows[0], expected)
    check(rows[1], {"src_ip_raw": "203.0.113.44", "rcpt": "bob@tenant-a.example", "event": "click"})
    # Without its own time the line's counts.
    check(rows[2], {"ts": datetime(2024, 6, 24, 21, 0, 10, tzinfo=UTC), "mail_from": "", "status_text": None})


def test_arrays_of_an_answer_tell_what_was_blocked() -> None:
    click, message = json.loads(lines()[6]), json.loads(lines()[4])
    texts = ['"clicksPermitted":', json.dumps(click), '"clicksBlocked" : [', json.dumps(click)]
    texts += [
        '"messagesDelivered":[',
        json.dumps(message),
        json.dumps(message),
        '"messagesBlocked":',
        json.dumps(message),
    ]
    told = [
        (IGNORED, "key of an array"),
        ("clicksPermitted", "click", "success"),
        (IGNORED, "key of an array"),
        ("clicksBlocked", "click", "failure"),
        (IGNORED, "key of an array"),
        ("messagesDelivered", "verdict", "success"),
        ("messagesDelivered", "verdict", "success"),
        (IGNORED, "key of an array"),
        ("messagesBlocked", "verdict", "failure"),
    ]
    assert brief(rows_of(texts, "answer")) == told
    frame = records(texts).collect()
    for cut in range(len(texts) + 1):
        ctx = Context("e", variant="answer")
        parts = [parse(part.lazy(), ctx).collect() for part in (frame[:cut], frame[cut:])]
        assert brief(pl.concat(parts, how="diagonal_relaxed").to_dicts()) == told


def test_sniff() -> None:
    event = json.loads(lines()[0])
    for document in ([event], {"value": [event]}):
        for indent in (None, 1):
            match = sniff(head_of(json.dumps(document, indent=indent).encode(), "x"))
            assert match is not None
            assert (match.framing, match.variant) == ("json", "json")
    match = sniff(
        head_of(json.dumps({"queryEndTime": "x", "clicksBlocked": [], "messagesBlocked": [event]}).encode(), "x")
    )
    assert match is not None
    assert (match.framing, match.variant) == ("json", "answer")
    for name, variant in (("proofpoint_tap.jsonl", "jsonl"), ("proofpoint_tap.log", "syslog")):
        data = "\n".join(lines(name)).encode()
        for head in (data, data[200:]):  # also cut at its beginning
            match = sniff(head_of(head, name))
            assert match is not None
            if head is data:
                assert (match.framing, match.variant) == ("lines", variant)
    for text in ("", "{}", '{"messageTime":"x","subject":"y"}', '{"threatURL":"x"}', "ProofpointTAP\n"):
        assert sniff(head_of(text.encode(), "x")) is None


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.name[-40:])
def test_no_other_format_is_taken(path: Path) -> None:
    choice = registry.choose(head_of(path.read_bytes()[:65536], path.name))
    assert isinstance(choice, str) or choice.name != FORMAT.name


@pytest.mark.parametrize(("name", "variant"), [("proofpoint_tap.jsonl", "jsonl"), ("proofpoint_tap.log", "syslog")])
def test_damaged_records_give_one_row_each(name: str, variant: str) -> None:
    rng = random.Random(9)
    whole = lines(name)
    damaged = ["", "\x00", "[]", "{}", '{"threatsInfoMap":7,"messageTime":{}}', '{"recipient":' + "[" * 9999]
    damaged += ['{"clickTime":"2024-01-01","threatsInfoMap":[1,"x"],"recipient":{"a":1}}', '"clicksBlocked"', "]" * 99]
    for line in whole:
        other = rng.choice(whole)
        cuts = range(rng.randrange(30), len(line), max(30, len(line) // 8))
        damaged += [part for cut in cuts for part in (line[:cut], line[cut:], line[:cut] + other[cut:])]
        damaged += [line + other, line.replace("=", "=\x00", 1), line.replace("sender", "é\x01" + "x" * 20_000)]
    reasons = {row["reason"] for row in rows_of(damaged, variant) if row["disposition"] == QUARANTINED}
    undated = "neither the time of a message nor of a click"
    assert reasons <= {"not a TAP event", "time not readable", undated, SEVERAL}


def test_blocks() -> None:
    frame = records(lines()).collect()
    whole = parse(frame.lazy(), Context("e", variant="jsonl")).collect()
    ctx = Context("e", variant="jsonl")
    parts = [parse(part.lazy(), ctx).collect() for part in (frame[:3], frame[3:7], frame[7:])]
    assert pl.concat(parts).equals(whole)


LOCAL = st.text(string.ascii_letters + string.digits + "._+-", min_size=1, max_size=12)
WORDS = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=20).map(lambda x: "w" + x.strip())


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "ts": st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
                "kind": st.sampled_from(["MSGDLV", "MSGBLK", "CLKPER", "CLKBLK"]),
                "rcpts": st.lists(LOCAL.map(lambda x: x + "@t.example"), min_size=1, max_size=3),
                "subject": WORDS,
                "quoted": st.sampled_from(["", '" sender="x@y.example', "\\", "]", ' GUID="']),
                "ip": st.ip_addresses().map(str),
                "threat": LOCAL.map("https://{}.example".format),
            }
        ),
        min_size=1,
        max_size=4,
    )
)
def test_round_trip(events: list[dict[str, Any]]) -> None:
    for variant in ("jsonl", "syslog"):
        for event, row in zip(events, rows_of([render(e, variant) for e in events], variant), strict=True):
            click = event["kind"].startswith("CLK")
            expected = {
                "ts": event["ts"].replace(tzinfo=UTC),
                "event": "click" if click else "verdict",
                "outcome": "success" if event["kind"] in ("MSGDLV", "CLKPER") else "failure",
                "rcpt": event["rcpts"][0],
                "recipients": event["rcpts"] if len(event["rcpts"]) > 1 else None,
                "subject": (event["subject"] + event["quoted"]).strip(),
                "src_ip_raw": event["ip"],
                "mail_from": "s@s.example",
                "internal_id": "g",
            }
            check(row, expected)
            assert click or row["status_text"] == f"threats=phish url {event['threat']}"


def render(event: dict[str, Any], variant: str) -> str:
    click = event["kind"].startswith("CLK")
    fields: dict[str, Any] = {"sender": "s@s.example", "GUID": "g", "subject": event["subject"] + event["quoted"]}
    fields["clickTime" if click else "messageTime"] = event["ts"].strftime("%Y-%m-%dT%H:%M:%S.%f") + "Z"
    fields["clickIP" if click else "senderIP"] = event["ip"]
    threats = [{"classification": "phish", "threatType": "url", "threat": event["threat"]}]
    if variant == "jsonl":
        return json.dumps(fields | {"type": event["kind"], "recipient": event["rcpts"], "threatsInfoMap": threats})
    fields |= {"recipient": ", ".join(event["rcpts"]), "threatsInfoMap": json.dumps(threats)}
    escape = str.maketrans({"\\": "\\\\", '"': '\\"', "]": "\\]"})
    told = " ".join(f'{name}="{value.translate(escape)}"' for name, value in fields.items())
    return f"<38>1 2024-06-24T21:00:08Z - ProofpointTAP - {event['kind']} [tap{event['kind'].lower()[:3]}@21139 {told}]"


def test_columns_are_those_of_the_contract() -> None:
    known = {column.name for column in contract("mail_events").columns}
    assert FORMAT.tables == ("mail_events",)
    assert set(rows_of(lines())[0]) - known == {"disposition", "source_id", "reason", "tenant_domain"}
