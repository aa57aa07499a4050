"""Verbs for the work on findings: findings list/show/triage, suppress add/list/expire."""
# ruff: noqa: PLR0917 - the signature of a verb is its command line

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.options import DEFAULT_ARCHIVE, ArchiveOption, FormatOption, open_archive
from flows.output import OutputFormat

if TYPE_CHECKING:
    import polars as pl

findings_app = typer.Typer(
    help="What hunts found, and what was made of it.", no_args_is_help=True, rich_markup_mode=None
)
suppress_app = typer.Typer(help="What is expected and not to be told.", no_args_is_help=True, rich_markup_mode=None)

_RULE_PARTS = {
    "detections": "detections",
    "tenants": "tenants",
    "networks": "networks",
    "clients": "client_fps",
    "operations": "operation_classes",
    "hours": "schedule",
}
_MOST_JUDGED = 20  # judgements and runs of one finding that a terminal shows


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.add_typer(findings_app, name="findings")
    app.add_typer(suppress_app, name="suppress")


@findings_app.command("list", epilog="Example: gatehound findings list -a case17 --state new --state investigating")
def findings_list(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only these: new, investigating, confirmed, benign, duplicate, closed. Repeatable."),
    ] = None,
    detection: Annotated[str | None, typer.Option(help="Only of this detection.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Only those that name this tenant.")] = None,
    run: Annotated[
        str | None, typer.Option(help="Only of this run; default: every finding, as its last run has it.")
    ] = None,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Findings of all hunts with their state, the highest score first."""
    from flows.pipeline.triage import listed

    _show_findings(listed(open_archive(archive), wanted=state or (), detection=detection, tenant=tenant, run=run), to)


@findings_app.command("show", epilog="Example: gatehound findings show F-0123456789abcdef -a case17")
def findings_show(
    finding: Annotated[str, typer.Argument(help="Id of a finding.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """One finding: evidence, statement, who judged it, which runs found it."""
    import polars as pl

    from flows.output import emit, emit_frame
    from flows.pipeline.triage import shown

    answer = shown(open_archive(archive), finding)
    if to is OutputFormat.json:
        emit(answer)
    elif to is OutputFormat.table:
        _show_finding(answer)
    else:
        flat = {k: v for k, v in answer.items() if k not in ("triage", "runs")} | {"found_in_runs": len(answer["runs"])}
        emit_frame(pl.DataFrame([flat], infer_schema_length=None), to)


@findings_app.command(
    "triage", epilog="Example: gatehound findings triage F-0123456789abcdef -a case17 --state benign --reason CHG-4711"
)
def findings_triage(
    ids: Annotated[list[str], typer.Argument(help="Ids of findings, or of cases for all of their findings.")],
    state: Annotated[
        str, typer.Option(help="new, investigating, confirmed, benign, duplicate or closed.", show_default=False)
    ],
    reason: Annotated[str, typer.Option(help="Why.", show_default=False)],
    duplicate_of: Annotated[
        str | None, typer.Option("--of", help="With duplicate: the finding that it repeats.")
    ] = None,
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Say what a finding is. Judgements are only added: who, when and why are kept."""
    from flows.pipeline.triage import judge

    _show_findings(judge(open_archive(archive), ids, state, reason, duplicate_of=duplicate_of), to)


@suppress_app.command(
    "add",
    epilog="Example: gatehound suppress add -a case17 --finding F-0123456789abcdef --reason 'DR test, CHG-4711' "
    "--owner it-ops --until 2021-06-30",
)
def suppress_add(
    reason: Annotated[str, typer.Option(help="Why it is expected.", show_default=False)],
    owner: Annotated[str, typer.Option(help="Who answers for it.", show_default=False)],
    until: Annotated[str, typer.Option(help="Up to when events are expected, UTC.", show_default=False)],
    finding: Annotated[str | None, typer.Option(help="Take the contexts of this finding, for its detection.")] = None,
    credential: Annotated[str | None, typer.Option(help="Thumbprint, key id, or pw: and the account.")] = None,
    principal: Annotated[str | None, typer.Option(help="Principal or application; * allowed.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Only in this tenant. Repeatable.")] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="CIDR; - for rows that name no address. Repeatable.")
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(help="Client fingerprint or user-agent family; - for rows without one. Repeatable."),
    ] = None,
    operation: Annotated[list[str] | None, typer.Option(help="Action, such as get_item. Repeatable.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Hours, UTC: 'Mon-Fri 22:00-06:00; Sat 02:00-04:00'.")] = None,
    detection: Annotated[
        list[str] | None, typer.Option(help="Silence only findings of this detection. Repeatable.")
    ] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="Events from then on; default: the finding's first, or today.")
    ] = None,
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Add a rule: who, from which networks, and with which clients or operations. Never an address alone."""
    from data_contracts.errors import UsageError
    from flows.pipeline.expecting import add, from_finding, today
    from flows.pipeline.hunting import moment

    parts = {
        "credential_id": credential, "principal_pattern": principal, "tenants": _joined(tenant),
        "networks": _joined(network), "client_fps": _joined(client), "operation_classes": _joined(operation),
        "detections": _joined(detection),
    }  # fmt: skip
    opened = open_archive(archive)
    if finding is None:
        rules: list[dict[str, Any]] = [parts | {"valid_from": today()}]
    elif any(parts.values()):
        raise UsageError("--finding says who, from where and what", "give --finding, or the parts of a rule")
    else:
        rules = from_finding(opened, finding)
    common = {"schedule": schedule, "reason": reason, "owner": owner, "valid_to": moment(until, end=True)}
    common |= {} if begin is None else {"valid_from": moment(begin)}
    _show_rules(add(opened, [rule | common for rule in rules]), to)


@suppress_app.command("list", epilog="Example: gatehound suppress list -a case17 -t csv > contexts.csv")
def suppress_list(
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """All rules, with who added them, until when they hold, and whether they have an effect."""
    from flows.pipeline.expecting import listed

    _show_rules(listed(open_archive(archive)), to)


@suppress_app.command(
    "expire", epilog="Example: gatehound suppress expire S-0123456789abcdef -a case17 --reason 'the test is over'"
)
def suppress_expire(
    rules: Annotated[list[str], typer.Argument(help="Ids of rules.")],
    reason: Annotated[str, typer.Option(help="Why it holds no longer.", show_default=False)],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Withdraw rules: from now on they silence nothing. The rows stay, with who, when and why."""
    from flows.pipeline.expecting import expire

    _show_rules(expire(open_archive(archive), rules, reason), to)


def _joined(values: list[str] | None) -> str | None:
    return "; ".join(values) if values else None


def _show_findings(frame: "pl.DataFrame", to: OutputFormat) -> None:
    import polars as pl

    from flows.output import emit_frame, say

    if to is not OutputFormat.table:
        emit_frame(frame, to, prose=["explanation", "reason"])
    elif frame.height:
        what = pl.concat_str("detection", "explanation", separator=": ").alias("what happened")
        short = frame.select("finding_id", "state", "severity", "score", what)
        emit_frame(short, to, prose=["finding_id", "what happened"])
    else:
        say("No such findings. Hint: gatehound hunt looks for some.")


def _show_finding(answer: dict[str, Any]) -> None:
    import polars as pl

    from flows.output import emit_frame, say

    left_out = ("triage", "runs", "event_uids", "title", "detection")
    flat = {"finding": f"{answer['detection']} {answer['title']}", **answer}
    flat |= {"event_uids": answer["event_uids"][:3], "state": answer["state"]}
    shown = {k: v for k, v in flat.items() if k not in left_out and v not in (None, [])}
    rows = [{"what": k, "value": _worded(v)} for k, v in shown.items()]
    emit_frame(pl.DataFrame(rows), OutputFormat.table, prose=["value"])
    if answer["triage"]:
        judged = pl.DataFrame(answer["triage"][-_MOST_JUDGED:], infer_schema_length=None)
        judged = judged.select("at", "state", "who", "reason", "duplicate_of")
        held = [c for c in judged.columns if judged[c].null_count() < judged.height]
        emit_frame(judged.select(held), OutputFormat.table, title="Judgements", prose=["reason"])
    emit_frame(pl.DataFrame(answer["runs"][-_MOST_JUDGED:]), OutputFormat.table, title="Found by")
    say("Hint: gatehound sql shows the evidence rows with the statement; gatehound raw EVENT_UID the record.", "dim")


def _worded(value: object) -> str:
    from flows.output import plain

    return f"{value:g}" if isinstance(value, float) else plain(value)


def _show_rules(frame: "pl.DataFrame", to: OutputFormat) -> None:
    """Rules; on a terminal one block each, since a row would not fit."""
    from rich.text import Text

    from flows.commands.told import indented
    from flows.output import emit_frame, plain, say, stdout

    if to is not OutputFormat.table:
        emit_frame(frame, to, prose=["reason"])
        return
    for rule in frame.iter_rows(named=True):
        head = plain(f"{rule['rule_id']}  {rule['status']}, for events until {rule['valid_to']:%Y-%m-%d %H:%M} UTC")
        stdout().print(Text(head, style="bold"))
        identity = " ".join(v for v in (rule["credential_id"], rule["principal_pattern"]) if v)
        told = {"who": identity} | {label: rule[column] for label, column in _RULE_PARTS.items()}
        for label, value in told.items():
            if value:
                indented(f"{label:<12}", plain(value), "dim")
        indented(f"{'because':<12}", plain(f"{rule['reason']} ({rule['owner']})"), "dim")
    if frame.is_empty():
        say("No rules. Hint: gatehound suppress add makes one.")
