"""What each section of the page shows, worked out from what was read of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from markupsafe import Markup, escape

from mindvideo.clip_sets import CLIP_SETS, ClipSet, clip_set
from mindvideo.evaluate.score import ScoreResult, finite
from mindvideo.report.cells import Cell, Row
from mindvideo.report.plots import WAY_TICKS, Curve, Dot, draw_curves, draw_dots, thin_out
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite, cite_interval, count_of
from mindvideo.report.verdict import FILE as SCORES
from mindvideo.report.verdict import kind_of, list_aspects
from mindvideo.report.wording import write
from mindvideo.stages import STAGES


def _in_order(names: Iterable[str]) -> list[str]:
    place = {name: number for number, name in enumerate(CLIP_SETS)}
    return sorted(names, key=lambda name: (clip_set(name).role == "ceiling", place.get(name, len(place)), name))


def list_sets(run: Run) -> list[ClipSet]:
    """Every set of clips beside the reconstruction, ceilings last."""
    names = _in_order({name for score in run.scores.values() for name in score.controls})
    return [run.clip_set(name) for name in names]


def list_scores(run: Run) -> list[dict[str, Any]]:
    """Rows of the table of scores, every number with its source."""
    rows = []
    sets = {each.name: each.label for each in list_sets(run)}
    for score in run.scores.values():
        source = Source(SCORES, (score.name,), content=run.scores)
        small = cite_interval(source)
        if score.n:
            small += Markup(" n ") + source.cite("n", form="count")
        cells = [Cell("reconstruction", source.cite("value"), small, "better" * bool(score.from_brain))]
        cells.append(Cell("chance", source.cite("chance")))
        for name, label in sets.items():
            value = cite(score.controls.get(name), source.at("controls", name))
            p = cite(score.p_holm.get(name), source.at("p_holm", name), "p")
            cells.append(Cell(label, value, p, "ceiling" * (score.roles.get(name) == "ceiling")))
        if has_truth(run):
            cells.append(Cell("truth itself", source.cite("truth")))
        plot = draw_score(run, score)
        row = Row(score.label, cells)
        rows.append({"name": score.label, "row": row, "definition": _define(score), "plot": plot})
    return rows


def list_heads(run: Run) -> list[Markup | str]:
    """Heads of the columns of `list_scores`."""
    heads: list[Markup | str] = ["Score", "Reconstruction", "Chance"]
    for each in list_sets(run):
        note = "ceiling" if each.role == "ceiling" else each.note
        heads.append(each.label + (Markup(" <small>{}</small>").format(note) if note else ""))
    return [*heads, "truth itself"] if has_truth(run) else heads


def has_truth(run: Run) -> bool:
    """Whether the true clips have a value of their own by any score."""
    return any(score.truth is not None for score in run.scores.values())


def list_ways(run: Run) -> list[dict[str, Any]]:
    """A panel for each aspect: how far its scores come from shuffled brain to true caption."""
    panels = []
    for aspect in list_aspects(run):
        dots = []
        for score in aspect.tested:
            source = Source(SCORES, (score.name, "way_to_caption"), content=run.scores)
            dots.append(Dot.at(score.label, source, score.way_to_caption_interval, kind_of(score), form="percent"))
        plot = draw_dots(f"{aspect.name}, way to the caption", dots, label_width=170.0, axis=WAY_TICKS)
        panels.append({"name": aspect.name, "plot": plot})
    return [panel for panel in panels if panel["plot"]]


def list_films(run: Run) -> list[dict[str, Any]]:
    """SSIM on each test film, of the reconstruction and of what needs no brain."""
    score = run.scores.get("ssim_rgb")
    panels = []
    for film in score.films if score is not None else ():
        dots = _list_dots(run, Source(SCORES, ("ssim_rgb", "films", film), content=run.scores), {})
        plot = draw_dots(f"SSIM on {film}", [dot for dot in dots if dot.kind != "ceiling"])
        panels.append({"name": film, "plot": plot})
    return panels


def _list_dots(run: Run, source: Source, intervals: Mapping[str, Any]) -> list[Dot]:
    """The reconstruction, then the other sets of clips, of a result at ``source``."""
    dots = [Dot.at("reconstruction", source.at("value"), source.at("interval").value, "main")]
    for name in _in_order(source.at("controls").value):
        kind = "ceiling" if clip_set(name).role == "ceiling" else "floor"
        dots.append(Dot.at(run.clip_set(name).label, source.at("controls", name), intervals.get(name), kind))
    return dots


def _define(score: ScoreResult) -> Markup:
    source = Source(SCORES, (score.name,), content={score.name: score})
    parts: list[str] = [str(escape(score.definition))]
    if score.higher_is_better is None:
        parts.append("neither end is good, the truth's own value is the aim")
    elif not score.higher_is_better:
        parts.append("lower is better")
    if score.chance_closed_form is not None:
        theory = source.cite("chance_closed_form")
        parts.append(f"chance in theory {theory}, on this test set {source.cite('chance')}")
    if score.network:
        parts.append(f"measured by {escape(score.network)}")
    if score.used_by:
        parts.append(f"reported by {escape(score.used_by)}")
    return Markup("; ".join(part for part in parts if part))


def draw_score(run: Run, score: ScoreResult) -> Markup:
    """The dot plot of one score: reconstruction, controls, ceilings."""
    source = Source(SCORES, (score.name,), content={score.name: score})
    dots = _list_dots(run, source, score.control_intervals)
    if score.truth is not None:
        dots.append(Dot.at("the truth itself", source.at("truth"), kind="ceiling"))
    return draw_dots(f"{score.label} (chance {write(score.chance)})", dots, score.chance)


def _split_key(key: str) -> tuple[str, str]:
    """Figure and line of a logged name: ``validation_loss`` → (loss, validation)."""
    if key.startswith("mean_predictor_"):
        return key.removeprefix("mean_predictor_"), "mean predictor"
    if key.startswith("ridge_"):
        return key.removeprefix("ridge_"), "ridge regression"
    bare = key.removeprefix("validation_")
    for end, line in (("_shuffled", "another clip's condition"), ("_chance", "chance"),
                      ("_teacher", "the teacher in as few steps")):  # fmt: skip
        if bare.endswith(end):
            return bare.removesuffix(end), line
    return bare, "validation" if bare != key else "training"


_LINES = {"training": "train", "validation": "validation"}


def list_curves(rows: list[dict[str, float]], file: str) -> list[dict[str, Any]]:
    """Panels of one stage's log ``file``, a figure's lines together."""
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    fields: dict[tuple[str, str], str] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "lr", "steps_per_s"):
                name, line = _split_key(key)
                fields[name, line] = key
                figures.setdefault(name, {}).setdefault(line, []).append((row["step"], value))
    panels = []
    for name in sorted(figures, key=lambda name: (name != "loss", "validation" not in figures[name])):
        lines = dict(sorted(figures[name].items(), key=lambda item: [*_LINES, item[0]].index(item[0])))
        keys = [
            {
                "label": line,
                "kind": _LINES.get(line, "reference"),
                "last": cite(points[-1][1], Source(file, ("last", fields[name, line]))),
            }
            for line, points in lines.items()
        ]
        curves = [Curve(key["label"], thin_out(lines[key["label"]]), key["kind"]) for key in keys]
        shown = name.replace("_", " ").replace(" r2", " R²")
        panels.append({"name": shown, "plot": draw_curves(f"{shown} over training steps", curves), "lines": keys})
    return panels


def list_training(run: Run) -> list[dict[str, Any]]:
    """The training stages with a log, each with its panels."""
    stages = []
    for stage, rows in run.metrics.items():
        rates = [row["steps_per_s"] for row in rows if "steps_per_s" in row]
        file = f"{stage}/metrics.jsonl"
        steps = max(row["step"] for row in rows)
        stages.append(
            {
                "name": stage,
                "purpose": STAGES[stage].summary,
                "panels": list_curves(rows, file),
                "steps": count_of(int(steps) + 1, file, "steps logged"),
                "is_short": isinstance(wanted := run.setting(f"{stage}.steps"), int) and wanted != int(steps) + 1,
                "wanted": wanted,
                "precision": str(run.stages[stage].done.get("precision") or ""),
                "rate": cite(rates[-1], Source(file, ("last", "steps_per_s")), "short") if rates else None,
            }
        )
    return stages


def list_stages(run: Run) -> list[dict[str, Any]]:
    """Wall time and peak memory of every stage."""
    rows = []
    for state in run.stages.values():
        seconds = finite(state.done.get("seconds"))
        memory = finite(state.done.get("peak_memory_bytes"))
        rows.append(
            {
                "name": state.name,
                "purpose": STAGES[state.name].summary,
                "state": state.state,
                "time": cite(seconds, Source(f"{state.name}/done.json", ("seconds",)), "seconds"),
                "memory": cite(memory, Source(f"{state.name}/done.json", ("peak_memory_bytes",)), "bytes"),
                "finished": str(state.done.get("finished") or "–"),
                "precision": str(state.done.get("precision") or "–"),
            }
        )
    return rows


def total_time(run: Run) -> Markup:
    """The sum of the stages' wall times."""
    known = [found for state in run.stages.values() if (found := finite(state.done.get("seconds"))) is not None]
    source = Source("*/done.json", derived="sum of seconds")
    return cite(sum(known) if known else None, source, "seconds")
