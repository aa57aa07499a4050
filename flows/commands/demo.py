"""The demo: a small world is written as raw logs, ingested, hunted and reported; the result is held against the truth.

The detections get the logs and the reference tables; only this module reads truth.json, after the hunt.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from archive.store import Archive
from data_contracts.errors import UsageError

Tell = Callable[[str, int], None]
_MARK = ".gatehound-demo"
_FIRST_CASES = 2


def run_demo(
    out: Path, *, seed: int = 7, tenants: int = 12, days: int = 45, clobber: bool = False, tell: Tell | None = None
) -> dict[str, Any]:
    """Runs the main job once over a made-up incident.

    Args:
        out: folder for logs, reference tables, archive and report; must be new, empty or an earlier demo.
        seed, tenants, days: of the world.
        clobber: replace an earlier demo.
        tell: told of progress.

    Returns:
        seconds by stage, the ingest's totals, the hunt as ``hunt -t json`` has it, for each planted step the rank of
        the case that holds it, and under `told` the hunt with what belongs to each finding.

    Raises:
        UsageError: the folder holds something else, or an earlier demo and `clobber` is not set.
    """
    from flows.pipeline.hunting import as_dict, hunt_archive, told
    from flows.pipeline.references import load
    from flows.pipeline.reporting import KINDS, write_report
    from flows.pipeline.running import ingest_paths
    from flows.world import write_world

    _make_room(out, clobber=clobber)
    seconds: dict[str, float] = {}
    began = time.monotonic()

    def lap(name: str) -> None:
        nonlocal began
        now = time.monotonic()
        seconds[name], began = round(now - began, 1), now

    if tell:
        tell("writing the world's logs", 0)
    world = write_world(out, seed=seed, tenants=tenants, days=days)
    lap("write logs")
    where = str(out / "archive")
    archive = Archive.create(where)
    load(archive, [str(out / "reference")])
    if tell:
        tell("reading the logs", 0)
    answer = ingest_paths(where, [str(out / "logs")], collection=str(out / "collection.csv"), tell=tell)
    lap("ingest")
    archive = Archive.open(where)
    if tell:
        tell("hunting, and writing the report", 0)
    result = hunt_archive(archive)
    lap("hunt")
    files = write_report(archive, out / "report", list(KINDS), result=result, title="Gateway credential abuse (demo)")
    lap("report")
    hunt = as_dict(result)
    planted = held_against(hunt, json.loads((out / "truth.json").read_text())["steps"])
    return {
        "folder": str(out),
        "archive": where,
        "report": [str(f) for f in files],
        "seconds": seconds,
        "raw_bytes": world.raw_bytes,
        "totals": answer["totals"],
        "hunt": hunt,
        "planted": planted,
        "told": told(result),
        "found_all": all(p["rank"] is not None and p["rank"] <= _FIRST_CASES for p in planted),
    }


def _make_room(out: Path, *, clobber: bool) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / _MARK).exists():
            raise UsageError(f"{out} is not empty and no earlier demo", "choose another folder with --out")
        if not clobber:
            raise UsageError(f"{out} holds an earlier demo", "give --clobber to replace it")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("A demo of gatehound; it may be deleted.\n")


def held_against(hunt: dict[str, Any], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each planted step the first case that names its tenant, its network and its credential or principal."""
    return [
        {
            **{
                k: step[k]
                for k in ("step", "tenant_id", "network", "credential_id", "first_seen", "last_seen", "events")
            },
            "rank": next((c["rank"] for c in hunt["cases"] if _holds(c["entities"], step)), None),
        }
        for step in steps
    ]


def _holds(entities: dict[str, list[str]], step: dict[str, Any]) -> bool:
    who = step["credential_id"] in entities["credential_ids"] or step["principal_id"] in entities["principal_ids"]
    return who and step["tenant_id"] in entities["tenant_ids"] and step["network"] in entities["source_networks"]
