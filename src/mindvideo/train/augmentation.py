"""Augmented scans: noise, voxels set to zero (paper supplement B), and windows mixed in pairs.

Shapes: B windows, W scans per window, V voxels.
"""

from __future__ import annotations

import numpy as np
import torch


def augment_fmri(fmri_BWV: torch.Tensor, sparsify: float, noise: float, rng: np.random.Generator) -> torch.Tensor:
    """Set a random fraction of each window's voxels to zero in all its scans, and add normal noise (supplement B)."""
    if noise > 0:
        fmri_BWV = fmri_BWV + noise * torch.from_numpy(rng.standard_normal(fmri_BWV.shape, dtype=np.float32))
    if sparsify > 0:
        keep = rng.random((len(fmri_BWV), 1, fmri_BWV.shape[-1])) >= sparsify
        fmri_BWV = fmri_BWV * torch.from_numpy(keep)
    return fmri_BWV


class Mixture:
    """Windows mixed in pairs, and whatever they are aligned with alike (mixup, Zhang et al. 2018).

    Parameters
    ----------
    size : int
        Windows B of the batch.
    strength : float
        Parameter of the beta distribution of the shares; 0 mixes nothing.
    """

    def __init__(self, size: int, strength: float, rng: np.random.Generator) -> None:
        """Draw every window's share and partner."""
        self.partner = rng.permutation(size) if strength > 0 else np.arange(size)
        share = rng.beta(strength, strength, size=size) if strength > 0 else np.ones(size)
        self.share = torch.from_numpy(share.astype(np.float32))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Values (B, ...), each mixed with its partner's."""
        share = self.share.view(-1, *(1,) * (values.ndim - 1)).to(values.device)
        return share * values + (1 - share) * values[self.partner]
