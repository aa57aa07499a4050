"""`ingest --mapping`: the documented example end to end, and that a mapping travels, grows and is on record."""

import json
import pickle
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.main import app
from flows.pipeline.ingesting import Ingest, Options
from flows.pipeline.reading import How
from flows.pipeline.running import ingest_one, ingest_paths
from transforms.mapping import MappingFile

DOCS = Path(__file__).parents[2] / "docs" / "mapping.md"


def block(language: str) -> str:
    return DOCS.read_text().split(f"```{language}\n")[1].split("```")[0]


@pytest.fixture
def case(tmp_path: Path) -> tuple[Archive, Path, Path]:
    log, mapping = tmp_path / "popgate.log", tmp_path / "popgate.toml"
    log.write_text(block("log"))
    mapping.write_text(block("toml"))
    return Archive.create(str(tmp_path / "archive")), log, mapping


def test_the_documented_example(case: tuple[Archive, Path, Path]) -> None:
    archive, log, mapping = case
    answer = ingest_paths(archive.uri, [str(log)], mapping=str(mapping))
    (entry,) = answer["evidence"]
    assert (entry["status"], entry["format"], entry["records"]) == ("committed", "mapping:popgate", 7)
    assert entry["events"] == {"access_events": 3}
    assert entry["ignored"] == {"comment": 1, "header": 1, "mapping:popgate: not selected": 1}
    assert entry["quarantined"] == {"bytes_out is not readable": 1}
    opened = Archive.open(archive.uri)
    rows = opened.scan("access_events").collect().sort("ts")
    assert rows["ts"].to_list() == [datetime(2024, 3, 3, 7, m, s, tzinfo=UTC) for m, s in ((0, 0), (0, 9), (1, 0))]
    assert rows["principal_id"].to_list() == ["alice", "alice", "bob"]
    assert rows["action"].to_list() == ["auth", "session", "auth"]
    assert rows["outcome"].to_list() == ["success", "success", "failure"]
    assert rows["src_ip"].to_list() == ["198.51.100.1", "198.51.100.1", "203.0.113.9"]
    assert (rows["credential_id"][2], rows["source"][2], rows["bytes_out"][1]) == ("pw:bob", "mapping:popgate", 1024)
    data = log.read_bytes().splitlines()
    assert opened.raw(rows["event_uid"][2]).data.rstrip() == data[4]
    assert opened.scan("evidence").collect()["format"].to_list() == ["mapping:popgate"]
    custody = Path(archive.uri.removeprefix("file://")) / "custody.jsonl"
    told = [json.loads(line) for line in custody.read_text().splitlines()]
    kept = [line["details"]["mapping_sha256"] for line in told if line["action"] == "ingest"]
    assert kept == [sha256(mapping.read_bytes()).hexdigest()]


def test_it_travels_and_the_log_grows(case: tuple[Archive, Path, Path]) -> None:
    archive, log, mapping = case
    given = MappingFile(mapping.read_text(), str(mapping))
    options = pickle.loads(pickle.dumps(Options(how=How(mapping=given))))  # as a worker is sent them
    (entry,) = ingest_one(archive.uri, str(log), options)["evidence"]
    assert entry["format"] == "mapping:popgate"
    with log.open("a") as out:
        out.write("03.03.2024;08:04:00;LOGIN;carol;OK;203.0.113.9:99;0\n")
    (entry,) = Ingest(Archive.open(archive.uri), options).run([str(log)])["evidence"]
    assert (entry["status"], entry["records"], entry["events"]) == ("grown", 1, {"access_events": 1})
    (entry,) = Ingest(Archive.open(archive.uri), options).run([str(log)])["evidence"]
    assert entry["status"] == "known"
    assert Archive.open(archive.uri).scan("access_events").collect().height == 4


def test_what_is_wrong_is_said_before_anything_is_read(case: tuple[Archive, Path, Path]) -> None:
    archive, log, mapping = case
    with pytest.raises(UsageError, match="exclude each other"):
        ingest_paths(archive.uri, [str(log)], mapping=str(mapping), format="postfix")
    with pytest.raises(UsageError, match="cannot be read"):
        ingest_paths(archive.uri, [str(log)], mapping=str(log) + "x")
    mapping.write_text(mapping.read_text().replace('"peer"', '"pear"').replace("header = true", 'names = ["peer"]'))
    answer = CliRunner().invoke(app, ["ingest", "-a", archive.uri, str(log), "--mapping", str(mapping)])
    assert answer.exit_code != 0
    assert isinstance(answer.exception, UsageError)
    assert str(mapping) in answer.exception.fact
    assert "there is no field" in answer.exception.fact
    assert not Archive.open(archive.uri).scan("evidence").collect().height
