"""The page of ``mindvideo people``: scores against minutes of a new person, from ``people.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mindvideo.data.disk import write_text
from mindvideo.errors import DataError
from mindvideo.report.page import render
from mindvideo.report.plots import Curve, draw_curves
from mindvideo.report.trace import Source, cite, cite_interval
from mindvideo.report.wording import write_number

FILE = "people.json"
KINDS = {"shared": "train", "scratch": "validation", "ridge": "rival", "none": "train"}
WORDS = {"shared": "others' model, own maps", "scratch": "from scratch", "ridge": "ridge", "none": "no minutes"}


def write_curve_page(folder: Path) -> Path:
    """Write ``FOLDER/index.html``: a figure and a table of the main scores, every number with its source.

    Raises
    ------
    DataError
        Where there is no ``people.json`` of a known version.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        content = {}
    if (content.get("format"), content.get("version")) != ("mindvideo-people", 1):
        raise DataError(f"expected version 1 of {FILE} in {folder}, found none; make it with 'mindvideo people'")
    rows = content["rows"]
    first = rows[0]["scores"]
    names = [name for name, entry in first.items() if entry["is_main"]] or list(first)
    of_folder = {row["folder"]: f"{WORDS[row['arm']]}, {row['used_minutes']:g} min" for row in rows}
    about = {
        "title": "A new person from minutes",
        **{name: content[name] for name in ("subject", "others", "is_simulated")},
        "arms": [(WORDS[name], text) for name, text in content["arms"].items()],
        "panels": [{"name": first[name]["label"], "plot": _panel(rows, name, first[name]["label"])} for name in names],
        "heads": [first[name]["label"] for name in names],
        "rows": [_row(row, i, names) for i, row in enumerate(rows)],
        "differences": [_difference(entry, i, names, of_folder) for i, entry in enumerate(content["differences"])],
    }
    write_text(folder / "index.html", render("people.html", about))
    return folder / "index.html"


def _minutes(row: dict[str, Any]) -> float:
    return float(row["used_minutes"])


def _panel(rows: list[dict[str, Any]], name: str, label: str) -> Markup:
    """One score of every arm over minutes; without minutes a dot; the shuffled control of the others' model is dotted."""
    curves = []
    for arm in WORDS:
        points = [(_minutes(row), row["scores"][name]["value"]) for row in rows if row["arm"] == arm]
        known = [(x, y) for x, y in points if y is not None]
        if known:
            curves.append(Curve(WORDS[arm], known, KINDS[arm]))
    shuffled = [
        (_minutes(row), row["scores"][name]["controls"].get("shuffled")) for row in rows if row["arm"] == "shared"
    ]
    known = [(x, y) for x, y in shuffled if y is not None]
    if known:
        curves.append(Curve("shuffled", known, "reference"))
    text = "; ".join(f"{each.label} {', '.join(write_number(y) for _, y in each.points)}" for each in curves)
    return draw_curves(f"{label} over minutes: {text}", curves)


def _row(row: dict[str, Any], number: int, names: list[str]) -> dict[str, Any]:
    source = Source(FILE, ("rows", str(number)))
    cells = []
    for name in names:
        entry, place = row["scores"][name], source.at("scores", name)
        cells.append(
            {
                "value": cite(entry["value"], place.at("value")),
                "interval": cite_interval(tuple(entry["interval"]), place.at("interval")),
                "shuffled": cite(entry["controls"].get("shuffled"), place.at("controls", "shuffled")),
                "p": cite(entry["p_holm"].get("shuffled"), place.at("p_holm", "shuffled"), "p"),
            }
        )
    minutes = cite(row["used_minutes"], source.at("used_minutes"), "plain")
    return {"arm": WORDS[row["arm"]], "minutes": minutes, "cells": cells}


def _difference(entry: dict[str, Any], number: int, names: list[str], of_folder: dict[str, str]) -> dict[str, Any]:
    source = Source(FILE, ("differences", str(number)))
    cells = []
    for name in names:
        found, place = entry["scores"].get(name), source.at("scores", name)
        if found is None:
            cells.append({"difference": "", "interval": "", "p": ""})
            continue
        cells.append(
            {
                "difference": cite(found["difference"], place.at("difference"), "signed"),
                "interval": cite_interval(tuple(found["interval"]), place.at("interval")),
                "p": cite(found["p"], place.at("p"), "p"),
            }
        )
    return {"name": f"{of_folder[entry['second']]} − {of_folder[entry['first']]}", "cells": cells}
