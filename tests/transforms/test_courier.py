"""Courier lines to rows: every shape of the sample, hostile and damaged lines, real samples, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry, syslog
from transforms.formats.courier import FORMAT
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"
CONSTANT = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "direction"}
DERIVED = {"principal_type", "mailbox_id", "credential_id", "credential_type", "ts_end", "bytes_known", "agg_level"}


def records(lines: list[str]) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    offsets = [sum(sizes[:at]) + at for at in range(len(sizes))] if len(lines) < 1000 else [0] * len(lines)
    columns = {"record_no": range(len(lines)), "byte_offset": offsets, "byte_length": sizes, "raw": lines}
    return pl.LazyFrame(columns, schema=RECORD_SCHEMA)


def parse(lines: list[str], ctx: Context | None = None) -> pl.DataFrame:
    ctx = ctx or Context("e", year=2024, year_basis="given")
    enveloped = syslog.envelope(records(lines), ctx).collect()
    mine = enveloped.filter(pl.col("program").str.contains(f"^(?:{FORMAT.programs})$"))
    rows = FORMAT.parse(mine.lazy(), ctx).collect().sort("record_no")
    assert rows["record_no"].to_list() == mine["record_no"].to_list()
    assert set(rows["disposition"]) <= {*FORMAT.tables, IGNORED, QUARANTINED}
    assert rows.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]) & pl.col("reason").is_null()).is_empty()
    return rows


def one(line: str) -> dict[str, Any]:
    return parse([line]).row(0, named=True)


def access(action: str, outcome: str, op_raw: str, **more: object) -> dict[str, object]:
    return {"disposition": "access_events", "action": action, "outcome": outcome, "op_raw": op_raw, **more}


def mail(event: str, outcome: str, op_raw: str, **more: object) -> dict[str, object]:
    return {"disposition": "mail_events", "event": event, "outcome": outcome, "op_raw": op_raw, **more}


def ignored(reason: str) -> dict[str, object]:
    return {"disposition": IGNORED, "reason": reason}


def quarantined(reason: str) -> dict[str, object]:
    return {"disposition": QUARANTINED, "reason": reason}


EXPECTED = [
    ignored('courier: connection without a login'),
    access('auth', 'success', 'LOGIN', op_count=1, principal_id='alice@tenant-a.example', protocol='pop3',
         session_id='[::ffff:192.0.2.10]:2981', src_ip_raw='[::ffff:192.0.2.10]:2981',
         tenant_domain='tenant-a.example'),
    access('session', 'success', 'LOGOUT', bytes_in=5936, bytes_out=22106902, principal_id='alice@tenant-a.example',
         protocol='pop3', reason='logout', session_id='[::ffff:192.0.2.10]:2981',
         src_ip_raw='[::ffff:192.0.2.10]:2981', tenant_domain='tenant-a.example', tls_version='TLS'),
    access('auth', 'success', 'LOGIN', op_count=1, principal_id='bob', protocol='pop3',
         src_ip_raw='::ffff:192.0.2.11'),
    access('session', 'success', 'LOGOUT', bytes_out=9191, principal_id='bob', protocol='pop3', reason='logout',
         src_ip_raw='::ffff:192.0.2.11'),
    access('session', 'success', 'DISCONNECTED', bytes_out=0, principal_id='bob', protocol='pop3',
         reason='disconnected', src_ip_raw='::ffff:192.0.2.11', tls_version='TLS'),
    access('session', 'success', 'TIMEOUT', bytes_in=1, bytes_out=2, principal_id='bob', protocol='pop3',
         reason='timeout', src_ip_raw='192.0.2.11'),
    ignored('courier: connection without a login'),
    ignored('courier: connection without a login'),
    access('auth', 'success', 'LOGIN', op_count=1, principal_id='carol@tenant-b.example', protocol='imap',
         session_id='[2001:db8::12]:57091', src_ip_raw='[2001:db8::12]:57091', tenant_domain='tenant-b.example',
         tls_version='TLS'),
    access('session', 'success', 'LOGOUT', bytes_in=635, bytes_out=1872, principal_id='carol@tenant-b.example',
         protocol='imap', reason='logout', src_ip_raw='2001:db8::12', tenant_domain='tenant-b.example',
         tls_version='TLS'),
    access('session', 'success', 'DISCONNECTED', bytes_out=769, principal_id='carol@tenant-b.example',
         protocol='imap', reason='disconnected', src_ip_raw='2001:db8::12', tenant_domain='tenant-b.example',
         tls_version='TLS'),
    access('session', 'success', 'Disconnected during shutdown by signal', bytes_in=1, bytes_out=2,
         principal_id='carol@tenant-b.example', protocol='imap', reason='disconnected during shutdown by signal',
         src_ip_raw='2001:db8::12', tenant_domain='tenant-b.example'),
    ignored('courier: connection without a login'),
    access('auth', 'failure', 'LOGIN FAILED', op_count=1, principal_id='admin@tenant-a.example', protocol='pop3',
         reason='login failed', src_ip_raw='::ffff:203.0.113.5', tenant_domain='tenant-a.example'),
    access('auth', 'failure', 'LOGIN FAILED', auth_method='PLAIN', op_count=1, protocol='imap', reason='login failed',
         src_ip_raw='::ffff:203.0.113.5', tls_version='TLS'),
    access('auth', 'failure', 'LOGIN FAILED', op_count=1, principal_id='x, ip=[203.0.113.66], port=[1]', protocol='imap',
         reason='login failed', session_id='[::ffff:203.0.113.6]:255', src_ip_raw='[::ffff:203.0.113.6]:255'),
    access('auth', 'failure', 'LOGIN FAILED', op_count=1, protocol='pop3', reason='login failed',
         src_ip_raw='::ffff:203.0.113.6'),
    access('auth', 'failure', 'LOGIN FAILED', op_count=3, principal_id='root', protocol='pop3', reason='login failed',
         src_ip_raw='::ffff:203.0.113.6'),
    access('dele', 'success', 'DELETED', item_count=1, principal_id='bob', protocol='pop3', src_ip_raw='192.0.2.11'),
    access('delete', 'success', 'EXPUNGED', item_count=1, principal_id='bob', protocol='imap',
         session_id='[192.0.2.11]:4000', src_ip_raw='[192.0.2.11]:4000'),
    ignored('courier: authdaemond'),
    ignored('courier: debug line'),
    ignored('courier: no access in the line'),
    quarantined('courier: line cut or damaged'),
    mail('connect', 'success', 'courieresmtpd', src_ip_raw='[::ffff:198.51.100.7]:4444'),
    mail('reject', 'failure', 'courieresmtpd', dsn='5.1.1', mail_from='spam@sender.example',
         rcpt='nobody@tenant-a.example', src_ip_raw='::ffff:203.0.113.7',
         status_text='550 5.1.1 User <nobody> unknown.'),
    mail('reject', 'failure', 'courieresmtpd', mail_from='', src_ip_raw='::ffff:203.0.113.7',
         status_text='513 Relaying denied.'),
    access('auth', 'failure', 'AUTH', auth_method='PLAIN', op_count=1, principal_id='admin', protocol='smtp',
         reason='login failed', src_ip_raw='::ffff:203.0.113.7'),
    access('auth', 'failure', 'AUTH', auth_method='LOGIN', op_count=1, principal_id='frank@tenant-a.example',
         protocol='smtp', reason='login failed', session_id='[::ffff:203.0.113.7]:43632',
         src_ip_raw='[::ffff:203.0.113.7]:43632', tenant_domain='tenant-a.example'),
    access('auth', 'failure', 'AUTH', op_count=1, protocol='smtp', reason='login failed', src_ip_raw='203.0.113.7'),
    access('auth', 'failure', 'AUTH', auth_method='PLAIN', op_count=1, protocol='smtp', reason='login failed',
         src_ip_raw='203.0.113.7'),
    mail('reject', 'failure', 'courieresmtpd', mail_from='a@nowhere.invalid', src_ip_raw='203.0.113.7',
         status_text='517 Domain does not exist: nowhere.invalid.'),
    ignored('courier: SMTP command error'),
    quarantined('courier: line cut or damaged'),
    mail('receive', 'success', 'courierd', helo='laptop', queue_id='0038C081.4D026173.000051A4',
         sasl_username='gina@tenant-a.example', src_host='client.example', src_ip_raw='::ffff:192.0.2.14'),
    mail('receive', 'success', 'courierd', helo='localhost', queue_id='0038C082.4D026173.000051A5',
         src_ip_raw='127.0.0.1'),
    mail('receive', 'success', 'courierd', queue_id='0038C083.4D026173.000051A6'),
    mail('queue', 'success', 'courierd', mail_from='gina@tenant-a.example', queue_id='0038C081.4D026173.000051A4',
         rcpt='hal@elsewhere.example', relay_host='elsewhere.example'),
    mail('queue', 'success', 'courierd', mail_from='gina@tenant-a.example', queue_id='0038C081.4D026173.000051A4',
         rcpt='bob'),
    mail('deliver', 'success', 'courierlocal', mail_from='gina@tenant-a.example',
         queue_id='0038C081.4D026173.000051A4', rcpt='Bob@Tenant-A.example', size_bytes=329,
         status_text='Message delivered.', tenant_domain='tenant-a.example'),
    mail('other', 'unknown', 'courieresmtp', mail_from='gina@tenant-a.example', queue_id='0038C081.4D026173.000051A4',
         rcpt='hal@elsewhere.example', status_text='250 OK queued'),
    mail('send', 'success', 'courieresmtp', dst_ip_raw='198.51.100.9', mail_from='gina@tenant-a.example',
         queue_id='0038C081.4D026173.000051A4', rcpt='hal@elsewhere.example', relay_host='mx.elsewhere.example',
         size_bytes=329, status_text='delivered: mx.elsewhere.example [198.51.100.9]'),
    mail('other', 'success', 'courieresmtp', mail_from='gina@tenant-a.example', queue_id='0038C081.4D026173.000051A4',
         rcpt='hal@elsewhere.example', size_bytes=329, status_text='success'),
    mail('defer', 'failure', 'courieresmtp', mail_from='', queue_id='0038C084.4D026173.000051A7',
         rcpt='ida@elsewhere.example', status_text='deferred'),
    mail('bounce', 'failure', 'courieresmtp', mail_from='', queue_id='0038C084.4D026173.000051A7',
         rcpt='ida@elsewhere.example', status_text='failure'),
    mail('remove', 'success', 'courierd', queue_id='0038C081.4D026173.000051A4'),
    ignored('courier: no access in the line'),
    quarantined('courier: line cut or damaged'),
]  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return (SAMPLES / "courier.log").read_text().splitlines()


def test_every_line_of_the_sample(sample: list[str]) -> None:
    rows = parse(sample)
    assert len(rows) == len(sample) == len(EXPECTED)
    for line, row, expected in zip(sample, rows.iter_rows(named=True), EXPECTED, strict=True):
        kept = {name: value for name, value in row.items() if value is not None and name not in CONSTANT | DERIVED}
        if expected["disposition"] in (IGNORED, QUARANTINED):
            kept = {name: kept[name] for name in ("disposition", "reason")}
        assert kept == expected, line


def test_columns_follow_from_others(sample: list[str]) -> None:
    rows = parse(sample).filter(pl.col("disposition") == "access_events")
    for row in rows.iter_rows(named=True):
        who = row["principal_id"]
        assert row["principal_type"] == (("anonymous" if who == "anonymous" else "user") if who else None)
        assert row["credential_id"] in (f"pw:{who}" if who else None, None)
        assert (row["credential_type"] == "password") == (row["credential_id"] is not None)
        assert row["agg_level"] == ("session" if row["ts_end"] else "event")
        assert row["ts_end"] in (None, row["ts"])
        assert row["bytes_known"] == (row.get("bytes_out") is not None)


def test_columns_are_of_the_contracts(sample: list[str]) -> None:
    rows = parse(sample)
    for table in FORMAT.tables:
        schema = contract(table).polars_schema
        events = rows.filter(pl.col("disposition") == table)
        for name in events.columns:
            if events[name].null_count() < len(events) and name not in {"disposition", "tenant_domain"}:
                assert events.schema[name] == schema[name], name
        for column in contract(table).columns:
            if column.enum and column.name in events.columns:
                assert set(events[column.name].drop_nulls()) <= set(column.enum), column.name
        required = {c.name for c in contract(table).columns if c.required} & set(events.columns)
        assert all(events[name].null_count() == 0 for name in required)


def test_damaged_lines_give_one_row_each(sample: list[str]) -> None:
    damaged = [line[:at] for line in sample for at in range(16, len(line), 4)]
    damaged += [
        line[:at] + mark + line[at:] for line in sample for at in range(20, len(line), 19) for mark in "\0\u202eé]"
    ]
    chance = random.Random(7)
    for _ in range(1500):
        first, second = chance.sample(sample, 2)
        damaged.append(first[: chance.randrange(30, len(first))] + second[chance.randrange(20, len(second)) :])
    enveloped = syslog.envelope(records(damaged), Context("e", year=2024, year_basis="given")).collect()
    assert len(enveloped) == len(damaged)
    parse(damaged)


def test_long_lines_are_read_in_time(sample: list[str]) -> None:
    rows = parse([line + "x, >[" * 200_000 for line in sample[::8]])
    assert set(rows["reason"]) == {"syslog: message is longer than 32 KiB"}
    parse([line + ", a=<[" * 5_000 for line in sample])


def test_blocks_give_the_rows_of_the_whole(sample: list[str]) -> None:
    whole = parse(sample)
    for size in (5, 7):  # lines of a block
        ctx, parts = Context("e", year=2024, year_basis="given"), []
        for at in range(0, len(sample), size):
            parts.append(FORMAT.parse(syslog.envelope(records(sample)[at : at + size], ctx), ctx).collect())
        assert (
            pl.concat(parts, how="diagonal")
            .sort("record_no")
            .select(sorted(whole.columns))
            .equals(whole.select(sorted(whole.columns)))
        )


def test_only_its_own_programs() -> None:
    others = [f for f in registry.formats() if f.programs and f.name != FORMAT.name]
    for tag in (
        "imapd",
        "pop3d",
        "imapd-ssl",
        "pop3d-ssl",
        "courierpop3login",
        "imaplogin",
        "courieresmtpd",
        "courierd",
        "esmtpd-msa",
    ):
        tags = pl.Series([tag])
        assert tags.str.contains(f"^(?:{FORMAT.programs})$").all(), tag
        assert not [f.name for f in others if tags.str.contains(f"^(?:{f.programs})$").any()], tag
    for tag in ("imap", "pop3", "imaps", "cyrus/imap", "pop3-login", "pop3(a)", "sshd"):
        assert not pl.Series([tag]).str.contains(f"^(?:{FORMAT.programs})$").any(), tag


def test_sample_is_chosen_as_syslog() -> None:
    data = (SAMPLES / "courier.log").read_bytes()
    choice = registry.choose(head_of(data, "x.log"))
    assert not isinstance(choice, str)
    assert choice.name == registry.SYSLOG


def test_passwords_are_not_kept(sample: list[str]) -> None:
    text = str(parse(sample).rows())
    assert "hunter2" not in text
    assert "AGh1bnRlcjIA" not in text


USER = st.from_regex(r"[a-z0-9._-]{1,10}(@[a-z]{1,8}\.example)?", fullmatch=True)
COUNT = st.integers(0, 10**12)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(USER, st.ip_addresses().map(str), st.integers(1, 65535), st.lists(COUNT, min_size=4, max_size=4), st.booleans())
def test_summary_round_trip(user: str, ip: str, port: int, n: list[int], tls: bool) -> None:
    counters = f"top={n[0]}, retr={n[1]}, rcvd={n[2]}, sent={n[3]}, time=4{', stls=1' if tls else ''}"
    row = one(f"Mar  3 08:00:09 pop1 pop3d: LOGOUT, user={user}, ip=[{ip}], port=[{port}], {counters}")
    assert (row["principal_id"], row["src_ip_raw"]) == (user, f"[{ip}]:{port}")
    assert (row["bytes_in"], row["bytes_out"]) == (n[2], n[3])
    assert row["tls_version"] == ("TLS" if tls else None)


HOSTILE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@QUICK
@given(HOSTILE | HOSTILE.map(lambda text: text + ", ip=[203.0.113.66], port=[1]"), st.ip_addresses().map(str))
def test_the_address_is_the_last(user: str, ip: str) -> None:
    row = one(f"Mar  3 08:00:09 pop1 imapd: LOGIN FAILED, user={user}, ip=[{ip}]")
    assert (row["principal_id"], row["src_ip_raw"], row["outcome"]) == (user.strip().lower(), ip, "failure")


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    found = {}
    for path in sorted((REAL / "courier").iterdir()):
        rows = parse(path.read_text(errors="replace").splitlines())
        found[path.stem] = sorted(rows["disposition"].value_counts().rows())
    assert found == {
        "fail2ban_fail2ban__courier-auth": [("access_events", 6)],
        "fail2ban_fail2ban__courier-smtp": [("access_events", 3), ("mail_events", 5)],
    }
