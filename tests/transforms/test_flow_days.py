"""flow_days: mail counted by who sent it, from where and to whom; the senders of what came in are summed."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from data_contracts import contract
from transforms.derived import flow_days

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)


def built(*rows: dict[str, Any], own: str = "a.example") -> pl.DataFrame:
    one = {
        "date": DAY, "tenant_id": "t1", "direction": "unknown", "status": "sent", "counts": True, "attempts": 1,
        "src_net": "192.0.2.0/24", "mail_from": "Bob@A.example", "rcpt_domain": "b.example", "size_bytes": 1000,
        "received_ts": NOON,
    }  # fmt: skip
    schema = contract("messages").polars_schema
    full = [one | {"chain_id": f"c{at}"} | row for at, row in enumerate(rows)]
    frame = pl.LazyFrame([{name: row.get(name) for name in schema} for row in full], schema=schema)
    tenants = pl.LazyFrame({"tenant_id": ["t1"], "domain": [f"{own.upper()}; other.example"]})
    states = flow_days.build([DAY], {"messages": frame, "tenants": tenants}).collect()
    accepted, refused = contract("flow_days").split(states)
    assert refused.is_empty(), refused
    return accepted


def test_a_message_to_many_of_a_domain_counts_once() -> None:
    rows = built(
        {"chain_id": "c", "rcpt": "x@b.example", "sasl_username": "Route@a.example"},
        {
            "chain_id": "c",
            "rcpt": "y@b.example",
            "sasl_username": "route@a.example",
            "received_ts": NOON + timedelta(1),
        },
        {"chain_id": "d", "rcpt": "x@b.example", "sasl_username": "route@a.example", "size_bytes": None},
        {"chain_id": "c", "rcpt": "z@c.example", "rcpt_domain": "c.example", "sasl_username": "route@a.example"},
        {"chain_id": "c", "rcpt": "x@b.example", "sasl_username": "route@a.example", "counts": False},
    )
    assert rows.select(
        "sasl_username", "rcpt_domain", "mail_from_domain", "event", "msgs", "rcpts", "bytes"
    ).rows() == [
        ("route@a.example", "b.example", "a.example", "sent", 2, 3, 1000),
        ("route@a.example", "c.example", "a.example", "sent", 1, 1, 1000),
    ]
    assert (rows["first_ts"][0], rows["last_ts"][0]) == (NOON, NOON + timedelta(1))


def test_senders_of_what_came_in_are_summed() -> None:
    inbound = {"rcpt_domain": "a.example", "status": "delivered"}
    rows = built(
        inbound | {"mail_from": "x@one.example"},
        inbound | {"mail_from": "", "src_net": "198.51.100.0/24"},
        inbound | {"status": "sent", "rcpt_domain": "other.example"},
        inbound | {"status": "rejected", "attempts": 3, "rcpt_domain": "elsewhere.example"},
        {"direction": "inbound"},
    )
    assert rows["src_net"].null_count() == rows["mail_from_domain"].null_count() == rows.height == 4
    found = {(row["rcpt_domain"], row["event"]): (row["msgs"], row["rejects"]) for row in rows.iter_rows(named=True)}
    assert found == {
        ("a.example", "delivered"): (2, 0), ("other.example", "sent"): (1, 0), ("elsewhere.example", "rejected"): (1, 3),
        ("b.example", "sent"): (1, 0),
    }  # fmt: skip


def test_what_leaves_is_kept_by_network_and_sender() -> None:
    rows = built(
        {},  # a relay without authentication
        {"mail_from": ""},
        {"mail_from": None},
        {"direction": "outbound", "status": "rejected", "rcpt_domain": "a.example"},
        {"direction": "internal", "status": "delivered", "rcpt_domain": "a.example"},
        {"sasl_username": "route@a.example", "status": "delivered", "rcpt_domain": "a.example"},
    )
    assert rows["src_net"].unique().to_list() == ["192.0.2.0/24"]
    assert sorted(rows["mail_from_domain"].fill_null("?").to_list()) == ["", "?", *["a.example"] * 4]
