"""Measure every gate of a foundation kit on fresh scenes of the picture-book world."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import peak_signal_noise_ratio

from mindvideo.foundation.drawn import check_generator, fresh_clips, load_generator
from mindvideo.models.foundation import Foundation
from mindvideo.simulate.scenes import (
    COLOURS,
    LIGHTS,
    PLACES,
    SIZES,
    SYNONYMS,
    THINGS,
    Clip,
    Scene,
    locate,
    plan_clip,
    render_scene,
    scene_caption,
)
from mindvideo.stages import Progress

VISIBLE = {"thing": THINGS, "colour": COLOURS, "place": PLACES, "size": SIZES, "light": LIGHTS}
"""Attributes that a single frame shows, by name of the scene's field."""
SHARES = {"thing": 0.85, "colour": 0.95, "place": 0.95, "motion": 0.7, "flow direction": 0.7, "position": 0.7}
"""What the generator must reach, as a share of the reader's own on true clips."""
FRESH_SEED = 31_338


def reconstruction_psnr(foundation: Foundation, frames: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio in dB of frames (N, H, W, 3) uint8 through the VAE."""
    decoded = foundation.decode_latents(foundation.encode_latents(frames))
    return float(np.mean([peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(frames, decoded, strict=True)]))


def near_miss(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one visible word changed: its thing, colour, place, size or light."""
    name = str(rng.choice(list(VISIBLE)))
    changed: dict[str, Any] = {name: str(rng.choice([v for v in VISIBLE[name] if v != getattr(scene, name)]))}
    return replace(scene, **changed)


def hard_groups(count: int, size: int) -> tuple[list[str], np.ndarray]:
    """Captions and frames of ``count`` scenes in pairs that differ in one word."""
    captions, frames = [], []
    for number in range(count // 2):
        rng = np.random.default_rng([FRESH_SEED, number])
        clip = plan_clip(rng, 1)
        for scene in (clip.scene, near_miss(clip.scene, rng)):
            frames.append(render_scene(scene, clip.times_s, size)[0])
            captions.append(scene_caption(scene, locate(scene, float(clip.times_s[0]))))
    return captions, np.stack(frames)


def retrieval(
    foundation: Foundation, captions: Sequence[str], frames: np.ndarray, among: int = 64
) -> tuple[float, float]:
    """Text-to-image and image-to-text top-1 among ``among`` candidates."""
    pictures = F.normalize(foundation.encode_image(frames), dim=-1)
    sentences = F.normalize(foundation.encode_text(list(captions))[1], dim=-1)
    to_image, to_text = [], []
    for start in range(0, len(captions) - among + 1, among):
        similarity = sentences[start : start + among] @ pictures[start : start + among].T
        own = torch.arange(among)
        to_image.append(float((similarity.argmax(1) == own).float().mean()))
        to_text.append(float((similarity.argmax(0) == own).float().mean()))
    return float(np.mean(to_image)), float(np.mean(to_text))


def caption_accuracy(foundation: Foundation, clips: Sequence[Clip], frames: np.ndarray) -> dict[str, float]:
    """Share of captions that name the right thing, colour and place."""
    canonical = {synonym: word for word, synonyms in SYNONYMS.items() for synonym in synonyms}
    right: dict[str, list[bool]] = {"thing": [], "colour": [], "place": []}
    for clip, caption in zip(clips, foundation.caption(frames), strict=True):
        words = [canonical.get(word, word) for word in re.findall(r"[a-z]+", caption)]
        text = " ".join(words)
        said = {"thing": next((word for word in words if word in THINGS), ""),
                "colour": next((word for word in words if word in COLOURS), ""),
                "place": next((name for name in sorted(PLACES, key=len, reverse=True) if name in text), "")}  # fmt: skip
        for name, value in said.items():
            right[name].append(value == getattr(clip.scene, name))
    return {name: float(np.mean(values)) for name, values in right.items()}


def classifier_accuracy(probabilities: np.ndarray, names: dict[int, str], truth: Sequence[str]) -> float:
    """Share of rows whose likeliest class has the true name."""
    return float(np.mean([names[int(best)] == name for best, name in zip(probabilities.argmax(1), truth, strict=True)]))


def check_kit(
    folder: Path | str = "embedded", count: int = 384, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """Measure a kit on fresh scenes: ``gate``, ``found``, ``wanted``, ``passed``, ``n``."""
    foundation = Foundation(folder)
    foundation.require("vae", "text_encoder", "tokenizer", "image_encoder", "captioner", "image_classifier")
    foundation.require("video_classifier", "unet")
    size = int(foundation.vae.config.sample_size)
    clips = fresh_clips(count)
    films = np.stack([clip.frames(size) for clip in clips])
    moment = np.random.default_rng(FRESH_SEED).integers(films.shape[1], size=count)
    frames, scenes = films[np.arange(count), moment], [clip.scene for clip in clips]
    gates: list[dict[str, Any]] = []

    def add(gate: str, found: float, wanted: float, n: int, at_most: bool = False) -> None:
        passed = found <= wanted if at_most else found >= wanted
        gates.append({"gate": gate, "found": found, "wanted": wanted, "passed": passed, "n": n, "at_most": at_most})
        if progress:
            progress(len(gates), 17, {})

    small = np.array([scene.size == "small" for scene in scenes])
    add("vae: PSNR in dB", reconstruction_psnr(foundation, frames), 32.0, count)
    add("vae: PSNR in dB, small things", reconstruction_psnr(foundation, frames[small]), 32.0, int(small.sum()))
    captions, pictures = hard_groups(count // 64 * 64, size)
    to_image, to_text = retrieval(foundation, captions, pictures)
    add("text to image, top 1 of 64", to_image, 0.95, len(captions))
    add("image to text, top 1 of 64", to_text, 0.95, len(captions))
    names = foundation.image_classifier.config.id2label
    truth = [f"{scene.colour} {scene.thing}" for scene in scenes]
    add("image classifier, top 1", classifier_accuracy(foundation.classify_images(frames), names, truth), 0.90, count)
    names = foundation.video_classifier.config.id2label
    truth = [f"{scene.thing} {scene.motion}" for scene in scenes]
    add("video classifier, top 1", classifier_accuracy(foundation.classify_videos(films), names, truth), 0.90, count)
    for name, value in caption_accuracy(foundation, clips, frames).items():
        add(f"captioner: {name} right", value, 0.90, count)
    if (foundation.folder / "motion").is_dir():
        figures, _, _ = check_generator(foundation, load_generator(foundation), count, count // 2)
        for name, share in SHARES.items():
            add(f"generator: {name}, of the truth's", figures[name], share, count)
        add("generator: frame change, of the truth's", figures["frame change"], 1.2, count, at_most=True)
        add("generator: cuts found, area under the curve", figures["cuts"], 0.75, count // 2)
    return gates
