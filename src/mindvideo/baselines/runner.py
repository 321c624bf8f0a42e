"""Run one rival: fit, reconstruct test windows and controls, score, note the cost.

``RUN/baselines/NAME`` has the layout of a run folder. A killed rival goes on: training from its
last checkpoint, clips after the last batch, to the same bits.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import zarr

from mindvideo import distributed
from mindvideo.artefacts import begin_folder, read_note, record_files, require_intact
from mindvideo.baselines.base import Method, MethodContext, StoreWithoutTest
from mindvideo.baselines.chosen_windows import ChosenWindows, score_categories
from mindvideo.baselines.folder import read_folder
from mindvideo.classes import digest_source, import_class
from mindvideo.clip_sets import clip_set
from mindvideo.config import Recipe, save_recipe
from mindvideo.cost import measure_cost
from mindvideo.data.store import Store
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.aggregate import Design
from mindvideo.evaluate.evaluation import OVER_TIME, evaluate_windows, list_rate_mismatch, share_features
from mindvideo.evaluate.tables import write_evaluation
from mindvideo.files import list_contents, write_json
from mindvideo.generate.reconstruct import fill_clips, open_clips, write_preview
from mindvideo.keys import Key, as_digest
from mindvideo.models.foundation import MOTION, PARTS, Foundation
from mindvideo.precision import resolve_precision, sampling_in, settled_precision
from mindvideo.stages import Progress, Say
from mindvideo.train.features import store_identity
from mindvideo.train.stage import stage_seed

RIVALS = {
    "ridge": ("mindvideo.baselines.token_ridge", "Ridge"),
    "linear": ("mindvideo.baselines.linear", "Linear"),
    "gan": ("mindvideo.baselines.gan", "VideoGan"),
    "separable": ("mindvideo.baselines.separable", "Separable"),
    "mindvis": ("mindvideo.baselines.mindvis", "MindVis"),
}
BUILDS_ON = {"ridge": ("cotrain", "animate"), "mindvis": ("adapt", "pretrain")}
"""Stages whose models a rival uses; it is stale when they change."""
VERSION = 2
"""Raised when the rivals' code gives other results for the same settings."""
MADE = ("reconstruction", "shuffled", "mean")
Make = Callable[[str, np.ndarray], np.ndarray]
"""A set's name and positions of windows to their clips."""


def rival_key(
    name: str, recipe: Recipe, run_dir: Path, store: Store, foundation: Foundation, made_by: dict[str, Any]
) -> Key:
    """What a rival's result follows from; ``made_by``: class or clips, if not ours."""
    content = recipe.model_dump(mode="json")
    parts: dict[str, Any] = {"name": name, "version": VERSION, "store": as_digest(store_identity(store)), **made_by}
    parts |= {f"baseline.{name}": content["baseline"].get(name), "align.window": content["align"]["window"]}
    parts |= {section: content[section] for section in ("seed", "reconstruct", "evaluate")}
    parts |= {f"foundation part {part}": as_digest(foundation.part_identity(part)) for part in (*PARTS, MOTION)}
    if name == "separable":
        parts["baseline.separable"]["films"] = None  # the files count, not where they lie
        parts |= {f"file {file}": as_digest(state) for file, *state in list_contents(recipe.baseline.separable.films)}
    if name in BUILDS_ON:
        parts["encoder"] = content["encoder"]
    for stage in BUILDS_ON.get(name, ()):
        written = record_files(run_dir / stage, [run_dir / stage])
        parts[f"stage {stage}"] = as_digest(
            {file: entry for file, entry in written.items() if file.endswith("tensors")}
        )
    return Key(parts)


def load_class(place: str) -> type:
    """The class ``module:Class`` of a user's own method; SettingError where it is none."""
    what = "a class with fit(store) and reconstruct(fmri)"
    found = import_class(place, what)
    missing = [word for word in ("fit", "reconstruct") if not callable(getattr(found, word, None))]
    if missing:
        raise SettingError(f"expected {place} to be {what}, found no {' and no '.join(missing)}")
    return found


class MethodRun:
    """One method on the study's test windows: its key, its folder, its clips.

    ``run_dir`` is the study's folder, or a new one for rivals alone; the store is the study's own
    unless another is given; ``made_by`` is explained at `rival_key`.
    """

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        run_dir: Path,
        store_path: Path | None,
        made_by: dict[str, Any],
        progress: Progress | None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
            raise SettingError(f"expected a name of letters, digits, '-', '_' and '.', found '{name}'")
        self.name = name
        self.recipe = recipe
        self.run_dir = run_dir
        self.progress = progress
        if store_path is None and recipe.data.subjects is not None:
            raise SettingError(
                f"expected a study of one person for rival methods, found data.subjects={list(recipe.data.subjects)} in "
                f"{run_dir}; run a study of one of them (data.subject)"
            )
        self.folder = run_dir / "baselines" / name
        self.store = Store.open(store_path or run_dir / "prepare" / "store.zarr")
        self.foundation = Foundation(recipe.foundation, distributed.device())
        self.key = rival_key(name, recipe, run_dir, self.store, self.foundation, made_by).digest
        self.windows = ChosenWindows(recipe, self.store)
        self.windows.require_same(run_dir / "reconstruct" / "windows.json")

    def is_done(self, say: Say) -> bool:
        """Whether its result is there and up to date, and says so."""
        if read_note(self.folder / "done.json").get("hash") != self.key:
            return False
        say(f"{self.name}: up to date")
        return True

    def begin(self) -> None:
        """Keep what an interrupted attempt with the same key left, or start with an empty folder."""
        self.was_begun = begin_folder(self.folder, self.key)
        # No student made its clips.
        save_recipe(self.recipe.model_copy(update={"distill": None}), self.folder / "recipe.yaml")

    def fill(self, makers: dict[str, Make], counts: Collection[int] = ()) -> zarr.Group:
        """Clips that ``makers`` make, and those that need no method; resumes by batches.

        The attribute ``frames_made`` lists the numbers of frames of their clips, or of the files
        they are from (``counts``).
        """
        folder = self.folder / "reconstruct"
        windows = self.windows
        labels = {each: clip_set(each, "none").definition for each in ("truth", *makers, "random_train", "constant")}
        labels |= {"truth": "what was shown", "reconstruction": f"reconstruction by {self.name}"}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "windows.json", windows.description)
        clips = open_clips(folder / "clips.zarr", labels, windows.shape, len(windows.chosen), self.key)
        made = {*cast(list[int], clips.attrs.get("frames_made", [])), *counts}

        def make(kind: str, positions: np.ndarray) -> np.ndarray:
            found = makers.get(kind, windows.make)(kind, positions)
            if kind in makers:
                made.update(() if counts else found.shape[1:2])
                clips.attrs["frames_made"] = sorted(made)
            return found if found.shape[1:] == windows.shape else windows.as_asked(found)

        fill_clips(clips, make, self.recipe.reconstruct.batch_size, self.progress)
        return clips

    def finish(self, clips: zarr.Group, costs: dict[str, dict[str, float]]) -> None:
        """Preview, scores, and ``done.json`` with the cost of each step."""
        folder, windows = self.folder, self.windows
        write_preview(folder / "reconstruct" / "preview.png", clips["truth"], clips["reconstruction"])
        scores = folder / "evaluate"
        share_features(self.run_dir / "evaluate", scores)
        names = cast(list[str], clips.attrs["names"])
        with measure_cost() as evaluate_cost:
            mismatch = list_rate_mismatch(windows.about_frames, windows.shape[0], windows.store.num_frames)
            evaluation = evaluate_windows(
                {each: clips[each] for each in names if each != "truth"}, clips["truth"], self.foundation,
                Design.of(self.recipe, windows.description, windows.block),
                mismatch | list_own_rate_mismatch(clips, windows.shape[0]),
                cache_dir=scores / "features", progress=self.progress,
            )  # fmt: skip
            write_evaluation(evaluation, scores, windows.description, windows.block)
        done = {
            "name": self.name,
            "hash": self.key,
            "code": version("mindvideo"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": sum(cost["seconds"] for cost in costs.values()) if costs else None,
            "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in costs.values()), default=None),
            "went_on_after_a_kill": self.was_begun,
            "cost": {**costs, "evaluate": evaluate_cost},
        }
        write_json(folder / "done.json", done)


def run_rival(
    name: str,
    recipe: Recipe,
    run_dir: Path,
    store_path: Path | None = None,
    *,
    method: str | None = None,
    progress: Progress | None = None,
    say: Say = print,
) -> bool:
    """Fit a rival, reconstruct, score, unless up to date; whether anything ran.

    ``name`` is a key of ``RIVALS``, or any where ``method`` gives the ``module:Class`` of a user's
    own `Method`.
    """
    if method is None and name not in RIVALS:
        raise SettingError(
            f"expected a rival, one of {', '.join(RIVALS)}, found '{name}'; or give --method module:Class"
        )
    if method is not None and name in RIVALS:
        raise SettingError(
            f"expected another name for {method}, found '{name}', which is one of the rivals; give --name"
        )
    made_by = {} if method is None else {f"class {method}": digest_source(load_class(method))}
    attempt = MethodRun(name, recipe, run_dir, store_path, made_by, progress)
    if attempt.is_done(say):
        return False
    for stage in ("prepare", *BUILDS_ON.get(name, ())):
        require_intact(run_dir, stage)
    attempt.begin()
    windows = attempt.windows
    if method is None:
        module, class_name = RIVALS[name]
        device = distributed.device()
        settled = settled_precision(run_dir / "reconstruct")
        sampled = sampling_in(recipe, settled or resolve_precision(recipe.reconstruct.precision, device))
        seed = stage_seed(recipe.seed, f"baseline {name}")
        context = MethodContext(sampled, run_dir, attempt.folder, attempt.foundation, device, seed, progress)
        rival: Method = getattr(importlib.import_module(module), class_name)(context)
    else:
        rival = load_class(method)()
    costs = {}
    say(f"{name}: fitting …")
    with measure_cost() as costs["fit"]:
        rival.fit(StoreWithoutTest.of(attempt.store))
    say(f"{name}: reconstructing {len(windows.chosen)} test windows and their controls …")
    takes_window = "window" in inspect.signature(rival.reconstruct).parameters

    def make(kind: str, positions: np.ndarray) -> np.ndarray:
        extra = {"window": windows.chosen[positions]} if takes_window else {}
        return check_made(rival.reconstruct(windows.fmri(kind, positions), **extra), len(positions), windows)

    with measure_cost() as costs["reconstruct"]:
        clips = attempt.fill(dict.fromkeys(MADE, make))
    if (name_categories := getattr(rival, "categories", None)) is not None:
        figures = score_categories(name_categories, windows, attempt.foundation)
        write_json(attempt.folder / "categories.json", figures)
    attempt.finish(clips, costs)
    return True


def add_folder(
    name: str,
    clips_dir: Path,
    recipe: Recipe,
    run_dir: Path,
    store_path: Path | None = None,
    *,
    progress: Progress | None = None,
    say: Say = print,
) -> bool:
    """Score clips, one file per test window (see `mindvideo.baselines.folder`).

    Its shuffled control is the clip of another scene's window; it has no mean control, and no cost.
    """
    if name in RIVALS:
        raise SettingError(f"expected another name for {clips_dir}, found '{name}', which is one of the rivals")
    made_by = {"clips": as_digest(list_contents(clips_dir))}
    attempt = MethodRun(name, recipe, run_dir, store_path, made_by, progress)
    if attempt.is_done(say):
        return False
    windows = attempt.windows
    found, counts = read_folder(clips_dir, windows.description, windows.shape)
    attempt.begin()
    makers: dict[str, Make] = {
        "reconstruction": lambda _, positions: found[positions],
        "shuffled": lambda _, positions: found[windows.other[positions]],
    }
    attempt.finish(attempt.fill(makers, counts), {})
    return True


def check_made(clips: Any, n: int, windows: ChosenWindows) -> np.ndarray:
    """A method's clips, uint8 (n, F, H, W, 3); DataError for anything else."""
    found = np.asarray(clips.cpu() if isinstance(clips, torch.Tensor) else clips)
    size = windows.store.size
    sizes = {(size, size, 3), windows.shape[1:]}
    if found.dtype != np.uint8 or found.ndim != 5 or found.shape[0] != n or found.shape[2:] not in sizes:
        raise DataError(
            f"expected reconstruct(fmri) to return uint8 clips {(n, windows.store.num_frames, size, size, 3)}, found "
            f"{found.dtype} {found.shape}; return a clip for each window, in the store's size, with values 0…255"
        )
    return found


def list_own_rate_mismatch(clips: zarr.Group, n_frames: int) -> dict[str, str]:
    """Scores to leave out of clips that were made with another number of frames."""
    odd = [count for count in cast(list[int], clips.attrs.get("frames_made", [])) if count % n_frames]
    made = ", ".join(map(str, odd))
    return {OVER_TIME: f"the method's {made} frames a scan do not move like {n_frames}"} if odd else {}
