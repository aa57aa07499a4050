"""Postfix lines to rows: every shape of the sample, hostile and damaged lines, real samples, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import syslog
from transforms.formats.postfix import FORMAT
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLE = Path(__file__).parents[1] / "samples" / "postfix.log"
REAL = Path(__file__).parents[3] / "shared" / "samples" / "postfix"
HELPERS = {"tenant_domain"}
DISPOSITIONS = {"access_events", "mail_events", IGNORED, QUARANTINED}


def records(lines: list[str]) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    offsets = [sum(sizes[:at]) + at for at in range(len(sizes))] if len(lines) < 1000 else [0] * len(lines)
    columns = {"record_no": range(len(lines)), "byte_offset": offsets, "byte_length": sizes, "raw": lines}
    return pl.LazyFrame(columns, schema=RECORD_SCHEMA)


def parse(lines: list[str], **given: Any) -> pl.DataFrame:
    ctx = Context("e", **{"year": 2024, "year_basis": "given", **given})
    enveloped = syslog.envelope(records(lines), ctx).collect()
    mine = enveloped.filter(pl.col("program").str.contains(f"^(?:{FORMAT.programs})$"))
    rows = FORMAT.parse(mine.lazy(), ctx).collect().sort("record_no")
    assert rows["record_no"].to_list() == mine["record_no"].to_list()
    assert set(rows["disposition"]) <= DISPOSITIONS
    assert rows.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]) & pl.col("reason").is_null()).is_empty()
    return rows


def one(line: str, **given: Any) -> dict[str, Any]:
    return parse([line], **given).row(0, named=True)


def mail(event: str, outcome: str, op_raw: str, **more: object) -> dict[str, object]:
    return {"disposition": "mail_events", "event": event, "outcome": outcome, "op_raw": op_raw, **more}


def access(action: str, outcome: str, op_raw: str, **more: object) -> dict[str, object]:
    who = more.get("principal_id")
    shared = {"disposition": "access_events", "action": action, "outcome": outcome, "op_raw": op_raw}
    return _shared(who) | shared | more


def ignored(reason: str) -> dict[str, object]:
    return {"disposition": IGNORED, "reason": reason}


def quarantined(reason: str) -> dict[str, object]:
    return {"disposition": QUARANTINED, "reason": reason}


def _shared(who: object) -> dict[str, object]:
    named = {"principal_type": "user", "credential_id": f"pw:{who}"} if who else {}
    return named | {"credential_type": "password", "agg_level": "event", "bytes_known": False}


EXPECTED = [
    mail('connect', 'success', 'smtpd', src_host='mail.sender.example', src_ip_raw='192.0.2.10',
         session_id='2041'),
    mail('tls', 'success', 'smtpd', src_host='mail.sender.example', src_ip_raw='192.0.2.10',
         session_id='2041', tls_version='TLSv1.3', tls_cipher='TLS_AES_256_GCM_SHA384'),
    mail('receive', 'success', 'smtpd', queue_id='4B80DE08044', src_host='mail.sender.example',
         src_ip_raw='192.0.2.10'),
    mail('cleanup', 'success', 'cleanup', queue_id='4B80DE08044',
         message_id='<20240131235959.1@sender.example>'),
    mail('queue', 'success', 'qmgr', queue_id='4B80DE08044', status_text='queue active',
         mail_from='Alice@Sender.example', size_bytes=2703, n_rcpt=2),
    mail('deliver', 'success', 'lmtp', queue_id='4B80DE08044', rcpt='bob@Tenant-A.example',
         relay_host='mx1.gateway.example', delay_s=0.13, dsn='2.0.0',
         status_text='250 2.0.0 <bob@tenant-a.example> CFx Saved', tenant_domain='tenant-a.example'),
    mail('send', 'success', 'smtp', queue_id='4B80DE08044', rcpt='carol@tenant-b.example',
         orig_rcpt='info@tenant-b.example', relay_host='mx.tenant-b.example', dst_ip_raw='[2001:db8::25]:25',
         delay_s=1.5, dsn='2.0.0', status_text='250 2.0.0 Ok: queued as 73635C808F'),
    mail('remove', 'success', 'qmgr', queue_id='4B80DE08044'),
    mail('disconnect', 'success', 'smtpd',
         status_text='ehlo=2 starttls=1 mail=1 rcpt=2 data=1 quit=1 commands=8', src_host='mail.sender.example',
         src_ip_raw='192.0.2.10', session_id='2041'),
    access('auth', 'success', 'smtpd', tenant_domain='tenant-a.example', src_ip_raw='2001:db8::77',
         principal_id='dave@tenant-a.example', auth_method='PLAIN', protocol='smtp', session_id='3XyZ0B1c2Dz4',
         op_count=1),
    access('auth', 'success', 'smtpd', src_ip_raw='[198.51.100.7]:50211', principal_id='erin',
         auth_method='LOGIN', protocol='smtp', session_id='69EADD0808B', op_count=1),
    access('auth', 'failure', 'smtpd', reason='authentication failed', tenant_domain='tenant-a.example',
         src_ip_raw='203.0.113.10', principal_id='postmaster@tenant-a.example', auth_method='LOGIN',
         protocol='smtp', session_id='2061', op_count=1),
    access('auth', 'failure', 'smtpd', reason='authentication failure', src_ip_raw='203.0.113.10',
         auth_method='LOGIN', protocol='smtp', session_id='2061', op_count=3),
    access('auth', 'failure', 'smtpd', reason='connection lost to the authentication server',
         src_ip_raw='[203.0.113.11]:4711', auth_method='CRAM-MD5', protocol='smtp', session_id='2062', op_count=1),
    mail('receive', 'success', 'pickup', queue_id='7A11DD0808C', status_text='uid=300',
         mail_from='root@mx1.gateway.example'),
    mail('deliver', 'success', 'local', queue_id='7A11DD0808C', rcpt='root', relay_host='local', delay_s=0.02,
         dsn='2.0.0', status_text='delivered to mailbox'),
    mail('deliver', 'success', 'virtual', queue_id='8B22DD0808D', rcpt='frank@tenant-a.example',
         relay_host='virtual', delay_s=0.03, dsn='2.0.0', status_text='delivered to maildir',
         tenant_domain='tenant-a.example'),
    mail('defer', 'failure', 'pipe', queue_id='9C33DD0808E', rcpt='grace@tenant-a.example',
         relay_host='dovecot', delay_s=3.0, dsn='4.3.0', status_text='temporary failure',
         tenant_domain='tenant-a.example'),
    mail('bounce', 'failure', 'smtp', queue_id='AD44DD0808F', rcpt='heidi@remote.example',
         relay_host='mx.remote.example', dst_ip_raw='[198.51.100.25]:25', delay_s=0.06, dsn='5.7.1',
         status_text='host mx.remote.example[198.51.100.25] said: 554 5.7.1 <heidi@remote.ex'
             'ample>: Relay access denied (in reply to RCPT TO command)'),
    mail('other', 'success', 'bounce', queue_id='AD44DD0808F', status_text='sender non-delivery notification',
         internal_id='BE55DD08090'),
    mail('queue', 'success', 'qmgr', queue_id='BE55DD08090', status_text='queue active', mail_from='',
         size_bytes=4511, n_rcpt=1),
    mail('defer', 'failure', 'error', queue_id='CF66DD08091', rcpt='ivan@gone.example', relay_host='none',
         delay_s=432000.0, dsn='4.4.1',
         status_text='delivery temporarily suspended: connect to gone.example[198.51.100.26]:25: Connection timed out'),
    mail('expire', 'failure', 'qmgr', queue_id='CF66DD08091', status_text='returned to sender',
         mail_from='judy@tenant-a.example'),
    mail('other', 'success', 'discard', queue_id='D077DD08092', rcpt='trap@tenant-a.example',
         relay_host='none', delay_s=0.1, dsn='2.0.0', status_text='discarded'),
    mail('reject', 'failure', 'smtpd', rcpt='bob@tenant-a.example', dsn='5.5.2',
         status_text='504 5.5.2 <WIN-9QL4>: Helo command rejected: need fully-qualified hostname',
         mail_from='spam@bad.example', src_host='unknown', src_ip_raw='203.0.113.11', session_id='2062',
         helo='WIN-9QL4'),
    mail('reject', 'failure', 'smtpd', dsn='5.7.1', status_text='554 5.7.1 Service unavailable',
         src_host='unknown', src_ip_raw='203.0.113.11', session_id='2062'),
    mail('reject', 'failure', 'postscreen', rcpt='bob@tenant-a.example', dsn='5.7.1',
         status_text='550 5.7.1 Service unavailable; client [203.0.113.12] blocked using zen.example',
         mail_from='a@bad.example', src_ip_raw='[203.0.113.12]:41323', session_id='2080', helo='bad.example'),
    mail('reject', 'failure', 'cleanup', queue_id='E188DD08093', rcpt='carol@tenant-b.example', dsn='4.7.1',
         status_text='4.7.1 Greylisting in action', mail_from='b@bad.example', src_host='unknown',
         src_ip_raw='203.0.113.13', session_id='2042', helo='bad.example'),
    mail('other', 'unknown', 'cleanup', queue_id='E188DD08093', rcpt='carol@tenant-b.example',
         status_text='header Subject: Invoice, 2024; status=sent (x)', mail_from='b@bad.example',
         src_host='unknown', src_ip_raw='203.0.113.13', session_id='2042', helo='bad.example',
         subject='Invoice, 2024; status=sent (x)'),
    mail('hold', 'unknown', 'cleanup', queue_id='E188DD08094', status_text='header X-Virus: yes',
         mail_from='c@tenant-a.example', session_id='2042'),
    mail('hold', 'unknown', 'smtpd', queue_id='F299DD08095', rcpt='bob@tenant-a.example',
         status_text='<unknown[203.0.113.13]>: Client host triggers HOLD action', mail_from='d@bad.example',
         src_host='unknown', src_ip_raw='203.0.113.13', session_id='2062', helo='x'),
    mail('other', 'failure', 'smtp', queue_id='F299DD08095', relay_host='mx.remote.example',
         dst_ip_raw='198.51.100.25', status_text='450 4.2.1 try again later (in reply to RCPT TO command)'),
    mail('tls', 'success', 'smtp', relay_host='mx.remote.example', dst_ip_raw='[198.51.100.25]:25',
         session_id='2074', tls_version='TLSv1.2', tls_cipher='ECDHE-RSA-AES256-GCM-SHA384'),
    mail('other', 'failure', 'smtpd', status_text='lost connection after AUTH', src_host='unknown',
         src_ip_raw='203.0.113.11', session_id='2062'),
    mail('connect', 'success', 'postscreen', status_text='CONNECT', src_ip_raw='[203.0.113.12]:41323',
         session_id='2080'),
    mail('other', 'failure', 'postscreen', status_text='PREGREET 16 after 2.6',
         src_ip_raw='[203.0.113.12]:41323', session_id='2080'),
    mail('other', 'success', 'postscreen', status_text='PASS OLD', src_ip_raw='[192.0.2.10]:33211',
         session_id='2080'),
    mail('disconnect', 'success', 'postscreen', status_text='DISCONNECT', src_ip_raw='[203.0.113.12]:41323',
         session_id='2080'),
    mail('send', 'success', 'smtp', queue_id='10AADD08096',
         rcpt='"a>, relay=evil[6.6.6.6]:25, delay=1, status=sent (x"@remote.example',
         relay_host='mx.remote.example', dst_ip_raw='[198.51.100.25]:25', delay_s=1.7, dsn='2.0.0',
         status_text='250 ok, status=sent (really)'),
    mail('reject', 'failure', 'smtpd', dsn='5.5.2',
         status_text='504 5.5.2 <x; from=<boss@tenant-a.example> to=<y> proto=ESMTP helo=<z>'
             ': Helo command rejected; from=<e@bad.example> to=<bob@tenant-a.example> proto=ES'
             'MTP helo=<x; from=<boss@tenant-a.example> to=<y> proto=ESMTP helo=<z>',
         src_host='unknown', src_ip_raw='203.0.113.14', session_id='2062'),
    mail('receive', 'success', 'smtpd', queue_id='11BBDD08097', src_host='unknown', src_ip_raw='2001:db8::42'),
    ignored('postfix: warning or error of the server'),
    ignored('postfix: statistics'),
    ignored('postfix: service without messages'),
    ignored('postfix: TLS handshake begun'),
    ignored('postfix: no connection to the next hop'),
    ignored('postfix: no message or session in the line'),
    quarantined('postfix: delivery line cut or damaged'),
    quarantined('postfix: queue line cut or damaged'),
    quarantined('postfix: client line cut or damaged'),
    mail('bounce', 'failure', 'verify', queue_id='16AADD0809C', rcpt='probe@remote.example',
         relay_host='mx.remote.example', dst_ip_raw='[198.51.100.25]:25', delay_s=1.0, dsn='5.1.1',
         status_text='no such user'),
]  # fmt: skip


CONSTANT = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "direction"}
OPTIONAL: set[str] = set()


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return SAMPLE.read_text().splitlines()


def test_every_line_of_the_sample(sample: list[str]) -> None:
    rows = parse(sample)
    assert len(rows) == len(sample) == len(EXPECTED)
    for line, row, expected in zip(sample, rows.iter_rows(named=True), EXPECTED, strict=True):
        kept = {name: value for name, value in row.items() if value is not None and name not in CONSTANT | OPTIONAL}
        if expected["disposition"] in (IGNORED, QUARANTINED):
            kept = {name: kept[name] for name in ("disposition", "reason")}
        assert kept == {name: value for name, value in expected.items() if name not in OPTIONAL}, line


def test_columns_are_of_the_contracts(sample: list[str]) -> None:
    rows = parse(sample)
    for table in FORMAT.tables:
        schema = contract(table).polars_schema
        events = rows.filter(pl.col("disposition") == table)
        for name in events.columns:
            used = events[name].null_count() < len(events)
            if used and name not in HELPERS | {"disposition"}:
                assert events.schema[name] == schema[name], name
        for column in contract(table).columns:
            if column.enum and column.name in events.columns:
                assert set(events[column.name].drop_nulls()) <= set(column.enum), column.name
        assert events["ts"].null_count() == events["outcome"].null_count() == 0


def test_damaged_lines_give_one_row_each(sample: list[str]) -> None:
    damaged = [line[:at] for line in sample for at in range(16, len(line), 3)]
    damaged += [line[:at] + "\0" + line[at:] for line in sample for at in range(20, len(line), 17)]
    chance = random.Random(7)
    for _ in range(1500):
        first, second = chance.sample(sample, 2)
        damaged.append(first[: chance.randrange(40, len(first))] + second[chance.randrange(20, len(second)) :])
    enveloped = syslog.envelope(records(damaged), Context("e", year=2024, year_basis="given")).collect()
    assert len(enveloped) == len(damaged)
    parse(damaged)


def test_long_lines_are_read_in_time(sample: list[str]) -> None:
    rows = parse([line + "x, >[" * 200_000 for line in sample[::8]])
    assert set(rows["reason"]) == {"syslog: message is longer than 32 KiB"}
    parse([line + "x, >[" * 6_000 for line in sample])


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    for path in sorted(REAL.iterdir()):
        lines = path.read_text(errors="replace").split("\n")
        rows = parse(lines)
        assert len(rows) == sum(1 for line in lines if line.strip())
        assert QUARANTINED not in rows["disposition"], path.name


def test_times_without_a_year_that_do_not_exist_are_quarantined() -> None:
    line = "Feb 29 00:00:00 mx1 postfix/qmgr[900]: 4B80DE08044: removed"
    row = one(line, year=2023)
    assert (row["disposition"], row["reason"]) == (QUARANTINED, "time: 29 February in a year that has none")
    assert one(line, year=2024)["event"] == "remove"
    row = one(line, year=None, year_basis="none")
    assert (row["disposition"], row["reason"]) == (QUARANTINED, "time: the year is not known")


def test_reasons_hold_no_words_of_the_log() -> None:
    word = "zebra"
    lines = [
        f"Feb  1 00:00:00 mx1 postfix/smtpd[1]: warning: {word}",
        f"Feb  1 00:00:00 mx1 postfix/smtpd[1]: 4B80DE08044: to=<{word}",
        f"Feb  1 00:00:00 mx1 postfix/smtpd[1]: {word}",
        f"Feb  1 00:00:00 mx1 postfix/smtpd[1]: warning: {word}[192.0.2.1]: SASL PLAIN authentication failed: {word}",
    ]
    assert not any(word in row for row in parse(lines)["reason"])


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_.+="), min_size=1, max_size=12)
DOMAIN = st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True)
PLAIN = st.builds("{}@{}".format, WORD, DOMAIN)
QUOTED = st.builds('"{}"@{}'.format, st.text(" >,<(=)[]:;ab", min_size=1, max_size=20), DOMAIN)
MAILBOX = PLAIN | QUOTED | st.just("")
IP = st.ip_addresses().map(str)
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
QUEUE_ID = st.from_regex(r"[0-9A-F]{8,12}", fullmatch=True) | st.from_regex(r"[0-9BCDFGHbcdfgh]{12,16}", fullmatch=True)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DELIVERED = {"sent": "send", "deferred": "defer", "bounced": "bounce", "expired": "expire"}


@QUICK
@given(
    QUEUE_ID, MAILBOX, st.none() | MAILBOX, DOMAIN, IP, st.booleans(), st.sampled_from(sorted(DELIVERED)), TEXT,
    st.decimals(0, 9999, places=2),
)  # fmt: skip
def test_delivery_round_trip(
    queue_id: str, rcpt: str, orig: str | None, relay: str, ip: str, reused: bool, status: str, text: str, delay: Any
) -> None:
    moved = f"orig_to=<{orig}>, " if orig is not None else ""
    reuse = "conn_use=3, " if reused else ""
    line = (
        f"Feb  1 00:00:00 mx1 postfix/smtp[1]: {queue_id}: to=<{rcpt}>, {moved}relay={relay}[{ip}]:25, {reuse}"
        f"delay={delay}, delays=0/0/0/0, dsn=2.0.0, status={status} ({text})"
    )
    row = one(line)
    assert row["disposition"] == "mail_events"
    read = {name: row[name] for name in ("queue_id", "rcpt", "orig_rcpt", "relay_host", "dst_ip_raw", "event", "dsn")}
    assert read == {
        "queue_id": queue_id, "rcpt": rcpt, "orig_rcpt": orig, "relay_host": relay, "dst_ip_raw": f"[{ip}]:25",
        "event": DELIVERED[status], "dsn": "2.0.0",
    }  # fmt: skip
    assert (row["delay_s"], row["status_text"]) == (float(delay), text)


@QUICK
@given(QUEUE_ID, DOMAIN, IP, st.none() | st.integers(1, 65535), st.none() | st.tuples(WORD, PLAIN | WORD))
def test_client_round_trip(queue_id: str, host: str, ip: str, port: int | None, sasl: tuple[str, str] | None) -> None:
    peer = f"{host}[{ip}]" + (f":{port}" if port else "")
    signed = f", sasl_method={sasl[0]}, sasl_username={sasl[1]}" if sasl else ""
    row = one(f"Feb  1 00:00:00 mx1 postfix/smtpd[1]: {queue_id}: client={peer}{signed}")
    assert row["src_ip_raw"] == (f"[{ip}]:{port}" if port else ip)
    if sasl is None:
        assert (row["disposition"], row["queue_id"], row["src_host"]) == ("mail_events", queue_id, host)
    else:
        assert (row["disposition"], row["session_id"]) == ("access_events", queue_id)
        assert (row["auth_method"], row["principal_id"]) == (sasl[0].upper(), sasl[1].lower())
