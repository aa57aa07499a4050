"""rules import, list, show, test, remove, and the hunt with imported rules."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from archive.store import Archive
from flows.main import app

SAMPLES = Path(__file__).parents[1] / "samples"
FORWARD = """title: Inbox rule that forwards
id: 0aa1b2c3-1111-4222-8333-444455556666
status: test
description: Mail leaves by a rule.
level: high
tags: [attack.collection, attack.t1114.003]
falsepositives: [A user who leaves]
logsource: {product: m365, service: audit}
detection:
  selection:
    Operation: [New-InboxRule, Set-InboxRule]
    Parameters|contains: forwardto
  condition: selection
"""
FAILED = """title: Sign-in failed
name: failed
logsource: {product: azure, service: signinlogs}
detection:
  selection: {Status: Failure}
  condition: selection
"""
MANY = """title: Failed sign-ins
level: medium
correlation:
  type: event_count
  rules: [failed]
  group-by: [IPAddress]
  timespan: 1d
  condition: {gte: 1}
"""
KEYWORDS = "title: Words\nlogsource: {product: azure, service: auditlogs}\ndetection: {k: [a, b], condition: k}\n"
CATEGORY = KEYWORDS.replace("{k: [a, b], condition: k}", "{k: {Category: Role}, condition: k}")
ID = "S-0AA1B2C3"


def call(*words: str, code: int = 0) -> Any:
    answer = CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})
    found = getattr(answer.exception, "exit_code", answer.exit_code)  # as `run` ends with an error of ours
    assert found == code, answer.output
    return answer


def told(*words: str, code: int = 0) -> Any:
    return json.loads(call(*words, "-t", "json", code=code).stdout)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sigma") / "archive"
    call("init", "-a", str(place))
    call("ingest", "-a", str(place), str(SAMPLES / "m365_ual.jsonl"), str(SAMPLES / "entra_signin.jsonl"))
    return place


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    folder = tmp_path / "sigma"
    (folder / "m365").mkdir(parents=True)
    (folder / "m365" / "forward.yml").write_text(FORWARD)
    (folder / "many.yaml").write_text(f"{FAILED}---\n{MANY}")
    (folder / "words.yml").write_text(KEYWORDS)
    (folder / "category.yml").write_text(CATEGORY)
    (folder / "readme.md").write_text("no rule")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> str:
    uri = str(tmp_path / "archive")
    Archive.create(uri)
    return uri


def test_import_says_what_became_of_each_rule(rules: Path, place: str) -> None:
    answer = told("rules", "import", str(rules), "-a", place)
    assert answer["totals"] == {"imported": 2, "replaced": 0, "known": 0, "part": 1, "refused": 2}
    by_title = {rule["title"]: rule for rule in answer["rules"]}
    forward = by_title["Inbox rule that forwards"]
    assert forward["id"] == ID
    assert forward["rule_id"] == "0aa1b2c3-1111-4222-8333-444455556666"
    assert (forward["level"], forward["tables"], forward["result"]) == ("high", ["change_events"], "imported")
    assert answer["reasons"] == {
        "field Category is not kept in change_events": 1,
        "keywords search the raw record, which is not in the tables": 1,
    }
    held = json.loads(Path(place, "rules", f"{ID}.json").read_text())
    assert held["text"] == FORWARD
    assert held["sha256"] == forward["sha256"]
    last = list(Archive.open(place).custody_log.entries())[-1]
    assert last["action"] == "rules_import"
    assert last["details"]["rules"][ID] == forward["sha256"]
    assert Archive.open(place).verify() == []


def test_a_correlation_keeps_the_rules_that_it_refers_to(rules: Path, place: str) -> None:
    answer = told("rules", "import", str(rules / "many.yaml"), "-a", place)
    name = next(rule["id"] for rule in answer["rules"] if rule["result"] == "imported")
    assert json.loads(Path(place, "rules", f"{name}.json").read_text())["text"] == f"{FAILED}---\n{MANY}"
    assert told("rules", "test", name, "-a", place)[0]["result"] == "passed"


def test_import_again_changes_nothing_and_another_text_needs_clobber(rules: Path, place: str) -> None:
    file = rules / "m365" / "forward.yml"
    told("rules", "import", str(file), "-a", place)
    before = Path(place, "rules", f"{ID}.json").read_bytes()
    assert told("rules", "import", str(file), "-a", place)["totals"]["known"] == 1
    file.write_text(FORWARD.replace("level: high", "level: low"))
    refused = told("rules", "import", str(file), "-a", place, code=3)
    assert "--clobber" in refused["rules"][0]["reasons"][0]
    assert Path(place, "rules", f"{ID}.json").read_bytes() == before
    assert told("rules", "import", str(file), "-a", place, "--clobber")["totals"]["replaced"] == 1
    listed = {rule["id"]: rule for rule in told("rules", "list", "-a", place)}
    assert listed[ID]["severity"] == "low"


def test_two_rules_whose_ids_begin_alike(rules: Path, place: str) -> None:
    other = FORWARD.replace("0aa1b2c3-1111", "0aa1b2c3-2222")
    (rules / "m365" / "other.yml").write_text(other)
    answer = told("rules", "import", str(rules / "m365"), "-a", place)
    assert sorted(rule["id"] for rule in answer["rules"]) == [ID, f"{ID}2222"]


def test_dry_run_writes_nothing(rules: Path, place: str) -> None:
    assert told("rules", "import", str(rules), "-a", place, "--dry-run")["totals"]["imported"] == 2
    assert not Path(place, "rules").exists()


@pytest.mark.parametrize("words", [["nowhere.yml"], ["."]])
def test_a_path_without_rules_is_a_wrong_call(
    words: list[str], place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    call("rules", "import", *words, "-a", place, code=2)


def test_when_nothing_can_be_taken_it_ends_with_3(rules: Path, place: str) -> None:
    (rules / "bomb.yml").write_text("a: &a [x]\nb: [*a, *a]\n")
    answer = told("rules", "import", str(rules / "words.yml"), str(rules / "bomb.yml"), "-a", place, code=3)
    assert answer["totals"]["refused"] == 2
    assert not Path(place, "rules").exists()


@pytest.mark.parametrize("fmt", ["table", "csv", "jsonl", "md"])
def test_every_format(rules: Path, place: str, fmt: str) -> None:
    answer = call("rules", "import", str(rules), "-a", place, "-t", fmt)
    assert ID in answer.stdout
    assert "Category" in answer.stdout


def test_show_has_the_rule_as_it_stands(rules: Path, place: str) -> None:
    told("rules", "import", str(rules), "-a", place)
    shown = told("rules", "show", ID, "-a", place)
    assert shown["source"] == FORWARD
    assert shown["false_positives"] == ["A user who leaves"]
    assert [a["technique"] for a in shown["attack"]] == ["T1114.003"]
    assert "Parameters|contains: forwardto" in call("rules", "show", ID.lower(), "-a", place).stdout
    call("rules", "show", "S-12345678", "-a", place, code=2)


def test_without_an_archive_there_are_only_the_own_detections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEHOUND_ARCHIVE", raising=False)
    assert not any(rule["id"].startswith("S-") for rule in told("rules", "list"))
    call("rules", "show", ID, code=2)
    call("rules", "list", "-a", str(tmp_path / "nowhere"), code=2)


def test_remove(rules: Path, place: str) -> None:
    told("rules", "import", str(rules), "-a", place)
    assert call("rules", "remove", ID.lower(), "-a", place).exit_code == 0
    assert ID not in {rule["id"] for rule in told("rules", "list", "-a", place)}
    assert list(Archive.open(place).custody_log.entries())[-1]["details"] == {"rules": [ID]}
    call("rules", "remove", ID, "-a", place, code=2)
    call("rules", "remove", "../archive", "-a", place, code=2)


def test_the_hunt_runs_them(rules: Path, filled: Path, tmp_path: Path) -> None:
    told("rules", "import", str(rules), "-a", str(filled))
    hunt = told("hunt", "-a", str(filled), "--from", "2021-01-01", "--to", "2021-02-01")
    assert ID in hunt["detections_run"]
    found = [f for case in hunt["cases"] for f in case["findings"] if f["detection"] == ID]
    assert len(found) == 1
    assert 'Sigma rule "Inbox rule that forwards" matched 1 event' in found[0]["explanation"]
    assert found[0]["family"] == "mailbox_access"
    (raw,) = told("sql", "-a", str(filled), found[0]["sql"])
    assert raw["op_raw"] == "New-InboxRule"
    alone = told("hunt", "-a", str(filled), "--from", "2021-01-01", "--to", "2021-02-01", "--detections", ID)
    assert alone["detections_run"] == [ID]
    assert [f["finding_id"] for case in alone["cases"] for f in case["findings"]] == [found[0]["finding_id"]]
    out = tmp_path / "report"
    window = ["--from", "2021-01-01", "--until", "2021-02-01"]
    call("report", "-a", str(filled), "-o", str(out), *window, "--to", "md,html", "--detections", ID)
    text = next(out.glob("*.md")).read_text()
    assert "Inbox rule that forwards" in text
    assert re.search(r"Only 1 of \d+ detections were asked for", text)
    back = told("rules", "backtest", ID, "-a", str(filled))
    assert back["values"][0]["findings"] == 1


def test_a_rule_whose_logs_are_not_there_is_skipped_with_the_reason(filled: Path, tmp_path: Path) -> None:
    file = tmp_path / "mail.yml"
    text = FORWARD.replace("0aa1b2c3", "1aa1b2c3").replace("m365, service: audit", "postfix")
    file.write_text(
        text.replace("Operation: [New-InboxRule, Set-InboxRule]", "sender: a@b.example").replace(
            "Parameters", "subject"
        )
    )
    told("rules", "import", str(file), "-a", str(filled))
    hunt = told("hunt", "-a", str(filled), "--detections", "S-1AA1B2C3")
    assert hunt["detections_skipped"] == [
        {"id": "S-1AA1B2C3", "reason": "no log of the format postfix is in the archive"}
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held | {"text": held["text"].replace("forwardto", "redirectto")},
        lambda held: held | {"id": "S-FFFFFFFF"},
        lambda held: {},
        lambda held: [held],
    ],
)
def test_a_changed_file_never_runs(rules: Path, place: str, change: Any) -> None:
    told("rules", "import", str(rules / "m365"), "-a", place)
    file = Path(place, "rules", f"{ID}.json")
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    hunt = told("hunt", "-a", place, "--detections", ID)
    assert hunt["detections_run"] == []
    assert "stored" in hunt["detections_skipped"][0]["reason"] or "changed" in hunt["detections_skipped"][0]["reason"]
    assert told("rules", "test", ID, "-a", place, code=1)[0]["result"] == "failed"
    call("rules", "import", str(rules / "m365"), "-a", place, "--clobber")
    assert told("hunt", "-a", place, "--detections", ID)["detections_skipped"][0]["reason"].startswith("no log of")


def _problems(place: str, code: int = 4) -> list[tuple[str, str]]:
    found = told("verify", "-a", place, code=code)["problems"]
    assert all((p["kind"], p["severity"]) == ("rule", "integrity") for p in found)
    return [(p["place"], p["fact"]) for p in found]


def test_verify_names_a_rule_that_is_not_as_it_was_imported(rules: Path, place: str) -> None:
    told("rules", "import", str(rules / "m365"), "-a", place)
    name, file = f"rules/{ID}.json", Path(place, "rules", f"{ID}.json")
    whole = file.read_bytes()
    assert _problems(place, 0) == []
    held = json.loads(whole)
    text = held["text"].replace("forwardto", "redirectto")  # whoever changes the text can mend its hash beside it
    file.write_text(json.dumps(held | {"text": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    ((at, fact),) = _problems(place)
    assert at == name
    assert fact.endswith(f"the custody log has {hashlib.sha256(whole).hexdigest()}")
    file.write_text(json.dumps(held | {"title": "another"}, indent=1))  # outside the text
    assert [at for at, _ in _problems(place)] == [name]
    file.unlink()
    assert _problems(place) == [(name, "not found")]
    file.write_bytes(whole)
    assert _problems(place, 0) == []
    told("rules", "import", str(rules / "m365"), "-a", place)
    told("rules", "remove", ID, "-a", place)
    assert _problems(place, 0) == []
    file.write_bytes(whole)
    assert _problems(place) == [(name, "the custody log has that it was removed")]
    told("rules", "import", str(rules / "m365"), "-a", place, "--clobber")
    file.with_name("S-FFFFFFFF.json").write_bytes(whole)
    file.with_name("notes").write_text("")
    assert [at for at, _ in _problems(place) if at != name] == ["rules/S-FFFFFFFF.json", "rules/notes"]


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("{}", "holds no rule"),
        ("[" * 100_000, "holds no rule"),
        ('{"text": "a"}', ""),
        ('{"text": "b"}', "the rule's text"),
    ],
)
def test_verify_takes_an_import_without_the_hash_of_the_file_by_its_text(place: str, content: str, fact: str) -> None:
    archive = Archive.open(place)
    archive.place.write(content.encode(), "rules", f"{ID}.json")
    archive.custody("rules_import", {"rules": {ID: hashlib.sha256(b"a").hexdigest()}})
    archive.custody("rules_import", {"rules": "nothing of the kind"})
    assert [fact in told for _, told in _problems(place, 4 if fact else 0)] == [True] * bool(fact)


def test_a_title_is_no_markup(place: str, tmp_path: Path, filled: Path) -> None:
    title = "<script>alert(1)</script> [x](javascript:y) | {tenant} \\x1b[31m"
    file = tmp_path / "hostile.yml"
    file.write_text(FORWARD.replace("0aa1b2c3", "2aa1b2c3").replace("Inbox rule that forwards", json.dumps(title)))
    told("rules", "import", str(file), "-a", str(filled))
    out = tmp_path / "report"
    window = ["--from", "2021-01-01", "--until", "2021-02-01"]
    call("report", "-a", str(filled), "-o", str(out), *window, "--to", "md,html", "--detections", "S-2AA1B2C3")
    assert "<script>alert" not in next(out.glob("*.html")).read_text()
    assert "[x](javascript" not in next(out.glob("*.md")).read_text()
    assert "<script>alert" not in next(out.glob("*.md")).read_text()
    assert "\x1b" not in call("rules", "list", "-a", str(filled)).stdout


def test_help_does_not_load_what_reads_rules() -> None:
    code = "import sys, flows.main; print([m for m in ('sigma', 'yaml', 'duckdb', 'polars') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
