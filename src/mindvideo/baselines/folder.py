"""``folder``: clips of another program, one file per test window, enter the table under a name.

Files are ``SEGMENT_SCAN`` with the suffix of a film, ``.gif`` or ``.npy``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np

from mindvideo.data.store import listed
from mindvideo.data.video import SUFFIXES
from mindvideo.errors import DataError
from mindvideo.evaluate.results import read_clip
from mindvideo.files import walk_files
from mindvideo.generate.clips import pick_frames, resize_frames

KINDS = (".npy", ".gif", *SUFFIXES)


def find_clips(folder: Path, names: list[str]) -> list[Path]:
    """The file of each name; DataError where there is none, or more than one."""
    if not folder.is_dir():
        raise DataError(f"expected a folder of clips at {folder}, found none")
    found: dict[str, list[Path]] = {}
    for path in walk_files(folder):
        if path.parent == folder and path.suffix.lower() in KINDS:
            found.setdefault(normalize("NFC", path.stem), []).append(path)
    there = [found.get(normalize("NFC", name), []) for name in names]
    missing = [name for name, paths in zip(names, there, strict=True) if not paths]
    if missing:
        raise DataError(
            f"expected a clip of each of {len(names)} test windows in {folder}, found {len(names) - len(missing)}, "
            f"none of {listed(missing)}; name the files SEGMENT_SCAN with a suffix of {', '.join(KINDS)}"
        )
    double = [path.name for paths in there for path in paths if len(paths) > 1]
    if double:
        raise DataError(
            f"expected one file for each test window in {folder}, found {listed(double)}; remove the others"
        )
    return [path for (path,) in there]


def read_folder(folder: Path, windows: list[dict[str, Any]], shape: tuple[int, ...]) -> tuple[np.ndarray, set[int]]:
    """Clips of the windows, uint8 (n, F, H, W, 3), and the numbers of frames in their files.

    Frames are taken at evenly spaced times and resampled; DataError for frames that are not square.
    """
    paths = find_clips(folder, [f"{window['segment']}_{window['scan']}" for window in windows])
    clips = np.empty((len(windows), *shape), np.uint8)
    counts = set()
    for number, path in enumerate(paths):
        clip, _ = read_clip(path)
        if clip.ndim != 4 or clip.shape[1] != clip.shape[2]:
            raise DataError(f"expected square frames (F, H, W, 3), as the store has, in {path}, found {clip.shape}")
        clips[number] = resize_frames(pick_frames(clip[None], shape[0]), shape[1], shape[1])[0]
        counts.add(len(clip))
    return clips, counts
