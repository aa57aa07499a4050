"""Verbs that tell which logs are understood: formats list, formats show."""

from typing import Annotated, Any

import typer

from flows.commands.options import FormatOption
from flows.output import OutputFormat

formats_app = typer.Typer(help="The log formats that are understood.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.add_typer(formats_app, name="formats")


@formats_app.command("list", epilog="Example: gatehound formats list")
def formats_list(to: FormatOption = OutputFormat.table) -> None:
    """All formats, what they fill and how they are recognised."""
    import polars as pl

    from flows.output import emit_frame
    from flows.pipeline.formats import recognised_by
    from transforms.registry import formats

    rows = [
        {"format": f.name, "title": f.title, "fills": " ".join(f.tables), "recognised_by": recognised_by(f)}
        for f in formats()
    ]
    frame = pl.DataFrame(rows)
    if to is OutputFormat.table:
        frame = frame.drop("recognised_by")  # stands in formats show; a line here stays a line
    emit_frame(frame, to, prose=["title", "recognised_by"])


@formats_app.command("show", epilog="Example: gatehound formats show m365_ual")
def formats_show(
    name: Annotated[str, typer.Argument(help="Name of a format.")], to: FormatOption = OutputFormat.table
) -> None:
    """One format: how it is recognised, the columns it fills, what it cannot tell."""
    from flows.output import emit, emit_frame
    from flows.pipeline.formats import filled, find, recognised_by

    fmt = find(name)
    columns = filled(fmt)
    facts: dict[str, Any] = {
        "format": fmt.name,
        "title": fmt.title,
        "specification": fmt.spec,
        "recognised_by": recognised_by(fmt),
        "tables": list(fmt.tables),
        "columns": columns.to_dicts(),
        "gaps": list(fmt.gaps),
    }
    if to is OutputFormat.json:
        emit(facts)
    elif to is OutputFormat.table:
        _show(facts)
        emit_frame(columns.drop("of"), to, title="Columns that its samples fill", prose=["meaning"])
    else:
        emit_frame(columns, to)


def _show(facts: dict[str, Any]) -> None:
    from rich.text import Text

    from flows.output import stdout

    console = stdout()
    console.print(Text(f"{facts['format']}  {facts['title']}", style="bold"))
    console.print(Text(f"Recognised by {facts['recognised_by']}. Fills {', '.join(facts['tables'])}."))
    console.print(Text(facts["specification"], style="dim"))
    if facts["gaps"]:
        console.print(Text("\nWhat it cannot tell", style="bold"))
        for gap in facts["gaps"]:
            console.print(Text(f"- {gap}"))
    console.print()
