"""The gallery of clips: what the page's script needs to draw, play and sort the windows of one run or of several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from mindvideo.report.assets import Assets
from mindvideo.report.read import Run
from mindvideo.report.sprites import draw_sheets
from mindvideo.report.verdict import headline_score
from mindvideo.report.wording import name_clip
from mindvideo.stages import Progress

WindowScores = dict[str, dict[str, list[float | None]]]


def describe_gallery(run: Run, key: str, assets: Assets, progress: Progress | None) -> dict[str, Any] | None:
    """The gallery of one run; None without clips of truth and reconstruction."""
    if not {"truth", "reconstruction"} <= run.clips.keys():
        return None
    sheets, geometry = draw_sheets(run.clips, progress)
    places = [assets.add(f"{key}/{i}.webp", sheet) for i, sheet in enumerate(sheets)]
    gallery = _gallery(run, run.clips, run.window_scores, places, geometry)
    gallery["score_names"] = _score_choices(run)
    return gallery


def describe_shared(runs: Sequence[Run], assets: Assets) -> dict[str, Any] | None:
    """Truth above every run's reconstruction, when all runs reconstructed the same windows; else None."""
    if not all({"truth", "reconstruction"} <= run.clips.keys() for run in runs):
        return None
    first = runs[0]
    places = [[(window.get("segment"), window.get("scan")) for window in run.windows] for run in runs]
    truths = [run.clips["truth"] for run in runs]
    if any(place != places[0] or not place for place in places) or any(t.shape != truths[0].shape for t in truths):
        return None
    if not all(np.array_equal(np.asarray(truths[0]), np.asarray(truth)) for truth in truths[1:]):
        return None
    names = ["reconstruction", *(f"run{i}" for i in range(1, len(runs)))]
    clips = {"truth": truths[0]} | {name: run.clips["reconstruction"] for name, run in zip(names, runs, strict=True)}
    sheets, geometry = draw_sheets(clips)
    addresses = [assets.add(f"shared/{i}.webp", sheet) for i, sheet in enumerate(sheets)]
    scores: WindowScores = {}
    for name, run in zip(names, runs, strict=True):
        for score, kinds in run.window_scores.items():
            scores.setdefault(score, {})[name] = kinds.get("reconstruction", [])
    gallery = _gallery(first, clips, scores, addresses, geometry)
    for number, (clip, run) in enumerate(zip(gallery["clips"][1:], runs, strict=True)):
        clip |= {"label": run.name, "run": number}
    gallery["score_names"] = [name for name in _score_choices(first) if name in gallery["scores"]]
    return gallery


def _score_choices(run: Run) -> list[str]:
    """Scores the gallery can be sorted by, the headline's first where it has a value per window."""
    score = headline_score(run)
    first = score.name if score is not None else ""
    known = [name for name in run.window_scores if _is_higher_better(run, name) is not None]
    return sorted(known, key=lambda name: name != first)


def _gallery(
    run: Run, clips: Iterable[str], window_scores: WindowScores, sheets: list[str], geometry: dict[str, int]
) -> dict[str, Any]:
    windows = run.windows or [{} for _ in range(geometry["n"])]
    return {
        "sheets": sheets,
        **geometry,
        "fps": run.setting("data.fps", 3),
        "clips": [{"name": name, "label": name_clip(name)} for name in clips],
        "windows": [
            {
                "place": _write_place(window, i),
                "caption": str(window.get("caption") or ""),
                "scene": window.get("scene", i),
            }
            for i, window in enumerate(windows)
        ],
        "scores": {
            name: {
                "label": run.scores[name].label,
                "higher": _is_higher_better(run, name),
                "values": {clip: [_short(value) for value in values] for clip, values in kinds.items()},
            }
            for name, kinds in window_scores.items()
            if "reconstruction" in kinds and _is_higher_better(run, name) is not None
        },
    }


def _is_higher_better(run: Run, name: str) -> bool | None:
    return run.scores[name].higher_is_better if name in run.scores else None


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _write_place(window: dict[str, Any], i: int) -> str:
    if "segment" in window and "scan" in window:
        return f"{window['segment']} · scan {window['scan']}"
    return f"window {i + 1}"
