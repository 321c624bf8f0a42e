"""The fMRIPrep reader on a small folder in fMRIPrep's and BIDS's own layout, against plain NumPy/SciPy, and its errors."""

import json
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import stats

from mindvideo.atlas import area_of
from mindvideo.config import Data, load_recipe
from mindvideo.data.captions import Captioning
from mindvideo.data.cifti import write_cortex
from mindvideo.data.denoising import clean_run, covered_scans, resampling_weights
from mindvideo.data.readers import discover, prepare
from mindvideo.data.series import read_cortex
from mindvideo.data.store import Store
from mindvideo.data.video import write_video
from mindvideo.errors import DataError, SettingError
from mindvideo.study import Study

TR, LAG, FPS, SIZE, SOURCE_FPS = 1.5, 3.0, 2, 32, 10
HIGH_PASS = 0.03
CONFOUNDS = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z", "csf", "white_matter"]
SCANS = {"a": 6, "b": 8, "c": 5, "d": 7, "t": 9}
RUNS = {
    "sub-01_ses-1_task-movie_run-1": (56, [("a", 3.0), ("b", 15.75), ("a", 34.1), ("c", 50.0)]),
    "sub-01_ses-1_task-movie_run-2": (48, [("b", 1.2), ("t", 16.0), ("c", 31.4), ("a", 42.0)]),
    "sub-01_ses-2_task-movie_run-1": (44, [("d", 2.0), ("t", 14.3), ("d", 29.5)]),
    "sub-01_ses-2_task-movie_run-2": (36, [("t", 0.0), ("t", 20.3)]),
}
TEST_ONLY, MIXED = "sub-01_ses-2_task-movie_run-2", "sub-01_ses-1_task-movie_run-2"


def _vertices():
    rng = np.random.default_rng(3)
    return np.sort(np.concatenate([rng.choice(area_of(name), 9, replace=False) for name in ("V1", "V3", "MT", "FEF")]))


VERTEX = _vertices()


def _func(root, run):
    return root / "derivatives" / "sub-01" / run.split("_")[1] / "func"


def _bold(root, run):
    return _func(root, run) / f"{run}_space-fsLR_den-91k_bold.dtseries.nii"


def _events(root, run):
    return root / "bids" / "sub-01" / run.split("_")[1] / "func" / f"{run}_events.tsv"


def _confounds(root, run):
    return _func(root, run) / f"{run}_desc-confounds_timeseries.tsv"


def _marker(film, i):
    return 15 + (i * 17 + 40 * "abcdt".index(film)) % 220


def _film(name):
    for i in range(int(SCANS[name] * TR * SOURCE_FPS) + 3):
        frame = np.full((SIZE, SIZE, 3), 90, np.uint8)
        frame[:12, :12] = _marker(name, i)
        yield frame


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("fmriprep")
    (root / "stimuli" / "clips").mkdir(parents=True)
    rng = np.random.default_rng(4)
    strength = np.linspace(0, 3, len(VERTEX))[rng.permutation(len(VERTEX))]
    answer = {name: rng.standard_normal((n + 4, len(VERTEX))) * strength for name, n in SCANS.items()}
    for name in SCANS:
        write_video(root / "stimuli" / "clips" / f"{name}.mp4", _film(name), SOURCE_FPS, SIZE)
    for run, (n_volumes, shown) in RUNS.items():
        _func(root, run).mkdir(parents=True, exist_ok=True)
        _events(root, run).parent.mkdir(parents=True, exist_ok=True)
        nuisance = rng.standard_normal((n_volumes, len(CONFOUNDS))).cumsum(axis=0)
        data = 8000 + rng.standard_normal((n_volumes, len(VERTEX)))
        data += nuisance @ rng.standard_normal((len(CONFOUNDS), len(VERTEX))) + np.linspace(0, 60, n_volumes)[:, None]
        for name, onset in shown:
            first = round((onset + LAG) / TR)
            stop = min(n_volumes, first + len(answer[name]))
            data[first:stop] += answer[name][: stop - first]
        write_cortex(_bold(root, run), data, VERTEX, TR)
        _bold(root, run).with_suffix("").with_suffix(".json").write_text(json.dumps({"RepetitionTime": TR}))
        lines = ["\t".join([*CONFOUNDS, "trans_x_derivative1", "global_signal"])]
        for k, row in enumerate(nuisance):
            derivative = "n/a" if k == 0 else f"{row[0] - nuisance[k - 1][0]:.9f}"
            lines.append("\t".join([*(f"{value:.9f}" for value in row), derivative, "1.5"]))
        _confounds(root, run).write_text("\n".join(lines) + "\n")
        lines = ["onset\tduration\ttrial_type\tstim_file", "0.5\t1\tfixation\tn/a"]
        lines += [f"{onset}\t{SCANS[name] * TR}\tfilm\tclips/{name}.mp4" for name, onset in shown]
        _events(root, run).write_text("\n".join(lines) + "\n")
    rows = ["segment,time_s,caption"] + [f"clips_{name},0,film {name}" for name in SCANS]
    (root / "captions.csv").write_text("\n".join(rows))
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy whose files may be replaced (links: never write into one)."""
    return Path(shutil.copytree(made, tmp_path / "copy", copy_function=os.link))


def _settings(root, **changes):
    own = {
        "stimuli": root / "stimuli",
        "bids": root / "bids",
        "task": "movie",
        "test": ["t"],
        "high_pass_hz": HIGH_PASS,
    }
    fmriprep = own | changes.pop("fmriprep", {})
    base = {"source": "fmriprep", "captions": str(root / "captions.csv"), "size": SIZE, "fps": FPS, "tr_s": TR}
    return Data(**(base | {"lag_s": LAG, "selection": "all", "fmriprep": fmriprep} | changes))


@pytest.fixture(scope="module")
def store(made, tmp_path_factory):
    data = _settings(made, selection="top_k", k=20)
    return prepare(made / "derivatives", tmp_path_factory.mktemp("out") / "store.zarr", data)


def _rewrite(path, text):
    path.unlink()
    path.write_text(text)


def _plain_clean(root, run, seen):
    """Ordinary least squares on intercept, trend, confounds and the discrete cosines below the cut-off."""
    data = read_cortex(_bold(root, run)).data.astype(float)
    n = len(data)
    table = np.loadtxt(_confounds(root, run), skiprows=1, usecols=range(len(CONFOUNDS)))
    orders = range(1, int(2 * n * HIGH_PASS * TR) + 1)
    cosines = [np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k in orders]
    design = np.column_stack([np.ones(n), np.arange(n), table, *cosines])[seen]
    rest = data[seen] - design @ np.linalg.lstsq(design, data[seen], rcond=None)[0]
    return rest / rest.std(axis=0, ddof=1)


def _support(n_volumes, film, onset):
    """Volumes at either side of each scan."""
    place = (onset + LAG + np.arange(SCANS[film]) * TR) / TR
    used = np.zeros(n_volumes, dtype=bool)
    for p in np.round(place, 6):
        used[[int(np.floor(p)), int(np.ceil(p))]] = True
    return used


def _expected(root, film):
    """Every showing of a film, in order of runs and onsets."""
    result = []
    for run, (n, shown) in RUNS.items():
        test_only = np.zeros(n, dtype=bool)
        for other, onset in shown:
            test_only |= _support(n, other, onset) if other == "t" else False
        for other, onset in shown:
            test_only &= ~_support(n, other, onset) if other != "t" else True
        seen = np.ones(n, dtype=bool) if film == "t" else ~test_only
        cleaned = _plain_clean(root, run, seen)
        for other, onset in shown:
            if other == film:
                times = onset + LAG + np.arange(SCANS[film]) * TR
                result.append(np.stack([np.interp(times, np.flatnonzero(seen) * TR, y) for y in cleaned.T], axis=1))
    return np.array(result)


def test_fmri_equals_plain_computation(made, store):
    column = np.searchsorted(VERTEX, store.vertex)
    assert {name: store.repeats(f"clips_{name}").shape[:2] for name in SCANS} == {
        "a": (3, 6), "b": (2, 8), "c": (2, 5), "d": (2, 7), "t": (4, 9)
    }  # fmt: skip
    for name in SCANS:
        expected = _expected(made, name)[:, :, column]
        np.testing.assert_allclose(store.repeats(f"clips_{name}"), expected, atol=1e-5)
        np.testing.assert_allclose(store.fmri(f"clips_{name}"), expected.mean(axis=0), atol=1e-5)


def test_selection_equals_plain_computation(made, store):
    z = []
    for name in "abc":  # d validates
        runs = _expected(made, name)
        pairs = [(i, j) for i in range(len(runs)) for j in range(i)]
        r = [[np.corrcoef(runs[i, :, v], runs[j, :, v])[0, 1] for v in range(len(VERTEX))] for i, j in pairs]
        z.append(np.arctanh(r).mean(axis=0))
    p = stats.ttest_1samp(z, 0, axis=0, alternative="greater").pvalue
    np.testing.assert_allclose(store.p_value[VERTEX], p, rtol=1e-3)
    assert set(store.vertex) == set(VERTEX[np.argsort(p)[:20]])


def test_frames_splits_and_provenance(made, store):
    assert store.splits == {"train": ["clips_a", "clips_b", "clips_c"], "validation": ["clips_d"], "test": ["clips_t"]}
    assert store.subject == "sub-01" and store.tr_s == TR
    for name, n in SCANS.items():
        index = np.arange(n)[:, None] * 15 + np.arange(3) * 5  # 1.5 s of 10 frames/s, 2 of them a second
        frames = store.frames(f"clips_{name}")
        assert frames.shape == (n, 3, SIZE, SIZE, 3)
        np.testing.assert_allclose(frames[:, :, 4, 4].mean(axis=-1), _marker(name, index), atol=8)
        assert store.captions(f"clips_{name}") == [f"film {name}"] * n
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    mixed = ["sub-01_ses-1_task-movie_run-2", "sub-01_ses-2_task-movie_run-1"]
    assert steps["denoise"]["runs_of_training_and_test"] == mixed
    assert sorted(steps["denoise"]["confounds"][MIXED]) == sorted(CONFOUNDS)
    shown = [onset for _, shown in RUNS.values() for _, onset in shown]
    largest = max(min((onset + LAG) % TR, -(onset + LAG) % TR) for onset in shown)
    np.testing.assert_allclose(steps["resample"]["largest_offset_s"], largest, atol=1e-9)
    names = set(store.attrs["sources"])
    assert len(names) == 4 * 4 + 5 + 1
    assert "stimuli/clips/a.mp4" in names and f"bids/sub-01/ses-1/func/{MIXED}_events.tsv" in names


def test_a_test_showing_changes_no_training_value(root, store, tmp_path):
    rng = np.random.default_rng(1)
    n = RUNS[MIXED][0]
    is_own = _support(n, "t", 16.0)
    for name, onset in (("b", 1.2), ("c", 31.4), ("a", 42.0)):
        is_own &= ~_support(n, name, onset)
    assert is_own.sum() > 8
    for run, rows in ((MIXED, is_own), (TEST_ONLY, slice(None))):
        data = read_cortex(_bold(root, run)).data.copy()
        data[rows] += 40 * rng.standard_normal(data[rows].shape)
        write_cortex(_bold(root, run), data, VERTEX, TR)
    other = prepare(root / "derivatives", tmp_path / "other", _settings(root, selection="top_k", k=20))
    np.testing.assert_array_equal(other.vertex, store.vertex)
    np.testing.assert_array_equal(other.p_value, store.p_value)
    for name in ("clips_a", "clips_b", "clips_c", "clips_d"):
        np.testing.assert_array_equal(other.repeats(name), store.repeats(name))
    assert np.abs(other.fmri("clips_t") - store.fmri("clips_t")).max() > 0.1


def test_a_missing_first_confound_brings_no_test_data_in(root, tmp_path):
    settings = _settings(root, areas="V1", fmriprep={"confounds": ["trans_x", "trans_x_derivative1"]})
    before = prepare(root / "derivatives", tmp_path / "before", settings)
    lines = _confounds(root, MIXED).read_text().splitlines()
    is_own = _support(RUNS[MIXED][0], "t", 16.0)
    for name, onset in (("b", 1.2), ("c", 31.4), ("a", 42.0)):
        is_own &= ~_support(RUNS[MIXED][0], name, onset)
    for volume in np.flatnonzero(is_own):
        values = lines[1 + volume].split("\t")
        values[8] = "7.5"
        lines[1 + volume] = "\t".join(values)
    _rewrite(_confounds(root, MIXED), "\n".join(lines) + "\n")
    after = prepare(root / "derivatives", tmp_path / "after", settings)
    for name in "abc":  # d validates
        np.testing.assert_array_equal(before.repeats(f"clips_{name}"), after.repeats(f"clips_{name}"))
    assert not np.array_equal(before.repeats("clips_t"), after.repeats("clips_t"))


def test_films_of_two_scans_choose_no_voxels(root, tmp_path):
    for run in RUNS:
        text = _events(root, run).read_text()
        _rewrite(_events(root, run), text.replace(f"{SCANS['c'] * TR}\tfilm\tclips/c", f"{2 * TR}\tfilm\tclips/c"))
    store = prepare(root / "derivatives", tmp_path / "store", _settings(root, areas="V1"))
    assert store.repeats("clips_c").shape[:2] == (2, 2)
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    assert steps["reproducibility"]["segments"] == ["clips_a", "clips_b"]


@pytest.mark.parametrize("how", ["linear", "nearest", "mean"])
def test_resampling_against_brute_force(how):
    volume_s = 0.45 + np.arange(23) * 0.9
    wanted_s = 1.7 + np.arange(8) * 2.0
    series = np.random.default_rng(2).standard_normal(23)
    expected = []
    for t in wanted_s:
        if how == "linear":
            expected.append(np.interp(t, volume_s, series))
        elif how == "nearest":
            expected.append(series[np.argmin(np.abs(volume_s - t))])
        else:
            expected.append(np.mean([y for at, y in zip(volume_s, series, strict=True) if t <= at < t + 2.0]))
    np.testing.assert_allclose(resampling_weights(wanted_s, volume_s, 2.0, how) @ series, expected, atol=1e-12)
    on_grid = volume_s[3:9]
    np.testing.assert_array_equal(resampling_weights(on_grid, volume_s, 0.9, how), np.eye(23)[3:9])
    late = np.array([0.1, 20.0, 20.3, 21.5])
    covered = {"linear": [False, True, False, False], "nearest": [True, True, True, False],
               "mean": [True, True, False, False]}  # fmt: skip
    np.testing.assert_array_equal(covered_scans(late, volume_s, 2.0, how), covered[how])


def test_a_slow_confound_does_not_replace_the_high_pass():
    n, orders = 60, range(1, 8)
    rng = np.random.default_rng(7)
    cosines = np.stack([np.cos(np.pi * k * (np.arange(n) + 0.5) / n) for k in orders], axis=1)
    run = rng.standard_normal((n, 3)) + 4 * cosines[:, 4:5]
    slow = cosines[:, :1] + 0.02 * rng.standard_normal((n, 1))  # correlates with the first cosine
    cleaned = clean_run(run, slow, 2.0, 7 / (2 * n * 2.0) + 1e-6)
    design = np.column_stack([np.ones(n), np.arange(n), slow, cosines])
    rest = run - design @ np.linalg.lstsq(design, run, rcond=None)[0]
    np.testing.assert_allclose(cleaned, rest / rest.std(axis=0, ddof=1), atol=1e-5)


def test_cleaning_without_confounds_and_its_limits():
    rng = np.random.default_rng(5)
    run = rng.standard_normal((30, 4)) + np.linspace(0, 9, 30)[:, None]
    time = np.linspace(0, 1, 30)
    plain = np.stack([y - np.polyval(np.polyfit(time, y, 1), time) for y in run.T], axis=1)
    cleaned = clean_run(run, np.empty((30, 0)), 2.0, None)
    np.testing.assert_allclose(cleaned, plain / plain.std(axis=0, ddof=1), atol=1e-5)
    with pytest.raises(DataError, match="at least 34 volumes"):
        clean_run(run, rng.standard_normal((30, 30)), 2.0, None)
    assert np.isnan(clean_run(np.repeat(time[:, None] * 3, 2, axis=1), np.empty((30, 0)), 2.0, None)).all()


def _with_sidecar(root, run, content):
    _rewrite(_bold(root, run).with_suffix("").with_suffix(".json"), json.dumps(content))


def test_slice_time_another_grid_and_trimming(root, tmp_path):
    for run in RUNS:
        _with_sidecar(root, run, {"RepetitionTime": TR, "SliceTimingCorrected": True, "StartTime": 0.7})
    source = discover(root / "derivatives", _settings(root, tr_s=3.0, fps=1, fmriprep={"resample": "mean"}))
    a = next(item for item in source.segments if item.name == "clips_a")
    assert a.n_scans == 3
    chosen = np.flatnonzero(a.runs[0].read.weights[1])  # onset 3, lag 3: volumes 0.7 + 1.5 k from second 9 to 12
    assert list(chosen * TR + 0.7) == pytest.approx([9.7, 11.2])
    with pytest.raises(DataError, match=r"the last scan of clips/a\.mp4 .*too short"):
        discover(root / "derivatives", _settings(root, lag_s=24.0))
    source = discover(root / "derivatives", _settings(root, lag_s=24.0, fmriprep={"trim_end": True}))
    lengths = {item.name[-1]: item.n_scans for item in source.segments}
    last_s = {"a": 0.7 + 47 * TR, "t": 0.7 + 35 * TR}  # of the runs in which a begins at second 42, t at second 20.3
    assert lengths == {
        "a": int((last_s["a"] - 66.0) / TR) + 1, "b": 8, "c": 5, "d": 7, "t": int((last_s["t"] - 44.3) / TR) + 1
    }  # fmt: skip
    with pytest.raises(DataError, match=r"scans of clips/a\.mp4 .*onset 42 s.*found only steady volumes"):
        discover(root / "derivatives", _settings(root, lag_s=30.0, fmriprep={"trim_end": True}))


def test_interrupted_preparation_goes_on(root, tmp_path):
    data, derivatives, calls = _settings(root, captions="blip"), root / "derivatives", []

    def captioner(frames):
        calls.append(len(frames))
        if len(calls) == 3 and not resumed:
            raise KeyboardInterrupt
        return [f"grey {int(frame[4, 4, 0])}" for frame in frames]

    resumed = []
    with pytest.raises(KeyboardInterrupt):
        prepare(derivatives, tmp_path / "cut", data, captioning=Captioning(captioner))
    with pytest.raises(DataError, match="interrupted"):
        Store.open(tmp_path / "cut")
    resumed.append(True)
    again = prepare(derivatives, tmp_path / "cut", data, captioning=Captioning(captioner))
    whole = prepare(derivatives, tmp_path / "whole", data, captioning=Captioning(captioner))
    for name in whole.order:
        np.testing.assert_array_equal(again.repeats(name), whole.repeats(name))
        assert again.captions(name) == whole.captions(name)


def test_command_line(root, cli, tmp_path):
    text = _events(root, MIXED).read_text()
    _events(root, MIXED).unlink()
    _bold(root, MIXED).with_name(f"{MIXED}_events.tsv").write_text(text)  # beside the recording is right too
    command = ["prepare", "fmriprep", root / "derivatives", "--stimuli", root / "stimuli", "--task", "movie",
               "--out", tmp_path / "store", "--bids", root / "bids", "--lag-s", LAG, "--fps", FPS, "--size", SIZE,
               "--selection", "all", "--areas", "V1,MT", "--captions", root / "captions.csv"]  # fmt: skip
    code, text = cli(*command)
    assert code == 1 and "clips_a (3x), clips_b (2x)" in text and "--test most-repeated" in text
    assert not (tmp_path / "store").exists()
    code, text = cli(*command, "--test", "most-repeated", "--subject", "01")
    assert code == 0, text
    store = Store.open(tmp_path / "store")
    assert store.splits["test"] == ["clips_t"] and store.tr_s == TR and store.n_voxels == 18
    code, text = cli("inspect", tmp_path / "store")
    assert code == 0 and "sub-01" in text and "V1" in text
    code, text = cli(*command, "--test", "t")
    assert code == 1 and "complete one" in text


def test_a_recipe_prepares(root, random_kit, tmp_path):
    settings = {"foundation": random_kit, "data.raw": root / "derivatives", "data.fmriprep.stimuli": root / "stimuli",
                "data.fmriprep.bids": root / "bids", "data.fmriprep.task": "movie", "data.fmriprep.test": "[t]",
                "data.tr_s": TR, "data.fps": FPS, "data.size": SIZE, "data.lag_s": LAG, "data.areas": "V1",
                "data.captions": root / "captions.csv", "pretrain.enabled": "false"}  # fmt: skip
    recipe = load_recipe("fmriprep", [f"{key}={value}" for key, value in settings.items()])
    study = Study(recipe, tmp_path / "run")
    assert study.run(until="prepare", say=lambda line: None) == ["prepare"]
    assert Store.open(tmp_path / "run" / "prepare" / "store.zarr").n_voxels == 9
    assert Study(recipe, tmp_path / "run").is_done("prepare")
    path = _events(root, MIXED)
    _rewrite(path, path.read_text().replace("16.0\t", "16.5\t"))
    assert not Study(recipe, tmp_path / "run").is_done("prepare")


def test_a_subject_without_repeats(root, tmp_path):
    kept = ["sub-01_ses-1_task-movie_run-1"]
    exclude = [run for run in RUNS if run not in kept] + [f"{kept[0]}:c"]
    text = (
        _events(root, kept[0]).read_text().replace("\n34.1\t9.0\tfilm\tclips/a.mp4", "\n34.1\t10.5\tfilm\tclips/d.mp4")
    )
    _rewrite(_events(root, kept[0]), text)
    once = {"exclude": exclude, "test": ["d.mp4"]}
    _refused(root, "at least 2 training stimuli shown at least twice", "areas", selection="paper", fmriprep=once)
    source = discover(root / "derivatives", _settings(root, areas="visual", fmriprep=once))
    assert [(item.name, item.split) for item in source.segments] == [
        ("clips_a", "train"), ("clips_b", "validation"), ("clips_d", "test")
    ]  # fmt: skip


def _refused(root, *parts, error=DataError, **changes):
    with pytest.raises(error) as caught:
        prepare(root / "derivatives", root / "refused", _settings(root, **changes))
    message = str(caught.value)
    assert "\n" not in message and not (root / "refused").exists()
    for part in parts:
        assert part in message, message


def test_missing_pieces(root):
    run = "sub-01_ses-1_task-movie_run-1"
    events = _events(root, run).read_text()
    _events(root, run).unlink()
    _refused(root, f"{run}_events.tsv", "found none")
    _refused(root, "--bids", fmriprep={"bids": None})
    (root / "bids" / "task-movie_events.tsv").write_text(events)  # holds for every run without its own
    assert len(discover(root / "derivatives", _settings(root)).segments) == 5
    _confounds(root, run).unlink()
    _refused(root, f"{run}_desc-confounds_timeseries.tsv", "no such file")
    assert len(discover(root / "derivatives", _settings(root, fmriprep={"confounds": []})).segments) == 5
    _with_sidecar(root, TEST_ONLY, {"RepetitionTime": "1.5"})
    _refused(root, "RepetitionTime", TEST_ONLY, "'1.5'", fmriprep={"confounds": []})
    _with_sidecar(root, TEST_ONLY, {"RepetitionTime": 2.0})
    _refused(root, "TR of 2 s", "found 1.5 s", fmriprep={"confounds": []})


def test_confounds_that_do_not_fit(root):
    path = _confounds(root, MIXED)
    _refused(root, "a column a_comp_cor_00", "trans_x", fmriprep={"confounds": ["a_comp_cor_00"]})
    names = discover(root / "derivatives", _settings(root, fmriprep={"confounds": ["trans_x*"]})).notes["denoise"]
    assert names["confounds"][MIXED] == ["trans_x", "trans_x_derivative1"]
    lines = path.read_text().splitlines()
    _rewrite(path, "\n".join(lines[:-1]))
    _refused(root, "48 volumes", "found 47")
    lines[9] = "\t".join(["n/a", *lines[9].split("\t")[1:]])
    _rewrite(path, "\n".join(lines))
    _refused(root, "column trans_x", "line 10", "'n/a'")
    lines[9] += "\t1"
    _rewrite(path, "\n".join(lines))
    _refused(root, "10 tab-separated values on line 10", "found 11")
    path.unlink()
    path.write_bytes(b"\xff\xfe\x00broken")
    _refused(root, "UTF-8", str(path))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("clips/a.mp4", "clips/zebra.mp4"), ("film clips/zebra.mp4", "no such file")),
        (("clips/a.mp4", "../other/clips/a.mp4"), ("no such file",)),
        (("34.1\t9.0", "34.1\t4.5"), ("showings of one length of", "4.5 to 9 s")),
        (("34.1\t", "soon\t"), ("onset", "'soon'")),
        (("34.1\t", "3.0\t"), ("one film at a time", "from second 3 to 12", "from second 3;")),
        (
            ("15.75\t", "11.0\t"),
            ("one film at a time", "clips/a.mp4 from second 3 to 12", "clips/b.mp4 from second 11"),
        ),
        (("50.0\t", "78.0\t"), ("too short", "c.mp4", "trim_end")),
        (("50.0\t", "90.0\t"), ("onset 90 s", "second 0 to 82.5", "exclude")),
        (("stim_file", "movie"), ("columns onset, duration and stim_file", "stim_column")),
        (("50.0\t7.5", "50.0\t30"), ("showings of one length",)),
    ],
)
def test_events_that_do_not_fit(root, change, parts):
    path = _events(root, "sub-01_ses-1_task-movie_run-1")
    text = path.read_text()
    assert change[0] in text
    _rewrite(path, text.replace(*change))
    _refused(root, *parts)


def test_folders_subjects_and_settings(root):
    _refused(root, "found the tasks movie; give one", fmriprep={"task": "rest"})
    with pytest.raises(DataError, match=r"found none; give the folder that holds sub-\*"):
        discover(root, _settings(root))
    _refused(root, "the subjects 01", "sub-07", fmriprep={"participant": "07"})
    _refused(root, "folder of the films", fmriprep={"stimuli": root / "absent"})
    _refused(root, "'zebra'", "clips_t (4x)", error=SettingError, fmriprep={"test": ["zebra"]})
    _refused(root, "a run to exclude", error=SettingError, fmriprep={"exclude": ["sub-09*"]})
    _refused(root, "'sub-01*:zebra'", error=SettingError, fmriprep={"exclude": ["sub-01*:zebra"]})
    _refused(root, "whole number of frames", error=SettingError, fps=3)
    _refused(root, "more than 1 training films", fmriprep={"test": ["*"]})
    other = root / "derivatives" / "sub-02" / "func"
    other.mkdir(parents=True)
    (other / "sub-02_task-movie_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz").write_bytes(b"")
    _refused(root, "found 2 subjects", "--subject")
    _refused(root, "space-MNI152NLin6Asym (nii.gz)", "--cifti-output 91k", fmriprep={"participant": "02"})
    (other / "sub-02_task-movie_space-fsLR_den-170k_bold.dtseries.nii").write_bytes(b"")
    _refused(root, "space-fsLR_den-170k", fmriprep={"participant": "sub-02"})
    source = discover(root / "derivatives", _settings(root, fmriprep={"participant": 1}))  # as YAML reads 01
    assert source.subject == "sub-01"


def test_recordings_that_do_not_fit(root):
    path = _bold(root, MIXED)
    content = path.read_bytes()
    data = read_cortex(path).data.copy()
    data[:, 3:8] = 3.0
    write_cortex(path, data, VERTEX, TR)
    _refused(root, "5 of 36 that never change", f"5 of them in {path}", "--areas")
    write_cortex(path, data[:, :-1], VERTEX[:-1], TR)
    _refused(root, str(path), "36 cortical vertices", "35 that differ")
    path.unlink()
    path.write_bytes(content[:-200])
    _refused(root, str(path), "truncated")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 48), np.float32), np.eye(4)), root / "volume.nii")
    os.replace(root / "volume.nii", path)
    _refused(root, str(path), "CIFTI")


def test_films_that_do_not_fit(root):
    film = root / "stimuli" / "clips" / "b.mp4"
    film.unlink()
    write_video(film, list(_film("b"))[:50], SOURCE_FPS, SIZE)
    _refused(root, "a film of 12 s", str(film), "found 5.00 s")
