"""Block tests: enumeration, false-positive rates under dependence, coverage, adjusted P-values."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_rel

from mindvideo.evaluate.statistics import (
    block_bootstrap_interval,
    block_pairing_p,
    block_permutation_p,
    holm,
    p_class,
    two_sample_block_p,
)


def dependent(rng, n_blocks, length):
    """Values that share most of their variation inside a block."""
    return np.repeat(rng.normal(size=n_blocks), length) + 0.5 * rng.normal(size=n_blocks * length)


def test_few_blocks_are_enumerated():
    rng = np.random.default_rng(0)
    block = np.repeat([4, 1, 9, 2, 7], [3, 2, 4, 1, 3])
    difference = rng.normal(0.4, 1, len(block))
    sums = np.array([difference[block == b].sum() for b in np.unique(block)])
    flips = [np.dot(signs, sums) for signs in product([1, -1], repeat=5)]
    assert block_permutation_p(difference, block, 100, rng) == np.mean(np.array(flips) >= sums.sum() - 1e-9)
    two = np.mean(np.abs(flips) >= abs(sums.sum()) - 1e-9)
    assert block_permutation_p(difference, block, 100, rng, "two-sided") == two


def test_sampled_flips_agree_with_enumeration_and_are_never_zero():
    rng = np.random.default_rng(1)
    block = np.repeat(np.arange(11), 3)
    difference = rng.normal(0.25, 1, 33)
    exact = block_permutation_p(difference, block, 2**11, rng)
    sampled = block_permutation_p(difference, block, 2000, rng)
    assert abs(sampled - exact) < 4 * np.sqrt(exact * (1 - exact) / 2000) + 1 / 2001
    assert block_permutation_p(np.ones(90), np.repeat(np.arange(30), 3), 99, rng) == pytest.approx(1 / 100)
    assert block_permutation_p(np.zeros(33), block, 999, rng) == 1.0


def test_blocks_keep_the_false_positive_rate_where_the_t_test_does_not():
    rng = np.random.default_rng(2)
    block = np.repeat(np.arange(24), 10)
    p_block, p_naive = [], []
    for _ in range(200):
        first, second = dependent(rng, 24, 10), dependent(rng, 24, 10)
        p_block.append(block_permutation_p(first - second, block, 399, rng))
        p_naive.append(ttest_rel(first, second, alternative="greater").pvalue)
    assert abs(np.mean(np.array(p_block) < 0.05) - 0.05) <= 0.03
    assert np.mean(np.array(p_naive) < 0.05) > 0.15
    assert abs(np.mean(p_block) - 0.5) < 0.08


def test_pairing_test_has_its_rate_under_dependence_and_finds_a_real_pairing():
    rng = np.random.default_rng(3)
    block = np.repeat(np.arange(12), [5] * 10 + [3] * 2)
    n = len(block)
    noise = np.stack([rng.normal(size=12), rng.normal(size=12)])[:, block] + 0.3 * rng.normal(size=(2, n))
    assert block_pairing_p(-np.abs(noise[0][:, None] - noise[0][None] - 0.01), block, 199, rng) == pytest.approx(
        1 / 200
    )
    p_values = []
    for _ in range(200):
        x, y = rng.normal(size=(2, 12))[:, block] + 0.3 * rng.normal(size=(2, n))
        p_values.append(block_pairing_p(np.outer(x, y), block, 99, rng))
    assert abs(np.mean(np.array(p_values) <= 0.05) - 0.05) <= 0.03
    assert block_pairing_p(np.eye(7), np.array([0, 0, 0, 0, 1, 1, 2]), 99, rng) == 1.0


def test_bootstrap_interval_covers_the_mean_and_is_wider_than_one_over_windows():
    rng = np.random.default_rng(4)
    block = np.repeat(np.arange(40), 8)
    covered, width, naive = [], [], []
    for _ in range(120):
        values = dependent(rng, 40, 8)
        low, high = block_bootstrap_interval(values, block, 300, rng)
        covered.append(low <= 0 <= high)
        width.append(high - low)
        low, high = block_bootstrap_interval(values, np.arange(320), 300, rng)
        naive.append(high - low)
    assert np.mean(covered) >= 0.88
    assert np.mean(width) > 2 * np.mean(naive)
    assert np.isnan(block_bootstrap_interval(np.ones(4), np.zeros(4, int), 99, rng)).all()


def test_bootstrap_with_unequal_blocks_keeps_the_mean_over_windows():
    block = np.repeat([0, 1, 2], [1, 1, 30])
    low, high = block_bootstrap_interval((block == 2) * 1.0, block, 999, np.random.default_rng(5))
    assert (low, high) == (0.0, 1.0)


def test_two_samples_enumerated_and_under_the_null():
    rng = np.random.default_rng(6)
    first, second = np.array([5.0, 5, 6, 7]), np.array([1.0, 2, 2, 3, 1])
    p = two_sample_block_p((first, np.array([0, 0, 1, 2])), (second, np.array([0, 1, 1, 2, 2])), 99, rng)
    assert p == pytest.approx(2 / 20)  # of 20 deals the observed one and its mirror image are the most extreme
    p_values = []
    for _ in range(200):
        a, b = dependent(rng, 14, 5), dependent(rng, 18, 5)
        blocks = np.repeat(np.arange(14), 5), np.repeat(np.arange(18), 5)
        p_values.append(two_sample_block_p((a, blocks[0]), (b, blocks[1]), 199, rng))
    assert abs(np.mean(np.array(p_values) <= 0.05) - 0.05) <= 0.03


def test_adjusted_p_values():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_classes_of_the_papers_table():
    names = [p_class(p) for p in (0.00009, 0.0001, 0.0099, 0.01, 0.05, 1.0)]
    assert names == ["p<0.0001", "p<0.01", "p<0.01", "p<0.05", "p>0.05", "p>0.05"]
