"""Pixel scores of frames: structure, error, correlation, colour.

A constant grey rectangle beats every published reconstruction on `ssim_rgb`: read none of these
without its controls (docs/method.md, Scores and controls). Each takes ``prediction`` and ``truth``
as uint8 (..., H, W, 3), gives float64 (...), and raises DataError for other types or shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import cv2
import numpy as np

from mindvideo.errors import DataError
from mindvideo.evaluate.score import Score

PairScore = Callable[[np.ndarray, np.ndarray], np.ndarray]

SSIM_WINDOW = 7
GAUSSIAN_WINDOW, GAUSSIAN_SIGMA = 11, 1.5
GREY_WEIGHTS = np.array([0.2125, 0.7154, 0.0721])
"""ITU-R BT.709 luma, as ``skimage.color.rgb2gray``."""
MAX_PSNR_DB = 100.0
_CHUNK_VALUES = 50_000


def _check_frames(prediction: np.ndarray, truth: np.ndarray, smallest: int) -> None:
    for name, frames in (("prediction", prediction), ("truth", truth)):
        if frames.dtype != np.uint8 or frames.ndim < 3 or frames.shape[-1] != 3:
            raise DataError(f"expected uint8 frames (..., H, W, 3) as {name}, found {frames.dtype} {frames.shape}")
    if prediction.shape != truth.shape:
        raise DataError(
            f"expected prediction and truth of one shape, found {prediction.shape} and {truth.shape}; "
            "resize or cut one of them first"
        )
    if min(truth.shape[-3:-1]) < smallest:
        raise DataError(f"expected frames of at least {smallest} x {smallest} pixels, found {truth.shape[-3:-1]}")


def _per_frame(smallest: int = 0) -> Callable[[PairScore], PairScore]:
    """Let a score of (n, H, W, 3) frames, ``smallest`` pixels high, take any leading shape.

    It is given pieces whose float64 work space stays in the processor's cache.
    """

    def extend(score: PairScore) -> PairScore:
        @wraps(score)
        def extended(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
            prediction = np.asarray(prediction)
            truth = np.asarray(truth)
            _check_frames(prediction, truth, smallest)
            lead = truth.shape[:-3]
            shape = truth.shape[-3:]
            step = max(1, _CHUNK_VALUES // max(1, int(np.prod(shape))))
            prediction = prediction.reshape(-1, *shape)
            truth = truth.reshape(-1, *shape)
            pieces = [slice(start, start + step) for start in range(0, len(truth), step)]
            return np.concatenate([np.empty(0), *(score(prediction[at], truth[at]) for at in pieces)]).reshape(lead)

        return extended

    return extend


def _cosine(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cosine of the rows (n, m) of two arrays; 0 where one of them is zero."""
    norm = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), norm, out=np.zeros(len(x)), where=norm > 0)


def _window_sums(frames_NHWC: np.ndarray) -> np.ndarray:
    """Sums over complete 7 × 7 windows, exact: whole numbers below 2²⁴ in float32.

    Frames are stacked into one tall image; windows that would straddle two frames are cut off.
    """
    n, height, width, channels = frames_NHWC.shape
    size = (SSIM_WINDOW, SSIM_WINDOW)
    tall = frames_NHWC.reshape(n * height, width, channels)
    sums = cv2.boxFilter(tall, cv2.CV_32F, size, normalize=False, borderType=cv2.BORDER_REPLICATE)
    pad = SSIM_WINDOW // 2
    return sums.reshape(n, height, width, channels)[:, pad:-pad, pad:-pad].astype(np.float64)


@_per_frame(SSIM_WINDOW)
def ssim_rgb(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of RGB frames, as in the paper's numbers.

    Mean over channels and complete windows of the SSIM index with a uniform 7 × 7 window, sample
    covariance, data range 255, K1 = .01, K2 = .03: ``skimage.metrics.structural_similarity(truth,
    prediction, data_range=255, channel_axis=-1)``, for whole batches at once. Other papers mean
    grey-scale or Gaussian-window SSIM by the same word; their numbers do not compare with this one.

    Range −1…1, higher is better. There is no chance level: a constant grey image scores about .44
    on Wen 2018.

    Parameters
    ----------
    prediction, truth : ndarray, uint8 (..., H, W, 3)
        At least 7 x 7 pixels, or DataError.

    References
    ----------
    Wang et al. 2004, IEEE Transactions on Image Processing 13, 600–612;
    docs/method.md, Scores and controls.
    """
    x = prediction.astype(np.float32)
    y = truth.astype(np.float32)
    n = SSIM_WINDOW**2
    sum_x, sum_y = _window_sums(x), _window_sums(y)
    product = sum_x * sum_y
    squares = sum_x * sum_x + sum_y * sum_y
    covariance = n * _window_sums(x * y) - product
    variances = n * _window_sums(x * x + y * y) - squares
    mean_scale = 1.0 / n**2
    covariance_scale = 1.0 / (n * (n - 1))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * mean_scale * product + c1) * (2 * covariance_scale * covariance + c2)
    below = (mean_scale * squares + c1) * (covariance_scale * variances + c2)
    return (above / below).mean(axis=(1, 2, 3))


@_per_frame(GAUSSIAN_WINDOW)
def ssim_grey(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity of grey frames, as in image-reconstruction papers; −1…1.

    Grey is ITU-R BT.709 luma; Gaussian window of 11 × 11, σ = 1.5, population covariance, data
    range 255: Wang's own definition, ``skimage.metrics.structural_similarity(...,
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``. It depends on the frames' size.
    """
    size = (GAUSSIAN_WINDOW, GAUSSIAN_WINDOW)
    pad = GAUSSIAN_WINDOW // 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def average(image: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(image, size, GAUSSIAN_SIGMA)[pad:-pad, pad:-pad]

    scores = np.empty(len(truth))
    for i, (x, y) in enumerate(zip(prediction @ GREY_WEIGHTS, truth @ GREY_WEIGHTS, strict=True)):
        mean_x, mean_y = average(x), average(y)
        covariance = average(x * y) - mean_x * mean_y
        variances = average(x * x + y * y) - mean_x**2 - mean_y**2
        above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        scores[i] = (above / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))).mean()
    return scores


@_per_frame()
def psnr(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of RGB frames in dB: 10 log10(255² / mean squared error).

    Identical frames, whose ratio is infinite, are given 100 so that means exist.
    """
    error = ((prediction.astype(np.float64) - truth) ** 2).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return np.minimum(10.0 * np.log10(255.0**2 / error), MAX_PSNR_DB)


@_per_frame()
def pixel_correlation(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation over all pixels and channels of a frame ("PixCorr"), 0 where a frame is constant.

    Chance is above 0, because films share layout (sky above ground).
    """
    x, y = (frames.reshape(len(frames), -1).astype(np.float64) for frames in (prediction, truth))
    return _cosine(x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True))


def _chroma(frames: np.ndarray) -> np.ndarray:
    """Hue as angle and chroma as length of a complex number, (n, H, W)."""
    red, green, blue = (frames[..., channel].astype(np.float64) for channel in range(3))
    return (red - 0.5 * (green + blue)) + 1j * (np.sqrt(0.75) * (green - blue))


@_per_frame()
def colour_agreement(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Agreement in hue, pixel by pixel, vivid pixels counting more; −1…1.

    With z = chroma · exp(i · hue) of each pixel (hexagonal chroma and hue of RGB), the normalised
    real inner product Re Σ z_p z̄_t / (‖z_p‖ ‖z_t‖). 0 for a grey prediction, NaN where the truth has
    no colour at all. Films have favourite hues, so chance is above 0.
    """
    x, y = _chroma(prediction), _chroma(truth)
    shared = (x * y.conj()).real.sum(axis=(1, 2))
    norm_x, norm_y = (np.sqrt((np.abs(z) ** 2).sum(axis=(1, 2))) for z in (x, y))
    score = np.divide(shared, norm_x * norm_y, out=np.zeros(len(x)), where=(norm_x > 0) & (norm_y > 0))
    return np.where(norm_y > 0, score, np.nan)


def _opencv_hue(frames: np.ndarray) -> np.ndarray:
    """OpenCV's hue 0…179 of frames with red and blue exchanged, (n, pixels)."""
    n, height, width, _ = frames.shape
    tall = np.ascontiguousarray(frames).reshape(n * height, width, 3)
    return cv2.cvtColor(tall, cv2.COLOR_BGR2HSV)[..., 0].reshape(n, -1).astype(np.float64)


@_per_frame()
def hue_pcc(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """ "Hue-pcc" as Mind-Animator's script computes it (Lu et al. 2025, ICLR), for published numbers only.

    Despite the name the cosine of the two frames' hue channels, OpenCV's hue 0…179 taken as a plain
    number of RGB frames read as BGR; 0 where a frame has no hue. All hues are positive, so unrelated
    frames score far above 0: look at `colour_agreement`, which treats hue as the angle it is.
    """
    return _cosine(_opencv_hue(prediction), _opencv_hue(truth))


def _over_frames(function: PairScore) -> Callable[[Any, Any], np.ndarray]:
    """The mean over a clip's frames that have a value, NaN where none has."""
    return lambda made, truth: np.ma.masked_invalid(function(made.clips, truth.clips)).mean(axis=-1).filled(np.nan)


SCORES = [
    Score(
        "ssim_rgb", "SSIM RGB",
        "structural similarity of RGB frames (uniform 7 x 7 window, data range 255), averaged over a clip's frames",
        "layout", "frames", _over_frames(ssim_rgb), low=-1.0, is_main=True,
        used_by="Chen, Qing & Zhou 2023 (MinD-Video), NeuroClips 2024, Mind-Animator 2025",
    ),
    Score(
        "ssim_grey", "SSIM grey",
        "structural similarity of grey frames (Gaussian 11 x 11 window, sigma 1.5), averaged over a clip's frames",
        "layout", "frames", _over_frames(ssim_grey), low=-1.0,
        used_by="Wang et al. 2004; image reconstruction: Brain-Diffuser 2023, MindEye 2023 (on 425 x 425 pixels)",
    ),
    Score(
        "psnr", "PSNR",
        "peak signal-to-noise ratio of RGB frames, averaged over the frames of a clip; identical frames count 100",
        "layout", "frames", _over_frames(psnr), high=MAX_PSNR_DB, unit="dB",
        used_by="NeuroClips 2024, Mind-Animator 2025",
    ),
    Score(
        "pixel_correlation", "pixel correlation",
        "Pearson correlation over the pixels and channels of a frame, averaged over the frames of a clip",
        "layout", "frames", _over_frames(pixel_correlation), low=-1.0,
        used_by="PixCorr of image-reconstruction papers",
    ),
    Score(
        "colour", "colour",
        "mean cosine of the hue difference of pixels, weighted by both frames' chroma, averaged over frames",
        "colour", "frames", _over_frames(colour_agreement), low=-1.0,
    ),
    Score(
        "hue_pcc", "hue pcc",
        "cosine of OpenCV's hue channels of RGB frames read as BGR, as the published script; see 'colour' instead",
        "colour", "frames", _over_frames(hue_pcc),
        used_by="Hue-pcc of Mind-Animator 2025 and NeuroClips 2024",
    ),
]  # fmt: skip
"""The scores of frames. A constant picture does well on all of them."""
