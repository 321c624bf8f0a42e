"""Measure sets of clips against the truth: features once, then every score of every window.

Shapes: n windows, F frames, classes, D features. Clips are uint8 (n, F, H, W, 3), an array in memory or a zarr array.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mindvideo.config import Evaluate
from mindvideo.errors import DataError
from mindvideo.evaluate import captions, motion, pixel, retrieval, semantic
from mindvideo.evaluate.catalogue import n_way_name, retrieval_names

BATCH_WINDOWS = 32
CHANCE_PAIRINGS = 3
_PARTS = ("images", "videos", "embeddings", "video_embeddings", "caption_embeddings")
_FORMAT = 2


class Classifier(Protocol):
    """The frozen networks that scores need; ``models.foundation.Foundation`` is one."""

    @property
    def identity(self) -> str:
        """Name of these very networks; features are kept under it."""
        ...

    def classify_images(self, frames: np.ndarray) -> Any:
        """Uint8 (N, H, W, 3) → probabilities (N, classes)."""
        ...

    def describe_videos(self, clips: np.ndarray) -> tuple[Any, Any]:
        """Uint8 (N, F, H, W, 3) → probabilities (N, classes) and the features (N, D) they come from."""
        ...

    def encode_image(self, frames: np.ndarray) -> Any:
        """Uint8 (N, H, W, 3) → CLIP image embeddings (N, D)."""
        ...


class Captioner(Protocol):
    """What caption scores need besides; a ``Foundation`` with a captioner is one."""

    def caption(self, frames: np.ndarray) -> list[str]:
        """A sentence for every frame, uint8 (N, H, W, 3)."""
        ...

    def encode_text(self, captions: list[str]) -> tuple[Any, Any]:
        """Tokens, and CLIP text embeddings (N, D)."""
        ...


@dataclass(frozen=True)
class Features:
    """What frozen networks say about a set of clips, all float32.

    Attributes
    ----------
    images : ndarray (n, F, classes)
        Image-class probabilities of every frame.
    videos : ndarray (n, classes)
        Video-class probabilities; no classes for clips of one frame.
    embeddings : ndarray (n, F, D)
        CLIP image embeddings.
    video_embeddings : ndarray (n, Dv)
        What the video classifier decides by; no columns for clips of one frame.
    caption_embeddings : ndarray (n, D)
        CLIP text embeddings of ``captions``; no columns without a captioner.
    captions : list of str
        Of every clip's middle frame; empty without a captioner.
    """

    images: np.ndarray
    videos: np.ndarray
    embeddings: np.ndarray
    video_embeddings: np.ndarray
    caption_embeddings: np.ndarray
    captions: list[str]


def as_array(values: Any) -> np.ndarray:
    """A tensor on whatever device, or an array, as float32."""
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values, dtype=np.float32)


def check_clips(name: str, clips: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raise DataError unless ``clips`` is uint8 (n, F, H, W, 3), of the given shape where there is one."""
    if clips.ndim != 5 or clips.dtype != np.uint8 or clips.shape[-1] != 3 or not all(clips.shape):
        raise DataError(f"expected uint8 clips (n, F, H, W, 3) as '{name}', found {clips.dtype} {tuple(clips.shape)}")
    if shape is not None and tuple(clips.shape) != tuple(shape):
        raise DataError(f"expected '{name}' in the truth's shape {tuple(shape)}, found {tuple(clips.shape)}")


def fingerprint(clips: Any, identity: str) -> str:
    """Hash of the clips' values and shape, and of the networks that look at them."""
    digest = hashlib.sha256(f"{identity}|{tuple(clips.shape)}".encode())
    for start in range(0, clips.shape[0], BATCH_WINDOWS):
        digest.update(np.ascontiguousarray(clips[start : start + BATCH_WINDOWS]).tobytes())
    return digest.hexdigest()


def _read_cached(path: Path, key: str) -> Features | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="numpy") as stored:
        about = stored.metadata() or {}
        if about.get("key") != key:
            return None
        arrays = {part: stored.get_tensor(part) for part in _PARTS}
        return Features(**arrays, captions=json.loads(about["captions"]))


def extract_features(
    clips: Any,
    classifier: Classifier,
    cache: Path | None = None,
    progress: Callable[[int], None] | None = None,
    captioner: Captioner | None = None,
) -> Features:
    """What frozen networks say about every frame and clip, from ``cache`` where it holds that.

    Parameters
    ----------
    clips : array, uint8 (n, F, H, W, 3)
    classifier : Classifier
    cache : Path, optional
        A safetensors file; used when it was made from the same clips by the same networks, else written anew.
    progress : callable, optional
        Told the number of windows done since the last call.
    captioner : Captioner, optional
        Without it there are no captions.
    """
    key = fingerprint(clips, f"{classifier.identity}|{_FORMAT}|{captioner is not None}") if cache is not None else ""
    found = _read_cached(cache, key) if cache is not None else None
    if found is not None:
        if progress is not None:
            progress(clips.shape[0])
        return found
    rows: list[list[np.ndarray]] = []
    sentences: list[str] = []
    for start in range(0, clips.shape[0], BATCH_WINDOWS):
        batch = np.asarray(clips[start : start + BATCH_WINDOWS])
        part, said = _describe_batch(batch, classifier, captioner)
        rows.append(part)
        sentences += said
        if progress is not None:
            progress(len(batch))
    arrays = {part: np.concatenate(pieces) for part, pieces in zip(_PARTS, zip(*rows, strict=True), strict=True)}
    features = Features(**arrays, captions=sentences)
    if cache is not None:
        _write_cache(cache, key, features)
    return features


def _describe_batch(
    batch: np.ndarray, classifier: Classifier, captioner: Captioner | None
) -> tuple[list[np.ndarray], list[str]]:
    """The arrays of `Features` in order, and captions."""
    n, n_frames = batch.shape[:2]
    frames = batch.reshape(-1, *batch.shape[2:])
    images = as_array(classifier.classify_images(frames)).reshape(n, n_frames, -1)
    embeddings = as_array(classifier.encode_image(frames)).reshape(n, n_frames, -1)
    nothing = np.empty((n, 0), np.float32)
    videos, video_embeddings = (nothing, nothing)
    if n_frames > 1:
        videos, video_embeddings = (as_array(values) for values in classifier.describe_videos(batch))
    if captioner is None:
        return [images, videos, embeddings, video_embeddings, nothing], []
    said = captioner.caption(batch[:, n_frames // 2])
    return [images, videos, embeddings, video_embeddings, as_array(captioner.encode_text(said)[1])], said


def _write_cache(cache: Path, key: str, features: Features) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_name(cache.name + ".tmp")
    tensors = {part: np.ascontiguousarray(getattr(features, part)) for part in _PARTS}
    save_file(tensors, beside, metadata={"key": key, "captions": json.dumps(features.captions)})
    os.replace(beside, cache)


def measure_pixels(clips: Any, truth: np.ndarray, partner: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Scores of frames and of optical flow for every window, averaged over its frames.

    Parameters
    ----------
    clips : array, uint8 (n, F, H, W, 3)
    truth : ndarray, uint8 (m, F, H, W, 3)
    partner : ndarray, int (n,), optional
        Window of the truth each clip is compared with; its own by default.

    Returns
    -------
    dict of str to ndarray, float64 (n,)
        ``ssim_rgb``, ``ssim_grey``, ``psnr``, ``pixel_correlation``, ``colour``, ``hue_pcc``; with two or more frames
        also ``frame_change``, ``motion_direction``, ``epe`` and ``epe_farneback``. NaN where the truth has no colour or
        no motion.
    """
    partner = np.arange(clips.shape[0]) if partner is None else partner
    functions = {
        "ssim_rgb": pixel.ssim_rgb,
        "ssim_grey": pixel.ssim_grey,
        "psnr": pixel.psnr,
        "pixel_correlation": pixel.pixel_correlation,
        "colour": pixel.colour_agreement,
        "hue_pcc": pixel.hue_pcc,
    }
    pieces: dict[str, list[np.ndarray]] = {}
    for start in range(0, clips.shape[0], BATCH_WINDOWS):
        batch = np.asarray(clips[start : start + BATCH_WINDOWS])
        true = truth[partner[start : start + BATCH_WINDOWS]]
        values = {name: _mean_of_known(function(batch, true)) for name, function in functions.items()}
        if batch.shape[1] > 1:
            flow, true_flow = motion.optical_flow(batch), motion.optical_flow(true)
            values["epe"] = motion.end_point_error(flow, true_flow)
            values["motion_direction"] = motion.direction_agreement(flow, true_flow)
            flow, true_flow = motion.optical_flow(batch, "farneback"), motion.optical_flow(true, "farneback")
            values["epe_farneback"] = motion.end_point_error(flow, true_flow)
            values["frame_change"] = pixel.frame_change(batch)
        for name, value in values.items():
            pieces.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in pieces.items()}


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing else is there."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, known.sum(axis=-1), out=np.full(total.shape, np.nan), where=known.any(axis=-1))


def measure_features(features: Features, truth: Features, settings: Evaluate) -> dict[str, np.ndarray]:
    """Scores of every window from frozen features, float64 (n,) each, frames averaged."""
    n, n_frames = features.images.shape[:2]
    frames_truth = semantic.top_classes(truth.images).reshape(n * n_frames, -1)
    frames = features.images.reshape(n * n_frames, -1)
    values = {}
    for n_way in settings.n_ways:
        success = semantic.n_way_top_k(frames, frames_truth, n_way, settings.top_k)
        values[n_way_name("image", n_way, settings.top_k)] = success.reshape(n, n_frames).mean(axis=1)
        if n_frames > 1:
            video_truth = semantic.top_classes(truth.videos)
            values[n_way_name("video", n_way, settings.top_k)] = semantic.n_way_top_k(
                features.videos, video_truth, n_way, settings.top_k
            )
    alike = retrieval.feature_similarity(features.embeddings, truth.embeddings).mean(axis=1)
    values["clip_similarity"] = alike
    for kind in ("image", "video") if n_frames > 1 else ("image",):
        similarity = _similarity_matrix(kind, features, truth)
        for name, (k, candidates) in retrieval_names(kind, settings, n).items():
            values[name] = retrieval.retrieval_top_k(similarity, candidates, k)
    if features.captions:
        cosine = retrieval.feature_similarity(features.caption_embeddings, truth.caption_embeddings)
        values["caption_similarity"] = cosine
        values["caption_f1"] = captions.caption_f1(features.captions, truth.captions)
    if n_frames > 1:
        values["consistency"] = retrieval.adjacent_consistency(features.embeddings)
        values["consistency_gated"] = retrieval.gated_consistency(features.embeddings, alike)
    return values


def _similarity_matrix(kind: str, features: Features, truth: Features) -> np.ndarray:
    if kind == "video":
        return retrieval.video_similarity(features.video_embeddings, truth.video_embeddings)
    return retrieval.clip_features(features.embeddings) @ retrieval.clip_features(truth.embeddings).T


def pairwise_scores(name: str, features: Features, truth: Features, settings: Evaluate) -> np.ndarray | None:
    """The score ``name`` of every prediction against every truth, (n, n), or None for scores without that form."""
    n, n_frames = features.images.shape[:2]
    for n_way in settings.n_ways:
        if name == n_way_name("image", n_way, settings.top_k):
            tops = semantic.top_classes(truth.images)
            total = np.zeros((n, n), dtype=np.float64)
            for f in range(n_frames):
                total += semantic.pairwise_n_way_top_k(features.images[:, f], tops[:, f], n_way, settings.top_k)
            return total / n_frames
        if name == n_way_name("video", n_way, settings.top_k):
            tops = semantic.top_classes(truth.videos)
            return semantic.pairwise_n_way_top_k(features.videos, tops, n_way, settings.top_k)
    if name == "clip_similarity":
        return retrieval.pairwise_similarity(features.embeddings, truth.embeddings)
    if name == "caption_similarity":
        return retrieval.video_similarity(features.caption_embeddings, truth.caption_embeddings)
    if name == "caption_f1":
        return captions.pairwise_caption_f1(features.captions, truth.captions)
    for kind in ("image", "video"):
        if found := retrieval_names(kind, settings, n).get(name):
            return retrieval.pairwise_retrieval(_similarity_matrix(kind, features, truth), *found)
    return None


def allowed_pairs(scene: np.ndarray | None, n: int) -> np.ndarray:
    """Which truths stand for 'another clip': those of other scenes, or all others where scenes are unknown; (n, n)."""
    return ~np.eye(n, dtype=bool) if scene is None else np.asarray(scene)[:, None] != np.asarray(scene)[None]


def measure_chance(
    clips: Any, truth: np.ndarray, allowed: np.ndarray, rng: np.random.Generator
) -> dict[str, float | None]:
    """Scores of frames and flow against random other clips: each window's mean over a few partners, then over windows.

    None for every score when no other scene exists.
    """
    usable = allowed.any(axis=1)
    if not usable.all():
        return {}
    totals: dict[str, list[np.ndarray]] = {}
    for _ in range(CHANCE_PAIRINGS):
        partner = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        for name, value in measure_pixels(clips, truth, partner).items():
            if name == "frame_change":
                continue
            totals.setdefault(name, []).append(value)
    result: dict[str, float | None] = {}
    for name, parts in totals.items():
        values = np.stack(parts)
        result[name] = float(np.nanmean(values)) if np.isfinite(values).any() else None
    return result
