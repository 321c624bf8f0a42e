"""The same windows for everyone, what was shown, and controls without a method.

Shapes: n test windows, B batch, W scans, V voxels, F frames, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.evaluate.aggregate import make_rng
from mindvideo.evaluate.semantic import n_way_top_k, top_classes
from mindvideo.evaluate.statistics import block_permutation_p
from mindvideo.generate.clips import Shown, choose_test_windows, split_batches
from mindvideo.models.foundation import Foundation


class ChosenWindows(Shown):
    """The test windows of a study as ``reconstruct`` chooses them."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        super().__init__(recipe, store, *choose_test_windows(recipe, store, recipe.align.window))

    def require_same(self, path: Path) -> None:
        """DataError if the main method's list of windows at ``path`` names others."""
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
        """What was shown, uint8 (n, F, H, W, 3), as the main method is asked for it."""
        return self.make("truth", np.arange(len(self.chosen)))

    def fmri(self, name: str, positions: np.ndarray) -> np.ndarray:
        """FMRI (B, W, V) that a set of clips is made from."""
        if name == "mean":
            return np.broadcast_to(self._mean_fmri, (len(positions), *self._mean_fmri.shape)).copy()
        chosen = self.chosen[self.other] if name == "shuffled" else self.chosen
        return self.windows.fmri(chosen[positions])

    @cached_property
    def _mean_fmri(self) -> np.ndarray:
        return self.train.mean_fmri()


def score_categories(
    name_categories: Callable[[np.ndarray], np.ndarray], windows: ChosenWindows, foundation: Foundation
) -> dict[str, dict[str, float]]:
    """N-way top-K scores of categories named from the fMRI, without a picture (Wen et al. 2018).

    ``name_categories`` gives class probabilities (B, classes) of the foundation's image classifier; the
    middle frame's three most probable are the truth.
    """
    settings = windows.recipe.evaluate
    n = len(windows.chosen)
    truth = top_classes(foundation.classify_images(windows.truth[:, windows.truth.shape[1] // 2]))
    named = {
        key: np.concatenate([name_categories(windows.fmri(key, rows)) for rows in split_batches(n, 64)])
        for key in ("reconstruction", "shuffled")
    }
    figures: dict[str, Any] = {}
    for n_way in settings.n_ways:
        own, other = (n_way_top_k(values, truth, n_way, settings.top_k) for values in named.values())
        rng = make_rng(windows.recipe.seed, f"categories {n_way}")
        p = block_permutation_p(own - other, windows.block, settings.permutations, rng)
        figures[f"{n_way}way"] = {"value": float(own.mean()), "shuffled": float(other.mean()), "p_shuffled": p}
    return figures
