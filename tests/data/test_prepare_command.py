"""Settings of ``mindvideo prepare wen2018`` at the command line, on a small folder in Purdue's layout."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small_wen import N_SCANS, RUNS, TEST, TRAIN, VERTEX, cifti_path, expected_p, expected_run, make_raw

from mindvideo.atlas import area_of
from mindvideo.data.cifti import write_cortex
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.data.video import write_video
from mindvideo.data.windows import Windows

FRAMES = ("--size", 16, "--workers", 1, "--validation-segments", 1)


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("wen"))


@pytest.fixture
def prepare(cli, raw_folder, tmp_path):
    """Run the command with a captions file; a store, or what was said when it was refused."""

    def call(*options, raw=raw_folder, name="store"):
        out = tmp_path / name
        code, text = cli(
            "prepare", "wen2018", raw, "--out", out, "--captions", raw_folder / "captions.csv", *FRAMES, *options
        )
        if code == 0:
            return Store.open(out)
        assert code == 1 and "Traceback" not in text and not out.exists(), text
        return " ".join(text.split())

    return call


def test_selections(prepare, raw_folder):
    p = expected_p(raw_folder)[1]
    by_p = [i for i in np.argsort(p) if p[i] * len(VERTEX) < 0.05]
    quarter = prepare("--subject", 1, "--alpha", 0.05, "--top-fraction", 0.25)
    assert set(quarter.vertex) == set(VERTEX[by_p[: len(by_p) // 4]]) and len(by_p) >= 8
    bonferroni = prepare("--selection", "bonferroni", "--alpha", 0.05, name="b")
    assert set(bonferroni.vertex) == set(VERTEX[by_p])
    top = prepare("--selection", "top_k", "--k", 19, name="k")
    assert set(top.vertex) == set(VERTEX[np.argsort(p)[:19]])
    assert "number of voxels k" in prepare("--selection", "top_k", name="none")
    assert "selection" in prepare("--selection", "best", name="none")


def test_areas_instead_of_a_selection(prepare):
    assert set(prepare("--selection", "all", "--areas", "V1,MT").vertex) == set(
        np.intersect1d(VERTEX, [*area_of("V1"), *area_of("MT")])
    )
    visual = np.setdiff1d(VERTEX, area_of("FEF"))
    assert set(prepare("--selection", "all", "--areas", "visual", name="visual").vertex) == set(visual)
    assert set(prepare("--selection", "all", "--areas", "cortex", name="cortex").vertex) == set(VERTEX)
    some = prepare("--areas", "V1,MT", "--selection", "top_k", "--k", 16, name="both")
    assert some.n_voxels == 16
    assert "nearest MMP1 area is 'MT'" in prepare("--areas", "M T", name="none")


def test_repeats_apart_give_windows_of_their_own(prepare, raw_folder):
    average, apart = (
        prepare("--selection", "all", "--areas", "V1", "--repeats", mode, name=mode) for mode in ("average", "separate")
    )
    column = np.searchsorted(VERTEX, apart.vertex)
    n = N_SCANS * len(TRAIN[:4])
    windows, twice = Windows(average, "train", 2), Windows(apart, "train", 2)
    assert len(windows) == n and len(twice) == 2 * n
    runs = [expected_run(raw_folder, name, run)[:, column] for name in TRAIN[:4] for run in (1, 2)]
    for number, run in enumerate(runs):
        index = number * N_SCANS + np.arange(N_SCANS)
        np.testing.assert_allclose(twice.fmri(index)[:, 0], run, atol=1e-5)
        np.testing.assert_allclose(twice.fmri(index)[-1, 1], run[-1], atol=1e-5)  # does not reach into the next run
        assert set(twice.segment[index]) == {TRAIN[number // 2]} and list(twice.scan[index]) == list(range(N_SCANS))
    assert twice.captions[:N_SCANS] == twice.captions[N_SCANS : 2 * N_SCANS] == windows.captions[:N_SCANS]
    np.testing.assert_array_equal(
        twice.frames(np.array([3, N_SCANS + 3]))[[0, 0]], twice.frames(np.array([3, N_SCANS + 3]))
    )
    for split in ("validation", "test"):
        assert len(Windows(apart, split, 2)) == len(Windows(average, split, 2))


def test_lag_frames_and_workers(prepare, raw_folder):
    later = prepare("--selection", "all", "--areas", "V1", "--lag-s", 6, "--fps", 30, "--workers", 3)
    column = np.searchsorted(VERTEX, later.vertex)
    for name in ("seg2", "test2"):
        np.testing.assert_allclose(later.repeats(name)[1], expected_run(raw_folder, name, 2, 1)[:, column], atol=1e-5)
    assert later.frames("seg1").shape == (N_SCANS, 60, 16, 16, 3) and later.lag_s == 6.0 and later.fps == 30
    assert "expected a lag_s of 2 to 12 s in steps of 2 s" in prepare("--lag-s", 5, name="none")
    assert "less than or equal to 30" in prepare("--fps", 31, name="none")


def test_size_and_fit(prepare, raw_folder, tmp_path):
    raw = Path(shutil.copytree(raw_folder, tmp_path / "raw", copy_function=os.link))
    (raw / "stimuli" / "test1.mp4").unlink()
    write_video(raw / "stimuli" / "test1.mp4", [np.full((32, 48, 3), 200, np.uint8)] * 360, 15, (32, 48))
    store = prepare("--selection", "all", "--areas", "V1", "--size", 96, "--fit", "letterbox", raw=raw)
    frames = store.frames("test1", 0, 1).astype(int)
    assert frames.shape == (1, 6, 96, 96, 3)
    assert frames[:, :, :16].max() == frames[:, :, 80:].max() == 0  # 48 x 32 at twice the size, between bars
    assert abs(frames[:, :, 16:80] - 200).max() < 6
    cropped = prepare("--selection", "all", "--areas", "V1", "--size", 96, "--fit", "crop", raw=raw, name="crop")
    assert abs(cropped.frames("test1", 0, 1).astype(int) - 200).max() < 6


def test_the_late_run_is_left_out_unless_asked_for(cli, prepare, raw_folder, tmp_path, monkeypatch):
    raw = Path(shutil.copytree(raw_folder, tmp_path / "raw", copy_function=os.link))
    (raw / "subject1").rename(raw / "subject3")
    for name in TEST:
        folder = raw / "subject3" / "fmri" / name / "cifti"
        for run in range(RUNS[name] + 1, 10):
            recording = read_cortex(folder / f"{name}_1_Atlas.dtseries.nii")
            noise = np.random.default_rng(run).standard_normal(recording.data.shape)
            write_cortex(folder / f"{name}_{run}_Atlas.dtseries.nii", recording.data + noise, VERTEX, 2.0)
    store = prepare("--subject", 3, "--selection", "all", "--areas", "V1", raw=raw)
    assert (store.n_repeats("test1"), store.n_repeats("test2")) == (9, 8)
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    reason = {"run": "subject3:test2_9", "reason": "the run starts about 10 s late"}
    assert steps["discover"]["excluded"] == [reason]
    assert (
        prepare(
            "--subject", 3, "--selection", "all", "--areas", "V1", "--exclude", "none", raw=raw, name="all"
        ).n_repeats("test2")
        == 9
    )
    monkeypatch.setenv("COLUMNS", "200")
    code, text = cli("prepare", "wen2018", "--help")
    plain = " ".join(text.replace("│", " ").split())
    assert code == 0 and "subject3:test2_9" in plain and "10 s late" in plain


def test_what_the_folder_must_hold(prepare, raw_folder, tmp_path):
    raw = Path(shutil.copytree(raw_folder, tmp_path / "raw", copy_function=os.link))
    assert "expected 18 train segments" in prepare("--expect", "wen2018", raw=raw, name="none")
    folder = raw / "subject1" / "fmri" / "seg3"
    (folder / "cifti").rename(folder / "mni")
    said = prepare(raw=raw, name="none")
    assert f"{folder}/cifti/seg3_1_Atlas.dtseries.nii" in said and "mni/" in said
    assert cifti_path(raw, "seg2", 1).is_file()


def test_settings_by_their_names_in_a_recipe(cli, raw_folder, tmp_path):
    """``--set`` and an option are two ways to say one thing, and the last film of training is held out by neither."""
    common = {
        "data.captions": raw_folder / "captions.csv",
        "data.size": 16,
        "data.areas": "V1",
        "data.selection": "all",
    }
    settings = [word for name, value in common.items() for word in ("--set", f"{name}={value}")]
    code, text = cli(
        "prepare", "wen2018", raw_folder, "--out", tmp_path / "a", *settings, "--set", "data.wen2018.exclude=[]"
    )
    assert code == 0, text
    options = ("--captions", raw_folder / "captions.csv", "--size", 16, "--areas", "V1", "--selection", "all")
    code, text = cli("prepare", "wen2018", raw_folder, "--out", tmp_path / "b", *options, "--exclude", "none")
    assert code == 0, text
    stores = [Store.open(tmp_path / name) for name in "ab"]
    assert stores[0].attrs == stores[1].attrs and stores[0].splits["validation"] == []
    code, text = cli("prepare", "wen2018", raw_folder, "--out", tmp_path / "c", "--set", "data.siz=16")
    assert code == 1 and "nearest valid name is 'data.size'" in " ".join(text.split())
