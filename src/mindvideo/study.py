"""A study: the stages in order, what is up to date, what must run.

A stage is up to date when its ``done.json`` carries the hash of its settings, of the code's version and of the stages
it builds on. Stages form a graph (``animate`` does not depend on ``align``), so changing a setting reruns its stage and
those that build on it, and no others.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mindvideo.config import Recipe, as_sampled, read_recipe, save_recipe
from mindvideo.cost import measure_cost
from mindvideo.data.disk import only_one, write_text
from mindvideo.errors import DataError, SettingError
from mindvideo.files import list_files
from mindvideo.preflight import CAPTION_SOURCES, TRUE_CAPTIONS, refusals

Progress = Callable[[int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Stage:
    """A stage: the settings it reads, the stages it builds on, and what it does in one line."""

    name: str
    settings: tuple[str, ...]
    needs: tuple[str, ...]
    does: str


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("simulate", ("simulate", "seed"), (), "simulate films, a subject and people for pre-training"),
        Stage("prepare", ("data", "pretrain.window_s"), ("simulate",), "recordings and stimuli to one prepared store"),
        Stage("pretrain", ("encoder", "pretrain", "seed"), ("prepare",), "masked brain modelling on many people"),
        Stage("adapt", ("encoder", "adapt", "seed"), ("pretrain",), "masked brain modelling on the subject"),
        Stage("align", ("encoder", "align", "seed"), ("adapt",), "contrastive alignment with CLIP"),
        Stage("animate", ("animate", "seed"), ("prepare",), "text-conditioned video tuning of the generator"),
        Stage("cotrain", ("cotrain", "align", "seed"), ("align", "animate"), "encoder and generator tuned together"),
        Stage("distill", ("distill", "reconstruct.guidance_scale", "reconstruct.guidance_interval", "reconstruct.negative", "seed"),
              ("cotrain",), "a student of the guided generator that samples in few steps"),
        Stage("reconstruct", ("reconstruct", "evaluate.block_s", "seed"), ("cotrain", "distill"),
              "test windows to video, with controls"),
        Stage("evaluate", ("evaluate", "seed"), ("reconstruct",), "scores beside their controls"),
        Stage("explain", ("explain", "seed"), ("cotrain", "adapt", "align"), "attention and occlusion on the cortex"),
        Stage("report", ("baselines", "baseline"), ("evaluate", "explain"), "a page to read"),
    )
}  # fmt: skip

_FOUNDATION = {
    "align": "condition_identity",
    **dict.fromkeys(("animate", "cotrain", "distill", "reconstruct", "explain"), "generation_identity"),
    "evaluate": "identity",
}
"""What of the foundation a stage follows from: new classifiers leave all but ``evaluate`` up to date."""
OPTIONAL = ("simulate", "distill")
"""Stages of a study only where its recipe has a section of their name."""
_SHARED = ("pretrain", "adapt", "align", "animate", "cotrain", "distill", "reconstruct")
"""Stages that several processes carry out together (``accelerate launch``)."""
_MODULES = {
    "pretrain": "mindvideo.train.pretrain",
    "adapt": "mindvideo.train.adapt",
    "align": "mindvideo.train.align",
    "animate": "mindvideo.train.animate",
    "cotrain": "mindvideo.train.cotrain",
    "distill": "mindvideo.train.distill",
    "reconstruct": "mindvideo.generate.reconstruct",
    "evaluate": "mindvideo.evaluate.scores",
    "explain": "mindvideo.explain.maps",
    "report": "mindvideo.report.build",
}


def _say_nothing(line: str) -> None:
    """What all processes but the first one say."""


def _pick(content: dict[str, Any], dotted: str) -> Any:
    value: Any = content
    for part in dotted.split("."):
        value = value[part]
    return value


class Study:
    """A recipe and the run folder it is carried out in.

    Parameters
    ----------
    recipe : Recipe
    run_dir : Path
        ``runs/NAME``; made where missing.
    """

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self._hashes: dict[str, str] = {}

    @classmethod
    def open(cls, run_dir: Path) -> Study:
        """The study a run folder belongs to, by its ``recipe.yaml``."""
        path = run_dir / "recipe.yaml"
        if not path.is_file():
            raise DataError(
                f"expected a run folder with recipe.yaml at {run_dir}, found none; start one with 'mindvideo run'"
            )
        return cls(read_recipe(path), run_dir)

    @property
    def stages(self) -> list[Stage]:
        """The stages of this study in order; ``simulate`` and ``distill`` only where the recipe has such a section."""
        return [stage for stage in STAGES.values() if self._has(stage.name)]

    def _has(self, name: str) -> bool:
        return name not in OPTIONAL or getattr(self.recipe, name) is not None

    @property
    def raw(self) -> Path:
        """Folder with the recordings: the recipe's, or the simulated one."""
        if self.recipe.simulate is not None:
            return self.run_dir / "simulate"
        if self.recipe.data.raw is None:
            raise SettingError("expected the folder of the recordings, found none; give --set data.raw=FOLDER")
        return self.recipe.data.raw

    def stage_hash(self, name: str) -> str:
        """Hash of a stage's settings, the code's version, the foundation, and the stages it builds on."""
        if name not in self._hashes:
            stage = STAGES[name]
            parts: dict[str, Any] = {"stage": name, "code": version("mindvideo"), "settings": self._settings(name)}
            parts["needs"] = [self.stage_hash(need) for need in stage.needs if self._has(need)]
            if name in _FOUNDATION:
                parts["foundation"] = self._foundation_identity(_FOUNDATION[name])
            elif name == "prepare" and self.recipe.data.captions == "blip":
                parts["foundation"] = self._foundation_identity("captioner_identity")
            if name == "prepare" and self.recipe.simulate is None:
                parts["raw"] = [list_files(self.raw), list_files(self.recipe.data.hcp)]
                if self.recipe.data.source == "fmriprep":
                    others = self.recipe.data.fmriprep
                    parts["raw"] += [list_files(others.stimuli), list_files(others.bids)]
            named = [list_files(path) for path in self._named_files(name)]
            if named:
                parts["files"] = named
            self._hashes[name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self._hashes[name]

    def _settings(self, name: str) -> dict[str, Any]:
        """Settings a stage reads; the length of blocks is one of ``reconstruct`` only where it chooses windows."""
        recipe = as_sampled(self.recipe) if name == "reconstruct" else self.recipe
        content = recipe.model_dump(mode="json")
        keys = [
            key
            for key in STAGES[name].settings
            if key != "evaluate.block_s" or self.recipe.reconstruct.max_windows is not None
        ]
        return {key: _pick(content, key) for key in keys}

    def _named_files(self, name: str) -> list[Path]:
        """Files and folders that settings of a stage name, besides the recordings."""
        data, named = self.recipe.data, []
        if name == "prepare":
            named = [] if data.captions in CAPTION_SOURCES else [Path(data.captions)]
            if data.source == "published" and data.published.vertex is not None:
                named.append(data.published.vertex)
        elif name == "pretrain" and self.recipe.pretrain.weights is not None:
            named = [self.recipe.pretrain.weights]
        return named

    def _foundation_identity(self, kind: str) -> str:
        if kind not in self._hashes:
            from mindvideo.models.foundation import Foundation

            self._hashes[kind] = getattr(Foundation(self.recipe.foundation), kind)
        return self._hashes[kind]

    def is_done(self, name: str) -> bool:
        """Whether a stage's result is there and up to date."""
        path = self.run_dir / name / "done.json"
        if not path.is_file():
            return False
        try:
            return bool(json.loads(path.read_text())["hash"] == self.stage_hash(name))
        except (json.JSONDecodeError, KeyError):
            return False

    def check(self) -> None:
        """Refuse, before anything runs, what `mindvideo.preflight.refusals` finds."""
        for error in refusals(self.recipe, reads_recordings=not self.is_done("prepare")):
            raise error

    def run(
        self,
        until: str | None = None,
        only: str | None = None,
        progress: Callable[[str], Progress] | None = None,
        say: Callable[[str], None] = print,
    ) -> list[str]:
        """Run what is not up to date, in order.

        Parameters
        ----------
        until : str, optional
            Last stage to run.
        only : str, optional
            Run this stage alone; the stages it builds on must be up to date.
        progress : callable, optional
            Given a stage's name, returns what is called with (done, total, figures).
        say : callable
            Prints a line.

        Returns
        -------
        list of str
            Stages that ran.

        Raises
        ------
        MindVideoError
            Of any stage; the stages before it stay done.
        """
        names = [stage.name for stage in self.stages]
        for name in (until, only):
            if name in OPTIONAL and name not in names:
                example = "distill.sampler_steps=4" if name == "distill" else "simulate.segment_s=240"
                raise SettingError(f"expected a '{name}' section in the recipe, found none; give --set {example}")
            if name is not None and name not in names:
                raise SettingError(f"expected a stage, one of {', '.join(names)}, found '{name}'")
        from mindvideo import processes

        self.check()
        processes.join()
        if not processes.is_first():
            progress, say = None, _say_nothing
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self._lock():
            chosen = names[: names.index(until) + 1] if until else names
            ran: list[str] = []
            if only is not None:
                missing = [need for need in STAGES[only].needs if need in names and not self.is_done(need)]
                if missing:
                    needs = ", ".join(need for need in STAGES[only].needs if need in names)
                    raise DataError(
                        f"expected the stages {needs} up to date before '{only}', found "
                        f"{', '.join(missing)} not; run 'mindvideo run' with --until {missing[-1]} first"
                    )
                chosen = [only]
            if processes.is_first():
                save_recipe(self.recipe, self.run_dir / "recipe.yaml")
            for name in chosen:
                if name == "report" and only is None and processes.is_first():
                    with processes.alone():
                        ran += self._run_baselines(progress, say)
                if processes.tell(self.is_done(name) and only is None):
                    say(f"{name}: up to date")
                    continue
                self._run_stage(name, progress(name) if progress else None, say)
                ran.append(name)
        return ran

    def _run_baselines(self, progress: Callable[[str], Progress] | None, say: Callable[[str], None]) -> list[str]:
        """Run the rival methods the recipe names, and write the table of all methods."""
        if not self.recipe.baselines:
            return []
        from mindvideo.baselines.compare import run_rival
        from mindvideo.baselines.table import write_table

        ran: list[str] = [
            name
            for name in self.recipe.baselines
            if run_rival(name, self.recipe, self.run_dir, progress=progress(name) if progress else None, say=say)
        ]
        write_table(self.run_dir)
        if ran:
            (self.run_dir / "report" / "done.json").unlink(missing_ok=True)
        return ran

    def _run_stage(self, name: str, progress: Progress | None, say: Callable[[str], None]) -> None:
        """Run a stage: every process takes part in training and sampling, the others wait for the first one."""
        from mindvideo import processes

        if processes.is_first():
            self._begin_stage(name)
        processes.wait()
        if processes.splits_weights() and name in ("align", "animate", "cotrain", "distill"):
            say(f"{name}: weights are whole in every process; --use_fsdp splits those of pretrain and adapt")
        if processes.is_first() and name not in _SHARED:
            with processes.alone():
                self._carry_out(name, progress, say)
        elif processes.is_first():
            self._carry_out(name, progress, say)
        elif name in _SHARED:
            self._stage_function(name)(self.recipe, self.run_dir, None)
        processes.wait()

    def _begin_stage(self, name: str) -> None:
        """Clear what an earlier recipe left, and note what is about to be made."""
        folder = self.run_dir / name
        started = folder / "started.json"
        stage_hash = self.stage_hash(name)
        if started.is_file() and json.loads(started.read_text() or "{}").get("hash") == stage_hash:
            (folder / "done.json").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(started, json.dumps({"stage": name, "hash": stage_hash}, indent=2))

    def _carry_out(self, name: str, progress: Progress | None, say: Callable[[str], None]) -> None:
        folder = self.run_dir / name
        say(f"{name}: {STAGES[name].does} …")
        try:
            with measure_cost() as cost:
                self._stage_function(name)(self.recipe, self.run_dir, progress)
        except (OSError, SafetensorError) as error:
            if _is_full_disk(error):
                free = shutil.disk_usage(self.run_dir).free // 2**20
                raise DataError(
                    f"expected room for the results of '{name}' in {folder}, found the disk full ({free} MiB left); "
                    "free some space and run the same command again, it goes on where it stopped"
                ) from None
            raise
        from mindvideo.precision import settled_precision

        seconds, peak = cost["seconds"], int(cost["peak_memory_bytes"])
        done = {
            "stage": name,
            "hash": self.stage_hash(name),
            "inputs": {
                need: self.stage_hash(need)
                for need in STAGES[name].needs
                if self._has(need) and (self.run_dir / need).is_dir()
            },
            "settings": self._settings(name),
            "code": version("mindvideo"),
            "seconds": seconds,
            "peak_memory_bytes": peak,
            "precision": settled_precision(folder),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_text(folder / "done.json", json.dumps(done, indent=2))
        say(f"{name}: done in {seconds:.0f} s, peak memory {peak / 2**30:.1f} GiB")

    def _stage_function(self, name: str) -> Callable[[Recipe, Path, Progress | None], None]:
        if name == "simulate":
            return _run_simulate
        if name == "prepare":
            return self._run_prepare
        function: Callable[[Recipe, Path, Progress | None], None] = import_module(_MODULES[name]).run
        return function

    def _run_prepare(self, recipe: Recipe, run_dir: Path, progress: Progress | None) -> None:
        from mindvideo.data.hcp import prepare_hcp
        from mindvideo.data.pool import local_workers, open_pool
        from mindvideo.data.store import is_complete
        from mindvideo.models.foundation import Foundation

        data = recipe.data
        prepare = import_module(f"mindvideo.data.{data.source}").prepare
        given: dict[str, Any] = {"progress": progress}
        if data.captions == "blip":
            frozen = Foundation(recipe.foundation)
            given |= {"captioner": frozen.caption, "captioner_name": frozen.captioner_identity}
            given["caption_cache"] = run_dir / "captions.jsonl"  # outlives the store: other voxels, the same frames
        elif data.captions == "truth":
            data = data.model_copy(update={"captions": str(self.raw / TRUE_CAPTIONS)})
        store, segments = run_dir / "prepare" / "store.zarr", run_dir / "prepare" / "hcp.zarr"
        if not is_complete(store):
            with open_pool(local_workers()) as pool:
                prepare(self.raw, store, data, pool=pool, **given)
        hcp = run_dir / "simulate" / "hcp" if recipe.simulate is not None else data.hcp
        if hcp is not None and not is_complete(segments):
            prepare_hcp(hcp, segments, window_s=recipe.pretrain.window_s, progress=progress)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        from mindvideo import processes

        if not processes.is_first():  # the first process's lock stands for all of them
            yield
            return
        with only_one(self.run_dir, "study"):
            yield


def _is_full_disk(error: Exception) -> bool:
    """Whether an error means a full disk or a quota; safetensors reports it in words only."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


def _run_simulate(recipe: Recipe, run_dir: Path, progress: Progress | None) -> None:
    from mindvideo.simulate.recordings import simulate, simulate_people

    if recipe.simulate is None:
        raise SettingError("expected a 'simulate' section in the recipe, found none")
    settings = recipe.simulate
    is_long = (settings.train_segments + settings.test_segments) * settings.segment_s > 1800
    workers = min(4, os.cpu_count() or 1) if is_long else 1  # the same bytes however many
    simulate(settings, run_dir / "simulate", recipe.seed, progress=progress, workers=workers)
    simulate_people(settings, run_dir / "simulate", recipe.seed, progress=progress)


__all__ = ["STAGES", "Stage", "Study"]
