"""Where an address lies, from databases in MaxMind's format (MMDB) that the analyst gives.

Records of MaxMind (GeoLite2, GeoIP2), DB-IP and IPinfo are understood: each names autonomous system, organisation,
country and kind of network in keys of its own. Specification: https://maxmind.github.io/MaxMind-DB/
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from transforms.addresses import encode

Lookup = Callable[[str], Any]  # an address as text -> the record of one database, or None

SCHEMA = {"src_asn": pl.Int64, "src_org": pl.String, "src_cc": pl.String, "src_class": pl.String}
_LONGEST = 200
_ASN = ("autonomous_system_number", "asn", "as_number")
_ORGANISATION = ("autonomous_system_organization", "as_name", "as_organization", "asname", "organization")
_COUNTRY = ("country", "registered_country")
_CODE = ("country_code", "countryCode")
# The most telling first. Names of the kinds as in the networks table.
_KINDS = (
    ("is_tor_exit_node", "tor"),
    ("is_residential_proxy", "residential_proxy"),
    ("is_anonymous_vpn", "vpn"),
    ("is_public_proxy", "proxy"),
    ("is_hosting_provider", "hosting"),
)


def place(rows: pl.LazyFrame, lookups: Sequence[Lookup]) -> pl.LazyFrame:
    """Fills src_asn, src_org, src_cc and src_class where they are null; what the analyst declared stays.

    Args:
        rows: column `src_ip`, canonical text; columns of these four names count as given.
        lookups: one per database; the first that tells something wins.
    """
    if not lookups:
        return rows
    given = dict(rows.collect_schema())
    have = [name for name in SCHEMA if name in given]
    out = given | {name: given.get(name, dtype) for name, dtype in SCHEMA.items()}

    def located(frame: pl.DataFrame) -> pl.DataFrame:
        distinct, at = encode(frame.get_column("src_ip"))
        told = [_told(address, lookups) for address in distinct.to_list()]
        found = pl.DataFrame(told, schema=SCHEMA, orient="row").select(pl.all().gather(at))
        first = {name: pl.coalesce(pl.lit(frame[name]), name) if name in have else pl.col(name) for name in SCHEMA}
        return frame.with_columns(found.select(**first)).select(list(out))

    return rows.map_batches(
        located, predicate_pushdown=False, projection_pushdown=False, slice_pushdown=False, schema=pl.Schema(out)
    )


def _told(address: str | None, lookups: Sequence[Lookup]) -> tuple[int | None, str | None, str | None, str | None]:
    if address is None:
        return None, None, None, None
    records = [record for lookup in lookups if isinstance(record := lookup(address), Mapping)]
    return (
        _first(records, _asn),
        _first(records, lambda r: _text(_of(r, _ORGANISATION))),
        _first(records, _country),
        _first(records, _kind),
    )


def _first(records: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Any]) -> Any:
    return next((value for record in records if (value := read(record)) is not None), None)


def _of(record: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((record[name] for name in names if record.get(name) not in {None, ""}), None)


def _text(value: Any) -> str | None:
    return value[:_LONGEST] if isinstance(value, str) else None


def _asn(record: Mapping[str, Any]) -> int | None:
    """IPinfo writes AS64496, the others the number."""
    digits = str(_of(record, _ASN) or "").upper().removeprefix("AS")
    return int(digits) if digits.isascii() and digits.isdigit() and int(digits) < 1 << 32 else None


def _country(record: Mapping[str, Any]) -> str | None:
    for name in _COUNTRY:
        value = record.get(name)
        code = value.get("iso_code") if isinstance(value, Mapping) else value
        if isinstance(code, str) and len(code) == 2:
            return code.upper()
    code = _of(record, _CODE)
    return code.upper() if isinstance(code, str) and len(code) == 2 else None


def _kind(record: Mapping[str, Any]) -> str | None:
    traits = record.get("traits")
    flags = record if not isinstance(traits, Mapping) else {**record, **traits}
    return next((kind for flag, kind in _KINDS if flags.get(flag) is True), None)
