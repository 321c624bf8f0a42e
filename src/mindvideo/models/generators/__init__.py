"""Generators of clips, by the name a recipe gives them (`animate.generator`).

To add one, write a file here with a subclass of `mindvideo.models.interfaces.Generator`, and a line
in `GENERATORS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mindvideo.errors import SettingError
from mindvideo.models.generators.video_unet import VideoUNet
from mindvideo.models.interfaces import Generator
from mindvideo.models.loading import class_named

GENERATORS: dict[str, type[Generator]] = {"video_unet": VideoUNet}


def generator_class(name: str) -> type[Generator]:
    """The class behind a name of `GENERATORS`; SettingError for another."""
    if name not in GENERATORS:
        raise SettingError(f"expected animate.generator to be one of {', '.join(GENERATORS)}, found '{name}'")
    return GENERATORS[name]


def load_generator(folder: str | Path, **kwargs: Any) -> Generator:
    """The generator in a folder; arguments as `WholeModel.from_pretrained`."""
    return class_named(folder, list(GENERATORS.values())).from_pretrained(folder, **kwargs)
