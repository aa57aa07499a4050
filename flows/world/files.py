"""Writing logs as they are collected: plain, gzip or zip, with the same bytes for the same world."""

import gzip
import os
import random
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.world.model import Record, poisson

GARBLED = 0.0005
_ZIP_EPOCH = (2021, 3, 1, 0, 0, 0)


@dataclass(slots=True)
class Seen:
    """What was written under one label."""

    first: float
    last: float
    records: int = 0  # duplicates included
    lines: set[str] = field(default_factory=set)


class Writer:
    """Writes below one folder and keeps count of raw bytes, files and planted records."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.files: list[Path] = []
        self.raw_bytes = 0
        self.log_bytes = 0
        self.records = 0
        self.seen: dict[str, Seen] = {}

    def lines(self, records: Iterable[Record]) -> list[str]:
        """The lines of these records, counting the labels."""
        found = list(records)
        self.records += len(found)
        for ts, line, label in found:
            if label:
                seen = self.seen.setdefault(label, Seen(ts, ts))
                seen.first, seen.last = min(seen.first, ts), max(seen.last, ts)
                seen.records += 1
                seen.lines.add(line)
        return [line for _, line, _ in found]

    def write(self, name: str, text: str, mtime: float) -> None:
        """Writes one file; a name that ends in .gz is compressed. mtime in UTC seconds."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode()
        self.raw_bytes += len(data)
        self.log_bytes += len(data) if name.startswith("logs/") else 0
        path.write_bytes(gzip.compress(data, compresslevel=1, mtime=0) if name.endswith(".gz") else data)
        os.utime(path, (mtime, mtime))
        self.files.append(path)

    def write_zip(self, name: str, members: Sequence[tuple[str, str]], mtime: float) -> None:
        """Writes a zip of (member name, text)."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for member, text in members:
                data = text.encode()
                self.raw_bytes += len(data)
                info = zipfile.ZipInfo(member, date_time=_ZIP_EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, data)
        os.utime(path, (mtime, mtime))
        self.files.append(path)


def duplicated(rng: random.Random, records: list[Record], share: float = 0.005) -> list[Record]:
    """The records with some of them written twice, as overlapping audit searches return them."""
    out: list[Record] = []
    for record in records:
        out.append(record)
        if rng.random() < share:
            out.append(record)
    return out


def garbled(rng: random.Random, records: list[Record], share: float = GARBLED) -> list[Record]:
    """The records with a few cut short or overwritten; planted ones stay whole so that they can be counted."""
    out = list(records)
    for _ in range(poisson(rng, len(out) * share)):
        index = rng.randrange(len(out))
        ts, line, label = out[index]
        if label is None:
            cut = rng.randrange(8, max(9, len(line) - 1))
            line = line[:cut] if rng.random() < 0.7 else line[:cut] + "\x00\x00\ufffd~" + line[cut + 4 :]
            out[index] = (ts, line, None)
    return out
