import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mindvideo.data import voxels
from mindvideo.errors import DataError, SettingError


def test_standardising_equals_polyfit(monkeypatch):
    monkeypatch.setattr(voxels, "_BLOCK", 4)
    rng = np.random.default_rng(0)
    time = np.arange(53.0)
    run = (1e4 + 300 * rng.standard_normal((53, 11)) + 0.02 * (time[:, None] - 20) ** 3).astype(np.float32)
    found = voxels.detrend_and_standardise(run)
    expected = np.empty((53, 11))
    for v in range(11):
        residual = run[:, v] - np.polyval(np.polyfit(time / 53, run[:, v].astype(np.float64), 4), time / 53)
        expected[:, v] = (residual - residual.mean()) / residual.std(ddof=1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.integers(8, 40), st.integers(0, 1000))
def test_standardising_ignores_polynomials_up_to_its_order(order, n_scans, seed):
    rng = np.random.default_rng(seed)
    run = rng.standard_normal((n_scans, 3))
    trend = np.polynomial.polynomial.polyval(np.linspace(-1, 1, n_scans), rng.standard_normal((order + 1, 3)) * 5).T
    a, b = voxels.detrend_and_standardise(run, order), voxels.detrend_and_standardise(7 * run + trend, order)
    np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(a.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(a.std(axis=0, ddof=1), 1, atol=1e-6)


def test_vertices_without_signal_and_damage():
    run = np.random.default_rng(1).standard_normal((20, 7)).astype(np.float32)
    assert not voxels.find_silent(run, "ok.nii").any()
    run[:, 6], run[:, 1] = 12.0, np.nan
    assert np.flatnonzero(voxels.find_silent(run, "seg1.nii")).tolist() == [1, 6]
    with pytest.raises(DataError, match=r"seg1\.nii.*2 that never change \(e\.g\. vertex 101\)"):
        voxels.check_run(run, "seg1.nii", np.arange(100, 107))
    run[3, 2], run[4, 5] = np.nan, np.inf
    with pytest.raises(DataError, match=r"seg1\.nii.*2 of 7 .*NaN.*vertex 102"):
        voxels.find_silent(run, "seg1.nii", np.arange(100, 107))
    with pytest.raises(DataError, match="at least 7 scans"):
        voxels.detrend_and_standardise(run[:6, :2])
    ramp = np.stack([np.linspace(0, 1000, 20), np.full(20, 12.0), np.sin(np.arange(20.0))], axis=1)
    found = voxels.detrend_and_standardise(ramp)
    assert np.isnan(found[:, :2]).all() and np.isfinite(found[:, 2]).all()


def test_reproducibility_equals_scipy(monkeypatch):
    monkeypatch.setattr(voxels, "_BLOCK", 5)
    rng = np.random.default_rng(2)
    n_segments, n_scans, n_vertices = 18, 31, 13
    signal = rng.standard_normal((n_segments, n_scans, n_vertices)) * np.linspace(0, 2, n_vertices)
    runs = (signal[:, None] + rng.standard_normal((n_segments, 2, n_scans, n_vertices))).astype(np.float32)
    r = np.array([voxels.repeat_correlation(a, b) for a, b in runs])
    expected_r = [[stats.pearsonr(a[:, v], b[:, v])[0] for v in range(n_vertices)] for a, b in runs.astype(np.float64)]
    np.testing.assert_allclose(r, expected_r, atol=1e-12)
    p = voxels.reproducibility_t_test(voxels.fisher_z(r))
    expected = stats.ttest_1samp(np.arctanh(expected_r), 0, axis=0, alternative="greater")
    assert expected.df[0] == 17
    np.testing.assert_allclose(p, expected.pvalue, rtol=1e-9)


def test_p_where_the_spread_vanishes():
    half = np.sqrt(3.0) / np.array([1e120, 1e130, 1e150])  # rounding leaves no spread at all: still no NaN
    assert (voxels.reproducibility_t_test(np.array([1 - half, np.ones(3), 1 + half])) == 0).all()


def test_one_file_read_twice_is_refused():
    run = np.random.default_rng(3).standard_normal((12, 4))
    with pytest.raises(DataError, match="copies of one file"):
        voxels.fisher_z(voxels.repeat_correlation(run, run))
    with pytest.raises(DataError, match="at least 2 training segments"):
        voxels.reproducibility_t_test(np.zeros((1, 4)))


def test_selection_variants():
    p = np.array([0.004, np.nan, 1e-6, 0.3, 1e-9, 1e-4, 0.0019, 1e-5])
    # 7 tested: alpha 0.01 keeps p < 0.00143
    assert voxels.select_voxels(p, "bonferroni", 0.01).tolist() == [2, 4, 5, 7]
    assert voxels.select_voxels(p, "paper", 0.01, 0.5).tolist() == [2, 4]
    assert voxels.select_voxels(p, "paper", 0.02, 0.5).tolist() == [2, 4]  # 5 survive, half rounded down
    assert voxels.select_voxels(p, "paper", 0.01, 0.01).tolist() == [4]
    assert voxels.select_voxels(p, "top_k", k=5).tolist() == [2, 4, 5, 6, 7]
    assert voxels.select_voxels(p, "all").tolist() == list(range(8))
    assert voxels.select_voxels(np.array([0.1, 0.1, 0.1]), "top_k", k=2).tolist() == [0, 1]
    with pytest.raises(
        DataError, match=r"found none of 7 vertices tested \(smallest P 1e-09, alpha 1e-09\); raise alpha"
    ):
        voxels.select_voxels(p, "bonferroni", 1e-9)
    with pytest.raises(DataError, match="none tested"):
        voxels.select_voxels(np.full(5, np.nan), "paper")
    for k in (None, 0, 8):
        with pytest.raises(SettingError, match="k between 1 and the 7"):
            voxels.select_voxels(p, "top_k", k=k)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=50), st.floats(0.01, 0.99), st.floats(0.05, 1))
def test_paper_is_the_most_significant_part_of_bonferroni(p, alpha, fraction):
    p = np.array(p)
    survivors = np.flatnonzero(p * len(p) < alpha)
    if not len(survivors):
        with pytest.raises(DataError):
            voxels.select_voxels(p, "paper", alpha, fraction)
        return
    kept = voxels.select_voxels(p, "paper", alpha, fraction)
    assert set(kept) <= set(survivors) and (np.diff(kept) > 0).all()
    left = np.setdiff1d(survivors, kept)
    assert not len(left) or p[kept].max() <= p[left].min()
