"""Visual cortex of many people, for pre-training, in one zarr array (docs/method.md, Recordings).

Shapes: V voxels, n rows (windows of all runs), T volumes of a run.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr

from mindvideo.atlas import area_labels, hierarchy_order, parse_areas
from mindvideo.data.copies import PROBES, find_contained, find_copies, outline
from mindvideo.data.groups import (
    Kind,
    as_damage,
    begin_group,
    open_complete,
    open_group,
    refuse_damaged_segments,
    refuse_other_content,
    seal_group,
)
from mindvideo.data.series import SeriesFile
from mindvideo.data.store import listed
from mindvideo.data.voxels import MOST_SILENT, find_silent, refuse_silence
from mindvideo.errors import DataError, MindVideoError, SettingError, one_line
from mindvideo.files import hash_file, link_folder, only_one, require_content, walk_files
from mindvideo.stages import Progress, Steps
from mindvideo.voxel_layout import VoxelLayout

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
    """Standardised windows (ddof 1) of a CIFTI run, float32 (n, V); NaN without signal."""
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


SEGMENTS = Kind(
    "prepared table of pre-training fMRI", "mindvideo-hcp", "prepare hcp",
    lambda attrs: f"{len(attrs['sources'])} of {len(attrs['sources_planned'])} runs",
)  # fmt: skip
RUN_PATTERN = "*/MNINonLinear/Results/*/*_Atlas_MSMAll*.dtseries.nii"
NPZ_NAME = "HCP_visual_voxel.npz"

_CHUNK_ROWS = 16
_IN_MEMORY_BYTES = 512 * 1024**2


def find_sources(raw: Path) -> tuple[str, list[Path]]:
    """Recordings below an HCP folder and their kind: ``cifti``, ``npz`` or ``prepared``.

    Of several versions in a run's folder it is the one with the longest name, which is
    the most processed (``_hp2000_clean`` before none).
    """
    if (raw / "zarr.json").is_file():
        return "prepared", [BrainSegments.open(raw).path]
    if not raw.is_dir():
        raise DataError(
            f"expected an HCP folder at {raw}, found none; give the folder that holds one folder per person"
        )
    runs = [max(versions, key=lambda path: len(path.name)) for versions in _versions(raw)]
    archives = [path for path in walk_files(raw) if path.name == NPZ_NAME]
    for path in (*runs, *archives):
        require_content(path, "a recording")
    if runs and archives:
        raise DataError(
            f"expected one kind of recording below {raw}, found {len(runs)} CIFTI runs and {len(archives)} {NPZ_NAME} "
            "files, whose voxel order is unknown; keep them in two folders"
        )
    if not runs and not archives:
        raise DataError(
            f"expected recordings like {RUN_PATTERN} or {NPZ_NAME} below {raw}, found none; check the folder"
        )
    return ("cifti", runs) if runs else ("npz", archives)


def _versions(raw: Path) -> list[list[Path]]:
    """The files of each run's folder, hidden ones passed over."""
    visible = [
        path
        for path in sorted(raw.glob(RUN_PATTERN))
        if not any(part.startswith(".") for part in path.relative_to(raw).parts)
    ]
    return [list(versions) for _, versions in itertools.groupby(visible, key=lambda path: path.parent)]


def area_vertices(areas: Sequence[str]) -> np.ndarray:
    """Cortical positions of the areas in hierarchy order, int32 (V,)."""
    vertex = parse_areas(",".join(areas))
    return vertex[hierarchy_order(vertex)].astype(np.int32)


def prepare_hcp(
    raw: Path,
    out: Path,
    window_s: float = 8.0,
    areas: Sequence[str] = ("V1", "V2", "V3", "V4"),
    progress: Progress | None = None,
) -> list[str]:
    """Average, standardise, order and stack the visual cortex of every run below an HCP folder.

    Runs are read one at a time. An interrupted call goes on after the last whole run; a
    complete folder of the same files (names and sizes) and settings stays. `survey`
    says what is left out.

    Parameters
    ----------
    raw : Path
        One folder per person (``100307/MNINonLinear/Results/…``),
        ``HCP_visual_voxel.npz`` files, or what this function wrote.
    out : Path
        The zarr folder to write: ``fmri`` float32 (n, V), and for CIFTI ``vertex`` int32 (V,).
    window_s : float
        Seconds averaged into one row.
    areas : sequence of str
        MMP1 areas without hemisphere.
    progress : callable, optional
        Called after every run with (runs done, runs in all, {"rows": n}).

    Returns
    -------
    list of str
        What was left out, a line each.
    """
    kind, paths = find_sources(raw)
    if kind == "prepared":
        return _link_prepared(raw, out, window_s, areas)
    vertex = area_vertices(areas) if kind == "cifti" else None
    planned = {str(path.relative_to(raw)): path for path in paths}
    sizes = {name: path.stat().st_size for name, path in planned.items()}
    header = {"window_s": float(window_s), "areas": list(areas), "kind": kind, "sources_planned": sizes}
    with only_one(out.with_name(f"{out.name}.lock"), f"writing {out}"):
        # A refusal leaves nothing behind.
        found = None if out.exists() else survey(planned, vertex, areas, window_s)
        group = begin_group(out, SEGMENTS, header, {"rows": 0, "sources": {}})
        if group.attrs["complete"]:
            return _remarks(group)
        if "kept" not in group.attrs:
            found = found or survey(planned, vertex, areas, window_s)
            if vertex is not None:
                group.create_array("vertex", data=vertex[found.kept], overwrite=True)
            n_voxels = int(found.kept.sum())
            group.create_array(
                "fmri", shape=(0, n_voxels), chunks=(_CHUNK_ROWS, n_voxels), dtype=np.float32, fill_value=np.nan,
                compressors=None, overwrite=True,
            )  # fmt: skip
            silent = np.flatnonzero(~found.kept) if vertex is None else vertex[~found.kept]
            others = {str(path.relative_to(raw)) for path in itertools.chain(*_versions(raw))} - planned.keys()
            found.left_out.update(dict.fromkeys(sorted(others), "another version of a run"))
            group.attrs.update(
                {"silent": silent.tolist(), "left_out": found.left_out, "kept": np.flatnonzero(found.kept).tolist()}
            )
        steps = Steps(progress, len(planned))
        for name, path in planned.items():
            if name not in group.attrs["sources"] and name not in group.attrs["left_out"]:
                _append_run(group, name, path, vertex, areas, window_s)
            steps.add(rows=group.attrs["rows"])
        seal_group(out, group)
        return _remarks(group)


def _link_prepared(raw: Path, out: Path, window_s: float, areas: Sequence[str]) -> list[str]:
    attrs = open_group(raw, SEGMENTS).attrs
    if attrs["window_s"] != window_s or list(attrs["areas"]) != list(areas):
        raise SettingError(
            f"expected windows of {window_s:g} s and the areas {','.join(areas)} in {raw}, found "
            f"{attrs['window_s']:g} s and {','.join(attrs['areas'])}; prepare it again, or give "
            f"--set pretrain.window_s={attrs['window_s']:g}"
        )
    refuse_other_content(raw)
    link_folder(raw, out)
    return _remarks(open_group(out, SEGMENTS))


def _remarks(group: zarr.Group) -> list[str]:
    """What was left out, a line each."""
    left_out, silent = group.attrs["left_out"], group.attrs["silent"]
    lines = [f"recording left out, {reason}: {name}" for name, reason in left_out.items()]
    if silent:
        named = listed([str(place) for place in silent])
        lines.append(f"vertices left out, which have no signal in some run ({len(silent)}): {named}")
    return lines


class Survey(NamedTuple):
    """Vertices with a signal in every run, bool (V,), and the runs left out, with reasons."""

    kept: np.ndarray
    left_out: dict[str, str]


def survey(planned: dict[str, Path], vertex: np.ndarray | None, areas: Sequence[str], window_s: float) -> Survey:
    """Look at the chosen vertices of every recording before any is written.

    A recording is left out that lacks a signal at more than `MOST_SILENT` of the
    vertices, or whose volumes are in others too: a concatenation beside its runs, a run
    beside a longer recording that holds it, the same run under two names, also as
    another person's.
    """
    left_out: dict[str, str] = {}
    seen: dict[Path, str] = {}
    silent: dict[str, np.ndarray] = {}
    outlines: dict[str, np.ndarray] = {}
    depth = 0 if vertex is None else 3  # of a recording below the folder of its person
    for _, group in itertools.groupby(planned.items(), key=lambda item: item[1].parents[depth]):
        series: dict[str, np.ndarray] = {}
        for name, path in group:
            first = seen.setdefault(path.resolve(), name)
            if first != name:
                left_out[name] = f"the same file as {first}"
                continue
            is_silent = np.isnan(_read_windows(path, vertex, areas, window_s)[0])
            if is_silent.mean() > MOST_SILENT:
                left_out[name] = f"{int(is_silent.sum())} of {len(is_silent)} vertices have no signal"
                continue
            silent[name] = is_silent
            if vertex is not None:
                series[name] = SeriesFile(path).take(vertex[:: max(1, len(vertex) // PROBES)])
        left_out |= find_contained(series)
        outlines |= {name: outline(part) for name, part in series.items() if name not in left_out}
    left_out |= {name: f"a copy of {first}" for name, first in find_copies(outlines).items()}
    read = {name: part for name, part in silent.items() if name not in left_out}
    if not read:
        raise DataError(
            f"expected a recording with a signal, found none: {listed([f'{n} ({r})' for n, r in left_out.items()])}"
        )
    if len({len(part) for part in read.values()}) > 1:
        raise DataError(
            f"expected equally many voxels in all recordings, found {sorted({len(part) for part in read.values()})}"
        )
    is_silent = refuse_silence(read, "vertex", "take such runs out of the folder")
    return Survey(~is_silent, left_out)


def _read_windows(path: Path, vertex: np.ndarray | None, areas: Sequence[str], window_s: float) -> np.ndarray:
    if vertex is None:
        return read_npz_windows(path, areas, window_s)
    return read_cifti_windows(SeriesFile(path), vertex, window_s)


def _append_run(
    group: zarr.Group, name: str, path: Path, vertex: np.ndarray | None, areas: Sequence[str], window_s: float
) -> None:
    """Read one run and append its windows; after a kill the attributes' row count holds."""
    sha256 = hash_file(path)
    copied = next((other for other, known in group.attrs["sources"].items() if known == sha256), None)
    if copied is not None:
        group.attrs["left_out"] = {**group.attrs["left_out"], name: f"a copy of {copied}"}
        return
    rows, kept = int(group.attrs["rows"]), np.asarray(group.attrs["kept"])
    windows = _read_windows(path, vertex, areas, window_s)[:, kept]
    group["fmri"].resize((rows + len(windows), len(kept)))
    group["fmri"][rows:] = windows
    group.attrs.update({"rows": rows + len(windows), "sources": {**group.attrs["sources"], name: sha256}})


class BrainSegments:
    """The prepared rows of all people, read by index.

    Attributes
    ----------
    vertex : ndarray, int32 (V,), or None
        Cortical positions in voxel order; None for published npz files, which do not say.
    """

    def __init__(self, path: Path, array: zarr.Array, vertex: np.ndarray | None) -> None:
        self.path = path
        self._array = array
        self._in_memory = np.asarray(array[:]) if array.nbytes <= _IN_MEMORY_BYTES else None
        self.vertex = vertex

    @classmethod
    def open(cls, path: Path | str) -> BrainSegments:
        """Open a complete folder that `prepare_hcp` wrote.

        Raises
        ------
        DataError
            If it is missing, something else, of another version, incomplete or damaged.
        """
        path = Path(path)
        group = open_complete(path, SEGMENTS)
        with as_damage(path, "table of HCP segments"):
            refuse_damaged_segments(path, group)
            return cls(path, group["fmri"], np.asarray(group["vertex"][:]) if group.attrs["kind"] == "cifti" else None)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def n_voxels(self) -> int:
        """Number of voxels V."""
        return int(self._array.shape[1])

    @property
    def layout(self) -> VoxelLayout:
        """Which voxels these are."""
        area = None if self.vertex is None else area_labels()[self.vertex]
        return VoxelLayout(self.n_voxels, None, self.vertex, area)

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows in the given order, float32 (B, V)."""
        index = np.asarray(index)
        if self._in_memory is not None:
            return self._in_memory[index]
        wanted, inverse = np.unique(index, return_inverse=True)
        return np.asarray(self._array.oindex[wanted])[inverse]
