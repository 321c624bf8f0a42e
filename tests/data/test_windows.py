import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_store import HEADER, SPLITS, fill, make_parts, make_vertex
from small_wen import FPS_SOURCE, N_SCANS, SIZE, make_raw, marker

from mindvideo.config import Data
from mindvideo.data.readers import prepare
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows, near_duplicates
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError, SettingError
from mindvideo.models.transformer import split_patches

SLOW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("window", [1, 2, 3, 9])
def test_windows_equal_a_plain_loop(store, parts, split, window):
    windows = Windows(store, split, window)
    place, fmri, frames, scene, captions = [], [], [], [], []
    for name in SPLITS[split]:
        n = len(parts[name][0])
        for t in range(n):
            place.append((name, t))
            fmri.append([parts[name][0][min(t + w, n - 1)] for w in range(window)])
            frames.append(parts[name][2][t])
            scene.append(parts[name][3][t][3])
            captions.append(parts[name][4][t])
    assert len(windows) == len(place) and windows.n_voxels == 7
    assert list(zip(windows.segment, windows.scan, strict=True)) == place
    assert windows.scene.tolist() == scene and windows.captions == captions
    index = np.random.default_rng(0).integers(0, len(windows), 11)
    assert windows.fmri(index).dtype == np.float32
    np.testing.assert_array_equal(windows.fmri(index), np.array(fmri)[index])
    np.testing.assert_array_equal(windows.frames(index), np.array(frames)[index])
    assert windows.fmri(np.array([], dtype=int)).shape == (0, window, 7)


def test_frames_at_another_rate_come_from_the_films(tmp_path):
    (tmp_path / "run").mkdir()
    raw = make_raw(tmp_path / "run")
    settings = Data(captions=str(raw / "captions.csv"), size=SIZE, alpha=0.2, wen2018={"exclude": ()})
    prepare(raw, raw / "store.zarr", settings)
    (tmp_path / "run").rename(tmp_path / "moved")  # a run folder that moved with its films
    windows = Windows(Store.open(tmp_path / "moved" / "store.zarr"), "test", 2)
    index = np.array([N_SCANS + 3, 2, 5])  # of test2, test1, test1
    frames = windows.frames_at_rate(index, 10)  # 5 frames a second of a film at 15: every third one
    assert frames.shape == (3, 10, SIZE, SIZE, 3) and frames.dtype == np.uint8
    corner = frames[:, :, 2:6, 2:6].mean(axis=(2, 3, 4))
    wanted = [[marker(scan * 2 * FPS_SOURCE + 3 * j) for j in range(10)] for scan in (3, 2, 5)]
    assert np.abs(corner - wanted).max() < 3
    assert windows.frames_at_rate(index, 4, size=48).shape == (3, 4, 48, 48, 3)
    np.testing.assert_array_equal(windows.frames_at_rate(index, 6), windows.frames(index))
    film = tmp_path / "moved" / "stimuli" / "test2.mp4"
    film.write_bytes(film.read_bytes() + b"0")
    with pytest.raises(DataError, match=r"the film of test2 .* as it was prepared, found another"):
        windows.frames_at_rate(index, 10)
    film.unlink()
    with pytest.raises(DataError, match=r"the film of test2 .*no such file"):
        windows.frames_at_rate(index, 10)


def test_arrays_have_no_films_to_read_again(store):
    with pytest.raises(DataError, match=r"place of the film of test1 .*prepared from arrays"):
        Windows(store, "test", 1).frames_at_rate(np.array([0]), 5)


def test_bad_windows_are_refused(store, tmp_path, parts):
    with pytest.raises(DataError, match="found 'hold-out'"):
        Windows(store, "hold-out", 2)
    header = {**HEADER, "splits": {"train": ["seg1"], "test": ["test1"]}}
    with StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **header) as writer:
        fill(writer, parts, ["seg1", "test1"])
        with pytest.raises(DataError, match="segments in split 'validation'"):
            Windows(writer.finish(), "validation", 2)


def _most_without_repeats(shown):
    """Largest number of windows without a scene in common, by trying every subset."""
    if not shown:
        return 0
    rest = [scenes for scenes in shown[1:] if not scenes & shown[0]]
    return max(1 + _most_without_repeats(rest), _most_without_repeats(shown[1:]))


@settings(max_examples=30, **SLOW)
@given(seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_no_scene_comes_twice_in_a_batch(store, seed, share):
    windows = Windows(store, "train", 2)
    shown = [set(row.tolist()) for name in SPLITS["train"] for row in store.scene(name)]
    most = _most_without_repeats(shown)
    batch_size = 1 + int(share * (most - 1))
    batch = windows.sample_batch(np.random.default_rng(seed), batch_size)
    assert len(batch) == batch_size and most < len(set(windows.scene.tolist()))
    assert all(not shown[i] & shown[j] for k, i in enumerate(batch) for j in batch[:k])
    assert np.array_equal(batch, windows.sample_batch(np.random.default_rng(seed), batch_size))
    with pytest.raises(DataError, match=f"at least {most + 1} windows.*found {most}; lower batch_size"):
        windows.sample_batch(np.random.default_rng(seed), most + 1)


def test_every_window_can_be_drawn_first_equally_often(store):
    windows = Windows(store, "train", 1)
    rng = np.random.default_rng(3)
    counts = np.bincount([windows.sample_batch(rng, 1)[0] for _ in range(2000)], minlength=len(windows))
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-squared, df 9, P = .001


@settings(max_examples=20, **SLOW)
@given(block=st.integers(1, 9))
def test_blocks_are_runs_inside_a_segment(store, block):
    windows = Windows(store, "test", 2)
    numbers, labels, expected = windows.blocks(block), {}, []
    for segment, scan in zip(windows.segment, windows.scan, strict=True):
        expected.append(labels.setdefault((segment, scan // block), len(labels)))
    assert numbers.tolist() == expected
    with pytest.raises(SettingError):
        windows.blocks(0)


@settings(max_examples=50, deadline=None)
@given(n_voxels=st.integers(1, 40), patch_size=st.integers(1, 17))
def test_padding_wraps_round(n_voxels, patch_size):
    fmri = np.arange(3 * 2 * n_voxels).reshape(3, 2, n_voxels)
    padded = split_patches(torch.from_numpy(fmri), patch_size).flatten(2)
    width = -(-n_voxels // patch_size) * patch_size
    np.testing.assert_array_equal(padded, np.pad(fmri, [(0, 0), (0, 0), (0, width - n_voxels)], mode="wrap"))


def test_near_duplicates_are_found_where_they_were_put(tmp_path):
    parts = make_parts()
    rng = np.random.default_rng(5)
    noisy = parts["seg10"][2][2].astype(int) + rng.integers(-3, 4, parts["seg10"][2][2].shape)
    parts["test1"][2][1] = np.clip(noisy, 0, 255)
    parts["test2"][2][3, 4] = parts["seg1"][2][0, 1] // 2  # one frame, darker, at another moment
    parts["test2"][2][0] = 255  # blank frames are no duplicates
    parts["seg2"][2][4] = 255
    with StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, parts)
        store = writer.finish()
    found = near_duplicates(store, 0.98)
    assert [(d.test_segment, d.test_scan, d.train_segment, d.train_scan) for d in found] == [
        ("test1", 1, "seg10", 2),
        ("test2", 3, "seg1", 0),
    ]
    grey = [parts[n][2][s, f].mean(axis=-1).ravel() for n, s, f in (("test2", 3, 4), ("seg1", 0, 1))]
    assert found[1].correlation == pytest.approx(np.corrcoef(*grey)[0, 1], abs=1e-5)
    assert len(near_duplicates(store, 0.999999)) == 0
