"""What a kit's generator draws from true captions, by classifiers and by judges.

A figure is a reader's accuracy on drawn clips as a share of that on true ones; of two readers the
lower counts.

Shapes: N clips, F frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.stats import mannwhitneyu

from mindvideo.evaluate import judges
from mindvideo.generate.sampling import Plan, denoise
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.foundation import JUDGES, Foundation
from mindvideo.models.generators import generator_class
from mindvideo.models.interfaces import Generator
from mindvideo.simulate.scenes import COLUMNS, MOTIONS, PLACES, ROWS, Clip, locate, plan_clip

FRESH_SEED = 31_337
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
Found = dict[str, np.ndarray]
"""For each attribute whether it is right, (N, F) or (N,), NaN where it does not apply."""


def fresh_clips(count: int, with_cut: bool = False) -> list[Clip]:
    """Clips from a seed no training uses."""
    return [plan_clip(np.random.default_rng([FRESH_SEED, int(with_cut), i]), with_cut=with_cut) for i in range(count)]


def sample(foundation: Foundation, unet: Generator, captions: Sequence[str], steps: int, guidance: float) -> np.ndarray:
    """Clips (N, F, H, W, 3) uint8 from captions, by the demo's sampler."""
    scheduler = make_scheduler(dict(foundation.scheduler_config), "dpm++")
    empty, clips = foundation.encode_text([""])[0].float(), []
    for start in range(0, len(captions), 16):
        condition = foundation.encode_text(list(captions[start : start + 16]))[0].float()
        shape = (len(condition), 4, 6, unet.config.sample_size, unet.config.sample_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(start))
        latents = denoise(unet, scheduler, noise, condition, empty, Plan(steps, guidance))
        pixels = foundation.decode_latents(latents.transpose(1, 2).flatten(0, 1))
        clips.append(pixels.reshape(len(condition), 6, *pixels.shape[1:]))
    return np.concatenate(clips)


def kit_reads(foundation: Foundation, clips: np.ndarray, truth: Sequence[Clip]) -> Found:
    """Thing and colour by the image classifier, motion by the video classifier."""
    pictures = foundation.classify_images(clips.reshape(-1, *clips.shape[2:])).reshape(*clips.shape[:2], -1)
    films = foundation.classify_videos(clips)
    found: Found = {}
    for name, probabilities, classifier, word in (
        ("thing", pictures, foundation.image_classifier, 1),
        ("colour", pictures, foundation.image_classifier, 0),
        ("motion", films, foundation.video_classifier, 1),
    ):
        names = classifier.config.id2label
        labels = np.array([names[i].split(" ")[word] for i in range(len(names))])
        wanted, values = [getattr(clip.scene, name) for clip in truth], sorted(set(labels))
        sums = np.stack([probabilities[..., labels == value].sum(-1) for value in values], -1)
        read = np.array(values)[sums.argmax(-1)]
        found[name] = (np.array(wanted) == read.T).T.astype(float)
    return found


def judges_read(folder: Path, clips: np.ndarray, truth: Sequence[Clip]) -> Found:
    """Thing, colour and place by the image judge, motion and position by the video's."""
    pictures, films = (judges.judge_clips(judges.load_judge(kind, folder), clips) for kind in ("image", "video"))
    scenes = [clip.scene for clip in truth]
    found: Found = {}
    for name in ("thing", "colour", "place"):
        wanted = np.array([judges.NAMES[name].index(getattr(scene, name)) for scene in scenes])
        found[name] = (pictures[name] == wanted[:, None]).astype(float)
    found["motion"] = (films["motion"] == [MOTIONS.index(scene.motion) for scene in scenes]).astype(float)
    middle = [locate(clip.scene, float(clip.times_s.mean()) + 1 / 6) for clip in truth]
    for name, part, names in (("column", 0, COLUMNS), ("row", 1, ROWS)):
        right = [np.nan if at[part] is None else float(films[name][i] == names.index(str(at[part])))
                 for i, at in enumerate(middle)]  # fmt: skip
        found[name] = np.array(right)
    both = np.ma.masked_invalid([found.pop("column"), found.pop("row")])
    return found | {"position": both.mean(axis=0).filled(np.nan)}


def place_by_clip(foundation: Foundation, clips: np.ndarray, truth: Sequence[Clip]) -> np.ndarray:
    """Whether the nearest place caption in CLIP's embedding is the true one, (N, F)."""
    where = [f"a {place}" for place in PLACES]
    texts = torch.nn.functional.normalize(foundation.encode_text(where)[1].float(), dim=-1)
    frames = foundation.encode_image(clips.reshape(-1, *clips.shape[2:])).float()
    pictures = torch.nn.functional.normalize(frames, dim=-1)
    best = (pictures @ texts.T).argmax(1).numpy().reshape(clips.shape[:2])
    return (best == np.array([PLACES.index(clip.scene.place) for clip in truth])[:, None]).astype(float)


def flow_direction(clips: np.ndarray, truth: Sequence[Clip]) -> np.ndarray:
    """Whether optical flow goes the thing's way, (N,); NaN if it stays or the view pans."""
    right = np.full(len(clips), np.nan)
    for i, (frames, clip) in enumerate(zip(clips, truth, strict=True)):
        if clip.scene.motion not in WAYS or clip.scene.camera != "static":
            continue
        grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
        total = np.zeros(2)
        for a, b in pairwise(grey):
            flow = cv2.calcOpticalFlowFarneback(a, b, None, 0.5, 3, 9, 3, 5, 1.2, 0)
            weight = np.hypot(flow[..., 0], flow[..., 1])
            total += (flow * weight[..., None]).sum((0, 1))
        scores = {way: total @ np.array(step) for way, step in WAYS.items()}
        right[i] = float(max(scores, key=lambda way: scores[way]) == clip.scene.motion)
    return right


def frame_change(clips: np.ndarray) -> np.ndarray:
    """Mean absolute difference of adjacent frames, 0..255: (N, F - 1)."""
    return np.abs(np.diff(clips.astype(np.float32), axis=1)).mean((2, 3, 4))


def read_clips(foundation: Foundation, clips: np.ndarray, truth: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """For each attribute, how often each reader finds the true one."""
    readers = {"kit": kit_reads(foundation, clips, truth)}
    readers["kit"]["place"] = place_by_clip(foundation, clips, truth)
    if (foundation.folder / JUDGES).is_dir():
        readers["judge"] = judges_read(foundation.folder / JUDGES, clips, truth)
    readers["flow"] = {"flow direction": flow_direction(clips, truth)}
    table: dict[str, dict[str, float]] = {}
    for reader, found in readers.items():
        for name, right in found.items():
            table.setdefault(name, {})[reader] = float(np.nanmean(right))
    return table


def load_generator(foundation: Foundation) -> Generator:
    """The kit's UNet, inflated, with its part ``motion``."""
    video = generator_class("video_unet").from_foundation(
        foundation.unet, foundation.motion_settings, foundation.motion()
    )
    return video.eval()


def check_generator(
    foundation: Foundation, unet: Generator, count: int = 384, cuts: int = 192, steps: int = 5, guidance: float = 3.0
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The generator's figures on fresh scenes: ``count`` clips of one scene, and ``cuts`` with a cut.

    For each attribute the lowest share, over the readers, of their own accuracy on the true clips;
    ``frame change`` as a share of the truth's; ``cuts``, the area under the ROC curve of finding
    them. Then true and drawn clips, uint8 (count, F, H, W, 3).
    """
    clips, cut = fresh_clips(count), fresh_clips(cuts, with_cut=True)
    truth = np.stack([clip.frames() for clip in clips])
    drawn = sample(foundation, unet, [clip.caption() for clip in clips], steps, guidance)
    found, wanted = read_clips(foundation, drawn, clips), read_clips(foundation, truth, clips)
    figures = {name: min(found[name][reader] / wanted[name][reader] for reader in found[name]) for name in found}
    figures["frame change"] = float(frame_change(drawn).mean() / frame_change(truth).mean())
    with_cut = sample(foundation, unet, [clip.caption() for clip in cut], steps, guidance)
    greatest = [frame_change(clips).max(1) for clips in (with_cut, drawn)]
    figures["cuts"] = float(mannwhitneyu(*greatest).statistic) / (count * cuts)  # the area under the ROC curve
    return figures, truth, drawn
