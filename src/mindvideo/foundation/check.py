"""Measure every gate of a foundation kit on fresh scenes of the picture-book world."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

from mindvideo.foundation.tasks import near_miss
from mindvideo.models.foundation import Foundation
from mindvideo.simulate.scenes import COLOURS, PLACES, SYNONYMS, THINGS, Scene, draw_clip

Progress = Callable[[int, int, dict[str, float]], None]
FRESH_SEED = 31_337


def fresh_clips(count: int, size: int, num_frames: int = 6) -> tuple[list[Scene], np.ndarray]:
    """Scenes and clips (N, F, size, size, 3) uint8 from a seed no training uses."""
    drawn = [draw_clip(np.random.default_rng([FRESH_SEED, number]), num_frames, 3.0, size) for number in range(count)]
    return [scene for scene, _ in drawn], np.stack([clip for _, clip in drawn])


def reconstruction_psnr(foundation: Foundation, frames: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB of frames (N, H, W, 3) uint8 through the VAE."""
    decoded = foundation.decode_latents(foundation.encode_latents(frames))
    return float(np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(frames, decoded, strict=True)]))


def retrieval(foundation: Foundation, scenes: list[Scene], frames: np.ndarray, among: int = 64) -> tuple[float, float]:
    """Text-to-image and image-to-text top-1 among ``among`` candidates.

    Every group of candidates pairs half its scenes with a near miss that differs from one of them in one visible word.
    """
    pictures = F.normalize(foundation.encode_image(frames), dim=-1)
    sentences = F.normalize(foundation.encode_text([scene.caption() for scene in scenes])[1], dim=-1)
    to_image, to_text = [], []
    for start in range(0, len(scenes) - among + 1, among):
        similarity = sentences[start : start + among] @ pictures[start : start + among].T
        own = torch.arange(among)
        to_image.append(float((similarity.argmax(1) == own).float().mean()))
        to_text.append(float((similarity.argmax(0) == own).float().mean()))
    return float(np.mean(to_image)), float(np.mean(to_text))


def hard_groups(count: int, size: int) -> tuple[list[Scene], np.ndarray]:
    """``count`` scenes and frames in pairs whose second differs from the first in one visible word."""
    from mindvideo.simulate.scenes import render_scene

    scenes: list[Scene] = []
    for number in range(count // 2):
        rng = np.random.default_rng([FRESH_SEED, 1, number])
        scene, _ = draw_clip(rng, 1, 3.0, size)
        scenes += [scene, near_miss(scene, rng)]
    frames = np.concatenate([render_scene(scene, np.array([1.0]), size) for scene in scenes])
    return scenes, frames


def caption_accuracy(foundation: Foundation, scenes: list[Scene], frames: np.ndarray) -> dict[str, float]:
    """Share of captions that name the right thing, colour and place of a frame."""
    canonical = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
    right = {"thing": [], "colour": [], "place": []}  # type: dict[str, list[bool]]
    for scene, caption in zip(scenes, foundation.caption(frames), strict=True):
        words = [canonical.get(word, word) for word in re.findall(r"[a-z]+", caption)]
        first = {name: next((word for word in words if word in names), "") for name, names in
                 (("thing", THINGS), ("colour", COLOURS))}  # fmt: skip
        text = " ".join(words)
        place = next((name for name in sorted(PLACES, key=len, reverse=True) if name in text), "")
        right["thing"].append(first["thing"] == scene.thing)
        right["colour"].append(first["colour"] == scene.colour)
        right["place"].append(place == scene.place)
    return {name: float(np.mean(values)) for name, values in right.items()}


def check_kit(
    folder: Path | str = "embedded", count: int = 384, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Measure the gates of a kit on fresh scenes.

    Returns
    -------
    list of dict
        ``gate``, ``found``, ``wanted``, ``passed``, ``n`` each.

    Raises
    ------
    ModelError
        Where a part is missing.
    """
    foundation = Foundation(folder)
    foundation.require("vae", "text_encoder", "tokenizer", "image_encoder", "captioner", "image_classifier")
    foundation.require("video_classifier", "unet")
    size = int(foundation.vae.config.sample_size)
    scenes, clips = fresh_clips(count, size)
    frames = clips[np.arange(count), np.random.default_rng(FRESH_SEED).integers(clips.shape[1], size=count)]
    gates: list[dict[str, Any]] = []

    def add(gate: str, found: float, wanted: float, n: int) -> None:
        gates.append({"gate": gate, "found": found, "wanted": wanted, "passed": found >= wanted, "n": n})
        if progress:
            progress(len(gates), 8, {})

    add("vae: PSNR in dB", reconstruction_psnr(foundation, frames), 32.0, count)
    small = np.array([scene.size == "small" for scene in scenes])
    add("vae: PSNR in dB, small things", reconstruction_psnr(foundation, frames[small]), 32.0, int(small.sum()))
    hard_scenes, hard_frames = hard_groups(count // 64 * 64, size)
    to_image, to_text = retrieval(foundation, hard_scenes, hard_frames)
    add("text to image, top 1 of 64", to_image, 0.95, len(hard_scenes))
    add("image to text, top 1 of 64", to_text, 0.95, len(hard_scenes))
    image_truth = [f"{scene.colour} {scene.thing}" for scene in scenes]
    names = foundation.image_classifier.config.id2label
    found = [names[int(number)] for number in foundation.classify_images(frames).argmax(1)]
    add("image classifier, top 1", float(np.mean(np.array(found) == image_truth)), 0.90, count)
    video_truth = [f"{scene.thing} {scene.motion}" for scene in scenes]
    names = foundation.video_classifier.config.id2label
    found = [names[int(number)] for number in foundation.classify_videos(clips).argmax(1)]
    add("video classifier, top 1", float(np.mean(np.array(found) == video_truth)), 0.90, count)
    for name, value in caption_accuracy(foundation, scenes, frames).items():
        add(f"captioner: {name} right", value, 0.90, count)
    return gates
