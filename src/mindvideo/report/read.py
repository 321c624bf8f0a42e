"""Read what a run folder holds, however far it is; what is missing is named."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.clip_sets import ClipSet, clip_set
from mindvideo.config import read_yaml
from mindvideo.errors import DataError
from mindvideo.evaluate.score import ScoreResult, finite, parse_scores
from mindvideo.evaluate.tables import read_windows
from mindvideo.stages import STAGES, UNFINISHED


@dataclass(frozen=True)
class StageState:
    """How far a stage is: ``done``, ``off``, ``unfinished`` or ``missing``."""

    name: str
    state: str
    done: dict[str, Any] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The stage's state in words."""
        return {
            "done": "finished",
            "off": f"{self.name} is switched off in this recipe",
            "unfinished": f"{self.name} has not finished: there is no {self.name}/done.json",
            "missing": f"{self.name} has not run: there is no folder {self.name}/",
        }[self.state]


@dataclass
class Run:
    """Everything the report shows of one run folder."""

    path: Path
    name: str
    recipe: dict[str, Any]
    recipe_text: str
    stages: dict[str, StageState]
    problems: list[str]
    scores: dict[str, ScoreResult] = field(default_factory=dict)
    near_duplicates: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    clip_sets: dict[str, ClipSet] = field(default_factory=dict)
    smallest_p: float | None = None
    windows: list[dict[str, Any]] = field(default_factory=list)
    window_scores: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    clips: dict[str, Any] = field(default_factory=dict)
    clip_labels: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    noise_ceiling: dict[str, float] = field(default_factory=dict)
    explain: dict[str, Any] = field(default_factory=dict)
    people: list[str] = field(default_factory=list)
    baselines: list[Run] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)

    @property
    def is_simulated(self) -> bool:
        """Whether the subject of this run does not exist."""
        return self.recipe.get("simulate") is not None or (self.path / "simulate").is_dir()

    def clip_set(self, name: str) -> ClipSet:
        """What a set of clips is, as this run's evaluation or its reconstructions say."""
        if name in self.clip_sets:
            return self.clip_sets[name]
        known = clip_set(name, str(self.setting("reconstruct.negative", "train_mean")))
        return replace(known, definition=known.definition or self.clip_labels.get(name, ""))

    def setting(self, dotted: str, default: Any = None) -> Any:
        """A setting of the recipe by its dotted name."""
        value: Any = self.recipe
        for part in dotted.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value


def read_run(path: Path) -> Run:
    """Read a run folder, however far it is; ``problems`` names files that cannot be used.

    DataError when the folder is no run folder.
    """
    recipe_path = path / "recipe.yaml"
    if not recipe_path.is_file():
        raise DataError(
            f"expected a run folder with recipe.yaml at {path}, found none; give a folder made by 'mindvideo run'"
        )
    text = recipe_path.read_text(errors="replace")
    recipe = read_yaml(recipe_path.read_bytes(), f"recipe {recipe_path}")
    if not isinstance(recipe, dict):
        raise DataError(f"expected a mapping of settings in {recipe_path}, found {type(recipe).__name__}")
    problems: list[str] = []
    names = [
        stage.name
        for stage in STAGES.values()
        if stage.name != "report" and not (stage.optional and recipe.get(stage.name) is None)
    ]
    stages = {name: _stage_state(path, name, recipe, problems) for name in names}
    run = Run(path, path.resolve().name, recipe, text, stages, problems)
    _read_scores(run)
    _read_clips(run)
    _read_window_scores(run)
    for stage in (name for name in stages if STAGES[name].trains):
        rows = _read_metrics(path / stage / "metrics.jsonl", problems)
        if rows:
            run.metrics[stage] = rows
    for source in sorted((path / "explain").glob("*.json")):
        if source.name not in ("done.json", "started.json"):
            run.explain[source.stem] = _read_json(source, problems) or {}
    run.people = [f"subject{number}" for number in run.setting("data.subjects") or ()]
    run.pictures = sorted((path / "explain").glob("*.png"))
    run.baselines = [read_run(found.parent) for found in sorted((path / "baselines").glob("*/recipe.yaml"))]
    return run


def read_table(path: Path, command: str) -> dict[str, Any]:
    """What ``mindvideo COMMAND`` wrote; DataError if missing or of another version."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = {}
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (
        f"mindvideo-{path.stem}",
        1,
    ):
        raise DataError(
            f"expected version 1 of {path.name} in {path.parent}, found none; make it with 'mindvideo {command}'"
        )
    return content


def _stage_state(path: Path, name: str, recipe: dict[str, Any], problems: list[str]) -> StageState:
    done = _read_json(path / name / "done.json", problems)
    if done is not None:
        return StageState(name, "done", done)
    section = recipe.get(name)
    if isinstance(section, dict) and section.get("enabled") is False:
        return StageState(name, "off")
    begun = (path / name).is_dir() or (path / f"{name}{UNFINISHED}").is_dir()
    return StageState(name, "unfinished" if begun else "missing")


def _read_json(path: Path, problems: list[str]) -> Any:
    """The content of a JSON file; None if missing or, named in ``problems``, damaged."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        stage = path.parent.name
        problems.append(f"{stage}/{path.name} is not valid JSON ({error}); run {stage} again")
        return None


def _read_scores(run: Run) -> None:
    folder = run.path / "evaluate"
    content = _read_json(folder / "scores.json", run.problems)
    if content is None:
        return
    try:
        run.scores = parse_scores(content)
    except DataError as error:
        run.problems.append(f"evaluate/scores.json: {error}")
    about = _read_json(folder / "evaluation.json", run.problems) or {}
    run.left_out = about.get("left_out", {})
    run.smallest_p = about.get("smallest_p")
    run.clip_sets = {name: ClipSet(**entry) for name, entry in about.get("sets", {}).items()}
    ceilings = _read_json(folder / "noise_ceiling.json", run.problems) or {}
    run.noise_ceiling = {segment: entry["median"] for segment, entry in ceilings.items()}
    run.near_duplicates = _read_json(folder / "near_duplicates.json", run.problems) or {}


def _read_clips(run: Run) -> None:
    folder = run.path / "reconstruct"
    run.windows = _read_json(folder / "windows.json", run.problems) or []
    if not (folder / "clips.zarr").is_dir():
        return
    try:  # damage of many kinds, which the page reports
        group = zarr.open_group(str(folder / "clips.zarr"), mode="r")
        arrays = {name: group[name] for name in group.array_keys()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.problems.append(f"reconstruct/clips.zarr cannot be read ({type(error).__name__}: {error})")
        return
    attrs: dict[str, Any] = dict(group.attrs)
    if not attrs.get("complete", True):
        run.problems.append("reconstruct/clips.zarr is not finished, missing clips are black; run reconstruct again")
    wanted = [str(name) for name in attrs.get("names") or sorted(arrays)]
    run.clip_labels = {str(name): str(label) for name, label in (attrs.get("labels") or {}).items()}
    run.clips = {name: arrays[name] for name in dict.fromkeys(("truth", "reconstruction", *wanted)) if name in arrays}
    n_clips = next(iter(run.clips.values())).shape[0] if run.clips else len(run.windows)
    if run.windows and len(run.windows) != n_clips:
        run.problems.append(
            f"reconstruct/windows.json lists {len(run.windows)} windows, clips.zarr holds {n_clips}; captions are left out"
        )
        run.windows = []


def _read_window_scores(run: Run) -> None:
    """``windows.csv`` → ``window_scores[score][clip]``, in the clips' order."""
    path = run.path / "evaluate" / "windows.csv"
    if not path.is_file():
        return
    try:
        rows, scores = read_windows(path)
        n_clips = next(iter(run.clips.values())).shape[0] if run.clips else len(rows)
        places = _row_places(rows, run.windows)
        if max(places) >= n_clips or len(set(places)) != len(rows):
            raise ValueError
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        run.problems.append("evaluate/windows.csv does not belong to the clips of reconstruct/; evaluate again")
        return
    for name, sets in scores.items():
        for clip, found in sets.items():
            if np.isfinite(found).any():
                values = np.full(n_clips, np.nan)
                values[places] = found
                run.window_scores.setdefault(name, {})[clip] = [finite(value) for value in values]


def _row_places(rows: list[dict[str, str]], windows: list[dict[str, Any]]) -> list[int]:
    if not windows:
        return [int(float(row["window"])) for row in rows]
    place = {(str(window["segment"]), int(window["scan"])): i for i, window in enumerate(windows)}
    return [place[row["segment"], int(float(row["scan"]))] for row in rows]


def _read_metrics(path: Path, problems: list[str]) -> list[dict[str, float]]:
    """Rows of a training log; a last line cut short by a kill is left out."""
    if not path.is_file():
        return []
    rows: list[dict[str, float]] = []
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            if i + 1 < len(lines):
                problems.append(f"line {i + 1} of {path.parent.name}/metrics.jsonl is not valid JSON and is left out")
            continue
        row = {key: found for key, value in content.items() if (found := finite(value)) is not None}
        if len(row) > 1 and "step" in row:
            rows.append(row)
    return rows
