"""From the volumes of a run to the scans of a film: confounds out, slow drifts out, standardised, placed in time.

Shapes: T volumes of a run, V vertices, K confounds, n scans.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from nilearn import signal
from nilearn.glm.first_level import make_first_level_design_matrix

from mindvideo.data.bids import MISSING, read_table
from mindvideo.data.video import TIME_TOLERANCE_S
from mindvideo.errors import DataError

Resample = Literal["linear", "nearest", "mean"]
_BLOCK = 8192
_CONSTANT = 1e-7


def read_confounds(path: Path, wanted: Sequence[str], n_volumes: int) -> tuple[list[str], np.ndarray]:
    """The columns of fMRIPrep's confounds table that the patterns name.

    Parameters
    ----------
    path : Path
        ``…_desc-confounds_timeseries.tsv``.
    wanted : sequence of str
        Column names, in which ``*`` and ``?`` stand for anything; none: no confounds.
    n_volumes : int
        Volumes of the recording.

    Returns
    -------
    names : list of str, (K,)
    values : ndarray, float64 (T, K)
        NaN for ``n/a`` on the first line, where derivatives have no value.

    Raises
    ------
    DataError
        For a missing column, another number of rows, or a value that is no number after the first line.
    """
    table = read_table(path)
    names: dict[str, None] = {}
    for pattern in wanted:
        found = fnmatch.filter(table, pattern)
        if not found:
            raise DataError(
                f"expected a column {pattern} in {path}, found {', '.join(list(table)[:12])}"
                f"{', …' if len(table) > 12 else ''}; choose other confounds"
            )
        names |= dict.fromkeys(found)
    values = np.empty((n_volumes, len(names)))
    for column, name in enumerate(names):
        texts = table[name]
        if len(texts) != n_volumes:
            raise DataError(
                f"expected a line for each of the {n_volumes} volumes in {path}, found {len(texts)}; "
                "are the two of one run of fMRIPrep?"
            )
        values[:, column] = _numbers(texts, name, path)
    return list(names), values


def _numbers(texts: list[str], name: str, path: Path) -> np.ndarray:
    values = np.array([_number(text) for text in texts])
    bad = np.flatnonzero(~np.isfinite(values))
    if texts[0] == MISSING and len(texts) > 1:
        bad = bad[bad > 0]
    if len(bad):
        line = int(bad[-1])
        raise DataError(f"expected numbers in column {name} of {path}, found '{texts[line]}' on line {line + 2}")
    return values


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def clean_run(
    run: np.ndarray,
    confounds: np.ndarray,
    tr_s: float,
    high_pass_hz: float | None,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Regress confounds, a linear trend and slow cosines out of a run, and standardise every vertex.

    One least-squares fit takes all of them out together, so that none brings back what another removed (Lindquist et
    al. 2019, Human Brain Mapping 40, 2358–2376). Mean and standard deviation (ddof 1) are those of the kept volumes.

    Parameters
    ----------
    run : ndarray, float (T, V)
        Finite values.
    confounds : ndarray, float (T, K)
        NaN becomes the column's mean over the kept volumes, as if it were not there.
    tr_s : float
        Seconds between volumes.
    high_pass_hz : float or None
        Cosines up to this frequency are regressed out, see `slow_cosines`.
    kept : ndarray, bool (T,), optional
        Volumes the fit and the scaling may see, and that are returned; default: all.

    Returns
    -------
    ndarray, float32 (kept volumes, V)

    Raises
    ------
    DataError
        If there are too few volumes for so many regressors, or a vertex has no variance left.
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
        is_bad = ~(deviation > _CONSTANT * largest)
        if is_bad.any():
            raise DataError(
                f"expected varying values at every vertex, found {int(is_bad.sum())} without variance after the "
                f"confounds were removed (e.g. in column {start + int(np.argmax(is_bad))}); leave the run out"
            )
        cleaned[:, start : start + _BLOCK] = part / deviation
    return cleaned


def slow_cosines(n_volumes: int, tr_s: float, high_pass_hz: float | None) -> np.ndarray:
    """Nilearn's discrete cosines below a frequency, float64 (T, K); none for None or a run too short for one.

    They go into the fit beside the confounds. `nilearn.signal.clean` with ``filter="cosine"`` would leave them out
    altogether where a confound, such as slow motion, happens to correlate with one of them above .9.
    """
    if high_pass_hz is None:
        return np.empty((n_volumes, 0))
    design = make_first_level_design_matrix(np.arange(n_volumes) * tr_s, drift_model="cosine", high_pass=high_pass_hz)
    return np.asarray(design.filter(regex="^drift_"), dtype=np.float64)


def scan_times(onset_s: float, lag_s: float, n_scans: int, spacing_s: float) -> np.ndarray:
    """When the scans of a film are acquired, in seconds of the run: onset + lag + k · spacing, float64 (n,)."""
    return onset_s + lag_s + np.arange(n_scans) * spacing_s


def recorded_scans(wanted_s: np.ndarray, volume_s: np.ndarray, spacing_s: float, how: Resample) -> np.ndarray:
    """Which of the wanted times a run covers, bool (n,).

    ``linear`` needs a volume on both sides (or just there), ``nearest`` one within half a TR, ``mean`` one within the
    ``spacing_s`` that follow.
    """
    if how == "linear":
        return (wanted_s >= volume_s[0] - TIME_TOLERANCE_S) & (wanted_s <= volume_s[-1] + TIME_TOLERANCE_S)
    if how == "nearest":
        half_tr = (volume_s[-1] - volume_s[0]) / (2 * max(1, len(volume_s) - 1))
        first_s, last_s = volume_s[0] - half_tr, volume_s[-1] + half_tr
        return (wanted_s >= first_s - TIME_TOLERANCE_S) & (wanted_s <= last_s + TIME_TOLERANCE_S)
    return np.asarray(_inside(wanted_s, volume_s, spacing_s).any(axis=1))


def resampling_weights(wanted_s: np.ndarray, volume_s: np.ndarray, spacing_s: float, how: Resample) -> np.ndarray:
    """The weight of each volume in each scan.

    Parameters
    ----------
    wanted_s : ndarray, float (n,)
        Covered times, see `recorded_scans`.
    volume_s : ndarray, float (T,)
        Times of the volumes, equally spaced.
    spacing_s : float
        Seconds between the wanted times.
    how : {"linear", "nearest", "mean"}
        Linear interpolation between the two volumes around a time; the volume nearest to the first time, and those
        nearest to the others (the earlier of two equally near); the mean of the volumes from a time to the next.

    Returns
    -------
    ndarray, float64 (n, T)
        Rows add up to 1. Where volumes lie at the wanted times each row picks its volume, whichever ``how``.
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
