"""Where the encoder looks: attention of tokens, voxels, networks (docs/method.md, Maps).

Shapes: n windows, W scans, V voxels, T tokens of the encoder (the paper's: patches of voxels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from scipy.stats import mannwhitneyu

from mindvideo.atlas import N_CORTEX, YEO17_NAMES, area_labels, area_names, yeo17_labels
from mindvideo.errors import DataError
from mindvideo.models.interfaces import Encoder

BATCH_WINDOWS = 16


def choose_layers(depth: int) -> dict[str, int]:
    """First, middle and last layer by name; ``only`` for a single one."""
    if depth == 1:
        return {"only": 0}
    layers = {"first": 0, "middle": depth // 2, "last": depth - 1}
    return {name: layer for name, layer in layers.items() if name != "middle" or 0 < layer < depth - 1}


def average_attention(encoder: Encoder, fmri: np.ndarray) -> np.ndarray:
    """Attention (depth, T) that tokens receive from windows (n, W, V); rows sum to 1.

    The mean over heads, queries, scans and windows.
    """
    return _average(encoder.attention_maps, encoder, fmri)


def average_temporal_attention(encoder: Encoder, fmri: np.ndarray) -> np.ndarray | None:
    """Mean attention between scans (depth, W, W), queries by keys, if there is one."""
    if encoder.temporal_attention(torch.from_numpy(fmri[:1]).to(encoder.device)) is None:
        return None
    return _average(lambda scans: cast(torch.Tensor, encoder.temporal_attention(scans)), encoder, fmri)


def _average(function: Callable[[torch.Tensor], torch.Tensor], encoder: Encoder, fmri: np.ndarray) -> np.ndarray:
    encoder.eval()
    total: np.ndarray | float = 0.0
    for start in range(0, len(fmri), BATCH_WINDOWS):
        batch = torch.from_numpy(np.ascontiguousarray(fmri[start : start + BATCH_WINDOWS])).to(encoder.device)
        total = total + function(batch).double().cpu().numpy() * len(batch)
    return np.asarray(total) / len(fmri)


def spread_to_voxels(values: np.ndarray, sources: Sequence[np.ndarray], num_voxels: int) -> np.ndarray:
    """Divide values (..., T) of tokens equally among their voxels (..., V).

    ``sources`` are the voxels of each token, see `Encoder.token_voxels`.
    """
    sizes = np.array([len(source) for source in sources])
    voxels = np.zeros((*values.shape[:-1], num_voxels))
    places = np.repeat(values / np.maximum(sizes, 1), sizes, axis=-1)
    for row, shares in zip(voxels.reshape(-1, num_voxels), places.reshape(-1, places.shape[-1]), strict=True):
        np.add.at(row, np.concatenate(sources), shares)
    return voxels


def map_to_cortex(values: np.ndarray, vertex: np.ndarray) -> np.ndarray:
    """Voxel values (V,) at their cortical positions, float32 (59412,), NaN elsewhere."""
    cortex = np.full(N_CORTEX, np.nan, dtype=np.float32)
    cortex[vertex] = values
    return cortex


def map_parcels(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Values of parcels (V,) at the positions of MMP1 areas (``L_V1``) of their names."""
    known = {name: label for label, name in enumerate(area_names()) if label}
    by_label = np.full(len(area_names()), np.nan, dtype=np.float32)
    for value, name in zip(values, names, strict=True):
        if (label := known.get(name.removesuffix("_ROI"))) is not None:
            by_label[label] = value
    return by_label[area_labels()]


def sum_by_network(values: np.ndarray, vertex: np.ndarray) -> dict[str, float]:
    """Share of each Yeo-17 network in values (V,) at ``vertex`` (V,) (paper's Fig. 7).

    Voxels outside of the networks are left out. Larger ones receive more: compare with a uniform map.
    """
    sums = np.bincount(yeo17_labels()[vertex], weights=values, minlength=18)[1:]
    if not sums.sum() > 0:
        raise DataError(
            "expected some attention inside the Yeo-17 networks, found none; the voxels lie outside them all"
        )
    return dict(zip(YEO17_NAMES[1:], (sums / sums.sum()).tolist(), strict=True))


def area_under_roc(values: np.ndarray, is_positive: np.ndarray) -> float | None:
    """Chance that a positive voxel has the higher value; None if all are of one class."""
    is_positive = np.asarray(is_positive, dtype=bool)
    first = values[is_positive]
    second = values[~is_positive]
    if not len(first) or not len(second):
        return None
    return float(mannwhitneyu(first, second, method="asymptotic").statistic) / (len(first) * len(second))
