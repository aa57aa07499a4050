"""The README names every verb, as the command line has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from flows.main import app

README = Path(__file__).parents[2] / "README.md"


def verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*words, name))
    else:
        yield " ".join(words)


@pytest.mark.parametrize("verb", sorted(verbs(get_command(app))))
def test_the_readme_names_the_verb(verb: str) -> None:
    text = README.read_text()
    assert f"gatehound {verb}" in text or f"`{verb}" in text
