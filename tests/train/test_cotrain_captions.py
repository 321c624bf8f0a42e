"""Captions among co-training's conditions: which rows the generator reads them in, and that nothing else changes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from mindvideo.config import Cotrain
from mindvideo.train.cotrain import CotrainTask
from mindvideo.train.loop import Batch, Draw

ROWS, LENGTH, WIDTH, VOXELS = 11, 3, 5, 7


class Encoder(nn.Linear):
    may_leave_out = False

    def __init__(self) -> None:
        super().__init__(VOXELS, LENGTH * WIDTH)

    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(fmri.mean(1)).unflatten(1, (LENGTH, WIDTH))


class Target:
    def tokens(self, index: np.ndarray) -> torch.Tensor:
        return 100.0 + torch.from_numpy(index).float()[:, None, None].expand(-1, LENGTH, WIDTH)

    def distances(self, condition: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return condition.square().flatten(1).mean(1)


def read_by_the_generator(
    share: float, token_weight: float = 0.0
) -> tuple[torch.Tensor, np.ndarray, torch.Tensor, Encoder]:
    """The condition, which windows it is for, and the loss of one batch of nine."""
    torch.manual_seed(0)
    read: list[torch.Tensor] = []

    def drawn_losses(unet: nn.Module, batch: Batch, condition: torch.Tensor) -> torch.Tensor:
        read.append(condition)
        return condition.flatten(1).mean(1)

    diffusion = SimpleNamespace(drawn_losses=drawn_losses, draw=lambda clean: {"clean": clean})
    settings = Cotrain(caption_share=share, token_weight=token_weight, batch_size=9)
    windows = SimpleNamespace(
        fmri=lambda index: np.ones((len(index), 2, VOXELS), np.float32), person=np.zeros(ROWS, np.int64)
    )
    encoder = Encoder()
    task = CotrainTask(encoder, nn.Linear(1, 1), diffusion, windows,  # type: ignore[arg-type]
                       torch.zeros(ROWS, 6, 4, 2, 2), Target(), settings, torch.device("cpu"))  # type: ignore[arg-type]  # fmt: skip
    batch = task.sample(Draw(np.random.default_rng(3), 9, 0, 0, 5))
    losses, _ = task.losses(batch)
    assert losses.shape == (9,)
    return read[0], batch["index"], losses.mean(), encoder


def test_none_by_default() -> None:
    assert Cotrain().caption_share == 0
    condition, _, _, encoder = read_by_the_generator(0.0)
    torch.testing.assert_close(condition, encoder(torch.ones(9, 2, VOXELS)))


def test_some_rows_are_the_captions_of_their_own_windows() -> None:
    condition, index, loss, encoder = read_by_the_generator(0.5)
    drawn = np.random.default_rng([5, 0]).permutation(ROWS)[:9]
    assert np.array_equal(index, drawn)
    is_caption = np.random.default_rng(3).random(9) < 0.5
    own = encoder(torch.ones(1, 2, VOXELS))[0]
    for row in range(9):
        expected = torch.full((LENGTH, WIDTH), 100.0 + drawn[row]) if is_caption[row] else own
        torch.testing.assert_close(condition[row], expected)
    assert 0 < is_caption.sum() < 9
    loss.backward()
    assert float(encoder.bias.grad.sum()) == pytest.approx((9 - is_caption.sum()) / 9, rel=1e-5)


def test_tokens_are_regressed_in_every_row() -> None:
    condition, _, loss, encoder = read_by_the_generator(0.5, token_weight=2.0)
    tokens = encoder(torch.ones(9, 2, VOXELS)).square().mean()
    assert float(loss) == pytest.approx(float(condition.flatten(1).mean(1).mean() + 2 * tokens), rel=1e-5)
