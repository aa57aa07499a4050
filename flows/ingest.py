"""Prefect flow: evidence into the archive."""

from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.prefect_parts import key, located, worth_repeating


@task(name="ingest evidence", retries=2, retry_delay_seconds=30, retry_condition_fn=worth_repeating)
def ingest_evidence(archive: str, paths: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Reads evidence; safe to repeat, since each piece is committed once."""
    from flows.pipeline.running import ingest_paths

    return ingest_paths(archive, paths, **options)


@flow(name="ingest", log_prints=True)
def ingest(
    paths: list[str],
    archive: str | None = None,
    collection: str | None = None,
    tz: str | None = None,
    year: int | None = None,
    tenant: str | None = None,
    dask: str | None = None,
    geoip: str | None = None,
    mapping: str | None = None,
) -> dict[str, Any]:
    """Ingests evidence and leaves a table artifact with what became of each file.

    Args:
        paths: files, folders, patterns or URIs.
        archive: URI of the archive; GATEHOUND_ARCHIVE if it is not given.
        collection: CSV of how each file was collected.
        tz, year, tenant: for records that name none.
        dask: address of a Dask scheduler.
        geoip: folder with databases in MaxMind's format.
        mapping: TOML file that says how to read everything.

    Returns:
        The totals of ``ingest -t json``.
    """
    where = located(archive)
    options = {
        "collection": collection, "tz": tz, "year": year, "tenant": tenant, "dask": dask, "geoip": geoip,
        "mapping": mapping,
    }  # fmt: skip
    answer = ingest_evidence(where, paths, options)
    rows = [
        {
            "file": e["path"], "format": e["format"], "status": e["status"], "records": e["records"],
            "events": sum(e["events"].values()), "quarantined": sum(e["quarantined"].values()), "reason": e["reason"],
        }
        for e in answer["evidence"]
    ]  # fmt: skip
    create_table_artifact(key=key("ingest", where), table=rows, description=f"Evidence read into {where}")
    print(f"{answer['totals']['records']} records of {answer['totals']['files']} files")
    return dict(answer["totals"])
