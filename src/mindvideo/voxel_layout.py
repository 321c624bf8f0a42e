"""Which voxels an encoder is given, in their order, and where they lie."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from mindvideo.atlas import hierarchy_rank

MMP1_AREAS = 360


@dataclass(frozen=True)
class VoxelLayout:
    """The voxels of one person.

    Attributes
    ----------
    num_voxels : int
        V.
    voxel_id : str, optional
        The store's name for this choice of voxels.
    vertex : ndarray, int32 (V,), optional
        Cortical positions (0 to 59,411).
    area : ndarray, int16 (V,), optional
        MMP1 label of each, 1 to 360. Both are missing for arrays whose voxels have no known place.
    parcels : tuple of str
        Names of all parcels of another atlas, if voxels are parcels: ``area`` then
        counts them from 1, and ``vertex`` has negative numbers that stand for them.
    """

    num_voxels: int
    voxel_id: str | None = None
    vertex: np.ndarray | None = field(default=None, repr=False)
    area: np.ndarray | None = field(default=None, repr=False)
    parcels: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_places(self) -> int:
        """Areas of the atlas."""
        return len(self.parcels) or MMP1_AREAS

    @property
    def place(self) -> np.ndarray | None:
        """Rank (V,) of each voxel's area in the visual hierarchy, left before right, or of its parcel."""
        if self.area is None:
            return None
        if self.parcels:
            return self.area.astype(np.int64) - 1
        return 2 * hierarchy_rank(self.area).astype(np.int64) + (self.area > MMP1_AREAS // 2)

    def to_config(self) -> dict[str, Any]:
        """What JSON holds of it; each array as one text."""
        packed = {name: _pack(getattr(self, name)) for name in ("vertex", "area")}
        parcels = {"parcels": list(self.parcels)} if self.parcels else {}
        return {"num_voxels": self.num_voxels, "voxel_id": self.voxel_id, **packed, **parcels}

    @classmethod
    def from_config(cls, content: Mapping[str, Any]) -> Self:
        """The layout that `to_config` wrote."""
        vertex = _unpack(content.get("vertex"), np.int32)
        area = _unpack(content.get("area"), np.int16)
        return cls(content["num_voxels"], content.get("voxel_id"), vertex, area, tuple(content.get("parcels", ())))


def _pack(array: np.ndarray | None) -> str | None:
    return None if array is None else base64.b64encode(array.astype("<i4").tobytes()).decode()


def _unpack(text: str | None, kind: type) -> np.ndarray | None:
    return None if text is None else np.frombuffer(base64.b64decode(text), "<i4").astype(kind)
