"""How much worse the condition fits the stimulus without some voxels (docs/method.md, Maps).

Shapes: n windows, W scans, V voxels, L condition tokens, C condition width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mindvideo.atlas import area_names
from mindvideo.errors import DataError
from mindvideo.models.interfaces import Encoder
from mindvideo.stages import Steps

BATCH_WINDOWS = 64
MEANING = {
    "text": "similarity to the caption's embedding",
    "image": "similarity to the frame's embedding",
    "tokens": "correlation with the text tokens",
}
MEASURES = tuple(MEANING)


@dataclass(frozen=True)
class Targets:
    """Embeddings (n, C) of captions and frames, and captions' tokens (n, L, C)."""

    text: np.ndarray
    image: np.ndarray
    tokens: np.ndarray


def encode_condition(encoder: Encoder, fmri: np.ndarray, silenced: np.ndarray | None = None) -> np.ndarray:
    """Condition (n, L, C) of windows (n, W, V) with some voxels at 0, their mean."""
    if silenced is not None:
        fmri = fmri.copy()
        fmri[..., silenced] = 0.0
    encoder.eval()
    parts = []
    with torch.no_grad():
        for start in range(0, len(fmri), BATCH_WINDOWS):
            batch = torch.from_numpy(np.ascontiguousarray(fmri[start : start + BATCH_WINDOWS])).to(encoder.device)
            parts.append(encoder(batch).float().cpu().numpy())
    return np.concatenate(parts)


def _centred_cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Mean cosine of two sets of vectors (n, C), each centred over the windows."""
    first = first - first.mean(axis=0)
    second = second - second.mean(axis=0)
    norm = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(np.divide((first * second).sum(axis=1), norm, out=np.zeros(len(norm)), where=norm > 1e-12).mean())


def measure_alignment(condition: np.ndarray, targets: Targets) -> dict[str, float]:
    """How well conditions (n, L, C) fit their windows, whatever their scale.

    ``text`` and ``image`` are the mean cosine of pooled condition and embedding, ``tokens`` is the
    correlation of all token values; all are centred over the windows.
    """
    if len(condition) < 2:
        raise DataError(
            "expected two or more windows to measure alignment over, found one; set explain.max_windows higher"
        )
    pooled = condition.mean(axis=1, dtype=np.float64)
    wide = (part.astype(np.float64) for part in (condition, targets.tokens))
    found, true = (part - part.mean(axis=0) for part in wide)
    norm = np.sqrt((found**2).sum() * (true**2).sum())
    return {
        "text": _centred_cosine(pooled, targets.text.astype(np.float64)),
        "image": _centred_cosine(pooled, targets.image.astype(np.float64)),
        "tokens": float((found * true).sum() / norm) if norm > 1e-9 else 0.0,
    }


def measure_drops(
    encoder: Encoder,
    fmri: np.ndarray,
    groups: Mapping[str, np.ndarray],
    targets: Targets,
    steps: Steps | None = None,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """`measure_alignment` of the intact encoder, and its drop when each group of voxels is silenced.

    Parameters
    ----------
    fmri : ndarray, float32 (n, W, V)
    groups : mapping of str to ndarray of int
        Voxel indices by name.
    steps : Steps, optional
        Counts the groups.

    Returns
    -------
    intact : dict of str to float
    drops : dict of str to dict of str to float
        Intact minus silenced, by group and measure; above 0 where the group was needed.
    """
    intact = measure_alignment(encode_condition(encoder, fmri), targets)
    drops = {}
    for name, voxels in groups.items():
        silenced = measure_alignment(encode_condition(encoder, fmri, voxels), targets)
        drops[name] = {measure: intact[measure] - silenced[measure] for measure in MEASURES}
        if steps is not None:
            steps.add(part="occlusion")
    return intact, drops


def group_by_area(area: np.ndarray, parcels: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Voxel indices by area, in the order of the voxels.

    ``area`` (V,) is the MMP1 label of each voxel, 1…360, or its place among ``parcels`` from 1 on.
    """
    names = ["", *parcels] if parcels else [name[2:] for name in area_names()]
    groups: dict[str, list[int]] = {}
    for voxel, label in enumerate(area):
        groups.setdefault(names[label], []).append(voxel)
    return {name: np.array(voxels) for name, voxels in groups.items()}
