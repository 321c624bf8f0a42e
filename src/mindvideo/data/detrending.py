"""Removing a polynomial from time series, and products of what is left (docs/method.md, Recordings).

Shapes: v vertices, n scans, R recordings, d polynomials. Here a series is a row, as in the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mindvideo.errors import DataError

_CONSTANT = 1e-7
_CANCELLED = 1e-6
"""Residuals below this fraction of the signal are computed again, more precisely."""


def polynomial_basis(n_scans: int, order: int = 4) -> np.ndarray:
    """Orthonormal polynomials, float64 (n, order + 1); DataError for fewer than ``order + 3`` scans."""
    if n_scans < order + 3:
        raise DataError(f"expected at least {order + 3} scans for a polynomial of degree {order}, found {n_scans}")
    return np.linalg.qr(np.polynomial.legendre.legvander(np.linspace(-1, 1, n_scans), order))[0]


def remove_polynomial(series: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Detrended series, float64 (v, n), of float (v, n)."""
    part = np.array(series, dtype=np.float64, order="C")
    with np.errstate(invalid="ignore"):
        part -= part[:, :1].copy()
        part -= (part @ basis) @ basis.T
    return part


def is_rounding(variance: np.ndarray, series: np.ndarray) -> np.ndarray:
    """Whether only rounding is left of series (v, n), or NaN."""
    return ~(np.sqrt(variance) > _CONSTANT * np.abs(series).max(axis=1))


class DetrendedProducts(NamedTuple):
    """Inner products of detrended recordings of one film, vertex by vertex.

    Attributes
    ----------
    gram : ndarray, float64 (R, R, v)
        Products of recordings i and j after the polynomial is removed.
    is_silent : ndarray, bool (R, v)
        Vertices without signal: constant, only polynomial, or no number.
    is_damaged : ndarray, bool (R, v)
        Vertices of which some values are not finite.
    """

    gram: np.ndarray
    is_silent: np.ndarray
    is_damaged: np.ndarray


def detrended_products(recordings: Sequence[np.ndarray], basis: np.ndarray) -> DetrendedProducts:
    """Products of detrended recordings, without forming the residuals.

    Parameters
    ----------
    recordings : sequence of R ndarrays, float (v, n)
        The series of at most a few hundred vertices, which fit into the cache.
    basis : ndarray, float64 (n, d)
        Orthonormal, its first columns span the constants (`polynomial_basis`).

    Notes
    -----
    With basis Q and series x, y relative to their first scan, the residuals' product is x·y − (Qᵀx)·(Qᵀy).
    Where the difference cancels six digits, residuals are formed after all.
    """
    n_runs, n_vertices = len(recordings), len(recordings[0])
    gram = np.empty((n_runs, n_runs, n_vertices))
    is_silent, is_damaged, is_small = np.zeros((3, n_runs, n_vertices), dtype=bool)
    centred: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    with np.errstate(invalid="ignore", over="ignore"):
        for i, recording in enumerate(recordings):
            part = recording.astype(np.float64)
            start = part[:, 0].copy()
            part -= start[:, None]
            weight = part @ basis
            energy = np.einsum("vn,vn->v", part, part)
            left = energy - np.einsum("vd,vd->v", weight, weight)
            is_damaged[i], is_silent[i], gram[i, i] = ~np.isfinite(energy), energy == 0, left
            is_small[i] = ~((left > _CANCELLED * energy) & (left > (_CANCELLED * start) ** 2 * part.shape[1]))
            for j, (other, other_weight) in enumerate(zip(centred, weights, strict=True)):
                product = np.einsum("vn,vn->v", part, other) - np.einsum("vd,vd->v", weight, other_weight)
                gram[i, j] = gram[j, i] = product
            centred.append(part)
            weights.append(weight)
            odd = np.flatnonzero(is_damaged[i])
            is_silent[i, odd] = np.isnan(recording[odd]).all(axis=1)
        is_damaged &= ~is_silent
        again = np.flatnonzero((is_small & ~is_damaged & ~is_silent).any(axis=0))
        if len(again):
            exact = np.stack([remove_polynomial(recording[again], basis) for recording in recordings])
            gram[:, :, again] = np.einsum("ivn,jvn->ijv", exact, exact)
            for i, recording in enumerate(recordings):
                variance = gram[i, i, again] / (recording.shape[1] - 1)
                is_silent[i, again] |= is_rounding(variance, recording[again]) & ~is_damaged[i, again]
    return DetrendedProducts(gram, is_silent, is_damaged)
