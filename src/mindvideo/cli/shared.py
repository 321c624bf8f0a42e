"""What every command shares: the terminal, progress bars and common options."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mindvideo.config import with_settings
from mindvideo.stages import Bars
from mindvideo.stages import Progress as StageProgress

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Reconstruct the video a person was watching from their fMRI.")  # fmt: skip
# Of several processes one speaks; brackets and colons of paths and names are no markup.
console = Console(quiet=os.environ.get("RANK", "0") != "0", markup=False, emoji=False, highlight=False)
terminal = {"quiet": False}

Set = Annotated[list[str] | None, typer.Option("--set", help="a setting as key=value; may be repeated")]
Run = Annotated[Path, typer.Argument(metavar="RUN")]
RecipeArgument = Annotated[str, typer.Argument(help="a shipped recipe or a YAML file")]
# ``.`` and ``..`` by their full names: seeds and results being written stand beside the place.
Out = Annotated[
    Path,
    typer.Option(
        "--out", help="where the result goes", callback=lambda path: path if path.name.strip(".") else path.resolve()
    ),
]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="how many seeds, from the recipe's own on, in RUN and RUN-seedN")
]


def say(line: str) -> None:
    """Print a line unless ``--quiet``."""
    if not terminal["quiet"]:
        console.print(line, soft_wrap=True)


def say_smallest_p(p: float | None) -> None:
    """Say what corrected P could be found at best, where anything was tested."""
    if p is not None:
        say(f"with these blocks and permutations no corrected P can be below {p:.2g}")


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Progress bars with time taken and left; nothing where the output is not a terminal."""
    if not console.is_terminal or terminal["quiet"]:
        yield lambda name: lambda done, total, figures: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[figures]}", markup=False), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:

        def start(name: str) -> StageProgress:
            task: TaskID = bars.add_task(name, total=None, figures="")

            def update(done: int, total: int, figures: dict[str, float | str]) -> None:
                shown = [value if isinstance(value, str) else f"{name} {value:.3g}" for name, value in figures.items()]
                bars.update(task, completed=done, total=total, figures=" ".join(shown[:3]), visible=done < total)

            return update

        yield start


def run_stage(name: str, run_dir: Path, settings: list[str] | None) -> None:
    """Run one stage of an existing run folder, with settings on top of its recipe."""
    from mindvideo.study import Study

    study = Study.open(run_dir)
    if settings:
        study = Study(with_settings(study.recipe, settings), run_dir)
    with progress_bars() as bar:
        study.run(only=name, progress=bar, say=say)
