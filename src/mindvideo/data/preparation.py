"""From checked recordings and films to a store: what every source layout shares (METHOD section 2).

Everything is read and checked before anything is written. The first pass reads every file once, for its hash and for
how well each vertex repeats; the second reads the chosen voxels and writes them, the frames, scenes and captions, segment
by segment. Both hand single runs and films to a pool (`mindvideo.data.pool`); only this process writes.
Shapes: S segments, n scans of a segment, F frames a scan, N candidate vertices, V voxels, R runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.atlas import N_CORTEX, hierarchy_order, parse_areas
from mindvideo.config import Data
from mindvideo.data.captions import Captioner, caption_frames, caption_windows, read_captions
from mindvideo.data.measuring import (
    POLYNOMIAL,
    FilmTask,
    RunTask,
    SegmentTask,
    check_film,
    is_measured,
    measure_segment,
    standardise_run,
    take_film,
)
from mindvideo.data.pool import Pool, open_pool
from mindvideo.data.store import Store, identify_voxels, open_group
from mindvideo.data.video import MIN_SCENE_S, TIME_TOLERANCE_S
from mindvideo.data.voxels import average_runs, reproducibility_t_test, select_voxels
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, SettingError
from mindvideo.files import hash_file

Progress = Callable[[int, int, dict[str, Any]], None]
MOST_FPS = 30
MOST_SILENT = 0.1
"""Largest share of candidate vertices that may lack a signal in some run: fMRIPrep's own gaps are .01 of the cortex."""
FRAME_BYTES = 3 * 2**30
"""Frames of films are decoded ahead up to about this; one film is always held whole (2.8 GB at 30 frames/s, 256 pixels)."""


@dataclass(frozen=True)
class Run:
    """One recording of a film: its ``label``, its file, and the volume ``first`` that pairs with movie time 0.

    Where the film is not simply a stretch of volumes, ``read`` gives the standardised scans instead: called with the
    vertices of the source and the wanted ones, it returns float32 (n, len(wanted)).
    """

    label: str
    path: Path
    first: int
    read: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Segment:
    """A film and its recordings; ``split`` is train, validation or test.

    Where the segment ``is_part`` of a film, ``first`` is the film's scan that is its first; ``other_names`` are what else
    a file of captions may call it.
    """

    name: str
    split: str
    film: Path
    n_scans: int
    runs: tuple[Run, ...]
    first: int = 0
    is_part: bool = False
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Remark:
    """What was left out of a data set, or taken for granted: in words, and the names of all it concerns."""

    text: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A checked source: where it is, who it is of, its segments, the vertices of every file, and notes to keep.

    A note replaces the general step of the same name in the provenance. ``files`` are further files the result depends
    on; ``roots`` are folders beside ``root``, by the name that stands for them in the store. ``remarks`` are kept too.
    """

    root: Path
    subject: str
    segments: tuple[Segment, ...]
    vertex: np.ndarray
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    roots: dict[str, Path] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()

    def name_file(self, path: Path) -> str:
        """The name of a file in the store: its path below the root, or below one of ``roots`` after that one's name."""
        for name, folder in {"": self.root, **self.roots}.items():
            if path.is_relative_to(folder):
                return f"{name}/{path.relative_to(folder).as_posix()}".lstrip("/")
        return path.name


@dataclass(frozen=True)
class Voxels:
    """The chosen cortical positions in voxel order (V,), both maps over the cortex, (59412,), and what was left out."""

    vertex: np.ndarray
    reproducibility: np.ndarray
    p_value: np.ndarray
    silent: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def frame_times(n_scans: int, tr_s: float, fps: int, first: int = 0) -> np.ndarray:
    """Movie time of every kept frame, float64 (n, F): scan k shows (first + k) · tr_s + j / fps, j = 0…F−1.

    Raises
    ------
    SettingError
        If a TR does not hold a whole number of frames.
    """
    if not _is_whole(fps * tr_s):
        rates = [str(rate) for rate in range(1, MOST_FPS + 1) if _is_whole(rate * tr_s)]
        way_out = f"choose fps {', '.join(rates[:4])} (data.fps, --fps), or " if rates else "no fps up to 30 has one: "
        raise SettingError(
            f"expected a whole number of frames in each TR, found {fps} frames/s x {tr_s:g} s = {fps * tr_s:g}; {way_out}"
            "with fmriprep choose another spacing of the scans, as --tr-s 2 --fps 3 (data.tr_s, data.fps)"
        )
    return (first + np.arange(n_scans)[:, None]) * tr_s + np.arange(round(fps * tr_s))[None, :] / fps


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) <= 1e-6 and round(number) >= 1


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
    pool: Pool | None = None,
    caption_cache: Path | None = None,
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
    pool : Pool, optional
        Where the work on single runs and films is done; left out: here, one after the other. Same bytes either way.
    caption_cache : Path, optional
        File of what was captioned before; left out: ``OUT.captions.jsonl`` beside the store.

    Raises
    ------
    DataError
        For any damaged or contradictory input, or a store in the way.
    """
    refuse_complete(out)
    if pool is None:
        with open_pool() as pool:
            return prepare_segments(source, out, data, progress, captioner, captioner_name, pool, caption_cache)
    if data.selection == "top_k" and data.k is None:
        raise SettingError("expected the number of voxels k for selection top_k, found none; set data.k (--k)")
    tick = _Steps(progress, source)
    captions = _read_given_captions(source, data, captioner)
    voxels, sources, provenance = None, {}, {}
    if _is_begun(out):
        sources = _hash_files(source, data, tick, pool)
        voxels = _unfinished_voxels(out, _fingerprint(source, data, sources, captioner_name))
        tick.skip(sum(len(segment.runs) + 1 for segment in source.segments))
    if voxels is None:
        tick.restart()
        voxels, sources = _check_sources(source, data, tick, pool)
        provenance = _provenance(source, data, voxels, captioner_name)
    fingerprint = _fingerprint(source, data, sources, captioner_name)
    splits = {
        split: [segment.name for segment in source.segments if segment.split == split]
        for split in ("train", "validation", "test")
    }
    with Store.create(
        out, subject=source.subject, tr_s=data.tr_s, lag_s=data.lag_s, fps=data.fps, size=data.size, splits=splits,
        vertex=voxels.vertex, reproducibility=voxels.reproducibility, p_value=voxels.p_value,
        order=[segment.name for segment in source.segments], fingerprint=fingerprint, provenance=provenance,
    ) as writer:  # fmt: skip
        writer.add_sources(sources)
        writer.add_films(
            {
                item.name: (item.film, item.first * data.tr_s, sources[source.name_file(item.film)])
                for item in source.segments
            },
            data.fit,
        )
        describe = _Captions(captioner, captioner_name, caption_cache or default_cache(out))
        _write_segments(writer, source, data, captions, describe, tick, pool)
        return writer.finish()


def _write_segments(
    writer: StoreWriter,
    source: Source,
    data: Data,
    given: dict[str, list[list[str]]] | None,
    describe: _Captions,
    tick: _Steps,
    pool: Pool,
) -> None:
    """Write what is missing, segment by segment; runs and films come from the pool a little ahead."""
    times = {
        segment.name: frame_times(segment.n_scans, data.tr_s, data.fps, segment.first) for segment in source.segments
    }
    pending = [segment for segment in source.segments if not writer.has(segment.name)]
    runs = pool.map(
        standardise_run,
        (RunTask(run, item.n_scans, source.vertex, writer.vertex) for item in pending for run in item.runs),
    )
    longest = max((times[item.name].size for item in pending), default=1)
    ahead = FRAME_BYTES // (longest * 3 * data.size**2) - 1  # one more is being written
    films = pool.map(
        take_film, (FilmTask(item.film, times[item.name].ravel(), data) for item in pending), max(0, ahead)
    )
    offset, missing = 0, {segment.name for segment in pending}
    for segment in source.segments:
        shape = times[segment.name].shape
        if segment.name in missing:
            repeats = np.stack([next(runs) for _ in segment.runs])
            writer.write_fmri(segment.name, average_runs(list(repeats)), repeats)
            film = next(films)
            writer.write_frames(segment.name, film.frames.reshape(*shape, *film.frames.shape[1:]))
            scene = number_scenes(film.cuts_s, times[segment.name], offset)
            writer.write_scene(segment.name, scene)
            if data.captions == "none":
                writer.leave_captions_out(segment.name)
            else:
                rows = given[segment.name] if given is not None else describe(film.frames, shape[1])
                writer.write_captions(segment.name, caption_windows(rows, scene), rows)
            del film  # before the next one is waited for
        offset += times[segment.name].size
        tick(f"wrote {segment.name}")


def default_cache(out: Path) -> Path:
    """The file beside a store that keeps what was captioned for it."""
    return out.with_name(f"{out.name}.captions.jsonl")


class _Captions:
    """Captions of frames from a captioner, through a cache."""

    def __init__(self, captioner: Captioner | None, name: str, cache: Path) -> None:
        self._captioner, self._name, self._cache = captioner, name, cache

    def __call__(self, frames: np.ndarray, n_frames: int) -> list[list[str]]:
        assert self._captioner is not None  # checked before anything was read
        flat = caption_frames(self._captioner, frames, self._cache, captioner_name=self._name)
        return [flat[start : start + n_frames] for start in range(0, len(flat), n_frames)]


def _check_sources(source: Source, data: Data, tick: _Steps, pool: Pool) -> tuple[Voxels, dict[str, str]]:
    """Check and hash every run and film; the voxels chosen on training runs, and the hashes by name."""
    hashes: dict[Path, str] = {}
    voxels = measure_voxels(source, data, tick, pool, hashes)
    films = (
        FilmTask(segment.film, frame_times(segment.n_scans, data.tr_s, data.fps, segment.first).ravel(), data)
        for segment in source.segments
    )
    for segment, sha256 in zip(source.segments, pool.map(check_film, films), strict=True):
        hashes[segment.film] = sha256
        tick(f"checked {segment.film.name}", 2)
    named = _name_hashes(source, data, hashes, pool)
    _refuse_copies(source, named)
    return voxels, named


def _refuse_copies(source: Source, hashes: dict[str, str]) -> None:
    """A copy of a recording is no repeat of it."""
    for segment in source.segments:
        owner: dict[str, Path] = {}
        for path in dict.fromkeys(run.path for run in segment.runs):
            other = owner.setdefault(hashes[source.name_file(path)], path)
            if other != path:
                raise DataError(
                    f"expected different recordings of {segment.name}, found copies of one file: {other} and {path}; "
                    "remove one, or list its run under exclude"
                )


def measure_voxels(
    source: Source, data: Data, tick: _Steps, pool: Pool, hashes: dict[Path, str] | None = None
) -> Voxels:
    """Check every run and choose the voxels on the training runs (METHOD section 2, 'Voxel selection').

    Per training segment, the Fisher z of the correlation between its runs (the mean over pairs where there are more
    than two); over segments a one-sided t-test. Of test runs only this is used: a vertex without signal in any run is no
    candidate.
    ``hashes`` receives the hash of each file that was read from end to end.

    Raises
    ------
    DataError
        For values that are not finite, too many vertices without signal, copies of one file, or too few voxels.
    """
    candidate = np.intersect1d(source.vertex, parse_areas(data.areas))
    if not len(candidate):
        raise DataError(f"expected vertices of the areas '{data.areas}' in the recordings of {source.root}, found none")
    tasks = (SegmentTask(segment, source.vertex, candidate, is_measured(segment)) for segment in source.segments)
    scores = []
    silent: dict[str, np.ndarray] = {}
    for segment, measure in zip(source.segments, pool.map(measure_segment, tasks), strict=True):
        if measure.z is not None:
            scores.append(measure.z)
        silent |= {str(run.path): own for run, own in zip(segment.runs, measure.silent, strict=True)}
        if hashes is not None and measure.sha256:
            hashes |= {run.path: sha256 for run, sha256 in zip(segment.runs, measure.sha256, strict=True)}
        for run in segment.runs:
            tick(f"checked {run.label}", 2)
    is_silent = _refuse_silence(silent, data)
    left_out, candidate = candidate[is_silent], candidate[~is_silent]
    scores = [z[~is_silent] for z in scores]
    p = np.full(len(candidate), np.nan)
    reproducibility, p_value = np.full(N_CORTEX, np.nan), np.full(N_CORTEX, np.nan)
    if scores:
        reproducibility[candidate] = np.tanh(np.mean(scores, axis=0))
    if len(scores) >= 2 or data.selection != "all":
        p = reproducibility_t_test(np.array(scores))
    p_value[candidate] = p
    chosen = candidate[select_voxels(p, data.selection, data.alpha, data.top_fraction, data.k)]
    return Voxels(chosen[hierarchy_order(chosen)].astype(np.int32), reproducibility, p_value, left_out)


def _refuse_silence(silent: dict[str, np.ndarray], data: Data) -> np.ndarray:
    """Which candidates have no signal in some run, bool (N,), of each run's file; DataError where they are too many."""
    is_silent = np.any(list(silent.values()), axis=0)
    if is_silent.mean() > MOST_SILENT:
        worst = max(silent, key=lambda path: int(silent[path].sum()))
        raise DataError(
            f"expected a signal at nearly every vertex of the areas '{data.areas}', found {int(is_silent.sum())} of "
            f"{len(is_silent)} that never change in some run, {int(silent[worst].sum())} of them in {worst}; exclude that run "
            "(data.exclude, or data.fmriprep.exclude), or choose areas that all runs cover (data.areas, --areas)"
        )
    return is_silent


class _Steps:
    """Counts steps for the caller's progress display: each file hashed, run and film checked, segment written."""

    def __init__(self, progress: Progress | None, source: Source) -> None:
        n_segments = len(source.segments)
        n_runs = sum(len(segment.runs) for segment in source.segments)
        self._total, self._done, self._progress = 2 * n_runs + 3 * n_segments, 0, progress

    def skip(self, n_steps: int) -> None:
        """Count steps that were done before an interruption."""
        self._done += n_steps

    def restart(self) -> None:
        """Count from the start again."""
        self._done = 0

    def __call__(self, what: str, n_steps: int = 1) -> None:
        self._done += n_steps
        if self._progress is not None:
            self._progress(self._done, self._total, {"what": what})


def _read_given_captions(source: Source, data: Data, captioner: Captioner | None) -> dict[str, list[list[str]]] | None:
    times = {
        segment.name: frame_times(segment.n_scans, data.tr_s, data.fps, segment.first) for segment in source.segments
    }
    if data.captions == "none":
        return None
    if data.captions != "blip":
        skipped = {segment.name: segment.first for segment in source.segments if segment.is_part}
        names = {segment.name: segment.other_names for segment in source.segments}
        return read_captions(Path(data.captions), times, names, skipped)
    if captioner is None:
        raise DataError(
            "expected a captioner for data.captions=blip, found none; give a foundation folder that has one, "
            "or a csv or json file of captions"
        )
    return None


def _hash_files(source: Source, data: Data, tick: _Steps, pool: Pool) -> dict[str, str]:
    """SHA-256 of every file used, by its name in the store."""
    files = [run.path for segment in source.segments for run in segment.runs]
    files += [segment.film for segment in source.segments]
    tick("hashing", 0)
    hashes = _name_hashes(source, data, {}, pool)
    tick.skip(len(files))
    return hashes


def _name_hashes(source: Source, data: Data, known: dict[Path, str], pool: Pool) -> dict[str, str]:
    """Hashes by name in the store, in the order of the segments; a file that is not known yet is read once."""
    files = [run.path for segment in source.segments for run in segment.runs]
    files = list(dict.fromkeys([*files, *(segment.film for segment in source.segments), *source.files]))
    rest = [path for path in files if path not in known]
    known = known | dict(zip(rest, pool.map(hash_file, rest), strict=True))
    hashes = {source.name_file(path): known[path] for path in files}
    if data.captions not in ("blip", "none"):
        hashes[f"captions:{Path(data.captions).name}"] = hash_file(Path(data.captions))
    return hashes


def _fingerprint(source: Source, data: Data, sources: dict[str, str], captioner_name: str) -> str:
    """Identity of all that shapes the store; where the files lie does not."""
    content = {
        "settings": data.model_dump(
            mode="json",
            exclude={"raw": True, "hcp": True, "expect": True, "captions": True, "fmriprep": {"stimuli", "bids"}},
        ),
        "captioner": {"blip": captioner_name, "none": "none"}.get(data.captions, "file"),
        "segments": [
            [segment.name, segment.split, segment.n_scans, [[run.label, run.first] for run in segment.runs]]
            for segment in source.segments
        ],
        "sources": sources,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_begun(out: Path) -> bool:
    return out.is_dir() and any(out.iterdir())


def refuse_complete(out: Path) -> None:
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
    measured = [item.name for item in source.segments if is_measured(item)]
    versions = {name: metadata.version(name) for name in ("numpy", "scipy", "nibabel", "av", "scenedetect-headless")}
    given = {"blip": captioner_name, "none": "none"}.get(data.captions, "file")
    steps: dict[str, dict[str, Any]] = {
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
    remarks = [*source.remarks]
    if len(voxels.silent):
        names = tuple(map(str, voxels.silent.tolist()))
        remarks.append(Remark("vertices left out, which have no signal in some run", names))
    if data.captions == "none":
        films = tuple(segment.name for segment in source.segments)
        remarks.append(
            Remark(
                "films without captions, since the embedded kit knows one drawn world only, or none are wanted", films
            )
        )
    steps["remarks"] = {"list": [{"text": remark.text, "names": list(remark.names)} for remark in remarks]}
    return {**source.notes, **{step: values for step, values in steps.items() if step not in source.notes}}
