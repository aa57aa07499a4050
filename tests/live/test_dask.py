"""Ingest on a real Dask cluster of two worker processes gives what one process gives."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SAMPLES = Path(__file__).parents[1] / "samples"


def gatehound(*words: object) -> dict[str, Any]:
    command = [str(Path(sys.executable).parent / "gatehound"), *map(str, words), "-t", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_two_workers_give_what_one_process_gives(tmp_path: Path) -> None:
    from distributed import LocalCluster

    totals = []
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster:
        for name, more in (("alone", ()), ("dask", ("--dask", cluster.scheduler_address))):
            place = tmp_path / name
            gatehound("init", "-a", place)
            answer = gatehound("ingest", "-a", place, SAMPLES, "--year", 2021, "--tz", "UTC", *more)
            totals.append({k: answer["totals"][k] for k in ("files", "committed", "records", "ignored", "quarantined")})
            assert gatehound("verify", "-a", place)["ok"]
    assert totals[0] == totals[1]
    assert totals[0]["committed"] == len(list(SAMPLES.iterdir()))
