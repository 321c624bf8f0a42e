"""Runs and rival methods side by side: one table, a column for each, differences from the first tested where they can be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mindvideo.errors import DataError
from mindvideo.evaluate.contrast import compare_runs, read_window_scores
from mindvideo.evaluate.score import ScoreResult, finite
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, cite_interval


@dataclass(frozen=True)
class Entrant:
    """One column: a run, its name on the page, its number there, and its folder within that run's."""

    label: str
    run: Run
    index: int | None = None
    folder: str = ""

    def source(self, score: ScoreResult) -> Source:
        """Where a score of this entrant lies."""
        return Source(f"{self.folder}evaluate/scores.json", (score.name,), run=self.index)


def list_rivals(run: Run, index: int | None = None) -> list[Entrant]:
    """A run and the rival methods that were run beside it; empty where none was scored."""
    rivals = [
        Entrant(rival.path.name, rival, index, f"baselines/{rival.path.name}/")
        for rival in run.baselines
        if rival.scores
    ]
    return [Entrant("this study", run, index), *rivals] if rivals and run.scores else []


def measure_differences(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """Every entrant against the first, score by score; ``untested`` says why where that cannot be done."""
    found: dict[str, Any] = {"first": entrants[0].label, "others": {}, "untested": {}}
    for entrant in entrants[1:]:
        try:
            first, second = (read_window_scores(item.run.path, item.label) for item in (entrants[0], entrant))
            found["others"][entrant.label] = compare_runs(first, second)
        except DataError as error:
            found["untested"][entrant.label] = str(error)
    return found


def tabulate(entrants: Sequence[Entrant], found: dict[str, Any], file: str) -> dict[str, Any] | None:
    """Table and plots of the scores at least two entrants have.

    Parameters
    ----------
    entrants : sequence of Entrant
        The first is what the others are compared with.
    found : dict
        From `measure_differences`.
    file : str
        The file beside the page that holds ``found``.

    Returns
    -------
    dict or None
        ``labels``, ``rows``, ``panels``, ``designs`` and ``untested``; None when no score is common.
    """
    counts = Counter(name for entrant in entrants for name in entrant.run.scores)
    names = [name for name in counts if counts[name] > 1]
    if not names:
        return None
    rows, panels = [], []
    for name in names:
        cells, dots = [], []
        for entrant in entrants:
            score = entrant.run.scores.get(name)
            cells.append({"label": entrant.label} | _cell(entrant, score, found, file))
            if score is not None:
                source = entrant.source(score)
                dots.append(Dot(entrant.label, score.value, score.interval, "main", source.at("value")))
                place = source.at("controls", "shuffled")
                dots.append(Dot("· shuffled brain", score.controls.get("shuffled"), kind="floor", source=place))
        label = next(entrant.run.scores[name].label for entrant in entrants if name in entrant.run.scores)
        rows.append({"name": label, "cells": cells})
        panels.append({"name": label, "plot": draw_dots(f"{label}, side by side", dots)})
    designs = {entry["design"] for scores in found["others"].values() for entry in scores.values()}
    untested = [f"{label}: {why}" for label, why in found["untested"].items()]
    labels = [entrant.label for entrant in entrants]
    return {
        "labels": labels, "rows": rows, "panels": panels, "designs": sorted(designs), "untested": untested,
        "costs": _costs(entrants),
    }  # fmt: skip


def _costs(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """Seconds and peak memory of a study and the rivals run beside it, from ``baselines/table.json``; else nothing."""
    file = "baselines/table.json"
    path = entrants[0].run.path / file
    if not any(entrant.folder for entrant in entrants) or not path.is_file():
        return []
    content = {row["method"]: (place, row) for place, row in enumerate(json.loads(path.read_text()))}
    rows = []
    for name, key, form in (("time", "seconds", "seconds"), ("peak memory", "peak_memory_bytes", "bytes")):
        cells = []
        for entrant in entrants:
            place, row = content.get(entrant.label if entrant.folder else "mindvideo", (0, {}))
            source = Source(file, (str(place), key), run=entrant.index)
            cells.append({"label": entrant.label, "value": cite(row.get(key), source, form)})
        rows.append({"name": name, "cells": cells})
    return rows


def _cell(entrant: Entrant, score: ScoreResult | None, found: dict[str, Any], file: str) -> dict[str, Any]:
    if score is None:
        return {"value": "–", "interval": "", "difference": "", "better": ""}
    source = entrant.source(score)
    tested = found["others"].get(entrant.label, {}).get(score.name)
    difference: Markup | str = ""
    better = ""
    if tested and finite(tested["difference"]) is not None:
        place = Source(file, ("others", entrant.label, score.name))
        difference = cite(tested["difference"], place.at("difference"), "signed")
        if tested["p_holm"] is not None:
            difference += Markup(", ") + cite(tested["p_holm"], place.at("p_holm"), "p")
            better = str(tested["better"] or "") if tested["p_holm"] < 0.05 else ""
    return {
        "value": cite(score.value, source.at("value")),
        "interval": cite_interval(score.interval, source.at("interval")),
        "difference": difference,
        "better": better,
    }
