"""IIS W3C log: exact rows, headers that change in mid-file, dates that are missing, names with spaces, real samples."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import registry, w3c
from transforms.formats.iis import FORMAT
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context

SAMPLE = Path(__file__).parents[1] / "samples" / "iis.log"
REAL = Path(__file__).parents[3] / "shared" / "samples"


def _records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    rows = [(first + i, 100 * (first + i), len(line.encode()), line) for i, line in enumerate(lines)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def _parse(lines: list[str], ctx: Context | None = None, first: int = 0) -> list[dict[str, Any]]:
    frame = FORMAT.parse(_records(lines, first), ctx or Context("e")).collect().sort("record_no")
    assert frame["record_no"].to_list() == list(range(first, first + len(lines)))
    return [{k: v for k, v in row.items() if v is not None} for row in frame.iter_rows(named=True)]


def test_sample_row_by_row() -> None:
    rows = _parse(SAMPLE.read_text().splitlines())
    assert [(r["disposition"], r.get("reason")) for r in rows] == [
        *[("ignored", "header")] * 4,
        *[("access_events", None)] * 3,
        ("access_events", "HTTP 401.1"),
        ("access_events", None),
        ("access_events", None),
        ("ignored", "health probe"),
        ("access_events", "HTTP 404"),
        ("quarantined", w3c.MISFIT),
        ("ignored", "header"),
        ("access_events", "HTTP 302"),
        ("access_events", None),
        ("ignored", "FTP, not a web request"),
        ("access_events", None),
        ("ignored", "blank line"),
        ("ignored", "header"),
        ("access_events", None),
        ("quarantined", w3c.BAD_TIME),
    ]


def test_an_ews_request_in_full() -> None:
    row = _parse(SAMPLE.read_text().splitlines())[4]
    del row["byte_offset"], row["byte_length"]
    assert row == {
        "record_no": 4,
        "disposition": "access_events",
        "source": "iis",
        "ts": datetime(2026, 3, 2, 8, 0, 1, tzinfo=UTC),
        "ts_raw": "2026-03-02 08:00:01",
        "ts_basis": "utc",
        "agg_level": "event",
        "protocol": "ews",
        "action": "proxy",
        "op_raw": "POST",
        "host": "192.0.2.10",
        "outcome": "success",
        "principal_id": "svc-gateway@fabrikam.example",
        "principal_type": "user",
        "session_id": "6f1c4b52-0000-4000-8000-000000000001",
        "src_ip_raw": "198.51.100.25",
        "user_agent": "ExchangeServicesClient/15.00.0913.015",
        "bytes_in": 1022,
        "bytes_out": 18234,
        "bytes_known": True,
        "tenant_domain": "fabrikam.example",
    }


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (5, {"action": "get_item", "op_raw": "GetItem", "src_ip_raw": "198.51.100.77", "principal_id": "fabrikam\\jan.smit"}),
        (6, {"protocol": "eas", "op_raw": "Sync", "mailbox_id": "kim@fabrikam.example", "src_ip_raw": "203.0.113.80",
             "logon_type": "owner"}),
        (7, {"protocol": "owa", "outcome": "failure", "principal_type": "anonymous", "credential_type": "none"}),
        (8, {"protocol": "mapi", "principal_id": "van der berg", "src_ip_raw": "203.0.113.82",
             "mailbox_id": "0b0e5f1c-1111-4222-8333-444455556666@fabrikam.example"}),
        (9, {"protocol": "autodiscover", "user_agent": "python-requests/2.31.0"}),
        (11, {"protocol": "web", "action": "other", "op_raw": "GET /aspnet_client/x.aspx"}),
        (14, {"ts": datetime(2026, 3, 2, 23, 59, 59, tzinfo=UTC), "protocol": "ecp", "outcome": "unknown"}),
        (15, {"ts": datetime(2026, 3, 3, 0, 0, 1, tzinfo=UTC), "outcome": "success"}),
        (17, {"ts": datetime(2026, 3, 3, 0, 0, 3, tzinfo=UTC), "protocol": "oab", "src_ip_raw": "203.0.113.83"}),
        (20, {"ts": datetime(2026, 3, 4, 12, tzinfo=UTC), "protocol": "owa", "op_raw": "PROPFIND"}),
    ],
)  # fmt: skip
def test_other_rows(record: int, expected: dict[str, Any]) -> None:
    row = _parse(SAMPLE.read_text().splitlines())[record]
    assert {name: row.get(name) for name in expected} == expected


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20),
    st.text(st.sampled_from("ab .\\/@-"), min_size=1, max_size=15),
    st.ip_addresses().map(str),
    st.datetimes(datetime(1990, 1, 2), datetime(2099, 12, 30)).map(lambda d: d.replace(microsecond=0)),
    st.integers(0, 2**40),
)
def test_round_trip(agent: str, user: str, address: str, when: datetime, size: int) -> None:
    user = user.strip(" ") or "-"
    fields = "#Fields: date time cs-method cs-uri-stem cs-username c-ip cs(User-Agent) sc-status sc-bytes"
    line = f"{when:%Y-%m-%d %H:%M:%S} POST /owa/ {user} {address} {agent} 200 {size}"
    row = _parse([fields, line])[1]
    assert row["ts"] == when.replace(tzinfo=UTC)
    assert row.get("principal_id") == (None if user == "-" else user.lower())
    assert row["src_ip_raw"] == address
    assert row.get("user_agent") == (None if agent == "-" else agent.replace("+", " "))
    assert row["bytes_out"] == size


@settings(max_examples=25)
@given(st.data())
def test_damage_never_raises(data: st.DataObject) -> None:
    lines = SAMPLE.read_text().splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    cut = data.draw(st.integers(0, len(lines[at])))
    junk = data.draw(st.text(max_size=20).map(lambda t: t.replace("\n", " ")))
    lines[at] = lines[at][:cut] + junk
    assert len(_parse(lines)) == len(lines)


def test_two_blocks_are_one(tmp_path: Path) -> None:
    lines = SAMPLE.read_text().splitlines()
    whole = _parse(lines)
    for cut in range(len(lines)):
        ctx = Context("e")
        assert _parse(lines[:cut], ctx) + _parse(lines[cut:], ctx, cut) == whole, cut


def test_a_row_that_is_too_wide_does_not_shift_into_other_columns() -> None:
    fields = "#Fields: date time cs-method cs-uri-stem cs-username c-ip sc-status"
    row = "2026-03-02 08:00:01 GET /owa/ a 192.0.2.1 200 0 0 15"
    assert _parse([fields, row])[1]["reason"] == w3c.MISFIT


def test_other_formats_are_not_claimed() -> None:
    for sample in sorted(SAMPLE.parent.iterdir()):
        choice = registry.choose(head_of(sample.read_bytes(), sample.name))
        named = isinstance(choice, registry.Choice) and choice.name == "iis"
        assert named == sample.name.startswith("iis"), sample.name


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    counts: Counter[str] = Counter()
    for file in sorted(REAL.rglob("*.*")):
        data = file.read_bytes()
        choice = registry.choose(head_of(data, file.name))
        if file.parent.name != "iis":
            assert isinstance(choice, str) or choice.name != "iis", file.name
            continue
        assert isinstance(choice, registry.Choice)
        assert choice.name == "iis", file.name
        counts.update(r["disposition"] for r in _parse(data.decode("utf-8", "replace").splitlines()))
    assert counts == {"access_events": 32, "ignored": 40}
