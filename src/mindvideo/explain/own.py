"""The explain stage for an encoder of the user's own, whose attention nobody knows: occlusion by area alone."""

from __future__ import annotations

import torch

from mindvideo.data.disk import disk_errors
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.explain import maps, occlusion
from mindvideo.models.foundation import Foundation
from mindvideo.models.own_encoder import load_encoder
from mindvideo.stages import StageContext


def explain_own(context: StageContext) -> None:
    """Write ``RUN/explain/occlusion.json``: the drop in alignment when each area is silenced.

    There are no attention maps: what an encoder attends to inside is its own affair. Where the voxels' places are not
    known there are no areas either, and only the intact alignment is written.
    """
    recipe, run_dir, folder, progress = context
    store = Store.open(run_dir / "prepare" / "store.zarr")
    foundation = Foundation(recipe.foundation)
    encoder = load_encoder(run_dir / "cotrain" / "fmri_encoder").eval()
    torch.nn.Module.to(encoder, "cuda" if torch.cuda.is_available() else "cpu")
    windows = Windows(store, "test", encoder.config.window)
    index = maps.choose_evenly(len(windows), recipe.explain.max_windows)
    areas = occlusion.group_by_area(store.area) if store.has_positions else {}
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, len(areas), {"part": "occlusion"})

    targets = maps.make_targets(foundation, windows, index)
    intact, drops = occlusion.measure_drops(encoder, windows.fmri(index), areas, targets, advance)
    with disk_errors(folder, "the occlusion of areas"):
        folder.mkdir(parents=True, exist_ok=True)
        maps.write_occlusion(folder / "occlusion.json", "cotrain", len(index), intact, drops, areas)
