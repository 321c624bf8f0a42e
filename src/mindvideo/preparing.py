"""The stage ``prepare``: recordings, films and captions of a recipe, real or simulated, to ``RUN/prepare``."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mindvideo.config import Recipe
from mindvideo.data.hcp import prepare_hcp
from mindvideo.data.pool import local_workers, open_pool
from mindvideo.data.store import is_complete
from mindvideo.errors import SettingError
from mindvideo.models.foundation import Foundation
from mindvideo.stages import StageContext

CAPTION_SOURCES = ("blip", "truth", "published")
"""What ``data.captions`` may be besides a file."""
TRUE_CAPTIONS = Path("truth") / "captions.json"


def recordings_of(recipe: Recipe, run_dir: Path) -> Path:
    """Folder with the recordings: the recipe's, or the simulated one."""
    if recipe.simulate is not None:
        return run_dir / "simulate"
    if recipe.data.raw is None:
        raise SettingError("expected the folder of the recordings, found none; give --set data.raw=FOLDER")
    return recipe.data.raw


def run(context: StageContext) -> None:
    """Write ``store.zarr``, and ``hcp.zarr`` where there are people to pre-train on; what is complete stays."""
    recipe, run_dir, folder, progress = context
    data, raw = recipe.data, recordings_of(recipe, run_dir)
    given: dict[str, Any] = {"progress": progress}
    if data.captions == "blip":
        frozen = Foundation(recipe.foundation)
        given |= {"captioner": frozen.caption, "captioner_name": frozen.captioner_identity}
        given["caption_cache"] = run_dir / "captions.jsonl"  # outlives the store: other voxels, the same frames
    elif data.captions == "truth":
        data = data.model_copy(update={"captions": str(raw / TRUE_CAPTIONS)})
    store, segments = folder / "store.zarr", folder / "hcp.zarr"
    if not is_complete(store):
        with open_pool(local_workers()) as pool:
            import_module(f"mindvideo.data.{data.source}").prepare(raw, store, data, pool=pool, **given)
    hcp = raw / "hcp" if recipe.simulate is not None else data.hcp
    if hcp is not None and not is_complete(segments):
        prepare_hcp(hcp, segments, window_s=recipe.pretrain.window_s, progress=progress)
