"""Exchange cmdlets, from whichever log names them, to rows of change_events: the ops of the unified audit."""

import polars as pl

from transforms import exchange, ual_operations, ual_values
from transforms import ual_fields as u

READS = "cmdlet that only reads"
GIVEN = ("cmdlet", "actor", "object", "outcome", "org")


def decide(frame: pl.DataFrame) -> pl.DataFrame:
    """Add op, target_type and only_reads: decided once per name in `cmdlet`, of which there are few.

    A cmdlet that only reads is an event where it failed (op ``other``): somebody who feels his way leaves those.
    """
    names = frame.get_column("cmdlet").unique().to_list()
    found = [(name, *_known(name or "")) for name in names]
    schema = {"cmdlet": pl.String, "op": pl.String, "target_type": pl.String, "reads": pl.Boolean}
    table = pl.DataFrame(found, schema=schema, orient="row")
    frame = frame.join(table, on="cmdlet", how="left", nulls_equal=True, maintain_order="left")
    return frame.with_columns(only_reads=pl.col("reads") & (pl.col("outcome") != "failure")).drop("reads")


def _known(cmdlet: str) -> tuple[str, str, bool]:
    name = ual_operations.normal(cmdlet)
    found = ual_operations.change(name, directory=False)
    return (*(found or ("other", "other")), found is None and ual_operations.reads(name))


def rows(frame: pl.DataFrame, settings: pl.DataFrame) -> pl.DataFrame:
    """Rows of change_events.

    Args:
        frame: one row per cmdlet: what `decide` adds, the columns `GIVEN` (texts: cmdlet, actor, object that was
            changed, outcome, organisation), and any columns of change_events, which stay.
        settings: rows as ual_values has them: the parameters, and what they changed.
    """
    actor = pl.col("actor").str.strip_chars().str.to_lowercase()
    org = pl.col("org").str.strip_chars().str.to_lowercase()
    org = pl.when(org.str.contains(r"^[^\s@]+\.[^\s@]+$")).then(org)
    inside = pl.when(pl.col("target_type") == "mailbox").then(u.domain(pl.col("object").str.to_lowercase()))
    frame = frame.with_columns(
        pl.concat_list(org, u.domain(actor), inside).alias("own"), pl.lit(None, pl.String).alias("details")
    )
    frame = ual_values.refine(frame, settings)
    columns = {
        "op_raw": pl.col("cmdlet"),
        "actor_id": actor,
        "actor_type": actor_type(actor),
        "tenant_domain": pl.coalesce(org, u.domain(actor)),
        "target_id": _target(),
    }
    spare = [*GIVEN, "own", "details", "identity", "mailbox", "grantee", "only_reads"]
    told = frame.with_columns(value.alias(name) for name, value in columns.items())
    return told.drop([name for name in spare if name != "outcome"])


def actor_type(actor: pl.Expr) -> pl.Expr:
    """Kind of an actor in lower case; null for none."""
    system = actor.str.contains(r"^(?:nt authority|nt service|autorite nt|nt-autorit.t)\\|\(msexchange")
    kind = pl.when(system).then(pl.lit("system")).otherwise(exchange.principal_type(actor))
    return pl.when(actor.is_not_null()).then(kind)


def _target() -> pl.Expr:
    """The mailbox's address where one is told, else the object as named; lower case."""
    identity, named = pl.col("identity").str.to_lowercase(), pl.col("object").str.strip_chars().str.to_lowercase()
    named = pl.when(named != "").then(named)
    address = identity.str.contains("@", literal=True) & pl.col("target_type").is_in(["mailbox", "user"])
    mailbox = pl.col("mailbox").str.to_lowercase()
    box = pl.col("target_type").is_in(["mailbox", "rule"])
    return pl.coalesce(pl.when(address).then(identity), named, identity, pl.when(box).then(mailbox), mailbox)
