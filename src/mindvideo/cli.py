"""The command line: one sub-command a stage, thin over :mod:`mindvideo.study` and the readers."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from mindvideo.config import load_recipe, parse_recipe, shipped_recipes
from mindvideo.errors import DataError, MindVideoError, SettingError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Reconstruct the video a person was watching from their fMRI.")  # fmt: skip
prepare_app = typer.Typer(no_args_is_help=True, help="Recordings and stimuli to one prepared store.")
foundation_app = typer.Typer(no_args_is_help=True, help="The frozen parts a study stands on.")
app.add_typer(prepare_app, name="prepare")
app.add_typer(foundation_app, name="foundation")
console = Console()
_state = {"quiet": False}

Set = Annotated[list[str] | None, typer.Option("--set", help="a setting as key=value; may be repeated")]
Out = Annotated[Path, typer.Option("--out", help="where the result goes")]


@app.callback()
def _main(quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")] = False) -> None:
    _state["quiet"] = quiet


def _say(line: str) -> None:
    if not _state["quiet"]:
        console.print(line, highlight=False)


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int, dict[str, float]], None]]]:
    """Progress bars with rate and time left; nothing where the output is not a terminal."""
    if not console.is_terminal or _state["quiet"]:
        yield lambda name: lambda done, total, figures: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:

        def start(name: str) -> Callable[[int, int, dict[str, float]], None]:
            task: TaskID = bars.add_task(name, total=None, figures="")

            def update(done: int, total: int, figures: dict[str, float]) -> None:
                shown = " ".join(f"{key} {value:.3g}" for key, value in list(figures.items())[:3])
                bars.update(task, completed=done, total=total, figures=shown, visible=done < total)

            return update

        yield start


@app.command()
def simulate(
    out: Path,
    recipe: Annotated[str, typer.Option(help="recipe whose 'simulate' section gives the sizes")] = "demo",
    seed: int = 0,
    settings: Set = None,
) -> None:
    """Write a simulated subject in the layout of Wen 2018, with its truth, into OUT."""
    from mindvideo.simulate.recordings import simulate as run
    from mindvideo.simulate.recordings import simulate_people

    resolved = load_recipe(recipe, settings or [])
    if resolved.simulate is None:
        raise SettingError(f"expected a 'simulate' section in recipe '{recipe}', found none; use the recipe demo")
    with _bars() as bar:
        run(resolved.simulate, out, seed, progress=bar("simulate"))
        simulate_people(resolved.simulate, out, seed, progress=bar("people"))
    _say(f"simulated subject in {out}")


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help=f"a shipped recipe ({', '.join(shipped_recipes())}) or a YAML file")],
    out: Out,
    settings: Set = None,
    until: Annotated[str | None, typer.Option(help="last stage to run")] = None,
) -> None:
    """Run a study from recordings to a report; what is up to date is skipped, what was killed goes on."""
    from mindvideo.study import Study

    study = Study(load_recipe(recipe, settings or []), out)
    with _bars() as bar:
        ran = study.run(until=until, progress=bar, say=_say)
    if not ran:
        _say("everything is up to date")
    report = out / "report" / "index.html"
    if report.is_file() and until in (None, "report"):
        console.print(f"report: {report}", highlight=False, soft_wrap=True)


def _stage_command(name: str, does: str) -> None:
    def command(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
        _run_stage(name, run_dir, settings)

    command.__doc__ = f"Run the stage {name} of the study in RUN: {does}."
    app.command(name)(command)


def _run_stage(name: str, run_dir: Path, settings: list[str] | None) -> None:
    from mindvideo.study import Study

    study = Study.open(run_dir)
    if settings:
        study = Study(_with_settings(study.recipe.model_dump(mode="json"), settings), run_dir)
    with _bars() as bar:
        study.run(only=name, progress=bar, say=_say)


def _with_settings(content: dict[str, Any], settings: list[str]) -> Any:
    """A resolved recipe with ``key=value`` settings on top."""
    import tempfile

    import yaml

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as handle:
        yaml.safe_dump(content, handle)
        handle.flush()
        return load_recipe(handle.name, settings)


for _name, _does in (
    ("pretrain", "masked brain modelling on many people"),
    ("adapt", "masked brain modelling on the subject"),
    ("align", "contrastive alignment with CLIP"),
    ("animate", "text-conditioned video tuning of the generator"),
    ("cotrain", "encoder and generator tuned together"),
    ("reconstruct", "test windows to video, with controls"),
    ("explain", "attention and occlusion on the cortex"),
):
    _stage_command(_name, _does)


@app.command()
def evaluate(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
    """Score the reconstructions of RUN beside their controls and print the table."""
    _run_stage("evaluate", run_dir, settings)
    _print_scores(run_dir)


def _print_scores(run_dir: Path) -> None:
    import json

    scores = json.loads((run_dir / "evaluate" / "scores.json").read_text())
    table = Table("score", "value", "95 % interval", "chance", "shuffled", "P", "mean", "P")
    for name, entry in scores.items():
        controls, p = entry.get("controls", {}), entry.get("p", {})
        number = lambda value: "–" if value is None else f"{value:.3f}"  # noqa: E731
        table.add_row(
            name, number(entry["value"]), " – ".join(map(number, entry["interval"])), number(entry.get("chance")),
            number(controls.get("shuffled")), number(p.get("shuffled")), number(controls.get("mean")), number(p.get("mean")),
        )  # fmt: skip
    console.print(table)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…")],
    out: Annotated[Path | None, typer.Option("--out", help="folder of the page; RUN/report by default")] = None,
) -> None:
    """Write one self-contained page for one or several run folders."""
    from mindvideo.report.build import build_report

    for run_dir in runs:
        if not (run_dir / "recipe.yaml").is_file():
            raise DataError(
                f"expected a run folder with recipe.yaml at {run_dir}, found none; start one with 'mindvideo run'"
            )
    folder = out or runs[0] / "report"
    build_report(list(runs), folder)
    console.print(f"report: {folder / 'index.html'}", highlight=False, soft_wrap=True)


@prepare_app.command("wen2018")
def prepare_wen2018(
    raw: Annotated[Path, typer.Argument(help="folder with stimuli/ and subjectN/")],
    out: Out,
    subject: int = 1,
    selection: str = "paper",
    alpha: float = 0.01,
    top_fraction: float = 0.5,
    k: int | None = None,
    repeats: str = "average",
    lag_s: float = 4.0,
    exclude: Annotated[list[str] | None, typer.Option(help="a run left out, as subject3:test2_9")] = None,
    fps: int = 3,
    size: int = 256,
    fit: str = "crop",
    areas: str = "cortex",
    expect: Annotated[str | None, typer.Option(help="'wen2018' insists on 18 + 5 segments with 2 and 10 runs")] = None,
    captions: Annotated[str, typer.Option(help="'blip' or a csv/json file")] = "blip",
    foundation: Annotated[str, typer.Option(help="folder with the captioner, or 'embedded'")] = "embedded",
    validation_segments: int = 1,
) -> None:
    """Prepare a folder in the layout of Wen 2018 (Purdue's download or a simulated subject)."""
    from mindvideo.data.wen2018 import prepare

    content: dict[str, Any] = dict(
        subject=subject, selection=selection, alpha=alpha, top_fraction=top_fraction, k=k, repeats=repeats, lag_s=lag_s,
        fps=fps, size=size, fit=fit, areas=areas, expect=expect, captions=captions, validation_segments=validation_segments,
    )  # fmt: skip
    if exclude is not None:
        content["exclude"] = exclude
    data = parse_recipe({"data": content}, "the command line").data
    captioner, captioner_name = None, ""
    if captions == "blip":
        from mindvideo.models.foundation import Foundation

        frozen = Foundation(foundation)
        frozen.require("captioner")
        captioner, captioner_name = frozen.caption, frozen.identity
    with _bars() as bar:
        prepare(raw, out, data, progress=bar("prepare"), captioner=captioner, captioner_name=captioner_name)
    _say(f"prepared store in {out}")


@prepare_app.command("hcp")
def prepare_hcp_command(
    raw: Path,
    out: Out,
    window_s: Annotated[float, typer.Option(help="recordings are averaged over this many seconds")] = 8.0,
) -> None:
    """Prepare HCP recordings, or HCP_visual_voxel.npz files, for pre-training."""
    from mindvideo.data.hcp import prepare_hcp

    with _bars() as bar:
        prepare_hcp(raw, out, window_s=window_s, progress=bar("hcp"))
    _say(f"prepared segments in {out}")


@prepare_app.command("run")
def prepare_run(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
    """Run the stage prepare of the study in RUN."""
    _run_stage("prepare", run_dir, settings)


@app.command()
def inspect(store: Path) -> None:
    """Print what a prepared store holds."""
    from mindvideo.data.store import Store

    for key, value in Store.open(store).summary().items():
        console.print(f"[bold]{key}[/bold]: {value}", highlight=False)


@app.command()
def export(
    store: Path, out: Path, frames: Annotated[bool, typer.Option("--frames", help="also the frames")] = False
) -> None:
    """Write a prepared store as plain arrays (npz)."""
    from mindvideo.data.store import Store

    Store.open(store).export_npz(out, frames=frames)
    _say(f"exported to {out}")


@foundation_app.command("train")
def foundation_train(
    out: Path,
    recipe: Annotated[str, typer.Option(help="'night' (2 cores) or 'gpu'")] = "night",
    part: Annotated[list[str] | None, typer.Option(help="only these parts, in this order")] = None,
    seed: int = 0,
) -> None:
    """Train the embedded kit on procedural films; a killed run goes on."""
    from mindvideo.foundation.card import write_cards
    from mindvideo.foundation.check import check_kit
    from mindvideo.foundation.train import PARTS, train_part

    for name in part or PARTS:
        with _bars() as bar:
            train_part(out, name, recipe, seed, bar(name))
        _say(f"{name}: trained, in {out}")
    if set(PARTS) <= {folder.parent.name for folder in (out / "work").glob("*/made.json")}:
        write_cards(out, check_kit(out))


@foundation_app.command("check")
def foundation_check(
    folder: Annotated[str, typer.Argument(help="a foundation folder; the shipped kit by default")] = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Measure every gate of a kit on fresh scenes; exits with 1 where one is missed."""
    import json

    from mindvideo.foundation.check import check_kit

    with _bars() as bar:
        gates = check_kit(folder, progress=bar("check"))
    if as_json:
        print(json.dumps(gates, indent=2))
    else:
        table = Table("gate", "found", "wanted", "")
        for gate in gates:
            table.add_row(
                gate["gate"], f"{gate['found']:.3f}", f"≥ {gate['wanted']}", "ok" if gate["passed"] else "[red]missed"
            )
        console.print(table)
    if not all(gate["passed"] for gate in gates):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: a user's error becomes one sentence and exit code 1, never a traceback."""
    try:
        app()
    except MindVideoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        print(f"error: {error.strerror} while writing {error.filename or 'a result'}; free space or choose another place, "
              "and run the same command again", file=sys.stderr)  # fmt: skip
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
