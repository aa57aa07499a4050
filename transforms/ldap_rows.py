"""LDAP operations to rows of access_events, whatever server logged them.

A directory server writes one line for the connection (only that one has the client's address), one for each request and
one for each result, joined by the numbers of the connection and the operation. The rows made here:

- the connection's own line is a `connect`;
- the *result* is the event of its operation, because it has the outcome and the counts, and no row can change once its
  block is done; it takes base, filter and identity from the request. The request is its `continuation`;
- of a request that was given up (ABANDON), or whose connection ended before its result, the line that says so is the
  event, with an unknown outcome. A result that comes after all the same is a `continuation`;
- a step of a SASL bind (err=14) is a `continuation` of the bind that ends it.

Identity (RFC 4511 4.2.1): a bind request makes the connection anonymous until a bind succeeds. An operation belongs to
the identity that was bound when it was asked for.
"""

import polars as pl

from transforms.ldap_sessions import (
    ABANDON,
    CLOSED,
    DROPPED,
    EVENT,
    OPEN,
    RESULT,
    START,
    STATE_SCHEMA,
    Sessions,
    Walk,
)
from transforms.model import CONTINUATION, IGNORED, QUARANTINED, Context

PLACE = ("record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host")
_T, _N = pl.String(), pl.Int64()
FIELDS = {
    "kind": _T,  # a kind of line of ldap_sessions; null: no line of an operation, `refusal` or `reason` says why
    "key": _T,  # the connection: as unique as the log has it
    "session": _T,  # the same as the source names it
    "op": _N,  # number of the operation; of ABANDON that of the operation given up
    "verb": _T,  # the request as the source names it
    "address": _T,
    "dn": _T,  # who binds
    "base": _T,  # base of a search, or the entry that is written to
    "filter": _T,
    "attributes": _T,  # that a write names
    "mech": _T,
    "code": _N,
    "tag": _N,
    "entries": _N,
    "text": _T,
    "tls_version": _T,
    "tls_cipher": _T,
    "reason": _T,  # why the line is ignored
    "refusal": _T,  # why the line is quarantined
}
_CARRY = "ldap_sessions"
_TAGS = {97: "bind", 101: "search", 103: "update", 105: "create", 107: "delete", 109: "move", 111: "compare"}
_TAGS |= {115: "search", 120: "extended"}
_GOOD = (0, 5, 6)  # success, compareFalse, compareTrue
_PARTLY = (3, 4, 11)  # time, size or administrative limit: entries were returned all the same
_REFERRAL = 10
_CODES = {
    1: "operationsError", 2: "protocolError", 3: "timeLimitExceeded", 4: "sizeLimitExceeded",
    7: "authMethodNotSupported", 8: "strongerAuthRequired", 10: "referral", 11: "adminLimitExceeded",
    12: "unavailableCriticalExtension", 13: "confidentialityRequired", 16: "noSuchAttribute",
    17: "undefinedAttributeType", 18: "inappropriateMatching", 19: "constraintViolation", 20: "attributeOrValueExists",
    21: "invalidAttributeSyntax", 32: "noSuchObject", 33: "aliasProblem", 34: "invalidDNSyntax",
    36: "aliasDereferencingProblem", 48: "inappropriateAuthentication", 49: "invalidCredentials",
    50: "insufficientAccessRights", 51: "busy", 52: "unavailable", 53: "unwillingToPerform", 54: "loopDetect",
    64: "namingViolation", 65: "objectClassViolation", 66: "notAllowedOnNonLeaf", 67: "notAllowedOnRDN",
    68: "entryAlreadyExists", 69: "objectClassModsProhibited", 71: "affectsMultipleDSAs", 80: "other",
}  # fmt: skip  # RFC 4511, appendix A
_PASSWORDS = ("SIMPLE", "PLAIN", "LOGIN", "CRAM-MD5", "DIGEST-MD5", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-512")
_LONGEST = 2000  # characters of a filter that are kept
_LONGEST_TEXT = 500
_LONGEST_FIELD = 4000


def filter_class(text: pl.Expr) -> pl.Expr:
    """A search filter (RFC 4515) without its values: ``?`` for a value, ``?*`` for a part of one, ``*`` for any.

    In a filter, a bracket that belongs to a value is escaped; so each value ends at the next bracket.
    """
    kept = text.str.slice(0, _LONGEST).str.replace_all("\x01", "", literal=True)
    kept = kept.str.replace_all(r"= *\* *\)", "=\x01)")
    kept = kept.str.replace_all(r"=[^()*\x01]*\*[^()]*(\)|$)", "=?\x01$1")
    kept = kept.str.replace_all(r"=[^()\x01]*(\)|$)", "=?$1")
    return kept.str.replace_all("\x01", "*", literal=True).str.to_lowercase()


def domain_of(dn: pl.Expr) -> pl.Expr:
    """The mail domain that the dc parts of a name spell: ``cn=x,dc=tenant,dc=example`` is of tenant.example."""
    parts = dn.str.to_lowercase().str.extract_all(r"(?:^|,) *dc=[a-z0-9_-]+").list.join("")
    joined = parts.str.replace_all(r"(?:^|,) *dc=", ".").str.strip_chars_start(".")
    return pl.when(joined != "").then(joined)


def events(lines: pl.DataFrame, ctx: Context, source: str, *, ends_requests: bool) -> pl.LazyFrame:
    """Rows of access_events for lines of a directory server.

    Args:
        lines: PLACE and FIELDS, in the order of the log.
        ctx: keeps what later blocks need.
        source: name of the format.
        ends_requests: the end of a connection is the event of a request that has no result then. (Where the server
            logs results after that end, it is not.)
    """
    sessions = ctx.carry.setdefault(_CARRY, Sessions(ends_requests=ends_requests))
    lines = _bounded(lines.select(*PLACE, *FIELDS))
    read = pl.col("refusal").is_null() & (pl.col("reason").is_null() | (pl.col("kind") == START))
    tag = pl.when(pl.col("kind") == RESULT).then("tag")
    whole, walk = sessions.walk(lines.with_columns(pl.when(read).then("kind").alias("kind"), tag.alias("tag")))
    return _rows(_found(lines, whole, walk), source)


def _bounded(lines: pl.DataFrame) -> pl.DataFrame:
    """Cuts texts that are longer than any real one: what is remembered of a connection must not be."""
    texts = [name for name, kind in FIELDS.items() if kind == _T]
    longest = lines.select(pl.max_horizontal(pl.col(name).str.len_bytes().max() for name in texts)).item()
    if longest is None or longest <= _LONGEST_FIELD:
        return lines
    return lines.with_columns(pl.col(name).str.slice(0, _LONGEST_FIELD) for name in texts)


def _found(lines: pl.DataFrame, whole: pl.DataFrame, walk: Walk) -> pl.LazyFrame:
    """Adds `fate`, `left`, the state of the connection and the fields of the request."""
    states = dict.fromkeys(walk.states)
    number = {state: at for at, state in enumerate(states)}
    table = pl.DataFrame(list(states), schema=STATE_SCHEMA, orient="row")
    index = pl.Series([number[state] for state in walk.states], dtype=pl.UInt32)
    state = table.select(pl.all().gather(index).name.prefix("s_")) if len(index) else table.rename(lambda n: f"s_{n}")
    own = lines.hstack(state).with_columns(
        fate=pl.Series(walk.fate, dtype=pl.Int8), left=pl.Series(walk.left, dtype=pl.Int64)
    )
    for prefix, positions in (("r_", walk.request), ("d_", walk.detail)):
        at = pl.Series([p if p >= 0 else None for p in positions], dtype=pl.UInt32)
        own = own.with_columns(
            whole[name].gather(at).alias(prefix + name) for name in ("kind", "verb", "base", "filter", "attributes")
        )
    return own.lazy()


def _rows(found: pl.LazyFrame, source: str) -> pl.LazyFrame:
    kind, code = pl.col("kind"), pl.col("code")
    asked = pl.coalesce("r_kind", pl.col("tag").replace_strict(_TAGS, default="other", return_dtype=pl.String))
    found = found.with_columns(
        asked=pl.when(kind == OPEN).then(pl.lit("connect")).otherwise(asked),
        code=pl.when(kind == RESULT).then(code),
    )
    event = pl.col("fate") == EVENT
    base = pl.coalesce("r_base", "d_base")
    action = pl.col("asked").replace({"compare": "other", "extended": "other"})
    who, how = pl.col("s_who").str.to_lowercase(), pl.col("s_how").str.to_uppercase()
    nobody = who.is_null() & pl.col("s_bound") & (kind != OPEN)
    password = who.is_not_null() & how.is_in(_PASSWORDS)
    columns = {
        "source": pl.lit(source),
        "ts": pl.col("ts"),
        "ts_raw": pl.col("ts_raw"),
        "ts_basis": pl.col("ts_basis"),
        "host": pl.col("host"),
        "protocol": pl.lit("ldap"),
        "action": action,
        "op_raw": _op_raw(),
        "outcome": _outcome(),
        "principal_id": who,
        "principal_type": pl.when(who.is_not_null()).then(pl.lit("user")).when(nobody).then(pl.lit("anonymous")),
        "credential_id": pl.when(password).then(pl.lit("pw:") + who),
        "credential_type": pl.when(password).then(pl.lit("password"))
        .when(nobody).then(pl.lit("none")),
        "auth_method": how,
        "session_id": pl.col("session"),
        "src_ip_raw": pl.col("s_address"),
        "tls_version": pl.col("s_tls_version"),
        "tls_cipher": pl.col("s_tls_cipher"),
        "tenant_domain": pl.coalesce(domain_of(base), domain_of(pl.col("s_who"))),
        "ldap_base": base,
        "ldap_filter_class": filter_class(pl.col("r_filter")),
        "entries_returned": pl.when(action == "search").then("entries"),
        "op_count": pl.when(pl.col("left") > 0).then("left").otherwise(pl.lit(1, pl.Int64)),
        "bytes_known": pl.lit(value=False),
        "agg_level": pl.lit("event"),
    }  # fmt: skip
    ours = pl.col("refusal").is_null() & pl.col("reason").is_null()
    event &= ours
    disposition = (
        pl.when(pl.col("refusal").is_not_null()).then(pl.lit(QUARANTINED))
        .when(event).then(pl.lit("access_events"))
        .when(ours & kind.is_not_null() & (pl.col("fate") != DROPPED)).then(pl.lit(CONTINUATION))
        .otherwise(pl.lit(IGNORED))
    )  # fmt: skip
    why_not = (
        pl.when(pl.col("refusal").is_not_null()).then("refusal")
        .when(kind == CLOSED).then(pl.lit(f"{source}: end of a connection"))
        .when(disposition == IGNORED).then(pl.coalesce("reason", pl.lit(f"{source}: no access in the line")))
    )  # fmt: skip
    return found.select(
        "record_no", "byte_offset", "byte_length", disposition.alias("disposition"),
        pl.when(event).then(_reason()).otherwise(why_not).alias("reason"),
        *(pl.when(event).then(value).alias(name) for name, value in columns.items()),
    )  # fmt: skip


def _op_raw() -> pl.Expr:
    verb = pl.coalesce("r_verb", pl.when(pl.col("kind").is_in([OPEN, RESULT])).then("verb"))
    named = pl.coalesce("d_attributes", "r_attributes").str.slice(0, 200)
    return pl.concat_str(verb, named, separator=" ", ignore_nulls=True)


def _outcome() -> pl.Expr:
    code = pl.col("code")
    good = code.is_in(_GOOD) | (code.is_in(_PARTLY) & (pl.col("entries") > 0)) | (pl.col("kind") == OPEN)
    return (
        pl.when(good).then(pl.lit("success"))
        .when(code.is_null() | (code == _REFERRAL)).then(pl.lit("unknown"))
        .otherwise(pl.lit("failure"))
    )  # fmt: skip


def _reason() -> pl.Expr:
    code, kind, text = pl.col("code"), pl.col("kind"), pl.col("text").str.strip_chars()
    name = code.replace_strict(_CODES, default=None, return_dtype=pl.String)
    told = pl.concat_str(
        pl.concat_str(code.cast(pl.String), name, separator=" ", ignore_nulls=True),
        pl.when(text != "").then(text.str.slice(0, _LONGEST_TEXT)),
        separator=": ",
        ignore_nulls=True,
    )
    return (
        pl.when(kind == ABANDON).then(pl.lit("abandoned"))
        .when(kind == CLOSED).then(pl.lit("the connection ended before the result"))
        .when((kind == RESULT) & (code != 0)).then(told)
    )  # fmt: skip
