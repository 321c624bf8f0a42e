"""The prepared dataset: a zarr v3 group with fMRI, frames, scenes, captions and provenance.

Shapes: V voxels, n scans of a segment, R repeats, F frames a scan, H W pixels.

========================  ==================================================================================
``fmri/{segment}``        float32 (n, V), average of the standardised runs
``repeats/{segment}``     float32 (R, n, V), the standardised single runs
``frames/{segment}``      uint8 (n, F, H, W, 3), F = round(fps · tr_s), H = W = size
``scene/{segment}``       int32 (n, F), scene number, unique over the whole store
``captions/{segment}``    a group whose attributes ``scan`` (n strings) and ``frame`` (n lists of F) hold captions, or
                          whose ``left_out`` says that there are none
``vertex``, ``area``      int32 (V,) cortical position 0…59,411; int16 (V,) HCP-MMP1 label 1…360; where a publisher
                          does not say where voxels lie: negative numbers that name
                          them; label 0; of parcels: such numbers, and each one's place
                          in the attribute ``parcels``, from 1 on
``reproducibility``       float32 (59412,) mean between-run correlation, NaN where not recorded; ``p_value`` likewise
========================  ==================================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.artefacts import read_note
from mindvideo.atlas import area_names
from mindvideo.config import Data
from mindvideo.data.groups import RECORD, Kind, as_damage, open_complete, refuse_damaged_store
from mindvideo.errors import DataError
from mindvideo.files import beside, disk_errors, hash_file, require_content
from mindvideo.voxel_layout import VoxelLayout

SPLITS = ("train", "validation", "test")
PARTS = ("fmri", "repeats", "frames", "scene", "captions")


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``seg2`` before ``seg10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first names, and dots if there are more."""
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def _name_whole(attrs: Mapping[str, Any]) -> str:
    done = sorted((name for name, parts in attrs.get("written", {}).items() if {*parts} == {*PARTS}), key=natural_key)
    return f"{len(done)} whole segments ({', '.join(done) or 'none'})"


STORE = Kind("prepared store", "mindvideo-store", "prepare", _name_whole)


def identify_voxels(vertex: np.ndarray) -> str:
    """SHA-256 (hex) of the positions as little-endian int32; models and stores must agree."""
    return hashlib.sha256(np.ascontiguousarray(vertex, dtype="<i4").tobytes()).hexdigest()


def is_unplaced(vertex: np.ndarray) -> bool:
    """Whether voxels have no known place: all numbers are negative, mere names."""
    return bool((np.asarray(vertex) < 0).all())


def unplaced_vertices(identity: bytes, count: int) -> np.ndarray:
    """Negative numbers, int32 (count,), that name one data set's voxels without a place."""
    first = int.from_bytes(hashlib.sha256(identity).digest()[:4], "little") % (2**31 - count - 1)
    return (-1 - first - np.arange(count)).astype(np.int32)


def parcel_vertices(names: Sequence[str]) -> np.ndarray:
    """Numbers that stand for the parcels of an atlas with these names, int32, ascending."""
    return unplaced_vertices("\n".join(names).encode(), len(names))[::-1]


def store_paths(data: Data, folder: Path) -> list[Path]:
    """Each person's store: ``store.zarr``, or ``subjectN.zarr`` of several."""
    names = ["store"] if data.subjects is None else [f"subject{number}" for number in data.subjects]
    return [folder / f"{name}.zarr" for name in names]


def person_folders(data: Data, folder: Path) -> list[Path]:
    """Each person's folder of a stage: the stage's own, or ``subjectN`` of several."""
    return [folder] if data.subjects is None else [folder / f"subject{number}" for number in data.subjects]


def open_stores(data: Data, run_dir: Path) -> list[Store]:
    """The stores of a run, one per person; films are read from the first."""
    return [Store.open(path) for path in store_paths(data, run_dir / "prepare")]


class Store:
    """A complete prepared dataset, read only; `mindvideo.data.writing.StoreWriter` writes one.

    Attributes
    ----------
    vertex, area : ndarray, int32 (V,) and int16 (V,)
        See the table above; ``voxel_id`` identifies them (`identify_voxels`).
    has_positions : bool
        Whether the voxels' places on the cortex are known; not so for most published arrays.
    subject : str
    order : list of str
        All segments, as they were recorded.
    tr_s, lag_s : float
        Seconds between scans, and from a film moment to the scan it is paired with.
    fps, size, num_frames : int
        Frames per second of film, their height and width in pixels, frames per scan F.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        self.attrs: dict[str, Any] = dict(group.attrs)
        self.subject, self.order = str(self.attrs["subject"]), list(self.attrs["order"])
        self.tr_s, self.lag_s = float(self.attrs["tr_s"]), float(self.attrs["lag_s"])
        self.fps, self.size = int(self.attrs["fps"]), int(self.attrs["size"])
        self.num_frames = round(self.fps * self.tr_s)
        self.vertex: np.ndarray = np.asarray(self._array("vertex")[:], dtype=np.int32)
        self.area: np.ndarray = np.asarray(self._array("area")[:], dtype=np.int16)
        self.n_voxels, self.voxel_id = len(self.vertex), identify_voxels(self.vertex)
        self.has_positions = not is_unplaced(self.vertex)

    @classmethod
    def open(cls, path: Path | str) -> Store:
        """Open a complete store.

        Raises
        ------
        DataError
            If the folder is missing, not a store, of another version, incomplete, or damaged.
        """
        path = Path(path)
        group = open_complete(path, STORE)
        refuse_damaged_store(path, group)
        with as_damage(path, "store"):
            return cls(path, group)

    def _array(self, name: str) -> zarr.Array:
        try:
            array = self._group[name]
        except KeyError:
            part, _, segment = name.partition("/")
            raise DataError(
                f"expected {part} of segment '{segment}' in {self.path}, found only {', '.join(self.order)}"
            ) from None
        return array

    def fmri(self, segment: str) -> np.ndarray:
        """Average of the standardised runs, float32 (n, V)."""
        return np.asarray(self._array(f"fmri/{segment}")[:])

    def repeats(self, segment: str) -> np.ndarray:
        """The standardised single runs, float32 (R, n, V)."""
        return np.asarray(self._array(f"repeats/{segment}")[:])

    def frames(self, segment: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Frames shown during scans ``start``…``stop``−1, uint8 (scans, F, H, W, 3)."""
        return np.asarray(self._array(f"frames/{segment}")[start:stop])

    def frames_at(self, segment: str, scan: np.ndarray) -> np.ndarray:
        """Frames of some scans, uint8 (len(scan), F, H, W, 3); reads each chunk once."""
        wanted, inverse = np.unique(np.asarray(scan), return_inverse=True)
        return np.asarray(self._array(f"frames/{segment}").oindex[wanted])[inverse]

    def film(self, segment: str) -> dict[str, Any]:
        """A segment's film: ``path``, movie time of the first scan ``start_s``, and ``fit``.

        Raises
        ------
        DataError
            If the store was not made from films, or the film was moved or changed.
        """
        film = self.attrs.get("films", {}).get(segment)
        if film is None:
            raise DataError(
                f"expected the place of the film of {segment} in {self.path}, found none: it was prepared from arrays, "
                "or by an older version; prepare it again from films"
            )
        places = [Path(os.path.normpath(self.path.resolve() / film["beside"]))]
        places += [Path(film["path"])] if film["path"] else []
        path = next((place for place in places if place.is_file()), places[-1])
        require_content(path, f"the film of {segment}")
        if hash_file(path) != film["sha256"]:
            raise DataError(
                f"expected the film of {segment} at {path} as it was prepared, found another; prepare it again"
            )
        return {"path": path, "start_s": float(film["start_s"]), "fit": str(film["fit"])}

    def shown(self) -> dict[str, str]:
        """A digest of what each segment shows, and of its split, wherever the film lies."""
        files, films, found = read_note(self.path / RECORD), self.attrs.get("films", {}), {}
        split = {name: part for part, names in self.splits.items() for name in names}
        for name in self.order:
            film = {key: value for key, value in films.get(name, {}).items() if key not in ("path", "beside")}
            frames = {file: entry for file, entry in files.items() if file.startswith(f"frames/{name}/")}
            n_scans = int(Store._array(self, f"fmri/{name}").shape[0])  # of what no method may read too
            taken = [self.tr_s, self.fps, self.size, n_scans]
            content = [split[name], taken, film or frames or self.attrs["sources"]]
            found[name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return found

    def scene(self, segment: str) -> np.ndarray:
        """Scene number of each frame, unique over the whole store, int32 (n, F)."""
        return np.asarray(self._array(f"scene/{segment}")[:])

    @property
    def has_captions(self) -> bool:
        """Whether its films were captioned."""
        return all("scan" in self._group[f"captions/{segment}"].attrs for segment in self.order)

    def captions(self, segment: str) -> list[str]:
        """One caption a scan; "A. Then B" across a shot change."""
        return list(self._captions(segment, "scan"))

    def frame_captions(self, segment: str) -> list[list[str]]:
        """One caption a frame, n lists of F."""
        return [list(row) for row in self._captions(segment, "frame")]

    def _captions(self, segment: str, kind: str) -> Any:
        attrs = self._group[f"captions/{segment}"].attrs
        if kind not in attrs:
            raise DataError(
                f"expected captions in {self.path}, found that they were left out; prepare it again with captions of your "
                "own (data.captions, --captions FILE) or with a foundation whose captioner knows such films"
            )
        return attrs[kind]

    def n_scans(self, segment: str) -> int:
        """Number of scans of a segment."""
        return int(self._array(f"fmri/{segment}").shape[0])

    def segments(self, split: str) -> list[str]:
        """Segments of ``train``, ``validation`` or ``test``, in the store's order."""
        if split not in self.splits:
            raise DataError(f"expected split {', '.join(SPLITS)}, found '{split}'")
        return list(self.splits[split])

    @property
    def splits(self) -> dict[str, list[str]]:
        """Segment names of each split."""
        return {split: list(names) for split, names in self.attrs["splits"].items()}

    @property
    def layout(self) -> VoxelLayout:
        """Which voxels these are, for the encoder that reads them."""
        if not self.has_areas:
            return VoxelLayout(self.n_voxels, self.voxel_id)
        return VoxelLayout(self.n_voxels, self.voxel_id, self.vertex, self.area, self.parcels)

    @property
    def parcels(self) -> tuple[str, ...]:
        """Names of all parcels of the atlas, by area from 1 on, if voxels are parcels."""
        return tuple(self.attrs.get("parcels", ()))

    @property
    def has_areas(self) -> bool:
        """Whether it is known which area each voxel is of."""
        return self.has_positions or bool(self.parcels)

    def n_repeats(self, segment: str) -> int:
        """Number of recordings of a segment R."""
        return int(self._array(f"repeats/{segment}").shape[0])

    def _step(self, name: str) -> dict[str, Any]:
        steps = {item["step"]: item["parameters"] for item in self.attrs["provenance"]}
        return dict(steps.get(name, {}))

    @property
    def keeps_repeats_apart(self) -> bool:
        """Whether training windows are of single runs (``repeats: separate``)."""
        return bool(self._step("repeats").get("windows") == "separate")

    @property
    def remarks(self) -> list[str]:
        """What was left out of the data set or assumed, a line each, with names."""
        found = self._step("remarks").get("list", [])
        return [f"{item['text']} ({len(item['names'])}): {listed(item['names'])}" for item in found]

    @property
    def reproducibility(self) -> np.ndarray:
        """Mean between-run correlation over training segments, float32 (59412,)."""
        return np.asarray(self._array("reproducibility")[:])

    @property
    def p_value(self) -> np.ndarray:
        """P of the reproducibility test, float32 (59412,), NaN where not tested."""
        return np.asarray(self._array("p_value")[:])

    def summary(self) -> dict[str, Any]:
        """What is in the store, as JSON values (for ``inspect``)."""
        names = ("", *(f"_{name}" for name in self.parcels)) if self.parcels else area_names()
        area, count = np.unique(self.area, return_counts=True)
        voxels_per_area: dict[str, int] = {}
        for label, number in zip(area, count, strict=True):
            bare = names[label].split("_", 1)[1] if label else "place not known"
            voxels_per_area[bare] = voxels_per_area.get(bare, 0) + int(number)
        splits = self.splits
        selected = self.reproducibility[self.vertex] if self.has_positions else np.empty(0)
        tested = selected[np.isfinite(selected)]
        return {
            "path": str(self.path),
            "subject": self.subject,
            "voxels": self.n_voxels,
            "voxels_left": int(((self.area > 0) & (self.area <= 180)).sum()) if self.has_positions else 0,
            "voxels_right": int((self.area > 180).sum()) if self.has_positions else 0,
            "voxels_per_area": dict(sorted(voxels_per_area.items(), key=lambda item: -item[1])),
            "voxel_id": self.voxel_id,
            "reproducibility_median": float(np.median(tested)) if len(tested) else None,
            "tr_s": self.tr_s,
            "lag_s": self.lag_s,
            "fps": self.fps,
            "size": self.size,
            "frames_per_scan": self.num_frames,
            "segments": splits,
            "repeats": {name: self.n_repeats(name) for name in self.order},
            "windows": {split: sum(map(self.n_scans, names)) for split, names in splits.items()},
            "scenes": {
                split: len({scene for name in names for scene in self.scene(name).ravel().tolist()})
                for split, names in splits.items()
            },
            "captions": len({caption for name in self.order if self.has_captions for caption in self.captions(name)}),
            "remarks": self.remarks,
            "provenance": self.attrs["provenance"],
            "sources": self.attrs["sources"],
        }

    def export_npz(self, out: Path | str, frames: bool = False) -> None:
        """Write the store as plain arrays.

        Parameters
        ----------
        out : Path
            An ``.npz`` file; appears only when complete. Keys: ``fmri_train``,
            ``fmri_test`` float32 (segments, scans, V), ``vertex`` int32 (V,), and with
            ``frames`` also ``frames_train``, ``frames_test`` uint8 (segments, scans, F,
            H, W, 3). Train includes validation.

        Raises
        ------
        DataError
            If segments have different lengths, or the disk is full.
        """
        out = Path(out)
        test = set(self.splits["test"])
        members = {
            "train": [name for name in self.order if name not in test],
            "test": [name for name in self.order if name in test],
        }
        kinds = {"fmri": self.fmri, "frames": self.frames} if frames else {"fmri": self.fmri}
        needed = sum(self._array(f"{kind}/{name}").nbytes for kind in kinds for name in self.order)
        for names in members.values():
            lengths = {name: self.n_scans(name) for name in names}
            if len(set(lengths.values())) > 1:
                raise DataError(
                    f"expected segments of one length for an export from {self.path}, found {lengths}; "
                    "read the segments one by one with Store.fmri instead"
                )
        with disk_errors(out, "the export", needed):
            out.parent.mkdir(parents=True, exist_ok=True)
            with beside(out) as place, zipfile.ZipFile(place, "w") as archive:
                _write_member(archive, "vertex", self.vertex.shape, self.vertex.dtype, [self.vertex])
                for kind, read in kinds.items():
                    for split, names in members.items():
                        part = self._array(f"{kind}/{(names or self.order)[0]}")
                        shape = (len(names), len(names) and part.shape[0], *part.shape[1:])
                        blocks = (read(name) for name in names)
                        _write_member(archive, f"{kind}_{split}", shape, np.dtype(part.dtype), blocks)


def _write_member(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterable[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for block in blocks:
            member.write(np.ascontiguousarray(block, dtype=dtype).tobytes())
