"""The same windows for everyone: which they are, what was shown, and the controls that need no method.

Shapes: n test windows, W scans, V voxels, F frames, H W pixels.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.generate.clips import derange_scenes, mean_fmri, mean_frame, pick_frames, resize_frames
from mindvideo.generate.reconstruct import choose_windows


class Trial:
    """The test windows of a study as ``reconstruct`` chooses them; no method is given any of it before it is fitted.

    Parameters
    ----------
    recipe : Recipe
        ``reconstruct.max_windows``, ``reconstruct.num_frames``, ``evaluate.block_s``, ``align.window`` and ``seed``.
    store : Store

    Attributes
    ----------
    chosen : ndarray of int (n,)
        Numbers of the windows among all test windows.
    block : ndarray of int (n,)
        Blocks that are permuted and resampled together, counted as ``evaluate`` counts them.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.windows = Windows(store, "test", recipe.align.window)
        blocks = self.windows.blocks(max(1, round(recipe.evaluate.block_s / store.tr_s)))
        self.chosen = choose_windows(blocks, recipe.reconstruct.max_windows)
        self.block = blocks[self.chosen]

    @property
    def description(self) -> list[dict[str, Any]]:
        """Segment, scan, scene, block and caption of every window, as in ``reconstruct/windows.json``."""
        windows = self.windows
        return [
            {
                "segment": str(windows.segment[i]),
                "scan": int(windows.scan[i]),
                "scene": int(windows.scene[i]),
                "block": int(block),
                "caption": str(windows.captions[i]),
            }
            for i, block in zip(self.chosen, self.block, strict=True)
        ]

    def require_same(self, path: Path) -> None:
        """Refuse where the main method's list of windows at ``path`` is there and names others than these."""
        if not path.is_file():
            return
        wanted = [(window["segment"], window["scan"]) for window in json.loads(path.read_text())]
        if wanted != [(window["segment"], window["scan"]) for window in self.description]:
            raise DataError(
                f"expected the {len(self.chosen)} test windows of {path}, found others in this store and recipe; give "
                "the store the run was made from, or run reconstruct again"
            )

    @cached_property
    def truth(self) -> np.ndarray:
        """What was shown, uint8 (n, F, H, W, 3), at the number of frames and the size the main method is asked for."""
        return self.as_asked(self.windows.frames(self.chosen))

    def as_asked(self, clips: np.ndarray) -> np.ndarray:
        """Clips (B, F', H', W', 3) at evenly spaced times and resampled to what the table holds, as the truth is."""
        settings = self.recipe.reconstruct
        clips = pick_frames(clips, settings.num_frames or clips.shape[1])
        return resize_frames(clips, settings.size or self.store.size, settings.size or self.store.size)

    @cached_property
    def scene(self) -> np.ndarray:
        """Scene of each window, int (n,)."""
        return np.asarray([self.windows.scene[i] for i in self.chosen])

    @cached_property
    def other(self) -> np.ndarray:
        """Position (n,) of a window of another scene for each window: the main method's own shuffling."""
        return derange_scenes(self.scene, np.random.default_rng([self.recipe.seed, len(self.scene)]))

    def fmri(self, name: str, positions: np.ndarray) -> np.ndarray:
        """FMRI (B, W, V) that a set of clips is made from: ``reconstruction``, ``shuffled`` or ``mean``."""
        if name == "mean":
            return np.broadcast_to(self._mean_fmri, (len(positions), *self._mean_fmri.shape)).copy()
        chosen = self.chosen[self.other] if name == "shuffled" else self.chosen
        return self.windows.fmri(chosen[positions])

    @cached_property
    def _mean_fmri(self) -> np.ndarray:
        return mean_fmri(Windows(self.store, "train", self.recipe.align.window))

    def without_brain(self) -> dict[str, np.ndarray]:
        """``random_train`` and ``constant`` (n, F, H, W, 3), the same clips as the main method's."""
        train = Windows(self.store, "train", 1)
        draws = [np.random.default_rng([self.recipe.seed, int(window), 1]) for window in self.chosen]
        random = train.frames(np.array([rng.integers(len(train)) for rng in draws]))
        constant = np.broadcast_to(self.as_asked(mean_frame(train)[None, None])[0, 0], self.truth.shape)
        return {"random_train": self.as_asked(random), "constant": np.ascontiguousarray(constant)}
