"""Classes of a user's own, named ``module:Class`` in a setting or an option."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from mindvideo.errors import SettingError
from mindvideo.keys import as_digest


def import_class(place: str, what: str) -> type:
    """The class ``module:Class``, looked for in the working directory too.

    Parameters
    ----------
    what : str
        What it should be, for the error: ``a torch.nn.Module``.

    Raises
    ------
    SettingError
        Where it cannot be imported, or is no class.
    """
    module, _, name = place.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name) if module and name else None
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"expected an importable class at '{place}', found: {error}; install its package, put its folder on "
            "PYTHONPATH, or run in that folder"
        ) from None
    if not isinstance(found, type):
        raise SettingError(f"expected module:Class naming {what}, found '{place}'")
    return found


def digest_source(found: type) -> str:
    """A key's part for a class of a user's own: the file it is written in."""
    source = inspect.getsourcefile(found)
    return as_digest(found.__qualname__, Path(source).read_text(errors="replace") if source is not None else "")
