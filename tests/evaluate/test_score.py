"""The objects: the rule of "from the brain", the way into and out of files, and what each set of clips is."""

import json

import pytest

from mindvideo.clip_sets import CLIP_SETS, clip_set
from mindvideo.errors import DataError
from mindvideo.evaluate.score import ScoreResult, parse_scores
from mindvideo.evaluate.tables import write_origin

ROLES = {"shuffled": "control", "mean": "control", "random_train": "baseline", "constant": "baseline", "vae": "ceiling"}


def result(value=0.3, p=0.01, higher=True, **controls):
    known = {"shuffled": 0.2} | controls
    return ScoreResult(
        "ssim_rgb", value, controls=known, roles=ROLES, p={"shuffled": 0.001}, p_holm={"shuffled": p},
        higher_is_better=higher,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (result(), True),
        (result(p=0.05), False),  # below, not at
        (result(value=0.1), False),
        (result(value=0.1, higher=False), True),
        (result(higher=False), False),
        (result(higher=None), None),
        (result(p=None), None),  # P that is not corrected does not count
        (result(shuffled=None), None),
        (result(value=None), None),
    ],
)
def test_from_the_brain_is_better_than_shuffled_after_holm(score, expected):
    assert score.from_brain is expected


def test_baselines_that_are_better_still_are_named():
    score = result(constant=0.31, random_train=0.29, mean=0.4, vae=0.9)
    assert score.better_baselines == ["constant"]  # a control and a ceiling are none, and .29 is worse
    assert write_origin(score) == "yes; constant is better"
    lower = result(value=0.1, higher=False, constant=0.05, random_train=0.09)
    assert lower.better_baselines == ["random_train", "constant"] or lower.better_baselines == [
        "constant",
        "random_train",
    ]
    assert write_origin(lower).endswith("are better")
    assert write_origin(result(p=0.06, constant=0.9)) == "not shown"


def test_files_give_back_what_was_written_and_damage_is_refused():
    score = result(constant=0.5)
    content = json.loads(json.dumps(score.to_json()))
    assert content["from_brain"] is True and content["better_baselines"] == ["constant"]
    assert parse_scores({"ssim_rgb": content}) == {"ssim_rgb": score}
    for name, damage in {
        "interval": [0.1], "n": "many", "controls": ["shuffled"], "p": {"shuffled": "x"}, "label": None, "films": [0.5],
    }.items():  # fmt: skip
        with pytest.raises(DataError, match=rf"found damage .*ssim_rgb\.{name}.*; evaluate again"):
            parse_scores({"ssim_rgb": content | {name: damage}})
    for broken in ({"ssim_rgb": {"label": "SSIM"}}, {"ssim_rgb": 0.5}):
        with pytest.raises(DataError, match="evaluate again"):
            parse_scores(broken)


def test_the_mean_control_says_which_mean_and_that_it_is_never_guided():
    train, test, null = (clip_set("mean", negative) for negative in ("train_mean", "test_mean", "null"))
    assert "mean training fMRI" in train.definition and train.note == "never guided"
    assert "mean test fMRI" in test.definition and "training" not in test.definition and test.note == "never guided"
    assert "mean training fMRI" in null.definition and null.note == ""
    assert clip_set("nearest").role == "baseline" and {each.role for each in CLIP_SETS.values()} == {
        "control", "baseline", "ceiling",
    }  # fmt: skip
