"""`gatehound formats`: what it tells of each format comes from reading the format's own sample."""

import json

import pytest
from typer.testing import CliRunner

from flows.main import app
from flows.pipeline.formats import filled, find, recognised_by, samples
from transforms.model import Format
from transforms.registry import formats

EVERY = pytest.mark.parametrize("fmt", formats(), ids=lambda f: f.name)


@EVERY
def test_the_samples_fill_every_table_that_the_format_names(fmt: Format) -> None:
    assert samples(fmt), f"tests/samples/{fmt.name}.* is missing, or another format takes it"
    columns = filled(fmt)
    assert set(columns["table"]) == set(fmt.tables)
    assert (columns["rows"] > 0).all()
    assert (columns["rows"] <= columns["of"]).all()
    for table in fmt.tables:
        assert {"ts", "source", "outcome"} <= set(columns.filter(columns["table"] == table)["column"])


@EVERY
def test_each_format_says_how_it_is_recognised_and_what_it_cannot_tell(fmt: Format) -> None:
    assert recognised_by(fmt)
    assert fmt.spec.startswith(("https://", "docs/"))
    assert fmt.gaps
    assert len(fmt.title) <= 60


def test_list_and_show_on_the_command_line() -> None:
    listed = CliRunner().invoke(app, ["formats", "list", "-t", "json"])
    assert listed.exit_code == 0
    assert [row["format"] for row in json.loads(listed.output)] == [f.name for f in formats()]
    shown = json.loads(CliRunner().invoke(app, ["formats", "show", "dovecot", "-t", "json"]).output)
    columns = {(c["table"], c["column"]): c["rows"] for c in shown["columns"]}
    assert columns["access_events", "retr_count"] > 0
    assert ("access_events", "ldap_base") not in columns
    table = CliRunner().invoke(app, ["formats", "show", "dovecot"], env={"COLUMNS": "100"})
    assert "What it cannot tell" in table.output
    assert max(map(len, table.output.splitlines())) <= 100


def test_a_format_that_is_not_there() -> None:
    with pytest.raises(Exception, match="there is no such format") as caught:
        find("none")
    assert "dovecot" in str(caught.value)
