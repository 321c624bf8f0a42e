"""What bounds the scores: noise ceilings, and test films like training films."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from mindvideo.data.store import Store
from mindvideo.data.voxels import repeat_correlation
from mindvideo.data.windows import near_duplicates


def noise_ceiling(repeats: np.ndarray) -> np.ndarray:
    """Correlation (V,) of a perfect model with the average of repeated runs (R ≥ 2, n, V).

    From the mean correlation r between single runs, the reliability of the average of R runs is R r
    / (1 + (R − 1) r) (Spearman–Brown); the ceiling is its square root, 0 where r is not positive
    (Lage-Castellanos et al. 2019, PLoS Computational Biology 15, e1006397).
    """
    pairs = itertools.combinations(repeats, 2)
    r = np.mean([np.nan_to_num(repeat_correlation(*pair)) for pair in pairs], axis=0).clip(0.0, 1.0)
    n_runs = len(repeats)
    return np.sqrt(n_runs * r / (1 + (n_runs - 1) * r))


def audit_store(store: Store, segments: Sequence[str]) -> dict[str, Any]:
    """``noise_ceiling.json`` (over voxels, of repeated segments) and ``near_duplicates.json``."""
    ceilings = {}
    for segment in segments:
        repeats = store.repeats(segment)
        if len(repeats) > 1:
            low, middle, high = np.quantile(noise_ceiling(repeats), [0.25, 0.5, 0.75])
            ceilings[segment] = {"runs": len(repeats), "median": middle, "quartiles": [low, high]}
    pairs = [asdict(pair) for pair in near_duplicates(store)]
    n_scans = sum(store.n_scans(segment) for segment in store.segments("test"))
    near = {"count": len(pairs), "test_scans": n_scans, "pairs": pairs}
    return {"noise_ceiling.json": ceilings, "near_duplicates.json": near}
