"""``mindvis``: masked brain modelling of single scans, and an image diffusion model conditioned twice (Chen et al. 2023).

Follows Chen, Qing, Xiang, Yue, Zhou, "Seeing beyond the brain: conditional diffusion model with sparse masked modeling
for vision decoding", CVPR 2023: the masked autoencoder's encoder reads one averaged scan; its tokens are projected to the
cross-attention's condition, and a second time into the time embedding; encoder, projections and cross-attention are
tuned on {scan, picture}, the rest of the diffusion model stays. A picture a scan, held for the scan's duration.

Departs: the picture of a scan is one of its frames, a random one in training; the time embedding is given the mean of
the condition tokens through one matrix that starts at zero, so that tuning starts at the foundation's own model; the
study's masked autoencoder (``adapt``) is used; ``token_weight`` may add the study's own regression of the caption's
tokens (0 as published), and samplers other than PLMS come from the recipe.

Shapes: N windows, B batch, V voxels, F frames, c h w latents, L condition tokens, C condition width.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from mindvideo.baselines.base import Bench
from mindvideo.config import MindVisRival
from mindvideo.data.store import Store
from mindvideo.data.windows import Windows
from mindvideo.errors import ModelError
from mindvideo.generate.clips import mean_fmri, window_noise
from mindvideo.generate.guidance import guide
from mindvideo.generate.scheduler import make_scheduler, set_timesteps
from mindvideo.models.fmri_encoder import FmriEncoder
from mindvideo.models.masked_brain import MaskedBrainModel
from mindvideo.train.align import TokenTarget
from mindvideo.train.augmentation import augment_fmri
from mindvideo.train.features import caption_table, latent_features
from mindvideo.train.loop import named_trainable
from mindvideo.train.stage import trainable

VALIDATION_PICTURES = 48
TUNED = ("attn2", "class_embedding")


def condition_twice(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A copy that also adds a projection of ``class_labels`` (B, C), zero at first, to the time embedding.

    Raises
    ------
    ModelError
        Where the model already uses a class embedding.
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
    double = UNet2DConditionModel.from_config(config)
    fresh = double.class_embedding.state_dict()
    added = {f"class_embedding.{name}": torch.zeros_like(value) for name, value in fresh.items()}
    double.load_state_dict(unet.state_dict() | added)
    return double


class PictureTask:
    """Random training scans, each with the latents of one of its frames.

    Parameters
    ----------
    encoder : FmriEncoder
        Of windows of one scan; trained whole.
    unet : UNet2DConditionModel
        Cross-attention and the second condition's projection are trained.
    latents, held_out : Tensor, (N, F, c, h, w)
        Of the training and validation windows.
    """

    def __init__(
        self,
        encoder: FmriEncoder,
        unet: UNet2DConditionModel,
        scheduler_config: dict[str, Any],
        training: tuple[Windows, torch.Tensor],
        validation: tuple[Windows, torch.Tensor],
        target: TokenTarget | None,
        settings: MindVisRival,
        device: torch.device,
    ) -> None:
        self.encoder, self.unet = encoder.to(device), unet.to(device)
        self.scheduler = DDPMScheduler.from_config(scheduler_config)
        self.windows, self.latents = training
        self.held_out, self.held_out_latents = validation
        self.target, self.settings, self.device = target, settings, device

    def parameters(self) -> dict[str, nn.Parameter]:
        """The whole encoder with its projection, cross-attention, the second condition."""
        tuned = named_trainable(self.unet, TUNED)
        encoder = {f"encoder.{name}": parameter for name, parameter in trainable(self.encoder).items()}
        return encoder | {f"unet.{name}": parameter for name, parameter in tuned.items()}

    def errors(
        self, clean: torch.Tensor, condition: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
    ) -> torch.Tensor:
        """Mean squared error (B,) of what the model predicts about noised latents (B, c, h, w)."""
        kind = self.scheduler.config.prediction_type
        noisy = self.scheduler.add_noise(clean, noise, timestep)
        wanted = {"epsilon": noise, "sample": clean}.get(kind)
        if wanted is None:
            wanted = self.scheduler.get_velocity(clean, noise, timestep)
        found = predict(self.unet, noisy, timestep, condition)
        return F.mse_loss(found.float(), wanted, reduction="none").flatten(1).mean(dim=1)

    def loss(self, step: int, micro: int, rng: np.random.Generator) -> tuple[torch.Tensor, dict[str, float]]:
        """Diffusion loss of one batch, with the token regression where it is asked for."""
        settings = self.settings
        self.encoder.train()
        self.unet.train()
        index = rng.integers(len(self.latents), size=settings.batch_size)
        frame = rng.integers(self.latents.shape[1], size=settings.batch_size)
        fmri = augment_fmri(torch.from_numpy(self.windows.fmri(index)), settings.sparsify, settings.input_noise, rng)
        condition = self.encoder(fmri.to(self.device))
        clean = self.latents[index, frame].float().to(self.device)
        noise = torch.randn(clean.shape).to(self.device)
        timestep = torch.randint(self.scheduler.config.num_train_timesteps, (len(index),)).to(self.device)
        loss = self.errors(clean, condition.float(), noise, timestep).mean()
        logged = {"diffusion_loss": float(loss.detach())}
        if self.target is None:
            return loss, logged
        token = self.target.loss(condition, index)
        return loss + settings.token_weight * token, logged | {"token_loss": float(token.detach())}

    @torch.inference_mode()
    def validate(self, step: int) -> dict[str, float]:
        """Diffusion loss on validation scans at fixed noise, with their own fMRI and with that of other scans."""
        self.encoder.eval()
        self.unet.eval()
        count = min(len(self.held_out), VALIDATION_PICTURES)
        index = np.linspace(0, len(self.held_out) - 1, count).astype(int)
        clean = self.held_out_latents[index, self.held_out_latents.shape[1] // 2].float().to(self.device)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(self.device)
        spread = (np.arange(count) + 0.5) / count * self.scheduler.config.num_train_timesteps
        timestep = torch.from_numpy(np.random.default_rng(0).permutation(spread).astype(np.int64)).to(self.device)
        figures = {}
        for name, rows in (("validation_loss", index), ("validation_loss_shuffled", np.roll(index, count // 2))):
            condition = self.encoder(torch.from_numpy(self.held_out.fmri(rows)).to(self.device)).float()
            figures[name] = float(self.errors(clean, condition, noise, timestep).mean())
        return figures


def predict(
    unet: UNet2DConditionModel, latents: torch.Tensor, timestep: torch.Tensor, condition_BLC: torch.Tensor
) -> torch.Tensor:
    """The model's prediction (B, c, h, w), conditioned by cross-attention and through the time embedding."""
    return unet(latents, timestep, condition_BLC, class_labels=condition_BLC.mean(dim=1)).sample


class MindVis:
    """Scan to picture; `Method`."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.settings = bench, bench.recipe.baseline.mindvis

    def fit(self, store: Store) -> None:
        """Tune encoder, projections and cross-attention on the training scans, or go on doing so."""
        bench, settings, foundation = self.bench, self.settings, self.bench.foundation
        self.frames, self.size = store.num_frames, store.size
        training, validation = (Windows(store, split, 1) for split in ("train", "validation"))
        latents, held_out = (
            latent_features(bench.run_dir, store, foundation, split, progress=bench.progress)
            for split in ("train", "validation")
        )
        self.mean = torch.from_numpy(mean_fmri(training))
        target = None
        if settings.token_weight > 0:
            text = caption_table(bench.folder, "text", foundation, training.captions, progress=bench.progress)
            target = TokenTarget(text, training.captions)
        self.encoder = self._new_encoder(store, training, target)
        self.unet = condition_twice(foundation.unet)
        task = PictureTask(
            self.encoder,
            self.unet,
            foundation.scheduler_config,
            (training, latents),
            (validation, held_out),
            target,
            settings,
            bench.device,
        )
        bench.train(task, settings)
        self.encoder.eval()
        self.unet.eval()

    def _new_encoder(self, store: Store, training: Windows, target: TokenTarget | None) -> FmriEncoder:
        """The study's masked autoencoder as an encoder of single scans; a new one where masked modelling is off."""
        bench, recipe = self.bench, self.bench.recipe
        fmri = training.fmri(np.arange(len(training)))
        arguments: dict[str, Any] = {
            "window": 1,
            "condition_length": bench.foundation.condition_length,
            "condition_width": bench.foundation.condition_width,
            "dropout": self.settings.dropout,
            "token_bias": self.settings.token_bias,
            "input_mean": float(fmri.mean(dtype=np.float64)),
            "input_scale": float(fmri.std(dtype=np.float64)),
            "voxel_id": store.voxel_id,
        }
        torch.manual_seed(bench.seed)
        folder = bench.run_dir / ("adapt" if recipe.adapt.enabled else "pretrain") / "model"
        if not recipe.adapt.enabled and not recipe.pretrain.enabled:
            names = ("patch_size", "patch_weights", "embed_dim", "depth", "num_heads", "mlp_ratio")
            shape = {name: getattr(recipe.encoder, name) for name in names}
            encoder = FmriEncoder(num_voxels=store.n_voxels, **shape, **arguments)
        else:
            if not folder.is_dir():
                raise ModelError(
                    f"expected the masked brain model at {folder}, found none; run the study up to {folder.parent.name}, "
                    "or set pretrain.enabled=false and adapt.enabled=false to start from nothing"
                )
            model = MaskedBrainModel.from_pretrained(folder)
            if model.config.num_voxels != store.n_voxels:
                model = MaskedBrainModel.from_other_voxels(model, store.n_voxels)
            encoder = FmriEncoder.from_masked_brain(model, **arguments)
        if encoder.proj_head.offset is not None and target is not None:
            with torch.no_grad():
                encoder.proj_head.offset.copy_(target.mean)
        return encoder

    @torch.inference_mode()
    def reconstruct(self, fmri: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Clips (B, F, H, W, 3): one picture of the window's first scan, held."""
        bench, recipe = self.bench, self.bench.recipe
        condition = self.encoder(torch.from_numpy(fmri[:, :1]).to(bench.device)).float()
        unwanted = self.encoder(self.mean[None].to(bench.device)).float().expand_as(condition)
        side = self.size // bench.foundation.latent_factor
        shape = (bench.foundation.latent_channels, side, side)
        latents = torch.stack([window_noise(recipe.seed, int(number), shape) for number in window]).to(bench.device)
        scheduler = cast(Any, make_scheduler(dict(bench.foundation.scheduler_config), recipe.reconstruct.scheduler))
        set_timesteps(scheduler, recipe.reconstruct.steps, bench.device)
        scale = self.settings.guidance_scale
        latents = latents * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            noisy = scheduler.scale_model_input(latents, timestep)
            found = predict(self.unet, noisy, timestep, condition)
            if scale != 1.0:
                found = guide(found, predict(self.unet, noisy, timestep, unwanted), scale)
            latents = scheduler.step(found, timestep, latents).prev_sample
        pictures = bench.foundation.decode_latents(latents)
        return np.repeat(pictures[:, None], self.frames, axis=1)
