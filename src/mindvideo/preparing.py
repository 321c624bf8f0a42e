"""The stage ``prepare``: a recipe's recordings, films and captions to ``RUN/prepare``."""

from __future__ import annotations

from pathlib import Path

from mindvideo.config import Data, Recipe
from mindvideo.data.captions import Captioning
from mindvideo.data.groups import is_complete
from mindvideo.data.pool import Pool, local_workers, open_pool
from mindvideo.data.preparation import refuse_others
from mindvideo.data.readers import prepare
from mindvideo.data.readers.hcp import prepare_hcp
from mindvideo.data.store import Store, store_paths
from mindvideo.files import write_json
from mindvideo.models.foundation import Foundation
from mindvideo.stages import Progress, StageContext

TRUE_CAPTIONS = Path("truth") / "captions.json"
SIMULATED = Path("truth") / "settings.json"
"""What ``simulate`` leaves beside its recordings."""


def each_person(recipe: Recipe) -> list[Recipe]:
    """The recipe for one of its people at a time."""
    if recipe.data.subjects is None:
        return [recipe]
    found = []
    for number in recipe.data.subjects:
        data = recipe.data.model_copy(update={"subject": number, "subjects": None})
        if data.source == "store" and data.raw is not None:
            data = data.model_copy(update={"raw": data.raw / f"subject{number}.zarr"})
        if data.source == "fmriprep":
            data = data.model_copy(update={"fmriprep": data.own.model_copy(update={"participant": number})})
        found.append(recipe.model_copy(update={"data": data}))
    return found


def run(context: StageContext) -> None:
    """Write what is missing of each person's store, and ``hcp.zarr`` to pre-train on.

    Frames, scenes and captions are the first person's, for all.
    """
    recipe, run_dir, folder, progress = context
    segments = folder / "hcp.zarr"
    remarks = []
    films = None
    simulated = run_dir / "simulate" if recipe.simulate is not None else None
    for one, path in zip(each_person(recipe), store_paths(recipe.data, folder), strict=True):
        if not is_complete(path):
            with open_pool(local_workers()) as pool:
                raw = simulated or one.data.raw
                assert raw is not None
                prepare_recordings(one, raw, path, pool, progress, run_dir / "captions.jsonl", films)
        store = Store.open(path)
        films = films or store
        theirs = store.shown()
        refuse_others(films, store.subject, [name for name, what in films.shown().items() if theirs.get(name) != what])
        remarks += [f"{store.subject}: {line}" if recipe.data.subjects else line for line in store.remarks]
    hcp = simulated / "hcp" if simulated is not None else recipe.data.hcp
    if hcp is not None and not is_complete(segments):
        remarks += prepare_people(recipe, hcp, segments, progress)
    write_json(folder / "remarks.json", {"lines": remarks})


def prepare_recordings(
    recipe: Recipe,
    raw: Path,
    out: Path,
    pool: Pool,
    progress: Progress | None = None,
    caption_cache: Path | None = None,
    films: Store | None = None,
) -> Store:
    """Prepare a recipe's recordings and films, see `mindvideo.data.readers.prepare`."""
    data, captioning = choose_captioner(recipe, raw, caption_cache)
    if data.captions == "truth":
        data = data.model_copy(update={"captions": str(raw / TRUE_CAPTIONS)})
    return prepare(raw, out, data, progress, captioning, pool, films)


def prepare_people(recipe: Recipe, raw: Path, out: Path, progress: Progress | None = None) -> list[str]:
    """Prepare the people a recipe pre-trains on, see `prepare_hcp`."""
    settings = recipe.pretrain
    return prepare_hcp(raw, out, settings.window_s, settings.areas.split(","), progress)


def choose_captioner(recipe: Recipe, raw: Path, cache: Path | None = None) -> tuple[Data, Captioning | None]:
    """The settings with the captions that can be had, and the captioner in use.

    Films of a real recording get no captions of the embedded kit, unless these are wanted.
    """
    data = recipe.data
    if data.captions != "blip" or data.source == "store":
        return data, None
    frozen = Foundation(recipe.foundation)
    is_kit = frozen.captioner_identity == Foundation("embedded").captioner_identity
    if is_kit and not recipe.kit_on_real_films and not (raw / SIMULATED).is_file():
        return data.model_copy(update={"captions": "none"}), None
    frozen.require("captioner")
    return data, Captioning(frozen.caption, frozen.captioner_identity, cache)
