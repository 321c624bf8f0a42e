"""``mindvideo baseline …``: rival methods on the same windows and scores."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from mindvideo.cli.shared import Out, Run, Seeds, Set, console, progress_bars, say
from mindvideo.config import Baseline, Recipe, load_recipe, read_recipe, with_settings
from mindvideo.errors import SettingError

baseline_app = typer.Typer(no_args_is_help=True, help="Rival methods on the same footing (see docs/baselines.md).")

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="a prepared store, as RUN/prepare/store.zarr")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="a recipe, by default RUN/recipe.yaml")]


def _recipe(run_dir: Path, name: str | None, settings: list[str] | None) -> Recipe:
    try:
        import_module("mindvideo.baselines")
    except ModuleNotFoundError:
        raise SettingError(
            "expected the package mindvideo.baselines, found it removed from this installation; reinstall mindvideo"
        ) from None
    if name is not None:
        return load_recipe(name, settings)
    path = run_dir / "recipe.yaml"
    if not path.is_file():
        raise SettingError(f"expected the study's recipe at {path}, found none; give --recipe, e.g. --recipe demo")
    return with_settings(read_recipe(path), settings)


def _print_table(run_dir: Path, every: bool, seeds: int = 1) -> None:
    from mindvideo.baselines.summary import as_brief_text, cost_note, score_columns, write_table

    rows = write_table(run_dir, seeds)
    text = as_brief_text(rows, score_columns(rows, every))
    first, *others = text[0]
    columns = (Column(first, no_wrap=True), *(Column(name, overflow="fold") for name in others))
    table = Table(*columns, show_lines=True)
    for line in text[1:]:
        table.add_row(*line)
    console.print(table)
    console.print(
        "below each value its shuffled control; * better than that, P < .05 by Holm; intervals: baselines/table.csv; "
        "methods against one another, window by window: baselines/differences.json",
    )
    if note := cost_note(rows):
        console.print(note)


def _run(name: str, store: Path, out: Path, recipe: Recipe, seeds: int, method: str | None = None) -> None:
    from mindvideo.baselines.runner import run_rival
    from mindvideo.evaluate.compare import each_seed

    for seeded, folder in each_seed(recipe, out, seeds):
        own = folder / "prepare" / "store.zarr"
        place = own if seeded.seed > recipe.seed and own.is_dir() else store
        with progress_bars() as bar:
            run_rival(name, seeded, folder, place, method=method, progress=bar(name), say=say)
    _print_table(out, every=False, seeds=seeds)


def _rival_command(name: str, does: str | None) -> None:
    def command(store: StorePath, out: Out, recipe: RecipeName = None, settings: Set = None, seeds: Seeds = 1) -> None:
        _run(name, store, out, _recipe(out, recipe, settings), seeds)

    baseline_app.command(name, help=does)(command)


for _name, _field in Baseline.model_fields.items():
    _rival_command(_name, _field.annotation.__doc__)


@baseline_app.command("own")
def own(
    store: StorePath,
    out: Out,
    method: Annotated[str, typer.Option("--method", help="module:Class with fit(store) and reconstruct(fmri)")],
    name: Annotated[str, typer.Option("--name", help="what the table calls it")],
    recipe: RecipeName = None,
    settings: Set = None,
    seeds: Seeds = 1,
) -> None:
    """Run a class of your own: fit(store), then reconstruct(fmri) for test windows and controls."""
    _run(name, store, out, _recipe(out, recipe, settings), seeds, method)


@baseline_app.command("folder")
def folder(
    clips: Annotated[Path, typer.Argument(metavar="CLIPS", help="a folder of files SEGMENT_SCAN.mp4 (.gif, .npy, …)")],
    out: Out,
    name: Annotated[str, typer.Option("--name", help="what the table calls them")],
    store: Annotated[Path | None, typer.Option("--store", help="the prepared store; RUN's own by default")] = None,
    recipe: RecipeName = None,
    settings: Set = None,
) -> None:
    """Score clips another program made of the same test windows."""
    resolved = _recipe(out, recipe, settings)
    from mindvideo.baselines.runner import add_folder

    with progress_bars() as bar:
        add_folder(name, clips, resolved, out, store, progress=bar(name), say=say)
    _print_table(out, every=False)


@baseline_app.command("table")
def table(
    run_dir: Run,
    every: Annotated[bool, typer.Option("--all", help="every score, not the main ones")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    seeds: Seeds = 1,
) -> None:
    """Print each method's scores and shuffled control, seconds and peak memory."""
    _recipe(run_dir, None, None)
    if as_json:
        from mindvideo.baselines.summary import write_table

        print(json.dumps(write_table(run_dir, seeds), indent=1))
    else:
        _print_table(run_dir, every, seeds)
