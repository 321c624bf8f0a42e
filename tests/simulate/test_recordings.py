"""The files of a simulated subject and of simulated people."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mindvideo import atlas
from mindvideo.config import Data, Simulate
from mindvideo.data.readers import discover
from mindvideo.data.series import read_cortex, read_layout
from mindvideo.data.video import probe, read_frames
from mindvideo.data.voxels import detrend_and_standardise, fisher_z, repeat_correlation
from mindvideo.errors import DataError, SettingError
from mindvideo.simulate.recordings import (
    Segment,
    choose_vertices,
    list_segments,
    scan_captions,
    simulate,
    simulate_pretraining,
    simulated_subject,
    write_segment,
)
from mindvideo.simulate.scenes import Shot, draw_scene, is_held_out, locate, render_film, scene_caption

SETTINGS = Simulate(
    train_segments=3,
    test_segments=2,
    segment_s=60,
    train_runs=2,
    test_runs=3,
    areas="visual",
    size=32,
    source_fps=6,
    pretrain_people=2,
    pretrain_runs=1,
    pretrain_run_s=30,
)
SEED = 11


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "raw"
    calls: list[tuple[int, int]] = []
    simulate(SETTINGS, out, SEED, lambda done, total, figures: calls.append((done, total)))
    assert calls[-1] == (3 * 3 + 2 * 4 + 1, 3 * 3 + 2 * 4 + 1)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})
    return out


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_wen_2018(raw: Path) -> None:
    names = ["seg1", "seg2", "seg3", "test1", "test2"]
    assert sorted(path.stem for path in (raw / "stimuli").iterdir()) == names
    for name, runs, n_volumes in zip(names, (2, 2, 2, 3, 3), (35, 35, 35, 35, 36), strict=True):
        folder = raw / "subject1" / "fmri" / name / "cifti"
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{name}_{r}_Atlas.dtseries.nii" for r in range(1, runs + 1)
        ]
        header = read_layout(folder / f"{name}_1_Atlas.dtseries.nii").header
        assert (header.n_volumes, header.tr_s) == (n_volumes, 2.0)
        np.testing.assert_array_equal(header.vertex, choose_vertices("visual", SEED))
    info = probe(raw / "stimuli" / "seg1.mp4")
    assert (info.n_frames, info.width, info.height, info.duration_s) == (360, 32, 32, pytest.approx(60, abs=0.01))


def test_the_reader_of_wen_2018_takes_it(raw: Path) -> None:
    source = discover(raw, Data(raw=raw, size=32))
    assert len(source.segments) == 5


def test_volume_times_follow_the_original() -> None:
    seg, later = Segment("seg4", 4, 2, 480.0), Segment("test3", 3, 10, 480.0)
    assert (len(seg.times_s), len(later.times_s), len(Segment("test1", 1, 2, 480.0).times_s)) == (245, 246, 245)
    np.testing.assert_allclose(seg.times_s[1:-4], 4 + 2 * np.arange(240))
    np.testing.assert_allclose(later.times_s[2:-4], 4 + 2 * np.arange(240))
    assert seg.times_s[-1] == later.times_s[-1] == 490


def test_film_on_disk_shows_the_scenes(raw: Path) -> None:
    segment = list_segments(SETTINGS)[1]
    times = np.array([3.0, 20.5, 41.0])
    shown = read_frames(raw / "stimuli" / "seg2.mp4", times, 32).astype(float)
    truth = render_film(segment.film(SEED), times, 32).astype(float)
    assert np.abs(shown - truth).mean() < 12


def test_truth_describes_every_scan_and_vertex(raw: Path) -> None:
    captions = json.loads((raw / "truth" / "captions.json").read_text())
    scenes = json.loads((raw / "truth" / "scenes.json").read_text())
    assert {name: len(rows) for name, rows in captions.items()} == dict.fromkeys(scenes, 30)
    for name, shots in scenes.items():
        assert shots[0]["start_s"] == 0 and shots[-1]["end_s"] == 60
        flags = [shot["is_held_out"] for shot in shots]
        assert flags == [is_held_out(shot["thing"], shot["place"], shot["motion"]) for shot in shots]
        assert any(flags) == name.startswith("test")
    with np.load(raw / "truth" / "vertices_subject1.npz") as truth:
        vertex, informative = truth["vertex"], truth["is_informative"]
        np.testing.assert_array_equal(truth["area"], atlas.area_labels()[vertex])
        np.testing.assert_array_equal(informative, np.isin(vertex, atlas.visual_areas()))
        assert set(truth["kind"][~informative]) == {"fluctuation"}
        assert np.all((truth["signal_to_noise"] > 0) == informative)


def test_captions_join_across_a_cut() -> None:
    rng = np.random.default_rng(3)
    a, b = draw_scene(rng, None, 3.0), draw_scene(rng, None, 3.0)
    captions = scan_captions([Shot(a, 0.0, 3.0), Shot(b, 3.0, 6.0)], 6.0)
    at = [scene_caption(scene, locate(scene, t)) for scene, t in ((a, 1.0), (a, 2.5), (b, 0.5), (b, 2.0))]
    assert captions == [at[0], f"{at[1]}. Then {at[2]}", at[3]]


def test_reproducibility_is_real_looking(raw: Path) -> None:
    with np.load(raw / "truth" / "vertices_subject1.npz") as truth:
        vertex, is_informative = truth["vertex"], truth["is_informative"]
    edges = atlas.adjacency()[vertex][:, vertex].tocoo()
    z, neighbour = [], []
    for name in ("seg1", "seg2", "seg3"):
        paths = [raw / f"subject1/fmri/{name}/cifti/{name}_{run}_Atlas.dtseries.nii" for run in (1, 2)]
        runs = [detrend_and_standardise(read_cortex(path).data[1:31]) for path in paths]
        z.append(fisher_z(repeat_correlation(*runs)))
        neighbour.append(np.einsum("te,te->e", runs[0][:, edges.row], runs[0][:, edges.col]) / 29)
    r = np.tanh(np.mean(z, axis=0))
    assert 0.2 < np.median(r[is_informative]) < 0.4
    assert abs(np.median(r[~is_informative])) < 0.06
    assert np.median(neighbour) > 0.4


def test_controls_are_whole_areas_about_as_many() -> None:
    vertex = choose_vertices("visual", 5)
    visual = atlas.visual_areas()
    assert len(visual) * 1.9 < len(vertex) < len(visual) * 2.3
    label = atlas.area_labels()
    for area in np.unique(label[vertex]):
        side = np.flatnonzero(label == area)
        assert np.isin(side, vertex).all()
    assert len(choose_vertices("cortex", 5)) == 59412


def test_interrupted_simulation_goes_on_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    small = SETTINGS.model_copy(update={"segment_s": 20.0, "test_segments": 1, "test_runs": 2})
    first = tmp_path / "first"
    simulate(small, first, SEED)
    before = _digests(first)
    for name in (
        "subject1/fmri/seg2/cifti/seg2_2_Atlas.dtseries.nii",
        "stimuli/test1.mp4",
        "truth/vertices_subject1.npz",
    ):
        (first / name).unlink()
    kept = (first / "stimuli" / "seg1.mp4").stat().st_mtime_ns

    class KilledError(Exception):
        pass

    def kill(done: int, total: int, figures: dict[str, float]) -> None:
        if done == total - 2:
            raise KilledError

    with pytest.raises(KilledError):
        simulate(small, first, SEED, kill)
    simulate(small, first, SEED)
    assert _digests(first) == before
    assert (first / "stimuli" / "seg1.mp4").stat().st_mtime_ns == kept
    done: list[int] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        simulate(small, tmp_path / "second", SEED, lambda n, total, figures: done.append(n), pool)
    assert _digests(tmp_path / "second") == before
    assert done == [3, 6, 9, 12, 13]
    segment = list_segments(small)[0]
    assert segment.film(SEED) == segment.film(SEED) != segment.film(SEED + 1)


def test_another_simulation_in_the_folder_is_refused(raw: Path) -> None:
    with pytest.raises(DataError, match=r"another noise, seed"):
        simulate(SETTINGS.model_copy(update={"noise": 2.0}), raw, SEED + 1)


def test_recordings_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "subject1").mkdir()
    with pytest.raises(DataError, match="expected a new folder"):
        simulate(SETTINGS, tmp_path, SEED)


def test_segment_length_must_be_whole_scans() -> None:
    with pytest.raises(SettingError, match="multiple of the TR"):
        list_segments(Simulate(segment_s=61))


def test_people_for_pretraining_are_written_like_hcp(tmp_path: Path) -> None:
    simulate_pretraining(SETTINGS, tmp_path, SEED)
    paths = sorted((tmp_path / "hcp").rglob("*.nii"))
    results = "MNINonLinear/Results/tfMRI_MOVIE1/tfMRI_MOVIE1_Atlas_MSMAll.dtseries.nii"
    assert [str(path.relative_to(tmp_path / "hcp")) for path in paths] == [f"100001/{results}", f"100002/{results}"]
    first, second = (read_cortex(path) for path in paths)
    assert (len(first.data), first.tr_s, len(first.vertex)) == (41, pytest.approx(0.72), 4183)
    assert np.isfinite(first.data).all()
    assert not np.allclose(first.data, second.data)
    written = paths[0].stat().st_mtime_ns
    simulate_pretraining(SETTINGS, tmp_path, SEED)
    assert paths[0].stat().st_mtime_ns == written


def test_several_subjects_saw_the_same_films(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"segment_s": 12.0, "test_segments": 1, "test_runs": 2, "subjects": 2})
    segments = list_segments(settings)
    calls: list[tuple[int, int]] = []
    simulate(settings, tmp_path, SEED, lambda done, total, figures: calls.append((done, total)))
    assert calls[-1] == (4 + 2 * 4 * 2 + 1, 4 + 2 * 4 * 2 + 1)
    assert len(list((tmp_path / "stimuli").iterdir())) == 4
    for number in (1, 2):
        source = discover(tmp_path, Data(raw=tmp_path, size=32, subject=number))
        assert [segment.name for segment in source.segments] == ["seg1", "seg2", "seg3", "test1"]
    path = "subject{}/fmri/seg1/cifti/seg1_{}_Atlas.dtseries.nii"
    runs = {key: read_cortex(tmp_path / path.format(*key)) for key in ((1, 1), (1, 2), (2, 1), (2, 2))}
    assert len({run.data.tobytes() for run in runs.values()}) == 4
    np.testing.assert_array_equal(runs[1, 1].vertex, runs[2, 1].vertex)
    truth = [np.load(tmp_path / "truth" / f"vertices_subject{number}.npz") for number in (1, 2)]
    assert not np.array_equal(truth[0]["source"], truth[1]["source"])
    assert not np.array_equal(truth[0]["signal_to_noise"], truth[1]["signal_to_noise"])
    three = settings.model_copy(update={"subjects": 3})
    assert simulated_subject(three, SEED, 2) is simulated_subject(settings, SEED, 2)
    before = _digests(tmp_path)
    for lost in ("subject2/fmri/seg1/cifti/seg1_2_Atlas.dtseries.nii", "truth/vertices_subject2.npz"):
        (tmp_path / lost).unlink()
    write_segment(settings, tmp_path, SEED, segments[0])
    simulate(settings, tmp_path, SEED)
    assert _digests(tmp_path) == before


def test_subcortex_completes_the_grayordinates(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"subcortex": True, "segment_s": 12.0, "train_runs": 2})
    segment = list_segments(settings)[0]
    write_segment(settings, tmp_path, SEED, segment)
    path = tmp_path / "subject1/fmri/seg1/cifti/seg1_1_Atlas.dtseries.nii"
    header = read_layout(path).header
    assert nibabel.load(path).shape == (header.n_volumes, len(header.vertex) + 31870)
