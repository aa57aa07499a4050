"""JSON and CSV records to columns: every record stays in its place, whatever it holds."""

import csv
import io
import json
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transforms import csvrows, jsonrows

TEXT = pl.String()
PAIRS = pl.List(pl.Struct({"Name": TEXT, "Value": TEXT}))
SCHEMA = pl.Struct(
    {"a": TEXT, "n": pl.Int64(), "flag": pl.Boolean(), "p": PAIRS, "s": pl.Struct({"x": TEXT}), "l": pl.List(TEXT)}
)
QUICK = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


def decode(*texts: str | None) -> list[tuple[dict[str, Any] | None, bool]]:
    frame = pl.DataFrame({"k": range(len(texts)), "raw": pl.Series(texts, dtype=pl.String)}).lazy()
    rows = jsonrows.decode(frame, SCHEMA).collect()
    assert rows.get_column("k").to_list() == list(range(len(texts)))
    return [(row["j"], row["bad_json"]) for row in rows.to_dicts()]


def one(text: str) -> dict[str, Any]:
    ((value, bad),) = decode(text)
    assert not bad
    assert value is not None
    return {key: item for key, item in value.items() if item is not None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":"x","n":5,"flag":true}', {"a": "x", "n": 5, "flag": True}),
        ('{"a":5}', {"a": "5"}),
        ('{"a":false}', {"a": "false"}),
        ('{"a":{"x":[1]}}', {"a": '{"x":[1]}'}),
        ('{"a":[1,2]}', {"a": "[1,2]"}),
        ('{"a":123456789012345678901234567890}', {"a": "123456789012345678901234567890"}),
        ('{"a":"1","a":"2"}', {"a": "1"}),
        ('{"a":NaN}', {"a": "NaN"}),
        ('\ufeff {"a":"x"}', {"a": "x"}),
        ('{"n":"12"}', {"n": 12}),
        ('{"n":"twelve","a":"x"}', {"a": "x"}),
        ('{"a":"x\ty"}', {"a": "x\ty"}),
        ('{"a":"\\ud83d\\ude00 \\udc00"}', {"a": "\U0001f600 \ufffd"}),
        ('{"p":[{"Name":"q","Value":["x","y"]}]}', {"p": [{"Name": "q", "Value": '["x","y"]'}]}),
        ('{"p":[null,{"Value":1}]}', {"p": [None, {"Name": None, "Value": "1"}]}),
        # polymorphic: JSON in a string, one object, a plain text, a number
        ('{"p":"[{\\"Name\\":\\"q\\",\\"Value\\":\\"v\\"}]"}', {"p": [{"Name": "q", "Value": "v"}]}),
        ('{"p" : {"Name":"q"}}', {"p": [{"Name": "q", "Value": None}]}),
        ('{"p":"-Identity \\"x\\""}', {"p": [{"Name": None, "Value": '-Identity "x"'}]}),
        ('{"p":7}', {"p": [{"Name": None, "Value": "7"}]}),
        ('{"s":"{\\"x\\":1}","a":"y"}', {"s": {"x": "1"}, "a": "y"}),
        ('{"l":"no list","a":"y"}', {"a": "y"}),
    ],
)
def test_decode_values(text: str, expected: dict[str, Any]) -> None:
    assert one(text) == expected


@pytest.mark.parametrize(
    "text",
    [None, "", "null", '"text"', "[]", '[{"a":"x"}]', '{"a":', '{"a":"x"} tail', "{" * 70 + "}" * 70, "\x00", "{\x00}"],
)
def test_decode_refuses(text: str | None) -> None:
    good = '{"a":"good"}'
    (first, first_bad), (value, bad), (last, last_bad) = decode(good, text, good)
    assert (value, bad) == (None, True)
    assert not first_bad
    assert not last_bad
    assert first is not None
    assert first["a"] == "good"
    assert last == first


def test_decode_nesting() -> None:
    def deep(levels: int) -> str:
        return '{"a":' * levels + "1" + "}" * levels

    siblings = '{"l":[' + ",".join(['{"x":[1]}'] * 500) + "]}"
    in_text = json.dumps({"a": "[{" * 100})
    rows = decode(
        deep(64), deep(65), siblings, in_text, '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' + "[" * 100_000
    )
    assert [bad for _, bad in rows] == [False, True, False, False, True, True]
    assert rows[2][0] is not None
    assert len(rows[2][0]["l"]) == 500
    # Brackets in strings must not hide depth, nor make it.
    hidden = '{"a":"' + "]}" * 200 + '","l":' + "[" * 70 + "]" * 70 + "}"
    assert decode(hidden)[0] == (None, True)
    assert jsonrows.nesting(hidden) == 71


def test_decode_empty_frame() -> None:
    assert jsonrows.decode(pl.LazyFrame({"raw": []}, schema={"raw": pl.String}), SCHEMA).collect().height == 0


@QUICK
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abnpsl"),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4),
        ),
        max_size=5,
    ),
    st.data(),
)
def test_decode_never_raises(values: list[dict[str, Any]], data: st.DataObject) -> None:
    texts = [json.dumps(value) for value in values]
    for index, text in enumerate(texts):
        cut = data.draw(st.integers(0, len(text)))
        if data.draw(st.booleans()):
            texts[index] = text[:cut] + data.draw(st.text(max_size=3)) + text[cut + 1 :]
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for text, (value, bad) in zip(texts, decode(*texts), strict=True):
        assert bad == (value is None)
        if not bad:
            assert text.lstrip("\ufeff \t\r\n").startswith("{")


@QUICK
@given(
    st.dictionaries(st.just("a"), st.text()),
    st.lists(st.fixed_dictionaries({"Name": st.text(), "Value": st.text()}), max_size=4),
)
def test_decode_round_trip(values: dict[str, str], pairs: list[dict[str, str]]) -> None:
    text = json.dumps(values | {"p": pairs}, ensure_ascii=False).encode("utf-8", "replace").decode()
    found = one(text)
    expected = json.loads(text)
    assert found.get("a") == expected.get("a")
    assert found["p"] == expected["p"]


def table(records: list[str | None], want: list[str] | None = None) -> list[tuple[Any, ...]]:
    frame = pl.DataFrame({"raw": pl.Series(records, dtype=pl.String)})
    rows = csvrows.columns(frame.lazy(), ["h", "i", "j"], want).collect()
    assert rows.get_column("raw").to_list() == records
    return rows.drop("raw").rows()


def test_csv_values() -> None:
    records = ["a,b,c", '"a","b,b","c""c"', 'a,"b\nx",c', ",,", 'a,"",c', "a,b,c\n", '"a"', 'a,b"q"b,c', "#a,b,c"]
    assert table([*records]) == [
        ("a", "b", "c", False),
        ("a", "b,b", 'c"c', False),
        ("a", "b\nx", "c", False),
        (None, None, None, False),
        ("a", None, "c", False),
        ("a", "b", "c", False),
        (None, None, None, True),
        ("a", 'b"q"b', "c", False),
        ("#a", "b", "c", False),
    ]


@pytest.mark.parametrize(
    "bad", [None, "", "a,b", "a,b,c,d", '"a,b,c', 'a,"b,c', "a,b,c\n1,2,3", "a,b,\x1e\nx,y,z", "a,b\n,c", '"a","b",c"']
)
def test_csv_bad_record_moves_no_other(bad: str | None) -> None:
    rows = table(["1,2,3", bad, "4,5,6", 'x,"y\nz",w', bad, "7,8,9"])
    assert [row[0] for row in rows] == ["1", rows[1][0], "4", "x", rows[4][0], "7"]
    assert [row[-1] for row in rows] == [False, rows[1][-1], False, False, rows[4][-1], False]
    if bad != '"a","b",c"':  # readers differ about a quote that ends a plain field
        assert rows[1] == rows[4] == (None, None, None, True)


def test_csv_wanted_names() -> None:
    assert table(["a,b,c"], ["j", "missing", "h"]) == [("c", None, "a", False)]
    assert table([], ["j"]) == []
    twice = csvrows.columns(pl.LazyFrame({"raw": ["1,2"]}), ["x", "x"]).collect()
    assert twice.rows() == [("1,2", "1", False)]


@QUICK
@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\x00")), min_size=3, max_size=3
        ),
        max_size=8,
    ),
    st.data(),
)
def test_csv_round_trip(rows: list[list[str]], data: st.DataObject) -> None:
    records = []
    for row in rows:
        out = io.StringIO()
        quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
        csv.writer(out, quoting=quoting, lineterminator="\n").writerow(row)
        records.append(out.getvalue()[:-1])
    expected = [(*(field or None for field in row), False) for row in rows]
    assert table([*records]) == expected


@pytest.mark.parametrize("begin", ["x^", "x\x01", "\x1f", "(\xb5/"], ids=["zlib", "zlib, low", "gzip", "zstd"])
def test_a_csv_record_that_begins_like_compressed_data_is_text_still(begin: str) -> None:
    rows = csvrows.columns(pl.LazyFrame({"raw": [f"{begin},1", "a,2"]}), ["h", "i"]).collect()
    assert rows.select("c.h", "c.i", "bad_csv").rows() == [(begin, "1", False), ("a", "2", False)]
