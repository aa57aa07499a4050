"""UTF-16 evidence: recognised with and without a byte order mark, every record at its place in the evidence."""

import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.encodings import Encoding, encoding_of, places_in_utf16
from transforms.framing import Framer, head_of
from transforms.model import Framing

CSV = 'origin_timestamp_utc,message_subject\r\n2026-03-02T08:00:00Z,"Überweisung, \U0001f4b6\r\nzweite Zeile"\r\n2026-03-02T09:00:00Z,日本\r\n'


def _frames(data: bytes, framing: Framing, block: int, encoding: Encoding | None = None) -> pl.DataFrame:
    framer = Framer(io.BytesIO(data), framing, encoding=encoding or encoding_of(data), block_bytes=block)
    return pl.concat(list(framer.blocks()))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("framing", "records"), [("lines", 4), ("csv", 3)])
@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_each_record_lies_where_it_says(
    encoding: Encoding, mark: str, framing: Framing, records: int, block: int
) -> None:
    data = (mark + CSV).encode(encoding)
    assert encoding_of(data) == encoding
    frame = _frames(data, framing, block)
    assert frame.height == records
    assert frame["record_no"].to_list() == list(range(records))
    for row in frame.iter_rows(named=True):
        raw = data[row["byte_offset"] : row["byte_offset"] + row["byte_length"]].decode(encoding)
        assert raw.removeprefix("\ufeff") == row["raw"]
    assert frame["raw"][0] == "origin_timestamp_utc,message_subject"
    assert head_of(data, "x").lines[0] == "origin_timestamp_utc,message_subject"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=30))
def test_any_text(text: str) -> None:
    data = f"first\n{text}\nlast".encode("utf-16-le")
    frame = _frames(data, "lines", 16, "utf-16-le")
    row = frame.row(1, named=True)
    assert data[row["byte_offset"] : row["byte_offset"] + row["byte_length"]].decode("utf-16-le") == text == row["raw"]
    assert frame.row(-1, named=True)["raw"] == "last"


def test_half_a_surrogate_pair_and_half_a_code_unit_move_nothing() -> None:
    data = "a\n".encode("utf-16-le") + b"\x00\xd8" + "b\nc\n".encode("utf-16-le") + b"d"
    frame = _frames(data, "lines", 1 << 20, "utf-16-le")
    assert frame["raw"].to_list() == ["a", "\ufffdb", "c"]
    assert frame["byte_offset"].to_list() == [0, 4, 10]
    assert frame["byte_length"].to_list() == [2, 4, 2]


def test_a_line_longer_than_a_record_may_be() -> None:
    data = ("first\n" + "x" * (9 << 20) + "\nlast\n").encode("utf-16-le")
    frame = _frames(data, "lines", 1 << 20)
    assert frame["byte_length"].to_list() == [10, 18 << 20, 8]
    assert frame["byte_offset"].to_list() == [0, 12, 12 + (18 << 20) + 2]
    assert frame["damage"].is_not_null().to_list() == [False, True, False]


def test_what_is_not_utf_16() -> None:
    assert encoding_of(b"") == "utf-8"
    assert encoding_of(b"plain text, a line\n" * 9) == "utf-8"
    assert encoding_of(b"\x00" * 900) == "utf-8"
    assert encoding_of(bytes(range(256)) * 16) == "utf-8"
    assert encoding_of(b"\xff\xfe\x00\x00a\x00\x00\x00") == "utf-8"


def test_places() -> None:
    text = "aé日\U0001f4b6b"
    at = [len(text[:i].encode()) for i in range(len(text) + 1)]
    assert places_in_utf16(text.encode(), np.array(at)).tolist() == [0, 2, 4, 6, 10, 12]
