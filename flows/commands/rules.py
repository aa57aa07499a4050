"""Verbs about the detections: rules list, show, test, backtest and attack."""
# ruff: noqa: PLR0917 - the signature of a verb is its command line

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import rules_import
from flows.commands.options import (
    DEFAULT_ARCHIVE,
    AnyArchiveOption,
    ArchiveOption,
    FormatOption,
    any_archive,
    open_archive,
)
from flows.output import OutputFormat

if TYPE_CHECKING:
    import polars as pl

rules_app = typer.Typer(help="The detections.", no_args_is_help=True, rich_markup_mode=None)

_MOST_STEPS = 60  # on a terminal
_SHORT = {
    "findings_a_day": "a day",
    "windows": "windows run",
    "source_networks": "networks",
    "tenant_ids": "tenants",
    "credential_ids": "credentials",
}


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    rules_import.register(rules_app)
    app.add_typer(rules_app, name="rules")


@rules_app.command("list", epilog="Example: gatehound rules list -a case17")
def rules_list(archive: AnyArchiveOption = None, to: FormatOption = OutputFormat.table) -> None:
    """All detections, with the rules that were imported into the archive."""
    import polars as pl

    from flows.output import emit_frame
    from flows.pipeline.rule_files import known

    rows = [
        {"id": d.id, "title": d.title, "family": d.family, "severity": d.severity, "techniques": " ".join(d.techniques)}
        for d in known(any_archive(archive))
    ]
    emit_frame(pl.DataFrame(rows), to, prose=["title"])


@rules_app.command("show", epilog="Example: gatehound rules show T01")
def rules_show(
    detection: Annotated[str, typer.Argument(help="Id of a detection.")],
    archive: AnyArchiveOption = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """One detection: hypothesis, parameters, blind spots, runbook, source."""
    from flows.commands.render import show_rule
    from flows.pipeline.rule_files import find_in

    show_rule(find_in(any_archive(archive), detection), to)


@rules_app.command("test", epilog="Example: gatehound rules test T01 M01")
def rules_test(
    detections: Annotated[list[str] | None, typer.Argument(help="Ids; default: all.")] = None,
    archive: AnyArchiveOption = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Run the detections on their own cases, and imported rules on empty tables; exit with 1 when one fails."""
    import polars as pl

    from flows.output import emit_frame, say, working
    from flows.pipeline.case_files import run_cases
    from flows.pipeline.rule_files import find_in, known

    where = any_archive(archive)
    chosen = [find_in(where, name) for name in dict.fromkeys(detections)] if detections else known(where)
    with working("running the cases"):
        rows = run_cases(chosen)
    emit_frame(pl.DataFrame(rows), to, prose=["case", "why"])
    failed = sum(row["result"] == "failed" for row in rows)
    say(f"{len(rows)} cases of {len(chosen)} detections, {failed or 'none'} failed.", "red" if failed else None)
    if failed:
        raise typer.Exit(1)


@rules_app.command("backtest", epilog="Example: gatehound rules backtest T01 -a case17 --sweep min_surprise=1,1.5,2,3")
def rules_backtest(
    detection: Annotated[str, typer.Argument(help="Id of a detection.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    begin: Annotated[str | None, typer.Option("--from", help="Begin, UTC; default: the first day with rows.")] = None,
    end: Annotated[
        str | None, typer.Option("--to", "--until", help="End, UTC; default: the last day with rows.")
    ] = None,
    window: Annotated[int, typer.Option(help="Days of a window.", min=1, max=3660)] = 30,
    step: Annotated[int, typer.Option(help="Days from one window to the next.", min=1, max=3660)] = 30,
    given: Annotated[list[str] | None, typer.Option("--set", help="A parameter: name=value; may be repeated.")] = None,
    sweep: Annotated[str | None, typer.Option(help="A parameter and values to try: name=v1,v2,...")] = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """How often a detection would have fired over an archive, and on what. Writes nothing."""
    from flows.output import say, working
    from flows.pipeline.backtesting import backtest
    from flows.pipeline.hunting import moment
    from flows.pipeline.rule_files import find_in

    opened = open_archive(archive)
    with working("looking back"):
        answer = backtest(
            opened,
            find_in(opened, detection),
            begin=moment(begin),
            end=moment(end, end=True),
            length=window,
            step=step,
            given=given or (),
            sweep=sweep,
        )
    _show_backtest(answer, to)
    if not all(value["ran"] for value in answer["values"]):
        say("It ran over no window: this says nothing about the logs.", "yellow")
    if answer["behind"]:
        say(f"Behind the events: {', '.join(answer['behind'])}. Hint: gatehound hunt brings them up to date.", "yellow")


def _show_backtest(answer: dict[str, Any], to: OutputFormat) -> None:
    import polars as pl

    from flows.output import emit, emit_frame, say

    if to is OutputFormat.json:
        emit(answer)
        return
    steps = pl.DataFrame(
        [{"set": _word(v["set"]), **step} for v in answer["values"] for step in v["steps"]],
        schema_overrides={"set": pl.String},
    )
    if answer["swept"] is None:
        steps = steps.drop("set")
    if to not in (OutputFormat.table, OutputFormat.md):
        emit_frame(steps, to)
        return
    labels = _SHORT | {"set": answer["swept"] or "set"}
    span = f"{answer['from'][:10]} to {answer['to'][:10]}, {answer['window_days']} days every {answer['step_days']}"
    emit_frame(_values(answer), to, title=f"{answer['detection']} over {span}", prose=list(_SHORT), labels=labels)
    emit_frame(steps.head(_MOST_STEPS), to, title="Windows", prose=["skipped"], labels=labels)
    if steps.height > _MOST_STEPS:
        say(f"The first {_MOST_STEPS} of {steps.height} windows; -t csv, jsonl or json give all.", "dim")
    if answer["examples"]:
        emit_frame(_examples(answer), to, title="Findings", prose=["explanation"], labels=labels)


def _values(answer: dict[str, Any]) -> "pl.DataFrame":
    import polars as pl

    rows = [
        {
            "set": _word(told["set"]),
            **{key: told[key] for key in ("findings", "cases", "findings_a_day", "suppressed")},
            "windows": f"{told['ran']} of {len(told['steps'])}",
            "severities": ", ".join(f"{n} {level}" for level, n in told["severities"].items()),
            **{kind: _most(told["entities"][kind]) for kind in _SHORT if kind in told["entities"]},
        }
        for told in answer["values"]
    ]
    frame = pl.DataFrame(rows, schema_overrides={"set": pl.String, "findings_a_day": pl.Float64})
    return frame if answer["swept"] is not None else frame.drop("set")


def _most(counted: dict[str, Any]) -> str:
    """Such as: 8: birch 4, damson 4, fig 3."""
    if not counted["different"]:
        return ""
    return f"{counted['different']}: " + ", ".join(f"{item['value']} {item['findings']}" for item in counted["most"])


def _examples(answer: dict[str, Any]) -> "pl.DataFrame":
    import polars as pl

    rows = [
        {
            "set": ", ".join(map(_word, e["set"])),
            **{k: e[k] for k in ("severity", "score", "first_seen", "explanation")},
        }
        for e in answer["examples"]
    ]
    frame = pl.DataFrame(rows)
    return frame if answer["swept"] is not None else frame.drop("set")


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


@rules_app.command("attack", epilog="Example: gatehound rules attack --layer layer.json")
def rules_attack(
    layer: Annotated[Path | None, typer.Option(help="Write a layer for the ATT&CK Navigator to this file.")] = None,
    clobber: Annotated[bool, typer.Option("--clobber", help="Overwrite the file if it is there.")] = False,  # noqa: FBT002
    to: FormatOption = OutputFormat.table,
) -> None:
    """ATT&CK techniques that the detections cover, and those of their design that none covers."""
    from flows.output import emit, say
    from queries import attack
    from queries.catalogue import catalogue

    chosen = catalogue()
    if layer is not None:
        _write(layer, attack.layer(chosen), clobber=clobber)
    held, lacking = attack.coverage(chosen), attack.gaps(chosen)
    odd = attack.differences(chosen)
    techniques = [
        {"technique": c.technique, "name": c.name, "tactics": list(c.tactics), "detections": list(c.detections)}
        for c in held
    ]
    missing = [
        {
            "technique": g.technique,
            "name": g.name,
            "tactics": list(g.tactics),
            "planned": list(g.planned),
            "in_part": list(g.nearest),
        }
        for g in lacking
    ]
    if to is OutputFormat.json:
        emit({"attack": attack.RELEASE, "techniques": techniques, "gaps": missing, "differences": list(odd)})
    else:
        _show_attack(techniques, missing, attack.RELEASE, to)
    for detection in dict.fromkeys(item["detection"] for item in odd):
        what = "; ".join(f"{item['technique']} {item['what']}" for item in odd if item["detection"] == detection)
        say(f"{detection}: {what}.", "yellow")
    if layer is not None:
        say(f"Layer: {layer}")


def _show_attack(
    techniques: list[dict[str, Any]], missing: list[dict[str, Any]], release: str, to: OutputFormat
) -> None:
    import polars as pl

    from flows.output import emit_frame

    def joined(row: dict[str, Any]) -> dict[str, str]:
        return {key: value if isinstance(value, str) else ", ".join(value) for key, value in row.items()}

    texts = dict.fromkeys(("technique", "name", "tactics", "detections"), pl.String)
    covered = pl.DataFrame([joined(row) for row in techniques], schema=texts)
    texts = dict.fromkeys(("technique", "name", "tactics", "planned", "in_part"), pl.String)
    gaps = pl.DataFrame([joined(row) for row in missing], schema=texts)
    if to in (OutputFormat.table, OutputFormat.md):
        prose = ["name", "tactics", "detections"]
        emit_frame(covered, to, title=f"Covered techniques, ATT&CK {release}", prose=prose)
        emit_frame(
            gaps, to, title="In the design, and in no detection here", prose=prose, labels={"in_part": "in part by"}
        )
    else:
        emit_frame(pl.concat([covered, gaps], how="diagonal").sort("technique"), to)


def _write(path: Path, content: dict[str, Any], *, clobber: bool) -> None:
    from data_contracts.errors import UsageError
    from reports.escape import to_json

    if path.exists() and not clobber:
        raise UsageError(f"{path} is there already", "another name, or --clobber")
    path.write_text(to_json(content) + "\n", "utf-8")
