"""OpenLDAP slapd: the statistics log (loglevel 256), through syslog or as slapd itself writes it.

Specification: slapd.conf(5) and slapd-config(5) at https://www.openldap.org/software/man.cgi (loglevel, logfile,
logfile-format). The lines are

    conn=1022 fd=21 ACCEPT from IP=192.0.2.1:45011 (IP=0.0.0.0:636)
    conn=1022 op=1 BIND dn="cn=add,dc=tenant,dc=example" method=128
    conn=1022 op=1 RESULT tag=97 err=49 text=
    conn=1022 op=2 SRCH base="dc=tenant,dc=example" scope=2 deref=0 filter="(uid=a)"
    conn=1022 op=2 SEARCH RESULT tag=101 err=0 qtime=0.000012 etime=0.000103 nentries=1 text=

behind a syslog header, or behind the seconds since 1970 in hexadecimal (2.5 and later with a fraction and a thread:
`5f6d2015 ` and `681a12ed.337a96ce 0x7a31563fe6c0 `). What the lines become: see `transforms/ldap_rows.py`.

Numbers of connections begin anew with the daemon: a connection is named by host, process id and number, and an ACCEPT
begins a new one. The daemon's threads write for themselves, so lines may stand out of order: see
`transforms/ldap_sessions.py`. ABANDON names a message, not an operation: the request that it gives up becomes an event
where its connection ends.
"""

import re

import polars as pl

from transforms import ldap_rows as ldap
from transforms import ldap_sessions as lines_of
from transforms.model import Context, Format, Head, Match
from transforms.syslog import refusal

# 681a12ed.337a96ce 0x7a31563fe6c0 conn=1000 fd=12 ACCEPT ...
_HEX = r"^([0-9a-f]{8})(?:\.([0-9a-f]{8}|[0-9a-f]{5}))?(?: 0x[0-9a-f]{1,16})? +(.*)$"
_SNIFFED = re.compile(r"^[0-9a-f]{8}(?:\.[0-9a-f]{5,8})?(?: 0x[0-9a-f]{1,16})? (.*)$")
# conn=1022 op=1 RESULT ...
_LINE = r"^conn=(-?[0-9]{1,18}) (?:op=([0-9]{1,9})|fd=-?[0-9]{1,9}) (.*)$"
_STARTED = r"^(?:slapd starting|@\(#\) \$OpenLDAP: slapd )"
_VERB = r"^(SEARCH RESULT|TLS established|[A-Za-z]+)"
_KINDS = {
    "ACCEPT": lines_of.OPEN, "TLS established": lines_of.TLS, "BIND": "bind", "SRCH": "search", "MOD": "update",
    "ADD": "create", "DEL": "delete", "MODRDN": "move", "CMP": "compare", "EXT": "extended",
    "RESULT": lines_of.RESULT, "SEARCH RESULT": lines_of.RESULT, "closed": lines_of.CLOSED,
}  # fmt: skip
_PARTS = ("STARTTLS", "PASSMOD", "WHOAMI", "ENTRY", "INTERM", "ABANDON", "CANCEL", "PROXYAUTHZ", "REFERRAL")
_ADDRESS = r"^ACCEPT from (?:IP=([^ ]+)|PATH=[^ ]+)"
_BIND = r'^BIND dn="(.*)" method=[0-9]'
_BIND_MORE = r'^BIND (?:anonymous mech|authcid=|dn=".*" mech=)'
_SEARCH = r'^SRCH base="(.*?)" scope=[0-9].* filter="(.*)"$'
_ENTRY = r'^(?:MOD|ADD|DEL|MODRDN|CMP) dn="(.*)"'
_RESULT = r"(?:^| )err=([0-9]{1,6}) (?:.*?)?text="
_TOLD_WRONG = "openldap: line cut or damaged"


def sniff(head: Head) -> Match | None:
    """Claim slapd's own log file by its times in hexadecimal and its connections."""
    stamped = [found[1] for line in head.lines[:400] if (found := _SNIFFED.match(line[:200]))]
    if not stamped or len(stamped) < len(head.lines[:400]) // 2:
        return None
    of_connections = sum(text.startswith("conn=") for text in stamped)
    if not of_connections and not any("slapd" in text for text in stamped):
        return None
    return Match(
        0.95 if of_connections else 0.4, f"{of_connections} lines of connections behind slapd's hexadecimal time"
    )


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per line: access_events, continuation, ignored or quarantined.

    Args:
        records: SYSLOG_SCHEMA, or RECORD_SCHEMA for slapd's own log file.
        ctx: keeps the connections from block to block.
    """
    if "program" in records.collect_schema().names():
        lines = records.with_columns(refusal=refusal(ctx))
    else:
        lines = _own_file(records)
    return ldap.events(_fields(lines).collect(), ctx, "openldap", ends_requests=True)


def _own_file(records: pl.LazyFrame) -> pl.LazyFrame:
    """Reads the time of slapd's own file: seconds since 1970, and nanoseconds (8 digits) or microseconds (5)."""
    groups = pl.col("raw").str.extract_groups(_HEX).struct.rename_fields(["seconds", "fraction", "message"])
    fraction = pl.col("fraction").str.to_integer(base=16, strict=False).fill_null(0)
    micros = pl.when(pl.col("fraction").str.len_bytes() == 8).then(fraction // 1000).otherwise(fraction)
    seconds = pl.col("seconds").str.to_integer(base=16, strict=False)
    stamp = pl.concat_str("seconds", "fraction", separator=".", ignore_nulls=True)
    blank = pl.col("raw").str.strip_chars() == ""
    told = pl.col("message").is_not_null()
    return records.with_columns(groups.alias("_")).unnest("_").with_columns(
        (seconds * 1_000_000 + micros).cast(pl.Datetime("us", "UTC")).alias("ts"),
        pl.when(told).then(stamp).alias("ts_raw"),
        pl.lit("utc").alias("ts_basis"),
        pl.lit(None, pl.String).alias("host"),
        pl.lit(None, pl.String).alias("pid"),
        pl.col("message").fill_null(""),
        # Lines that go on: the second line of the daemon's banner begins with a blank.
        pl.when(~told & ~blank & ~pl.col("raw").str.contains(r"^\s")).then(pl.lit("openldap: line without a time"))
        .when(pl.col("message").str.len_bytes() > 32 << 10).then(pl.lit("openldap: line is longer than 32 KiB"))
        .alias("refusal"),
    )  # fmt: skip


def _fields(lines: pl.LazyFrame) -> pl.LazyFrame:
    """PLACE and FIELDS of ldap_rows."""
    groups = pl.col("message").str.extract_groups(_LINE).struct.rename_fields(["connection", "op", "rest"])
    lines = lines.with_columns(groups.alias("_")).unnest("_")
    lines = lines.with_columns(verb=pl.col("rest").str.extract(_VERB), op=pl.col("op").cast(pl.Int64))
    rest, verb = pl.col("rest"), pl.col("verb")
    more = ((verb == "BIND") & rest.str.contains(_BIND_MORE)) | (rest.str.contains(r"^(?:SRCH|MOD) attr="))
    kind = (
        pl.when(more).then(pl.lit(lines_of.DETAIL))
        .when(verb.is_in(_PARTS)).then(pl.lit(lines_of.OTHER))
        .when(pl.col("message").str.contains(_STARTED)).then(pl.lit(lines_of.START))
        .otherwise(verb.replace_strict(_KINDS, default=None, return_dtype=pl.String))
    )  # fmt: skip
    lines = lines.with_columns(kind=kind)
    return lines.with_columns(**_read()).with_columns(refusal=pl.coalesce("refusal", _trouble()), reason=_nothing())


def _read() -> dict[str, pl.Expr]:
    kind, verb = pl.col("kind"), pl.col("verb")

    def of(*kinds: str) -> pl.Expr:
        return pl.when(kind.is_in(kinds)).then("rest")

    bind = of("bind", lines_of.DETAIL).str
    search = of("search").str.extract_groups(_SEARCH).struct
    result, secured = of(lines_of.RESULT).str, of(lines_of.TLS).str
    connection = pl.col("connection")
    server = pl.concat_str(pl.col("host").fill_null(""), pl.col("pid").fill_null(""), separator=lines_of.SEPARATOR)
    simple = bind.contains(r'" method=128$').fill_null(value=False)
    return {
        "key": pl.when(kind == lines_of.START).then(server)
        .otherwise(pl.concat_str(server, connection, separator=lines_of.SEPARATOR)),
        "session": pl.concat_str(pl.col("pid"), connection, separator=":", ignore_nulls=True),
        "verb": pl.when(kind == "extended").then(of("extended").str.extract(r"^(EXT(?: oid=[0-9.]{1,100})?)"))
        .otherwise(verb),
        "address": of(lines_of.OPEN).str.extract(_ADDRESS),
        "dn": pl.coalesce(
            bind.extract(_BIND), bind.extract(r'^BIND dn="(.*)" mech='), bind.extract(r'authcid="([^"]*)"')
        ),
        "base": pl.coalesce(search[0], of("update", "create", "delete", "move", "compare").str.extract(_ENTRY)),
        "filter": search[1],
        "attributes": pl.when(kind == lines_of.DETAIL).then(pl.col("rest").str.extract(r"^MOD (attr=.*)$")),
        "mech": pl.when(simple).then(pl.lit("SIMPLE"))
        .otherwise(bind.extract(r'(?:"|^BIND anonymous) mech=([A-Za-z0-9_-]{1,40})(?: |$)')),
        "code": result.extract(_RESULT).cast(pl.Int64, strict=False),
        "tag": result.extract(r"(?:^| )tag=([0-9]{1,4}) ").cast(pl.Int64, strict=False),
        "entries": result.extract(r"(?:^| )nentries=([0-9]{1,15}) text=").cast(pl.Int64, strict=False),
        "text": result.extract(r" text=(.*)$"),
        "tls_version": pl.when(kind == lines_of.TLS).then(
            pl.coalesce(
                # GnuTLS names it TLS1.3
                secured.extract(r"(?:^| )tls_proto=([^ ]{1,20})").str.replace(r"^TLS(\d)", "TLSv$1"),
                pl.lit("TLS"),
            )
        ),
        "tls_cipher": secured.extract(r"(?:^| )tls_cipher=([^ ]{1,80})"),
    }  # fmt: skip


def _trouble() -> pl.Expr:
    """Why a line of a connection cannot be read; null for the others."""
    kind, rest = pl.col("kind"), pl.col("rest")
    entry = kind.is_in(["update", "create", "delete", "move", "compare"])
    lost = (
        (pl.col("message").str.starts_with("conn=") & rest.is_null())
        | (pl.col("verb") == "SEARCH")
        | ((kind == lines_of.OPEN) & ~rest.str.contains(_ADDRESS + r" \("))
        | ((kind == "bind") & ~rest.str.contains(_BIND + r"[0-9]+$"))
        | ((kind == "search") & pl.col("base").is_null())
        | (entry & pl.col("base").is_null())
        | ((kind == lines_of.RESULT) & pl.col("code").is_null())
    )
    return pl.when(lost.fill_null(value=False)).then(pl.lit(_TOLD_WRONG))


def _nothing() -> pl.Expr:
    """Why a line is ignored; null for the others."""
    return (
        pl.when(pl.col("message").str.strip_chars() == "").then(pl.lit("blank line"))
        .when(pl.col("connection") == "-1").then(pl.lit("openldap: operation of the server itself"))
        .when(pl.col("verb") == "UNBIND").then(pl.lit("openldap: unbind"))
        .when(pl.col("kind").fill_null(lines_of.START) == lines_of.START)
        .then(pl.lit("openldap: no access in the line"))
    )  # fmt: skip


FORMAT = Format(
    name="openldap",
    title="OpenLDAP slapd statistics log",
    spec="https://www.openldap.org/software/man.cgi?query=slapd.conf",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    programs="slapd",
    gaps=(
        "only ACCEPT has the client's address: connections begun before the log begins have none",
        "what a search returned is counted, not named",
        "a bind that is broken off between its SASL steps leaves no event",
        "PROXYAUTHZ is not followed: an operation is put down to who is bound",
        "events of lines out of order across the border of two blocks may lack address or identity",
        "at most 100,000 connections are remembered at a time",
    ),
)
