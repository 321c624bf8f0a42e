"""From checked recordings and films to a store, for every source (docs/method.md, Recordings).

Everything is checked before anything is written. The first pass reads every file, for
its hash and for how well each vertex repeats; the second writes the store, segment by
segment. A pool works on runs and films (`mindvideo.data.pool`); only this process
writes. Shapes: S segments, n scans of a segment, F frames a scan, N candidate vertices,
V voxels, R runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.atlas import N_CORTEX, hierarchy_order
from mindvideo.config import Data
from mindvideo.data.captions import Captioning, caption_windows, read_captions
from mindvideo.data.copies import PROBES, find_copies, outline
from mindvideo.data.groups import is_begun, open_group
from mindvideo.data.measuring import (
    POLYNOMIAL,
    RunTask,
    check_film,
    is_measured,
    measure_segment,
    standardise_run,
    take_film,
)
from mindvideo.data.pool import Pool
from mindvideo.data.segments import Remark, Run, Source
from mindvideo.data.series import SeriesFile
from mindvideo.data.shots import MIN_SCENE_S, number_scenes
from mindvideo.data.store import SPLITS, STORE, Store, identify_voxels, listed
from mindvideo.data.voxels import refuse_silence, reproducibility_t_test, select_voxels
from mindvideo.data.writing import StoreWriter, refuse_complete
from mindvideo.errors import DataError, SettingError
from mindvideo.files import hash_file
from mindvideo.keys import as_digest
from mindvideo.stages import Progress, Steps

FRAME_BYTES = 3 * 2**30
"""How much is decoded ahead (one film: 2.8 GB at 30 frames/s, 256 pixels)."""


@dataclass(frozen=True)
class Voxels:
    """The chosen positions (V,), maps (59412,), silent positions, how many were tested."""

    vertex: np.ndarray
    reproducibility: np.ndarray
    p_value: np.ndarray
    silent: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    n_tested: int = 0


def prepare_segments(
    source: Source,
    out: Path,
    data: Data,
    pool: Pool,
    progress: Progress | None = None,
    captioning: Captioning | None = None,
    films: Store | None = None,
) -> Store:
    """Check every input, select voxels, and write the store, or go on writing it.

    Parameters
    ----------
    source : Source
        Segments in the order of the store.
    out : Path
        The store's folder.
    data : Data
        Settings.
    pool : Pool
        Works on single runs and films.
    progress : callable, optional
        Called with (steps done, steps, ``{"what": …}``).
    captioning : Captioning, optional
        Needed if ``data.captions`` is ``blip``.
    films : Store, optional
        Of another person who saw the same films, which are linked from it.

    Raises
    ------
    DataError
        For damaged or contradictory input, or a store in the way.
    """
    refuse_complete(out)
    if data.selection == "top_k" and data.k is None:
        raise SettingError("expected the number of voxels k for selection top_k, found none; set data.k (--k)")
    if films is not None:
        _refuse_other_films(source, data, films)
    n_runs, n_films = sum(len(item.runs) for item in source.segments), len(source.segments)
    tick = Steps(progress, 2 * n_runs + 3 * n_films)
    captions = given_captions(
        data, captioning, {item.name: item.times_s(data) for item in source.segments},
        {item.name: item.other_names for item in source.segments},
        {item.name: item.first for item in source.segments if item.is_part},
    )  # fmt: skip
    voxels, sources, provenance = None, {}, {}
    if is_begun(out):
        sources = _name_hashes(source, data, {}, pool)
        voxels = _unfinished_voxels(out, _fingerprint(source, data, sources, captioning))
        tick.done += 2 * (n_runs + n_films)
    if voxels is None:
        tick.done = 0
        voxels, sources = _check_sources(source, data, tick, pool, films)
        provenance = _provenance(source, data, voxels, captioning)
    fingerprint = _fingerprint(source, data, sources, captioning)
    splits = {split: [item.name for item in source.segments if item.split == split] for split in SPLITS}
    places = {
        item.name: (item.film, item.first * data.tr_s, sources[source.name_file(item.film)]) for item in source.segments
    }
    with StoreWriter(
        out, subject=source.subject, tr_s=data.tr_s, lag_s=data.lag_s, fps=data.fps, size=data.size, splits=splits,
        vertex=voxels.vertex, reproducibility=voxels.reproducibility, p_value=voxels.p_value,
        order=[segment.name for segment in source.segments], fingerprint=fingerprint, provenance=provenance,
        parcels=source.parcels,
    ) as writer:  # fmt: skip
        writer.add_sources(sources)
        writer.add_films(places, data.fit)
        _write_segments(writer, source, data, films or captions or captioning, tick, pool)
        return writer.finish()


def _write_segments(
    writer: StoreWriter,
    source: Source,
    data: Data,
    captions: Store | dict[str, list[list[str]]] | Captioning | None,
    tick: Steps,
    pool: Pool,
) -> None:
    """Write the missing segments; films are taken from ``captions`` if it is a store."""
    times = {segment.name: segment.times_s(data) for segment in source.segments}
    pending = [segment for segment in source.segments if not writer.has(segment.name)]
    runs = pool.map(
        standardise_run,
        (RunTask(run, item.n_scans, source.vertex, writer.vertex) for item in pending for run in item.runs),
    )
    longest = max((times[item.name].size for item in pending), default=1)
    ahead = FRAME_BYTES // (longest * 3 * data.size**2) - 1  # one more is being written
    read = partial(take_film, data=data)
    films = iter(()) if isinstance(captions, Store) else pool.map(read, pending, max(0, ahead))
    offset, missing = 0, {segment.name for segment in pending}
    for segment in source.segments:
        name, shape = segment.name, times[segment.name].shape
        if name in missing:
            repeats = np.stack([next(runs) for _ in segment.runs])
            writer.write_fmri(name, repeats.mean(axis=0), repeats)
            if isinstance(captions, Store):
                writer.take_films(name, captions)
        if name in missing and not isinstance(captions, Store):
            film = next(films)
            frames = film.frames.reshape(*shape, *film.frames.shape[1:])
            writer.write_frames(name, frames)
            scene = number_scenes(film.cuts_s, times[name], offset)
            writer.write_scene(name, scene)
            known = captions or {}
            rows = known.describe(frames, writer.path) if isinstance(known, Captioning) else known.get(name)
            texts = None if rows is None or data.captions == "none" else caption_windows(rows, scene)
            writer.write_captions(name, texts, rows or ())
            del film, frames  # before the next one is waited for
        offset += times[name].size
        tick.add(what=f"wrote {name}")


def _refuse_other_films(source: Source, data: Data, films: Store) -> None:
    other = []
    for item in source.segments:
        known = films.attrs["films"].get(item.name)
        part = item.split, item.n_scans, item.first * data.tr_s, hash_file(item.film)
        split = next((name for name, names in films.splits.items() if item.name in names), None)
        if known is None or part != (split, films.n_scans(item.name), known["start_s"], known["sha256"]):
            other.append(item.name)
    refuse_others(films, source.subject, [*other, *sorted(set(films.order) - {item.name for item in source.segments})])


def refuse_others(films: Store, subject: str, other: Sequence[str]) -> None:
    """Raise DataError if some segments are ``other`` than the first person's."""
    if other:
        raise DataError(
            f"expected the films that {films.subject} saw of {subject} too (data.subjects), found {len(other)} that differ "
            f"in content, length or split: {listed(other)}; leave {subject} out, or those films for all"
        )


def _check_sources(
    source: Source, data: Data, tick: Steps, pool: Pool, shown: Store | None
) -> tuple[Voxels, dict[str, str]]:
    """Check all runs, and films not ``shown`` to others; voxels, and hashes by file name."""
    _refuse_copies(source)
    voxels, hashes = measure_voxels(source, data, tick, pool)
    pending = source.segments if shown is None else ()
    for segment, sha256 in zip(pending, pool.map(partial(check_film, data=data), pending), strict=True):
        hashes[segment.film] = sha256
        tick.add(2, what=f"checked {segment.film.name}")
    return voxels, _name_hashes(source, data, hashes, pool)


def _refuse_copies(source: Source) -> None:
    film_of = {run.path: segment.name for segment in source.segments for run in segment.runs}
    probe = source.vertex[:: max(1, len(source.vertex) // PROBES)][:PROBES]
    outlines = {
        run.path: outline(_take(run, source.vertex, probe)) for segment in source.segments for run in segment.runs
    }
    for path, first in find_copies(outlines).items():
        films = " and ".join(dict.fromkeys((film_of[first], film_of[path])))
        raise DataError(
            f"expected different recordings of {films}, found copies of one: {first} and {path}; "
            "remove one, or list its run under exclude"
        )


def _take(run: Run, vertex: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Some vertices' volumes (P, T) of a CIFTI file, or scans from another reader."""
    if run.read is None or ".dtseries.nii" in run.path.name:
        return SeriesFile(run.path).take(wanted)
    return run.read(vertex, wanted).T


def measure_voxels(source: Source, data: Data, tick: Steps, pool: Pool) -> tuple[Voxels, dict[Path, str]]:
    """Check every run and choose voxels on training runs (docs/method.md, Recordings: voxels).

    Fisher's z of the correlation between a training segment's runs (the mean over
    pairs) goes into a one-sided t-test over segments. Test runs only exclude silent
    vertices. Returns also each file's hash.
    """
    candidate = source.candidates(data.areas)
    measure = partial(measure_segment, vertex=source.vertex, candidate=candidate)
    scores: list[np.ndarray] = []
    hashes: dict[Path, str] = {}
    silent: dict[str, np.ndarray] = {}
    for segment, found in zip(source.segments, pool.map(measure, source.segments), strict=True):
        if found.z is not None:
            scores.append(found.z)
        silent |= {str(run.path): own for run, own in zip(segment.runs, found.silent, strict=True)}
        if found.sha256:  # none of runs that bring their own reader
            hashes |= {run.path: sha256 for run, sha256 in zip(segment.runs, found.sha256, strict=True)}
        for run in segment.runs:
            tick.add(2, what=f"checked {run.label}")
    is_silent = refuse_silence(
        silent, f"{'parcel' if source.parcels else 'vertex'} of the areas '{data.areas}'",
        f"exclude that run (data.{data.source}.exclude), or choose areas that all runs cover (data.areas, --areas)",
    )  # fmt: skip
    left_out, candidate = candidate[is_silent], candidate[~is_silent]
    scores = [z[~is_silent] for z in scores]
    p = np.full(len(candidate), np.nan)
    reproducibility, p_value = np.full(N_CORTEX, np.nan), np.full(N_CORTEX, np.nan)
    if len(scores) >= 2 or data.selection != "all":
        p = reproducibility_t_test(np.array(scores))
    chosen = candidate[select_voxels(p, data.selection, data.alpha, data.top_fraction, data.k)]
    if not source.parcels:  # these have no place in the maps, and keep their atlas's order
        p_value[candidate] = p
        if scores:
            reproducibility[candidate] = np.tanh(np.mean(scores, axis=0))
        chosen = chosen[hierarchy_order(chosen)]
    return Voxels(chosen.astype(np.int32), reproducibility, p_value, left_out, int(np.isfinite(p).sum())), hashes


def given_captions(
    data: Data,
    captioning: Captioning | None,
    times_s: dict[str, np.ndarray],
    other_names: dict[str, tuple[str, ...]] | None = None,
    first: dict[str, int] | None = None,
) -> dict[str, list[list[str]]] | None:
    """Captions from the user's own file; None if they come from elsewhere."""
    if data.captions == "blip" and captioning is None:
        raise DataError(
            "expected a captioner for data.captions=blip, found none; give a foundation folder that has one, "
            "a csv or json file of captions, or, of published arrays, 'published'"
        )
    if data.caption_file is None:
        return None
    return read_captions(data.caption_file, times_s, other_names, first)


def captions_from(data: Data, captioning: Captioning | None) -> str:
    """Where a store's captions are from, for its provenance."""
    own = captioning.name if captioning is not None else ""
    return {"blip": own, "none": "none", "published": "published"}.get(data.captions, "file")


def _name_hashes(source: Source, data: Data, known: dict[Path, str], pool: Pool) -> dict[str, str]:
    """Hashes by name in the store; files not yet ``known`` are read."""
    files = [run.path for segment in source.segments for run in segment.runs]
    files = list(dict.fromkeys([*files, *(segment.film for segment in source.segments), *source.files]))
    rest = [path for path in files if path not in known]
    known = known | dict(zip(rest, pool.map(hash_file, rest), strict=True))
    hashes = {source.name_file(path): known[path] for path in files}
    if data.caption_file is not None:
        hashes[f"captions:{data.caption_file.name}"] = hash_file(data.caption_file)
    return hashes


def _fingerprint(source: Source, data: Data, sources: dict[str, str], captioning: Captioning | None) -> str:
    """A digest of all that shapes the store."""
    segments = [
        [segment.name, segment.split, segment.n_scans, [[run.label, run.first] for run in segment.runs]]
        for segment in source.segments
    ]
    return as_digest(shaping_settings(data), captions_from(data, captioning), segments, sources)


def shaping_settings(data: Data) -> dict[str, Any]:
    """The settings that shape a store: not where files lie, nor how many are required."""
    content = data.model_dump(mode="json", exclude={"raw", "hcp", "captions", "subjects"})
    own = {name: value for name, value in content[data.source].items() if not isinstance(getattr(data.own, name), Path)}
    return {**content, data.source: {**own, "expect": None}}


def _unfinished_voxels(out: Path, fingerprint: str) -> Voxels | None:
    """The selection of an interrupted store; None if there is none yet."""
    group = open_group(out, STORE)
    if group.attrs.get("fingerprint") != fingerprint:
        raise DataError(
            f"expected an interrupted store of the same settings and files at {out}, found one of others; "
            "remove it or give another place"
        )
    names = ("vertex", "reproducibility", "p_value")
    arrays = [np.asarray(item[:]) for name in names if isinstance(item := group.get(name), zarr.Array)]
    if len(arrays) < len(names) or identify_voxels(arrays[0]) != group.attrs.get("voxel_id"):
        return None
    return Voxels(arrays[0], arrays[1], arrays[2])


def _provenance(source: Source, data: Data, voxels: Voxels, captioning: Captioning | None) -> dict[str, dict[str, Any]]:
    measured = [item.name for item in source.segments if is_measured(item)]
    packages = ("numpy", "scipy", "nibabel", "av", "scenedetect-headless")
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
            "k": data.k, "tested": voxels.n_tested, "voxels": len(voxels.vertex),
        },
        "order": {"order": "the atlas's"} if source.parcels else {"atlas": "HCP-MMP1", "order": "visual hierarchy"},
        "repeats": {"fmri": "average of standardised runs", "windows": data.repeats},
        "frames": {"fps": data.fps, "size": data.size, "fit": data.fit},
        "scenes": {"detector": "ContentDetector", "threshold": data.cut_threshold, "min_scene_s": MIN_SCENE_S},
        "captions": {"from": captions_from(data, captioning)},
        "software": {name: metadata.version(name) for name in packages},
    }  # fmt: skip
    what = f"{'parcels' if source.parcels else 'vertices'} left out, which have no signal in some run"
    why = "films without captions, since the embedded kit knows one drawn world only, or none are wanted"
    named = [segment.name for segment in source.segments] if data.captions == "none" else []
    remarks = (*source.remarks, *Remark.of({what: source.name_vertices(voxels.silent), why: named}))
    steps["remarks"] = {"list": [{"text": remark.text, "names": list(remark.names)} for remark in remarks]}
    return {**source.notes, **{step: values for step, values in steps.items() if step not in source.notes}}
