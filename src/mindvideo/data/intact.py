"""Whether a prepared folder is whole: its attributes, its captions, and every array of its shape with all its chunks.

Shapes: V voxels, n scans of a segment, F frames a scan, H W pixels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import zarr

from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.atlas import N_CORTEX
from mindvideo.data.disk import write_text
from mindvideo.errors import DataError, MindVideoError

RECORD = "files.json"
"""Size and digest of every other file of a complete folder."""


def record_content(path: Path) -> None:
    """Note what a complete folder holds, for `refuse_other_content`."""
    (path / RECORD).unlink(missing_ok=True)
    write_text(path / RECORD, json.dumps(record_files(path, [path])))


def refuse_other_content(path: Path) -> None:
    """Raise DataError where a folder does not hold what `record_content` noted, which a flipped bit is enough for."""
    if (path / RECORD).is_file() and not is_intact(path, read_note(path / RECORD)):
        raise DataError(f"expected {path} as prepare wrote it, found other files or content; run prepare again")


@contextmanager
def as_damage(path: Path, what: str) -> Iterator[None]:
    """Damaged metadata make zarr raise nearly any exception; each becomes one sentence about the folder."""
    try:
        yield
    except MindVideoError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"expected an intact {what} at {path}, found damage ({reason}); run prepare again") from error


def refuse_damaged_store(path: Path, group: zarr.Group) -> None:
    """Compare attributes, arrays and captions of a store with one another; values are not read.

    zarr reads a lost chunk as zeros, and rows beyond a damaged shape not at all; both are refused.

    Raises
    ------
    DataError
        Naming what is missing, or of another type, shape or length.
    """
    with as_damage(path, "store"):
        attrs = dict(group.attrs)
        _check_attributes(path, attrs)
        n_voxels, size = _array(path, group, "vertex").shape[0], attrs["size"]
        n_frames = round(attrs["fps"] * attrs["tr_s"])
        _check_array(path, group, "vertex", "int32", (n_voxels,))
        _check_array(path, group, "area", "int16", (n_voxels,))
        for name in ("reproducibility", "p_value"):
            _check_array(path, group, name, "float32", (N_CORTEX,))
        for name in attrs["order"]:
            n_scans = _array(path, group, f"fmri/{name}").shape[0]
            _check_array(path, group, f"fmri/{name}", "float32", (n_scans, n_voxels))
            _check_array(path, group, f"repeats/{name}", "float32", (None, n_scans, n_voxels))
            _check_array(path, group, f"frames/{name}", "uint8", (n_scans, n_frames, size, size, 3))
            _check_array(path, group, f"scene/{name}", "int32", (n_scans, n_frames))
            _check_captions(path, name, dict(group[f"captions/{name}"].attrs), n_scans, n_frames)


def refuse_damaged_segments(path: Path, group: zarr.Group) -> None:
    """The same for the rows of HCP: as many as were written, and a position for each voxel."""
    with as_damage(path, "table of HCP segments"):
        attrs = dict(group.attrs)
        array = _array(path, group, "fmri")
        _check_array(path, group, "fmri", "float32", (attrs["rows"], array.shape[1]))
        if attrs["kind"] not in ("cifti", "npz"):
            _refuse(path, "kind cifti or npz", repr(attrs["kind"]))
        if attrs["kind"] == "cifti":
            _check_array(path, group, "vertex", "int32", (array.shape[1],))


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise DataError(f"expected {expected} in {path}, found {' '.join(found.split())[:200]}; run prepare again")


def _check_attributes(path: Path, attrs: dict[str, Any]) -> None:
    """Type and range of every attribute that is read later."""
    for key in ("tr_s", "fps", "size"):
        if isinstance(attrs.get(key), bool) or not isinstance(attrs.get(key), int | float) or not 0 < attrs[key] < 1e6:
            _refuse(path, f"a positive number {key}", repr(attrs.get(key)))
    if not isinstance(attrs.get("lag_s"), int | float) or not math.isfinite(attrs["lag_s"]):
        _refuse(path, "a number lag_s", repr(attrs.get("lag_s")))
    if not isinstance(attrs.get("subject"), str):
        _refuse(path, "the name of a subject", repr(attrs.get("subject")))
    splits, order = attrs.get("splits"), attrs.get("order")
    if not isinstance(splits, dict) or set(splits) != {"train", "validation", "test"}:
        _refuse(path, "the splits train, validation and test", repr(splits))
    members = [name for names in splits.values() for name in names]
    if not _is_texts(order) or not order or sorted(members) != sorted(order):
        _refuse(path, "every segment in one split", f"{splits!r} for the segments {order!r}")
    steps, sources = attrs.get("provenance"), attrs.get("sources")
    if not isinstance(steps, list) or not all(
        isinstance(step, dict) and isinstance(step.get("step"), str) and isinstance(step.get("parameters"), dict)
        for step in steps
    ):
        _refuse(path, "steps with their parameters as provenance", repr(steps))
    if not isinstance(sources, dict) or not _is_texts(list(sources.values())):
        _refuse(path, "hashes of the source files", repr(sources))


def _is_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _array(path: Path, group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array) or not array.ndim:
        _refuse(path, f"an array {name}", "something else")
    return array


def _check_array(path: Path, group: zarr.Group, name: str, dtype: str, shape: tuple[int | None, ...]) -> None:
    """Type, shape (None: any length) and chunks of an array."""
    array = _array(path, group, name)
    is_alike = len(array.shape) == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    if not is_alike or array.dtype != np.dtype(dtype) or 0 in array.shape:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        _refuse(path, f"{name} as {dtype} ({wanted})", f"{array.dtype} {array.shape}")
    if array.nchunks_initialized != array.nchunks:
        raise DataError(f"expected all of {name} in {path}, found parts of it lost; run prepare again")


def _check_captions(path: Path, segment: str, attrs: dict[str, Any], n_scans: int, n_frames: int) -> None:
    if attrs.get("left_out") is True:
        return
    scan, frame = attrs.get("scan"), attrs.get("frame")
    if not isinstance(scan, list) or not _is_texts(scan) or len(scan) != n_scans:
        _refuse(path, f"{n_scans} captions of segment {segment}", repr(scan))
    rows = frame if isinstance(frame, list) else []
    if len(rows) != n_scans or not all(_is_texts(row) and len(row) == n_frames for row in rows):
        _refuse(path, f"{n_scans} lists of {n_frames} frame captions of segment {segment}", repr(frame))
