"""Pictures: valid, static SVG whatever the log says, and the right things in it."""

import re
import xml.etree.ElementTree as ET
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from reports import pictures

START = datetime(2021, 1, 4, tzinfo=UTC)
HOSTILE = '</svg><script>alert(1)</script> \x00\x1b[31m\u202egpj.exe " onload="x\' ]]> &amp; <b>'


def texts(svg: str) -> list[str]:
    """Texts of a picture, after checking that it is well-formed, stands alone and runs nothing."""
    root = ET.fromstring(svg)
    assert root.tag.endswith("}svg")
    for element in root.iter():
        assert element.tag.rpartition("}")[2] not in ("script", "foreignObject", "image", "use", "a")
        for name, value in element.attrib.items():
            assert not name.lower().startswith("on")
            assert not re.search(r"(?:javascript|https?|data):", value)
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]


def case(number: int = 1, findings: int = 2, **more: Any) -> dict[str, Any]:
    first, last = START + timedelta(days=number), START + timedelta(days=number + 3)
    inside = [
        {"finding_id": f"F-{number}{at}", "title": f"finding {at}", "first_seen": first, "last_seen": last}
        for at in range(findings)
    ]
    named = {"case_id": f"C-{number}", "rank": number, "severity": "high", "summary": f"case {number}"}
    return named | {"first_seen": first.isoformat(), "last_seen": last.isoformat(), "findings": inside} | more


def cells(tenants: int, days: int) -> pl.DataFrame:
    rows = [
        {"date": START.date() + timedelta(days=day), "tenant_id": f"t{tenant:03d}", "n": 10 * tenant + day + 1,
         "n_suspicious": 5 if (tenant, day) == (1, 2) else 0}
        for tenant in range(tenants)
        for day in range(days)
    ]  # fmt: skip
    return pl.DataFrame(rows)


def test_timeline_has_a_lane_per_case_and_finding() -> None:
    svg = pictures.timeline([case(1), case(2, severity="critical")], event_times={"F-10": [START + timedelta(days=2)]})
    said = texts(svg)
    assert [text for text in said if text.startswith("#")] == ["#1 case 1", "#2 case 2"]
    assert said.count("finding 0") == said.count("finding 1") == 2
    assert "time (UTC), 2021-01-04 to 2021-01-09" in said
    assert {"high", "critical"} <= set(said)
    assert "low" not in said
    dots = [path for path in re.findall(r"<path[^>]*>", svg) if 'stroke="white"' in path]
    assert len(dots) == 1 + 2 + 2 + 2


def test_timeline_takes_findings_without_cases() -> None:
    finding = {"detection": "t01", "severity": "low", "first_seen": START, "last_seen": START}
    said = texts(pictures.timeline([finding]))
    assert {"t01", "low"} <= set(said)


def test_timeline_says_how_many_lanes_it_left_out() -> None:
    said = texts(pictures.timeline([case(number, findings=4) for number in range(1, 12)]))
    assert any("15 more lanes are not drawn." in text for text in said)
    assert sum(text.startswith("finding") for text in said) == 32


def test_heat_map_folds_small_tenants_and_marks_suspicious_cells() -> None:
    svg = pictures.tenant_time(cells(tenants=30, days=4))
    said = texts(svg)
    tenants = [text for text in said if re.fullmatch(r"t\d{3}", text)]
    assert tenants[0] == "t001"  # the suspicious one first
    assert len(tenants) == 25
    assert "5 others" in said
    assert "suspicious events" in said
    assert "Activity by tenant and day" in said
    marks = [path for path in re.findall(r"<path[^>]*>", svg) if 'fill="#d95f02"' in path]
    assert len(marks) == 2  # the cell and the legend


def test_heat_map_of_a_year_has_weeks_for_columns() -> None:
    said = texts(pictures.tenant_time(cells(tenants=2, days=365)))
    assert "Activity by tenant and 7-day period" in said
    assert "day (UTC), 2021-01-04 to 2022-01-09" in said


def test_heat_map_without_suspicion_or_tenant() -> None:
    rows = pl.DataFrame({"date": [date(2021, 1, 4)], "tenant_id": [None], "n": [3], "n_suspicious": [0]})
    said = texts(pictures.tenant_time(rows.cast({"tenant_id": pl.String})))
    assert "(no tenant)" in said
    assert "suspicious events" not in said


def test_ledger_shows_both_series_and_the_balance() -> None:
    rows = pl.DataFrame(
        {"date": [date(2021, 1, 4), date(2021, 1, 4), date(2021, 1, 5), date(2021, 1, 6)],
         "delivered": [60, 40, 100, 100], "retrieved": [100, 0, 150, 80]}
    )  # fmt: skip
    svg = pictures.ledger(rows)
    said = texts(svg)
    assert {"delivered", "retrieved", "messages per day", "day (UTC), 2021-01-04 to 2021-01-06"} <= set(said)
    bars = [path for path in re.findall(r"<path[^>]*>", svg) if 'stroke="white"' in path]
    surplus = [path for path in bars if 'fill="#d95f02"' in path]
    assert len(surplus) == 1


def test_nothing_is_said_to_be_nothing() -> None:
    schema = {"date": pl.Date, "tenant_id": pl.String, "n": pl.Int64, "n_suspicious": pl.Int64}
    assert "No findings in this window." in texts(pictures.timeline([]))
    assert "No events in this window." in texts(pictures.tenant_time(pl.DataFrame(schema=schema)))
    counts = {"date": pl.Date, "delivered": pl.Int64, "retrieved": pl.Int64}
    assert "No journal mailbox in this window." in texts(pictures.ledger(pl.DataFrame(schema=counts)))


def test_hostile_text_stays_text() -> None:
    evil = case(1, summary=HOSTILE, severity=HOSTILE, rank=None)
    evil["findings"][0] |= {"title": HOSTILE, "severity": HOSTILE, "finding_id": HOSTILE}
    rows = pl.DataFrame({"date": [date(2021, 1, 4)], "tenant_id": [HOSTILE], "n": [3], "n_suspicious": [1]})
    for svg in (pictures.timeline([evil]), pictures.tenant_time(rows)):
        said = texts(svg)
        assert pictures.label(HOSTILE) in said
        assert svg.count("</svg>") == 1
        assert "<script" not in svg


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a  b\n c", "a b c"),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("y" * 10**7, "y" * 39 + "…"),
        ("\u202egpj.exe\x07", "gpj.exe"),
        ("\ud800 lone", "lone"),
        (7, "7"),
    ],
)
def test_labels_are_short_and_plain(text: object, shown: str) -> None:
    assert pictures.label(text) == shown


def test_pictures_of_one_page_do_not_share_ids() -> None:
    rows = cells(tenants=2, days=3)
    counts = pl.DataFrame({"date": [date(2021, 1, 4)], "delivered": [1], "retrieved": [1]})
    pages = (pictures.timeline([case()]), pictures.tenant_time(rows), pictures.ledger(counts))
    found = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in pages]
    assert found[1], "the colour legend has a gradient"
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    for svg, ids in zip(pages, found, strict=True):
        assert set(re.findall(r"url\(#([^)]+)\)", svg)) <= ids


def test_same_input_same_picture() -> None:
    rows = cells(tenants=3, days=3)
    assert pictures.tenant_time(rows) == pictures.tenant_time(rows.reverse())
    assert pictures.timeline([case()]) == pictures.timeline([case()])
