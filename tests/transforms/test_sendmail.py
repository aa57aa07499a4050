"""Sendmail: the sample line by line, damaged lines, blocks, real samples, round trips."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry, syslog
from transforms.formats.sendmail import FORMAT
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"
DISPOSITIONS = {"access_events", "mail_events", IGNORED, QUARANTINED}


def enveloped(lines: list[str], ctx: Context, first: int = 0) -> pl.DataFrame:
    sizes = [len(line.encode()) for line in lines]
    numbers = range(first, first + len(lines))
    columns = {"record_no": numbers, "byte_offset": [0] * len(lines), "byte_length": sizes, "raw": lines}
    records = pl.LazyFrame(columns, schema=RECORD_SCHEMA)
    known = pl.col("program").str.contains(f"^(?:{FORMAT.programs})$")
    return syslog.envelope(records, ctx).filter(known).collect()


def parse(lines: list[str], **given: Any) -> pl.DataFrame:
    ctx = Context("e", **{"year": 2024, "year_basis": "given", **given})
    mine = enveloped(lines, ctx)
    rows = FORMAT.parse(mine.lazy(), ctx).collect().sort("record_no")
    assert rows["record_no"].to_list() == mine["record_no"].to_list()
    assert set(rows["disposition"]) <= DISPOSITIONS
    assert rows.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]) & pl.col("reason").is_null()).is_empty()
    events = rows.filter(pl.col("disposition").is_in(["access_events", "mail_events"]))
    assert not len(events) or events["ts"].null_count() == events["outcome"].null_count() == 0
    return rows


def one(message: str) -> dict[str, Any]:
    return parse([f"Feb  1 00:00:00 mx1 sm-mta[1]: {message}"]).row(0, named=True)


def kept(row: dict[str, Any]) -> dict[str, Any]:
    constant = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "direction"}
    if row["disposition"] in (IGNORED, QUARANTINED):
        return {name: row[name] for name in ("disposition", "reason")}
    return {name: value for name, value in row.items() if value is not None and name not in constant}


def mail(event: str, outcome: str, queue_id: str | None, **more: object) -> dict[str, object]:
    named = {"queue_id": queue_id} if queue_id else {}
    return {"disposition": "mail_events", "event": event, "outcome": outcome, "op_raw": "sm-mta", **named, **more}


def auth(outcome: str, who: str | None, **more: object) -> dict[str, object]:
    named = {"principal_id": who, "principal_type": "user"} if who else {}
    if who and more.get("credential_type") != "cert":
        named["credential_id"] = f"pw:{who}"
    shared = {"disposition": "access_events", "protocol": "smtp", "action": "auth", "op_count": 1, "op_raw": "sm-mta"}
    fixed = {"credential_type": "password", "agg_level": "event", "bytes_known": False, "outcome": outcome}
    return shared | fixed | named | more


def ignored(reason: str) -> dict[str, object]:
    return {"disposition": IGNORED, "reason": reason}


def quarantined(reason: str) -> dict[str, object]:
    return {"disposition": QUARANTINED, "reason": reason}


EXPECTED = [
    mail('tls', 'success', None, src_host='mail.sender.example', src_ip_raw='192.0.2.10', status_text='verify=OK',
         tls_version='TLSv1.3', tls_cipher='TLS_AES_256_GCM_SHA384'),
    mail('tls', 'success', None,
         status_text='cert-subject=/O=Sender,+20Inc./CN=mail.sender.example, cert-issuer=/O=CA/CN=root, verifymsg=ok'),
    mail('receive', 'success', '40VNxxAb018001', mail_from='Alice@Sender.example', size_bytes=2703, n_rcpt=3,
         message_id='<20240131235959.1@sender.example>', src_host='mail.sender.example', src_ip_raw='192.0.2.10'),
    mail('deliver', 'success', '40VNxxAb018001', n_rcpt=2, status_text='Sent', rcpt='bob@Tenant-A.example',
         recipients=['bob@Tenant-A.example', 'carol@tenant-a.example'], relay_host='local', delay_s=1.0, dsn='2.0.0',
         tenant_domain='tenant-a.example'),
    mail('tls', 'success', None, status_text='verify=FAIL', relay_host='mx.tenant-b.example', tls_version='TLSv1.2',
         tls_cipher='ECDHE-RSA-AES256-GCM-SHA384'),
    mail('send', 'success', '40VNxxAb018001', n_rcpt=1,
         status_text='Sent (ok [InternalId=14475985, Hostname=x] Queued)', rcpt='dave@tenant-b.example',
         relay_host='mx.tenant-b.example', dst_ip_raw='IPv6:2001:db8::25', delay_s=86475.0, dsn='2.0.0'),
    mail('remove', 'success', '40VNxxAb018001', delay_s=86475.0),
    mail('receive', 'success', '411003cd018003', op_raw='sendmail', mail_from='root', size_bytes=312, n_rcpt=1,
         message_id='<202402010000.411003cd018003@mx1.gateway.example>', src_host='localhost',
         status_text='relay=root@localhost'),
    mail('send', 'success', '411003cd018003', op_raw='sendmail', n_rcpt=1,
         status_text='Sent (41100abc018004 Message accepted for delivery)', rcpt='erin@tenant-a.example',
         dst_ip_raw='127.0.0.1', delay_s=0.0, dsn='2.0.0'),
    mail('deliver', 'success', '41100abc018005', n_rcpt=1, status_text='Sent', rcpt='"|/usr/bin/vacation erin"',
         orig_rcpt='erin@tenant-a.example', relay_host='prog', delay_s=0.0, dsn='2.0.0',
         tenant_domain='tenant-a.example'),
    mail('defer', 'failure', '41100abc018006', n_rcpt=1,
         status_text='Deferred: Connection timed out with mx.remote.example.', rcpt='frank@remote.example',
         relay_host='mx.remote.example', delay_s=15.0, dsn='4.0.0'),
    mail('bounce', 'failure', '41100abc018006', n_rcpt=1,
         status_text='User unknown; reply=550 5.1.1 no, stat=Sent (not really)', rcpt='grace@remote.example',
         relay_host='mx.remote.example', dst_ip_raw='198.51.100.25', delay_s=15.0, dsn='5.1.1'),
    mail('dsn', 'success', '41100abc018006', status_text='DSN: User unknown', internal_id='41100abd018006'),
    mail('queue', 'success', '41100abe018007', op_raw='sm-msp-queue', n_rcpt=1, status_text='queued',
         rcpt='heidi@remote.example', delay_s=0.0),
    mail('bounce', 'failure', '41100abf018008', n_rcpt=1, status_text='Mail Rejected: too many',
         rcpt='ivan@remote.example', delay_s=0.0),
    auth('success', 'dave@tenant-a.example', session_id='18009', src_ip_raw='198.51.100.7',
         tenant_domain='tenant-a.example', auth_method='PLAIN'),
    auth('success', 'relay', session_id='41100ac0018010', src_ip_raw='IPv6:2001:db8::77', credential_type='cert',
         auth_method='EXTERNAL'),
    auth('failure', 'postmaster@tenant-a.example', reason='checkpass failed', session_id='41100ac1018011',
         src_ip_raw='203.0.113.10', tenant_domain='tenant-a.example', auth_method='LOGIN'),
    auth('failure', 'x, relay=mx1 [192.0.2.66]', reason='user not found', session_id='41100ac2018012',
         src_ip_raw='203.0.113.11', auth_method='CRAM-MD5'),
    auth('failure', None, reason='authentication failed', session_id='41100ac3018013', auth_method='PLAIN'),
    auth('failure', None, op_raw='sm-acceptingconnections', reason='possible SMTP attack',
         session_id='41100ac4018014', src_ip_raw='203.0.113.12', op_count=6),
    mail('other', 'failure', '41100ac5018015', src_ip_raw='203.0.113.13',
         status_text='possible SMTP attack: command=HELO/EHLO, count=4'),
    mail('reject', 'failure', '41100ac6018016', op_raw='check_rcpt', src_host='bad.example',
         src_ip_raw='203.0.113.13', status_text='550 5.7.1 <bob@tenant-a.example>... Relaying denied',
         rcpt='bob@tenant-a.example', dsn='5.7.1'),
    mail('reject', 'failure', None, op_raw='check_relay', src_host='bad.example', src_ip_raw='203.0.113.13',
         status_text='421 4.3.2 Connection rate limit exceeded.', dsn='4.3.2'),
    mail('reject', 'failure', '41100ac7018018', op_raw='check_mail', mail_from='spam@bad.example',
         src_ip_raw='203.0.113.13',
         status_text='553 5.1.8 <spam@bad.example>... Domain of sender address spam@bad.example does not exist',
         dsn='5.1.8'),
    mail('reject', 'failure', '41100ac8018019', op_raw='check_rcpt',
         status_text='ruleset=check_rcpt, arg1=<"a>, relay=trusted [192.0.2.66], reject=550 x"@tenant-a.example>, '
                     'relay=bad.example [203.0.113.13], reject=550 5.7.1 <"a>, relay=trusted [192.0.2.66], '
                     'reject=550 x"@tenant-a.example>... Relaying denied'),
    mail('other', 'unknown', '41100ac9018020', op_raw='check_mail', mail_from='', src_host='bad.example',
         src_ip_raw='203.0.113.13', status_text='discard'),
    mail('reject', 'failure', '41100aca018021', status_text='User unknown', rcpt='nobody@tenant-a.example'),
    mail('receive', 'failure', '41100aca018021', mail_from='', size_bytes=0, n_rcpt=0, src_ip_raw='203.0.113.13'),
    mail('receive', 'success', '41100acb018022', mail_from='"x, size=1, class=0, nrcpts=9"@bad.example',
         size_bytes=44, n_rcpt=1, message_id='<a@b>, proto=ESMTP, daemon=MTA, relay=trusted [192.0.2.66]',
         src_ip_raw='203.0.113.13'),
    mail('reject', 'failure', '41100acc018023', src_host='bad.example', src_ip_raw='203.0.113.13',
         status_text='rejecting commands due to pre-greeting traffic after 6 seconds'),
    mail('reject', 'failure', '41100acd018024', src_host='bad.example', src_ip_raw='203.0.113.13',
         status_text='vrfy root [rejected]'),
    mail('other', 'unknown', '41100ace018025', src_ip_raw='203.0.113.13', status_text='EXPN staff'),
    mail('disconnect', 'unknown', '41100acf018026', src_host='h.example', src_ip_raw='IPv6:2001:DB8::1',
         status_text='did not issue MAIL/EXPN/VRFY/ETRN during connection to MTA'),
    mail('disconnect', 'failure', '41100ad0018027', src_host='h.example', src_ip_raw='203.0.113.14',
         status_text='lost input channel to MTA-v4 after rcpt'),
    mail('disconnect', 'failure', '41100ad1018028', src_ip_raw='203.0.113.14',
         status_text='timeout waiting for input during server cmd read'),
    mail('connect', 'success', None, src_host='h.example', src_ip_raw='203.0.113.14'),
    mail('disconnect', 'unknown', None, src_ip_raw='203.0.113.14', status_text='Null connection'),
    mail('reject', 'failure', '41100ad2018031', status_text='451 4.7.1 Greylisting in action',
         rcpt='bob@tenant-a.example', dsn='4.7.1'),
    mail('quarantine', 'unknown', '41100ad3018032', op_raw='clamav', status_text='Eicar-Test-Signature'),
    mail('other', 'unknown', '41100ad4018033', op_raw='sendmail', mail_from='boss@tenant-a.example',
         status_text='Authentication-Warning: mx1.gateway.example: www-data set sender to boss@tenant-a.example using -f'),
    mail('tls', 'failure', None,
         status_text='error: connect failed=-1, reason=wrong version number, SSL_error=1, errno=0, '
                     'retry=-1, relay=mx.remote.example [198.51.100.25]',
         relay_host='mx.remote.example', dst_ip_raw='198.51.100.25'),
    ignored('sendmail: state of TLS or AUTH'),
    ignored('sendmail: milter'),
    ignored('sendmail: daemon'),
    ignored('sendmail: error of the server'),
    ignored('sendmail: outgoing connection begun'),
    ignored('sendmail: SMTP dialogue'),
    ignored('sendmail: no message or session in the line'),
    quarantined('sendmail: from line cut or damaged'),
    quarantined('sendmail: to line cut or damaged'),
    quarantined('sendmail: ruleset line cut or damaged'),
    quarantined('sendmail: AUTH line cut or damaged'),
    quarantined('sendmail: STARTTLS line cut or damaged'),
    mail('receive', 'success', 'OAA01847', op_raw='sendmail', mail_from='old@sender.example', size_bytes=100,
         n_rcpt=1, message_id='<1@old.example>', src_host='mail.sender.example', src_ip_raw='192.0.2.10',
         status_text='relay=ident:joe@mail.sender.example [192.0.2.10]'),
]  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return (SAMPLES / "sendmail.log").read_text().splitlines()


def test_every_line_of_the_sample(sample: list[str]) -> None:
    rows = parse(sample)
    for line, row, expected in zip(sample, rows.iter_rows(named=True), EXPECTED, strict=True):
        pid = line.split("[")[1].split("]")[0]
        named = {"session_id": pid} if expected["disposition"] == "mail_events" else {}
        assert kept(row) == expected | named, line
    assert rows["ts"].dt.strftime("%Y-%m-%d %H:%M:%S").to_list()[2:4] == ["2024-01-31 23:59:59", "2024-02-01 00:00:00"]
    assert set(rows["ts_basis"]) == {"assumed_zone"}
    assert set(rows["host"]) == {"mx1"}


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


def test_blocks_give_the_same_rows(sample: list[str]) -> None:
    whole = parse(sample)
    for at in range(1, len(sample), 9):
        ctx = Context("e", year=2024, year_basis="given")
        parts = [FORMAT.parse(enveloped(sample[:at], ctx).lazy(), ctx).collect()]
        parts.append(FORMAT.parse(enveloped(sample[at:], ctx, at).lazy(), ctx).collect())
        rows = pl.concat(parts, how="diagonal").sort("record_no")
        assert rows.select(sorted(rows.columns)).equals(whole.select(sorted(rows.columns))), at


def test_damaged_lines_give_one_row_each(sample: list[str]) -> None:
    damaged = [line[:at] for line in sample for at in range(16, len(line), 4)]
    damaged += [line[:at] + "\0\x1bé" + line[at:] for line in sample for at in range(20, len(line), 19)]
    chance = random.Random(7)
    for _ in range(1000):
        first, second = chance.sample(sample, 2)
        damaged.append(first[: chance.randrange(40, len(first))] + second[chance.randrange(20, len(second)) :])
    parse(damaged)


def test_long_lines_are_read_in_time(sample: list[str]) -> None:
    rows = parse([line + ', x=<"[' * 50_000 for line in sample[::8]])
    assert set(rows["reason"]) == {"syslog: message is longer than 32 KiB"}
    parse([line + ', x=<"[' * 4_000 for line in sample])


def test_reasons_and_rows_hold_no_secrets(sample: list[str]) -> None:
    assert not any("AGRhdmUAc2VjcmV0" in str(row) for row in parse(sample).iter_rows())
    word = "zebra"
    bodies = [f"from=<{word}", f"to=<{word}", f"ruleset=check_{word}, arg1", word, f"AUTH failure (PLAIN): {word}"]
    rows = parse([f"Feb  1 00:00:00 mx1 sendmail[1]: 40VNxxAb018001: {body}" for body in bodies])
    assert not any(word in reason for reason in rows["reason"].drop_nulls())


def test_programs() -> None:
    names = ["sendmail", "sm-mta", "sm-msp-queue", "sm-acceptingconnections", "sendmail-mta", "postfix/smtpd", "smtpd"]
    lines = [f"Feb  1 00:00:00 mx1 {name}[1]: 40VNxxAb018001: done; delay=00:00:01, ntries=1" for name in names]
    assert parse(lines)["op_raw"].to_list() == names[:5]


def test_only_syslog_is_claimed() -> None:
    assert FORMAT.sniff is None
    data = (SAMPLES / "sendmail.log").read_bytes()
    choice = registry.choose(head_of(data, "sendmail.log"))
    assert getattr(choice, "name", None) == registry.SYSLOG


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    counts = {}
    for path in sorted((REAL / "sendmail").iterdir()):
        rows = parse(path.read_text().splitlines())
        counts[path.name.split("__")[1]] = dict(rows["disposition"].value_counts().iter_rows())
        assert rows.filter(pl.col("event").is_in(["receive", "reject"]) & pl.col("queue_id").is_null()).height <= 4
    assert counts == {"sendmail-reject.log": {"mail_events": 45}, "data": {"mail_events": 8, IGNORED: 2}}


WORD = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="-_.+"), min_size=1, max_size=12)
DOMAIN = st.from_regex(r"[a-z]{1,8}\.example", fullmatch=True)
PLAIN = st.builds("{}@{}".format, WORD, DOMAIN)
QUOTED = st.builds('"{}"@{}'.format, st.text(" >,<(=)[]:;ab", min_size=1, max_size=20), DOMAIN)
MAILBOX = PLAIN | QUOTED
IP = st.ip_addresses().map(lambda ip: f"IPv6:{ip}" if ip.version == 6 else str(ip))
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)
QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(
    MAILBOX | st.just(""), st.none() | TEXT.filter(bool), st.none() | DOMAIN, IP, st.booleans(), st.integers(0, 9**9)
)
def test_arrival_round_trip(
    sender: str, ident: str | None, host: str | None, ip: str, forged: bool, size: int
) -> None:  # fmt: skip
    named = f"msgid={ident}, " if ident else ""
    relay = f"{host + ' ' if host else ''}[{ip}]{' (may be forged)' if forged else ''}"
    row = one(
        f"40VNxxAb018001: from=<{sender}>, size={size}, class=0, nrcpts=2, {named}proto=ESMTP, daemon=MTA, relay={relay}"
    )
    names = ("event", "mail_from", "size_bytes", "n_rcpt", "src_host", "src_ip_raw", "message_id")
    assert [row[name] for name in names] == ["receive", sender, size, 2, host, ip, ident]


@QUICK
@given(
    st.lists(MAILBOX, min_size=1, max_size=3), DOMAIN, IP, TEXT, st.sampled_from(["Sent", "Deferred", "Rejected"]),
    st.integers(0, 9 * 86400),
)  # fmt: skip
def test_delivery_round_trip(rcpts: list[str], host: str, ip: str, text: str, stat: str, delay: int) -> None:
    days, rest = divmod(delay, 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    listed = ",".join(f"<{rcpt}>" for rcpt in rcpts)
    row = one(
        f"40VNxxAb018001: to={listed}, delay={f'{days}+' if days else ''}{clock}, xdelay=00:00:00, mailer=esmtp, "
        f"pri=1, relay={host}. [{ip}], dsn=2.0.0, stat={stat}: {text}".replace(
            "dsn=2.0.0", "dsn=2.0.0" if stat == "Sent" else "dsn=5.0.0"
        )
    )
    event = {"Sent": "send", "Deferred": "defer", "Rejected": "bounce"}[stat]
    assert (row["event"], row["rcpt"], row["n_rcpt"]) == (event, rcpts[0], len(rcpts))
    assert row["recipients"] == (rcpts if len(rcpts) > 1 else None)
    assert (row["relay_host"], row["dst_ip_raw"], row["delay_s"]) == (host, ip, float(delay))
    assert row["status_text"] == f"{stat}: {text}"


@QUICK
@given(st.booleans(), WORD | PLAIN, IP, st.sampled_from(["PLAIN", "LOGIN", "CRAM-MD5"]))
def test_auth_round_trip(good: bool, user: str, ip: str, mech: str) -> None:
    detail = "authentication failure (-13) SASL(-13): authentication failure: checkpass failed"
    said = (
        f"AUTH=server, relay=[{ip}], authid={user}, mech={mech}, bits=0"
        if good
        else f"AUTH failure ({mech}): {detail}, user={user}, relay=[{ip}]"
    )
    row = one(f"40VNxxAb018001: {said}")
    assert (row["disposition"], row["outcome"]) == ("access_events", "success" if good else "failure")
    assert (row["principal_id"], row["src_ip_raw"], row["auth_method"]) == (user.lower(), ip, mech)


def test_a_message_refused_while_it_is_sent_names_its_client() -> None:
    row = one(
        "u31FFPtp032300: collect: relay=c.example [192.0.2.5], from=<a@b.example>, info=Bare linefeed, status=tempfail"
    )
    assert (row["event"], row["outcome"], row["src_ip_raw"], row["src_host"]) == (
        "reject",
        "failure",
        "192.0.2.5",
        "c.example",
    )
    assert row["queue_id"] == "u31FFPtp032300"
