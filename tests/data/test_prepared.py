"""What was prepared before is a source like any other: linked into a study, never computed again, refused where settings differ."""

import numpy as np
import pytest
from small_wen import SIZE, TEST, make_raw
from test_hcp import AREAS, write_run

from mindvideo.config import Data
from mindvideo.data.readers import discover, prepare
from mindvideo.data.readers.hcp import BrainSegments, find_sources, prepare_hcp
from mindvideo.data.windows import Windows
from mindvideo.errors import DataError, SettingError


def test_a_store(tmp_path):
    raw = make_raw(tmp_path)
    settings = {"captions": str(raw / "captions.csv"), "size": SIZE, "areas": "V1", "selection": "all", "exclude": ()}
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


def test_a_table_of_people(tmp_path):
    for person, seed in (("100307", 1), ("990366", 3)):
        write_run(tmp_path / "raw", person, "rfMRI_REST1_LR", 60, seed=seed)
    prepare_hcp(tmp_path / "raw", tmp_path / "first.zarr", 8.0, AREAS)
    assert [source.kind for source in find_sources(tmp_path / "first.zarr")] == ["prepared"]
    prepare_hcp(tmp_path / "first.zarr", tmp_path / "run" / "hcp.zarr", 8.0, AREAS)
    first, second = (BrainSegments.open(tmp_path / name) for name in ("first.zarr", "run/hcp.zarr"))
    np.testing.assert_array_equal(first.take(np.arange(10)), second.take(np.arange(10)))
    with pytest.raises(SettingError, match=r"windows of 4 s .*found 8 s .*pretrain\.window_s=8"):
        prepare_hcp(tmp_path / "first.zarr", tmp_path / "other.zarr", 4.0, AREAS)
    assert not (tmp_path / "other.zarr").exists()
