"""Clips, captions and attributes drawn once and shared by all parts of the kit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from mindvideo.errors import ModelError
from mindvideo.foundation import kit
from mindvideo.simulate.scenes import COLOURS, LIGHTS, MOTIONS, PLACES, SIZES, THINGS, Scene, plan_clip

Progress = Callable[[int, int, dict[str, float]], None]
VISIBLE = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "size": SIZES, "light": LIGHTS}
POOL_SEED = 20_000
COVER_GRID = 16


def check_note(path: Path, wanted: dict[str, Any], found: dict[str, Any] | None) -> None:
    """Refuse what is kept in ``path`` and was made otherwise than ``wanted`` says; ``found`` may hold more."""
    kept = None if found is None else {name: found.get(name) for name in wanted}
    if kept != wanted:
        differing = [name for name in wanted if kept is None or kept[name] != wanted[name]]
        raise ModelError(
            f"expected {path} to be made with {', '.join(f'{name} {wanted[name]}' for name in differing)}, found "
            f"{'no note of it' if kept is None else ', '.join(f'{name} {kept[name]}' for name in differing)}; remove "
            "that folder, or give another place for the kit"
        )


class Pool:
    """Clips, captions and attributes drawn once and shared by all parts.

    ``frames`` (N, F, H, W, 3) uint8 is memory-mapped; ``scenes`` are the N scenes; ``cover`` (N, F, 16, 16) uint8 is
    how much of each cell the scene's thing covers, 255 for all of it.
    """

    def __init__(self, frames: np.ndarray, scenes: list[Scene], cover: np.ndarray) -> None:
        self.frames, self.scenes, self.cover = frames, scenes, cover
        self.labels = {name: np.array([names.index(getattr(scene, name)) for scene in scenes])
                       for name, names in (VISIBLE | {"motion": MOTIONS}).items()}  # fmt: skip

    @classmethod
    def open(cls, folder: Path, clips: int, seed: int, progress: Progress | None = None) -> Pool:
        """Open the pool in ``folder``, drawing it first where it is not there.

        Raises
        ------
        ModelError
            For a pool of another number of clips or another seed.
        """
        done, note = folder / "scenes.json", folder / "pool.json"
        shape = (clips, kit.KIT.num_frames, kit.KIT.size, kit.KIT.size, 3)
        if not done.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            frames = np.lib.format.open_memmap(folder / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
            cover = np.lib.format.open_memmap(
                folder / "cover.npy", mode="w+", dtype=np.uint8, shape=(*shape[:2], COVER_GRID, COVER_GRID)
            )
            rows = []
            for number in range(clips):
                clip = plan_clip(np.random.default_rng([seed, POOL_SEED, number]), shape[1], 3.0)
                frames[number] = clip.frames(shape[2])
                cover[number] = np.round(255 * clip.thing_cover(shape[2], COVER_GRID))
                rows.append(vars(clip.scene))
                if progress and number % 500 == 0:
                    progress(number, clips, {})
            frames.flush()
            cover.flush()
            note.write_text(json.dumps({"clips": clips, "seed": seed}))
            done.with_suffix(".tmp").write_text(json.dumps(rows))
            done.with_suffix(".tmp").rename(done)
        frames = np.load(folder / "frames.npy", mmap_mode="r")
        # A pool of before there was such a note says at least how many clips it holds.
        found = json.loads(note.read_text()) if note.is_file() else {"seed": seed}
        check_note(folder, {"clips": clips, "seed": seed}, found | {"clips": len(frames)})
        rows = json.loads(done.read_text())
        scenes = [Scene(**{**row, "other": tuple(row["other"]) if row["other"] else None}) for row in rows]
        return cls(frames, scenes, np.load(folder / "cover.npy"))

    def image_batch(self, index: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
        """One random frame of each clip: (B, 3, H, W) float32 in [-1, 1]."""
        return self.image_batch_with_cover(index, rng)[0]

    def image_batch_with_cover(self, index: np.ndarray, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`image_batch`, and what the things cover of it, (B, 16, 16) float32 in 0..1."""
        moment = rng.integers(self.frames.shape[1], size=len(index))
        order = np.argsort(index)
        frames = np.empty((len(index), *self.frames.shape[2:]), np.uint8)
        frames[order] = np.stack([self.frames[i, j] for i, j in zip(index[order], moment[order], strict=True)])
        return to_pixels(frames), torch.from_numpy(self.cover[index, moment]).float() / 255

    def clip_batch(self, index: np.ndarray) -> torch.Tensor:
        """Whole clips: (B, F, 3, H, W) float32 in [-1, 1]."""
        return to_pixels(np.stack([self.frames[i] for i in index]))


def to_pixels(frames: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, -3))).float() / 127.5 - 1.0


def _encoder_digest(vae: AutoencoderKL) -> str:
    """A digest of what latents follow from; the decoder is no part of it."""
    digest = hashlib.sha256(str(vae.config.scaling_factor).encode())
    for name, weight in vae.state_dict().items():
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def encode_pool(
    vae: AutoencoderKL, pool: Pool, moments: tuple[int, ...], path: Path, progress: Progress | None,
    clips: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """Scaled latents of some frames of the first ``clips`` clips (default: all), kept in ``path`` for this encoder.

    Returns
    -------
    Tensor
        (clips * moments, c, h, w) float16, the moments of a clip next to one another.
    """
    count = min(clips or len(pool.scenes), len(pool.scenes))
    key, note = _encoder_digest(vae), path.with_suffix(".json")
    if not path.is_file() or not note.is_file() or json.loads(note.read_text()) != key:
        note.unlink(missing_ok=True)
        rows = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            for start in range(0, count, 32):
                pixels = to_pixels(pool.frames[start : min(start + 32, count), list(moments)]).flatten(0, 1)
                rows.append((vae.encode(pixels).latent_dist.mean.float() * vae.config.scaling_factor).half())
                if progress and start % 1024 == 0:
                    progress(start, count, {})
        np.save(path.with_suffix(".tmp.npy"), torch.cat(rows).numpy())
        path.with_suffix(".tmp.npy").rename(path)
        note.write_text(json.dumps(key))
    return torch.from_numpy(np.load(path))
