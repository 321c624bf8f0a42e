"""Everything in a recording that does not follow the film: fluctuations, noise, drift, gain.

Legend: T volumes, n vertices.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from mindvideo import atlas
from mindvideo.simulate.cortex import Sheet

LOCAL, NETWORK, GLOBAL, THERMAL = 0.68, 0.5, 0.15, 0.3
"""Weights of noise along the cortex, network fluctuations, a global signal and independent noise."""

NOISE_TIME_S = 2.2
"""Time constant of the local noise: lag-1 autocorrelation .4 at a TR of 2 s."""

NETWORK_TIME_S = 8.0


def autoregress(white: np.ndarray, tr_s: float, time_s: float) -> np.ndarray:
    """First-order autoregressive noise along the first axis.

    Parameters
    ----------
    white : ndarray, float32 (T, m)
        Independent standard normal numbers.
    tr_s, time_s : float
        Sampling interval and time constant; neighbouring volumes correlate by exp(-tr_s / time_s).

    Returns
    -------
    ndarray, float32 (T, m)
        Unit variance from the first volume on.
    """
    phi = np.exp(-tr_s / time_s)
    innovation = white * np.float32(np.sqrt(1 - phi**2))
    innovation[0] = white[0]
    return lfilter(np.ones(1, np.float32), np.array([1, -phi], np.float32), innovation, axis=0).astype(np.float32)


def network_loadings(sheet: Sheet, vertex: np.ndarray, rng: np.random.Generator, n_maps: int = 8) -> np.ndarray:
    """How much each vertex takes part in shared fluctuations, float32 (networks, n), columns of unit length.

    Soft Yeo-17 networks plus a few smooth random maps.
    """
    labels = atlas.yeo17_labels()[vertex]
    soft = (labels[:, None] == np.arange(1, 18)[None]).astype(np.float32)
    for _ in range(4):
        soft = sheet.average @ soft
    loadings = np.concatenate([soft, 0.35 * sheet.fields(rng, n_maps, 12)], axis=1)
    length = np.linalg.norm(loadings, axis=1, keepdims=True)
    return np.ascontiguousarray((loadings / np.maximum(length, 1e-6)).T.astype(np.float32))


def draw_noise(sheet: Sheet, loadings: np.ndarray, n_volumes: int, tr_s: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of one run, float32 (T, n), about unit variance: local and smooth, networks, global, thermal."""
    n = loadings.shape[1]
    noise = np.empty((n_volumes, n), np.float32)
    for start in range(0, n_volumes, 64):
        rows = min(64, n_volumes - start)
        noise[start : start + rows] = sheet.smooth_noise(rng.standard_normal((rows, n), dtype=np.float32).T).T
    noise = autoregress(noise, tr_s, NOISE_TIME_S) * np.float32(LOCAL)
    shared = autoregress(rng.standard_normal((n_volumes, len(loadings)), dtype=np.float32), tr_s, NETWORK_TIME_S)
    noise += np.float32(NETWORK) * (shared @ loadings)
    noise += np.float32(GLOBAL) * autoregress(
        rng.standard_normal((n_volumes, 1), dtype=np.float32), tr_s, NETWORK_TIME_S
    )
    noise += np.float32(THERMAL) * rng.standard_normal((n_volumes, n), dtype=np.float32)
    return noise / np.float32(np.sqrt(LOCAL**2 + NETWORK**2 + GLOBAL**2 + THERMAL**2))


def draw_drift(sheet: Sheet, n_volumes: int, rng: np.random.Generator) -> np.ndarray:
    """Slow scanner drift of one run, float32 (T, n): a line and two cosines with smooth random amplitudes."""
    phase = np.linspace(0, np.pi, n_volumes, dtype=np.float32)
    basis = np.stack([np.linspace(-1, 1, n_volumes, dtype=np.float32), np.cos(phase), np.cos(2 * phase)], axis=1)
    common = rng.standard_normal(3).astype(np.float32)
    amplitude = 0.7 * sheet.fields(rng, 3, 8) + common
    return (basis @ amplitude.T).astype(np.float32)
