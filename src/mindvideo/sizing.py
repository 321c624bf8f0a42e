"""How much a study holds, and what its networks cost, from the recipe, the foundation's configurations and counting."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL
from torch import nn

from mindvideo.atlas import parse_areas
from mindvideo.config import Recipe
from mindvideo.data.store import Store, is_complete
from mindvideo.models.fmri_encoder import FmriEncoder
from mindvideo.models.foundation import embedded_kit
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.models.meter import Work, count_parameters, count_per_item
from mindvideo.models.own_encoder import OwnEncoder
from mindvideo.models.video_unet import VideoUNet

PUBLISHED_VOXELS = 6224  # of Wen 2018's second subject with the paper's rule; for recipes whose selection is to come
HCP_VOXELS = 4183


@dataclass(frozen=True)
class PublishedPart:
    """A part of the paper's foundation: where it is published, its parameters, and its configuration in short."""

    place: str
    parameters: float
    config: dict[str, Any] = field(default_factory=dict)


_SD = "the subfolder of Stable Diffusion 1.5 (stable-diffusion-v1-5/stable-diffusion-v1-5)"
_WIDTHS = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
PUBLISHED: dict[str, PublishedPart] = {
    "vae": PublishedPart(_SD, 83.7e6, {
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }),
    "unet": PublishedPart(_SD, 859.5e6, {"sample_size": 64, "cross_attention_dim": 768}),
    "scheduler": PublishedPart(_SD, 0.0),
    "tokenizer": PublishedPart(_SD, 0.0),
    "text_encoder": PublishedPart(_SD, 123.1e6, {**_WIDTHS, "max_position_embeddings": 77}),
    "image_encoder": PublishedPart("openai/clip-vit-large-patch14", 427.6e6, {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 224, "patch_size": 14,
    }),
    "captioner": PublishedPart("Salesforce/blip-image-captioning-base", 247.4e6, {
        "vision_config": {**_WIDTHS, "image_size": 384, "patch_size": 16},
    }),
    "image_classifier": PublishedPart("google/vit-base-patch16-224", 86.6e6, {**_WIDTHS, "image_size": 224, "patch_size": 16}),
    "video_classifier": PublishedPart("MCG-NJU/videomae-base-finetuned-kinetics", 86.5e6, {
        **_WIDTHS, "image_size": 224, "patch_size": 16, "num_frames": 16, "tubelet_size": 2,
    }),
}  # fmt: skip


@dataclass
class StudySizes:
    """Counts of a study: of its store where it is prepared, else from the recipe, saying what was assumed."""

    n_train: int
    n_validation: int
    n_test: int
    n_runs: int
    n_volumes: int
    n_grayordinates: int
    n_voxels: int
    num_frames: int
    size: int
    n_reconstructed: int
    n_hcp_voxels: int = HCP_VOXELS
    notes: list[str] = field(default_factory=list)

    # Seconds per recorded value (volume x grayordinate): the demo's 115 s and 33 s on two cores for 9.1e7 values.
    SIMULATE_S: ClassVar[float] = 1.3e-6
    PREPARE_S: ClassVar[float] = 0.4e-6

    @classmethod
    def of(cls, recipe: Recipe, out: Path) -> StudySizes:
        """Sizes of a recipe that runs, or will run, in ``out``."""
        simulate, data, notes = recipe.simulate, recipe.data, []
        if simulate is not None:
            scans = round(simulate.segment_s / data.tr_s)
            n_train, n_test = simulate.train_segments, simulate.test_segments
            runs = n_train * simulate.train_runs + n_test * simulate.test_runs
            cortex = len(parse_areas(simulate.areas)) * (2 if simulate.areas == "visual" else 1)  # and as many others
            grayordinates = cortex + (31870 if simulate.subcortex else 0)
        else:
            scans, n_train, n_test, runs, grayordinates = 240, 18, 5, 86, 91282
            notes.append("assumed: 18 training and 5 test films of 240 scans, as in Wen 2018")
        voxels = data.k if data.selection == "top_k" and data.k else PUBLISHED_VOXELS
        held = data.validation_segments
        counts = [(n_train - held) * scans, held * scans, n_test * scans]
        num_frames, size = round(data.fps * data.tr_s), data.size
        path = out / "prepare" / "store.zarr"
        if is_complete(path):
            store = Store.open(path)
            counts = [sum(store.n_scans(name) for name in store.segments(s)) for s in ("train", "validation", "test")]
            voxels, num_frames, size = store.n_voxels, store.num_frames, store.size
        elif not (data.selection == "top_k" and data.k):
            notes.append(f"assumed: {voxels} selected voxels, as published for one subject; known after prepare")
        chosen = min(recipe.reconstruct.max_windows or counts[2], counts[2])
        return cls(
            counts[0],
            counts[1],
            counts[2],
            runs,
            scans + 5,
            grayordinates,
            voxels,
            num_frames,
            size,
            chosen,
            notes=notes,
        )

    @property
    def n_windows(self) -> int:
        """Windows of all splits."""
        return self.n_train + self.n_validation + self.n_test

    @property
    def n_frames(self) -> int:
        """Frames of all windows."""
        return self.n_windows * self.num_frames

    @property
    def n_recorded_values(self) -> float:
        """Volumes times grayordinates of all recordings."""
        return float(self.n_runs * self.n_volumes * self.n_grayordinates)

    @property
    def n_recorded_voxels(self) -> float:
        """Volumes times selected voxels of all recordings."""
        return float(self.n_runs * self.n_volumes * self.n_voxels)


@dataclass(frozen=True)
class Network:
    """Parameters of a network in training, and the work of a step: once, and for each sample of the batch."""

    parameters: float
    trainable: float
    fixed: Work
    per_item: Work

    def beside(self, other: Network) -> Network:
        """Two networks trained together, one feeding the other."""
        return Network(
            self.parameters + other.parameters,
            self.trainable + other.trainable,
            self.fixed + other.fixed,
            self.per_item + other.per_item,
        )


@dataclass(frozen=True)
class Features:
    """Bytes and operations of the frozen features that the stages keep."""

    align_bytes: float
    align_flops: float
    latent_bytes: float
    latent_work: Work
    token_bytes: float


def transformer_flops(config: dict[str, Any], tokens: int) -> float:
    """Operations of one pass of a transformer over some tokens: projections, MLP and attention."""
    width = config["hidden_size"]
    weights = 4 * width**2 + 2 * width * config.get("intermediate_size", 4 * width)
    return float(config.get("num_hidden_layers", 12) * (2 * weights * tokens + 4 * tokens**2 * width))


class Networks:
    """The recipe's networks, counted when first asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.folder = embedded_kit() if recipe.foundation == "embedded" else Path(recipe.foundation)
        self.notes: list[str] = []
        self._kept: dict[Any, Any] = {}
        lacking = [
            part for part in PUBLISHED if PUBLISHED[part].config and not (self.folder / part / "config.json").is_file()
        ]
        if lacking:
            self.notes.append(
                f"assumed: {', '.join(lacking)} of the published sizes (Stable Diffusion 1.5, CLIP ViT-L/14)"
            )

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, or the published one where the part is not there."""
        path = self.folder / part / "config.json"
        try:
            content = json.loads(path.read_text()) if path.is_file() else PUBLISHED[part].config
        except (json.JSONDecodeError, UnicodeDecodeError):
            content = PUBLISHED[part].config
        inner = {"text_encoder": "text_config", "image_encoder": "vision_config", "captioner": "vision_config"}.get(
            part, ""
        )
        return {**dict(content), **dict(content.get(inner) or {})}

    def part_bytes(self, part: str, recipe: Recipe | None = None) -> float:
        """Memory of a frozen part in float32; 0 for the captioner where the recipe does not caption."""
        if part == "captioner" and recipe is not None and recipe.data.captions != "blip":
            return 0.0
        files = [*(self.folder / part).glob("*.safetensors")] or [*(self.folder / part).glob("*.bin")]
        return float(sum(file.stat().st_size for file in files)) or PUBLISHED[part].parameters * 4

    def frame_flops(self, part: str) -> float:
        """Operations of a frozen transformer on one frame, or on one clip for the video classifier."""
        config = self.config(part)
        tokens = (config.get("image_size", 224) // config.get("patch_size", 16)) ** 2 + 1
        if part == "video_classifier":
            tokens *= config.get("num_frames", 16) // config.get("tubelet_size", 2)
        return transformer_flops(config, tokens)

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def of_stage(self, stage: str, sizes: StudySizes) -> Network:
        """What a stage trains."""
        if stage in ("pretrain", "adapt"):
            batch = self.recipe.pretrain.batch_size if stage == "pretrain" else self.recipe.adapt.batch_size
            return self.masked_brain(sizes.n_hcp_voxels if stage == "pretrain" else sizes.n_voxels, batch)
        if stage == "align":
            return self.encoder(sizes.n_voxels)
        if stage == "distill":
            return self.unet(sizes, is_whole=True)
        return self.unet(sizes) if stage == "animate" else self.encoder(sizes.n_voxels).beside(self.unet(sizes))

    def masked_brain(self, n_voxels: int, batch_size: int) -> Network:
        """The masked autoencoder, counted near a batch."""

        def build() -> nn.Module:
            return MaskedBrainModel(n_voxels, **self.recipe.encoder.model_dump())

        def prepare(batch: int) -> Any:
            model, fmri = build().train(), torch.randn(batch, n_voxels)
            return lambda: _step(lambda: model(fmri).loss, self.recipe.pretrain.precision)

        key = ("brain", n_voxels, batch_size)
        return self._keep(key, lambda: Network(*count_parameters(build), *count_per_item(prepare, batch_size)))

    def encoder(self, n_voxels: int) -> Network:
        """The fMRI encoder, the paper's or the recipe's own, counted near ``align``'s batch."""
        text, settings = self.config("text_encoder"), self.recipe.align
        sizes = {"window": settings.window, "condition_length": text.get("max_position_embeddings", 77)}
        sizes["condition_width"] = text.get("hidden_size", 512)

        def build() -> nn.Module:
            if settings.encoder is not None:
                return OwnEncoder(settings.encoder, n_voxels, settings=settings.encoder_settings or None, **sizes)
            names = ("patch_size", "patch_weights", "embed_dim", "depth", "num_heads", "mlp_ratio")
            return FmriEncoder(n_voxels, **{name: getattr(self.recipe.encoder, name) for name in names}, **sizes)

        def prepare(batch: int) -> Any:
            model, fmri = build().train(), torch.randn(batch, settings.window, n_voxels)
            return lambda: _step(lambda: model(fmri).float().square().mean(), settings.precision)

        key, batch = ("encoder", n_voxels), settings.batch_size
        return self._keep(key, lambda: Network(*count_parameters(build), *count_per_item(prepare, batch)))

    def _build_unet(self, is_whole: bool = False) -> VideoUNet:
        known = VideoUNet._get_init_keys(VideoUNet)
        unet = VideoUNet(**{name: value for name, value in self.config("unet").items() if name in known})
        tuned = (*VideoUNet.trainable_names(), "norm_temp")
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(is_whole or any(part in name for part in tuned))
        return unet

    @cached_property
    def latent_factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.config("vae")["block_out_channels"]) - 1)

    def _unet_input(self, unet: VideoUNet, batch: int, pixels: int, frames: int) -> tuple[torch.Tensor, ...]:
        side, text = pixels // self.latent_factor, self.config("text_encoder")
        latents = torch.randn(batch, unet.config.in_channels, frames, side, side)
        condition = torch.randn(batch, text.get("max_position_embeddings", 77), unet.config.cross_attention_dim)
        return latents, torch.zeros(batch, dtype=torch.long), condition

    def unet(self, sizes: StudySizes, is_whole: bool = False) -> Network:
        """The video UNet in training: its attention, counted near ``animate``'s batch, or all of it, near ``distill``'s."""

        def build() -> VideoUNet:
            return self._build_unet(is_whole)

        settings = self.recipe.distill if is_whole and self.recipe.distill is not None else self.recipe.animate

        def prepare(batch: int) -> Any:
            unet = build().train()
            given = self._unet_input(unet, batch, sizes.size, sizes.num_frames)
            return lambda: _step(lambda: unet(*given).sample.float().square().mean(), settings.precision)

        key, batch = ("unet", sizes.size, sizes.num_frames, is_whole), settings.batch_size
        return self._keep(key, lambda: Network(*count_parameters(build), *count_per_item(prepare, batch)))

    def sampler(self, pixels: int, frames: int) -> Network:
        """The video UNet in sampling: one pass over one clip."""

        def prepare(batch: int) -> Any:
            unet = self._build_unet().eval()
            given = self._unet_input(unet, batch, pixels, frames)

            def call() -> Any:
                with torch.no_grad(), _autocast(self.recipe.reconstruct.precision):
                    return unet(*given).sample

            return call

        return self._keep(("sampler", pixels, frames), lambda: Network(0, 0, *count_per_item(prepare)))

    def _vae(self, pixels: int, part: str) -> Work:
        known = AutoencoderKL._get_init_keys(AutoencoderKL)
        settings = {name: value for name, value in self.config("vae").items() if name in known}
        side = pixels // self.latent_factor

        def prepare(batch: int) -> Any:
            vae = AutoencoderKL(**settings).eval()
            shape = (batch, 3, pixels, pixels) if part == "encode" else (batch, vae.config.latent_channels, side, side)
            given = torch.randn(shape)

            def call() -> Any:
                with torch.no_grad():
                    return vae.encode(given).latent_dist.mean if part == "encode" else vae.decode(given).sample

            return call

        return self._keep((part, pixels), lambda: count_per_item(prepare)[1])

    def decode(self, pixels: int) -> Work:
        """Work of the VAE's decoder on one frame."""
        return self._vae(pixels, "decode")

    def features(self, sizes: StudySizes) -> Features:
        """Frozen features of training and validation windows: images and captions for align, latents for animate."""
        windows = sizes.n_train + sizes.n_validation
        frames, text = windows * sizes.num_frames, self.config("text_encoder")
        length, width = text.get("max_position_embeddings", 77), text.get("hidden_size", 512)
        tokens = 2.0 * windows * length * width
        uses_images = "image" in self.recipe.align.loss
        images = 4.0 * frames * width if uses_images else 0.0
        flops = 5 * windows * transformer_flops(text, length)  # each caption and four versions of it
        flops += 2 * frames * self.frame_flops("image_encoder") if uses_images else 0.0
        side = sizes.size // self.latent_factor
        latents = 2.0 * frames * self.config("vae").get("latent_channels", 4) * side**2
        one = self._vae(sizes.size, "encode")
        return Features(tokens + images, flops, latents, Work().scaled(one, frames), tokens)


def _autocast(precision: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def _step(loss: Any, precision: str) -> None:
    """Forward and backward of one micro-batch, as the training loop does them."""
    with _autocast(precision):
        value = loss()
    value.backward()
