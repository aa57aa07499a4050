"""make bench: each format family from text to committed Parquet, beside DuckDB and ClickHouse extracting the same columns from
the same file in the same run, and the peak memory at two sizes.

Each side runs in its own process; wall time, CPU time and peak resident memory are the operating system's. Nothing is asserted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.bench import peers, texts

OURS = "gatehound"


class Run(NamedTuple):
    """One process: wall seconds, CPU seconds, peak MiB, stdout."""

    seconds: float
    cpu: float
    peak: float
    out: str


def measured(command: list[str], limit: float = 1800) -> Run:
    """Runs a process to its end."""
    os.sync()
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while (ended := os.wait4(done.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - began > limit:
                done.kill()
            time.sleep(0.01)
        seconds = time.monotonic() - began
        if os.waitstatus_to_exitcode(ended[1]) != 0:
            raise SystemExit(f"{command[:4]} failed")
        out.seek(0)
        return Run(seconds, ended[2].ru_utime + ended[2].ru_stime, ended[2].ru_maxrss / 1024, out.read())


def ingest(log: Path, archive: str) -> tuple[Run, dict[str, Any]]:
    """gatehound's whole ingest in a new archive."""
    gatehound = str(Path(sys.executable).parent / "gatehound")
    subprocess.run([gatehound, "init", "-a", archive], check=True, capture_output=True)
    run = measured([gatehound, "ingest", "-a", archive, str(log), "--year", "2021", "--tz", "UTC", "-t", "json"])
    return run, json.loads(run.out)["evidence"][0]


def family(name: str, size: int, folder: Path) -> dict[str, Any]:
    """Figures of one family at one size."""
    log, archive = folder / f"{name}.log", folder / f"archive-{name}-{size}"
    records = texts.write(name, log, size * 1_000_000)
    mb = log.stat().st_size / 1e6
    ours, entry = ingest(log, str(archive))
    figures: dict[str, Any] = {
        "family": name, "mb": round(mb), "records": records, "events": sum(entry["events"].values()),
        "format": entry["format"], "quarantined": sum(entry["quarantined"].values()),
        "commit_s": entry["seconds"], "commit_mb_s": round(mb / entry["seconds"], 1),
        "parquet_mb": round(sum(f.stat().st_size for f in archive.rglob("*.parquet")) / 1e6, 1),
        "sides": {OURS: _side(ours, mb)},
    }  # fmt: skip
    for peer, code in peers.RUN.items():
        statement = peers.statement(peer, name, str(log), str(folder / "peer.parquet"))
        figures["sides"][peer] = _side(measured([sys.executable, "-c", code, statement]), mb)
    log.unlink()
    return figures


def _side(run: Run, mb: float) -> dict[str, float]:
    return {
        "seconds": round(run.seconds, 2), "mb_s": round(mb / run.seconds, 1), "cpu_s": round(run.cpu, 1), "peak_mib": round(run.peak),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| family | MB | gatehound, MB/s | until the commit | peak MiB | DuckDB, MB/s | ClickHouse, MB/s | over DuckDB | over ClickHouse |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        ours, duck, click = (row["sides"][side] for side in (OURS, "DuckDB", "ClickHouse"))
        lines.append(
            f"| {row['family']} | {row['mb']} | {ours['mb_s']} | {row['commit_mb_s']} | {ours['peak_mib']:,} | {duck['mb_s']} | "
            f"{click['mb_s']} | {ours['mb_s'] / duck['mb_s']:.2f} | {ours['mb_s'] / click['mb_s']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the benchmark and prints a table or, with --json, the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", choices=list(texts.FAMILIES), action="append", help="default: all")
    parser.add_argument("--mb", type=int, action="append", help="size of the text, MB; default: 100 and 1000")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given.family or texts.FAMILIES:
            for size in given.mb or (100, 1000):
                rows.append(family(name, size, Path(folder)))
                print(f"{name}, {size} MB: {json.dumps(rows[-1]['sides'])}", file=sys.stderr)
    cores = os.cpu_count()
    print(
        json.dumps({"cores": cores, "runs": rows}, indent=2)
        if given.json
        else f"{cores} cores; whole processes, start included\n\n{table(rows)}"
    )


if __name__ == "__main__":
    main()
