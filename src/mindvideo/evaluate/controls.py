"""How good a recording lets a reconstruction be."""

from __future__ import annotations

import numpy as np

from mindvideo.errors import DataError


def noise_ceiling(repeats: np.ndarray) -> np.ndarray:
    """Correlation a perfect model of each voxel could reach with the average of its repeated runs.

    From the mean correlation r between single runs, the reliability of the average of R runs is R r / (1 + (R − 1) r)
    (Spearman–Brown); the ceiling is its square root, 0 where r is not positive.

    Parameters
    ----------
    repeats : ndarray (R, n, V)
        Standardised single runs of one segment, R ≥ 2.

    Returns
    -------
    ndarray, float64 (V,)
        0…1.

    References
    ----------
    Lage-Castellanos et al. 2019, PLoS Computational Biology 15, e1006397.
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
