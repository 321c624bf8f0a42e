"""From checked recordings and films to a store: what every source layout shares (METHOD section 2).

Everything is read and checked before anything is written. The first pass measures how well each vertex repeats, one run
in memory at a time; the second writes the chosen voxels, the frames, scenes and captions, segment by segment.
Shapes: S segments, n scans of a segment, F frames a scan, N candidate vertices, V voxels, R runs.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.atlas import N_CORTEX, hierarchy_order, parse_areas
from mindvideo.config import Data
from mindvideo.data.captions import Captioner, caption_frames, caption_windows, read_captions
from mindvideo.data.cifti import read_cortex
from mindvideo.data.store import Store, identify_voxels, open_group
from mindvideo.data.video import MIN_SCENE_S, TIME_TOLERANCE_S, read_film, read_frames
from mindvideo.data.voxels import (
    average_runs,
    check_run,
    detrend_and_standardise,
    fisher_z,
    repeat_correlation,
    reproducibility_t_test,
    select_voxels,
)
from mindvideo.errors import DataError, SettingError

POLYNOMIAL = 4
Progress = Callable[[int, int, dict[str, Any]], None]


@dataclass(frozen=True)
class Run:
    """One recording of a film: its ``label``, its file, and the volume ``first`` that pairs with movie time 0."""

    label: str
    path: Path
    first: int


@dataclass(frozen=True)
class Segment:
    """A film and its recordings; ``split`` is train, validation or test."""

    name: str
    split: str
    film: Path
    n_scans: int
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Source:
    """A checked source: where it is, who it is of, its segments, the vertices of every file, and notes to keep."""

    root: Path
    subject: str
    segments: tuple[Segment, ...]
    vertex: np.ndarray
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Voxels:
    """The chosen cortical positions in voxel order (V,), and both maps over the cortex, (59412,)."""

    vertex: np.ndarray
    reproducibility: np.ndarray
    p_value: np.ndarray


def frame_times(n_scans: int, tr_s: float, fps: int) -> np.ndarray:
    """Movie time of every kept frame, float64 (n, F): scan k shows k · tr_s + j / fps, j = 0…F−1.

    Raises
    ------
    SettingError
        If a TR does not hold a whole number of frames.
    """
    n_frames = fps * tr_s
    if abs(n_frames - round(n_frames)) > 1e-6 or round(n_frames) < 1:
        raise SettingError(
            f"expected a whole number of frames in each TR, found {fps} frames/s x {tr_s:g} s = {n_frames:g}; "
            "choose another data.fps"
        )
    return np.arange(n_scans)[:, None] * tr_s + np.arange(round(n_frames))[None, :] / fps


def number_scenes(cuts_s: Sequence[float], times_s: np.ndarray, offset: int) -> np.ndarray:
    """Scene of every frame, int32 (n, F).

    A scene's number is the place of its first kept frame, counted from ``offset`` (the kept frames of all segments
    before): unique over a store whatever was prepared in which order.
    """
    local = np.searchsorted(np.asarray(cuts_s, dtype=float) - TIME_TOLERANCE_S, times_s.ravel(), side="right")
    _, first, inverse = np.unique(local, return_index=True, return_inverse=True)
    return (first[inverse] + offset).reshape(times_s.shape).astype(np.int32)


def prepare_segments(
    source: Source,
    out: Path,
    data: Data,
    progress: Progress | None = None,
    captioner: Captioner | None = None,
    captioner_name: str = "captioner",
) -> Store:
    """Check every input, select voxels on training runs, and write the store; goes on where it was interrupted.

    Parameters
    ----------
    source : Source
        Segments in the order of the store.
    out : Path
        The store's folder.
    data : Data
        Settings; ``raw``, ``hcp`` and ``expect`` do not change the result.
    progress : callable, optional
        Called with steps done, steps in all, and ``{"what": …}``.
    captioner : callable, optional
        Needed where ``data.captions`` is ``blip``.
    captioner_name : str
        Part of the caption cache's key and of the provenance.

    Raises
    ------
    DataError
        For any damaged or contradictory input, or a store in the way.
    """
    _refuse_complete(out)
    tick = _Steps(progress, source)
    captions = _read_given_captions(source, data, captioner)
    sources = _hash_sources(source, data, tick)
    fingerprint = _fingerprint(source, data, sources, captioner_name)
    voxels = _unfinished_voxels(out, fingerprint)
    if voxels is None:
        voxels = measure_voxels(source, data, tick)
        _check_films(source, data, tick)
    else:
        tick.skip(sum(len(segment.runs) + 1 for segment in source.segments))
    splits = {
        split: [segment.name for segment in source.segments if segment.split == split]
        for split in ("train", "validation", "test")
    }
    with Store.create(
        out, subject=source.subject, tr_s=data.tr_s, lag_s=data.lag_s, fps=data.fps, size=data.size, splits=splits,
        vertex=voxels.vertex, reproducibility=voxels.reproducibility, p_value=voxels.p_value,
        order=[segment.name for segment in source.segments], fingerprint=fingerprint,
    ) as writer:  # fmt: skip
        writer.add_sources(sources)
        for step, parameters in _provenance(source, data, voxels, captioner_name).items():
            writer.add_step(step, **parameters)
        offset = 0
        for segment in source.segments:
            times = frame_times(segment.n_scans, data.tr_s, data.fps)
            if not writer.has(segment.name):
                repeats = _standardised_runs(segment, source.vertex, voxels.vertex)
                writer.write_fmri(segment.name, average_runs(list(repeats)), repeats)
                film = read_film(segment.film, times.ravel(), data.size, data.fit, data.cut_threshold)
                writer.write_frames(segment.name, film.frames.reshape(*times.shape, *film.frames.shape[1:]))
                scene = number_scenes(film.cuts_s, times, offset)
                writer.write_scene(segment.name, scene)
                if captions is not None:
                    rows = captions[segment.name]
                elif captioner is not None:
                    cache = out.with_name(f"{out.name}.captions.jsonl")
                    flat = caption_frames(captioner, film.frames, cache, captioner_name=captioner_name)
                    rows = [flat[start : start + times.shape[1]] for start in range(0, times.size, times.shape[1])]
                writer.write_captions(segment.name, caption_windows(rows, scene), rows)
            offset += times.size
            tick(f"wrote {segment.name}")
        return writer.finish()


def measure_voxels(source: Source, data: Data, tick: Callable[[str], None]) -> Voxels:
    """Check every run and choose the voxels on the training runs (METHOD section 2, 'Voxel selection').

    Per training segment, the Fisher z of the correlation between its runs (the mean over pairs where there are more
    than two); over segments a one-sided t-test. Test runs are read and checked, nothing is computed from them.

    Raises
    ------
    DataError
        For values that are not finite, constant vertices, copies of one file, or too few voxels.
    """
    candidate = np.intersect1d(source.vertex, parse_areas(data.areas))
    if not len(candidate):
        raise DataError(f"expected vertices of the areas '{data.areas}' in the recordings of {source.root}, found none")
    scores = []
    for segment in source.segments:
        is_measured = segment.split != "test" and len(segment.runs) >= 2
        kept = []
        for run in segment.runs:
            standardised = _standardise(run, segment.n_scans, source.vertex, candidate)
            tick(f"checked {run.label}")
            if is_measured:
                kept.append(standardised)
        if is_measured:
            with _naming(segment.name):
                pairs = itertools.combinations(kept, 2)
                scores.append(np.mean([fisher_z(repeat_correlation(a, b)) for a, b in pairs], axis=0))
    p = np.full(len(candidate), np.nan)
    reproducibility, p_value = np.full(N_CORTEX, np.nan), np.full(N_CORTEX, np.nan)
    if scores:
        reproducibility[candidate] = np.tanh(np.mean(scores, axis=0))
    if len(scores) >= 2 or data.selection != "all":
        p = reproducibility_t_test(np.array(scores)).p
    p_value[candidate] = p
    chosen = candidate[select_voxels(p, data.selection, data.alpha, data.top_fraction, data.k)]
    return Voxels(chosen[hierarchy_order(chosen)].astype(np.int32), reproducibility, p_value)


class _Steps:
    """Counts steps for the caller's progress display: each file hashed, run and film checked, segment written."""

    def __init__(self, progress: Progress | None, source: Source) -> None:
        n_segments = len(source.segments)
        n_runs = sum(len(segment.runs) for segment in source.segments)
        self._total, self._done, self._progress = 2 * n_runs + 3 * n_segments, 0, progress

    def skip(self, n_steps: int) -> None:
        """Count steps that were done before an interruption."""
        self._done += n_steps

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, {"what": what})


@contextmanager
def _naming(where: Path | str) -> Iterator[None]:
    """Put the file or segment in front of what the signal functions say."""
    try:
        yield
    except DataError as error:
        if str(where) in str(error):
            raise
        raise DataError(f"{where}: {error}") from error


def _standardise(run: Run, n_scans: int, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Read, trim, check, detrend and standardise one run at the wanted positions, float32 (n, len(wanted))."""
    recording = read_cortex(run.path)
    if not np.array_equal(recording.vertex, vertex):
        raise DataError(f"expected the vertices of the other files in {run.path}, found others; was it replaced?")
    column = np.searchsorted(vertex, wanted)
    kept = recording.data[run.first : run.first + n_scans]
    kept = kept if len(column) == len(vertex) and np.array_equal(wanted, vertex) else kept[:, column]
    check_run(kept, run.path, wanted)
    with _naming(run.path):
        return detrend_and_standardise(kept, POLYNOMIAL)


def _standardised_runs(segment: Segment, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """All runs of a segment at the voxels, float32 (R, n, V)."""
    return np.stack([_standardise(run, segment.n_scans, vertex, wanted) for run in segment.runs])


def _check_films(source: Source, data: Data, tick: Callable[[str], None]) -> None:
    """Decode every film to its last needed frame."""
    for segment in source.segments:
        last_s = frame_times(segment.n_scans, data.tr_s, data.fps)[-1, -1]
        read_frames(segment.film, np.array([last_s]), data.size, data.fit)
        tick(f"checked {segment.film.name}")


def _read_given_captions(source: Source, data: Data, captioner: Captioner | None) -> dict[str, list[list[str]]] | None:
    times = {segment.name: frame_times(segment.n_scans, data.tr_s, data.fps) for segment in source.segments}
    if data.captions != "blip":
        return read_captions(Path(data.captions), times)
    if captioner is None:
        raise DataError(
            "expected a captioner for data.captions=blip, found none; give a foundation folder that has one, "
            "or a csv or json file of captions"
        )
    return None


def _hash_sources(source: Source, data: Data, tick: Callable[[str], None]) -> dict[str, str]:
    """SHA-256 of every file used, by its path below the root."""
    files = [run.path for segment in source.segments for run in segment.runs]
    files += [segment.film for segment in source.segments]
    hashes = {}
    for path in files:
        hashes[path.relative_to(source.root).as_posix()] = _hash_file(path)
        tick(f"hashed {path.name}")
    if data.captions != "blip":
        hashes[f"captions:{Path(data.captions).name}"] = _hash_file(Path(data.captions))
    return hashes


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"expected a readable file at {path}, found: {error.strerror or error}") from error


def _fingerprint(source: Source, data: Data, sources: dict[str, str], captioner_name: str) -> str:
    """Identity of all that shapes the store; where the files lie does not."""
    content = {
        "settings": data.model_dump(mode="json", exclude={"raw", "hcp", "expect", "captions"}),
        "captioner": captioner_name if data.captions == "blip" else "file",
        "segments": [
            [segment.name, segment.split, segment.n_scans, [[run.label, run.first] for run in segment.runs]]
            for segment in source.segments
        ],
        "sources": sources,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_begun(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def _refuse_complete(out: Path) -> None:
    """Say early that the place is taken, before hours of reading."""
    if _is_begun(out) and open_group(out).attrs.get("complete"):
        raise DataError(f"expected a new or an interrupted store at {out}, found a complete one; remove it first")


def _unfinished_voxels(out: Path, fingerprint: str) -> Voxels | None:
    """The selection of an interrupted store of the same settings and sources; None where there is none yet."""
    if not _is_begun(out):
        return None
    group = open_group(out)
    if group.attrs.get("fingerprint") != fingerprint:
        raise DataError(
            f"expected an interrupted store of the same settings and files at {out}, found one of others; "
            "remove it or give another place"
        )
    names = ("vertex", "reproducibility", "p_value")
    arrays = [np.asarray(item[:]) for name in names if isinstance(item := group.get(name), zarr.Array)]
    if len(arrays) < len(names) or identify_voxels(arrays[0]) != group.attrs.get("voxel_id"):
        return None
    return Voxels(*arrays)


def _provenance(source: Source, data: Data, voxels: Voxels, captioner_name: str) -> dict[str, dict[str, Any]]:
    """Every step with its parameters."""
    measured = [item.name for item in source.segments if item.split != "test" and len(item.runs) >= 2]
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "nibabel", "av", "scenedetect")}
    given = "file" if data.captions != "blip" else captioner_name
    return {
        **source.notes,
        "trim": {
            "lag_s": data.lag_s,
            "first_volume": {run.label: run.first for segment in source.segments for run in segment.runs},
            "n_scans": {segment.name: segment.n_scans for segment in source.segments},
        },
        "standardise": {"polynomial": POLYNOMIAL, "ddof": 1},
        "reproducibility": {"segments": measured, "test": "one-sided t of Fisher z", "df": len(measured) - 1},
        "select": {
            "areas": data.areas, "selection": data.selection, "alpha": data.alpha, "top_fraction": data.top_fraction,
            "k": data.k, "tested": int(np.isfinite(voxels.p_value).sum()), "voxels": len(voxels.vertex),
        },
        "order": {"atlas": "HCP-MMP1", "order": "visual hierarchy"},
        "repeats": {"fmri": "average of standardised runs", "windows": data.repeats},
        "frames": {"fps": data.fps, "size": data.size, "fit": data.fit},
        "scenes": {"detector": "ContentDetector", "threshold": data.cut_threshold, "min_scene_s": MIN_SCENE_S},
        "captions": {"from": given},
        "software": versions,
    }  # fmt: skip
