"""A study: what of it is up to date and why the rest is not, and carrying out what must run.

A stage is up to date when its ``done.json`` has the key of what it now follows from (`Study.key`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mindvideo.artefacts import begin_folder, find_damage, read_note, record_files, require_intact
from mindvideo.classes import digest_source
from mindvideo.config import AREA_ENCODERS, Recipe, as_sampled, read_recipe, save_recipe
from mindvideo.cost import describe_machine, measure_cost
from mindvideo.data.store import store_paths
from mindvideo.errors import DataError, SettingError
from mindvideo.files import digest_file, disk_errors, list_files, only_one, replace_folder, unless_copied, write_text
from mindvideo.keys import Key, as_digest
from mindvideo.precision import settled_precision
from mindvideo.preflight import refusals
from mindvideo.stages import STAGES, STORE, UNFINISHED, Bars, Progress, Say, Stage, StageContext
from mindvideo.tracking import Tracker

_PERSON = re.compile(r"(?:^|/)sub(?:ject|-)0*([A-Za-z0-9]+)(?=[/_.]|$)")
"""The label of the person whose file or folder this is."""
_DIFFERENCES = 6
"""Reasons that `Study.status` gives for one stage before it counts the others."""


class Study:
    """A recipe and the run folder it is carried out in.

    Parameters
    ----------
    run_dir : Path
        ``runs/NAME``; made where missing.
    """

    def __init__(self, recipe: Recipe, run_dir: Path) -> None:
        self.recipe, self.run_dir = recipe, run_dir
        self._keys: dict[str, Key] = {}
        self._parts: dict[str, str] = {}
        self._intact: set[str] = set()
        self._tracker: Tracker | None = None

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
        """The stages of this study in order; optional ones only if the recipe has their section."""
        return [stage for stage in STAGES.values() if self._has(stage.name)]

    def _has(self, name: str) -> bool:
        return not STAGES[name].optional or getattr(self.recipe, name) is not None

    def key(self, name: str) -> Key:
        """What a stage follows from: settings, files, foundation, classes, earlier stages."""
        if name not in self._keys:
            stage = STAGES[name]
            parts = Key({"version": stage.version, **self._settings(stage)}).parts
            parts |= {
                setting: "given" for setting, place in self._files(name) if place is not None
            }  # wherever they lie
            known = read_note(self.run_dir / name / "done.json").get("given")
            for part, path, state in self._list_inputs(name):
                before = known.get(part) if isinstance(known, dict) else None
                parts[part] = as_digest(unless_copied(path, state, before))
            parts |= {f"foundation part {part}": self._part_digest(part) for part in self._foundation_parts(stage)}
            own = self.recipe.align.encoder
            if name in ("pretrain", "adapt") and own in AREA_ENCODERS:
                parts["align.encoder"] = "areas"
            if name == "align" and ":" in own:
                from mindvideo.models.encoders import import_encoder

                parts[f"class {own}"] = digest_source(import_encoder(own))
            parts |= {f"stage {need}": as_digest(self.key(need).digest) for need in stage.needs if self._has(need)}
            self._keys[name] = Key(parts)
        return self._keys[name]

    def _settings(self, stage: Stage) -> dict[str, Any]:
        """Settings a stage reads, and the blocks' length only if windows are chosen."""
        recipe = as_sampled(self.recipe) if stage.name == "reconstruct" else self.recipe
        content, found = recipe.model_dump(mode="json"), {}
        for dotted in stage.reads:
            if dotted != "evaluate.block_s" or recipe.reconstruct.max_windows is not None:
                section, _, leaf = dotted.rpartition(".")
                found[dotted] = (content[section] if section else content)[leaf]
        return found

    def _files(self, name: str) -> Iterator[tuple[str, Path | None]]:
        """Files and folders that settings of a stage name, each with the setting."""
        data = self.recipe.data
        if name == "pretrain":
            yield "pretrain.weights", self.recipe.pretrain.weights
        if name != "prepare":
            return
        if data.caption_file is not None and data.captions != "truth":
            yield "data.captions", data.caption_file
        if self.recipe.simulate is None:
            yield "data.raw", data.raw
            yield "data.hcp", data.hcp
        yield from ((f"data.{data.source}.{name}", value) for name, value in data.own if isinstance(value, Path))

    def _list_inputs(self, name: str) -> Iterator[tuple[str, Path, list[int]]]:
        """Files that settings of a stage name: in words, where, size and time.

        Of a data set neither those of other people nor what this study writes.
        """
        data = self.recipe.data
        several = data.subjects or ()
        known = {
            "wen2018": data.people,
            "fmriprep": several or [getattr(data.own, "participant", None)],
            "store": several,
        }
        people = {
            str(one).removeprefix("sub-").lstrip("0") or "0" for one in known.get(data.source, ()) if one is not None
        }
        for setting, place in self._files(name):
            for file, *state in list_files(place, without=self.run_dir):
                labels = set(_PERSON.findall(file)) if people and setting == "data.raw" else set()
                if place and labels <= people:
                    yield f"file {file} of {setting}", place / file, state

    def _foundation_parts(self, stage: Stage) -> tuple[str, ...]:
        if stage.name == "prepare":
            return ("captioner",) if self.recipe.data.captions == "blip" else ()
        if not stage.foundation:
            return ()
        from mindvideo.models.foundation import CONDITION, GENERATION, JUDGES, MOTION, PARTS

        return {"condition": CONDITION, "generation": GENERATION, "whole": (*PARTS, MOTION, JUDGES)}[stage.foundation]

    def _part_digest(self, part: str) -> str:
        if part not in self._parts:
            from mindvideo.models.foundation import Foundation

            self._parts[part] = as_digest(Foundation(self.recipe.foundation).part_identity(part))
        return self._parts[part]

    def is_done(self, name: str) -> bool:
        """Whether a stage's result is there and up to date."""
        done = read_note(self.run_dir / name / "done.json")
        return isinstance(done.get("files"), dict) and done.get("hash") == self.key(name).digest

    def status(self) -> dict[str, str]:
        """Whether each stage is up to date, and if not, what changed, old → new."""
        return {stage.name: self._status(stage.name) for stage in self.stages}

    def _status(self, name: str) -> str:
        done = read_note(self.run_dir / name / "done.json")
        key = self.key(name)
        if self.is_done(name):
            damage = find_damage(self.run_dir, done["files"], whole=False)
            way_out = f"remove the folder {self.run_dir / name} to have it made anew"
            return "up to date" if damage is None else f"damaged – {damage[0]}: {damage[1]}; {way_out}"
        begun = read_note(self._unfinished(name) / "started.json").get("hash") == key.digest
        goes_on = "; the new one goes on where it stopped" if begun else ""
        if isinstance(done.get("parts"), dict):
            found = key.differences(done["parts"])
            more = f"; and {len(found) - _DIFFERENCES} more" if len(found) > _DIFFERENCES else ""
            return f"stale – {'; '.join(found[:_DIFFERENCES])}{more}{goes_on}"
        if done:
            return f"stale – made by another version, which did not record what it follows from{goes_on}"
        return "unfinished – goes on where it stopped" if begun else "not run"

    def _unfinished(self, name: str) -> Path:
        """Where a stage works, until its result takes the old one's place."""
        return self.run_dir / f"{name}{UNFINISHED}"

    def check(self, last: str | None = None) -> None:
        """Raise the first of `mindvideo.preflight.refusals`, unless all is done that is to run."""
        names = [stage.name for stage in self.stages]
        if all(self.is_done(name) for name in (names[: names.index(last) + 1] if last else names)):
            return
        stores = store_paths(self.recipe.data, self.run_dir / "prepare") if self.is_done("prepare") else ()
        for error in refusals(self.recipe, stores=stores, last=last):
            raise error

    def run(
        self, until: str | None = None, only: str | None = None, progress: Bars | None = None, say: Say = print
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
            if name in STAGES and name not in names:
                raise SettingError(
                    f"expected a '{name}' section in the recipe, found none; give --set {STAGES[name].example}"
                )
            if name is not None and name not in names:
                raise SettingError(f"expected a stage, one of {', '.join(names)}, found '{name}'")
        from mindvideo import distributed

        self.check(only or until)
        distributed.init_process_group()
        if not distributed.is_main():
            progress, say = None, lambda line: None
        self.run_dir.mkdir(parents=True, exist_ok=True)
        if self.recipe.track is not None and distributed.is_main():
            self._tracker = Tracker(self.recipe, self.run_dir)
        # The first process's lock stands for all of them.
        with (
            only_one(self.run_dir / ".lock", f"running the study in {self.run_dir}")
            if distributed.is_main()
            else nullcontext()
        ):
            if only is not None:
                self._require_needs(only)
            if distributed.is_main():
                save_recipe(self.recipe, self.run_dir / "recipe.yaml")
            ran: list[str] = []
            for name in [only] if only else names[: names.index(until) + 1] if until else names:
                if name == "report" and only is None and distributed.is_main():
                    with distributed.alone():
                        ran += self._run_baselines(progress, say)
                # Asked for by name, a report is written again: rivals that ran since are not in its key.
                if distributed.broadcast(self.is_done(name) and only != "report"):
                    say(f"{name}: {self._status(name)}")
                    if distributed.is_main():
                        shutil.rmtree(self._unfinished(name), ignore_errors=True)
                    continue
                self._run_stage(STAGES[name], progress(name) if progress else None, say)
                ran.append(name)
                if name == "prepare" and name != (only or until):  # what only the store can tell
                    self.check(only or until)
        if self._tracker is not None:
            self._tracker.finish()
        return ran

    def _require_needs(self, name: str) -> None:
        needs = [need for need in STAGES[name].needs if self._has(need)]
        missing = [need for need in needs if not self.is_done(need)]
        if missing:
            raise DataError(
                f"expected the stages {', '.join(needs)} up to date before '{name}', found {', '.join(missing)} not; "
                f"run 'mindvideo run' with --until {missing[-1]} first"
            )

    def _run_baselines(self, progress: Bars | None, say: Say) -> list[str]:
        if not self.recipe.baselines:
            return []
        from mindvideo.baselines.runner import run_rival
        from mindvideo.baselines.summary import write_table

        ran: list[str] = [
            name
            for name in self.recipe.baselines
            if run_rival(name, self.recipe, self.run_dir, progress=progress(name) if progress else None, say=say)
        ]
        write_table(self.run_dir)
        if ran:
            (self.run_dir / "report" / "done.json").unlink(missing_ok=True)
        return ran

    def _run_stage(self, stage: Stage, progress: Progress | None, say: Say) -> None:
        """Run a stage; unless it is parallel, the other processes wait for the main one."""
        from mindvideo import distributed

        say(f"{stage.name}: {stage.summary} …")
        if distributed.is_main():
            self._begin(stage)
        distributed.barrier()
        if distributed.uses_fsdp() and stage.trains and stage.foundation:
            say(f"{stage.name}: weights are whole in every process; --use_fsdp splits those of pretrain and adapt")
        if distributed.is_main():
            with nullcontext() if stage.parallel else distributed.alone():
                self._carry_out(stage, progress, say)
        elif stage.parallel:
            import_module(stage.module).run(StageContext(self.recipe, self.run_dir, self._unfinished(stage.name)))
        distributed.barrier()

    def _begin(self, stage: Stage) -> None:
        """Check that what the stage reads is whole, and begin its folder."""
        stores = [f"prepare/{path.name}" for path in store_paths(self.recipe.data, self.run_dir)]
        places = [each for place in stage.opens for each in (stores if place == STORE else [place])]
        for place in places:
            name = place.partition("/")[0]
            if self._has(name) and not {name, place} & self._intact:
                require_intact(self.run_dir, name, below=place)
                self._intact.add(place)
        begin_folder(self._unfinished(stage.name), self.key(stage.name).digest)

    def _carry_out(self, stage: Stage, progress: Progress | None, say: Say) -> None:
        name, folder = stage.name, self._unfinished(stage.name)
        if self._tracker is not None:
            progress = self._tracker.watch(stage, progress)
        with disk_errors(folder, f"the results of '{name}'"), measure_cost() as cost:
            import_module(stage.module).run(StageContext(self.recipe, self.run_dir, folder, progress))
        seconds, peak = cost["seconds"], int(cost["peak_memory_bytes"])
        done = {
            "stage": name,
            "hash": self.key(name).digest,
            "inputs": {
                need: self.key(need).digest
                for need in stage.needs
                if self._has(need) and (self.run_dir / need).is_dir()
            },
            "settings": self._settings(stage),
            "code": version("mindvideo"),
            "precision": settled_precision(folder),
            "seconds": seconds,
            "peak_memory_bytes": peak,
            "machine": describe_machine(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "parts": self.key(name).parts,
            "given": {part: [*state, digest_file(path)] for part, path, state in self._list_inputs(name)},
            "files": {
                file if file.split("/")[0] in stage.writes else f"{name}/{file}": entry
                for file, entry in record_files(folder, [folder]).items()
            },
        }
        write_text(folder / "done.json", json.dumps(done, indent=2))
        for other in stage.writes:
            replace_folder(folder / other, self.run_dir / other)
        replace_folder(folder, self.run_dir / name)
        self._intact.add(name)
        if self._tracker is not None:
            self._tracker.tell_result(name, self.run_dir)
        say(f"{name}: done in {seconds:.0f} s, peak memory {peak / 2**30:.1f} GiB")
        for line in read_note(self.run_dir / name / "remarks.json").get("lines", []):
            say(f"{name}: {line}")
