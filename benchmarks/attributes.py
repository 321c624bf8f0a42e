"""How much of what the scans say of a clip's attributes arrives in the reconstruction?

Run with ``python benchmarks/attributes.py RUN`` after a study of a simulated subject. For each attribute of the scene (thing,
colour, place, position, motion) a linear read-out, ridge regression of the names from the training windows that ``align``
reads, says what is in the scans of the test windows. The share of them that is right, times the share that the generator
draws right from the true caption, is what a reconstruction could reach. Windows with a cut are left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV

from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.study import Study

ATTRIBUTES = ("thing", "colour", "place", "position", "motion")
ALPHAS = 10.0 ** np.arange(0, 8)


def names_of(scenes: dict, windows: Windows, fps: float) -> dict[str, np.ndarray]:
    """Each window's attributes in the middle of its first scan; empty where the scene changes inside it."""
    names: dict[str, list[str]] = {kind: [] for kind in ATTRIBUTES}
    tr_s = windows.store.tr_s
    for segment, scan in zip(windows.segment, windows.scan, strict=True):
        middle_s = (int(scan) + 0.5) * tr_s
        scene = next(s for s in scenes[segment] if s["start_s"] <= middle_s < s["end_s"])
        is_whole = scene["start_s"] <= scan * tr_s and (scan + 1) * tr_s <= scene["end_s"]
        where = scene["where"][min(int((middle_s - scene["start_s"]) * fps), len(scene["where"]) - 1)][0]
        for kind in ATTRIBUTES:
            names[kind].append((scene.get(kind) if kind != "position" else where) or "" if is_whole else "")
    return {kind: np.array(found) for kind, found in names.items()}


def read_out(train_NV: np.ndarray, train_names: np.ndarray, test_MV: np.ndarray) -> np.ndarray:
    """The likeliest name of each test window, by ridge regression of one-hot names; penalty by contiguous fifths."""
    set_backend("numpy")
    centre, scale = train_NV.mean(axis=0), train_NV.std()
    train, test = ((part - centre).astype(np.float64) / scale for part in (train_NV, test_MV))
    names, index = np.unique(train_names, return_inverse=True)
    targets = np.eye(len(names))[index]
    share = targets.mean(axis=0)
    model = KernelRidgeCV(alphas=ALPHAS, kernel="precomputed", cv=5, solver_params={"local_alpha": False}, warn=False)
    model.fit(train @ train.T, targets - share)
    return names[(test @ train.T @ model.dual_coef_ + share).argmax(axis=1)]


def main() -> None:
    """Print one line an attribute."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    recipe, store = Study.open(run).recipe, Store.open(run / "prepare" / "store.zarr")
    scenes = json.loads((run / "simulate" / "truth" / "scenes.json").read_text())
    scores = json.loads((run / "evaluate" / "scores.json").read_text())
    splits = {split: Windows(store, split, recipe.align.window) for split in ("train", "test")}
    names = {split: names_of(scenes, windows, store.fps) for split, windows in splits.items()}
    scans = {
        split: windows.fmri(np.arange(len(windows))).reshape(len(windows), -1) for split, windows in splits.items()
    }
    print("attribute  in the scans  from the caption  product  reconstruction  share  shuffled")
    for kind in ATTRIBUTES:
        known = {split: names[split][kind] != "" for split in splits}
        found = read_out(
            scans["train"][known["train"]], names["train"][kind][known["train"]], scans["test"][known["test"]]
        )
        right = float((found == names["test"][kind][known["test"]]).mean())
        score = scores[f"attribute_{kind}"]
        product = right * score["controls"]["caption"]
        print(
            f"{kind:9}  {right:12.3f}  {score['controls']['caption']:16.3f}  {product:7.3f}  {score['value']:14.3f}  "
            f"{score['value'] / product:5.2f}  {score['controls']['shuffled']:8.3f}"
        )


if __name__ == "__main__":
    main()
