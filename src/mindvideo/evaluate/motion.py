"""Motion scores: change from frame to frame, and optical flow against the truth's.

Shapes: clips are uint8 (n, F, H, W, 3); flow is float32 (n, F−1, H, W, 2), pixels per frame
interval, x then y.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from mindvideo.errors import DataError
from mindvideo.evaluate.score import Score

Method = Literal["dis", "farneback"]

STILL_PIXELS = 0.05


def optical_flow(clips: np.ndarray, method: Method = "dis") -> np.ndarray:
    """Dense optical flow (n, F−1, H, W, 2) between adjacent grey-scale frames of clips, by OpenCV.

    Parameters
    ----------
    clips : ndarray, uint8 (n, F, H, W, 3)
        At least two frames of at least 16 x 16 pixels, or DataError.
    method : {"dis", "farneback"}
        Dense inverse search (Kroeger et al. 2016, ECCV), or Farnebäck's polynomial expansion (2003,
        SCIA) with the settings of Mind-Animator's script: pyramid of 3 halvings, window 15, 3
        iterations, neighbourhood 5, σ 1.2.
    """
    n, n_frames, height, width, _ = clips.shape
    if n_frames < 2 or min(height, width) < 16:
        raise DataError(f"expected two or more frames of at least 16 x 16 pixels for optical flow, found {clips.shape}")
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = np.empty((n, n_frames - 1, height, width, 2), dtype=np.float32)
    for i in range(n):
        grey = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in clips[i]]
        for f in range(n_frames - 1):
            if method == "dis":
                flow[i, f] = search.calc(grey[f], grey[f + 1], None)
            else:
                flow[i, f] = cv2.calcOpticalFlowFarneback(grey[f], grey[f + 1], None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return flow


def end_point_error(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean length of the difference between two flows, in pixels per frame interval.

    A clip without motion scores the truth's own mean speed, which on slow films is hard to beat (Baker
    et al. 2011, International Journal of Computer Vision 92).
    """
    return np.linalg.norm(prediction - truth, axis=-1).mean(axis=(1, 2, 3), dtype=np.float64)


def direction_agreement(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean cosine of the angle between two flows, pixels weighted by the true speed; −1…1.

    0 for a prediction that does not move; NaN where the truth's mean speed is below .05 pixels per
    frame interval. Camera movement gives whole films one direction, so chance need not be 0.
    """
    speed_p = np.linalg.norm(prediction, axis=-1)
    speed_t = np.linalg.norm(truth, axis=-1)
    inner = (prediction * truth).sum(axis=-1)
    along = np.divide(inner, speed_p, out=np.zeros_like(inner), where=speed_p > 0)
    axes = (1, 2, 3)
    total = speed_t.sum(axis=axes, dtype=np.float64)
    is_moving = speed_t.mean(axis=axes, dtype=np.float64) >= STILL_PIXELS
    agreement = np.divide(along.sum(axis=axes, dtype=np.float64), total, out=np.zeros(len(total)), where=is_moving)
    return np.where(is_moving, agreement, np.nan)


def frame_change(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of adjacent frames in grey levels; NaN for clips of one frame."""
    if clips.shape[1] < 2:
        return np.full(len(clips), np.nan)
    return np.array([np.abs(np.diff(clip.astype(np.int16), axis=0)).mean() for clip in clips])


SCORES = [
    Score(
        "frame_change", "frame change",
        "mean absolute difference of adjacent frames; a frozen clip has 0, the aim is the truth's value",
        "motion", "frames", lambda made, truth: frame_change(made.clips), high=255.0, higher_is_better=None,
        unit="grey levels", over_time=True, has_truth=True,
    ),
    Score(
        "motion_direction", "motion direction",
        "cosine of the angle between reconstructed and true optical flow, weighted by true speed; clips that move only",
        "motion", "flow", lambda made, truth: direction_agreement(made.flow("dis"), truth.flow("dis")), low=-1.0,
        over_time=True,
    ),
    Score(
        "epe", "flow end-point error",
        "end-point error of optical flow (dense inverse search), averaged over pixels and frame intervals",
        "motion", "flow", lambda made, truth: end_point_error(made.flow("dis"), truth.flow("dis")), high=None,
        higher_is_better=False, unit="px", over_time=True,
    ),
    Score(
        "epe_farneback", "flow end-point error, Farnebäck",
        "end-point error of Farnebäck's optical flow at the clips' own size, averaged over pixels and frame intervals",
        "motion", "flow", lambda made, truth: end_point_error(made.flow("farneback"), truth.flow("farneback")),
        high=None, higher_is_better=False, unit="px", over_time=True,
        used_by="EPE of Mind-Animator 2025 is this on 512 x 512 pixels",
    ),
]  # fmt: skip
"""The scores of movement in pixels."""
