"""Microsoft 365 audit records that change the control plane."""

import polars as pl

from transforms import ual_fields as u
from transforms import ual_values


def change_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of change_events (prepared records; `op` and `target_type` as ual_operations names them)."""
    if not frame.height:
        return frame.select("record_no")
    frame = frame.join(_agent(frame), on="record_no", how="left")
    frame = ual_values.refine(frame.with_columns(_own().alias("own")), _settings(frame))
    # Licence changes stand only there.
    told = pl.col("old_value").is_null() & pl.col("new_value").is_null() & (pl.col("details") != "{}")
    columns = {
        "source": pl.lit("m365_ual"),
        "op": pl.col("op"),
        "op_raw": pl.col("Operation"),
        "reason": pl.when(pl.col("outcome") != "success").then(u.text("ResultStatus")),
        "actor_id": u.lower("UserId"),
        "actor_type": pl.col("principal_type"),
        "app_id": pl.col("app_id"),
        "user_agent": pl.coalesce("agent", u.text("UserAgent"), u.text("ClientInfoString")),
        "target_type": _target_type(),
        "target_id": _target(),
        "attr": pl.coalesce("attr", pl.when(told).then(pl.lit("additionalDetails"))),
        "old_value": pl.col("old_value"),
        "new_value": pl.coalesce("new_value", pl.when(told).then(pl.col("details").str.slice(0, u.MAX_TEXT))),
        "credential_id": pl.col("credential_id"),
        "is_external_target": pl.col("is_external_target"),
    }
    plain = [name for name in u.COMMON if name not in columns and name != "principal_type"]
    return frame.select("record_no", *plain, *(value.alias(name) for name, value in columns.items()))


def _settings(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per parameter, modified property and (of mailbox rules) operation property."""
    parts = []
    for column in ("ModifiedProperties", "Parameters", "OperationProperties"):
        long = frame.select("record_no", column).explode(column).drop_nulls(column)
        long = long.select("record_no", pl.col(column).struct.unnest())
        old = pl.col("OldValue") if column == "ModifiedProperties" else pl.lit(None, pl.String)
        new = pl.coalesce("NewValue", "Value") if column == "ModifiedProperties" else pl.col("Value")
        parts.append(long.select("record_no", name=pl.col("Name").fill_null(""), old=old, new=new))
    found = pl.concat(parts)
    # Compliance cmdlets have their parameters as one line.
    line = ((pl.col("name") == "") & pl.col("new").str.starts_with("-")).fill_null(value=False)
    lines = ual_values.cmdlet_settings(found.filter(line).select("record_no", line="new"))
    return pl.concat([found.filter(~line), lines])


def _agent(frame: pl.DataFrame) -> pl.DataFrame:
    """User agent of a directory change, and client id of its target: JSON text in an extended property."""
    details = u.named(frame, "ExtendedProperties", {"additionalDetails": "details"})
    value = pl.col("details")
    return details.select(
        "record_no",
        agent=value.str.extract(r'"User-Agent"\s*:\s*"((?:[^"\\]|\\.)*)"'),
        target_app=value.str.extract(r'"AppId"\s*:\s*"([0-9A-Fa-f-]{36})"').str.to_lowercase(),
        details=value,
    )


def _target_type() -> pl.Expr:
    """A role is given to somebody: where the record names a user, he is the target."""
    user = u.lower("ObjectId").str.contains("@", literal=True).fill_null(value=False)
    return pl.when((pl.col("target_type") == "role") & user).then(pl.lit("user")).otherwise("target_type")


def _target() -> pl.Expr:
    """What was changed: for mailboxes the address if the record has it, else the object as named; lower case."""
    identity = pl.col("identity").str.to_lowercase()
    mailbox = pl.col("target_type").is_in(["mailbox", "user"])
    user = (
        pl.col("Target")
        .list.eval(pl.element().struct.field("ID").filter(pl.element().struct.field("Type") == "5"))
        .list.first()
    )
    named = pl.coalesce(u.lower("ObjectId"), u.lower("OfficeObjectId"))
    listed = pl.when(pl.col("Target").list.len() > 0).then(user).str.to_lowercase()
    app = pl.col("target_type") == "app"
    return pl.coalesce(
        pl.when(pl.col("op").is_in(["add_app_role", "remove_app_role"])).then("grantee"),
        # An application is named by its client id, as sign-ins name it, where the record tells it.
        pl.when(app).then(u.guid(pl.col("target_app"))),
        pl.when(mailbox & identity.str.contains("@", literal=True)).then(identity),
        pl.when(pl.col("op") == "mailbox_export").then(pl.col("mailbox").str.to_lowercase()),
        pl.when(named != "not available").then(named),
        identity,
        listed,
        pl.when(mailbox | (pl.col("target_type") == "rule")).then(u.lower("MailboxOwnerUPN", "MailboxGuid")),
    )


def _own() -> pl.Expr:
    """The organisation's domains as the record shows them."""
    organisation = u.lower("OrganizationName")
    organisation = pl.when(organisation.str.contains(r"^[^\s@]+\.[^\s@]+$")).then(organisation)
    # A partner's administrator has a domain of his own.
    inside = pl.when(~u.lower("ExternalAccess").eq_missing("true")).then(u.domain(u.lower("UserId")))
    # The mailbox whose setting is changed is inside, whoever changes it.
    mailbox = pl.col("target_type") == "mailbox"
    changed = pl.when(mailbox).then(u.domain(u.lower("ObjectId")))
    return pl.concat_list(organisation, inside, changed, u.domain(u.lower("MailboxOwnerUPN")))
