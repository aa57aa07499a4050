"""From an event back to the bytes it was read from, after checking that the evidence is still what was hashed."""

import re
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import polars as pl

from archive.evidence import CHUNK, decompressed, hash_file, open_binary
from archive.verify import prefix_hashes
from data_contracts import names
from data_contracts.errors import GatehoundError, IntegrityError, UsageError

if TYPE_CHECKING:
    from archive.store import Archive

MAXIMUM = 64 << 20
_EVENT_UID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class RawRecord:
    """Where a record lies: the event's table and row, the register rows of its evidence (newest first), the byte range.

    Offsets count in the decompressed content.
    """

    table: str
    event: dict[str, Any]
    ingests: tuple[dict[str, Any], ...]
    byte_offset: int
    byte_length: int

    @property
    def evidence(self) -> dict[str, Any]:
        """The newest register row of the evidence."""
        return self.ingests[0]

    @property
    def path(self) -> str:
        """Path of the evidence, and the member in its container."""
        member = self.evidence["member"]
        return str(self.evidence["path"]) + (f"!{member}" if member else "")

    @cached_property
    def data(self) -> bytes:
        """The record's bytes, from whichever of the evidence's known places still has them unchanged.

        Raises UsageError when none of them is there, IntegrityError when those that are there have changed.
        """
        faults: list[GatehoundError] = []
        for row in self.ingests:
            try:
                return read_raw(row, self.byte_offset, self.byte_length)
            except GatehoundError as error:
                faults.append(error)
        raise next((fault for fault in faults if isinstance(fault, IntegrityError)), faults[0])


def find(archive: "Archive", event_uid: str, day: date | None = None) -> RawRecord:
    """Finds an event, or a refused record by its quarantine_uid, and its evidence in the register.

    Args:
        day: the event's UTC day (of a refused record, that of the ingest), to read that day only.

    Raises UsageError when there is no such event, IntegrityError when its evidence is not in the register.
    """
    if not _EVENT_UID.fullmatch(event_uid):
        raise UsageError(f"{event_uid!r} is not an event_uid", "it has 40 hex digits; every event row has one")
    for table, uid in [*((name, "event_uid") for name in names("event")), ("quarantine", "quarantine_uid")]:
        rows = archive.scan(table, None if day is None else [day])
        found = rows.filter(pl.col(uid) == event_uid).head(1).collect()
        if found.height:
            event = found.row(0, named=True)
            taken = archive.evidence.ingests(event["evidence_id"]).filter(pl.col("status") != "refused")
            if taken.is_empty():
                fact = f"{table}: evidence {event['evidence_id']} of event {event_uid} is not in the register"
                raise IntegrityError(fact)
            ingests = tuple(reversed(taken.to_dicts()))
            return RawRecord(table, event, ingests, event["byte_offset"], event["byte_length"])
    where = "the archive" if day is None else f"the archive's day {day.isoformat()}"
    raise UsageError(f"event {event_uid} is not in {where}", "take an event_uid from an event table or a finding")


def read_raw(evidence_row: Mapping[str, Any], byte_offset: int, byte_length: int) -> bytes:
    """A byte range of a piece of evidence, after checking its hash.

    A plain file that has only grown since its ingest is unchanged as far as it was read.

    Args:
        evidence_row: row of the register: path, member, container, file_sha256, content_bytes.
        byte_offset, byte_length: the range, in the decompressed content.

    Raises IntegrityError when the file has changed, UsageError when it is not there or the range is not in it.
    """
    path, size = str(evidence_row["path"]), int(evidence_row["content_bytes"])
    if byte_offset < 0 or byte_length < 0 or byte_length > MAXIMUM or byte_offset + byte_length > size:
        end = byte_offset + byte_length
        raise UsageError(f"{path}: bytes {byte_offset} to {end} are not a record of its {size} bytes")
    try:
        _check(path, evidence_row)
        return _read(path, evidence_row, byte_offset, byte_length)
    except FileNotFoundError:
        raise UsageError(f"{path}: not found", "bring the evidence file back to this path") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:
        raise UsageError(f"{path}: the zip member cannot be read: {error}") from error


def _check(path: str, row: Mapping[str, Any]) -> None:
    if row["container"] == "none":
        size = int(row["content_bytes"])
        now = prefix_hashes(path, [size])[0].get(size)
    else:
        now = hash_file(path)
    if now != row["file_sha256"]:
        raise IntegrityError(
            f"{path}: sha256 is {now or 'another: the file is shorter'}, the register has {row['file_sha256']}",
            "the evidence was changed after its ingest; find the untouched file",
        )


def _read(path: str, row: Mapping[str, Any], offset: int, length: int) -> bytes:
    with open_binary(path) as file, ExitStack() as opened:
        if row["container"] == "none":
            file.seek(offset)
            return file.read(length)
        packed = file
        if row["container"] == "zip":
            archive = opened.enter_context(zipfile.ZipFile(file))
            packed = cast("BinaryIO", opened.enter_context(archive.open(str(row["member"]))))
        stream, _, damage = decompressed(packed)
        content = _range(opened.enter_context(stream), offset, length)
    if len(content) < length:
        why = damage() or "it is shorter than recorded"
        raise IntegrityError(f"{path}: the content ends before byte {offset + length}: {why}")
    return content


def _range(stream: BinaryIO, offset: int, length: int) -> bytes:
    """Bytes of a stream that cannot seek; fewer when it ends before."""
    while offset and (skipped := stream.read(min(offset, CHUNK))):
        offset -= len(skipped)
    content = b""
    while not offset and len(content) < length and (chunk := stream.read(length - len(content))):
        content += chunk
    return content
