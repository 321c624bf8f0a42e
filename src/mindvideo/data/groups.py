"""Prepared folders as zarr groups: begun or gone on with, complete or not, opened with a word on what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zarr

from mindvideo.data.disk import flush_folder
from mindvideo.data.intact import as_damage, record_content
from mindvideo.errors import DataError, one_line

VERSION = 1
"""Of both kinds."""


@dataclass(frozen=True)
class Kind:
    """What a prepared folder is in words, its mark, the command that writes it, and in words how far it got."""

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
    """The group to write into: one begun with the same ``header``, or a new one, which also has the attributes ``start``."""
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
