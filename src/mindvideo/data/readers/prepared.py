"""A prepared store as a source: it is checked, and linked or copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindvideo.config import Data
from mindvideo.data.groups import refuse_other_content
from mindvideo.data.store import Store
from mindvideo.data.writing import refuse_complete
from mindvideo.errors import SettingError
from mindvideo.files import link_folder


def discover(raw: Path, data: Data) -> Store:
    """The store, complete and of the frame size, rate, TR and lag that the settings state."""
    store = Store.open(raw)
    stated = [name for name in ("tr_s", "lag_s", "fps", "size") if getattr(data, name) or name == "lag_s"]
    other = [name for name in stated if getattr(store, name) != getattr(data, name)]
    if other:
        found = ", ".join(f"{name} {getattr(data, name):g}" for name in other)
        change = " ".join(f"--set data.{name}={getattr(store, name):g}" for name in other)
        raise SettingError(
            f"expected the settings that the store {raw} was prepared with, found {found}; give {change}"
        )
    return store


def write(store: Store, out: Path, data: Data, *rest: Any) -> Store:
    """Put the store at ``out``; nothing in it is computed again."""
    refuse_complete(out)
    refuse_other_content(store.path)
    link_folder(store.path, out)
    return Store.open(out)
