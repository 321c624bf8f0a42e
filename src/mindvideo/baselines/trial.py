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
from mindvideo.generate.clips import Shown
from mindvideo.generate.reconstruct import choose_windows


class Trial(Shown):
    """The test windows of a study as ``reconstruct`` chooses them; no method is given any of it before it is fitted.

    Parameters
    ----------
    recipe : Recipe
        ``reconstruct.max_windows``, ``reconstruct.num_frames``, ``evaluate.block_s``, ``align.window`` and ``seed``.

    Attributes
    ----------
    chosen : ndarray of int (n,)
        Numbers of the windows among all test windows.
    block : ndarray of int (n,)
        Blocks that are permuted and resampled together, counted as ``evaluate`` counts them.
    """

    def __init__(self, recipe: Recipe, store: Store) -> None:
        windows = Windows(store, "test", recipe.align.window)
        blocks = windows.blocks(max(1, round(recipe.evaluate.block_s / store.tr_s)))
        super().__init__(recipe, store, windows, choose_windows(blocks, recipe.reconstruct.max_windows))
        self.block = blocks[self.chosen]

    @property
    def description(self) -> list[dict[str, Any]]:
        """Segment, scan, scene, block and caption of every window, as in ``reconstruct/windows.json``."""
        return self.describe(self.block)

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
        return self.make("truth", np.arange(len(self.chosen)))

    def fmri(self, name: str, positions: np.ndarray) -> np.ndarray:
        """FMRI (B, W, V) that a set of clips is made from: ``reconstruction``, ``shuffled`` or ``mean``."""
        if name == "mean":
            return np.broadcast_to(self._mean_fmri, (len(positions), *self._mean_fmri.shape)).copy()
        chosen = self.chosen[self.other] if name == "shuffled" else self.chosen
        return self.windows.fmri(chosen[positions])

    @cached_property
    def _mean_fmri(self) -> np.ndarray:
        return self.train.mean_fmri()
