"""The linear reference of ``align``: ridge regression from the same fMRI windows to the same text tokens.

Shapes: N training windows, M validation windows, X inputs (W * V), T targets (L * C), Q target
components.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from safetensors.numpy import load_file, save_file

from mindvideo.data.windows import Windows
from mindvideo.models.interfaces import LinearReading

ALPHAS = 10.0 ** np.arange(0, 8, 0.25)
MOST_COMPONENTS = 256
_COLUMNS = 4096
"""Inputs of all windows that are taken into memory at once."""


def token_r2(predicted: np.ndarray, truth: np.ndarray, training_mean: np.ndarray) -> float:
    """1 - squared error / squared error of predicting the training mean, over all values (0 for the mean predictor)."""
    error = np.square(truth - predicted, dtype=np.float64).sum()
    return float(1.0 - error / np.square(truth - training_mean, dtype=np.float64).sum())


@dataclass(frozen=True)
class LinearDecoder:
    """What ridge regression learned: inputs (M, X) to targets (M, T), through Q principal components of the targets."""

    centre: np.ndarray
    scale: float
    weights: np.ndarray
    components: np.ndarray
    mean: np.ndarray

    def predict(self, inputs_MX: np.ndarray) -> np.ndarray:
        """Targets (M, T) float32 of inputs (M, X)."""
        scores = (inputs_MX @ self.weights - self.centre @ self.weights) / np.float32(self.scale)
        return scores @ self.components + self.mean

    @property
    def reading(self) -> LinearReading:
        """The same, as an encoder may start from it."""
        weight = self.weights / np.float32(self.scale)
        parts = (weight, -self.centre @ weight, self.components)
        return LinearReading(*(torch.from_numpy(np.ascontiguousarray(part)) for part in parts))

    def save(self, path: Path) -> None:
        """Write everything as safetensors, beside its place first."""
        arrays = {name: np.ascontiguousarray(np.asarray(value, np.float32)) for name, value in vars(self).items()}
        beside = path.with_suffix(".tmp")
        save_file(arrays, beside)
        beside.replace(path)

    @classmethod
    def open(cls, path: Path) -> LinearDecoder:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(**{**arrays, "scale": arrays["scale"].item()})


class Inputs(Protocol):
    """A matrix of inputs (N, X) that is read some columns at a time."""

    shape: tuple[int, int]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield some columns' numbers (b,) and values (N, b), float32, until each came once."""
        ...


class ArrayInputs:
    """Inputs that are an array (N, X)."""

    def __init__(self, array_NX: np.ndarray) -> None:
        self.array, self.shape = array_NX, array_NX.shape

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Inputs`."""
        for columns in _pieces(self.shape[1], _COLUMNS):
            yield np.arange(columns.start, columns.stop), self.array[:, columns]


class WindowInputs:
    """The scans of all windows of a person (N, W · V), gathered some voxels at a time."""

    def __init__(self, windows: Windows, person: int) -> None:
        self.windows, self.index = windows, np.flatnonzero(windows.person == person)
        self.shape = len(self.index), windows.window * windows.voxels[person]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """See `Inputs`."""
        window = self.windows.window
        n_voxels = self.shape[1] // window
        for voxels in _pieces(n_voxels, max(1, _COLUMNS // window)):
            columns = n_voxels * np.arange(window)[:, None] + np.arange(voxels.start, voxels.stop)
            yield columns.ravel(), self.windows.fmri(self.index, voxels).reshape(len(self.index), -1)


def _pieces(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def fit_linear_decoder(inputs_NX: np.ndarray | Inputs, targets_NT: np.ndarray) -> LinearDecoder:
    """Kernel ridge regression from the training windows' scans to their tokens.

    The targets are reduced to their leading principal components on the training windows; one
    penalty for all is chosen by cross-validation over contiguous fifths of the training windows,
    since neighbouring windows are alike.

    Notes
    -----
    The dual form: the kernel (N, N) is summed, and the weights are made, over blocks of inputs in
    float32, so that beside the inputs nothing of their size is held but the weights.
    """
    set_backend("numpy")
    inputs = ArrayInputs(inputs_NX) if isinstance(inputs_NX, np.ndarray) else inputs_NX
    n, width = inputs.shape
    centre, kernel = np.empty(width, np.float32), np.zeros((n, n))
    for columns, block in inputs.blocks():
        centre[columns] = block.mean(axis=0, dtype=np.float64)
        centred = (block - centre[columns]).astype(np.float32)
        kernel += centred @ centred.T
    scale = float(np.sqrt(np.trace(kernel) / (n * width) + centre.var(dtype=np.float64)))
    # Summed in double precision; the decompositions take half the time in single.
    kernel = (kernel / scale**2).astype(np.float32)
    mean_T = targets_NT.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred_NT = targets_NT - mean_T
    components_QT, _ = principal_components(centred_NT)
    scores_NQ = (centred_NT @ components_QT.T).astype(np.float32)
    # One penalty for all: with one each, the components that hold thing and motion are shrunk to nothing.
    model = KernelRidgeCV(alphas=ALPHAS, kernel="precomputed", cv=5, solver_params={"local_alpha": False}, warn=False)
    model.fit(kernel, scores_NQ)
    dual_NQ = (np.asarray(model.dual_coef_) / scale).astype(np.float32)
    weights = np.empty((width, dual_NQ.shape[1]), np.float32)
    for columns, block in inputs.blocks():
        weights[columns] = (block - centre[columns]).astype(np.float32).T @ dual_NQ
    return LinearDecoder(centre, scale, weights, components_QT.astype(np.float32), mean_T)


def principal_components(centred_NT: np.ndarray, most: int = MOST_COMPONENTS) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors (Q, T), Q at most ``most``, and their squared singular values (Q,)."""
    values, vectors = np.linalg.eigh(centred_NT @ centred_NT.T)
    strong = np.argsort(values)[::-1][:most]
    strong = strong[values[strong] > 1e-6 * values.max()]  # weaker ones are rounding of single precision
    return (vectors[:, strong] / np.sqrt(values[strong])).T @ centred_NT, values[strong]
