"""What was prepared before is a source like any other: linked into a study, never computed again, refused where settings differ."""

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_wen import SIZE, TEST, make_raw
from test_hcp import AREAS, write_run

from mindvideo.config import Data, load_recipe
from mindvideo.data.readers import discover, prepare
from mindvideo.data.readers.hcp import BrainSegments, find_sources, prepare_hcp
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError
from mindvideo.study import Study
from mindvideo.train.features import store_identity


def test_a_store(tmp_path):
    raw = make_raw(tmp_path)
    settings = {
        "captions": str(raw / "captions.csv"),
        "size": SIZE,
        "areas": "V1",
        "selection": "all",
        "wen2018": {"exclude": ()},
    }
    first = prepare(raw, tmp_path / "first.zarr", Data(**settings))
    again = Data(source="store", size=SIZE)
    store = prepare(first.path, tmp_path / "run" / "store.zarr", again)
    assert store.splits == first.splits and store.attrs["provenance"] == first.attrs["provenance"]
    for name in store.order:
        np.testing.assert_array_equal(store.repeats(name), first.repeats(name))
        assert store.captions(name) == first.captions(name)
    assert Windows(store, "test", 1).frames_at_rate(np.array([2]), 4).shape == (1, 4, SIZE, SIZE, 3)  # films are found
    with pytest.raises(DataError, match="a complete one; remove it first"):
        prepare(first.path, tmp_path / "run" / "store.zarr", again)
    with pytest.raises(SettingError, match=rf"found fps 4, size 256; give --set data.fps=3 --set data.size={SIZE}"):
        discover(first.path, Data(source="store", fps=4))
    with pytest.raises(DataError, match="expected a prepared store"):
        discover(tmp_path / "stimuli", again)
    assert store.segments("test") == TEST
    chunk = min(path for path in (first.path / "frames" / TEST[0] / "c").rglob("*") if path.is_file())
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 16]) + chunk.read_bytes()[1:])  # a lighter pixel is a legal one
    Store.open(first.path)
    with pytest.raises(DataError, match="as prepare wrote it, found other files or content"):
        prepare(first.path, tmp_path / "other" / "store.zarr", again)
    assert not (tmp_path / "other" / "store.zarr").exists()


def test_prepare_then_run_is_run_alone(cli, random_kit, tmp_path):
    raw = make_raw(tmp_path)
    data = [f"data.captions={raw / 'captions.csv'}", "data.size=32", "data.areas=V1", "data.selection=all"]
    few = ["adapt.steps=2", "adapt.batch_size=2", "pretrain.enabled=false", f"foundation={random_kit}"]
    small = {"patch_size": 2, "embed_dim": 8, "decoder_embed_dim": 8, "num_heads": 2, "decoder_num_heads": 2}
    few += [f"encoder.{name}={value}" for name, value in small.items()] + ["data.wen2018.expect=null"]
    alone = Study(load_recipe("wen2018", [f"data.raw={raw}", *data, *few]), tmp_path / "alone")
    assert alone.run(until="adapt", say=lambda line: None) == ["prepare", "pretrain", "adapt"]
    settings = [word for setting in data for word in ("--set", setting)]
    code, text = cli("prepare", "wen2018", raw, "--out", tmp_path / "store.zarr", *settings, "--workers", 1)
    assert code == 0, text
    source = ["data.source=store", f"data.raw={tmp_path / 'store.zarr'}"]
    after = Study(load_recipe("wen2018", [*source, *data, *few]), tmp_path / "after")
    assert after.run(until="adapt", say=lambda line: None) == ["prepare", "pretrain", "adapt"]
    stores = [Store.open(study.run_dir / "prepare" / "store.zarr") for study in (alone, after)]
    one, other = ({name: value for name, value in store.attrs.items() if name != "films"} for store in stores)
    assert one == other  # but for where the films lie, as seen from the store
    weights = [load_file(next((study.run_dir / "adapt" / "model").glob("*.safetensors"))) for study in (alone, after)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_data_set_that_moved_or_grew_by_other_people_makes_nothing_stale(random_kit, tmp_path):
    (tmp_path / "old").mkdir()
    raw, run_dir = make_raw(tmp_path / "old"), tmp_path / "run"
    settings = [f"data.captions={raw / 'captions.csv'}", "data.size=32", "data.areas=V1", "data.selection=all"]
    settings += ["data.wen2018.expect=null", "pretrain.enabled=false", f"foundation={random_kit}"]
    Study(load_recipe("wen2018", [f"data.raw={raw}", *settings]), run_dir).run(until="prepare", say=lambda line: None)
    first = store_identity(Store.open(run_dir / "prepare" / "store.zarr"))
    moved = (tmp_path / "old").rename(tmp_path / "elsewhere")
    settings[0] = f"data.captions={moved / 'captions.csv'}"

    def study(folder):
        return Study(load_recipe("wen2018", [f"data.raw={moved}", *settings]), folder)

    for path in moved.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))  # as a plain copy has new times
    assert study(run_dir).is_done("prepare")
    (moved / "subject2" / "fmri").mkdir(parents=True)
    (moved / "subject2" / "fmri" / "notes.txt").touch()
    assert study(run_dir).is_done("prepare")
    run_dir = run_dir.rename(moved / "run")
    assert study(run_dir).is_done("prepare")  # though what it wrote lies in the data set's folder
    again = prepare(moved, tmp_path / "again.zarr", study(run_dir).recipe.data)
    assert store_identity(again) == first
    with (moved / "subject1" / "fmri" / "seg1" / "cifti" / "seg1_1_Atlas.dtseries.nii").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x11")  # as many bytes, one of them another
    assert "seg1_1_Atlas.dtseries.nii of data.raw changed" in study(run_dir).status()["prepare"]


def test_a_table_of_people(tmp_path):
    for person, seed in (("100307", 1), ("990366", 3)):
        write_run(tmp_path / "raw", person, "rfMRI_REST1_LR", 60, seed=seed)
    prepare_hcp(tmp_path / "raw", tmp_path / "first.zarr", 8.0, AREAS)
    assert find_sources(tmp_path / "first.zarr") == ("prepared", [tmp_path / "first.zarr"])
    prepare_hcp(tmp_path / "first.zarr", tmp_path / "run" / "hcp.zarr", 8.0, AREAS)
    first, second = (BrainSegments.open(tmp_path / name) for name in ("first.zarr", "run/hcp.zarr"))
    np.testing.assert_array_equal(first.take(np.arange(10)), second.take(np.arange(10)))
    with pytest.raises(SettingError, match=r"windows of 4 s .*found 8 s .*pretrain\.window_s=8"):
        prepare_hcp(tmp_path / "first.zarr", tmp_path / "other.zarr", 4.0, AREAS)
    assert not (tmp_path / "other.zarr").exists()
    chunk = tmp_path / "first.zarr" / "fmri" / "c" / "0" / "0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(DataError, match="as prepare wrote it"):
        prepare_hcp(tmp_path / "first.zarr", tmp_path / "other.zarr", 8.0, AREAS)
    assert not (tmp_path / "other.zarr").exists()
