"""Fields of Microsoft 365 audit records and what they mean for every kind of row.

Names as in the Office 365 Management Activity API (learn.microsoft.com/office/office-365-management-api); a few as the
OfficeActivity table of Microsoft Sentinel has them.
"""

import polars as pl

GRAPH = "00000003-0000-0000-c000-000000000000"
EXCHANGE_ONLINE = "00000002-0000-0ff1-ce00-000000000000"
GUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
MAX_TEXT = 32_768

_TEXT = pl.String()
PAIRS = pl.List(pl.Struct({"Name": _TEXT, "Value": _TEXT}))
_ITEM = {"InternetMessageId": _TEXT, "SizeInBytes": _TEXT, "Path": _TEXT}
_TEXTS = (
    "CreationTime Id Operation OrganizationId ResultStatus UserType UserKey Workload UserId AppId ClientAppId "
    "ClientIPAddress ClientIP ActorIpAddress ClientInfoString ExternalAccess LogonType MailboxGuid MailboxOwnerUPN "
    "OrganizationName OriginatingServer SessionId LogonError ErrorNumber ApplicationId ObjectId OperationCount ActorContextId "
    "SendAsUserSmtp SendOnBehalfOfUserSmtp UserAgent "
    # Sentinel's names
    "TimeGenerated OfficeId OfficeWorkload OfficeObjectId Logon_Type Client_IPAddress"
)
SCHEMA = pl.Struct(
    {name: _TEXT for name in _TEXTS.split()}
    | {name: PAIRS for name in ("OperationProperties", "ExtendedProperties", "Parameters", "DeviceProperties")}
    | {
        "ModifiedProperties": pl.List(pl.Struct({"Name": _TEXT, "OldValue": _TEXT, "NewValue": _TEXT, "Value": _TEXT})),
        "Actor": pl.List(pl.Struct({"ID": _TEXT, "Type": _TEXT})),
        "Target": pl.List(pl.Struct({"ID": _TEXT, "Type": _TEXT})),
        "Folders": pl.List(pl.Struct({"Path": _TEXT, "FolderItems": pl.List(pl.Struct(_ITEM))})),
        "Messages": pl.List(pl.Struct({"MessageItems": pl.List(pl.Struct(_ITEM))})),
        "AffectedItems": pl.List(pl.Struct({"InternetMessageId": _TEXT, "ParentFolder": pl.Struct({"Path": _TEXT})})),
        "Item": pl.Struct({"InternetMessageId": _TEXT, "SizeInBytes": _TEXT, "ParentFolder": pl.Struct({"Path": _TEXT})}),
        "Folder": pl.Struct({"Path": _TEXT}),
        "AppAccessContext": pl.Struct({"UniqueTokenId": _TEXT, "ClientAppId": _TEXT, "AADSessionId": _TEXT}),
    }
)

_ISO = r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"
_US_TIMES = ("%m/%d/%Y %I:%M:%S%.f %p", "%m/%d/%Y %H:%M:%S%.f")


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


def times(value: pl.Expr) -> pl.Expr:
    """Times as UTC: ISO 8601 (UTC where no zone is written) or the American form of exports, else null."""
    iso = value.str.contains(_ISO)
    zoned = value.str.contains(r"(?:[zZ]|[+-]\d\d:?\d\d)$")
    bare = value.str.strip_chars_end("zZ").str.replace(" ", "T", literal=True)
    plain = pl.when(iso).then(bare).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False)
    offset = pl.when(iso & zoned).then(bare).str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", strict=False)
    american = pl.when(~iso).then(value.str.replace(",", "", literal=True))
    others = [american.str.to_datetime(form, time_unit="us", time_zone="UTC", strict=False) for form in _US_TIMES]
    return pl.coalesce(plain, offset, *others)


def common() -> dict[str, pl.Expr]:
    """Columns of the unnested record that every kind of row fills alike."""
    owner, user = lower("MailboxOwnerUPN"), lower("UserId")
    written = pl.coalesce(text("CreationTime"), text("TimeGenerated"))
    return {
        "source": pl.lit("m365_ual"),
        "source_id": pl.coalesce(lower("Id"), lower("OfficeId")),
        "ts": times(written),
        "ts_raw": written,
        "ts_basis": pl.when(written.str.contains(r"[+-]\d\d:?\d\d$|[zZ]$")).then(pl.lit("offset")).otherwise(pl.lit("utc")),
        "tenant_id": guid(lower("OrganizationId")),
        "tenant_domain": pl.coalesce(domain(owner), domain(user), lower("OrganizationName")),
        "host": pl.col("OriginatingServer").str.extract(r"^\s*([^\s(]+)"),
        "op_raw": text("Operation"),
        "outcome": _outcome(),
        "session_id": pl.coalesce(text("SessionId"), pl.col("AppAccessContext").struct.field("AADSessionId")),
        "token_id": pl.col("AppAccessContext").struct.field("UniqueTokenId"),
        "src_ip_raw": pl.coalesce(
            text(name) for name in ("ClientIPAddress", "ClientIP", "ActorIpAddress", "Client_IPAddress")
        ),
    }


def _outcome() -> pl.Expr:
    status = lower("ResultStatus")
    return (
        pl.when(status.is_in(["succeeded", "success", "true", "partiallysucceeded"]))
        .then(pl.lit("success"))
        .when(status.is_in(["failed", "failure", "false"]))
        .then(pl.lit("failure"))
        .otherwise(pl.lit("unknown"))
    )


def kind_of_user() -> pl.Expr:
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


def app_ids() -> tuple[pl.Expr, pl.Expr]:
    """(app_id, api_id): behind Microsoft Graph the client is ClientAppId; elsewhere AppId is the client itself."""
    app, client = lower("AppId"), lower("ClientAppId")
    client = pl.coalesce(client, pl.col("AppAccessContext").struct.field("ClientAppId").str.to_lowercase())
    app_id = pl.coalesce(pl.when(app == GRAPH).then(client), app, client)
    return app_id, pl.when(app == GRAPH).then(app).when(app.is_not_null()).then(pl.lit(EXCHANGE_ONLINE))


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
