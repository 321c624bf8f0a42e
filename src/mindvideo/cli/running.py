"""Commands that run a study, one stage of it, or what a new person's minutes are worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from mindvideo.cli.shared import Out, Run, Seeds, Set, app, console, progress_bars, run_stage, say
from mindvideo.config import load_recipe, shipped_recipes, with_settings
from mindvideo.data.bids import read_number
from mindvideo.errors import SettingError
from mindvideo.stages import STAGES, Stage


@app.command()
def simulate(
    out: Path,
    recipe: Annotated[str, typer.Option(help="recipe whose 'simulate' section gives the sizes")] = "demo",
    seed: Annotated[int | None, typer.Option(min=0, help="the recipe's own by default")] = None,
    settings: Set = None,
) -> None:
    """Write simulated subjects in the layout of Wen 2018, with their truth, into OUT."""
    from mindvideo.simulate import recordings

    resolved = load_recipe(recipe, settings)
    if resolved.simulate is None:
        raise SettingError(f"expected a 'simulate' section in recipe '{recipe}', found none; use the recipe demo")
    seed = resolved.seed if seed is None else seed
    with progress_bars() as bar:
        recordings.simulate(resolved.simulate, out, seed, progress=bar("simulate"))
        recordings.simulate_pretraining(resolved.simulate, out, seed, progress=bar("pre-training"))
    say(f"simulated recordings in {out}")


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"a shipped recipe ({', '.join(shipped_recipes())}) or a YAML file")],
    out: Out,
    settings: Set = None,
    until: Annotated[str | None, typer.Option(help="last stage to run")] = None,
    seeds: Seeds = 1,
) -> None:
    """Run a study from recordings to a report: skip what is up to date, resume what was killed."""
    from mindvideo.evaluate.compare import each_seed
    from mindvideo.study import Study

    for seeded, folder in each_seed(load_recipe(recipe, settings), out, seeds):
        with progress_bars() as bar:
            ran = Study(seeded, folder).run(until=until, progress=bar, say=say)
        if not ran:
            say("everything is up to date")
        report = folder / "report" / "index.html"
        if report.is_file() and until in (None, "report"):
            console.print(f"report: {report}", soft_wrap=True)


@app.command()
def status(
    run_dir: Run,
    recipe: Annotated[str | None, typer.Option("--recipe", help="another recipe than RUN/recipe.yaml")] = None,
    settings: Set = None,
) -> None:
    """Say whether each stage of RUN is up to date, and if not, what changed."""
    from mindvideo.study import Study

    chosen = load_recipe(recipe, settings) if recipe else with_settings(Study.open(run_dir).recipe, settings)
    for name, sentence in Study(chosen, run_dir).status().items():
        console.print(f"{name}: {sentence}", soft_wrap=True)


def _stage_command(stage: Stage) -> None:
    def command(run_dir: Run, settings: Set = None) -> None:
        run_stage(stage.name, run_dir, settings)

    command.__doc__ = f"Run the stage {stage.name} of the study in RUN: {stage.summary}."
    app.command(stage.name)(command)


for _stage in STAGES.values():
    if _stage.trains or _stage.name == "explain":  # the others' commands take more than a run folder
        _stage_command(_stage)


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
    found = [None if part.strip() == "all" else read_number(part) for part in text.split(",")]
    known = [math.inf if each is None else each for each in found]
    if known != sorted(set(known)) or not all(0 <= each < math.inf for each in found if each is not None):
        raise SettingError(f"expected --minutes as rising numbers with commas, such as 0,15,60,all, found '{text}'")
    return found
