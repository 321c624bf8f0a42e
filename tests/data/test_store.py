import errno
import json
import multiprocessing
import shutil

import numpy as np
import pytest
import zarr
from small_store import HEADER, SCANS, SPLITS, fill, make_vertex

from mindvideo import atlas
from mindvideo.data import writing
from mindvideo.data.store import Store, identify_voxels
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError


def test_what_is_written_comes_back(store, parts):
    for name, (fmri, repeats, frames, scene, captions, words) in parts.items():
        np.testing.assert_array_equal(store.fmri(name), fmri)
        np.testing.assert_array_equal(store.repeats(name), repeats)
        np.testing.assert_array_equal(store.frames(name), frames)
        np.testing.assert_array_equal(store.frames(name, 1, 3), frames[1:3])
        np.testing.assert_array_equal(store.frames_at(name, np.array([3, 0, 3])), frames[[3, 0, 3]])
        np.testing.assert_array_equal(store.scene(name), scene)
        assert store.captions(name) == captions and store.frame_captions(name) == words
    assert store.splits == SPLITS and store.order == list(SCANS) and store.segments("validation") == ["seg10"]
    assert (store.tr_s, store.lag_s, store.fps, store.size, store.num_frames) == (2.0, 4.0, 3, 8, 6)
    assert store.n_voxels == 7 and store.vertex.dtype == np.int32 and store.area.dtype == np.int16
    np.testing.assert_array_equal(store.area, atlas.area_labels()[make_vertex()])
    assert store.voxel_id == identify_voxels(make_vertex().astype(np.int64)) != identify_voxels(make_vertex()[::-1])
    assert np.isnan(store.reproducibility).all() and store.p_value.shape == (atlas.N_CORTEX,)
    assert store.attrs["provenance"] == [{"step": "trim", "parameters": {"first": 2}}]
    with pytest.raises(DataError, match=r"segment 'seg3'.*seg1, seg2"):
        store.fmri("seg3")
    with pytest.raises(DataError, match="found 'holdout'"):
        store.segments("holdout")


def test_frames_lie_in_chunks_of_whole_scans(tmp_path, parts, monkeypatch):
    monkeypatch.setattr(writing, "_CHUNK_BYTES", 2 * 6 * 8 * 8 * 3)  # two scans a chunk
    with StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, parts)
        frames = parts["seg1"][2]
        writer.write_frames("seg1", frames)
        np.testing.assert_array_equal(writer.finish().frames("seg1"), frames)
    assert zarr.open_group(tmp_path / "s.zarr", mode="r")["frames/seg1"].chunks == (2, 6, 8, 8, 3)


def test_summary_counts(store, parts):
    summary = store.summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["voxels_per_area"] == {"V1": 5, "MT": 2}
    assert (summary["voxels_left"], summary["voxels_right"]) == (5, 2)
    assert summary["windows"] == {"train": 10, "validation": 5, "test": 8}
    assert summary["scenes"]["test"] == len(
        np.unique(np.concatenate([parts[n][3].ravel() for n in ("test1", "test2")]))
    )
    assert summary["repeats"]["test1"] == 3 and summary["captions"] == sum(SCANS.values())
    assert summary["reproducibility_median"] is None and summary["sources"] == {"stimuli/seg1.mp4": "00ff"}


def test_export(store, parts, tmp_path):
    store.export_npz(tmp_path / "out.npz", frames=True)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"fmri_train", "fmri_test", "vertex", "frames_train", "frames_test"}
        train = ["seg1", "seg2", "seg10"]
        np.testing.assert_array_equal(arrays["fmri_train"], np.stack([parts[n][0] for n in train]))
        np.testing.assert_array_equal(arrays["frames_train"], np.stack([parts[n][2] for n in train]))
        np.testing.assert_array_equal(arrays["fmri_test"], np.stack([parts[n][0] for n in SPLITS["test"]]))
        np.testing.assert_array_equal(arrays["vertex"], make_vertex())
        assert arrays["fmri_test"].dtype == np.float32 and arrays["frames_test"].dtype == np.uint8
    store.export_npz(tmp_path / "small.npz")
    with np.load(tmp_path / "small.npz") as arrays:
        assert set(arrays) == {"fmri_train", "fmri_test", "vertex"}
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.npz", "small.npz"]


def test_export_refuses_unequal_segments(tmp_path, parts):
    fmri, repeats, frames, scene, captions, words = parts["seg2"]
    parts["seg2"] = (fmri[:3], repeats[:, :3], frames[:3], scene[:3], captions[:3], words[:3])
    with StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, parts)
        with pytest.raises(DataError, match=r"segments of one length.*'seg2': 3"):
            writer.finish().export_npz(tmp_path / "out.npz")
    assert not list(tmp_path.glob("*.npz"))


def test_an_interrupted_store_is_refused_and_goes_on(tmp_path, parts):
    path = tmp_path / "s.zarr"
    with StoreWriter(path, vertex=make_vertex(), **HEADER) as writer:
        fill(writer, parts, ["seg1", "seg2"])
        writer.write_scene("seg10", parts["seg10"][3])
        with pytest.raises(DataError, match=r"every part of segment seg10.*found no fmri, repeats, frames, captions"):
            writer.finish()
    with pytest.raises(DataError, match=r"interrupted one with 2 whole segments \(seg1, seg2\); run prepare again"):
        Store.open(path)
    with pytest.raises(DataError, match="a prepared store made with other settings"):
        StoreWriter(path, vertex=make_vertex(), **HEADER, fingerprint="other")
    with StoreWriter(path, vertex=make_vertex(), **HEADER) as writer:
        assert writer.has("seg2") and writer.has("seg10", "scene") and not writer.has("seg10")
        fill(writer, parts, ["seg10", "test1", "test2"])
        np.testing.assert_array_equal(writer.finish().fmri("seg2"), parts["seg2"][0])
    with pytest.raises(DataError, match="found a complete one; remove it first"):
        StoreWriter(path, vertex=make_vertex(), **HEADER)
    assert not path.with_name("s.zarr.lock").exists()


def test_other_folders_are_refused(tmp_path, store):
    with pytest.raises(DataError, match="found no folder; run prepare first"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="another kind of folder"):
        Store.open(tmp_path / "plain")
    zarr.create_group(tmp_path / "zarr", attributes={"format": "something"})
    with pytest.raises(DataError, match="another zarr group"):
        Store.open(tmp_path / "zarr")
    with pytest.raises(DataError, match="another zarr group"):
        StoreWriter(tmp_path / "zarr", vertex=make_vertex(), **HEADER)
    shutil.copytree(store.path, tmp_path / "old")
    group = zarr.open_group(tmp_path / "old", mode="r+")
    group.attrs["version"] = 7
    with pytest.raises(DataError, match=r"store of version 1 at .*found version 7"):
        Store.open(tmp_path / "old")
    (tmp_path / "old" / "zarr.json").write_text('{"zarr_format": 3, "node_')
    with pytest.raises(DataError, match="another kind of folder"):
        Store.open(tmp_path / "old")


@pytest.mark.parametrize("name", ["frames/seg2", "fmri/test1", "vertex"])
def test_lost_data_are_noticed(tmp_path, store, name):
    shutil.copytree(store.path, tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / name / "c")
    with pytest.raises(DataError, match=f"all of {name}.*run prepare again"):
        Store.open(tmp_path / "s.zarr")
    shutil.rmtree(tmp_path / "s.zarr" / name)
    with pytest.raises(DataError, match="run prepare again"):
        Store.open(tmp_path / "s.zarr")


def _try_to_write(path, queue):
    try:
        StoreWriter(path, vertex=make_vertex(), **HEADER)
        queue.put("no error")
    except DataError as error:
        queue.put(str(error))


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "s.zarr"
    with StoreWriter(path, vertex=make_vertex(), **HEADER):
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=_try_to_write, args=(path, queue))
        process.start()
        assert "found another at work" in queue.get(timeout=20)
        process.join(timeout=20)
        with pytest.raises(DataError, match="found another at work"):
            StoreWriter(path, vertex=make_vertex(), **HEADER)
    StoreWriter(path, vertex=make_vertex(), **HEADER).close()


def test_a_full_disk_leaves_an_incomplete_store(tmp_path, parts, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "s.zarr"
    with StoreWriter(path, vertex=make_vertex(), **HEADER) as writer:
        fill(writer, parts, ["seg1"])
        monkeypatch.setattr("zarr.storage._local._put", fail)
        with pytest.raises(DataError, match=r"disk full while writing frames of seg2.*needs about 0\.0 MB.*make room"):
            writer.write_frames("seg2", parts["seg2"][2])
        monkeypatch.undo()
    with pytest.raises(DataError, match=r"1 whole segments \(seg1\)"):
        Store.open(path)


@pytest.mark.parametrize(
    "change", [{"splits": {**SPLITS, "test": ["seg1"]}}, {"splits": {"training": ["seg1"]}}, {"order": ["seg1"]}]
)
def test_every_segment_is_in_one_split(tmp_path, change):
    with pytest.raises(DataError, match="every segment in one of train, validation, test"):
        StoreWriter(tmp_path / "s.zarr", **{"vertex": make_vertex(), "order": list(SCANS), **HEADER, **change})
    assert not (tmp_path / "s.zarr.lock").exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (0, lambda fmri: fmri[:, :5], r"fmri/seg1 as float32 \(5, 7\)"),
        (0, lambda fmri: fmri[:3], r"repeats/seg1 as float32 \(any, 3, 7\)"),
        (2, lambda frames: frames[:, :, :7], r"frames/seg1 as uint8 \(5, 6, 8, 8, 3\)"),
        (3, lambda scene: scene[:, :2], r"scene/seg1 as int32 \(5, 6\)"),
        (4, lambda captions: captions[:4], r"captions of 5 scans of 6 frames in segment seg1"),
        (5, lambda words: [row[:4] for row in words], r"captions of 5 scans of 6 frames in segment seg1"),
    ],
)
def test_ill_shaped_parts_are_refused(tmp_path, parts, part, change, message):
    given = {**parts, "seg1": tuple(change(each) if at == part else each for at, each in enumerate(parts["seg1"]))}
    with StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **HEADER) as writer:
        fill(writer, given)
        with pytest.raises(DataError, match=message):
            writer.finish()
    with pytest.raises(DataError, match="interrupted one with 5 whole segments"):
        Store.open(tmp_path / "s.zarr")


def test_fmri_that_is_not_finite_is_refused(tmp_path, parts):
    fmri, repeats = parts["seg1"][:2]
    writer = StoreWriter(tmp_path / "s.zarr", vertex=make_vertex(), **HEADER)
    with writer, pytest.raises(DataError, match="finite fMRI for segment seg1"):
        writer.write_fmri("seg1", np.where(fmri > 1, np.nan, fmri), repeats)
