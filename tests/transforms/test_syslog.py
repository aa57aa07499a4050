"""The syslog envelope: shapes of lines, zones, and years that the stamps do not tell."""

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_contracts.errors import UsageError
from transforms import syslog
from transforms.model import RECORD_SCHEMA, SYSLOG_SCHEMA, Context, Head

REAL = Path(__file__).parents[3] / "shared" / "samples"
REAL_FOLDERS = ("postfix", "dovecot", "courier", "sendmail", "openldap")


def records(lines: list[str]) -> pl.LazyFrame:
    sizes = [len(line.encode()) for line in lines]
    columns = {"record_no": range(len(lines)), "byte_offset": [0] * len(lines), "byte_length": sizes, "raw": lines}
    return pl.LazyFrame(columns, schema=RECORD_SCHEMA)


def context(**given: Any) -> Context:
    return Context("e", **({"year": 2023, "year_basis": "given"} | given))


def read(lines: list[str], **given: Any) -> pl.DataFrame:
    rows = syslog.envelope(records(lines), context(**given)).collect()
    assert rows.schema == SYSLOG_SCHEMA
    assert rows["record_no"].to_list() == list(range(len(lines)))
    return rows


def times(lines: list[str], **given: Any) -> list[str | None]:
    return read(lines, **given)["ts"].dt.strftime("%Y-%m-%d %H:%M:%S").to_list()


def head(*lines: str) -> Head:
    text = "\n".join(lines) + "\n"
    return Head(text.encode(), text, lines, "mail.log")


REPEATED = "last message repeated 3 times"
# line; ts without its date 2023-01-31; ts_basis; host; program; pid; message
SHAPES: list[tuple[str, str, str, str | None, str, str | None, str]] = [
    ("Jan 31 09:50:02 mx postfix/smtpd[20]: a: b", "09:50:02", "assumed_zone", "mx", "postfix/smtpd", "20", "a: b"),
    ("Jan 31 09:50:02 mx dovecot: a", "09:50:02", "assumed_zone", "mx", "dovecot", None, "a"),
    ("Jan 31 09:50:02 mx postfix/smtpd[1] 1FEE: a", "09:50:02", "assumed_zone", "mx", "postfix/smtpd", "1", "1FEE: a"),
    ("Jan 31 09:50:02 mx postfix/smtpd[1]:", "09:50:02", "assumed_zone", "mx", "postfix/smtpd", "1", ""),
    ("<22>Jan 31 09:50:02 mx p[1]: a", "09:50:02", "assumed_zone", "mx", "p", "1", "a"),
    ("Jan 31 09:50:02 <mail.info> mx sm-mta[1]: a", "09:50:02", "assumed_zone", "mx", "sm-mta", "1", "a"),
    ("Jan 31 09:50:02.123 mx p[1]: a", "09:50:02.123", "assumed_zone", "mx", "p", "1", "a"),
    ("Jan 31 2023 09:50:02 mx p: a", "09:50:02", "assumed_zone", "mx", "p", None, "a"),
    ("Jan 31 09:50:60 mx p: leap", "09:51:00", "assumed_zone", "mx", "p", None, "leap"),
    ("2023-01-31T09:50:02Z mx p[1]: a", "09:50:02", "offset", "mx", "p", "1", "a"),
    ("2023-01-31T18:50:02.404714+09:00 mx p[1]: a", "09:50:02.404714", "offset", "mx", "p", "1", "a"),
    ("2023-01-31T04:20:02.5-05:30 mx p[1] a: b", "09:50:02.5", "offset", "mx", "p", "1", "a: b"),
    ("2023-01-31T10:50:02+0100 mx p[1]: a", "09:50:02", "offset", "mx", "p", "1", "a"),
    ("2023-01-31T09:50:02.123456789 mx p: a", "09:50:02.123456", "assumed_zone", "mx", "p", None, "a"),
    ("<6>2023-01-31T09:50:02Z mx p[1]: a", "09:50:02", "offset", "mx", "p", "1", "a"),
    ("2023-01-31 10:50:02 +0100 mx p: a", "09:50:02", "offset", "mx", "p", None, "a"),
    ("Jan 31 09:50:02 pop3-login: Info: a", "09:50:02", "assumed_zone", None, "dovecot", None, "pop3-login: Info: a"),
    ("Jan 31 09:50:02 imap(J D)<1><s>: a", "09:50:02", "assumed_zone", None, "dovecot", None, "imap(J D)<1><s>: a"),
    ("dovecot: Jan 31 09:50:02 Info: auth: a", "09:50:02", "assumed_zone", None, "dovecot", None, "Info: auth: a"),
    ("Jan 31 09:50:02 mx deliver(J D): a", "09:50:02", "assumed_zone", "mx", "deliver(J D)", None, "a"),
    ("Jan 31 09:50:02 pop3d[7]: a", "09:50:02", "assumed_zone", None, "pop3d", "7", "a"),
    (f"Jan 31 09:50:02 mx {REPEATED}", "09:50:02", "assumed_zone", "mx", "syslog", None, REPEATED),
    ("Jan 31 09:50:02 mx no tag here", "09:50:02", "assumed_zone", "mx", syslog.UNTAGGED, None, "no tag here"),
    ("\0\0Jan 31 09:50:02 mx p: a", "09:50:02", "assumed_zone", "mx", "p", None, "a"),
    ("Jan 31 09:50:02 mx p[1]: \u00fcber \u20ac", "09:50:02", "assumed_zone", "mx", "p", "1", "\u00fcber \u20ac"),
]  # fmt: skip
NOT_SYSLOG = [
    "",
    "junk",
    "Jan 31 24:50:02 mx p: a",
    "Jan 31 09:50:02",
    "Jan 31 09:50:02 ",
    "2023-01-31",
    "\0" * 50,
    "Jan",
]


@pytest.mark.parametrize("shape", SHAPES, ids=[shape[0] for shape in SHAPES])
def test_shapes_alone(shape: tuple[Any, ...]) -> None:
    check(read([shape[0]]), [shape])


def test_shapes_mixed_in_one_block() -> None:
    check(read([shape[0] for shape in SHAPES]), SHAPES)
    plain = [SHAPES[0]] * 50
    check(read([shape[0] for shape in [*plain, *SHAPES, *plain]]), [*plain, *SHAPES, *plain])


def check(rows: pl.DataFrame, shapes: list[Any]) -> None:
    for row, (line, time, *rest) in zip(rows.iter_rows(named=True), shapes, strict=True):
        assert row["ts"] == datetime.fromisoformat(f"2023-01-31T{time}").replace(tzinfo=UTC), line
        assert [row[name] for name in ("ts_basis", "host", "program", "pid", "message")] == rest
        assert row["ts_raw"] in line


def test_what_is_no_syslog_line_has_no_program() -> None:
    rows = read([*NOT_SYSLOG, SHAPES[0][0]])
    assert rows["program"].to_list() == [None] * len(NOT_SYSLOG) + ["postfix/smtpd"]
    assert rows["ts"].null_count() == len(NOT_SYSLOG)
    assert read(["-- Logs begin at Mon --", "-- Reboot --"])["program"].to_list() == ["journalctl"] * 2
    assert read([]).is_empty()


def test_day_padded_by_space_zero_or_nothing() -> None:
    lines = [f"Sep {day} 07:46:30 mx p: a" for day in (" 8", "08", "8")]
    assert times(lines) == ["2023-09-08 07:46:30"] * 3


@pytest.mark.parametrize(
    ("local", "tz", "expected"),
    [
        ("Mar 26 01:59:59", "Europe/Berlin", "2023-03-26 00:59:59"),
        ("Mar 26 02:30:00", "Europe/Berlin", "2023-03-26 01:30:00"),  # does not exist: 03:30 summer time
        ("Oct 29 02:30:00", "Europe/Berlin", "2023-10-29 00:30:00"),  # twice: the earlier, summer time
        ("Oct 29 03:00:00", "Europe/Berlin", "2023-10-29 02:00:00"),
        ("Oct  1 02:15:00", "Australia/Lord_Howe", "2023-09-30 15:45:00"),  # a gap of half an hour
        ("Jan 31 09:50:02", "+02:00", "2023-01-31 07:50:02"),
        ("Jan  1 00:00:00", "-05:30", "2023-01-01 05:30:00"),
    ],
)
def test_zones(local: str, tz: str, expected: str) -> None:
    assert times([f"{local} mx p: a"], tz=tz, tz_basis="given") == [expected]
    with_offset = f"2023-01-31T09:50:02+01:00 mx p: {tz}"
    assert times([with_offset, f"{local} mx p: a"], tz=tz) == ["2023-01-31 08:50:02", expected]


def test_unknown_zone_is_a_usage_error() -> None:
    for tz in ("Mars/Olympus", "../../etc/passwd", "+1"):
        with pytest.raises(UsageError, match="time zone"):
            read([SHAPES[0][0]], tz=tz)


def test_basis_tells_an_assumed_year() -> None:
    assert read([SHAPES[0][0]], year_basis="file_time")["ts_basis"].to_list() == ["assumed_year"]


NEW_YEAR = [f"{stamp} mx p: a" for stamp in (
    "Dec 31 23:59:58", "Jan  1 00:00:00", "Dec 31 23:59:59", "Jan  1 00:00:01", "Jun  1 00:00:00", "Nov 30 00:00:00",
    "Dec 31 23:59:59", "Jan  1 00:00:00",
)]  # fmt: skip
YEARS = [2022, 2023, 2022, 2023, 2023, 2023, 2023, 2024]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_year_rolls_over_both_ways_across_blocks(size: int) -> None:
    ctx = context(year=2022)
    blocks = [NEW_YEAR[at : at + size] for at in range(0, len(NEW_YEAR), size)]
    years = [y for block in blocks for y in syslog.envelope(records(block), ctx).collect()["ts"].dt.year()]
    assert years == YEARS


def test_year_rolls_over_among_other_lines() -> None:
    lines = [text for line in NEW_YEAR for text in ("junk", line, "2020-05-05T00:00:00Z mx p: a", f"<22>{line}")]
    rows = read(lines, year=2022)
    assert [rows["ts"][at].year for at in range(1, len(lines), 4)] == YEARS
    assert [rows["ts"][at].year for at in range(3, len(lines), 4)] == YEARS


def test_year_from_the_file_time_of_one_block() -> None:
    given = {"year": None, "year_basis": "file_time", "not_after": datetime(2024, 1, 2, tzinfo=UTC)}
    rows = read(NEW_YEAR, **given)
    assert rows["ts"].dt.year().to_list() == YEARS
    assert set(rows["ts_basis"]) == {"assumed_year"}
    ctx = context(year=None, year_basis="none")
    rows = syslog.envelope(records(NEW_YEAR), ctx).collect()
    assert rows["ts"].null_count() == len(NEW_YEAR)
    assert rows.select(syslog.refusal(ctx)).to_series().unique().to_list() == ["time: the year is not known"]


def test_days_that_do_not_exist() -> None:
    lines = [
        "Feb 29 10:00:00 mx p: a",
        "Feb 30 10:00:00 mx p: a",
        "Jan 31 10:00:00 mx p: a",
        "2023-02-29T10:00:00Z mx p: a",
    ]
    ctx = context(year=2023)
    rows = syslog.envelope(records(lines), ctx).collect()
    assert rows["program"].to_list() == ["p"] * 4
    assert rows.select(syslog.refusal(ctx)).to_series().to_list() == [
        "time: 29 February in a year that has none", "time: no such day or time", None, "time: no such day or time",
    ]  # fmt: skip
    assert times(lines[:1], year=2024) == ["2024-02-29 10:00:00"]


@pytest.mark.parametrize(
    ("first", "last", "not_after", "expected"),
    [
        ("Jan 31 09:00:00", "Feb  2 09:00:00", "2024-02-02T10:00:00", 2024),
        ("Jan 31 09:00:00", "Feb  2 09:00:00", "2024-01-15T10:00:00", 2023),  # copied before: the year before
        ("Dec 30 09:00:00", "Jan  2 09:00:00", "2024-01-02T10:00:00", 2023),
        ("May 10 09:00:00", "Mar  3 09:00:00", "2024-03-04T00:00:00", 2023),
        ("Jan  1 00:00:01", "Dec 31 23:59:59", "2024-01-01T00:00:00", 2023),
        ("Feb  1 00:00:01", "Feb 29 23:59:59", "2023-05-01T00:00:00", 2020),
        ("Jan  5 10:00:05", "Jan  5 10:00:00", "2024-01-05T12:00:00", 2024),  # out of order, not a year long
    ],
)
def test_plan_year(first: str, last: str, not_after: str, expected: int) -> None:
    ctx = context(year=None, year_basis="none", not_after=datetime.fromisoformat(not_after).replace(tzinfo=UTC))
    assert syslog.plan_year(f"junk\n{first} mx p: a\n", f"{last} mx p: a\njunk\n", ctx) == expected


def test_plan_year_given_or_unknown() -> None:
    assert syslog.plan_year("", "", context(year=2019)) == 2019
    with pytest.raises(UsageError, match="Hint: give the year"):
        syslog.plan_year("", "", context(year=None, year_basis="none"))


def test_count_years() -> None:
    assert syslog.count_years(records(NEW_YEAR)) == 2
    assert syslog.count_years(records([])) == 0


def test_hostile_months_do_not_leave_the_calendar() -> None:
    lines = [f"{month}  1 00:00:00 mx p: a" for _ in range(2000) for month in ("Jan", "May", "Sep", "Dec")]
    years = read(lines)["ts"].dt.year()
    assert years.drop_nulls().is_between(1970, 2199).all()


def test_sniff() -> None:
    found = syslog.sniff(head(*(shape[0] for shape in SHAPES[:20])))
    assert found is not None
    assert found.score > 0.8
    assert found.framing == "lines"
    assert syslog.sniff(head("Jan 29 09:33:58 pop3-login: Info: Login: user=<a>")) is not None
    for lines in (
        ["2020-06-19 04:51:49 [123] 1jmFYj-00039V-QX <= noreply@test.example H=(test.example) [2.2.2.2] P=smtp"],
        ['{"time": "2023-01-31T09:50:02Z"}'],
        ["#Fields: date time c-ip", "2023-01-31 09:50:02 192.0.2.1"],
        ["DateTime,RequestId", "2023-01-31T09:50:02.123Z,abc"],
        [],
        ["", "x"],
    ):
        assert syslog.sniff(head(*lines)) is None, lines


def test_unrepeat() -> None:
    frame = pl.DataFrame({"message": ["a", "message repeated 3 times: [ b [c]]", "message repeated 3 times: [ b"]})
    rows = syslog.unrepeat(frame)
    assert rows["message"].to_list() == ["a", "b [c]", "message repeated 3 times: [ b"]
    assert rows["repeated"].to_list() == [1, 3, 1]


def test_damaged_lines_give_one_row_each() -> None:
    lines = [shape[0] for shape in SHAPES]
    damaged = [line[:at] for line in lines for at in range(len(line))]
    damaged += [
        line[:at] + junk + line[at:] for line in lines for at in range(len(line)) for junk in ("\0", "\u20ac", " ", "[")
    ]
    chance = random.Random(3)
    damaged += [
        chance.choice(lines)[: chance.randrange(30)] + chance.choice(lines)[chance.randrange(30) :] for _ in range(2000)
    ]
    damaged.append(lines[0] + "x" * 1_000_000)
    rows = read(damaged)
    assert rows.filter(pl.col("program").is_not_null() & pl.col("message").is_null()).is_empty()
    assert rows.filter(
        pl.col("ts").is_not_null() & (pl.col("ts_basis").is_null() | pl.col("ts_raw").is_null())
    ).is_empty()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_gives_one_row_each(lines: list[str]) -> None:
    read(lines)


@settings(max_examples=50, deadline=None)
@given(st.datetimes(datetime(1980, 1, 1), datetime(2100, 1, 1)), st.integers(-840, 840))
def test_iso_round_trip(moment: datetime, minutes: int) -> None:
    sign, size = ("-" if minutes < 0 else "+"), abs(minutes)
    line = f"{moment.isoformat()}{sign}{size // 60:02}:{size % 60:02} mx p[1]: a"
    expected = (moment - datetime(1970, 1, 1)).total_seconds() - minutes * 60
    assert read([line])["ts"][0].timestamp() == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not REAL.is_dir(), reason="real samples are not here")
def test_real_samples() -> None:
    for path in (path for folder in REAL_FOLDERS for path in sorted((REAL / folder).iterdir())):
        lines = path.read_text(errors="replace").split("\n")
        rows = read(lines)
        unread = rows.filter(pl.col("program").is_null() != (pl.col("raw").str.strip_chars() == ""))
        assert unread.is_empty(), path.name
        assert rows.filter(pl.col("program").is_not_null() & pl.col("ts").is_null()).is_empty()
