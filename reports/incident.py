"""The incident report: what a hunt found, for a manager, an analyst and a lawyer; as one HTML file, and as Markdown."""

import base64
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

import polars as pl

from queries.wording import heading
from reports.escape import code, fence, iso, md, plain

if TYPE_CHECKING:
    from jinja2 import Environment

_CELL = 300
_SEVERITIES = ("critical", "high", "medium", "low", "info")
_SERIOUS = ("critical", "high")
_WORST = 3
_MOST_SUPPRESSED = 200
_WHO = (
    ("Tenants", "tenant_ids"),
    ("Credentials", "credential_ids"),
    ("Principals", "principal_ids"),
    ("Applications", "app_ids"),
    ("Source networks", "source_networks"),
    ("Source addresses", "source_ips"),
    ("Mailboxes", "mailboxes"),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of the report: SVG text, with what it shows, and the name of its file beside the Markdown."""

    title: str
    caption: str
    svg: str
    file: str


@dataclass(frozen=True, slots=True)
class Material:
    """What a report is made from.

    Attributes:
        hunt: the hunt as in ``hunt -t json``; its findings also carry title, severity, entities and evidence.count.
        detections: by id: title, hypothesis, techniques, blind_spots, runbook, false_positives.
        rows: by finding id: evidence rows to show, and how many there are in all.
        evidence: register of evidence, columns as they are to be shown; `evidence_note` says what it adds up to.
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
    return _environment().get_template("incident.html.j2").render(r=_clean(_view(material)))


def markdown(material: Material) -> str:
    """The same as Markdown."""
    text = _environment().get_template("incident.md.j2").render(r=_clean(_view(material)))
    return re.sub(r"\n{3,}", "\n\n", text)


def _clean(value: Any, key: str = "") -> Any:
    """The same with every text in one line and no character that a viewer acts on; a statement keeps its lines."""
    if isinstance(value, str):
        return code(value) if key == "sql" else plain(value)
    if isinstance(value, Mapping):
        return {name: _clean(held, name) for name, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(held, key) for held in value]
    return value


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    def escapes(name: str | None) -> bool:
        return name is None or ".html" in name

    env = Environment(
        loader=PackageLoader("reports", "templates"),
        autoescape=escapes,  # noqa: S701 - by name: HTML
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    env.filters.update(when=_when, listed=_listed, md=md, fence=fence, code=code, plain=plain)
    return env


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
    window = m.hunt["window"]
    return {
        "title": m.title,
        "tool_version": m.tool_version,
        "made_at": iso(m.made_at),
        "hunt": m.hunt,
        "window_text": f"{_when(window['from'])} to {_when(window['to'])} UTC",
        "lead": _lead(m, cases),
        "worst": [
            {"rank": c["rank"], "severity": c["severity"], "text": c["heading"] + ".", "sign": c["summary"]}
            for c in _serious(cases)
        ],
        "concerned": _concerned(cases),
        "bounds": _bounds(m),
        "cards": _cards(cases),
        "cases": cases,
        "hidden": _hidden(m.hunt.get("beyond_budget", 0)),
        "steps": _steps(cases),
        "suppressed": _suppressed(m),
        "pictures": [
            {
                "title": p.title,
                "caption": p.caption,
                "file": p.file,
                "base64": base64.b64encode(p.svg.encode()).decode(),
            }
            for p in m.pictures
        ],
        "detections": _detections(m, cases),
        "evidence": _table(m.evidence),
        "evidence_note": m.evidence_note,
        "versions": ", ".join(f"{t} {v}" for t, v in sorted(m.hunt["archive_version"].items())),
    }


def _case(case: Mapping[str, Any], m: Material) -> dict[str, Any]:
    findings = []
    for finding in case["findings"]:
        shown = m.rows.get(finding["finding_id"])
        rows = None
        if shown is not None and shown[0].height:
            rows = _table(shown[0]) | {"shown": shown[0].height, "total": f"{shown[1]:,}"}
        meta = m.detections[finding["detection"]]
        findings.append({**finding, "meta": meta, "rows": rows, "judged": _judged(finding)})
    who = [(name, case["entities"][key]) for name, key in _WHO if case["entities"].get(key)]
    used = list(dict.fromkeys(f["detection"] for f in findings))
    kinds = [
        {"id": i, **m.detections[i], "title": next(f["title"] for f in findings if f["detection"] == i)} for i in used
    ]
    counts = Counter(f["triage"]["state"] for f in case["findings"] if "triage" in f)
    states = ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))
    if states:
        states = f"Findings judged: {states}, of {len(findings)}."
    return {**case, "heading": heading(case), "findings": findings, "who": who, "kinds": kinds, "states": states}


def _judged(finding: Mapping[str, Any]) -> str:
    """What people made of a finding, in a sentence; nothing where no one judged it."""
    held = finding.get("triage")
    if held is None:
        return ""
    of = f" of {held['duplicate_of']}" if held["duplicate_of"] else ""
    return f"Judged {held['state']}{of} on {_when(held['at'])} UTC by {held['who']}: {_cut(held['reason'], _CELL)}"


def _suppressed(m: Material) -> dict[str, Any]:
    """Findings that rules silence, each with its rules; rules without effect are told as well."""
    held = m.hunt.get("suppressed") or {"count": 0, "findings": [], "rules_without_effect": []}
    rows = [
        {
            **finding,
            "title": m.detections.get(finding["detection"], {}).get("title", ""),
            "rules": "; ".join(
                f"{r['rule_id']} ({r['owner']}, to {_when(r['valid_to'])}): {_cut(r['reason'], _CELL)}"
                for r in finding["rules"]
            ),
        }
        for finding in held["findings"][:_MOST_SUPPRESSED]
    ]
    hidden = held["count"] - len(rows)
    notes = [f"Rule {r['rule_id']} has no effect: {r['reason']}." for r in held["rules_without_effect"]]
    notes += [f"{hidden} more are not listed here; hunt -t json has all."] if hidden > 0 else []
    lead = f"{_count(held['count'], 'finding')} {'is' if held['count'] == 1 else 'are'} in no case"
    return {"lead": lead, "rows": rows, "notes": notes}


def _steps(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All findings in order of time."""
    found = [{**f, "rank": c["rank"], "where": f["entities"]["tenant_ids"]} for c in cases for f in c["findings"]]
    return sorted(found, key=lambda f: (f["first_seen"], f["finding_id"]))


def _detections(m: Material, cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    counts = Counter(f["detection"] for c in cases for f in c["findings"])
    known = [(i, m.detections[i]) for i in m.hunt["detections_run"]]
    return [{"id": i, "title": d["title"], "hypothesis": d["hypothesis"], "findings": counts[i]} for i, d in known]


def _hidden(beyond: int) -> str:
    if not beyond:
        return ""
    cases = "1 further case lies" if beyond == 1 else f"{beyond} further cases lie"
    return f"{cases} beyond the budget and are not shown here; the table findings holds them."


def _table(frame: pl.DataFrame) -> dict[str, Any]:
    """Headers and cells of a table: numbers to the right, times in one line, long text cut."""
    kinds = ["n" if t.is_numeric() else "t" if t.is_temporal() else "" for t in frame.dtypes]
    cells = [[{"kind": k, "text": _text(v)} for k, v in zip(kinds, row, strict=True)] for row in frame.iter_rows()]
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

    serious = sum(c["severity"] in _SERIOUS for c in cases)
    return [
        {"label": "cases", "value": str(len(cases))},
        {"label": "critical or high", "value": str(serious)},
        {"label": "tenants named", "value": str(distinct("tenant_ids"))},
        {"label": "credentials named", "value": str(distinct("credential_ids"))},
        {"label": "mailboxes named", "value": str(distinct("mailboxes"))},
    ]


def _serious(cases: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cases that a manager must know: the first critical and high ones, or else the first."""
    return ([c for c in cases if c["severity"] in _SERIOUS] or list(cases[:1]))[:_WORST]


def _lead(m: Material, cases: Sequence[Mapping[str, Any]]) -> str:
    """How much was found, and how bad it is."""
    window = m.hunt["window"]
    span = f"from {_when(window['from'])} to {_when(window['to'])} UTC"
    ran = _count(len(m.hunt["detections_run"]), "detection")
    if not cases:
        return f"{ran} ran over the logs {span} and found nothing. This is no all-clear: see what the logs cannot say."
    spread = ", ".join(f"{n} {s}" for s in _SEVERITIES if (n := sum(c["severity"] == s for c in cases)))
    return f"{ran} ran over the logs {span}. Result: {_count(len(cases), 'case')} ({spread})."


def _concerned(cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Who has to be told and what has to be revoked, if the serious cases hold."""
    held = [c for c in cases if c["severity"] in _SERIOUS]
    names = (
        ("Tenants to inform", "tenant_ids"),
        ("Credentials to revoke or clear", "credential_ids"),
        ("Mailboxes named", "mailboxes"),
    )
    found = [(name, sorted({v for c in held for v in c["entities"][key]})) for name, key in names]
    return [(name, values) for name, values in found if values]


def _bounds(m: Material) -> str:
    """How far the statement carries."""
    limits, skipped = len(m.hunt["limits"]), len(m.hunt["detections_skipped"])
    text = f"{_count(limits, 'limit')} of these logs {'is' if limits == 1 else 'are'} stated below"
    text += f", and {_count(skipped, 'detection')} could not run" if skipped else ""
    nobody = len({one["id"] for one in m.hunt["detections_without_subjects"]})
    text += f"; {_count(nobody, 'detection')} could judge nobody, or not everybody" if nobody else ""
    silenced = (m.hunt.get("suppressed") or {"count": 0})["count"]
    text += f"; {_count(silenced, 'finding')} suppressed as expected, see below" if silenced else ""
    carries = f"How far this carries: {text}. What is not in the logs can neither be confirmed nor ruled out."
    return f"{carries} A case is a lead to be checked, not a verdict."


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
