"""Frozen features of the films, computed once and kept under ``RUN/features``.

Each table is a zarr group with a key and the number of rows done, so that a killed computation goes
on. Another key, or damage to a finished table, starts it anew.

Shapes: N windows or captions, F frames, K augmented variants, L condition tokens, C condition
width, c h w latents.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import zarr

from mindvideo import distributed
from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.config import Recipe
from mindvideo.data.store import Store, listed
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.files import write_text
from mindvideo.models.foundation import Foundation
from mindvideo.train.augmentation import CROP_SIDE, augment_captions, random_crops
from mindvideo.train.stage import stage_seed
from mindvideo.train.thesaurus import Source, open_thesaurus

Progress = Callable[[int, int, dict[str, float]], None]

VARIANTS = 4
"""Augmented versions of a caption, beside the caption itself, where they are made once."""
CROPS = 1
"""Random crops of each frame, beside the whole frame, if made once."""
CAPTION_BATCH, CLIP_BATCH = 64, 16
"""Rows of captions and of clips computed, and written, at once."""
Split = Literal["train", "validation"]
FILES = "files.json"
"""Size and digest of every file of a finished table, beside its arrays."""


def store_identity(store: Store) -> str:
    """A digest of all that the store records, except where the films lie."""
    films = {
        segment: {key: value for key, value in film.items() if key not in ("path", "beside")}
        for segment, film in store.attrs.get("films", {}).items()
    }
    return _digest({"attributes": {**store.attrs, "films": films}, "voxels": store.voxel_id})


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def compute_table(
    path: Path,
    key: dict[str, Any],
    n_rows: int,
    batch: int,
    compute: Callable[[int, int], dict[str, np.ndarray]],
    progress: Progress | None = None,
) -> zarr.Group:
    """A table of ``n_rows`` rows, filled as far as it is not.

    Parameters
    ----------
    path : Path
        Folder of the zarr group.
    key : dict
        What the rows depend on; a table with another key is discarded.
    n_rows, batch : int
        Rows of the table, and rows computed and written at once (a chunk).
    compute : callable
        ``(start, stop) -> {name: (stop - start, ...) array}``.
    progress : callable, optional
        Called with (rows done, rows, {}).

    Raises
    ------
    DataError
        When a computed value is not finite.
    """
    digest = _digest({**key, "rows": n_rows, "batch": batch})
    with distributed.main_first():
        group = _open_table(path, digest)
        if group is None:
            shutil.rmtree(path, ignore_errors=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            group = zarr.open_group(path, mode="w", attributes={"key": digest, "done": 0})
        for start in range(cast(int, group.attrs["done"]), n_rows, batch):
            stop = min(start + batch, n_rows)
            for name, rows in compute(start, stop).items():
                if not np.isfinite(rows).all():
                    raise DataError(
                        f"expected finite features in rows {start} to {stop} of {path}/{name}, found others; "
                        "look at those frames or captions and at the foundation's weights"
                    )
                if start == 0:
                    shape, chunks = ((n, *rows.shape[1:]) for n in (n_rows, min(batch, n_rows)))
                    group.create_array(name, shape=shape, chunks=chunks, dtype=rows.dtype, overwrite=True)
                cast(zarr.Array, group[name])[start:stop] = rows
            group.attrs["done"] = stop
            if progress is not None:
                progress(stop, n_rows, {})
        if not (path / FILES).is_file():
            write_text(path / FILES, json.dumps(record_files(path, [path])))
        return group


def _open_table(path: Path, digest: str) -> zarr.Group | None:
    """The table with this key; None if there is none, or a finished one is damaged."""
    if not (path / "zarr.json").is_file():
        return None
    if (path / FILES).exists() and not is_intact(path, read_note(path / FILES)):
        return None
    try:
        group = zarr.open_group(path, mode="r+")
        return group if group.attrs.get("key") == digest else None
    except Exception:  # damaged metadata make zarr raise nearly any exception
        return None


def read_array(group: zarr.Group, name: str) -> torch.Tensor:
    """One array of a table, whole."""
    return torch.from_numpy(np.asarray(cast(zarr.Array, group[name])[:]))


def _numpy(tensor: torch.Tensor | np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    return torch.as_tensor(tensor).detach().float().cpu().numpy().astype(dtype)


@dataclass(frozen=True)
class TextFeatures:
    """Tokens (N, L, C) float16 and pooled embeddings (N, 1 + K, C) float32 of captions."""

    row: dict[str, int]
    tokens: torch.Tensor
    pooled: torch.Tensor

    def rows(self, captions: list[str]) -> torch.Tensor:
        """Row of each caption, int64; DataError for one that was not encoded."""
        missing = [caption for caption in captions if caption not in self.row]
        if missing:
            raise DataError(
                f"expected frozen features of every caption, found none of {missing[0]!r} "
                f"and {len(missing) - 1} others; "
                "remove the run's features folder so that they are computed anew"
            )
        return torch.tensor([self.row[caption] for caption in captions], dtype=torch.int64)


def caption_table(
    run_dir: Path,
    name: str,
    foundation: Foundation,
    captions: list[str],
    variants: tuple[Source, int] | None = None,
    progress: Progress | None = None,
) -> TextFeatures:
    """The table ``name`` of captions, each encoded once by the frozen text encoder.

    With synonyms and a seed for ``variants``, the pooled embeddings of `VARIANTS` augmented
    versions follow the caption's own, which is column 0.
    """
    distinct = sorted(set(captions))
    key: dict[str, Any] = {"captions": distinct, "foundation": foundation.condition_identity}
    synonyms, seed = variants or ("listed", 0)
    key |= {"variants": VARIANTS, "synonyms": synonyms, "seed": seed} if variants else {}
    thesaurus = open_thesaurus(synonyms, distinct)

    def compute(start: int, stop: int) -> dict[str, np.ndarray]:
        chosen = distinct[start:stop]
        tokens, pooled = foundation.encode_text(chosen)
        columns = [_numpy(pooled, np.float32)]
        for number in range(VARIANTS if variants else 0):
            rngs = [_caption_rng(seed, number, text) for text in chosen]
            changed = augment_captions(chosen, thesaurus, rngs, foundation)
            columns.append(_numpy(foundation.encode_text(changed)[1], np.float32))
        return {"tokens": _numpy(tokens, np.float16), "pooled": np.stack(columns, axis=1)}

    table = compute_table(run_dir / "features" / name, key, len(distinct), CAPTION_BATCH, compute, progress)
    row = {caption: index for index, caption in enumerate(distinct)}
    return TextFeatures(row, read_array(table, "tokens"), read_array(table, "pooled"))


def _caption_rng(seed: int, variant: int, caption: str) -> np.random.Generator:
    return np.random.default_rng([seed, variant, *hashlib.sha256(caption.encode()).digest()[:8]])


def note_long_captions(folder: Path, foundation: Foundation, text: TextFeatures) -> None:
    """Leave a remark, which the runner prints, on captions that the text encoder cuts off."""
    found = foundation.list_too_long(list(text.row))
    if found and distributed.is_main():
        line = (
            f"captions longer than the text encoder's {foundation.condition_length} positions, their ends left out "
            f"({len(found)} of {len(text.row)}): {listed(found)}"
        )
        write_text(folder / "remarks.json", json.dumps({"lines": [line]}, indent=1))


@dataclass(frozen=True)
class Features:
    """Frozen features of a run's store."""

    run_dir: Path
    store: Store
    foundation: Foundation
    progress: Progress | None = None

    def text(self, recipe: Recipe) -> TextFeatures:
        """Features of the training and validation captions and the empty one."""
        settings, captions = recipe.align, [""]
        for split in ("train", "validation"):
            for segment in self.store.segments(split):
                captions += self.store.captions(segment)
        is_fixed = settings.augmentation == "fixed" and settings.word_swap
        variants = (settings.synonyms, stage_seed(recipe.seed, "features")) if is_fixed else None
        return caption_table(self.run_dir, "text", self.foundation, captions, variants, self.progress)

    def images(self, split: Split, crops: int, seed: int) -> torch.Tensor:
        """CLIP image embeddings of every frame of a split and of ``crops`` random crops of each.

        Returns
        -------
        Tensor
            (N, F, 1 + crops, C) float16; column 0 is the whole frame.
        """
        key = {"foundation": self.foundation.condition_identity, "crops": crops, "side": CROP_SIDE, "seed": seed}

        def compute(start: int, clips: np.ndarray) -> np.ndarray:
            n, n_frames, height, width, _ = clips.shape
            frames = clips.reshape(n * n_frames, height, width, 3)
            rng = np.random.default_rng([seed, start])
            views = [frames] + [random_crops(frames, rng) for _ in range(crops)]
            columns = [_numpy(self.foundation.encode_image(view), np.float16) for view in views]
            return np.stack(columns, axis=1).reshape(n, n_frames, 1 + crops, -1)

        return self._of_clips("image", split, key, compute)

    def latents(self, split: Split) -> torch.Tensor:
        """Scaled VAE latents of every clip of a split, (N, F, c, h, w) float16."""

        def compute(start: int, clips: np.ndarray) -> np.ndarray:
            latents = _numpy(self.foundation.encode_latents(clips.reshape(-1, *clips.shape[2:])), np.float16)
            return latents.reshape(*clips.shape[:2], *latents.shape[1:])

        return self._of_clips("latents", split, {"foundation": self.foundation.latent_identity}, compute)

    def _of_clips(
        self, name: str, split: Split, key: dict[str, Any], compute: Callable[[int, np.ndarray], np.ndarray]
    ) -> torch.Tensor:
        """A table with a row for every clip; ``compute`` gets the first row and some clips."""
        windows = Windows(self.store, split, window=1)

        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            return {name: compute(start, windows.frames(np.arange(start, stop)))}

        path, key = self.run_dir / "features" / f"{name}_{split}", {"films": self.store.shown(), "split": split} | key
        return read_array(compute_table(path, key, len(windows), CLIP_BATCH, rows, self.progress), name)
