"""Drives: what moves groups of vertices; shared by all people, or in part their own.

Legend: T feature samples, K feature columns, n vertices, m of them that a drive moves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from mindvideo.simulate.cortex import Sheet

SHARED = {"contrast": 0.45, "colour": 0.68, "motion": 0.46, "object": 0.62, "place": 0.62}
"""Share of BOLD variance that follows the shared mixing of units.

Fine maps lose more by warping, which these shares make up for.
"""
OWN_PATTERNS, OWN_STEPS = 64, 3
"""Patterns of gains that a person's own mixing is made of, and its rounds of smoothing."""


@dataclass(frozen=True)
class OwnMixing:
    """A person's own mixing of the units, beside the shared drive."""

    weights: np.ndarray
    mean: np.ndarray
    slope: np.ndarray
    scale: np.ndarray

    @classmethod
    def calibrated(
        cls, weights: np.ndarray, inputs: np.ndarray, shared: np.ndarray, blur: Callable[[np.ndarray], np.ndarray]
    ) -> OwnMixing:
        """Signed ``weights`` (inputs, m), made uncorrelated with the shared drive (T, m).

        After the haemodynamics (``blur``) they also have its variance; own drives
        change faster, and lose more by blurring.
        """
        drive = inputs @ weights
        slow, slow_shared = blur(drive), blur(shared)
        slow, slow_shared = slow - slow.mean(axis=0), slow_shared - slow_shared.mean(axis=0)
        slope = (slow * slow_shared).mean(axis=0) / ((slow_shared**2).mean(axis=0) + 1e-12)
        scale = slow_shared.std(axis=0) / ((slow - slope * slow_shared).std(axis=0) + 1e-9)
        return cls(weights, drive.mean(axis=0), slope, scale)

    def __call__(self, inputs: np.ndarray, shared: np.ndarray) -> np.ndarray:
        """Standardised drive, (T, m)."""
        return (inputs @ self.weights - self.mean - self.slope * shared) * self.scale


@dataclass
class Drive:
    """One kind of drive: which vertices it moves, from which columns, and its calibration."""

    kind: str
    members: np.ndarray
    strength: np.ndarray
    weights: np.ndarray
    columns: slice
    units: tuple[np.ndarray, np.ndarray] | None = None
    preference: np.ndarray | None = None
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    scale: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    own: OwnMixing | None = None

    def inputs(self, features: np.ndarray) -> np.ndarray:
        """What the vertices mix, (T, inputs): cells of the visual field, or units."""
        chosen = features[:, self.columns]
        if self.units is None:
            return chosen
        unit_weights, threshold = self.units
        return np.maximum(chosen @ unit_weights - threshold, 0)

    def raw(self, features: np.ndarray) -> np.ndarray:
        """Uncalibrated drive, (T, members)."""
        drive = self.inputs(features) @ self.weights
        if self.units is None:
            return np.sqrt(np.maximum(drive, 0))
        if self.preference is not None:
            drive = drive + features[:, self.columns] @ self.preference
        return drive

    def calibrate(self, features: np.ndarray) -> None:
        """Take mean and standard deviation from a film."""
        if self.units is not None:
            preference, self.preference = self.preference, None
            self.weights = self.weights / (self.raw(features).std(axis=0) + 1e-6)
            self.preference = preference
        drive = self.raw(features)
        self.mean, self.scale = drive.mean(axis=0), 1 / (drive.std(axis=0) + 1e-6)

    def depart(
        self,
        source: np.ndarray,
        sheet: Sheet,
        rng: np.random.Generator,
        features: np.ndarray,
        blur: Callable[[np.ndarray], np.ndarray],
    ) -> Drive:
        """The same drive in a person whose vertices look like the rows ``source`` (n,) of this brain.

        The person's own part is calibrated on ``features`` after ``blur``.
        """
        members = np.flatnonzero(np.isin(source, self.members))
        at = np.searchsorted(self.members, source[members])
        preference = None if self.preference is None else self.preference[:, at]
        drive = replace(
            self,
            members=members,
            strength=self.strength[at],
            weights=self.weights[:, at],
            preference=preference,
            mean=self.mean[at],
            scale=self.scale[at],
        )
        patterns = rng.standard_normal((OWN_PATTERNS, len(self.weights)), dtype=np.float32)
        gains = (sheet.fields(rng, OWN_PATTERNS, OWN_STEPS)[members] @ patterns).T
        shared = (drive.raw(features) - drive.mean) * drive.scale
        drive.own = OwnMixing.calibrated(drive.weights * gains, drive.inputs(features), shared, blur)
        return drive

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Standardised drive with saturation, times its strength, (T, members)."""
        drive = (self.raw(features) - self.mean) * self.scale
        if self.own is not None:
            own = self.own(self.inputs(features), drive)
            drive = np.float32(np.sqrt(SHARED[self.kind])) * drive + np.float32(np.sqrt(1 - SHARED[self.kind])) * own
        return np.tanh(drive / 2) * 2 * self.strength
