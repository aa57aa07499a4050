"""Writes the wide world as it was collected, with what collections suffer: gaps, duplicates, damage, wrong clocks."""

import csv
import io
import json
import random
from dataclasses import replace
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from flows.world import emit_exchange, emit_ual
from flows.world.emit_ual import Audit
from flows.world.files import Writer, duplicated, garbled
from flows.world.model import DAY, Calendar, Record, Tenant
from flows.world.truth import csv_text, utc
from flows.world.wide import (
    campaigns_cloud,
    campaigns_hosts,
    harmless,
    harmless_people,
    harmless_systems,
    routine,
    routine_hosts,
    tables,
)
from flows.world.wide.emit_hosts import Host
from flows.world.wide.reads import fold
from flows.world.wide.stage import Job, Stage, build, clock

COLLECTION = "path,tenant_id,host,tz,year"
SPAN = 14 * DAY
GARBLED = 0.001
LETTERS = "ABCDEFG"
_JOBS = (
    "job_id,tenant,service,credential,credential_type,principal,source_address,start,end,items,outcome,job_type,host"
)
_ACTS = (
    campaigns_cloud.stolen_certificate,
    campaigns_cloud.forged_tokens,
    campaigns_cloud.sprayed_password,
    campaigns_hosts.second_reader,
    campaigns_hosts.carried_out,
    campaigns_hosts.directory_recon,
    campaigns_hosts.come_back,
)


def write_wide(
    out: Path, *, seed: int, tenants: int, days: int, start: date, letters: str
) -> tuple[list[Tenant], Writer, dict[str, Any]]:
    """Writes the world below `out`; returns its tenants, the writer and the truth."""
    stage = build(seed, Calendar(start, days), tenants)
    harmless.plan(stage)
    harmless_people.play(stage)
    harmless_systems.play(stage)
    for letter, act in zip(LETTERS, _ACTS, strict=True):
        if letter in letters:
            act(stage)
    routine.play(stage)
    routine_hosts.play(stage)
    writer, collected = Writer(out), list[list[object]]()
    for tenant in stage.tenants:
        _write_tenant(stage, tenant, writer, collected)
    _write_jobs(stage, writer, collected)
    return stage.tenants, writer, _finish(stage, writer, collected, letters)


def _finish(stage: Stage, writer: Writer, collected: list[list[object]], letters: str) -> dict[str, Any]:
    for name, text in tables.references(stage).items():
        writer.write(f"reference/{name}", text, stage.cal.end)
    writer.write("collection.csv", csv_text(COLLECTION, collected), stage.cal.end)
    text = tables.truth_text(stage, writer, letters)
    writer.write("truth.json", text, stage.cal.end)
    found: dict[str, Any] = json.loads(text)
    return found


def _arrived(stage: Stage, tenant: Tenant, source: str, records: list[Record]) -> list[Record]:
    """The records in order, without those of the hours that are missing."""
    gaps = [gap for gap in stage.gaps if (gap.tenant_id, gap.source) == (tenant.tenant_id, source)]
    kept = [record for record in records if not any(gap.begin <= record[0] < gap.end for gap in gaps)]
    stage.facts["N12-collector"]["lost"] += len(records) - len(kept)
    return sorted(kept, key=lambda record: record[0])


def _parts(stage: Stage, records: list[Record]) -> list[tuple[float, list[Record]]]:
    parts = groupby(records, key=lambda record: max(0, int((record[0] - stage.cal.t0) // SPAN)))
    return [(stage.cal.t0 + number * SPAN, list(part)) for number, part in parts]


def _day(ts: float) -> str:
    return datetime.fromtimestamp(ts, tz=UTC).strftime("%Y%m%d")


def _write_tenant(stage: Stage, tenant: Tenant, writer: Writer, collected: list[list[object]]) -> None:
    logs, rng = stage.logs[tenant.tenant_id], stage.rng("noise", tenant.tenant_id)
    if "m365" in tenant.services:
        _write_cloud(stage, tenant, writer, rng)
        collected += [
            [f"*/{tenant.tenant_id}/{name}/*", tenant.tenant_id, "", "UTC", ""] for name in ("entra", "audit", "ual")
        ]
    if logs.requests:
        _write_exchange(stage, tenant, writer, rng)
        collected += [
            [f"*/{tenant.tenant_id}/ex01/{name}/*", tenant.tenant_id, f"ex01.{tenant.domain}", "UTC", ""]
            for name in ("Ews", "HttpProxy")
        ]
    if logs.mail:
        collected += _write_host(stage, tenant, logs.mail, "mail.log", writer, rng)
    if logs.ldap:
        logs.ldap.write()
        collected += _write_host(stage, tenant, logs.ldap, "slapd.log", writer, rng)


def _write_cloud(stage: Stage, tenant: Tenant, writer: Writer, rng: random.Random) -> None:
    """Sign-ins and directory audit as JSON lines, unified audit in the tenant's container; old files compressed."""
    logs, tid, end = stage.logs[tenant.tenant_id], tenant.tenant_id, stage.cal.end
    for folder, records in (("entra", logs.signins), ("audit", logs.directory)):
        name = "signins" if folder == "entra" else "directory"
        for begin, part in _parts(stage, _arrived(stage, tenant, folder, records)):
            gz = ".gz" if begin + SPAN < end else ""
            text = "\n".join(writer.lines(garbled(rng, duplicated(rng, part), GARBLED))) + "\n"
            writer.write(f"logs/{tid}/{folder}/{name}_{_day(begin)}.json{gz}", text, min(begin + SPAN, end))
    audits: list[Audit] = sorted([*logs.audit, *fold(rng, tenant, logs.reads)], key=lambda audit: audit[0])
    suffix = {"jsonl": "jsonl", "array": "json", "csv": "csv"}[tenant.container]
    records = _arrived(stage, tenant, "ual", emit_ual.to_lines(audits, tenant.container))
    for begin, part in _parts(stage, records):
        noisy = duplicated(rng, part)
        if tenant.container != "array":  # one damaged object would take the rest of an array with it
            noisy = garbled(rng, noisy, GARBLED)
        gz = ".gz" if tenant.container == "jsonl" and begin + SPAN < end else ""
        text = emit_ual.wrap(writer.lines(noisy), tenant.container)
        writer.write(f"logs/{tid}/ual/audit_{_day(begin)}.{suffix}{gz}", text, min(begin + SPAN, end))


def _write_exchange(stage: Stage, tenant: Tenant, writer: Writer, rng: random.Random) -> None:
    """The EWS log, and at every second server the front end's log; their clock is the server's."""
    skew = clock(stage, stage.rng("clock", tenant.tenant_id), f"ex01.{tenant.domain}")
    ews, proxy, both = list[Record](), list[Record](), rng.random() < 0.4
    for request, label in stage.logs[tenant.tenant_id].requests:
        back, front = emit_exchange.rows(rng, replace(request, ts=request.ts + skew))
        ews.append((request.ts + skew, back, label))
        if both:
            proxy.append((request.ts + skew, front, label))
    for folder, kind, records in (("Ews", "EWS Logs", ews), ("HttpProxy", "HttpProxy Logs", proxy)):
        for begin, part in _parts(stage, _arrived(stage, tenant, "ex01", records)):
            text = emit_exchange.wrap(writer.lines(garbled(rng, part, GARBLED)), kind, part[0][0])
            writer.write(
                f"logs/{tenant.tenant_id}/ex01/{folder}/{folder}_{_day(begin)}-1.LOG",
                text,
                min(begin + SPAN, stage.cal.end),
            )


def _write_host(
    stage: Stage, tenant: Tenant, host: Host, name: str, writer: Writer, rng: random.Random
) -> list[list[object]]:
    """A host's log, rotated: the newest plain, others numbered backwards. Returns rows of the collection."""
    source, rows = host.short, list[list[object]]()
    end = stage.cal.end
    records = [record for record in _arrived(stage, tenant, source, host.records) if record[0] < end + 900]
    parts = _parts(stage, records)
    for number, (begin, part) in enumerate(parts):
        age = len(parts) - 1 - number
        file = f"{name}.{age}.gz" if age else name
        text = "\n".join(writer.lines(garbled(rng, part, GARBLED))) + "\n"
        writer.write(f"logs/{tenant.tenant_id}/{source}/{file}", text, min(begin + SPAN, end))
        year = datetime.fromtimestamp(part[0][0], tz=UTC).year if host.style == "bsd" else ""
        rows.append([f"*/{tenant.tenant_id}/{source}/{file}", tenant.tenant_id, host.name, tenant.tz, year])
    return rows


def _write_jobs(stage: Stage, writer: Writer, collected: list[list[object]]) -> None:
    """The vendor's job records as CSV; each region's host has its own clock."""
    rng = stage.rng("jobs")
    skews = {region: clock(stage, rng, f"jobs-{region}") for region in stage.vendor.egress}
    records = list[Record]()
    for number, job in enumerate(sorted(stage.jobs, key=lambda j: (j.start, j.tenant.tenant_id)), 1):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="").writerow(_job(job, number, skews[job.tenant.region]))
        records.append((job.start, buffer.getvalue(), None))  # what a step is, customers' logs tell
    for begin, part in _parts(stage, records):
        lines = writer.lines(garbled(rng, duplicated(rng, part), GARBLED))
        name = f"logs/northgate/jobs/jobs_{_day(begin)}.csv"
        writer.write(name, "\n".join([_JOBS, *lines]) + "\n", min(begin + SPAN, stage.cal.end))
    collected.append(["*/northgate/jobs/*", "", "", "UTC", ""])


def _job(job: Job, number: int, skew: float) -> list[str]:
    return [
        f"j-{number:07d}", job.tenant.tenant_id, job.service, "" if job.kind == "password" else job.credential,
        job.kind, job.principal, job.ip, utc(job.start + skew),
        utc(job.end + skew), str(job.items), "success" if job.ok else "failure", job.name, f"jobs-{job.tenant.region}",
    ]  # fmt: skip
