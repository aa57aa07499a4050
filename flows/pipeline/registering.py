"""What the register keeps of a piece of evidence, and the sums over a run."""

import getpass
import json
import os
import socket
from datetime import datetime
from typing import Any

from archive.register import head_sha256
from flows.pipeline.reading import EVENT_TABLES, Source


def register_row(source: Source, run_id: str, at: datetime) -> dict[str, Any]:
    """The register's row of a piece."""
    c, identity, ctx = source.counts, source.identity, source.ctx
    refused = source.status == "refused"
    return {
        "evidence_id": source.evidence_id,
        "date": at.date(),
        "path": source.piece.path,
        "member": source.piece.member,
        "container": identity.container,
        "file_sha256": identity.file_sha256,
        "file_bytes": source.piece.file_bytes,
        "content_bytes": identity.content_bytes,
        "head_sha256": head_sha256(identity.head),
        "ends_with_newline": identity.ends_with_newline,
        "file_mtime": source.piece.mtime,
        "format": source.format,
        "format_reason": source.choice.match.reason if source.choice else None,
        "status": source.status,
        "reason": source.reason,
        "grown_from": source.grown_from,
        "resumed_offset": source.resumed_offset,
        "host": source.how.host,
        "tenant_id": source.how.tenant_id,
        **({k: getattr(ctx, k) for k in ("tz", "tz_basis", "year", "year_basis")} if ctx else {}),
        "records": c.records,
        "events": 0 if refused else sum(c.events.values()),
        **{t: 0 if refused else c.events[t] for t in EVENT_TABLES},
        "continuations": c.continuations,
        "ignored": sum(c.ignored.values()),
        "duplicates": c.duplicates,
        "quarantined": sum(c.quarantined.values()),
        "ignored_reasons": json.dumps(dict(sorted(c.ignored.items()))),
        "quarantined_reasons": json.dumps(dict(sorted(c.quarantined.items()))),
        "first_ts": c.first_ts,
        "last_ts": c.last_ts,
        "tool_version": tool_version(),
        "ingested_at": at,
        "ingested_by": _who(),
        "run_id": run_id,
        "validation": None if refused else "validation",
    }


def totals(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums of the counts of all pieces that were read now."""
    read_now = [e for e in entries if e["status"] in ("committed", "grown")]

    def merged(key: str) -> dict[str, int]:
        names = sorted({n for e in read_now for n in e[key]})
        return {n: sum(e[key].get(n, 0) for e in read_now) for n in names}

    statuses = ("committed", "grown", "known", "refused")
    return {
        "files": len(entries),
        **{status: sum(e["status"] == status for e in entries) for status in statuses},
        "bytes": sum(e["bytes"] for e in read_now),
        "records": sum(e["records"] for e in read_now),
        "events": merged("events"),
        "continuations": sum(e["continuations"] for e in read_now),
        "ignored": merged("ignored"),
        "duplicates": sum(e["duplicates"] for e in read_now),
        "quarantined": merged("quarantined"),
        "first_ts": min((e["first_ts"] for e in read_now if e["first_ts"]), default=None),
        "last_ts": max((e["last_ts"] for e in read_now if e["last_ts"]), default=None),
    }


def tool_version() -> str:
    """Version of gatehound."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gatehound")
    except PackageNotFoundError:
        return "0"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
