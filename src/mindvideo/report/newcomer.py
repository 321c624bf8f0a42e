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
from mindvideo.report.trace import Source, cite_interval

FILE = "people.json"
KINDS = {"shared": "train", "scratch": "validation", "ridge": "rival", "none": "train"}
WORDS = {"shared": "others' model, own maps", "scratch": "from scratch", "ridge": "ridge", "none": "no minutes"}


def write_curve_page(folder: Path) -> Path:
    """Write ``FOLDER/index.html`` from ``people.json``; DataError without it."""
    content = read_table(folder / FILE, "people")
    rows = content["rows"]
    source = Source(FILE, content=content)
    first = rows[0]["scores"]
    labels = {name: entry["label"] for name, entry in first.items() if entry["is_main"]}
    of_folder = {row["folder"]: f"{WORDS[row['arm']]}, {row['used_minutes']:g} min" for row in rows}
    about = {
        "title": "A new person from minutes",
        **{name: content[name] for name in ("subject", "others", "is_simulated")},
        "arms": [(WORDS[name], text) for name, text in content["arms"].items()],
        "panels": [{"name": label, "plot": _draw_curves(rows, name, label)} for name, label in labels.items()],
        "heads": list(labels.values()),
        "rows": [_write_row(source.at("rows", i), labels) for i in range(len(rows))],
        "differences": [
            Row(
                f"{of_folder[entry['second']]} − {of_folder[entry['first']]}",
                [
                    Cell(label, cite_difference(source.at("differences", i, "scores", name), "p"))
                    if name in entry["scores"]
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


def _write_row(source: Source, labels: dict[str, str]) -> Row:
    cells = [Cell("minutes", source.cite("used_minutes", form="plain"))]
    for name, label in labels.items():
        place = source.at("scores", name)
        shuffled = place.cite("controls", "shuffled")
        p = place.cite("p_holm", "shuffled", form="p")
        small = Markup("{} shuffled {} {}").format(cite_interval(place), shuffled, p)
        cells.append(Cell(label, cite_value(place), small))
    return Row(WORDS[source.value["arm"]], cells)
