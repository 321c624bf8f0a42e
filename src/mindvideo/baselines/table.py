"""One table for all methods: scores with intervals, P against their own shuffled control, seconds and peak memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mindvideo.artefacts import read_note
from mindvideo.data.disk import write_text
from mindvideo.errors import DataError
from mindvideo.evaluate.comparison import compare_runs, read_window_scores
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.tables import csv_table, read_scores
from mindvideo.stages import STAGES

MAIN = "mindvideo"

NOT_PAID = {
    "ridge": "training the generator (animate, cotrain), which it uses",
    "mindvis": "masked modelling (pretrain, adapt), on which it builds, and the study's latents",
    "gan": "the study's latents",
}
"""What a rival takes ready-made from a study; the main method's own cost has it in."""


def cost_note(rows: list[dict[str, Any]]) -> str:
    """A sentence for under the table; empty where every method paid for all it uses."""
    parts = [f"{row['method']}'s does not hold {NOT_PAID[row['method']]}" for row in rows if row["method"] in NOT_PAID]
    return f"cost: {'; '.join(parts)}" if parts else ""


def list_scored(run_dir: Path) -> list[Path]:
    """Folders of the methods that have scores, the study's own first."""
    folders = [run_dir, *sorted(path.parent for path in (run_dir / "baselines").glob("*/done.json"))]
    return [folder for folder in folders if (folder / "evaluate" / "scores.json").is_file()]


def collect(run_dir: Path) -> list[dict[str, Any]]:
    """One entry a method that has scores, the main method first.

    Returns
    -------
    list of dict
        ``method``, ``seconds``, ``peak_memory_bytes`` (None where nothing was run), ``n``, and ``scores``: for each
        score ``value``, ``interval``, ``from_brain``, and for ``shuffled`` and ``mean`` the value, ``p_…`` and ``p_holm_…``,
        which is corrected over the method's scores.

    Raises
    ------
    DataError
        Where no method has been scored.
    """
    rows = []
    for folder in list_scored(run_dir):
        cost = _study_cost(run_dir) if folder == run_dir else json.loads((folder / "done.json").read_text())
        scores = read_scores(folder / "evaluate" / "scores.json")
        rows.append(
            {
                "method": MAIN if folder == run_dir else folder.name,
                "seconds": cost["seconds"],
                "peak_memory_bytes": cost["peak_memory_bytes"],
                "scores": {name: _short(entry) for name, entry in scores.items()},
            }
        )
    if not rows:
        raise DataError(f"expected scores of a method in {run_dir}, found none; run 'mindvideo baseline NAME' first")
    return rows


def _short(entry: ScoreResult) -> dict[str, Any]:
    return {
        **{key: getattr(entry, key) for key in ("value", "interval", "n", "higher_is_better", "is_main", "from_brain")},
        **{name: entry.controls.get(name) for name in ("shuffled", "mean")},
        **{f"p_{name}": entry.p.get(name) for name in ("shuffled", "mean")},
        **{f"p_holm_{name}": entry.p_holm.get(name) for name in ("shuffled", "mean")},
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
    """A line a score, a column a method, then seconds and peak memory, header first.

    A cell reads value, with ``*`` where the method took it from the brain (`ScoreResult.from_brain`), and below it the
    method's shuffled control.
    """
    table = [["score", *(row["method"] for row in rows)]]
    table += [[name, *(_brief_cell(row["scores"].get(name)) for row in rows)] for name in columns]
    seconds, memory = ([row[key] for row in rows] for key in ("seconds", "peak_memory_bytes"))
    table.append(["seconds", *("–" if value is None else f"{value:.0f}" for value in seconds)])
    return [*table, ["peak GB", *("–" if value is None else f"{value / 1e9:.2f}" for value in memory)]]


def _brief_cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    if score["shuffled"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f}{'*' if score['from_brain'] else ''}\n{score['shuffled']:.3f}"


def compare_methods(run_dir: Path, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every method against every other, window by window, by the scores both have; P by Holm over these scores.

    Returns
    -------
    dict
        ``{"gan − mindvideo": {score: …}}`` as `mindvideo.evaluate.comparison.compare_runs` gives it; a pair that cannot
        be compared has ``{"untested": why}``.
    """
    folders = {MAIN if folder == run_dir else folder.name: folder for folder in list_scored(run_dir)}
    found: dict[str, dict[str, Any]] = {}
    for first, second in combinations(folders, 2):
        pair = f"{second} − {first}"
        try:
            one, other = (read_window_scores(folders[name], name) for name in (first, second))
            found[pair] = compare_runs(
                one, other, [name for name in columns if name in one.values and name in other.values]
            )
        except DataError as error:
            found[pair] = {"untested": str(error)}
    return found


def write_table(run_dir: Path) -> list[dict[str, Any]]:
    """Write ``RUN/baselines/table.json`` and ``table.csv`` with every score, ``differences.json`` with every pair of methods.

    Returns
    -------
    list of dict
        What `collect` returns.
    """
    rows = collect(run_dir)
    folder = run_dir / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    controls = [f"{part}{name}" for name in ("shuffled", "mean") for part in ("", "p_", "p_holm_")]
    fields = ("value", "low", "high", "n", "from_brain", *controls)
    lines: list[list[Any]] = [["method", "score", *fields, "seconds", "peak_memory_bytes"]]
    for row in rows:
        for name, score in row["scores"].items():
            numbers = score | {"low": score["interval"][0], "high": score["interval"][1]}
            cells = ["" if numbers[field] is None else numbers[field] for field in fields]
            lines.append([row["method"], name, *cells, row["seconds"], row["peak_memory_bytes"]])
    differences = compare_methods(run_dir, score_columns(rows))
    write_text(folder / "table.csv", csv_table(lines))
    write_text(folder / "differences.json", json.dumps(differences, indent=1, allow_nan=False))
    write_text(folder / "table.json", json.dumps(rows, indent=1))
    return rows
