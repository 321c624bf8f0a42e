"""``linear``: regularised linear maps from fMRI to an image network's features (Wen et al. 2018).

Follows the decoding of Wen, Shi, Zhang, Lu, Cao, Liu, "Neural encoding and decoding with deep
learning for dynamic natural vision", Cerebral Cortex 28, 2018.

Differences from the paper:

- the foundation's image classifier (a ViT) replaces AlexNet: its patch embedding the first
  convolution, which a linear map inverts, its class token the last hidden layer;
- the penalty is quadratic for all targets, and chosen as in `mindvideo.baselines.banded`;
- all scans of the window are read, each a band, and each frame is predicted, not their average.

Shapes: N windows, B batch, W scans, V voxels, F frames, H W pixels, P patches, D embedding, Q
components.
"""

from __future__ import annotations

import numpy as np

from mindvideo.baselines.banded import BandedRidge, Components, explained_variance
from mindvideo.baselines.base import MethodContext
from mindvideo.baselines.vision import VisionNetwork
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.generate.clips import split_batches
from mindvideo.stages import Steps

READ = 32
"""Windows whose frames are in memory at once."""
MOST_ROWS = 2000
"""Windows from which principal components of the feature maps are computed."""


class Linear:
    """Ridge regression to early feature maps and to semantic features; `Method`."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.settings = context.recipe.baseline.linear
        self.network = VisionNetwork(context.foundation)

    def fit(self, store: Store) -> None:
        """Regress the features of the training windows' frames."""
        self.frames = store.num_frames
        self.size = store.size
        windows = self.context.windows(store)
        self.components = self._early_components(windows["train"])
        self.n_early = len(self.components.basis)
        targets = {split: self._targets(part) for split, part in windows.items()}
        self.ridge = ridge = BandedRidge(self.settings.alphas).fit_windows(windows, targets)
        truth = targets[[*targets][-1]]
        split = self.frames * self.n_early
        r2 = {
            name: explained_variance(ridge.chosen_MT[:, part], truth[:, part], ridge.mean_T[part])
            for name, part in (("early", slice(None, split)), ("semantic", slice(split, None)))
        }
        ridge.note(self.context.folder, **r2)

    def _early_components(self, windows: Windows) -> Components:
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), MOST_ROWS)).astype(int))
        batches = [chosen[positions] for positions in split_batches(len(chosen), READ)]

        def read(number: int) -> np.ndarray:
            index = batches[number]
            return windows.frames(index)[np.arange(len(index)), index % self.frames]

        self.network.fit_deconvolution(read, len(batches))
        rows = np.concatenate([self.network.early(read(number)) for number in range(len(batches))])
        return Components(rows, self.settings.components)

    def _targets(self, windows: Windows) -> np.ndarray:
        """Early components of every frame and mean semantic features, (N, F · Q + D)."""
        rows = []
        steps = Steps(self.context.progress, len(windows))
        for index in split_batches(len(windows), READ):
            clips = windows.frames(index)
            n, n_frames = clips.shape[:2]
            flat = clips.reshape(-1, *clips.shape[2:])
            early = self.components.scores(self.network.early(flat)).reshape(n, -1)
            semantic = self.network.semantic(flat).reshape(n, n_frames, -1).mean(axis=1)
            rows.append(np.concatenate([early, semantic], axis=1))
            steps.add(n)
        return np.concatenate(rows).astype(np.float32)

    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3): every frame's estimated feature maps, de-convolved."""
        found = self.ridge.predict(fmri)[:, : self.frames * self.n_early]
        maps = self.components.restore(found.reshape(-1, self.n_early))
        return self.network.deconvolve(maps, self.size).reshape(len(fmri), self.frames, self.size, self.size, 3)

    def categories(self, fmri: np.ndarray) -> np.ndarray:
        """Class probabilities (B, classes) from the estimated semantic features."""
        return self.network.categories(self.ridge.predict(fmri)[:, self.frames * self.n_early :])
