"""``mindvideo prepare …``: recordings and stimuli to one prepared store; looking into a store."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from mindvideo.cli.shared import Out, Set, app, console, progress_bars, run_stage, say
from mindvideo.config import parse_recipe
from mindvideo.data.pool import MOST_WORKERS, local_workers, open_pool
from mindvideo.data.store import Store

Workers = Annotated[
    int | None, typer.Option(min=1, help=f"local threads for runs and films; one a core, at most {MOST_WORKERS}")
]
Scheduler = Annotated[
    str | None, typer.Option(help="address of a dask scheduler, whose workers see the recordings under the same paths")
]
Repeats = Annotated[
    str, typer.Option(help="average, or separate: every recording of a training film gives windows of its own")
]

prepare_app = typer.Typer(no_args_is_help=True, help="Recordings and stimuli to one prepared store.")


def pool_of(workers: int | None, scheduler: str | None) -> AbstractContextManager[Any]:
    """The pool of workers that the options ask for: so many threads here, or a dask cluster's."""
    return open_pool(workers or (1 if scheduler else local_workers()), scheduler)


def say_prepared(store: Store) -> None:
    """Say where the store is and what was left out of it."""
    say(f"prepared store in {store.path}")
    for line in store.remarks:
        say(line)


@prepare_app.command("wen2018")
def prepare_wen2018(
    raw: Annotated[Path, typer.Argument(help="folder with stimuli/ and subjectN/")],
    out: Out,
    subject: int = 1,
    selection: Annotated[
        str | None,
        typer.Option(
            help="paper (Bonferroni, then the most significant part), bonferroni, top_k, or all; paper, "
            "or all where areas are given"
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="level of the Bonferroni correction")] = 0.01,
    top_fraction: Annotated[float, typer.Option(help="part of the significant voxels that 'paper' keeps")] = 0.5,
    k: Annotated[int | None, typer.Option(help="voxels that 'top_k' keeps")] = None,
    repeats: Repeats = "average",
    lag_s: Annotated[float, typer.Option(help="a film's first moment pairs with the volume this much later")] = 4.0,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="a run (subject3:test2_9) or segment (subject3:test2) left out, or none; may be repeated. Left "
            "out when not given: subject3:test2_9, which starts about 10 s late"
        ),
    ] = None,
    fps: Annotated[int, typer.Option(help="frames kept per second of film, up to 30")] = 3,
    size: Annotated[int, typer.Option(help="height and width of the kept frames")] = 256,
    fit: Annotated[str, typer.Option(help="crop, stretch or letterbox: how frames become square")] = "crop",
    areas: Annotated[
        str | None,
        typer.Option(help="V1,V2,…, visual or cortex: all voxels of these areas, instead of a selection by repeats"),
    ] = None,
    expect: Annotated[str | None, typer.Option(help="'wen2018' insists on 18 + 5 segments with 2 and 10 runs")] = None,
    captions: Annotated[str, typer.Option(help="'blip' or a csv/json file")] = "blip",
    foundation: Annotated[str, typer.Option(help="folder with the captioner, or 'embedded'")] = "embedded",
    validation_segments: Annotated[int, typer.Option(help="the last training films are held out for choices")] = 1,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Prepare a folder in the layout of Wen 2018 (Purdue's download or a simulated subject)."""
    from mindvideo.data.readers import prepare
    from mindvideo.preparing import choose_captioner

    content: dict[str, Any] = dict(
        subject=subject, alpha=alpha, top_fraction=top_fraction, k=k, repeats=repeats, lag_s=lag_s, fps=fps, size=size,
        fit=fit, expect=expect, captions=captions, validation_segments=validation_segments,
        selection=selection or ("paper" if areas is None else "all"), areas=areas or "cortex",
    )  # fmt: skip
    if exclude is not None:
        content["exclude"] = [] if exclude == ["none"] else exclude
    data = parse_recipe({"data": content}, "the command line").data
    data, captioner, captioner_name = choose_captioner(data, foundation, raw)
    with pool_of(workers, scheduler) as pool, progress_bars() as bar:
        store = prepare(raw, out, data, bar("prepare"), captioner, captioner_name, pool)
    say_prepared(store)


@prepare_app.command("hcp")
def prepare_hcp_command(
    raw: Path,
    out: Out,
    window_s: Annotated[float, typer.Option(help="recordings are averaged over this many seconds")] = 8.0,
    areas: Annotated[str, typer.Option(help="areas whose vertices are kept, in hierarchy order")] = "V1,V2,V3,V4",
) -> None:
    """Prepare HCP recordings, or HCP_visual_voxel.npz files, for pre-training."""
    from mindvideo.data.readers.hcp import prepare_hcp

    with progress_bars() as bar:
        remarks = prepare_hcp(raw, out, window_s=window_s, areas=areas.split(","), progress=bar("hcp"))
    say(f"prepared segments in {out}")
    for line in remarks:
        say(line)


@prepare_app.command("run")
def prepare_run(run_dir: Annotated[Path, typer.Argument(metavar="RUN")], settings: Set = None) -> None:
    """Run the stage prepare of the study in RUN."""
    run_stage("prepare", run_dir, settings)


@app.command()
def inspect(
    store: Path,
    out: Annotated[
        Path | None, typer.Option(help="folder for the page and its pictures; STORE_inspect beside the store")
    ] = None,
) -> None:
    """Print what a prepared store holds, and write a page with pictures of it."""
    from mindvideo.report.store_page import describe_store, write_page

    opened = Store.open(store)
    sections = describe_store(opened)
    for title, rows in sections.items():
        console.print(title, style="bold")
        for key, value in rows.items():
            console.print(f"  {key}: {value}", soft_wrap=True)
    page = write_page(opened, sections, out or store.resolve().with_name(f"{store.resolve().stem}_inspect"))
    console.print(f"page: {page}", soft_wrap=True)


@app.command()
def export(
    store: Path, out: Path, frames: Annotated[bool, typer.Option("--frames", help="also the frames")] = False
) -> None:
    """Write a prepared store as plain arrays (npz): fmri_train, fmri_test, vertex, and with --frames the frames."""
    Store.open(store).export_npz(out, frames=frames)
    say(f"exported to {out}")
