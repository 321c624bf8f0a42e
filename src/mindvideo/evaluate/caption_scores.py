"""Similarity of sentences: what a caption of the reconstruction tells of the true clip.

Captions are a frozen captioner's (BLIP) for the middle frames: its errors are on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from mindvideo.evaluate.retrieval import feature_similarity, video_similarity
from mindvideo.evaluate.score import Score


def split_words(caption: str) -> list[str]:
    """Lower-case words of letters and digits."""
    return re.findall(r"[a-z0-9]+", caption.lower())


def _count_words(captions: Sequence[str], vocabulary: dict[str, int]) -> np.ndarray:
    counts = np.zeros((len(captions), max(1, len(vocabulary))), dtype=np.int16)
    for row, caption in enumerate(captions):
        for word in split_words(caption):
            counts[row, vocabulary[word]] += 1
    return counts


def pairwise_caption_f1(prediction: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """`caption_f1` of every prediction (row) with every truth (column), (n, m)."""
    words = sorted({word for caption in (*prediction, *truth) for word in split_words(caption)})
    vocabulary = {word: number for number, word in enumerate(words)}
    first = _count_words(prediction, vocabulary)
    second = _count_words(truth, vocabulary)
    length_1 = first.sum(axis=1, dtype=np.int64)
    length_2 = second.sum(axis=1, dtype=np.int64)
    shared = np.stack([np.minimum(row, second).sum(axis=1) for row in first]).astype(np.float64)
    f1 = 2.0 * shared / np.maximum(length_1[:, None] + length_2[None], 1)
    return np.where(length_2[None] > 0, f1, np.nan)


def caption_f1(prediction: Sequence[str], truth: Sequence[str]) -> np.ndarray:
    """Harmonic mean of the shares of words that captions have in common, float64 (n,).

    With c the number of words of both, counted with repetition, 2 c / (words of the prediction +
    words of the truth): ROUGE-1 F (Lin 2004, Text Summarization Branches Out), blind to synonyms and
    to word order. NaN where the true caption is empty. Captions share "a", "in", "the".
    """
    return np.array([pairwise_caption_f1([p], [t])[0, 0] for p, t in zip(prediction, truth, strict=True)])


SCORES = [
    Score(
        "caption_similarity", "caption similarity",
        "cosine of the CLIP text embeddings of a frozen captioner's sentences for the middle frames of reconstruction "
        "and truth",
        "content", "captions",
        lambda made, truth: feature_similarity(made.caption_embeddings, truth.caption_embeddings),
        lambda made, truth: video_similarity(made.caption_embeddings, truth.caption_embeddings), low=-1.0,
    ),
    Score(
        "caption_f1", "caption F1",
        "harmonic mean of the shares of words that a frozen captioner's sentences for the middle frames of "
        "reconstruction and truth have in common (ROUGE-1 F)",
        "content", "captions", lambda made, truth: caption_f1(made.captions, truth.captions),
        lambda made, truth: pairwise_caption_f1(made.captions, truth.captions),
    ),
]  # fmt: skip
"""The scores of captions."""
