"""Exchange POP3 and IMAP4 protocol logs: every row of the sample, headers, front and back end, damage, real samples."""

import csv
import io
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry
from transforms.formats.exchange_pop_imap import COLUMNS_2013, COLUMNS_2016, FORMAT, sniff
from transforms.framing import head_of
from transforms.model import IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLE = Path(__file__).parents[1] / "samples" / "exchange_pop_imap.log"
REAL = Path(__file__).parents[3] / "shared" / "samples"
CONSTANT = {"record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "agg_level", "source"}
DERIVED = {"principal_type", "mailbox_id", "credential_id", "credential_type", "bytes_known"}
SECRETS = ("hunter2", "*****")


def records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    rows = [(first + at, 0, sizes[at], line) for at, line in enumerate(lines)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def parse(lines: list[str], ctx: Context | None = None, first: int = 0) -> pl.DataFrame:
    rows = FORMAT.parse(records(lines, first), ctx or Context("e")).collect().sort("record_no")
    assert rows["record_no"].to_list() == list(range(first, first + len(lines)))
    assert set(rows["disposition"]) <= {"access_events", IGNORED, QUARANTINED}
    assert rows.filter((pl.col("disposition") != "access_events") & pl.col("reason").is_null()).is_empty()
    return rows


def one(line: str, **given: Any) -> dict[str, Any]:
    return parse([line], Context("e", **given)).row(0, named=True)


def row(columns: tuple[str, ...] = COLUMNS_2016, **values: object) -> str:
    """A record as Exchange writes it."""
    shared = {"dateTime": "2026-03-02T08:00:00.000Z", "sessionId": "00000000000ABC12", "seqNumber": 1}
    shared |= {"sIp": "192.0.2.1:110", "cIp": "198.51.100.7:12345", "rqsize": 1, "rpsize": 2, "command": "noop"}
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([(shared | values).get(name, "") for name in columns])
    return out.getvalue()


def access(protocol: str, action: str, outcome: str, op_raw: str, session_id: str, **more: object) -> dict[str, object]:
    told = {"protocol": protocol, "action": action, "outcome": outcome, "op_raw": op_raw, "session_id": session_id}
    return {"disposition": "access_events", **told, **more}


def ignored(reason: str) -> dict[str, object]:
    return {"disposition": IGNORED, "reason": reason}


def quarantined(reason: str) -> dict[str, object]:
    return {"disposition": QUARANTINED, "reason": reason}


EXPECTED = [
    ignored('header'),
    ignored('header'),
    ignored('header'),
    ignored('header'),
    ignored('header'),
    ignored('header'),
    access('pop3', 'connect', 'success', 'opensession', '192.0.2.1|pop3|00000000000ABC12', bytes_in=0, bytes_out=53,
         src_ip_raw='198.51.100.7:12345', tls_version='TLS'),
    access('pop3', 'other', 'success', 'capa', '192.0.2.1|pop3|00000000000ABC12', bytes_in=6, bytes_out=120,
         src_ip_raw='198.51.100.7:12345', tls_version='TLS'),
    access('pop3', 'auth', 'unknown', 'user', '192.0.2.1|pop3|00000000000ABC12', auth_method='USER', bytes_in=17,
         bytes_out=5, principal_id='jan.smit', src_ip_raw='198.51.100.7:12345', tenant_domain='tenant-a.example',
         tls_version='TLS'),
    access('pop3', 'auth', 'success', 'pass', '192.0.2.1|pop3|00000000000ABC12', auth_method='USER', bytes_in=10,
         bytes_out=34, principal_id='jan.smit', src_ip_raw='198.51.100.7:12345', tls_version='TLS'),
    access('pop3', 'other', 'success', 'closesession', '192.0.2.1|pop3|00000000000ABC12', principal_id='jan.smit',
         src_ip_raw='198.51.100.7:12345', tls_version='TLS'),
    access('pop3', 'auth', 'failure', 'auth', '192.0.2.1|pop3|00000000000ABC13', auth_method='PLAIN', bytes_in=21,
         bytes_out=69, principal_id='testuser', reason='AuthFailed:LogonDenied', src_ip_raw='203.0.113.5:55576'),
    access('pop3', 'auth', 'failure', 'user', '192.0.2.1|pop3|00000000000ABC14', auth_method='USER', bytes_in=21,
         bytes_out=69, principal_id='x";r=ok;errmsg=nothing', reason='Command is not valid in this state.',
         src_ip_raw='203.0.113.5:55577'),
    access('pop3', 'other', 'failure', 'invalid', '192.0.2.1|pop3|00000000000ABC15', bytes_in=21, bytes_out=69,
         reason='Command is not valid.', src_ip_raw='203.0.113.5:55578'),
    ignored('health probe'),
    access('pop3', 'auth', 'failure', 'pass', '192.0.2.1|pop3|00000000000ABC17', auth_method='USER', bytes_in=76,
         bytes_out=99, principal_id='healthmailboxab28d88', reason='AuthFailed:LogonDenied',
         src_ip_raw='203.0.113.6:40000', tls_version='TLS'),
    ignored('header'),
    ignored('header'),
    access('pop3', 'connect', 'success', 'be:opensession', '192.0.2.1|pop3be|0000000000000001', bytes_in=0,
         bytes_out=53),
    access('pop3', 'auth', 'success', 'be:auth', '192.0.2.1|pop3be|0000000000000001', auth_method='PLAIN',
         bytes_in=31, bytes_out=33, principal_id='jan.smit'),
    access('pop3', 'list', 'success', 'be:stat', '192.0.2.1|pop3be|0000000000000001', bytes_in=6, bytes_out=20,
         item_count=2, principal_id='jan.smit'),
    access('pop3', 'retr', 'success', 'be:retr', '192.0.2.1|pop3be|0000000000000001', bytes_in=8, bytes_out=104857,
         item_count=1, principal_id='jan.smit'),
    access('pop3', 'top', 'success', 'be:top', '192.0.2.1|pop3be|0000000000000001', bytes_in=10, bytes_out=900,
         item_count=1, principal_id='jan.smit'),
    access('pop3', 'dele', 'success', 'be:dele', '192.0.2.1|pop3be|0000000000000001', bytes_in=8, bytes_out=20,
         item_count=1, principal_id='jan.smit'),
    access('pop3', 'retr', 'failure', 'be:retr', '192.0.2.1|pop3be|0000000000000001', bytes_in=9, bytes_out=40,
         principal_id='jan.smit', reason='The specified message is out of range.'),
    access('pop3', 'list', 'success', 'be:uidl', '192.0.2.1|pop3be|0000000000000001', bytes_in=9, bytes_out=40,
         principal_id='jan.smit'),
    access('pop3', 'other', 'success', 'be:closesession', '192.0.2.1|pop3be|0000000000000001',
         principal_id='jan.smit'),
    ignored('header'),
    ignored('header'),
    access('imap', 'connect', 'success', 'opensession', '2001:db8::1|imap|00000000000000A0', bytes_in=0, bytes_out=53,
         src_ip_raw='[2001:db8:7::25]:50112', tls_version='TLS'),
    access('imap', 'auth', 'failure', 'authenticate', '2001:db8::1|imap|00000000000000A0', auth_method='PLAIN',
         bytes_in=31, bytes_out=30, reason='AuthFailed:LogonDenied', src_ip_raw='[2001:db8:7::25]:50112',
         tls_version='TLS'),
    access('imap', 'auth', 'failure', 'login', '192.0.2.1|imap|00000000000000A1', auth_method='LOGIN', bytes_in=17,
         bytes_out=21, reason='LOGIN failed.', src_ip_raw='198.51.100.8:50002'),
    access('imap', 'auth', 'success', 'login', '192.0.2.1|imap|00000000000000A2', auth_method='LOGIN', bytes_in=48,
         bytes_out=24, principal_id='frank', src_ip_raw='198.51.100.8:50003', tenant_domain='tenant-b.example'),
    access('imap', 'auth', 'success', 'authenticate', '192.0.2.1|imap|00000000000000A3', auth_method='XOAUTH2',
         bytes_in=48, bytes_out=24, principal_id='frank', src_ip_raw='198.51.100.8:50004'),
    access('imap', 'list', 'success', 'be:select', '192.0.2.1|imapbe|0000000000000007', bytes_in=15, bytes_out=306,
         folders=['INBOX'], item_count=1200, principal_id='tenant-b\\frank'),
    access('imap', 'get_item', 'success', 'be:uid fetch', '192.0.2.1|imapbe|0000000000000007', bytes_in=30,
         bytes_out=5242880, item_count=50, principal_id='tenant-b\\frank'),
    access('imap', 'get_item', 'failure', 'be:fetch', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=45,
         item_count=0, principal_id='tenant-b\\frank', reason='The specified message set is invalid;Rows=9'),
    access('imap', 'search', 'success', 'be:uid+search', '192.0.2.1|imapbe|0000000000000007', bytes_in=30,
         bytes_out=99, item_count=3, principal_id='tenant-b\\frank'),
    access('imap', 'create', 'success', 'be:append', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=99,
         principal_id='tenant-b\\frank'),
    access('imap', 'move', 'success', 'be:copy', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=99,
         principal_id='tenant-b\\frank'),
    access('imap', 'update', 'success', 'be:store', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=99,
         principal_id='tenant-b\\frank'),
    access('imap', 'delete', 'success', 'be:expunge', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=99,
         principal_id='tenant-b\\frank'),
    access('imap', 'other', 'unknown', 'be:idle', '192.0.2.1|imapbe|0000000000000007', bytes_in=30, bytes_out=99,
         principal_id='tenant-b\\frank'),
    quarantined('field count does not fit the header'),
    quarantined('time is not readable'),
    quarantined('session, sequence number or command is no such thing'),
    ignored('blank line'),
]  # fmt: skip


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return SAMPLE.read_text().splitlines()


def test_every_line_of_the_sample(sample: list[str]) -> None:
    rows = parse(sample, Context("e", variant="pop3"))
    assert len(rows) == len(EXPECTED)
    for line, found, expected in zip(sample, rows.iter_rows(named=True), EXPECTED, strict=True):
        assert {k: v for k, v in found.items() if v is not None and k not in CONSTANT | DERIVED} == expected, line


def test_columns_follow_from_others(sample: list[str]) -> None:
    rows = parse(sample, Context("e", variant="pop3")).filter(pl.col("disposition") == "access_events")
    for found in rows.iter_rows(named=True):
        who = found["principal_id"]
        assert found["mailbox_id"] == who
        assert (found["principal_type"] is None) == (who is None)
        assert found["credential_id"] in (f"pw:{who}" if who else None, None)
        assert (found["credential_type"] == "password") == (found["credential_id"] is not None)
        assert found["bytes_known"] == (found["bytes_out"] is not None)
        assert (found["src_ip_raw"] is None) == found["op_raw"].startswith("be:")
        assert found["ts_basis"] == "utc"


def test_columns_are_of_the_contract(sample: list[str]) -> None:
    events = parse(sample, Context("e", variant="pop3")).filter(pl.col("disposition") == "access_events")
    table = contract("access_events")
    for name in set(events.columns) - {"disposition", "tenant_domain"}:
        assert events.schema[name] == table.polars_schema[name], name
    for column in table.columns:
        if column.enum and column.name in events.columns:
            assert set(events[column.name].drop_nulls()) <= set(column.enum), column.name
        if column.required and column.name in events.columns:
            assert events[column.name].null_count() == 0, column.name


def test_passwords_are_not_kept(sample: list[str]) -> None:
    text = str(parse(sample, Context("e", variant="pop3")).rows())
    assert not [secret for secret in SECRETS if secret in text]


def test_protocol_of_a_port_of_ones_own() -> None:
    line = {"sIp": "192.0.2.1:4110"}
    assert one(row(command="retr", **line))["protocol"] == "pop3"
    assert one(row(command="fetch", **line))["protocol"] == "imap"
    assert one(row(command="noop", **line), variant="imap")["protocol"] == "imap"
    assert one(row(command="noop", **line))["reason"] == "neither port nor command tells the protocol"


def test_a_stranger_is_no_probe() -> None:
    cases = {"127.0.0.1:1": IGNORED, "[::1]:1": IGNORED, "10.1.1.1:4": IGNORED, "203.0.113.5:1": "access_events"}
    for address, expected in cases.items():
        assert one(row(user="HealthMailbox1", cIp=address, command="stat"))["disposition"] == expected


def test_header_of_another_order_is_followed_and_carried() -> None:
    names = tuple(reversed(COLUMNS_2016))
    ctx = Context("e")
    parse(["#Fields: " + ",".join(names)], ctx)
    assert parse([row(names, user="kim", command="stat")], ctx)["principal_id"].to_list() == ["kim"]
    assert parse([row(COLUMNS_2013, user="lee")], ctx)["principal_id"].to_list() == ["lee"]
    damaged = ["#Fields: dateTime,dateTime", row(user="mia")]
    assert parse(damaged, ctx)["principal_id"].to_list() == [None, "mia"]


def test_many_hostile_headers_are_bounded() -> None:
    lines = []
    for at in range(200):
        names = (*COLUMNS_2016, *(f"n{at}_{n}" for n in range(at + 1)))
        lines += ["#Fields: " + ",".join(names), row(names)]
    found = parse(lines)["disposition"].value_counts()
    assert dict(found.rows())[IGNORED] == 200
    assert dict(found.rows())["access_events"] == 32


_text = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    columns=st.sampled_from([COLUMNS_2013, COLUMNS_2016]),
    user=_text.filter(lambda text: not text.lower().startswith("healthmailbox")),
    port=st.sampled_from(["110", "143", "995", "993", "1995", "1993"]),
    command=st.sampled_from(["retr", "top", "dele", "stat", "fetch", "append"]),
    sizes=st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)),
    told=st.booleans(),
    message=_text,
    when=st.datetimes(datetime(1991, 1, 1), datetime(2099, 1, 1)),
)
def test_round_trip(
    columns: tuple[str, ...], user: str, port: str, command: str, sizes: tuple[int, int], told: bool, message: str,
    when: datetime,
) -> None:  # fmt: skip
    when = when.replace(microsecond=when.microsecond // 1000 * 1000, tzinfo=UTC)
    answer = "OK" if told else '"-ERR no"'
    found = one(
        row(
            columns, dateTime=when.isoformat(timespec="milliseconds").replace("+00:00", "Z"), user=user,
            sIp=f"192.0.2.1:{port}", rqsize=sizes[0], rpsize=sizes[1], command=command,
            context=f'R={answer};Msg="{message}"',
        )
    )  # fmt: skip
    assert (found["ts"], found["principal_id"]) == (when, user.lower())
    assert (found["bytes_in"], found["bytes_out"]) == sizes
    assert found["outcome"] == ("success" if told else "failure")
    back = port in ("1995", "1993")
    assert found["op_raw"] == ("be:" if back else "") + command
    assert found["src_ip_raw"] == (None if back else "198.51.100.7:12345")


def test_damaged_lines_give_one_row_each(sample: list[str]) -> None:
    chance = random.Random(7)
    damaged = [line[:at] for line in sample for at in range(0, len(line), 5)]
    for _ in range(800):
        first, second = chance.choice(sample), chance.choice(sample)
        middle = chance.choice(["", '"', "'", ",", "\x00", ",,,,", '""', "#", "\u202e", "\r", "\n", "é" * 3000])
        damaged.append(first[: chance.randint(0, len(first))] + middle + second[chance.randint(0, len(second)) :])
    for found in parse(damaged).iter_rows(named=True):
        if found["disposition"] == "access_events":
            assert {None} & {found[name] for name in ("ts", "ts_raw", "action", "outcome", "protocol")} == set()
    assert parse(["x" * 1_000_000, ',"' * 300_000])["disposition"].to_list() == [QUARANTINED] * 2
    assert parse([]).height == 0


def test_blocks_give_the_rows_of_the_whole(sample: list[str]) -> None:
    whole = parse(sample, Context("e", variant="pop3"))
    for cut in (1, 7, 17, 20, 30):
        ctx = Context("e", variant="pop3")
        parts = [parse(sample[:cut], ctx), parse(sample[cut:], ctx, first=cut)]
        assert pl.concat(parts).equals(whole)


def test_sniff(sample: list[str]) -> None:
    def claim(lines: list[str]) -> tuple[float, str] | None:
        found = sniff(head_of("\n".join(lines).encode(), "x.log"))
        return (found.score, found.variant) if found else None

    rows = [line for line in sample if line.startswith("2026")]
    assert claim(sample) == (0.95, "pop3")
    assert claim(rows) == (0.8, "pop3")
    assert claim(rows[22:]) == (0.8, "imap")
    assert claim(["#Log-type: IMAP4 Protocol Log", "junk"]) == (0.9, "imap")
    assert claim(["#Log-type: SMTP Receive Protocol Log"]) is None
    assert claim([""]) is None
    assert claim(["#Fields: date-time,connector-id,session-id"]) is None


def test_no_other_sample_is_claimed() -> None:
    paths = [*SAMPLE.parent.iterdir(), *(REAL.rglob("*") if REAL.is_dir() else [])]
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                choice = registry.choose(head_of(file.read(1 << 16), path.name))
            own = path == SAMPLE or path.parent.name == "exchange_pop3"
            assert (not isinstance(choice, str) and choice.name == FORMAT.name) == own, path


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    for path in sorted((REAL / "exchange_pop3").glob("*.log")):
        rows = parse(path.read_text().splitlines())
        assert set(rows["disposition"]) == {"access_events"}
        assert set(rows["reason"]) == {"AuthFailed:LogonDenied"}
        assert set(rows["protocol"]) == {"imap" if "imap" in path.name else "pop3"}
        assert set(rows["principal_id"]) == {"testuser"}
        assert set(rows["auth_method"]) == {"PLAIN"}
