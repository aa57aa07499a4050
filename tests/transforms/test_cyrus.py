"""Cyrus lines to rows: every shape of the sample, logins remembered, hostile and damaged lines, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry, syslog
from transforms.formats.cyrus import FORMAT
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
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
    ignored('cyrus: no access in the line'),
    ignored('cyrus: no access in the line'),
    ignored('cyrus: no access in the line'),
    access('auth', 'success', 'login', auth_method='PLAINTEXT', op_count=1, principal_id='alice@tenant-a.example',
         protocol='pop3', session_id='pid:27783', src_ip_raw='192.0.2.10', tenant_domain='tenant-a.example'),
    access('session', 'success', 'counts', auth_method='PLAINTEXT', dele_count=3, item_count=12, op_count=16,
         principal_id='alice@tenant-a.example', protocol='pop3', retr_count=12, session_id='pid:27783',
         src_ip_raw='192.0.2.10', tenant_domain='tenant-a.example', top_count=1),
    ignored('cyrus: connection without a login'),
    access('auth', 'success', 'login', auth_method='APOP', op_count=1, principal_id='bob', protocol='pop3',
         session_id='box1-27784-1', src_ip_raw='2001:db8::11', tls_version='TLS'),
    access('session', 'success', 'counts', auth_method='APOP', dele_count=0, item_count=7, op_count=7,
         principal_id='bob', protocol='pop3', retr_count=7, session_id='box1-27784-1', src_ip_raw='2001:db8::11',
         tls_version='TLS', top_count=0),
    access('other', 'success', 'traffic', auth_method='APOP', bytes_in=90, bytes_out=70000, principal_id='bob',
         protocol='pop3', session_id='box1-27784-1', src_ip_raw='2001:db8::11', tls_version='TLS'),
    access('session', 'success', 'counts', dele_count=5, item_count=5, op_count=10, protocol='pop3', retr_count=5,
         session_id='pid:99', top_count=0),
    access('auth', 'success', 'login', auth_method='PLAINTEXT', op_count=1, principal_id='carol@tenant-b.example',
         protocol='imap', session_id='box1-635-2', src_ip_raw='192.0.2.12', tenant_domain='tenant-b.example',
         tls_version='TLS'),
    access('list', 'success', 'open', auth_method='PLAINTEXT', folders=['INBOX'], op_count=1,
         principal_id='carol@tenant-b.example', protocol='imap', session_id='box1-635-2', src_ip_raw='192.0.2.12',
         tenant_domain='tenant-b.example', tls_version='TLS'),
    access('delete', 'success', 'expunge', auth_method='PLAINTEXT', folders=['tenant-b.example!user.carol.Sent'],
         item_count=1, principal_id='carol@tenant-b.example', protocol='imap', session_id='box1-635-2',
         src_ip_raw='192.0.2.12', tenant_domain='tenant-b.example', tls_version='TLS'),
    access('create', 'success', 'append', auth_method='PLAINTEXT', folders=['tenant-b.example!user.carol'],
         item_count=1, message_ids=['<5@tenant-b.example>'], principal_id='carol@tenant-b.example', protocol='imap',
         session_id='box1-635-2', src_ip_raw='192.0.2.12', tenant_domain='tenant-b.example', tls_version='TLS'),
    ignored('cyrus: audit line that is not read'),
    access('session', 'success', 'traffic', auth_method='PLAINTEXT', bytes_in=635, bytes_out=187200,
         principal_id='carol@tenant-b.example', protocol='imap', session_id='box1-635-2', src_ip_raw='192.0.2.12',
         tenant_domain='tenant-b.example', tls_version='TLS'),
    access('session', 'unknown', 'traffic', bytes_in=3, bytes_out=90, protocol='imap', session_id='box1-636-1'),
    ignored('cyrus: processor time'),
    access('auth', 'success', 'login', auth_method='DIGEST-MD5', op_count=1, principal_id='dan', protocol='imap',
         session_id='pid:637', src_ip_raw='127.0.0.1'),
    access('auth', 'success', 'login', auth_method='ANONYMOUS', op_count=1, principal_id='anonymous', protocol='imap',
         session_id='pid:638', src_ip_raw='192.0.2.13'),
    access('auth', 'success', 'login', auth_method='BASIC', op_count=1, principal_id='erin@tenant-a.example',
         protocol='web', session_id='pid:639', src_ip_raw='192.0.2.14', tenant_domain='tenant-a.example'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=1, principal_id='admin@tenant-a.example',
         protocol='imap', reason='authentication failure', session_id='pid:635', src_ip_raw='203.0.113.5',
         tenant_domain='tenant-a.example'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=1, principal_id='frank', protocol='imap',
         reason='unknown user', session_id='pid:640', src_ip_raw='203.0.113.5'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=1, principal_id='gina@tenant-a.example',
         protocol='pop3', reason='unknown user', session_id='pid:641', src_ip_raw='203.0.113.5',
         tenant_domain='tenant-a.example'),
    access('auth', 'failure', 'badlogin', auth_method='CRAM-MD5', op_count=1, protocol='imap',
         reason='authentication failure', session_id='pid:642', src_ip_raw='203.0.113.5', tls_version='TLS'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=1, principal_id='hal', protocol='imap',
         reason='not authorised', session_id='pid:642', src_ip_raw='203.0.113.5'),
    access('auth', 'failure', 'badlogin', auth_method='ANONYMOUS', op_count=1, principal_id='anonymous',
         protocol='imap', reason='login refused', session_id='pid:642', src_ip_raw='203.0.113.5'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=1, principal_id='x [203.0.113.66] plaintext y',
         protocol='imap', reason='unknown user', session_id='pid:642', src_ip_raw='203.0.113.5'),
    ignored('cyrus: neither POP3 nor IMAP nor LMTP'),
    access('auth', 'failure', 'badlogin', auth_method='PLAINTEXT', op_count=4, principal_id='root', protocol='imap',
         reason='authentication failure', session_id='pid:642', src_ip_raw='203.0.113.5'),
    mail('deliver', 'success', 'lmtpunix', message_id='<1@sender.example>', rcpt='kim.smit', session_id='pid:700',
         status_text='delivered: user.kim^smit'),
    mail('deliver', 'success', 'lmtp', message_id='<x to mailbox: user.a@sender.example>',
         rcpt='alice@tenant-a.example', session_id='pid:700',
         status_text='delivered: tenant-a.example!user.alice.Junk', tenant_domain='tenant-a.example'),
    mail('deliver', 'success', 'lmtpunix', session_id='pid:700', status_text='delivered: shared.news'),
    mail('remove', 'success', 'lmtpunix', message_id='<1@sender.example>', rcpt='alice@tenant-a.example',
         session_id='pid:700', status_text='eliminated: tenant-a.example!user.alice',
         tenant_domain='tenant-a.example'),
    mail('send', 'success', 'lmtpunix', message_id='<2@sender.example>', rcpt='thief@elsewhere.example',
         session_id='pid:700', status_text='redirected: thief@elsewhere.example'),
    mail('reject', 'failure', 'lmtpunix', message_id='<3@sender.example>', session_id='pid:700',
         status_text='rejected: a@sender.example'),
    mail('remove', 'success', 'lmtpunix', message_id='<4@sender.example>', session_id='pid:700',
         status_text='discarded'),
    ignored('cyrus: audit line that is not read'),
    quarantined('cyrus: line cut or damaged'),
    quarantined('cyrus: line cut or damaged'),
    quarantined('cyrus: line cut or damaged'),
]  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return (SAMPLES / "cyrus.log").read_text().splitlines()


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
        "cyrus/imap",
        "cyrus/pop3s",
        "imap",
        "imaps",
        "pop3",
        "pop3s",
        "lmtpunix",
        "cyrus/lmtpunix",
        "cyrus-front/imap",
    ):
        tags = pl.Series([tag])
        assert tags.str.contains(f"^(?:{FORMAT.programs})$").all(), tag
        assert not [f.name for f in others if tags.str.contains(f"^(?:{f.programs})$").any()], tag
    for tag in ("imapd", "pop3d", "imapd-ssl", "imap(a)", "imap-login", "pop3-login", "postfix/lmtp", "lmtp(a)<1><s>"):
        assert not pl.Series([tag]).str.contains(f"^(?:{FORMAT.programs})$").any(), tag


def test_sample_is_chosen_as_syslog() -> None:
    data = (SAMPLES / "cyrus.log").read_bytes()
    choice = registry.choose(head_of(data, "x.log"))
    assert not isinstance(choice, str)
    assert choice.name == registry.SYSLOG


def test_sessions_of_several_processes_do_not_mix() -> None:
    line = "Mar  3 08:00:0{} {} cyrus/pop3[{}]: {}"
    login = "login: [192.0.2.{}] {} plaintext User logged in"
    lines = [
        line.format(0, "a", 1, login.format(1, "kim")),
        line.format(1, "a", 2, login.format(2, "lee")),
        line.format(2, "b", 1, login.format(3, "mia")),
        line.format(3, "a", 1, "counts: retr=<1> top=<0> dele=<0>"),
        line.format(4, "b", 1, "accepted connection"),
        line.format(5, "b", 1, "counts: retr=<2> top=<0> dele=<0>"),
        line.format(6, "a", 2, "counts: retr=<3> top=<0> dele=<0>"),
        line.format(7, "a", 1, "counts: retr=<4> top=<0> dele=<0>"),
    ]
    rows = parse(lines).filter(pl.col("action") == "session")
    assert rows["principal_id"].to_list() == ["kim", None, "lee", None]
    assert rows["src_ip_raw"].to_list() == ["192.0.2.1", None, "192.0.2.2", None]
    assert rows["retr_count"].to_list() == [1, 2, 3, 4]


def test_lines_without_a_process_belong_to_no_login() -> None:
    lines = [
        "Mar  3 08:00:00 a pop3: login: [192.0.2.1] kim plaintext User logged in",
        "Mar  3 08:00:01 a pop3: counts: retr=<1> top=<0> dele=<0>",
    ]
    assert parse(lines)["principal_id"].to_list() == ["kim", None]


USER = st.from_regex(r"[a-z0-9._-]{1,10}(@[a-z]{1,8}\.example)?", fullmatch=True)
COUNT = st.integers(0, 10**12)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(USER, st.ip_addresses().map(str), st.lists(COUNT, min_size=3, max_size=3), st.booleans())
def test_session_round_trip(user: str, ip: str, n: list[int], tls: bool) -> None:
    head = "Mar  3 08:00:09 pop1 cyrus/pop3[7]: "
    login = f"{head}login: a.example [{ip}] {user} plaintext{'+TLS' if tls else ''} User logged in SESSIONID=<s-1>"
    row = parse([login, f"{head}counts: retr=<{n[0]}> top=<{n[1]}> dele=<{n[2]}>"]).row(1, named=True)
    assert (row["principal_id"], row["src_ip_raw"], row["session_id"]) == (user, ip, "s-1")
    assert [row[name] for name in ("retr_count", "top_count", "dele_count")] == n
    assert row["tls_version"] == ("TLS" if tls else None)


HOSTILE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@QUICK
@given(HOSTILE | HOSTILE.map(lambda text: text + " [203.0.113.66] plaintext x"), st.ip_addresses().map(str))
def test_the_address_is_the_first(user: str, ip: str) -> None:
    line = f"badlogin: [{ip}] plaintext {user} SASL(-13): authentication failure: checkpass failed"
    row = one(f"Mar  3 08:00:09 pop1 cyrus/imap[7]: {line}")
    assert (row["src_ip_raw"], row["outcome"], row["auth_method"]) == (ip, "failure", "PLAINTEXT")
    assert row["principal_id"] is not None
