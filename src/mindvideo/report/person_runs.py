"""A folder for each of several people that reads like a run of that person alone.

All is links; what reads a run need not know that there are several people.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mindvideo.config import Recipe, save_recipe
from mindvideo.data.store import natural_key, person_folders, store_paths
from mindvideo.preparing import each_person
from mindvideo.stages import STAGES

OWN_STAGES = ("reconstruct", "evaluate", "explain")
"""Stages that keep a folder for each person; what the others have made, all people share."""


def list_people(run_dir: Path) -> list[Path]:
    """The people's folders in a run, if it has any."""
    found = [path.parent for path in run_dir.glob("people/*/recipe.yaml")]
    return sorted(found, key=lambda path: natural_key(path.name))


def link_people(recipe: Recipe, run_dir: Path) -> None:
    """Make the people's folders anew; a run of one person has none."""
    shutil.rmtree(run_dir / "people", ignore_errors=True)
    if recipe.data.subjects is None:
        return
    folders = person_folders(recipe.data, run_dir / "people")
    stores = store_paths(recipe.data, run_dir / "prepare")
    for one, folder, store in zip(each_person(recipe), folders, stores, strict=True):
        folder.mkdir(parents=True)
        save_recipe(one, folder / "recipe.yaml")
        for name in (*STAGES, "model"):
            made = run_dir / name
            if not made.is_dir() or name == "report":
                continue
            if name in OWN_STAGES:
                _link([*(made / folder.name).glob("*"), made / "done.json"], folder / name)
            elif name == "prepare":
                _link([made / "done.json"], folder / name)
                _point(store, folder / name / "store.zarr")
            else:
                _point(made, folder / name)


def _link(paths: list[Path], folder: Path) -> None:
    folder.mkdir()
    for path in paths:
        _point(path, folder / path.name)


def _point(path: Path, place: Path) -> None:
    """Make a relative link, which survives moving the run folder."""
    if path.exists():
        place.symlink_to(os.path.relpath(path, place.parent))
