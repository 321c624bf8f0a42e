"""Windows of HCP recordings: standardised means over some seconds (docs/method.md, Recordings).

Of a CIFTI file only the wanted vertices are read, of a published npz one area at a time.
Shapes: V voxels, n windows, T volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindvideo.data.series import SeriesFile
from mindvideo.data.voxels import find_silent
from mindvideo.errors import DataError, MindVideoError, SettingError, one_line

NPZ_TR_S = 0.72


def volumes_per_window(window_s: float, tr_s: float, n_volumes: int, path: Path | str) -> int:
    """Whole volumes in a window, at least one; a run needs two windows."""
    volumes = round(window_s / tr_s)
    if volumes < 1:
        raise SettingError(
            f"expected a window of at least one volume ({tr_s:g} s in {path}), found window_s {window_s:g}"
        )
    if n_volumes < 2 * volumes:
        raise DataError(
            f"expected at least two windows of {volumes} volumes ({window_s:g} s), found {n_volumes} volumes in "
            f"{path}; remove the run or shorten window_s"
        )
    return volumes


def average_windows(run: np.ndarray, volumes: int) -> np.ndarray:
    """Means of ``volumes`` consecutive volumes, float64 (T // volumes, V); a rest is dropped."""
    n_windows = len(run) // volumes
    return run[: n_windows * volumes].reshape(n_windows, volumes, run.shape[1]).mean(axis=1, dtype=np.float64)


def read_cifti_windows(file: SeriesFile, vertex: np.ndarray, window_s: float) -> np.ndarray:
    """Windows of a CIFTI run at some positions, standardised (ddof 1), float32 (n, V); NaN without signal."""
    path, known = file.path, file.header.vertex
    is_missing = known[np.minimum(np.searchsorted(known, vertex), len(known) - 1)] != vertex
    if is_missing.any():
        raise DataError(
            f"{path}: expected {len(vertex)} vertices of the chosen areas, found {int((~is_missing).sum())} "
            f"(missing e.g. cortical position {int(vertex[is_missing][0])}); leave the run out or choose other areas"
        )
    volumes = volumes_per_window(window_s, file.header.tr_s, file.header.n_volumes, path)
    return _standardise(average_windows(file.take(vertex).T, volumes), path, vertex)


def read_npz_windows(path: Path, areas: Sequence[str], window_s: float) -> np.ndarray:
    """The same of a published ``HCP_visual_voxel.npz``, areas side by side.

    The file is one person's: V1…V4, each (time, voxels) at TR 0.72 s; one area is in memory at a time.
    """
    averaged: list[np.ndarray] = []
    n_volumes = 0
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not set(areas) <= set(archive.files):
                raise DataError(f"{path}: expected keys {', '.join(areas)}, found {', '.join(archive.files)}")
            for name in areas:
                series = archive[name]
                if series.ndim != 2 or min(series.shape) < 1 or series.dtype.kind not in "fiu":
                    raise DataError(
                        f"{path}: expected numbers (time, voxels) under {name}, found {series.dtype} {series.shape}"
                    )
                if averaged and len(series) != n_volumes:
                    raise DataError(
                        f"{path}: expected equally many volumes in every area, found {n_volumes} and {len(series)}; download "
                        "the file again"
                    )
                n_volumes = len(series)
                averaged.append(average_windows(series, volumes_per_window(window_s, NPZ_TR_S, n_volumes, path)))
    except MindVideoError:
        raise
    except Exception as error:  # damage raises nearly anything
        raise DataError(
            f"{path}: expected a whole npz of arrays (time, voxels), found damage ({one_line(error)})"
        ) from error
    return _standardise(np.concatenate(averaged, axis=1), path)


def _standardise(windows: np.ndarray, path: Path, vertex: np.ndarray | None = None) -> np.ndarray:
    windows[:, find_silent(windows, path, vertex)] = np.nan
    with np.errstate(invalid="ignore", over="ignore"):
        return ((windows - windows.mean(axis=0)) / windows.std(axis=0, ddof=1)).astype(np.float32)
