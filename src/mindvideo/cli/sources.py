"""``mindvideo prepare fmriprep`` and ``mindvideo prepare published``: recordings of other laboratories."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mindvideo.cli.prepare import Repeats, Scheduler, Workers, pool_of, prepare_app, say_prepared
from mindvideo.cli.shared import Out, progress_bars
from mindvideo.config import parse_recipe

Foundation = Annotated[str, typer.Option(help="folder with the captioner, or 'embedded'")]
Validation = Annotated[int, typer.Option(help="the last training films are held out for choices")]


@prepare_app.command("fmriprep")
def prepare_fmriprep(
    derivatives: Annotated[Path, typer.Argument(help="fMRIPrep's outputs, with sub-*")],
    out: Out,
    stimuli: Annotated[Path, typer.Option(help="folder that the events' stim_file lie in")],
    task: Annotated[str, typer.Option(help="BIDS task label; * and ? stand for anything")],
    bids: Annotated[Path | None, typer.Option(help="raw BIDS data set, where it holds the events")] = None,
    subject: Annotated[
        str | None, typer.Option(help="BIDS subject label, as 01; needed where there are several")
    ] = None,
    test: Annotated[list[str] | None, typer.Option(help="a test stimulus, or 'most-repeated'; may be repeated")] = None,
    tr_s: Annotated[float | None, typer.Option(help="seconds between the store's scans; the recordings' TR")] = None,
    lag_s: Annotated[float, typer.Option(help="a film's first moment pairs with the scan this much later")] = 4.0,
    resample: Annotated[str, typer.Option(help="linear, nearest or mean: how volumes become scans")] = "linear",
    confounds: Annotated[
        list[str] | None, typer.Option(help="a confound column (* and ? allowed), or 'none'; may be repeated")
    ] = None,
    high_pass_hz: Annotated[float, typer.Option(help="cut-off of the high-pass filter; 0: none")] = 0.008,
    trim_start: Annotated[bool, typer.Option("--trim-start", help="drop scans a run began too late for")] = False,
    trim_end: Annotated[bool, typer.Option("--trim-end", help="drop scans a run was too short for")] = False,
    exclude: Annotated[list[str] | None, typer.Option(help="a run (sub-01_task-movie_run-2) or RUN:STIMULUS")] = None,
    stim_column: Annotated[str, typer.Option(help="column of the events that names the film")] = "stim_file",
    areas: Annotated[
        str | None, typer.Option(help="V1,V2,…, visual or cortex: all their voxels, instead of a selection by repeats")
    ] = None,
    selection: Annotated[
        str | None, typer.Option(help="paper, bonferroni, top_k (these need repeats) or all; paper without --areas")
    ] = None,
    alpha: float = 0.01,
    top_fraction: float = 0.5,
    k: int | None = None,
    repeats: Repeats = "average",
    fps: int = 3,
    size: int = 256,
    fit: str = "crop",
    captions: Annotated[str, typer.Option(help="'blip' or a csv/json file")] = "blip",
    foundation: Foundation = "embedded",
    validation_segments: Validation = 1,
    workers: Workers = None,
    scheduler: Scheduler = None,
) -> None:
    """Prepare one subject of fMRIPrep's CIFTI outputs (fsLR, 91k) with BIDS events."""
    from mindvideo.data.readers import prepare
    from mindvideo.data.readers.fmriprep import recording_tr
    from mindvideo.preparing import choose_captioner

    recordings: dict[str, Any] = dict(
        stimuli=stimuli, bids=bids, task=task, participant=subject, test=test or (), stim_column=stim_column,
        high_pass_hz=high_pass_hz or None, resample=resample, trim_start=trim_start, trim_end=trim_end, exclude=exclude or (),
    )  # fmt: skip
    if confounds is not None:
        recordings["confounds"] = [] if confounds == ["none"] else confounds
    content: dict[str, Any] = dict(
        source="fmriprep", fmriprep=recordings, lag_s=lag_s, fps=fps, size=size, fit=fit, areas=areas or "cortex",
        selection=selection or ("paper" if areas is None else "all"), alpha=alpha, top_fraction=top_fraction, k=k,
        captions=captions, validation_segments=validation_segments, repeats=repeats,
    )  # fmt: skip
    data = parse_recipe({"data": content}, "the command line").data
    tr = recording_tr(derivatives, data) if tr_s is None else tr_s
    data = parse_recipe({"data": {**content, "tr_s": tr}}, "the command line").data
    data, captioner, captioner_name = choose_captioner(data, foundation, derivatives)
    with pool_of(workers, scheduler) as pool, progress_bars() as bar:
        store = prepare(derivatives, out, data, bar("prepare"), captioner, captioner_name, pool)
    say_prepared(store)


@prepare_app.command("published")
def prepare_published(
    folder: Annotated[Path, typer.Argument(help="MinD-Video's preprocessed arrays or NeuroClips' tensors")],
    out: Out,
    subject: int = 1,
    size: Annotated[int | None, typer.Option(help="height and width of the kept frames; as published")] = None,
    fps: Annotated[int, typer.Option(help="frames per second of the published frames")] = 3,
    tr_s: Annotated[float, typer.Option(help="repetition time of the published fMRI")] = 2.0,
    lag_s: Annotated[float, typer.Option(help="lag that the publishers built in")] = 4.0,
    segment_scans: Annotated[int, typer.Option(help="scans per film, where the arrays do not say")] = 240,
    vertex: Annotated[Path | None, typer.Option(help="npy file with the cortical position of each voxel")] = None,
    repeats: Repeats = "average",
    captions: Annotated[str, typer.Option(help="'published', 'blip' or a csv/json file")] = "published",
    foundation: Foundation = "embedded",
    validation_segments: Validation = 1,
) -> None:
    """Prepare one subject of arrays that others prepared and published."""
    from mindvideo.data.readers import discover, prepare
    from mindvideo.preparing import choose_captioner

    content: dict[str, Any] = dict(
        source="published", subject=subject, repeats=repeats, fps=fps, tr_s=tr_s, lag_s=lag_s, captions=captions,
        published=dict(segment_scans=segment_scans, vertex=vertex), validation_segments=validation_segments,
    )  # fmt: skip
    data = parse_recipe({"data": content}, "the command line").data
    side = discover(folder, data).size if size is None else size
    data = parse_recipe({"data": {**content, "size": side}}, "the command line").data
    data, captioner, captioner_name = choose_captioner(data, foundation, folder)
    with progress_bars() as bar:
        store = prepare(folder, out, data, progress=bar("prepare"), captioner=captioner, captioner_name=captioner_name)
    say_prepared(store)
