"""389 Directory Server (Red Hat Directory Server, FreeIPA): the access log, classic and JSON (3.1 and later).

Specification: https://www.port389.org/docs/389ds/design/logging-performance-improvement.html and the chapter on log
files of the Red Hat Directory Server reference. The lines are

    [21/Jul/2022:15:38:04.565520711 -0400] conn=104 fd=64 slot=64 connection from 192.0.2.1 to 192.0.2.2
    [21/Jul/2022:15:38:04.565520711 -0400] conn=104 op=0 BIND dn="cn=directory manager" method=128 version=3
    [21/Jul/2022:15:38:04.620125290 -0400] conn=104 op=0 RESULT err=0 tag=97 nentries=0 etime=0.054683120 dn="cn=..."

and the same fields as JSON objects, where `key` names the server's start and the connection. What they become: see
`transforms/ldap_rows.py`. In the classic log numbers of connections begin anew with the server, and a new connection
begins with `connection from`; operations that the server does itself are ignored.
"""

import re

import polars as pl

from transforms import jsonrows
from transforms import ldap_rows as ldap
from transforms import ldap_sessions as lines_of
from transforms.model import Context, Format, Head, Match

_STAMP = r"\[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d(?:\.\d{1,9})? [+-]\d{4}\]"
_SNIFFED = re.compile(rf"^{_STAMP} conn=")
# [21/Jul/2022:15:38:04.565520711 -0400] conn=1 (Internal) op=2(1)(1) SRCH ...
_LINE = (
    r"^\[([^\]]{20,40})\] conn=([0-9]{1,18}|Internal\([0-9]{1,18}\))( \(Internal\))?"
    r"(?: op=(-?[0-9]{1,9}))?(?:\([0-9]{1,9}\)\([0-9]{1,9}\))?(?: fd=-?[0-9]{1,9})?(?: slot=-?[0-9]{1,9})? (.*)$"
)
_TIME = "%d/%b/%Y:%H:%M:%S%.f %z"
_JSON_TIME = "%Y-%m-%dT%H:%M:%S%.f %z"
_VERB = r"^(?:SSL |LDAPI )?(connection from|HAProxy|[A-Za-z]+)"
_KINDS = {
    "connection from": lines_of.OPEN, "HAProxy": lines_of.CLIENT, "BIND": "bind", "SRCH": "search", "MOD": "update",
    "ADD": "create", "DEL": "delete", "MODRDN": "move", "CMP": "compare", "EXT": "extended",
    "RESULT": lines_of.RESULT, "ABANDON": lines_of.ABANDON, "closed": lines_of.CLOSED, "Disconnect": lines_of.CLOSED,
    "TLS": lines_of.TLS, "SSL": lines_of.TLS,
    **dict.fromkeys(("AUTOBIND", "UNPROCESSED", "SORT", "VLV", "STAT", "SESSION", "ENTRY", "REFERRAL"), lines_of.OTHER),
}  # fmt: skip
_CONNECTION = r"^(?:SSL |LDAPI )?connection from ([^ ]+) to \S"
_BIND = r'^BIND dn="(.*)" method=([^ ]+) version=[0-9]'
_SEARCH = r'^SRCH base="(.*?)" scope=-?[0-9]+ filter="(.*?)"(?: (?:attrs|authzid|options)=.*)?$'
_ENTRY = r'^(?:MOD|ADD|DEL|MODRDN|CMP) dn="(.*?)"(?:,? (?:newrdn|attr|authzid)=.*)?$'
_RESULT = r"^RESULT err=(-?[0-9]{1,6}) tag=([0-9]{1,6}) nentries=(-?[0-9]{1,15}) (?:.*)etime="
_WRITES = ("update", "create", "delete", "move", "compare")

_TEXT = pl.String()
_SCHEMA = pl.Struct(
    dict.fromkeys(
        (
            "local_time", "operation", "key", "conn_id", "op_id", "target_op", "client_ip", "tls", "bind_dn", "method",
            "mech", "base_dn", "filter", "target_dn", "oid", "msg", "tag", "err", "nentries", "internal_op",
            "tls_version", "keysize", "cipher",
        ),
        _TEXT,
    )
)  # fmt: skip
_OPERATIONS = {
    "CONNECTION": lines_of.OPEN, "HAPROXY": lines_of.CLIENT, "BIND": "bind", "SEARCH": "search", "MODIFY": "update",
    "ADD": "create", "DELETE": "delete", "MODRDN": "move", "COMPARE": "compare", "EXTENDED_OP": "extended",
    "RESULT": lines_of.RESULT, "ABANDON": lines_of.ABANDON, "DISCONNECT": lines_of.CLOSED,
    "TLS_INFO": lines_of.TLS, "TLS_CLIENT_INFO": lines_of.OTHER,
    **dict.fromkeys(
        ("AUTOBIND", "UNPROCESSED_OPERATION", "UNPROCESSED_OP", "SORT", "VLV", "STAT", "SESSION", "ENTRY", "REFERRAL"),
        lines_of.OTHER,
    ),
}  # fmt: skip
_JSON_SNIFFED = re.compile(r'"local_time"\s*:\s*"\d{4}-[^"]{15,40}"\s*,\s*"operation"\s*:\s*"[A-Z_]+"')
_DAMAGED = "ds389: line cut or damaged"


def sniff(head: Head) -> Match | None:
    """Claim lines that begin with a time in brackets and a connection, or JSON objects of an operation."""
    lines = [line for line in head.lines[:400] if line.strip()]
    found = sum(_SNIFFED.match(line[:100]) is not None for line in lines)
    if found and found >= len(lines) // 2:
        return Match(0.95, f"{found} of the first {len(lines)} lines have the time and connection of an access log")
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] not in ("{", "[") or not _JSON_SNIFFED.search(start):
        return None
    whole = head.lines and _JSON_SNIFFED.search(head.lines[0]) and start[0] == "{"
    if whole or (len(head.lines) > 1 and _JSON_SNIFFED.search(head.lines[1]) and head.lines[1].startswith("{")):
        return Match(0.95, "access log as JSON, one object a line", "lines", "jsonl")
    return Match(0.95, "access log as JSON", "json", "json")


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: access_events, continuation, ignored or quarantined. `ctx` keeps the connections."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw")
    lines = _json(frame) if ctx.variant else _classic(frame)
    lines = lines.with_columns(pl.lit(None, pl.String).alias("host"), pl.lit("offset").alias("ts_basis"))
    return ldap.events(lines.collect(), ctx, "ds389", ends_requests=False)


def _classic(frame: pl.LazyFrame) -> pl.LazyFrame:
    names = ["ts_raw", "connection", "internal", "op", "rest"]
    lines = frame.with_columns(pl.col("raw").str.extract_groups(_LINE).struct.rename_fields(names).alias("_"))
    lines = lines.unnest("_").with_columns(verb=pl.col("rest").str.extract(_VERB), op=pl.col("op").cast(pl.Int64))
    rest, verb, kind = pl.col("rest"), pl.col("verb"), pl.col("kind")
    lines = lines.with_columns(
        ts=pl.col("ts_raw").str.to_datetime(_TIME, time_unit="us", strict=False),
        kind=pl.when(rest.str.contains(" client bound as |client certificate", literal=False))
        .then(pl.lit(lines_of.OTHER))
        .otherwise(verb.replace_strict(_KINDS, default=None, return_dtype=pl.String)),
    ).with_columns(ts=pl.col("ts").dt.convert_time_zone("UTC"))
    lines = lines.with_columns(**_read())
    lost = (
        rest.is_null() | pl.col("ts").is_null()
        | ((kind == lines_of.OPEN) & ~rest.str.contains(_CONNECTION))
        | ((kind == "bind") & ~rest.str.contains(_BIND))
        | (kind.is_in(["search", *_WRITES]) & pl.col("base").is_null())
        | ((kind == lines_of.RESULT) & pl.col("code").is_null())
    ).fill_null(value=False)  # fmt: skip
    begun = pl.col("raw").str.starts_with("[")
    own = pl.col("internal").is_not_null() | pl.col("connection").str.starts_with("Internal")
    return lines.with_columns(
        refusal=pl.when(lost & begun & ~own.fill_null(value=False)).then(pl.lit(_DAMAGED)),
        reason=pl.when(pl.col("raw").str.strip_chars() == "").then(pl.lit("blank line"))
        .when(~begun).then(pl.lit("ds389: line without a time"))
        .when(own).then(pl.lit("ds389: operation of the server itself"))
        .when(verb == "UNBIND").then(pl.lit("ds389: unbind"))
        .when(kind.is_null() & ~lost).then(pl.lit("ds389: no access in the line")),
    )  # fmt: skip


def _read() -> dict[str, pl.Expr]:
    """FIELDS of ldap_rows from a classic line."""
    kind = pl.col("kind")

    def of(*kinds: str) -> pl.Expr:
        return pl.when(kind.is_in(kinds)).then("rest")

    opened, bind, result, secured = of(lines_of.OPEN).str, of("bind").str, of(lines_of.RESULT).str, of(lines_of.TLS).str
    search, told = of("search").str.extract_groups(_SEARCH).struct, result.extract_groups(_RESULT).struct
    address = opened.extract(_CONNECTION)
    version = secured.extract(r"^(?:TLS|SSL)([0-9.]{1,4}) ")
    return {
        "key": pl.col("connection"),
        "session": pl.col("connection"),
        "op": pl.when(kind == lines_of.ABANDON).then(
            of(lines_of.ABANDON).str.extract(r"(?:^| )targetop=([0-9]{1,9}) ").cast(pl.Int64)
        ).otherwise("op"),
        "verb": pl.when(kind == "extended").then(
            pl.lit("EXT") + of("extended").str.extract(r'^EXT( oid="[0-9.]{1,100}")').fill_null("")
        ).otherwise("verb"),
        "address": pl.coalesce(
            pl.when(address != "local").then(address), of(lines_of.CLIENT).str.extract(r"new_address_from=([^ ]+)")
        ),
        "dn": pl.coalesce(bind.extract(_BIND), result.extract(r' dn="(.*)"$')),
        "base": pl.coalesce(search[0], of(*_WRITES).str.extract(_ENTRY)),
        "filter": search[1],
        "attributes": pl.lit(None, pl.String),
        "mech": pl.when(bind.contains('" method=128 ', literal=True)).then(pl.lit("SIMPLE"))
        .otherwise(bind.extract(r" version=[0-9]+ mech=([A-Za-z0-9_-]{1,40})")),
        "code": told[0].cast(pl.Int64, strict=False),
        "tag": told[1].cast(pl.Int64, strict=False),
        "entries": pl.coalesce(
            told[2], of(lines_of.ABANDON).str.extract(r"(?:^| )nentries=([0-9]{1,15}) ")
        ).cast(pl.Int64, strict=False),
        "text": result.extract(r"etime=[0-9.]+(?:,| -) (.*)$"),
        "tls_version": pl.when(kind == lines_of.TLS).then(
            pl.coalesce(pl.lit("TLSv") + version, pl.lit("TLS"))
        ).when(opened.starts_with("SSL ")).then(pl.lit("TLS")),
        "tls_cipher": secured.extract(r"^[^ ]+ ([0-9]{1,5}-bit [^\s;]{1,60})"),
    }  # fmt: skip


def _json(frame: pl.LazyFrame) -> pl.LazyFrame:
    decoded = jsonrows.decode(frame, _SCHEMA).with_columns(pl.col("j").struct.unnest()).drop("j")
    number = {
        name: pl.col(name).cast(pl.Int64, strict=False) for name in ("op_id", "target_op", "tag", "err", "nentries")
    }
    kind = pl.col("operation").replace_strict(_OPERATIONS, default=None, return_dtype=pl.String)
    lines = decoded.with_columns(
        ts_raw=pl.col("local_time"),
        ts=pl.col("local_time").str.to_datetime(_JSON_TIME, time_unit="us", strict=False),
        kind=kind,
    ).with_columns(ts=pl.col("ts").dt.convert_time_zone("UTC"))
    kind = pl.col("kind")
    simple = (pl.col("method") == "128").fill_null(value=False)
    version = pl.when(kind == lines_of.TLS).then(pl.coalesce("tls_version", pl.lit("TLS")))
    secure = (kind == lines_of.OPEN) & (pl.col("tls") == "true")
    address = pl.when(kind.is_in([lines_of.OPEN, lines_of.CLIENT]) & (pl.col("client_ip") != "local")).then("client_ip")
    lines = lines.with_columns(
        key=pl.coalesce("key", "conn_id"), session=pl.coalesce("key", "conn_id"),
        op=pl.when(kind == lines_of.ABANDON).then(number["target_op"]).otherwise(number["op_id"]),
        verb=pl.concat_str("operation", pl.when(kind == "extended").then("oid"), separator=" ", ignore_nulls=True),
        address=address, dn=pl.col("bind_dn"), base=pl.coalesce("base_dn", "target_dn"),
        attributes=pl.lit(None, pl.String),
        mech=pl.when(simple).then(pl.lit("SIMPLE")).otherwise("mech"),
        code=number["err"], tag=number["tag"], entries=number["nentries"], text=pl.col("msg"),
        tls_version=pl.when(secure).then(pl.lit("TLS")).otherwise(version.str.replace("^TLS([0-9])", "TLSv$1")),
        tls_cipher=pl.when(kind == lines_of.TLS).then(
            pl.concat_str(pl.col("keysize") + "-bit", "cipher", separator=" ", ignore_nulls=True)
        ),
    )  # fmt: skip
    operation = pl.col("operation")
    lost = pl.col("key").is_null() | ((kind == lines_of.RESULT) & pl.col("code").is_null())
    return lines.with_columns(
        refusal=pl.when("bad_json").then(pl.lit("ds389: no JSON object"))
        .when(operation.is_not_null() & pl.col("ts").is_null()).then(pl.lit("ds389: time not readable"))
        .when(operation.is_not_null() & lost).then(pl.lit("ds389: no connection or result in the object")),
        reason=pl.when(operation.is_null()).then(pl.lit("ds389: object without an operation"))
        .when(pl.col("internal_op") == "true").then(pl.lit("ds389: operation of the server itself"))
        .when(operation == "UNBIND").then(pl.lit("ds389: unbind"))
        .when(kind.is_null()).then(pl.lit("ds389: no access in the line")),
    )  # fmt: skip


FORMAT = Format(
    name="ds389",
    title="389 Directory Server access log",
    spec="https://www.port389.org/docs/389ds/design/logging-performance-improvement.html",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "only the connection's own line has the client's address: connections begun before the log begins have none",
        "what a search returned is counted, not named",
        "a certificate that binds is told by its name, not by its thumbprint",
        "the log is buffered: its last seconds are lost when the server stops hard",
    ),
)
