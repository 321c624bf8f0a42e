"""``folder``: clips somebody else's program made, one file a test window, enter the table under a name.

Files are ``SEGMENT_SCAN`` with the suffix of a film (.mp4, .mkv, .mov, .avi, .webm), ``.gif`` or ``.npy`` (uint8
(F, H, W, 3)); ``RUN/reconstruct/windows.json`` or ``RUN/baselines/NAME/windows.json`` lists segment and scan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mindvideo.data.video import SUFFIXES, read_whole_film
from mindvideo.errors import DataError
from mindvideo.generate.clips import pick_frames, resize_frames

KINDS = (".npy", ".gif", *SUFFIXES)


def find_clip(folder: Path, segment: str, scan: int) -> Path | None:
    """The file of a window, or None; DataError where there are two."""
    found = [folder / f"{segment}_{scan}{kind}" for kind in KINDS if (folder / f"{segment}_{scan}{kind}").is_file()]
    if len(found) > 1:
        raise DataError(
            f"expected one file for scan {scan} of {segment}, found {', '.join(path.name for path in found)}"
        )
    return found[0] if found else None


def read_clip(path: Path) -> np.ndarray:
    """Every frame of a file, uint8 (F, H, W, 3)."""
    if path.suffix == ".npy":
        try:
            clip = np.load(path, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"expected a plain array in {path}, found: {error}") from None
    else:
        clip = read_whole_film(path)
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise DataError(f"expected uint8 frames (F, H, W, 3) in {path}, found {clip.dtype} {clip.shape}")
    return clip


def read_folder(folder: Path, windows: list[dict[str, Any]], shape: tuple[int, ...]) -> np.ndarray:
    """Clips of the windows in the table's shape, uint8 (n, F, H, W, 3).

    Frames are taken at evenly spaced times; square frames of another size are resampled (area averaging where they
    shrink), others are refused.

    Raises
    ------
    DataError
        For a window without a file, a file that cannot be read, or frames that are not square.
    """
    if not folder.is_dir():
        raise DataError(f"expected a folder of clips at {folder}, found none")
    paths = [find_clip(folder, window["segment"], window["scan"]) for window in windows]
    missing = [f"{w['segment']}_{w['scan']}" for w, path in zip(windows, paths, strict=True) if path is None]
    if missing:
        raise DataError(
            f"expected a clip of each of {len(windows)} test windows in {folder}, found none of {', '.join(missing[:3])}"
            f"{f' and {len(missing) - 3} others' if len(missing) > 3 else ''}; name the files SEGMENT_SCAN with a suffix "
            f"of {', '.join(KINDS)}"
        )
    clips = np.empty((len(windows), *shape), np.uint8)
    for number, path in enumerate(paths):
        assert path is not None
        clip = read_clip(path)
        if clip.shape[1] != clip.shape[2]:
            raise DataError(
                f"expected square frames as the store has, found {clip.shape[2]} x {clip.shape[1]} in {path}"
            )
        clips[number] = resize_frames(pick_frames(clip[None], shape[0]), shape[1], shape[1])[0]
    return clips


def digest_folder(folder: Path) -> str:
    """Names, sizes and times of the files: another folder of clips, another result."""
    files = sorted(path for path in folder.iterdir() if path.suffix in KINDS) if folder.is_dir() else []
    return json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])
