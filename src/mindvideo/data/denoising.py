"""From a run's volumes to a film's scans: cleaned, standardised, placed in time.

Shapes: T volumes of a run, V vertices, K confounds, n scans.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mindvideo.data.bids import is_missing, read_number, read_table
from mindvideo.data.store import listed
from mindvideo.data.video import TIME_TOLERANCE_S
from mindvideo.errors import DataError
from mindvideo.files import is_there

Resample = Literal["linear", "nearest", "mean"]
_BLOCK = 8192
_CONSTANT = 1e-7


UNSTEADY = "non_steady_state_outlier*"
"""fMRIPrep's columns for volumes before the steady state: 1 at the volume, 0 elsewhere."""
_SPIKES = ("non_steady_state", "motion_outlier")
"""Columns of single volumes, of which a run may have none."""


@dataclass(frozen=True)
class Confounds:
    """What a table of confounds says of a run.

    Attributes
    ----------
    names : tuple of str, (K,)
        The columns that are regressed out.
    values : ndarray, float64 (T, K)
        NaN in first volumes that have no value, as of derivatives.
    empty : tuple of str
        Wanted columns without any value.
    is_steady : ndarray, bool (T,)
        False for the volumes that `UNSTEADY` marks.
    """

    names: tuple[str, ...]
    values: np.ndarray
    empty: tuple[str, ...]
    is_steady: np.ndarray

    @property
    def fits_unsteady(self) -> bool:
        """Whether unsteady volumes have regressors of their own."""
        return bool(fnmatch.filter(self.names, UNSTEADY))


def read_confounds(path: Path, wanted: Sequence[str], n_volumes: int) -> Confounds:
    """The columns of fMRIPrep's confounds table that the patterns name.

    Parameters
    ----------
    path : Path
        ``…_desc-confounds_timeseries.tsv``; needed only if columns are wanted.
    wanted : sequence of str
        Column names, in which ``*`` and ``?`` are wildcards.
    n_volumes : int
        Volumes of the recording.
    """
    if not is_there(path):
        if not wanted:
            return Confounds((), np.empty((n_volumes, 0)), (), np.ones(n_volumes, dtype=bool))
        raise DataError(
            f"expected {path.name} in {path.parent}, found no such file; add it, or exclude the run: "
            f"exclude {path.name.partition('_desc-')[0]}"
        )
    table = read_table(path)
    n_rows = len(next(iter(table.values())))
    if n_rows != n_volumes:
        raise DataError(
            f"expected a line for each of the {n_volumes} volumes in {path}, found {n_rows}; "
            "are the two of one run of fMRIPrep?"
        )
    found: dict[str, np.ndarray] = {}
    for pattern in wanted:
        names = fnmatch.filter(table, pattern)
        if not names and not pattern.startswith(_SPIKES):
            raise DataError(
                f"expected a column {pattern} in {path}, found {listed(list(table), 12)}; choose other confounds "
                "(data.fmriprep.confounds, --confounds)"
            )
        found |= {name: _numbers(table[name], name, path) for name in names}
    empty = tuple(name for name, values in found.items() if np.isnan(values).all())
    kept = {name: values for name, values in found.items() if name not in empty}
    marks = [_numbers(table[name], name, path) > 0 for name in fnmatch.filter(table, UNSTEADY)]
    is_steady = ~np.any(marks, axis=0) if marks else np.ones(n_volumes, dtype=bool)
    values = np.column_stack(list(kept.values())) if kept else np.empty((n_volumes, 0))
    return Confounds(tuple(kept), values, empty, is_steady)


def _numbers(texts: list[str], name: str, path: Path) -> np.ndarray:
    """The values of a column, float64 (T,); NaN for those missing before the first one."""
    is_empty = np.array([is_missing(text) for text in texts])
    values = np.array([read_number(text) for text in texts])
    first = int(np.argmin(is_empty)) if not is_empty.all() else len(texts)
    bad = np.flatnonzero(~np.isfinite(values[first:])) + first
    if len(bad):
        line = int(bad[0])
        raise DataError(
            f"expected numbers in column {name} of {path}, found '{texts[line]}' on line {line + 2}; choose confounds "
            "without it (data.fmriprep.confounds, --confounds)"
        )
    values[:first] = np.nan
    return values


def clean_run(
    run: np.ndarray,
    confounds: np.ndarray,
    tr_s: float,
    high_pass_hz: float | None,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Regress confounds, a linear trend and slow cosines out of a run, and standardise every vertex.

    It is one least-squares fit, so that no step brings back what another removed
    (Lindquist et al. 2019, Human Brain Mapping 40, 2358–2376). Mean and deviation (ddof
    1) are of the kept volumes.

    Parameters
    ----------
    run : ndarray, float (T, V)
    confounds : ndarray, float (T, K)
        NaN becomes the column's mean over the kept volumes.
    tr_s : float
        Seconds between volumes.
    high_pass_hz : float or None
        Cosines up to this frequency are regressed out, see `slow_cosines`.
    kept : ndarray, bool (T,), optional
        Volumes that are used and returned; default: all.

    Returns
    -------
    ndarray, float32 (kept volumes, V)
        NaN throughout for a vertex of which only rounding is left.
    """
    n_volumes = len(run)
    kept = np.ones(n_volumes, dtype=bool) if kept is None else kept
    cosines = slow_cosines(n_volumes, tr_s, high_pass_hz)
    n_regressors = confounds.shape[1] + 1 + cosines.shape[1]
    n_kept = int(kept.sum())
    if n_kept < n_regressors + 3:
        raise DataError(
            f"expected at least {n_regressors + 3} volumes to regress {confounds.shape[1]} confounds, a trend and "
            f"{cosines.shape[1]} cosines out, found {n_kept}; choose fewer confounds or a lower high-pass frequency"
        )
    confounds = np.where(np.isnan(confounds), np.nanmean(confounds[kept], axis=0), confounds)
    design = np.column_stack([np.linspace(-1, 1, n_volumes), confounds, cosines])
    design = design[:, (design[kept].std(axis=0) > 0)]
    from nilearn import signal

    cleaned = np.empty((n_kept, run.shape[1]), dtype=np.float32)
    for start in range(0, run.shape[1], _BLOCK):
        part = run[:, start : start + _BLOCK].astype(np.float64)
        largest = np.abs(part).max(axis=0)
        part = signal.clean(
            part, confounds=design, detrend=False, standardize=None, filter=False,
            sample_mask=None if kept.all() else np.flatnonzero(kept),
        )  # fmt: skip
        part -= part.mean(axis=0)
        deviation = part.std(axis=0, ddof=1)
        deviation[~(deviation > _CONSTANT * largest)] = np.nan
        cleaned[:, start : start + _BLOCK] = part / deviation
    return cleaned


def slow_cosines(n_volumes: int, tr_s: float, high_pass_hz: float | None) -> np.ndarray:
    """Nilearn's discrete cosines below a frequency, float64 (T, K), if any.

    `nilearn.signal.clean` itself would drop them all if a confound correlates with one above .9.
    """
    if high_pass_hz is None:
        return np.empty((n_volumes, 0))
    from nilearn.glm.first_level import make_first_level_design_matrix

    design = make_first_level_design_matrix(np.arange(n_volumes) * tr_s, drift_model="cosine", high_pass=high_pass_hz)
    return np.asarray(design.filter(regex="^drift_"), dtype=np.float64)


def scan_times(onset_s: float, lag_s: float, n_scans: int, spacing_s: float) -> np.ndarray:
    """Times of a film's scans in seconds of the run, float64 (n,)."""
    return onset_s + lag_s + np.arange(n_scans) * spacing_s


def covered_scans(wanted_s: np.ndarray, volume_s: np.ndarray, spacing_s: float, how: Resample) -> np.ndarray:
    """Which of the wanted times a run covers, bool (n,).

    ``linear`` needs a volume on both sides, ``nearest`` within half a TR, ``mean`` within ``spacing_s``.
    """
    if how == "mean":
        return np.asarray(_inside(wanted_s, volume_s, spacing_s).any(axis=1))
    beyond = (volume_s[-1] - volume_s[0]) / (2 * max(1, len(volume_s) - 1)) if how == "nearest" else 0.0
    first_s, last_s = volume_s[0] - beyond, volume_s[-1] + beyond
    return (wanted_s >= first_s - TIME_TOLERANCE_S) & (wanted_s <= last_s + TIME_TOLERANCE_S)


def resampling_weights(wanted_s: np.ndarray, volume_s: np.ndarray, spacing_s: float, how: Resample) -> np.ndarray:
    """The weight of each volume in each scan.

    Parameters
    ----------
    wanted_s : ndarray, float (n,)
        Covered times, see `covered_scans`.
    volume_s : ndarray, float (T,)
        Times of the volumes, equally spaced.
    spacing_s : float
        Seconds between the wanted times.
    how : {"linear", "nearest", "mean"}
        Interpolate between two volumes, take the nearest (the earlier if tied), or the
        mean until the next time.

    Returns
    -------
    ndarray, float64 (n, T)
        Rows add up to 1. A volume at a wanted time has all the weight, whichever ``how``.
    """
    if how == "mean":
        inside = _inside(wanted_s, volume_s, spacing_s).astype(float)
        return inside / inside.sum(axis=1, keepdims=True)
    n_volumes = len(volume_s)
    tr_s = (volume_s[-1] - volume_s[0]) / max(1, n_volumes - 1)
    place = np.clip((wanted_s - volume_s[0]) / tr_s, 0, n_volumes - 1)
    is_there = np.abs(place - np.round(place)) * tr_s <= TIME_TOLERANCE_S
    place = np.where(is_there, np.round(place), place)
    if how == "nearest":
        place = np.ceil(place - 0.5 - 1e-9)
    below = np.minimum(np.floor(place).astype(int), n_volumes - 1)
    above = np.minimum(below + 1, n_volumes - 1)
    weights = np.zeros((len(wanted_s), n_volumes))
    rows = np.arange(len(wanted_s))
    weights[rows, below] = 1 - (place - below)
    weights[rows, above] += place - below
    return weights


def _inside(wanted_s: np.ndarray, volume_s: np.ndarray, spacing_s: float) -> np.ndarray:
    """Whether a volume lies from a wanted time to the next, bool (n, T)."""
    after = volume_s[None, :] - wanted_s[:, None]
    return (after >= -TIME_TOLERANCE_S) & (after < spacing_s - TIME_TOLERANCE_S)
