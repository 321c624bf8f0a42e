"""One table for all methods: scores with intervals, P against their shuffled control, seconds and peak memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from mindvideo.artefacts import read_note
from mindvideo.data.disk import write_text
from mindvideo.errors import DataError
from mindvideo.evaluate.contrast import compare_runs, over_seeds, pool_seeds, read_window_scores, seed_folders
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.tables import csv_table, read_scores
from mindvideo.stages import STAGES

MAIN = "mindvideo"
CONTROLS = ("shuffled", "mean")

NOT_PAID = {
    "ridge": "training the generator (animate, cotrain), which it uses",
    "mindvis": "masked modelling (pretrain, adapt), on which it builds, and the study's latents",
    "gan": "the study's latents",
}
"""What a rival takes ready-made from a study, whose own cost includes it."""


def cost_note(rows: list[dict[str, Any]]) -> str:
    """A sentence for under the table; empty where every method paid for all it uses."""
    names = [row["method"] for row in rows if row["method"] in NOT_PAID]
    parts = [f"{name}'s does not include {NOT_PAID[name]}" for name in names]
    return f"cost: {'; '.join(parts)}" if parts else ""


def list_scored(run_dir: Path) -> dict[str, Path]:
    """Folders of the methods that have scores, by name, the study's own first."""
    folders = [run_dir, *sorted(path.parent for path in (run_dir / "baselines").glob("*/done.json"))]
    scored = [folder for folder in folders if (folder / "evaluate" / "scores.json").is_file()]
    return {MAIN if folder == run_dir else folder.name: folder for folder in scored}


def _list_seeds(run_dir: Path, seeds: int) -> dict[str, list[Path]]:
    """Each method's folders, one per seed; only methods with every seed."""
    every = [list_scored(folder) for folder in (seed_folders(run_dir, seeds) if seeds > 1 else [run_dir])]
    return {name: [found[name] for found in every] for name in every[0] if all(name in found for found in every)}


def collect(run_dir: Path, seeds: int = 1) -> list[dict[str, Any]]:
    """One entry a method that has scores, the main method first.

    Returns
    -------
    list of dict
        ``method``, ``seconds``, ``peak_memory_bytes`` (None where nothing was run), and ``scores``: for each score
        ``value``, ``interval``, ``from_brain``, and for ``shuffled`` and ``mean`` the value, ``p_…`` and ``p_holm_…``
        (over the method's scores). With several seeds: means of values and costs, ``sd`` of the value, the largest P;
        ``from_brain`` must hold with every seed.

    Raises
    ------
    DataError
        Where no method has been scored.
    """
    rows = []
    for name, folders in _list_seeds(run_dir, seeds).items():
        costs = [_study_cost(folder) if name == MAIN else read_note(folder / "done.json") for folder in folders]
        read = [read_scores(folder / "evaluate" / "scores.json") for folder in folders]
        known = [cost for cost in costs if cost["seconds"] is not None]
        rows.append(
            {
                "method": name,
                "seconds": mean([cost["seconds"] for cost in known]) if known else None,
                "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in known), default=None),
                "scores": {key: _short([scores[key] for scores in read if key in scores]) for key in read[0]},
            }
        )
    if not rows:
        raise DataError(f"expected scores of a method in {run_dir}, found none; run 'mindvideo baseline NAME' first")
    return rows


def _short(entries: list[ScoreResult]) -> dict[str, Any]:
    """A score of one method; with several seeds mean, spread, the largest P, and the first seed's interval."""
    first, verdicts = entries[0], [entry.from_brain for entry in entries]

    def largest(values: list[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return {
        **{key: getattr(first, key) for key in ("interval", "n", "higher_is_better", "is_main")},
        **{key: value for key, value in over_seeds([entry.value for entry in entries]).items() if key != "seeds"},
        "from_brain": None if None in verdicts else all(verdicts),
        **{name: over_seeds([entry.controls.get(name) for entry in entries])["value"] for name in CONTROLS},
        **{f"p_{name}": largest([entry.p.get(name) for entry in entries]) for name in CONTROLS},
        **{f"p_holm_{name}": largest([entry.p_holm.get(name) for entry in entries]) for name in CONTROLS},
    }


def _study_cost(run_dir: Path) -> dict[str, Any]:
    """Seconds of the main method's stages from pretrain to reconstruct, and the largest memory of any.

    The student's training counts where a student made the clips.
    """
    inputs = read_note(run_dir / "reconstruct" / "done.json").get("inputs", {})
    stages = [stage for stage in STAGES.values() if stage.parallel and (not stage.optional or stage.name in inputs)]
    costs = [read_note(run_dir / stage.name / "done.json") for stage in stages]
    if not all(costs):
        return {"seconds": None, "peak_memory_bytes": None}
    return {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
    }


def score_columns(rows: list[dict[str, Any]], every: bool = False) -> list[str]:
    """Names of the scores that are shown: the main ones, or every one."""
    scores = {name: score for row in rows for name, score in row["scores"].items()}
    return [name for name, score in scores.items() if every or score["is_main"]]


def as_brief_text(rows: list[dict[str, Any]], columns: list[str]) -> list[list[str]]:
    """A row per score and a column per method, then seconds and peak memory; the header comes first.

    A cell holds the value, with ``*`` where it came from the brain (`ScoreResult.from_brain`), and below it the method's
    shuffled control.
    """
    table = [["score", *(row["method"] for row in rows)]]
    table += [[name, *(_brief_cell(row["scores"].get(name)) for row in rows)] for name in columns]
    seconds, memory = ([row[key] for row in rows] for key in ("seconds", "peak_memory_bytes"))
    table.append(["seconds", *("–" if value is None else f"{value:.0f}" for value in seconds)])
    return [*table, ["peak GB", *("–" if value is None else f"{value / 1e9:.2f}" for value in memory)]]


def _brief_cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    value = f"{score['value']:.3f}" + ("" if score["sd"] is None else f" ± {score['sd']:.3f}")
    if score["shuffled"] is None:
        return value
    return f"{value}{'*' if score['from_brain'] else ''}\n{score['shuffled']:.3f}"


def compare_methods(run_dir: Path, columns: Sequence[str], seeds: int = 1) -> dict[str, dict[str, Any]]:
    """Every two methods, window by window, by the scores both have; P by Holm over these scores.

    Returns
    -------
    dict
        ``{"gan − mindvideo": {score: …}}`` from `mindvideo.evaluate.contrast.compare_runs`; ``{"untested": why}`` for
        a pair that cannot be compared.
    """
    folders = _list_seeds(run_dir, seeds)
    found: dict[str, dict[str, Any]] = {}
    for first, second in combinations(folders, 2):
        pair = f"{second} − {first}"
        try:
            one, other = (
                pool_seeds([read_window_scores(folder, name) for folder in folders[name]]) for name in (first, second)
            )
            common = [name for name in columns if name in one.values and name in other.values]
            found[pair] = compare_runs(one, other, common)
        except DataError as error:
            found[pair] = {"untested": str(error)}
    return found


def write_table(run_dir: Path, seeds: int = 1) -> list[dict[str, Any]]:
    """Write and return what `collect` finds: ``RUN/baselines/table.json`` and ``.csv``; ``differences.json`` has every pair."""
    rows = collect(run_dir, seeds)
    folder = run_dir / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    controls = [f"{part}{name}" for name in CONTROLS for part in ("", "p_", "p_holm_")]
    fields = ("value", "sd", "low", "high", "n", "from_brain", *controls)
    lines: list[list[Any]] = [["method", "score", *fields, "seconds", "peak_memory_bytes"]]
    for row in rows:
        for name, score in row["scores"].items():
            numbers = score | {"low": score["interval"][0], "high": score["interval"][1]}
            cells = ["" if numbers[field] is None else numbers[field] for field in fields]
            lines.append([row["method"], name, *cells, row["seconds"], row["peak_memory_bytes"]])
    differences = compare_methods(run_dir, score_columns(rows), seeds)
    write_text(folder / "table.csv", csv_table(lines))
    write_text(folder / "differences.json", json.dumps(differences, indent=1, allow_nan=False))
    write_text(folder / "table.json", json.dumps(rows, indent=1))
    return rows
