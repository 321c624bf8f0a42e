"""Scores on frozen features: similarity, retrieval, consistency over time.

Shapes: n clips, F frames, D features (for example CLIP image embeddings).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mindvideo.config import Evaluate
from mindvideo.errors import DataError
from mindvideo.evaluate.score import Score
from mindvideo.evaluate.semantic import success_table

GATE = 0.6


def normalise(features: np.ndarray) -> np.ndarray:
    """Features (..., D) at unit length, float64; DataError if zero or not finite."""
    features = np.asarray(features, dtype=np.float64)
    length = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.isfinite(length).all() or (length == 0).any():
        raise DataError("expected finite feature vectors of non-zero length, found one that is not; look at the clips")
    return features / length


def clip_features(features: np.ndarray) -> np.ndarray:
    """One unit vector a clip (n, D): the mean of its frames' unit vectors."""
    return normalise(normalise(features).mean(axis=1))


def feature_similarity(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosine (n, F) of the features (n, F, D) of predicted and true frame at the same time.

    "CLIP similarity" (CLIP-I) with CLIP image embeddings (Radford et al. 2021, ICML). Chance is far
    above 0, because all frames of a film resemble one another in such features.
    """
    return (normalise(prediction) * normalise(truth)).sum(axis=-1)


def pairwise_similarity(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`feature_similarity` averaged over frames, for all pairs (n, n)."""
    first, second = normalise(prediction), normalise(truth)
    n_frames = first.shape[1]
    return first.reshape(len(first), -1) @ second.reshape(len(second), -1).T / n_frames


def retrieval_top_k(similarity: np.ndarray, n_candidates: int | None = None, top_k: int = 1) -> np.ndarray:
    """Exact probability (n,) that the true clip is among the ``top_k`` most similar of K candidates.

    The candidates are the true clip and K−1 others drawn without replacement; the expectation over
    draws is in closed form, as in `semantic.n_way_top_k`. **Ties count against the truth.** Range
    0…1, higher is better, chance ``top_k`` / K. Neighbouring windows of one film are candidates
    too, which makes it harder than retrieval among unrelated clips.

    Parameters
    ----------
    similarity : ndarray (n, n)
        Of prediction i (row) with the truth of clip j (column).
    n_candidates : int, optional
        K; all n clips by default. SettingError for more than there are.
    """
    n = len(similarity)
    others_ahead = (similarity >= np.diag(similarity)[:, None]).sum(axis=1) - 1
    return success_table(n - 1, n if n_candidates is None else n_candidates, top_k)[others_ahead]


def adjacent_consistency(features: np.ndarray) -> np.ndarray:
    """Cosine of the features (n, F, D) of adjacent frames, averaged over a clip; NaN for one frame.

    A frozen frame scores 1: the value to reach is the truth's own (Wu et al. 2023, ICCV, Tune-A-Video).
    """
    unit = normalise(features)
    if unit.shape[1] < 2:
        return np.full(len(unit), np.nan)
    return (unit[:, 1:] * unit[:, :-1]).sum(axis=-1).mean(axis=1)


def gated_consistency(features: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    """`adjacent_consistency`, but 0 for clips whose ``similarity`` (n,) is not above `GATE`.

    "CLIP-pcc" (Lu et al. 2025, ICLR, Mind-Animator) gates by VIFI-CLIP similarity of whole clips at .6,
    so the numbers do not compare with published ones.
    """
    return np.where(similarity > GATE, adjacent_consistency(features), 0.0)


def video_similarity(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosine of the features (n, D) of every prediction (row) and truth (column)."""
    return normalise(prediction) @ normalise(truth).T


def pairwise_retrieval(similarity: np.ndarray, top_k: int = 1, n_candidates: int | None = None) -> np.ndarray:
    """`retrieval_top_k` of prediction i as if truth j were its own, float32 (n, n).

    The diagonal is `retrieval_top_k`; permuting its columns by blocks tests the pairing.
    """
    n = len(similarity)
    table = success_table(n - 1, n if n_candidates is None else n_candidates, top_k).astype(np.float32)
    return np.stack([table[n - 1 - np.searchsorted(np.sort(row), row, side="left")] for row in similarity])


def _retrieval_score(kind: str, top_k: int, candidates: int | None, n_windows: int) -> Score:
    def similarity(made: Any, truth: Any) -> np.ndarray:
        if kind == "video":
            return video_similarity(made.video_embeddings, truth.video_embeddings)
        return clip_features(made.embeddings) @ clip_features(truth.embeddings).T

    n_candidates = candidates or n_windows
    features = "video-classifier features are" if kind == "video" else "CLIP image embedding (mean over frames) is"
    among = f"{candidates} test clips drawn at random (exact expectation)" if candidates else "all test clips"
    return Score(
        f"retrieval_{'video_' * (kind == 'video')}top{top_k}" + (f"_of{candidates}" if candidates else ""),
        f"retrieval{' by video features' if kind == 'video' else ''}, top-{top_k} of {n_candidates}",
        f"the true clip is among the {top_k} of K = {n_candidates} candidates, {among}, whose {features} most similar, "
        "ties against the truth",
        "content",
        "clips" if kind == "video" else "embeddings",
        lambda made, truth: retrieval_top_k(similarity(made, truth), n_candidates, top_k),
        lambda made, truth: pairwise_retrieval(similarity(made, truth), top_k, n_candidates),
        chance=top_k / n_candidates,
    )


def list_scores(settings: Evaluate, n_windows: int) -> list[Score]:
    """Similarity, retrieval among all clips and among fewer, and consistency."""
    choices: list[tuple[int, int | None]] = [(k, None) for k in (1, 5) if k < n_windows]
    choices += [(k, n) for n in settings.candidates for k in (1, 5) if k < n <= n_windows]
    retrieval = [_retrieval_score(kind, k, among, n_windows) for kind in ("image", "video") for k, among in choices]
    return [SIMILARITY, *retrieval, *CONSISTENCY]


def _mean_similarity(made: Any, truth: Any) -> np.ndarray:
    return feature_similarity(made.embeddings, truth.embeddings).mean(axis=1)


SIMILARITY = Score(
    "clip_similarity", "CLIP similarity",
    "cosine of the CLIP image embeddings of reconstructed and true frame at the same time, averaged over frames",
    "content", "embeddings", _mean_similarity,
    lambda made, truth: pairwise_similarity(made.embeddings, truth.embeddings), low=-1.0,
)  # fmt: skip
CONSISTENCY = [
    Score(
        "consistency", "consistency",
        "cosine of the CLIP image embeddings of adjacent frames; a frozen frame scores 1, the aim is the truth's value",
        "motion", "embeddings", lambda made, truth: adjacent_consistency(made.embeddings), low=-1.0,
        higher_is_better=None, over_time=True, has_truth=True, used_by="frame consistency of Tune-A-Video 2023",
    ),
    Score(
        "consistency_gated", "consistency, gated",
        "'consistency', but 0 for clips whose CLIP image similarity to the truth is .6 or less",
        "content", "embeddings",
        lambda made, truth: gated_consistency(made.embeddings, _mean_similarity(made, truth)), low=-1.0,
        over_time=True, has_truth=True,
        used_by="CLIP-pcc of Mind-Animator 2025 and NeuroClips 2024 is gated so, by VIFI-CLIP similarity",
    ),
]  # fmt: skip
