"""What each way of sampling costs in scores, and what it saves: ``python benchmarks/sampling.py --run RUN --windows 24``.

Every way samples the same test windows from the same noise, batch by batch in alternation, encoder and decoder included.
A score's difference to the reference is taken window by window; its 95 % interval is a bootstrap of whole blocks. The
reference is the paper's sampler in float32 with what leaves the output alone (fused attention, channels-last, condition
projected once). The plain way itself is timed on the first windows; how far its clips are from the reference's is printed.
Of a run with a student (``distill`` in its recipe) the student is a further way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from mindvideo.config import Evaluate, Recipe, as_sampled, read_recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.evaluate.aggregate import Design
from mindvideo.evaluate.evaluation import list_scores
from mindvideo.evaluate.measure import Features, Frames, extract_features
from mindvideo.evaluate.semantic import n_way_name
from mindvideo.evaluate.statistics import block_bootstrap_interval
from mindvideo.generate.clips import ClipMaker, choose_windows, number_blocks
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.reconstruct import assemble_pipeline
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators import video_unet
from mindvideo.models.generators.video_unet import VideoUNet
from sampling import PAPER_STEPS, explicit_attention

PLAIN = "plain: fp32, DDIM 200, explicit attention"
REFERENCE = "fp32, DDIM 200, fused attention"
STUDENT = "bf16, distilled student"
BATCH = 4
NEEDS = ("images", "embeddings")


def _way(scheduler: str, steps: int, **other: Any) -> dict[str, Any]:
    return dict(scheduler=scheduler, steps=steps, precision="bf16") | other


WAYS: dict[str, dict[str, Any]] = {
    PLAIN: _way("ddim", PAPER_STEPS, precision="fp32"),
    REFERENCE: _way("ddim", PAPER_STEPS, precision="fp32"),
    "fp32, DPM-Solver++ 10": _way("dpm++", 10, precision="fp32"),
    "bf16, DPM-Solver++ 25": _way("dpm++", 25),
    "bf16, DPM-Solver++ 15": _way("dpm++", 15),
    "bf16, UniPC 15": _way("unipc", 15),
    "bf16, DPM-Solver++ 10": _way("dpm++", 10),
    "bf16, DPM-Solver++ 6": _way("dpm++", 6),
    "bf16, DPM-Solver++ 4": _way("dpm++", 4),
    STUDENT: {"precision": "bf16"},
}
CONTROLLED = ("bf16, DPM-Solver++ 25", "bf16, DPM-Solver++ 10", STUDENT)
"""Ways sampled from another scene's fMRI as well."""


@contextmanager
def plainly(unet: VideoUNet) -> Iterator[None]:
    """Explicit attention, plain memory layout, and the condition projected at every step, within."""
    unet.to(memory_format=torch.contiguous_format)
    with (
        mock.patch.object(video_unet, "attend", explicit_attention),
        mock.patch.object(VideoUNet, "constant_condition", lambda _: nullcontext()),
    ):
        yield
    unet.to(memory_format=torch.channels_last)


@dataclass
class Sampled:
    """Clips of some of the chosen windows and the CPU seconds of each batch of them."""

    clips: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


class Sampler:
    """Samples batches of test windows of a finished run in any way.

    Parameters
    ----------
    keep : Path, optional
        Clips and seconds are kept here and read from here, so that a stopped run goes on.
    """

    def __init__(self, run_dir: Path, n_windows: int, keep: Path | None) -> None:
        own = read_recipe(run_dir / "recipe.yaml")
        self.recipe, student = own.model_copy(update={"distill": None}), as_sampled(own)
        self.store = Store.open(run_dir / "prepare" / "store.zarr")
        self.foundation = Foundation(self.recipe.foundation)

        def assemble(recipe: Recipe) -> MindVideoPipeline:
            pipeline = assemble_pipeline(recipe, run_dir, [self.store], self.foundation)
            pipeline.unet.to(memory_format=torch.channels_last)
            return pipeline

        self.pipeline = assemble(self.recipe)
        self.student = None if student.distill is None else (assemble(student), student)
        self.windows = Windows(self.store, "test", self.pipeline.fmri_encoder.config.window)
        self.chosen = choose_windows(self.windows.blocks(1), n_windows)
        self.block = number_blocks(self.recipe, self.windows)[self.chosen]
        self.keep = keep

    def maker(self, way: str) -> ClipMaker:
        """What makes clips in this way."""
        if way == STUDENT:
            assert self.student is not None
            pipeline, recipe = self.student
            settings = recipe.reconstruct.model_copy(update=WAYS[way])
            recipe = recipe.model_copy(update={"reconstruct": settings})
            return ClipMaker(recipe, self.store, self.windows, self.chosen, pipeline, self.foundation)
        settings = self.recipe.reconstruct.model_copy(update=WAYS[way])
        self.pipeline.scheduler = make_scheduler(dict(self.foundation.scheduler_config), settings.scheduler)
        recipe = self.recipe.model_copy(update={"reconstruct": settings})
        return ClipMaker(recipe, self.store, self.windows, self.chosen, self.pipeline, self.foundation)

    def sample(self, way: str, kind: str, positions: np.ndarray) -> tuple[np.ndarray, float]:
        """Clips uint8 (B, F, H, W, 3) of ``reconstruction`` or ``shuffled``, and CPU seconds."""
        name = f"{way} {kind} {len(self.chosen)} {positions[0]}".replace(" ", "_").replace(":", "")
        path = None if self.keep is None else self.keep / f"{name}.npz"
        if path is not None and path.is_file():
            with np.load(path) as kept:
                return kept["clips"], float(kept["seconds"])
        maker = self.maker(way)
        with ExitStack() as stack:
            if way == PLAIN:
                stack.enter_context(plainly(self.pipeline.unet))
            start = time.process_time()
            clips = maker.make(kind, positions)
            seconds = time.process_time() - start
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(path, clips=clips, seconds=seconds)
        return clips, seconds


def window_scores(
    clips: np.ndarray, truth: np.ndarray, features: Features, own: Features, settings: Evaluate
) -> dict[str, np.ndarray]:
    """The scores shown, float64 (n,) each, by the package's own definitions."""
    made, true = Frames(clips), Frames(truth)
    scores = {score.name: score for score in list_scores(Design(np.arange(len(truth)), settings))}
    names = {
        "SSIM": "ssim_rgb",
        "pixel correlation": "pixel_correlation",
        **{f"{n}-way": n_way_name("image", n, settings.top_k) for n in settings.n_ways},
        "CLIP similarity": "clip_similarity",
    }
    return {
        label: scores[name].per_window(*((made, true) if scores[name].needs == "frames" else (own, features)))
        for label, name in names.items()
    }


def measure_scores(
    run_dir: Path, n_windows: int, n_batches: int | None, only: str = "", keep: Path | None = None
) -> None:
    """Print a row for each way: CPU seconds a clip, times the plain speed, every score's difference, and its control.

    Parameters
    ----------
    n_batches : int, optional
        Sample only so many batches of `BATCH` windows; each is spread over the film.
    only : str
        Ways whose name contains this, besides the plain one and the reference.
    """
    sampler = Sampler(run_dir, n_windows, keep)
    ways = [name for name in WAYS if only in name or name in (PLAIN, REFERENCE)]
    if sampler.student is None:
        ways = [name for name in ways if name != STUDENT]
    made: dict[tuple[str, str], Sampled] = {}
    count = -(-len(sampler.chosen) // BATCH)
    batches = [np.arange(start, len(sampler.chosen), count) for start in range(count)][:n_batches]
    for number, positions in enumerate(batches):
        for way in ways:
            if way == PLAIN and number:  # the plain way takes too long for more than one batch
                continue
            for kind in ("reconstruction", "shuffled") if way in CONTROLLED else ("reconstruction",):
                clips, seconds = sampler.sample(way, kind, positions)
                entry = made.setdefault((way, kind), Sampled())
                entry.clips.append(clips)
                entry.seconds.append(seconds)
            print(f"batch {number + 1} of {len(batches)}: {way}: {seconds / len(positions):.2f} s a clip", flush=True)
    _print_table(sampler, np.concatenate(batches), ways, made)


def _print_table(sampler: Sampler, sampled: np.ndarray, ways: list[str], made: dict[tuple[str, str], Sampled]) -> None:
    settings, foundation, block = sampler.recipe.evaluate, sampler.foundation, sampler.block[sampled]
    truth = sampler.maker(REFERENCE).make("truth", sampled)
    features = extract_features(truth, foundation, NEEDS)

    def scores_of(way: str, kind: str) -> dict[str, np.ndarray]:
        clips = np.concatenate(made[way, kind].clips)
        return window_scores(clips, truth, features, extract_features(clips, foundation, NEEDS), settings)

    plain, exact = (made[way, "reconstruction"] for way in (PLAIN, REFERENCE))
    distance = np.abs(plain.clips[0].astype(int) - exact.clips[0])
    print(f"plain against reference, {len(distance)} clips: grey levels differ by {distance.mean():.4f} on average, "
          f"{distance.max()} at most; plain {plain.seconds[0] / len(distance):.2f} s a clip")  # fmt: skip
    reference = scores_of(REFERENCE, "reconstruction")
    print(f"{len(sampled)} windows in {len(np.unique(block))} blocks; {REFERENCE}: "
          + ", ".join(f"{label} {value.mean():.3f}" for label, value in reference.items()))  # fmt: skip
    print(f"| way | s a clip | times plain, first batch | {' | '.join(reference)} |")
    for way in ways[1:]:
        taken = made[way, "reconstruction"]
        cells = [way, f"{sum(taken.seconds) / len(sampled):.2f}", f"{plain.seconds[0] / taken.seconds[0]:.1f}"]
        for label, value in scores_of(way, "reconstruction").items():
            difference, rng = value - reference[label], np.random.default_rng(0)
            low, high = block_bootstrap_interval(difference, block, settings.bootstraps, rng)
            cells.append(f"{difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
        print(f"| {' | '.join(cells)} |", flush=True)
        if (way, "shuffled") in made:
            control = [f"{value.mean():.3f}" for value in scores_of(way, "shuffled").values()]
            print(f"| its control, another scene's fMRI | | | {' | '.join(control)} |", flush=True)
