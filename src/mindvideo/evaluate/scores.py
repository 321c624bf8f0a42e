"""The evaluate stage: every score of every window beside its controls, with intervals, chance and P-values."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from mindvideo.config import Evaluate
from mindvideo.data.disk import disk_errors, write_text
from mindvideo.data.store import Store
from mindvideo.data.windows import block_numbers
from mindvideo.errors import DataError
from mindvideo.evaluate import attributes, measure, retrieval, semantic, statistics
from mindvideo.evaluate.attributes import ATTRIBUTES
from mindvideo.evaluate.audit import audit_store
from mindvideo.evaluate.catalogue import ScoreInfo, describe_score, n_way_name, retrieval_names, score_names
from mindvideo.evaluate.controls import DEFINITIONS, role_of
from mindvideo.evaluate.pixel import frame_change
from mindvideo.evaluate.tables import table_rows, write_evaluation
from mindvideo.models.foundation import Foundation
from mindvideo.stages import StageContext

__all__ = ["Evaluation", "audit_store", "evaluate_clips", "run", "table_rows", "write_evaluation", "write_text"]

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
        baseline or ceiling}, ``truth`` (the truth's own value where it has one), ``way_to_caption`` and
        ``way_to_caption_interval`` (how far the reconstruction comes on the way from ``shuffled``, 0, to ``caption``, 1),
        ``definition``, ``used_by``, ``unit``, ``range``, ``higher_is_better``. What does not exist is None.
    windows : dict
        ``windows[score][set]``: value of every window, float64 (n,), NaN where undefined.
    truth, networks : str
        Fingerprints of the true clips and of the networks that measured.
    """

    scores: dict[str, dict[str, Any]]
    windows: dict[str, dict[str, np.ndarray]]
    truth: str
    networks: str


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
        if name in (n_way_name("image", n_way, settings.top_k), n_way_name("video", n_way, settings.top_k)):
            return semantic.chance_n_way(n_way, settings.top_k)
    for kind in ("image", "video"):
        if found := retrieval_names(kind, settings, n).get(name):
            return found[0] / found[1]
    return None


def _way(
    values: Mapping[str, np.ndarray],
    own: np.ndarray,
    sign: float,
    block: np.ndarray,
    settings: Evaluate,
    rng: np.random.Generator,
) -> tuple[float | None, list[float | None]]:
    """Fraction of the way from the shuffled control to the caption ceiling, and its interval."""
    if "shuffled" not in values or "caption" not in values:
        return None, [None, None]
    low_end, high_end = sign * values["shuffled"], sign * values["caption"]
    way, low, high = statistics.fraction_of_way(sign * own, low_end, high_end, block, settings.bootstraps, rng)
    return _number(way), [_number(low), _number(high)]


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
    sign = -1.0 if info.higher_is_better is False else 1.0
    way: tuple[float | None, list[float | None]] = (None, [None, None])
    if info.higher_is_better is not None:
        way = _way(values, own, sign, block, settings, _rng(seed, name, "way"))
    for other in others:
        difference = (own - values[other]) * sign
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
        "way_to_caption": way[0],
        "way_to_caption_interval": way[1],
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
    world: attributes.World | None = None,
    captioner: measure.Captioner | None = None,
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
        Windows that are permuted and resampled together, see `data.windows.block_numbers`.
    settings : Evaluate, optional
        N, K, permutations, bootstraps.
    seed : int
        Of permutations, bootstraps and chance pairings.
    scene : ndarray, int (n,), optional
        Chance compares clips of different scenes only; without it, of different windows.
    world : attributes.World, optional
        True attributes of a simulated subject's windows; adds the scores of `attributes.ATTRIBUTES`.
    captioner : Captioner, optional
        Adds the scores of captions.
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
        return measure.extract_features(clips, classifier, cache, tell(name), captioner)

    true_features = features_of(TRUTH, truth)
    windows: dict[str, dict[str, np.ndarray]] = {}
    main_features = true_features
    for key in [main, *(key for key in sets if key != main)]:
        features = features_of(key, sets[key])
        main_features = features if key == main else main_features
        values = measure.measure_pixels(sets[key], truth) | measure.measure_features(features, true_features, settings)
        values |= attributes.measure_attributes(features, world) if world is not None else {}
        for name, value in values.items():
            windows.setdefault(name, {})[key] = value
    for name, value in _truths_own(truth, true_features, world).items():
        windows[name][TRUTH] = value
    names = [
        *score_names(settings, n, n_frames, captioner is not None),
        *(name for name in windows if name in ATTRIBUTES),
    ]
    windows = {name: windows[name] for name in names}
    infos = {name: ATTRIBUTES.get(name) or describe_score(name, n) for name in names}
    scores = {name: _entry(name, infos[name], windows[name], main, block, settings, seed) for name in names}
    _add_chance(scores, sets[main], truth, (main_features, true_features), block, scene, world, settings, seed)
    _add_holm(scores)
    return Evaluation(scores, windows, measure.fingerprint(truth, TRUTH), classifier.identity)


def _truths_own(truth: np.ndarray, features: measure.Features, world: attributes.World | None) -> dict[str, np.ndarray]:
    """Values of the true clips for scores that are no comparison with the truth, or that the classifiers limit."""
    own = {} if world is None else attributes.measure_attributes(features, world)
    if truth.shape[1] > 1:
        own["frame_change"] = frame_change(truth)
        # a clip is like itself, so the gate of the other is open
        own["consistency"] = own["consistency_gated"] = retrieval.adjacent_consistency(features.embeddings)
    return own


def _add_chance(
    scores: dict[str, dict[str, Any]],
    clips: Any,
    truth: np.ndarray,
    features: tuple[measure.Features, measure.Features],
    block: np.ndarray,
    scene: np.ndarray | None,
    world: attributes.World | None,
    settings: Evaluate,
    seed: int,
) -> None:
    """Chance on this very test set and the P-value of the pairing, from every prediction against every truth."""
    n = len(truth)
    allowed = measure.allowed_pairs(scene, n)
    sampled = measure.measure_chance(clips, truth, allowed, _rng(seed, "chance"))
    for name, entry in scores.items():
        if name in ATTRIBUTES and world is not None:
            entry["chance_closed_form"] = attributes.closed_form_chance(name, world)
            pairs = attributes.pairwise_attributes(name, features[0], world)
        else:
            pairs = measure.pairwise_scores(name, *features, settings)
        if pairs is None:
            entry["chance"] = _number(sampled.get(name))
            continue
        known = np.isfinite(np.diag(pairs))
        pairs, others = pairs[np.ix_(known, known)], allowed[np.ix_(known, known)]
        entry["chance"] = _number(float(pairs[others].mean())) if others.any() else None
        if known.any():
            rng = _rng(seed, name, "pairing")
            entry["p_chance"] = statistics.block_pairing_p(pairs, block[known], settings.permutations, rng)


def _read_windows(path: Path, n: int) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"expected the list of reconstructed windows at {path}, found none; run reconstruct first")
    windows = json.loads(path.read_text())
    if len(windows) != n:
        raise DataError(f"expected {n} windows in {path}, as many as there are clips, found {len(windows)}")
    return windows


def run(context: StageContext) -> None:
    """Score ``RUN/reconstruct/clips.zarr`` and write ``RUN/evaluate``.

    Blocks are made anew from ``evaluate.block_s``, so that another block length needs no new reconstructions.

    Raises
    ------
    DataError
        When there are no reconstructions, or their list of windows does not fit them.
    """
    recipe, run_dir, folder, progress = context
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
    store = Store.open(run_dir / "prepare" / "store.zarr")
    foundation = Foundation(recipe.foundation, "cuda" if torch.cuda.is_available() else "cpu")
    captioner, left_out = choose_captioner(foundation, recipe.evaluate)
    world = None
    if recipe.simulate is not None:
        try:
            world = attributes.read_world(
                run_dir / "simulate" / "truth" / "scenes.json", windows, foundation,
                train_segments=[*store.segments("train"), *store.segments("validation")], tr_s=store.tr_s, fps=store.fps,
                stored_frames=store.num_frames, n_frames=truth.shape[1],
            )  # fmt: skip
        except attributes.NoPairsError as error:
            left_out["attributes"] = str(error)
    evaluation = evaluate_clips(
        sets,
        truth,
        foundation,
        block=block,
        settings=recipe.evaluate,
        seed=recipe.seed,
        scene=np.array([window["scene"] for window in windows]),
        world=world,
        captioner=captioner,
        cache_dir=folder / "features",
        progress=progress,
    )
    audit = audit_store(store, sorted(set(segment.tolist())))
    if world is not None:
        content = attributes.summarise_attributes(evaluation.scores, world)
        if "frame_change" in evaluation.windows:  # a single frame does not change
            content["frame_change_uncut"] = attributes.uncut_frame_change(evaluation.windows["frame_change"], world)
        audit["attributes.json"] = json.dumps(content, indent=1, allow_nan=False)
    about = {
        "settings": recipe.evaluate.model_dump(mode="json"),
        "seed": recipe.seed,
        "sets": {name: DEFINITIONS.get(name, "") for name in sets},
        "left_out": left_out,
    }
    with disk_errors(folder, "the scores"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in audit.items():
            write_text(folder / name, text)
        write_evaluation(evaluation, folder, windows, block, about)


def choose_captioner(foundation: Foundation, settings: Evaluate) -> tuple[Foundation | None, dict[str, str]]:
    """The foundation where caption scores are wanted and it has a captioner, and what is left out with the reason."""
    if settings.captions and not (foundation.folder / "captioner").is_dir():
        return None, {"captions": f"the foundation {foundation.folder.name} has no part 'captioner'"}
    return (foundation, {}) if settings.captions else (None, {"captions": "evaluate.captions is false"})
