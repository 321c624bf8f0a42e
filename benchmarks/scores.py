"""Exact N-way top-K against the published 100-draw loop, and batched SSIM against scikit-image's, in one run.

Run with ``python benchmarks/scores.py``; it prints ratios, which hold across machines better than seconds do.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from skimage.metrics import structural_similarity

from mindvideo.evaluate.pixel import ssim_rgb
from mindvideo.evaluate.semantic import n_way_top_k, top_classes


def plain_n_way(probabilities: np.ndarray, truth: np.ndarray, n_way: int, rng: np.random.Generator) -> np.ndarray:
    """The published procedure: 100 draws of N - 1 distractors a clip."""
    n, classes = probabilities.shape
    found = np.zeros(n)
    for row in range(n):
        others = [index for index in range(classes) if index not in set(truth[row])]
        for _ in range(100):
            drawn = rng.choice(others, n_way - 1, replace=False)
            for right in truth[row]:
                if probabilities[row, right] > probabilities[row, drawn].max():
                    found[row] += 1
                    break
    return found / 100


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Mean wall seconds of some work."""
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def main() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(1000), 1200).astype(np.float32)
    truth = top_classes(rng.dirichlet(np.ones(1000), 1200), 3)
    exact = seconds(lambda: n_way_top_k(probabilities, truth, 50), 5)
    few = 24
    plain = seconds(lambda: plain_n_way(probabilities[:few], truth[:few], 50, rng), 1) * len(probabilities) / few
    print(f"50-way top-1, 1,200 clips x 1,000 classes: exact {exact * 1e3:.1f} ms, 100-draw loop {plain:.1f} s, "
          f"ratio {plain / exact:.0f}")  # fmt: skip
    first, second = rng.integers(0, 256, (2, 60, 256, 256, 3), dtype=np.uint8)
    ours = seconds(lambda: ssim_rgb(first, second), 2)
    pairs = list(zip(first, second, strict=True))
    theirs = seconds(lambda: [structural_similarity(a, b, channel_axis=-1, data_range=255) for a, b in pairs], 1)
    print(f"SSIM, 60 frames of 256 x 256: ours {ours:.2f} s, scikit-image {theirs:.2f} s, ratio {theirs / ours:.1f}")


if __name__ == "__main__":
    main()
