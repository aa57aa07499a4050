"""slapd's statistics log: each operation once, with the client's address and the identity bound when it was asked for."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts import contract
from transforms import registry, syslog
from transforms.formats.openldap import FORMAT, parse, sniff
from transforms.framing import head_of
from transforms.ldap_rows import filter_class
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, RECORD_SCHEMA, SYSLOG_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = SAMPLES / "openldap.log"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
GATEWAY = "cn=gateway,ou=services,dc=tenant-a,dc=example"
HEAD = "Mar  3 08:00:00 ldap1 slapd[1]: "


def context() -> Context:
    return Context("e" * 64, year=2021, year_basis="given")


def records(lines: list[str], first: int = 0) -> pl.LazyFrame:
    rows = [(first + at, at * 10, len(line.encode()), line) for at, line in enumerate(lines)]
    return pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")


def rows_of(lines: list[str], ctx: Context | None = None, first: int = 0) -> list[dict[str, Any]]:
    ctx = ctx or context()
    enveloped = syslog.envelope(records(lines, first), ctx).collect()
    mine = enveloped.filter(pl.col("program") == "slapd").select(list(SYSLOG_SCHEMA))
    rows = parse(mine.lazy(), ctx).collect()
    assert rows["record_no"].to_list() == mine["record_no"].to_list()
    assert rows["disposition"].null_count() == 0
    assert rows.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]))["reason"].null_count() == 0
    return rows.to_dicts()


def own_file(lines: list[str]) -> list[dict[str, Any]]:
    rows = parse(records(lines), context()).collect()
    assert rows["record_no"].to_list() == list(range(len(lines)))
    return rows.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return rows_of(SAMPLE.read_text().splitlines())


EVENTS = {
    2: "connect", 6: "bind", 9: "connect", 10: "search", 12: "bind", 14: "search", 17: "update", 19: "create",
    21: "move", 23: "delete", 27: "search", 28: "connect", 34: "bind", 37: "other", 39: "search", 42: "connect",
    44: "search", 46: "search",
}  # fmt: skip


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    assert {at: row["action"] for at, row in enumerate(sample) if row["disposition"] == "access_events"} == EVENTS
    others = {at: row["reason"] for at, row in enumerate(sample) if row["disposition"] in (IGNORED, QUARANTINED)}
    nothing, cut = "openldap: no access in the line", "openldap: line cut or damaged"
    assert others == {
        0: nothing, 1: nothing, 26: "openldap: unbind", 40: nothing, 41: "openldap: operation of the server itself",
        45: "openldap: end of a connection", 47: cut, 48: cut, 49: cut,
    }  # fmt: skip
    assert all(row["disposition"] == CONTINUATION for at, row in enumerate(sample) if at not in {*EVENTS, *others})


def test_connection_and_bind(sample: list[dict[str, Any]]) -> None:
    connect = {
        "source": "openldap", "protocol": "ldap", "op_raw": "ACCEPT", "outcome": "success", "principal_id": None,
        "principal_type": None, "src_ip_raw": "198.51.100.7:45011", "session_id": "812:1000", "host": "ldap1",
        "ts": datetime(2021, 3, 3, 8, 0, 1, tzinfo=UTC), "ts_basis": "assumed_zone", "agg_level": "event",
    }  # fmt: skip
    check(sample[2], connect)
    bound = {
        "principal_id": GATEWAY, "principal_type": "user", "credential_id": "pw:" + GATEWAY,
        "credential_type": "password", "auth_method": "SIMPLE", "tls_version": "TLSv1.3",
        "tls_cipher": "TLS_AES_256_GCM_SHA384", "src_ip_raw": "198.51.100.7:45011", "tenant_domain": "tenant-a.example",
    }  # fmt: skip
    check(sample[6], bound | {"action": "bind", "outcome": "success", "reason": None})
    check(sample[10], bound | {
        "action": "search", "op_raw": "SRCH", "ldap_base": "ou=people,dc=tenant-a,dc=example", "entries_returned": 24,
        "ldap_filter_class": "(&(objectclass=?)(mail=?))",
    })  # fmt: skip


def test_failures_and_writes(sample: list[dict[str, Any]]) -> None:
    check(sample[12], {
        "outcome": "failure", "reason": "49 invalidCredentials", "principal_id": "uid=mallory,dc=tenant-b,dc=example",
        "src_ip_raw": "[2001:db8::9]:5011", "tenant_domain": "tenant-b.example", "tls_version": None,
    })  # fmt: skip
    # After a bind that failed the connection is anonymous.
    check(sample[14], {"principal_id": None, "principal_type": "anonymous", "credential_type": "none", "ldap_base": ""})
    check(sample[17], {
        "op_raw": "MOD attr=userPassword mail", "outcome": "failure", "ldap_base": "uid=alice,ou=people,dc=tenant-a,dc=example",
        "reason": "50 insufficientAccessRights: no write access to parent", "entries_returned": None,
    })  # fmt: skip
    check(sample[23], {"op_raw": "DEL", "reason": "32 noSuchObject"})


def test_requests_without_result(sample: list[dict[str, Any]]) -> None:
    check(sample[27], {
        "action": "search", "outcome": "unknown", "reason": "the connection ended before the result", "op_count": 1,
        "principal_id": GATEWAY, "ldap_filter_class": "(uid=*)",
    })  # fmt: skip


def test_sasl_limits_and_restarts(sample: list[dict[str, Any]]) -> None:
    check(sample[34], {"principal_id": "uid=svc,cn=gssapi,cn=auth", "auth_method": "GSSAPI", "credential_id": None})
    check(sample[37], {"op_raw": "EXT oid=1.3.6.1.4.1.4203.1.11.3", "outcome": "success", "src_ip_raw": None})
    check(sample[39], {"outcome": "success", "reason": "4 sizeLimitExceeded", "entries_returned": 500})
    # The daemon began anew: the number is the same, the connection is not.
    check(sample[44], {"principal_id": None, "src_ip_raw": "203.0.113.9:1024", "session_id": "977:1000"})
    check(sample[46], {"principal_type": None, "src_ip_raw": None, "entries_returned": 2, "op_raw": "SEARCH RESULT"})


def test_blocks_give_the_same() -> None:
    lines = SAMPLE.read_text().splitlines()
    whole = rows_of(lines)
    for cut in range(1, len(lines), 3):
        ctx = context()
        halves = rows_of(lines[:cut], ctx) + rows_of(lines[cut:], ctx, cut)
        for name in ("disposition", "reason", "principal_id", "src_ip_raw", "ldap_base", "ldap_filter_class", "op_raw"):
            assert [row.get(name) for row in halves] == [row.get(name) for row in whole], (cut, name)


def test_own_file_in_hexadecimal() -> None:
    lines = [
        "681a0eb6.2be54ef4 0x7a33d7285740 @(#) $OpenLDAP: slapd 2.6.9 $",
        "\t@host:/build/servers/slapd",
        "681a12ed.337a96ce 0x7a31563fe6c0 conn=1000 fd=12 ACCEPT from IP=198.51.100.1:58312 (IP=0.0.0.0:1389)",
        '681a12ed.36145 0x7a31563fe6c0 conn=1000 op=0 BIND dn="cn=admin,dc=t,dc=example" method=128',
        "681a12ee conn=1000 op=0 RESULT tag=97 err=0 qtime=0.000012 etime=0.000103 text=",
        "cut line",
    ]
    rows = own_file(lines)
    assert [row["disposition"] for row in rows] == [
        IGNORED, IGNORED, "access_events", CONTINUATION, "access_events", QUARANTINED
    ]  # fmt: skip
    check(
        rows[2],
        {"ts": datetime(2025, 5, 6, 13, 47, 25, 863672, UTC), "ts_basis": "utc", "src_ip_raw": "198.51.100.1:58312"},
    )
    check(
        rows[4], {"ts_raw": "681a12ee", "principal_id": "cn=admin,dc=t,dc=example", "host": None, "session_id": "1000"}
    )
    text = "\n".join(lines)
    choice = registry.choose(head_of(text.encode(), "slapd.log"))
    assert not isinstance(choice, str)
    assert choice.name == "openldap"


DN = st.from_regex(r"uid=[a-z0-9\\=+ ]{1,12},dc=[a-z]{1,8},dc=example", fullmatch=True)
VALUE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='()*"'), max_size=12)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(DN, VALUE, st.integers(0, 10**9), st.sampled_from([0, 49]), st.ip_addresses(v=4).map(str))
def test_round_trip(dn: str, value: str, entries: int, code: int, address: str) -> None:
    lines = [
        f"{HEAD}conn=7 fd=9 ACCEPT from IP={address}:1 (IP=0.0.0.0:389)",
        f'{HEAD}conn=7 op=0 BIND dn="{dn}" method=128',
        f"{HEAD}conn=7 op=0 RESULT tag=97 err={code} text=",
        f'{HEAD}conn=7 op=1 SRCH base="{dn}" scope=2 deref=0 filter="(cn={value})"',
        f"{HEAD}conn=7 op=1 SEARCH RESULT tag=101 err=0 nentries={entries} text=",
    ]
    rows = rows_of(lines)
    check(rows[2], {"principal_id": dn.lower(), "outcome": "failure" if code else "success", "action": "bind"})
    check(rows[4], {
        "principal_id": None if code else dn.lower(), "ldap_base": dn, "entries_returned": entries,
        "ldap_filter_class": "(cn=?)", "src_ip_raw": f"{address}:1",
    })  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(uid=*)", "(uid=*)"), ("(uid=a)", "(uid=?)"), ("(uid=)", "(uid=?)"), ("(cn=a*b*)", "(cn=?*)"),
        ("(&(CN=*x)(!(mail>=3)))", "(&(cn=?*)(!(mail>=?)))"), ("(cn:dn:2.4.6:=x)", "(cn:dn:2.4.6:=?)"),
        (r"(cn=a\28b\29)", "(cn=?)"), ("(cn=cut", "(cn=?"), ("", ""),
    ],
)  # fmt: skip
def test_filter_class(text: str, expected: str) -> None:
    assert pl.select(filter_class(pl.lit(text))).item() == expected


def test_columns_are_of_the_contract(sample: list[dict[str, Any]]) -> None:
    rows = pl.DataFrame([row for row in sample if row["disposition"] == "access_events"], infer_schema_length=None)
    for column in contract("access_events").columns:
        if column.enum and column.name in rows.columns:
            assert set(rows[column.name].drop_nulls()) <= set(column.enum), column.name
    assert rows["outcome"].null_count() == rows["ts"].null_count() == 0


def test_damaged_lines_give_one_row_each() -> None:
    lines = SAMPLE.read_text().splitlines()
    chance = random.Random(3)
    damaged = [line[:at] for line in lines for at in range(33, len(line), 5)]
    damaged += [line[:at] + "\0\x1b" + line[at:] for line in lines for at in range(33, len(line), 17)]
    for _ in range(500):
        first, second = chance.sample(lines, 2)
        damaged.append(first[: chance.randrange(33, len(first))] + second[chance.randrange(20, len(second)) :])
    damaged += [lines[7] + "x" * 40_000, lines[7].replace("alice", "(((" * 5000), HEAD + "conn=" + "9" * 30]
    chance.shuffle(damaged)
    rows_of(damaged)


def test_memory_is_bounded() -> None:
    ctx = context()
    search = 'SRCH base="" scope=0 deref=0 filter="(a=b)"'
    rows_of([f"{HEAD}conn=1 op={op} {search}" for op in range(3000)], ctx)
    (row,) = rows_of([f"{HEAD}conn=1 fd=3 closed (connection lost)"], ctx)
    check(row, {"disposition": "access_events", "op_count": 1000})


def others() -> list[Path]:
    real = [p for p in SHARED.rglob("*") if p.is_file() and p.parent.name != "openldap"] if SHARED.is_dir() else []
    return real + [p for p in SAMPLES.iterdir() if p.stem != "openldap"]


def test_claims_no_other_log() -> None:
    for path in others():
        assert sniff(head_of(path.read_bytes()[:65536], path.name)) is None, path
    assert FORMAT.programs == "slapd"


@pytest.mark.skipif(not SHARED.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    for path in sorted((SHARED / "openldap").iterdir()):
        rows = rows_of([line for line in path.read_text().splitlines() if line.strip()])
        assert [row["disposition"] for row in rows].count(QUARANTINED) == 0
        (failed,) = (row for row in rows if row.get("action") == "bind")
        check(failed, {"outcome": "failure", "reason": "49 invalidCredentials", "tls_version": "TLS"})
        assert failed["principal_id"].startswith("uid=gipson,")
