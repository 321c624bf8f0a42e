"""What bounds the scores on the data's side: noise ceilings, and test films that look like training films."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from mindvideo.data.store import Store
from mindvideo.data.windows import near_duplicates
from mindvideo.errors import DataError


def noise_ceiling(repeats: np.ndarray) -> np.ndarray:
    """Correlation (V,), 0…1, a perfect model of each voxel could reach with the average of its repeated runs (R ≥ 2, n, V).

    From the mean correlation r between single runs, the reliability of the average of R runs is R r
    / (1 + (R − 1) r) (Spearman–Brown); the ceiling is its square root, 0 where r is not positive
    (Lage-Castellanos et al. 2019, PLoS Computational Biology 15, e1006397).
    """
    repeats = np.asarray(repeats, dtype=np.float64)
    if repeats.ndim != 3 or len(repeats) < 2:
        raise DataError(f"expected two or more repeats (R, n, V) for a noise ceiling, found shape {repeats.shape}")
    n_runs = len(repeats)
    centred = repeats - repeats.mean(axis=1, keepdims=True)
    length = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
    total = (unit.sum(axis=0) ** 2).sum(axis=0)
    alone = (unit**2).sum(axis=(0, 1))
    r = np.clip((total - alone) / (n_runs * (n_runs - 1)), 0.0, 1.0)
    return np.sqrt(n_runs * r / (1 + (n_runs - 1) * r))


def audit_store(store: Store, segments: Sequence[str]) -> dict[str, str]:
    """What bounds the scores on the data's side, as texts of files by name.

    ``noise_ceiling.json``: median and quartiles over voxels of each segment that has repeated runs;
    ``near_duplicates.json``: test scans that look like training scans, and how many test scans
    there are.
    """
    ceilings = {}
    for segment in segments:
        repeats = store.repeats(segment)
        if len(repeats) > 1:
            low, middle, high = np.quantile(noise_ceiling(repeats), [0.25, 0.5, 0.75])
            ceilings[segment] = {"runs": len(repeats), "median": middle, "quartiles": [low, high]}
    pairs = [asdict(pair) for pair in near_duplicates(store)]
    n_scans = sum(store.n_scans(segment) for segment in store.segments("test"))
    return {
        "noise_ceiling.json": json.dumps(ceilings, indent=1),
        "near_duplicates.json": json.dumps({"count": len(pairs), "test_scans": n_scans, "pairs": pairs}, indent=1),
    }
