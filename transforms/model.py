"""What passes between the parts of transforms: records in, rows with a disposition out.

A *record* is one line, one CSV record or one JSON object of a piece of evidence. A format turns a frame of records into
a frame with exactly one row per record; `disposition` says what became of it, so that nothing can be lost:

- the name of an event table: the row is an event of that table;
- ``continuation``: it belongs to a record begun above it;
- ``ignored``: it carries nothing for us, `reason` says why;
- ``quarantined``: it could not be read, `reason` says why.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

CONTINUATION = "continuation"
IGNORED = "ignored"
QUARANTINED = "quarantined"

Framing = Literal["lines", "csv", "json"]

RECORD_SCHEMA = {"record_no": pl.Int64, "byte_offset": pl.Int64, "byte_length": pl.Int64, "raw": pl.String}
SYSLOG_SCHEMA = RECORD_SCHEMA | {
    "ts": pl.Datetime("us", "UTC"),
    "ts_raw": pl.String,
    "ts_basis": pl.String,
    "host": pl.String,
    "program": pl.String,
    "pid": pl.String,
    "message": pl.String,
}


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of a piece of evidence, for recognising its format by content."""

    data: bytes  # at most 64 KiB, decompressed
    text: str  # the same, decoded (UTF-8, UTF-16 by BOM, else Latin-1), without BOM
    lines: tuple[str, ...]  # lines of text; the last, cut one left out where the head is cut
    name: str  # file name, for messages only: content decides


@dataclass(frozen=True, slots=True)
class Match:
    """A format's claim on a piece of evidence."""

    score: float  # 0 to 1; the highest claim wins
    reason: str  # what was recognised, in words
    framing: Framing = "lines"
    variant: str = ""  # passed back to parse as Context.variant


@dataclass(slots=True)
class Context:
    """What parse may know besides the records. One per piece of evidence; blocks come in order."""

    evidence_id: str
    variant: str = ""
    tz: str = "UTC"  # IANA name or offset (+02:00), for times without a zone
    tz_basis: Literal["given", "assumed"] = "assumed"
    year: int | None = None  # year of the first record, for times without a year
    year_basis: Literal["given", "file_time", "none"] = "none"
    not_after: Any = None  # aware datetime: the file's modification time; its records are not younger
    host: str | None = None
    tenant_id: str | None = None
    carry: dict[str, Any] = field(default_factory=dict)  # what a format remembers from block to block


Parse = Callable[[pl.LazyFrame, Context], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Format:
    """One log format: how it is recognised and how its records become rows.

    A format that is written through syslog names the `programs` that it knows (a regular expression for the whole
    program tag) and its parse gets SYSLOG_SCHEMA; any other has `sniff` and gets RECORD_SCHEMA. One that is written
    both ways has both, and tells by the column `program` which it got.
    """

    name: str
    title: str
    spec: str  # where the format is described
    tables: tuple[str, ...]
    parse: Parse
    sniff: Callable[[Head], Match | None] | None = None
    programs: str | None = None
    gaps: tuple[str, ...] = ()  # what the format or our reading of it cannot tell
