"""The deployments of prefect.yaml on a real Prefect server: a run that its scheduler makes, a worker does."""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytestmark = pytest.mark.live

ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
BUSY = {500, 502, 503, 504}  # SQLite's "database is locked" under load is one of these
PATIENCE = 45.0  # seconds for a busy server


@dataclass(frozen=True, slots=True)
class Server:
    """A running server with the deployments made and a worker on their pool."""

    api: str
    archive: Path
    programs: Any

    def call(self, path: str, body: Any = None, patience: float = PATIENCE) -> Any:
        """Asks the server; asks again while it is busy or not reached, for so many seconds."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}{path}", data, {"Content-Type": "application/json"})
        end = time.monotonic() + patience
        while True:
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code not in BUSY or time.monotonic() > end:
                    raise
            except OSError:
                if time.monotonic() > end:
                    raise
            time.sleep(0.5)

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call(f"/deployments/name/{name}")
        return found

    def ended(self, run_id: str, seconds: float = 300) -> dict[str, Any]:
        """The run once it has ended; fails if it did not complete."""

        def look() -> dict[str, Any] | None:
            run: dict[str, Any] = self.call(f"/flow_runs/{run_id}")
            return run if run["state_type"] in ENDED else None

        run: dict[str, Any] = self.programs.wait(f"run {run_id}", look, seconds)
        logs = self.call("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
        assert run["state_type"] == "COMPLETED", (
            "\n".join(line["message"] for line in logs)[-4000:] + self.programs.tails()
        )
        return run

    def begun(self, name: str, **parameters: Any) -> str:
        """Orders a run of a deployment; its key lets the server know an order that was sent again."""
        order = {"parameters": parameters, "idempotency_key": str(uuid.uuid4())}
        run: dict[str, Any] = self.call(f"/deployments/{self.deployment(name)['id']}/create_flow_run", order)
        return str(run["id"])

    def at_once(self, name: str, **parameters: Any) -> dict[str, Any]:
        """Runs a deployment now."""
        return self.ended(self.begun(name, **parameters))

    def artifacts(self, run: dict[str, Any]) -> dict[str, Any]:
        """Type to content of what a run left; tables as lists of rows."""
        found = self.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        return {a["type"]: json.loads(a["data"]) if a["type"] == "table" else a["data"] for a in found}


@pytest.fixture(scope="module")
def server(programs: Any, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from archive.store import Archive
    from flows.pipeline.references import load

    home = tmp_path_factory.mktemp("prefect")
    (port,) = programs.free_ports(1)
    archive = home / "archive"
    load(Archive.create(archive), [str(world / "reference")])
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {
        "PREFECT_HOME": str(home / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "DO_NOT_TRACK": "1",
        "GATEHOUND_ARCHIVE": str(archive),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    running = programs.start("server", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)], env)
    found = Server(env["PREFECT_API_URL"], archive, programs)
    programs.wait("Prefect server", lambda: found.call("/health", patience=0), 180, running)
    for name, words in (
        ("pool", ["work-pool", "create", "gatehound", "--type", "process"]),
        ("deploy", ["deploy", "--all"]),
    ):
        done = programs.start(name, [*prefect, *words], env)
        assert done.wait(240) == 0, programs.tails()
    programs.start("worker", [*prefect, "worker", "start", "--pool", "gatehound"], env)
    yield found


@pytest.fixture(scope="module")
def ingested(server: Server, world: Path) -> dict[str, Any]:
    """The run that fills the archive."""
    return server.at_once("ingest/on-demand", paths=[str(world / "logs")], collection=str(world / "collection.csv"))


@pytest.fixture(scope="module")
def hunted(server: Server, ingested: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """A run of the daily hunt that the scheduler made: its deployment gets a second schedule whose time is near."""
    daily = server.deployment("hunt/daily")["id"]
    began = datetime.fromisoformat(truth["from"])
    days = (datetime.now(UTC) - began).days + 1
    due = datetime.now(UTC) + timedelta(seconds=8)
    schedule = {
        "active": True,
        "schedule": {"interval": 86400, "anchor_date": due.isoformat()},
        "parameters": {"days": days},
        "slug": "soon",
    }
    try:
        server.call(f"/deployments/{daily}/schedules", [schedule])
    except urllib.error.HTTPError as error:
        assert error.code == 409  # made already by a call whose answer was lost

    def first() -> dict[str, Any] | None:
        runs = server.call(
            "/flow_runs/filter", {"deployments": {"id": {"any_": [daily]}}, "sort": "EXPECTED_START_TIME_ASC"}
        )
        near = [r for r in runs if abs((_time(r["expected_start_time"]) - due).total_seconds()) < 1]
        return near[0] if near else None

    made = server.programs.wait("the scheduler", first, 120)
    return server.ended(made["id"])


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_ingest_leaves_a_table_of_what_became_of_each_file(
    server: Server, ingested: dict[str, Any], world: Path
) -> None:
    rows = server.artifacts(ingested)["table"]
    assert len(rows) >= sum(1 for f in (world / "logs").rglob("*") if f.is_file())
    assert {row["status"] for row in rows} == {"committed"}
    assert sum(row["events"] for row in rows) > 10_000
    read = " ".join(row["format"] for row in rows)
    assert all(name in read for name in ("postfix", "m365_ual", "exchange_ews")), read


def test_the_schedulers_run_is_carried_out(hunted: dict[str, Any]) -> None:
    assert hunted["auto_scheduled"] is True
    assert hunted["created_by"]["type"] == "SCHEDULE"
    started = _time(hunted["start_time"]) - _time(hunted["expected_start_time"])
    # The server lets a run begin within the second before its time: it compares whole seconds.
    assert timedelta(seconds=-1) < started < timedelta(minutes=5)


def test_its_artifacts_hold_the_planted_case(server: Server, hunted: dict[str, Any], truth: dict[str, Any]) -> None:
    from archive.store import Archive

    left = server.artifacts(hunted)
    cases = left["table"]
    step = truth["steps"][0]
    assert any(step["tenant_id"] in case["tenants"] and step["network"] in case["summary"] for case in cases), cases
    assert [case["rank"] for case in cases] == list(range(1, len(cases) + 1))
    page = left["markdown"]
    assert "## 1. " in page
    assert step["network"] in page
    assert "## What these logs cannot say" in page
    run_id = page.splitlines()[0].removeprefix("# Hunt ")
    findings = Archive.open(server.archive).scan("findings").filter(pl.col("run_id") == run_id).collect()
    shown = {case["case"] for case in cases}
    assert shown <= set(findings["case_id"])
    watched = findings.filter(~pl.col("case_id").is_in(shown))
    assert set(watched["severity"]) <= {"info", "low"}
    assert (watched.height > 0) == ("watched and not shown" in page)


def test_report_is_written_and_shown(
    server: Server, ingested: dict[str, Any], truth: dict[str, Any], tmp_path: Path
) -> None:
    run = server.at_once("report/on-demand", out=str(tmp_path / "report"), title="Live | report")
    page = server.artifacts(run)["markdown"]
    assert "Live" in page
    assert truth["steps"][0]["network"] in page
    assert page == (tmp_path / "report" / "incident.md").read_text()
    assert (tmp_path / "report" / "incident.html").stat().st_size > 10_000


def test_a_wrong_parameter_fails_at_once(server: Server) -> None:
    """What the caller got wrong is not tried again for a minute."""
    run = server.begun("ingest/on-demand", paths=["/nowhere/at-all.log"])

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = server.call(f"/flow_runs/{run}")
        return found if found["state_type"] in ENDED else None

    ended = server.programs.wait("the failing run", look, 120)
    assert ended["state_type"] == "FAILED"
    assert "no such file or folder" in ended["state"]["message"]
    assert ended["run_count"] == 1

    def tasks() -> Any:
        found = server.call("/task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
        return found if found and all(task["state_type"] in ENDED for task in found) else None

    assert [task["run_count"] for task in server.programs.wait("its task", tasks, 60)] == [1]


def test_deploying_again_changes_nothing_and_unknown_deployments_are_unknown(server: Server) -> None:
    names = {d["name"] for d in server.call("/deployments/filter", {})}
    assert names == {"daily", "weekly", "monthly", "on-demand"}
    daily = server.deployment("hunt/daily")
    assert daily["entrypoint"] == "flows.hunt:hunt"
    assert daily["parameters"] == {"days": 30}
    assert "15 4 * * *" in {s["schedule"].get("cron") for s in daily["schedules"]}
    with pytest.raises(urllib.error.HTTPError):
        server.deployment("hunt/none")
