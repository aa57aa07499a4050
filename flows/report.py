"""Prefect flow: the incident report."""

from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.prefect_parts import key, located


@task(name="write report")
def write(
    archive: str,
    out: str,
    kinds: list[str],
    begin: str | None,
    end: str | None,
    detections: list[str] | None,
    title: str,
) -> list[str]:
    """Hunts and writes the report's files."""
    from archive.store import Archive
    from flows.pipeline.reporting import write_report

    files = write_report(
        Archive.open(archive), Path(out), kinds,
        begin=begin, end=end, detections=detections, title=title, clobber=True,
    )  # fmt: skip
    return [str(f) for f in files]


@flow(name="report", log_prints=True)
def report(
    out: str,
    archive: str | None = None,
    kinds: list[str] | None = None,
    begin: str | None = None,
    end: str | None = None,
    detections: list[str] | None = None,
    title: str = "Incident report",
) -> list[str]:
    """Writes the incident report into a folder and leaves its Markdown as an artifact.

    Args:
        out: folder; files of an earlier report in it are replaced.
        archive: URI of the archive; GATEHOUND_ARCHIVE if it is not given.
        kinds: html, md, csv, jsonl; all by default.
        begin, end: window, ISO 8601.
        detections: ids; all by default.
        title: of the report.

    Returns:
        The files.
    """
    where = located(archive)
    files: list[str] = write(where, out, kinds or ["html", "md", "csv", "jsonl"], begin, end, detections, title)
    for file in files:
        if file.endswith(".md"):
            create_markdown_artifact(key=key("report", where), markdown=Path(file).read_text(), description=title)
    print("\n".join(files))
    return files
