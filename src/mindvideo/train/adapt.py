"""Stage ``adapt``: the masked brain model goes on with the target subject's own training scans (supplement B)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train.loop import train
from mindvideo.train.pretrain import MaskedBrainTask, new_masked_brain
from mindvideo.train.sharding import whole_model
from mindvideo.train.stage import note_disabled, save_memory, save_model, stage_seed, training_device

STAGE = "adapt"


def subject_scans(store: Store, split: str) -> np.ndarray:
    """Every scan of a split, float32 (N, V): averaged over its runs, or training scans run by run where kept apart."""
    if split == "train" and store.keeps_repeats_apart:
        return np.concatenate([np.concatenate(list(store.repeats(segment))) for segment in store.segments(split)])
    return np.concatenate([store.fmri(segment) for segment in store.segments(split)])


def starting_model(recipe: Recipe, run_dir: Path, num_voxels: int) -> MaskedBrainModel:
    """The pre-trained model on this subject's voxels, or a new one where ``pretrain`` is switched off."""
    seed = stage_seed(recipe.seed, STAGE)
    if not recipe.pretrain.enabled:
        return new_masked_brain(recipe.encoder, num_voxels, recipe.adapt.mask_ratio, seed)
    torch.manual_seed(seed)  # matrices of single patches start anew
    return pretrained_model(recipe, run_dir, num_voxels)


def pretrained_model(recipe: Recipe, run_dir: Path, num_voxels: int) -> MaskedBrainModel:
    """The model of ``pretrain`` on this subject's voxels; positions of weights that were given are interpolated."""
    positions: Literal["recompute", "interpolate"] = "recompute" if recipe.pretrain.weights is None else "interpolate"
    pretrained = MaskedBrainModel.from_pretrained(run_dir / "pretrain" / "model")
    return MaskedBrainModel.from_other_voxels(pretrained, num_voxels, positions)


def run(context: StageContext) -> None:
    """Adapt the pre-trained model to the subject and write ``RUN/adapt/model``; validation segments only validate."""
    recipe, run_dir, folder, progress = context
    settings = recipe.adapt
    if not settings.enabled:
        note_disabled(folder)
        return
    seed = stage_seed(recipe.seed, STAGE)
    store = Store.open(run_dir / "prepare" / "store.zarr")
    training, held_out = subject_scans(store, "train"), subject_scans(store, "validation")
    scans = np.concatenate([training, held_out])
    model = starting_model(recipe, run_dir, store.n_voxels)
    device = training_device()
    save_memory(settings, model)
    task = MaskedBrainTask(
        model,
        lambda index: scans[index],
        np.arange(len(training)),
        np.arange(len(training), len(scans)),
        settings.batch_size,
        seed,
        device,
    )
    train(
        task,
        settings,
        folder,
        seed=seed,
        progress=progress,
        validate=task.validate,
        validate_every=settings.checkpoint_every,
        device=device,
    )
    save_model(whole_model(model), folder / "model")
