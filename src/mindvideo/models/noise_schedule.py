"""The noise schedule that a foundation's scheduler states (docs/method.md, The generator)."""

from __future__ import annotations

from typing import Any

# Stable Diffusion's conventions (docs/method.md, The generator).
CONVENTIONS = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
# What describes the noise that the UNet was trained on, or the grid of times; the rest belongs to one solver.
SHARED_KEYS = ("num_train_timesteps", "trained_betas", "prediction_type", "rescale_betas_zero_snr", *CONVENTIONS)


def stated_schedule(config: dict[str, Any]) -> dict[str, Any]:
    """What a diffusers scheduler configuration states of `SHARED_KEYS`; of the rest, `CONVENTIONS`."""
    return CONVENTIONS | {key: config[key] for key in SHARED_KEYS if config.get(key) is not None}
