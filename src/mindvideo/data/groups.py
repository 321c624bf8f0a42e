"""Prepared folders as zarr groups: begun or gone on with, complete or not, whole or damaged.

Shapes: V voxels, n scans of a segment, F frames a scan, H W pixels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import zarr
from pydantic import BaseModel, Field, FiniteFloat

from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.atlas import N_CORTEX
from mindvideo.errors import DataError, MindVideoError, one_line
from mindvideo.files import flush_folder, write_text

VERSION = 1
"""Of both kinds."""
RECORD = "files.json"
"""Size and digest of every other file of a complete folder."""


@dataclass(frozen=True)
class Kind:
    """What a prepared folder is, its mark, what writes it, and in words how far it got."""

    what: str
    mark: str
    command: str
    progress: Callable[[Mapping[str, Any]], str]


def open_group(path: Path, kind: Kind) -> zarr.Group:
    """The zarr group of a prepared folder, complete or not; DataError if there is none."""
    if not path.is_dir():
        raise DataError(f"expected a {kind.what} at {path}, found no folder; run {kind.command} first")
    try:
        group = zarr.open_group(path, mode="r")
    except Exception as error:  # damaged metadata raise nearly anything
        raise DataError(
            f"expected a {kind.what} at {path}, found another kind of folder ({one_line(error)})"
        ) from error
    if group.attrs.get("format") != kind.mark:
        raise DataError(
            f"expected a {kind.what} at {path}, found another zarr group; give the folder that {kind.command} wrote"
        )
    return group


def open_complete(path: Path, kind: Kind) -> zarr.Group:
    """The same, but DataError for one of another version, and for an interrupted one."""
    group = open_group(path, kind)
    if (version := group.attrs.get("version")) != VERSION:
        raise DataError(
            f"expected a {kind.what} of version {VERSION} at {path}, found version {version}; run {kind.command} again with "
            "this version of mindvideo"
        )
    if not group.attrs.get("complete"):
        with as_damage(path, kind.what):
            progress = kind.progress(group.attrs)
        raise DataError(
            f"expected a complete {kind.what} at {path}, found an interrupted one with {progress}; run {kind.command} again, "
            "it goes on where it stopped"
        )
    return group


def is_complete(path: Path) -> bool:
    """Whether a complete folder of either kind lies at ``path``."""
    with as_damage(path, "prepared folder"):
        return (path / "zarr.json").is_file() and bool(zarr.open_group(path, mode="r").attrs.get("complete"))


def is_begun(path: Path) -> bool:
    """Whether there is anything at ``path``."""
    return path.is_dir() and any(path.iterdir())


def begin_group(path: Path, kind: Kind, header: Mapping[str, Any], start: Mapping[str, Any]) -> zarr.Group:
    """The group to write into: begun with the same ``header``, or new, with ``start`` too."""
    if not is_begun(path):
        attributes = {"format": kind.mark, "version": VERSION, "complete": False, **header, **start}
        return zarr.create_group(path, attributes=attributes)
    found = open_group(path, kind).attrs
    if found.get("version") != VERSION or any(found.get(name) != value for name, value in header.items()):
        raise DataError(
            f"expected a new folder at {path}, found a {kind.what} made with other settings or files; remove it first"
        )
    return zarr.open_group(path, mode="r+")


def seal_group(path: Path, group: zarr.Group) -> None:
    """Mark a group as complete once its files are on the disk, and record what it holds."""
    flush_folder(path)
    group.attrs["complete"] = True
    record_content(path)
    flush_folder(path, recursive=False)


def record_content(path: Path) -> None:
    """Record what a complete folder holds, for `refuse_other_content`."""
    (path / RECORD).unlink(missing_ok=True)
    write_text(path / RECORD, json.dumps(record_files(path, [path])))


def refuse_other_content(path: Path) -> None:
    """Raise DataError if a folder no longer holds what `record_content` recorded."""
    if (path / RECORD).is_file() and not is_intact(path, read_note(path / RECORD)):
        raise DataError(f"expected {path} as prepare wrote it, found other files or content; run prepare again")


@contextmanager
def as_damage(path: Path, what: str) -> Iterator[None]:
    """Turn whatever zarr raises for damaged metadata into one sentence about the folder."""
    try:
        yield
    except MindVideoError:
        raise
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise DataError(f"expected an intact {what} at {path}, found damage ({reason}); run prepare again") from error


def refuse_damaged_store(path: Path, group: zarr.Group) -> None:
    """Compare attributes, arrays and captions of a store, without reading values.

    zarr reads a lost chunk as zeros, and rows beyond a damaged shape not at all; both are refused.

    Raises
    ------
    DataError
        Naming what is missing, or of another type, shape or length.
    """
    with as_damage(path, "store"):
        header = _Header.model_validate(dict(group.attrs))
        if sorted([*header.splits.train, *header.splits.validation, *header.splits.test]) != sorted(header.order):
            _refuse(path, "every segment in one split", f"{header.splits} for the segments {header.order}")
        n_voxels, size = _array(path, group, "vertex").shape[0], int(header.size)
        n_frames = round(header.fps * header.tr_s)
        _check_array(path, group, "vertex", "int32", (n_voxels,))
        _check_array(path, group, "area", "int16", (n_voxels,))
        for name in ("reproducibility", "p_value"):
            _check_array(path, group, name, "float32", (N_CORTEX,))
        for name in header.order:
            n_scans = _array(path, group, f"fmri/{name}").shape[0]
            _check_array(path, group, f"fmri/{name}", "float32", (n_scans, n_voxels))
            _check_array(path, group, f"repeats/{name}", "float32", (None, n_scans, n_voxels))
            _check_array(path, group, f"frames/{name}", "uint8", (n_scans, n_frames, size, size, 3))
            _check_array(path, group, f"scene/{name}", "int32", (n_scans, n_frames))
            _check_captions(path, name, dict(group[f"captions/{name}"].attrs), n_scans, n_frames)


def refuse_damaged_segments(path: Path, group: zarr.Group) -> None:
    """The same for a table of HCP segments."""
    with as_damage(path, "table of HCP segments"):
        attrs = dict(group.attrs)
        array = _array(path, group, "fmri")
        _check_array(path, group, "fmri", "float32", (attrs["rows"], array.shape[1]))
        if attrs["kind"] not in ("cifti", "npz"):
            _refuse(path, "kind cifti or npz", repr(attrs["kind"]))
        if attrs["kind"] == "cifti":
            _check_array(path, group, "vertex", "int32", (array.shape[1],))


def _refuse(path: Path, expected: str, found: str) -> NoReturn:
    raise DataError(f"expected {expected} in {path}, found {one_line(found)}; run prepare again")


class _Step(BaseModel):
    step: str
    parameters: dict[str, Any]


class _Splits(BaseModel, extra="forbid"):
    train: list[str]
    validation: list[str]
    test: list[str]


_Size = Annotated[float, Field(gt=0, lt=1e6)]


class _Header(BaseModel, strict=True):
    """The attributes of a store that are read later."""

    subject: str
    tr_s: _Size
    fps: _Size
    size: _Size
    lag_s: FiniteFloat
    order: Annotated[list[str], Field(min_length=1)]
    splits: _Splits
    provenance: list[_Step]
    sources: dict[str, str]


class _Captions(BaseModel, strict=True):
    scan: list[str]
    frame: list[list[str]]


def _array(path: Path, group: zarr.Group, name: str) -> zarr.Array:
    array = group[name]
    if not isinstance(array, zarr.Array) or not array.ndim:
        _refuse(path, f"an array {name}", "something else")
    return array


def _check_array(path: Path, group: zarr.Group, name: str, dtype: str, shape: tuple[int | None, ...]) -> None:
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
    captions = _Captions.model_validate(attrs)
    if len(captions.scan) != n_scans or [len(row) for row in captions.frame] != n_scans * [n_frames]:
        _refuse(path, f"captions of {n_scans} scans of {n_frames} frames in segment {segment}", repr(captions))
