"""Tasks on single runs and films, from files alone, in any order and on any machine.

They check, measure how well each vertex repeats, standardise, and take frames.
Shapes: n scans, N candidate vertices, V voxels, R runs.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindvideo.config import Data
from mindvideo.data.segments import Run, Segment
from mindvideo.data.series import SeriesFile
from mindvideo.data.video import FilmFrames, read_film, read_frames
from mindvideo.data.voxels import (
    detrend_and_standardise,
    detrended_products,
    find_silent,
    fisher_z,
    polynomial_basis,
    refuse_damage,
    repeat_correlation,
)
from mindvideo.errors import DataError
from mindvideo.files import hash_file

POLYNOMIAL = 4
MIN_MEASURED_SCANS = 4
"""Fewer scans have no Fisher z of known spread (1 / sqrt(n − 3))."""
_ROWS_AT_ONCE = 256

_reading = threading.Lock()
"""A reader that is given (`Run.read`) need not be safe for threads."""


@dataclass(frozen=True)
class SegmentMeasure:
    """What a segment's runs say.

    Attributes
    ----------
    z : ndarray, float64 (N,), or None
        Fisher's z of each candidate, NaN without signal; None if not measured.
    silent : ndarray, bool (R, N)
        Candidates without signal in each run.
    sha256 : tuple of str
        Hash of each run's file; none if runs bring their own reader.
    """

    z: np.ndarray | None
    silent: np.ndarray
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class RunTask:
    """Standardise one run at the wanted positions."""

    run: Run
    n_scans: int
    vertex: np.ndarray
    wanted: np.ndarray


def is_measured(segment: Segment) -> bool:
    """Whether a segment is a repeated training film, long enough to correlate."""
    return segment.split == "train" and len(segment.runs) >= 2 and segment.n_scans >= MIN_MEASURED_SCANS


def measure_segment(segment: Segment, vertex: np.ndarray, candidate: np.ndarray) -> SegmentMeasure:
    """Check and hash a segment's runs, and correlate them if it `is_measured`.

    Raises
    ------
    DataError
        For damaged or changed files, values that are not finite, or copies of one file.
    """
    runs = segment.runs
    if any(run.read is not None for run in runs):
        return _measure_given(segment, vertex, candidate)
    files, first = [_open(run, vertex) for run in runs], [run.first for run in runs]
    z = None
    if is_measured(segment):
        if any(not np.array_equal(file.column, files[0].column) for file in files):  # laid out in other orders
            files = [SeriesFile(run.path, by_vertex=True) for run in runs]
        gram, silent = _read_products(files, first, segment.n_scans, vertex, candidate)
        gram[:, :, silent.any(axis=0)] = np.nan
        pairs = itertools.combinations(range(len(runs)), 2)
        with _naming(segment.name):
            z = np.mean([fisher_z(gram[i, j] / np.sqrt(gram[i, i] * gram[j, j])) for i, j in pairs], axis=0)
    else:
        alone = zip(files, first, strict=True)
        parts = [_read_products([file], [at], segment.n_scans, vertex, candidate)[1] for file, at in alone]
        silent = np.concatenate(parts)
    return SegmentMeasure(z, silent, tuple(file.sha256 for file in files))


def _open(run: Run, vertex: np.ndarray) -> SeriesFile:
    file = SeriesFile(run.path)
    if not np.array_equal(file.header.vertex, vertex):
        raise DataError(f"expected the vertices of the other files in {run.path}, found others; was it replaced?")
    return file


def _read_products(
    files: list[SeriesFile], first: list[int], n_scans: int, vertex: np.ndarray, candidate: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Products of detrended runs, float64 (R, R, N), and silence, bool (R, N)."""
    basis = polynomial_basis(n_scans, POLYNOMIAL)
    row = files[0].column[np.searchsorted(vertex, candidate)]
    place = np.argsort(row, kind="stable")
    row = row[place]
    gram = np.empty((len(files), len(files), len(candidate)))
    silent, damaged = np.empty((2, len(files), len(candidate)), dtype=bool)
    for parts in zip(*(file.blocks() for file in files), strict=True):
        start, n_rows = parts[0][0], len(parts[0][1])
        low, high = np.searchsorted(row, [start, start + n_rows])
        for begin in range(low, high, _ROWS_AT_ONCE):
            end = min(high, begin + _ROWS_AT_ONCE)
            inside = row[begin:end] - start
            is_run = inside[-1] - inside[0] == len(inside) - 1
            rows = slice(inside[0], inside[-1] + 1) if is_run else inside
            series = [part[rows, skip : skip + n_scans] for (_, part), skip in zip(parts, first, strict=True)]
            found = detrended_products(series, basis)
            gram[:, :, place[begin:end]] = found.gram
            silent[:, place[begin:end]], damaged[:, place[begin:end]] = found.is_silent, found.is_damaged
    for file, is_damaged in zip(files, damaged, strict=True):
        refuse_damage(is_damaged, file.path, candidate)
    return gram, silent


def _measure_given(segment: Segment, vertex: np.ndarray, candidate: np.ndarray) -> SegmentMeasure:
    """The same for runs that bring their own reader."""
    kept, silent = [], []
    for run in segment.runs:
        standardised = standardise_run(RunTask(run, segment.n_scans, vertex, candidate))
        silent.append(np.isnan(standardised).any(axis=0))
        if is_measured(segment):
            kept.append(standardised)
    z = None
    if kept:
        with _naming(segment.name):
            pairs = itertools.combinations(kept, 2)
            z = np.mean([fisher_z(repeat_correlation(a, b)) for a, b in pairs], axis=0)
    return SegmentMeasure(z, np.array(silent), ())


def standardise_run(task: RunTask) -> np.ndarray:
    """One standardised run at the wanted positions, float32 (n, V); NaN without signal."""
    run = task.run
    if run.read is not None:
        with _reading:
            return run.read(task.vertex, task.wanted)
    kept = _open(run, task.vertex).take(task.wanted)[:, run.first : run.first + task.n_scans].T
    is_silent = find_silent(kept, run.path, task.wanted)
    with _naming(run.path):
        return detrend_and_standardise(np.where(is_silent, np.float32(0), kept), POLYNOMIAL)


def take_film(segment: Segment, data: Data) -> FilmFrames:
    """A segment's frames and shot changes."""
    return read_film(segment.film, segment.times_s(data).ravel(), data.size, data.fit, data.cut_threshold)


def check_film(segment: Segment, data: Data) -> str:
    """Decode a segment's film to its last needed frame; its SHA-256 (hex)."""
    read_frames(segment.film, segment.times_s(data).ravel()[-1:], data.size, data.fit)
    return hash_file(segment.film)


@contextmanager
def _naming(where: Path | str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        if isinstance(where, Path) and str(where) in str(error):
            raise
        raise DataError(f"{where}: {error}") from error
