"""Programs that the live tests start on loopback and stop again, and a small world for them to read."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


class Programs:
    """Starts programs in process groups of their own and stops all of them at the end, children included."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.also: list[Path] = []  # logs that the programs write by themselves
        self._running: list[subprocess.Popen[bytes]] = []
        self._taken: list[socket.socket] = []

    @staticmethod
    def free_ports(number: int) -> list[int]:
        """Ports of loopback that nothing listens on."""
        with ExitStack() as held:
            sockets = [held.enter_context(socket.socket()) for _ in range(number)]
            for one in sockets:
                one.bind(("127.0.0.1", 0))
            return [one.getsockname()[1] for one in sockets]

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path = ROOT
    ) -> subprocess.Popen[bytes]:
        """Starts a program; what it says goes to a log file."""
        with (self.logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def wait(
        self, what: str, ready: Callable[[], Any], seconds: float, process: subprocess.Popen[bytes] | None = None
    ) -> Any:
        """Polls until `ready` answers with something true; fails after so many seconds, or when the program ends."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if process is not None and process.poll() is not None:
                pytest.fail(f"{what}: the program ended with {process.returncode}\n{self.tails()}")
            try:
                if found := ready():
                    return found
            except OSError:
                pass
            time.sleep(0.3)
        pytest.fail(f"{what}: not within {seconds:.0f} s\n{self.tails()}")

    def tails(self) -> str:
        """The end of each program's log."""
        logs = sorted(self.logs.glob("*.log")) + [log for log in self.also if log.exists()]
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)

    def stop(self) -> None:
        """Ends the process groups, the last one started first."""
        for process in reversed(self._running):
            for sign, patience in ((signal.SIGTERM, 4), (signal.SIGKILL, 5)):
                try:
                    os.killpg(process.pid, sign)
                    process.wait(patience)
                except ProcessLookupError:
                    process.wait(1)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._running.clear()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    started = Programs(tmp_path_factory.mktemp("programs"))
    try:
        yield started
    finally:
        started.stop()


class Gatehound:
    """The command line in a process of its own, with an environment of its own."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = {**os.environ, **env}

    def __call__(self, *arguments: str | Path, exit_code: int = 0) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "flows.main", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env=self.env, capture_output=True, timeout=600, stdin=subprocess.DEVNULL, check=False
        )
        assert done.returncode == exit_code, f"{arguments}: {done.stderr.decode(errors='replace')[-3000:]}"
        return done

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "-t", "json").stdout)


@pytest.fixture(scope="session")
def gatehound() -> Callable[..., Gatehound]:
    return lambda **env: Gatehound(env)


@dataclass(frozen=True, slots=True)
class Taken:
    """What the command line made of the log of a server that has just run."""

    evidence: dict[str, Any]
    archive: Path

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        """Rows of an event table with these values, in the order of the log, without the columns that are null."""
        from archive.store import Archive

        found = Archive.open(self.archive).scan(table).collect().sort("record_no").to_dicts()
        return [
            {name: value for name, value in row.items() if value is not None}
            for row in found
            if all(row[name] == value for name, value in where.items())
        ]

    def row(self, table: str, **where: Any) -> dict[str, Any]:
        """The only row with these values."""
        found = self.rows(table, **where)
        assert len(found) == 1, f"{table} {where}: {found}"
        return found[0]


@pytest.fixture(scope="session")
def take(gatehound: Callable[..., Gatehound], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Taken]:
    """Takes a log in: recognised by itself, each record accounted for, none damaged, each time in the last minutes."""

    def taken(log: Path, name: str, *more: str, minutes: int = 15) -> Taken:
        archive, say = tmp_path_factory.mktemp(name) / "archive", gatehound()
        say("init", "-a", archive)
        answer = say.json("ingest", "-a", archive, log, *more)
        (evidence,) = answer["evidence"]
        text = log.read_text(errors="replace")
        assert (evidence["format"], evidence["status"], evidence["quarantined"]) == (name, "committed", {}), text
        lines = text.count("\n")
        told = sum(evidence["events"].values()) + sum(evidence["ignored"].values())
        assert told + evidence["continuations"] == evidence["records"] == lines, evidence
        now = datetime.now(UTC)
        for end in ("first_ts", "last_ts"):
            assert now - timedelta(minutes=minutes) < datetime.fromisoformat(evidence[end]) < now, evidence
        return Taken(evidence, archive)

    return taken


@pytest.fixture(scope="module")
def jail(programs: Programs) -> Iterator[Callable[..., Any]]:
    """Makes root folders of packages (tests.live.servers.Jail), and ends and removes them."""
    from tests.live.servers import Jail

    made: list[Jail] = []

    def make(*packages: str, without: Sequence[str] = ()) -> Jail:
        made.append(Jail(programs, *packages, without=without))
        return made[-1]

    try:
        yield make
    finally:
        for one in made:
            one.close()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small world that ends a few days ago and begins on a Monday, so that its weekends lie where they always do."""
    from flows.world import write_world

    out = tmp_path_factory.mktemp("world")
    start = date.today() - timedelta(days=31)
    write_world(out, seed=3, tenants=6, days=30, start=start - timedelta(days=start.weekday()))
    return out


@pytest.fixture(scope="session")
def truth(world: Path) -> dict[str, Any]:
    """What was planted in the world: steps with tenant, network and first_seen."""
    found: dict[str, Any] = json.loads((world / "truth.json").read_text())
    return found
