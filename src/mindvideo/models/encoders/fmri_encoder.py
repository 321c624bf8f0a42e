"""The fMRI encoder with spatiotemporal attention (docs/method.md, The encoder, paper 3.3).

Shapes: B batch, W scans per window, V voxels, P patches, D embedding, L condition tokens, C
condition width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.models.interfaces import Encoder, VoxelLayout, only_person
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
    run_blocks,
    split_patches,
)


class StochasticDepth(nn.Module):
    """In training, drop a residual branch of whole windows with probability ``rate`` (stochastic depth)."""

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
    """A pre-norm block: attention over a scan's patches, then over a patch's scans, then the MLP."""

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
    ) -> None:
        super().__init__()
        self.channel_mapper = nn.Linear(num_tokens, length, bias=False)
        self.projection = nn.Linear(embed_dim, width, bias=False)
        self.fc = nn.Linear(width, width, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.layer_norm = nn.LayerNorm(width, eps=1e-5) if has_layer_norm else None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, W·P, D) to condition (B, L, C)."""
        mapped = self.channel_mapper(tokens.transpose(1, 2)).transpose(1, 2)
        projected = self.projection(mapped)
        condition = projected + self.dropout(self.fc(F.gelu(projected)))
        return condition if self.layer_norm is None else self.layer_norm(condition)


class WindowTransformer(Encoder):
    """Tokens of each scan, `WindowBlock`s, and a head, as in the paper's encoder.

    A subclass calls `build_trunk` at the end of its constructor and offers `embed`.
    """

    _supports_gradient_checkpointing = True
    starts_from_masked_brain = True

    def build_trunk(self, num_tokens: int, embedding: nn.Module) -> None:
        """Make the blocks and the head by the configuration, for T tokens a scan."""
        config = self.config
        width = config.embed_dim
        self.gradient_checkpointing = False
        self.patch_embed = embedding
        self.register_buffer("cls_token", torch.zeros(1, 1, width))
        self.register_buffer("mask_token", torch.zeros(1, 1, width))
        self.register_buffer("pos_embed", position_table(num_tokens, width))
        mixes_scans = config.has_temporal_attention
        self.blocks = nn.ModuleList(
            WindowBlock(width, config.num_heads, config.mlp_ratio, config.dropout, mixes_scans)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.proj_head = self.new_head(config.window * num_tokens)
        self.add_logit_scale()
        self.apply(initialise)
        for block in self._window_blocks():
            if block.attn_temp is not None:  # starts as identity; its bias is zero already
                nn.init.zeros_(block.attn_temp.proj.weight)

    def new_head(self, num_tokens: int) -> nn.Module:
        """The paper's head of W·T tokens."""
        config = self.config
        sizes = (num_tokens, config.embed_dim, config.condition_length, config.condition_width)
        return ProjectionHead(*sizes, config.dropout, config.layer_norm)

    @classmethod
    def build(
        cls, layouts: Sequence[VoxelLayout], sizes: Mapping[str, Any], architecture: Mapping[str, Any], **settings: Any
    ) -> Self:
        """See `Encoder.build`; SettingError for several people where it can be of one only."""
        known = cls._get_init_keys(cls)
        if "layouts" in known:
            settings["layouts"] = [layout.to_config() for layout in layouts]
        else:
            settings["num_voxels"] = only_person(layouts, cls.__name__).num_voxels
        chosen = {name: value for name, value in architecture.items() if name in known}
        return cls(voxel_id=layouts[0].voxel_id, **chosen, **sizes, **settings)

    @classmethod
    def from_masked_brain(cls, model: MaskedBrainModel, **settings: Any) -> Self:
        """Go on from a masked brain model of the same voxels, on its device and in its precision.

        `tokens` of every scan equal ``model.encode`` of that scan: temporal attention starts as
        identity. The head is new.
        """
        shared = cls._get_init_keys(cls) & set(model.config)
        encoder = cls(**{name: model.config[name] for name in shared}, **settings)
        parts = ("patch_embed.", "cls_token", "pos_embed", "blocks.", "norm.")
        copied = {name: weight for name, weight in model.state_dict().items() if name.startswith(parts)}
        encoder.load_state_dict(encoder.state_dict() | copied)
        return nn.Module.to(encoder, device=model.device, dtype=model.dtype)

    def settle_attention(self, has_temporal_attention: bool | None) -> None:
        """Give a window of one scan no temporal attention where nothing is said of it."""
        if has_temporal_attention is None:
            self.register_to_config(has_temporal_attention=self.config.window > 1)

    @abstractmethod
    def embed(self, fmri: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Tokens of each scan with their positions: (B, W, V) to (B, W, T, D)."""

    def scaled(self, fmri: torch.Tensor) -> torch.Tensor:
        """Scaled scans (B, W, V); ModelError for another window or number of voxels."""
        check_fmri(fmri, (None, self.config.window, self.config.num_voxels), "BWV", type(self).__name__)
        return (fmri - self.config.input_mean) / self.config.input_scale

    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """See `Encoder.forward`; ModelError for another window or number of voxels."""
        return self.proj_head(self.tokens(fmri, person).flatten(1, 2))

    def tokens(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens before the head: fMRI (B, W, V) to (B, W, T, D)."""
        return self.norm(run_blocks(self, self.blocks, self.embed(fmri, person)))

    @torch.no_grad()
    def attention_maps(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """See `Encoder.attention_maps`."""
        tokens = self.embed(fmri, person)
        maps = []
        for block in self._window_blocks():
            maps.append(block.attn.mean_weights(block.norm1(tokens).flatten(0, 1)).mean(dim=0))
            tokens = block(tokens)
        return torch.stack(maps)

    @torch.no_grad()
    def temporal_attention(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor | None:
        """See `Encoder.temporal_attention`."""
        if not self.config.has_temporal_attention:
            return None
        tokens = self.embed(fmri, person)
        maps = []
        for block in self._window_blocks():
            assert block.attn_temp is not None
            tokens = block.mix_patches(tokens)
            maps.append(block.attn_temp.mean_weights(block.scans_by_patch(tokens)))
            tokens = block.mix_features(block.mix_scans(tokens))
        return torch.stack(maps)

    def _window_blocks(self) -> list[WindowBlock]:
        return cast(list[WindowBlock], list(self.blocks))


class FmriEncoder(WindowTransformer):
    """The paper's encoder of one person's fMRI.

    Parameters
    ----------
    num_voxels : int
        V; a last partial patch is wrapped around.
    window : int
        W, scans per window.
    patch_size, patch_weights, embed_dim, depth, num_heads, mlp_ratio
        As in `MaskedBrainModel`.
    condition_length, condition_width : int
        L and C, the text encoder's.
    dropout : float
        Stochastic depth of every block and dropout of the projection head.
    layer_norm : bool
        Normalise the condition.
    input_mean, input_scale : float
        Scans enter as (fmri - input_mean) / input_scale.
    voxel_id : str, optional
        The ``voxel_id`` of the store.
    has_temporal_attention : bool, optional
        By default for windows of two scans or more; without it, the encoder "falls back to a normal
        MBM encoder" (section 5).

    Notes
    -----
    ``pos_embed`` is fixed, and ``cls_token`` and ``mask_token`` of released files are unused: the
    three are buffers.

    References
    ----------
    Chen, Qing, Zhou, Cinematic Mindscapes, 2023, section 3.3, Eq. 1–2.
    """

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
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        voxel_id: str | None = None,
        has_temporal_attention: bool | None = None,
    ) -> None:
        super().__init__()
        check_scale(input_scale)
        self.settle_attention(has_temporal_attention)
        self.num_patches = count_patches(num_voxels, patch_size)
        self.build_trunk(self.num_patches, PatchEmbed(self.num_patches, patch_size, embed_dim, patch_weights))

    def token_voxels(self, person: int = 0) -> list[np.ndarray]:
        """Voxels of each patch; the last one wraps around to the first voxels."""
        places = np.arange(self.num_patches * self.config.patch_size) % self.config.num_voxels
        return list(places.reshape(self.num_patches, -1))

    def embed(self, fmri: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Scaled patches with their positions: (B, W, V) to (B, W, P, D)."""
        patches = split_patches(self.scaled(fmri).flatten(0, 1), self.config.patch_size)
        tokens = self.patch_embed(patches) + self.pos_embed[:, 1:]
        return tokens.unflatten(0, fmri.shape[:2])
