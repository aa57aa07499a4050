from datetime import UTC, datetime

import polars as pl
import pytest

from data_contracts import contract
from transforms.enrich import References, enrich, hex_offsets, identified

EVIDENCE = "ab" * 32
NOON = datetime(2021, 2, 3, 12, tzinfo=UTC)


def frame(name: str, rows: list[dict]) -> pl.DataFrame:
    schema = contract(name).polars_schema
    return pl.DataFrame([{c: r.get(c) for c in schema} for r in rows], schema=schema)


def references(tenants: list[dict] = (), networks: list[dict] = (), asn: list[dict] = ()) -> References:  # type: ignore[assignment]
    return References(frame("tenants", list(tenants)), frame("networks", list(networks)), frame("asn", list(asn)))


def events(**columns: list) -> pl.DataFrame:
    size = len(next(iter(columns.values())))
    base = {
        "record_no": range(size), "byte_offset": [100 * i for i in range(size)], "byte_length": [50] * size, "ts": [NOON] * size,
        "source": ["m365_ual"] * size, "evidence_id": [EVIDENCE] * size, "protocol": ["ews"] * size,
        "given_tenant_id": [None] * size, "given_host": [None] * size,
    }  # fmt: skip
    return pl.DataFrame(
        base | columns,
        schema_overrides={"given_tenant_id": pl.String, "given_host": pl.String, "ts": pl.Datetime("us", "UTC")},
    )


def test_offsets_become_sixteen_digits() -> None:
    assert hex_offsets(pl.Series("o", [0, 255, 2**40 + 1])).to_list() == [
        "0" * 16,
        "0" * 14 + "ff",
        f"{2**40 + 1:016x}",
    ]


def test_uid_is_the_place_or_the_sources_own_id() -> None:
    guid = "156BD023-0000-4000-8000-00000000000A"
    rows = identified(events(source_id=[guid, guid.lower(), "x'; drop", None]))
    uids = rows["event_uid"].to_list()
    assert uids[0] == uids[1] == guid.replace("-", "").lower() + uids[0][32:]
    assert uids[3] == EVIDENCE[:24] + f"{300:016x}"
    assert all(len(u) == 40 and set(u) <= set("0123456789abcdef") for u in uids)
    assert rows["has_id"].to_list() == [True, True, True, False]
    assert len(set(uids)) == 3


@pytest.mark.parametrize(
    ("own", "domain", "given", "wanted"),
    [
        ("3F2504E0", None, None, ("acme", "record")),
        ("unheard-of", "acme.example", None, ("unheard-of", "record")),
        (None, "ACME.example.", None, ("acme", "reference")),
        (None, "shared.example", "given", ("given", "given")),
        (None, None, None, (None, "none")),
    ],
)
def test_tenant(own: str | None, domain: str | None, given: str | None, wanted: tuple) -> None:
    refs = references(
        [
            {"tenant_id": "acme", "entra_tenant_id": "3f2504e0", "domain": "acme.example; shared.example"},
            {"tenant_id": "other", "domain": "shared.example"},
        ]
    )
    columns = {"tenant_id": [own], "tenant_domain": [domain], "given_tenant_id": [given]}
    rows = events(**{n: pl.Series(v, dtype=pl.String) for n, v in columns.items()})
    assert enrich(rows, "access_events", refs).select("tenant_id", "tenant_basis").row(0) == wanted


def test_networks_are_dated_and_private_ranges_are_known() -> None:
    refs = references(
        networks=[
            {
                "network": "203.0.113.0/24",
                "kind": "vendor_egress",
                "owner": "Vendor",
                "valid_from": datetime(2021, 3, 1, tzinfo=UTC),
            },
            {"network": "198.51.100.0/24", "kind": "vendor_egress", "owner": "Vendor"},
        ],
        asn=[{"prefix": "203.0.113.0/25", "asn": 64500, "organisation": "Hosting", "country": "NL"}],
    )
    rows = enrich(
        events(src_ip_raw=["203.0.113.9:4711", "[::ffff:198.51.100.7]:99", "10.1.2.3", "nonsense"]),
        "access_events",
        refs,
    )
    assert rows["src_ip"].to_list() == ["203.0.113.9", "198.51.100.7", "10.1.2.3", None]
    assert rows["src_class"].to_list() == [None, "vendor_egress", "private", None]
    assert rows["src_asn"].to_list() == [64500, None, None, None]
    assert rows["src_org"].to_list() == ["Hosting", "Vendor", None, None]
