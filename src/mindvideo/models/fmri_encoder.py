"""The fMRI encoder with spatiotemporal attention: a window of scans to condition tokens (docs/method.md, The encoder, paper 3.3).

Shapes: B batch, W scans per window, V voxels, P patches, D embedding, L condition tokens, C condition width.
"""

from __future__ import annotations

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.errors import ModelError
from mindvideo.models.loading import WholeModel
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.transformer import (
    Attention,
    Mlp,
    PatchEmbed,
    PatchWeights,
    check_fmri,
    check_scale,
    count_patches,
    initialise,
    position_table,
    split_patches,
)


class StochasticDepth(nn.Module):
    """Drop a residual branch of whole windows with probability ``rate`` in training, scaling the others up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        """Branch (B, ...) to (B, ...)."""
        if not self.training or self.rate == 0.0:
            return branch
        shape = (len(branch),) + (1,) * (branch.ndim - 1)
        is_kept = torch.rand(shape, device=branch.device) >= self.rate
        return branch * (is_kept / (1.0 - self.rate)).to(branch.dtype)


class WindowBlock(nn.Module):
    """A pre-norm block: attention over the patches of each scan, then over the scans of each patch, then the MLP."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, dropout: float, has_temporal_attention: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.attn = Attention(dim, num_heads)
        self.norm_temp = nn.LayerNorm(dim, eps=1e-5) if has_temporal_attention else None
        self.attn_temp = Attention(dim, num_heads) if has_temporal_attention else None
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = StochasticDepth(dropout)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, W, P, D) to (B, W, P, D)."""
        return self.mix_features(self.mix_scans(self.mix_patches(tokens)))

    def mix_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add the attention over the P patches of each scan."""
        mixed = self.attn(self.norm1(tokens).flatten(0, 1))
        return tokens + self.drop_path(mixed.view_as(tokens))

    def scans_by_patch(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalised tokens (B, W, P, D) as temporal attention sees them, (B·P, W, D)."""
        assert self.norm_temp is not None
        return self.norm_temp(tokens).transpose(1, 2).flatten(0, 1)

    def mix_scans(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add the attention over the W scans of each patch."""
        if self.attn_temp is None:
            return tokens
        mixed = self.attn_temp(self.scans_by_patch(tokens))
        return tokens + self.drop_path(mixed.unflatten(0, (tokens.shape[0], tokens.shape[2])).transpose(1, 2))

    def mix_features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Add the MLP."""
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class ProjectionHead(nn.Module):
    """All tokens of a window, side by side, to the condition tokens."""

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        length: int,
        width: int,
        dropout: float,
        has_layer_norm: bool,
        has_offset: bool = False,
    ) -> None:
        super().__init__()
        self.channel_mapper = nn.Linear(num_tokens, length, bias=False)
        self.projection = nn.Linear(embed_dim, width, bias=False)
        self.fc = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5) if has_layer_norm else None
        self.offset = nn.Parameter(torch.zeros(length, width)) if has_offset else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, W·P, D) to condition (B, L, C)."""
        mapped = self.channel_mapper(tokens.transpose(1, 2)).transpose(1, 2)
        projected = self.projection(mapped)
        condition = projected + self.dropout(self.fc(F.gelu(projected)))
        if self.layer_norm is not None:
            condition = self.layer_norm(condition)
        return condition if self.offset is None else condition + self.offset


class LowRankHead(nn.Module):
    """All tokens of a window through a bottleneck to the condition tokens, each with weights of its own.

    `ProjectionHead` gives every condition token the same channels of the patches, weighted otherwise; a word's token
    that wants other channels than its neighbour's cannot have them. Here any linear map of that rank can be learned.
    """

    def __init__(
        self,
        num_tokens: int,
        embed_dim: int,
        length: int,
        width: int,
        rank: int,
        dropout: float,
        has_layer_norm: bool,
        has_offset: bool = False,
    ) -> None:
        super().__init__()
        self.shape = (length, width)
        self.gather = nn.Linear(num_tokens * embed_dim, rank, bias=False)
        self.spread = nn.Linear(rank, length * width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5) if has_layer_norm else None
        self.offset = nn.Parameter(torch.zeros(length, width)) if has_offset else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, W·P, D) to condition (B, L, C)."""
        condition = self.spread(self.dropout(self.gather(tokens.flatten(1)))).unflatten(1, self.shape)
        if self.layer_norm is not None:
            condition = self.layer_norm(condition)
        return condition if self.offset is None else condition + self.offset


class FmriEncoder(WholeModel):
    """A window of fMRI scans to the condition of the generator.

    Parameters
    ----------
    num_voxels : int
        V; a last partial patch is wrapped around.
    window : int
        W, scans per window.
    patch_size, patch_weights, embed_dim, depth, num_heads, mlp_ratio
        As in `MaskedBrainModel`.
    condition_length, condition_width : int
        L and C of the text encoder whose place the condition takes.
    dropout : float
        Stochastic depth of every block and dropout of the projection head.
    layer_norm : bool
        Normalise the condition.
    input_mean, input_scale : float
        The scans are taken as (fmri - input_mean) / input_scale.
    voxel_id : str, optional
        Which voxels the encoder was trained on (the store's ``voxel_id``).
    token_bias : bool
        Add a learned (L, C) offset to the condition, which `align` starts at the mean text token. The paper's head has
        none and must learn that mean through its weights first.
    has_temporal_attention : bool, optional
        Without it the blocks are those of a masked brain model. By default a window of one scan has none: the paper's
        encoder then "falls back to a normal MBM encoder" (section 5).
    head : {"factorised", "low_rank"}
        The paper's head (`ProjectionHead`), or `LowRankHead` of rank ``head_rank``.
    head_rank : int

    Notes
    -----
    ``pos_embed`` is fixed, and ``cls_token`` and ``mask_token``, which released files hold, take no part: the three are
    saved, but buffers rather than parameters.

    References
    ----------
    Chen, Qing, Zhou, Cinematic Mindscapes, 2023, section 3.3, Eq. 1–2.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        num_voxels: int,
        window: int = 2,
        patch_size: int = 16,
        patch_weights: PatchWeights = "shared",
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 1.0,
        condition_length: int = 77,
        condition_width: int = 768,
        dropout: float = 0.6,
        layer_norm: bool = False,
        token_bias: bool = False,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        voxel_id: str | None = None,
        has_temporal_attention: bool | None = None,
        head: Literal["factorised", "low_rank"] = "factorised",
        head_rank: int = 128,
    ) -> None:
        super().__init__()
        check_scale(input_scale)
        if has_temporal_attention is None:
            has_temporal_attention = window > 1
            self.register_to_config(has_temporal_attention=has_temporal_attention)
        self.num_patches = count_patches(num_voxels, patch_size)
        self.gradient_checkpointing = False
        self.patch_embed = PatchEmbed(self.num_patches, patch_size, embed_dim, patch_weights)
        self.register_buffer("cls_token", torch.zeros(1, 1, embed_dim))
        self.register_buffer("mask_token", torch.zeros(1, 1, embed_dim))
        self.register_buffer("pos_embed", position_table(self.num_patches, embed_dim))
        self.blocks = nn.ModuleList(
            WindowBlock(embed_dim, num_heads, mlp_ratio, dropout, has_temporal_attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(embed_dim, eps=1e-5)
        sizes = (window * self.num_patches, embed_dim, condition_length, condition_width)
        self.proj_head: ProjectionHead | LowRankHead
        if head == "low_rank":
            self.proj_head = LowRankHead(*sizes, head_rank, dropout, layer_norm, token_bias)
        else:
            self.proj_head = ProjectionHead(*sizes, dropout, layer_norm, token_bias)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.apply(initialise)
        for block in self._window_blocks():
            if block.attn_temp is not None:  # starts as identity; its bias is zero already
                nn.init.zeros_(block.attn_temp.proj.weight)

    @classmethod
    def from_masked_brain(
        cls,
        model: MaskedBrainModel,
        *,
        window: int,
        condition_length: int,
        condition_width: int,
        **settings: Any,
    ) -> FmriEncoder:
        """An encoder that starts from the masked brain model's; temporal attention is identity, the head is new.

        Parameters
        ----------
        model : MaskedBrainModel
            Of the same voxels.
        window, condition_length, condition_width : int
        **settings
            The other settings of `FmriEncoder` that the masked brain model does not determine: ``dropout``,
            ``layer_norm``, ``token_bias``, ``voxel_id``, ``has_temporal_attention``, ``head``, ``head_rank``.

        Returns
        -------
        FmriEncoder
            Its `tokens` of every scan equal ``model.encode`` of that scan.
        """
        shared = ("num_voxels", "patch_size", "patch_weights", "embed_dim", "depth", "num_heads", "mlp_ratio",
                  "input_mean", "input_scale")  # fmt: skip
        encoder = cls(
            window=window,
            condition_length=condition_length,
            condition_width=condition_width,
            **{name: model.config[name] for name in shared},
            **settings,
        )
        own = encoder.state_dict()
        parts = ("patch_embed.", "cls_token", "pos_embed", "blocks.", "norm.")
        copied = {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
        encoder.load_state_dict(own | copied)
        nn.Module.to(encoder, device=model.device, dtype=model.dtype)
        return encoder

    def forward(self, fmri: torch.Tensor) -> torch.Tensor:
        """Condition of each window.

        Parameters
        ----------
        fmri : Tensor, (B, W, V), float32

        Returns
        -------
        Tensor, (B, L, C)

        Raises
        ------
        ModelError
            For another window or another number of voxels.
        """
        return self.proj_head(self.tokens(fmri).flatten(1, 2))

    @staticmethod
    def pool(condition: torch.Tensor) -> torch.Tensor:
        """Mean over the condition's tokens: (B, L, C) to (B, C)."""
        return condition.mean(dim=1)

    def tokens(self, fmri: torch.Tensor) -> torch.Tensor:
        """Tokens before the projection head: fMRI (B, W, V) to (B, W, P, D)."""
        tokens = self._embed(fmri)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        return self.norm(tokens)

    @torch.no_grad()
    def attention_maps(self, fmri: torch.Tensor) -> torch.Tensor:
        """Attention each patch receives from the patches of its scan, layer by layer.

        Parameters
        ----------
        fmri : Tensor, (B, W, V), float32

        Returns
        -------
        Tensor, (depth, P), float32
            Mean over heads, queries, scans and windows; each row sums to 1. Windows of several calls may be averaged.
        """
        tokens = self._embed(fmri)
        maps = []
        for block in self._window_blocks():
            maps.append(block.attn.mean_weights(block.norm1(tokens).flatten(0, 1)).mean(dim=0))
            tokens = block(tokens)
        return torch.stack(maps)

    @torch.no_grad()
    def temporal_attention(self, fmri: torch.Tensor) -> torch.Tensor:
        """Attention between the scans of a window, layer by layer.

        Parameters
        ----------
        fmri : Tensor, (B, W, V), float32

        Returns
        -------
        Tensor, (depth, W, W), float32
            Queries by keys; mean over heads, patches and windows; rows sum to 1.

        Raises
        ------
        ModelError
            For an encoder without temporal attention.
        """
        if not self.config.has_temporal_attention:
            raise ModelError("expected an encoder with temporal attention, found one without; it mixes no scans")
        tokens = self._embed(fmri)
        maps = []
        for block in self._window_blocks():
            assert block.attn_temp is not None
            tokens = block.mix_patches(tokens)
            maps.append(block.attn_temp.mean_weights(block.scans_by_patch(tokens)))
            tokens = block.mix_features(block.mix_scans(tokens))
        return torch.stack(maps)

    def _window_blocks(self) -> list[WindowBlock]:
        return cast(list[WindowBlock], list(self.blocks))

    def _embed(self, fmri: torch.Tensor) -> torch.Tensor:
        """Scaled patches with their positions: (B, W, V) to (B, W, P, D)."""
        check_fmri(fmri, (None, self.config.window, self.config.num_voxels), "BWV", "FmriEncoder")
        scaled = (fmri - self.config.input_mean) / self.config.input_scale
        patches = split_patches(scaled.flatten(0, 1), self.config.patch_size)
        tokens = self.patch_embed(patches) + self.pos_embed[:, 1:]
        return tokens.unflatten(0, fmri.shape[:2])
