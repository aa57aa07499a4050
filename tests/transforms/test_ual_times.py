"""Times of exports: every form, local zones, which of day and month comes first, nonsense."""

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transforms.model import Context
from transforms.ual_times import read


def one(text: str, tz: str = "UTC", zone: str = "utc") -> tuple[datetime | None, str | None]:
    found = read(pl.Series([text], dtype=pl.String), Context("e", tz=tz), "local" if zone == "local" else "utc")
    return (found["ts"][0], found["ts_basis"][0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2022-02-08T06:22:28.3518405Z", (datetime(2022, 2, 8, 6, 22, 28, 351840, UTC), "offset")),
        ("2022-02-08T01:22:28-05:00", (datetime(2022, 2, 8, 6, 22, 28, tzinfo=UTC), "offset")),
        ("2022-02-08 06:22", (datetime(2022, 2, 8, 6, 22, tzinfo=UTC), "utc")),
        ("4/28/2021, 2:54:37.000 PM", (datetime(2021, 4, 28, 14, 54, 37, tzinfo=UTC), "utc")),
        ("4/28/2021 12:00:01 AM", (datetime(2021, 4, 28, 0, 0, 1, tzinfo=UTC), "utc")),
        ("28.04.2021 14:54:37", (datetime(2021, 4, 28, 14, 54, 37, tzinfo=UTC), "utc")),
        ("/Date(1658751973240)/", (datetime(2022, 7, 25, 12, 26, 13, 240000, UTC), "offset")),
    ],
)
def test_forms(text: str, expected: tuple[datetime, str]) -> None:
    assert one(text) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "2022-13-01T00:00:00Z", "2022-01-01T25:00:00Z", "13/13/2022 1:00:00 AM", "1/1/2022 13:00 PM",
             "0001-01-01T00:00:00", "2999-01-01T00:00:00", "/Date(99999999999999999)/", "1/1/2022 1:99:00 AM"]
)  # fmt: skip
def test_nonsense(text: str) -> None:
    assert one(text)[0] is None


def test_zone_of_the_exporting_machine() -> None:
    assert one("3/2/2026 9:00:00 AM", "Europe/Oslo", "local") == (datetime(2026, 3, 2, 8, tzinfo=UTC), "assumed_zone")
    assert one("3/2/2026 9:00:00 AM", "+05:30", "local")[0] == datetime(2026, 3, 2, 3, 30, tzinfo=UTC)
    assert one("2026-03-02T09:00:00+01:00", "Europe/Oslo", "local")[1] == "offset"


def test_day_first_is_told_by_other_times_of_the_file() -> None:
    context = Context("e")
    assert read(pl.Series(["28/04/2021, 14:00:00", "1/2/2021, 03:00:00"]), context, "utc")["ts"][1].month == 2
    assert read(pl.Series(["1/2/2021, 03:00:00"]), context, "utc")["ts"][0].month == 2  # the next block
    assert read(pl.Series(["1/2/2021, 03:00:00"]), Context("e"), "utc")["ts"][0].month == 1


@settings(max_examples=50, deadline=None)
@given(st.datetimes(datetime(1990, 1, 1), datetime(2099, 12, 31)))
def test_round_trip(moment: datetime) -> None:
    expected = moment.replace(tzinfo=UTC)
    assert one(moment.isoformat() + "Z")[0] == expected
    local = moment.strftime("%m/%d/%Y %I:%M:%S.%f %p")
    if moment.day < 13 and moment.month < 13:
        assert one(local)[0] == expected
