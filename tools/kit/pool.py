"""Clips drawn once for the parts that see: frames, what things cover of them, and what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from kit.scans import GRID, thing_cover, to_pixels
from mindvideo.simulate.scenes import (
    COLOURS,
    COLUMNS,
    LIGHTS,
    MOTIONS,
    PLACES,
    ROWS,
    SIZES,
    THINGS,
    Clip,
    locate,
    plan_clip,
    scene_caption,
)  # fmt: skip

SEED, SIZE, FRAMES, FPS = 20_001, 64, 6, 3.0
VISIBLE = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "size": SIZES, "light": LIGHTS}
"""Attributes that a single frame shows, by name of the scene's field."""


def named_loss(logits: torch.Tensor, label: np.ndarray) -> torch.Tensor:
    """Cross-entropy of the rows whose label (B,) is named, not -1; zero where none is."""
    known = label >= 0
    if not known.any():
        return logits.sum() * 0.0
    return F.cross_entropy(logits.float()[known], torch.from_numpy(label[known]))


class Pool:
    """Clips of one scene each.

    Attributes
    ----------
    clips : list of Clip, (N,)
    frames : ndarray, uint8 (N, F, H, W, 3)
        Memory-mapped.
    cover : ndarray, uint8 (N, F, 16, 16)
        How much of each cell the scene's thing covers, 255 for all of it.
    labels : dict of str to ndarray, int (N,)
        Of each visible attribute and of motion.
    where : ndarray, int (N, F + 1, 2)
        Column and row of the thing in each frame, and in the middle of the clip; -1 where none is named.
    """

    def __init__(self, folder: Path, count: int, seed: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.clips: list[Clip] = [plan_clip(np.random.default_rng([SEED, seed, i])) for i in range(count)]
        paths = [folder / f"{name}_{count}_{seed}.npy" for name in ("frames", "cover")]
        if not paths[1].is_file():
            frames = np.lib.format.open_memmap(paths[0], "w+", np.uint8, (count, FRAMES, SIZE, SIZE, 3))
            cover = np.empty((count, FRAMES, GRID, GRID), np.uint8)
            for number, clip in enumerate(self.clips):
                frames[number] = clip.frames(SIZE)
                cover[number] = np.round(255 * thing_cover(clip, SIZE, GRID))
            frames.flush()
            partial = paths[1].with_name("partial.npy")
            np.save(partial, cover)
            partial.rename(paths[1])
        self.frames, self.cover = np.load(paths[0], mmap_mode="r"), np.load(paths[1])
        self.labels = {name: np.array([names.index(getattr(clip.scene, name)) for clip in self.clips])
                       for name, names in (VISIBLE | {"motion": MOTIONS}).items()}  # fmt: skip
        self.where = np.array([[self._where(clip, t) for t in (*clip.times_s, clip.times_s.mean() + 0.5 / FPS)]
                               for clip in self.clips])  # fmt: skip

    @staticmethod
    def _where(clip: Clip, t: float) -> tuple[int, int]:
        column, row = locate(clip.scene, t)
        return -1 if column is None else COLUMNS.index(column), -1 if row is None else ROWS.index(row)

    def __len__(self) -> int:
        """N."""
        return len(self.clips)

    def stills(self, index: np.ndarray, moment: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """One frame of each clip (B, 3, H, W) float32 in [-1, 1], and its cover (B, 16, 16) in 0..1."""
        frames = np.stack([self.frames[i, j] for i, j in zip(index, moment, strict=True)])
        return to_pixels(frames), torch.from_numpy(self.cover[index, moment]).float() / 255

    def films(self, index: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole clips (B, F, 3, H, W) float32 in [-1, 1], and their cover (B, F, 16, 16) in 0..1."""
        frames = np.stack([self.frames[i] for i in index])
        return to_pixels(frames), torch.from_numpy(self.cover[index]).float() / 255

    def still_caption(self, i: int, moment: int, rng: np.random.Generator | None = None) -> str:
        """The caption that a clip would have if it were all like one of its frames."""
        clip = self.clips[i]
        return scene_caption(clip.scene, locate(clip.scene, clip.times_s[moment]), rng)
