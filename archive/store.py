"""The archive: a folder or object store prefix of Delta tables, evidence register, custody log and validation results.

archive.toml       what makes it an archive; options of its store, never secrets
custody.jsonl      everything that was done to it, hash-chained
tables/TABLE/      one Delta table of Parquet files, by contract
validation/        results of the quality gate
"""

import threading
import tomllib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from archive import delta
from archive.custody import Custody, who
from archive.parquet import Staged, scan_files, write_staged
from archive.register import EvidenceRegister
from archive.storage import Place, keepable
from data_contracts import contract, names
from data_contracts.errors import RefusedError, UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import duckdb
    from deltalake import DeltaTable

    from archive.raw import RawRecord
    from archive.verify import Problem

CONFIGURATION = "archive.toml"
LAYOUT = 1
_SNAPSHOTS = 64  # of a table's versions: reading one costs more than opening the table


class Archive:
    """An open archive. Every read looks at the tables' current versions; the evidence register is kept."""

    def __init__(self, place: Place, configuration: Mapping[str, Any]) -> None:
        self.place = place
        self.configuration = configuration
        self.uri = place.root
        self._lock = threading.Lock()
        self._latest: dict[str, delta.Latest] = {}  # for reading: a commit needs a snapshot of its own
        self._committed: set[tuple[str, str]] = set()
        self._snapshots: dict[tuple[str, int], delta.Snapshot] = {}

    @classmethod
    def create(cls, uri: str | Path, storage_options: Mapping[str, str] | None = None) -> "Archive":
        """Makes an empty archive and opens it. Raises UsageError when the place holds anything."""
        place = Place(uri, storage_options)
        if place.exists(CONFIGURATION):
            raise UsageError(f"{place.root} is an archive already", "open it, or choose another place")
        if place.is_local:
            folder = Path(place.root)
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise UsageError(f"{place.root} is not an empty folder", "choose a folder that is new or empty")
            folder.mkdir(parents=True, exist_ok=True)
        elif place.filesystem.exists(place.root) and place.filesystem.ls(place.root):
            raise UsageError(f"{place.root} is not empty", "choose a prefix that nothing uses")
        place.write(_configuration(place), CONFIGURATION)
        archive = cls.open(uri, storage_options)
        archive.custody("init", {"archive_id": archive.configuration["archive_id"], "layout": LAYOUT})
        return archive

    @classmethod
    def open(cls, uri: str | Path, storage_options: Mapping[str, str] | None = None) -> "Archive":
        """Opens an archive. Raises UsageError when there is none."""
        place = Place(uri, storage_options)
        try:
            configuration = tomllib.loads(place.read(CONFIGURATION).decode())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise UsageError(f"{place.root} is not an archive", f"gatehound init -a {place.root}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{place.path(CONFIGURATION)}: cannot be read: {error}") from error
        if configuration.get("layout") != LAYOUT:
            fact = f"{place.path(CONFIGURATION)}: layout {configuration.get('layout')!r} is not {LAYOUT}"
            raise UsageError(fact, "use the gatehound that made it")
        return cls(Place(uri, {**configuration.get("storage", {}), **(storage_options or {})}), configuration)

    # reading

    def scan(self, table: str, dates: Sequence[date] | None = None, version: int | None = None) -> pl.LazyFrame:
        """Rows of a table's current (or given) version; typed and empty when nothing was ever stored.

        Args:
            dates: read only these partitions' files.
        """
        found = self.snapshot(table, version)
        if found is None:
            return pl.LazyFrame(schema=contract(table).polars_schema)
        return scan_files(self.place, self._full(found, dates), found.schema, found.table.partitioned_by)

    def reader(self, table: str) -> Callable[[Sequence[date] | None], pl.LazyFrame]:
        """`scan` bound to the version that is current now: the transaction log is read once for many days."""
        found = self.snapshot(table)

        def rows(dates: Sequence[date] | None) -> pl.LazyFrame:
            if found is None:
                return pl.LazyFrame(schema=contract(table).polars_schema)
            return scan_files(self.place, self._full(found, dates), found.schema, found.table.partitioned_by)

        return rows

    def files(self, table: str, dates: Sequence[date] | None = None, version: int | None = None) -> list[str]:
        """Full paths or URIs of the files that the current (or given) version names, in sorted order."""
        found = self.snapshot(table, version)
        return [] if found is None else self._full(found, dates)

    def snapshot(self, table: str, version: int | None = None) -> delta.Snapshot | None:
        """Version, files (path, bytes, rows, date) and schema of a table; None when nothing was ever stored."""
        if version is not None:
            held = self._snapshots.get((table, version))
            return held or self._kept(table, delta.open_table(self.place, table, version))
        with self._look(table) as opened:
            return self._kept(table, opened)

    def _kept(self, table: str, opened: "DeltaTable | None") -> delta.Snapshot | None:
        if opened is None:
            return None
        key = (table, opened.version())
        if (found := self._snapshots.get(key)) is None:
            found = delta.snapshot(opened, contract(table))
            with self._lock:
                self._snapshots[key] = found
                if len(self._snapshots) > _SNAPSHOTS:
                    del self._snapshots[next(iter(self._snapshots))]
        return found

    def _look(self, table: str) -> "AbstractContextManager[DeltaTable | None]":
        with self._lock:
            return self._latest.setdefault(table, delta.Latest(self.place, table)).look()

    def version(self, table: str) -> int | None:
        """Current version of a table; None when nothing was ever stored."""
        with self._look(table) as found:
            return None if found is None else found.version()

    def versions(self, tables: Iterable[str] | None = None) -> dict[str, int]:
        """Current version of every table (of `tables`, or any) that exists."""
        asked = names() if tables is None else tables
        return {name: version for name in asked if (version := self.version(name)) is not None}

    def dates(self, table: str) -> list[date]:
        """Partition dates that hold rows, in order."""
        found = self.snapshot(table)
        return [] if found is None else sorted(found.files["date"].drop_nulls().unique().to_list())

    def rows_by_date(self, table: str) -> dict[date, int]:
        """Rows of each partition date, as the transaction log says."""
        found = self.snapshot(table)
        if found is None:
            return {}
        return dict(found.files.drop_nulls("date").group_by("date").agg(pl.col("rows").sum()).iter_rows())

    def changed_dates(self, table: str, since_version: int | None) -> list[date]:
        """Partition dates whose files differ from those of an earlier version, in order; all dates when None."""
        if since_version is None:
            return self.dates(table)
        now, then = self.snapshot(table), self.snapshot(table, since_version)
        if now is None or then is None:
            return []
        differing = pl.concat(
            [now.files.join(then.files, on="path", how="anti"), then.files.join(now.files, on="path", how="anti")]
        )
        return sorted(differing["date"].drop_nulls().unique().to_list())

    def event_uids(self, table: str, dates: Sequence[date], source: str | None = None) -> pl.Series:
        """Event ids that the archive holds for some days, of one source or of all; reads no other column."""
        rows = self.scan(table, dates)
        if source is not None:
            rows = rows.filter(pl.col("source") == source)
        return rows.select("event_uid").collect()["event_uid"]

    # writing

    def stage(self, table: str, df: pl.DataFrame, tag: str) -> list[Staged]:
        """Writes rows that conform to the contract into the table's folder, unseen until `commit` names them.

        Args:
            tag: what the rows belong to (an evidence_id, a run); made safe, it is part of the files' names.
        """
        return write_staged(self.place, contract(table), df, tag)

    def commit(self, table: str, staged: Sequence[Staged], app_ids: Sequence[str]) -> int:
        """Makes staged files part of the table, once for each application id; returns the table's version.

        Files of an id that was committed before (of its tag, or holding rows of its evidence_id) are not taken, and are
        removed. Without files the ids alone are recorded. Raises RefusedError when too many others commit at once.
        """
        version, unneeded = delta.commit(self.place, table, staged, app_ids)
        self._remove(unneeded)
        return version

    def committed(self, table: str, app_id: str) -> bool:
        """Whether a commit with this application id is part of the table."""
        if (table, app_id) in self._committed:
            return True
        with self._look(table) as found:
            done = found is not None and found.transaction_version(app_id) is not None
        if done:
            self._committed.add((table, app_id))
        return done

    def discard(self, staged: Sequence[Staged]) -> None:
        """Removes staged files that their table does not name."""
        held: dict[str, set[str]] = {}
        for table in {file.table for file in staged}:
            found = self.snapshot(table)
            held[table] = set() if found is None else set(found.files["path"])
        self._remove([file for file in staged if file.path not in held[file.table]])

    def uris(self, staged: Sequence[Staged]) -> list[str]:
        """Full paths or URIs of staged files."""
        return [self.place.path("tables", file.table, file.path) for file in staged]

    def staged_uids(self, staged: Sequence[Staged], dates: Sequence[date]) -> pl.Series:
        """Event ids in staged files of some days."""
        paths = self.uris([file for file in staged if file.date in set(dates)])
        schema = pl.Schema({"event_uid": pl.String()})
        return scan_files(self.place, paths, schema, None).collect()["event_uid"]

    def _remove(self, staged: Sequence[Staged]) -> None:
        for uri in self.uris(staged):
            self.place.remove(uri)

    def append(self, table: str, df: pl.DataFrame, app_id: str | None = None) -> int:
        """Stages and commits rows in one step; returns the version. With an app_id already there, does nothing."""
        ids = [] if app_id is None else [app_id]
        if app_id is not None and self.committed(table, app_id):
            return self.version(table) or 0
        return self.commit(table, self.stage(table, df, app_id or table), ids)

    def replace_days(
        self,
        table: str,
        frames: pl.DataFrame | Iterable[pl.DataFrame],
        dates: Sequence[date],
        built_from: Mapping[str, int] | None = None,
    ) -> int:
        """Replaces whole days of a derived table in one transaction; returns the version. A day may become empty.

        Args:
            frames: rows of these dates only, in one frame or several.
            built_from: source table to the version that the table is now built from. Give it with the last of several
                calls only: it says that everything up to that version has been taken in.
        """
        table_contract = contract(table)
        if table_contract.kind != "derived":
            raise UsageError(f"{table} is not a derived table: its days cannot be replaced")
        staged: list[Staged] = []
        try:
            for df in [frames] if isinstance(frames, pl.DataFrame) else frames:
                _check_days(table, df, dates)
                staged += self.stage(table, df, "built")
            return delta.replace(self.place, table, staged, dates, built_from or {})
        except BaseException:
            self.discard(staged)
            raise

    def built_from(self, table: str, sources: Iterable[str] | None = None) -> dict[str, int]:
        """Source table (one of `sources`, or any) to the last version of it that a derived table has taken in."""
        asked = names() if sources is None else sources
        with self._look(table) as found:
            if found is None:
                return {}
            known = {name: found.transaction_version(delta.BUILT_FROM + name) for name in asked}
        return {name: version for name, version in known.items() if version is not None}

    def overwrite(self, table: str, df: pl.DataFrame) -> int:
        """Replaces a reference table; columns past the contract's are kept after them. Returns the version."""
        table_contract = contract(table)
        if table_contract.kind != "reference":
            raise UsageError(f"{table} is not a reference table: it cannot be overwritten")
        extra = [name for name in df.columns if name not in table_contract.polars_schema]
        _check_extra(table, extra, list(table_contract.polars_schema))
        conformed = table_contract.conform(df.lazy()).collect()
        return delta.overwrite(self.place, table, conformed.with_columns(df.select(extra).cast(pl.String)))

    # the rooms beside the tables

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of an object store; None for a local folder."""
        return None if self.place.is_local else self.place.filesystem

    @property
    def validation_dir(self) -> str:
        """Folder or URI of the quality gate's results."""
        return self.place.path("validation")

    @cached_property
    def evidence(self) -> EvidenceRegister:
        """The register of evidence."""
        return EvidenceRegister(self)

    @cached_property
    def custody_log(self) -> Custody:
        """The custody log."""
        return Custody(self.place)

    def known_evidence(self, evidence_id: str) -> dict[str, Any] | None:
        """Register row of evidence that is in the archive; None when it is new."""
        return self.evidence.known(evidence_id)

    def record_evidence(self, rows: Sequence[Mapping[str, Any]] | pl.DataFrame) -> int:
        """Adds rows to the register; returns its version."""
        return self.evidence.record(rows)

    def custody(self, action: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Appends to the custody log; returns the line."""
        return self.custody_log.record(action, details)

    def connect(self, **settings: Any) -> "duckdb.DuckDBPyConnection":
        """A hardened in-memory DuckDB with a view for each table; see `archive.sqlview.connect`."""
        from archive.sqlview import connect

        return connect(self, **settings)

    def raw(self, event_uid: str, day: date | None = None) -> "RawRecord":
        """Where the source record of an event lies; see `archive.raw.find`."""
        from archive.raw import find

        return find(self, event_uid, day)

    def verify(self) -> "list[Problem]":
        """What is not as it was stored, read anew whatever was read before; see `archive.verify.verify`."""
        from archive.verify import verify

        return verify(Archive(self.place, self.configuration))

    def _full(self, found: delta.Snapshot, dates: Sequence[date] | None) -> list[str]:
        return [self.place.path("tables", found.table.name, path) for path in found.paths(dates)]


def _configuration(place: Place) -> bytes:
    import tomli_w

    return tomli_w.dumps(
        {
            "layout": LAYOUT,
            "archive_id": str(uuid.uuid4()),
            "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "created_by": who(),
            "storage": keepable(place.options),
        }
    ).encode()


def _check_days(table: str, df: pl.DataFrame, dates: Sequence[date]) -> None:
    stray = set(df["date"].unique()) - set(dates)
    if stray:
        raise RefusedError(f"{table}: rows of {len(stray)} days that are not to be replaced")


def _check_extra(table: str, extra: Sequence[str], own: Sequence[str]) -> None:
    seen = {name.lower() for name in own}
    for name in extra:
        if not name.strip() or not name.isprintable() or len(name) > 128 or name.lower() in seen:
            raise UsageError(f"{table}: column {name!r} is empty, unprintable, too long or there twice", "rename it")
        seen.add(name.lower())
