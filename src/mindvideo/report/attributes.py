"""The table of attributes: which thing, colour, place and motion the clips show, as frozen classifiers read them."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from mindvideo.evaluate.score import finite
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, cite_interval

FILE = "evaluate/attributes.json"
_ORDER = ("reconstruction", "truth", "caption", "vae", "shuffled", "mean", "random_train", "constant")


def list_attributes(run: Run) -> dict[str, Any] | None:
    """Rows by attribute, a column for the reconstruction, the truth, every control and chance; None without the file."""
    table = run.attributes.get("attributes")
    if not isinstance(table, dict) or not table:
        return None
    sets = {name for entry in table.values() if isinstance(entry, dict) for name in entry.get("sets") or {}}
    columns = [name for name in _ORDER if name in sets] + sorted(sets - set(_ORDER))
    rows = []
    for name, entry in table.items():
        if not isinstance(entry, dict):
            continue
        source = Source(FILE, ("attributes", name))
        cells = []
        for column in columns:
            value = finite((entry.get("sets") or {}).get(column))
            p = finite((entry.get("p_holm") or {}).get(column))
            interval = entry.get("interval") if column == "reconstruction" else None
            ends = (finite(interval[0]), finite(interval[1])) if isinstance(interval, list) else (None, None)
            small: Markup | str = cite(p, source.at("p_holm", column), "p")
            if ends[0] is not None and ends[1] is not None:
                small = cite_interval((ends[0], ends[1]), source.at("interval"))
            cells.append(
                {
                    "label": run.clip_set(column).label,
                    "value": cite(value, source.at("sets", column)),
                    "small": small,
                    "is_main": column == "reconstruction",
                }
            )
        chance = cite(finite(entry.get("chance")), source.at("chance"))
        n = cite(finite(entry.get("n")), source.at("n"), "count")
        rows.append(
            {
                "name": name,
                "cells": cells,
                "chance": chance,
                "n": n,
                "definition": entry.get("definition", ""),
                "from_brain": entry.get("from_brain"),
            }
        )
    return {"columns": [run.clip_set(name) for name in columns], "rows": rows}
