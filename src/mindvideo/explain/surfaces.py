"""Pictures of cortical maps, flat and inflated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from nilearn.plotting import view_surf
from nilearn.surface import InMemoryMesh, PolyMesh, SurfaceImage

from mindvideo.atlas import N_SURFACE, Hemisphere, area_of, surface, surface_vertex_index
from mindvideo.errors import DataError
from mindvideo.files import beside, write_text

View = Literal["flat", "lateral", "medial"]

_BARE = (0.86, 0.86, 0.86)
_PIXELS = 800  # along a view's longer side, nearly twice those of the figure
_LABELLED = ("V1", "V3", "V4", "MT", "FFC", "IPS1", "4", "A1", "46")
_SIDES: tuple[Hemisphere, Hemisphere] = ("left", "right")


def hemisphere_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cortical values (59412,) on each hemisphere (32492,), NaN on the medial wall."""
    vertex, is_right = surface_vertex_index()
    sides = np.full((2, N_SURFACE), np.nan)
    sides[is_right.astype(int), vertex] = values
    return sides[0], sides[1]


def triangle_means(values: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Mean of the known corners of each triangle, NaN where none is known."""
    return np.ma.masked_invalid(values[triangles]).mean(axis=1).filled(np.nan)


def colour_limits(values: np.ndarray) -> tuple[float, float, bool]:
    """Ends of a map's colours, and whether they lie on both sides of zero, symmetrically.

    They are the 2nd and 98th percentile; DataError without any value.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        raise DataError("expected a cortical map with at least one value, found none")
    low, high = (float(limit) for limit in np.percentile(known, [2, 98]))
    if low < 0 < high:
        most = max(-low, high)
        return -most, most, True
    return (low, high, False) if high > low else (low - 0.5, low + 0.5, False)


def _colours_of(values: np.ndarray) -> ScalarMappable:
    """Two hues that meet at zero for a signed map, one that brightens for others."""
    low, high, is_signed = colour_limits(values)
    return ScalarMappable(Normalize(low, high), matplotlib.colormaps["PuOr_r" if is_signed else "viridis"])


class _Projection(NamedTuple):
    """One view of a hemisphere: the triangle in each pixel of a picture, and how it is lit."""

    seen: np.ndarray  # int32 (rows from the bottom, columns), -1 beside the surface
    triangles: np.ndarray  # int (triangles, 3), vertices
    shade: np.ndarray  # float (triangles,), darker where it faces away
    extent: tuple[float, float, float, float]  # mm: left, right, bottom, top


@lru_cache(maxsize=6)
def _project(side: Hemisphere, view: View) -> _Projection:
    """A hemisphere as it is seen, whatever is drawn on it."""
    points, triangles = surface("flat" if view == "flat" else "inflated", side)
    corners = points.astype(np.float64)[triangles]
    order, shade = np.arange(len(triangles)), np.ones(len(triangles))
    points_2d = corners[:, :, :2]
    if view != "flat":
        towards = (1.0 if side == "right" else -1.0) * (1.0 if view == "lateral" else -1.0)
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        facing = towards * normal[:, 0] / np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        shade = 0.6 + 0.4 * facing
        front = np.flatnonzero(facing > 0)
        order = front[np.argsort(towards * corners[front, :, 0].mean(axis=1))]  # from back to front
        points_2d = corners[:, :, 1:] * np.array([towards, 1.0])
    low, high = points_2d[order].min(axis=(0, 1)), points_2d[order].max(axis=(0, 1))
    scale = _PIXELS / (high - low).max()
    columns, rows = np.ceil((high - low) * scale).astype(int) + 1
    seen = np.full((rows, columns), -1, np.int32)
    for triangle, outline in zip(order, np.round((points_2d[order] - low) * scale).astype(np.int32), strict=True):
        cv2.fillConvexPoly(seen, outline, int(triangle))
    left, bottom = low
    return _Projection(seen, triangles, shade, (left, left + columns / scale, bottom, bottom + rows / scale))


def _paint(axes: Any, side: Hemisphere, view: View, values: np.ndarray, scale: ScalarMappable) -> None:
    """Draw one hemisphere, grey without values."""
    drawn = _project(side, view)
    means = triangle_means(values, drawn.triangles)
    colours = scale.to_rgba(np.where(np.isfinite(means), means, 0.0))[:, :3]
    colours[~np.isfinite(means)] = _BARE
    colours = np.append(colours * drawn.shade[:, None], [[1.0, 1.0, 1.0]], axis=0)  # the last one beside the surface
    axes.imshow(np.round(255 * colours).astype(np.uint8)[drawn.seen], origin="lower", extent=drawn.extent)
    axes.set_axis_off()
    axes.set_title(f"{side} hemisphere" if view == "flat" else f"{side}, {view}", fontsize=9)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with beside(path) as place:
        figure.savefig(place, format="png", dpi=110, facecolor="white", metadata={"Software": None})


def draw_flat_map(values: np.ndarray, path: Path, title: str, label: str) -> None:
    """Write a flat map of both hemispheres as PNG, with the names of a few areas.

    ``values`` (59412,) are NaN where there is no voxel, which is drawn grey; ``label`` stands beside
    the colour bar. DataError for a map without any value.
    """
    scale = _colours_of(values)
    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    vertex, _ = surface_vertex_index()
    for side, axis, on_surface in zip(_SIDES, axes, hemisphere_values(values), strict=True):
        _paint(axis, side, "flat", on_surface, scale)
        flat = surface("flat", side)[0]
        for name in _LABELLED:
            members = area_of(f"{'L' if side == 'left' else 'R'}_{name}")
            across, up = np.median(flat[vertex[members], :2], axis=0)
            axis.text(across, up, name, fontsize=7, ha="center", va="center")
    figure.suptitle(title, fontsize=11)
    figure.colorbar(scale, ax=axes, shrink=0.7, label=label, extend="both")
    save_figure(figure, path)


def draw_inflated(values: np.ndarray, path: Path, title: str, label: str) -> None:
    """Write lateral and medial views as PNG; parameters as in `draw_flat_map`."""
    scale = _colours_of(values)
    figure = Figure(figsize=(9, 5.6), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, (side, on_surface) in enumerate(zip(_SIDES, hemisphere_values(values), strict=True)):
        _paint(axes[0, column], side, "lateral", on_surface, scale)
        _paint(axes[1, column], side, "medial", on_surface, scale)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(scale, ax=axes, shrink=0.6, label=label, extend="both")
    save_figure(figure, path)


def write_interactive(values: np.ndarray, path: Path, title: str) -> None:
    """Write both inflated hemispheres as an interactive page (nilearn's, by niivue)."""
    low, high, is_signed = colour_limits(values)
    sides = hemisphere_values(np.clip(values, low, high))
    mesh = PolyMesh(**{side: InMemoryMesh(*surface("inflated", side)) for side in _SIDES})
    shown = {side: np.nan_to_num(part).astype(np.float32) for side, part in zip(_SIDES, sides, strict=True)}
    colours = matplotlib.colormaps["PuOr_r" if is_signed else "viridis"](np.linspace(0, 1, 256))
    if not is_signed:  # niivue colours values above zero by a map's second half
        colours = np.concatenate([colours[::-1], colours])
    page = view_surf(
        surf_map=SurfaceImage(mesh, shown), hemi="both", cmap=ListedColormap(colours), vmax=high,
        threshold=1e-3 * high if is_signed else low, title=title, engine="niivue",
    )  # fmt: skip
    write_text(path, page.html)


def draw_networks(
    shares: Mapping[str, Mapping[str, Mapping[str, float]]], expected: Mapping[str, float], path: Path
) -> None:
    """Write each Yeo-17 network's share of attention as bars (PNG), by stage and layer.

    Ticks are the ``expected`` shares of the voxels, which no preference would give.
    """
    names = [name for name, share in expected.items() if share > 0]
    columns = max(len(layers) for layers in shares.values())
    figure = Figure(figsize=(1.2 + 3.2 * columns, 0.6 + (0.5 + 0.2 * len(names)) * len(shares)), layout="constrained")
    axes = figure.subplots(len(shares), columns, squeeze=False, sharex=True, sharey=True)
    places = np.arange(len(names))
    for row, (stage, layers) in zip(axes, shares.items(), strict=True):
        for axis in row[len(layers) :]:
            axis.set_axis_off()
        for axis, (layer, content) in zip(row[: len(layers)], layers.items(), strict=True):
            axis.barh(places, [content.get(name, 0.0) for name in names], color="#3c8d92")
            axis.plot([expected[name] for name in names], places, "|", color="#b4541a", markersize=9)
            axis.set_title(f"{stage}, {layer} layer", fontsize=9)
            axis.set_yticks(places, names, fontsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    figure.supxlabel("share of attention; the tick is the share of the voxels", fontsize=8)
    save_figure(figure, path)
