"""Ours: the paper's encoder with a head that reads every condition token from patches of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.models.encoders.fmri_encoder import FmriEncoder, WindowTransformer
from mindvideo.models.interfaces import TokenStatistics
from mindvideo.models.loading import takes_settings_of


class LowRankHead(nn.Module):
    """All tokens of a window, through a bottleneck, to the condition tokens, and an offset.

    `ProjectionHead` gives every condition token the same channels of the patches, only weighted
    differently. Here, any linear map of the given rank can be learned.
    """

    def __init__(
        self, num_tokens: int, embed_dim: int, shape: tuple[int, int], rank: int, dropout: float, has_layer_norm: bool
    ) -> None:
        super().__init__()
        self.shape = shape
        self.gather = nn.Linear(num_tokens * embed_dim, rank, bias=False)
        self.spread = nn.Linear(rank, shape[0] * shape[1], bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(shape[1], eps=1e-5) if has_layer_norm else None
        self.offset = nn.Parameter(torch.zeros(shape))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, W·P, D) to condition (B, L, C)."""
        condition = self.spread(self.dropout(self.gather(tokens.flatten(1)))).unflatten(1, self.shape)
        return (condition if self.layer_norm is None else self.layer_norm(condition)) + self.offset

    @torch.no_grad()
    def start_at(self, tokens: TokenStatistics) -> None:
        """Start from the mean token and the principal components, scaled by their standard deviations."""
        rank = min(self.spread.in_features, len(tokens.components))
        self.offset.copy_(tokens.mean)
        self.spread.weight.zero_()
        self.spread.weight[:, :rank] = (tokens.components[:rank] * tokens.spread[:rank, None].sqrt()).T


class ReadOut(WindowTransformer):
    """A `WindowTransformer` with a `LowRankHead`."""

    def new_head(self, num_tokens: int) -> nn.Module:
        """The head of W·T tokens."""
        config = self.config
        shape = (config.condition_length, config.condition_width)
        return LowRankHead(num_tokens, config.embed_dim, shape, config.head_rank, config.dropout, config.layer_norm)

    def start_at(self, tokens: TokenStatistics) -> None:
        """Begin at the mean token and its principal components."""
        assert isinstance(self.proj_head, LowRankHead)
        self.proj_head.start_at(tokens)


class ReadOutEncoder(ReadOut, FmriEncoder):
    """The paper's encoder with a `LowRankHead`.

    Parameters
    ----------
    **settings
        Those of `FmriEncoder`.
    head_rank : int
        Rank of the head.
    """

    @register_to_config
    @takes_settings_of(FmriEncoder)
    def __init__(self, *, head_rank: int = 256, **settings: Any) -> None:
        super().__init__(**settings)
