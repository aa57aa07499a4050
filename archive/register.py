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

    def begun_alike(self, head: bytes) -> pl.DataFrame:
        """Evidence in the archive that may be a shorter or longer version of a log with this beginning.

        Args:
            head: first HEAD_BYTES of the content, or all of it if there are fewer.

        Returns:
            evidence_id, content_bytes, path, member; evidence shorter than HEAD_BYTES is always among them, longer
            versions of so short a log are not.
        """
        same = (pl.col("head_sha256") == head_sha256(head)) | (pl.col("content_bytes") < HEAD_BYTES)
        held = self.rows().filter(same & (pl.col("status") != "refused"))
        return held.select("evidence_id", "content_bytes", "path", "member").unique("evidence_id", maintain_order=True)

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
