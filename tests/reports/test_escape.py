"""What a log says stays text: in a terminal, in Markdown, in a spreadsheet, in JSON."""

import csv as csv_module
import io
import json
import re
import unicodedata
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reports.escape import code, csv, fence, jsonable, md, plain, to_json

HOSTILE = st.text(
    st.one_of(
        st.characters(exclude_categories=("Cs",)), st.sampled_from("|\\`*_[]()<>&#!~$=+-@\n\r\t\x00\x1b\x9b:/.1")
    ),
    max_size=40,
)
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


@given(HOSTILE)
@example("\x1b[2J")
@example("a\u202eb\u2028c")
@example("\ud800")
def test_plain_is_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)


@given(HOSTILE)
@example("a|b\\|c\\\\|")
@example("| --- |")
def test_markdown_text_ends_no_cell_and_starts_no_markup(text: str) -> None:
    shown = md(text)
    assert "\n" not in shown
    assert not re.search(r"(?<!\\)(?:\\\\)*[|`*\[\]~$]", shown)
    assert not re.search(r"[<>]|&(?!lt;|gt;|amp;)", shown)
    assert not re.match(r"[-+=#]|\s|\d+[.)](\s|$)", shown)
    assert not re.search(r"(?<!\\)://|(?i:www)(?<!\\)\.", shown)


@pytest.mark.parametrize("text", ["_a_", "__a__", "a _b_ c", "_", "*_a"])
def test_markdown_underscores_emphasise_nothing(text: str) -> None:
    assert not re.search(r"(?<![\\0-9A-Za-z])_|(?<!\\)_(?![0-9A-Za-z])", md(text))


def test_markdown_leaves_names_readable() -> None:
    assert md("byte_offset (12) a-b svc@t1.example 1.5") == "byte_offset (12) a-b svc@t1.example 1.5"


@given(HOSTILE)
@example("```\n```` x")
@example("`" * 9)
def test_a_fence_holds_what_is_in_it(text: str) -> None:
    lines = fence(text).split("\n")
    ticks = re.match("`+", lines[0])
    assert ticks is not None
    assert lines[-1] == ticks.group()
    assert not [line for line in lines[1:-1] if line.strip().startswith(ticks.group())]
    assert all(line.isprintable() for line in lines)


@given(st.lists(HOSTILE, min_size=1, max_size=4), HOSTILE)
@example(["\t=1+1", " +1", "\n@x", "\uff1d1"], "=name")
def test_no_cell_and_no_heading_starts_a_formula(texts: list[str], name: str) -> None:
    written = csv(pl.DataFrame({name or "x": texts}, schema={name or "x": pl.String}))
    rows = list(csv_module.reader(io.StringIO(written, newline="")))
    assert len(rows) == len(texts) + 1
    assert not [cell for row in rows for cell in row if cell.lstrip()[:1] in FORMULA and cell.lstrip()]
    # by category: Python and Polars know different versions of Unicode, and disagree on what is printable
    assert not [c for c in written if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")]


def test_csv_writes_every_kind_of_value() -> None:
    frame = pl.DataFrame(
        {
            "t": [datetime(2021, 2, 3, 4, 5, 6, 7, UTC)],
            "d": [date(2021, 2, 3)],
            "l": [["a", None, "=b"]],
            "n": [[1, 2]],
            "b": [b"\x00\xff"],
            "s": [{"x": "=1"}],
            "i": [-5],
            "f": [1.5],
            "z": [None],
        }
    )
    (row,) = csv_module.DictReader(io.StringIO(csv(frame)))
    assert row == {
        "t": "2021-02-03T04:05:06.000007Z",
        "d": "2021-02-03",
        "l": "a;=b",
        "n": "[1, 2]",
        "b": "00ff",
        "s": '{"x": "=1"}',
        "i": "-5",
        "f": "1.5",
        "z": "",
    }


def test_csv_of_a_list_that_begins_with_a_formula_is_defused() -> None:
    assert csv(pl.DataFrame({"l": [["=a", "b"]]})).splitlines()[1] == "'=a;b"


@given(
    st.recursive(
        HOSTILE | st.integers() | st.booleans() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE, inner, max_size=3),
        max_leaves=8,
    )
)
@example({"\x7f\x9b": ["\u2028", "\x1b"]})
def test_json_reads_back_and_holds_nothing_a_terminal_acts_on(value: object) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert all(line.isprintable() for line in text.split("\n"))


def test_json_of_numbers_that_json_lacks_is_null() -> None:
    assert jsonable([float("nan"), float("inf"), 1.5]) == [None, None, 1.5]


def test_code_keeps_its_lines() -> None:
    assert code("select 1\n\tfrom x\x1b") == "select 1\n    from x\\x1b"
