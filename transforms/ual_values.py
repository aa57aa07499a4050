"""What a control-plane change set: parameters, modified properties and credentials, alike for every log that has them.

A log's reader gives one row per setting (record, name, old and new value); from those come the columns attr, old_value,
new_value, credential_id and is_external_target of change_events, and an op that is finer than the operation's name.
"""

import json
import logging
import re

import polars as pl

from transforms.ual_fields import MAX_TEXT, domain

NOT_KEPT = "(not kept)"
SETTINGS = {"record_no": pl.Int64(), "name": pl.String(), "old": pl.String(), "new": pl.String()}

_LOG = logging.getLogger(__name__)
_KEY = re.compile(r"\[?\s*KeyIdentifier=([0-9A-Fa-f-]{36})(?![0-9A-Fa-f-])")
_LOOSE_KEYS = re.compile(r"\[KeyIdentifier=[^\]\"]{36,1000}")
_MOST_KEYS = 2000  # of one record
_HIDDEN = r"(?:password|passwd|passphrase|secret|pin)$|^credential$|[a-z]credential$"
_HIDDEN_IN_LINE = r"(?i)(-[a-z]*(?:password|passphrase|secret|credential|pin)[: ]\s*)(?:\"[^\"]*\"?|'[^']*'?|[^\s\"']+)"
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
    "retaindeleteditemsfor",
    "delayholdapplied",
    "removedelayholdapplied",
]
# Parameters that name where mail goes.
_TARGETS = [
    "forwardto",
    "redirectto",
    "forwardasattachmentto",
    "forwardingsmtpaddress",
    "forwardingaddress",
    "blindcopyto",
    "redirectmessageto",
    "copyto",
    "addtorecipients",
    "journalemailaddress",
    "journalingreportndrto",
    "sendto",
    "sendtextmessagenotificationto",
    "generateincidentreport",
    "externalemailaddress",
    "actions",
    "ruleactions",
]
_THUMBPRINTS = ["thumbprint", "newcertificatethumbprint", "certificatethumbprint"]
_GUID = r"([0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12})"
_ADDRESS = r"@[^\s@\"',;:<>\[\](){}|\\/]*\.[^\s@\"',;:<>\[\](){}|\\/.]+"
# An application may be given one, or lose one, under any of these names.
_WITH_KEYS = ["add_credential", "update_credential", "remove_credential", "update_app"]


def refine(frame: pl.DataFrame, settings: pl.DataFrame) -> pl.DataFrame:
    """Add what the settings tell to changes.

    Args:
        frame: one row per change: record_no, op (by the operation's name), details (further text that is searched for
            names, or null) and own (List of String: the organisation's domains, lower case, as far as the record shows
            them).
        settings: rows of `SETTINGS`.

    Returns:
        The frame with attr, old_value, new_value, credential_id, is_external_target, the refined op, and identity
        (value of the setting of that name), mailbox (likewise) and grantee (service principal that gets an app role).
    """
    settings = _without_secrets(settings)
    frame = frame.join(_compact(settings), on="record_no", how="left").join(_keys(settings), on="record_no", how="left")
    changed = pl.col("gained").is_not_null() | pl.col("lost").is_not_null()
    thumbprint = pl.col("thumbprint").str.to_lowercase().str.extract(r"^\s*([0-9a-f]{40})\s*$")
    return frame.with_columns(
        _op().alias("op"),
        pl.when(changed).then("lost").otherwise("old").str.slice(0, MAX_TEXT).alias("old_value"),
        pl.when(changed).then("gained").otherwise("new").str.slice(0, MAX_TEXT).alias("new_value"),
        pl.col("attr").str.slice(0, MAX_TEXT),
        pl.coalesce("gained_id", "lost_id", thumbprint).alias("credential_id"),
        _external().alias("is_external_target"),
    ).drop(
        "old", "new", "names", "gained", "lost", "gained_id", "lost_id", "thumbprint", "mail_targets", "rule_operation"
    )


def cmdlet_settings(lines: pl.DataFrame) -> pl.DataFrame:
    """`SETTINGS` of cmdlet lines (record_no, line): ``-Identity "joey" -Confirm:$false``, one row per parameter.

    A double quote inside a value is not escaped in such lines, so that what follows one may be read amiss.
    """
    found = lines.select(
        "record_no",
        pl.col("line").str.extract_all(r"(?s)-[A-Za-z]\w*(?:(?::\s*|\s+)(?:\"[^\"]*\"?|'[^']*'?|[^\s\"'-]\S*))?"),
    ).explode("line")
    pair = pl.col("line").drop_nulls()
    found = found.drop_nulls("line")
    value = pair.str.replace(r"(?s)^-\w+(?::\s*|\s+)?", "").str.replace(r"(?s)^[\"'](.*?)[\"']?$", "${1}")
    return found.select(
        "record_no",
        pair.str.extract(r"^-(\w+)").alias("name"),
        pl.lit(None, pl.String).alias("old"),
        value.alias("new"),
    )


def _without_secrets(settings: pl.DataFrame) -> pl.DataFrame:
    """A password may stand in a log; it is not kept."""
    secret = pl.col("name").str.to_lowercase().str.contains(_HIDDEN)
    flag = pl.col("new").str.strip_chars(" $\"'").str.to_lowercase().is_in(["true", "false"])
    hidden = [
        pl.when(secret & ~flag.fill_null(value=False) & (pl.col(name).fill_null("") != ""))
        .then(pl.lit(NOT_KEPT))
        .when(pl.col("name") == "")
        .then(pl.col(name).str.replace_all(_HIDDEN_IN_LINE, "${1}" + NOT_KEPT))
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("old", "new")
    ]
    return settings.with_columns(hidden)


def _compact(settings: pl.DataFrame) -> pl.DataFrame:
    """attr, old, new as compact text; what mail targets and which names (lower case) the record sets."""

    def joined(name: str) -> pl.Expr:
        value = pl.col(name).str.replace_all(r"\s+", " ").str.strip_chars().str.slice(0, MAX_TEXT)
        pair = pl.when(pl.col("name") == "").then(value).otherwise(pl.col("name") + "=" + value)
        several = pl.len() > 1
        return pl.when(several).then(pair.filter(value != "").str.join("; ")).otherwise(value.first()).alias(name)

    def first(*names: str) -> pl.Expr:
        value = pl.col("new").str.strip_chars()
        return value.filter(low.is_in(names) & (value != "")).first()

    low = pl.col("name").str.to_lowercase()
    # The name of a lone text (a cmdlet line) is unknown: look at all of it.
    target = pl.col("new").filter(low.is_in(_TARGETS) | (low == "")).str.join(" ")
    grouped = settings.group_by("record_no", maintain_order=True).agg(
        pl.col("name").filter(pl.col("name") != "").unique(maintain_order=True).str.join("; ").alias("attr"),
        joined("old"),
        joined("new"),
        low.unique().alias("names"),
        target.alias("mail_targets"),
        first("identity").alias("identity"),
        first("mailbox").alias("mailbox"),
        first("ruleoperation").alias("rule_operation"),
        first(*_THUMBPRINTS).alias("thumbprint"),
        first("serviceprincipal.objectid").str.extract(_GUID).str.to_lowercase().alias("grantee"),
    )
    empty = [pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("attr", "old", "new")]
    return grouped.with_columns(empty)


def _keys(settings: pl.DataFrame) -> pl.DataFrame:
    """What KeyDescription gained and lost: the first key's id, and all keys as text; null for none.

    In Python, as there are few such records and their lists are JSON in a text: a display name can hold anything.
    """
    rows: dict[int, tuple[dict[str, str], dict[str, str]]] = {}
    told = settings.filter(pl.col("name").str.to_lowercase() == "keydescription")
    for number, old, new in told.select("record_no", "old", "new").iter_rows():
        before, after = rows.setdefault(number, ({}, {}))
        before.update(_listed(old))
        after.update(_listed(new))
    found = []
    for number, (before, after) in rows.items():
        gained, lost = ([k for k in one if k not in other] for one, other in ((after, before), (before, after)))
        texts = ("; ".join(after[k] for k in gained) or None, "; ".join(before[k] for k in lost) or None)
        found.append((number, *texts, next(iter(gained), None), next(iter(lost), None)))
    names = ("gained", "lost", "gained_id", "lost_id")
    return pl.DataFrame(found, schema={"record_no": pl.Int64} | dict.fromkeys(names, pl.String), orient="row")


def _listed(text: str | None) -> dict[str, str]:
    """Key id (lower case) -> description, of ``["[KeyIdentifier=...,KeyType=...]",...]``."""
    if not text:
        return {}
    try:
        value = json.loads(text[:1_000_000])
        value = json.loads(value) if isinstance(value, str) and value.startswith("[") else value
        items = value if isinstance(value, list) else [value]
    except (ValueError, RecursionError) as error:
        _LOG.debug("key description is not JSON: %s", type(error).__name__)
        items = _LOOSE_KEYS.findall(text)
    found: dict[str, str] = {}
    for item in items[:_MOST_KEYS]:
        if isinstance(item, str) and (match := _KEY.match(item)):
            rest = item[match.end() :].strip().removesuffix("]")[:1000]
            found.setdefault(match[1].lower(), f"KeyIdentifier={match[1].lower()}{rest}")
    return found


def _op() -> pl.Expr:
    """The op that the operation's name gives, refined by what the record sets."""
    named, names = pl.col("op"), pl.col("names")
    mailbox = named == "mailbox_setting"

    def has(wanted: list[str]) -> pl.Expr:
        return names.list.set_intersection(wanted).list.len().fill_null(0) > 0

    def told(text: str) -> pl.Expr:
        return pl.col("attr").str.contains(text, literal=True).fill_null(value=False) | pl.col("details").str.contains(
            text, literal=True
        ).fill_null(value=False)

    rule = pl.col("rule_operation").str.to_lowercase().str.starts_with("remove").fill_null(value=False)
    keyed = named.is_in(_WITH_KEYS)
    return (
        pl.when((mailbox | (named == "user")) & has(_FORWARDS))
        .then(pl.lit("forwarding"))
        .when((mailbox | (named == "policy")) & has(_AUDITS))
        .then(pl.lit("audit_setting"))
        .when(mailbox & has(_HOLDS))
        .then(pl.lit("retention"))
        .when((named == "user") & told("AssignedLicense"))
        .then(pl.lit("licence"))
        .when((named == "user") & told("StrongAuthentication"))
        .then(pl.lit("mfa"))
        .when((named == "inbox_rule") & rule)
        .then(pl.lit("remove_inbox_rule"))
        .when((named == "compliance_search") & has(["export", "targetmailbox"]))
        .then(pl.lit("mailbox_export"))
        .when(keyed & pl.col("gained").is_not_null())
        .then(pl.lit("add_credential"))
        .when(keyed & pl.col("lost").is_not_null())
        .then(pl.lit("remove_credential"))
        .when((named == "update_app") & told("FederatedIdentityCredential"))
        .then(pl.lit("update_credential"))
        .otherwise(named)
    )


def _external() -> pl.Expr:
    """Whether a mail target lies outside the organisation's domains as the record shows them, else null."""
    targets = pl.col("mail_targets").str.to_lowercase().str.extract_all(_ADDRESS)
    # The mailbox whose settings or rules are changed is inside, whoever changes them.
    box = pl.when(pl.col("op") == "mailbox_setting").then("identity").when(pl.col("op") == "inbox_rule").then("mailbox")
    own = pl.concat_list("own", domain(box.str.to_lowercase()))
    own = own.list.drop_nulls().list.eval(pl.lit("@") + pl.element())
    known = own.list.len() > 0
    outside = targets.list.set_difference(own).list.len() > 0
    return pl.when((targets.list.len() > 0) & known).then(outside)
