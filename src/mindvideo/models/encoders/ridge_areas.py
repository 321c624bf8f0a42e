"""Ridge regression's reading of a window, to which tokens that are areas add what it leaves (docs/method.md, The encoder).

With few minutes of scans a network finds less than ridge regression does; with this encoder it
begins there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn

from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.models.encoders.read_out import LowRankHead
from mindvideo.models.interfaces import LinearReading
from mindvideo.models.loading import takes_settings_of


class FixedReading(nn.Module):
    """One person's `LinearReading`, which is not trained; 0 until it is given one.

    Parameters
    ----------
    inputs, rank, width : int
        W·V, K and L·C.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    components: torch.Tensor

    def __init__(self, inputs: int, rank: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(inputs, rank))
        self.register_buffer("bias", torch.zeros(rank))
        self.register_buffer("components", torch.zeros(rank, width))

    def take(self, reading: LinearReading) -> None:
        """Hold a reading; of one of a higher rank, its first components."""
        rank = min(len(reading.components), len(self.components))
        self.weight[:, :rank] = reading.weight[:, :rank]
        self.bias[:rank], self.components[:rank] = reading.bias[:rank], reading.components[:rank]

    def forward(self, fmri: torch.Tensor) -> torch.Tensor:
        """Windows (B, W, V) to tokens less their mean (B, L·C), in full precision: the sum is over thousands of voxels."""
        with torch.autocast(fmri.device.type, enabled=False):
            return (fmri.flatten(1).to(self.weight.dtype) @ self.weight + self.bias) @ self.components


class RidgeAreaEncoder(AreaEncoder):
    """The sum of an `AreaEncoder`, which starts at the mean tokens, and each person's ridge regression, which is fixed.

    Parameters
    ----------
    **settings
        Those of `AreaEncoder`; ``head_rank`` is also the reading's most components.
    """

    holds_readings = True

    @register_to_config
    @takes_settings_of(AreaEncoder)
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        config = self.config
        width = config.condition_length * config.condition_width
        inputs = [config.window * layout["num_voxels"] for layout in config.layouts]
        self.readings = nn.ModuleList(FixedReading(each, config.head_rank, width) for each in inputs)

    def take_readings(self, readings: Sequence[LinearReading]) -> None:
        """See `Encoder.take_readings`; the rest starts at nothing but the mean tokens."""
        assert isinstance(self.proj_head, LowRankHead)
        nn.init.zeros_(self.proj_head.gather.weight)
        for part, reading in zip(self._parts(), readings, strict=True):
            part.take(reading)

    def forward(self, fmri: torch.Tensor, person: torch.Tensor | None = None) -> torch.Tensor:
        """See `WindowTransformer.forward`."""
        condition = super().forward(fmri, person)
        assert isinstance(self.patch_embed, AreaMaps)

        def read(number: int, own: torch.Tensor) -> torch.Tensor:
            return self._parts()[number](own[..., : self.config.layouts[number]["num_voxels"]])

        return condition + self.patch_embed.by_person(read, fmri, person).view_as(condition).to(condition.dtype)

    def _parts(self) -> list[FixedReading]:
        return cast(list[FixedReading], list(self.readings))
