"""The page of ``mindvideo people``: scores against a new person's minutes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mindvideo.files import write_text
from mindvideo.report.cells import Cell, Row, cite_difference, cite_value
from mindvideo.report.page import render
from mindvideo.report.plots import Curve, draw_curves
from mindvideo.report.read import read_table
from mindvideo.report.trace import Source, cite, cite_interval

FILE = "people.json"
KINDS = {"shared": "train", "scratch": "validation", "ridge": "rival", "none": "train"}
WORDS = {"shared": "others' model, own maps", "scratch": "from scratch", "ridge": "ridge", "none": "no minutes"}


def write_curve_page(folder: Path) -> Path:
    """Write ``FOLDER/index.html`` from ``people.json``; DataError without it."""
    content = read_table(folder / FILE, "people")
    rows = content["rows"]
    first = rows[0]["scores"]
    labels = {name: entry["label"] for name, entry in first.items() if entry["is_main"]}
    of_folder = {row["folder"]: f"{WORDS[row['arm']]}, {row['used_minutes']:g} min" for row in rows}
    about = {
        "title": "A new person from minutes",
        **{name: content[name] for name in ("subject", "others", "is_simulated")},
        "arms": [(WORDS[name], text) for name, text in content["arms"].items()],
        "panels": [{"name": label, "plot": _draw_curves(rows, name, label)} for name, label in labels.items()],
        "heads": list(labels.values()),
        "rows": [_write_row(row, Source(FILE, ("rows", str(i))), labels) for i, row in enumerate(rows)],
        "differences": [
            Row(
                f"{of_folder[entry['second']]} − {of_folder[entry['first']]}",
                [
                    Cell(label, cite_difference(found, Source(FILE, ("differences", str(i), "scores", name)), "p"))
                    if (found := entry["scores"].get(name))
                    else Cell(label, "")
                    for name, label in labels.items()
                ],
            )
            for i, entry in enumerate(content["differences"])
        ],
    }
    write_text(folder / "index.html", render("people.html", about))
    return folder / "index.html"


def _draw_curves(rows: list[dict[str, Any]], name: str, label: str) -> Markup:
    def points(arm: str, read: Callable[[dict[str, Any]], float | None]) -> list[tuple[float, float]]:
        found = [(float(row["used_minutes"]), read(row["scores"][name])) for row in rows if row["arm"] == arm]
        return [(x, y) for x, y in found if y is not None]

    curves = [Curve(words, points(arm, lambda score: score["value"]), KINDS[arm]) for arm, words in WORDS.items()]
    curves.append(Curve("shuffled", points("shared", lambda score: score["controls"].get("shuffled")), "reference"))
    return draw_curves(f"{label} over minutes", [curve for curve in curves if curve.points])


def _write_row(row: dict[str, Any], source: Source, labels: dict[str, str]) -> Row:
    cells = [Cell("minutes", cite(row["used_minutes"], source.at("used_minutes"), "plain"))]
    for name, label in labels.items():
        entry, place = row["scores"][name], source.at("scores", name)
        small = Markup("{} shuffled {} {}").format(
            cite_interval(entry["interval"], place.at("interval")),
            cite(entry["controls"].get("shuffled"), place.at("controls", "shuffled")),
            cite(entry["p_holm"].get("shuffled"), place.at("p_holm", "shuffled"), "p"),
        )
        cells.append(Cell(label, cite_value(entry, place), small))
    return Row(WORDS[row["arm"]], cells)
