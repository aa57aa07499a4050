"""suppress add, list and expire: rules that are made, checked, kept and withdrawn; and the hunts that feel them."""

import csv
import io
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from archive.store import Archive
from data_contracts.errors import RefusedError, UsageError
from flows.main import app
from flows.pipeline.expecting import add, expire, from_finding, listed
from flows.pipeline.hunting import hunt_archive
from flows.pipeline.references import read_table
from flows.pipeline.reporting import write_report
from flows.pipeline.running import ingest_paths
from flows.pipeline.triage import judge

ORGANISATION = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
PRINCIPAL = "sp-backup@t1.example"
DAYS = 24
LATER = datetime(2021, 6, 1, tzinfo=UTC)
COMMON = {"owner": "it-ops", "reason": "DR test, CHG-4711", "valid_to": LATER}
FLAGS = ["--owner", "it-ops", "--reason", "DR test", "--until", "2021-05-31"]


def audit(at: datetime, number: int, address: str, client: str) -> str:
    own = {
        "CreationTime": at.isoformat(timespec="seconds"), "Id": f"00000000-0000-4000-8000-{number:012d}",
        "Operation": "MailItemsAccessed", "RecordType": 50, "ResultStatus": "Succeeded", "Workload": "Exchange",
        "OrganizationId": ORGANISATION, "UserType": 5, "UserId": PRINCIPAL, "ClientIPAddress": address,
        "MailboxOwnerUPN": f"m{number % 3}@t1.example", "ClientInfoString": f"Client=WebServices;{client}",
        "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}], "OperationCount": 1,
    }  # fmt: skip
    return json.dumps(own)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a service principal that comes from a new network on the last day, and a hunt over it."""
    base = tmp_path_factory.mktemp("expected")
    begin = datetime(2021, 1, 1, 9)
    lines = [audit(begin + timedelta(days=d // 2, hours=d % 2), d, "203.0.113.5", "Backup/1") for d in range(2 * DAYS)]
    last = begin + timedelta(days=DAYS - 1, hours=5)
    lines += [audit(last + timedelta(minutes=n), 500 + n, "198.51.100.77", "Backup/1") for n in range(12)]
    (base / "audit.jsonl").write_text("\n".join(lines) + "\n")
    Archive.create(base / "archive")
    ingest_paths(str(base / "archive"), [str(base / "audit.jsonl")])
    hunt_archive(Archive.open(base / "archive"), detections=["T01"])
    return base / "archive"


@pytest.fixture
def uri(filled: Path, tmp_path: Path) -> str:
    """A copy of it, for one test to change."""
    return str(shutil.copytree(filled, tmp_path / "copy"))


@pytest.fixture
def archive(uri: str) -> Archive:
    return Archive.open(uri)


@pytest.fixture
def finding(archive: Archive) -> str:
    rows = archive.scan("findings").filter(pl.col("detection") == "T01").collect()
    assert rows.height
    return str(rows["finding_id"][0])


def call(*words: str) -> Any:
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "140"})


def last_custody(archive: Archive) -> dict[str, Any]:
    return list(archive.custody_log.entries())[-1]


def test_a_rule_from_a_finding_silences_it_until_it_is_withdrawn(archive: Archive, finding: str) -> None:
    rebuilt_from = archive.built_from("context_days")
    added = add(archive, [rule | COMMON for rule in from_finding(archive, finding)])
    (row,) = added.to_dicts()
    assert (row["principal_pattern"], row["networks"]) == (PRINCIPAL, "198.51.100.0/24")
    assert (row["operation_classes"], row["finding_id"], row["detections"]) == ("get_item", finding, "T01")
    assert row["added_by"]
    assert abs((row["added_at"] - datetime.now(UTC)).total_seconds()) < 60
    entry = last_custody(archive)
    assert entry["action"] == "suppress add"
    assert entry["details"]["rules"][0]["rule_id"] == row["rule_id"]
    assert rebuilt_from != archive.built_from("context_days") or archive.version("contexts") == 0

    result = hunt_archive(archive, detections=["T01"])
    held = result.to_dict()["suppressed"]
    assert [f["finding_id"] for f in held["findings"]] == [finding]
    assert held["findings"][0]["rules"][0]["rule_id"] == row["rule_id"]
    assert finding not in {f.finding_id for f in result.findings}
    assert last_custody(archive)["details"]["suppressed"] == {finding: [row["rule_id"]]}

    withdrawn = expire(archive, [row["rule_id"]], "the test is over").to_dicts()[0]
    assert (withdrawn["status"], withdrawn["expired_reason"]) == ("withdrawn", "the test is over")
    assert last_custody(archive)["action"] == "suppress expire"
    assert finding in {f.finding_id for f in hunt_archive(archive, detections=["T01"]).findings}
    with pytest.raises(UsageError, match="was withdrawn before"):
        expire(archive, [row["rule_id"]], "again")


def test_a_rule_that_names_nobody_new_rebuilds_nothing(archive: Archive, finding: str) -> None:
    rules = [rule | COMMON for rule in from_finding(archive, finding)]
    add(archive, rules)
    hunt_archive(archive, detections=["T01"])
    before = archive.snapshot("context_days")
    expire(archive, listed(archive)["rule_id"].to_list(), "said anew")
    add(archive, [rule | {"reason": "another"} for rule in rules])
    hunt_archive(archive, detections=["T01"])
    after = archive.snapshot("context_days")
    assert before is not None
    assert after is not None
    assert before.paths() == after.paths()
    assert archive.built_from("context_days")["contexts"] == archive.version("contexts")


def test_the_report_names_the_rule_and_what_was_judged(archive: Archive, finding: str, tmp_path: Path) -> None:
    judge(archive, [finding], "investigating", "asked <b>it-ops</b>")
    found = hunt_archive(archive, begin="2021-01-01", end="2021-01-30", detections=["T01"])
    write_report(archive, tmp_path / "open", ["md", "html"], result=found)
    for name in ("incident.md", "incident.html"):
        text = (tmp_path / "open" / name).read_text()
        assert "Judged investigating on" in text
        assert "<b>it-ops" not in text
        assert "Suppressed as expected" not in text
    (rule_id,) = add(archive, [rule | COMMON for rule in from_finding(archive, finding)])["rule_id"]
    found = hunt_archive(archive, begin="2021-01-01", end="2021-01-30", detections=["T01"])
    write_report(archive, tmp_path / "silent", ["md", "html"], result=found)
    for name in ("incident.md", "incident.html"):
        text = (tmp_path / "silent" / name).read_text()
        assert "1 finding suppressed as expected" in text
        assert "1 finding is in no case" in text
        assert rule_id in text
        assert "CHG-4711" in text


def test_a_change_by_another_in_between_is_kept(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = COMMON | {"networks": "192.0.2.0/24", "operation_classes": "send"}
    original, meanwhile = archive.overwrite, [True]

    def overwrite(table: str, df: pl.DataFrame) -> int:
        if meanwhile.pop():
            add(Archive.open(archive.uri), [entry | {"credential_id": "other"}])
        meanwhile.append(False)
        return original(table, df)

    monkeypatch.setattr(archive, "overwrite", overwrite)
    add(archive, [entry | {"credential_id": "mine"}])
    assert {"mine", "other"} <= set(listed(archive)["credential_id"])


def test_the_same_rule_twice_is_a_slip(archive: Archive, finding: str) -> None:
    rules = [rule | COMMON for rule in from_finding(archive, finding)]
    add(archive, rules)
    with pytest.raises(UsageError, match="says that already"):
        add(archive, [rule | {"reason": "other words"} for rule in rules])
    add(archive, [rule | {"valid_to": LATER + timedelta(days=1)} for rule in rules])


@pytest.mark.parametrize(
    ("parts", "fact"),
    [
        (["--network", "203.0.113.0/24"], "an address alone"),
        (["--credential", "aa11", "--network", "203.0.113.0/24"], "an address alone"),
        (["--network", "203.0.113.0/24", "--operation", "get_item"], "no credential and no principal"),
        (["--principal", "*", "--network", "203.0.113.0/24", "--operation", "send"], "no credential and no principal"),
        (["--credential", "aa11", "--operation", "get_item"], "no network"),
        (["--credential", "aa11", "--network", "::/0", "--operation", "get_item"], "too wide"),
        (["--credential", "aa11", "--network", "here", "--operation", "get_item"], "cannot be read"),
        (["--finding", "F-0000000000000000"], "no such finding"),
        (["--finding", "F-0000000000000000", "--credential", "aa11"], "--finding says"),
    ],
)
def test_a_rule_that_says_too_little_is_refused(uri: str, parts: list[str], fact: str) -> None:
    before = Archive.open(uri).version("contexts")
    answer = call("suppress", "add", "-a", uri, *parts, *FLAGS)
    assert fact in str(answer.exception)
    assert isinstance(answer.exception, UsageError)
    assert Archive.open(uri).version("contexts") == before


@pytest.mark.parametrize("left_out", ["--owner", "--reason", "--until"])
def test_who_why_and_how_long_are_needed(uri: str, left_out: str) -> None:
    place = FLAGS.index(left_out)
    flags = FLAGS[:place] + FLAGS[place + 2 :]
    parts = ["--credential", "aa11", "--network", "203.0.113.0/24", "--operation", "get_item"]
    assert call("suppress", "add", "-a", uri, *parts, *flags).exit_code == 2
    blank = [*flags, left_out, " "]
    assert call("suppress", "add", "-a", uri, *parts, *blank).exit_code != 0


@pytest.mark.parametrize("fmt", ["table", "csv", "json", "jsonl", "parquet", "md"])
def test_every_verb_answers_in_every_format(uri: str, fmt: str, tmp_path: Path) -> None:
    parts = ["--credential", f"=cmd|{fmt}", "--network", "203.0.113.0/24", "--client", "Backup/1", "--client", "-"]
    parts += [
        "--operation",
        "get_item",
        "--schedule",
        "Mon-Fri 22:00-06:00",
        "--tenant",
        "t\x1b[2J1",
        "--from",
        "2021-01-01",
    ]
    added = call("suppress", "add", "-a", uri, *parts, *FLAGS, "-t", fmt)
    shown = call("suppress", "list", "-a", uri, "-t", fmt)
    held = listed(Archive.open(uri)).filter(pl.col("credential_id") == f"=cmd|{fmt}")
    assert held["client_fps"][0] == "Backup/1; -"
    assert held["valid_to"][0] == datetime(2021, 6, 1, tzinfo=UTC)
    rule_id = held["rule_id"][0]
    ended = call("suppress", "expire", rule_id, "-a", uri, "--reason", "over", "-t", fmt)
    for answer in (added, shown, ended):
        assert answer.exit_code == 0, answer.exception
        assert fmt == "parquet" or rule_id in answer.stdout
        assert fmt in ("parquet", "json", "jsonl") or "\x1b" not in answer.stdout
    if fmt == "json":
        assert json.loads(added.stdout)[0]["rule_id"] == rule_id
    if fmt == "csv":
        rows = list(csv.DictReader(io.StringIO(added.stdout)))
        assert rows[0]["credential_id"].startswith("'=")
        plain = pl.read_csv(io.StringIO(shown.stdout)).with_columns(pl.lit("aa11").alias("credential_id"))
        plain.write_csv(tmp_path / "contexts.csv")
        assert "rule_id" in read_table("contexts", str(tmp_path / "contexts.csv")).columns


def test_a_rule_of_a_loaded_table_has_an_id_and_can_be_withdrawn(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "contexts.csv").write_text(
        "principal_pattern,networks,operation_classes,valid_to,owner,reason,ticket\n"
        "backup@*,203.0.113.0/24,get_item,2030-01-01,it,backup,CHG-1\n"
        "poll*,,get_item,2030-01-01,it,poller,CHG-2\n"
    )
    archive.overwrite("contexts", read_table("contexts", str(tmp_path / "contexts.csv")))
    frame = listed(archive)
    assert set(frame["status"]) == {"in force", "without effect: it names no network"}
    assert listed(archive)["rule_id"].to_list() == frame["rule_id"].to_list()
    one = frame.filter(pl.col("status") == "in force")["rule_id"][0]
    expire(archive, [one], "no longer")
    assert listed(archive).filter(pl.col("rule_id") == one)["status"][0] == "withdrawn"
    assert archive.scan("contexts").collect()["ticket"].sort().to_list() == ["CHG-1", "CHG-2"]
    with pytest.raises(UsageError, match="no such rule"):
        expire(archive, ["S-none"], "no longer")


def test_a_finding_without_a_name_or_with_a_star_in_it_makes_no_rule(archive: Archive, finding: str) -> None:
    from flows.pipeline.expecting import _product
    from queries.expected import Context

    at = datetime(2021, 1, 1, tzinfo=UTC)
    nobody = Context("t1", None, None, "192.0.2.1", "192.0.2.0/24", None, None, "get_item", at, at)
    with pytest.raises(RefusedError, match="no credential and no principal"):
        _product(finding, [nobody])
    for principal in ("a*", "a;b"):
        hostile = Context("t1", None, principal, "192.0.2.1", "192.0.2.0/24", None, None, "get_item", at, at)
        with pytest.raises(RefusedError, match="holds ; or"):
            _product(finding, [hostile])
