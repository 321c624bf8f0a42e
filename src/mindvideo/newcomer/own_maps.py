"""Maps of a new person for a model of others (after Scotti et al. 2024, MindEye2).

Shapes: N scans, V voxels, A areas, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.ridge import RidgeCV
from torch import nn

from mindvideo import distributed
from mindvideo.config import Align
from mindvideo.errors import SettingError
from mindvideo.models.area_maps import AreaMaps
from mindvideo.models.encoders.areas import AreaEncoder
from mindvideo.train.align import AlignTask
from mindvideo.train.loop import named_trainable, train
from mindvideo.train.token_regression import TokenRegression
from mindvideo.train.views import AlignData, FixedViews
from mindvideo.voxel_layout import VoxelLayout

VERSION = 3
"""Raised when maps are made in another way: older results are then out of date."""
ALPHAS = 10.0 ** np.arange(-1, 8)
FOLDS = 5
OWN = ("patch_embed.weight", "patch_embed.bias")
"""What is a person's own in an encoder of areas."""


def maps_of(encoder: AreaEncoder) -> AreaMaps:
    """An encoder's maps."""
    assert isinstance(encoder.patch_embed, AreaMaps)
    return encoder.patch_embed


def encoder_of_newcomer(shared: AreaEncoder, layout: VoxelLayout) -> AreaEncoder:
    """An encoder of one new person: maps are the others' mean on the same vertices, or zero.

    All else of ``shared`` is copied. SettingError where the voxels lie in other areas than the others'.
    """
    config = dict(shared.config) | {"num_voxels": None, "voxel_id": layout.voxel_id, "layouts": [layout.to_config()]}
    encoder = AreaEncoder.from_config(config)
    own, others = maps_of(encoder), maps_of(shared)
    if own.positions.shape != others.positions.shape or not torch.equal(own.positions, others.positions):
        raise SettingError(
            f"expected voxels in the {others.num_areas} areas that the others have voxels in, found {own.num_areas} areas; "
            "give data.areas that all of them have"
        )
    copied = {name: weight for name, weight in shared.state_dict().items() if not name.startswith(OWN)}
    encoder.load_state_dict(encoder.state_dict() | copied)
    known = [VoxelLayout.from_config(each) for each in shared.config.layouts]
    with torch.no_grad():
        own.bias.copy_(others.bias.mean(0, keepdim=True))
        own.weight[0].copy_(_mean_on_vertices(own, layout, others, known))
    return encoder


def _mean_on_vertices(
    own: AreaMaps, layout: VoxelLayout, others: AreaMaps, known: Sequence[VoxelLayout]
) -> torch.Tensor:
    """Rows (V, D) of a new person's map: the mean over those others who have the vertex too."""
    total = torch.zeros_like(own.weight[0])
    count = torch.zeros(len(own.weight[0]), 1)
    vertex = layout.vertex[own.rows(0)] if layout.vertex is not None else np.empty(0)
    for person, theirs in enumerate(known):
        assert theirs.vertex is not None
        _, mine, row = np.intersect1d(vertex, theirs.vertex[others.rows(person)], return_indices=True)
        total[mine] += others.weight[person][row]
        count[mine] += 1
    return total / count.clamp(min=1)


@torch.no_grad()
def start_by_ridge(
    encoder: AreaEncoder, shared: AreaEncoder, scans_NV: np.ndarray, others: Sequence[np.ndarray]
) -> dict[str, float]:
    """Move maps by ridge regression towards the others' mean tokens at the same moments.

    What is penalised is the distance from the maps that the encoder comes with, so that few scans move
    them little; the penalty of each area is chosen by cross-validation over contiguous fifths.
    ``others`` (N, their V) is what each had at the same moments. Returns ``log10_alpha``, the median
    over the areas, and ``r2`` of the tokens on these scans.
    """
    set_backend("numpy")
    own, maps = maps_of(encoder), maps_of(shared)
    tokens = torch.zeros(len(scans_NV), maps.num_areas, maps.missing.shape[1])
    for person, scans in enumerate(others):
        padded = np.zeros((len(scans), maps.voxels), np.float32)
        padded[:, : scans.shape[1]] = scans
        whose = torch.full((len(scans),), person)
        tokens += maps.encode(torch.from_numpy(_scaled(shared, padded)), whose) - maps.positions
    target = (tokens / len(others)).numpy().astype(np.float64)
    scaled = _scaled(encoder, scans_NV)
    start = own.encode(torch.from_numpy(scaled), None) - own.positions
    left = target - start.numpy()
    scaled = scaled.astype(np.float64)
    changes, alphas, error = [], [], 0.0
    for area, voxels in enumerate(own.members[0]):
        if not len(voxels):
            continue
        model = RidgeCV(ALPHAS, fit_intercept=True, cv=FOLDS, solver_params={"local_alpha": False, "warn": False}).fit(
            scaled[:, voxels], left[:, area]
        )
        changes.append(model.coef_)
        own.bias[0, area] += torch.from_numpy(np.asarray(model.intercept_)).float()
        alphas.append(float(np.log10(np.atleast_1d(model.best_alphas_)[0])))
        error += float(np.square(model.predict(scaled[:, voxels]) - left[:, area]).sum())
    own.weight[0] += torch.from_numpy(np.concatenate(changes)).float()
    spread = float(np.square(target - target.mean(0)).sum())
    return {"log10_alpha": float(np.median(alphas)), "r2": 1 - error / spread}


def _scaled(encoder: AreaEncoder, scans_NV: np.ndarray) -> np.ndarray:
    """Single scans as an encoder's maps take them."""
    scaled: np.ndarray = (scans_NV - encoder.config.input_mean) / encoder.config.input_scale
    return scaled.astype(np.float32)


class MapsTask(AlignTask):
    """`AlignTask` in which only the person's maps learn."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The maps; all else is frozen."""
        return named_trainable(self.encoder, OWN)


def train_on_minutes(
    encoder: AreaEncoder,
    data: AlignData,
    settings: Align,
    folder: Path,
    seed: int,
    *,
    is_whole: bool,
    share: float = 1.0,
) -> None:
    """Train an encoder, or its maps alone, on some minutes as ``align`` does.

    With all of the recipe's steps a few minutes' noise is fitted; with a small ``share`` of them the
    tokens stay so near their mean that the generator draws next to nothing from them.
    """
    settings = settings.model_copy(
        update={
            "teacher_weight": 0.0,
            "augmentation": "fixed",
            "batch_size": min(settings.batch_size, data.windows.most_apart()),
            "steps": max(1, round(settings.steps * share)),
            "warmup_steps": round(settings.warmup_steps * share),
        }
    )
    regression = TokenRegression(data, settings) if settings.token_weight > 0 else None
    kind = AlignTask if is_whole else MapsTask
    task = kind(encoder, data, None, settings, FixedViews(data, settings), {}, distributed.device(), regression)
    train(task, settings, folder, seed=seed)
    encoder.eval()
