"""Stage ``pretrain``: masked brain modelling on many people's recordings (paper section 3.3, supplement B)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from mindvideo import processes
from mindvideo.config import MaskedBrain
from mindvideo.data.readers.hcp import BrainSegments
from mindvideo.data.windows import pad_voxels
from mindvideo.errors import DataError
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.stages import StageContext
from mindvideo.train.loop import Figures, train
from mindvideo.train.sharding import split_weights, whole_model
from mindvideo.train.stage import note_disabled, save_memory, save_model, stage_seed, trainable, training_device

STAGE = "pretrain"
HELD_OUT = 0.1
VALIDATION_ROWS = 1024
VALIDATION_BATCH = 128

Take = Callable[[np.ndarray], np.ndarray]


class MaskedBrainTask:
    """Random rows of fMRI, three quarters of their patches hidden, the hidden ones predicted.

    Parameters
    ----------
    model : MaskedBrainModel
    take : callable
        ``index (B,) -> fmri (B, V) float32``.
    rows, held_out : ndarray of int
        Rows to train on and rows to validate on.
    batch_size : int
    seed : int
        Of the masks used for validation, the same each time.
    """

    def __init__(
        self,
        model: MaskedBrainModel,
        take: Take,
        rows: np.ndarray,
        held_out: np.ndarray,
        batch_size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Move the model to the device, split it where the launcher asks for it, and take the training mean."""
        self.model = model.to(device)
        split_weights(self.model)
        self.take, self.rows, self.held_out = take, rows, held_out
        self.batch_size, self.seed, self.device = batch_size, seed, device
        self.mean_V = self._training_mean()

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything but the fixed positions."""
        return trainable(self.model)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        """Mean squared error of the masked patches of one random batch."""
        self.model.train()
        count = len(self.rows)
        chosen = self.rows[rng.choice(count, size=self.batch_size, replace=self.batch_size > count)]
        own = np.sort(chosen)[processes.rows(self.batch_size)]
        fmri = self._fmri(own)
        output = self.model(fmri, noise=processes.random_rows((len(own), self.model.num_patches), self.device))
        self.sample_values = own, fmri.sum(dim=1) + output.prediction.detach().flatten(1).sum(dim=1)
        return output.loss * processes.weight(self.batch_size), {}

    def validate(self, step: int) -> dict[str, float]:
        """Loss on held-out rows beside that of predicting each voxel's training mean, over the same masked patches."""
        self.model.eval()
        model_error, mean_error, masked = 0.0, 0.0, 0
        generator = torch.Generator(self.device).manual_seed(self.seed)
        patch = self.model.config.patch_size
        with torch.inference_mode():
            for start in range(0, len(self.held_out), VALIDATION_BATCH):
                fmri = self._fmri(self.held_out[start : start + VALIDATION_BATCH])
                output = self.model(fmri, generator=generator)
                patches = _patches(fmri.cpu().numpy(), patch)[output.is_masked.cpu().numpy()]
                mean = np.broadcast_to(_patches(self.mean_V[None], patch), (len(fmri), *output.prediction.shape[1:]))
                mean_error += float(np.square(patches - mean[output.is_masked.cpu().numpy()]).sum())
                predicted = output.prediction.float().cpu().numpy()[output.is_masked.cpu().numpy()]
                model_error += float(np.square(patches - predicted).sum())
                masked += patches.size
        return {"validation_loss": model_error / masked, "mean_predictor_loss": mean_error / masked}

    def _fmri(self, index: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.take(index)).to(self.device)

    def _training_mean(self) -> np.ndarray:
        """Mean of each voxel over at most a few thousand training rows, evenly spread."""
        return self.take(_spread(self.rows, 4 * VALIDATION_ROWS)).mean(axis=0, dtype=np.float64).astype(np.float32)


def _patches(fmri_BV: np.ndarray, patch_size: int) -> np.ndarray:
    """(B, P, patch), the last patch filled up by wrapping as the model does."""
    return pad_voxels(fmri_BV, patch_size).reshape(len(fmri_BV), -1, patch_size)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most ``most`` of the rows, evenly spread."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def split_rows(n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Training rows, and the last tenth (at most ``VALIDATION_ROWS`` of it, evenly spread) to validate on."""
    first = n_rows - max(1, round(HELD_OUT * n_rows))
    if first < 1:
        raise DataError(
            f"expected at least two recorded segments to pre-train on, found {n_rows}; prepare more recordings"
        )
    return np.arange(first), _spread(np.arange(first, n_rows), VALIDATION_ROWS)


def new_masked_brain(encoder: MaskedBrain, num_voxels: int, mask_ratio: float, seed: int) -> MaskedBrainModel:
    """A new masked brain model of the recipe's architecture, its weights drawn from ``seed``."""
    torch.manual_seed(seed)
    return MaskedBrainModel(num_voxels=num_voxels, mask_ratio=mask_ratio, **encoder.model_dump())


def run(context: StageContext) -> None:
    """Pre-train on ``RUN/prepare/hcp.zarr``, or take ``pretrain.weights``, and write ``RUN/pretrain/model``."""
    recipe, run_dir, folder, progress = context
    settings = recipe.pretrain
    if not settings.enabled:
        note_disabled(folder)
        return
    if settings.weights is not None:
        model = MaskedBrainModel.from_pretrained(settings.weights)
        note_disabled(folder)
        save_model(model, folder / "model")
        return
    seed = stage_seed(recipe.seed, STAGE)
    segments = BrainSegments.open(run_dir / "prepare" / "hcp.zarr")
    rows, held_out = split_rows(len(segments))
    model = new_masked_brain(recipe.encoder, segments.n_voxels, settings.mask_ratio, seed)
    device = training_device()
    save_memory(settings, model)
    task = MaskedBrainTask(model, segments.take, rows, held_out, settings.batch_size, seed, device)
    train(
        task,
        settings,
        folder,
        seed=seed,
        progress=progress,
        validate=task.validate,
        validate_every=settings.checkpoint_every,
        device=device,
    )
    save_model(whole_model(model), folder / "model")
