"""make bench: Postfix text to committed Parquet beside DuckDB reading the same file by regular expression, in one run.

Each side runs in its own process; wall time and peak resident memory are the operating system's. Nothing is asserted.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import postfix_text

_DUCKDB = r"""
import duckdb, sys
con = duckdb.connect()
con.execute("set threads=2")
con.execute(f'''
copy (
  select regexp_extract(line, '^([A-Z][a-z]{{2}} [ 0-9]\d \d\d:\d\d:\d\d) (\S+) (postfix/[^\[ :]+)\[(\d+)\]:? (?:([0-9A-F]{{6,}}|NOQUEUE): )?(.*)$',
           ['ts_raw', 'host', 'program', 'pid', 'queue_id', 'message']) as h,
         regexp_extract(line, '(?:client=|connect from |established from )([^\[ ]*)\[([^\]]+)\]', ['src_host', 'src_ip']) as c,
         regexp_extract(line, ': from=<([^>]*)>, size=(\d+), nrcpt=(\d+)', ['mail_from', 'size', 'nrcpt']) as f,
         regexp_extract(line, ': to=<([^>]*)>, (?:orig_to=<([^>]*)>, )?relay=([^,]*), delay=([^,]*), delays=[^,]*, dsn=([^,]*), status=(\w+) \((.*)\)$',
           ['rcpt', 'orig_rcpt', 'relay', 'delay', 'dsn', 'status', 'status_text']) as t,
         regexp_extract(line, 'message-id=(.*)$', 1) as message_id,
         regexp_extract(line, 'sasl_username=(\S+)', 1) as sasl_username,
         regexp_extract(line, ': (TLSv[0-9.]+) with cipher (\S+)', ['tls_version', 'tls_cipher']) as tls
  from read_csv('{sys.argv[1]}', columns={{'line': 'varchar'}}, delim='\x01', quote='', escape='', header=false, auto_detect=false, new_line='\\n')
) to '{sys.argv[2]}' (format parquet, compression zstd)''')
"""


def _measured(command: list[str]) -> tuple[float, float, str]:
    """Wall seconds, peak MiB and stdout of a process."""
    began = time.monotonic()
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = done.stdout.read() if done.stdout else ""
    _, status, usage = os.wait4(done.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"{command[:4]} failed")
    return time.monotonic() - began, usage.ru_maxrss / 1024, out


def main() -> None:
    """Runs the benchmark and prints a table and, with --json, the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=600, help="size of the text, MB")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    gatehound = str(Path(sys.executable).parent / "gatehound")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "mail.log")
        lines = postfix_text.write(log, given.mb * 1_000_000)
        size = log.stat().st_size / 1e6
        archive = str(Path(folder, "archive"))
        subprocess.run([gatehound, "init", "-a", archive], check=True, capture_output=True)
        os.sync()
        ours, our_peak, answer = _measured(
            [gatehound, "ingest", "-a", archive, str(log), "--year", "2021", "--tz", "UTC", "-t", "json"]
        )
        entry = json.loads(answer)["evidence"][0]
        os.sync()
        theirs, their_peak, _ = _measured(
            [sys.executable, "-c", _DUCKDB, str(log), str(Path(folder, "duckdb.parquet"))]
        )
        stored = sum(f.stat().st_size for f in Path(archive).rglob("*.parquet")) / 1e6
        figures = {
            "text_mb": round(size), "lines": lines, "events": sum(entry["events"].values()),
            "gatehound_s": round(ours, 2), "gatehound_mb_s": round(size / ours, 1), "gatehound_ingest_s": entry["seconds"],
            "gatehound_ingest_mb_s": round(size / entry["seconds"], 1), "gatehound_peak_mib": round(our_peak), "parquet_mb": round(stored, 1),
            "duckdb_s": round(theirs, 2), "duckdb_mb_s": round(size / theirs, 1), "duckdb_peak_mib": round(their_peak),
            "ratio": round(theirs / ours, 2), "cores": os.cpu_count(),
        }  # fmt: skip
    if given.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"Postfix text, {figures['text_mb']} MB, {lines:,} lines, {figures['cores']} cores; whole processes, start included\n"
    )
    print("| | seconds | MB/s | peak MiB |\n| --- | ---: | ---: | ---: |")
    print(
        f"| gatehound ingest (hash, parse, contract, GX, commit, derived) | {ours:.1f} | {size / ours:.0f} | {our_peak:.0f} |"
    )
    print(
        f"| of this until the commit, without start and derived tables | {entry['seconds']:.1f} | {size / entry['seconds']:.0f} | |"
    )
    print(f"| DuckDB, regular expressions, to Parquet | {theirs:.1f} | {size / theirs:.0f} | {their_peak:.0f} |")
    print(
        f"\nratio {figures['ratio']} (gatehound's speed over DuckDB's); {figures['events']:,} events, {stored:.0f} MB of Parquet"
    )


if __name__ == "__main__":
    main()
