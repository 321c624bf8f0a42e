"""The Wen 2018 reader in Purdue's exact layout against NumPy and SciPy (docs/method.md, Recordings), written out.

Films of 8 minutes; recordings of 245 or 246 volumes, little- and big-endian, plain and gzipped, subcortical voxels behind
the cortices. Once all 91,282 grayordinates with two training segments; once fewer with all 18, for the test with df 17.
Few recordings are paired in many ways, so that every segment has other correlations while the files stay few.
"""

import gzip
import os
import shutil

import nibabel
import numpy as np
import pytest
from big_endian import to_big_endian
from scipy import stats

from mindvideo.atlas import HIERARCHY, area_labels, area_names, visual_areas
from mindvideo.config import Data
from mindvideo.data.cifti import SUBCORTEX, write_cortex
from mindvideo.data.readers import prepare
from mindvideo.data.video import write_video

N_CORTEX, N_VOXELS, N_SCANS = 59412, sum(SUBCORTEX.values()), 240
PAIRS = [(a, b) for a in range(7) for b in range(a)]
DESCRIPTION = 240
"""Where a NIfTI-2 header has its free text."""
TEST = {"test1": ("245 gzipped", "245"), "test2": ("246 big", "246")}


def _record(rng, strength, shared):
    """What recordings share, noise and drift; float32 (T, N) whose columns lie side by side, as in the files."""
    time = np.linspace(-1, 1, shared.shape[1], dtype=np.float32)
    data = rng.standard_normal(shared.shape, np.float32)
    data += strength[:, None] * shared
    data += 9000 + rng.standard_normal((len(shared), 1), np.float32) * (20 * time + 9 * time**4)
    return data.T


def _make_recordings(folder, vertex, kept, n_voxels, names):
    """Write every recording once; path of each, and its values at the ``kept`` vertices (T, ·)."""
    rng = np.random.default_rng(21)
    strength = rng.permutation(np.linspace(0, 1.2, len(vertex), dtype=np.float32))
    shared = rng.standard_normal((len(vertex), 246), np.float32)
    paths, values = {}, {}
    for name in names:
        n_volumes = 246 if "246" in str(name) else 245
        data = _record(rng, strength, shared[:, :n_volumes])
        values[name] = data[:, np.searchsorted(vertex, kept)]
        voxels = np.broadcast_to(np.linspace(0, 1e4, n_voxels, dtype=np.float32), (n_volumes, n_voxels))
        path = folder / f"{name}.dtseries.nii"
        write_cortex(path, data, vertex, 2.0, voxels)
        if "big" in str(name):
            path.write_bytes(to_big_endian(path.read_bytes()))
            assert path.read_bytes()[:4] == (540).to_bytes(4, "big")
        if "gzipped" in str(name):
            content, path = path.read_bytes(), path.with_name(path.name + ".gz")
            path.write_bytes(gzip.compress(content, 0))
        paths[name] = path
    return paths, values


def _lay_out(raw, paths, runs):
    """Purdue's folders; a file is a link to its recording, or a copy whose header's free text says another segment.

    Copies of one file in two segments are refused.
    """
    (raw / "stimuli").mkdir(parents=True)
    write_video(raw / "film.mp4", (np.full((16, 16, 3), i, np.uint8) for i in range(N_SCANS)), 0.5, 16)
    given = set()
    for segment, names in runs.items():
        os.link(raw / "film.mp4", raw / "stimuli" / f"{segment}.mp4")
        folder = raw / "subject1" / "fmri" / segment / "cifti"
        folder.mkdir(parents=True)
        for run, name in enumerate(names, start=1):
            place = folder / f"{segment}_{run}_Atlas{''.join(paths[name].suffixes)}".replace(" ", "")
            if name in given:
                shutil.copy(paths[name], place)
                with place.open("r+b") as file:
                    file.seek(DESCRIPTION)
                    file.write(segment.encode())
            else:
                os.link(paths[name], place)
            given.add(name)
    rows = ["segment,time_s,caption", *(f"{segment},0,a {segment}" for segment in runs)]
    (raw / "captions.csv").write_text("\n".join(rows))


@pytest.fixture
def folder(tmp_path):
    """Half a gigabyte that does not stay behind."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("is_full_width", [True, False])
def test_store_equals_twenty_lines(folder, is_full_width, monkeypatch):
    monkeypatch.setattr("mindvideo.data.preparation.find_copies", lambda outlines: {})  # few are paired in many ways
    tested = visual_areas() if is_full_width else visual_areas()[::9]
    vertex = np.arange(N_CORTEX) if is_full_width else tested
    n_train, n_voxels, n_base = (2, N_VOXELS, 3) if is_full_width else (18, 77, 7)
    runs = {f"seg{i + 1}": PAIRS[i] for i in range(n_train)}
    runs |= {segment: names[: 1 if is_full_width else 2] for segment, names in TEST.items()}
    used = dict.fromkeys(name for segment in runs for name in runs[segment])
    paths, values = _make_recordings(folder, vertex, tested, n_voxels, [*range(n_base), *list(used)[n_base:]])
    assert nibabel.load(paths["246 big"]).shape == (246, 91282 if is_full_width else len(tested) + 77)
    _lay_out(folder / "raw", paths, runs)
    how = {"selection": "top_k", "k": 4000} if is_full_width else {"selection": "paper"}
    settings = Data(
        size=16, areas="visual", captions=str(folder / "raw" / "captions.csv"), validation_segments=0, **how
    )
    store = prepare(folder / "raw", folder / "store.zarr", settings)

    # docs/method.md, Recordings, written out
    k = np.linspace(-1, 1, N_SCANS)
    standard = {}
    for name, data in values.items():
        kept = (data[1:241] if len(data) == 245 else data[2:242]).astype(float)
        kept -= np.polynomial.polynomial.polyval(k, np.polynomial.polynomial.polyfit(k, kept, 4)).T
        standard[name] = ((kept - kept.mean(axis=0)) / kept.std(axis=0, ddof=1)).astype(np.float32)
    z = np.array([np.arctanh(np.einsum("nv,nv->v", standard[a], standard[b], dtype=float) / (N_SCANS - 1))
                  for a, b in PAIRS[:n_train]])  # fmt: skip
    test = stats.ttest_1samp(z, 0, axis=0, alternative="greater")
    assert set(np.unique(test.df)) == {n_train - 1}
    chosen = np.argsort(test.pvalue)[:4000]
    if not is_full_width:
        significant = np.flatnonzero(test.pvalue * len(tested) < 0.01)  # Bonferroni
        chosen = significant[np.argsort(test.pvalue[significant])][: len(significant) // 2]
        assert 100 < len(chosen) < len(significant) < len(tested) - 100

    np.testing.assert_allclose(store.p_value[tested], test.pvalue, atol=1e-5, rtol=1e-5 if n_train == 18 else 0)
    np.testing.assert_allclose(store.reproducibility[tested], np.tanh(z.mean(axis=0)), atol=1e-5)
    assert np.isnan(np.delete(store.p_value, tested)).all() and np.isnan(np.delete(store.reproducibility, tested)).all()
    assert set(store.vertex) == set(tested[chosen])
    column = np.searchsorted(tested, store.vertex)
    for segment, names in runs.items():
        truth = np.stack([standard[name][:, column] for name in names])
        np.testing.assert_allclose(store.repeats(segment), truth, atol=1e-5)
        np.testing.assert_allclose(store.fmri(segment), truth.mean(axis=0), atol=1e-5)

    label = area_labels()[store.vertex]
    place = [(HIERARCHY.index(area_names()[number].split("_", 1)[1]), number > 180) for number in label]
    assert place == sorted(place) and len(set(place)) > 20  # along the hierarchy, left before right
