"""Databases of addresses: real MMDB files written by the test, in the shapes of three makers."""

from pathlib import Path
from typing import Any

import maxminddb
import polars as pl
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from data_contracts.errors import UsageError
from flows.pipeline.references import describe_geoip, open_geoip
from transforms.geo import place

RECORDS: dict[str, dict[str, Any]] = {
    "GeoLite2-ASN": {"autonomous_system_number": 64496, "autonomous_system_organization": "Example Transit"},
    "GeoLite2-Country": {"country": {"iso_code": "NL"}, "registered_country": {"iso_code": "DE"}},
    "GeoIP2-Anonymous-IP": {"is_anonymous": True, "is_hosting_provider": True, "is_tor_exit_node": True},
}


def write(folder: Path, records: dict[str, dict[str, Any]], network: str = "203.0.113.0/24") -> Path:
    folder.mkdir(exist_ok=True)
    for name, record in records.items():
        made = MMDBWriter(6, name, ipv4_compatible=True)
        made.insert_network(IPSet([network]), record)
        made.insert_network(IPSet(["2001:db8:7::/48"]), record)
        made.to_db_file(str(folder / f"{name}.mmdb"))
    return folder


def _lookups(folder: Path) -> list[Any]:
    return [database.get for _, database in open_geoip(str(folder))]


def test_three_databases_tell_four_things(tmp_path: Path) -> None:
    rows = pl.LazyFrame({"src_ip": ["203.0.113.9", None, "192.0.2.1", "2001:db8:7::1", "203.0.113.9"], "n": range(5)})
    found = place(rows, _lookups(write(tmp_path / "geo", RECORDS))).collect()
    told = (64496, "Example Transit", "NL", "tor")
    assert found.select("src_asn", "src_org", "src_cc", "src_class").rows() == [
        told, (None,) * 4, (None,) * 4, told, told,
    ]  # fmt: skip
    assert found["n"].to_list() == [0, 1, 2, 3, 4]


def test_what_the_analyst_declared_stays(tmp_path: Path) -> None:
    rows = pl.LazyFrame(
        {"src_ip": ["203.0.113.9", "203.0.113.9"], "src_class": ["vendor_egress", None], "src_org": ["Vendor", None]}
    )
    found = place(rows, _lookups(write(tmp_path / "geo", RECORDS))).collect()
    assert found["src_class"].to_list() == ["vendor_egress", "tor"]
    assert found["src_org"].to_list() == ["Vendor", "Example Transit"]
    assert found["src_asn"].to_list() == [64496, 64496]


@pytest.mark.parametrize(
    "record",
    [
        {"asn": "AS64496", "as_name": "Example Transit", "country_code": "nl"},  # IPinfo Lite
        {"asn": "AS64496", "name": "x", "organization": "Example Transit", "country": "NL"},
        {"as_number": 64496, "as_organization": "Example Transit", "registered_country": {"iso_code": "NL"}},
    ],
)
def test_shapes_of_other_makers(tmp_path: Path, record: dict[str, Any]) -> None:
    folder = write(tmp_path / "geo", {"one": record})
    found = place(pl.LazyFrame({"src_ip": ["203.0.113.9"]}), _lookups(folder)).collect()
    assert found.select("src_asn", "src_org", "src_cc").row(0) == (64496, "Example Transit", "NL")


@pytest.mark.parametrize("record", [{"asn": "many"}, {"country": {"iso_code": 7}}, {"traits": "none"}, "text", [1]])
def test_records_of_an_unknown_shape_tell_nothing(tmp_path: Path, record: Any) -> None:
    folder = write(tmp_path / "geo", {"one": record})
    found = place(pl.LazyFrame({"src_ip": ["203.0.113.9"]}), _lookups(folder)).collect()
    assert found.select("src_asn", "src_org", "src_cc", "src_class").row(0) == (None, None, None, None)


def test_without_databases_nothing_is_added() -> None:
    rows = pl.LazyFrame({"src_ip": ["203.0.113.9"]})
    assert place(rows, []).collect().columns == ["src_ip"]


def test_a_folder_without_databases_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no \*\.mmdb file"):
        open_geoip(str(tmp_path))
    (tmp_path / "broken.mmdb").write_bytes(b"not a database")
    with pytest.raises(UsageError, match=r"broken\.mmdb: is no database"):
        open_geoip(str(tmp_path))


def test_what_the_custody_log_keeps(tmp_path: Path) -> None:
    (one,) = describe_geoip(str(write(tmp_path / "geo", {"GeoLite2-ASN": RECORDS["GeoLite2-ASN"]})))
    assert one["type"] == "GeoLite2-ASN"
    assert len(one["sha256"]) == 64
    with maxminddb.open_database(tmp_path / "geo" / "GeoLite2-ASN.mmdb") as database:
        assert database.get("203.0.113.1") == RECORDS["GeoLite2-ASN"]
