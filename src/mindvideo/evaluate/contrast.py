"""Two runs, two subjects or two methods compared score by score, as in the paper's Table 1.

The paper compares with a two-sample t-test over windows, which takes neighbouring two-second windows as independent.
Here whole blocks of consecutive windows are exchanged; the t-test's P is given beside it, so that both can be read.
"""

from __future__ import annotations

import csv
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import ttest_ind

from mindvideo.data.disk import write_text
from mindvideo.errors import DataError
from mindvideo.evaluate import statistics
from mindvideo.evaluate.score import NETWORKS, ScoreResult
from mindvideo.evaluate.tables import csv_table, latex_table, number, read_scores

PLACE_COLUMNS = ("window", "segment", "scan", "scene", "block", "caption")
PERMUTATIONS = 20_000
"""Least number; more are drawn where P is corrected for several tests, see `enough_permutations`."""

Design = Literal["paired", "two-sample"]


@dataclass(frozen=True)
class WindowScores:
    """Scores of every window of one evaluated run, without its controls.

    Attributes
    ----------
    truth : str
        Fingerprint of the true clips: equal for two runs only where they reconstruct the very same windows.
    networks : str
        Identity of the frozen networks that measured.
    block : ndarray, int (n,)
    values : dict of str to ndarray, float64 (n,)
        NaN where a score is undefined for a window.
    scores : dict of str to ScoreResult
        What each of ``values`` is.
    """

    name: str
    truth: str
    networks: str
    block: np.ndarray
    values: dict[str, np.ndarray]
    scores: dict[str, ScoreResult]

    def mean(self, score: str) -> float | None:
        """Mean over the windows that have a value; None where none has."""
        known = self.values[score][np.isfinite(self.values[score])]
        return float(known.mean()) if len(known) else None


def _read_json(path: Path, read: Callable[[Path], Any] = lambda path: json.loads(path.read_text())) -> Any:
    if not path.is_file():
        raise DataError(
            f"expected {path.name} of a finished evaluation at {path}, found none; run 'mindvideo evaluate'"
        )
    try:
        return read(path)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        raise DataError(f"expected JSON in {path}, found something else; run 'mindvideo evaluate' again") from None


def read_window_scores(folder: Path, name: str | None = None) -> WindowScores:
    """Read what ``mindvideo evaluate`` wrote: ``windows.csv``, ``scores.json`` and ``evaluation.json``.

    Parameters
    ----------
    folder : Path
        A run folder, or the folder an evaluation was written to.
    name : str, optional
        The folder's own name by default.

    Raises
    ------
    DataError
        Where a file is missing or damaged, naming it.
    """
    place = folder / "evaluate" if (folder / "evaluate").is_dir() else folder
    scores, about = _read_json(place / "scores.json", read_scores), _read_json(place / "evaluation.json")
    path = place / "windows.csv"
    if not path.is_file():
        raise DataError(f"expected the scores of every window at {path}, found none; run 'mindvideo evaluate' again")
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    try:
        columns = [key for key in rows[0] if key not in PLACE_COLUMNS and ":" not in key]
        values = {key: np.array([float(row[key] or "nan") for row in rows]) for key in columns}
        block = np.array([int(row["block"]) for row in rows])
        known = {key: scores[key] for key in columns}
        return WindowScores(name or folder.resolve().name, about["truth"], about["networks"], block, values, known)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise DataError(
            f"expected {path} and scores.json of one evaluation, found files that do not fit ({error}); "
            "run 'mindvideo evaluate' again"
        ) from None


def name_seed(name: str, seed: int, first: int) -> str:
    """``NAME``, and ``NAME-seedN`` for every seed but the first: how ``--seeds`` calls run folders."""
    return name if seed == first else f"{name}-seed{seed}"


def seed_folders(run_dir: Path, seeds: int) -> list[Path]:
    """A run's folder and those of its other seeds beside it, so many in all; DataError where there are fewer."""
    run_dir = run_dir.resolve()
    names = (re.fullmatch(re.escape(run_dir.name) + r"-seed(\d+)", path.name) for path in run_dir.parent.iterdir())
    others = sorted(int(found[1]) for found in names if found)
    if seeds > 1 + len(others):
        raise DataError(
            f"expected {seeds} seeds of {run_dir}, found {1 + len(others)} (NAME-seedN beside it); give --seeds "
            f"{1 + len(others)}, or run the others: mindvideo run RECIPE --out {run_dir} --seeds {seeds}"
        )
    return [run_dir, *(run_dir.with_name(f"{run_dir.name}-seed{number}") for number in others[: seeds - 1])]


def pool_seeds(runs: Sequence[WindowScores]) -> WindowScores:
    """The runs of several seeds as one: averaged window by window where they reconstruct the same windows.

    Seeds of a simulated dataset are other subjects who saw other films; their windows are put one after another, and no
    block holds windows of two seeds.
    """
    first = runs[0]
    if len(runs) == 1:
        return first
    if all(run.truth == first.truth for run in runs):
        values = {key: np.mean([run.values[key] for run in runs], axis=0) for key in first.values}
        truth, block = first.truth, first.block
    else:
        values = {key: np.concatenate([run.values[key] for run in runs]) for key in first.values}
        truth, offset, blocks = "+".join(run.truth for run in runs), 0, []
        for run in runs:
            blocks.append(run.block - run.block.min() + offset)
            offset = int(blocks[-1].max()) + 1
        block = np.concatenate(blocks)
    return WindowScores(first.name, truth, first.networks, block, values, first.scores)


def over_seeds(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean, and standard deviation where there are two seeds or more."""
    known = [value for value in values if value is not None]
    return {
        "value": float(np.mean(known)) if known else None,
        "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        "seeds": list(values),
    }


def is_paired(first: WindowScores, second: WindowScores) -> bool:
    """Whether both reconstruct the same windows of the same films, so that they can be compared window by window."""
    return first.truth == second.truth and len(first.block) == len(second.block)


def _is_same_score(key: str, first: WindowScores, second: WindowScores) -> bool:
    """Whether both have the score by one definition and, where it needs a network, by the same networks."""
    needs_network = first.scores[key].needs in NETWORKS
    is_same_network = first.networks == second.networks or not needs_network
    return first.scores[key].definition == second.scores[key].definition and is_same_network


def enough_permutations(n_tests: int) -> int:
    """So many that the paper's most significant class, P < .0001, can be reached after correction for ``n_tests``."""
    return max(PERMUTATIONS, 10_001 * n_tests)


def compare_runs(
    first: WindowScores,
    second: WindowScores,
    scores: Sequence[str] | None = None,
    *,
    permutations: int | None = None,
    bootstraps: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare ``second`` with ``first`` (the full model) on every score both have by the same definition.

    Runs over the same windows – other settings on one subject, or subjects who saw the same films – are compared window
    by window: block sign-flip test of the differences. Other runs are two samples: whole blocks are dealt anew into two
    groups. Both two-sided; where block lengths differ in the paired case, the longer blocks count.

    Parameters
    ----------
    scores : sequence of str, optional
        Which scores; P-values are corrected for their number. All common ones by default.
    permutations : int, optional
        `enough_permutations` for the number of scores by default.

    Returns
    -------
    dict
        ``result[score]``: ``first`` and ``second`` (means), ``difference`` (second − first), ``interval`` (95 %, block
        bootstrap), ``n`` [first, second] windows, ``p``, ``p_class``, ``p_holm``, ``p_holm_class`` (over these scores),
        ``smallest_p_holm`` (what ``p_holm`` could be at best: few blocks cannot give a small one),
        ``p_t_test`` (the paper's two-sample t-test over windows, for reading the paper's table; too small where windows
        depend on one another), ``design`` (``paired`` or ``two-sample``), ``better`` (``first``, ``second`` or None
        where neither direction is good or the means are equal). What does not exist is None.

    Raises
    ------
    DataError
        When a named score is missing, defined differently or measured by other networks, or no score is comparable.
    """
    common = [key for key in first.values if key in second.values and _is_same_score(key, first, second)]
    missing = [key for key in scores or () if key not in common]
    if missing or not common:
        differ = ""
        if first.networks != second.networks:
            differ = f"; they were not measured by the same networks ({first.networks[:12]} and {second.networks[:12]})"
        raise DataError(
            f"expected scores of one definition in '{first.name}' and '{second.name}', found none for "
            f"{', '.join(missing) or 'any'}{differ}; evaluate both with the same settings and one foundation"
        )
    names = list(scores) if scores is not None else common
    if permutations is None:
        permutations = enough_permutations(len(names))
    result = {key: _compare(key, first, second, permutations, bootstraps, seed) for key in names}
    return _with_holm(result)


def _compare(
    key: str, first: WindowScores, second: WindowScores, permutations: int, bootstraps: int, seed: int
) -> dict[str, Any]:
    paired = is_paired(first, second)
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    a, b = first.values[key], second.values[key]
    known_a, known_b = np.isfinite(a), np.isfinite(b)
    if paired:
        known_a = known_b = known_a & known_b
    a, b = a[known_a], b[known_b]
    block_a, block_b = first.block[known_a], second.block[known_b]
    entry: dict[str, Any] = {
        "first": None, "second": None, "difference": None, "interval": [None, None], "n": [len(a), len(b)],
        "p": None, "p_class": None, "p_holm": None, "p_holm_class": None, "smallest_p_holm": None,
        "p_t_test": None,
        "design": "paired" if paired else "two-sample", "better": None,
    }  # fmt: skip
    if not len(a) or not len(b):
        return entry
    entry |= {"first": float(a.mean()), "second": float(b.mean()), "difference": float(b.mean() - a.mean())}
    if paired:
        block = min(block_a, block_b, key=lambda numbers: len(np.unique(numbers)))
        p = statistics.block_permutation_p(b - a, block, permutations, rng, "two-sided")
        interval = statistics.block_bootstrap_interval(b - a, block, bootstraps, rng)
        smallest = statistics.smallest_p(len(np.unique(block)), None, permutations)
    else:
        p = statistics.two_sample_block_p(b, block_b, a, block_a, permutations, rng)
        interval = statistics.two_sample_bootstrap_interval(b, block_b, a, block_a, bootstraps, rng)
        smallest = statistics.smallest_p(len(np.unique(block_b)), len(np.unique(block_a)), permutations)
    higher = first.scores[key].higher_is_better
    if higher is not None and entry["difference"] != 0:
        entry["better"] = "second" if (entry["difference"] > 0) == higher else "first"
    t_test = float(ttest_ind(b, a).pvalue) if min(len(a), len(b)) > 1 and (np.ptp(a) > 0 or np.ptp(b) > 0) else math.nan
    return entry | {
        "interval": [None if math.isnan(end) else end for end in interval],
        "p": p,
        "p_class": statistics.p_class(p),
        "smallest_p_holm": smallest,
        "p_t_test": None if math.isnan(t_test) else t_test,
    }


def _with_holm(result: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    tested = [key for key, entry in result.items() if entry["p"] is not None]
    adjusted = statistics.holm(np.array([result[key]["p"] for key in tested], dtype=np.float64))
    for key, p in zip(tested, adjusted, strict=True):
        result[key] |= {"p_holm": float(p), "p_holm_class": statistics.p_class(float(p))}
        result[key]["smallest_p_holm"] = min(1.0, len(tested) * result[key]["smallest_p_holm"])
    return result


def smallest_p_holm(comparisons: Iterable[Mapping[str, Mapping[str, Any]]]) -> float | None:
    """The smallest corrected P that any score of these `compare_runs` could have; None where nothing was tested."""
    known = [entry["smallest_p_holm"] for found in comparisons for entry in found.values()]
    return min((p for p in known if p is not None), default=None)


def comparison_rows(
    first: WindowScores,
    comparisons: Mapping[str, Mapping[str, Mapping[str, Any]]],
    scores: Sequence[str],
    spreads: Mapping[str, Mapping[str, float | None]] | None = None,
) -> list[list[str]]:
    """The shape of the paper's Table 1: one row a run, one column a score, header first.

    Parameters
    ----------
    first : WindowScores
        The run all others are compared with; its row comes first.
    comparisons : mapping
        `compare_runs` of each other run, by its name.
    scores : sequence of str
    spreads : mapping, optional
        Standard deviation over seeds of each run and score.
    """

    def cell(name: str, key: str, value: float | None, p_class: str | None = None) -> str:
        spread = (spreads or {}).get(name, {}).get(key)
        words = [number(value), *([f"± {spread:.3f}"] if spread is not None else []), p_class or ""]
        return " ".join(words).strip()

    rows = [["run", *scores], [first.name, *(cell(first.name, key, first.mean(key)) for key in scores)]]
    for name, found in comparisons.items():
        entries = {key: found.get(key) or {"second": None, "p_holm_class": None} for key in scores}
        rows.append([name, *(cell(name, key, own["second"], own["p_holm_class"]) for key, own in entries.items())])
    return rows


def compare_folders(
    folders: Sequence[Path], out: Path, scores: Sequence[str] | None = None, seeds: int = 1
) -> list[list[str]]:
    """Compare evaluations with the first one and write ``comparison.json``, ``.csv`` and ``.tex`` into ``out``.

    With several seeds each is pooled with its other seeds (`seed_folders`, `pool_seeds`), and the spread is shown.

    Returns
    -------
    list of list of str
        The table, see `comparison_rows`.

    Raises
    ------
    DataError
        For fewer than two evaluations, or two of one name, or what `compare_runs` refuses.
    """
    if len(folders) < 2:
        raise DataError(f"expected two or more evaluations to compare, found {len(folders)}")
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    if len(set(names)) < len(names):
        raise DataError(f"expected different evaluations, found one twice among {', '.join(names)}")
    runs = {
        name: [read_window_scores(place, name) for place in (seed_folders(folder, seeds) if seeds > 1 else [folder])]
        for folder, name in zip(folders, names, strict=True)
    }
    first, *others = map(pool_seeds, runs.values())
    comparisons = {other.name: compare_runs(first, other, scores) for other in others}
    shown = [key for key in first.values if all(key in found for found in comparisons.values())]
    over = {name: {key: over_seeds([run.mean(key) for run in own]) for key in shown} for name, own in runs.items()}
    rows = comparison_rows(
        first, comparisons, shown, {name: {key: found[key]["sd"] for key in found} for name, found in over.items()}
    )
    out.mkdir(parents=True, exist_ok=True)
    details = {
        "first": first.name,
        "classes": "p_holm over scores",
        "smallest_p_holm": smallest_p_holm(comparisons.values()),
        "seeds": over if seeds > 1 else {},
        "runs": comparisons,
    }
    write_text(out / "comparison.csv", csv_table(rows))
    write_text(out / "comparison.tex", latex_table(rows))
    write_text(out / "comparison.json", json.dumps(details, indent=1, allow_nan=False))
    return rows
