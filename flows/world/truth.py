"""What only the maker of the world knows: reference tables for the analyst, and truth.json for the judge."""

import csv
import io
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from flows.world.files import Writer
from flows.world.model import Tenant
from flows.world.model import iso as iso_time
from flows.world.setting import VENDOR, Setting

Rows = Sequence[Sequence[object]]


def utc(ts: float) -> str:
    """UTC with Z, to the second."""
    return iso_time(ts) + "Z"


def csv_text(header: str, rows: Rows) -> str:
    """CSV with this header (names separated by commas)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    return buffer.getvalue()


def references(setting: Setting) -> dict[str, str]:
    """Reference tables by file name, as the analyst of such a case would be given them."""
    credentials, bindings = _credentials(setting)
    return {
        "tenants.csv": csv_text(
            "tenant_id,name,acc,entra_tenant_id,domain,region,tz,kind,onboarded_at",
            [(t.tenant_id, t.name, t.acc, t.entra_id, t.domain, t.region, t.tz, "customer", f"{t.onboarded}T00:00:00Z")
             for t in setting.tenants],
        ),
        "credentials.csv": csv_text(
            "credential_id,kind,subject,issuer,not_before,not_after,owner,product,first_known,compromised_from,"
            "compromised_to,revoked_at,replaced_by",
            credentials,
        ),
        "bindings.csv": csv_text(
            "credential_id,principal_id,tenant_id,service,scope,key_id,valid_from,valid_to", bindings
        ),
        "networks.csv": csv_text("network,owner,kind,region,valid_from,valid_to", _networks(setting)),
        "mailboxes.csv": csv_text(
            "mailbox_id,tenant_id,display_name,department,kind,vip,sensitivity,created_at,mailbox_guid",
            [row for tenant in setting.tenants for row in _mailboxes(setting, tenant)],
        ),
        "asn.csv": csv_text("prefix,asn,organisation,country,kind", _systems(setting)),
    }  # fmt: skip


def _credentials(setting: Setting) -> tuple[list[list[object]], list[list[object]]]:
    known = setting.cal.start - timedelta(days=380)
    since, until = f"{known}T00:00:00Z", f"{known + timedelta(days=1095)}T00:00:00Z"
    thumbprint = setting.thumbprint.lower()
    none = [""] * 4
    credentials: list[list[object]] = [
        [thumbprint, "cert", "CN=connect.northgate.example", "CN=Northgate Issuing CA 2", since, until, "vendor",
         "Connect for Microsoft 365", since, *none]
    ]  # fmt: skip
    bindings = list[list[object]]()
    for tenant in setting.tenants:
        begin = f"{tenant.onboarded}T00:00:00Z"
        if "m365" in tenant.services:
            bindings.append([thumbprint, tenant.sp_id, tenant.tenant_id, "ews", "mailboxes", tenant.key_id, begin, ""])
        for service, name, scope, product in (
            ("onprem", "svc-northgate", "mailboxes", "Connect for Exchange"),
            ("pop3", "journal", "journal", "Journal pull"),
            ("smtp", "gateway-route", "route", "Delivery route"),
        ):
            if service in tenant.services:
                principal = f"{name}@{tenant.domain}"
                credentials.append([f"pw:{principal}", "password", "", "", "", "", "tenant", product, begin, *none])
                protocol = "ews" if service == "onprem" else service
                bindings.append([f"pw:{principal}", principal, tenant.tenant_id, protocol, scope, "", begin, ""])
    return credentials, bindings


def _networks(setting: Setting) -> list[list[object]]:
    since = f"{setting.cal.start - timedelta(days=380)}T00:00:00Z"
    rows: list[list[object]] = [
        [net.cidr, VENDOR, "vendor_egress", region, since, ""]
        for region, nets in setting.egress.items()
        for net in nets
    ]
    new = setting.harmless
    rows.append([new.egress.cidr, VENDOR, "vendor_egress", new.egress_region, utc(new.egress_from), ""])
    return rows + [[t.office.cidr, t.name, "corporate", t.region, since, ""] for t in setting.tenants]


def _mailboxes(setting: Setting, tenant: Tenant) -> list[list[object]]:
    created = f"{tenant.onboarded}T00:00:00Z"
    rows: list[list[object]] = []
    people = [(user, created) for user in tenant.users]
    firm = setting.harmless.msp.get(tenant.tenant_id)
    if firm:
        people.append((firm, utc(setting.harmless.msp_from - 3600)))
    for user, since in people:
        vip = "true" if user.vip else "false"
        level = "high" if user.vip else "normal"
        rows.append(
            [user.address, tenant.tenant_id, user.name, user.department, "user", vip, level, since, user.mailbox_guid]
        )
    for box in tenant.shared:
        title, mailbox_guid = box.split("@")[0].title(), tenant.mailbox_guids[box]
        row: list[object] = [box, tenant.tenant_id, title, "", "shared", "false", "normal", created, mailbox_guid]
        rows.append(row)
    if tenant.journal:
        rows.append([tenant.journal, tenant.tenant_id, "Journal", "", "journal", "false", "high", created, ""])
    return rows


def _systems(setting: Setting) -> list[list[object]]:
    nets = {net.cidr: net for nets in setting.egress.values() for net in nets}
    used = [setting.backup_net, setting.harmless.egress, setting.harmless.msp_net, setting.harmless.traveller[2]]
    if setting.attack:
        used += [setting.attack.net, setting.attack.journal_net]
    for net in (*used, *setting.roaming, *setting.decoys):
        nets[net.cidr] = net
    for tenant in setting.tenants:
        nets |= {net.cidr: net for net in (tenant.office, *(user.home for user in tenant.users))}
    rows: list[list[object]] = [[net.cidr, net.asn, net.organisation, net.country, net.kind] for net in nets.values()]
    return sorted(rows, key=lambda row: str(row[0]))


def truth(setting: Setting, writer: Writer) -> dict[str, Any]:
    """The contents of truth.json."""
    return {
        "seed": setting.seed,
        "from": utc(setting.cal.t0),
        "to": utc(setting.cal.end),
        "vendor": VENDOR,
        "app_id": setting.app_id,
        "incident": setting.attack is not None,
        "steps": [step | _counts(setting, writer, str(step["step"])) for step in _steps(setting)],
        "benign": [item | _counts(setting, writer, str(item["id"])) for item in _benign(setting)],
    }


def _counts(setting: Setting, writer: Writer, label: str) -> dict[str, Any]:
    seen = writer.seen.get(label)
    if seen is None:
        return {"events": 0, "records": 0, "first_seen": None, "last_seen": None}
    times = {"first_seen": utc(seen.first), "last_seen": utc(seen.last)}
    return {"events": len(seen.lines), "records": seen.records} | times | setting.facts.get(label, {})


def _steps(setting: Setting) -> list[dict[str, Any]]:
    attack = setting.attack
    if attack is None:
        return []
    thumbprint, steps = setting.thumbprint.lower(), list[dict[str, Any]]()
    ips = sorted(attack.net.host(number) for number in attack.hosts)
    for tenant in attack.victims:
        common = {"campaign": "A", "tenant_id": tenant.tenant_id, "credential_id": thumbprint, "app_id": setting.app_id,
                  "principal_id": tenant.sp_id, "network": attack.net.cidr, "networks": [attack.net.cidr],
                  "source_ips": ips}  # fmt: skip
        tid = tenant.tenant_id
        steps.append({
            "step": f"A1-signin-{tid}", **common, "mailboxes": [], "detections": ["T01", "T02", "T03", "L01"],
            "grep": {"paths": f"logs/{tid}/entra/*", "text": f'"callerIpAddress":"{attack.net.prefix}'},
        })  # fmt: skip
        extra = ["M01"] if tenant is attack.fast else ["M02"]
        steps.append({
            "step": f"A2-read-{tid}", **common, "mailboxes": sorted(attack.boxes[tid]),
            "detections": ["T01", "T03", "L01", *extra],
            "grep": {"paths": f"logs/{tid}/ual/*", "text": attack.net.prefix},
        })  # fmt: skip
    tenant, ip = attack.journal, attack.journal_net.host(attack.journal_host)
    steps.append({
        "step": f"D1-journal-{tenant.tenant_id}", "campaign": "D", "tenant_id": tenant.tenant_id,
        "credential_id": f"pw:{tenant.journal}", "app_id": None, "principal_id": tenant.journal,
        "network": attack.journal_net.cidr, "networks": [attack.journal_net.cidr],
        "source_ips": [ip], "mailboxes": [tenant.journal],
        "detections": ["T01", "T02", "X01"], "grep": {"paths": f"logs/{tenant.tenant_id}/mx1/*", "text": ip + ","},
    })  # fmt: skip
    return steps


def _benign(setting: Setting) -> list[dict[str, Any]]:
    new = setting.harmless
    region = [t.tenant_id for t in setting.tenants if t.region == new.egress_region]
    upgraded = [t.tenant_id for t in setting.tenants if t.services & {"m365", "onprem"}]
    away, user, away_net, *_ = new.traveller
    stuck, gone = new.restart[0].tenant_id, new.outage[0].tenant_id
    egress = "the vendor adds a published egress network in one region"
    firm = "a service firm's accounts, new in several tenants"
    backup, back = "a backup reads every mailbox every night", setting.backup_net.cidr
    items: tuple[tuple[str, str, list[str], str | None, list[str]], ...] = (
        ("N1-egress", egress, region, new.egress.cidr, ["T01", "T02", "T03", "L01"]),
        ("N2-traveller", f"{user.address} travels", [away.tenant_id], away_net.cidr, ["T01", "T07"]),
        ("N3-msp", firm, list(new.msp), new.msp_net.cidr, ["T03", "L01", "L07"]),
        ("N4-upgrade", "the vendor's client is upgraded in all tenants", upgraded, None, ["T04"]),
        ("N5-restart", "a poller is restarted and fetches its backlog twice", [stuck], None, ["X01", "X02"]),
        ("N6-backup", backup, sorted(setting.backup_ids), back, ["M01", "X03"]),
        ("N7-outage", "a poller is away for hours, then fetches its backlog", [gone], None, ["X01"]),
    )
    return [
        {
            "id": name,
            "what": what,
            "tenant_ids": tenants,
            "network": net,
            "networks": [net] if net else [],
            "near_miss_of": near,
        }
        for name, what, tenants, net, near in items
    ]


def truth_text(setting: Setting, writer: Writer) -> str:
    """truth.json as text."""
    return json.dumps(truth(setting, writer), indent=1, sort_keys=True) + "\n"
