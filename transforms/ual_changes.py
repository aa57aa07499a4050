"""Microsoft 365 audit records that change the control plane."""

import polars as pl

from transforms import ual_fields as u

_KEY = r"KeyIdentifier=([0-9A-Fa-f-]{36})"
_FORWARDS = ["forwardingsmtpaddress", "forwardingaddress", "delivertomailboxandforward"]
_AUDITS = [
    "auditenabled",
    "auditadmin",
    "auditdelegate",
    "auditowner",
    "auditlogagelimit",
    "defaultauditset",
    "auditdisabled",
]
_HOLDS = [
    "litigationholdenabled",
    "litigationholdduration",
    "retentionpolicy",
    "retentionholdenabled",
    "singleitemrecoveryenabled",
]
_HOLDS += ["retaindeleteditemsfor", "delayholdapplied", "removedelayholdapplied"]
# Parameters that name where mail goes.
_TARGETS = [
    "forwardto",
    "redirectto",
    "forwardasattachmentto",
    "forwardingsmtpaddress",
    "forwardingaddress",
    "blindcopyto",
]
_TARGETS += ["redirectmessageto", "copyto", "addtorecipients", "journalemailaddress", "journalingreportndrto", "sendto"]
_TARGETS += ["sendtextmessagenotificationto", "generateincidentreport", "actions", "ruleactions"]


def change_rows(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of change_events (prepared records; `op` and `target_type` as ual_operations names them)."""
    if not frame.height:
        return frame.select("record_no")
    settings = _settings(frame)
    frame = frame.join(_compact(settings), on="record_no", how="left")
    frame = frame.join(_keys(settings), on="record_no", how="left").join(_agent(frame), on="record_no", how="left")
    # Licence changes stand only there.
    told = pl.col("old").is_null() & pl.col("new").is_null() & (pl.col("details_text") != "{}")
    columns = {
        "source": pl.lit("m365_ual"),
        "op": _op(),
        "op_raw": pl.col("Operation"),
        "reason": pl.when(pl.col("outcome") != "success").then(u.text("ResultStatus")),
        "actor_id": u.lower("UserId"),
        "actor_type": pl.col("principal_type"),
        "app_id": pl.coalesce("app_id", u.guid(pl.col("agent_app").str.to_lowercase())),
        "user_agent": pl.coalesce("agent", u.text("UserAgent"), u.text("ClientInfoString")),
        "target_type": _target_type(),
        "target_id": _target(),
        "attr": pl.coalesce(pl.col("attr").str.slice(0, u.MAX_TEXT), pl.when(told).then(pl.lit("additionalDetails"))),
        "old_value": pl.col("old").str.slice(0, u.MAX_TEXT),
        "new_value": pl.coalesce(pl.col("new"), pl.when(told).then("details_text")).str.slice(0, u.MAX_TEXT),
        "credential_id": pl.when(pl.col("added") != "").then("added").when(pl.col("removed") != "").then("removed"),
        "is_external_target": _external(),
    }
    plain = [name for name in u.COMMON if name not in columns and name != "principal_type"]
    return frame.select("record_no", *plain, *(value.alias(name) for name, value in columns.items()))


def _settings(frame: pl.DataFrame) -> pl.DataFrame:
    """record_no, name, old, new: one row per parameter, modified property and (of mailbox rules) operation property."""
    parts = []
    for column in ("ModifiedProperties", "Parameters", "OperationProperties"):
        long = frame.select("record_no", column).explode(column).drop_nulls(column)
        long = long.select("record_no", pl.col(column).struct.unnest())
        old = pl.col("OldValue") if column == "ModifiedProperties" else pl.lit(None, pl.String)
        new = pl.coalesce("NewValue", "Value") if column == "ModifiedProperties" else pl.col("Value")
        parts.append(long.select("record_no", name=pl.col("Name").fill_null(""), old=old, new=new))
    return pl.concat(parts)


def _compact(settings: pl.DataFrame) -> pl.DataFrame:
    """attr, old, new as compact text; what mail targets and which names (lower case) the record sets."""

    def joined(name: str) -> pl.Expr:
        value = pl.col(name).str.replace_all(r"\s+", " ").str.strip_chars().str.slice(0, u.MAX_TEXT)
        pair = pl.when(pl.col("name") == "").then(value).otherwise(pl.col("name") + "=" + value)
        several = pl.len() > 1
        return pl.when(several).then(pair.filter(value != "").str.join("; ")).otherwise(value.first()).alias(name)

    low = pl.col("name").str.to_lowercase()
    # The name of a lone text (a cmdlet line) is unknown: look at all of it.
    target = pl.col("new").filter(low.is_in(_TARGETS) | (low == "")).str.join(" ")
    grouped = settings.group_by("record_no", maintain_order=True).agg(
        pl.col("name").filter(pl.col("name") != "").unique(maintain_order=True).str.join("; ").alias("attr"),
        joined("old"),
        joined("new"),
        low.unique().alias("names"),
        low.filter(pl.col("new").fill_null("") != "").unique().alias("filled"),
        target.alias("mail_targets"),
        pl.col("new").filter(low == "identity").first().alias("identity"),
        pl.col("new").filter(low == "ruleoperation").first().alias("rule_operation"),
    )
    empty = [pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("attr", "old", "new")]
    return grouped.with_columns(empty)


def _keys(settings: pl.DataFrame) -> pl.DataFrame:
    """added, removed: key identifiers that KeyDescription has gained and lost, joined by ``;``."""
    keys = settings.filter(pl.col("name") == "KeyDescription")
    old, new = (pl.col(name).fill_null("").str.to_lowercase().str.extract_all(f"(?i){_KEY}") for name in ("old", "new"))
    keys = (
        keys.select("record_no", old=old, new=new)
        .group_by("record_no")
        .agg(pl.col("old").explode(), pl.col("new").explode())
    )

    def diff(left: str, right: str) -> pl.Expr:
        gained = pl.col(left).list.drop_nulls().list.set_difference(pl.col(right).list.drop_nulls())
        return gained.list.sort().list.join(";").str.replace_all("keyidentifier=", "", literal=True)

    return keys.select("record_no", added=diff("new", "old"), removed=diff("old", "new"))


def _agent(frame: pl.DataFrame) -> pl.DataFrame:
    """User agent and application of a directory change: JSON text in an extended property."""
    details = u.named(frame, "ExtendedProperties", {"additionalDetails": "details"})
    value = pl.col("details")
    return details.select(
        "record_no",
        agent=value.str.extract(r'"User-Agent"\s*:\s*"((?:[^"\\]|\\.)*)"'),
        agent_app=value.str.extract(r'"AppId"\s*:\s*"([0-9A-Fa-f-]{36})"'),
        details_text=value,
    )


def _op() -> pl.Expr:
    """The op that the operation's name gives, refined by what the record sets."""
    named, names = pl.col("op"), pl.col("names")
    mailbox = named == "mailbox_setting"

    def has(wanted: list[str]) -> pl.Expr:
        return names.list.set_intersection(wanted).list.len().fill_null(0) > 0

    licence = pl.col("attr").str.contains("AssignedLicense") | pl.col("details_text").str.contains("AssignedLicense")
    strong = pl.col("attr").str.contains("StrongAuthentication")
    credential = named.is_in(["add_credential", "update_credential", "remove_credential"])
    return (
        pl.when(mailbox & has(_FORWARDS))
        .then(pl.lit("forwarding"))
        .when((mailbox | (named == "policy")) & has(_AUDITS))
        .then(pl.lit("audit_setting"))
        .when(mailbox & has(_HOLDS))
        .then(pl.lit("retention"))
        .when((named == "user") & licence.fill_null(value=False))
        .then(pl.lit("licence"))
        .when((named == "user") & strong.fill_null(value=False))
        .then(pl.lit("mfa"))
        .when(
            (named == "inbox_rule")
            & pl.col("rule_operation").str.to_lowercase().str.starts_with("remove").fill_null(value=False)
        )
        .then(pl.lit("remove_inbox_rule"))
        .when(credential & (pl.col("added") != "").fill_null(value=False))
        .then(pl.lit("add_credential"))
        .when(credential & (pl.col("removed") != "").fill_null(value=False))
        .then(pl.lit("remove_credential"))
        .otherwise(named)
    )


def _target_type() -> pl.Expr:
    """A role is given to somebody: where the record names a user, he is the target."""
    user = u.lower("ObjectId").str.contains("@", literal=True).fill_null(value=False)
    return pl.when((pl.col("target_type") == "role") & user).then(pl.lit("user")).otherwise("target_type")


def _target() -> pl.Expr:
    """What was changed: for mailboxes the address if the record has it, else the object as named; lower case."""
    identity = pl.col("identity").str.strip_chars().str.to_lowercase()
    identity = pl.when(identity != "").then(identity)
    mailbox = pl.col("target_type").is_in(["mailbox", "user"])
    user = (
        pl.col("Target")
        .list.eval(pl.element().struct.field("ID").filter(pl.element().struct.field("Type") == "5"))
        .list.first()
    )
    named = pl.coalesce(u.lower("ObjectId"), u.lower("OfficeObjectId"))
    listed = pl.when(pl.col("Target").list.len() > 0).then(user).str.to_lowercase()
    return pl.coalesce(
        pl.when(mailbox & identity.str.contains("@", literal=True)).then(identity),
        pl.when(named != "not available").then(named),
        identity,
        listed,
        pl.when(mailbox | (pl.col("target_type") == "rule")).then(u.lower("MailboxOwnerUPN", "MailboxGuid")),
    )


def _external() -> pl.Expr:
    """Whether a mail target lies outside the organisation's domains as the record shows them, else null."""
    targets = pl.col("mail_targets").str.to_lowercase().str.extract_all(r"@[a-z0-9][a-z0-9.-]*\.[a-z0-9-]+")
    organisation = u.lower("OrganizationName")
    # A partner's administrator has a domain of his own.
    inside = pl.when(~u.lower("ExternalAccess").eq_missing("true")).then(u.domain(u.lower("UserId")))
    own = pl.concat_list(pl.concat_str(pl.lit("@"), organisation), pl.concat_str(pl.lit("@"), inside)).list.drop_nulls()
    known = own.list.len() > 0
    outside = targets.list.set_difference(own).list.len() > 0
    return pl.when((targets.list.len() > 0) & known).then(outside)
