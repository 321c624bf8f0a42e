"""The stage ``prepare``: recordings, films and captions of a recipe, real or simulated, to ``RUN/prepare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mindvideo.config import Data, Recipe
from mindvideo.data.captions import Captioner
from mindvideo.data.disk import write_text
from mindvideo.data.pool import local_workers, open_pool
from mindvideo.data.readers import prepare
from mindvideo.data.readers.hcp import prepare_hcp
from mindvideo.data.store import Store, is_complete
from mindvideo.errors import SettingError
from mindvideo.models.foundation import Foundation
from mindvideo.stages import StageContext

CAPTION_SOURCES = ("blip", "truth", "published", "none")
"""What ``data.captions`` may be besides a file."""
TRUE_CAPTIONS = Path("truth") / "captions.json"
SIMULATED = Path("truth") / "settings.json"
"""What ``simulate`` leaves beside its recordings."""


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
    raw = recordings_of(recipe, run_dir)
    data, captioner, name = choose_captioner(recipe.data, recipe.foundation, raw, recipe.kit_on_real_films)
    given: dict[str, Any] = {"progress": progress, "captioner": captioner, "captioner_name": name}
    given["caption_cache"] = run_dir / "captions.jsonl"  # outlives the store: other voxels, the same frames
    if data.captions == "truth":
        data = data.model_copy(update={"captions": str(raw / TRUE_CAPTIONS)})
    store, segments = folder / "store.zarr", folder / "hcp.zarr"
    if not is_complete(store):
        with open_pool(local_workers()) as pool:
            prepare(raw, store, data, pool=pool, **given)
    hcp = raw / "hcp" if recipe.simulate is not None else data.hcp
    remarks = Store.open(store).remarks
    if hcp is not None and not is_complete(segments):
        remarks += prepare_hcp(hcp, segments, window_s=recipe.pretrain.window_s, progress=progress)
    write_text(folder / "remarks.json", json.dumps({"lines": remarks}, indent=1))


def choose_captioner(
    data: Data, foundation: str, raw: Path, on_real_films: bool = False
) -> tuple[Data, Captioner | None, str]:
    """The settings with the captions that can be had, and the captioner with its name where they come from one.

    The embedded kit knows one drawn world. Of films of a real recording (not written by ``simulate``) its captions would
    be made up; they are left out, unless the user wants them to try the plumbing.
    """
    if data.captions != "blip" or data.source == "store":
        return data, None, ""
    frozen = Foundation(foundation)
    is_kit = frozen.captioner_identity == Foundation("embedded").captioner_identity
    if is_kit and not on_real_films and not (raw / SIMULATED).is_file():
        return data.model_copy(update={"captions": "none"}), None, ""
    frozen.require("captioner")
    return data, frozen.caption, frozen.captioner_identity
