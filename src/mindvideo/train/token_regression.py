"""Ours, beside the paper's contrast: the encoder's tokens are regressed on the caption's text tokens.

A small world's captions differ in little, and a contrast of pooled embeddings does not find it. With `align.token_weight` 0
none of this takes part, and `align` is the paper's.

Shapes: B batch, N windows, W scans per window, V voxels, L condition tokens, C condition width.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from mindvideo.artefacts import is_intact, read_note, record_files
from mindvideo.config import Align
from mindvideo.data.disk import write_text
from mindvideo.errors import TrainingError
from mindvideo.train.augmentation import Mixture
from mindvideo.train.loop import Batch
from mindvideo.train.ridge import LinearDecoder, fit_linear_decoder, token_r2
from mindvideo.train.views import AlignData


class TokenRegression:
    """Token targets of training windows: the captions', mixed in pairs, in part as ridge regression reads them.

    Parameters
    ----------
    data : AlignData
    settings : Align
        ``token_weight``, ``mixup`` and ``teacher_weight``.
    teacher : LinearDecoder, optional
        Ridge regression on the same windows; ``teacher_weight`` is its share of the targets.
    """

    def __init__(self, data: AlignData, settings: Align, teacher: LinearDecoder | None = None) -> None:
        """Refuse a share for a teacher that is not there."""
        if teacher is None and settings.teacher_weight > 0:
            raise TrainingError("expected a linear decoder with align.teacher_weight > 0, found none")
        self.data, self.settings, self.teacher = data, settings, teacher

    def add_targets(self, batch: Batch, index: np.ndarray, rng: np.random.Generator) -> Batch:
        """The batch of the windows ``index`` with its ``tokens`` (B, L, C), all of it mixed in pairs."""
        batch = batch | {"tokens": self.data.target.tokens(index)}
        if self.settings.mixup > 0:
            mix = Mixture(len(index), self.settings.mixup, rng)
            batch = {name: mix(rows) for name, rows in batch.items()}
        if self.teacher is not None and self.settings.teacher_weight > 0:
            read = torch.from_numpy(self.teacher.predict(batch["fmri"].flatten(1).numpy()))
            taught = read.unflatten(1, tuple(self.data.target.mean.shape))
            batch["tokens"] = batch["tokens"].lerp(taught, self.settings.teacher_weight)
        return batch

    def losses(self, condition_BLC: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Distance of each condition from its target (B,)."""
        return self.data.target.distances(condition_BLC, batch["tokens"])


def linear_reference(
    run_dir: Path, training: AlignData, validation: AlignData | None, key: list[str]
) -> tuple[LinearDecoder, dict[str, float]]:
    """Ridge regression on the training windows, kept with the features, and its token R² on validation windows."""
    path = run_dir / "features" / "ridge.json"
    kept_decoder = path.with_suffix(".safetensors")
    kept = read_note(path)
    if kept.get("key") == key and is_intact(path.parent, kept.get("files")):
        return LinearDecoder.open(kept_decoder), kept["reference"]
    decoder = fit_linear_decoder(*_regressed(training))
    reference = {}
    if validation is not None:
        unseen, truth = _regressed(validation)
        reference["ridge_token_r2"] = token_r2(decoder.predict(unseen), truth, decoder.mean)
    path.unlink(missing_ok=True)
    decoder.save(kept_decoder)
    files = record_files(path.parent, [kept_decoder])
    write_text(path, json.dumps({"key": key, "reference": reference, "files": files}))
    return decoder, reference


def _regressed(data: AlignData) -> tuple[np.ndarray, np.ndarray]:
    """Scans (N, W · V) and tokens (N, L · C) of all windows."""
    every = np.arange(len(data))
    return data.fmri(every).flatten(1).numpy(), data.target.tokens(every).flatten(1).numpy()
