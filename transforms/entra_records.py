"""Entra ID log records to rows: sign-ins to access_events, directory audit to change_events.

Both kinds may stand in one file (what an event hub or a storage account collects), so both formats read both.
"""

import polars as pl

from transforms import entra_access, entra_changes, entra_tables, ual_times
from transforms.entra_tables import text
from transforms.model import IGNORED, QUARANTINED, Context

SIGN_IN_LOGS = {
    "ServicePrincipalSignInLogs": "entra_sp_signin",
    "ManagedIdentitySignInLogs": "entra_mi_signin",
    "NonInteractiveUserSignInLogs": "entra_user_signin",
    "SignInLogs": "entra_user_signin",
    "ADFSSignInLogs": "entra_user_signin",
}
_TABLES = {
    "SigninLogs": "entra_user_signin",
    "AADNonInteractiveUserSignInLogs": "entra_user_signin",
    "AADServicePrincipalSignInLogs": "entra_sp_signin",
    "AADManagedIdentitySignInLogs": "entra_mi_signin",
    "ADFSSignInLogs": "entra_user_signin",
}
# Logs that diagnostic settings also write, and that hold no sign-in and no change.
_OTHER_LOGS_NAMES = (
    "ProvisioningLogs RiskyUsers UserRiskEvents RiskyServicePrincipals ServicePrincipalRiskEvents "
    "NetworkAccessTrafficLogs MicrosoftGraphActivityLogs EnrichedOffice365AuditLogs RemoteNetworkHealthLogs"
)
_OTHER_LOGS = _OTHER_LOGS_NAMES.split()


def parse(records: pl.LazyFrame, ctx: Context) -> pl.LazyFrame:
    """One row per record: access_events, change_events, ignored or quarantined."""
    frame = records.select("record_no", "byte_offset", "byte_length", "raw").collect()
    flat = entra_tables.read(frame.select("record_no", "raw"), ctx)
    flat = _dated(flat.with_columns(_source()), ctx)
    kind = _kind()
    flat = flat.with_columns(kind.alias("disposition"))
    rows = [
        entra_access.rows(flat.filter(pl.col("disposition") == "access_events")),
        entra_changes.rows(flat.filter(pl.col("disposition") == "change_events")),
        flat.filter(pl.col("disposition").is_in([IGNORED, QUARANTINED])).select("record_no", "disposition", _why_not()),
    ]
    joined = pl.concat([part for part in rows if part.height] or rows[2:], how="diagonal_relaxed")
    return frame.drop("raw").join(joined, on="record_no", how="left", maintain_order="left").lazy()


def _source() -> pl.Expr:
    """The log that a record is of: by its name, else by what it has; null for other and unknown logs."""
    category, table = pl.col("category"), pl.col("table")
    audit = (category == "AuditLogs") | (table == "AuditLogs") | text("activityDisplayName").is_not_null()
    about = pl.any_horizontal(
        text("targetId").is_not_null(),
        text("keyId").is_not_null(),
        (pl.col("targetResources").list.len() > 0).fill_null(value=False),
    )
    named = text("operationName").is_not_null() & (pl.col("operationName") != "Sign-in activity")
    by_name = pl.coalesce(
        category.replace_strict(SIGN_IN_LOGS, default=None, return_dtype=pl.String),
        table.replace_strict(_TABLES, default=None, return_dtype=pl.String),
        pl.when(audit.fill_null(value=False) | (named & about)).then(pl.lit("entra_audit")),
    )
    kinds = pl.col("signInEventTypes").list.eval(pl.element().str.to_lowercase())
    managed = pl.coalesce(text("managedIdentityType").str.to_lowercase() != "none", pl.lit(value=False))
    principal = text("servicePrincipalId").is_not_null()
    user = text("userPrincipalName").is_not_null() | text("userId").is_not_null()
    made = pl.any_horizontal(pl.col(name).is_not_null() for name in ("createdDateTime", "aggregationDateTime"))
    by_shape = (
        pl.when(kinds.list.contains("managedidentity") | (managed & principal & ~user))
        .then(pl.lit("entra_mi_signin"))
        .when(kinds.list.contains("serviceprincipal") | (principal & ~user))
        .then(pl.lit("entra_sp_signin"))
        .when((kinds.list.len() > 0) | user)
        .then(pl.lit("entra_user_signin"))
    )
    unnamed = category.is_null() | (category == "SignIn")
    return pl.coalesce(by_name, pl.when(unnamed & table.is_null() & made).then(by_shape)).alias("source")


def _dated(flat: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    audit = pl.col("source") == "entra_audit"
    grouped = pl.coalesce(text("firstSignInDateTime"), text("aggregationDateTime"))
    written = (
        pl.when(audit)
        .then(pl.coalesce(text("activityDateTime"), text("time")))
        .otherwise(pl.coalesce(text("createdDateTime"), grouped, text("time")))
    )
    flat = flat.with_columns(written.alias("ts_raw"))
    local = entra_tables.is_local(ctx.carry.get("header", []))
    return flat.hstack(ual_times.read(flat.get_column("ts_raw"), ctx, "local" if local else "utc"))


def _kind() -> pl.Expr:
    return (
        pl.when(pl.col("note").is_not_null())
        .then(pl.lit(IGNORED))
        .when(pl.col("fault").is_not_null())
        .then(pl.lit(QUARANTINED))
        .when(pl.col("source").is_null() & pl.coalesce("category", "table").is_not_null())
        .then(pl.lit(IGNORED))
        .when(pl.col("source").is_null() | pl.col("ts").is_null())
        .then(pl.lit(QUARANTINED))
        .when((pl.col("source") == "entra_audit") & _activity().is_null())
        .then(pl.lit(QUARANTINED))
        .when(pl.col("source") == "entra_audit")
        .then(pl.lit("change_events"))
        .otherwise(pl.lit("access_events"))
    )


def _activity() -> pl.Expr:
    return pl.coalesce(text("activityDisplayName"), text("operationName"))


def _why_not() -> pl.Expr:
    other = pl.format("category {}: neither sign-in nor directory audit", "category")
    why = (
        pl.when(pl.col("note").is_not_null())
        .then("note")
        .when(pl.col("fault").is_not_null())
        .then("fault")
        .when(pl.col("source").is_null() & pl.col("category").is_in(_OTHER_LOGS))
        .then(other)
        .when(pl.col("source").is_null() & pl.coalesce("category", "table").is_not_null())
        .then(pl.lit("category is neither sign-in nor directory audit"))
        .when(pl.col("source").is_null())
        .then(pl.lit("no category"))
        .when(pl.col("ts_raw").is_null())
        .then(pl.lit("no time"))
        .when(pl.col("ts").is_null())
        .then(pl.lit("time not readable"))
        .otherwise(pl.lit("no operation"))
    )
    return why.alias("reason")
