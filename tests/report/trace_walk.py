"""Follow every cited number of a page back to its file, without the code that wrote it."""

from __future__ import annotations

import csv
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mindvideo.data.store import Store

HIGHER = {"epe": False}
"""Direction of the scores of the made-up run; higher is better for the rest."""

COLLECT = """() => {
  document.querySelectorAll('details').forEach((item) => { item.open = true; });
  return [...document.querySelectorAll('[data-source]')].map((item) => ({
    ...item.dataset, text: item.textContent, page: (item.closest('article[data-run]') || {dataset: {}}).dataset.run,
  }));
}"""
"""Everything the page cites: file, key, value as written and in full, and the run it belongs to."""

UNCITED = """() => {
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT), found = [];
  const free = '[data-source], .tick, pre, script, style, title, .versions, .level, .steps, .caption, .settings, option';
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (/\\d*\\.\\d+/.test(node.textContent) && !node.parentElement.closest(free)) found.push(node.textContent.trim());
  }
  return found;
}"""
"""Texts with a decimal number that names no source; axes, settings, versions and provenance are free."""


def look_up(run_dir: Path, page_dir: Path, file: str, key: str) -> Any:
    """The number a citation speaks of, from the file itself."""
    steps = key.split("|")
    folder = page_dir if file.startswith("differences") else run_dir
    if file.endswith("/ablation.json"):
        (folder,) = (near for near in (run_dir.parent, run_dir / "ablation") if near.name == file.split("/")[0])
        file = "ablation.json"
    if file == "prepare/store.zarr":
        return follow(summarise(folder / file), steps)
    if file.endswith(".csv"):
        with (folder / file).open() as handle:
            rows = {(row["segment"], int(row["scan"])): row for row in csv.DictReader(handle)}
        window = json.loads((folder / "reconstruct" / "windows.json").read_text())[int(steps[0])]
        return float(rows[window["segment"], window["scan"]][steps[1]])
    if file.endswith(".jsonl"):
        rows = [json.loads(line) for line in (folder / file).read_text().splitlines() if line.endswith("}")]
        assert steps[0] == "last"
        return [row[steps[1]] for row in rows if steps[1] in row][-1]
    return follow(json.loads((folder / file).read_text()), steps)


def derive(run_dir: Path, page_dir: Path, file: str, how: str) -> str:
    """The text of a number that was worked out from a whole file, worked out again."""
    if file.startswith("differences"):
        one, other = how.split(" better than ")
        pairs = json.loads((page_dir / file).read_text())["pairs"]
        is_first = other in pairs.get(one, {})
        found = pairs[one][other] if is_first else pairs[other][one]
        sign = -1 if is_first else 1
        directions = {name: sign * (1 if HIGHER.get(name, True) else -1) for name in found}
        return str(
            sum(each["p_holm"] < 0.05 and each["difference"] * directions[name] > 0 for name, each in found.items())
        )
    if file == "reconstruct/windows.json":
        windows = json.loads((run_dir / file).read_text())
        return str(len(windows) if how == "windows" else len({window["segment"] for window in windows}))
    if how == "windows scored":
        return str(max(entry["n"] for entry in json.loads((run_dir / file).read_text()).values()))
    if how == "median way to caption":
        scores = json.loads((run_dir / file).read_text()).values()
        return f"{np.median([entry['way_to_caption'] for entry in scores if 'way_to_caption' in entry]):.0%}".replace(
            "%", " %"
        )
    if how.startswith("mean rank of window "):
        ranks = rank_windows(run_dir)
        return f"{ranks[int(how.split()[-1])]:.3f}".removeprefix("0")
    if file == "prepare/store.zarr":
        summary = summarise(run_dir / file)
        if how.startswith("segments of "):
            return str(len(summary["segments"][how.removeprefix("segments of ")]))
        return str(len(summary[{"areas": "voxels_per_area", "sources": "sources"}[how]]))
    if how == "steps logged":
        lines = [line for line in (run_dir / file).read_text().splitlines() if line.endswith("}")]
        return str(max(json.loads(line)["step"] for line in lines) + 1)
    if how == "sum of seconds":
        minutes = sum(json.loads(path.read_text())["seconds"] for path in run_dir.glob(file)) / 60
        return f"{minutes // 60:.0f} h {int(minutes % 60):02d} min"
    if how.startswith("mean of "):
        key, name = how.removeprefix("mean of ").split(", ")
        values = json.loads((run_dir / file).read_text())[key][name]
        return f"{sum(values) / len(values):.3f}".removeprefix("0")
    if how == "seeds":
        return str(len(look_up(run_dir, run_dir, file, "seeds")))
    scores = json.loads((run_dir / file).read_text()).values()
    found = re.fullmatch(
        r"scores (?:of (\w+) )?(tested|not tested|better than shuffled|by which (\w+) is better still)", how
    )
    assert found, how
    family, what, baseline = found.groups()
    tested = [entry for entry in scores if "shuffled" in entry.get("p_holm", {})]
    if what == "not tested":
        return str(len(scores) - len(tested))
    chosen = [entry for entry in tested if family in (None, entry["family"])]
    if what != "tested":
        chosen = [e for e in chosen if e["p_holm"]["shuffled"] < 0.05 and is_better(e, "shuffled")]
    if baseline:
        chosen = [e for e in chosen if not is_better(e, baseline) and e["value"] != e["controls"][baseline]]
    return str(len(chosen))


def is_better(entry: dict[str, Any], control: str) -> bool:
    return bool((entry["value"] - entry["controls"][control]) * (1 if entry["higher_is_better"] else -1) > 0)


def rank_windows(run_dir: Path) -> list[float]:
    """Mean over the scores of each window's rank, 0 to 1, in the order of windows.json."""
    table = pd.read_csv(run_dir / "evaluate" / "windows.csv").set_index(["segment", "scan"])
    scores = json.loads((run_dir / "evaluate" / "scores.json").read_text())
    names = [name for name in scores if name in table and scores[name]["higher_is_better"] is not None]
    signs = [1 if scores[name]["higher_is_better"] else -1 for name in names]
    ranks = (table[names] * signs).rank()
    mean = ((ranks - 1) / (ranks.count() - 1)).mean(axis=1)
    windows = json.loads((run_dir / "reconstruct" / "windows.json").read_text())
    return [mean[window["segment"], window["scan"]] for window in windows]


@cache
def summarise(path: Path) -> dict[str, Any]:
    return Store.open(path).summary()


def follow(content: Any, steps: list[str]) -> Any:
    for step in steps:
        content = content[int(step)] if isinstance(content, list) else content[step]
    return content
