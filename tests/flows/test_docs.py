"""Every verb has help with an example, and the README names it: as the command line has them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows.main import app

README = Path(__file__).parents[2] / "README.md"


def verbs(command: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from verbs(inner, (*words, name))
    else:
        yield " ".join(words)


VERBS = sorted(verbs(get_command(app)))


@pytest.mark.parametrize("verb", VERBS)
def test_the_readme_names_the_verb(verb: str) -> None:
    text = README.read_text()
    assert f"gatehound {verb}" in text or f"`{verb}" in text


@pytest.mark.parametrize("verb", VERBS)
def test_the_verb_has_help_with_an_example_and_takes_t(verb: str) -> None:
    answer = CliRunner().invoke(app, [*verb.split(), "--help"], env={"COLUMNS": "100"})
    assert answer.exit_code == 0
    assert f"Example: gatehound {verb}" in answer.output
    assert "-t, --as" in answer.output
    assert "--help" in answer.output
    assert max(map(len, answer.output.splitlines())) <= 120


def test_the_list_of_verbs_cuts_no_sentence() -> None:
    answer = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"})
    assert answer.exit_code == 0
    assert "..." not in answer.output.split("Commands:")[1].replace("networks, ...", "")
