"""The frozen parts a study stands on, from a folder in Hugging Face layout.

``vae``, ``unet`` (2-D, text-conditioned), ``scheduler``, ``tokenizer``, ``text_encoder``,
``image_encoder``, ``captioner`` (BLIP), ``image_classifier`` (ViT), ``video_classifier``
(VideoMAE): each is read from local files by its own library's ``from_pretrained``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BlipForConditionalGeneration,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    VideoMAEForVideoClassification,
    ViTForImageClassification,
)
from transformers.utils import logging as transformers_logging

from mindvideo.errors import ModelError
from mindvideo.files import add_content, describe_absence, walk_files
from mindvideo.models.part_config import read_part_config
from mindvideo.models.weight_files import load_network

PARTS = (
    *("vae", "unet", "scheduler", "tokenizer", "text_encoder"),
    *("image_encoder", "captioner", "image_classifier", "video_classifier"),
)
MOTION = "motion"
"""Optional: what the inflated generator has beyond the 2-D one, trained on films."""
JUDGES = "judges"
"""Optional: networks of the embedded kit that see where things are."""
CONDITION = ("tokenizer", "text_encoder", "image_encoder")
"""What the encoder is aligned with."""
GENERATION = ("vae", "unet", "scheduler", MOTION, *CONDITION)
"""What the generator's training and the sampling follow from."""
VIDEO_FRAMES = 6
"""Frames of a clip that the video classifier sees, as in the published evaluation, although its configuration
says 16; its positions have no weights."""

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
diffusers_logging.set_verbosity_error()


def embedded_kit() -> Path:
    """Folder of the kit that comes with the package."""
    return Path(str(resources.files("mindvideo") / "kit"))


class Foundation:
    """Frozen parts, each loaded when first asked for.

    Parameters
    ----------
    folder : Path or str
        A folder with the parts, or ``"embedded"`` for the shipped kit.
    device : torch.device or str
        Where the parts run.

    Raises
    ------
    ModelError
        Where the folder or a part of it is missing, or widths differ.
    """

    def __init__(self, folder: Path | str = "embedded", device: torch.device | str = "cpu") -> None:
        self.folder = embedded_kit() if str(folder) == "embedded" else Path(folder)
        self.device, self._processors = torch.device(device), dict[str, Any]()
        if not self.folder.is_dir():
            raise ModelError(
                f"expected a foundation folder at {self.folder}, found none; give foundation=FOLDER or 'embedded'"
            )

    def require(self, *parts: str) -> None:
        """Raise ModelError unless all named parts are there and their widths agree."""
        for part in parts:
            folder = self.folder / part
            if not folder.is_dir() or not any(folder.glob("*.json")):
                present = ", ".join(name for name in PARTS if (self.folder / name).is_dir()) or "none"
                raise ModelError(
                    f"expected the part '{part}' in foundation folder {self.folder}, found only {present}; "
                    f"put a Hugging Face folder of that part at {folder}"
                )
        if not {"unet", "image_encoder"} & set(parts) or not (self.folder / "text_encoder").is_dir():
            return  # parts that judge alone, as scoring anyone's clips needs them
        width, channels = self.condition_width, self.latent_channels if (self.folder / "vae").is_dir() else 4
        for part, name, default, wanted, whose, way_out in (
            ("unet", "cross_attention_dim", None, width, "the text's width", "UNet and text encoder of one model"),
            ("unet", "in_channels", 4, channels, "the VAE's channels", "the VAE's own UNet, not one for inpainting"),
            ("image_encoder", "projection_dim", 512, width, "the condition width", "the CLIP of the text encoder"),
        ):
            if part in parts and (found := self._config(part).get(name, default)) != wanted:
                raise ModelError(
                    f"expected {name} of the part '{part}' to be {whose} {wanted}, found {found} in {self.folder / part}; "
                    f"use {way_out}"
                )

    def _config(self, part: str) -> dict[str, Any]:
        return read_part_config(self.folder, part)

    def _text_config(self) -> dict[str, Any]:
        config = self._config("text_encoder")
        return dict(config.get("text_config") or config)

    def _load(self, part: str, load: Callable[[Path], Any]) -> Any:
        """What a library reads from a part's folder; any error becomes one sentence."""
        self.require(part)
        folder = self.folder / part
        try:
            return load(folder)
        except ModelError:
            raise
        except Exception as error:
            absent = [text for path in walk_files(folder) if (text := describe_absence(path))]
            reason = absent[0] if absent else f"found: {' '.join(str(error).split())[:300]}; fetch it again"
            raise ModelError(f"expected the part '{part}' in {folder} to load, {reason}") from error

    def _load_network(self, part: str, kind: Any, **settings: Any) -> Any:
        return self._load(part, lambda folder: load_network(kind, folder, self.device, **settings))

    def _load_tokenizer(self, part: str, kind: Any, vocabulary: int) -> Any:
        """A tokenizer with a vocabulary; without its files, transformers makes an empty one."""
        tokenizer = self._load(part, lambda folder: kind.from_pretrained(folder, local_files_only=True))
        if not vocabulary / 2 < len(tokenizer) <= vocabulary:
            raise ModelError(
                f"expected a tokenizer of about {vocabulary} tokens in {self.folder / part}, found {len(tokenizer)}; fetch "
                "tokenizer.json, or vocab.json and merges.txt (vocab.txt for a captioner), of the same model"
            )
        return tokenizer

    @property
    def condition_length(self) -> int:
        """L, tokens of a condition."""
        return int(self._text_config().get("max_position_embeddings", 77))

    @property
    def condition_width(self) -> int:
        """C, width of a condition token."""
        return int(self._text_config().get("hidden_size", 512))

    def class_count(self, part: str) -> int:
        """Classes of a classifier."""
        config = self._config(part)
        return len(config.get("id2label") or ()) or int(config.get("num_labels", 2))

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self._config("vae").get("latent_channels", 4))

    @property
    def latent_factor(self) -> int:
        """How many times smaller a latent is than a frame, along each side."""
        return int(2 ** (len(self._config("vae").get("block_out_channels", (64,))) - 1))  # diffusers' default

    @cached_property
    def identity(self) -> str:
        """Digest of the files of all parts, also behind links, without their cards."""
        return self._hash(*PARTS, MOTION)

    # Of CLIP's parts, on which a new generator has no effect, of the autoencoder, and of the captioner alone.
    condition_identity = cached_property(lambda self: self._hash(*CONDITION))
    latent_identity = cached_property(lambda self: self._hash("vae"))
    captioner_identity = cached_property(lambda self: self._hash("captioner"))

    def part_identity(self, part: str) -> str:
        """`identity` of one part, or ``absent``."""
        return self._hash(part) if (self.folder / part).is_dir() else "absent"

    def _hash(self, *parts: str) -> str:
        paths = [path for part in sorted(parts) for path in walk_files(self.folder / part) if path.suffix != ".md"]
        if not paths:
            raise ModelError(f"expected files of {', '.join(parts)} in foundation folder {self.folder}, found none")
        digest = hashlib.sha256()
        for path in paths:
            size = path.stat().st_size if path.exists() else "not fetched"
            digest.update(f"{path.relative_to(self.folder)}:{size}".encode())
            if path.exists():
                add_content(digest, path)
        return digest.hexdigest()

    def open(self, part: str) -> None:
        """Load a part: its network, and its tokenizer or image processor; ModelError where it cannot."""
        getattr(self, "scheduler_config" if part == "scheduler" else part)
        if part in ("captioner", "image_encoder", "image_classifier", "video_classifier"):
            self._processor(part)
        if part == "captioner":
            self._caption_tokenizer  # noqa: B018

    vae = cached_property(lambda self: self._load_network("vae", AutoencoderKL))
    unet = cached_property(lambda self: self._load_network("unet", UNet2DConditionModel))
    image_encoder = cached_property(lambda self: self._load_network("image_encoder", CLIPVisionModelWithProjection))
    captioner = cached_property(lambda self: self._load_network("captioner", BlipForConditionalGeneration))
    image_classifier = cached_property(lambda self: self._load_network("image_classifier", ViTForImageClassification))

    def motion(self) -> dict[str, torch.Tensor]:
        """Weights of the part ``motion`` by name, float32; ModelError where there is no such part."""
        path = self.folder / MOTION / "model.safetensors"
        if not path.is_file():
            raise ModelError(f"expected the part '{MOTION}' at {path}, found none; set animate.motion=none")
        return {name: weight.float() for name, weight in load_file(path).items()}

    @property
    def motion_settings(self) -> dict[str, Any]:
        """Settings of the inflated generator that the part ``motion`` was trained with."""
        config = self._config(MOTION)
        return {name: config[name] for name in ("frame_positions", "noise_share") if name in config}

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The noise schedule the UNet was trained with; ModelError for an unknown one, and for flow matching."""
        config = self._load("scheduler", lambda folder: self._config(folder.name))
        self._load("scheduler", lambda _: DDPMScheduler.from_config(config))
        if "Flow" in f"{config.get('_class_name')}":
            found = f"{config['_class_name']} in {self.folder / 'scheduler'}"
            raise ModelError(f"expected a scheduler of diffusion, found {found}; fetch that of the UNet's own model")
        return dict(config)

    @cached_property
    def tokenizer(self) -> Any:
        """CLIP's tokenizer."""
        return self._load_tokenizer("tokenizer", CLIPTokenizer, int(self._text_config().get("vocab_size", 49408)))

    @cached_property
    def text_encoder(self) -> CLIPTextModelWithProjection:
        """CLIP's text tower with projection, perhaps from a whole CLIP in ``image_encoder``."""
        try:
            return self._load_network("text_encoder", CLIPTextModelWithProjection)
        except ModelError as error:
            if "text_projection" not in str(error):
                raise
            return self._load_network("image_encoder", CLIPTextModelWithProjection)

    @cached_property
    def video_classifier(self) -> VideoMAEForVideoClassification:
        """VideoMAE over clips of `VIDEO_FRAMES` frames."""
        model = self._load_network("video_classifier", VideoMAEForVideoClassification, num_frames=VIDEO_FRAMES)
        if VIDEO_FRAMES % (tubelet := int(model.config.tubelet_size)):
            raise ModelError(
                f"expected a video classifier whose tubelet_size divides {VIDEO_FRAMES} frames, found {tubelet} in "
                f"{self.folder / 'video_classifier'}; use one like MCG-NJU/videomae-base-finetuned-kinetics (2)"
            )
        return model

    def _processor(self, part: str) -> Any:
        if part not in self._processors:
            self._processors[part] = self._load(
                part, lambda folder: AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
            )
        return self._processors[part]

    def _pixels(self, part: str, frames: np.ndarray) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8, prepared by the part's image processor: (N, 3, h, w)."""
        processor = self._processor(part)
        pixels = processor(list(frames), return_tensors="pt", input_data_format="channels_last").pixel_values
        if pixels.ndim == 5:
            pixels = pixels.flatten(0, 1)
        return pixels.to(self.device)

    def _in_batches(self, items: Any, batch: int, run: Callable[[Any], Any]) -> Any:
        with torch.inference_mode():
            return _join([run(items[start : start + batch]) for start in range(0, len(items), batch)])

    def tokenize(self, captions: list[str]) -> torch.Tensor:
        """Token ids (B, L), padded or cut to L (`list_too_long`), as CLIP does."""
        given = {"padding": "max_length", "truncation": True, "max_length": self.condition_length}
        return torch.tensor(self.tokenizer(captions, **given).input_ids, device=self.device)

    def list_too_long(self, captions: list[str]) -> list[str]:
        """The captions that have more tokens than the text encoder has positions L."""
        rows = self.tokenizer(captions).input_ids
        return [caption for caption, row in zip(captions, rows, strict=True) if len(row) > self.condition_length]

    def encode_text(self, captions: list[str], batch: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states (B, L, C) and projected embeddings (B, C) of captions, float32."""

        def run(part: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.text_encoder(self.tokenize(part))
            return output.last_hidden_state.float(), output.text_embeds.float()

        return self._in_batches(list(captions), batch, run)

    def null_condition(self) -> torch.Tensor:
        """The empty caption's tokens (L, C), float32."""
        return self.encode_text([""])[0][0].cpu()

    def encode_image(self, frames: np.ndarray, batch: int = 64) -> torch.Tensor:
        """Projected CLIP image embeddings (N, C) float32 of frames (N, H, W, 3) uint8."""

        def run(part: np.ndarray) -> torch.Tensor:
            return self.image_encoder(self._pixels("image_encoder", part)).image_embeds.float()

        return self._in_batches(frames, batch, run)

    def encode_latents(self, frames: np.ndarray, batch: int = 32) -> torch.Tensor:
        """Scaled posterior means (N, c, h, w) float32 of frames (N, H, W, 3) uint8."""

        def run(part: np.ndarray) -> torch.Tensor:
            shown = torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            pixels = shown.permute(0, 3, 1, 2).float() / 127.5 - 1.0
            return self.vae.encode(pixels).latent_dist.mean.float() * self.vae.config.scaling_factor

        return self._in_batches(frames, batch, run)

    def decode_latents(self, latents: torch.Tensor, batch: int = 32) -> np.ndarray:
        """Frames (N, H, W, 3) uint8 of scaled latents (N, c, h, w)."""

        def run(part: torch.Tensor) -> np.ndarray:
            scaled = part.to(self.device).float() / self.vae.config.scaling_factor
            pixels = self.vae.decode(scaled.contiguous(memory_format=torch.channels_last)).sample  # a quarter faster
            return ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()

        return self._in_batches(latents, batch, run)

    @cached_property
    def _caption_tokenizer(self) -> Any:
        vocabulary = self._config("captioner").get("text_config", {}).get("vocab_size", 30524)
        return self._load_tokenizer("captioner", AutoTokenizer, int(vocabulary))

    def caption(self, frames: np.ndarray, batch: int = 64, max_new_tokens: int = 30) -> list[str]:
        """A sentence for every frame (N, H, W, 3) uint8, by greedy decoding."""

        def run(part: np.ndarray) -> list[str]:
            pixels = self._pixels("captioner", part)
            output = self.captioner.generate(
                pixel_values=pixels, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False
            )
            return [text.strip() for text in self._caption_tokenizer.batch_decode(output, skip_special_tokens=True)]

        return self._in_batches(frames, batch, run)

    def classify_images(self, frames: np.ndarray, batch: int = 64) -> np.ndarray:
        """Probabilities (N, classes) float32 of frames (N, H, W, 3) uint8."""

        def run(part: np.ndarray) -> np.ndarray:
            logits = self.image_classifier(pixel_values=self._pixels("image_classifier", part)).logits
            return F.softmax(logits.float(), -1).cpu().numpy()

        return self._in_batches(frames, batch, run)

    def classify_videos(self, clips: np.ndarray, batch: int = 16) -> np.ndarray:
        """Probabilities (N, classes) float32 of clips (N, F, H, W, 3) uint8."""
        return self.describe_videos(clips, batch)[0]

    def describe_videos(self, clips: np.ndarray, batch: int = 16) -> tuple[np.ndarray, np.ndarray]:
        """`classify_videos`, and the features (N, D) float32 before the last layer.

        The classifier sees `VIDEO_FRAMES` frames of each clip, evenly spaced from the first to the
        last.
        """
        model = self.video_classifier
        moment = np.round(np.linspace(0, clips.shape[1] - 1, VIDEO_FRAMES)).astype(int)

        def run(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            frames = part[:, moment]
            pixels = self._pixels("video_classifier", frames.reshape(-1, *frames.shape[2:]))
            tokens = model.videomae(pixels.reshape(len(part), VIDEO_FRAMES, *pixels.shape[1:])).last_hidden_state
            features = tokens[:, 0] if model.fc_norm is None else model.fc_norm(tokens.mean(1))
            probabilities = F.softmax(model.classifier(features).float(), -1)
            return probabilities.cpu().numpy(), features.float().cpu().numpy()

        return self._in_batches(clips, batch, run)


def _join(parts: list[Any]) -> Any:
    """Parts of one list, tensor or array, or of a tuple of them, put together."""
    if not parts or isinstance(parts[0], list):
        return [item for part in parts for item in part]
    if isinstance(parts[0], tuple):
        return tuple(_join(list(each)) for each in zip(*parts, strict=True))
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else np.concatenate(parts)
