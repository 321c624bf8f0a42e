"""Write the report: one static page beside its pictures, readable from disk and without a network."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from mindvideo.config import Recipe
from mindvideo.errors import DataError
from mindvideo.report import sections
from mindvideo.report.brain import list_brain, split_pictures
from mindvideo.report.read import Run, read_run
from mindvideo.report.sprites import write_sprites
from mindvideo.report.wording import (
    CONTROL_ROLES,
    HEADLINE_ORDER,
    headline_score,
    is_ceiling,
    is_corrected,
    name_clip,
    name_score,
    write_interval,
    write_number,
    write_p,
    write_verdict,
)

Progress = Callable[[int, int, dict[str, Any]], None]


def run(recipe: Recipe, run_dir: Path, progress: Progress | None = None) -> None:
    """Stage ``report``: write ``RUN/report/index.html`` and its assets from the files of ``run_dir``."""
    build_report([run_dir], run_dir / "report", progress)


def build_report(run_dirs: Sequence[Path], out: Path, progress: Progress | None = None) -> Path:
    """Write the report of one run or of several side by side.

    Parameters
    ----------
    run_dirs : sequence of Path
        Run folders of any completeness; what a run lacks is named on the page.
    out : Path
        Folder that receives ``index.html`` and ``assets/``; other files in it are left alone.
    progress : callable, optional
        Called with (test windows drawn, windows, {}).

    Returns
    -------
    Path
        Of ``index.html``.

    Raises
    ------
    DataError
        When one of the folders is no run folder, or none is given.
    """
    if not run_dirs:
        raise DataError("expected at least one run folder, found none; give the folder of a run, e.g. runs/demo")
    runs = [read_run(Path(path)) for path in run_dirs]
    out.mkdir(parents=True, exist_ok=True)
    writing = out / "assets.writing"
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir()
    try:
        pages = [_describe_run(item, f"run{i}", writing, progress) for i, item in enumerate(runs)]
        shared = _shared_gallery(runs, writing) if len(runs) > 1 else None
        html = _render(
            pages=pages,
            shared=shared,
            comparison=sections.compare_runs(runs),
            title=" and ".join(item.name for item in runs) if len(runs) < 4 else f"{len(runs)} runs",
        )
        page = out / "index.html.writing"
        page.write_text(html, encoding="utf-8")
    except BaseException:
        shutil.rmtree(writing, ignore_errors=True)
        raise
    shutil.rmtree(out / "assets", ignore_errors=True)
    os.replace(writing, out / "assets")
    os.replace(page, out / "index.html")
    return out / "index.html"


def _render(**content: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mindvideo.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    templates = Path(__file__).parent / "templates"
    style, script = (Markup((templates / name).read_text(encoding="utf-8")) for name in ("report.css", "report.js"))
    return environment.get_template("report.html").render(style=style, script=script, **content)


def _describe_run(item: Run, key: str, assets: Path, progress: Progress | None) -> dict[str, Any]:
    """Everything the template needs of one run; writes its pictures into ``assets/KEY``."""
    gallery = None
    if {"truth", "reconstruction"} <= item.clips.keys():
        sheet = write_sprites(item.clips, assets / key / "windows", progress)
        gallery = _gallery(item, item.clips.keys(), item.window_scores, f"assets/{key}/windows", sheet)
        gallery["score_names"] = _score_choices(item)
    for source in item.pictures:
        (assets / key).mkdir(exist_ok=True)
        shutil.copyfile(source, assets / key / source.name)
    pictures, earlier_pictures = (
        [(f"assets/{key}/{name}", Path(name).stem.replace("_", " ")) for name in names]
        for names in split_pictures(item)
    )
    score = headline_score(item)
    title, verdict = write_verdict(item)
    versions, versions_note = sections.list_versions(item)
    data = sections.summarise_data(item)
    return {
        "key": key,
        "name": item.name,
        "recipe_name": item.setting("name", item.name),
        "is_simulated": item.is_simulated,
        "is_embedded": item.setting("foundation", "embedded") == "embedded",
        "title": title,
        "verdict": verdict,
        "headline": None if score is None else _headline(score),
        "headline_order": [name_score(name) for name in HEADLINE_ORDER],
        "missing": [state.sentence for state in item.stages.values() if state.state != "done"],
        "stage_sentence": {name: state.sentence for name, state in item.stages.items()},
        "problems": item.problems,
        "flags": sections.list_flags(item),
        "gallery": gallery,
        "is_corrected": is_corrected(item),
        "controls": [
            {
                "label": name_clip(name),
                "is_ceiling": _is_any_ceiling(item, name),
                "meaning": CONTROL_ROLES.get(name) or item.clip_labels.get(name, ""),
            }
            for name in sections.order_controls(item)
        ],
        "scores": sections.list_scores(item),
        "training": sections.list_training(item),
        "brain": list_brain(item),
        "pictures": pictures,
        "earlier_pictures": earlier_pictures,
        "data": data,
        "stages": sections.list_stages(item),
        "total_time": sections.total_time(item),
        "versions": versions,
        "versions_note": versions_note,
        "recipe": item.recipe_text,
        "evaluate_settings": {
            name: item.setting(f"evaluate.{name}") for name in ("block_s", "permutations", "bootstraps", "top_k")
        },
    }


def _is_any_ceiling(item: Run, control: str) -> bool:
    return any(is_ceiling(score, control) for score in item.scores.values() if control in score.controls)


def _headline(score: Any) -> dict[str, str]:
    return {
        "name": name_score(score.name),
        "value": write_number(score.value),
        "interval": write_interval(score.interval),
        "shuffled": write_number(score.controls.get("shuffled")),
        "p": write_p(score.tested("shuffled")),
        "chance": write_number(score.chance),
        "n": str(score.n) if score.n is not None else "–",
    }


def _score_choices(item: Run) -> list[str]:
    """Scores the gallery can be sorted by, the headline's first where it has a value per window."""
    score = headline_score(item)
    first = score.name if score is not None else ""
    known = [name for name in item.window_scores if _is_higher_better(item, name) is not None]
    return sorted(known, key=lambda name: name != first)


def _gallery(
    item: Run,
    clips: Any,
    window_scores: dict[str, dict[str, list[float | None]]],
    folder: str,
    sheet: dict[str, int],
) -> dict[str, Any]:
    """What the page's script needs to draw and sort one gallery."""
    windows = item.windows or [{} for _ in range(sheet["n"])]
    return {
        "folder": folder,
        **sheet,
        "fps": item.setting("data.fps", 3),
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
                "label": name_score(name),
                "higher": _is_higher_better(item, name),
                "values": {clip: [_short(value) for value in values] for clip, values in kinds.items()},
            }
            for name, kinds in window_scores.items()
            if "reconstruction" in kinds and _is_higher_better(item, name) is not None
        },
    }


def _is_higher_better(item: Run, name: str) -> bool | None:
    return item.scores[name].higher_is_better if name in item.scores else "error" not in name


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _write_place(window: dict[str, Any], i: int) -> str:
    if "segment" in window and "scan" in window:
        return f"{window['segment']} · scan {window['scan']}"
    return f"window {i + 1}"


def _shared_gallery(runs: Sequence[Run], assets: Path) -> dict[str, Any] | None:
    """Truth above every run's reconstruction, when all runs reconstructed the same windows; else None."""
    if not all({"truth", "reconstruction"} <= item.clips.keys() for item in runs):
        return None
    first = runs[0]
    places = [[(window.get("segment"), window.get("scan")) for window in item.windows] for item in runs]
    truths = [item.clips["truth"] for item in runs]
    if any(place != places[0] or not place for place in places) or any(t.shape != truths[0].shape for t in truths):
        return None
    if not all(np.array_equal(np.asarray(truths[0]), np.asarray(truth)) for truth in truths[1:]):
        return None
    names = ["reconstruction", *(f"run{i}" for i in range(1, len(runs)))]
    clips = {"truth": truths[0]} | {name: item.clips["reconstruction"] for name, item in zip(names, runs, strict=True)}
    sheet = write_sprites(clips, assets / "shared")
    scores: dict[str, dict[str, list[float | None]]] = {}
    for name, item in zip(names, runs, strict=True):
        for score, kinds in item.window_scores.items():
            scores.setdefault(score, {})[name] = kinds.get("reconstruction", [])
    gallery = _gallery(first, clips, scores, "assets/shared", sheet)
    for clip, label in zip(gallery["clips"], ["truth", *(item.name for item in runs)], strict=True):
        clip["label"] = label
    gallery["score_names"] = [name for name in _score_choices(first) if name in gallery["scores"]]
    return gallery
