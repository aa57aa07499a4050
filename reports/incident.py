"""The incident report: what a hunt found, for a manager, an analyst and a lawyer; one file of HTML, the same as Markdown."""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import polars as pl

from reports.escape import fence, iso, md, plain

if TYPE_CHECKING:
    from jinja2 import Environment

_CELL = 300
_SEVERITIES = ("critical", "high", "medium", "low", "info")
_WHO = (
    ("Tenants", "tenant_ids"), ("Credentials", "credential_ids"), ("Principals", "principal_ids"), ("Applications", "app_ids"),
    ("Source networks", "source_networks"), ("Source addresses", "source_ips"), ("Mailboxes", "mailboxes"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the report: SVG text, with what it shows."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made from.

    Attributes:
        hunt: the hunt as in ``hunt -t json``.
        detections: by id: title, hypothesis, techniques, blind_spots, runbook, false_positives.
        rows: by finding id: evidence rows to show, and how many there are in all.
        evidence: register of evidence, columns as they are to be shown.
        pictures: in order.
        tool_version, title, made_at: stated in the report.
    """

    hunt: Mapping[str, Any]
    detections: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, tuple[pl.DataFrame, int]]
    evidence: pl.DataFrame
    evidence_note: str
    pictures: Sequence[Picture]
    tool_version: str
    title: str
    made_at: datetime


def html(material: Material) -> str:
    """One self-contained HTML file; nothing in it comes from elsewhere, everything a log said is escaped."""
    return _environment().get_template("incident.html.j2").render(r=_view(material))


def markdown(material: Material) -> str:
    """The same as Markdown."""
    text = _environment().get_template("incident.md.j2").render(r=_view(material))
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def escapes(name: str | None) -> bool:
        return name is None or ".html" in name

    env = Environment(
        loader=PackageLoader("reports", "templates"), autoescape=escapes, undefined=StrictUndefined, trim_blocks=False
    )
    env.filters.update(when=_when, listed=_listed, md=_Markdown.escape, fence=fence)
    return env


class _Markdown:
    @staticmethod
    def escape(value: object) -> str:
        return md(value)


def _when(text: str) -> str:
    """An ISO time as people read it, to the minute."""
    return text[:16].replace("T", " ")


def _listed(values: Sequence[str], most: int) -> str:
    shown = [_cut(plain(v), 80) for v in values[:most]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "") if shown else "none"


def _cut(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _view(m: Material) -> dict[str, Any]:
    """What the templates show."""
    cases = [_case(c, m) for c in m.hunt["cases"]]
    counts: dict[str, int] = {}
    for case in cases:
        for finding in case["findings"]:
            counts[finding["detection"]] = counts.get(finding["detection"], 0) + 1
    window = m.hunt["window"]
    return {
        "title": m.title,
        "tool_version": m.tool_version,
        "made_at": iso(m.made_at),
        "hunt": m.hunt,
        "window_text": f"{_when(window['from'])} to {_when(window['to'])} UTC",
        "summary": _summary(m, cases),
        "cards": _cards(cases),
        "cases": cases,
        "hidden": m.hunt.get("cut", ""),
        "pictures": [
            {"title": p.title, "caption": p.caption, "base64": base64.b64encode(p.svg.encode()).decode()} for p in m.pictures
        ],
        "detections": [
            {"id": i, "title": m.detections[i]["title"], "hypothesis": m.detections[i]["hypothesis"], "findings": counts.get(i, 0)}
            for i in m.hunt["detections_run"]
        ],
        "evidence": _table(m.evidence),
        "evidence_note": m.evidence_note,
        "versions": ", ".join(f"{t} {v}" for t, v in sorted(m.hunt["archive_version"].items())),
    }  # fmt: skip


def _case(case: Mapping[str, Any], m: Material) -> dict[str, Any]:
    findings = []
    for finding in case["findings"]:
        shown = m.rows.get(finding["finding_id"])
        rows = None
        if shown is not None and shown[0].height:
            rows = _table(shown[0]) | {"shown": shown[0].height, "total": f"{shown[1]:,}"}
        findings.append({**finding, "meta": m.detections[finding["detection"]], "rows": rows})
    titles = list(dict.fromkeys(f["meta"]["title"] for f in findings))
    heading = titles[0] if len(titles) == 1 else f"{titles[0]} (and {len(titles) - 1} more kinds of finding)"
    who = [(name, case["entities"][key]) for name, key in _WHO if case["entities"].get(key)]
    return {**case, "heading": heading, "findings": findings, "who": who}


def _table(frame: pl.DataFrame) -> dict[str, Any]:
    """Headers and cells of a table: numbers to the right, times in one line, long text cut."""
    kinds = ["n" if t.is_numeric() else "t" if t.is_temporal() else "" for t in frame.dtypes]
    cells = [
        [{"kind": k, "text": _text(v)} for k, v in zip(kinds, row, strict=True)] for row in frame.iter_rows()
    ]
    return {"columns": frame.columns, "cells": cells}


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return _cut(", ".join(plain(v) for v in value), _CELL)
    return _cut(plain(value), _CELL)


def _cards(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    def distinct(key: str) -> int:
        return len({v for c in cases for v in c["entities"].get(key, ())})

    serious = sum(c["severity"] in ("critical", "high") for c in cases)
    return [
        {"label": "cases", "value": str(len(cases))},
        {"label": "critical or high", "value": str(serious)},
        {"label": "tenants named", "value": str(distinct("tenant_ids"))},
        {"label": "credentials named", "value": str(distinct("credential_ids"))},
        {"label": "mailboxes named", "value": str(distinct("mailboxes"))},
    ]


def _summary(m: Material, cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a manager must know: how much, how bad, the worst in words, and how far the statement carries."""
    window = m.hunt["window"]
    span = f"between {_when(window['from'])} and {_when(window['to'])} UTC"
    ran = len(m.hunt["detections_run"])
    if not cases:
        return [f"{ran} detections ran over the logs {span} and found nothing. This is no all-clear; the limits are stated below."]
    by_severity = [(s, sum(c["severity"] == s for c in cases)) for s in _SEVERITIES]
    spread = ", ".join(f"{n} {s}" for s, n in by_severity if n)
    noun = "case" if len(cases) == 1 else "cases"
    text = [f"{ran} detections ran over the logs {span}. They point to {len(cases)} {noun}: {spread}."]
    serious = [c for c in cases if c["severity"] in ("critical", "high")] or list(cases[:1])
    text += [f"Case {c['rank']} ({c['severity']}): {c['summary']}" for c in serious[:3]]
    limits, skipped = len(m.hunt["limits"]), len(m.hunt["detections_skipped"])
    bounds = f"{limits} limits of the logs are stated below" + (f", and {skipped} detections could not run" if skipped else "")
    return [*text, f"How far this carries: {bounds}; what is not in the logs can neither be confirmed nor ruled out."]
