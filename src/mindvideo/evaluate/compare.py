"""Runs, subjects and methods compared score by score, as in the paper's Table 1.

The paper's t-test takes neighbouring windows as independent; here whole blocks are exchanged.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import ttest_ind

from mindvideo.config import Recipe
from mindvideo.errors import DataError
from mindvideo.evaluate import statistics
from mindvideo.evaluate.aggregate import make_rng, mean_of_finite
from mindvideo.evaluate.score import MAIN, NETWORKS, ScoreResult, finite
from mindvideo.evaluate.tables import read_scores, read_windows, write_score, write_tables

PERMUTATIONS = 20_000
"""At least; see `enough_permutations`."""

Comparison = dict[str, dict[str, Any]]
"""What `compare_runs` finds, by score."""


@dataclass(frozen=True)
class WindowScores:
    """Scores of every window of one evaluated run, without its controls.

    Attributes
    ----------
    truth : str
        Fingerprint of the true clips: equal for two runs only where they reconstruct the very same
        windows.
    networks : str
        Identity of the frozen networks that measured.
    block : ndarray, int (n,)
    values : dict of str to ndarray, float64 (n,)
        NaN where a score is undefined for a window.
    scores : dict of str to ScoreResult
        What each of ``values`` is; of several seeds, the first one's.
    pooled : tuple of WindowScores
        The seeds that were pooled (`pool_seeds`); empty for a single one.
    """

    name: str
    truth: str
    networks: str
    block: np.ndarray
    values: dict[str, np.ndarray]
    scores: dict[str, ScoreResult]
    pooled: tuple[WindowScores, ...] = ()

    @property
    def seeds(self) -> tuple[WindowScores, ...]:
        """One run per seed."""
        return self.pooled or (self,)

    def known(self, score: str) -> np.ndarray:
        """Which windows have a value, bool (n,)."""
        return np.isfinite(self.values[score])

    def mean(self, score: str) -> float | None:
        """Mean over the windows that have a value; None where none has."""
        return mean_of_finite(self.values[score])

    def over_seeds(self, score: str) -> dict[str, Any]:
        """`mean_and_sd` of the seeds' means."""
        return mean_and_sd([run.mean(score) for run in self.seeds])


def read_window_scores(folder: Path, name: str | None = None) -> WindowScores:
    """A run folder's evaluation, under its own name or another; DataError if damaged."""
    place = folder / "evaluate" if (folder / "evaluate").is_dir() else folder
    try:
        scores = read_scores(place / "scores.json")
        about = json.loads((place / "evaluation.json").read_text())
        rows, windows = read_windows(place / "windows.csv")
        values = {key: sets[MAIN] for key, sets in windows.items()}
        block = np.array([int(row["block"]) for row in rows])
        known = {key: scores[key] for key in values}
        return WindowScores(name or folder.resolve().name, about["truth"], about["networks"], block, values, known)
    except FileNotFoundError as error:
        raise DataError(
            f"expected a finished evaluation at {place}, found no {Path(error.filename).name}; run 'mindvideo evaluate'"
        ) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DataError(
            f"expected scores.json, evaluation.json and windows.csv of one evaluation in {place}, found files that are damaged "
            f"or do not fit ({error}); run 'mindvideo evaluate' again"
        ) from None


def name_seed(name: str, seed: int, first: int) -> str:
    """``NAME``, or ``NAME-seedN`` for every seed but the first."""
    return name if seed == first else f"{name}-seed{seed}"


def each_seed(recipe: Recipe, run_dir: Path, seeds: int) -> Iterator[tuple[Recipe, Path]]:
    """A recipe with so many seeds, from its own on, and the run folder of each."""
    for seed in range(recipe.seed, recipe.seed + seeds):
        folder = run_dir.with_name(name_seed(run_dir.name, seed, recipe.seed))
        yield recipe.model_copy(update={"seed": seed}), folder


def seed_folders(run_dir: Path, seeds: int) -> list[Path]:
    """A run's folder and its other seeds' beside it; DataError where there are fewer."""
    if seeds == 1:
        return [run_dir]
    run_dir = run_dir.resolve()
    names = (re.fullmatch(re.escape(run_dir.name) + r"-seed(\d+)", path.name) for path in run_dir.parent.iterdir())
    others = sorted(int(found[1]) for found in names if found)
    if seeds > 1 + len(others):
        raise DataError(
            f"expected {seeds} seeds of {run_dir}, found {1 + len(others)} (NAME-seedN beside it); give --seeds "
            f"{1 + len(others)}, or run the others: mindvideo run RECIPE --out {run_dir} --seeds {seeds}"
        )
    return [run_dir, *(run_dir.with_name(f"{run_dir.name}-seed{number}") for number in others[: seeds - 1])]


def read_seeds(folders: Iterable[Path], name: str) -> WindowScores:
    """`read_window_scores` of each seed's folder, pooled."""
    return pool_seeds([read_window_scores(folder, name) for folder in folders])


def pool_seeds(runs: Sequence[WindowScores]) -> WindowScores:
    """The runs of several seeds as one, averaged window by window.

    Windows of other truths, as simulated subjects of several seeds have, follow one another.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    if all(run.truth == first.truth for run in runs):
        values = {key: np.mean([run.values[key] for run in runs], axis=0) for key in first.values}
        return replace(first, values=values, pooled=tuple(runs))
    values = {key: np.concatenate([run.values[key] for run in runs]) for key in first.values}
    offset, blocks = 0, []
    for run in runs:
        blocks.append(run.block - run.block.min() + offset)
        offset = int(blocks[-1].max()) + 1
    truth = "+".join(run.truth for run in runs)
    return replace(first, truth=truth, block=np.concatenate(blocks), values=values, pooled=tuple(runs))


def mean_and_sd(values: Sequence[float | None]) -> dict[str, Any]:
    """Of several seeds: ``value`` (mean), ``sd`` (None for one), ``seeds`` (each)."""
    known = [value for value in values if value is not None]
    return {
        "value": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "seeds": list(values),
    }


def list_comparable(first: WindowScores, second: WindowScores) -> list[str]:
    """The scores that both have by one definition and the same networks."""

    def is_same(one: ScoreResult, other: ScoreResult) -> bool:
        is_measured_alike = first.networks == second.networks or one.needs not in NETWORKS
        return one.definition == other.definition and is_measured_alike

    common = [key for key in first.scores if key in second.scores]
    return [key for key in common if is_same(first.scores[key], second.scores[key])]


def enough_permutations(n_tests: int) -> int:
    """Enough to reach the paper's class P < .0001 after correction."""
    return max(PERMUTATIONS, 10_001 * n_tests)


def compare_runs(
    first: WindowScores,
    second: WindowScores,
    scores: Sequence[str] | None = None,
    *,
    permutations: int | None = None,
    bootstraps: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Compare ``second`` with ``first`` on every score both have by the same definition.

    Runs over the same windows are compared window by window: block sign-flip test of the differences.
    Other runs are two samples: whole blocks are dealt anew into two groups. Both two-sided; where block
    lengths differ in the paired case, the longer blocks count. P-values are corrected for the number
    of ``scores``, by default all common ones; DataError where one of them is not comparable.

    Returns
    -------
    dict
        ``result[score]``: ``first`` and ``second`` (means), ``difference`` (second − first),
        ``interval`` (95 %, block bootstrap), ``n`` [first, second] windows, ``p``, ``p_class``,
        ``p_holm``, ``p_holm_class``, ``smallest_p`` and ``smallest_p_holm`` (what they could be at
        best: few blocks cannot give a small one), ``p_t_test`` (the paper's two-sample t-test over
        windows; too small where these depend on one another), ``design`` (``paired`` or
        ``two-sample``), ``better`` (``first``, ``second`` or None). What does not exist is None.
    """
    common = list_comparable(first, second)
    missing = [key for key in scores or () if key not in common]
    if missing or not common:
        differ = ""
        if first.networks != second.networks:
            differ = f"; they were not measured by the same networks ({first.networks[:12]} and {second.networks[:12]})"
        raise DataError(
            f"expected scores of one definition in '{first.name}' and '{second.name}', found none for "
            f"{', '.join(missing) or 'any'}{differ}; evaluate both with the same settings and one foundation"
        )
    names = common if scores is None else scores
    permutations = permutations or enough_permutations(len(names))
    result = {key: _compare(key, first, second, permutations, bootstraps, seed) for key in names}
    apply_holm(result.values())
    return result


def _compare(
    key: str, first: WindowScores, second: WindowScores, permutations: int, bootstraps: int, seed: int
) -> dict[str, Any]:
    paired = first.truth == second.truth and len(first.block) == len(second.block)
    rng = make_rng(seed, key)
    known_a, known_b = first.known(key), second.known(key)
    if paired:
        known_a = known_b = known_a & known_b
    a = first.values[key][known_a]
    b = second.values[key][known_b]
    block_a = first.block[known_a]
    block_b = second.block[known_b]
    n_a, n_b = (len(np.unique(block)) for block in (block_a, block_b))
    entry: dict[str, Any] = dict.fromkeys(
        ("first", "second", "difference", "p", "p_class", "p_holm", "p_holm_class", "smallest_p", "smallest_p_holm",
         "p_t_test", "better")
    )  # fmt: skip
    entry |= {"interval": [None, None], "n": [len(a), len(b)], "design": "paired" if paired else "two-sample"}
    if not len(a) or not len(b):
        return entry
    if paired:
        block = block_a if n_a <= n_b else block_b
        p = statistics.block_permutation_p(b - a, block, permutations, rng, "two-sided")
        interval = statistics.block_bootstrap_interval(b - a, block, bootstraps, rng)
        smallest = statistics.smallest_p(min(n_a, n_b), None, permutations)
    else:
        p = statistics.two_sample_block_p((b, block_b), (a, block_a), permutations, rng)
        interval = statistics.two_sample_bootstrap_interval((b, block_b), (a, block_a), bootstraps, rng)
        smallest = statistics.smallest_p(n_b, n_a, permutations)
    difference = float(b.mean() - a.mean())
    higher = first.scores[key].higher_is_better
    if higher is not None and difference != 0:
        entry["better"] = "second" if (difference > 0) == higher else "first"
    return entry | {
        "first": float(a.mean()),
        "second": float(b.mean()),
        "difference": difference,
        "interval": [finite(end) for end in interval],
        "p": p,
        "p_class": statistics.p_class(p),
        "smallest_p": smallest,
        "p_t_test": finite(_t_test(a, b)),
    }


def _t_test(a: np.ndarray, b: np.ndarray) -> float:
    """The paper's two-sided P; NaN where neither side varies beyond rounding."""
    size = 1e-12 * max(np.abs(a).max(), np.abs(b).max())
    if min(len(a), len(b)) < 2 or max(np.ptp(a), np.ptp(b)) <= size:
        return math.nan
    with warnings.catch_warnings():
        # One constant side is no loss of precision where the other varies.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ttest_ind(b, a).pvalue)


def apply_holm(entries: Iterable[dict[str, Any]]) -> None:
    """Holm's correction over these entries, in place of any earlier one."""
    tested = [entry for entry in entries if entry["p"] is not None]
    for entry, p in zip(tested, statistics.holm(np.array([entry["p"] for entry in tested])), strict=True):
        entry |= {"p_holm": float(p), "p_holm_class": statistics.p_class(float(p))}
        entry["smallest_p_holm"] = min(1.0, len(tested) * entry["smallest_p"])


def smallest_p_holm(comparisons: Iterable[Mapping[str, Mapping[str, Any]]]) -> float | None:
    """The smallest corrected P that any score could have; None without a test."""
    known = [entry["smallest_p_holm"] for found in comparisons for entry in found.values()]
    return min((p for p in known if p is not None), default=None)


def compare_all(folders: Mapping[str, Sequence[Path]], scores: Sequence[str] | None = None) -> dict[str, Any]:
    """Compare every two methods, given by name with a folder per seed.

    Returns
    -------
    dict
        ``pairs[first][second]``, what `compare_runs` finds, and ``untested``: why a method, two of
        them, or some of their scores could not be compared.
    """
    pairs: dict[str, dict[str, Comparison]] = {}
    untested, read = {}, []
    for name, own in folders.items():
        try:
            read.append(read_seeds(own, name))
        except DataError as error:
            untested[name] = str(error)
    for first, second in combinations(read, 2):
        both = f"{first.name} and {second.name}"
        shared = [key for key in first.values if key in second.values and (scores is None or key in scores)]
        common = [key for key in list_comparable(first, second) if key in shared]
        if n_other := len(shared) - len(common):
            untested[both] = (
                f"{n_other} of their scores are of another definition or were measured by other networks; evaluate both "
                "with the same settings and one foundation"
            )
        if common:
            pairs.setdefault(first.name, {})[second.name] = compare_runs(first, second, common)
        else:
            untested.setdefault(both, "they have no score in common")
    return {"pairs": pairs, "untested": untested}


def comparison_rows(
    runs: Sequence[WindowScores], comparisons: Mapping[str, Comparison], scores: Sequence[str]
) -> list[list[str]]:
    """Like the paper's Table 1: a row per run, the reference first, a column per score."""
    rows = [["run", *scores]]
    for run in runs:
        found = comparisons.get(run.name, {})
        cells = [(run.over_seeds(key), found.get(key, {}).get("p_holm_class")) for key in scores]
        rows.append(
            [run.name, *(f"{write_score(own['value'], own['sd'])} {p_class or ''}".strip() for own, p_class in cells)]
        )
    return rows


def compare_folders(
    folders: Sequence[Path], out: Path, scores: Sequence[str] | None = None, seeds: int = 1
) -> list[list[str]]:
    """Compare evaluations with the first, each pooled over its seeds; returns the rows.

    Writes ``comparison.json``, ``.csv`` and ``.tex`` into ``out``.
    """
    if len(folders) < 2:
        raise DataError(f"expected two or more evaluations to compare, found {len(folders)}")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"expected different evaluations, found one twice among {', '.join(names)}")
    runs = [read_seeds(seed_folders(folder, seeds), name) for folder, name in zip(folders, names, strict=True)]
    first, *others = runs
    comparisons = {other.name: compare_runs(first, other, scores) for other in others}
    shown = [key for key in first.values if all(key in found for found in comparisons.values())]
    details = {
        "first": first.name,
        "classes": "p_holm over scores",
        "smallest_p_holm": smallest_p_holm(comparisons.values()),
        "seeds": {run.name: {key: run.over_seeds(key) for key in shown} for run in runs} if seeds > 1 else {},
        "runs": comparisons,
    }
    rows = comparison_rows(runs, comparisons, shown)
    write_tables(out / "comparison", details, rows, rows)
    return rows
