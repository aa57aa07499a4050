"""What only the maker knows: reference tables as an analyst has them, and the truth for the judge."""

import json
from datetime import timedelta
from typing import Any

from flows.world.files import Writer
from flows.world.model import DAY, Net, Tenant
from flows.world.setting import VENDOR
from flows.world.truth import csv_text, utc
from flows.world.wide.habits import sync_dn
from flows.world.wide.places import network
from flows.world.wide.stage import Stage, known_since

_CONTEXTS = (
    "credential_id,principal_pattern,networks,client_fps,operation_classes,schedule,valid_from,valid_to,owner,reason,tenants,detections,"
    "rule_id,finding_id,added_at,added_by,expired_at,expired_by,expired_reason"
)
_CREDENTIALS = (
    "credential_id,kind,subject,issuer,not_before,not_after,owner,product,first_known,compromised_from,"
    "compromised_to,revoked_at,replaced_by"
)
_PRODUCTS = (
    ("onprem", "svc-northgate@{}", "ews", "mailboxes", "Connect for Exchange"),
    ("pop3", "journal@{}", "pop3", "journal", "Journal pull"),
    ("smtp", "gateway-route@{}", "smtp", "route", "Delivery route"),
)


def references(stage: Stage) -> dict[str, str]:
    """Reference tables by file name."""
    return {
        "tenants.csv": csv_text(
            "tenant_id,name,acc,entra_tenant_id,domain,region,tz,kind,onboarded_at",
            [
                [t.tenant_id, t.name, t.acc, t.entra_id, t.domain, t.region, t.tz, "customer", _onboarded(stage, t)]
                for t in stage.tenants
            ],
        ),
        "credentials.csv": csv_text(_CREDENTIALS, _credentials(stage)),
        "bindings.csv": csv_text(
            "credential_id,principal_id,tenant_id,service,scope,key_id,valid_from,valid_to", _bindings(stage)
        ),
        "networks.csv": csv_text("network,owner,kind,region,valid_from,valid_to", _networks(stage)),
        "mailboxes.csv": csv_text(
            "mailbox_id,tenant_id,display_name,department,kind,vip,sensitivity,created_at,mailbox_guid",
            [row for tenant in stage.tenants for row in _mailboxes(stage, tenant)],
        ),
        "contexts.csv": csv_text(_CONTEXTS, _contexts(stage)),
        "rotations.csv": csv_text(
            "tenant_id,service,old_credential_id,new_credential_id,planned_at,reported_done_at,revoke_planned_at",
            [[utc(cell) if isinstance(cell, float) else cell for cell in row] for row in stage.rotations],
        ),
        "asn.csv": csv_text("prefix,asn,organisation,country,kind", _systems(stage)),
    }


def _onboarded(stage: Stage, tenant: Tenant) -> str:
    since = stage.since.get(tenant.tenant_id)
    return utc(since) if since is not None else f"{tenant.onboarded}T00:00:00Z"


def _passwords(stage: Stage) -> list[tuple[Tenant, str, str, str, str]]:
    """Tenant, account, service, scope and product of every password that the vendor holds."""
    found = [
        (tenant, name.format(tenant.domain), protocol, scope, product)
        for tenant in stage.tenants
        for service, name, protocol, scope, product in _PRODUCTS
        if service in tenant.services
    ]
    return found + [
        (t, sync_dn(t), "ldap", "directory", "Directory sync") for t in stage.tenants if "ldap" in t.services
    ]


def _credentials(stage: Stage) -> list[list[object]]:
    since, rows = known_since(stage.cal), list[list[object]]()
    for number, cert in enumerate(stage.vendor.certs):
        if number == 2 and not stage.rotations:
            continue
        begin = since if number < 2 else utc(float(str(stage.rotations[0][4])) - 5 * DAY)
        until = f"{stage.cal.start + timedelta(days=715)}T00:00:00Z"
        stolen, revoked = stage.compromised.get(cert.thumbprint), stage.revoked.get(cert.thumbprint)
        rows.append([
            cert.thumbprint, "cert", cert.name, "CN=Northgate Issuing CA 2", begin, until, "vendor",
            "Connect for Microsoft 365", begin,
            utc(stolen[0]) if stolen else "", utc(stolen[1]) if stolen else "", utc(revoked[1]) if revoked else "",
            revoked[0] if revoked else "",
        ])  # fmt: skip
    for tenant, account, _, _, product in _passwords(stage):
        rows.append(
            [f"pw:{account}", "password", "", "", "", "", "tenant", product, _onboarded(stage, tenant), "", "", "", ""]
        )
    return rows


def _bindings(stage: Stage) -> list[list[object]]:
    rows, vendor = list[list[object]](), stage.vendor
    for tenant in stage.tenants:
        if "m365" not in tenant.services:
            continue
        moved = vendor.moves.get(tenant.tenant_id)
        first, until = vendor.certs[vendor.group[tenant.tenant_id]].thumbprint, utc(moved) if moved else ""
        common = [tenant.sp_id, tenant.tenant_id, "ews", "mailboxes"]
        rows.append([first, *common, tenant.key_id, _onboarded(stage, tenant), until])
        if moved:
            rows.append([vendor.certs[2].thumbprint, *common, vendor.new_keys[tenant.tenant_id], until, ""])
    for tenant, account, protocol, scope, _ in _passwords(stage):
        rows.append([f"pw:{account}", account, tenant.tenant_id, protocol, scope, "", _onboarded(stage, tenant), ""])
    return rows


def _networks(stage: Stage) -> list[list[object]]:
    since = known_since(stage.cal)
    rows: list[list[object]] = [
        [net.cidr, VENDOR, "vendor_egress", region, since, ""]
        for region, nets in stage.vendor.egress.items()
        for net in nets
    ]
    for cidr, kind, region, begin, owner in stage.networks:
        rows.append([cidr, owner or VENDOR, kind, region, utc(float(str(begin))), ""])
    return rows + [[t.office.cidr, t.name, "corporate", t.region, since, ""] for t in stage.tenants]


def _mailboxes(stage: Stage, tenant: Tenant) -> list[list[object]]:
    created, rows = _onboarded(stage, tenant), list[list[object]]()
    for user in tenant.users:
        vip, level = ("true", "high") if user.vip else ("false", "normal")
        rows.append(
            [user.address, tenant.tenant_id, user.name, user.department, "user", vip, level, created, user.mailbox_guid]
        )
    for box, name in stage.hires.get(tenant.tenant_id, []):
        rows.append(
            [
                box,
                tenant.tenant_id,
                name,
                "IT",
                "user",
                "false",
                "normal",
                utc(stage.born[box]),
                tenant.mailbox_guids[box],
            ]
        )
    for box in tenant.shared:
        rows.append(
            [
                box,
                tenant.tenant_id,
                box.split("@")[0].title(),
                "",
                "shared",
                "false",
                "normal",
                created,
                tenant.mailbox_guids[box],
            ]
        )
    if tenant.journal:
        rows.append([tenant.journal, tenant.tenant_id, "Journal", "", "journal", "false", "high", created, ""])
    return rows


def _contexts(stage: Stage) -> list[list[object]]:
    rows = list[list[object]]()
    for rule in stage.contexts:
        found = rule | {name: utc(float(rule[name])) for name in ("valid_from", "valid_to")}
        rows.append([found.get(name, "") for name in _CONTEXTS.split(",")])
    return rows


def _systems(stage: Stage) -> list[list[object]]:
    """Every network that was ever handed out: the attackers' among many that nobody here uses."""
    found: dict[str, Net] = {network(net): net for net in stage.pool.taken}
    return sorted(
        ([cidr, net.asn, net.organisation, net.country, net.kind] for cidr, net in found.items()),
        key=lambda row: str(row[0]),
    )


def truth(stage: Stage, writer: Writer, letters: str) -> dict[str, Any]:
    """The contents of truth.json."""
    steps = [_step(stage, writer, step) for step in stage.steps]
    return {
        "seed": stage.seed,
        "from": utc(stage.cal.t0),
        "to": utc(stage.cal.end),
        "vendor": VENDOR,
        "app_id": stage.vendor.app_id,
        "incident": bool(letters),
        "clocks": stage.clocks,
        "rotation": {
            "old": stage.vendor.certs[1].thumbprint,
            "new": stage.vendor.certs[2].thumbprint,
            "revoked_at": utc(stage.revoked[stage.vendor.certs[1].thumbprint][1]),
            "moved_at": {tenant_id: utc(ts) for tenant_id, ts in stage.vendor.moves.items()},
        },
        "missing": [
            {"tenant_id": gap.tenant_id, "source": gap.source, "from": utc(gap.begin), "to": utc(gap.end)}
            for gap in stage.gaps
        ],
        "campaigns": list(letters),
        "steps": [step for step in steps if step["records"]],
        "unseen": [step for step in steps if not step["records"]],  # in hours that were not collected
        "benign": [item | _counts(stage, writer, item["id"], item) for item in stage.benign],
    }


def _counts(stage: Stage, writer: Writer, label: str, known: dict[str, Any]) -> dict[str, Any]:
    seen = writer.seen.get(label)
    first, last = (seen.first, seen.last) if seen else (known.get("first_seen"), known.get("last_seen"))
    events = {"events": len(seen.lines) if seen else 0, "records": seen.records if seen else 0}
    times = {"first_seen": utc(first) if first else None, "last_seen": utc(last) if last else None}
    return events | times | dict(stage.facts.get(label, {}))


def _step(stage: Stage, writer: Writer, step: dict[str, Any]) -> dict[str, Any]:
    label = step["step"]
    where = sorted(stage.seen.get(label, ()))
    networks = sorted({cidr for cidr, _ in where})
    texts = [cidr.split("::/")[0] + ":" if ":" in cidr else cidr.rsplit(".", 1)[0] + "." for cidr in networks]
    named = {
        "networks": networks,
        "network": networks[0] if networks else None,
        "source_ips": sorted({ip for _, ip in where}),
    }
    items: dict[str, set[int]] = {}
    for read in stage.logs[step["tenant_id"]].reads:
        if read.label == label:
            items.setdefault(read.mailbox, set()).update(read.items)
    counts = {"items_by_mailbox": {box: len(seen) for box, seen in sorted(items.items())}} if items else {}
    found = step | {"grep": step["grep"] | {"texts": texts}}
    people = {"principals": step.get("principals") or [step["principal_id"]]}
    return found | named | people | counts | _counts(stage, writer, label, step)


def truth_text(stage: Stage, writer: Writer, letters: str) -> str:
    """truth.json as text."""
    return json.dumps(truth(stage, writer, letters), indent=1, sort_keys=True) + "\n"
