"""A picture per window: a row for each kind of clip, a column for each frame."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mindvideo.data.video import resize, write_video
from mindvideo.stages import Progress, Steps

QUALITY = 84
FILM_HEIGHT = 128
"""Saved films are at least this high, in pixels."""
LARGEST_FRAME = 128
"""Height and width in pixels that frames are stored with at most."""


def draw_sprite(clips: NDArray[np.uint8]) -> Image.Image:
    """Clips uint8 (K, F, H, W, 3) of one window as rows of frames."""
    kinds, frames, height, width, _ = clips.shape
    scale = min(1.0, LARGEST_FRAME / max(height, width))
    h, w = round(height * scale), round(width * scale)
    sheet = Image.new("RGB", (frames * w, kinds * h))
    for kind, frame in np.ndindex(kinds, frames):
        one = Image.fromarray(clips[kind, frame])
        sheet.paste(one if scale == 1.0 else one.resize((w, h), Image.Resampling.LANCZOS), (frame * w, kind * h))
    return sheet


@dataclass(frozen=True)
class Sheets:
    """Clips of ``n`` windows as pictures and as films; sizes in pixels of a frame."""

    pictures: list[bytes]
    films: list[bytes]
    n: int
    frames: int
    width: int
    height: int


def draw_sheets(arrays: dict[str, Any], fps: float, in_film: int = 2, progress: Progress | None = None) -> Sheets:
    """One WebP picture and one MP4 film a window, of clips uint8 (n, F, H, W, 3) by kind.

    The picture has a row for each kind; the first ``in_film`` kinds stand side by side in the film.
    """
    n, frames, height, width = next(iter(arrays.values())).shape[:4]
    size = (width, height)
    pictures, films, steps = [], [], Steps(progress, n)
    for i in range(n):
        clips = np.array([[resize(frame, height, width) for frame in array[i]] for array in arrays.values()])
        sheet = draw_sprite(clips)
        pictures.append(encode_picture(sheet))
        films.append(encode_film(clips[:in_film], fps))
        size = (sheet.width // frames, sheet.height // len(arrays))
        steps.add()
    return Sheets(pictures, films, n, frames, *size)


def encode_film(clips: NDArray[np.uint8], fps: float) -> bytes:
    """Clips (K, F, H, W, 3) side by side as MP4; the codec halves colour resolution."""
    beside = np.concatenate(list(clips), axis=2)
    times = max(1, -(-FILM_HEIGHT // beside.shape[1]))
    times += (times * beside.shape[1]) % 2 or (times * beside.shape[2]) % 2
    large = beside.repeat(times, axis=1).repeat(times, axis=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(path, large, fps, large.shape[1:3])
        return path.read_bytes()


def encode_picture(picture: Image.Image) -> bytes:
    """A picture as WebP."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()
