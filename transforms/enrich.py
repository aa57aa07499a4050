"""What every event gets, whatever its format: identity, day, tenant, addresses, network, client fingerprint."""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from transforms.addresses import NetworkIndex, canonical, compile_networks
from transforms.clients import with_clients
from transforms.geo import Lookup, place

_UID_EVIDENCE = 24  # hex digits of the evidence's hash in an event_uid; 16 more hold the offset
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
_GUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"
_PRIVATE = pl.DataFrame(
    {
        "network": [
            "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8",
            "169.254.0.0/16", "fc00::/7", "fe80::/10", "::1/128",
        ],
        "kind": ["private"] * 8,
    }
)  # fmt: skip  # RFC 1918, 1122, 3927, 4193, 4291


@dataclass(frozen=True)
class References:
    """The reference tables as enrichment uses them; any may be empty."""

    tenants: pl.DataFrame
    networks: pl.DataFrame
    asn: pl.DataFrame
    geo: tuple[Lookup, ...] = ()

    @cached_property
    def tenant_by_id(self) -> pl.DataFrame:
        """[given, canonical]: every id that names a tenant, lower case; ids that name two tenants are left out."""
        t = self.tenants
        named = [
            t.select(pl.col(column).str.to_lowercase().alias("given"), pl.col("tenant_id").alias("canonical"))
            for column in ("tenant_id", "acc", "entra_tenant_id")
        ]
        return _single(pl.concat(named))

    @cached_property
    def tenant_by_domain(self) -> pl.DataFrame:
        """[given, canonical]: mail domains, lower case; a domain that two tenants claim is left out."""
        domains = self.tenants.select(
            pl.col("domain").str.to_lowercase().str.split(";").alias("given"), pl.col("tenant_id").alias("canonical")
        ).explode("given", empty_as_null=True)
        return _single(domains.with_columns(pl.col("given").str.strip_chars()))

    @cached_property
    def network_index(self) -> NetworkIndex:
        """Declared networks, with the private ranges below them."""
        declared = self.networks.select("network", "kind", "owner", "valid_from", "valid_to")
        return compile_networks(pl.concat([_PRIVATE, declared], how="diagonal_relaxed"))

    @cached_property
    def asn_index(self) -> NetworkIndex | None:
        """Prefixes and autonomous systems, None when there are none."""
        if not self.asn.height:
            return None
        return compile_networks(self.asn.select("prefix", "asn", "organisation", "country"), "prefix")


def _single(pairs: pl.DataFrame) -> pl.DataFrame:
    known = pairs.drop_nulls().filter(pl.col("given") != "").unique()
    return known.filter(pl.col("given").is_unique())


def hex_offsets(offsets: pl.Series) -> pl.Series:
    """16 hex digits for each byte offset."""
    import pyarrow as pa

    count = len(offsets)
    text = np.empty((count, 16), dtype=np.uint8)
    eight = offsets.to_numpy().astype(">i8").view(np.uint8).reshape(count, 8)
    text[:, 0::2] = _HEX[eight >> 4]
    text[:, 1::2] = _HEX[eight & 15]
    bounds = np.arange(0, 16 * count + 1, 16, dtype=np.int64)
    array = pa.LargeStringArray.from_buffers(count, pa.py_buffer(bounds), pa.py_buffer(text))
    return pl.Series(offsets.name, pl.from_arrow(array))


def place_uid() -> pl.Expr:
    """40 hex digits from the columns evidence_id and byte_offset: 24 of the evidence's sha256 and 16 of the offset."""
    offset = pl.col("byte_offset").map_batches(hex_offsets, return_dtype=pl.String)
    return pl.concat_str(pl.col("evidence_id").str.slice(0, _UID_EVIDENCE), offset)


def _source_uids(ids: pl.Series, source: str) -> pl.Series:
    """40 hex digits for each of the source's own record ids: a GUID's 32 and 8 of the source's name, else a hash."""
    tag = hashlib.sha256(source.encode()).hexdigest()[:8]
    guid = pl.col("id").str.contains(_GUID)
    frame = pl.DataFrame({"id": ids}).with_columns(
        pl.when(guid).then(pl.col("id").str.replace_all("-", "", literal=True).str.to_lowercase() + tag).alias("uid")
    )
    if (frame["id"].is_not_null() & frame["uid"].is_null()).any():
        other = frame.filter(pl.col("id").is_not_null() & pl.col("uid").is_null())["id"].unique().to_list()
        hashed = {i: hashlib.sha256(f"{source}\x00{i}".encode()).hexdigest()[:40] for i in other}
        return frame.select(
            pl.coalesce("uid", pl.col("id").replace_strict(hashed, default=None, return_dtype=pl.String))
        )["uid"]
    return frame["uid"]


def _family(source: str) -> str:
    """Sources whose record ids are one space: exports of the same service."""
    return "entra_signin" if source.startswith("entra_") and source.endswith("_signin") else source


def identified(rows: pl.DataFrame) -> pl.DataFrame:
    """Adds event_uid, date, and `has_id`: whether the source's own id makes the event_uid."""
    rows = rows.with_columns(
        place_uid().alias("event_uid"), pl.col("ts").dt.date().alias("date"), pl.lit(value=False).alias("has_id")
    )
    if "source_id" not in rows.columns:
        return rows
    parts = []
    for (source,), part in rows.group_by("source", maintain_order=True):
        own = _source_uids(part["source_id"], _family(str(source))).alias("own")
        parts.append(
            part.with_columns(own).with_columns(
                pl.coalesce("own", "event_uid").alias("event_uid"), pl.col("own").is_not_null().alias("has_id")
            )
        )
    return pl.concat(parts).drop("own", "source_id") if parts else rows.drop("source_id")


def with_tenant(rows: pl.DataFrame, refs: References) -> pl.DataFrame:
    """Canonical tenant_id and tenant_basis: from the record, else by a domain's reference, else given, else none."""
    missing = [c for c in ("tenant_id", "tenant_domain", "given_tenant_id") if c not in rows.columns]
    rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias(c) for c in missing)
    own = pl.col("tenant_id").replace("", None)
    by_id, by_domain = refs.tenant_by_id, refs.tenant_by_domain
    canonical_id = own.str.to_lowercase().replace_strict(
        by_id["given"], by_id["canonical"], default=None, return_dtype=pl.String
    )
    domain_id = (
        pl.col("tenant_domain").str.to_lowercase().str.strip_chars_end(".")
        .replace_strict(by_domain["given"], by_domain["canonical"], default=None, return_dtype=pl.String)
    )  # fmt: skip
    given = pl.col("given_tenant_id")
    return rows.with_columns(
        pl.coalesce(canonical_id, own, domain_id, given).alias("tenant_id"),
        pl.when(own.is_not_null()).then(pl.lit("record"))
        .when(domain_id.is_not_null()).then(pl.lit("reference"))
        .when(given.is_not_null()).then(pl.lit("given"))
        .otherwise(pl.lit("none")).alias("tenant_basis"),
    ).drop("tenant_domain", "given_tenant_id")  # fmt: skip


def enrich(rows: pl.DataFrame, table: str, refs: References) -> pl.DataFrame:
    """Event rows of one table with everything that does not depend on the format.

    Args:
        rows: rows of any formats and pieces of evidence, with the columns that the formats fill, evidence_id and, where
            the collection sheet tells them, given_tenant_id and given_host.
        table: event table.
        refs: reference tables.
    """
    rows = with_tenant(identified(rows), refs)
    lazy = rows.lazy()
    if "given_host" in rows.columns:
        hosts = [c for c in ("host", "given_host") if c in rows.columns]
        lazy = lazy.with_columns(pl.coalesce(hosts).alias("host")).drop("given_host")
    if "src_ip_raw" in rows.columns:
        lazy = _placed(canonical(lazy, "src_ip_raw", "src"), refs)
    if "dst_ip_raw" in rows.columns:
        lazy = canonical(lazy, "dst_ip_raw", "dst")
    if table == "mail_events" and "rcpt" in rows.columns:
        domain = pl.col("rcpt").str.extract(r"@([^@]+)$").str.to_lowercase().str.strip_chars(">")
        lazy = lazy.with_columns(domain.alias("rcpt_domain"))
    if table == "access_events":
        lazy = with_clients(lazy)
    return lazy.collect()


def _placed(lazy: pl.LazyFrame, refs: References) -> pl.LazyFrame:
    """src_class and src_org from the declared networks, src_asn, src_org and src_cc from the prefixes; then what the
    databases of addresses tell."""
    lazy = refs.network_index.match(lazy, "src_ip_key", ["kind", "owner"], ts="ts", prefix="__net_")
    lazy = lazy.with_columns(pl.col("__net_kind").alias("src_class"), pl.col("__net_owner").alias("src_org"))
    if (index := refs.asn_index) is not None:
        lazy = index.match(lazy, "src_ip_key", ["asn", "organisation", "country"], prefix="__as_")
        lazy = lazy.with_columns(
            pl.col("__as_asn").alias("src_asn"), pl.col("__as_country").alias("src_cc"),
            pl.coalesce("src_org", "__as_organisation").alias("src_org"),
        ).drop("__as_asn", "__as_country", "__as_organisation")  # fmt: skip
    return place(lazy.drop("__net_kind", "__net_owner"), refs.geo)
