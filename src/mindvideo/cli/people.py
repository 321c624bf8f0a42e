"""``mindvideo people``: a new person from minutes of scanner time."""

from __future__ import annotations

from typing import Annotated

import typer

from mindvideo.cli.shared import Out, Set, app, console, progress_bars, say
from mindvideo.config import load_recipe
from mindvideo.errors import SettingError


@app.command()
def people(
    recipe: Annotated[str, typer.Argument(help="a recipe with several data.subjects")],
    leave_out: Annotated[int, typer.Option("--leave-out", help="number of the subject who comes new")],
    out: Out,
    minutes: Annotated[str, typer.Option(help="scanner time of the new person, as 0,15,60,all")] = "0,5,15,30,60,all",
    tune_all: Annotated[bool, typer.Option("--tune-all", help="after the maps, train all of the model too")] = False,
    settings: Set = None,
) -> None:
    """Train a model on all subjects but one, and show what that one's first minutes are worth."""
    from mindvideo.newcomer import LeftOut, run_curve
    from mindvideo.report.newcomer import write_curve_page

    asked = LeftOut(load_recipe(recipe, settings), leave_out, _read_minutes(minutes), tune_all)
    with progress_bars() as bar:
        run_curve(asked, out, say=say, progress=bar)
    console.print(f"report: {write_curve_page(out)}", soft_wrap=True)


def _read_minutes(text: str) -> list[float | None]:
    found: list[float | None] = []
    for part in text.split(","):
        try:
            found.append(None if part.strip() == "all" else float(part))
        except ValueError:
            found = []
            break
    known = [each if each is not None else float("inf") for each in found]
    if not found or known != sorted(set(known)) or known[0] < 0:
        raise SettingError(f"expected --minutes as rising numbers with commas, such as 0,15,60,all, found '{text}'")
    return found
