"""A film of a whole recording, without joins, in bounded memory.

The film is cut into blocks of half a scan's frames. At every denoising step, clips of two
neighbouring blocks are predicted, and where clips overlap their predictions are averaged with
linear weights: MultiDiffusion (Bar-Tal et al. 2023) over time.

A block needs only its neighbours to take its next step. So the steps run through the film as a
wave, with twice as many blocks alive as there are steps, and the result is the same as denoising
all of the film at once.

Shapes: n scans, W scans per window, V voxels, S frames of a block, K clips, L condition tokens, C
condition width, c latent channels, h w latents, H W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mindvideo.data.video import write_video
from mindvideo.errors import ModelError, SettingError
from mindvideo.generate.clips import window_noise
from mindvideo.generate.guidance import guide
from mindvideo.generate.pipeline import MindVideoPipeline, to_uint8
from mindvideo.generate.recording import Recorded
from mindvideo.generate.scheduler import set_timesteps
from mindvideo.models.interfaces import share_noise
from mindvideo.stages import Progress, Steps


@dataclass
class _Block:
    """Latents (c, S, h, w), their sampler, and predictions gathered for the next step."""

    latents: torch.Tensor
    scheduler: Any
    total: torch.Tensor
    weight: torch.Tensor


@dataclass(frozen=True)
class FilmSettings:
    """How a film is made.

    Attributes
    ----------
    frames_per_scan : int
        Frame rate times TR.
    size : int, optional
        Height and width in pixels, by default as in training.
    steps, guidance_scale : optional
        By default the pipeline's.
    negative : str
        ``train_mean``, ``null`` or ``none``.
    seed : int
        Of the noise.
    batch_size : int
        Clips that go through the UNet at once.
    precision : {"fp32", "bf16"}
    """

    frames_per_scan: int
    size: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    negative: str = "train_mean"
    seed: int = 0
    batch_size: int = 4
    precision: Literal["fp32", "bf16"] = "fp32"


class Film:
    """Frames of a recording, one after the other.

    Parameters
    ----------
    pipeline : MindVideoPipeline
    scans : ndarray, float32 (n, V)
        Standardised at the model's voxels.
    settings : FilmSettings
    progress : callable, optional
        Called with (rounds done, rounds, {}).

    Attributes
    ----------
    n_frames : int
        n times the frames per scan.
    most_alive : int
        Most blocks alive at once so far; at most twice the steps and two.
    """

    def __init__(
        self,
        pipeline: MindVideoPipeline,
        scans: np.ndarray,
        settings: FilmSettings,
        progress: Progress | None = None,
    ) -> None:
        if settings.negative == "test_mean":
            raise SettingError("expected a negative that needs no test set for a film, found test_mean; use train_mean")
        voxels = pipeline.fmri_encoder.config.num_voxels
        if scans.ndim != 2 or scans.shape[1] != voxels or not len(scans):
            raise ModelError(f"expected scans of shape (n, {voxels}) for this model, found {scans.shape}")
        self.pipeline, self.scans, self.settings, self._progress = pipeline, scans, settings, progress
        self.n_frames = len(scans) * settings.frames_per_scan
        self.block_frames = -(-settings.frames_per_scan // 2)
        self.n_blocks = max(2, -(-self.n_frames // self.block_frames))
        self.most_alive = 0
        self._shape = pipeline.latent_shape(self.block_frames, settings.size, settings.size)
        self._device = pipeline._execution_device
        steps = pipeline.config.num_inference_steps if settings.steps is None else settings.steps
        self._scheduler = copy.deepcopy(pipeline.scheduler)
        set_timesteps(self._scheduler, steps, self._device)
        scale = pipeline.config.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
        self._guidance_scale = scale
        rising = (torch.arange(self.block_frames) + 0.5) / self.block_frames
        self._ramp = (rising.flip(0).to(self._device), rising.to(self._device))
        self._blocks: dict[int, _Block] = {}
        self._conditions: dict[int, torch.Tensor] = {}
        self._encoded: dict[int, torch.Tensor] = {}

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self._shape[-2], self._shape[-1]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Frames uint8 (H, W, 3) in order."""
        left = self.n_frames
        for latents in self.latents():
            frames = to_uint8(self.pipeline.decode(latents[None], self.settings.precision))[0]
            yield from frames[:left]
            left = max(0, left - len(frames))

    @torch.no_grad()
    def latents(self) -> Iterator[torch.Tensor]:
        """Finished blocks (c, S, h, w) in order; the last may exceed the recording."""
        n_clips, n_steps = self.n_blocks - 1, len(self._scheduler.timesteps)
        n_rounds = n_clips + 2 * (n_steps - 1)
        steps = Steps(self._progress, n_rounds)
        negative = self.pipeline.unwanted(self.settings.negative, self._guidance_scale, self.settings.precision)
        for number in range(n_rounds):
            # Clip k takes step s in round k + 2s: its two blocks have then done with step s - 1.
            jobs = [(number - 2 * step, step) for step in range(n_steps) if 0 <= number - 2 * step < n_clips]
            for clip, step in jobs:
                if step == 0:
                    self._start(clip)
            self.most_alive = max(self.most_alive, len(self._blocks))
            for start in range(0, len(jobs), self.settings.batch_size):
                self._predict(jobs[start : start + self.settings.batch_size], negative)
            for clip, step in jobs:
                done = [clip] if clip < n_clips - 1 else [clip, clip + 1]  # no further clip covers the last block
                for block in done:
                    self._advance(self._blocks[block], step)
                if step == n_steps - 1:
                    del self._conditions[clip]
                    yield from [self._blocks.pop(block).latents for block in done]
            steps.add()

    def _start(self, clip: int) -> None:
        for block in (clip, clip + 1):
            if block not in self._blocks:
                noise = window_noise(self.settings.seed, block, self._shape).to(self._device)
                scheduler = copy.deepcopy(self._scheduler)
                empty = torch.zeros(self.block_frames, device=self._device)
                latents = share_noise(self.pipeline.unet, noise[None])[0] * scheduler.init_noise_sigma
                self._blocks[block] = _Block(latents, scheduler, torch.zeros_like(noise), empty)
        self._conditions[clip] = self._condition_at(clip * self.block_frames / self.settings.frames_per_scan)

    def _condition_at(self, moment: float) -> torch.Tensor:
        """Condition (L, C) at a moment in scans, between the two nearest windows."""
        first = min(int(moment), len(self.scans) - 1)
        second, share = min(first + 1, len(self.scans) - 1), moment - int(moment)
        wanted = (first, second) if share > 0 else (first,)
        kept = self._encoded
        self._encoded = {scan: kept[scan] if scan in kept else self._encode(scan) for scan in wanted}
        if share == 0:
            return self._encoded[first]
        return torch.lerp(self._encoded[first], self._encoded[second], share)

    def _encode(self, scan: int) -> torch.Tensor:
        rows = np.minimum(scan + np.arange(self.pipeline.fmri_encoder.config.window), len(self.scans) - 1)
        return self.pipeline.encode(self.scans[rows][None], self.settings.precision)[0]

    def _predict(self, jobs: list[tuple[int, int]], negative: torch.Tensor | None) -> None:
        timestep = torch.stack([self._scheduler.timesteps[step] for _, step in jobs])
        clips = []
        for (clip, _), time in zip(jobs, timestep, strict=True):
            pair = [self._blocks[clip], self._blocks[clip + 1]]
            clips.append(torch.cat([b.scheduler.scale_model_input(b.latents, time) for b in pair], dim=1))
        latents, condition = torch.stack(clips), torch.stack([self._conditions[clip] for clip, _ in jobs])
        if negative is not None:
            condition = torch.cat([condition, negative.expand(len(jobs), -1, -1)])
            latents, timestep = latents.repeat(2, 1, 1, 1, 1), timestep.repeat(2)
        dtype = self.pipeline.unet.dtype
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            predicted = self.pipeline.unet(latents.to(dtype), timestep, condition.to(dtype)).sample.float()
        if negative is not None:
            wanted, unwanted = predicted.chunk(2)
            predicted = guide(wanted, unwanted, self._guidance_scale)
        falling, rising = self._ramp
        for (clip, _), whole in zip(jobs, predicted, strict=True):
            for block, part, ramp in zip((clip, clip + 1), whole.chunk(2, dim=1), (rising, falling), strict=True):
                self._blocks[block].total += part * ramp[:, None, None]
                self._blocks[block].weight += ramp

    def _advance(self, block: _Block, step: int) -> None:
        """One step of the sampler on what the clips agreed on."""
        agreed = block.total / block.weight[:, None, None]
        timestep = self._scheduler.timesteps[step]
        block.latents = block.scheduler.step(agreed[None], timestep, block.latents[None]).prev_sample[0]
        block.total, block.weight = torch.zeros_like(block.total), torch.zeros_like(block.weight)


def frames_per_scan(tr_s: float, fps: float | None, num_frames: int | None, trained: int) -> int:
    """Frames per scan, from a rate or a count, by default as in training.

    SettingError unless that is a whole number on which rate and count agree.
    """
    if fps is None:
        return trained if num_frames is None else num_frames
    wanted = fps * tr_s
    if abs(wanted - round(wanted)) > 1e-6 or round(wanted) < 1:
        raise SettingError(f"expected a whole number of frames in a scan of {tr_s:g} s, found {wanted:g}; change --fps")
    if num_frames not in (None, round(wanted)):
        raise SettingError(f"expected --num-frames {round(wanted)} at this --fps and TR, found {num_frames}; give one")
    return round(wanted)


def check_recorded(pipeline: MindVideoPipeline, recorded: Recorded) -> None:
    """Raise ModelError if the pipeline's encoder was trained on other voxels."""
    config = pipeline.fmri_encoder.config
    if config.num_voxels != len(recorded.vertex) or config.voxel_id not in (None, recorded.voxel_id):
        raise ModelError(
            f"expected the {config.num_voxels} voxels the model was trained on (id {str(config.voxel_id)[:12]}), found "
            f"a selection of {len(recorded.vertex)} (id {recorded.voxel_id[:12]}); give the store of its own run"
        )


def write_film(film: Film, out: Path, tr_s: float) -> None:
    """Write a film as H.264, frame by frame; it appears when it is whole."""
    out.parent.mkdir(parents=True, exist_ok=True)
    height, width = (side * film.pipeline.latent_factor for side in film.latent_size)
    write_video(out, film, film.settings.frames_per_scan / tr_s, (height, width))
