"""Exchange SMTP protocol logs: exact rows, sessions across rows and blocks, damage, real samples."""

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

from transforms import registry, smtp_sessions
from transforms.formats.exchange_smtp import FIELDS, FORMAT, sniff
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = SAMPLES / "exchange_smtp.log"
REAL = Path(__file__).parents[3] / "shared" / "samples"
SEND = "#Log-type: SMTP Send Protocol Log"
TLS_1_2 = {"tls_version": "TLSv1.2", "tls_cipher": "CALG_AES_256/CALG_SHA_384/CALG_ECDH_EPHEM"}


def _records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    rows = [(first + i, sum(sizes[:i]) + i, sizes[i], line) for i, line in enumerate(lines)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def _parse(lines: list[str], ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = FORMAT.parse(_records(lines), ctx or Context("e")).collect().sort("record_no")
    assert frame["record_no"].to_list() == list(range(len(lines)))
    assert frame["byte_length"].to_list() == [len(line.encode()) for line in lines]
    return [{k: v for k, v in row.items() if v is not None} for row in frame.iter_rows(named=True)]


def _line(event: str, data: str = "", context: str = "", session: str = "08DC000000000001") -> str:
    text = io.StringIO()
    row = ["2026-03-02T08:00:00.000Z", "MBX01\\Client", session, 1, "10.0.0.1:25", "192.0.2.7:4000"]
    csv.writer(text, lineterminator="").writerow([*row, event, data, context])
    return text.getvalue()


def _talk(*rows: str, session: str = "08DC000000000001") -> list[str]:
    """Lines `+`, `< EHLO x`, `* |context`: the sign, then data, then context behind a bar."""
    return [_line(row[0], *row[2:].partition("|")[::2], session) for row in rows]


def _events(lines: list[str]) -> list[dict[str, Any]]:
    return [row for row in _parse(lines) if row["disposition"].endswith("_events")]


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return _parse(SAMPLE.read_text().splitlines())


def test_sample_row_by_row(sample: list[dict[str, Any]]) -> None:
    found = {r["record_no"]: (r.get("event") or r["action"], r["op_raw"], r["outcome"]) for r in sample if "ts" in r}
    assert found == {
        5: ("connect", "+", "success"),
        12: ("tls", "certificate sent", "success"),
        13: ("connect", "+", "success"),
        14: ("connect", "client certificate", "unknown"),
        15: ("tls", "TLS", "success"),
        18: ("auth", "validation", "success"),
        21: ("other", "MAIL FROM", "unknown"),
        23: ("other", "RCPT TO", "unknown"),
        24: ("other", "RCPT TO", "unknown"),
        28: ("reject", "RCPT TO", "failure"),
        31: ("other", "DATA", "success"),
        34: ("disconnect", "-", "success"),
        36: ("tls", "TLS", "success"),
        40: ("auth", "AUTH LOGIN", "failure"),
        46: ("auth", "AUTH LOGIN", "success"),
        50: ("auth", "AUTH NTLM", "failure"),
        52: ("other", "MAIL FROM", "unknown"),
        53: ("reject", "MAIL FROM", "failure"),
        54: ("disconnect", "-", "success"),
        55: ("connect", "+", "success"),
        60: ("other", "MAIL FROM", "unknown"),
        68: ("connect", "+", "success"),
        78: ("tls", "certificate received", "success"),
        79: ("tls", "TLS", "success"),
        83: ("other", "MAIL FROM", "unknown"),
        84: ("other", "RCPT TO", "unknown"),
        85: ("other", "RCPT TO", "unknown"),
        88: ("reject", "RCPT TO", "failure"),
        90: ("other", "BDAT", "success"),
        93: ("disconnect", "-", "success"),
        94: ("connect", "*", "failure"),
    }
    rest = Counter((r["disposition"], r["reason"]) for r in sample if "ts" not in r)
    assert rest == {
        ("ignored", "header"): 10,
        ("ignored", "blank line"): 1,
        ("ignored", "command that carries no fact by itself"): 16,
        ("ignored", "reply that carries no fact"): 22,
        ("ignored", "information that carries no fact by itself"): 13,
        ("ignored", "outcome told by the row of the user"): 3,
        ("quarantined", "field count does not fit the header"): 1,
        ("quarantined", "event is none of + - < > *"): 1,
    }


def test_refused_recipient_with_all_columns(sample: list[dict[str, Any]]) -> None:
    row = sample[28]
    del row["byte_offset"], row["byte_length"]
    status = row.pop("status_text")
    assert status.startswith("550 5.1.10 RESOLVER.ADR.RecipientNotFound; ")
    assert row == TLS_1_2 | {
        "record_no": 28,
        "disposition": "mail_events",
        "source": "exchange_smtp",
        "ts": datetime(2026, 3, 2, 8, 0, 5, 100000, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:05.100Z",
        "ts_basis": "utc",
        "host": "MBX01",
        "session_id": "08DC1DB12C345BE5",
        "src_ip_raw": "203.0.113.25:40112",
        "helo": "mx.northwind.example",
        "outcome": "failure",
        "event": "reject",
        "op_raw": "RCPT TO",
        "direction": "unknown",
        "mail_from": "bounce@northwind.example",
        "rcpt": "nobody@fabrikam.example",
        "dsn": "5.1.10",
    }


def test_signed_in_user_with_all_columns(sample: list[dict[str, Any]]) -> None:
    row = sample[46]
    del row["byte_offset"], row["byte_length"]
    assert row == TLS_1_2 | {
        "record_no": 46,
        "disposition": "access_events",
        "source": "exchange_smtp",
        "ts": datetime(2026, 3, 2, 8, 0, 9, tzinfo=UTC),
        "ts_raw": "2026-03-02T08:00:09.000Z",
        "ts_basis": "utc",
        "host": "MBX01",
        "session_id": "08DC1DB12C345BE7",
        "src_ip_raw": "[2001:db8:9::7]:50000",
        "helo": "laptop",
        "outcome": "success",
        "protocol": "smtp",
        "action": "auth",
        "op_raw": "AUTH LOGIN",
        "principal_id": "scan@fabrikam.example",
        "principal_type": "user",
        "credential_id": "pw:scan@fabrikam.example",
        "credential_type": "password",
        "auth_method": "LOGIN",
        "tenant_domain": "fabrikam.example",
        "bytes_known": False,
        "agg_level": "event",
    }


CERT = {"credential_id": "aabbccddeeff00112233445566778899aabbccdd", "credential_type": "cert"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (12, {"status_text": "certificate sent; thumbprint=0123456789abcdef0123456789abcdef01234567; "
              "subject=CN=mail.fabrikam.example; issuer=CN=Fabrikam CA, O=Fabrikam; serial=12ab; "
              "not_before=2026-01-01T00:00:00.000Z; not_after=2027-01-01T00:00:00.000Z; names=mail.fabrikam.example"}),
        (14, CERT | {"principal_id": "cn=mx.northwind.example", "reason": None}),
        (18, CERT | TLS_1_2 | {"principal_id": "cn=mx.northwind.example", "reason": "Valid"}),
        (21, {"size_bytes": 18230, "rcpt": None}),
        (31, {"message_id": "<order-1@northwind.example>", "internal_id": "70912345566403", "dsn": "2.6.0"}),
        (34, TLS_1_2 | {"helo": "mx.northwind.example", "status_text": "Local"}),
        (40, {"principal_id": "fabrikam\\scan", "reason": "LogonDenied", "credential_id": "pw:fabrikam\\scan"}),
        (50, {"principal_id": None, "auth_method": "NTLM", "credential_id": None, "credential_type": "password"}),
        (52, {"mail_from": "", "sasl_username": "scan@fabrikam.example"}),
        (60, {"src_ip_raw": "203.0.113.77:4711", "helo": "FE1"}),
        (68, {"dst_ip_raw": "198.51.100.25:25", "src_ip_raw": None, "host": None, "relay_host": "To Internet"}),
        (78, {"status_text": "certificate received; thumbprint=" + CERT["credential_id"]
              + "; subject=CN=mx.contoso.example"}),
        (88, {"rcpt": "lee@contoso.example", "dsn": "4.7.1", "message_id": "<9@fabrikam.example>"}),
        (94, {"dst_ip_raw": "198.51.100.26:25"}),
    ],
)  # fmt: skip
def test_other_rows(sample: list[dict[str, Any]], record: int, expected: dict[str, Any]) -> None:
    assert {name: sample[record].get(name) for name in expected} == expected


def test_failures_are_told_once() -> None:
    auth = ["< AUTH LOGIN", "> 334 <authentication response>"]
    denied = ["* |Inbound AUTH LOGIN failed because of LogonDenied", "* |User Name: kim@a.example"]
    refused = "> 535 5.7.3 Authentication unsuccessful"
    (row,) = _events(_talk(*auth, *denied, denied[1], refused))
    assert (row["principal_id"], row["outcome"], row["reason"]) == ("kim@a.example", "failure", "LogonDenied")
    (row,) = _events(_talk(*auth, refused))
    assert (row.get("principal_id"), row["auth_method"], row["reason"]) == (None, "LOGIN", refused[2:])
    (row,) = _events(_talk(refused))
    assert (row["outcome"], row.get("credential_type")) == ("failure", None)
    assert len(_events(_talk(*auth, *denied, refused, *auth, *denied, refused))) == 2
    (row,) = _events(_talk("< EHLO x", "> 250 ok", *auth, "> 454 4.7.0 Temporary authentication failure"))
    assert (row["action"], row["outcome"]) == ("auth", "failure")
    (row,) = _events(_talk(*auth, "> 235 2.7.0 Authentication successful"))
    assert (row["action"], row["outcome"]) == ("auth", "success")


def test_a_secret_in_the_log_is_not_kept() -> None:
    lines = _talk("+", "< AUTH PLAIN AGtpbQBodW50ZXIy", "> 535 5.7.3 no", "< AUTH LOGIN a2lt", "< aHVudGVyMg==", "-")
    assert not any(
        secret in str(value) for row in _parse(lines) for value in row.values() for secret in ("AGtp", "a2lt", "aHVu")
    )


def test_replies_belong_to_commands_in_their_order() -> None:
    hello = ["+", "> 220 hi", "< EHLO x", "> 250-x", "> 250 y"]
    many = ["< MAIL FROM:<a@b.example>", "< RCPT TO:<one@c.example>", "< RCPT TO:<two@c.example>", "< DATA"]
    replies = ["> 250 2.1.0 ok", "> 550 5.1.1 no", "> 250 2.1.5 ok", "> 354 go", "> 452 4.3.1 full"]
    rejects = [row for row in _events(_talk(*hello, *many, *replies)) if row["event"] == "reject"]
    assert [(r["op_raw"], r.get("rcpt"), r["mail_from"]) for r in rejects] == [
        ("RCPT TO", "one@c.example", "a@b.example"),
        ("DATA", None, "a@b.example"),
    ]
    # what nobody asked for, and what cannot be told, is put to nobody
    (odd,) = [r for r in _events(_talk(*hello, "> 421 4.4.2 timeout", *many[:1], replies[0])) if r["event"] == "reject"]
    assert (odd["op_raw"], odd.get("mail_from")) == (">", None)
    middle = [row for row in _events(_talk(*many, *replies[1:2])) if row["event"] == "reject"]
    assert (middle[0]["op_raw"], middle[0].get("rcpt")) == (">", None)


def test_a_proxied_client_only_where_the_server_agrees() -> None:
    ask = "< XPROXYFROM SID=1 IP=2001:db8::5 PORT=99 DOMAIN=x"
    start, mail = ["+", "< EHLO x", "> 250 ok"], "< MAIL FROM:<a@b.example>"
    assert _events(_talk(*start, ask, "> 250 ok", mail))[-1]["src_ip_raw"] == "[2001:db8::5]:99"
    assert _events(_talk(*start, ask, "> 550 5.7.1 no", mail))[-1]["src_ip_raw"] == "192.0.2.7:4000"
    assert _events(_talk(*start, ask, mail))[-1]["src_ip_raw"] == "192.0.2.7:4000"


def test_a_session_ends_and_its_id_may_serve_again() -> None:
    rows = _events(_talk("+", "< EHLO one", "* kim|authenticated", "-", "+", "-"))
    assert [(r["op_raw"], r.get("helo"), r.get("sasl_username")) for r in rows] == [
        ("+", None, None), ("AUTH", "one", None), ("-", "one", "kim"), ("+", None, None), ("-", None, None),
    ]  # fmt: skip


_name = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="<>"), max_size=12)


@given(user=_name.filter(bool), sender=_name, rcpt=_name.filter(bool), helo=_name.filter(bool))
@settings(max_examples=15, deadline=None)
def test_round_trip(user: str, sender: str, rcpt: str, helo: str) -> None:
    state = f"* {user}|authenticated" if "|" not in user else "* x|authenticated"
    talk = ["+", f"< EHLO {helo}" if "|" not in helo else "< EHLO x", state]
    lines = [*_talk(*talk), _line("<", f"MAIL FROM:<{sender}> SIZE=9"), _line("<", f"RCPT TO:<{rcpt}>"), _line("-")]
    rows = _events(lines)
    assert rows[1]["principal_id"] == (user if "|" not in user else "x").lower()
    assert (rows[2]["mail_from"], rows[2]["size_bytes"], rows[3]["rcpt"]) == (sender, 9, rcpt)
    assert rows[4]["helo"] == (helo if "|" not in helo else "x")


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_damaged_lines_give_one_row_each(data: st.DataObject) -> None:
    lines = SAMPLE.read_text().splitlines()
    damaged = []
    for _ in range(data.draw(st.integers(1, 6))):
        one, two = data.draw(st.sampled_from(lines)), data.draw(st.sampled_from(lines))
        cut = data.draw(st.integers(0, len(one)))
        middle = data.draw(st.sampled_from(["", '"', "'", ",", "\x00", ",,", '""', "#", "\u202e", "\r", "é" * 9999]))
        damaged.append(one[:cut] + middle + two[data.draw(st.integers(0, len(two))) :])
    for row in _parse(damaged):
        assert row["disposition"] in {"mail_events", "access_events", "ignored", "quarantined"}
        assert "reason" in row or row["disposition"].endswith("_events")


def test_blocks_give_the_rows_of_the_whole() -> None:
    lines = SAMPLE.read_text().splitlines()
    whole = FORMAT.parse(_records(lines), Context("e")).collect().sort("record_no").drop("byte_offset")
    for size in (9, 25, 50):
        ctx = Context("e")
        parts = [FORMAT.parse(_records(lines[at : at + size], at), ctx).collect() for at in range(0, len(lines), size)]
        both = pl.concat(parts, how="diagonal_relaxed").sort("record_no")
        assert both.select(whole.columns).equals(whole), size


def test_what_is_carried_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_sessions, "SESSIONS", 5)
    monkeypatch.setattr(smtp_sessions, "COMMANDS", 3)
    ctx = Context("e")
    lines = [line for i in range(50) for line in _talk("+", f"< EHLO h{i}", "> 250 ok", session=f"S{i}")]
    _parse(lines + [_line("<", "RCPT TO:<a@b.example>", session="S49")] * 9, ctx)
    assert ctx.carry["smtp_sessions"].height == 5
    rows = _parse([_line("-", session="S0"), _line("-", session="S48"), _line(">", "550 no", session="S49")], ctx)
    assert [row.get("helo") for row in rows] == [None, "h48", "h49"]
    assert "rcpt" not in rows[2]


def test_no_records() -> None:
    assert FORMAT.parse(_records([]), Context("e")).collect().height == 0


def test_sniff() -> None:
    text = SAMPLE.read_text()
    receive, send = text.split("#Software")[1:]
    for data, variant in ((text, "receive"), ("#Software" + send, "send"), (",".join(FIELDS) + "\n" + receive, "")):
        assert (match := sniff(head_of(data.encode(), "x"))) is not None
        assert (match.framing, match.variant) == ("lines", variant) or "Log-type" in data
    bare = "\n".join(line for line in send.splitlines() if line.startswith("2026"))
    assert (match := sniff(head_of(bare.encode(), "x"))) is not None
    assert (match.score, match.variant) == (0.7, "send")
    ctx = Context("e", variant="send")
    assert "dst_ip_raw" in _parse(bare.splitlines(), ctx)[1]
    assert sniff(head_of(b"#Log-type: Message Tracking Log\n", "x")) is None
    assert sniff(head_of(b"", "x")) is None


def test_claims_no_other_sample() -> None:
    others = [p for folder in (SAMPLES, REAL) if folder.is_dir() for p in sorted(folder.rglob("*")) if p.is_file()]
    for path in others:
        if "exchange_smtp" not in str(path):
            with path.open("rb") as file:
                choice = registry.choose(head_of(file.read(65536), path.name))
            assert isinstance(choice, str) or choice.name != "exchange_smtp", path


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    found = {}
    for path in sorted((REAL / "exchange_smtp").iterdir()):
        choice = registry.choose(head_of(path.read_bytes(), path.name))
        assert not isinstance(choice, str)
        assert choice.name == "exchange_smtp"
        rows = _parse(path.read_text().splitlines(), Context("e", variant=choice.match.variant))
        found[path.name.partition("_")[0]] = Counter(r["disposition"] for r in rows)
        events = [r for r in rows if r["disposition"] == "access_events"]
        assert [r["outcome"] for r in events] == ["failure"]
    assert found == {
        "Qazeer": {"ignored": 18, "mail_events": 2, "access_events": 1},
        "crowdsecurity": {"access_events": 1},
    }
