"""Clips at another rate than the store's are compared with what the films show, not with stored frames repeated."""

import numpy as np
from small_wen import FPS_SOURCE, N_SCANS, SIZE, make_raw, marker

from mindvideo.config import Data, parse_recipe
from mindvideo.data.readers import prepare
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.evaluate.evaluation import OVER_TIME, list_rate_mismatch
from mindvideo.generate.clips import Shown


def test_the_truth_at_another_rate_is_read_from_the_films(tmp_path):
    raw = make_raw(tmp_path)
    prepare(
        raw,
        tmp_path / "store.zarr",
        Data(captions=str(raw / "captions.csv"), size=SIZE, alpha=0.2, wen2018={"exclude": ()}),
    )
    store = Store.open(tmp_path / "store.zarr")
    chosen = np.array([N_SCANS + 3, 2, 5])

    def shown(num_frames):
        recipe = parse_recipe({"reconstruct": {"num_frames": num_frames}})
        return Shown(recipe, store, Windows(store, "test", 1), chosen)

    ten = shown(10)
    truth = ten.make("truth", np.arange(3))
    corner = truth[:, :, 2:6, 2:6].mean(axis=(2, 3, 4))
    wanted = [[marker(scan * 2 * FPS_SOURCE + 3 * j) for j in range(10)] for scan in (3, 2, 5)]
    assert np.abs(corner - wanted).max() < 3
    assert ten.about_frames == {"frames_from": "films"} and list_rate_mismatch(ten.about_frames, 10, 6) == {}
    clips = ten.make("random_train", np.arange(3))
    assert (np.abs(np.diff(clips.astype(int), axis=1)).max(axis=(2, 3, 4)) > 0).all()  # no frame twice
    np.testing.assert_array_equal(shown(6).make("truth", np.arange(3)), Windows(store, "test", 1).frames(chosen))

    (raw / "stimuli" / "seg1.mp4").unlink()
    without = shown(10)
    reason = list_rate_mismatch(without.about_frames, 10, 6)[OVER_TIME]
    assert "6 stored frames a scan do not move like 10" in reason and "the film of seg1" in reason
    assert list_rate_mismatch(shown(3).about_frames, 3, 6) == {}  # every other stored frame
    assert OVER_TIME in list_rate_mismatch(shown(4).about_frames, 4, 6)
    repeated = without.make("truth", np.arange(3)).astype(int)
    assert (np.abs(np.diff(repeated, axis=1)).max(axis=(2, 3, 4)) == 0).sum() == 3 * 4
