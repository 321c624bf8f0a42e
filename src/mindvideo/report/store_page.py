"""What a prepared store holds, as rows and as a page (``mindvideo inspect``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mindvideo.data.store import SPLITS, Store
from mindvideo.data.windows import near_duplicates
from mindvideo.errors import DataError
from mindvideo.explain.surfaces import draw_flat_map, save_figure
from mindvideo.files import disk_errors, write_text
from mindvideo.report.page import render

Sections = dict[str, dict[str, str]]
MOST_PAIRS = 20
EXAMPLES = 6
_INK, _PALE = "#20639b", "#c9d6e2"


def describe_store(store: Store) -> Sections:
    """What ``mindvideo inspect`` says, by section."""
    summary = store.summary()
    median = summary["reproducibility_median"]
    placed = "parcels" if store.parcels else "place not known"
    if store.has_positions:
        placed = f"{summary['voxels_left']} left, {summary['voxels_right']} right"
    near = near_duplicates(store)
    test_scans = summary["windows"]["test"]
    return {
        "Store": {
            "subject": store.subject,
            "place": str(store.path),
            "timing": f"TR {store.tr_s:g} s, lag {store.lag_s:g} s",
            "training windows": "of single runs" if store.keeps_repeats_apart else "of the average of the runs",
        },
        "Voxels": {
            "voxels": f"{store.n_voxels} ({placed})",
            "between-run correlation, median": "not measured" if median is None else f"{median:.3f}",
            "identity": store.voxel_id,
            "by area": ", ".join(f"{name} {count}" for name, count in summary["voxels_per_area"].items()),
        },
        "Windows": {split: _describe_split(store, split, summary["scenes"][split]) for split in SPLITS},
        "Films": {
            "frames": f"{store.num_frames} a scan ({store.fps} a second), {store.size} x {store.size} pixels",
            "captions": f"{summary['captions']} different",
            "for example": "; ".join(f"“{store.captions(name)[0]}”" for name in store.order[:3])
            if store.has_captions
            else "left out",
        },
        "Near-duplicates between training and test films": {
            "test scans that look like a training scan": f"{len(near)} of {test_scans}",
            **{
                f"{pair.test_segment} scan {pair.test_scan}": f"{pair.train_segment} scan {pair.train_scan}, correlation "
                f"{pair.correlation:.3f}"
                for pair in near[:MOST_PAIRS]
            },
            **({"more": f"{len(near) - MOST_PAIRS}"} if len(near) > MOST_PAIRS else {}),
        },
        "Steps": {item["step"]: json.dumps(item["parameters"], ensure_ascii=False) for item in summary["provenance"]},
        "Sources (SHA-256)": dict(summary["sources"]),
    }


def _describe_split(store: Store, split: str, n_scenes: int) -> str:
    names = store.segments(split)
    if not names:
        return "none"
    n_scans = sum(store.n_scans(name) for name in names)
    counts = sorted({store.n_repeats(name) for name in names})
    runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{n_scans} in {len(names)} segments ({', '.join(names)}), {n_scenes} scenes, {runs} runs a segment"


def write_page(store: Store, sections: Sections, out: Path) -> Path:
    """Write ``index.html`` with its pictures into ``out``, the page last; returns its path.

    DataError for a folder inside the store, or one that cannot be written.
    """
    if out.resolve().is_relative_to(store.path.resolve()):
        raise DataError(f"expected a folder outside the store {store.path}, found {out}; a store is never written into")
    with disk_errors(out, "the page"):
        out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}
    values = store.reproducibility
    if np.isfinite(values).any():
        title = f"Reproducibility, {store.subject}"
        name = "reproducibility.png"
        draw_flat_map(values, out / name, title, "between-run correlation")
        pictures[name] = (
            "Mean correlation of each vertex between two recordings of a training film; grey: not measured."
        )
        save_figure(_draw_histogram(store, values), out / "histogram.png")
        pictures["histogram.png"] = "The same correlations, of all measured vertices and of those in the store."
    if store.has_positions:
        chosen = np.full(len(values), np.nan)
        chosen[store.vertex] = np.arange(store.n_voxels)
        draw_flat_map(chosen, out / "voxels.png", f"{store.n_voxels} voxels of the store", "place in the voxel order")
        pictures["voxels.png"] = "The voxels of the store, coloured by their place in its order."
    figure, captions = _draw_examples(store)
    save_figure(figure, out / "frames.png")
    pictures["frames.png"] = f"Middle frames of evenly spaced scans. {captions}"
    content = {"title": f"Prepared store of {store.subject}", "pictures": pictures, "sections": sections}
    write_text(out / "index.html", render("store.html", content))
    return out / "index.html"


def _draw_histogram(store: Store, values: np.ndarray) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    tested = values[np.isfinite(values)]
    chosen = values[store.vertex] if store.has_positions else np.empty(0)
    edges = np.linspace(tested.min(), tested.max() + 1e-6, 51).tolist()
    axis.hist(tested, edges, color=_PALE, label=f"{len(tested)} measured")
    axis.hist(chosen[np.isfinite(chosen)], edges, color=_INK, label=f"{len(chosen)} in the store")
    axis.legend(fontsize=8, frameon=False)
    axis.set_xlabel("between-run correlation")
    axis.set_ylabel("vertices")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_examples(store: Store) -> tuple[Figure, str]:
    used = [split for split in SPLITS if store.segments(split)]
    figure = Figure(figsize=(11, 2.2 * len(used)), layout="constrained")
    told: list[str] = []
    for row, split in zip(figure.subplots(len(used), EXAMPLES, squeeze=False), used, strict=True):
        scans = [(name, scan) for name in store.segments(split) for scan in range(store.n_scans(name))]
        wanted = np.linspace(0, len(scans) - 1, EXAMPLES).round().astype(int)
        for axis, (name, scan) in zip(row, [scans[index] for index in wanted], strict=True):
            frame = store.frames(name, scan, scan + 1)[0, store.num_frames // 2]
            axis.imshow(frame)
            axis.set_axis_off()
            words = f"“{store.captions(name)[scan]}”" if store.has_captions else "no caption"
            told.append(f"{len(told) + 1}: {split}, {name}, scan {scan}, {words}")
            axis.set_title(f"{len(told)}", fontsize=8)
    return figure, "; ".join(told)
