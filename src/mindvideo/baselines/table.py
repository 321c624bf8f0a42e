"""One table for all methods: scores with intervals, P against their own shuffled control, seconds and peak memory."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from mindvideo.data.disk import write_text
from mindvideo.errors import DataError

MAIN = "mindvideo"
HEADLINES = ("ssim_rgb", "image_2way", "image_50way", "video_2way", "video_50way", "clip_similarity", "retrieval_top1")

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


def collect(run_dir: Path) -> list[dict[str, Any]]:
    """One entry a method that has scores, the main method first.

    Returns
    -------
    list of dict
        ``method``, ``seconds``, ``peak_memory_bytes`` (None where nothing was run), ``n``, and ``scores``: for each
        score ``value``, ``interval``, ``shuffled``, ``p_shuffled``, ``mean``, ``p_mean``.

    Raises
    ------
    DataError
        Where no method has been scored.
    """
    folders = [run_dir, *sorted(path.parent for path in (run_dir / "baselines").glob("*/done.json"))]
    rows = []
    for folder in folders:
        path = folder / "evaluate" / "scores.json"
        if path.is_file():
            cost = _study_cost(run_dir) if folder == run_dir else json.loads((folder / "done.json").read_text())
            rows.append(
                {
                    "method": MAIN if folder == run_dir else folder.name,
                    "seconds": cost["seconds"],
                    "peak_memory_bytes": cost["peak_memory_bytes"],
                    "scores": {name: _short(entry) for name, entry in json.loads(path.read_text()).items()},
                }
            )
    if not rows:
        raise DataError(f"expected scores of a method in {run_dir}, found none; run 'mindvideo baseline NAME' first")
    return rows


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    controls, p = entry["controls"], entry["p"]
    return {
        "value": entry["value"],
        "interval": entry["interval"],
        "n": entry["n"],
        "higher_is_better": entry["higher_is_better"],
        **{name: controls.get(name) for name in ("shuffled", "mean")},
        **{f"p_{name}": p.get(name) for name in ("shuffled", "mean")},
    }


def _study_cost(run_dir: Path) -> dict[str, Any]:
    """Seconds of the main method's stages from pretrain to reconstruct, and the largest memory of any.

    The student's training counts where a student made the clips.
    """
    stages = ["pretrain", "adapt", "align", "animate", "cotrain", "reconstruct"]
    made = run_dir / "reconstruct" / "done.json"
    if made.is_file() and "distill" in json.loads(made.read_text()).get("inputs", {}):
        stages.append("distill")
    done = [run_dir / stage / "done.json" for stage in stages]
    costs = [json.loads(path.read_text()) for path in done if path.is_file()]
    if len(costs) < len(stages):
        return {"seconds": None, "peak_memory_bytes": None}
    return {
        "seconds": sum(cost["seconds"] for cost in costs),
        "peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs),
    }


def score_columns(rows: list[dict[str, Any]], every: bool = False) -> list[str]:
    """Names of the scores that are shown: the headline ones, or every one."""
    known = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    return known if every else [name for name in HEADLINES if name in known]


def as_text(rows: list[dict[str, Any]], columns: list[str]) -> list[list[str]]:
    """The table as strings, header first: method, a cell a score, seconds, peak memory.

    A cell reads ``value [low, high] (shuffled s, P p)``.
    """
    table = [["method", *columns, "seconds", "peak GB"]]
    for row in rows:
        cells = [_cell(row["scores"].get(name)) for name in columns]
        seconds, memory = row["seconds"], row["peak_memory_bytes"]
        cost = ["–" if seconds is None else f"{seconds:.0f}", "–" if memory is None else f"{memory / 1e9:.2f}"]
        table.append([row["method"], *cells, *cost])
    return table


def as_brief_text(rows: list[dict[str, Any]], columns: list[str]) -> list[list[str]]:
    """The table turned, for a narrow terminal: a line a score, a column a method, then seconds and peak memory.

    A cell reads value, with ``*`` for P < .05 and ``**`` for P < .01 against the method's shuffled control, which stands
    below it.
    """
    cost = as_text(rows, [])
    table = [["score", *(row["method"] for row in rows)]]
    table += [[name, *(_brief_cell(row["scores"].get(name)) for row in rows)] for name in columns]
    return table + [[title, *(line[place] for line in cost[1:])] for place, title in enumerate(cost[0]) if place > 0]


def _brief_cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    if score["shuffled"] is None:
        return f"{score['value']:.3f}"
    p = score["p_shuffled"]
    marks = "" if p is None else "**" if p < 0.01 else "*" if p < 0.05 else ""
    return f"{score['value']:.3f}{marks}\n{score['shuffled']:.3f}"


def _cell(score: dict[str, Any] | None) -> str:
    if score is None or score["value"] is None:
        return "–"
    low, high = score["interval"]
    text = f"{score['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    if score["shuffled"] is None:
        return text
    p = score["p_shuffled"]
    return f"{text} (shuffled {score['shuffled']:.3f}{'' if p is None else f', P {p:.4f}'})"


def write_table(run_dir: Path) -> list[dict[str, Any]]:
    """Write ``RUN/baselines/table.json`` and ``table.csv`` with every score; what `collect` returns."""
    rows = collect(run_dir)
    folder = run_dir / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = ("value", "low", "high", "n", "shuffled", "p_shuffled", "mean", "p_mean")
    writer.writerow(["method", "score", *fields, "seconds", "peak_memory_bytes"])
    for row in rows:
        for name, score in row["scores"].items():
            numbers = score | {"low": score["interval"][0], "high": score["interval"][1]}
            cells = ["" if numbers[field] is None else numbers[field] for field in fields]
            writer.writerow([row["method"], name, *cells, row["seconds"], row["peak_memory_bytes"]])
    write_text(folder / "table.csv", text.getvalue())
    write_text(folder / "table.json", json.dumps(rows, indent=1))
    return rows
