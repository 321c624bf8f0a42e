"""Masked brain models for `test_sharding`; as a program, one of several processes that train them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from shared_tasks import CPU, losses, optimise, telling_a_lost_partner

from mindvideo import distributed
from mindvideo.config import Optimise
from mindvideo.errors import TrainingError
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.train.loop import train
from mindvideo.train.pretrain import MaskedBrainTask
from mindvideo.train.sharding import full_model
from mindvideo.train.stage import save_memory, save_model

SETTINGS = {
    "saving": {"gradient_checkpointing": True, "clip_grad": 0.3},
    "plain": {"clip_grad": None},  # clipped gradients would hide a wrong scale
    "bf16": {"precision": "bf16", "clip_grad": None},
}
SIZES = {"patch_size": 5, "embed_dim": 10, "depth": 2, "num_heads": 2, "decoder_embed_dim": 6, "decoder_depth": 1,
         "decoder_num_heads": 3, "mask_ratio": 0.5, "mlp_ratio": 1.5}  # fmt: skip


def task(settings: Optimise, patch_weights: str = "shared", broken: int | None = None) -> MaskedBrainTask:
    """Weights of 5, 6, 7, 10 ... rows, so that not all are halved evenly; scan ``broken`` is NaN from the third batch."""
    torch.manual_seed(2)
    model = MaskedBrainModel(23, patch_weights=patch_weights, **SIZES)
    scans = np.random.default_rng(5).standard_normal((13, 23)).astype(np.float32)
    n_batches = 0

    def take(index: np.ndarray) -> np.ndarray:
        nonlocal n_batches
        n_batches += 1
        found = scans[index]
        if broken is not None and n_batches > 3:  # the first is the training mean
            found[index == broken] = np.nan
        return found

    save_memory(settings, model)
    return MaskedBrainTask(model, take, np.arange(10), np.arange(10, 13), 0, CPU)


def fit(name: str, folder: Path, **changes: object) -> None:
    settings = optimise(**(SETTINGS[name] | changes))
    job = task(settings, "per_patch" if name == "saving" else "shared")
    train(job, settings, folder / name, seed=6, validate=job.validate)
    save_model(full_model(job.model), folder / name / "model")
    if distributed.uses_fsdp():
        held = {"rank": distributed.rank(), "bytes": own_bytes(job.parameters()), "class": type(job.model).__name__}
        (folder / f"{name}_{distributed.rank()}.json").write_text(json.dumps(held))


def own_bytes(parameters: dict[str, torch.nn.Parameter]) -> int:
    """Bytes of the weights that this process holds."""
    return sum(parameter.to_local().nbytes for parameter in parameters.values())  # type: ignore[attr-defined]


def main() -> None:
    """``split_tasks.py FOLDER``: every setting, then one whose scan 7 is broken."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    distributed.init_process_group()
    with telling_a_lost_partner():
        for name in SETTINGS:
            fit(name, folder)
    stop_at_broken(folder)


def stop_at_broken(folder: Path) -> None:
    """Train on a broken scan until that stops it, then on whole ones for as many steps; note what is told and left."""
    settings = optimise(steps=40, accumulate=1, clip_grad=None, ema_decay=None, schedule="constant")
    job = task(settings, broken=7)
    try:
        train(job, settings, folder / "broken", seed=6)
    except TrainingError as error:
        n_steps = len(losses(folder / "broken"))
        untroubled = task(settings)
        train(untroubled, settings.model_copy(update={"steps": n_steps}), folder / "untroubled", seed=6)
        parts = zip(job.parameters().values(), untroubled.parameters().values(), strict=True)
        is_left = all(torch.equal(mine.full_tensor(), other.full_tensor()) for mine, other in parts)
        told = {"error": str(error), "n_steps": n_steps, "is_left": is_left}
        (folder / f"error_{distributed.rank()}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
