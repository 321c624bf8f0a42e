"""Train the embedded kit on procedural films, part by part, restartable.

Every part is a small task for the one training loop. Films are drawn from their own seed and never show a held-out
combination.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import (
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from mindvideo.config import Optimise
from mindvideo.errors import ModelError
from mindvideo.foundation import kit
from mindvideo.foundation.pool import Pool, Progress, encode_pool, to_pixels
from mindvideo.foundation.tasks import (
    CaptionerTask,
    ClassifierTask,
    ClipTask,
    UnetTask,
    VaeTask,
    start_from_images,
    tokenize,
)
from mindvideo.train.loop import train

PARTS = ("vae", "clip", "image_classifier", "video_classifier", "captioner", "unet")


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
        "image_classifier": _part(3000, 64, 1e-3),
        "video_classifier": _part(1500, 24, 7e-4),
        "captioner": _part(1500, 48, 1e-3),
        "unet": _part(3800, 64, 1e-3, weight_decay=0.0, checkpoint_every=100),
    },
    "gpu": {
        "clips": 100_000,
        "vae": _part(30_000, 128, 1e-3, weight_decay=0.0),
        "clip": _part(12_000, 512, 1e-3),
        "image_classifier": _part(12_000, 256, 1e-3),
        "video_classifier": _part(12_000, 128, 1e-3),
        "captioner": _part(12_000, 256, 1e-3),
        "unet": _part(60_000, 256, 5e-4, weight_decay=0.0, ema_decay=0.9995),
    },
}


def _save(part: Any, folder: Path, half: bool = True) -> None:
    """Write a part in half precision beside its place, then rename; other files of the folder stay."""
    beside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    if folder.exists():
        shutil.copytree(folder, beside)
    (part.half() if half else part).save_pretrained(beside)
    config = json.loads((beside / "config.json").read_text())
    config.pop("_name_or_path", None)  # where it was trained is nobody's business
    (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    beside.rename(folder)
    part.float()


def _fit_scaling_factor(vae: AutoencoderKL, pool: Pool) -> None:
    with torch.inference_mode():
        latents = vae.encode(to_pixels(np.asarray(pool.frames[:256, 0]))).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))


def train_part(out: Path, part: str, recipe: str = "night", seed: int = 0, progress: Progress | None = None) -> None:
    """Train one part of the kit in ``out``, going on where a killed run stopped.

    Parameters
    ----------
    out : Path
        The kit; made untrained first where it is missing. ``out/work`` keeps clips, states and curves.
    part : str
        One of ``PARTS``; ``unet`` needs a trained ``vae`` and ``clip``.
    recipe : {"night", "gpu"}
        Sizes of the training.

    Raises
    ------
    ModelError
        For an unknown part or recipe.
    """
    if part not in PARTS or recipe not in RECIPES:
        raise ModelError(f"expected a part of {PARTS} and a recipe of {tuple(RECIPES)}, found '{part}' and '{recipe}'")
    if not (out / "unet" / "config.json").is_file():
        kit.build_kit(out, "kit", seed)
    chosen = RECIPES[recipe]
    settings: Optimise = chosen[part]
    work = out / "work"
    pool = Pool.open(work / "pool", chosen["clips"], seed, progress)
    task, save = _prepare_part(out, part, pool, settings, progress)
    train(task, settings, work / part, seed=seed * 1000 + PARTS.index(part), progress=progress)
    save()
    note = {
        "part": part,
        "recipe": recipe,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "clips": chosen["clips"],
    }
    (work / part / "made.json").write_text(json.dumps(note, indent=2))


def _prepare_part(
    out: Path, part: str, pool: Pool, settings: Optimise, progress: Progress | None
) -> tuple[Any, Callable[[], None]]:
    """The task of a part and how to save its result."""
    from diffusers import DDIMScheduler
    from transformers import BertTokenizer, CLIPTokenizer

    if part == "vae":
        vae = AutoencoderKL.from_pretrained(out / "vae").float().train()

        def save_vae() -> None:
            vae.eval()
            _fit_scaling_factor(vae, pool)
            _save(vae, out / "vae")

        return VaeTask(vae, pool, settings), save_vae
    if part == "clip":
        tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
        text = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder").float().train()
        image = (
            CLIPVisionModelWithProjection.from_pretrained(out / "image_encoder", attn_implementation="eager")
            .float()
            .train()
        )

        def save_clip() -> None:
            _save(text, out / "text_encoder")
            _save(image, out / "image_encoder")

        return ClipTask(text, image, tokenizer, pool, settings), save_clip
    if part == "image_classifier":
        model = ViTForImageClassification.from_pretrained(out / part, attn_implementation="eager").float().train()
        return ClassifierTask(model, pool, "thing", "colour", settings, False), lambda: _save(model, out / part)
    if part == "video_classifier":
        video = VideoMAEForVideoClassification.from_pretrained(out / part, attn_implementation="eager").float().train()
        start_from_images(video, ViTForImageClassification.from_pretrained(out / "image_classifier").float())
        return ClassifierTask(video, pool, "thing", "motion", settings, True), lambda: _save(video, out / part)
    if part == "captioner":
        words = BertTokenizer.from_pretrained(out / part)
        blip = BlipForConditionalGeneration.from_pretrained(out / part, attn_implementation="eager").float().train()
        return CaptionerTask(blip, words, pool, settings), lambda: _save(blip, out / part)
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder").float().eval()
    moments = (1, 4)
    latents = encode_pool(vae, pool, moments, out / "work" / "latents.npy", progress)
    unet = UNet2DConditionModel.from_pretrained(out / "unet").float().train()
    unet.set_attn_processor(AttnProcessor())

    def encode(captions: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return text(tokenize(tokenizer, captions)).last_hidden_state.float()

    clip_of = np.arange(len(latents)) // len(moments)
    scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
    return UnetTask(unet, scheduler, latents, clip_of, encode, pool, settings), lambda: _save(unet, out / "unet")
