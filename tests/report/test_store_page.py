"""``mindvideo inspect`` and ``mindvideo export``: what they say and write, against the store's own files."""

import json
import re

import numpy as np
import pytest
import zarr
from PIL import Image

from mindvideo import atlas
from mindvideo.data.writing import StoreWriter
from mindvideo.errors import DataError
from mindvideo.report.store_page import describe_store, write_page

SPLITS = {"train": ["seg1", "seg2"], "validation": ["seg3"], "test": ["test1"]}
LENGTHS = {"seg1": 5, "seg2": 5, "seg3": 5, "test1": 4}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Seven voxels, three frames a scan; the test film repeats a scan of seg2."""
    rng = np.random.default_rng(0)
    vertex = np.concatenate([atlas.area_of("L_V1")[:3], atlas.area_of("R_MT")[:4]])
    vertex = vertex[atlas.hierarchy_order(vertex)]
    maps = np.full(atlas.N_CORTEX, np.nan)
    maps[atlas.visual_areas()] = rng.uniform(-0.1, 0.5, len(atlas.visual_areas()))
    path = tmp_path_factory.mktemp("store") / "store.zarr"
    header = {"subject": "subject7", "tr_s": 1.5, "lag_s": 4.5, "fps": 2, "size": 16, "splits": SPLITS}
    with StoreWriter(path, vertex=vertex, reproducibility=maps, p_value=maps, **header) as writer:
        frames = {name: rng.integers(0, 256, (n, 3, 16, 16, 3), dtype=np.uint8) for name, n in LENGTHS.items()}
        frames["test1"][2] = frames["seg2"][4]
        for number, (name, n) in enumerate(LENGTHS.items()):
            repeats = rng.standard_normal((2 + number, n, 7)).astype(np.float32)
            writer.write_fmri(name, repeats.mean(axis=0), repeats)
            writer.write_frames(name, frames[name])
            writer.write_scene(name, 10 * number + np.arange(n)[:, None].repeat(3, axis=1) // 2)
            words = [[f"<b>scan {scan}</b> of {name}"] * 3 for scan in range(n)]
            writer.write_captions(name, [row[0] for row in words], words)
        writer.add_step("select", areas="visual", alpha=0.01)
        writer.add_sources({"stimuli/seg1.mp4": "ab" * 32})
        return writer.finish()


def test_what_is_printed(cli, store, tmp_path):
    code, text = cli("inspect", store.path, "--out", tmp_path / "page")
    assert code == 0
    for line in (
        "subject: subject7", "timing: TR 1.5 s, lag 4.5 s", "voxels: 7 (3 left, 4 right)", "by area: MT 4, V1 3",
        "train: 10 in 2 segments (seg1, seg2), 6 scenes, 2 to 3 runs a segment", "validation: 5 in 1 segments",
        "frames: 3 a scan (2 a second), 16 x 16 pixels", "captions: 19 different",
        "test scans that look like a training scan: 1 of 4", "test1 scan 2: seg2 scan 4, correlation 1.000",
        'select: {"areas": "visual", "alpha": 0.01}', "stimuli/seg1.mp4: " + "ab" * 32,
    ):  # fmt: skip
        assert line in text, line
    assert str(tmp_path / "page" / "index.html") in text


def test_the_page_shows_what_was_said(store, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    page = write_page(store, describe_store(store), tmp_path / "page")
    html = page.read_text()
    names = re.findall(r'<img src="([^"]+)"', html)
    assert names == ["reproducibility.png", "histogram.png", "voxels.png", "frames.png"]
    for name in names:
        with Image.open(page.parent / name) as picture:
            assert np.ptp(np.asarray(picture.convert("L"))) > 100
    assert "<b>scan" not in html and "&lt;b&gt;scan 0" in html and "ab" * 32 in html
    assert {item.name for item in page.parent.iterdir()} == {"index.html", *names}
    with pytest.raises(DataError, match="outside the store"):
        write_page(store, {}, store.path / "page")
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


def test_the_page_lies_beside_the_store_unless_told_otherwise(cli, store):
    assert cli("inspect", store.path)[0] == 0
    assert (store.path.parent / "store_inspect" / "index.html").is_file()


def test_export_equals_an_independent_reading(cli, store, tmp_path):
    code, _ = cli("export", store.path, tmp_path / "all.npz", "--frames")
    assert code == 0
    group = zarr.open_group(store.path, mode="r")
    order = json.loads((store.path / "zarr.json").read_text())["attributes"]["splits"]
    with np.load(tmp_path / "all.npz", allow_pickle=False) as arrays:
        assert sorted(arrays) == ["fmri_test", "fmri_train", "frames_test", "frames_train", "vertex"]
        for split, names in (("train", order["train"] + order["validation"]), ("test", order["test"])):
            for kind, dtype in (("fmri", np.float32), ("frames", np.uint8)):
                found = arrays[f"{kind}_{split}"]
                assert found.dtype == dtype
                np.testing.assert_array_equal(found, np.stack([group[f"{kind}/{name}"][:] for name in names]))
        vertex = arrays["vertex"]
        assert vertex.dtype == np.int32 and vertex.min() >= 0 and vertex.max() < 59412
        assert (vertex < 29696).sum() == 3  # left hemisphere first
    assert cli("export", store.path, tmp_path / "fmri.npz")[0] == 0
    with np.load(tmp_path / "fmri.npz") as arrays:
        assert sorted(arrays) == ["fmri_test", "fmri_train", "vertex"]
