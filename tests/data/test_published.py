"""Published arrays as stores: both layouts at small width, against the arrays they were made of, and their errors."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from mindvideo import preparing
from mindvideo.atlas import area_of
from mindvideo.config import Data, load_recipe, parse_recipe
from mindvideo.data.captions import Captioning
from mindvideo.data.readers import discover, prepare
from mindvideo.data.readers.published import resize_frames
from mindvideo.data.store import Store, open_stores
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError
from mindvideo.explain import maps
from mindvideo.models.encoders.fmri_encoder import FmriEncoder
from mindvideo.models.foundation import Foundation
from mindvideo.stages import StageContext

N_TRAIN, N_TEST, N_SCANS, N_FRAMES, N_VOXELS, N_REPEATS, SIZE = 4, 2, 5, 6, 37, 3, 16


def _arrays():
    rng = np.random.default_rng(11)
    frames = {}
    for split, number in (("train", N_TRAIN), ("test", N_TEST)):
        coarse = rng.integers(0, 256, (number, N_SCANS, 4, 4, 3)).astype(float)  # a picture a scan
        picture = ndimage.zoom(coarse, (1, 1, SIZE / 4, SIZE / 4, 1), order=0)
        frames[split] = np.repeat(np.rint(picture)[:, :, None], N_FRAMES, axis=2).astype(np.uint8)
    frames["test"][1, 2] = frames["train"][0, 3]  # one picture in both
    fmri = {
        "train": rng.standard_normal((N_TRAIN, N_SCANS, 2, N_VOXELS)).astype(np.float32),
        "test": rng.standard_normal((N_TEST, N_SCANS, N_REPEATS, N_VOXELS)).astype(np.float32),
    }
    return frames, fmri


FRAMES, FMRI = _arrays()


def _texts(split):
    number = len(FRAMES[split])
    return np.array([[[f"{split} {s} {k}"] * N_FRAMES for k in range(N_SCANS)] for s in range(number)])


@pytest.fixture
def mindvideo(tmp_path):
    folder = tmp_path / "mindvideo" / "preprocessed"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        np.save(folder / f"video_{split}_256_3hz.npy", FRAMES[split].astype(np.float32))
        np.save(folder / f"text_{split}_256_3hz.npy", _texts(split))
        np.save(folder / f"fmri_{split}_subject3.npy", FMRI[split].mean(axis=2))
    ids = np.array([["0", "0", "-", "1", "1"], ["0", "-", "1", "-", "2"]])
    np.save(folder / "test_seg_id_3hz.npy", ids)
    return tmp_path / "mindvideo"


@pytest.fixture
def neuroclips(tmp_path):
    folder = tmp_path / "neuroclips"
    folder.mkdir()
    for split in ("train", "test"):
        clips = torch.from_numpy(np.moveaxis(FRAMES[split].reshape(-1, *FRAMES[split].shape[2:]), -1, 2) / 255.0)
        torch.save(clips.float(), folder / f"GT_{split}_3fps.pt")
        torch.save(
            torch.from_numpy(FMRI[split].reshape(-1, *FMRI[split].shape[2:])), folder / f"subj02_{split}_fmri.pt"
        )
        torch.save([row[0] for row in _texts(split).reshape(-1, N_FRAMES).tolist()], folder / f"GT_{split}_caption.pt")
    return folder


def _settings(**changes):
    base = {"source": "published", "subject": 3, "size": SIZE, "captions": "published"}
    return Data(**(base | {"published": {"segment_scans": N_SCANS}} | changes))


def _check_store(store):
    assert store.splits == {"train": ["seg1", "seg2", "seg3"], "validation": ["seg4"], "test": ["test1", "test2"]}
    for split, names in (("train", ["seg1", "seg2", "seg3", "seg4"]), ("test", ["test1", "test2"])):
        for index, name in enumerate(names):
            np.testing.assert_array_equal(store.frames(name), FRAMES[split][index])
            np.testing.assert_allclose(store.fmri(name), FMRI[split][index].mean(axis=1), atol=1e-6)
            assert store.frame_captions(name) == _texts(split)[index].tolist()
    steps = {step["step"]: step["parameters"] for step in store.attrs["provenance"]}
    assert "cannot_be_undone" in steps["done_by_publishers"]
    assert ["test2", 2, "seg1", 3, 1.0] in steps["near_duplicates"]["pairs"]
    assert not store.has_positions and store.n_voxels == N_VOXELS
    assert set(store.area) == {0} and np.isnan(store.reproducibility).all()
    assert store.summary()["voxels_per_area"] == {"place not known": N_VOXELS}
    return steps


def test_two_people_of_published_arrays(mindvideo, tmp_path):
    """Each has the frames in a store of their own, and they are the same; in another order they are not."""
    folder = mindvideo / "preprocessed"
    for split in ("train", "test"):
        np.save(folder / f"fmri_{split}_subject1.npy", FMRI[split].mean(axis=2)[..., :23])
    data = _settings().model_dump(mode="json") | {"subjects": [3, 1], "raw": str(mindvideo)}
    recipe = parse_recipe({"data": data})
    preparing.run(StageContext.of(recipe, tmp_path / "run", "prepare"))
    first, second = open_stores(recipe.data, tmp_path / "run")
    assert (first.n_voxels, second.n_voxels) == (N_VOXELS, 23) and first.shown() == second.shown()
    np.testing.assert_allclose(second.fmri("seg2"), FMRI["train"][1].mean(axis=1)[:, :23], atol=1e-6)
    windows = Windows([first, second], "train", 2)
    assert windows.voxels == [N_VOXELS, 23] and len(windows) == 2 * (N_TRAIN - 1) * N_SCANS
    other = tmp_path / "other"
    other.mkdir()
    (other / "subject3.zarr").symlink_to(first.path)
    np.save(folder / "video_train_256_3hz.npy", FRAMES["train"][::-1].astype(np.float32))
    prepare(mindvideo, other / "subject1.zarr", _settings(subject=1))
    both = parse_recipe({"data": data | {"source": "store", "raw": str(other), "published": None}})
    with pytest.raises(DataError, match="films that subject3 saw of subject1 too"):
        preparing.run(StageContext.of(both, tmp_path / "again", "prepare"))


def test_mindvideo_arrays(mindvideo, tmp_path):
    store = prepare(mindvideo, tmp_path / "store", _settings())
    steps = _check_store(store)
    assert store.repeats("test1").shape == (1, N_SCANS, N_VOXELS)
    assert "3 test scans" in steps["discover"]["test_seg_id"] and steps["discover"]["layout"] == "MinD-Video"
    assert len(store.attrs["sources"]) == 7
    assert "preprocessed/fmri_train_subject3.npy" in store.attrs["sources"]


def test_neuroclips_tensors(neuroclips, mindvideo, tmp_path):
    store = prepare(neuroclips, tmp_path / "store", _settings(subject=2))
    steps = _check_store(store)
    for index, name in enumerate(["test1", "test2"]):
        np.testing.assert_array_equal(store.repeats(name), np.moveaxis(FMRI["test"][index], 1, 0))
    assert steps["discover"]["layout"] == "NeuroClips" and len(store.attrs["sources"]) == 6
    other = prepare(mindvideo, tmp_path / "other", _settings())
    assert store.voxel_id != other.voxel_id  # as many voxels, and yet not the same


def test_positions_that_are_known(neuroclips, tmp_path):
    vertex = np.sort(area_of("V1")[:N_VOXELS])
    np.save(tmp_path / "vertex.npy", vertex)
    known = {"segment_scans": N_SCANS, "vertex": tmp_path / "vertex.npy"}
    store = prepare(neuroclips, tmp_path / "store", _settings(subject=2, published=known))
    assert store.has_positions and list(store.vertex) == list(vertex)
    assert store.summary()["voxels_per_area"] == {"V1": N_VOXELS}
    np.save(tmp_path / "vertex.npy", vertex[:-1])
    _refused(neuroclips, f"positions of {N_VOXELS} voxels", "(36,)", subject=2, published=known)
    np.save(tmp_path / "vertex.npy", vertex + 59_300)
    _refused(neuroclips, "cortical positions 0…59411", subject=2, published=known)


def test_other_sizes():
    small = resize_frames(FRAMES["train"][0], 8)
    blocks = FRAMES["train"][0].reshape(N_SCANS, N_FRAMES, 8, 2, 8, 2, 3).mean(axis=(3, 5))
    assert np.abs(small - blocks).max() <= 0.5
    assert resize_frames(FRAMES["train"][0], 24).shape == (N_SCANS, N_FRAMES, 24, 24, 3)


def test_captions_of_ones_own_and_of_a_captioner(mindvideo, tmp_path):
    rows = ["segment,time_s,caption"] + [
        f"{name},0,mine" for name in ("seg1", "seg2", "seg3", "seg4", "test1", "test2")
    ]
    (tmp_path / "captions.csv").write_text("\n".join(rows))
    for text in (mindvideo / "preprocessed").glob("text_*"):
        text.unlink()
    _refused(mindvideo, "text_train_256_3hz.npy", "no such file")
    store = prepare(mindvideo, tmp_path / "a", _settings(captions=str(tmp_path / "captions.csv")))
    assert set(store.captions("test2")) == {"mine"}
    _refused(mindvideo, "captioner", "'published'", captions="blip")
    calls = []

    def captioner(frames):
        calls.append(len(frames))
        if len(calls) == 3 and not (tmp_path / "cut").with_suffix(".again").exists():
            raise KeyboardInterrupt
        return [f"grey {int(frame.mean())}" for frame in frames]

    with pytest.raises(KeyboardInterrupt):
        prepare(mindvideo, tmp_path / "cut", _settings(captions="blip"), captioning=Captioning(captioner))
    with pytest.raises(DataError, match="interrupted"):
        Store.open(tmp_path / "cut")
    (tmp_path / "cut.again").touch()
    store = prepare(mindvideo, tmp_path / "cut", _settings(captions="blip"), captioning=Captioning(captioner))
    assert store.captions("test2")[2] == f"grey {int(FRAMES['train'][0, 3, 0].mean())}"
    with pytest.raises(DataError, match="complete one"):
        prepare(mindvideo, tmp_path / "cut", _settings(captions="blip"), captioning=Captioning(captioner))


def _refused(folder, *parts, error=DataError, **changes):
    with pytest.raises(error) as caught:
        prepare(folder, folder.parent / "refused", _settings(**changes))
    message = str(caught.value)
    assert "\n" not in message and not (folder.parent / "refused").exists()
    for part in parts:
        assert part in message, message


def test_folders_that_are_something_else(mindvideo, neuroclips, tmp_path):
    _refused(tmp_path / "absent", "no folder")
    (tmp_path / "empty").mkdir()
    _refused(tmp_path / "empty", "fmri_train_subjectN.npy", "subj0N_train_fmri.pt", "neither")
    _refused(tmp_path, "both")
    _refused(mindvideo, "found subjects 3", subject=1)
    _refused(mindvideo, "video_train_*_4hz.npy", fps=4)
    _refused(mindvideo, "6 frames a scan", error=SettingError, tr_s=1.0)
    _refused(mindvideo, "more than 4 training films", validation_segments=4)
    _refused(neuroclips, "multiple of 7", "found 20", subject=2, published={"segment_scans": 7})


@pytest.mark.parametrize(
    ("name", "array", "parts"),
    [
        ("fmri_test_subject3", np.zeros((2, 5, 36)), ("fmri of one shape", "(2, 5, 36)")),
        ("fmri_train_subject3", np.zeros((4, 4, 37)), ("fMRI (4, 5, 'voxels')", "(4, 4, 37)")),
        ("fmri_train_subject3", np.full((4, 5, 37), np.nan), ("nearly every voxel", "37 of 37")),
        (
            "fmri_train_subject3",
            np.where(np.arange(740).reshape(4, 5, 37) == 500, np.inf, np.arange(740).reshape(4, 5, 37)),
            ("finite values", "1 of 37", "seg3 of "),
        ),
        ("video_test_256_3hz", np.zeros((2, 5, 6, 16, 3)), ("(segments, scans, frames, H, H, 3)",)),
        ("video_test_256_3hz", np.full((2, 5, 6, 16, 16, 3), 0.5), ("whole numbers 0…255",)),
        ("text_train_256_3hz", np.full((4, 5, 5), "a"), ("strings (4, 5, 6)",)),
        ("text_train_256_3hz", np.full((4, 5, 6), " "), ("a caption for every frame", "empty")),
        ("text_train_256_3hz", np.full((4, 5, 6), None), ("pickled objects are not read",)),
        ("test_seg_id_3hz", np.full((2, 4), "0"), ("scene numbers (2, 5)",)),
    ],
)
def test_arrays_that_do_not_fit(mindvideo, name, array, parts):
    np.save(mindvideo / "preprocessed" / f"{name}.npy", array, allow_pickle=True)
    _refused(mindvideo, *parts)


def test_bytes_after_an_array_are_refused(mindvideo):
    path = mindvideo / "preprocessed" / "fmri_train_subject3.npy"
    content = path.read_bytes()
    path.write_bytes(content + b"12345")
    _refused(mindvideo, f"expected {len(content):,} bytes in {path}", f"found {len(content) + 5:,}; save it again")


def test_voxels_without_signal_are_left_out_and_named(mindvideo, tmp_path):
    train, test = (mindvideo / "preprocessed" / f"fmri_{split}_subject3.npy" for split in ("train", "test"))
    damaged = {path: np.load(path) for path in (train, test)}
    damaged[train][1, :, 4] = 0.25
    damaged[test][1, :, 20] = np.nan
    for path, array in damaged.items():
        np.save(path, array)
    store = prepare(mindvideo, tmp_path / "store", _settings())
    assert store.remarks == ["voxels left out, which have no signal in some film (2): 4, 20"]
    assert store.n_voxels == len(store.vertex) == N_VOXELS - 2
    expected = np.delete(FMRI["test"][1].mean(axis=1), [4, 20], axis=1)
    np.testing.assert_allclose(store.fmri("test2"), expected, atol=1e-6)


class _Trap:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def test_captions_that_numpy_1_saved(neuroclips, tmp_path):
    for split in ("train", "test"):
        path = neuroclips / f"GT_{split}_caption.pt"
        torch.save(np.array([row[0] for row in _texts(split).reshape(-1, N_FRAMES).tolist()]), path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert any(b"numpy._core.multiarray" in content for content in members.values())
    found = discover(neuroclips, _settings(subject=2))
    assert found.captions("test", 1)[2][0] == _texts("test")[1, 2, 0]


def test_nothing_in_a_file_is_executed(mindvideo, neuroclips, tmp_path):
    trap = tmp_path / "executed"
    torch.save([_Trap(trap)], neuroclips / "GT_test_caption.pt")
    _refused(neuroclips, "never executed", "GT_test_caption.pt", subject=2)
    with (neuroclips / "GT_test_caption.pt").open("wb") as handle:
        pickle.dump(_Trap(trap), handle)
    _refused(neuroclips, "never executed", subject=2)
    np.save(mindvideo / "preprocessed" / "fmri_train_subject3.npy", np.array([_Trap(trap)]), allow_pickle=True)
    _refused(mindvideo, "pickled objects are not read")
    assert not trap.exists()


def test_tensors_that_do_not_fit(neuroclips):
    captions = neuroclips / "GT_train_caption.pt"
    torch.save(np.array([f"train {i}" for i in range(20)]), captions)
    source = discover(neuroclips, _settings(subject=2))
    assert source.captions("train", 1)[2] == ["train 7"] * N_FRAMES
    torch.save(["one"] * 19, captions)
    _refused(neuroclips, "20 captions", "found 19", subject=2)
    torch.save([["one"] * 5] * 20, captions)
    _refused(neuroclips, "one string or 6 for each clip", subject=2)
    torch.save(torch.zeros(20, 2), neuroclips / "subj02_train_fmri.pt")
    _refused(neuroclips, "a tensor of 3 axes", "(20, 2)", subject=2)
    torch.save(torch.zeros(20, 2, 36), neuroclips / "subj02_train_fmri.pt")
    _refused(neuroclips, "fMRI (10, repeats, 36)", "(10, 3, 37)", subject=2)
    torch.save(torch.full((20, 6, 3, 16, 16), 2.0), neuroclips / "GT_train_3fps.pt")
    torch.save(torch.zeros(20, 2, 37), neuroclips / "subj02_train_fmri.pt")
    torch.save(["one"] * 20, captions)
    _refused(neuroclips, "values from 0 to 1", subject=2)
    content = (neuroclips / "GT_test_3fps.pt").read_bytes()
    (neuroclips / "GT_test_3fps.pt").write_bytes(content[: len(content) // 2])
    _refused(neuroclips, "GT_test_3fps.pt", "download it again", subject=2)


def test_explain_says_what_can_be_said_without_places(neuroclips, random_kit, tmp_path):
    store = prepare(neuroclips, tmp_path / "run" / "prepare" / "store.zarr", _settings(subject=2))
    width = Foundation(random_kit).condition_width
    encoder = FmriEncoder(
        num_voxels=N_VOXELS, window=2, patch_size=8, embed_dim=12, depth=1, num_heads=3, condition_length=5,
        condition_width=width, voxel_id=store.voxel_id,
    )  # fmt: skip
    encoder.save_pretrained(tmp_path / "run" / "cotrain" / "fmri_encoder")
    recipe = load_recipe("demo", [f"foundation={random_kit}"])
    maps.run(StageContext.of(recipe, tmp_path / "run", "explain"))
    assert [path.name for path in (tmp_path / "run" / "explain").iterdir()] == ["temporal.json"]
    weights = json.loads((tmp_path / "run" / "explain" / "temporal.json").read_text())["cotrain"]
    for layer in weights.values():
        assert set(layer) == {"+4 s", "+6 s"} and sum(layer.values()) == pytest.approx(1)


def test_command_line(mindvideo, cli, tmp_path):
    out = tmp_path / "store"
    code, text = cli("prepare", "published", mindvideo, "--out", out, "--subject", 3)
    assert code == 0, text
    assert Store.open(out).size == SIZE
    code, text = cli("inspect", out)
    assert code == 0 and "place not known" in text and "cannot_be_undone" in text
    code, text = cli("prepare", "published", mindvideo, "--out", tmp_path / "b", "--subject", 1)
    assert code == 1 and "found subjects 3" in text and not (tmp_path / "b").exists()
