"""Exchange admin audit log: objects of Search-AdminAuditLog as JSON and CSV."""

import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.exchange_admin_audit import FORMAT, sniff
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
LINES = (SAMPLES / "exchange_admin_audit.jsonl").read_text(encoding="utf-8").splitlines()
OBJECTS = [json.loads(line) for line in LINES]


def rows_of(texts: list[str], ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    lazy = pl.LazyFrame(frame, schema=RECORD_SCHEMA, orient="row")
    rows = FORMAT.parse(lazy, ctx or Context("e", variant="json")).collect()
    assert rows["record_no"].to_list() == list(range(len(texts)))
    assert rows["disposition"].null_count() == 0
    return rows.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def head(text: str) -> Head:
    return Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), "x")


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = []
    for values in (list(rows[0]), *(list(row.values()) for row in rows)):
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator="").writerow(values)
        lines.append(out.getvalue())
    return lines


def test_sample() -> None:
    rows = rows_of(LINES)
    assert [(row["disposition"], row["op"], row["reason"]) for row in rows] == [
        ("change_events", "forwarding", None),
        ("change_events", "mailbox_export", "Access denied"),
        ("change_events", "inbox_rule", None),
        ("ignored", None, "cmdlet that only reads"),
        ("change_events", "mailbox_setting", None),
        ("change_events", "add_credential", None),
        ("quarantined", None, "time not readable"),
        ("quarantined", None, "no CmdletName"),
    ]
    expected = {
        "source": "exchange_admin_audit",
        "ts": datetime(2026, 3, 2, 8, 0, 1, tzinfo=UTC),
        "ts_raw": "/Date(1772438401000)/",
        "ts_basis": "offset",
        "host": "EX01",
        "tenant_domain": "contoso.example",
        "op_raw": "Set-Mailbox",
        "outcome": "success",
        "actor_id": "contoso.example/users/admin",
        "actor_type": "user",
        "target_type": "mailbox",
        "target_id": "joey@contoso.example",
        "attr": "Identity; ForwardingSmtpAddress",
        "is_external_target": True,
        "credential_id": None,
    }
    check(rows[0], expected)
    check(rows[1], {"outcome": "failure", "target_id": "joey"})
    check(rows[2], {"new_value": "Name=.; Mailbox=joey@contoso.example; DeleteMessage=True"})
    check(rows[4], {"new_value": "Name=svc; Password=(not kept)", "ts": datetime(2026, 3, 2, 8, 0, 5, tzinfo=UTC)})
    check(rows[5], {"credential_id": "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334"})


def test_csv() -> None:
    base = {"ObjectModified": "x", "CmdletName": "Set-Mailbox", "Caller": "Admin@contoso.example", "Succeeded": "True"}
    base |= {"RunDate": "3/2/2026 9:00:05 AM", "OriginatingServer": "EX01 (15.1)"}
    given_ = [
        json.dumps([{"Name": "ForwardingSmtpAddress", "Value": "a@contoso.example"}]),
        '-ForwardingSmtpAddress "drop@evil.example" -Confirm:$false',
        "Identity, ForwardingSmtpAddress",
        '["Identity","Name"]',
        "System.Object[]",
    ]
    lines = ["#TYPE Selected", *table([base | {"CmdletParameters": value} for value in given_]), "x,y"]
    match = sniff(head("\n".join(lines)))
    assert match is not None
    assert (match.framing, match.variant) == ("csv", "csv")
    rows = rows_of(lines, Context("e", variant="csv", tz="Europe/Oslo"))
    assert [row["disposition"] for row in rows] == ["ignored"] * 2 + ["change_events"] * 5 + ["quarantined"]
    check(rows[2], {"op": "forwarding", "is_external_target": False, "ts": datetime(2026, 3, 2, 8, 0, 5, tzinfo=UTC)})
    check(rows[2], {"ts_basis": "assumed_zone", "actor_id": "admin@contoso.example"})
    check(rows[3], {"op": "forwarding", "is_external_target": True, "attr": "ForwardingSmtpAddress; Confirm"})
    check(rows[4], {"new_value": "Identity, ForwardingSmtpAddress", "attr": None})
    check(rows[5], {"new_value": '["Identity","Name"]'})
    check(rows[6], {"new_value": None})


def test_sniff() -> None:
    line = json.dumps(OBJECTS[0])
    for text, framing in (
        (line + "\n" + line, "lines"),
        (json.dumps([OBJECTS[0]]), "json"),
        (json.dumps(OBJECTS, indent=1), "json"),
    ):
        match = sniff(head(text))
        assert match is not None
        assert match.framing == framing
    for text in ("", "{}", '{"CmdletName":"x"}', "CmdletName,Caller\n", "[1]"):
        assert sniff(head(text)) is None


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.from_regex(r"[A-OQ-Z][a-z]{2,6}", fullmatch=True), st.text(max_size=15)), max_size=4),
    st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)),
    st.booleans(),
)
def test_round_trip(parameters: list[tuple[str, str]], moment: datetime, worked: bool) -> None:
    record = {
        "CmdletName": "Set-User",
        "Caller": "A@b.example",
        "Succeeded": worked,
        "RunDate": moment.isoformat() + "Z",
    }
    pairs = [{"Name": name, "Value": value} for name, value in parameters]
    (row,) = rows_of([json.dumps(record | {"CmdletParameters": pairs})])
    check(row, {"op": "user", "ts": moment.replace(tzinfo=UTC), "actor_id": "a@b.example"})
    assert row["outcome"] == ("success" if worked else "failure")
    assert (row["attr"] or "").split("; ") == (list(dict.fromkeys(name for name, _ in parameters)) or [""])


def test_damage_never_raises() -> None:
    text = json.dumps(OBJECTS[0])
    damaged = [text[:cut] for cut in range(0, len(text), 5)] + [text[:cut] + text for cut in range(0, len(text), 31)]
    damaged += ["", "\x00", "[]", "{}", '{"CmdletName":' + "[" * 5000, text.replace("Set-", "\x00\u2603")]
    damaged += [
        json.dumps(OBJECTS[0] | {"CmdletParameters": value}) for value in (1, "x", {"Name": 1}, [[1]], [None], '-A "')
    ]
    damaged.append(json.dumps(OBJECTS[0] | {"Error": "x" * 500_000, "Succeeded": "maybe"}))
    rows = rows_of(damaged)
    assert {row["reason"] for row in rows if row["disposition"] == "quarantined"} <= {
        "not a JSON object", "no CmdletName", "time not readable"
    }  # fmt: skip
    check(rows[-1], {"disposition": "change_events", "outcome": "unknown"})


def test_blocks_and_columns() -> None:
    import data_contracts as contracts

    lines = table([{"CmdletName": "Set-User", "RunDate": "28/2/2026 9:00", "Caller": f"c{n}"} for n in range(4)])
    context = Context("e", variant="csv")
    halves = [*rows_of(lines[:2], context), *rows_of(lines[2:], context)]
    for row, other in zip(halves, rows_of(lines, Context("e", variant="csv")), strict=True):
        check(row, {name: value for name, value in other.items() if name not in ("record_no", "byte_offset")})
    known = {column.name for column in contracts.contract("change_events").columns}
    assert set(halves[1]) - known <= {"disposition", "source_id", "tenant_domain"}


OTHERS = [path for path in sorted([*SAMPLES.glob("*"), *SHARED.glob("*/*")]) if path.is_file()]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}/{path.name}"[:60])
def test_only_its_own_files_are_claimed(path: Path) -> None:
    choice = registry.choose(head_of(path.read_bytes(), path.name))
    assert (not isinstance(choice, str) and choice.name == FORMAT.name) == path.name.startswith(FORMAT.name)
