"""Readers of data sets, a module each: where the files are, what belongs together, and what is trimmed.

To add one, write a module with ``discover(raw, data)``, which finds and checks everything from headers alone and returns a
`mindvideo.data.preparation.Source`, and name it in `READERS`. A reader of something else than recordings and films
(arrays, a store) also has ``write``, called as `mindvideo.data.preparation.prepare_segments` with what it discovered.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mindvideo.config import Data
from mindvideo.data.captions import Captioner
from mindvideo.data.pool import Pool
from mindvideo.data.preparation import Progress, prepare_segments
from mindvideo.data.store import Store

READERS = {
    "wen2018": "mindvideo.data.readers.wen2018",
    "fmriprep": "mindvideo.data.readers.fmriprep",
    "published": "mindvideo.data.readers.published",
    "store": "mindvideo.data.readers.prepared",
}
"""The module that reads each ``data.source``."""


def discover(raw: Path, data: Data) -> Any:
    """Find and check what is to be prepared, from headers and tables alone.

    Raises
    ------
    DataError
        For anything missing or contradictory.
    SettingError
        For settings that the data set cannot follow.
    """
    return import_module(READERS[data.source]).discover(raw, data)


def prepare(
    raw: Path,
    out: Path,
    data: Data,
    progress: Progress | None = None,
    captioner: Captioner | None = None,
    captioner_name: str = "captioner",
    pool: Pool | None = None,
    caption_cache: Path | None = None,
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
    progress, captioner, captioner_name, pool, caption_cache
        As in `mindvideo.data.preparation.prepare_segments`.

    Raises
    ------
    DataError, SettingError
        For missing, contradictory or damaged input; nothing is written then.
    """
    write = getattr(import_module(READERS[data.source]), "write", prepare_segments)
    store: Store = write(discover(raw, data), out, data, progress, captioner, captioner_name, pool, caption_cache)
    return store
