"""The access log of 389 Directory Server, classic and JSON: the same rows from both."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.ds389 import parse, sniff
from transforms.framing import head_of
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, RECORD_SCHEMA, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SAMPLE = SAMPLES / "ds389.log"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
GATEWAY = "cn=gateway,dc=tenant-a,dc=example"
STAMP = "[03/Mar/2024:08:00:01.565520711 -0400]"


def rows_of(lines: list[str], ctx: Context | None = None, first: int = 0, variant: str = "") -> list[dict[str, Any]]:
    rows = [(first + at, at * 10, len(line.encode()), line) for at, line in enumerate(lines)]
    lazy = pl.LazyFrame(rows, schema=RECORD_SCHEMA, orient="row")
    found = parse(lazy, ctx or Context("e" * 64, variant=variant)).collect()
    assert found["record_no"].to_list() == [row[0] for row in rows]
    assert found["disposition"].null_count() == 0
    assert found.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED]))["reason"].null_count() == 0
    return found.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return rows_of(SAMPLE.read_text().splitlines())


EVENTS = {
    2: "connect", 5: "bind", 8: "search", 12: "update", 14: "search", 20: "search", 21: "connect", 24: "bind",
    26: "other", 27: "connect", 32: "bind", 34: "search",
}  # fmt: skip


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    assert {at: row["action"] for at, row in enumerate(sample) if row["disposition"] == "access_events"} == EVENTS
    others = {at: row["reason"] for at, row in enumerate(sample) if row["disposition"] in (IGNORED, QUARANTINED)}
    untimed, own, cut = "line without a time", "operation of the server itself", "line cut or damaged"
    told = {
        0: untimed,
        1: untimed,
        10: own,
        11: own,
        18: "unbind",
        19: "end of a connection",
        35: cut,
        36: cut,
        37: cut,
    }
    assert others == {at: "ds389: " + text for at, text in told.items()}
    assert all(row["disposition"] == CONTINUATION for at, row in enumerate(sample) if at not in {*EVENTS, *others})


def test_rows(sample: list[dict[str, Any]]) -> None:
    bound = {
        "source": "ds389", "protocol": "ldap", "principal_id": GATEWAY, "credential_id": "pw:" + GATEWAY,
        "auth_method": "SIMPLE", "src_ip_raw": "198.51.100.7", "tls_version": "TLSv1.3", "ts_basis": "offset",
        "tls_cipher": "128-bit AES-GCM", "session_id": "104", "tenant_domain": "tenant-a.example",
    }  # fmt: skip
    check(sample[2], {"action": "connect", "tls_version": "TLS", "principal_type": None})
    check(sample[5], bound | {"outcome": "success", "ts": datetime(2024, 3, 3, 12, 0, 1, 620125, UTC)})
    check(
        sample[8], bound | {"entries_returned": 24, "ldap_filter_class": "(&(objectclass=?)(cn=?*))", "op_raw": "SRCH"}
    )
    check(sample[12], bound | {"outcome": "failure", "reason": "50 insufficientAccessRights", "op_raw": "MOD"})
    # Given up: that line is the event, with what was returned so far; the result after it is part of it.
    check(sample[14], bound | {"outcome": "unknown", "reason": "abandoned", "entries_returned": 700})
    # The result comes after the end of its connection.
    check(sample[20], bound | {"outcome": "success", "entries_returned": 3, "ldap_filter_class": "(mail=*)"})
    check(sample[24], {"principal_id": "cn=directory manager", "auth_method": "EXTERNAL", "src_ip_raw": None})
    failed = "49 invalidCredentials: SASL(-13): authentication failure"
    check(
        sample[32], {"outcome": "failure", "reason": failed, "auth_method": "DIGEST-MD5", "src_ip_raw": "198.51.100.99"}
    )
    check(sample[34], {"principal_id": None, "principal_type": "anonymous", "reason": "48 inappropriateAuthentication"})


def test_blocks_give_the_same() -> None:
    lines = SAMPLE.read_text().splitlines()
    whole = rows_of(lines)
    for cut in range(1, len(lines), 2):
        ctx = Context("e" * 64)
        halves = rows_of(lines[:cut], ctx) + rows_of(lines[cut:], ctx, cut)
        for name in ("disposition", "reason", "principal_id", "src_ip_raw", "ldap_base", "op_raw"):
            assert [row.get(name) for row in halves] == [row.get(name) for row in whole], (cut, name)


def objects() -> list[dict[str, Any]]:
    def made(operation: str, **values: Any) -> dict[str, Any]:
        time = {"local_time": "2024-03-03T08:00:01.565520711 -0400"}
        return time | {"operation": operation, "key": "1709467200-7", "conn_id": 7, **values}

    return [
        made("CONNECTION", fd=64, slot=64, tls=True, client_ip="fe80::1%eth0", server_ip="192.0.2.1"),
        made("TLS_INFO", tls_version="TLS1.3", keysize=128, cipher="AES-GCM"),
        made("BIND", op_id=0, bind_dn="cn=Gateway,dc=tenant-a,dc=example", version=3, method="128"),
        made("RESULT", op_id=0, msg="", tag=97, err=0, nentries=0, bind_dn=GATEWAY),
        made("SEARCH", op_id=1, base_dn="dc=tenant-a,dc=example", scope=2, filter='(cn="a b*)', attrs=["mail"]),
        made("RESULT", op_id=1, msg="", tag=101, err=0, nentries=24, notes=[{"note": "U"}]),
        made("MODRDN", op_id=2, target_dn="uid=a,dc=tenant-a,dc=example", newrdn="uid=b"),
        made("RESULT", op_id=2, tag=109, err=68, nentries=0),
        made("EXTENDED_OP", op_id=3, oid="1.3.6.1.4.1.4203.1.11.1"),
        made("RESULT", op_id=3, tag=120, err=0, nentries=0),
        made("RESULT", op_id=3, internal_op=True, tag=48, err=32, nentries=0),
        made("SEARCH", op_id=4, base_dn="", scope=0, filter="(a=b)"),
        made("ABANDON", op_id=5, nentries=3, msgid=3, target_op="4"),
        made("UNBIND", op_id=6),
        made("DISCONNECT", fd=64, close_reason="U1"),
        {"header": "389-Directory"},
        made("RESULT", op_id=9, tag=101, err="?", nentries=0),
        made("SEARCH", op_id=9) | {"local_time": "now"},
    ]


def test_json() -> None:
    rows = rows_of([*map(json.dumps, objects()), '{"local_time":'], variant="jsonl")
    events = {at: row["action"] for at, row in enumerate(rows) if row["disposition"] == "access_events"}
    assert events == {0: "connect", 3: "bind", 5: "search", 7: "move", 9: "other", 12: "search"}
    assert [row["disposition"] for row in rows[13:]] == [*[IGNORED] * 3, *[QUARANTINED] * 3]
    bound = {
        "principal_id": GATEWAY,
        "src_ip_raw": "fe80::1%eth0",
        "tls_version": "TLSv1.3",
        "session_id": "1709467200-7",
    }
    check(rows[5], bound | {"ldap_filter_class": "(cn=?*)", "entries_returned": 24, "op_raw": "SEARCH"})
    check(rows[7], bound | {"outcome": "failure", "reason": "68 entryAlreadyExists"})
    check(rows[9], bound | {"op_raw": "EXTENDED_OP 1.3.6.1.4.1.4203.1.11.1"})
    check(rows[12], bound | {"outcome": "unknown", "reason": "abandoned", "entries_returned": 3})


def test_how_json_is_framed() -> None:
    lines = "\n".join(json.dumps(o) for o in objects())
    pretty = "\n".join(json.dumps(o, indent=2) for o in objects())
    for text, framing in ((lines, "lines"), (pretty, "json"), (json.dumps(objects()), "json")):
        choice = registry.choose(head_of(text.encode(), "access"))
        assert not isinstance(choice, str)
        assert (choice.name, choice.framing) == ("ds389", framing)


VALUE = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="()*"), max_size=12)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(VALUE, st.integers(0, 10**9), st.ip_addresses(v=6).map(str), st.booleans())
def test_round_trip(value: str, entries: int, address: str, as_json: bool) -> None:
    if as_json:
        made = objects()
        made[0]["client_ip"], made[4]["filter"], made[5]["nentries"] = address, f"(cn={value})", entries
        row = rows_of([json.dumps(o) for o in made[:6]], variant="jsonl")[5]
    else:
        lines = [
            f"{STAMP} conn=1 fd=64 slot=64 connection from {address} to 192.0.2.1",
            f'{STAMP} conn=1 op=0 SRCH base="dc=a" scope=2 filter="(cn={value})" attrs="c d"',
            f"{STAMP} conn=1 op=0 RESULT err=0 tag=101 nentries={entries} etime=0.1",
        ]
        row = rows_of(lines)[2]
    check(row, {"src_ip_raw": address, "entries_returned": entries, "ldap_filter_class": "(cn=?)"})


def test_damaged_lines_give_one_row_each() -> None:
    lines = SAMPLE.read_text().splitlines()
    chance = random.Random(3)
    damaged = [line[:at] for line in lines for at in range(0, len(line), 5)]
    damaged += [line[:at] + "\0\x1b" + line[at:] for line in lines for at in range(1, len(line), 17)]
    for _ in range(400):
        first, second = chance.sample(lines, 2)
        damaged.append(first[: chance.randrange(1, len(first))] + second[chance.randrange(1, len(second)) :])
    damaged += [lines[6] + "x" * 40_000, lines[6].replace("person", "(((" * 5000)]
    chance.shuffle(damaged)
    rows_of(damaged)
    texts = [json.dumps(o) for o in objects()]
    rows_of([text[:at] for text in texts for at in range(0, len(text), 11)], variant="jsonl")


def others() -> list[Path]:
    real = [p for p in SHARED.rglob("*") if p.is_file() and p.parent.name != "ds389"] if SHARED.is_dir() else []
    return real + [p for p in SAMPLES.iterdir() if p.stem != "ds389"]


def test_claims_no_other_log() -> None:
    for path in others():
        assert sniff(head_of(path.read_bytes()[:65536], path.name)) is None, path


@pytest.mark.skipif(not SHARED.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    for path in sorted((SHARED / "ds389").iterdir()):
        text = path.read_text()
        match = sniff(head_of(text.encode(), path.name))
        assert match is not None
        rows = rows_of(text.splitlines(), variant=match.variant)
        assert QUARANTINED not in {row["disposition"] for row in rows}
        actions = {row.get("action") for row in rows if row["disposition"] == "access_events"}
        assert {"connect", "bind", "search", "create"} <= actions
