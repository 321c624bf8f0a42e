"""One picture per test window: a row for each kind of clip, a column for each frame, played by the page's script."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mindvideo.report.read import take_clips
from mindvideo.stages import Progress

QUALITY = 84
LARGEST_FRAME = 128
"""Frames are stored with at most this height and width in pixels; larger ones are scaled down."""


def draw_sprite(clips: NDArray[np.uint8]) -> Image.Image:
    """Lay clips out as rows of frames.

    Parameters
    ----------
    clips : uint8 array (K, F, H, W, 3)
        K kinds of clip of one window.

    Returns
    -------
    Image
        RGB, K·h high and F·w wide, where (h, w) is (H, W) scaled down to at most ``LARGEST_FRAME``.
    """
    kinds, frames, height, width, _ = clips.shape
    sheet = clips.transpose(0, 2, 1, 3, 4).reshape(kinds * height, frames * width, 3)
    picture = Image.fromarray(sheet)
    scale = min(1.0, LARGEST_FRAME / max(height, width))
    if scale == 1.0:
        return picture
    h, w = round(height * scale), round(width * scale)
    small = Image.new("RGB", (frames * w, kinds * h))
    for kind in range(kinds):
        for frame in range(frames):
            one = Image.fromarray(clips[kind, frame]).resize((w, h), Image.Resampling.LANCZOS)
            small.paste(one, (frame * w, kind * h))
    return small


def draw_sheets(arrays: dict[str, Any], progress: Progress | None = None) -> tuple[list[bytes], dict[str, int]]:
    """One WebP picture a window.

    Parameters
    ----------
    arrays : dict of str to array-like uint8 (n, F, H, W, 3)
        Clips by kind, in the order of the rows; all of one n and F.
    progress : callable, optional
        Called with (windows done, windows, {}).

    Returns
    -------
    sheets : list of bytes
    geometry : dict
        ``n``, ``frames``, ``width`` and ``height`` (pixels of a frame in the sheet).
    """
    kinds = list(arrays)
    n, frames, height, width = arrays[kinds[0]].shape[:4]
    chunk = 16
    size = (width, height)
    sheets = []
    for start in range(0, n, chunk):
        stop = min(n, start + chunk)
        blocks = {kind: take_clips(arrays[kind], start, stop) for kind in kinds}
        for i in range(start, stop):
            sheet = draw_sprite(_same_size([blocks[kind][i - start] for kind in kinds]))
            sheets.append(encode_picture(sheet))
            size = (sheet.width // frames, sheet.height // len(kinds))
            if progress is not None:
                progress(i + 1, n, {})
    return sheets, {"n": n, "frames": frames, "width": size[0], "height": size[1]}


def encode_picture(picture: Image.Image) -> bytes:
    """A picture as WebP."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "WEBP", quality=QUALITY, method=4)
    return buffer.getvalue()


def _same_size(clips: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stack clips (F, H, W, 3); those of another size than the first are scaled to it, for showing only."""
    _, height, width, _ = clips[0].shape
    fitted = []
    for clip in clips:
        if clip.shape[1:3] != (height, width):
            clip = np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in clip])
        fitted.append(clip)
    return np.stack(fitted)
