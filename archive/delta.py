"""Delta tables through delta-rs: snapshots, commits that happen exactly once, replacement of days.

delta-rs refuses a commit whose application transaction was written by someone else since the snapshot was read (seen in
1.6.6 with two racing processes), on a local folder and on any store with conditional writes. So a commit here reads a
fresh snapshot, leaves out what that snapshot already holds, and starts again when it is refused: no lock is needed.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

import polars as pl

from archive.parquet import Staged, scan_files, write_staged
from archive.storage import Place
from data_contracts import Contract, contract
from data_contracts.errors import IntegrityError, RefusedError

if TYPE_CHECKING:
    from deltalake import DeltaTable

_ATTEMPTS = 30
_FOREVER = "interval 36500 days"
# A finding is to be reproducible as of a version years later: delta-rs would drop log files after 30 days.
# Opening a table reads the log since the last checkpoint: at the default of 100 commits that is a tenth of a second.
_CONFIGURATION = {
    "delta.logRetentionDuration": _FOREVER,
    "delta.deletedFileRetentionDuration": _FOREVER,
    "delta.checkpointInterval": "10",
}
BUILT_FROM = "built_from:"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a table. `files` has the columns path (below the table's folder), bytes, rows, date.

    `added` are columns of the contract that it did not have yet when the table was first stored: some files lack them.
    """

    table: Contract
    version: int
    files: pl.DataFrame
    schema: pl.Schema
    added: tuple[str, ...] = ()

    def paths(self, dates: Sequence[date] | None = None) -> list[str]:
        """Paths of the files, all or those of some partitions, in sorted order."""
        chosen = self.files if dates is None else self.files.filter(pl.col("date").is_in(list(dates)))
        return sorted(chosen["path"].to_list())


def open_table(place: Place, name: str, version: int | None = None) -> "DeltaTable | None":
    """The Delta table, or None when nothing was ever committed to it. Raises IntegrityError when its log is damaged."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError, TableNotFoundError

    uri = place.path("tables", contract(name).name)
    try:
        return DeltaTable(uri, version=version, storage_options=place.storage_options)
    except TableNotFoundError:
        return None
    except DeltaError as error:
        if version is not None:
            raise RefusedError(f"{uri}: version {version} cannot be read: {_first_line(error)}") from error
        fact = f"{uri}/_delta_log: cannot be read: {_first_line(error)}"
        raise IntegrityError(fact, "restore the table's log from a copy") from error


class Latest:
    """A table that is opened once, and brought up to date at each look: that costs a tenth of opening it again."""

    def __init__(self, place: Place, name: str) -> None:
        self._place = place
        self._name = name
        self._lock = threading.RLock()
        self._opened: DeltaTable | None = None

    @contextmanager
    def look(self) -> "Iterator[DeltaTable | None]":
        """The table at its current version, None when nothing was ever committed to it; nobody else looks meanwhile.

        Raises IntegrityError when its log is damaged.
        """
        from deltalake.exceptions import DeltaError

        with self._lock:
            try:
                if self._opened is not None:
                    self._opened.update_incremental()
            except DeltaError:  # opened again, it says what is wrong
                self._opened = None
            if self._opened is None:
                self._opened = open_table(self._place, self._name)
            yield self._opened


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def snapshot(delta: "DeltaTable", table: Contract) -> Snapshot:
    """What the version that a table was opened at holds."""
    actions = pl.DataFrame(delta.get_add_actions(flatten=True))
    partition = f"partition.{table.partitioned_by}"
    day = pl.col(partition).cast(pl.Date) if partition in actions.columns else pl.lit(None, pl.Date)
    rows = pl.col("num_records") if "num_records" in actions.columns else pl.lit(None)
    files = actions.select(
        "path", pl.col("size_bytes").alias("bytes"), rows.cast(pl.Int64).alias("rows"), day.alias("date")
    )
    schema, stored = dict(table.polars_schema), pl.Schema(delta.schema().to_arrow())
    added = tuple(name for name in schema if name not in stored)
    if table.kind == "reference":  # columns past the contract's are kept
        schema |= {column: kind for column, kind in stored.items() if column not in schema}
    return Snapshot(table, delta.version(), files, pl.Schema(schema), added)


def commit(place: Place, name: str, staged: Sequence[Staged], app_ids: Sequence[str]) -> tuple[int, list[Staged]]:
    """Makes staged files part of the table, in one transaction, once for each application id.

    Returns the table's version and the staged files that the table did not take, since their id was there already. When
    only some ids were, files that hold rows of these (by evidence_id) are written again without them.
    Raises RefusedError when a table without evidence_id has some of the ids already.
    """
    loose = {file.path: file for file in staged}

    def plan(delta: "DeltaTable", held: set[str]) -> "_Change | None":
        done = {app_id for app_id in app_ids if delta.transaction_version(app_id) is not None}
        if app_ids and done == set(app_ids):
            return None
        new = [file for file in staged if file.tag not in done and file.path not in held]
        if done:
            new = [kept for file in new for kept in ([file] if file.tag in app_ids else _without(place, file, done))]
            loose.update({file.path: file for file in new})
        if not new and not app_ids:
            return None
        return _Change(new, [], {app_id: 1 for app_id in app_ids if app_id not in done})

    version, held = _transact(place, contract(name), plan)
    return version, [file for path, file in loose.items() if path not in held]


def _without(place: Place, file: Staged, done: set[str]) -> list[Staged]:
    """A staged file less the rows of evidence that the table holds: itself, another file, or none."""
    table = contract(file.table)
    if "evidence_id" not in table.polars_schema:
        raise RefusedError(f"{file.table}: {len(done)} of the ids to commit are in the table already", "stage again")
    path = place.path("tables", file.table, file.path)
    rows = scan_files(place, [path], table.polars_schema, table.partitioned_by)
    if rows.select(pl.col("evidence_id").is_in(sorted(done)).any()).collect().item() is not True:
        return [file]
    return write_staged(place, table, rows.filter(~pl.col("evidence_id").is_in(sorted(done))).collect(), file.tag)


def replace(
    place: Place, name: str, staged: Sequence[Staged], dates: Sequence[date], built_from: Mapping[str, int]
) -> int:
    """Puts staged files in the place of all files of the given dates, in one transaction; returns the version.

    Raises RefusedError when another run has meanwhile stored what it built from newer versions of the sources.
    """
    days = set(dates)

    def plan(delta: "DeltaTable", _held: set[str]) -> "_Change | None":
        for source, ours in built_from.items():
            theirs = delta.transaction_version(BUILT_FROM + source)
            if theirs is not None and theirs > ours:
                raise RefusedError(
                    f"{name}: was meanwhile built from version {theirs} of {source}, this run has version {ours}",
                    "run again",
                )
        old = [row for row in snapshot(delta, contract(name)).files.iter_rows(named=True) if row["date"] in days]
        return _Change(list(staged), old, {BUILT_FROM + source: version for source, version in built_from.items()})

    return _transact(place, contract(name), plan)[0]


@dataclass(frozen=True, slots=True)
class _Change:
    add: list[Staged]
    remove: list[dict[str, Any]]
    transactions: dict[str, int]


def _transact(place: Place, table: Contract, plan: Any) -> tuple[int, set[str]]:
    """Plans on a fresh snapshot and commits, again until no one came between; returns version and paths held."""
    from deltalake.exceptions import CommitFailedError, DeltaError

    for attempt in range(_ATTEMPTS):
        delta = open_table(place, table.name) or _create(place, table)
        held = set(snapshot(delta, table).files["path"])
        change = plan(delta, held)
        if change is None:
            return delta.version(), held
        try:
            _write(delta, table, change)
        except CommitFailedError as error:
            last: DeltaError = error
            time.sleep(min(0.5, 0.01 * 2**attempt))
            continue
        delta.update_incremental()  # a table object keeps the version it was opened at
        return delta.version(), held - {old["path"] for old in change.remove} | {new.path for new in change.add}
    fact = f"{place.path('tables', table.name)}: not committed in {_ATTEMPTS} attempts: {_first_line(last)}"
    raise RefusedError(fact, "try again")


def _write(delta: "DeltaTable", table: Contract, change: _Change) -> None:
    from deltalake import CommitProperties, Transaction
    from deltalake.transaction import AddAction, RemoveAction

    now = int(time.time() * 1000)

    def values(day: date | None) -> dict[str, str | None]:
        return {} if table.partitioned_by is None or day is None else {table.partitioned_by: day.isoformat()}

    actions: list[AddAction | RemoveAction] = [
        AddAction(f.path, f.bytes, values(f.date), now, data_change=True, stats=f.stats) for f in change.add
    ]
    actions += [
        RemoveAction(
            f["path"], data_change=True, deletion_timestamp=now, size=f["bytes"], partition_values=values(f["date"])
        )
        for f in change.remove
    ]
    delta.create_write_transaction(
        actions=actions,
        mode="append",
        schema=delta.schema(),
        partition_by=[table.partitioned_by] if table.partitioned_by else None,
        commit_properties=CommitProperties(
            app_transactions=[Transaction(app_id, version) for app_id, version in change.transactions.items()]
        ),
    )


def _create(place: Place, table: Contract) -> "DeltaTable":
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        return DeltaTable.create(
            place.path("tables", table.name),
            schema=table.arrow_schema,
            mode="error",
            partition_by=[table.partitioned_by] if table.partitioned_by else None,
            name=table.name,
            configuration=_CONFIGURATION,
            storage_options=place.storage_options,
        )
    except DeltaError:
        made_by_another = open_table(place, table.name)
        if made_by_another is None:
            raise
        return made_by_another


def overwrite(place: Place, name: str, df: pl.DataFrame) -> int:
    """Replaces a whole table, columns past the contract's included; returns the version."""
    from deltalake import WriterProperties, write_deltalake

    write_deltalake(
        place.path("tables", contract(name).name),
        df,
        mode="overwrite",
        schema_mode="overwrite",
        name=name,
        configuration=_CONFIGURATION,
        writer_properties=WriterProperties(compression="ZSTD"),
        storage_options=place.storage_options,
    )
    after = open_table(place, name)
    if after is None:
        raise IntegrityError(f"{place.path('tables', name)}: is gone right after it was written")
    return int(after.version())


def removed_paths(place: Place, name: str) -> set[str]:
    """Paths that some earlier version named and the current one does not, as the table's log tells."""
    import json

    found: set[str] = set()
    log = place.path("tables", name, "_delta_log")
    for entry in place.sizes("tables", name, "_delta_log"):
        if not entry.endswith(".json") or not entry.removesuffix(".json").isdigit():
            continue
        for line in place.filesystem.cat_file(f"{log}/{entry}").splitlines():
            action = json.loads(line)
            if "remove" in action:
                found.add(action["remove"]["path"])
    return found
