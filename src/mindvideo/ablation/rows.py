"""The numbers of an ablation: as JSON, as tidy CSV, and the paper's table in LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.ablation.variants import FULL, Variant
from mindvideo.artefacts import read_note
from mindvideo.clip_sets import CLIP_SETS
from mindvideo.config import Recipe
from mindvideo.evaluate.aggregate import mean_interval
from mindvideo.evaluate.compare import (
    Comparison,
    WindowScores,
    apply_holm,
    compare_runs,
    enough_permutations,
    mean_and_sd,
    read_seeds,
    smallest_p_holm,
)
from mindvideo.evaluate.tables import tidy_rows, with_arrow, write_score, write_tables
from mindvideo.report.wording import CLASSES

PIXEL = "ssim_rgb"


@dataclass(frozen=True)
class RowRuns:
    """The runs behind a row: a variant, those like it, a run folder for each seed."""

    variant: Variant
    also: tuple[Variant, ...]
    run_dirs: dict[int, Path]

    def read(self, seeds: Iterable[int]) -> WindowScores:
        """The evaluations with these seeds, pooled."""
        return read_seeds([self.run_dirs[seed] for seed in sorted(seeds)], self.variant.name)


def write_table(recipe: Recipe, folder: Path, rows: Sequence[RowRuns]) -> dict[str, Any]:
    """Compare with the full method; write ``FOLDER/ablation.json``, ``.csv``, ``.tex``."""
    (full,) = (row for row in rows if row.variant.name == FULL)
    every = full.read(full.run_dirs)
    shown = [name for name, score in every.scores.items() if score.is_main]
    permutations = enough_permutations(len(rows) - 1)
    runs = {row.variant.name: row.read(row.run_dirs) for row in rows}
    compared = {
        row.variant.name: compare_runs(
            full.read(row.run_dirs), runs[row.variant.name], shown, permutations=permutations,
            bootstraps=recipe.evaluate.bootstraps, seed=recipe.seed,
        )
        for row in rows if row is not full
    }  # fmt: skip
    for name in shown:
        apply_holm([found[name] for found in compared.values()])
    content = {
        "format": "mindvideo-ablation",
        "version": 1,
        "recipe": recipe.name,
        "is_simulated": recipe.simulate is not None,
        "seeds": sorted(full.run_dirs),
        "correction": "Holm over the variants, for each score on its own",
        "permutations": permutations,
        "smallest_p": smallest_p_holm(compared.values()),
        "columns": [
            {key: getattr(every.scores[name], key) for key in ("label", "definition", "higher_is_better", "chance")}
            | {"score": name}
            for name in shown
        ],
        "rows": [
            {
                "name": row.variant.name,
                "label": row.variant.label,
                "changes": row.variant.changes,
                "also": [{"name": variant.name, "label": variant.label} for variant in row.also],
                "runs": {str(seed): path.relative_to(folder).as_posix() for seed, path in sorted(row.run_dirs.items())},
                "seconds": _seconds(row),
                "scores": {
                    name: _write_cell(runs[row.variant.name], name, compared.get(row.variant.name), recipe)
                    for name in shown
                },
            }
            for row in rows
        ],
        "references": _references(every, shown),
        "films": _films(
            [runs[row.variant.name] for row in rows if row is full or "data.subject" in row.variant.changes],
            {row.variant.name: row.variant.label for row in rows},
        ),
    }
    latex, classes = latex_rows(content)
    write_tables(folder / "ablation", content, csv_rows(content), latex, classes=classes)
    return content


def _write_cell(run: WindowScores, name: str, compared: Comparison | None, recipe: Recipe) -> dict[str, Any]:
    interval = run.scores[name].interval
    if run.pooled:
        rng = np.random.default_rng([recipe.seed, 1])
        interval = mean_interval(run.values[name], run.block, recipe.evaluate.bootstraps, rng)
    cell = run.over_seeds(name) | {"n": int(run.known(name).sum()), "interval": interval}
    if compared is not None:
        entry = compared[name]
        cell |= {key: entry[key] for key in ("difference", "p", "p_holm", "p_t_test", "design", "better")}
        cell |= {"p_class": entry["p_holm_class"], "difference_interval": entry["interval"]}
    return cell


def _references(full: WindowScores, shown: Sequence[str]) -> list[dict[str, Any]]:
    found = []
    for name in CLIP_SETS:
        if all(name in run.scores[column].controls for run in full.seeds for column in shown):
            cells = {
                column: mean_and_sd([run.scores[column].controls[name] for run in full.seeds])
                | {"interval": [None, None] if full.pooled else full.scores[column].control_intervals[name]}
                for column in shown
            }
            found.append({"name": name, "role": full.scores[shown[0]].roles[name], "scores": cells})
    return found


def _films(runs: Sequence[WindowScores], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """SSIM by subject and film (the paper's Fig. 6), of the first seed."""
    found: list[dict[str, Any]] = []
    for run in runs:
        for film, entry in run.scores[PIXEL].films.items() if PIXEL in run.scores else ():
            own = {"film": film, "name": run.name, "label": labels[run.name]}
            found.append(own | {key: entry[key] for key in ("value", "interval", "n")})
            for name in ("shuffled", "constant") if run.name == FULL else ():
                value = entry["controls"].get(name)
                found.append(
                    own | {"name": name, "label": name, "value": value, "interval": [None, None], "n": entry["n"]}
                )
    return sorted((entry for entry in found if entry["value"] is not None), key=lambda entry: entry["film"])


def _seconds(row: RowRuns) -> float:
    """Seconds of the stages that this row's runs do not share."""
    seconds = 0.0
    for run_dir in row.run_dirs.values():
        shared = read_note(run_dir / "shared.json")
        own = (path for path in run_dir.glob("*/done.json") if path.parent.name not in shared)
        seconds += sum(read_note(path)["seconds"] for path in own)
    return seconds


def row_label(entry: Mapping[str, Any]) -> str:
    """``full method (= window of 2 scans, subject 1)``, or ``shuffled (control)``."""
    if "also" not in entry:
        return f"{entry['name']} ({entry['role']})"
    also = ", ".join(variant["label"] for variant in entry["also"])
    return f"{entry['label']} (= {also})" if also else str(entry["label"])


def cell_text(cell: Mapping[str, Any]) -> str:
    """``0.171``, with the spread over seeds, and stars for the corrected P."""
    return write_score(cell["value"], cell["sd"]) + (CLASSES[cell["p_class"]][1] if cell.get("p_class") else "")


def csv_rows(content: Mapping[str, Any]) -> list[list[Any]]:
    """One line per row and score."""
    columns = ("low", "high", "difference_low", "difference_high", "value", "sd", "n", "difference", "p", "p_holm",
               "p_class", "p_t_test", "design")  # fmt: skip
    entries = []
    for entry in [*content["rows"], *content["references"]]:
        label = row_label(entry) if "also" in entry else entry["role"]
        for name, cell in entry["scores"].items():
            low, high = cell.get("difference_interval", (None, None))
            entries.append(((entry["name"], label, name), cell | {"difference_low": low, "difference_high": high}))
    return tidy_rows(("row", "label", "score"), columns, entries)


def latex_rows(content: Mapping[str, Any]) -> tuple[list[list[str]], dict[tuple[int, int], str]]:
    """The paper's Table 1, and the class of corrected P of its cells."""
    columns = content["columns"]
    classes: dict[tuple[int, int], str] = {}
    rows = [["", *(with_arrow(column["score"], column["higher_is_better"]) for column in columns)]]
    for entry in [*content["rows"], *content["references"]]:
        cells = [entry["scores"][column["score"]] for column in columns]
        classes |= {(len(rows), j): p for j, cell in enumerate(cells, 1) if (p := cell.get("p_class"))}
        rows.append([row_label(entry), *(write_score(cell["value"], cell["sd"]) for cell in cells)])
    return rows, classes
