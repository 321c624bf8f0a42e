"""What a reconstruction is compared with: controls, baselines and ceilings, and how good the recording lets it be."""

from __future__ import annotations

import numpy as np

from mindvideo.errors import DataError
from mindvideo.evaluate.score import ClipSet

CLIP_SETS = {
    each.name: each
    for each in (
        ClipSet("shuffled", "control", "shuffled brain", "same generator and seeds, fMRI of a window of another scene"),
        ClipSet("mean", "control", "mean brain", "same generator and seeds, the mean training fMRI as the condition"),
        ClipSet("random_train", "baseline", "random training clip", "a random training clip for every window"),
        ClipSet("constant", "baseline", "mean training frame", "the mean training frame"),
        ClipSet(
            "shuffled_pairing", "control", "shuffled pairing",
            "the very same reconstructions, each scored against the truth of another block of clips",
        ),
        ClipSet(
            "mean_truth_frame", "baseline", "mean frame of the truth",
            "the mean frame of the truth; made from the answers, so no rival, but what a constant picture can reach",
        ),
        ClipSet("grey", "baseline", "grey", "a picture of grey level 128 everywhere"),
        ClipSet("caption", "ceiling", "true caption", "same generator and seeds, the true caption as the condition"),
        ClipSet("vae", "ceiling", "truth through VAE", "the true clip through the autoencoder"),
    )
}  # fmt: skip
"""Every set of clips that stands beside a reconstruction, in the order of tables: those to beat first."""


def clip_set(name: str, negative: str = "train_mean") -> ClipSet:
    """What a set of clips is; one that nobody declared (another method's clips) is a baseline.

    Parameters
    ----------
    name : str
    negative : str
        ``reconstruct.negative``: it decides which mean the ``mean`` control is made from, and whether it is guided.
    """
    known = CLIP_SETS.get(name) or ClipSet(name, "baseline", name.replace("_", " "), "")
    if name != "mean" or negative not in ("train_mean", "test_mean"):
        return known
    text = known.definition
    if negative == "test_mean":
        text = text.replace("the mean training fMRI", "the mean test fMRI (the paper's, transductive)")
    text += "; it is the negative too, so Eq. 6 cancels and brain and guidance are mixed against it"
    return ClipSet(name, known.role, known.label, text, note="never guided")


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
