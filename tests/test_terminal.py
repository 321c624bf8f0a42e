"""Paths and names of users reach the terminal as they are: brackets are no markup, colons no emoji, lines are not cut."""

from __future__ import annotations

import io

import pytest
from rich.table import Table

from mindvideo.cli.shared import console, say

NAME = "study [v2] [bold]x[/bold] :cat: [/] " + "long/" * 40 + "end"


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(console, "file", text)
    return text


def test_a_line_is_printed_as_it_is(written: io.StringIO) -> None:
    say(NAME)
    assert written.getvalue() == NAME + "\n"


def test_a_cell_of_a_table_has_no_markup(written: io.StringIO) -> None:
    table = Table("run [v2]")
    table.add_row("[red]:cat:[/red]")
    console.print(table)
    assert "run [v2]" in written.getvalue() and "[red]:cat:[/red]" in written.getvalue()
