"""What the derived tables share: typed inputs, capped sums, hour bits and the fixed order of rows."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta

import polars as pl

from data_contracts import contract
from transforms.derived._commands import EXCHANGE, commands_once
from transforms.sessions import WEB_SOURCES, requests_once, with_login

# A log can claim any number. Ten million rows at this cap still sum within 64 bits.
COUNT_CAP = 2**38


def table(tables: Mapping[str, pl.LazyFrame], name: str) -> pl.LazyFrame:
    """The named table in its contract's columns; an empty one where the caller has none."""
    given = tables.get(name)
    schema = contract(name).polars_schema
    return pl.LazyFrame(schema=schema) if given is None else contract(name).conform(given)


def within(days: Sequence[date], before: int = 0) -> pl.Expr:
    """Whether a row's `date` is one of these consecutive days, or of so many days before them."""
    return pl.col("date").is_between(days[0] - timedelta(days=before), days[-1])


def accesses(tables: Mapping[str, pl.LazyFrame], days: Sequence[date]) -> pl.LazyFrame:
    """The access events of `days`: sessions with the address of their login, each web request and command once.

    Of the two ends of an Exchange session over midnight, what the day and the day before tell decides which one counts.
    """
    access = table(tables, "access_events")
    # The three never concern the same rows; apart, none runs over the others'.
    web, exchange = pl.col("source").is_in(WEB_SOURCES), pl.col("source") == EXCHANGE
    columns = list(contract("access_events").polars_schema)
    commands = commands_once(access.filter(exchange)).select(columns)
    rows = pl.concat([requests_once(access.filter(web)), with_login(access.filter(~web & ~exchange)), commands])
    return rows.filter(within(days))


def count(column: str, absent: int = 0) -> pl.Expr:
    """A counted column as the log gives it, `absent` where it gives none, capped so that sums cannot overflow."""
    return pl.col(column).fill_null(absent).clip(0, COUNT_CAP)


def hour_bits() -> pl.Expr:
    """Hours of the UTC day in which there were rows: bit 0 for 00:00 to 00:59."""
    return pl.lit(2, pl.Int64).pow(pl.col("ts").dt.hour().cast(pl.Int64)).bitwise_or()


def finish(rows: pl.LazyFrame, name: str, key: Sequence[str]) -> pl.LazyFrame:
    """The rows in the contract's columns, sorted as the contract says and then by the rest of the key."""
    ours = contract(name)
    order = [*ours.sorted_by, *(column for column in key if column not in ours.sorted_by)]
    return ours.conform(rows).sort(order, nulls_last=False)


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
