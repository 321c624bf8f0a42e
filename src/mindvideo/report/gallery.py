"""The gallery of clips: what the page's script needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from scipy.stats import rankdata

from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.report.dataset import STORE
from mindvideo.report.page import Assets
from mindvideo.report.read import Run
from mindvideo.report.sprites import draw_sheets
from mindvideo.stages import Progress

WindowScores = dict[str, dict[str, list[float | None]]]
MEAN_RANK = "mean rank"
"""What windows are sorted by at first: no single score decides which is the best."""


def describe_gallery(run: Run, key: str, assets: Assets, progress: Progress | None) -> dict[str, Any] | None:
    """The gallery of one run; None without clips of truth and reconstruction."""
    if not {"truth", "reconstruction"} <= run.clips.keys():
        return None
    labels = {name: run.clip_set(name).label for name in run.clips}
    return _gallery(run, key, run.clips, labels, run.window_scores, assets, progress)


def describe_shared(runs: Sequence[Run], assets: Assets, numbers: Sequence[int | None]) -> dict[str, Any] | None:
    """Truth above every run's reconstruction, if all have the same windows; else None.

    ``numbers`` are those of the runs on the page.
    """
    if len(runs) < 2 or not all({"truth", "reconstruction"} <= run.clips.keys() for run in runs):
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
    scores: WindowScores = {}
    for name, run in zip(names, runs, strict=True):
        for score, kinds in run.window_scores.items():
            scores.setdefault(score, {})[name] = kinds.get("reconstruction", [])
    labels = {"truth": "truth"} | {name: run.name for name, run in zip(names, runs, strict=True)}
    gallery = _gallery(first, "shared", clips, labels, scores, assets, None)
    for number, clip in zip(numbers, gallery["clips"][1:], strict=True):
        clip["run"] = number
    return gallery


def mean_ranks(run: Run) -> list[float | None]:
    """Each window's rank, averaged over the scores: 0 worst by all, 1 best."""
    ranks = []
    for name, kinds in run.window_scores.items():
        direction = _is_higher_better(run, name)
        if direction is not None and "reconstruction" in kinds:
            values = np.array(kinds["reconstruction"], dtype=float) * (1 if direction else -1)
            known = np.isfinite(values).sum()
            ranks.append((rankdata(values, nan_policy="omit") - 1) / max(known - 1, 1))
    if not ranks:
        return []
    known = np.isfinite(ranks).sum(axis=0)
    total = np.nansum(ranks, axis=0)
    return [float(rank / n) if n else None for rank, n in zip(total, known, strict=True)]


def find_ends(ranks: Sequence[float | None]) -> list[int]:
    """Windows of the best, median (the better of two) and worst mean rank."""
    known = sorted((-rank, i) for i, rank in enumerate(ranks) if rank is not None)
    return [known[k][1] for k in (0, (len(known) - 1) // 2, -1)] if known else []


def _frame_rate(run: Run, frames: int) -> float:
    """Frames a second at which a clip lasts as long as its scan; as prepared, where no store tells."""
    with suppress(DataError):
        return frames / Store.open(run.path / STORE).tr_s
    return float(run.setting("data.fps", 3))


def _gallery(
    run: Run,
    key: str,
    clips: dict[str, Any],
    labels: dict[str, str],
    window_scores: WindowScores,
    assets: Assets,
    progress: Progress | None,
) -> dict[str, Any]:
    fps = _frame_rate(run, next(iter(clips.values())).shape[1])
    sheets = draw_sheets(clips, fps, len(clips) if key == "shared" else 2, progress)
    windows = run.windows or [{} for _ in range(sheets.n)]
    ranks = mean_ranks(run)
    scores: dict[str, Any] = {
        name: {
            "label": run.scores[name].label,
            "higher": _is_higher_better(run, name),
            "values": {
                clip: [None if value is None else float(f"{value:.6g}") for value in values]
                for clip, values in kinds.items()
            },
        }
        for name, kinds in window_scores.items()
        if "reconstruction" in kinds and _is_higher_better(run, name) is not None
    }
    if ranks:
        mean = {"label": "mean rank over the scores", "higher": True, "values": {"reconstruction": ranks}}
        scores = {MEAN_RANK: mean} | scores
    return {
        "sheets": [assets.add(f"{key}/{i}.webp", picture) for i, picture in enumerate(sheets.pictures)],
        "films": [assets.add(f"{key}/{i}.mp4", film) for i, film in enumerate(sheets.films)],
        **{name: getattr(sheets, name) for name in ("frames", "width", "height")},
        "fps": fps,
        "clips": [{"name": name, "label": labels[name]} for name in clips],
        "windows": [
            {
                "place": "{segment} · scan {scan}".format(**window)
                if {"segment", "scan"} <= window.keys()
                else f"window {i + 1}",
                "caption": str(window.get("caption") or ""),
                "scene": window.get("scene", i),
            }
            for i, window in enumerate(windows)
        ],
        "score_names": list(scores),
        "scores": scores,
        "ends": find_ends(ranks),
    }


def _is_higher_better(run: Run, name: str) -> bool | None:
    return run.scores[name].higher_is_better if name in run.scores else None
