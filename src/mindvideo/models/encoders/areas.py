"""An encoder whose tokens are cortical areas, for one person or several (docs/method.md, Tokens that are areas).

The whole cortex is then 360 tokens a scan instead of some 3,700 patches, and a token means the same
in everyone: each person has matrices from voxels to areas, and the rest is shared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import register_to_config

from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.encoders.read_out import ReadOut
from mindvideo.models.transformer import check_scale
from mindvideo.voxel_layout import VoxelLayout


class AreaEncoder(ReadOut):
    """Scans to tokens that are areas, the paper's blocks, and a `LowRankHead`.

    Parameters
    ----------
    layouts : list of dict
        `VoxelLayout.to_config` of each person; SettingError for voxels without a known place.
    window, embed_dim, depth, num_heads, mlp_ratio, condition_length, condition_width, dropout,
    layer_norm
        As in `FmriEncoder`.
    head_rank : int
        Rank of the `LowRankHead`.
    input_mean, input_scale, voxel_id, has_temporal_attention
        As in `FmriEncoder`; ``voxel_id`` is the first person's.
    num_voxels : int, optional
        The most of any person; counted from the layouts.
    """

    @register_to_config
    def __init__(
        self,
        layouts: list[dict[str, Any]],
        window: int = 2,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 1.0,
        condition_length: int = 77,
        condition_width: int = 768,
        dropout: float = 0.6,
        layer_norm: bool = False,
        head_rank: int = 256,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        voxel_id: str | None = None,
        has_temporal_attention: bool | None = None,
        num_voxels: int | None = None,
    ) -> None:
        super().__init__()
        check_scale(input_scale)
        self.settle_attention(has_temporal_attention)
        self.may_leave_out = len(layouts) > 1
        maps = AreaMaps([VoxelLayout.from_config(layout) for layout in layouts], embed_dim)
        self.register_to_config(num_voxels=maps.voxels)
        self.build_trunk(maps.num_areas, maps)

    def token_voxels(self, person: int = 0) -> list[np.ndarray]:
        """Voxels of each area."""
        assert isinstance(self.patch_embed, AreaMaps)
        return self.patch_embed.members[person]

    def embed(self, fmri: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Areas' tokens with their positions: (B, W, V) to (B, W, A, D)."""
        assert isinstance(self.patch_embed, AreaMaps)
        batch, window = fmri.shape[:2]
        people = None if person is None else person.repeat_interleave(window)
        return self.patch_embed.encode(self.scaled(fmri).flatten(0, 1), people).unflatten(0, (batch, window))
