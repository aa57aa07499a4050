"""A hunt over an archive, and its record in the table `findings`."""

import json
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.pipeline.deriving import refresh

if TYPE_CHECKING:
    from queries.engine import HuntResult


def moment(text: str | None, *, end: bool = False) -> datetime | None:
    """A time as the command line takes it: ISO 8601; UTC where it has no zone. A day alone as an end is the end of that day.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        day = date.fromisoformat(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
        except ValueError as error:
            raise UsageError(f"{text}: no time", "ISO 8601, for example 2021-02-03 or 2021-02-03T04:00:00Z") from error
        return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=int(end))


def hunt_archive(
    archive: Archive,
    *,
    begin: str | None = None,
    end: str | None = None,
    detections: list[str] | None = None,
    budget: int = 10,
    record: bool = True,
) -> "HuntResult":
    """Runs the detections over a window and records what they found.

    Args:
        archive: the archive.
        begin, end: window as text; by default the last 30 days of data.
        detections: ids; all by default.
        budget: most cases shown for each day of the window.
        record: keep the findings in the table `findings` and in the custody log.

    Raises:
        UsageError: no such detection, or the window is no window.
    """
    from queries.engine import hunt

    refresh(archive)
    window_from, window_to = moment(begin), moment(end, end=True)
    if window_from and window_to and window_from >= window_to:
        raise UsageError(f"--from {begin} is not before --to {end}")
    versions = archive.versions()
    result = hunt(
        archive.connect(), window_from=window_from, window_to=window_to, detections=detections, budget=budget, archive_version=versions
    )  # fmt: skip
    if record:
        _record(archive, result)
    return result


def _record(archive: Archive, result: "HuntResult") -> None:
    answer = json.loads(result.to_json())
    frame = result.to_frame()
    if frame.height:
        archive.append("findings", frame, app_id=answer["run_id"])
    archive.custody(
        "hunt",
        {"run_id": answer["run_id"], "window": answer["window"], "cases": len(answer["cases"]), "findings": frame.height},
    )


def as_dict(result: "HuntResult") -> dict[str, Any]:
    """The hunt as ``hunt -t json`` has it."""
    answer: dict[str, Any] = json.loads(result.to_json())
    return answer
