"""What a visual system takes from a film: contrast, colour, motion and what is shown.

A feature matrix has a row per sample, three a second, and a block of columns per kind,
see `BLOCKS`; zeros are a blank grey screen.

Legend: T samples, H W pixels, C channels, G cells along one side of the visual field, K all columns.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
from scipy import fft

from mindvideo.simulate.scenes import (
    CAMERAS,
    COLOURS,
    LIGHTS,
    MOTIONS,
    PLACES,
    SIZES,
    SPEEDS,
    THINGS,
    Scene,
    Shot,
    render_film,
    render_scene,
    scene_at,
)

FEATURE_HZ = 3.0
MOTION_STEP_S = 1.0 / 15.0
N_PIXELS = 64
N_ORIENTATIONS = 4
N_DIRECTIONS = 8

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "thing": THINGS,
    "colour": COLOURS,
    "place": PLACES,
    "motion": MOTIONS,
    "camera": CAMERAS,
    "light": LIGHTS,
    "size": SIZES,
    "speed": SPEEDS,
    "other_thing": THINGS,
    "other_colour": COLOURS,
}
"""One indicator column per value; the last two are zero without a second thing."""

EXEMPLAR_WIDTH = 6
EXEMPLARS = ("exemplar_thing", "exemplar_colour", "exemplar_place")
"""Columns of a scene's own normal numbers, for what makes this dog unlike other dogs."""

GRIDS: dict[str, tuple[int, int]] = {
    "fine": (N_ORIENTATIONS, 16),
    "middle": (N_ORIENTATIONS, 16),
    "coarse": (N_ORIENTATIONS, 8),
    "luminance": (2, 16),
    "opponent": (12, 8),
    "flow": (N_DIRECTIONS + 1, 8),
}
"""Channels and cells along one side of each retinotopic block."""

_WAVELENGTHS = {"fine": 5.0, "middle": 10.0, "coarse": 20.0}


def _lay_out() -> dict[str, slice]:
    sizes = {name: channels * cells**2 for name, (channels, cells) in GRIDS.items()}
    sizes |= {name: len(values) for name, values in ATTRIBUTES.items()}
    sizes |= dict.fromkeys(EXEMPLARS, EXEMPLAR_WIDTH)
    blocks, start = {}, 0
    for name, size in sizes.items():
        blocks[name] = slice(start, start + size)
        start += size
    return blocks


BLOCKS: dict[str, slice] = _lay_out()
"""Columns of each block; a retinotopic one is (C, G, G) flattened, from the top row."""
N_FEATURES = max(block.stop for block in BLOCKS.values())
SEMANTIC = slice(BLOCKS["thing"].start, N_FEATURES)
"""Columns of all attributes and of the exemplar together."""


def cell_centres(cells: int) -> np.ndarray:
    """Centres of a grid's cells, (G*G, 2): x to the right, y upwards, in half frame widths."""
    side = (np.arange(cells) + 0.5) / cells * 2 - 1
    x, y = np.meshgrid(side, -side)
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _pool(maps: np.ndarray, cells: int) -> np.ndarray:
    """Mean over square cells: (T, H, W) -> (T, G*G)."""
    n, height, _ = maps.shape
    step = height // cells
    return maps.reshape(n, cells, step, cells, step).mean(axis=(2, 4)).reshape(n, cells * cells)


@cache
def _gabor_spectra(wavelength: float, side: int) -> np.ndarray:
    """One-sided Gabor filters in the frequency domain, (orientations, side, side) float32.

    They are Gaussians (about one octave) on one half-plane, so that the filtered
    image's magnitude is the energy of a quadrature pair (Adelson and Bergen 1985).
    """
    frequency = np.fft.fftfreq(side) * side / N_PIXELS
    fy, fx = np.meshgrid(frequency, frequency, indexing="ij")
    centre = 1.0 / wavelength
    spectra = []
    for angle in np.arange(N_ORIENTATIONS) * np.pi / N_ORIENTATIONS:
        along = fx * np.cos(angle) + fy * np.sin(angle)
        across = -fx * np.sin(angle) + fy * np.cos(angle)
        spectra.append(np.exp(-((along - centre) ** 2 + across**2) / (2 * (0.35 * centre) ** 2)) * (along > 0))
    return np.stack(spectra).astype(np.float32)


@cache
def _border() -> np.ndarray:
    """A window (H, W) that fades the image to its mean at the border."""
    ramp = np.clip((np.minimum(np.arange(N_PIXELS), np.arange(N_PIXELS)[::-1]) + 1) / 4, 0, 1)
    return np.outer(ramp, ramp).astype(np.float32)


def contrast_energy(luminance: np.ndarray, wavelength: float, cells: int) -> np.ndarray:
    """Orientation energy of images (T, 64, 64), float32 (T, orientations * G * G).

    It is the root of the pooled square of the magnitude at a ``wavelength`` in pixels.
    Orientation 0 prefers vertical edges.
    """
    faded = (luminance - luminance.mean(axis=(1, 2), keepdims=True)) * _border()
    spectrum = fft.fft2(faded.astype(np.float32))
    side = 64 if wavelength < 8 else 32 if wavelength < 16 else 16
    half = side // 2
    keep = np.r_[0:half, N_PIXELS - half : N_PIXELS]
    spectrum = spectrum[:, keep][:, :, keep] * np.float32((side / N_PIXELS) ** 2)
    pooled = [_pool(np.abs(fft.ifft2(spectrum * gabor)) ** 2, cells) for gabor in _gabor_spectra(wavelength, side)]
    return np.sqrt(np.concatenate(pooled, axis=1)).astype(np.float32)


def _opponency(frames: np.ndarray) -> np.ndarray:
    """Single- and double-opponent colour, (T, 64, 64, 3) in [0, 1] -> (T, 12 * 8 * 8).

    Red-green, blue-yellow and dark-light of each cell, rectified both ways, and of a cell against its surround.
    """
    red, green, blue = (_pool(frames[..., channel], 16).reshape(-1, 16, 16) for channel in range(3))
    signals = [red - green, blue - (red + green) / 2, (red + green + blue) / 3 - 0.5]
    maps = []
    for signal in signals:
        surround = np.stack([cv2.blur(image, (7, 7), borderType=cv2.BORDER_REFLECT) for image in signal])
        for part in (signal, signal - surround):
            maps += [np.maximum(part, 0), np.maximum(-part, 0)]
    return np.concatenate([_pool(one, 8) for one in maps], axis=1).astype(np.float32)


def _motion(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Motion energy by direction and flicker, two (T, 64, 64, 3) in [0, 1] -> (T, 9 * 8 * 8).

    Opponent motion energy: products of spatial and temporal gradients, divided by
    contrast. Direction *d* prefers the angle 2 pi d / 8, counter-clockwise from
    rightwards.
    """
    n = len(first)
    first, second = (
        np.stack([cv2.GaussianBlur(f, (0, 0), 1.5)[::2, ::2] for f in frames]) for frames in (first, second)
    )
    dt = second - first
    mean = (first + second) / 2
    dy, dx = np.gradient(mean, axis=(1, 2))
    right = _pool(-(dt * dx).sum(-1), 8)
    up = _pool((dt * dy).sum(-1), 8)
    contrast = _pool((dx**2 + dy**2).sum(-1), 8)
    right, up = right / (contrast + 0.002), up / (contrast + 0.002)
    speed = np.hypot(right, up)
    scale = np.sqrt(speed) / (speed + 1e-6)
    angles = np.arange(N_DIRECTIONS) * 2 * np.pi / N_DIRECTIONS
    energy = [np.maximum(right * np.cos(a) + up * np.sin(a), 0) * scale for a in angles]
    flicker = np.sqrt(_pool(np.abs(dt).mean(-1), 8))
    return np.stack([*energy, flicker], axis=1).reshape(n, -1).astype(np.float32)


def image_features(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Retinotopic blocks, float32 (T, K), of frames uint8 (T, 64, 64, 3) and those `MOTION_STEP_S` later."""
    first, second = first.astype(np.float32) / 255, second.astype(np.float32) / 255
    luminance = first @ np.array([0.299, 0.587, 0.114], np.float32)
    blocks = [contrast_energy(luminance, _WAVELENGTHS[name], GRIDS[name][1]) for name in _WAVELENGTHS]
    level = _pool(luminance, 16) - 0.5
    blocks += [np.maximum(level, 0), np.maximum(-level, 0), _opponency(first), _motion(first, second)]
    return np.concatenate(blocks, axis=1)


def scene_attributes(scene: Scene) -> np.ndarray:
    """Attributes of a scene as indicators, then its exemplar; float32 (semantic columns,)."""
    row = np.zeros(N_FEATURES, np.float32)
    values = {name: getattr(scene, name) for name in ATTRIBUTES if not name.startswith("other")}
    if scene.other is not None:
        values |= {"other_thing": scene.other[0], "other_colour": scene.other[1]}
    for name, value in values.items():
        row[BLOCKS[name].start + ATTRIBUTES[name].index(value)] = 1
    exemplar = np.random.default_rng([scene.seed, 7]).standard_normal(len(EXEMPLARS) * EXEMPLAR_WIDTH)
    row[BLOCKS[EXEMPLARS[0]].start : BLOCKS[EXEMPLARS[-1]].stop] = exemplar
    return row[SEMANTIC]


def scene_features(scenes: list[Scene]) -> np.ndarray:
    """Features of each scene in the middle of its shot, float32 (scenes, K)."""
    pairs = [render_scene(scene, scene.duration_s / 2 + np.array([0, MOTION_STEP_S])) for scene in scenes]
    first, second = np.stack(pairs, axis=1)
    return np.concatenate([image_features(first, second), np.stack([scene_attributes(one) for one in scenes])], axis=1)


def film_features(film: list[Shot], size: int = N_PIXELS) -> np.ndarray:
    """Features of a film, float32 (T, K): row *j* describes it from j/3 to (j+1)/3 s."""
    times = (np.arange(round(film[-1].end_s * FEATURE_HZ)) + 0.5) / FEATURE_HZ
    features = np.empty((len(times), N_FEATURES), np.float32)
    for start in range(0, len(times), 240):
        chunk = times[start : start + 240]
        pairs = render_film(film, np.stack([chunk, chunk + MOTION_STEP_S], axis=1).ravel(), size)
        if size != N_PIXELS:
            pairs = np.stack([cv2.resize(f, (N_PIXELS, N_PIXELS), interpolation=cv2.INTER_AREA) for f in pairs])
        features[start : start + 240, : SEMANTIC.start] = image_features(pairs[::2], pairs[1::2])
    known: dict[Scene, np.ndarray] = {}
    for row, t in enumerate(times):
        scene = scene_at(film, float(t)).scene
        if scene not in known:
            known[scene] = scene_attributes(scene)
        features[row, SEMANTIC] = known[scene]
    return features
