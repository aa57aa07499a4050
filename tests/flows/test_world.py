"""The synthetic world: the same seed gives the same bytes, and what is planted stands in the raw logs."""

import csv
import fnmatch
import gzip
import hashlib
import io
import json
import re
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

import data_contracts
from flows.world import World, write_world
from flows.world.emit_exchange import EWS_FIELDS, PROXY_FIELDS
from flows.world.model import Calendar
from flows.world.setting import build

SENT = re.compile(r"postfix/lmtp\[\d+\]: \w+: to=<(journal@[^>]+)>.* status=sent ")
POP3 = re.compile(
    r"dovecot: pop3\((journal@[^)]+)\)<\d+><([^>]+)>: (.*) top=0/0, retr=(\d+)/(\d+), del=(\d+)/(\d+), size=(\d+)"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world as it is by default."""
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("small"), seed=3, tenants=6, days=20)


def texts(paths: Iterator[Path]) -> Iterator[tuple[str, str]]:
    """Name and text of every log file, decompressed."""
    for path in sorted(paths):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield name, archive.read(name).decode()
        elif path.is_file():
            data = path.read_bytes()
            yield path.name, (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def digests(out: Path) -> dict[str, str]:
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in out.rglob("*") if p.is_file()}


def test_same_seed_same_bytes(small: World, tmp_path: Path) -> None:
    write_world(tmp_path / "again", seed=3, tenants=6, days=20)
    assert digests(tmp_path / "again") == digests(small.out)
    settings = [build(seed, Calendar(small.start, 20), 6, incident=True) for seed in (3, 4)]
    assert settings[0].thumbprint.lower() == small.truth["steps"][0]["credential_id"]
    assert settings[0].thumbprint != settings[1].thumbprint
    assert settings[0].tenants != settings[1].tenants


def test_too_small_a_world_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 6 tenants"):
        write_world(tmp_path, tenants=3)


@pytest.mark.parametrize("name", ["world", "small"])
def test_every_planted_step_is_in_the_raw_logs(name: str, request: pytest.FixtureRequest) -> None:
    made: World = request.getfixturevalue(name)
    steps = made.truth["steps"]
    assert len(steps) == 7
    assert len({step["tenant_id"] for step in steps}) == 4
    for step in steps:
        assert step["networks"] == [step["network"]]
        lines = [
            line
            for _, text in texts(made.out.glob(step["grep"]["paths"]))
            for line in text.splitlines()
            if step["grep"]["text"] in line
        ]
        expected = step["sessions"] if step["campaign"] == "D" else step["records"]
        assert len(lines) == expected > 0, step["step"]
        assert len(set(lines)) == (step["sessions"] if step["campaign"] == "D" else step["events"])
        if step["step"].startswith("A2"):
            seen = {re.search(r'MailboxOwnerUPN""?:""?([^"]+)"', line).group(1) for line in lines}  # type: ignore[union-attr]
            assert seen == set(step["mailboxes"])


def test_planted_networks_are_used_by_the_attacker_only(world: World) -> None:
    steps = world.truth["steps"]
    networks = {step["network"].rsplit(".", 1)[0] + "." for step in steps}
    assert len(networks) == 2
    planted = sum(step["sessions"] if step["campaign"] == "D" else step["records"] for step in steps)
    hits = [
        line
        for _, text in texts(world.out.glob("logs/**/*"))
        if any(prefix in text for prefix in networks)
        for line in text.split("\n")
        if any(prefix in line for prefix in networks)
    ]
    assert len(hits) == planted


def test_without_incident_only_the_attack_is_missing(small: World, tmp_path: Path) -> None:
    calm = write_world(tmp_path, seed=3, tenants=6, days=20, incident=False)
    assert calm.truth["steps"] == []
    assert [item["id"] for item in calm.truth["benign"]] == [item["id"] for item in small.truth["benign"]]
    planted = sum(step["records"] for step in small.truth["steps"])
    assert abs(small.records - planted - calm.records) < 60  # damage and duplicates fall elsewhere
    assert all(item["records"] for item in calm.truth["benign"])


def _journal(world: World) -> dict[str, list[tuple[str, int, int, int, str]]]:
    """Per journal mailbox and in the order of the log: (what, messages read, deleted, held, session)."""
    out: dict[str, list[tuple[str, int, int, int, str]]] = defaultdict(list)
    for tenant in world.tenants:
        if not tenant.journal:
            continue
        files = sorted(
            world.out.glob(f"logs/{tenant.tenant_id}/mx1/*"),
            key=lambda p: -int(p.name.split(".")[2]) if ".gz" in p.name else 1,
        )
        for path in files:
            for line in next(texts(iter([path])))[1].split("\n"):
                if found := SENT.search(line):
                    out[found[1]].append(("sent", 0, 0, 0, ""))
                elif found := POP3.search(line):
                    out[found[1]].append(("pop3", int(found[4]), int(found[6]), int(found[7]), found[2]))
    known = {tenant.journal for tenant in world.tenants}
    return {mailbox: events for mailbox, events in out.items() if mailbox in known}  # damaged lines name others


def test_journal_is_conserved_but_for_the_second_reader(world: World) -> None:
    step = next(step for step in world.truth["steps"] if step["campaign"] == "D")
    logs = _journal(world)
    assert len(logs) == 5
    for mailbox, events in logs.items():
        assert len(events) > 1000
        sent = sum(event[0] == "sent" for event in events)
        deleted = sum(event[2] for event in events)
        read = sum(event[1] for event in events)
        assert abs(sent - deleted) <= max(8, 0.005 * sent), mailbox  # still waiting at the end, and damaged lines
        whole = sum(event[1] for event in events if event[2] == event[3])
        assert abs(whole - sent) <= max(8, 0.005 * sent)
        extra = read - whole
        if mailbox in step["mailboxes"]:
            assert extra >= step["messages"] > 60
        else:
            assert extra <= max(60, 0.02 * sent), mailbox


def test_second_reader_shows_in_the_daily_ratio(world: World) -> None:
    step = next(step for step in world.truth["steps"] if step["campaign"] == "D")
    days = (datetime.fromisoformat(step["last_seen"]) - datetime.fromisoformat(step["first_seen"])).days + 1
    assert 3 <= days <= 6
    assert step["sessions"] / days >= 5
    assert step["messages"] / days > 15


def test_fast_victim_is_fast_and_the_others_are_slow(world: World) -> None:
    def most_in_ten_minutes(step: dict[str, object]) -> int:
        times = list[tuple[datetime, str]]()
        for _, text in texts(world.out.glob(step["grep"]["paths"])):  # type: ignore[index]
            for line in text.splitlines():
                if step["grep"]["text"] in line:  # type: ignore[index]
                    at = re.search(r'CreationTime""?:""?([0-9T:-]+)', line)
                    box = re.search(r'MailboxOwnerUPN""?:""?([^"]+)"', line)
                    assert at and box
                    times.append((datetime.fromisoformat(at[1]), box[1]))
        return max(len({b for u, b in times if timedelta(0) <= u - t <= timedelta(minutes=10)}) for t, _ in times)

    reads = {step["step"]: step for step in world.truth["steps"] if step["step"].startswith("A2")}
    bursts = {name: most_in_ten_minutes(step) for name, step in reads.items()}
    assert sorted(len(step["mailboxes"]) for step in reads.values()) == [8, 12, 22]
    for name, step in reads.items():
        assert (bursts[name] > 8) == ("M01" in step["detections"]), bursts


def test_reference_tables_fit_their_contracts(world: World) -> None:
    loaded = {}
    for path in (world.out / "reference").glob("*.csv"):
        loaded[path.stem] = list(csv.DictReader(io.StringIO(path.read_text())))
        columns = [column.name for column in data_contracts.contract(path.stem).columns]
        assert list(loaded[path.stem][0]) == columns, path.stem
    assert len(loaded["tenants"]) == 14
    assert len({row["mailbox_id"] for row in loaded["mailboxes"]}) == len(loaded["mailboxes"])
    shared = {
        row["tenant_id"]
        for row in loaded["bindings"]
        if row["credential_id"] == world.truth["steps"][0]["credential_id"]
    }
    assert len(shared) == 8
    attacker = {step["network"] for step in world.truth["steps"]}
    assert not attacker & {row["network"] for row in loaded["networks"]}
    announced = {row["prefix"] for row in loaded["asn"]}
    assert attacker <= announced and {row["network"] for row in loaded["networks"]} <= announced


def test_collection_names_zone_and_year_where_the_log_lacks_them(world: World) -> None:
    rows = list(csv.DictReader(io.StringIO((world.out / "collection.csv").read_text())))
    mail = [row for row in rows if "/mx1/" in row["path"]]
    assert {row["year"] for row in mail} == {"2021", ""}
    assert {row["tz"] for row in mail if row["year"]} > {"Europe/Berlin", "America/New_York"}
    for row in rows:
        ZoneInfo(row["tz"])
    for path in world.files:  # as a glob whose * stops at a slash, and as one whose * does not
        tenant = path.relative_to(world.out).parts[1]
        assert {row["tenant_id"] for row in rows if path.match(row["path"])} == {tenant}
        assert {row["tenant_id"] for row in rows if fnmatch.fnmatchcase(str(path), row["path"])} == {tenant}


def test_audit_containers_hold_the_same_shape(world: World) -> None:
    seen = set[str]()
    dash = duplicates = 0
    for path in sorted(world.out.glob("logs/*/ual/*")):
        _, text = next(texts(iter([path])))
        name = path.name.removesuffix(".gz")
        seen.add(name.rsplit(".", 1)[1])
        if name.endswith(".json"):
            bodies = json.loads(text)
        elif name.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(text)))
            bodies = [
                json.loads(row["AuditData"])
                for row in rows
                if (row["AuditData"] or "").endswith("}") and "\x00" not in row["AuditData"]
            ]
        else:
            bodies = [
                json.loads(line)
                for line in text.splitlines()
                if line.endswith("}") and "\x00" not in line and line.startswith("{")
            ]
        ids = [body["Id"] for body in bodies]
        duplicates += len(ids) - len(set(ids))
        dash += sum("\u2013" in body["Operation"] for body in bodies)
        assert all(datetime.fromisoformat(body["CreationTime"]) for body in bodies)
    assert seen == {"jsonl", "json", "csv"}
    assert dash and duplicates > 20


def test_exchange_rows_have_their_columns_and_join(world: World) -> None:
    ids: dict[str, set[str]] = {"Ews": set(), "HttpProxy": set()}
    damaged = 0
    for name, text in texts(world.out.glob("logs/elder/ex01/**/*")):
        kind = "Ews" if name.startswith("Ews") else "HttpProxy"
        width = len(EWS_FIELDS if kind == "Ews" else PROXY_FIELDS)
        assert width == {"Ews": 92, "HttpProxy": 74}[kind]
        for line in text.split("\r\n"):
            if line and not line.startswith("#"):
                cells = line.split(",")
                damaged += len(cells) != width
                if "exchange.asmx" in line or "S:WLM" in line:
                    ids[kind].add(cells[1])
    assert damaged <= 20
    assert len(ids["Ews"] - ids["HttpProxy"]) <= 10


def test_size_and_time(tmp_path: Path, world: World) -> None:
    assert 30e6 < world.raw_bytes < 80e6
    assert world.files and all(path.stat().st_size for path in world.files)
    begin = time.process_time()
    write_world(tmp_path, seed=1, tenants=6, days=20)
    assert time.process_time() - begin < 8  # about 1 s; the whole world takes 5
    last = max(datetime.fromtimestamp(path.stat().st_mtime, tz=UTC) for path in world.files)
    assert last == datetime.fromisoformat(world.truth["to"])
