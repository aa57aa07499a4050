"""Exchange message tracking: exact rows, every version's width, damage, real samples."""

import csv
import io
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.exchange_msgtrk import FORMAT, sniff
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context, Head
from transforms.msgtrk_rows import EXCHANGE_2010, EXCHANGE_2013, EXCHANGE_2016

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = SAMPLES / "exchange_msgtrk.log"
REAL = Path(__file__).parents[3] / "shared" / "samples"
VERSIONS = {"2010": EXCHANGE_2010, "2013": EXCHANGE_2013, "2016": EXCHANGE_2016}
BASE = {"date-time": "2026-03-02T08:00:00.000Z", "source": "SMTP", "event-id": "RECEIVE"}


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
    given_ = BASE | {name.replace("_", "-"): value for name, value in values.items()}
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([given_.get(name, "") for name in names])
    return text.getvalue()


def _one(**values: str) -> dict[str, Any]:
    (row,) = _parse([_row(EXCHANGE_2016, **values)])
    return row


def _head(text: str) -> Head:
    return head_of(text.encode(), "x")


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return _parse(SAMPLE.read_text().splitlines())


def test_sample_row_by_row(sample: list[dict[str, Any]]) -> None:
    shadow = "shadow copy for redundancy: no mail"
    notice = "notice that a mailbox has something to send: no message yet"
    header = [("ignored", "header")] * 5
    assert [(r["disposition"], r.get("event", r.get("reason"))) for r in sample] == [
        *header,
        ("mail_events", "receive"),
        ("ignored", shadow),
        *(("mail_events", event) for event in ("verdict", "journal", "deliver", "other", "deliver")),
        ("ignored", "blank line"),
        *header,
        ("ignored", notice),
        *(("mail_events", event) for event in ("submit", "queue", "expand", "transfer", "send", "defer", "bounce")),
        ("mail_events", "dsn"),
        *header,
        ("mail_events", "receive"),
        ("mail_events", "receive"),
        ("quarantined", "field count does not fit the header"),
        ("quarantined", "time is not readable"),
    ]


def test_delivery_with_all_columns(sample: list[dict[str, Any]]) -> None:
    row = sample[9]
    del row["byte_offset"], row["byte_length"]
    assert row == {
        "record_no": 9,
        "disposition": "mail_events",
        "source": "exchange_msgtrk",
        "ts": datetime(2026, 3, 2, 8, 0, 2, 500000, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:02.500Z",
        "ts_basis": "utc",
        "host": "MBX01",
        "event": "deliver",
        "op_raw": "DELIVER/STOREDRIVER",
        "outcome": "success",
        "internal_id": "70912345566403",
        "message_id": "<order-1@northwind.example>",
        "network_message_id": "7f3a1c52-0000-4000-8000-000000000001",
        "session_id": "08DC1DB12C345BE6",
        "src_ip_raw": "203.0.113.25",
        "subject": "Order 4711, second part",
        "size_bytes": 18230,
        "delay_s": 1.5,
        "direction": "inbound",
        "mail_from": "bounce@northwind.example",
        "header_from": "sales@northwind.example",
        "rcpt": "kim@fabrikam.example",
        "recipients": ["kim@fabrikam.example", "jan@fabrikam.example"],
        "n_rcpt": 2,
        "tenant_domain": "fabrikam.example",
    }


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (5, {"session_id": "08DC1DB12C345BE5", "src_ip_raw": "203.0.113.25", "src_host": None, "dst_ip_raw": None,
             "direction": "inbound", "host": "MBX01"}),
        (8, {"mail_from": "", "rcpt": "journal@fabrikam.example", "recipients": None, "outcome": "success"}),
        (11, {"mail_from": "", "direction": "internal", "recipients": None}),
        (19, {"src_ip_raw": "192.0.2.40", "direction": "outbound", "status_text": None, "tenant_id": None,
              "subject": 'Re: "Order" 4711', "recipients": ["all@fabrikam.example", "pat@contoso.example"]}),
        (21, {"orig_rcpt": "all@fabrikam.example", "dsn": "2.1.5", "direction": "internal"}),
        (23, {"relay_host": "mx.contoso.example", "dst_ip_raw": "198.51.100.25", "delay_s": 2.3, "host": "MBX01",
              "src_ip_raw": "10.20.0.11", "status_text": "250 2.1.5 Ok", "direction": "outbound"}),
        (24, {"outcome": "failure", "dsn": "4.4.0", "dst_ip_raw": None}),
        (25, {"outcome": "failure", "dsn": "5.1.1", "rcpt": "nobody@contoso.example"}),
        (26, {"mail_from": "", "header_from": None, "rcpt": "kim@fabrikam.example"}),
        (32, {"session_id": "08D0F1A2B3C4D5E6", "src_ip_raw": "2001:db8:7::25", "src_host": "mx.northwind.example",
              "network_message_id": None, "message_id": "<old@northwind.example>", "direction": "unknown"}),
        (33, {"src_ip_raw": "2001:db8:7::99", "src_host": None}),
    ],
)  # fmt: skip
def test_other_rows(sample: list[dict[str, Any]], record: int, expected: dict[str, Any]) -> None:
    assert {name: sample[record].get(name) for name in expected} == expected


@pytest.mark.parametrize("event", ["HARECEIVE", "HADISCARD", "HAREDIRECT", "HAREDIRECTFAIL", "NOTIFYSHADOW"])
def test_a_shadow_copy_is_never_mail(event: str) -> None:
    assert _one(event_id=event)["disposition"] == "ignored"


@pytest.mark.parametrize(
    ("source", "event_id", "event", "outcome"),
    [
        ("AGENT", "FAIL", "bounce", "failure"),
        ("STOREDRIVER", "DUPLICATEDELIVER", "other", "success"),
        ("QUEUE", "POISONMESSAGE", "hold", "unknown"),
        ("ROUTING", "RESOLVE", "expand", "success"),
        ("MAILBOXRULE", "REDIRECT", "expand", "success"),
        ("SMTP", "SENDEXTERNAL", "send", "success"),
        ("PICKUP", "BADMAIL", "bounce", "failure"),
        ("SAFETYNET", "RESUBMIT", "other", "unknown"),
        ("X", "UNHEARDOF", "other", "unknown"),
        ("smtp", "receive", "receive", "success"),
        ("AGENT", "RECEIVE", "receive", "success"),
    ],
)
def test_events(source: str, event_id: str, event: str, outcome: str) -> None:
    row = _one(source=source, event_id=event_id)
    assert (row["event"], row["outcome"], row["op_raw"]) == (event, outcome, f"{event_id}/{source}")


def test_a_journal_report_only_where_the_agent_says_so() -> None:
    name = "MicrosoftExchange329e71ec88ae4615bbc36ab6ce41109e@a.example"
    assert _one(source="AGENT", source_context="Journaling")["event"] == "journal"
    assert _one(source="SMTP", source_context="Journaling")["event"] == "receive"
    assert _one(source="SMTP", sender_address=name, message_info="|CATRT-Journal Agent=0.1")["event"] == "receive"


def test_verdicts_of_agents() -> None:
    found = {
        "S:AMA=EV|engine=M|v=1|name=X": "verdict",
        "S:AMA=SUM|v=1|action=b": "verdict",
        "S:AMA=SUM|v=0|action=p": "other",
        "S:SFA=SUM|SFV=SPM|IPV=NLI": "verdict",
        "S:SFA=SUM|IPV=NLI|SFV=SPM": "verdict",
        "S:SFA=SUM|SFV=NSPM": "other",
        "S:OriginalFromAddress=x": "other",
    }
    for data, event in found.items():
        assert _one(source="AGENT", event_id="AGENTINFO", custom_data=data)["event"] == event, data


def test_addresses_that_are_odd() -> None:
    row = _one(recipient_address=" a@b.example ;;c@d.example; ", return_path="<x@y.example>", sender_address="<>")
    assert (row["rcpt"], row["recipients"]) == ("a@b.example", ["a@b.example", "c@d.example"])
    assert (row["n_rcpt"], row["mail_from"], row.get("header_from")) == (2, "x@y.example", None)
    assert _one(sender_address="<>")["mail_from"] == ""
    assert "mail_from" not in _one(sender_address="a@b.example")
    assert _one(original_client_ip="2a02:cf40::0000:1234:zz")["src_ip_raw"] == "2a02:cf40::0000:1234:zz"
    assert "rcpt" not in _one(recipient_address=";")


def test_header_missing_wrong_or_repeated() -> None:
    bom = "\ufeff#Fields: " + ",".join(EXCHANGE_2013)
    bare = ",".join(EXCHANGE_2016)
    corrupt = "#Fields: " + ",".join([*EXCHANGE_2016, *EXCHANGE_2016[:19]])
    for names in VERSIONS.values():
        for header in (None, bom, bare, corrupt, "#Fields: date-time"):
            lines = [_row(names, message_id="<1@a.example>", custom_data="S:ProxiedClientIPAddress=192.0.2.9")]
            rows = _parse(lines if header is None else [header, *lines])
            assert (rows[-1]["message_id"], rows[-1]["src_ip_raw"]) == ("<1@a.example>", "192.0.2.9")
            assert header is None or rows[0] == rows[0] | {"disposition": "ignored", "reason": "header"}


_field = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=20)


@given(
    version=st.sampled_from(sorted(VERSIONS)),
    subject=_field,
    local=st.lists(_field.map(lambda t: "".join(c for c in t if c.isalnum()) or "x"), min_size=1, max_size=4),
    size=st.integers(0, 2**40),
    when=st.datetimes(datetime(1991, 1, 1), datetime(2099, 1, 1)),
)
@settings(max_examples=12, deadline=None)
def test_round_trip(version: str, subject: str, local: list[str], size: int, when: datetime) -> None:
    when = when.replace(microsecond=when.microsecond // 1000 * 1000)
    to = [f"{name}@b.example" for name in local]
    line = _row(
        VERSIONS[version],
        date_time=when.isoformat(timespec="milliseconds") + "Z",
        message_subject=subject,
        recipient_address=";".join(to),
        total_bytes=str(size),
        recipient_count=str(len(to)),
    )
    (row,) = _parse([line])
    assert (row["ts"], row["subject"], row["size_bytes"]) == (when.replace(tzinfo=UTC), subject, size)
    assert (row["rcpt"], row.get("recipients"), row["n_rcpt"]) == (to[0], to if len(to) > 1 else None, len(to))


@given(st.data())
@settings(max_examples=12, deadline=None)
def test_damaged_lines_give_one_row_each(data: st.DataObject) -> None:
    lines = SAMPLE.read_text().splitlines()
    damaged = []
    for _ in range(data.draw(st.integers(1, 6))):
        one, two = data.draw(st.sampled_from(lines)), data.draw(st.sampled_from(lines))
        cut = data.draw(st.integers(0, len(one)))
        middle = data.draw(st.sampled_from(["", '"', "'", ",", "\x00", ";;", '""', "#", "\u202e", "\r", "é" * 9999]))
        damaged.append(one[:cut] + middle + two[data.draw(st.integers(0, len(two))) :])
    for row in _parse(damaged):
        assert row["disposition"] in {"mail_events", "ignored", "quarantined"}
        assert row["disposition"] == "mail_events" or row["reason"]
        assert row["disposition"] != "mail_events" or {"ts", "ts_raw", "event", "outcome", "direction"} <= set(row)


def test_cut_at_every_few_bytes() -> None:
    line = SAMPLE.read_text().splitlines()[9]
    rows = _parse([line[:n] for n in range(0, len(line), 3)])
    # Three columns that later versions have at the end are all that an event may lack.
    assert {row["rcpt"] for row in rows if row["disposition"] == "mail_events"} == {"kim@fabrikam.example"}
    assert sum(row["disposition"] == "quarantined" for row in rows) > 150


def test_blocks() -> None:
    lines = SAMPLE.read_text().splitlines()
    whole = FORMAT.parse(_records(lines), Context("e")).collect().sort("record_no").drop("byte_offset")
    for cut in (3, 14, 21):
        ctx = Context("e")
        parts = [FORMAT.parse(_records(lines[:cut]), ctx), FORMAT.parse(_records(lines[cut:], cut), ctx)]
        both = pl.concat([part.collect() for part in parts], how="diagonal_relaxed").sort("record_no")
        assert both.select(whole.columns).equals(whole)


def test_no_records() -> None:
    assert FORMAT.parse(_records([]), Context("e")).collect().height == 0


def test_sniff() -> None:
    text = SAMPLE.read_text()
    for data, score in ((text, 1.0), ("\ufeff" + text, 1.0), (",".join(EXCHANGE_2013) + "\n", 0.95)):
        assert (match := sniff(_head(data))) is not None
        assert (match.score, match.framing) == (score, "lines")
    bare = "\n".join(line for line in text.splitlines() if line.startswith("2026"))
    assert (match := sniff(_head(bare))) is not None
    assert match.score == 0.6
    assert sniff(_head("#Log-type: SMTP Receive Protocol Log\n")) is None
    assert sniff(_head("")) is None


def test_claims_no_other_sample() -> None:
    others = [p for folder in (SAMPLES, REAL) if folder.is_dir() for p in sorted(folder.rglob("*")) if p.is_file()]
    for path in others:
        if "exchange_msgtrk" not in str(path):
            with path.open("rb") as file:
                choice = registry.choose(head_of(file.read(65536), path.name))
            assert isinstance(choice, str) or choice.name != "exchange_msgtrk", path


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    found = {}
    for path in sorted((REAL / "exchange_msgtrk").iterdir()):
        choice = registry.choose(head_of(path.read_bytes(), path.name))
        assert not isinstance(choice, str)
        assert choice.name == "exchange_msgtrk"
        rows = _parse(path.read_text().splitlines())
        found[path.name.partition("_")[0]] = Counter((r["disposition"], r.get("event", r.get("reason"))) for r in rows)
    assert found == {
        "Qazeer": {
            ("ignored", "header"): 5,
            ("ignored", "notice that a mailbox has something to send: no message yet"): 1,
            ("mail_events", "submit"): 1,
        },
        "awslabs": {
            ("ignored", "header"): 5,
            ("ignored", "shadow copy for redundancy: no mail"): 1,
            ("mail_events", "other"): 1,
        },
    }
