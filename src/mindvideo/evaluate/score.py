"""A score is one object, a measured score another.

To add a score, write its function and its `Score` line in its family's file; tables, comparison,
ablation and report take it from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from mindvideo.errors import DataError, one_line

Needs = Literal["frames", "flow", "images", "clips", "embeddings", "captions", "columns"]
"""What a score looks at: frames, optical flow, or what a frozen network says of frames (``images``:
their classes, ``embeddings``: CLIP's, ``columns``: where the thing is), of whole clips (``clips``) or in words
(``captions``)."""
Family = Literal["layout", "colour", "content", "motion"]
"""Which part of the picture a score is about."""
FAMILIES: tuple[Family, ...] = get_args(Family)
NETWORKS: dict[str, tuple[str, ...]] = {
    "images": ("image_classifier",),
    "clips": ("video_classifier",),
    "embeddings": ("image_encoder",),
    "captions": ("captioner", "tokenizer", "text_encoder"),
    "columns": ("judges",),
}
"""The parts of a foundation folder that each need is answered by."""
MAIN, TRUTH = "reconstruction", "truth"
"""The set of clips that is scored, and what it is compared with."""
LEVEL = 0.05
"""Corrected P below which a score counts as better."""


@dataclass(frozen=True)
class Score:
    """One score: its words, and how it is computed.

    Attributes
    ----------
    name, label, definition : str
        Key in every file, words on every page, and a sentence that lets a reader compute it.
    needs : Needs
        What its functions are given: `measure.Frames` batch by batch, or `measure.Features`.
    per_window : callable
        (reconstruction, truth) → float64 (n,), NaN where a window has no value.
    pairwise : callable, optional
        (reconstruction, truth) → (n, n), prediction i against truth j: gives chance and P of the
        pairing. Without it chance is that of random pairs, for frames and flow only.
    chance : float, optional
        In closed form.
    low, high : float or None
        Range; None where unbounded.
    higher_is_better : bool or None
        None where neither end is good and the truth's own value is the one to reach.
    unit : str
        Empty for a pure number.
    used_by : str
        Papers that report a score of this kind; their details may differ.
    over_time : bool
        Compares frames of a clip with one another: needs two, and a truth at the clips' own rate.
    has_truth : bool
        Whether 'per_window' of the truth with itself says something.
    is_main : bool
        Whether it stands in tables that show few scores: the ablation's and the rivals'.
    """

    name: str
    label: str
    definition: str
    family: Family
    needs: Needs
    per_window: Callable[[Any, Any], np.ndarray]
    pairwise: Callable[[Any, Any], np.ndarray] | None = None
    chance: float | None = None
    low: float | None = 0.0
    high: float | None = 1.0
    higher_is_better: bool | None = True
    unit: str = ""
    used_by: str = ""
    over_time: bool = False
    has_truth: bool = False
    is_main: bool = False


Interval = tuple[float | None, float | None]
NO_INTERVAL: Interval = (None, None)


@dataclass(frozen=True)
class ScoreResult:
    """What was measured of one score: an entry of ``scores.json``. What does not exist is None.

    Attributes
    ----------
    value, interval, n : float, (float, float), int
        Mean over windows, its 95 % interval (block bootstrap), and how many windows have a value.
    chance, chance_closed_form, p_chance : float
        On this test set, in theory, and P of the pairing with the truth (permuted blocks).
    controls, control_intervals, roles : dict
        Of every other set of clips, by name.
    p, p_holm : dict
        One-sided P that the reconstruction is better than each set, and corrected over all scores.
    truth : float
        The truth's own value where it has one.
    way_to_caption, way_to_caption_interval
        How far the reconstruction comes on the way from ``shuffled`` (0) to ``caption`` (1).
    films : dict of str to dict
        By test film: ``value``, ``interval``, ``n`` and ``controls``.
    network : str
        Which network measured, for scores that need one.
    """

    name: str
    value: float | None
    label: str = ""
    definition: str = ""
    family: str = "content"
    needs: str = "frames"
    unit: str = ""
    used_by: str = ""
    network: str = ""
    range: Interval = NO_INTERVAL
    higher_is_better: bool | None = None
    is_main: bool = False
    interval: Interval = NO_INTERVAL
    n: int = 0
    chance: float | None = None
    chance_closed_form: float | None = None
    p_chance: float | None = None
    controls: dict[str, float | None] = field(default_factory=dict)
    control_intervals: dict[str, Interval] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    p: dict[str, float | None] = field(default_factory=dict)
    p_holm: dict[str, float | None] = field(default_factory=dict)
    truth: float | None = None
    way_to_caption: float | None = None
    way_to_caption_interval: Interval = NO_INTERVAL
    films: dict[str, dict[str, Any]] = field(default_factory=dict)

    def _is_better(self, value: float | None, other: float | None) -> bool:
        if value is None or other is None or self.higher_is_better is None:
            return False
        return value > other if self.higher_is_better else value < other

    @property
    def from_brain(self) -> bool | None:
        """**The** rule for "from the brain": better than ``shuffled`` with P < .05 after Holm.

        None where that was not tested. `better_baselines` belongs in the same sentence.
        """
        p = self.p_holm.get("shuffled")
        shuffled = self.controls.get("shuffled")
        if p is None or shuffled is None or self.value is None or self.higher_is_better is None:
            return None
        return p < LEVEL and self._is_better(self.value, shuffled)

    @property
    def better_baselines(self) -> list[str]:
        """Baselines, which need no brain, that have the better value all the same."""
        baselines = {name: value for name, value in self.controls.items() if self.roles.get(name) == "baseline"}
        return [name for name, value in baselines.items() if self._is_better(value, self.value)]

    def to_json(self) -> dict[str, Any]:
        """The entry of ``scores.json``, with the verdict of `from_brain` beside the numbers."""
        content = {name: value for name, value in asdict(self).items() if name != "name"}
        return content | {"from_brain": self.from_brain, "better_baselines": self.better_baselines}


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of clips, and which were ``left_out`` and why.

    Attributes
    ----------
    windows : dict
        ``windows[score][set]``: value of every window, float64 (n,), NaN where undefined.
    smallest_p : float or None
        The smallest P after Holm that is possible; None where nothing was tested.
    truth, networks : str
        Fingerprints of the true clips and of the networks that measured.
    pairs : dict
        Of scores that have it, every prediction against every truth, float64 (n, n).
    """

    scores: dict[str, ScoreResult]
    windows: dict[str, dict[str, np.ndarray]]
    left_out: dict[str, str]
    smallest_p: float | None
    truth: str
    networks: str
    pairs: dict[str, np.ndarray] = field(default_factory=dict)


def finite(value: Any) -> float | None:
    """A finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def parse_scores(content: Mapping[str, Mapping[str, Any]]) -> dict[str, ScoreResult]:
    """The scores of ``scores.json``; DataError for what `ScoreResult.to_json` does not write."""
    try:
        return _RESULTS.validate_python({name: {**entry, "name": name} for name, entry in content.items()})
    except (ValidationError, TypeError) as error:
        raise DataError(
            f"expected the scores that 'mindvideo evaluate' writes, found damage ({one_line(error)}); evaluate again"
        ) from None


_RESULTS = TypeAdapter(dict[str, ScoreResult])
