"""Captions and shot changes at the command line: a file of one's own, or the captioner, resumed from its cache."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from small_wen import CUTS, FPS_SOURCE, N_SCANS, TEST, TRAIN, make_raw

from mindvideo.config import Recipe
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError
from mindvideo.preparing import choose_captioner

SETTINGS = ("--size", 16, "--workers", 1, "--areas", "V1", "--selection", "all")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("wen"))


def _scenes(name):
    """Number of the shot of every kept frame, (n, 6), from where the film changes its colour."""
    frame = np.arange(N_SCANS)[:, None] * 2 * FPS_SOURCE + np.arange(6) * 5
    return np.searchsorted(CUTS[name], frame, side="right")


def _joined(words):
    """A. Then B."""
    return [". Then ".join(dict.fromkeys(row)) for row in words]


def test_files_of_ones_own(cli, raw, tmp_path):
    words = {name: [[f"{name} scene {i}" for i in row] for row in _scenes(name)] for name in TRAIN + TEST}
    (tmp_path / "by_frame.json").write_text(json.dumps(words))
    rows = ["segment,scan,caption", *(f'{name},{k},"scan {k}, {name}"' for name in words for k in range(N_SCANS))]
    (tmp_path / "by_scan.csv").write_text("\n".join(rows))
    by_scan = {name: [f"scan {k}, {name}" for k in range(N_SCANS)] for name in words}
    by_shot = {name: _joined(words[name]) for name in words}
    assert sum(". Then " in caption for caption in by_shot["seg3"]) == 2  # of three cuts one falls between two scans
    for path, wanted in ((tmp_path / "by_frame.json", by_shot), (tmp_path / "by_scan.csv", by_scan)):
        out = tmp_path / f"{path.stem}.zarr"
        code, text = cli("prepare", "wen2018", raw, "--out", out, "--captions", path, *SETTINGS)
        assert code == 0, text
        store = Store.open(out)
        for name in words:
            assert store.captions(name) == wanted[name]
            changes = np.diff(store.scene(name).ravel()) != 0  # found by scenedetect in the pictures
            np.testing.assert_array_equal(changes, np.diff(_scenes(name).ravel()) != 0)


def test_a_file_that_lacks_a_scan(cli, raw, tmp_path):
    (tmp_path / "c.csv").write_text("segment,scan,caption\nseg1,0,a\nseg1,1,b\n")
    code, text = cli("prepare", "wen2018", raw, "--out", tmp_path / "out", "--captions", tmp_path / "c.csv", *SETTINGS)
    said = " ".join(text.split())
    assert code == 1 and "12 captions of seg1" in said and "missing scans: 2, 3" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_the_captioner_sees_every_picture_once(cli, raw, random_kit, tmp_path):
    arguments = ("prepare", "wen2018", raw, "--captions", "blip", "--foundation", random_kit, *SETTINGS)
    code, text = cli(*arguments, "--out", tmp_path / "whole.zarr")
    assert code == 0, text
    whole = Store.open(tmp_path / "whole.zarr")
    cache = tmp_path / "whole.zarr.captions.jsonl"
    frames = np.concatenate([whole.frames(name).reshape(-1, 16, 16, 3) for name in whole.order])
    lines = cache.read_text().splitlines()
    assert len(lines) == len(np.unique(frames, axis=0)) < len(frames)
    assert all(caption == caption.strip() for name in whole.order for caption in whole.captions(name))

    # a killed run left some of the lines, the last of them cut off: only the others are captioned again
    kept = lines[: len(lines) // 2]
    marked = {"key": json.loads(kept[0])["key"], "caption": "from the cache"}
    marked["digest"] = hashlib.sha256(json.dumps(marked, sort_keys=True).encode()).hexdigest()[:16]
    (tmp_path / "again.zarr.captions.jsonl").write_text("\n".join([json.dumps(marked), *kept[1:], lines[-1][:20]]))
    code, text = cli(*arguments, "--out", tmp_path / "again.zarr")
    assert code == 0, text
    again = Store.open(tmp_path / "again.zarr")
    found = (tmp_path / "again.zarr.captions.jsonl").read_text().splitlines()
    assert json.loads(found[0]) == marked and sorted(found[1:]) == sorted(lines[1:])
    pairs = [
        (a, b)
        for name in whole.order
        for rows in zip(whole.frame_captions(name), again.frame_captions(name), strict=True)
        for a, b in zip(*rows, strict=True)
    ]
    assert {b for a, b in pairs if a != b} <= {"from the cache"} and any(b == "from the cache" for _, b in pairs)
    shutil.rmtree(tmp_path / "again.zarr")


def test_the_embedded_kit_does_not_caption_films_of_a_real_recording(cli, raw, tmp_path):
    out = tmp_path / "real.zarr"
    code, text = cli("prepare", "wen2018", raw, "--out", out, *SETTINGS)
    said = " ".join(text.split())
    assert (
        code == 0
        and "films without captions, since the embedded kit knows one drawn world only" in said
        and f"({len(TRAIN + TEST)}): seg1" in said
    )
    store = Store.open(out)
    assert not store.has_captions and store.summary()["captions"] == 0
    with pytest.raises(DataError, match=r"captions in .*left out.*--captions FILE"):
        Windows(store, "train", 2).captions  # noqa: B018
    assert Windows(store, "train", 2).frames(np.array([1])).shape == (1, 6, 16, 16, 3)
    code, text = cli("inspect", out, "--out", tmp_path / "page")
    assert code == 0 and "left out" in text, text
    assert choose_captioner(Recipe(), raw)[0].captions == "none"
    assert choose_captioner(Recipe(kit_on_real_films=True), raw)[0].captions == "blip"
    (raw / "truth").mkdir()
    (raw / "truth" / "settings.json").write_text("{}")  # as simulate leaves it
    assert choose_captioner(Recipe(), raw)[1] is not None
