"""Pictures for reports, as static SVG text: what happened when, at which tenant, and whether the journal balances.

Drawn with Altair and vl-convert: no browser, no network, no script in the result. Text comes from logs: it is drawn as
data, never as an expression, cut at 40 characters and cleaned of control characters. Colours keep apart for
colour-blind readers and in greyscale. All times are UTC.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import polars as pl

_LEDGER = "Journal balance: messages delivered and retrieved"
WIDTH = 1000  # px, of the whole picture
LABEL_LENGTH = 40
MAX_TENANTS = 25
MAX_LANES = 40
MAX_DOTS = 100  # per lane

SEVERITIES = ("info", "low", "medium", "high", "critical")
_SEVERITY_COLOURS = ("#9a9a9a", "#56a5d8", "#e8a317", "#d1495b", "#6a0f3a")
_INK, _SOFT, _GRID = "#1a1a1a", "#5c5c5c", "#e3e3e3"
_BLUES = ["#e6eff8", "#9cc3e0", "#2b6ca3", "#0b3a66"]
_BLUE, _ORANGE = "#2b6ca3", "#d95f02"
_FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
_LABELS = 300  # px left of the plot, for labels of 40 characters
_PLOT = WIDTH - _LABELS - 30
_MAX_COLUMNS = 92
_DAY = 86_400_000  # ms
_ID = re.compile(r'(\bid="|url\(#|href="#)([\w-]+)')


def timeline(cases: Iterable[Mapping[str, Any]], *, event_times: Mapping[str, Sequence[Any]] | None = None) -> str:
    """Cases and their findings over time: one lane each, coloured by severity, with a dot per evidence event.

    Args:
        cases: cases of a hunt (with `findings`), or findings by themselves. Read are: severity, first_seen, last_seen;
            rank, case_id and summary of a case; title or detection, and finding_id, of a finding. A finding without
            severity takes that of its case. Times are aware datetimes or ISO 8601 text.
        event_times: times of the evidence events by finding_id; where missing, first and last event are shown.

    Returns:
        SVG; at most 40 lanes, and a last line that says how many were left out.
    """
    lanes = _lanes(list(cases), event_times or {})
    if not lanes:
        return _nothing("Timeline of cases and findings", "No findings in this window.")
    shown = lanes[:MAX_LANES]
    times = [time for lane in shown for time in (lane["start"], lane["end"], *lane["dots"])]
    return _draw(_timeline_chart(shown, len(lanes) - len(shown), _span(times)), "timeline")


def tenant_time(rows: pl.DataFrame) -> str:
    """Heat map of activity by tenant and day; cells with suspicious activity carry a mark.

    Args:
        rows: date, tenant_id, n (events), n_suspicious (of these). Rows of the same cell are added up; a tenant of null
            is shown as "(no tenant)".

    Returns:
        SVG; the 25 tenants with most suspicious activity, the others folded into one row; beyond 92 days a column
        stands for a week, beyond 92 weeks for four.
    """
    title = "Activity by tenant"
    if rows.is_empty():
        return _nothing(title, "No events in this window.")
    step = _step(*_days(rows))
    return _draw(_heat_chart(_cells(rows, step), step, title), "tenants")


def ledger(rows: pl.DataFrame) -> str:
    """Journal balance by day: messages delivered into the journal mailboxes, and messages retrieved from them.

    Args:
        rows: date, delivered, retrieved (messages); rows of the same day are added up.

    Returns:
        SVG; above the two series, below retrieved minus delivered.
    """
    if rows.is_empty():
        return _nothing(_LEDGER, "No journal mailbox in this window.")
    days = rows.group_by("date").agg(pl.col("delivered", "retrieved").sum()).sort("date")
    values = [
        {"t": _day(day), "t2": _day(day) + _DAY, "mid": _day(day) + _DAY // 2, "zero": 0,
         "delivered": delivered, "retrieved": retrieved, "balance": retrieved - delivered}
        for day, delivered, retrieved in days.select("date", "delivered", "retrieved").iter_rows()
    ]  # fmt: skip
    return _draw(_ledger_chart(values), "ledger")


# --- what is drawn ---


def _lanes(cases: list[Mapping[str, Any]], event_times: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    lanes = []
    for case in cases:
        severity = _severity(case.get("severity"))
        findings = case.get("findings")
        if findings is None:
            lanes.append(_lane(case, severity, event_times, indent=False))
            continue
        name = case.get("summary") or case.get("case_id") or "case"
        rank = f"#{case['rank']} " if case.get("rank") is not None else ""
        lanes.append(_bar(case, severity) | {"label": label(f"{rank}{name}"), "kind": "case", "dots": []})
        by_time = sorted(findings, key=lambda f: (_time(f["first_seen"]), str(f.get("finding_id", ""))))
        lanes.extend(_lane(f, _severity(f.get("severity"), severity), event_times, indent=True) for f in by_time)
    return lanes


def _lane(
    finding: Mapping[str, Any], severity: str, event_times: Mapping[str, Sequence[Any]], *, indent: bool
) -> dict[str, Any]:
    bar = _bar(finding, severity)
    given = event_times.get(str(finding.get("finding_id")), ())
    dots = sorted({_time(time) for time in given}) or sorted({bar["start"], bar["end"]})
    step = max(1, -(-len(dots) // MAX_DOTS))
    text = finding.get("title") or finding.get("detection") or finding.get("finding_id") or "finding"
    return bar | {"label": label(text), "kind": "finding" if indent else "single", "dots": dots[::step]}


def _bar(row: Mapping[str, Any], severity: str) -> dict[str, Any]:
    start, end = _time(row["first_seen"]), _time(row["last_seen"])
    return {"start": min(start, end), "end": max(start, end), "severity": severity}


def _severity(given: Any, otherwise: str = "info") -> str:
    return given if given in SEVERITIES else otherwise


def _step(first: date, last: date) -> int:
    """Days per column."""
    days = (last - first).days + 1
    return next((step for step in (1, 7, 28) if days <= step * _MAX_COLUMNS), -(-days // _MAX_COLUMNS))


def _cells(rows: pl.DataFrame, step: int) -> list[dict[str, Any]]:
    """One per tenant and column; the tenants in the order in which they are drawn."""
    named = rows.with_columns(pl.col("tenant_id").fill_null("(no tenant)"))
    order = (
        named.group_by("tenant_id")
        .agg(pl.col("n", "n_suspicious").sum())
        .sort("n_suspicious", "n", "tenant_id", descending=[True, True, False])["tenant_id"]
        .to_list()
    )
    place = {tenant: min(at, MAX_TENANTS) for at, tenant in enumerate(order)}
    names = [label(tenant) for tenant in order[:MAX_TENANTS]] + [f"{len(order) - MAX_TENANTS} others"]
    first, _ = _days(rows)
    column = (pl.col("date") - pl.lit(first)).dt.total_days() // step
    cells = (
        named.with_columns(
            pl.col("tenant_id").replace_strict(place, return_dtype=pl.Int64).alias("lane"), column.alias("column")
        )
        .group_by("lane", "column")
        .agg(pl.col("n", "n_suspicious").sum())
        .sort("lane", "column")
    )
    start, wide = _day(first), step * _DAY
    return [
        {"lane": lane, "label": names[lane], "t": start + at * wide, "t2": start + (at + 1) * wide,
         "mid": start + at * wide + wide // 2, "n": n, "suspicious": suspicious}
        for lane, at, n, suspicious in cells.iter_rows()
    ]  # fmt: skip


# --- how it is drawn ---


def _timeline_chart(lanes: list[dict[str, Any]], left_out: int, span: tuple[int, int]) -> Any:
    import altair as alt

    least = (span[1] - span[0]) // 100

    def short(lane: dict[str, Any]) -> int:
        """What a bar lacks on either side to be seen."""
        return max(0, least - int(lane["end"] - lane["start"])) // 2

    bars = [
        {key: lane[key] for key in ("label", "kind", "severity")}
        | {"lane": at, "start": lane["start"] - short(lane), "end": lane["end"] + short(lane)}
        for at, lane in enumerate(lanes)
    ]
    dots = [{"lane": at, "t": time} for at, lane in enumerate(lanes) for time in lane["dots"]]
    used = [severity for severity in SEVERITIES if any(lane["severity"] == severity for lane in lanes)]
    y = alt.Y("lane:O", axis=None, scale=alt.Scale(domain=list(range(len(lanes))), paddingInner=0.1))
    scale = alt.Scale(type="utc", domain=list(span), nice=False)
    x = alt.X("start:T", title=f"time (UTC), {_range(*span)}", scale=scale, axis=_axis(*span))
    colours = [_SEVERITY_COLOURS[SEVERITIES.index(severity)] for severity in used]
    colour = alt.Color(
        "severity:N", title="severity", sort=used, scale=alt.Scale(domain=used, range=colours), legend=_swatches()
    )
    base = alt.Chart(alt.InlineData(bars)).encode(y=y)
    stripes = base.transform_filter("datum.kind == 'case'").mark_rect(color="#f2f2f2", x=-_LABELS, x2=_PLOT)
    case = base.transform_filter("datum.kind == 'case'").mark_bar(height=7).encode(x=x, x2="end:T", color=colour)
    rest = base.transform_filter("datum.kind != 'case'").mark_bar(height=14, opacity=0.75, cornerRadius=2)
    events = alt.Chart(alt.InlineData(dots)).mark_circle(
        size=20, color=_INK, opacity=0.9, stroke="white", strokeWidth=0.5
    )
    names = [
        base.transform_filter(f"datum.kind {test} 'case'")
        .mark_text(align="left", x=-_LABELS + inset, fontSize=12, fontWeight=weight, color=_INK)
        .encode(text="label:N")
        for test, inset, weight in (("==", 4, "bold"), ("!=", 16, "normal"))
    ]
    more = f"{left_out} more lanes are not drawn."
    note = "Bars run from the first to the last event of a finding; dots are evidence events."
    return alt.layer(
        stripes, case, rest.encode(x=x, x2="end:T", color=colour), events.encode(x=alt.X("t:T"), y=y), *names
    ).properties(
        width=_PLOT,
        height=24 * len(lanes),
        title=_title("Timeline of cases and findings", [note, *([more] if left_out else [])]),
    )


def _heat_chart(cells: list[dict[str, Any]], step: int, title: str) -> Any:
    import altair as alt

    lanes = sorted({(cell["lane"], cell["label"]) for cell in cells})
    first, last = min(cell["t"] for cell in cells), max(cell["t2"] for cell in cells)
    plot = WIDTH - 40 - 7 * max(len(text) for _, text in lanes)
    width = plot * (cells[0]["t2"] - cells[0]["t"]) / (last - first)
    unit = "day" if step == 1 else f"{step}-day period"
    y = alt.Y("lane:O", axis=None, scale=alt.Scale(domain=[lane for lane, _ in lanes], paddingInner=0.08))
    scale = alt.Scale(type="utc", domain=[first, last], nice=False)
    x = alt.X("t:T", title=f"day (UTC), {_range(first, last - 1)}", scale=scale, axis=_axis(first, last, days=True))
    few, many = min(cell["n"] for cell in cells), max(cell["n"] for cell in cells)
    blues = alt.Scale(type="symlog", domain=[few, max(many, few + 1)], range=_BLUES)
    legend = alt.Legend(labelExpr="format(datum.value, ',d')", gradientLength=240, values=_decades(few, many))
    colour = alt.Color("n:Q", title=f"events per {unit}", scale=blues, legend=legend)
    heat = alt.Chart(alt.InlineData(cells)).mark_rect(stroke="white", strokeWidth=0.5 if width > 4 else 0)
    marked = [cell | {"mark": "suspicious events"} for cell in cells if cell["suspicious"] > 0]
    names = (
        alt.Chart(alt.InlineData([{"lane": lane, "label": text} for lane, text in lanes]))
        .mark_text(align="right", x=-8, fontSize=12, color=_INK)
        .encode(y=y, text="label:N")
    )
    layers = [heat.encode(x=x, x2="t2:T", y=y, color=colour), *([_marks(marked, y, width)] if marked else []), names]
    note = "Tenants with most suspicious events first. An empty cell means that there is no event."
    return (
        alt.layer(*layers)
        .resolve_scale(color="independent")
        .properties(width=plot, height=22 * len(lanes), title=_title(f"{title} and {unit}", [note]))
    )


def _marks(cells: list[dict[str, Any]], y: Any, width: float) -> Any:
    import altair as alt

    size = min(110.0, max(36.0, (min(width, 18) * 0.72) ** 2))
    points = alt.Chart(alt.InlineData(cells)).mark_point(
        shape="diamond", filled=True, size=size, stroke="white", opacity=1
    )
    scale = alt.Scale(domain=["suspicious events"], range=[_ORANGE])
    colour = alt.Color("mark:N", title="cell with", scale=scale, legend=alt.Legend(symbolSize=110))
    return points.encode(x=alt.X("mid:T"), y=y, color=colour)


def _ledger_chart(values: list[dict[str, Any]]) -> Any:
    import altair as alt

    plot = WIDTH - 90
    first, last = values[0]["t"], values[-1]["t2"]
    scale = alt.Scale(type="utc", domain=[first, last], nice=False)
    series = alt.Scale(domain=["delivered", "retrieved"], range=["#a9c6de", _ORANGE])
    colour = alt.Color("series:N", title=None, scale=series, legend=_swatches(orient="top"))
    base = alt.Chart(alt.InlineData(values))
    edge = 1 if len(values) <= _MAX_COLUMNS else 0
    bare = alt.X("t:T", scale=scale, axis=_axis(first, last, days=True, labels=False, title=None))
    into = base.transform_calculate(series="'delivered'").mark_rect(stroke="white", strokeWidth=edge)
    out = base.transform_calculate(series="'retrieved'").mark_line(
        strokeWidth=2, point={"size": 34 if len(values) <= _MAX_COLUMNS else 8, "filled": True}, interpolate="linear"
    )
    counts = {"format": ",d", "tickMinStep": 1, "minExtent": 48}
    messages = alt.Y(
        "delivered:Q", title="messages per day", axis=alt.Axis(tickCount=6, **counts), scale=alt.Scale(zero=True)
    )
    upper = alt.layer(
        into.encode(x=bare, x2="t2:T", y=messages, y2="zero:Q", color=colour),
        out.encode(x=alt.X("mid:T", scale=scale), y=alt.Y("retrieved:Q"), color=colour),
    ).properties(width=plot, height=220)
    over = alt.condition("datum.balance > 0", alt.value(_ORANGE), alt.value(_BLUE))
    lower = (
        base.mark_rect(stroke="white", strokeWidth=edge)
        .encode(
            x=bare.title(f"day (UTC), {_range(first, last - 1)}").axis(_axis(first, last, days=True)),
            x2="t2:T",
            y=alt.Y("balance:Q", title=["retrieved −", "delivered"], axis=alt.Axis(tickCount=4, **counts)),
            y2="zero:Q",
            color=over,
        )
        .properties(width=plot, height=110)
    )
    zero = alt.Chart(alt.InlineData([{"zero": 0}])).mark_rule(color=_INK, strokeWidth=1).encode(y="zero:Q")
    note = "A journaled message leaves once: above zero more was read than came in, below zero mail stayed or vanished."
    return alt.vconcat(upper, lower + zero, spacing=14).properties(title=_title(_LEDGER, [note]))


def _decades(few: int, many: int) -> list[int]:
    """Ticks for a logarithmic legend: both ends, and powers of ten that keep clear of them."""
    between = [10**power for power in range(len(str(many))) if 3 * max(few, 1) < 10**power < many / 3]
    return sorted({few, *between[:: max(1, -(-len(between) // 3))], many})


def _axis(first: int, last: int, *, days: bool = False, **options: Any) -> Any:
    """Time axis with a 24-hour clock; with `days`, no tick between midnights."""
    import altair as alt

    span = (last - first) / _DAY
    if span > 300:
        ticks = {"format": "%b %Y", "tickCount": 12}
    elif span > 14 or (span > 3 and not days):
        ticks = {"format": "%d %b", "tickCount": {"interval": "day", "step": max(1, round(span / 12))}}
    elif days:
        ticks = {"format": "%d %b", "tickCount": {"interval": "day", "step": 1}}
    else:
        ticks = {"format": "%d %b %H:%M", "tickCount": 7}
    return alt.Axis(**({"grid": True, "labelOverlap": True, "labelFlush": True} | ticks | options))


def _swatches(**options: Any) -> Any:
    import altair as alt

    return alt.Legend(symbolType="square", symbolOpacity=1, symbolStrokeWidth=0, **options)


def _range(first: int, last: int) -> str:
    """The days that an axis covers, since its ticks need not name the year."""
    days = [datetime.fromtimestamp(time / 1000, UTC).date().isoformat() for time in (first, last)]
    return days[0] if days[0] == days[1] else f"{days[0]} to {days[1]}"


def _title(text: str, notes: list[str]) -> Any:
    import altair as alt

    return alt.TitleParams(text=text, subtitle=notes, anchor="start", frame="bounds", offset=14)


def _nothing(title: str, text: str) -> str:
    import altair as alt

    chart = alt.Chart(alt.InlineData([{"text": text}])).mark_text(align="left", x=0, fontSize=14, color=_SOFT)
    return _draw(chart.encode(text="text:N").properties(width=_PLOT, height=40, title=_title(title, [])), "empty")


def _draw(chart: Any, name: str) -> str:
    """The chart as SVG whose ids begin with `name`, so that several stand in one page."""
    import vl_convert

    config = {
        "background": "white", "font": _FONT, "aria": False, "padding": 10, "view": {"stroke": None},
        "title": {"fontSize": 17, "color": _INK, "subtitleFontSize": 12, "subtitleColor": _SOFT, "subtitlePadding": 5},
        "axis": {"labelFontSize": 12, "titleFontSize": 12, "labelColor": _INK, "titleColor": _INK, "gridColor": _GRID,
                 "domainColor": "#888888", "tickColor": "#888888", "titleFontWeight": "normal", "titlePadding": 8},
        "legend": {"labelFontSize": 12, "titleFontSize": 12, "labelColor": _INK, "titleColor": _INK, "orient": "bottom",
                   "titleFontWeight": "normal", "direction": "horizontal", "offset": 12},
        "bar": {"continuousBandSize": 6},
    }  # fmt: skip
    svg = vl_convert.vegalite_to_svg(chart.configure(**config).to_dict(validate=False), allowed_base_urls=[])
    # Vega numbers ids on and on: ours begin anew in each picture, so that the same input gives the same bytes.
    ours: dict[str, str] = {}

    def renamed(match: re.Match[str]) -> str:
        return match[1] + ours.setdefault(match[2], f"{name}-{len(ours)}")

    return re.sub("<[^<>]*>", lambda tag: _ID.sub(renamed, tag[0]), svg)


# --- text and time ---


def label(text: object) -> str:
    """Text from a log as one short line: no control or direction-changing characters, at most 40 characters."""
    visible = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in str(text)[: 4 * LABEL_LENGTH])
    line = " ".join(visible.split())
    return line if len(line) <= LABEL_LENGTH else line[: LABEL_LENGTH - 1].rstrip() + "…"


def _time(value: Any) -> int:
    """Milliseconds since 1970 of an aware datetime or ISO 8601 text; text without a zone is UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _day(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)


def _days(rows: pl.DataFrame) -> tuple[date, date]:
    days = rows["date"].drop_nulls().to_list()
    return min(days), max(days)


def _span(times: Sequence[int]) -> tuple[int, int]:
    """The time that the axis covers: a little more than the events, an hour at least."""
    pad = max((max(times) - min(times)) // 40, 1_800_000)
    return min(times) - pad, max(times) + pad
