"""ldap_days: searches counted by base and kind of filter."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from data_contracts import contract
from transforms.derived import ldap_days

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)


def searches(*rows: dict[str, Any]) -> pl.LazyFrame:
    one = {
        "protocol": "ldap", "action": "search", "outcome": "success", "principal_id": "cn=sync", "ldap_base": "dc=a",
        "ldap_filter_class": "(mail=*)", "ts": NOON,
    }  # fmt: skip
    full = [one | row for row in rows]
    columns = sorted({name for row in full for name in row})
    schema = {name: contract("access_events").polars_schema[name] for name in columns}
    frame = pl.LazyFrame([{name: row.get(name) for name in columns} for row in full], schema=schema)
    return frame.with_columns(pl.col("ts").dt.date().alias("date"))


def test_searches_are_counted_by_base_and_kind_of_filter() -> None:
    rows = searches(
        {"entries_returned": 5, "op_count": 1},
        {"entries_returned": 7, "ts": NOON + timedelta(hours=1)},
        {"outcome": "failure", "entries_returned": 9},
        {"action": "bind"},
        {"ldap_base": "ou=x,dc=a", "entries_returned": 1, "src_net": "192.0.2.0/24"},
        {"ts": NOON - timedelta(days=1)},
    )
    built = ldap_days.build([DAY], {"access_events": rows}).collect()
    assert built.select("ldap_base", "src_net", "searches", "entries").rows() == [
        ("dc=a", None, 2, 12), ("ou=x,dc=a", "192.0.2.0/24", 1, 1)
    ]  # fmt: skip
    assert built["last_ts"][0] == NOON + timedelta(hours=1)


def test_parts_of_a_day_merge_to_the_whole() -> None:
    rows = [{"entries_returned": n, "ts": NOON + timedelta(minutes=n)} for n in range(10)]
    whole = ldap_days.build([DAY], {"access_events": searches(*rows)}).collect()
    parts = [ldap_days.build([DAY], {"access_events": searches(*rows[i::3])}).collect() for i in range(3)]
    merged = (
        pl.concat(parts)
        .group_by(ldap_days.KEY)
        .agg(pl.col("searches", "entries").sum(), pl.col("first_ts").min(), pl.col("last_ts").max())
    )
    assert merged.select(whole.columns).rows() == whole.rows()
