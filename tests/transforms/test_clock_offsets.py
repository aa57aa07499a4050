"""clock_offsets: the difference of two clocks out of what both servers wrote down."""

from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_contracts import contract
from transforms.derived import clock_offsets

DAY = date(2021, 1, 12)
NOON = datetime(2021, 1, 12, 12, tzinfo=UTC)


def frame(name: str, rows: Iterable[Mapping[str, Any]]) -> pl.LazyFrame:
    rows = list(rows)
    if not rows:
        return pl.LazyFrame(schema=contract(name).polars_schema)
    columns = sorted({column for row in rows for column in row})
    data = {column: [row.get(column) for row in rows] for column in columns}
    schema = {column: contract(name).polars_schema[column] for column in columns}
    return contract(name).conform(pl.LazyFrame(data, schema=schema))


def handed(
    number: int, ahead: float, when: datetime = NOON, reply: str = "250 Ok: queued as {}"
) -> list[dict[str, Any]]:
    """A message from mx1, whose clock is ahead by some seconds, to store."""
    true = when + timedelta(seconds=60 * number)
    mid, sender, taken = f"<{number}@a.example>", f"A{number:04}", f"B{number:04}"
    shown = true + timedelta(seconds=ahead)
    rows: list[dict[str, Any]] = [
        {"event": "cleanup", "ts": shown - timedelta(seconds=1), "host": "mx1", "queue_id": sender, "message_id": mid},
        {"event": "send", "ts": shown, "host": "mx1", "queue_id": sender, "status_text": reply.format(taken)},
        {"event": "send", "ts": shown, "host": "mx1", "queue_id": sender, "status_text": reply.format(taken)},
        {"event": "cleanup", "ts": true, "host": "store", "queue_id": taken, "message_id": mid},
    ]
    return [row | {"date": row["ts"].date(), "outcome": "success", "source": "postfix"} for row in rows]


def built(mail: list[dict[str, Any]], access: list[dict[str, Any]], least: int = 5, day: date = DAY) -> pl.DataFrame:
    tables = {"mail_events": frame("mail_events", mail), "access_events": frame("access_events", access)}
    rows = clock_offsets.offsets([day], tables, least)
    streamed = rows.collect(engine="streaming")
    assert_frame_equal(rows.collect(engine="in-memory"), streamed)
    assert contract("clock_offsets").split(streamed)[1].is_empty()
    return streamed


@pytest.mark.parametrize(
    "reply",
    ["250 2.0.0 Ok: queued as {}", "250 OK id={}", "<x@y> [InternalId={}, Hostname=s] Queued mail for delivery"],
)
def test_a_host_that_is_seven_minutes_ahead(reply: str) -> None:
    mail = [row for number in range(9) for row in handed(number, 420 + number % 3, reply=reply)]
    mail += handed(50, -3000)  # one that does not fit
    rows = built(mail, [])
    assert rows.select("host", "reference_host", "basis", "offset_s", "n_pairs").rows() == [
        ("mx1", "store", "message_id", 421.0, 10), ("store", "mx1", "message_id", -421.0, 10)
    ]  # fmt: skip
    assert rows["mad_s"].max() == 1.0
    assert rows["first_ts"][1] == NOON


def test_too_few_pairs_and_lies_are_no_estimate() -> None:
    mail = [row for number in range(4) for row in handed(number, 420)]
    assert built(mail, []).is_empty()
    assert built(mail, [], least=4)["n_pairs"].to_list() == [4, 4]
    other = [row | {"message_id": "<other@a.example>"} if row["host"] == "store" else row for row in mail]
    assert built(other, [], least=1).is_empty()
    alone = [row | {"host": "mx1"} for row in mail]
    assert built(alone, [], least=1).is_empty()


def test_front_end_and_back_end_by_request() -> None:
    base = {"protocol": "ews", "action": "get_item", "outcome": "success"}
    access = []
    for number in range(6):
        true = NOON + timedelta(seconds=number)
        for source, host, ts in (
            ("exchange_httpproxy", "cas", true + timedelta(seconds=30)),
            ("exchange_ews", "mbx", true),
            ("iis", "cas", true),
        ):
            access.append(base | {"source": source, "host": host, "ts": ts, "date": DAY, "session_id": f"r{number}"})
    access.append(access[0] | {"ts": NOON})  # logged twice: which one is meant is not known
    rows = built([], access)
    assert rows.select("host", "reference_host", "basis", "offset_s", "n_pairs", "mad_s").rows() == [
        ("cas", "mbx", "request_id", 30.0, 5, 0.0), ("mbx", "cas", "request_id", -30.0, 5, 0.0)
    ]  # fmt: skip


def test_midnight_and_order_do_not_matter() -> None:
    midnight = datetime(2021, 1, 12, 23, 58, tzinfo=UTC)
    mail = [row for number in range(8) for row in handed(number, 420, when=midnight)]
    whole = pl.concat([built(mail, [], 1, DAY + timedelta(days=n)) for n in (0, 1)])
    turned = pl.concat([built(mail[::-1], [], 1, DAY + timedelta(days=n)) for n in (0, 1)])
    assert_frame_equal(whole, turned)
    told = whole.group_by("host").agg(pl.col("n_pairs").sum(), pl.col("offset_s").unique()).sort("host")
    assert told.rows() == [("mx1", 8, [420.0]), ("store", 8, [-420.0])]
