"""gaps: the rhythm of machines, of which events it is made and what it leaves out."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl

from data_contracts import contract
from transforms.derived import gaps

DAY = date(2021, 1, 12)
MIDNIGHT = datetime(2021, 1, 12, tzinfo=UTC)


def built(*rows: dict[str, Any], day: date = DAY) -> pl.DataFrame:
    one = {
        "principal_id": "svc", "principal_type": "service_account", "src_net": "192.0.2.0/24", "protocol": "ews",
        "outcome": "success", "action": "get_item", "tenant_id": "t1",
    }  # fmt: skip
    schema = contract("access_events").polars_schema
    full = [one | row for row in rows]
    data = [{column: row.get(column) for column in schema} | {"date": row["ts"].date()} for row in full]
    states = gaps.build([day], {"access_events": pl.LazyFrame(data, schema=schema)}).collect()
    accepted, refused = contract("gaps").split(states)
    assert refused.is_empty(), refused
    return accepted


def at(minutes: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=minutes)


def test_a_poller_shows_its_period() -> None:
    rows = built(*({"ts": at(5 * n)} for n in range(288)))
    row = rows.row(0, named=True)
    assert (row["n"], row["longest_s"], row["first_ts"], row["last_ts"]) == (288, 300.0, at(0), at(5 * 287))
    ((place, number),) = [(place, number) for place, number in enumerate(row["hist"]) if number]
    assert number == 287
    assert 300 / 2 ** (1 / 6) <= gaps.CENTRES_S[place] <= 300 * 2 ** (1 / 6)


def test_identities_protocols_and_networks_have_gaps_of_their_own() -> None:
    rows = built(
        {"ts": at(0)},
        {"ts": at(1), "src_net": "198.51.100.0/24"},
        {"ts": at(2), "protocol": "oauth"},
        {"ts": at(3), "tenant_id": None},
        {"ts": at(60)},
        {"ts": at(70), "src_net": "198.51.100.0/24"},
    )
    assert sorted(rows["longest_s"].to_list(), key=str) == [3600.0, 4140.0, None, None]
    assert rows["n"].sum() == 6


def test_people_failures_probes_and_proxied_rows_are_left_out() -> None:
    rows = built(
        {"ts": at(0), "principal_type": "user"},
        {"ts": at(1), "outcome": "failure"},
        {"ts": at(2), "action": "probe"},
        {"ts": at(3), "src_net": None},
        {"ts": at(4), "op_raw": "BE:retr"},
    )
    assert rows.is_empty()


def test_the_gap_over_midnight_is_that_between_two_days() -> None:
    uses = [{"ts": at(minutes)} for minutes in (10, 20, 24 * 60 + 30)]
    days = [built(*uses, day=day) for day in (DAY + timedelta(days=1), DAY)]
    row = gaps.merged(pl.concat(days).lazy()).collect().row(0, named=True)
    assert (row["date"], row["n"], row["longest_s"], sum(row["hist"])) == (DAY, 3, (24 * 60 + 10) * 60.0, 2)
    assert (row["first_ts"], row["last_ts"]) == (at(10), at(24 * 60 + 30))
