"""Pools give the same results in the same order; a store has the same bytes on threads and on a dask cluster."""

import sys
import threading
import time

import pytest
from distributed import LocalCluster
from small_wen import make_raw

from mindvideo.config import Data
from mindvideo.data.pool import open_pool
from mindvideo.data.readers import prepare
from mindvideo.data.store import Store
from mindvideo.errors import DataError, SettingError


@pytest.fixture(scope="module")
def raw_folder(tmp_path_factory):
    return make_raw(tmp_path_factory.mktemp("wen"))


@pytest.fixture(scope="module")
def plain(raw_folder, tmp_path_factory):
    """The store as one process makes it, one run after the other."""
    return _prepare(raw_folder, tmp_path_factory.mktemp("plain") / "store.zarr")


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        yield cluster


def _prepare(raw, out, pool=None):
    data = Data(captions=str(raw / "captions.csv"), size=32, alpha=0.2, wen2018={"exclude": ()})
    prepare(raw, out, data, pool=pool)
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_threads_write_the_same_bytes(raw_folder, plain, tmp_path):
    with open_pool(workers=3) as pool:
        assert _prepare(raw_folder, tmp_path / "store.zarr", pool) == plain
    assert len(plain) > 40


def test_a_cluster_writes_the_same_bytes(cli, raw_folder, plain, cluster, tmp_path):
    with open_pool(scheduler=cluster.scheduler_address) as pool:
        assert _prepare(raw_folder, tmp_path / "a.zarr", pool) == plain
    options = ("--captions", raw_folder / "captions.csv", "--size", 32, "--areas", "V1")
    for name, more in (("b", ("--scheduler", cluster.scheduler_address)), ("c", ("--workers", 2))):
        code, text = cli("prepare", "wen2018", raw_folder, "--out", tmp_path / name, *options, *more)
        assert code == 0, text
    stores = [Store.open(tmp_path / name) for name in "bc"]
    assert stores[0].attrs == stores[1].attrs


def _slow_square(number):
    time.sleep(0.02 * (number % 3))
    if number == 50:
        raise DataError("expected another number, found 50")
    return number**2


def test_results_come_in_order_and_errors_arrive(cluster):
    for options in ({}, {"workers": 4}, {"scheduler": cluster.scheduler_address}):
        with open_pool(**options) as pool:
            assert list(pool.map(_slow_square, range(9))) == [number**2 for number in range(9)]
            with pytest.raises(DataError, match="found 50"):
                list(pool.map(_slow_square, [3, 50, 4]))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_only_a_few_tasks_are_ahead():
    started = []
    with open_pool(workers=2) as pool:
        results = pool.map(started.append, range(20))
        next(results)
        time.sleep(0.05)
        assert len(started) <= 4
        fewer = pool.map(started.append, range(20, 40), 0)
        next(fewer)
        time.sleep(0.05)
        assert [number for number in started if number >= 20] == [20]
        results.close()


def test_what_is_missing_is_named(cli, monkeypatch, tmp_path):
    with pytest.raises(SettingError, match="either workers or a scheduler"), open_pool(2, "tcp://somewhere:1"):
        pass
    monkeypatch.setattr("mindvideo.data.pool.CONNECT_S", 1)
    said = r"dask scheduler at tcp://127.0.0.1:9, found none that answers"
    with pytest.raises(DataError, match=said), open_pool(scheduler="tcp://127.0.0.1:9"):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    code, text = cli(
        "prepare", "wen2018", tmp_path, "--out", tmp_path / "store", "--captions", "c.csv", "--scheduler", "tcp://a:1"
    )
    assert code == 1 and "pip install 'mindvideo[cluster]'" in " ".join(text.split())
