"""One piece of evidence: what it is, which format reads it, and its records turned into checked event rows."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import polars as pl

from archive.evidence import Identity, Piece, identify, prefix_sha256
from archive.evidence import head_of as first_bytes
from archive.register import HEAD_BYTES
from archive.store import Archive
from data_contracts import contract
from transforms import registry, syslog
from transforms.encodings import encoding_of, text_of
from transforms.enrich import References, enrich, place_uid
from transforms.framing import Framer, decode, head_of
from transforms.mapping import MappingFile
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, Context

EVENT_TABLES = ("access_events", "mail_events", "change_events", "gateway_jobs")
_EXCERPT = 2000
_REASONS = 200  # distinct reasons that are counted by name

_YEARLESS = re.compile(r"^(?:<\d{1,3}>)?[A-Z][a-z]{2} [ \d]?\d \d\d:\d\d:\d\d ", re.MULTILINE)

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class How:
    """How a piece was collected, as the caller or collection.csv says; all optional."""

    format: str | None = None
    tz: str | None = None
    year: int | None = None
    host: str | None = None
    tenant_id: str | None = None
    mapping: MappingFile | None = None


@dataclass(slots=True)
class Counts:
    """What became of the records of one piece of evidence."""

    records: int = 0
    events: Counter[str] = field(default_factory=Counter)
    continuations: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    first_ts: datetime | None = None
    last_ts: datetime | None = None

    def add_up(self) -> bool:
        """Whether every record is accounted for."""
        parts = sum(self.events.values()) + self.continuations + sum(self.ignored.values()) + self.duplicates
        return self.records == parts + sum(self.quarantined.values())

    def span(self, low: datetime | None, high: datetime | None) -> None:
        """Widens first and last event time."""
        self.first_ts = min(filter(None, (self.first_ts, low)), default=None)
        self.last_ts = max(filter(None, (self.last_ts, high)), default=None)


@dataclass(slots=True)
class Source:
    """A piece of evidence once it is identified."""

    piece: Piece
    how: How
    identity: Identity
    status: str  # committed, grown, known or refused
    reason: str | None = None
    choice: registry.Choice | None = None
    grown_from: str | None = None
    resumed_offset: int = 0
    ctx: Context | None = None
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0

    @property
    def evidence_id(self) -> str:
        return self.identity.evidence_id

    @property
    def format(self) -> str | None:
        return None if self.choice is None or self.ctx is None else registry.read_by(self.choice, self.ctx)


@dataclass(frozen=True, slots=True)
class Version:
    """Evidence that another piece may be a shorter or longer version of."""

    evidence_id: str
    content_bytes: int
    piece: Piece


class Run:
    """The pieces that a run has taken, by how they begin; only added to, so that it may be read beside."""

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self._by_head: dict[bytes, list[Source]] = {}
        self._short: list[Source] = []
        self._ids: set[str] = set()

    def add(self, source: Source) -> None:
        """Takes a piece."""
        head = source.identity.head
        self._by_head.setdefault(head, []).append(source)
        if len(head) < HEAD_BYTES:
            self._short.append(source)
        self._ids.add(source.evidence_id)
        self.sources.append(source)

    def __contains__(self, evidence_id: str) -> bool:
        return evidence_id in self._ids

    def alike(self, head: bytes) -> list[Source]:
        """Pieces that may be a shorter or longer version of what begins so."""
        same = self._by_head.get(head, [])
        short = [s for s in self._short if head.startswith(s.identity.head) and s.identity.head != head]
        if not head or len(head) >= HEAD_BYTES:
            return same + short
        return same + short + [s for s in self.sources if s.identity.head.startswith(head) and s.identity.head != head]


def examine(archive: Archive, piece: Piece, how: How, run: Run, progress: Progress | None = None) -> Source:
    """Hashes a piece and decides what is to be done with it.

    Args:
        archive: where it goes.
        piece: what to examine.
        how: how it was collected.
        run: pieces that this run has taken already.
        progress: told the bytes read.
    """
    head = first_bytes(piece, HEAD_BYTES)
    versions = [
        Version(e, n, Piece(path, member, in_zip=member is not None))
        for e, n, path, member in archive.evidence.begun_alike(head).iter_rows()
    ] + [Version(s.evidence_id, s.identity.content_bytes, s.piece) for s in run.alike(head)]
    identity = identify(piece, [v.content_bytes for v in versions], progress)
    source = Source(piece, how, replace(identity, head=head, tail=b""), "committed")
    if archive.known_evidence(identity.evidence_id) or identity.evidence_id in run:
        source.status = "known"
        return source
    for version in versions:
        longer = version.content_bytes > identity.content_bytes > 0
        if longer and prefix_sha256(version.piece, identity.content_bytes) == identity.evidence_id:
            source.status, source.reason = "known", f"it is the beginning of {version.piece.label}"
            return source
    seen = head_of(identity.head, piece.label)
    if how.mapping is not None:
        choice = registry.given(seen, how.mapping.format, how.mapping.framing)
    else:
        choice = registry.choose(seen, how.format)
    if isinstance(choice, str):
        source.status, source.reason = "refused", choice if identity.content_bytes else (identity.damage or choice)
        return source
    source.choice = choice
    shorter = [v for v in versions if identity.prefixes.get(v.content_bytes) == v.evidence_id]
    if shorter:
        longest = max(shorter, key=lambda v: v.content_bytes)
        source.status, source.grown_from, source.resumed_offset = "grown", longest.evidence_id, longest.content_bytes
    source.ctx = _context(source, identity)
    return source


def _context(source: Source, identity: Identity) -> Context:
    how = source.how
    assert source.choice is not None
    ctx = Context(
        evidence_id=identity.evidence_id,
        variant=source.choice.match.variant,
        tz=how.tz or "UTC",
        tz_basis="given" if how.tz else "assumed",
        year=how.year,
        year_basis="given" if how.year else "none",
        not_after=source.piece.mtime,
        host=how.host,
        tenant_id=how.tenant_id,
    )
    yearless = source.choice.name == registry.SYSLOG and _YEARLESS.search(decode(identity.head))
    if yearless and how.year is None and source.piece.mtime is not None:
        year = syslog.plan_year(decode(identity.head), decode(identity.tail), ctx)
        ctx.year, ctx.year_basis = year, "file_time"
    return ctx


@dataclass(frozen=True, slots=True)
class Block:
    """What became of the records of one block: event rows by table as the format gives them, and quarantine rows."""

    events: dict[str, pl.DataFrame]
    quarantine: pl.DataFrame


def read(source: Source, progress: Progress | None = None) -> Iterator[Block]:
    """Blocks of parsed rows; source.counts grows with each."""
    assert source.choice is not None
    stream, _, _ = source.piece.open()
    with stream:
        framer = Framer(stream, source.choice.framing, encoding=encoding_of(source.identity.head))
        for records in framer.blocks(progress):
            yield _block(source, _mark_cut(source, records))
        if source.identity.damage and source.identity.ends_with_newline:
            yield _block(source, _nothing_more(source, framer))


def _is_new(source: Source) -> pl.Expr:
    """Records of a grown log that the shorter version had not. Those before are parsed, for what they set up."""
    at = source.resumed_offset
    return (pl.col("byte_offset") >= at) | (pl.col("byte_offset") + pl.col("byte_length") > at)


def _mark_cut(source: Source, records: pl.DataFrame) -> pl.DataFrame:
    """In a stream that is cut off, the last record is not whole."""
    identity = source.identity
    if identity.damage is None or identity.ends_with_newline:
        return records
    end = pl.col("byte_offset") + pl.col("byte_length")
    cut = (end >= identity.content_bytes - 1) & (pl.col("record_no") == pl.col("record_no").max())
    return records.with_columns(
        pl.when(cut & pl.col("damage").is_null()).then(pl.lit(identity.damage)).otherwise("damage").alias("damage")
    )


def _nothing_more(source: Source, framer: Framer) -> pl.DataFrame:
    """An empty record at the place where a damaged stream ends, so that the loss is on record."""
    row = {"record_no": [framer.records], "byte_offset": [source.identity.content_bytes], "byte_length": [0]}
    framer.records += 1
    return pl.DataFrame(row).with_columns(pl.lit("").alias("raw"), pl.lit(source.identity.damage).alias("damage"))


def _block(source: Source, records: pl.DataFrame) -> Block:
    assert source.choice is not None
    assert source.ctx is not None
    rows = registry.parse(source.choice, records, source.ctx)
    if rows.height != records.height:
        raise AssertionError(f"{source.choice.name}: {records.height} records became {rows.height} rows")
    if source.resumed_offset:
        rows, records = rows.filter(_is_new(source)), records.filter(_is_new(source))
    source.counts.records += rows.height
    _count(source.counts, rows)
    begin = records.select("record_no", pl.col("raw").str.slice(0, _EXCERPT).alias("excerpt"))
    events = {}
    for table in EVENT_TABLES:
        mine = rows.filter(pl.col("disposition") == table)
        if mine.height:
            source.counts.events[table] += mine.height
            events[table] = mine.drop("disposition").with_columns(
                pl.lit(source.evidence_id).alias("evidence_id"),
                pl.lit(source.how.tenant_id, dtype=pl.String).alias("given_tenant_id"),
                pl.lit(source.how.host, dtype=pl.String).alias("given_host"),
            )
    return Block(events, _quarantine(source, rows, begin))


def check(table: str, rows: pl.DataFrame, refs: References) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Parsed rows of any pieces of evidence, enriched and held against the contract.

    Returns:
        accepted rows in the contract's columns with `has_id`; refused rows: evidence_id, place and reason.
    """
    full = enrich(rows, table, refs)
    rules = contract(table)
    conformed = rules.conform(full.lazy()).collect()
    accepted, refused = rules.split(conformed)
    if not refused.height:
        return conformed.with_columns(full["has_id"]), refused
    place = ["evidence_id", "byte_offset"]
    accepted = accepted.join(full.select(*place, "has_id"), on=place, how="left", maintain_order="left")
    return accepted, refused.select("evidence_id", "record_no", "byte_offset", "byte_length", "reason")


def _count(counts: Counts, rows: pl.DataFrame) -> None:
    groups = rows.filter(~pl.col("disposition").is_in(EVENT_TABLES)).group_by("disposition", "reason").len()
    for disposition, reason, number in groups.iter_rows():
        if disposition == CONTINUATION:
            counts.continuations += number
            continue
        target = counts.ignored if disposition == IGNORED else counts.quarantined
        name = reason or "no reason given"
        target[name if name in target or len(target) < _REASONS else "other reasons"] += number


def _quarantine(source: Source, rows: pl.DataFrame, begin: pl.DataFrame) -> pl.DataFrame:
    """Quarantine rows of a block, without the columns that the ingest run knows."""
    framing = pl.col("reason").str.starts_with("framing: ")
    refused = rows.filter(pl.col("disposition") == QUARANTINED).select(
        "record_no", "byte_offset", "byte_length",
        pl.when(framing).then(pl.lit("framing")).otherwise(pl.lit("parse")).alias("stage"),
        pl.col("reason").fill_null("no reason given"),
    )  # fmt: skip
    if not refused.height:
        return refused
    return placed(source, refused.join(begin, on="record_no", how="left", maintain_order="left"))


def placed(source: Source, refused: pl.DataFrame) -> pl.DataFrame:
    """Refused records of one piece of evidence with where they lie."""
    return refused.with_columns(
        pl.lit(source.evidence_id).alias("evidence_id"),
        pl.lit(source.piece.path).alias("path"),
        pl.lit(source.piece.member, dtype=pl.String).alias("member"),
        pl.lit(source.choice.name if source.choice else None, dtype=pl.String).alias("format"),
    ).with_columns(place_uid().alias("quarantine_uid"))


def excerpts(source: Source, refused: pl.DataFrame) -> pl.DataFrame:
    """Rows that break a contract, with how their records begin, read again from the evidence: they are rare."""
    ends = dict(zip(refused["byte_offset"], refused["byte_length"], strict=True))
    found: dict[int, str] = {}
    stream, _, _ = source.piece.open()
    with stream:
        at = 0
        for offset in sorted(ends):
            while at < offset and (passed := stream.read(min(offset - at, 1 << 20))):
                at += len(passed)
            data = stream.read(min(ends[offset], 4 * _EXCERPT))
            at += len(data)
            found[offset] = text_of(data, encoding_of(source.identity.head))[:_EXCERPT]
    schema = {"byte_offset": pl.Int64, "excerpt": pl.String}
    begin = pl.DataFrame({"byte_offset": list(found), "excerpt": list(found.values())}, schema=schema)
    return placed(source, refused.drop("evidence_id").join(begin, on="byte_offset", how="left", maintain_order="left"))


def summary(source: Source) -> dict[str, Any]:
    """One entry of `evidence` in the JSON answer of ingest."""
    c = source.counts
    return {
        "path": source.piece.label,
        "sha256": source.evidence_id,
        "bytes": source.identity.content_bytes,
        "format": source.format,
        "status": source.status,
        "reason": source.reason,
        "records": c.records,
        "events": {t: c.events[t] for t in EVENT_TABLES if c.events[t]},
        "continuations": c.continuations,
        "ignored": dict(sorted(c.ignored.items())),
        "duplicates": c.duplicates,
        "quarantined": dict(sorted(c.quarantined.items())),
        "first_ts": iso(c.first_ts),
        "last_ts": iso(c.last_ts),
        "seconds": round(source.seconds, 3),
    }


def iso(when: datetime | None) -> str | None:
    """UTC, ISO 8601 with Z."""
    return None if when is None else when.isoformat().replace("+00:00", "Z")
