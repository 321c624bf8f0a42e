"""The evaluate stage: every score of every window beside its controls, with intervals, chance and P-values."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo.config import Evaluate, Recipe
from mindvideo.data.disk import disk_errors
from mindvideo.data.store import Store
from mindvideo.data.windows import near_duplicates
from mindvideo.errors import DataError
from mindvideo.evaluate import measure, semantic, statistics
from mindvideo.evaluate.catalogue import ScoreInfo, describe_score, score_names
from mindvideo.evaluate.controls import block_numbers, noise_ceiling, role_of
from mindvideo.models.foundation import Foundation

MAIN = "reconstruction"
TRUTH = "truth"


@dataclass(frozen=True)
class Evaluation:
    """Scores of one set of clips.

    Attributes
    ----------
    scores : dict
        One entry a score, as written to ``scores.json``: ``value``, ``interval`` [low, high] (95 %, block bootstrap),
        ``n`` windows, ``chance`` (on this test set), ``chance_closed_form``, ``p_chance`` (block permutation of the
        pairing), ``controls`` {name: value}, ``control_intervals``, ``p`` {control: P} (one-sided block sign-flip test
        that the reconstruction is better), ``p_holm`` (the same, Holm over all scores), ``roles`` {name: control,
        baseline or ceiling}, ``truth`` (the truth's own value where it has one), ``definition``, ``used_by``, ``unit``,
        ``range``, ``higher_is_better``. What does not exist is None.
    windows : dict
        ``windows[score][set]``: value of every window, float64 (n,), NaN where undefined.
    """

    scores: dict[str, dict[str, Any]]
    windows: dict[str, dict[str, np.ndarray]]


def _rng(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for every purpose, so that adding a score changes no other score's numbers."""
    return np.random.default_rng([seed, zlib.crc32("|".join(words).encode())])


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _interval(
    values: np.ndarray, block: np.ndarray, settings: Evaluate, rng: np.random.Generator
) -> list[float | None]:
    known = np.isfinite(values)
    if not known.any():
        return [None, None]
    low, high = statistics.block_bootstrap_interval(values[known], block[known], settings.bootstraps, rng)
    return [_number(low), _number(high)]


def _mean(values: np.ndarray) -> float | None:
    known = np.isfinite(values)
    return float(values[known].mean()) if known.any() else None


def _closed_form_chance(name: str, n: int, settings: Evaluate) -> float | None:
    for n_way in settings.n_ways:
        if name.startswith((f"image_{n_way}way", f"video_{n_way}way")):
            return semantic.chance_n_way(n_way, settings.top_k)
    return int(name.removeprefix("retrieval_top")) / n if name.startswith("retrieval_top") else None


def _entry(
    name: str,
    info: ScoreInfo,
    values: Mapping[str, np.ndarray],
    main: str,
    block: np.ndarray,
    settings: Evaluate,
    seed: int,
) -> dict[str, Any]:
    """Value, interval, controls and P-values of one score from its values by window and set."""
    own = values[main]
    others = [key for key in values if key not in (main, TRUTH)]
    p_values = {}
    for other in others:
        difference = (own - values[other]) * (-1.0 if info.higher_is_better is False else 1.0)
        known = np.isfinite(difference)
        if info.higher_is_better is not None and role_of(other) != "ceiling" and known.any():
            rng = _rng(seed, name, other, "p")
            p_values[other] = statistics.block_permutation_p(
                difference[known], block[known], settings.permutations, rng
            )
    return {
        "value": _mean(own),
        "interval": _interval(own, block, settings, _rng(seed, name, main)),
        "n": int(np.isfinite(own).sum()),
        "chance": None,
        "chance_closed_form": _closed_form_chance(name, len(own), settings),
        "p_chance": None,
        "controls": {other: _mean(values[other]) for other in others},
        "control_intervals": {
            other: _interval(values[other], block, settings, _rng(seed, name, other)) for other in others
        },
        "p": p_values,
        "p_holm": {},
        "roles": {other: role_of(other) for other in others},
        "truth": _mean(values[TRUTH]) if TRUTH in values else None,
        "definition": info.definition,
        "used_by": info.used_by,
        "unit": info.unit,
        "range": [info.low, info.high],
        "higher_is_better": info.higher_is_better,
    }


def _add_holm(scores: dict[str, dict[str, Any]]) -> None:
    """Adjust the P-values against each control for the number of scores looked at."""
    for other in sorted({other for entry in scores.values() for other in entry["p"]}):
        names = [name for name, entry in scores.items() if other in entry["p"]]
        adjusted = statistics.holm(np.array([scores[name]["p"][other] for name in names]))
        for name, value in zip(names, adjusted, strict=True):
            scores[name]["p_holm"][other] = float(value)


def _check_sets(sets: Mapping[str, Any], truth: Any, block: np.ndarray, main: str) -> None:
    measure.check_clips(TRUTH, truth)
    if main not in sets:
        raise DataError(f"expected a set of clips named '{main}', found {', '.join(sets) or 'none'}")
    for name, clips in sets.items():
        if name == TRUTH:
            raise DataError(f"expected the truth as an argument of its own, found it among the sets as '{TRUTH}'")
        measure.check_clips(name, clips, truth.shape)
    if np.shape(block) != (truth.shape[0],):
        raise DataError(
            f"expected one block number for each of {truth.shape[0]} windows, found shape {np.shape(block)}"
        )


def evaluate_clips(
    sets: Mapping[str, Any],
    truth: Any,
    classifier: measure.Classifier,
    *,
    block: np.ndarray,
    settings: Evaluate | None = None,
    seed: int = 0,
    scene: np.ndarray | None = None,
    main: str = MAIN,
    cache_dir: Path | None = None,
    progress: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> Evaluation:
    """Score anyone's clips against the truth, beside any number of control sets.

    Parameters
    ----------
    sets : mapping of str to array, uint8 (n, F, H, W, 3)
        The clips to score under the name ``main``, and controls under the names of `controls.ROLES` or others. zarr
        arrays are read piece by piece.
    truth : array, uint8 (n, F, H, W, 3)
    classifier : Classifier
        Frozen networks, for example a ``Foundation``.
    block : ndarray, int (n,)
        Windows that are permuted and resampled together, see `controls.block_numbers`.
    settings : Evaluate, optional
        N, K, permutations, bootstraps.
    seed : int
        Of permutations, bootstraps and chance pairings.
    scene : ndarray, int (n,), optional
        Chance compares clips of different scenes only; without it, of different windows.
    main : str
    cache_dir : Path, optional
        Features are kept here, one file a set, and used again for the same clips and networks.
    progress : callable, optional
        Called with (windows done, windows in all sets, {"set": name}).

    Returns
    -------
    Evaluation

    Raises
    ------
    DataError
        For clips of another type or shape, or a missing main set.
    SettingError
        For an N-way test with more ways than the classifier has classes.
    """
    settings = settings or Evaluate.model_validate({})
    block = np.asarray(block)
    _check_sets(sets, truth, block, main)
    n, n_frames = truth.shape[:2]
    truth = np.asarray(truth[:])
    total, done = n * (len(sets) + 1), 0

    def tell(name: str) -> Callable[[int], None]:
        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(done, total, {"set": name})

        return advance

    def features_of(name: str, clips: Any) -> measure.Features:
        cache = cache_dir / f"{name}.safetensors" if cache_dir is not None else None
        return measure.extract_features(clips, classifier, cache, tell(name))

    true_features = features_of(TRUTH, truth)
    names = score_names(settings, n, n_frames)
    windows: dict[str, dict[str, np.ndarray]] = {name: {} for name in names}
    main_features = true_features
    for key in [main, *(key for key in sets if key != main)]:
        features = features_of(key, sets[key])
        main_features = features if key == main else main_features
        values = measure.measure_pixels(sets[key], truth) | measure.measure_features(features, true_features, settings)
        for name in names:
            windows[name][key] = values[name]
    if "consistency" in windows:
        windows["consistency"][TRUTH] = measure.measure_features(true_features, true_features, settings)["consistency"]
    scores = {name: _entry(name, describe_score(name, n), windows[name], main, block, settings, seed) for name in names}
    allowed = measure.allowed_pairs(scene, n)
    chance = measure.measure_chance(sets[main], truth, allowed, _rng(seed, "chance"))
    for name in names:
        pairs = measure.pairwise_scores(name, main_features, true_features, settings)
        if pairs is not None:
            scores[name]["chance"] = float(pairs[allowed].mean()) if allowed.any() else None
            rng = _rng(seed, name, "pairing")
            scores[name]["p_chance"] = statistics.block_pairing_p(pairs, block, settings.permutations, rng)
        else:
            scores[name]["chance"] = _number(chance.get(name))
    _add_holm(scores)
    return Evaluation(scores, windows)


def table_rows(scores: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The scores as a table of strings, header first: score, value, interval, n, chance, then one column a control.

    A control's cell shows its value and, where tested, the paper's P-value class; ceilings show the value alone.
    """
    others = list(dict.fromkeys(other for entry in scores.values() for other in entry["controls"]))
    roles = {other: entry["roles"][other] for entry in scores.values() for other in entry["controls"]}
    rows = [["score", "value", "95% interval", "n", "chance", *(f"{other} ({roles[other]})" for other in others)]]
    for name, entry in scores.items():
        arrow = {True: " ↑", False: " ↓", None: ""}[entry["higher_is_better"]]
        low, high = entry["interval"]
        row = [name + arrow, _text(entry["value"]), f"{_text(low)} – {_text(high)}", str(entry["n"])]
        row.append(_text(entry["chance"]) if entry["truth"] is None else f"truth {_text(entry['truth'])}")
        for other in others:
            cell = _text(entry["controls"].get(other))
            row.append(f"{cell} {statistics.p_class(entry['p'][other])}" if other in entry["p"] else cell)
        rows.append(row)
    return rows


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _latex(rows: Sequence[Sequence[str]]) -> str:
    replacements = {"_": r"\_", "%": r"\%", "<": "$<$", ">": "$>$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--"}

    def line(row: Sequence[str]) -> str:
        return " & ".join("".join(replacements.get(letter, letter) for letter in cell) for cell in row) + r" \\"

    columns = "l" + "r" * (len(rows[0]) - 1)
    body = [line(rows[0]), r"\hline", *(line(row) for row in rows[1:])]
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}", ""])


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _window_rows(evaluation: Evaluation, windows: Sequence[Mapping[str, Any]], block: np.ndarray) -> list[list[Any]]:
    columns = [(name, key) for name, sets in evaluation.windows.items() for key in sets]
    header = ["window", "segment", "scan", "scene", "block", "caption"]
    header += [name if key == MAIN else f"{name}:{key}" for name, key in columns]
    rows: list[list[Any]] = [header]
    for i, window in enumerate(windows):
        values = [evaluation.windows[name][key][i] for name, key in columns]
        place = [i, window["segment"], window["scan"], window["scene"], int(block[i]), window.get("caption", "")]
        rows.append([*place, *("" if not np.isfinite(value) else repr(float(value)) for value in values)])
    return rows


def write_text(path: Path, text: str) -> None:
    """Write beside the place, flush, rename: a reader never sees half a file."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(beside, path)


def write_evaluation(
    evaluation: Evaluation, folder: Path, windows: Sequence[Mapping[str, Any]], block: np.ndarray
) -> None:
    """Write ``windows.csv``, ``scores.csv``, ``scores.tex`` and, last, ``scores.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = table_rows(evaluation.scores)
    write_text(folder / "windows.csv", _csv(_window_rows(evaluation, windows, block)))
    write_text(folder / "scores.csv", _csv(rows))
    write_text(folder / "scores.tex", _latex(rows))
    write_text(folder / "scores.json", json.dumps(evaluation.scores, indent=1, allow_nan=False))


def _read_windows(path: Path, n: int) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"expected the list of reconstructed windows at {path}, found none; run reconstruct first")
    windows = json.loads(path.read_text())
    if len(windows) != n:
        raise DataError(f"expected {n} windows in {path}, as many as there are clips, found {len(windows)}")
    return windows


def audit_store(store: Store, segments: Sequence[str]) -> dict[str, str]:
    """What bounds the scores on the data's side, as texts of files by name.

    ``noise_ceiling.json``: median and quartiles over voxels of each segment that has repeated runs;
    ``near_duplicates.json``: test scans that look like training scans, and how many test scans there are.
    """
    ceilings = {}
    for segment in segments:
        repeats = store.repeats(segment)
        if len(repeats) > 1:
            low, middle, high = np.quantile(noise_ceiling(repeats), [0.25, 0.5, 0.75])
            ceilings[segment] = {"runs": len(repeats), "median": middle, "quartiles": [low, high]}
    pairs = [asdict(pair) for pair in near_duplicates(store)]
    n_scans = sum(store.n_scans(segment) for segment in store.segments("test"))
    return {
        "noise_ceiling.json": json.dumps(ceilings, indent=1),
        "near_duplicates.json": json.dumps({"count": len(pairs), "test_scans": n_scans, "pairs": pairs}, indent=1),
    }


def run(recipe: Recipe, run_dir: Path, progress: Callable[[int, int, dict[str, Any]], None] | None = None) -> None:
    """Score ``RUN/reconstruct/clips.zarr`` and write ``RUN/evaluate``.

    Blocks are made anew from ``evaluate.block_s``, so that another block length needs no new reconstructions.

    Raises
    ------
    DataError
        When there are no reconstructions, or their list of windows does not fit them.
    """
    source = run_dir / "reconstruct"
    if not (source / "clips.zarr").is_dir():
        raise DataError(f"expected reconstructions at {source / 'clips.zarr'}, found none; run reconstruct first")
    group = zarr.open_group(source / "clips.zarr", mode="r")
    if not group.attrs.get("complete", True):
        raise DataError(
            f"expected finished reconstructions in {source / 'clips.zarr'}, found some not finished; run reconstruct again"
        )
    names: Any = group.attrs.get("names") or sorted(group.array_keys())
    sets: dict[str, Any] = {name: group[name] for name in names if name != TRUTH}
    if TRUTH not in group:
        raise DataError(f"expected an array '{TRUTH}' in {source / 'clips.zarr'}, found {sorted(sets)}")
    truth: Any = group[TRUTH]
    windows = _read_windows(source / "windows.json", truth.shape[0])
    block_scans = max(1, round(recipe.evaluate.block_s / recipe.data.tr_s))
    segment = np.array([window["segment"] for window in windows])
    block = block_numbers(segment, np.array([window["scan"] for window in windows]), block_scans)
    folder = run_dir / "evaluate"
    evaluation = evaluate_clips(
        sets,
        truth,
        Foundation(recipe.foundation),
        block=block,
        settings=recipe.evaluate,
        seed=recipe.seed,
        scene=np.array([window["scene"] for window in windows]),
        cache_dir=folder / "features",
        progress=progress,
    )
    audit = audit_store(Store.open(run_dir / "prepare" / "store.zarr"), sorted(set(segment.tolist())))
    with disk_errors(folder, "the scores"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in audit.items():
            write_text(folder / name, text)
        write_evaluation(evaluation, folder, windows, block)
