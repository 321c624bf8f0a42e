"""``mindvis``: masked modelling of single scans, image diffusion conditioned twice.

Follows Chen, Qing, Xiang, Yue, Zhou, "Seeing beyond the brain: conditional diffusion model with
sparse masked modeling for vision decoding", CVPR 2023: a scan's tokens are projected to the
cross-attention's condition and, a second time, into the time embedding; encoder, projections and
cross-attention are tuned on {scan, picture}. A scan gives one picture, held for its duration.

Differences from the paper:

- the picture of a scan is one of its frames, a random one in training;
- the time embedding takes the mean condition token through a matrix of zeros at first;
- encoder and masked autoencoder are the study's (``align.encoder``, ``adapt``);
- ``token_weight`` may add the study's regression of the caption's tokens (0 as published);
- sampling is the recipe's except for the guidance scale; the negative is the mean training fMRI.

Shapes: N windows, B batch, V voxels, F frames, c h w latents, L condition tokens, C condition
width.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn

from mindvideo.baselines.base import MethodContext, SplitWindows
from mindvideo.config import Align
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import ModelError
from mindvideo.generate.clips import window_noise
from mindvideo.generate.guidance import negative_condition
from mindvideo.generate.sampling import Plan, autocast, denoise
from mindvideo.generate.scheduler import make_scheduler
from mindvideo.models.encoders import ENCODERS
from mindvideo.models.interfaces import Encoder
from mindvideo.train.align import new_encoder
from mindvideo.train.animate import ClipValidation, Diffusion
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import Features, Split, caption_table
from mindvideo.train.loop import Batch, Draw, Metrics, named_trainable
from mindvideo.train.stage import save_memory, trainable
from mindvideo.train.tokens import TokenTarget

TUNED = ("attn2", "class_embedding")


class PictureUNet(UNet2DConditionModel):
    """An image diffusion model conditioned twice, called with clips of one frame."""

    constant_condition = staticmethod(nullcontext)

    def forward(
        self, latents_Bc1hw: torch.Tensor, timestep: torch.Tensor, condition_BLC: torch.Tensor
    ) -> UNet2DConditionOutput:
        """The prediction (B, c, 1, h, w)."""
        twice = condition_BLC.mean(dim=1)
        found = super().forward(latents_Bc1hw.squeeze(2), timestep, condition_BLC, class_labels=twice).sample
        return UNet2DConditionOutput(sample=found.unsqueeze(2))


def condition_twice(unet: UNet2DConditionModel) -> PictureUNet:
    """A copy whose time embedding also takes a projection, zero at first, of the condition.

    ModelError where the model already uses a class embedding.
    """
    config: dict[str, Any] = dict(unet.config)
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ModelError(
            "expected an image diffusion model without a class embedding, found one; use another foundation"
        )
    config |= {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": config["cross_attention_dim"],
    }
    double = cast(PictureUNet, PictureUNet.from_config(config))
    fresh = double.class_embedding.state_dict()
    added = {f"class_embedding.{name}": torch.zeros_like(value) for name, value in fresh.items()}
    double.load_state_dict(unet.state_dict() | added)
    return double


@dataclass
class PictureTask:
    """Random training scans, each with the latents of one of its frames.

    Of ``latents`` (N, F, c, h, w) by split, the middle frame is validated on.
    """

    context: MethodContext
    encoder: Encoder
    unet: Any
    windows: SplitWindows
    latents: dict[Split, torch.Tensor]
    target: TokenTarget | None

    def __post_init__(self) -> None:
        self.settings = self.context.recipe.baseline.mindvis
        self.device = self.context.device
        self.encoder.to(self.device)
        self.unet.to(self.device)
        self.diffusion = Diffusion(self.context.foundation.scheduler_config)
        if "validation" in self.windows:
            held_out = self.latents["validation"]
            middle = held_out[:, held_out.shape[1] // 2][:, None]
            self.validation = ClipValidation(self.diffusion, middle, 0, self.device)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder with its projection, cross-attention, the second condition."""
        tuned = named_trainable(self.unet, TUNED)
        encoder = {f"encoder.{name}": parameter for name, parameter in trainable(self.encoder).items()}
        return encoder | {f"unet.{name}": parameter for name, parameter in tuned.items()}

    def sample(self, draw: Draw) -> Batch:
        """Scans, each with one of its frames."""
        settings = self.settings
        latents = self.latents["train"]
        rng = draw.rng
        index = draw.rows(len(latents))
        frame = rng.integers(latents.shape[1], size=draw.size)
        scans = torch.from_numpy(self.windows["train"].fmri(index))
        fmri = augment_fmri(scans, settings.sparsify, settings.input_noise, rng)
        clean = latents[index, frame].float().unsqueeze(2)
        return {"index": index, "fmri": fmri, **self.diffusion.draw(clean)}

    def losses(self, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """Diffusion loss of each scan, with the token regression where it is asked for."""
        self.encoder.train()
        self.unet.train()
        condition = self.encoder(batch["fmri"].to(self.device))
        loss = self.diffusion.drawn_losses(self.unet, batch, condition.float())
        logged = {"diffusion_loss": loss.detach().mean()}
        if self.target is None:
            return loss, logged
        token = self.target.distances(condition, self.target.tokens(batch["index"]))
        return loss + self.settings.token_weight * token, logged | {"token_loss": token.detach().mean()}

    def validate(self, step: int) -> dict[str, float]:
        """Diffusion loss on validation scans, with their own fMRI and with others'."""
        self.encoder.eval()

        def condition(index: np.ndarray) -> torch.Tensor:
            return self.encoder(torch.from_numpy(self.windows["validation"].fmri(index)).to(self.device)).float()

        return self.validation(self.unet, condition)


class MindVis:
    """Scan to picture; `Method`."""

    def __init__(self, context: MethodContext) -> None:
        self.context = context
        self.settings = context.recipe.baseline.mindvis

    def fit(self, store: Store) -> None:
        """Tune encoder, projections and cross-attention on the training scans, or resume."""
        context = self.context
        settings = self.settings
        foundation = self.context.foundation
        self.frames = store.num_frames
        self.size = store.size
        windows = context.windows(store, window=1)
        features = Features(context.run_dir, store, foundation, context.progress)
        latents = {split: features.latents(split) for split in windows}
        training = windows["train"]
        self.mean = torch.from_numpy(training.mean_fmri())
        target = None
        if settings.token_weight > 0:
            text = caption_table(context.folder, "text", foundation, training.captions, progress=context.progress)
            target = TokenTarget(text, training.captions)
        self.encoder = self._new_encoder(training, target)
        self.unet = condition_twice(foundation.unet)
        save_memory(settings, self.encoder, self.unet)
        context.train(PictureTask(context, self.encoder, self.unet, windows, latents, target), settings)
        self.encoder.eval()
        self.unet.eval()

    def _new_encoder(self, training: Windows, target: TokenTarget | None) -> Encoder:
        """The study's encoder of single scans; the paper's for a custom one."""
        context = self.context
        recipe = self.context.recipe
        settings = self.settings
        start_from = "adapt" if recipe.adapt.enabled or recipe.pretrain.enabled else "scratch"
        known = recipe.align.encoder in ENCODERS
        own = {"encoder": recipe.align.encoder, "encoder_settings": recipe.align.encoder_settings} if known else {}
        align = Align(window=1, start_from=start_from, dropout=settings.dropout, **own)
        single = recipe.model_copy(update={"align": align, "seed": context.seed})
        encoder = new_encoder(single, context.run_dir, training, context.foundation)
        if target is not None:
            encoder.start_at(target.statistics)
        return encoder

    @torch.inference_mode()
    def reconstruct(self, fmri: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3): one picture of the window's first scan, held."""
        context = self.context
        foundation = self.context.foundation
        settings = self.context.recipe.reconstruct
        is_bf16 = settings.precision == "bf16"

        def encode(scans: torch.Tensor) -> torch.Tensor:
            with autocast(context.device, is_bf16):
                return self.encoder(scans.to(context.device)).float()

        negative = "train_mean" if settings.negative == "test_mean" else settings.negative
        null = foundation.null_condition() if negative == "null" else None
        unwanted = negative_condition(negative, encode, null=null, train_mean=self.mean)
        side = self.size // foundation.latent_factor
        shape = (foundation.latent_channels, 1, side, side)
        noise = torch.stack([window_noise(context.recipe.seed, int(number), shape) for number in window])
        latents = denoise(
            cast(Any, self.unet),
            make_scheduler(dict(foundation.scheduler_config), settings.scheduler),
            noise.to(context.device),
            encode(torch.from_numpy(fmri[:, :1])),
            None if unwanted is None or self.settings.guidance_scale == 1.0 else unwanted.to(context.device),
            Plan(settings.steps, self.settings.guidance_scale, is_bf16),
        )
        pictures = foundation.decode_latents(latents.squeeze(2))
        return np.repeat(pictures[:, None], self.frames, axis=1)
