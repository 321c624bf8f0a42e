"""Stages that do not change are not run again: a variant's folder gets them as hard links.

A hard link costs no room, and removing one variant leaves the others whole. Every stage replaces its files and never
writes into them, except for its log, which is copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mindvideo.artefacts import read_note
from mindvideo.data.disk import link_file, link_folder
from mindvideo.stages import STAGES
from mindvideo.train.features import FILES


def find_results(run_dirs: Iterable[Path]) -> dict[str, Path]:
    """Folder of every finished stage by the stage's hash; of several, the one in the first run folder."""
    found: dict[str, Path] = {}
    for run_dir in run_dirs:
        for stage in STAGES:
            key = read_note(run_dir / stage / "done.json").get("hash")
            if key is not None:
                found.setdefault(key, run_dir / stage)
    return found


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
                link_file(source, target)
            elif (source / FILES).is_file():  # every row is there
                link_folder(source, target)
