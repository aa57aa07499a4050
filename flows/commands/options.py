"""What several verbs take, and how they open an archive."""

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from flows.output import OutputFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from archive.store import Archive

ArchiveOption = Annotated[
    str, typer.Option("-a", "--archive", envvar="GATEHOUND_ARCHIVE", help="Archive: a folder or an fsspec/S3 URI.")
]
AnyArchiveOption = Annotated[
    str | None,
    typer.Option(
        "-a", "--archive", envvar="GATEHOUND_ARCHIVE", help="Archive with imported rules; default: ./archive if there."
    ),
]
FormatOption = Annotated[OutputFormat, typer.Option("-t", "--as", help="Output on stdout.")]
DEFAULT_ARCHIVE = "./archive"


def open_archive(uri: str) -> "Archive":
    """An archive that exists.

    Raises:
        UsageError: there is none.
    """
    from archive.store import Archive

    return Archive.open(uri)


def any_archive(uri: str | None) -> "Archive | None":
    """The archive that is named, else the one in its usual place; none where there is none.

    Raises:
        UsageError: one is named, and not there.
    """
    from pathlib import Path

    if uri is None and not Path(DEFAULT_ARCHIVE, "archive.toml").is_file():
        return None
    return open_archive(uri or DEFAULT_ARCHIVE)


@contextmanager
def progress() -> "Iterator[Callable[[str, int], None]]":
    """A progress bar on stderr where that is a terminal; otherwise silence. Yields tell(what, bytes)."""
    from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    from flows.output import plain, stderr

    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        DownloadColumn(),
        TransferSpeedColumn(),
        BarColumn(),
        console=stderr(),
        transient=True,
        disable=not stderr().is_terminal,
    ) as bar:
        task = bar.add_task("", total=None)

        def tell(what: str, size: int) -> None:
            bar.update(task, description=plain(what)[-60:], advance=size)

        yield tell
