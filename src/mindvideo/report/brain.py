"""The section on the brain: attention, lags, occlusion, against the truth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mindvideo.report.plots import Dot, draw_dots
from mindvideo.report.read import Run
from mindvideo.report.trace import Source, cite

MOST_AREAS = 20
MEASURES = ("tokens", "text", "image")
MEASURES_OF_MAPS = (
    ("auc", "area under the ROC curve", 0.5),
    ("rank_correlation", "rank correlation with the true reliability", 0.0),
)


def final_stage(run: Run) -> str:
    """The stage whose encoder made the reconstructions, as far as ``explain/`` tells."""
    stages = list(run.explain.get("attention", {}))
    return str(run.explain.get("occlusion", {}).get("stage") or (stages[-1] if stages else ""))


def list_brain(run: Run) -> list[dict[str, Any]]:
    """Groups of panels, each with a title, a sentence and the file it is from."""
    final = final_stage(run)
    layers = run.explain.get("attention", {})
    attention = {stage: _attention(run, stage, found) for stage, found in layers.items()}
    groups = [
        _against_truth(run.explain.get("truth", {}), final),
        *(group for stage, group in attention.items() if stage == final),
        _occlusion(run.explain.get("occlusion", {}), "parcel" if run.explain.get("parcels") else "area"),
        _temporal(run.explain.get("temporal", {})),
        *(group for stage, group in attention.items() if stage != final),
    ]
    return [group for group in groups if group["panels"] or group["note"]]


def list_surfaces(run: Run, out: Path, judged: Mapping[str, Markup]) -> list[dict[str, Any]]:
    """Interactive surfaces: address relative to ``out``, label and warning."""
    found = []
    for path in sorted((run.path / "explain").glob("surface_*.html")):
        name = path.stem.removeprefix("surface_")
        address = Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
        label = name.replace("_", " ").capitalize()
        found.append({"address": address, "label": label, "file": f"explain/{path.name}", "warning": judged.get(name)})
    return found


def split_pictures(run: Run) -> tuple[list[str], list[str]]:
    """File names of the flat maps to show, occlusion first, and of the other pictures."""
    final = final_stage(run)
    names = [path.name for path in run.pictures]
    kinds = ("flat_occlusion", f"flat_attention_{final}_")
    first = [name for kind in kinds for name in names if name.startswith(kind)]
    return first, [name for name in names if name not in first]


def warn_of_maps(run: Run) -> dict[str, Markup]:
    """A sentence for every map that is no better than chance or than an untrained network's."""
    truth = run.explain.get("truth", {})
    place = Source("explain/truth.json", content=truth)
    found: dict[str, list[Markup]] = {}
    for key, words, chance in MEASURES_OF_MAPS:
        for name, value in _values(truth.get(key)).items():
            kind, _, rest = name.partition("_")
            alike = f"attention_{rest.partition('_')[2]}" if kind == "attention" else name
            others = truth.get(f"{key}_untrained", {}).get(alike, [])
            best = max((other for other in others if other is not None), default=chance)
            own = place.cite(key, name)
            if value <= best and best in others:
                other = place.cite(f"{key}_untrained", alike, others.index(best))
                part = Markup("{} {}, an untrained network’s {}").format(words, own, other)
            elif value <= chance:
                part = Markup("{} {}, by chance {}").format(words, own, chance)
            else:
                continue
            found.setdefault(name, []).append(part)
    start = Markup("No better than chance or untrained networks in finding the voxels that carry signal: ")
    return {name: start + Markup("; ").join(parts) + "." for name, parts in found.items()}


def _group(title: str, text: str, source: str, panels: list[dict[str, Any]], note: str = "") -> dict[str, Any]:
    shown = [panel for panel in panels if panel["plot"]]
    return {"title": title, "text": text, "source": source, "panels": shown, "note": note}


def _values(content: Mapping[str, float | None] | None) -> dict[str, float]:
    return {name: value for name, value in (content or {}).items() if value is not None}


def _attention(run: Run, stage: str, layers: dict[str, Any]) -> dict[str, Any]:
    parcels = run.explain.get("parcels", {})
    sizes = parcels.get("parcels") or run.explain.get("networks", {})
    expected = {name: size["share"] for name, size in sizes.items()}
    panels = []
    source = Source("explain/attention.json", (stage,), content={stage: layers})
    for layer, content in layers.items():
        shares = {name: share for name, share in content.items() if share > 0 or expected.get(name)}
        dots = [
            Dot.at(name, source.at(layer, name), kind="main", mark=expected.get(name))
            for name in sorted(shares, key=lambda name: -shares[name])[:MOST_AREAS]
        ]
        plot = draw_dots(f"attention of the {layer} layer", dots, chance=0.0, label_width=178.0)
        panels.append({"name": f"{layer} layer", "plot": plot})
    kind, what = ("parcels", "each parcel") if parcels else ("networks", "voxels of each Yeo-17 network")
    text = f"Share of the attention that {what} receive{'s' * bool(parcels)}"
    text += f"; the largest {MOST_AREAS} of {len(sizes)}." if parcels and len(sizes) > MOST_AREAS else "."
    text += f" The tick is the {kind[:-1]}'s share of the voxels: what no preference would give." if expected else ""
    note = str(parcels.get("note") or "")
    files = f"explain/attention.json and explain/{kind}.json"
    return _group(f"Attention after {stage}", text, files, panels, note)


def _temporal(content: dict[str, Any]) -> dict[str, Any]:
    panels = []
    for stage, layers in content.items():
        for layer, weights in layers.items():
            source = Source("explain/temporal.json", (stage, layer), content=content)
            name = f"{stage}, {layer} layer"
            dots = [Dot.at(time, source.at(time), kind="main") for time in weights]
            panels.append({"name": name, "plot": draw_dots(name, dots, chance=0.0)})
    text = "Temporal attention received by each scan of a window, by its time after the first frame was on screen."
    return _group("Weight of the lags", text, "explain/temporal.json", panels)


def _occlusion(content: dict[str, Any], what: str) -> dict[str, Any]:
    areas = content.get("areas", {})
    source = Source("explain/occlusion.json", content=content)
    panels = []
    for measure in MEASURES if areas else ():
        words = content["measures"].get(measure, measure)
        largest = sorted(areas, key=lambda name: -areas[name][measure])[:MOST_AREAS]
        note = Markup(f"intact {source.cite('intact', measure)}")
        note += f"; {len(largest)} largest of {len(areas)} {what}s" if len(largest) < len(areas) else ""
        dots = [Dot.at(name, source.at("areas", name, measure), kind="main") for name in largest]
        panels.append({"name": words, "note": note, "plot": draw_dots(words, dots, chance=0.0)})
    silenced = "a parcel is silenced" if what == "parcel" else "an area is silenced in both hemispheres"
    text = Markup("How much worse the encoder of {} does when {}, over {} test windows.").format(
        content.get("stage"), silenced, cite(content.get("n_windows"), source.at("n_windows"), "count")
    )
    return _group(f"Occlusion by {what}", text, "explain/occlusion.json", panels)


def _against_truth(content: dict[str, Any], final: str) -> dict[str, Any]:
    source = Source("explain/truth.json", content=content)
    panels = []
    for key, name, chance in MEASURES_OF_MAPS:
        dots = []
        for map_name in _values(content.get(key)):
            kind = "main" if final in map_name or map_name.startswith("occlusion") else "other"
            dots.append(Dot.at(map_name.replace("_", " "), source.at(key, map_name), kind=kind))
        dots.sort(key=lambda dot: -(dot.value or 0.0))
        dots += _untrained(content.get(f"{key}_untrained"), key)
        if key == "auc" and (spread := content.get("auc_random")):
            dots.append(Dot.at("random maps", source.at("auc_random", 1), spread[::2]))
        panels.append({"name": name, "plot": draw_dots(name, dots, chance, label_width=178.0)})
    panels.append(_ablation(content.get("ablation") or {}))
    text = Markup("This subject is simulated, so the voxels that carry signal are known")
    if "n_informative" in content:
        keys = ("n_informative", "n_voxels")
        counts = [source.cite(key, form="count") for key in keys]
        text += Markup(": {} of the {} selected").format(*counts)
    text += ". How well each map finds them, beside the maps of untrained encoders (grey, with the range of several); "
    text += "the dashed line is chance."
    return _group("Against the truth", text, "explain/truth.json", panels, str(content.get("note") or ""))


def _untrained(content: Mapping[str, list[float | None]] | None, key: str) -> list[Dot]:
    """Mean and range of each kind of map over the untrained encoders."""
    dots = []
    for name, values in (content or {}).items():
        if known := [value for value in values if value is not None]:
            source = Source("explain/truth.json", derived=f"mean of {key}_untrained, {name}")
            label = f"untrained {name.replace('_', ' ')}"
            dots.append(Dot(label, sum(known) / len(known), (min(known), max(known)), "floor", source))
    return dots


def _ablation(content: dict[str, Any]) -> dict[str, Any]:
    """As many informative voxels silenced as others, by measure."""
    source = Source("explain/truth.json", ("ablation",), content={"ablation": content})
    dots = [
        Dot.at(f"{measure}, {group}", source.at("drop", group, measure), kind=kind)
        for measure in (MEASURES if content else ())
        for group, kind in (("informative", "main"), ("other", "floor"))
    ]
    silenced = cite(content.get("n_silenced"), source.at("n_silenced"), "count")
    plot = draw_dots("drop", dots, label_width=150.0)
    note = Markup(f"{silenced} of each kind")
    return {"name": "drop when voxels are silenced", "note": note, "plot": plot}
