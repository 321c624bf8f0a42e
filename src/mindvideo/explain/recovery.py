"""Maps of a simulated subject: do they find the voxels that carry signal?

Maps of an untrained encoder may find them by luck, or by their larger variance: several are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from mindvideo.errors import DataError
from mindvideo.explain import attention, occlusion
from mindvideo.models.interfaces import Encoder, OfPerson, of_person

RANDOM_MAPS = 200
UNTRAINED = 3
"""Untrained encoders that maps are compared with."""

Maps = dict[str, np.ndarray]


def untrained_like(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same settings with new random weights."""
    if isinstance(encoder, OfPerson):
        return of_person(untrained_like(encoder.encoder, seed), encoder.person)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(encoder).from_config(dict(encoder.config))
    torch.nn.Module.to(fresh, encoder.device)
    return fresh.eval()


def compare_with_truth(
    maps: Mapping[str, np.ndarray],
    untrained: list[Maps],
    is_informative: np.ndarray,
    signal: np.ndarray,
    sources: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """How well each map tells truly informative voxels from the others.

    Parameters
    ----------
    maps, untrained : mapping of str to ndarray (V,), list of such mappings
    signal : ndarray (V,)
        True signal-to-noise ratio of each voxel.
    sources : sequence of ndarray of int
        Voxels of each token, over which random maps are constant.

    Returns
    -------
    dict
        ``n_voxels``, ``n_informative``, ``auc`` {map: area under the ROC curve}, ``auc_untrained``
        {map: [values]}, ``auc_random`` [2.5 %, 50 %, 97.5 %] of random maps, ``rank_correlation``
        {map: Spearman's with the signal} and ``rank_correlation_untrained``; ``note`` where all voxels
        are of one class, and ``auc`` is empty.
    """
    n = len(is_informative)
    result: dict[str, Any] = {"n_voxels": n, "n_informative": int(is_informative.sum()), "auc": {}, "auc_random": None}
    if is_informative.all() or not is_informative.any():
        word = "informative" if is_informative.all() else "uninformative"
        result["note"] = f"all {n} selected voxels are truly {word}: the area under the ROC curve does not exist"
    else:
        scores = _score_maps(maps, untrained, lambda values: attention.area_under_roc(values, is_informative))
        result["auc"], result["auc_untrained"] = scores
        noise = attention.spread_to_voxels(rng.random((RANDOM_MAPS, len(sources))), sources, n)
        areas = [attention.area_under_roc(values, is_informative) for values in noise]
        result["auc_random"] = np.quantile(np.array(areas, dtype=float), [0.025, 0.5, 0.975]).tolist()
    if np.ptp(signal) > 0:
        scores = _score_maps(
            maps, untrained, lambda values: float(spearmanr(values, signal).statistic) if np.ptp(values) > 0 else 0.0
        )
        result["rank_correlation"], result["rank_correlation_untrained"] = scores
    return result


def _score_maps(
    maps: Mapping[str, np.ndarray], untrained: list[Maps], score: Callable[[np.ndarray], float | None]
) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
    names = untrained[0] if untrained else {}
    return (
        {name: score(values) for name, values in maps.items()},
        {name: [score(one[name]) for one in untrained] for name in names},
    )


def ablate_truth(
    encoder: Encoder,
    fmri: np.ndarray,
    targets: occlusion.Targets,
    is_informative: np.ndarray,
    rng: np.random.Generator,
) -> dict[str, Any] | None:
    """Drop in alignment without informative voxels, and without as many others."""
    inside = np.flatnonzero(is_informative)
    outside = np.flatnonzero(~is_informative)
    n = min(len(inside), len(outside))
    if not n:
        return None
    groups = {
        "informative": np.sort(rng.choice(inside, n, replace=False)),
        "other": np.sort(rng.choice(outside, n, replace=False)),
    }
    intact, drops = occlusion.measure_drops(encoder, fmri, groups, targets)
    return {"n_silenced": n, "intact": intact, "drop": drops}


def ablate_areas(
    drops: Mapping[str, Mapping[str, float]], areas: Mapping[str, np.ndarray], is_informative: np.ndarray
) -> dict[str, Any]:
    """Mean drop per voxel over mostly informative areas, and over the others, if any."""
    kinds: dict[str, list[str]] = {"informative": [], "other": []}
    for name, voxels in areas.items():
        kinds["informative" if is_informative[voxels].mean() > 0.5 else "other"].append(name)
    return {
        kind: {
            "n_areas": len(names),
            "drop": {
                measure: float(np.mean([drops[name][measure] / len(areas[name]) for name in names]))
                for measure in occlusion.MEASURES
            },
        }
        for kind, names in kinds.items()
        if names
    }


def read_truth(path: Path, vertex: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which voxels are truly informative, and their true signal-to-noise ratio.

    DataError when the file does not describe a voxel.
    """
    with np.load(path, allow_pickle=False) as truth:
        known = truth["vertex"]
        is_informative = truth["is_informative"].astype(bool)
        signal = truth["signal_to_noise"].astype(float)
    order = np.argsort(known)
    place = order[np.minimum(np.searchsorted(known[order], vertex), len(known) - 1)]
    missing = int((known[place] != vertex).sum())
    if missing:
        raise DataError(f"expected all {len(vertex)} voxels of the store in {path}, found {missing} without an entry")
    return is_informative[place], signal[place]
