"""Cortical areas as tokens: from voxels to tokens, and back (docs/method.md, Tokens that are areas).

Shapes: N scans, V voxels (of the person who has most), A areas, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn

from mindvideo.errors import SettingError
from mindvideo.models.transformer import sincos_position
from mindvideo.voxel_layout import VoxelLayout


class AreaMaps(nn.Module):
    """A matrix of its own for every area of every person.

    Parameters
    ----------
    layouts : sequence of VoxelLayout
        One per person; areas of any of them follow the visual hierarchy. SettingError for
        voxels without a known place.
    embed_dim : int
        D.

    Notes
    -----
    An area without voxels in a person has a learned token, ``missing``, that all people share.
    """

    is_present: torch.Tensor
    positions: torch.Tensor

    def __init__(self, layouts: Sequence[VoxelLayout], embed_dim: int) -> None:
        super().__init__()
        places = []
        for layout in layouts:
            if layout.place is None:
                raise SettingError(
                    "expected voxels whose place on the cortex is known with tokens that are areas, found none; give "
                    "--set align.encoder=paper"
                )
            places.append(layout.place)
        if len({layout.parcels for layout in layouts}) > 1:
            raise SettingError(
                "expected the parcels of one atlas of all people, found those of several; prepare them with one"
            )
        present = np.unique(np.concatenate(places))
        self.num_areas, self.voxels = len(present), max(layout.num_voxels for layout in layouts)
        self.members = [[np.flatnonzero(place == area) for area in present] for place in places]
        self.sizes = [[len(voxels) for voxels in members] for members in self.members]
        for person in range(len(layouts)):
            self.register_buffer(f"order{person}", torch.from_numpy(self.rows(person)), persistent=False)
        self.register_buffer("is_present", torch.tensor(self.sizes) > 0, persistent=False)
        positions = sincos_position(layouts[0].num_places, embed_dim)[torch.from_numpy(present)]
        self.register_buffer("positions", positions, persistent=False)
        self.weight = nn.ParameterList(nn.Parameter(torch.empty(layout.num_voxels, embed_dim)) for layout in layouts)
        self.bias = nn.Parameter(torch.zeros(len(layouts), self.num_areas, embed_dim))
        self.missing = nn.Parameter(torch.zeros(self.num_areas, embed_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform in every area's matrix."""
        width = self.missing.shape[1]
        for weight, sizes in zip(self.weight, self.sizes, strict=True):
            for part, size in zip(weight.data.split(sizes), sizes, strict=True):
                bound = math.sqrt(6.0 / (size + width))
                nn.init.uniform_(part, -bound, bound)
        nn.init.normal_(self.missing, std=0.02)

    def by_person(
        self, read: Callable[[int, torch.Tensor], torch.Tensor], values: torch.Tensor, person: torch.Tensor | None
    ) -> torch.Tensor:
        """``read(person, values)``, with each person's own rows of the values (N, ...)."""
        if person is None or len(self.weight) == 1:
            return read(0, values)
        rows = {index: (person == index).nonzero()[:, 0] for index in person.unique().tolist()}
        parts = [read(index, values[own]) for index, own in rows.items()]
        return torch.cat(parts)[torch.cat(list(rows.values())).argsort()]

    def rows(self, person: int) -> np.ndarray:
        """Which voxel each row of a person's matrices is of: area after area."""
        return np.concatenate(self.members[person])

    def _order(self, person: int) -> torch.Tensor:
        order: torch.Tensor = getattr(self, f"order{person}")
        return order

    def encode(self, fmri: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Tokens (N, A, D), positions included, of scans (N, V) of persons (N,), int64."""

        def read(index: int, own: torch.Tensor) -> torch.Tensor:
            parts = _as_multiplied(own[:, self._order(index)]).split(self.sizes[index], dim=1)
            maps = _as_multiplied(self.weight[index]).split(self.sizes[index])
            tokens = torch.stack([part @ one for part, one in zip(parts, maps, strict=True)], dim=1) + self.bias[index]
            return torch.where(self.is_present[index][:, None], tokens, self.missing.to(tokens.dtype))

        return self.by_person(read, fmri, person) + self.positions

    def decode(self, tokens: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Scans (N, V) of tokens (N, A, D), by the transposed matrices; 0 past a person's voxels."""

        def read(index: int, own: torch.Tensor) -> torch.Tensor:
            maps = _as_multiplied(self.weight[index]).split(self.sizes[index])
            voxels = torch.cat([area @ one.T for area, one in zip(own.unbind(1), maps, strict=True)], dim=1)
            voxels = voxels[:, self._order(index).argsort()]
            return nn.functional.pad(voxels, (0, self.voxels - voxels.shape[1])).to(tokens.dtype)

        return self.by_person(read, tokens, person)

    def area_means(self, values: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Mean of values (N, V) over each area's voxels, (N, A); 0 for an empty area."""

        def read(index: int, own: torch.Tensor) -> torch.Tensor:
            parts = own[:, self._order(index)].split(self.sizes[index], dim=1)
            return torch.stack([part.sum(1) / max(part.shape[1], 1) for part in parts], dim=1)

        return self.by_person(read, values, person)

    def present(self, person: torch.Tensor | None, count: int) -> torch.Tensor:
        """Which areas have voxels, bool (N, A)."""
        if person is None or len(self.weight) == 1:
            return self.is_present[:1].expand(count, -1)
        return self.is_present[person]


def _as_multiplied(values: torch.Tensor) -> torch.Tensor:
    """In the precision of matrix products, cast once rather than area by area."""
    device = values.device.type
    return values.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else values
