"""The operator's job records: columns by their usual names, and bad rows told apart."""

import csv
import io
import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import registry
from transforms.formats.gateway_jobs import sniff
from transforms.framing import Framer, head_of
from transforms.model import IGNORED, QUARANTINED, Context

SAMPLES = Path(__file__).parents[1] / "samples"
SHARED = Path(__file__).parents[3] / "shared" / "samples"
DOCS = Path(__file__).parents[2] / "docs" / "gateway-jobs.md"
JOB = "gateway_jobs"


def rows_of(text: str) -> list[dict[str, Any]]:
    data = text.encode()
    choice = registry.choose(head_of(data, "jobs"))
    assert not isinstance(choice, str), choice
    assert choice.name == JOB
    ctx = Context("e" * 64, variant=choice.match.variant)
    blocks = list(Framer(io.BytesIO(data), choice.framing).blocks())
    rows = pl.concat([registry.parse(choice, block, ctx) for block in blocks], how="diagonal").sort("record_no")
    assert rows.height == sum(block.height for block in blocks)
    assert rows["disposition"].null_count() == 0
    return rows.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.fixture(scope="module")
def sample() -> list[dict[str, Any]]:
    return rows_of((SAMPLES / "gateway_jobs.csv").read_text())


def test_sample_dispositions(sample: list[dict[str, Any]]) -> None:
    event = (JOB, None)
    # A record without job_id breaks the contract, which is held against it later.
    assert [(row["disposition"], row["reason"]) for row in sample] == [
        (IGNORED, "header"), *[event] * 4,
        (QUARANTINED, "it ends before it begins"),
        (QUARANTINED, "a certificate without its thumbprint or key id"),
        event,
        (QUARANTINED, "gateway_jobs: time not readable"),
        (QUARANTINED, "item_count is not readable"),
        (QUARANTINED, "the record does not have as many fields as the header"),
        event,
    ]  # fmt: skip


def test_rows(sample: list[dict[str, Any]]) -> None:
    check(sample[1], {
        "source": JOB, "job_id": "j-1001", "tenant_id": "acme", "service": "ews", "op_raw": "sync",
        "credential_id": "a1b2c3d4e5f60718293a4b5c6d7e8f9001122334", "credential_type": "cert",
        "principal_id": "svc-sync", "src_ip_raw": "198.51.100.4", "ts": datetime(2024, 3, 3, 8, tzinfo=UTC),
        "ts_end": datetime(2024, 3, 3, 8, 0, 30, tzinfo=UTC), "ts_raw": "2024-03-03T08:00:00Z", "ts_basis": "offset",
        "item_count": 24, "bytes_transferred": 10240, "outcome": "success", "mailbox_id": "alice@tenant-a.example",
    })  # fmt: skip
    check(sample[2], {"service": "ldap", "ts_basis": "offset", "credential_id": "pw:cn=gateway", "item_count": 500})
    check(sample[3], {"ts_basis": "assumed_zone", "op_raw": "journal, pull", "item_count": 1024, "outcome": "failure"})
    check(sample[4], {"service": "graph", "ts_basis": "utc", "credential_type": "key", "outcome": "unknown"})
    check(sample[11], {"service": "other", "credential_type": None, "ts_end": None})
    assert len({row["source_id"] for row in sample if row["disposition"] == JOB}) == 6


def test_the_documented_example() -> None:
    text = DOCS.read_text().split("```csv\n")[1].split("```")[0]
    rows = rows_of(text)
    assert [row["disposition"] for row in rows] == [IGNORED, JOB, JOB]
    check(rows[2], {"service": "pop3", "credential_id": "pw:journal@tenant-a.example", "outcome": "failure"})


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters(delimiter: str, sample: list[dict[str, Any]]) -> None:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows(csv.reader(io.StringIO((SAMPLES / "gateway_jobs.csv").read_text())))
    rows = rows_of("\ufeff" + out.getvalue())
    assert [row["disposition"] for row in rows] == [row["disposition"] for row in sample]
    for row, other in zip(rows, sample, strict=True):
        check(row, {k: v for k, v in other.items() if k not in ("byte_offset", "byte_length")})


def test_json_in_its_shapes() -> None:
    jobs = [
        {
            "jobId": "j1",
            "Tenant-ID": "a",
            "SERVICE": "EWS",
            "startedAt": "2024-03-03T08:00:00Z",
            "bytes": 7,
            "status": "ok",
        },
        {"jobId": "j2", "Tenant-ID": "a", "SERVICE": "EWS", "startedAt": 1709452800, "bytes": None, "status": "no"},
        {"jobId": "j3", "startedAt": None},
    ]
    lines = "\n".join(json.dumps(j) for j in jobs)
    for text in (lines, json.dumps(jobs), json.dumps({"data": jobs}), json.dumps(jobs, indent=1)):
        rows = rows_of(text)
        assert [row["disposition"] for row in rows] == [JOB, JOB, QUARANTINED]
        check(rows[0], {"job_id": "j1", "tenant_id": "a", "service": "ews", "bytes_transferred": 7})
        check(rows[1], {"ts": datetime(2024, 3, 3, 8, tzinfo=UTC), "outcome": "unknown"})


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=20)
QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(TEXT, TEXT, st.integers(0, 10**15), st.datetimes(datetime(2000, 1, 1), datetime(2090, 1, 1)))
def test_round_trip(job: str, kind: str, size: int, start: datetime) -> None:
    out = io.StringIO()
    written = csv.writer(out)
    written.writerow(["Job ID", "Service", "Start", "Bytes", "Job Type", "ignored"])
    written.writerow([job, "imap", start.isoformat() + "Z", size, kind, "a,b"])
    row = rows_of(out.getvalue())[1]
    check(row, {"job_id": job, "op_raw": kind, "bytes_transferred": size, "ts": start.replace(tzinfo=UTC)})


def test_damage_never_raises() -> None:
    text = (SAMPLES / "gateway_jobs.csv").read_text()
    header, *lines = text.splitlines()
    chance = random.Random(5)
    damaged = [line[:at] + "\0" for line in lines for at in range(0, len(line), 3)]
    damaged += [line[:at] + '"' + line[at:] for line in lines for at in range(0, len(line), 9)]
    damaged += [lines[0] + "x" * 100_000, ",".join([lines[0]] * 200)]
    chance.shuffle(damaged)
    assert len(rows_of("\n".join([header, *damaged]))) > len(lines)


def others() -> list[Path]:
    real = [p for p in SHARED.rglob("*") if p.is_file()] if SHARED.is_dir() else []
    return real + [p for p in SAMPLES.iterdir() if p.stem != JOB]


def test_claims_no_other_log() -> None:
    for path in others():
        assert sniff(head_of(path.read_bytes()[:65536], path.name)) is None, path
