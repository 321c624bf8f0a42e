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
        used_by="Chen, Qing & Zhou 2023 (MinD-Video), NeuroClips 2024, Mind-Animator 2025",
    ),
    "ssim_grey": ScoreInfo(
        "structural similarity of grey frames (Gaussian 11 x 11 window, sigma 1.5), averaged over a clip's frames",
        -1.0,
        1.0,
        True,
        used_by="Wang et al. 2004; image reconstruction: Brain-Diffuser 2023, MindEye 2023 (on 425 x 425 pixels)",
    ),
    "psnr": ScoreInfo(
        "peak signal-to-noise ratio of RGB frames, averaged over the frames of a clip; identical frames count 100",
        0.0,
        100.0,
        True,
        unit="dB",
        used_by="NeuroClips 2024, Mind-Animator 2025",
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
    "hue_pcc": ScoreInfo(
        "cosine of OpenCV's hue channels of RGB frames read as BGR, as the published script; see 'colour' instead",
        0.0,
        1.0,
        True,
        used_by="Hue-pcc of Mind-Animator 2025 and NeuroClips 2024",
    ),
    "frame_change": ScoreInfo(
        "mean absolute difference of adjacent frames; a frozen clip has 0, the aim is the truth's value",
        0.0,
        255.0,
        None,
        unit="grey levels",
    ),
    "caption_similarity": ScoreInfo(
        "cosine of the CLIP text embeddings of a frozen captioner's sentences for the middle frames of reconstruction "
        "and truth",
        -1.0,
        1.0,
        True,
    ),
    "caption_f1": ScoreInfo(
        "harmonic mean of the shares of words that a frozen captioner's sentences for the middle frames of "
        "reconstruction and truth have in common (ROUGE-1 F)",
        0.0,
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
        used_by="frame consistency of Tune-A-Video 2023",
    ),
    "consistency_gated": ScoreInfo(
        "'consistency', but 0 for clips whose CLIP image similarity to the truth is .6 or less",
        -1.0,
        1.0,
        True,
        used_by="CLIP-pcc of Mind-Animator 2025 and NeuroClips 2024 is gated so, by VIFI-CLIP similarity",
    ),
    "motion_direction": ScoreInfo(
        "cosine of the angle between reconstructed and true optical flow, weighted by true speed; clips that move only",
        -1.0,
        1.0,
        True,
    ),
    "epe": ScoreInfo(
        "end-point error of optical flow (dense inverse search), averaged over pixels and frame intervals",
        0.0,
        None,
        False,
        unit="px",
    ),
    "epe_farneback": ScoreInfo(
        "end-point error of Farnebäck's optical flow at the clips' own size, averaged over pixels and frame intervals",
        0.0,
        None,
        False,
        unit="px",
        used_by="EPE of Mind-Animator 2025 is this on 512 x 512 pixels",
    ),
}


def n_way_name(kind: str, n_way: int, top_k: int) -> str:
    """``image_50way``, or ``video_50way_top5`` where K is not 1."""
    return f"{kind}_{n_way}way" + (f"_top{top_k}" if top_k != 1 else "")


def retrieval_name(kind: str, top_k: int, candidates: int | None = None) -> str:
    """``retrieval_top1``, ``retrieval_video_top5``, or ``retrieval_top1_of50`` among fewer than all clips."""
    middle = "video_" if kind == "video" else ""
    return f"retrieval_{middle}top{top_k}" + (f"_of{candidates}" if candidates is not None else "")


def retrieval_names(kind: str, settings: Evaluate, n_windows: int) -> dict[str, tuple[int, int]]:
    """Names of the retrieval scores by ``image`` or ``video`` features, each with its K and number of candidates."""
    names = {retrieval_name(kind, k): (k, n_windows) for k in (1, 5) if k < n_windows}
    for candidates in settings.candidates:
        for k in (1, 5):
            if k < candidates <= n_windows:
                names[retrieval_name(kind, k, candidates)] = (k, candidates)
    return names


def score_names(settings: Evaluate, n_windows: int, n_frames: int, has_captions: bool = False) -> list[str]:
    """Names of the scores there will be, in the order they are shown; scores of movement need two frames."""
    names = ["ssim_rgb", "ssim_grey", "psnr", "pixel_correlation", "colour", "hue_pcc"]
    names += [n_way_name("image", n, settings.top_k) for n in settings.n_ways]
    if n_frames > 1:
        names += [n_way_name("video", n, settings.top_k) for n in settings.n_ways]
    names += ["clip_similarity", *retrieval_names("image", settings, n_windows)]
    if n_frames > 1:
        names += [*retrieval_names("video", settings, n_windows)]
    if has_captions:
        names += ["caption_similarity", "caption_f1"]
    if n_frames > 1:
        names += ["consistency", "consistency_gated", "frame_change", "motion_direction", "epe", "epe_farneback"]
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
    if match := re.fullmatch(r"retrieval_(video_)?top(\d+)(?:_of(\d+))?", name):
        features = "video-classifier features are" if match[1] else "CLIP image embedding (mean over frames) is"
        among = f"{match[3]} test clips drawn at random (exact expectation)" if match[3] else "all test clips"
        return ScoreInfo(
            f"the true clip is among the {match[2]} of K = {match[3] or n_windows} candidates, {among}, whose {features} "
            "most similar, ties against the truth",
            0.0,
            1.0,
            True,
        )
    raise SettingError(f"expected the name of a score, found '{name}'")
