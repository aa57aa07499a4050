"""Exchange cmdlet log: changes become events, readers are left out, whoever acts as another is seen."""

import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.exchange_cmdlet import COLUMNS, FORMAT, sniff
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
LINES = (SAMPLES / "exchange_cmdlet.log").read_text(encoding="utf-8").splitlines()


def rows_of(lines: list[str], ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = [(number, number * 10, len(line.encode()), line) for number, line in enumerate(lines)]
    rows = FORMAT.parse(pl.LazyFrame(frame, schema=RECORD_SCHEMA, orient="row"), ctx or Context("e")).collect()
    assert rows["record_no"].to_list() == list(range(len(lines)))
    return [{name: value for name, value in row.items() if value is not None} for row in rows.to_dicts()]


def render(**values: str) -> str:
    given_ = {"DateTime": "2026-03-02T08:00:00.000Z", "Cmdlet": "Set-Mailbox", "ExecutionResult": "Success"} | values
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="").writerow([given_.get(name, "") for name in COLUMNS])
    return out.getvalue()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def test_sample_row_by_row() -> None:
    rows = rows_of(LINES)
    event = ("change_events", None)
    kinds = [(row["disposition"], None if row["disposition"] == event[0] else row["reason"]) for row in rows]
    assert kinds == [
        *[("ignored", "header")] * 5,
        *[event] * 2,
        ("ignored", "cmdlet that only reads"),
        ("ignored", "health probe"),
        *[event] * 4,
        ("quarantined", "field count does not fit the header"),
        ("ignored", "blank line"),
        ("quarantined", "time is not readable"),
    ]
    assert {name: rows[5][name] for name in rows[5] if name not in ("byte_offset", "byte_length")} == {
        "record_no": 5,
        "disposition": "change_events",
        "source": "exchange_cmdlet",
        "source_id": "00000000-0000-4000-8000-000000000401 EX01 2026-03-02T08:00:01.866Z",
        "ts": datetime(2026, 3, 2, 8, 0, 1, 866000, UTC),
        "ts_raw": "2026-03-02T08:00:01.866Z",
        "ts_basis": "utc",
        "host": "EX01",
        "op": "add_role",
        "op_raw": "New-ManagementRoleAssignment",
        "outcome": "success",
        "actor_id": "administrator",
        "actor_type": "user",
        "session_id": "2d91233f-4398-44c5-8a42-d1e62cd4047b",
        "user_agent": "PowerShell (PSSenderInfo=jones@contoso.example)",
        "target_type": "role",
        "attr": "Role; SecurityGroup",
        "new_value": "Role=Mailbox Import Export; SecurityGroup=Organization Management",
    }


def test_changes() -> None:
    rows = rows_of(LINES)
    told = "Error: Unknown: ProcessRecord=Failed to communicate, with the mailbox"
    check(rows[6], {"op": "mailbox_export", "outcome": "failure", "reason": told, "target_id": "jones"})
    assert rows[6]["new_value"].endswith("FilePath=\\\\127.0.0.1\\c$\\inetpub\\x.aspx")
    # A reader that failed: somebody feels his way.
    check(rows[9], {"op": "other", "outcome": "failure", "op_raw": "Get-Mailbox", "target_id": "nobody"})
    forwarded = {"op": "forwarding", "is_external_target": True, "target_id": "joey@contoso.example"}
    check(rows[10], forwarded | {"tenant_domain": "contoso.example", "actor_id": "contoso\\admin"})
    assert rows[10]["new_value"].endswith("DeliverToMailboxAndForward=False; Confirm=$false")
    check(rows[11], {"op": "mailbox_setting", "new_value": "Name=svc; Password=(not kept)"})
    check(rows[12], {"op": "mailbox_export", "target_type": "mailbox", "target_id": "joey"})


VALUE = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="\"'"), min_size=1, max_size=20)


@settings(max_examples=15, deadline=None)
@given(st.dictionaries(st.from_regex(r"[A-OQ-Z][a-z]{3,6}", fullmatch=True), VALUE, max_size=4), st.booleans())
def test_round_trip(parameters: dict[str, str], worked: bool) -> None:
    line = " ".join(f'-{name} "{value}, -x"' for name, value in parameters.items())
    (row,) = rows_of([render(Parameters=line, ExecutionResult="Success" if worked else "Error")])
    check(row, {"attr": "; ".join(parameters) or None, "outcome": "success" if worked else "failure"})
    values = [f"{value}, -x" for value in parameters.values()]
    pairs = [f"{name}={value}" for name, value in zip(parameters, values, strict=True)]
    assert row.get("new_value") == ("; ".join(pairs) if len(pairs) > 1 else next(iter(values), None))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-Force", "attr=Force"),
        ("-Confirm:$false -Name x", "Confirm=$false; Name=x"),
        ("-Name 'a b' -Size 5", "Name=a b; Size=5"),
        ('-A "x', "x"),
        ("no parameters", None),
    ],
)
def test_cmdlet_lines(line: str, expected: str | None) -> None:
    (row,) = rows_of([render(Parameters=line)])
    assert (row.get("new_value") or (f"attr={row['attr']}" if "attr" in row else None)) == expected


def test_damage_never_raises() -> None:
    whole = LINES[6]
    damaged = [whole[:cut] for cut in range(0, len(whole), 9)]
    damaged += [whole[:60] + LINES[10][cut:] for cut in range(0, 200, 11)]
    damaged += ["\x00", render(Parameters='-A "' * 20_000), render(Cmdlet="\N{SNOWMAN}" * 5000), render(Cmdlet="")]
    damaged += ["#Fields: a,b", render(AuthenticatedUser="x" * 200_000)]
    assert {row["disposition"] for row in rows_of(damaged)} == {"change_events", "ignored", "quarantined"}


def test_blocks() -> None:
    context = Context("e")
    halves = [*rows_of(LINES[:8], context), *rows_of(LINES[8:], context)]
    for row, other in zip(halves, rows_of(LINES), strict=True):
        check(row, {name: value for name, value in other.items() if name not in ("record_no", "byte_offset")})


def test_columns_are_those_of_the_contract() -> None:
    import data_contracts as contracts

    columns = contracts.contract("change_events").columns
    known = {column.name for column in columns}
    rows = rows_of(LINES)
    assert {name for row in rows for name in row} - known == {"disposition", "source_id", "tenant_domain"}
    ops = set(next(column.enum for column in columns if column.name == "op") or ())
    assert {row["op"] for row in rows if "op" in row} <= ops


def test_recognised_without_its_header() -> None:
    rows = "\n".join(LINES[5:13])
    match = sniff(Head(rows.encode(), rows, tuple(rows.splitlines()), "x"))
    assert match is not None
    assert match.score >= 0.3


OTHERS = [path for path in sorted([*SAMPLES.glob("*"), *SHARED.glob("*/*")]) if path.is_file()]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}/{path.name}"[:60])
def test_only_its_own_files_are_claimed(path: Path) -> None:
    choice = registry.choose(head_of(path.read_bytes(), path.name))
    assert (not isinstance(choice, str) and choice.name == FORMAT.name) == path.name.startswith("exchange_cmdlet")
