"""Attributes of a world with two things, three colours and two motions, by hand."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindvideo.errors import DataError
from mindvideo.evaluate.attributes import (
    closed_form_chance,
    decode_attributes,
    measure_attributes,
    pairwise_attributes,
    read_world,
    split_labels,
)
from mindvideo.evaluate.measure import Features

IMAGES = ["red dog", "blue dog", "green dog", "red sea lion", "blue sea lion", "green sea lion"]
VIDEOS = ["dog left", "dog up", "sea lion left", "sea lion up"]
PLACES = {"beach": [1.0, 0.0], "night street": [0.0, 1.0]}


def scene(thing, colour, place, motion, start_s, end_s):
    return dict(thing=thing, colour=colour, place=place, motion=motion, caption=f"{colour} {thing} {place}",
                start_s=start_s, end_s=end_s)  # fmt: skip


FILMS = {
    "seg1": [scene("dog", "red", "beach", "left", 0, 2), scene("dog", "blue", "night street", "up", 2, 4)],
    "test1": [
        scene("dog", "red", "beach", "up", 0, 3.0),
        scene("sea lion", "green", "night street", "left", 3.0, 8.0),
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


def make_world(folder, networks):
    path = folder / "scenes.json"
    path.write_text(json.dumps(FILMS))
    windows = [{"segment": "test1", "scan": scan} for scan in (0, 1, 2)]
    return read_world(path, windows, networks, train_segments=["seg1"], tr_s=2.0, fps=2.0, n_frames=4)


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
    features = Features(images, videos, embeddings, nothing, nothing, [])
    found = measure_attributes(features, world)
    assert found["attribute_thing"].tolist() == [1.0, 0.5, 1.0]
    assert found["attribute_colour"].tolist() == [0.0, 0.5, 1.0]
    assert found["attribute_place"].tolist() == [1.0, 1.0, 0.75]
    np.testing.assert_array_equal(found["attribute_motion"], [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(found["attribute_cut"], [np.nan, 1.0, np.nan])
    assert decode_attributes(features, world)["motion"].tolist() == [1, 0, 1]
    things = pairwise_attributes("attribute_thing", features, world)
    assert things.tolist() == [[1, 0.5, 0], [1, 0.5, 0], [0, 0.5, 1]]
    motion = pairwise_attributes("attribute_motion", features, world)
    np.testing.assert_array_equal(motion, [[1, np.nan, 0], [np.nan] * 3, [1, np.nan, 0]])
    assert pairwise_attributes("attribute_cut", features, world) is None
    assert closed_form_chance("attribute_colour", world) == pytest.approx(1 / 3)


def test_other_classifiers_are_refused(tmp_path):
    with pytest.raises(DataError, match="pairs of words"):
        make_world(tmp_path, Networks(images=["tench", "goldfish"]))
    with pytest.raises(DataError, match="the colour 'green'"):
        make_world(tmp_path, Networks(images=["red dog", "blue dog", "red sea lion", "blue sea lion"]))
    with pytest.raises(DataError, match="same things"):
        make_world(tmp_path, Networks(videos=["dog left", "dog up", "cat left", "cat up"]))


def test_a_simulated_run_has_attributes_in_its_files(tiny_run):
    folder = tiny_run / "evaluate"
    content = json.loads((folder / "attributes.json").read_text())
    scores = json.loads((folder / "scores.json").read_text())
    assert set(content["attributes"]) == {"thing", "colour", "place", "motion", "cut"}
    for name, entry in content["attributes"].items():
        assert set(entry["sets"]) >= {"reconstruction", "shuffled", "mean", "caption", "vae", "truth"}
        assert entry["sets"]["vae"] == scores[f"attribute_{name}"]["controls"]["vae"]
    assert content["frame_change_uncut"]["truth"]["of_truth"] == 1.0
    assert "caption_similarity" in scores
