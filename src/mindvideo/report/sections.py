"""What each section of the page shows, worked out from what was read of a run."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.report.plots import Curve, Dot, draw_bars, draw_curves, draw_dots, thin_out
from mindvideo.report.read import STAGE_PURPOSES, Run, Score, number
from mindvideo.report.wording import (
    CONTROL_ROLES,
    is_ceiling,
    name_clip,
    name_score,
    write_bytes,
    write_interval,
    write_number,
    write_p,
    write_seconds,
)

SHOWN_PACKAGES = (
    "mindvideo",
    "torch",
    "diffusers",
    "transformers",
    "numpy",
    "scipy",
    "nibabel",
    "zarr",
    "scikit-image",
)
MOST_AREAS = 24


def order_controls(run: Run) -> list[str]:
    """Every control of a run's scores: those to beat first, ceilings last."""
    known = list(CONTROL_ROLES)
    names = {control for score in run.scores.values() for control in score.controls}
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known) - 2, name))


def list_scores(run: Run) -> list[dict[str, Any]]:
    """Rows of the table of scores, every cell as text."""
    rows = []
    for score in run.scores.values():
        cells = []
        for control in order_controls(run):
            cells.append(
                {
                    "label": name_clip(control),
                    "value": write_number(score.controls.get(control)),
                    "p": write_p(score.tested(control)),
                    "is_ceiling": is_ceiling(score, control),
                }
            )
        rows.append(
            {
                "name": name_score(score.name),
                "value": write_number(score.value),
                "interval": write_interval(score.interval),
                "n": score.n,
                "chance": write_number(score.chance),
                "controls": cells,
                "definition": _define(score),
                "plot": draw_score(score),
            }
        )
    return rows


def _define(score: Score) -> str:
    parts = [score.definition]
    if score.higher_is_better is None:
        parts.append("neither end is good, the truth's own value is the aim")
    elif not score.higher_is_better:
        parts.append("lower is better")
    if score.chance_closed_form is not None:
        parts.append(
            f"chance in theory {write_number(score.chance_closed_form)}, on this test set {write_number(score.chance)}"
        )
    if score.used_by:
        parts.append(f"reported by {score.used_by}")
    return "; ".join(part for part in parts if part)


def draw_score(score: Score) -> Markup:
    """The dot plot of one score: the reconstruction with its interval, then controls, then ceilings."""
    known = list(CONTROL_ROLES)
    dots = [Dot("reconstruction", score.value, score.interval, "main")]
    names = sorted(
        score.controls, key=lambda name: (is_ceiling(score, name), known.index(name) if name in known else 9)
    )
    for name in names:
        kind = "ceiling" if is_ceiling(score, name) else "floor"
        dots.append(Dot(name_clip(name), score.controls[name], score.control_intervals.get(name), kind))
    if score.truth is not None:
        dots.append(Dot("the truth itself", score.truth, kind="ceiling"))
    text = ", ".join(f"{dot.label} {write_number(dot.value)}" for dot in dots)
    return draw_dots(f"{name_score(score.name)}: {text}; chance {write_number(score.chance)}", dots, score.chance)


def compare_runs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One panel per score that at least two runs have: a row per run and its own shuffled control."""
    names = Counter(name for run in runs for name in run.scores)
    panels = []
    for name in (name for name, count in names.items() if count > 1):
        dots = []
        for run in runs:
            score = run.scores.get(name)
            if score is not None:
                dots.append(Dot(run.name, score.value, score.interval, "main"))
                dots.append(Dot("· shuffled brain", score.controls.get("shuffled"), kind="floor"))
        panels.append({"name": name_score(name), "plot": draw_dots(f"{name_score(name)} of each run", dots)})
    return panels


def _split_key(key: str) -> tuple[str, str]:
    """The figure a logged name belongs to and the line it is there: ``validation_loss`` → (loss, validation)."""
    if key.startswith("mean_predictor_"):
        return key.removeprefix("mean_predictor_"), "mean predictor"
    if key.startswith("ridge_"):
        return key.removeprefix("ridge_"), "ridge regression"
    bare = key.removeprefix("validation_")
    for end, line in (("_shuffled", "another clip's condition"), ("_chance", "chance")):
        if bare.endswith(end):
            return bare.removesuffix(end), line
    return bare, "validation" if bare != key else "training"


_LINES = {"training": "train", "validation": "validation"}


def list_curves(rows: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Panels of one stage's log: the lines of one figure together, training, validation and what they compare with.

    Parameters
    ----------
    rows : list of dict
        Rows of ``metrics.jsonl``; ``lr`` and ``steps_per_s`` are not drawn.
    """
    figures: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for key, value in row.items():
            if key not in ("step", "lr", "steps_per_s"):
                name, line = _split_key(key)
                figures.setdefault(name, {}).setdefault(line, []).append((row["step"], value))
    panels = []
    for name in sorted(figures, key=lambda name: (name != "loss", "validation" not in figures[name])):
        lines = dict(sorted(figures[name].items(), key=lambda item: [*_LINES, item[0]].index(item[0])))
        keys = [
            {"label": line, "kind": _LINES.get(line, "reference"), "last": write_number(points[-1][1])}
            for line, points in lines.items()
        ]
        curves = [Curve(key["label"], thin_out(lines[key["label"]]), key["kind"]) for key in keys]
        last = ", ".join(f"{key['label']} {key['last']}" for key in keys)
        shown = name.replace("_", " ").replace(" r2", " R²")
        panels.append(
            {"name": shown, "plot": draw_curves(f"{shown} over training steps; last: {last}", curves), "lines": keys}
        )
    return panels


def list_training(run: Run) -> list[dict[str, Any]]:
    """The training stages with a log, each with its panels and what each step cost."""
    stages = []
    for stage, rows in run.metrics.items():
        rates = [row["steps_per_s"] for row in rows if "steps_per_s" in row]
        stages.append(
            {
                "name": stage,
                "purpose": STAGE_PURPOSES[stage],
                "panels": list_curves(rows),
                "steps": int(max(row["step"] for row in rows)) + 1,
                "wanted": run.setting(f"{stage}.steps"),
                "rate": write_number(rates[-1], 2) if rates else None,
            }
        )
    return stages


def list_stages(run: Run) -> list[dict[str, Any]]:
    """Wall time and peak memory of every stage."""
    rows = []
    for state in run.stages.values():
        seconds, memory = number(state.done.get("seconds")), number(state.done.get("peak_memory_bytes"))
        rows.append(
            {
                "name": state.name,
                "purpose": STAGE_PURPOSES[state.name],
                "state": state.state,
                "time": write_seconds(seconds),
                "memory": write_bytes(memory),
                "finished": str(state.done.get("finished") or "–"),
                "seconds": seconds,
            }
        )
    return rows


def total_time(run: Run) -> str:
    """The sum of the stages' wall times."""
    known = [found for state in run.stages.values() if (found := number(state.done.get("seconds"))) is not None]
    return write_seconds(sum(known)) if known else "–"


def list_versions(run: Run) -> tuple[list[tuple[str, str]], str]:
    """Versions recorded by the stages, or those of the environment that writes the report, and which it is."""
    recorded: dict[str, str] = {}
    for state in run.stages.values():
        for key in ("versions", "code"):
            value = state.done.get(key)
            if isinstance(value, dict):
                recorded |= {str(name): str(version) for name, version in value.items()}
            elif isinstance(value, str):
                recorded.setdefault("code", value)
    found = []
    for package in SHOWN_PACKAGES:
        if package not in recorded:
            try:
                found.append((package, importlib.metadata.version(package)))
            except importlib.metadata.PackageNotFoundError:
                continue
    note = (
        "code: as recorded by the stages; packages: of the environment that wrote this page" if found else "as recorded"
    )
    return [*recorded.items(), *found], note


def summarise_data(run: Run) -> dict[str, Any] | None:
    """Subject, voxels per area, windows per split and provenance of ``prepare/store.zarr``; None without a store."""
    path = run.path / "prepare" / "store.zarr"
    if not path.is_dir():
        return None
    try:
        summary = Store.open(path).summary()
    except DataError as error:
        run.problems.append(str(error))
        return None
    areas = list(summary["voxels_per_area"].items())
    bars = [(name, float(count)) for name, count in areas[:MOST_AREAS]]
    note = f"the {MOST_AREAS} largest of {len(areas)}" if len(areas) > MOST_AREAS else ""
    facts = [
        ("subject", str(summary["subject"])),
        ("voxels used", f"{summary['voxels']} in {len(areas)} areas"),
        ("left, right hemisphere", f"{summary['voxels_left']}, {summary['voxels_right']}"),
        ("median between-run r of these", write_number(summary["reproducibility_median"])),
        ("repetition time", f"{summary['tr_s']:g} s"),
        ("lag of the scans", f"{summary['lag_s']:g} s"),
        ("frames", f"{summary['fps']} a second, {summary['size']} px"),
        ("different captions", str(summary["captions"])),
        ("files read", f"{len(summary['sources'])}, checksums in the store"),
    ]
    ceiling = run.noise_ceiling
    if ceiling:
        text = ", ".join(f"{name} {write_number(value)}" for name, value in ceiling.items())
        facts.append(("noise ceiling of a voxel, median", text))
    for split, names in summary["segments"].items():
        films = f"{len(names)} film{'' if len(names) == 1 else 's'}"
        runs = "/".join(str(count) for count in sorted({summary["repeats"][name] for name in names}))
        text = f"{summary['windows'][split]} windows, {summary['scenes'][split]} scenes, {films}"
        facts.append((split, f"{text}, {runs} recording{'' if runs == '1' else 's'} each" if names else "none"))
    return {
        "facts": facts,
        "plot": draw_bars(
            f"voxels per area: {', '.join(f'{name} {count:.0f}' for name, count in bars)}", bars, decimals=0
        ),
        "note": note,
        "provenance": [_write_step(step) for step in summary["provenance"]],
    }


def _write_step(step: Any) -> tuple[str, str]:
    if not isinstance(step, dict):
        return str(step), ""
    parameters = step.get("parameters")
    if isinstance(parameters, dict):
        return str(step.get("step", "")), ", ".join(f"{key} {write_value(value)}" for key, value in parameters.items())
    return str(step.get("step", "")), "" if parameters is None else str(parameters)


def write_value(value: Any) -> str:
    """A provenance value in a few words: long lists are counted, not listed."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) if len(value) <= 6 else f"({len(value)} values)"
    if isinstance(value, dict):
        return (
            "; ".join(f"{key} {write_value(item)}" for key, item in value.items())
            if len(value) <= 6
            else f"({len(value)} values)"
        )
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def list_flags(run: Run) -> list[str]:
    """Choices a reader must know of: what used the test set, what is simulated, what was left out."""
    flags = []
    if run.setting("reconstruct.negative") == "test_mean":
        flags.append(
            "Transductive: the negative condition is the mean of the test scans (reconstruct.negative = test_mean, the "
            "paper's choice), so a clip cannot be reconstructed without the other test scans."
        )
    if run.setting("reconstruct.max_windows"):
        flags.append(f"Only {run.setting('reconstruct.max_windows')} test windows, evenly spread, were reconstructed.")
    if run.setting("data.captions") == "truth":
        flags.append(
            "The captions are the simulation's own (data.captions = truth); a captioner's would be less exact."
        )
    near = run.scores_extra.get("near_duplicates")
    if near:
        count = (
            near.get("count", len(near)) if isinstance(near, dict) else len(near) if isinstance(near, list) else near
        )
        flags.append(f"Near-duplicates: {count} test windows look like a training clip; see evaluate/scores.json.")
    elif run.scores and near is None:
        flags.append("Near-duplicates between training and test films were not audited in this run.")
    if run.scores and not any("shuffled" in score.controls for score in run.scores.values()):
        flags.append("The shuffled control was not computed: these scores do not show that the brain was used.")
    for key in ("post_hoc", "flags", "notes"):
        entries = run.scores_extra.get(key)
        flags += [str(entry) for entry in entries] if isinstance(entries, list) else []
    return flags
