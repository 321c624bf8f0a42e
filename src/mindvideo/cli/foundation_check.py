"""``mindvideo foundation …``: checking the frozen parts."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.table import Table

from mindvideo.cli.shared import console, progress_bars

foundation_app = typer.Typer(no_args_is_help=True, help="The frozen parts a study stands on.")


@foundation_app.command("check")
def foundation_check(
    folder: Annotated[str, typer.Argument(help="a foundation folder; the shipped kit by default")] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure every gate of a kit on fresh scenes; exits with 1 where one is missed."""
    from mindvideo.foundation.check import check_kit

    with progress_bars() as bar:
        gates = check_kit(folder, progress=bar("check"))
    if as_json:
        print(json.dumps(gates, indent=2))
    else:
        table = Table("gate", "found", "wanted", "")
        for gate in gates:
            table.add_row(
                gate["gate"],
                f"{gate['found']:.3f}",
                f"{'≤' if gate['at_most'] else '≥'} {gate['wanted']}",
                "ok" if gate["passed"] else "[red]missed",
            )
        console.print(table)
    if not all(gate["passed"] for gate in gates):
        raise typer.Exit(1)
