"""Writing a store part by part, so that an interrupted prepare goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.atlas import N_CORTEX, area_labels
from mindvideo.data.groups import begin_group, is_begun, open_group, refuse_damaged_store, seal_group
from mindvideo.data.store import (
    PARTS,
    SPLITS,
    STORE,
    Store,
    identify_voxels,
    is_unplaced,
    natural_key,
    parcel_vertices,
)
from mindvideo.errors import DataError
from mindvideo.files import disk_errors, link_folder, only_one

FILM_PARTS = ("frames", "scene", "captions")
"""Parts that are the same for all who saw the films."""
_CHUNK_BYTES = 1_500_000


def refuse_complete(path: Path) -> None:
    """Raise DataError for a complete store at ``path``: before hours of reading."""
    if is_begun(path) and open_group(path, STORE).attrs.get("complete"):
        raise DataError(f"expected a new or an interrupted store at {path}, found a complete one; remove it first")


class StoreWriter:
    """Writes a store part by part; what is written stays, an interrupted prepare goes on.

    Parameters
    ----------
    path : Path
        The store's folder. Locked until `finish` or `close`.
    tr_s, lag_s, fps, size
        As in `Store`.
    splits : dict
        ``train``, ``validation``, ``test``: segment names, each in one split.
    vertex : ndarray, int (V,)
        Cortical positions in voxel order, or negative numbers.
    reproducibility, p_value : ndarray, float (59412,), optional
        NaN where not recorded.
    order : sequence of str, optional
        All segments as recorded; by default by name, ``seg2`` before ``seg10``.
    fingerprint : str
        Hash of settings and sources: an interrupted store goes on only with the same.
    provenance : dict, optional
        Steps by name with their parameters, for a new store.
    parcels : sequence of str, optional
        Names of all parcels of an atlas whose `parcel_vertices` the voxels are.

    Raises
    ------
    DataError
        For contradictory arguments, a store in the way, another writer, or a full disk.
    """

    def __init__(
        self,
        path: Path,
        *,
        subject: str,
        tr_s: float,
        lag_s: float,
        fps: int,
        size: int,
        splits: dict[str, list[str]],
        vertex: np.ndarray,
        reproducibility: np.ndarray | None = None,
        p_value: np.ndarray | None = None,
        order: Sequence[str] | None = None,
        fingerprint: str = "",
        provenance: dict[str, dict[str, Any]] | None = None,
        parcels: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.vertex = np.asarray(vertex, dtype=np.int32)
        names = [name for split in SPLITS for name in splits.get(split, [])]
        self.order = list(order) if order is not None else sorted(names, key=natural_key)
        if sorted(self.order) != sorted(set(names)) or len(set(names)) < len(names):
            raise DataError(f"expected every segment in one of {', '.join(SPLITS)}, found {splits} for {self.order}")
        refuse_complete(path)
        header = {
            "subject": subject,
            "tr_s": tr_s,
            "lag_s": lag_s,
            "fps": fps,
            "size": size,
            "splits": {split: list(splits.get(split, [])) for split in SPLITS},
            "order": self.order,
            "voxel_id": identify_voxels(self.vertex),
            "fingerprint": fingerprint,
        } | ({"parcels": list(parcels)} if parcels else {})
        steps = [{"step": step, "parameters": parameters} for step, parameters in (provenance or {}).items()]
        with ExitStack() as stack:
            stack.enter_context(only_one(path.with_name(f"{path.name}.lock"), f"writing {path}"))
            start = {"provenance": steps, "sources": {}, "films": {}, "written": {}}
            self._group = begin_group(path, STORE, header, start)
            for name, values in (("reproducibility", reproducibility), ("p_value", p_value)):
                filled = np.full(N_CORTEX, np.nan) if values is None else np.asarray(values)
                self._write(name, filled.astype(np.float32))
            self._write("vertex", self.vertex)
            if parcels:
                area = 1 + np.searchsorted(parcel_vertices(parcels), self.vertex)
            elif is_unplaced(self.vertex):
                area = np.zeros(len(self.vertex), dtype=np.int64)
            else:
                area = area_labels()[self.vertex]
            self._write("area", area.astype(np.int16))
            self._held = stack.pop_all()

    def has(self, segment: str, part: str | None = None) -> bool:
        """Whether a part of a segment (default: all) is written."""
        written = self._group.attrs["written"].get(segment, [])
        return part in written if part is not None else set(written) == set(PARTS)

    def write_fmri(self, segment: str, fmri: np.ndarray, repeats: np.ndarray) -> None:
        """Write the average (n, V) and the single runs (R, n, V), both standardised."""
        if not (np.isfinite(fmri).all() and np.isfinite(repeats).all()):
            raise DataError(f"expected finite fMRI for segment {segment}, found NaN or infinite values; check its runs")
        self._write(f"fmri/{segment}", fmri.astype(np.float32, copy=False))
        self._write(f"repeats/{segment}", repeats.astype(np.float32, copy=False), (1, *fmri.shape))
        self._mark(segment, "fmri", "repeats")

    def write_frames(self, segment: str, frames: np.ndarray) -> None:
        """Write the frames of a segment, uint8 (n, F, H, W, 3)."""
        rows = max(1, min(len(frames), _CHUNK_BYTES // frames[0].nbytes))
        self._write(f"frames/{segment}", frames, (rows, *frames.shape[1:]), compressors="auto")
        self._mark(segment, "frames")

    def write_scene(self, segment: str, scene: np.ndarray) -> None:
        """Write scene numbers, int (n, F), unique over the whole store."""
        self._write(f"scene/{segment}", scene.astype(np.int32))
        self._mark(segment, "scene")

    def write_captions(
        self, segment: str, captions: Sequence[str] | None, frame_captions: Sequence[Sequence[str]] = ()
    ) -> None:
        """Write one caption a scan (n) and one a frame (n lists of F); None: there are none."""
        attributes: dict[str, Any] = {"left_out": True}
        if captions is not None:
            attributes = {"scan": list(captions), "frame": [list(row) for row in frame_captions]}
        self._group.create_group(f"captions/{segment}", overwrite=True, attributes=attributes)
        self._mark(segment, "captions")

    def take_films(self, segment: str, films: Store) -> None:
        """Link frames, scenes and captions of a segment from another person's store."""
        for part in FILM_PARTS:
            self._group.require_group(part)
            link_folder(films.path / part / segment, self.path / part / segment)
        self._mark(segment, *FILM_PARTS)

    def add_step(self, step: str, **parameters: Any) -> None:
        """Record a step of the preparation; a step of the same name is replaced."""
        steps = [item for item in self._group.attrs["provenance"] if item["step"] != step]
        self._record("provenance", [*steps, {"step": step, "parameters": parameters}])

    def add_sources(self, sources: dict[str, str]) -> None:
        """Record source files: relative path to SHA-256 (hex)."""
        self._record("sources", {**self._group.attrs["sources"], **sources})

    def add_films(self, films: dict[str, tuple[Path, float, str]], fit: str) -> None:
        """Record each segment's film: its path, the movie time of the first scan, and its SHA-256.

        Paths are kept relative and absolute, so that a run may move with its films; of
        simulated films only relative, so that a study gives the same bytes anywhere.
        """
        store, described = self.path.resolve(), {}
        for segment, (film, start_s, sha256) in films.items():
            found = film.resolve()
            is_own = found.is_relative_to(store.parent.parent / "simulate")
            place = {"path": "" if is_own else str(found), "beside": os.path.relpath(found, store)}
            described[segment] = {**place, "start_s": float(start_s), "fit": fit, "sha256": sha256}
        self._record("films", described)

    def finish(self) -> Store:
        """Check that every segment is whole, mark the store as complete, and open it.

        Raises
        ------
        DataError
            If a segment lacks a part, or a part has another shape than the others ask for.
        """
        for segment in self.order:
            missing = [part for part in PARTS if not self.has(segment, part)]
            if missing:
                raise DataError(
                    f"expected every part of segment {segment} in {self.path}, found no {', '.join(missing)}"
                )
        refuse_damaged_store(self.path, self._group)
        seal_group(self.path, self._group)
        self.close()
        return Store(self.path, open_group(self.path, STORE))

    def close(self) -> None:
        """Release the lock; an unfinished store stays incomplete."""
        self._held.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(
        self, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None, compressors: Any = None
    ) -> None:
        with disk_errors(self.path, name.replace("/", " of "), values.nbytes):
            array = self._group.create_array(
                name, shape=values.shape, chunks=chunks or tuple(max(1, n) for n in values.shape), dtype=values.dtype,
                overwrite=True, compressors=compressors, config={"write_empty_chunks": True},
            )  # fmt: skip
            array[...] = values

    def _mark(self, segment: str, *parts: str) -> None:
        written = dict(self._group.attrs["written"])
        written[segment] = sorted({*written.get(segment, []), *parts})
        self._record("written", written)

    def _record(self, name: str, value: Any) -> None:
        self._group.attrs[name] = value
