"""N-way identification against the sampled procedure, brute force over all draws, and scipy's hypergeometric."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import hypergeom

from mindvideo.errors import DataError, SettingError
from mindvideo.evaluate.semantic import (
    chance_n_way,
    n_way_top_k,
    pairwise_n_way_top_k,
    success_table,
    top_classes,
)


def coarse_probabilities(rng, n, n_classes):
    """Random probabilities with many ties."""
    values = np.round(rng.dirichlet(np.full(n_classes, 0.3), n) * 40) / 40
    return values


def brute_force(values, own, n_way, top_k):
    outside = [c for c in range(len(values)) if c not in own]
    draws = list(combinations(outside, n_way - 1))
    hits = sum(any(sum(values[d] >= values[c] for d in draw) < top_k for c in own) for draw in draws)
    return hits / len(draws)


def sampled_n_way_top_k(probabilities, truth, n_way, top_k, draws, rng):
    """The test by drawing distractors, as published: the share of successes of each row."""
    share = []
    for values, own in zip(probabilities, truth, strict=True):
        outside = np.setdiff1d(np.arange(len(values)), own)
        drawn = [values[rng.choice(outside, n_way - 1, replace=False)] for _ in range(draws)]
        share.append(np.mean([any((row >= values[c]).sum() < top_k for c in own) for row in drawn]))
    return np.array(share)


@pytest.mark.parametrize(("n_way", "top_k"), [(2, 1), (4, 1), (4, 2), (6, 5), (3, 3)])
def test_exact_equals_enumeration_of_every_draw_with_ties(n_way, top_k):
    rng = np.random.default_rng(3)
    values = coarse_probabilities(rng, 7, 11)
    assert any(len(np.unique(row)) < 11 for row in values)
    truth = top_classes(rng.random((7, 11)), 3)
    expected = [brute_force(row, own.tolist(), n_way, top_k) for row, own in zip(values, truth, strict=True)]
    np.testing.assert_allclose(n_way_top_k(values, truth, n_way, top_k), expected, atol=1e-12)


@pytest.mark.parametrize("n_classes", [400, 1000])
def test_exact_equals_20000_draws_within_their_standard_error(n_classes):
    rng, draws, n_ways = np.random.default_rng(n_classes), 20_000, (2, 10, 50, 100)
    values = np.concatenate(
        [coarse_probabilities(rng, 2, n_classes), rng.dirichlet(np.ones(n_classes), 4), np.zeros((1, n_classes))]
    )
    assert len(np.unique(values[0])) < 0.5 * n_classes
    rank = np.array([[2, 9, 40], [5, 6, 80], [0, 1, 2], [1, 7, 8], [12, 40, 90], [25, 26, 300], [0, 1, 2]])
    truth = np.take_along_axis(top_classes(values, n_classes), rank, axis=1)
    # the first N - 1 of a random order are N - 1 draws without replacement, for every N at once
    keys = rng.random((draws, n_classes - 3), dtype=np.float32)
    drawn = np.argpartition(keys, 99, axis=1)[:, :99]
    drawn = np.take_along_axis(drawn, np.take_along_axis(keys, drawn, axis=1).argsort(axis=1), axis=1)
    compared = 0
    for row, own in zip(values, truth, strict=True):
        outside = np.setdiff1d(np.arange(n_classes), own)
        ahead = np.cumsum(row[outside][drawn] >= row[own].max(), axis=1, dtype=np.int16)
        for n_way in n_ways:
            for top_k in (1, 5):
                exact = n_way_top_k(row[None], own[None], n_way, top_k)[0]
                sampled = (ahead[:, n_way - 2] < top_k).mean()
                assert abs(sampled - exact) <= 4 * np.sqrt(exact * (1 - exact) / draws) + 1e-12
                compared += 0 < exact < 1
    assert compared >= 20


def test_the_published_loop_has_the_exact_expectation():
    rng = np.random.default_rng(4)
    values = coarse_probabilities(rng, 3, 60) + rng.dirichlet(np.ones(60), 3).round(3)
    truth = top_classes(rng.random((3, 60)), 3)
    exact = n_way_top_k(values, truth, 10, 2)
    sampled = sampled_n_way_top_k(values, truth, 10, 2, draws=600, rng=rng)
    assert (np.abs(sampled - exact) <= 4 * np.sqrt(exact * (1 - exact) / 600) + 1e-9).all()


def test_table_equals_scipys_hypergeometric():
    m = np.arange(98)
    np.testing.assert_allclose(success_table(97, 50, 5), hypergeom.cdf(4, 97, m, 49), rtol=1e-9, atol=1e-12)


def test_ties_count_against_the_truth():
    assert n_way_top_k(np.full((2, 9), 1 / 9), np.array([[0, 1, 2], [3, 4, 5]]), 2).tolist() == [0.0, 0.0]
    values = np.array([[0.4, 0.1, 0.1, 0.4, 0.0, 0.0]])
    assert n_way_top_k(values, np.array([[0, 1, 2]]), 2)[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("n_way", "top_k", "g"), [(2, 1, 3), (50, 1, 3), (10, 5, 3), (4, 2, 1), (3, 3, 2)])
def test_chance_is_the_expectation_under_exchangeable_classes(n_way, top_k, g):
    rng = np.random.default_rng(17)
    values = rng.random((4000, 71))
    truth = np.argsort(rng.random((4000, 71)), axis=1)[:, :g]
    success = n_way_top_k(values, truth, n_way, top_k)
    assert abs(success.mean() - chance_n_way(n_way, top_k, g)) <= 4 * success.std() / np.sqrt(4000) + 1e-12


def test_chance_of_the_published_tests():
    assert chance_n_way(2) == pytest.approx(0.75)
    assert chance_n_way(50) == pytest.approx(3 / 52)


def test_pairs_are_the_test_of_every_prediction_with_every_truth():
    rng = np.random.default_rng(5)
    values = coarse_probabilities(rng, 13, 67)
    truth = top_classes(coarse_probabilities(rng, 13, 67))
    pairs = pairwise_n_way_top_k(values, truth, 20, 2)
    for shift in (0, 4):
        expected = n_way_top_k(values, np.roll(truth, -shift, axis=0), 20, 2)
        np.testing.assert_allclose(pairs[np.arange(13), (np.arange(13) + shift) % 13], expected, atol=1e-7)


def test_top_classes_take_equal_ones_in_class_order():
    assert top_classes(np.array([[0.1, 0.3, 0.3, 0.2, 0.1]]), 4).tolist() == [[1, 2, 3, 0]]


def test_bad_input_is_refused():
    values = np.full((2, 60), 1 / 60)
    truth = np.array([[0, 1, 2], [3, 4, 5]])
    with pytest.raises(SettingError, match="61-way"):
        n_way_top_k(values, truth, 61)
    with pytest.raises(DataError, match="NaN"):
        n_way_top_k(np.where(np.arange(60) == 7, np.nan, values), truth, 2)
    with pytest.raises(DataError, match="distinct"):
        n_way_top_k(values, np.array([[0, 1, 1], [3, 4, 5]]), 2)
    with pytest.raises(DataError, match="0…59"):
        n_way_top_k(values, truth + 57, 2)
    with pytest.raises(DataError, match="same n"):
        n_way_top_k(values, truth[:1], 2)
