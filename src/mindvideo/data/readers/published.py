"""Arrays that others prepared, as a store (docs/method.md, What others publish).

Trimming, detrending, standardising, averaging, choosing voxels and cutting frames are
done; the store says so. Neither layout says where its voxels lie: they get names
(negative numbers) instead of positions, unless a file gives these.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mindvideo.atlas import N_CORTEX
from mindvideo.config import Data, Section
from mindvideo.data.arrays import MindVideoFolder, NeuroClipsFolder, PublishedFolder, read_npy
from mindvideo.data.captions import Captioning, caption_windows
from mindvideo.data.groups import open_group
from mindvideo.data.pool import Pool
from mindvideo.data.preparation import (
    captions_from,
    given_captions,
    shaping_settings,
)
from mindvideo.data.segments import frame_times, name_splits
from mindvideo.data.shots import MIN_SCENE_S, find_cuts, number_scenes
from mindvideo.data.store import SPLITS, STORE, Store, unplaced_vertices
from mindvideo.data.video import resize
from mindvideo.data.voxels import find_silent, refuse_silence
from mindvideo.data.windows import near_duplicates
from mindvideo.data.writing import StoreWriter, refuse_complete
from mindvideo.errors import DataError, SettingError
from mindvideo.files import hash_file
from mindvideo.keys import as_digest
from mindvideo.stages import Progress, Steps

NEAR_DUPLICATE = 0.98


class Settings(Section):
    """What arrays do not say of themselves (``data.published``)."""

    segment_scans: int = Field(240, ge=2, description="scans per film where the arrays do not say (NeuroClips)")
    vertex: Path | None = Field(None, description="npy file with the cortical position of each voxel, where known")


_LAYOUTS: tuple[type[MindVideoFolder] | type[NeuroClipsFolder], ...] = (MindVideoFolder, NeuroClipsFolder)


def discover(folder: Path, data: Data) -> PublishedFolder:
    """Recognise a folder by what is in it, and check that its arrays fit together."""
    if not folder.is_dir():
        raise DataError(f"expected published arrays in {folder}, found no folder; give the one that was downloaded")
    subjects = {layout: layout.find_subjects(folder) for layout in _LAYOUTS}
    found = [layout for layout in _LAYOUTS if subjects[layout]]
    if len(found) != 1:
        patterns = " or ".join(f"{layout.pattern} ({layout.name})" for layout in _LAYOUTS)
        raise DataError(
            f"expected one set of published arrays, with {patterns}, in {folder}, found "
            f"{'both; keep them in two folders' if found else 'neither; give the folder that holds them'}"
        )
    layout = found[0]
    if data.subject not in subjects[layout]:
        known = ", ".join(map(str, sorted(subjects[layout])))
        raise DataError(
            f"expected fMRI of subject {data.subject} in {folder}, found subjects {known}; give one of them (--subject)"
        )
    found_folder = layout(subjects[layout][data.subject], data)
    found_folder.root = folder
    return found_folder


def settle(folder: Path, data: Data) -> Data:
    """The settings with the published size of frames where none is stated."""
    return data if data.size else data.model_copy(update={"size": discover(folder, data).size})


def write(
    source: PublishedFolder,
    out: Path,
    data: Data,
    pool: Pool,
    progress: Progress | None = None,
    captioning: Captioning | None = None,
    films: Store | None = None,
) -> Store:
    """Write the store of one subject's arrays.

    Arguments as in `mindvideo.data.preparation.prepare_segments`; selection, areas and
    runs are the publishers' and not applied, nor are ``films``, since everybody's
    arrays hold the frames.
    """
    refuse_complete(out)
    names = {split: source.segment_names(split) for split in ("train", "test")}
    named: dict[str, str] = name_splits(names["train"], names["test"], data, f"in {source.root}")
    splits = {split: [name for name, own in named.items() if own == split] for split in SPLITS}
    times = frame_times(source.n_scans, data.tr_s, data.fps)
    if times.shape[1] != source.num_frames:
        raise SettingError(
            f"expected {source.num_frames} frames a scan, as {source.root} holds, found data.fps {data.fps} x data.tr_s "
            f"{data.tr_s:g} s; set them as the publishers did (3 frames/s, 2 s)"
        )
    order = names["train"] + names["test"]
    given, tick = given_captions(data, captioning, dict.fromkeys(order, times)), Steps(progress, len(order) + 1)
    kept = _check_values(source, names, data)
    hashed = pool.map(hash_file, source.files)
    sources = {
        path.relative_to(source.root).as_posix(): sha256 for path, sha256 in zip(source.files, hashed, strict=True)
    }
    vertex = _place_voxels(source.n_voxels, sources, data)[kept]
    fingerprint = _fingerprint(data, sources, captioning)
    with StoreWriter(
        out, subject=f"subject{data.subject}", tr_s=data.tr_s, lag_s=data.lag_s, fps=data.fps, size=data.size,
        splits=splits, vertex=vertex, order=order, fingerprint=fingerprint,
        provenance=_provenance(source, data, captioning, np.flatnonzero(~kept)),
    ) as writer:  # fmt: skip
        writer.add_sources(sources)
        for number, name in enumerate(order):
            if not writer.has(name):
                split = "train" if name in names["train"] else "test"
                index = names[split].index(name)
                repeats = source.repeats(split, index)[:, :, kept]
                writer.write_fmri(name, repeats.mean(axis=0, dtype=np.float64).astype(np.float32), repeats)
                frames = resize_frames(source.frames(split, index), data.size)
                writer.write_frames(name, frames)
                cuts_s = find_cuts(
                    zip(times.ravel(), frames.reshape(-1, *frames.shape[2:]), strict=True), data.cut_threshold
                )
                scene = number_scenes(cuts_s, times, number * times.size)
                writer.write_scene(name, scene)
                rows = given[name] if given is not None else None
                if data.captions == "published":
                    rows = source.captions(split, index)
                elif data.captions == "blip" and captioning is not None:
                    rows = captioning.describe(frames, out)
                texts = None if rows is None else caption_windows(rows, scene)
                writer.write_captions(name, texts, rows or ())
            tick.add(what=f"wrote {name}")
        pairs = near_duplicates(Store(out, open_group(out, STORE)), NEAR_DUPLICATE)
        writer.add_step(
            "near_duplicates", threshold=NEAR_DUPLICATE, test_scans=len(pairs),
            pairs=[[p.test_segment, p.test_scan, p.train_segment, p.train_scan, round(p.correlation, 4)] for p in pairs],
        )  # fmt: skip
        store = writer.finish()
    tick.add(what="compared test and training frames")
    return store


def _check_values(source: PublishedFolder, names: dict[str, list[str]], data: Data) -> np.ndarray:
    """Read every value once; which voxels have a signal in every film, bool (V,)."""
    silent, folder = {}, source.files[0].parent
    for split, members in names.items():
        for index, name in enumerate(members):
            repeats = source.repeats(split, index)
            silent[name] = np.any([find_silent(repeat, f"{name} of {folder}") for repeat in repeats], axis=0)
            source.frames(split, index)
            if data.captions == "published":
                source.captions(split, index)
    return ~refuse_silence(silent, f"voxel of {folder}", "download the arrays again")


def resize_frames(frames: np.ndarray, size: int) -> np.ndarray:
    """Square frames uint8 (n, F, H, H, 3) at another size."""
    return np.stack([[resize(frame, size, size) for frame in scan] for scan in frames])


def _place_voxels(n_voxels: int, sources: dict[str, str], data: Data) -> np.ndarray:
    """Positions from the user's file, int32 (V,), or negative names."""
    path = data.own.vertex
    if path is None:
        return unplaced_vertices(json.dumps(sources, sort_keys=True).encode(), n_voxels)
    vertex = np.asarray(read_npy(path))
    if vertex.shape != (n_voxels,) or vertex.dtype.kind not in "iu":
        raise DataError(
            f"expected the cortical positions of {n_voxels} voxels, whole numbers ({n_voxels},), in {path}, found "
            f"{vertex.dtype} {vertex.shape}"
        )
    if len(np.unique(vertex)) != n_voxels or vertex.min() < 0 or vertex.max() >= N_CORTEX:
        raise DataError(f"expected cortical positions 0…{N_CORTEX - 1}, each once, in {path}, found others")
    return vertex.astype(np.int32)


def _fingerprint(data: Data, sources: dict[str, str], captioning: Captioning | None) -> str:
    captions = captions_from(data, captioning) if data.captions == "blip" else data.captions
    vertex = hash_file(data.own.vertex) if data.own.vertex is not None else None
    return as_digest(shaping_settings(data), sources, captions, vertex)


def _provenance(
    source: PublishedFolder, data: Data, captioning: Captioning | None, silent: np.ndarray
) -> dict[str, dict[str, Any]]:
    left_out = {"text": "voxels left out, which have no signal in some film", "names": [str(i) for i in silent]}
    place = "not known" if data.own.vertex is None else f"given in {data.own.vertex.name}"
    return {
        "discover": {"source": "published", "layout": source.name, "subject": data.subject, **source.notes()},
        "done_by_publishers": {
            "steps": list(source.done),
            "cannot_be_undone": "the recordings before these steps are not in the folder; values are kept as they are",
            "lag_s": f"built into the published pairs; {data.lag_s:g} s is stated by the recipe, not measured",
        },
        "remarks": {"list": [left_out] if len(silent) else []},
        "voxels": {"number": source.n_voxels - len(silent), "places": place, "order": "as published"},
        "repeats": {"fmri": "mean of the published repeats", "repeats": source.repeats_note, "windows": data.repeats},
        "frames": {"fps": data.fps, "size": data.size, "published_size": source.size},
        "scenes": {"detector": "ContentDetector on the published frames", "threshold": data.cut_threshold,
                   "min_scene_s": MIN_SCENE_S},
        "captions": {"from": captions_from(data, captioning)},
    }  # fmt: skip
