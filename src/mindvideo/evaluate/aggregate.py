"""From values by window to results: means, intervals, P-values, chance."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from mindvideo.clip_sets import clip_set
from mindvideo.config import Evaluate, Recipe
from mindvideo.evaluate import statistics
from mindvideo.evaluate.score import MAIN, TRUTH, Interval, Score, ScoreResult, finite

DESCRIPTION = (
    "name", "label", "definition", "family", "needs", "unit", "used_by", "higher_is_better", "is_main"
)  # fmt: skip
"""What a result takes over from its score as it is."""


def make_rng(seed: int, *words: str) -> np.random.Generator:
    """A generator for every purpose: adding a score changes no other's numbers."""
    return np.random.default_rng([seed, zlib.crc32("|".join(words).encode())])


def mean_of_finite(values: np.ndarray) -> float | None:
    """Mean of the finite values; None where there is none."""
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else None


def mean_interval(values: np.ndarray, block: np.ndarray, bootstraps: int, rng: np.random.Generator) -> Interval:
    """The 95 % interval of the mean of the finite values, by resampling blocks."""
    known = np.isfinite(values)
    if not known.any():
        return None, None
    low, high = statistics.block_bootstrap_interval(values[known], block[known], bootstraps, rng)
    return finite(low), finite(high)


@dataclass(frozen=True)
class Design:
    """The n windows of an evaluation, and how values by window become results.

    Attributes
    ----------
    block : ndarray, int (n,)
        Windows that are permuted and resampled together, see `data.windows.block_numbers`.
    seed : int
        Of permutations, bootstraps and chance pairings.
    scene, film : ndarray (n,), optional
        Chance compares clips of different scenes only (without them, of different windows),
        and every score is given film by film too.
    world : attributes.World, optional
        True attributes of a simulated subject's windows; adds the scores of attributes.
    """

    block: np.ndarray
    settings: Evaluate
    seed: int = 0
    scene: np.ndarray | None = None
    film: np.ndarray | None = None
    world: Any = None

    @classmethod
    def of(cls, recipe: Recipe, windows: Sequence[Mapping[str, Any]], block: np.ndarray, world: Any = None) -> Design:
        """That of listed windows, as a recipe says."""
        scene, film = (np.array([window[name] for window in windows]) for name in ("scene", "segment"))
        return cls(block, recipe.evaluate, recipe.seed, scene, film, world)

    @cached_property
    def allowed(self) -> np.ndarray:
        """Which truths are of 'another clip', bool (n, n)."""
        number = np.arange(len(self.block)) if self.scene is None else self.scene
        return number[:, None] != number[None]

    def interval(self, values: np.ndarray, *words: str) -> Interval:
        """`mean_interval`, with random numbers of its own for every purpose."""
        return mean_interval(values, self.block, self.settings.bootstraps, make_rng(self.seed, *words))

    def summarise(self, score: Score, values: Mapping[str, np.ndarray], network: str) -> ScoreResult:
        """The result of one score from its values by window and set."""
        own = values[MAIN]
        others = [key for key in values if key not in (MAIN, TRUTH)]
        sign = -1.0 if score.higher_is_better is False else 1.0
        p_values: dict[str, float | None] = {}
        for other in others:
            difference = (own - values[other]) * sign
            known = np.isfinite(difference)
            if score.higher_is_better is not None and clip_set(other).role != "ceiling" and known.any():
                p_values[other] = statistics.block_permutation_p(
                    difference[known], self.block[known], self.settings.permutations,
                    make_rng(self.seed, score.name, other, "p"),
                )  # fmt: skip
        way = self._way_to_caption(score, values, own, sign)
        return ScoreResult(
            **{name: getattr(score, name) for name in DESCRIPTION},
            value=mean_of_finite(own),
            network=network,
            range=(score.low, score.high),
            interval=self.interval(own, score.name, MAIN),
            n=int(np.isfinite(own).sum()),
            chance_closed_form=score.chance,
            controls={other: mean_of_finite(values[other]) for other in others},
            control_intervals={other: self.interval(values[other], score.name, other) for other in others},
            roles={other: clip_set(other).role for other in others},
            p=p_values,
            truth=mean_of_finite(values[TRUTH]) if TRUTH in values else None,
            way_to_caption=way[0],
            way_to_caption_interval=way[1:],
            films=self._films(score.name, {key: values[key] for key in (MAIN, *others)}),
        )

    def _way_to_caption(
        self, score: Score, values: Mapping[str, np.ndarray], own: np.ndarray, sign: float
    ) -> tuple[float | None, float | None, float | None]:
        if score.higher_is_better is None or not {"shuffled", "caption"} <= values.keys():
            return None, None, None
        way, low, high = statistics.fraction_of_way(
            sign * own, sign * values["shuffled"], sign * values["caption"], self.block, self.settings.bootstraps,
            make_rng(self.seed, score.name, "way"),
        )  # fmt: skip
        return finite(way), finite(low), finite(high)

    def _films(self, name: str, values: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
        """The score of every test film on its own: the paper gives SSIM so."""
        if self.film is None:
            return {}
        found = {}
        for film in dict.fromkeys(self.film.tolist()):
            here = self.film == film
            inside = replace(self, block=self.block[here])
            found[str(film)] = {
                "value": mean_of_finite(values[MAIN][here]),
                "interval": inside.interval(values[MAIN][here], name, MAIN, str(film)),
                "n": int(np.isfinite(values[MAIN][here]).sum()),
                "controls": {key: mean_of_finite(value[here]) for key, value in values.items() if key != MAIN},
            }
        return found

    def add_chance(self, result: ScoreResult, pairs: np.ndarray | None, sampled: Sequence[np.ndarray]) -> ScoreResult:
        """Chance and P of the pairing from all pairs, or chance from sampled ones."""
        if pairs is None:
            values = np.concatenate(sampled) if len(sampled) else np.empty(0)
            return replace(result, chance=mean_of_finite(values))
        known = np.isfinite(np.diag(pairs))
        pairs = pairs[np.ix_(known, known)]
        others = self.allowed[np.ix_(known, known)]
        p = None
        if known.any():
            rng = make_rng(self.seed, result.name, "pairing")
            p = statistics.block_pairing_p(pairs, self.block[known], self.settings.permutations, rng)
        chance = finite(float(pairs[others].mean())) if others.any() else None
        return replace(result, chance=chance, p_chance=p)


def add_holm(scores: Mapping[str, ScoreResult]) -> dict[str, ScoreResult]:
    """P-values corrected by Holm's method over the scores, for each control alone."""
    corrected: dict[str, dict[str, float | None]] = {name: {} for name in scores}
    for other in sorted({other for entry in scores.values() for other in entry.p}):
        tested = {name: p for name, entry in scores.items() if (p := entry.p.get(other)) is not None}
        for name, p in zip(tested, statistics.holm(np.array(list(tested.values()))), strict=True):
            corrected[name][other] = float(p)
    return {name: replace(entry, p_holm=corrected[name]) for name, entry in scores.items()}
