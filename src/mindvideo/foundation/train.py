"""Train the embedded kit on procedural films, part by part, restartable.

Every part is a small task for the one training loop. Films are drawn from their own seed and never show a held-out
combination.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindvideo.config import Optimise
from mindvideo.errors import ModelError
from mindvideo.foundation import kit
from mindvideo.foundation.parts import BUILDERS
from mindvideo.foundation.pool import Pool, Progress, check_note
from mindvideo.train.loop import train

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
        "captioner": _part(1000, 48, 1e-3),
        "unet": _part(3800, 64, 1e-3, weight_decay=0.0, checkpoint_every=100),
        "vae_decoder": _part(1200, 32, 1e-3, weight_decay=0.0),
        "motion": _part(6000, 8, 6e-4, weight_decay=0.0, checkpoint_every=100),
    },
    "gpu": {
        "clips": 100_000,
        "vae": _part(30_000, 128, 1e-3, weight_decay=0.0),
        "clip": _part(12_000, 512, 1e-3),
        "image_classifier": _part(12_000, 256, 1e-3),
        "clip_image": _part(6000, 512, 7e-4),
        "video_classifier": _part(12_000, 128, 1e-3),
        "captioner": _part(12_000, 256, 1e-3),
        "unet": _part(60_000, 256, 5e-4, weight_decay=0.0, ema_decay=0.9995),
        "vae_decoder": _part(10_000, 128, 5e-4, weight_decay=0.0),
        "motion": _part(30_000, 64, 4e-4, weight_decay=0.0, ema_decay=0.9995),
    },
}


def train_part(out: Path, part: str, recipe: str = "night", seed: int = 0, progress: Progress | None = None) -> None:
    """Train one part of the kit in ``out``, going on where a killed run stopped.

    Parameters
    ----------
    out : Path
        The kit; made untrained first where it is missing. ``out/work`` keeps clips, states and curves.
    part : str
        One of ``PARTS``; a part needs the parts before it in that list that it starts from.
    recipe : {"night", "gpu"}
        Sizes of the training.

    Raises
    ------
    ModelError
        For an unknown part or recipe, or films or a part begun with another recipe, seed or settings.
    """
    if part not in PARTS or recipe not in RECIPES:
        raise ModelError(f"expected a part of {PARTS} and a recipe of {tuple(RECIPES)}, found '{part}' and '{recipe}'")
    if not (out / "unet" / "config.json").is_file():
        kit.build_kit(out, "kit", seed)
    chosen = RECIPES[recipe]
    settings: Optimise = chosen[part]
    work = out / "work"
    begun: dict[str, Any] = {"recipe": recipe, "seed": seed, "settings": settings.model_dump(mode="json")}
    _begin(work / part, begun)
    pool = Pool.open(work / "pool", chosen["clips"], seed, progress)
    task, save = BUILDERS[part](out, pool, settings, progress)
    train(task, settings, work / part, seed=seed * 1000 + PARTS.index(part), progress=progress)
    save()
    made = {"part": part, **begun, "clips": chosen["clips"]}
    (work / part / "made.json").write_text(json.dumps(made, indent=2))


def _flat(note: dict[str, Any]) -> dict[str, Any]:
    return {"recipe": note["recipe"], "seed": note["seed"], **note["settings"]}


def _begin(folder: Path, begun: dict[str, Any]) -> None:
    """Note what a part is trained with beside its state, or refuse a state that was begun otherwise."""
    note = folder / "begun.json"
    if (folder / "state").is_dir() or (folder / "state.old").is_dir():
        known = next((path for path in (note, folder / "made.json") if path.is_file()), None)
        check_note(folder, _flat(begun), None if known is None else _flat(json.loads(known.read_text())))
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(begun))
