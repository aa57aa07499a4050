"""From events back to bytes: the register, raw records out of every container, and what verify finds."""

import bz2
import gzip
import hashlib
import lzma
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from archive.raw import read_raw
from archive.store import Archive
from data_contracts import contract
from data_contracts.errors import IntegrityError, UsageError

CONTENT = b"".join(b"record %06d \xff\x00\r\n" % n for n in range(5000))
DAY = date(2021, 1, 10)
NOW = datetime(2021, 2, 1, tzinfo=UTC)


def _zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("other", b"no")
        file.writestr("logs/a.log", content)


def _zstd(path: Path, content: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(content)


WRITERS: dict[str, Callable[[Path, bytes], Any]] = {
    "none": lambda path, content: path.write_bytes(content),
    "gzip": lambda path, content: path.write_bytes(gzip.compress(content[:9000]) + gzip.compress(content[9000:])),
    "bzip2": lambda path, content: path.write_bytes(bz2.compress(content)),
    "xz": lambda path, content: path.write_bytes(lzma.compress(content)),
    "zstd": _zstd,
    "zip": _zip,
}


def row(path: Path, content: bytes, container: str = "none", **more: Any) -> dict[str, Any]:
    """A register row for a file."""
    file = path.read_bytes()
    counts = dict.fromkeys(
        (
            "records",
            "events",
            "access_events",
            "mail_events",
            "change_events",
            "continuations",
            "ignored",
            "duplicates",
            "quarantined",
        ),
        0,
    )
    return {
        "evidence_id": hashlib.sha256(content).hexdigest(),
        "date": NOW.date(),
        "path": str(path),
        "member": "logs/a.log" if container == "zip" else None,
        "container": container,
        "file_sha256": hashlib.sha256(file).hexdigest(),
        "file_bytes": len(file),
        "head_sha256": hashlib.sha256(content[:1024]).hexdigest(),
        "content_bytes": len(content),
        "status": "committed",
        **counts,
        "ignored_reasons": "{}",
        "quarantined_reasons": "{}",
        "tool_version": "0",
        "ingested_at": NOW,
        "ingested_by": "u@h",
        "run_id": "r1",
        **more,
    }


def event(evidence_id: str, offset: int, length: int, uid: str = "e" * 40) -> pl.DataFrame:
    df = pl.DataFrame(
        {
            "event_uid": [uid],
            "date": [DAY],
            "evidence_id": [evidence_id],
            "byte_offset": [offset],
            "byte_length": [length],
        }
    )
    return contract("mail_events").conform(df.lazy()).collect()


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(tmp_path / "archive")


@pytest.mark.parametrize("container", WRITERS)
def test_raw_records_come_out_of_every_container(archive: Archive, tmp_path: Path, container: str) -> None:
    path = tmp_path / "it's [1].log"
    WRITERS[container](path, CONTENT)
    entry = row(path, CONTENT, container)
    archive.record_evidence([entry])
    offset = CONTENT.index(b"record 004321")
    archive.append("mail_events", event(entry["evidence_id"], offset, 17))
    for day in (None, DAY):
        found = archive.raw("e" * 40, day)
        assert found.data == CONTENT[offset : offset + 17] == b"record 004321 \xff\x00\r\n"[:17]
        assert found.table == "mail_events"
    assert archive.verify() == []
    path.write_bytes(path.read_bytes().replace(path.read_bytes()[40:42], b"zz"))
    with pytest.raises(IntegrityError, match="the register has"):
        _ = archive.raw("e" * 40).data
    (problem,) = archive.verify()
    assert (problem.kind, problem.place, problem.severity) == ("evidence", str(path), "integrity")
    path.unlink()
    with pytest.raises(UsageError, match=r"not found\nHint: bring"):
        _ = archive.raw("e" * 40).data
    (problem,) = archive.verify()
    assert (problem.fact, problem.severity) == ("not found", "warning")


def test_events_that_are_not_there(archive: Archive) -> None:
    with pytest.raises(UsageError, match="is not an event_uid"):
        archive.raw("' or 1=1")
    with pytest.raises(UsageError, match="is not in the archive"):
        archive.raw("0" * 40)
    archive.append("mail_events", event("a" * 64, 0, 1))
    with pytest.raises(IntegrityError, match="is not in the register"):
        archive.raw("e" * 40)
    with pytest.raises(UsageError, match="day 2021-01-11"):
        archive.raw("e" * 40, DAY + timedelta(1))


def test_ranges_outside_the_content_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    entry = row(path, CONTENT)
    assert read_raw(entry, len(CONTENT) - 2, 2) == b"\r\n"
    for offset, length in ((-1, 2), (0, -1), (len(CONTENT) - 1, 2), (0, 1 << 40)):
        with pytest.raises(UsageError, match="are not a record"):
            read_raw(entry, offset, length)


def test_a_log_that_grew_is_not_tampering(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "mail.log"
    path.write_bytes(CONTENT)
    first = row(path, CONTENT)
    archive.record_evidence([first])
    longer = CONTENT + b"more\n"
    path.write_bytes(longer)
    assert read_raw(first, 0, 6) == b"record"
    (problem,) = archive.verify()
    assert (problem.severity, problem.fact) == ("remark", "has grown by 5 bytes since it was ingested")
    archive.record_evidence([row(path, longer, status="grown", grown_from=first["evidence_id"], run_id="r2")])
    assert archive.verify() == []
    path.write_bytes(b"X" + longer[1:])
    assert [p.severity for p in archive.verify()] == ["integrity", "integrity"]
    path.write_bytes(CONTENT)
    (problem,) = archive.verify()
    assert "is shorter" in problem.fact


def test_a_copy_elsewhere_serves_when_the_first_is_gone(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    entry = row(path, CONTENT)
    archive.record_evidence([entry])
    archive.append("mail_events", event(entry["evidence_id"], 0, 6))
    assert archive.raw("e" * 40).path == str(path)


def test_register(archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(CONTENT)
    entry = row(path, CONTENT)
    refused = {**entry, "evidence_id": "f" * 64, "status": "refused"}
    assert archive.known_evidence(entry["evidence_id"]) is None
    version = archive.record_evidence([entry, refused])
    assert archive.record_evidence([{**entry, "run_id": "r2"}, refused]) == version
    assert archive.record_evidence([{**refused, "run_id": "r2"}]) == version + 1
    assert archive.evidence.rows().height == 3
    known = archive.known_evidence(entry["evidence_id"])
    assert known is not None
    assert known["path"] == str(path)
    assert archive.known_evidence("f" * 64) is None
    assert archive.evidence.begun_alike(CONTENT[:1024])["evidence_id"].to_list() == [entry["evidence_id"]]
    assert archive.evidence.begun_alike(b"x" * 1024).is_empty()
    archive.record_evidence([{**refused, "status": "committed", "content_bytes": 7, "run_id": "r3"}])
    assert archive.evidence.begun_alike(b"x" * 1024)["evidence_id"].to_list() == ["f" * 64]
    assert Archive.open(archive.uri).known_evidence("f" * 64) is not None


def test_verify_finds_damaged_table_files(archive: Archive) -> None:
    for uid in "abc":
        archive.append("mail_events", event(uid * 64, 0, 1, uid * 40))
    loose = archive.stage("mail_events", event("d" * 64, 0, 1), "loose")
    assert [(p.kind, p.severity) for p in archive.verify()] == [("orphan", "remark")]
    archive.discard(loose)
    first, second, _ = archive.files("mail_events")
    Path(first).unlink()
    with Path(second).open("ab") as file:
        file.write(b"x")
    problems = archive.verify()
    assert [(p.kind, p.severity) for p in problems] == [("table", "integrity")] * 2
    assert problems[0].place == "tables/mail_events/" + first.split("/mail_events/")[1]
    assert problems[0].fact == "not found"
    assert "bytes long, committed were" in problems[1].fact


def test_verify_finds_a_lost_log_and_a_broken_chain(archive: Archive) -> None:
    archive.append("mail_events", event("a" * 64, 0, 1))
    for file in (Path(archive.uri) / "tables/mail_events/_delta_log").iterdir():
        file.unlink()
    log = Path(archive.uri) / "custody.jsonl"
    log.write_bytes(log.read_bytes().replace(b"init", b"inti"))
    assert {(p.kind, p.place, p.severity) for p in archive.verify()} == {
        ("custody", "custody.jsonl:1", "integrity"),
        ("table", "tables/mail_events", "warning"),
    }
