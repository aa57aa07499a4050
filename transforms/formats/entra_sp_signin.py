"""Entra ID sign-ins as diagnostic settings write them: service principals first, managed identities and users as well.

JSON objects, one a line or in an array or under ``records``, each an envelope (time, category, tenantId, resultType,
callerIpAddress) around ``properties``. Specification:
learn.microsoft.com/azure/azure-monitor/reference/tables/aadserviceprincipalsigninlogs
"""

import re

import polars as pl

from transforms import jsonrows
from transforms.model import IGNORED, QUARANTINED, Context, Format, Head, Match

_SOURCES = {
    "ServicePrincipalSignInLogs": "entra_sp_signin",
    "ManagedIdentitySignInLogs": "entra_mi_signin",
    "NonInteractiveUserSignInLogs": "entra_user_signin",
    "SignInLogs": "entra_user_signin",
    "ADFSSignInLogs": "entra_user_signin",
}
_CATEGORY = re.compile(rf'"category"\s*:\s*"(?:{"|".join(_SOURCES)})"')
_AUDIT = re.compile(r'"category"\s*:\s*"AuditLogs"')
_TEXT = pl.String()
_PROPERTIES = (
    "id createdDateTime userPrincipalName userId appId ipAddress resourceDisplayName resourceId homeTenantId "
    "resourceTenantId servicePrincipalId servicePrincipalCredentialKeyId servicePrincipalCredentialThumbprint "
    "uniqueTokenIdentifier userAgent clientCredentialType authenticationProtocol clientAppUsed crossTenantAccessType "
    "sessionId"
)
_ENVELOPE = "time category tenantId resultType resultDescription callerIpAddress correlationId operationName"
SCHEMA = pl.Struct(
    dict.fromkeys(_ENVELOPE.split(), _TEXT)
    | {
        "properties": pl.Struct(
            dict.fromkeys(_PROPERTIES.split(), _TEXT)
            | {
                "status": pl.Struct({"errorCode": _TEXT, "failureReason": _TEXT}),
                "authenticationProcessingDetails": pl.List(pl.Struct({"key": _TEXT, "value": _TEXT})),
            }
        )
    }
)
_CREDENTIALS = {
    "certificate": "cert",
    "clientassertion": "cert",
    "clientsecret": "secret",
    "federatedidentitycredential": "federated",
}


def sniff(head: Head) -> Match | None:
    """Recognise the envelope by its category."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] not in ("{", "[") or '"properties"' not in start:
        return None
    if _CATEGORY.search(start):
        score, reason = 0.95, "Entra sign-in records"
    elif _AUDIT.search(start) and "microsoft.aadiam" in start.lower():
        score, reason = 0.6, "Entra directory audit records"
    else:
        return None
    first = (head.lines[0] if head.lines else start).lstrip("\ufeff \t")
    wrapped = re.match(r'\[|\{\s*"records"\s*:|\{\s*"value"\s*:', first)
    if wrapped or '"category"' not in first:
        return Match(score, f"{reason} in one JSON document", "json", "json")
    return Match(score, f"{reason}, one a line", "lines", "jsonl")


def parse(records: pl.LazyFrame, _ctx: Context) -> pl.LazyFrame:
    """One row per record: access_events, ignored or quarantined."""
    decoded = (
        jsonrows.decode(records.select("record_no", "byte_offset", "byte_length", "raw"), SCHEMA).drop("raw").collect()
    )
    flat = decoded.with_columns(pl.col("j").struct.field("*")).drop("j")
    category = pl.col("category")
    flat = flat.with_columns(
        category.replace_strict(_SOURCES, default=None, return_dtype=pl.String).alias("source"),
        pl.col("properties").struct.unnest(),
    ).drop("properties")
    flat = flat.with_columns(pl.coalesce(_text("createdDateTime"), _text("time")).alias("ts_raw"))
    flat = flat.with_columns(_time(flat.get_column("ts_raw")).alias("ts"))
    flat = flat.join(_credential_used(flat), on="record_no", how="left")
    disposition = (
        pl.when(pl.col("bad_json") | category.is_null())
        .then(pl.lit(QUARANTINED))
        .when(pl.col("source").is_null())
        .then(pl.lit(IGNORED))
        .when(pl.col("ts").is_null())
        .then(pl.lit(QUARANTINED))
        .otherwise(pl.lit("access_events"))
    )
    flat = flat.with_columns(disposition.alias("disposition"))
    event = pl.col("disposition") == "access_events"
    columns = {name: pl.when(event).then(value).alias(name) for name, value in _columns().items()}
    reason = pl.when(event).then(_reason()).otherwise(_why_not()).alias("reason")
    return flat.select("record_no", "byte_offset", "byte_length", "disposition", reason, *columns.values()).lazy()


def _columns() -> dict[str, pl.Expr]:
    app = pl.col("source") != "entra_user_signin"
    home, tenant = _lower("homeTenantId"), _lower("tenantId", "resourceTenantId")
    user = _lower("userPrincipalName", "userId")
    access = pl.col("crossTenantAccessType").str.to_lowercase()
    thumbprint = pl.col("servicePrincipalCredentialThumbprint").str.to_lowercase().str.replace_all(r"[^0-9a-f]", "")
    thumbprint = pl.when(thumbprint != "").then(thumbprint)
    key = _lower("servicePrincipalCredentialKeyId")
    kind = pl.coalesce(_credential("clientCredentialType"), _credential("used"))
    return {
        "source": pl.col("source"),
        "source_id": _lower("id"),
        "ts": pl.col("ts"),
        "ts_raw": pl.col("ts_raw"),
        "ts_basis": pl.when(pl.col("ts_raw").str.contains(r"(?:[zZ]|[+-]\d\d:?\d\d)$"))
        .then(pl.lit("offset"))
        .otherwise(pl.lit("utc")),
        "tenant_id": tenant,
        # A guest's domain tells his own tenant, not this one.
        "tenant_domain": pl.when(~app & (home.is_null() | (home == tenant))).then(
            user.str.extract(r"^[^@\s]+@([^@\s]+)$")
        ),
        "home_tenant_id": home,
        "protocol": pl.lit("oauth"),
        "action": pl.lit("signin"),
        "op_raw": pl.col("category"),
        "outcome": pl.when(_code() == "0")
        .then(pl.lit("success"))
        .when(_code().is_null())
        .then(pl.lit("unknown"))
        .otherwise(pl.lit("failure")),
        "principal_id": pl.when(app).then(_lower("servicePrincipalId", "appId")).otherwise(user),
        "principal_type": pl.when(app).then(pl.lit("service_principal")).otherwise(pl.lit("user")),
        "app_id": _lower("appId"),
        "api_id": pl.coalesce(_lower("resourceId"), _text("resourceDisplayName")),
        "credential_id": pl.coalesce(thumbprint, key),
        "credential_type": pl.when(thumbprint.is_not_null())
        .then(pl.lit("cert"))
        .when(key.is_not_null())
        .then(pl.coalesce(kind, pl.lit("key")))
        # A certificate without its name cannot be hunted as one.
        .when(kind != "cert")
        .then(kind),
        "token_id": _text("uniqueTokenIdentifier"),
        "session_id": pl.coalesce(_text("sessionId"), _text("correlationId")),
        "external_access": pl.when(access != "").then(access != "none"),
        "src_ip_raw": pl.coalesce(_text("callerIpAddress"), _text("ipAddress")),
        "user_agent": _text("userAgent"),
        "auth_method": pl.coalesce(_filled("authenticationProtocol"), _filled("clientAppUsed")),
        "op_count": pl.lit(1, dtype=pl.Int64),
        "agg_level": pl.lit("event"),
    }


def _text(name: str) -> pl.Expr:
    value = pl.col(name).str.strip_chars()
    return pl.when(value != "").then(value)


def _lower(*names: str) -> pl.Expr:
    return pl.coalesce(_text(name) for name in names).str.to_lowercase()


def _filled(name: str) -> pl.Expr:
    return pl.when(pl.col(name).str.to_lowercase() != "none").then(_text(name))


def _code() -> pl.Expr:
    return pl.coalesce(_text("resultType"), pl.col("status").struct.field("errorCode"))


def _credential(name: str) -> pl.Expr:
    value = pl.col(name).str.to_lowercase().str.replace_all(r"[^a-z]", "")
    return value.replace_strict(_CREDENTIALS, default=None, return_dtype=pl.String)


def _credential_used(flat: pl.DataFrame) -> pl.DataFrame:
    """What the processing details say that the caller authenticated with."""
    details = flat.select("record_no", pl.col("authenticationProcessingDetails").alias("d")).explode("d")
    details = details.select("record_no", pl.col("d").struct.unnest())
    details = details.filter(pl.col("key").str.to_lowercase() == "authentication credential used")
    return details.group_by("record_no").agg(pl.col("value").first().alias("used"))


def _time(written: pl.Series) -> pl.Series:
    """UTC; seven decimals are cut to six."""
    zoned = written.str.replace(r"[zZ]$", "+00:00")
    bare = ~zoned.str.contains(r"[+-]\d\d:?\d\d$")
    zoned = zoned.zip_with(~bare.fill_null(value=True), zoned + "+00:00")
    return zoned.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False).dt.convert_time_zone("UTC")


def _reason() -> pl.Expr:
    told = pl.coalesce(pl.col("status").struct.field("failureReason"), _text("resultDescription"))
    told = pl.when(~told.str.to_lowercase().is_in(["other.", "none", ""])).then(told.str.slice(0, 500))
    return pl.when(_code() != "0").then(pl.concat_str(_code(), told, separator=": ", ignore_nulls=True))


def _why_not() -> pl.Expr:
    return (
        pl.when("bad_json")
        .then(pl.lit("not a JSON object"))
        .when(pl.col("category").is_null())
        .then(pl.lit("no category"))
        .when(pl.col("source").is_not_null())
        .then(pl.lit("time not readable"))
        .when(pl.col("category") == "AuditLogs")
        .then(pl.lit("category AuditLogs: directory audit is not read here"))
        .otherwise(pl.lit("category is not a sign-in log"))
    )


FORMAT = Format(
    name="entra_sp_signin",
    title="Entra ID sign-ins (diagnostic settings)",
    spec="https://learn.microsoft.com/azure/azure-monitor/reference/tables/aadserviceprincipalsigninlogs",
    tables=("access_events",),
    parse=parse,
    sniff=sniff,
    gaps=(
        "exports of 2021 and before name neither key nor thumbprint: which credential signed in cannot be told",
        "one token serves many calls: sign-ins do not count accesses",
        "a sign-in stays in the log only as long as the tenant keeps it",
    ),
)
