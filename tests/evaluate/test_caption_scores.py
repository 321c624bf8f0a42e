"""Word overlap of captions by hand and by counting."""

from collections import Counter

import numpy as np
import pytest

from mindvideo.evaluate.caption_scores import caption_f1, pairwise_caption_f1


def test_f1_by_hand():
    assert caption_f1(["a red dog runs"], ["A dog, a dog runs."]).tolist() == [2 * 3 / (4 + 5)]
    assert caption_f1(["same words here", ""], ["here words same", "a dog"]).tolist() == [1.0, 0.0]
    assert np.isnan(caption_f1(["a dog"], ["…"])[0])


def test_pairs_equal_counting_words():
    rng = np.random.default_rng(0)
    words = np.array(list("abcdefg"))
    first, second = ([" ".join(rng.choice(words, rng.integers(1, 9))) for _ in range(n)] for n in (5, 7))
    found = pairwise_caption_f1(first, second)
    for i, p in enumerate(first):
        for j, t in enumerate(second):
            shared = (Counter(p.split()) & Counter(t.split())).total()
            assert found[i, j] == pytest.approx(2 * shared / (len(p.split()) + len(t.split())))
    assert caption_f1(first, second[:5]).tolist() == np.diag(found[:, :5]).tolist()
