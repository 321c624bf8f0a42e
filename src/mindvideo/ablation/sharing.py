"""Stages that do not change are not run again: a variant's folder gets them as hard links.

A hard link costs no room, and removing one variant leaves the others whole. Every stage replaces its files and never
writes into them, except for its log, which is copied.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mindvideo.artefacts import read_note
from mindvideo.stages import STAGES
from mindvideo.train.features import FILES

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK)


def find_results(run_dirs: Iterable[Path]) -> dict[str, Path]:
    """Folder of every finished stage by the stage's hash; of several, the one in the first run folder."""
    found: dict[str, Path] = {}
    for run_dir in run_dirs:
        for stage in STAGES:
            key = read_note(run_dir / stage / "done.json").get("hash")
            if key is not None:
                found.setdefault(key, run_dir / stage)
    return found


def _link(source: str, target: str) -> str:
    if source.endswith(".jsonl"):
        return str(shutil.copy2(source, target))
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:  # another disk, or a file system without hard links
            raise
        return str(shutil.copy2(source, target))
    return target


def link_folder(source: Path, target: Path) -> None:
    """Make ``target`` a folder tree of hard links to the files of ``source``; copies where links are impossible.

    It is made beside its place and renamed: a kill leaves all of it or nothing.
    """
    beside = target.with_name(target.name + ".tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, beside, copy_function=_link)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def link_features(donors: Iterable[Path], run_dir: Path) -> None:
    """Link finished tables of frozen features that ``run_dir`` does not have; their keys decide later whether they fit."""
    for donor in donors:
        folder = donor / "features"
        for source in sorted(folder.iterdir()) if folder.is_dir() else ():
            target = run_dir / "features" / source.name
            if target.exists() or source.suffix == ".tmp":
                continue
            if source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(str(source), str(target))
            elif (source / FILES).is_file():  # every row is there
                link_folder(source, target)
