"""Mappings: what is refused, and with which words; what each kind of record becomes."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_contracts.errors import UsageError
from transforms import registry
from transforms.framing import Framer, head_of
from transforms.mapping import MappingFile, load
from transforms.model import IGNORED, QUARANTINED, Context

TOP = 'name = "x"\ntable = "access_events"\n'
REST = '[time]\nfrom = "t"\n[constants]\nprotocol = "pop3"\naction = "auth"\noutcome = "success"\n'
LINES = "[records]\npattern = '(?<t>\\S+) (?<u>.*)'\n"


def rows_of(mapping: str, text: str, block: int = 1 << 20, **how: Any) -> list[dict[str, Any]]:
    file = MappingFile(mapping, "m.toml")
    choice = registry.given(head_of(text.encode(), "x.log"), file.format, file.framing)
    assert not isinstance(choice, str)
    ctx = Context("e" * 64, **how)
    blocks = list(Framer(io.BytesIO(text.encode()), choice.framing, block_bytes=block).blocks())
    rows = pl.concat([registry.parse(choice, b, ctx) for b in blocks], how="diagonal").sort("record_no")
    assert rows["record_no"].to_list() == list(range(rows.height))
    assert rows["disposition"].null_count() == 0
    return rows.to_dicts()


def check(row: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: row.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("name = ", "m.toml: no TOML: "),
        ("nome = 1", "m.toml: 'nome' is not known here"),
        ('name = "../x"', "name = '../x' is no name"),
        ('name = "x"\ntable = "evidence"', "table = 'evidence': there is no such event table"),
        (TOP + '[records]\nframing = "xml"', "[records] framing = 'xml'"),
        (TOP + "[records]\nskip = -1", "[records] skip must be a number from 0"),
        (TOP + '[records]\ndelimiter = "ab"', "[records] delimiter must be one character"),
        (TOP + '[records]\ndelimiter = ";"', "[records] the fields need names"),
        (TOP + "[records]\nheader = true", "[records] it is not clear what the fields of a record are"),
        (TOP + "[records]\npattern = '(?<a>x'", "[records] the pattern '(?<a>x' is no regular expression"),
        (TOP + "[records]\npattern = '(?<a>x)(?=y)'", "is no regular expression"),
        (TOP + "[records]\npattern = '(x)'", "[records] the pattern has no named group"),
        (TOP + LINES + '[time]\nfrom = "t"\nformat = "%H:%M"', "[time] format = '%H:%M' has no year"),
        (TOP + LINES + '[time]\nfrom = "t"\nzone = "Mars/Base"', "[time] zone = 'Mars/Base' is not known"),
        (TOP + LINES + REST.replace('"t"', '"z"'), "there is no field 'z'"),
        (TOP + LINES + REST + "nothing = 1", "[constants] access_events has no column nothing"),
        (TOP + LINES + REST + 'evidence_id = "x"', "[constants] evidence_id is filled by gatehound"),
        (TOP + LINES + REST.replace('"auth"', '"login"'), "[constants] action cannot be 'login'"),
        (TOP + LINES + REST + '[columns]\nsrc_ip = "u"', "[columns] src_ip is filled by gatehound"),
        (TOP + LINES + REST + "[columns]\nop_raw = { from = \"u\", extract = 'x' }", "[columns.op_raw] the pattern 'x' has no group"),
        (TOP + LINES + REST + '[columns]\nop_raw = { from = "u", run = "x" }', "[columns.op_raw] 'run' is not known here"),
        (TOP + LINES + REST + '[columns]\naction = "u"', "action stands in both"),
        (TOP + LINES + REST.replace("outcome", "op_raw"), "access_events needs outcome"),
        (TOP + LINES + REST + '[columns]\nlogon_type = { from = "u", values = { a = "b" } }', "logon_type cannot be 'b'"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, fact: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text, "m.toml")
    assert fact in caught.value.fact
    assert caught.value.fact.startswith("m.toml: ")


def test_delimiters_header_and_quotes() -> None:
    mapping = TOP + '[records]\ndelimiter = "|"\nheader = true\nskip = 1\n' + REST.replace('"t"', '"when"')
    mapping += '[columns]\nprincipal_id = "who"\nbytes_out = "n"\nexternal_access = "ext"\n'
    text = 'made by x\r\n\r\nwhen|who|n|ext\r\n2024-03-03T08:00:00Z|Bob|1|yes\r\n2024-03-03 08:00:00|"a|""b"||no\r\n'
    text += "when|who|n|ext\r\n2024-03-03 08:00:00|x|1\r\n2024-03-03 08:00:00|x|one|no\r\n|x|1|no\r\nsoon|x|1|no\r\n"
    rows = rows_of(mapping, text)
    assert [row["reason"] for row in rows] == [
        "line before the records", "blank line", "header", None, None, "header",
        "the record does not have as many fields as the header", "bytes_out is not readable", "mapping:x: no time",
        "mapping:x: time not readable",
    ]  # fmt: skip
    assert [row["disposition"] for row in rows] == [*[IGNORED] * 3, *["access_events"] * 2, IGNORED, *[QUARANTINED] * 4]
    check(
        rows[3],
        {"principal_id": "bob", "bytes_out": 1, "external_access": True, "ts_basis": "offset", "agg_level": "event"},
    )
    check(rows[4], {"principal_id": 'a|"b', "bytes_out": None, "external_access": False, "ts_basis": "assumed_zone"})
    assert rows_of(mapping, text, block=64) == rows


def test_a_header_without_the_field() -> None:
    mapping = TOP + '[records]\nframing = "csv"\nheader = true\n' + REST + '[columns]\nop_raw = ["a", "b"]\n'
    assert [row["reason"] for row in rows_of(mapping, "t,b\n2024-01-01T00:00:00Z,x\n")] == ["header", None]
    lacking = rows_of(mapping, "t,c\n2024-01-01T00:00:00Z,x\n")
    assert lacking[1]["reason"] == "the header lacks a field that the mapping names"


def test_csv_records_may_span_lines() -> None:
    mapping = TOP + '[records]\nframing = "csv"\nnames = ["t", "m", "f"]\n' + REST
    mapping += '[columns]\nop_raw = { from = "m", extract = "(?s)^(.*)$" }\nfolders = { from = "f", split = "/" }\n'
    (row,) = rows_of(mapping, '2024-01-01T00:00:00Z,"a\nb, ""c""",x/ y\n')
    check(row, {"op_raw": 'a\nb, "c"', "folders": ["x", "y"]})


def test_pairs() -> None:
    mapping = TOP + "[records]\npairs = true\n" + REST + '[columns]\nop_raw = "msg"\nprincipal_id = "user"\n'
    rows = rows_of(mapping, 't=2024-01-01T00:00:00Z msg="say \\"user=eve\\" t=1" user=bob\nnothing here\nmsg=x\n')
    check(rows[0], {"op_raw": 'say "user=eve" t=1', "principal_id": "bob"})
    assert [row["reason"] for row in rows[1:]] == ["no key=value in the line", "mapping:x: no time"]
    (row,) = rows_of(
        mapping.replace("pairs = true", 'pairs = true\ndelimiter = "^"'), "t=2024-01-01 00:00:00^user=a b^msg=c\n"
    )
    check(row, {"op_raw": "c", "principal_id": "a b"})


def test_json_paths_and_odd_keys() -> None:
    mapping = TOP + '[records]\nframing = "json"\n' + REST.replace('"t"', '"@timestamp"')
    mapping += '[columns]\nprincipal_id = "user/name"\nop_raw = ["Op", "op"]\nitem_count = "n"\n'
    records = [
        {"@timestamp": "2024-01-01T00:00:00Z", "user": {"name": "Bob"}, "n": 3, "op": 'x"@timestamp":'},
        {"@timestamp": "2024-01-01T00:00:00Z", "user": "flat", "n": "3.0", "Op": "y"},
        {"n": 1},
    ]
    for text in (json.dumps(records), json.dumps({"value": records}), "\n".join(map(json.dumps, records))):
        rows = rows_of(mapping, text)
        check(rows[0], {"principal_id": "bob", "item_count": 3, "op_raw": 'x"@timestamp":'})
        check(rows[1], {"principal_id": None, "item_count": 3, "op_raw": "y"})
        assert rows[2]["reason"] == "mapping:x: no time"


@pytest.mark.parametrize(
    ("time", "text", "expected", "basis"),
    [
        ('from = "t"\nformat = "%d/%b/%Y:%H:%M:%S_%z"', "03/Mar/2024:08:00:00_+0100", "07:00:00", "offset"),
        ('from = "t"\nformat = "%d.%m.%Y_%H:%M"\nzone = "Europe/Berlin"', "03.03.2024_08:00", "07:00:00", "assumed_zone"),
        ('from = "t"\nzone = "UTC"', "2024-03-03T08:00:00", "08:00:00", "utc"),
        ('from = "t"', "2024-03-03T08:00:00", "03:00:00", "assumed_zone"),
        ('from = "t"\nformat = "epoch_s"', "1709452800", "08:00:00", "utc"),
        ('from = "t"\nformat = "epoch_ms"', "1709452800000", "08:00:00", "utc"),
        ('from = "t"\nformat = "any"', "1709452800000000", "08:00:00", "utc"),
    ],
)  # fmt: skip
def test_times(time: str, text: str, expected: str, basis: str) -> None:
    (row,) = rows_of(TOP + LINES + REST.replace('from = "t"', time), f"{text} x\n", tz="+05:00")
    check(row, {"ts": datetime.fromisoformat(f"2024-03-03T{expected}").replace(tzinfo=UTC), "ts_basis": basis})
    assert row["ts_raw"] == text


def test_values_choice_and_contradictions() -> None:
    mapping = 'name = "x"\ntable = "gateway_jobs"\n[records]\ndelimiter = ","\nnames = ["t", "e", "s", "k"]\n'
    mapping += (
        '[time]\nfrom = "t"\nformat = "epoch_s"\n[constants]\njob_id = "j"\nservice = "ews"\n[columns]\nts_end = "e"\n'
    )
    mapping += 'outcome = { from = "s", values = { OK = "success" }, default = "failure" }\ncredential_type = "k"\n[only]\ns = ["ok", "No"]\n'
    rows = rows_of(
        mapping,
        "100,200,Ok,\n1709452800,1709452900,ok,\n1709452800,1709452900,NO,\n1709452800,,maybe,\n1709452800,1709452700,ok,\n1709452800,,ok,cert\n",
    )
    assert [row["outcome"] for row in rows] == ["success", "success", "failure", None, None, None]
    assert [row["reason"] for row in rows[3:]] == [
        "mapping:x: not selected", "it ends before it begins", "a certificate without its thumbprint or key id"
    ]  # fmt: skip


QUICK = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@QUICK
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30), max_size=8))
def test_no_line_raises(lines: list[str]) -> None:
    text = "\n".join(["2024-01-01T00:00:00Z x", *lines])
    for records in (
        LINES,
        '[records]\ndelimiter = ";"\nnames = ["t", "u"]\n',
        "[records]\npairs = true\n",
        '[records]\nframing = "json"\n',
    ):
        rows_of(TOP + records + REST + '[columns]\nop_raw = "u"\n', text)
