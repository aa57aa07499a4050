"""Entra ID sign-ins, read by entra_tables, to rows of access_events."""

import polars as pl

from transforms.entra_tables import azure_tenant, filled, lower, text

_CREDENTIALS = {
    "certificate": "cert",
    "clientassertion": "cert",
    "clientsecret": "secret",
    "federatedidentitycredential": "federated",
    "managedidentity": "token",
}
_MOST_METHODS = 5


def rows(flat: pl.DataFrame) -> pl.DataFrame:
    """record_no and the columns of access_events (records with `source`, ts, ts_raw and ts_basis)."""
    if not flat.height:
        return flat.select("record_no")
    flat = flat.join(_credential_used(flat), on="record_no", how="left")
    flat = flat.join(_methods(flat), on="record_no", how="left")
    flat = flat.with_columns(lower("userPrincipalName", "userId").alias("user"))
    flat = flat.with_columns(_password().alias("password"))
    columns = _caller() | _credential_columns() | _sign_in()
    plain = ["record_no", "disposition", "source", "ts", "ts_raw", "ts_basis"]
    return flat.select(*plain, *(value.alias(name) for name, value in columns.items()))


def _caller() -> dict[str, pl.Expr]:
    app = pl.col("source") != "entra_user_signin"
    home = lower("homeTenantId")
    tenant = pl.coalesce(lower("tenantId"), azure_tenant(), lower("resourceTenantId"))
    access = pl.col("crossTenantAccessType").str.strip_chars().str.to_lowercase()
    user = pl.col("user")
    return {
        "tenant_id": tenant,
        # A guest's domain tells his own tenant, not this one.
        "tenant_domain": pl.when(~app & (home.is_null() | (home == tenant))).then(
            user.str.extract(r"^[^@\s]+@([^@\s]+)$")
        ),
        "home_tenant_id": home,
        "principal_id": pl.when(app).then(lower("servicePrincipalId", "appId")).otherwise(user),
        "principal_type": pl.when(app).then(pl.lit("service_principal")).otherwise(pl.lit("user")),
        "app_id": lower("appId"),
        "api_id": pl.coalesce(lower("resourceId"), text("resourceDisplayName")),
        "external_access": pl.when(access != "").then(access != "none"),
        "src_ip_raw": pl.coalesce(text("callerIpAddress"), text("ipAddress")),
        "user_agent": text("userAgent"),
    }


def _credential_columns() -> dict[str, pl.Expr]:
    thumbprint = pl.col("servicePrincipalCredentialThumbprint").str.to_lowercase().str.replace_all(r"[^0-9a-f]", "")
    thumbprint = pl.when(thumbprint != "").then(thumbprint)
    key = lower("servicePrincipalCredentialKeyId")
    kind = pl.coalesce(_credential("clientCredentialType"), _credential("used"))
    by_password = pl.col("password")
    return {
        "credential_id": pl.coalesce(thumbprint, key, pl.when(by_password).then(pl.lit("pw:") + pl.col("user"))),
        "credential_type": pl.when(thumbprint.is_not_null())
        .then(pl.lit("cert"))
        .when(key.is_not_null())
        .then(pl.coalesce(kind, pl.lit("key")))
        # A certificate without its name cannot be hunted as one.
        .when(kind != "cert")
        .then(kind)
        .when(by_password)
        .then(pl.lit("password")),
    }


def _sign_in() -> dict[str, pl.Expr]:
    count = pl.col("signInCount").str.strip_chars().cast(pl.Int64, strict=False)
    count = pl.when(count > 0).then(count)
    protocol = pl.coalesce(filled("authenticationProtocol"), filled("clientAppUsed"))
    types = pl.when(pl.col("signInEventTypes").list.len() > 0).then(pl.col("signInEventTypes").list.join("; "))
    log = pl.when(pl.col("category").is_not_null()).then("category").otherwise("table")
    return {
        # A group of sign-ins has an id of its own, which is nobody else's.
        "source_id": pl.when(count.is_null()).then(lower("id")),
        "protocol": pl.lit("oauth"),
        "action": pl.lit("signin"),
        "op_raw": pl.coalesce(log, types, pl.lit("signIn")),
        "outcome": _outcome(),
        "reason": _reason(),
        "token_id": text("uniqueTokenIdentifier"),
        "session_id": pl.coalesce(text("sessionId"), text("correlationId")),
        "auth_method": pl.concat_str(protocol, "methods", separator="; ", ignore_nulls=True).replace("", None),
        "op_count": pl.coalesce(count, pl.lit(1, dtype=pl.Int64)),
        "agg_level": pl.when(count.is_not_null()).then(pl.lit("portal_group")).otherwise(pl.lit("event")),
    }


def _code() -> pl.Expr:
    written = pl.coalesce(text("resultType"), pl.col("status").struct.field("errorCode"), text("errorCode"))
    worked = pl.col("outcome").str.strip_chars().str.to_lowercase() == "success"
    return pl.coalesce(written, pl.when(worked).then(pl.lit("0")))


def _outcome() -> pl.Expr:
    told = pl.col("outcome").str.strip_chars().str.to_lowercase()
    return (
        pl.when(_code() == "0")
        .then(pl.lit("success"))
        .when(_code().is_not_null() | (told == "failure"))
        .then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )


def _reason() -> pl.Expr:
    told = pl.coalesce(pl.col("status").struct.field("failureReason"), text("failureReason"), text("resultDescription"))
    told = pl.when(~told.str.to_lowercase().is_in(["other.", "none", ""])).then(told.str.slice(0, 500))
    return pl.when(_code() != "0").then(pl.concat_str(_code(), told, separator=": ", ignore_nulls=True))


def _credential(name: str) -> pl.Expr:
    value = pl.col(name).str.to_lowercase().str.replace_all(r"[^a-z]", "")
    return value.replace_strict(_CREDENTIALS, default=None, return_dtype=pl.String)


def _credential_used(flat: pl.DataFrame) -> pl.DataFrame:
    """What the processing details say that the caller authenticated with."""
    details = flat.select("record_no", pl.col("authenticationProcessingDetails").alias("d")).explode("d")
    details = details.select("record_no", pl.col("d").struct.unnest())
    details = details.filter(pl.col("key").str.to_lowercase() == "authentication credential used")
    return details.group_by("record_no").agg(pl.col("value").first().alias("used"))


def _methods(flat: pl.DataFrame) -> pl.DataFrame:
    """methods: how a user proved who he is, as the log names it (Password; Mobile app notification)."""
    long = flat.select("record_no", pl.col("authenticationDetails").alias("d")).explode("d")
    listed = long.select("record_no", pl.col("d").struct.field("authenticationMethod").alias("m"))
    plain = flat.select("record_no", m=text("usedMethods"))
    method = pl.concat([listed, plain]).with_columns(pl.col("m").str.strip_chars())
    method = method.filter((pl.col("m") != "") & ~pl.col("m").is_in(["[]", "{}"]))
    joined = pl.col("m").unique(maintain_order=True).head(_MOST_METHODS).str.join("; ").str.slice(0, 200)
    return method.group_by("record_no").agg(joined.alias("methods"))


def _password() -> pl.Expr:
    used = pl.col("methods").str.to_lowercase().str.split("; ").list.contains("password").fill_null(value=False)
    return used & (pl.col("source") == "entra_user_signin") & pl.col("user").is_not_null()
