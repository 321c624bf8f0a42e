"""Where truth and reconstruction meet in side-by-side films, and their padding.

Shapes: a film is uint8 (F, H, W, 3); truth on the left, reconstruction on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mindvideo.errors import DataError

MAX_PADDING = 16
PADDING_TOLERANCE = 6
"""Grey levels; a GIF's palette moves colours that much."""
CLEAR_EDGE = 2.0
MAX_FILMS = 200


@dataclass(frozen=True)
class Layout:
    """Which pixels are truth and which reconstruction.

    Attributes
    ----------
    rows, truth, reconstruction : (int, int)
        First row or column and the one after the last; columns of the two halves.
    note : str
        What was cut, in words.
    """

    rows: tuple[int, int]
    truth: tuple[int, int]
    reconstruction: tuple[int, int]
    note: str

    def split(self, film: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and reconstruction of a film (F, H, W, 3)."""
        inside = film[:, self.rows[0] : self.rows[1]]
        return inside[:, :, slice(*self.truth)], inside[:, :, slice(*self.reconstruction)]


def find_layout(films: Sequence[np.ndarray]) -> Layout:
    """Find padding and seam of a set of side-by-side films; all films of a set have one layout.

    Padding is what has one colour in every frame of every film, at most 16 pixels wide and as wide
    on opposite sides. Between the halves, padding is the seam. Without padding there the seam is
    the column where neighbouring pixels differ most on average, if that is the middle or stands out
    (at least twice the median column, and half as much again as the middle); otherwise it is the
    middle, and the note says that no seam was seen.

    Parameters
    ----------
    films : sequence of ndarray, uint8 (F, H, W, 3)
        One height and width, or DataError, as for an odd width without a seam; of long lists
        `MAX_FILMS`, evenly spread, are looked at.
    """
    sizes = sorted({film.shape[1:3] for film in films})
    if len(sizes) != 1:
        raise DataError(f"expected side-by-side films of one height and width, found {', '.join(map(str, sizes))}")
    height, width = sizes[0]
    if width < 4 * MAX_PADDING:
        raise DataError(f"expected side-by-side films at least {4 * MAX_PADDING} pixels wide, found {width}")
    chosen = np.unique(np.linspace(0, len(films) - 1, min(len(films), MAX_FILMS)).astype(int))
    frames = np.concatenate([films[i][:: max(1, len(films[i]) // 3)] for i in chosen])
    is_plain_row = _is_plain(frames, axis=1)
    is_plain_column = _is_plain(frames, axis=2)
    vertical = min(_run_length(is_plain_row), _run_length(is_plain_row[::-1]), MAX_PADDING)
    sides = min(_run_length(is_plain_column), _run_length(is_plain_column[::-1]), MAX_PADDING)
    rows = (vertical, height - vertical)
    cuts = [f"{sides} columns on both sides"] if sides else []
    cuts += [f"{vertical} rows above and below"] if vertical else []
    gap = _find_gap(is_plain_column, sides)
    if gap is not None:
        cuts.append(f"{gap[1] - gap[0]} columns between the halves")
        left = (sides, gap[0])
        right = (gap[1], width - sides)
        seen = ""
    else:
        seam, seen = _find_seam(frames[:, rows[0] : rows[1], sides : width - sides])
        left = (sides, sides + seam)
        right = (sides + seam, width - sides)
    halves = f"truth {left[1] - left[0]} and reconstruction {right[1] - right[0]} of {width} columns"
    return Layout(rows, left, right, f"{halves}; cut: {', '.join(cuts) or 'nothing'}{seen}")


def _is_plain(frames: np.ndarray, axis: int) -> np.ndarray:
    """Which rows (axis 1) or columns (axis 2) have one colour in all frames."""
    others = tuple(a for a in range(3) if a != axis)
    spread = frames.max(axis=others).astype(np.int16) - frames.min(axis=others)
    return (spread <= PADDING_TOLERANCE).all(axis=-1)


def _run_length(is_plain: np.ndarray) -> int:
    """Number of leading True."""
    return int(np.argmin(is_plain)) if not is_plain.all() else len(is_plain)


def _find_gap(is_plain: np.ndarray, sides: int) -> tuple[int, int] | None:
    """The plain columns nearest the middle, or None where there are none near it."""
    width = len(is_plain)
    inside = np.flatnonzero(is_plain[sides : width - sides]) + sides
    near = inside[np.abs(inside - (width - 1) / 2) <= MAX_PADDING]
    if not len(near):
        return None
    start = stop = int(near[np.argmin(np.abs(near - (width - 1) / 2))])
    while start > sides and is_plain[start - 1]:
        start -= 1
    while stop < width - sides - 1 and is_plain[stop + 1]:
        stop += 1
    return (start, stop + 1) if stop + 1 - start <= MAX_PADDING else None


def _find_seam(frames: np.ndarray) -> tuple[int, str]:
    """Number of columns left of the seam, and words for the note."""
    width = frames.shape[2]
    steps = (np.abs(np.diff(frame.astype(np.int16), axis=1)) for frame in frames)
    edge = np.sum([step.mean(axis=(0, 2)) for step in steps], axis=0)
    usual, middle = float(np.median(edge)), width // 2 - 1
    centre = slice(width // 4, width - width // 4)
    best = int(edge[centre].argmax()) + width // 4
    stands_out = edge[best] >= CLEAR_EDGE * max(usual, 1e-9)
    if width % 2 == 0 and (best == middle or edge[best] < 1.5 * edge[middle] or not stands_out):
        is_seen = stands_out or edge[middle] >= CLEAR_EDGE * usual
        return middle + 1, "" if is_seen else "; no seam is seen, the middle is taken"
    if not stands_out:
        raise DataError(
            f"expected truth and reconstruction side by side, found {width} columns without padding or a visible seam; "
            "give the two as folders of their own: mindvideo evaluate CLIPS --reference TRUTH"
        )
    return best + 1, f"; the seam is not in the middle ({best + 1} of {width} columns)"
