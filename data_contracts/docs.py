"""Data Docs: stored results of the gate as pages, drawn by Great Expectations' own renderers.

Great Expectations' pages fetch styles and scripts from six hosts and greet the reader with a newsletter. Here the frame
of the page is ours: no script, nothing fetched, and a content policy that forbids both, so that a page which shows what
an attacker wrote cannot run it or report that it was opened.
"""

import json
import re
from html import escape
from pathlib import Path
from typing import Any

from data_contracts.errors import RefusedError

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2330; background: #fff; margin: 0 auto; max-width: 76rem;
padding: 1.5rem }
a { color: #0b5cad } h1 { font-size: 1.5rem } h2, h3, h4, h5 { font-size: 1.05rem; margin: 1.2rem 0 .3rem }
table { border-collapse: collapse; width: 100%; margin: .4rem 0 1rem }
td, th { border: 1px solid #d5dae2; padding: .3rem .5rem; text-align: left; vertical-align: top;
overflow-wrap: anywhere }
th { background: #f2f4f7 } code, pre { white-space: pre-wrap }
.failed { color: #a4161a; font-weight: 600 } .passed { color: #1b6e3c } .badge { background: #eef1f5; padding: 0 .3rem }
.ge-expectation-editor-filters, .modal, button, .fa { display: none }
@media (prefers-color-scheme: dark) { body { color: #e4e8ee; background: #14181f } a { color: #7db7f5 }
th { background: #1f2530 } td, th { border-color: #38404d } .badge { background: #2a313d }
.failed { color: #ff8087 } .passed { color: #7fd6a0 } }
"""
_HEAD = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="UTF-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{{title}}</title>
<style>{_STYLE}</style></head><body>
"""
_FAILED_TEXT = {True: '<td class="passed">passed</td>', False: '<td class="failed">failed</td>'}


def build_docs(results_dir: str, site_dir: str) -> str:
    """Writes one page per stored result and an index of them.

    Args:
        results_dir: folder with the gate's `<label>-<table>.json` files.
        site_dir: folder for the pages; made if missing, pages of the same name are replaced.

    Returns:
        Path of index.html.

    Raises:
        RefusedError: a file is not a result of the gate.
    """
    site = Path(site_dir)
    site.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted(Path(results_dir).glob("*.json")):
        try:
            stored = json.loads(path.read_text("utf-8"))
            page = f"{re.sub(r'[^A-Za-z0-9_-]', '_', path.stem)}.html"
            (site / page).write_text(_page(stored, path.stem), encoding="utf-8")
            rows.append(_row(stored, page))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"{path}: is not a result of the gate: {type(error).__name__}") from error
    index = site / "index.html"
    head = _HEAD.replace("{title}", "Validation results")
    titles = "<tr><th>batch</th><th>table</th><th>result</th><th>expectations</th><th>failed</th><th>why</th></tr>"
    table = f"<table>{titles}{''.join(rows)}</table>" if rows else "<p>There are no results.</p>"
    index.write_text(f"{head}<h1>Validation results</h1>{table}</body></html>\n", encoding="utf-8")
    return str(index)


def _row(stored: dict[str, Any], page: str) -> str:
    meta, results = stored["meta"], stored["results"]
    reasons = [failure["reason"] for failure in meta["failures"]]
    cells = [meta["table"], len(results), sum(not item["success"] for item in results), "; ".join(reasons)]
    table, count, failed, why = (f"<td>{escape(str(cell))}</td>" for cell in cells)
    link = f'<td><a href="{page}">{escape(meta["label"] or "batch")}</a></td>'
    return f"<tr>{link}{table}{_FAILED_TEXT[bool(stored['success'])]}{count}{failed}{why}</tr>\n"


def _page(stored: dict[str, Any], title: str) -> str:
    """One result, drawn by Great Expectations inside our frame, with the offending rows below."""
    from great_expectations.core import ExpectationSuiteValidationResult
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView
    from jinja2 import ChoiceLoader, DictLoader

    import data_contracts.suite  # noqa: F401 - the renderer looks expectations up by their names

    failures = stored["meta"]["failures"]
    shown = _inert({**stored, "meta": {k: v for k, v in stored["meta"].items() if k != "failures"}})
    results = [_revived(item) for item in shown["results"]]
    fields = ("success", "statistics", "meta", "suite_name", "suite_parameters")
    result = ExpectationSuiteValidationResult(results=results, **{name: shown.get(name) for name in fields})
    document = ValidationResultsPageRenderer().render(result)
    view = DefaultJinjaPageView()
    body = "{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}"
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": body}), view.env.loader])
    drawn = re.sub(r"<script\b.*?</script>", "", str(view.render(document)), flags=re.DOTALL | re.IGNORECASE)
    head = _HEAD.replace("{title}", escape(title))
    home = '<p><a href="index.html">all results</a></p>'
    return f"{head}{home}{drawn}{''.join(_samples(failure) for failure in failures)}</body></html>\n"


def _samples(failure: dict[str, Any]) -> str:
    rows = failure["sample_rows"]
    title = f"<h2>{escape(failure['reason'])}</h2>"
    if failure["error"]:
        return f"{title}<p>{escape(failure['error'])}</p>"
    if not rows:
        return title
    lines = ["".join(f"<td>{escape(str('' if v is None else v))}</td>" for v in row.values()) for row in rows]
    names = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    return f"{title}<table><tr>{names}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _revived(item: dict[str, Any]) -> Any:
    from great_expectations.core import ExpectationValidationResult
    from great_expectations.expectations.expectation_configuration import ExpectationConfiguration

    known = ("type", "kwargs", "meta", "description")
    configuration = {key: value for key, value in item["expectation_config"].items() if key in known}
    # The renderer takes a fixed set of arguments for each kind; the batch's id is not one that a reader needs.
    configuration["kwargs"] = {k: v for k, v in configuration["kwargs"].items() if k != "batch_id"}
    return ExpectationValidationResult(
        success=item["success"],
        expectation_config=ExpectationConfiguration(**configuration),
        result=item["result"],
        meta=item["meta"],
        exception_info={"raised_exception": False, "exception_message": None, "exception_traceback": None},
    )


def _inert(value: Any) -> Any:
    """Texts without angle brackets: Great Expectations escapes some places and not others, and twice is unreadable."""
    if isinstance(value, dict):
        return {key: _inert(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_inert(item) for item in value]
    return value.replace("<", "\u2039").replace(">", "\u203a") if isinstance(value, str) else value
