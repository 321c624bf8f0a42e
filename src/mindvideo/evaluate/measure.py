"""Measure sets of clips: what frozen networks say, then every score of every window.

Shapes: n windows, F frames, classes, D features. Clips are uint8 (n, F, H, W, 3), also of zarr.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from mindvideo.config import Evaluate
from mindvideo.evaluate import judges, motion
from mindvideo.evaluate.score import MAIN, NETWORKS, Score
from mindvideo.files import beside
from mindvideo.models.foundation import JUDGES, Foundation

BATCH_WINDOWS = 32
CHANCE_PAIRINGS = 3
_ARRAYS = ("images", "videos", "embeddings", "video_embeddings", "caption_embeddings", "columns")
_FORMAT = 4


class Frames:
    """Clips as scores of frames and movement see them; flow is computed on demand."""

    def __init__(self, clips: np.ndarray) -> None:
        self.clips = clips
        self._flow: dict[str, np.ndarray] = {}

    def flow(self, method: motion.Method) -> np.ndarray:
        """Optical flow, float32 (n, F−1, H, W, 2)."""
        if method not in self._flow:
            self._flow[method] = motion.optical_flow(self.clips, method)
        return self._flow[method]


@dataclass(frozen=True)
class Features:
    """What frozen networks say about a set of clips, float32; (n, 0) where not asked.

    Attributes
    ----------
    images : ndarray (n, F, classes)
        Image-class probabilities of every frame.
    videos : ndarray (n, classes)
        Video-class probabilities.
    embeddings : ndarray (n, F, D)
        CLIP image embeddings.
    video_embeddings : ndarray (n, Dv)
        What the video classifier decides by.
    caption_embeddings : ndarray (n, D)
        CLIP text embeddings of ``captions``.
    columns : ndarray, int (n, F)
        Where a kit's judge sees the thing of every frame, in `judges.NAMES`.
    captions : list of str
        Of every clip's middle frame.
    """

    images: np.ndarray
    videos: np.ndarray
    embeddings: np.ndarray
    video_embeddings: np.ndarray
    caption_embeddings: np.ndarray
    columns: np.ndarray
    captions: list[str]


def as_array(values: Any) -> np.ndarray:
    """A tensor on whatever device, or an array, as float32."""
    return np.asarray(values.detach().cpu().float() if hasattr(values, "detach") else values, dtype=np.float32)


def fingerprint(clips: Any, identity: str) -> str:
    """Hash of the clips' values and shape, and of the networks that look at them."""
    digest = hashlib.sha256(f"{identity}|{tuple(clips.shape)}".encode())
    for start in range(0, clips.shape[0], BATCH_WINDOWS):
        digest.update(np.ascontiguousarray(clips[start : start + BATCH_WINDOWS]).tobytes())
    return digest.hexdigest()


def extract_features(clips: Any, networks: Foundation, needs: Collection[str], cache: Path | None = None) -> Features:
    """What frozen networks say about every frame and clip, from ``cache`` where it holds that.

    Parameters
    ----------
    clips : array, uint8 (n, F, H, W, 3)
    needs : collection of str
        Which of `score.NETWORKS` to ask.
    cache : Path, optional
        Used when it was made from the same clips by the same networks, else written anew.
    """
    needs = sorted(set(needs) & set(NETWORKS))
    identity = networks.identity + (networks.part_identity(JUDGES) if "columns" in needs else "")
    key = fingerprint(clips, f"{identity}|{_FORMAT}|{','.join(needs)}") if cache is not None else ""
    if cache is not None and cache.is_file():
        with safe_open(cache, framework="numpy") as stored:
            about = stored.metadata() or {}
            if about.get("key") == key:
                arrays = {name: stored.get_tensor(name) for name in _ARRAYS}
                return Features(**arrays, captions=json.loads(about["captions"]))
    batches = range(0, clips.shape[0], BATCH_WINDOWS)
    rows = [_describe_batch(np.asarray(clips[at : at + BATCH_WINDOWS]), networks, needs) for at in batches]
    arrays = {name: np.concatenate([row[0][name] for row in rows]) for name in _ARRAYS}
    captions = [text for row in rows for text in row[1]]
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with beside(cache) as place:
            save_file(arrays, place, metadata={"key": key, "captions": json.dumps(captions)})
    return Features(**arrays, captions=captions)


def _describe_batch(
    batch: np.ndarray, networks: Foundation, needs: Collection[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    n, n_frames = batch.shape[:2]
    frames = batch.reshape(-1, *batch.shape[2:])
    arrays: dict[str, np.ndarray] = dict.fromkeys(_ARRAYS, np.empty((n, 0), np.float32))
    captions: list[str] = []
    if "images" in needs:
        arrays["images"] = as_array(networks.classify_images(frames)).reshape(n, n_frames, -1)
    if "embeddings" in needs:
        arrays["embeddings"] = as_array(networks.encode_image(frames)).reshape(n, n_frames, -1)
    if "clips" in needs:
        arrays["videos"], arrays["video_embeddings"] = (as_array(part) for part in networks.describe_videos(batch))
    if "columns" in needs:
        judge = judges.load_judge("image", networks.folder / JUDGES)
        arrays["columns"] = judges.judge_clips(judge, batch)["column"]
    if "captions" in needs:
        captions = networks.caption(batch[:, n_frames // 2])
        arrays["caption_embeddings"] = as_array(networks.encode_text(captions)[1])
    return arrays, captions


Windows = dict[str, dict[str, np.ndarray]]
"""``windows[score][set]``: float64 (n,)."""


def measure_frames(
    scores: Sequence[Score],
    sets: Mapping[str, Any],
    truth: np.ndarray,
    partners: Sequence[np.ndarray],
    advance: Callable[[int], None],
) -> tuple[Windows, dict[str, list[np.ndarray]]]:
    """Every score of frames and of flow, of every set and window.

    Parameters
    ----------
    sets : mapping of str to array, uint8 (n, F, H, W, 3)
        The truth among them is measured against itself.
    partners : sequence of ndarray, int (n,)
        Other windows of the truth to compare the reconstruction with.
    advance : callable
        Told the number of windows done since the last call.

    Returns
    -------
    windows : dict
        ``windows[score][set]``, float64 (n,).
    pairings : dict
        ``pairings[score]``: the values against each of ``partners``, for scores that have a
        direction.
    """
    parts: dict[str, dict[str, list[np.ndarray]]] = {score.name: {name: [] for name in sets} for score in scores}
    paired: dict[str, list[list[np.ndarray]]] = {
        score.name: [[] for _ in partners] for score in scores if score.higher_is_better is not None
    }
    for start in range(0, len(truth), BATCH_WINDOWS):
        here = slice(start, start + BATCH_WINDOWS)
        true = Frames(truth[here])
        for name, clips in sets.items():
            made = Frames(np.asarray(clips[here]))
            for score in scores:
                parts[score.name][name].append(score.per_window(made, true))
            for place, partner in enumerate(partners if name == MAIN else ()):
                other = Frames(truth[partner[here]])
                for score in scores:
                    if score.name in paired:
                        paired[score.name][place].append(score.per_window(made, other))
            advance(len(made.clips))
    windows = {}
    for name, by_set in parts.items():
        windows[name] = {key: np.concatenate(values) for key, values in by_set.items()}
    return windows, {name: [np.concatenate(values) for values in lists] for name, lists in paired.items()}


def draw_partners(allowed: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """A few random other windows for each (n,); none when a window has no other."""
    if not allowed.any(axis=1).all():
        return []
    return [np.array([rng.choice(np.flatnonzero(row)) for row in allowed]) for _ in range(CHANCE_PAIRINGS)]


def describe_networks(networks: Foundation, needs: Collection[str]) -> dict[str, str]:
    """What answers each need: class, number of classes, part and folder."""
    found = {}
    source = "the shipped kit" if is_shipped(networks) else networks.folder.name
    for need in sorted(set(needs) & set(NETWORKS)):
        part = NETWORKS[need][0]
        path = networks.folder / part / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        kind = (config.get("architectures") or ["a network"])[0]
        classes = f" of {len(config['id2label'])} classes" if "classifier" in part and "id2label" in config else ""
        found[need] = f"{kind}{classes}, part {part} of {source}"
    return found


def is_shipped(networks: Foundation) -> bool:
    """Whether these are the package's own kit, which knows drawn scenes only."""
    return networks.folder == Foundation("embedded").folder


def list_missing(foundation: Foundation, settings: Evaluate, needs: Sequence[str]) -> dict[str, str]:
    """Which of ``needs`` a foundation lacks or the settings do not want, and why."""
    missing = {}
    for need in needs:
        absent = [part for part in NETWORKS[need] if not (foundation.folder / part).is_dir()]
        if absent:
            missing[need] = f"the foundation {foundation.folder.name} has no part '{absent[0]}'"
    if not settings.captions:
        missing["captions"] = "evaluate.captions is false"
    return missing
