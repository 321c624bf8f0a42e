"""Paths and names of users reach the terminal as they are: brackets are no markup, colons no emoji, lines are not cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from mindvideo.cli.shared import console, progress_bars, say

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


@pytest.mark.parametrize(
    ("figures", "shown"),
    [({"loss": 0.12345, "lr": 1e-4}, "loss 0.123 lr 0.0001"), ({"what": "wrote [seg1]"}, "wrote [seg1]")],
)
def test_bars_show_numbers_and_words(monkeypatch, figures, shown) -> None:
    text = io.StringIO()
    terminal = Console(file=text, force_terminal=True, force_interactive=True, width=200)
    monkeypatch.setattr("mindvideo.cli.shared.console", terminal)
    with progress_bars() as bar:
        bar("prepare")(1, 4, figures)
    assert shown in text.getvalue()
