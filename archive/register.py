"""The register of evidence: what was ingested, from where, and what became of it (table `evidence`)."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from data_contracts import contract

if TYPE_CHECKING:
    from archive.store import Archive

TABLE = "evidence"
HEAD_BYTES = 1024  # of the content, by whose hash shorter versions of a log are looked up


def head_sha256(content: bytes) -> str:
    """Hash of the beginning of some content."""
    return hashlib.sha256(content[:HEAD_BYTES]).hexdigest()


class EvidenceRegister:
    """The register of one archive, read once and kept until something is recorded."""

    def __init__(self, archive: "Archive") -> None:
        self._archive = archive
        self._rows: pl.DataFrame | None = None

    def rows(self) -> pl.DataFrame:
        """All rows, oldest first, as the contract `evidence` has them."""
        if self._rows is None:
            self._rows = self._archive.scan(TABLE).sort("ingested_at", "evidence_id", maintain_order=True).collect()
        return self._rows

    def refresh(self) -> None:
        """Forgets what was read, so that rows of other processes are seen."""
        self._rows = None

    def known(self, evidence_id: str) -> dict[str, Any] | None:
        """The latest row of evidence whose records are in the archive; None when it is new or was refused."""
        found = self.ingests(evidence_id).filter(pl.col("status") != "refused")
        return found.row(-1, named=True) if found.height else None

    def ingests(self, evidence_id: str) -> pl.DataFrame:
        """Every row of a piece of evidence, refused ones included, oldest first."""
        return self.rows().filter(pl.col("evidence_id") == evidence_id)

    def sizes(self, head: bytes) -> dict[int, list[str]]:
        """Content size in bytes to the evidence ids of that size that a log with this beginning may have grown from.

        Args:
            head: first HEAD_BYTES of the content, or all of it if there are fewer.
        """
        rows = self.rows()
        same = (pl.col("head_sha256") == head_sha256(head)) | (pl.col("content_bytes") < HEAD_BYTES)
        held = rows.filter(same & (pl.col("status") != "refused"))
        grouped: dict[int, list[str]] = {}
        for size, evidence_id in held.select("content_bytes", "evidence_id").unique(maintain_order=True).iter_rows():
            grouped.setdefault(size, []).append(evidence_id)
        return grouped

    def record(self, rows: Sequence[Mapping[str, Any]] | pl.DataFrame) -> int:
        """Adds rows and returns the version of the register.

        Evidence that was taken in is recorded once, whoever is first; a refusal once for each run.
        """
        df = rows if isinstance(rows, pl.DataFrame) else _frame(rows)
        df = contract(TABLE).conform(df.lazy()).collect().unique("evidence_id", keep="last", maintain_order=True)
        new = [not self._archive.committed(TABLE, app_id) for app_id in _app_ids(df)]
        df = df.filter(pl.Series(new, dtype=pl.Boolean))
        if df.is_empty():
            version = self._archive.version(TABLE) or 0
        else:
            version = self._archive.commit(TABLE, self._archive.stage(TABLE, df, "evidence"), _app_ids(df))
        self.refresh()
        return version


def _frame(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    schema = contract(TABLE).polars_schema
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema)


def _app_ids(df: pl.DataFrame) -> list[str]:
    return [
        f"refused:{row['evidence_id']}:{row['run_id']}" if row["status"] == "refused" else row["evidence_id"]
        for row in df.iter_rows(named=True)
    ]
