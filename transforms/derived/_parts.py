"""What the derived tables share: typed inputs, capped sums, hour bits and the fixed order of rows."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from data_contracts import contract
from transforms.derived._commands import EXCHANGE
from transforms.sessions import WEB_SOURCES, requests_once, with_login

# A log can claim any number. Ten million rows at this cap still sum within 64 bits.
COUNT_CAP = 2**38
_TOLD_BY_ARRIVAL = ("exim", "courier")


def table(tables: Mapping[str, pl.LazyFrame], name: str) -> pl.LazyFrame:
    """The named table in its contract's columns; an empty one where the caller has none."""
    given = tables.get(name)
    schema = contract(name).polars_schema
    return pl.LazyFrame(schema=schema) if given is None else contract(name).conform(given)


def height(tables: Mapping[str, pl.LazyFrame], name: str) -> int:
    """Rows of the named table, as its files' footers tell."""
    return int(table(tables, name).select(pl.len()).collect().item())


def within(days: Sequence[date], before: int = 0) -> pl.Expr:
    """Whether a row's `date` is one of these consecutive days, or of so many days before them."""
    return pl.col("date").is_between(days[0] - timedelta(days=before), days[-1])


def accesses(tables: Mapping[str, pl.LazyFrame], days: Sequence[date]) -> pl.LazyFrame:
    """The access events of `days`: sessions with the address of their login, and each web request once.

    Exchange tells of its POP3 and IMAP sessions command by command; they count as those of other servers do, with a row
    for the login, one for failed attempts, and one for the session (from the table sessions). Exim and Courier tell of
    an authenticated submission by the message that came with it: it counts as a login too.
    """
    access = table(tables, "access_events")
    # They never concern the same rows; apart, none runs over the others'.
    web, exchange = pl.col("source").is_in(WEB_SOURCES), pl.col("source") == EXCHANGE
    by_command = exchange & pl.col("session_id").is_not_null()
    rows = pl.concat([requests_once(access.filter(web)), with_login(access.filter(~web & ~by_command))])
    told = [_exchange_sessions(table(tables, "sessions")), _submissions(table(tables, "mail_events"))]
    columns = list(contract("access_events").polars_schema)
    return pl.concat([rows, *told], how="diagonal").filter(within(days)).select(columns)


def _exchange_sessions(sessions: pl.LazyFrame) -> pl.LazyFrame:
    """Exchange's POP3 and IMAP sessions as access events: login, failed attempts, summary."""
    schema = contract("access_events").polars_schema
    found = sessions.filter(pl.col("source") == EXCHANGE)
    same = [name for name in contract("sessions").polars_schema if name in schema and name != "outcome"]
    of_who = [name for name in same if not schema[name].is_numeric() or name in ("src_asn", "src_port")]
    begun = pl.when(pl.col("start_ts").dt.date() == pl.col("date")).then("start_ts").otherwise("end_ts")
    used, failed = pl.col("outcome") == "success", pl.col("n_auth_failures")
    good, bad, auth = pl.lit("success"), pl.lit("failure"), pl.lit("auth")
    login = found.filter(used).select(*of_who, ts=begun, action=auth, outcome=good, op_count=pl.lit(1, pl.Int64))
    refused = found.filter(failed > 0).select(*of_who, ts=begun, action=auth, outcome=bad, op_count=failed)
    summary = found.filter(used).select(*same, ts="end_ts", action=pl.lit("session"), outcome=good, op_count="commands")
    return pl.concat([login, refused, summary], how="diagonal")


def _submissions(mail: pl.LazyFrame) -> pl.LazyFrame:
    """Arrivals of messages whose sender had authenticated, as access events."""
    came = pl.col("event").is_in(["receive", "submit"]) & pl.col("source").is_in(_TOLD_BY_ARRIVAL)
    schema = contract("access_events").polars_schema
    same = [name for name in contract("mail_events").polars_schema if name in schema and name != "outcome"]
    who = pl.col("sasl_username").str.to_lowercase()
    return mail.filter(came & pl.col("sasl_username").is_not_null()).select(
        *same,
        protocol=pl.lit("smtp"),
        action=pl.lit("auth"),
        outcome=pl.lit("success"),
        principal_id=who,
        credential_id=pl.lit("pw:") + who,
        credential_type=pl.lit("password"),
        op_count=pl.lit(1, pl.Int64),
    )


def count(column: str, absent: int = 0) -> pl.Expr:
    """A counted column as the log gives it, `absent` where it gives none, capped so that sums cannot overflow."""
    return pl.col(column).fill_null(absent).clip(0, COUNT_CAP)


def hour_bits() -> pl.Expr:
    """Hours of the UTC day in which there were rows: bit 0 for 00:00 to 00:59."""
    return pl.lit(2, pl.Int64).pow(pl.col("ts").dt.hour().cast(pl.Int64)).bitwise_or()


def finish(rows: pl.LazyFrame, name: str, key: Sequence[str]) -> pl.LazyFrame:
    """The rows in the contract's columns, sorted as the contract says and then by the rest of the key."""
    return in_order(contract(name).conform(rows), name, key)


def in_order(rows: pl.LazyFrame, name: str, key: Sequence[str]) -> pl.LazyFrame:
    """The rows sorted as the contract says and then by the rest of the key."""
    ours = contract(name)
    order = [*ours.sorted_by, *(column for column in key if column not in ours.sorted_by)]
    return rows.sort(order, nulls_last=False)


def declared_journals(tables: Mapping[str, pl.LazyFrame]) -> pl.LazyFrame:
    """Mailboxes that the reference tables declare as journal: [mailbox_id, is_journal], the flag always true."""
    mailboxes = table(tables, "mailboxes").filter(pl.col("kind") == "journal").select("mailbox_id")
    bindings = table(tables, "bindings").filter(pl.col("scope") == "journal")
    accounts = bindings.filter(pl.col("credential_id").str.to_lowercase().str.starts_with("pw:"))
    names = pl.concat(
        [
            mailboxes,
            bindings.select(pl.col("principal_id").alias("mailbox_id")),
            accounts.select(pl.col("credential_id").str.slice(3).alias("mailbox_id")),
        ]
    )
    lower = names.select(pl.col("mailbox_id").str.to_lowercase()).drop_nulls().unique()
    return lower.with_columns(pl.lit(value=True).alias("is_journal"))
