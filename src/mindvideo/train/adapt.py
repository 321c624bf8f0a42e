"""Stage ``adapt``: the masked brain model goes on with the target subject's own training scans (supplement B)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.models.encoders import load_masked_brain, masked_brain_of, new_masked_brain
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train.pretrain import fit_scale, train_masked_brain
from mindvideo.train.stage import note_disabled, stage_seed
from mindvideo.voxel_layout import VoxelLayout

STAGE = "adapt"


def subject_scans(store: Store, split: str) -> np.ndarray:
    """Every scan of a split, float32 (N, V): averaged over its runs, or training scans run by run where kept apart."""
    if split == "train" and store.keeps_repeats_apart:
        return np.concatenate([np.concatenate(list(store.repeats(segment))) for segment in store.segments(split)])
    return np.concatenate([store.fmri(segment) for segment in store.segments(split)])


def starting_model(recipe: Recipe, run_dir: Path, layout: VoxelLayout, scans: np.ndarray) -> MaskedBrainModel:
    """The pre-trained model on the subject's training scans (N, V), or a new one where ``pretrain`` is switched off."""
    torch.manual_seed(stage_seed(recipe.seed, STAGE))
    if recipe.pretrain.enabled:  # matrices of single patches start anew
        return pretrained_model(recipe, run_dir, layout, scans)
    architecture, ratio = recipe.encoder.model_dump(), recipe.adapt.mask_ratio
    return new_masked_brain(recipe.align.encoder, [layout], architecture, mask_ratio=ratio, **fit_scale(scans))


def pretrained_model(recipe: Recipe, run_dir: Path, layout: VoxelLayout, scans: np.ndarray) -> MaskedBrainModel:
    """The model of ``pretrain`` on this subject's voxels, with the scale of the subject's training scans (N, V).

    Positions of weights that were given are interpolated.
    """
    positions: Literal["recompute", "interpolate"] = "recompute" if recipe.pretrain.weights is None else "interpolate"
    pretrained = load_masked_brain(run_dir / "pretrain" / "model", recipe.align.encoder)
    return masked_brain_of(pretrained, [layout], positions, **fit_scale(scans))


def run(context: StageContext) -> None:
    """Adapt the pre-trained model to the subject and write ``RUN/adapt/model``; validation segments only validate."""
    recipe, run_dir, folder, progress = context
    settings = recipe.adapt
    if not settings.enabled:
        note_disabled(folder)
        return
    store = Store.open(run_dir / "prepare" / "store.zarr")
    training = subject_scans(store, "train")
    scans = np.concatenate([training, *(store.fmri(name) for name in store.segments("validation"))])
    rows = np.split(np.arange(len(scans)), [len(training)])
    model = starting_model(recipe, run_dir, store.layout, training)
    seed = stage_seed(recipe.seed, STAGE)
    train_masked_brain(model, lambda index: scans[index], (rows[0], rows[1]), settings, folder, seed, progress)
