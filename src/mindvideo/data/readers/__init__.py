"""Readers of data sets, a module each.

To add one, write a module with ``discover(raw, data)``, which finds and checks
everything from headers alone and returns a `mindvideo.data.segments.Source`, and name
it in `mindvideo.sources.READERS`. It may also have

- ``Settings``, a `mindvideo.config.Section` of what only this source needs: ``data.NAME`` in a recipe, ``data.own`` here,
  and options of ``mindvideo prepare NAME``;
- ``settle(raw, data)``, which fills in settings that the recordings answer themselves;
- ``write``, where it is not recordings and films (arrays, a store), called as `mindvideo.data.preparation.prepare_segments`
  with what was discovered.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from mindvideo.config import Data
from mindvideo.data.captions import Captioning
from mindvideo.data.pool import Pool, open_pool
from mindvideo.data.preparation import prepare_segments
from mindvideo.data.store import Store
from mindvideo.errors import SettingError
from mindvideo.sources import load_reader
from mindvideo.stages import Progress


def discover(raw: Path, data: Data) -> Any:
    """Find and check what is to be prepared, from headers and tables alone.

    DataError for anything missing or contradictory, SettingError for settings it cannot follow.
    """
    return load_reader(data.source).discover(raw, settle(raw, data))


def settle(raw: Path, data: Data) -> Data:
    """The settings with what the recordings themselves say, where a setting is left to them."""
    settled: Data = getattr(load_reader(data.source), "settle", lambda raw, data: data)(raw, data)
    for name in ("tr_s", "size"):
        if not getattr(settled, name) and data.source != "store":
            raise SettingError(
                f"expected data.{name} with data.source={data.source}, which needs it, found none; state it"
            )
    return settled


def prepare(
    raw: Path,
    out: Path,
    data: Data,
    progress: Progress | None = None,
    captioning: Captioning | None = None,
    pool: Pool | None = None,
    films: Store | None = None,
) -> Store:
    """Prepare one person's recordings and films as a store.

    Parameters
    ----------
    raw : Path
        The download, fMRIPrep's outputs, a folder of arrays, or a prepared store.
    out : Path
        The store's folder; a complete store there is refused, an interrupted one of the same settings goes on.
    data : Data
        Settings; ``source`` names the reader.
    progress, captioning, pool, films
        As in `mindvideo.data.preparation.prepare_segments`; by default one more thread is the pool.

    Raises
    ------
    DataError, SettingError
        For missing, contradictory or damaged input; nothing is written then.
    """
    data = settle(raw, data)
    write = getattr(load_reader(data.source), "write", prepare_segments)
    with nullcontext(pool) if pool is not None else open_pool() as worker:
        store: Store = write(discover(raw, data), out, data, worker, progress, captioning, films)
    return store
