import io
import zipfile

import nibabel
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from mindvideo import atlas
from mindvideo.data.cifti import write_cortex
from mindvideo.data.copies import find_contained
from mindvideo.data.readers import hcp
from mindvideo.errors import DataError, SettingError

AREAS = ("V8", "MT")
NAME = "{}/MNINonLinear/Results/{}/{}_Atlas_MSMAll{}.dtseries.nii"


def write_run(raw, person, run, n_volumes, tr_s=0.72, suffix="", vertex=None, seed=0):
    """A CIFTI run of V8, MT and a bit of FST; returns its data and positions."""
    if vertex is None:
        vertex = np.sort(np.concatenate([atlas.area_of("V8"), atlas.area_of("MT"), atlas.area_of("FST")[::5]]))
    data = 500 + 20 * np.random.default_rng(seed).standard_normal((n_volumes, len(vertex))).astype(np.float32)
    path = raw / NAME.format(person, run, run, suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_cortex(path, data, vertex, tr_s)
    return path


def expected_rows(path, volumes):
    """Windows of one run straight from nibabel, in the documented order."""
    image = nibabel.load(path)
    data, models = image.get_fdata(), image.header.get_axis(1)
    surface_vertex, is_right = atlas.surface_vertex_index()
    columns = {}
    for structure, part, axis in models.iter_structures():
        for vertex, column in zip(axis.vertex, range(*part.indices(len(models))), strict=True):
            columns[structure.endswith("RIGHT"), vertex] = column
    wanted = np.concatenate([atlas.area_of(name) for name in AREAS])
    wanted = wanted[atlas.hierarchy_order(wanted)]
    series = data[:, [columns[bool(is_right[v]), surface_vertex[v]] for v in wanted]]
    rows = np.array([series[i : i + volumes].mean(axis=0) for i in range(0, len(series) - volumes + 1, volumes)])
    return (rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1)


@pytest.fixture
def raw(tmp_path):
    raw = tmp_path / "raw"
    write_run(raw, "100307", "rfMRI_REST1_LR", 60, seed=1)
    write_run(raw, "100307", "tfMRI_WM_RL", 47, seed=2)
    write_run(raw, "990366", "rfMRI_REST1_LR", 35, tr_s=1.0, seed=3)
    return raw


def test_rows_equal_a_plain_computation(raw, tmp_path):
    out = tmp_path / "hcp.zarr"
    seen = []
    hcp.prepare_hcp(raw, out, 8.0, AREAS, lambda *step: seen.append(step))
    paths = [raw / name for name in zarr.open_group(out, mode="r").attrs["sources"]]
    expected = [expected_rows(path, volumes) for path, volumes in zip(paths, (11, 11, 8), strict=True)]
    assert [len(rows) for rows in expected] == [5, 4, 4]
    segments = hcp.BrainSegments.open(out)
    assert len(segments) == 13 and segments.n_voxels == len(atlas.area_of("V8")) + len(atlas.area_of("MT"))
    index = np.array([12, 0, 7, 7, 5])
    found = segments.take(index)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate(expected)[index], atol=1e-4)
    assert set(segments.vertex) == set(np.concatenate([atlas.area_of(name) for name in AREAS]).tolist())
    assert np.array_equal(segments.vertex[atlas.hierarchy_order(segments.vertex)], segments.vertex)
    assert seen == [(1, 3, {"rows": 5}), (2, 3, {"rows": 9}), (3, 3, {"rows": 13})]
    sums = zarr.open_group(out, mode="r").attrs["sources"]
    assert all(len(value) == 64 for value in sums.values()) and len(sums) == 3


def test_large_data_are_read_in_parts(raw, tmp_path, monkeypatch):
    out = tmp_path / "hcp.zarr"
    monkeypatch.setattr(hcp, "_CHUNK_ROWS", 4)
    hcp.prepare_hcp(raw, out, 8.0, AREAS)
    whole = hcp.BrainSegments.open(out)
    monkeypatch.setattr(hcp, "_IN_MEMORY_BYTES", 0)
    parts = hcp.BrainSegments.open(out)
    assert parts._in_memory is None and whole._in_memory is not None
    index = np.random.default_rng(0).integers(0, 13, 29)
    np.testing.assert_array_equal(parts.take(index), whole.take(index))


def test_of_several_versions_of_a_run_the_clean_one_is_read(raw):
    clean = write_run(raw, "100307", "rfMRI_REST1_LR", 60, suffix="_hp2000_clean")
    kind, paths = hcp.find_sources(raw)
    assert kind == "cifti" and len(paths) == 3 and paths[0] == clean
    [line] = hcp.prepare_hcp(raw, raw.parent / "hcp.zarr", 8.0, AREAS)
    assert line.startswith("recording left out, another version of a run: 100307/") and "hp2000" not in line


def _sources(out):
    return [name.split("/")[-2] for name in zarr.open_group(out, mode="r").attrs["sources"]]


def test_recordings_that_are_there_twice_count_once(raw, tmp_path):
    parts = [
        nibabel.load(raw / NAME.format("100307", run, run, "")).get_fdata() for run in ("rfMRI_REST1_LR", "tfMRI_WM_RL")
    ]
    vertex = np.sort(np.concatenate([atlas.area_of("V8"), atlas.area_of("MT"), atlas.area_of("FST")[::5]]))
    whole = write_run(raw, "100307", "tfMRI_BOTH", 107)
    drift = np.linspace(0, 30, 107)[:, None]  # processed otherwise, so the bytes and the values differ
    write_cortex(whole, np.concatenate(parts) + drift, vertex, 0.72)
    copy = raw / NAME.format("100307", "rfMRI_COPY", "rfMRI_COPY", "")
    copy.parent.mkdir()
    copy.write_bytes((raw / NAME.format("100307", "rfMRI_REST1_LR", "rfMRI_REST1_LR", "")).read_bytes())
    (raw / "linked").symlink_to("990366")
    (copy.parent / f"._{copy.name}").write_bytes(b"Mac OS X")
    lines = hcp.prepare_hcp(raw, tmp_path / "hcp.zarr", 8.0, AREAS)
    assert sorted(_sources(tmp_path / "hcp.zarr")) == ["rfMRI_COPY", "rfMRI_REST1_LR", "tfMRI_WM_RL"]
    assert len(hcp.BrainSegments.open(tmp_path / "hcp.zarr")) == 5 + 4 + 4
    text = "\n".join(lines)
    assert len(lines) == 3 and "the concatenation of" in text and "tfMRI_BOTH" in text
    assert "its volumes are those of" in text and "the same file as 990366/" in text
    left_out = zarr.open_group(tmp_path / "hcp.zarr", mode="r").attrs["left_out"]
    assert {name.split("/")[-2] for name in left_out} == {"tfMRI_BOTH", "rfMRI_REST1_LR"}


def test_a_person_saved_again_under_another_name_counts_once(raw, tmp_path):
    again = write_run(raw, "990366_2", "rfMRI_REST1_LR", 35)
    image = nibabel.load(raw / NAME.format("990366", "rfMRI_REST1_LR", "rfMRI_REST1_LR", ""))
    nibabel.Cifti2Image(image.get_fdata() * 3, image.header).to_filename(again)
    (line,) = hcp.prepare_hcp(raw, tmp_path / "hcp.zarr", 8.0, AREAS)
    assert "left out, a copy of 990366/" in line and "990366_2/" in line
    assert len(hcp.BrainSegments.open(tmp_path / "hcp.zarr")) == 5 + 4 + 4


def test_a_run_inside_a_longer_recording_is_left_out(tmp_path):
    rng = np.random.default_rng(0)
    whole, other = rng.standard_normal((2, 5, 90))
    found = find_contained({"a": whole, "b": whole[:, 20:55] * 3 + 1, "c": other[:, :40]})
    assert found == {"b": "its volumes are those of a"}


def test_vertices_without_signal_are_no_voxels(raw, tmp_path):
    vertex = np.sort(np.concatenate([atlas.area_of("V8"), atlas.area_of("MT"), atlas.area_of("FST")[::5]]))
    path = raw / NAME.format("990366", "rfMRI_REST1_LR", "rfMRI_REST1_LR", "")
    data = nibabel.load(path).get_fdata()
    gone = [int(vertex[2]), int(atlas.area_of("MT")[-1])]
    data[:, np.isin(vertex, gone)] = 0
    write_cortex(path, data, vertex, 1.0)
    lines = hcp.prepare_hcp(raw, tmp_path / "hcp.zarr", 8.0, AREAS)
    assert len(lines) == 1 and lines[0].startswith("vertices left out") and str(gone[0]) in lines[0]
    segments = hcp.BrainSegments.open(tmp_path / "hcp.zarr")
    everything = hcp.area_vertices(AREAS)
    np.testing.assert_array_equal(segments.vertex, everything[~np.isin(everything, gone)])
    first = raw / NAME.format("100307", "rfMRI_REST1_LR", "rfMRI_REST1_LR", "")
    np.testing.assert_allclose(
        segments.take(np.arange(5)), expected_rows(first, 11)[:, ~np.isin(everything, gone)], atol=1e-4
    )
    data[:, : len(vertex) // 2] = 0
    write_cortex(path, data, vertex, 1.0)
    lines = hcp.prepare_hcp(raw, tmp_path / "rest.zarr", 8.0, AREAS)
    assert len(lines) == 1 and "vertices have no signal: 990366/" in lines[0]
    assert hcp.BrainSegments.open(tmp_path / "rest.zarr").n_voxels == len(everything)


def test_an_interrupted_preparation_goes_on_to_the_same_rows(raw, tmp_path, monkeypatch):
    hcp.prepare_hcp(raw, tmp_path / "whole.zarr", 8.0, AREAS)
    out = tmp_path / "hcp.zarr"

    def stop(done, total, figures):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hcp.prepare_hcp(raw, out, 8.0, AREAS, stop)
    array = zarr.open_group(out, mode="r+")["fmri"]
    array.resize((11, array.shape[1]))  # as if killed after rows were added and before they were counted
    with pytest.raises(DataError, match="2 of 3 runs; run prepare hcp again"):
        hcp.BrainSegments.open(out)
    with pytest.raises(DataError, match="other settings or files"):
        hcp.prepare_hcp(raw, out, 6.0, AREAS)
    read = []
    real = hcp.read_cifti_windows
    monkeypatch.setattr(hcp, "read_cifti_windows", lambda file, *rest: read.append(file) or real(file, *rest))
    hcp.prepare_hcp(raw, out, 8.0, AREAS)
    assert len(read) == 1
    whole, resumed = (hcp.BrainSegments.open(tmp_path / name) for name in ("whole.zarr", "hcp.zarr"))
    np.testing.assert_array_equal(whole.take(np.arange(13)), resumed.take(np.arange(13)))
    hcp.prepare_hcp(raw, out, 8.0, AREAS)
    assert len(read) == 1  # complete: nothing to do
    write_run(raw, "990366", "rfMRI_REST1_LR", 36, tr_s=1.0, seed=3)
    with pytest.raises(DataError, match="other settings or files"):
        hcp.prepare_hcp(raw, out, 8.0, AREAS)


def write_npz(path, n_volumes=65, widths=(5, 3, 4, 2), **change):
    rng = np.random.default_rng(9)
    arrays = {f"V{i + 1}": rng.standard_normal((n_volumes, width)) for i, width in enumerate(widths)} | change
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def test_published_npz_files(tmp_path):
    raw = tmp_path / "raw"
    first = write_npz(raw / "a" / hcp.NPZ_NAME)
    second = write_npz(raw / "b" / hcp.NPZ_NAME, 50)
    hcp.prepare_hcp(raw, tmp_path / "hcp.zarr")
    expected = []
    for arrays in (first, second):
        series = np.concatenate([arrays[key] for key in ("V1", "V2", "V3", "V4")], axis=1)
        rows = np.array([series[i : i + 11].mean(axis=0) for i in range(0, len(series) - 10, 11)])
        expected.append((rows - rows.mean(axis=0)) / rows.std(axis=0, ddof=1))
    segments = hcp.BrainSegments.open(tmp_path / "hcp.zarr")
    assert (len(segments), segments.n_voxels, segments.vertex) == (9, 14, None)
    np.testing.assert_allclose(segments.take(np.arange(9)), np.concatenate(expected), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"V3": None}, "keys V1, V2, V3, V4, found V1, V2, V4"),
        ({"V2": np.zeros((9, 3))}, "equally many volumes"),
        ({"V2": np.zeros((65, 0))}, "expected numbers"),
        ({"V2": np.array([["a"]])}, "expected numbers"),
        ({"V2": np.array([[object()]])}, "expected a whole npz of arrays"),
        ({"V4": np.r_[np.ones((12, 2)), np.full((53, 2), np.nan)]}, "2 of 14 vertices with NaN"),
        ({"V4": np.full((65, 2), np.nan)}, "2 of 14 vertices have no signal"),
        ({"V4": np.ones((65, 2))}, "2 of 14 vertices have no signal"),
    ],
)
def test_bad_npz_files_are_refused(tmp_path, change, message):
    write_npz(tmp_path / "raw" / hcp.NPZ_NAME, **change)
    with pytest.raises(DataError, match=message):
        hcp.prepare_hcp(tmp_path / "raw", tmp_path / "hcp.zarr")
    with pytest.raises(DataError):
        hcp.BrainSegments.open(tmp_path / "hcp.zarr")


def test_damaged_npz_files_are_refused(tmp_path):
    path = tmp_path / "raw" / hcp.NPZ_NAME
    write_npz(path)
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for cut in rng.integers(0, len(content), 30):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match="expected a whole npz"):
            hcp.read_npz_windows(path, ("V1", "V2", "V3", "V4"), 8.0)
    for place in rng.integers(0, len(content), 60):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            hcp.read_npz_windows(path, ("V1", "V2", "V3", "V4"), 8.0)
        except DataError:
            continue


def test_bad_recordings_are_refused(raw, tmp_path):
    with pytest.raises(DataError, match="found none; give the folder"):
        hcp.prepare_hcp(tmp_path / "nowhere", tmp_path / "hcp.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"MNINonLinear.*found none"):
        hcp.prepare_hcp(tmp_path / "empty", tmp_path / "hcp.zarr")
    with pytest.raises(SettingError, match="at least one volume"):
        hcp.prepare_hcp(raw, tmp_path / "a.zarr", 0.2, AREAS)
    with pytest.raises(DataError, match="at least two windows of 28 volumes"):
        hcp.prepare_hcp(raw, tmp_path / "b.zarr", 20.0, AREAS)
    with pytest.raises(DataError, match=r"REST1_LR_Atlas_MSMAll.*missing e\.g\. cortical position"):
        hcp.prepare_hcp(raw, tmp_path / "c.zarr", 8.0, ("V8", "V1"))
    write_npz(raw / hcp.NPZ_NAME)
    with pytest.raises(DataError, match="one kind of recording"):
        hcp.prepare_hcp(raw, tmp_path / "d.zarr", 8.0, AREAS)
    with pytest.raises(DataError, match="found no folder; run prepare hcp first"):
        hcp.BrainSegments.open(tmp_path / "nowhere.zarr")


def test_other_folders_are_no_segments(raw, tmp_path):
    hcp.prepare_hcp(raw, tmp_path / "hcp.zarr", 8.0, AREAS)
    group = zarr.open_group(tmp_path / "hcp.zarr", mode="r+")
    (tmp_path / "hcp.zarr" / "fmri" / "c" / "0" / "0").unlink()
    with pytest.raises(DataError, match="parts of it lost"):
        hcp.BrainSegments.open(tmp_path / "hcp.zarr")
    group.attrs["version"] = 2
    with pytest.raises(DataError, match=r"version 1 at .*found version 2"):
        hcp.BrainSegments.open(tmp_path / "hcp.zarr")
    group.attrs["format"] = "other"
    with pytest.raises(DataError, match="another zarr group"):
        hcp.BrainSegments.open(tmp_path / "hcp.zarr")


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12))
def test_window_means(n_volumes, volumes):
    run = np.random.default_rng(n_volumes).standard_normal((n_volumes, 3))
    found = hcp.average_windows(run, volumes)
    assert len(found) == n_volumes // volumes
    for number, row in enumerate(found):
        np.testing.assert_allclose(row, run[number * volumes : (number + 1) * volumes].mean(axis=0))


def test_npz_of_version_2_headers(tmp_path):
    path = tmp_path / hcp.NPZ_NAME
    values = np.random.default_rng(0).standard_normal((30, 3))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("V1", "V2"):
            member = io.BytesIO()
            np.lib.format.write_array(member, values, version=(2, 0))
            archive.writestr(f"{name}.npy", member.getvalue())
    rows = hcp.read_npz_windows(path, ("V1", "V2"), 8.0)
    assert rows.shape == (2, 6) and np.array_equal(rows[:, :3], rows[:, 3:])
