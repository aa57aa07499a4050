"""Entra ID log records of all kinds and shapes to one flat set of fields.

Sign-ins and directory audit come as diagnostic settings write them (an envelope around ``properties``), as Microsoft
Graph answers (the properties alone), as rows of Log Analytics (JSON or CSV, names with a capital, suffixes of the
export behind them, lists and objects as JSON in text) and as the portal's CSV (names in words). Fields are named as in
Microsoft Graph. Specifications: learn.microsoft.com/graph/api/resources/signin and directoryaudit;
learn.microsoft.com/azure/azure-monitor/reference/tables/signinlogs and auditlogs
"""

import csv
import re
from collections.abc import Mapping, Sequence

import polars as pl

from transforms import csvrows, jsonrows
from transforms.model import Context, Head, Match

_TEXT = pl.String()
_PAIRS = pl.List(pl.Struct({"key": _TEXT, "value": _TEXT}))
# Fields of the envelope; those that the properties have, too, count there.
_ENVELOPE_NAMES = (
    "time category tenantId resultType resultDescription callerIpAddress correlationId operationName "
    "identity properties"
)
ENVELOPE = _ENVELOPE_NAMES.split()
_TEXTS = (
    "id createdDateTime userPrincipalName userId appId ipAddress resourceDisplayName resourceId homeTenantId "
    "resourceTenantId servicePrincipalId servicePrincipalCredentialKeyId servicePrincipalCredentialThumbprint "
    "uniqueTokenIdentifier userAgent clientCredentialType authenticationProtocol clientAppUsed crossTenantAccessType "
    "sessionId managedIdentityType signInCount firstSignInDateTime aggregationDateTime "
    # directory audit
    "result resultReason activityDisplayName activityDateTime loggedByService operationType "
    # only in tables
    "table outcome errorCode failureReason usedMethods actor actorIp targetId targetType targetName keyId"
)
_INITIATOR = pl.Struct(
    {
        "user": pl.Struct(dict.fromkeys(("id", "userPrincipalName", "displayName", "ipAddress"), _TEXT)),
        "app": pl.Struct(dict.fromkeys(("appId", "displayName", "servicePrincipalId", "servicePrincipalName"), _TEXT)),
    }
)
_TARGET = pl.Struct(
    dict.fromkeys(("id", "displayName", "type", "userPrincipalName"), _TEXT)
    | {
        "modifiedProperties": pl.List(
            pl.Struct(dict.fromkeys(("displayName", "oldValue", "newValue"), _TEXT)),
        )
    }
)
FIELDS: dict[str, pl.DataType] = dict.fromkeys(_TEXTS.split(), _TEXT) | {
    "signInEventTypes": pl.List(_TEXT),
    "status": pl.Struct({"errorCode": _TEXT, "failureReason": _TEXT}),
    "authenticationProcessingDetails": _PAIRS,
    "authenticationDetails": pl.List(pl.Struct({"authenticationMethod": _TEXT})),
    "additionalDetails": _PAIRS,
    "initiatedBy": _INITIATOR,
    "targetResources": pl.List(_TARGET),
}
_BY_LOWER = {name.lower(): name for name in (*FIELDS, *ENVELOPE)}
# Names of Log Analytics columns (lower case) that are not those of Graph; None: something else under a name of ours.
_TABLE: dict[str, str | None] = {
    "timegenerated": "time",
    "timestamp": "time",
    "aadtenantid": "tenantId",
    "tenantid": None,  # of the workspace
    "resourceid": "azureId",
    "resourceidentity": "resourceId",
    "type": "table",
    "identity": "identity",
    "aadoperationtype": "operationType",
    "authenticationmethodsused": "usedMethods",
    "correlationid": "correlationId",
    # as queries for the audit of credentials name what they take out
    "initiatinguserorapp": "actor",
    "initiatingipaddress": "actorIp",
    "targetid": "targetId",
    "targettype": "targetType",
    "targetdisplayname": "targetName",
    "keyidentifier": "keyId",
}
# Names of the portal's columns, in lower case and without blanks.
_PORTAL = {
    "date(utc)": "createdDateTime",
    "requestid": "id",
    "useragent": "userAgent",
    "correlationid": "correlationId",
    "userid": "userId",
    "username": "userPrincipalName",
    "crosstenantaccesstype": "crossTenantAccessType",
    "authenticationprotocol": "authenticationProtocol",
    "uniquetokenidentifier": "uniqueTokenIdentifier",
    "clientcredentialtype": "clientCredentialType",
    "applicationid": "appId",
    "resource": "resourceDisplayName",
    "resourceid": "resourceId",
    "resourcetenantid": "resourceTenantId",
    "hometenantid": "homeTenantId",
    "ipaddress": "ipAddress",
    "status": "outcome",
    "sign-inerrorcode": "errorCode",
    "failurereason": "failureReason",
    "clientapp": "clientAppUsed",
    "multifactorauthenticationauthmethod": "usedMethods",
    "sessionid": "sessionId",
    "managedidentitytype": "managedIdentityType",
    "serviceprincipalid": "servicePrincipalId",
    "credentialkeyid": "servicePrincipalCredentialKeyId",
    "serviceprincipalcredentialkeyid": "servicePrincipalCredentialKeyId",
    "credentialthumbprint": "servicePrincipalCredentialThumbprint",
    "serviceprincipalcredentialthumbprint": "servicePrincipalCredentialThumbprint",
    "numberofsign-ins": "signInCount",
    "#sign-ins": "signInCount",
    "sign-ins": "signInCount",
    "sign-incount": "signInCount",
    # directory audit
    "service": "loggedByService",
    "category": "category",
    "activity": "activityDisplayName",
    "result": "result",
    "resultreason": "resultReason",
    "actoruserprincipalname": "actor",
    "target1objectid": "targetId",
    "target1type": "targetType",
    "target1displayname": "targetName",
}
_SUFFIX = re.compile(r"(?:_dynamic|_string|_[sdtbg])?(?: \[([^\]]{1,40})\])?$")
_OUTER: dict[str, pl.DataType] = dict.fromkeys((*ENVELOPE, "azureId"), _TEXT)
_FLAT = pl.Struct(_OUTER | FIELDS)


def header(line: str) -> list[str]:
    """Names in a CSV header line."""
    try:
        return [name.strip() for name in next(csv.reader([line.lstrip("\ufeff")]), [])]
    except csv.Error:
        return []


def fields_of(names: Sequence[str]) -> dict[str, list[str]]:
    """Field -> names of the columns that hold it (of twins the first that is filled counts)."""
    plain = [re.sub(r"\s+", "", name).lower() for name in names]
    portal = "date(utc)" in plain or ("date" in plain and "activity" in plain)
    found: dict[str, list[str]] = {}
    for name, bare in zip(names, plain, strict=True):
        if portal:
            field = "activityDateTime" if bare == "date" else _PORTAL.get(bare)
        else:
            low = _SUFFIX.sub("", name).strip().lower()
            field = _TABLE[low] if low in _TABLE else _BY_LOWER.get(low)
        if field is not None and name not in found.setdefault(field, []):
            found[field].append(name)
    return found


def is_local(names: Sequence[str]) -> bool:
    """Whether the export's times are in the zone of whoever exported."""
    zones = [match[1].lower() for name in names if (match := _SUFFIX.search(name)) and match[1]]
    return bool(zones) and "utc" not in zones


def sniff_json(head: Head, mark: re.Pattern[str], what: str, score: float) -> Match | None:
    """The claim on JSON in which `mark` is found: lines or one document, with names of Graph or of Log Analytics."""
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] not in ("{", "[") or not mark.search(start):
        return None
    first = (head.lines[0] if head.lines else start).lstrip("\ufeff \t")
    table = "table-" if re.search(r'"(?:TimeGenerated|CreatedDateTime|ActivityDisplayName)"\s*:', start) else ""
    wrapped = re.match(r'\[|\{\s*"(?:records|value)"\s*:|\{\s*"@odata', first)
    if wrapped or not (mark.search(first) or re.search(r'"(?:category|Category|id|Id)"\s*:', first)):
        return Match(score, f"{what} in one JSON document", "json", table + "json")
    return Match(score, f"{what}, one a line", "lines", table + "jsonl")


def read(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    """Records to columns.

    Args:
        frame: record_no and raw.
        ctx: `variant` as sniffed; the header of a CSV is carried in it.

    Returns:
        record_no, note ("header" for a header row, else null), fault (why a record cannot be read, or null), all of
        `FIELDS`, the fields of the envelope, and azureId: the path that names the tenant.
    """
    if ctx.variant == "csv":
        return _csv(frame, ctx)
    if ctx.variant.startswith("table"):
        return _flat(_table_json(frame), pl.lit(None, pl.String))
    envelope = dict.fromkeys((*ENVELOPE, "resourceId"), _TEXT)
    outer = jsonrows.decode(frame.lazy(), pl.Struct(envelope)).collect()
    bad = pl.col("bad_json")
    raw, properties = pl.col("raw"), pl.col("properties").str.strip_chars()
    flat = outer.select(
        "record_no",
        "raw",
        bad.alias("bad"),
        pl.col("j").struct.unnest().name.map(lambda n: n if n == "properties" else "o." + n),
    )
    wrapped = properties.str.starts_with("{").fill_null(value=False)
    flat = flat.with_columns(pl.when(wrapped).then(properties).otherwise(raw).alias("raw"), wrapped.alias("wrapped"))
    inner_fields = dict.fromkeys(("tenantId", "category", "correlationId"), _TEXT) | FIELDS
    inner = jsonrows.decode(flat.lazy(), pl.Struct(inner_fields)).collect()
    inner = inner.with_columns(pl.col("j").struct.unnest()).drop("j", "raw", "properties")
    only_outer = [name for name in ENVELOPE if name not in inner_fields and name != "properties"]
    inner = inner.with_columns(
        # Of the audit, the properties have a category of their own: the envelope's tells the log.
        pl.coalesce("o.category", "category").alias("category"),
        pl.coalesce("o.tenantId", "tenantId").alias("tenantId"),
        pl.coalesce("correlationId", "o.correlationId").alias("correlationId"),
        pl.when("wrapped").then("o.resourceId").alias("azureId"),
        *(pl.col("o." + name).alias(name) for name in only_outer),
    )
    fault = pl.when(pl.col("bad") | pl.col("bad_json")).then(pl.lit("not a JSON object"))
    return inner.with_columns(fault.alias("fault"), pl.lit(None, pl.String).alias("note")).select(_COLUMNS)


_COLUMNS = ["record_no", "note", "fault", *(name for name in ENVELOPE if name != "properties"), "azureId", *FIELDS]


def _flat(decoded: pl.DataFrame, fault: pl.Expr) -> pl.DataFrame:
    fault = pl.coalesce(fault, pl.when("bad_json").then(pl.lit("not a JSON object")))
    decoded = decoded.with_columns(fault.alias("fault"), pl.lit(None, pl.String).alias("note"))
    return decoded.with_columns(pl.col("j").struct.unnest()).select(_COLUMNS)


def _table_json(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of Log Analytics as JSON: names with a capital."""
    special = {field: name for name, field in _CAPITAL.items()}
    names = {special.get(field.name, field.name[0].upper() + field.name[1:]): field for field in _FLAT.fields}
    schema = pl.Struct({name: field.dtype for name, field in names.items()})
    decoded = jsonrows.decode(frame.lazy(), schema).collect()
    renamed = pl.col("j").struct.rename_fields([field.name for field in names.values()])
    return decoded.select("record_no", "bad_json", renamed.alias("j"))


_CAPITAL = {
    "TimeGenerated": "time", "AADTenantId": "tenantId", "ResourceId": "azureId", "ResourceIdentity": "resourceId",
    "Type": "table", "IPAddress": "ipAddress", "AADOperationType": "operationType",
    "AuthenticationMethodsUsed": "usedMethods",
}  # fmt: skip


def _csv(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    raw = frame.get_column("raw")
    if "header" not in ctx.carry and frame.height:
        ctx.carry["header_raw"] = raw[0] or ""
        ctx.carry["header"] = header(ctx.carry["header_raw"])
    names: list[str] = ctx.carry.get("header", [])
    again = raw.str.strip_chars_start("\ufeff").eq_missing(ctx.carry.get("header_raw", "").lstrip("\ufeff"))
    columns: Mapping[str, list[str]] = {
        field: found for field, found in fields_of(names).items() if field in {f.name for f in _FLAT.fields}
    }
    wanted = [name for found in columns.values() for name in found]
    rows = csvrows.columns(frame.filter(~again).lazy(), names or ["?"], wanted).collect()
    # Lists and objects stand in text, and the JSON reader sorts out which.
    pairs = [pl.coalesce(f"c.{name}" for name in found).alias(field) for field, found in columns.items()]
    text = pl.struct(pairs or [pl.lit(None, pl.String).alias("id")]).struct.json_encode()
    rows = rows.select("record_no", "bad_csv", text.alias("raw"))
    decoded = jsonrows.decode(rows.lazy(), _FLAT).collect()
    read_rows = _flat(decoded, pl.when("bad_csv").then(pl.lit("CSV record does not fit its header")))
    heads = frame.filter(again).select("record_no", pl.lit("header").alias("note"))
    return pl.concat([read_rows, heads], how="diagonal")


def text(name: str) -> pl.Expr:
    """A text field without blanks around it; null when empty."""
    value = pl.col(name).str.strip_chars()
    return pl.when(value != "").then(value)


def lower(*names: str) -> pl.Expr:
    """The first of the fields that is filled, in lower case."""
    return pl.coalesce(text(name) for name in names).str.to_lowercase()


def filled(name: str) -> pl.Expr:
    """A text field; null also for "none"."""
    return pl.when(pl.col(name).str.to_lowercase() != "none").then(text(name))


def azure_tenant() -> pl.Expr:
    """The tenant in the path of the resource that logs: ``/tenants/GUID/providers/Microsoft.aadiam``."""
    return pl.col("azureId").str.to_lowercase().str.extract(r"^/tenants/([0-9a-f-]{36})(?:/|$)")
