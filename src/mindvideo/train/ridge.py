"""The linear reference of ``align``: ridge regression from the same fMRI windows to the same text tokens.

Shapes: N training windows, M validation windows, X inputs (W * V), T targets (L * C), Q target components.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from himalaya.backend import set_backend
from himalaya.kernel_ridge import KernelRidgeCV
from safetensors.numpy import load_file, save_file

ALPHAS = 10.0 ** np.arange(0, 8)
MOST_COMPONENTS = 256


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
        scaled = ((inputs_MX - self.centre) / self.scale).astype(np.float32)
        return scaled @ self.weights @ self.components + self.mean

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


def fit_linear_decoder(inputs_NX: np.ndarray, targets_NT: np.ndarray) -> LinearDecoder:
    """Kernel ridge regression from the training windows' scans to their tokens.

    The targets are reduced to their leading principal components on the training windows; one penalty for all is
    chosen by cross-validation over contiguous fifths of the training windows, since neighbouring windows are alike.
    """
    set_backend("numpy")
    centre, scale = inputs_NX.mean(axis=0), float(inputs_NX.std())
    fitted = ((inputs_NX - centre) / scale).astype(np.float64)
    mean_T = targets_NT.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred_NT = targets_NT - mean_T
    components_QT, _ = principal_components(centred_NT)
    scores_NQ = (centred_NT @ components_QT.T).astype(np.float64)
    # One penalty for all: with one each, the components that hold thing and motion are shrunk to nothing.
    model = KernelRidgeCV(alphas=ALPHAS, kernel="precomputed", cv=5, solver_params={"local_alpha": False}, warn=False)
    model.fit(fitted @ fitted.T, scores_NQ)
    weights = (fitted.T @ np.asarray(model.dual_coef_)).astype(np.float32)
    return LinearDecoder(centre, scale, weights, components_QT.astype(np.float32), mean_T)


def principal_components(centred_NT: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leading right singular vectors (Q, T), Q at most ``MOST_COMPONENTS``, and their squared singular values (Q,)."""
    values, vectors = np.linalg.eigh(centred_NT @ centred_NT.T)
    strong = np.argsort(values)[::-1][:MOST_COMPONENTS]
    strong = strong[values[strong] > 1e-6 * values.max()]  # weaker ones are rounding of single precision
    return (vectors[:, strong] / np.sqrt(values[strong])).T @ centred_NT, values[strong]
