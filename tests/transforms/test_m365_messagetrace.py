"""Exchange Online message trace: JSON, summary and detail CSV, times, damage, real samples."""

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.m365_messagetrace import DETAIL, FORMAT, SUMMARY, sniff
from transforms.framing import Framer, head_of
from transforms.model import RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"
MINE = ("m365_messagetrace.json", "m365_messagetrace.csv")
TRACE = {
    "Organization": "Fabrikam.example", "MessageId": "<1@a.example>", "Received": "2026-03-02T08:00:01.1000000Z",
    "SenderAddress": "a@northwind.example", "RecipientAddress": "kim@fabrikam.example", "Subject": "Hello",
    "Status": "Delivered", "ToIP": None, "FromIP": "203.0.113.25", "Size": 18230, "Index": 0,
    "MessageTraceId": "7F3A1C52-0000-4000-8000-000000000001",
}  # fmt: skip


def _records(texts: list[str], first: int = 0) -> pl.LazyFrame:
    sizes = [len(text.encode()) for text in texts]
    rows = [(first + i, sum(sizes[:i]) + i, sizes[i], text) for i, text in enumerate(texts)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def _parse(texts: list[str], variant: str = "json", ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = FORMAT.parse(_records(texts), ctx or Context("e", variant=variant)).collect().sort("record_no")
    assert frame["record_no"].to_list() == list(range(len(texts)))
    assert frame["byte_length"].to_list() == [len(text.encode()) for text in texts]
    assert frame["disposition"].null_count() == 0
    return [{k: v for k, v in row.items() if v is not None} for row in frame.iter_rows(named=True)]


def _read(data: bytes) -> list[dict[str, Any]]:
    """Rows of a whole file, as it is recognised and framed."""
    choice = registry.choose(head_of(data, "x"))
    assert not isinstance(choice, str)
    assert choice.name == "m365_messagetrace"
    blocks = list(Framer(io.BytesIO(data), choice.framing).blocks())
    records = pl.concat(blocks)
    rows = registry.parse(choice, records, Context("e", variant=choice.match.variant)).sort("record_no")
    assert rows["record_no"].to_list() == records["record_no"].to_list()
    return [{k: v for k, v in row.items() if v is not None} for row in rows.iter_rows(named=True)]


def _trace(**values: Any) -> dict[str, Any]:
    (row,) = _parse([json.dumps(TRACE | values)])
    return row


def _csv(header: tuple[str, ...], **values: str) -> str:
    text = io.StringIO()
    # With an end of the line that it knows, the writer quotes fields that hold one.
    csv.writer(text, lineterminator="\r\n").writerow([values.get(name, "") for name in header])
    return text.getvalue().removesuffix("\r\n")


def test_json_sample_row_by_row() -> None:
    rows = _read((SAMPLES / MINE[0]).read_bytes())
    assert [(r["disposition"], r.get("event", r.get("reason"))) for r in rows] == [
        ("mail_events", "deliver"),
        ("mail_events", "send"),
        ("mail_events", "verdict"),
        ("mail_events", "bounce"),
        ("mail_events", "verdict"),
        ("quarantined", "time is not readable"),
        ("quarantined", "neither recipient nor status: no record of a message trace"),
    ]
    row = rows[1]
    del row["byte_offset"], row["byte_length"]
    assert row == {
        "record_no": 1,
        "disposition": "mail_events",
        "source": "m365_messagetrace",
        "source_id": "7f3a1c52-0000-4000-8000-000000000003|pat@contoso.example|delivered|1772442000100000|",
        "ts": datetime(2026, 3, 2, 9, 0, 0, 100000, tzinfo=UTC),
        "ts_raw": "/Date(1772442000100)/",
        "ts_basis": "utc",
        "event": "send",
        "op_raw": "Delivered",
        "outcome": "success",
        "message_id": "<9@fabrikam.example>",
        "network_message_id": "7f3a1c52-0000-4000-8000-000000000003",
        "direction": "outbound",
        "dst_ip_raw": "198.51.100.25",
        "mail_from": "kim@fabrikam.example",
        "rcpt": "pat@contoso.example",
        "n_rcpt": 1,
        "subject": 'Re: "Order"',
        "size_bytes": 5120,
        "tenant_domain": "fabrikam.example",
    }
    assert rows[2] | {"mail_from": "", "message_id": "<x@northwind.example>", "direction": "inbound"} == rows[2]
    assert rows[3] | {"outcome": "failure", "direction": "unknown"} == rows[3]
    assert "size_bytes" not in rows[3]
    assert rows[4] | {"op_raw": "Spam", "status_text": "High confidence"} == rows[4]
    assert "rcpt" not in rows[4]


def test_csv_sample_row_by_row() -> None:
    rows = _read((SAMPLES / MINE[1]).read_bytes())
    assert [(r["disposition"], r.get("event", r.get("reason"))) for r in rows] == [
        ("ignored", "header"),
        ("mail_events", "deliver"),
        ("mail_events", "send"),
        ("ignored", "header"),
        ("mail_events", "other"),
        ("quarantined", "CSV record does not fit its header"),
    ]
    row = rows[1]
    del row["byte_offset"], row["byte_length"], row["source_id"]
    assert row == {
        "record_no": 1,
        "disposition": "mail_events",
        "source": "m365_messagetrace",
        "ts": datetime(2026, 3, 2, 8, 0, 1, 123456, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:01.1234567Z",
        "ts_basis": "offset",
        "event": "deliver",
        "op_raw": "summary",
        "outcome": "success",
        "message_id": "<order-1@northwind.example>",
        "network_message_id": "7f3a1c52-0000-4000-8000-000000000001",
        "direction": "inbound",
        "src_ip_raw": "203.0.113.25",
        "mail_from": "bounce@northwind.example",
        "rcpt": "kim@fabrikam.example",
        "recipients": ["kim@fabrikam.example", "jan@fabrikam.example"],
        "n_rcpt": 2,
        "subject": "Order 4711,\nsecond part",
        "status_text": "kim@fabrikam.example##Receive, Deliver;jan@fabrikam.example##Receive, Deliver",
        "size_bytes": 18230,
        "tenant_domain": "fabrikam.example",
    }
    assert rows[2] | {"outcome": "unknown", "direction": "outbound", "n_rcpt": 2} == rows[2]
    assert rows[4]["outcome"] == "unknown"
    assert not {"rcpt", "recipients", "n_rcpt", "direction"} & set(rows[4]) - {"direction"}


@pytest.mark.parametrize(
    ("status", "event", "outcome"),
    [
        ("Failed", "bounce", "failure"),
        ("Pending", "defer", "unknown"),
        ("Quarantined", "quarantine", "success"),
        ("Expanded", "expand", "success"),
        ("GettingStatus", "other", "unknown"),
        ("delivered", "deliver", "success"),
    ],
)
def test_status(status: str, event: str, outcome: str) -> None:
    row = _trace(Status=status)
    assert (row["event"], row["outcome"], row["op_raw"]) == (event, outcome, status)


@pytest.mark.parametrize(
    ("written", "expected", "basis"),
    [
        ("2022-07-25T12:26:13.24Z", datetime(2022, 7, 25, 12, 26, 13, 240000, UTC), "offset"),
        ("2022-07-25T12:26:13.2412345", datetime(2022, 7, 25, 12, 26, 13, 241234, UTC), "utc"),
        ("2022-07-25 12:26:13", datetime(2022, 7, 25, 12, 26, 13, 0, UTC), "utc"),
        ("2022-07-25T14:26:13+02:00", datetime(2022, 7, 25, 12, 26, 13, 0, UTC), "offset"),
        ("/Date(1658751973240)/", datetime(2022, 7, 25, 12, 26, 13, 240000, UTC), "utc"),
        ("\\/Date(1658751973240)\\/", datetime(2022, 7, 25, 12, 26, 13, 240000, UTC), "utc"),
        ("7/5/2022 1:26:13 PM", datetime(2022, 7, 5, 13, 26, 13, 0, UTC), "utc"),
        ("25.07.2022 13:26:13", None, None),
        ("/Date(999999999999999)/", None, None),
        ("", None, None),
    ],
)
def test_times(written: str, expected: datetime | None, basis: str | None) -> None:
    row = _trace(Received=written)
    assert (row.get("ts"), row.get("ts_basis")) == (expected, basis)
    assert row["disposition"] == ("mail_events" if expected else "quarantined")


def test_message_ids() -> None:
    for written in ("<1@a.example>", "1@a.example", "\\u003c1@a.example\\u003e", "\\\\u003C1@a.example\\\\u003E"):
        assert _trace(MessageId=written)["message_id"] == "<1@a.example>"
    assert "message_id" not in _trace(MessageId=None)


def test_one_record_in_several_exports_has_one_id() -> None:
    ids = {
        _trace(Received="2022-07-25T12:26:13.24Z", Index=1)["source_id"],
        _trace(Received="/Date(1658751973240)/", RecipientAddress="KIM@fabrikam.example")["source_id"],
    }
    assert len(ids) == 1
    assert _trace(Received="/Date(1658751973240)/", Status="Failed")["source_id"] not in ids
    assert "source_id" not in _trace(MessageTraceId=None)


def test_tenant() -> None:
    assert _trace()["tenant_domain"] == "fabrikam.example"
    assert _trace(Organization=None)["tenant_domain"] == "fabrikam.example"
    assert "tenant_domain" not in _trace(Organization=None, FromIP=None, ToIP="192.0.2.1")


def test_detail_report() -> None:
    base = {"date_time_utc": "2026-03-02T08:00:02.500Z", "source": "STOREDRIVER", "event_id": "DELIVER"}
    base |= {"recipient_address": "kim@fabrikam.example", "original_client_ip": "203.0.113.25",
             "server_hostname": "AM0PR01MB1.eurprd01.prod.outlook.com", "directionality": "Incoming",
             "message_info": "2026-03-02T08:00:01.000Z;x", "tenant_id": "5c1f3c0e-1f2a-4a6b-9c3d-0a1b2c3d4e5f"}  # fmt: skip
    lines = [_csv(DETAIL, **base), _csv(DETAIL, **base | {"event_id": "HARECEIVE"})]
    for header in ([], [",".join(DETAIL)], ["\ufeff" + ",".join(DETAIL)]):
        text = "\r\n".join([*header, *lines]) + "\r\n"
        rows = _read(text.encode())[len(header) :]
        expected = {"event": "deliver", "rcpt": "kim@fabrikam.example", "src_ip_raw": "203.0.113.25", "delay_s": 1.5}
        expected |= {"source": "m365_messagetrace", "tenant_id": base["tenant_id"], "ts_basis": "offset"}
        assert {name: rows[0].get(name) for name in expected} == expected
        assert rows[1]["reason"] == "shadow copy for redundancy: no mail"


def test_export_csv_of_the_cmdlet() -> None:
    names = ("PSComputerName", *TRACE)
    values = {k: str(v or "") for k, v in TRACE.items()} | {"Received": "3/2/2026 8:00:01 AM", "Subject": 'a, "b"'}
    text = "#TYPE X\r\n" + ",".join(f'"{n}"' for n in names) + "\r\n" + _csv(names, **values) + "\r\n"
    rows = _read(text.encode("utf-8-sig"))
    assert [r.get("reason") for r in rows] == ["header", "header", None]
    expected = {"subject": 'a, "b"', "rcpt": "kim@fabrikam.example", "event": "deliver", "size_bytes": 18230}
    assert {name: rows[2].get(name) for name in expected} == expected
    assert rows[2]["ts"] == datetime(2026, 3, 2, 8, 0, 1, tzinfo=UTC)


def test_headers_missing_and_changed() -> None:
    line = _csv(SUMMARY, origin_timestamp_utc="2026-03-02T08:00:00Z", recipient_status="a@b.example##Receive, Fail")
    assert _parse([line], "summary")[0]["event"] == "bounce"
    assert _parse([line], "cmdlet")[0]["reason"] == "CSV record without a header"
    other = tuple(reversed(SUMMARY))
    turned = _csv(other, origin_timestamp_utc="2026-03-02T08:00:00Z", recipient_status="a@b.example##Receive, Send")
    ctx = Context("e", variant="summary")
    assert [r.get("event") for r in _parse([line, ",".join(other), turned], ctx=ctx)] == ["bounce", None, "send"]
    assert _parse([turned], ctx=ctx)[0]["event"] == "send"
    many = [",".join([*SUMMARY, f"n{i}"]) for i in range(200)]
    found = Counter(r["disposition"] for r in _parse([m for h in many for m in (h, line + ",")], "summary"))
    assert set(found) <= {"ignored", "mail_events", "quarantined"}
    assert found["mail_events"] >= 30


@given(
    subject=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20).map(str.strip),
    people=st.lists(st.text("abcxyz", min_size=1, max_size=5), min_size=1, max_size=4, unique=True),
    size=st.integers(0, 2**40),
)
@settings(max_examples=15, deadline=None)
def test_round_trip(subject: str, people: list[str], size: int) -> None:
    row = _trace(Subject=subject, Size=size, RecipientAddress=people[0])
    assert (row.get("subject", ""), row["size_bytes"], row["rcpt"]) == (subject, size, people[0])
    status = ";".join(f"{name}@b.example##Receive, Deliver" for name in people)
    values = {"message_subject": subject, "total_bytes": str(size), "recipient_status": status}
    (row,) = _parse([_csv(SUMMARY, origin_timestamp_utc="2026-03-02T08:00:00Z", **values)], "summary")
    assert (row.get("subject", ""), row["size_bytes"], row["n_rcpt"]) == (subject, size, len(people))
    assert row.get("recipients", [row["rcpt"]]) == [f"{name}@b.example" for name in people]


@given(st.data())
@settings(max_examples=15, deadline=None)
def test_damage_gives_one_row_each(data: st.DataObject) -> None:
    whole = [json.dumps(TRACE), *(SAMPLES / MINE[1]).read_text().split("\n2026"), ",".join(DETAIL)]
    damaged = []
    for _ in range(data.draw(st.integers(1, 5))):
        one, two = data.draw(st.sampled_from(whole)), data.draw(st.sampled_from(whole))
        cut = data.draw(st.integers(0, len(one)))
        middle = data.draw(st.sampled_from(["", '"', ",", "\x00", "##", ";;", "{", "}", "\u202e", "\n", "é" * 9999]))
        damaged.append(one[:cut] + middle + two[data.draw(st.integers(0, len(two))) :])
    for variant in ("json", "summary", "detail"):
        for row in _parse(damaged, variant):
            assert row["disposition"] in {"mail_events", "ignored", "quarantined"}
            assert row["disposition"] == "mail_events" or row["reason"]


def test_cut_at_every_few_bytes() -> None:
    for texts, variant in (([json.dumps(TRACE)], "json"), ((SAMPLES / MINE[1]).read_text().splitlines(), "summary")):
        text = texts[-1]
        _parse([text[:n] for n in range(0, len(text), 2)], variant)


def test_blocks() -> None:
    lines = [",".join(SUMMARY)]
    lines += [_csv(SUMMARY, origin_timestamp_utc=f"2026-03-02T08:00:0{i}Z", message_id=str(i)) for i in range(6)]
    whole = FORMAT.parse(_records(lines), Context("e", variant="summary")).collect().drop("byte_offset")
    ctx = Context("e", variant="summary")
    parts = [FORMAT.parse(_records(lines[:4]), ctx).collect(), FORMAT.parse(_records(lines[4:], 4), ctx).collect()]
    assert pl.concat(parts, how="diagonal_relaxed").select(whole.columns).equals(whole)


def test_no_records() -> None:
    for variant in ("json", "summary"):
        assert FORMAT.parse(_records([]), Context("e", variant=variant)).collect().height == 0


def test_sniff() -> None:
    lined = (json.dumps(TRACE) + "\n") * 2
    for text, framing, variant in (
        (lined, "lines", "json"),
        ("[" + lined.strip().replace("\n", ",") + "]", "json", "json"),
        ('{"value":[' + json.dumps(TRACE) + "]}", "json", "json"),
        (json.dumps(TRACE, indent=2), "json", "json"),
        ("\n".join((SAMPLES / MINE[1]).read_text().splitlines()[3:4]), "csv", "summary"),
        (_csv(SUMMARY, origin_timestamp_utc="2026-03-02T08:00:00Z", recipient_status="a##Send"), "csv", "summary"),
    ):
        assert (match := sniff(head_of(text.encode(), "x"))) is not None
        assert (match.framing, match.variant) == (framing, variant)
    assert sniff(head_of(b'{"MessageId": 1}', "x")) is None
    assert sniff(head_of(b"", "x")) is None


def test_claims_no_other_sample() -> None:
    others = [p for folder in (SAMPLES, REAL) if folder.is_dir() for p in sorted(folder.rglob("*")) if p.is_file()]
    for path in others:
        if "m365_messagetrace" not in str(path):
            with path.open("rb") as file:
                choice = registry.choose(head_of(file.read(65536), path.name))
            assert isinstance(choice, str) or choice.name != "m365_messagetrace", path


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    (path,) = (REAL / "m365_messagetrace").iterdir()
    rows = _read(path.read_bytes())
    found = [(r["event"], r["direction"], r["outcome"], r["ts"].isoformat(), r["size_bytes"]) for r in rows]
    assert found == [
        ("deliver", "inbound", "success", "2020-11-09T04:50:06.331263+00:00", 64329),
        ("send", "outbound", "success", "2020-11-10T00:28:56.330683+00:00", 96627),
    ]
    assert all(r["message_id"].startswith("<") and r["message_id"].endswith(">") for r in rows)
