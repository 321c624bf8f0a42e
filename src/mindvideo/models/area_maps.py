"""Tokens that are cortical areas: from the voxels of each area to its token, and back (docs/method.md, Tokens that are areas).

Shapes: N scans, V voxels (of the person who has most), A areas, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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
        One a person; the areas are those that any of them has, along the visual hierarchy, left before right.
    embed_dim : int
        D.

    Raises
    ------
    SettingError
        For voxels without a known place.

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

    def _people(self, person: torch.Tensor | None, count: int) -> Iterator[tuple[int, torch.Tensor | slice]]:
        """Each person among ``count`` scans, with the rows that are theirs."""
        if person is None or len(self.weight) == 1:
            yield 0, slice(None)
            return
        if len(person) != count:
            raise SettingError(f"expected one person a scan, {count}, found {len(person)}")
        for number in person.unique().tolist():
            yield number, (person == number).nonzero()[:, 0]

    def rows(self, person: int) -> np.ndarray:
        """Which voxel each row of a person's matrices is of: area after area."""
        return np.concatenate(self.members[person])

    def _order(self, person: int) -> torch.Tensor:
        order: torch.Tensor = getattr(self, f"order{person}")
        return order

    def encode(self, fmri: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Tokens (N, A, D), positions included, of scans (N, V) of persons (N,), int64."""
        result: torch.Tensor | None = None
        for number, rows in self._people(person, len(fmri)):
            parts = fmri[rows][:, self._order(number)].split(self.sizes[number], dim=1)
            maps = self.weight[number].split(self.sizes[number])
            read = torch.stack([part @ one for part, one in zip(parts, maps, strict=True)], dim=1) + self.bias[number]
            tokens = torch.where(self.is_present[number][:, None], read, self.missing.to(read.dtype))
            if isinstance(rows, slice):
                return tokens + self.positions
            if result is None:
                result = tokens.new_empty(len(fmri), *tokens.shape[1:])
            result = result.index_copy(0, rows, tokens)
        assert result is not None
        return result + self.positions

    def decode(self, tokens: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Scans (N, V) from tokens (N, A, D), by the transposed matrices; 0 past a person's own voxels."""
        result = tokens.new_zeros(len(tokens), self.voxels)
        for number, rows in self._people(person, len(tokens)):
            maps = self.weight[number].split(self.sizes[number])
            parts = [tokens[rows][:, area] @ one.T for area, one in enumerate(maps)]
            own = torch.cat(parts, dim=1)[:, self._order(number).argsort()]
            padded = torch.nn.functional.pad(own, (0, self.voxels - own.shape[1])).to(result.dtype)
            result = padded if isinstance(rows, slice) else result.index_copy(0, rows, padded)
        return result

    def area_means(self, values: torch.Tensor, person: torch.Tensor | None) -> torch.Tensor:
        """Mean over the voxels of each area, (N, A), of values (N, V); 0 for an area without voxels."""
        result = values.new_zeros(len(values), self.num_areas)
        for number, rows in self._people(person, len(values)):
            parts = values[rows][:, self._order(number)].split(self.sizes[number], dim=1)
            means = torch.stack([part.sum(1) / max(part.shape[1], 1) for part in parts], dim=1)
            result = means if isinstance(rows, slice) else result.index_copy(0, rows, means)
        return result

    def present(self, person: torch.Tensor | None, count: int) -> torch.Tensor:
        """Which areas have voxels, bool (N, A)."""
        if person is None or len(self.weight) == 1:
            return self.is_present[:1].expand(count, -1)
        return self.is_present[person]
