"""Samplers for the foundation's noise schedule (docs/method.md, The generator)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
from diffusers import SchedulerMixin

from mindvideo.errors import ModelError, SettingError
from mindvideo.models.noise_schedule import stated_schedule

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}


def make_scheduler(
    config: dict[str, Any], name: Literal["ddim", "dpm++", "unipc"], spacing: str | None = None
) -> SchedulerMixin:
    """Build a sampler for the noise schedule of ``config``.

    Parameters
    ----------
    config : dict
        Any diffusers scheduler configuration. What it does not state follows `CONVENTIONS`.
    name : {"ddim", "dpm++", "unipc"}
        The solver: DDIM, second-order multistep DPM-Solver++, or UniPC; SettingError for another.
    spacing : str, optional
        The time grid as diffusers names it; by default DDIM has that of ``config``, the others
        ``trailing``.
    """
    if name not in SCHEDULERS:
        raise SettingError(f"expected scheduler to be one of {', '.join(SCHEDULERS)}, found '{name}'")
    shared = stated_schedule(config)
    if spacing is not None:
        shared["timestep_spacing"] = spacing
    elif name != "ddim":  # few-step solvers must start from pure noise, where leading spacing leaves out the last times
        shared["timestep_spacing"] = "trailing"
    scheduler = SCHEDULERS[name]
    known = scheduler._get_init_keys(scheduler)
    return scheduler(**{key: value for key, value in shared.items() if key in known})


def set_timesteps(scheduler: SchedulerMixin, steps: int, device: torch.device) -> None:
    """Place the sampler's times; SettingError for more ``steps`` than the noise schedule has."""
    trained = scheduler.config.num_train_timesteps
    if 1 <= steps <= trained:
        scheduler.set_timesteps(steps, device=device)
    if not 1 <= steps <= trained or int(scheduler.timesteps.max()) >= trained:
        raise SettingError(f"expected from 1 to fewer than {trained} denoising steps, found {steps}; take fewer")


def load_scheduler(folder: Path, index: dict[str, Any]) -> SchedulerMixin:
    """The scheduler of a saved pipeline; ModelError if there is none of diffusers'."""
    if not (folder / "scheduler_config.json").is_file():
        raise ModelError(f"expected the part 'scheduler' (scheduler_config.json) in {folder.parent}, found none")
    name = str((index.get("scheduler") or ["", "none"])[-1])
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise ModelError(f"expected model_index.json in {folder.parent} to name a scheduler of diffusers, found {name}")
    scheduler_class: type[SchedulerMixin] = found
    return scheduler_class.from_pretrained(folder, local_files_only=True)
