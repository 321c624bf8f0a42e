"""Series read block by block and vertex by vertex, against nibabel and hashlib; runs measured at full width."""

import gzip
import hashlib

import nibabel
import numpy as np
import pytest
from big_endian import to_big_endian
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import cifti2
from scipy import stats
from test_cifti import _axis, _save

from mindvideo.atlas import N_CORTEX
from mindvideo.data import series
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.measuring import RunTask, measure_segment, standardise_run
from mindvideo.data.segments import Run, Segment
from mindvideo.data.series import SeriesFile, read_layout
from mindvideo.errors import DataError


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    order=st.permutations("lrv"),
    endian=st.sampled_from("<>"),
    dtype=st.sampled_from(["f4", "f8", "i2"]),
    is_gzipped=st.booleans(),
    rows=st.sampled_from([2, 5, 100]),
)
def test_blocks_and_single_vertices_are_what_nibabel_reads(
    tmp_path_factory, seed, order, endian, dtype, is_gzipped, rows
):
    rng = np.random.default_rng(seed)
    left, right = rng.choice(29696, 6, replace=False), 29696 + rng.choice(29716, 7, replace=False)
    axis = _axis(left, right, voxels=3, order=order)
    position = np.concatenate([{"l": left, "r": right, "v": np.full(3, -1)}[key] for key in order])
    path = tmp_path_factory.mktemp("series") / "run.dtseries.nii"
    _save(path, (cifti2.SeriesAxis(0, 2.0, 4), axis), rng.integers(-300, 300, (4, 16)).astype(float), dtype, endian)
    truth = nibabel.load(path).get_fdata()
    if is_gzipped:
        content, path = path.read_bytes(), path.with_name("run.dtseries.nii.gz")
        path.write_bytes(gzip.compress(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(series, "BLOCK_ROWS", rows)
        file = SeriesFile(path)
        read = np.concatenate([block.copy() for _, block in file.blocks()])
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    by_vertex = {vertex: truth[:, column] for column, vertex in enumerate(position) if vertex >= 0}
    for vertex, row in zip(file.header.vertex, read[file.column], strict=True):
        np.testing.assert_allclose(row, by_vertex[int(vertex)], atol=1e-2 if dtype == "i2" else 1e-5)
    wanted = rng.permutation(np.sort(position[position >= 0]))[:9]
    expected = np.array([by_vertex[int(vertex)] for vertex in wanted])
    np.testing.assert_allclose(file.take(wanted), expected, atol=1e-2 if dtype == "i2" else 1e-5)


def test_headers_are_parsed_once_and_cut_files_are_refused(tmp_path, monkeypatch):
    vertex = np.array([3, 900, 30000, 59000])
    paths = [tmp_path / f"{number}.dtseries.nii" for number in range(3)]
    for number, path in enumerate(paths):
        write_cortex(path, np.random.default_rng(number).standard_normal((9, 4)), vertex, 2.0)
    parsed = []
    real = series._parse
    monkeypatch.setattr(series, "_parse", lambda path, content: parsed.append(path) or real(path, content))
    assert read_layout(paths[0]) is read_layout(paths[1])
    assert len(parsed) <= 1
    paths[2].write_bytes(paths[2].read_bytes()[:-3])
    with pytest.raises(DataError, match=r"2\.dtseries.*truncated"):
        read_layout(paths[2])
    with pytest.raises(DataError, match="found no such file"):
        read_layout(tmp_path / "absent.dtseries.nii")


@pytest.fixture
def pair(tmp_path):
    """Two runs of one film at full width with subcortical voxels: 245 volumes, and 246 in big-endian order."""
    rng = np.random.default_rng(3)
    shared = rng.standard_normal((246, 1, 1), dtype=np.float32)[:, 0] * np.linspace(0, 2, N_CORTEX, dtype=np.float32)
    n_subcortex = sum(SUBCORTEX.values())
    paths = [tmp_path / f"seg1_{run}_Atlas.dtseries.nii" for run in (1, 2)]
    for number, path in enumerate(paths):
        data = 9000 + 40 * (shared + rng.standard_normal(shared.shape, dtype=np.float32))
        data += 200 * np.linspace(-1, 1, 246, dtype=np.float32)[:, None] ** 3
        subcortex = np.ones((246, n_subcortex), np.float32)
        first = 1 - number
        write_cortex(path, data[first:], np.arange(N_CORTEX), 2.0, subcortex[first:])
    paths[1].write_bytes(to_big_endian(paths[1].read_bytes()))
    return paths


def test_full_width_equals_numpy_and_scipy(pair):
    runs = tuple(
        Run(f"seg1_{number}", path, first) for number, (path, first) in enumerate(zip(pair, (1, 2), strict=True))
    )
    vertex = np.arange(N_CORTEX, dtype=np.int32)
    measured = measure_segment(Segment("seg1", "train", pair[0], 240, runs), vertex, vertex)
    assert measured.sha256 == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in pair)
    some = np.random.default_rng(4).choice(N_CORTEX, 300, replace=False)
    expected = []
    for run in runs:
        data = nibabel.load(run.path).get_fdata()[:, :N_CORTEX][run.first : -4, some]
        time = np.linspace(-1, 1, 240)
        data = data - np.polynomial.polynomial.polyval(time, np.polynomial.polynomial.polyfit(time, data, 4)).T
        expected.append((data - data.mean(axis=0)) / data.std(axis=0, ddof=1))
        found = standardise_run(RunTask(run, 240, vertex, some))
        np.testing.assert_allclose(found, expected[-1], atol=1e-5)
    z = [np.arctanh(stats.pearsonr(a, b)[0]) for a, b in zip(expected[0].T, expected[1].T, strict=True)]
    np.testing.assert_allclose(measured.z[some], z, atol=1e-5)
