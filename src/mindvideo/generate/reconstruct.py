"""The stage ``reconstruct``: the pipeline in one folder, and clips with their controls.

Shapes: n windows, F frames, H W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
import zarr
from safetensors import SafetensorError

from mindvideo import distributed
from mindvideo.artefacts import record_files
from mindvideo.clip_sets import WITHOUT_BRAIN
from mindvideo.config import Recipe, as_sampled
from mindvideo.data.store import Store, open_stores, person_folders
from mindvideo.data.windows import Windows, spread_evenly
from mindvideo.errors import ModelError
from mindvideo.files import beside, beside_folder, disk_errors, write_text
from mindvideo.generate.clips import ClipMaker, choose_test_windows, split_batches
from mindvideo.generate.pipeline import MindVideoPipeline
from mindvideo.generate.recording import write_recorded
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.encoders import load_encoder
from mindvideo.models.foundation import Foundation
from mindvideo.models.generators import load_generator
from mindvideo.precision import sampling_in, settle_precision
from mindvideo.stages import Progress, StageContext


def run(context: StageContext) -> None:
    """Write ``RUN/model`` and ``RUN/reconstruct/{clips.zarr, windows.json, preview.png}``.

    Clips are written batch by batch; a killed run goes on after its last finished batch, to the
    same bits. Each of several people has a folder ``subjectN``; what needs no brain is made for the
    first and copied.

    Raises
    ------
    ModelError
        When a part is missing, does not fit, or was made for another subject's voxels.
    DataError
        When no permutation can give every window another scene's fMRI.
    """
    recipe, run_dir, folder, progress = context
    recipe, device = as_sampled(recipe), distributed.device()
    stores = open_stores(recipe.data, run_dir)
    foundation = Foundation(recipe.foundation, device)
    if distributed.is_main():
        save_pipeline(assemble_pipeline(recipe, run_dir, stores, foundation), folder / "model", stores)
    distributed.barrier()
    pipeline = MindVideoPipeline.from_pretrained(folder / "model").to(device)
    recipe = sampling_in(recipe, settle_precision(folder, recipe.reconstruct.precision, device))
    first: zarr.Group | None = None
    for person, (store, place) in enumerate(zip(stores, person_folders(recipe.data, folder), strict=True)):
        test = choose_test_windows(recipe, store, pipeline.fmri_encoder.config.window)
        makers = ClipMaker(recipe, store, *test, pipeline.of_person(person), foundation)
        fingerprint = _fingerprint(recipe, run_dir, store, foundation)
        clips = _reconstruct_person(makers, place, fingerprint, first, progress)
        first = clips if first is None else first


def _reconstruct_person(
    makers: ClipMaker, folder: Path, fingerprint: str, others: zarr.Group | None, progress: Progress | None
) -> zarr.Group:
    """One person's clips; those that need no brain are copied from ``others``."""

    def make(name: str, positions: np.ndarray) -> np.ndarray:
        if others is None or name not in WITHOUT_BRAIN:
            return makers.make(name, positions)
        return np.asarray(cast(zarr.Array, others[name])[positions[0] : positions[-1] + 1])

    with disk_errors(folder, "clips", makers.n_bytes):
        folder.mkdir(parents=True, exist_ok=True)
        with distributed.main_first():
            if distributed.is_main():
                write_text(folder / "windows.json", json.dumps(makers.description, indent=1))
            negative = makers.recipe.reconstruct.negative
            about = {"negative": negative, "is_transductive": negative == "test_mean", **makers.about_frames}
            clips = open_clips(
                folder / "clips.zarr", makers.labels, makers.shape, len(makers.chosen), fingerprint, **about
            )
        fill_clips(clips, make, makers.recipe.reconstruct.batch_size, progress)
        if distributed.is_main():
            write_preview(folder / "preview.png", clips["truth"], clips["reconstruction"])
    return clips


def assemble_pipeline(
    recipe: Recipe, run_dir: Path, stores: Sequence[Store], foundation: Foundation
) -> MindVideoPipeline:
    """The study's encoder and UNet, or its student, with the foundation's VAE and noise schedule.

    ModelError when a part is missing, or the encoder was trained on other voxels than the stores'.
    """
    encoder = load_encoder(_require_part(run_dir / "cotrain" / "fmri_encoder"))
    encoder.require_voxels([store.layout for store in stores], run_dir / "cotrain" / "fmri_encoder")
    windows = Windows(stores, "train", encoder.config.window)
    means = torch.from_numpy(np.stack([windows.mean_fmri(person) for person in range(len(stores))]))
    spacing = None if recipe.distill is None else "trailing"
    return MindVideoPipeline(
        fmri_encoder=encoder.eval(),
        unet=load_generator(_require_part(_generator_folder(recipe, run_dir))).eval(),
        vae=foundation.vae,
        scheduler=make_scheduler(dict(foundation.scheduler_config), recipe.reconstruct.scheduler, spacing),
        num_inference_steps=recipe.reconstruct.steps,
        guidance_scale=recipe.reconstruct.guidance_scale,
        train_mean=means[0] if len(stores) == 1 else means,
        null_condition=foundation.null_condition(),
        num_frames=stores[0].num_frames,
        frame_size=stores[0].size,
    )


def _generator_folder(recipe: Recipe, run_dir: Path) -> Path:
    return run_dir / ("cotrain" if recipe.distill is None else "distill") / "unet"


def _require_part(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"expected a trained model at {folder}, found none; run the stage {folder.parent.name} first")
    return folder


def save_pipeline(pipeline: MindVideoPipeline, folder: Path, stores: Sequence[Store]) -> None:
    """Write a pipeline and ``recording.json``, atomically."""
    try:
        with disk_errors(folder, "the pipeline"), beside_folder(folder) as place:
            pipeline.save_pretrained(place)
            write_recorded(stores, place)
    except SafetensorError as error:
        raise ModelError(
            f"expected to write the pipeline to {folder}, found: {error}; see that the disk has room"
        ) from error


def _fingerprint(recipe: Recipe, run_dir: Path, store: Store, foundation: Foundation) -> str:
    digest = hashlib.sha256(recipe.reconstruct.model_dump_json().encode())
    stored = json.dumps(dict(store.attrs), sort_keys=True, default=str)
    block_s = recipe.evaluate.block_s if recipe.reconstruct.max_windows is not None else None  # chooses windows
    for part in (recipe.seed, block_s, store.voxel_id, stored, foundation.identity):
        digest.update(f"{part}\n".encode())
    models = [run_dir / "cotrain" / "fmri_encoder", _generator_folder(recipe, run_dir)]
    digest.update(json.dumps(record_files(run_dir, models)).encode())
    return digest.hexdigest()


def open_clips(
    path: Path, labels: dict[str, str], shape: tuple[int, ...], n: int, fingerprint: str, **about: Any
) -> zarr.Group:
    """Clips (n, F, H, W, 3) of every name in ``labels``: those of this fingerprint, or empty."""
    if (path / "zarr.json").is_file():
        found = zarr.open_group(path, mode="r+")
        if found.attrs.get("fingerprint") == fingerprint:
            return found
    attributes: dict[str, Any] = {
        "names": list(labels),
        "labels": labels,
        **about,
        "fingerprint": fingerprint,
        "done": dict.fromkeys(labels, 0),
        "complete": False,
    }
    with beside_folder(path) as place:
        group = zarr.open_group(place, mode="w", attributes=attributes)
        for name in labels:
            group.create_array(name, shape=(n, *shape), chunks=(1, *shape), dtype="uint8")
    return zarr.open_group(path, mode="r+")


def fill_clips(
    clips: zarr.Group, make: Callable[[str, np.ndarray], np.ndarray], batch_size: int, progress: Progress | None
) -> None:
    """Make and write every batch not yet done; several processes take one each at a time."""
    team, names = distributed.world_size(), cast(list[str], clips.attrs["names"])
    batches = split_batches(cast(zarr.Array, clips[names[0]]).shape[0], batch_size)
    finished, total = 0, len(batches) * len(names)
    for name in names:
        array = cast(zarr.Array, clips[name])
        done = cast(dict[str, int], distributed.broadcast(clips.attrs["done"]))
        finished += done[name]
        for first in range(done[name], len(batches), team):
            together = batches[first : first + team]
            if distributed.rank() < len(together):
                positions = together[distributed.rank()]
                array[positions[0] : positions[-1] + 1] = make(name, positions)
            distributed.barrier()
            finished += len(together)
            if distributed.is_main():
                clips.attrs["done"] = done | {name: first + len(together)}
            if progress is not None:
                progress(finished, total, {"clips": name})
    if distributed.is_main():
        clips.attrs["complete"] = True
    distributed.barrier()


def write_preview(path: Path, truth: Any, reconstruction: Any, n_columns: int = 8, height: int = 96) -> None:
    """Write a sheet of middle frames, truth above reconstruction, of evenly spread windows."""
    shown = spread_evenly(truth.shape[0], 2 * n_columns)
    rows = np.array_split(shown, 2 if len(shown) > n_columns else 1)
    bands = []
    for row in rows:
        cells = [_pair(truth[int(i)], reconstruction[int(i)], height) for i in row]
        blank = np.full_like(cells[0], 255)
        bands.append(np.concatenate(cells + [blank] * (len(rows[0]) - len(cells)), axis=1))
    ok, encoded = cv2.imencode(".png", cv2.cvtColor(np.concatenate(bands), cv2.COLOR_RGB2BGR))
    assert ok
    with beside(path) as place:
        place.write_bytes(encoded.tobytes())


def _pair(truth: np.ndarray, reconstruction: np.ndarray, height: int) -> np.ndarray:
    scale = max(1, height // truth.shape[1])
    frames = [clip[clip.shape[0] // 2].repeat(scale, 0).repeat(scale, 1) for clip in (truth, reconstruction)]
    return np.pad(np.concatenate(frames), ((0, 8), (0, 4), (0, 0)), constant_values=255)
