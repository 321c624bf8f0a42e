"""Ours, beside the paper's loss: the encoder's tokens are regressed on the captions'.

A small world's captions differ in little, which a contrast of pooled embeddings misses.

Shapes: B batch, N windows, W scans per window, V voxels, L condition tokens, C condition width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.config import Align
from mindvideo.files import write_text
from mindvideo.train.augmentation import Mixture
from mindvideo.train.features import store_identity
from mindvideo.train.loop import Batch
from mindvideo.train.ridge import LinearDecoder, WindowInputs, fit_linear_decoder, token_r2
from mindvideo.train.views import AlignData


class TokenRegression:
    """Token targets of training windows: the captions', mixed with each other and the teachers'.

    Parameters
    ----------
    data : AlignData
    settings : Align
        ``mixup`` and ``teacher_weight``, the share of the teachers' predictions.
    teachers : sequence of LinearDecoder
        Ridge regression on each person's windows.
    """

    def __init__(self, data: AlignData, settings: Align, teachers: Sequence[LinearDecoder] = ()) -> None:
        self.data, self.settings, self.teachers = data, settings, teachers

    def add_targets(self, batch: Batch, index: np.ndarray, rng: np.random.Generator) -> Batch:
        """The batch of some windows with ``tokens`` (B, L, C), mixed in pairs."""
        batch, person = batch | {"tokens": self.data.target.tokens(index)}, self.data.windows.person[index]
        if self.settings.mixup > 0:
            mix = Mixture(len(index), self.settings.mixup, rng, person)
            batch = {name: mix(rows) for name, rows in batch.items()}
        if self.teachers and self.settings.teacher_weight > 0:
            taught = torch.empty_like(batch["tokens"])
            for number in np.unique(person):
                theirs = torch.from_numpy(np.flatnonzero(person == number))
                scans = batch["fmri"][theirs, :, : self.data.windows.voxels[number]]
                read = torch.from_numpy(self.teachers[number].predict(scans.flatten(1).numpy()))
                taught[theirs] = read.unflatten(1, tuple(self.data.target.mean.shape))
            batch["tokens"] = batch["tokens"].lerp(taught, self.settings.teacher_weight)
        return batch

    def losses(self, condition_BLC: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Distance of each condition from its target (B,)."""
        return self.data.target.distances(condition_BLC, batch["tokens"])


def linear_references(
    run_dir: Path, training: AlignData, validation: AlignData | None, key: list[str], are_held: bool
) -> tuple[list[LinearDecoder], dict[str, float]]:
    """Ridge regression of each person, if they ``are_held``, and mean token R² on validation windows."""
    stores = training.windows.stores
    found = []
    for person, store in enumerate(stores):
        path = run_dir / "features" / ("ridge.json" if len(stores) == 1 else f"ridge_{store.subject}.json")
        found.append(_linear_reference(path, training, validation, [store_identity(store), *key], person))
    references = [reference["ridge_token_r2"] for _, reference in found if reference]
    mean = {"ridge_token_r2": float(np.mean(references))} if references else {}
    return [LinearDecoder.open(path) for path, _ in found] if are_held else [], mean


def _linear_reference(
    path: Path, training: AlignData, validation: AlignData | None, key: list[str], person: int
) -> tuple[Path, dict[str, float]]:
    """One person's, kept with the features: where, and its figure."""
    kept_decoder = path.with_suffix(".safetensors")
    kept = read_note(path)
    if kept.get("key") == key and is_intact(path.parent, kept.get("files")):
        return kept_decoder, kept["reference"]
    decoder = fit_linear_decoder(WindowInputs(training.windows, person), _tokens(training, person))
    reference = {}
    if validation is not None:
        unseen = np.flatnonzero(validation.windows.person == person)
        scans = validation.windows.fmri(unseen, slice(validation.windows.voxels[person])).reshape(len(unseen), -1)
        reference["ridge_token_r2"] = token_r2(decoder.predict(scans), _tokens(validation, person), decoder.mean)
    path.unlink(missing_ok=True)
    decoder.save(kept_decoder)
    files = record_files(path.parent, [kept_decoder])
    write_text(path, json.dumps({"key": key, "reference": reference, "files": files}))
    return kept_decoder, reference


def _tokens(data: AlignData, person: int) -> np.ndarray:
    """Tokens (N, L · C) of all windows of a person."""
    return data.target.tokens(np.flatnonzero(data.windows.person == person)).flatten(1).numpy()
