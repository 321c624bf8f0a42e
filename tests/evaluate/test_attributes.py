"""Attributes of a world with two things, three colours and two motions, by hand."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

from mindvideo.errors import DataError
from mindvideo.evaluate import evaluation
from mindvideo.evaluate.attributes import (
    NoPairsError,
    decode_attribute,
    list_scores,
    read_world,
    split_labels,
    uncut_frame_change,
)
from mindvideo.evaluate.measure import Features
from mindvideo.generate.clips import pick_frames
from mindvideo.stages import StageContext

IMAGES = ["red dog", "blue dog", "green dog", "red sea lion", "blue sea lion", "green sea lion"]
VIDEOS = ["dog left", "dog up", "sea lion left", "sea lion up"]
PLACES = {"beach": [1.0, 0.0], "night street": [0.0, 1.0]}


def scene(thing, colour, place, motion, start_s, end_s, columns):
    return dict(thing=thing, colour=colour, place=place, motion=motion, caption=f"{colour} {thing} {place}",
                start_s=start_s, end_s=end_s, where=[(column, None) for column in columns])  # fmt: skip


FILMS = {
    "seg1": [
        scene("dog", "red", "beach", "left", 0, 2, ["left"] * 4),
        scene("dog", "blue", "night street", "up", 2, 4, [None, None, "right", "right"]),
    ],
    "test1": [
        scene("dog", "red", "beach", "up", 0, 3.0, ["left", "left", None, "right", "right", "middle"]),
        scene("sea lion", "green", "night street", "left", 3.0, 8.0, ["right"] * 10),
    ],
}


class Networks:
    """Only what a world is read from."""

    def __init__(self, images=IMAGES, videos=VIDEOS):
        self.image_classifier = SimpleNamespace(
            config=SimpleNamespace(id2label={str(i): x for i, x in enumerate(images)})
        )
        self.video_classifier = SimpleNamespace(config=SimpleNamespace(id2label=dict(enumerate(videos))))

    def encode_text(self, captions):
        place = [next(name for name in PLACES if caption.endswith(name)) for caption in captions]
        return None, torch.tensor([PLACES[name] for name in place])


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path, Networks())


def timing(**of_frames):
    """Only what a world is read with: a store's segments, repetition time and frames."""
    segments = {"train": ["seg1"], "validation": []}
    return SimpleNamespace(segments=segments.get, tr_s=2.0, **of_frames)


def make_world(folder, networks):
    path = folder / "scenes.json"
    path.write_text(json.dumps(FILMS))
    windows = [{"segment": "test1", "scan": scan} for scan in (0, 1, 2)]
    return read_world(path, windows, networks, timing(fps=2.0, num_frames=4), n_frames=4)


def test_positions_count_where_they_are_named(world):
    """A frame whose thing is between two columns counts for nothing."""
    assert world.names["position"] == ("left", "middle", "right")
    np.testing.assert_array_equal(world.true["position"], [[0, 0, -1, 2], [2, 1, 2, 2], [2, 2, 2, 2]])
    nothing = np.zeros((3, 0))
    seen = np.array([[2] * 4, [2] * 4, [1, 2, 2, 2]])  # nearly every frame looks as if on the right
    features = Features(nothing, nothing, nothing, nothing, nothing, seen, [])
    [position] = [score for score in list_scores(world) if score.name == "attribute_position"]
    np.testing.assert_allclose(position.per_window(features, features), [1 / 3, 3 / 4, 3 / 4])
    np.testing.assert_allclose(
        position.pairwise(features, features), [[1 / 3, 3 / 4, 1], [1 / 3, 3 / 4, 1], [1 / 3, 1 / 2, 3 / 4]]
    )


def test_labels_are_pairs_or_refused():
    assert split_labels(IMAGES, first_word=True)[:2] == (("red", "blue", "green"), ("dog", "sea lion"))
    assert split_labels(VIDEOS, first_word=False)[:2] == (("dog", "sea lion"), ("left", "up"))
    with pytest.raises(DataError, match="every pair"):
        split_labels(IMAGES[:5], first_word=True)
    with pytest.raises(DataError, match="pairs of words"):
        split_labels(["tench", "goldfish"], first_word=True)


def test_truth_follows_the_films_frame_by_frame(world):
    assert world.true["thing"].tolist() == [[0] * 4, [0, 0, 1, 1], [1] * 4]
    assert world.true["colour"].tolist() == [[0] * 4, [0, 0, 2, 2], [2] * 4]
    assert world.true["motion"][:, 0].tolist() == [1, 1, 0]
    assert world.is_cut.tolist() == [False, True, False]
    assert world.names["place"] == ("beach", "night street")


@pytest.mark.parametrize("n_frames", [12, 6, 3, 1])
def test_truth_follows_the_frames_that_were_reconstructed(tmp_path, n_frames):
    """Six stored frames of a scan of 2 s, the scene of frame 3 on (1 s) another: as many as `pick_frames` takes."""
    path = tmp_path / "scenes.json"
    cut = [
        scene("dog", "red", "beach", "up", 0, 3.0, ["left", "left", None, "right", "right", "middle"]),
        scene("sea lion", "green", "beach", "left", 3.0, 8.0, ["right"] * 10),
    ]
    path.write_text(json.dumps(FILMS | {"test1": cut}))
    windows = [{"segment": "test1", "scan": scan} for scan in (0, 1, 2)]
    world = read_world(path, windows, Networks(), timing(fps=3.0, num_frames=6), n_frames)
    stored = np.array([0, 0, 0, 1, 1, 1])  # thing shown by the stored frames of scan 1
    clip = np.broadcast_to(stored[None, :, None, None, None], (1, 6, 1, 1, 3))
    expected = pick_frames(clip, n_frames)[0, :, 0, 0, 0]
    assert world.true["thing"].tolist() == [[0] * n_frames, expected.tolist(), [1] * n_frames]
    assert world.is_cut.tolist() == [False, n_frames > 1, False]


def test_frames_without_a_cut_are_averaged_alone(world):
    change = {"truth": np.array([1.0, 50.0, 3.0]), "shuffled": np.array([4.0, 70.0, 12.0])}
    assert uncut_frame_change(change, world) == {
        "truth": {"value": 2.0, "of_truth": 1.0}, "shuffled": {"value": 8.0, "of_truth": 4.0},
    }  # fmt: skip


def test_missing_and_damaged_scenes_are_refused(tmp_path):
    path = tmp_path / "scenes.json"
    store = timing(fps=2.0, num_frames=4)
    for text in (None, "{", json.dumps({"seg1": FILMS["seg1"]}), json.dumps(FILMS | {"seg1": [{"thing": "dog"}]})):
        if text is not None:
            path.write_text(text)
        with pytest.raises(DataError, match="simulate again") as found:
            read_world(path, [{"segment": "test1", "scan": 0}], Networks(), store, n_frames=4)
        assert not isinstance(found.value, NoPairsError)


def test_scores_by_hand(world):
    images = np.full((3, 4, 6), 0.05)
    images[0, :, 1] = 0.75  # blue dog where a red dog is: thing right, colour wrong
    images[1, :, 0] = 0.75  # red dog throughout a cut to a green sea lion: half right
    images[2, :, [2, 3]] = 0.3  # green dog or red sea lion …
    images[2, :, [4, 5]] = 0.15  # … sums make it a sea lion, .6 against .4, and green
    videos = np.array([[0.1, 0.3, 0.2, 0.4], [0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.2]])
    angle = np.array([[0, 0, 0.1, 0.1], [0, 0, 1.5, 1.5], [1.5, 1.4, 1.5, 0.2]])
    embeddings = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    nothing = np.empty((3, 0))
    features = Features(images, videos, embeddings, nothing, nothing, np.empty((3, 0), int), [])
    scores = {score.name: score for score in list_scores(world)}
    assert scores.pop("attribute_position").needs == "columns"
    found = {name: score.per_window(features, None) for name, score in scores.items()}
    assert found["attribute_thing"].tolist() == [1.0, 0.5, 1.0]
    assert found["attribute_colour"].tolist() == [0.0, 0.5, 1.0]
    assert found["attribute_place"].tolist() == [1.0, 1.0, 0.75]
    np.testing.assert_array_equal(found["attribute_motion"], [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(found["attribute_cut"], [np.nan, 1.0, np.nan])
    assert decode_attribute("motion", features, world).tolist() == [1, 0, 1]
    things = scores["attribute_thing"].pairwise(features, None)
    assert things.tolist() == [[1, 0.5, 0], [1, 0.5, 0], [0, 0.5, 1]]
    motion = scores["attribute_motion"].pairwise(features, None)
    np.testing.assert_array_equal(motion, [[1, np.nan, 0], [np.nan] * 3, [1, np.nan, 0]])
    assert scores["attribute_cut"].pairwise is None
    assert scores["attribute_colour"].chance == pytest.approx(1 / 3)


def test_other_classifiers_are_refused(tmp_path):
    with pytest.raises(NoPairsError, match="pairs of words"):
        make_world(tmp_path, Networks(images=["tench", "goldfish"]))
    with pytest.raises(DataError, match="the colour 'green'"):
        make_world(tmp_path, Networks(images=["red dog", "blue dog", "red sea lion", "blue sea lion"]))
    with pytest.raises(NoPairsError, match="same things"):
        make_world(tmp_path, Networks(videos=["dog left", "dog up", "cat left", "cat up"]))


def test_a_simulated_run_has_attributes_in_its_files(tiny_run):
    folder = tiny_run / "evaluate"
    content = json.loads((folder / "attributes.json").read_text())
    written = json.loads((folder / "scores.json").read_text())
    assert set(content["attributes"]) == {"thing", "colour", "place", "motion", "position", "cut"}
    for name, entry in content["attributes"].items():
        score = written[f"attribute_{name}"]
        assert set(entry["sets"]) >= {"reconstruction", "shuffled", "mean", "caption", "vae", "truth"}
        assert entry["p_holm"] == score["p_holm"] and entry["p_holm"]["shuffled"] >= entry["p"]["shuffled"]
        with (folder / "windows.csv").open() as handle:
            values = [float(row[f"attribute_{name}:vae"] or "nan") for row in csv.DictReader(handle)]
        assert entry["sets"]["vae"] == (pytest.approx(np.nanmean(values)) if np.isfinite(values).any() else None)
    assert "caption_similarity" in written


def test_scenes_that_are_gone_stop_the_evaluation(tiny_run, tiny_recipe, tmp_path):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    (run_dir / "simulate" / "truth" / "scenes.json").unlink()
    with pytest.raises(DataError, match="scenes"):
        evaluation.run(StageContext.of(tiny_recipe, run_dir, "evaluate"))


def test_a_run_of_single_frames_is_scored(tiny_run, tiny_recipe, tmp_path):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluate"))
    with_frames = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="r")
    clips = {name: with_frames[name][:, :1] for name in ("truth", "reconstruction", "shuffled")}
    shutil.rmtree(run_dir / "reconstruct" / "clips.zarr")
    group = zarr.open_group(run_dir / "reconstruct" / "clips.zarr", mode="w", attributes={"complete": True})
    for name, values in clips.items():
        group.create_array(name, data=values)
    evaluation.run(StageContext.of(tiny_recipe, run_dir, "evaluate"))
    content = json.loads((run_dir / "evaluate" / "attributes.json").read_text())
    assert (
        set(content["attributes"]) == {"thing", "colour", "place", "position"} and "frame_change_uncut" not in content
    )
