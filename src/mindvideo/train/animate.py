"""Stage ``animate``: the generator learns the films from captions (paper section 3.4, supplement B).

Shapes: N windows, B batch, F frames, c h w latents, L condition tokens, C condition width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import nn

from mindvideo import distributed
from mindvideo.data.store import open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import ModelError
from mindvideo.models.generators import generator_class
from mindvideo.models.interfaces import Generator, share_noise
from mindvideo.models.noise_schedule import stated_schedule
from mindvideo.stages import StageContext
from mindvideo.train.features import Features, TextFeatures, note_long_captions
from mindvideo.train.loop import Batch, Draw, Metrics, named_trainable, train
from mindvideo.train.stage import note_disabled, open_foundation, save_memory, save_model, stage_seed

STAGE = "animate"
VALIDATION_CLIPS = 48
VALIDATION_BATCH = 8


class Diffusion:
    """Noising of clips, and what the generator predicts."""

    def __init__(self, scheduler_config: dict) -> None:
        self.scheduler = DDPMScheduler.from_config(stated_schedule(scheduler_config))
        self.prediction = self.scheduler.config.prediction_type
        if self.prediction not in ("epsilon", "v_prediction", "sample"):
            raise ModelError(
                "expected prediction_type epsilon, v_prediction or sample in the foundation's scheduler, "
                f"found {self.prediction}; use another scheduler"
            )

    @property
    def n_timesteps(self) -> int:
        """Training timesteps of the scheduler."""
        return int(self.scheduler.config.num_train_timesteps)

    def losses(
        self,
        unet: Generator,
        clean_BcFhw: torch.Tensor,
        condition_BLC: torch.Tensor,
        noise_BcFhw: torch.Tensor,
        timestep_B: torch.Tensor,
    ) -> torch.Tensor:
        """Mean squared error of each clip's prediction, float32 (B,), from independent noise."""
        noise_BcFhw = share_noise(unet, noise_BcFhw)
        noisy = self.scheduler.add_noise(clean_BcFhw, noise_BcFhw, timestep_B)
        target = noise_BcFhw if self.prediction == "epsilon" else clean_BcFhw
        if self.prediction == "v_prediction":
            target = self.scheduler.get_velocity(clean_BcFhw, noise_BcFhw, timestep_B)
        predicted = unet(noisy, timestep_B, condition_BLC).sample
        return F.mse_loss(predicted.float(), target, reduction="none").flatten(1).mean(dim=1)

    def draw(self, clean_BcFhw: torch.Tensor) -> Batch:
        """Clips with random noise and timesteps: ``clean``, ``noise``, ``timestep``."""
        timestep = torch.randint(self.n_timesteps, (len(clean_BcFhw),))
        return {"clean": clean_BcFhw, "noise": torch.randn(clean_BcFhw.shape), "timestep": timestep}

    def drawn_losses(self, unet: Generator, batch: Batch, condition_BLC: torch.Tensor) -> torch.Tensor:
        """Losses (B,) of what `draw` gave."""
        clean, noise, timestep = (batch[name].to(condition_BLC.device) for name in ("clean", "noise", "timestep"))
        return self.losses(unet, clean, condition_BLC, noise, timestep)


def clip_latents(latents_NFchw: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Latents of some windows as the generator takes them: float32 (B, c, F, h, w)."""
    return latents_NFchw[index].float().permute(0, 2, 1, 3, 4).contiguous()


class ClipValidation:
    """Loss on validation clips at fixed noise and timesteps, with true and shuffled conditions.

    Of the windows' ``latents`` (N, F, c, h, w), at most `VALIDATION_CLIPS` are used, evenly spread.
    """

    def __init__(self, diffusion: Diffusion, latents: torch.Tensor, seed: int, device: torch.device) -> None:
        count = min(len(latents), VALIDATION_CLIPS)
        self.diffusion, self.latents, self.device = diffusion, latents, device
        self.index = np.linspace(0, len(latents) - 1, count).astype(int)
        self.shuffled = np.roll(self.index, count // 2)
        generator = torch.Generator().manual_seed(seed)
        spread = (torch.arange(count) + 0.5) / count * diffusion.n_timesteps
        self.timestep = spread.long()[torch.randperm(count, generator=generator)]
        frames, channels, *size = latents.shape[1:]
        self.noise = torch.randn(count, channels, frames, *size, generator=generator)

    def __call__(self, unet: Generator, condition: Callable[[np.ndarray], torch.Tensor]) -> dict[str, float]:
        """``validation_loss`` and ``validation_loss_shuffled``; ``condition(index)`` is (B, L, C)."""
        unet.eval()
        sums = {"validation_loss": 0.0, "validation_loss_shuffled": 0.0}
        with torch.inference_mode():
            for start in range(0, len(self.index), VALIDATION_BATCH):
                part = slice(start, start + VALIDATION_BATCH)
                clean = clip_latents(self.latents, self.index[part]).to(self.device)
                noise, timestep = self.noise[part].to(self.device), self.timestep[part].to(self.device)
                for name, index in zip(sums, (self.index, self.shuffled), strict=True):
                    losses = self.diffusion.losses(unet, clean, condition(index[part]), noise, timestep)
                    sums[name] += float(losses.sum())
        return {name: total / len(self.index) for name, total in sums.items()}


@dataclass
class AnimateTask:
    """Random training clips (``latents``, (N, F, c, h, w)), conditioned on their captions' tokens.

    ``row`` (N,) is that of each clip's caption in ``text``, which has the empty one too;
    ``caption_dropout`` is the probability of the empty one.
    """

    unet: Generator
    diffusion: Diffusion
    latents: torch.Tensor
    text: TextFeatures
    row: torch.Tensor
    caption_dropout: float
    device: torch.device

    def __post_init__(self) -> None:
        self.unet.to(self.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Self-, cross- and temporal attention (paper section 3.4)."""
        return named_trainable(self.unet, self.unet.trained_parts)

    def tokens(self, row: torch.Tensor) -> torch.Tensor:
        """Caption tokens (B, L, C) float32 on the device."""
        return self.text.tokens[row].float().to(self.device)

    def sample(self, draw: Draw) -> Batch:
        """Clips and the rows of their captions."""
        index = draw.rows(len(self.latents))
        is_dropped = torch.from_numpy(draw.rng.random(draw.size) < self.caption_dropout)
        row = torch.where(is_dropped, self.text.row[""], self.row[index])
        return {"index": index, "row": row, **self.diffusion.draw(clip_latents(self.latents, index))}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Diffusion loss of each clip."""
        self.unet.train()
        return self.diffusion.drawn_losses(self.unet, batch, self.tokens(batch["row"])), {}


def run(context: StageContext) -> None:
    """Tune the inflated generator on captioned training clips; write ``RUN/animate/model``."""
    recipe, run_dir, folder, progress = context
    settings = recipe.animate
    seed = stage_seed(recipe.seed, STAGE)
    foundation = open_foundation(recipe)
    torch.manual_seed(seed)
    motion = (foundation.motion_settings, foundation.motion()) if settings.motion == "foundation" else ()
    unet = generator_class(settings.generator).from_foundation(foundation.unet, *motion)
    if not settings.enabled:
        note_disabled(folder)
        save_model(unet, folder / "model")
        return
    store = open_stores(recipe.data, run_dir)[0]  # of several people all saw the same films
    features = Features(run_dir, store, foundation, progress)
    text = features.text(recipe)
    note_long_captions(folder, foundation, text)
    latents = features.latents("train")
    row = text.rows(Windows(store, "train", 1).captions)
    device, diffusion = distributed.device(), Diffusion(foundation.scheduler_config)
    save_memory(settings, unet)
    task = AnimateTask(unet, diffusion, latents, text, row, settings.caption_dropout, device)
    validate = None
    if store.segments("validation"):
        held_out = features.latents("validation")
        held_out_row = text.rows(Windows(store, "validation", 1).captions)
        validation = ClipValidation(diffusion, held_out, seed, device)

        def validate(step: int) -> dict[str, float]:
            return validation(unet, lambda index: task.tokens(held_out_row[index]))

    train(task, settings, folder, seed=seed, progress=progress, validate=validate)
    save_model(unet, folder / "model")
