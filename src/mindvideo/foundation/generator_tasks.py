"""The losses of the kit's generator, on single frames and on clips.

Shapes: B batch, F frames, c h w latents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from mindvideo.config import Optimise
from mindvideo.foundation.pool import Pool
from mindvideo.models.video_unet import VideoUNet
from mindvideo.train.loop import named_trainable


class UnetTask:
    """Text-conditioned denoising of single frames; one caption in ten is empty."""

    def __init__(self, unet: UNet2DConditionModel, scheduler: Any, latents: torch.Tensor, clip_of: np.ndarray,
                 encode: Callable[[list[str]], torch.Tensor], pool: Pool, settings: Optimise) -> None:  # fmt: skip
        self.unet, self.scheduler, self.latents, self.clip_of = unet, scheduler, latents, clip_of
        self.encode, self.pool, self.settings = encode, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.unet)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Squared error of v."""
        index = rng.integers(len(self.latents), size=self.settings.batch_size)
        clean = self.latents[index].float()
        captions = ["" if rng.random() < 0.1 else self.pool.scenes[self.clip_of[i]].caption(rng) for i in index]
        condition = self.encode(captions)
        noise = torch.randn_like(clean)
        timestep = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(index),))
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        target = self.scheduler.get_velocity(clean, noise, timestep)
        output = self.unet(noisy, timestep, condition).sample.float()
        return F.mse_loss(output, target), {}


class MotionTask:
    """Text-conditioned denoising of clips by the inflated generator; every fourth batch holds single frames.

    All of its weights learn, so that what it shares with the 2-D generator serves pictures and films alike (joint
    image and video training, Ho et al. 2022). Cells that the scene's thing covers weigh ``1 + THING_WEIGHT`` times.
    """

    THING_WEIGHT = 2.0

    def __init__(self, unet: VideoUNet, scheduler: Any, latents: torch.Tensor, encode: Callable[[list[str]], torch.Tensor],
                 pool: Pool, settings: Optimise) -> None:  # fmt: skip
        """``latents`` are (N, F, c, h, w) of the pool's first N clips."""
        self.unet, self.scheduler, self.latents = unet, scheduler, latents
        self.encode, self.pool, self.settings = encode, pool, settings

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters."""
        return named_trainable(self.unet)

    def weight(self, index: np.ndarray, moments: np.ndarray) -> torch.Tensor:
        """(B, 1, F, h, w) weights with mean 1."""
        cover = torch.from_numpy(self.pool.cover[index[:, None], moments]).float() / 255
        cover = F.interpolate(cover, size=tuple(self.latents.shape[-2:]), mode="area")
        weight = 1 + self.THING_WEIGHT * cover.unsqueeze(1)
        return weight / weight.mean()

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted squared error of v."""
        clips, frames = self.settings.batch_size, self.latents.shape[1]
        is_single = step % 4 == 3
        index = rng.integers(len(self.latents), size=clips * frames if is_single else clips)
        moments = rng.integers(frames, size=(len(index), 1)) if is_single else np.tile(np.arange(frames), (clips, 1))
        clean = self.latents[index[:, None], moments].float().transpose(1, 2).contiguous()
        captions = ["" if rng.random() < 0.1 else self.pool.scenes[i].caption(rng) for i in index]
        noise = torch.randn_like(clean)
        timestep = torch.randint(0, self.scheduler.config.num_train_timesteps, (len(index),))
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        target = self.scheduler.get_velocity(clean, noise, timestep)
        output = self.unet(noisy, timestep, self.encode(captions)).sample.float()
        loss = (self.weight(index, moments) * (output - target) ** 2).mean()
        return loss, {"single" if is_single else "clip": float(loss.detach())}
