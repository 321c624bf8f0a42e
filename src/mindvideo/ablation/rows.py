"""The numbers of an ablation: ``ablation.json``, the same as tidy CSV, and the paper's table in LaTeX.

A value is the mean over test windows that ``evaluate`` wrote; P is that of `mindvideo.evaluate.contrast.compare_runs`
against the full method, adjusted by Holm over the variants, score by score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.ablation.variants import FULL, Variant
from mindvideo.artefacts import read_note
from mindvideo.config import Recipe
from mindvideo.data.disk import write_text
from mindvideo.evaluate import statistics
from mindvideo.evaluate.contrast import (
    WindowScores,
    compare_runs,
    enough_permutations,
    over_seeds,
    pool_seeds,
    read_window_scores,
)
from mindvideo.evaluate.score import ScoreResult
from mindvideo.evaluate.tables import csv_table, read_scores
from mindvideo.report.wording import CLASSES

REFERENCES = ("shuffled", "mean", "random_train", "constant", "caption", "vae")
PIXEL = "ssim_rgb"
LATEX_COLOURS = {"purple": "D9C8F2", "pink": "F9CFE0", "yellow": "FBF0B8", "green": "D5EBCF"}
"""The paper's, light enough to print text on."""


@dataclass(frozen=True)
class RowRuns:
    """The runs behind a row: a variant, the variants with the same settings, a run folder for each seed."""

    variant: Variant
    also: tuple[Variant, ...]
    run_dirs: dict[int, Path]
    changed: tuple[str, ...]


def _read_scores(run_dir: Path) -> dict[str, ScoreResult]:
    return read_scores(run_dir / "evaluate" / "scores.json")


class TableWriter:
    """Writes the table into ``folder`` whenever a run is finished; what was compared once is kept."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self._comparisons: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}

    def write(self, rows: Sequence[RowRuns]) -> dict[str, Any]:
        """Read the runs' evaluations, compare with the full method, and write the three files."""
        content = self._content(rows)
        write_text(self.folder / "ablation.csv", write_csv(content))
        write_text(self.folder / "ablation.tex", write_latex(content))
        write_text(self.folder / "ablation.json", json.dumps(content, indent=1, allow_nan=False))
        return content

    def _content(self, rows: Sequence[RowRuns]) -> dict[str, Any]:
        full = next(row for row in rows if row.variant.name == FULL)
        scores = _read_scores(full.run_dirs[min(full.run_dirs)])
        shown = [name for name, entry in scores.items() if entry.is_main]
        permutations = enough_permutations(len(rows) - 1)
        entries = [self._entry(row, full, shown, permutations) for row in rows]
        _adjust(entries, shown)
        return {
            "format": "mindvideo-ablation",
            "version": 1,
            "recipe": self.recipe.name,
            "is_simulated": self.recipe.simulate is not None,
            "seeds": sorted(full.run_dirs),
            "correction": "Holm over the variants, for each score on its own",
            "permutations": permutations,
            "smallest_p": smallest_p(full, len(rows) - 1, permutations),
            "columns": [
                {key: getattr(scores[name], key) for key in ("label", "definition", "higher_is_better", "chance")}
                | {"score": name}
                for name in shown
            ],
            "rows": entries,
            "references": _references(full, shown),
            "films": _films([row for row in rows if row.variant.name == FULL or "data.subject" in row.variant.changes]),
        }

    def _entry(self, row: RowRuns, full: RowRuns, shown: list[str], permutations: int) -> dict[str, Any]:
        seeds = sorted(row.run_dirs)
        runs = [read_window_scores(row.run_dirs[seed], row.variant.name) for seed in seeds]
        pooled = pool_seeds(runs)
        cells = {name: over_seeds([run.mean(name) for run in runs]) for name in shown}
        for name, cell in cells.items():
            cell["n"] = int(np.isfinite(pooled.values[name]).sum())
            cell["interval"] = self._interval(row, seeds, pooled, name)
        if row.variant.name != FULL:
            for name, comparison in self._compare(row, full, shown, permutations).items():
                keys = ("difference", "p", "p_t_test", "design", "better")
                cells[name] |= {key: comparison[key] for key in keys}
                cells[name]["difference_interval"] = comparison["interval"]
        return {
            "name": row.variant.name,
            "label": row.variant.label,
            "changes": row.variant.changes,
            "also": [{"name": variant.name, "label": variant.label} for variant in row.also],
            "changed_stages": list(row.changed),
            "runs": {
                str(seed): path.relative_to(self.folder).as_posix() for seed, path in sorted(row.run_dirs.items())
            },
            "seconds": _seconds(row),
            "scores": cells,
        }

    def _interval(self, row: RowRuns, seeds: list[int], pooled: WindowScores, name: str) -> list[float | None]:
        """The run's own interval; with several seeds, by block bootstrap over all their windows."""
        if len(seeds) == 1:
            return list(_read_scores(row.run_dirs[seeds[0]])[name].interval)
        known = np.isfinite(pooled.values[name])
        if not known.any():
            return [None, None]
        rng = np.random.default_rng([self.recipe.seed, 1])
        bootstraps = self.recipe.evaluate.bootstraps
        values, block = pooled.values[name][known], pooled.block[known]
        interval = statistics.block_bootstrap_interval(values, block, bootstraps, rng)
        return [None if math.isnan(end) else end for end in interval]

    def _compare(self, row: RowRuns, full: RowRuns, shown: list[str], permutations: int) -> dict[str, dict[str, Any]]:
        seeds = sorted(set(row.run_dirs) & set(full.run_dirs))
        marks = [(folder / "evaluate" / "done.json").read_bytes() for seed in seeds for folder in
                 (row.run_dirs[seed], full.run_dirs[seed])]  # fmt: skip
        key = (row.variant.name, tuple(marks), tuple(shown), permutations)
        if key not in self._comparisons:
            first, second = (
                pool_seeds([read_window_scores(group.run_dirs[seed], group.variant.name) for seed in seeds])
                for group in (full, row)
            )
            self._comparisons[key] = compare_runs(
                first, second, shown, permutations=permutations,
                bootstraps=self.recipe.evaluate.bootstraps, seed=self.recipe.seed,
            )  # fmt: skip
        return self._comparisons[key]


def smallest_p(full: RowRuns, n_tests: int, permutations: int) -> float | None:
    """The smallest corrected P that blocks and permutations allow; None where nothing is compared."""
    if n_tests < 1:
        return None
    pooled = pool_seeds([read_window_scores(path) for _, path in sorted(full.run_dirs.items())])
    return min(1.0, n_tests * statistics.smallest_p(len(np.unique(pooled.block)), None, permutations))


def _adjust(entries: Sequence[dict[str, Any]], shown: Sequence[str]) -> None:
    """Holm over the variants for each score; adds ``p_holm`` and the paper's ``p_class`` of it."""
    for name in shown:
        tested = [entry["scores"][name] for entry in entries if entry["scores"][name].get("p") is not None]
        adjusted = statistics.holm(np.array([cell["p"] for cell in tested], dtype=np.float64))
        for cell, p in zip(tested, adjusted, strict=True):
            cell |= {"p_holm": float(p), "p_class": statistics.p_class(float(p))}


def _references(full: RowRuns, shown: Sequence[str]) -> list[dict[str, Any]]:
    """The full method's controls and ceilings, from its ``scores.json``."""
    every = [_read_scores(path) for _, path in sorted(full.run_dirs.items())]
    found = []
    for name in REFERENCES:
        if all(name in scores[column].controls for scores in every for column in shown):
            cells = {
                column: over_seeds([scores[column].controls[name] for scores in every])
                | {"interval": every[0][column].control_intervals[name] if len(every) == 1 else [None, None]}
                for column in shown
            }
            found.append({"name": name, "role": every[0][shown[0]].roles[name], "scores": cells})
    return found


def _films(rows: Sequence[RowRuns]) -> list[dict[str, Any]]:
    """SSIM by subject and test film (the paper's Fig. 6), beside what needs no brain; of the first seed."""
    found: list[dict[str, Any]] = []
    for row in rows:
        score = _read_scores(row.run_dirs[min(row.run_dirs)]).get(PIXEL)
        for film, entry in score.films.items() if score is not None else ():
            own = {"film": film, "name": row.variant.name, "label": row.variant.label}
            found.append(own | {key: entry[key] for key in ("value", "interval", "n")})
            for name in ("shuffled", "constant") if row.variant.name == FULL else ():
                value = entry["controls"].get(name)
                found.append({"film": film, "name": name, "label": name, "value": value, "interval": [None, None],
                              "n": entry["n"]})  # fmt: skip
    return sorted((entry for entry in found if entry["value"] is not None), key=lambda entry: entry["film"])


def _seconds(row: RowRuns) -> float:
    """Seconds of the stages that this row's own runs took, without those they share."""
    total = 0.0
    for run_dir in row.run_dirs.values():
        shared = read_note(run_dir / "shared.json")
        for path in run_dir.glob("*/done.json"):
            if path.parent.name not in shared:
                total += json.loads(path.read_text())["seconds"]
    return total


def row_label(entry: Mapping[str, Any]) -> str:
    """``full method (= window of 2 scans, subject 1)``."""
    also = ", ".join(variant["label"] for variant in entry["also"])
    return f"{entry['label']} (= {also})" if also else str(entry["label"])


def cell_text(cell: Mapping[str, Any]) -> str:
    """``.171``, with stars for the class of the corrected P, and the standard deviation over seeds if any."""
    if cell["value"] is None:
        return "–"
    spread = "" if cell["sd"] is None else f" ± {cell['sd']:.3f}"
    marks = CLASSES[cell["p_class"]][1] if cell.get("p_class") else ""
    return f"{cell['value']:.3f}{spread}{marks}"


def write_csv(content: Mapping[str, Any]) -> str:
    """One line per row and score."""
    fields = ("value", "sd", "n", "difference", "p", "p_holm", "p_class", "p_t_test", "design")
    rows: list[list[Any]] = [["row", "label", "score", "low", "high", "difference_low", "difference_high", *fields]]
    for entry in [*content["rows"], *content["references"]]:
        label = row_label(entry) if "also" in entry else entry["role"]
        for name, cell in entry["scores"].items():
            ends = [*cell["interval"], *cell.get("difference_interval", [None, None])]
            rows.append([entry["name"], label, name, *ends, *(cell.get(field) for field in fields)])
    return csv_table(rows)


def write_latex(content: Mapping[str, Any]) -> str:
    """The paper's Table 1: a row per variant, a column per score, cells coloured by class of corrected P."""
    columns = content["columns"]
    arrows = {True: r" $\uparrow$", False: r" $\downarrow$", None: ""}
    head = ["", *(_escape(column["score"]) + arrows[column["higher_is_better"]] for column in columns)]
    lines = [
        r"% needs \usepackage[table]{xcolor}; colours: corrected P against the full method, "
        "purple < .0001, pink < .01, yellow < .05, green > .05",
        rf"\begin{{tabular}}{{l{'c' * len(columns)}}}",
        " & ".join(head) + r" \\",
        r"\hline",
    ]
    for entry in content["rows"]:
        cells = [_latex_cell(entry["scores"][column["score"]]) for column in columns]
        lines.append(" & ".join([_escape(row_label(entry)), *cells]) + r" \\")
    if content["references"]:
        lines.append(r"\hline")
    for entry in content["references"]:
        cells = [_latex_cell(entry["scores"][column["score"]]) for column in columns]
        lines.append(" & ".join([_escape(f"{entry['name']} ({entry['role']})"), *cells]) + r" \\")
    return "\n".join([*lines, r"\end{tabular}", ""])


def _latex_cell(cell: Mapping[str, Any]) -> str:
    text = "--" if cell["value"] is None else f"{cell['value']:.3f}"
    text += "" if cell["sd"] is None else rf"$\pm${cell['sd']:.3f}"
    return rf"\cellcolor[HTML]{{{LATEX_COLOURS[CLASSES[cell['p_class']][0]]}}}{text}" if cell.get("p_class") else text


def _escape(text: str) -> str:
    for letter in "&%_#":
        text = text.replace(letter, "\\" + letter)
    return text
