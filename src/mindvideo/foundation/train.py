"""Train the embedded kit on procedural films, part by part and round by round, restartable.

Every part is a small task for the one training loop. Films are drawn from their own seed and never show a held-out
combination.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mindvideo.config import Optimise
from mindvideo.errors import ModelError
from mindvideo.foundation import kit
from mindvideo.foundation.parts import BUILDERS
from mindvideo.foundation.pool import Pool, Progress
from mindvideo.foundation.rounds import (
    check_begun,
    check_ended,
    check_like_first,
    check_turn,
    note_begun,
    read_rounds,
    round_folder,
    round_seed,
    round_settings,
    write_rounds,
)
from mindvideo.train.loop import Batch, Draw, Metrics, train

PARTS = tuple(BUILDERS)


def _part(steps: int, batch_size: int, lr: float, **more: Any) -> Optimise:
    fixed: dict[str, Any] = dict(
        betas=(0.9, 0.98), weight_decay=0.02, clip_grad=1.0, ema_decay=0.999, checkpoint_every=500, log_every=50
    )
    return Optimise(steps=steps, batch_size=batch_size, lr=lr, warmup_steps=100, **{**fixed, **more})


RECIPES: dict[str, dict[str, Any]] = {
    "night": {
        "clips": 30_000,
        "vae": _part(4000, 32, 2e-3, weight_decay=0.0),
        "clip": _part(1500, 96, 1.5e-3),
        "image_classifier": _part(8000, 64, 1e-3),
        "clip_image": _part(900, 96, 7e-4),
        "video_classifier": _part(7500, 24, 7e-4),
        "clip_text": _part(2000, 64, 8e-4),
        "captioner": _part(1000, 48, 1e-3),
        "unet": _part(3800, 64, 1e-3, weight_decay=0.0, checkpoint_every=100),
        "vae_decoder": _part(9000, 8, 1e-3, weight_decay=0.0),
        "motion": _part(6000, 8, 6e-4, weight_decay=0.0, checkpoint_every=100),
    },
    "gpu": {
        "clips": 100_000,
        "vae": _part(30_000, 128, 1e-3, weight_decay=0.0),
        "clip": _part(12_000, 512, 1e-3),
        "image_classifier": _part(12_000, 256, 1e-3),
        "clip_image": _part(6000, 512, 7e-4),
        "video_classifier": _part(12_000, 128, 1e-3),
        "clip_text": _part(6000, 256, 8e-4),
        "captioner": _part(12_000, 256, 1e-3),
        "unet": _part(60_000, 256, 5e-4, weight_decay=0.0, ema_decay=0.9995),
        "vae_decoder": _part(30_000, 64, 1e-3, weight_decay=0.0),
        "motion": _part(30_000, 64, 4e-4, weight_decay=0.0, ema_decay=0.9995),
    },
}


class _Whole:
    """A part's task as the loop wants it: the loss of a whole batch is the only row."""

    def __init__(self, task: Any) -> None:
        self.task, self.parameters = task, task.parameters

    def sample(self, draw: Draw) -> Batch:
        return {"draw": draw}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        draw = batch["draw"]
        loss, metrics = self.task.loss(draw.step, 0, draw.rng)
        return loss[None], metrics


def train_part(
    out: Path,
    part: str,
    recipe: str | None = None,
    seed: int | None = None,
    progress: Progress | None = None,
    *,
    number: int = 1,
    changed: dict[str, Any] | None = None,
) -> None:
    """Train one part of the kit in ``out``, going on where a killed run stopped; a round that ended stays as it is.

    Parameters
    ----------
    out : Path
        The kit; made untrained first where it is missing. ``out/work`` keeps clips, states and curves.
    part : str
        One of ``PARTS``; a part needs the parts before it in that list that it starts from.
    recipe : {"night", "gpu"}, optional
        Sizes of the training; ``night``, or what the first round had.
    seed : int, optional
        0, or what the first round had.
    number : int
        Round 1 starts from the untrained part, or from the parts that it begins with. Every other starts a new schedule
        from the weights that the round before saved, with random numbers of its own.
    changed : dict, optional
        Settings in place of the recipe's, such as ``steps``, ``batch_size`` and ``lr``.

    Raises
    ------
    ModelError
        For an unknown part or recipe; films, a part or a round begun with another recipe, seed or settings; a round
        before which another has to come.
    SettingError
        For a value in ``changed`` that cannot be.
    """
    work, changed = out / "work", changed or {}
    if part not in PARTS:
        raise ModelError(f"expected a part of {PARTS}, found '{part}'")
    rounds = read_rounds(work / part)
    check_turn(work / part, rounds, number)
    first: dict[str, Any] = rounds[0] if number > 1 else {"recipe": "night", "seed": 0}
    recipe = str(recipe or first["recipe"])
    seed = int(first["seed"] if seed is None else seed)
    if recipe not in RECIPES:
        raise ModelError(f"expected a recipe of {tuple(RECIPES)}, found '{recipe}'")
    if number > 1:
        check_like_first(work / part, first, recipe, seed)
    chosen, folder = RECIPES[recipe], round_folder(work / part, number)
    settings = round_settings(chosen[part], changed, f"round {number} of {part}")
    begun: dict[str, Any] = {"recipe": recipe, "seed": seed, "settings": settings.model_dump(mode="json")}
    if number <= len(rounds):  # to save it again would undo what later rounds, and other parts, made of its weights
        check_ended(work / part, number, rounds, begun)
        return
    check_begun(folder, begun)
    if not (out / "unet" / "config.json").is_file():
        kit.build_kit(out, "kit", seed)
    note_begun(folder, begun)
    pool = Pool.open(work / "pool", chosen["clips"], seed, progress)
    own_seed = round_seed(seed, PARTS.index(part), number)
    torch.manual_seed(own_seed)  # heads and whatever else starts at random: alike in every process
    task, save = BUILDERS[part](out, pool, settings, progress, go_on=number > 1)
    train(_Whole(task), settings, folder, seed=own_seed, progress=progress)
    save()
    made = {**begun, "clips": chosen["clips"], **({"changed": changed} if changed else {})}
    write_rounds(work / part, [*rounds, made])
