"""What each score is: definition, range, direction, who used it. The words that go with every number."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mindvideo.config import Evaluate
from mindvideo.errors import SettingError


@dataclass(frozen=True)
class ScoreInfo:
    """The words that go with a score.

    Attributes
    ----------
    definition : str
        One sentence that lets a reader compute it.
    low, high : float or None
        Range; None where unbounded.
    higher_is_better : bool or None
        None where neither end is good and the truth's own value is the one to reach.
    unit : str
        Empty for a pure number.
    used_by : str
        Papers that report a score of this kind; their details may differ.
    """

    definition: str
    low: float | None
    high: float | None
    higher_is_better: bool | None
    unit: str = ""
    used_by: str = ""


_FIXED = {
    "ssim_rgb": ScoreInfo(
        "structural similarity of RGB frames (uniform 7 x 7 window, data range 255), averaged over a clip's frames",
        -1.0,
        1.0,
        True,
        used_by="Chen, Qing & Zhou 2023 (MinD-Video), NeuroClips 2024",
    ),
    "psnr": ScoreInfo(
        "peak signal-to-noise ratio of RGB frames, averaged over the frames of a clip; identical frames count 100",
        0.0,
        100.0,
        True,
        unit="dB",
        used_by="NeuroClips 2024",
    ),
    "pixel_correlation": ScoreInfo(
        "Pearson correlation over the pixels and channels of a frame, averaged over the frames of a clip",
        -1.0,
        1.0,
        True,
        used_by="PixCorr of image-reconstruction papers",
    ),
    "colour": ScoreInfo(
        "mean cosine of the hue difference of pixels, weighted by both frames' chroma, averaged over frames",
        -1.0,
        1.0,
        True,
    ),
    "clip_similarity": ScoreInfo(
        "cosine of the CLIP image embeddings of reconstructed and true frame at the same time, averaged over frames",
        -1.0,
        1.0,
        True,
    ),
    "consistency": ScoreInfo(
        "cosine of the CLIP image embeddings of adjacent frames; a frozen frame scores 1, the aim is the truth's value",
        -1.0,
        1.0,
        None,
        used_by="CLIP-pcc of NeuroClips 2024; Tune-A-Video 2023",
    ),
    "motion_direction": ScoreInfo(
        "cosine of the angle between reconstructed and true optical flow, weighted by true speed; clips that move only",
        -1.0,
        1.0,
        True,
    ),
    "epe": ScoreInfo(
        "end-point error of optical flow, averaged over pixels and frame intervals",
        0.0,
        None,
        False,
        unit="px",
        used_by="EPE of Mind-Animator 2025",
    ),
}


def n_way_name(kind: str, n_way: int, top_k: int) -> str:
    """``image_50way``, or ``video_50way_top5`` where K is not 1."""
    return f"{kind}_{n_way}way" + (f"_top{top_k}" if top_k != 1 else "")


def score_names(settings: Evaluate, n_windows: int, n_frames: int) -> list[str]:
    """Names of the scores there will be, in the order they are shown; scores of movement need two frames."""
    names = ["ssim_rgb", "psnr", "pixel_correlation", "colour"]
    names += [n_way_name("image", n, settings.top_k) for n in settings.n_ways]
    if n_frames > 1:
        names += [n_way_name("video", n, settings.top_k) for n in settings.n_ways]
    names += ["clip_similarity"]
    names += [f"retrieval_top{k}" for k in (1, 5) if k < n_windows]
    if n_frames > 1:
        names += ["consistency", "motion_direction", "epe"]
    return names


def describe_score(name: str, n_windows: int) -> ScoreInfo:
    """The words that go with the score ``name`` on a test set of ``n_windows`` windows."""
    if name in _FIXED:
        return _FIXED[name]
    if match := re.fullmatch(r"(image|video)_(\d+)way(?:_top(\d+))?", name):
        kind, n_way, top_k = match[1], int(match[2]), int(match[3] or 1)
        what = "each frame, averaged over the frames of a clip" if kind == "image" else "the whole clip"
        return ScoreInfo(
            f"exact {n_way}-way top-{top_k} identification by a frozen {kind} classifier: one of the true clip's three "
            f"top classes against {n_way - 1} random others, ties against the truth, for {what}",
            0.0,
            1.0,
            True,
            used_by="Chen et al. 2023 (MinD-Vis), Chen, Qing & Zhou 2023 (MinD-Video), by 100 random draws",
        )
    if match := re.fullmatch(r"retrieval_top(\d+)", name):
        return ScoreInfo(
            f"the true clip is among the {match[1]} of all K = {n_windows} test clips whose CLIP image embedding (mean "
            "over frames) is most similar, ties against the truth",
            0.0,
            1.0,
            True,
        )
    raise SettingError(f"expected the name of a score, found '{name}'")
