"""Windows events in the shapes in which they are exported, to one set of columns.

Read are the documents of Elastic's winlogbeat, the output of evtx_dump, and what PowerShell's ``Get-WinEvent`` gives
through ``ConvertTo-Json`` or ``Export-Csv -NoTypeInformation``. An event has its values by name, by position, or only
in the text of its message, depending on the shape.
"""

import re

import polars as pl

from transforms import csvrows, jsonrows, tabular
from transforms.model import Context, Framing, Head, Match

WINLOGBEAT, EVTX, POWERSHELL, CSV = "winlogbeat", "evtx_dump", "powershell", "csv"
NAMED = (
    "TargetUserName", "TargetDomainName", "TargetLogonId", "IpAddress", "IpPort", "LogonType", "LogonProcessName",
    "AuthenticationPackageName", "Status", "SubStatus", "Workstation", "PackageName",
)  # fmt: skip
_MOST_VALUES = 24
_T = pl.String()
_HEADER = "windows_header"
_WANTED_CSV = ("Id", "TimeCreated", "Message", "MachineName", "RecordId", "LogName", "ProviderName")

_BEAT = pl.Struct(
    {
        "k_time": _T,
        "message": _T,
        "event": pl.Struct({"code": _T}),
        "winlog": pl.Struct(
            {
                "event_id": _T, "computer_name": _T, "record_id": _T, "channel": _T,
                "event_data": pl.Struct(
                    dict.fromkeys(NAMED, _T) | {f"param{n}": _T for n in range(1, _MOST_VALUES + 1)}
                ),
            }
        ),
    }
)  # fmt: skip
_SYSTEM = ("EventID", "EventRecordID", "Channel", "Computer")
_EVTX = pl.Struct(
    {
        "Event": pl.Struct(
            {
                "System": pl.Struct(
                    dict.fromkeys(_SYSTEM, _T)
                    | {"TimeCreated": pl.Struct({"k_attributes": pl.Struct({"SystemTime": _T}), "SystemTime": _T})}
                ),
                "EventData": pl.Struct(dict.fromkeys(NAMED, _T) | {"Data": _T}),
            }
        )
    }
)
_POWERSHELL = pl.Struct(
    dict.fromkeys(("Id", "TimeCreated", "Message", "MachineName", "RecordId", "LogName"), _T)
    | {"Properties": pl.List(pl.Struct({"Value": _T}))}
)
_KEYS = {"@timestamp": "k_time", "#attributes": "k_attributes", "#text": "k_text"}
_SIGNS = (
    (WINLOGBEAT, re.compile(r'"winlog"\s*:\s*\{')),
    (EVTX, re.compile(r'"Event"\s*:\s*\{.{0,400}?"System"\s*:\s*\{', re.DOTALL)),
    (POWERSHELL, re.compile(r'"TimeCreated"\s*:\s*"')),
)
_SLASHED = r"^(\d{1,2})/(\d{1,2})/(\d{4}),? (\d{1,2}):(\d\d)(?::(\d\d))?(?: ([AaPp])\.?[Mm]\.?)?$"
_DOTTED = r"^(\d{1,2})\.(\d{1,2})\.(\d{4}),? (\d{1,2}):(\d\d)(?::(\d\d))?$"


def sniff(head: Head, ids: re.Pattern[str]) -> Match | None:
    """Claim an export of Windows events in which one of some event ids stands.

    Args:
        head: of the evidence.
        ids: finds, in JSON, the event id with its key; its group is the number.
    """
    start = head.text.lstrip("\ufeff \t\r\n")
    if start[:1] in ("{", "["):
        shape = next((name for name, sign in _SIGNS if sign.search(start)), None)
        if shape is None or (found := ids.search(start)) is None:
            return None
        whole = start[0] == "{" and start.split("\n", 1)[0].rstrip().endswith("}")
        framing: Framing = "lines" if whole else "json"
        return Match(0.9, f"Windows events as {shape} writes them, {found[1]} among them", framing, shape)
    header = next((line for line in head.lines if line.strip()), "").removeprefix("\ufeff")
    names = [name.strip('" ') for name in header.split(",")]
    if not {"Id", "TimeCreated", "Message"} <= set(names):
        return None
    return Match(0.9, "Windows events as Export-Csv writes them", "csv", CSV)


def common(records: pl.LazyFrame, ctx: Context) -> pl.DataFrame:
    """Events of any shape.

    Returns:
        record_no, byte_offset, byte_length, event_id (text), ts, ts_raw, ts_basis, host, record_id, channel, message,
        `values` (by position, a list), a text column for each of NAMED, and `trouble`: "header", or why the record
        could not be read.
    """
    frame = records.select("record_no", "byte_offset", "byte_length", "raw")
    found = (_csv(frame.collect(), ctx) if ctx.variant == CSV else _json(frame, ctx.variant).collect()).drop("raw")
    absent = [pl.lit(None, pl.String).alias(name) for name in NAMED if name not in found.columns]
    found = found.with_columns(absent)
    return found.hstack(_times(found["ts_raw"], ctx))


def _json(frame: pl.LazyFrame, shape: str) -> pl.LazyFrame:
    text = pl.col("raw")
    for key, name in _KEYS.items():  # names that jsonrows does not take
        text = text.str.replace_all(rf'(^|[^\\])"{key}"\s*:', f'${{1}}"{name}":')
    schema = {WINLOGBEAT: _BEAT, EVTX: _EVTX}.get(shape, _POWERSHELL)
    decoded = jsonrows.decode(frame.with_columns(text.alias("t")), schema, "t")
    read = {WINLOGBEAT: _of_winlogbeat, EVTX: _of_evtx}.get(shape, _of_powershell)
    trouble = pl.when("bad_json").then(pl.lit("no JSON object"))
    rows = decoded.with_columns(**read(pl.col("j").struct), trouble=trouble).drop("t", "j", "bad_json")
    return _values_of_data(rows) if shape == EVTX else rows


def _of_winlogbeat(j: "pl.expr.struct.ExprStructNameSpace") -> dict[str, pl.Expr]:
    log, data = j["winlog"].struct, j["winlog"].struct["event_data"].struct
    return {
        "event_id": pl.coalesce(log["event_id"], j["event"].struct["code"]),
        "ts_raw": j["k_time"], "host": log["computer_name"], "record_id": log["record_id"], "channel": log["channel"],
        "message": j["message"],
        "values": pl.concat_list(data[f"param{n}"] for n in range(1, _MOST_VALUES + 1)),
        **{name: data[name] for name in NAMED},
    }  # fmt: skip


def _of_evtx(j: "pl.expr.struct.ExprStructNameSpace") -> dict[str, pl.Expr]:
    system, data = j["Event"].struct["System"].struct, j["Event"].struct["EventData"].struct
    time = system["TimeCreated"].struct
    return {
        # 1644, or {"#attributes": {"Qualifiers": 16384}, "#text": 1644}
        "event_id": system["EventID"].str.extract(r'^(?:.*"k_text"\s*:\s*"?)?(\d{1,9})"?\}?$'),
        "ts_raw": pl.coalesce(time["k_attributes"].struct["SystemTime"], time["SystemTime"]),
        "host": system["Computer"], "record_id": system["EventRecordID"], "channel": system["Channel"],
        "message": pl.lit(None, pl.String), "data": data["Data"],
        **{name: data[name] for name in NAMED},
    }  # fmt: skip


def _of_powershell(j: "pl.expr.struct.ExprStructNameSpace") -> dict[str, pl.Expr]:
    return {
        "event_id": j["Id"], "ts_raw": j["TimeCreated"], "host": j["MachineName"], "record_id": j["RecordId"],
        "channel": j["LogName"], "message": j["Message"],
        "values": j["Properties"].list.eval(pl.element().struct.field("Value")),
    }  # fmt: skip


def _values_of_data(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Values by position that evtx_dump writes as ``"Data": {"#text": [...]}`` or ``"Data": [...]``."""
    data = pl.col("data")
    text = (
        pl.when(data.str.starts_with("[")).then(pl.lit('{"k_text":') + data + pl.lit("}"))
        .when(data.str.starts_with("{")).then(data)
        .otherwise(pl.lit('{"k_text":[]}'))
    )  # fmt: skip
    shape = pl.Struct({"k_text": pl.List(pl.String())})
    decoded = jsonrows.decode(rows.with_columns(text.alias("t")), shape, "t")
    return decoded.with_columns(values=pl.col("j").struct.field("k_text")).drop("t", "j", "bad_json", "data")


def _csv(frame: pl.DataFrame, ctx: Context) -> pl.DataFrame:
    header: list[str] | None = ctx.carry.get(_HEADER)
    raw = pl.col("raw").str.strip_prefix("\ufeff")
    is_header = raw.str.slice(0, 2000).str.contains(r'(?:^|[,"])TimeCreated(?:[,"]|$)')
    is_header &= raw.str.contains("MachineName|Message") & ~raw.str.contains("\n", literal=True)
    headers = frame.filter(is_header)
    if header is None and headers.height:
        header = ctx.carry[_HEADER] = csvrows.fields(str(headers["raw"][0]).removeprefix("\ufeff")) or []
    typed = raw.str.starts_with("#TYPE ")
    rows = csvrows.columns(frame.lazy(), header or ["Id"], _WANTED_CSV).collect()
    return rows.select(
        *frame.columns,
        pl.col("c.Id").alias("event_id"), pl.col("c.TimeCreated").alias("ts_raw"),
        pl.col("c.MachineName").alias("host"),
        pl.col("c.RecordId").alias("record_id"), pl.col("c.LogName").alias("channel"),
        pl.col("c.Message").alias("message"), pl.lit(None, pl.List(pl.String)).alias("values"),
        pl.when(is_header | typed).then(pl.lit("header"))
        .when("bad_csv").then(pl.lit("not as many fields as the header")).alias("trouble"),
    )  # fmt: skip


def _times(text: pl.Series, ctx: Context) -> pl.DataFrame:
    """ISO 8601, ``/Date(1658751973240)/``, and local times as Windows writes them for the United States (with AM or
    PM), with slashes elsewhere (day first), and with dots (day first)."""
    ticks = text.str.extract(r"^\\?/Date\((\d{1,16})(?:[+-]\d{4})?\)\\?/$")
    found = tabular.any_times(ticks.fill_null(text), ctx)
    rest = found["ts"].is_null() & text.is_not_null()
    if not rest.any():
        return found
    table = pl.DataFrame({"t": text.str.replace_all("[\u202f\u00a0]", " ")})
    slashed, dotted = (pl.col("t").str.extract_groups(p).struct for p in (_SLASHED, _DOTTED))
    us = slashed[6].is_not_null()
    hour = slashed[3].cast(pl.Int64)
    hour = (
        pl.when(us)
        .then(hour % 12 + pl.when(slashed[6].str.to_lowercase() == "p").then(12).otherwise(0))
        .otherwise(hour)
    )
    month, day = pl.when(us).then(slashed[0]).otherwise(slashed[1]), pl.when(us).then(slashed[1]).otherwise(slashed[0])
    seconds = pl.coalesce(slashed[5], dotted[5], pl.lit("0"))
    spelled = pl.format(
        "{}-{}-{} {}:{}:{}",
        pl.coalesce(slashed[2], dotted[2]), pl.coalesce(month, dotted[1]), pl.coalesce(day, dotted[0]),
        pl.coalesce(hour.cast(pl.String), dotted[3]), pl.coalesce(slashed[4], dotted[4]), seconds,
    )  # fmt: skip
    naive = table.select(spelled.str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False, time_unit="us").cast(pl.Int64))
    nothing = pl.Series([None], dtype=pl.Int64).new_from_index(0, len(text))
    late = tabular.placed(naive.to_series(), nothing, ctx)
    return pl.DataFrame([found[name].zip_with(~rest, late[name]) for name in tabular.TIMES])
