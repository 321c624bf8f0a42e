"""Shots of a film: where they change, and the number of the scene that each kept frame shows.

Shapes: n scans, F frames a scan, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

TIME_TOLERANCE_S = 1e-3
MIN_SCENE_S = 0.5
"""Shot changes sooner than this after another, or the start, are flashes."""
CUT_WIDTH = 256
"""Largest frame that the content detector sees, as in PySceneDetect."""


class CutFinder:
    """Finds shot changes with PySceneDetect's ContentDetector, one frame at a time.

    ``cuts_s`` are the times of new shots; ``threshold`` is the mean change of hue,
    saturation and brightness (0…255) between two frames that makes one.
    """

    def __init__(self, threshold: float) -> None:
        self.cuts_s: list[float] = []
        self._detector = ContentDetector(threshold=threshold, min_scene_len=0)
        self._n_frames = 0

    def add(self, time_s: float, frame_bgr: np.ndarray) -> None:
        """Look at the next frame, uint8 (H, W, 3) in OpenCV's channel order."""
        is_cut = bool(self._detector.process_frame(FrameTimecode(self._n_frames, fps=30.0), frame_bgr))
        self._n_frames += 1
        last_s = self.cuts_s[-1] if self.cuts_s else 0.0
        if is_cut and time_s - last_s >= MIN_SCENE_S - TIME_TOLERANCE_S:
            self.cuts_s.append(time_s)


def find_cuts(frames: Iterable[tuple[float, np.ndarray]], threshold: float = 27.0) -> list[float]:
    """Seconds at which new shots begin, from pairs of seconds and RGB frame uint8 (H, W, 3)."""
    finder = CutFinder(threshold)
    for time_s, image in frames:
        finder.add(time_s, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return finder.cuts_s


def shrink_bgr(frame: Any) -> np.ndarray:
    """The frame for the content detector, uint8 (h, w, 3)."""
    scale = min(1.0, CUT_WIDTH / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
    return frame.to_ndarray(format="bgr24", width=width, height=height, interpolation="AREA", threads=1)


def number_scenes(cuts_s: Sequence[float], times_s: np.ndarray, offset: int) -> np.ndarray:
    """Scene of every frame, int32 (n, F): the position of its first kept frame, plus ``offset``.

    With the number of frames in all segments before as offset, scenes are unique.
    """
    local = np.searchsorted(np.asarray(cuts_s, dtype=float) - TIME_TOLERANCE_S, times_s.ravel(), side="right")
    _, first, inverse = np.unique(local, return_index=True, return_inverse=True)
    return (first[inverse] + offset).reshape(times_s.shape).astype(np.int32)
