"""Recordings that are there twice: saved again, converted, compressed, cut short, joined.

Shapes: P vertices, T volumes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from scipy.signal import correlate

from mindvideo.data.store import listed

PROBES = 16
"""Vertices by which recordings are compared with one another."""
_VOLUMES = 64
_SAME = 1 - 1e-5
"""Correlation from which two recordings are one; rounding to 16 bits costs 1e-8."""
_HELD = 0.95
"""Mean correlation from which a recording is part of another, filtered otherwise."""
_ROWS = 512
Name = TypeVar("Name")


def outline(series: np.ndarray) -> np.ndarray:
    """The first volumes of a few vertices (P, T), standardised, as one row of length 1."""
    part = np.nan_to_num(series[:, :_VOLUMES].astype(np.float64), posinf=0, neginf=0)
    part -= part.mean(axis=1, keepdims=True)
    deviation = part.std(axis=1, keepdims=True)
    row = np.divide(part, deviation, out=np.zeros_like(part), where=deviation > 0).ravel()
    return (row / max(float(np.linalg.norm(row)), 1e-12)).astype(np.float32)


def find_copies(outlines: Mapping[Name, np.ndarray]) -> dict[Name, Name]:
    """Recordings that equal an earlier one up to rounding and scale, each with that one."""
    found: dict[Name, Name] = {}
    for length in {len(row) for row in outlines.values()}:
        names = [name for name, row in outlines.items() if len(row) == length]
        rows = np.stack([outlines[name] for name in names])
        for start in range(0, len(rows), _ROWS):
            likeness = rows[start : start + _ROWS] @ rows.T
            for row, first in enumerate(np.argmax(likeness > _SAME, axis=1), start):
                if first < row and likeness[row - start, first] > _SAME:
                    found[names[row]] = names[first]
    return found


def find_contained(series: dict[str, np.ndarray]) -> dict[str, str]:
    """Recordings of one person whose volumes are in others too, with the reason.

    Parameters
    ----------
    series : dict of str to ndarray, float (P, T)
        The same few vertices of each recording; lengths differ.

    Returns
    -------
    dict of str to str
        A concatenation is left out if its parts are all there; else its parts are.
    """
    left_out: dict[str, str] = {}
    by_length = sorted(series, key=lambda name: series[name].shape[1], reverse=True)
    for number, whole in enumerate(by_length):
        others = [name for name in by_length[number + 1 :] if name not in left_out]
        if whole in left_out:
            continue
        parts = [name for name in others if _holds(series[whole], series[name])]
        n_covered = sum(series[name].shape[1] for name in parts)
        if len(parts) > 1 and n_covered >= series[whole].shape[1]:
            left_out[whole] = f"the concatenation of {listed(parts)}"
        else:
            left_out |= dict.fromkeys(parts, f"its volumes are those of {whole}")
    return left_out


def _holds(whole: np.ndarray, part: np.ndarray) -> bool:
    """Whether some stretch of a recording (P, T) correlates with all of another one, (P, n)."""
    n_volumes = part.shape[1]
    best = np.zeros(whole.shape[1] - n_volumes + 1)
    n_used = 0
    for a, b in zip(whole.astype(np.float64), part.astype(np.float64), strict=True):
        a, b = a - a.mean(), b - b.mean()
        if not (a.std() > 0 and b.std() > 0 and np.isfinite(a).all() and np.isfinite(b).all()):
            continue
        sums = np.cumsum(np.stack([a, a * a]), axis=1)
        sums = np.pad(sums, ((0, 0), (1, 0)))
        total, squares = sums[:, n_volumes:] - sums[:, :-n_volumes]
        spread = np.sqrt(np.maximum(squares - total**2 / n_volumes, 1e-12) * (b @ b))
        best += correlate(a, b, mode="valid") / spread
        n_used += 1
        if best.max() < _HELD * n_used - 0.5:
            return False
    return n_used > 0 and float(best.max()) > _HELD * n_used
