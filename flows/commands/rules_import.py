"""Verbs about Sigma rules in an archive: rules import, rules remove."""

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import DEFAULT_ARCHIVE, ArchiveOption, FormatOption, open_archive
from flows.output import OutputFormat

_MOST_REASONS = 15  # on a terminal


def register(rules_app: typer.Typer) -> None:
    """Adds the verbs."""
    rules_app.command("import", epilog="Example: gatehound rules import sigma/rules/cloud/m365 -a case17")(rules_import)
    rules_app.command("remove", epilog="Example: gatehound rules remove S-0AA1B2C3 -a case17")(rules_remove)


def rules_import(
    paths: Annotated[list[Path], typer.Argument(help="Files with Sigma rules, or folders with such files.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would become of each rule.")] = False,  # noqa: FBT002
    clobber: Annotated[bool, typer.Option("--clobber", help="Replace rules that are there with another text.")] = False,  # noqa: FBT002
    to: FormatOption = OutputFormat.table,
) -> None:
    """Make Sigma rules for Microsoft 365, Entra ID and mail logs detections of an archive.

    What cannot be mapped onto the tables is refused, with the reason. Exit with 3 when no rule could be taken.
    """
    from flows.output import emit, working
    from flows.pipeline.rule_import import import_rules

    with working("importing rules"):
        answer = import_rules(open_archive(archive), paths, clobber=clobber, dry_run=dry_run)
    if to is OutputFormat.json:
        emit(answer)
    else:
        _show(answer, to, dry_run=dry_run)
    if answer["totals"]["refused"] and not any(answer["totals"][n] for n in ("imported", "replaced", "known")):
        raise typer.Exit(3)


def _show(answer: dict[str, Any], to: OutputFormat, *, dry_run: bool) -> None:
    import polars as pl

    from flows.output import emit_frame, say

    columns = ("id", "title", "level", "result", "why", "file")
    rows = [
        {**{k: r[k] for k in columns if k != "why"}, "why": "; ".join([*r["reasons"], *r["notes"]])}
        for r in answer["rules"]
    ]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String))
    if to not in (OutputFormat.table, OutputFormat.md):
        emit_frame(frame, to)
        return
    emit_frame(frame.drop("file"), to, prose=["title", "why"])
    if answer["reasons"]:
        reasons = [{"rules": n, "reason": reason} for reason, n in answer["reasons"].items()]
        emit_frame(pl.DataFrame(reasons[:_MOST_REASONS]), to, title="Why rules were refused", prose=["reason"])
        if len(reasons) > _MOST_REASONS:
            say(f"The first {_MOST_REASONS} of {len(reasons)} reasons; -t json gives all.", "dim")
    told = ", ".join(f"{n} {result}" for result, n in answer["totals"].items() if n)
    say(f"{'Would be: ' if dry_run else ''}{told}.")


def rules_remove(
    rules: Annotated[list[str], typer.Argument(help="Ids of imported rules.")],
    archive: ArchiveOption = DEFAULT_ARCHIVE,
    to: FormatOption = OutputFormat.table,
) -> None:
    """Take imported rules out of an archive. What they found stays."""
    import polars as pl

    from flows.output import emit_frame
    from flows.pipeline.rule_files import remove

    emit_frame(pl.DataFrame({"removed": remove(open_archive(archive), rules)}), to)
