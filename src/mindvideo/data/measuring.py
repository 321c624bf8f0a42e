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
from mindvideo.data.detrending import detrended_products, polynomial_basis
from mindvideo.data.segments import Run, Segment
from mindvideo.data.series import SeriesFile
from mindvideo.data.video import FilmFrames, read_film, read_frames
from mindvideo.data.voxels import detrend_and_standardise, find_silent, fisher_z, refuse_damage, repeat_correlation
from mindvideo.errors import DataError
from mindvideo.files import hash_file

POLYNOMIAL = 4
MIN_MEASURED_SCANS = 4
"""Fewer scans have no Fisher z of known spread (1 / sqrt(n − 3))."""
_ROWS_AT_ONCE = 256

_reading = threading.Lock()
"""A reader that is given (`Run.read`) need not be safe for threads."""


@dataclass(frozen=True)
class SegmentTask:
    """Check a segment's runs at the candidate vertices and, if ``is_measured``, how well they repeat."""

    segment: Segment
    vertex: np.ndarray
    candidate: np.ndarray
    is_measured: bool


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
    """Whether voxels are selected on a segment: a repeated training film, long enough to correlate."""
    return segment.split == "train" and len(segment.runs) >= 2 and segment.n_scans >= MIN_MEASURED_SCANS


def measure_segment(task: SegmentTask) -> SegmentMeasure:
    """Check and hash all runs of a segment, and correlate them if it is measured.

    Raises
    ------
    DataError
        For damaged or changed files, values that are not finite, or copies of one file.
    """
    runs = task.segment.runs
    if any(run.read is not None for run in runs):
        return _measure_given(task)
    if task.is_measured:
        groups = [[SeriesFile(run.path) for run in runs]]
        if any(not np.array_equal(file.column, groups[0][0].column) for file in groups[0]):  # laid out in other orders
            groups = [[SeriesFile(run.path, by_vertex=True) for run in runs]]
    else:
        groups = [[SeriesFile(run.path)] for run in runs]
    first = [run.first for run in runs]
    products = []
    for files in groups:
        products.append(_read_products(files, first[: len(files)], task))
        first = first[len(files) :]
    silent = np.concatenate([is_silent for _, is_silent in products])
    z = None
    if task.is_measured:
        gram = np.where(silent.any(axis=0), np.nan, products[0][0])
        pairs = itertools.combinations(range(len(runs)), 2)
        with _naming(task.segment.name):
            z = np.mean([fisher_z(gram[i, j] / np.sqrt(gram[i, i] * gram[j, j])) for i, j in pairs], axis=0)
    return SegmentMeasure(z, silent, tuple(file.sha256 for files in groups for file in files))


def _read_products(files: list[SeriesFile], first: list[int], task: SegmentTask) -> tuple[np.ndarray, np.ndarray]:
    """Products of detrended runs at the candidates, float64 (R, R, N), and silence, bool (R, N)."""
    for file in files:
        if not np.array_equal(file.header.vertex, task.vertex):
            raise DataError(f"expected the vertices of the other files in {file.path}, found others; was it replaced?")
    n_scans, candidate = task.segment.n_scans, task.candidate
    basis = polynomial_basis(n_scans, POLYNOMIAL)
    row = files[0].column[np.searchsorted(task.vertex, candidate)]
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


def _measure_given(task: SegmentTask) -> SegmentMeasure:
    """The same for runs that bring their own reader."""
    kept, silent = [], []
    for run in task.segment.runs:
        standardised = standardise_run(RunTask(run, task.segment.n_scans, task.vertex, task.candidate))
        silent.append(np.isnan(standardised).any(axis=0))
        if task.is_measured:
            kept.append(standardised)
    z = None
    if task.is_measured:
        with _naming(task.segment.name):
            pairs = itertools.combinations(kept, 2)
            z = np.mean([fisher_z(repeat_correlation(a, b)) for a, b in pairs], axis=0)
    return SegmentMeasure(z, np.array(silent), ())


def standardise_run(task: RunTask) -> np.ndarray:
    """One standardised run at the wanted positions, float32 (n, V); NaN without signal."""
    run = task.run
    if run.read is not None:
        with _reading:
            return run.read(task.vertex, task.wanted)
    file = SeriesFile(run.path)
    if not np.array_equal(file.header.vertex, task.vertex):
        raise DataError(f"expected the vertices of the other files in {run.path}, found others; was it replaced?")
    kept = file.take(task.wanted)[:, run.first : run.first + task.n_scans].T
    is_silent = find_silent(kept, run.path, task.wanted)
    with _naming(run.path):
        return detrend_and_standardise(np.where(is_silent, np.float32(0), kept), POLYNOMIAL)


@dataclass(frozen=True)
class FilmTask:
    """Frames of a film at some times, float64 (T,), with the settings they are taken by."""

    path: Path
    times_s: np.ndarray
    data: Data


def take_film(task: FilmTask) -> FilmFrames:
    """The frames and the shot changes of a film."""
    return read_film(task.path, task.times_s, task.data.size, task.data.fit, task.data.cut_threshold)


def check_film(task: FilmTask) -> str:
    """Decode a film to its last needed frame; its SHA-256 (hex)."""
    read_frames(task.path, task.times_s[-1:], task.data.size, task.data.fit)
    return hash_file(task.path)


@contextmanager
def _naming(where: Path | str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        if isinstance(where, Path) and str(where) in str(error):
            raise
        raise DataError(f"{where}: {error}") from error
