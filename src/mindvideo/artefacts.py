"""The size and digest of what a stage wrote, compared before a later stage reads it.

A lost chunk of an array reads as zeros and a flipped bit as another weight: neither would be noticed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mindvideo.errors import DataError
from mindvideo.files import hash_file, walk_files, write_json

NOTES = ("done.json", "started.json")
_NOT_READ_LATER = ("state", "state.old", "state.tmp")
"""A training loop's checkpoint, which only the stage itself goes on from."""

Record = Mapping[str, Any]
"""Names of files, relative to a folder, and size and SHA-256 of each."""


def record_files(base: Path, places: Iterable[Path]) -> dict[str, list[Any]]:
    """Size and SHA-256 of files, and of all below folders, by path relative to ``base``."""
    paths = [
        path
        for place in places
        for path in ([place] if place.is_file() else walk_files(place))
        if path.is_file() and path.name not in NOTES and not set(path.relative_to(place).parts) & set(_NOT_READ_LATER)
    ]
    return {
        path.relative_to(base).as_posix(): [path.stat().st_size, digest]
        for path, digest in zip(paths, _hash_files(paths), strict=True)
    }


def find_damage(base: Path, record: Record, whole: bool = True) -> tuple[Path, str] | None:
    """The first file that is not as it was recorded, and what it is instead; None where all are.

    Parameters
    ----------
    record : mapping
        As `record_files` gives it.
    whole : bool
        Also read and digest the files; without it only their sizes are compared.
    """
    for name, (size, _) in record.items():
        path = base / name
        if not path.is_file():
            return path, "no such file"
        if path.stat().st_size != size:
            return path, f"{path.stat().st_size:,} bytes in place of {size:,}"
    if whole:
        for (name, (_, digest)), found in zip(
            record.items(), _hash_files([base / name for name in record]), strict=True
        ):
            if found != digest:
                return base / name, "other content"
    return None


def _hash_files(paths: list[Path]) -> list[str]:
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(hash_file, paths))


def begin_folder(folder: Path, digest: str) -> bool:
    """Empty a folder unless an attempt with the same key left it; whether it did."""
    started = folder / "started.json"
    if was_begun := read_note(started).get("hash") == digest:
        (folder / "done.json").unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(started, {"hash": digest})
    return was_begun


def read_note(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where it is missing, damaged or something else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_intact(base: Path, record: Any) -> bool:
    """Whether there is a record, and every file is as it says."""
    try:
        return bool(record) and find_damage(base, record) is None
    except (TypeError, ValueError, AttributeError):  # the record itself is damaged
        return False


def require_intact(run_dir: Path, stage: str, below: str = "") -> None:
    """Compare what a stage has written with its record; nothing is compared where there is no record.

    Parameters
    ----------
    below : str
        Only files whose path in the run folder begins so, e.g. ``model/``.

    Raises
    ------
    DataError
        Naming the file, what is wrong with it, and the stage to run again.
    """
    record = read_note(run_dir / stage / "done.json").get("files", {})
    try:
        damage = find_damage(run_dir, {name: entry for name, entry in record.items() if name.startswith(below)})
    except (TypeError, ValueError, AttributeError):
        damage = run_dir / stage / "done.json", "a damaged record"
    if damage is not None:
        raise DataError(
            f"expected {damage[0]} as the stage '{stage}' wrote it, found {damage[1]}; remove the folder "
            f"{run_dir / stage} and run the same command again: '{stage}' is then made anew"
        )
