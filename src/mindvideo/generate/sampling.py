"""From noise to latents.

Shapes: B clips, c latent channels, F frames, h w latents, L condition tokens, C condition width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin

from mindvideo.generate.guidance import guide
from mindvideo.generate.scheduler import set_timesteps
from mindvideo.models.interfaces import Generator, share_noise


@dataclass(frozen=True)
class Plan:
    """Denoising steps, guidance scale, and whether networks are under bfloat16 autocast."""

    steps: int
    guidance_scale: float
    is_bf16: bool = False


def autocast(device: torch.device, is_enabled: bool) -> AbstractContextManager[Any]:
    """Networks in bfloat16 within, if enabled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_enabled)


@torch.no_grad()
def denoise(
    unet: Generator,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None,
    plan: Plan,
    advance: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Sample latents under a condition and, by guidance, away from another.

    Parameters
    ----------
    latents : Tensor, (B, c, F, h, w) float32
        Independent noise of unit variance; its frames are then correlated as in training
        (`share_noise`).
    positive : Tensor, (B, L, C) float32
    negative : Tensor, (1, L, C) float32, optional
        None: no guidance.
    advance : callable, optional
        Called after each step.

    Returns
    -------
    Tensor, (B, c, F, h, w) float32
    """
    # Asking a model for its device or dtype walks through all its modules: once is enough.
    device, dtype = latents.device, unet.dtype
    set_timesteps(scheduler, plan.steps, device)
    latents = share_noise(unet, latents) * scheduler.init_noise_sigma
    # A condition that is the negative itself (the control "mean") is not changed by guidance: one pass does.
    if negative is not None and torch.equal(negative.expand_as(positive), positive):
        negative = None
    is_guided = negative is not None
    condition = (positive if negative is None else torch.cat([negative.expand_as(positive), positive])).to(dtype)
    # One autocast for all steps: it casts the weights once, and the held condition is projected once.
    with autocast(device, plan.is_bf16), unet.constant_condition():
        for timestep in scheduler.timesteps[:]:
            scaled = scheduler.scale_model_input(latents, timestep).to(dtype)
            noise = unet(scaled.repeat(1 + is_guided, 1, 1, 1, 1), timestep, condition).sample.float()
            # Eq. 6 holds for a UNet that predicts v as well: at given latents v is linear in the noise.
            if is_guided:
                unwanted, wanted = noise.chunk(2)
                noise = guide(wanted, unwanted, plan.guidance_scale)
            with autocast(device, False):
                latents = scheduler.step(noise, timestep, latents).prev_sample
            advance()
    return latents
