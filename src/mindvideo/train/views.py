"""What windows are aligned with: augmented embeddings of captions and frames (supplement B).

Shapes: B batch, N windows, F frames, C condition width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mindvideo.config import Align
from mindvideo.data.windows import Windows
from mindvideo.models.foundation import Foundation
from mindvideo.train.augmentation import augment_captions, random_crops
from mindvideo.train.features import TextFeatures
from mindvideo.train.thesaurus import Thesaurus
from mindvideo.train.tokens import TokenTarget


@dataclass
class AlignData:
    """A split's windows, captions' tokens, and image embeddings (N, F, 1 + crops, C)."""

    windows: Windows
    target: TokenTarget
    images: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.windows)

    def fmri(self, index: np.ndarray) -> torch.Tensor:
        """The scans of some windows, float32 (B, W, V)."""
        return torch.from_numpy(self.windows.fmri(index))

    def person(self, index: np.ndarray) -> torch.Tensor:
        """Person of each window, int64 (B,)."""
        return torch.from_numpy(self.windows.person[index])

    @property
    def text(self) -> TextFeatures:
        """The frozen text features."""
        return self.target.text


Views = Callable[[np.ndarray, np.random.Generator], tuple[torch.Tensor, torch.Tensor | None]]
"""Embeddings (B, C) that some windows are aligned with: of their captions and perhaps frames."""


@dataclass
class FixedViews:
    """A few versions of each caption and crops of each frame, made once, for CPUs."""

    data: AlignData
    settings: Align

    def __call__(self, index: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A random version of each."""
        data, size = self.data, len(index)
        pooled = data.text.pooled[data.target.row[index]]
        version = rng.integers(pooled.shape[1], size=size) if self.settings.word_swap else np.zeros(size, int)
        text = pooled[np.arange(size), version]
        if data.images is None:
            return text, None
        n_frames, n_views = data.images.shape[1:3]
        frame, view = rng.integers(n_frames, size=size), np.zeros(size, int)
        if n_views > 1:
            view = np.where(rng.random(size) < self.settings.crop_probability, rng.integers(1, n_views, size=size), 0)
        return text, data.images[index, frame, view].float()


@dataclass
class DrawnViews:
    """Captions reworded and frames cropped anew each time, as in the paper."""

    data: AlignData
    settings: Align
    foundation: Foundation
    thesaurus: Thesaurus

    def __call__(self, index: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor | None]:
        """New versions of each."""
        data = self.data
        text = data.text.pooled[data.target.row[index], 0]
        if self.settings.word_swap:
            captions = [data.windows.captions[i] for i in index]
            captions = augment_captions(captions, self.thesaurus, [rng] * len(index), self.foundation)
            text = self.foundation.encode_text(captions)[1].cpu()
        if data.images is None:
            return text, None
        frame = rng.integers(data.images.shape[1], size=len(index))
        image = data.images[index, frame, 0].float()
        is_cropped = np.flatnonzero(rng.random(len(index)) < self.settings.crop_probability)
        if len(is_cropped):
            frames = data.windows.frames(index[is_cropped])[np.arange(len(is_cropped)), frame[is_cropped]]
            image[is_cropped] = self.foundation.encode_image(random_crops(frames, rng)).cpu()
        return text, image
