import gzip
import io
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.framing import BLOCK_SCHEMA, MAX_RECORD_BYTES, Framer, head_of


def framed(data: bytes, framing: str, **kwargs) -> pl.DataFrame:
    frames = list(Framer(io.BytesIO(data), framing, **kwargs).blocks())
    return pl.concat(frames) if frames else pl.DataFrame(schema=BLOCK_SCHEMA)


@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b"")), max_size=30), st.integers(1, 40))
def test_lines_lie_where_they_say(lines: list[bytes], block: int) -> None:
    data = b"\n".join(lines)
    frame = framed(data, "lines", block_bytes=block)
    for offset, length in frame.select("byte_offset", "byte_length").iter_rows():
        assert b"\n" not in data[offset : offset + length]
        assert offset + length == len(data) or data[offset + length : offset + length + 1] in (b"\n", b"\r")
    wanted = data.split(b"\n")
    assert frame.height == len(wanted) - (wanted[-1] == b"")
    assert frame["record_no"].to_list() == list(range(frame.height))


BEGINNINGS = {
    "zlib": b"x^", "zlib, low": b"x\x01", "zlib, usual": b"x\x9c", "gzip": b"\x1f\x8b\x08", "zstd": b"\x28\xb5\x2f\xfd",
    "gzip, whole": gzip.compress(b"a\nb\n", mtime=0),
}  # fmt: skip


@pytest.mark.parametrize("begin", BEGINNINGS.values(), ids=BEGINNINGS)
@pytest.mark.parametrize("framing", ["lines", "csv"])
def test_what_begins_like_compressed_data_is_text_still(begin: bytes, framing: str) -> None:
    data = begin + b" one\ntwo\n"
    whole = framed(data, framing)
    assert "".join(whole["raw"].to_list()[-2:]).endswith(" onetwo")
    assert whole["byte_offset"][-1] == data.index(b"two")
    assert framed(b"0\n" + data, framing, block_bytes=2)["raw"].to_list()[1:] == whole["raw"].to_list()


def test_latin1_nul_and_crlf_lines_are_read_and_placed() -> None:
    data = b"caf\xe9\r\nn\x00ul\r\n\r\nlast"
    frame = framed(data, "lines")
    assert frame["raw"].to_list() == ["café", "n\x00ul", "", "last"]
    assert frame["byte_offset"].to_list() == [0, 6, 12, 14]


@pytest.mark.parametrize("size", [MAX_RECORD_BYTES + 1, 50 << 20])
def test_a_line_that_is_too_long_is_one_damaged_record(size: int) -> None:
    data = b"first\n" + b"x" * size + b"\nlast\n"
    frame = framed(data, "lines")
    assert frame["raw"].to_list()[::2] == ["first", "last"]
    assert frame["byte_length"].to_list() == [5, size, 4]
    assert frame["damage"].to_list() == [None, "record is longer than 8 MiB", None]
    assert len(frame["raw"][1]) == 2000


def test_csv_records_span_lines() -> None:
    data = b'a,b\r\n1,"x\r\ny"\r\n2,"say ""hi"", ok"\r\n'
    for block in (1 << 20, 7):
        frame = framed(data, "csv", block_bytes=block)
        assert frame["raw"].to_list() == ["a,b", '1,"x\r\ny"', '2,"say ""hi"", ok"']
        assert [data[o : o + n].decode() for o, n in frame.select("byte_offset", "byte_length").iter_rows()] == frame[
            "raw"
        ].to_list()


def test_a_stray_quote_costs_one_csv_record_not_the_file() -> None:
    good = [f'{i},"v{i}","line\nbreak"' for i in range(50)]
    lines = ["n,a,b", *good[:20], '20,"cut off', *good[20:]]
    frame = framed("\n".join(lines).encode(), "csv")
    assert [r for r in frame["raw"].to_list() if r in good] == good


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(st.text() | st.integers() | st.none(), lambda c: st.lists(c, max_size=3), max_leaves=5),
        ),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([None, 1]),
    st.integers(20, 400),
)
def test_json_objects_of_an_array_are_found(objects: list[dict], indent: int | None, block: int) -> None:
    data = json.dumps(objects, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    frame = framed(data, "json", block_bytes=block)
    assert [json.loads(data[o : o + n]) for o, n in frame.select("byte_offset", "byte_length").iter_rows()] == objects
    assert frame["damage"].null_count() == frame.height


def test_json_damage_costs_the_damaged_objects_only() -> None:
    objects = [json.dumps({"Id": i, "Operation": 'say \\"hi\\" {[', "Item": {"Id": i}}) for i in range(30)]
    broken = objects.copy()
    broken[7] = broken[7][:25]
    broken[12] = '{"Id": 12, "Operation": "open'
    data = ("[" + ",\n".join(broken) + "]").encode()
    frame = framed(data, "json")
    kept = frame.filter(pl.col("damage").is_null())["raw"].to_list()
    assert [o for o in kept if o in objects] == [o for i, o in enumerate(objects) if i not in (7, 12)]
    assert set(frame["damage"].drop_nulls()) == {"JSON object is cut or its brackets do not match"}


def test_deep_nesting_is_refused_before_anything_decodes_it() -> None:
    data = b'[{"a":1},{"a":' + b"[" * 100_000 + b"]" * 100_000 + b'},{"a":2}]'
    frame = framed(data, "json")
    assert frame["damage"].to_list() == [None, "JSON is nested more than 64 deep", None]


def test_wrapped_answers_give_their_elements() -> None:
    data = b'{"@odata.context": "x", "value": [{"Id": 1}, {"Id": 2}], "next": "y"}'
    assert framed(data, "json")["raw"].to_list() == ['{"Id": 1}', '{"Id": 2}']


def test_head_leaves_out_the_cut_line() -> None:
    head = head_of(b"a\n" * 40_000, "x")
    assert len(head.data) == 65536
    assert set(head.lines) == {"a"}


def test_named_arrays_of_an_answer_give_their_names_as_records() -> None:
    """Proofpoint's answer says only by the array's name what became of the events in it."""
    answer = (
        b'{"queryEndTime":"2026-03-02T09:00:00Z","clicksPermitted":[],"messagesBlocked":[{"id":"a"},{"id":"b"}],'
        b'"messagesDelivered":[{"id":"c"}]}'
    )
    raws = [b'"messagesBlocked":', b'{"id":"a"}', b'{"id":"b"}', b'"messagesDelivered":', b'{"id":"c"}']
    for data in (answer, answer + b"\n" + answer):
        for block in (100, 1 << 20):
            frame = framed(data, "json", block_bytes=block)
            assert [r.encode() for r in frame["raw"]] == raws * (len(data) // len(answer))
            assert frame["damage"].is_null().all()


@pytest.mark.parametrize(
    "answer",
    [
        b'{"d":{"results":[{"a":1},{"a":2}]}}',
        b'{\n  "d" : {\n "results" : [\n {"a":1},\n {"a":2} ]\n}\n}\n',
        b'{\n  "value": [\n    {"a":1},\n    {"a":2}\n  ]\n}\n',
        b'\xef\xbb\xbf{ "@odata.context": "x", "value": [ {"a":1}, {"a":2} ] }',
    ],
)
def test_answers_of_services_are_unwrapped(answer: bytes) -> None:
    frame = framed(answer, "json")
    assert frame["raw"].to_list() == ['{"a":1}', '{"a":2}']
    assert frame["damage"].is_null().all()


def test_a_comment_before_the_header_says_nothing_about_the_fields() -> None:
    frame = framed(b'#TYPE System.Object\r\na,b\r\n1,"two\r\nlines"\r\n3,4\r\n', "csv")
    assert frame["raw"].to_list() == ["#TYPE System.Object", "a,b", '1,"two\r\nlines"', "3,4"]
