"""Runs and rival methods side by side, every two tested against each other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from markupsafe import Markup

from mindvideo.evaluate.compare import compare_all, smallest_p_holm
from mindvideo.evaluate.score import LEVEL, ScoreResult
from mindvideo.evaluate.tables import csv_table, tidy_rows
from mindvideo.report.cells import Cell, Row, cite_difference
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, cite_interval, count_of
from mindvideo.report.verdict import count_shown, list_aspects, list_known_ways, list_tested, write_title

SHOWN = 6
"""Scores drawn in view; the others' plots are folded."""
COLUMNS = ("first", "second", "difference", "low", "high", "n", "p", "p_holm", "p_holm_class", "better", "design")


@dataclass(frozen=True)
class Column:
    """A run, its name and index on the page, and its folder within that run's."""

    label: str
    run: Run
    index: int | None = None
    folder: str = ""

    def source(self, *key: str, derived: str = "") -> Source:
        """Where a score of this column lies, or what was worked out from its scores."""
        return Source(f"{self.folder}evaluate/scores.json", key, derived, self.index, self.run.scores)

    def score(self, name: str, label: str) -> ScoreResult | None:
        """One name may stand for several scores (top-1 of 40, of 120)."""
        score = self.run.scores.get(name)
        return score if score is not None and score.label == label else None


def list_rivals(run: Run, index: int | None = None) -> list[Column]:
    """A run and the rival methods that were run beside it; empty where none was scored."""
    rivals = [
        Column(rival.path.name, rival, index, f"baselines/{rival.path.name}/")
        for rival in run.baselines
        if rival.scores
    ]
    return [Column("this study", run, index), *rivals] if rivals and run.scores else []


def measure_differences(columns: Sequence[Column]) -> dict[str, Any]:
    """`mindvideo.evaluate.compare.compare_all` of the columns."""
    return compare_all({column.label: [column.run.path] for column in columns})


def describe_runs(columns: Sequence[Column]) -> list[dict[str, Any]]:
    """Each run's headline, scores from the brain, way to the caption, windows."""
    rows = []
    for each in columns:
        aspects = list_aspects(each.run)
        tested = list_tested(each.run)
        row: dict[str, Any] = {"label": each.label, "title": "Not tested against shuffled brain activity."}
        row |= {"shown": "–", "way": "–", "n": "–"}
        if tested:
            row["title"] = write_title(each.run, aspects)
            row["shown"] = Markup("{} of {}").format(*count_shown(tested, each.source()))
        if ways := list_known_ways(tested):
            source = each.source(derived="median way to caption")
            row["way"] = cite(median(ways), source, "percent")
        if n := max((score.n or 0 for score in each.run.scores.values()), default=0):
            row["n"] = cite(n, each.source(derived="windows scored"), text=str(n))
        rows.append(row)
    return rows


def _each(found: dict[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    for first, others in found["pairs"].items():
        for second, scores in others.items():
            for name, entry in scores.items():
                yield first, second, name, entry


def write_differences(found: dict[str, Any]) -> str:
    """Every tested difference as CSV, second minus first."""
    entries = ((place, entry) for *place, entry in _each(found))
    return csv_table(tidy_rows(("first_method", "second_method", "score"), COLUMNS, entries))


def tabulate(columns: Sequence[Column], found: dict[str, Any], file: str) -> dict[str, Any] | None:
    """Table of the scores that two columns or more have, with differences."""
    counts = Counter((name, score.label) for column in columns for name, score in column.run.scores.items())
    common = [key for key in counts if counts[key] > 1]
    if not common:
        return None
    rows, panels = [], []
    for name, label in common:
        scores = [(column, column.score(name, label)) for column in columns]
        rows.append(Row(label, [_write_cell(columns[0], each, score, found, file) for each, score in scores]))
        panels.append({"name": label, "plot": _draw(label, scores, rows[-1].cells)})
    smallest = smallest_p_holm([scores for others in found["pairs"].values() for scores in others.values()])
    return {
        "labels": [column.label for column in columns], "wins": _count_wins(columns, found, file), "rows": rows,
        "panels": [panel for panel in panels if panel["plot"]], "shown": SHOWN,
        "alone": sorted(label for (_, label), n in counts.items() if n == 1),
        "has_shuffled": any("shuffled" in score.controls for each in columns for score in each.run.scores.values()),
        "designs": sorted({entry["design"] for *_, entry in _each(found)}),
        "untested": [f"{label}: {why}" for label, why in found["untested"].items()],
        "smallest": smallest is not None and smallest >= LEVEL, "costs": _list_costs(columns),
    }  # fmt: skip


def _write_cell(first: Column, column: Column, score: ScoreResult | None, found: dict[str, Any], file: str) -> Cell:
    if score is None:
        return Cell(column.label, "–")
    source, kind = column.source(score.name), ""
    small = cite_interval(source)
    tested = found["pairs"].get(first.label, {}).get(column.label, {}).get(score.name)
    place = Source(file, ("pairs", first.label, column.label, score.name), content=found)
    if tested and (difference := cite_difference(place)):
        small += Markup("<br>") + difference
        if tested["better"] and tested["p_holm"] < LEVEL:
            kind = "better" if tested["better"] == "second" else "worse"
    return Cell(column.label, source.cite("value"), small, kind)


def _draw(label: str, scores: Sequence[tuple[Column, ScoreResult | None]], cells: Sequence[Cell]) -> Markup:
    """One score of every column; the tick is its value with shuffled brain activity."""
    dots = []
    for place, ((column, score), cell) in enumerate(zip(scores, cells, strict=True)):
        if score is not None:
            kind = "floor" if not place else "main" if cell.kind else "open"
            source = column.source(score.name, "value")
            shuffled = score.controls.get("shuffled")
            dots.append(Dot(column.label, score.value, score.interval, kind, source, shuffled))
    return draw_dots(label, dots)


def _count_wins(columns: Sequence[Column], found: dict[str, Any], file: str) -> list[dict[str, Any]]:
    pairs, rows = found["pairs"], []
    for row in (column.label for column in columns):
        cells: list[dict[str, Any]] = []
        for column in (column.label for column in columns):
            side = "first" if column in pairs.get(row, {}) else "second"
            scores = pairs.get(row, {}).get(column) or pairs.get(column, {}).get(row) or {}
            tested = [entry for entry in scores.values() if entry["p_holm"] is not None]
            better = [entry for entry in tested if entry["better"] == side and entry["p_holm"] < LEVEL]
            n_better = count_of(len(better), file, f"{row} better than {column}")
            text = Markup("{} of {}").format(n_better, len(tested)) if tested else "–"
            cells.append({"label": f"better than {column}", "text": text, "won": bool(better)})
        rows.append({"label": row, "cells": cells})
    return rows


def _list_costs(columns: Sequence[Column]) -> list[Row]:
    file = "baselines/table.json"
    path = columns[0].run.path / file
    if not any(column.folder for column in columns) or not path.is_file():
        return []
    content = {row["method"]: (place, row) for place, row in enumerate(json.loads(path.read_text()))}
    rows = []
    for name, key, form in (("time", "seconds", "seconds"), ("peak memory", "peak_memory_bytes", "bytes")):
        cells = []
        for column in columns:
            place, row = content.get(column.label if column.folder else "mindvideo", (0, {}))
            source = Source(file, (str(place), key), run=column.index)
            cells.append(Cell(column.label, cite(row.get(key), source, form)))
        rows.append(Row(name, cells, "cost"))
    return rows
