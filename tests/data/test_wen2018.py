"""The Wen 2018 reader on a small folder in Purdue's layout, against a plain NumPy/SciPy computation, and its errors."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_wen import (
    CUTS,
    FPS_SOURCE,
    N_SCANS,
    RUNS,
    SIZE,
    TEST,
    TRAIN,
    VERTEX,
    cifti_path,
    expected_p,
    expected_run,
    film,
    make_raw,
    marker,
)

from mindvideo.atlas import area_labels, area_names, area_of
from mindvideo.config import Data
from mindvideo.data.captions import Captioning
from mindvideo.data.cifti import write_cortex
from mindvideo.data.readers import discover, prepare
from mindvideo.data.readers.wen2018 import first_volume_time
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.data.video import write_video
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("wen"))


@pytest.fixture
def raw(raw_folder, tmp_path):
    """A copy whose files may be replaced or removed (links: never write into one)."""
    return Path(shutil.copytree(raw_folder, tmp_path / "raw", copy_function=os.link))


def _settings(root, **changes):
    own = {name: changes.pop(name) for name in ("exclude", "expect") if name in changes}
    common = {"captions": str(root / "captions.csv"), "size": SIZE, "alpha": 0.2} | changes
    return Data(**common, wen2018={"exclude": ()} | own)


@pytest.fixture(scope="module")
def store(raw_folder, tmp_path_factory):
    return prepare(raw_folder, tmp_path_factory.mktemp("out") / "store.zarr", _settings(raw_folder))


def test_published_trims():
    assert first_volume_time(245, 240, 2.0) == 2.0
    assert first_volume_time(246, 240, 2.0) == 0.0


def test_fmri_equals_plain_computation(raw_folder, store):
    column = np.searchsorted(VERTEX, store.vertex)
    for name in TRAIN + TEST:
        runs = np.stack([expected_run(raw_folder, name, run) for run in range(1, RUNS[name] + 1)])
        np.testing.assert_allclose(store.repeats(name), runs[:, :, column], atol=1e-5)
        np.testing.assert_allclose(store.fmri(name), runs.mean(axis=0)[:, column], atol=1e-5)


def test_selection_equals_plain_computation(raw_folder, store):
    z, p = expected_p(raw_folder)
    np.testing.assert_allclose(store.p_value[VERTEX], p, rtol=1e-4)
    np.testing.assert_allclose(store.reproducibility[VERTEX], np.tanh(z.mean(axis=0)), atol=1e-5)
    assert np.isnan(np.delete(store.p_value, VERTEX)).all()
    survivors = [i for i in np.argsort(p) if p[i] * len(VERTEX) < 0.2]
    assert 6 < len(survivors) < len(VERTEX)
    assert set(store.vertex) == set(VERTEX[survivors[: len(survivors) // 2]])
    bare = [area_names()[label].split("_")[1] for label in area_labels()[store.vertex]]
    order = ["V1", "V3", "V8", "LO1", "MT", "FEF"]
    assert [order.index(name) for name in bare] == sorted(order.index(name) for name in bare)
    side = area_labels()[store.vertex] > 180
    for name in set(bare):
        inside = side[np.array(bare) == name]
        assert list(inside) == sorted(inside)


def test_other_selections_and_areas(raw_folder, tmp_path):
    _, p = expected_p(raw_folder)
    in_areas = np.isin(VERTEX, np.concatenate([area_of("V1"), area_of("MT")]))
    chosen = prepare(raw_folder, tmp_path / "a", _settings(raw_folder, areas="V1,MT", selection="top_k", k=16)).vertex
    assert set(chosen) == set(VERTEX[in_areas])
    store = prepare(raw_folder, tmp_path / "b", _settings(raw_folder, areas="V1,MT", selection="bonferroni"))
    assert set(store.vertex) == set(VERTEX[in_areas][p[in_areas] * in_areas.sum() < 0.2])
    with pytest.raises(DataError, match="V2"):
        prepare(raw_folder, tmp_path / "c", _settings(raw_folder, areas="V2"))


def test_frames_scenes_captions(raw_folder, store):
    seen = set()
    for name in TRAIN + TEST:
        index = np.arange(N_SCANS)[:, None] * 2 * FPS_SOURCE + np.arange(6) * 5  # 15 frames/s shown at 3 a second
        frames = store.frames(name)
        assert frames.shape == (N_SCANS, 6, SIZE, SIZE, 3)
        np.testing.assert_allclose(frames[:, :, 3, 3].mean(axis=-1), marker(index), atol=8)
        truth = np.searchsorted(CUTS[name], index, side="right")
        scene = store.scene(name)
        assert {tuple(pair) for pair in np.stack([scene, truth], axis=-1).reshape(-1, 2)} == set(
            zip(np.unique(scene), np.unique(truth), strict=True)
        )
        assert not seen & set(scene.ravel())
        seen |= set(scene.ravel())
        wanted = [[f"{name} scene {i}" for i in row] for row in truth]
        assert store.frame_captions(name) == wanted
        assert store.captions(name) == [". Then ".join(dict.fromkeys(row)) for row in wanted]


def test_splits_and_provenance(raw_folder, store):
    assert store.splits == {"train": TRAIN[:4], "validation": ["seg10"], "test": TEST}
    assert store.order == TRAIN + TEST and store.subject == "subject1"
    path = cifti_path(raw_folder, "seg1", 1)
    key = path.relative_to(raw_folder).as_posix()
    assert store.attrs["sources"][key] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(store.attrs["sources"]) == 7 + 16 + 1
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    assert steps["trim"]["first_volume"]["test1_1"] == 1 and steps["trim"]["first_volume"]["test2_1"] == 2
    assert steps["reproducibility"] == {"segments": TRAIN[:4], "test": "one-sided t of Fisher z", "df": 3}


@pytest.mark.parametrize("selection", ["paper", "bonferroni", "top_k", "all"])
def test_a_test_run_changes_no_training_value(raw, store, tmp_path, selection):
    settings = _settings(raw, selection=selection, k=17)
    before = store if selection == "paper" else prepare(raw, tmp_path / "before", settings)
    path = cifti_path(raw, "test1", 2)
    data = read_cortex(path).data.copy()
    write_cortex(path, data + 5 * np.random.default_rng(0).standard_normal(data.shape), VERTEX, 2.0)
    other = prepare(raw, tmp_path / "other", settings)
    np.testing.assert_array_equal(other.vertex, before.vertex)  # which voxels, and their order
    np.testing.assert_array_equal(other.p_value, before.p_value)
    np.testing.assert_array_equal(other.reproducibility, before.reproducibility)
    for name in [*TRAIN, "test2"]:
        np.testing.assert_array_equal(other.fmri(name), before.fmri(name))
        np.testing.assert_array_equal(other.repeats(name), before.repeats(name))
    for split in ("train", "validation"):  # what scalers are fitted on
        windows = [Windows(item, split, 2) for item in (before, other)]
        index = np.arange(len(windows[0]))
        np.testing.assert_array_equal(windows[1].fmri(index), windows[0].fmri(index))
    assert np.abs(other.fmri("test1") - before.fmri("test1")).max() > 0.1


class _Captioner:
    def __init__(self, dies_at=None):
        self.calls, self.dies_at = 0, dies_at

    def __call__(self, frames):
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.calls += 1
        return [f"colour {frame[20, 20].tolist()}" for frame in frames]


def _arrays(store):
    for name in store.order:
        yield from (store.fmri(name), store.repeats(name), store.frames(name), store.scene(name))
        yield from (store.captions(name), store.frame_captions(name))
    yield from (store.vertex, store.p_value, store.reproducibility)


def test_goes_on_after_an_interruption(raw, tmp_path):
    data = _settings(raw, captions="blip")
    with pytest.raises(DataError, match="captioner"):
        prepare(raw, tmp_path / "none", data)
    assert not (tmp_path / "none").exists()
    all_of_it = _Captioner()
    whole = prepare(raw, tmp_path / "whole", data, captioning=Captioning(all_of_it))
    dies_at = 3
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "cut", data, captioning=Captioning(_Captioner(dies_at)))
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut" / "frames" / "seg1").rglob("*")}
    assert len(finished) > 1
    with pytest.raises(DataError, match="interrupted"):
        Store.open(tmp_path / "cut")
    with pytest.raises(DataError, match="same settings"):
        prepare(raw, tmp_path / "cut", _settings(raw, captions="blip", lag_s=2.0), captioning=Captioning(_Captioner()))
    steps = []
    captioner = _Captioner()
    resumed = prepare(raw, tmp_path / "cut", data, lambda *step: steps.append(step), Captioning(captioner))
    assert dies_at + captioner.calls == all_of_it.calls > dies_at
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert steps[-1][0] == steps[-1][1] and steps[-1][2] == {"what": "wrote test2"}
    for a, b in zip(_arrays(whole), _arrays(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match="complete one"):
        prepare(raw, tmp_path / "cut", data, captioning=Captioning(_Captioner()))


def _refused(raw, *parts, error=DataError, **changes):
    out = raw.parent / "refused"
    with pytest.raises(error) as caught:
        prepare(raw, out, _settings(raw, **changes))
    message = str(caught.value)
    assert "\n" not in message and not out.exists()
    for part in parts:
        assert part in message, message


def _rewrite(path, change=lambda data: data, vertex=VERTEX, tr_s=2.0):
    data = np.array(read_cortex(path).data)
    write_cortex(path, change(data), vertex, tr_s)


def _pad(data, n_volumes):
    return np.concatenate([data, data])[:n_volumes]


def test_missing_runs_and_films(raw):
    cifti_path(raw, "seg10", 2).unlink()
    _refused(raw, "missing: seg10_2", "subject1:seg10_2 under exclude")
    assert [run.label for run in discover(raw, _settings(raw, exclude=["subject1:seg10_2"])).segments[4].runs] == [
        "seg10_1"
    ]
    cifti_path(raw, "seg10", 1).unlink()
    _refused(raw, "none of seg10", "subject1:seg10 under exclude")
    names = [item.name for item in discover(raw, _settings(raw, exclude=["subject1:seg10"])).segments]
    assert names == [*TRAIN[:4], *TEST]
    (raw / "stimuli" / "test1.mp4").unlink()
    _refused(raw, "found none of test1", "stimuli", "subject1:test1 under exclude", exclude=["subject1:seg10"])


def test_wrong_recordings(raw):
    path = cifti_path(raw, "seg2", 1)
    _rewrite(path, lambda data: _pad(data, 23))
    _refused(raw, str(path), "expected 17 or 18 volumes", "found 23")
    _rewrite(path, lambda data: _pad(data, 17), tr_s=1.5)
    _refused(raw, str(path), "TR of 2 s", "found 1.5 s")
    _rewrite(path, lambda data: data[:, :-1], vertex=VERTEX[:-1])
    _refused(raw, str(path), "48 cortical vertices", "47 that differ")


@pytest.mark.parametrize("run", [("seg3", 2), ("test1", 3)])
def test_bad_values_are_found_before_anything_is_written(raw, run):
    path = cifti_path(raw, *run)

    def spoil(value):
        def change(data):
            data[3:, 5] = value
            data[:, 7] = value
            return data

        return change

    _rewrite(path, spoil(np.nan))
    _refused(raw, str(path), "NaN")
    _rewrite(path, lambda data: np.where(np.arange(len(VERTEX)) < 9, 4.0, data))
    _refused(raw, str(path), "9 of 48 that never change", "exclude that run")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-400])
    _refused(raw, str(path), "truncated")


def test_wrong_films(raw):
    path = raw / "stimuli" / "seg4.mp4"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])
    _refused(raw, str(path))
    write_video(path, list(film("seg4"))[: 20 * FPS_SOURCE], FPS_SOURCE, SIZE)
    _refused(raw, "expected 15 or 16 volumes", "20.00 s", "found 17")
    write_video(path, list(film("seg4"))[: 23 * FPS_SOURCE + 2], FPS_SOURCE, SIZE)
    _refused(raw, str(path), "too short", "second 23.13")
    shutil.copy(raw / "stimuli" / "seg1.mp4", raw / "stimuli" / "seg1.mkv")
    _refused(raw, "several")


def test_a_vertex_without_signal_in_one_run_is_no_voxel(raw, store, tmp_path):
    gone = int(np.searchsorted(VERTEX, store.vertex[0]))
    _rewrite(cifti_path(raw, "test1", 3), lambda data: np.where(np.arange(len(VERTEX)) == gone, 4.0, data))
    other = prepare(raw, tmp_path / "store", _settings(raw))
    assert VERTEX[gone] not in other.vertex and np.isnan(other.p_value[VERTEX[gone]])
    assert other.remarks == [f"vertices left out, which have no signal in some run (1): {VERTEX[gone]}"]
    rest = np.delete(VERTEX, gone)
    np.testing.assert_array_equal(other.p_value[rest], store.p_value[rest])


def test_copies_of_one_run(raw):
    shutil.copy(cifti_path(raw, "seg1", 1), raw / "copy")
    os.replace(raw / "copy", cifti_path(raw, "seg1", 2))
    _refused(raw, "seg1", "copies")


def test_lag(raw_folder, tmp_path):
    firsts = {run.label: run.first for item in discover(raw_folder, _settings(raw_folder, lag_s=6.0)).segments
              for run in item.runs}  # fmt: skip
    assert firsts["seg1_1"] == 2 and firsts["test2_3"] == 3
    for lag_s in (0.0, 3.0, 14.0):
        with pytest.raises(DataError, match="lag_s of 2 to 12 s in steps of 2 s"):
            discover(raw_folder, _settings(raw_folder, lag_s=lag_s))


def test_folders(raw, tmp_path):
    _refused(raw, "subject2", subject=2)
    with pytest.raises(DataError, match="absent"):
        discover(tmp_path / "absent", _settings(raw))
    folder = raw / "subject1" / "fmri" / "seg3"
    (folder / "cifti").rename(folder / "mni")
    _refused(raw, f"{folder}/cifti/seg3_1_Atlas.dtseries.nii", "NIfTI")
    _refused(raw, "subject3:test2_9", "'seg3'", error=SettingError, exclude=["seg3"])
    _refused(raw, "whole number of frames", error=SettingError, fps=3, tr_s=1.9, exclude=["subject1:seg3"])


def test_expect_wen2018(raw, tmp_path):
    _refused(raw, "18 train segments", "found 5", "seg5", expect="wen2018")
    for kind, n_segments, n_runs in (("seg", 18, 2), ("test", 5, 10)):
        for number in range(1, n_segments + 1):
            film = raw / "stimuli" / f"{kind}{number}.mp4"
            if not film.exists():
                os.link(raw / "stimuli" / "seg1.mp4", film)
            for run in range(1, n_runs + 1):
                path = cifti_path(raw, f"{kind}{number}", run)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    os.link(cifti_path(raw, "seg1", 1), path)
    assert len(discover(raw, _settings(raw, expect="wen2018")).segments) == 23
    for number in range(1, 6):
        cifti_path(raw, f"test{number}", 10).unlink()
    _refused(raw, "runs 1 to 10 of test1", expect="wen2018")


def test_exclusions_are_logged(raw, tmp_path):
    (raw / "subject1").rename(raw / "subject3")
    for run in range(4, 10):
        for name in TEST:
            folder = raw / "subject3" / "fmri" / name / "cifti"
            data = np.array(read_cortex(folder / f"{name}_1_Atlas.dtseries.nii").data)
            data += np.random.default_rng(run).standard_normal(data.shape)
            write_cortex(folder / f"{name}_{run}_Atlas.dtseries.nii", data, VERTEX, 2.0)
    data = _settings(raw, subject=3, exclude=["subject3:test2_9", "subject3:seg2_1", "subject1:seg1_1"])
    store = prepare(raw, tmp_path / "out", data)
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    assert steps["discover"]["excluded"] == [
        {"run": "subject3:seg2_1", "reason": "listed under data.wen2018.exclude"},
        {"run": "subject3:test2_9", "reason": "the run starts about 10 s late"},
    ]
    assert store.remarks[0].startswith(
        "runs and films left out (2): subject3:seg2_1 (listed under data.wen2018.exclude)"
    )
    assert store.repeats("test2").shape[0] == 8 and store.repeats("test1").shape[0] == 9
    assert store.repeats("seg2").shape[0] == 1
    np.testing.assert_array_equal(store.repeats("seg2")[0], store.fmri("seg2"))
    assert steps["reproducibility"]["segments"] == ["seg1", "seg3", "seg4"]


def test_a_misspelt_exclusion_is_refused(raw):
    for entry in ("subject1:seg2_5", "subject1:seg77", "subject1:seg77_1", "subject1:test1_9"):
        _refused(raw, entry.split(":")[1], "not there", error=SettingError, exclude=[entry])
    cifti_path(raw, "seg2", 2).unlink()  # a run may be listed because it is missing; then nothing was left out
    source = discover(raw, _settings(raw, exclude=["subject1:seg2_2", "subject2:seg77"]))
    assert source.notes["discover"]["excluded"] == []
