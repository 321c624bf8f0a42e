"""An encoder that is not the paper's: what `docs/extend/encoder.md` shows, used by the tests through its name."""

import torch
from torch import nn


class ConvolutionEncoder(nn.Module):
    """Convolutions along the voxels, then one linear map to the tokens."""

    def __init__(self, num_voxels, window, condition_length, condition_width, hidden=4):
        super().__init__()
        self.shape = (condition_length, condition_width)
        self.body = nn.Sequential(
            nn.Conv1d(window, hidden, 9, stride=4), nn.GELU(), nn.AdaptiveAvgPool1d(32), nn.Flatten(),
            nn.Linear(32 * hidden, condition_length * condition_width),
        )  # fmt: skip

    def forward(self, fmri: torch.Tensor) -> torch.Tensor:
        """(B, W, V) to (B, L, C)."""
        return self.body(fmri).unflatten(1, self.shape)


class ChoosyEncoder(ConvolutionEncoder):
    """One whose shapes follow from its data: it reads the scans that are not silent."""

    def forward(self, fmri):
        kept = fmri.abs().sum((1, 2)) > 0
        return fmri.new_zeros(len(fmri), *self.shape).index_put((kept.nonzero()[:, 0],), super().forward(fmri[kept]))


class WrongShape(ConvolutionEncoder):
    def forward(self, fmri):
        return super().forward(fmri)[:, 1:]
