"""Dovecot lines to rows: every shape of the sample, hostile and damaged lines, real samples, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import syslog
from transforms.formats.dovecot import FORMAT
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLE = Path(__file__).parents[1] / "samples" / "dovecot.log"
REAL = Path(__file__).parents[3] / "shared" / "samples" / "dovecot"
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
    named = {"principal_type": "user", "mailbox_id": who, "credential_id": f"pw:{who}", "credential_type": "password"}
    return named if who else {}


EXPECTED = [
    access('auth', 'success', 'pop3-login', principal_id='alice@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='PeYcgjjOGOisEQAB', auth_method='PLAIN',
         src_ip_raw='192.0.2.10', tls_version='TLS', op_count=1),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='alice@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='PeYcgjjOGOisEQAB', op_count=203,
         top_count=3, retr_count=200, dele_count=0, maildrop_n=200, maildrop_bytes=1048576, bytes_out=1049476,
         item_count=200),
    access('auth', 'success', 'pop3-login', principal_id='bob@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='abc+/1', auth_method='PLAIN',
         src_ip_raw='::ffff:192.0.2.11', tls_version='TLS', op_count=1),
    access('session', 'success', 'pop3', reason='Connection closed', principal_id='bob@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='abc+/1', op_count=4, top_count=0,
         retr_count=2, dele_count=2, maildrop_n=9, maildrop_bytes=81920, bytes_in=112, bytes_out=5043,
         item_count=2),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='carol', protocol='pop3',
         op_count=0, top_count=0, retr_count=0, dele_count=0, maildrop_n=1074, maildrop_bytes=294785727,
         bytes_out=0, item_count=0),
    access('session', 'success', 'pop3', reason='Disconnected for inactivity', principal_id='carol',
         protocol='pop3', op_count=1, top_count=0, retr_count=1, dele_count=0, maildrop_n=1, maildrop_bytes=5,
         bytes_in=17, bytes_out=300, item_count=1),
    access('auth', 'success', 'imap-login', principal_id='dave', protocol='imap', session_id='pid:12151',
         auth_method='CRAM-MD5', src_ip_raw='192.0.2.12', op_count=1),
    access('session', 'success', 'imap', reason='Logged out', principal_id='dave', protocol='imap',
         bytes_in=748, bytes_out=17264),
    access('session', 'success', 'imap', reason='Logged out', principal_id='erin@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='s1s1', bytes_in=1719, bytes_out=139719,
         item_count=12),
    access('session', 'success', 'imap', reason='Connection closed', principal_id='erin@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='s2s2', bytes_in=50, bytes_out=600,
         item_count=0),
    access('auth', 'failure', 'imap-login', reason='auth failed', principal_id='admin@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='imap', session_id='f1', auth_method='PLAIN',
         src_ip_raw='203.0.113.5', tls_version='TLS', op_count=3),
    access('auth', 'failure', 'pop3-login', reason='auth failed', principal_id='frank@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='f2', auth_method='PLAIN',
         src_ip_raw='203.0.113.5', tls_version='TLS', op_count=2),
    access('auth', 'failure', 'pop3-login', reason='auth failed', protocol='pop3', src_ip_raw='203.0.113.6',
         op_count=1),
    access('auth', 'failure', 'imap-login', reason='too many connections', principal_id='dave',
         protocol='imap', session_id='f3', auth_method='PLAIN', src_ip_raw='192.0.2.12', tls_version='TLS',
         op_count=1),
    access('auth', 'failure', 'imap-login', reason='plaintext authentication refused', protocol='imap',
         session_id='f4', src_ip_raw='203.0.113.7', op_count=1),
    ignored('dovecot: no auth attempts'),
    access('auth', 'failure', 'auth-worker', reason='unknown user', principal_id='grace',
         protocol='directory', src_ip_raw='203.0.113.9', op_count=1),
    access('auth', 'failure', 'auth-worker', reason='password mismatch',
         principal_id='heidi@tenant-a.example', tenant_domain='tenant-a.example', protocol='directory',
         session_id='f6', src_ip_raw='203.0.113.9', op_count=1),
    access('auth', 'failure', 'auth', reason='unknown user', principal_id='ivan@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='directory', src_ip_raw='2001:db8::9', op_count=1),
    access('auth', 'failure', 'auth-worker', reason='password mismatch', principal_id='judy',
         protocol='directory', src_ip_raw='203.0.113.9', op_count=1),
    ignored('dovecot: no access in the line'),
    mail('deliver', 'success', 'lda', tenant_domain='tenant-a.example', session_id='s3',
         message_id='<1@sender.example>', rcpt='bob@tenant-a.example', status_text='saved mail to INBOX'),
    mail('deliver', 'success', 'lmtp', tenant_domain='tenant-a.example', session_id='s4:1',
         message_id='<2@sender.example>', rcpt='bob@tenant-a.example',
         status_text="stored mail into mailbox 'INBOX'"),
    mail('deliver', 'success', 'lmtp', tenant_domain='tenant-b.example',
         message_id='<x: saved mail to Trash@sender.example>', rcpt='Carol@tenant-b.example',
         status_text="stored mail into mailbox 'Junk'"),
    mail('deliver', 'success', 'lda', message_id='<3@sender.example>', rcpt='apatosaurus',
         status_text='saved mail to INBOX'),
    mail('send', 'success', 'lda', tenant_domain='tenant-a.example', message_id='<4@sender.example>',
         rcpt='dave@elsewhere.example', orig_rcpt='dave@tenant-a.example'),
    mail('defer', 'failure', 'lda', tenant_domain='tenant-a.example', message_id='<5@sender.example>',
         rcpt='dave@tenant-a.example',
         status_text='save failed to INBOX: Quota exceeded (mailbox for user is full)'),
    access('proxy', 'success', 'pop3-login', principal_id='kim@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='p1', auth_method='PLAIN',
         src_ip_raw='192.0.2.13', tls_version='TLS', op_count=1),
    ignored('dovecot: end of a proxied session'),
    access('auth', 'success', 'submission-login', principal_id='kim@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='smtp', session_id='p2', auth_method='XOAUTH2',
         src_ip_raw='192.0.2.13', tls_version='TLS', op_count=1),
    ignored('dovecot: ManageSieve'),
    access('auth', 'success', 'imap-login', principal_id='x>, method=plain, rip=203.0.113.66, lip=1.1.1.1',
         protocol='imap', session_id='p4', auth_method='PLAIN', src_ip_raw='203.0.113.77', tls_version='TLS',
         op_count=1),
    ignored('dovecot: no access in the line'),
    ignored('dovecot: session without counters'),
    ignored('dovecot: no delivery in the line'),
    access('auth', 'success', 'imap-login', principal_id='lee@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='o1', auth_method='PLAIN',
         src_ip_raw='192.0.2.14', tls_version='TLS', op_count=1),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='lee@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='pop3', session_id='o2', op_count=2, top_count=0, retr_count=1,
         dele_count=1, maildrop_n=1, maildrop_bytes=10, bytes_out=10, item_count=1),
    access('auth', 'success', 'pop3-login', principal_id='mia@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='pop3', session_id='q1', auth_method='EXTERNAL',
         src_ip_raw='192.0.2.15', tls_version='TLS', op_count=1),
    quarantined('dovecot: session line cut or damaged'),
    quarantined('dovecot: login line cut or damaged'),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='nina@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='pid:9238', op_count=1186,
         bytes_in=11662, bytes_out=342280590, top_count=0, retr_count=593, dele_count=593, maildrop_n=593,
         maildrop_bytes=342245009, item_count=593),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='nina@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='pop3', session_id='r1', op_count=2, bytes_in=512,
         bytes_out=22000, top_count=0, retr_count=1, dele_count=1, maildrop_n=1, maildrop_bytes=21583,
         item_count=1),
    access('session', 'success', 'imap', reason='Logged out', principal_id='olaf@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='imap', src_ip_raw='::ffff:192.0.2.16', bytes_in=214,
         bytes_out=3328),
    access('session', 'success', 'pop3', reason='Logged out', principal_id='x, ip=[203.0.113.66]. y',
         protocol='pop3', src_ip_raw='203.0.113.78', op_count=2, bytes_in=24, bytes_out=60, top_count=0,
         retr_count=2, dele_count=0, maildrop_n=2, maildrop_bytes=50, item_count=2),
    access('session', 'success', 'imap-hibernate', reason='Connection closed',
         principal_id='erin@tenant-b.example', tenant_domain='tenant-b.example', protocol='imap',
         session_id='s7', bytes_in=9, bytes_out=482),
    access('session', 'success', 'submission', reason='Logged out', principal_id='kim@tenant-a.example',
         tenant_domain='tenant-a.example', protocol='smtp', session_id='s8', bytes_in=4000, bytes_out=300),
    access('session', 'success', 'pop3-login', reason='end of a proxied session',
         principal_id='kim@tenant-a.example', tenant_domain='tenant-a.example', protocol='pop3',
         session_id='p9', auth_method='PLAIN', src_ip_raw='192.0.2.13', tls_version='TLS', bytes_in=12,
         bytes_out=4312),
    ignored('dovecot: end of a proxied session'),
    access('auth', 'failure', 'imap-login', reason='auth failed', principal_id='paul@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='t1', auth_method='PLAIN',
         src_ip_raw='203.0.113.5', tls_version='TLS', op_count=4),
    access('auth', 'success', 'imap-login', principal_id='paul@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='t2', auth_method='SCRAM-SHA-256',
         src_ip_raw='192.0.2.17', tls_version='TLS', op_count=1),
    access('auth', 'failure', 'pop3-login', reason='login failed', principal_id='paul@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='pop3', auth_method='PLAIN', src_ip_raw='192.0.2.17',
         op_count=1),
    access('auth', 'failure', 'auth-worker', reason='password mismatch', principal_id='paul@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='directory', session_id='t1', src_ip_raw='203.0.113.5',
         op_count=1),
    mail('deliver', 'success', 'lmtp', tenant_domain='tenant-a.example', session_id='s9:1',
         message_id='<6@sender.example>', rcpt='bob@tenant-a.example', status_text="Stored mail into mailbox 'RSS Feeds'"),
    mail('send', 'success', 'lmtp', tenant_domain='tenant-a.example', session_id='s9:2',
         message_id='<7@sender.example>', rcpt='thief@elsewhere.example', orig_rcpt='bob@tenant-a.example'),
    mail('remove', 'success', 'lmtp', tenant_domain='tenant-a.example', session_id='s9:3',
         message_id='<8@sender.example>', rcpt='bob@tenant-a.example', status_text='marked message to be discarded if not explicitly delivered (discard action)'),
    mail('reject', 'failure', 'lmtp', tenant_domain='tenant-a.example', session_id='s9:4',
         message_id='<9@sender.example>', rcpt='bob@tenant-a.example', status_text='rejected message from <a@sender.example> (reject)'),
    mail('send', 'failure', 'lmtp', tenant_domain='tenant-a.example', session_id='s9:5',
         message_id='<10@sender.example>', rcpt='b@elsewhere.example', orig_rcpt='bob@tenant-a.example',
         status_text='failed to redirect message to <b@elsewhere.example>: timeout'),
    ignored('dovecot: no delivery in the line'),
    access('delete', 'success', 'expunge', principal_id='erin@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='u1', item_count=1,
         message_ids=['<12@tenant-b.example>'], folders=['Sent, Items']),
    access('move', 'success', 'copy', principal_id='erin@tenant-b.example', tenant_domain='tenant-b.example',
         protocol='imap', session_id='u1', item_count=1, message_ids=['<13@tenant-b.example>'],
         folders=['Trash']),
    access('delete', 'success', 'mailbox_delete', principal_id='erin@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='u1', folders=['Projects']),
    access('session', 'success', 'imap', reason='Inactivity', principal_id='erin@tenant-b.example',
         tenant_domain='tenant-b.example', protocol='imap', session_id='u2', bytes_in=1, bytes_out=2),
]  # fmt: skip


CONSTANT = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "direction"}
OPTIONAL = {"bytes_known", "agg_level", "ts_end", "credential_id", "credential_type"}


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


def test_blocks_give_the_rows_of_the_whole(sample: list[str]) -> None:
    ctx, parts = Context("e", year=2024, year_basis="given"), []
    for frame in (records(sample)[:33], records(sample)[33:]):
        enveloped = syslog.envelope(frame, ctx)
        parts.append(FORMAT.parse(enveloped, ctx).collect())
    split = pl.concat(parts, how="diagonal").sort("record_no")
    assert split.equals(parse(sample).select(split.columns))


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


def test_summary_ends_where_it_is_written(sample: list[str]) -> None:
    rows = parse(sample).filter(pl.col("agg_level") == "session")
    assert len(rows) > 5
    assert (rows["ts_end"] == rows["ts"]).all()
    assert rows["bytes_known"].all()


def test_passwords_are_not_kept(sample: list[str]) -> None:
    text = str(parse(sample).rows())
    assert "hunter2" not in text
    assert "21bd12" not in text


def test_numbers_that_are_too_large_are_quarantined() -> None:
    line = "Mar  3 08:00:09 pop1 dovecot: pop3(a)<1><s>: Disconnected: Logged out top=0/0, retr={}/1, del=0/1, size=1"
    assert one(line.format("9" * 30))["disposition"] == QUARANTINED
    assert one(line.format("9" * 15))["retr_count"] == 10**15 - 1


def test_own_log_file() -> None:
    lines = [
        "Jan 29 09:33:58 pop3-login: Info: Login: user=<a@b.example>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2",
        "2024-01-29 09:33:59 imap(John Doe)<4><s>: Info: Disconnected: Logged out in=1 out=2",
        "dovecot: Jan 29 09:34:00 Info: pop3-login: Login: user=<c>, method=PLAIN, rip=192.0.2.3, lip=192.0.2.2",
    ]
    rows = parse(lines)
    assert rows["principal_id"].to_list() == ["a@b.example", "john doe", "c"]
    assert rows["host"].null_count() == 3
    assert rows["ts"].dt.strftime("%H:%M:%S").to_list() == ["09:33:58", "09:33:59", "09:34:00"]


COUNT = st.integers(0, 10**12)
USER = st.from_regex(r"[a-z0-9._-]{1,10}(@[a-z]{1,8}\.example)?", fullmatch=True)
TOKEN = st.from_regex(r"[A-Za-z0-9+/]{4,16}", fullmatch=True)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(
    USER,
    st.none() | TOKEN.filter(lambda token: not token.isdigit()),
    st.lists(COUNT, min_size=7, max_size=7),
    st.booleans(),
)
def test_summary_round_trip(user: str, session: str | None, n: list[int], with_traffic: bool) -> None:
    tags = f"<77><{session}>" if session else ""
    traffic = f", in={n[0]}, out={n[3]}" if with_traffic else ""
    counters = f"top={n[0]}/{n[1]}, retr={n[2]}/{n[3]}, del={n[4]}/{n[5]}, size={n[6]}{traffic}"
    row = one(f"Mar  3 08:00:09 pop1 dovecot: pop3({user}){tags}: Disconnected: Logged out {counters}")
    assert (row["principal_id"], row["session_id"], row["protocol"]) == (user, session, "pop3")
    assert [row[name] for name in ("top_count", "retr_count", "dele_count", "maildrop_n", "maildrop_bytes")] == [
        n[0], n[2], n[4], n[5], n[6]
    ]  # fmt: skip
    assert row["bytes_out"] == (n[3] if with_traffic else n[1] + n[3])
    assert (row["bytes_in"], row["op_count"]) == (n[0] if with_traffic else None, n[0] + n[2] + n[4])


@QUICK
@given(USER, st.ip_addresses().map(str), TOKEN, st.sampled_from(["pop3", "imap"]), st.booleans())
def test_login_round_trip(user: str, ip: str, session: str, protocol: str, tls: bool) -> None:
    secured = ", TLS" if tls else ""
    line = f"Login: user=<{user}>, method=PLAIN, rip={ip}, lip=192.0.2.1, mpid=7{secured}, session=<{session}>"
    row = one(f"Mar  3 08:00:00 pop1 dovecot: {protocol}-login: {line}")
    assert (row["principal_id"], row["src_ip_raw"], row["session_id"]) == (user, ip, session)
    assert (row["protocol"], row["tls_version"]) == (protocol, "TLS" if tls else None)
