"""Exchange EWS server log: exact rows, headers that come, change and go, damage, real samples."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.formats.exchange_ews import EXCHANGE_2013, EXCHANGE_2016, FORMAT, sniff
from transforms.formats.exchange_httpproxy import sniff as sniff_httpproxy
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLE = Path(__file__).parents[1] / "samples" / "exchange_ews.log"
REAL = Path(__file__).parents[3] / "shared" / "samples" / "exchange_ews"
VERSIONS = {"2013": EXCHANGE_2013, "2016": EXCHANGE_2016}


def _records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    rows = [(first + i, sum(sizes[:i]) + i, sizes[i], line) for i, line in enumerate(lines)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def _parse(lines: list[str], ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = FORMAT.parse(_records(lines), ctx or Context("e")).collect().sort("record_no")
    assert frame["record_no"].to_list() == list(range(len(lines)))
    assert frame["byte_length"].to_list() == [len(line.encode()) for line in lines]
    return [{k: v for k, v in row.items() if v is not None} for row in frame.iter_rows(named=True)]


def _row(names: tuple[str, ...], **values: str) -> str:
    given_ = {"DateTime": "2026-03-02T08:00:00.000Z"} | values
    return ",".join(given_.get(name, "") for name in names)


def _head(text: str) -> Head:
    return Head(text.encode(), text, tuple(text.splitlines()), "x.log")


def test_sample_row_by_row() -> None:
    rows = _parse(SAMPLE.read_text().splitlines())
    assert [(r["disposition"], r.get("reason")) for r in rows] == [
        *[("ignored", "header")] * 6,
        ("ignored", "subscription heartbeat"),
        ("access_events", None),
        ("access_events", None),
        ("access_events", None),
        ("access_events", "ErrorAccessDenied"),
        ("ignored", "health probe"),
        ("access_events", None),
        ("quarantined", "field count does not fit the header"),
        *[("ignored", "header")] * 5,
        ("access_events", None),
        ("quarantined", "time is not readable"),
        ("ignored", "blank line"),
        ("access_events", "HTTP 401"),
    ]


def test_owner_reads_items() -> None:
    row = _parse(SAMPLE.read_text().splitlines())[7]
    del row["byte_offset"], row["byte_length"]
    assert row == {
        "record_no": 7,
        "disposition": "access_events",
        "source": "exchange_ews",
        "ts": datetime(2026, 3, 2, 8, 0, 2, 2000, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:02.002Z",
        "ts_basis": "utc",
        "agg_level": "event",
        "protocol": "ews",
        "host": "MBX01",
        "action": "get_item",
        "op_raw": "GetItem",
        "outcome": "success",
        "principal_id": "jan.smit@fabrikam.example",
        "principal_type": "user",
        "credential_id": "pw:jan.smit@fabrikam.example",
        "credential_type": "password",
        "auth_method": "NTLM",
        "session_id": "11111111-0000-4000-8000-000000000001",
        "src_ip_raw": "198.51.100.7",
        "user_agent": "MacOutlook/16.80.24121017 (Intelx64 Mac OS X Version 14.2 (Build 23C64))",
        "ews_version": "Exchange2013_SP1",
        "item_count": 4,
        "bytes_in": 912,
        "bytes_known": False,
        "tenant_domain": "fabrikam.example",
        "mailbox_id": "jan.smit@fabrikam.example",
        "logon_type": "owner",
    }


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (8, {"action": "export", "principal_id": "svc-gateway@fabrikam.example", "item_count": 40, "bytes_out": 734003,
             "bytes_known": True, "effective_user": "ceo@fabrikam.example", "mailbox_id": "ceo@fabrikam.example",
             "logon_type": "delegate", "src_ip_raw": "[2001:db8:7::25]:50112"}),
        (9, {"action": "directory_lookup", "principal_id": "fabrikam\\mbx02$", "principal_type": "computer",
             "effective_user": "room-3@fabrikam.example", "logon_type": "delegate"}),
        (10, {"outcome": "failure", "user_agent": 'Backup "Agent", build 7/2.1', "mailbox_id": "jsmit@fabrikam.example",
              "logon_type": "owner", "tenant_domain": "fabrikam.example", "effective_user": None}),
        (12, {"action": "sync_folder", "principal_id": "kim@fabrikam.example", "src_ip_raw": "203.0.113.66"}),
        (19, {"action": "attachment", "principal_id": "0f3c1b7a-1111-4222-8333-444455556666", "credential_id": None,
              "principal_type": "service_principal", "app_id": "0f3c1b7a-1111-4222-8333-444455556666",
              "credential_type": "token", "effective_user": "ceo@fabrikam.example", "logon_type": "delegate"}),
        (22, {"action": "other", "op_raw": None, "outcome": "failure", "principal_id": None,
              "principal_type": "anonymous", "credential_type": "none", "user_agent": "curl/8.5.0", "bytes_out": 0}),
    ],
)  # fmt: skip
def test_other_rows(record: int, expected: dict[str, Any]) -> None:
    row = _parse(SAMPLE.read_text().splitlines())[record]
    assert {name: row.get(name) for name in expected} == expected


def test_a_probe_by_word_alone_is_kept() -> None:
    line = {"UserAgent": "AMProbe/Local", "SoapAction": "GetItem", "HttpStatus": "200"}
    cases = [
        ({"ClientIpAddress": "127.0.0.1"}, "ignored"),
        ({"ClientIpAddress": "::1"}, "ignored"),
        ({"ClientIpAddress": "203.0.113.5"}, "access_events"),
        ({"ClientIpAddress": "127.0.0.1", "AuthenticatedUser": "ceo@a.example"}, "access_events"),
        ({"ClientIpAddress": "10.1.1.1", "AuthenticatedUser": "A\\HealthMailbox1"}, "ignored"),
        ({"ClientIpAddress": "203.0.113.5", "AuthenticatedUser": "A\\HealthMailbox1"}, "access_events"),
        ({"ClientIpAddress": "::1", "AuthenticatedUser": "HealthMailbox1@a.example", "ImpersonatedUser": "c@a.example"},
         "access_events"),
    ]  # fmt: skip
    rows = _parse([_row(EXCHANGE_2013, **line, **case) for case, _ in cases])
    assert [row["disposition"] for row in rows] == [expected for _, expected in cases]


@pytest.mark.parametrize("version", VERSIONS)
def test_header_missing_damaged_or_of_another_version(version: str) -> None:
    names, other = VERSIONS[version], next(v for k, v in VERSIONS.items() if k != version)
    row = _row(names, AuthenticatedUser="a@b.example", SoapAction="FindItem", HttpStatus="200")
    headers = (
        None,
        "#Fields: ",
        "#Fields: DateTime,RequestId,DateTime",
        "#Fields: " + ",".join(other),
        "#Fields: \x00",
    )
    for header in headers:
        rows = _parse([row] if header is None else [header, row])
        assert (rows[-1]["action"], rows[-1]["principal_id"]) == ("find_item", "a@b.example")


def test_header_of_a_version_not_known_is_followed() -> None:
    names = ("Extra", *EXCHANGE_2016)
    header, row = (
        "#Fields: " + ",".join(names),
        _row(names, Extra="e", SoapAction="GetItem", AuthenticatedUser="a@b.example"),
    )
    assert _parse([header, row])[1]["op_raw"] == "GetItem"
    assert _parse([row])[0]["disposition"] == "quarantined"


def test_header_is_carried_between_blocks() -> None:
    names = tuple(reversed(EXCHANGE_2013))
    ctx = Context("e")
    _parse(["#Fields: " + ",".join(names)], ctx)
    assert _parse([_row(names, SoapAction="GetItem", HttpStatus="500")], ctx)[0]["outcome"] == "failure"
    changed = ["#Fields: " + ",".join(EXCHANGE_2013), _row(EXCHANGE_2013, SoapAction="FindItem")]
    assert _parse([_row(names, SoapAction="GetItem"), *changed], ctx)[0]["op_raw"] == "GetItem"
    assert _parse([_row(EXCHANGE_2013, SoapAction="FindItem")], ctx)[0]["op_raw"] == "FindItem"


def test_many_hostile_headers_are_bounded() -> None:
    lines = []
    for i in range(300):
        names = (*EXCHANGE_2013, *(f"n{i}_{j}" for j in range(i + 1)))
        lines += ["#Fields: " + ",".join(names), _row(names, SoapAction="GetItem")]
    found = Counter(row["disposition"] for row in _parse(lines))
    assert found["ignored"] == 300
    assert found["access_events"] + found["quarantined"] == 300
    assert found["access_events"] >= 20


_text = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="',\"#"), min_size=1, max_size=12
)


@given(
    version=st.sampled_from(sorted(VERSIONS)),
    user=_text.map(lambda t: t.lower() + "@b.example"),
    agent=st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=30),
    action=st.sampled_from(["GetItem", "FindItem", "ExportItems", "Unheard"]),
    sizes=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    when=st.datetimes(datetime(1991, 1, 1), datetime(2099, 1, 1)),
)
@settings(max_examples=25, deadline=None)
def test_round_trip(version: str, user: str, agent: str, action: str, sizes: tuple[int, int], when: datetime) -> None:
    agent = agent.strip("'")
    when = when.replace(microsecond=when.microsecond // 1000 * 1000)
    written = '"' + agent.replace('"', '""') + '"' if set(agent) & set(',"') else agent
    values = {
        "DateTime": when.isoformat(timespec="milliseconds") + "Z", "AuthenticatedUser": user, "UserAgent": written,
        "SoapAction": action, "HttpStatus": "200", "RequestSize": str(sizes[0]), "ResponseSize": str(sizes[1]),
        "AuthenticationType": "Basic",
    }  # fmt: skip
    names = VERSIONS[version]
    row = _parse(["#Fields: " + ",".join(names), _row(names, **values)])[1]
    assert row["ts"] == when.replace(tzinfo=UTC)
    assert row["principal_id"] == user.lower()
    assert row.get("user_agent", "") == agent
    assert (row["op_raw"], row["bytes_in"], row["bytes_out"]) == (action, *sizes)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_damaged_lines_give_one_row_each(data: st.DataObject) -> None:
    lines = SAMPLE.read_text().splitlines()
    damaged = []
    for _ in range(data.draw(st.integers(1, 6))):
        one, two = data.draw(st.sampled_from(lines)), data.draw(st.sampled_from(lines))
        cut = data.draw(st.integers(0, len(one)))
        middle = data.draw(st.sampled_from(["", '"', "'", ",", "\x00", ",,,,", '""', "#", "\u202e", "\r"]))
        damaged.append(one[:cut] + middle + two[data.draw(st.integers(0, len(two))) :])
    for row in _parse(damaged):
        assert row["disposition"] in {"access_events", "ignored", "quarantined"}
        assert row["disposition"] == "access_events" or row["reason"]
        assert row["disposition"] != "access_events" or {"ts", "ts_raw", "action", "outcome", "protocol"} <= set(row)


def test_no_records() -> None:
    assert FORMAT.parse(_records([]), Context("e")).collect().height == 0


def test_sniff() -> None:
    text = SAMPLE.read_text()
    match = sniff(_head(text))
    assert match is not None
    assert (match.score, match.framing) == (0.95, "lines")
    assert sniff_httpproxy(_head(text)) is None
    bare = "\n".join(line for line in text.splitlines() if line.startswith("2026"))
    assert (found := sniff(_head(bare))) is not None
    assert found.score == 0.6
    assert sniff(_head("#Log-type: HttpProxy Logs\n")) is None
    assert sniff(_head("")) is None


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    found = {}
    for path in sorted(REAL.iterdir()):
        assert sniff(_head(path.read_text())) is not None
        rows = _parse(path.read_text().splitlines())
        found[path.name.partition("_")[0]] = Counter((row["disposition"], row.get("reason")) for row in rows)
    assert found == {
        "Qazeer": {("ignored", "header"): 5, ("ignored", "health probe"): 1},
        "awslabs": {
            ("ignored", "header"): 6,
            ("ignored", "subscription heartbeat"): 3,
            ("access_events", None): 4,
        },
    }
