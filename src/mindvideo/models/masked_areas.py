"""Masked brain modelling with areas as tokens (docs/method.md, Tokens that are areas).

Shapes: B scans, V voxels (of the person who has most), A areas, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.transformer import check_fmri, check_scale
from mindvideo.voxel_layout import VoxelLayout


class MaskedAreaModel(MaskedBrainModel):
    """Masked autoencoder that hides whole areas.

    Values come back by the transposed matrices. The loss is a mean over an area's voxels, then over
    the masked areas that have voxels.

    Parameters
    ----------
    layouts : list of dict
        `VoxelLayout.to_config` of each person.
    embed_dim, depth, num_heads, mlp_ratio, decoder_embed_dim, decoder_depth, decoder_num_heads,
    mask_ratio
        As in `MaskedBrainModel`, with areas for patches.
    input_mean, input_scale
        As in `MaskedBrainModel`.
    num_voxels : int, optional
        The most of any person; counted from the layouts.
    """

    fewest_visible = 1  # a choice of voxels may lie in two areas

    @register_to_config
    def __init__(
        self,
        layouts: list[dict[str, Any]],
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 1.0,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        input_mean: float = 0.0,
        input_scale: float = 1.0,
        num_voxels: int | None = None,
    ) -> None:
        super(MaskedBrainModel, self).__init__()
        check_scale(input_scale)
        maps = AreaMaps([VoxelLayout.from_config(layout) for layout in layouts], embed_dim)
        self.register_to_config(num_voxels=maps.voxels)
        self.build_trunk(maps.num_areas, maps)
        self.voxel_bias = nn.ParameterList(nn.Parameter(torch.zeros(len(weight))) for weight in maps.weight)

    def new_prediction(self, num_tokens: int) -> nn.Module:
        """From the decoder's tokens to embeddings of areas."""
        return nn.Linear(self.config.decoder_embed_dim, self.config.embed_dim)

    @classmethod
    def from_other_people(
        cls, model: MaskedAreaModel, layouts: Sequence[VoxelLayout], **scale: float
    ) -> MaskedAreaModel:
        """A copy for other people, with new matrices; ``input_mean`` and ``input_scale`` may be given."""
        kept = [layout.to_config() for layout in layouts]
        other = cls.from_config(dict(model.config) | {"num_voxels": None}, layouts=kept, **scale)
        own = ("patch_embed.", "voxel_bias.", "pos_embed", "decoder_pos_embed")
        copied = {name: weight for name, weight in model.state_dict().items() if not name.startswith(own)}
        other.load_state_dict(other.state_dict() | copied)
        nn.Module.to(other, device=model.device, dtype=model.dtype)
        return other

    @property
    def maps(self) -> AreaMaps:
        """Between voxels and tokens."""
        assert isinstance(self.patch_embed, AreaMaps)
        return self.patch_embed

    def patches(self, fmri: torch.Tensor) -> torch.Tensor:
        """Scaled scans (B, V), as they enter and as they are predicted."""
        return (fmri - self.config.input_mean) / self.config.input_scale

    def embed(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """All areas with their positions: (B, V) to (B, A, D)."""
        check_fmri(fmri, (None, self.config.num_voxels), "BV", type(self).__name__)
        return self.maps.encode(self.patches(fmri), person)

    def predict(self, hidden: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Scaled values (B, V), from the decoder's tokens (B, A, decoder width)."""
        read = self.maps.decode(self.decoder_pred(hidden), person)
        bias = nn.utils.rnn.pad_sequence(list(self.voxel_bias), batch_first=True)
        return read + (bias[0] if person is None else bias[person])

    def errors(
        self, prediction: torch.Tensor, target: torch.Tensor, person: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean squared error over each area's voxels (B, A), of scaled scans (B, V)."""
        return self.maps.area_means((prediction - target.float()).square(), person)

    def counted(self, person: torch.Tensor | None, count: int) -> torch.Tensor:
        """Which areas have voxels, bool (B, A)."""
        return self.maps.present(person, count)
