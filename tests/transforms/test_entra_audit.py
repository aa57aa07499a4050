"""Entra directory audit: the same ops as in the unified audit, from every shape; no record is lost."""

import csv
import io
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
from transforms.formats.entra_audit import FORMAT
from transforms.framing import head_of
from transforms.model import RECORD_SCHEMA, Context, Head

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
LINES = (SAMPLES / "entra_audit.jsonl").read_text(encoding="utf-8").splitlines()
TENANT = "4bbb79f7-5724-4c9e-95f3-de075f6ec090"
APP = "6131d760-7fda-4db5-8bb1-b771898e9f15"
PRINCIPAL = "b029d485-a308-4311-8720-fb3192e5284e"
KEYS = [f"0000000{n}-aaaa-4bbb-8ccc-00000000000{n}" for n in range(5)]
KEY_TEXT = "KeyIdentifier={},KeyType=AsymmetricX509Cert,KeyUsage=Verify,DisplayName=CN=gateway"


def rows_of(texts: list[str], ctx: Context | None = None) -> list[dict[str, Any]]:
    frame = [(number, number * 10, len(text.encode()), text) for number, text in enumerate(texts)]
    lazy = pl.LazyFrame(frame, schema=RECORD_SCHEMA, orient="row")
    rows = FORMAT.parse(lazy, ctx or Context("e" * 64, variant="jsonl")).collect()
    assert rows.get_column("record_no").to_list() == list(range(len(texts)))
    assert rows.get_column("disposition").null_count() == 0
    return rows.to_dicts()


def head(text: str) -> Head:
    return Head(text.encode()[:65536], text[:65536], tuple(text[:65536].splitlines()), "x")


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


def change(activity: str, targets: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    record = {"id": "d", "activityDisplayName": activity, "activityDateTime": "2026-03-02T08:00:00Z"}
    return record | {"targetResources": targets, "initiatedBy": {}} | fields


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    assert FORMAT.sniff is not None
    match = FORMAT.sniff(head("\n".join(LINES)))
    assert match is not None
    assert (match.framing, match.variant) == ("lines", "jsonl")
    return rows_of(LINES)


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    kinds = [row["disposition"] for row in sample]
    assert kinds == [*["change_events"] * 14, "access_events", "ignored", "quarantined", "change_events", "quarantined"]
    assert [sample[n]["reason"] for n in (15, 16, 18)] == [
        "category RiskyUsers: neither sign-in nor directory audit",
        "time not readable",
        "not a JSON object",
    ]
    assert sample[14]["source"] == "entra_sp_signin"
    assert sample[17]["source_id"] == sample[0]["source_id"]


def test_two_keys_added_at_once(sample: list[dict[str, Any]]) -> None:
    expected = {
        "source": "entra_audit",
        "source_id": "Directory_c-1_6X649_1",
        "ts": datetime(2026, 3, 2, 8, 0, 1, 516809, UTC),
        "ts_raw": "2026-03-02T08:00:01.5168093+00:00",
        "ts_basis": "offset",
        "tenant_id": TENANT,
        "tenant_domain": None,
        "op": "add_credential",
        "op_raw": "Add service principal credentials",
        "outcome": "success",
        "reason": None,
        "actor_id": "b9814691-9ca1-4e55-a1ac-8ef5dd010ec0",
        "actor_type": "service_principal",
        "app_id": None,
        "session_id": "c-1",
        "src_ip_raw": "198.51.100.4",
        "user_agent": "Graph Client 2.1",
        "target_type": "service_principal",
        "target_id": PRINCIPAL,
        "attr": "KeyDescription; Included Updated Properties",
        "old_value": None,
        "new_value": "; ".join(KEY_TEXT.format(key) for key in KEYS[3:5]),
        "credential_id": KEYS[3],
        "is_external_target": None,
    }
    check(sample[0], expected)


def test_a_key_removed(sample: list[dict[str, Any]]) -> None:
    expected = {
        "op": "remove_credential",
        "credential_id": KEYS[1],
        "old_value": KEY_TEXT.format(KEYS[1]),
        "new_value": None,
        "target_type": "app",
        "target_id": APP,  # the client id, as sign-ins have it
        "actor_id": "admin@contoso.example",
        "actor_type": "user",
        "tenant_domain": "contoso.example",
    }
    check(sample[1], expected)


def test_changes(sample: list[dict[str, Any]]) -> None:
    rows = [(row["op"], row["target_type"], row["target_id"]) for row in sample[2:14]]
    application = "11111111-2222-4333-8444-555555555555"
    assert rows == [
        ("consent", "service_principal", PRINCIPAL),
        ("add_app_role", "service_principal", PRINCIPAL),  # who gets the role, not the interface that grants it
        ("add_role", "user", "eve@contoso.example"),
        ("remove_owner", "service_principal", PRINCIPAL),
        ("federation", "domain", "contoso.example"),
        ("mfa", "user", "joey@contoso.example"),
        ("licence", "user", "joey@contoso.example"),
        ("group_member", "group", "g-1"),
        ("policy", "policy", "p-1"),
        ("remove_app", "app", application),
        ("add_app", "app", application),
        ("update_credential", "app", application),
    ]
    assert sample[2]["new_value"].endswith("[[Scope: Mail.Read full_access_as_app]]")
    assert sample[4]["new_value"] == "Role.DisplayName=Global Administrator; target=r-1"
    assert sample[9]["new_value"] == "Group.DisplayName=Gateway admins; target=joey@contoso.example"
    check(sample[6], {"outcome": "failure", "reason": "Denied", "old_value": '["urn:a"]', "new_value": '["urn:b"]'})
    check(sample[8], {"attr": "additionalDetails", "new_value": "seq=1"})
    check(sample[11], {"actor_id": "managed service identity", "actor_type": None})


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("entra_audit*")), ids=lambda path: path.name)
def test_every_shape_says_the_same(path: Path, sample: list[dict[str, Any]]) -> None:
    text = path.read_bytes().decode()
    assert FORMAT.sniff is not None
    match = FORMAT.sniff(head(text))
    assert match is not None
    assert match.framing == ("csv" if path.suffix == ".csv" else "lines")
    rows = rows_of(text.splitlines(), Context("e" * 64, variant=match.variant))
    by_id = {row["source_id"]: row for row in sample[:14]}
    found = [row for row in rows if row["disposition"] == "change_events"]
    assert len(found) >= 3
    for row in found:
        other = by_id[row["source_id"]]
        names = ("op", "op_raw", "actor_id", "target_type", "target_id", "credential_id", "old_value", "new_value")
        check(row, {name: other[name] for name in names})
        assert abs(row["ts"] - other["ts"]).total_seconds() < 0.001
    assert {row["tenant_id"] for row in found} == ({None} if "graph" in path.name else {TENANT})


def test_csv_of_a_query_that_takes_the_key_out() -> None:
    names = ["TimeGenerated [UTC]", "OperationName", "InitiatingUserOrApp", "InitiatingIpAddress", "UserAgent"]
    names += ["targetDisplayName", "targetId", "targetType", "keyIdentifier", "Id", "TargetResources", "Result"]
    values = ["3/2/2026, 8:00:01.000 AM", "Add service principal credentials", "Eve@contoso.example", "203.0.113.9"]
    values += ["curl/8, x", "gateway", PRINCIPAL, "ServicePrincipal", KEYS[0].upper(), "d-1", "", "success"]
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows([names, values])
    context = Context("e" * 64, variant="csv")
    row = rows_of(out.getvalue().splitlines(), context)[1]
    told = {
        "op": "add_credential",
        "credential_id": KEYS[0],
        "target_id": PRINCIPAL,
        "target_type": "service_principal",
    }
    check(row, told | {"actor_id": "eve@contoso.example", "actor_type": "user", "src_ip_raw": "203.0.113.9"})
    without = [",".join(names[1:]), "Add user,,,,,u-1,,,,,"]
    assert rows_of(without, Context("e" * 64, variant="csv"))[1]["reason"] == "no time"


def test_log_analytics_json() -> None:
    graph = json.loads((SAMPLES / "entra_audit_graph.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert FORMAT.sniff is not None
    for indent in (None, 1):
        answer = FORMAT.sniff(head(json.dumps({"@odata.context": "x", "value": [graph]}, indent=indent)))
        assert answer is not None
        assert (answer.framing, answer.variant) == ("json", "json")
    row = {name[0].upper() + name[1:]: value for name, value in graph.items()}
    row |= {"TimeGenerated": "2026-03-02T08:00:01.5Z", "AADTenantId": TENANT, "TenantId": "w", "Type": "AuditLogs"}
    row |= {"InitiatedBy": json.dumps(row["InitiatedBy"]), "TargetResources": json.dumps(row["TargetResources"])}
    match = FORMAT.sniff(head(json.dumps(row)))
    assert match is not None
    assert match.variant == "table-jsonl"
    (found,) = rows_of([json.dumps(row)], Context("e" * 64, variant=match.variant))
    check(found, {"op": "add_credential", "credential_id": KEYS[3], "tenant_id": TENANT, "source": "entra_audit"})


@pytest.mark.parametrize(
    ("activity", "kinds", "expected"),
    [
        ("Add owner to application", ["User", "Application"], ("add_owner", "app", "1")),
        ("Add member to role", ["Role", "ServicePrincipal"], ("add_role", "service_principal", "1")),
        ("Remove member from role", ["User", "Role"], ("remove_role", "user", "0")),
        ("Update policy", ["Something"], ("policy", "policy", "0")),
        ("Add device", ["Device"], ("other", "other", "0")),
        ("Update service principal", [], ("update_app", "service_principal", None)),
    ],
)
def test_target_is_what_was_changed(activity: str, kinds: list[str], expected: tuple[str, str, str | None]) -> None:
    targets = [{"id": str(number), "type": kind} for number, kind in enumerate(kinds)]
    (row,) = rows_of([json.dumps(change(activity, targets))])
    assert (row["op"], row["target_type"], row["target_id"]) == expected


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.uuids().map(str), max_size=5, unique=True), st.lists(st.booleans(), min_size=10, max_size=10), st.text()
)
def test_key_difference_round_trip(ids: list[str], where: list[bool], name: str) -> None:
    before = [key for key, kept in zip(ids, where[:5], strict=False) if kept]
    after = [key for key, kept in zip(ids, where[5:], strict=False) if kept]
    lists = [json.dumps([f"[KeyIdentifier={key},DisplayName={name}]" for key in keys]) for keys in (before, after)]
    modified = [{"displayName": "KeyDescription", "oldValue": lists[0], "newValue": lists[1]}]
    targets = [{"id": "1", "type": "ServicePrincipal", "modifiedProperties": modified}]
    (row,) = rows_of([json.dumps(change("Update service principal", targets))])
    added, removed = [k for k in after if k not in before], [k for k in before if k not in after]
    op = "add_credential" if added else "remove_credential" if removed else "update_app"
    assert (row["op"], row["credential_id"]) == (op, next(iter(added + removed), None))
    for column, keys in (("new_value", added), ("old_value", removed)):
        if added or removed:
            assert (row[column] or "").count("KeyIdentifier=") >= len(keys)
            assert all(key in row[column] for key in keys)


def test_damaged_records_give_one_row_each() -> None:
    rng = random.Random(5)
    damaged = ["", "\x00", "[]", "{}", '{"category":"AuditLogs","properties":' + "[" * 5000, '{"category":"AuditLogs"}']
    damaged.append(json.dumps(change("Add user", [{"modifiedProperties": [{"displayName": "x" * 500_000}]}])))
    for line in LINES[:14]:
        cut = rng.randrange(len(line))
        other = rng.choice(LINES)
        damaged += [line[:cut], line[:cut] + other[cut:], line[:cut] + "\x00" + line[cut:], line + other]
    rows = rows_of(damaged)
    assert rows[6]["disposition"] == "change_events"
    reasons = {row["reason"] for row in rows if row["disposition"] == "quarantined"}
    assert reasons <= {"not a JSON object", "no category", "no time", "time not readable", "no operation"}


def test_blocks_and_columns() -> None:
    import data_contracts as contracts

    known = {column.name for table in FORMAT.tables for column in contracts.contract(table).columns}
    whole = rows_of(LINES)
    assert set(whole[0]) - known == {"disposition", "source_id", "tenant_domain"}
    ops = set(next(c.enum for c in contracts.contract("change_events").columns if c.name == "op") or ())
    assert {row["op"] for row in whole if row["disposition"] == "change_events"} <= ops
    for name in ("entra_audit.csv", "entra_signin.csv"):
        texts = (SAMPLES / name).read_bytes().decode().splitlines()
        once, context = Context("e" * 64, variant="csv"), Context("e" * 64, variant="csv")
        halves = [*rows_of(texts[:3], context), *rows_of(texts[3:], context)]
        for row, other in zip(halves, rows_of(texts, once), strict=True):
            check(row, {name: value for name, value in other.items() if name not in ("record_no", "byte_offset")})


@pytest.mark.skipif(not SHARED.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    (path,) = SHARED.glob("azuread_audit/*")
    rows = rows_of(path.read_text(encoding="utf-8").splitlines())
    assert [row["op"] for row in rows] == ["add_credential", "update_app", "update_app"]
    assert rows[0]["credential_id"] == "d747da7e-e11b-4af2-aede-0487c44067af"


OTHERS = [path for path in sorted([*SAMPLES.glob("*"), *SHARED.glob("*/*")]) if path.is_file()]


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}/{path.name}"[:60])
def test_only_its_own_files_are_claimed(path: Path) -> None:
    mine = path.name.startswith("entra_audit") or path.parent.name == "azuread_audit"
    choice = registry.choose(head_of(path.read_bytes(), path.name))
    assert (not isinstance(choice, str) and choice.name == "entra_audit") == mine
