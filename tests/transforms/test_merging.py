"""Additive states: files in any split and states of days in any order give what one pass over everything gives."""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from data_contracts import contract
from transforms.derived import derived, gaps

DAY = date(2021, 1, 12)
MIDNIGHT = datetime(2021, 1, 12, tzinfo=UTC)
DAYS = [DAY + timedelta(days=n) for n in range(3)]
BY_NAME = {table.table: table for table in derived()}
SUMS = {
    "client_days": ("n_rows",),
    "context_days": ("n_rows", "n_ops", "items", "bytes_out"),
    "coverage_hours": ("n_rows",),
    "edge_days": ("n_ops", "items", "bytes_out", "sync_folders", "n_throttled"),
    "failure_days": ("failures",),
    "flow_days": ("msgs", "rcpts", "bytes", "rejects"),
    "folder_days": ("n_rows", "items"),
    "journal_hours": (
        "delivered", "delivered_bytes", "sessions", "retrieved", "retrieved_bytes", "deleted",
    ),
    "ldap_days": ("searches", "entries"),
    "service_uses": ("items",),
    "throttled_days": ("n_rows",),
}  # fmt: skip
SMALL = settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TIMES = st.integers(0, 3 * 24 * 3600 - 1).map(lambda s: MIDNIGHT + timedelta(seconds=s))
ACCESS = st.fixed_dictionaries(
    {
        "ts": TIMES,
        "action": st.sampled_from(["auth", "bind", "session", "get_item", "search", "probe"]),
        "protocol": st.sampled_from(["ldap", "pop3", "graph"]),
        "outcome": st.sampled_from(["success", "success", "failure", "unknown"]),
        "host": st.sampled_from(["h1", None]),
        "tenant_id": st.sampled_from(["t1", None]),
        "principal_id": st.sampled_from(["svc", "ann@a.example", None]),
        "principal_type": st.sampled_from(["service_account", "user"]),
        "credential_id": st.sampled_from(["ab12", None]),
        "mailbox_id": st.sampled_from(["bob@a.example", "journal@a.example", None]),
        "logon_type": st.sampled_from(["delegate", "owner", None]),
        "src_net": st.sampled_from(["192.0.2.0/24", "198.51.100.0/24", None]),
        "client_fp": st.sampled_from(["00000000000000aa", None]),
        "ldap_base": st.sampled_from(["dc=a", None]),
        "folders": st.sampled_from([None, [], ["Inbox"], ["Inbox", "Inbox", "Sent/2020", None]]),
        "throttled": st.sampled_from([True, False, None]),
        "token_id": st.sampled_from(["tok", None]),
        "op_count": st.sampled_from([None, 0, 7, 2**62]),
        "item_count": st.sampled_from([None, 3]),
        "bytes_out": st.sampled_from([None, 2**62]),
        "retr_count": st.sampled_from([None, 5]),
        "entries_returned": st.sampled_from([None, 4]),
    }
)
MAIL = st.fixed_dictionaries(
    {
        "ts": TIMES,
        "event": st.sampled_from(["deliver", "queue"]),
        "host": st.sampled_from(["h1", None]),
        "tenant_id": st.sampled_from(["t1", None]),
        "rcpt": st.sampled_from(["journal@a.example", "x@b.example", None]),
        "size_bytes": st.sampled_from([None, 1000]),
    }
)
MESSAGE = st.fixed_dictionaries(
    {
        "first_ts": TIMES,
        "chain": st.sampled_from(["c1", "c2", "c3"]),
        "tenant_id": st.sampled_from(["t1", None]),
        "sasl_username": st.sampled_from(["Route@a.example", None]),
        "src_net": st.sampled_from(["192.0.2.0/24", None]),
        "mail_from": st.sampled_from(["a@A.example", "", None]),
        "rcpt_domain": st.sampled_from(["a.example", "b.example", None]),
        "direction": st.sampled_from(["inbound", "outbound", "unknown"]),
        "status": st.sampled_from(["delivered", "sent", "rejected"]),
        "size_bytes": st.sampled_from([None, 500, 2**62]),
        "attempts": st.sampled_from([1, 3]),
        "counts": st.sampled_from([True, True, False]),
    }
)
WORLD = st.fixed_dictionaries(
    {
        "access_events": st.lists(ACCESS, max_size=25),
        "mail_events": st.lists(MAIL, max_size=12),
        "messages": st.lists(MESSAGE, max_size=15),
    }
)
REFERENCE = {
    "credentials": [{"credential_id": "AB12"}],
    "mailboxes": [{"mailbox_id": "journal@a.example", "tenant_id": "t1", "kind": "journal"}],
    "tenants": [{"tenant_id": "t1", "domain": "A.example; c.example"}],
}
COMMON = {
    "access_events": {"source": "m365_ual"},
    "mail_events": {"source": "postfix", "outcome": "success"},
    "messages": {},
}


def frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    schema = contract(name).polars_schema
    data = [{column: row.get(column) for column in schema} for row in rows]
    return pl.DataFrame(data, schema=schema)


def tables(world: Mapping[str, list[dict[str, Any]]]) -> dict[str, pl.DataFrame]:
    full = {
        name: [
            COMMON[name]
            | {"event_uid": str(at), "src_ip": (row.get("src_net") or "").removesuffix("0/24") + "7"}
            | row
            | {"date": (row.get("ts") or row["first_ts"]).date(), "received_ts": row.get("first_ts")}
            for at, row in enumerate(rows)
        ]
        for name, rows in world.items()
    }
    for row in full["messages"]:
        row |= {"chain_id": f"{row['chain']} {row['date']}", "queue_id": row["chain"]}
    return {name: frame(name, rows) for name, rows in (full | REFERENCE).items()}


def build(name: str, given: Mapping[str, pl.DataFrame], day: date) -> pl.DataFrame:
    """The rows of a day, from the events of the days in reach."""
    near = BY_NAME[name].read([day])
    lazy = {n: (f.filter(pl.col("date").is_in(near)) if "date" in f.columns else f).lazy() for n, f in given.items()}
    return BY_NAME[name].build([day], lazy).collect(engine="streaming")


def as_one_day(given: Mapping[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """The same events, all of one long day."""
    return {n: f.with_columns(date=pl.lit(DAY)) if "date" in f.columns else f for n, f in given.items()}


def merge(states: pl.DataFrame, name: str) -> pl.DataFrame:
    key = [column for column in BY_NAME[name].build.__globals__["KEY"] if column != "date"]
    most = ["last_ts"] + [column for column in ("maildrop_max",) if column in states.columns]
    bits = [pl.col("hour_bits").bitwise_or()] if "hour_bits" in states.columns else []
    sums = [pl.col(column).sum() for column in SUMS[name]]
    return states.group_by(key).agg(*sums, pl.col("first_ts").min(), pl.col(most).max(), *bits).sort(key)


@pytest.mark.parametrize("name", [*sorted(SUMS), "gaps", "first_seen"])
@SMALL
@given(world=WORLD, random=st.randoms(use_true_random=False))
def test_files_and_their_order_do_not_matter(name: str, world: dict[str, Any], random: Any) -> None:
    given_once = tables(world)
    if name == "first_seen":
        days = {source: pl.concat([build(source, given_once, day) for day in DAYS]) for source in BY_NAME[name].sources}
        given_once |= days
    in_files = {}
    for table, rows in given_once.items():
        order = random.sample(range(rows.height), rows.height)
        cut = random.randint(0, rows.height)
        in_files[table] = pl.concat([rows[order[cut:]], rows[order[:cut]]])
    whole = build(name, given_once, DAY if name != "first_seen" else DAY.replace(day=1))
    assert_frame_equal(build(name, in_files, DAY if name != "first_seen" else DAY.replace(day=1)), whole)
    accepted, refused = contract(name).split(whole)
    assert refused.is_empty(), refused
    assert accepted.select(BY_NAME[name].build.__globals__["KEY"]).is_unique().all()


@pytest.mark.parametrize("name", sorted(SUMS))
@SMALL
@given(world=WORLD, random=st.randoms(use_true_random=False))
def test_states_of_days_merge_to_one_pass(name: str, world: dict[str, Any], random: Any) -> None:
    given = tables(world)
    states = [build(name, given, day) for day in random.sample(DAYS, len(DAYS))]
    two_by_two = pl.concat([merge(pl.concat(states[:2]), name), merge(states[2], name)])
    once = build(name, as_one_day(given), DAY)
    # A context that was refused on another day counts its successes, and their times, of that day only.
    apart = ("first_ts", "last_ts") if name == "failure_days" else ()
    assert_frame_equal(merge(two_by_two, name).drop(apart), merge(once, name).drop(apart))
    if not apart:
        assert merge(once, name).height == once.height
    assert_frame_equal(merge(pl.concat(states), name), merge(two_by_two, name))


@SMALL
@given(world=WORLD, random=st.randoms(use_true_random=False))
def test_months_of_first_seen_merge_by_days(world: dict[str, Any], random: Any) -> None:
    given = tables(world)
    sources = {name: [build(name, given, day) for day in DAYS] for name in BY_NAME["first_seen"].sources}
    month = BY_NAME["first_seen"].build
    key = list(month.__globals__["KEY"])
    whole = month([DAY], {name: pl.concat(days).lazy() for name, days in sources.items()}).collect()
    order = random.sample(range(len(DAYS)), len(DAYS))
    parts = [month([DAY], {name: days[at].lazy() for name, days in sources.items()}).collect() for at in order]
    states = pl.concat(parts).group_by(key)
    merged = states.agg(pl.col("n_days", "n_ops").sum(), pl.col("first_ts").min(), pl.col("last_ts").max())
    assert_frame_equal(
        merged.sort(key).select(whole.select(merged.columns).columns), whole.select(merged.columns).sort(key)
    )


@SMALL
@given(world=WORLD, random=st.randoms(use_true_random=False))
def test_gaps_over_midnight_are_added(world: dict[str, Any], random: Any) -> None:
    given = tables(world)
    days = [build("gaps", given, day) for day in random.sample(DAYS, len(DAYS))]
    once = build("gaps", as_one_day(given), DAY)
    merged = gaps.merged(pl.concat(days).lazy()).collect()
    key = list(gaps.WHO)
    assert_frame_equal(merged.drop("date").sort(key), once.drop("date").sort(key))
    # Two neighbours first, then the third.
    states = sorted(days, key=lambda state: state["date"].min() or DAY)
    pair = gaps.merged(pl.concat(states[:2]).lazy()).collect()
    third = gaps.merged(pl.concat([states[2], pair]).lazy()).collect()
    assert_frame_equal(third, merged)
    for row in once.iter_rows(named=True):
        assert sum(row["hist"]) == row["n"] - 1
        assert len(row["hist"]) == len(gaps.CENTRES_S) == gaps.BINS


@given(st.integers(0, 40_000_000).map(lambda s: s + 0.5) | st.integers(0, 40_000_000))
@settings(max_examples=30, deadline=None)
def test_a_gap_lies_in_the_bin_of_its_length(seconds: float) -> None:
    uses = [
        {"ts": MIDNIGHT + timedelta(seconds=s), "principal_id": "svc", "principal_type": "service_account",
         "src_net": "192.0.2.0/24", "protocol": "ews", "outcome": "success", "action": "get_item", "date": DAY}
        for s in (0, seconds)
    ]  # fmt: skip
    built = build("gaps", {"access_events": frame("access_events", uses)}, DAY).row(0, named=True)
    place = 0 if seconds < 1 else min(math.floor(3 * math.log2(seconds) + 1e-9) + 1, gaps.BINS - 1)
    assert built["hist"][place] == 1
    assert built["longest_s"] == seconds
    if 1 <= seconds < 2**25:
        assert 2 ** (-1 / 6) - 1e-9 <= gaps.CENTRES_S[place] / seconds <= 2 ** (1 / 6) + 1e-9
