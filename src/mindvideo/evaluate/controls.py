"""What a reconstruction is compared with: controls, baselines, ceilings, and how good the recording lets it be."""

from __future__ import annotations

from typing import Literal

import numpy as np

from mindvideo.errors import DataError

Role = Literal["control", "baseline", "ceiling"]

ROLES: dict[str, Role] = {
    "shuffled": "control",
    "mean": "control",
    "random_train": "baseline",
    "constant": "baseline",
    "shuffled_pairing": "control",
    "mean_truth_frame": "baseline",
    "grey": "baseline",
    "caption": "ceiling",
    "vae": "ceiling",
}
"""Role of each set of clips (METHOD section 9). A *control* uses the same generator and seeds without the window's own
brain signal, a *baseline* is what one could show without any brain, a *ceiling* is given the stimulus itself."""


DEFINITIONS = {
    "reconstruction": "the clips that are scored",
    "shuffled": "same generator and seeds, fMRI of a window of another scene",
    "mean": "same generator and seeds, the mean training fMRI as the condition",
    "random_train": "a random training clip for every window",
    "constant": "the mean training frame",
    "caption": "same generator and seeds, the true caption as the condition",
    "vae": "the true clip through the autoencoder",
    "shuffled_pairing": "the very same reconstructions, each scored against the truth of another block of clips",
    "mean_truth_frame": "the mean frame of the truth; made from the answers, so no rival, but what a constant picture can reach",
    "grey": "a picture of grey level 128 everywhere",
}
"""What each set of clips is, in one line."""


def role_of(name: str) -> Role:
    """Role of a set of clips by its name; a set nobody named here (another method's clips) is a baseline."""
    return ROLES.get(name, "baseline")


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
