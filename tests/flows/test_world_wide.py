"""The wide world: campaigns can be chosen, harmless events are always there, and the truth fits the raw logs."""

import csv
import gzip
import hashlib
import io
import ipaddress
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import data_contracts
from flows.world import World, write_world
from flows.world.model import DAY, Calendar, Pool
from flows.world.wide import places
from flows.world.wide.reads import LIMIT, Read, fold
from flows.world.wide.stage import build
from transforms import registry
from transforms.framing import HEAD_BYTES, Framer, head_of
from transforms.model import Context

LETTERS = "ABCDEFG"


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> World:
    """All campaigns."""
    return write_world(tmp_path_factory.mktemp("full"), seed=5, tenants=12, days=30, campaigns=LETTERS)


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same world without an attack."""
    return write_world(tmp_path_factory.mktemp("null"), seed=5, tenants=12, days=30, campaigns="")


def lines(out: Path, pattern: str = "logs/**/*") -> Iterator[tuple[Path, str]]:
    for path in sorted(out.glob(pattern)):
        if path.is_file():
            data = path.read_bytes()
            text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
            yield from ((path, line) for line in text.split("\n"))


def digest(out: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(out)).encode() + path.read_bytes())
    return found.hexdigest()


def table(world: World, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((world.out / "reference" / f"{name}.csv").read_text())))


def within(step: dict[str, Any], line: str) -> bool:
    return any(text in line for text in step["grep"]["texts"])


def test_same_arguments_same_bytes(full: World, tmp_path: Path) -> None:
    write_world(tmp_path, seed=5, tenants=12, days=30, campaigns=iter("GFEDCBA"))
    assert digest(tmp_path) == digest(full.out)


def test_campaigns_are_chosen_by_letter(tmp_path: Path) -> None:
    for letters in ("BD", ("E",)):
        world = write_world(tmp_path / "".join(letters), seed=2, tenants=10, days=20, campaigns=letters)
        assert {step["campaign"] for step in world.truth["steps"]} == set(letters)
        assert world.truth["campaigns"] == list(letters)
        assert all(step["records"] for step in world.truth["steps"])
    calm = write_world(tmp_path / "calm", seed=2, tenants=10, days=20, campaigns="ABC", incident=False)
    assert (calm.truth["steps"], calm.truth["incident"]) == ([], False)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ABCDEFG"):
        write_world(tmp_path, tenants=12, campaigns="AZ")
    with pytest.raises(ValueError, match="at least 10 tenants"):
        write_world(tmp_path, tenants=8, campaigns="A")


def test_every_step_stands_in_the_logs_from_its_networks_only(full: World) -> None:
    steps = full.truth["steps"]
    assert {step["campaign"] for step in steps} == set(LETTERS)
    for step in steps:
        assert step["events"] and step["records"] >= step["events"], step["step"]
        assert step["first_seen"] <= step["last_seen"] < full.truth["to"]
        assert step["first_seen"] >= full.truth["from"]
        assert step["network"] in step["networks"]
        for ip in step["source_ips"]:
            assert any(ipaddress.ip_address(ip) in ipaddress.ip_network(net) for net in step["networks"]), step["step"]
        hits = [line for _, line in lines(full.out, step["grep"]["paths"]) if within(step, line)]
        assert hits, step["step"]


def test_times_of_the_truth_are_those_of_the_records(full: World) -> None:
    for step in full.truth["steps"]:
        if not step["grep"]["paths"].endswith(("/entra/*", "/ual/*")) or not step["network"].startswith(("198", "100")):
            continue
        name = r'"time":"([0-9T:-]+)' if "/entra/" in step["grep"]["paths"] else r'CreationTime""?:""?([0-9T:-]+)'
        whole = step["grep"]["paths"].rsplit("/", 1)[0]
        stamps = [
            found[1] + "Z"
            for _, line in lines(full.out, f"{whole}/*")
            if any(f'"{ip}' in line or f":{ip}" in line or f"[{ip}" in line for ip in step["source_ips"])
            and (found := re.search(name, line))
        ]
        assert step["first_seen"] in stamps, step["step"]
        assert step["last_seen"] in stamps, step["step"]


def test_a_null_world_differs_by_the_attack_only(full: World, null: World) -> None:
    assert null.truth["steps"] == []
    ids = [item["id"] for item in full.truth["benign"]]
    assert [item["id"] for item in null.truth["benign"]] == ids
    assert len(ids) == len(set(ids)) == 25
    for item, other in zip(full.truth["benign"], null.truth["benign"], strict=True):
        assert item["records"] or item["id"] == "N12-collector"
        assert abs(item["records"] - other["records"]) <= 12, item["id"]  # duplicates and damage fall elsewhere
        assert item["near_miss_of"] and item["tenant_ids"] and item["first_seen"] <= item["last_seen"]
    planted = sum(step["records"] for step in full.truth["steps"])
    assert abs(full.records - planted - null.records) < 0.01 * null.records
    tables = {p.name: p.read_bytes() for p in (full.out / "reference").iterdir()}
    calm = {p.name: p.read_bytes() for p in (null.out / "reference").iterdir()}
    assert {name for name in tables if tables[name] != calm[name]} <= {"credentials.csv", "asn.csv"}


def test_planted_networks_come_from_the_pool_of_harmless_ones(full: World) -> None:
    announced = {row["prefix"]: row for row in table(full, "asn")}
    strangers = {net for step in full.truth["steps"] for net in step["networks"]}
    used = {net for item in full.truth["benign"] for net in item["networks"]}
    assert strangers <= set(announced) and used <= set(announced)
    assert len(announced) > 3 * len(strangers)
    benign_systems = {row["asn"] for net, row in announced.items() if net not in strangers}
    assert {announced[net]["asn"] for net in strangers} <= benign_systems
    declared = {row["network"] for row in table(full, "networks")}
    for step in full.truth["steps"]:
        inside = "T02" not in step["detections"] and step["campaign"] in "AD"
        assert inside == bool(set(step["networks"]) & declared), step["step"]
    ranges = [
        ipaddress.ip_network(text)
        for text in (
            "198.18.0.0/15",
            "100.64.0.0/16",
            "192.0.2.0/24",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "2001:db8::/32",
        )
    ]
    for net in announced:
        found = ipaddress.ip_network(net)
        assert any(found.version == r.version and found.subnet_of(r) for r in ranges), net  # type: ignore[arg-type]


def test_attackers_and_novelties_are_drawn_by_the_same_functions() -> None:
    pool, rng = Pool(random.Random(1)), random.Random(2)
    drawn = [places.stranger(rng, pool) for _ in range(60)]
    assert {net.kind for place in drawn for net in place.nets} == {"hosting", "cloud", "isp"}
    assert {len(place.nets) > 1 for place in drawn} == {True, False}
    sites = [place for place in drawn if ":" in place.nets[0].cidr]
    assert sites
    for place in sites:
        addresses = {place.at(rng)[0] for _ in range(9)}
        assert len(addresses) > 5
        (net,) = place.networks
        assert net.endswith("/48") and all(ipaddress.ip_address(ip) in ipaddress.ip_network(net) for ip in addresses)


def test_structure_differs_from_seed_to_seed() -> None:
    seen = Counter[str]()
    for seed in range(6):
        stage = build(seed, Calendar(date(2021, 1, 4), 30), 12)
        seen[",".join(sorted(t.tenant_id for t in stage.tenants if t.journal))] += 1
        assert sum("m365" in t.services for t in stage.tenants) >= 6
    assert len(seen) > 2


def test_reference_tables_fit_their_contracts(full: World) -> None:
    for path in (full.out / "reference").glob("*.csv"):
        rows = table(full, path.stem)
        assert rows, path.stem
        assert list(rows[0]) == [column.name for column in data_contracts.contract(path.stem).columns], path.stem
    assert sum(row["vip"] == "true" for row in table(full, "mailboxes")) == 24
    certs = {row["credential_id"]: row for row in table(full, "credentials") if row["kind"] == "cert"}
    assert len(certs) == 3
    (old,) = [row for row in certs.values() if row["revoked_at"]]
    assert old["replaced_by"] in certs and old["compromised_from"] < old["revoked_at"]
    assert {row["old_credential_id"] for row in table(full, "rotations")} == {old["credential_id"]}
    rules = table(full, "contexts")
    assert len(rules) == 4 and "*" not in {row["principal_pattern"] for row in rules}  # one for everybody has no effect


def test_journal_is_conserved_without_a_second_reader(null: World) -> None:
    pop3 = re.compile(r"dovecot: pop3\((journal@[^)]+)\).* retr=(\d+)/\d+, del=(\d+)/(\d+), ")
    sent, deleted = Counter[str](), Counter[str]()
    for _, line in lines(null.out, "logs/*/mx1/*"):
        if found := re.search(r" to=<(journal@[^>]+)>.* status=sent ", line):
            sent[found[1]] += 1
        elif found := pop3.search(line):
            deleted[found[1]] += int(found[3])
    journals = {tenant.journal for tenant in null.tenants if tenant.journal}
    assert journals <= set(sent)
    gap = next(item for item in null.truth["benign"] if item["id"] == "N12-collector")
    for journal in journals:
        if not any(journal.endswith(f"@{tenant}.example") for tenant in gap["tenant_ids"]):
            assert abs(sent[journal] - deleted[journal]) <= max(8, 0.01 * sent[journal]), journal


def test_jobs_explain_the_vendors_pollers(null: World) -> None:
    jobs = [
        row
        for path in null.out.glob("logs/northgate/jobs/*.csv")
        for row in csv.DictReader(io.StringIO(path.read_text()))
    ]
    assert {row["service"] for row in jobs if row["service"]} >= {"ews", "pop3", "smtp", "ldap"}
    tenant = next(t for t in null.tenants if t.journal)
    polls = sum("dovecot: pop3(journal@" in line for _, line in lines(null.out, f"logs/{tenant.tenant_id}/mx1/*"))
    explained = {row["job_id"] for row in jobs if row["tenant"] == tenant.tenant_id and row["service"] == "pop3"}
    assert abs(polls - len(explained)) <= 0.02 * polls + 2


def _read(tenant_mailbox: str, ts: float, items: range, *, ip: str = "192.0.2.1", sync: bool = False) -> Read:
    return Read(ts, tenant_mailbox, ip, "Client=REST;;", None, "a", "s", "", 1, "Inbox", tuple(items), sync, None)


def test_audit_folds_two_minutes_and_forgets_repeats_within_the_hour() -> None:
    stage = build(1, Calendar(date(2021, 1, 4), 20), 10)
    tenant = next(t for t in stage.tenants if "m365" in t.services)
    box, t0, rng = tenant.shared[0], stage.cal.t0, random.Random(1)
    reads = [
        _read(box, t0, range(3)),
        _read(box, t0 + 100, range(2, 5)),
        _read(box, t0 + 300, range(5)),
        _read(box, t0 + 310, range(2), ip="192.0.2.2"),
        _read(box, t0 + 4000, range(2)),
    ]
    found = fold(rng, tenant, reads)
    assert [(ts - t0, int(body["OperationCount"]), body["ClientIPAddress"][:9] != "") for ts, body, _ in found] == [
        (0, 5, True), (310, 2, True), (4000, 2, True),
    ]  # fmt: skip
    ids = [item["InternetMessageId"] for item in found[0][1]["Folders"][0]["FolderItems"]]
    assert len(set(ids)) == 5


def test_audit_stops_for_a_day_after_a_thousand_reads() -> None:
    stage = build(1, Calendar(date(2021, 1, 4), 20), 10)
    tenant = next(t for t in stage.tenants if "m365" in t.services)
    box, t0 = tenant.shared[0], stage.cal.t0
    many = [_read(box, t0 + 200 * n, range(60 * n, 60 * n + 60)) for n in range(20)]
    later = [_read(box, t0 + 0.5 * DAY, range(9000, 9003)), replace(_read(box, t0 + 0.6 * DAY, range(0)), sync=True)]
    after = [_read(box, t0 + 1.2 * DAY, range(9000, 9003))]
    found = fold(random.Random(1), tenant, many + later + after)
    throttled = [body["OperationProperties"][1]["Value"] for _, body, _ in found]
    assert throttled.count("True") == 1
    index = throttled.index("True")
    assert sum(int(body["OperationCount"]) for _, body, _ in found[: index + 1]) > LIMIT
    assert [body["OperationProperties"][0]["Value"] for _, body, _ in found[index + 1 :]] == ["Sync", "Bind"]


KINDS = {
    "entra": "entra_signin", "audit": "entra_audit", "ual": "m365_ual", "mx1": "syslog", "ldap1": "syslog", "Ews": "exchange_ews",
    "HttpProxy": "exchange_httpproxy", "jobs": "gateway_jobs",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_log_is_recognised_and_read(full: World, kind: str) -> None:
    for path in [path for path in full.files if path.parent.name == kind][:4]:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        choice = registry.choose(head_of(data[:HEAD_BYTES], path.name.removesuffix(".gz")))
        assert isinstance(choice, registry.Choice) and choice.name == KINDS[kind], path
        ctx = Context(
            "0" * 64, choice.match.variant, year=2021, year_basis="given", not_after=datetime(2021, 3, 1, tzinfo=UTC)
        )
        blocks = list(Framer(io.BytesIO(data), choice.framing).blocks())
        rows = pl.concat([registry.parse(choice, block, ctx) for block in blocks], how="diagonal_relaxed")
        assert rows["record_no"].n_unique() == rows.height == sum(block.height for block in blocks) > 0
        states = Counter(rows["disposition"].to_list())
        assert states["quarantined"] <= 0.004 * rows.height + 2, path
        assert states["access_events"] + states["change_events"] + states["gateway_jobs"] > 0, path


def test_size_and_time(full: World, tmp_path: Path) -> None:
    begin = time.process_time()
    world = write_world(tmp_path, seed=1, tenants=20, days=20, campaigns="A")
    assert time.process_time() - begin < 12  # about 2 s
    assert world.raw_bytes < 20 * 20 * 45_000  # a tenant's day is about 35 KB
    assert len(world.files) < 20 * 16
    last = max(datetime.fromtimestamp(path.stat().st_mtime, tz=UTC) for path in full.files)
    assert last == datetime.fromisoformat(full.truth["to"])
    assert json.loads((full.out / "truth.json").read_text()) == full.truth
