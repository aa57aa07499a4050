"""Every verb, output format and exit code; and what a hostile log can't do to a terminal, a sheet or a browser."""

import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
from typer.main import get_command

from archive.store import Archive
from flows.main import app, run
from flows.pipeline.references import load
from flows.pipeline.running import ingest_paths

ORGANISATION = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
TENANT = "o'brien"
# A spreadsheet formula, Rich markup, HTML, a Markdown cell end, a quote, an escape sequence, a zero byte, a C1 control.
HOSTILE = "=cmd|' /c calc'!a0 [red]<img src=x onerror=alert(1)> | `x` \x1b[2J\x00\x9b31m\u202e@evil.example"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2066-\u2069]")
DAYS = 24  # detections want a history
FORMATS = ("table", "csv", "json", "jsonl", "parquet", "md")


@dataclass(frozen=True)
class Answer:
    code: int
    raw: bytes
    talk: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def data(self) -> Any:
        return json.loads(self.out)


def call(*words: str | Path, columns: int = 160) -> Answer:
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", newline=""), io.StringIO()
    argv, code = ["gatehound", *map(str, words)], 0
    setting = patch.object(sys, "argv", argv), patch.dict("os.environ", {"COLUMNS": str(columns)})
    with setting[0], setting[1], redirect_stdout(out), redirect_stderr(err):
        try:
            run()
        except SystemExit as end:
            code = int(end.code or 0)
        out.flush()
    return Answer(code, out.buffer.getvalue(), err.getvalue())  # type: ignore[attr-defined]


def audit(at: datetime, number: int, address: str) -> str:
    fixed = {"Operation": "MailItemsAccessed", "RecordType": 50, "ResultStatus": "Succeeded", "Workload": "Exchange"}
    who = {"OrganizationId": ORGANISATION, "UserType": 5, "UserId": HOSTILE, "ClientIPAddress": address}
    own = {
        "CreationTime": at.isoformat(timespec="seconds"),
        "Id": f"00000000-0000-4000-8000-{number:012d}",
        "MailboxOwnerUPN": f"m{number % 3}@t1.example",
        "ClientInfoString": f"Client=WebServices;{HOSTILE}",
        "AppId": "7c1aec86-7bc7-44d0-a01c-72c2f196f29b",
        "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}],
        "OperationCount": 1,
    }
    return json.dumps(fixed | who | own)


def write_logs(folder: Path) -> None:
    """Days of a service principal from one network, and its last day from another."""
    folder.mkdir()
    begin = datetime(2021, 1, 1, 9)
    lines = [audit(begin + timedelta(days=d // 2, hours=d % 2), d, "203.0.113.5") for d in range(2 * DAYS)]
    lines += [audit(begin + timedelta(days=DAYS - 1, hours=5, minutes=n), 500 + n, "198.51.100.77") for n in range(12)]
    (folder / "audit.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "mail[red].log").write_text(
        "Feb  3 04:00:00 mx1 postfix/smtpd[7]: ABCDEF012: client=h[203.0.113.7], "
        "sasl_method=PLAIN, sasl_username=r@t1.example\n"
        f"Feb  3 04:00:01 {HOSTILE}\n"
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs, reference tables, and an archive of them."""
    base = tmp_path_factory.mktemp("cli")
    write_logs(base / "logs")
    (base / "reference").mkdir()
    with (base / "reference" / "tenants.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["tenant_id", "name", "entra_tenant_id", "domain"], [TENANT, "O'Brien", ORGANISATION, "t1.example"]]
        )
    uri = str(base / "archive")
    load(Archive.create(uri), [str(base / "reference")])
    ingest_paths(uri, [str(base / "logs")], year=2021, tz="UTC")
    return base


@pytest.fixture(scope="module")
def hunt(place: Path) -> Any:
    answer = call("hunt", "-a", place / "archive", "-t", "json")
    assert (answer.code, answer.talk) == (0, "")
    return answer.data


@cache
def event_uid(place: Path) -> str:
    events = Archive.open(str(place / "archive")).scan("access_events")
    return str(events.filter(pl.col("source") == "m365_ual").collect()["event_uid"][0])


def verbs(place: Path) -> dict[str, list[str | Path]]:
    """A call of each verb that leaves nothing behind."""
    archive: list[str | Path] = ["-a", place / "archive"]
    return {
        "status": ["status", *archive],
        "quarantine list": ["quarantine", "list", *archive],
        "quarantine show": ["quarantine", "show", *archive],
        "sql": ["sql", *archive, "select * from access_events where source = 'm365_ual' order by ts, event_uid"],
        "hunt": ["hunt", *archive, "--detections", "T01,T04"],
        "raw": ["raw", *archive, event_uid(place)],
        "verify": ["verify", *archive],
        **{f"{word} list": [word, "list"] for word in ("formats", "rules")},
        **{
            " ".join(words[:2]): words
            for words in (["formats", "show", "iis"], ["rules", "show", "T01"], ["rules", "attack"])
        },
        "reference load": ["reference", "load", *archive, place / "reference"],
        "ingest": ["ingest", *archive, "--year", "2021", "--tz", "UTC", place / "logs"],
    }


def leaves(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*words, name))
    else:
        yield words


VERBS = sorted(leaves(get_command(app)))
MADE = ("init", "report", "demo", "findings", "suppress")  # leave something behind: each has a test of its own, as has
ALSO = {("test",), ("backtest",), ("import",), ("remove",)}
READ = [" ".join(words) for words in VERBS if words[0] not in MADE and words[1:] not in ALSO]


def test_every_verb_is_tried_here(place: Path) -> None:
    assert set(READ) == set(verbs(place))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("verb", READ)
def test_every_verb_in_every_format(place: Path, verb: str, fmt: str) -> None:
    answer = call(*verbs(place)[verb], "-t", fmt)
    assert answer.code == 0, answer.talk
    if fmt == "parquet":
        assert pl.read_parquet(io.BytesIO(answer.raw)).width
        return
    assert not CONTROL.search(answer.out), repr(CONTROL.search(answer.out))
    assert not CONTROL.search(answer.talk)
    if fmt == "json":
        assert answer.data is not None
    elif fmt == "jsonl":
        assert all(isinstance(json.loads(line), dict) for line in answer.out.splitlines())
    elif fmt == "csv":
        rows = list(csv.reader(io.StringIO(answer.out, newline="")))
        assert {len(r) for r in rows} == {len(rows[0])}
        assert not [
            c
            for r in rows
            for c in r
            if c.lstrip()[:1] in tuple("=+-@") and not c.lstrip("-").replace(".", "", 1).isdigit()
        ]
    elif fmt == "md":
        tables = [re.split(r"(?<!\\)\|", line) for line in answer.out.splitlines() if line.startswith("|")]
        assert verb == "hunt" or tables
        assert "<img" not in answer.out


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("verb", [v for v in READ if v not in ("sql", "raw")])
def test_tables_fit_the_terminal(place: Path, verb: str, columns: int) -> None:
    answer = call(*verbs(place)[verb], columns=columns)
    records = "row 1" in answer.out
    assert records or max((len(line.rstrip()) for line in answer.out.splitlines()), default=0) <= columns


def test_a_row_too_wide_for_the_terminal_is_shown_in_lines(place: Path) -> None:
    answer = call("sql", "-a", place / "archive", "from access_events limit 1", columns=100)
    assert "row 1" in answer.out
    assert re.search(r"^  event_uid +[0-9a-f]{40}$", answer.out, re.MULTILINE)


def test_sql_gives_the_hostile_text_back_exactly_where_data_is_asked_for(place: Path) -> None:
    query = "select distinct user_agent from access_events where source = 'm365_ual'"
    assert HOSTILE in call("sql", "-a", place / "archive", query, "-t", "json").data[0]["user_agent"]
    table = call("sql", "-a", place / "archive", query).out
    assert "[red]" in table
    assert "\\x1b[2J" in table


def test_hunt_json_has_the_promised_shape(hunt: Any, place: Path) -> None:
    shape = "run_id window archive_version detections_run detections_skipped detections_without_subjects cases limits"
    assert list(hunt) == shape.split()
    assert list(hunt["window"]) == ["from", "to"]
    (case,) = [c for c in hunt["cases"] if c["entities"]["source_networks"] == ["198.51.100.0/24"]]
    shape = "case_id rank score severity families tactics summary first_seen last_seen entities findings"
    assert list(case) == shape.split()
    named = "tenant_ids credential_ids principal_ids app_ids source_ips source_networks mailboxes"
    assert list(case["entities"]) == named.split()
    for finding in case["findings"]:
        shape = "finding_id detection family score first_seen last_seen explanation evidence sql"
        assert list(finding) == shape.split()
        assert list(finding["evidence"]) == ["table", "event_uids"]
        assert finding["evidence"]["event_uids"]
    again = call("hunt", "-a", place / "archive", "-t", "json").data
    assert [c["case_id"] for c in again["cases"]] == [c["case_id"] for c in hunt["cases"]]


def test_the_statement_of_a_finding_runs_whatever_the_tenant_is_called(hunt: Any, place: Path) -> None:
    findings = [f for c in hunt["cases"] for f in c["findings"]]
    assert findings
    for finding in findings:
        rows = call("sql", "-a", place / "archive", "-t", "json", finding["sql"]).data
        assert {r["tenant_id"] for r in rows} == {TENANT}
        assert set(finding["evidence"]["event_uids"]) <= {r["event_uid"] for r in rows}


@pytest.mark.parametrize(
    ("words", "code", "fact"),
    [
        (["hunt", "--from", "yesterday"], 2, "yesterday: no time"),
        (["hunt", "--from", "2021-02-03", "--to", "2021-02-01"], 2, "begins at 2021-02-03"),
        (["hunt", "--from", "2021-02-03", "--until", "2021-02-01"], 2, "begins at 2021-02-03"),
        (["hunt", "--detections", "T99"], 2, "T99"),
        (["hunt", "--fail-level", "dire"], 2, "no such severity"),
        (["report", "--to", "docx", "-o", "nowhere"], 2, "no such kind of report"),
        (["sql", "drop table access_events"], 2, "is not a SELECT"),
        (["sql", "select 1; select 2"], 2, "2 statements"),
        (["sql", "select interval 1 day"], 2, "varchar"),
        (["sql", "select * from nothing"], 2, "nothing"),
        (["raw", "0" * 40], 2, "0" * 40),
        (["ingest", "/nowhere/at/all"], 2, "/nowhere/at/all"),
        (["reference", "load", "/nowhere/at/all"], 2, "no such file"),
        (["status", "-t", "xml"], 2, "xml"),
        (["conquer"], 2, "conquer"),
    ],
)
def test_a_wrong_call_says_so_and_ends_with_2(place: Path, words: list[str], code: int, fact: str) -> None:
    takes_archive = words[0] != "conquer"
    answer = call(*words, *(["-a", place / "archive"] if takes_archive else []))
    assert answer.code == code, answer.talk
    assert fact in answer.talk
    assert answer.out == ""
    assert "Traceback" not in answer.talk


def test_no_archive_is_a_wrong_call_and_the_variable_names_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("status").code == 2
    monkeypatch.setenv("GATEHOUND_ARCHIVE", str(place / "archive"))
    assert call("status", "-t", "json").data["archive"] == str(place / "archive")


def test_fail_level_ends_with_1_only_at_or_above_it(place: Path, hunt: Any) -> None:
    worst = hunt["cases"][0]["severity"]
    levels = ["info", "low", "medium", "high", "critical"]
    above = levels[levels.index(worst) + 1 :][:1]
    for level, code in [(worst, 1), *((level, 0) for level in above)]:
        assert (
            call("hunt", "-a", place / "archive", "-t", "json", "--fail-level", level, "--detections", "T01").code
            == code
        )


def test_a_refused_file_ends_with_3_and_the_rest_is_kept(tmp_path: Path) -> None:
    assert call("init", "-a", tmp_path / "a").code == 0
    (tmp_path / "good.log").write_text("Feb  3 04:00:00 mx1 postfix/smtpd[7]: ABCDEF012: client=h[203.0.113.7]\n")
    (tmp_path / "bad.\x1b[2Jlog").write_text("Dear all,\nplease find attached\n")
    answer = call("ingest", "-a", tmp_path / "a", "--year", "2021", *tmp_path.glob("*log"), "-t", "json")
    assert answer.code == 3
    assert {e["status"] for e in answer.data["evidence"]} == {"committed", "refused"}
    table = call("ingest", "-a", tmp_path / "a", "--year", "2021", *tmp_path.glob("*log"))
    assert (table.code, "refused" in table.talk) == (3, True)
    assert "\x1b" not in answer.talk + answer.out + table.talk + table.out


def test_init_makes_nothing_twice(tmp_path: Path) -> None:
    first = call("init", "-a", tmp_path / "a", "-t", "json")
    assert (first.code, first.data["archive"]) == (0, str(tmp_path / "a"))
    again = call("init", "-a", tmp_path / "a")
    assert again.code != 0
    assert again.talk.startswith("Error: ")


def test_changed_evidence_ends_with_4(place: Path, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = Path(shutil.copy(place / "logs" / "mail[red].log", tmp_path / "logs"))
    uri = str(Archive.create(str(tmp_path / "archive")).uri)
    ingest_paths(uri, [str(tmp_path / "logs")], year=2021, tz="UTC")
    good = call("verify", "-a", uri, "-t", "json")
    assert (good.code, good.data) == (0, {"ok": True, "problems": []})
    uid = Archive.open(uri).scan("access_events").collect()["event_uid"][0]
    log.write_bytes(log.read_bytes().replace(b"203.0.113.7", b"203.0.113.8"))
    bad = call("verify", "-a", uri, "-t", "json")
    assert (bad.code, bad.data["ok"]) == (4, False)
    assert "Integrity failure" in bad.talk
    assert call("verify", "-a", uri).code == 4
    assert call("raw", "-a", uri, uid).code == 4


def test_raw_is_the_line_as_it_stands(place: Path) -> None:
    answer = call("raw", "-a", place / "archive", event_uid(place))
    assert answer.raw.removesuffix(b"\n") in (place / "logs" / "audit.jsonl").read_bytes().split(b"\n")
    row = call("raw", "-a", place / "archive", event_uid(place), "-t", "json").data
    assert row["record"].encode() == answer.raw.removesuffix(b"\n")
    assert row["path"].endswith("audit.jsonl")


class Elements(HTMLParser):
    """Counts elements, and collects what could run or load something."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.dangers: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        allowed = {"src": "data:image/svg+xml;base64,", "href": "#"}
        for name, value in attrs:
            if name.startswith("on") or not (value or "").startswith(allowed.get(name, "")):
                self.dangers.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.words += data


def test_a_hostile_log_can_do_nothing_in_the_report(place: Path, tmp_path: Path, hunt: Any) -> None:
    assert hunt["cases"]
    answer = call("report", "-a", place / "archive", "-o", tmp_path / "r", "--title", "<b>Case</b> | 1", "-t", "json")
    assert answer.code == 0, answer.talk
    files = {Path(f).name: Path(f) for f in answer.data["files"]}
    assert {"incident.html", "incident.md", "findings.csv", "findings.jsonl", "manifest.json", "timeline.svg"} <= set(
        files
    )
    page = Elements()
    page.feed(files["incident.html"].read_text())
    assert page.dangers == []
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "form", "base", "svg"}
    assert "onerror=alert(1)" in page.words
    for name in ("incident.html", "incident.md", "findings.csv", "findings.jsonl"):
        text = files[name].read_text()
        assert not CONTROL.search(text), (name, CONTROL.search(text))
    markdown = re.sub(r"^(```+)sql\n.*?\n\1$", "", files["incident.md"].read_text(), flags=re.MULTILINE | re.DOTALL)
    assert "<" not in markdown
    widths = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in markdown.splitlines() if line.startswith("|")]
    heads = [len(re.findall(r"\|", line)) for line in markdown.splitlines() if re.fullmatch(r"\|( --- \|)+", line)]
    assert set(widths) == set(heads)
    assert "<img" not in files["timeline.svg"].read_text()


def test_a_report_is_not_written_over_and_reports_are_in_the_custody_log(place: Path, tmp_path: Path) -> None:
    words = [
        "report",
        "-a",
        place / "archive",
        "-o",
        tmp_path / "r",
        *["--to", "csv", "--from", "2021-01-10", "--until", "2021-02-04", "--detections", "T01"],
    ]
    assert call(*words).code == 0
    again = call(*words)
    assert (again.code, "--clobber" in again.talk) == (2, True)
    assert call(*words, "--clobber").code == 0
    held = json.loads((tmp_path / "r" / "manifest.json").read_text())
    assert held["window"] == {"from": "2021-01-10T00:00:00Z", "to": "2021-02-05T00:00:00Z"}
    assert '"report"' in (place / "archive" / "custody.jsonl").read_text()


def test_the_shell_answers_line_by_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("select 41 + 1\n as answer;\ndrop table x;\n.quit\n"))
    answer = call("sql", "-a", place / "archive", "-t", "csv")
    assert answer.out == "answer\n42\n"
    assert "is not a SELECT" in answer.talk
