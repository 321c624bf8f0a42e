"""Anyone's results scored like our own: clips, controls that need no fMRI, files."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mindvideo import distributed
from mindvideo.config import Recipe
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.aggregate import Design
from mindvideo.evaluate.evaluation import evaluate_clips
from mindvideo.evaluate.measure import is_shipped, list_missing
from mindvideo.evaluate.results import Clips, align_clips, pair_clips, read_clips, split_side_by_side
from mindvideo.evaluate.score import MAIN, NETWORKS, Evaluation
from mindvideo.evaluate.semantic import refuse_ways
from mindvideo.evaluate.tables import write_evaluation
from mindvideo.models.foundation import Foundation
from mindvideo.stages import Progress, Say

GREY = 128
HOW_TO_GET_NETWORKS = (
    "it needs a frozen network; give --foundation FOLDER with Hugging Face folders image_classifier "
    "(google/vit-base-patch16-224), video_classifier (MCG-NJU/videomae-base-finetuned-kinetics), image_encoder, "
    "text_encoder and tokenizer (openai/clip-vit-large-patch14), captioner (Salesforce/blip-image-captioning-base)"
)
SHIPPED_KIT = "the shipped kit's networks know drawn scenes only: of films of anything else their scores mean nothing"


def deal_to_other_blocks(block: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """A random order in which no window stays in its block; None with too few blocks."""
    names, sizes = np.unique(block, return_counts=True)
    longest = int(sizes.max())
    if len(names) < 2 or 2 * longest > len(block):
        return None
    rounds = np.concatenate([np.flatnonzero(block == name) for name in rng.permutation(names)])
    shift = int(rng.integers(longest, len(block) - longest + 1))
    order = np.empty(len(block), dtype=np.int64)
    order[rounds] = np.roll(rounds, shift)
    return order


def make_controls(clips: np.ndarray, truth: np.ndarray, block: np.ndarray, seed: int) -> dict[str, Any]:
    """Controls that need no fMRI, by the names of `mindvideo.clip_sets.CLIP_SETS`.

    ``shuffled_pairing`` is left out where there are too few blocks.
    """
    order = deal_to_other_blocks(block, np.random.default_rng([seed, 1]))
    mean = np.round(np.mean([clip.mean(axis=0, dtype=np.float64) for clip in truth], axis=0)).astype(np.uint8)
    controls: dict[str, Any] = {} if order is None else {"shuffled_pairing": clips[order]}
    controls["mean_truth_frame"] = np.broadcast_to(mean, truth.shape)
    controls["grey"] = np.broadcast_to(np.uint8(GREY), truth.shape)
    return controls


@dataclass(frozen=True)
class Asked:
    """Clips to score against true ones, or side-by-side GIFs against themselves.

    Attributes
    ----------
    clips, reference : Path
        See `results.read_clips`. Without a reference, films with the truth on the left.
    out : Path
        A folder that does not exist yet, is empty, or holds an evaluation, which is replaced.
    foundation : Path or str, optional
        What scores with frozen networks need; those it lacks are left out.
    block_clips : int
        Clips in natural order that are permuted and resampled together: 10 clips of 2 s are 20 s.
    size, fit
        See `results.align_clips`.
    """

    clips: Path
    reference: Path | None
    out: Path
    recipe: Recipe
    foundation: Path | str | None = None
    block_clips: int = 10
    size: int | None = None
    fit: Literal["stretch", "crop"] | None = None


def evaluate_results(asked: Asked, say: Say = print, progress: Progress | None = None) -> Evaluation:
    """Score what is asked for, and say what was cut and changed."""
    recipe = asked.recipe
    out = asked.out
    block_clips = asked.block_clips
    foundation = asked.foundation
    if block_clips < 1:
        raise SettingError(f"expected blocks of at least one clip, found {block_clips}")
    _check_out(out)
    ours, theirs = pair_clips(*_read_pair(asked.clips, asked.reference))
    predicted, truth, changed = align_clips(ours, theirs, asked.size, asked.fit)
    notes = [*dict.fromkeys([*ours.notes, *theirs.notes]), *changed]
    for note in notes:
        say(note)
    block = np.arange(len(truth)) // block_clips
    controls = make_controls(predicted, truth, block, recipe.seed)
    networks = None if foundation is None else Foundation(foundation, distributed.device())
    without = dict.fromkeys(NETWORKS, HOW_TO_GET_NETWORKS)
    if networks is not None:
        without = list_missing(networks, recipe.evaluate, list(NETWORKS))
        for need, part in (("images", "image_classifier"), ("clips", "video_classifier")):
            if need not in without:
                refuse_ways(recipe.evaluate, part, networks.class_count(part))
        if is_shipped(networks):
            say(SHIPPED_KIT)
            notes.append(SHIPPED_KIT)
    left_out = {}
    if "shuffled_pairing" not in controls:
        left_out["shuffled_pairing"] = (
            f"{len(truth)} clips are fewer than two blocks of {block_clips}; make blocks smaller"
        )
    design = Design(block, recipe.evaluate, recipe.seed, scene=block if len(np.unique(block)) > 1 else None)
    evaluation = evaluate_clips(
        {MAIN: predicted, **controls},
        truth,
        networks,
        design,
        without=without,
        cache_dir=out / "features",
        progress=progress,
    )
    about = {
        "clips": str(asked.clips),
        "reference": str(asked.reference) if asked.reference is not None else "left halves",
        "notes": notes,
        "frames": list(truth.shape[1:4]),
        "block_clips": block_clips,
        "settings": recipe.evaluate.model_dump(mode="json", exclude={"block_s"}),
        "seed": recipe.seed,
        "left_out": left_out,
    }
    windows = [{"segment": name, "scan": i, "scene": int(block[i])} for i, name in enumerate(ours.names)]
    write_evaluation(evaluation, out, windows, block, about)
    shutil.rmtree(out / "features", ignore_errors=True)
    return evaluation


def _read_pair(clips: Path, reference: Path | None) -> tuple[Clips, Clips]:
    ours = read_clips(clips)
    if reference is not None:
        return ours, read_clips(reference)
    if clips.is_file() or not any(path.suffix.lower() == ".gif" for path in clips.iterdir()):
        raise DataError(
            f"expected side-by-side GIFs in {clips} where there is no reference, found other clips; give the true ones "
            "with --reference TRUTH"
        )
    truth, reconstruction = split_side_by_side(ours)
    return reconstruction, truth


def _check_out(out: Path) -> None:
    # a run that was stopped leaves its features, which the next one uses
    is_ours = not out.exists() or (out.is_dir() and {path.name for path in out.iterdir()} <= {"features"})
    if not is_ours and not (out / "evaluation.json").is_file():
        raise DataError(
            f"expected an empty folder or an earlier evaluation at {out}, found other files; give another --out"
        )
