"""A small simulated-looking study for rivals: a store whose fMRI follows the frames, a random foundation, a pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mindvideo.baselines.base import MethodContext
from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.data.writing import StoreWriter
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators.video_unet import VideoUNet

VOXELS, SCANS, FRAMES, SIZE = 37, 12, 3, 32
SPLITS = {"train": ["seg1", "seg2", "seg3"], "validation": ["seg4"], "test": ["test1", "test2"]}
COLOURS, THINGS = ("red", "blue", "green"), ("dog", "car", "man", "boat")


def write_store(path: Path, secret: int | None = None) -> Store:
    """Frames of one colour a scene, fMRI linear in the colour; ``secret`` replaces everything about the test segments."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, VOXELS))
    writer = StoreWriter(
        path, subject="subject1", tr_s=1.5, lag_s=4.0, fps=2, size=SIZE, splits=SPLITS, vertex=np.arange(VOXELS) * 7
    )
    scene = 0
    for segment in [name for names in SPLITS.values() for name in names]:
        draw = np.random.default_rng([secret, scene]) if secret and segment.startswith("test") else rng
        numbers = scene + np.arange(SCANS) // 2
        scene = int(numbers[-1]) + 1
        colour = draw.integers(40, 216, (SCANS // 2, 3)).repeat(2, axis=0)
        noise = draw.integers(-20, 20, (SCANS, FRAMES, SIZE, SIZE, 3))
        frames = (colour[:, None, None, None] + noise).astype(np.uint8)
        signal = (colour - 128) / 50 @ mixing
        repeats = (signal + 0.3 * draw.standard_normal((2, SCANS, VOXELS))).astype(np.float32)
        writer.write_fmri(segment, repeats.mean(axis=0), repeats)
        writer.write_frames(segment, frames)
        writer.write_scene(segment, np.repeat(numbers[:, None], FRAMES, axis=1))
        captions = [f"a {COLOURS[n % 3]} {THINGS[n % 4]} walks" for n in numbers]
        writer.write_captions(segment, captions, [[caption] * FRAMES for caption in captions])
    return writer.finish()


def save_cotrained(recipe: Recipe, store: Store, run_dir: Path) -> None:
    """What ``ridge`` needs of the study, its weights random."""
    foundation = Foundation(recipe.foundation)
    torch.manual_seed(1)
    encoder = FmriEncoder(
        num_voxels=store.n_voxels,
        window=recipe.align.window,
        patch_size=5,
        embed_dim=12,
        depth=1,
        num_heads=3,
        condition_length=foundation.condition_length,
        condition_width=foundation.condition_width,
    )
    encoder.save_pretrained(run_dir / "cotrain" / "fmri_encoder")
    VideoUNet.from_unet2d(foundation.unet).save_pretrained(run_dir / "cotrain" / "unet")


def context_of(name: str, recipe: Recipe, run_dir: Path) -> MethodContext:
    """What a rival is given, in an empty folder of its own."""
    folder = run_dir / "baselines" / name
    folder.mkdir(parents=True)
    return MethodContext(recipe, run_dir, folder, Foundation(recipe.foundation), torch.device("cpu"), 11)
