"""Augmented scans, frames and captions (paper supplement B), and windows mixed in pairs.

Shapes: B windows, W scans per window, V voxels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mindvideo.models.foundation import Foundation
from mindvideo.train.thesaurus import Thesaurus, word_of

CROP_SIDE = 0.8
"""Side of a crop relative to the frame's; ours, the paper gives none."""


def augment_fmri(fmri_BWV: torch.Tensor, sparsify: float, noise: float, rng: np.random.Generator) -> torch.Tensor:
    """Zero a random fraction of each window's voxels, and add normal noise (supplement B)."""
    if noise > 0:
        fmri_BWV = fmri_BWV + noise * torch.from_numpy(rng.standard_normal(fmri_BWV.shape, dtype=np.float32))
    if sparsify > 0:
        keep = rng.random((len(fmri_BWV), 1, fmri_BWV.shape[-1])) >= sparsify
        fmri_BWV = fmri_BWV * torch.from_numpy(keep)
    return fmri_BWV


def augment_caption(caption: str, thesaurus: Thesaurus, rng: np.random.Generator) -> str:
    """Replace known words by synonyms with probability .5, and swap two words (supplement B)."""
    words = caption.split()
    for position, word in enumerate(words):
        bare = word_of(word)
        if bare in thesaurus and rng.random() < 0.5:
            words[position] = str(rng.choice(thesaurus[bare])) + word[len(bare) :]
    if len(words) > 1:
        first, second = rng.choice(len(words), size=2, replace=False)
        words[first], words[second] = words[second], words[first]
    return " ".join(words)


def augment_captions(
    captions: list[str], thesaurus: Thesaurus, rngs: Sequence[np.random.Generator], foundation: Foundation
) -> list[str]:
    """`augment_caption` of each, unless that makes it too long for the text encoder."""
    changed = [augment_caption(text, thesaurus, rng) for text, rng in zip(captions, rngs, strict=True)]
    too_long = set(foundation.list_too_long(changed))
    return [old if new in too_long else new for old, new in zip(captions, changed, strict=True)]


def random_crops(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One random crop of each frame, uint8 (B, H', W', 3) with H' = CROP_SIDE * H."""
    n, height, width, _ = frames.shape
    tall, wide = max(1, round(CROP_SIDE * height)), max(1, round(CROP_SIDE * width))
    top = rng.integers(0, height - tall + 1, size=n)
    left = rng.integers(0, width - wide + 1, size=n)
    return np.stack([frame[y : y + tall, x : x + wide] for frame, y, x in zip(frames, top, left, strict=True)])


class Mixture:
    """Windows mixed in pairs, and their targets alike (mixup, Zhang et al. 2018).

    Parameters
    ----------
    size : int
        Windows B of the batch.
    strength : float
        Parameter of the beta distribution of the shares; 0 mixes nothing.
    person : ndarray of int (B,), optional
        Person of each window: a partner is of the same person.
    """

    def __init__(self, size: int, strength: float, rng: np.random.Generator, person: np.ndarray | None = None) -> None:
        self.partner = np.arange(size)
        whose = np.zeros(size, int) if person is None else person
        for number in np.unique(whose) if strength > 0 else ():
            theirs = np.flatnonzero(whose == number)
            self.partner[theirs] = theirs[rng.permutation(len(theirs))]
        share = rng.beta(strength, strength, size=size) if strength > 0 else np.ones(size)
        self.share = torch.from_numpy(share.astype(np.float32))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Values (B, ...), each mixed with its partner's."""
        share = self.share.view(-1, *(1,) * (values.ndim - 1)).to(values.device)
        return share * values + (1 - share) * values[self.partner]
