"""Scores as tables: rows of text, CSV, LaTeX, and the files of an evaluation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.clip_sets import ClipSet, clip_set
from mindvideo.evaluate import statistics
from mindvideo.evaluate.score import MAIN, Evaluation, ScoreResult, parse_scores
from mindvideo.files import write_json, write_text

Scores = Mapping[str, ScoreResult]
_LATEX = {
    "\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$", "↑": r"$\uparrow$",
    "↓": r"$\downarrow$", "–": "--", "±": r"$\pm$",
}  # fmt: skip
PLACE_COLUMNS = ("window", "segment", "scan", "scene", "block", "caption")
"""Of ``windows.csv``, before the scores."""
LATEX_COLOURS = {"p<0.0001": "D9C8F2", "p<0.01": "F9CFE0", "p<0.05": "FBF0B8", "p>0.05": "D5EBCF"}
"""The paper's, light enough to print text on."""
DETAILS = (
    "score", "value", "low", "high", "n", "chance", "chance_closed_form", "p_chance", "from_brain", "set", "role",
    "set_value", "set_low", "set_high", "p", "p_holm", "p_holm_class", "unit", "higher_is_better", "definition",
    "used_by", "network",
)  # fmt: skip


def with_arrow(name: str, higher_is_better: bool | None) -> str:
    """A score's name with an arrow in the direction that is better."""
    return name + {True: " ↑", False: " ↓", None: ""}[higher_is_better]


def _own_cells(name: str, score: ScoreResult) -> list[str]:
    low, high = score.interval
    return [
        with_arrow(name, score.higher_is_better),
        write_score(score.value),
        f"{write_score(low)} – {write_score(high)}",
    ]


def table_rows(scores: Scores, sets: Mapping[str, ClipSet] | None = None) -> list[list[str]]:
    """The scores as a table of strings, header first.

    A set's cell shows its value and, where tested, the paper's class of the corrected P.
    """
    roles = {other: entry.roles[other] for entry in scores.values() for other in entry.controls}
    is_tested = {other for entry in scores.values() for other in entry.p_holm}
    notes = {other: f", {each.note}" for other, each in (sets or {}).items() if each.note}
    columns = (
        f"{other} ({role}{notes.get(other, '')}){', P by Holm' * (other in is_tested)}" for other, role in roles.items()
    )
    rows = [["score", "value", "95% interval", "n", "chance", *columns, "truth", "used by"]]
    for name, entry in scores.items():
        row = [*_own_cells(name, entry), str(entry.n), write_score(entry.chance)]
        for other in roles:
            cell = write_score(entry.controls.get(other))
            p = entry.p_holm.get(other)
            row.append(cell if p is None else f"{cell} {statistics.p_class(p)}")
        rows.append([*row, write_score(entry.truth), entry.used_by])
    return rows


def brief_rows(scores: Scores, sets: Mapping[str, ClipSet] | None = None) -> list[list[str]]:
    """What fits a narrow terminal: score, value, interval, chance, two controls with P.

    These are ``shuffled`` and ``mean`` where the scores have them, else the first two.
    """
    controls = dict.fromkeys(
        other for entry in scores.values() for other in entry.controls if entry.roles[other] == "control"
    )
    chosen = [name for name in ("shuffled", "mean") if name in controls] or list(controls)[:2]
    notes = {name: f"P by Holm, {each.note}" for name, each in (sets or {}).items() if each.note}
    heads = [part for name in chosen for part in (name, notes.get(name, "P by Holm"))]
    rows = [["score", "value", "95% interval", "chance", *heads]]
    has_brain = any(entry.from_brain is not None for entry in scores.values())
    rows[0] += ["from the brain"] * has_brain
    for name, entry in scores.items():
        row = [*_own_cells(name, entry), write_score(entry.chance)]
        for other in chosen:
            p = entry.p_holm.get(other)
            row += [write_score(entry.controls.get(other)), "–" if p is None else f"{p:.2g}"]
        rows.append(row + [write_origin(entry)] * has_brain)
    return rows


def write_origin(score: ScoreResult) -> str:
    """`ScoreResult.from_brain` in a cell: ``yes``, ``yes; constant is better``."""
    if not score.from_brain:
        return "–" if score.from_brain is None else "not shown"
    better = score.better_baselines
    return "yes" + (f"; {' and '.join(better)} {'is' if len(better) == 1 else 'are'} better" if better else "")


def detail_rows(scores: Scores) -> list[list[Any]]:
    """Every number, a row for each pair of score and set, header first."""
    rows: list[list[Any]] = [list(DETAILS)]
    for name, entry in scores.items():
        own = [name, entry.value, *entry.interval, entry.n, entry.chance, entry.chance_closed_form]
        own += [entry.p_chance, entry.from_brain]
        words = [entry.unit, entry.higher_is_better, entry.definition, entry.used_by, entry.network]
        sets = dict(entry.controls) | ({"truth": entry.truth} if entry.truth is not None else {})
        for other, value in sets.items():
            corrected = entry.p_holm.get(other)
            p_class = None if corrected is None else statistics.p_class(corrected)
            tested = [entry.p.get(other), corrected, p_class]
            interval = entry.control_intervals.get(other, (None, None))
            rows.append([*own, other, entry.roles.get(other, "truth"), value, *interval, *tested, *words])
        if not sets:
            rows.append([*own, *[None] * 8, *words])
    return rows


def write_score(value: float | None, sd: float | None = None) -> str:
    """Three decimals, with the standard deviation over seeds; a dash without a value."""
    if value is None:
        return "–"
    return f"{value:.3f}" if sd is None else f"{value:.3f} ± {sd:.3f}"


def latex_table(rows: Sequence[Sequence[str]], classes: Mapping[tuple[int, int], str | None] | None = None) -> str:
    """A LaTeX ``tabular`` with booktabs' rules, first row the header.

    ``classes`` gives cells, by row and column, the paper's colour of a class of P.
    """

    def write_cell(i: int, j: int) -> str:
        text = "".join(_LATEX.get(letter, letter) for letter in rows[i][j])
        p_class = (classes or {}).get((i, j))
        return text if p_class is None else rf"\cellcolor[HTML]{{{LATEX_COLOURS[p_class]}}}{text}"

    lines = [" & ".join(write_cell(i, j) for j in range(len(row))) + r" \\" for i, row in enumerate(rows)]
    columns = "l" + "r" * (len(rows[0]) - 1)
    body = [r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"]
    packages = r"% \usepackage{booktabs}" + (r", \usepackage[table]{xcolor}" if classes else "")
    return "\n".join([packages, rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", ""])


def csv_table(rows: Sequence[Sequence[Any]]) -> str:
    """Comma-separated text of rows; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def tidy_rows(
    places: Sequence[str], columns: Sequence[str], entries: Iterable[tuple[Sequence[Any], Mapping[str, Any]]]
) -> list[list[Any]]:
    """A row for each entry, header first; ``low`` and ``high`` end its interval."""
    rows: list[list[Any]] = [[*places, *columns]]
    for place, entry in entries:
        ends = dict(zip(("low", "high"), entry.get("interval") or (None, None), strict=True))
        rows.append([*place, *(ends.get(name, entry.get(name)) for name in columns)])
    return rows


def write_tables(
    path: Path,
    content: Any,
    rows: Sequence[Sequence[Any]],
    latex: Sequence[Sequence[str]] | None = None,
    **options: Any,
) -> None:
    """Write ``PATH.csv``, ``PATH.tex`` if there are rows for it, and ``PATH.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path.with_suffix(".csv"), csv_table(rows))
    if latex is not None:
        write_text(path.with_suffix(".tex"), latex_table(latex, **options))
    write_json(path.with_suffix(".json"), content)


def window_rows(evaluation: Evaluation, windows: Sequence[Mapping[str, Any]], block: np.ndarray) -> list[list[Any]]:
    """A row per window: ``score`` of the reconstruction, ``score:set`` of the others."""
    columns = [(name, key) for name, sets in evaluation.windows.items() for key in sets]
    names = [name if key == MAIN else f"{name}:{key}" for name, key in columns]
    rows: list[list[Any]] = [[*PLACE_COLUMNS, *names]]
    for i, window in enumerate(windows):
        values = [evaluation.windows[name][key][i] for name, key in columns]
        place = [i, window["segment"], window["scan"], window["scene"], int(block[i]), window.get("caption", "")]
        rows.append([*place, *("" if not np.isfinite(value) else repr(float(value)) for value in values)])
    return rows


def read_windows(path: Path) -> tuple[list[dict[str, str]], dict[str, dict[str, np.ndarray]]]:
    """The rows of ``windows.csv``, and values by score and set, float64 (n,), NaN for none."""
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    values: dict[str, dict[str, np.ndarray]] = {}
    for column in rows[0]:
        if column not in PLACE_COLUMNS:
            name, _, key = column.partition(":")
            values.setdefault(name, {})[key or MAIN] = np.array([float(row[column] or "nan") for row in rows])
    return rows, values


def write_evaluation(
    evaluation: Evaluation,
    folder: Path,
    windows: Sequence[Mapping[str, Any]],
    block: np.ndarray,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write the files of an evaluation into ``folder``, ``scores.json`` last."""
    folder.mkdir(parents=True, exist_ok=True)
    about = dict(about or {})
    names = dict.fromkeys(other for entry in evaluation.scores.values() for other in entry.controls)
    sets = {name: clip_set(name, about.get("negative", "none")) for name in names}
    details = {
        "truth": evaluation.truth,
        "networks": evaluation.networks,
        "smallest_p": evaluation.smallest_p,
        **about,
        "sets": {name: asdict(each) for name, each in sets.items()},
        "left_out": {**about.get("left_out", {}), **evaluation.left_out},
    }
    entries = {name: entry.to_json() for name, entry in evaluation.scores.items()}
    write_text(folder / "windows.csv", csv_table(window_rows(evaluation, windows, block)))
    write_json(folder / "evaluation.json", details)
    write_tables(folder / "scores", entries, detail_rows(evaluation.scores), table_rows(evaluation.scores, sets))


def read_scores(path: Path) -> dict[str, ScoreResult]:
    """`parse_scores` of a file."""
    return parse_scores(json.loads(path.read_text()))


def group_reasons(left_out: Mapping[str, str]) -> dict[str, list[str]]:
    """What was left out by its reason, so that each reason is said once."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return reasons
