"""Evidence into the archive: examine, read, stage, validate, commit; each piece once, whatever happens in between."""

import fnmatch
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import Any

import polars as pl

from archive import evidence
from archive.parquet import Staged
from archive.store import Archive
from data_contracts import contract, gate
from data_contracts.errors import GatehoundError
from flows.pipeline.reading import EVENT_TABLES, Block, How, Run, Source, check, examine, excerpts, read, summary
from flows.pipeline.references import load_references
from flows.pipeline.registering import register_row, totals
from transforms.enrich import References

_ROWS_A_STAGE = 250_000  # rows of all tables that are held before they are written
_BYTES_A_BATCH = 256 << 20  # content of the pieces that are validated and committed together
_PIECES_A_BATCH = 200
_AHEAD = 2  # pieces that are prepared while another is taken
_SMALL_BYTES = 16 << 20  # content of a piece that is read while it waits

Tell = Callable[[str, int], None]  # (what, bytes)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller says about the evidence."""

    collection: pl.DataFrame | None = None
    how: How = field(default_factory=How)
    strict: bool = False
    geoip: str | None = None

    def for_piece(self, label: str) -> How:
        """How a piece was collected: the first row of collection.csv whose pattern fits, then the caller's word."""
        how = self.how
        for row in self.collection.iter_rows(named=True) if self.collection is not None else ():
            if _fits(label, str(row["path"])):
                return replace(
                    how,
                    tz=row["tz"] or how.tz,
                    year=row["year"] or how.year,
                    host=row["host"] or how.host,
                    tenant_id=row["tenant_id"] or how.tenant_id,
                )
        return how


def _fits(label: str, pattern: str) -> bool:
    """Whether a path, given whole or from some folder on, is or matches a pattern."""
    return label.endswith("/" + pattern) or any(fnmatch.fnmatchcase(label, p) for p in (pattern, "*/" + pattern))


@dataclass(slots=True)
class _Batch:
    """Pieces that are staged, validated and committed together."""

    sources: list[Source] = field(default_factory=list)
    frames: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    rows: int = 0
    bytes: int = 0
    staged: dict[str, list[Staged]] = field(default_factory=dict)
    writing: list[tuple[str, "Future[list[Staged]]"]] = field(default_factory=list)
    quarantine: list[pl.DataFrame] = field(default_factory=list)
    done: dict[str, set[str]] = field(default_factory=dict)  # evidence -> tables that hold it already, after a crash

    def begin(self, stage: "Future[list[Staged]]", table: str) -> None:
        """Keeps a stage that is under way."""
        self.writing.append((table, stage))

    def settle(self) -> None:
        """Waits for what is under way."""
        for table, stage in self.writing:
            self.staged.setdefault(table, []).extend(stage.result())
        self.writing.clear()

    def tag(self, run_id: str) -> str:
        """What staged files belong to: the piece if it is alone, else the run."""
        return self.sources[0].evidence_id if len(self.sources) == 1 else run_id


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A piece that was examined and, if it is small, read; or why it could not be."""

    piece: evidence.Piece
    run_length: int  # pieces of this run that it was compared with
    source: Source | None = None
    blocks: list[Block] | None = None
    error: Exception | None = None


class Ingest:
    """One run of ingest over an archive.

    Args:
        archive: where to.
        options: what the caller says about the evidence.
        tell: told of progress, in bytes.
    """

    def __init__(self, archive: Archive, options: Options, tell: Tell | None = None) -> None:
        self.archive = archive
        self.options = options
        self.tell = tell or (lambda _what, _size: None)
        self.run_id = uuid.uuid4().hex[:16]
        self.at = datetime.now(UTC)
        self.refs: References = load_references(archive, options.geoip)
        self.finished: list[Source] = []
        self._taken = Run()
        self._batch = _Batch()
        self._writer = ThreadPoolExecutor(1, "stage")
        self._warming: Thread | None = None

    def run(self, paths: Iterable[str]) -> dict[str, Any]:
        """Ingests every piece below the paths; what is refused never stops the rest.

        Returns:
            The answer of ``ingest -t json`` (docs: command line).
        """
        waiting: deque[Future[_Prepared]] = deque()
        with ThreadPoolExecutor(_AHEAD, "prepare") as pool:
            for piece in self._pieces(paths):
                waiting.append(pool.submit(self._prepare, piece, self._taken))
                if len(waiting) > _AHEAD:
                    self._take(waiting.popleft().result())
            while waiting:
                self._take(waiting.popleft().result())
        self._finish(self._batch)
        self._writer.shutdown()
        if self._warming is not None:
            self._warming.join()  # a process that ends while modules are still being loaded complains of what it has
        return self._answer()

    def _pieces(self, paths: Iterable[str]) -> Iterator[evidence.Piece]:
        place = self.archive.place
        own = Path(place.root).resolve() if place.is_local else None
        for path in evidence.find(list(paths)):
            # Of a folder that holds the archive as well, the archive is no evidence.
            if own is not None and "://" not in path and Path(path).resolve().is_relative_to(own):
                continue
            try:
                yield from evidence.pieces(path)
            except (GatehoundError, OSError) as error:
                self._refuse_unread(evidence.Piece(path), error)

    def _prepare(self, piece: evidence.Piece, run: Run) -> "_Prepared":
        """Examines a piece and, if it is small, reads it: for a few pieces ahead of the one that is taken."""
        began, length = time.monotonic(), len(run.sources)
        try:
            how = self.options.for_piece(piece.label)
            source = examine(self.archive, piece, how, run, lambda n: self.tell("hash " + piece.label, n))
            if source.ctx is not None and self._warming is None:
                self._warming = gate.warm_up()  # not before there is something to validate
            small = source.ctx is not None and source.identity.content_bytes <= _SMALL_BYTES
            blocks = list(self._blocks(source)) if small else None
        except (GatehoundError, OSError) as error:
            return _Prepared(piece, length, error=error)
        source.seconds = time.monotonic() - began
        return _Prepared(piece, length, source, blocks)

    def _blocks(self, source: Source) -> Iterator[Block]:
        return read(source, lambda n: self.tell("read " + source.piece.label, n))

    def _take(self, prepared: "_Prepared") -> None:
        source = prepared.source
        since = self._taken.sources[prepared.run_length :]
        if source is not None and _may_be_versions(source, since):
            prepared = self._prepare(prepared.piece, self._taken)  # a version of it was taken in the meantime
            source = prepared.source
        if source is None:
            assert prepared.error is not None
            self._refuse_unread(prepared.piece, prepared.error)
        elif source.status == "known":
            self.finished.append(source)
        elif source.status == "refused":
            self._refuse(source)
        else:
            self._taken.add(source)
            self._read_into(self._batch, source, prepared.blocks)
            if self._batch.bytes > _BYTES_A_BATCH or len(self._batch.sources) >= _PIECES_A_BATCH:
                self._finish(self._batch)
                self._batch = _Batch()

    def _read_into(self, batch: _Batch, source: Source, blocks: list[Block] | None = None) -> None:
        began = time.monotonic()
        batch.sources.append(source)
        batch.bytes += source.identity.content_bytes
        batch.done[source.evidence_id] = {t for t in EVENT_TABLES if self.archive.committed(t, source.evidence_id)}
        for block in self._blocks(source) if blocks is None else blocks:
            if block.quarantine.height:
                batch.quarantine.append(block.quarantine)
            for table, frame in block.events.items():
                if table in batch.done[source.evidence_id]:
                    continue
                batch.frames.setdefault(table, []).append(frame)
                batch.rows += frame.height
            if batch.rows >= _ROWS_A_STAGE:
                self._stage(batch)
        source.seconds += time.monotonic() - began

    def _stage(self, batch: _Batch) -> None:
        """Writes what is held in the background, so that parsing goes on; one stage is under way at most."""
        batch.settle()
        for table, frames in batch.frames.items():
            frame = self._checked(batch, table, pl.concat(frames, how="diagonal_relaxed"))
            if frame["has_id"].any():
                frame = self._without_duplicates(batch, table, frame)
            frame = frame.drop("has_id")
            if frame.height:
                batch.begin(self._writer.submit(self.archive.stage, table, frame, batch.tag(self.run_id)), table)
        batch.frames.clear()
        batch.rows = 0

    def _checked(self, batch: _Batch, table: str, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows that keep the contract; the others go to quarantine and are counted there."""
        accepted, refused = check(table, rows, self.refs)
        for (evidence_id,), part in refused.group_by("evidence_id", maintain_order=True):
            source = self._source(batch, str(evidence_id))
            source.counts.events[table] -= part.height
            source.counts.quarantined.update(dict(part.group_by("reason").len().iter_rows()))
            stage = part.with_columns(pl.lit("contract").alias("stage"))
            batch.quarantine.append(excerpts(source, stage))
        spans = accepted.group_by("evidence_id").agg(pl.col("ts").min().alias("low"), pl.col("ts").max().alias("high"))
        for evidence_id, low, high in spans.iter_rows():
            self._source(batch, evidence_id).counts.span(low, high)
        return accepted

    def _without_duplicates(self, batch: _Batch, table: str, frame: pl.DataFrame) -> pl.DataFrame:
        """Drops rows whose own record id the archive, this run or this frame holds already, and counts them."""
        own = frame.filter("has_id")
        dates = own["date"].unique().to_list()
        held = [self.archive.event_uids(table, dates, s) for s in own["source"].unique().to_list()]
        held.append(self.archive.staged_uids(batch.staged.get(table, []), dates))
        again = (
            pl.col("has_id")
            & (pl.col("event_uid").is_in(pl.concat(held).implode()) | ~pl.col("event_uid").is_first_distinct())
        )  # fmt: skip
        frame = frame.with_columns(again.alias("again"))
        for evidence_id, number in frame.filter("again").group_by("evidence_id").len().iter_rows():
            counts = self._source(batch, evidence_id).counts
            counts.duplicates += number
            counts.events[table] -= number
        return frame.filter(~pl.col("again")).drop("again")

    @staticmethod
    def _source(batch: _Batch, evidence_id: str) -> Source:
        return next(s for s in batch.sources if s.evidence_id == evidence_id)

    def _finish(self, batch: _Batch) -> None:
        """Validates what is staged; commits it, or refuses the pieces that break a contract."""
        if not batch.sources:
            return
        began = time.monotonic()
        self._stage(batch)
        batch.settle()
        failures = self._validate(batch)
        if failures or (self.options.strict and any(s.counts.quarantined for s in batch.sources)):
            self._part(batch, failures)
            return
        ids = [s.evidence_id for s in batch.sources]
        for table, staged in batch.staged.items():
            self.archive.commit(table, staged, ids)
        self._commit_registers(batch, ids)
        share = (time.monotonic() - began) / len(batch.sources)
        for source in batch.sources:
            source.seconds += share
        self.finished.extend(batch.sources)

    def _validate(self, batch: _Batch) -> list[dict[str, Any]]:
        failures: list[dict[str, Any]] = []
        label = f"{self.run_id}-{batch.sources[0].evidence_id[:12]}"
        for table, staged in batch.staged.items():
            result = gate.validate(
                table,
                self.archive.uris(staged),
                out_dir=self.archive.validation_dir,
                filesystem=self.archive.filesystem,
                label=label,
            )
            if not result.success:
                failures.extend(result.failures)
        return failures

    def _part(self, batch: _Batch, failures: list[dict[str, Any]]) -> None:
        """A batch that must not be committed: each piece is tried alone, so that one bad file refuses no other."""
        for staged in batch.staged.values():
            self.archive.discard(staged)
        if len(batch.sources) == 1:
            source = batch.sources[0]
            if failures:
                source.reason = "contract: " + json.dumps(failures, default=str)[:8000]
            else:
                source.reason = "--strict: records were quarantined: " + json.dumps(dict(source.counts.quarantined))
            self._refuse(source)
            return
        for source in batch.sources:  # examined again: what one grew from may be refused now
            again = self._prepare(source.piece, Run())
            if again.source is None or again.source.ctx is None:
                self._take(again)
                continue
            alone = _Batch()
            self._read_into(alone, again.source, again.blocks)
            self._finish(alone)

    def _refuse(self, source: Source) -> None:
        source.status = "refused"
        self.finished.append(source)
        self.archive.record_evidence([register_row(source, self.run_id, self.at)])
        self.archive.custody(
            "refuse", {"path": source.piece.label, "sha256": source.evidence_id, "reason": source.reason}
        )

    def _refuse_unread(self, piece: evidence.Piece, error: Exception) -> None:
        fact = error.fact if isinstance(error, GatehoundError) else f"{piece.label}: {error}"
        nothing = evidence.Identity(
            "0" * 64, "0" * 64, 0, "none", b"", b"", ends_with_newline=True, damage=None, prefixes={}
        )
        source = Source(piece, How(), nothing, "refused", fact)
        self.finished.append(source)
        self.archive.custody("refuse", {"path": piece.label, "reason": fact})

    def _commit_registers(self, batch: _Batch, ids: list[str]) -> None:
        if batch.quarantine:
            rows = pl.concat(batch.quarantine, how="diagonal").with_columns(
                pl.lit(self.at.date()).alias("date"), pl.lit(self.at).alias("ingested_at")
            )
            held = contract("quarantine").conform(rows.lazy()).collect()
            staged = self.archive.stage("quarantine", held, batch.tag(self.run_id))
            self.archive.commit("quarantine", staged, ids)
        for source in batch.sources:
            if not source.counts.add_up():
                raise AssertionError(f"{source.piece.label}: the counts do not add up: {summary(source)}")
        self.archive.record_evidence([register_row(s, self.run_id, self.at) for s in batch.sources])
        for source in batch.sources:
            entry = summary(source)
            told = {k: entry[k] for k in ("path", "sha256", "bytes", "format", "status", "records")}
            if source.how.mapping is not None:
                told["mapping_sha256"] = source.how.mapping.sha256
            self.archive.custody("ingest", told)

    def _answer(self) -> dict[str, Any]:
        entries = [summary(s) for s in self.finished]
        return {"evidence": entries, "totals": totals(entries), "archive_version": self.archive.versions()}


def _may_be_versions(source: Source, others: list[Source]) -> bool:
    """Whether one of some pieces begins as a piece does."""
    head = source.identity.head
    return any(s.identity.head.startswith(head) or head.startswith(s.identity.head) for s in others)
