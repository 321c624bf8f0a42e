"""N-way top-K identification: the published sampling's expectation in closed form.

Shapes: n rows (frames or clips), classes, g ground-truth classes of a row
(docs/method.md, Scores and controls).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from mindvideo.config import Evaluate
from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.score import Score

TRUE_CLASSES = 3
"""Classes of the true clip that count as right (paper section 4.2)."""


def refuse_ways(settings: Evaluate, part: str, n_classes: int) -> None:
    """SettingError for more ways than a classifier has other classes, or for no more than the top K."""
    if settings.top_k >= min(settings.n_ways, default=math.inf):
        raise SettingError(
            f"expected evaluate.top_k of less than every evaluate.n_ways, found {settings.top_k} and {min(settings.n_ways)}"
        )
    if (most := max(settings.n_ways, default=2)) > n_classes - TRUE_CLASSES + 1:
        raise SettingError(
            f"expected evaluate.n_ways of at most {n_classes - TRUE_CLASSES + 1}, as {part} has {n_classes} classes and "
            f"distractors are drawn from all but the true clip's {TRUE_CLASSES}, found {most}; lower it"
        )


@cache
def success_table(pool: int, n_way: int, top_k: int) -> np.ndarray:
    """Chance that fewer than K of N−1 distractors are among the m that beat the truth.

    Read-only float64 (pool + 1,): entry m is the hypergeometric P(X ≤ K − 1), from exact integers.
    """
    if n_way < 2 or top_k < 1:
        raise SettingError(f"expected n_way of at least 2 and top_k of at least 1, found {n_way} and {top_k}")
    draws = n_way - 1
    if draws > pool:
        raise SettingError(
            f"expected at least {draws} candidates for the distractors of a {n_way}-way test, found {pool}; "
            "lower n_ways or use a classifier with more classes"
        )
    all_draws = math.comb(pool, draws)
    table = np.empty(pool + 1)
    for m in range(pool + 1):
        good = sum(math.comb(m, j) * math.comb(pool - m, draws - j) for j in range(min(top_k, draws + 1)))
        table[m] = good / all_draws
    table.setflags(write=False)
    return table


def _check(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.asarray(probabilities)
    truth = np.asarray(truth)
    if probabilities.ndim != 2 or truth.ndim != 2 or len(probabilities) != len(truth):
        raise DataError(
            "expected probabilities (n, classes) and class indices (n, g) with the same n, "
            f"found {probabilities.shape} and {truth.shape}"
        )
    if not np.isfinite(probabilities).all():
        row = int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])
        raise DataError(f"expected finite class probabilities, found NaN or infinity in row {row}; look at that clip")
    n_classes = probabilities.shape[1]
    if truth.size and (truth.min() < 0 or truth.max() >= n_classes):
        raise DataError(f"expected class indices 0…{n_classes - 1}, found {int(truth.min())}…{int(truth.max())}")
    ordered = np.sort(truth, axis=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        row = int(np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))[0])
        raise DataError(f"expected distinct ground-truth classes in a row, found {truth[row].tolist()} in row {row}")
    return probabilities, truth


def top_classes(probabilities: np.ndarray, n_classes: int = TRUE_CLASSES) -> np.ndarray:
    """The N-way test's ground truth: the most probable classes, three in section 4.2.

    Indices (..., n_classes), the most probable first, equal ones in class order.
    """
    return np.argsort(-probabilities, axis=-1, kind="stable")[..., :n_classes]


def n_way_top_k(probabilities: np.ndarray, truth: np.ndarray, n_way: int, top_k: int = 1) -> np.ndarray:
    """Exact probability of success in the N-way top-K test of each row, float64 (n,).

    The procedure (paper section 4.2, after Chen et al. 2023): the ground truth G is the true clip's
    top classes; N−1 distractors are drawn without replacement from the classes outside G; success
    if any class of G is in the top K of {that class} ∪ distractors by the prediction's
    probabilities. Published code averages random draws. Its expectation is a hypergeometric tail:
    with b the class of G the prediction thinks most probable and m the number of classes outside G
    that beat **or tie** b, success means at most K−1 of the drawn distractors are among those m.
    **Ties count against the ground truth**, so a constant prediction scores 0 and not 1.

    Chance is not 1/N: `chance_n_way` gives it for exchangeable classes, a test set's own chance is the
    mean of `pairwise_n_way_top_k` off the diagonal.

    Parameters
    ----------
    probabilities : ndarray, float (n, classes)
        The prediction's; only their order matters.
    truth : ndarray, int (n, g)
        Distinct ground-truth classes of each row, see `top_classes`. DataError for what does not fit,
        SettingError for fewer classes outside G than distractors.
    """
    probabilities, truth = _check(probabilities, truth)
    own = np.take_along_axis(probabilities, truth, axis=1)
    best = own.max(axis=1, keepdims=True)
    beaten_by = (probabilities >= best).sum(axis=1) - (own >= best).sum(axis=1)
    return success_table(probabilities.shape[1] - truth.shape[1], n_way, top_k)[beaten_by]


def pairwise_n_way_top_k(probabilities: np.ndarray, truth: np.ndarray, n_way: int, top_k: int = 1) -> np.ndarray:
    """`n_way_top_k` of prediction i against the truth of row j, float32 (n, n).

    The mean off the diagonal is the chance on this test set, exactly.
    """
    probabilities, truth = _check(probabilities, truth)
    n, n_classes = probabilities.shape
    ordered = np.sort(probabilities, axis=1)
    table = success_table(n_classes - truth.shape[1], n_way, top_k).astype(np.float32)
    pairs = np.empty((n, n), dtype=np.float32)
    for i in range(n):
        at_least = n_classes - np.searchsorted(ordered[i], probabilities[i], side="left")
        ranks = at_least[truth]
        best = ranks.min(axis=1)
        pairs[i] = table[best - (ranks == best[:, None]).sum(axis=1)]
    return pairs


def chance_n_way(n_way: int, top_k: int = 1, n_truth: int = TRUE_CLASSES) -> float:
    """Chance level of the N-way top-K test when all classes are exchangeable and never tie.

    Of the g ground-truth classes and N−1 distractors, in random order, the test fails when the
    first K are all distractors: 1 − ∏ₖ (N−1−k)/(N−1+g−k), k = 0…K−1; with K = 1 and three classes
    3/(N+2). Real classifiers' classes are not exchangeable.
    """
    failure = 1.0
    for k in range(min(top_k, n_way)):
        failure *= (n_way - 1 - k) / (n_way - 1 + n_truth - k)
    return 1.0 - failure


def n_way_name(kind: str, n_way: int, top_k: int) -> str:
    """``image_50way``, or ``video_50way_top5`` where K is not 1."""
    return f"{kind}_{n_way}way" + (f"_top{top_k}" if top_k != 1 else "")


def list_scores(settings: Evaluate) -> list[Score]:
    """N-way top-K identification of clips and of frames, for every N."""
    return [make(n_way, settings.top_k) for make in (_video_score, _image_score) for n_way in settings.n_ways]


def _words(kind: str, n_way: int, top_k: int, what: str) -> dict[str, Any]:
    return {
        "name": n_way_name(kind, n_way, top_k),
        "label": f"{kind} {n_way}-way" + (f" top-{top_k}" if top_k != 1 else ""),
        "definition": (
            f"exact {n_way}-way top-{top_k} identification by a frozen {kind} classifier: one of the true clip's three "
            f"top classes against {n_way - 1} random others, ties against the truth, for {what}"
        ),
        "family": "content",
        "chance": chance_n_way(n_way, top_k),
        "used_by": "Chen et al. 2023 (MinD-Vis), Chen, Qing & Zhou 2023 (MinD-Video), by 100 random draws",
        "is_main": True,
    }


def _video_score(n_way: int, top_k: int) -> Score:
    return Score(
        **_words("video", n_way, top_k, "the whole clip"),
        needs="clips",
        per_window=lambda made, truth: n_way_top_k(made.videos, top_classes(truth.videos), n_way, top_k),
        pairwise=lambda made, truth: pairwise_n_way_top_k(made.videos, top_classes(truth.videos), n_way, top_k),
    )


def _image_score(n_way: int, top_k: int) -> Score:
    def per_window(made: Any, truth: Any) -> np.ndarray:
        n, n_frames, n_classes = made.images.shape
        tops = top_classes(truth.images).reshape(n * n_frames, -1)
        success = n_way_top_k(made.images.reshape(-1, n_classes), tops, n_way, top_k)
        return success.reshape(n, n_frames).mean(axis=1)

    def pairwise(made: Any, truth: Any) -> np.ndarray:
        tops = top_classes(truth.images)
        n, n_frames = made.images.shape[:2]
        total = np.zeros((n, n), dtype=np.float64)
        for f in range(n_frames):
            total += pairwise_n_way_top_k(made.images[:, f], tops[:, f], n_way, top_k)
        return total / n_frames

    words = _words("image", n_way, top_k, "each frame, averaged over the frames of a clip")
    return Score(**words, needs="images", per_window=per_window, pairwise=pairwise)
