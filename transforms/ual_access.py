"""Microsoft 365 audit records that are access: mailbox operations and sign-ins."""

import polars as pl

from transforms import ual_fields as u

MAX_MESSAGE_IDS = 1000

MAILBOX_ACTIONS = {
    "mailitemsaccessed": "other",  # bind or sync decides, in mailbox_rows
    "messagebind": "get_item",
    "folderbind": "list",
    "attachmentaccess": "attachment",
    "attachmentaccessed": "attachment",
    "create": "create",
    "update": "update",
    "copy": "create",
    "move": "move",
    "movetodeleteditems": "delete",
    "softdelete": "delete",
    "harddelete": "delete",
    "recorddelete": "delete",
    "send": "send",
    "sendas": "send",
    "sendonbehalf": "send",
    "mailboxlogin": "signin",
    "searchqueryinitiated": "search",
    "searchqueryinitiatedexchange": "search",
    "searchqueryperformed": "search",
}
SIGN_INS = {"userloggedin", "userloginfailed", "teamssessionstarted", "mailboxloginfailed"}
# Content searches and exports read mailboxes without leaving MailItemsAccessed.
CONTENT_ACTIONS = {
    "searchpreviewed": "search",
    "searchexported": "export",
    "searchexportdownloaded": "export",
    "viewedsearchexported": "export",
    "viewedsearchpreviewed": "search",
}
_LOGON_TYPES = {
    "0": "owner",
    "1": "admin",
    "2": "delegate",
    "3": "transport",
    "4": "system",
    "5": "best_access",
    "6": "delegated_admin",
    "delegated": "delegate",
    "systemservice": "system",
    "bestaccess": "best_access",
    "delegatedadmin": "delegated_admin",
}
_CLIENT = [
    "op",
    "UserId",
    "UserKey",
    "MailboxOwnerUPN",
    "MailboxGuid",
    "AppId",
    "ClientInfoString",
    "UserAgent",
    "LogonType",
    "Logon_Type",
    "ExternalAccess",
    "ResultStatus",
    "SendAsUserSmtp",
    "SendOnBehalfOfUserSmtp",
]
_LOGON_NAMES = ["owner", "admin", "delegate", "transport", "system", "best_access", "delegated_admin"]


def mailbox_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of access_events from mailbox operations (prepared records; `op` is the operation in lower case)."""
    if not frame.height:
        return frame.select("record_no")
    props = u.named(frame, "OperationProperties", {"MailAccessType": "access_type", "IsThrottled": "throttle"})
    frame = frame.join(props, on="record_no", how="left").join(_items(frame), on="record_no", how="left")
    asked = u.named(
        frame.filter(pl.col("op").str.contains("-", literal=True)), "Parameters", {"Mailbox": "asked_mailbox"}
    )
    frame = u.by_unique(frame.join(asked, on="record_no", how="left"), _CLIENT, _client_columns())
    accessed = pl.col("op") == "mailitemsaccessed"
    kind = pl.when(accessed).then(pl.col("access_type").str.to_lowercase())
    kind = pl.when(kind.is_in(["bind", "sync"])).then(kind)
    listed = pl.col("n_items").fill_null(0)
    columns = {
        "source": pl.lit("m365_ual"),
        "action": pl.when(kind == "sync")
        .then(pl.lit("sync_folder"))
        .when((kind == "bind") | (accessed & (listed > 0)))
        .then(pl.lit("get_item"))
        .otherwise("named_action"),
        "access_kind": kind,
        "throttled": pl.when(accessed).then(pl.col("throttle").str.to_lowercase() == "true"),
        "op_count": pl.coalesce(_whole("OperationCount"), pl.when(listed > 0).then(listed), 1),
        "item_count": pl.when(listed > 0).then(pl.when(pl.col("n_ids") > 0).then("n_ids").otherwise(listed)),
        "bytes_out": pl.col("bytes"),
        "bytes_known": pl.col("bytes").is_not_null() & (pl.col("n_sized") == listed),
        "message_ids": pl.col("ids"),
        "folders": pl.col("paths"),
        "mailbox_id": pl.coalesce("mailbox_id", pl.col("asked_mailbox").str.to_lowercase()),
        "agg_level": pl.when(accessed).then(pl.lit("2min")).otherwise(pl.lit("event")),
    }
    derived = [name for name in _client_columns() if name not in (*columns, "named_action")]
    return frame.select("record_no", *u.COMMON, *derived, *(value.alias(name) for name, value in columns.items()))


def _client_columns() -> dict[str, pl.Expr]:
    """What follows from who called, with what, on which mailbox (`_CLIENT`)."""
    owner, user = u.lower("MailboxOwnerUPN", "MailboxGuid"), u.lower("UserId")
    app = u.lower("AppId")
    other = pl.when(owner.str.contains("@", literal=True) & (owner != user)).then(owner)
    return {
        "protocol": _protocol(),
        "named_action": _named_action(),
        "logon_type": _logon_type(),
        "external_access": _flag("ExternalAccess"),
        "mailbox_id": owner,
        # an application reading alone is named ServicePrincipal_ and its object id, which sign-ins give bare
        "principal_id": pl.coalesce(user, u.lower("UserKey")).str.strip_prefix("serviceprincipal_"),
        "effective_user": pl.coalesce(u.lower("SendAsUserSmtp", "SendOnBehalfOfUserSmtp"), other),
        "api_id": pl.when(app == u.GRAPH).then(app).when(app.is_not_null()).then(pl.lit(u.EXCHANGE_ONLINE)),
        "user_agent": pl.coalesce(u.text("ClientInfoString"), u.text("UserAgent")),
        "reason": pl.when(_failed()).then(u.text("ResultStatus")),
    }


def sign_in_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of access_events from sign-ins that the audit log repeats (prepared records)."""
    if not frame.height:
        return frame.select("record_no")
    wanted = {"UserAgent": "agent", "RequestType": "request", "ResultStatusDetail": "detail"}
    frame = frame.join(u.named(frame, "ExtendedProperties", wanted), on="record_no", how="left")
    frame = frame.join(u.named(frame, "DeviceProperties", {"SessionId": "device_session"}), on="record_no", how="left")
    failed = (pl.col("op").str.ends_with("failed")) | _failed().fill_null(value=False)
    user = u.lower("UserId")
    number = u.text("ErrorNumber")
    columns = {
        "source": pl.lit("m365_ual"),
        "protocol": pl.lit("oauth"),
        "action": pl.lit("signin"),
        "outcome": pl.when(failed).then(pl.lit("failure")).otherwise("outcome"),
        "reason": pl.coalesce(
            u.text("LogonError"), pl.when(number != "0").then(number), pl.when(failed).then("detail")
        ),
        "principal_id": pl.when(user.is_in(["not available", "unknown"])).then(u.lower("UserKey")).otherwise(user),
        "src_ip_raw": pl.coalesce(u.text("ActorIpAddress"), "src_ip_raw"),
        "home_tenant_id": u.guid(u.lower("ActorContextId")),
        "app_id": pl.coalesce(u.lower("ApplicationId"), "app_id"),
        "api_id": u.guid(u.lower("ObjectId")),
        "auth_method": pl.col("request"),
        "session_id": pl.coalesce("session_id", "device_session"),
        "user_agent": pl.coalesce("agent", u.text("UserAgent")),
        "op_count": pl.lit(1, dtype=pl.Int64),
        "agg_level": pl.lit("event"),
    }
    plain = [name for name in u.COMMON if name not in columns]
    return frame.select("record_no", *plain, *(value.alias(name) for name, value in columns.items()))


def _items(frame: pl.DataFrame) -> pl.DataFrame:
    """Per record: ids (distinct, at most 1000), n_ids, n_items, bytes, n_sized and paths of all items it lists."""
    item = pl.Struct({"id": pl.String, "size": pl.String})
    folders = (
        frame.select("record_no", pl.col("Folders").alias("f"))
        .explode("f")
        .select("record_no", pl.col("f").struct.unnest())
    )
    messages = (
        frame.select("record_no", pl.col("Messages").alias("f"))
        .explode("f")
        .select("record_no", pl.col("f").struct.unnest())
    )
    single = pl.struct(
        pl.col("Item").struct.field("InternetMessageId").alias("id"),
        pl.col("Item").struct.field("SizeInBytes").alias("size"),
    )
    affected = frame.select("record_no", pl.col("AffectedItems").alias("a")).explode("a")
    affected = affected.select("record_no", pl.col("a").struct.unnest())
    items = pl.concat(
        [
            _exploded(folders, "FolderItems"),
            _exploded(messages, "MessageItems"),
            affected.select(
                "record_no",
                pl.struct(pl.col("InternetMessageId").alias("id"), size=pl.lit(None, pl.String))
                .cast(item)
                .struct.unnest(),
            ),
            frame.select("record_no", single.cast(item).struct.unnest()),
        ]
    ).filter(pl.col("id").is_not_null() | pl.col("size").is_not_null())
    size = pl.col("size").str.strip_chars().cast(pl.Int64, strict=False)
    size = pl.when(size >= 0).then(size)
    counts = items.group_by("record_no").agg(
        pl.col("id").drop_nulls().unique(maintain_order=True).alias("ids"),
        pl.len().cast(pl.Int64).alias("n_items"),
        pl.when(size.count() > 0).then(size.sum()).alias("bytes"),
        size.count().cast(pl.Int64).alias("n_sized"),
    )
    counts = counts.with_columns(
        pl.col("ids").list.len().cast(pl.Int64).alias("n_ids"), pl.col("ids").list.head(MAX_MESSAGE_IDS)
    )
    paths = pl.concat(
        [
            folders.select("record_no", path="Path"),
            affected.select("record_no", path=pl.col("ParentFolder").struct.field("Path")),
            frame.select("record_no", path=pl.col("Item").struct.field("ParentFolder").struct.field("Path")),
            frame.select("record_no", path=pl.col("Folder").struct.field("Path")),
        ]
    )
    paths = paths.filter(pl.col("path").is_not_null() & (pl.col("path") != ""))
    paths = paths.group_by("record_no").agg(pl.col("path").unique(maintain_order=True).alias("paths"))
    return counts.join(paths, on="record_no", how="full", coalesce=True)


def _exploded(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    value = pl.col(column).struct
    return (
        frame.select("record_no", column)
        .explode(column)
        .select("record_no", value.field("InternetMessageId").alias("id"), value.field("SizeInBytes").alias("size"))
    )


def _named_action() -> pl.Expr:
    """The action that the operation's name gives; reading cmdlets by their verb."""
    verb = pl.col("op").str.extract(r"^(get|search|export|test)-")
    by_verb = verb.replace_strict(
        {"search": "search", "export": "export", "test": "probe", "get": "list"}, default=None
    )
    exact = pl.col("op").replace_strict(MAILBOX_ACTIONS | CONTENT_ACTIONS, default=None, return_dtype=pl.String)
    return pl.coalesce(exact, by_verb.cast(pl.String), pl.lit("other"))


def _protocol() -> pl.Expr:
    """From the first part of ClientInfoString; what follows it is written by the client."""
    info = pl.col("ClientInfoString").str.strip_chars().str.to_lowercase()
    client = info.str.extract(r"^client=([^;]*)")
    behind = info.str.extract(r"^client=[^;]*;\s*(?:protocol=)?(pop3|imap4)")
    names = {"webservices": "ews", "rest": "graph", "owa": "owa", "activesync": "eas", "pop3": "pop3", "imap4": "imap"}
    names |= {
        "mapi": "mapi",
        "msexchangerpc": "mapi",
        "mapihttp": "mapi",
        "msexchangemapihttp": "mapi",
        "airsync": "eas",
    }
    names |= {
        "powershell": "powershell",
        "management": "powershell",
        "ecp": "ecp",
        "imap": "imap",
        "autodiscover": "autodiscover",
    }
    graph = (u.lower("AppId") == u.GRAPH) & info.is_null()
    return (
        pl.when(client == "pop3/imap4")
        .then(behind.replace_strict({"pop3": "pop3", "imap4": "imap"}, default="exchange", return_dtype=pl.String))
        .when(client.is_not_null())
        .then(client.replace_strict(names, default="exchange", return_dtype=pl.String))
        .when(pl.col("op").str.contains("-", literal=True))
        .then(pl.lit("powershell"))
        .when(graph)
        .then(pl.lit("graph"))
        .otherwise(pl.lit("exchange"))
    )


def _logon_type() -> pl.Expr:
    value = u.lower("LogonType", "Logon_Type").replace(_LOGON_TYPES)
    return pl.when(value.is_in(_LOGON_NAMES)).then(value)


def _flag(name: str) -> pl.Expr:
    value = u.lower(name)
    return pl.when(value.is_in(["true", "false"])).then(value == "true")


def _whole(name: str) -> pl.Expr:
    value = pl.col(name).str.strip_chars().cast(pl.Int64, strict=False)
    return pl.when(value >= 0).then(value)


def _failed() -> pl.Expr:
    return u.lower("ResultStatus").is_in(["failed", "failure", "false", "partiallysucceeded"])
