"""The table of stages, which everything else goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mindvideo.config import Recipe

Progress = Callable[[int, int, dict[str, Any]], None]
"""What a stage calls with (done, total, figures) while it works."""
Bars = Callable[[str], Progress]
"""Gives the progress of what is named."""
Say = Callable[[str], None]
"""Prints a line."""


class Steps:
    """Counts the steps of some work for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self.done = 0

    def add(self, count: int = 1, **figures: Any) -> None:
        """Count some more."""
        self.done += count
        if self._progress is not None and count:
            self._progress(self.done, self._total, figures)


STORE = "prepare/store.zarr"
"""The store; among what a stage ``opens``, each person's store."""
UNFINISHED = ".new"
"""What the name of a stage's folder ends in until the stage is complete."""


class StageContext(NamedTuple):
    """What a stage's ``run`` is given.

    Earlier stages left their results in ``run_dir``/STAGE; it writes its own to ``folder``, where it
    finds what an interrupted run left, and which is ``run_dir``/STAGE once complete.
    """

    recipe: Recipe
    run_dir: Path
    folder: Path
    progress: Progress | None = None

    @classmethod
    def of(cls, recipe: Recipe, run_dir: Path, stage: str, progress: Progress | None = None) -> StageContext:
        """Of a stage called by itself, which writes to ``RUN/STAGE``."""
        return cls(recipe, run_dir, run_dir / stage, progress)


@dataclass(frozen=True)
class Stage:
    """One stage of a study.

    Attributes
    ----------
    name : str
        Of its folder in the run, its section of the recipe and its command.
    module : str
        Where its ``run`` is.
    summary : str
        What it does, in one line.
    reads : tuple of str
        Dotted settings its result follows from.
    needs : tuple of str
        Stages its result follows from.
    opens : tuple of str
        What it reads of other stages; compared first with what was recorded when it was
        written. `STORE` stands for each person's store.
    foundation : str
        Parts of the foundation its result follows from: ``condition``, ``generation``, ``whole`` or none.
    writes : tuple of str
        Folders of its own that are moved beside it, as ``RUN/model``, when it is complete.
    parallel : bool
        Several processes carry it out together (``accelerate launch``).
    trains : bool
        It trains a model and keeps a log of it.
    example : str
        A setting that adds the stage, if it is optional.
    version : int
        Raised when its code gives another result for the same settings.
    """

    name: str
    module: str
    summary: str
    reads: tuple[str, ...]
    needs: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    foundation: str = ""
    writes: tuple[str, ...] = ()
    parallel: bool = False
    trains: bool = False
    example: str = ""
    version: int = 1

    @property
    def optional(self) -> bool:
        """Whether a study has it only if its recipe has a section of its name."""
        return bool(self.example)


_LOGS = tuple(f"{name}/metrics.jsonl" for name in ("pretrain", "adapt", "align", "animate", "cotrain", "distill"))

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "simulate",
            module="mindvideo.simulate.recordings",
            summary="simulate films, subjects and people for pre-training",
            reads=("simulate", "seed"),
            example="simulate.segment_s=240",
        ),
        Stage(
            "prepare",
            module="mindvideo.preparing",
            summary="recordings and stimuli to one prepared store",
            reads=("data", "pretrain.window_s", "pretrain.areas", "kit_on_real_films"),
            needs=("simulate",),
            opens=("simulate/",),
        ),
        Stage(
            "pretrain",
            module="mindvideo.train.pretrain",
            summary="masked brain modelling on many people",
            reads=("encoder", "pretrain", "seed"),
            needs=("prepare",),
            opens=("prepare/hcp.zarr",),
            parallel=True,
            trains=True,
        ),
        Stage(
            "adapt",
            module="mindvideo.train.adapt",
            summary="masked brain modelling on the subject",
            reads=("encoder", "adapt", "seed"),
            needs=("pretrain",),
            opens=(STORE, "pretrain/model"),
            parallel=True,
            trains=True,
        ),
        Stage(
            "align",
            module="mindvideo.train.align",
            summary="contrastive alignment with CLIP",
            reads=("encoder", "align", "seed"),
            needs=("adapt",),
            opens=(STORE, "pretrain/model", "adapt/model"),
            foundation="condition",
            parallel=True,
            trains=True,
            version=2,
        ),
        Stage(
            "animate",
            module="mindvideo.train.animate",
            summary="text-conditioned video tuning of the generator",
            reads=("animate", "seed"),
            needs=("prepare",),
            opens=(STORE,),
            foundation="generation",
            parallel=True,
            trains=True,
        ),
        Stage(
            "cotrain",
            module="mindvideo.train.cotrain",
            summary="encoder and generator tuned together",
            reads=("cotrain", "align", "seed"),
            needs=("align", "animate"),
            opens=(STORE, "align/model", "animate/model"),
            foundation="generation",
            parallel=True,
            trains=True,
        ),
        Stage(
            "distill",
            module="mindvideo.train.distill",
            summary="a student of the guided generator that samples in few steps",
            reads=("distill", "reconstruct.guidance_scale", "reconstruct.negative", "seed"),
            needs=("cotrain",),
            opens=(STORE, "cotrain/fmri_encoder", "cotrain/unet"),
            foundation="generation",
            parallel=True,
            trains=True,
            example="distill.sampler_steps=4",
        ),
        Stage(
            "reconstruct",
            module="mindvideo.generate.reconstruct",
            summary="test windows to video, with controls",
            reads=("reconstruct", "evaluate.block_s", "seed"),
            needs=("cotrain", "distill"),
            opens=(STORE, "cotrain/fmri_encoder", "cotrain/unet", "distill/unet"),
            foundation="generation",
            writes=("model",),
            parallel=True,
        ),
        Stage(
            "evaluate",
            module="mindvideo.evaluate.evaluation",
            summary="scores beside their controls",
            reads=("evaluate", "seed"),
            needs=("reconstruct",),
            opens=("simulate/truth", STORE, "reconstruct/"),
            foundation="whole",
            version=3,
        ),
        Stage(
            "explain",
            module="mindvideo.explain.maps",
            summary="attention and occlusion on the cortex",
            reads=("explain", "seed"),
            needs=("cotrain", "adapt", "align"),
            opens=("simulate/truth", STORE, "adapt/model", "align/model", "cotrain/fmri_encoder"),
            foundation="generation",
        ),
        Stage(
            "report",
            module="mindvideo.report.build",
            summary="a page to read",
            reads=("baselines", "baseline"),
            needs=("evaluate", "explain"),
            opens=(STORE, "reconstruct/", "evaluate/", "explain/", *_LOGS),
        ),
    )
}  # fmt: skip
