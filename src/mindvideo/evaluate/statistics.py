"""Inference that respects dependence: whole blocks of windows are permuted and resampled.

Shapes: n windows, each with a block number; windows of one block stay together
(docs/method.md, Scores and controls).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy as np

Alternative = Literal["greater", "two-sided"]
Sample = tuple[np.ndarray, np.ndarray]
"""Values (n,) of windows, and the block (n,) of each."""
_PIECE = 2**18
ENDS = (0.025, 0.975)
"""Quantiles at the ends of a 95 % interval."""
P_CLASSES = ((0.0001, "p<0.0001"), (0.01, "p<0.01"), (0.05, "p<0.05"))


def _by_block(values: np.ndarray, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of windows of each block, float64."""
    _, index = np.unique(block, return_inverse=True)
    return np.bincount(index, weights=values), np.bincount(index).astype(np.float64)


def _tail(null: np.ndarray, observed: float, alternative: Alternative, extra: int) -> float:
    """(extra + as extreme values of the null) / (extra + size), up to rounding."""
    slack = 1e-10 * max(1.0, abs(observed), float(np.abs(null).max(initial=0.0)))
    if alternative == "two-sided":
        null, observed = np.abs(null), abs(observed)
    return float((extra + (null >= observed - slack).sum()) / (extra + len(null)))


def block_permutation_p(
    difference: np.ndarray,
    block: np.ndarray,
    permutations: int,
    rng: np.random.Generator,
    alternative: Alternative = "greater",
) -> float:
    """Block sign-flip test of paired differences.

    Under the null hypothesis the two members of a pair are exchangeable; the sign of the difference
    is flipped for whole blocks at once, and the sum compared with the observed one. All 2^B flips
    are enumerated where they are no more than ``permutations``; else they are sampled and the
    observed one is counted in (Phipson & Smyth 2010). P in (0, 1]; the smallest possible is
    therefore 2^−B or 1 / (permutations + 1).

    Parameters
    ----------
    difference : ndarray (n,)
        Score of the reconstruction minus score of the control, window by window.
    block : ndarray, int (n,)
        Windows with one number are flipped together.
    alternative : str
        ``greater`` (the mean difference is above 0) or ``two-sided``.
    """
    sums, _ = _by_block(difference, block)
    observed = float(sums.sum())
    if is_exact(len(sums), permutations):
        bits = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return _tail((1 - 2 * bits) @ sums, observed, alternative, extra=0)

    def flip(count: int) -> np.ndarray:
        return observed - 2.0 * (rng.integers(0, 2, size=(count, len(sums)), dtype=np.int8) @ sums)

    return _tail(_in_pieces(flip, permutations, len(sums)), observed, alternative, extra=1)


def _in_pieces(draw: Callable[[int], np.ndarray], permutations: int, n_blocks: int) -> np.ndarray:
    """Statistics of permutations, drawn in pieces that fit a processor's cache."""
    size = max(1, _PIECE // n_blocks)
    return np.concatenate([draw(min(size, permutations - done)) for done in range(0, permutations, size)])


def is_exact(n_blocks: int, permutations: int) -> bool:
    """Whether all sign flips of so many blocks are enumerated instead of sampled."""
    return n_blocks < 60 and 2**n_blocks <= permutations


def smallest_p(n_blocks: int, n_second: int | None, permutations: int, two_sided: bool = True) -> float:
    """The smallest P that a test of so many blocks can give, before any correction.

    Parameters
    ----------
    n_blocks : int
        Of the paired windows; of the first set where there is a second.
    n_second : int or None
        Blocks of the second set (`two_sample_block_p`), None for `block_permutation_p`.
    two_sided : bool
        One-sided tests exist of paired windows only.
    """
    if n_second is None:
        return 2.0 ** (two_sided - n_blocks) if is_exact(n_blocks, permutations) else 1 / (permutations + 1)
    deals = math.comb(n_blocks + n_second, n_blocks)
    return (1 + (n_blocks == n_second)) / deals if deals <= permutations else 1 / (permutations + 1)


def block_pairing_p(pairs: np.ndarray, block: np.ndarray, permutations: int, rng: np.random.Generator) -> float:
    """One-sided P that predictions belong to their own truths, by permuting whole blocks of truths.

    Parameters
    ----------
    pairs : ndarray (n, n)
        Score of prediction i against the truth of window j, higher is better; the diagonal is the
        real pairing.
    block : ndarray, int (n,)
        Blocks of the same number of windows change places; a block whose length no other has keeps
        its place. P is 1 where no two can change places.
    """
    _, index = np.unique(np.asarray(block), return_inverse=True)
    members = [np.flatnonzero(index == b) for b in range(index.max() + 1)]
    observed, null = 0.0, np.zeros(permutations)
    for size in sorted({len(rows) for rows in members}):
        rows = np.stack([rows for rows in members if len(rows) == size])
        gains = np.array([pairs[own, rows].sum(axis=1, dtype=np.float64) for own in rows])
        start = np.broadcast_to(np.arange(len(rows)), (permutations, len(rows)))
        observed += float(np.trace(gains))
        null += gains[start, rng.permuted(start, axis=1)].sum(axis=1)
    return _tail(null, observed, "greater", extra=1)


def _resample(sums: np.ndarray, counts: np.ndarray, bootstraps: int, rng: np.random.Generator) -> np.ndarray:
    """Ratios of sums to counts over blocks drawn with replacement, (bootstraps,)."""
    drawn = rng.integers(0, len(sums), size=(bootstraps, len(sums)))
    return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)


def _find_ends(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, ENDS)
    return float(low), float(high)


def block_bootstrap_interval(
    values: np.ndarray, block: np.ndarray, bootstraps: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the mean over windows, whole blocks drawn with replacement.

    NaN twice with a single block. As in Künsch 1989, Annals of Statistics 17, but with fixed blocks.
    """
    sums, counts = _by_block(values, block)
    return _find_ends(_resample(sums, counts, bootstraps, rng)) if len(sums) > 1 else (math.nan, math.nan)


def two_sample_bootstrap_interval(
    first: Sample, second: Sample, bootstraps: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Percentile interval of the difference of two means, first minus second.

    NaN twice where either set is a single block.
    """
    both = _by_block(*first), _by_block(*second)
    if min(len(sums) for sums, _ in both) < 2:
        return math.nan, math.nan
    means = [_resample(sums, counts, bootstraps, rng) for sums, counts in both]
    return _find_ends(means[0] - means[1])


def two_sample_block_p(first: Sample, second: Sample, permutations: int, rng: np.random.Generator) -> float:
    """Two-sided block permutation test that two unpaired sets of windows have one mean.

    Whole blocks are dealt anew into two groups of the original numbers of blocks; the statistic is
    the difference of the means over windows.
    """
    (sums_a, counts_a) = _by_block(*first)
    (sums_b, counts_b) = _by_block(*second)
    sums = np.concatenate([sums_a, sums_b])
    counts = np.concatenate([counts_a, counts_b])
    n, n_first = len(sums), len(sums_a)
    observed = sums_a.sum() / counts_a.sum() - sums_b.sum() / counts_b.sum()

    def differ(is_first: np.ndarray) -> np.ndarray:
        dealt, windows = (is_first @ np.stack([sums, counts], axis=1)).T
        return dealt / windows - (sums.sum() - dealt) / (counts.sum() - windows)

    def deal(count: int) -> np.ndarray:
        keys = rng.random((count, n))
        return differ(keys <= np.partition(keys, n_first - 1, axis=1)[:, n_first - 1, None])

    if math.comb(n, n_first) > permutations:
        return _tail(_in_pieces(deal, permutations, n), float(observed), "two-sided", extra=1)
    is_first = np.zeros((math.comb(n, n_first), n), dtype=bool)
    for row, chosen in enumerate(combinations(range(n), n_first)):
        is_first[row, list(chosen)] = True
    return _tail(differ(is_first), float(observed), "two-sided", extra=0)


def fraction_of_way(
    values: np.ndarray,
    control: np.ndarray,
    ceiling: np.ndarray,
    block: np.ndarray,
    bootstraps: int,
    rng: np.random.Generator,
) -> tuple[float, float, float]:
    """(value − control) / (ceiling − control), 0 at the control's value and 1 at the ceiling's.

    Over the windows where all three are known, with the ends of a percentile bootstrap over whole
    blocks. NaN where the ceiling is no better than the control, the ends also if it is not in some.
    """
    known = np.isfinite(values) & np.isfinite(control) & np.isfinite(ceiling)
    if not known.any():
        return math.nan, math.nan, math.nan
    gained, _ = _by_block((values - control)[known], block[known])
    whole, _ = _by_block((ceiling - control)[known], block[known])
    if whole.sum() <= 0:
        return math.nan, math.nan, math.nan
    fraction = float(gained.sum() / whole.sum())
    drawn = rng.integers(0, len(whole), size=(bootstraps, len(whole)))
    below = whole[drawn].sum(axis=1)
    if len(whole) < 2 or (below <= 0).any():
        return fraction, math.nan, math.nan
    return fraction, *_find_ends(gained[drawn].sum(axis=1) / below)


def holm(p_values: np.ndarray) -> np.ndarray:
    """P-values adjusted to control the family-wise error rate (Holm 1979), float64 (n,)."""
    n = len(p_values)
    order = np.argsort(p_values)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * (n - np.arange(n))), 1.0)
    return adjusted


def p_class(p_value: float) -> str:
    """The paper's class of a P-value (Table 1), such as ``p<0.01``."""
    return next((name for bound, name in P_CLASSES if p_value < bound), "p>0.05")
