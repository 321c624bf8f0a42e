"""Judges of a kit's generator: small networks, trained on other films from other seeds.

The kit's own classifiers help to train its generator, so their word on its clips is not independent.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import interpolate

from mindvideo.simulate.scenes import COLOURS, COLUMNS, MOTIONS, PLACES, ROWS, THINGS

NAMES = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "motion": MOTIONS, "column": COLUMNS, "row": ROWS}
SIZE = 64
"""Height and width in pixels that they were trained at; others are resized."""
SEES = {"image": ("thing", "colour", "place", "column", "row"), "video": ("thing", "motion", "column", "row")}


def _block(narrow: int, wide: int, stride: int, frames: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(narrow, wide, (frames, 3, 3), (1, stride, stride), (frames // 2, 1, 1), bias=False),
        nn.BatchNorm3d(wide),
        nn.ReLU(),
    )


class Judge(nn.Module):
    """Reads attributes of pictures (``image``, one frame) or of films (``video``, six)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        frames = 3 if kind == "video" else 1
        self.stem = nn.Sequential(
            _block(3, 24, 2, 1),
            _block(24, 48, 2, frames),
            _block(48, 96, 1, 1),
            _block(96, 96, 2, frames),
            _block(96, 160, 1, frames),
        )
        across = (6 if kind == "video" else 1) * 64 * 16
        self.squeeze = nn.Conv3d(160, 16, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * 160 + across, len(NAMES[name])) for name in SEES[kind]})

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits by attribute (B, values) from clips (B, F, 3, 64, 64) in [-1, 1]."""
        seen = self.stem(pixels.transpose(1, 2))
        pooled = torch.cat([seen.mean((2, 3, 4)), seen.amax((2, 3, 4)), self.squeeze(seen).flatten(1)], 1)
        return {name: head(pooled) for name, head in self.heads.items()}


def load_judge(kind: str, folder: Path) -> Judge:
    """The judge in ``folder``/``kind``.safetensors, in float32, ready to judge."""
    judge = Judge(kind)
    state = load_file(folder / f"{kind}.safetensors")
    judge.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    return judge.eval()


@torch.inference_mode()
def judge_clips(judge: Judge, clips: np.ndarray) -> dict[str, np.ndarray]:
    """The likeliest values in `NAMES`, (N, F) of pictures or (N,) of films, in uint8 clips."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in SEES[judge.kind]}
    for start in range(0, len(clips), 32):
        part = torch.from_numpy(clips[start : start + 32]).float().movedim(-1, -3) / 127.5 - 1
        if part.shape[-2:] != (SIZE, SIZE):
            part = interpolate(part.flatten(0, 1), (SIZE, SIZE), mode="bilinear", antialias=True).unflatten(
                0, part.shape[:2]
            )
        given = part.flatten(0, 1).unsqueeze(1) if judge.kind == "image" else part
        for name, logits in judge(given).items():
            best = logits.argmax(1).numpy()
            found[name].append(best.reshape(len(part), -1) if judge.kind == "image" else best)
    return {name: np.concatenate(parts) for name, parts in found.items()}
