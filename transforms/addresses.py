"""IP addresses: one canonical form from every way in which logs write them, and the networks that they lie in.

A canonical address has a text (RFC 5952, lower case, IPv4-mapped IPv6 as IPv4), a key (16 bytes in network order, IPv4
as ``::ffff:a.b.c.d``, RFC 4291 2.5.5.2, so that keys sort and compare as ranges) and a network (/24 or /48).

All work is done once per distinct value.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data_contracts.errors import RefusedError

KEY_BYTES = 16
MAPPED = bytes(10) + b"\xff\xff"  # first 12 bytes of an IPv4 address's key
LONGEST = 80  # characters of "[IPv6:" + address + "%" zone + "]:" + port; anything longer is no address

_FIELDS: dict[str, Any] = {"ip": pl.String, "ip_key": pl.Binary, "port": pl.Int64, "net": pl.String}
_UTC = pl.Datetime("us", "UTC")
_NONE = (None, None, None, None)
_WITH_PORT = r"^(?<ip>\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}):(?<port>\d{1,5})$"
_LAST_PORT = 65535

Parts = tuple[str | None, bytes | None, int | None, str | None]


def parse(text: str | None) -> Parts:
    """One address as a log writes it -> (ip, ip_key, port, net), all null when it is not an address.

    Understood: ``1.2.3.4``, ``1.2.3.4:99``, ``[1.2.3.4]``, ``[1.2.3.4]:99``, IPv6 in all its spellings with or without
    brackets, zone id, ``IPv6:`` tag (RFC 5321 4.1.3), and port (in brackets only, or after an embedded IPv4 address).
    Leading zeros in an octet are refused, because some programs read them as octal.
    """
    if not text or len(text) > LONGEST:
        return _NONE
    host, port = _split(text.strip(" \t\"'"))
    if host[:5].lower() == "ipv6:":
        host = host[5:]
    host = host.partition("%")[0]
    number = _port(port)
    if number is False:
        return _NONE
    try:
        if ":" not in host:
            return _version4(socket.inet_pton(socket.AF_INET, host), number)
        key = socket.inet_pton(socket.AF_INET6, host)
    except (OSError, ValueError):
        return _NONE
    if key.startswith(MAPPED):
        return _version4(key[12:], number)
    return _version6(key), key, number, f"{_version6(key[:6] + bytes(10))}/48"


def canonical(frame: pl.LazyFrame, raw: str, prefix: str) -> pl.LazyFrame:
    """Adds ``<prefix>_ip``, ``<prefix>_ip_key``, ``<prefix>_port``, ``<prefix>_net`` from the text column `raw`.

    Shape: the rows of `frame` in their order, four columns more (String, Binary of 16, Int64, String). A value that is
    not an address gives nulls; `raw` stays as it is. Columns of these names are replaced.
    """
    dtype = pl.Struct(_FIELDS)
    parts = pl.col(raw).cast(pl.String).map_batches(_parts, return_dtype=dtype)
    held = f"__{prefix}_address"
    return (
        frame.with_columns(parts.alias(held))
        .with_columns(pl.col(held).struct.field(name).alias(f"{prefix}_{name}") for name in _FIELDS)
        .drop(held)
    )


def _split(text: str) -> tuple[str, str | None]:
    """Host and port of one written address; the port as text, None when there is none."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return "", None
        return host, rest[1:] if rest else None
    tail = text.rpartition(".")[2] if "." in text else ""
    if ":" in tail:
        host, _, port = text.rpartition(":")
        return host, port
    return text, None


def _port(text: str | None) -> int | bool | None:
    """Port number, None for none written, False when it is not a port."""
    if text is None:
        return None
    if len(text) > 5 or not (text.isascii() and text.isdigit()) or int(text) > 65535:
        return False
    return int(text)


def _version4(four: bytes, port: int | None) -> Parts:
    net = f"{four[0]}.{four[1]}.{four[2]}."
    return f"{net}{four[3]}", MAPPED + four, port, f"{net}0/24"


def _version6(six: bytes) -> str:
    """RFC 5952 text. The C library is ten times as fast as `ipaddress`, but writes some addresses with an IPv4 tail."""
    text = socket.inet_ntop(socket.AF_INET6, six)
    return str(ipaddress.IPv6Address(six)) if "." in text else text


def _parts(values: pl.Series) -> pl.Series:
    """Struct of the four parts for every value; the conversion runs once per distinct value.

    An IPv4 address with a port is converted without it: ports are many, addresses few.
    """
    cut = values.str.extract_groups(_WITH_PORT).struct
    port = cut.field("port").cast(pl.Int64)
    port = port.set((port > _LAST_PORT).fill_null(value=False), None)
    bare = cut.field("ip").zip_with(port.is_not_null(), values)
    distinct, place = encode(bare)
    rows = [parse(value) for value in distinct.to_list()]
    columns = list(zip(*rows, strict=True)) or [()] * len(_FIELDS)
    found = pl.DataFrame(
        [pl.Series(name, column, dtype=dtype) for (name, dtype), column in zip(_FIELDS.items(), columns, strict=True)]
    )
    whole = found.to_struct().gather(place).struct.unnest()
    with_port = port.is_not_null() & whole["ip"].is_not_null()
    return whole.with_columns(whole["port"].zip_with(~with_port, port)).to_struct(values.name)


def encode(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Distinct values, and for each value its place among them (null for null). Half the time of unique and join."""
    encoded = values.to_arrow().dictionary_encode()
    return pl.Series(encoded.dictionary).cast(values.dtype), pl.Series(encoded.indices)


@dataclass(frozen=True, slots=True)
class NetworkIndex:
    """CIDR rows made ready for longest-prefix search; compile once, match many frames.

    CIDR blocks are nested or apart, so the space falls into runs, each with one innermost network, and each network has
    one next wider one. A key is found by binary search in the runs; then it climbs while a network does not hold at its
    time.
    """

    starts: NDArray[np.bytes_]  # first key of each run, ascending
    innermost: NDArray[np.int64]  # network (row of `networks`) of each run, -1 for none
    wider: NDArray[np.int64]  # next wider network of each network, -1 for none
    is_version4: NDArray[np.bool_]
    valid_from: NDArray[np.int64]  # microseconds since 1970, inclusive
    valid_to: NDArray[np.int64]  # exclusive
    networks: pl.DataFrame

    def rows_of(self, keys: pl.Series, ts: pl.Series | None = None) -> pl.Series:
        """Row of `networks` that holds each key (at its time), null where none does.

        Args:
            keys: Binary, 16 bytes; null or any other length finds nothing.
            ts: Datetime('us', 'UTC') of the same length. Without it, and where it is null, dates do not count.
        """
        distinct, place = encode(keys.set(keys.bin.size() != KEY_BYTES, None))
        packed = distinct.to_list()
        run = np.searchsorted(self.starts, _packed_array(packed), side="right") - 1
        four = np.fromiter((key.startswith(MAPPED) for key in packed), dtype=bool, count=len(packed))
        nearest = self._of_family(self.innermost[run], four)
        at = place.fill_null(-1).to_numpy()  # -1: the one appended for "no key"
        row, four = np.append(nearest, -1)[at], np.append(four, False)[at]
        if ts is not None:
            self._climb(row, four, ts)
        return pl.Series("network_row", row).replace(-1, None)

    def match(
        self,
        frame: pl.LazyFrame,
        key_col: str,
        columns: Sequence[str],
        *,
        ts: str | None = None,
        prefix: str = "",
    ) -> pl.LazyFrame:
        """Adds ``<prefix><column>`` of the narrowest network that holds the key, null where none does.

        Shape: the rows of `frame` in their order. `ts` names a Datetime('us', 'UTC') column; without it dates do not
        count.
        """
        chosen = self.networks.select(columns)
        dtype = pl.Struct(dict(chosen.schema))
        held = "__network"

        def look_up(parts: Sequence[pl.Series]) -> pl.Series:
            rows = self.rows_of(parts[0], parts[1] if ts is not None else None)
            return chosen.select(pl.all().gather(rows)).to_struct(held)

        inputs = [pl.col(key_col)] if ts is None else [pl.col(key_col), pl.col(ts)]
        return (
            frame.with_columns(pl.map_batches(inputs, look_up, return_dtype=dtype).alias(held))
            .with_columns(pl.col(held).struct.field(name).alias(f"{prefix}{name}") for name in columns)
            .drop(held)
        )

    def _of_family(self, row: NDArray[np.int64], four: NDArray[np.bool_]) -> NDArray[np.int64]:
        """An IPv6 network wider than ::ffff:0:0/96 does not hold IPv4 addresses, though their keys lie in it."""
        return np.where((row >= 0) & (self.is_version4[row] != four), -1, row)

    def _climb(self, row: NDArray[np.int64], four: NDArray[np.bool_], ts: pl.Series) -> None:
        """Replaces, in place, networks that do not hold at their time by the next wider one that does."""
        timed = ts.is_not_null().to_numpy()
        when = ts.cast(_UTC).to_physical().fill_null(0).to_numpy()
        open_ = np.flatnonzero((row >= 0) & timed)
        while open_.size:
            at, now = row[open_], when[open_]
            open_ = open_[(now < self.valid_from[at]) | (now >= self.valid_to[at])]
            row[open_] = self._of_family(self.wider[row[open_]], four[open_])
            open_ = open_[row[open_] >= 0]


def compile_networks(networks: pl.DataFrame, network: str = "network") -> NetworkIndex:
    """CIDR rows -> index for longest-prefix search.

    Args:
        networks: column `network` (CIDR or bare address, host bits allowed, rows where it is null never match) and, if
            dated, ``valid_from`` and ``valid_to`` (null: without limit). Any other column can be chosen in the match.
            Of rows with the same network, the one that begins last wins, then the lower row.
        network: name of the CIDR column.

    Raises:
        RefusedError: a row is not a network.
    """
    spans = [_span(text, place) for place, text in enumerate(networks[network].to_list())]
    begins = _microseconds(networks, "valid_from", np.iinfo(np.int64).min)
    ends = _microseconds(networks, "valid_to", np.iinfo(np.int64).max)
    order = sorted(
        (place for place, span in enumerate(spans) if span is not None),
        key=lambda place: (spans[place][0], -spans[place][1], begins[place], place),  # type: ignore[index]  # not None
    )
    starts, innermost, wider = _runs(spans, order)
    return NetworkIndex(
        starts=_packed_array([start.to_bytes(KEY_BYTES, "big") for start in starts]),
        innermost=np.array(innermost, dtype=np.int64),
        wider=np.array([*wider, -1], dtype=np.int64),
        is_version4=np.array([*(span is not None and span[2] for span in spans), False]),
        valid_from=begins,
        valid_to=ends,
        networks=networks,
    )


Span = tuple[int, int, bool]  # first key, last key, is it IPv4


def _span(text: str | None, place: int) -> Span | None:
    if text is None:
        return None
    try:
        block = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError as error:
        raise RefusedError(
            f"networks, row {place + 1}: {text[:LONGEST]!r} is not a network", "write it as CIDR, such as 192.0.2.0/24"
        ) from error
    base = 0 if block.version == 6 else int.from_bytes(MAPPED + bytes(4), "big")
    first, last = base + int(block.network_address), base + int(block.broadcast_address)
    return first, last, base > 0 or first >> 32 == 0xFFFF


def _runs(spans: list[Span | None], order: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Run starts, innermost network of each run, next wider network of each row; `order` is outer before inner."""
    starts, innermost, wider = [0], [-1], [-1] * len(spans)
    stack: list[tuple[int, int]] = []  # (last key, row), outermost first

    def begin(start: int, row: int) -> None:
        if starts[-1] == start:
            innermost[-1] = row
        elif start < 1 << 128:
            starts.append(start)
            innermost.append(row)

    def close(before: int | None) -> None:
        while stack and (before is None or stack[-1][0] < before):
            last, _ = stack.pop()
            begin(last + 1, stack[-1][1] if stack else -1)

    for row in order:
        first, last, _ = spans[row]  # type: ignore[misc]  # order holds only rows with a span
        close(first)
        wider[row] = stack[-1][1] if stack else -1
        stack.append((last, row))
        begin(first, row)
    close(None)
    return starts, innermost, wider


def _microseconds(frame: pl.DataFrame, column: str, default: int) -> NDArray[np.int64]:
    """Bound of validity per row, and one more for "no network"."""
    if column not in frame.columns:
        return np.full(frame.height + 1, default, dtype=np.int64)
    bound = frame[column].cast(_UTC).to_physical().fill_null(default).to_numpy()
    return np.append(bound, default)


def _packed_array(keys: Sequence[bytes]) -> NDArray[np.bytes_]:
    """Keys as fixed-width bytes, which compare as unsigned numbers do; trailing NULs are padding, as in the key."""
    return np.frombuffer(b"".join(keys), dtype=f"S{KEY_BYTES}")
