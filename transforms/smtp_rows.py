"""What the logs of mail servers share: text cut into columns, and rows of messages and of authentications."""

import polars as pl

from transforms.model import QUARANTINED

ROW = ("record_no", "byte_offset", "byte_length", "ts", "ts_raw", "ts_basis", "host", "source", "op_raw")


def domain(name: str) -> pl.Expr:
    """Domain of a mail address in lower case; null without one."""
    after = pl.col(name).str.splitn("@", 2).struct[1]
    odd = after.str.contains("@", literal=True)  # a quoted local part
    last = pl.when(odd).then(name).str.extract(r"@([^@\s]+)$")
    return pl.when(odd).then(last).when(after != "").then(after).str.to_lowercase()


def groups(rows: pl.LazyFrame, text: pl.Expr, pattern: str, *names: str) -> pl.LazyFrame:
    """Add the groups of a pattern as columns, all null where it does not match; evaluated once, unlike `struct[n]`."""
    return rows.with_columns(text.str.extract_groups(pattern).struct.rename_fields(list(names)).alias("_")).unnest("_")


def cut(rows: pl.LazyFrame, column: str, by: str, *names: str) -> pl.LazyFrame:
    """Add what lies between the separators as columns, the last with all that is left; null where there is no more."""
    parts = pl.col(column).str.splitn(by, len(names)).struct.rename_fields(list(names))
    return rows.with_columns(parts.alias("_")).unnest("_")


def mail(rows: pl.LazyFrame, names: tuple[str, ...], good: pl.Expr | None = None, damage: str = "") -> pl.LazyFrame:
    """Keep `names` of rows of mail_events; rows that are not good are quarantined for `damage`."""
    if good is None:
        rows = rows.with_columns(disposition=pl.lit("mail_events"), reason=pl.lit(None, pl.String))
    else:
        rows = rows.with_columns(
            disposition=pl.when(good).then(pl.lit("mail_events")).otherwise(pl.lit(QUARANTINED)),
            reason=pl.when(~good).then(_damage(damage)),
        )
    rows = rows.with_columns(direction=pl.lit("unknown"))
    return rows.select(*ROW, "disposition", "reason", "direction", *names)


def access(rows: pl.LazyFrame, good: pl.Expr, damage: str) -> pl.LazyFrame:
    """Turn rows with src_ip_raw, auth_method, user, outcome, reason, session_id, repeated into access_events."""
    user = pl.col("user").str.strip_chars().str.to_lowercase()
    rows = rows.with_columns(principal_id=pl.when(user != "").then(user)).with_columns(
        disposition=pl.when(good).then(pl.lit("access_events")).otherwise(pl.lit(QUARANTINED)),
        reason=pl.when(good).then("reason").otherwise(_damage(damage)),
        protocol=pl.lit("smtp"),
        action=pl.lit("auth"),
        auth_method=pl.col("auth_method").str.to_uppercase(),
        principal_type=pl.when(pl.col("principal_id").is_not_null()).then(pl.lit("user")),
        credential_id=pl.lit("pw:") + pl.col("principal_id"),
        credential_type=pl.lit("password"),
        tenant_domain=domain("principal_id"),
        op_count=pl.col("repeated"),
        bytes_known=pl.lit(value=False),
        agg_level=pl.lit("event"),
    )
    who = ("principal_id", "principal_type", "credential_id", "credential_type", "auth_method", "tenant_domain")
    what = ("protocol", "action", "outcome", "session_id", "src_ip_raw", "op_count", "bytes_known", "agg_level")
    return rows.select(*ROW, "disposition", "reason", *who, *what)


def _damage(what: str) -> pl.Expr:
    return pl.concat_str("source", pl.lit(f": {what}"))
