"""The runs of an ablation: which stages each has, shares or must run.

A variant's folder gets a stage that does not change as hard links, which cost no room and outlive
the first folder: stages replace their files and never write into them, but for a log, which is copied.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mindvideo.ablation.rows import RowRuns, write_table
from mindvideo.ablation.variants import FULL, Variant, change_recipe, effective_recipe
from mindvideo.artefacts import read_note, require_intact
from mindvideo.config import Recipe
from mindvideo.errors import DataError
from mindvideo.evaluate.compare import name_seed
from mindvideo.files import link_file, link_folder, only_one
from mindvideo.stages import STAGES, Bars, Say
from mindvideo.study import Study
from mindvideo.train.features import FILES

LAST = "evaluate"
"""The last stage that the table needs."""


@dataclass(frozen=True)
class VariantRun:
    """One variant with one seed.

    ``name`` is the run folder's: the variant's, with ``-seedN`` for every seed but the recipe's own.
    One that is the ``same_as`` another variant, with the same results, is not run.
    """

    name: str
    variant: Variant
    seed: int
    study: Study
    same_as: str | None

    @property
    def stages(self) -> list[str]:
        """The stages the table needs, in order."""
        names = [stage.name for stage in self.study.stages]
        return names[: names.index(LAST) + 1]

    @property
    def is_done(self) -> bool:
        """Whether its scores are there and up to date."""
        return self.study.is_done(LAST)


@dataclass(frozen=True)
class Step:
    """One stage of one run: ``there``, ``shared`` with ``source``, or to be ``run``."""

    stage: str
    what: Literal["there", "shared", "run"]
    source: Path | None = None


class Ablation:
    """A recipe's variants and the folder their runs are in.

    Parameters
    ----------
    folder : Path
        ``FOLDER/NAME`` is the run folder of the variant NAME; ``FOLDER/ablation.json`` the table.
    variants : sequence of Variant
        To run. The full method first.
    seeds : int
        How many, from the recipe's own on.
    reuse : sequence of Path
        Run folders elsewhere whose finished stages are shared too.
    others : sequence of Variant
        Not run, but shown in the table where an earlier call ran them.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        variants: Sequence[Variant],
        *,
        seeds: int = 1,
        reuse: Sequence[Path] = (),
        others: Sequence[Variant] = (),
    ) -> None:
        for path in reuse:
            if not (path / "recipe.yaml").is_file():
                raise DataError(f"expected a run folder with recipe.yaml at {path}, found none; correct --reuse")
        self.recipe = recipe
        self.folder = folder
        self.reuse = tuple(reuse)
        chosen = {variant.name for variant in variants}
        known = [*variants, *(variant for variant in others if variant.name not in chosen)]
        self.all_runs = [run for seed in range(recipe.seed, recipe.seed + seeds) for run in self._runs(known, seed)]
        self.runs = [run for run in self.all_runs if run.variant.name in chosen]

    def _runs(self, variants: Sequence[Variant], seed: int) -> list[VariantRun]:
        first: dict[str, str] = {}
        runs = []
        for variant in variants:
            recipe = change_recipe(self.recipe, variant.changes | {"seed": seed})
            key = Study(effective_recipe(recipe), self.folder).key(LAST).digest
            same_as = first.get(key)
            first.setdefault(key, variant.name)
            name = name_seed(variant.name, seed, self.recipe.seed)
            changes: dict[str, Any] = {"name": f"{self.recipe.name}-{name}"}
            # Controls and rivals cost as much again; the full method's serve all.
            changes |= {} if variant.name == FULL else {"reconstruct.controls": [], "baselines": []}
            study = Study(change_recipe(recipe, changes), self.folder / name)
            runs.append(VariantRun(name, variant, seed, study, same_as))
        return runs

    def plan(self) -> dict[str, list[Step]]:
        """What is there, what is shared and what must run, of every run."""
        sources = find_results([*(run.study.run_dir for run in self.all_runs), *self.reuse])
        plan: dict[str, list[Step]] = {}
        for run in self.runs:
            if run.same_as is not None:
                continue
            steps = []
            for stage in run.stages:
                stage_hash = run.study.key(stage).digest
                if run.is_done or run.study.is_done(stage):
                    steps.append(Step(stage, "there"))
                elif stage_hash in sources:
                    steps.append(Step(stage, "shared", sources[stage_hash]))
                else:
                    steps.append(Step(stage, "run"))
                    sources[stage_hash] = run.study.run_dir / stage
            plan[run.name] = steps
        return plan

    def run(self, progress: Bars | None = None, say: Say = print) -> dict[str, list[str]]:
        """Carry out what is missing, with a table after every run; what ran, by run.

        ``progress`` is given "VARIANT: STAGE".
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        ran: dict[str, list[str]] = {}
        with only_one(self.folder / ".lock", f"running the ablation in {self.folder}"):
            own = [run for run in self.runs if run.same_as is None]
            for run in self.runs:
                if run.same_as is not None:
                    say(f"{run.name}: the same settings as {run.same_as}, one row for both")
            for number, run in enumerate(own):
                plan = self.plan()
                left = sum(step.what == "run" for steps in list(plan.values())[number:] for step in steps)
                steps = describe_steps(plan[run.name])
                say(f"[{number + 1}/{len(own)}] {run.name}: {steps}; stages left in all: {left}")
                if not run.is_done:
                    ran[run.name] = self._run_one(run, plan[run.name], progress, say)
                if ran.get(run.name) is not None or run is own[-1]:
                    write_table(self.recipe, self.folder, self._rows())
        return ran

    def _run_one(self, run: VariantRun, steps: list[Step], progress: Bars | None, say: Say) -> list[str]:
        run_dir = run.study.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        note = run_dir / "shared.json"
        shared = read_note(note)
        for step in steps:
            if step.source is not None:
                source = step.source.parent
                require_intact(source, step.stage)
                link_folder(step.source, run_dir / step.stage)
                if step.stage == "reconstruct" and (source / "model").is_dir():
                    link_folder(source / "model", run_dir / "model")
                shared[step.stage] = source.name
            elif step.what == "run":
                shared.pop(step.stage, None)
        note.write_text(json.dumps(shared, indent=1))
        donors = [other.study.run_dir for other in self.all_runs if other.seed == run.seed and other is not run]
        link_features([*donors, *self.reuse], run_dir)
        bar = (lambda stage: progress(f"{run.name}: {stage}")) if progress else None

        def say_what_runs(line: str) -> None:
            if not line.endswith(": up to date"):
                say(f"  {line}")

        return run.study.run(until=LAST, progress=bar, say=say_what_runs)

    def _rows(self) -> list[RowRuns]:
        finished_full = {run.seed for run in self.all_runs if run.variant.name == FULL and run.is_done}
        rows = []
        for run in self.all_runs:
            if run.seed != self.recipe.seed or run.same_as is not None:
                continue
            mine = [
                (other.seed, other.study.run_dir)
                for other in self.all_runs
                if other.variant.name == run.variant.name and other.seed in finished_full and other.is_done
            ]
            also = [other.variant for other in self.all_runs if other.same_as == run.name and other.seed == run.seed]
            if mine:
                rows.append(RowRuns(run.variant, tuple(also), dict(mine)))
        return rows


def describe_steps(steps: Sequence[Step]) -> str:
    """``shares simulate, prepare with full; runs align, cotrain`` in one line."""
    if all(step.what == "there" for step in steps):
        return "up to date"
    parts: dict[tuple[str, str], list[str]] = {}
    for step in sorted(steps, key=lambda step: ("shared", "there", "run").index(step.what)):
        words = {"shared": "shares", "there": "has", "run": "runs"}[step.what]
        end = f" with {step.source.parent.name}" if step.source is not None else ""
        parts.setdefault((words, end), []).append(step.stage)
    return "; ".join(f"{words} {', '.join(names)}{end}" for (words, end), names in parts.items())


def find_results(run_dirs: Iterable[Path]) -> dict[str, Path]:
    """Folder of every finished stage by its hash; of several, the first."""
    found: dict[str, Path] = {}
    for run_dir in run_dirs:
        for stage in STAGES:
            if (key := read_note(run_dir / stage / "done.json").get("hash")) is not None:
                found.setdefault(key, run_dir / stage)
    return found


def link_features(donors: Iterable[Path], run_dir: Path) -> None:
    """Link finished tables of frozen features; their keys decide whether they fit."""
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
