"""A hunt over an archive, and its record in the table `findings`."""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from archive.store import Archive
from data_contracts.errors import UsageError
from flows.pipeline.deriving import refresh
from flows.pipeline.rule_files import imported
from queries.text import iso

if TYPE_CHECKING:
    from queries.engine import HuntResult


def moment(text: str | None, *, end: bool = False) -> datetime | None:
    """A time as the command line takes it: ISO 8601, UTC where it has no zone. A day as an end is the end of that day.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    given = text.strip()
    try:
        day = date.fromisoformat(given)
    except ValueError:
        try:
            when = datetime.fromisoformat(given)
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
    app_id: str | None = None,
) -> "HuntResult":
    """Runs the detections over a window and records what they found.

    Args:
        archive: the archive.
        begin, end: window as text; by default the last 30 days of data.
        detections: ids; all by default.
        budget: most cases shown for each day of the window.
        record: keep the findings in the table `findings` and in the custody log.
        app_id: name of the piece of work: its findings are kept once, and `archive.committed` knows that it is done.

    Raises:
        UsageError: no such detection, or the window is no window.
    """
    from queries.engine import hunt

    window_from, window_to = moment(begin), moment(end, end=True)
    if window_from and window_to and window_from >= window_to:
        raise UsageError(
            f"the window begins at {begin} and ends at {end}", "give a begin (--from) that is before the end"
        )
    refresh(archive)
    with archive.connect() as con:
        result = hunt(
            con,
            window_from=window_from,
            window_to=window_to,
            detections=detections,
            budget=budget,
            archive_version=archive.versions(),
            imported=imported(archive),
        )
    if record:
        _record(archive, result, app_id)
    return result


def _record(archive: Archive, result: "HuntResult", app_id: str | None) -> None:
    answer, frame = result.to_dict(), result.to_frame()
    silenced = {item.finding.finding_id: [r.rule_id for r in item.rules] for item in result.expected.suppressed}
    if frame.height or app_id is not None:
        archive.append("findings", frame, app_id=app_id or result.run_id)
    archive.custody(
        "hunt",
        {
            "run_id": result.run_id,
            "window": answer["window"],
            "detections": answer["detections_run"],
            "cases": len(result.cases),
            "findings": frame.height,
            "suppressed": silenced,
        },
    )


def as_dict(
    result: "HuntResult",
    *,
    judged: Mapping[str, Mapping[str, Any]] | None = None,
    since: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The hunt as ``hunt -t json`` has it.

    Args:
        result: the hunt.
        judged: by finding what people made of it (`triage.judged`): findings that were judged get the key `triage`.
        since: what has changed since the run before (`since.compare`): becomes the key `since`.
    """
    answer = result.to_dict()
    for entry in (entry for case in answer["cases"] for entry in case["findings"]):
        held = (judged or {}).get(entry["finding_id"])
        if held is not None:
            entry["triage"] = dict(held) | {"at": iso(held["at"])}
    return answer | ({} if since is None else {"since": since})


def told(
    result: "HuntResult",
    *,
    judged: Mapping[str, Mapping[str, Any]] | None = None,
    since: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The same, and of each finding its own title, severity, entities and evidence count."""
    answer = as_dict(result, judged=judged, since=since)
    own = {finding.finding_id: finding for finding in result.findings}
    for case in answer["cases"]:
        for entry in case["findings"]:
            finding = own[entry["finding_id"]]
            entry |= {
                "title": finding.title,
                "severity": finding.severity,
                "tactics": list(finding.tactics),
                "techniques": list(finding.techniques),
                "entities": {key: list(values) for key, values in finding.entities.items()},
            }
            entry["evidence"]["count"] = finding.evidence.count
    return answer | {"run_at": result.run_at, "beyond_budget": sum(not c.shown and not c.watched for c in result.cases)}
