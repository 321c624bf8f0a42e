"""Standardising, reproducibility across runs, and selection of voxels (docs/method.md, Recordings).

Runs are (n scans, V vertices) float32; the work is in float64, in blocks that fit into
the cache. Where a series is a row, as in the files: v vertices, n scans, R recordings,
d polynomials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from mindvideo.errors import DataError, SettingError

Selection = Literal["paper", "bonferroni", "top_k", "all"]

MOST_SILENT = 0.1
"""Most vertices that may lack a signal in some run; fMRIPrep's gaps are .01."""
_BLOCK = 256
_CONSTANT = 1e-7
_CANCELLED = 1e-6
"""Residuals below this fraction of the signal are computed again, more precisely."""


def polynomial_basis(n_scans: int, order: int = 4) -> np.ndarray:
    """Orthonormal polynomials, float64 (n, order + 1)."""
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


def _blocks(n_columns: int) -> Iterator[slice]:
    for start in range(0, n_columns, _BLOCK):
        yield slice(start, min(start + _BLOCK, n_columns))


def find_silent(run: np.ndarray, path: Path | str, vertex: np.ndarray | None = None) -> np.ndarray:
    """Vertices of a run without signal: constant, or without any number.

    Parameters
    ----------
    run : ndarray, float (n, V)
    path : Path or str
        The file, for the message.
    vertex : ndarray, int (V,), optional
        Cortical position of each column, for the message.

    Returns
    -------
    ndarray, bool (V,)

    Raises
    ------
    DataError
        If only some values of a vertex are not finite, which is damage.
    """
    is_silent, is_damaged = np.empty((2, run.shape[1]), dtype=bool)
    for block in _blocks(run.shape[1]):
        part = run[:, block]
        is_missing = np.isnan(part).all(axis=0)
        is_damaged[block] = ~np.isfinite(part).all(axis=0) & ~is_missing
        is_silent[block] = is_missing | (part == part[:1]).all(axis=0)
    refuse_damage(is_damaged, path, vertex)
    return is_silent


def refuse_damage(is_damaged: np.ndarray, path: Path | str, vertex: np.ndarray | None = None) -> None:
    """Raise DataError if any vertex is damaged, bool (V,)."""
    if is_damaged.any():
        first = int(np.argmax(is_damaged))
        name = first if vertex is None else int(vertex[first])
        raise DataError(
            f"{path}: expected finite values, found {int(is_damaged.sum())} of {len(is_damaged)} vertices with NaN or "
            f"infinite values among others (e.g. vertex {name}); repair or download the file again, or leave the run out"
        )


def refuse_silence(silent: Mapping[str, np.ndarray], what: str, way_out: str) -> np.ndarray:
    """Which vertices lack a signal in some run, bool (V,); DataError if they are too many."""
    is_silent = np.any(list(silent.values()), axis=0)
    if is_silent.mean() > MOST_SILENT:
        worst = max(silent, key=lambda name: int(silent[name].sum()))
        raise DataError(
            f"expected a signal at nearly every {what}, found {int(is_silent.sum())} of {len(is_silent)} that never change in "
            f"some run, {int(silent[worst].sum())} of them in {worst}; {way_out}"
        )
    return is_silent


def check_run(run: np.ndarray, path: Path | str, vertex: np.ndarray) -> None:
    """Raise DataError for a run (n, V) without a signal at some vertices."""
    is_silent = find_silent(run, path, vertex)
    if is_silent.any():
        raise DataError(
            f"{path}: expected a signal at each of the {len(vertex)} vertices that are read, found {int(is_silent.sum())} "
            f"that never change (e.g. vertex {int(vertex[np.argmax(is_silent)])}); supply a recording that covers them"
        )


def detrend_and_standardise(run: np.ndarray, order: int = 4) -> np.ndarray:
    """Remove a polynomial of degree ``order``, and divide by the standard deviation (ddof 1).

    Parameters
    ----------
    run : ndarray, float (n, V)
        One recording, already trimmed.

    Returns
    -------
    ndarray, float32 (n, V)
        NaN throughout for a vertex of which only rounding is left.

    Raises
    ------
    DataError
        For fewer than ``order + 3`` scans.
    """
    n_scans, n_vertices = run.shape
    basis = polynomial_basis(n_scans, order)
    standardised = np.empty((n_scans, n_vertices), dtype=np.float32)
    for block in _blocks(n_vertices):
        series = run[:, block].T
        part = remove_polynomial(series, basis)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = np.einsum("vn,vn->v", part, part) / (n_scans - 1)
            variance[is_rounding(variance, series)] = np.nan
            part *= 1 / np.sqrt(variance)[:, None]
        standardised[:, block] = part.T
    return standardised


def repeat_correlation(run_a: np.ndarray, run_b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each vertex between two recordings of the same film.

    Parameters
    ----------
    run_a, run_b : ndarray, float (n, V)

    Returns
    -------
    ndarray, float64 (V,)
        NaN where a run is constant.
    """
    correlation = np.empty(run_a.shape[1])
    for block in _blocks(run_a.shape[1]):
        a, b = run_a[:, block].astype(np.float64), run_b[:, block].astype(np.float64)
        a -= a.mean(axis=0)
        b -= b.mean(axis=0)
        norm = np.sqrt(np.einsum("nv,nv->v", a, a) * np.einsum("nv,nv->v", b, b))
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation[block] = np.einsum("nv,nv->v", a, b) / norm
    return correlation


def fisher_z(correlation: np.ndarray) -> np.ndarray:
    """Fisher's z of correlations, float64; DataError for ±1, as of a file read twice."""
    correlation = np.asarray(correlation, dtype=np.float64)
    is_same = np.abs(correlation) >= 1
    if is_same.any():
        raise DataError(
            f"expected two different recordings, found a between-run correlation of ±1 at "
            f"{int(is_same.sum())} vertices; check that the runs of a segment are not copies of one file"
        )
    return np.arctanh(correlation)


def reproducibility_t_test(z: np.ndarray) -> np.ndarray:
    """Whether each vertex's between-run correlation is above 0 across segments.

    Parameters
    ----------
    z : ndarray, float (S, V)
        Fisher's z of each segment and vertex (`fisher_z`).

    Returns
    -------
    ndarray, float64 (V,)
        P of a one-sided one-sample t-test (df S − 1) for a mean above 0. NaN where any segment is NaN.

    Raises
    ------
    DataError
        With fewer than two segments.
    """
    n_segments = len(z)
    if n_segments < 2:
        raise DataError(
            f"expected at least 2 training segments with repeats for the reproducibility test, found {n_segments}; "
            "add segments or choose voxels by areas (selection=all)"
        )
    z = np.asarray(z, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = z.mean(axis=0) / (z.std(axis=0, ddof=1) / np.sqrt(n_segments))
    return np.asarray(stats.t.sf(t, n_segments - 1))


def select_voxels(
    p: np.ndarray,
    selection: Selection = "paper",
    alpha: float = 0.01,
    top_fraction: float = 0.5,
    k: int | None = None,
) -> np.ndarray:
    """Columns of the voxels to keep.

    Parameters
    ----------
    p : ndarray, float64 (V,)
        P of each vertex (`reproducibility_t_test`), NaN where not tested.
    selection : str
        ``bonferroni``: p · (vertices tested) < alpha. ``paper``: of these the
        ``top_fraction`` most significant (rounded down, at least one). ``top_k``: the k
        smallest p. ``all``: every column, tested or not.

    Returns
    -------
    ndarray, intp (n,)
        Ascending columns. Of equal p, the lower column comes first.

    Raises
    ------
    DataError
        When none survives.
    SettingError
        For ``top_k`` without a suitable k.
    """
    p = np.asarray(p)
    tested = np.flatnonzero(~np.isnan(p))
    by_p = tested[np.argsort(p[tested], kind="stable")]
    if selection == "all":
        chosen = np.arange(len(p))
    elif selection == "top_k":
        if k is None or not 0 < k <= len(tested):
            raise SettingError(
                f"expected k between 1 and the {len(tested)} vertices tested for selection top_k, found {k}"
            )
        chosen = by_p[:k]
    else:
        chosen = by_p[p[by_p] * len(tested) < alpha]
        if selection == "paper" and len(chosen):
            chosen = chosen[: max(1, int(np.floor(top_fraction * len(chosen) + 1e-9)))]
    if not len(chosen):
        smallest = f"smallest P {p[by_p[0]]:.3g}" if len(by_p) else "none tested"
        raise DataError(
            f"expected at least 1 voxel from selection {selection}, found none of {len(tested)} vertices tested ({smallest}, "
            f"alpha {alpha:g}); raise alpha, add repeats, or choose by areas"
        )
    return np.sort(chosen)
