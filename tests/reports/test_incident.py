"""The incident report: what a manager and an analyst look for stands in it, and nothing that a log says acts in it."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import polars as pl
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reports.incident import Material, Picture, html, markdown

KEYS = ("tenant_ids", "credential_ids", "principal_ids", "app_ids", "source_ips", "source_networks", "mailboxes")
EVIL = "</td><script>alert(1)</script>|\n# x <img src=x onerror=y> {{7*7}} {% raw %}"


class Page(HTMLParser):
    """Element names, ids, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.shape: list[tuple[str, tuple[str, ...]]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.shape.append((tag, tuple(name for name, _ in attrs)))
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.words += data


def finding(text: str, number: int = 1) -> dict[str, Any]:
    return {
        "finding_id": f"F-{number:016x}",
        "detection": "T01",
        "title": text,
        "family": "tenant_connection",
        "severity": "high",
        "score": 70.0 + number,
        "first_seen": "2021-02-03T04:05:06Z",
        "last_seen": "2021-02-04T04:05:06Z",
        "explanation": text,
        "tactics": [],
        "techniques": [],
        "entities": {k: [text] for k in KEYS},
        "sql": f"select '{text}'",
        "evidence": {"table": "access_events", "event_uids": ["a" * 40], "count": 1234},
    }


def material(text: str = "svc-mail", *, cases: int = 1, **changed: Any) -> Material:
    found = [
        {
            "case_id": f"C-{rank:016x}",
            "rank": rank,
            "score": 200.0 / rank,
            "severity": "critical",
            "families": ["tenant_connection"],
            "tactics": ["initial-access"],
            "summary": text,
            "first_seen": "2021-02-03T04:05:06Z",
            "last_seen": "2021-02-04T04:05:06Z",
            "entities": {k: [text] for k in KEYS},
            "findings": [finding(text, rank)],
        }
        for rank in range(1, cases + 1)
    ]
    hunt = {
        "run_id": "R-1",
        "window": {"from": "2021-01-04T00:00:00Z", "to": "2021-02-18T00:00:00Z"},
        "archive_version": {"findings": 2},
        "detections_run": ["T01"],
        "detections_skipped": [{"id": "X01", "reason": text}],
        "detections_without_subjects": [{"id": "L06", "part": text, "reason": text}],
        "cases": found,
        "limits": [text],
        "beyond_budget": changed.pop("beyond_budget", 0),
    }
    about = {
        "title": text,
        "hypothesis": text,
        "techniques": [text],
        "blind_spots": [text],
        "runbook": [text],
        "false_positives": [text],
    }
    rows = pl.DataFrame(
        {"ts": [datetime(2021, 2, 3, 4, 5, 6, tzinfo=UTC)], "user_agent": [text], "event_uid": ["a" * 40]}
    )
    given: dict[str, Any] = {
        "hunt": hunt,
        "detections": {"T01": about},
        "rows": {f["finding_id"]: (rows, 1234) for c in found for f in c["findings"]},
        "evidence": pl.DataFrame({"file": [text], "records": [12345]}),
        "evidence_note": text,
        "pictures": [Picture("Findings over time", text, "<svg/>", "timeline.svg")] if found else [],
        "tool_version": "1.2",
        "title": text,
        "made_at": datetime(2021, 3, 1, tzinfo=UTC),
    }
    return Material(**given | changed)


SHAPE = Page(html(material())).shape


@given(
    st.text(
        st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("<>\"'&/|`\n{}%#=")),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(EVIL)
@example("\x1b[31m\x00\u202e")
def test_no_text_changes_the_shape_of_the_page(text: str) -> None:
    page = html(material("x" + text))
    assert Page(page).shape == SHAPE
    assert all(line.isprintable() for line in page.split("\n"))


@given(
    st.text(
        st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from("<>\"'&/|`\\\n{}%#=[]()")),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(EVIL)
@example("a|b\\")
def test_no_text_breaks_a_row_of_the_markdown(text: str) -> None:
    widths = [(n, len(cells)) for n, cells in enumerate(rows(markdown(material("x" + text))))]
    assert widths == [(n, len(cells)) for n, cells in enumerate(rows(markdown(material())))]


def rows(text: str) -> list[list[str]]:
    """Cells of all table rows outside blocks of code."""
    outside = re.sub(r"^(```+)sql\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [re.split(r"(?<!\\)(?:\\\\)*\|", line) for line in outside.splitlines() if line.startswith("|")]


def test_tables_of_the_markdown_have_no_gaps() -> None:
    text = markdown(material(cases=2))
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|( --- \|)+", line):
            assert lines[number - 1].startswith("| ")
            assert lines[number + 1].startswith("| ")
            assert lines[number - 2] == ""
    assert "\n\n\n" not in text


def test_sections_stand_in_the_order_in_which_they_are_read() -> None:
    wanted = ["summary", "timeline", "cases", "limits", "method"]
    assert [i for i in Page(html(material())).ids if i in wanted] == wanted
    heads = re.findall(r"^## (.*)$", markdown(material()), re.MULTILINE)
    assert heads == ["Summary for management", "Timeline", "Cases", "What these logs cannot say", "Method and evidence"]


def test_every_link_leads_to_a_place_in_the_page() -> None:
    page = Page(html(material(cases=3)))
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_the_summary_says_how_much_who_and_how_far() -> None:
    text = markdown(material(cases=2)).split("## Timeline")[0]
    assert (
        "1 detection ran over the logs from 2021-01-04 00:00 to 2021-02-18 00:00 UTC. Result: 2 cases "
        "(2 critical)." in text
    )
    assert "**Case 1 (critical).** Credential svc-mail used from a new network at tenant svc-mail." in text
    assert "- Credentials to revoke or clear: svc-mail" in text
    bounds = "and 1 detection could not run; 1 detection could judge nobody, or not everybody."
    assert f"1 limit of these logs is stated below, {bounds}" in text
    assert "- Detection L06 ran, but could judge nobody" in markdown(material(cases=2))


def test_an_analyst_finds_each_evidence_row() -> None:
    for text in (html(material()), markdown(material())):
        assert "a" * 40 in text
        assert "1 of 1,234 in access_events" in text
        assert "2021-02-03 04:05:06" in text


def test_nothing_found_is_no_all_clear() -> None:
    for text in (html(material(cases=0)), markdown(material(cases=0))):
        assert "found nothing. This is no all-clear" in text
        assert "There is nothing to draw" in text
        assert "svc-mail" in text  # the limits


def test_cases_beyond_the_budget_are_owned_up_to() -> None:
    assert "3 further cases lie beyond the budget" in html(material(beyond_budget=3))
    assert "1 further case lies beyond the budget" in markdown(material(beyond_budget=1))


def test_same_input_same_bytes() -> None:
    assert html(material()) == html(material())
    assert markdown(material()) == markdown(material())
