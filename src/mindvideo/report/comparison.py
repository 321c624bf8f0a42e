"""Runs and rival methods side by side: a column for each, every two tested against each other where they can be."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Any

from markupsafe import Markup

from mindvideo.errors import DataError
from mindvideo.evaluate.contrast import compare_runs, read_window_scores, smallest_p_holm
from mindvideo.evaluate.score import LEVEL, ScoreResult, finite
from mindvideo.evaluate.tables import csv_table
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, cite_interval, count_of
from mindvideo.report.verdict import count_shown, list_aspects, list_known_ways, list_tested, write_title
from mindvideo.report.wording import write_number, write_percent

SHOWN = 6
"""Scores drawn in view; the others' plots are folded."""
COLUMNS = ("first", "second", "difference", "low", "high", "n", "p", "p_holm", "p_holm_class", "better", "design")


@dataclass(frozen=True)
class Entrant:
    """One column: a run, its name and index on the page, and its folder within that run's."""

    label: str
    run: Run
    index: int | None = None
    folder: str = ""

    def source(self, *key: str, derived: str = "") -> Source:
        """Where a score of this entrant lies, or what was worked out from its scores."""
        return Source(f"{self.folder}evaluate/scores.json", key, derived, self.index)

    def score(self, name: str, label: str) -> ScoreResult | None:
        """The score of this name and label; one name may stand for several (top-1 of 40, of 120)."""
        score = self.run.scores.get(name)
        return score if score is not None and score.label == label else None


def list_rivals(run: Run, index: int | None = None) -> list[Entrant]:
    """A run and the rival methods that were run beside it; empty where none was scored."""
    rivals = [
        Entrant(rival.path.name, rival, index, f"baselines/{rival.path.name}/")
        for rival in run.baselines
        if rival.scores
    ]
    return [Entrant("this study", run, index), *rivals] if rivals and run.scores else []


def measure_differences(entrants: Sequence[Entrant]) -> dict[str, Any]:
    """Every two entrants, score by score: ``pairs[first][second]`` of `compare_runs`; ``untested`` says why not."""
    found: dict[str, Any] = {"pairs": {}, "untested": {}}
    read = []
    for entrant in entrants:
        try:
            read.append(read_window_scores(entrant.run.path, entrant.label))
        except DataError as error:
            found["untested"][entrant.label] = str(error)
    for first, second in combinations(read, 2):
        names = f"{first.name} and {second.name}"
        try:
            scores = found["pairs"].setdefault(first.name, {})[second.name] = compare_runs(first, second)
        except DataError as error:
            found["untested"][names] = str(error)
            continue
        n_other = len(first.values.keys() & second.values.keys()) - len(scores)
        if n_other:
            found["untested"][names] = (
                f"{n_other} of their scores are of another definition or were measured by other networks; evaluate both "
                "with the same settings and one foundation"
            )
    return found


def describe_runs(entrants: Sequence[Entrant]) -> list[dict[str, Any]]:
    """What each run says of itself: its headline, scores from the brain, median way to the caption, test windows."""
    rows = []
    for each in entrants:
        aspects, tested = list_aspects(each.run), list_tested(each.run)
        row: dict[str, Any] = {"label": each.label, "title": "Not tested against shuffled brain activity."}
        row |= {"shown": "–", "way": "–", "n": "–"}
        if tested:
            row["title"] = write_title(each.run, aspects)
            row["shown"] = Markup("{} of {}").format(*count_shown(tested, each.source()))
        if ways := list_known_ways(tested):
            source = each.source(derived="median way to caption")
            row["way"] = cite(median(ways), source, text=write_percent(median(ways)))
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
    rows: list[list[Any]] = [["first_method", "second_method", "score", *COLUMNS]]
    for first, second, name, entry in _each(found):
        ends = dict(zip(("low", "high"), entry["interval"], strict=True))
        cells = [ends.get(key, entry.get(key)) for key in COLUMNS]
        rows.append([first, second, name, *("" if cell is None else cell for cell in cells)])
    return csv_table(rows)


def tabulate(entrants: Sequence[Entrant], found: dict[str, Any], file: str) -> dict[str, Any] | None:
    """Table of the scores that at least two entrants have, with differences from the first; None without such a score.

    ``found`` is what `measure_differences` gave; ``file``, beside the page, holds it.
    """
    counts = Counter((name, score.label) for entrant in entrants for name, score in entrant.run.scores.items())
    common = [key for key in counts if counts[key] > 1]
    if not common:
        return None
    rows = []
    for name, label in common:
        scores = [(entrant, entrant.score(name, label)) for entrant in entrants]
        cells = [{"label": each.label} | _cell(entrants[0], each, score, found, file) for each, score in scores]
        rows.append({"name": label, "cells": cells, "plot": _draw(label, scores, cells)})
    smallest = smallest_p_holm([scores for others in found["pairs"].values() for scores in others.values()])
    return {
        "labels": [entrant.label for entrant in entrants], "wins": _count_wins(entrants, found, file), "rows": rows,
        "panels": [row for row in rows if row["plot"]], "shown": SHOWN,
        "alone": sorted(label for (_, label), n in counts.items() if n == 1),
        "has_shuffled": any("shuffled" in score.controls for each in entrants for score in each.run.scores.values()),
        "designs": sorted({entry["design"] for *_, entry in _each(found)}),
        "untested": [f"{label}: {why}" for label, why in found["untested"].items()],
        "smallest": smallest is not None and smallest >= LEVEL, "costs": _costs(entrants),
    }  # fmt: skip


def _draw(label: str, scores: Sequence[tuple[Entrant, ScoreResult | None]], cells: list[dict[str, Any]]) -> Markup:
    """One score of every entrant, with its interval and, as a tick, its value with shuffled brain activity."""
    dots = []
    for place, ((entrant, score), cell) in enumerate(zip(scores, cells, strict=True)):
        if score is not None:
            kind = "floor" if not place else "main" if cell["better"] else "open"
            source = entrant.source(score.name, "value")
            dots.append(
                Dot(entrant.label, score.value, score.interval, kind, source, mark=score.controls.get("shuffled"))
            )
    text = ", ".join(f"{dot.label} {write_number(dot.value)}" for dot in dots)
    return draw_dots(f"{label}: {text}", dots)


def _count_wins(entrants: Sequence[Entrant], found: dict[str, Any], file: str) -> list[dict[str, Any]]:
    """A row for each method: by how many of the tested scores it is better than each other one."""
    rows = []
    for row in entrants:
        cells: list[dict[str, Any]] = []
        for column in entrants:
            pair = [found["pairs"].get(a.label, {}).get(b.label) for a, b in ((row, column), (column, row))]
            scores = pair[0] or pair[1] or {}
            side = "first" if pair[0] else "second"
            tested = [entry for entry in scores.values() if entry["p_holm"] is not None]
            better = [entry for entry in tested if entry["better"] == side and entry["p_holm"] < LEVEL]
            text: Markup | str = "–"
            if tested:
                text = Markup("{} of {}").format(
                    count_of(len(better), file, f"{row.label} better than {column.label}"), len(tested)
                )
            cells.append({"label": f"better than {column.label}", "text": text, "won": bool(better)})
        rows.append({"label": row.label, "cells": cells})
    return rows


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


def _cell(
    first: Entrant, entrant: Entrant, score: ScoreResult | None, found: dict[str, Any], file: str
) -> dict[str, Any]:
    if score is None:
        return {"value": "–", "interval": "", "difference": "", "better": ""}
    source = entrant.source(score.name)
    tested = found["pairs"].get(first.label, {}).get(entrant.label, {}).get(score.name)
    difference: Markup | str = ""
    better = ""
    if tested and finite(tested["difference"]) is not None:
        place = Source(file, ("pairs", first.label, entrant.label, score.name))
        difference = cite(tested["difference"], place.at("difference"), "signed") + Markup(" ")
        difference += cite_interval(tested["interval"], place.at("interval"))
        if tested["p_holm"] is not None:
            difference += Markup(", ") + cite(tested["p_holm"], place.at("p_holm"), "p")
            better = str(tested["better"] or "") if tested["p_holm"] < LEVEL else ""
    return {
        "value": cite(score.value, source.at("value")),
        "interval": cite_interval(score.interval, source.at("interval")),
        "difference": difference,
        "better": better,
    }
