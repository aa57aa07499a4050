"""Fields of Microsoft 365 audit records and what they mean for every kind of row.

Names as in the Office 365 Management Activity API (learn.microsoft.com/office/office-365-management-api); a few as the
OfficeActivity table of Microsoft Sentinel has them.
"""

from datetime import UTC, datetime

import polars as pl

GRAPH = "00000003-0000-0000-c000-000000000000"
EXCHANGE_ONLINE = "00000002-0000-0ff1-ce00-000000000000"
GUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
NOBODY = "00000000-0000-0000-0000-000000000000"  # organisation of an Exchange server that is nobody's tenant
MAX_TEXT = 32_768

_TEXT = pl.String()
PAIRS = pl.List(pl.Struct({"Name": _TEXT, "Value": _TEXT}))
_ITEM = {"InternetMessageId": _TEXT, "SizeInBytes": _TEXT, "Path": _TEXT}
_TEXTS = (
    "CreationTime Id Operation OrganizationId ResultStatus UserType UserKey Workload UserId AppId ClientAppId "
    "ClientIPAddress ClientIP ActorIpAddress ClientInfoString ExternalAccess LogonType MailboxGuid MailboxOwnerUPN "
    "OrganizationName OriginatingServer SessionId LogonError ErrorNumber ApplicationId ObjectId OperationCount "
    "ActorContextId SendAsUserSmtp SendOnBehalfOfUserSmtp UserAgent "
    # Sentinel's names
    "TimeGenerated OfficeId OfficeWorkload OfficeObjectId Logon_Type Client_IPAddress"
)
SCHEMA = pl.Struct(
    dict.fromkeys(_TEXTS.split(), _TEXT)
    | dict.fromkeys(("OperationProperties", "ExtendedProperties", "Parameters", "DeviceProperties"), PAIRS)
    | {
        "ModifiedProperties": pl.List(pl.Struct({"Name": _TEXT, "OldValue": _TEXT, "NewValue": _TEXT, "Value": _TEXT})),
        "Actor": pl.List(pl.Struct({"ID": _TEXT, "Type": _TEXT})),
        "Target": pl.List(pl.Struct({"ID": _TEXT, "Type": _TEXT})),
        "Folders": pl.List(pl.Struct({"Path": _TEXT, "FolderItems": pl.List(pl.Struct(_ITEM))})),
        "Messages": pl.List(pl.Struct({"MessageItems": pl.List(pl.Struct(_ITEM))})),
        "AffectedItems": pl.List(pl.Struct({"InternetMessageId": _TEXT, "ParentFolder": pl.Struct({"Path": _TEXT})})),
        "Item": pl.Struct(
            {"InternetMessageId": _TEXT, "SizeInBytes": _TEXT, "ParentFolder": pl.Struct({"Path": _TEXT})}
        ),
        "Folder": pl.Struct({"Path": _TEXT}),
        "AppAccessContext": pl.Struct({"UniqueTokenId": _TEXT, "ClientAppId": _TEXT, "AADSessionId": _TEXT}),
    }
)

_FIRST, _LAST = datetime(1990, 1, 1, tzinfo=UTC), datetime(2099, 12, 31, tzinfo=UTC)  # outside: no time of a log
_OTHER_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%:z", "%m/%d/%Y %I:%M:%S%.f %p", "%m/%d/%Y %H:%M:%S%.f")
_CALLER = [
    "UserId",
    "UserType",
    "ExternalAccess",
    "AppId",
    "ClientAppId",
    "ContextAppId",
    "MailboxOwnerUPN",
    "OrganizationId",
    "OrganizationName",
    "ResultStatus",
]
_ADDRESSES = ("ClientIPAddress", "ClientIP", "ActorIpAddress", "Client_IPAddress")
COMMON = [
    "source_id",
    "ts",
    "ts_raw",
    "ts_basis",
    "tenant_id",
    "tenant_domain",
    "host",
    "op_raw",
    "outcome",
    "session_id",
    "token_id",
    "src_ip_raw",
    "principal_type",
    "app_id",
]


def text(name: str) -> pl.Expr:
    """A text field, without blanks around it; null when empty."""
    value = pl.col(name).str.strip_chars()
    return pl.when(value != "").then(value)


def lower(*names: str) -> pl.Expr:
    """The first of the fields that is filled, in lower case."""
    return pl.coalesce(text(name) for name in names).str.to_lowercase()


def domain(address: pl.Expr) -> pl.Expr:
    """The domain of a mail address, null for anything else."""
    return address.str.extract(r"^[^@\s]+@([a-z0-9][a-z0-9.-]*\.[a-z0-9-]+)$")


def guid(value: pl.Expr) -> pl.Expr:
    """The value where it is a GUID in lower case, else null (``$RestApiTenantId$`` has been seen as organisation)."""
    return pl.when(value.str.contains(GUID)).then(value)


def times(value: pl.Series) -> pl.Series:
    """Times as UTC: ISO 8601 (UTC where no zone is written) or the American form of exports, else null."""
    plain = value.str.strip_chars_end("zZ")
    found = plain.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False)
    if found.null_count() == value.null_count():
        return found.set(~found.is_between(_FIRST, _LAST).fill_null(value=False), None)
    spaced = plain.str.replace(r"^(\d{4}-\d\d-\d\d) ", "${1}T").str.replace(",", "", literal=True)
    for form in _OTHER_TIMES:
        rest = spaced.str.to_datetime(form, time_unit="us", strict=False)
        rest = rest.dt.convert_time_zone("UTC") if "%:z" in form else rest.dt.replace_time_zone("UTC")
        found = found.zip_with(found.is_not_null(), rest)
    return found.set(~found.is_between(_FIRST, _LAST).fill_null(value=False), None)


def by_unique(frame: pl.DataFrame, keys: list[str], derived: dict[str, pl.Expr]) -> pl.DataFrame:
    """The frame with the derived columns, each computed once per distinct value of the keys: there are few of those."""
    few = frame.select(keys).unique().with_columns(value.alias(name) for name, value in derived.items())
    return frame.join(few, on=keys, how="left", nulls_equal=True, maintain_order="left")


def prepare(flat: pl.DataFrame) -> pl.DataFrame:
    """The unnested records with the columns (`COMMON`) that every kind of row fills alike."""
    context = pl.col("AppAccessContext").struct
    flat = flat.with_columns(
        pl.coalesce(text("CreationTime"), text("TimeGenerated")).alias("ts_raw"),
        pl.coalesce(lower("Id"), lower("OfficeId")).alias("source_id"),
        pl.coalesce(text("SessionId"), context.field("AADSessionId")).alias("session_id"),
        context.field("UniqueTokenId").alias("token_id"),
        context.field("ClientAppId").alias("ContextAppId"),
        pl.coalesce(text(name) for name in _ADDRESSES).alias("src_ip_raw"),
    )
    written = pl.col("ts_raw")
    offset = written.str.tail(6).str.contains(r"[+-]\d\d:?\d\d$|[zZ]$")
    flat = flat.with_columns(
        times(flat.get_column("ts_raw")).alias("ts"),
        pl.when(offset).then(pl.lit("offset")).otherwise(pl.lit("utc")).alias("ts_basis"),
    )
    flat = by_unique(flat, ["OriginatingServer"], {"host": pl.col("OriginatingServer").str.extract(r"^\s*([^\s(]+)")})
    flat = by_unique(flat, ["Operation"], {"op_raw": text("Operation")})
    owner, organisation = lower("MailboxOwnerUPN"), lower("OrganizationName")
    # An Exchange server's organisation is called "First Organization" or the like.
    organisation = pl.when(organisation.str.contains(r"^[^\s@]+\.[^\s@]+$")).then(organisation)
    # Somebody from outside has the domain of another tenant.
    user = pl.when(lower("ExternalAccess").ne_missing("true")).then(lower("UserId"))
    app, client = lower("AppId"), lower("ClientAppId", "ContextAppId")
    # Behind Microsoft Graph the client is ClientAppId; elsewhere AppId is the client itself.
    derived = {
        "tenant_id": guid(lower("OrganizationId").replace(NOBODY, None)),
        "tenant_domain": pl.coalesce(domain(owner), domain(user), organisation),
        "outcome": _outcome(),
        "principal_type": _kind_of_user(),
        "app_id": pl.coalesce(pl.when(app == GRAPH).then(client), app, client),
    }
    return by_unique(flat, _CALLER, derived)


def _outcome() -> pl.Expr:
    status = lower("ResultStatus")
    return (
        pl.when(status.is_in(["succeeded", "success", "true", "partiallysucceeded"]))
        .then(pl.lit("success"))
        .when(status.is_in(["failed", "failure", "false"]))
        .then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )


def _kind_of_user() -> pl.Expr:
    """principal_type from UserType (a number, or Sentinel's name), corrected by what UserId looks like."""
    user, kind = lower("UserId"), lower("UserType")
    app = pl.any_horizontal(user == lower("AppId"), user == lower("ClientAppId"))
    return (
        pl.when(user.str.starts_with("nt authority\\") | user.str.starts_with("nt service\\"))
        .then(pl.lit("system"))
        .when(kind.is_in(["5", "6", "application", "serviceprincipal"]))
        .then(pl.lit("service_principal"))
        .when(user.str.starts_with("serviceprincipal_") | user.str.contains(GUID) | app)
        .then(pl.lit("service_principal"))
        .when(kind.is_in(["3", "4", "7", "8", "dcadmin", "system", "custompolicy", "systempolicy"]))
        .then(pl.lit("system"))
        .when(user.is_not_null())
        .then(pl.lit("user"))
    )


def named(frame: pl.DataFrame, column: str, wanted: dict[str, str]) -> pl.DataFrame:
    """Values of a name/value list by name (the order is not fixed); of a name that occurs twice the first counts.

    Args:
        frame: with `record_no` and `column`.
        wanted: name in the list -> name of the column to add.

    Returns:
        `record_no` and the columns, one row per record that has one of the names.
    """
    long = frame.select("record_no", column).explode(column).select("record_no", pl.col(column).struct.unnest())
    long = long.filter(pl.col("Name").is_in(list(wanted)))
    return long.group_by("record_no").agg(
        pl.col("Value").filter(pl.col("Name") == name).first().alias(alias) for name, alias in wanted.items()
    )
