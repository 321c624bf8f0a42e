"""Clips as tensors, and how well a map makes those of the validation windows.

Shapes: B batch, F frames, H W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
import torch.nn.functional as F

from mindvideo.baselines.base import SplitWindows
from mindvideo.generate.clips import split_batches

VALIDATION_BATCH = 16


def as_tensor(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """Clips uint8 (B, F, H, W, 3) as float32 (B, 3, F, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 4, 1, 2, 3).float() / 255


def as_clips(clips: torch.Tensor) -> np.ndarray:
    """The inverse of `as_tensor`, rounded to uint8."""
    return (clips.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).cpu().numpy()


def halvings(size: int, coarsest: int) -> int:
    """How often a side is halved until it is at most ``coarsest`` or odd."""
    count = 0
    while size > coarsest and size % 2 == 0:
        size, count = size // 2, count + 1
    return count


def channels_at(width: int, step: int) -> int:
    """Channels after ``step`` halvings of the width: a multiple of 4, at least 8."""
    return max(8, width // 2**step // 4 * 4)


def pixel_norm(x: torch.Tensor) -> torch.Tensor:
    """Channels (B, C, …) of every place divided by their root mean square, as in Karras et al. 2018.

    Unlike statistics over places it leaves a clip's own brightness and colours in.
    """
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)


class PixelTask(ABC):
    """A task that is watched by the error of validation clips."""

    windows: SplitWindows
    device: torch.device

    @abstractmethod
    def make(self, rows: np.ndarray) -> torch.Tensor:
        """Clips (B, 3, F, H, W) from the fMRI of some validation windows."""

    @torch.inference_mode()
    def validate(self, step: int) -> dict[str, float]:
        """Mean absolute error of clips made from their own fMRI and from others'."""
        windows = self.windows["validation"]
        sums = {"validation_pixel_loss": 0.0, "validation_pixel_loss_shuffled": 0.0}
        for index in split_batches(len(windows), VALIDATION_BATCH):
            real = as_tensor(windows.frames(index), self.device)
            for name, rows in zip(sums, (index, (index + len(windows) // 2) % len(windows)), strict=True):
                sums[name] += float(F.l1_loss(self.make(rows), real)) * len(index)
        return {name: total / len(windows) for name, total in sums.items()}
