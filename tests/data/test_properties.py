"""What must hold for any lengths, lags, orders and cuts: windows, trims, lags, vertex order, scenes (docs/method.md, Recordings)."""

from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindvideo.atlas import N_CORTEX, area_labels, hierarchy_order
from mindvideo.config import Data
from mindvideo.data.captions import caption_windows
from mindvideo.data.denoising import covered_scans, resampling_weights, scan_times
from mindvideo.data.readers import wen2018
from mindvideo.data.readers.wen2018 import EXTRA_VOLUMES, first_volume_time
from mindvideo.data.segments import frame_times
from mindvideo.data.series import CortexHeader
from mindvideo.data.shots import number_scenes
from mindvideo.data.store import natural_key
from mindvideo.data.video import TIME_TOLERANCE_S
from mindvideo.data.voxels import detrend_and_standardise
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError

prove = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


class _Films:
    """A store in memory: the fMRI of a scan is (segment, scan, run)."""

    num_frames, n_voxels, path = 2, 3, Path("memory")

    def __init__(self, lengths, n_runs):
        self.lengths = {f"seg{number}": length for number, length in enumerate(lengths)}
        self.keeps_repeats_apart, self._n_runs = n_runs > 1, n_runs

    def segments(self, split):
        return list(self.lengths)

    def n_scans(self, name):
        return self.lengths[name]

    def n_repeats(self, name):
        return self._n_runs

    def repeats(self, name):
        number, length = int(name[3:]), self.lengths[name]
        return np.array([[(number, scan, run) for scan in range(length)] for run in range(self._n_runs)], np.float32)

    def fmri(self, name):
        return self.repeats(name)[0]

    def scene(self, name):
        return np.arange(2 * self.lengths[name]).reshape(-1, 2)

    def captions(self, name):
        return [f"{name} {scan}" for scan in range(self.lengths[name])]


@prove
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), window=st.integers(1, 7), n_runs=st.integers(1, 3))
def test_windows_stay_inside_a_run_and_start_once_at_every_scan(lengths, window, n_runs):
    windows = Windows(_Films(lengths, n_runs), "train", window)
    fmri = windows.fmri(np.arange(len(windows)))
    assert fmri.shape == (sum(lengths) * n_runs, window, 3) and fmri.dtype == np.float32
    segment, scan, run = np.moveaxis(fmri, -1, 0).astype(int)
    assert (segment == segment[:, :1]).all() and (run == run[:, :1]).all()  # never across films or runs
    last = np.array(lengths)[segment[:, 0]] - 1
    np.testing.assert_array_equal(scan, np.minimum(scan[:, :1] + np.arange(window), last[:, None]))  # the last repeats
    starts = list(zip(segment[:, 0], run[:, 0], scan[:, 0], strict=True))
    assert starts == [(s, r, t) for s, length in enumerate(lengths) for r in range(n_runs) for t in range(length)]
    assert windows.captions == [f"seg{s} {t}" for s, _, t in starts]
    np.testing.assert_array_equal(windows.scan, scan[:, 0])
    blocks = windows.blocks(3)
    assert len(set(zip(blocks, segment[:, 0], run[:, 0], strict=True))) == len(set(blocks.tolist()))


def first_volume(header: CortexHeader, n_scans: int, duration_s: float, data: Data) -> int:
    """Of a recording with this header."""
    with mock.patch.object(wen2018, "read_layout", return_value=SimpleNamespace(header=header)):
        return wen2018._first_volume(Path("run"), n_scans, duration_s, data)


@prove
@given(
    n_scans=st.integers(1, 500),
    extra=st.sampled_from(EXTRA_VOLUMES),
    first=st.integers(-3, 9),
    tr_s=st.sampled_from([0.5, 1.0, 1.5, 2.0]),
    off=st.sampled_from([0.0, 0.25]),
)
def test_trim_keeps_the_volume_acquired_lag_seconds_after_each_scan(n_scans, extra, first, tr_s, off):
    n_volumes = n_scans + extra
    start_s = first_volume_time(n_volumes, n_scans, tr_s)
    assert start_s + (n_volumes - 1) * tr_s == pytest.approx(
        n_scans * tr_s + 10
    )  # the last volume, 10 s after the film
    lag_s = start_s + (first + off) * tr_s
    header = CortexHeader(np.arange(2), np.arange(2), tr_s, n_volumes)
    data = Data.model_construct(tr_s=tr_s, lag_s=lag_s)
    if off or not 0 <= first <= extra:
        with pytest.raises(DataError, match="lag_s"):
            first_volume(header, n_scans, n_scans * tr_s, data)
    else:
        assert first_volume(header, n_scans, n_scans * tr_s, data) == first
        kept_s = start_s + (first + np.arange(n_scans)) * tr_s
        np.testing.assert_allclose(kept_s, lag_s + np.arange(n_scans) * tr_s, atol=1e-9)


@pytest.mark.parametrize(("n_volumes", "dropped"), [(245, 1), (246, 2)])
def test_the_published_trims(n_volumes, dropped):
    header = CortexHeader(np.arange(2), np.arange(2), 2.0, n_volumes)
    assert first_volume(header, 240, 480.0, Data()) == dropped and n_volumes - dropped - 240 == 4


@prove
@given(
    n_scans=st.integers(1, 40),
    before=st.integers(0, 9),
    lag=st.integers(0, 6),
    after=st.integers(1, 9),
    tr_s=st.sampled_from([0.72, 1.0, 1.5, 2.0]),
    how=st.sampled_from(["linear", "nearest", "mean"]),
    beyond=st.integers(1, 5),
)
def test_a_lag_of_whole_scans_moves_by_whole_volumes(n_scans, before, lag, after, tr_s, how, beyond):
    """Onset and lag on the grid of the volumes: each scan is one volume, ``before + lag`` after the film's scan."""
    volume_s = np.arange(before + lag + n_scans + after) * tr_s
    wanted_s = scan_times(before * tr_s, lag * tr_s, n_scans, tr_s)
    assert covered_scans(wanted_s, volume_s, tr_s, how).all()
    weights = resampling_weights(wanted_s, volume_s, tr_s, how)
    np.testing.assert_allclose(weights, np.eye(len(volume_s))[before + lag :][:n_scans], atol=1e-9)
    too_late = scan_times(before * tr_s, (lag + after + beyond) * tr_s, n_scans, tr_s)
    is_there = np.arange(n_scans) < n_scans - beyond
    np.testing.assert_array_equal(covered_scans(too_late, volume_s, tr_s, how), is_there)


@prove
@given(n_scans=st.integers(1, 30), fps=st.integers(1, 30), tr_s=st.sampled_from([1.0, 2.0, 3.0]))
def test_frames_lie_inside_their_scan(n_scans, fps, tr_s):
    times = frame_times(n_scans, tr_s, fps)
    assert times.shape == (n_scans, round(fps * tr_s))
    start_s = np.arange(n_scans)[:, None] * tr_s
    assert (times >= start_s).all() and (times < start_s + tr_s - 1e-9).all() and times[0, 0] == 0
    np.testing.assert_allclose(np.diff(times.ravel()), 1 / fps)


@prove
@given(
    cuts=st.lists(st.integers(1, 60), max_size=6, unique=True),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_scene_numbers_change_at_cuts_and_never_come_back(cuts, lengths):
    offset, seen = 0, set()
    for n_scans in lengths:
        times = frame_times(n_scans, 2.0, 3)
        cuts_s = [cut / 6 for cut in sorted(cuts)]
        scene = number_scenes(cuts_s, times, offset)
        flat, moments = scene.ravel(), times.ravel()
        for i in range(1, len(flat)):
            is_cut = any(moments[i - 1] < cut_s - TIME_TOLERANCE_S <= moments[i] for cut_s in cuts_s)
            assert (flat[i] != flat[i - 1]) == is_cut
        assert (np.diff(flat) >= 0).all() and not seen & set(flat.tolist())
        seen |= set(flat.tolist())
        captions = caption_windows([[f"s{number}" for number in row] for row in scene], scene)
        assert captions == [". Then ".join(f"s{number}" for number in dict.fromkeys(row)) for row in scene.tolist()]
        offset += scene.size


@prove
@given(seed=seeds, n_voxels=st.integers(1, 400))
def test_voxel_order_does_not_depend_on_how_voxels_arrive(seed, n_voxels):
    rng = np.random.default_rng(seed)
    vertex = np.sort(rng.choice(N_CORTEX, n_voxels, replace=False))
    ordered = vertex[hierarchy_order(vertex)]
    assert sorted(ordered) == vertex.tolist()
    shuffled = rng.permutation(vertex)
    np.testing.assert_array_equal(shuffled[hierarchy_order(shuffled)], ordered)
    some = np.sort(rng.choice(vertex, max(1, n_voxels // 3), replace=False))  # leaving voxels out moves no others
    np.testing.assert_array_equal(some[hierarchy_order(some)], ordered[np.isin(ordered, some)])
    label = area_labels()[ordered]
    assert len(set(label)) == 1 + int((np.diff(label) != 0).sum())  # an area stays in one piece


@prove
@given(numbers=st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True), seed=seeds)
def test_segments_are_ordered_by_number(numbers, seed):
    names = [f"seg{number}" for number in numbers]
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    assert sorted(shuffled, key=natural_key) == [f"seg{number}" for number in sorted(numbers)]


@prove
@given(seed=seeds, n_scans=st.integers(8, 60), degree=st.integers(0, 4), gain=st.floats(1e-2, 1e3))
def test_drift_offset_and_gain_leave_no_trace(seed, n_scans, degree, gain):
    rng = np.random.default_rng(seed)
    run = rng.standard_normal((n_scans, 3))
    drift = np.polynomial.polynomial.polyval(np.linspace(-1, 1, n_scans), 10 * rng.standard_normal((degree + 1, 3))).T
    standardised = detrend_and_standardise(run)
    np.testing.assert_allclose(detrend_and_standardise(gain * (run + drift)), standardised, atol=2e-5)
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(standardised.std(axis=0, ddof=1), 1, atol=1e-6)
