"""What is recognisable in reconstructions of a simulated subject's films.

The foundation's own classifiers, whose classes are pairs ("red dog" for images, "dog left" for
videos), are read against the films' list of scenes. No classifier knows places: a frame's place is
the one whose training captions are nearest in CLIP's embedding. A judge tells where the thing is.

Shapes: n windows, F frames, classes, D features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.data.store import Store
from mindvideo.errors import DataError
from mindvideo.evaluate import judges, retrieval
from mindvideo.evaluate.measure import Features, as_array
from mindvideo.evaluate.score import Needs, Score, ScoreResult

PREFIX = "attribute_"
_KINDS = ("thing", "colour", "place", "motion")


class NoPairsError(DataError):
    """The classifiers' classes are not pairs of attributes, so these cannot be read."""


@dataclass(frozen=True)
class World:
    """Names and true attributes of the windows' scenes.

    Attributes
    ----------
    names : dict of str to tuple of str
        ``thing``, ``colour``, ``place``, ``motion``, ``position``.
    true : dict of str to ndarray, int (n, F)
        Index of the true name in ``names``, frame by frame; -1 for a position that has no name.
    is_cut : ndarray, bool (n,)
        Whether the scene changes inside the window.
    image_pairs : ndarray, int (classes, 2)
        Thing and colour of each image class.
    video_pairs : ndarray, int (classes, 2)
        Thing and motion of each video class.
    place_texts : ndarray, float64 (places, D)
        CLIP text embedding of each place, unit length.
    """

    names: dict[str, tuple[str, ...]]
    true: dict[str, np.ndarray]
    is_cut: np.ndarray
    image_pairs: np.ndarray
    video_pairs: np.ndarray
    place_texts: np.ndarray


def split_labels(labels: Sequence[str], first_word: bool) -> tuple[tuple[str, ...], tuple[str, ...], np.ndarray]:
    """Labels that are all pairs of two lists ("red dog", "blue dog", "red bird", "blue bird").

    Both lists in order of appearance, and the places (classes, 2) of each label's parts. NoPairsError
    where labels are not every pair exactly once, as those of ImageNet.
    """
    parts = [label.split(" ", 1) if first_word else label.rsplit(" ", 1) for label in labels]
    if any(len(part) != 2 for part in parts):
        raise NoPairsError(
            "expected classes that are pairs of words, as the kit's, found others; use the kit's classifiers"
        )
    first, second = (tuple(dict.fromkeys(part[side] for part in parts)) for side in (0, 1))
    pairs = np.array([[first.index(a), second.index(b)] for a, b in parts])
    if len(first) * len(second) != len(labels) or len({tuple(pair) for pair in pairs.tolist()}) != len(labels):
        raise NoPairsError(
            f"expected every pair of {len(first)} and {len(second)} names as a class, found {len(labels)} classes; "
            "use the kit's classifiers"
        )
    return first, second, pairs


def _labels(model: Any) -> list[str]:
    names = model.config.id2label
    return [str(names[number]) for number in sorted(names, key=int)]


def read_world(
    scenes_path: Path,
    windows: Sequence[Mapping[str, Any]],
    foundation: Any,
    store: Store,
    n_frames: int,
    from_films: bool = False,
) -> World:
    """True attributes of the windows of a simulated subject, in the classifiers' names.

    Parameters
    ----------
    scenes_path : Path
        ``RUN/simulate/truth/scenes.json``: by segment, scenes with ``thing``, ``colour``,
        ``place``, ``motion``, ``caption``, ``start_s`` and ``end_s``, and ``where`` its thing is at
        every stored frame: column and row.
    windows : sequence of mapping
        ``segment`` and ``scan`` of each.
    foundation : Foundation
        Its classifiers' labels and CLIP's text tower are used.
    store : Store
        Its timing is used, and the captions of its training films say what a place is called; the
        test films' are not looked at.
    n_frames : int
        A clip's frame j is the stored frame at the middle of its part of the scan, shown in scan k
        of ``tr_s`` at k · tr_s + floor((j + ½) · stored frames / n_frames) / fps.
    from_films : bool
        The films were read again at the clips' own rate: frame j was shown at k · tr_s + j · tr_s /
        n_frames.

    Raises
    ------
    NoPairsError
        Where the classes are not pairs.
    DataError
        Where the scenes are missing or damaged, or a scene's attribute has no class.
    """
    colours, things, image_pairs = split_labels(_labels(foundation.image_classifier), first_word=True)
    video_things, motions, video_pairs = split_labels(_labels(foundation.video_classifier), first_word=False)
    if sorted(things) != sorted(video_things):
        raise NoPairsError(
            "expected the same things in image and video classes, found others; use classifiers of one kit"
        )
    offset_s = ((np.arange(n_frames) + 0.5) * store.num_frames / n_frames).astype(int) / store.fps
    if from_films:
        offset_s = np.arange(n_frames) * store.tr_s / n_frames
    train_segments = [*store.segments("train"), *store.segments("validation")]
    try:
        films: dict[str, list[dict[str, Any]]] = json.loads(scenes_path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"expected JSON in {scenes_path}, found none ({error}); simulate again") from None
    try:
        train = [scene for segment in train_segments for scene in films[segment]]
        places = tuple(sorted({scene["place"] for scene in train}))
        columns = judges.NAMES["column"]
        names = {"thing": things, "colour": colours, "place": places, "motion": motions, "position": columns}
        true, scene_number = _true_attributes(films, windows, names, store, offset_s)
        place_texts = _embed_places(train, places, foundation)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"expected scenes of every film with their attributes in {scenes_path}, found no {error}; simulate again"
        ) from None
    return World(
        names, true, (scene_number != scene_number[:, :1]).any(axis=1), image_pairs[:, ::-1], video_pairs,
        place_texts,
    )  # fmt: skip


def _true_attributes(
    films: Mapping[str, Sequence[Mapping[str, Any]]],
    windows: Sequence[Mapping[str, Any]],
    names: Mapping[str, tuple[str, ...]],
    store: Store,
    offset_s: np.ndarray,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Indices (n, F) of the attributes by kind, and of the scene inside its film.

    ``offset_s`` (F,): seconds of each frame after its scan begins.
    """
    true = {kind: np.empty((len(windows), len(offset_s)), dtype=np.int64) for kind in names}
    scene_number = np.empty((len(windows), len(offset_s)), dtype=np.int64)
    for i, window in enumerate(windows):
        film = films[window["segment"]]
        starts = np.array([scene["start_s"] for scene in film])
        times = int(window["scan"]) * store.tr_s + offset_s
        scene_number[i] = np.searchsorted(starts, times + 1e-9, side="right") - 1
        for f, number in enumerate(scene_number[i]):
            for kind in _KINDS:
                name = film[number][kind]
                if name not in names[kind]:
                    raise DataError(
                        f"expected a class for the {kind} '{name}' of {window['segment']}, found {', '.join(names[kind])}; "
                        "use the kit the films were made for"
                    )
                true[kind][i, f] = names[kind].index(name)
            where = film[number]["where"]
            column = where[min(int((times[f] - starts[number]) * store.fps + 1e-6), len(where) - 1)][0]
            true["position"][i, f] = -1 if column is None else names["position"].index(column)
    return true, scene_number


def _embed_places(train: Sequence[Mapping[str, Any]], places: Sequence[str], foundation: Any) -> np.ndarray:
    """Mean embedding of the training captions of each place, unit length, (places, D)."""
    told = sorted({(scene["place"], scene["caption"]) for scene in train})
    embeddings = retrieval.normalise(as_array(foundation.encode_text([caption for _, caption in told])[1]))
    of_place = np.array([place for place, _ in told])
    return retrieval.normalise(np.stack([embeddings[of_place == place].mean(axis=0) for place in places]))


def _sum_over(probabilities: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Probabilities summed over the classes of one number in ``part``: (..., numbers)."""
    sums = [probabilities[..., part == number].sum(axis=-1) for number in range(part.max() + 1)]
    return np.stack(sums, axis=-1)


def decode_attribute(kind: str, features: Features, world: World) -> np.ndarray:
    """Index of the most probable name: int (n, F), for ``motion`` int (n,)."""
    if kind == "place":
        return (retrieval.normalise(features.embeddings) @ world.place_texts.T).argmax(axis=-1)
    if kind == "position":
        return features.columns
    if kind == "motion":
        return _sum_over(features.videos, world.video_pairs[:, 1]).argmax(axis=-1)
    return _sum_over(features.images, world.image_pairs[:, ("thing", "colour").index(kind)]).argmax(axis=-1)


_WORDS: dict[str, tuple[Needs, str]] = {
    "thing": (
        "images",
        "the scene's thing is the image classifier's most probable thing (summed over colours), share of frames",
    ),
    "colour": (
        "images",
        "the thing's colour is the image classifier's most probable colour (summed over things), share of frames",
    ),
    "place": (
        "embeddings",
        "the scene's place is the one whose training captions' mean CLIP text embedding is nearest to the frame's CLIP "
        "image embedding, share of frames",
    ),
    "position": (
        "columns",
        "the column (left, middle, right) of the scene's thing is the one in which a judge of the kit, another network "
        "than its classifiers, sees it, share of the frames in which it is in one of them",
    ),
    "motion": (
        "clips",
        "the scene's motion is the video classifier's most probable motion (summed over things), windows without a cut",
    ),
    "cut": (
        "embeddings",
        "area under the ROC curve of windows with a cut against those without, by the greatest CLIP distance between "
        "adjacent frames; windows with a cut are counted",
    ),
}


def list_scores(world: World) -> list[Score]:
    """One score per attribute, ``attribute_thing`` and so on.

    Motion counts in windows without a cut. A cut's value is the share of windows without one whose
    greatest change is smaller, ties half, so that the mean is the area under the ROC curve.
    """

    def score(kind: str, needs: Needs, definition: str) -> Score:
        return Score(
            PREFIX + kind,
            f"attribute {kind}",
            definition,
            {"colour": "colour", "position": "layout", "motion": "motion", "cut": "motion"}.get(kind, "content"),  # type: ignore[arg-type]
            needs,
            lambda made, _: measure_attribute(kind, made, world),
            None if kind == "cut" else lambda made, _: pairwise_attribute(kind, made, world),
            chance=0.5 if kind == "cut" else 1.0 / len(world.names[kind]),
            over_time=kind == "cut",
            has_truth=True,
            is_main=True,
        )

    return [score(kind, *words) for kind, words in _WORDS.items()]


def measure_attribute(kind: str, features: Features, world: World) -> np.ndarray:
    """The score of one attribute for every window, float64 (n,), see `list_scores`."""
    if kind == "cut":
        return _cut_ranks(features.embeddings, world.is_cut)
    found = decode_attribute(kind, features, world)
    if kind == "motion":
        return np.where(world.is_cut, np.nan, found == world.true["motion"][:, 0])
    return _mean_where_named(found == world.true[kind], world.true[kind] >= 0)


def _mean_where_named(right: np.ndarray, named: np.ndarray) -> np.ndarray:
    return np.ma.array(right, mask=~np.broadcast_to(named, right.shape)).mean(axis=-1).filled(np.nan)


def _cut_ranks(embeddings: np.ndarray, is_cut: np.ndarray) -> np.ndarray:
    unit = retrieval.normalise(embeddings)
    change = 1.0 - (unit[:, 1:] * unit[:, :-1]).sum(axis=-1).min(axis=1)
    uncut = change[~is_cut]
    ranks = np.full(len(change), np.nan)
    if len(uncut):
        cut = change[is_cut, None]
        ranks[is_cut] = (uncut < cut).mean(axis=1) + 0.5 * (uncut == cut).mean(axis=1)
    return ranks


def pairwise_attribute(kind: str, features: Features, world: World) -> np.ndarray:
    """Every prediction (row) against every window's truth (column), (n, n)."""
    found = decode_attribute(kind, features, world)
    true = world.true[kind]
    if kind == "motion":
        pairs = (found[:, None] == true[None, :, 0]).astype(np.float64)
        pairs[world.is_cut] = np.nan
        pairs[:, world.is_cut] = np.nan
        return pairs
    return _mean_where_named(found[:, None] == true[None], true[None] >= 0)


def summarise_attributes(scores: Mapping[str, ScoreResult], world: World) -> dict[str, Any]:
    """The content of ``attributes.json``: every set's value, and its share of the truth's."""
    table = {}
    for name, entry in scores.items():
        if name.startswith(PREFIX):
            sets = {"reconstruction": entry.value, **entry.controls, "truth": entry.truth}
            share = {key: value / entry.truth if value is not None and entry.truth else None
                     for key, value in sets.items()}  # fmt: skip
            table[name.removeprefix(PREFIX)] = {"sets": sets, "of_truth": share, **entry.to_json()}
    return {"attributes": table, "names": world.names, "windows_with_a_cut": int(world.is_cut.sum())}


def uncut_frame_change(frame_change: Mapping[str, np.ndarray], world: World) -> dict[str, dict[str, float | None]]:
    """Mean ``frame_change`` over windows without a cut, and its ratio to the truth's."""
    if world.is_cut.all():
        return {}
    uncut = {key: float(np.mean(values[~world.is_cut])) for key, values in frame_change.items()}
    truth = uncut.get("truth")
    return {key: {"value": value, "of_truth": value / truth if truth else None} for key, value in uncut.items()}
