"""A reader of clean latents: what the generator's guess of a clip should show, judged where the guess is made.

The squared error of a guess says little about whether a dog looks like one. A small network that reads things, motion and
positions from the autoencoder's latents of true clips gives a second error, on what can be read of the generator's guess
(features: Berrada et al. 2025, "Boosting latent diffusion with perceptual objectives"; labels: ReFL, Xu et al. 2023,
"ImageReward"). The judges that measure the kit see pixels, are another network, and take no part in this.

Shapes: B clips, F frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from kit.loop import has_bf16
from kit.pool import VISIBLE, Pool, named_loss
from kit.scans import to_pixels
from mindvideo.models.foundation import Foundation
from mindvideo.simulate.scenes import COLUMNS, MOTIONS, ROWS, Clip, locate

READS = VISIBLE | {"motion": MOTIONS, "column": COLUMNS, "row": ROWS}
CHANNELS = (64, 128, 160)


def _block(narrow: int, wide: int, stride: int, frames: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(narrow, wide, (frames, 3, 3), (1, stride, stride), (frames // 2, 1, 1)),
        nn.GroupNorm(8, wide),
        nn.SiLU(),
    )


class LatentReader(nn.Module):
    """Reads attributes of a clip from its scaled latents (B, 4, F, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        narrow, middle, wide = CHANNELS
        self.fine = nn.Sequential(_block(4, narrow, 1, 1), _block(narrow, narrow, 1, 3))
        self.coarse = nn.Sequential(_block(narrow, middle, 2, 1), _block(middle, middle, 1, 3))
        self.top = nn.Sequential(_block(middle, wide, 2, 3), _block(wide, wide, 1, 3), nn.Dropout3d(0.1))
        self.squeeze = nn.Conv3d(wide, 24, 1)
        self.heads = nn.ModuleDict(
            {name: nn.Linear(2 * wide + 24 * 6 * 16, len(names)) for name, names in READS.items()}
        )

    def forward(self, latents: torch.Tensor) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        """Logits by attribute, (B, values), and features of two sizes, (B, C, F, h, w)."""
        fine = self.fine(latents)
        coarse = self.coarse(fine)
        top = self.top(coarse)
        pooled = torch.cat([top.mean((2, 3, 4)), top.amax((2, 3, 4)), self.squeeze(top).flatten(1)], 1)
        return {name: head(pooled) for name, head in self.heads.items()}, [fine, coarse]


def labels_of(clips: list[Clip]) -> dict[str, np.ndarray]:
    """Index of each attribute's value, (B,), by name; -1 where none is named, and for clips of two scenes."""
    found = {}
    for name, names in READS.items():
        rows = []
        for clip in clips:
            place = {"column": 0, "row": 1}.get(name)
            where = locate(clip.scene, float(clip.times_s.mean()) + 1 / 6) if place is not None else (None, None)
            value = getattr(clip.scene, name) if place is None else where[place]
            rows.append(-1 if value is None or len(clip.film) > 1 else names.index(value))
        found[name] = np.array(rows)
    return found


@torch.inference_mode()
def encode_pool(foundation: Foundation, pool: Pool, path: Path) -> np.ndarray:
    """Latents float16 (N, 4, F, 16, 16) of the pool's clips, kept in ``path``."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        for start in range(0, len(pool.frames), 32):
            pixels = to_pixels(pool.frames[start : start + 32])
            flat = pixels.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16()):
                latents = foundation.vae.encode(flat).latent_dist.mean.float() * foundation.vae.config.scaling_factor
            parts.append(latents.unflatten(0, pixels.shape[:2]).transpose(1, 2).half().numpy())
        np.save(path.with_suffix(".partial.npy"), np.concatenate(parts))
        path.with_suffix(".partial.npy").rename(path)
    return np.load(path)


class ReaderTask:
    """Cross-entropy of every attribute from latents with a little noise and a little blur, as early guesses have."""

    def __init__(self, reader: LatentReader, latents: np.ndarray, labels: dict[str, np.ndarray], batch: int) -> None:
        self.reader, self.latents, self.labels, self.batch = reader, latents, labels, batch

    def modules(self) -> nn.ModuleDict:
        """The reader."""
        return nn.ModuleDict({"reader": self.reader})

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum over attributes."""
        index = np.sort(rng.choice(len(self.latents), self.batch, replace=False))
        latents = torch.from_numpy(self.latents[index]).float()
        soft = F.avg_pool3d(latents, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
        latents = latents.lerp(soft, 0.7 * torch.rand(self.batch, 1, 1, 1, 1))
        latents = latents + 0.4 * torch.rand(self.batch, 1, 1, 1, 1) * torch.randn_like(latents)
        logits, _ = self.reader(latents)
        losses = {name: named_loss(values, self.labels[name][index]) for name, values in logits.items()}
        return torch.stack(list(losses.values())).sum(), {name: float(v.detach()) for name, v in losses.items()}


def save_reader(reader: LatentReader, kit: Path) -> None:
    """Write ``KIT/reader.safetensors``."""
    save_file(reader.state_dict(), kit / "reader.safetensors")


def load_reader(kit: Path) -> LatentReader:
    """The trained reader, frozen."""
    reader = LatentReader()
    reader.load_state_dict(load_file(kit / "reader.safetensors"))
    return reader.eval().requires_grad_(False)


def read_loss(
    reader: LatentReader,
    guess: torch.Tensor,
    latents: torch.Tensor,
    labels: dict[str, np.ndarray],
    weight: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far what is read of a guess lies from what is there.

    Parameters
    ----------
    reader : LatentReader
        Frozen.
    guess, latents : Tensor, float32 (B, 4, F, 16, 16)
        The generator's guess of the clean latents, and the true ones.
    labels : dict of str to ndarray, int (B,)
    weight : Tensor, float32 (B,)
        How much each clip's guess counts.

    Returns
    -------
    (Tensor, Tensor)
        The weighted squared distance of features, each channel at the truth's scale, and the weighted cross-entropy of
        things and motions; scalars.
    """
    logits, features = reader(guess)
    with torch.no_grad():
        _, wanted = reader(latents)
    far = torch.zeros(len(guess))
    for mine, true in zip(features, wanted, strict=True):
        scale = true.std((0, 2, 3, 4), keepdim=True) + 1e-3
        far = far + ((mine - true) / scale).square().flatten(1).mean(1)
    told = torch.zeros(len(guess))
    for name in ("thing", "motion"):
        target = torch.from_numpy(labels[name])
        told = told + F.cross_entropy(logits[name].float(), target.clamp(min=0), reduction="none") * (target >= 0)
    return (weight * far).mean(), (weight * told).mean()
