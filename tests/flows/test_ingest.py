"""Ingest end to end: every record accounted for, each piece once, damage costs no more than what is damaged."""

import bz2
import gzip
import json
import lzma
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from archive.store import Archive
from flows.pipeline.deriving import refresh
from flows.pipeline.ingesting import Ingest, Options
from flows.pipeline.reading import How
from flows.pipeline.running import ingest_paths

SAMPLES = Path(__file__).parents[1] / "samples"
REAL = Path(__file__).parents[3] / "shared" / "samples"


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive.create(str(tmp_path / "archive"))


def ingest(archive: Archive, *paths: Path, **how: Any) -> list[dict[str, Any]]:
    answer = Ingest(Archive.open(archive.uri), Options(how=How(**{"year": 2021, "tz": "UTC", **how}))).run(
        [str(p) for p in paths]
    )
    for entry in answer["evidence"]:
        adds_up(entry)
    return answer["evidence"]


def adds_up(entry: dict[str, Any]) -> None:
    parts = [
        *entry["events"].values(),
        entry["continuations"],
        *entry["ignored"].values(),
        entry["duplicates"],
        *entry["quarantined"].values(),
    ]
    assert entry["records"] == sum(parts), entry["path"]


def postfix(first: int, last: int) -> str:
    return "".join(
        f"Feb  3 04:{i // 60 % 60:02}:{i % 60:02} mx1 postfix/smtp[77]: {i:09X}A: to=<u{i}@t1.example>, relay=in.example.net[203.0.113.9]:25, "
        f"delay=1.5, delays=0.1/0/0.4/1, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as {i:X})\n"
        for i in range(first, last)
    )


def rows(archive: Archive, table: str) -> int:
    return Archive.open(archive.uri).scan(table).select(pl.len()).collect().item()


def test_one_syslog_file_may_mix_programs(archive: Archive, tmp_path: Path) -> None:
    log = tmp_path / "messages"
    log.write_text(
        postfix(0, 3)
        + "Feb  3 05:00:00 mx1 dovecot: pop3-login: Login: user=<j@t1.example>, method=PLAIN, rip=203.0.113.7, lip=192.0.2.1, mpid=9, TLS, session=<abc>\n"
        + "Feb  3 05:00:01 mx1 CRON[1]: (root) CMD (true)\n"
        + "Feb  3 05:00:02 mx1 sshd[2]: Accepted publickey for ops\n"
    )
    (entry,) = ingest(archive, log)
    assert entry["format"] == "dovecot+postfix"
    assert entry["events"] == {"access_events": 1, "mail_events": 3}
    assert entry["ignored"] == {"no format for program CRON": 1, "no format for program sshd": 1}
    access = archive.scan("access_events").collect().row(0, named=True)
    assert (access["principal_id"], access["src_ip"], access["credential_id"]) == (
        "j@t1.example",
        "203.0.113.7",
        "pw:j@t1.example",
    )


def test_the_same_again_changes_nothing_however_it_is_packed(archive: Archive, tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_text(postfix(0, 100))
    assert [e["status"] for e in ingest(archive, log)] == ["committed"]
    refresh(Archive.open(archive.uri))
    before = Archive.open(archive.uri).versions()
    (tmp_path / "mail.log.1.gz").write_bytes(gzip.compress(log.read_bytes()))
    (tmp_path / "copy.xz").write_bytes(lzma.compress(log.read_bytes()))
    again = ingest(archive, log, tmp_path / "mail.log.1.gz", tmp_path / "copy.xz")
    assert [e["status"] for e in again] == ["known"] * 3
    assert refresh(Archive.open(archive.uri)) == {}
    assert Archive.open(archive.uri).versions() == before
    assert rows(archive, "mail_events") == 100


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_grown_log_gives_only_what_is_new(archive: Archive, tmp_path: Path, ending: str) -> None:
    log = tmp_path / "mail.log"
    log.write_text(postfix(0, 50).removesuffix("\n") + ending)
    ingest(archive, log)
    log.write_text(postfix(0, 60))
    (entry,) = ingest(archive, log)
    assert (entry["status"], entry["records"]) == ("grown", 10)
    assert rows(archive, "mail_events") == 60
    assert archive.scan("mail_events").collect()["rcpt"].n_unique() == 60


# The short ones have less than HEAD_BYTES; apart, one of these is not told from the beginning of a log that has more.
@pytest.mark.parametrize(
    ("sizes", "in_one_run"),
    [((60, 40, 75), True), ((60, 40, 75), False), ((60, 3, 75), True), ((4, 2, 5), True), ((4, 2, 5), False)],
)
def test_versions_of_one_log_count_each_record_once(
    archive: Archive, tmp_path: Path, sizes: tuple[int, int, int], in_one_run: bool
) -> None:
    """A log collected three times while it grew, in whatever order it comes."""
    files = [tmp_path / n for n in ("a.log", "b.log", "c.log")]
    for file, last in zip(files, sizes, strict=True):
        file.write_text(postfix(0, last))
    entries = ingest(archive, *files) if in_one_run else [e for f in files for e in ingest(archive, f)]
    found = {Path(e["path"]).name: (e["status"], e["records"]) for e in entries}
    first, _, last = sizes
    assert found == {"a.log": ("committed", first), "b.log": ("known", 0), "c.log": ("grown", last - first)}
    assert rows(archive, "mail_events") == last


def test_two_copies_in_one_run_are_one(archive: Archive, tmp_path: Path) -> None:
    for name in ("a.log", "b.log"):
        (tmp_path / name).write_text(postfix(0, 5))
    assert sorted(e["status"] for e in ingest(archive, tmp_path / "a.log", tmp_path / "b.log")) == [
        "committed",
        "known",
    ]
    assert rows(archive, "mail_events") == 5


def audit(numbers: range) -> list[str]:
    return [
        json.dumps(
            {
                "CreationTime": f"2021-02-03T04:{i // 60:02}:{i % 60:02}", "Id": f"00000000-0000-4000-8000-{i:012d}", "Operation": "MailItemsAccessed",
                "OrganizationId": "3f2504e0-4f89-41d3-9a0c-0305e82c3301", "RecordType": 50, "ResultStatus": "Succeeded", "UserType": 0,
                "Workload": "Exchange", "UserId": "ann@t2.example", "MailboxOwnerUPN": "ann@t2.example", "ClientIPAddress": "203.0.113.5",
                "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}], "OperationCount": 1,
            }
        )
        for i in numbers
    ]  # fmt: skip


def test_records_with_ids_count_once_over_overlapping_exports(archive: Archive, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text("\n".join(audit(range(30)) + audit(range(3))) + "\n")
    two.write_text("[" + ",".join(audit(range(20, 50))) + "]")
    first, second = ingest(archive, one)[0], ingest(archive, two)[0]
    assert (first["duplicates"], first["events"]) == (3, {"access_events": 30})
    assert (second["duplicates"], second["events"]) == (10, {"access_events": 20})
    assert rows(archive, "access_events") == 50


def test_a_crash_between_two_tables_is_made_good(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "mail.log"
    login = "Feb  3 05:00:00 mx1 postfix/smtpd[7]: ABCDEF012: client=h[203.0.113.7], sasl_method=PLAIN, sasl_username=r@t1.example\n"
    log.write_text(postfix(0, 20) + login * 2)
    commit, calls = Archive.commit, []

    def failing(self: Archive, table: str, staged: Any, ids: Any) -> int:
        calls.append(table)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return commit(self, table, staged, ids)

    with monkeypatch.context() as broken:
        broken.setattr(Archive, "commit", failing)
        with pytest.raises(KeyboardInterrupt):
            ingest(archive, log)
    (entry,) = ingest(archive, log)
    assert entry["status"] == "committed"
    assert (rows(archive, "mail_events"), rows(archive, "access_events")) == (20, 2)


def test_a_batch_that_breaks_a_contract_refuses_its_file_only(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row rules are switched off, so that only the gate stands between a bad row and the archive."""
    from data_contracts.compiler import Contract

    good, bad = tmp_path / "good.log", tmp_path / "bad.log"
    good.write_text(postfix(0, 5))
    bad.write_text(postfix(5, 10).replace("delay=1.5", "delay=-1.5"))
    monkeypatch.setattr(Contract, "split", lambda self, df: (df, df.clear().with_columns(pl.lit("").alias("reason"))))
    entries = {Path(e["path"]).name: e for e in ingest(archive, good, bad)}
    assert entries["good.log"]["status"] == "committed"
    assert entries["bad.log"]["status"] == "refused"
    assert "delay_s" in entries["bad.log"]["reason"]
    assert "-1.5" in entries["bad.log"]["reason"]
    assert rows(archive, "mail_events") == 5
    assert not [p for p in archive.verify() if p.severity == "integrity"]


def test_strict_refuses_a_file_with_a_quarantined_record(archive: Archive, tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_text(postfix(0, 5) + "no syslog line\n")
    (entry,) = Ingest(archive, Options(how=How(year=2021), strict=True)).run([str(log)])["evidence"]
    assert entry["status"] == "refused"
    assert rows(archive, "mail_events") == 0


def test_what_nothing_recognises_is_refused_and_stops_nothing(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(random.Random(1).randbytes(5000))
    (tmp_path / "b.txt").write_text("Dear all,\nplease find attached\n")
    (tmp_path / "c.log").write_text(postfix(0, 2))
    (tmp_path / "d.log").write_text("")
    (tmp_path / "e.zip").write_bytes(b"PK\x03\x04 broken")
    found = {Path(e["path"]).name: (e["status"], e["reason"]) for e in ingest(archive, tmp_path / "*.*")}
    assert found["c.log"][0] == "committed"
    assert {n for n, (status, _) in found.items() if status == "refused"} == {"a.bin", "b.txt", "d.log", "e.zip"}
    assert found["d.log"][1] == "the file is empty"


def test_the_archive_is_no_evidence_where_it_lies_among_the_logs(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "mail.log").write_text(postfix(0, 3))
    for _ in range(2):
        assert [Path(entry["path"]).name for entry in ingest(archive, tmp_path)] == ["mail.log"]


def test_tenant_comes_from_the_record_the_tables_or_the_sheet(archive: Archive, tmp_path: Path) -> None:
    from flows.pipeline.references import load

    (tmp_path / "tenants.csv").write_text(
        "tenant_id,name,entra_tenant_id,domain\nacme,Acme,3F2504E0-4F89-41D3-9A0C-0305E82C3301,t2.example;t1.example\n"
    )
    load(archive, [str(tmp_path / "tenants.csv")])
    one, two = tmp_path / "one.json", tmp_path / "mail.log"
    one.write_text("\n".join(audit(range(3))))
    two.write_text(
        "Feb  3 05:00:00 mx1 postfix/smtpd[7]: ABCDEF012: client=h[203.0.113.7], sasl_method=PLAIN, sasl_username=r@t1.example\n"
        + postfix(0, 1)
    )
    sheet = tmp_path / "sheet.csv"
    sheet.write_text("path,tenant_id,tz,year\nmail.log,given-tenant,+01:00,2020\n")
    answer = ingest_paths(archive.uri, [str(one), str(two)], collection=str(sheet))
    assert answer["totals"]["refused"] == 0
    access = (
        archive.scan("access_events")
        .select("source", "tenant_id", "tenant_basis", "ts")
        .unique("source")
        .sort("source")
        .collect()
    )
    assert access.select("tenant_id", "tenant_basis").rows() == [("acme", "record"), ("acme", "reference")]
    mail = archive.scan("mail_events").collect().row(0, named=True)
    assert (mail["tenant_id"], mail["tenant_basis"]) == ("given-tenant", "given")
    assert mail["ts"].isoformat() == "2020-02-03T03:00:00+00:00"


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut lines, spliced lines, NULs, Latin-1, in a twentieth of the lines each; and one line of 50 MB."""
    lines = data.split(b"\n")
    out = []
    for number, line in enumerate(lines):
        kind = rng.random()
        if kind < 0.05:
            out.append(line[: rng.randrange(len(line) + 1)])
        elif kind < 0.1:
            out.append(line[: rng.randrange(len(line) + 1)] + lines[rng.randrange(len(lines))])
        elif kind < 0.15:
            at = rng.randrange(len(line) + 1)
            out.append(line[:at] + rng.choice([b"\x00", b"\xe9\xff", b'"', b"{[", b"\x1b[2J"]) + line[at:])
        else:
            out.append(line)
        if number == len(lines) // 2:
            out.append(b"x" * (50 << 20))
    return b"\n".join(out)


def cut_off(data: bytes) -> bytes:
    """A gzip stream that ends in its middle, which is the middle of the content: it is stored, not deflated."""
    packed = gzip.compress(data, compresslevel=0)
    return packed[: len(packed) // 2]


# One of each framing and machinery; every format has tests of its own with damaged lines.
DAMAGED = (
    "postfix.log",
    "openldap.log",
    "exchange_ews.log",
    "m365_ual.csv",
    "m365_ual.jsonl",
    "mimecast_siem.log",
    "iis.log",
)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    entries = ingest(
        Archive.create(str(tmp_path_factory.mktemp("undamaged") / "archive")), *(SAMPLES / n for n in DAMAGED)
    )
    return {Path(entry["path"]).name: entry for entry in entries}


def read_of(entry: dict[str, Any]) -> int:
    return sum(entry["events"].values()) + int(entry["duplicates"])


@pytest.mark.parametrize("sample", DAMAGED)
def test_a_damaged_copy_of_each_sample_costs_only_what_is_damaged(
    undamaged: dict[str, dict[str, Any]], tmp_path: Path, sample: str
) -> None:
    whole = (SAMPLES / sample).read_bytes().removesuffix(b"\n") + b"\n"
    good = undamaged[sample]
    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / ("damaged-" + sample)).write_bytes(damaged(whole * 10, random.Random(sample)))
    (copies / ("cut-" + sample + ".gz")).write_bytes(cut_off(whole * 10))
    other = Archive.create(str(tmp_path / "other"))
    entries = ingest(other, copies)
    assert good["status"] == "committed"
    assert {e["status"] for e in entries} == {"committed"}, [e["reason"] for e in entries]
    for entry in entries:
        assert entry["format"] == good["format"]
        assert sum(entry["quarantined"].values()) >= 1
        assert read_of(entry) > (6.5 if Path(entry["path"]).name.startswith("damaged") else 3) * read_of(good) > 0
    assert any("record is longer" in reason for e in entries for reason in e["quarantined"])
    assert any("cut off" in reason for e in entries for reason in e["quarantined"])
    held = rows(other, "quarantine")
    assert held == sum(n for e in entries for n in e["quarantined"].values())


@pytest.mark.skipif(not REAL.is_dir(), reason="the real samples are not part of the project")
def test_real_samples_are_read_whole(archive: Archive) -> None:
    entries = ingest(archive, *(f for f in sorted(REAL.iterdir()) if f.is_dir()), year=None, tz=None)
    assert len(entries) >= 60
    assert {e["status"] for e in entries} == {"committed"}
    quarantined = {e["path"]: e["quarantined"] for e in entries if e["quarantined"]}
    assert quarantined == {}


@pytest.mark.parametrize(
    "pack", [gzip.compress, bz2.compress, lzma.compress, lambda d: pa.Codec("zstd").compress(d).to_pybytes()]
)
def test_raw_gives_the_line_back(archive: Archive, tmp_path: Path, pack: Any) -> None:
    log = tmp_path / "mail.log.packed"
    log.write_bytes(pack(postfix(0, 40).encode()))
    ingest(archive, log)
    wanted = postfix(0, 40).splitlines()
    events = archive.scan("mail_events").sort("record_no").collect()
    for number in (0, 17, 39):
        assert archive.raw(events["event_uid"][number]).data.decode() == wanted[number]


def test_raw_gives_a_refused_record_back(archive: Archive, tmp_path: Path) -> None:
    log = tmp_path / "mail.log"
    log.write_bytes(postfix(0, 2).encode() + b"no syslog \x00 line \xe9\n" + postfix(2, 3).encode())
    ingest(archive, log)
    refused = archive.scan("quarantine").collect().row(0, named=True)
    assert refused["reason"] == "parse: line is no syslog line"
    assert archive.raw(refused["quarantine_uid"]).data == b"no syslog \x00 line \xe9"


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, flows.main; print([m for m in ('polars','duckdb','prefect','great_expectations','pyarrow','deltalake','rich') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_evidence_is_not_written_to(archive: Archive, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "mail.log").write_text(postfix(0, 3))
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*")}
    (folder / "mail.log").chmod(0o444)
    ingest(archive, folder)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*")} == before
    shutil.rmtree(folder)
    assert any(p.kind == "evidence" for p in archive.verify())
