"""Exchange HttpProxy log: exact rows, steered requests, damage, real samples."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.formats.exchange_ews import sniff as sniff_ews
from transforms.formats.exchange_httpproxy import FORMAT, VERSION, sniff
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLE = Path(__file__).parents[1] / "samples" / "exchange_httpproxy.log"
REAL = Path(__file__).parents[3] / "shared" / "samples" / "exchange_httpproxy"
NAMES = "#Fields: " + ",".join(VERSION)


def _parse(lines: list[str]) -> list[dict[str, Any]]:
    sizes = [len(line.encode()) for line in lines]
    rows = [(i, sum(sizes[:i]) + i, sizes[i], line) for i, line in enumerate(lines)]
    records = pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")
    frame = FORMAT.parse(records, Context("e")).collect().sort("record_no")
    assert frame.select("record_no", "byte_offset", "byte_length").rows() == [row[:3] for row in rows]
    return [{k: v for k, v in row.items() if v is not None} for row in frame.iter_rows(named=True)]


def _row(**values: str) -> str:
    given_ = {"DateTime": "2026-03-02T08:00:00.000Z", "Protocol": "Ews"} | values
    return ",".join(given_.get(name, "") for name in VERSION)


def _head(text: str) -> Head:
    return Head(text.encode(), text, tuple(text.splitlines()), "x.log")


def test_sample_row_by_row() -> None:
    rows = _parse(SAMPLE.read_text().splitlines())
    assert [(r["disposition"], r.get("reason")) for r in rows] == [
        *[("ignored", "header")] * 5,
        ("access_events", None),
        ("access_events", "HTTP 403"),
        ("access_events", "HTTP 302"),
        ("access_events", "AnchorMailbox ServerInfo~a]@mbx01.fabrikam.example:444/autodiscover/autodiscover.xml?#"),
        ("ignored", "health probe"),
        ("access_events", None),
        ("access_events", None),
        ("quarantined", "field count does not fit the header"),
    ]


def test_ews_request_at_the_front_end() -> None:
    row = _parse(SAMPLE.read_text().splitlines())[5]
    del row["byte_offset"], row["byte_length"]
    assert row == {
        "record_no": 5,
        "disposition": "access_events",
        "source": "exchange_httpproxy",
        "ts": datetime(2026, 3, 2, 8, 0, 2, 20000, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:02.020Z",
        "ts_basis": "utc",
        "agg_level": "event",
        "protocol": "ews",
        "host": "CAS01",
        "action": "get_item",
        "op_raw": "GetItem",
        "outcome": "success",
        "principal_id": "fabrikam\\jan.smit",
        "principal_type": "user",
        "credential_id": "pw:fabrikam\\jan.smit",
        "credential_type": "password",
        "auth_method": "NTLM",
        "session_id": "11111111-0000-4000-8000-000000000001",
        "mailbox_id": "fabrikam\\jan.smit",
        "logon_type": "owner",
        "src_ip_raw": "198.51.100.7",
        "user_agent": "MacOutlook/16.80.24121017 (Intelx64 Mac OS X Version 14.2 (Build 23C64))",
        "bytes_in": 912,
        "bytes_out": 48211,
        "bytes_known": True,
        "tenant_domain": "fabrikam.example",
    }


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (6, {"protocol": "eas", "action": "proxy", "op_raw": "Sync", "outcome": "failure", "bytes_in": 0,
             "mailbox_id": "kim@fabrikam.example", "tenant_domain": "fabrikam.example"}),
        (7, {"protocol": "owa", "op_raw": "GET", "outcome": "unknown", "principal_type": "anonymous",
             "credential_type": "none", "mailbox_id": None, "bytes_out": None, "bytes_known": True}),
        (8, {"protocol": "ecp", "outcome": "success", "principal_type": "anonymous", "mailbox_id": None}),
        (10, {"protocol": "mapi", "mailbox_id": "abcdef67-4444-1234-4567-123456789987", "logon_type": None}),
        (11, {"principal_type": "system", "src_ip_raw": "203.0.113.80"}),
    ],
)  # fmt: skip
def test_other_rows(record: int, expected: dict[str, Any]) -> None:
    row = _parse(SAMPLE.read_text().splitlines())[record]
    assert {name: row.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("written", "protocol"),
    [("Ews", "ews"), ("OWA", "owa"), ("Mapi", "mapi"), ("Eas", "eas"), ("Ecp", "ecp"), ("RpcHttp", "rpc"),
     ("Autodiscover", "autodiscover"), ("PowerShell", "powershell"), ("Oab", "oab"), ("", "exchange"),
     ("x", "exchange")],
)  # fmt: skip
def test_protocols(written: str, protocol: str) -> None:
    assert _parse([_row(Protocol=written)])[0]["protocol"] == protocol


@pytest.mark.parametrize(
    ("anchor", "mailbox"),
    [
        ("Smtp~CEO@a.example", "ceo@a.example"),
        ("OAuthIdentity~smtp:ceo@a.example", "ceo@a.example"),
        ("OAuthIdentity~actor", None),
        ("MailboxGuid~AB-1@a.example", "ab-1"),
        ("Sid~S-1-5-21-7", "kim@a.example"),
        ("Url~x", None),
        ("", None),
    ],
)
def test_anchors(anchor: str, mailbox: str | None) -> None:
    assert _parse([_row(AnchorMailbox=anchor, AuthenticatedUser="kim@a.example")])[0].get("mailbox_id") == mailbox


def test_a_cookie_that_names_a_server_and_a_path_is_told() -> None:
    cookie = "Server~mbx01.a.example/EWS/Exchange.asmx?#~1941997017"
    rows = _parse([_row(BackEndCookie=cookie), _row(BackEndCookie="Server~mbx01.a.example~1941997017~2026")])
    assert rows[0]["reason"] == f"BackEndCookie {cookie}"
    assert "reason" not in rows[1]
    long = _parse([_row(AnchorMailbox="ServerInfo~" + "a" * 9000)])[0]
    assert len(long["reason"]) == 300


def test_header_row_missing_or_repeated() -> None:
    row = _row(AuthenticatedUser="a@b.example", ResponseBytes="7")
    for lines in ([row], [NAMES, row], [NAMES, NAMES, row], [",".join(VERSION), row], ["#Fields: x", row]):
        assert _parse(lines)[-1]["bytes_out"] == 7


@given(
    st.sampled_from(["Ews", "Owa", "Mapi", "Eas"]),
    st.integers(0, 2**40),
    st.integers(200, 599),
    st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="',\""), max_size=40),
)
@settings(max_examples=25, deadline=None)
def test_round_trip(protocol: str, size: int, status: int, agent: str) -> None:
    values = {"Protocol": protocol, "ResponseBytes": str(size), "HttpStatus": str(status), "UserAgent": agent}
    row = _parse([NAMES, _row(**values, ClientIpAddress="192.0.2.1")])[1]
    assert (row["protocol"], row["bytes_out"], row.get("user_agent", "")) == (protocol.lower(), size, agent)
    assert row["outcome"] == ("success" if status < 300 else "unknown" if status < 400 else "failure")


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damaged_lines_give_one_row_each(data: st.DataObject) -> None:
    lines = SAMPLE.read_text().splitlines()
    damaged = []
    for _ in range(data.draw(st.integers(1, 5))):
        one, two = data.draw(st.sampled_from(lines)), data.draw(st.sampled_from(lines))
        cut = data.draw(st.integers(0, len(one)))
        middle = data.draw(st.sampled_from(["", '"', "'", ",", "\x00", "~", "#Fields:", "\n"]))
        damaged.append(one[:cut] + middle + two[data.draw(st.integers(0, len(two))) :])
    for row in _parse(damaged):
        assert row["disposition"] == "access_events" or row["reason"]
        assert row["disposition"] != "access_events" or {"ts", "ts_raw", "action", "outcome", "protocol"} <= set(row)


def test_sniff() -> None:
    text = SAMPLE.read_text()
    match = sniff(_head(text))
    assert match is not None
    assert (match.score, match.framing) == (1.0, "lines")
    assert sniff_ews(_head(text)) is None
    assert (found := sniff(_head(text.split("#Fields")[1].split("\n", 1)[1]))) is not None
    assert found.score == 0.6


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    found = {}
    for path in sorted(REAL.iterdir()):
        rows = _parse(path.read_text().splitlines())
        assert sniff(_head(path.read_text())) is not None
        found[path.name.split("__")[1][:3]] = Counter((row["disposition"], row.get("reason")) for row in rows)
    assert found == {
        "Eas": {("ignored", "header"): 5, ("access_events", "HTTP 403"): 1},
        "Ews": {("ignored", "header"): 5, ("ignored", "health probe"): 1},
        "Map": {("ignored", "header"): 5, ("ignored", "health probe"): 3},
        "Owa": {("ignored", "header"): 5, ("access_events", "HTTP 302"): 1},
    }
