"""``mindvideo convert``, ``export-model``, ``check``, ``reconstruct``, ``foundation check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from mindvideo.cli.shared import RecipeArgument, Set, app, console, progress_bars, run_stage, say
from mindvideo.config import load_recipe, read_setting, with_settings
from mindvideo.errors import SettingError

if TYPE_CHECKING:
    from mindvideo.config import Recipe

foundation_app = typer.Typer(no_args_is_help=True, help="The frozen parts a study stands on.")


@app.command()
def convert(
    release: Annotated[Path, typer.Argument(help="a released MinD-Video folder or a MinD-Vis checkpoint")],
    out: Annotated[Path, typer.Argument(help="new folder for safetensors")],
    num_voxels: Annotated[int | None, typer.Option(help="voxels, if others; positions are interpolated")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="a setting the release does not state")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="a setting of the release to leave out")] = None,
    foundation: Annotated[
        Path | None, typer.Option(help="folder with tokenizer and text_encoder, for negative null")
    ] = None,
) -> None:
    """Turn released weights into a folder for from_pretrained."""
    from mindvideo.generate.converted import convert as run

    overrides = dict(map(read_setting, settings or []))
    dropped = tuple(drop or ())
    for note in run(release, out, num_voxels=num_voxels, overrides=overrides, drop=dropped, foundation=foundation):
        say(note)
    say(f"converted to {out}")


@app.command("export-model")
def export_model(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="a study that is done up to evaluate")],
    out: Annotated[Path, typer.Argument(help="new folder for weights and card")],
    licence: Annotated[
        str | None, typer.Option("--license", help="of the weights, as the hub writes it; known for the embedded kit")
    ] = None,
) -> None:
    """Write a run's pipeline and a model card for the Hugging Face hub; nothing is sent."""
    from mindvideo.model_card import export_model as run

    console.print(f"card: {run(run_dir, out, licence)}", soft_wrap=True)
    say(f"nothing was sent; read the card, then 'hf upload OWNER/NAME {out} --private' would")


@app.command()
def check(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Option("--out", help="where the run would go")] = Path("runs"),
    settings: Set = None,
) -> None:
    """Say what is missing (then exit with 1), and what each stage will need here."""
    from mindvideo.needs import check_recipe

    found = check_recipe(load_recipe(recipe, settings), out)
    table = Table("stage", "memory GiB", "disk GiB", "what counts")
    for need in found.needs:
        memory = f"{need.memory_bytes / 2**30:.1f}"
        table.add_row(need.stage, memory, f"{need.disk_bytes / 2**30:.2f}", need.what)
    console.print(table)
    for line in found.lines:
        console.print(line, soft_wrap=True)
    for line in found.missing:
        console.print(f"missing: {line}", soft_wrap=True)
    if found.missing:
        raise typer.Exit(1)


@app.command()
def reconstruct(
    model: Annotated[Path, typer.Argument(metavar="RUN|MODEL", help="a run folder, or a pipeline folder")],
    recording: Annotated[
        list[str] | None,
        typer.Argument(help="what to make a film of: .dtseries.nii files, or a segment of the run's store"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="the film, as .mp4")] = None,
    fps: Annotated[float | None, typer.Option(min=1, max=60, help="frames per second, else as trained")] = None,
    num_frames: Annotated[int | None, typer.Option(min=1, help="frames per scan, instead of --fps")] = None,
    size: Annotated[int | None, typer.Option(help="height and width in pixels, else as trained")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="denoising steps")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0)] = None,
    negative: Annotated[str | None, typer.Option(help="train_mean, null or none")] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="clips at once")] = None,
    seed: Annotated[int | None, typer.Option(help="of a film's noise; 0 by default")] = None,
    first_volume: Annotated[int, typer.Option(min=0, help="volumes left out at the start")] = 0,
    scans: Annotated[int | None, typer.Option(min=1, help="volumes kept after that, else all")] = None,
    store: Annotated[Path | None, typer.Option(help="a prepared store with the model's voxels")] = None,
    settings: Set = None,
) -> None:
    """Test windows of RUN to video with their controls, or a recording to a film."""
    asked: dict[str, Any] = {"num_frames": num_frames, "size": size, "steps": steps, "guidance_scale": guidance_scale}
    asked |= {"negative": negative, "precision": precision, "batch_size": batch_size}
    if not recording:
        if out is not None or store is not None or first_volume or scans is not None or seed is not None:
            raise SettingError(
                "expected a recording with --out, --store, --first-volume, --scans and --seed, found none; a run's seed "
                "is --set seed=NUMBER"
            )
        if fps is not None:
            from mindvideo.data.store import open_stores
            from mindvideo.generate.film import frames_per_scan
            from mindvideo.study import Study

            prepared = open_stores(Study.open(model).recipe.data, model)[0]  # a recipe may leave the TR to recordings
            asked["num_frames"] = frames_per_scan(prepared.tr_s, fps, num_frames, 0)
        if steps is not None:
            _refuse_for_student(model, {"steps": steps}, settings)
        given = [f"reconstruct.{name}={value}" for name, value in asked.items() if value is not None]
        run_stage("reconstruct", model, given + (settings or []))
        return
    if out is None or out.suffix.lower() not in (".mp4", ".mkv", ".mov"):
        raise SettingError(f"expected --out FILM.mp4 with a recording, found {out}")
    if settings:
        raise SettingError("expected no --set with a recording, found some; use the options")
    asked |= {"fps": fps, "seed": seed or 0, "first_volume": first_volume, "scans": scans}
    _film(model, recording, out, asked, store)


def _refuse_for_student(model: Path, asked: dict[str, Any], settings: list[str] | None = None) -> None:
    recipe = _recipe_of(model)
    if recipe is None or with_settings(recipe, settings).distill is None:
        return
    for name in ("steps", "guidance_scale"):
        if asked.get(name) is not None:
            raise SettingError(
                f"expected no --{name.replace('_', '-')} with a run whose student samples in the steps that it was "
                "trained for, found it; leave it out, or drop the student (--set distill=null)"
            )


def _film(model: Path, recording: list[str], out: Path, asked: dict[str, Any], store: Path | None) -> None:
    """Write the film of a recording; ``asked`` holds the command's options."""
    from mindvideo import distributed
    from mindvideo.artefacts import require_intact
    from mindvideo.data.store import Store
    from mindvideo.generate.film import Film, FilmSettings, check_recorded, frames_per_scan, write_film
    from mindvideo.generate.pipeline import MindVideoPipeline
    from mindvideo.generate.recording import read_recorded, read_scans
    from mindvideo.precision import resolve_precision

    _refuse_for_student(model, asked)
    recipe = _recipe_of(model)
    folder = model if recipe is None else model / "model"
    if recipe is not None:
        require_intact(model, "reconstruct", below="model/")
    store = store or folder.parent / "prepare" / "store.zarr"
    first_volume, scans, fps = (asked.pop(name) for name in ("first_volume", "scans", "fps"))
    pipeline = MindVideoPipeline.from_pretrained(folder)
    pipeline.to(distributed.device())
    recorded = read_recorded(folder, store)
    pipeline = pipeline.of_person(recorded.person)
    check_recorded(pipeline, recorded)
    if len(recording) == 1 and not Path(recording[0]).exists() and store.is_dir():
        if recipe is not None:
            require_intact(model, "prepare", below=f"prepare/{store.name}/fmri/{recording[0]}/")
        fmri = Store.open(store).fmri(recording[0])
        fmri = fmri[first_volume : None if scans is None else first_volume + scans]
    else:
        fmri = read_scans([Path(name) for name in recording], recorded, first_volume, scans)
    defaults: dict[str, Any] = (
        {} if recipe is None else recipe.reconstruct.model_dump(include={"negative", "batch_size"})
    )
    precision = asked.pop("precision") or ("auto" if recipe is None else recipe.reconstruct.precision)
    count = frames_per_scan(recorded.tr_s, fps, asked.pop("num_frames"), pipeline.config.num_frames)
    given = {name: value for name, value in asked.items() if value is not None}
    if precision not in ("auto", "fp32", "bf16"):
        raise SettingError(f"expected --precision auto, fp32 or bf16, found '{precision}'")
    defaults["precision"] = resolve_precision(precision, pipeline.device)
    with progress_bars() as bar:
        film = Film(pipeline, fmri, FilmSettings(count, **(defaults | given)), bar("film"))
        write_film(film, out, recorded.tr_s)
    say(
        f"film of {len(fmri)} scans in {out}: {film.n_frames} frames at {count / recorded.tr_s:g} a second; its second 0 "
        f"is what was seen {recorded.lag_s:g} s before the first scan"
    )


def _recipe_of(model: Path) -> Recipe | None:
    if not (model / "recipe.yaml").is_file():
        return None
    from mindvideo.study import Study

    return Study.open(model).recipe


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
            wanted = f"{'≤' if gate['at_most'] else '≥'} {gate['wanted']}"
            table.add_row(gate["gate"], f"{gate['found']:.3f}", wanted, "ok" if gate["passed"] else "missed")
        console.print(table)
    if not all(gate["passed"] for gate in gates):
        raise typer.Exit(1)
