"""One table of all methods: scores, P, seconds and peak memory."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from mindvideo.artefacts import read_note
from mindvideo.errors import DataError
from mindvideo.evaluate.compare import compare_all, mean_and_sd, seed_folders
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.tables import read_scores, tidy_rows, write_score, write_tables
from mindvideo.files import write_json
from mindvideo.stages import STAGES

MAIN = "mindvideo"
CONTROLS = ("shuffled", "mean")
OF_CONTROLS = [f"{part}{name}" for name in CONTROLS for part in ("", "p_", "p_holm_")]

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


def list_methods(run_dir: Path, seeds: int = 1) -> dict[str, list[Path]]:
    """Folders of each method with every seed, the study's own first."""
    found: dict[str, list[Path]] = {}
    for study in seed_folders(run_dir, seeds):
        for folder in (study, *sorted(path.parent for path in (study / "baselines").glob("*/done.json"))):
            if (folder / "evaluate" / "scores.json").is_file():
                found.setdefault(MAIN if folder == study else folder.name, []).append(folder)
    return {name: folders for name, folders in found.items() if len(folders) == seeds}


def collect(run_dir: Path, seeds: int = 1) -> list[dict[str, Any]]:
    """One entry per method that has scores, the main method first; DataError where there is none.

    ``scores`` give value, interval and verdict, and for ``shuffled`` and ``mean`` the value, ``p_…`` and
    ``p_holm_…``. Of several seeds: means of values and costs, ``sd``, the largest P, and a verdict that
    must hold with every seed.
    """
    rows = []
    for name, folders in list_methods(run_dir, seeds).items():
        costs = [_study_cost(folder) if name == MAIN else read_note(folder / "done.json") for folder in folders]
        read = [read_scores(folder / "evaluate" / "scores.json") for folder in folders]
        known = [cost for cost in costs if cost["seconds"] is not None]
        rows.append(
            {
                "method": name,
                "seconds": mean([cost["seconds"] for cost in known]) if known else None,
                "peak_memory_bytes": max((cost["peak_memory_bytes"] for cost in known), default=None),
                "scores": {key: _over_seeds([scores[key] for scores in read if key in scores]) for key in read[0]},
            }
        )
    if not rows:
        raise DataError(f"expected scores of a method in {run_dir}, found none; run 'mindvideo baseline NAME' first")
    return rows


def _over_seeds(entries: list[ScoreResult]) -> dict[str, Any]:
    """A score over seeds: mean, spread, the largest P, the first seed's interval."""
    first = entries[0]
    verdicts = [entry.from_brain for entry in entries]
    of_value = mean_and_sd([entry.value for entry in entries])
    found: dict[str, Any] = {key: getattr(first, key) for key in ("interval", "n", "higher_is_better", "is_main")}
    found |= {key: of_value[key] for key in ("value", "sd")}
    found["from_brain"] = None if None in verdicts else all(verdicts)
    for name in CONTROLS:
        found[name] = mean_and_sd([entry.controls.get(name) for entry in entries])["value"]
        for key in ("p", "p_holm"):
            known = [p for entry in entries if (p := getattr(entry, key).get(name)) is not None]
            found[f"{key}_{name}"] = max(known, default=None)
    return found


def _study_cost(run_dir: Path) -> dict[str, Any]:
    """Seconds and memory of the main method's stages, also of a student's that made the clips."""
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
    """A row per score and a column per method, then seconds and peak memory.

    A cell holds the value, ``*`` where it came from the brain, and below it the shuffled control.
    """

    def write_cell(score: dict[str, Any] | None) -> str:
        text = write_score(score["value"], score["sd"]) if score else "–"
        if score is None or score["value"] is None or score["shuffled"] is None:
            return text
        return f"{text}{'*' * bool(score['from_brain'])}\n{write_score(score['shuffled'])}"

    table = [["score", *(row["method"] for row in rows)]]
    table += [[name, *(write_cell(row["scores"].get(name)) for row in rows)] for name in columns]
    for name, key, unit, form in (("seconds", "seconds", 1, ".0f"), ("peak GB", "peak_memory_bytes", 1e9, ".2f")):
        table.append([name, *("–" if row[key] is None else format(row[key] / unit, form) for row in rows)])
    return table


def compare_methods(run_dir: Path, columns: list[str], seeds: int = 1) -> dict[str, dict[str, Any]]:
    """`compare_all` as ``{"gan − mindvideo": {score: …}}``, or ``{"untested": why}``."""
    found = compare_all(list_methods(run_dir, seeds), columns)
    pairs = {f"{b} − {a}": scores for a, others in found["pairs"].items() for b, scores in others.items()}
    return pairs | {name: {"untested": why} for name, why in found["untested"].items()}


def write_table(run_dir: Path, seeds: int = 1) -> list[dict[str, Any]]:
    """Write ``RUN/baselines/table.json``, ``.csv`` and ``differences.json``."""
    rows = collect(run_dir, seeds)
    columns = ("value", "sd", "low", "high", "n", "from_brain", *OF_CONTROLS, "seconds", "peak_memory_bytes")
    entries = (((row["method"], name), row | score) for row in rows for name, score in row["scores"].items())
    write_tables(run_dir / "baselines" / "table", rows, tidy_rows(("method", "score"), columns, entries))
    write_json(run_dir / "baselines" / "differences.json", compare_methods(run_dir, score_columns(rows), seeds))
    return rows
