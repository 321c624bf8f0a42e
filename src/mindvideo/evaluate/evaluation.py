"""The evaluate stage: every score beside its controls, with intervals and P."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from mindvideo import distributed
from mindvideo.clip_sets import WITHOUT_BRAIN
from mindvideo.data.store import Store, person_folders, store_paths
from mindvideo.data.windows import block_numbers
from mindvideo.errors import DataError
from mindvideo.evaluate import attributes, caption_scores, measure, motion, pixel, retrieval, semantic, statistics
from mindvideo.evaluate.aggregate import Design, add_holm, make_rng
from mindvideo.evaluate.audit import audit_store
from mindvideo.evaluate.score import MAIN, NETWORKS, TRUTH, Evaluation, Score, ScoreResult
from mindvideo.evaluate.tables import write_evaluation
from mindvideo.files import link_file, write_json, write_text
from mindvideo.models.foundation import Foundation
from mindvideo.stages import Progress, StageContext, Steps

OTHER_PERSON_SETS = {"shuffled": "other_person", "reconstruction": "same_scene"}
"""Another person's sets of clips, and what they are beside one's own."""
OVER_TIME = "over_time"
"""Key of `Score.over_time` among what an evaluation goes without."""


def list_scores(design: Design) -> list[Score]:
    """Every score of such windows, in the order shown."""
    return [
        *semantic.list_scores(design.settings),
        *pixel.SCORES,
        *retrieval.list_scores(design.settings, len(design.block)),
        *caption_scores.SCORES,
        *motion.SCORES,
        *(attributes.list_scores(design.world) if design.world is not None else ()),
    ]


def _split_scores(
    scores: Sequence[Score], n_frames: int, without: Mapping[str, str]
) -> tuple[list[Score], dict[str, str]]:
    kept, left_out = [], {}
    for score in scores:
        reason = without.get(score.needs) or (without.get(OVER_TIME) if score.over_time else None)
        if n_frames == 1 and (score.over_time or score.needs == "clips"):
            reason = "clips of one frame do not move"
        if reason is None:
            kept.append(score)
        else:
            left_out[score.name] = reason
    return kept, left_out


def evaluate_clips(
    sets: Mapping[str, Any],
    truth: Any,
    networks: Foundation | None,
    design: Design,
    *,
    without: Mapping[str, str] | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score anyone's clips against the truth, beside any number of control sets.

    Parameters
    ----------
    sets : mapping of str to array, uint8 (n, F, H, W, 3)
        The clips to score as ``reconstruction``, and others under the names of
        `mindvideo.clip_sets.CLIP_SETS` or names of their own. zarr arrays are read piece by piece.
    truth : array, uint8 (n, F, H, W, 3)
    networks : Foundation or None
        None leaves out the scores that need a frozen network; anything with the methods asked for
        will do.
    design : Design
        Of the n windows.
    without : mapping of str to str, optional
        What cannot be had (a `score.Needs`, or `OVER_TIME`) and why; the scores that need it are
        left out.
    cache_dir : Path, optional
        What the networks say is kept here, one file per set, and used again for the same clips and
        networks.
    progress : callable, optional
        Called with (windows done, windows in all passes over all sets, {"set": name}).

    Raises
    ------
    DataError
        For clips of another type or shape than the truth's.
    SettingError
        For an N-way test with more ways than the classifier has classes.
    """
    for name, clips in {TRUTH: truth, **sets}.items():
        if clips.dtype != np.uint8 or clips.ndim != 5 or clips.shape != truth.shape:
            raise DataError(
                f"expected uint8 clips (n, F, H, W, 3) in the truth's shape {tuple(truth.shape)} as "
                f"'{name}', found {clips.dtype} {tuple(clips.shape)}"
            )
    n, n_frames = truth.shape[:2]
    truth = np.asarray(truth[:])
    reasons = dict(without or {})
    if networks is None:
        reasons = dict.fromkeys(NETWORKS, "it needs a frozen network and none was given") | reasons
    chosen, left_out = _split_scores(list_scores(design), n_frames, reasons)
    needs = {score.needs for score in chosen}
    everything = {TRUTH: truth, MAIN: sets[MAIN], **sets}
    steps = Steps(progress, n * len(everything) * (1 if networks is None else 2))
    features: dict[str, Any] = {}
    for name, clips in everything.items():
        if networks is None:
            break
        cache = cache_dir / f"{name}.safetensors" if cache_dir is not None else None
        features[name] = measure.extract_features(clips, networks, needs, cache)
        steps.add(n, set=name)
    partners = measure.draw_partners(design.allowed, make_rng(design.seed, "chance"))
    by_frames = [score for score in chosen if score.needs in ("frames", "flow")]
    windows, sampled = measure.measure_frames(
        by_frames, everything, truth, partners, lambda count: steps.add(count, set="frames")
    )
    named = measure.describe_networks(networks, needs) if networks is not None else {}
    results: dict[str, ScoreResult] = {}
    paired: dict[str, np.ndarray] = {}
    for score in chosen:
        if score.needs in NETWORKS:
            true = features[TRUTH]
            windows[score.name] = {name: score.per_window(features[name], true) for name in everything}
        if not score.has_truth:
            del windows[score.name][TRUTH]
        pairs = None
        if score.pairwise is not None and score.needs in NETWORKS:
            pairs = paired[score.name] = score.pairwise(features[MAIN], features[TRUTH])
        result = design.summarise(score, windows[score.name], named.get(score.needs, ""))
        results[score.name] = design.add_chance(result, pairs, sampled.get(score.name, []))
    return Evaluation(
        add_holm(results),
        {score.name: windows[score.name] for score in chosen},
        left_out,
        _smallest_p(results, design),
        measure.fingerprint(truth, TRUTH),
        networks.identity if networks is not None else "none",
        paired,
    )


def evaluate_windows(
    sets: Mapping[str, Any],
    truth: Any,
    foundation: Foundation,
    design: Design,
    without: Mapping[str, str] | None = None,
    **options: Any,
) -> Evaluation:
    """`evaluate_clips`, without the scores of captions and columns where these cannot be had."""
    missing = measure.list_missing(foundation, design.settings, ["captions", "columns"])
    return evaluate_clips(sets, truth, foundation, design, without={**missing, **(without or {})}, **options)


def _smallest_p(results: Mapping[str, ScoreResult], design: Design) -> float | None:
    """The smallest P after Holm that is possible; None where nothing was tested."""
    tested = sum("shuffled" in result.p or "shuffled_pairing" in result.p for result in results.values())
    n_blocks = len(np.unique(design.block))
    smallest = statistics.smallest_p(n_blocks, None, design.settings.permutations, two_sided=False)
    return min(1.0, tested * smallest) if tested else None


def average_people(evaluations: Sequence[Evaluation], design: Design) -> Evaluation:
    """Several people's evaluations as one: a window's value is the mean over people."""
    first = evaluations[0]
    known = {score.name: score for score in list_scores(design)}
    results, windows = {}, {}
    for name, entry in first.scores.items():
        sets = first.windows[name]
        windows[name] = {key: np.mean([each.windows[name][key] for each in evaluations], axis=0) for key in sets}
        result = design.summarise(known[name], windows[name], entry.network)
        if name in first.pairs:
            pairs = np.mean([each.pairs[name] for each in evaluations], axis=0)
            results[name] = design.add_chance(result, pairs, [])
        else:
            chances = [chance for each in evaluations if (chance := each.scores[name].chance) is not None]
            results[name] = replace(result, chance=float(np.mean(chances)) if chances else None)
    smallest = _smallest_p(results, design)
    about = (first.truth, first.networks)
    return Evaluation(add_holm(results), windows, first.left_out, smallest, *about)


def list_rate_mismatch(about: Mapping[str, Any], n_frames: int, stored: int) -> dict[str, str]:
    """Scores to leave out, and why, where the truth's frames repeat.

    Repeated frames halve the truth's change; a whole fraction of the stored frames is true.
    """
    if about.get("frames_from") == "films" or stored % n_frames == 0:
        return {}
    reason = about.get("why_not_films") or "the films were not read again; run reconstruct again"
    return {OVER_TIME: f"the truth's {stored} stored frames a scan do not move like {n_frames}: {reason}"}


def open_reconstructions(folder: Path) -> tuple[zarr.Group, dict[str, Any], Any]:
    """``clips.zarr``, its sets of clips in order, and the truth; DataError if unfinished."""
    place = folder / "clips.zarr"
    if not place.is_dir():
        raise DataError(f"expected reconstructions at {place}, found none; run reconstruct first")
    group = zarr.open_group(place, mode="r")
    if not group.attrs.get("complete", True):
        raise DataError(f"expected finished reconstructions in {place}, found some not finished; run reconstruct again")
    names: Any = group.attrs.get("names") or sorted(group.array_keys())
    return group, {name: group[name] for name in names if name != TRUTH}, group[TRUTH]


def run(context: StageContext) -> None:
    """Score ``RUN/reconstruct/clips.zarr`` and write ``RUN/evaluate``.

    Blocks are made anew from ``evaluate.block_s``. Of several people, each has a folder ``subjectN``
    with two controls more, what another person's scans of another scene and of the same give;
    ``RUN/evaluate`` itself then holds the mean over the people.
    """
    recipe, run_dir, folder, _ = context
    stores = store_paths(recipe.data, run_dir / "prepare")
    sources = person_folders(recipe.data, run_dir / "reconstruct")
    places = person_folders(recipe.data, folder)
    found = []
    for person, (store, source, place) in enumerate(zip(stores, sources, places, strict=True)):
        sets = {}
        if person != (other := (person - 1) % len(stores)):
            theirs = open_reconstructions(sources[other])[1]
            sets = {name: theirs[kind] for kind, name in OTHER_PERSON_SETS.items() if kind in theirs}
            share_features(places[other], place, OTHER_PERSON_SETS)
        found.append(_evaluate_person(context, store, source, place, sets))
    if len(found) > 1:
        _, design, windows, about = found[0]
        together = average_people([each[0] for each in found], design)
        about |= {"people": [place.name for place in places]}
        write_text(folder / "near_duplicates.json", (places[0] / "near_duplicates.json").read_text())
        write_evaluation(together, folder, windows, design.block, about)


def share_features(source: Path, target: Path, renamed: Mapping[str, str] | None = None) -> None:
    """Link what networks said of sets without a brain and ``renamed`` ones; a file says of which clips it is."""
    for name, here in [*((name, name) for name in WITHOUT_BRAIN), *(renamed or {}).items()]:
        said = source / "features" / f"{name}.safetensors"
        place = target / "features" / f"{here}.safetensors"
        if said.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            link_file(said, place)


def _evaluate_person(
    context: StageContext, store_path: Path, source: Path, folder: Path, others: Mapping[str, Any]
) -> tuple[Evaluation, Design, list[dict[str, Any]], dict[str, Any]]:
    """Write one person's scores into ``folder``; returns what an evaluation over people needs."""
    recipe, run_dir, _, progress = context
    group, sets, truth = open_reconstructions(source)
    sets = sets | dict(others)
    windows = json.loads((source / "windows.json").read_text())
    n = truth.shape[0]
    if len(windows) != n:
        raise DataError(f"expected {n} windows in {source / 'windows.json'}, one a clip, found {len(windows)}")
    store = Store.open(store_path)
    block_scans = recipe.evaluate.block_scans(store.tr_s)
    film = np.array([window["segment"] for window in windows])
    block = block_numbers(film, np.array([window["scan"] for window in windows]), block_scans)
    foundation = Foundation(recipe.foundation, distributed.device())
    world, left_out = None, {}
    if recipe.simulate is not None:
        try:
            scenes = run_dir / "simulate" / "truth" / "scenes.json"
            from_films = group.attrs.get("frames_from") == "films"
            world = attributes.read_world(scenes, windows, foundation, store, truth.shape[1], from_films)
        except attributes.NoPairsError as error:
            left_out["attributes"] = str(error)
    design = Design.of(recipe, windows, block, world)
    mismatch = list_rate_mismatch(group.attrs, truth.shape[1], store.num_frames)
    options: dict[str, Any] = {"cache_dir": folder / "features", "progress": progress}
    evaluation = evaluate_windows(sets, truth, foundation, design, mismatch, **options)
    audit = audit_store(store, sorted(set(film.tolist())))
    if world is not None:
        content = attributes.summarise_attributes(evaluation.scores, world)
        if "frame_change" in evaluation.windows:
            content["frame_change_uncut"] = attributes.uncut_frame_change(evaluation.windows["frame_change"], world)
        audit["attributes.json"] = content
    about = {
        "settings": recipe.evaluate.model_dump(mode="json"),
        "seed": recipe.seed,
        "negative": group.attrs.get("negative", recipe.reconstruct.negative),
        "left_out": left_out,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in audit.items():
        write_json(folder / name, content)
    write_evaluation(evaluation, folder, windows, block, about)
    return evaluation, design, windows, about
