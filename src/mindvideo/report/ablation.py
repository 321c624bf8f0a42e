"""The ablation's part of the page: the paper's Table 1 and Fig. 6."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mindvideo.clip_sets import clip_set
from mindvideo.report.cells import Cell, Row, cite_value
from mindvideo.report.page import render
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import read_table
from mindvideo.report.trace import Source, cite, cite_interval, count_of
from mindvideo.report.wording import CLASSES, write_interval, write_number, write_p


def ablation_section(folder: Path) -> str:
    """``FOLDER/ablation.json`` as an HTML fragment; DataError without it."""
    content = read_table(folder / "ablation.json", "ablate")
    source, columns = Source(f"{folder.resolve().name}/ablation.json"), content["columns"]
    rows = [_write_row(entry, columns, source.at("rows", i)) for i, entry in enumerate(content["rows"])]
    rows += [_write_row(entry, columns, source.at("references", i)) for i, entry in enumerate(content["references"])]
    head = Markup('<span title="{}">{}<small>chance {}</small></span>')
    heads = [
        head.format(column["definition"], column["label"], cite(column["chance"], source.at("columns", i, "chance")))
        for i, column in enumerate(columns)
    ]
    n_windows: Markup | str = "no"
    if columns:
        steps = ("rows", 0, "scores", columns[0]["score"], "n")
        n_windows = cite(content["rows"][0]["scores"][columns[0]["score"]]["n"], source.at(*steps), "count")
    about = {name: content[name] for name in ("recipe", "correction", "is_simulated")}
    about |= {"file": source.file, "n_windows": n_windows, "heads": ["Method", *heads], "rows": rows}
    about |= {"n_seeds": len(content["seeds"]), "seeds": count_of(len(content["seeds"]), source.file, "seeds")}
    about |= {
        "classes": CLASSES.values(),
        "films": _draw_films(content["films"], source.at("films")),
        "smallest_p": None,
    }
    if content["smallest_p"] is not None:
        about["smallest_p"] = cite(content["smallest_p"], source.at("smallest_p"), "short")
    return render("ablation.html", about)


def _write_row(entry: Mapping[str, Any], columns: list[dict[str, Any]], source: Source) -> Row:
    cells = [
        _write_cell(column["label"], entry["scores"][column["score"]], source.at("scores", column["score"]))
        for column in columns
    ]
    if "role" in entry:
        return Row(f"{clip_set(entry['name']).label} ({entry['role']})", cells, "reference")
    name = Markup("{}").format(entry["label"])
    if entry["also"]:
        name += Markup("<small>also: {}</small>").format(", ".join(variant["label"] for variant in entry["also"]))
    if entry["changes"]:
        changes = ", ".join(
            f"{key} = {str(v).lower() if isinstance(v, bool) else v}" for key, v in entry["changes"].items()
        )
        name += Markup('<small class="settings">{}</small>').format(changes)
    if entry["seconds"]:
        name += Markup("<small>own stages {}</small>").format(cite(entry["seconds"], source.at("seconds"), "seconds"))
    return Row(name, cells)


def _write_cell(label: str, cell: Mapping[str, Any], source: Source) -> Cell:
    text, small = cite_value(cell, source), cite_interval(cell["interval"], source.at("interval"))
    if not cell.get("p_class"):
        return Cell(label, text, small)
    colour, marks, words = CLASSES[cell["p_class"]]
    title = (
        f"{words} corrected ({write_p(cell['p_holm'])}; uncorrected {write_p(cell['p'])}); difference "
        f"{write_number(cell['difference'])} {write_interval(cell['difference_interval'])}"
    )
    return Cell(label, text + marks, small, f"p-class {colour}", title.strip())


def _draw_films(films: list[dict[str, Any]], source: Source) -> list[dict[str, Any]]:
    panels: dict[str, list[Dot]] = {}
    for i, entry in enumerate(films):
        is_floor = entry["name"] in ("shuffled", "constant")
        label = clip_set(entry["label"]).label if is_floor else entry["label"]
        dot = Dot(label, entry["value"], entry["interval"], "floor" if is_floor else "main", source.at(i, "value"))
        panels.setdefault(entry["film"], []).append(dot)
    return [{"name": film, "plot": draw_dots(f"SSIM on test film {film}", dots)} for film, dots in panels.items()]
