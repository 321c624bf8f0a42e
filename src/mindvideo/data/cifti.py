"""Writing CIFTI-2 dense time series; `mindvideo.data.series` reads them.

Shapes: T volumes, N cortical positions, M voxels below the cortex.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from nibabel import cifti2

from mindvideo.atlas import N_SURFACE, surface_vertex_index
from mindvideo.errors import DataError
from mindvideo.files import beside

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
"""Voxels of each structure in the 91,282 grayordinates, in order; 31,870 in all."""

MNI_SHAPE = (91, 109, 91)
MNI_AFFINE = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])


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
        Voxels of the standard subcortical structures, in order, at placeholder
        coordinates; M = 31,870 and the whole cortex make 91,282 grayordinates.

    Raises
    ------
    DataError
        When the file cannot be written.
    """
    models = _cortex_axis(vertex)
    if subcortex is not None:
        models = models + _subcortex_axis(subcortex.shape[1])
        data = np.concatenate([data, subcortex], axis=1)
    series = cifti2.SeriesAxis(0.0, tr_s, len(data), unit="SECOND")
    image = cifti2.Cifti2Image(np.asarray(data, dtype=np.float32), header=(series, models))
    image.nifti_header.set_intent("ConnDenseSeries")
    try:
        with beside(path) as place:
            place.write_bytes(image.to_bytes())
    except OSError as error:
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
