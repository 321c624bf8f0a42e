"""Windows of HCP recordings: standardised means over some seconds (docs/method.md, Recordings).

Of a CIFTI file only the wanted vertices are read. A published npz is read in blocks, and a long one twice, so
that memory does not grow with its length.
Shapes: V voxels, n windows, T volumes.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.data.series import SeriesFile
from mindvideo.data.voxels import find_silent, refuse_damage
from mindvideo.errors import DataError, SettingError

NPZ_TR_S = 0.72
_READ_BYTES = 64_000_000
_HELD_BYTES = 256_000_000
"""Windows of an npz that are held instead of read again."""


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
    """Windows of a CIFTI run at some positions, standardised (ddof 1), float32 (n, V).

    NaN throughout for a vertex without signal. Raises DataError for damage, missing vertices, or too few
    volumes.
    """
    path, known = file.path, file.header.vertex
    is_missing = known[np.minimum(np.searchsorted(known, vertex), len(known) - 1)] != vertex
    if is_missing.any():
        raise DataError(
            f"{path}: expected {len(vertex)} vertices of the chosen areas, found {int((~is_missing).sum())} "
            f"(missing e.g. cortical position {int(vertex[is_missing][0])}); leave the run out or choose other areas"
        )
    volumes = volumes_per_window(window_s, file.header.tr_s, file.header.n_volumes, path)
    windows = average_windows(file.take(vertex).T, volumes)
    windows[:, find_silent(windows, path, vertex)] = np.nan
    return ((windows - windows.mean(axis=0)) / windows.std(axis=0, ddof=1)).astype(np.float32)


def _npy_header(member: Any) -> tuple[Any, bool, np.dtype]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    return np.lib.format.read_array_header_2_0(member)


def _npz_headers(archive: zipfile.ZipFile, path: Path, areas: Sequence[str]) -> list[tuple[int, int]]:
    """Shapes of the areas' arrays in an npz, checked to agree, without reading the arrays."""
    shapes: list[tuple[int, int]] = []
    for name in areas:
        if f"{name}.npy" not in archive.namelist():
            raise DataError(f"{path}: expected keys {', '.join(areas)}, found {', '.join(archive.namelist())}")
        with archive.open(f"{name}.npy") as member:
            shape, is_fortran, dtype = _npy_header(member)
        if len(shape) != 2 or min(shape) < 1 or is_fortran or dtype.kind not in "fiu":
            raise DataError(f"{path}: expected numbers (time, voxels) in C order under {name}, found {dtype} {shape}")
        shapes.append(shape)
    if len({shape[0] for shape in shapes}) != 1:
        raise DataError(f"{path}: expected equally many volumes in every area, found {shapes}; download the file again")
    return shapes


@contextmanager
def _as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as e:
        reason = " ".join(str(e).split())[:200]
        raise DataError(f"{path}: expected a whole npz of arrays (time, voxels), found damage ({reason})") from e


def _window_blocks(path: Path, areas: Sequence[str], window_s: float) -> Iterator[np.ndarray]:
    """Window means of all areas side by side, float64 (rows, V), in blocks of about 64 MB."""
    with _as_damage(path), zipfile.ZipFile(path) as archive, ExitStack() as stack:
        shapes = _npz_headers(archive, path, areas)
        n_volumes, widths = shapes[0][0], [shape[1] for shape in shapes]
        volumes = volumes_per_window(window_s, NPZ_TR_S, n_volumes, path)
        members = [stack.enter_context(archive.open(f"{name}.npy")) for name in areas]
        dtypes = [_npy_header(member)[2] for member in members]
        row_bytes = volumes * sum(width * dtype.itemsize for width, dtype in zip(widths, dtypes, strict=True))
        at_once = max(1, _READ_BYTES // row_bytes)
        n_windows = n_volumes // volumes
        for start in range(0, n_windows, at_once):
            count = min(at_once, n_windows - start) * volumes
            parts = []
            for member, width, dtype in zip(members, widths, dtypes, strict=True):
                block = member.read(count * width * dtype.itemsize)
                parts.append(average_windows(np.frombuffer(block, dtype=dtype).reshape(count, width), volumes))
            yield np.concatenate(parts, axis=1)
        for member in members:
            while member.read(_READ_BYTES):  # the zip's checksum is compared at the end
                pass


def stream_npz_windows(path: Path, areas: Sequence[str], window_s: float) -> Iterator[np.ndarray]:
    """Windows of a published ``HCP_visual_voxel.npz``, areas side by side, in blocks float32 (rows, V).

    The file holds V1…V4, each (time, voxels) at TR 0.72 s. NaN throughout for a voxel without signal. Raises
    DataError for damage or a missing key, before the first block.
    """
    first, n_windows = None, 0
    held: list[np.ndarray] | None = []
    with np.errstate(invalid="ignore", over="ignore"):
        for block in _window_blocks(path, areas, window_s):
            if first is None:
                first = block[0].copy()
                total, squares, n_finite = np.zeros((3, len(first)))
            offset = block - first
            total += offset.sum(axis=0)
            squares += np.einsum("nv,nv->v", offset, offset)
            n_finite += np.isfinite(block).sum(axis=0)
            n_windows += len(block)
            if held is not None:
                held = [*held, block] if n_windows * block[0].nbytes <= _HELD_BYTES else None
    assert first is not None  # at least two windows
    refuse_damage((n_finite > 0) & (n_finite < n_windows), path)
    mean = total / n_windows
    deviation = np.sqrt((squares - n_windows * mean**2) / (n_windows - 1))
    deviation[squares == 0] = np.nan
    for block in _window_blocks(path, areas, window_s) if held is None else held:
        yield ((block - first - mean) / deviation).astype(np.float32)
