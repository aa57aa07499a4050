"""Writes a world: raw logs in native formats, reference tables, how it was collected, and what is true."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from flows.world import emit_exchange, emit_ual, journal, m365, onprem, truth
from flows.world.files import Writer, duplicated, garbled
from flows.world.model import DAY, Calendar, Record, Tenant
from flows.world.setting import Setting, build
from flows.world.wide.writing import LETTERS, write_wide

COLLECTION = "path,tenant_id,host,tz,year"
WEEK = 7 * DAY


@dataclass(frozen=True, slots=True)
class World:
    """What was written where."""

    out: Path
    seed: int
    start: date
    days: int
    tenants: tuple[Tenant, ...]
    files: tuple[Path, ...]  # log files, in the order of writing
    raw_bytes: int  # before compression
    records: int  # log records, headers not counted
    truth: dict[str, Any]  # as in truth.json


def write_world(
    out: Path,
    *,
    seed: int = 7,
    tenants: int = 14,
    days: int = 45,
    start: date = date(2021, 1, 4),
    incident: bool = True,
    campaigns: Iterable[str] | None = None,
) -> World:
    """Writes a world below `out`: logs/, reference/, collection.csv and truth.json.

    Args:
        out: folder to write to.
        seed, tenants, days, start: the same give the same bytes. `days` from 20 (the plot is scaled to them), `tenants`
            from 6 (three on Microsoft 365, two with a journal, one with Exchange), with `campaigns` from 10.
        incident: False leaves out the attack.
        campaigns: letters from A to G of the attacks in the wide world (`flows.world.wide`),
        none (or H) for a null world. None:
            the demo's plot.

    Raises:
        ValueError: a world cannot be that small, or there is no such campaign.
    """
    if tenants < 6 or days < 20:
        raise ValueError("a world needs at least 6 tenants and 20 days")
    if campaigns is not None:
        return _wide(out, seed, tenants, days, start, "".join(sorted(set(campaigns) - {"H"})) if incident else "")
    setting = build(seed, Calendar(start, days), tenants, incident=incident)
    writer, collected = Writer(out), list[list[object]]()
    for tenant in setting.tenants:
        if "m365" in tenant.services:
            _write_cloud(setting, tenant, writer, collected)
        if "onprem" in tenant.services:
            _write_exchange(setting, tenant, writer, collected)
        if tenant.journal:
            _write_mail(setting, tenant, writer, collected)
    logs = tuple(writer.files)
    raw_bytes = writer.raw_bytes
    for name, text in truth.references(setting).items():
        writer.write(f"reference/{name}", text, setting.cal.end)
    writer.write("collection.csv", truth.csv_text(COLLECTION, collected), setting.cal.end)
    text = truth.truth_text(setting, writer)
    writer.write("truth.json", text, setting.cal.end)
    return World(out, seed, start, days, tuple(setting.tenants), logs, raw_bytes, writer.records, json.loads(text))


def _wide(out: Path, seed: int, tenants: int, days: int, start: date, letters: str) -> World:
    if tenants < 10 or not set(letters) <= set(LETTERS):
        raise ValueError(f"a world with campaigns (letters of {LETTERS}) needs at least 10 tenants")
    members, writer, found = write_wide(out, seed=seed, tenants=tenants, days=days, start=start, letters=letters)
    logs = tuple(path for path in writer.files if path.is_relative_to(out / "logs"))
    raw = writer.log_bytes
    return World(out, seed, start, days, tuple(members), logs, raw, writer.records, found)


def _by(records: list[Record], begin: float, length: float) -> list[tuple[float, list[Record]]]:
    """Records in order of time, cut into spans of this length (seconds) from `begin`."""
    ordered = sorted(records, key=lambda record: record[0])
    parts = groupby(ordered, key=lambda record: max(0, int((record[0] - begin) // length)))
    return [(begin + number * length, list(part)) for number, part in parts]


def _day(ts: float) -> str:
    return datetime.fromtimestamp(ts, tz=UTC).strftime("%Y%m%d")


def _write_cloud(setting: Setting, tenant: Tenant, writer: Writer, collected: list[list[object]]) -> None:
    """Sign-ins weekly as JSON lines; the audit by fortnight in the tenant's container. Older files are compressed."""
    cal, rng, tid = setting.cal, setting.rng("noise", tenant.tenant_id), tenant.tenant_id
    for begin, part in _by(m365.signins(setting, tenant), cal.t0, WEEK):
        gz = ".gz" if begin + WEEK < cal.end else ""
        text = "\n".join(writer.lines(garbled(rng, part))) + "\n"
        writer.write(f"logs/{tid}/entra/signins_{_day(begin)}.json{gz}", text, min(begin + WEEK, cal.end))
    suffix = {"jsonl": "jsonl", "array": "json", "csv": "csv"}[tenant.container]
    records = emit_ual.to_lines(m365.audits(setting, tenant), tenant.container)
    for begin, part in _by(records, cal.t0, 2 * WEEK):
        noisy = duplicated(rng, part)
        if tenant.container != "array":  # one damaged object would take the rest of an array with it
            noisy = garbled(rng, noisy)
        gz = ".gz" if tenant.container == "jsonl" and begin + 2 * WEEK < cal.end else ""
        text = emit_ual.wrap(writer.lines(noisy), tenant.container)
        writer.write(f"logs/{tid}/ual/audit_{_day(begin)}.{suffix}{gz}", text, min(begin + 2 * WEEK, cal.end))
    collected.append([f"*/{tid}/entra/*", tid, "", "UTC", ""])
    collected.append([f"*/{tid}/ual/*", tid, "", "UTC", ""])


def _write_exchange(setting: Setting, tenant: Tenant, writer: Writer, collected: list[list[object]]) -> None:
    """Both logs by day; one of three tenants has them by hour for the last half day, one collected them as a zip."""
    cal, rng, tid = setting.cal, setting.rng("noise", tenant.tenant_id), tenant.tenant_id
    number = setting.of("onprem").index(tenant)
    for log, kind, records in zip(
        ("Ews", "HttpProxy"), ("EWS Logs", "HttpProxy Logs"), onprem.exchange_rows(setting, tenant), strict=True
    ):
        members = list[tuple[str, str]]()
        hourly_from = cal.end - (DAY // 2 if number == 2 else 0)
        old, new = [r for r in records if r[0] < hourly_from], [r for r in records if r[0] >= hourly_from]
        for begin, part in _by(old, cal.t0, DAY) + _by(new, cal.t0, 3600):
            hour = datetime.fromtimestamp(begin, tz=UTC).strftime("%Y%m%d%H")
            name = f"Ews_{hour}-1.LOG" if log == "Ews" else f"HttpProxy_{hour}-1.LOG"
            text = emit_exchange.wrap(writer.lines(garbled(rng, part)), kind, part[0][0])
            members.append((f"Logging/{'Ews' if log == 'Ews' else 'HttpProxy/Ews'}/{name}", text))
        if number == 1:
            writer.write_zip(f"logs/{tid}/ex01/{log}.zip", members, cal.end)
        else:
            for name, text in members:
                writer.write(f"logs/{tid}/ex01/{name}", text, cal.end)
    folders = ("",) if number == 1 else ("Logging/Ews/", "Logging/HttpProxy/Ews/")
    collected += [[f"*/{tid}/ex01/{folder}*", tid, f"ex01.{tenant.domain}", "UTC", ""] for folder in folders]


def _write_mail(setting: Setting, tenant: Tenant, writer: Writer, collected: list[list[object]]) -> None:
    """mail.log, rotated weekly: the newest plain, the others numbered backwards and compressed."""
    cal, rng, tid = setting.cal, setting.rng("noise", tenant.tenant_id), tenant.tenant_id
    host = journal.mail_host(setting, tenant)
    records = [record for record in host.records if record[0] < cal.end + 600]
    weeks = _by(records, cal.t0 + 0.27 * DAY - WEEK, WEEK)
    for number, (begin, part) in enumerate(weeks):
        age = len(weeks) - 1 - number
        name = f"mail.log.{age}.gz" if age else "mail.log"
        text = "\n".join(writer.lines(garbled(rng, part))) + "\n"
        writer.write(f"logs/{tid}/mx1/{name}", text, min(begin + WEEK, cal.end))
        bsd = tenant.mail_style == "bsd"
        year = datetime.fromtimestamp(part[0][0], tz=UTC).year
        collected.append([f"*/{tid}/mx1/{name}", tid, host.name, tenant.tz, year if bsd else ""])
