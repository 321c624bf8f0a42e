"""Do the maps of a trained encoder find the voxels that carry signal? On a simulated subject, where these are known.

Run with ``python benchmarks/maps.py OUT [--simulated RUN/simulate]``. Whole areas are taken, about as many voxels that
answer to the films as voxels that share only slow fluctuations, and no selection removes the latter; otherwise the area
under the ROC curve does not exist. The encoder learns from scratch, the generator takes no part. ``OUT/explain`` is what
``mindvideo explain`` writes; what is already in OUT is used again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mindvideo import atlas
from mindvideo.config import Recipe, load_recipe
from mindvideo.data.groups import is_complete
from mindvideo.data.readers import prepare
from mindvideo.explain import maps
from mindvideo.simulate.recordings import simulate
from mindvideo.stages import StageContext
from mindvideo.train import align

SETTINGS = [
    "simulate.pretrain_people=1",
    "data.selection=all",
    "encoder.patch_size=16",
    "align.start_from=scratch",
    "align.loss=none",
    "align.steps=250",
    "align.batch_size=32",
    "align.val_every=125",
    "pretrain.enabled=false",
    "adapt.enabled=false",
    "explain.max_windows=120",
]
VOXELS_OF_A_KIND = 1200


def choose_areas(truth: Path, seed: int = 0) -> list[str]:
    """Random whole areas until there are enough voxels of each kind."""
    with np.load(truth, allow_pickle=False) as archive:
        vertex, is_informative = archive["vertex"], archive["is_informative"].astype(bool)
    area = np.array([name[2:] for name in atlas.area_names()])[atlas.area_labels()[vertex]]
    chosen: list[str] = []
    rng = np.random.default_rng(seed)
    for kind in (True, False):
        count = 0
        for name in rng.permutation(np.unique(area[is_informative == kind])):
            members = area == name
            if count < VOXELS_OF_A_KIND and members.sum() < VOXELS_OF_A_KIND / 2:
                chosen.append(str(name))
                count += int(members.sum())
    return chosen


def make_run(out: Path, simulated: Path | None) -> Recipe:
    """Simulate, prepare and train what is not there yet."""
    recipe = load_recipe("demo", SETTINGS)
    assert recipe.simulate is not None
    out.mkdir(parents=True, exist_ok=True)
    raw = out / "simulate"
    if simulated is not None and not raw.exists():
        raw.symlink_to(simulated.resolve(), target_is_directory=True)
    if simulated is None:
        simulate(recipe.simulate, raw, recipe.seed)
    areas = choose_areas(raw / "truth" / "vertices_subject1.npz")
    data = recipe.data.model_copy(update={"areas": ",".join(areas), "captions": str(raw / "truth" / "captions.json")})
    if not is_complete(out / "prepare" / "store.zarr"):
        prepare(raw, out / "prepare" / "store.zarr", data)
    if not (out / "align" / "model").is_dir():
        start = time.process_time()
        align.run(StageContext.of(recipe, out, "align"))
        print(f"trained in {time.process_time() - start:.0f} CPU-seconds")
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--simulated", type=Path, help="the simulate/ folder of a demo run, to save two minutes")
    arguments = parser.parse_args()
    recipe = make_run(arguments.out, arguments.simulated)
    start = time.process_time()
    maps.run(StageContext.of(recipe, arguments.out, "explain"))
    print(f"explained in {time.process_time() - start:.0f} CPU-seconds")
    truth = json.loads((arguments.out / "explain" / "truth.json").read_text())
    intact = json.loads((arguments.out / "explain" / "occlusion.json").read_text())["intact"]
    print(f"{truth['n_informative']} of {truth['n_voxels']} voxels are informative; alignment intact: "
          + ", ".join(f"{name} {value:.3f}" for name, value in intact.items()))  # fmt: skip
    low, _, high = truth["auc_random"]
    print(f"\n{'area under the ROC curve':34s} trained   untrained encoders      (random maps {low:.2f}–{high:.2f})")
    for name, value in truth["auc"].items():
        kind, layer = name.split("_", 1)
        twin = f"{kind}_{layer.rsplit('_', 1)[-1]}"
        print(f"{name:34s} {value:.3f}     " + ", ".join(f"{one:.3f}" for one in truth["auc_untrained"][twin]))
    print(f"\n{truth['ablation']['n_silenced']} voxels of a kind silenced, drop in alignment: informative, other")
    for measure in intact:
        both = [truth["ablation"]["drop"][kind][measure] for kind in ("informative", "other")]
        print(f"{measure:34s} {both[0]:+.4f}   {both[1]:+.4f}")
    print("\nwhole areas silenced, mean drop in 1,000 voxels: informative, other")
    for measure in intact:
        both = [1000 * truth["areas"][kind]["drop"][measure] for kind in ("informative", "other")]
        print(f"{measure:34s} {both[0]:+.4f}   {both[1]:+.4f}")


if __name__ == "__main__":
    main()
