"""Clips of test windows: reconstruction, controls and ceilings (docs/method.md).

A window's noise follows from the study's seed and its index, for all sets of clips.

Shapes: n windows, B batch, F frames, H W pixels, W scans per window, V voxels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
import torch

from mindvideo.clip_sets import clip_set
from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.generate.guidance import LABELS
from mindvideo.generate.pipeline import MindVideoPipeline, to_uint8
from mindvideo.models.foundation import Foundation

_READ = 32
"""Windows read at once where a whole split is averaged."""


def mean_frame(windows: Windows) -> np.ndarray:
    """Mean frame (H, W, 3) uint8 of a split."""
    parts = [windows.frames(rows).mean(axis=1).sum(axis=0) for rows in split_batches(len(windows), _READ)]
    return np.round(np.sum(parts, axis=0) / len(windows)).astype(np.uint8)


def split_batches(n: int, size: int) -> list[np.ndarray]:
    """Positions 0..n-1 in runs of ``size``."""
    return [np.arange(start, min(start + size, n)) for start in range(0, n, size)]


def derange_scenes(scene: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random permutation of windows in which none takes the place of one of its own scene.

    Windows are laid out scene by scene in random order, and shifted by at least the size of the
    largest scene: ``scene[result[i]] != scene[i]`` for every i of (n,). DataError when one scene
    holds more than half of them.
    """
    names, member, sizes = np.unique(scene, return_inverse=True, return_counts=True)
    n, largest = len(scene), int(sizes.max())
    if 2 * largest > n:
        raise DataError(
            f"expected no scene to hold more than half of the {n} test windows, found scene {names[sizes.argmax()]} "
            f"with {largest}; reconstruct more windows, or leave 'shuffled' out of reconstruct.controls"
        )
    row = np.lexsort((rng.permutation(n), rng.permutation(len(names))[member]))
    result = np.empty(n, dtype=np.int64)
    result[row] = np.roll(row, int(rng.integers(largest, n - largest + 1)))
    return result


def window_noise(seed: int, window: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Unit noise of one window, float32 of ``shape``, from the seed and its index alone."""
    state = np.random.SeedSequence([seed, window]).generate_state(1, np.uint64)[0]
    generator = torch.Generator("cpu").manual_seed(int(state >> np.uint64(1)))
    return torch.randn(shape, generator=generator)


def sample_clips(
    pipeline: MindVideoPipeline, recipe: Recipe, windows: np.ndarray, shape: tuple[int, ...], **condition: Any
) -> np.ndarray:
    """Clips (B, F, H, W, 3) of windows, whose indices determine their noise."""
    size: dict[str, Any] = {"num_frames": shape[0], "height": shape[1], "width": shape[2]}
    settings: Any = recipe.reconstruct
    latent_shape = pipeline.latent_shape(**size)
    noise = torch.stack([window_noise(recipe.seed, int(window), latent_shape) for window in windows])
    condition |= {"num_inference_steps": settings.steps, "guidance_scale": settings.guidance_scale}
    return pipeline(latents=noise, precision=settings.precision, **size, **condition).frames


def pick_frames(clips: np.ndarray, num_frames: int) -> np.ndarray:
    """Clips (B, F, H, W, 3) at ``num_frames`` evenly spaced times, nearest frame."""
    times = ((np.arange(num_frames) + 0.5) * clips.shape[1] / num_frames).astype(int)
    return clips[:, times]


def resize_frames(clips: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize clips (B, F, H, W, 3) uint8, by area averages down and cubic interpolation up."""
    if clips.shape[2:4] == (height, width):
        return clips
    method = cv2.INTER_AREA if height * width < clips.shape[2] * clips.shape[3] else cv2.INTER_CUBIC
    flat = clips.reshape(-1, *clips.shape[2:])
    resized = [cv2.resize(frame, (width, height), interpolation=method) for frame in flat]
    return np.stack(resized).reshape(*clips.shape[:2], height, width, 3)


def choose_windows(blocks: np.ndarray, max_windows: int | None) -> np.ndarray:
    """Indices of the windows to reconstruct: all, or whole ``blocks`` (n,), evenly spread.

    At most ``max_windows`` are chosen, but at least one block.
    """
    if max_windows is None or max_windows >= len(blocks):
        return np.arange(len(blocks))
    names, sizes = np.unique(blocks, return_counts=True)
    n_blocks = max(1, max_windows // int(sizes.max()))
    # The middles of n_blocks equal parts of the film.
    kept = names[((np.arange(n_blocks) + 0.5) * len(names) / n_blocks).astype(int)]
    return np.flatnonzero(np.isin(blocks, kept))


def number_blocks(recipe: Recipe, windows: Windows) -> np.ndarray:
    """Block (N,) of each window: those of one are permuted and resampled together."""
    return windows.blocks(recipe.evaluate.block_scans(windows.store.tr_s))


def choose_test_windows(recipe: Recipe, store: Store, window: int) -> tuple[Windows, np.ndarray]:
    """All test windows of so many scans, and which of them the recipe reconstructs."""
    windows = Windows(store, "test", window)
    return windows, choose_windows(number_blocks(recipe, windows), recipe.reconstruct.max_windows)


@dataclass
class Shown:
    """The windows ``chosen`` (n,), and their clips that need no model."""

    recipe: Recipe
    store: Store
    windows: Windows
    chosen: np.ndarray

    @cached_property
    def block(self) -> np.ndarray:
        """(n,) block of each window."""
        return number_blocks(self.recipe, self.windows)[self.chosen]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(F, H, W, 3) of a clip."""
        settings, (frames, height, width, _) = self.recipe.reconstruct, self.windows.frames(self.chosen[:1]).shape[1:]
        return (settings.num_frames or frames, settings.size or height, settings.size or width, 3)

    @cached_property
    def about_frames(self) -> dict[str, str]:
        """Whether true frames come from ``store`` or ``films``, and ``why_not_films``."""
        if self.shape[0] == self.store.num_frames:
            return {"frames_from": "store"}
        try:
            for segment in {*self.windows.segment[self.chosen].tolist(), *self.train.segment.tolist()}:
                self.store.film(segment)
        except DataError as error:
            again = "then remove the folder of these clips to have them made anew"
            return {"frames_from": "store", "why_not_films": f"{error}; {again}"}
        return {"frames_from": "films"}

    def _shown(self, windows: Windows, index: np.ndarray) -> np.ndarray:
        if self.about_frames["frames_from"] == "films":
            clips = windows.frames_at_rate(index, self.shape[0], self.shape[1])
            return resize_frames(clips, self.shape[1], self.shape[2])
        return self.as_asked(windows.frames(index))

    @cached_property
    def train(self) -> Windows:
        """The training windows."""
        return Windows(self.store, "train", self.windows.window)

    @cached_property
    def scene(self) -> np.ndarray:
        """(n,) scene of each window."""
        return np.asarray([self.windows.scene[i] for i in self.chosen])

    @cached_property
    def other(self) -> np.ndarray:
        """(n,) for each window the position of one of another scene."""
        return derange_scenes(self.scene, np.random.default_rng([self.recipe.seed, len(self.scene)]))

    @cached_property
    def constant_frame(self) -> np.ndarray:
        """Mean training frame (H, W, 3) uint8."""
        return resize_frames(mean_frame(self.train)[None, None], self.shape[1], self.shape[2])[0, 0]

    def make(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Clips under ``name``: ``truth``, ``random_train`` or ``constant``."""
        if name == "truth":
            return self._shown(self.windows, self.chosen[positions])
        if name == "constant":
            return np.broadcast_to(self.constant_frame, (len(positions), *self.shape))
        draws = [np.random.default_rng([self.recipe.seed, int(window), 1]) for window in self.chosen[positions]]
        return self._shown(self.train, np.array([rng.integers(len(self.train)) for rng in draws]))

    def as_asked(self, clips: np.ndarray) -> np.ndarray:
        """Stored clips at the number of frames and the size of the reconstructions."""
        return resize_frames(pick_frames(clips, self.shape[0]), self.shape[1], self.shape[2])

    @cached_property
    def description(self) -> list[dict[str, Any]]:
        """Segment, scan, scene, block and caption of each window: ``windows.json``."""
        windows = self.windows
        return [
            {
                "segment": str(windows.segment[i]),
                "scan": int(windows.scan[i]),
                "scene": int(windows.scene[i]),
                "block": int(number),
                "caption": str(windows.captions[i]),
            }
            for i, number in zip(self.chosen, self.block, strict=True)
        ]


@dataclass
class ClipMaker(Shown):
    """Makes the clips of any of the chosen windows, under each name."""

    pipeline: MindVideoPipeline
    foundation: Foundation

    @property
    def names(self) -> list[str]:
        """``truth``, ``reconstruction`` and the recipe's controls, in order."""
        return ["truth", "reconstruction", *self.recipe.reconstruct.controls]

    @property
    def labels(self) -> dict[str, str]:
        """What each name is, for tables and captions."""
        negative = self.recipe.reconstruct.negative
        known = {"truth": "what was shown", "reconstruction": f"reconstruction; {LABELS[negative]}"}
        return {name: known.get(name) or clip_set(name, negative).definition for name in self.names}

    @property
    def n_bytes(self) -> int:
        """Bytes of all clips, uncompressed."""
        return len(self.names) * len(self.chosen) * int(np.prod(self.shape))

    @cached_property
    def test_mean(self) -> np.ndarray | None:
        """Mean test window (W, V), if the recipe asks for this transductive negative."""
        return self.windows.mean_fmri() if self.recipe.reconstruct.negative == "test_mean" else None

    def make(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Clips of the windows at ``positions`` under ``name``."""
        makers: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "reconstruction": lambda at: self._sample(at, fmri=self.windows.fmri(self.chosen[at])),
            "shuffled": lambda at: self._sample(at, fmri=self.windows.fmri(self.chosen[self.other[at]])),
            "mean": self._mean,
            "caption": self._caption,
            "vae": self._through_vae,
        }
        return makers[name](positions) if name in makers else super().make(name, positions)

    def _sample(self, positions: np.ndarray, **condition: Any) -> np.ndarray:
        arguments = {"negative": self.recipe.reconstruct.negative, "test_mean": self.test_mean} | condition
        return sample_clips(self.pipeline, self.recipe, self.chosen[positions], self.shape, **arguments)

    def _mean(self, positions: np.ndarray) -> np.ndarray:
        mean: Any = self.pipeline.train_mean if self.test_mean is None else self.test_mean
        precision: Any = self.recipe.reconstruct.precision
        tokens = self.pipeline.encode(mean[None], precision)
        # Where the negative is this very mean, guidance changes nothing and the pipeline takes one pass.
        is_negative = self.recipe.reconstruct.negative.endswith("mean")
        unwanted = {"negative_tokens": tokens} if is_negative else {}
        return self._sample(positions, condition=tokens.expand(len(positions), -1, -1), **unwanted)

    def _caption(self, positions: np.ndarray) -> np.ndarray:
        captions = [self.windows.captions[i] for i in self.chosen[positions]]
        tokens, _ = self.foundation.encode_text(captions)
        is_guided = self.recipe.reconstruct.negative != "none"
        return self._sample(positions, condition=tokens, negative="null" if is_guided else "none")

    def _through_vae(self, positions: np.ndarray) -> np.ndarray:
        truth = self.make("truth", positions)
        latents = self.foundation.encode_latents(truth.reshape(-1, *truth.shape[2:]))
        clips = latents.reshape(*truth.shape[:2], *latents.shape[1:]).transpose(1, 2)
        return to_uint8(self.pipeline.decode(clips))
