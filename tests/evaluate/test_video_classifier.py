"""The video classifier sees six frames, whatever its configuration and the clips' rate (docs/method.md, Scores and controls)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import VideoMAEForVideoClassification

from mindvideo.errors import ModelError
from mindvideo.models.foundation import Foundation


def with_config(kit: Path, target: Path, **changes: int) -> Path:
    """A copy of the video classifier alone, its weights unchanged, with other values in its configuration."""
    part = shutil.copytree(kit / "video_classifier", target / "video_classifier")
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps(config | changes))
    return target


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    """Clips of 13 frames that all differ, uint8 (5, 13, 32, 32, 3)."""
    return np.random.default_rng(4).integers(0, 256, (5, 13, 32, 32, 3), dtype=np.uint8)


def test_a_configuration_of_sixteen_frames_scores_bit_for_bit_as_one_of_six(
    random_kit: Path, tmp_path: Path, clips: np.ndarray
) -> None:
    sixteen = Foundation(with_config(random_kit, tmp_path / "16", num_frames=16))
    six = Foundation(with_config(random_kit, tmp_path / "6", num_frames=6))
    for found, expected in zip(sixteen.describe_videos(clips[:, :6]), six.describe_videos(clips[:, :6]), strict=True):
        np.testing.assert_array_equal(found, expected)
    model = VideoMAEForVideoClassification.from_pretrained(random_kit / "video_classifier", num_frames=6).eval()
    pixels = six._pixels("video_classifier", clips[:, :6].reshape(-1, 32, 32, 3)).reshape(5, 6, 3, 32, 32)
    with torch.inference_mode():
        by_itself = model(pixels).logits.softmax(-1).numpy()
    np.testing.assert_allclose(sixteen.classify_videos(clips[:, :6]), by_itself, atol=1e-6)


@pytest.mark.parametrize(
    ("n_frames", "shown"),
    [
        (1, [0, 0, 0, 0, 0, 0]),
        (5, [0, 1, 2, 2, 3, 4]),
        (7, [0, 1, 2, 4, 5, 6]),
        (13, [0, 2, 5, 7, 10, 12]),
    ],
)
def test_any_number_of_frames_is_shown_from_first_to_last(
    random_kit: Path, clips: np.ndarray, n_frames: int, shown: list[int]
) -> None:
    foundation = Foundation(random_kit)
    found = foundation.classify_videos(clips[:, :n_frames])
    np.testing.assert_array_equal(found, foundation.classify_videos(clips[:, shown]))
    changed = clips[:, :n_frames].copy()
    changed[:, -1] = 255 - changed[:, -1]
    assert np.abs(foundation.classify_videos(changed) - found).max(axis=1).min() > 0  # the last frame counts


def test_tubelets_that_do_not_divide_six_frames_are_refused(random_kit: Path, tmp_path: Path) -> None:
    folder = with_config(random_kit, tmp_path / "wide", num_frames=16, tubelet_size=4)
    model = VideoMAEForVideoClassification.from_pretrained(folder / "video_classifier", ignore_mismatched_sizes=True)
    model.save_pretrained(folder / "video_classifier")
    with pytest.raises(ModelError, match="divides 6 frames, found 4"):
        Foundation(folder).classify_videos(np.zeros((1, 6, 32, 32, 3), np.uint8))
