"""The program behind docs/labelled_samples.md, on records made here and on the real ones where they are."""

import json
from pathlib import Path

import pytest

from tests.evaluate import labelled

REAL = Path(__file__).parents[3] / "shared" / "samples" / "m365_ual"
PAGE = Path(__file__).parents[2] / "docs" / "labelled_samples.md"


def record(operation: str, **parameters: str) -> str:
    held = {
        "CreationTime": "2021-02-03T04:05:06", "Id": "2ae1ee39-a1d2-4c35-9c4b-6b0b1b1b0001", "Operation": operation,
        "OrganizationId": "8d4121ed-0008-406d-bff9-0d5bb3121831", "RecordType": 1, "ResultStatus": "True", "UserType": 2,
        "UserKey": "1", "Version": 1, "Workload": "Exchange", "ObjectId": "bea@tenant.example", "UserId": "ann@tenant.example",
        "Parameters": [{"Name": name, "Value": value} for name, value in parameters.items()],
    }  # fmt: skip
    return json.dumps(held) + "\n"


def test_the_name_tells_the_technique(tmp_path: Path) -> None:
    for name in (
        "lab__t1562-Bypass.json",
        "t1531_Remove members.csv",
        "T1564.008_New_rule",
        "demo.csv",
        "test1234_a.csv",
    ):
        (tmp_path / name).write_text("")
    found = [path.name for path in labelled.samples(tmp_path)]
    assert found == ["T1564.008_New_rule", "lab__t1562-Bypass.json", "t1531_Remove members.csv"]


def test_a_change_that_says_enough_by_itself_is_found(tmp_path: Path) -> None:
    path = tmp_path / "lab__t1562.008_Audit_bypass.json"
    path.write_text(
        record("Set-MailboxAuditBypassAssociation", Identity="bea@tenant.example", AuditBypassEnabled="True")
    )
    found = labelled.answer(path)
    assert (found.technique, found.simulated, found.kind, found.events) == ("T1562.008", "Audit bypass", "json", 1)
    assert [(name, severity) for name, severity, _ in found.found] == [("X09", "high")]
    assert found.silent == ()
    assert "1 of 1 files are found." in labelled.document([found])


def test_a_change_without_its_use_is_not_found_and_the_page_says_why(tmp_path: Path) -> None:
    path = tmp_path / "t1098.002_Send_as.json"
    path.write_text(record("Add-RecipientPermission", Trustee="cec@tenant.example", AccessRights="SendAs"))
    found = labelled.answer(path)
    assert (found.events, found.found) == (1, ())
    assert "edge_days has no rows" in dict(found.silent)["L05"]
    page = labelled.document([found])
    assert "0 of 1 files are found." in page
    assert "- T1098.002. " in page
    assert "edge_days has no rows" in page


@pytest.mark.skipif(not REAL.is_dir(), reason="the published samples are not here")
def test_the_page_says_what_the_real_files_show() -> None:
    files = labelled.samples(REAL)
    page = PAGE.read_text()
    assert page.count("\n| T1") == len(files)
    for path in [path for path in files if "t1114.003" in path.name or "t1531" in path.name]:
        given = labelled.answer(path)
        row = f"| {given.technique} | {given.simulated} | {given.kind} | {given.events} | {labelled._outcome(given)} |"
        assert row in page, row
