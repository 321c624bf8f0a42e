"""Training of the judges (`mindvideo.evaluate.judges`): no other training sees them, their films or their seeds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from kit.pool import Pool, named_loss
from mindvideo.evaluate.judges import Judge


class JudgeTask:
    """Cross-entropy of every attribute; clips are made noisy and a little brighter or darker by chance."""

    def __init__(self, judge: Judge, pool: Pool, batch: int) -> None:
        self.judge, self.pool, self.batch = judge, pool, batch

    def modules(self) -> nn.ModuleDict:
        """The judge."""
        return nn.ModuleDict({"judge": self.judge})

    def loss(self, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum over attributes."""
        index = rng.integers(len(self.pool), size=self.batch)
        if self.judge.kind == "image":
            moment = rng.integers(self.pool.frames.shape[1], size=self.batch)
            pixels, where = self.pool.stills(index, moment)[0].unsqueeze(1), self.pool.where[index, moment]
        else:
            pixels, where = self.pool.films(index)[0], self.pool.where[index, -1]
        gain = 1 + 0.1 * torch.randn(self.batch, 1, 1, 1, 1)
        pixels = pixels * gain + 0.06 * rng.random() * torch.randn_like(pixels)
        losses = {}
        for name, values in self.judge(pixels).items():
            place = {"column": 0, "row": 1}.get(name)
            label = self.pool.labels[name][index] if place is None else where[:, place]
            losses[name] = named_loss(values, label)
        return torch.stack(list(losses.values())).sum(), {name: float(value.detach()) for name, value in losses.items()}


def save_judge(judge: Judge, folder: Path) -> None:
    """Write ``image.safetensors`` or ``video.safetensors`` in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half() if value.is_floating_point() else value for name, value in judge.state_dict().items()}
    save_file(state, folder / f"{judge.kind}.safetensors")
