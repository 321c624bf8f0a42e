"""Stage ``pretrain``: masked brain modelling of many people (paper section 3.3, supplement B)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mindvideo import distributed
from mindvideo.config import Adapt, Pretrain
from mindvideo.data.readers.hcp import BrainSegments
from mindvideo.errors import DataError
from mindvideo.models.encoders import load_masked_brain, new_masked_brain
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train.loop import Batch, Draw, Metrics, train
from mindvideo.train.sharding import full_model, shard_weights
from mindvideo.train.stage import note_disabled, save_memory, save_model, stage_seed, trainable

STAGE = "pretrain"
VALIDATION_ROWS = 1024
VALIDATION_BATCH = 128


@dataclass
class MaskedBrainTask:
    """Random rows of fMRI, most of their patches masked, the masked ones predicted.

    Attributes
    ----------
    take : callable
        ``index (B,) -> fmri (B, V) float32``.
    rows, held_out : ndarray of int
        Rows to train on and rows to validate on.
    seed : int
        Of the training, and of the masks used for validation.
    whose : ndarray of int, optional
        Person of each row, for a model of several people.
    """

    model: MaskedBrainModel
    take: Callable[[np.ndarray], np.ndarray]
    rows: np.ndarray
    held_out: np.ndarray
    seed: int
    device: torch.device
    whose: np.ndarray | None = None

    def __post_init__(self) -> None:
        shard_weights(self.model.to(self.device))
        self.may_leave_out, people = self.whose is not None, [self.rows]
        if self.whose is not None:
            people = [self.rows[self.whose[self.rows] == number] for number in range(self.whose.max() + 1)]
        # Of at most a few thousand training rows each, evenly spread.
        means = [self.take(spread(theirs, 4 * VALIDATION_ROWS)).mean(axis=0, dtype=np.float64) for theirs in people]
        self.means_PV = torch.from_numpy(np.stack(means).astype(np.float32)).to(self.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything but the fixed positions."""
        return trainable(self.model)

    def sample(self, draw: Draw) -> Batch:
        """Indices of the rows, and the noise that decides their masks."""
        index = np.sort(self.rows[draw.rows(len(self.rows))])
        return {"index": index, "noise": torch.rand(len(index), self.model.num_patches)}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Mean squared error of each row's masked patches."""
        self.model.train()
        index = batch["index"]
        return self.model(self._fmri(index), noise=batch["noise"], person=self.person(index)).sample_loss, {}

    def person(self, index: np.ndarray) -> torch.Tensor | None:
        """Person of each row (B,); None for a model of one person."""
        return None if self.whose is None else torch.from_numpy(self.whose[index]).to(self.device)

    def validate(self, step: int) -> dict[str, float]:
        """Loss on held-out rows, and that of each voxel's training mean, on the same patches."""
        self.model.eval()
        errors, masked = {"validation_loss": 0.0, "mean_predictor_loss": 0.0}, 0
        generator = torch.Generator(self.device).manual_seed(self.seed)
        with torch.inference_mode():
            for start in range(0, len(self.held_out), VALIDATION_BATCH):
                index = self.held_out[start : start + VALIDATION_BATCH]
                fmri, person = self._fmri(index), self.person(index)
                output = self.model(fmri, generator=generator, person=person)
                truth = self.model.patches(fmri)
                mean = self.model.patches(self.means_PV if person is None else self.means_PV[person])
                for name, guess in (("validation_loss", output.prediction), ("mean_predictor_loss", mean)):
                    error = self.model.errors(guess, truth, person) * output.is_masked
                    errors[name] += float(error.double().sum())
                masked += int(output.is_masked.sum())
        return {name: error / masked for name, error in errors.items()}

    def _fmri(self, index: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.take(index)).to(self.device)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def split_rows(n_rows: int, validation_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, and a share of the last ones, at most ``VALIDATION_ROWS``, to validate on."""
    held_out = max(1, round(validation_share * n_rows)) if validation_share else 0
    if n_rows - held_out < 1:
        raise DataError(
            f"expected more than {held_out} recorded segments to pre-train on, found {n_rows}; prepare more recordings"
        )
    return np.arange(n_rows - held_out), spread(np.arange(n_rows - held_out, n_rows), VALIDATION_ROWS)


def fit_scale(*people: np.ndarray) -> dict[str, float]:
    """``input_mean`` and ``input_scale`` of the training scans (..., V) of all people."""
    count = sum(scans.size for scans in people)
    mean = float(sum(scans.sum(dtype=np.float64) for scans in people) / count)
    squares = sum(np.square(scan - mean, dtype=np.float64).sum() for scans in people for scan in scans)
    return {"input_mean": mean, "input_scale": float(np.sqrt(squares / count))}


def run(context: StageContext) -> None:
    """Pre-train, or take ``pretrain.weights``; write ``RUN/pretrain/model``."""
    recipe, run_dir, folder, _ = context
    settings = recipe.pretrain
    if not settings.enabled:
        note_disabled(folder)
        return
    if settings.weights is not None:
        model = load_masked_brain(settings.weights, recipe.align.encoder)
        note_disabled(folder)
        save_model(model, folder / "model")
        return
    seed = stage_seed(recipe.seed, STAGE)
    segments = BrainSegments.open(run_dir / "prepare" / "hcp.zarr")
    rows, held_out = split_rows(len(segments), settings.validation_share)
    scale = fit_scale(segments.take(spread(rows, 4 * VALIDATION_ROWS)))
    torch.manual_seed(seed)
    layouts, architecture = [segments.layout], recipe.encoder.model_dump()
    model = new_masked_brain(recipe.align.encoder, layouts, architecture, mask_ratio=settings.mask_ratio, **scale)
    save_memory(settings, model)
    task = MaskedBrainTask(model, segments.take, rows, held_out, seed, distributed.device())
    train_masked_brain(context, task, settings)


def train_masked_brain(context: StageContext, task: MaskedBrainTask, settings: Pretrain | Adapt) -> None:
    """Train a stage's model, and write ``model`` into its folder."""
    validate = task.validate if len(task.held_out) else None
    train(task, settings, context.folder, seed=task.seed, progress=context.progress, validate=validate)
    save_model(full_model(task.model), context.folder / "model")
