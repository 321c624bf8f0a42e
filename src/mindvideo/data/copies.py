"""Recordings that are there twice: saved again, converted, compressed, cut short."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np

PROBES = 16
"""Vertices by which recordings are compared with one another."""
_VOLUMES = 64
_SAME = 1 - 1e-5
"""Correlation from which two recordings are one; rounding to 16 bits costs 1e-8."""
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
