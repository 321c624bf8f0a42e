"""Stage ``adapt``: the masked brain model on the subjects' training scans (supplement B)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from mindvideo import distributed
from mindvideo.config import Recipe
from mindvideo.data.store import open_stores
from mindvideo.data.windows import stack_scans
from mindvideo.models.encoders import load_masked_brain, masked_brain_of, new_masked_brain
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train.pretrain import MaskedBrainTask, fit_scale, train_masked_brain
from mindvideo.train.stage import note_disabled, save_memory, stage_seed
from mindvideo.voxel_layout import VoxelLayout

STAGE = "adapt"


def starting_model(
    recipe: Recipe, run_dir: Path, layouts: Sequence[VoxelLayout], scans: Sequence[np.ndarray]
) -> MaskedBrainModel:
    """The pre-trained model for these people's training scans (N, V), or a new one."""
    torch.manual_seed(stage_seed(recipe.seed, STAGE))
    if recipe.pretrain.enabled:  # matrices of single patches start anew
        return pretrained_model(recipe, run_dir, layouts, scans)
    architecture, ratio = recipe.encoder.model_dump(), recipe.adapt.mask_ratio
    return new_masked_brain(recipe.align.encoder, layouts, architecture, mask_ratio=ratio, **fit_scale(*scans))


def pretrained_model(
    recipe: Recipe, run_dir: Path, layouts: Sequence[VoxelLayout], scans: Sequence[np.ndarray]
) -> MaskedBrainModel:
    """The model of ``pretrain`` for these people's voxels, with the scale of their training scans (N, V).

    Positions of given weights (``pretrain.weights``) are interpolated.
    """
    positions: Literal["recompute", "interpolate"] = "recompute" if recipe.pretrain.weights is None else "interpolate"
    pretrained = load_masked_brain(run_dir / "pretrain" / "model", recipe.align.encoder)
    return masked_brain_of(pretrained, layouts, positions, **fit_scale(*scans))


def run(context: StageContext) -> None:
    """Adapt the pre-trained model to the subjects; write ``RUN/adapt/model``."""
    recipe, run_dir, folder, _ = context
    settings = recipe.adapt
    if not settings.enabled:
        note_disabled(folder)
        return
    stores = open_stores(recipe.data, run_dir)
    splits = [split for split in ("train", "validation") if stores[0].segments(split)]
    scans, own = stack_scans([(store, split) for split in splits for store in stores])
    training = own[: len(stores)]
    rows = np.split(np.arange(len(scans)), [sum(map(len, training))])
    model = starting_model(recipe, run_dir, [store.layout for store in stores], training)
    seed, person = stage_seed(recipe.seed, STAGE), None
    if len(stores) > 1:
        person = np.concatenate([np.full(len(part), at % len(stores)) for at, part in enumerate(own)])
    save_memory(settings, model)
    task = MaskedBrainTask(model, lambda index: scans[index], rows[0], rows[1], seed, distributed.device(), person)
    train_masked_brain(context, task, settings)
