"""The interactive surface: a coarse copy of both cortices with a run's maps on it, small enough to sit in the page.

Coarse vertices are a choice of the fsLR-32k ones, evenly spread over the sphere and joined anew; each carries the mean
of the voxels nearest to it. The page's own script turns and colours it; nothing is fetched.

Shapes: N fine vertices of a hemisphere (32,492), n coarse ones, t coarse triangles.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from scipy.spatial import ConvexHull, cKDTree

from mindvideo.atlas import N_SURFACE, Hemisphere, area_labels, area_names, surface, surface_vertex_index
from mindvideo.explain.surfaces import colour_limits
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite

N_COARSE = 9000
"""Vertices of each hemisphere; about a quarter of the fine surface's."""

SIDES: tuple[Hemisphere, Hemisphere] = ("left", "right")


@dataclass(frozen=True)
class CoarseMesh:
    """A hemisphere with fewer vertices.

    Attributes
    ----------
    vertex : ndarray, int (n,)
        Fine vertex behind each coarse one.
    triangles : ndarray, int (t, 3)
        Counter-clockwise seen from outside; those that also exist on the flat map come first.
    n_flat : int
        How many do.
    nearest : ndarray, int (N,)
        Coarse vertex nearest to each fine one.
    fold : ndarray, float (n,)
        0 in the depth of a sulcus to 1 on a gyrus.
    """

    vertex: np.ndarray
    triangles: np.ndarray
    n_flat: int
    nearest: np.ndarray
    fold: np.ndarray


def spread_points(n: int) -> np.ndarray:
    """Points evenly spread over the unit sphere (a Fibonacci lattice), float64 (n, 3)."""
    step = np.arange(n) + 0.5
    height, turn = 1 - 2 * step / n, step * np.pi * (3 - np.sqrt(5))
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)


@cache
def coarse_mesh(side: Hemisphere, n: int = N_COARSE) -> CoarseMesh:
    """Choose about ``n`` vertices of a hemisphere and join them by a Delaunay triangulation of the sphere."""
    sphere = surface("sphere", side)[0].astype(np.float64)
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    vertex = np.unique(cKDTree(sphere).query(spread_points(n))[1])
    points = sphere[vertex]
    triangles = ConvexHull(points).simplices
    corners = points[triangles]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    is_inward = (normal * corners.sum(axis=1)).sum(axis=1) < 0
    triangles[is_inward] = triangles[is_inward][:, ::-1]
    on_flat = _is_on_flat(side, vertex, triangles)
    triangles = np.concatenate([triangles[on_flat], triangles[~on_flat]])
    return CoarseMesh(vertex, triangles, int(on_flat.sum()), cKDTree(points).query(sphere)[1], _folds(side)[vertex])


def _is_on_flat(side: Hemisphere, vertex: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Which coarse triangles lie on the flat map: not on the medial wall and not across a cut."""
    flat, fine = surface("flat", side)
    is_known = np.isin(vertex, fine)[triangles].all(axis=1)
    place = flat[vertex][triangles, :2].astype(np.float64)
    longest = np.linalg.norm(place - np.roll(place, 1, axis=1), axis=2).max(axis=1)
    return is_known & (longest < 4 * np.median(longest[is_known]))


def _folds(side: Hemisphere, rounds: int = 4) -> np.ndarray:
    """How far each fine vertex stands out of its surroundings on the mid-thickness surface, 0 sulcus … 1 gyrus, (N,)."""
    points, triangles = surface("midthickness", side)
    points = points.astype(np.float64)
    corners = points[triangles]
    face = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal = np.stack([np.bincount(triangles.ravel(), np.repeat(face[:, k], 3), len(points)) for k in range(3)], axis=1)
    normal = normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    around = points
    for _ in range(rounds):
        around = _mean_of_neighbours(around, triangles)
    height = ((points - around) * normal).sum(axis=1)
    low, high = np.percentile(height, [10, 90])
    return np.clip((height - low) / (high - low), 0, 1)


def _mean_of_neighbours(values: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Mean over the vertices that share a triangle with each, (N, K)."""
    count = np.bincount(triangles.ravel(), minlength=len(values))[:, None]
    total = np.stack(
        [
            np.bincount(triangles.ravel(), np.repeat(values[triangles, k].sum(axis=1), 3), len(values))
            for k in range(values.shape[1])
        ],
        axis=1,
    )
    return (total - values * count) / np.maximum(2 * count, 1)


def average_coarse(values: np.ndarray, mesh: CoarseMesh) -> np.ndarray:
    """Fine values (N,) to coarse vertices (n,): the mean of the known ones nearest to each, NaN where there is none."""
    is_known = np.isfinite(values)
    n = len(mesh.vertex)
    count = np.bincount(mesh.nearest[is_known], minlength=n)
    total = np.bincount(mesh.nearest[is_known], values[is_known], minlength=n)
    return np.divide(total, count, out=np.full(n, np.nan), where=count > 0)


def quantise(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as levels 1…255 between two limits, 0 where there is none, uint8."""
    level = np.clip((np.where(np.isfinite(values), values, low) - low) / (high - low), 0, 1)
    return np.where(np.isfinite(values), 1 + np.round(254 * level), 0).astype(np.uint8)


def _encode(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _to_int16(points: np.ndarray, scale: float) -> np.ndarray:
    return np.round(points * scale).astype("<i2")


def _colours(name: str) -> str:
    table = matplotlib.colormaps[name](np.linspace(0, 1, 255))[:, :3]
    return _encode(np.round(255 * table).astype(np.uint8))


def encode_hemisphere(side: Hemisphere) -> dict[str, Any]:
    """Mesh of one hemisphere as base64 text: coordinates in tenths of a millimetre, triangles, folds, areas."""
    mesh = coarse_mesh(side)
    inflated, flat = surface("inflated", side)[0], surface("flat", side)[0][:, :2]
    vertex, is_right = surface_vertex_index()
    here = is_right == (side == "right")
    area = np.zeros(N_SURFACE, np.uint8)
    labels = area_labels()[here]
    area[vertex[here]] = np.where(labels > 180, labels - 180, labels)
    return {
        "inflated": _encode(_to_int16(inflated[mesh.vertex], 10)),
        "flat": _encode(_to_int16(flat[mesh.vertex], 10)),
        "triangles": _encode(mesh.triangles.astype("<u2")),
        "n_flat": mesh.n_flat,
        "fold": _encode(np.round(255 * mesh.fold).astype(np.uint8)),
        "area": _encode(area[mesh.vertex]),
    }


def read_maps(path: Path) -> dict[str, np.ndarray]:
    """Cortical maps of ``explain/maps.npz``, those with at least one value; none where there is no such file."""
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        maps = {name: archive[name] for name in archive.files}
    return {name: values for name, values in maps.items() if values.ndim == 1 and np.isfinite(values).any()}


def describe_surface(run: Run, final: str, judged: Mapping[str, str] | None = None) -> dict[str, Any] | None:
    """What the page's script draws for a run: its maps on the coarse vertices, their limits, units and colours.

    Parameters
    ----------
    run : Run
    final : str
        The stage whose maps come first.
    judged : mapping of str to str, optional
        Sentences to stand over maps, by the map's name.

    Returns
    -------
    dict or None
        None without maps, or with maps of another surface.
    """
    try:
        maps = read_maps(run.path / "explain" / "maps.npz")
    except (OSError, ValueError) as error:
        run.problems.append(f"explain/maps.npz cannot be read ({error}); run explain again")
        return None
    vertex, is_right = surface_vertex_index()
    wrong = [name for name, values in maps.items() if len(values) != len(vertex)]
    if wrong:
        run.problems.append(f"explain/maps.npz/{wrong[0]} is no map of the {len(vertex)} cortical positions")
    entries = []
    for name in sorted(set(maps) - set(wrong), key=lambda name: (not _is_final(name, final), _place(name))):
        values = maps[name].astype(np.float64)
        low, high, is_signed = colour_limits(values)
        levels = {}
        for side in SIDES:
            here = is_right == (side == "right")
            fine = np.full(N_SURFACE, np.nan)
            fine[vertex[here]] = values[here]
            levels[side] = _encode(quantise(average_coarse(fine, coarse_mesh(side)), low, high))
        unit = "attention, 1 where all voxels get the same" if name.startswith("attention") else "drop a voxel"
        source = Source("explain/maps.npz")
        keys = ("-limit", "limit") if is_signed else ("p2", "p98")
        entries.append(
            {
                "name": name,
                "label": _label(name),
                "unit": unit,
                "warning": str((judged or {}).get(name, "")),
                "low": low,
                "high": high,
                "colours": "signed" if is_signed else "plain",
                "levels": levels,
                "ends": [
                    str(cite(end, source.at(name, key), "short")) for end, key in zip((low, high), keys, strict=True)
                ],
            }
        )
    return (
        {"maps": entries, "colours": {"plain": _colours("viridis"), "signed": _colours("PuOr_r")}} if entries else None
    )


def encode_meshes() -> dict[str, Any]:
    """Both hemispheres and the names of the areas; once a page, whatever the number of runs."""
    names = ["", *(name.removeprefix("L_") for name in area_names()[1:181])]
    return {"sides": {side: encode_hemisphere(side) for side in SIDES}, "areas": names}


def _is_final(name: str, final: str) -> bool:
    return name.startswith("occlusion") or f"_{final}_" in name


def _place(name: str) -> tuple[int, str]:
    order = ("occlusion_text", "occlusion_tokens", "occlusion_image")
    return (order.index(name) if name in order else len(order), name)


def _label(name: str) -> str:
    kind, _, rest = name.partition("_")
    if kind == "attention":
        stage, _, layer = rest.partition("_")
        return f"attention, {stage}, {layer} layer"
    words = {"text": "the caption", "tokens": "the text tokens", "image": "the frame"}
    return f"occlusion, fit to {words.get(rest, rest)}"
