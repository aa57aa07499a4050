"""Addresses in every shape that logs use, and the networks that hold them."""

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts.errors import RefusedError
from transforms import addresses
from transforms.addresses import MAPPED, canonical, compile_networks, parse

FOUR = ("1.2.3.4", MAPPED + bytes([1, 2, 3, 4]))
SIX = ("2001:db8::1", ipaddress.IPv6Address("2001:db8::1").packed)
NONE = (None, None, None, None)


def networks_match(
    frame: pl.LazyFrame,
    key_col: str,
    networks: pl.DataFrame,
    *,
    columns: Sequence[str] = ("owner", "kind"),
    ts: str | None = None,
    prefix: str = "",
) -> pl.LazyFrame:
    return compile_networks(networks).match(frame, key_col, columns, ts=ts, prefix=prefix)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.2.3.4", (*FOUR, None, "1.2.3.0/24")),
        ("1.2.3.4:587", (*FOUR, 587, "1.2.3.0/24")),
        ("[1.2.3.4]", (*FOUR, None, "1.2.3.0/24")),
        ("[1.2.3.4]:25", (*FOUR, 25, "1.2.3.0/24")),
        (" 1.2.3.4 ", (*FOUR, None, "1.2.3.0/24")),
        ("::ffff:1.2.3.4", (*FOUR, None, "1.2.3.0/24")),
        ("::FFFF:102:304", (*FOUR, None, "1.2.3.0/24")),
        ("[::ffff:1.2.3.4]:99", (*FOUR, 99, "1.2.3.0/24")),
        ("::ffff:1.2.3.4:99", (*FOUR, 99, "1.2.3.0/24")),
        ("2001:DB8:0::1", (*SIX, None, "2001:db8::/48")),
        ("[2001:db8::1]:443", (*SIX, 443, "2001:db8::/48")),
        ("IPv6:2001:db8::1", (*SIX, None, "2001:db8::/48")),
        ("[IPv6:2001:db8::1]", (*SIX, None, "2001:db8::/48")),
        ("fe80::1%3", ("fe80::1", ipaddress.IPv6Address("fe80::1").packed, None, "fe80::/48")),
        ("::1", ("::1", bytes(15) + b"\x01", None, "::/48")),
        ("::", ("::", bytes(16), None, "::/48")),
        ("::1.2.3.4", ("::102:304", bytes(12) + bytes([1, 2, 3, 4]), None, "::/48")),
        ("", NONE),
        (None, NONE),
        ("-", NONE),
        ("unknown", NONE),
        ("01.2.3.4", NONE),
        ("1.2.3", NONE),
        ("1.2.3.4.5", NONE),
        ("1.2.3.4:65536", NONE),
        ("1.2.3.4:", NONE),
        ("1.2.3.4:x", NONE),
        ("1.2.3.4, 5.6.7.8", NONE),
        ("[2001:db8::1", NONE),
        ("[2001:db8::1]x", NONE),
        ("1.2.3.4\x00", NONE),
        ("2a02:cf40::0000:1234:5678:9abc:def0:1:2", NONE),
        ("fe80::1234:5678:123abc:245e%3", NONE),
        ("\u0661.2.3.4", NONE),
        ("1" * 10_000, NONE),
    ],
)
def test_every_shape(text: str | None, expected: tuple[object, ...]) -> None:
    assert parse(text) == expected
    frame = canonical(pl.LazyFrame({"raw": [text]}, schema={"raw": pl.String}), "raw", "src").collect()
    assert frame.row(0) == (text, *expected)
    assert frame.schema == {
        "raw": pl.String, "src_ip": pl.String, "src_ip_key": pl.Binary, "src_port": pl.Int64, "src_net": pl.String,
    }  # fmt: skip


@given(st.ip_addresses())
@settings(max_examples=300, deadline=None)
def test_agrees_with_the_standard_library(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = getattr(address, "ipv4_mapped", None) or address
    ip, key, port, net = parse(f"[{address.exploded.upper()}]:7")
    width = 24 if mapped.version == 4 else 48
    assert (ip, port) == (str(mapped), 7)
    assert key == (MAPPED + mapped.packed if mapped.version == 4 else mapped.packed)
    assert net == str(ipaddress.ip_network((mapped, width), strict=False))


@given(st.text(max_size=90))
@settings(max_examples=300, deadline=None)
def test_never_raises(text: str) -> None:
    assert len(parse(text)) == 4


def test_order_stays_and_empty_frames_work() -> None:
    raw = ["10.0.0.2", None, "x", "10.0.0.1", "10.0.0.2"]
    assert canonical(pl.LazyFrame({"r": raw}), "r", "dst").collect()["dst_ip"].to_list() == [
        "10.0.0.2", None, None, "10.0.0.1", "10.0.0.2",
    ]  # fmt: skip
    assert canonical(pl.LazyFrame(schema={"r": pl.String}), "r", "dst").collect().height == 0


def _keys(*addresses: str | None) -> pl.LazyFrame:
    return canonical(pl.LazyFrame({"raw": addresses}, schema={"raw": pl.String}), "raw", "src")


def test_longest_prefix_wins() -> None:
    networks = pl.DataFrame(
        {
            "network": ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "::/0", "2001:db8::/32", "2001:db8:7::/48", None],
            "owner": ["eight", "sixteen", "one", "six", "doc", "seven", "nobody"],
            "kind": ["a", "b", "c", "d", "e", "f", "g"],
        }
    )
    found = networks_match(
        _keys("10.1.2.3", "10.1.2.4", "10.2.0.0", "11.0.0.0", "9.255.255.255", "2001:db8:7::1", "2001:db8:8::", "::1",
              "ffff::", None, "10.255.255.255"),
        "src_ip_key", networks, columns=["owner", "kind"], prefix="net_",
    ).collect()  # fmt: skip
    assert found["net_owner"].to_list() == [
        "one", "sixteen", "eight", None, None, "seven", "doc", "six", "six", None, "eight",
    ]  # fmt: skip
    assert found["net_kind"].to_list() == ["c", "b", "a", None, None, "f", "e", "d", "d", None, "a"]


def test_dates_decide_which_network_holds() -> None:
    first, second, third = (datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3))
    networks = pl.DataFrame(
        {
            "network": ["192.0.2.0/24", "192.0.2.0/25", "192.0.2.0/25"],
            "owner": ["wide", "old", "new"],
            "valid_from": [None, first, second],
            "valid_to": [None, second, third],
        },
        schema_overrides={"valid_from": pl.Datetime("us", "UTC"), "valid_to": pl.Datetime("us", "UTC")},
    )
    times = [datetime(2025, 12, 31, tzinfo=UTC), first, second, third, None]
    keys = _keys(*["192.0.2.1"] * 5).with_columns(pl.Series("ts", times, dtype=pl.Datetime("us", "UTC")))
    dated = networks_match(keys, "src_ip_key", networks, columns=["owner"], ts="ts").collect()
    assert dated["owner"].to_list() == ["wide", "old", "new", "wide", "new"]
    undated = networks_match(keys, "src_ip_key", networks, columns=["owner"]).collect()
    assert undated["owner"].to_list() == ["new"] * 5


def test_no_networks_and_no_rows() -> None:
    empty = pl.DataFrame(schema={"network": pl.String, "owner": pl.String, "kind": pl.String})
    assert networks_match(_keys("1.2.3.4"), "src_ip_key", empty).collect()["owner"].to_list() == [None]
    full = pl.DataFrame({"network": ["0.0.0.0/0", "ffff:ffff::/32"], "owner": ["all", "last"], "kind": ["k", "l"]})
    assert networks_match(_keys(), "src_ip_key", full).collect().height == 0
    assert networks_match(_keys("1.2.3.4", "ffff:ffff::1"), "src_ip_key", full).collect()["kind"].to_list() == [
        "k",
        "l",
    ]


def test_a_row_that_is_no_network_is_refused_with_its_place() -> None:
    with pytest.raises(RefusedError, match=r"row 2: '10\.0\.0\.0/33' is not a network"):
        compile_networks(pl.DataFrame({"network": ["10.0.0.0/8", "10.0.0.0/33"]}))


@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(112, 128)), max_size=12),
    st.lists(st.integers(0, 63), min_size=1),
)
@settings(max_examples=100, deadline=None)
def test_equals_the_plain_search(blocks: list[tuple[int, int]], low: list[int]) -> None:
    base = int(ipaddress.IPv6Address("2001:db8::"))
    nets = [ipaddress.ip_network((base + (start << 2), width), strict=False) for start, width in blocks]
    table = pl.DataFrame(
        {"network": [str(net) for net in nets], "row": range(len(nets))}, schema_overrides={"row": pl.Int64}
    )
    addresses = [ipaddress.IPv6Address(base + offset) for offset in low]
    found = networks_match(
        _keys(*map(str, addresses)),
        "src_ip_key",
        table.with_columns(network=pl.col("network").cast(pl.String)),
        columns=["row"],
    ).collect()
    expected = [max(((n.prefixlen, i) for i, n in enumerate(nets) if a in n), default=(0, None))[1] for a in addresses]
    assert found["row"].to_list() == expected


def test_an_address_is_parsed_once_however_many_rows_bear_it(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"10.{i % 5}.{i % 20}.{i % 25}:{i % 9}" for i in range(20_000)]
    parsed = []

    def counted(text: str) -> Any:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(addresses, "parse", counted)
    assert canonical(pl.LazyFrame({"raw": texts}), "raw", "src").collect()["src_ip"].null_count() == 0
    assert sorted(parsed) == sorted({text.partition(":")[0] for text in texts})
