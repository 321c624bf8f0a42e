"""The ablation's part of the page: the paper's Table 1 and Fig. 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from mindvideo.clip_sets import clip_set
from mindvideo.report.cells import Cell, Row, cite_value
from mindvideo.report.page import render
from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import read_table
from mindvideo.report.trace import Source, cite_interval, count_of
from mindvideo.report.wording import CLASSES, write_interval, write_number, write_p


def ablation_section(folder: Path) -> str:
    """``FOLDER/ablation.json`` as an HTML fragment; DataError without it."""
    content = read_table(folder / "ablation.json", "ablate")
    source = Source(f"{folder.resolve().name}/ablation.json", content=content)
    columns = content["columns"]
    kinds = ("rows", "references")
    rows = [_write_row(source.at(kind, i), columns) for kind in kinds for i in range(len(content[kind]))]
    head = Markup('<span title="{}">{}<small>chance {}</small></span>')
    heads = [
        head.format(column["definition"], column["label"], source.cite("columns", i, "chance"))
        for i, column in enumerate(columns)
    ]
    n_windows: Markup | str = "no"
    if columns:
        n_windows = source.cite("rows", 0, "scores", columns[0]["score"], "n", form="count")
    about = {name: content[name] for name in ("recipe", "correction", "is_simulated")}
    about |= {"file": source.file, "n_windows": n_windows, "heads": ["Method", *heads], "rows": rows}
    about |= {"n_seeds": len(content["seeds"]), "seeds": count_of(len(content["seeds"]), source.file, "seeds")}
    about |= {"classes": CLASSES.values(), "films": _draw_films(source.at("films")), "smallest_p": None}
    if content["smallest_p"] is not None:
        about["smallest_p"] = source.cite("smallest_p", form="short")
    return render("ablation.html", about)


def _write_row(source: Source, columns: list[dict[str, Any]]) -> Row:
    entry = source.value
    cells = [_write_cell(column["label"], source.at("scores", column["score"])) for column in columns]
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
        name += Markup("<small>own stages {}</small>").format(source.cite("seconds", form="seconds"))
    return Row(name, cells)


def _write_cell(label: str, source: Source) -> Cell:
    cell = source.value
    text = cite_value(source)
    small = cite_interval(source)
    if not cell.get("p_class"):
        return Cell(label, text, small)
    colour, marks, words = CLASSES[cell["p_class"]]
    title = (
        f"{words} corrected ({write_p(cell['p_holm'])}; uncorrected {write_p(cell['p'])}); difference "
        f"{write_number(cell['difference'])} {write_interval(cell['difference_interval'])}"
    )
    return Cell(label, text + marks, small, f"p-class {colour}", title.strip())


def _draw_films(source: Source) -> list[dict[str, Any]]:
    panels: dict[str, list[Dot]] = {}
    for i, entry in enumerate(source.value):
        is_floor = entry["name"] in ("shuffled", "constant")
        label = clip_set(entry["label"]).label if is_floor else entry["label"]
        dot = Dot.at(label, source.at(i, "value"), entry["interval"], "floor" if is_floor else "main")
        panels.setdefault(entry["film"], []).append(dot)
    return [{"name": film, "plot": draw_dots(f"SSIM on test film {film}", dots)} for film, dots in panels.items()]
