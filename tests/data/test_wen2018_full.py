"""The Wen 2018 reader on files of the published size against METHOD section 2 written out in NumPy and SciPy.

18 + 2 segments of 8 minutes; recordings of 91,282 grayordinates (both cortices and 31,870 subcortical voxels) and 245 or
246 volumes, little- and big-endian, plain and gzipped. Seven training recordings are paired in 18 ways, so that there are
18 different correlations at every vertex while the files stay few.
"""

import gzip
import itertools
import os
import shutil

import nibabel
import numpy as np
import pytest
from nibabel import cifti2
from scipy import stats

from mindvideo.atlas import HIERARCHY, area_labels, area_names, visual_areas
from mindvideo.config import Data
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.video import write_video
from mindvideo.data.wen2018 import prepare

N_CORTEX, N_VOXELS, N_SCANS = 59412, sum(SUBCORTEX.values()), 240
TRAIN = [f"seg{number}" for number in range(1, 19)]
PAIRS = list(itertools.combinations(range(7), 2))[:18]
TEST = {"test1": ("little 245", "gzipped 245"), "test2": ("big 246", "little 246")}


def _record(rng, strength, shared):
    """What a vertex shares between recordings, drift and noise; float32 (T, 91282)."""
    time = np.linspace(-1, 1, len(shared), dtype=np.float32)[:, None]
    data = rng.standard_normal(shared.shape, np.float32)
    data += strength * shared + 9000
    data += rng.standard_normal(shared.shape[1], np.float32) * (20 * time + 9 * time**4)
    return data


def _write_big_endian(path, like, data):
    """The same axes in the other byte order, through nibabel."""
    axes = [nibabel.load(like).header.get_axis(1)]
    header = nibabel.Nifti2Header(endianness=">")
    header.set_data_dtype(">f4")
    series = cifti2.SeriesAxis(0.0, 2.0, len(data))
    cifti2.Cifti2Image(data, header=(series, *axes), nifti_header=header).to_filename(path)


def _make_recordings(folder, kept):
    """Write every recording once below ``folder``; paths, and the values of the ``kept`` vertices, (T, V) each."""
    rng = np.random.default_rng(21)
    strength = np.zeros(N_CORTEX + N_VOXELS, np.float32)
    strength[kept] = rng.permutation(np.linspace(0, 1.2, len(kept)))
    shared = rng.standard_normal((246, len(strength)), np.float32)
    paths, values = {}, {}
    for name in [*range(7), "little 245", "gzipped 245", "big 246", "little 246"]:
        data = _record(rng, strength, shared[: 246 if "246" in str(name) else 245])
        path = paths[name] = folder / f"{name}.dtseries.nii"
        if name == "big 246":
            _write_big_endian(path, paths[0], data)
        else:
            write_cortex(path, data[:, :N_CORTEX], np.arange(N_CORTEX), 2.0, data[:, N_CORTEX:])
        if name == "gzipped 245":
            paths[name] = path.with_name(path.name + ".gz")
            with path.open("rb") as plain, gzip.open(paths[name], "wb", compresslevel=1) as zipped:
                shutil.copyfileobj(plain, zipped)
            path.unlink()
        values[name] = data[:, kept]
    return paths, values


def _lay_out(raw, paths):
    """Purdue's folders, every file a link to its recording."""
    (raw / "stimuli").mkdir(parents=True)
    write_video(raw / "film.mp4", (np.full((16, 16, 3), i, np.uint8) for i in range(N_SCANS)), 0.5, 16)
    runs = dict(zip(TRAIN, PAIRS, strict=True)) | TEST
    for segment, names in runs.items():
        os.link(raw / "film.mp4", raw / "stimuli" / f"{segment}.mp4")
        folder = raw / "subject1" / "fmri" / segment / "cifti"
        folder.mkdir(parents=True)
        for run, name in enumerate(names, start=1):
            suffix = "".join(paths[name].suffixes)
            os.link(paths[name], folder / f"{segment}_{run}_Atlas{suffix}")
    rows = ["segment,time_s,caption", *(f"{segment},0,a {segment}" for segment in runs)]
    (raw / "captions.csv").write_text("\n".join(rows))
    return runs


@pytest.fixture
def folder(tmp_path):
    """A gigabyte that does not stay behind."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_full_width_equals_twenty_lines(folder):
    visual = visual_areas()
    paths, values = _make_recordings(folder, visual)
    assert nibabel.load(paths["big 246"]).shape == (246, 91282) and nibabel.load(paths[3]).shape == (245, 91282)
    assert nibabel.load(paths["big 246"]).nifti_header.endianness == ">"
    runs = _lay_out(folder / "raw", paths)
    settings = Data(areas="visual", size=16, captions=str(folder / "raw" / "captions.csv"))  # the paper's selection
    store = prepare(folder / "raw", folder / "store.zarr", settings)

    # METHOD section 2, written out
    k = np.linspace(-1, 1, N_SCANS)
    standard = {}
    for name, data in values.items():
        kept = data[1:241] if len(data) == 245 else data[2:242]
        kept = (
            kept.astype(float)
            - np.polynomial.polynomial.polyval(k, np.polynomial.polynomial.polyfit(k, kept.astype(float), 4)).T
        )
        standard[name] = (kept - kept.mean(axis=0)) / kept.std(axis=0, ddof=1)
    z = np.array([np.arctanh((standard[a] * standard[b]).sum(axis=0) / (N_SCANS - 1)) for a, b in PAIRS])
    test = stats.ttest_1samp(z, 0, axis=0, alternative="greater")
    assert set(np.atleast_1d(test.df)) == {17}
    significant = np.flatnonzero(test.pvalue * len(visual) < 0.01)
    chosen = significant[np.argsort(test.pvalue[significant])][: len(significant) // 2]
    assert 1000 < len(chosen) < len(significant) < len(visual) - 1000

    np.testing.assert_allclose(store.p_value[visual], test.pvalue, rtol=1e-5)
    np.testing.assert_allclose(store.reproducibility[visual], np.tanh(z.mean(axis=0)), atol=1e-6)
    assert np.isnan(np.delete(store.p_value, visual)).all()
    assert set(store.vertex) == set(visual[chosen])
    column = np.searchsorted(visual, store.vertex)
    for segment, names in runs.items():
        truth = np.stack([standard[name][:, column] for name in names])
        np.testing.assert_allclose(store.repeats(segment), truth, atol=1e-5)
        np.testing.assert_allclose(store.fmri(segment), truth.mean(axis=0), atol=1e-5)

    label = area_labels()[store.vertex]
    place = [(HIERARCHY.index(area_names()[number].split("_", 1)[1]), number > 180) for number in label]
    assert place == sorted(place)  # along the hierarchy, left before right
    assert [HIERARCHY[i] for i, _ in dict.fromkeys(place)][:8:2] == ["V1", "V2", "V3", "V4"]
    assert {step["step"]: step["parameters"] for step in store.attrs["provenance"]}["reproducibility"]["df"] == 17
