"""CIFTI-2 dense time series: the cortex of a recording, placed by the file's own brain-model axis.

Shapes: T volumes, N cortical positions present in a file.
A *cortical position* counts the fsLR-32k vertices without the medial wall, left hemisphere first: 0…59,411.
"""

from __future__ import annotations

import gzip
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import nibabel
import numpy as np
from nibabel import cifti2

from mindvideo.atlas import N_CORTEX, N_SURFACE, surface_vertex_index
from mindvideo.errors import DataError

LEFT, RIGHT = "CIFTI_STRUCTURE_CORTEX_LEFT", "CIFTI_STRUCTURE_CORTEX_RIGHT"

SUBCORTEX: dict[str, int] = {
    "CIFTI_STRUCTURE_ACCUMBENS_LEFT": 135,
    "CIFTI_STRUCTURE_ACCUMBENS_RIGHT": 140,
    "CIFTI_STRUCTURE_AMYGDALA_LEFT": 315,
    "CIFTI_STRUCTURE_AMYGDALA_RIGHT": 332,
    "CIFTI_STRUCTURE_BRAIN_STEM": 3472,
    "CIFTI_STRUCTURE_CAUDATE_LEFT": 728,
    "CIFTI_STRUCTURE_CAUDATE_RIGHT": 755,
    "CIFTI_STRUCTURE_CEREBELLUM_LEFT": 8709,
    "CIFTI_STRUCTURE_CEREBELLUM_RIGHT": 9144,
    "CIFTI_STRUCTURE_DIENCEPHALON_VENTRAL_LEFT": 706,
    "CIFTI_STRUCTURE_DIENCEPHALON_VENTRAL_RIGHT": 712,
    "CIFTI_STRUCTURE_HIPPOCAMPUS_LEFT": 764,
    "CIFTI_STRUCTURE_HIPPOCAMPUS_RIGHT": 795,
    "CIFTI_STRUCTURE_PALLIDUM_LEFT": 297,
    "CIFTI_STRUCTURE_PALLIDUM_RIGHT": 260,
    "CIFTI_STRUCTURE_PUTAMEN_LEFT": 1060,
    "CIFTI_STRUCTURE_PUTAMEN_RIGHT": 1010,
    "CIFTI_STRUCTURE_THALAMUS_LEFT": 1288,
    "CIFTI_STRUCTURE_THALAMUS_RIGHT": 1248,
}
"""Voxels of each subcortical structure in the 91,282 grayordinates, in the standard order; 31,870 in all."""

MNI_SHAPE = (91, 109, 91)
MNI_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


@dataclass(frozen=True)
class CortexHeader:
    """What a dense time series says about itself, without its data.

    Attributes
    ----------
    vertex : ndarray, int32 (N,)
        Cortical positions present, ascending.
    column : ndarray, int64 (N,)
        Column of the file's matrix that holds each of them.
    tr_s : float
        Time between volumes in seconds.
    n_volumes : int
        Number of volumes T.
    """

    vertex: np.ndarray
    column: np.ndarray
    tr_s: float
    n_volumes: int


@dataclass(frozen=True)
class CortexRecording:
    """The cortex of one recording.

    Attributes
    ----------
    data : ndarray, float32 (T, N)
    vertex : ndarray, int32 (N,)
        Cortical positions 0…59,411, ascending.
    tr_s : float
        Seconds between volumes.
    n_volumes : int
    """

    data: np.ndarray
    vertex: np.ndarray
    tr_s: float
    n_volumes: int


def read_header(path: Path) -> CortexHeader:
    """Read the axes of a CIFTI-2 dense time series and check them; the data stay on disk.

    Parameters
    ----------
    path : Path
        A ``.dtseries.nii`` (or gzipped) file; its structures may come in any order and be partial. Vertices of the
        medial wall, which some files carry, are left out.

    Raises
    ------
    DataError
        If the file is missing, no dense time series, of another surface resolution, without one of the hemispheres,
        or damaged.
    """
    return open_recording(path)[1]


def read_cortex(path: Path) -> CortexRecording:
    """Read the cortex of a CIFTI-2 dense time series; any byte order and data type, scaled as the header says.

    Parameters
    ----------
    path : Path
        See `read_header`.

    Raises
    ------
    DataError
        As `read_header`, and for truncated or unreadable data.
    """
    image, header = open_recording(path)
    low, high = int(header.column.min()), int(header.column.max()) + 1
    with _as_data_error(path):
        block = np.asarray(image.dataobj[:, low:high])
    if block.shape != (header.n_volumes, high - low):
        _refuse(path, f"expected {header.n_volumes} volumes of {high - low} grayordinates, found {block.shape}")
    column = header.column - low
    if not np.array_equal(column, np.arange(len(column))):
        block = block[:, column]
    with np.errstate(over="ignore", invalid="ignore"):
        data = np.asarray(block, dtype=np.float32)
    return CortexRecording(data, header.vertex, header.tr_s, header.n_volumes)


def write_cortex(
    path: Path, data: np.ndarray, vertex: np.ndarray, tr_s: float, subcortex: np.ndarray | None = None
) -> None:
    """Write a CIFTI-2 dense time series with true fsLR-32k brain models, medial wall left out.

    Parameters
    ----------
    path : Path
        Should end in ``.dtseries.nii``; appears only when complete.
    data : ndarray, float (T, N)
        Written as float32.
    vertex : ndarray, int (N,)
        Cortical positions 0…59,411, ascending.
    tr_s : float
        Seconds between volumes.
    subcortex : ndarray, float (T, M), optional
        Voxels of the standard subcortical structures in their order; with M = 31,870 and the whole cortex the file has
        91,282 grayordinates. The voxel coordinates are placeholders on the 2 mm MNI grid.

    Raises
    ------
    DataError
        For mismatched shapes or positions, or when the file cannot be written.
    """
    vertex = np.asarray(vertex)
    if data.ndim != 2 or data.shape[1] != len(vertex):
        raise DataError(f"expected data (volumes, {len(vertex)} vertices) for {path}, found shape {data.shape}")
    if len(vertex) == 0 or vertex[0] < 0 or vertex[-1] >= N_CORTEX or np.any(np.diff(vertex) <= 0):
        raise DataError(f"expected ascending cortical positions 0…{N_CORTEX - 1} for {path}, found others")
    models = _cortex_axis(vertex)
    if subcortex is not None:
        if subcortex.ndim != 2 or len(subcortex) != len(data) or not 0 < subcortex.shape[1] <= sum(SUBCORTEX.values()):
            raise DataError(
                f"expected subcortex ({len(data)} volumes, up to {sum(SUBCORTEX.values())} voxels) for {path}, "
                f"found shape {subcortex.shape}"
            )
        models = models + _subcortex_axis(subcortex.shape[1])
        data = np.concatenate([data, subcortex], axis=1)
    series = cifti2.SeriesAxis(0.0, tr_s, len(data), unit="SECOND")
    image = cifti2.Cifti2Image(np.asarray(data, dtype=np.float32), header=(series, models))
    image.nifti_header.set_intent("ConnDenseSeries")
    partial = path.with_name(f".partial-{path.name}")
    try:
        image.to_filename(partial)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error


def _cortex_axis(vertex: np.ndarray) -> Any:
    surface_vertex, is_right = surface_vertex_index()
    axis = None
    for name, wanted in ((LEFT, False), (RIGHT, True)):
        chosen = vertex[is_right[vertex] == wanted]
        if len(chosen):
            part = cifti2.BrainModelAxis.from_surface(surface_vertex[chosen], N_SURFACE, name=name)
            axis = part if axis is None else axis + part
    return axis


def _subcortex_axis(n_voxels: int) -> Any:
    names = np.repeat(list(SUBCORTEX), list(SUBCORTEX.values()))[:n_voxels]
    voxel = np.stack(np.unravel_index(np.arange(n_voxels), MNI_SHAPE), axis=1)
    return cifti2.BrainModelAxis(names, voxel=voxel, affine=MNI_AFFINE, volume_shape=MNI_SHAPE)


def _refuse(path: Path, reason: str) -> NoReturn:
    raise DataError(f"{path}: {reason}; supply an intact fsLR-32k .dtseries.nii")


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Damaged headers make nibabel raise nearly any exception; each becomes one sentence about the file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        _refuse(path, f"expected a readable CIFTI-2 file, found a damaged or truncated one ({reason})")


def open_recording(path: Path) -> tuple[Any, CortexHeader]:
    """nibabel's image of a dense time series, its data still on disk, and its checked axes; raises as `read_header`."""
    if not path.is_file():
        raise DataError(f"expected a CIFTI recording at {path}, found no file; add it or list the run under exclude")
    with _as_data_error(path):
        image = _load(path)
        if not isinstance(image, cifti2.Cifti2Image):
            _refuse(path, f"expected CIFTI-2 grayordinates, found {type(image).__name__} data")
        axes = [image.header.get_axis(i) for i in range(image.header.number_of_mapped_indices)]
        return image, _check_axes(path, axes, image.shape)


def _load(path: Path) -> Any:
    """The image behind a file; nibabel knows gzipped CIFTI only as a stream."""
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            return cifti2.Cifti2Image.from_stream(io.BytesIO(stream.read()))
    return nibabel.load(path, mmap=False)


def _check_axes(path: Path, axes: list[Any], shape: tuple[int, ...]) -> CortexHeader:
    kinds = [type(axis).__name__ for axis in axes]
    if kinds != ["SeriesAxis", "BrainModelAxis"]:
        _refuse(
            path, f"expected a dense time series (SeriesAxis, BrainModelAxis), found {', '.join(kinds) or 'no axes'}"
        )
    series, models = axes
    if tuple(shape) != (len(series), len(models)):
        _refuse(path, f"expected data of shape {(len(series), len(models))} from the axes, found {tuple(shape)}")
    if series.unit != "SECOND" or not 0 < series.step < np.inf:
        _refuse(path, f"expected a positive time step in seconds, found {series.step} {series.unit}")
    if len(series) < 1:
        _refuse(path, "expected at least one volume, found none")
    vertex, column = _cortical_positions(path, models)
    return CortexHeader(vertex, column, float(series.step), len(series))


def _cortical_positions(path: Path, models: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ascending cortical positions of a brain-model axis and the columns that hold them."""
    surface_vertex, is_right = surface_vertex_index()
    names = np.asarray(models.name, dtype=str)
    positions, columns = [], []
    for structure, wanted in ((LEFT, False), (RIGHT, True)):
        column = np.flatnonzero((names == structure) & models.surface_mask)
        if not len(column):
            _refuse(path, f"expected both cortices, found no {structure}")
        n_surface = models.nvertices[structure]
        if n_surface != N_SURFACE:
            _refuse(path, f"expected surfaces of {N_SURFACE} vertices (fsLR-32k), found {n_surface} in {structure}")
        vertex = models.vertex[column]
        if vertex.min() < 0 or vertex.max() >= N_SURFACE:
            _refuse(path, f"expected vertices 0…{N_SURFACE - 1} in {structure}, found {vertex.min()}…{vertex.max()}")
        if len(np.unique(vertex)) != len(vertex):
            _refuse(path, f"expected every vertex of {structure} once, found one twice")
        lookup = np.full(N_SURFACE, -1, dtype=np.int32)
        position = np.flatnonzero(is_right == wanted)
        lookup[surface_vertex[position]] = position
        is_kept = lookup[vertex] >= 0
        positions.append(lookup[vertex[is_kept]])
        columns.append(column[is_kept])
    position, column = np.concatenate(positions), np.concatenate(columns)
    if not len(position):
        _refuse(path, "expected cortical vertices, found only the medial wall")
    order = np.argsort(position)
    return position[order].astype(np.int32), column[order]
