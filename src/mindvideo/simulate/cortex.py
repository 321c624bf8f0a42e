"""The simulated cortex as a sheet: neighbours, smooth fields over it, and where each vertex looks.

Vertices are cortical fsLR-32k positions 0…59,411 (left first). n is their number.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.stats import rankdata

from mindvideo import atlas

MAX_ECCENTRICITY = 1.1
"""Largest eccentricity of a receptive field's centre, in half frame widths."""

WARP_STEPS = 40
"""Rounds of averaging of a warp: shifts are alike over about a centimetre."""


class Sheet:
    """Neighbourhood of a set of vertices.

    Parameters
    ----------
    vertex : ndarray, int (n,)
        Cortical positions, each once.
    """

    def __init__(self, vertex: np.ndarray) -> None:
        neighbours = atlas.adjacency()[vertex][:, vertex] + sparse.identity(len(vertex), dtype=np.float32)
        degree = np.asarray(neighbours.sum(axis=1)).ravel()
        self.average = sparse.csr_matrix(sparse.diags(1 / degree) @ neighbours, dtype=np.float32)
        twice = self.average @ self.average
        spread = np.sqrt(np.asarray(twice.multiply(twice).sum(axis=1)).ravel())
        self._unit_average = sparse.csr_matrix(sparse.diags(1 / spread) @ twice, dtype=np.float32)

    def smooth_noise(self, white: np.ndarray) -> np.ndarray:
        """Average white noise (n, m) over two rings of neighbours, keeping its variance."""
        return self._unit_average @ white

    def fields(self, rng: np.random.Generator, count: int, steps: int) -> np.ndarray:
        """Random fields of mean 0 and standard deviation 1, float32 (n, count).

        ``steps`` rounds of averaging with the neighbours make them smooth.
        """
        field = rng.standard_normal((self.average.shape[0], count), dtype=np.float32)
        for _ in range(steps):
            field = self.average @ field
        deviation = field.std(axis=0) if len(field) > 1 else 1.0
        return ((field - field.mean(axis=0)) / (deviation + 1e-12)).astype(np.float32)


def warp(rng: np.random.Generator, vertex: np.ndarray, size_mm: float) -> np.ndarray:
    """Shift vertices along the cortex: the row of ``vertex`` found at each new place, int (n,).

    Shifts are smooth random fields tangent to the sphere, of root mean square
    ``size_mm``. No vertex changes its hemisphere.
    """
    sphere = atlas.cortical_coordinates("sphere").astype(float)
    outwards = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
    shift = _whole_cortex().fields(rng, 3, WARP_STEPS).astype(float)
    shift -= (shift * outwards).sum(axis=1, keepdims=True) * outwards
    shift *= size_mm / np.sqrt((shift**2).sum(axis=1).mean())
    source = np.empty(len(vertex), int)
    for rows in (np.flatnonzero(vertex < atlas.N_LEFT), np.flatnonzero(vertex >= atlas.N_LEFT)):
        if len(rows):
            source[rows] = rows[cKDTree(sphere[vertex[rows]]).query((sphere + shift)[vertex[rows]])[1]]
    return source


@cache
def _whole_cortex() -> Sheet:
    return Sheet(np.arange(atlas.N_CORTEX))


def _rank(values: np.ndarray) -> np.ndarray:
    return (rankdata(values, "ordinal") - 0.5) / len(values)


def _distance(from_vertex: np.ndarray, to_areas: tuple[str, ...], side: str) -> np.ndarray:
    """Distance (mm, on the sphere) from vertices to the nearest vertex of some areas."""
    sphere = atlas.cortical_coordinates("sphere")
    target = np.concatenate([atlas.area_of(f"{side}_{name}") for name in to_areas])
    return cKDTree(sphere[target]).query(sphere[from_vertex])[0]


def _axes(members: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along an area, from posterior to anterior and from lower to upper."""
    sphere = atlas.cortical_coordinates("sphere")[members]
    anatomy = atlas.cortical_coordinates("midthickness")[members]
    axes = np.linalg.svd(sphere - sphere.mean(axis=0), full_matrices=False)[2][:2]
    along = (sphere - sphere.mean(axis=0)) @ axes.T
    slope = np.array([[np.cov(along[:, i], anatomy[:, j])[0, 1] for j in (1, 2)] for i in (0, 1)])
    first, second = (0, 1) if abs(slope[0, 0]) >= abs(slope[1, 0]) else (1, 0)
    forward = along[:, first] * np.sign(slope[first, 0])
    upward = along[:, second] * np.sign(slope[second, 1])
    return forward, upward


@cache
def retinotopy() -> tuple[np.ndarray, np.ndarray]:
    """Where in the visual field each vertex of a visual area looks.

    Eccentricity grows from posterior to anterior with cortical magnification; the left
    hemisphere sees the right half of the field. In V1 the polar angle runs from the
    upper field (lower bank) to the lower; in V2 and V3 from the vertical meridian at
    the V1 border to the horizontal and back, in quarter fields (Wandell, Dumoulin and
    Brewer 2007). Other areas have a half field each.

    Returns
    -------
    position : ndarray, float32 (59412, 2)
        x to the right, y upwards, in half frame widths; NaN outside the visual areas.
    eccentricity : ndarray, float32 (59412,)
        NaN outside the visual areas.
    """
    position = np.full((atlas.N_CORTEX, 2), np.nan, np.float32)
    eccentricity = np.full(atlas.N_CORTEX, np.nan, np.float32)
    for side in ("L", "R"):
        v1 = atlas.area_of(f"{side}_V1")
        v1_middle = np.median(atlas.cortical_coordinates("midthickness")[v1, 2])
        for name in (*atlas.HIERARCHY, "V3CD", "PHA1", "PHA2", "PHA3"):
            members = atlas.area_of(f"{side}_{name}")
            forward, upward = _axes(members)
            radius = (np.expm1(2.2 * _rank(forward)) / np.expm1(2.2)) * MAX_ECCENTRICITY
            is_above = atlas.cortical_coordinates("midthickness")[members, 2] > v1_middle
            if name in ("V2", "V3"):
                inner, outer = (("V1",), ("V3",)) if name == "V2" else (("V2",), ("V4", "V3A", "V3B", "LO1", "V3CD"))
                near, far = _distance(members, inner, side), _distance(members, outer, side)
                across = near / (near + far)
                from_horizontal = (1 - across if name == "V2" else across) * np.pi / 2
                angle = np.where(is_above, -from_horizontal, from_horizontal)
            else:
                angle = (0.5 - _rank(upward)) * np.pi
            x = radius * np.cos(angle) * (1 if side == "L" else -1)
            position[members] = np.stack([x, radius * np.sin(angle)], axis=1).clip(-0.97, 0.97)
            eccentricity[members] = radius
    return position, eccentricity
