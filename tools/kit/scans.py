"""A rolling pool of encoded clips: drawn, sent through frozen networks, used a few times, replaced.

Every chunk of clips follows from (seed, its number) alone, so a run that was killed makes the same ones again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mindvideo.models.foundation import Foundation
from mindvideo.simulate.scenes import Clip, plan_clip, render_film

SEED = 20_002
WITH_CUT = 0.15
GRID = 16


def draw_chunk(seed: int, number: int, count: int) -> list[Clip]:
    """Clips (scans of six frames at 3 FPS) of training compositions; some hold a cut."""
    clips = []
    for i in range(count):
        rng = np.random.default_rng([SEED, seed, number, i])
        clips.append(plan_clip(rng, with_cut=bool(rng.random() < WITH_CUT)))
    return clips


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(frames).float().movedim(-1, -3) / 127.5 - 1


@dataclass
class Chunk:
    """N clips as a generator learns from them.

    Attributes
    ----------
    clips : list of Clip
    latents : Tensor, float16 (N, 4, F, 16, 16)
        The autoencoder's means, scaled.
    weight : Tensor, float16 (N, 1, F, 16, 16)
        How much each cell counts: more where the thing is, and where frames differ.
    image_tokens, video_tokens : Tensor, float16 (N, F, 64, D) and (N, F / 2, 64, D)
        What frozen classifiers of pictures and of films see in every patch.
    """

    clips: list[Clip]
    latents: torch.Tensor
    weight: torch.Tensor
    image_tokens: torch.Tensor
    video_tokens: torch.Tensor


def weigh(latents: torch.Tensor, cover: torch.Tensor, thing: float = 2.0, change: float = 1.0) -> torch.Tensor:
    """Weights with mean 1 a clip from scaled latents (N, 4, F, h, w) and the thing's cover (N, F, h, w) in 0..1."""
    step = (latents[:, :, 1:] - latents[:, :, :-1]).square().mean(1).sqrt()
    moved = torch.maximum(F.pad(step, (0, 0, 0, 0, 1, 0)), F.pad(step, (0, 0, 0, 0, 0, 1)))
    weight = 1 + thing * cover + change * moved.clamp(max=1.5)
    return (weight / weight.mean((1, 2, 3), keepdim=True)).unsqueeze(1)


def thing_cover(clip: Clip, size: int, grid: int) -> np.ndarray:
    """Share of each cell that the clip's thing covers, float32 (F, grid, grid) in [0, 1]."""
    without = render_film(clip.film, clip.times_s, size, hide_thing=True)
    changed = np.abs(clip.frames(size).astype(np.int16) - without).max(axis=-1) > 12
    cell = size // grid
    return changed.reshape(len(changed), grid, cell, grid, cell).mean(axis=(2, 4), dtype=np.float32)


@torch.inference_mode()
def encode_chunk(foundation: Foundation, clips: list[Clip], is_bf16: bool = False) -> Chunk:
    """Send clips through the autoencoder and both classifiers."""
    parts: list[tuple[torch.Tensor, ...]] = []
    size = int(foundation.vae.config.sample_size)
    for start in range(0, len(clips), 32):
        batch = clips[start : start + 32]
        pixels = to_pixels(np.stack([clip.frames(size) for clip in batch]))
        cover = torch.from_numpy(np.stack([thing_cover(clip, size, GRID) for clip in batch]))
        flat = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            latents = foundation.vae.encode(flat).latent_dist.mean.float() * foundation.vae.config.scaling_factor
            seen = foundation.image_classifier.vit(flat).last_hidden_state[:, 1:].unflatten(0, pixels.shape[:2])
            films = foundation.video_classifier.videomae(pixels).last_hidden_state.unflatten(1, (-1, seen.shape[2]))
        latents = latents.unflatten(0, pixels.shape[:2]).transpose(1, 2)
        parts.append(tuple(t.half() for t in (latents, weigh(latents, cover), seen, films)))
    return Chunk(clips, *(torch.cat(column) for column in zip(*parts, strict=True)))
