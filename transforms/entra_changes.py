"""Entra ID directory audit, read by entra_tables, to rows of change_events: the ops of the unified audit."""

import polars as pl

from transforms import ual_fields as u
from transforms import ual_operations, ual_values
from transforms.entra_tables import azure_tenant, lower, text

_TYPES = {
    "serviceprincipal": "service_principal",
    "application": "app",
    "user": "user",
    "group": "group",
    "role": "role",
    "directoryrole": "role",
    "policy": "policy",
    "directory": "organization",
    "organization": "organization",
    "company": "organization",
    "domain": "domain",
}
_HOLDERS = ["user", "service_principal", "group"]  # of a role


def rows(flat: pl.DataFrame) -> pl.DataFrame:
    """record_no and the columns of change_events (records with ts, ts_raw and ts_basis)."""
    if not flat.height:
        return flat.select("record_no")
    flat = flat.with_columns(pl.coalesce(text("activityDisplayName"), text("operationName")).alias("op_raw"))
    flat = flat.join(_operations(flat), on="op_raw", how="left").join(_details(flat), on="record_no", how="left")
    targets = _targets(flat)
    flat = flat.join(_chosen(targets), on="record_no", how="left")
    by = pl.col("initiatedBy").struct.field("user").struct
    flat = flat.with_columns(
        u.domain(_first(by.field("userPrincipalName"), pl.col("actor")).str.to_lowercase())
        .pipe(pl.concat_list)
        .alias("own")
    )
    flat = ual_values.refine(flat, _settings(targets))
    columns = _who() | _what()
    plain = ["record_no", "disposition", "source", "ts", "ts_raw", "ts_basis", "op", "op_raw"]
    plain += ["old_value", "is_external_target"]
    return flat.select(*plain, *(value.alias(name) for name, value in columns.items()))


def _operations(flat: pl.DataFrame) -> pl.DataFrame:
    """op_raw, op and named_type: decided once per activity, of which there are few."""
    names = flat.get_column("op_raw").unique().to_list()
    found = [ual_operations.change(ual_operations.normal(name), directory=True) or ("other", "other") for name in names]
    return pl.DataFrame({"op_raw": names, "op": [op for op, _ in found], "named_type": [target for _, target in found]})


def _first(*values: pl.Expr) -> pl.Expr:
    """The first that is neither null nor blank."""
    stripped = [value.str.strip_chars() for value in values]
    return pl.coalesce(pl.when(value != "").then(value) for value in stripped)


def _details(flat: pl.DataFrame) -> pl.DataFrame:
    """agent, target_app and details (all others as text) of additionalDetails."""
    long = flat.select("record_no", pl.col("additionalDetails").alias("d")).explode("d")
    long = long.select("record_no", pl.col("d").struct.unnest()).drop_nulls("key")
    key, value = pl.col("key").str.to_lowercase(), pl.col("value")
    pair = pl.col("key") + "=" + value.fill_null("")
    told = long.group_by("record_no", maintain_order=True).agg(
        value.filter(key == "user-agent").first().alias("agent"),
        value.filter(key == "appid").first().str.to_lowercase().alias("target_app"),
        pair.filter(key != "user-agent").str.join("; ").alias("details"),
    )
    return told.with_columns(pl.when(pl.col("details") != "").then("details").alias("details"))


def _targets(flat: pl.DataFrame) -> pl.DataFrame:
    """One row per target: record_no, n (its place), kind, id, name, modifiedProperties, chosen (the one changed)."""
    long = flat.select("record_no", "named_type", "op", pl.col("targetResources").alias("t")).explode("t")
    long = long.filter(pl.col("t").is_not_null()).with_columns(pl.col("t").struct.unnest()).drop("t")
    kind = pl.col("type").str.to_lowercase().replace_strict(_TYPES, default="other", return_dtype=pl.String)
    name = text("userPrincipalName")
    long = long.with_columns(kind.alias("kind"), pl.int_range(pl.len()).over("record_no").alias("n")).with_columns(
        pl.when(pl.col("kind") == "user")
        .then(pl.coalesce(name, text("id"), text("displayName")))
        .when(pl.col("kind").is_in(["domain", "other"]))
        .then(pl.coalesce(text("displayName"), text("id")))
        .otherwise(pl.coalesce(text("id"), name, text("displayName")))
        .alias("named")
    )
    role = pl.col("named_type") == "role"
    wanted = (role & pl.col("kind").is_in(_HOLDERS)) | (~role & (pl.col("kind") == pl.col("named_type")))
    place = pl.when(wanted.fill_null(value=False)).then(pl.col("n")).otherwise(pl.col("n") + 1_000_000)
    return long.with_columns((place == place.min().over("record_no")).alias("chosen"))


def _chosen(targets: pl.DataFrame) -> pl.DataFrame:
    chosen = targets.filter("chosen").unique("record_no", keep="first", maintain_order=True)
    return chosen.select("record_no", pl.col("kind").alias("chosen_type"), pl.col("named").alias("chosen_id"))


def _settings(targets: pl.DataFrame) -> pl.DataFrame:
    """One row per modified property, and one for each further target; values lose the quotes of their JSON text."""
    long = targets.select("record_no", pl.col("modifiedProperties").alias("m")).explode("m")
    long = long.filter(pl.col("m").is_not_null()).select("record_no", pl.col("m").struct.unnest())
    old, new = (pl.col(name).str.replace(r'(?s)^\s*"(.*)"\s*$', "${1}") for name in ("oldValue", "newValue"))
    properties = long.select("record_no", name=pl.col("displayName").fill_null(""), old=old, new=new)
    others = targets.filter(~pl.col("chosen") & pl.col("named").is_not_null())
    others = others.select("record_no", name=pl.lit("target"), old=pl.lit(None, pl.String), new=pl.col("named"))
    return pl.concat([properties, others])


def _who() -> dict[str, pl.Expr]:
    by = pl.col("initiatedBy").struct
    user, app = by.field("user").struct, by.field("app").struct
    user_id = _first(user.field("userPrincipalName"), user.field("id"))
    app_id = _first(app.field("servicePrincipalId"), app.field("appId"), app.field("displayName"))
    actor = pl.coalesce(user_id, app_id, text("actor"), text("identity"))
    looks_user = actor.str.contains("@", literal=True).fill_null(value=False)
    return {
        "source_id": text("id"),
        "tenant_id": pl.coalesce(lower("tenantId"), azure_tenant()),
        "tenant_domain": u.domain(_first(user.field("userPrincipalName")).str.to_lowercase()),
        "actor_id": actor.str.to_lowercase(),
        "actor_type": pl.when(user_id.is_not_null() | (app_id.is_null() & looks_user))
        .then(pl.lit("user"))
        .when(app_id.is_not_null())
        .then(pl.lit("service_principal"))
        .when(actor.is_null())
        .then(pl.lit("system")),
        "app_id": _first(app.field("appId")).str.to_lowercase(),
        "session_id": text("correlationId"),
        "src_ip_raw": _first(pl.col("callerIpAddress"), user.field("ipAddress"), pl.col("actorIp")),
        "user_agent": _first(pl.col("userAgent"), pl.col("agent")),
    }


def _what() -> dict[str, pl.Expr]:
    result = lower("result")
    outcome = pl.when(result == "success").then(pl.lit("success")).when(result == "failure").then(pl.lit("failure"))
    listed = text("targetType").str.to_lowercase().str.replace_all(" ", "")
    kind = pl.coalesce("chosen_type", listed.replace_strict(_TYPES, default=None, return_dtype=pl.String))
    app = (pl.col("named_type") == "app") & pl.col("target_app").str.contains(u.GUID).fill_null(value=False)
    plain = pl.when(kind == "other").then("named_type").otherwise(pl.coalesce(kind, "named_type"))
    kind = pl.when(app).then(pl.lit("app")).otherwise(plain)
    told = pl.col("old_value").is_null() & pl.col("new_value").is_null() & pl.col("details").is_not_null()
    return {
        "outcome": pl.coalesce(outcome, pl.lit("unknown")),
        "reason": text("resultReason").str.slice(0, 500),
        "target_type": kind,
        # An application is named by its client id, as sign-ins name it, where the record tells it.
        "target_id": pl.coalesce(
            pl.when(pl.col("op").is_in(["add_app_role", "remove_app_role"])).then("grantee"),
            pl.when(app).then("target_app"),
            _first(pl.col("chosen_id"), pl.col("targetId"), pl.col("targetName")).str.to_lowercase(),
        ),
        "attr": pl.coalesce("attr", pl.when(told).then(pl.lit("additionalDetails"))),
        "new_value": pl.coalesce("new_value", pl.when(told).then(pl.col("details").str.slice(0, u.MAX_TEXT))),
        "credential_id": pl.coalesce(
            "credential_id", pl.when(pl.col("op").str.contains("credential")).then(lower("keyId"))
        ),
    }
