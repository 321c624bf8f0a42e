"""A last training of the kit's generator, under a better reader than the one it was trained with.

Plain denoising of the reader's own pool of true clips, as in `kit.generator`, with what `kit.reader` reads of the guesses
weighing far more. The first reader was right about .76 of the things in fresh clips; the present one is about .90.

Shapes: B clips, F frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import nn

from kit.generator import CHANGE, EMPTY, SHIFT, roughen, to_rank
from kit.pool import Pool
from kit.reader import labels_of, load_reader, read_loss
from kit.scans import weigh
from mindvideo.foundation.drawn import load_generator
from mindvideo.models.foundation import Foundation
from mindvideo.models.interfaces import share_noise

FAR, TOLD = 0.4, 0.02


class RefineTask:
    """`kit.generator.Training.loss` without the alignment with classifiers, from the kit's own weights on."""

    def __init__(self, kit: Path, pool: Pool, latents: np.ndarray, batch: int) -> None:
        self.foundation, self.reader, self.batch = Foundation(kit), load_reader(kit), batch
        self.unet = load_generator(self.foundation).float().train().to(memory_format=torch.channels_last)
        self.schedule = DDIMScheduler.from_config(self.foundation.scheduler_config)
        self.pool, self.latents, self.labels = pool, latents, labels_of(pool.clips)

    def modules(self) -> nn.ModuleDict:
        """The generator."""
        return nn.ModuleDict({"unet": self.unet})

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted squared error of v, the same of its change from frame to frame, and what is read of the guess."""
        index = np.sort(rng.choice(len(self.latents), self.batch, replace=False))
        latents = torch.from_numpy(self.latents[index]).float()
        weight = weigh(latents, torch.from_numpy(self.pool.cover[index]).float() / 255)
        is_told = rng.random(self.batch) >= EMPTY
        captions = [self.pool.clips[i].caption(rng) if told else "" for i, told in zip(index, is_told, strict=True)]
        labels = {name: np.where(is_told, label[index], -1) for name, label in self.labels.items()}
        condition = roughen(self.foundation.encode_text(captions)[0].float().clone(), rng)
        noise = share_noise(self.unet, torch.randn_like(latents))
        uniform = torch.rand(self.batch)
        timestep = (1000 * SHIFT * uniform / (1 + (SHIFT - 1) * uniform)).long().clamp(0, 999)
        noisy = self.schedule.add_noise(latents, noise, timestep)
        output = self.unet(noisy, timestep, condition).sample.float()
        wrong = output - self.schedule.get_velocity(latents, noise, timestep)
        error = (weight * wrong**2).mean()
        stray = (weight[:, :, 1:] * (wrong[:, :, 1:] - wrong[:, :, :-1]) ** 2).mean()
        kept = self.schedule.alphas_cumprod[timestep]
        guess = to_rank(kept.sqrt()) * noisy - to_rank((1 - kept).sqrt()) * output
        far, told = read_loss(self.reader, guess, latents, labels, kept**0.25)
        figures = {"error": float(error.detach()), "stray": float(stray.detach()),
                   "far": float(far.detach()), "told": float(told.detach())}  # fmt: skip
        return error + CHANGE * stray + FAR * far + TOLD * told, figures
