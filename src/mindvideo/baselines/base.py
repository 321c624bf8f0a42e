"""What every rival gets and must provide.

Shapes: N windows, B batch, W scans per window, V voxels, F frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
import zarr

from mindvideo.config import Optimise, Recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.models.foundation import Foundation
from mindvideo.stages import Progress
from mindvideo.train.features import Split
from mindvideo.train.loop import train

SplitWindows = dict[Split, Windows]


class Method(Protocol):
    """A method that enters the table: one of ours or a user's own class."""

    def fit(self, store: Store) -> None:
        """Learn from training and choose on validation segments; the store has no others."""

    def reconstruct(self, fmri: np.ndarray) -> np.ndarray:
        """Clips uint8 (B, F, H, W, 3) of fMRI windows float32 (B, W, V).

        A method that draws noise names a second argument ``window`` (B,): numbers of the test windows,
        which should determine each clip's noise. ``categories(fmri)`` may name categories, see
        `mindvideo.baselines.chosen_windows.score_categories`.
        """


class StoreWithoutTest(Store):
    """A store whose test segments cannot be read: what a method is given to learn from."""

    @classmethod
    def of(cls, store: Store) -> StoreWithoutTest:
        """A view of ``store``."""
        return cls(store.path, store._group)

    def _allow(self, segment: str) -> None:
        if segment in self.attrs["splits"]["test"]:
            raise DataError(
                f"expected a method to learn from training and validation segments, found it reading the test segment "
                f"'{segment}'; choose on store.segments('validation')"
            )

    def segments(self, split: str) -> list[str]:
        """Segments of ``train`` or ``validation``; raises DataError for ``test``."""
        names = super().segments(split)
        for name in names:
            self._allow(name)
        return names

    def _array(self, name: str) -> zarr.Array:
        self._allow(name.partition("/")[2])
        return super()._array(name)

    def _captions(self, segment: str, kind: str) -> Any:
        self._allow(segment)
        return super()._captions(segment, kind)


@dataclass(frozen=True)
class MethodContext:
    """Where and with what one of our own rivals works.

    ``recipe`` is the study's, with the rivals' settings in ``recipe.baseline``; ``run_dir`` the study's
    folder, whose frozen features are shared; ``folder`` and ``seed`` the rival's own.
    """

    recipe: Recipe
    run_dir: Path
    folder: Path
    foundation: Foundation
    device: torch.device
    seed: int
    progress: Progress | None = None

    def windows(self, store: Store, window: int | None = None) -> SplitWindows:
        """Training windows and, where films are held out, validation windows."""
        splits: tuple[Split, ...] = get_args(Split)
        return {
            split: Windows(store, split, window or self.recipe.align.window)
            for split in splits
            if store.segments(split)
        }

    def train(self, task: Any, settings: Optimise, part: str = "", seed: int | None = None) -> None:
        """Train a task with the stages' own loop, in ``folder`` or its sub-folder ``part``.

        ``task.validate`` only watches, and only where ``task.windows`` has validation windows.
        """
        train(
            task,
            settings,
            self.folder / part,
            seed=self.seed if seed is None else seed,
            progress=self.progress,
            validate=task.validate if "validation" in task.windows else None,
        )
