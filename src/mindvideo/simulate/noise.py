"""What does not follow the film: fluctuations, physiology, head motion, noise, drift.

Legend: T volumes, n vertices.
"""

from __future__ import annotations

import numpy as np
from scipy.signal import lfilter

from mindvideo import atlas
from mindvideo.simulate.cortex import Sheet

LOCAL, NETWORK, GLOBAL, SLOW, BREATH, PULSE, THERMAL = 0.55, 0.65, 0.3, 0.3, 0.2, 0.2, 0.3
"""Weights of local, network, global, 1/f, breathing, pulse and independent noise."""

SPIKES_PER_MINUTE, SPIKE = 0.4, 2.5
"""How often the head jerks, and by how many standard deviations of the noise."""

NOISE_TIME_S = 2.2
"""Time constant of the local noise: lag-1 autocorrelation .4 at a TR of 2 s."""

NETWORK_TIME_S = 8.0
RHYTHMS_HZ = (0.28, 1.1)
"""Breathing and pulse."""
BODY_HZ = 10.0
"""Rate at which physiology is made, before volumes sample and thus alias it."""


def autoregress(white: np.ndarray, tr_s: float, time_s: float) -> np.ndarray:
    """First-order autoregressive noise of independent standard normal numbers, float32 (T, m) each.

    Neighbouring volumes correlate by exp(-tr_s / time_s); the variance is 1 from the first volume on.
    """
    phi = np.exp(-tr_s / time_s)
    innovation = white * np.float32(np.sqrt(1 - phi**2))
    innovation[0] = white[0]
    return lfilter(np.ones(1, np.float32), np.array([1, -phi], np.float32), innovation, axis=0).astype(np.float32)


def network_loadings(sheet: Sheet, vertex: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Weights of shared fluctuations, float32 (networks, n), columns of unit length.

    Soft Yeo-17 networks plus a few smooth random maps.
    """
    labels = atlas.yeo17_labels()[vertex]
    soft = (labels[:, None] == np.arange(1, 18)[None]).astype(np.float32)
    for _ in range(4):
        soft = sheet.average @ soft
    loadings = np.concatenate([soft, 0.35 * sheet.fields(rng, 8, 12)], axis=1)
    length = np.linalg.norm(loadings, axis=1, keepdims=True)
    return np.ascontiguousarray((loadings / np.maximum(length, 1e-6)).T.astype(np.float32))


def draw_slow(n_volumes: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Fluctuations whose power falls as 1/f, float32 (T, count), of unit variance."""
    frequency = np.fft.rfftfreq(n_volumes)[1:, None]
    phase = rng.standard_normal((len(frequency), count)) + 1j * rng.standard_normal((len(frequency), count))
    series = np.fft.irfft(np.concatenate([np.zeros((1, count)), phase / np.sqrt(frequency)]), n_volumes, axis=0)
    return (series / series.std(axis=0)).astype(np.float32)


def draw_rhythm(n_volumes: int, tr_s: float, hz: float, rng: np.random.Generator) -> np.ndarray:
    """A rhythm of the body around ``hz``, seen at the volumes: float32 (T,), unit variance.

    Its rate wanders by a tenth, and its wave has a second harmonic.
    """
    n = int(np.ceil((n_volumes - 1) * tr_s * BODY_HZ)) + 1
    rate = hz * (1 + 0.1 * autoregress(rng.standard_normal((n, 1), dtype=np.float32), 1 / BODY_HZ, 20.0)[:, 0])
    phase = 2 * np.pi * (np.cumsum(rate) / BODY_HZ + rng.random())
    wave = np.sin(phase) + 0.4 * np.sin(2 * phase + 1.0)
    at = np.round(np.arange(n_volumes) * tr_s * BODY_HZ).astype(int)
    return (wave[at] / np.sqrt(0.58)).astype(np.float32)


def draw_spikes(n_volumes: int, tr_s: float, rng: np.random.Generator) -> np.ndarray:
    """Jerks of the head, float32 (T,): one volume, and half as much the next."""
    spikes = np.zeros(n_volumes + 1, np.float32)
    for at in np.flatnonzero(rng.random(n_volumes) < SPIKES_PER_MINUTE * tr_s / 60):
        height = rng.choice([-1, 1]) * rng.uniform(0.5, 1.5)
        spikes[at] += height
        spikes[at + 1] += height / 2
    return spikes[:-1]


def draw_noise(
    sheet: Sheet,
    loadings: np.ndarray,
    n_volumes: int,
    tr_s: float,
    rng: np.random.Generator,
    rhythms_hz: tuple[float, float] = RHYTHMS_HZ,
) -> np.ndarray:
    """Noise of one run, float32 (T, n), about unit variance but for jerks of the head.

    Local and smooth, networks, a global signal, 1/f, breathing, pulse, thermal.
    """
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
    slow, breath, pulse = (part.T for part in np.split(sheet.fields(rng, 6, 12).astype(np.float32), [4, 5], axis=1))
    noise += np.float32(SLOW / 2) * (draw_slow(n_volumes, 4, rng) @ slow)
    for weight, hz, field in zip((BREATH, PULSE), rhythms_hz, (breath, pulse), strict=True):
        noise += np.float32(weight) * draw_rhythm(n_volumes, tr_s, hz, rng)[:, None] * (0.7 + 0.7 * field)
    parts = (LOCAL, NETWORK, GLOBAL, SLOW, BREATH, PULSE, THERMAL)
    noise /= np.float32(np.sqrt(sum(part**2 for part in parts)))
    thrown = SPIKE * sheet.fields(rng, 1, 12)[:, 0]
    return noise + draw_spikes(n_volumes, tr_s, rng)[:, None] * thrown.astype(np.float32)


def draw_drift(sheet: Sheet, n_volumes: int, rng: np.random.Generator) -> np.ndarray:
    """Slow drift of one run, float32 (T, n): a line and two cosines, smooth over the cortex."""
    phase = np.linspace(0, np.pi, n_volumes, dtype=np.float32)
    basis = np.stack([np.linspace(-1, 1, n_volumes, dtype=np.float32), np.cos(phase), np.cos(2 * phase)], axis=1)
    common = rng.standard_normal(3).astype(np.float32)
    amplitude = 0.7 * sheet.fields(rng, 3, 8) + common
    return (basis @ amplitude.T).astype(np.float32)
