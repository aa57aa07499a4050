"""Exim: the sample line by line, damaged lines, blocks, syslog, real samples, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry, syslog
from transforms.formats.exim import FORMAT
from transforms.framing import head_of
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"
DISPOSITIONS = {"access_events", "mail_events", CONTINUATION, IGNORED, QUARANTINED}


def records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    numbers = range(first, first + len(lines))
    columns = {"record_no": numbers, "byte_offset": [0] * len(lines), "byte_length": sizes, "raw": lines}
    return pl.LazyFrame(columns, schema=RECORD_SCHEMA)


def checked(rows: pl.DataFrame, numbers: list[int]) -> pl.DataFrame:
    rows = rows.sort("record_no")
    assert rows["record_no"].to_list() == numbers
    assert set(rows["disposition"]) <= DISPOSITIONS
    assert rows.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]) & pl.col("reason").is_null()).is_empty()
    events = rows.filter(pl.col("disposition").is_in(["access_events", "mail_events"]))
    assert not len(events) or events["ts"].null_count() == events["outcome"].null_count() == 0
    return rows


def parse(lines: list[str], ctx: Context | None = None) -> pl.DataFrame:
    rows = FORMAT.parse(records(lines), ctx or Context("e")).collect()
    return checked(rows, list(range(len(lines))))


def through_syslog(lines: list[str], **given: Any) -> pl.DataFrame:
    ctx = Context("e", **{"year": 2024, "year_basis": "given", **given})
    enveloped = syslog.envelope(records(lines), ctx).collect()
    mine = enveloped.filter(pl.col("program").str.contains(f"^(?:{FORMAT.programs})$"))
    return checked(FORMAT.parse(mine.lazy(), ctx).collect(), mine["record_no"].to_list())


def one(entry: str) -> dict[str, Any]:
    return parse([f"2024-02-01 00:00:00 {entry}"]).row(0, named=True)


def kept(row: dict[str, Any]) -> dict[str, Any]:
    constant = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "direction"}
    if row["disposition"] in (IGNORED, QUARANTINED, CONTINUATION):
        return {name: row[name] for name in ("disposition", "reason") if row[name] is not None}
    return {name: value for name, value in row.items() if value is not None and name not in constant}


def mail(event: str, outcome: str, **more: object) -> dict[str, object]:
    return {"disposition": "mail_events", "event": event, "outcome": outcome, **more}


def failed(who: str | None, **more: object) -> dict[str, object]:
    named = {"principal_id": who, "principal_type": "user", "credential_id": f"pw:{who}"} if who else {}
    shared = {"disposition": "access_events", "protocol": "smtp", "action": "auth", "outcome": "failure", "op_count": 1}
    return shared | named | {"credential_type": "password", "agg_level": "event", "bytes_known": False} | more


def ignored(reason: str) -> dict[str, object]:
    return {"disposition": IGNORED, "reason": reason}


def quarantined(reason: str) -> dict[str, object]:
    return {"disposition": QUARANTINED, "reason": reason}


ID = [f"1rVJqk-0005M{last}" for last in ("D-02", "D-03", "E-04", "E-05", "E-06")]
MX = {"relay_host": "mx.remote.example", "dst_ip_raw": "198.51.100.25"}
TLS12 = {"tls_version": "TLSv1.2", "tls_cipher": "ECDHE-RSA-AES256-GCM-SHA384"}
TLS13 = {"tls_version": "TLSv1.3", "tls_cipher": "TLS_AES_128_GCM_SHA256"}
B = {"helo": "b", "src_ip_raw": "203.0.113.13"}
REMOTE = "SMTP error from remote mail server after"
DAVE = dict(
    op_raw="<=", session_id="2061", mail_from="dave@tenant-a.example", src_ip_raw="[198.51.100.7]:50211", **TLS13,
    sasl_username="Dave@Tenant-A.example", tenant_domain="tenant-a.example", size_bytes=1911,
    message_id="<ab12@tenant-a.example>",
)  # fmt: skip
EXPECTED = [
    ignored("exim: daemon"),
    mail("connect", "success", op_raw="SMTP connection from", src_ip_raw="[192.0.2.10]:41000",
         status_text="(TCP/IP connection count = 1)"),
    mail("receive", "success", op_raw="<=", queue_id="1rVJqd-0005MB-00", mail_from="Alice@sender.example",
         src_host="mail.sender.example", src_ip_raw="[192.0.2.10]:41000", tls_version="TLSv1.3",
         tls_cipher="TLS_AES_256_GCM_SHA384", size_bytes=2703, message_id="<20240131235959.1@sender.example>",
         subject='Invoice "2024" for you', rcpt="bob@tenant-a.example",
         recipients=["bob@tenant-a.example", "carol@tenant-b.example"], n_rcpt=2,
         status_text='CV=yes DN="C=XX,O=Sender, Inc.,CN=mail.sender.example"'),
    mail("deliver", "success", op_raw="=>", queue_id="1rVJqd-0005MB-00", mail_from="Alice@sender.example",
         rcpt="bob@tenant-a.example", status_text="bob", relay_host="local_delivery", size_bytes=2810, delay_s=1.2,
         tenant_domain="tenant-a.example"),
    mail("send", "success", op_raw="=>", queue_id="1rVJqd-0005MB-00", mail_from="Alice@sender.example",
         rcpt="carol@tenant-b.example", orig_rcpt="info@tenant-b.example", relay_host="mx.tenant-b.example",
         dst_ip_raw="[2001:db8::25]:25", **TLS12, status_text='250 2.0.0 Ok: queued as "73635C808F"', dsn="2.0.0",
         delay_s=2.0),
    mail("send", "success", op_raw="->", queue_id="1rVJqd-0005MB-00", rcpt="erin@tenant-b.example",
         relay_host="mx.tenant-b.example", dst_ip_raw="2001:db8::25",
         status_text="250 2.0.0 Ok: queued as 73635C808F", dsn="2.0.0"),
    mail("remove", "success", op_raw="Completed", queue_id="1rVJqd-0005MB-00", delay_s=63.0),
    mail("disconnect", "success", op_raw="SMTP connection from", src_host="mail.sender.example",
         src_ip_raw="[192.0.2.10]:41000", status_text="closed by QUIT"),
    mail("receive", "success", queue_id="10HmaX-000000005vi-0000", **DAVE),
    mail("receive", "success", queue_id="10HmaX-000000005vj-0000", src_host="pc.example", helo="laptop", **DAVE),
    mail("receive", "success", op_raw="<=", queue_id="1rVJqj-0005MC-01", mail_from="",
         internal_id="1rVJqd-0005MB-00", status_text="U=Debian-exim", size_bytes=4511),
    mail("receive", "success", op_raw="(=", queue_id=ID[0], mail_from="frank@bad.example", helo="bad.example",
         src_ip_raw="203.0.113.9", size_bytes=900),
    mail("bounce", "failure", op_raw="**", queue_id=ID[0], mail_from="frank@bad.example",
         rcpt="grace@tenant-a.example", orig_rcpt="sales@tenant-a.example", relay_host="mx.remote.example",
         dst_ip_raw="[198.51.100.25]:25", **TLS12, dsn="5.1.1",
         status_text=f"{REMOTE} RCPT TO:<grace@tenant-a.example>: 550 5.1.1 <grace@tenant-a.example>: no such user"),
    mail("bounce", "failure", op_raw="**", queue_id=ID[1], rcpt="heidi@tenant-a.example", mail_from="",
         status_text="Unrouteable address"),
    mail("expire", "failure", op_raw="**", queue_id=ID[1], rcpt="ivan@gone.example",
         status_text="retry timeout exceeded"),
    mail("defer", "failure", op_raw="==", queue_id=ID[1], rcpt="judy@remote.example", **MX, dsn="4.7.1",
         status_text=f"{REMOTE} RCPT TO:<judy@remote.example>: 451 4.7.1 Greylisted"),
    mail("defer", "failure", op_raw="==", queue_id=ID[1], rcpt="judy@remote.example",
         relay_host="mx2.remote.example", dst_ip_raw="198.51.100.26",
         status_text=f"{REMOTE} MAIL FROM:<a@b.example>: host mx2.remote.example [198.51.100.26]: 421 try later"),
    mail("defer", "failure", op_raw="==", queue_id=ID[1], rcpt="kim@remote.example",
         status_text="retry time not reached"),
    mail("other", "failure", queue_id=ID[1], **MX, status_text="Connection timed out"),
    mail("hold", "unknown", queue_id=ID[1], status_text="Frozen (delivery error message)"),
    ignored("exim: remark about a message"),
    mail("remove", "success", op_raw="removed", queue_id=ID[1], status_text="removed by root"),
    mail("deliver", "success", op_raw="=>", queue_id=ID[2], rcpt="liam@tenant-a.example", relay_host="address_pipe",
         status_text="|/usr/bin/procmail -a x", tenant_domain="tenant-a.example"),
    mail("other", "success", op_raw="=>", queue_id=ID[2], rcpt="trap@tenant-a.example", status_text=":blackhole:"),
    mail("other", "unknown", op_raw="*>", queue_id=ID[2], rcpt="mia@remote.example", **MX),
    mail("send", "success", op_raw=">>", queue_id=ID[3], rcpt="noah@remote.example", **MX, status_text="250 OK"),
    mail("verdict", "success", queue_id=ID[3],
         status_text="DKIM: d=sender.example s=mail c=relaxed/relaxed a=rsa-sha256 b=2048 [verification succeeded]"),
    mail("send", "success", op_raw="=>", queue_id=ID[3], **MX, status_text='250 ok" QT=9s',
         rcpt='"a R=x T=y H=evil [192.0.2.66] b"@remote.example'),
    failed("postmaster@tenant-a.example", op_raw="dovecot_login", auth_method="LOGIN", helo="WIN-9QL4",
           reason="incorrect authentication data", src_ip_raw="[203.0.113.10]:55379",
           tenant_domain="tenant-a.example"),
    failed("olga", op_raw="cram", auth_method="CRAM-MD5", helo="x", src_ip_raw="203.0.113.11",
           reason="authentication temporarily not possible"),
    failed(None, op_raw="plain_any_login", auth_method="PLAIN_ANY_LOGIN", src_ip_raw="203.0.113.12",
           reason="authentication failed"),
    mail("reject", "failure", op_raw="rejected RCPT", helo="bad.example", src_ip_raw="[203.0.113.11]:4711", **TLS12,
         mail_from="spam@bad.example", rcpt="bob@tenant-a.example", status_text="550 5.7.1 relay not permitted",
         dsn="5.7.1"),
    mail("reject", "failure", op_raw="temporarily rejected RCPT", src_host="pc.example", helo="pc",
         src_ip_raw="198.51.100.7", mail_from="dave@tenant-a.example", sasl_username="dave@tenant-a.example",
         tenant_domain="tenant-a.example", rcpt="x@y.example", status_text="too many messages"),
    mail("reject", "failure", op_raw="temporarily rejected connection", src_host="mail.bad.example",
         src_ip_raw="[203.0.113.13]:9999", status_text='"Host is ratelimited (1.9/1h max:1.2)"'),
    mail("other", "failure", op_raw="sender verify fail", **B, mail_from="nobody@bad.example",
         status_text="no such user"),
    mail("reject", "failure", op_raw="rejected RCPT", **B, rcpt="carol@tenant-b.example", status_text="no",
         mail_from='"a> rejected RCPT <boss@tenant-a.example>: x"@bad.example'),
    mail("reject", "failure", op_raw="rejected MAIL", **B, mail_from="list@bad.example", status_text="blocked"),
    mail("reject", "failure", op_raw="rejected", src_ip_raw="203.0.113.13",
         status_text="H=(b c) [203.0.113.13] F=<x@bad.example> rejected RCPT <carol@tenant-b.example>: odd greeting"),
    mail("other", "unknown", op_raw="Warning:", **B, status_text="listed at zen.example"),
    mail("reject", "failure", op_raw="rejected EHLO from", src_ip_raw="203.0.113.14",
         status_text="syntactically invalid argument(s): x(y"),
    mail("disconnect", "unknown", op_raw="no MAIL in SMTP connection from", helo="probe",
         src_ip_raw="[203.0.113.14]:4000", status_text="D=0.2s C=EHLO,QUIT"),
    mail("disconnect", "failure", op_raw="unexpected disconnection while reading SMTP command from",
         src_ip_raw="203.0.113.15", status_text="D=1s"),
    mail("disconnect", "failure", op_raw="SMTP command timeout on connection from", src_host="h.example",
         src_ip_raw="[203.0.113.15]:77", status_text="D=5m"),
    mail("tls", "failure", op_raw="TLS error on connection from", helo="scan", src_ip_raw="[203.0.113.16]:5000",
         status_text="(SSL_accept): error:1408F10B:SSL routines:ssl3_get_record:wrong version number"),
    mail("reject", "failure", op_raw="SMTP protocol synchronization error", src_ip_raw="[203.0.113.17]:6000",
         status_text="SMTP protocol synchronization error (input sent without waiting for greeting): rejected "
                     'connection from H=[203.0.113.17]:6000 input="GET / HTTP/1.1\\r\\n"'),
    mail("disconnect", "failure", op_raw="SMTP call from", helo="bot", src_ip_raw="[203.0.113.18]:7000",
         status_text='dropped: too many nonmail commands (last was "AUTH LOGIN")'),
    mail("reject", "failure", op_raw="Connection from", src_ip_raw="[203.0.113.19]:1",
         status_text="refused: too many connections"),
    ignored("exim: name lookup"),
    ignored("exim: queue run"),
    ignored("exim: command line"),
    mail("tls", "failure", op_raw="SSL verify error", src_ip_raw="203.0.113.22",
         status_text="depth=0 error=certificate revoked cert=/CN=mail.bad.example"),
    ignored("exim: no message or session in the line"),
    mail("reject", "failure", op_raw="rejected", queue_id=ID[4], **B, mail_from="big@bad.example",
         status_text="message too big: read=56725188 max=52428800"),
    quarantined("exim: arrival line cut or damaged"),
    quarantined("exim: delivery line cut or damaged"),
    quarantined("exim: delivery failure cut or damaged"),
    quarantined("time: no such day or time"),
    ignored("blank line"),
    quarantined("exim: line has no time and belongs to no rejection"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return (SAMPLES / "exim.log").read_text().splitlines()


def test_every_line_of_the_sample(sample: list[str]) -> None:
    rows = parse(sample)
    for line, row, expected in zip(sample, rows.iter_rows(named=True), EXPECTED, strict=True):
        assert kept(row) == expected, line
    times = rows.select(pl.col("ts").dt.strftime("%d %H:%M:%S%.3f"), "ts_basis", "ts_raw")
    assert times.row(2) == ("01 00:00:00.000", "assumed_zone", "2024-02-01 00:00:00")
    assert times.row(8) == ("31 23:00:05.712", "offset", "2024-02-01 00:00:05.712 +0100")
    assert set(rows["direction"].drop_nulls()) == {"unknown"}


def test_local_times_are_read_in_the_zone() -> None:
    rows = parse(["2024-07-01 12:00:00 1rVJqd-0005MB-00 Completed"], Context("e", tz="Europe/Berlin"))
    assert rows["ts"].dt.strftime("%H:%M").to_list() == ["10:00"]


def test_columns_are_of_the_contracts(sample: list[str]) -> None:
    rows = parse(sample)
    for table in FORMAT.tables:
        events = rows.filter(pl.col("disposition") == table)
        schema = contract(table).polars_schema
        for name in events.columns:
            if events[name].null_count() < len(events) and name not in {"tenant_domain", "disposition"}:
                assert events.schema[name] == schema[name], name
        for column in contract(table).columns:
            if column.enum and column.name in events.columns:
                assert set(events[column.name].drop_nulls()) <= set(column.enum), column.name


def test_headers_of_the_reject_log_are_continuations() -> None:
    lines = (SAMPLES / "exim_reject.log").read_text().splitlines()
    rows = parse(lines)
    seen = [name[0] for name in rows["disposition"]]
    assert "".join(seen) == "mm" + "c" * 13 + "icc" + "mcm" + "q"
    first, second = rows.row(1, named=True), rows.row(18, named=True)
    assert (first["op_raw"], first["src_ip_raw"]) == ("rejected after DATA", "[203.0.113.20]:4001")
    assert first["status_text"] == "message contains malware (Eicar-Test-Signature)"
    assert (second["op_raw"], second["mail_from"]) == ("rejected by local_scan", "")
    folded = "\t2024-02-01 00:00:00 1rVJqd-0005MB-00 <= boss@tenant-a.example U=root P=local S=1"
    assert parse([lines[1], folded])["disposition"].to_list() == ["mail_events", CONTINUATION]
    assert parse([folded])["disposition"].to_list() == [QUARANTINED]


def test_blocks_give_the_same_rows(sample: list[str]) -> None:
    lines = sample + (SAMPLES / "exim_reject.log").read_text().splitlines()
    whole = parse(lines)
    for at in range(0, len(lines), 5):
        ctx = Context("e")
        parts = [FORMAT.parse(records(lines[:at]), ctx), FORMAT.parse(records(lines[at:], at), ctx)]
        rows = pl.concat([part.collect() for part in parts], how="diagonal").sort("record_no")
        assert rows.select(sorted(rows.columns)).equals(whole.select(sorted(rows.columns))), at


def test_through_syslog() -> None:
    arrival = "1rVJqd-0005MB-00 <= a@b.example H=(h) [192.0.2.10] P=smtp S=7"
    failure = "plain authenticator failed for (h) [192.0.2.10]: 535 Incorrect authentication data (set_id=X)"
    refused = "H=(h) [192.0.2.10] F=<a@b.example> rejected after DATA: no"
    rows = through_syslog(
        [
            f"Feb  1 00:00:09 mx exim[77]: 2023-12-31 23:59:59 {arrival}",
            f"Feb  1 00:00:10 mx exim4[78]: {arrival}",
            f"Feb  1 00:00:11 mx exim[79]: message repeated 3 times: [ {failure}]",
            f"Feb  1 00:00:12 mx exim[80]: [1/3] 2024-02-01 00:00:12 {refused}",
            "Feb  1 00:00:12 mx exim[80]: [2/3]   Subject: hello",
            r"Feb  1 00:00:12 mx exim[80]: [3\3] of 2024-02-01 00:00:12 Completed",
            "Feb 30 00:00:12 mx exim[80]: Start queue run: pid=1",
        ]
    )
    wanted = ["mail_events", "mail_events", "access_events", "mail_events", CONTINUATION, CONTINUATION, QUARANTINED]
    assert rows["disposition"].to_list() == wanted
    assert rows["ts"].dt.strftime("%Y-%m-%d %H:%M:%S").to_list()[:3] == [
        "2023-12-31 23:59:59", "2024-02-01 00:00:10", "2024-02-01 00:00:11",
    ]  # fmt: skip
    assert (rows["host"][0], rows["session_id"][1], rows["op_count"][2]) == ("mx", "78", 3)


def test_damaged_lines_give_one_row_each(sample: list[str]) -> None:
    damaged = [line[:at] for line in sample for at in range(1, len(line), 4)]
    damaged += [line[:at] + "\0\x1bé" + line[at:] for line in sample for at in range(0, len(line), 19)]
    chance = random.Random(7)
    for _ in range(1000):
        first, second = chance.sample(sample, 2)
        damaged.append(first[: chance.randrange(len(first) + 1)] + second[chance.randrange(len(second) + 1) :])
    parse(damaged)
    through_syslog([f"Feb  1 00:00:00 mx exim[1]: {line[20:]}" for line in damaged])


def test_long_lines_are_read_in_time(sample: list[str]) -> None:
    timed = [line for line in sample if line[:4] == "2024" and "02-31" not in line]
    long = parse([line + ' x" [1] (<' * 50_000 for line in timed[::8]])
    assert set(long["reason"]) == {"exim: entry is longer than 32 KiB"}
    parse([line + ' x" [1] (<' * 3_000 for line in timed])


def test_a_greeting_that_imitates_an_entry_hides_the_client_only() -> None:
    row = one("1rVJqd-0005MB-00 <= a@b.example H=(x) [192.0.2.66] P=smtp S=1 (y) [203.0.113.9] P=smtp S=700")
    assert (row["disposition"], row["mail_from"], row["src_ip_raw"]) == ("mail_events", "a@b.example", None)


def test_reasons_hold_no_words_of_the_log() -> None:
    word = "zebra"
    entries = [f"1rVJqd-0005MB-00 <= {word}", f"1rVJqd-0005MB-00 => {word}", f"{word}", f"1rVJqd-0005MB-00 {word}"]
    entries.append(f"{word} authenticator failed for [192.0.2.1]: 535 {word} (set_id=x)")
    rows = parse([f"2024-02-01 00:00:00 {entry}" for entry in entries] + [word])
    assert not any(word in reason for reason in rows["reason"].drop_nulls())


def test_own_files_are_recognised_and_no_others(sample: list[str]) -> None:
    folders = [*SAMPLES.iterdir(), *(p for p in REAL.glob("*/*"))]
    for path in folders:
        mine = path.name in ("exim.log", "exim_reject.log") or path.parent.name == "exim"
        choice = registry.choose(head_of(path.read_bytes(), path.name))
        assert (getattr(choice, "name", "") == "exim") == mine, path
    for at in range(2, 40):
        data = "\n".join(sample[at:]).encode()
        assert registry.choose(head_of(data, "x")).name == "exim"  # type: ignore[union-attr]


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    counts = {}
    for path in sorted((REAL / "exim").iterdir()):
        rows = parse(path.read_text().splitlines())
        counts[path.name.split("__")[1]] = dict(rows["disposition"].value_counts().iter_rows())
    assert counts == {
        "exim-logs.log": {"access_events": 6, "mail_events": 6}, "mainlog": {"mail_events": 35},
        "rejectlog": {"mail_events": 4}, "exim_spec.log": {"mail_events": 6},
    }  # fmt: skip


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_.+"), min_size=1, max_size=12)
DOMAIN = st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True)
PLAIN = st.builds("{}@{}".format, WORD, DOMAIN)
QUOTED = st.builds(
    '"{}"@{}'.format,
    st.sampled_from([": ", "a> R=x", ") [1] b", "x, <y"]) | st.text(" >,<(=)[]:;ab", min_size=1, max_size=20),
    DOMAIN,
)
MAILBOX = PLAIN | QUOTED
IP = st.ip_addresses().map(str)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@QUICK
@given(
    MAILBOX | st.just("<>"), st.none() | DOMAIN, st.none() | DOMAIN, IP, st.none() | st.integers(1, 65535), TEXT, TEXT,
    st.none() | PLAIN, PLAIN, st.lists(MAILBOX, max_size=3),
)  # fmt: skip
def test_arrival_round_trip(
    sender: str, host: str | None, helo: str | None, ip: str, port: int | None, subject: str, name: str,
    user: str | None, ident: str, rcpts: list[str],
) -> None:  # fmt: skip
    peer = "".join([f"{host} " if host else "", f"({helo}) " if helo else "", f"[{ip}]", f":{port}" if port else ""])
    signed = f" A=login:{user}" if user else ""
    listed = " for " + " ".join(rcpts) if rcpts else ""
    row = one(
        f"1rVJqd-0005MB-00 <= {sender} H={peer} P=esmtps{'a' if user else ''} X=TLS1.3:AES:256 CV=no "
        f"DN={quoted(name)}{signed} S=77 id={ident} T={quoted(subject)}{listed}"
    )
    assert row["disposition"] == "mail_events"
    names = ("src_host", "helo", "sasl_username", "size_bytes", "message_id", "subject", "rcpt")
    assert {name: row[name] for name in names} == {
        "src_host": host, "helo": helo, "sasl_username": user, "size_bytes": 77, "message_id": f"<{ident}>",
        "subject": subject, "rcpt": rcpts[0] if rcpts else None,
    }  # fmt: skip
    assert row["src_ip_raw"] == (f"[{ip}]:{port}" if port else ip)
    assert row["mail_from"] == ("" if sender == "<>" else sender)
    assert row["recipients"] == (rcpts if len(rcpts) > 1 else None)


@QUICK
@given(MAILBOX, st.none() | MAILBOX, DOMAIN, IP, TEXT, st.sampled_from(["=>", "->", "**", "=="]), st.integers(0, 86399))
def test_delivery_round_trip(
    rcpt: str, orig: str | None, host: str, ip: str, text: str, flag: str, seconds: int
) -> None:
    front = f"1rVJqd-0005MB-00 {flag} {rcpt}{f' <{orig}>' if orig else ''} R=r T=t"
    if flag in ("=>", "->"):
        row = one(f"{front} H={host} [{ip}] C={quoted(text)} QT={seconds // 60}m{seconds % 60}s")
        assert (row["event"], row["delay_s"]) == ("send", float(seconds))
    else:
        row = one(f"{front}{' defer (-1)' if flag == '==' else ''} H={host} [{ip}]: {text}")
        assert row["event"] == ("defer" if flag == "==" else "bounce")
    same = orig is None or orig.lower() == rcpt.lower()
    assert (row["rcpt"], row["orig_rcpt"], row["relay_host"]) == (rcpt, None if same else orig, host)
    assert (row["dst_ip_raw"], row["status_text"]) == (ip, text)
