"""One builder for each part of the kit: the part, the task it learns by, and how its result is kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from safetensors.torch import save_file
from transformers import (
    BertTokenizer,
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)

from mindvideo.config import Optimise
from mindvideo.data.disk import beside_folder
from mindvideo.foundation.clip_text import ClipTextTask, see_clips
from mindvideo.foundation.generator_tasks import MotionTask, UnetTask
from mindvideo.foundation.pool import Pool, Progress, encode_pool, to_pixels
from mindvideo.foundation.tasks import (
    CaptionerTask,
    ClassifierTask,
    ClipTask,
    VaeDecoderTask,
    VaeTask,
    start_blip_from_images,
    start_clip_from_images,
    start_from_images,
    tokenize,
)
from mindvideo.models.foundation import Foundation
from mindvideo.models.video_unet import VideoUNet
from mindvideo.train.animate import start_motion

Built = tuple[Any, Callable[[], None]]
UNET_MOMENTS = (1, 4)
MOTION_CLIPS = 16_000
"""Clips whose every frame's latents are kept."""


def _save(part: Any, folder: Path, half: bool = True) -> None:
    """Write a part in half precision beside its place, then rename; other files of the folder stay."""
    with beside_folder(folder) as place:
        if folder.exists():
            shutil.copytree(folder, place, dirs_exist_ok=True)
        (part.half() if half else part).save_pretrained(place)
        config = json.loads((place / "config.json").read_text())
        config.pop("_name_or_path", None)  # where it was trained is nobody's business
        (place / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    part.float()


def _fit_scaling_factor(vae: AutoencoderKL, pool: Pool) -> None:
    with torch.inference_mode():
        latents = vae.encode(to_pixels(np.asarray(pool.frames[:256, 0]))).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1.0 / latents.std()))


def _load(kind: Any, folder: Path, **settings: Any) -> Any:
    return kind.from_pretrained(folder, **settings).float().train()


def build_vae(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """The autoencoder; its scaling factor is fitted at the end."""
    vae = _load(AutoencoderKL, out / "vae")

    def save() -> None:
        vae.eval()
        _fit_scaling_factor(vae, pool)
        _save(vae, out / "vae")

    return VaeTask(vae, pool, settings), save


def build_vae_decoder(
    out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False
) -> Built:
    """The autoencoder's decoder goes on; latents stay as they are."""
    vae = _load(AutoencoderKL, out / "vae")
    latents = encode_pool(vae, pool, UNET_MOMENTS, out / "work" / "latents.npy", progress)
    return VaeDecoderTask(vae, latents, UNET_MOMENTS, pool, settings), lambda: _save(vae, out / "vae")


def _clip_towers(out: Path) -> tuple[Any, Any, CLIPTokenizer]:
    text = _load(CLIPTextModelWithProjection, out / "text_encoder")
    image = _load(CLIPVisionModelWithProjection, out / "image_encoder", attn_implementation="eager")
    return text, image, CLIPTokenizer.from_pretrained(out / "tokenizer")


def build_clip(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """Both of CLIP's towers."""
    text, image, tokenizer = _clip_towers(out)

    def save() -> None:
        _save(text, out / "text_encoder")
        _save(image, out / "image_encoder")

    return ClipTask(text, image, tokenizer, pool, settings), save


def build_clip_image(
    out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False
) -> Built:
    """CLIP's image tower from the image classifier's blocks; the text tower's tokens stay as they are."""
    text, image, tokenizer = _clip_towers(out)
    if not go_on:
        image.config.hidden_act = image.vision_model.config.hidden_act = "gelu"
        image = CLIPVisionModelWithProjection._from_config(image.config, attn_implementation="eager").float().train()
        start_clip_from_images(image, _load(ViTForImageClassification, out / "image_classifier"))

    def save() -> None:
        _save(text, out / "text_encoder")
        _save(image, out / "image_encoder")

    return ClipTask(text, image, tokenizer, pool, settings, image_only=True), save


def build_image_classifier(
    out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False
) -> Built:
    """ViT over thing x colour."""
    model = _load(ViTForImageClassification, out / "image_classifier", attn_implementation="eager")
    task = ClassifierTask(model, pool, "thing", "colour", settings, False)
    return task, lambda: _save(model, out / "image_classifier")


def build_video_classifier(
    out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False
) -> Built:
    """VideoMAE over thing x motion, from the image classifier's blocks."""
    video = _load(VideoMAEForVideoClassification, out / "video_classifier", attn_implementation="eager")
    if not go_on:
        start_from_images(video, _load(ViTForImageClassification, out / "image_classifier"))
    task = ClassifierTask(video, pool, "thing", "motion", settings, True)
    return task, lambda: _save(video, out / "video_classifier")


def build_clip_text(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """CLIP's text tower goes on with films, which the image tower and the video classifier see."""
    before = _text_conditions(out)
    text, image, tokenizer = _clip_towers(out)
    video = _load(VideoMAEForVideoClassification, out / "video_classifier", attn_implementation="eager")
    seen = see_clips(image.eval(), video.eval(), pool, progress)
    task = ClipTextTask(text, before, tokenizer, seen, pool, settings)
    return task, lambda: _save(text, out / "text_encoder")


def build_captioner(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """BLIP, its vision tower from the image classifier."""
    words = BertTokenizer.from_pretrained(out / "captioner")
    blip = _load(BlipForConditionalGeneration, out / "captioner", attn_implementation="eager")
    if not go_on:
        start_blip_from_images(blip, _load(ViTForImageClassification, out / "image_classifier"))
    return CaptionerTask(blip, words, pool, settings), lambda: _save(blip, out / "captioner")


def _text_conditions(out: Path) -> Callable[[list[str]], torch.Tensor]:
    tokenizer = CLIPTokenizer.from_pretrained(out / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder").float().eval()

    def encode(captions: list[str]) -> torch.Tensor:
        with torch.no_grad():
            return text(tokenize(tokenizer, captions)).last_hidden_state.float()

    return encode


def build_unet(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """The 2-D generator, on two frames of every clip."""
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    latents = encode_pool(vae, pool, UNET_MOMENTS, out / "work" / "latents.npy", progress)
    unet = _load(UNet2DConditionModel, out / "unet")
    unet.set_attn_processor(AttnProcessor())
    clip_of = np.arange(len(latents)) // len(UNET_MOMENTS)
    scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
    task = UnetTask(unet, scheduler, latents, clip_of, _text_conditions(out), pool, settings)
    return task, lambda: _save(unet, out / "unet")


def build_motion(out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False) -> Built:
    """The generator, inflated, goes on with whole clips."""
    vae = AutoencoderKL.from_pretrained(out / "vae").float().eval()
    frames = tuple(range(pool.frames.shape[1]))
    path = out / "work" / "clip_latents.npy"
    latents = encode_pool(vae, pool, frames, path, progress, MOTION_CLIPS).unflatten(0, (-1, len(frames)))
    unet = UNet2DConditionModel.from_pretrained(out / "unet").float()
    kept = Foundation(out)
    video = VideoUNet.from_unet2d(unet, frame_positions=kept.motion_has_positions if go_on else True).train()
    if go_on:
        start_motion(video, kept)
    scheduler = DDIMScheduler.from_pretrained(out / "scheduler")
    task = MotionTask(video, scheduler, latents, _text_conditions(out), pool, settings)
    return task, lambda: save_motion_part(video, out)


def save_motion_part(video: VideoUNet, out: Path) -> None:
    """Give the 2-D weights back to ``out/unet`` and write what only clips need to ``out/motion``, in half precision."""
    weights = video.state_dict()
    unet = UNet2DConditionModel.from_pretrained(out / "unet").float()
    flat = {name: weights[name] for name in unet.state_dict()}
    unet.load_state_dict(flat)
    _save(unet, out / "unet")
    (out / "motion").mkdir(exist_ok=True)
    motion = {name: tensor.half().contiguous() for name, tensor in weights.items() if name not in flat}
    save_file(motion, out / "motion" / "model.safetensors")
    config = {
        "part": "temporal attention of the inflated generator",
        "parameters": sum(t.numel() for t in motion.values()),
        "frame_positions": video.config.frame_positions,
    }
    (out / "motion" / "config.json").write_text(json.dumps(config, indent=2) + "\n")


class Builder(Protocol):
    """Makes a part ready for training."""

    def __call__(
        self, out: Path, pool: Pool, settings: Optimise, progress: Progress | None, go_on: bool = False
    ) -> Built:
        """The task, and what keeps its result; with ``go_on`` the part starts from its own weights in ``out``."""
        ...


BUILDERS: dict[str, Builder] = {
    "vae": build_vae,
    "clip": build_clip,
    "image_classifier": build_image_classifier,
    "clip_image": build_clip_image,
    "video_classifier": build_video_classifier,
    "clip_text": build_clip_text,
    "captioner": build_captioner,
    "unet": build_unet,
    "motion": build_motion,
    "vae_decoder": build_vae_decoder,
}
"""In the order in which they are trained; later ones start from earlier ones."""
