"""From noise to latents: the steps of the sampler, and what may be left out of them.

Shapes: B clips, c latent channels, F frames, h w latents, L condition tokens, C condition width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin

from mindvideo.errors import SettingError
from mindvideo.generate.guidance import guide
from mindvideo.generate.scheduler import set_timesteps
from mindvideo.models.feature_reuse import FeatureReuse
from mindvideo.models.video_unet import VideoUNet, share_noise


@dataclass(frozen=True)
class Plan:
    """How latents are sampled.

    Attributes
    ----------
    steps : int
        Denoising steps.
    guidance_scale : float
        1 needs no negative pass.
    guidance_interval : (float, float)
        Noise times, 0 clean to 1 pure noise, within which guidance is applied (Kynkaanniemi et al., Applying guidance
        in a limited interval, 2024); elsewhere the negative pass is saved.
    reuse : int
        The whole UNet runs every ``reuse``-th step, its outermost layers at every one (Ma et al., DeepCache, 2024).
    is_bf16 : bool
        Networks under bfloat16 autocast; the sampler stays in float32.

    Raises
    ------
    SettingError
        For an interval outside 0 to 1 or upside down, or a ``reuse`` below 1.
    """

    steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    reuse: int = 1
    is_bf16: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        low, high = self.guidance_interval
        if not 0.0 <= low <= high <= 1.0:
            raise SettingError(
                f"expected guidance_interval to be two noise times, 0 <= low <= high <= 1, found {low} and {high}"
            )
        if self.reuse < 1:
            raise SettingError(f"expected reuse of at least 1 (1: the whole UNet at every step), found {self.reuse}")

    def is_guided(self, noise_time: float) -> bool:
        """Whether guidance applies at a noise time between 0 and 1."""
        return self.guidance_interval[0] <= noise_time <= self.guidance_interval[1]


def autocast(device: torch.device, is_enabled: bool) -> AbstractContextManager[Any]:
    """Networks in bfloat16 within, where enabled."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_enabled)


@torch.no_grad()
def denoise(
    unet: VideoUNet,
    scheduler: SchedulerMixin,
    latents: torch.Tensor,
    positive: torch.Tensor,
    negative: torch.Tensor | None,
    plan: Plan,
    update: Callable[[], Any] | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Sample latents under a condition and, by guidance, away from another.

    Parameters
    ----------
    latents : Tensor, (B, c, F, h, w) float32
        Noise of unit variance, independent; the generator correlates its frames as it was trained (`share_noise`).
    positive : Tensor, (B, L, C) float32
    negative : Tensor, (1, L, C) float32, optional
        None: no guidance.
    update, callback : callable, optional
        Called after each step, with nothing and with (steps done, steps).

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
    single = positive.to(dtype)
    double = None if negative is None else torch.cat([negative.expand_as(positive), positive]).to(dtype)
    trained = scheduler.config.num_train_timesteps
    times = [int(time) for time in scheduler.timesteps.tolist()]
    features = FeatureReuse(unet, plan.reuse)
    # One autocast for all steps: it casts the weights once, and the held condition is projected once.
    with autocast(device, plan.is_bf16), unet.constant_condition(), features:
        for index, timestep in enumerate(scheduler.timesteps[:]):
            is_guided = double is not None and plan.is_guided(times[index] / max(1, trained - 1))
            condition = double if double is not None and is_guided else single
            scaled = scheduler.scale_model_input(latents, timestep).to(dtype)
            features.begin_step(n_clips=len(condition))
            noise = unet(scaled.repeat(1 + is_guided, 1, 1, 1, 1), timestep, condition).sample.float()
            # Eq. 6 holds for a UNet that predicts v as well: at given latents v is linear in the noise.
            if is_guided:
                unwanted, wanted = noise.chunk(2)
                noise = guide(wanted, unwanted, plan.guidance_scale)
            with autocast(device, False):
                latents = scheduler.step(noise, timestep, latents).prev_sample
            if update is not None:
                update()
            if callback is not None:
                callback(index + 1, len(times))
    return latents
