"""``mindvideo prepare …``: recordings and stimuli to one prepared store; looking into a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mindvideo.cli.shared import Out, Set, app, console, progress_bars, run_stage, say
from mindvideo.config import parse_recipe

prepare_app = typer.Typer(no_args_is_help=True, help="Recordings and stimuli to one prepared store.")


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
    with progress_bars() as bar:
        prepare(raw, out, data, progress=bar("prepare"), captioner=captioner, captioner_name=captioner_name)
    say(f"prepared store in {out}")


@prepare_app.command("hcp")
def prepare_hcp_command(
    raw: Path,
    out: Out,
    window_s: Annotated[float, typer.Option(help="recordings are averaged over this many seconds")] = 8.0,
) -> None:
    """Prepare HCP recordings, or HCP_visual_voxel.npz files, for pre-training."""
    from mindvideo.data.hcp import prepare_hcp

    with progress_bars() as bar:
        prepare_hcp(raw, out, window_s=window_s, progress=bar("hcp"))
    say(f"prepared segments in {out}")


@prepare_app.command("run")
def prepare_run(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
    """Run the stage prepare of the study in RUN."""
    run_stage("prepare", run_dir, settings)


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
    say(f"exported to {out}")
