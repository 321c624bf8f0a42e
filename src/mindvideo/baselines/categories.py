"""Categories a method names from the fMRI itself, without a picture (Wen et al. 2018), judged like the clips' frames.

Shapes: n test windows, B batch.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from mindvideo.baselines.trial import Trial
from mindvideo.evaluate.semantic import n_way_top_k, top_classes
from mindvideo.evaluate.statistics import block_permutation_p
from mindvideo.generate.clips import split_batches
from mindvideo.models.foundation import Foundation


def judge_categories(
    name_categories: Callable[[np.ndarray], np.ndarray], trial: Trial, foundation: Foundation
) -> dict[str, dict[str, float]]:
    """N-way top-K scores of named categories beside those named from another scene's fMRI.

    Parameters
    ----------
    name_categories : callable
        FMRI windows (B, W, V) to class probabilities (B, classes) of the foundation's image classifier.

    Returns
    -------
    dict
        ``{N}way``: ``value``, ``shuffled`` and ``p_shuffled`` (one-sided, blocks permuted). The ground truth is the
        three classes of the middle frame that the classifier thinks most probable.
    """
    settings, n = trial.recipe.evaluate, len(trial.chosen)
    truth = top_classes(foundation.classify_images(trial.truth[:, trial.truth.shape[1] // 2]))
    named = {
        key: np.concatenate([name_categories(trial.fmri(key, rows)) for rows in split_batches(n, 64)])
        for key in ("reconstruction", "shuffled")
    }
    figures: dict[str, Any] = {}
    for n_way in settings.n_ways:
        own, other = (n_way_top_k(values, truth, n_way, settings.top_k) for values in named.values())
        rng = np.random.default_rng([trial.recipe.seed, zlib.crc32(f"categories {n_way}".encode())])
        p = block_permutation_p(own - other, trial.block, settings.permutations, rng)
        figures[f"{n_way}way"] = {"value": float(own.mean()), "shuffled": float(other.mean()), "p_shuffled": p}
    return figures
