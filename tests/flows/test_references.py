"""Reference tables from the sheets that people keep: what is wrong is named by file and line; nothing gets lost."""

import time
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from archive.store import Archive
from data_contracts.errors import RefusedError, UsageError
from flows.pipeline.references import load, read_table


def sheet(tmp_path: Path, content: str | bytes, name: str = "tenants") -> str:
    path = tmp_path / f"{name}.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "content",
    [
        "tenant_id,name,onboarded_at\nacme,Acme,2020-01-02\n",
        "\ufefftenant_id,name,onboarded_at\nacme,Acme,2020-01-02\n",
        "tenant_id,name,onboarded_at\r\nacme,Acme,2020-01-02\r\n",
        " Tenant_ID , NAME ,onboarded_at\n acme , Acme , 2020-01-02 \n\n",
        'tenant_id,name,onboarded_at\n"acme","Acme","2020-01-02"',
        "\ufefftenant_id,name,onboarded_at\r\n\r\nacme,Acme,2020-01-02T00:00:00Z\r\n,,\r\n",
        "tenant_id,name,onboarded_at\nacme,Acme,2020-01-02T01:00:00+01:00\n",
        "tenant_id,name,onboarded_at\nacme,Acme,2020-01-02 00:00\n",
    ],
)
def test_the_same_table_however_it_was_saved(tmp_path: Path, content: str) -> None:
    row = read_table("tenants", sheet(tmp_path, content)).row(0, named=True)
    assert (row["tenant_id"], row["name"], row["onboarded_at"]) == ("acme", "Acme", datetime(2020, 1, 2, tzinfo=UTC))
    assert row["domain"] is None


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        ("", ":1: is empty"),
        ("\n\n", ":1: is empty"),
        ("name,domain\nAcme,a.example\n", ":1: tenants has no column tenant_id"),
        ("tenant_id;name\nacme;Acme\n", ":1: has one column tenant_id;name"),
        ("tenant_id,name,name\nacme,A,B\n", ":1: column 3 "),
        ("tenant_id,,name\nacme,A,B\n", ":1: column 2 "),
        ("tenant_id,\x1b[2J\nacme,A\n", ":1: column 2 "),
        ("tenant_id,name\nacme,Acme\nbeta,Beta,more\n", ":3: 3 values where the header names 2 columns"),
        ("tenant_id,name\nacme\n", ":2: 1 values where the header names 2 columns"),
        (
            "tenant_id,onboarded_at\nacme,2020-01-02\nbeta,02/01/2020\n",
            ":3: onboarded_at '02/01/2020' can't be read as a time",
        ),
        ("tenant_id,name\nacme,Acme\nbeta,Beta\nacme,Again\n", ":4: contract: tenant_id"),
        ('tenant_id,name\n"a\nb",Acme\nbeta,Beta\n,Nobody\n', ":5: contract: tenant_id is required"),
        ('tenant_id,name\nacme,"Acme\n', ":2: can't be read as CSV"),
        (b"tenant_id,name\nacme,Acme\nbeta,B\xfcro\n", ":3: is not UTF-8"),
        ("tenant_id,name\nacme,Acme\n".encode("utf-16"), ":1: is not UTF-8"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path: Path, content: str | bytes, fact: str) -> None:
    path = sheet(tmp_path, content)
    with pytest.raises(RefusedError) as refusal:
        read_table("tenants", path)
    assert path + fact in str(refusal.value)
    assert "Hint: " in str(refusal.value)


def test_many_wrong_rows_are_told_in_few_lines(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refusal:
        read_table("tenants", sheet(tmp_path, "tenant_id,name\n" + ",Nobody\n" * 1000))
    assert "1000 rows break the contract tenants" in str(refusal.value)
    assert "and 995 more" in str(refusal.value)
    assert len(str(refusal.value).splitlines()) < 10


@pytest.mark.parametrize(("written", "read"), [("true", True), ("No", False), ("1", True), ("", None)])
def test_truth_values(tmp_path: Path, written: str, read: bool | None) -> None:
    path = sheet(tmp_path, f"mailbox_id,tenant_id,vip\nA@b.example,acme,{written}\n", "mailboxes")
    assert read_table("mailboxes", path).select("mailbox_id", "vip").row(0) == ("a@b.example", read)


def test_a_truth_value_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r":2: vip 'perhaps' can't be read as a truth value"):
        read_table("mailboxes", sheet(tmp_path, "mailbox_id,tenant_id,vip\na@b.example,acme,perhaps\n", "mailboxes"))


def test_columns_past_the_contract_are_kept_beside_their_row(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    load(archive, [sheet(tmp_path, "tenant_id,Owner of the account,name\nb,Bea,B\na,\"=cmd|' /c calc'!a0\",A\n")])
    held = Archive.open(archive.uri).scan("tenants").sort("tenant_id").collect()
    assert held["owner of the account"].to_list() == ["=cmd|' /c calc'!a0", "Bea"]
    rows = (
        Archive.open(archive.uri)
        .connect()
        .execute('select "owner of the account" from tenants order by tenant_id')
        .fetchall()
    )
    assert rows == [("=cmd|' /c calc'!a0",), ("Bea",)]


def test_if_one_file_is_refused_nothing_is_loaded(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "networks.csv").write_text("network,kind\n192.0.2.0/24,corporate\n")
    (tmp_path / "r" / "tenants.csv").write_text("tenant_id\na\na\n")
    with pytest.raises(RefusedError):
        load(archive, [str(tmp_path / "r")])
    assert Archive.open(archive.uri).scan("networks").select(pl.len()).collect().item() == 0


def test_a_table_that_is_loaded_again_replaces_the_one_that_stands(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    load(archive, [sheet(tmp_path, "tenant_id,name,note\na,A,x\nb,B,y\n")])
    answer = load(Archive.open(archive.uri), [sheet(tmp_path, "tenant_id,name\nc,C\n")])
    assert answer["loaded"] == {"tenants": 1}
    held = Archive.open(archive.uri).scan("tenants").collect()
    assert held["tenant_id"].to_list() == ["c"]


def test_files_that_are_no_table_are_passed_over_or_refused(tmp_path: Path) -> None:
    archive = Archive.create(str(tmp_path / "archive"))
    table, other = sheet(tmp_path, "tenant_id\na\n"), sheet(tmp_path, "x\n1\n", "notes")
    assert load(archive, [table, other])["not_a_reference_table"] == [other]
    with pytest.raises(UsageError, match="no reference table"):
        load(archive, [other])
    with pytest.raises(UsageError, match="no such file"):
        load(archive, [str(tmp_path / "absent.csv")])
    (tmp_path / "more").mkdir()
    with pytest.raises(UsageError, match="for the same table"):
        load(archive, [table, sheet(tmp_path / "more", "tenant_id\nb\n")])


def test_a_large_sheet_is_read_in_seconds(tmp_path: Path) -> None:
    lines = "".join(f"10.{i >> 8}.{i & 255}.0/24,{i},Org {i},DE,isp\n" for i in range(65_536))
    path = sheet(tmp_path, "prefix,asn,organisation,country,kind\n" + lines, "asn")
    began = time.process_time()
    assert read_table("asn", path).height == 65_536
    assert time.process_time() - began < 10
