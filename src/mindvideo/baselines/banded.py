"""Ridge regression with one band of inputs for every scan of the window, by himalaya.

The kernel is a weighted sum of the scans' linear kernels (banded ridge regression, Nunez-Elizalde
et al. 2019; la Tour et al. 2022). Weights of the bands and penalties are chosen for each target on
the validation windows or, where no film is held out, by cross-validation over whole training films.

Shapes: N training windows, M other windows, W scans (bands), V voxels, T targets, G weightings.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from himalaya.backend import set_backend
from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
from scipy.linalg import solve

from mindvideo.baselines.base import SplitWindows
from mindvideo.train.features import Split
from mindvideo.train.ridge import principal_components
from mindvideo.train.ridge import token_r2 as explained_variance

STEPS_BETWEEN_TWO = 4
SEARCHED = 12
FOLDS = 5


def band_weightings(n_bands: int) -> np.ndarray:
    """Weightings that are tried, float64 (G, W), each summing to 1.

    One band alone, all alike, and in between quarters for two bands, Dirichlet samples for more.
    """
    if n_bands == 1:
        return np.ones((1, 1))
    if n_bands == 2:
        first = np.linspace(0, 1, STEPS_BETWEEN_TWO + 1)
        return np.stack([first, 1 - first], axis=1)
    samples = np.random.default_rng(n_bands).dirichlet(np.ones(n_bands), size=SEARCHED)
    return np.concatenate([np.eye(n_bands), np.full((1, n_bands), 1 / n_bands), samples])


class BandedRidge:
    """Linear map from fMRI windows (N, W, V) to targets (N, T).

    ``alphas`` are penalties to choose from, relative to kernels whose mean diagonal is 1.

    Attributes
    ----------
    alpha, weighting : ndarray (T,), (W, T)
        What was chosen for each target.
    chosen_on : {"validation", "cross_validation"}
    chosen_MT : ndarray, float32
        Predictions for the windows that it was chosen on, the training windows out of fold; ``r2`` is
        their `explained_variance`.
    """

    def __init__(self, alphas: Sequence[float]) -> None:
        self.alphas = np.array(sorted(alphas), dtype=np.float64)

    def fit(
        self,
        fmri_NWV: np.ndarray,
        targets_NT: np.ndarray,
        fold: np.ndarray,
        validation: tuple[np.ndarray, np.ndarray] | None,
        keeps_out_of_fold: bool = False,
    ) -> BandedRidge:
        """Choose weightings and penalties, then fit on the training windows.

        Parameters
        ----------
        fold : ndarray of int (N,)
            Training windows that are left out together.
        validation : (ndarray (M, W, V), ndarray (M, T)), optional
            What is chosen on; without it every fold is predicted from the others.
        keeps_out_of_fold : bool
            Keep ``out_of_fold`` (N, T), each fold predicted from the others with the chosen penalties: what
            a later stage should learn from, since a fitted window is predicted too well.
        """
        set_backend("numpy")
        self.centre_WV = fmri_NWV.mean(axis=0)
        self.mean_T = targets_NT.mean(axis=0, dtype=np.float64)
        training = self._centred(fmri_NWV)
        self.scale_W = np.sqrt(np.square(training).sum(axis=2).mean(axis=1, dtype=np.float64))
        training /= self.scale_W[:, None, None]
        kernels_WNN = _kernels(training, training)
        centred_NT = targets_NT - self.mean_T
        if validation is None:
            splits = [(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in np.unique(fold)]
            self._choose(kernels_WNN, centred_NT, splits)
        else:
            unseen = self._centred(validation[0]) / self.scale_W[:, None, None]
            self._choose_on(kernels_WNN, centred_NT, _kernels(unseen, training), validation[1] - self.mean_T)
        self._training = training.astype(np.float32)
        self.dual_NT = self._solve(kernels_WNN, centred_NT)
        if keeps_out_of_fold or validation is None:
            self.out_of_fold = self._out_of_fold(kernels_WNN, targets_NT, fold)
        self.chosen_on = "cross_validation" if validation is None else "validation"
        self.chosen_MT = self.out_of_fold if validation is None else self.predict(validation[0])
        truth_MT = targets_NT if validation is None else validation[1]
        self.r2 = explained_variance(self.chosen_MT, truth_MT, self.mean_T)
        return self

    def fit_windows(
        self, windows: SplitWindows, targets: dict[Split, np.ndarray], keeps_out_of_fold: bool = False
    ) -> BandedRidge:
        """`fit` on the fMRI of some windows."""
        fmri = {split: part.fmri(np.arange(len(part))) for split, part in windows.items()}
        held_out = (fmri["validation"], targets["validation"]) if "validation" in windows else None
        fold = segment_folds(windows["train"].segment)
        return self.fit(fmri["train"], targets["train"], fold, held_out, keeps_out_of_fold)

    def note(self, folder: Path, **r2: float) -> None:
        """Write ``fit.json``: R² in the windows that it was chosen on."""
        found = {f"{self.chosen_on}_{name}_r2": value for name, value in r2.items()}
        (folder / "fit.json").write_text(json.dumps(found, indent=1))

    def predict(self, fmri_BWV: np.ndarray) -> np.ndarray:
        """Predicted targets, float32 (B, T)."""
        rows = (self._centred(fmri_BWV) / self.scale_W[:, None, None]).astype(np.float32)
        total = np.zeros((len(fmri_BWV), len(self.mean_T)))
        for kernel, weight_T in zip(_kernels(rows, self._training), self.weighting, strict=True):
            total += kernel @ (weight_T * self.dual_NT)
        return (total + self.mean_T).astype(np.float32)

    def _centred(self, fmri_BWV: np.ndarray) -> np.ndarray:
        """Windows around the training mean, bands first: (W, B, V)."""
        return np.ascontiguousarray((fmri_BWV - self.centre_WV).swapaxes(0, 1))

    def _choose_on(
        self, kernels_WNN: np.ndarray, centred_NT: np.ndarray, cross_WMN: np.ndarray, validation_MT: np.ndarray
    ) -> None:
        n, m = kernels_WNN.shape[1], cross_WMN.shape[1]
        whole = np.zeros((len(kernels_WNN), n + m, n + m))
        whole[:, :n, :n] = kernels_WNN
        whole[:, n:, :n] = cross_WMN
        whole[:, :n, n:] = cross_WMN.swapaxes(1, 2)
        # The block of validation against itself is never read.
        self._choose(whole, np.concatenate([centred_NT, validation_MT]), [(np.arange(n), np.arange(n, n + m))])

    def _choose(self, kernels: np.ndarray, targets: np.ndarray, splits: list[tuple[np.ndarray, np.ndarray]]) -> None:
        """Weighting and penalty of each target by the error on each split's second windows."""
        with np.errstate(divide="ignore"):  # the log of a band's weight 0
            deltas, _, _ = solve_multiple_kernel_ridge_random_search(
                kernels,
                targets,
                n_iter=band_weightings(len(kernels)),
                alphas=self.alphas,
                cv=splits,
                progress_bar=False,
            )
        weights = np.exp(deltas)
        self.alpha = 1 / weights.sum(axis=0)
        self.weighting = weights * self.alpha

    def _solve(self, kernels_WNN: np.ndarray, centred_NT: np.ndarray) -> np.ndarray:
        """Dual weights (N, T), one decomposition for each pair of weighting and penalty.

        himalaya's own solver takes all targets' penalties at once, but needs N · N · T numbers.
        """
        dual_NT = np.empty(centred_NT.shape)
        pairs = np.round(np.vstack([self.weighting, np.log(self.alpha)]), 9)
        distinct, member = np.unique(pairs, axis=1, return_inverse=True)
        for number, (*weighting, log_alpha) in enumerate(distinct.T):
            chosen = member.ravel() == number
            kernel = np.tensordot(np.array(weighting), kernels_WNN, axes=1)
            kernel[np.diag_indices_from(kernel)] += np.exp(log_alpha)
            dual_NT[:, chosen] = solve(kernel, centred_NT[:, chosen], assume_a="pos")
        return dual_NT

    def _out_of_fold(self, kernels_WNN: np.ndarray, targets_NT: np.ndarray, fold: np.ndarray) -> np.ndarray:
        predicted = np.empty(targets_NT.shape, np.float32)
        for number in np.unique(fold):
            inside = fold == number
            outside = fold != number
            mean_T = targets_NT[outside].mean(axis=0, dtype=np.float64)
            dual = self._solve(kernels_WNN[:, outside][:, :, outside], targets_NT[outside] - mean_T)
            total = np.zeros((int(inside.sum()), targets_NT.shape[1]))
            for kernel, weight_T in zip(kernels_WNN, self.weighting, strict=True):
                total += kernel[np.ix_(inside, outside)] @ (weight_T * dual)
            predicted[inside] = total + mean_T
        return predicted


def segment_folds(segment: np.ndarray) -> np.ndarray:
    """Fold (N,) of each window: whole segments, or fifths of a single one."""
    names, number = np.unique(segment, return_inverse=True)
    if len(names) == 1:
        return np.arange(len(segment)) * FOLDS // len(segment)
    return number % min(FOLDS, len(names))


def _kernels(rows_WMV: np.ndarray, columns_WNV: np.ndarray) -> np.ndarray:
    """Linear kernel of every band, float64 (W, M, N)."""
    return np.stack([row @ column.T for row, column in zip(rows_WMV, columns_WNV, strict=True)]).astype(np.float64)


class Components:
    """At most ``most`` leading principal components of training targets (N, T).

    Attributes
    ----------
    mean : ndarray, float32 (T,)
    basis : ndarray, float32 (Q, T)
        Orthonormal rows, strongest first.
    """

    def __init__(self, targets_NT: np.ndarray, most: int) -> None:
        self.mean = targets_NT.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.basis = principal_components(targets_NT - self.mean, most)[0]

    def scores(self, targets_NT: np.ndarray) -> np.ndarray:
        """Coordinates, float32 (N, Q)."""
        return (targets_NT - self.mean) @ self.basis.T

    def restore(self, scores_NQ: np.ndarray) -> np.ndarray:
        """Targets of coordinates, float32 (N, T)."""
        return scores_NQ @ self.basis + self.mean
